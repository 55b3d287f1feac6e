//! How fast single ops run: each op that models are made of, at sizes a few times apart, by itself. Predictions go between these sizes.
//!
//! A call finds its operands about where an op of a model finds them: in a cache, but not in the first one, for calls on several sets of
//! operands go round. Half of the numbers that go into layers are zeros, as behind a ReLU, for a product of one row skips those.

use super::{CpuTimes, SpeedProbe, measure_thread_exchanges};
use crate::{
    backend::{Backend, BackendError, CollectiveError, Session, open},
    graph::{Activation, Binary, Graph, Op, OptimizerStep, Program, Step, Unary, Value, ValueId, Window, lower},
    record::{CommunicationRow, ExchangeRate, MachineSpeed, OpRate, RateTable, Workers},
    stats::{Generator, median},
    units::{Bytes, Seconds},
    vocab::{DType, OptimizerKind},
};
use std::{
    sync::{Arc, Barrier},
    time::{Duration, Instant, SystemTime},
};

/// Length of a sample.
const SAMPLE_S: f64 = 0.002;

/// Samples of an op: until so many lie this close together, but no more than there is patience for.
const SAMPLES: usize = 3;
const CLOSE: f64 = 1.1;
const MOST_SAMPLES: usize = 12;

/// How often cases are timed again while their times are doubted and another one is lower.
const AGAIN: usize = 2;

/// How long a table must have been extended before it is asked what others did meanwhile: the system counts in ticks of some ten milliseconds,
/// of which a single one would be a large share of less.
const LEAST_WATCHED: Duration = Duration::from_secs(1);

/// Bytes of all sets of operands together, where there are not too many: more than a core's own caches hold, and less than a processor's.
const ROUND: u64 = 4 << 20;
const MOST_SETS: u64 = 12;

/// Of an image turned by 6 degrees and moved by about a pixel.
const MAP: [f32; 6] = [0.995, 0.105, 1.2, -0.105, 0.995, -0.8];

/// Largest message of which exchanges are measured.
const LARGEST_EXCHANGE: u64 = 1 << 24;

/// What an operand is to its op.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Filled {
    /// Random numbers.
    Numbers,
    /// Random numbers of which each second one is zero.
    Halved,
    /// Random numbers, of which the op updates the ones that it changes.
    Kept,
    /// Of so many weights so many, spread evenly, are not zero.
    Sparse(usize),
    /// Two of four along the first axis are zero.
    TwoFour,
    /// Whole numbers below this.
    Below(usize),
    /// Maps of `Op::Warp`: turned, stretched and moved a little, as augmentation does.
    Maps,
}

/// A step of a program that is timed by itself.
#[derive(Clone, Debug)]
pub struct RateCase {
    program: Program,
    /// What its operands hold.
    filled: Vec<Filled>,
}

/// An op with its operands.
struct Sized {
    op: Op,
    operands: Vec<(Vec<usize>, DType, Filled)>,
}

fn numbers(shape: &[usize], dtype: DType) -> (Vec<usize>, DType, Filled) {
    (shape.to_vec(), dtype, Filled::Numbers)
}

fn halved(shape: &[usize], dtype: DType) -> (Vec<usize>, DType, Filled) {
    (shape.to_vec(), dtype, Filled::Halved)
}

fn kept(shape: &[usize], dtype: DType) -> (Vec<usize>, DType, Filled) {
    (shape.to_vec(), dtype, Filled::Kept)
}

const F32: DType = DType::F32;
const FLOATS: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];
const RELU: Activation = Activation::Relu;

/// Rows of products: one answer, and batches; tokens of batches where a layer is small.
const ROWS: [usize; 5] = [1, 16, 128, 1024, 6144];
/// Most inputs times outputs of a layer for the largest of them.
const SMALL_LAYER: usize = 1 << 16;
/// Inputs and outputs of a layer.
const LAYERS: [[usize; 2]; 6] = [[64, 64], [1024, 64], [128, 16], [64, 1024], [512, 512], [3072, 256]];

fn optimizer(kind: OptimizerKind) -> OptimizerStep {
    OptimizerStep { kind, learning_rate: 1e-6, momentum: 0.9, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, l1: 0.0, l2: 0.0 }
}

