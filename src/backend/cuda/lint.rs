//! What the kernels of each family do to memory, counted access by access by the emulator, against budgets.
//!
//! A budget is what a kernel should reach: 32-byte sectors and 64-byte half-lines within 5 % of the fewest that hold the bytes (filling a
//! half-line costs the memory the whole of it), no bank conflict, and each operand moved once. Larger numbers say why; they count what
//! goes to and from a multiprocessor, so an operand that is read again from a cache counts again.

use super::{
    Cuda,
    emulated::{Counts, Emulated, SANITIZED},
    machine::{Facts, Launch, Machine},
    plan::{self, Places},
    product::{Bucket, Choices, Config, Shape, ranked},
    tests::numbers,
};
use crate::{
    backend::Backend,
    graph::{Activation, Binary, Graph, Op, OptimizerStep, Program, Unary, Window, lower},
    vocab::{DType, Fp8Format, OptimizerKind},
};
use std::{collections::BTreeSet, sync::Arc};

/// Most of what a launch may cost.
#[derive(Clone, Copy)]
struct Budget {
    kernel: &'static str,
    /// Bytes of its operands, each as often as its tiles must read it.
    floor: usize,
    /// What the sectors of all accesses hold, times the floor: what all lanes of a warp read counts once a warp, and again for the next.
    bytes: f64,
    /// Times the fewest.
    sectors: f64,
    half_lines: f64,
    /// Times the accesses.
    wavefronts: f64,
    barriers: u64,
}

/// A budget without concessions.
const fn full(kernel: &'static str, floor: usize) -> Budget {
    Budget { kernel, floor, bytes: 1.02, sectors: 1.0 / 0.95, half_lines: 1.0 / 0.95, wavefronts: 1.0, barriers: u64::MAX }
}

impl Budget {
    const fn bytes(self, bytes: f64) -> Budget {
        Budget { bytes, ..self }
    }
    const fn sectors(self, sectors: f64, half_lines: f64) -> Budget {
        Budget { sectors, half_lines, ..self }
    }
    const fn wavefronts(self, wavefronts: f64) -> Budget {
        Budget { wavefronts, ..self }
    }
    const fn barriers(self, barriers: usize) -> Budget {
        Budget { barriers: barriers as u64, ..self }
    }

    /// What of these counts is over it.
    fn excess(&self, counts: &Counts) -> Vec<String> {
        let share = |a: u64, b: u64| if b == 0 { 1.0 } else { a as f64 / b as f64 };
        let moved = 32.0 * counts.sectors as f64 / self.floor as f64;
        let found = [
            ("times the bytes of its operands", moved, self.bytes),
            ("times the fewest sectors", share(counts.sectors, counts.ideal_sectors), self.sectors),
            ("times the fewest half-lines", share(counts.half_lines, counts.ideal_half_lines), self.half_lines),
            ("wavefronts an access of shared memory", share(counts.shared_wavefronts, counts.shared_accesses), self.wavefronts),
            ("barriers", counts.barriers as f64, self.barriers as f64),
        ];
        let mut out: Vec<String> = found
            .iter()
            .filter(|(_, got, most)| *got > most + 1e-3)
            .map(|(what, got, most)| format!("{}: {got:.3} {what}, budget {most:.3}", self.kernel))
            .collect();
        if moved < 0.99 {
            out.push(format!("{}: {moved:.3} times the bytes of its operands: its floor is wrong", self.kernel));
        }
        out
    }
}

