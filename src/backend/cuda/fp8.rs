//! Products of 8-bit floats on a device: which products of a program have operands that were rounded to the formats of OFP8, where their
//! codes lie, and the launches of kernels/gemm_fp8.cu and kernels/fp8_pack.cu. Pure.
//!
//! A program says it by `RoundFp8` in front of a product, and of weights that come rounded by `Program::rounded_weights`. A rounded value
//! that products alone read is never written in 16 bits: its memory holds the codes as they lie, then turned.

use super::{
    kernel::{Element, In, Kernel, Out},
    machine::{Address, Facts, Launch, TensorMap},
    product::{self, FILL_CYCLES, LAUNCH_CYCLES, Shape, WGMMA_SHARED_BYTES, rates},
};
use crate::{
    graph::{Op, Program, Role, Unary, ValueId},
    vocab::{DType, Fp8Format, Vocabulary},
};
use half::bf16;
use std::collections::HashMap;

/// Elements of K in a step, and rows and columns of a tile.
const TILE: usize = 128;

/// Share of the tensor cores' rate for operands of one byte, which is twice that for two, that a full device reaches: an estimate from
/// published figures of such kernels (DeepGEMM on H800: 69 to 78 % with sums in fp32), not a measurement. Only ratios between numbers of
/// parts follow from it.
const SHARE: f64 = 0.65;

/// Rows of tiles that the order walks down before the next column.
const GROUP: u32 = 16;

/// Least elements of K in a part.
const LEAST_PART: usize = 512;

/// Where the numbers of an operand were rounded.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Source {
    /// By the step of this number.
    Step(usize),
    /// Before they were loaded.
    Weight(ValueId),
}

/// An operand: a stored matrix `[rows, columns]`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Operand {
    source: Source,
    format: Fp8Format,
    /// Whether it is what the rounding step makes, and not a selection of it.
    is_direct: bool,
    rows: usize,
    columns: usize,
    /// Whether products want `[columns, rows]`: their sums run along rows of what they read.
    is_turned: bool,
}

/// A product of a program that runs on 8 bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fp8Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    operands: [Operand; 2],
}

/// What of a program runs on 8 bits.
#[derive(Debug, Default)]
pub(super) struct EightBits {
    /// By the number of their steps.
    products: HashMap<usize, Fp8Product>,
    /// Rounding steps that write codes alone, with the extents of the matrix and which forms are wanted: as it lies, turned.
    coded: HashMap<usize, ([usize; 2], [bool; 2])>,
    /// Weights `[K, N]` that are kept as codes, turned, with their scale behind.
    pub weights: HashMap<ValueId, [usize; 2]>,
}

/// Where the codes of an operand lie, and the scale that they were rounded by.
#[derive(Clone, Copy, Debug)]
struct Codes {
    natural: Address,
    turned: Address,
    scale: Address,
}

/// Where a product's operands lie beside its 8-bit ones; null for no bias, and for no workspace where K is in one part.
#[derive(Clone, Copy)]
pub(super) struct Rest {
    pub bias: Address,
    pub c: Address,
    pub workspace: Address,
    /// For the codes of A and of B that no step has written, as many bytes as `packed_bytes` says.
    pub packed: [Address; 2],
    /// 0 none, 1 ReLU, 2 GELU.
    pub activation: u32,
}

/// `struct GemmFp8Arguments` of kernels/gemm_fp8.cu.
type GemmFp8 = Kernel<(TensorMap, TensorMap, Out<u8>, In<f32>, In<f32>, In<f32>, [u32; 8])>;

/// `struct PackArguments` of kernels/fp8_pack.cu.
type PackCodes<T> = Kernel<(In<T>, In<f32>, Out<u8>, Out<u8>, Out<f32>, [u32; 2])>;

/// Whether the device has such kernels: their image is for this one capability.
pub(super) fn runs_on(facts: &Facts) -> bool {
    facts.capability == (9, 0) && facts.shared_bytes_per_block >= WGMMA_SHARED_BYTES
}

/// Bytes of a weight `[k, n]` kept as codes, with its scale.
pub(super) const fn weight_bytes([k, n]: [usize; 2]) -> usize {
    k * n + size_of::<f32>()
}

