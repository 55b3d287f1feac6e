//! From a program to launches: which kernels run each step, with which grids and arguments. Pure: the same program, device facts and
//! addresses give the same plan.

use super::{
    convolution::{self, Convolution, Pass},
    fp8::{EightBits, Rest},
    kept::{KeptWeight, kept_weights},
    kernel::{Element, In, Kernel, Out},
    machine::{Address, Facts, Launch},
    product::{self, Choices, Config, Operands, Shape},
};
use crate::{
    backend::BackendError,
    graph::{Activation, Binary, Op, OptimizerStep, Program, Step, Unary, ValueId, Window},
    vocab::{DType, Fp8Format, OptimizerKind, Vocabulary},
};
use half::{bf16, f16};
use std::collections::HashMap;

/// Where everything lies. Addresses are multiples of 256.
pub(super) struct Places {
    pub slots: Vec<Address>,
    pub scratch: Address,
    pub constants: Address,
    pub control: Address,
}

impl Places {
    /// Stand-ins, for a plan that is only asked how much it needs.
    pub fn nowhere(program: &Program) -> Places {
        Places { slots: vec![256; program.slots.len()], scratch: 256, constants: 256, control: 256 }
    }
}

/// What updates read from device memory, so that a recorded run can be replayed: `struct Progress` of kernels/optimizer.cu.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Control {
    pub updates: u64,
    pub rate: f64,
}

impl Control {
    pub const BYTES: usize = 16;
    /// Where the rate lies in it.
    pub const RATE_AT: Address = 8;

    pub fn bytes(&self) -> [u8; Control::BYTES] {
        let mut out = [0; Control::BYTES];
        out[..8].copy_from_slice(&self.updates.to_le_bytes());
        out[8..12].copy_from_slice(&(self.rate as f32).to_le_bytes());
        out
    }
}

pub(super) struct Plan {
    /// Launches of each step of the program.
    pub steps: Vec<Vec<Launch>>,
    /// Products of each step.
    pub products: Vec<Vec<Shape>>,
    /// Of each step, which kernels its convolutions and its products of narrow or sparse operands take and why.
    pub convolutions: Vec<Vec<String>>,
    /// Weights that are kept in another form than the program's.
    pub kept_weights: HashMap<ValueId, KeptWeight>,
    pub scratch_bytes: usize,
    /// Uploaded once: tables of tensors and chunks.
    pub constants: Vec<u8>,
}

/// Extents `[K, N]` of int8 weights that kernels want as `[N, K]`; `None` for any other value.
pub(super) fn transposed_weights(program: &Program, id: ValueId) -> Option<[usize; 2]> {
    let is_product = |op: &Op| matches!(op, Op::LinearInt8 { .. } | Op::LinearInt8Dynamic { .. });
    let is_weight = |step: &Step| is_product(&step.op) && step.inputs[1] == id;
    let shape = &program.value(id).shape;
    program.steps.iter().any(is_weight).then(|| [shape[0], shape[1]])
}

const THREADS: u32 = 256;

/// Most rows of an int4 product that reads its weights in 4 bits, once for every 4 rows: 8 times half a byte is what widened weights
/// take to be read once.
const INT4_ROWS: usize = 32;

/// Elements per chunk of an update: models below a million weights fill the device with small ones.
const SMALL_CHUNK: usize = 1024;
const LARGE_CHUNK: usize = 4096;
const LARGE_MODEL: usize = 1 << 20;

/// Plans a program.
///
/// # Errors
/// `Unsupported` for a combination of op, shape and type that no kernel runs.
pub(super) fn plan(program: &Program, facts: &Facts, choices: &Choices, places: &Places) -> Result<Plan, BackendError> {
    let eight_bits = EightBits::of(program, facts);
    let mut planner = Planner {
        program,
        facts,
        kept_weights: kept_weights(program, facts, &eight_bits.weights),
        eight_bits,
        choices,
        places,
        launches: Vec::new(),
        products: Vec::new(),
        convolutions: Vec::new(),
        scratch_now: 0,
        scratch_most: 0,
        constants: Vec::new(),
    };
    let (mut steps, mut products, mut convolutions) = (Vec::new(), Vec::new(), Vec::new());
    let mut at = 0;
    while at < program.steps.len() {
        // Neighbouring updates of one kind are one launch.
        let together = updates_together(program, at);
        planner.scratch_now = 0;
        if together > 1 {
            planner.update_all(&program.steps[at..at + together]);
        } else {
            planner.step(at)?;
        }
        steps.push(std::mem::take(&mut planner.launches));
        products.push(std::mem::take(&mut planner.products));
        convolutions.push(std::mem::take(&mut planner.convolutions));
        steps.extend((1..together).map(|_| Vec::new()));
        products.extend((1..together).map(|_| Vec::new()));
        convolutions.extend((1..together).map(|_| Vec::new()));
        at += together.max(1);
    }
    if let Some((last, flag)) = program.last_update() {
        let kernel: Kernel<(Out<f32>, In<f32>)> = Kernel::new("advance_updates".into(), 32);
        let flag = In::at(flag.map_or(0, |id| planner.address(id)));
        steps[last].push(kernel.launch([1, 1, 1], 0, (Out::at(places.control), flag)));
    }
    let Planner { scratch_most, constants, kept_weights, .. } = planner;
    Ok(Plan { steps, products, convolutions, kept_weights, scratch_bytes: scratch_most, constants })
}

/// How many steps from `at` on are updates of one rule, guard and copy type: they run as one.
fn updates_together(program: &Program, at: usize) -> usize {
    let kind = |step: &Step| match step.op {
        Op::Update { optimizer, guarded } => {
            let guard: &[ValueId] = if guarded { &step.inputs[step.inputs.len() - 2..] } else { &[] };
            Some((optimizer, guard.to_vec(), copy_of(program, step).map(|id| program.value(id).dtype)))
        }
        _ => None,
    };
    let Some(first) = kind(&program.steps[at]) else { return 1 };
    program.steps[at..].iter().take_while(|step| kind(step).as_ref() == Some(&first)).count()
}

/// The low-precision copy that an update refreshes.
fn copy_of(program: &Program, step: &Step) -> Option<ValueId> {
    let (first_state, tail, optimizer) = match step.op {
        Op::Update { optimizer, guarded } => (2, if guarded { 2 } else { 0 }, optimizer),
        Op::LinearUpdate { optimizer } => (3, 0, optimizer),
        _ => return None,
    };
    let at = first_state + optimizer.state_arrays();
    (step.inputs.len() - tail > at).then(|| step.inputs[at]).filter(|id| program.slot_of[id.0].is_some())
}

fn ceil(a: usize, b: usize) -> u32 {
    a.div_ceil(b).max(1) as u32
}

/// Blocks for `pieces` of work of one thread each, where a block takes more than one turn if there are many.
fn blocks(pieces: usize, facts: &Facts) -> [u32; 3] {
    [ceil(pieces, THREADS as usize).min(16 * facts.multiprocessors), 1, 1]
}

/// `n` numbers of one float type as another.
pub(super) fn cast<From: Element, To: Element>(x: Address, y: Address, n: usize, facts: &Facts) -> Launch {
    let kernel: Kernel<(In<From>, Out<To>, u64)> = Kernel::new(format!("cast_{}_{}", From::SUFFIX, To::SUFFIX), THREADS);
    kernel.launch(blocks(n.div_ceil(16 / size_of::<To>()), facts), 0, (In::at(x), Out::at(y), n as u64))
}

fn activation_code(activation: Activation) -> u32 {
    match activation {
        Activation::None => 0,
        Activation::Relu => 1,
        Activation::Gelu => 2,
    }
}

/// A product with its epilogue. The types in `shape` are set where they are known.
struct Product {
    shape: Shape,
    /// Null for none.
    bias: Address,
    activation: Activation,
}

fn product_of([m, k, n]: [usize; 3], [transpose_a, transpose_b]: [bool; 2]) -> Product {
    let (input, output) = (DType::F32, DType::F32);
    let shape = Shape { m, n, k, batch: 1, transpose_a, transpose_b, input, output, rounds_to_tf32: false };
    Product { shape, bias: 0, activation: Activation::None }
}

/// `struct UpdateArguments` of kernels/optimizer.cu.
type UpdateKernel = Kernel<(In<u8>, In<u8>, In<u8>, In<f32>, In<f32>, [u32; 2], [f32; 11], u32)>;

/// A tensor of an update.
struct Updated {
    gradient: Address,
    weight: Address,
    states: [Address; 2],
    copy: Address,
    elements: usize,
}

struct Planner<'a> {
    program: &'a Program,
    facts: &'a Facts,
    eight_bits: EightBits,
    kept_weights: HashMap<ValueId, KeptWeight>,
    choices: &'a Choices,
    places: &'a Places,
    launches: Vec<Launch>,
    products: Vec<Shape>,
    convolutions: Vec<String>,
    scratch_now: usize,
    scratch_most: usize,
    constants: Vec<u8>,
}

