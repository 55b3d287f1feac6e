//! Products with weights of which many are zero anywhere: only the others are kept and read, column by column.
//!
//! Many rows: the vector lies across the rows of x, turned block by block, and every weight that is kept is one multiply-add on it. Few rows
//! do not fill a vector: there a weight is multiplied row by row. Either way the work is in proportion to the weights that are kept.

use super::gemm::{Epilogue, activate};
use super::pool::{Buffer, Context, Shares, piece};
use super::simd::*;
use std::ops::Range;

/// Most rows that are multiplied one by one; with more the vector lies across rows.
const FEW_ROWS: usize = 4;

/// Inputs of a block of many rows: with 64 rows of four bytes they fill 32 KiB, the first cache.
const BLOCK: usize = 128;

/// Inputs of a block of few rows, all that a place can count: each block costs a loop for every column.
const FEW_BLOCK: usize = 1 << 16;

/// Weights `[K, N]` without their zeros, in the order that products of so many rows read: block of inputs by block, column by column.
#[derive(Clone)]
pub struct PackedSparse {
    k: usize,
    n: usize,
    /// Inputs of a block.
    block: usize,
    /// Place within the block of inputs.
    places: Vec<u16>,
    values: Buffer<f32>,
    /// Where the values of block b and column j begin: `starts[b * n + j]`, and the end of all.
    starts: Vec<u32>,
}

impl PackedSparse {
    /// Keeps what is not zero, for products of `rows` rows.
    pub fn new(k: usize, n: usize, w: &[f32], rows: usize) -> PackedSparse {
        assert!(w.len() >= k * n, "PackedSparse: w is too short for [{k}, {n}]");
        let filled = w[..k * n].iter().filter(|v| **v != 0.0).count();
        assert!(u32::try_from(filled).is_ok(), "PackedSparse: {filled} weights are more than a place can count");
        let block = if rows <= FEW_ROWS { FEW_BLOCK } else { BLOCK };
        let mut values = Buffer::<f32>::zeros(filled);
        let (mut places, mut starts) = (Vec::with_capacity(filled), Vec::with_capacity(k.div_ceil(block) * n + 1));
        for from in (0..k).step_by(block) {
            for j in 0..n {
                starts.push(places.len() as u32);
                for p in from..k.min(from + block) {
                    let v = w[p * n + j];
                    if v != 0.0 {
                        values[places.len()] = v;
                        places.push((p - from) as u16);
                    }
                }
            }
        }
        starts.push(places.len() as u32);
        PackedSparse { k, n, block, places, values, starts }
    }

    /// Weights that are not zero.
    pub fn filled(&self) -> usize {
        self.places.len()
    }

    /// What a product reads.
    pub fn bytes(&self) -> usize {
        2 * self.places.len() + 4 * self.values.len() + 4 * self.starts.len()
    }
}

/// C `[M, N]` = act(x W + bias) for x `[M, K]`.
pub fn unstructured_gemm(ctx: &Context, m: usize, x: &[f32], w: &PackedSparse, epilogue: Epilogue, c: &mut [f32]) {
    let (k, n) = (w.k, w.n);
    assert!(x.len() >= m * k && c.len() >= m * n, "unstructured_gemm: a slice is too short for [{m}, {n}, {k}]");
    assert!(epilogue.bias.is_none_or(|b| b.len() >= n), "unstructured_gemm: bias is shorter than {n}");
    let out = Shares::new(c);
    if w.block == FEW_BLOCK {
        let parts = ctx.parts(m * w.filled(), 50_000).min(n.max(1));
        ctx.fork(parts, |part| {
            // SAFETY: sizes checked; parts write disjoint columns.
            unsafe { simd!(ctx.isa(), few_rows, [](m, x, w, &epilogue, piece(n, parts, part, 1), out.ptr())) }
        });
        return;
    }
    let lanes = match ctx.isa() {
        Isa::Avx512 => 16,
        Isa::Avx2 => 8,
        Isa::Scalar => 4,
    };
    let threads = ctx.parts(m * w.filled(), 100_000);
    // As many vectors of rows at a time as leave a block for every thread, four at most: what a column costs beside them is shared.
    let vectors = [4, 2].into_iter().find(|v| m >= v * lanes * threads).unwrap_or(1);
    let blocks = m.div_ceil(vectors * lanes);
    let parts = threads.min(blocks.max(1));
    ctx.fork(parts, |part| {
        let mut own = ctx.own(part);
        let scratch = own.f32((BLOCK + n) * vectors * lanes);
        let blocks = piece(blocks, parts, part, 1);
        // SAFETY: sizes checked; parts write disjoint rows.
        unsafe {
            match vectors {
                4 => simd!(ctx.isa(), many_rows, [4, 1](m, x, w, &epilogue, blocks, scratch, out.ptr())),
                2 => simd!(ctx.isa(), many_rows, [2, 2](m, x, w, &epilogue, blocks, scratch, out.ptr())),
                _ => simd!(ctx.isa(), many_rows, [1, 4](m, x, w, &epilogue, blocks, scratch, out.ptr())),
            }
        }
    });
}