/// The codes of a weight `[k, n]`, turned, and its scale behind them, as they lie on the device.
///
/// `None` where a number is none of e4m3 times the power of two that the largest asks for: then it was not rounded before.
pub(super) fn encode_weight(data: &[f32], [k, n]: [usize; 2]) -> Option<Vec<u8>> {
    const FORMAT: Fp8Format = Fp8Format::E4m3;
    let most = data.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    // A margin, as rounded numbers had one: without, the largest exponents would still do.
    let scale = FORMAT.scale(most, 1).unwrap_or(1.0);
    let mut out = vec![0; weight_bytes([k, n])];
    for (at, x) in data.iter().enumerate() {
        let code = FORMAT.encode(x * scale);
        if FORMAT.decode(code) != x * scale {
            return None;
        }
        out[at % n * k + at / n] = code;
    }
    out[k * n..].copy_from_slice(&scale.to_le_bytes());
    Some(out)
}

/// The numbers of a weight from its codes.
pub(super) fn decode_weight(bytes: &[u8], [k, n]: [usize; 2]) -> Vec<f32> {
    let scale = f32::from_le_bytes(bytes[k * n..].try_into().expect("four bytes behind the codes"));
    (0..k * n).map(|at| Fp8Format::E4m3.decode(bytes[at % n * k + at / n]) / scale).collect()
}

impl EightBits {
    /// Finds them. Nothing where the device has no such kernels.
    pub fn of(program: &Program, facts: &Facts) -> EightBits {
        let mut out = EightBits::default();
        if !runs_on(facts) {
            return out;
        }
        let weights = loaded_weights(program);
        for at in 0..program.steps.len() {
            out.products.extend(product_of(program, &weights, at).map(|product| (at, product)));
        }
        // A weight is in one form everywhere: where one product cannot read codes, none does.
        let is_codes = |id: &ValueId| {
            let reads = program.steps.iter().enumerate().filter(|(_, step)| step.inputs.contains(id));
            reads.into_iter().all(|(at, _)| out.products.get(&at).is_some_and(|p| p.operands[1].source == Source::Weight(*id)))
        };
        out.weights = weights.into_iter().filter(|(id, _)| is_codes(id)).collect();
        let kept = &out.weights;
        out.products.retain(|_, product| match product.operands[1].source {
            Source::Weight(id) => kept.contains_key(&id),
            Source::Step(_) => true,
        });
        for (at, step) in program.steps.iter().enumerate() {
            if let Op::RoundFp8 { .. } = step.op {
                out.coded.extend(out.forms(program, at).map(|forms| (at, forms)));
            }
        }
        out
    }

    pub fn product(&self, step: usize) -> Option<&Fp8Product> {
        self.products.get(&step)
    }

    /// The matrix and the forms that products want of what this step rounds; `None` where anybody else reads it.
    fn forms(&self, program: &Program, at: usize) -> Option<([usize; 2], [bool; 2])> {
        let slot = program.slot_of[program.steps[at].outputs[0].0]?;
        if program.slots[slot].persistent {
            return None;
        }
        let (mut extents, mut forms) = (None, [false; 2]);
        for (later, step) in program.steps.iter().enumerate().skip(at + 1) {
            let reads = step.inputs.iter().filter(|id| program.slot_of[id.0] == Some(slot)).count();
            if reads > 0 {
                let operands = self.products.get(&later)?.operands;
                let mine: Vec<&Operand> = operands.iter().filter(|one| one.source == Source::Step(at) && one.is_direct).collect();
                if mine.len() != reads {
                    return None;
                }
                for one in mine {
                    if extents.is_some_and(|known| known != [one.rows, one.columns]) {
                        return None;
                    }
                    extents = Some([one.rows, one.columns]);
                    forms[usize::from(one.is_turned)] = true;
                }
            }
            if writes(program, later, slot) {
                break;
            }
        }
        extents.map(|extents| (extents, forms))
    }

    /// The launch of a rounding step that writes codes alone; `None` where it must write numbers.
    pub fn rounding<T: Element>(&self, program: &Program, at: usize, address: impl Fn(ValueId) -> Address) -> Option<Launch> {
        let ([rows, columns], [natural, turned]) = *self.coded.get(&at)?;
        let step = &program.steps[at];
        let Op::RoundFp8 { format, .. } = step.op else { return None };
        let y = address(step.outputs[0]);
        let to = [(natural, y), (turned, y + (rows * columns) as Address)].map(|(is_wanted, to)| if is_wanted { to } else { 0 });
        Some(pack::<T>(format, address(step.inputs[0]), address(step.inputs[1]), to, address(step.outputs[1]), [rows, columns]))
    }
}

