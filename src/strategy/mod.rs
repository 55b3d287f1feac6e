//! Strategies as rewrites: graph in, graph out, with the weights beside it. Nothing in a model knows of them.
//!
//! | file | what |
//! | --- | --- |
//! | `augment` | images are changed in the training step itself |
//! | `precision` | storage in bf16 or fp16, fp32 accumulation and master weights; what stays wider |
//! | `fp8` | products of 8-bit floating-point operands, with scales |
//! | `prune` | magnitude, 2:4 (same shapes), channels (the graph shrinks) |
//! | `mask` | training that keeps pruned weights at zero, and how their share grows |
//! | `calibration` | what was seen of activations: ranges, rows |
//! | `quantize`, `int4` | int8 static and dynamic, 4-bit weights (nearest, GPTQ), a format a layer, grids simulated in training |
//! | `parallel` | data parallelism: gradients summed over ranks, optimizer state on all of them or shared out |
//! | `pipeline` | pipeline parallelism: the graph cut into stages, micro-batches by GPipe or 1F1B |
//! | `recompute` | activations dropped and made again in the backward pass |
//! | `tensor` | tensor parallelism: weights split over ranks by columns and rows |
//!
//! A pruning or a quantisation is applied to trained weights; training may go on with what is left, or with simulated grids before.

mod augment;
mod calibration;
mod fp8;
mod int4;
mod mask;
mod parallel;
mod pipeline;
mod precision;
mod prune;
mod quantize;
mod recompute;
mod tensor;
mod weights;

pub use augment::{Warped, warp_input};
pub use calibration::{Calibration, LayerFormat};
pub use fp8::{
    append_scaling, input_scale_names, input_scales, round_inputs, round_products, round_weights, rounded_weights,
    weight_scale_name,
};
pub use mask::{MASK, cubic_share, mask_gradients, masked_weights, masks};
pub use parallel::{BUCKET_BYTES, Part, Trained, scatter_gradients, start_reduces, update_part};
pub use pipeline::{Stage, Task, Unrolled, cut_stages, schedule};
pub use precision::{IN_FP32, InFp32, LowPrecision, NOT_FP8, NotFp8, to_storage};
pub use prune::{prune, prune_magnitude, prune_once};
pub use quantize::{Quantized, quantizable_weights, quantize, simulate_int8, step_name, watch_inputs, window_of};
pub use recompute::{Passes, recompute};
pub use tensor::{Shards, split_tensor};
pub use weights::{Tensor, Weights};

use crate::graph::GraphError;

/// A strategy that does not fit a model.
#[derive(Debug, thiserror::Error)]
pub enum StrategyError {
    #[error(transparent)]
    Graph(#[from] GraphError),
    #[error("no weight is called `{name}`")]
    MissingWeight { name: String },
    #[error("`{compression}` finds nothing to compress in this model")]
    NothingToCompress { compression: String },
    #[error("`{pruning}` takes weights that were trained after pruning, and these were not")]
    NotPruned { pruning: String },
    #[error("this model cannot be split over {ranks} ranks so")]
    NothingToSplit { ranks: usize },
    #[error("no calibration was made for the input of `{weight}`")]
    NotCalibrated { weight: String },
    #[error("no choice of formats reaches `{compression}`: with every layer in its cheapest it is {reached:.3}")]
    OutOfReach { compression: String, reached: f64 },
}