impl Planner<'_> {
    fn address(&self, id: ValueId) -> Address {
        self.places.slots[self.program.slot_of[id.0].expect("lowering gives every operand a slot")]
    }

    fn shape(&self, id: ValueId) -> &[usize] {
        &self.program.value(id).shape
    }

    fn dtype(&self, id: ValueId) -> DType {
        self.program.value(id).dtype
    }

    fn len(&self, id: ValueId) -> usize {
        self.program.value(id).elements()
    }

    /// Memory for this step alone.
    fn scratch(&mut self, bytes: usize) -> Address {
        let at = self.scratch_now;
        self.scratch_now = (at + bytes).next_multiple_of(256);
        self.scratch_most = self.scratch_most.max(self.scratch_now);
        self.places.scratch + at as Address
    }

    fn constant(&mut self, bytes: &[u8]) -> Address {
        let at = self.constants.len();
        self.constants.extend_from_slice(bytes);
        self.constants.resize(self.constants.len().next_multiple_of(256), 0);
        self.places.constants + at as Address
    }

    fn push(&mut self, launch: Launch) {
        self.launches.push(launch);
    }

    /// Blocks for `pieces` of work of one thread each, where a block takes more than one turn if there are many.
    fn blocks(&self, pieces: usize) -> [u32; 3] {
        blocks(pieces, self.facts)
    }

    fn step(&mut self, at: usize) -> Result<(), BackendError> {
        let step = &self.program.steps[at];
        if self.in_eight_bits(at) || self.with_two_of_four(step) {
            return Ok(());
        }
        let storage = step.inputs.iter().map(|id| self.dtype(*id)).find(|t| t.is_float());
        // A fused update's storage type is that of its activations. A sum over ranks, in place as well, may have one operand only.
        let storage = if step.op.is_in_place() { step.inputs.get(1).map(|id| self.dtype(*id)) } else { storage };
        match storage {
            Some(DType::Bf16) => self.typed::<bf16>(step),
            Some(DType::F16) => self.typed::<f16>(step),
            _ => self.typed::<f32>(step),
        }
    }

    fn unsupported(&self, step: &Step, reason: &'static str) -> BackendError {
        BackendError::Unsupported { op: step.op.name(), shape: self.program.step_shape(step), device: "cuda", reason }
    }

    fn typed<T: Element>(&mut self, step: &Step) -> Result<(), BackendError> {
        let inputs = &step.inputs;
        let at = |k: usize| self.address(inputs[k]);
        let out = |k: usize| self.address(step.outputs[k]);
        let n = step.outputs.first().map_or(0, |id| self.len(*id));
        let grid = self.blocks(n.div_ceil(16 / size_of::<T>()));
        match &step.op {
            Op::Unary(f) => {
                let kernel: Kernel<(In<T>, Out<T>, u64)> = Kernel::new(format!("{}_{}", unary(*f), T::SUFFIX), THREADS);
                let launch = kernel.launch(grid, 0, (In::at(at(0)), Out::at(out(0)), n as u64));
                self.push(launch);
            }
            Op::UnaryGrad(_) | Op::Binary(_) => {
                let name = match &step.op {
                    Op::UnaryGrad(f) => format!("{}_grad", unary(*f)),
                    Op::Binary(Binary::Add) => "add".to_string(),
                    Op::Binary(Binary::Sub) => "sub".to_string(),
                    _ => "mul".to_string(),
                };
                let kernel: Kernel<(In<T>, In<T>, Out<T>, u64)> = Kernel::new(format!("{name}_{}", T::SUFFIX), THREADS);
                let launch = kernel.launch(grid, 0, (In::at(at(0)), In::at(at(1)), Out::at(out(0)), n as u64));
                self.push(launch);
            }
            Op::AddBias => {
                if self.dtype(inputs[1]) != DType::F32 {
                    return Err(self.unsupported(step, "its bias is not in fp32"));
                }
                type Bias<T> = Kernel<(In<T>, In<f32>, Out<T>, u64, u32, u32)>;
                let kernel: Bias<T> = Kernel::new(format!("add_bias_{}", T::SUFFIX), THREADS);
                let columns = self.len(inputs[1]) as u32;
                let launch = kernel.launch(grid, 0, (In::at(at(0)), In::at(at(1)), Out::at(out(0)), n as u64, columns, 0));
                self.push(launch);
            }
            Op::Scale { .. } | Op::MulScalar => {
                let (factor, constant) = match &step.op {
                    Op::Scale { factor } => (In::NULL, *factor as f32),
                    _ => (In::at(at(1)), 0.0),
                };
                type Scale<T> = Kernel<(In<T>, In<f32>, Out<T>, u64, f32, u32)>;
                let kernel: Scale<T> = Kernel::new(format!("scale_{}", T::SUFFIX), THREADS);
                let launch = kernel.launch(grid, 0, (In::at(at(0)), factor, Out::at(out(0)), n as u64, constant, 0));
                self.push(launch);
            }
            Op::RepeatFirst { .. } | Op::MeanGrad { .. } => {
                let (extent, inner, factor) = match &step.op {
                    Op::MeanGrad { axis, extent } => {
                        (*extent, self.shape(step.outputs[0])[axis + 1..].iter().product(), 1.0 / *extent as f32)
                    }
                    _ => (self.shape(step.outputs[0])[0], self.len(inputs[0]), 1.0),
                };
                type Repeat<T> = Kernel<(In<T>, Out<T>, u64, u32, u32, f32, u32)>;
                let kernel: Repeat<T> = Kernel::new(format!("repeat_{}", T::SUFFIX), THREADS);
                let arguments = (In::at(at(0)), Out::at(out(0)), n as u64, extent as u32, inner as u32, factor, 0);
                let launch = kernel.launch(grid, 0, arguments);
                self.push(launch);
            }
            Op::Cast { to } => {
                let (x, y) = (at(0), out(0));
                match to {
                    DType::F32 => self.cast::<T, f32>(x, y, n),
                    DType::Bf16 => self.cast::<T, bf16>(x, y, n),
                    _ => self.cast::<T, f16>(x, y, n),
                }
            }
            Op::MatMul { transpose_a, transpose_b } => {
                let (a, b) = (self.shape(inputs[0]).to_vec(), self.shape(inputs[1]).to_vec());
                let pair = |s: &[usize], t: bool| {
                    let (rows, columns) = (s[s.len() - 2], s[s.len() - 1]);
                    if t { (columns, rows) } else { (rows, columns) }
                };
                let ((m, k), (_, n)) = (pair(&a, *transpose_a), pair(&b, *transpose_b));
                let leading: usize = a[..a.len() - 2].iter().product();
                let (batch, m) = if b.len() == 2 { (1, leading * m) } else { (leading, m) };
                let mut product = product_of([m, k, n], [*transpose_a, *transpose_b]);
                product.shape.batch = batch;
                self.product_into::<T>(&product, at(0), at(1), step.outputs[0]);
            }
            Op::Linear { activation } | Op::LinearTwoFour { activation } | Op::LinearSparse { activation, .. } => {
                let (k, n) = (self.shape(inputs[1])[0], self.shape(inputs[1])[1]);
                let bias = inputs.get(2).map_or(0, |id| self.address(*id));
                let m = self.len(inputs[0]) / k;
                let product = Product { bias, activation: *activation, ..product_of([m, k, n], [false; 2]) };
                self.product_into::<T>(&product, at(0), at(1), step.outputs[0]);
            }
            Op::LinearUpdate { optimizer } => self.linear_update::<T>(step, optimizer),
            Op::Update { .. } => self.update_all(std::slice::from_ref(step)),
            Op::LinearInt8 { input_scale, activation } => self.linear_int8(step, Some(*input_scale), *activation),
            Op::LinearInt8Dynamic { activation } => self.linear_int8(step, None, *activation),
            Op::LinearInt4 { group, activation } => self.linear_int4(step, *group, *activation),
            Op::ChannelScale => {
                let kernel: Kernel<(In<f32>, Out<f32>, u32, u32)> = Kernel::new("channel_scale_f32".into(), 1024);
                let rows = self.len(inputs[0]) / n;
                let arguments = (In::at(at(0)), Out::at(out(0)), rows as u32, n as u32);
                let launch = kernel.launch([ceil(n, 32), 1, 1], 0, arguments);
                self.push(launch);
            }
            Op::FakeQuantize | Op::FakeQuantizeGrad => {
                type Fake = Kernel<(In<f32>, In<f32>, In<f32>, Out<f32>, u64, u32, u32)>;
                let is_gradient = step.op == Op::FakeQuantizeGrad;
                let name = if is_gradient { "fake_quantize_grad_f32" } else { "fake_quantize_f32" };
                let kernel: Fake = Kernel::new(name.into(), THREADS);
                let (columns, dy) = (self.len(inputs[1]) as u32, if is_gradient { In::at(at(2)) } else { In::NULL });
                let arguments = (In::at(at(0)), In::at(at(1)), dy, Out::at(out(0)), n as u64, columns, 0);
                let launch = kernel.launch(grid, 0, arguments);
                self.push(launch);
            }
            Op::Conv2d { window, activation } => {
                let bias = inputs.get(2).map_or(0, |id| self.address(*id));
                let like = four(self.shape(step.outputs[0]));
                let to = out(0);
                self.conv::<T>(window, *activation, [inputs[0], inputs[1]], bias, like, to);
            }
            Op::Conv2dGradInput { window, input } => {
                let (dy, w) = (inputs[0], inputs[1]);
                let to = out(0);
                self.conv_grad_input::<T>(window, *input, [dy, w], to);
            }
            Op::Conv2dGradWeight { window } => {
                let like = four(self.shape(inputs[1]));
                let dy = at(1);
                self.conv_grad_weight::<T>(window, inputs[0], dy, like, step.outputs[0]);
            }
            Op::Conv2dInt8 { window, input_scale, activation } => self.conv_int8(step, window, Some(*input_scale), *activation),
            Op::Conv2dInt8Dynamic { window, activation } => self.conv_int8(step, window, None, *activation),
            Op::DequantizeInt4 { group, .. } => {
                let (weight, to) = ([at(0), at(1)], out(0));
                let columns = self.shape(inputs[0])[1];
                self.dequantize_int4(weight, [n / columns, columns], *group, to);
            }
            Op::ConvReluPool { window } => self.conv_relu_pool::<T>(step, window),
            Op::ConvReluPoolGrad { window } => self.conv_relu_pool_grad::<T>(step, window)?,
            Op::ConvReluUnpool { input } => {
                let [b, h, w, c] = input.map(|extent| extent as u32);
                let pieces = input[0] * input[1].div_ceil(2) * input[2].div_ceil(2) * pieces_of::<T>(input[3]);
                type Unpool<T> = Kernel<(In<T>, In<u8>, Out<T>, [u32; 4])>;
                let kernel: Unpool<T> = Kernel::new(format!("relu_unpool_{}", T::SUFFIX), THREADS);
                let arguments = (In::at(at(0)), In::at(at(1)), Out::at(out(0)), [b, h, w, c]);
                let launch = kernel.launch(self.blocks(pieces), 0, arguments);
                self.push(launch);
            }
            Op::MaxPool2d { window } => {
                type MaxPool<T> = Kernel<(In<T>, Out<T>, Out<u8>, [u32; 10])>;
                let kernel: MaxPool<T> = Kernel::new(format!("max_pool_{}", T::SUFFIX), THREADS);
                let (x, y) = (self.shape(inputs[0]).to_vec(), self.shape(step.outputs[0]).to_vec());
                let pieces = y[0] * y[1] * y[2] * pieces_of::<T>(y[3]);
                let arguments = (In::at(at(0)), Out::at(out(0)), Out::at(out(1)), plane(window, &x, &y));
                let launch = kernel.launch(self.blocks(pieces), 0, arguments);
                self.push(launch);
            }
            Op::MaxPool2dGrad { window, input } => {
                type MaxPoolGrad<T> = Kernel<(In<T>, In<u8>, Out<T>, [u32; 10])>;
                let kernel: MaxPoolGrad<T> = Kernel::new(format!("max_pool_grad_{}", T::SUFFIX), THREADS);
                let y = self.shape(inputs[0]).to_vec();
                let is_plain = window.size == [2, 2] && window.stride == [2, 2];
                let places = if is_plain { input[1].div_ceil(2) * input[2].div_ceil(2) } else { input[1] * input[2] };
                let pieces = input[0] * places * pieces_of::<T>(input[3]);
                let arguments = (In::at(at(0)), In::at(at(1)), Out::at(out(0)), plane(window, input, &y));
                let launch = kernel.launch(self.blocks(pieces), 0, arguments);
                self.push(launch);
            }
            Op::Permute { axes } => {
                let shape = self.shape(inputs[0]).to_vec();
                let launch = permute::<T>(&shape, axes, at(0), out(0), |pieces| self.blocks(pieces))
                    .ok_or_else(|| self.unsupported(step, "more than six axes"))?;
                self.push(launch);
            }
            Op::Embedding => {
                let (rows, columns) = (self.shape(inputs[0])[0], self.shape(inputs[0])[1]);
                let pieces = n / columns * pieces_of::<T>(columns);
                type Gather<T> = Kernel<(In<T>, In<i32>, Out<T>, u64, u32, u32)>;
                let kernel: Gather<T> = Kernel::new(format!("embedding_{}", T::SUFFIX), THREADS);
                let picked = (n / columns) as u64;
                let arguments = (In::at(at(0)), In::at(at(1)), Out::at(out(0)), picked, columns as u32, rows as u32);
                let launch = kernel.launch([ceil(pieces, THREADS as usize), 1, 1], 0, arguments);
                self.push(launch);
            }
            Op::Warp => {
                let shape = four(self.shape(inputs[0])).map(|extent| extent as u32);
                let kernel: Kernel<(In<f32>, In<f32>, Out<f32>, [u32; 4])> = Kernel::new("rotate_scale_f32".into(), THREADS);
                let [images, height, width, channels] = shape;
                let blocks = ceil((height * width * channels) as usize, THREADS as usize);
                let launch =
                    kernel.launch([blocks, images.min(65_535), 1], 0, (In::at(at(0)), In::at(at(1)), Out::at(out(0)), shape));
                self.push(launch);
            }
            Op::EmbeddingGrad { vocabulary } => self.embedding_grad::<T>(step, *vocabulary),
            Op::SumLeading | Op::SumFirst | Op::Mean { .. } => {
                let shape = self.shape(inputs[0]).to_vec();
                let ([outer, extent, inner], factor) = match &step.op {
                    Op::Mean { axis } => {
                        let around = [shape[..*axis].iter().product(), shape[*axis], shape[axis + 1..].iter().product()];
                        (around, 1.0 / shape[*axis] as f32)
                    }
                    Op::SumFirst => ([1, shape[0], n], 1.0),
                    _ => ([1, self.len(inputs[0]) / n, n], 1.0),
                };
                self.sum_middle::<T>(inputs[0], step.outputs[0], [outer, extent, inner], factor);
            }
            Op::Softmax | Op::SoftmaxGrad | Op::LayerNorm { .. } | Op::LayerNormGrad | Op::CrossEntropy { .. } => {
                self.rows::<T>(step);
            }
            Op::AllFinite => self.all_finite(step),
            Op::AdjustLossScale { growth_interval, largest } => {
                type AdjustLossScale = Kernel<(Out<f32>, Out<f32>, Out<f32>, In<f32>, f32, f32)>;
                let kernel: AdjustLossScale = Kernel::new("adjust_loss_scale".into(), 32);
                let numbers = (*growth_interval as f32, *largest as f32);
                let arguments = (Out::at(at(0)), Out::at(at(1)), Out::at(at(2)), In::at(at(3)), numbers.0, numbers.1);
                self.push(kernel.launch([1, 1, 1], 0, arguments));
            }
            Op::RoundFp8 { format, to } => match to {
                DType::Bf16 => self.round_fp8::<T, bf16>(step, *format),
                _ => self.round_fp8::<T, f32>(step, *format),
            },
            Op::MoveFp8Scale { format, margin } => self.move_fp8_scale(step, *format, *margin),
            // The session does it.
            Op::Exchange(_) => {}
            Op::Reshape { .. } | Op::Replicate | Op::RoundGradient { .. } => {
                unreachable!("lowering gives both sides of a reshape one memory and drops it")
            }
        }
        Ok(())
    }

    fn cast<From: Element, To: Element>(&mut self, x: Address, y: Address, n: usize) {
        self.push(cast::<From, To>(x, y, n, self.facts));
    }

    /// The tile's name and rows: twice the rows a block where that still fills the device.
    fn is_tall(&self, rows: usize, columns: usize) -> (&'static str, usize) {
        let blocks = rows.div_ceil(128) * columns.div_ceil(64);
        if blocks >= 2 * self.facts.multiprocessors as usize { ("_tall", 128) } else { ("", 64) }
    }

    /// How the names of convolutions end on this storage type.
    fn product_suffix<T: Element>(&self) -> &'static str {
        if self.program.rounds_to_tf32 && T::DTYPE == DType::F32 { "tf32" } else { T::SUFFIX }
    }

    fn conv<T: Element>(
        &mut self,
        window: &Window,
        activation: Activation,
        [x, w]: [ValueId; 2],
        bias: Address,
        like: [usize; 4],
        to: Address,
    ) {
        let fields = conv_fields(window, self.shape(x), &like, activation);
        let (shape, [x, w]) = (four(self.shape(x)), [x, w].map(|id| self.address(id)));
        let (pass, activation) = (Pass::Forward, activation_code(activation));
        if self.by_warpgroups::<T>(
            pass,
            window,
            [shape, like],
            convolution::Operands { image: x, other: w, bias, to, activation },
        ) {
            return;
        }
        let rows = like[0] * like[1] * like[2];
        let (tall, block_rows) = self.is_tall(rows, like[3]);
        let kernel: Kernel<(In<T>, In<T>, In<f32>, Out<T>, [u32; 14])> =
            Kernel::new(format!("conv2d{tall}_{}", self.product_suffix::<T>()), 128);
        let grid = [ceil(rows, block_rows) * ceil(like[3], 64), 1, 1];
        self.push(kernel.launch(grid, 0, (In::at(x), In::at(w), In::at(bias), Out::at(to), fields)));
    }

    fn conv_grad_input<T: Element>(&mut self, window: &Window, input: [usize; 4], [dy, w]: [ValueId; 2], to: Address) {
        let like = four(self.shape(dy));
        let fields = conv_fields(window, &input, &like, Activation::None);
        let [dy, w] = [dy, w].map(|id| self.address(id));
        let at = convolution::Operands { image: dy, other: w, bias: 0, to, activation: 0 };
        if self.by_warpgroups::<T>(Pass::GradInput, window, [input, like], at) {
            return;
        }
        // One product for each residue of the stride.
        let residues = window.stride[0] * window.stride[1];
        let [rows, columns] = [input[1].div_ceil(window.stride[0]), input[2].div_ceil(window.stride[1])];
        let tall = self.is_tall(input[0] * rows * columns, input[3]);
        let kernel: Kernel<(In<T>, In<T>, Out<T>, [u32; 14])> =
            Kernel::new(format!("conv2d_grad_input{}_{}", tall.0, self.product_suffix::<T>()), 128);
        let grid = [ceil(input[0] * rows * columns, tall.1) * ceil(input[3], 64), 1, residues as u32];
        self.push(kernel.launch(grid, 0, (In::at(dy), In::at(w), Out::at(to), fields)));
    }

    /// Launches a convolution or its gradient by the input on warpgroups, where that is the faster way.
    fn by_warpgroups<T: Element>(
        &mut self,
        pass: Pass,
        window: &Window,
        [x, y]: [[usize; 4]; 2],
        at: convolution::Operands,
    ) -> bool {
        let one = self.convolution::<T>(pass, window, [x, y]);
        let Some(config) = one.pick(self.facts) else { return false };
        self.push(one.launch(&config, self.facts, &at));
        true
    }

    /// A convolution whose kernel is to be chosen; the choice is explained in the plan.
    fn convolution<'w, T: Element>(&mut self, pass: Pass, window: &'w Window, [x, y]: [[usize; 4]; 2]) -> Convolution<'w> {
        let rounds_to_tf32 = self.program.rounds_to_tf32;
        let one = Convolution { pass, window, x, y, dtype: T::DTYPE, rounds_to_tf32 };
        self.convolutions.extend(one.explain(self.facts));
        one
    }

    /// Adds partial sums up into a value of any float type.
    fn reduce_splits(&mut self, partial: Address, to: ValueId, elements: usize, splits: usize) {
        match self.dtype(to) {
            DType::F32 => self.reduce_splits_as::<f32>(partial, to, elements, splits),
            DType::Bf16 => self.reduce_splits_as::<bf16>(partial, to, elements, splits),
            _ => self.reduce_splits_as::<f16>(partial, to, elements, splits),
        }
    }

    fn reduce_splits_as<T: Element>(&mut self, partial: Address, to: ValueId, elements: usize, splits: usize) {
        let kernel: Kernel<(In<f32>, Out<T>, u64, u32, u32)> = Kernel::new(format!("conv2d_reduce_{}", T::SUFFIX), THREADS);
        let arguments = (In::at(partial), Out::at(self.address(to)), elements as u64, splits as u32, 0);
        self.push(kernel.launch(self.blocks(elements), 0, arguments));
    }

    /// x as i8 in scratch, by a step of this size, or by the one of which 127 are the number at `largest`, where that is no null pointer.
    fn quantise(&mut self, x: ValueId, largest: Address, scale: f32) -> Address {
        let n = self.len(x);
        let to = self.scratch(n);
        let kernel: Kernel<(In<f32>, In<f32>, Out<i8>, u64, f32, u32)> = Kernel::new("quantize_i8".into(), THREADS);
        let arguments = (In::at(self.address(x)), In::at(largest), Out::at(to), n as u64, scale, 0);
        self.push(kernel.launch(self.blocks(n.div_ceil(4)), 0, arguments));
        to
    }

    /// The largest magnitude of x, in scratch.
    fn largest(&mut self, x: ValueId) -> Address {
        let (n, to) = (self.len(x), self.scratch(4));
        self.clear(to);
        let kernel: Kernel<(In<f32>, Out<f32>, u64)> = Kernel::new("largest_f32".into(), THREADS);
        self.push(kernel.launch(self.blocks(n.div_ceil(4)), 0, (In::at(self.address(x)), Out::at(to), n as u64)));
        to
    }

    /// Without an input scale all of x is quantised by its largest magnitude, which stays on the device.
    fn conv_int8(&mut self, step: &Step, window: &Window, input_scale: Option<f64>, activation: Activation) {
        let [x, w, scales, bias] = [step.inputs[0], step.inputs[1], step.inputs[2], step.inputs[3]];
        let (largest, scale) = match input_scale {
            Some(scale) => (0, scale as f32),
            None => (self.largest(x), 1.0),
        };
        let quantised = self.quantise(x, largest, scale);
        let fields = conv_fields(window, self.shape(x), self.shape(step.outputs[0]), activation);
        let channels = self.shape(w)[3];
        let pixels = self.len(step.outputs[0]) / channels;
        type ConvInt8 = Kernel<(In<i8>, In<i8>, In<f32>, In<f32>, In<f32>, Out<f32>, [u32; 14], f32, u32)>;
        let kernel: ConvInt8 = Kernel::new("conv2d_i8".into(), 128);
        let [w, scales, bias] = [w, scales, bias].map(|id| self.address(id));
        let (x, w, scales, bias) = (In::at(quantised), In::at(w), In::at(scales), In::at(bias));
        let to = Out::at(self.address(step.outputs[0]));
        let grid = [ceil(pixels, 64) * ceil(channels, 64), 1, 1];
        self.push(kernel.launch(grid, 0, (x, w, scales, bias, In::at(largest), to, fields, scale, 0)));
    }

    /// Without an input scale each row is quantised by its own: the product then makes bare sums times the columns' scales, and a pass over
    /// the result multiplies rows and has the bias and the activation.
    fn linear_int8(&mut self, step: &Step, input_scale: Option<f64>, activation: Activation) {
        let [x, w, scales, bias] = [step.inputs[0], step.inputs[1], step.inputs[2], step.inputs[3]];
        let (k, n) = (self.shape(w)[0], self.shape(w)[1]);
        let m = self.len(x) / k;
        let (quantised, of_rows) = match input_scale {
            Some(scale) => (self.quantise(x, 0, scale as f32), None),
            None => {
                let (to, steps) = (self.scratch(m * k), self.scratch(4 * m));
                let kernel: Kernel<(In<f32>, Out<i8>, Out<f32>, u32, u32)> = Kernel::new("quantize_rows_i8".into(), THREADS);
                let arguments = (In::at(self.address(x)), Out::at(to), Out::at(steps), m as u32, k as u32);
                self.push(kernel.launch(self.blocks(32 * m), 0, arguments));
                (to, Some(steps))
            }
        };
        let scale = self.constant(&(input_scale.unwrap_or(1.0) as f32).to_le_bytes());
        let shape = Shape { input: DType::I8, ..product_of([m, k, n], [false, true]).shape };
        let config = self.pick(&shape);
        let [w, scales, bias] = [w, scales, bias].map(|id| self.address(id));
        let c = self.address(step.outputs[0]);
        let (own_bias, own_activation) = if of_rows.is_some() { (0, 0) } else { (bias, activation_code(activation)) };
        let operands = Operands { a: quantised, b: w, bias: own_bias, c, workspace: 0, activation: own_activation };
        self.launches.extend(product::int8_launches(&shape, &config, &operands, [scale, scales]));
        if let Some(steps) = of_rows {
            type ScaleRows = Kernel<(In<f32>, In<f32>, Out<f32>, u32, u32, u32, u32)>;
            let kernel: ScaleRows = Kernel::new("scale_rows_f32".into(), THREADS);
            let arguments = (In::at(steps), In::at(bias), Out::at(c), m as u32, n as u32, activation_code(activation), 0);
            self.push(kernel.launch(self.blocks((m * n).div_ceil(4)), 0, arguments));
        }
    }

    /// Few rows read the weights as they are; for many they are widened into scratch first.
    fn linear_int4(&mut self, step: &Step, group: usize, activation: Activation) {
        let [x, w, scales, bias] = [step.inputs[0], step.inputs[1], step.inputs[2], step.inputs[3]];
        let (k, n) = (*self.shape(x).last().expect("checked by infer"), self.shape(w)[1]);
        let m = self.len(x) / k;
        let [x, w, scales, bias] = [x, w, scales, bias].map(|id| self.address(id));
        let to = self.address(step.outputs[0]);
        if m <= INT4_ROWS {
            type LinearInt4 = Kernel<(In<f32>, In<i8>, In<f16>, In<f32>, Out<f32>, [u32; 6])>;
            let kernel: LinearInt4 = Kernel::new("linear_i4_f32".into(), THREADS);
            let sizes = [m as u32, n as u32, k as u32, group as u32, activation_code(activation), 0];
            let arguments = (In::at(x), In::at(w), In::at(scales), In::at(bias), Out::at(to), sizes);
            self.push(kernel.launch([ceil(n, 128), ceil(m, 4), 1], 0, arguments));
            return;
        }
        let wide = self.scratch(4 * k * n);
        self.dequantize_int4([w, scales], [k, n], group, wide);
        let product = Product { bias, activation, ..product_of([m, k, n], [false; 2]) };
        self.product::<f32, f32>(&product, x, wide, to);
    }

    fn dequantize_int4(&mut self, [w, scales]: [Address; 2], [k, n]: [usize; 2], group: usize, to: Address) {
        let kernel: Kernel<(In<i8>, In<f16>, Out<f32>, [u32; 4])> = Kernel::new("dequantize_i4_f32".into(), THREADS);
        let arguments = (In::at(w), In::at(scales), Out::at(to), [k as u32, n as u32, group as u32, 0]);
        self.push(kernel.launch(self.blocks(k.div_ceil(2) * n.div_ceil(4)), 0, arguments));
    }

    fn product_into<T: Element>(&mut self, product: &Product, a: Address, b: Address, to: ValueId) {
        let c = self.address(to);
        if self.dtype(to) == DType::F32 {
            self.product::<T, f32>(product, a, b, c);
        } else {
            self.product::<T, T>(product, a, b, c);
        }
    }

    fn product<T: Element, C: Element>(&mut self, product: &Product, a: Address, b: Address, c: Address) {
        let Product { mut shape, bias, activation } = *product;
        (shape.input, shape.output) = (T::DTYPE, C::DTYPE);
        shape.rounds_to_tf32 = self.program.rounds_to_tf32 && T::DTYPE == DType::F32;
        let mut a = a;
        if shape.letters() == "tt" && (T::DTYPE != DType::F32 || shape.rounds_to_tf32) {
            // No kernel reads both turned: A is turned once.
            let turned = self.scratch(shape.batch * shape.m * shape.k * size_of::<T>());
            let extents = [shape.batch, shape.k, shape.m];
            let launch = permute::<T>(&extents, &[0, 2, 1], a, turned, |pieces| self.blocks(pieces));
            self.push(launch.expect("three axes"));
            (a, shape.transpose_a) = (turned, false);
        }
        let config = self.pick(&shape);
        let workspace = match config.workspace_bytes(&shape) {
            0 => 0,
            bytes => self.scratch(bytes),
        };
        let operands = Operands { a, b, bias, c, workspace, activation: activation_code(activation) };
        let launches = product::launches::<T, C>(&shape, &config, self.facts, &operands);
        self.launches.extend(launches);
    }

    /// The configuration for a product, which the plan notes.
    fn pick(&mut self, shape: &Shape) -> Config {
        self.products.push(*shape);
        self.choices.pick(shape, self.facts)
    }

    /// `dW = x^T dy` into scratch, then the update; `dx = dy W^T` before it, from the old weights.
    fn linear_update<T: Element>(&mut self, step: &Step, optimizer: &OptimizerStep) {
        let [w, x, dy] = [step.inputs[0], step.inputs[1], step.inputs[2]];
        let (k, n) = (self.shape(w)[0], self.shape(w)[1]);
        let rows = self.len(x) / k;
        let plain = product_of([rows, n, k], [false, true]);
        let copy = copy_of(self.program, step);
        let read = self.address(copy.unwrap_or(w));
        if let Some(dx) = step.outputs.first() {
            self.product_into::<T>(&plain, self.address(dy), read, *dx);
        }
        let gradient = self.scratch(4 * k * n);
        let turned = product_of([k, rows, n], [true, false]);
        self.product::<T, f32>(&turned, self.address(x), self.address(dy), gradient);
        let states = self.states(&step.inputs[3..3 + optimizer.state_arrays()]);
        let copy_address = copy.map_or(0, |id| self.address(id));
        let tensor = Updated { gradient, weight: self.address(w), states, copy: copy_address, elements: k * n };
        self.update(optimizer, &[tensor], copy.map(|id| self.dtype(id)), [0, 0]);
    }

    fn states(&self, states: &[ValueId]) -> [Address; 2] {
        let state = |k: usize| states.get(k).map_or(0, |id| self.address(*id));
        [state(0), state(1)]
    }

    fn update_all(&mut self, steps: &[Step]) {
        let Op::Update { optimizer, guarded } = steps[0].op else { unreachable!("only updates come here") };
        let mut tensors = Vec::with_capacity(steps.len());
        for step in steps {
            let [w, g] = [step.inputs[0], step.inputs[1]];
            let copy = copy_of(self.program, step).map_or(0, |id| self.address(id));
            let elements = self.len(w);
            // Gradients of low precision are widened first: an update reads fp32.
            let gradient = match self.dtype(g) {
                DType::F32 => self.address(g),
                low => {
                    let wide = self.scratch(4 * elements);
                    let from = self.address(g);
                    match low {
                        DType::Bf16 => self.cast::<bf16, f32>(from, wide, elements),
                        _ => self.cast::<f16, f32>(from, wide, elements),
                    }
                    wide
                }
            };
            let states = self.states(&step.inputs[2..2 + optimizer.state_arrays()]);
            tensors.push(Updated { gradient, weight: self.address(w), states, copy, elements });
        }
        let copy_type = copy_of(self.program, &steps[0]).map(|id| self.dtype(id));
        let guard = if guarded {
            let inputs = &steps[0].inputs;
            [inputs[inputs.len() - 2], inputs[inputs.len() - 1]].map(|id| self.address(id))
        } else {
            [0, 0]
        };
        self.update(&optimizer, &tensors, copy_type, guard);
    }

    /// One launch for all tensors: the tables of tensors and chunks lie in constant memory. `guard`: loss scale and all-finite flag.
    fn update(&mut self, rule: &OptimizerStep, tensors: &[Updated], copy: Option<DType>, guard: [Address; 2]) {
        let all: usize = tensors.iter().map(|tensor| tensor.elements).sum();
        let chunk = if all < LARGE_MODEL { SMALL_CHUNK } else { LARGE_CHUNK };
        let (mut table, mut chunks) = (Vec::new(), Vec::new());
        for (number, tensor) in tensors.iter().enumerate() {
            let [first, second] = tensor.states;
            for field in [tensor.gradient, tensor.weight, first, second, tensor.copy, tensor.elements as u64] {
                table.extend(field.to_le_bytes());
            }
            for index in 0..tensor.elements.div_ceil(chunk) {
                chunks.extend((number as u32).to_le_bytes());
                chunks.extend((index as u32).to_le_bytes());
            }
        }
        let count = (chunks.len() / 8) as u32;
        let (table, chunks) = (self.constant(&table), self.constant(&chunks));
        let name = match rule.kind {
            OptimizerKind::Sgd => "sgd",
            OptimizerKind::Adam | OptimizerKind::Adamw => "adam",
            OptimizerKind::Rmsprop => "rmsprop",
        };
        let suffix = match copy {
            Some(DType::Bf16) => "bf16",
            Some(DType::F16) => "f16",
            _ => "f32",
        };
        // (beta, 1 - beta, ln beta), the second rounded once.
        let decay = |beta: f64| [beta as f32, (1.0 - beta) as f32, beta.ln() as f32];
        let [keep1, mix1, log_keep1] = decay(rule.beta1);
        let [keep2, mix2, log_keep2] = decay(rule.beta2);
        let numbers = [
            rule.learning_rate as f32,
            rule.momentum as f32,
            rule.l1 as f32,
            rule.l2 as f32,
            rule.epsilon as f32,
            keep1,
            mix1,
            keep2,
            mix2,
            log_keep1,
            log_keep2,
        ];
        let decoupled = u32::from(rule.kind == OptimizerKind::Adamw);
        let kernel: UpdateKernel = Kernel::new(format!("{name}_{suffix}"), THREADS);
        let [scale, finite] = guard;
        let progress = In::at(self.places.control);
        let arguments =
            (In::at(table), In::at(chunks), progress, In::at(scale), In::at(finite), [count, chunk as u32], numbers, decoupled);
        self.push(kernel.launch([count.max(1), 1, 1], 0, arguments));
    }

    /// Convolution, bias, ReLU and pooling in one kernel where channels are few; else one after the other.
    fn conv_relu_pool<T: Element>(&mut self, step: &Step, window: &Window) {
        let [x, w, bias] = [step.inputs[0], step.inputs[1], step.inputs[2]];
        let (image, weights) = (self.shape(x).to_vec(), self.shape(w).to_vec());
        let (y, code) = (self.address(step.outputs[0]), self.address(step.outputs[1]));
        if let Some(small) = SmallConv::of(window, &image, &weights) {
            let items = small.tile[0] * small.tile[1] * weights[3] / 8;
            let rounds = items.div_ceil(256);
            let block = items.div_ceil(rounds).next_multiple_of(32) as u32;
            type Fused<T> = Kernel<(In<T>, In<T>, In<f32>, Out<T>, Out<u8>, [u32; 14])>;
            let kernel: Fused<T> = Kernel::new(format!("conv_relu_pool_{}", T::SUFFIX), block);
            let [x, w, bias] = [x, w, bias].map(|id| self.address(id));
            let arguments = (In::at(x), In::at(w), In::at(bias), Out::at(y), Out::at(code), small.fields);
            self.push(kernel.launch([small.units as u32, 1, 1], 0, arguments));
            return;
        }
        let [height, width] = window.output([image[1], image[2]]).expect("shape inference placed it");
        let like = [image[0], height, width, weights[3]];
        let whole = self.scratch(like.iter().product::<usize>() * size_of::<T>());
        let bias = self.address(bias);
        self.conv::<T>(window, Activation::None, [x, w], bias, like, whole);
        type ReluPool<T> = Kernel<(In<T>, Out<T>, Out<u8>, [u32; 4])>;
        let kernel: ReluPool<T> = Kernel::new(format!("relu_pool_{}", T::SUFFIX), THREADS);
        let pieces = like[0] * (height / 2) * (width / 2) * pieces_of::<T>(like[3]);
        let arguments = (In::at(whole), Out::at(y), Out::at(code), like.map(|extent| extent as u32));
        self.push(kernel.launch(self.blocks(pieces), 0, arguments));
    }

    fn conv_relu_pool_grad<T: Element>(&mut self, step: &Step, window: &Window) -> Result<(), BackendError> {
        let [x, dy, code] = [step.inputs[0], step.inputs[1], step.inputs[2]];
        let (image, dw_shape) = (self.shape(x).to_vec(), self.shape(step.outputs[0]).to_vec());
        let weights: usize = dw_shape.iter().product();
        let channels = dw_shape[3];
        let [dw, db] = [step.outputs[0], step.outputs[1]];
        let Some(small) = SmallConv::of(window, &image, &dw_shape) else {
            return self.conv_relu_pool_grad_by_parts::<T>(step, window);
        };
        let parts = small.units.min(2 * self.facts.multiprocessors as usize).max(1);
        let partial = self.scratch(4 * parts * (weights + channels));
        type Fused<T> = Kernel<(In<T>, In<T>, In<u8>, Out<f32>, [u32; 14])>;
        let kernel: Fused<T> = Kernel::new(format!("conv_relu_pool_grad_{}", T::SUFFIX), THREADS);
        let [x, dy, code] = [x, dy, code].map(|id| self.address(id));
        let arguments = (In::at(x), In::at(dy), In::at(code), Out::at(partial), small.fields);
        self.push(kernel.launch([parts as u32, 1, 1], 0, arguments));
        type Sum = Kernel<(In<f32>, Out<f32>, Out<f32>, [u32; 4])>;
        let kernel: Sum = Kernel::new("conv_relu_pool_grad_sum".into(), 512);
        let fields = [parts as u32, weights as u32, channels as u32, 0];
        let arguments = (In::at(partial), Out::at(self.address(dw)), Out::at(self.address(db)), fields);
        self.push(kernel.launch([ceil(weights + channels, 32), 1, 1], 0, arguments));
        Ok(())
    }

    /// The gradient before ReLU is written, then the weights' and the bias's gradients are taken from it.
    fn conv_relu_pool_grad_by_parts<T: Element>(&mut self, step: &Step, window: &Window) -> Result<(), BackendError> {
        let [x, dy, code] = [step.inputs[0], step.inputs[1], step.inputs[2]];
        let (image, dw_shape) = (self.shape(x).to_vec(), self.shape(step.outputs[0]).to_vec());
        let [height, width] = window.output([image[1], image[2]]).expect("shape inference placed it");
        let like = [image[0], height, width, dw_shape[3]];
        let elements: usize = like.iter().product();
        let whole = self.scratch(elements * size_of::<T>());
        type Unpool<T> = Kernel<(In<T>, In<u8>, Out<T>, [u32; 4])>;
        let kernel: Unpool<T> = Kernel::new(format!("relu_unpool_{}", T::SUFFIX), THREADS);
        let pieces = like[0] * height.div_ceil(2) * width.div_ceil(2) * pieces_of::<T>(like[3]);
        let fields = like.map(|extent| extent as u32);
        let arguments = (In::at(self.address(dy)), In::at(self.address(code)), Out::at(whole), fields);
        self.push(kernel.launch(self.blocks(pieces), 0, arguments));
        self.conv_grad_weight::<T>(window, x, whole, like, step.outputs[0]);
        self.sum_middle_at::<T>(whole, step.outputs[1], [1, elements / like[3], like[3]], 1.0);
        Ok(())
    }

    fn conv_grad_weight<T: Element>(&mut self, window: &Window, x: ValueId, dy: Address, like: [usize; 4], to: ValueId) {
        let fields = conv_fields(window, self.shape(x), &like, Activation::None);
        let k = window.size[0] * window.size[1] * self.shape(x)[3];
        let [b, height, width, channels] = like;
        let one = self.convolution::<T>(Pass::GradWeight, window, [four(self.shape(x)), like]);
        if let Some(config) = one.pick(self.facts) {
            let sums = self.scratch(one.sum_bytes(&config));
            let at = convolution::Operands { image: self.address(x), other: dy, bias: 0, to: sums, activation: 0 };
            self.push(one.launch(&config, self.facts, &at));
            self.reduce_splits(sums, to, k * channels, config.parts());
            return;
        }
        let tiles = k.div_ceil(64) * channels.div_ceil(64);
        // Pixels are the long side: enough parts to fill the device, none shorter than a few hundred pixels.
        let most = (b * height * width).div_ceil(256);
        let splits = (2 * self.facts.multiprocessors as usize / tiles.max(1)).clamp(1, most);
        let partial = self.scratch(4 * splits * k * channels);
        let name = format!("conv2d_grad_weight_{}", self.product_suffix::<T>());
        let kernel: Kernel<(In<T>, In<T>, Out<f32>, [u32; 14])> = Kernel::new(name, 128);
        let grid = [ceil(k, 64) * ceil(channels, 64), 1, splits as u32];
        self.push(kernel.launch(grid, 0, (In::at(self.address(x)), In::at(dy), Out::at(partial), fields)));
        self.reduce_splits(partial, to, k * channels, splits);
    }

    fn embedding_grad<T: Element>(&mut self, step: &Step, vocabulary: usize) {
        let [indices, dy] = [step.inputs[0], step.inputs[1]];
        let count = self.len(indices);
        let columns = self.shape(dy)[self.shape(dy).len() - 1];
        let rows = vocabulary.div_ceil(2 * self.facts.multiprocessors as usize).clamp(1, 1024);
        let (starts, positions) = (self.scratch(4 * (vocabulary + 1)), self.scratch(4 * count));
        let kernel: Kernel<(In<i32>, Out<i32>, Out<i32>, [u32; 4])> = Kernel::new("embedding_sort".into(), THREADS);
        let fields = [count as u32, vocabulary as u32, rows as u32, 0];
        let arguments = (In::at(self.address(indices)), Out::at(starts), Out::at(positions), fields);
        self.push(kernel.launch([ceil(vocabulary, rows), 1, 1], 0, arguments));
        let to = step.outputs[0];
        let is_wide_result = self.dtype(to) == DType::F32;
        let name = match (T::DTYPE == DType::F32, is_wide_result) {
            (false, true) => format!("embedding_grad_{}_f32", T::SUFFIX),
            _ => format!("embedding_grad_{}", T::SUFFIX),
        };
        let wide = if is_wide_result { 4 } else { 8 };
        let c = if columns.is_multiple_of(wide) { wide } else { 1 };
        type Grad<T> = Kernel<(In<T>, In<i32>, In<i32>, Out<f32>, [u32; 2])>;
        let kernel: Grad<T> = Kernel::new(name, THREADS);
        let (dy, to) = (In::at(self.address(dy)), Out::at(self.address(to)));
        let (starts, positions) = (In::at(starts), In::at(positions));
        let grid = [ceil(vocabulary, 8), ceil(columns, 32 * c), 1];
        self.push(kernel.launch(grid, 0, (dy, starts, positions, to, [vocabulary as u32, columns as u32])));
    }
}