/// All ops at all sizes.
pub fn rate_cases() -> Vec<RateCase> {
    let mut all = Vec::new();
    layers(&mut all);
    products(&mut all);
    convolutions(&mut all);
    rows(&mut all);
    elements(&mut all);
    all.iter().map(Sized::case).collect()
}

fn layers(all: &mut Vec<Sized>) {
    let mut add = |op: Op, operands: Vec<(Vec<usize>, DType, Filled)>| all.push(Sized { op, operands });
    for [k, n] in LAYERS {
        for m in ROWS.into_iter().filter(|m| *m <= 1024 || k * n <= SMALL_LAYER) {
            for dtype in FLOATS {
                let operands = vec![halved(&[m, k], dtype), numbers(&[k, n], dtype), numbers(&[n], F32)];
                for activation in [RELU, Activation::Gelu] {
                    add(Op::Linear { activation }, operands.clone());
                }
            }
            let quantised = |scale: &[usize], dtype: DType| {
                let rows = if dtype == DType::F16 { k.div_ceil(2) } else { k };
                vec![halved(&[m, k], F32), numbers(&[rows, n], DType::I8), numbers(scale, dtype), numbers(&[n], F32)]
            };
            let group = 64;
            for activation in [RELU, Activation::Gelu] {
                add(Op::LinearInt8 { input_scale: 0.01, activation }, quantised(&[n], F32));
                add(Op::LinearInt8Dynamic { activation }, quantised(&[n], F32));
                add(Op::LinearInt4 { group, activation }, quantised(&[k.div_ceil(group), n], DType::F16));
            }
            if m < 1024 {
                for share in [5, 2] {
                    let filled = k * n / share;
                    let weights = (vec![k, n], F32, Filled::Sparse(filled));
                    let op = Op::LinearSparse { filled, activation: RELU };
                    add(op, vec![halved(&[m, k], F32), weights, numbers(&[n], F32)]);
                }
                let weights = (vec![k, n], F32, Filled::TwoFour);
                add(Op::LinearTwoFour { activation: RELU }, vec![halved(&[m, k], F32), weights, numbers(&[n], F32)]);
            }
            for dtype in [F32, DType::Bf16].into_iter().filter(|_| m <= 128) {
                for kind in [OptimizerKind::Sgd, OptimizerKind::Adam] {
                    let optimizer = optimizer(kind);
                    let mut operands = vec![kept(&[k, n], F32), numbers(&[m, k], dtype), numbers(&[m, n], dtype)];
                    operands.extend((0..optimizer.state_arrays()).map(|_| kept(&[k, n], F32)));
                    operands.extend((dtype != F32).then(|| kept(&[k, n], dtype)));
                    add(Op::LinearUpdate { optimizer }, operands);
                }
            }
        }
    }
}

/// Products with a transposed operand, as backward passes have them, and those of attention.
fn products(all: &mut Vec<Sized>) {
    let mut add = |a: &[usize], b: &[usize], transpose_a: bool, transpose_b: bool| {
        for dtype in FLOATS {
            let operands = vec![numbers(a, dtype), numbers(b, dtype)];
            all.push(Sized { op: Op::MatMul { transpose_a, transpose_b }, operands });
        }
    };
    for m in [16, 128, 1024] {
        for [k, n] in [[64, 64], [256, 64], [64, 512], [512, 512]] {
            add(&[m, k], &[k, n], false, false);
            add(&[m, n], &[k, n], false, true);
            add(&[m, k], &[m, n], true, false);
        }
    }
    // Times that are powers of two, and ones that leave a rest.
    for (heads, time, width) in
        [(8, 32, 16), (64, 32, 16), (256, 64, 16), (256, 32, 32), (64, 128, 64), (128, 24, 16), (192, 80, 16), (128, 112, 32)]
    {
        add(&[heads, time, width], &[heads, time, width], false, true);
        add(&[heads, time, time], &[heads, time, width], false, false);
        add(&[heads, time, time], &[heads, time, width], true, false);
    }
}

