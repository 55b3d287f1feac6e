//! The training loop: whole runs of a seed, or single steps for the clock.

use super::{
    ApartStep, Predictor, StepTimes, Team, TrainError, TrainingProgram,
    apart::take_apart,
    feed::{feed, feed_f32, take_labels},
    initial_weights, load_weights,
    team::{KEPT_STEPS, Rank},
    training_programs,
    tuning::Gradual,
};
use crate::{
    backend::Session,
    comm::Place,
    data::{Augmenter, Batches, DataSet},
    graph::{Graph, ValueId},
    metrics,
    models::{Model, Size},
    record::{Candidate, Epoch, Quality, SeedRun, TrainConfig},
    strategy::{MASK, Shards, Tensor, Weights, input_scale_names, masks, prune_magnitude, weight_scale_name},
    units::Seconds,
    vocab::{Compression, Metric, OptimizerKind},
};
use std::{sync::Arc, time::Instant};

/// Points of a stored loss curve.
const CURVE_POINTS: usize = 400;

/// The learning rate for batches of `batch_size` when `config` names one for its own batch size. Smaller batches with SGD: in proportion
/// (Goyal et al. 2017). Larger ones: by the square root (Krizhevsky 2014), because the proportional rule needs a slow start that short
/// runs do not have. Rules that divide by the gradient's size: by the square root (Malladi et al. 2022).
pub fn scaled_rate(config: &TrainConfig, batch_size: usize) -> f64 {
    let ratio = batch_size as f64 / config.batch_size as f64;
    let proportional = config.optimizer.kind == OptimizerKind::Sgd && ratio < 1.0;
    let factor = if proportional { ratio } else { ratio.sqrt() };
    config.optimizer.learning_rate * factor
}

/// What a rank keeps between steps.
struct RankState {
    batches: Batches,
    labels: Vec<i32>,
    /// Rank's part of the loss of each step since the last time they were taken.
    losses: Vec<f32>,
}

/// Trains one model with one candidate's precision, layout and batch.
pub struct Trainer {
    set: Arc<DataSet>,
    config: TrainConfig,
    candidate: Candidate,
    forward: Graph,
    /// Of each part of the model.
    training: Vec<TrainingProgram>,
    /// What of the weights each part has.
    shards: Vec<Shards>,
    team: Team,
    states: Vec<RankState>,
    augmenter: Augmenter,
    seed: u64,
    /// Steps taken.
    step: usize,
    /// Epochs before the first step, in another training: orders and changes of rows go on from there.
    pub(super) first_epoch: usize,
    /// Weights that go while training goes on.
    pub(super) gradual: Option<Gradual>,
}

/// What training begins from.
pub(super) struct Start {
    /// Of a whole share of the batch.
    pub forward: Graph,
    pub parts: Vec<(TrainingProgram, Shards)>,
    /// Of the whole model, and masks where the programs have them.
    pub weights: Weights,
}

impl Trainer {
    /// Prepares training from the initial weights of `seed`, with all ranks in this process. The learning rate is scaled from the
    /// configured batch size to the candidate's (`scaled_rate`).
    pub fn new(
        model: &Model,
        set: Arc<DataSet>,
        candidate: &Candidate,
        config: &TrainConfig,
        seed: u64,
    ) -> Result<Self, TrainError> {
        Trainer::at(&Place::Threads, model, set, candidate, config, seed)
    }

