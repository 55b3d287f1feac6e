//! CPU kernels: plain functions over row-major slices, called op by op with a [`Context`] (threads, instruction set,
//! scratch). They promise: any size >= 1, the same bits for the same thread count and instruction set, no allocation
//! once the scratch has grown, a panic (never undefined behaviour) when a slice is shorter than its shape says.
//!
//! Conventions. Images are NHWC, convolution weights `[KH, KW, Cin, Cout]`, linear weights `[K, N]` (y = x W + b).
//! [`Element`] is the storage type: `f32`, `half::bf16` or `half::f16`; arithmetic and accumulation are always f32,
//! and so are biases, weight gradients, optimiser state and master weights. Slices may be longer than needed.
//!
//! | family | functions |
//! | --- | --- |
//! | `gemm` | [`gemm()`], [`batched_gemm`] |
//! | `linear` | [`linear_backward_update`]: dX and the optimiser step in one pass over W |
//! | `int8` | [`PackedInt8`], [`quantize_symmetric`], [`quantize_rows`], [`step_of`], [`int8_gemm`], [`int8_conv2d`] |
//! | `int4` | [`PackedInt4`], [`int4_gemm`], [`dequantize_int4`] |
//! | `fake_quantize` | [`channel_scales`], [`fake_quantize()`], [`fake_quantize_backward`] |
//! | `conv` | [`conv2d`], [`conv2d_grad_weight`], [`conv2d_grad_input`] |
//! | `conv_pool` | [`conv_relu_pool`], [`conv_relu_pool_backward`]: conv + bias + ReLU + 2x2 max pool as one |
//! | `pooling` | [`max_pool2d`], [`max_pool2d_backward`], [`global_average_pool`], [`global_average_pool_backward`] |
//! | `elementwise` | [`unary`], [`unary_backward`], [`binary`], [`axpy`], [`column_sums`], [`row_sums`], [`cast`], [`all_finite`] |
//! | `fp8` | [`round_fp8`]: emulated, bit for bit |
//! | `layout` | [`transpose`], [`permute`] |
//! | `rows` | [`softmax`], [`softmax_backward`], [`cross_entropy`], [`layer_norm`], [`layer_norm_backward`], [`embedding`], [`embedding_backward`], [`argmax_rows`] |
//! | `optimizer` | [`Update`], [`update`] |
//! | `peak` | [`multiply_add_rate`], [`sustained_rate`]: what a core can do at most |
//! | `sparse` | [`Packed24`], [`sparse_gemm`]: two of four |
//! | `unstructured` | [`PackedSparse`], [`unstructured_gemm`]: zeros anywhere |
//! | `warp` | [`warp()`]: images rotated, scaled, mirrored |

mod conv;
mod conv_pool;
mod elementwise;
mod fake_quantize;
mod fp8;
mod gemm;
mod int4;
mod int8;
mod layout;
mod linear;
mod optimizer;
mod peak;
mod pool;
mod pooling;
mod rows;
mod simd;
mod sparse;
mod unstructured;
mod warp;

#[cfg(test)]
mod check;

pub use conv::{Conv2d, conv2d, conv2d_grad_input, conv2d_grad_weight};
pub use conv_pool::{DEAD, conv_relu_pool, conv_relu_pool_backward};
pub use elementwise::{Binary, Broadcast, Unary, all_finite, axpy, binary, cast, column_sums, row_sums, unary, unary_backward};
pub use fake_quantize::{channel_scales, fake_quantize, fake_quantize_backward};
pub use fp8::round_fp8;
pub use gemm::{Activation, Batch, Epilogue, Gemm, batched_gemm, gemm};
pub use int4::{PackedInt4, dequantize_int4, int4_gemm};
pub use int8::{PackedInt8, int8_conv2d, int8_gemm, quantize_rows, quantize_symmetric, step_of};
pub use layout::{permute, transpose};
pub use linear::linear_backward_update;
pub use optimizer::{Optimizer, Update, update};
pub use peak::{multiply_add_rate, sustained_rate};
pub use pool::{Buffer, Context, Plain, Pool};
pub use pooling::{Pool2d, global_average_pool, global_average_pool_backward, max_pool2d, max_pool2d_backward};
pub use rows::{
    LayerNorm, argmax_rows, cross_entropy, embedding, embedding_backward, layer_norm, layer_norm_backward, softmax,
    softmax_backward,
};
pub use simd::{Element, Isa};
pub use sparse::{Packed24, sparse_gemm};
pub use unstructured::{PackedSparse, unstructured_gemm};
pub use warp::warp;
