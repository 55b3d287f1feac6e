//! Training that goes on with simulated int8 grids (quantisation-aware training: Jacob et al. 2018). Weights are on a grid per output
//! channel that every step makes anew; grids of activations are calibrated before each epoch, and those of the last epoch are kept as what
//! the weights were trained for. Gradients go straight through (Bengio et al. 2013).

use super::{Probe, TrainError, load_weights, trainer::fetch, training_program};
use crate::{
    backend::open,
    data::{Augmenter, Batches, DataSet},
    graph::{Graph, fuse},
    models::{Model, Size},
    record::{Epoch, SeedRun, TrainConfig},
    strategy::{Calibration, StrategyError, Tensor, Weights, quantizable_weights, simulate_int8, step_name},
    units::Seconds,
    vocab::{Device, Layout, Precision, Range},
};
use std::time::Instant;

/// Of the learning rate of the training before: weights are near their place, and grids change under larger steps.
const RATE_SHARE: f64 = 0.1;

/// Rows a step when ranges, and not times, are wanted.
const CALIBRATION_BATCH: usize = 256;

/// Trains `weights` on for `epochs`, with a tenth of `config`'s learning rate that falls to zero in a line, on one rank. The answer has the
/// weights, and for each product's weight the step of its input's grid (`step_name`).
///
/// # Errors
/// Where the loss is not finite, as of any training.
pub fn train_aware(
    model: &Model,
    set: &DataSet,
    weights: &Weights,
    config: &TrainConfig,
    epochs: usize,
    device: Device,
    threads: usize,
) -> Result<(Weights, SeedRun), TrainError> {
    let (batch, seed) = (config.batch_size, config.first_seed);
    let size = Size { batch, row: set.row, classes: set.classes.len() };
    let forward = (model.build)(&size)?;
    let large = (model.build)(&Size { batch: CALIBRATION_BATCH.min(set.train.rows()), ..size })?;
    let layers = quantizable_weights(&fuse(forward.clone(), false));
    let mut config = config.clone();
    config.optimizer.learning_rate *= RATE_SHARE;
    let training = training_program(&simulate_int8(&forward, &layers)?, Precision::Fp32, &config, Layout::SINGLE)?;
    let loss = training.loss.ok_or(TrainError::NoOutput { name: "loss" })?;
    let mut session = open(device, threads)?.load(training.program.clone(), None)?;
    load_weights(&mut *session, weights)?;
    let probe = Probe { set, device, threads };
    let mut batches = Batches::new(set.train.rows(), batch, seed);
    let augmenter = Augmenter::for_rows(&config.augment, set.row);
    let (per_epoch, start) = (batches.per_epoch(), Instant::now());
    let mut labels = vec![0; batch];
    let (mut weights, mut steps) = (weights.clone(), Vec::new());
    let mut run = SeedRun::new(seed);
    for epoch in 0..epochs {
        let ranges = probe.calibrate(&large, &weights, Calibration::default())?;
        steps = grids(&layers, |weight| ranges.scale(weight, Range::Largest))?;
        load_weights(&mut *session, &Weights { tensors: steps.clone() })?;
        // Orders and changes of rows go on where the training before has ended.
        let number = (config.epochs + epoch) as u64;
        batches.epoch(number);
        for step in 0..per_epoch {
            let rows = batches.rows(step);
            fetch(&mut *session, &training, set, rows, &|row| augmenter.map(seed, number, row), &mut labels)?;
            session.set_rate_factor(1.0 - (epoch * per_epoch + step) as f64 / (epochs * per_epoch) as f64);
            session.execute()?;
            session.note_f32(loss)?;
        }
        let losses = session.take_noted()?;
        if let Some(step) = losses.iter().position(|loss| !loss.is_finite()) {
            return Err(TrainError::NotFinite { step: epoch * per_epoch + step });
        }
        for tensor in &mut weights.tensors {
            let id = session.program().find(&tensor.name).ok_or(TrainError::NoOutput { name: "weights" })?;
            session.download_f32(id, &mut tensor.data)?;
        }
        let train_loss = losses.iter().map(|loss| f64::from(*loss)).sum::<f64>() / losses.len().max(1) as f64;
        run.epochs.push(Epoch { elapsed: Seconds(start.elapsed().as_secs_f64()), train_loss, metric: 0.0 });
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
