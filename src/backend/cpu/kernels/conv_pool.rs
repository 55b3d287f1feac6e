//! Convolution, bias, ReLU and 2x2 max pool as one, for stride 1: y `[B, OH/2, OW/2, Cout]` and, per output, which of
//! its four places won. The convolution's own output is never stored. The backward pass touches winners only.
//! A band of KH + 1 padded input rows is copied channel by channel (as f32) and feeds two output rows.
//! Best for few input channels (the whole patch is re-read per 32 output channels), right for any.

use super::conv::{Conv2d, grad_input_of};
use super::pool::{Context, Shares, piece};
use super::simd::*;
use std::arch::x86_64::*;

/// The code of an output that ReLU cut to zero: no gradient flows.
pub const DEAD: u8 = 4;

/// Sizes derived once.
#[derive(Clone, Copy)]
struct Plan {
    conv: Conv2d,
    /// Pooled height and width.
    ph: usize,
    pw: usize,
    /// Rows and columns of a band.
    rows: usize,
    cols: usize,
    /// Output channels rounded up to two vectors of 16.
    out: usize,
}

impl Plan {
    fn new(conv: &Conv2d) -> Plan {
        assert_eq!(conv.stride, [1, 1], "conv_relu_pool: stride 1 only");
        let (ph, pw) = (conv.out_height() / 2, conv.out_width() / 2);
        let [kh, kw] = conv.kernel;
        Plan { conv: *conv, ph, pw, rows: kh + 1, cols: 2 * pw + kw - 1, out: conv.out_channels.next_multiple_of(32) }
    }
    fn taps(&self) -> usize {
        self.conv.kernel[0] * self.conv.kernel[1] * self.conv.in_channels
    }
    fn band(&self) -> usize {
        self.conv.in_channels * self.rows * self.cols + 16
    }
    /// Pooled rows each thread should at least get.
    fn grain(&self) -> usize {
        300_000 / (8 * self.pw * self.taps() * self.conv.out_channels).max(1) + 1
    }
}

/// y = maxpool2x2(relu(conv(x, w) + bias)); with `relu` false, without the cut. x `[B, H, W, Cin]`,
/// w `[KH, KW, Cin, Cout]`, y and `code` `[B, OH/2, OW/2, Cout]`; `code` is 2 row + column of the winner (the first of
/// equals), or [`DEAD`].
#[allow(clippy::too_many_arguments)]
pub fn conv_relu_pool<T: Element>(
    ctx: &Context,
    conv: &Conv2d,
    relu: bool,
    x: &[T],
    w: &[T],
    bias: &[f32],
    y: &mut [T],
    code: Option<&mut [u8]>,
) {
    let plan = Plan::new(conv);
    let pooled = conv.batch * plan.ph * plan.pw * conv.out_channels;
    conv.check(x.len(), w.len(), conv.outputs());
    assert!(bias.len() >= conv.out_channels && y.len() >= pooled, "conv_relu_pool: bias or y too short for {conv:?}");
    if pooled == 0 {
        return;
    }
    let code = code.map(|code| {
        assert!(code.len() >= pooled, "conv_relu_pool: code too short for {conv:?}");
        Shares::new(code)
    });
    let (y, n) = (Shares::new(y), conv.out_channels);
    let mut shared = ctx.shared();
    let (packed, offsets) = shared.f32((plan.taps() + 1) * plan.out + plan.taps()).split_at_mut((plan.taps() + 1) * plan.out);
    // Where in the band each tap reads, as whole numbers in f32 bits.
    for (t, to) in offsets.iter_mut().enumerate() {
        let (c, b, a) = (t % conv.in_channels, t / conv.in_channels % conv.kernel[1], t / conv.in_channels / conv.kernel[1]);
        *to = f32::from_bits(((c * plan.rows + a) * plan.cols + b) as u32);
    }
    for (t, row) in packed.chunks_exact_mut(plan.out).enumerate() {
        row[n..].fill(0.0);
        if t == plan.taps() {
            row[..n].copy_from_slice(&bias[..n]);
        } else {
            row[..n].iter_mut().zip(&w[t * n..(t + 1) * n]).for_each(|(to, from)| *to = from.to_f32());
        }
    }
    let (packed, offsets) = (&*packed, &*offsets);
    ctx.split(conv.batch * plan.ph, plan.grain(), 1, |thread, range| {
        let mut own = ctx.own(thread);
        let band = own.f32(plan.band());
        for row in range {
            fill_band(&plan, row, x, band);
            let at = row * plan.pw * n;
            // SAFETY: `check` and the assertions compared slices and shape; every thread has its own pooled rows.
            unsafe {
                let y = y.part(at..at + plan.pw * n).as_mut_ptr();
                let code = code.map_or(std::ptr::null_mut(), |c| c.part(at..at + plan.pw * n).as_mut_ptr());
                simd!(ctx.isa(), pooled_row, [T](&plan, relu, band, packed, offsets, y, code));
            }
        }
    });
}

