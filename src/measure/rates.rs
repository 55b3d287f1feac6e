//! How fast single ops run: each op that models are made of, at sizes a few times apart, by itself. Predictions go between these sizes.
//!
//! A call finds its operands about where an op of a model finds them: in a cache, but not in the first one, for calls on several sets of
//! operands go round. Half of the numbers that go into layers are zeros, as behind a ReLU, for a product of one row skips those.

use super::{CpuTimes, measure_thread_exchanges};
use crate::{
    backend::{Backend, BackendError, CollectiveError, Session, open},
    graph::{Activation, Binary, Graph, Op, OptimizerStep, Program, Unary, ValueId, Window, lower},
    record::{CommunicationRow, ExchangeRate, OpRate, RateTable, Workers},
    stats::{Generator, median},
    units::{Bytes, Seconds},
    vocab::{DType, OptimizerKind},
};
use std::{
    sync::{Arc, Barrier, Mutex, PoisonError},
    time::{Instant, SystemTime},
};

/// Length of a sample.
const SAMPLE_S: f64 = 0.002;

/// Samples of an op: until so many lie within so much of the lowest, for what disturbs a sample only makes it longer; but no more than there is
/// patience for.
const SAMPLES: usize = 3;
const CLOSE: f64 = 1.1;
const MOST_SAMPLES: usize = 12;

/// How often cases are timed again while their times are doubted and another one is lower.
const AGAIN: usize = 2;

/// Bytes of all sets of operands together, where there are not too many: more than a core's own caches hold, and less than a processor's.
const ROUND: u64 = 4 << 20;
const MOST_SETS: u64 = 12;

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
}

/// An op with its operands.
#[derive(Clone, Debug)]
pub struct RateCase {
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
    all
}

