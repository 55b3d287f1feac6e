//! The sweep over kernels: which ops on which shapes, and the clock around them.
//!
//! A call is timed among others of its kind in one program, so that a device with a queue runs them back to back: the launch of one
//! hides behind the work of another, as in a model's step. Each call has operands of its own; where all of them together are larger than
//! any cache, every call is cold.

use crate::{
    backend::{
        Backend, BackendError, Session,
        cuda::{Cublas, ProductBench, VendorProduct},
    },
    graph::{Activation, Graph, Op, OptimizerStep, Program, Unary, ValueId, Window, Work, lower},
    stats::Generator,
    vocab::{DType, Device, OptimizerKind},
};
use std::time::Instant;

/// An op on operands of given shapes.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelCase {
    pub family: &'static str,
    pub op: Op,
    pub shapes: Vec<Vec<usize>>,
    pub dtype: DType,
}

/// Bytes of all operands together beyond which no cache holds them: four times the 60 MB of the largest.
const BEYOND_CACHES: usize = 240 << 20;

/// Calls in a program: at least three, that operands rotate, and at most so many.
const CALLS: std::ops::RangeInclusive<usize> = 3..=48;

/// Length of a sample.
const SAMPLE_S: f64 = 0.02;

/// Random numbers in an operand after which they repeat: making more would take longer than the timing.
const PERIOD: usize = 1 << 20;

const MATMUL: Op = Op::MatMul { transpose_a: false, transpose_b: false };

/// The sweep for a device: what models are made of, at sizes that fill it.
pub fn kernel_cases(device: Device) -> Vec<KernelCase> {
    let on_gpu = device.is_cuda();
    let mut out = Vec::new();
    let types: &[DType] = &[DType::F32, DType::Bf16, DType::F16];
    let mut add = |family, op: Op, shapes: &[&[usize]], types: &[DType]| {
        for dtype in types {
            let shapes = shapes.iter().map(|shape| shape.to_vec()).collect();
            out.push(KernelCase { family, op: op.clone(), shapes, dtype: *dtype });
        }
    };
    // First what a model spends most of its time on, should the rest be cut off.
    let squares: &[usize] = if on_gpu { &[256, 512, 1024, 2048, 4096, 8192] } else { &[128, 256, 512, 1024] };
    for n in squares {
        add("matrix product", MATMUL, &[&[*n, *n], &[*n, *n]], types);
    }
    // Skinny, ragged, and those of the models that are shipped.
    let wide = if on_gpu { 4096 } else { 1024 };
    for m in [1, 16, 64] {
        add("matrix product", MATMUL, &[&[m, wide], &[wide, wide]], types);
    }
    for [m, k, n] in [[1000, 1000, 1000], [64, 3136, 128], [256, 3136, 128], [256, 784, 512], [256, 128, 10]] {
        add("matrix product", MATMUL, &[&[m, k], &[k, n]], types);
    }
    add("matrix product", Op::MatMul { transpose_a: false, transpose_b: true }, &[&[wide, wide], &[wide, wide]], types);
    add("matrix product", Op::MatMul { transpose_a: true, transpose_b: false }, &[&[wide, wide], &[wide, wide]], types);
    let many = if on_gpu { 1 << 26 } else { 1 << 22 };
    add("elementwise", Op::Unary(Unary::Relu), &[&[many]], types);
    add("elementwise", Op::Unary(Unary::Gelu), &[&[many]], types);
    add("elementwise", Op::Binary(crate::graph::Binary::Add), &[&[many], &[many]], types);
    add("elementwise", Op::Cast { to: DType::Bf16 }, &[&[many]], &[DType::F32]);
    add("elementwise", Op::AddBias, &[&[many / 1024, 1024], &[1024]], types);
    add("reduction", Op::SumLeading, &[&[many / 1024, 1024]], types);
    for columns in [256, 1024, 8192] {
        add("rows", Op::Softmax, &[&[many / columns, columns]], types);
        add("rows", Op::LayerNorm { epsilon: 1e-5 }, &[&[many / columns, columns], &[columns], &[columns]], types);
    }
    for columns in [1024, 32_000] {
        let rows = many / columns;
        add("rows", Op::CrossEntropy { rows }, &[&[rows, columns], &[rows]], &[DType::F32]);
    }
    for kind in [OptimizerKind::Sgd, OptimizerKind::Adam] {
        add("update", Op::Update { optimizer: optimizer(kind), guarded: false }, &[&[many / 2]], &[DType::F32]);
    }
    let (vocabulary, width) = (32_000, 512);
    add("embedding", Op::Embedding, &[&[vocabulary, width], &[many / width / 8]], types);
    let pool = Window::square(2, 2, 0);
    let images = if on_gpu { 512 } else { 32 };
    add("pooling", Op::MaxPool2d { window: pool }, &[&[images, 56, 56, 64]], types);
    let same = Window::square(3, 1, 1);
    for (image, from, to) in [(28, 1, 32), (14, 32, 64), (56, 64, 64), (14, 256, 256)] {
        let window = same;
        let (x, w, y) = ([images, image, image, from], [3, 3, from, to], [images, image, image, to]);
        add("convolution", Op::Conv2d { window, activation: Activation::None }, &[&x, &w], types);
        add("convolution", Op::Conv2dGradInput { window, input: x }, &[&y, &w], types);
        add("convolution", Op::Conv2dGradWeight { window }, &[&x, &y], types);
    }
    out
}

