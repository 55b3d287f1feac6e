//! Which linear layers of a pruned program skip the zeros: those whose products were measured to be faster so, on this device, in the shape
//! and at the batch that the program has. On the processor fp32 has kernels that skip; on a GPU bf16 and fp16 have them, for 2:4 alone.

use super::{InferenceProgram, TrainError, feed::feed, load_weights, tensor_for};
use crate::{
    backend::open,
    data::{DataSet, calibration_rows},
    graph::{Graph, Op, fuse, lower},
    measure::{SparseProduct, measure_sparse, measure_two_four},
    strategy::{Tensor, Weights, watch_inputs},
    vocab::{DType, Device, Pattern},
};
use std::collections::HashMap;

/// How much faster a product must be to be chosen: what is about as fast stays dense, so that two runs choose alike.
const LEAST_GAIN: f64 = 1.02;

/// Chooses for the programs of one candidate; measures each shape once.
pub(super) struct ZeroSkipping<'a> {
    pattern: Pattern,
    device: Device,
    threads: usize,
    /// Shares of zeros in the inputs of each weight, by name, where anybody asks.
    input_zeros: &'a dyn Fn() -> Result<HashMap<String, f64>, TrainError>,
    known_zeros: Option<HashMap<String, f64>>,
    /// By shape and per cent of zeros in the inputs.
    known: HashMap<([usize; 3], u32), SparseProduct>,
    /// Gains by 2:4 on a GPU, by shape and type.
    known_on_gpu: HashMap<([usize; 3], DType), Option<f64>>,
}

impl<'a> ZeroSkipping<'a> {
    pub(super) fn new(
        pattern: Pattern,
        device: Device,
        threads: usize,
        input_zeros: &'a dyn Fn() -> Result<HashMap<String, f64>, TrainError>,
    ) -> Self {
        ZeroSkipping {
            pattern,
            device,
            threads,
            input_zeros,
            known_zeros: None,
            known: HashMap::new(),
            known_on_gpu: HashMap::new(),
        }
    }

    /// What skipping zeros is worth in the product of `[rows, inputs, outputs]` with the weight `name`, and the share of zeros in its inputs
    /// where it matters: one row.
    fn measured(&mut self, name: &str, shape: [usize; 3]) -> Result<(SparseProduct, Option<f64>), TrainError> {
        let zeros = if shape[0] == 1 {
            let known = match self.known_zeros.take() {
                Some(known) => known,
                None => (self.input_zeros)()?,
            };
            self.known_zeros.insert(known).get(name).copied()
        } else {
            None
        };
        let key = (shape, (100.0 * zeros.unwrap_or(0.0)).round() as u32);
        let product = match self.known.get(&key) {
            Some(product) => *product,
            None => measure_sparse(self.threads, shape, zeros.unwrap_or(0.0))?,
        };
        self.known.insert(key, product);
        Ok((product, zeros))
    }

    /// Puts products that skip zeros in the place of dense ones, and a note on what was found.
    pub(super) fn rewrite(&mut self, part: &mut InferenceProgram) -> Result<(), TrainError> {
        if matches!(self.pattern, Pattern::Channel(_)) {
            return Ok(());
        }
        if self.device.is_cuda() {
            return self.rewrite_on_gpu(part);
        }
        let mut found = Vec::new();
        for at in 0..part.program.steps.len() {
            let step = &part.program.steps[at];
            let (Op::Linear { activation }, [x, w, _]) = (&step.op, &step.inputs[..]) else { continue };
            let (activation, x, weight) = (*activation, part.program.value(*x), part.program.value(*w));
            let Some(tensor) = tensor_for(&part.weights, &weight.name).filter(|_| weight.dtype == DType::F32) else { continue };
            let shape = [x.elements() / weight.shape[0], weight.shape[0], weight.shape[1]];
            let (mut product, input_zeros) = self.measured(&tensor.name, shape)?;
            // A rank's part of the inputs may begin within a four.
            product.two_four_gain = product.two_four_gain.filter(|_| has_two_of_four(tensor));
            let filled = tensor.data.iter().filter(|v| **v != 0.0).count();
            let zeros = 1.0 - filled as f64 / tensor.data.len().max(1) as f64;
            let (op, choice) = self.choose(&product, zeros);
            if let Some(skips) = op {
                part.program.steps[at].op = match skips {
                    Skips::TwoFour => Op::LinearTwoFour { activation },
                    Skips::Any => Op::LinearSparse { filled, activation },
                };
            }
            let inputs = match input_zeros {
                Some(share) => {
                    format!(" (of its inputs {:.0} % are zero, which the dense product of one row skips)", 100.0 * share)
                }
                None => String::new(),
            };
            found.push(format!("{} {choice}{inputs}", tensor.name));
        }
        part.notes.push(match found.is_empty() {
            true => "products run dense: there are none that skip zeros in this number format".to_string(),
            false => format!("measured on this processor at this batch: {}", found.join("; ")),
        });
        Ok(())
    }

