//! One step of a program: finds the operands, picks the kernel for the storage type, runs it.

use super::{CpuSession, Storage, kernels};
use crate::{
    backend::{
        BackendError,
        exchange::{exchange, kept_of},
    },
    graph::{Activation, Binary, Exchange, Op, OptimizerStep, Program, Step, Unary, ValueId, Window},
    vocab::{DType, OptimizerKind},
};
use bytemuck::Pod;
use half::{bf16, f16};
use kernels::{Context, Element, Epilogue, Gemm, Packed24, PackedInt4, PackedInt8, PackedSparse};

/// Most values that one step writes: a weight, two state arrays, a low-precision copy and a gradient.
const MOST_WRITTEN: usize = 5;

/// Weights in the order in which a kernel reads them.
enum Packed {
    Stale,
    Int8(PackedInt8),
    Int4(PackedInt4),
    TwoFour(Packed24),
    Sparse(PackedSparse),
}

/// Memory that kernels need beside their operands, sized once when the program is loaded.
pub(super) struct Scratch {
    floats: Vec<f32>,
    quantised: Vec<i8>,
    /// Packed weights of the int8, int4 and sparse steps, made at their first run after an upload.
    packed: Vec<Packed>,
    /// Slots that each step writes: of its in-place operands, then of its results.
    written: Vec<Vec<usize>>,
}

impl Scratch {
    pub(super) fn for_program(program: &Program) -> Scratch {
        let (mut floats, mut quantised) = (0, 0);
        for step in &program.steps {
            let elements = |id: &ValueId| program.values[id.0].elements();
            match step.op {
                Op::CrossEntropy { .. } => floats = floats.max(elements(&step.inputs[1])),
                Op::LayerNorm { .. } => floats = floats.max(2 * elements(&step.outputs[1])),
                Op::LayerNormGrad => floats = floats.max(2 * elements(&step.inputs[2])),
                Op::LinearInt8 { .. } | Op::Conv2dInt8 { .. } | Op::Conv2dInt8Dynamic { .. } => {
                    quantised = quantised.max(elements(&step.inputs[0]));
                }
                Op::LinearInt8Dynamic { .. } => {
                    let x = elements(&step.inputs[0]);
                    quantised = quantised.max(x);
                    floats = floats.max(x / program.values[step.inputs[1].0].shape[0]);
                }
                Op::SumLeading | Op::SumFirst | Op::EmbeddingGrad { .. } | Op::Conv2dGradWeight { .. } => {
                    floats = floats.max(elements(&step.outputs[0]));
                }
                _ => {}
            }
        }
        let packed = program.steps.iter().map(|_| Packed::Stale).collect();
        let slot_of = |id: ValueId| program.slot_of[id.0].expect("lowering gives every result a slot");
        let written_by = |step: &Step| {
            let in_place = step.op.written_inputs(step.inputs.len());
            let ids = in_place.into_iter().map(|k| step.inputs[k]).chain(step.outputs.iter().copied());
            ids.map(slot_of).collect()
        };
        let written = program.steps.iter().map(written_by).collect();
        Scratch { floats: vec![0.0; floats], quantised: vec![0; quantised], packed, written }
    }

    /// Weights that were packed from `id` are stale.
    pub(super) fn forget_packed(&mut self, program: &Program, id: ValueId) {
        for (packed, step) in self.packed.iter_mut().zip(&program.steps) {
            if step.inputs.contains(&id) {
                *packed = Packed::Stale;
            }
        }
    }
}

/// Read access to the operands of a step.
struct Operands<'a> {
    program: &'a Program,
    step: &'a Step,
    slots: &'a [Storage],
}

impl<'a> Operands<'a> {
    fn shape(&self, k: usize) -> &'a [usize] {
        &self.program.values[self.step.inputs[k].0].shape
    }

    fn len(&self, k: usize) -> usize {
        self.program.values[self.step.inputs[k].0].elements()
    }

    fn dtype(&self, k: usize) -> DType {
        self.program.values[self.step.inputs[k].0].dtype
    }

    fn get<T: Pod>(&self, k: usize) -> &'a [T] {
        let slot = self.program.slot_of[self.step.inputs[k].0].expect("lowering gives every operand a slot");
        self.slots[slot].as_slice(self.len(k))
    }

    fn count(&self) -> usize {
        self.step.inputs.len()
    }

    fn out_shape(&self, k: usize) -> &'a [usize] {
        &self.program.values[self.step.outputs[k].0].shape
    }

    fn out_len(&self, k: usize) -> usize {
        self.program.values[self.step.outputs[k].0].elements()
    }

    fn out_dtype(&self, k: usize) -> DType {
        self.program.values[self.step.outputs[k].0].dtype
    }

    /// The optional bias at operand `k`.
    fn bias(&self, k: usize) -> Option<&'a [f32]> {
        (self.count() > k).then(|| self.get::<f32>(k))
    }
}

