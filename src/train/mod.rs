//! Training and answering for real: programs from models, ranks that run them, the loop, loss scaling, calibration, checkpoints.
//!
//! | file | what |
//! | --- | --- |
//! | `apart` | steps with a clock around each of their parts |
//! | `feed` | rows of a data set into a session |
//! | `program` | a forward graph, a precision and a compression to a runnable `Program` |
//! | `sparsity` | which products of a pruned program skip the zeros |
//! | `shared` | results of a rank as bytes, for ranks in other processes |
//! | `team` | the ranks of a layout, each with its session |
//! | `trainer` | the training loop, seed by seed or step by step |
//! | `tuning` | training that goes on after a pruning, or while weights go |
//! | `predictor` | answers for rows |
//! | `calibrate` | activations on training rows; the choice of a format for each layer |
//! | `aware` | training that goes on with simulated int8 grids |
//! | `init`, `loss_scale`, `checkpoint` | initial weights, fp16's dynamic scale, weights on disk |

mod apart;
mod aware;
mod calibrate;
mod checkpoint;
mod feed;
mod init;
mod loss_scale;
mod predictor;
mod program;
mod shared;
mod sparsity;
mod step_bench;
mod team;
mod trainer;
mod tuning;

pub use apart::ApartStep;
pub use aware::train_aware;
pub use calibrate::{CALIBRATION_ROWS, Probe};
pub use checkpoint::{Checkpoint, CheckpointError, Identity};
pub use init::initial_weights;
pub use loss_scale::LossScale;
pub use predictor::Predictor;
pub use program::{
    InferenceProgram, TrainingProgram, inference_program, inference_programs, masked_training_program, optimizer_step,
    training_program, training_programs,
};
pub use shared::Shared;
pub use step_bench::StepBench;
pub use team::{Rank, StepTimes, Team, lead};
pub use trainer::{Trainer, scaled_rate};
pub use tuning::tuner;

use crate::{
    backend::{BackendError, CollectiveError},
    graph::{GraphError, Program},
    strategy::{StrategyError, Tensor, Weights},
};

#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Graph(#[from] GraphError),
    #[error(transparent)]
    Strategy(#[from] StrategyError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Metric(#[from] crate::metrics::MetricError),
    #[error("a batch of {batch_size} does not split over {ranks} ranks")]
    Split { batch_size: usize, ranks: usize },
    #[error("a batch of {batch_size} is larger than the {rows} training rows")]
    TooFewRows { batch_size: usize, rows: usize },
    #[error("the model has no output `{name}`")]
    NoOutput { name: &'static str },
    #[error("the loss is not finite at step {step} of training with simulated grids")]
    NotFinite { step: usize },
    #[error("a rank stopped: {0}")]
    Panic(String),
    #[error("{0}")]
    Shared(String),
    #[error("another rank sent what is no result of this step: are all processes of the same version?")]
    Garbled,
}

/// The tensor of `weights` that belongs to a program's value, low-precision copies included (`fc1.weight.bf16` is `fc1.weight`).
fn tensor_for<'w>(weights: &'w Weights, name: &str) -> Option<&'w Tensor> {
    let master = name.strip_suffix(".bf16").or_else(|| name.strip_suffix(".f16")).unwrap_or(name);
    weights.tensors.iter().find(|t| t.name == name || t.name == master)
}

/// Writes `weights` into every parameter and state of a session's program that has a tensor.
fn load_weights(session: &mut dyn crate::backend::Session, weights: &Weights) -> Result<(), TrainError> {
    let kept: Vec<_> = session.program().kept().map(|(id, value)| (id, value.name.clone(), value.dtype)).collect();
    for (id, name, dtype) in kept {
        let Some(tensor) = tensor_for(weights, &name) else { continue };
        if dtype == crate::vocab::DType::I8 {
            session.upload_i8(id, &tensor.data.iter().map(|v| *v as i8).collect::<Vec<_>>())?;
        } else {
            session.upload_f32(id, &tensor.data)?;
        }
    }
    Ok(())
}

/// Bytes of the weights that a program reads, in their storage types.
fn weight_bytes(program: &Program) -> u64 {
    program.kept().map(|(_, value)| value.bytes() as u64).sum()
}