fn convolutions(all: &mut Vec<Sized>) {
    let mut add = |op: Op, operands: Vec<(Vec<usize>, DType, Filled)>| all.push(Sized { op, operands });
    for (padding, side, from, to) in [(1, 28, 1usize, 16), (1, 14, 32, 64), (1, 28, 16, 32), (1, 56, 3, 64)] {
        let window = Window::square(3, 1, padding);
        let (inputs, group) = (9 * from, 64);
        let pairs = vec![numbers(&[inputs.div_ceil(2), to], DType::I8), numbers(&[inputs.div_ceil(group), to], DType::F16)];
        add(Op::DequantizeInt4 { shape: vec![3, 3, from, to], group }, pairs);
        for images in [1, 8, 64, 256].into_iter().filter(|images| images * side * side * to <= 1 << 23) {
            let input = [images, side, side, from];
            let (full, half) = ([images, side, side, to], [images, side / 2, side / 2, to]);
            let kernel = [3, 3, from, to];
            for dtype in FLOATS {
                let layer = || vec![numbers(&input, dtype), numbers(&kernel, dtype), numbers(&[to], F32)];
                add(Op::ConvReluPool { window }, layer());
                add(Op::Conv2d { window, activation: RELU }, layer());
                let code = numbers(&half, DType::U8);
                add(Op::ConvReluPoolGrad { window }, vec![numbers(&input, dtype), numbers(&half, dtype), code.clone()]);
                add(Op::ConvReluUnpool { input: full }, vec![numbers(&half, dtype), code]);
                add(Op::Conv2dGradInput { window, input }, vec![numbers(&full, dtype), numbers(&kernel, dtype)]);
                add(Op::Conv2dGradWeight { window }, vec![numbers(&input, dtype), numbers(&full, dtype)]);
                add(Op::MaxPool2d { window: Window::square(2, 2, 0) }, vec![numbers(&full, dtype)]);
            }
            let weights = vec![numbers(&input, F32), numbers(&kernel, DType::I8), numbers(&[to], F32), numbers(&[to], F32)];
            add(Op::Conv2dInt8 { window, input_scale: 0.01, activation: RELU }, weights.clone());
            add(Op::Conv2dInt8Dynamic { window, activation: RELU }, weights);
            add(Op::Warp, vec![numbers(&input, F32), numbers(&[images, 6], F32)]);
        }
    }
}

/// Ops over the rows of a matrix.
fn rows(all: &mut Vec<Sized>) {
    let mut add = |op: Op, operands: Vec<(Vec<usize>, DType, Filled)>| all.push(Sized { op, operands });
    for (rows, columns) in [(16, 16), (2048, 32), (64, 64), (2048, 64), (16, 1024), (1024, 1024)] {
        let shape = [rows, columns];
        for dtype in FLOATS {
            let x = || numbers(&shape, dtype);
            let vector = || numbers(&[columns], F32);
            add(Op::Softmax, vec![x()]);
            add(Op::SoftmaxGrad, vec![x(), x()]);
            add(Op::LayerNorm { epsilon: 1e-5 }, vec![x(), vector(), vector()]);
            add(Op::LayerNormGrad, vec![x(), vector(), numbers(&[rows], F32), numbers(&[rows], F32), x()]);
            add(Op::AddBias, vec![x(), vector()]);
            add(Op::SumLeading, vec![x()]);
            add(Op::SumFirst, vec![x()]);
            add(Op::RepeatFirst { rows }, vec![numbers(&[columns], dtype)]);
            let time = 16;
            let parts = [rows / time, time, columns];
            add(Op::Mean { axis: 1 }, vec![numbers(&parts, dtype)]);
            add(Op::MeanGrad { axis: 1, extent: time }, vec![numbers(&[parts[0], columns], dtype)]);
            if columns >= 32 {
                let axes = vec![0, 2, 1, 3];
                add(Op::Permute { axes: axes.clone() }, vec![numbers(&[parts[0], time, columns / 16, 16], dtype)]);
                add(Op::Permute { axes }, vec![numbers(&[parts[0], columns / 16, time, 16], dtype)]);
                let vocabulary = 4096;
                let tokens = (vec![rows], DType::I32, Filled::Below(vocabulary));
                add(Op::Embedding, vec![numbers(&[vocabulary, columns], dtype), tokens.clone()]);
                add(Op::EmbeddingGrad { vocabulary }, vec![tokens, x()]);
            }
        }
        let labels = (vec![rows], DType::I32, Filled::Below(columns));
        add(Op::CrossEntropy { rows }, vec![numbers(&shape, F32), labels]);
    }
}

