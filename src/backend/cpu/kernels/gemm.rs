//! Matrix products: C = act(alpha op(A) op(B) (+ C) + bias) for f32, bf16 and f16 storage, f32 accumulation.
//! A micro-kernel holds a tile of C in registers (8 x 32 in AVX-512, 6 x 16 in AVX2, 4 x 8 portable); f32 operands whose
//! rows are contiguous are read in place, others are packed by panels (and converted there). M <= 4 streams B once.
//! bf16 x bf16 uses `vdpbf16ps` where the machine has it (denormals count as zero there).

use super::pool::{Context, Scratch, Shares, piece};
use super::simd::*;
use half::bf16;
use std::any::TypeId;
use std::arch::x86_64::*;

/// What is applied to a product after its bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    #[default]
    None,
    Relu,
    /// x Phi(x), by erf.
    Gelu,
}

/// Bias (one per column, f32 in every precision) and activation of a product.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    pub bias: Option<&'a [f32]>,
    pub activation: Activation,
}

/// The shape of C `[M, N]` = op(A) op(B): op(A) is `[M, K]`, op(B) `[K, N]`; a transposed operand is stored the other way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gemm {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a_transposed: bool,
    pub b_transposed: bool,
    /// Adds to what C holds instead of overwriting it.
    pub accumulate: bool,
    pub alpha: f32,
    /// Distance of stored rows, in elements; 0 means contiguous.
    pub lda: usize,
    pub ldb: usize,
    pub ldc: usize,
}

impl Gemm {
    /// Contiguous, not transposed, overwriting.
    pub fn new(m: usize, n: usize, k: usize) -> Gemm {
        let (a_transposed, b_transposed, accumulate) = (false, false, false);
        Gemm { m, n, k, a_transposed, b_transposed, accumulate, alpha: 1.0, lda: 0, ldb: 0, ldc: 0 }
    }
    /// A is stored `[K, M]`.
    pub fn transpose_a(self) -> Gemm {
        Gemm { a_transposed: true, ..self }
    }
    /// B is stored `[N, K]`.
    pub fn transpose_b(self) -> Gemm {
        Gemm { b_transposed: true, ..self }
    }
    pub fn accumulate(self) -> Gemm {
        Gemm { accumulate: true, ..self }
    }
    pub fn alpha(self, alpha: f32) -> Gemm {
        Gemm { alpha, ..self }
    }
    /// Stored rows this many elements apart (0: contiguous).
    pub fn strides(self, lda: usize, ldb: usize, ldc: usize) -> Gemm {
        Gemm { lda, ldb, ldc, ..self }
    }

    fn stored_a(&self) -> (usize, usize, usize) {
        let (rows, cols) = if self.a_transposed { (self.k, self.m) } else { (self.m, self.k) };
        (rows, cols, if self.lda == 0 { cols } else { self.lda })
    }
    fn stored_b(&self) -> (usize, usize, usize) {
        let (rows, cols) = if self.b_transposed { (self.n, self.k) } else { (self.k, self.n) };
        (rows, cols, if self.ldb == 0 { cols } else { self.ldb })
    }
    fn stored_c(&self) -> (usize, usize, usize) {
        (self.m, self.n, if self.ldc == 0 { self.n } else { self.ldc })
    }
    fn check(&self, a: usize, b: usize, c: usize, epilogue: &Epilogue) {
        for (name, (rows, cols, ld), len) in [("A", self.stored_a(), a), ("B", self.stored_b(), b), ("C", self.stored_c(), c)] {
            let need = rows.saturating_sub(1) * ld + cols;
            assert!(ld >= cols && len >= need, "gemm: {name} has {len} elements, {self:?} needs {need}");
        }
        if let Some(bias) = epilogue.bias {
            assert!(bias.len() >= self.n, "gemm: bias has {} elements, {self:?} needs {}", bias.len(), self.n);
        }
    }
    fn problem<A, B, C>(&self, a: *const A, b: *const B, c: *mut C, epilogue: &Epilogue) -> Problem<A, B, C> {
        let (lda, ldb, ldc) = (self.stored_a().2, self.stored_b().2, self.stored_c().2);
        Problem {
            m: self.m,
            n: self.n,
            k: self.k,
            a,
            a_row: if self.a_transposed { 1 } else { lda },
            a_col: if self.a_transposed { lda } else { 1 },
            b,
            b_row: if self.b_transposed { 1 } else { ldb },
            b_col: if self.b_transposed { ldb } else { 1 },
            c,
            ldc,
            alpha: self.alpha,
            accumulate: self.accumulate,
            bias: epilogue.bias.map_or(std::ptr::null(), <[f32]>::as_ptr),
            activation: epilogue.activation,
        }
    }
}

/// Element strides `[outer, inner]` of `outer * inner` products of one shape; two levels, so that attention heads
/// inside rows need no copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    pub outer: usize,
    pub inner: usize,
    pub a: [usize; 2],
    pub b: [usize; 2],
    pub c: [usize; 2],
}

impl Batch {
    /// `count` products, operands one after the other.
    pub fn contiguous(count: usize, gemm: &Gemm) -> Batch {
        let size = |(rows, _, ld): (usize, usize, usize)| [0, rows * ld];
        Batch { outer: 1, inner: count, a: size(gemm.stored_a()), b: size(gemm.stored_b()), c: size(gemm.stored_c()) }
    }
}

/// One product on raw memory, by strides.
#[derive(Clone, Copy)]
pub(super) struct Problem<A, B, C> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: *const A,
    pub a_row: usize,
    pub a_col: usize,
    pub b: *const B,
    pub b_row: usize,
    pub b_col: usize,
    pub c: *mut C,
    pub ldc: usize,
    pub alpha: f32,
    pub accumulate: bool,
    /// `n` values or null.
    pub bias: *const f32,
    pub activation: Activation,
}

// SAFETY: only pointers; whoever makes a `Problem` vouches for them, and threads write disjoint parts of C.
unsafe impl<A, B, C> Send for Problem<A, B, C> {}
// SAFETY: as above.
unsafe impl<A, B, C> Sync for Problem<A, B, C> {}

