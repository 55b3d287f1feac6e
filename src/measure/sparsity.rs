//! From which share of zeros a product that skips them is faster than the dense one: dense and sparse calls in turns, and the crossing by
//! halving. The fastest of several samples counts: what disturbs a call only makes it slower.

use crate::{
    backend::{Backend, BackendError, Session, open},
    graph::{Activation, Graph, Op, ValueId, lower},
    stats::Generator,
    vocab::{DType, Device},
};
use std::time::Instant;

/// Largest share of zeros that is tried: a product of so few weights is one in name only.
const MOST_ZEROS: f64 = 0.98;

/// How often the range in which the crossing lies is halved: from half of the shares to 3 %.
const HALVINGS: usize = 4;

/// Most rows for a thread that are measured; what more of them take is about in proportion.
const MOST_ROWS: usize = 64;

/// Samples of each kernel, in turns.
const SAMPLES: usize = 5;

/// Length of a sample.
const SAMPLE_S: f64 = 0.0005;

/// What skipping zeros is worth in a product of one shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SparseProduct {
    /// Share of zeros from which skipping them is faster than a dense product, to 3 %; none where it is not at 98 %.
    pub break_even: Option<f64>,
    /// Time of the dense product over that of the one that skips zeros, where half of the weights are zero.
    pub half_gain: f64,
    /// The same of the product that knows that two of four are zero; none where the inputs are no multiple of four.
    pub two_four_gain: Option<f64>,
}

/// One product, ready for the clock.
struct Timed {
    session: Box<dyn Session>,
    runs: usize,
}

impl Timed {
    fn new(
        backend: &dyn Backend,
        op: Op,
        [rows, inputs, outputs]: [usize; 3],
        dtype: DType,
        input_zeros: f64,
        w: &[f32],
    ) -> Result<Timed, BackendError> {
        let mut graph = Graph::new();
        let operands: [ValueId; 3] = [
            graph.input("x", &[rows, inputs], dtype),
            graph.state("w", &[inputs, outputs], dtype),
            graph.bias("b", outputs, inputs),
        ];
        let y = graph.apply(op, &operands).expect("the shapes are those of a linear layer");
        graph.mark_output("y", y);
        let mut session = backend.load(lower(&graph), None)?;
        let x = numbers(rows * inputs, input_zeros, 2);
        session.upload_f32(operands[0], &x)?;
        session.upload_f32(operands[1], w)?;
        let mut timed = Timed { session, runs: 1 };
        // Packs the weights, grows the scratch.
        timed.sample()?;
        let call = timed.sample()?;
        timed.runs = (SAMPLE_S / call.max(1e-9)).ceil().clamp(1.0, 1e5) as usize;
        Ok(timed)
    }

    /// Seconds of a call.
    fn sample(&mut self) -> Result<f64, BackendError> {
        let start = Instant::now();
        for _ in 0..self.runs {
            self.session.execute()?;
        }
        self.session.synchronize()?;
        Ok(start.elapsed().as_secs_f64() / self.runs as f64)
    }
}

/// How much faster `other` is than `dense`.
fn gain(dense: &mut Timed, other: &mut Timed) -> Result<f64, BackendError> {
    let mut best = [f64::INFINITY; 2];
    for _ in 0..SAMPLES {
        best = [best[0].min(dense.sample()?), best[1].min(other.sample()?)];
    }
    Ok(best[0] / best[1])
}

/// Numbers of which a share `zeros` is zero, drawn again each time: a candidate's memory is to hold little of what is measured before it.
fn numbers(count: usize, zeros: f64, seed: u64) -> Vec<f32> {
    let mut generator = Generator::new(seed);
    let mut draw = || {
        let (number, place) = (generator.unit() as f32 + 0.5, generator.unit());
        if place < zeros { 0.0 } else { number }
    };
    (0..count).map(|_| draw()).collect()
}