/// Ops over elements, whose shape does not matter.
fn elements(all: &mut Vec<Sized>) {
    let mut add = |op: Op, operands: Vec<(Vec<usize>, DType, Filled)>| all.push(Sized { op, operands });
    for elements in [512, 16 << 10, 256 << 10, 4 << 20] {
        let shape = [elements / 64, 64];
        for dtype in FLOATS {
            let x = || numbers(&shape, dtype);
            for unary in [Unary::Relu, Unary::Gelu, Unary::Tanh] {
                add(Op::Unary(unary), vec![x()]);
                add(Op::UnaryGrad(unary), vec![x(), x()]);
            }
            for binary in [Binary::Add, Binary::Mul] {
                add(Op::Binary(binary), vec![x(), x()]);
            }
            add(Op::Scale { factor: 0.5 }, vec![x()]);
            add(Op::MulScalar, vec![x(), numbers(&[], F32)]);
            add(Op::AllFinite, vec![x()]);
            add(Op::Cast { to: if dtype == F32 { DType::Bf16 } else { F32 } }, vec![x()]);
        }
        for (kind, copy) in [(OptimizerKind::Sgd, None), (OptimizerKind::Adam, None), (OptimizerKind::Adam, Some(DType::Bf16))] {
            let optimizer = optimizer(kind);
            let mut operands = vec![kept(&shape, F32), numbers(&shape, F32)];
            operands.extend((0..optimizer.state_arrays()).map(|_| kept(&shape, F32)));
            operands.extend(copy.map(|dtype| kept(&shape, dtype)));
            add(Op::Update { optimizer, guarded: false }, operands);
        }
    }
}

impl Sized {
    fn case(&self) -> RateCase {
        let mut graph = Graph::new();
        let operands = self.operands.iter().enumerate().map(|(k, (shape, dtype, filled))| match filled {
            Filled::Kept if k == 0 => graph.weight("w", shape, 1, 1),
            Filled::Kept => graph.state(&format!("s{k}"), shape, *dtype),
            _ => graph.input(&format!("x{k}"), shape, *dtype),
        });
        let operands: Vec<ValueId> = operands.collect();
        let made = graph.apply_all(self.op.clone(), &operands).expect("the cases fit their ops: tested");
        made.into_iter().enumerate().for_each(|(k, id)| graph.mark_output(&format!("y{k}"), id));
        let program = lower(&graph);
        RateCase {
            program: program.alone(&program.steps[0], 1),
            filled: self.operands.iter().map(|(_, _, filled)| *filled).collect(),
        }
    }
}

impl RateCase {
    /// A step of a program; `None` for one that takes part in an exchange.
    pub fn of(program: &Program, step: &Step) -> Option<RateCase> {
        if matches!(step.op, Op::Exchange(_)) {
            return None;
        }
        let program = program.alone(step, 1);
        let step = &program.steps[0];
        let written = step.op.written_inputs(step.inputs.len());
        let of = |id: ValueId| {
            let at = step.inputs.iter().position(|input| *input == id).expect("the operands come first");
            let value = program.value(id);
            match (&step.op, at) {
                _ if written.contains(&at) => Filled::Kept,
                (Op::CrossEntropy { .. }, 1) => Filled::Below(program.value(step.inputs[0]).shape[1]),
                (Op::Embedding, 1) => Filled::Below(program.value(step.inputs[0]).shape[0]),
                (Op::EmbeddingGrad { vocabulary }, 0) => Filled::Below(*vocabulary),
                (Op::Warp, 1) => Filled::Maps,
                (Op::LinearSparse { filled, .. }, 1) => Filled::Sparse(*filled),
                (Op::LinearTwoFour { .. }, 1) => Filled::TwoFour,
                (
                    Op::Linear { .. }
                    | Op::LinearSparse { .. }
                    | Op::LinearTwoFour { .. }
                    | Op::LinearInt8 { .. }
                    | Op::LinearInt8Dynamic { .. }
                    | Op::LinearInt4 { .. },
                    0,
                ) => Filled::Halved,
                _ if value.dtype == DType::I32 => Filled::Below(1),
                _ => Filled::Numbers,
            }
        };
        let mut operands: Vec<ValueId> = step.inputs.clone();
        operands.sort_unstable_by_key(|id| id.0);
        operands.dedup();
        let filled = operands.into_iter().map(of).collect();
        Some(RateCase { program, filled })
    }