/// Weights `[K, N]` that come rounded and that no step changes.
fn loaded_weights(program: &Program) -> HashMap<ValueId, [usize; 2]> {
    let weight = |id: &ValueId| {
        let (value, slot) = (program.value(*id), program.slot_of[id.0]?);
        let is_kept = matches!(value.role, Role::Parameter { .. } | Role::State) && program.slots[slot].persistent;
        let is_output = program.outputs.iter().any(|(_, output)| output == id);
        let is_written = (0..program.steps.len()).any(|at| writes(program, at, slot));
        let is_matrix = value.shape.len() == 2 && value.dtype.is_float();
        (is_kept && is_matrix && !is_output && !is_written).then(|| (*id, [value.shape[0], value.shape[1]]))
    };
    program.rounded_weights.iter().filter_map(weight).collect()
}

/// Whether a step writes to a slot.
fn writes(program: &Program, at: usize, slot: usize) -> bool {
    let step = &program.steps[at];
    let changed = step.op.written_inputs(step.inputs.len()).into_iter().map(|k| step.inputs[k]);
    step.outputs.iter().copied().chain(changed).any(|id| program.slot_of[id.0] == Some(slot))
}

/// Where what `id` holds in front of step `at` was rounded, in which format, and whether `id` is that very result: what ReLU's gradient
/// selects of rounded numbers are such numbers and zeros.
fn source(
    program: &Program,
    weights: &HashMap<ValueId, [usize; 2]>,
    at: usize,
    id: ValueId,
) -> Option<(Source, Fp8Format, bool)> {
    if weights.contains_key(&id) {
        return Some((Source::Weight(id), Fp8Format::E4m3, true));
    }
    let (mut before, mut id, mut is_direct) = (at, id, true);
    loop {
        // A reshape is another name for the same memory: who wrote that?
        let slot = program.slot_of[id.0]?;
        before = (0..before).rev().find(|step| writes(program, *step, slot))?;
        let step = &program.steps[before];
        match step.op {
            Op::RoundFp8 { format, .. } if program.slot_of[step.outputs[0].0] == Some(slot) => {
                // Codes are made anew by the scale: it must still be that of the rounding.
                let scale = program.slot_of[step.inputs[1].0]?;
                let is_moved = (before + 1..at).any(|later| writes(program, later, scale));
                return (!is_moved).then_some((Source::Step(before), format, is_direct));
            }
            Op::UnaryGrad(Unary::Relu) => (id, is_direct) = (step.inputs[1], false),
            _ => return None,
        }
    }
}

/// The product of step `at` on 8 bits, if both its operands were rounded and the kernel takes it.
fn product_of(program: &Program, weights: &HashMap<ValueId, [usize; 2]>, at: usize) -> Option<Fp8Product> {
    let step = &program.steps[at];
    let [transpose_a, transpose_b] = match step.op {
        Op::MatMul { transpose_a, transpose_b } => [transpose_a, transpose_b],
        Op::Linear { .. } => [false; 2],
        _ => return None,
    };
    let (a, b) = (program.value(step.inputs[0]), program.value(step.inputs[1]));
    // One product: B is a matrix, and rows of A are rows whichever axes they come from.
    if b.shape.len() != 2 || (transpose_a && a.shape.len() != 2) {
        return None;
    }
    let columns = *a.shape.last()?;
    let extents = [[a.elements() / columns.max(1), columns], [b.shape[0], b.shape[1]]];
    let turns = [transpose_a, !transpose_b];
    let mut operands = [None; 2];
    for (number, operand) in operands.iter_mut().enumerate() {
        let (source, format, is_direct) = source(program, weights, at, step.inputs[number])?;
        let [rows, columns] = extents[number];
        *operand = Some(Operand { source, format, is_direct, rows, columns, is_turned: turns[number] });
    }
    let operands = [operands[0]?, operands[1]?];
    let [m, k] = if transpose_a { [extents[0][1], extents[0][0]] } else { extents[0] };
    let n = extents[1][usize::from(!transpose_b)];
    // The tensor memory engine wants rows at multiples of 16 bytes.
    let has_kernel = operands.iter().any(|one| one.format == Fp8Format::E4m3);
    let is_bf16 = [DType::Bf16, DType::F32].contains(&program.value(step.outputs[0]).dtype);
    let fits = m > 0 && n > 0 && k > 0 && k.is_multiple_of(16);
    (has_kernel && is_bf16 && fits).then_some(Fp8Product { m, n, k, operands })
}

