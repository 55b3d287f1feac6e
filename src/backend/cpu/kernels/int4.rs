//! Weight-only int4: f32 activations x signed 4-bit weights in groups along K, each group and column with an fp16 scale.
//! Eight weights along K lie in one 32-bit word, sixteen columns side by side: a product reads an eighth of what f32 weights are, and
//! the scales (1/64 of that at groups of 128). Few rows are bound by that reading; for many the weights are widened once per eight rows.
//! A convolution, which reads its weights for every pixel, has them widened whole before it.

use super::gemm::{Epilogue, activate};
use super::pool::{Buffer, Context, Shares, piece};
use super::simd::*;
use half::f16;
use std::ops::Range;

/// Columns of a packed panel.
const WIDTH: usize = 16;
/// Weights along K in a word.
const DEEP: usize = 8;

/// Weights `[K, N]`, real = scale q with q in -8..=7 and scales `[ceil(K / group), N]`.
#[derive(Clone)]
pub struct PackedInt4 {
    k: usize,
    n: usize,
    /// Words along K that share a scale.
    group: usize,
    /// `[N / 16][K / 8][16]`.
    words: Buffer<u32>,
    /// `[N / 16][groups][16]`.
    scales: Buffer<f16>,
}

impl PackedInt4 {
    /// Packs `pairs` `[ceil(K / 2), N]`, each byte two weights, the low half the earlier one, with `scales`. `group` is a multiple of 8.
    pub fn new(k: usize, n: usize, group: usize, pairs: &[i8], scales: &[f16]) -> PackedInt4 {
        assert!(group > 0 && group.is_multiple_of(DEEP), "PackedInt4: groups of {group} are not whole words");
        let (groups, panels, deep) = (k.div_ceil(group), n.div_ceil(WIDTH), k.div_ceil(DEEP));
        assert!(
            pairs.len() >= k.div_ceil(2) * n && scales.len() >= groups * n,
            "PackedInt4: a slice is too short for [{k}, {n}]"
        );
        let mut words = Buffer::<u32>::zeros(panels * deep * WIDTH);
        let mut packed = Buffer::<f16>::zeros(panels * groups * WIDTH);
        for p in 0..k {
            for j in 0..n {
                let nibble = (pairs[p / 2 * n + j] as u8 >> (4 * (p % 2))) & 15;
                words[(j / WIDTH * deep + p / DEEP) * WIDTH + j % WIDTH] |= u32::from(nibble) << (4 * (p % DEEP));
            }
        }
        for g in 0..groups {
            for j in 0..n {
                packed[(j / WIDTH * groups + g) * WIDTH + j % WIDTH] = scales[g * n + j];
            }
        }
        PackedInt4 { k, n, group: group / DEEP, words, scales: packed }
    }

    /// What a product reads.
    pub fn bytes(&self) -> usize {
        4 * self.words.len() + 2 * self.scales.len()
    }
}

/// C `[M, N]` = act(x W + bias) for x `[M, K]`.
pub fn int4_gemm(ctx: &Context, m: usize, x: &[f32], w: &PackedInt4, epilogue: Epilogue, c: &mut [f32]) {
    assert!(x.len() >= m * w.k && c.len() >= m * w.n, "int4_gemm: a slice is too short for [{m}, {}, {}]", w.k, w.n);
    assert!(epilogue.bias.is_none_or(|b| b.len() >= w.n), "int4_gemm: bias is shorter than {}", w.n);
    let panels = w.n.div_ceil(WIDTH);
    let out = Shares::new(c);
    let parts = ctx.parts(m * w.n * w.k, 200_000).min(panels.max(1));
    ctx.fork(parts, |part| {
        // SAFETY: sizes checked; parts write disjoint columns.
        unsafe { simd!(ctx.isa(), int4_panels, [](m, x, w, &epilogue, piece(panels, parts, part, 1), out.ptr())) }
    });
}

