//! 2D convolution, NHWC, any kernel, stride and padding, by implicit matrix product: a block of output pixels is
//! unfolded into scratch `[rows, KH KW Cin]` (never the whole image), then multiplied. 1x1 kernels skip the unfolding.
//! Weight gradients are summed per thread, then in thread order.

use super::gemm::{Activation, Epilogue, Problem};
use super::pool::{Context, Shares, piece};
use super::simd::Element;
use std::ops::Range;

/// The shape of a convolution: x `[batch, height, width, in_channels]`, w `[KH, KW, in_channels, out_channels]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    pub batch: usize,
    pub height: usize,
    pub width: usize,
    pub in_channels: usize,
    pub out_channels: usize,
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    /// Zeros added on each side of height and of width.
    pub padding: [usize; 2],
}

impl Conv2d {
    pub fn out_height(&self) -> usize {
        (self.height + 2 * self.padding[0] + 1).saturating_sub(self.kernel[0]).div_ceil(self.stride[0])
    }
    pub fn out_width(&self) -> usize {
        (self.width + 2 * self.padding[1] + 1).saturating_sub(self.kernel[1]).div_ceil(self.stride[1])
    }
    /// Elements of x.
    pub(super) fn inputs(&self) -> usize {
        self.batch * self.height * self.width * self.in_channels
    }
    /// Elements of y.
    pub(super) fn outputs(&self) -> usize {
        self.pixels() * self.out_channels
    }
    pub(super) fn pixels(&self) -> usize {
        self.batch * self.out_height() * self.out_width()
    }
    /// Inputs to one output: KH KW Cin.
    pub(super) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1] * self.in_channels
    }
    pub(super) fn check(&self, x: usize, w: usize, y: usize) {
        let sizes = [self.kernel[0], self.kernel[1], self.stride[0], self.stride[1]];
        assert!(sizes.iter().all(|&s| s > 0), "conv2d: zero size in {self:?}");
        for (name, len, need) in [("x", x, self.inputs()), ("w", w, self.taps() * self.out_channels), ("y", y, self.outputs())] {
            assert!(len >= need, "conv2d: {name} has {len} elements, {self:?} needs {need}");
        }
    }
    fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.stride == [1, 1] && self.padding == [0, 0]
    }
    /// Output pixels unfolded at a time: about 64 Ki elements, a multiple of 8.
    pub(super) fn block(&self) -> usize {
        (64 * 1024 / self.taps().max(1) / 8 * 8).clamp(8, 128)
    }
    /// Output pixels each thread should at least get.
    pub(super) fn grain(&self) -> usize {
        300_000 / (2 * self.taps() * self.out_channels).max(1) + 1
    }
}

/// Unfolds output pixels `range` into rows of `taps` elements.
pub(super) fn unfold<T: Copy + Default>(conv: &Conv2d, x: &[T], range: Range<usize>, out: &mut [T]) {
    let (oh, ow, channels) = (conv.out_height(), conv.out_width(), conv.in_channels);
    let [kh, kw] = conv.kernel;
    let run = kw * channels;
    for (pixel, row) in range.zip(out.chunks_exact_mut(conv.taps())) {
        let (image, oy, ox) = (pixel / ow / oh, pixel / ow % oh, pixel % ow);
        let left = ox * conv.stride[1];
        // The taps of one kernel row that fall inside the image are one run of memory.
        let from = conv.padding[1].saturating_sub(left).min(kw);
        let to = (conv.width + conv.padding[1]).saturating_sub(left).min(kw).max(from);
        for i in 0..kh {
            let row = &mut row[i * run..(i + 1) * run];
            match (oy * conv.stride[0] + i).checked_sub(conv.padding[0]).filter(|&y| y < conv.height) {
                Some(y) if to > from => {
                    row[..from * channels].fill(T::default());
                    row[to * channels..].fill(T::default());
                    let start = ((image * conv.height + y) * conv.width + left + from - conv.padding[1]) * channels;
                    row[from * channels..to * channels].copy_from_slice(&x[start..start + (to - from) * channels]);
                }
                _ => row.fill(T::default()),
            }
        }
    }
}