/// The launch that writes the codes of a matrix, as it lies and turned; null for a form that is not wanted.
fn pack<T: Element>(
    format: Fp8Format,
    x: Address,
    scale: Address,
    [natural, turned]: [Address; 2],
    largest: Address,
    [rows, columns]: [usize; 2],
) -> Launch {
    let kernel: PackCodes<T> = Kernel::new(format!("pack_{}_{}", format.name(), T::SUFFIX), 256);
    let blocks = (rows.div_ceil(TILE) * columns.div_ceil(TILE)).max(1) as u32;
    let arguments = (
        In::at(x),
        In::at(scale),
        Out::at(natural),
        Out::at(turned),
        Out::at(largest),
        [rows, columns].map(|extent| extent as u32),
    );
    kernel.launch([blocks, 1, 1], 0, arguments)
}

impl Fp8Product {
    /// Tiles of C.
    fn tiles(&self) -> usize {
        self.m.div_ceil(TILE) * self.n.div_ceil(TILE)
    }

    /// Modelled cycles, as `product` has them for its tiles.
    fn cycles(&self, splits: usize, facts: &Facts) -> f64 {
        let rates = rates(facts.capability);
        let multiprocessors = facts.multiprocessors as f64;
        let busiest = (self.tiles() * splits).div_ceil(facts.multiprocessors as usize) as f64;
        let depth = self.k.div_ceil(splits).next_multiple_of(TILE);
        let arithmetic = (2 * TILE * TILE * depth) as f64 / (2.0 * rates.tensor * SHARE);
        let drawn = (2 * TILE * depth) as f64 / rates.cache_bytes;
        let bytes = (self.k * (self.m + self.n) + 2 * self.m * self.n) as f64;
        let sum = match splits {
            1 => 0.0,
            _ => LAUNCH_CYCLES + (8 * splits * self.m * self.n) as f64 / (multiprocessors * rates.cache_bytes),
        };
        (busiest * (arithmetic.max(drawn) + FILL_CYCLES)).max(bytes / (multiprocessors * rates.memory_bytes)) + sum
    }

