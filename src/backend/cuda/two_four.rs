//! Linear layers of which two of every four weights are kept, on sparse tensor cores: kernels/gemm_two_four.cu. Weights are packed once, when
//! they are loaded: kept numbers, then where they stand. Pure.
//!
//! Other devices, fp32, and sums that are not a multiple of 16 terms long run as dense products of the same weights.

use super::{
    fp8::runs_on,
    kernel::{In, Kernel, Out},
    machine::{Address, Facts, Launch, TensorMap},
    product::WGMMA_SHARED_BYTES,
};
use crate::{
    graph::{Op, Program, Role, ValueId},
    vocab::{DType, Vocabulary},
};
use half::{bf16, f16};
use std::collections::HashMap;

/// Rows and columns of a tile of the result, and dense elements of K a step.
const TILE: usize = 128;

/// Rows of the weights, transposed, that one warpgroup multiplies, and threads of it.
const ROWS: usize = 64;
const THREADS: usize = 128;

/// Rows of tiles that the order walks down before the next column.
const GROUP: u32 = 12;

/// A weight `[k, n]` of 16-bit numbers that is kept so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct TwoFourWeight {
    pub k: usize,
    pub n: usize,
    pub dtype: DType,
}

/// `struct GemmTwoFourArguments` of kernels/gemm_two_four.cu.
type GemmTwoFour = Kernel<(TensorMap, TensorMap, Out<u8>, In<f32>, In<u32>, [u32; 10])>;

/// Weights that are kept so on a device: all who read them know that two of four are zero.
pub(super) fn weights(program: &Program, facts: &Facts) -> HashMap<ValueId, TwoFourWeight> {
    let mut found = HashMap::new();
    if !runs_on(facts) {
        return found;
    }
    for step in &program.steps {
        let Op::LinearTwoFour { .. } = step.op else { continue };
        let (id, value) = (step.inputs[1], program.value(step.inputs[1]));
        let is_kept = matches!(value.role, Role::Parameter { .. } | Role::State);
        let is_low = matches!(value.dtype, DType::Bf16 | DType::F16);
        let is_output = program.outputs.iter().any(|(_, output)| *output == id);
        let known = |step: &crate::graph::Step| match step.op {
            Op::LinearTwoFour { .. } => step.inputs[1] == id && step.inputs.iter().filter(|one| **one == id).count() == 1,
            _ => false,
        };
        let is_known = program.steps.iter().filter(|step| step.inputs.contains(&id)).all(known);
        let [k, n] = [value.shape[0], value.shape[1]];
        if is_kept && is_low && !is_output && is_known && k > 0 && n > 0 && k.is_multiple_of(16) {
            found.insert(id, TwoFourWeight { k, n, dtype: value.dtype });
        }
    }
    found
}

/// Which two of four numbers are kept: the largest, of equal ones the first; in order.
fn kept(four: [f32; 4]) -> [usize; 2] {
    let mut order = [0, 1, 2, 3];
    order.sort_by(|a, b| four[*b].abs().total_cmp(&four[*a].abs()));
    [order[0].min(order[1]), order[0].max(order[1])]
}

impl TwoFourWeight {
    fn values_bytes(&self) -> usize {
        self.n * self.k
    }

    fn steps(&self) -> usize {
        self.k.div_ceil(TILE)
    }

    /// Kept numbers `[n, k / 2]`, then two words for each thread, step and 64 rows, of whole tiles.
    pub fn bytes(&self) -> usize {
        self.values_bytes() + 8 * THREADS * self.steps() * self.n.next_multiple_of(TILE) / ROWS
    }

    /// Where among the words the places of four number `four` of row `row` stand: the word, and the bit of the lowest.
    fn place(&self, row: usize, four: usize) -> (usize, u32) {
        let (step, in_step) = (four / (TILE / 4), four % (TILE / 4));
        // Of an instruction: 32 of K.
        let (instruction, in_instruction) = (in_step / 8, in_step % 8);
        let (block, row) = (row / ROWS, row % ROWS);
        let lane = row % 8 * 4 + 2 * (instruction % 2) + in_instruction / 4;
        let thread = row / 16 * 32 + lane;
        let word = ((block * self.steps() + step) * THREADS + thread) * 2 + instruction / 2;
        let bit = 16 * usize::from(row % 16 >= 8) + 4 * (in_instruction % 4);
        (word, bit as u32)
    }

    /// As the device reads them. Of four that are not zero, those that are not kept are lost, as on the processor.
    pub fn encode(&self, data: &[f32]) -> Vec<u8> {
        let mut out = vec![0; self.bytes()];
        let (values, words) = out.split_at_mut(self.values_bytes());
        // Places that stand for nothing must be in order, too: 0 and 1.
        words.fill(0x44);
        for column in 0..self.n {
            for four in 0..self.k / 4 {
                let numbers: [f32; 4] = std::array::from_fn(|k| data[(4 * four + k) * self.n + column]);
                let [first, second] = kept(numbers);
                for (at, from) in [first, second].into_iter().enumerate() {
                    let bits = match self.dtype {
                        DType::F16 => f16::from_f32(numbers[from]).to_bits(),
                        _ => bf16::from_f32(numbers[from]).to_bits(),
                    };
                    let to = column * self.k + 2 * (2 * four + at);
                    values[to..to + 2].copy_from_slice(&bits.to_le_bytes());
                }
                let (word, bit) = self.place(column, four);
                let bytes: &mut [u8; 4] = (&mut words[4 * word..4 * word + 4]).try_into().expect("four bytes");
                let places = (first | second << 2) as u32;
                *bytes = (u32::from_le_bytes(*bytes) & !(15 << bit) | places << bit).to_le_bytes();
            }
        }
        out
    }