    fn step(&self) -> &Step {
        &self.program.steps[0]
    }

    /// A row of the table, where a call takes so long.
    pub fn row(&self, time: Seconds) -> OpRate {
        let (program, step) = (&self.program, self.step());
        let work = program.step_work(step);
        OpRate {
            op: step.op.name().to_string(),
            variant: step.op.variant().to_string(),
            dtype: program.step_dtype(step),
            shape: program.step_shape(step),
            flops: work.flops,
            bytes: work.bytes,
            time,
        }
    }

    /// Calls of the op, each on a set of operands of its own.
    fn calls(&self) -> usize {
        (ROUND / self.program.work().bytes.0.max(1)).clamp(1, MOST_SETS) as usize
    }

    /// Operands of all calls.
    fn fill(&self, session: &mut dyn Session, calls: usize) -> Result<(), BackendError> {
        let mut generator = Generator::new(1);
        // Making random numbers would take longer than the timing: they repeat.
        let some: Vec<f32> = (0..8191).map(|_| generator.unit() as f32 + 0.1).collect();
        let operands = (0..calls).flat_map(|call| {
            let first = call * self.program.values.len();
            self.filled.iter().enumerate().map(move |(at, filled)| (ValueId(first + at), &self.program.values[at], filled))
        });
        for (id, Value { shape, dtype, .. }, filled) in operands {
            let elements: usize = shape.iter().product();
            match dtype {
                DType::I32 => {
                    let below = if let Filled::Below(below) = filled { *below } else { 1 };
                    let data: Vec<i32> = (0..elements).map(|_| generator.below(below) as i32).collect();
                    session.upload_i32(id, &data)?;
                }
                DType::I8 => {
                    let data: Vec<i8> = (0..elements).map(|k| (k % 255) as u8 as i8).collect();
                    session.upload_i8(id, &data)?;
                }
                // Winners of pooling windows: the first of each, as memory begins.
                DType::U8 => {}
                DType::F32 | DType::Bf16 | DType::F16 => {
                    let is_filled = |k: usize| match filled {
                        Filled::Halved => k.is_multiple_of(2),
                        Filled::Sparse(count) => (k + 1) * count / elements > k * count / elements,
                        Filled::TwoFour => (k / shape[1]) % 4 < 2,
                        _ => true,
                    };
                    let number = |k: usize| match filled {
                        Filled::Maps => MAP[k % MAP.len()],
                        _ if is_filled(k) => some[k % some.len()],
                        _ => 0.0,
                    };
                    session.upload_f32(id, &(0..elements).map(number).collect::<Vec<_>>())?;
                }
            }
        }
        Ok(())
    }

    /// Loaded and run once, which packs weights and touches memory.
    fn ready(&self, backend: &dyn Backend) -> Result<Ready, BackendError> {
        let calls = self.calls();
        let mut session = backend.load(self.program.alone(self.step(), calls), None)?;
        self.fill(&mut *session, calls)?;
        let mut ready = Ready { session, calls };
        ready.take(1)?;
        Ok(ready)
    }
}

/// Calls of a case, ready for the clock.
struct Ready {
    session: Box<dyn Session>,
    calls: usize,
}

impl Ready {
    /// Mean seconds of a call over so many rounds.
    fn take(&mut self, rounds: usize) -> Result<f64, BackendError> {
        let start = Instant::now();
        for _ in 0..rounds {
            self.session.execute()?;
        }
        self.session.synchronize()?;
        Ok(start.elapsed().as_secs_f64() / (rounds * self.calls) as f64)
    }
}