    /// Parts of K.
    pub fn splits(&self, facts: &Facts) -> usize {
        let most = (2 * facts.multiprocessors as usize / self.tiles()).min(self.k / LEAST_PART).max(1);
        let parts = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64].into_iter().filter(|splits| *splits <= most);
        parts.min_by(|a, b| self.cycles(*a, facts).total_cmp(&self.cycles(*b, facts))).unwrap_or(1)
    }

    pub fn workspace_bytes(&self, facts: &Facts) -> usize {
        let splits = self.splits(facts);
        if splits > 1 { 4 * splits * self.m * self.n } else { 0 }
    }

    fn kernel(&self) -> String {
        let [a, b] = self.operands.map(|one| one.format.name());
        format!("gemm_fp8_{a}_{b}")
    }

    /// `gemm_fp8_e4m3_e4m3: 64 tiles of 128 x 128 on 132 multiprocessors; ...`.
    pub fn explain(&self, facts: &Facts) -> String {
        let splits = self.splits(facts);
        let parts = if splits > 1 { format!(", K in {splits} parts,") } else { String::new() };
        format!(
            "{}: {} tiles of {TILE} x {TILE}{parts} on {} multiprocessors; both operands are rounded to 8 bits",
            self.kernel(),
            self.tiles() * splits,
            facts.multiprocessors
        )
    }

    /// Elements of the operands whose codes no step has written, which `launches` packs: A's, then B's.
    pub fn packed_bytes(&self, of: &EightBits) -> [usize; 2] {
        self.operands.map(|one| if is_coded(&one, of) { 0 } else { one.rows * one.columns })
    }

    /// The launches of step `at`: codes that are not there yet, the product, and the sum of its parts. `T` is the type in
    /// which rounded numbers lie, `C` that of the result.
    pub fn launches<T: Element, C: Element>(
        &self,
        program: &Program,
        of: &EightBits,
        at: usize,
        facts: &Facts,
        rest: &Rest,
        address: impl Fn(ValueId) -> Address,
    ) -> Vec<Launch> {
        let mut out = Vec::new();
        let mut operands = [(0, 0); 2];
        for (number, one) in self.operands.iter().enumerate() {
            let id = program.steps[at].inputs[number];
            let codes = match one.source {
                Source::Weight(_) => {
                    let turned = address(id);
                    Codes { natural: 0, turned, scale: turned + (one.rows * one.columns) as Address }
                }
                Source::Step(made) => {
                    let scale = address(program.steps[made].inputs[1]);
                    let natural = if is_coded(one, of) { address(id) } else { rest.packed[number] };
                    let turned = if is_coded(one, of) { natural + (one.rows * one.columns) as Address } else { natural };
                    if !is_coded(one, of) {
                        let to = if one.is_turned { [0, turned] } else { [natural, 0] };
                        let (from, extents) = (address(id), [one.rows, one.columns]);
                        out.push(match program.value(id).dtype {
                            DType::Bf16 => pack::<bf16>(one.format, from, scale, to, 0, extents),
                            _ => pack::<f32>(one.format, from, scale, to, 0, extents),
                        });
                    }
                    Codes { natural, turned, scale }
                }
            };
            operands[number] = (if one.is_turned { codes.turned } else { codes.natural }, codes.scale);
        }
        let [(a, scale_a), (b, scale_b)] = operands;
        let map = |base, rows| TensorMap::matrix(base, DType::U8, [rows, self.k], [TILE as u32; 2]);
        let splits = self.splits(facts);
        // Parts are bare sums in fp32: the kernel that adds them up has the epilogue.
        let (c, bias, activation) = if splits > 1 { (rest.workspace, 0, 0) } else { (rest.c, rest.bias, rest.activation) };
        let output_f32 = u32::from(splits > 1 || C::DTYPE == DType::F32);
        let sizes = [self.m as u32, self.n as u32, self.k as u32, splits as u32, GROUP, activation, output_f32, 0];
        let kernel: GemmFp8 = Kernel::new(self.kernel(), 384);
        let blocks = (self.tiles() * splits).min(facts.multiprocessors as usize) as u32;
        let scales = [scale_a, scale_b].map(In::at);
        let [scale_a, scale_b] = scales;
        let arguments = (map(a, self.m), map(b, self.n), Out::at(c), In::at(bias), scale_a, scale_b, sizes);
        out.push(kernel.launch([blocks, 1, 1], WGMMA_SHARED_BYTES, arguments));
        if splits > 1 {
            let operands = product::Operands {
                a: 0,
                b: 0,
                bias: rest.bias,
                c: rest.c,
                workspace: rest.workspace,
                activation: rest.activation,
            };
            out.push(product::sum_of_parts::<T, C>(&self.shape(C::DTYPE), splits, &operands));
        }
        out
    }

    /// As a product of the dense kernels.
    fn shape(&self, output: DType) -> Shape {
        let Fp8Product { m, n, k, .. } = *self;
        let (transpose_a, transpose_b) = (false, true);
        Shape { m, n, k, batch: 1, transpose_a, transpose_b, input: DType::Bf16, output, rounds_to_tf32: false }
    }
}