/// Measures a product of `[rows, inputs, outputs]` on `threads` threads of the processor. Of the inputs a share `input_zeros` is zero: the dense
/// product of one row does not read the weights of those.
pub fn measure_sparse(
    threads: usize,
    [rows, inputs, outputs]: [usize; 3],
    input_zeros: f64,
) -> Result<SparseProduct, BackendError> {
    let backend = &*open(Device::Cpu, threads)?;
    let shape = [rows.clamp(1, MOST_ROWS * threads), inputs, outputs];
    let activation = Activation::None;
    let kept = |zeros: f64| numbers(inputs * outputs, zeros, 1);
    let mut dense = Timed::new(backend, Op::Linear { activation }, shape, DType::F32, input_zeros, &kept(0.0))?;
    let mut at = |zeros: f64| -> Result<f64, BackendError> {
        let w = kept(zeros);
        let filled = w.iter().filter(|w| **w != 0.0).count();
        gain(&mut dense, &mut Timed::new(backend, Op::LinearSparse { filled, activation }, shape, DType::F32, input_zeros, &w)?)
    };
    let half_gain = at(0.5)?;
    let (mut slower, mut faster) = if half_gain > 1.0 { (0.0, 0.5) } else { (0.5, MOST_ZEROS) };
    let crosses = half_gain > 1.0 || at(MOST_ZEROS)? > 1.0;
    for _ in 0..if crosses { HALVINGS } else { 0 } {
        let middle = 0.5 * (slower + faster);
        if at(middle)? > 1.0 { faster = middle } else { slower = middle }
    }
    let two_four_gain = match inputs.is_multiple_of(4) {
        true => {
            // The kernel keeps the two largest of four wherever they are.
            let mut two_four = Timed::new(backend, Op::LinearTwoFour { activation }, shape, DType::F32, input_zeros, &kept(0.0))?;
            Some(gain(&mut dense, &mut two_four)?)
        }
        false => None,
    };
    Ok(SparseProduct { break_even: crosses.then_some(faster), half_gain, two_four_gain })
}

/// How much faster a device makes a product of `[rows, inputs, outputs]` in a 16-bit type that knows that two of four weights are zero than the
/// dense one; `None` where it has no kernel that does.
pub fn measure_two_four(device: Device, shape: [usize; 3], dtype: DType) -> Result<Option<f64>, BackendError> {
    let backend = &*open(device, 1)?;
    let [rows, inputs, outputs] = shape;
    if !inputs.is_multiple_of(4) {
        return Ok(None);
    }
    let (shape, activation) = ([rows.max(1), inputs, outputs], Activation::None);
    let mut w = numbers(inputs * outputs, 0.0, 1);
    // Any two of four: the first ones.
    w.iter_mut().enumerate().filter(|(at, _)| at / outputs % 4 >= 2).for_each(|(_, w)| *w = 0.0);
    let mut two_four = Timed::new(backend, Op::LinearTwoFour { activation }, shape, dtype, 0.0, &w)?;
    if !two_four.session.reasons().concat().iter().any(|reason| reason.starts_with("gemm_two_four")) {
        return Ok(None);
    }
    let mut dense = Timed::new(backend, Op::Linear { activation }, shape, dtype, 0.0, &w)?;
    gain(&mut dense, &mut two_four).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_break_even_lies_between_none_and_all_and_agrees_with_the_half() {
        for shape in [[1, 512, 256], [64, 512, 256], [3, 6, 5]] {
            let found = measure_sparse(1, shape, 0.5).unwrap();
            assert!(found.break_even.is_none_or(|share| share > 0.0 && share <= MOST_ZEROS), "{shape:?}: {found:?}");
            assert!(found.half_gain <= 1.0 || found.break_even.is_some_and(|share| share <= 0.5), "{shape:?}: {found:?}");
            assert_eq!(found.two_four_gain.is_some(), shape[1] % 4 == 0);
        }
    }
}
