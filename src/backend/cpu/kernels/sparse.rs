//! 2:4 structured sparsity: of each 4 weights along K, the 2 of largest magnitude, as values plus a code of their
//! places. Half the bytes of dense f32, so it can win where memory binds (few rows); with many rows the lookups cost
//! what the skipped products save, and the dense product is as fast.

use super::gemm::{Epilogue, activate};
use super::pool::{Buffer, Context, Shares, piece};
use super::simd::*;
use std::ops::Range;

/// Columns of a packed panel.
const WIDTH: usize = 16;

/// Weights `[K, N]` kept 2 of 4 along K: per group of 4 and panel of 16 columns, 16 first values, 16 second values,
/// and 16 codes (first place + 4 second place).
#[derive(Clone)]
pub struct Packed24 {
    k: usize,
    n: usize,
    values: Buffer<f32>,
    places: Buffer<u8>,
}

impl Packed24 {
    /// Keeps the 2 largest magnitudes of each 4 (the first of equals).
    pub fn from_f32(k: usize, n: usize, w: &[f32]) -> Packed24 {
        assert!(w.len() >= k * n, "Packed24: w is too short for [{k}, {n}]");
        let (groups, panels) = (k.div_ceil(4), n.div_ceil(WIDTH));
        let mut values = Buffer::<f32>::zeros(panels * groups * 2 * WIDTH);
        let mut places = Buffer::<u8>::zeros(panels * groups * WIDTH);
        for j in 0..n {
            for g in 0..groups {
                let at = |l: usize| if 4 * g + l < k { w[(4 * g + l) * n + j] } else { 0.0 };
                let mut order = [0, 1, 2, 3];
                order.sort_by(|&a, &b| at(b).abs().total_cmp(&at(a).abs()));
                let (first, second) = (order[0].min(order[1]), order[0].max(order[1]));
                let block = (j / WIDTH * groups + g) * WIDTH;
                values[block * 2 + j % WIDTH] = at(first);
                values[block * 2 + WIDTH + j % WIDTH] = at(second);
                places[block + j % WIDTH] = (first + 4 * second) as u8;
            }
        }
        Packed24 { k, n, values, places }
    }

    /// What a product reads.
    pub fn bytes(&self) -> usize {
        4 * self.values.len() + self.places.len()
    }

    /// The dense `[K, N]` it stands for.
    pub fn to_dense(&self) -> Vec<f32> {
        let groups = self.k.div_ceil(4);
        let mut w = vec![0.0; self.k * self.n];
        for j in 0..self.n {
            for g in 0..groups {
                let block = (j / WIDTH * groups + g) * WIDTH;
                let code = self.places[block + j % WIDTH] as usize;
                for (place, value) in [(code % 4, block * 2), (code / 4, block * 2 + WIDTH)] {
                    if 4 * g + place < self.k {
                        w[(4 * g + place) * self.n + j] = self.values[value + j % WIDTH];
                    }
                }
            }
        }
        w
    }
}

/// C `[M, N]` = act(x W + bias) for x `[M, K]`.
pub fn sparse_gemm(ctx: &Context, m: usize, x: &[f32], w: &Packed24, epilogue: Epilogue, c: &mut [f32]) {
    assert!(x.len() >= m * w.k && c.len() >= m * w.n, "sparse_gemm: a slice is too short for [{m}, {}, {}]", w.k, w.n);
    assert!(epilogue.bias.is_none_or(|b| b.len() >= w.n), "sparse_gemm: bias is shorter than {}", w.n);
    let panels = w.n.div_ceil(WIDTH);
    let out = Shares::new(c);
    let parts = ctx.parts(m * w.n * w.k, 100_000).min(panels.max(1));
    ctx.fork(parts, |part| {
        // SAFETY: sizes checked; parts write disjoint columns.
        unsafe { simd!(ctx.isa(), sparse_panels, [](m, x, w, &epilogue, piece(panels, parts, part, 1), out.ptr())) }
    });
}