impl CpuSession {
    pub(super) fn run_step(&mut self, index: usize) -> Result<(), BackendError> {
        let CpuSession { program, slots, ctx, scratch, links, updates, last_update, rate, .. } = self;
        let step = &program.steps[index];
        // What the step writes leaves the slots, so that reading and writing cannot meet.
        let mut written: [Storage; MOST_WRITTEN] = Default::default();
        let places = &scratch.written[index];
        if let Op::Exchange(kind) = &step.op {
            if let Some(sums) = links.as_ref().and_then(|links| links.data.overlapped()) {
                // Gradients need not be copied.
                let operands = Operands { program, step, slots };
                match kind {
                    Exchange::StartReduce { bucket } => {
                        let data: Vec<&[f32]> = (0..operands.count()).map(|k| operands.get(k)).collect();
                        return Ok(sums.start(*bucket, &data, kept_of(program, *bucket))?);
                    }
                    Exchange::AllReduce { bucket } => {
                        let mut taken: Vec<Storage> = places.iter().map(|slot| std::mem::take(&mut slots[*slot])).collect();
                        let lengths = step.inputs.iter().map(|id| program.values[id.0].elements());
                        let mut data: Vec<&mut [f32]> =
                            taken.iter_mut().zip(lengths).map(|(storage, length)| storage.as_mut_slice(length)).collect();
                        let result = sums.finish(*bucket, &mut data);
                        places.iter().zip(taken).for_each(|(slot, storage)| slots[*slot] = storage);
                        return Ok(result?);
                    }
                    _ => {}
                }
            }
            let links = links.clone();
            return exchange(self, links.as_ref(), index);
        }
        for (out, slot) in written.iter_mut().zip(places) {
            *out = std::mem::take(&mut slots[*slot]);
        }
        let operands = Operands { program, step, slots };
        let packed = &mut scratch.packed[index];
        let mut run = Run {
            ctx,
            operands,
            floats: &mut scratch.floats,
            quantised: &mut scratch.quantised,
            packed,
            updates: *updates,
            rate: *rate,
        };
        let storage_type = step.inputs.iter().map(|id| program.values[id.0].dtype).find(|t| t.is_float());
        // An update's storage type is that of its gradient; a fused one's that of its activations.
        let storage_type = if step.op.is_in_place() { Some(run.operands.dtype(1)) } else { storage_type };
        let result = match storage_type {
            Some(DType::Bf16) => run.step::<bf16>(&mut written),
            Some(DType::F16) => run.step::<f16>(&mut written),
            _ => run.step::<f32>(&mut written),
        };
        for (out, slot) in written.iter_mut().zip(places) {
            slots[*slot] = std::mem::take(out);
        }
        if let Some((last, flag)) = *last_update
            && last == index
        {
            let flag = flag.map(|id| program.slot_of[id.0].expect("lowering gives every operand a slot"));
            let skipped = flag.is_some_and(|slot| slots[slot].as_slice::<f32>(1)[0] == 0.0);
            *updates += u64::from(!skipped);
        }
        result
    }
}

struct Run<'a> {
    ctx: &'a Context,
    operands: Operands<'a>,
    floats: &'a mut [f32],
    quantised: &'a mut [i8],
    packed: &'a mut Packed,
    updates: u64,
    rate: f64,
}

fn epilogue(bias: Option<&[f32]>, activation: Activation) -> Epilogue<'_> {
    let activation = match activation {
        Activation::None => kernels::Activation::None,
        Activation::Relu => kernels::Activation::Relu,
        Activation::Gelu => kernels::Activation::Gelu,
    };
    Epilogue { bias, activation }
}

fn conv(window: &Window, x: &[usize], out_channels: usize) -> kernels::Conv2d {
    kernels::Conv2d {
        batch: x[0],
        height: x[1],
        width: x[2],
        in_channels: x[3],
        out_channels,
        kernel: window.size,
        stride: window.stride,
        padding: window.padding,
    }
}

fn pool(window: &Window, x: &[usize]) -> kernels::Pool2d {
    kernels::Pool2d { batch: x[0], height: x[1], width: x[2], channels: x[3], kernel: window.size, stride: window.stride }
}

fn rows_and_columns(shape: &[usize]) -> (usize, usize) {
    let columns = *shape.last().expect("a tensor of rows has an axis");
    (shape[..shape.len() - 1].iter().product(), columns)
}

fn around(shape: &[usize], axis: usize) -> [usize; 3] {
    [shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product()]
}

