//! Training that goes on after a pruning, or while weights go little by little.
//!
//! It is the scenario's training once more, for `tune_epochs` epochs, from the trained weights: the learning rate and its schedule begin
//! again (Renda et al. 2020; on `simple-cnn` half the rate and less regained less in as many epochs), the orders of rows go on.

use super::{TrainError, Trainer, masked_training_program, trainer::Start};
use crate::{
    comm::Place,
    data::DataSet,
    graph::Graph,
    models::{Model, Size},
    record::{Candidate, TrainConfig},
    strategy::{Shards, Weights, cubic_share, masked_weights, masks, prune_once},
    vocab::{Compression, Device, Layout, Pattern, Phase, Precision, Pruning, Tuning},
};
use std::{collections::HashSet, sync::Arc};

/// Part of the steps in which weights go little by little; in the others what is left of them settles.
const PRUNED_WITHIN: f64 = 0.75;

/// How often weights go meanwhile: as often as the share at the end of it moves by a hundredth of itself, and rarely enough to cost little.
const PRUNINGS: usize = 24;

/// Weights that go while training goes on (Zhu & Gupta 2017).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Gradual {
    share: f64,
    /// Weights that have masks.
    pub masked: HashSet<String>,
    /// Steps from one time to the next.
    every: usize,
    /// The step at which the last of them go.
    last: usize,
}

impl Gradual {
    fn new(share: f64, masked: HashSet<String>, steps: usize) -> Gradual {
        let every = ((steps as f64 * PRUNED_WITHIN / PRUNINGS as f64) as usize).max(1);
        // A training of few steps has as many times as fit.
        let times = ((steps as f64 * PRUNED_WITHIN / every as f64) as usize).clamp(1, PRUNINGS);
        Gradual { share, masked, every, last: every * times }
    }

    /// The share that is zero from `step` on, if it changes there.
    pub fn due(&self, step: usize) -> Option<f64> {
        let is_due = step > 0 && step <= self.last && step.is_multiple_of(self.every);
        is_due.then(|| cubic_share(self.share, step as f64 / self.last as f64))
    }

    /// The next step behind `step` at which it changes.
    pub fn after(&self, step: usize) -> Option<usize> {
        let next = (step / self.every + 1) * self.every;
        (next <= self.last).then_some(next)
    }
}

/// Prepares to train the trained `weights` of the whole model on, pruned as `pruning` says: in fp32, on one rank, in the batches of the
/// training that made them. `run` leaves the weights that `prune` takes.
pub fn tuner(
    model: &Model,
    set: Arc<DataSet>,
    pruning: Pruning,
    config: &TrainConfig,
    weights: &Weights,
    device: Device,
    threads: usize,
) -> Result<Trainer, TrainError> {
    let batch_size = config.batch_size;
    if batch_size > set.train.rows() {
        return Err(TrainError::TooFewRows { batch_size, rows: set.train.rows() });
    }
    let first_epoch = config.epochs;
    let config = TrainConfig { epochs: config.tune_epochs, ..config.clone() };
    let forward = (model.build)(&Size { batch: batch_size, row: set.row, classes: set.classes.len() })?;
    let (forward, mut weights) = match pruning.tuning {
        Tuning::Gradual => (forward, weights.clone()),
        Tuning::Tuned | Tuning::None => prune_once(&forward, weights, pruning.pattern)?,
    };
    let masked = masked_by(pruning, &forward);
    weights.tensors.extend(masks(&masked, &weights));
    let program = masked_training_program(&forward, Precision::Fp32, &config, Layout::SINGLE, &masked)?;
    let steps = set.train.rows() / batch_size * config.epochs;
    let gradual = match pruning {
        Pruning { pattern: Pattern::Magnitude(share), tuning: Tuning::Gradual } => Some(Gradual::new(share, masked, steps)),
        _ => None,
    };
    let candidate = on_one_rank(device, threads, batch_size);
    let seed = config.first_seed;
    let start = Start { forward, parts: vec![(program, Shards::default())], weights };
    let mut trainer = Trainer::assemble(&Place::Threads, set, &candidate, config, seed, start)?;
    (trainer.first_epoch, trainer.gradual) = (first_epoch, gradual);
    Ok(trainer)
}

/// Weights of a pruned forward graph that have masks. What is gone needs none.
pub(super) fn masked_by(pruning: Pruning, forward: &Graph) -> HashSet<String> {
    match pruning.pattern {
        Pattern::Channel(_) => HashSet::new(),
        Pattern::Magnitude(_) | Pattern::TwoFour => masked_weights(forward),
    }
}

/// What training goes on as: in fp32, on one rank.
pub(super) fn on_one_rank(device: Device, threads: usize, batch_size: usize) -> Candidate {
    Candidate {
        phase: Phase::Train,
        device,
        precision: Precision::Fp32,
        compression: Compression::NONE,
        layout: Layout::SINGLE,
        batch_size,
        threads,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_go_in_even_steps_and_all_of_them_before_the_end() {
        for steps in [1, 2, 5, 31, 32, 100, 750, 5000] {
            let gradual = Gradual::new(0.8, HashSet::new(), steps);
            let mut step = 0;
            let mut shares = Vec::new();
            while let Some(next) = gradual.after(step) {
                step = next;
                shares.push(gradual.due(step).unwrap());
            }
            assert!(shares.len() <= PRUNINGS && shares.windows(2).all(|pair| pair[1] > pair[0]), "{steps}: {shares:?}");
            assert_eq!(shares.last(), Some(&0.8), "{steps}");
            assert!(steps < 4 || step < steps, "{steps}: {step}");
        }
    }
}