/// How the threads of a block share rows (kernels/rows.cu).
struct RowKind {
    longest: usize,
    /// Between the op and the type in a kernel's name.
    name: &'static str,
    rows_at_once: usize,
    /// Blocks on a multiprocessor, of a function and of a gradient: as many as the kernels' launch bounds promise.
    resident: [usize; 2],
}

const ROW_KINDS: [RowKind; 4] = [
    RowKind { longest: 256, name: "_narrow", rows_at_once: 32, resident: [3, 2] },
    RowKind { longest: 1024, name: "", rows_at_once: 8, resident: [3, 2] },
    RowKind { longest: 8192, name: "_wide", rows_at_once: 1, resident: [3, 2] },
    RowKind { longest: usize::MAX, name: "_long", rows_at_once: 1, resident: [4, 4] },
];

impl Planner<'_> {
    /// `y[o, i] = factor sum_e x[o, e, i]`.
    fn sum_middle<T: Element>(&mut self, x: ValueId, y: ValueId, around: [usize; 3], factor: f32) {
        self.sum_middle_at::<T>(self.address(x), y, around, factor);
    }

    fn sum_middle_at<T: Element>(&mut self, x: Address, y: ValueId, around: [usize; 3], factor: f32) {
        match self.dtype(y) {
            DType::F32 => self.sum_into::<T, f32>(x, y, around, factor),
            _ => self.sum_into::<T, T>(x, y, around, factor),
        }
    }

    fn sum_into<T: Element, Y: Element>(&mut self, x: Address, y: ValueId, [outer, extent, inner]: [usize; 3], factor: f32) {
        // Two numbers of 16 bits a thread.
        let each = if T::DTYPE != DType::F32 && inner.is_multiple_of(2) { 2 } else { 1 };
        let columns = ceil(inner, each * THREADS as usize);
        let blocks = columns as usize * outer;
        // A long axis over few results is shared out, at least 64 numbers a part.
        let parts = (2 * self.facts.multiprocessors as usize / blocks.max(1)).clamp(1, extent.div_ceil(64));
        let workspace = if parts > 1 { self.scratch(4 * parts * outer * inner) } else { 0 };
        let same = T::SUFFIX == Y::SUFFIX;
        let name = if same { format!("sum_middle_{}", T::SUFFIX) } else { format!("sum_middle_{}_{}", T::SUFFIX, Y::SUFFIX) };
        let kernel: Kernel<(In<T>, Out<Y>, Out<f32>, [u32; 4], f32, u32)> = Kernel::new(name, THREADS);
        let fields = [outer as u32, extent as u32, inner as u32, parts as u32];
        let arguments = (In::at(x), Out::at(self.address(y)), Out::at(workspace), fields, factor, 0);
        let launch = kernel.launch([columns, outer.min(65535) as u32, parts as u32], 0, arguments);
        self.push(launch.clone());
        if parts > 1 {
            let kernel = format!("sum_parts_{}", Y::SUFFIX);
            self.push(Launch { kernel, grid: self.blocks(outer * inner), ..launch });
        }
    }

    fn rows<T: Element>(&mut self, step: &Step) {
        let shape = self.shape(step.inputs[0]).to_vec();
        let columns = *shape.last().expect("rows have an axis");
        let rows = self.len(step.inputs[0]) / columns.max(1);
        let kind = ROW_KINDS.iter().find(|kind| columns <= kind.longest).expect("the last kind takes all");
        // Blocks take rows in turns: no more than are on the device at once, whose start and end would cost more than a row.
        let is_gradient = matches!(step.op, Op::SoftmaxGrad | Op::LayerNormGrad);
        let resident = kind.resident[usize::from(is_gradient)] * self.facts.multiprocessors as usize;
        let grid = [rows.div_ceil(kind.rows_at_once).clamp(1, resident) as u32, 1, 1];
        let name = |op: &str| format!("{op}{}_{}", kind.name, T::SUFFIX);
        let sizes = [rows as u32, columns as u32];
        let at: Vec<Address> = step.inputs.iter().map(|id| self.address(*id)).collect();
        let out: Vec<Address> = step.outputs.iter().map(|id| self.address(*id)).collect();
        match &step.op {
            Op::Softmax => {
                let kernel: Kernel<(In<T>, Out<T>, [u32; 2])> = Kernel::new(name("softmax"), THREADS);
                self.push(kernel.launch(grid, 0, (In::at(at[0]), Out::at(out[0]), sizes)));
            }
            Op::SoftmaxGrad => {
                let kernel: Kernel<(In<T>, In<T>, Out<T>, [u32; 2])> = Kernel::new(name("softmax_grad"), THREADS);
                self.push(kernel.launch(grid, 0, (In::at(at[0]), In::at(at[1]), Out::at(out[0]), sizes)));
            }
            Op::LayerNorm { epsilon } => {
                type Norm<T> = Kernel<(In<T>, In<f32>, In<f32>, Out<T>, Out<f32>, Out<f32>, [u32; 2], f32, u32)>;
                let kernel: Norm<T> = Kernel::new(name("layer_norm"), THREADS);
                let (x, gain, bias) = (In::at(at[0]), In::at(at[1]), In::at(at[2]));
                let (y, mean, rstd) = (Out::at(out[0]), Out::at(out[1]), Out::at(out[2]));
                self.push(kernel.launch(grid, 0, (x, gain, bias, y, mean, rstd, sizes, *epsilon as f32, 0)));
            }
            Op::LayerNormGrad => {
                let parts = (2 * self.facts.multiprocessors as usize).min(rows.div_ceil(16)).max(1);
                let partial = self.scratch(4 * parts * 2 * columns);
                type Grad<T> = Kernel<(In<T>, In<f32>, In<f32>, In<f32>, In<T>, Out<T>, Out<f32>, [u32; 2])>;
                let arguments = || {
                    let (x, gain, mean, rstd) = (In::at(at[0]), In::at(at[1]), In::at(at[2]), In::at(at[3]));
                    (x, gain, mean, rstd, In::at(at[4]), Out::at(out[0]), Out::at(partial), sizes)
                };
                let kernel: Grad<T> = Kernel::new(name("layer_norm_grad"), THREADS);
                self.push(kernel.launch(grid, 0, arguments()));
                let kernel: Grad<T> = Kernel::new(format!("layer_norm_gain_{}", T::SUFFIX), THREADS);
                self.push(kernel.launch([parts as u32, ceil(columns, 256).min(65535), 1], 0, arguments()));
                let kernel: Kernel<(In<f32>, Out<f32>, Out<f32>, [u32; 2])> = Kernel::new("gain_sum_f32".into(), THREADS);
                let sizes = [parts as u32, columns as u32];
                let arguments = (In::at(partial), Out::at(out[1]), Out::at(out[2]), sizes);
                self.push(kernel.launch(self.blocks(columns), 0, arguments));
            }
            Op::CrossEntropy { rows: all_rows } => {
                let losses = self.scratch(4 * rows);
                type Entropy = Kernel<(In<f32>, In<i32>, Out<f32>, Out<f32>, [u32; 2], f32, u32)>;
                let kernel: Entropy = Kernel::new(name("cross_entropy"), THREADS);
                let (x, labels) = (In::at(at[0]), In::at(at[1]));
                let all = *all_rows as f32;
                self.push(kernel.launch(grid, 0, (x, labels, Out::at(losses), Out::at(out[1]), sizes, all, 0)));
                let kernel: Kernel<(In<f32>, Out<f32>, u32, f32)> = Kernel::new("loss_sum_f32".into(), THREADS);
                self.push(kernel.launch([1, 1, 1], 0, (In::at(losses), Out::at(out[0]), rows as u32, all)));
            }
            _ => unreachable!("only functions of rows come here"),
        }
    }

    fn all_finite(&mut self, step: &Step) {
        let flag = self.address(step.outputs[0]);
        let kernel: Kernel<(Out<f32>, f32, u32)> = Kernel::new("set_f32".into(), 32);
        self.push(kernel.launch([1, 1, 1], 0, (Out::at(flag), 1.0, 0)));
        for id in &step.inputs {
            match self.dtype(*id) {
                DType::Bf16 => self.clear_flag::<bf16>(*id, flag),
                DType::F16 => self.clear_flag::<f16>(*id, flag),
                _ => self.clear_flag::<f32>(*id, flag),
            }
        }
    }

    fn round_fp8<From: Element, To: Element>(&mut self, step: &Step, format: Fp8Format) {
        let [x, scale, y, largest] =
            [step.inputs[0], step.inputs[1], step.outputs[0], step.outputs[1]].map(|id| self.address(id));
        let n = self.len(step.inputs[0]);
        self.clear(largest);
        let types = if From::SUFFIX == To::SUFFIX { To::SUFFIX.to_string() } else { format!("{}_{}", From::SUFFIX, To::SUFFIX) };
        let name = format!("round_{}_{types}", format.name());
        let kernel: Kernel<(In<From>, In<f32>, Out<To>, Out<f32>, u64)> = Kernel::new(name, THREADS);
        let arguments = (In::at(x), In::at(scale), Out::at(y), Out::at(largest), n as u64);
        let grid = self.blocks(n.div_ceil(16 / size_of::<To>()));
        self.push(kernel.launch(grid, 0, arguments));
    }

    fn move_fp8_scale(&mut self, step: &Step, format: Fp8Format, margin: u32) {
        let [scale, history] = [step.inputs[0], step.inputs[1]].map(|id| self.address(id));
        let window = self.len(step.inputs[1]) as u32;
        let largest = &step.inputs[2..];
        for (k, id) in largest.iter().enumerate() {
            let [first, last] = [k == 0, k + 1 == largest.len()].map(u32::from);
            type Move = Kernel<(Out<f32>, Out<f32>, In<f32>, [u32; 4], f32, u32)>;
            let kernel: Move = Kernel::new("move_fp8_scale".into(), 32);
            let (scale, history, now) = (Out::at(scale), Out::at(history), In::at(self.address(*id)));
            let fields = [window, first, last, margin];
            self.push(kernel.launch([1, 1, 1], 0, (scale, history, now, fields, format.largest(), 0)));
        }
    }

    /// Launches a product of 8-bit operands, or what rounds such an operand; false where the step is no such thing.
    fn in_eight_bits(&mut self, at: usize) -> bool {
        let step = &self.program.steps[at];
        if let Op::RoundFp8 { .. } = step.op {
            let address = |id| self.address(id);
            let launch = match self.dtype(step.inputs[0]) {
                DType::Bf16 => self.eight_bits.rounding::<bf16>(self.program, at, address),
                DType::F32 => self.eight_bits.rounding::<f32>(self.program, at, address),
                _ => None,
            };
            let Some(launch) = launch else { return false };
            self.clear(self.address(step.outputs[1]));
            self.push(launch);
            return true;
        }
        let Some(product) = self.eight_bits.product(at).copied() else { return false };
        let packed = product.packed_bytes(&self.eight_bits).map(|bytes| if bytes > 0 { self.scratch(bytes) } else { 0 });
        let workspace = match product.workspace_bytes(self.facts) {
            0 => 0,
            bytes => self.scratch(bytes),
        };
        let activation = match step.op {
            Op::Linear { activation } => activation_code(activation),
            _ => 0,
        };
        let bias = step.inputs.get(2).map_or(0, |id| self.address(*id));
        let rest = Rest { bias, c: self.address(step.outputs[0]), workspace, packed, activation };
        let (of, facts, address) = (&self.eight_bits, self.facts, |id| self.address(id));
        let launches = match self.dtype(step.outputs[0]) {
            DType::F32 => product.launches::<bf16, f32>(self.program, of, at, facts, &rest, address),
            _ => product.launches::<bf16, bf16>(self.program, of, at, facts, &rest, address),
        };
        self.convolutions.push(product.explain(self.facts));
        self.launches.extend(launches);
        true
    }

    /// Launches a product with a weight of which two of four are kept; false where the step has none.
    fn with_two_of_four(&mut self, step: &Step) -> bool {
        let Op::LinearTwoFour { activation } = step.op else { return false };
        let Some(KeptWeight::TwoFour(weight)) = self.kept_weights.get(&step.inputs[1]).copied() else { return false };
        let m = self.len(step.inputs[0]) / weight.k;
        let [x, w, bias] = [step.inputs[0], step.inputs[1], step.inputs[2]].map(|id| self.address(id));
        let (c, output) = (self.address(step.outputs[0]), self.dtype(step.outputs[0]));
        self.push(weight.launch(m, [x, w, bias, c], activation_code(activation), output, self.facts));
        self.convolutions.push(weight.explain(m, self.facts));
        true
    }

    /// Writes a zero.
    fn clear(&mut self, at: Address) {
        let kernel: Kernel<(Out<f32>, f32, u32)> = Kernel::new("set_f32".into(), 32);
        self.push(kernel.launch([1, 1, 1], 0, (Out::at(at), 0.0, 0)));
    }

    fn clear_flag<T: Element>(&mut self, x: ValueId, flag: Address) {
        let n = self.len(x);
        let kernel: Kernel<(In<T>, Out<f32>, u64)> = Kernel::new(format!("clear_flag_{}", T::SUFFIX), THREADS);
        let grid = self.blocks(n.div_ceil(16 / size_of::<T>()));
        self.push(kernel.launch(grid, 0, (In::at(self.address(x)), Out::at(flag), n as u64)));
    }
}

