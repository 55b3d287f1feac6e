//! int8 products: symmetric s8 activations x per-column symmetric s8 weights -> i32 -> f32 (bias, activation).
//! Weights are packed once, `[N / 32][K / 4][32][4]`, the order `vpdpbusd` reads. With AVX-512 VNNI activations are
//! shifted to u8 (x + 128) and the column sums corrected; AVX2 widens both to i16 (`vpmaddwd`), where nothing can
//! saturate. Sums are exact, so every path gives the same bits; K is at most 65,536.

use super::conv::{Conv2d, unfold};
use super::gemm::{Activation, Epilogue, activate};
use super::pool::{Buffer, Context, Scratch, Shares};
use super::simd::*;
use std::arch::x86_64::*;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

/// Columns of one packed panel.
const WIDTH: usize = 32;

/// s8 weights `[K, N]` in kernel order, with a scale per column: real = scale q.
#[derive(Clone)]
pub struct PackedInt8 {
    k: usize,
    n: usize,
    panels: Buffer<i8>,
    /// Per column: 128 times the sum of its weights, what the shift to u8 added.
    shifts: Buffer<i32>,
    scales: Buffer<f32>,
}

impl PackedInt8 {
    /// Packs `w_q` `[K, N]` with `scales` `[N]`. -128 counts as -127.
    pub fn new(k: usize, n: usize, w_q: &[i8], scales: &[f32]) -> PackedInt8 {
        assert!(w_q.len() >= k * n && scales.len() >= n, "PackedInt8: a slice is too short for [{k}, {n}]");
        assert!(k <= 1 << 16, "PackedInt8: K of {k} could overflow a 32-bit sum");
        let (quads, wide) = (k.div_ceil(4), n.next_multiple_of(WIDTH));
        let mut panels = Buffer::<i8>::zeros(wide * quads * 4);
        let (mut shifts, mut padded) = (Buffer::zeros(wide), Buffer::zeros(wide));
        padded[..n].copy_from_slice(&scales[..n]);
        for p in 0..k {
            for (j, &q) in w_q[p * n..(p + 1) * n].iter().enumerate() {
                let q = q.max(-127);
                panels[((j / WIDTH * quads + p / 4) * WIDTH + j % WIDTH) * 4 + p % 4] = q;
                shifts[j] += 128 * q as i32;
            }
        }
        PackedInt8 { k, n, panels, shifts, scales: padded }
    }

    /// Quantises `w` `[K, N]`: each column's largest magnitude becomes 127.
    pub fn from_f32(k: usize, n: usize, w: &[f32]) -> PackedInt8 {
        assert!(w.len() >= k * n, "PackedInt8: w is too short for [{k}, {n}]");
        let mut scales = vec![0.0f32; n];
        for row in w[..k * n].chunks_exact(n.max(1)) {
            scales.iter_mut().zip(row).for_each(|(s, v)| *s = s.max(v.abs()));
        }
        scales.iter_mut().for_each(|s| *s = if *s > 0.0 { *s / 127.0 } else { 1.0 });
        let quantised: Vec<i8> =
            (0..k * n).map(|i| (w[i] / scales[i % n]).round_ties_even().clamp(-127.0, 127.0) as i8).collect();
        PackedInt8::new(k, n, &quantised, &scales)
    }

    /// Per column.
    pub fn scales(&self) -> &[f32] {
        &self.scales[..self.n]
    }

    /// What a product reads: weights, corrections and scales.
    pub fn bytes(&self) -> usize {
        self.panels.len() + 4 * (self.shifts.len() + self.scales.len())
    }
}