    /// The same with the ranks where `place` says.
    pub fn at(
        place: &Place,
        model: &Model,
        set: Arc<DataSet>,
        candidate: &Candidate,
        config: &TrainConfig,
        seed: u64,
    ) -> Result<Self, TrainError> {
        let (layout, batch_size) = (candidate.layout, candidate.batch_size);
        let ranks = layout.data_ranks();
        if batch_size % ranks != 0 {
            return Err(TrainError::Split { batch_size, ranks });
        }
        if batch_size > set.train.rows() {
            return Err(TrainError::TooFewRows { batch_size, rows: set.train.rows() });
        }
        let mut config = config.clone();
        config.optimizer.learning_rate = scaled_rate(&config, batch_size);
        let size = Size { batch: batch_size / ranks, row: set.row, classes: set.classes.len() };
        let forward = (model.build)(&size)?;
        let pieces = layout.micro_batches(size.batch);
        let of_piece = match pieces {
            1 => None,
            pieces => Some((model.build)(&Size { batch: size.batch / pieces, ..size })?),
        };
        let parts = training_programs(of_piece.as_ref().unwrap_or(&forward), pieces, candidate.precision, &config, layout)?;
        let weights = initial_weights(&forward, config.init, seed);
        Trainer::assemble(place, set, candidate, config, seed, Start { forward, parts, weights })
    }

    /// Loads what training begins from on all ranks. `config` has the learning rate of the candidate's batch.
    pub(super) fn assemble(
        place: &Place,
        set: Arc<DataSet>,
        candidate: &Candidate,
        config: TrainConfig,
        seed: u64,
        start: Start,
    ) -> Result<Self, TrainError> {
        let (layout, batch_size) = (candidate.layout, candidate.batch_size);
        let Start { forward, parts, weights } = start;
        let loaded: Vec<_> = parts.iter().map(|(part, shards)| (&part.program, shards.cut(&weights))).collect();
        let mut team = Team::new(place, candidate.device, &loaded, layout, candidate.threads)?;
        let (training, shards): (Vec<TrainingProgram>, Vec<Shards>) = parts.into_iter().unzip();
        for rank in team.ranks() {
            training[layout.place(rank.number()).1].scale.map_or(Ok(()), |scale| scale.start(&mut *rank.session))?;
        }
        let state = || RankState {
            batches: Batches::new(set.train.rows(), batch_size, seed),
            labels: vec![0; batch_size / layout.data_ranks()],
            losses: Vec::new(),
        };
        let states = (0..team.len()).map(|_| state()).collect();
        let augmenter = Augmenter::for_rows(&config.augment, set.row);
        let candidate = candidate.clone();
        Ok(Trainer {
            set,
            config,
            candidate,
            forward,
            training,
            shards,
            team,
            states,
            augmenter,
            seed,
            step: 0,
            first_epoch: 0,
            gradual: None,
        })
    }

    pub fn program(&self) -> &TrainingProgram {
        &self.training[0]
    }

    pub fn team(&mut self) -> &mut Team {
        &mut self.team
    }

    /// Bytes of the trained weights in the storage type of the forward pass.
    pub fn weight_bytes(&self) -> u64 {
        let size = self.candidate.precision.storage().size();
        let is_rounded = |name: &str| self.training.iter().any(|part| part.program.find(&weight_scale_name(name)).is_some());
        let stored = |v: &crate::graph::Value| match v.shape.len() {
            0 | 1 => 4 * v.elements(),
            _ if is_rounded(&v.name) => v.elements() + 4,
            _ => size * v.elements(),
        };
        self.forward.parameters().map(|id| stored(self.forward.value(id)) as u64).sum()
    }

    /// The master weights now.
    pub fn weights(&mut self) -> Result<Weights, TrainError> {
        let parameters: Vec<_> = self.forward.parameters().map(|id| self.forward.value(id)).collect();
        let holders = self.shards.len();
        // The ranks of the first share of the batch hold all parts; of what a rank does not hold it gives nothing.
        let held: Vec<Vec<Vec<f32>>> = self.team.each(&mut self.states, |number, rank, _| {
            let mut parts = Vec::with_capacity(parameters.len());
            for value in parameters.iter().filter(|_| number < holders) {
                let id = rank.session.program().find(&value.name);
                let mut part = vec![0.0; id.map_or(0, |id| rank.session.program().value(id).elements())];
                id.map_or(Ok(()), |id| rank.session.download_f32(id, &mut part))?;
                parts.push(part);
            }
            Ok(parts)
        })?;
        let mut tensors = Vec::new();
        for (place, value) in parameters.iter().enumerate() {
            let mut tensor = Tensor { name: value.name.clone(), shape: value.shape.clone(), data: vec![0.0; value.elements()] };
            let mut is_found = false;
            for (shards, parts) in self.shards.iter().zip(&held).filter(|(_, parts)| !parts[place].is_empty()) {
                is_found = true;
                shards.put(&parts[place], &mut tensor);
            }
            if !is_found {
                return Err(TrainError::NoOutput { name: "weights" });
            }
            tensors.push(tensor);
        }
        Ok(Weights { tensors })
    }

