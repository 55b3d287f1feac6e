//! A multi-layer perceptron with two hidden layers.

use super::{Size, linear};
use crate::{
    graph::{Graph, GraphError, Op, Unary},
    vocab::DType,
};

const HIDDEN: [usize; 2] = [256, 128];

/// `x` `[B, H, W, C]`, flattened.
pub fn build(size: &Size) -> Result<Graph, GraphError> {
    let [height, width, channels] = size.image()?;
    let mut g = Graph::new();
    let x = g.input("x", &[size.batch, height, width, channels], DType::F32);
    let mut features = height * width * channels;
    let mut y = g.apply(Op::Reshape { shape: vec![size.batch, features] }, &[x])?;
    for (k, hidden) in HIDDEN.into_iter().enumerate() {
        y = linear(&mut g, &format!("fc{}", k + 1), y, features, hidden)?;
        y = g.apply(Op::Unary(Unary::Relu), &[y])?;
        features = hidden;
    }
    let logits = linear(&mut g, "fc3", y, features, size.classes)?;
    g.mark_output("logits", logits);
    Ok(g)
}
