//! How a model is trained: the part of a scenario that the checkpoint's identity and the report share.

use super::Target;
use crate::vocab::{Augmentation, InitKind, OptimizerKind, Schedule};
use serde::{Deserialize, Serialize};

/// Hyper-parameters of training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    pub epochs: usize,
    pub optimizer: OptimizerConfig,
    /// How the learning rate goes over the run.
    pub schedule: Schedule,
    pub init: InitKind,
    /// Coefficient of `l1 * sum |w|` in the objective.
    pub l1: f64,
    /// Coefficient of `l2 / 2 * sum w^2` in the objective; for `adamw` the decoupled weight decay.
    pub l2: f64,
    pub augment: Vec<Augmentation>,
    /// Number of independent runs; run k uses `first_seed + k`.
    pub seeds: usize,
    pub first_seed: u64,
    /// Batch of the reference training whose weights the `infer` candidates use.
    pub batch_size: usize,
    pub target: Option<Target>,
    /// Passes over the training rows after a pruning that is tuned.
    #[serde(default = "default_tune_epochs")]
    pub tune_epochs: usize,
    /// Gradients of so many bytes are summed over ranks together; as `strategy::BUCKET_BYTES` has it where none is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket_bytes: Option<usize>,
}

/// What a file from before the key was there means.
fn default_tune_epochs() -> usize {
    TrainConfig::TUNE_EPOCHS
}

impl TrainConfig {
    /// Of a scenario that does not say: by then the models that ship have regained what pruning took.
    pub const TUNE_EPOCHS: usize = 3;

    /// One run of so many epochs from seed 1, at a constant rate, without regularisation, changed images or a target.
    pub fn new(epochs: usize, optimizer: OptimizerConfig, batch_size: usize) -> Self {
        TrainConfig {
            epochs,
            optimizer,
            schedule: Schedule::Constant,
            init: InitKind::He,
            l1: 0.0,
            l2: 0.0,
            augment: Vec::new(),
            seeds: 1,
            first_seed: 1,
            batch_size,
            target: None,
            tune_epochs: TrainConfig::TUNE_EPOCHS,
            bucket_bytes: None,
        }
    }
}

/// Update rule and its constants.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptimizerConfig {
    pub kind: OptimizerKind,
    pub learning_rate: f64,
    /// SGD and RMSProp.
    pub momentum: f64,
    /// Adam's decay of the first moment.
    pub beta1: f64,
    /// Adam's decay of the second moment; RMSProp's `alpha`.
    pub beta2: f64,
    pub epsilon: f64,
}

impl OptimizerConfig {
    /// The customary constants of `kind` (PyTorch's defaults; SGD with momentum 0.9).
    pub fn new(kind: OptimizerKind, learning_rate: f64) -> Self {
        let (momentum, beta2) = match kind {
            OptimizerKind::Sgd => (0.9, 0.999),
            OptimizerKind::Adam | OptimizerKind::Adamw => (0.0, 0.999),
            OptimizerKind::Rmsprop => (0.0, 0.99),
        };
        OptimizerConfig { kind, learning_rate, momentum, beta1: 0.9, beta2, epsilon: 1e-8 }
    }
}