    /// The weights with what else of training an answering program of the same precision reads: scales of 8-bit activations.
    fn weights_and_scales(&mut self) -> Result<Weights, TrainError> {
        let mut weights = self.weights()?;
        let (holders, training, layout) = (self.shards.len(), &self.training, self.candidate.layout);
        let names = |number: usize| {
            let kept = training[layout.place(number).1].program.kept();
            input_scale_names(kept.map(|(_, value)| value.name.as_str()))
        };
        let held: Vec<Vec<f32>> = self.team.each(&mut self.states, |number, rank, _| {
            let mut scales = Vec::new();
            for name in names(number).iter().filter(|_| number < holders) {
                let mut data = vec![0.0];
                if let Some(id) = rank.session.program().find(name) {
                    rank.session.download_f32(id, &mut data)?;
                }
                scales.extend(data);
            }
            Ok(scales)
        })?;
        for (number, scales) in held.into_iter().enumerate().take(holders) {
            let named = names(number).into_iter().zip(scales);
            weights.tensors.extend(named.map(|(name, scale)| Tensor { name, shape: Vec::new(), data: vec![scale] }));
        }
        Ok(weights)
    }

    /// Trains `count` steps. The clock starts before the first row is touched and runs until the last step is done, on the device as
    /// well. Steps are only queued there: the host fetches rows ahead, and reads the losses behind the clock.
    pub fn steps(&mut self, count: usize) -> Result<StepTimes, TrainError> {
        let (first, per_epoch) = (self.step, self.states[0].batches.per_epoch());
        let (set, training, augmenter, seed) = (&*self.set, &self.training, &self.augmenter, self.seed);
        let (layout, schedule, epochs) = (self.candidate.layout, self.config.schedule, self.config.epochs);
        let first_epoch = self.first_epoch;
        let times = self.team.each(&mut self.states, |number, rank, state| {
            let start = Instant::now();
            // Times of one rank are enough.
            let kept = if number == 0 { count.min(KEPT_STEPS) } else { 0 };
            if kept > 0 {
                rank.session.note_time()?;
            }
            for step in first..first + count {
                let epoch = (first_epoch + step / per_epoch) as u64;
                if step % per_epoch == 0 {
                    state.batches.epoch(epoch);
                }
                let rows = state.batches.shard(step % per_epoch, layout.place(number).0, layout.data_ranks());
                let draw = |row| augmenter.map(seed, epoch, row);
                rank.session.set_rate_factor(schedule.factor(step, per_epoch * epochs));
                one_step(set, &training[layout.place(number).1], rank, &mut state.labels, rows, &draw)?;
                if step - first < kept {
                    rank.session.note_time()?;
                }
            }
            rank.session.synchronize()?;
            let total_s = start.elapsed().as_secs_f64();
            state.losses.extend(rank.session.take_noted()?);
            let step_s = rank.session.take_times()?.into_iter().map(|time| time.0).collect();
            Ok(StepTimes { step_s, steps: count as u64, total_s })
        })?;
        self.step += count;
        Ok(times.into_iter().next().unwrap_or_default())
    }

