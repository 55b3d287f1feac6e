//! Augmentation inside a training step: its images are changed by the device that trains on them.

use super::StrategyError;
use crate::{
    graph::{Graph, Node, Op, Role, ValueId},
    vocab::DType,
};

/// An input of images as they are, and the map of each (`Op::Warp`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warped {
    pub images: ValueId,
    /// f32 `[B, 6]`
    pub maps: ValueId,
}

/// Makes `x`, an input of images `[B, H, W, C]`, the warped result of two new inputs: `NAME.images` and `NAME.maps`.
///
/// # Errors
/// Where `x` has no such shape.
pub fn warp_input(graph: &mut Graph, x: ValueId) -> Result<Warped, StrategyError> {
    let value = graph.value(x).clone();
    let images = graph.input(&format!("{}.images", value.name), &value.shape, value.dtype);
    let maps = graph.input(&format!("{}.maps", value.name), &[value.shape.first().copied().unwrap_or(0), 6], DType::F32);
    Op::Warp.infer(&[graph.value(images), graph.value(maps)])?;
    graph.values[x.0].role = Role::Intermediate;
    graph.nodes.insert(0, Node { op: Op::Warp, inputs: vec![images, maps], outputs: vec![x] });
    Ok(Warped { images, maps })
}