#[inline(always)]
unsafe fn sparse_panels<S: Simd>(m: usize, x: &[f32], w: &Packed24, epilogue: &Epilogue, panels: Range<usize>, c: *mut f32) {
    unsafe {
        let mut p = panels.start;
        while p < panels.end {
            let full = p + 4 <= panels.end;
            for i in 0..m {
                for h in (0..WIDTH).step_by(S::LANES) {
                    if full {
                        sparse_columns::<S, 4>(i, x, w, epilogue, p, h, c);
                    } else {
                        sparse_columns::<S, 1>(i, x, w, epilogue, p, h, c);
                    }
                }
            }
            p += if full { 4 } else { 1 };
        }
    }
}

/// Row `i` times one vector of each of `P` panels: enough sums in flight to hide their latency.
#[inline(always)]
unsafe fn sparse_columns<S: Simd, const P: usize>(
    i: usize,
    x: &[f32],
    w: &Packed24,
    epilogue: &Epilogue,
    panel: usize,
    h: usize,
    c: *mut f32,
) {
    unsafe {
        let (groups, whole) = (w.k.div_ceil(4), w.k / 4);
        let x = x.as_ptr().add(i * w.k);
        let mut sums = [[S::zero(); 2]; P];
        for g in 0..groups {
            let four = if g < whole {
                x.add(4 * g).cast::<[f32; 4]>().read()
            } else {
                let mut four = [0.0f32; 4];
                for (l, v) in four.iter_mut().enumerate().take(w.k - 4 * whole) {
                    *v = *x.add(4 * whole + l);
                }
                four
            };
            for (p, sums) in sums.iter_mut().enumerate() {
                // The codes sit 16 to a panel, so a read of LANES stays inside it.
                let block = ((panel + p) * groups + g) * WIDTH;
                let (first, second) = S::pick4(&four, S::load_u8(w.places.as_ptr().add(block + h)));
                let values = w.values.as_ptr().add(2 * block + h);
                sums[0] = S::fma(first, S::load(values), sums[0]);
                sums[1] = S::fma(second, S::load(values.add(WIDTH)), sums[1]);
            }
        }
        for (p, [a, b]) in sums.into_iter().enumerate() {
            let j = (panel + p) * WIDTH + h;
            if j >= w.n {
                break;
            }
            let left = w.n - j;
            let mut v = S::add(a, b);
            if let Some(bias) = epilogue.bias {
                v = S::add(v, f32::load_part::<S>(bias.as_ptr().add(j), left));
            }
            f32::store_part::<S>(c.add(i * w.n + j), activate::<S>(epilogue.activation, v), left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Random, contexts, worst};
    use super::*;

    #[test]
    fn sparse_product_is_the_dense_product_of_what_was_kept() {
        for ctx in contexts() {
            let mut r = Random::new();
            for (m, n, k) in [(1, 1, 1), (2, 17, 15), (3, 33, 16), (1, 128, 129), (5, 300, 127)] {
                let (x, w): (Vec<f32>, Vec<f32>) = (r.values(m * k), r.values(k * n));
                let packed = Packed24::from_f32(k, n, &w);
                let dense = packed.to_dense();
                for j in 0..n {
                    for g in 0..k / 4 {
                        let kept = (0..4).filter(|l| dense[(4 * g + l) * n + j] != 0.0).count();
                        assert_eq!(kept, 2);
                    }
                }
                let mut want = vec![0.0f64; m * n];
                for (at, want) in want.iter_mut().enumerate() {
                    *want = (0..k).map(|p| x[at / n * k + p] as f64 * dense[p * n + at % n] as f64).sum();
                }
                let mut c = vec![f32::NAN; m * n];
                sparse_gemm(&ctx, m, &x, &packed, Epilogue::default(), &mut c);
                worst(&format!("[{m}, {n}, {k}] {:?}", ctx.isa()), &r, &c, &want, 2e-5);
            }
        }
    }
}