impl<A: Element, B: Element, C: Element> Problem<A, B, C> {
    /// The part with these rows and columns of C.
    unsafe fn part(&self, rows: std::ops::Range<usize>, cols: std::ops::Range<usize>) -> Self {
        unsafe {
            Problem {
                m: rows.len(),
                n: cols.len(),
                a: self.a.add(rows.start * self.a_row),
                b: self.b.add(cols.start * self.b_col),
                c: self.c.add(rows.start * self.ldc + cols.start),
                bias: if self.bias.is_null() { self.bias } else { self.bias.add(cols.start) },
                ..*self
            }
        }
    }

    /// Runs it on this thread.
    ///
    /// # Safety
    /// The pointers cover the shape, C is exclusive, and the machine has `isa`.
    pub(super) unsafe fn run(&self, isa: Isa, scratch: &mut Scratch) {
        // SAFETY: the caller's promise.
        unsafe {
            if TypeId::of::<A>() == TypeId::of::<bf16>() && TypeId::of::<B>() == TypeId::of::<bf16>() && isa.has_bf16() {
                let p = Problem::<bf16, bf16, C> {
                    a: self.a.cast(),
                    b: self.b.cast(),
                    m: self.m,
                    n: self.n,
                    k: self.k,
                    a_row: self.a_row,
                    a_col: self.a_col,
                    b_row: self.b_row,
                    b_col: self.b_col,
                    c: self.c,
                    ldc: self.ldc,
                    alpha: self.alpha,
                    accumulate: self.accumulate,
                    bias: self.bias,
                    activation: self.activation,
                };
                return tiles_bf16(&p, scratch);
            }
            simd!(isa, tiles, [A, B, C](self, scratch))
        }
    }
}

/// C `[M, N]` = act(alpha op(A) op(B) (+ C) + bias). Any mix of storage types.
pub fn gemm<A: Element, B: Element, C: Element>(ctx: &Context, gemm: &Gemm, a: &[A], b: &[B], epilogue: Epilogue, c: &mut [C]) {
    gemm.check(a.len(), b.len(), c.len(), &epilogue);
    let p = gemm.problem(a.as_ptr(), b.as_ptr(), c.as_mut_ptr(), &epilogue);
    if p.m == 0 || p.n == 0 {
        return;
    }
    if p.m <= 4 && p.k >= 16 {
        return stream(ctx, &p);
    }
    // One part a 300 kFLOP: about 3 us of work for each thread, against 1 us to fork.
    let parts = ctx.parts(2 * p.m * p.n * p.k, 300_000);
    let by_rows = p.m >= 8 * parts && (p.m >= p.n || p.n < 32 * parts);
    ctx.fork(parts, |part| {
        // SAFETY: `check` compared the slices with the shape; parts are disjoint; `ctx` has checked its `isa`.
        unsafe {
            let one =
                if by_rows { p.part(piece(p.m, parts, part, 8), 0..p.n) } else { p.part(0..p.m, piece(p.n, parts, part, 32)) };
            if one.m > 0 && one.n > 0 {
                one.run(ctx.isa(), &mut ctx.own(part));
            }
        }
    });
}

/// `batch.outer * batch.inner` products of one shape. Panics unless the C's are provably disjoint.
pub fn batched_gemm<A: Element, B: Element, C: Element>(
    ctx: &Context,
    batch: &Batch,
    gemm: &Gemm,
    a: &[A],
    b: &[B],
    c: &mut [C],
) {
    let count = batch.outer * batch.inner;
    if count == 0 || gemm.m == 0 || gemm.n == 0 {
        return;
    }
    let last = |s: [usize; 2]| (batch.outer - 1) * s[0] + (batch.inner - 1) * s[1];
    let none = Epilogue::default();
    let rest = |len: usize, strides| len.saturating_sub(last(strides));
    gemm.check(rest(a.len(), batch.a), rest(b.len(), batch.b), rest(c.len(), batch.c), &none);
    let (rows, cols, ldc) = gemm.stored_c();
    let [outer, inner] = batch.c;
    let within_row = inner >= cols && (batch.inner - 1) * inner + cols <= ldc;
    let spans = (rows - 1) * ldc + cols;
    let inner_fits = batch.inner == 1 || within_row || inner >= spans;
    let outer_fits = batch.outer == 1
        || outer >= last([0, inner]) + spans
        || (batch.inner == 1 && outer >= cols && (batch.outer - 1) * outer + cols <= ldc);
    assert!(inner_fits && outer_fits, "batched_gemm: outputs overlap in {batch:?} of {gemm:?}");
    let p = gemm.problem(a.as_ptr(), b.as_ptr(), c.as_mut_ptr(), &none);
    let grain = 300_000 / (2 * gemm.m * gemm.n * gemm.k.max(1)) + 1;
    let whole = &p;
    ctx.split(count, grain, 1, |thread, range| {
        let p = *whole;
        let mut scratch = ctx.own(thread);
        for i in range {
            let (o, i) = (i / batch.inner, i % batch.inner);
            let at = |s: [usize; 2]| o * s[0] + i * s[1];
            // SAFETY: the furthest product lies inside the slices and the C's are disjoint (both checked above).
            unsafe {
                let one = Problem { a: p.a.add(at(batch.a)), b: p.b.add(at(batch.b)), c: p.c.add(at(batch.c)), ..p };
                one.run(ctx.isa(), &mut scratch);
            }
        }
    });
}

/// The activation of one vector.
#[inline(always)]
pub(super) unsafe fn activate<S: Simd>(activation: Activation, v: S::V) -> S::V {
    unsafe {
        match activation {
            Activation::None => v,
            Activation::Relu => S::max(S::zero(), v),
            Activation::Gelu => {
                let half = S::mul(v, S::splat(0.5));
                S::fma(half, erf::<S>(S::mul(v, S::splat(std::f32::consts::FRAC_1_SQRT_2))), half)
            }
        }
    }
}

/// Rows of B per pass when C is f32 and can hold the sum so far: a panel of A (8 KiB) stays in the first cache.
const K_BLOCK: usize = 256;
/// Rows of A packed at a time.
const M_BLOCK: usize = 96;
/// f32 of packed B at a time: 512 KiB, half of the second cache.
const B_BLOCK: usize = 128 * 1024;

