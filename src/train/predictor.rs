//! Answers: scores for rows, steps for the clock.

use super::{
    ApartStep, InferenceProgram, Probe, StepTimes, Team, TrainError,
    apart::take_apart,
    aware::trained_grids,
    feed::feed,
    inference_programs, load_weights,
    sparsity::{ZeroSkipping, input_zeros},
    team::{Rank, StepClock},
    trainer,
};
use crate::{
    backend::Session,
    comm::Place,
    data::{DataSet, Part},
    graph::Graph,
    models::{Model, Size},
    record::{Candidate, Quality},
    strategy::{Shards, Weights, prune, round_weights},
    vocab::{Layout, Quantization},
};
use std::time::Instant;

/// Rows a step when answers, and not times, are wanted.
const JUDGING_BATCH: usize = 256;

/// What a rank keeps between steps.
struct RankState {
    rows: Vec<u32>,
    scores: Vec<f32>,
}

/// One model with trained weights, ready to answer.
pub struct Predictor {
    inference: InferenceProgram,
    layout: Layout,
    /// What each part of the weights is.
    shards: Vec<Shards>,
    team: Team,
    states: Vec<RankState>,
    classes: usize,
    /// Rows answered so far: the next step goes on behind them.
    answered: usize,
}

impl Predictor {
    /// Prepares `candidate` with the weights of a checkpoint, with all ranks in this process.
    pub fn new(model: &Model, set: &DataSet, weights: &Weights, candidate: &Candidate) -> Result<Self, TrainError> {
        Predictor::at(&Place::Threads, model, set, weights, candidate)
    }

    /// The same with the ranks where `place` says.
    pub fn at(place: &Place, model: &Model, set: &DataSet, weights: &Weights, candidate: &Candidate) -> Result<Self, TrainError> {
        let (ranks, batch_size) = (candidate.layout.data_ranks(), candidate.batch_size);
        if batch_size % ranks != 0 {
            return Err(TrainError::Split { batch_size, ranks });
        }
        let size = Size { batch: batch_size / ranks, row: set.row, classes: set.classes.len() };
        let forward = (model.build)(&size)?;
        let calibrated = (model.build)(&Size { batch: JUDGING_BATCH.min(set.train.rows()), ..size })?;
        Predictor::load(place, set, &forward, &calibrated, weights, candidate)
    }

    /// The same for judging weights during training: all rows in large batches on one rank.
    pub(super) fn for_weights(
        set: &DataSet,
        forward: &Graph,
        weights: &Weights,
        candidate: &Candidate,
    ) -> Result<Self, TrainError> {
        let candidate = Candidate { layout: Layout::SINGLE, ..candidate.clone() };
        Predictor::load(&Place::Threads, set, forward, forward, weights, &candidate)
    }

    fn load(
        place: &Place,
        set: &DataSet,
        forward: &Graph,
        calibrated: &Graph,
        weights: &Weights,
        candidate: &Candidate,
    ) -> Result<Self, TrainError> {
        let layout = candidate.layout;
        let (unpruned, pruning) = (weights, candidate.compression.trained_pruning());
        let ranges = || {
            let (graph, weights) = match pruning {
                Some(pruning) => prune(calibrated, weights, pruning)?,
                None => (calibrated.clone(), weights.clone()),
            };
            let quantization = candidate.compression.quantization.unwrap_or(Quantization::INT8);
            if matches!(quantization, Quantization::Int8Aware { .. }) {
                return Ok(trained_grids(&graph, &weights)?);
            }
            let at_batch = match pruning {
                Some(pruning) => prune(forward, unpruned, pruning)?.0,
                None => forward.clone(),
            };
            let probe = Probe { set, device: candidate.device, threads: candidate.threads.div_ceil(layout.ranks()) };
            probe.observe(&at_batch, &graph, &weights, quantization)
        };
        let mut parts = inference_programs(forward, weights, candidate.precision, candidate.compression, layout, ranges)?;
        if let Some(pruning) = pruning {
            let threads = (candidate.threads / layout.ranks()).max(1);
            let zeros = || {
                let (graph, weights) = prune(calibrated, weights, pruning)?;
                input_zeros(set, &graph, &weights, threads)
            };
            let mut choice = ZeroSkipping::new(pruning.pattern, candidate.device, threads, &zeros);
            for (part, _) in &mut parts {
                choice.rewrite(part)?;
            }
        }
        let loaded: Vec<_> = parts.iter().map(|(part, _)| (&part.program, part.weights.clone())).collect();
        let team = Team::new(place, candidate.device, &loaded, layout, candidate.threads)?;
        let shards = parts.iter().map(|(_, shards)| shards.clone()).collect();
        let inference = parts.remove(0).0;
        let shape = inference.program.value(inference.logits).shape.clone();
        let state = || RankState { rows: vec![0; shape[0]], scores: vec![0.0; shape[0] * shape[1]] };
        let states = (0..team.len()).map(|_| state()).collect();
        Ok(Predictor { layout, shards, team, states, classes: shape[1], answered: 0, inference })
    }