fn optimizer(kind: OptimizerKind) -> OptimizerStep {
    let (momentum, epsilon) = (0.9, 1e-8);
    OptimizerStep { kind, learning_rate: 1e-3, momentum, beta1: 0.9, beta2: 0.999, epsilon, l1: 0.0, l2: 1e-4 }
}

impl KernelCase {
    /// Operands of one call; `at` makes their names unique.
    fn operands(&self, graph: &mut Graph, at: usize) -> Vec<ValueId> {
        if let Op::Update { optimizer, .. } = &self.op {
            let shape = &self.shapes[0];
            let weight = graph.weight(&format!("w{at}"), shape, 1, 1);
            let gradient = graph.input(&format!("g{at}"), shape, DType::F32);
            let states = (0..optimizer.state_arrays()).map(|k| graph.state(&format!("s{at}.{k}"), shape, DType::F32));
            return [weight, gradient].into_iter().chain(states.collect::<Vec<_>>()).collect();
        }
        let last = self.shapes.len() - 1;
        let dtype = |k: usize| match self.op {
            Op::Embedding | Op::CrossEntropy { .. } if k == last => DType::I32,
            // Vectors beside a matrix stay in fp32, as in every model.
            Op::LayerNorm { .. } | Op::AddBias if k > 0 => DType::F32,
            _ => self.dtype,
        };
        let input = |(k, shape): (usize, &Vec<usize>)| graph.input(&format!("x{at}.{k}"), shape, dtype(k));
        self.shapes.iter().enumerate().map(input).collect()
    }

    /// A program of `calls` calls.
    fn graph(&self, calls: usize) -> Result<Graph, crate::graph::GraphError> {
        let mut graph = Graph::new();
        for at in 0..calls {
            let operands = self.operands(&mut graph, at);
            let made = graph.apply_all(self.op.clone(), &operands)?;
            for (k, id) in made.into_iter().enumerate() {
                graph.mark_output(&format!("y{at}.{k}"), id);
            }
        }
        Ok(graph)
    }

    /// One call.
    pub fn program(&self) -> Program {
        lower(&self.graph(1).expect("the cases fit their ops: tested"))
    }

    /// FLOPs and bytes of one call.
    pub fn work(&self) -> Work {
        self.graph(1).expect("the cases fit their ops: tested").work()
    }

    /// Calls in a program that are timed together.
    fn calls(&self) -> usize {
        BEYOND_CACHES.div_ceil((self.work().bytes.0 as usize).max(1)).clamp(*CALLS.start(), *CALLS.end())
    }

    /// A plain product of two matrices, as another library is asked for it; `None` for any other op.
    pub fn product(&self) -> Option<VendorProduct> {
        let Op::MatMul { transpose_a, transpose_b } = self.op else { return None };
        let pair = |shape: &[usize], turned: bool| match *shape {
            [rows, columns] => Some(if turned { (columns, rows) } else { (rows, columns) }),
            _ => None,
        };
        let ((m, k), (_, n)) = (pair(&self.shapes[0], transpose_a)?, pair(&self.shapes[1], transpose_b)?);
        Some(VendorProduct { m, n, k, transpose_a, transpose_b, dtype: self.dtype })
    }

    /// `[4096, 4096] x [4096, 4096]`.
    pub fn shape(&self) -> String {
        let each: Vec<String> = self.shapes.iter().map(|shape| format!("{shape:?}")).collect();
        each.join(" x ")
    }
}

/// A series of calls on operands of their own, queued by one call.
trait Series {
    fn execute(&mut self) -> Result<(), BackendError>;
    fn synchronize(&mut self) -> Result<(), BackendError>;
}

struct OfProgram(Box<dyn Session>);

impl Series for OfProgram {
    fn execute(&mut self) -> Result<(), BackendError> {
        self.0.execute()
    }

    fn synchronize(&mut self) -> Result<(), BackendError> {
        self.0.synchronize()
    }
}

