//! The programs of a candidate with their work, counted: of one that runs, and of one that only might.

use crate::{
    data::DataSet,
    graph::{Exchange, Op, Program},
    models::{self, Size},
    record::{Candidate, Neighbour, OpProfile, RunRecord, Source, Status, TrainConfig},
    train::{Predictor, Team, TrainError, Trainer, initial_weights},
    units::{Bytes, Flops},
    vocab::{Compression, Layout, Phase, Pruning, Quantization},
};
use std::sync::Arc;

/// The ops of a program with their work.
pub(super) fn untimed(program: &Program) -> impl Iterator<Item = OpProfile> {
    program.steps.iter().map(|step| {
        let work = program.step_work(step);
        let neighbour = match &step.op {
            Op::Exchange(Exchange::Send { to_next: true } | Exchange::Receive { from_before: false, .. }) => {
                Some(Neighbour::Behind)
            }
            Op::Exchange(Exchange::Send { .. } | Exchange::Receive { .. }) => Some(Neighbour::Before),
            _ => None,
        };
        OpProfile {
            op: step.op.name().to_string(),
            shape: program.step_shape(step),
            dtype: Some(program.step_dtype(step)),
            neighbour,
            flops: work.flops,
            bytes: work.bytes,
            message_bytes: work.message_bytes,
            time: None,
            waited: None,
        }
    })
}

/// Bytes of the rows of a step over all ranks.
pub(super) fn input_bytes(team: &Team, layout: Layout) -> Bytes {
    Bytes((0..layout.ranks()).map(|rank| team.program(rank).input_bytes()).sum())
}

/// A row for a candidate that was not run: its programs with their work, its weights' size and its memory, from fresh weights. Marked
/// `modelled`, for nothing in it was timed.
///
/// # Errors
/// What keeps the candidate from being run keeps it from being counted.
pub fn counted(model: &str, set: &Arc<DataSet>, candidate: &Candidate, train: &TrainConfig) -> Result<RunRecord, TrainError> {
    let model = models::find(model).expect("the scenario names a model that there is");
    let of_team = |team: &mut Team, model_size: u64| {
        let mut stages = team.stages().map(|program| untimed(program).collect::<Vec<_>>());
        let profile = stages.next().unwrap_or_default();
        let further_stages = stages.collect();
        let (work, units) = (team.work(), candidate.batch_size as u64);
        RunRecord {
            source: Source::Modelled,
            reason: None,
            profile,
            further_stages,
            input_bytes: Some(input_bytes(team, candidate.layout)),
            peak_memory: Some(Bytes((0..candidate.layout.ranks()).map(|rank| team.program(rank).memory().0).sum())),
            model_size: Some(Bytes(model_size)),
            flops_per_unit: Some(Flops(work.flops.0 / units)),
            bytes_per_unit: Some(Bytes(work.bytes.0 / units)),
            ..RunRecord::without_result(candidate.clone(), Status::Ok, String::new())
        }
    };
    Ok(match candidate.phase {
        Phase::Train => {
            let mut trainer = Trainer::new(model, set.clone(), candidate, train, train.first_seed)?;
            let model_size = trainer.weight_bytes();
            of_team(trainer.team(), model_size)
        }
        Phase::Infer => {
            let forward = (model.build)(&Size { batch: 1, row: set.row, classes: set.classes.len() })?;
            let weights = initial_weights(&forward, train.init, train.first_seed);
            // Training after a pruning, or with simulated grids, changes weights, not programs.
            let Compression { pruning, quantization } = candidate.compression;
            let pruning = pruning.map(|pruning| Pruning::once(pruning.pattern));
            let quantization = quantization.map(|kind| match kind {
                Quantization::Int8Aware { .. } => Quantization::INT8,
                other => other,
            });
            let compression = Compression { pruning, quantization };
            let untuned = Candidate { compression, ..candidate.clone() };
            let mut predictor = Predictor::new(model, set, &weights, &untuned)?;
            let model_size = predictor.program().model_bytes;
            of_team(predictor.team(), model_size)
        }
    })
}