    pub fn program(&self) -> &InferenceProgram {
        &self.inference
    }

    pub fn team(&mut self) -> &mut Team {
        &mut self.team
    }

    /// Puts other weights of the same shapes in; not for compressed programs, whose weights were made from the first ones.
    pub fn set_weights(&mut self, weights: &Weights) -> Result<(), TrainError> {
        let (layout, shards) = (self.layout, &self.shards);
        let mut weights = weights.clone();
        round_weights(&mut weights, &self.inference.rounded);
        self.team.each(&mut self.states, |number, rank, _| {
            load_weights(&mut *rank.session, &shards[layout.place(number).1].cut(&weights))
        })?;
        Ok(())
    }

    /// Answers `count` batches of `part`, going round; the clock includes fetching the rows and reading the scores.
    pub fn steps(&mut self, part: &Part, count: usize) -> Result<StepTimes, TrainError> {
        let (first, rows) = (self.answered, part.rows());
        let batch = self.states[0].rows.len();
        let (layout, inference) = (self.layout, &self.inference);
        let ranks = layout.data_ranks();
        let times = self.team.each(&mut self.states, |number, rank, state| {
            let mut clock = StepClock::start(count, number == 0);
            for step in 0..count {
                let from = first + step * batch * ranks + layout.place(number).0 * batch;
                state.rows.iter_mut().enumerate().for_each(|(k, row)| *row = ((from + k) % rows) as u32);
                answer(inference, &mut *rank.session, part, state)?;
                // A batch is answered when its slowest rank is done.
                if layout.ranks() > 1 {
                    rank.barrier()?;
                }
                clock.step();
            }
            Ok(clock.end())
        })?;
        self.answered = (first + count * batch * ranks) % rows;
        Ok(times.into_iter().next().unwrap_or_default())
    }

    /// Scores `[rows, classes]` of every row of `part`, answered in this candidate's own batches.
    pub fn scores(&mut self, part: &Part) -> Result<Vec<f32>, TrainError> {
        let (rows, classes) = (part.rows(), self.classes);
        let batch = self.states[0].rows.len();
        let (layout, inference) = (self.layout, &self.inference);
        let ranks = layout.data_ranks();
        let steps = rows.div_ceil(batch * ranks);
        let parts = self.team.each(&mut self.states, |number, rank, state| {
            let mut out = Vec::new();
            for step in 0..steps {
                let from = (step * ranks + layout.place(number).0) * batch;
                // Places behind the last row repeat it; their answers are dropped.
                state.rows.iter_mut().enumerate().for_each(|(k, row)| *row = (from + k).min(rows - 1) as u32);
                answer(inference, &mut *rank.session, part, state)?;
                out.push(state.scores.clone());
            }
            Ok(out)
        })?;
        let mut all = Vec::with_capacity(steps * batch * ranks * classes);
        for step in 0..steps {
            // Ranks with the same rows have the same scores.
            parts.iter().step_by(layout.tensor_ranks()).for_each(|rank| all.extend_from_slice(&rank[step]));
        }
        all.truncate(rows * classes);
        Ok(all)
    }

    /// Figures on the test rows.
    pub fn judge(&mut self, set: &DataSet) -> Result<Quality, TrainError> {
        let scores = self.scores(&set.test)?;
        trainer::quality(&set.test.labels, &scores, self.classes)
    }

    /// Steps taken apart on every rank.
    pub fn take_apart(&mut self, part: &Part, count: usize) -> Result<Vec<Vec<ApartStep>>, TrainError> {
        let (layout, inference) = (self.layout, &self.inference);
        self.team.each(&mut self.states, |number, rank, state| {
            let RankState { rows, scores } = state;
            let mut step = 0;
            let fetch = |session: &mut dyn Session| {
                let from = (step * layout.data_ranks() + layout.place(number).0) * rows.len();
                step += 1;
                rows.iter_mut().enumerate().for_each(|(k, row)| *row = ((from + k) % part.rows()) as u32);
                feed(session, inference.x, part, rows)
            };
            let end = |rank: &mut Rank| {
                rank.session.download_f32(inference.logits, scores)?;
                let start = Instant::now();
                if layout.ranks() > 1 {
                    rank.barrier()?;
                }
                Ok(start.elapsed().as_secs_f64())
            };
            take_apart(rank, count, fetch, end)
        })
    }
}

fn answer(inference: &InferenceProgram, session: &mut dyn Session, part: &Part, state: &mut RankState) -> Result<(), TrainError> {
    feed(session, inference.x, part, &state.rows)?;
    session.execute()?;
    session.download_f32(inference.logits, &mut state.scores)?;
    Ok(())
}