/// Copies the input rows under one pooled row, padded with zeros, as `[Cin, KH + 1, cols]`.
fn fill_band<T: Element>(plan: &Plan, row: usize, x: &[T], band: &mut [f32]) {
    let conv = &plan.conv;
    let (image, ph) = (row / plan.ph, row % plan.ph);
    let (h, w, channels) = (conv.height, conv.width, conv.in_channels);
    let [pad_h, pad_w] = conv.padding;
    let from = pad_w.min(plan.cols);
    let to = (pad_w + w).min(plan.cols);
    for r in 0..plan.rows {
        let line = (2 * ph + r).checked_sub(pad_h).filter(|&line| line < h);
        for c in 0..channels {
            let out = &mut band[(c * plan.rows + r) * plan.cols..][..plan.cols];
            let Some(line) = line else {
                out.fill(0.0);
                continue;
            };
            out[..from].fill(0.0);
            out[to..].fill(0.0);
            let line = &x[(image * h + line) * w * channels..][..w * channels];
            if channels == 1 {
                out[from..to].iter_mut().zip(line).for_each(|(o, v)| *o = v.to_f32());
            } else {
                out[from..to].iter_mut().zip(line.iter().skip(c).step_by(channels)).for_each(|(o, v)| *o = v.to_f32());
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn pooled_row<S: Simd, T: Element>(
    plan: &Plan,
    relu: bool,
    band: &[f32],
    packed: &[f32],
    offsets: &[f32],
    y: *mut T,
    code: *mut u8,
) {
    unsafe {
        if code.is_null() {
            pooled_channels::<S, T, false>(plan, relu, band, packed, offsets, y, code);
        } else {
            pooled_channels::<S, T, true>(plan, relu, band, packed, offsets, y, code);
        }
    }
}

/// One pooled row; `CODE` says whether the winners are wanted (a third of the work beside the sums).
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn pooled_channels<S: Simd, T: Element, const CODE: bool>(
    plan: &Plan,
    relu: bool,
    band: &[f32],
    packed: &[f32],
    offsets: &[f32],
    y: *mut T,
    code: *mut u8,
) {
    unsafe {
        for n in (0..plan.conv.out_channels).step_by(2 * S::LANES) {
            let mut p = 0;
            while S::LANES == 16 && p + 2 <= plan.pw {
                windows::<S, T, 2, CODE>(plan, relu, band, packed, offsets, y, code, p, n);
                p += 2;
            }
            while p < plan.pw {
                windows::<S, T, 1, CODE>(plan, relu, band, packed, offsets, y, code, p, n);
                p += 1;
            }
        }
    }
}

/// `P` pooled outputs of two vectors of channels: 8 P sums in registers.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn windows<S: Simd, T: Element, const P: usize, const CODE: bool>(
    plan: &Plan,
    relu: bool,
    band: &[f32],
    packed: &[f32],
    offsets: &[f32],
    y: *mut T,
    code: *mut u8,
    p: usize,
    n: usize,
) {
    unsafe {
        let cols = plan.cols;
        let mut acc = [[[S::zero(); 2]; 4]; P];
        let mut weight = packed.as_ptr().add(n);
        for offset in offsets {
            let (w0, w1) = (S::load(weight), S::load(weight.add(S::LANES)));
            weight = weight.add(plan.out);
            let x = band.as_ptr().add(offset.to_bits() as usize + 2 * p);
            for (i, window) in acc.iter_mut().enumerate() {
                for (place, sums) in window.iter_mut().enumerate() {
                    let v = S::splat(*x.add((place / 2) * cols + 2 * i + place % 2));
                    sums[0] = S::fma(v, w0, sums[0]);
                    sums[1] = S::fma(v, w1, sums[1]);
                }
            }
        }
        let outs = plan.conv.out_channels;
        for (i, window) in acc.iter().enumerate() {
            for h in 0..2 {
                let from = n + h * S::LANES;
                if from >= outs {
                    break;
                }
                let mut best = window[0][h];
                let mut winner = S::zero();
                let mut sum = best;
                for (place, sums) in window.iter().enumerate().skip(1) {
                    if CODE {
                        let larger = S::gt(sums[h], best);
                        winner = S::select(larger, S::splat(place as f32), winner);
                    }
                    best = S::max(sums[h], best);
                    sum = S::add(sum, sums[h]);
                }
                // A NaN loses every comparison; the sum brings it back.
                best = S::select(S::eq(sum, sum), best, sum);
                best = S::add(best, S::load(weight.add(h * S::LANES)));
                if relu {
                    if CODE {
                        winner = S::select(S::gt(S::splat(0.0), best), S::splat(DEAD as f32), winner);
                        winner = S::select(S::eq(S::splat(0.0), best), S::splat(DEAD as f32), winner);
                    }
                    best = S::max(S::zero(), best);
                }
                let at = (p + i) * outs + from;
                let left = outs - from;
                T::store_part::<S>(y.add(at), best, left);
                if CODE {
                    if left >= S::LANES {
                        S::store_u8(code.add(at), winner);
                    } else {
                        for (l, v) in S::to_array(winner).into_iter().enumerate().take(left) {
                            *code.add(at + l) = v as u8;
                        }
                    }
                }
            }
        }
    }
}

/// The gradients of [`conv_relu_pool`]: dw `[KH, KW, Cin, Cout]` and db `[Cout]` are overwritten, dx `[B, H, W, Cin]`
/// too when asked for. dy and `code` are `[B, OH/2, OW/2, Cout]`.
#[allow(clippy::too_many_arguments)]
pub fn conv_relu_pool_backward<T: Element>(
    ctx: &Context,
    conv: &Conv2d,
    x: &[T],
    w: &[T],
    dy: &[T],
    code: &[u8],
    dw: &mut [f32],
    db: &mut [f32],
    dx: Option<&mut [T]>,
) {
    let plan = Plan::new(conv);
    let n = conv.out_channels;
    let pooled = conv.batch * plan.ph * plan.pw * n;
    // The weights are read for dx alone.
    conv.check(x.len(), if dx.is_some() { w.len() } else { plan.taps() * n }, conv.outputs());
    let enough = dy.len() >= pooled && code.len() >= pooled && dw.len() >= plan.taps() * n && db.len() >= n;
    assert!(enough, "conv_relu_pool_backward: a slice is too short for {conv:?}");
    let units = conv.batch * plan.ph;
    let parts = ctx.parts(units, 2 * plan.grain());
    let size = (plan.taps() + 1) * plan.out;
    {
        let mut shared = ctx.shared();
        let sums = shared.f32(parts * size);
        let share = Shares::new(sums);
        ctx.fork(parts, |part| {
            // SAFETY: one range per part.
            let sum = unsafe { share.part(part * size..(part + 1) * size) };
            sum.fill(0.0);
            let mut own = ctx.own(part);
            let band = own.f32(plan.band());
            for row in piece(units, parts, part, 1) {
                fill_band(&plan, row, x, band);
                let at = row * plan.pw * n;
                let (dy, code) = (&dy[at..at + plan.pw * n], &code[at..at + plan.pw * n]);
                // SAFETY: slices checked above; the machine has the context's instruction set.
                unsafe {
                    if ctx.isa() == Isa::Avx512 && conv.kernel == [3, 3] {
                        grad_row_3x3(&plan, band, dy, code, sum);
                    } else {
                        simd!(ctx.isa(), grad_row, [T](&plan, band, dy, code, sum));
                    }
                }
            }
        });
        for t in 0..=plan.taps() {
            let to = if t == plan.taps() { &mut db[..n] } else { &mut dw[t * n..(t + 1) * n] };
            to.copy_from_slice(&sums[t * plan.out..][..n]);
            for part in 1..parts {
                let from = &sums[part * size + t * plan.out..][..n];
                to.iter_mut().zip(from).for_each(|(a, b)| *a += b);
            }
        }
    }
    if let Some(dx) = dx {
        let (oh, ow) = (conv.out_height(), conv.out_width());
        let mut staging = ctx.staging();
        let full = staging.f32(conv.outputs());
        let share = Shares::new(full);
        ctx.split(conv.batch, 1, 1, |_, range| {
            for image in range {
                // SAFETY: one image per step.
                let out = unsafe { share.part(image * oh * ow * n..(image + 1) * oh * ow * n) };
                out.fill(0.0);
                for i in 0..plan.ph * plan.pw {
                    let (r, c) = (i / plan.pw * 2, i % plan.pw * 2);
                    let at = (image * plan.ph * plan.pw + i) * n;
                    for (ch, (&k, d)) in code[at..at + n].iter().zip(&dy[at..at + n]).enumerate() {
                        if k < DEAD {
                            out[((r + k as usize / 2) * ow + c + k as usize % 2) * n + ch] = d.to_f32();
                        }
                    }
                }
            }
        });
        grad_input_of(ctx, conv, full, w, dx);
    }
}

/// A vector of dy, zero where dead, and its codes.
#[inline(always)]
unsafe fn gradient<S: Simd, T: Element>(dy: *const T, code: *const u8, left: usize) -> (S::V, S::V) {
    unsafe {
        let k = if left >= S::LANES {
            S::load_u8(code)
        } else {
            let mut pad = [DEAD; 16];
            for (i, slot) in pad.iter_mut().enumerate().take(left) {
                *slot = *code.add(i);
            }
            S::load_u8(pad.as_ptr())
        };
        let d = T::load_part::<S>(dy, left);
        (S::select(S::gt(S::splat(DEAD as f32), k), d, S::zero()), k)
    }
}

/// Any kernel: four masked copies of the gradient, one per place.
#[inline(always)]
unsafe fn grad_row<S: Simd, T: Element>(plan: &Plan, band: &[f32], dy: &[T], code: &[u8], sum: &mut [f32]) {
    unsafe {
        let [kh, kw] = plan.conv.kernel;
        let (channels, n) = (plan.conv.in_channels, plan.conv.out_channels);
        let db = sum.as_mut_ptr().add(plan.taps() * plan.out);
        for p in 0..plan.pw {
            for v in (0..n).step_by(S::LANES) {
                let at = p * n + v;
                let (d, k) = gradient::<S, T>(dy.as_ptr().add(at), code.as_ptr().add(at), n - v);
                let mut at_place = [d; 4];
                for (c, slot) in at_place.iter_mut().enumerate() {
                    *slot = S::select(S::eq(k, S::splat(c as f32)), d, S::zero());
                }
                S::store(db.add(v), S::add(S::load(db.add(v)), d));
                for a in 0..kh {
                    for b in 0..kw {
                        for c in 0..channels {
                            let x = band.as_ptr().add((c * plan.rows + a) * plan.cols + b + 2 * p);
                            let to = sum.as_mut_ptr().add(((a * kw + b) * channels + c) * plan.out + v);
                            let mut s = S::load(to);
                            for (i, d) in at_place.into_iter().enumerate() {
                                s = S::fma(S::splat(*x.add(i / 2 * plan.cols + i % 2)), d, s);
                            }
                            S::store(to, s);
                        }
                    }
                }
            }
        }
    }
}

/// 3x3 in AVX-512: the 4x4 patch under a window is one vector, so each lane looks its winner's inputs up in it.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2")]
unsafe fn grad_row_3x3<T: Element>(plan: &Plan, band: &[f32], dy: &[T], code: &[u8], sum: &mut [f32]) {
    unsafe {
        let n = plan.conv.out_channels;
        for v in (0..n).step_by(32) {
            if v + 32 <= n {
                grad_channels_3x3::<T, true>(plan, band, dy, code, sum, v);
            } else {
                grad_channels_3x3::<T, false>(plan, band, dy, code, sum, v);
            }
        }
    }
}

/// The output channels `v .. v + 32`, of which all exist when `FULL`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2")]
unsafe fn grad_channels_3x3<T: Element, const FULL: bool>(
    plan: &Plan,
    band: &[f32],
    dy: &[T],
    code: &[u8],
    sum: &mut [f32],
    v: usize,
) {
    unsafe {
        let (channels, n) = (plan.conv.in_channels, plan.conv.out_channels);
        let db = sum.as_mut_ptr().add(plan.taps() * plan.out);
        let halves = if FULL || v + 16 < n { 2 } else { 1 };
        for c in 0..channels {
            let to = |t: usize, h: usize| (t * channels + c) * plan.out + v + 16 * h;
            let mut acc = [[_mm512_setzero_ps(); 2]; 9];
            for (t, a) in acc.iter_mut().enumerate() {
                *a = [_mm512_loadu_ps(sum.as_ptr().add(to(t, 0))), _mm512_loadu_ps(sum.as_ptr().add(to(t, 1)))];
            }
            let mut bias = [_mm512_setzero_ps(); 2];
            for p in 0..plan.pw {
                let x = band.as_ptr().add(c * plan.rows * plan.cols + 2 * p);
                let patch = _mm512_castps128_ps512(_mm_loadu_ps(x));
                let patch = _mm512_insertf32x4::<1>(patch, _mm_loadu_ps(x.add(plan.cols)));
                let patch = _mm512_insertf32x4::<2>(patch, _mm_loadu_ps(x.add(2 * plan.cols)));
                let patch = _mm512_insertf32x4::<3>(patch, _mm_loadu_ps(x.add(3 * plan.cols)));
                for h in 0..halves {
                    let at = p * n + v + 16 * h;
                    let left = n - v - 16 * h;
                    let (d, k) = if FULL || left >= 16 {
                        (T::load::<V16>(dy.as_ptr().add(at)), _mm_loadu_si128(code.as_ptr().add(at).cast()))
                    } else {
                        let mut pad = [DEAD; 16];
                        for (i, slot) in pad.iter_mut().enumerate().take(left) {
                            *slot = *code.get_unchecked(at + i);
                        }
                        let d = T::load_part::<V16>(dy.as_ptr().add(at), left);
                        (d, _mm_loadu_si128(pad.as_ptr().cast()))
                    };
                    let k = _mm512_cvtepu8_epi32(k);
                    let alive = _mm512_cmplt_epi32_mask(k, _mm512_set1_epi32(DEAD as i32));
                    let d = _mm512_maskz_mov_ps(alive, d);
                    bias[h] = _mm512_add_ps(bias[h], d);
                    // Place 2 r + c of the window is element 4 r + c of the patch.
                    let first = _mm512_add_epi32(k, _mm512_and_si512(k, _mm512_set1_epi32(2)));
                    for (t, a) in acc.iter_mut().enumerate() {
                        let tap = _mm512_add_epi32(first, _mm512_set1_epi32((t / 3 * 4 + t % 3) as i32));
                        a[h] = _mm512_fmadd_ps(_mm512_permutexvar_ps(tap, patch), d, a[h]);
                    }
                }
            }
            for (t, a) in acc.iter().enumerate() {
                for (h, &s) in a.iter().enumerate() {
                    _mm512_storeu_ps(sum.as_mut_ptr().add(to(t, h)), s);
                }
            }
            if c == 0 {
                for (h, &s) in bias.iter().enumerate() {
                    let at = db.add(v + 16 * h);
                    _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), s));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Random, contexts, wide, worst};
    use super::*;
    use half::{bf16, f16};

    fn case<T: Element>(ctx: &Context, r: &mut Random, conv: Conv2d, relu: bool, tolerance: f64) {
        let what = format!("{conv:?} relu {relu} {} {:?}", T::NAME, ctx.isa());
        let (n, channels) = (conv.out_channels, conv.in_channels);
        let [kh, kw] = conv.kernel;
        let taps = kh * kw * channels;
        let x: Vec<T> = r.values(conv.batch * conv.height * conv.width * channels);
        let w: Vec<T> = r.values(taps * n);
        let bias: Vec<f32> = r.values(n);
        let (oh, ow) = (conv.out_height(), conv.out_width());
        let (ph, pw) = (oh / 2, ow / 2);
        let pooled = conv.batch * ph * pw * n;
        let dy: Vec<T> = r.values(pooled);
        let input = |b: usize, i: usize, j: usize, c: usize| -> Option<usize> {
            let (i, j) = (i.checked_sub(conv.padding[0])?, j.checked_sub(conv.padding[1])?);
            (i < conv.height && j < conv.width).then(|| ((b * conv.height + i) * conv.width + j) * channels + c)
        };
        let mut y = vec![T::from_f32(f32::NAN); pooled];
        let mut code = vec![99u8; pooled];
        conv_relu_pool(ctx, &conv, relu, &x, &w, &bias, &mut y, Some(&mut code));
        let mut alone = vec![T::from_f32(f32::NAN); pooled];
        conv_relu_pool(ctx, &conv, relu, &x, &w, &bias, &mut alone, None);
        assert_eq!(y, alone, "{what}");
        let mut want = vec![0.0f64; pooled];
        let (mut dw, mut db, mut dx) = (vec![0.0f64; taps * n], vec![0.0f64; n], vec![0.0f64; x.len()]);
        for at in 0..pooled {
            let (ch, q, p, b) = (at % n, at / n % pw, at / n / pw % ph, at / n / pw / ph);
            let value = |place: usize| {
                let mut sum = bias[ch] as f64;
                for t in 0..taps {
                    let (c, kj, ki) = (t % channels, t / channels % kw, t / channels / kw);
                    if let Some(i) = input(b, 2 * p + place / 2 + ki, 2 * q + place % 2 + kj, c) {
                        sum += x[i].to_f32() as f64 * w[t * n + ch].to_f32() as f64;
                    }
                }
                sum
            };
            let best = (0..4).map(value).fold(f64::NEG_INFINITY, f64::max);
            want[at] = if relu { best.max(0.0) } else { best };
            // The code is judged by the value it names: near ties may go either way.
            if code[at] == DEAD {
                assert!(relu && best < 1e-5, "{what}: dead at {best}");
                continue;
            }
            let k = code[at] as usize;
            assert!((value(k) - best).abs() < 1e-5, "{what}: code {k}");
            let d = dy[at].to_f32() as f64;
            db[ch] += d;
            for t in 0..taps {
                let (c, kj, ki) = (t % channels, t / channels % kw, t / channels / kw);
                if let Some(i) = input(b, 2 * p + k / 2 + ki, 2 * q + k % 2 + kj, c) {
                    dw[t * n + ch] += d * x[i].to_f32() as f64;
                    dx[i] += d * w[t * n + ch].to_f32() as f64;
                }
            }
        }
        worst(&format!("y of {what}"), r, &wide(&y), &want, tolerance);
        let (mut gw, mut gb) = (vec![f32::NAN; taps * n], vec![f32::NAN; n]);
        let mut gx = vec![T::from_f32(f32::NAN); x.len()];
        conv_relu_pool_backward(ctx, &conv, &x, &w, &dy, &code, &mut gw, &mut gb, Some(&mut gx));
        worst(&format!("dw of {what}"), r, &gw, &dw, 2e-5);
        worst(&format!("db of {what}"), r, &gb, &db, 2e-5);
        worst(&format!("dx of {what}"), r, &wide(&gx), &dx, tolerance);
    }

    #[test]
    fn fused_convolution_agrees_with_f64_both_ways() {
        for ctx in contexts() {
            let mut r = Random::new();
            for (batch, height, width, in_channels, out_channels, kernel, padding) in [
                (2, 28, 28, 1, 32, [3, 3], [1, 1]),
                (1, 7, 9, 1, 17, [3, 3], [1, 1]),
                (2, 5, 6, 3, 33, [3, 3], [0, 0]),
                (1, 6, 8, 5, 64, [3, 3], [1, 1]),
                (1, 8, 7, 2, 5, [5, 2], [2, 0]),
                (3, 2, 2, 1, 1, [1, 1], [0, 0]),
            ] {
                let conv = Conv2d { batch, height, width, in_channels, out_channels, kernel, stride: [1, 1], padding };
                for relu in [true, false] {
                    case::<f32>(&ctx, &mut r, conv, relu, 1e-5);
                }
                case::<bf16>(&ctx, &mut r, conv, true, 1e-2);
                case::<f16>(&ctx, &mut r, conv, true, 2e-3);
            }
        }
    }

    #[test]
    fn the_same_call_gives_the_same_bits() {
        let conv = Conv2d {
            batch: 9,
            height: 28,
            width: 28,
            in_channels: 1,
            out_channels: 32,
            kernel: [3, 3],
            stride: [1, 1],
            padding: [1, 1],
        };
        let ctx = Context::new(2);
        let mut r = Random::new();
        let (x, w, bias): (Vec<f32>, Vec<f32>, Vec<f32>) = (r.values(9 * 784), r.values(288), r.values(32));
        let run = || {
            let (mut y, mut code) = (vec![0.0f32; 9 * 6272], vec![0u8; 9 * 6272]);
            conv_relu_pool(&ctx, &conv, true, &x, &w, &bias, &mut y, Some(&mut code));
            let (mut dw, mut db) = (vec![0.0f32; 288], vec![0.0f32; 32]);
            conv_relu_pool_backward(&ctx, &conv, &x, &w, &y, &code, &mut dw, &mut db, None);
            (dw, db)
        };
        let first = run();
        assert!((0..20).all(|_| run() == first));
    }

    #[test]
    fn not_a_number_survives_the_pool() {
        let conv = Conv2d {
            batch: 1,
            height: 4,
            width: 4,
            in_channels: 1,
            out_channels: 3,
            kernel: [3, 3],
            stride: [1, 1],
            padding: [1, 1],
        };
        for ctx in contexts() {
            let mut x = [0.5f32; 16];
            x[15] = f32::NAN;
            let mut y = [0.0f32; 12];
            conv_relu_pool(&ctx, &conv, true, &x, &[1.0; 27], &[0.0; 3], &mut y, None);
            assert!(y[9..].iter().all(|v| v.is_nan()), "{y:?}");
        }
    }
}