fn unary(f: Unary) -> kernels::Unary {
    match f {
        Unary::Relu => kernels::Unary::Relu,
        Unary::Gelu => kernels::Unary::Gelu,
        Unary::Tanh => kernels::Unary::Tanh,
        Unary::Sigmoid => kernels::Unary::Sigmoid,
        Unary::Exp => kernels::Unary::Exp,
    }
}

fn optimizer(step: &OptimizerStep, rate: f64, unscale: f32, updates: u64) -> kernels::Update {
    let (beta1, beta2, eps) = (step.beta1, step.beta2, step.epsilon as f32);
    let momentum = step.momentum as f32;
    let (rule, l2) = match step.kind {
        OptimizerKind::Sgd => (kernels::Optimizer::Sgd { momentum }, step.l2),
        OptimizerKind::Adam => (kernels::Optimizer::Adam { beta1, beta2, eps }, step.l2),
        OptimizerKind::Adamw => (kernels::Optimizer::AdamW { beta1, beta2, eps, decay: step.l2 as f32 }, 0.0),
        OptimizerKind::Rmsprop => (kernels::Optimizer::RmsProp { alpha: beta2, eps, momentum }, step.l2),
    };
    let count = u32::try_from(updates + 1).unwrap_or(u32::MAX);
    kernels::Update {
        optimizer: rule,
        lr: (step.learning_rate * rate) as f32,
        l1: step.l1 as f32,
        l2: l2 as f32,
        unscale,
        step: count,
    }
}