/// y `[B, OH, OW, Cout]` = act(conv(x, w) + bias).
pub fn conv2d<T: Element>(ctx: &Context, conv: &Conv2d, x: &[T], w: &[T], epilogue: Epilogue, y: &mut [T]) {
    forward(ctx, conv, x, w, epilogue, y);
}

fn forward<X: Element, W: Element, Y: Element>(ctx: &Context, conv: &Conv2d, x: &[X], w: &[W], epilogue: Epilogue, y: &mut [Y]) {
    conv.check(x.len(), w.len(), y.len());
    let (n, k) = (conv.out_channels, conv.taps());
    assert!(epilogue.bias.is_none_or(|b| b.len() >= n), "conv2d: bias is shorter than {n}");
    let bias = epilogue.bias.map(|b| &b[..n]);
    let y = Shares::new(y);
    ctx.split(conv.pixels(), conv.grain(), 8, |thread, range| {
        let mut own = ctx.own(thread);
        let mut unfolded = ctx.unfolded(thread);
        let block = if conv.is_pointwise() { range.len() } else { conv.block() };
        let mut at = range.start;
        while at < range.end {
            let rows = block.min(range.end - at);
            let a: &[X] = if conv.is_pointwise() {
                &x[at * k..(at + rows) * k]
            } else {
                let out = unfolded.of::<X>(rows * k);
                unfold(conv, x, at..at + rows, out);
                out
            };
            // SAFETY: a is `[rows, k]`, w `[k, n]` (checked), c the rows of this thread alone.
            unsafe {
                let c = y.part(at * n..(at + rows) * n);
                product(rows, n, k, a, false, w, false, false, bias, epilogue.activation, c).run(ctx.isa(), &mut own);
            }
            at += rows;
        }
    });
}

/// A contiguous product with optional transposes.
#[allow(clippy::too_many_arguments)]
fn product<A: Element, B: Element, C: Element>(
    m: usize,
    n: usize,
    k: usize,
    a: &[A],
    a_transposed: bool,
    b: &[B],
    b_transposed: bool,
    accumulate: bool,
    bias: Option<&[f32]>,
    activation: Activation,
    c: &mut [C],
) -> Problem<A, B, C> {
    assert!(a.len() >= m * k && b.len() >= k * n && c.len() >= m * n);
    let (a_row, a_col) = if a_transposed { (1, m) } else { (k, 1) };
    let (b_row, b_col) = if b_transposed { (1, k) } else { (n, 1) };
    let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
    let bias = bias.map_or(std::ptr::null(), <[f32]>::as_ptr);
    Problem { m, n, k, a, a_row, a_col, b, b_row, b_col, c, ldc: n, alpha: 1.0, accumulate, bias, activation }
}

/// dw `[KH, KW, Cin, Cout]`, overwritten, from x and dy `[B, OH, OW, Cout]`.
pub fn conv2d_grad_weight<T: Element>(ctx: &Context, conv: &Conv2d, x: &[T], dy: &[T], dw: &mut [f32]) {
    conv.check(x.len(), dw.len(), dy.len());
    let (n, k, pixels) = (conv.out_channels, conv.taps(), conv.pixels());
    let size = k * n;
    let parts = ctx.parts(pixels, conv.grain());
    let mut shared = ctx.shared();
    let sums = shared.f32(parts * size);
    let share = Shares::new(sums);
    ctx.fork(parts, |part| {
        let mut own = ctx.own(part);
        let mut unfolded = ctx.unfolded(part);
        // SAFETY: one range per part.
        let sum = unsafe { share.part(part * size..(part + 1) * size) };
        sum.fill(0.0);
        let range = piece(pixels, parts, part, 8);
        let mut at = range.start;
        while at < range.end {
            let rows = conv.block().min(range.end - at);
            let a: &[T] = if conv.is_pointwise() {
                &x[at * k..(at + rows) * k]
            } else {
                let out = unfolded.of::<T>(rows * k);
                unfold(conv, x, at..at + rows, out);
                out
            };
            let b = &dy[at * n..(at + rows) * n];
            // SAFETY: a is `[rows, k]`, b `[rows, n]`, `sum` `[k, n]` and this thread's own.
            unsafe {
                product(k, n, rows, a, true, b, false, true, None, Activation::None, sum).run(ctx.isa(), &mut own);
            }
            at += rows;
        }
    });
    let (first, rest) = sums.split_at(size);
    dw[..size].copy_from_slice(first);
    for sum in rest.chunks_exact(size) {
        dw.iter_mut().zip(sum).for_each(|(a, b)| *a += b);
    }
}