/// One tile: `MR` rows of `2 * LANES` sums over `k`, into `tile`.
#[inline(always)]
unsafe fn micro<S: Simd, const MR: usize>(
    k: usize,
    a: *const f32,
    a_row: usize,
    a_col: usize,
    b: *const f32,
    b_row: usize,
    tile: *mut f32,
) {
    unsafe {
        let mut acc = [[S::zero(); 2]; MR];
        let (mut a, mut b) = (a, b);
        for _ in 0..k {
            let b0 = S::load(b);
            let b1 = S::load(b.add(S::LANES));
            for (i, sums) in acc.iter_mut().enumerate() {
                let x = S::splat(*a.add(i * a_row));
                sums[0] = S::fma(x, b0, sums[0]);
                sums[1] = S::fma(x, b1, sums[1]);
            }
            a = a.wrapping_add(a_col);
            b = b.wrapping_add(b_row);
        }
        for (i, sums) in acc.iter().enumerate() {
            S::store(tile.add(i * 2 * S::LANES), sums[0]);
            S::store(tile.add((i * 2 + 1) * S::LANES), sums[1]);
        }
    }
}

/// `rows <= TILE_ROWS` rows of a tile `[rows, 2 * LANES]`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn tile<S: Simd>(
    rows: usize,
    k: usize,
    a: *const f32,
    a_row: usize,
    a_col: usize,
    b: *const f32,
    b_row: usize,
    out: *mut f32,
) {
    unsafe {
        // A panel packed `TILE_ROWS` wide has constant offsets.
        if a_row == 1 && a_col == S::TILE_ROWS && rows == S::TILE_ROWS {
            return match S::TILE_ROWS {
                8 => micro::<S, 8>(k, a, 1, 8, b, b_row, out),
                6 => micro::<S, 6>(k, a, 1, 6, b, b_row, out),
                _ => micro::<S, 4>(k, a, 1, 4, b, b_row, out),
            };
        }
        match rows {
            1 => micro::<S, 1>(k, a, a_row, a_col, b, b_row, out),
            2 => micro::<S, 2>(k, a, a_row, a_col, b, b_row, out),
            3 => micro::<S, 3>(k, a, a_row, a_col, b, b_row, out),
            4 => micro::<S, 4>(k, a, a_row, a_col, b, b_row, out),
            5 if S::TILE_ROWS > 4 => micro::<S, 5>(k, a, a_row, a_col, b, b_row, out),
            6 if S::TILE_ROWS > 4 => micro::<S, 6>(k, a, a_row, a_col, b, b_row, out),
            7 if S::TILE_ROWS > 6 => micro::<S, 7>(k, a, a_row, a_col, b, b_row, out),
            8 if S::TILE_ROWS > 6 => micro::<S, 8>(k, a, a_row, a_col, b, b_row, out),
            _ => unreachable!("a tile has at most TILE_ROWS rows"),
        }
    }
}

/// Writes a tile to C: alpha, the sum so far, bias and activation.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn finish<S: Simd, C: Element>(
    tile: *const f32,
    rows: usize,
    cols: usize,
    c: *mut C,
    ldc: usize,
    alpha: f32,
    add: bool,
    bias: *const f32,
    activation: Activation,
) {
    unsafe {
        for j in 0..2 {
            let from = j * S::LANES;
            if from >= cols {
                break;
            }
            let n = (cols - from).min(S::LANES);
            let offset = if bias.is_null() { S::zero() } else { f32::load_part::<S>(bias.add(from), n) };
            for i in 0..rows {
                let at = c.add(i * ldc + from);
                let mut v = S::load(tile.add(i * 2 * S::LANES + from));
                if alpha != 1.0 {
                    v = S::mul(v, S::splat(alpha));
                }
                if add {
                    v = S::add(v, C::load_part::<S>(at, n));
                }
                if !bias.is_null() {
                    v = S::add(v, offset);
                }
                C::store_part::<S>(at, activate::<S>(activation, v), n);
            }
        }
    }
}