impl Run<'_> {
    /// Runs the step with operands stored as `T`.
    fn step<T: Element + Pod>(&mut self, written: &mut [Storage; MOST_WRITTEN]) -> Result<(), BackendError> {
        let (ctx, o) = (self.ctx, &self.operands);
        let [first, second, third, ..] = written;
        match &o.step.op {
            Op::MatMul { transpose_a, transpose_b } => {
                let (batch, product) = matmul_shape(o.shape(0), o.shape(1), *transpose_a, *transpose_b);
                if o.out_dtype(0) == DType::F32 {
                    matmul::<T, f32>(ctx, batch, &product, o.get(0), o.get(1), first.as_mut_slice(o.out_len(0)));
                } else {
                    matmul::<T, T>(ctx, batch, &product, o.get(0), o.get(1), first.as_mut_slice(o.out_len(0)));
                }
            }
            Op::Linear { activation } => {
                let ((m, k), n) = (rows_and_columns(o.shape(0)), o.shape(1)[1]);
                let (product, tail) = (Gemm::new(m, n, k), epilogue(o.bias(2), *activation));
                if o.out_dtype(0) == DType::F32 {
                    kernels::gemm(ctx, &product, o.get::<T>(0), o.get::<T>(1), tail, first.as_mut_slice::<f32>(o.out_len(0)));
                } else {
                    kernels::gemm(ctx, &product, o.get::<T>(0), o.get::<T>(1), tail, first.as_mut_slice::<T>(o.out_len(0)));
                }
            }
            Op::Conv2d { window, activation } => {
                let shape = conv(window, o.shape(0), o.shape(1)[3]);
                let y = first.as_mut_slice::<T>(o.out_len(0));
                kernels::conv2d(ctx, &shape, o.get::<T>(0), o.get(1), epilogue(o.bias(2), *activation), y);
            }
            Op::Conv2dGradInput { window, input } => {
                let shape = conv(window, input, o.shape(1)[3]);
                kernels::conv2d_grad_input(ctx, &shape, o.get::<T>(0), o.get(1), first.as_mut_slice(o.out_len(0)));
            }
            Op::Conv2dGradWeight { window } => {
                let shape = conv(window, o.shape(0), o.shape(1)[3]);
                into_f32::<T>(ctx, o, self.floats, first, |dw| {
                    kernels::conv2d_grad_weight(ctx, &shape, o.get::<T>(0), o.get(1), dw);
                });
            }
            Op::ConvReluPool { window } => {
                let shape = conv(window, o.shape(0), o.shape(1)[3]);
                let (y, code) = (first.as_mut_slice::<T>(o.out_len(0)), second.as_mut_slice::<u8>(o.out_len(1)));
                kernels::conv_relu_pool(ctx, &shape, true, o.get::<T>(0), o.get(1), o.get(2), y, Some(code));
            }
            Op::ConvReluPoolGrad { window } => {
                let shape = conv(window, o.shape(0), o.shape(1)[3]);
                let (dw, db) = (first.as_mut_slice::<f32>(o.out_len(0)), second.as_mut_slice::<f32>(o.out_len(1)));
                kernels::conv_relu_pool_backward(ctx, &shape, o.get::<T>(0), &[], o.get(1), o.get(2), dw, db, None);
            }
            Op::ConvReluUnpool { input } => {
                unpool::<T>(input, o.get(0), o.get(1), first.as_mut_slice(o.out_len(0)));
            }
            Op::MaxPool2d { window } => {
                let (y, index) = (first.as_mut_slice::<T>(o.out_len(0)), second.as_mut_slice::<u8>(o.out_len(1)));
                kernels::max_pool2d(ctx, &pool(window, o.shape(0)), o.get::<T>(0), y, Some(index));
            }
            Op::MaxPool2dGrad { window, input } => {
                let dx = first.as_mut_slice::<T>(o.out_len(0));
                kernels::max_pool2d_backward(ctx, &pool(window, input), o.get::<T>(0), o.get(1), dx);
            }
            Op::Unary(f) => kernels::unary(ctx, unary(*f), o.get::<T>(0), first.as_mut_slice(o.out_len(0))),
            Op::UnaryGrad(f) => {
                kernels::unary_backward(ctx, unary(*f), o.get::<T>(0), o.get(1), first.as_mut_slice(o.out_len(0)));
            }
            Op::Binary(op) => {
                let op = match op {
                    Binary::Add => kernels::Binary::Add,
                    Binary::Sub => kernels::Binary::Sub,
                    Binary::Mul => kernels::Binary::Mul,
                };
                let y = first.as_mut_slice(o.out_len(0));
                kernels::binary(ctx, op, kernels::Broadcast::None, o.get::<T>(0), o.get(1), y);
            }
            Op::AddBias => {
                let y = first.as_mut_slice::<T>(o.out_len(0));
                if o.dtype(0) == o.dtype(1) {
                    let broadcast = kernels::Broadcast::LastAxis;
                    kernels::binary(ctx, kernels::Binary::Add, broadcast, o.get::<T>(0), o.get(1), y);
                } else {
                    let bias = o.get::<f32>(1);
                    for (y, x) in y.chunks_exact_mut(bias.len()).zip(o.get::<T>(0).chunks_exact(bias.len())) {
                        for ((y, x), b) in y.iter_mut().zip(x).zip(bias) {
                            *y = T::from_f32(x.to_f32() + b);
                        }
                    }
                }
            }
            Op::Scale { factor } => scaled::<T>(ctx, o, *factor as f32, first),
            Op::MulScalar => scaled::<T>(ctx, o, o.get::<f32>(1)[0], first),
            Op::SumLeading => {
                let (rows, columns) = rows_and_columns(o.shape(0));
                into_f32::<T>(ctx, o, self.floats, first, |sums| kernels::column_sums(ctx, rows, columns, o.get::<T>(0), sums));
            }
            Op::SumFirst => {
                let (rows, columns) = (o.shape(0)[0], o.out_len(0));
                into_f32::<T>(ctx, o, self.floats, first, |sums| kernels::column_sums(ctx, rows, columns, o.get::<T>(0), sums));
            }
            Op::RepeatFirst { .. } => {
                let row = o.get::<T>(0);
                for y in first.as_mut_slice::<T>(o.out_len(0)).chunks_exact_mut(row.len().max(1)) {
                    y.copy_from_slice(row);
                }
            }
            Op::Mean { axis } => {
                kernels::global_average_pool(ctx, around(o.shape(0), *axis), o.get::<T>(0), first.as_mut_slice(o.out_len(0)));
            }
            Op::MeanGrad { axis, .. } => {
                let shape = around(o.out_shape(0), *axis);
                kernels::global_average_pool_backward(ctx, shape, o.get::<T>(0), first.as_mut_slice(o.out_len(0)));
            }
            Op::Reshape { .. } | Op::Replicate | Op::RoundGradient { .. } => {
                unreachable!("lowering gives both sides of a reshape one memory and drops it")
            }
            Op::Permute { axes } => {
                kernels::permute(ctx, o.shape(0), axes, o.get::<T>(0), first.as_mut_slice(o.out_len(0)));
            }
            Op::Softmax => {
                let (rows, columns) = rows_and_columns(o.shape(0));
                kernels::softmax(ctx, rows, columns, 1.0, o.get::<T>(0), first.as_mut_slice(o.out_len(0)));
            }
            Op::SoftmaxGrad => {
                let (rows, columns) = rows_and_columns(o.shape(0));
                let dx = first.as_mut_slice::<T>(o.out_len(0));
                kernels::softmax_backward(ctx, rows, columns, 1.0, o.get::<T>(0), o.get(1), dx);
            }
            Op::LayerNorm { epsilon } => {
                let (rows, cols) = rows_and_columns(o.shape(0));
                let norm = kernels::LayerNorm { rows, cols, eps: *epsilon as f32 };
                let stats = &mut self.floats[..2 * rows];
                let y = first.as_mut_slice::<T>(o.out_len(0));
                kernels::layer_norm(ctx, &norm, o.get::<T>(0), o.get(1), o.get(2), y, stats);
                let (mean, rstd) = (second.as_mut_slice::<f32>(rows), third.as_mut_slice::<f32>(rows));
                for ((pair, mean), rstd) in stats.chunks_exact(2).zip(mean).zip(rstd) {
                    (*mean, *rstd) = (pair[0], pair[1]);
                }
            }
            Op::LayerNormGrad => {
                let (rows, cols) = rows_and_columns(o.shape(0));
                let norm = kernels::LayerNorm { rows, cols, eps: 0.0 };
                let stats = &mut self.floats[..2 * rows];
                for ((pair, mean), rstd) in stats.chunks_exact_mut(2).zip(o.get::<f32>(2)).zip(o.get::<f32>(3)) {
                    pair.copy_from_slice(&[*mean, *rstd]);
                }
                let (dx, dgain) = (first.as_mut_slice::<T>(o.out_len(0)), second.as_mut_slice(cols));
                let dbias = third.as_mut_slice(cols);
                kernels::layer_norm_backward(ctx, &norm, o.get::<T>(0), o.get(1), stats, o.get(4), dx, dgain, dbias);
            }
            Op::CrossEntropy { rows: all_rows } => {
                let (rows, columns) = rows_and_columns(o.shape(0));
                let share = rows as f32 / *all_rows as f32;
                let labels: &[u32] = bytemuck::cast_slice(o.get::<i32>(1));
                let row_loss = &mut self.floats[..rows];
                let gradient = Some(second.as_mut_slice::<f32>(o.out_len(1)));
                let mean = kernels::cross_entropy(ctx, rows, columns, o.get::<f32>(0), labels, share, row_loss, gradient);
                first.as_mut_slice::<f32>(1)[0] = mean * share;
            }
            Op::Embedding => {
                let indices: &[u32] = bytemuck::cast_slice(o.get::<i32>(1));
                kernels::embedding(ctx, o.shape(0)[1], o.get::<T>(0), indices, first.as_mut_slice(o.out_len(0)));
            }
            Op::Warp => {
                let shape = o.shape(0).try_into().expect("checked: four axes");
                kernels::warp(ctx, shape, o.get::<f32>(0), o.get::<f32>(1), first.as_mut_slice(o.out_len(0)));
            }
            Op::EmbeddingGrad { .. } => {
                let indices: &[u32] = bytemuck::cast_slice(o.get::<i32>(0));
                let width = o.out_shape(0)[1];
                into_f32::<T>(ctx, o, self.floats, first, |table| {
                    table.fill(0.0);
                    kernels::embedding_backward(ctx, width, o.get::<T>(1), indices, table);
                });
            }
            Op::Cast { to } => match to {
                DType::Bf16 => kernels::cast(ctx, o.get::<T>(0), first.as_mut_slice::<bf16>(o.out_len(0))),
                DType::F16 => kernels::cast(ctx, o.get::<T>(0), first.as_mut_slice::<f16>(o.out_len(0))),
                _ => kernels::cast(ctx, o.get::<T>(0), first.as_mut_slice::<f32>(o.out_len(0))),
            },
            Op::RoundFp8 { format, to } => {
                let scale = o.get::<f32>(1)[0];
                let largest = match to {
                    DType::Bf16 => {
                        kernels::round_fp8(ctx, *format, scale, o.get::<T>(0), first.as_mut_slice::<bf16>(o.out_len(0)))
                    }
                    _ => kernels::round_fp8(ctx, *format, scale, o.get::<T>(0), first.as_mut_slice::<f32>(o.out_len(0))),
                };
                second.as_mut_slice::<f32>(1)[0] = largest;
            }
            Op::MoveFp8Scale { format, margin } => {
                let (scale, history) = (first.as_mut_slice::<f32>(1), second.as_mut_slice::<f32>(o.len(1)));
                let largest = |values: &mut dyn Iterator<Item = f32>| f32::from_bits(values.map(f32::to_bits).max().unwrap_or(0));
                let now = largest(&mut (2..o.count()).map(|k| o.get::<f32>(k)[0]));
                history.rotate_right(1);
                history[0] = now;
                if let Some(next) = format.scale(largest(&mut history.iter().copied()), *margin) {
                    scale[0] = next;
                }
            }
            Op::AllFinite => {
                let finite = (0..o.count()).all(|k| match o.dtype(k) {
                    DType::Bf16 => kernels::all_finite(ctx, o.get::<bf16>(k)),
                    DType::F16 => kernels::all_finite(ctx, o.get::<f16>(k)),
                    _ => kernels::all_finite(ctx, o.get::<f32>(k)),
                });
                first.as_mut_slice::<f32>(1)[0] = f32::from(u8::from(finite));
            }
            Op::AdjustLossScale { growth_interval, largest } => {
                let (scale, counts) = (&mut first.as_mut_slice::<f32>(1)[0], second.as_mut_slice::<f32>(2));
                if o.get::<f32>(3)[0] == 0.0 {
                    *scale = (*scale / 2.0).max(0.5);
                    counts[0] = 0.0;
                    counts[1] += 1.0;
                    if *scale < 1.0 {
                        third.as_mut_slice::<f32>(1)[0] = f32::NAN;
                    }
                } else {
                    counts[0] += 1.0;
                    if counts[0] >= *growth_interval as f32 {
                        *scale = (*scale * 2.0).min(*largest as f32);
                        counts[0] = 0.0;
                    }
                }
            }
            Op::Update { optimizer: rule, guarded } => self.update::<T>(rule, *guarded, written),
            Op::LinearUpdate { optimizer: rule } => self.linear_update::<T>(rule, written),
            // Kernels that skip zeros read fp32.
            Op::LinearTwoFour { activation } if o.dtype(0) != DType::F32 => {
                let ((m, k), n) = (rows_and_columns(o.shape(0)), o.shape(1)[1]);
                let (product, tail) = (Gemm::new(m, n, k), epilogue(o.bias(2), *activation));
                if o.out_dtype(0) == DType::F32 {
                    kernels::gemm(ctx, &product, o.get::<T>(0), o.get::<T>(1), tail, first.as_mut_slice::<f32>(o.out_len(0)));
                } else {
                    kernels::gemm(ctx, &product, o.get::<T>(0), o.get::<T>(1), tail, first.as_mut_slice::<T>(o.out_len(0)));
                }
            }
            Op::LinearTwoFour { activation } => {
                let ((rows, k), n) = (rows_and_columns(o.shape(0)), o.shape(1)[1]);
                if !matches!(self.packed, Packed::TwoFour(_)) {
                    *self.packed = Packed::TwoFour(Packed24::from_f32(k, n, o.get(1)));
                }
                let Packed::TwoFour(packed) = &*self.packed else { unreachable!("packed above") };
                let y = first.as_mut_slice::<f32>(o.out_len(0));
                kernels::sparse_gemm(ctx, rows, o.get::<f32>(0), packed, epilogue(o.bias(2), *activation), y);
            }
            Op::LinearSparse { activation, .. } => {
                let ((rows, k), n) = (rows_and_columns(o.shape(0)), o.shape(1)[1]);
                if !matches!(self.packed, Packed::Sparse(_)) {
                    *self.packed = Packed::Sparse(PackedSparse::new(k, n, o.get(1), rows));
                }
                let Packed::Sparse(packed) = &*self.packed else { unreachable!("packed above") };
                let y = first.as_mut_slice::<f32>(o.out_len(0));
                kernels::unstructured_gemm(ctx, rows, o.get::<f32>(0), packed, epilogue(o.bias(2), *activation), y);
            }
            Op::LinearInt8 { input_scale, activation } => {
                let ((rows, k), n) = (rows_and_columns(o.shape(0)), o.shape(1)[1]);
                let packed = int8_weights(self.packed, || PackedInt8::new(k, n, o.get(1), o.get(2)));
                let x = &mut self.quantised[..o.len(0)];
                kernels::quantize_symmetric(ctx, o.get::<f32>(0), *input_scale as f32, x);
                let (tail, y) = (epilogue(o.bias(3), *activation), first.as_mut_slice::<f32>(o.out_len(0)));
                kernels::int8_gemm(ctx, rows, x, &[*input_scale as f32], packed, tail, y);
            }
            Op::LinearInt8Dynamic { activation } => {
                let ((rows, k), n) = (rows_and_columns(o.shape(0)), o.shape(1)[1]);
                let packed = int8_weights(self.packed, || PackedInt8::new(k, n, o.get(1), o.get(2)));
                let (x, scales) = (&mut self.quantised[..o.len(0)], &mut self.floats[..rows]);
                kernels::quantize_rows(ctx, k, o.get::<f32>(0), x, scales);
                let (tail, y) = (epilogue(o.bias(3), *activation), first.as_mut_slice::<f32>(o.out_len(0)));
                kernels::int8_gemm(ctx, rows, x, scales, packed, tail, y);
            }
            Op::LinearInt4 { group, activation } => {
                let ((rows, k), n) = (rows_and_columns(o.shape(0)), o.shape(1)[1]);
                let packed = int4_weights(self.packed, || PackedInt4::new(k, n, *group, o.get(1), o.get(2)));
                let y = first.as_mut_slice::<f32>(o.out_len(0));
                kernels::int4_gemm(ctx, rows, o.get::<f32>(0), packed, epilogue(o.bias(3), *activation), y);
            }
            Op::ChannelScale => {
                let columns = o.out_len(0);
                kernels::channel_scales(ctx, columns, o.get::<f32>(0), first.as_mut_slice::<f32>(columns));
            }
            Op::FakeQuantize => {
                kernels::fake_quantize(ctx, o.get(0), o.get(1), first.as_mut_slice::<f32>(o.out_len(0)));
            }
            Op::FakeQuantizeGrad => {
                let dx = first.as_mut_slice::<f32>(o.out_len(0));
                kernels::fake_quantize_backward(ctx, o.get(0), o.get(1), o.get(2), dx);
            }
            Op::Conv2dInt8 { window, activation, .. } | Op::Conv2dInt8Dynamic { window, activation } => {
                let shape = conv(window, o.shape(0), o.shape(1)[3]);
                let taps = o.len(1) / shape.out_channels;
                let packed = int8_weights(self.packed, || PackedInt8::new(taps, shape.out_channels, o.get(1), o.get(2)));
                let (real, x) = (o.get::<f32>(0), &mut self.quantised[..o.len(0)]);
                let scale = match o.step.op {
                    Op::Conv2dInt8 { input_scale, .. } => input_scale as f32,
                    _ => kernels::step_of(ctx, real),
                };
                kernels::quantize_symmetric(ctx, real, scale, x);
                let (tail, y) = (epilogue(o.bias(3), *activation), first.as_mut_slice::<f32>(o.out_len(0)));
                kernels::int8_conv2d(ctx, &shape, x, scale, packed, tail, y);
            }
            Op::DequantizeInt4 { shape, group } => {
                let n = *shape.last().expect("checked by infer");
                let k = o.out_len(0) / n;
                let packed = int4_weights(self.packed, || PackedInt4::new(k, n, *group, o.get(0), o.get(1)));
                kernels::dequantize_int4(ctx, packed, first.as_mut_slice::<f32>(k * n));
            }
            Op::Exchange(_) => unreachable!("run before operands are taken"),
        }
        Ok(())
    }

    /// Operands: W, gradient, state arrays, a low-precision copy or none, and for a guarded update the loss scale and the flag.
    fn update<G: Element + Pod>(&self, rule: &OptimizerStep, guarded: bool, written: &mut [Storage; MOST_WRITTEN]) {
        let o = &self.operands;
        let mut unscale = 1.0;
        if guarded {
            if o.get::<f32>(o.count() - 1)[0] == 0.0 {
                return;
            }
            unscale = 1.0 / o.get::<f32>(o.count() - 2)[0];
        }
        let (len, states) = (o.len(0), rule.state_arrays());
        let low = (o.count() > 2 + states + if guarded { 2 } else { 0 }).then(|| o.dtype(2 + states));
        let update = optimizer(rule, self.rate, unscale, self.updates);
        let [w, rest @ ..] = written;
        let (state, copies) = rest.split_at_mut(states);
        let state = state_slices(state, len);
        let (w, g, copy) = (w.as_mut_slice::<f32>(len), o.get::<G>(1), &mut copies[0]);
        match low {
            Some(DType::Bf16) => kernels::update(self.ctx, &update, w, g, state, Some(copy.as_mut_slice::<bf16>(len))),
            Some(DType::F16) => kernels::update(self.ctx, &update, w, g, state, Some(copy.as_mut_slice::<f16>(len))),
            _ => kernels::update(self.ctx, &update, w, g, state, None::<&mut [f32]>),
        }
    }

    /// Operands: W, x, dy, state arrays, a low-precision copy or none; dx as result or none.
    fn linear_update<T: Element + Pod>(&self, rule: &OptimizerStep, written: &mut [Storage; MOST_WRITTEN]) {
        let o = &self.operands;
        let (inputs, outputs) = (o.shape(0)[0], o.shape(0)[1]);
        let (len, states) = (inputs * outputs, rule.state_arrays());
        let has_copy = o.count() > 3 + states;
        let batch = o.len(1) / inputs;
        let update = optimizer(rule, self.rate, 1.0, self.updates);
        let [w, rest @ ..] = written;
        let (state, rest) = rest.split_at_mut(states);
        let (copies, results) = rest.split_at_mut(usize::from(has_copy).min(rest.len()));
        let low = copies.first_mut().map(|copy| copy.as_mut_slice::<T>(len));
        let dx = o.step.outputs.first().and(results.first_mut()).map(|dx| dx.as_mut_slice::<T>(o.len(1)));
        let (w, state) = (w.as_mut_slice::<f32>(len), state_slices(state, len));
        let shape = [batch, inputs, outputs];
        kernels::linear_backward_update(self.ctx, shape, o.get::<T>(1), o.get(2), w, low, state, &update, dx);
    }
}