    /// The weights `[k, n]` again.
    pub fn decode(&self, bytes: &[u8]) -> Vec<f32> {
        let (values, words) = bytes.split_at(self.values_bytes());
        let mut out = vec![0.0; self.k * self.n];
        for column in 0..self.n {
            for four in 0..self.k / 4 {
                let (word, bit) = self.place(column, four);
                let places = u32::from_le_bytes(words[4 * word..4 * word + 4].try_into().expect("four bytes")) >> bit;
                for at in 0..2 {
                    let from = column * self.k + 2 * (2 * four + at);
                    let bits = u16::from_le_bytes([values[from], values[from + 1]]);
                    let number = match self.dtype {
                        DType::F16 => f16::from_bits(bits).to_f32(),
                        _ => bf16::from_bits(bits).to_f32(),
                    };
                    out[(4 * four + (places >> (2 * at) & 3) as usize) * self.n + column] = number;
                }
            }
        }
        out
    }

    fn kernel(&self) -> String {
        format!("gemm_two_four_{}", self.dtype.name())
    }

    fn tiles(&self, m: usize) -> usize {
        self.n.div_ceil(TILE) * m.div_ceil(TILE)
    }

    /// `gemm_two_four_bf16: 64 tiles of 128 x 128 on 132 multiprocessors; ...`.
    pub fn explain(&self, m: usize, facts: &Facts) -> String {
        let (tiles, places) = (self.tiles(m), facts.multiprocessors);
        format!("{}: {tiles} tiles of {TILE} x {TILE} on {places} multiprocessors; two of four weights are kept", self.kernel())
    }

    /// `c = act(x w + bias)` for `m` rows; `w` is where the packed weights lie.
    pub fn launch(&self, m: usize, [x, w, bias, c]: [Address; 4], activation: u32, output: DType, facts: &Facts) -> Launch {
        let map = |base, rows, columns| TensorMap::matrix(base, self.dtype, [rows, columns], [TILE as u32, 64]);
        let output_f32 = u32::from(output == DType::F32);
        let sizes = [m as u32, self.n as u32, self.k as u32, GROUP, activation, output_f32, 0, 0, 0, 0];
        let kernel: GemmTwoFour = Kernel::new(self.kernel(), 384);
        let blocks = self.tiles(m).min(facts.multiprocessors as usize) as u32;
        let places = In::at(w + self.values_bytes() as Address);
        let arguments = (map(w, self.n, self.k / 2), map(x, m, self.k), Out::at(c), In::at(bias), places, sizes);
        kernel.launch([blocks, 1, 1], WGMMA_SHARED_BYTES, arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Cuda,
            tests::{numbers, stored},
        },
        *,
    };
    use crate::{
        backend::{Backend, cpu::Cpu},
        graph::{Activation, Graph, lower},
    };

    /// `[k, n]`, two of every four along K zero, others at every pair of places; a few fours have one number or none.
    fn pruned(k: usize, n: usize, seed: usize) -> Vec<f32> {
        const PAIRS: [[usize; 2]; 6] = [[0, 1], [0, 2], [1, 2], [0, 3], [1, 3], [2, 3]];
        let dense = numbers(k * n, seed);
        let keeps = |at: usize| {
            let (row, column) = (at / n, at % n);
            let pair = PAIRS[(row / 4 * 7 + column * 5 + seed) % 6];
            pair.contains(&(row % 4)) && !(row / 4 + column).is_multiple_of(11)
        };
        dense.iter().enumerate().map(|(at, x)| if keeps(at) { *x } else { 0.0 }).collect()
    }

    #[test]
    fn packed_weights_unpack_to_themselves() {
        for (k, n, dtype) in [(16, 1, DType::Bf16), (144, 65, DType::F16), (272, 200, DType::Bf16)] {
            let one = TwoFourWeight { k, n, dtype };
            let rounded: Vec<f32> = stored(&pruned(k, n, 3), dtype).1.into_iter().map(|x| x as f32).collect();
            assert_eq!(one.decode(&one.encode(&rounded)), rounded);
        }
        // Half of the numbers and an eighth of them in bits: 9/16.
        let one = TwoFourWeight { k: 1024, n: 1024, dtype: DType::Bf16 };
        assert_eq!(16 * one.bytes(), 9 * 2 * 1024 * 1024);
        assert_eq!(kept([0.5, -2.0, 0.5, 1.0]), [1, 3]);
        assert_eq!(kept([0.0, 0.0, 0.0, 3.0]), [0, 3]);
        // No word holds the places of two fours at one bit.
        let mut seen = std::collections::HashSet::new();
        let one = TwoFourWeight { k: 256, n: 128, dtype: DType::Bf16 };
        assert!((0..128).all(|row| (0..64).all(|four| seen.insert(one.place(row, four)))));
        assert_eq!(seen.len() * 4, 8 * (one.bytes() - one.values_bytes()));
    }