#[inline(always)]
unsafe fn few_rows<S: Simd>(m: usize, x: &[f32], w: &PackedSparse, epilogue: &Epilogue, columns: Range<usize>, c: *mut f32) {
    unsafe {
        let mut i = 0;
        while i < m {
            match m - i {
                1 => few_columns::<S, 1, 4>(i, x, w, epilogue, columns.clone(), c),
                2 => few_columns::<S, 2, 4>(i, x, w, epilogue, columns.clone(), c),
                3 => few_columns::<S, 3, 2>(i, x, w, epilogue, columns.clone(), c),
                _ => few_columns::<S, 4, 2>(i, x, w, epilogue, columns.clone(), c),
            }
            i += FEW_ROWS;
        }
    }
}

/// `R` rows from `i` on, with `U` sums each, that no sum waits for the one before.
#[inline(always)]
unsafe fn few_columns<S: Simd, const R: usize, const U: usize>(
    i: usize,
    x: &[f32],
    w: &PackedSparse,
    epilogue: &Epilogue,
    columns: Range<usize>,
    c: *mut f32,
) {
    unsafe {
        let (k, n) = (w.k, w.n);
        for j in columns {
            let mut sums = [[0.0f32; U]; R];
            for (b, from) in (0..k).step_by(FEW_BLOCK).enumerate() {
                let (begin, end) = (w.starts[b * n + j] as usize, w.starts[b * n + j + 1] as usize);
                let (places, values) = (&w.places[begin..end], w.values.as_ptr().add(begin));
                let x = x.as_ptr().add(i * k + from);
                let one = |at: usize, u: usize, sums: &mut [[f32; U]; R]| {
                    let (place, value) = (*places.get_unchecked(at) as usize, *values.add(at));
                    for (r, sums) in sums.iter_mut().enumerate() {
                        sums[u] = value.mul_add(*x.add(r * k + place), sums[u]);
                    }
                };
                let mut at = 0;
                while at + U <= places.len() {
                    for u in 0..U {
                        one(at + u, u, &mut sums);
                    }
                    at += U;
                }
                while at < places.len() {
                    one(at, 0, &mut sums);
                    at += 1;
                }
            }
            for (r, sums) in sums.into_iter().enumerate() {
                let sum = sums.into_iter().sum::<f32>() + epilogue.bias.map_or(0.0, |bias| bias[j]);
                *c.add((i + r) * n + j) = S::to_array(activate::<S>(epilogue.activation, S::splat(sum)))[0];
            }
        }
    }
}

/// Blocks of `V` vectors of rows, with `U` sums each.
#[inline(always)]
unsafe fn many_rows<S: Simd, const V: usize, const U: usize>(
    m: usize,
    x: &[f32],
    w: &PackedSparse,
    epilogue: &Epilogue,
    blocks: Range<usize>,
    scratch: &mut [f32],
    c: *mut f32,
) {
    unsafe {
        let (k, n, wide) = (w.k, w.n, V * S::LANES);
        let (turned, sums) = scratch.split_at_mut(BLOCK * wide);
        for block in blocks {
            let first = block * wide;
            let rows = (m - first).min(wide);
            sums[..n * wide].fill(0.0);
            for (b, from) in (0..k).step_by(BLOCK).enumerate() {
                let inputs = (k - from).min(BLOCK);
                turn::<S>(x.as_ptr().add(first * k + from), k, rows, inputs, turned.as_mut_ptr(), wide);
                for j in 0..n {
                    let (begin, end) = (w.starts[b * n + j] as usize, w.starts[b * n + j + 1] as usize);
                    let to = sums.as_mut_ptr().add(j * wide);
                    add_column::<S, V, U>(&w.places[begin..end], w.values.as_ptr().add(begin), turned.as_ptr(), to);
                }
            }
            finish::<S>(sums.as_mut_ptr(), wide, rows, n, epilogue, c.add(first * n));
        }
    }
}