    /// The same on a GPU, whose sparse tensor cores want two of four.
    fn rewrite_on_gpu(&mut self, part: &mut InferenceProgram) -> Result<(), TrainError> {
        let mut found = Vec::new();
        for at in 0..if self.pattern == Pattern::TwoFour { part.program.steps.len() } else { 0 } {
            let step = &part.program.steps[at];
            let (Op::Linear { activation }, [x, w, _]) = (&step.op, &step.inputs[..]) else { continue };
            let (activation, x, weight) = (*activation, part.program.value(*x), part.program.value(*w));
            let is_low = matches!(weight.dtype, DType::Bf16 | DType::F16) && !part.program.rounded_weights.contains(w);
            let Some(tensor) = tensor_for(&part.weights, &weight.name).filter(|_| is_low) else { continue };
            let shape = [x.elements() / weight.shape[0], weight.shape[0], weight.shape[1]];
            if !has_two_of_four(tensor) {
                continue;
            }
            let gain = match self.known_on_gpu.get(&(shape, weight.dtype)) {
                Some(gain) => *gain,
                None => measure_two_four(self.device, shape, weight.dtype)?,
            };
            self.known_on_gpu.insert((shape, weight.dtype), gain);
            let Some(gain) = gain else { continue };
            let choice = if gain >= LEAST_GAIN { "reads" } else { "runs dense: it would read" };
            found.push(format!("{} {choice} two of four weights, {gain:.2}x as fast as dense", tensor.name));
            if gain >= LEAST_GAIN {
                part.program.steps[at].op = Op::LinearTwoFour { activation };
            }
        }
        part.notes.push(match found.is_empty() {
            true => "products run dense: this GPU has none that skip these zeros in this number format".to_string(),
            false => format!("measured on this GPU at this batch: {}", found.join("; ")),
        });
        Ok(())
    }

    /// The product to take in place of a dense one, and why, for a weight with so large a share of zeros.
    fn choose(&self, product: &SparseProduct, zeros: f64) -> (Option<Skips>, String) {
        let percent = |share: f64| format!("{:.0} %", 100.0 * share);
        let from = match product.break_even {
            Some(share) => format!("skipping zeros wins from {} on", percent(share)),
            None => "skipping zeros never wins".to_string(),
        };
        if self.pattern == Pattern::TwoFour {
            let two_four = product.two_four_gain.unwrap_or(0.0);
            if two_four.max(product.half_gain) < LEAST_GAIN {
                return (
                    None,
                    format!("runs dense (2:4 {two_four:.2}x, any zeros {:.2}x as fast at half of them)", product.half_gain),
                );
            }
            return match two_four >= product.half_gain {
                true => (Some(Skips::TwoFour), format!("reads two of four weights, {two_four:.2}x as fast as dense")),
                false => {
                    (Some(Skips::Any), format!("skips its zeros, {:.2}x as fast as dense at half of them", product.half_gain))
                }
            };
        }
        let has = format!("has {} zeros", percent(zeros));
        match product.break_even.is_some_and(|share| zeros >= share) {
            true => (Some(Skips::Any), format!("{has} and skips them, {from}")),
            false => (None, format!("{has} and runs dense, {from}")),
        }
    }
}

