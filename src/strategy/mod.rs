//! Strategies as rewrites: graph in, graph out, with the weights beside it. Nothing in a model knows of them.
//!
//! | file | what |
//! | --- | --- |
//! | `augment` | images are changed in the training step itself |
//! | `precision` | storage in bf16 or fp16, fp32 accumulation and master weights |
//! | `prune` | magnitude, 2:4 (same shapes), channels (the graph shrinks) |
//! | `quantize` | static int8 |
//! | `parallel` | data parallelism: gradients summed over ranks, optimizer state on all of them or shared out |
//! | `pipeline` | pipeline parallelism: the graph cut into stages, micro-batches by GPipe or 1F1B |
//! | `recompute` | activations dropped and made again in the backward pass |
//! | `tensor` | tensor parallelism: weights split over ranks by columns and rows |
//!
//! All compressions here are applied to trained weights once, without training afterwards.

mod augment;
mod parallel;
mod pipeline;
mod precision;
mod prune;
mod quantize;
mod recompute;
mod tensor;
mod weights;

pub use augment::{Warped, warp_input};
pub use parallel::{BUCKET_BYTES, Part, Trained, scatter_gradients, start_reduces, update_part};
pub use pipeline::{Stage, Task, Unrolled, cut_stages, schedule};
pub use precision::{LowPrecision, to_storage};
pub use prune::{prune, use_two_four};
pub use quantize::{Calibration, quantize, watch_inputs};
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
    #[error("this model cannot be split over {ranks} ranks so")]
    NothingToSplit { ranks: usize },
    #[error("no calibration was made for the input of `{weight}`")]
    NotCalibrated { weight: String },
}
