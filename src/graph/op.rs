//! Ops as data: one variant per family, with its shape rule, its work and its name.
//!
//! A backend matches on `Op` and runs it; the cost model asks `work`; passes rewrite nodes. Formulas stand at the variants.

use super::{Exchange, Value};
use crate::{
    units::{Bytes, Flops},
    vocab::{DType, Fp8Format, OptimizerKind, Vocabulary},
};

/// Code of a pooled output whose ReLU is off.
pub const DEAD_CODE: u8 = 4;

/// A 2-D window that slides over `[H, W]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub size: [usize; 2],
    pub stride: [usize; 2],
    /// Zeros added on every side.
    pub padding: [usize; 2],
}

impl Window {
    pub const fn square(size: usize, stride: usize, padding: usize) -> Self {
        Window { size: [size, size], stride: [stride, stride], padding: [padding, padding] }
    }

    /// Positions along each axis: `floor((extent + 2 padding - size) / stride) + 1`; none where the window does not fit.
    pub fn output(&self, extent: [usize; 2]) -> Option<[usize; 2]> {
        let along = |axis: usize| {
            let padded = extent[axis] + 2 * self.padding[axis];
            (padded >= self.size[axis] && self.stride[axis] > 0).then(|| (padded - self.size[axis]) / self.stride[axis] + 1)
        };
        Some([along(0)?, along(1)?])
    }
}

/// Functions of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unary {
    /// `max(x, 0)`; derivative 0 at 0.
    Relu,
    /// `x Phi(x)`, Phi by the error function (Hendrycks & Gimpel 2016).
    Gelu,
    Tanh,
    Sigmoid,
    Exp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    Add,
    Sub,
    Mul,
}

/// Tail of a fused op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    None,
    Relu,
    Gelu,
}

/// Constants of a weight update; `record::OptimizerConfig` with regularisation, as an op carries it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerStep {
    pub kind: OptimizerKind,
    pub learning_rate: f64,
    pub momentum: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub l1: f64,
    pub l2: f64,
}

impl OptimizerStep {
    /// Arrays of state, each of the parameter's shape.
    pub const fn state_arrays(&self) -> usize {
        match self.kind {
            OptimizerKind::Sgd => 1,
            OptimizerKind::Adam | OptimizerKind::Adamw => 2,
            // Mean square, and momentum where it is used.
            OptimizerKind::Rmsprop => 2,
        }
    }