/// q = round(x / scale) to nearest even, held to -127..=127; NaN becomes 0.
pub fn quantize_symmetric<T: Element>(ctx: &Context, x: &[T], scale: f32, q: &mut [i8]) {
    assert!(q.len() >= x.len(), "quantize_symmetric: q is shorter than x");
    let out = Shares::new(q);
    ctx.split(x.len(), 16 * 1024, 64, |_, range| {
        // SAFETY: ranges are disjoint and inside both slices.
        unsafe { simd!(ctx.isa(), quantize_range, [T](&x[range.clone()], 1.0 / scale, out.part(range))) }
    });
}

#[inline(always)]
unsafe fn quantize_range<S: Simd, T: Element>(x: &[T], over: f32, q: &mut [i8]) {
    unsafe {
        for i in (0..x.len()).step_by(S::LANES) {
            let n = x.len() - i;
            let v = S::mul(T::load_part::<S>(x.as_ptr().add(i), n), S::splat(over));
            let v = S::select(S::eq(v, v), v, S::zero());
            let v = S::round(S::max(S::splat(-127.0), S::min(S::splat(127.0), v)));
            if n >= S::LANES {
                S::store_i8(q.as_mut_ptr().add(i), v);
            } else {
                for (to, v) in q[i..].iter_mut().zip(S::to_array(v)) {
                    *to = v as i8;
                }
            }
        }
    }
}

/// Quantises each row of x `[M, K]` by its own largest magnitude, which becomes 127, and notes the size of its steps; 1 for a row of zeros.
pub fn quantize_rows(ctx: &Context, k: usize, x: &[f32], q: &mut [i8], scales: &mut [f32]) {
    assert!(k > 0 && q.len() >= x.len() && scales.len() >= x.len() / k, "quantize_rows: a slice is too short");
    let (out, steps) = (Shares::new(q), Shares::new(scales));
    ctx.split(x.len() / k, (16 * 1024 / k).max(1), 1, |_, range| {
        for row in range {
            let x = &x[row * k..(row + 1) * k];
            // SAFETY: ranges are disjoint and inside all slices.
            unsafe {
                let scale = step_for(simd!(ctx.isa(), largest, [](x)));
                steps.part(row..row + 1)[0] = scale;
                simd!(ctx.isa(), quantize_range, [f32](x, 1.0 / scale, out.part(row * k..(row + 1) * k)));
            }
        }
    });
}

/// The step of a grid by which the largest magnitude of all of x is 127; 1 where all are zero.
pub fn step_of(ctx: &Context, x: &[f32]) -> f32 {
    // Numbers that are not negative are ordered as their bits are; a maximum is the same in any order.
    let most = AtomicU32::new(0);
    ctx.split(x.len(), 16 * 1024, 64, |_, range| {
        // SAFETY: the machine has the context's instruction set; only x is read.
        let part: f32 = unsafe { simd!(ctx.isa(), largest, [](&x[range])) };
        most.fetch_max(part.to_bits(), Ordering::Relaxed);
    });
    step_for(f32::from_bits(most.into_inner()))
}

/// For what is not finite any step will do.
fn step_for(most: f32) -> f32 {
    if most > 0.0 && most.is_finite() { most / 127.0 } else { 1.0 }
}

#[inline(always)]
unsafe fn largest<S: Simd>(x: &[f32]) -> f32 {
    unsafe {
        let mut most = S::zero();
        for i in (0..x.len()).step_by(S::LANES) {
            let v = f32::load_part::<S>(x.as_ptr().add(i), x.len() - i);
            most = S::max(most, S::max(v, S::neg(v)));
        }
        S::max_lane(most)
    }
}

