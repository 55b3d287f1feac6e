//! Answers: scores for rows, steps for the clock, activation ranges for int8.

use super::{InferenceProgram, StepTimes, Team, TrainError, inference_program, load_weights, team::StepClock, trainer};
use crate::{
    backend::open,
    data::{DataSet, Part, calibration_rows, gather},
    graph::{Graph, lower},
    models::{Model, Size},
    record::{Candidate, Quality},
    strategy::{Calibration, Weights},
    vocab::{Device, Layout},
};
use std::time::Instant;

/// Rows on which activation ranges are measured.
pub const CALIBRATION_ROWS: usize = 512;

/// Rows a step when answers, and not times, are wanted.
const JUDGING_BATCH: usize = 256;

/// What a rank keeps between steps.
struct RankState {
    rows: Vec<u32>,
    labels: Vec<i32>,
    scores: Vec<f32>,
}

/// One model with trained weights, ready to answer.
pub struct Predictor {
    inference: InferenceProgram,
    team: Team,
    states: Vec<RankState>,
    row_elements: usize,
    classes: usize,
    /// Rows answered so far: the next step goes on behind them.
    answered: usize,
}

impl Predictor {
    /// Prepares `candidate` with the weights of a checkpoint.
    pub fn new(model: &Model, set: &DataSet, weights: &Weights, candidate: &Candidate) -> Result<Self, TrainError> {
        let (ranks, batch_size) = (candidate.layout.ranks(), candidate.batch_size);
        if batch_size % ranks != 0 {
            return Err(TrainError::Split { batch_size, ranks });
        }
        let size = Size { batch: batch_size / ranks, image: set.shape, classes: set.classes.len() };
        let forward = (model.build)(&size)?;
        let calibrated = (model.build)(&Size { batch: JUDGING_BATCH.min(set.train.rows()), ..size })?;
        Predictor::load(set, &forward, &calibrated, weights, candidate)
    }

    /// The same for judging weights during training: all rows in large batches on one rank.
    pub(super) fn for_weights(
        set: &DataSet,
        forward: &Graph,
        weights: &Weights,
        candidate: &Candidate,
    ) -> Result<Self, TrainError> {
        let candidate = Candidate { layout: Layout::Single, ..candidate.clone() };
        Predictor::load(set, forward, forward, weights, &candidate)
    }

    fn load(
        set: &DataSet,
        forward: &Graph,
        calibrated: &Graph,
        weights: &Weights,
        candidate: &Candidate,
    ) -> Result<Self, TrainError> {
        let inference = inference_program(forward, weights, candidate.precision, candidate.compression, |_| {
            calibrate(set, calibrated, weights, candidate.device, candidate.threads)
        })?;
        let ranks = candidate.layout.ranks();
        let team = Team::new(candidate.device, &inference.program, ranks, candidate.threads, &inference.weights)?;
        let shape = inference.program.value(inference.logits).shape.clone();
        let state = || RankState { rows: vec![0; shape[0]], labels: vec![0; shape[0]], scores: vec![0.0; shape[0] * shape[1]] };
        let states = (0..ranks).map(|_| state()).collect();
        Ok(Predictor { team, states, row_elements: set.row_elements(), classes: shape[1], answered: 0, inference })
    }

    pub fn program(&self) -> &InferenceProgram {
        &self.inference
    }

    pub fn team(&mut self) -> &mut Team {
        &mut self.team
    }

    /// Puts other weights of the same shapes in; not for compressed programs, whose weights were made from the first ones.
    pub fn set_weights(&mut self, weights: &Weights) -> Result<(), TrainError> {
        self.team.each(&mut self.states, |_, rank, _| load_weights(&mut *rank.session, weights))?;
        Ok(())
    }