    struct Layer {
        program: Program,
        operands: [ValueId; 3],
        y: ValueId,
    }

    fn layer([m, k, n]: [usize; 3], dtype: DType, activation: Activation, is_wide: bool) -> Layer {
        let mut graph = Graph::new();
        let (x, w, b) = (graph.input("x", &[m, k], dtype), graph.state("w", &[k, n], dtype), graph.bias("b", n, k));
        let mut y = graph.apply(Op::Linear { activation }, &[x, w, b]).unwrap();
        if is_wide {
            y = graph.apply(Op::Cast { to: DType::F32 }, &[y]).unwrap();
        }
        graph.mark_output("y", y);
        let mut program = lower(&graph);
        program.steps[0].op = Op::LinearTwoFour { activation };
        Layer { program, operands: [x, w, b], y }
    }

    #[test]
    fn products_with_two_of_four_weights_are_those_of_all_on_ragged_shapes() {
        let Some(cuda) = Cuda::emulated(5) else { return };
        for (shape, dtype, is_wide) in [
            ([128, 128, 128], DType::Bf16, false),
            ([1, 16, 1], DType::F16, false),
            ([65, 144, 131], DType::Bf16, false),
            ([140, 272, 200], DType::F16, false),
            ([70, 304, 72], DType::Bf16, true),
        ] {
            let [m, k, n] = shape;
            let Layer { program, operands: [x, w, b], y } = layer(shape, dtype, Activation::Relu, is_wide);
            let mut session = cuda.load(program, None).unwrap();
            let reasons = session.reasons().concat();
            assert!(reasons.iter().any(|reason| reason.starts_with("gemm_two_four_")), "{reasons:?}");
            let (rows, weights, bias) = (numbers(m * k, 1), pruned(k, n, 2), numbers(n, 9));
            session.upload_f32(x, &rows).unwrap();
            session.upload_f32(w, &weights).unwrap();
            session.upload_f32(b, &bias).unwrap();
            // As single launches, recorded and replayed.
            session.execute().unwrap();
            session.execute().unwrap();
            let mut got = vec![f32::NAN; m * n];
            session.download_f32(y, &mut got).unwrap();
            let (rows, weights) = (stored(&rows, dtype).1, stored(&weights, dtype).1);
            let mut back = vec![f32::NAN; k * n];
            session.download_f32(w, &mut back).unwrap();
            assert!(back.iter().zip(&weights).all(|(a, b)| f64::from(*a) == *b));
            for (at, got) in got.into_iter().enumerate() {
                let terms = (0..k).map(|l| rows[at / n * k + l] * weights[l * n + at % n]);
                let (sum, size) = terms.fold((f64::from(bias[at % n]), 1.0), |(sum, size), x| (sum + x, size + x.abs()));
                let tolerance = match (is_wide, dtype) {
                    (true, _) => 1e-6,
                    (_, DType::F16) => 1.0 / 2048.0,
                    _ => 1.0 / 256.0,
                };
                let error = (f64::from(got) - sum.max(0.0)).abs() / size;
                assert!(error <= tolerance, "{shape:?} {dtype:?}: {got} for {sum} at {at}");
            }
        }
    }

    #[test]
    fn other_devices_and_shapes_run_dense_with_the_same_result() {
        let Some(cuda) = Cuda::emulated(0) else { return };
        // Rows of 20 numbers begin at no multiple of 16 bytes.
        let shape = [5, 20, 8];
        let results = [&cuda as &dyn Backend, &Cpu::new(1)].map(|backend| {
            let Layer { program, operands: [x, w, b], y } = layer(shape, DType::Bf16, Activation::Gelu, false);
            let mut session = backend.load(program, None).unwrap();
            assert!(!session.reasons().concat().iter().any(|reason| reason.contains("two_four")));
            session.upload_f32(x, &numbers(100, 1)).unwrap();
            session.upload_f32(w, &pruned(20, 8, 2)).unwrap();
            session.upload_f32(b, &numbers(8, 9)).unwrap();
            session.execute().unwrap();
            let mut got = vec![f32::NAN; 40];
            session.download_f32(y, &mut got).unwrap();
            got
        });
        assert!(results[0].iter().zip(&results[1]).all(|(a, b)| (a - b).abs() <= 0.02), "{results:?}");
        let Layer { program, .. } = layer([64, 64, 64], DType::Bf16, Activation::None, false);
        let facts = |capability| Facts {
            name: "a device".into(),
            capability,
            multiprocessors: 132,
            shared_bytes_per_block: 232_448,
            memory_bytes: 80 << 30,
        };
        assert_eq!(weights(&program, &facts((9, 0))).len(), 1);
        assert_eq!(weights(&program, &facts((8, 0))).len() + weights(&program, &facts((12, 0))).len(), 0);
    }
}