    /// Arithmetic of one weight's update, counted from the formulas in `backend::cpu`.
    const fn flops_per_weight(&self) -> u64 {
        match self.kind {
            OptimizerKind::Sgd => 6,
            OptimizerKind::Adam | OptimizerKind::Adamw => 14,
            OptimizerKind::Rmsprop => 10,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `C = op(A) op(B)`. A `[.., M, K]`, B `[.., K, N]` with the same leading extents, or B `[K, N]` for all of A's rows.
    /// A flag says that the operand is stored transposed in its last two axes.
    MatMul {
        transpose_a: bool,
        transpose_b: bool,
    },
    /// `y = x W + b`, then the activation. x `[.., K]`, W `[K, N]`, b `[N]` (third input, optional).
    Linear {
        activation: Activation,
    },
    /// x `[B, H, W, Cin]`, w `[KH, KW, Cin, Cout]`, optional b `[Cout]`; then the activation.
    Conv2d {
        window: Window,
        activation: Activation,
    },
    /// (dy, w) to dx of shape `input`.
    Conv2dGradInput {
        window: Window,
        input: [usize; 4],
    },
    /// (x, dy) to dw.
    Conv2dGradWeight {
        window: Window,
    },
    /// Convolution, bias, ReLU and 2x2 max pooling in one pass: x, w, b to pooled y and the winner's code
    /// (0..=3 by row then column of the 2x2 window; `DEAD_CODE` where ReLU is off and no gradient passes). Stride 1.
    ConvReluPool {
        window: Window,
    },
    /// (x, dy, code) to dw, db.
    ConvReluPoolGrad {
        window: Window,
    },
    /// (dy, code) to the gradient before ReLU, of shape `input` `[B, H, W, Cout]`.
    ConvReluUnpool {
        input: [usize; 4],
    },
    /// y and, per output, the winner's index within its window, row-major (u8; windows up to 15 x 15).
    MaxPool2d {
        window: Window,
    },
    /// (dy, index) to dx of shape `input`.
    MaxPool2dGrad {
        window: Window,
        input: [usize; 4],
    },
    Unary(Unary),
    /// dx from (x, dy); for ReLU, Tanh, Sigmoid and Exp the first operand is y instead.
    UnaryGrad(Unary),
    /// Two operands of one shape.
    Binary(Binary),
    /// x `[.., N]` + b `[N]`.
    AddBias,
    /// `factor * x`.
    Scale {
        factor: f64,
    },
    /// x times a scalar value.
    MulScalar,
    /// Sum over all axes but the last: `[.., N]` to `[N]`.
    SumLeading,
    /// Mean over one axis, which disappears.
    Mean {
        axis: usize,
    },
    /// Gradient of `Mean`: dy repeated `extent` times along a new axis, divided by `extent`.
    MeanGrad {
        axis: usize,
        extent: usize,
    },
    /// Sum over one leading axis: `[R, ..]` to `[..]` (gradient of a broadcast over the batch).
    SumFirst,
    /// `[..]` to `[rows, ..]`: the same for every row (a position embedding).
    RepeatFirst {
        rows: usize,
    },
    /// Same elements, another shape; costs nothing.
    Reshape {
        shape: Vec<usize>,
    },
    Permute {
        axes: Vec<usize>,
    },
    /// Over the last axis.
    Softmax,
    /// (y, dy) to dx.
    SoftmaxGrad,
    /// x `[.., N]`, gain `[N]`, bias `[N]` to y, mean `[..]`, reciprocal standard deviation `[..]` (Ba et al. 2016).
    LayerNorm {
        epsilon: f64,
    },
    /// (x, gain, mean, rstd, dy) to dx, dgain, dbias.
    LayerNormGrad,
    /// logits `[R, C]`, labels i32 `[R]` to the summed loss divided by `rows`, and its gradient by the logits `[R, C]` (f32).
    CrossEntropy {
        rows: usize,
    },
    /// table `[V, N]`, indices i32 `[..]` to `[.., N]`.
    Embedding,
    /// (indices, dy) to the table's gradient of shape `[vocabulary, N]`.
    EmbeddingGrad {
        vocabulary: usize,
    },
    /// images f32 `[B, H, W, C]`, maps f32 `[B, 6]` to images of the same shape, for each of whose pixels the map says where it comes from:
    /// with (dy, dx) from the middle of the image, at (m0 dy + m1 dx + m2, m3 dy + m4 dx + m5), between four pixels, and 0 outside.
    Warp,
    Cast {
        to: DType,
    },
    /// (x, s) to the numbers of `format` that are nearest to s x, divided by s again, of type `to`, and the largest |x| (f32 `[]`). s is a
    /// power of two, or 0 where none is known yet, which stands for 1. What lies beyond the format becomes its largest number.
    RoundFp8 {
        format: Fp8Format,
        to: DType,
    },
    /// x as it is, of (x, s); its gradient is rounded to `format` as `RoundFp8` does with s, where it enters the products behind. Costs nothing.
    RoundGradient {
        format: Fp8Format,
    },
    /// Delayed scaling, in place, of (scale `[]`, history `[W]`, largest |x| of this step, once or more often): the history moves on by one
    /// step, and the scale becomes the largest power of two with which `margin` doublings of the largest number in it still fit `format`.
    /// Where nothing in it is positive and finite the scale stays.
    MoveFp8Scale {
        format: Fp8Format,
        margin: u32,
    },
    /// In place: parameter, its gradient, its state arrays; then optionally a low-precision copy to refresh; and, for `guarded`, the
    /// scalars (loss scale, all-finite flag) last. `step` counts for Adam's bias correction and lives in the backend.
    Update {
        optimizer: OptimizerStep,
        guarded: bool,
    },
    /// `dW = x^T dy` applied to W at once, tile by tile, dW never written: (W, x, dy, state arrays, optionally a low-precision copy
    /// to refresh), in place; where it has a result, that is `dx = dy W^T` from the weights before the update. Made by lowering.
    LinearUpdate {
        optimizer: OptimizerStep,
    },
    /// One flag (f32 1.0 or 0.0): are all elements of all operands finite?
    AllFinite,
    /// Dynamic loss scaling, in place: (loss scale, counts `[2]` of good steps in a row and of skipped ones, loss, all-finite flag). A flag
    /// of 0 halves the scale, down to 1/2, and `growth_interval` good steps in a row double it, up to `largest`. A step that is
    /// skipped at a scale below 1 has a loss of NaN: scaling cannot be what is wrong there.
    AdjustLossScale {
        growth_interval: u32,
        largest: f64,
    },
    /// x as it is on every tensor-parallel rank; its gradient is summed over them (`f` of Shoeybi et al. 2019). Costs nothing.
    Replicate,
    /// Something that other ranks take part in.
    Exchange(Exchange),
    /// x f32 `[.., K]`, W f32 `[K, N]` of which two in every four consecutive weights along K are zero, b `[N]`: reads only the others.
    LinearTwoFour {
        activation: Activation,
    },
    /// x f32 `[.., K]`, W f32 `[K, N]` of which `filled` weights are not zero, b `[N]`: reads only those.
    LinearSparse {
        filled: usize,
        activation: Activation,
    },
    /// x f32 `[.., K]` quantised by `input_scale`, w i8 `[K, N]`, per-channel scales `[N]`, b `[N]`; i32 sums, f32 out.
    LinearInt8 {
        input_scale: f64,
        activation: Activation,
    },
    /// The same with each row of x quantised by a scale of its own, measured at run time: its largest magnitude becomes 127.
    LinearInt8Dynamic {
        activation: Activation,
    },
    /// x f32 `[.., K]`, weights of 4 bits: i8 `[ceil(K / 2), N]`, each byte two signed numbers, the low half the earlier one along K;
    /// scales f16 `[ceil(K / group), N]`, b `[N]`. `group` is a multiple of 8. Products and sums in f32.
    LinearInt4 {
        group: usize,
        activation: Activation,
    },
    /// x `[.., N]` to `[N]`: the step of a grid of 8 bits by which the largest magnitude of each column is 127; 1 where all are zero.
    ChannelScale,
    /// (x, scale `[]` or `[N]`) to `scale round(x / scale)`, held to 127 steps: what an int8 product will see. The gradient goes
    /// straight through (Bengio et al. 2013) where x lies inside.
    FakeQuantize,
    /// (x, scale, dy) to dx.
    FakeQuantizeGrad,
    /// As `LinearInt8` for a convolution, w i8 `[KH, KW, Cin, Cout]`.
    Conv2dInt8 {
        window: Window,
        input_scale: f64,
        activation: Activation,
    },
    /// The same with all of x quantised by one scale, measured at run time: its largest magnitude becomes 127.
    Conv2dInt8Dynamic {
        window: Window,
        activation: Activation,
    },
    /// Weights of 4 bits as f32 of `shape`, whose last axis are the outputs N and the others together the inputs K: i8
    /// `[ceil(K / 2), N]` and scales f16 `[ceil(K / group), N]`, both as `LinearInt4` has them.
    DequantizeInt4 {
        shape: Vec<usize>,
        group: usize,
    },
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GraphError {
    #[error("`{op}` takes {expected}, got {}", shapes(.got))]
    Shape { op: &'static str, expected: &'static str, got: Vec<(Vec<usize>, DType)> },
    #[error("`{op}` has no gradient")]
    NoGradient { op: &'static str },
    #[error("`{name}` is not in the graph")]
    Missing { name: String },
    #[error("the model reads {reads}, but the rows are {given}")]
    Rows { reads: &'static str, given: &'static str },
}

fn shapes(got: &[(Vec<usize>, DType)]) -> String {
    let each = got.iter().map(|(shape, dtype)| format!("{}{shape:?}", dtype.name()));
    each.collect::<Vec<_>>().join(", ")
}

/// What an op costs, counted; see `units` for the conventions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    pub flops: Flops,
    /// Each operand read once, each result written once.
    pub bytes: Bytes,
    /// Payload handed to other ranks.
    pub message_bytes: Bytes,
}

impl Work {
    pub fn plus(self, other: Work) -> Work {
        Work {
            flops: self.flops + other.flops,
            bytes: self.bytes + other.bytes,
            message_bytes: self.message_bytes + other.message_bytes,
        }
    }
}

pub(super) type Made = Vec<(Vec<usize>, DType)>;

impl Op {
    /// The op's family, as profiles and kernels call it.
    /// What the name and the shapes do not tell of how it is computed, where that makes a difference in time; empty where nothing.
    pub fn variant(&self) -> &'static str {
        match self {
            Op::MatMul { transpose_a: true, transpose_b: false } => "transposed a",
            Op::MatMul { transpose_a: false, transpose_b: true } => "transposed b",
            Op::MatMul { transpose_a: true, transpose_b: true } => "transposed both",
            Op::Linear { activation: Activation::Gelu }
            | Op::LinearTwoFour { activation: Activation::Gelu }
            | Op::LinearSparse { activation: Activation::Gelu, .. }
            | Op::LinearInt8 { activation: Activation::Gelu, .. }
            | Op::LinearInt8Dynamic { activation: Activation::Gelu }
            | Op::LinearInt4 { activation: Activation::Gelu, .. } => "gelu",
            _ => "",
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Op::MatMul { .. } => "matmul",
            Op::Linear { .. } => "linear",
            Op::Conv2d { .. } => "conv2d",
            Op::Conv2dGradInput { .. } => "conv2d_grad_input",
            Op::Conv2dGradWeight { .. } => "conv2d_grad_weight",
            Op::ConvReluPool { .. } => "conv2d_relu_max_pool",
            Op::ConvReluPoolGrad { .. } => "conv2d_relu_max_pool_grad",
            Op::ConvReluUnpool { .. } => "relu_unpool",
            Op::MaxPool2d { .. } => "max_pool2d",
            Op::MaxPool2dGrad { .. } => "max_pool2d_grad",
            Op::Unary(Unary::Relu) => "relu",
            Op::Unary(Unary::Gelu) => "gelu",
            Op::Unary(Unary::Tanh) => "tanh",
            Op::Unary(Unary::Sigmoid) => "sigmoid",
            Op::Unary(Unary::Exp) => "exp",
            Op::UnaryGrad(Unary::Relu) => "relu_grad",
            Op::UnaryGrad(Unary::Gelu) => "gelu_grad",
            Op::UnaryGrad(Unary::Tanh) => "tanh_grad",
            Op::UnaryGrad(Unary::Sigmoid) => "sigmoid_grad",
            Op::UnaryGrad(Unary::Exp) => "exp_grad",
            Op::Binary(Binary::Add) => "add",
            Op::Binary(Binary::Sub) => "sub",
            Op::Binary(Binary::Mul) => "mul",
            Op::AddBias => "add_bias",
            Op::Scale { .. } => "scale",
            Op::MulScalar => "mul_scalar",
            Op::SumLeading => "sum_leading",
            Op::Mean { .. } => "mean",
            Op::MeanGrad { .. } => "mean_grad",
            Op::SumFirst => "sum_first",
            Op::RepeatFirst { .. } => "repeat_first",
            Op::Reshape { .. } => "reshape",
            Op::Permute { .. } => "permute",
            Op::Softmax => "softmax",
            Op::SoftmaxGrad => "softmax_grad",
            Op::LayerNorm { .. } => "layer_norm",
            Op::LayerNormGrad => "layer_norm_grad",
            Op::CrossEntropy { .. } => "softmax_cross_entropy",
            Op::Embedding => "embedding",
            Op::EmbeddingGrad { .. } => "embedding_grad",
            Op::Warp => "warp",
            Op::Cast { .. } => "cast",
            Op::RoundFp8 { .. } => "round_fp8",
            Op::RoundGradient { .. } => "round_gradient",
            Op::MoveFp8Scale { .. } => "move_fp8_scale",
            Op::Update { .. } => "update",
            Op::LinearUpdate { .. } => "linear_grad_update",
            Op::AllFinite => "all_finite",
            Op::AdjustLossScale { .. } => "adjust_loss_scale",
            Op::Replicate => "replicate",
            Op::Exchange(exchange) => exchange.name(),
            Op::LinearTwoFour { .. } => "linear_2_4",
            Op::LinearSparse { .. } => "linear_sparse",
            Op::LinearInt8 { .. } => "linear_int8",
            Op::LinearInt8Dynamic { .. } => "linear_int8_dynamic",
            Op::LinearInt4 { .. } => "linear_int4",
            Op::ChannelScale => "channel_scale",
            Op::FakeQuantize => "fake_quantize",
            Op::FakeQuantizeGrad => "fake_quantize_grad",
            Op::Conv2dInt8 { .. } => "conv2d_int8",
            Op::Conv2dInt8Dynamic { .. } => "conv2d_int8_dynamic",
            Op::DequantizeInt4 { .. } => "dequantize_int4",
        }
    }

    /// True for ops that write their operands, or send them away, and have no outputs of their own.
    pub fn is_in_place(&self) -> bool {
        match self {
            Op::Update { .. } | Op::LinearUpdate { .. } | Op::AdjustLossScale { .. } | Op::MoveFp8Scale { .. } => true,
            Op::Exchange(exchange) => exchange.is_in_place(),
            _ => false,
        }
    }

    /// True for ops that are another name for their operand's memory.
    pub fn is_alias(&self) -> bool {
        matches!(self, Op::Reshape { .. } | Op::Replicate | Op::RoundGradient { .. })
    }

    /// Operands that an in-place op writes.
    pub fn written_inputs(&self, inputs: usize) -> Vec<usize> {
        match self {
            Op::Update { optimizer, guarded } => {
                let state = optimizer.state_arrays();
                let copy = inputs > 2 + state + if *guarded { 2 } else { 0 };
                std::iter::once(0).chain(2..2 + state + usize::from(copy)).collect()
            }
            Op::LinearUpdate { .. } => std::iter::once(0).chain(3..inputs).collect(),
            Op::AdjustLossScale { .. } => vec![0, 1, 2],
            Op::MoveFp8Scale { .. } => vec![0, 1],
            Op::Exchange(exchange) => exchange.written_inputs(inputs),
            _ => Vec::new(),
        }
    }

    /// Shapes and element types of the outputs; an error where the operands do not fit.
    pub fn infer(&self, operands: &[&Value]) -> Result<Made, GraphError> {
        let fail = |expected: &'static str| GraphError::Shape {
            op: self.name(),
            expected,
            got: operands.iter().map(|v| (v.shape.clone(), v.dtype)).collect(),
        };
        let float = |v: &Value| v.dtype.is_float();
        let one = |shape: &[usize], dtype: DType| Ok(vec![(shape.to_vec(), dtype)]);
        match (self, operands) {
            (Op::MatMul { transpose_a, transpose_b }, [a, b]) => {
                let expected = "A [.., M, K] and B [.., K, N] of one float type";
                let (ra, rb) = (a.shape.len(), b.shape.len());
                if ra < 2 || rb < 2 || a.dtype != b.dtype || !float(a) {
                    return Err(fail(expected));
                }
                let dims = |s: &[usize], t: bool| {
                    let (r, c) = (s[s.len() - 2], s[s.len() - 1]);
                    if t { (c, r) } else { (r, c) }
                };
                let ((m, ka), (kb, n)) = (dims(&a.shape, *transpose_a), dims(&b.shape, *transpose_b));
                let leading_fit = a.shape[..ra - 2] == b.shape[..rb - 2] || (rb == 2 && !transpose_a);
                if ka != kb || !leading_fit {
                    return Err(fail(expected));
                }
                let mut shape = a.shape[..ra - 2].to_vec();
                shape.extend([m, n]);
                one(&shape, a.dtype)
            }
            (Op::Linear { .. }, [x, w, rest @ ..]) => {
                let fits = w.shape.len() == 2
                    && x.shape.last() == Some(&w.shape[0])
                    && x.dtype == w.dtype
                    && float(x)
                    && rest.len() <= 1
                    && rest.iter().all(|b| b.shape == [w.shape[1]] && float(b));
                if !fits {
                    return Err(fail("x [.., K], W [K, N] of one float type, and b [N] or nothing"));
                }
                let mut shape = x.shape.clone();
                *shape.last_mut().expect("x has an axis") = w.shape[1];
                one(&shape, x.dtype)
            }
            (Op::Conv2d { window, .. }, [x, w, rest @ ..]) => {
                let expected = "x [B, H, W, Cin], w [KH, KW, Cin, Cout] of one float type, and b [Cout] or nothing";
                let shape = conv_shape(window, x, w).ok_or_else(|| fail(expected))?;
                if x.dtype != w.dtype || !float(x) || rest.len() > 1 || !rest.iter().all(|b| b.shape == [w.shape[3]]) {
                    return Err(fail(expected));
                }
                one(&shape, x.dtype)
            }
            (Op::Conv2dGradInput { window, input }, [dy, w]) => {
                let fits = dy.shape.len() == 4
                    && w.shape.len() == 4
                    && w.shape[2] == input[3]
                    && window.output([input[1], input[2]]).is_some_and(|[h, v]| dy.shape == [input[0], h, v, w.shape[3]]);
                if fits { one(input, dy.dtype) } else { Err(fail("dy [B, OH, OW, Cout] and w [KH, KW, Cin, Cout]")) }
            }
            (Op::Conv2dGradWeight { window }, [x, dy]) => {
                let fits = x.shape.len() == 4
                    && dy.shape.len() == 4
                    && x.shape[0] == dy.shape[0]
                    && window.output([x.shape[1], x.shape[2]]) == Some([dy.shape[1], dy.shape[2]]);
                if !fits {
                    return Err(fail("x [B, H, W, Cin] and dy [B, OH, OW, Cout]"));
                }
                one(&[window.size[0], window.size[1], x.shape[3], dy.shape[3]], x.dtype)
            }
            (Op::ConvReluPool { window }, [x, w, b]) => {
                let expected = "x [B, H, W, Cin], w [KH, KW, Cin, Cout], b [Cout], stride 1, at least 2 x 2 outputs";
                let [n, h, v, c] = conv_shape(window, x, w).ok_or_else(|| fail(expected))?;
                if window.stride != [1, 1] || b.shape != [c] || h < 2 || v < 2 || x.dtype != w.dtype || !float(x) {
                    return Err(fail(expected));
                }
                let shape = vec![n, h / 2, v / 2, c];
                Ok(vec![(shape.clone(), x.dtype), (shape, DType::U8)])
            }
            (Op::ConvReluPoolGrad { window }, [x, dy, code]) => {
                if dy.shape != code.shape || code.dtype != DType::U8 || dy.shape.len() != 4 || x.shape.len() != 4 {
                    return Err(fail("x [B, H, W, Cin], dy and code [B, OH / 2, OW / 2, Cout]"));
                }
                let c = dy.shape[3];
                Ok(vec![(vec![window.size[0], window.size[1], x.shape[3], c], DType::F32), (vec![c], DType::F32)])
            }
            (Op::ConvReluUnpool { input }, [dy, code]) => {
                let fits = dy.shape == code.shape && dy.shape == [input[0], input[1] / 2, input[2] / 2, input[3]];
                if fits { one(input, dy.dtype) } else { Err(fail("dy and code [B, H / 2, W / 2, C]")) }
            }
            (Op::MaxPool2d { window }, [x]) => {
                let expected = "x [B, H, W, C], a window that fits and at most 255 places in it";
                let [b, h, w, c] = x.shape[..] else { return Err(fail(expected)) };
                let Some([oh, ow]) = window.output([h, w]).filter(|_| window.size[0] * window.size[1] <= 255) else {
                    return Err(fail(expected));
                };
                if window.padding != [0, 0] {
                    return Err(fail("a window without padding"));
                }
                let shape = vec![b, oh, ow, c];
                Ok(vec![(shape.clone(), x.dtype), (shape, DType::U8)])
            }
            (Op::MaxPool2dGrad { window, input }, [dy, index]) => {
                let out = window.output([input[1], input[2]]);
                let fits = out.is_some_and(|[h, w]| dy.shape == [input[0], h, w, input[3]]) && index.shape == dy.shape;
                if fits { one(input, dy.dtype) } else { Err(fail("dy and index [B, OH, OW, C]")) }
            }
            (Op::Unary(_) | Op::Scale { .. } | Op::Softmax, [x]) if float(x) && !(x.shape.is_empty() && *self == Op::Softmax) => {
                one(&x.shape, x.dtype)
            }
            (Op::UnaryGrad(_) | Op::Binary(_) | Op::SoftmaxGrad, [a, b]) => {
                let fits = a.shape == b.shape && a.dtype == b.dtype && float(a);
                if fits { one(&a.shape, a.dtype) } else { Err(fail("two float operands of one shape and type")) }
            }
            (Op::AddBias, [x, b]) => {
                let fits = b.shape.len() == 1 && x.shape.last() == b.shape.first() && float(x) && float(b);
                if fits { one(&x.shape, x.dtype) } else { Err(fail("x [.., N] and b [N]")) }
            }
            (Op::MulScalar, [x, s]) => {
                let fits = s.elements() == 1 && float(x) && s.dtype == DType::F32;
                if fits { one(&x.shape, x.dtype) } else { Err(fail("a tensor and an f32 scalar")) }
            }
            (Op::SumLeading, [x]) if !x.shape.is_empty() && float(x) => one(&x.shape[x.shape.len() - 1..], x.dtype),
            (Op::SumFirst, [x]) if x.shape.len() > 1 && float(x) => one(&x.shape[1..], x.dtype),
            (Op::RepeatFirst { rows }, [x]) if float(x) => {
                let shape: Vec<usize> = std::iter::once(*rows).chain(x.shape.iter().copied()).collect();
                one(&shape, x.dtype)
            }
            (Op::Mean { axis }, [x]) if *axis < x.shape.len() && float(x) => {
                let mut shape = x.shape.clone();
                shape.remove(*axis);
                one(&shape, x.dtype)
            }
            (Op::MeanGrad { axis, extent }, [dy]) if *axis <= dy.shape.len() && float(dy) => {
                let mut shape = dy.shape.clone();
                shape.insert(*axis, *extent);
                one(&shape, dy.dtype)
            }
            (Op::Reshape { shape }, [x]) => {
                let same = shape.iter().product::<usize>() == x.elements();
                if same { one(shape, x.dtype) } else { Err(fail("as many elements as the new shape has")) }
            }
            (Op::Permute { axes }, [x]) => {
                let mut seen = axes.clone();
                seen.sort_unstable();
                if seen != (0..x.shape.len()).collect::<Vec<_>>() {
                    return Err(fail("every axis of x exactly once"));
                }
                one(&axes.iter().map(|a| x.shape[*a]).collect::<Vec<_>>(), x.dtype)
            }
            (Op::LayerNorm { .. }, [x, gain, bias]) => {
                let fits = x.shape.last().is_some_and(|n| gain.shape == [*n] && bias.shape == [*n]) && float(x);
                if !fits {
                    return Err(fail("x [.., N], gain [N], bias [N]"));
                }
                let rows = x.shape[..x.shape.len() - 1].to_vec();
                Ok(vec![(x.shape.clone(), x.dtype), (rows.clone(), DType::F32), (rows, DType::F32)])
            }
            (Op::LayerNormGrad, [x, gain, mean, rstd, dy]) => {
                let fits = x.shape == dy.shape && mean.shape == rstd.shape && mean.elements() * gain.elements() == x.elements();
                if !fits {
                    return Err(fail("x [.., N], gain [N], mean [..], rstd [..], dy [.., N]"));
                }
                Ok(vec![(x.shape.clone(), x.dtype), (gain.shape.clone(), DType::F32), (gain.shape.clone(), DType::F32)])
            }
            (Op::CrossEntropy { .. }, [logits, labels]) => {
                let fits = logits.shape.len() == 2
                    && logits.dtype == DType::F32
                    && labels.dtype == DType::I32
                    && labels.shape == logits.shape[..1];
                if !fits {
                    return Err(fail("f32 logits [R, C] and i32 labels [R]"));
                }
                Ok(vec![(vec![], DType::F32), (logits.shape.clone(), DType::F32)])
            }
            (Op::Embedding, [table, indices]) if table.shape.len() == 2 && indices.dtype == DType::I32 => {
                let mut shape = indices.shape.clone();
                shape.push(table.shape[1]);
                one(&shape, table.dtype)
            }
            (Op::EmbeddingGrad { vocabulary }, [indices, dy])
                if indices.dtype == DType::I32 && dy.shape.split_last().is_some_and(|(_, rows)| rows == indices.shape) =>
            {
                one(&[*vocabulary, dy.shape[dy.shape.len() - 1]], dy.dtype)
            }
            (Op::Warp, [images, maps]) => {
                let is_f32 = images.dtype == DType::F32 && maps.dtype == DType::F32;
                if images.shape.len() != 4 || !is_f32 || maps.shape != [images.shape[0], 6] {
                    return Err(fail("f32 images [B, H, W, C] and maps [B, 6]"));
                }
                one(&images.shape, DType::F32)
            }
            (Op::Cast { to }, [x]) if float(x) && to.is_float() => one(&x.shape, *to),
            (Op::RoundFp8 { to, .. }, [x, s]) => {
                let types = [(DType::F32, DType::F32), (DType::F32, DType::Bf16), (DType::Bf16, DType::Bf16)];
                let fits = types.contains(&(x.dtype, *to)) && s.shape.is_empty() && s.dtype == DType::F32;
                if !fits {
                    return Err(fail("x of f32, or of bf16 where the result is, and an f32 scale []"));
                }
                Ok(vec![(x.shape.clone(), *to), (vec![], DType::F32)])
            }
            (Op::RoundGradient { .. }, [x, s]) => {
                let fits = matches!(x.dtype, DType::F32 | DType::Bf16) && s.shape.is_empty() && s.dtype == DType::F32;
                if fits { one(&x.shape, x.dtype) } else { Err(fail("x of f32 or bf16, and an f32 scale []")) }
            }
            (Op::MoveFp8Scale { .. }, [scale, history, largest @ ..]) => {
                let fits = operands.iter().all(|v| v.dtype == DType::F32)
                    && history.shape.len() == 1
                    && history.elements() > 0
                    && !largest.is_empty()
                    && scale.shape.is_empty()
                    && largest.iter().all(|v| v.shape.is_empty());
                if fits { Ok(vec![]) } else { Err(fail("f32 scale [], history [W] and largest numbers []")) }
            }
            (Op::Update { optimizer, guarded }, [w, g, rest @ ..]) => {
                let state = optimizer.state_arrays();
                let tail = if *guarded { 2 } else { 0 };
                let fits = g.shape == w.shape
                    && w.dtype == DType::F32
                    && (rest.len() == state + tail || rest.len() == state + tail + 1)
                    && rest[..rest.len() - tail].iter().all(|v| v.shape == w.shape);
                if fits {
                    Ok(vec![])
                } else {
                    Err(fail("W, dW, state arrays of its shape, and for a guarded update two scalars"))
                }
            }
            (Op::LinearUpdate { optimizer }, [w, x, dy, rest @ ..]) => {
                let states = optimizer.state_arrays();
                let fits = w.shape.len() == 2
                    && x.shape.last() == Some(&w.shape[0])
                    && dy.shape.last() == Some(&w.shape[1])
                    && x.elements() / w.shape[0] == dy.elements() / w.shape[1]
                    && w.dtype == DType::F32
                    && (rest.len() == states || rest.len() == states + 1)
                    && rest.iter().all(|v| v.shape == w.shape);
                if fits { Ok(vec![]) } else { Err(fail("W [K, N], x [.., K], dy [.., N] and state arrays [K, N]")) }
            }
            (Op::AdjustLossScale { .. }, [scale, counts, loss, finite]) => {
                let fits = operands.iter().all(|v| v.dtype == DType::F32)
                    && counts.shape == [2]
                    && [scale, loss, finite].iter().all(|v| v.shape.is_empty());
                if fits { Ok(vec![]) } else { Err(fail("f32 loss scale [], counts [2], loss [] and flag []")) }
            }
            (Op::Replicate, [x]) if float(x) => one(&x.shape, x.dtype),
            (Op::Exchange(exchange), _) => exchange.infer(operands).map_err(fail),
            (Op::AllFinite, [_, ..]) if operands.iter().all(|v| float(v)) => one(&[], DType::F32),
            (Op::LinearTwoFour { .. } | Op::LinearSparse { .. }, [x, w, b]) => {
                let fours = matches!(self, Op::LinearTwoFour { .. });
                let fits = w.shape.len() == 2
                    && (x.dtype == DType::F32 || (fours && float(x)))
                    && w.dtype == x.dtype
                    && x.shape.last() == Some(&w.shape[0])
                    && (w.shape[0] % 4 == 0 || !fours)
                    && b.shape == [w.shape[1]];
                if !fits {
                    return Err(fail("x [.., K], W [K, N] of f32, for 2:4 of any float type and K a multiple of 4, b [N]"));
                }
                let mut shape = x.shape.clone();
                *shape.last_mut().expect("x has an axis") = w.shape[1];
                one(&shape, x.dtype)
            }
            (Op::LinearInt4 { group, .. }, [x, w, scales, b]) => {
                let expected =
                    "f32 x [.., K], i8 W [ceil(K / 2), N], f16 scales [ceil(K / group), N], b [N], groups of whole eights";
                let k = x.shape.last().copied().unwrap_or(0);
                let fits = w.shape.len() == 2
                    && x.dtype == DType::F32
                    && w.dtype == DType::I8
                    && scales.dtype == DType::F16
                    && *group > 0
                    && group.is_multiple_of(8)
                    && w.shape[0] == k.div_ceil(2)
                    && scales.shape == [k.div_ceil(*group), w.shape[1]]
                    && b.shape == [w.shape[1]];
                if !fits {
                    return Err(fail(expected));
                }
                let mut shape = x.shape.clone();
                *shape.last_mut().expect("x has an axis") = w.shape[1];
                one(&shape, DType::F32)
            }
            (Op::ChannelScale, [x]) if !x.shape.is_empty() && x.dtype == DType::F32 => {
                one(&x.shape[x.shape.len() - 1..], DType::F32)
            }
            (Op::FakeQuantize, [x, scale]) if fits_scale(x, scale) => one(&x.shape, DType::F32),
            (Op::FakeQuantizeGrad, [x, scale, dy]) if fits_scale(x, scale) && dy.shape == x.shape && dy.dtype == x.dtype => {
                one(&x.shape, DType::F32)
            }
            (Op::LinearInt8 { .. } | Op::LinearInt8Dynamic { .. }, [x, w, scales, b]) => {
                let fits = w.shape.len() == 2
                    && w.dtype == DType::I8
                    && x.dtype == DType::F32
                    && x.shape.last() == Some(&w.shape[0])
                    && scales.shape == [w.shape[1]]
                    && b.shape == [w.shape[1]];
                if !fits {
                    return Err(fail("f32 x [.., K], i8 W [K, N], scales [N], b [N]"));
                }
                let mut shape = x.shape.clone();
                *shape.last_mut().expect("x has an axis") = w.shape[1];
                one(&shape, DType::F32)
            }
            (Op::DequantizeInt4 { shape, group }, [w, scales]) => {
                let n = shape.last().copied().unwrap_or(0);
                let k = shape.iter().product::<usize>() / n.max(1);
                let fits = w.dtype == DType::I8
                    && scales.dtype == DType::F16
                    && *group > 0
                    && group.is_multiple_of(8)
                    && w.shape == [k.div_ceil(2), n]
                    && scales.shape == [k.div_ceil(*group), n];
                let expected = "i8 W [ceil(K / 2), N], f16 scales [ceil(K / group), N], groups of whole eights";
                if fits { one(shape, DType::F32) } else { Err(fail(expected)) }
            }
            (Op::Conv2dInt8 { window, .. } | Op::Conv2dInt8Dynamic { window, .. }, [x, w, scales, b]) => {
                let expected = "f32 x [B, H, W, Cin], i8 w [KH, KW, Cin, Cout], scales [Cout], b [Cout]";
                let shape = conv_shape(window, x, w).ok_or_else(|| fail(expected))?;
                let fits = w.dtype == DType::I8 && x.dtype == DType::F32 && scales.shape == [shape[3]] && b.shape == [shape[3]];
                if fits { one(&shape, DType::F32) } else { Err(fail(expected)) }
            }
            _ => Err(fail("other operands (see the op's description)")),
        }
    }

    /// FLOPs and bytes of the op on these operands and results.
    pub fn work(&self, read: &[&Value], written: &[&Value]) -> Work {
        let elements = |v: &Value| v.elements() as u64;
        let out = written.first().map_or(0, |v| elements(v));
        let input = read.first().map_or(0, |v| elements(v));
        let flops = match self {
            Op::MatMul { transpose_a, .. } => {
                let a = &read[0].shape;
                let k = if *transpose_a { a[a.len() - 2] } else { a[a.len() - 1] };
                2 * out * k as u64
            }
            Op::Linear { activation } => {
                let k = read[1].shape[0] as u64;
                out * (2 * k + u64::from(read.len() > 2) + activation_flops(*activation))
            }
            // Half of the dense product's multiply-adds.
            Op::LinearTwoFour { activation } => out * (read[1].shape[0] as u64 + 1 + activation_flops(*activation)),
            Op::LinearSparse { filled, activation } => {
                let rows = out / (read[1].shape[1] as u64).max(1);
                2 * rows * *filled as u64 + out * (1 + activation_flops(*activation))
            }
            Op::LinearInt8 { activation, .. } => {
                let k = read[1].shape[0] as u64;
                out * (2 * k + 2 + activation_flops(*activation)) + 2 * input
            }
            // A pass for the largest magnitudes beside that which quantises.
            Op::LinearInt8Dynamic { activation } => {
                let k = read[1].shape[0] as u64;
                out * (2 * k + 2 + activation_flops(*activation)) + 3 * input
            }
            // A multiplication a group beside the products.
            Op::LinearInt4 { activation, .. } => {
                let (k, groups) = (*read[0].shape.last().expect("checked by infer") as u64, read[2].shape[0] as u64);
                out * (2 * k + 2 * groups + 1 + activation_flops(*activation))
            }
            Op::ChannelScale => input,
            Op::FakeQuantize => 4 * out,
            Op::FakeQuantizeGrad => 2 * out,
            Op::Conv2d { window, activation } => {
                let taps = (window.size[0] * window.size[1] * read[0].shape[3]) as u64;
                out * (2 * taps + u64::from(read.len() > 2) + activation_flops(*activation))
            }
            Op::Conv2dInt8 { window, activation, .. } => {
                let taps = (window.size[0] * window.size[1] * read[0].shape[3]) as u64;
                out * (2 * taps + 2 + activation_flops(*activation)) + 2 * input
            }
            // A pass for the largest magnitude beside that which quantises.
            Op::Conv2dInt8Dynamic { window, activation } => {
                let taps = (window.size[0] * window.size[1] * read[0].shape[3]) as u64;
                out * (2 * taps + 2 + activation_flops(*activation)) + 3 * input
            }
            Op::DequantizeInt4 { .. } => out,
            Op::Conv2dGradInput { window, input } => 2 * input_taps(window, read[0]) * input[3] as u64,
            Op::Conv2dGradWeight { window } => 2 * input_taps(window, read[1]) * read[0].shape[3] as u64,
            Op::ConvReluPool { window } => {
                let taps = (window.size[0] * window.size[1] * read[0].shape[3]) as u64;
                out * 4 * (2 * taps + 2) + 3 * out
            }
            // Only the winner of each pooling window carries gradient.
            Op::ConvReluPoolGrad { window } => 2 * input_taps(window, read[1]) * read[0].shape[3] as u64 + elements(read[1]),
            Op::MaxPool2d { window } => out * (window.size[0] * window.size[1]) as u64,
            Op::Unary(Unary::Relu) | Op::UnaryGrad(Unary::Relu) => out,
            Op::Unary(_) | Op::UnaryGrad(_) => 8 * out,
            Op::Binary(_) | Op::AddBias | Op::Scale { .. } | Op::MulScalar | Op::MeanGrad { .. } => out,
            Op::SumLeading | Op::SumFirst | Op::Mean { .. } => input,
            Op::Softmax | Op::SoftmaxGrad => 5 * out,
            // Two coordinates by two multiply-adds each, three blends of two multiplications and a sum.
            Op::Warp => 17 * out,
            Op::LayerNorm { .. } => 8 * out,
            Op::LayerNormGrad => 14 * out,
            Op::CrossEntropy { .. } => 8 * input,
            Op::EmbeddingGrad { .. } => elements(read[1]),
            Op::Update { optimizer, .. } => input * optimizer.flops_per_weight(),
            Op::LinearUpdate { optimizer } => {
                let rows = elements(read[1]) / read[0].shape[0] as u64;
                let products = if written.is_empty() { 1 } else { 2 };
                input * (2 * rows * products + optimizer.flops_per_weight())
            }
            Op::Exchange(exchange) => exchange.sums(read),
            Op::AllFinite => read.iter().map(|v| elements(v)).sum(),
            // Scaled, rounded, scaled back, compared.
            Op::RoundFp8 { .. } => 4 * input,
            Op::MoveFp8Scale { .. } => elements(read[1]) + 2,
            // Two counters and the scale.
            Op::AdjustLossScale { .. } => 3,
            Op::ConvReluUnpool { .. }
            | Op::MaxPool2dGrad { .. }
            | Op::RepeatFirst { .. }
            | Op::Reshape { .. }
            | Op::Replicate
            | Op::RoundGradient { .. }
            | Op::Permute { .. }
            | Op::Embedding
            | Op::Cast { .. } => 0,
        };
        let total = |values: &[&Value]| values.iter().map(|v| v.bytes() as u64).sum::<u64>();
        let bytes = match self {
            Op::Reshape { .. } | Op::Replicate | Op::RoundGradient { .. } => 0,
            // Half the weights, and two bits for the place of each.
            Op::LinearTwoFour { .. } => {
                let (kept, size) = (elements(read[1]) / 2, read[1].dtype.size() as u64);
                total(read) + total(written) - 2 * size * kept + size * kept + kept / 4
            }
            // The weights that are kept, and two bytes for the place of each.
            Op::LinearSparse { filled, .. } => total(read) + total(written) - 4 * elements(read[1]) + 6 * *filled as u64,
            // Only the rows that are asked for are read.
            Op::Embedding => read[1].bytes() as u64 + 2 * total(written),
            _ => {
                let again: u64 = self.written_inputs(read.len()).iter().map(|k| read[*k].bytes() as u64).sum();
                total(read) + total(written) + again
            }
        };
        let message_bytes = match self {
            Op::Exchange(exchange) => exchange.message_bytes(read),
            _ => Bytes(0),
        };
        Work { flops: Flops(flops), bytes: Bytes(bytes), message_bytes }
    }
}

/// A scale for all of x or one for each of its columns.
fn fits_scale(x: &Value, scale: &Value) -> bool {
    let one_each = !x.shape.is_empty() && scale.shape == x.shape[x.shape.len() - 1..];
    x.dtype == DType::F32 && scale.dtype == DType::F32 && (scale.shape.is_empty() || one_each)
}

fn activation_flops(activation: Activation) -> u64 {
    match activation {
        Activation::None => 0,
        Activation::Relu => 1,
        Activation::Gelu => 8,
    }
}

/// Multiply-adds of one input channel for a gradient dy `[B, OH, OW, Cout]`.
fn input_taps(window: &Window, dy: &Value) -> u64 {
    (dy.elements() * window.size[0] * window.size[1]) as u64
}

fn conv_shape(window: &Window, x: &Value, w: &Value) -> Option<[usize; 4]> {
    let ([b, h, v, c], [kh, kw, cin, cout]) = (&x.shape[..], &w.shape[..]) else { return None };
    let [oh, ow] = window.output([*h, *v])?;
    (c == cin && window.size == [*kh, *kw]).then_some([*b, oh, ow, *cout])
}