/// 14 u32: `struct Shape` of kernels/conv.cu.
fn conv_fields(window: &Window, x: &[usize], y: &[usize], activation: Activation) -> [u32; 14] {
    let [rows, columns] = window.size;
    let sizes = [x[0], x[1], x[2], x[3], y[1], y[2], y[3], rows, columns, window.stride[0], window.stride[1]];
    let [b, h, w, c, oh, ow, co, rows, columns, sh, sw] = sizes.map(|extent| extent as u32);
    let [ph, pw] = window.padding.map(|extent| extent as u32);
    [b, h, w, c, oh, ow, co, rows, columns, sh, sw, ph, pw, activation_code(activation)]
}

/// 10 u32: `struct Plane` of kernels/pooling.cu.
fn plane(window: &Window, x: &[usize], y: &[usize]) -> [u32; 10] {
    let [rows, columns] = window.size;
    [x[0], x[1], x[2], x[3], y[1], y[2], rows, columns, window.stride[0], window.stride[1]].map(|extent| extent as u32)
}

fn four(shape: &[usize]) -> [usize; 4] {
    [shape[0], shape[1], shape[2], shape[3]]
}

/// Pieces of 16 bytes in so many channels, or channels where these do not fill them.
fn pieces_of<T>(channels: usize) -> usize {
    let count = 16 / size_of::<T>();
    if channels.is_multiple_of(count) { channels / count } else { channels }
}