/// Seconds of a call times how fast the processor was meanwhile: the middle of the first samples that agree. `take` runs so many rounds and says
/// what a call took, `sets` is how many calls a round has, and `speed` reads how fast the processor is.
fn timed(
    take: &mut dyn FnMut(usize) -> Result<f64, BackendError>,
    sets: usize,
    speed: &mut dyn FnMut() -> f64,
) -> Result<f64, BackendError> {
    let first = take(1)?;
    let rounds = (SAMPLE_S / (first * sets as f64).max(1e-9)).ceil().clamp(1.0, 1e5) as usize;
    let mut samples = Vec::new();
    let mut before = speed();
    while samples.len() < MOST_SAMPLES {
        let time = take(rounds)?;
        let behind = speed();
        samples.push(time * (before * behind).sqrt());
        before = behind;
        samples.sort_by(f64::total_cmp);
        let agreeing = samples.windows(SAMPLES).filter(|some| some[SAMPLES - 1] <= CLOSE * some[0]);
        if let Some(some) = agreeing.min_by(|a, b| (a[SAMPLES - 1] / a[0]).total_cmp(&(b[SAMPLES - 1] / b[0]))) {
            return Ok(some[SAMPLES / 2]);
        }
    }
    Ok(median(&samples).unwrap_or(f64::NAN))
}

/// Mean over workers that all run so many rounds at the same time.
fn together<T: Send>(
    workers: &mut [T],
    rounds: usize,
    take: impl Fn(&mut T, usize) -> Result<f64, BackendError> + Sync,
) -> Result<f64, BackendError> {
    if let [alone] = workers {
        return take(alone, rounds);
    }
    let (count, barrier) = (workers.len(), Barrier::new(workers.len()));
    let one = |worker| {
        barrier.wait();
        take(worker, rounds)
    };
    let times: Vec<f64> = std::thread::scope(|scope| {
        let each: Vec<_> = workers.iter_mut().map(|worker| scope.spawn(|| one(worker))).collect();
        each.into_iter().map(|worker| worker.join().expect("timing does not panic")).collect::<Result<_, _>>()
    })?;
    Ok(times.iter().sum::<f64>() / count as f64)
}

#[derive(Debug, thiserror::Error)]
pub enum RateError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Exchange(#[from] CollectiveError),
}

/// Times every case with all `workers` at it at the same time, each on operands of its own, and their exchanges; those rows that `doubted` then
/// names again. Ops that a device has no kernel for are left out.
///
/// # Errors
/// Where the device cannot be opened or fails.
pub fn measure_rates(
    workers: Workers,
    cases: &[RateCase],
    doubted: &dyn Fn(&RateTable) -> Vec<usize>,
) -> Result<RateTable, RateError> {
    let mut table =
        RateTable { workers, unix_s: 0, others_share: None, machine_speed: None, rows: Vec::new(), exchanges: Vec::new() };
    extend_rates(&mut table, cases, doubted)?;
    if workers.ranks > 1 {
        table.exchanges = exchanges(workers.ranks)?;
    }
    Ok(table)
}

/// The same for further cases, at the end of a table of their workers.
///
/// # Errors
/// Where the device cannot be opened or fails.
pub fn extend_rates(
    table: &mut RateTable,
    cases: &[RateCase],
    doubted: &dyn Fn(&RateTable) -> Vec<usize>,
) -> Result<(), RateError> {
    let Workers { device, ranks, threads } = table.workers;
    let backends: Vec<_> = (0..ranks).map(|_| open(device, threads)).collect::<Result<_, _>>()?;
    let mut speeds = Speeds { probe: (!device.is_cuda()).then(|| SpeedProbe::new(ranks * threads)), seen: Vec::new() };
    let (before, start) = (CpuTimes::read(), Instant::now());
    let mut order: Vec<usize> = (0..cases.len()).collect();
    Generator::new(1).shuffle(&mut order);
    let mut work = vec![None; cases.len()];
    for case in order {
        work[case] = all_at_once(&cases[case], &backends, &mut speeds)?;
    }
    table.machine_speed = table.machine_speed.or_else(|| speeds.usual());
    let usual = table.machine_speed.map_or(1.0, |speed| speed.overall());
    let (timed, rows): (Vec<&RateCase>, Vec<OpRate>) =
        cases.iter().zip(work).filter_map(|(case, work)| Some((case, case.row(Seconds(work? / usual))))).unzip();
    let known = table.rows.len();
    table.rows.extend(rows);
    // Some are slow without a doubt.
    let mut confirmed = vec![false; timed.len()];
    for _ in 0..AGAIN {
        for row in doubted(table).into_iter().filter_map(|row| row.checked_sub(known)) {
            if confirmed[row] {
                continue;
            }
            let time = &mut table.rows[known + row].time.0;
            let again = all_at_once(timed[row], &backends, &mut speeds)?.map_or(*time, |work| work / usual);
            confirmed[row] = again * CLOSE > *time;
            *time = time.min(again);
        }
    }
    let is_told = known == 0 || start.elapsed() >= LEAST_WATCHED;
    let share = before.filter(|_| is_told).and_then(|before| CpuTimes::read()?.others_share_since(&before));
    table.others_share = table.others_share.into_iter().chain(share).reduce(f64::max);
    table.unix_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    Ok(())
}