/// Shares of zeros in the inputs of the products of an unfused forward graph, over one batch of training rows.
pub(super) fn input_zeros(
    set: &DataSet,
    forward: &Graph,
    weights: &Weights,
    threads: usize,
) -> Result<HashMap<String, f64>, TrainError> {
    let program = lower(&watch_inputs(&fuse(forward.clone(), false)));
    let x = program.find("x").ok_or(TrainError::NoOutput { name: "x" })?;
    let batch = program.value(x).shape[0];
    let mut session = open(Device::Cpu, threads)?.load(program, None)?;
    load_weights(&mut *session, weights)?;
    let rows: Vec<u32> = calibration_rows(set.train.rows(), batch, 0).into_iter().cycle().take(batch).collect();
    feed(&mut *session, x, &set.train, &rows)?;
    session.execute()?;
    let mut shares = HashMap::new();
    for (name, id) in session.program().outputs.clone() {
        let Some(weight) = name.strip_prefix("into ") else { continue };
        let mut inputs = vec![0.0; session.program().value(id).elements()];
        session.download_f32(id, &mut inputs)?;
        let zeros = inputs.iter().filter(|v| **v == 0.0).count();
        shares.insert(weight.to_string(), zeros as f64 / inputs.len().max(1) as f64);
    }
    Ok(shares)
}

/// Whether at most two in every four consecutive weights along the inputs `[K, N]` are not zero.
fn has_two_of_four(tensor: &Tensor) -> bool {
    let outputs = tensor.shape.last().copied().unwrap_or(1);
    tensor
        .data
        .chunks(4 * outputs)
        .all(|four| (0..outputs).all(|output| four.iter().skip(output).step_by(outputs).filter(|v| **v != 0.0).count() <= 2))
}

enum Skips {
    /// By the places of two in every four.
    TwoFour,
    /// Wherever they are.
    Any,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_begins_within_a_four_is_no_two_of_four() {
        let whole = [1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 3.0, 4.0, 5.0, 6.0, 0.0, 0.0];
        let of = |range: std::ops::Range<usize>| {
            // Two outputs, the second without zeros but where the first has weights.
            let data = whole[range.clone()].iter().flat_map(|v| [*v, f32::from(u8::from(*v == 0.0))]).collect();
            has_two_of_four(&Tensor { name: "w".into(), shape: vec![range.len(), 2], data })
        };
        assert!(of(0..12) && of(4..12) && !of(6..10) && !of(2..10));
    }

    #[test]
    fn zeros_are_skipped_from_the_break_even_on_and_two_of_four_by_the_faster_kernel() {
        let choose = |pattern, product: SparseProduct, zeros| {
            ZeroSkipping::new(pattern, Device::Cpu, 1, &|| Ok(HashMap::new())).choose(&product, zeros)
        };
        let product = SparseProduct { break_even: Some(0.6), half_gain: 0.8, two_four_gain: Some(1.5) };
        let (skips, why) = choose(Pattern::Magnitude(0.6), product, 0.6);
        assert!(matches!(skips, Some(Skips::Any)) && why == "has 60 % zeros and skips them, skipping zeros wins from 60 % on");
        assert!(choose(Pattern::Magnitude(0.6), product, 0.59).0.is_none());
        assert!(choose(Pattern::Magnitude(0.6), SparseProduct { break_even: None, ..product }, 0.99).0.is_none());
        assert!(matches!(choose(Pattern::TwoFour, product, 0.5).0, Some(Skips::TwoFour)));
        let wide = SparseProduct { half_gain: 1.6, ..product };
        assert!(matches!(choose(Pattern::TwoFour, wide, 0.5).0, Some(Skips::Any)));
        let odd = SparseProduct { half_gain: 1.0, two_four_gain: None, ..product };
        assert!(choose(Pattern::TwoFour, odd, 0.5).0.is_none());
    }
}
