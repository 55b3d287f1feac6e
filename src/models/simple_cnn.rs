//! The smallest useful convolutional network: one convolution, one hidden layer.

use super::{Size, linear};
use crate::{
    graph::{Activation, Graph, GraphError, Op, Unary, Window},
    vocab::DType,
};

const CHANNELS: usize = 32;
const HIDDEN: usize = 128;

/// `x` `[B, H, W, C]` (H, W at least 2), odd last rows and columns are cut off by the pool.
pub fn build(size: &Size) -> Result<Graph, GraphError> {
    let [height, width, channels] = size.image()?;
    let mut g = Graph::new();
    let x = g.input("x", &[size.batch, height, width, channels], DType::F32);
    let w = g.weight("conv.weight", &[3, 3, channels, CHANNELS], 9 * channels, 9 * CHANNELS);
    let b = g.bias("conv.bias", CHANNELS, 9 * channels);
    let y = g.apply(Op::Conv2d { window: Window::square(3, 1, 1), activation: Activation::None }, &[x, w])?;
    let y = g.apply(Op::AddBias, &[y, b])?;
    let y = g.apply(Op::Unary(Unary::Relu), &[y])?;
    let y = g.apply(Op::MaxPool2d { window: Window::square(2, 2, 0) }, &[y])?;
    let features = (height / 2) * (width / 2) * CHANNELS;
    let y = g.apply(Op::Reshape { shape: vec![size.batch, features] }, &[y])?;
    let y = linear(&mut g, "fc1", y, features, HIDDEN)?;
    let y = g.apply(Op::Unary(Unary::Relu), &[y])?;
    let logits = linear(&mut g, "fc2", y, HIDDEN, size.classes)?;
    g.mark_output("logits", logits);
    Ok(g)
}