    /// Answers `count` batches of `part`, going round; the clock includes fetching the rows and reading the scores.
    pub fn steps(&mut self, part: &Part, count: usize) -> Result<StepTimes, TrainError> {
        let (first, elements, rows) = (self.answered, self.row_elements, part.rows());
        let batch = self.states[0].rows.len();
        let ranks = self.team.len();
        let inference = &self.inference;
        let times = self.team.each(&mut self.states, |number, rank, state| {
            let mut clock = StepClock::start(count, number == 0);
            for step in 0..count {
                let from = first + step * batch * ranks + number * batch;
                state.rows.iter_mut().enumerate().for_each(|(k, row)| *row = ((from + k) % rows) as u32);
                answer(inference, &mut *rank.session, part, elements, state)?;
                // A batch is answered when its slowest rank is done.
                if ranks > 1 {
                    rank.member.barrier()?;
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
        let (elements, rows, classes) = (self.row_elements, part.rows(), self.classes);
        let batch = self.states[0].rows.len();
        let ranks = self.team.len();
        let inference = &self.inference;
        let steps = rows.div_ceil(batch * ranks);
        let parts = self.team.each(&mut self.states, |number, rank, state| {
            let mut out = Vec::new();
            for step in 0..steps {
                let from = (step * ranks + number) * batch;
                // Places behind the last row repeat it; their answers are dropped.
                state.rows.iter_mut().enumerate().for_each(|(k, row)| *row = (from + k).min(rows - 1) as u32);
                answer(inference, &mut *rank.session, part, elements, state)?;
                out.push(state.scores.clone());
            }
            Ok(out)
        })?;
        let mut all = Vec::with_capacity(steps * batch * ranks * classes);
        for step in 0..steps {
            parts.iter().for_each(|rank| all.extend_from_slice(&rank[step]));
        }
        all.truncate(rows * classes);
        Ok(all)
    }

    /// Figures on the test rows.
    pub fn judge(&mut self, set: &DataSet) -> Result<Quality, TrainError> {
        let scores = self.scores(&set.test)?;
        trainer::quality(&set.test.labels, &scores, self.classes)
    }

    /// Seconds that one rank needs to fetch the rows of a step, the median of `repeats`.
    pub fn data_seconds(&mut self, part: &Part, repeats: usize) -> f64 {
        let state = &mut self.states[0];
        let mut images = vec![0.0; state.rows.len() * self.row_elements];
        let mut times: Vec<f64> = (0..repeats)
            .map(|_| {
                let start = Instant::now();
                gather(part, self.row_elements, &state.rows, None, &mut images, &mut state.labels);
                start.elapsed().as_secs_f64()
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }
}

fn answer(
    inference: &InferenceProgram,
    session: &mut dyn crate::backend::Session,
    part: &Part,
    elements: usize,
    state: &mut RankState,
) -> Result<(), TrainError> {
    match session.host_f32(inference.x) {
        Some(images) => gather(part, elements, &state.rows, None, images, &mut state.labels),
        None => {
            let mut images = vec![0.0; state.rows.len() * elements];
            gather(part, elements, &state.rows, None, &mut images, &mut state.labels);
            session.upload_f32(inference.x, &images)?;
        }
    }
    session.execute()?;
    session.download_f32(inference.logits, &mut state.scores)?;
    Ok(())
}

/// Runs the fp32 graph over calibration rows and notes the largest activation into each product. `forward` is the model at any batch.
pub fn calibrate(
    set: &DataSet,
    forward: &Graph,
    weights: &Weights,
    device: Device,
    threads: usize,
) -> Result<Calibration, TrainError> {
    let watched = crate::strategy::watch_inputs(&crate::graph::fuse(forward.clone(), false));
    let program = lower(&watched);
    let x = program.find("x").ok_or(TrainError::NoOutput { name: "x" })?;
    let batch = program.value(x).shape[0];
    let mut session = open(device, threads)?.load(program, None)?;
    load_weights(&mut *session, weights)?;
    let rows = calibration_rows(set.train.rows(), CALIBRATION_ROWS, 0);
    let elements = set.row_elements();
    let (mut images, mut labels) = (vec![0.0; batch * elements], vec![0; batch]);
    let mut calibration = Calibration::default();
    for chunk in rows.chunks(batch) {
        // The last batch is filled up with its first rows again: a maximum does not mind.
        let filled: Vec<u32> = chunk.iter().copied().cycle().take(batch).collect();
        gather(&set.train, elements, &filled, None, &mut images, &mut labels);
        session.upload_f32(x, &images)?;
        session.execute()?;
        let watched: Vec<_> = session.program().outputs.clone();
        for (name, id) in watched {
            if let Some(weight) = name.strip_prefix("into ") {
                let mut activations = vec![0.0; session.program().value(id).elements()];
                session.download_f32(id, &mut activations)?;
                calibration.observe(weight, &activations);
            }
        }
    }
    Ok(calibration)
}