/// A convolution that kernels/conv_small.cu takes: few input channels, stride 1.
struct SmallConv {
    /// Tiles of all images.
    units: usize,
    tile: [usize; 2],
    /// 14 u32: `struct Image` there.
    fields: [u32; 14],
}

impl SmallConv {
    fn of(window: &Window, x: &[usize], w: &[usize]) -> Option<SmallConv> {
        let fits = x[3] <= 4
            && w[3] <= 64
            && w[3].is_multiple_of(8)
            && window.size.iter().all(|size| *size <= 5)
            && window.stride == [1, 1];
        let [height, width] = window.output([x[1], x[2]]).filter(|_| fits)?;
        let pooled = [height / 2, width / 2];
        let tile = pooled.map(|extent| extent.div_ceil(extent.div_ceil(8).max(1)));
        let units = x[0] * pooled[0].div_ceil(tile[0]) * pooled[1].div_ceil(tile[1]);
        let sizes = [x[0], x[1], x[2], x[3], pooled[0], pooled[1], w[3], window.size[0], window.size[1]];
        let [b, h, v, c, ph, pw, co, rows, columns] = sizes.map(|extent| extent as u32);
        let [pad_h, pad_w] = window.padding.map(|extent| extent as u32);
        let fields = [b, h, v, c, ph, pw, co, rows, columns, pad_h, pad_w, tile[0] as u32, tile[1] as u32, 0];
        Some(SmallConv { units, tile, fields })
    }
}