/// Packs `k x n` of B into panels `[k, 2 * LANES]` of f32, zero beyond `n`.
#[inline(always)]
pub(super) unsafe fn pack_b<S: Simd, B: Element>(k: usize, n: usize, b: *const B, b_row: usize, b_col: usize, out: *mut f32) {
    unsafe {
        let width = 2 * S::LANES;
        for (panel, j) in (0..n).step_by(width).enumerate() {
            let out = out.add(panel * width * k);
            let cols = (n - j).min(width);
            if b_col == 1 {
                for p in 0..k {
                    let from = b.add(p * b_row + j);
                    S::store(out.add(p * width), B::load_part::<S>(from, cols));
                    let rest = cols.saturating_sub(S::LANES);
                    let high = if rest == 0 { S::zero() } else { B::load_part::<S>(from.add(S::LANES), rest) };
                    S::store(out.add(p * width + S::LANES), high);
                }
            } else {
                for p in (0..k).step_by(16) {
                    let depth = (k - p).min(16);
                    let mut c = 0;
                    while B::IS_F32 && b_row == 1 && depth == 16 && c + 8 <= cols {
                        let from = b.add((j + c) * b_col + p).cast::<f32>();
                        S::transpose8(from, b_col, out.add(p * width + c), width);
                        S::transpose8(from.add(8), b_col, out.add((p + 8) * width + c), width);
                        c += 8;
                    }
                    for c in c..width {
                        let to = out.add(p * width + c);
                        if c < cols {
                            let from = b.add((j + c) * b_col + p * b_row);
                            for q in 0..depth {
                                *to.add(q * width) = (*from.add(q * b_row)).to_f32();
                            }
                        } else {
                            for q in 0..depth {
                                *to.add(q * width) = 0.0;
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Packs `m x k` of A into panels `[k, TILE_ROWS]` of f32, zero beyond `m`.
#[inline(always)]
pub(super) unsafe fn pack_a<S: Simd, A: Element>(m: usize, k: usize, a: *const A, a_row: usize, a_col: usize, out: *mut f32) {
    unsafe {
        let width = S::TILE_ROWS;
        for (panel, i) in (0..m).step_by(width).enumerate() {
            let out = out.add(panel * width * k);
            let rows = (m - i).min(width);
            if rows < width {
                std::slice::from_raw_parts_mut(out, width * k).fill(0.0);
            }
            if a_row == 1 && rows == 8 {
                for p in 0..k {
                    for r in 0..8 {
                        *out.add(p * 8 + r) = (*a.add(p * a_col + i + r)).to_f32();
                    }
                }
            } else if a_row == 1 {
                for p in 0..k {
                    for r in 0..rows {
                        *out.add(p * width + r) = (*a.add(p * a_col + i + r)).to_f32();
                    }
                }
            } else {
                // Through a buffer of converted rows: conversion runs in vectors, the scatter stays in the first cache.
                let mut buffer = [[0.0f32; 64]; 8];
                for p in (0..k).step_by(64) {
                    let depth = (k - p).min(64);
                    for (r, row) in buffer.iter_mut().enumerate().take(rows) {
                        let from = a.add((i + r) * a_row + p * a_col);
                        if a_col == 1 {
                            for q in (0..depth).step_by(S::LANES) {
                                let v = A::load_part::<S>(from.add(q), depth - q);
                                S::store(row.as_mut_ptr().add(q), v);
                            }
                        } else {
                            for (q, slot) in row.iter_mut().enumerate().take(depth) {
                                *slot = (*from.add(q * a_col)).to_f32();
                            }
                        }
                    }
                    if rows == 8 && width == 8 && depth == 64 {
                        for q in (0..64).step_by(8) {
                            S::transpose8(buffer.as_ptr().cast::<f32>().add(q), 64, out.add((p + q) * 8), 8);
                        }
                        continue;
                    }
                    for q in 0..depth {
                        for (r, row) in buffer.iter().enumerate().take(rows) {
                            *out.add((p + q) * width + r) = *row.get_unchecked(q);
                        }
                    }
                }
            }
        }
    }
}

/// A whole product on one thread.
#[inline(always)]
unsafe fn tiles<S: Simd, A: Element, B: Element, C: Element>(p: &Problem<A, B, C>, scratch: &mut Scratch) {
    unsafe {
        let (tile_rows, width) = (S::TILE_ROWS, 2 * S::LANES);
        if p.k == 0 {
            let zero = [0.0f32; 8 * 32];
            for i in (0..p.m).step_by(tile_rows) {
                for j in (0..p.n).step_by(width) {
                    let bias = if p.bias.is_null() { p.bias } else { p.bias.add(j) };
                    let (rows, cols) = ((p.m - i).min(tile_rows), (p.n - j).min(width));
                    let c = p.c.add(i * p.ldc + j);
                    finish::<S, C>(zero.as_ptr(), rows, cols, c, p.ldc, p.alpha, p.accumulate, bias, p.activation);
                }
            }
            return;
        }
        let k_block = if C::IS_F32 { K_BLOCK } else { p.k };
        let k_block = p.k.div_ceil(p.k.div_ceil(k_block)).min(p.k);
        // In place: f32 rows, not so wide that a column of them would fill few cache sets.
        let b_direct = B::IS_F32 && p.b_col == 1 && (p.n <= 256 || p.m <= 4 * tile_rows);
        let a_direct = A::IS_F32 && p.a_col == 1 && p.n <= 8 * width;
        let n_block = if b_direct { p.n } else { (B_BLOCK / k_block / width).max(1) * width };
        let n_block = n_block.min(p.n.div_ceil(width) * width);
        // The last panel is packed even in direct mode when it is ragged.
        let b_room = if b_direct { k_block * width } else { k_block * n_block };
        let a_room = if a_direct { 0 } else { k_block * M_BLOCK };
        let room = scratch.f32(b_room + a_room);
        let packed_b = room.as_mut_ptr();
        let packed_a = packed_b.add(b_room);
        let mut out = [0.0f32; 8 * 32];
        for k0 in (0..p.k).step_by(k_block) {
            let k = (p.k - k0).min(k_block);
            let (first, last) = (k0 == 0, k0 + k == p.k);
            for n0 in (0..p.n).step_by(n_block) {
                let n = (p.n - n0).min(n_block);
                let b = p.b.add(k0 * p.b_row + n0 * p.b_col);
                let ragged = n / width * width;
                if !b_direct {
                    pack_b::<S, B>(k, n, b, p.b_row, p.b_col, packed_b);
                } else if ragged < n {
                    pack_b::<S, B>(k, n - ragged, b.add(ragged), p.b_row, 1, packed_b);
                }
                for m0 in (0..p.m).step_by(M_BLOCK) {
                    let m = (p.m - m0).min(M_BLOCK);
                    let a = p.a.add(m0 * p.a_row + k0 * p.a_col);
                    if !a_direct {
                        pack_a::<S, A>(m, k, a, p.a_row, p.a_col, packed_a);
                    }
                    for i in (0..m).step_by(tile_rows) {
                        let rows = (m - i).min(tile_rows);
                        let (a, a_row, a_col): (*const f32, _, _) =
                            if a_direct { (a.add(i * p.a_row).cast(), p.a_row, 1) } else { (packed_a.add(i * k), 1, tile_rows) };
                        for j in (0..n).step_by(width) {
                            let (b, b_row): (*const f32, _) = if !b_direct {
                                (packed_b.add(j * k), width)
                            } else if j == ragged {
                                (packed_b, width)
                            } else {
                                (b.add(j).cast(), p.b_row)
                            };
                            tile::<S>(rows, k, a, a_row, a_col, b, b_row, out.as_mut_ptr());
                            let c = p.c.add((m0 + i) * p.ldc + n0 + j);
                            let bias = if last && !p.bias.is_null() { p.bias.add(n0 + j) } else { std::ptr::null() };
                            let activation = if last { p.activation } else { Activation::None };
                            let add = p.accumulate || !first;
                            let cols = (n - j).min(width);
                            finish::<S, C>(out.as_ptr(), rows, cols, c, p.ldc, p.alpha, add, bias, activation);
                        }
                    }
                }
            }
        }
    }
}

/// One tile of pairs: `k` counts pairs.
#[inline(always)]
unsafe fn micro_bf16<const MR: usize>(k: usize, a: *const i32, a_row: usize, a_col: usize, b: *const i32, tile: *mut f32) {
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); 2]; MR];
        let (mut a, mut b) = (a, b);
        for _ in 0..k {
            let b0: __m512bh = std::mem::transmute(_mm512_loadu_si512(b.cast()));
            let b1: __m512bh = std::mem::transmute(_mm512_loadu_si512(b.add(16).cast()));
            for (i, sums) in acc.iter_mut().enumerate() {
                let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(a.add(i * a_row).read_unaligned()));
                sums[0] = _mm512_dpbf16_ps(sums[0], x, b0);
                sums[1] = _mm512_dpbf16_ps(sums[1], x, b1);
            }
            a = a.wrapping_add(a_col);
            b = b.wrapping_add(32);
        }
        for (i, sums) in acc.iter().enumerate() {
            _mm512_storeu_ps(tile.add(i * 32), sums[0]);
            _mm512_storeu_ps(tile.add(i * 32 + 16), sums[1]);
        }
    }
}

/// `rows <= 8` rows of a tile `[rows, 32]` of pairs.
#[inline(always)]
pub(super) unsafe fn tile_bf16(
    rows: usize,
    pairs: usize,
    a: *const i32,
    a_row: usize,
    a_col: usize,
    b: *const i32,
    out: *mut f32,
) {
    unsafe {
        match rows {
            1 => micro_bf16::<1>(pairs, a, a_row, a_col, b, out),
            2 => micro_bf16::<2>(pairs, a, a_row, a_col, b, out),
            3 => micro_bf16::<3>(pairs, a, a_row, a_col, b, out),
            4 => micro_bf16::<4>(pairs, a, a_row, a_col, b, out),
            5 => micro_bf16::<5>(pairs, a, a_row, a_col, b, out),
            6 => micro_bf16::<6>(pairs, a, a_row, a_col, b, out),
            7 => micro_bf16::<7>(pairs, a, a_row, a_col, b, out),
            _ => micro_bf16::<8>(pairs, a, a_row, a_col, b, out),
        }
    }
}

/// Interleaves 32 columns of rows `row` and `row + 1` into pairs; a null second row counts as zeros.
#[inline(always)]
pub(super) unsafe fn pair_rows(row: *const bf16, next: *const bf16, out: *mut i32) {
    unsafe {
        for h in [0, 16] {
            let low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(row.add(h).cast()));
            let high = if next.is_null() {
                _mm512_setzero_si512()
            } else {
                _mm512_cvtepu16_epi32(_mm256_loadu_si256(next.add(h).cast()))
            };
            _mm512_storeu_si512(out.add(h).cast(), _mm512_or_si512(low, _mm512_slli_epi32::<16>(high)));
        }
    }
}

/// A bf16 product by `vdpbf16ps`: pairs along K, B interleaved by pairs while packing.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,bmi1,bmi2")]
unsafe fn tiles_bf16<C: Element>(p: &Problem<bf16, bf16, C>, scratch: &mut Scratch) {
    unsafe {
        if p.k == 0 {
            return tiles::<V16, bf16, bf16, C>(p, scratch);
        }
        let k_block = if C::IS_F32 { 2 * K_BLOCK } else { p.k };
        let pairs_block = k_block.min(p.k).div_ceil(2);
        let k_block = 2 * pairs_block;
        let n_block = ((B_BLOCK / pairs_block / 32).max(1) * 32).min(p.n.div_ceil(32) * 32);
        let a_direct = p.a_col == 1 && p.k.is_multiple_of(2);
        let b_room = pairs_block * n_block;
        let a_room = if a_direct { 0 } else { pairs_block * M_BLOCK };
        let packed_b = scratch.f32(b_room + a_room).as_mut_ptr().cast::<i32>();
        let packed_a = packed_b.add(b_room);
        let bits = |x: *const bf16| (*x).to_bits() as u32;
        let mut out = [0.0f32; 8 * 32];
        for k0 in (0..p.k).step_by(k_block) {
            let k = (p.k - k0).min(k_block);
            let pairs = k.div_ceil(2);
            let (first, last) = (k0 == 0, k0 + k == p.k);
            for n0 in (0..p.n).step_by(n_block) {
                let n = (p.n - n0).min(n_block);
                let b = p.b.add(k0 * p.b_row + n0 * p.b_col);
                for j in (0..n).step_by(32) {
                    let to = packed_b.add(j * pairs);
                    let cols = (n - j).min(32);
                    if p.b_col == 1 && cols == 32 {
                        for q in 0..pairs {
                            let even = b.add(2 * q * p.b_row + j);
                            let odd_in = 2 * q + 1 < k;
                            let odd = if odd_in { even.add(p.b_row) } else { std::ptr::null() };
                            pair_rows(even, odd, to.add(q * 32));
                        }
                    } else {
                        for q0 in (0..pairs).step_by(16) {
                            for c in 0..32 {
                                for q in q0..(q0 + 16).min(pairs) {
                                    let at = b.wrapping_add(2 * q * p.b_row + (j + c) * p.b_col);
                                    let low = if c < cols { bits(at) } else { 0 };
                                    let high = if c < cols && 2 * q + 1 < k { bits(at.wrapping_add(p.b_row)) } else { 0 };
                                    *to.add(q * 32 + c) = (low | high << 16) as i32;
                                }
                            }
                        }
                    }
                }
                for m0 in (0..p.m).step_by(M_BLOCK) {
                    let m = (p.m - m0).min(M_BLOCK);
                    let a = p.a.add(m0 * p.a_row + k0 * p.a_col);
                    if !a_direct {
                        for i in (0..m).step_by(8) {
                            let to = packed_a.add(i * pairs);
                            for q in 0..pairs {
                                for r in 0..8 {
                                    let at = a.wrapping_add((i + r) * p.a_row + 2 * q * p.a_col);
                                    let low = if i + r < m { bits(at) } else { 0 };
                                    let high = if i + r < m && 2 * q + 1 < k { bits(at.wrapping_add(p.a_col)) } else { 0 };
                                    *to.add(q * 8 + r) = (low | high << 16) as i32;
                                }
                            }
                        }
                    }
                    for i in (0..m).step_by(8) {
                        let rows = (m - i).min(8);
                        for j in (0..n).step_by(32) {
                            let b = packed_b.add(j * pairs);
                            let o = out.as_mut_ptr();
                            if a_direct {
                                // Even K, so a pair is one unaligned u32 and the row stride is `a_row / 2` pairs only
                                // when `a_row` is even; rows are addressed one by one otherwise.
                                let from = a.add(i * p.a_row);
                                if p.a_row.is_multiple_of(2) {
                                    let (a, s) = (from.cast::<i32>(), p.a_row / 2);
                                    tile_bf16(rows, pairs, a, s, 1, b, o);
                                } else {
                                    for r in 0..rows {
                                        let a = from.add(r * p.a_row).cast();
                                        micro_bf16::<1>(pairs, a, 0, 1, b, o.add(r * 32));
                                    }
                                }
                            } else {
                                micro_bf16::<8>(pairs, packed_a.add(i * pairs), 1, 8, b, o);
                            }
                            let c = p.c.add((m0 + i) * p.ldc + n0 + j);
                            let bias = if last && !p.bias.is_null() { p.bias.add(n0 + j) } else { std::ptr::null() };
                            let activation = if last { p.activation } else { Activation::None };
                            let (add, cols) = (p.accumulate || !first, (n - j).min(32));
                            finish::<V16, C>(o, rows, cols, c, p.ldc, p.alpha, add, bias, activation);
                        }
                    }
                }
            }
        }
    }
}

/// M <= 4: B is read once, in order, by all threads; sums go through scratch so that any split gives whole columns.
fn stream<A: Element, B: Element, C: Element>(ctx: &Context, p: &Problem<A, B, C>) {
    let (m, n, k) = (p.m, p.n, p.k);
    // 32 KiB of B at least for each thread: about 1 us.
    let parts = ctx.parts(k * n * size_of::<B>(), 32 * 1024);
    let by_columns = p.b_col != 1 || n >= 256 * parts;
    let sums = if by_columns { 1 } else { parts };
    let mut shared = ctx.shared();
    let room = shared.f32(m * k + sums * m * n + 64);
    let (x, sum) = room.split_at_mut(m * k);
    // SAFETY: op(A) is `[m, k]` by the strides of a checked `Problem`.
    unsafe { simd!(ctx.isa(), widen, [A](x, m, k, p.a, p.a_row, p.a_col)) };
    let x = &*x;
    let share = Shares::new(sum);
    ctx.fork(parts, |part| {
        // SAFETY: a thread writes either its own columns of the one sum, or its own sum; B covers `[k, n]`.
        unsafe {
            if by_columns {
                let cols = piece(n, parts, part, 16);
                if !cols.is_empty() {
                    let y = share.ptr().add(cols.start);
                    let b = p.b.add(cols.start * p.b_col);
                    simd!(ctx.isa(), stream_part, [B](m, cols.len(), k, x.as_ptr(), k, b, p.b_row, p.b_col, y, n));
                }
            } else {
                let rows = piece(k, parts, part, 1);
                let y = share.ptr().add(part * m * n);
                let (x, b) = (x.as_ptr().add(rows.start), p.b.add(rows.start * p.b_row));
                simd!(ctx.isa(), stream_part, [B](m, n, rows.len(), x, k, b, p.b_row, p.b_col, y, n));
            }
        }
    });
    // SAFETY: `sum` holds `sums` matrices `[m, n]`; C covers `[m, n]` and is exclusive.
    unsafe { simd!(ctx.isa(), stream_end, [A, B, C](p, sum, sums)) };
}

#[inline(always)]
unsafe fn widen<S: Simd, A: Element>(x: &mut [f32], m: usize, k: usize, a: *const A, a_row: usize, a_col: usize) {
    unsafe {
        for i in 0..m {
            let to = x.as_mut_ptr().add(i * k);
            if a_col == 1 {
                for q in (0..k).step_by(S::LANES) {
                    let v = A::load_part::<S>(a.add(i * a_row + q), k - q);
                    f32::store_part::<S>(to.add(q), v, k - q);
                }
            } else {
                for q in 0..k {
                    *to.add(q) = (*a.add(i * a_row + q * a_col)).to_f32();
                }
            }
        }
    }
}

/// `M` rows times `NV` vectors of columns, streaming the rows of B.
#[inline(always)]
unsafe fn stream_block<S: Simd, B: Element, const M: usize, const NV: usize>(
    k: usize,
    x: *const f32,
    ldx: usize,
    b: *const B,
    b_row: usize,
    y: *mut f32,
    ldy: usize,
) {
    unsafe {
        let mut acc = [[S::zero(); NV]; M];
        for q in 0..k {
            let row = b.wrapping_add(q * b_row);
            let mut w = [S::zero(); NV];
            for (v, slot) in w.iter_mut().enumerate() {
                *slot = B::load::<S>(row.add(v * S::LANES));
            }
            for (i, sums) in acc.iter_mut().enumerate() {
                let s = S::splat(*x.add(i * ldx + q));
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = S::fma(s, w, *sum);
                }
            }
        }
        for (i, sums) in acc.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                S::store(y.add(i * ldy + v * S::LANES), *sum);
            }
        }
    }
}