/// One op on operands of these shapes, and the budgets of its launches in order.
struct Case(Op, Vec<(&'static [usize], DType)>, Vec<Budget>);

/// Choices by which a product runs on the kernels that are expected, whatever the model would take.
fn forced(program: &Program, facts: &Facts, expected: &[&str]) -> Choices {
    let plan = plan::plan(program, facts, &Choices::default(), &Places::nowhere(program)).unwrap();
    let is_split = expected.iter().any(|kernel| kernel.starts_with("gemm_reduce"));
    let wanted = |shape: &Shape| {
        let fits = |config: &Config| expected.contains(&config.kernel(shape).as_str()) && (config.splits > 1) == is_split;
        ranked(shape, facts).into_iter().map(|(config, _)| config).find(fits)
    };
    let products = plan.products.into_iter().flatten();
    Choices(products.filter_map(|shape| Some((Bucket::of(&shape), wanted(&shape)?))).collect())
}

/// Runs a graph of one op and gives the counters of its launches. Indices and labels run through their range.
fn counted(op: &Op, operands: &[(&[usize], DType)], expected: &[&str]) -> Option<Vec<(String, Counts)>> {
    // Kernels of warpgroups have no budgets.
    let machine = Arc::new(Emulated::open(0)?.with_shared_bytes(99 << 10));
    let mut graph = Graph::new();
    let inputs: Vec<_> =
        operands.iter().enumerate().map(|(k, (shape, dtype))| graph.input(&format!("x{k}"), shape, *dtype)).collect();
    for (k, y) in graph.apply_all(op.clone(), &inputs).unwrap().into_iter().enumerate() {
        graph.mark_output(&format!("y{k}"), y);
    }
    let rounds_to_tf32 = expected.iter().any(|kernel| kernel.contains("tf32"));
    let program = Program { rounds_to_tf32, ..lower(&graph) };
    let choices = Arc::new(forced(&program, machine.facts(), expected));
    let mut session = Cuda { machine: machine.clone(), choices }.load(program, None).unwrap();
    for (id, (shape, dtype)) in inputs.iter().zip(operands) {
        let count: usize = shape.iter().product();
        match dtype {
            DType::I32 => session.upload_i32(*id, &(0..count).map(|k| (k * 5 % 64) as i32).collect::<Vec<_>>()).unwrap(),
            DType::I8 => session.upload_i8(*id, &(0..count).map(|k| (k % 101) as i8).collect::<Vec<_>>()).unwrap(),
            // Winners of windows: zero, the first.
            DType::U8 => {}
            _ => session.upload_f32(*id, &numbers(count, id.0)).unwrap(),
        }
    }
    machine.take_counts();
    session.execute().unwrap();
    Some(machine.take_counts())
}

/// What is left of a kernel's name without element types, layouts and tiles; tf32 and int8 products are families of their own.
fn family(kernel: &str) -> String {
    const VARIANTS: [&str; 14] = ["f32", "f16", "bf16", "nn", "nt", "tn", "tt", "64", "128", "256", "16", "32", "tall", "f32out"];
    kernel.split('_').filter(|part| !VARIANTS.contains(part)).collect::<Vec<_>>().join("_")
}

const F32: DType = DType::F32;
const BF16: DType = DType::Bf16;
const F16: DType = DType::F16;

/// Elements of most operands below.
const N: usize = 64 * 256;
const SQUARE: &[usize] = &[64, 256];
const IMAGES: &[usize] = &[2, 16, 16, 32];
const POOLED: &[usize] = &[2, 8, 8, 32];

fn rule(kind: OptimizerKind) -> Op {
    let optimizer =
        OptimizerStep { kind, learning_rate: 0.01, momentum: 0.9, beta1: 0.9, beta2: 0.99, epsilon: 1e-6, l1: 0.0, l2: 0.0 };
    Op::Update { optimizer, guarded: false }
}

/// A bias is read again for every row, from the cache.
#[rustfmt::skip]
fn elementwise() -> Vec<Case> {
    let mut out = Vec::new();
    const UNARY: [(Unary, &str, &str, &str, &str); 5] = [
        (Unary::Relu, "relu_f32", "relu_bf16", "relu_grad_f32", "relu_grad_bf16"),
        (Unary::Gelu, "gelu_f32", "gelu_bf16", "gelu_grad_f32", "gelu_grad_bf16"),
        (Unary::Tanh, "tanh_f32", "tanh_bf16", "tanh_grad_f32", "tanh_grad_bf16"),
        (Unary::Sigmoid, "sigmoid_f32", "sigmoid_bf16", "sigmoid_grad_f32", "sigmoid_grad_bf16"),
        (Unary::Exp, "exp_f32", "exp_bf16", "exp_grad_f32", "exp_grad_bf16"),
    ];
    for (f, wide, low, grad, grad_low) in UNARY {
        for (dtype, size, name, grad) in [(F32, 4, wide, grad), (BF16, 2, low, grad_low)] {
            out.push(Case(Op::Unary(f), vec![(SQUARE, dtype)], vec![full(name, 2 * size * N)]));
            out.push(Case(Op::UnaryGrad(f), vec![(SQUARE, dtype); 2], vec![full(grad, 3 * size * N)]));
        }
    }
    const BINARY: [(Binary, &str, &str); 3] =
        [(Binary::Add, "add_f32", "add_f16"), (Binary::Sub, "sub_f32", "sub_f16"), (Binary::Mul, "mul_f32", "mul_f16")];
    for (f, wide, low) in BINARY {
        out.push(Case(Op::Binary(f), vec![(SQUARE, F32); 2], vec![full(wide, 12 * N)]));
        out.push(Case(Op::Binary(f), vec![(SQUARE, F16); 2], vec![full(low, 6 * N)]));
    }
    let cast = |from, to, name, bytes: usize| Case(Op::Cast { to }, vec![(SQUARE, from)], vec![full(name, bytes * N)]);
    out.extend([
        cast(F32, BF16, "cast_f32_bf16", 6), cast(F32, F16, "cast_f32_f16", 6), cast(BF16, F32, "cast_bf16_f32", 6),
        cast(F16, F32, "cast_f16_f32", 6), cast(F16, BF16, "cast_f16_bf16", 4), cast(BF16, F16, "cast_bf16_f16", 4),
    ]);
    out.extend([
        Case(Op::AddBias, vec![(SQUARE, F32), (&[256], F32)], vec![full("add_bias_f32", 8 * N).bytes(1.5)]),
        Case(Op::Scale { factor: 3.0 }, vec![(SQUARE, F32)], vec![full("scale_f32", 8 * N)]),
        Case(Op::Scale { factor: 3.0 }, vec![(SQUARE, BF16)], vec![full("scale_bf16", 4 * N)]),
        Case(Op::RepeatFirst { rows: 64 }, vec![(&[256], F32)], vec![full("repeat_f32", 8 * N)]),
    ]);
    out
}

/// Rows that are held are read once, gains and biases once a row (from the cache); of few rows, scalars are a visible part. Long rows are
/// read again for each pass: softmax once more, norms two times, and gradients read both operands twice.
#[rustfmt::skip]
fn rows() -> Vec<Case> {
    let norm = || Op::LayerNorm { epsilon: 1e-5 };
    const PLAIN: &[usize] = &[32, 512];
    const WIDE: &[usize] = &[4, 4096];
    const LONG: &[usize] = &[1, 16384];
    let gain: (&'static [usize], DType) = (&[256], F32);
    vec![
        Case(Op::Softmax, vec![(SQUARE, F32)], vec![full("softmax_narrow_f32", 8 * N)]),
        Case(Op::Softmax, vec![(SQUARE, BF16)], vec![full("softmax_narrow_bf16", 4 * N)]),
        Case(Op::Softmax, vec![(PLAIN, F32)], vec![full("softmax_f32", 8 * N)]),
        Case(Op::Softmax, vec![(WIDE, F32)], vec![full("softmax_wide_f32", 8 * N)]),
        Case(Op::Softmax, vec![(LONG, F32)], vec![full("softmax_long_f32", 8 * N).bytes(1.5)]),
        Case(Op::SoftmaxGrad, vec![(SQUARE, F32); 2], vec![full("softmax_grad_narrow_f32", 12 * N)]),
        Case(Op::SoftmaxGrad, vec![(SQUARE, F16); 2], vec![full("softmax_grad_narrow_f16", 6 * N)]),
        Case(Op::SoftmaxGrad, vec![(PLAIN, F32); 2], vec![full("softmax_grad_f32", 12 * N)]),
        Case(Op::SoftmaxGrad, vec![(WIDE, F32); 2], vec![full("softmax_grad_wide_f32", 12 * N)]),
        Case(Op::SoftmaxGrad, vec![(LONG, F32); 2], vec![full("softmax_grad_long_f32", 12 * N).bytes(1.67)]),
        Case(Op::CrossEntropy { rows: 64 }, vec![(SQUARE, F32), (&[64], DType::I32)],
            vec![full("cross_entropy_narrow_f32", 8 * N).bytes(1.05), full("loss_sum_f32", 4 * 64 + 4).bytes(3.2)]),
        Case(Op::CrossEntropy { rows: 32 }, vec![(PLAIN, F32), (&[32], DType::I32)],
            vec![full("cross_entropy_f32", 8 * N).bytes(1.05), full("loss_sum_f32", 4 * 32 + 4).bytes(3.2)]),
        Case(Op::CrossEntropy { rows: 4 }, vec![(WIDE, F32), (&[4], DType::I32)],
            vec![full("cross_entropy_wide_f32", 8 * N).bytes(1.05), full("loss_sum_f32", 4 * 4 + 4).bytes(3.2)]),
        Case(Op::CrossEntropy { rows: 1 }, vec![(LONG, F32), (&[1], DType::I32)],
            vec![full("cross_entropy_long_f32", 8 * N).bytes(1.52), full("loss_sum_f32", 4 + 4).bytes(8.0)]),
        Case(norm(), vec![(SQUARE, F32), gain, gain], vec![full("layer_norm_narrow_f32", 8 * N).bytes(2.04)]),
        Case(norm(), vec![(SQUARE, BF16), gain, gain], vec![full("layer_norm_narrow_bf16", 4 * N).bytes(3.07)]),
        Case(norm(), vec![(PLAIN, F32), (&[512], F32), (&[512], F32)], vec![full("layer_norm_f32", 8 * N).bytes(2.04)]),
        Case(norm(), vec![(WIDE, F32), (&[4096], F32), (&[4096], F32)], vec![full("layer_norm_wide_f32", 8 * N).bytes(2.01)]),
        Case(norm(), vec![(LONG, F32), (&[16384], F32), (&[16384], F32)], vec![full("layer_norm_long_f32", 8 * N).bytes(3.01)]),
        Case(Op::LayerNormGrad, vec![(SQUARE, F32), gain, (&[64], F32), (&[64], F32), (SQUARE, F32)],
            vec![full("layer_norm_grad_narrow_f32", 12 * N).bytes(1.36), full("layer_norm_gain_f32", 8 * N).bytes(1.32), full("gain_sum_f32", 4 * 10 * 256)]),
        Case(Op::LayerNormGrad, vec![(SQUARE, BF16), gain, (&[64], F32), (&[64], F32), (SQUARE, BF16)],
            vec![full("layer_norm_grad_narrow_bf16", 6 * N).bytes(1.71), full("layer_norm_gain_bf16", 4 * N).bytes(1.63), full("gain_sum_f32", 4 * 10 * 256)]),
        Case(Op::LayerNormGrad, vec![(PLAIN, F32), (&[512], F32), (&[32], F32), (&[32], F32), (PLAIN, F32)],
            vec![full("layer_norm_grad_f32", 12 * N).bytes(1.36), full("layer_norm_gain_f32", 8 * N).bytes(1.32), full("gain_sum_f32", 4 * 6 * 512)]),
        Case(Op::LayerNormGrad, vec![(WIDE, F32), (&[4096], F32), (&[4], F32), (&[4], F32), (WIDE, F32)],
            vec![full("layer_norm_grad_wide_f32", 12 * N).bytes(1.35), full("layer_norm_gain_f32", 8 * N).bytes(1.5), full("gain_sum_f32", 4 * 4 * 4096)]),
        Case(Op::LayerNormGrad, vec![(LONG, F32), (&[16384], F32), (&[1], F32), (&[1], F32), (LONG, F32)],
            vec![full("layer_norm_grad_long_f32", 12 * N).bytes(2.35), full("layer_norm_gain_f32", 8 * N).bytes(2.25), full("gain_sum_f32", 4 * 4 * 16384)]),
        Case(Op::SumLeading, vec![(&[16, 1024], F32)], vec![full("sum_middle_f32", 4 * N + 4 * 1024)]),
        Case(Op::SumLeading, vec![(&[16, 1024], BF16)], vec![full("sum_middle_bf16", 2 * N + 2 * 1024)]),
        Case(Op::Mean { axis: 1 }, vec![(&[4, 8, 512], BF16)], vec![full("sum_middle_bf16", 2 * N + 2 * 2048)]),
        Case(Op::SumFirst, vec![(&[256, 64], F32)], vec![full("sum_middle_f32", 4 * N + 4 * 4 * 64), full("sum_parts_f32", 5 * 4 * 64)]),
        Case(Op::AllFinite, vec![(SQUARE, F32)], vec![full("set_f32", 32), full("clear_flag_f32", 4 * N)]),
        Case(Op::AllFinite, vec![(SQUARE, BF16)], vec![full("set_f32", 32), full("clear_flag_bf16", 2 * N)]),
        // Each warp also reads the scale and leaves its largest number.
        Case(Op::RoundFp8 { format: Fp8Format::E4m3, to: F32 }, vec![(SQUARE, F32), (&[], F32)], vec![full("set_f32", 32), full("round_e4m3_f32", 8 * N).bytes(1.04)]),
        Case(Op::RoundFp8 { format: Fp8Format::E4m3, to: BF16 }, vec![(SQUARE, F32), (&[], F32)], vec![full("set_f32", 32), full("round_e4m3_f32_bf16", 6 * N).bytes(1.04)]),
        Case(Op::RoundFp8 { format: Fp8Format::E5m2, to: BF16 }, vec![(SQUARE, BF16), (&[], F32)], vec![full("set_f32", 32), full("round_e5m2_bf16", 4 * N).bytes(1.04)]),
    ]
}

/// Updates: each warp reads its chunk and tensor. Embeddings: an index a warp and row, positions for gradients; the sort's blocks read all
/// indices each, 8 blocks of them twice and by 8 warps, and its counters are where the data says. permute_32 and permute_16 here read
/// columns: 4 bytes of each sector; tiles in shared memory (transpose_32, transpose_16) are not what the planner takes yet.
#[rustfmt::skip]
fn updates_and_indices() -> Vec<Case> {
    let w = (SQUARE, F32);
    let last = || full("advance_updates", 64);
    vec![
        Case(rule(OptimizerKind::Sgd), vec![w; 3], vec![full("sgd_f32", 20 * N).bytes(1.05), last()]),
        Case(rule(OptimizerKind::Adam), vec![w; 4], vec![full("adam_f32", 28 * N).bytes(1.05), last()]),
        Case(rule(OptimizerKind::Rmsprop), vec![w; 4], vec![full("rmsprop_f32", 28 * N).bytes(1.05), last()]),
        Case(rule(OptimizerKind::Adam), vec![w, w, w, w, (SQUARE, BF16)], vec![full("adam_bf16", 30 * N).bytes(1.05), last()]),
        Case(Op::Embedding, vec![(&[64, 256], F32), (&[64], DType::I32)], vec![full("embedding_f32", 8 * N).bytes(1.04)]),
        Case(Op::Embedding, vec![(&[64, 256], BF16), (&[64], DType::I32)], vec![full("embedding_bf16", 4 * N).bytes(1.04)]),
        Case(Op::EmbeddingGrad { vocabulary: 64 }, vec![(&[64], DType::I32), (SQUARE, F32)],
            vec![full("embedding_sort", 4 * 3 * 64).bytes(28.1).wavefronts(1.44), full("embedding_grad_f32", 8 * N).bytes(1.6)]),
        Case(Op::Permute { axes: vec![1, 0, 2] }, vec![(&[16, 4, 256], F32)], vec![full("permute_128", 8 * N)]),
        Case(Op::Permute { axes: vec![1, 0] }, vec![(SQUARE, F32)], vec![full("permute_32", 8 * N).bytes(4.5).sectors(4.5, 8.5)]),
        Case(Op::Permute { axes: vec![1, 0] }, vec![(SQUARE, BF16)], vec![full("permute_16", 4 * N).bytes(8.5).sectors(8.5, 16.5)]),
        Case(Op::MaxPool2d { window: Window::square(2, 2, 0) }, vec![(IMAGES, F32)], vec![full("max_pool_f32", 5 * N + N / 4)]),
        Case(Op::MaxPool2d { window: Window::square(2, 2, 0) }, vec![(IMAGES, BF16)], vec![full("max_pool_bf16", 5 * N / 2 + N / 4)]),
        Case(Op::MaxPool2dGrad { window: Window::square(2, 2, 0), input: [2, 16, 16, 32] }, vec![(POOLED, F32), (POOLED, DType::U8)],
            vec![full("max_pool_grad_f32", 5 * N + N / 4)]),
        Case(Op::ConvReluUnpool { input: [2, 16, 16, 32] }, vec![(POOLED, F32), (POOLED, DType::U8)],
            vec![full("relu_unpool_f32", 5 * N + N / 4)]),
    ]
}

/// Implicit products: an input is read for each tap whose tile needs it, mostly from the cache. Small images: halos of tiles, and rows of
/// 16 single channels that start beside a sector.
#[rustfmt::skip]
fn convolutions() -> Vec<Case> {
    let window = || Window::square(3, 1, 1);
    let conv = || Op::Conv2d { window: window(), activation: Activation::None };
    const W: &[usize] = &[3, 3, 32, 32];
    const BYTES: usize = 9 * 32 * 32;
    let grad_input = || Op::Conv2dGradInput { window: window(), input: [2, 16, 16, 32] };
    let grad_weight = || Op::Conv2dGradWeight { window: window() };
    const SMALL: &[usize] = &[2, 16, 16, 1];
    const SMALL_W: &[usize] = &[3, 3, 1, 32];
    const CHANNELS: &[usize] = &[32];
    vec![
        Case(conv(), vec![(IMAGES, F32), (W, F32)], vec![full("conv2d_f32", 8 * N + 4 * BYTES).bytes(5.41)]),
        Case(conv(), vec![(IMAGES, BF16), (W, BF16)], vec![full("conv2d_bf16", 4 * N + 2 * BYTES).bytes(5.31)]),
        Case(grad_input(), vec![(IMAGES, F32), (W, F32)], vec![full("conv2d_grad_input_f32", 8 * N + 4 * BYTES).bytes(5.31)]),
        Case(grad_input(), vec![(IMAGES, BF16), (W, BF16)], vec![full("conv2d_grad_input_bf16", 4 * N + 2 * BYTES).bytes(5.31)]),
        Case(grad_weight(), vec![(IMAGES, F32), (IMAGES, F32)], vec![full("conv2d_grad_weight_f32", 8 * N).bytes(6.2), full("conv2d_reduce_f32", 8 * BYTES)]),
        Case(grad_weight(), vec![(IMAGES, BF16), (IMAGES, BF16)], vec![full("conv2d_grad_weight_bf16", 4 * N).bytes(6.0), full("conv2d_reduce_bf16", 6 * BYTES)]),
        Case(conv(), vec![(IMAGES, F32), (W, F32)], vec![full("conv2d_tf32", 8 * N + 4 * BYTES).bytes(5.41)]),
        Case(grad_input(), vec![(IMAGES, F32), (W, F32)], vec![full("conv2d_grad_input_tf32", 8 * N + 4 * BYTES).bytes(5.31)]),
        Case(grad_weight(), vec![(IMAGES, F32), (IMAGES, F32)], vec![full("conv2d_grad_weight_tf32", 8 * N).bytes(6.2), full("conv2d_reduce_f32", 8 * BYTES)]),
        Case(Op::Conv2dInt8 { window: window(), input_scale: 0.01, activation: Activation::None },
            vec![(IMAGES, F32), (W, DType::I8), (CHANNELS, F32), (CHANNELS, F32)],
            vec![full("quantize_i8", 5 * N), full("conv2d_i8", 5 * N + BYTES).bytes(2.97).sectors(1.1, 1.39)]),
        // Each warp leaves its largest number, or reads the largest of all.
        Case(Op::Conv2dInt8Dynamic { window: window(), activation: Activation::None },
            vec![(IMAGES, F32), (W, DType::I8), (CHANNELS, F32), (CHANNELS, F32)],
            vec![full("set_f32", 32), full("largest_f32", 4 * N).bytes(1.1), full("quantize_i8", 5 * N).bytes(1.1),
                full("conv2d_i8", 5 * N + BYTES).bytes(3.1).sectors(1.1, 1.39)]),
        // 3x3 windows of 32 channels to 32: 288 inputs in groups of 128, the last filled by a quarter.
        Case(Op::DequantizeInt4 { shape: W.to_vec(), group: 128 }, vec![(&[144, 32], DType::I8), (&[3, 32], F16)],
            vec![full("dequantize_i4_f32", 144 * 32 + 2 * 3 * 32 + 4 * 288 * 32).bytes(1.3)]),
        Case(Op::ConvReluPool { window: window() }, vec![(SMALL, F32), (SMALL_W, F32), (CHANNELS, F32)], vec![full("conv_relu_pool_f32", 4 * 512 + 5 * 4096).bytes(1.33).sectors(1.18, 1.21).wavefronts(1.012)]),
        Case(Op::ConvReluPoolGrad { window: window() }, vec![(SMALL, F32), (POOLED, F32), (POOLED, DType::U8)],
            vec![full("conv_relu_pool_grad_f32", 4 * 512 + 5 * 4096).bytes(1.15).wavefronts(1.011), full("conv_relu_pool_grad_sum", 4 * 3 * 320)]),
        Case(Op::ConvReluPool { window: window() }, vec![(IMAGES, F32), (W, F32), (CHANNELS, F32)],
            vec![full("conv2d_f32", 8 * N + 4 * BYTES).bytes(5.41), full("relu_pool_f32", 5 * N + N / 4)]),
    ]
}

/// Products of 256 x 256 x 256 in tiles of 128, of 128 x 128 x 128 in tiles of 64, of 64 x 64 x 64 in tiles of 32: each tile reads its rows and columns. One barrier a
/// step of K, and one before the first (tensor cores: and one before the result). int8: the scales come to the operands.
#[rustfmt::skip]
fn products() -> Vec<Case> {
    let product = |transpose_a, transpose_b| Op::MatMul { transpose_a, transpose_b };
    const LARGE: &[usize] = &[256, 256];
    const SMALL: &[usize] = &[128, 128];
    const TINY: &[usize] = &[64, 64];
    // Two tiles across, so both operands twice, and the result.
    const fn floor(edge: usize, size: usize, out: usize) -> usize { edge * edge * (4 * size + out) }
    // Tiles of 64 x 128: B is read four times. An operand that is turned on its way has a conflict or two.
    let f32_large = |kernel| full(kernel, floor(256, 4, 4)).bytes(1.41).wavefronts(1.09).barriers(8 * (16 + 1));
    let mut out = vec![
        Case(Op::Linear { activation: Activation::None }, vec![(&[4, 256], F32), (LARGE, F32)], vec![full("gemv_f32_nn", 4 * (65536 + 2048)).bytes(1.05).sectors(1.0 / 0.95, 1.09)]),
        Case(Op::LinearInt8 { input_scale: 0.01, activation: Activation::None },
            vec![(LARGE, F32), (LARGE, DType::I8), (&[256], F32), (&[256], F32)],
            vec![full("quantize_i8", 5 * 65536), full("gemm_i8_nt_128", floor(256, 1, 4)).bytes(1.04).barriers(4 * (4 + 2))]),
        Case(Op::LinearInt8 { input_scale: 0.01, activation: Activation::None },
            vec![(SMALL, F32), (SMALL, DType::I8), (&[128], F32), (&[128], F32)],
            vec![full("quantize_i8", 5 * 16384), full("gemm_i8_nt_64", floor(128, 1, 4)).bytes(1.04).barriers(4 * (2 + 2))]),
        // Rows are read twice, for the largest and to be quantised; the result is read and written again to be scaled.
        Case(Op::LinearInt8Dynamic { activation: Activation::None },
            vec![(SMALL, F32), (SMALL, DType::I8), (&[128], F32), (&[128], F32)],
            vec![full("quantize_rows_i8", 5 * 16384 + 4 * 128).bytes(1.9), full("gemm_i8_nt_64", floor(128, 1, 4)).bytes(1.04).barriers(4 * (2 + 2)),
                full("scale_rows_f32", 8 * 16384).bytes(1.6)]),
        // Every block of 4 rows reads the weights; a warp reads a row's number for all of its lanes. Of widened weights one tile is left,
        // whose bias each row of threads reads: a visible part of it.
        Case(Op::LinearInt4 { group: 128, activation: Activation::None },
            vec![(&[4, 256], F32), (&[128, 256], DType::I8), (&[2, 256], F16), (&[256], F32)],
            vec![full("linear_i4_f32", 32768 + 2 * 512 + 4 * (2048 + 1024)).bytes(3.0)]),
        Case(Op::LinearInt4 { group: 128, activation: Activation::None },
            vec![(&[64, 512], F32), (&[256, 64], DType::I8), (&[4, 64], F16), (&[64], F32)],
            vec![full("dequantize_i4_f32", 16384 + 2 * 256 + 4 * 32768).bytes(1.3), full("gemm_f32_nn_64", 4 * (65536 + 4096)).bytes(1.06).wavefronts(1.09)]),
        Case(Op::ChannelScale, vec![(LARGE, F32)], vec![full("channel_scale_f32", 4 * (65536 + 256)).barriers(8)]),
        Case(Op::FakeQuantize, vec![(LARGE, F32), (&[], F32)], vec![full("fake_quantize_f32", 8 * 65536).bytes(1.2)]),
        Case(Op::FakeQuantizeGrad, vec![(LARGE, F32), (&[256], F32), (LARGE, F32)], vec![full("fake_quantize_grad_f32", 12 * 65536).bytes(1.6)]),
        // Few blocks, long K: parts of it, added up.
        Case(product(false, false), vec![(&[64, 512], F32), (&[512, 64], F32)],
            vec![full("gemm_f32_nn_64", 4 * (65536 + 2 * 4096)).wavefronts(1.09), full("gemm_reduce_f32", 4 * 3 * 4096)]),
    ];
    for (a, b, [f32_wide, f32_small, f32_tiny, bf16_large, bf16_small, f16_large]) in [
        (false, false, ["gemm_f32_nn_128", "gemm_f32_nn_64", "gemm_f32_nn_32", "gemm_bf16_nn_128", "gemm_bf16_nn_64", "gemm_f16_nn_128"]),
        (false, true, ["gemm_f32_nt_128", "gemm_f32_nt_64", "gemm_f32_nt_32", "gemm_bf16_nt_128", "gemm_bf16_nt_64", "gemm_f16_nt_128"]),
        (true, false, ["gemm_f32_tn_128", "gemm_f32_tn_64", "gemm_f32_tn_32", "gemm_bf16_tn_128", "gemm_bf16_tn_64", "gemm_f16_tn_128"]),
    ] {
        out.extend([
            Case(product(a, b), vec![(LARGE, F32); 2], vec![f32_large(f32_wide)]),
            Case(product(a, b), vec![(SMALL, F32); 2], vec![full(f32_small, floor(128, 4, 4)).wavefronts(1.09).barriers(4 * (8 + 1))]),
            Case(product(a, b), vec![(TINY, F32); 2], vec![full(f32_tiny, floor(64, 4, 4)).wavefronts(1.12).barriers(4 * (1 + 1 + 1))]),
            Case(product(a, b), vec![(LARGE, BF16); 2], vec![full(bf16_large, floor(256, 2, 2)).barriers(4 * (8 + 2))]),
            Case(product(a, b), vec![(SMALL, BF16); 2], vec![full(bf16_small, floor(128, 2, 2)).barriers(4 * (4 + 2))]),
            Case(product(a, b), vec![(LARGE, F16); 2], vec![full(f16_large, floor(256, 2, 2)).barriers(4 * (8 + 2))]),
        ]);
    }
    out
}

/// A kernel that no program calls yet: grid, threads, bytes of each operand (0: a null pointer), then the fields of 8 and of 4 bytes.
struct Direct(Budget, [u32; 3], u32, Vec<usize>, Vec<u64>, Vec<u32>);

fn counted_directly(case: &Direct) -> Counts {
    let Direct(budget, grid, block, operands, longs, words) = case;
    let machine = Emulated::open(0).expect("asked before");
    let mut arguments = Vec::new();
    let mut addresses = Vec::new();
    for (k, bytes) in operands.iter().enumerate() {
        let address = if *bytes == 0 { 0 } else { machine.allocate(*bytes).unwrap() };
        if *bytes > 0 {
            // Small whole numbers, or tiny floats: sums of them stay in range, and each is a row of a table.
            let words: Vec<u32> = (k..k + bytes / 4).map(|word| (word % 61) as u32).collect();
            machine.upload(address, bytemuck::cast_slice(&words)).unwrap();
            addresses.push(address);
        }
        arguments.extend(address.to_le_bytes());
    }
    longs.iter().for_each(|field| arguments.extend(field.to_le_bytes()));
    words.iter().for_each(|field| arguments.extend(field.to_le_bytes()));
    let launch =
        Launch { kernel: budget.kernel.into(), grid: *grid, block: *block, shared_bytes: 0, arguments, maps: Vec::new() };
    machine.launch(&launch).unwrap();
    addresses.into_iter().for_each(|address| machine.release(address));
    machine.take_counts()[0].1
}

#[rustfmt::skip]
fn direct() -> Vec<Direct> {
    const SQUARES: usize = 4 * N;
    let product = |kernel, [lda, ldb]: [u32; 2]| Direct(
        full(kernel, 5 * 4 * 256 * 256).barriers(4 * (16 + 2)), [4, 1, 1], 128, vec![4 * 65536, 4 * 65536, 0, 4 * 65536, 0, 0, 0],
        vec![0; 3], vec![256, 256, 256, lda, ldb, 256, 1, 0],
    );
    let small = |kernel| Direct(
        full(kernel, 5 * 4 * 128 * 128).barriers(4 * (8 + 2)), [4, 1, 1], 128, vec![4 * 16384, 4 * 16384, 0, 4 * 16384, 0, 0, 0],
        vec![0; 3], vec![128, 128, 128, 128, 128, 128, 1, 0],
    );
    let turned = |kernel, size: usize| Direct(
        full(kernel, 2 * size * N), [8, 1, 1], 256, vec![size * N; 2],
        [vec![256, 64], vec![0; 8]].concat(), vec![1, 1, 1, 1, 64, 256],
    );
    // A tile: numbers in, codes out as they lie and turned; a warp stores 32 bytes of a row, half of a half-line.
    let codes = |kernel, size: usize| Direct(
        full(kernel, (size + 2) * 16384).sectors(1.0 / 0.95, 1.25).barriers(1), [1, 1, 1], 256, vec![size * 16384, 4, 16384, 16384, 4], vec![], vec![128, 128],
    );
    vec![
        product("gemm_tf32_nn_128", [256; 2]), product("gemm_tf32_nt_128", [256; 2]), product("gemm_tf32_tn_128", [256; 2]),
        small("gemm_tf32_nn_64"), small("gemm_tf32_nt_64"), small("gemm_tf32_tn_64"),
        Direct(full("gemm_reduce_i8", 3 * 4 * 4096).bytes(1.36), [4, 1, 1], 256, vec![0, 0, 0, 4 * 4096, 8 * 4096, 4, 4 * 64],
            vec![0; 3], vec![64, 64, 512, 512, 512, 64, 2, 0]),
        turned("transpose_32", 4), turned("transpose_16", 2),
        codes("pack_e4m3_f32", 4), codes("pack_e5m2_bf16", 2),
        Direct(full("rms_norm_narrow_f32", 2 * SQUARES).bytes(1.52), [8, 1, 1], 256, vec![SQUARES, 1024, 0, SQUARES, 0, 256], vec![],
            vec![64, 256, 1e-5f32.to_bits(), 0]),
        Direct(full("rms_norm_f32", 2 * SQUARES).bytes(1.52), [4, 1, 1], 256, vec![SQUARES, 2048, 0, SQUARES, 0, 128], vec![],
            vec![32, 512, 1e-5f32.to_bits(), 0]),
        Direct(full("rms_norm_wide_f32", 2 * SQUARES).bytes(1.51), [4, 1, 1], 256, vec![SQUARES, 16384, 0, SQUARES, 0, 16], vec![],
            vec![4, 4096, 1e-5f32.to_bits(), 0]),
        Direct(full("rms_norm_long_f32", 2 * SQUARES).bytes(2.01), [4, 1, 1], 256, vec![SQUARES, 16384, 0, SQUARES, 0, 16], vec![],
            vec![4, 4096, 1e-5f32.to_bits(), 0]),
        Direct(full("rms_norm_grad_narrow_f32", 3 * SQUARES).bytes(1.35), [8, 1, 1], 256, vec![SQUARES, 1024, 0, 256, SQUARES, SQUARES, 4], vec![], vec![64, 256]),
        Direct(full("rms_norm_grad_f32", 3 * SQUARES).bytes(1.35), [4, 1, 1], 256, vec![SQUARES, 2048, 0, 128, SQUARES, SQUARES, 4], vec![], vec![32, 512]),
        Direct(full("rms_norm_grad_wide_f32", 3 * SQUARES).bytes(1.35), [4, 1, 1], 256, vec![SQUARES, 16384, 0, 16, SQUARES, SQUARES, 4], vec![], vec![4, 4096]),
        Direct(full("rms_norm_grad_long_f32", 3 * SQUARES).bytes(2.34), [4, 1, 1], 256, vec![SQUARES, 16384, 0, 16, SQUARES, SQUARES, 4], vec![], vec![4, 4096]),
        Direct(full("rms_norm_gain_f32", 2 * SQUARES).bytes(1.19), [4, 1, 1], 256, vec![SQUARES, 1024, 0, 256, SQUARES, SQUARES, 8192], vec![], vec![64, 256]),
        Direct(full("argmax_f32", SQUARES).bytes(1.64).sectors(1.06, 1.1), [8, 1, 1], 256, vec![SQUARES, 256], vec![], vec![64, 256]),
        Direct(full("gather_rows_f32", 2 * SQUARES).bytes(1.04), [16, 1, 1], 256, vec![SQUARES, 256, SQUARES], vec![64], vec![256, 64]),
    ]
}

/// Families without a budget: one instruction each, a gather whose pattern is the data's, four whose copies the tensor memory engine makes in
/// whole boxes (`every_configuration_of_a_product_is_right_on_ragged_shapes_in_every_layout`,
/// `every_convolution_by_warpgroups_is_right_on_ragged_shapes` and
/// `products_of_8_bit_numbers_are_those_of_the_rounded_ones_on_ragged_shapes` and
/// `products_with_two_of_four_weights_are_those_of_all_on_ragged_shapes` run them), four numbers of a loss scale, and a few more of the scale of
/// 8-bit numbers.
const WITHOUT: [&str; 8] =
    ["conform", "rotate_scale", "gemm_wgmma", "gemm_fp8", "gemm_two_four", "conv_wgmma", "adjust_loss_scale", "move_fp8_scale"];

#[test]
fn kernels_touch_no_more_sectors_and_banks_than_their_budgets() {
    let (mut wrong, mut unexpected, mut families) = (Vec::new(), Vec::new(), BTreeSet::new());
    let mut look = |budget: &Budget, counts: &Counts| {
        families.insert(family(budget.kernel));
        if std::env::var_os("ADVISOR_SHOW_COUNTS").is_some() {
            println!("{} {counts:?}", budget.kernel);
        }
        // Under the sanitizers the launches are all that is wanted.
        if std::env::var_os(SANITIZED).is_none() {
            wrong.extend(budget.excess(counts));
        }
    };
    for Case(op, operands, budgets) in
        [elementwise(), rows(), updates_and_indices(), convolutions(), products()].into_iter().flatten()
    {
        let expected: Vec<&str> = budgets.iter().map(|budget| budget.kernel).collect();
        let Some(launches) = counted(&op, &operands, &expected) else { return };
        let names: Vec<&str> = launches.iter().map(|(kernel, _)| kernel.as_str()).collect();
        if names != expected {
            unexpected.push(format!("{} {operands:?} launches {names:?}, not {expected:?}", op.name()));
            continue;
        }
        budgets.iter().zip(&launches).for_each(|(budget, (_, counts))| look(budget, counts));
    }
    direct().iter().for_each(|case| look(&case.0, &counted_directly(case)));
    let manifest: serde_json::Value = serde_json::from_str(include_str!("../../../kernels/built/manifest.json")).unwrap();
    let images = manifest["files"].as_object().unwrap().values().flat_map(|file| file["images"].as_object().unwrap().values());
    let kernels = images.flat_map(|image| image["kernels"].as_object().unwrap().keys());
    let all: BTreeSet<String> =
        kernels.filter(|kernel| !WITHOUT.iter().any(|start| kernel.starts_with(start))).map(|kernel| family(kernel)).collect();
    let missed: Vec<_> = all.difference(&families).collect();
    assert!(unexpected.is_empty(), "{}", unexpected.join("\n"));
    assert!(wrong.is_empty(), "{} over budget:\n{}", wrong.len(), wrong.join("\n"));
    assert!(missed.is_empty(), "no budget for {missed:?}");
}