/// How fast the processor was, reading by reading. A device has no neighbours.
struct Speeds {
    probe: Option<SpeedProbe>,
    seen: Vec<MachineSpeed>,
}

impl Speeds {
    fn read(&mut self) -> f64 {
        let Some(probe) = &mut self.probe else { return 1.0 };
        let speed = probe.read();
        self.seen.push(speed);
        speed.overall()
    }

    /// The middle of all.
    fn usual(&self) -> Option<MachineSpeed> {
        let middle = |of: fn(&MachineSpeed) -> f64| median(&self.seen.iter().map(of).collect::<Vec<_>>());
        Some(MachineSpeed { flops_per_s: middle(|speed| speed.flops_per_s)?, bytes_per_s: middle(|speed| speed.bytes_per_s)? })
    }
}

/// The mean over ranks that work at the same time, times how fast the processor was; `None` where the device has no kernel for the op.
fn all_at_once(case: &RateCase, backends: &[Arc<dyn Backend>], speeds: &mut Speeds) -> Result<Option<f64>, BackendError> {
    // One that cannot run would leave the others waiting: all are ready before any is timed.
    let ready: Result<Vec<Ready>, BackendError> = backends.iter().map(|backend| case.ready(&**backend)).collect();
    let work = ready.and_then(|mut ranks| {
        let calls = case.calls();
        timed(&mut |rounds| together(&mut ranks, rounds, Ready::take), calls, &mut || speeds.read())
    });
    match work {
        Err(BackendError::Unsupported { .. }) => Ok(None),
        work => work.map(Some),
    }
}