/// y's axes are `axes` of x. Two axes that change places go through tiles; whole 16 bytes move together where the last axis stays.
fn permute<T: Element>(
    shape: &[usize],
    axes: &[usize],
    x: Address,
    y: Address,
    blocks: impl Fn(usize) -> [u32; 3],
) -> Option<Launch> {
    if axes.len() > 6 {
        return None;
    }
    let mut strides = vec![1usize; shape.len()];
    for axis in (0..shape.len().saturating_sub(1)).rev() {
        strides[axis] = strides[axis + 1] * shape[axis + 1];
    }
    let last_stays = axes.last() == Some(&(shape.len() - 1));
    let count = 16 / size_of::<T>();
    let is_wide = last_stays && shape.last().is_some_and(|last| last.is_multiple_of(count));
    let unit = if is_wide { count } else { 1 };
    let (mut extents, mut steps) = ([1u32; 6], [0u64; 6]);
    let free = 6 - axes.len();
    for (place, axis) in axes.iter().enumerate() {
        let is_last = is_wide && place + 1 == axes.len();
        extents[free + place] = (shape[*axis] / if is_last { unit } else { 1 }) as u32;
        steps[free + place] = if is_last { 1 } else { (strides[*axis] / unit) as u64 };
    }
    let n = shape.iter().product::<usize>() / unit;
    let bits = if is_wide { 128 } else { 8 * size_of::<T>() };
    let kernel: Kernel<(In<T>, Out<T>, u64, [u64; 6], [u32; 6])> = Kernel::new(format!("permute_{bits}"), THREADS);
    Some(kernel.launch(blocks(n), 0, (In::at(x), Out::at(y), n as u64, steps, extents)))
}

fn unary(f: Unary) -> &'static str {
    match f {
        Unary::Relu => "relu",
        Unary::Gelu => "gelu",
        Unary::Tanh => "tanh",
        Unary::Sigmoid => "sigmoid",
        Unary::Exp => "exp",
    }
}