/// Adds the kept weights of a column times their inputs to its sums over the rows.
#[inline(always)]
unsafe fn add_column<S: Simd, const V: usize, const U: usize>(
    places: &[u16],
    values: *const f32,
    turned: *const f32,
    to: *mut f32,
) {
    unsafe {
        let mut sums = [[S::zero(); U]; V];
        for (v, sums) in sums.iter_mut().enumerate() {
            sums[0] = S::load(to.add(v * S::LANES));
        }
        let one = |at: usize, u: usize, sums: &mut [[S::V; U]; V]| {
            let row = turned.add(*places.get_unchecked(at) as usize * V * S::LANES);
            let value = S::splat(*values.add(at));
            for (v, sums) in sums.iter_mut().enumerate() {
                sums[u] = S::fma(S::load(row.add(v * S::LANES)), value, sums[u]);
            }
        };
        let mut at = 0;
        while at + U <= places.len() {
            for u in 0..U {
                one(at + u, u, &mut sums);
            }
            at += U;
        }
        while at < places.len() {
            one(at, 0, &mut sums);
            at += 1;
        }
        for (v, sums) in sums.into_iter().enumerate() {
            let mut sums = sums.into_iter();
            let first = sums.next().expect("U is at least 1");
            S::store(to.add(v * S::LANES), sums.fold(first, |a, b| S::add(a, b)));
        }
    }
}

/// `to[inputs][wide]` from `rows` rows of `inputs` numbers, `row` apart; zeros for the rows that are not there.
#[inline(always)]
unsafe fn turn<S: Simd>(from: *const f32, row: usize, rows: usize, inputs: usize, to: *mut f32, wide: usize) {
    unsafe {
        let mut i = 0;
        while i < rows {
            let eight = (rows - i).min(8);
            let mut p = 0;
            while eight == 8 && i + 8 <= wide && p + 8 <= inputs {
                S::transpose8(from.add(i * row + p), row, to.add(p * wide + i), wide);
                p += 8;
            }
            while p < inputs {
                for r in i..i + eight {
                    *to.add(p * wide + r) = *from.add(r * row + p);
                }
                p += 1;
            }
            i += eight;
        }
        if rows < wide {
            for p in 0..inputs {
                for r in rows..wide {
                    *to.add(p * wide + r) = 0.0;
                }
            }
        }
    }
}

/// The sums `[n][wide]` with bias and activation as rows of C.
#[inline(always)]
unsafe fn finish<S: Simd>(sums: *mut f32, wide: usize, rows: usize, n: usize, epilogue: &Epilogue, c: *mut f32) {
    unsafe {
        for j in 0..n {
            let bias = S::splat(epilogue.bias.map_or(0.0, |bias| bias[j]));
            for v in (0..wide).step_by(S::LANES) {
                let p = sums.add(j * wide + v);
                S::store(p, activate::<S>(epilogue.activation, S::add(S::load(p), bias)));
            }
        }
        let mut j = 0;
        while j < n {
            let eight = (n - j).min(8);
            let mut i = 0;
            while eight == 8 && i + 8 <= rows {
                S::transpose8(sums.add(j * wide + i), wide, c.add(i * n + j), n);
                i += 8;
            }
            while i < rows {
                for q in j..j + eight {
                    *c.add(i * n + q) = *sums.add(q * wide + i);
                }
                i += 1;
            }
            j += eight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Activation;
    use super::super::check::{Random, contexts, worst};
    use super::*;

    #[test]
    fn the_product_without_zeros_is_the_dense_one() {
        for ctx in contexts() {
            let mut r = Random::new();
            for (m, n, k) in [
                (1, 1, 1),
                (2, 17, 15),
                (3, 33, 16),
                (4, 16, 127),
                (1, 3, 70_000),
                (5, 15, 129),
                (9, 17, 16),
                (16, 1, 128),
                (33, 128, 257),
                (130, 31, 300),
            ] {
                for kept in [0, 1, 20, 50, 100] {
                    // Eighths below one: sums of 70,000 products are exact in any order.
                    let mut eighth = |kept: usize| {
                        let eighth = (2 * r.below(8)) as f32 / 8.0 - 0.875;
                        if r.below(100) < kept { eighth } else { 0.0 }
                    };
                    let mut eighths = |count: usize, kept: usize| (0..count).map(|_| eighth(kept)).collect::<Vec<f32>>();
                    let (x, w, bias) = (eighths(m * k, 100), eighths(k * n, kept), eighths(n, 100));
                    let packed = PackedSparse::new(k, n, &w, m);
                    assert_eq!(packed.filled(), w.iter().filter(|v| **v != 0.0).count());
                    let mut want = vec![0.0f64; m * n];
                    for (at, want) in want.iter_mut().enumerate() {
                        let product: f64 = (0..k).map(|p| x[at / n * k + p] as f64 * w[p * n + at % n] as f64).sum();
                        *want = (product + bias[at % n] as f64).max(0.0);
                    }
                    let mut c = vec![f32::NAN; m * n];
                    let epilogue = Epilogue { bias: Some(&bias), activation: Activation::Relu };
                    unstructured_gemm(&ctx, m, &x, &packed, epilogue, &mut c);
                    worst(&format!("[{m}, {n}, {k}] with {kept} % kept, {:?}", ctx.isa()), &r, &c, &want, 0.0);
                }
            }
        }
    }
}