/// The packed weights of an int8 step, made by `pack` where there are none.
fn int8_weights(packed: &mut Packed, pack: impl FnOnce() -> PackedInt8) -> &PackedInt8 {
    if !matches!(packed, Packed::Int8(_)) {
        *packed = Packed::Int8(pack());
    }
    match packed {
        Packed::Int8(packed) => packed,
        _ => unreachable!("packed above"),
    }
}

/// The same of an int4 step.
fn int4_weights(packed: &mut Packed, pack: impl FnOnce() -> PackedInt4) -> &PackedInt4 {
    if !matches!(packed, Packed::Int4(_)) {
        *packed = Packed::Int4(pack());
    }
    match packed {
        Packed::Int4(packed) => packed,
        _ => unreachable!("packed above"),
    }
}

/// The state arrays a kernel takes, `&mut []` for those that a rule does not have.
fn state_slices(state: &mut [Storage], len: usize) -> [&mut [f32]; 2] {
    let mut slices = state.iter_mut().map(|s| s.as_mut_slice::<f32>(len));
    [slices.next().unwrap_or_default(), slices.next().unwrap_or_default()]
}

/// Runs a kernel that writes f32, straight into an f32 result or through scratch into one of type `T`.
fn into_f32<T: Element + Pod>(
    ctx: &Context,
    o: &Operands<'_>,
    scratch: &mut [f32],
    result: &mut Storage,
    kernel: impl FnOnce(&mut [f32]),
) {
    let len = o.out_len(0);
    if o.out_dtype(0) == DType::F32 {
        kernel(result.as_mut_slice(len));
    } else {
        kernel(&mut scratch[..len]);
        kernels::cast(ctx, &scratch[..len], result.as_mut_slice::<T>(len));
    }
}