/// The weights `[K, N]` as f32.
pub fn dequantize_int4(ctx: &Context, w: &PackedInt4, y: &mut [f32]) {
    assert!(y.len() >= w.k * w.n, "dequantize_int4: y is too short for [{}, {}]", w.k, w.n);
    let out = Shares::new(y);
    ctx.split(w.n.div_ceil(WIDTH), 16 * 1024 / (w.k * WIDTH).max(1) + 1, 1, |_, panels| {
        // SAFETY: sizes checked; ranges of panels are disjoint columns.
        unsafe { simd!(ctx.isa(), widen_panels, [](w, panels, out.ptr())) }
    });
}

#[inline(always)]
unsafe fn widen_panels<S: Simd>(w: &PackedInt4, panels: Range<usize>, y: *mut f32) {
    unsafe {
        let (deep, groups) = (w.k.div_ceil(DEEP), w.k.div_ceil(w.group * DEEP));
        for panel in panels {
            for h in (0..WIDTH).step_by(S::LANES).take_while(|h| panel * WIDTH + h < w.n) {
                let j = panel * WIDTH + h;
                for q in 0..deep {
                    let scale = S::load_f16(w.scales.as_ptr().add((panel * groups + q / w.group) * WIDTH + h));
                    let weights = S::load_nibbles(w.words.as_ptr().add((panel * deep + q) * WIDTH + h));
                    for (l, weight) in weights.into_iter().enumerate().take(w.k - q * DEEP) {
                        f32::store_part::<S>(y.add((q * DEEP + l) * w.n + j), S::mul(weight, scale), w.n - j);
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn int4_panels<S: Simd>(m: usize, x: &[f32], w: &PackedInt4, epilogue: &Epilogue, panels: Range<usize>, c: *mut f32) {
    unsafe {
        for panel in panels {
            for h in (0..WIDTH).step_by(S::LANES) {
                let mut i = 0;
                while i < m {
                    if i + 8 <= m {
                        int4_rows::<S, 8>(i, x, w, epilogue, panel, h, c);
                        i += 8;
                    } else if i + 4 <= m {
                        int4_rows::<S, 4>(i, x, w, epilogue, panel, h, c);
                        i += 4;
                    } else {
                        int4_rows::<S, 1>(i, x, w, epilogue, panel, h, c);
                        i += 1;
                    }
                }
            }
        }
    }
}

/// `MR` rows of x from row `i` on times one vector of columns.
#[inline(always)]
unsafe fn int4_rows<S: Simd, const MR: usize>(
    i: usize,
    x: &[f32],
    w: &PackedInt4,
    epilogue: &Epilogue,
    panel: usize,
    h: usize,
    c: *mut f32,
) {
    unsafe {
        let j = panel * WIDTH + h;
        if j >= w.n {
            return;
        }
        let (deep, whole, groups) = (w.k.div_ceil(DEEP), w.k / DEEP, w.k.div_ceil(w.group * DEEP));
        let x = x.as_ptr().add(i * w.k);
        // The last, partial word reads its part of x and zeros.
        let mut rest = [[0.0f32; DEEP]; MR];
        for (r, rest) in rest.iter_mut().enumerate() {
            for (l, v) in rest.iter_mut().enumerate().take(w.k - whole * DEEP) {
                *v = *x.add(r * w.k + whole * DEEP + l);
            }
        }
        let mut sums = [S::zero(); MR];
        for g in 0..groups {
            let scale = S::load_f16(w.scales.as_ptr().add((panel * groups + g) * WIDTH + h));
            let words = g * w.group..((g + 1) * w.group).min(deep);
            // One row scales the group's sum, several the weights: whichever is fewer multiplications.
            let mut parts = [S::zero(); 4];
            for q in words {
                let weights = S::load_nibbles(w.words.as_ptr().add((panel * deep + q) * WIDTH + h));
                for (r, sum) in sums.iter_mut().enumerate() {
                    let x = if q < whole { x.add(r * w.k + q * DEEP) } else { rest[r].as_ptr() };
                    for (l, weight) in weights.into_iter().enumerate() {
                        if MR == 1 {
                            parts[l % 4] = S::fma(S::splat(*x.add(l)), weight, parts[l % 4]);
                        } else {
                            *sum = S::fma(S::splat(*x.add(l)), S::mul(weight, scale), *sum);
                        }
                    }
                }
            }
            if MR == 1 {
                let part = S::add(S::add(parts[0], parts[1]), S::add(parts[2], parts[3]));
                sums[0] = S::fma(part, scale, sums[0]);
            }
        }
        let left = w.n - j;
        for (r, sum) in sums.into_iter().enumerate() {
            let mut v = sum;
            if let Some(bias) = epilogue.bias {
                v = S::add(v, f32::load_part::<S>(bias.as_ptr().add(j), left));
            }
            f32::store_part::<S>(c.add((i + r) * w.n + j), activate::<S>(epilogue.activation, v), left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Random, contexts, worst};
    use super::super::gemm::Activation;
    use super::*;

    #[test]
    fn products_are_those_of_the_weights_that_were_packed() {
        for ctx in contexts() {
            let mut r = Random::new();
            for (m, n, k, group) in [
                (1, 1, 1, 8),
                (2, 17, 15, 8),
                (1, 300, 700, 128),
                (5, 31, 129, 64),
                (8, 16, 128, 128),
                (13, 40, 257, 64),
                (64, 33, 200, 128),
            ] {
                let x: Vec<f32> = r.values(m * k);
                let pairs: Vec<i8> = (0..k.div_ceil(2) * n).map(|_| r.next() as i8).collect();
                let scales: Vec<f16> = (0..k.div_ceil(group) * n).map(|_| f16::from_f32(r.unit().abs() + 0.1)).collect();
                let bias: Vec<f32> = r.values(n);
                let packed = PackedInt4::new(k, n, group, &pairs, &scales);
                let weight = |p: usize, j: usize| {
                    let byte = pairs[p / 2 * n + j];
                    let q = if p.is_multiple_of(2) { byte << 4 >> 4 } else { byte >> 4 };
                    f64::from(q) * f64::from(scales[p / group * n + j].to_f32())
                };
                let mut want = vec![0.0f64; m * n];
                for (at, want) in want.iter_mut().enumerate() {
                    let sum: f64 = (0..k).map(|p| f64::from(x[at / n * k + p]) * weight(p, at % n)).sum();
                    *want = (sum + f64::from(bias[at % n])).max(0.0);
                }
                let mut c = vec![f32::NAN; m * n];
                let epilogue = Epilogue { bias: Some(&bias), activation: Activation::Relu };
                int4_gemm(&ctx, m, &x, &packed, epilogue, &mut c);
                worst(&format!("[{m}, {n}, {k}] by {group} {:?}", ctx.isa()), &r, &c, &want, 2e-5);
            }
        }
    }

    #[test]
    fn widened_weights_are_those_that_were_packed() {
        for ctx in contexts() {
            let mut r = Random::new();
            for (n, k, group) in
                [(1usize, 1usize, 8usize), (17, 15, 8), (33, 9, 128), (31, 129, 64), (40, 257, 32), (64, 288, 128)]
            {
                let pairs: Vec<i8> = (0..k.div_ceil(2) * n).map(|_| r.next() as i8).collect();
                let scales: Vec<f16> = (0..k.div_ceil(group) * n).map(|_| f16::from_f32(r.unit().abs() + 0.1)).collect();
                let mut y = vec![f32::NAN; k * n + 1];
                dequantize_int4(&ctx, &PackedInt4::new(k, n, group, &pairs, &scales), &mut y);
                for (at, y) in y[..k * n].iter().enumerate() {
                    let byte = pairs[at / n / 2 * n + at % n];
                    let q = if (at / n).is_multiple_of(2) { byte << 4 >> 4 } else { byte >> 4 };
                    assert_eq!(*y, f32::from(q) * scales[at / n / group * n + at % n].to_f32(), "[{k}, {n}] {at}");
                }
                assert!(y[k * n].is_nan());
            }
        }
    }

    #[test]
    fn an_eighth_of_the_bytes_of_f32_is_read() {
        let packed = PackedInt4::new(1024, 64, 128, &vec![0; 512 * 64], &vec![f16::ZERO; 8 * 64]);
        assert_eq!(packed.bytes(), 1024 * 64 / 2 + 2 * 8 * 64);
    }
}
