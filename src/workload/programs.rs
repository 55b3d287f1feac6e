//! The programs of a candidate with their work, counted: of one that runs, of one that only might, and of one for GPUs that are not here.

use crate::{
    backend::cuda::{self, Facts},
    data::DataSet,
    graph::{Exchange, Op, Program, Role},
    measure::RateCase,
    models::{self, Model, Size},
    record::{Candidate, CountedGraph, CountedOp, GraphMemory, Neighbour, OpProfile, RunRecord, Source, Status, TrainConfig},
    strategy::Calibration,
    train::{Predictor, Team, TrainError, Trainer, inference_programs, initial_weights, training_programs},
    units::{Bytes, Flops},
    vocab::{Compression, Layout, Phase, Pruning, Quantization, RowShape},
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
            variant: step.op.variant().to_string(),
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

/// A candidate that was not run.
pub struct Counted {
    /// Its programs with their work, its weights' size and its memory, from fresh weights. Marked `modelled`, for nothing in it was timed.
    pub record: RunRecord,
    /// The ops of its programs, to be timed one by one.
    pub ops: Vec<RateCase>,
}

/// Counts a candidate.
///
/// # Errors
/// What keeps the candidate from being run keeps it from being counted.
pub fn counted(model: &str, set: &Arc<DataSet>, candidate: &Candidate, train: &TrainConfig) -> Result<Counted, TrainError> {
    let model = models::find(model).expect("the scenario names a model that there is");
    let of_team = |team: &mut Team, model_size: u64| {
        let ops = team.stages().flat_map(|program| program.steps.iter().filter_map(|step| RateCase::of(program, step))).collect();
        let mut stages = team.stages().map(|program| untimed(program).collect::<Vec<_>>());
        let profile = stages.next().unwrap_or_default();
        let further_stages = stages.collect();
        let (work, units) = (team.work(), candidate.batch_size as u64);
        let record = RunRecord {
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
        };
        Counted { record, ops }
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
            let untuned = Candidate { compression: untuned(candidate.compression), ..candidate.clone() };
            let mut predictor = Predictor::new(model, set, &weights, &untuned)?;
            let model_size = predictor.program().model_bytes;
            of_team(predictor.team(), model_size)
        }
    })
}

/// Training after a pruning, or with simulated grids, changes weights, not programs.
fn untuned(compression: Compression) -> Compression {
    Compression {
        pruning: compression.pruning.map(|pruning| Pruning::once(pruning.pattern)),
        quantization: compression.quantization.map(|kind| match kind {
            Quantization::Int8Aware { .. } => Quantization::INT8,
            other => other,
        }),
    }
}

/// What a model's rows are and how many classes they have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rows {
    pub row: RowShape,
    pub classes: usize,
}