fn scaled<T: Element + Pod>(ctx: &Context, o: &Operands<'_>, factor: f32, result: &mut Storage) {
    let (x, y) = (o.get::<T>(0), result.as_mut_slice(o.out_len(0)));
    kernels::binary(ctx, kernels::Binary::Mul, kernels::Broadcast::Scalar, x, &[T::from_f32(factor)], y);
}

/// How many products of which shape: leading axes of A fold into M when B has none.
fn matmul_shape(a: &[usize], b: &[usize], transpose_a: bool, transpose_b: bool) -> (usize, Gemm) {
    let pair = |s: &[usize], t: bool| {
        let (rows, columns) = (s[s.len() - 2], s[s.len() - 1]);
        if t { (columns, rows) } else { (rows, columns) }
    };
    let ((m, k), (_, n)) = (pair(a, transpose_a), pair(b, transpose_b));
    let leading: usize = a[..a.len() - 2].iter().product();
    let (batch, m) = if b.len() == 2 { (1, leading * m) } else { (leading, m) };
    let mut product = Gemm::new(m, n, k);
    if transpose_a {
        product = product.transpose_a();
    }
    if transpose_b {
        product = product.transpose_b();
    }
    (batch, product)
}

fn matmul<T: Element, C: Element>(ctx: &Context, batch: usize, product: &Gemm, a: &[T], b: &[T], c: &mut [C]) {
    if batch == 1 {
        kernels::gemm(ctx, product, a, b, Epilogue::default(), c);
    } else {
        kernels::batched_gemm(ctx, &kernels::Batch::contiguous(batch, product), product, a, b, c);
    }
}

/// Puts each pooled gradient at its winner's place, zero elsewhere; odd last rows and columns belong to no window.
fn unpool<T: Element>(input: &[usize; 4], dy: &[T], code: &[u8], dx: &mut [T]) {
    let [batch, height, width, channels] = *input;
    let (rows, columns) = (height / 2, width / 2);
    dx.fill(T::default());
    for (at, (gradient, code)) in dy.iter().zip(code).enumerate().take(batch * rows * columns * channels) {
        if *code == kernels::DEAD {
            continue;
        }
        let (c, place) = (at % channels, at / channels);
        let (column, row, image) = (place % columns, place / columns % rows, place / columns / rows);
        let (y, x) = (2 * row + usize::from(code / 2), 2 * column + usize::from(code % 2));
        dx[((image * height + y) * width + x) * channels + c] = *gradient;
    }
}
