//! Training that goes on with simulated int8 grids (quantisation-aware training: Jacob et al. 2018), of the whole model or of a pruned one,
//! whose missing weights stay missing: on a symmetric grid zero is zero, and masks keep their gradients out. Weights are on a grid per
//! output channel that every step makes anew; grids of activations are calibrated before each epoch, and those of the last epoch are kept
//! as what the weights were trained for. Gradients go straight through (Bengio et al. 2013).

use super::{
    Probe, TrainError, Trainer, load_weights, masked_training_program,
    trainer::Start,
    tuning::{masked_by, on_one_rank},
};
use crate::{
    comm::Place,
    data::DataSet,
    graph::{Graph, fuse},
    models::{Model, Size},
    record::{Epoch, SeedRun, TrainConfig},
    strategy::{
        Calibration, Shards, StrategyError, Tensor, Weights, masks, prune, quantizable_weights, simulate_int8, step_name,
    },
    units::Seconds,
    vocab::{Compression, Device, Layout, Precision, Quantization, Range, Schedule},
};
use std::{collections::HashSet, sync::Arc, time::Instant};

/// Of the learning rate of the training before: weights are near their place, and grids change under larger steps.
const RATE_SHARE: f64 = 0.1;

/// Rows a step when ranges, and not times, are wanted.
const CALIBRATION_BATCH: usize = 256;

/// Trains `weights` on as `compression`, an `int8-qat`, says, with a tenth of `config`'s learning rate that falls to zero in a line, on one
/// rank. Where it prunes as well, they are those of the whole model, pruned here, or what its own training has made of them; of the former
/// the rate is whole, for what is left of them has another place to find (Renda et al. 2020, as `tuning` has it). The answer has the weights, and for each product's weight the step of its input's grid (`step_name`).
///
/// # Errors
/// Where the loss is not finite, as of any training.
pub fn train_aware(
    model: &Model,
    set: Arc<DataSet>,
    compression: Compression,
    config: &TrainConfig,
    weights: &Weights,
    device: Device,
    threads: usize,
) -> Result<(Weights, SeedRun), TrainError> {
    let Some(Quantization::Int8Aware { epochs }) = compression.quantization else {
        return Err(StrategyError::NothingToCompress { compression: compression.to_string() }.into());
    };
    let (batch, seed) = (config.batch_size, config.first_seed);
    if batch > set.train.rows() {
        return Err(TrainError::TooFewRows { batch_size: batch, rows: set.train.rows() });
    }
    let size = Size { batch, row: set.row, classes: set.classes.len() };
    let mut forward = (model.build)(&size)?;
    let mut large = (model.build)(&Size { batch: CALIBRATION_BATCH.min(set.train.rows()), ..size })?;
    let (mut start, mut masked) = (weights.clone(), HashSet::new());
    if let Some(pruning) = compression.pruning {
        large = prune(&large, weights, pruning)?.0;
        (forward, start) = prune(&forward, weights, pruning)?;
        masked = masked_by(pruning, &forward);
    }
    let layers = quantizable_weights(&fuse(forward.clone(), false));
    // Orders and changes of rows go on where the training before has ended.
    let is_tuned = compression.pruning.map(|pruning| pruning.is_tuned());
    let first_epoch = config.epochs + if is_tuned == Some(true) { config.tune_epochs } else { 0 };
    let mut config = TrainConfig { epochs, schedule: Schedule::Linear, ..config.clone() };
    config.optimizer.learning_rate *= if is_tuned == Some(false) { 1.0 } else { RATE_SHARE };
    let simulated = simulate_int8(&forward, &layers)?;
    let program = masked_training_program(&simulated, Precision::Fp32, &config, Layout::SINGLE, &masked)?;
    start.tensors.extend(masks(&masked, &start));
    let parts = Start { forward, parts: vec![(program, Shards::default())], weights: start };
    let candidate = on_one_rank(device, threads, batch);
    let per_epoch = set.train.rows() / batch;
    let mut trainer = Trainer::assemble(&Place::Threads, set.clone(), &candidate, config, seed, parts)?;
    trainer.first_epoch = first_epoch;
    let probe = Probe { set: &set, device, threads };
    let (mut weights, mut steps) = (trainer.weights()?, Vec::new());
    let (mut run, clock) = (SeedRun::new(seed), Instant::now());
    for epoch in 0..epochs {
        let ranges = probe.calibrate(&large, &weights, Calibration::default())?;
        steps = grids(&layers, |weight| ranges.scale(weight, Range::Largest))?;
        load_weights(trainer.team().first(), &Weights { tensors: steps.clone() })?;
        trainer.steps(per_epoch)?;
        let losses = trainer.take_losses()?;
        if let Some(step) = losses.iter().position(|loss| !loss.is_finite()) {
            return Err(TrainError::NotFinite { step: epoch * per_epoch + step });
        }
        weights = trainer.weights()?;
        let train_loss = losses.iter().sum::<f64>() / losses.len().max(1) as f64;
        run.epochs.push(Epoch { elapsed: Seconds(clock.elapsed().as_secs_f64()), train_loss, metric: 0.0 });
    }
    weights.tensors.extend(steps);
    Ok((weights, run))
}

/// The steps of the grids of what enters each of `layers`, as states of the training.
fn grids(layers: &[String], scale: impl Fn(&str) -> Result<f64, StrategyError>) -> Result<Vec<Tensor>, StrategyError> {
    let of = |weight: &String| Ok(Tensor { name: step_name(weight), shape: Vec::new(), data: vec![scale(weight)? as f32] });
    layers.iter().map(of).collect()
}

/// What `train_aware` has left in `weights` of the grids of a model's activations.
pub(super) fn trained_grids(forward: &Graph, weights: &Weights) -> Result<Calibration, StrategyError> {
    let layers = quantizable_weights(&fuse(forward.clone(), false));
    let of = |weight: String| {
        let step = weights.get(&step_name(&weight))?.data[0];
        Ok((weight, f64::from(step)))
    };
    Ok(Calibration::trained(layers.into_iter().map(of).collect::<Result<_, StrategyError>>()?))
}