/// dx `[B, H, W, Cin]`, overwritten, from dy `[B, OH, OW, Cout]` and w.
pub fn conv2d_grad_input<T: Element>(ctx: &Context, conv: &Conv2d, dy: &[T], w: &[T], dx: &mut [T]) {
    grad_input_of(ctx, conv, dy, w, dx);
}

/// [`conv2d_grad_input`] with another storage type for dy.
pub(super) fn grad_input_of<D: Element, T: Element>(ctx: &Context, conv: &Conv2d, dy: &[D], w: &[T], dx: &mut [T]) {
    conv.check(dx.len(), w.len(), dy.len());
    let (n, channels, k) = (conv.out_channels, conv.in_channels, conv.taps());
    let [kh, kw] = conv.kernel;
    let mut turned = ctx.turned();
    let turned = turned.of::<T>(k * n);
    if conv.stride == [1, 1] && conv.padding[0] < kh && conv.padding[1] < kw {
        // Stride 1: the convolution of dy with the kernel turned round, `[KH, KW, Cout, Cin]`.
        for t in 0..kh * kw {
            for c in 0..channels {
                for o in 0..n {
                    turned[((kh * kw - 1 - t) * n + o) * channels + c] = w[(t * channels + c) * n + o];
                }
            }
        }
        let back = Conv2d {
            batch: conv.batch,
            height: conv.out_height(),
            width: conv.out_width(),
            in_channels: n,
            out_channels: channels,
            kernel: conv.kernel,
            stride: [1, 1],
            padding: [kh - 1 - conv.padding[0], kw - 1 - conv.padding[1]],
        };
        return forward(ctx, &back, dy, turned, Epilogue::default(), dx);
    }
    // Otherwise columns = dy w^T, folded back, an image at a time.
    for t in 0..k {
        for o in 0..n {
            turned[o * k + t] = w[t * n + o];
        }
    }
    let turned = &*turned;
    let (oh, ow, image_size) = (conv.out_height(), conv.out_width(), conv.height * conv.width * channels);
    let dx = Shares::new(dx);
    ctx.split(conv.batch, 1, 1, |thread, range| {
        let mut own = ctx.own(thread);
        let mut unfolded = ctx.unfolded(thread);
        let block = conv.block();
        let (columns, sum) = unfolded.f32(block * k + image_size).split_at_mut(block * k);
        for image in range {
            sum.fill(0.0);
            for at in (0..oh * ow).step_by(block) {
                let rows = block.min(oh * ow - at);
                let a = &dy[(image * oh * ow + at) * n..][..rows * n];
                // SAFETY: a is `[rows, n]`, `turned` `[n, k]`, `columns` `[rows, k]` and this thread's own.
                unsafe {
                    product(rows, k, n, a, false, turned, false, false, None, Activation::None, columns).run(ctx.isa(), &mut own);
                }
                for (pixel, column) in (at..at + rows).zip(columns.chunks_exact(k)) {
                    let (oy, ox) = (pixel / ow, pixel % ow);
                    for (t, tap) in column.chunks_exact(channels).enumerate() {
                        let y = (oy * conv.stride[0] + t / kw).checked_sub(conv.padding[0]);
                        let x = (ox * conv.stride[1] + t % kw).checked_sub(conv.padding[1]);
                        if let (Some(y), Some(x)) = (y, x)
                            && y < conv.height
                            && x < conv.width
                        {
                            let to = &mut sum[(y * conv.width + x) * channels..][..channels];
                            to.iter_mut().zip(tap).for_each(|(a, b)| *a += b);
                        }
                    }
                }
            }
            // SAFETY: one image per step.
            let out = unsafe { dx.part(image * image_size..(image + 1) * image_size) };
            out.iter_mut().zip(&*sum).for_each(|(to, from)| *to = T::from_f32(*from));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::check::{Random, contexts, wide, worst};
    use super::*;
    use half::{bf16, f16};

    fn case<T: Element>(ctx: &Context, r: &mut Random, conv: Conv2d, tolerance: f64) {
        let what = format!("{conv:?} {} {:?}", T::NAME, ctx.isa());
        let (n, channels, k) = (conv.out_channels, conv.in_channels, conv.taps());
        let x: Vec<T> = r.values(conv.inputs());
        let w: Vec<T> = r.values(k * n);
        let bias: Vec<f32> = r.values(n);
        let dy: Vec<T> = r.values(conv.outputs());
        let (oh, ow) = (conv.out_height(), conv.out_width());
        let (mut y, mut dw, mut dx) = (vec![0.0f64; dy.len()], vec![0.0f64; w.len()], vec![0.0f64; x.len()]);
        for at in 0..conv.pixels() {
            let (ox, oy, b) = (at % ow, at / ow % oh, at / ow / oh);
            for o in 0..n {
                let d = dy[at * n + o].to_f32() as f64;
                let mut sum = bias[o] as f64;
                for t in 0..k {
                    let (c, j, i) = (t % channels, t / channels % conv.kernel[1], t / channels / conv.kernel[1]);
                    let p = (oy * conv.stride[0] + i).wrapping_sub(conv.padding[0]);
                    let q = (ox * conv.stride[1] + j).wrapping_sub(conv.padding[1]);
                    if p < conv.height && q < conv.width {
                        let from = ((b * conv.height + p) * conv.width + q) * channels + c;
                        sum += x[from].to_f32() as f64 * w[t * n + o].to_f32() as f64;
                        dw[t * n + o] += d * x[from].to_f32() as f64;
                        dx[from] += d * w[t * n + o].to_f32() as f64;
                    }
                }
                y[at * n + o] = sum.max(0.0);
            }
        }
        let mut got = vec![T::from_f32(f32::NAN); dy.len()];
        let epilogue = Epilogue { bias: Some(&bias), activation: Activation::Relu };
        conv2d(ctx, &conv, &x, &w, epilogue, &mut got);
        worst(&format!("y of {what}"), r, &wide(&got), &y, tolerance);
        let mut got = vec![f32::NAN; w.len()];
        conv2d_grad_weight(ctx, &conv, &x, &dy, &mut got);
        worst(&format!("dw of {what}"), r, &got, &dw, 3e-5);
        let mut got = vec![T::from_f32(f32::NAN); x.len()];
        conv2d_grad_input(ctx, &conv, &dy, &w, &mut got);
        worst(&format!("dx of {what}"), r, &wide(&got), &dx, tolerance);
    }

    #[test]
    fn convolution_and_its_gradients_agree_with_f64() {
        for ctx in contexts() {
            let mut r = Random::new();
            for (batch, height, width, in_channels, out_channels, kernel, stride, padding) in [
                (2, 9, 7, 3, 17, [3, 3], [1, 1], [1, 1]),
                (1, 14, 14, 16, 33, [3, 3], [1, 1], [1, 1]),
                (2, 11, 10, 4, 5, [3, 3], [2, 2], [1, 1]),
                (1, 8, 9, 15, 31, [1, 1], [1, 1], [0, 0]),
                (2, 8, 8, 2, 8, [1, 1], [2, 2], [0, 0]),
                (1, 12, 5, 1, 1, [5, 2], [3, 1], [4, 1]),
                (1, 1, 1, 1, 1, [1, 1], [1, 1], [0, 0]),
                (1, 3, 3, 2, 3, [3, 3], [1, 1], [3, 3]),
            ] {
                let conv = Conv2d { batch, height, width, in_channels, out_channels, kernel, stride, padding };
                case::<f32>(&ctx, &mut r, conv, 2e-5);
                case::<bf16>(&ctx, &mut r, conv, 1e-2);
                case::<f16>(&ctx, &mut r, conv, 2e-3);
            }
        }
    }
}