/// The programs of a candidate as a GPU like `facts` would run them: built from the graph, never loaded, so that a layout may have any number
/// of ranks. Weights that are pruned stay in dense products.
///
/// # Errors
/// What keeps the candidate from being run keeps it from being counted.
pub fn counted_on_gpu(
    model: &Model,
    rows: Rows,
    candidate: &Candidate,
    train: &TrainConfig,
    facts: &Facts,
) -> Result<CountedGraph, TrainError> {
    let (layout, batch_size) = (candidate.layout, candidate.batch_size);
    let ranks = layout.data_ranks();
    if !batch_size.is_multiple_of(ranks) {
        return Err(TrainError::Split { batch_size, ranks });
    }
    let size = Size { batch: batch_size / ranks, row: rows.row, classes: rows.classes };
    let forward = (model.build)(&size)?;
    let mut model_size = None;
    let programs: Vec<Program> = match candidate.phase {
        Phase::Train => {
            let pieces = layout.micro_batches(size.batch);
            let of_piece = if pieces == 1 { forward } else { (model.build)(&Size { batch: size.batch / pieces, ..size })? };
            let parts = training_programs(&of_piece, pieces, candidate.precision, train, layout)?;
            parts.into_iter().map(|(part, _)| part.program).collect()
        }
        Phase::Infer => {
            let weights = initial_weights(&forward, train.init, train.first_seed);
            let compression = untuned(candidate.compression);
            let parts =
                inference_programs(&forward, &weights, candidate.precision, compression, layout, || Ok(Calibration::default()))?;
            model_size = parts.first().map(|(part, _)| Bytes(part.model_bytes));
            parts.into_iter().map(|(part, _)| part.program).collect()
        }
    };
    let memories = programs.iter().map(|program| Ok((memory(program), cuda::launches(program, facts)?)));
    let memories: Vec<(GraphMemory, (Vec<usize>, usize))> = memories.collect::<Result<_, TrainError>>()?;
    let fullest = memories.iter().map(|(memory, (_, scratch))| GraphMemory { scratch: Bytes(*scratch as u64), ..*memory });
    let fullest = fullest.max_by_key(|memory| memory.total().0).unwrap_or_default();
    let is_first = |part: &usize| layout.part_place(*part).1 == 0;
    let stages: Vec<Vec<CountedOp>> = (0..programs.len())
        .filter(is_first)
        .map(|part| {
            let launches = memories[part].1.0.iter();
            untimed(&programs[part]).zip(launches).map(|(profile, launches)| CountedOp { profile, launches: *launches }).collect()
        })
        .collect();
    Ok(CountedGraph {
        candidate: candidate.clone(),
        stages,
        input_bytes: Bytes(programs.iter().map(Program::input_bytes).max().unwrap_or(0)),
        memory: fullest,
        model_size: model_size.unwrap_or(fullest.weights),
    })
}