/// One row of x: rows of B that meet a zero are not read. Behind a ReLU most are (a digit's empty pixels), and reading B is the work.
/// The sums are those of the whole row; only an infinite or NaN weight that meets a zero goes unnoticed.
#[inline(always)]
unsafe fn stream_nonzero<S: Simd, B: Element, const NV: usize>(k: usize, x: *const f32, b: *const B, b_row: usize, y: *mut f32) {
    /// Inputs looked at together: few enough for registers and stack, enough to make the loop behind worth starting.
    const RUN: usize = 64;
    unsafe {
        let mut acc = [S::zero(); NV];
        let mut places = [0u32; RUN];
        for from in (0..k).step_by(RUN) {
            let mut count = 0;
            for q in from..k.min(from + RUN) {
                // Written always, kept where the input is not zero: a branch would be mispredicted every other time.
                *places.get_unchecked_mut(count) = q as u32;
                count += usize::from(*x.add(q) != 0.0);
            }
            for place in places.get_unchecked(..count) {
                let q = *place as usize;
                let row = b.add(q * b_row);
                let s = S::splat(*x.add(q));
                for (v, sum) in acc.iter_mut().enumerate() {
                    *sum = S::fma(s, B::load::<S>(row.add(v * S::LANES)), *sum);
                }
            }
        }
        for (v, sum) in acc.iter().enumerate() {
            S::store(y.add(v * S::LANES), *sum);
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn stream_rows<S: Simd, B: Element, const M: usize>(
    n: usize,
    k: usize,
    x: *const f32,
    ldx: usize,
    b: *const B,
    b_row: usize,
    b_col: usize,
    y: *mut f32,
    ldy: usize,
) {
    unsafe {
        let lanes = S::LANES;
        if b_col == 1 && n >= 32 * lanes {
            // Rows too long for the registers: four at a time, left to right, so that memory is read in order.
            for i in 0..M {
                std::slice::from_raw_parts_mut(y.add(i * ldy), n).fill(0.0);
            }
            for q in (0..k).step_by(4) {
                let depth = (k - q).min(4);
                let mut j = 0;
                while depth == 4 && j + lanes <= n {
                    let row = b.add(q * b_row + j);
                    let w: [S::V; 4] = [
                        B::load::<S>(row),
                        B::load::<S>(row.add(b_row)),
                        B::load::<S>(row.add(2 * b_row)),
                        B::load::<S>(row.add(3 * b_row)),
                    ];
                    for i in 0..M {
                        let mut v = S::load(y.add(i * ldy + j));
                        for (d, w) in w.into_iter().enumerate() {
                            v = S::fma(S::splat(*x.add(i * ldx + q + d)), w, v);
                        }
                        S::store(y.add(i * ldy + j), v);
                    }
                    j += lanes;
                }
                while j < n {
                    let w = n - j;
                    for i in 0..M {
                        let mut v = f32::load_part::<S>(y.add(i * ldy + j), w);
                        for d in 0..depth {
                            let row = B::load_part::<S>(b.add((q + d) * b_row + j), w);
                            v = S::fma(S::splat(*x.add(i * ldx + q + d)), row, v);
                        }
                        f32::store_part::<S>(y.add(i * ldy + j), v, w);
                    }
                    j += lanes;
                }
            }
        } else if b_col == 1 {
            let mut j = 0;
            while M == 1 && j + 8 * lanes <= n {
                stream_nonzero::<S, B, 8>(k, x, b.add(j), b_row, y.add(j));
                j += 8 * lanes;
            }
            while j + 4 * lanes <= n {
                if M == 1 {
                    stream_nonzero::<S, B, 4>(k, x, b.add(j), b_row, y.add(j));
                } else {
                    stream_block::<S, B, M, 4>(k, x, ldx, b.add(j), b_row, y.add(j), ldy);
                }
                j += 4 * lanes;
            }
            while j + lanes <= n {
                stream_block::<S, B, M, 1>(k, x, ldx, b.add(j), b_row, y.add(j), ldy);
                j += lanes;
            }
            if j < n {
                let mut acc = [S::zero(); M];
                for q in 0..k {
                    let w = B::load_part::<S>(b.add(q * b_row + j), n - j);
                    for (i, sum) in acc.iter_mut().enumerate() {
                        *sum = S::fma(S::splat(*x.add(i * ldx + q)), w, *sum);
                    }
                }
                for (i, sum) in acc.iter().enumerate() {
                    f32::store_part::<S>(y.add(i * ldy + j), *sum, n - j);
                }
            }
        } else {
            // Columns of op(B) are rows of what is stored: dot products, four vectors of partial sums each.
            for j in 0..n {
                let row = b.add(j * b_col);
                let mut acc = [[S::zero(); 4]; M];
                let mut q = 0;
                if b_row == 1 {
                    while q + 4 * lanes <= k {
                        for v in 0..4 {
                            let w = B::load::<S>(row.add(q + v * lanes));
                            for (i, sums) in acc.iter_mut().enumerate() {
                                sums[v] = S::fma(S::load(x.add(i * ldx + q + v * lanes)), w, sums[v]);
                            }
                        }
                        q += 4 * lanes;
                    }
                }
                for (i, s) in acc.iter().enumerate() {
                    let mut sum = S::sum(S::add(S::add(s[0], s[1]), S::add(s[2], s[3])));
                    for q in q..k {
                        sum += *x.add(i * ldx + q) * (*row.add(q * b_row)).to_f32();
                    }
                    *y.add(i * ldy + j) = sum;
                }
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn stream_part<S: Simd, B: Element>(
    m: usize,
    n: usize,
    k: usize,
    x: *const f32,
    ldx: usize,
    b: *const B,
    b_row: usize,
    b_col: usize,
    y: *mut f32,
    ldy: usize,
) {
    unsafe {
        match m {
            1 => stream_rows::<S, B, 1>(n, k, x, ldx, b, b_row, b_col, y, ldy),
            2 => stream_rows::<S, B, 2>(n, k, x, ldx, b, b_row, b_col, y, ldy),
            3 => stream_rows::<S, B, 3>(n, k, x, ldx, b, b_row, b_col, y, ldy),
            _ => stream_rows::<S, B, 4>(n, k, x, ldx, b, b_row, b_col, y, ldy),
        }
    }
}

#[inline(always)]
unsafe fn stream_end<S: Simd, A: Element, B: Element, C: Element>(p: &Problem<A, B, C>, sum: &[f32], sums: usize) {
    unsafe {
        let (m, n) = (p.m, p.n);
        for i in 0..m {
            for j in (0..n).step_by(S::LANES) {
                let w = n - j;
                let mut v = f32::load_part::<S>(sum.as_ptr().add(i * n + j), w);
                for s in 1..sums {
                    v = S::add(v, f32::load_part::<S>(sum.as_ptr().add((s * m + i) * n + j), w));
                }
                v = S::mul(v, S::splat(p.alpha));
                let c = p.c.add(i * p.ldc + j);
                if p.accumulate {
                    v = S::add(v, C::load_part::<S>(c, w));
                }
                if !p.bias.is_null() {
                    v = S::add(v, f32::load_part::<S>(p.bias.add(j), w));
                }
                C::store_part::<S>(c, activate::<S>(p.activation, v), w);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Random, contexts, worst};
    use super::*;
    use half::f16;

    fn reference(g: &Gemm, a: &[f32], b: &[f32], e: &Epilogue, c: &[f32]) -> Vec<f64> {
        let mut out = vec![0.0; g.m * g.n];
        for i in 0..g.m {
            for j in 0..g.n {
                let mut sum = 0.0f64;
                for q in 0..g.k {
                    let x = a[if g.a_transposed { q * g.m + i } else { i * g.k + q }] as f64;
                    let y = b[if g.b_transposed { j * g.k + q } else { q * g.n + j }] as f64;
                    sum += x * y;
                }
                sum *= g.alpha as f64;
                if g.accumulate {
                    sum += c[i * g.n + j] as f64;
                }
                sum += e.bias.map_or(0.0, |b| b[j] as f64);
                out[i * g.n + j] = match e.activation {
                    Activation::None => sum,
                    Activation::Relu => sum.max(0.0),
                    Activation::Gelu => super::super::check::gelu(sum),
                };
            }
        }
        out
    }

    fn one<A: Element, B: Element, C: Element>(ctx: &Context, r: &mut Random, g: Gemm, e: Activation, tolerance: f64) {
        let a: Vec<A> = r.values(g.m * g.k);
        let b: Vec<B> = r.values(g.k * g.n);
        let bias: Vec<f32> = r.values(g.n);
        let epilogue = Epilogue { bias: (e != Activation::None).then_some(&bias), activation: e };
        let mut c: Vec<C> = if g.accumulate { r.values(g.m * g.n) } else { vec![C::from_f32(f32::NAN); g.m * g.n] };
        let wide = |x: &[C]| x.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
        let af: Vec<f32> = a.iter().map(|x| x.to_f32()).collect();
        let bf: Vec<f32> = b.iter().map(|x| x.to_f32()).collect();
        let want = reference(&g, &af, &bf, &epilogue, &wide(&c));
        gemm(ctx, &g, &a, &b, epilogue, &mut c);
        let what = format!("{g:?} {e:?} {:?} {} {} {}", ctx.isa(), A::NAME, B::NAME, C::NAME);
        worst(&what, r, &wide(&c), &want, tolerance * (g.k as f64).sqrt().max(1.0));
    }

    #[test]
    fn products_agree_with_f64_at_ragged_sizes() {
        for ctx in contexts() {
            let mut r = Random::new();
            let sizes = [1, 2, 5, 15, 16, 17, 31, 33, 127, 128, 129];
            for round in 0..120 {
                let mut pick = || sizes[r.below(sizes.len())];
                let mut g = Gemm::new(pick(), pick(), pick());
                g.a_transposed = round & 1 != 0;
                g.b_transposed = round & 2 != 0;
                g.accumulate = round & 4 != 0;
                g.alpha = if round & 8 != 0 { 0.5 } else { 1.0 };
                let e = [Activation::None, Activation::Relu, Activation::Gelu][round % 3];
                one::<f32, f32, f32>(&ctx, &mut r, g, e, 2e-6);
                match round % 4 {
                    0 => one::<bf16, bf16, f32>(&ctx, &mut r, g, e, 2e-6),
                    1 => one::<f16, f16, f16>(&ctx, &mut r, g, e, 2e-3),
                    2 => one::<bf16, bf16, bf16>(&ctx, &mut r, g, e, 1e-2),
                    _ => one::<f32, f16, f32>(&ctx, &mut r, g, e, 2e-6),
                }
            }
            for (m, n, k) in [(1, 600, 700), (3, 40, 900), (70, 300, 600), (300, 70, 513), (9, 1100, 300)] {
                for flags in 0..4 {
                    let mut g = Gemm::new(m, n, k);
                    (g.a_transposed, g.b_transposed) = (flags & 1 != 0, flags & 2 != 0);
                    one::<f32, f32, f32>(&ctx, &mut r, g, Activation::Relu, 4e-6);
                    one::<bf16, bf16, f32>(&ctx, &mut r, g, Activation::None, 4e-6);
                }
            }
        }
    }

    #[test]
    fn heads_inside_rows_need_no_copy() {
        let (b, t, h, d) = (2, 5, 3, 7);
        for ctx in contexts() {
            let mut r = Random::new();
            let q: Vec<f32> = r.values(b * t * h * d);
            let s: Vec<f32> = r.values(b * h * t * t);
            let mut y = vec![f32::NAN; b * t * h * d];
            // y[b, :, h, :] = s[b, h] q[b, :, h, :]
            let g = Gemm::new(t, d, t).strides(t, h * d, h * d);
            let batch = Batch { outer: b, inner: h, a: [h * t * t, t * t], b: [t * h * d, d], c: [t * h * d, d] };
            batched_gemm(&ctx, &batch, &g, &s, &q, &mut y);
            let mut want = vec![0.0f64; y.len()];
            for (bi, hi, i, j, l) in
                (0..b * h * t * d * t).map(|x| (x / (h * t * d * t), x / (t * d * t) % h, x / (d * t) % t, x / t % d, x % t))
            {
                want[((bi * t + i) * h + hi) * d + j] +=
                    s[((bi * h + hi) * t + i) * t + l] as f64 * q[((bi * t + l) * h + hi) * d + j] as f64;
            }
            worst("heads", &r, &y, &want, 1e-5);
        }
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn overlapping_outputs_are_refused() {
        let g = Gemm::new(2, 2, 2);
        let batch = Batch { outer: 1, inner: 2, a: [0, 4], b: [0, 4], c: [0, 1] };
        batched_gemm(&Context::new(1), &batch, &g, &[0.0f32; 8], &[0.0f32; 8], &mut [0.0f32; 8]);
    }
}