fn layers(all: &mut Vec<RateCase>) {
    let mut add = |op: Op, operands: Vec<(Vec<usize>, DType, Filled)>| all.push(RateCase { op, operands });
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
fn products(all: &mut Vec<RateCase>) {
    let mut add = |a: &[usize], b: &[usize], transpose_a: bool, transpose_b: bool| {
        for dtype in FLOATS {
            let operands = vec![numbers(a, dtype), numbers(b, dtype)];
            all.push(RateCase { op: Op::MatMul { transpose_a, transpose_b }, operands });
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

fn convolutions(all: &mut Vec<RateCase>) {
    let mut add = |op: Op, operands: Vec<(Vec<usize>, DType, Filled)>| all.push(RateCase { op, operands });
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
fn rows(all: &mut Vec<RateCase>) {
    let mut add = |op: Op, operands: Vec<(Vec<usize>, DType, Filled)>| all.push(RateCase { op, operands });
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
fn elements(all: &mut Vec<RateCase>) {
    let mut add = |op: Op, operands: Vec<(Vec<usize>, DType, Filled)>| all.push(RateCase { op, operands });
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

impl RateCase {
    /// Calls of the op, each on a set of operands of its own.
    fn graph(&self, sets: u64) -> (Graph, Vec<ValueId>) {
        let mut graph = Graph::new();
        let mut operands = Vec::new();
        for set in 0..sets {
            let one = self.operands.iter().enumerate().map(|(k, (shape, dtype, filled))| match filled {
                Filled::Kept if k == 0 => graph.weight(&format!("w{set}"), shape, 1, 1),
                Filled::Kept => graph.state(&format!("s{set}.{k}"), shape, *dtype),
                _ => graph.input(&format!("x{set}.{k}"), shape, *dtype),
            });
            let one: Vec<ValueId> = one.collect();
            let made = graph.apply_all(self.op.clone(), &one).expect("the cases fit their ops: tested");
            made.into_iter().enumerate().for_each(|(k, id)| graph.mark_output(&format!("y{set}.{k}"), id));
            operands.extend(one);
        }
        (graph, operands)
    }

    /// One call.
    pub fn program(&self) -> Program {
        lower(&self.graph(1).0)
    }

    /// A row of the table.
    fn rate(&self, seconds: f64) -> Option<OpRate> {
        let program = self.program();
        let step = program.steps.first()?;
        let work = program.step_work(step);
        Some(OpRate {
            op: step.op.name().to_string(),
            variant: step.op.variant().to_string(),
            dtype: program.step_dtype(step),
            shape: program.step_shape(step),
            flops: work.flops,
            bytes: work.bytes,
            time: Seconds(seconds),
        })
    }

    fn sets(&self) -> u64 {
        (ROUND / self.program().work().bytes.0.max(1)).clamp(1, MOST_SETS)
    }

    fn fill(&self, session: &mut dyn Session, operands: &[ValueId]) -> Result<(), BackendError> {
        let mut generator = Generator::new(1);
        // Making random numbers would take longer than the timing: they repeat.
        let some: Vec<f32> = (0..8191).map(|_| generator.unit() as f32 + 0.1).collect();
        for (id, (shape, dtype, filled)) in operands.iter().zip(self.operands.iter().cycle()) {
            let elements: usize = shape.iter().product();
            match dtype {
                DType::I32 => {
                    let below = if let Filled::Below(below) = filled { *below } else { 1 };
                    let data: Vec<i32> = (0..elements).map(|_| generator.below(below) as i32).collect();
                    session.upload_i32(*id, &data)?;
                }
                DType::I8 => {
                    let data: Vec<i8> = (0..elements).map(|k| (k % 255) as u8 as i8).collect();
                    session.upload_i8(*id, &data)?;
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
                    let number = |k: usize| if is_filled(k) { some[k % some.len()] } else { 0.0 };
                    session.upload_f32(*id, &(0..elements).map(number).collect::<Vec<_>>())?;
                }
            }
        }
        Ok(())
    }

    /// Loaded and run once, which packs weights and touches memory.
    fn ready(&self, backend: &dyn Backend) -> Result<Ready, BackendError> {
        let sets = self.sets();
        let (graph, operands) = self.graph(sets);
        let mut session = backend.load(lower(&graph), None)?;
        self.fill(&mut *session, &operands)?;
        let mut ready = Ready { session, sets };
        ready.take(1)?;
        Ok(ready)
    }
}

/// Calls of a case, ready for the clock.
struct Ready {
    session: Box<dyn Session>,
    sets: u64,
}

impl Ready {
    /// Mean seconds of a call over so many rounds.
    fn take(&mut self, rounds: usize) -> Result<f64, BackendError> {
        let start = Instant::now();
        for _ in 0..rounds {
            self.session.execute()?;
        }
        self.session.synchronize()?;
        Ok(start.elapsed().as_secs_f64() / (rounds as f64 * self.sets as f64))
    }
}

/// Median seconds of a call over undisturbed samples; `take` runs so many calls and says what one took, `sets` is how often a call does its work.
/// `meet` is told each time of the worker, waits for the others and hands back the mean, so that all begin samples together and end them at the same
/// one. A worker that fails meets the others with no number, which ends all.
fn timed(
    take: &mut dyn FnMut(usize) -> Result<f64, BackendError>,
    sets: f64,
    meet: &dyn Fn(usize, f64) -> f64,
) -> Result<f64, BackendError> {
    let mut rounds = 1;
    let mut samples = Vec::new();
    for at in 0..=MOST_SAMPLES {
        let own = take(rounds);
        let mean = meet(at, *own.as_ref().unwrap_or(&f64::NAN));
        own?;
        if mean.is_nan() {
            return Ok(mean);
        }
        if at == 0 {
            rounds = (SAMPLE_S / (mean * sets).max(1e-9)).ceil().clamp(1.0, 1e5) as usize;
            continue;
        }
        samples.push(mean);
        samples.sort_by(f64::total_cmp);
        if samples.get(SAMPLES - 1).is_some_and(|sample| *sample <= CLOSE * samples[0]) {
            break;
        }
    }
    samples.truncate(SAMPLES);
    Ok(median(&samples).unwrap_or(f64::NAN))
}

/// Times workers together: the mean over them, which is the same for each.
fn timed_together<T: Send>(
    workers: &mut [T],
    take: impl Fn(&mut T, usize) -> Result<f64, BackendError> + Sync,
    sets: f64,
) -> Result<f64, BackendError> {
    let count = workers.len();
    let (barrier, means) = (Barrier::new(count), [const { Mutex::new(0.0) }; MOST_SAMPLES + 1]);
    let mean_of = |at: usize| means[at].lock().unwrap_or_else(PoisonError::into_inner);
    let meet = |at: usize, time: f64| {
        *mean_of(at) += time / count as f64;
        barrier.wait();
        *mean_of(at)
    };
    let (take, meet) = (&take, &meet);
    let times: Vec<f64> = std::thread::scope(|scope| {
        let each: Vec<_> =
            workers.iter_mut().map(|worker| scope.spawn(move || timed(&mut |rounds| take(worker, rounds), sets, meet))).collect();
        each.into_iter().map(|worker| worker.join().expect("timing does not panic")).collect::<Result<_, _>>()
    })?;
    Ok(times[0])
}

#[derive(Debug, thiserror::Error)]
pub enum RateError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Exchange(#[from] CollectiveError),
}

/// Times every case with all `workers` at it at the same time, each on operands of its own, and their exchanges; those rows that `doubted` then
/// names again. `on` hears of each op that is timed for the first time, of how many. Ops that a device has no kernel for are left out.
///
/// # Errors
/// Where the device cannot be opened or fails.
pub fn measure_rates(
    workers: Workers,
    cases: &[RateCase],
    doubted: &dyn Fn(&RateTable) -> Vec<usize>,
    on: &mut dyn FnMut(usize, usize),
) -> Result<RateTable, RateError> {
    let Workers { device, ranks, threads } = workers;
    let backends: Vec<_> = (0..ranks).map(|_| open(device, threads)).collect::<Result<_, _>>()?;
    let before = CpuTimes::read();
    let mut order: Vec<usize> = (0..cases.len()).collect();
    Generator::new(1).shuffle(&mut order);
    let mut times = vec![None; cases.len()];
    for (done, case) in order.into_iter().enumerate() {
        times[case] = all_at_once(&cases[case], &backends)?;
        on(done + 1, cases.len());
    }
    let (timed, rows): (Vec<&RateCase>, Vec<OpRate>) =
        cases.iter().zip(times).filter_map(|(case, time)| Some((case, case.rate(time?)?))).unzip();
    let mut table = RateTable { workers, unix_s: 0, others_share: None, rows, exchanges: Vec::new() };
    // Some are slow without a doubt.
    let mut confirmed = vec![false; timed.len()];
    for _ in 0..AGAIN {
        for row in doubted(&table) {
            if confirmed[row] {
                continue;
            }
            let time = &mut table.rows[row].time.0;
            let again = all_at_once(timed[row], &backends)?.unwrap_or(*time);
            confirmed[row] = again * CLOSE > *time;
            *time = time.min(again);
        }
    }
    if ranks > 1 {
        table.exchanges = exchanges(ranks)?;
    }
    table.others_share = before.and_then(|before| CpuTimes::read()?.others_share_since(&before));
    table.unix_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    Ok(table)
}

/// The mean over ranks that work at the same time, which is the same for each; `None` where the device has no kernel for the op.
fn all_at_once(case: &RateCase, backends: &[Arc<dyn Backend>]) -> Result<Option<f64>, BackendError> {
    // One that cannot run would leave the others waiting: all are ready before any is timed.
    let ready: Result<Vec<Ready>, BackendError> = backends.iter().map(|backend| case.ready(&**backend)).collect();
    let time = ready.and_then(|mut ranks| {
        let sets = ranks.first().map_or(1.0, |rank| rank.sets as f64);
        timed_together(&mut ranks, Ready::take, sets)
    });
    match time {
        Err(BackendError::Unsupported { .. }) => Ok(None),
        time => time.map(Some),
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
            let program = case.program();
            assert_eq!(program.steps.len(), 1, "{case:?}");
            // The smallest of an op are enough to see that it runs.
            let (name, dtype) = (case.op.name(), program.step_dtype(&program.steps[0]));
            if program.work().bytes.0 < 100_000 && seen.insert((name, dtype)) {
                let mut session = backend.load(program, None).unwrap();
                case.fill(&mut *session, &case.graph(1).1).unwrap_or_else(|error| panic!("{case:?}: {error}"));
                session.execute().unwrap_or_else(|error| panic!("{case:?}: {error}"));
            }
        }
        assert!(seen.len() > 60, "{}", seen.len());
    }

    #[test]
    fn a_worker_that_fails_does_not_leave_the_others_waiting() {
        for fails_at in [1, 3] {
            let mut calls = [0, 0];
            let mut workers: Vec<(usize, &mut usize)> = calls.iter_mut().enumerate().collect();
            let took = timed_together(
                &mut workers,
                |(at, calls), _| {
                    **calls += 1;
                    let alone = BackendError::Alone { op: "softmax" };
                    if *at == 1 && **calls == fails_at { Err(alone) } else { Ok(1e-3) }
                },
                1.0,
            );
            assert!(took.is_err());
            assert_eq!(calls, [fails_at, fails_at]);
        }
    }

    /// Two workers that take 1 and 3 ms: 2 ms for both, from as many samples as must lie close together.
    #[test]
    fn workers_are_timed_by_their_mean() {
        let took = timed_together(&mut [1e-3, 3e-3], |worker, _| Ok(*worker), 1.0).unwrap();
        assert!((took - 2e-3).abs() < 1e-12);
    }

    #[test]
    fn ranks_are_timed_together_with_their_exchanges() {
        let some: Vec<RateCase> = rate_cases().into_iter().filter(|case| matches!(case.op, Op::Softmax)).take(2).collect();
        let workers = Workers { device: Device::Cpu, ranks: 2, threads: 1 };
        let mut heard = Vec::new();
        let table = measure_rates(workers, &some, &|_| Vec::new(), &mut |at, of| heard.push((at, of))).unwrap();
        assert_eq!((heard, table.rows.len()), (vec![(1, 2), (2, 2)], 2));
        assert!(table.rows.iter().all(|row| row.time.0 > 0.0 && row.op == "softmax"));
        assert!(table.exchanges.iter().any(|row| row.operation == "all_reduce" && row.bytes.0 == 4));
    }

    #[test]
    fn rows_stand_in_the_order_of_the_cases_and_doubted_ones_only_become_faster() {
        let some: Vec<RateCase> = rate_cases().into_iter().filter(|case| matches!(case.op, Op::Softmax)).take(9).collect();
        let workers = Workers { device: Device::Cpu, ranks: 1, threads: 1 };
        let seen = std::cell::RefCell::new(Vec::new());
        let doubted = |table: &RateTable| {
            seen.borrow_mut().push(table.rows.clone());
            vec![2, 5]
        };
        let table = measure_rates(workers, &some, &doubted, &mut |_, _| ()).unwrap();
        let shape = |case: &RateCase| {
            let program = case.program();
            program.step_shape(&program.steps[0])
        };
        assert!(table.rows.iter().zip(&some).all(|(row, case)| row.shape == shape(case)));
        let first = seen.borrow()[0].clone();
        assert_eq!((seen.borrow().len(), first.len()), (AGAIN, table.rows.len()));
        for (at, (before, after)) in first.iter().zip(&table.rows).enumerate() {
            let is_doubted = [2, 5].contains(&at);
            assert!(if is_doubted { after.time <= before.time } else { after == before }, "{before:?} {after:?}");
        }
        assert!(table.others_share.is_some_and(|share| (0.0..=1.0).contains(&share)), "{:?}", table.others_share);
    }
}