/// Whether the codes of an operand lie where the operand does.
fn is_coded(one: &Operand, of: &EightBits) -> bool {
    match one.source {
        Source::Weight(_) => true,
        Source::Step(made) => one.is_direct && of.coded.contains_key(&made),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Cuda, emulated::Emulated, plan, product::Choices, tests::numbers},
        *,
    };
    use crate::{
        backend::{Backend, BackendError, cpu::Cpu},
        graph::{Activation, Graph, lower, reference},
    };
    use std::sync::Arc;

    const SCALES: [f32; 3] = [64.0, 128.0, 4096.0];

    /// A layer of `[m, k] x [k, n]` with a bias and ReLU as a training step has it: rounded operands forward, a rounded gradient that
    /// ReLU's selects from, both products of the backward pass.
    struct Layer {
        graph: Graph,
        operands: [ValueId; 4],
        scales: [ValueId; 3],
        results: [ValueId; 3],
    }

    fn layer([m, k, n]: [usize; 3]) -> Layer {
        let mut graph = Graph::new();
        let (x, w) = (graph.input("x", &[m, k], DType::Bf16), graph.input("w", &[k, n], DType::F32));
        let (bias, dy) = (graph.input("bias", &[n], DType::F32), graph.input("dy", &[m, n], DType::Bf16));
        let operands = [x, w, bias, dy];
        let scales = ["sx", "sw", "sy"].map(|name| graph.state(name, &[], DType::F32));
        let mut round = |format, of, scale| {
            let made = graph.apply_all(Op::RoundFp8 { format, to: DType::Bf16 }, &[of, scale]).unwrap();
            graph.mark_output(&format!("largest {of:?}"), made[1]);
            made[0]
        };
        let (x8, w8) = (round(Fp8Format::E4m3, x, scales[0]), round(Fp8Format::E4m3, w, scales[1]));
        let dy8 = round(Fp8Format::E5m2, dy, scales[2]);
        let y = graph.apply(Op::Linear { activation: Activation::Relu }, &[x8, w8, bias]).unwrap();
        let dz = graph.apply(Op::UnaryGrad(Unary::Relu), &[y, dy8]).unwrap();
        let dw = graph.apply(Op::MatMul { transpose_a: true, transpose_b: false }, &[x8, dz]).unwrap();
        let dw = graph.apply(Op::Cast { to: DType::F32 }, &[dw]).unwrap();
        let dx = graph.apply(Op::MatMul { transpose_a: false, transpose_b: true }, &[dz, w8]).unwrap();
        let results = [y, dw, dx];
        ["y", "dw", "dx"].into_iter().zip(results).for_each(|(name, id)| graph.mark_output(name, id));
        Layer { graph, operands, scales, results }
    }

    /// Kernels of every step, in order.
    fn kernels(program: &Program) -> Vec<String> {
        let facts = Emulated::open(0).map(|machine| super::super::machine::Machine::facts(&machine).clone());
        let facts = facts.expect("asked before");
        let plan = plan::plan(program, &facts, &Choices::default(), &plan::Places::nowhere(program)).unwrap();
        plan.steps.into_iter().flatten().map(|launch| launch.kernel).collect()
    }

    fn count(kernels: &[String], start: &str) -> usize {
        kernels.iter().filter(|kernel| kernel.starts_with(start)).count()
    }

    #[test]
    fn products_of_8_bit_numbers_are_those_of_the_rounded_ones_on_ragged_shapes() {
        let mut seen = std::collections::BTreeSet::new();
        // Of the second and the last no product of the backward pass, or none at all, has a sum of a multiple of 16: its operands stay
        // numbers, which the others have packed. The third has several tiles each way and their edges, the fourth a long K in parts.
        for (shape, eight_bit, coded) in
            [([16, 16, 16], 3, 2), ([65, 144, 131], 1, 0), ([144, 208, 272], 3, 2), ([32, 2064, 48], 3, 2), ([33, 136, 64], 1, 0)]
        {
            let Layer { graph, operands, scales, results } = layer(shape);
            let Some(backend) = Cuda::emulated(3) else { return };
            let program = lower(&graph);
            let kernels = kernels(&program);
            assert_eq!(count(&kernels, "gemm_fp8_"), eight_bit, "{shape:?}: {kernels:?}");
            // Where all readers take codes, the rounding step writes nothing else.
            assert_eq!(3 - count(&kernels, "round_"), coded, "{shape:?}: {kernels:?}");
            seen.extend(kernels.into_iter().filter(|kernel| kernel.contains("fp8") || kernel.contains("pack")));
            let mut expected = reference::zeros(&graph);
            let mut session = backend.load(program, None).unwrap();
            for (id, spread) in operands.into_iter().zip([2.0f32, 1.0, 0.5, 0.01]) {
                let data: Vec<f32> = numbers(graph.value(id).elements(), id.0 * 1000).iter().map(|x| x * spread).collect();
                session.upload_f32(id, &data).unwrap();
                let mut stored = vec![f32::NAN; data.len()];
                session.download_f32(id, &mut stored).unwrap();
                expected[id.0] = stored.into_iter().map(f64::from).collect();
            }
            for (id, scale) in scales.into_iter().zip(SCALES) {
                session.upload_f32(id, &[scale]).unwrap();
                expected[id.0] = vec![f64::from(scale)];
            }
            reference::run(&graph.values, &graph.nodes, &mut expected, 0);
            // As single launches, recorded and replayed.
            for _ in 0..2 {
                session.execute().unwrap();
            }
            for (id, tolerance) in results.into_iter().zip([1.0 / 256.0, 1e-5, 1.0 / 256.0]) {
                let mut got = vec![f32::NAN; graph.value(id).elements()];
                session.download_f32(id, &mut got).unwrap();
                let largest = expected[id.0].iter().fold(0.0f64, |most, x| most.max(x.abs()));
                assert!(largest > 0.0);
                for (at, (got, want)) in got.iter().zip(&expected[id.0]).enumerate() {
                    let error = (f64::from(*got) - want).abs() / largest;
                    assert!(error <= tolerance, "{shape:?}, {}: {got} for {want} at {at}", graph.value(id).name);
                }
            }
        }
        let names: Vec<&str> = seen.iter().map(String::as_str).collect();
        let all = [
            "gemm_fp8_e4m3_e4m3",
            "gemm_fp8_e4m3_e5m2",
            "gemm_fp8_e5m2_e4m3",
            "pack_e4m3_bf16",
            "pack_e4m3_f32",
            "pack_e5m2_bf16",
        ];
        assert_eq!(names, all);
    }

    #[test]
    fn the_processor_and_the_device_agree_on_a_layer() {
        let shape = [48, 320, 64];
        let Layer { graph, operands, scales, results } = layer(shape);
        let Some(cuda) = Cuda::emulated(1) else { return };
        let backends: [Arc<dyn Backend>; 2] = [Arc::new(Cpu::new(2)), Arc::new(cuda)];
        let [on_cpu, on_cuda] = backends.map(|backend| {
            let mut session = backend.load(lower(&graph), None).unwrap();
            for id in operands {
                session.upload_f32(id, &numbers(graph.value(id).elements(), id.0)).unwrap();
            }
            scales.into_iter().zip(SCALES).for_each(|(id, scale)| session.upload_f32(id, &[scale]).unwrap());
            session.execute().unwrap();
            let largest = graph.outputs.iter().filter(|(name, _)| name.starts_with("largest")).map(|(_, id)| *id);
            let read = |id: ValueId, session: &mut dyn crate::backend::Session| {
                let mut out = vec![f32::NAN; graph.value(id).elements()];
                session.download_f32(id, &mut out).unwrap();
                out
            };
            largest.chain(results).map(|id| read(id, &mut *session)).collect::<Vec<_>>()
        });
        assert_eq!(on_cpu[..3], on_cuda[..3], "the largest numbers are exact");
        for (cpu, cuda) in on_cpu.iter().zip(&on_cuda).skip(3) {
            let most = cpu.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            // The order of sums may take a bf16 to its neighbour.
            assert!(cpu.iter().zip(cuda).all(|(a, b)| (a - b).abs() <= most / 128.0));
            assert!(most > 0.0);
        }
    }

    /// Two products of one input with rounded weights, as an answering program has them.
    fn answering(k: usize, is_marked: bool) -> (Program, [ValueId; 3], [ValueId; 2]) {
        let mut graph = Graph::new();
        let x = graph.input("x", &[24, k], DType::Bf16);
        let scale = graph.state("scale", &[], DType::F32);
        let x8 = graph.apply(Op::RoundFp8 { format: Fp8Format::E4m3, to: DType::Bf16 }, &[x, scale]).unwrap();
        let weights = ["v", "w"].map(|name| graph.state(name, &[k, 48], DType::Bf16));
        let bias = graph.state("bias", &[48], DType::F32);
        let y = weights.map(|w| graph.apply(Op::Linear { activation: Activation::Gelu }, &[x8, w, bias]).unwrap());
        ["y", "z"].into_iter().zip(y).for_each(|(name, id)| graph.mark_output(name, id));
        let mut program = lower(&graph);
        if is_marked {
            program.rounded_weights = weights.to_vec();
        }
        (program, [x, weights[0], weights[1]], y)
    }

    #[test]
    fn rounded_weights_are_kept_in_a_byte_each_and_answer_as_before() {
        let Some(cuda) = Cuda::emulated(0) else { return };
        let (marked, [x, v, w], y) = answering(144, true);
        assert_eq!(count(&kernels(&marked), "gemm_fp8_"), 2);
        assert_eq!(count(&kernels(&marked), "round_"), 0);
        let (plain, ..) = answering(144, false);
        assert_eq!(count(&kernels(&plain), "gemm_fp8_"), 0, "weights of which nobody said that they are rounded");
        let (odd, ..) = answering(140, true);
        assert_eq!(count(&kernels(&odd), "gemm_fp8_"), 0, "rows of 140 bytes");
        let round = |scale: f32| move |x: &f32| Fp8Format::E4m3.round(x * scale) / scale;
        let data = [numbers(24 * 144, 1), numbers(144 * 48, 2).iter().map(round(64.0)).collect(), {
            let mut all: Vec<f32> = numbers(144 * 48, 3).iter().map(|x| x * 1e-3).map(|x| round(65_536.0)(&x)).collect();
            all[5] = 0.0;
            all
        }];
        let answers = [plain, marked].map(|program| {
            let mut session = cuda.load(program, None).unwrap();
            for (id, data) in [x, v, w].into_iter().zip(&data) {
                session.upload_f32(id, data).unwrap();
                let mut back = vec![f32::NAN; data.len()];
                session.download_f32(id, &mut back).unwrap();
                assert!(id == x || back == *data);
            }
            let scale = session.program().find("scale").unwrap();
            session.upload_f32(scale, &[128.0]).unwrap();
            session.execute().unwrap();
            let read = y.map(|id| {
                let mut out = vec![f32::NAN; 24 * 48];
                session.download_f32(id, &mut out).unwrap();
                out
            });
            (read, session.memory().0)
        });
        let [(plain, plain_bytes), (marked, marked_bytes)] = answers;
        for (a, b) in plain.iter().flatten().zip(marked.iter().flatten()) {
            assert!((a - b).abs() <= 0.01 * a.abs().max(0.05), "{a} {b}");
        }
        // Half of two weights, but for their scales.
        let saved = plain_bytes - marked_bytes;
        assert!((2 * (144 * 48 - 4)..=2 * 144 * 48 + 256).contains(&(saved as usize)), "{saved}");
        // The codes of each differ only in their scale, as what they stand for.
        assert!(encode_weight(&data[1], [144, 48]).unwrap() != encode_weight(&data[2], [144, 48]).unwrap());
    }

    #[test]
    fn a_weight_that_was_not_rounded_is_refused() {
        let Some(cuda) = Cuda::emulated(0) else { return };
        let (program, [_, v, _], _) = answering(144, true);
        let mut session = cuda.load(program, None).unwrap();
        let refused = session.upload_f32(v, &numbers(144 * 48, 2));
        assert!(matches!(refused, Err(BackendError::Unsupported { op: "round_fp8", .. })), "{refused:?}");
    }

    #[test]
    fn other_devices_and_scales_that_move_leave_products_as_they_were() {
        let facts = |capability| Facts {
            name: "a device".into(),
            capability,
            multiprocessors: 132,
            shared_bytes_per_block: 232_448,
            memory_bytes: 80 << 30,
        };
        let Layer { graph, .. } = layer([64, 64, 64]);
        assert_eq!(EightBits::of(&lower(&graph), &facts((9, 0))).products.len(), 3);
        for capability in [(8, 0), (8, 9), (12, 0)] {
            assert_eq!(EightBits::of(&lower(&graph), &facts(capability)).products.len(), 0);
        }
        // A product behind the step that moves the scale of its operand.
        let mut graph = Graph::new();
        let (x, w) = (graph.input("x", &[64, 64], DType::Bf16), graph.input("w", &[64, 64], DType::Bf16));
        let (scale, history) = (graph.state("s", &[], DType::F32), graph.state("h", &[4], DType::F32));
        let format = Fp8Format::E4m3;
        let [x8, w8] = [x, w].map(|id| graph.apply_all(Op::RoundFp8 { format, to: DType::Bf16 }, &[id, scale]).unwrap());
        graph.apply_all(Op::MoveFp8Scale { format, margin: 1 }, &[scale, history, x8[1]]).unwrap();
        let y = graph.apply(Op::MatMul { transpose_a: false, transpose_b: false }, &[x8[0], w8[0]]).unwrap();
        graph.mark_output("y", y);
        assert_eq!(EightBits::of(&lower(&graph), &facts((9, 0))).products.len(), 0);
    }

    #[test]
    fn a_long_sum_over_few_tiles_is_shared_out() {
        let facts = Facts {
            name: "a device".into(),
            capability: (9, 0),
            multiprocessors: 132,
            shared_bytes_per_block: 232_448,
            memory_bytes: 80 << 30,
        };
        let one = |m, n, k| {
            let operand = Operand {
                source: Source::Step(0),
                format: Fp8Format::E4m3,
                is_direct: true,
                rows: 0,
                columns: 0,
                is_turned: false,
            };
            Fp8Product { m, n, k, operands: [operand; 2] }
        };
        assert_eq!(one(4096, 4096, 4096).splits(&facts), 1);
        assert!(one(64, 256, 16_384).splits(&facts) > 4);
        assert_eq!(one(64, 256, 256).splits(&facts), 1);
    }
}