/// The memory of a program, slot by slot; its last part is the backend's to say.
fn memory(program: &Program) -> GraphMemory {
    let mut memory = GraphMemory::default();
    for (at, slot) in program.slots.iter().enumerate() {
        // A slot that is kept is one value's, under whatever names.
        let mut roles =
            program.values.iter().zip(&program.slot_of).filter(|(_, of)| **of == Some(at)).map(|(value, _)| &value.role);
        let kept = roles.find(|role| !matches!(role, Role::Intermediate)).filter(|_| slot.persistent);
        let part = match kept {
            Some(Role::Parameter { .. }) => &mut memory.weights,
            Some(Role::State) => &mut memory.state,
            Some(Role::Input) => &mut memory.rows,
            Some(Role::Intermediate) | None => &mut memory.working,
        };
        part.0 += slot.bytes as u64;
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        data::DataSource,
        measure::measure_rates,
        record::Workers,
        vocab::{Device, Precision},
    };

    const H200: Facts = Facts {
        name: String::new(),
        capability: (9, 0),
        multiprocessors: 132,
        shared_bytes_per_block: 232_448,
        memory_bytes: 150_109_880_320,
    };

    fn counted(phase: Phase, layout: &str, batch_size: usize) -> CountedGraph {
        let model = models::find("mlp").unwrap();
        let rows = Rows { row: RowShape::Image([28, 28, 1]), classes: 10 };
        let optimizer = crate::record::OptimizerConfig::new(crate::vocab::OptimizerKind::Adam, 0.001);
        let layout: Layout = layout.parse().unwrap();
        let candidate = Candidate {
            phase,
            device: Device::Cuda(0),
            precision: Precision::Fp32,
            compression: Compression::NONE,
            layout,
            batch_size,
            threads: layout.ranks(),
        };
        counted_on_gpu(model, rows, &candidate, &TrainConfig::new(1, optimizer, batch_size), &H200).unwrap()
    }

    #[test]
    fn memory_has_a_place_for_every_byte_of_the_program() {
        let parameters = 4 * (784 * 256 + 256 + 256 * 128 + 128 + 1290);
        let train = counted(Phase::Train, "single", 64);
        assert_eq!((train.memory.weights, train.memory.state), (Bytes(parameters), Bytes(2 * parameters)));
        assert_eq!(train.memory.rows, Bytes(64 * (4 * 784 + 4)));
        assert!(train.memory.working.0 > 0 && train.memory.working.0 < 8 * parameters, "{:?}", train.memory);
        let infer = counted(Phase::Infer, "single", 64);
        assert_eq!(
            (infer.memory.weights, infer.memory.state, infer.model_size),
            (Bytes(parameters), Bytes(0), Bytes(parameters))
        );
    }

    /// A thousand ranks are counted as one is: nothing is loaded.
    #[test]
    fn a_rank_of_many_has_its_share_of_the_batch_and_exchanges_gradients() {
        let one = counted(Phase::Train, "single", 64);
        let many = counted(Phase::Train, "dp=1024", 65_536);
        let flops = |graph: &CountedGraph, is_exchange: bool| -> u64 {
            let ops = graph.stages[0].iter().filter(|op| (op.profile.op == "all_reduce") == is_exchange);
            ops.map(|op| op.profile.flops.0).sum()
        };
        let share = flops(&many, false) as f64 / flops(&one, false) as f64;
        assert!((share - 1.0).abs() < 0.01, "{share}");
        let numbers = 784 * 256 + 256 + 256 * 128 + 128 + 1290;
        assert_eq!((flops(&one, true), flops(&many, true)), (0, numbers));
        assert_eq!(counted(Phase::Train, "pp=2", 64).stages.len(), 2);
        assert!(one.stages[0].iter().map(|op| op.launches).sum::<usize>() > 8);
    }

    /// All that a candidate runs is timed by itself, under the words by which it is looked up.
    #[test]
    fn the_ops_of_a_candidate_are_timed_one_by_one() {
        let root = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let set = Arc::new(DataSet::load(&DataSource::Shipped("digits-8x8".into()), &[root]).unwrap());
        let optimizer = crate::record::OptimizerConfig::new(crate::vocab::OptimizerKind::Sgd, 0.01);
        for (phase, precision, compression, layout) in [
            (Phase::Train, Precision::Fp32, "none", "single"),
            (Phase::Train, Precision::Bf16, "none", "dp=2"),
            (Phase::Train, Precision::Fp32, "none", "pp=2"),
            (Phase::Infer, Precision::Fp32, "none", "single"),
            (Phase::Infer, Precision::Fp32, "int8-dynamic", "single"),
            (Phase::Infer, Precision::Fp32, "magnitude:0.8", "single"),
        ] {
            let layout: Layout = layout.parse().unwrap();
            let compression = compression.parse().unwrap();
            let threads = layout.ranks();
            let candidate = Candidate { phase, device: Device::Cpu, precision, compression, layout, batch_size: 8, threads };
            let counted = super::counted("mlp", &set, &candidate, &TrainConfig::new(1, optimizer, 8)).unwrap();
            let workers = Workers::of(Device::Cpu, layout, threads);
            let table = measure_rates(workers, &counted.ops, &|_| Vec::new()).unwrap();
            let record = counted.record;
            let ops: Vec<&OpProfile> = std::iter::once(&record.profile).chain(&record.further_stages).flatten().collect();
            let moved = ["all_reduce", "reduce_start", "send", "receive"];
            let alone: Vec<&OpProfile> = ops.into_iter().filter(|op| !moved.contains(&op.op.as_str())).collect();
            assert!(alone.len() > 2 && alone.len() == table.rows.len(), "{candidate:?}: {alone:?}");
            for (op, row) in alone.iter().zip(&table.rows) {
                let words = (&op.op, &op.variant, op.dtype, &op.shape, op.flops, op.bytes);
                assert_eq!(words, (&row.op, &row.variant, Some(row.dtype), &row.shape, row.flops, row.bytes));
                assert!(row.time.0 > 0.0, "{row:?}");
            }
        }
    }
}
