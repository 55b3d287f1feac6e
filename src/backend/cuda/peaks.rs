//! What a device reaches with kernels of ours: the roof under which candidates are placed.

use super::{Cuda, CudaError};
use crate::{
    backend::{Backend, BackendError},
    graph::{Graph, Op, Program, Unary, lower},
    stats::Generator,
    vocab::DType,
};

/// Rates of one device, each the best of several runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peaks {
    /// Bytes a second, read and written.
    pub copy_bytes_per_s: f64,
    /// FLOP a second of a square product.
    pub fp32_flops_per_s: f64,
    pub tf32_flops_per_s: f64,
    pub bf16_flops_per_s: f64,
}

/// Runs of which the best counts.
const RUNS: usize = 5;

/// A size is large enough once a run takes this long: launch and tail no longer show.
const LONG_ENOUGH_S: f64 = 2e-3;

/// Largest copied vector, elements, and largest square product: beyond the caches of any device known.
const MOST_COPIED: usize = 1 << 27;
const MOST_SQUARE: usize = 8192;

/// Measures a device; well below a second on the devices that the kernels are for.
pub fn peaks(ordinal: usize) -> Result<Peaks, BackendError> {
    peaks_of(&Cuda::open(ordinal)?)
}

pub(super) fn peaks_of(device: &Cuda) -> Result<Peaks, BackendError> {
    let copy = |elements: usize| -> Result<(f64, f64), BackendError> {
        let seconds = best(device, Op::Unary(Unary::Relu), &[&[elements]], DType::F32, false)?;
        Ok((8.0 * elements as f64, seconds))
    };
    let product = |n: usize, dtype: DType, rounds_to_tf32: bool| -> Result<(f64, f64), BackendError> {
        let multiply = Op::MatMul { transpose_a: false, transpose_b: false };
        let seconds = best(device, multiply, &[&[n, n], &[n, n]], dtype, rounds_to_tf32)?;
        Ok((2.0 * (n as f64).powi(3), seconds))
    };
    Ok(Peaks {
        copy_bytes_per_s: grown(1 << 14, MOST_COPIED, 8, copy)?,
        fp32_flops_per_s: grown(64, MOST_SQUARE, 2, |n| product(n, DType::F32, false))?,
        tf32_flops_per_s: grown(64, MOST_SQUARE, 2, |n| product(n, DType::F32, true))?,
        bf16_flops_per_s: grown(64, MOST_SQUARE, 2, |n| product(n, DType::Bf16, false))?,
    })
}

/// The rate at the first size that takes long enough, or at the largest.
fn grown(
    from: usize,
    most: usize,
    factor: usize,
    run: impl Fn(usize) -> Result<(f64, f64), BackendError>,
) -> Result<f64, BackendError> {
    let mut size = from;
    loop {
        let (work, seconds) = run(size)?;
        if seconds >= LONG_ENOUGH_S || size >= most {
            return Ok(work / seconds);
        }
        size = (size * factor).min(most);
    }
}

/// Seconds of the fastest run of one op on numbers of mixed sign.
fn best(device: &Cuda, op: Op, shapes: &[&[usize]], dtype: DType, rounds_to_tf32: bool) -> Result<f64, BackendError> {
    let mut graph = Graph::new();
    let inputs: Vec<_> = shapes.iter().enumerate().map(|(k, shape)| graph.input(&format!("x{k}"), shape, dtype)).collect();
    let y = graph.apply(op, &inputs).expect("the shapes fit the op");
    graph.mark_output("y", y);
    let mut session = device.load(Program { rounds_to_tf32, ..lower(&graph) }, None)?;
    for (id, shape) in inputs.iter().zip(shapes) {
        // Products of zeros or equal numbers would run at higher clocks than those of anybody's data.
        let mut generator = Generator::new(id.0 as u64);
        let numbers = (0..shape.iter().product()).map(|_| 2.0 * generator.unit() as f32 - 1.0);
        session.upload_f32(*id, &numbers.collect::<Vec<f32>>())?;
    }
    let mut times = Vec::new();
    let mut fastest = f64::INFINITY;
    for run in 0..=RUNS {
        session.execute_timed(&mut times)?;
        let seconds: f64 = times.iter().map(|time| time.total.0).sum();
        // The first run loads the kernel.
        if run > 0 {
            fastest = fastest.min(seconds);
        }
    }
    if fastest > 0.0 {
        Ok(fastest)
    } else {
        Err(BackendError::Cuda(CudaError::Call { call: "cuEventElapsedTime", code: "no time passed".into() }))
    }
}