fn exchanges(ranks: usize) -> Result<Vec<ExchangeRate>, CollectiveError> {
    let rate =
        |row: CommunicationRow| ExchangeRate { operation: row.operation, bytes: Bytes(row.bytes), time: Seconds(row.median_s) };
    Ok(measure_thread_exchanges(ranks, LARGEST_EXCHANGE)?.into_iter().map(rate).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::Device;

    #[test]
    fn every_case_is_one_op_that_the_processor_runs() {
        let backend = open(Device::Cpu, 1).unwrap();
        let mut seen = std::collections::HashSet::new();
        for case in rate_cases() {
            let program = &case.program;
            assert_eq!(program.steps.len(), 1, "{case:?}");
            // The smallest of an op are enough to see that it runs.
            let (name, dtype) = (case.step().op.name(), program.step_dtype(case.step()));
            if program.work().bytes.0 < 100_000 && seen.insert((name, dtype)) {
                let mut session = backend.load(program.alone(case.step(), 2), None).unwrap();
                case.fill(&mut *session, 2).unwrap_or_else(|error| panic!("{case:?}: {error}"));
                session.execute().unwrap_or_else(|error| panic!("{case:?}: {error}"));
            }
        }
        assert!(seen.len() > 60, "{}", seen.len());
    }

    #[test]
    fn a_worker_that_fails_does_not_leave_the_others_waiting() {
        let mut workers = [0, 1];
        let took = together(&mut workers, 1, |at, _| {
            let alone = BackendError::Alone { op: "softmax" };
            if *at == 1 { Err(alone) } else { Ok(1e-3) }
        });
        assert!(took.is_err());
        let mean = together(&mut [1e-3, 3e-3], 1, |worker, _| Ok(*worker)).unwrap();
        assert!((mean - 2e-3).abs() < 1e-12);
    }

    /// A processor that is half as fast for a while takes twice as long, and the time stands for the speed all the same.
    #[test]
    fn a_slower_moment_leaves_the_work_of_an_op_as_it_is() {
        let speeds = [1.0, 0.5, 0.8, 0.7, 1.0, 0.6, 0.9];
        let at = std::cell::Cell::new(0);
        let mut take = |_: usize| {
            let (before, behind) = (speeds[at.get() % 7], speeds[(at.get() + 1) % 7]);
            Ok(if at.get() == 0 { 1e-3 } else { 1e-3 / f64::sqrt(before * behind) })
        };
        let mut speed = || {
            at.set(at.get() + 1);
            speeds[at.get() % 7]
        };
        let work = timed(&mut take, 1, &mut speed).unwrap();
        assert!((work / 1e-3 - 1.0).abs() < 1e-9, "{work}");
    }

    #[test]
    fn the_samples_that_agree_are_taken_and_not_those_beside_a_disturbance() {
        let mut times = [1e-3, 4e-3, 1.02e-3, 2.5e-3, 1.01e-3, 1e-3].into_iter();
        let work = timed(&mut |_| Ok(times.next().unwrap()), 1, &mut || 1.0).unwrap();
        assert_eq!((work, times.next()), (1.01e-3, None));
        let mut endless = (1..).map(f64::from);
        assert!(timed(&mut |_| Ok(endless.next().unwrap().powi(2)), 1, &mut || 1.0).unwrap() > 4.0);
    }

    #[test]
    fn ranks_are_timed_together_with_their_exchanges() {
        let some: Vec<RateCase> = rate_cases().into_iter().filter(|case| matches!(case.step().op, Op::Softmax)).take(2).collect();
        let workers = Workers { device: Device::Cpu, ranks: 2, threads: 1 };
        let table = measure_rates(workers, &some, &|_| Vec::new()).unwrap();
        assert_eq!(table.rows.len(), 2);
        assert!(table.rows.iter().all(|row| row.time.0 > 0.0 && row.op == "softmax"));
        assert!(table.exchanges.iter().any(|row| row.operation == "all_reduce" && row.bytes.0 == 4));
    }

    /// Beside other tests, which take whole ticks of these few milliseconds.
    #[test]
    fn a_moment_in_which_a_few_ops_are_added_says_nothing_of_others() {
        let some: Vec<RateCase> = rate_cases().into_iter().filter(|case| matches!(case.step().op, Op::Softmax)).take(2).collect();
        let workers = Workers { device: Device::Cpu, ranks: 1, threads: 1 };
        let mut table = measure_rates(workers, &some[..1], &|_| Vec::new()).unwrap();
        table.others_share = Some(0.0);
        let speed = table.machine_speed;
        extend_rates(&mut table, &some[1..], &|_| Vec::new()).unwrap();
        assert_eq!((table.rows.len(), table.others_share, table.machine_speed), (2, Some(0.0), speed));
    }

    #[test]
    fn rows_stand_in_the_order_of_the_cases_and_doubted_ones_only_become_faster() {
        let some: Vec<RateCase> = rate_cases().into_iter().filter(|case| matches!(case.step().op, Op::Softmax)).take(9).collect();
        let workers = Workers { device: Device::Cpu, ranks: 1, threads: 1 };
        let seen = std::cell::RefCell::new(Vec::new());
        let doubted = |table: &RateTable| {
            seen.borrow_mut().push(table.rows.clone());
            vec![2, 5]
        };
        let table = measure_rates(workers, &some, &doubted).unwrap();
        assert!(table.rows.iter().zip(&some).all(|(row, case)| row.is_of_size(&case.row(Seconds(0.0)))));
        let first = seen.borrow()[0].clone();
        assert_eq!((seen.borrow().len(), first.len()), (AGAIN, table.rows.len()));
        for (at, (before, after)) in first.iter().zip(&table.rows).enumerate() {
            let is_doubted = [2, 5].contains(&at);
            assert!(if is_doubted { after.time <= before.time } else { after == before }, "{before:?} {after:?}");
        }
        assert!(table.others_share.is_some_and(|share| (0.0..=1.0).contains(&share)), "{:?}", table.others_share);
    }
}