/// C `[M, N]` = act(x_scales scales (x W) + bias) for x `[M, K]`; `x_scales` is one number for all rows, or one a row.
pub fn int8_gemm<C: Element>(
    ctx: &Context,
    m: usize,
    x: &[i8],
    x_scales: &[f32],
    w: &PackedInt8,
    epilogue: Epilogue,
    c: &mut [C],
) {
    assert!(x_scales.len() == 1 || x_scales.len() >= m, "int8_gemm: {} scales for {m} rows", x_scales.len());
    assert!(x.len() >= m * w.k && c.len() >= m * w.n, "int8_gemm: a slice is too short for [{m}, {}, {}]", w.k, w.n);
    if m == 0 || w.n == 0 {
        return;
    }
    let product = Product::new(ctx, x_scales, w, &epilogue, c);
    let parts = ctx.parts(m * w.n * w.k, 400_000);
    let panels = w.n.div_ceil(WIDTH);
    let by_rows = m >= 8 * parts && (m >= w.n || panels < parts);
    let (length, step) = if by_rows { (m, 8) } else { (panels, 1) };
    ctx.fork(parts, |part| {
        let range = super::pool::piece(length, parts, part, step);
        let (rows, panels) = if by_rows { (range, 0..panels) } else { (0..m, range) };
        // SAFETY: sizes checked; parts write disjoint rows or columns of C.
        unsafe { product.run(x.as_ptr().add(rows.start * w.k), rows, panels, &mut ctx.own(part)) }
    });
}

/// y `[B, OH, OW, Cout]` = act(conv(x, w) + bias) for s8 x `[B, H, W, Cin]` and w packed as `[KH KW Cin, Cout]`.
pub fn int8_conv2d<C: Element>(
    ctx: &Context,
    conv: &Conv2d,
    x: &[i8],
    x_scale: f32,
    w: &PackedInt8,
    epilogue: Epilogue,
    y: &mut [C],
) {
    conv.check(x.len(), w.k * w.n, y.len());
    assert_eq!((w.k, w.n), (conv.taps(), conv.out_channels), "int8_conv2d: weights do not fit {conv:?}");
    let x_scales = [x_scale];
    let product = Product::new(ctx, &x_scales, w, &epilogue, y);
    let panels = w.n.div_ceil(WIDTH);
    ctx.split(conv.pixels(), conv.grain(), 8, |thread, range| {
        let mut own = ctx.own(thread);
        let mut unfolded = ctx.unfolded(thread);
        let block = conv.block();
        for at in range.clone().step_by(block) {
            let rows = at..(at + block).min(range.end);
            let a = unfolded.i8(rows.len() * w.k);
            unfold(conv, x, rows.clone(), a);
            // SAFETY: sizes checked; threads have their own pixels.
            unsafe { product.run(a.as_ptr(), rows, 0..panels, &mut own) }
        }
    });
}

/// A product's constants; C as a pointer because threads share it.
struct Product<'a, C> {
    isa: Isa,
    vnni: bool,
    w: &'a PackedInt8,
    /// One for all rows, or one a row.
    x_scales: &'a [f32],
    bias: Option<&'a [f32]>,
    activation: Activation,
    c: *mut C,
}

// SAFETY: only `c` is not `Sync`; `run`'s callers write disjoint parts of it.
unsafe impl<C> Sync for Product<'_, C> {}