    /// Trains an epoch, weights going meanwhile where that is asked for; seconds.
    fn epoch(&mut self, per_epoch: usize) -> Result<f64, TrainError> {
        if self.gradual.is_none() {
            return Ok(self.steps(per_epoch)?.total_s);
        }
        let (start, end) = (Instant::now(), self.step + per_epoch);
        while self.step < end {
            let until = self.prune_further()?.map_or(end, |next| next.min(end));
            self.steps(until - self.step)?;
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// Where weights are due to go at this step, they do: to zero, with what the optimizer keeps of them. The step of the next time.
    fn prune_further(&mut self) -> Result<Option<usize>, TrainError> {
        let Some(gradual) = self.gradual.clone() else { return Ok(None) };
        if let Some(share) = gradual.due(self.step) {
            let mut weights = self.weights()?;
            prune_magnitude(&self.forward, &mut weights, share);
            let masks = masks(&gradual.masked, &weights);
            let session = self.team.first();
            for mask in &masks {
                let program = session.program();
                let parameter = mask.name.strip_suffix(MASK).unwrap_or(&mask.name);
                let states = (0..).map_while(|k| program.find(&format!("{parameter}.state{k}")));
                let kept: Vec<ValueId> = program.find(parameter).into_iter().chain(states).collect();
                for id in kept {
                    let mut values = vec![0.0; mask.data.len()];
                    session.download_f32(id, &mut values)?;
                    values.iter_mut().zip(&mask.data).for_each(|(value, mask)| *value *= mask);
                    session.upload_f32(id, &values)?;
                }
            }
            load_weights(session, &Weights { tensors: masks })?;
        }
        Ok(gradual.after(self.step))
    }

    /// Losses of the steps since the last call, whole batches, in order.
    pub fn take_losses(&mut self) -> Result<Vec<f64>, TrainError> {
        let parts = self.team.each(&mut self.states, |_, _, state| Ok(std::mem::take(&mut state.losses)))?;
        // Ranks with the same rows have the same loss, or the last of them has it.
        let of_parts = self.candidate.layout.parts();
        let parts: Vec<&Vec<f32>> = parts.iter().skip(of_parts - 1).step_by(of_parts).collect();
        Ok((0..parts[0].len()).map(|k| parts.iter().map(|part| f64::from(part[k])).sum()).collect())
    }

    /// Forgets the losses of the steps since the last call.
    pub fn drop_losses(&mut self) {
        self.states.iter_mut().for_each(|state| state.losses.clear());
    }

    /// Trains all epochs, judging the test rows after each; the judging is not part of the training time.
    pub fn run(&mut self, metric: Metric) -> Result<(SeedRun, Quality, Weights), TrainError> {
        let per_epoch = self.states[0].batches.per_epoch();
        let all_steps = per_epoch * self.config.epochs;
        let mut weights = self.weights()?;
        let mut judge = Predictor::for_weights(
            &self.set,
            &self.forward,
            &weights,
            &Candidate { compression: Compression::NONE, ..self.candidate.clone() },
        )?;
        let mut run = SeedRun::new(self.seed);
        let mut elapsed = 0.0;
        let mut curve: Vec<(u64, f64)> = Vec::new();
        let mut quality = None;
        for _ in 0..self.config.epochs {
            let first = self.step;
            elapsed += self.epoch(per_epoch)?;
            let losses = self.take_losses()?;
            if let Some(bad) = losses.iter().position(|loss| !loss.is_finite()) {
                let step = first + bad;
                if self.training[0].scale.is_none() || losses.last().is_some_and(|l| !l.is_finite()) {
                    run.failure = Some(format!("the loss is not finite at step {step}"));
                }
            }
            curve.extend(losses.iter().enumerate().map(|(k, loss)| ((first + k) as u64, *loss)));
            weights = self.weights()?;
            let judged_weights = self.weights_and_scales()?;
            let judged = self.team.lead(|| {
                judge.set_weights(&judged_weights)?;
                judge.judge(&self.set)
            })?;
            let value = judged.metrics.get(&metric).copied().unwrap_or(0.0);
            let finite: Vec<f64> = losses.iter().copied().filter(|l| l.is_finite()).collect();
            let train_loss = finite.iter().sum::<f64>() / finite.len().max(1) as f64;
            run.epochs.push(Epoch { elapsed: Seconds(elapsed), train_loss, metric: value });
            run.metric = value;
            if let Some(target) = self.config.target
                && run.time_to_target.is_none()
                && judged.metrics.get(&target.metric).is_some_and(|v| *v >= target.at_least)
            {
                run.time_to_target = Some(Seconds(elapsed));
            }
            quality = Some(judged);
            if run.failure.is_some() {
                break;
            }
        }
        let every = all_steps.div_ceil(CURVE_POINTS).max(1);
        run.loss_curve =
            curve.into_iter().filter(|(step, loss)| (*step as usize).is_multiple_of(every) && loss.is_finite()).collect();
        run.skipped_steps = match self.training[0].scale {
            Some(scale) => scale.skipped(self.team.first())?,
            None => 0,
        };
        let quality = match quality {
            Some(quality) => quality,
            None => self.team.lead(|| judge.judge(&self.set))?,
        };
        Ok((run, quality, weights))
    }

    /// Steps taken apart on every rank, of the epoch under way.
    pub fn take_apart(&mut self, count: usize) -> Result<Vec<Vec<ApartStep>>, TrainError> {
        let (set, training, augmenter, seed) = (&*self.set, &self.training, &self.augmenter, self.seed);
        let (layout, first) = (self.candidate.layout, self.step);
        let steps = self.team.each(&mut self.states, |number, rank, state| {
            let RankState { batches, labels, .. } = state;
            let (per_epoch, training) = (batches.per_epoch(), &training[layout.place(number).1]);
            let mut step = first;
            let fetch = |session: &mut dyn Session| {
                let rows = batches.shard(step % per_epoch, layout.place(number).0, layout.data_ranks());
                let epoch = (step / per_epoch) as u64;
                step += 1;
                fetch(session, training, set, rows, &|row| augmenter.map(seed, epoch, row), labels)
            };
            let end = |rank: &mut Rank| {
                training.loss.map_or(Ok(()), |loss| rank.session.note_f32(loss))?;
                Ok(0.0)
            };
            let steps = take_apart(rank, count, fetch, end)?;
            rank.session.take_noted()?;
            Ok(steps)
        })?;
        Ok(steps)
    }
}

/// Queues a step and a note of its loss.
fn one_step(
    set: &DataSet,
    training: &TrainingProgram,
    rank: &mut Rank,
    labels: &mut [i32],
    rows: &[u32],
    draw: &dyn Fn(u32) -> [f32; 6],
) -> Result<(), TrainError> {
    let session = &mut *rank.session;
    fetch(session, training, set, rows, draw, labels)?;
    session.execute()?;
    training.loss.map_or(Ok(()), |loss| Ok(session.note_f32(loss)?))
}

/// Puts rows and their classes where a step reads them, micro-batch by micro-batch, and what `draw` says of the changes of each row.
/// `labels` has room for all.
pub(super) fn fetch(
    session: &mut dyn Session,
    training: &TrainingProgram,
    set: &DataSet,
    rows: &[u32],
    draw: &dyn Fn(u32) -> [f32; 6],
    labels: &mut [i32],
) -> Result<(), TrainError> {
    for (x, rows) in training.x.iter().zip(rows.chunks(rows.len() / training.x.len().max(1))) {
        feed(session, *x, &set.train, rows)?;
    }
    for (maps, rows) in training.maps.iter().zip(rows.chunks(rows.len() / training.maps.len().max(1))) {
        feed_f32(session, *maps, |places| {
            places.chunks_exact_mut(6).zip(rows).for_each(|(map, row)| map.copy_from_slice(&draw(*row)));
        })?;
    }
    for (id, rows) in training.labels.iter().zip(rows.chunks(rows.len() / training.labels.len().max(1))) {
        match session.host_i32(*id) {
            Some(places) => take_labels(&set.train, rows, places),
            None => {
                take_labels(&set.train, rows, labels);
                session.upload_i32(*id, &labels[..rows.len()])?;
            }
        }
    }
    Ok(())
}

/// Figures of a whole part from its scores.
pub(super) fn quality(labels: &[u32], scores: &[f32], classes: usize) -> Result<Quality, TrainError> {
    let predictions = metrics::argmax_rows(scores, classes);
    Ok(metrics::classification(labels, &predictions, Some(scores), classes)?)
}