impl Series for ProductBench<'_> {
    fn execute(&mut self) -> Result<(), BackendError> {
        Ok(ProductBench::execute(self)?)
    }

    fn synchronize(&mut self) -> Result<(), BackendError> {
        Ok(ProductBench::synchronize(self)?)
    }
}

/// Calls of one case, ready for the clock.
pub struct KernelBench<'a> {
    series: Box<dyn Series + 'a>,
    calls: usize,
    /// Runs of the series in a sample.
    runs: usize,
    pub cold: bool,
    /// Which kernel a call runs where there are several, and why.
    pub choice: Option<String>,
}

impl<'a> KernelBench<'a> {
    /// Fills the operands with random numbers and runs them until their kernels are loaded.
    ///
    /// # Errors
    /// Where the device cannot run the op or has not the memory.
    pub fn new(backend: &dyn Backend, case: &KernelCase) -> Result<KernelBench<'a>, BackendError> {
        let bytes = case.work().bytes.0 as usize;
        let calls = case.calls();
        let graph = case.graph(calls).expect("the cases fit their ops: tested");
        let mut session = backend.load(lower(&graph), None)?;
        let vocabulary = case.shapes[0].first().copied().unwrap_or(1);
        let most = if matches!(case.op, Op::Embedding) { vocabulary } else { case.shapes[0].last().copied().unwrap_or(1) };
        let mut generator = Generator::new(1);
        for id in graph.ids() {
            let value = graph.value(id);
            if graph.producer(id).is_some() {
                continue;
            }
            match value.dtype {
                DType::I32 => {
                    let numbers: Vec<i32> = (0..value.elements()).map(|_| generator.below(most) as i32).collect();
                    session.upload_i32(id, &numbers)?;
                }
                _ => {
                    let numbers: Vec<f32> = (0..value.elements().min(PERIOD)).map(|_| generator.unit() as f32 - 0.5).collect();
                    let repeated: Vec<f32> = numbers.iter().copied().cycle().take(value.elements()).collect();
                    session.upload_f32(id, &repeated)?;
                }
            }
        }
        let choice = session.reasons().into_iter().flatten().next();
        KernelBench::warm(OfProgram(session), calls, calls * bytes >= BEYOND_CACHES, choice)
    }

    /// The same series by the vendor's library; `None` for what it has not.
    ///
    /// # Errors
    /// Where the library refuses the call or the device has not the memory.
    pub fn of_vendor(library: &'a mut Cublas, case: &KernelCase) -> Option<Result<KernelBench<'a>, BackendError>> {
        let product = case.product()?;
        let bytes = case.work().bytes.0 as usize;
        let calls = case.calls();
        let series = library.product(&product, calls).map_err(BackendError::from);
        Some(series.and_then(|series| KernelBench::warm(series, calls, calls * bytes >= BEYOND_CACHES, None)))
    }

    /// Loads, records, replays; then finds out how many runs make a sample.
    fn warm(series: impl Series + 'a, calls: usize, cold: bool, choice: Option<String>) -> Result<KernelBench<'a>, BackendError> {
        let mut bench = KernelBench { series: Box::new(series), calls, runs: 1, cold, choice };
        for _ in 0..3 {
            bench.series.execute()?;
        }
        bench.series.synchronize()?;
        let call = bench.sample()?;
        bench.runs = (SAMPLE_S / (call * calls as f64).max(1e-9)).ceil().clamp(1.0, 1e5) as usize;
        Ok(bench)
    }

    /// Mean seconds of a call over one sample.
    pub fn sample(&mut self) -> Result<f64, BackendError> {
        let start = Instant::now();
        for _ in 0..self.runs {
            self.series.execute()?;
        }
        self.series.synchronize()?;
        Ok(start.elapsed().as_secs_f64() / (self.runs * self.calls) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;

    #[test]
    fn every_case_is_a_program_with_work() {
        for device in [Device::Cpu, Device::Cuda(0)] {
            for case in kernel_cases(device) {
                let work = case.work();
                assert!(work.bytes.0 > 0, "{case:?}");
                assert!(!case.shape().is_empty());
            }
        }
    }

    #[test]
    fn a_case_of_each_family_is_timed() {
        let mut seen = std::collections::HashSet::new();
        for case in kernel_cases(Device::Cpu) {
            // The smallest of a family are enough to see that it runs.
            if case.work().bytes.0 < 20_000_000 && seen.insert((case.family, case.op.name())) {
                let mut bench = KernelBench::new(&Cpu::new(1), &case).unwrap_or_else(|error| panic!("{case:?}: {error}"));
                assert!(bench.sample().unwrap() > 0.0, "{case:?}");
            }
        }
        assert!(seen.len() >= 6, "{seen:?}");
    }
}