impl<'a, C: Element> Product<'a, C> {
    fn new(ctx: &Context, x_scales: &'a [f32], w: &'a PackedInt8, epilogue: &Epilogue<'a>, c: &mut [C]) -> Product<'a, C> {
        assert!(epilogue.bias.is_none_or(|b| b.len() >= w.n), "int8: bias is shorter than {}", w.n);
        let (isa, bias, activation) = (ctx.isa(), epilogue.bias, epilogue.activation);
        Product { isa, vnni: isa.has_vnni(), w, x_scales, bias, activation, c: c.as_mut_ptr() }
    }

    /// Rows `rows` of C, whose x starts at `x`, and the columns of `panels`.
    unsafe fn run(&self, x: *const i8, rows: Range<usize>, panels: Range<usize>, scratch: &mut Scratch) {
        if rows.is_empty() || panels.is_empty() {
            return;
        }
        let (w, m) = (self.w, rows.len());
        let quads = w.k.div_ceil(4);
        // SAFETY: the caller's promise, passed on.
        unsafe {
            if self.vnni {
                vnni_product(self, x, rows, panels, scratch.bytes(m.next_multiple_of(8) * quads * 4));
            } else if self.isa >= Isa::Avx2 {
                let wide = scratch.f32(m.next_multiple_of(2) * quads * 2);
                avx2_product(self, x, rows, panels, wide.as_mut_ptr().cast());
            } else {
                for i in 0..m {
                    for p in panels.clone() {
                        let mut sums = [0i32; WIDTH];
                        for q in 0..quads {
                            let at = (p * quads + q) * WIDTH * 4;
                            let mut four = [0i32; 4];
                            for (l, v) in four.iter_mut().enumerate().take(w.k - q * 4) {
                                *v = *x.add(i * w.k + q * 4 + l) as i32;
                            }
                            for (sum, column) in sums.iter_mut().zip(w.panels[at..at + WIDTH * 4].chunks_exact(4)) {
                                *sum += (0..4).map(|l| four[l] * column[l] as i32).sum::<i32>();
                            }
                        }
                        finish::<V4, C>(self, rows.start + i, p, &sums);
                    }
                }
            }
        }
    }
}

/// One row of one panel to C.
#[inline(always)]
unsafe fn finish<S: Simd, C: Element>(product: &Product<C>, row: usize, panel: usize, sums: &[i32; WIDTH]) {
    unsafe {
        let n = product.w.n;
        let x_scale = product.x_scales[if product.x_scales.len() == 1 { 0 } else { row }];
        for h in (0..WIDTH).step_by(S::LANES) {
            let j = panel * WIDTH + h;
            if j >= n {
                break;
            }
            let left = n - j;
            let mut real = [0.0f32; 16];
            for (r, &s) in real.iter_mut().zip(&sums[h..]).take(S::LANES) {
                *r = s as f32;
            }
            let scale = S::mul(S::load(product.w.scales.as_ptr().add(j)), S::splat(x_scale));
            let bias = match product.bias {
                Some(bias) => f32::load_part::<S>(bias.as_ptr().add(j), left),
                None => S::zero(),
            };
            // Two roundings on purpose, as V4 has no fused one: all paths agree to the bit.
            let v = S::add(S::mul(S::load(real.as_ptr()), scale), bias);
            C::store_part::<S>(product.c.add(row * n + j), activate::<S>(product.activation, v), left);
        }
    }
}

/// `MR` rows of one panel: u8 x s8, four products a lane.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn vnni_tile<const MR: usize>(quads: usize, x: *const i32, row: usize, w: *const i8, out: &mut [[i32; WIDTH]; 8]) {
    unsafe {
        let mut acc = [[_mm512_setzero_si512(); 2]; MR];
        for q in 0..quads {
            let w0 = _mm512_loadu_si512(w.add(q * WIDTH * 4).cast());
            let w1 = _mm512_loadu_si512(w.add(q * WIDTH * 4 + 64).cast());
            for (i, sums) in acc.iter_mut().enumerate() {
                let v = _mm512_set1_epi32(*x.add(i * row + q));
                sums[0] = _mm512_dpbusd_epi32(sums[0], v, w0);
                sums[1] = _mm512_dpbusd_epi32(sums[1], v, w1);
            }
        }
        for (out, sums) in out.iter_mut().zip(acc) {
            _mm512_storeu_si512(out.as_mut_ptr().cast(), sums[0]);
            _mm512_storeu_si512(out.as_mut_ptr().add(16).cast(), sums[1]);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn vnni_product<C: Element>(
    product: &Product<C>,
    x: *const i8,
    rows: Range<usize>,
    panels: Range<usize>,
    shifted: &mut [u8],
) {
    unsafe {
        let (k, m) = (product.w.k, rows.len());
        let quads = k.div_ceil(4);
        for i in 0..m {
            let to = shifted.as_mut_ptr().add(i * quads * 4);
            let from = x.add(i * k);
            let mut p = 0;
            while p + 64 <= k {
                let v = _mm512_loadu_si512(from.add(p).cast());
                _mm512_storeu_si512(to.add(p).cast(), _mm512_xor_si512(v, _mm512_set1_epi8(-128)));
                p += 64;
            }
            for p in p..quads * 4 {
                *to.add(p) = if p < k { (*from.add(p) as u8) ^ 0x80 } else { 0 };
            }
        }
        let shifted: *const i32 = shifted.as_ptr().cast();
        let mut out = [[0i32; WIDTH]; 8];
        // Eight rows of x (8 K bytes) stay in the first cache while the panels pass.
        for i in (0..m).step_by(8) {
            let count = (m - i).min(8);
            let x = shifted.add(i * quads);
            for p in panels.clone() {
                let w = product.w.panels.as_ptr().add(p * quads * WIDTH * 4);
                match count {
                    1 => vnni_tile::<1>(quads, x, quads, w, &mut out),
                    2 => vnni_tile::<2>(quads, x, quads, w, &mut out),
                    3 => vnni_tile::<3>(quads, x, quads, w, &mut out),
                    4 => vnni_tile::<4>(quads, x, quads, w, &mut out),
                    5 => vnni_tile::<5>(quads, x, quads, w, &mut out),
                    6 => vnni_tile::<6>(quads, x, quads, w, &mut out),
                    7 => vnni_tile::<7>(quads, x, quads, w, &mut out),
                    _ => vnni_tile::<8>(quads, x, quads, w, &mut out),
                }
                let shifts = product.w.shifts.as_ptr().add(p * WIDTH);
                for (r, sums) in out.iter_mut().enumerate().take(count) {
                    for h in [0, 16] {
                        let sum = _mm512_loadu_si512(sums.as_ptr().add(h).cast());
                        let sum = _mm512_sub_epi32(sum, _mm512_loadu_si512(shifts.add(h).cast()));
                        _mm512_storeu_si512(sums.as_mut_ptr().add(h).cast(), sum);
                    }
                    finish::<V16, C>(product, rows.start + i + r, p, sums);
                }
            }
        }
    }
}

/// `MR` rows of half a panel (16 columns): i16 pairs, lanes hold two partial sums of each of 4 columns.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2_tile<const MR: usize>(quads: usize, x: *const i64, row: usize, w: *const i8, out: &mut [[i32; 16]; 2]) {
    unsafe {
        let mut acc = [[_mm256_setzero_si256(); 4]; MR];
        for q in 0..quads {
            let w = w.add(q * WIDTH * 4);
            for c in 0..4 {
                let v = _mm256_cvtepi8_epi16(_mm_loadu_si128(w.add(c * 16).cast()));
                for (i, sums) in acc.iter_mut().enumerate() {
                    let x = _mm256_set1_epi64x(*x.add(i * row + q));
                    sums[c] = _mm256_add_epi32(sums[c], _mm256_madd_epi16(x, v));
                }
            }
        }
        for (out, sums) in out.iter_mut().zip(acc) {
            for (c, s) in sums.into_iter().enumerate() {
                let mut lanes = [0i32; 8];
                _mm256_storeu_si256(lanes.as_mut_ptr().cast(), s);
                for l in 0..4 {
                    out[c * 4 + l] = lanes[2 * l] + lanes[2 * l + 1];
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2_product<C: Element>(product: &Product<C>, x: *const i8, rows: Range<usize>, panels: Range<usize>, wide: *mut i16) {
    unsafe {
        let (k, m) = (product.w.k, rows.len());
        let quads = k.div_ceil(4);
        for i in 0..m {
            for p in 0..quads * 4 {
                *wide.add(i * quads * 4 + p) = if p < k { *x.add(i * k + p) as i16 } else { 0 };
            }
        }
        let wide: *const i64 = wide.cast();
        let (mut low, mut high) = ([[0i32; 16]; 2], [[0i32; 16]; 2]);
        for i in (0..m).step_by(2) {
            let count = (m - i).min(2);
            let x = wide.add(i * quads);
            for p in panels.clone() {
                let w = product.w.panels.as_ptr().add(p * quads * WIDTH * 4);
                if count == 2 {
                    avx2_tile::<2>(quads, x, quads, w, &mut low);
                    avx2_tile::<2>(quads, x, quads, w.add(64), &mut high);
                } else {
                    avx2_tile::<1>(quads, x, quads, w, &mut low);
                    avx2_tile::<1>(quads, x, quads, w.add(64), &mut high);
                }
                for r in 0..count {
                    let mut sums = [0i32; WIDTH];
                    sums[..16].copy_from_slice(&low[r]);
                    sums[16..].copy_from_slice(&high[r]);
                    finish::<V8, C>(product, rows.start + i + r, p, &sums);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Random, contexts, worst};
    use super::*;

    #[test]
    fn products_are_exact_up_to_the_last_scaling() {
        for ctx in contexts() {
            let mut r = Random::new();
            for (m, n, k) in [
                (1, 1, 1),
                (2, 33, 15),
                (7, 31, 16),
                (8, 32, 17),
                (9, 129, 127),
                (33, 17, 128),
                (65, 40, 300),
                (1, 300, 700),
                (300, 64, 65),
            ] {
                // Full range, extremes included: whatever could saturate does.
                let mut byte = || match r.below(4) {
                    0 => 127i8,
                    1 => -127,
                    _ => r.next() as i8,
                };
                let x: Vec<i8> = (0..m * k).map(|_| byte()).collect();
                let w: Vec<i8> = (0..n * k).map(|_| byte().max(-127)).collect();
                let scales: Vec<f32> = (0..n).map(|_| r.unit().abs() + 0.1).collect();
                let bias: Vec<f32> = r.values(n);
                let packed = PackedInt8::new(k, n, &w, &scales);
                let mut c = vec![f32::NAN; m * n];
                let epilogue = Epilogue { bias: Some(&bias), activation: Activation::Relu };
                int8_gemm(&ctx, m, &x, &[0.125], &packed, epilogue, &mut c);
                for i in 0..m * n {
                    let sum: i32 = (0..k).map(|p| x[i / n * k + p] as i32 * w[p * n + i % n] as i32).sum();
                    let want = sum as f32 * (scales[i % n] * 0.125) + bias[i % n];
                    assert_eq!(c[i], want.max(0.0), "[{m}, {n}, {k}] {i} {:?} seed {}", ctx.isa(), r.seed);
                }
                // A scale a row, powers of two, so that they change nothing else.
                let each: Vec<f32> = (0..m).map(|i| 0.125 * (1 << (i % 5)) as f32).collect();
                let plain = Epilogue { bias: None, activation: Activation::None };
                let mut by_row = vec![f32::NAN; m * n];
                int8_gemm(&ctx, m, &x, &[0.125], &packed, Epilogue { bias: None, activation: Activation::None }, &mut c);
                int8_gemm(&ctx, m, &x, &each, &packed, plain, &mut by_row);
                for i in 0..m * n {
                    assert_eq!(by_row[i], c[i] * (1 << (i / n % 5)) as f32, "[{m}, {n}, {k}] {i} {:?}", ctx.isa());
                }
            }
        }
    }

    #[test]
    fn quantised_convolution_is_the_convolution_of_the_quantised() {
        for ctx in contexts() {
            let mut r = Random::new();
            let conv = Conv2d {
                batch: 2,
                height: 9,
                width: 7,
                in_channels: 3,
                out_channels: 33,
                kernel: [3, 3],
                stride: [2, 1],
                padding: [1, 1],
            };
            let x: Vec<f32> = r.values(conv.inputs());
            let w: Vec<f32> = r.values(conv.taps() * 33);
            let scale = 1.0 / 127.0;
            let mut q = vec![0i8; x.len()];
            quantize_symmetric(&ctx, &x, scale, &mut q);
            for (q, x) in q.iter().zip(&x) {
                assert!((*q as f32 * scale - x).abs() <= scale * 0.501, "{q} {x}");
            }
            let back: Vec<f32> = q.iter().map(|&q| q as f32 * scale).collect();
            let packed = PackedInt8::from_f32(conv.taps(), 33, &w);
            let used: Vec<f32> = w
                .iter()
                .enumerate()
                .map(|(i, w)| (w / packed.scales()[i % 33]).round_ties_even() * packed.scales()[i % 33])
                .collect();
            let (mut y, mut want) = (vec![f32::NAN; conv.outputs()], vec![f32::NAN; conv.outputs()]);
            int8_conv2d(&ctx, &conv, &q, scale, &packed, Epilogue::default(), &mut y);
            super::super::conv2d(&ctx, &conv, &back, &used, Epilogue::default(), &mut want);
            let want: Vec<f64> = want.iter().map(|&v| v as f64).collect();
            worst("int8 conv", &r, &y, &want, 2e-5);
        }
    }

    #[test]
    fn a_row_uses_its_whole_grid_whatever_the_others_hold() {
        for ctx in contexts() {
            let mut r = Random::new();
            for (m, k) in [(1, 1), (3, 17), (40, 700)] {
                let mut x: Vec<f32> = r.values(m * k);
                x.iter_mut().enumerate().for_each(|(i, v)| *v *= (1 << (i / k % 9)) as f32);
                x[(m - 1) * k..].fill(0.0);
                let (mut q, mut scales) = (vec![99i8; m * k], vec![f32::NAN; m]);
                quantize_rows(&ctx, k, &x, &mut q, &mut scales);
                for i in 0..m {
                    let (row, q) = (&x[i * k..(i + 1) * k], &q[i * k..(i + 1) * k]);
                    let most = row.iter().fold(0.0f32, |most, v| most.max(v.abs()));
                    assert_eq!(scales[i], if i + 1 == m { 1.0 } else { most / 127.0 });
                    assert_eq!(q.iter().map(|q| q.unsigned_abs()).max(), Some(if i + 1 == m { 0 } else { 127 }));
                    assert!(q.iter().zip(row).all(|(q, v)| (f32::from(*q) * scales[i] - v).abs() <= scales[i] * 0.501));
                }
            }
        }
    }

    #[test]
    fn a_whole_tensor_uses_its_whole_grid_whichever_thread_finds_the_largest() {
        for ctx in contexts() {
            let mut r = Random::new();
            for count in [1, 15, 17, 129, 16 * 1024 + 1, 100_000] {
                let mut x: Vec<f32> = r.values(count);
                for place in [0, count / 2, count - 1] {
                    let before = std::mem::replace(&mut x[place], -5.0);
                    assert_eq!(step_of(&ctx, &x), 5.0 / 127.0, "{count}, {place} {:?}", ctx.isa());
                    x[place] = before;
                }
                x.fill(0.0);
                assert_eq!(step_of(&ctx, &x), 1.0);
                x[count - 1] = f32::INFINITY;
                assert_eq!(step_of(&ctx, &x), 1.0);
            }
        }
    }

    #[test]
    fn quantising_clamps_and_rounds_to_even() {
        for ctx in contexts() {
            let mut x = vec![0.5f32, 1.5, -2.5, 1e9, -1e9, f32::NAN, f32::INFINITY, 126.6];
            x.extend([3.0; 20]);
            let mut q = vec![99i8; x.len()];
            quantize_symmetric(&ctx, &x, 1.0, &mut q);
            assert_eq!(q[..8], [0, 2, -2, 127, -127, 0, 127, 127]);
            assert!(q[8..].iter().all(|&q| q == 3));
        }
    }
}
