//! The backward pass of y = x W + b together with the optimiser's step, in one pass over W, never storing dW.
//! Up to 8 rows: per row of W, the dot products for dX and a rank-B update. More rows: per 32 rows of W, a packed
//! transpose feeds the dX tiles, then dW tiles are applied while they are in registers and the rows in the cache.

use super::gemm::{pack_a, pack_b, pair_rows, tile, tile_bf16};
use super::optimizer::{AnyRule, MomentumOnly, Path, Slots, Update};
use super::pool::{Context, Shares};
use super::simd::*;
use half::bf16;
use std::any::TypeId;
use std::ops::Range;

/// Rows of x up to which the rank-B pass is used.
const FEW: usize = 8;

/// Rows of W per block of the tiled pass: its transpose is one panel in AVX-512.
const ROWS: usize = 32;

/// For `[batch, inputs, outputs]` = [B, K, N]: dx `[B, K]` = dy W^T with W as it was, then W `[K, N]` and its `state`
/// are stepped by the gradient x^T dy (x `[B, K]`, dy `[B, N]`). `low`, when given, is the copy of W the forward pass
/// used: dx is computed from it and it is rewritten.
#[allow(clippy::too_many_arguments)]
pub fn linear_backward_update<T: Element>(
    ctx: &Context,
    shape: [usize; 3],
    x: &[T],
    dy: &[T],
    w: &mut [f32],
    low: Option<&mut [T]>,
    state: [&mut [f32]; 2],
    u: &Update,
    dx: Option<&mut [T]>,
) {
    let [batch, k, n] = shape;
    let enough = x.len() >= batch * k && dy.len() >= batch * n && w.len() >= k * n;
    assert!(enough, "linear_backward_update: a slice is too short for {shape:?}");
    assert!(dx.as_ref().is_none_or(|d| d.len() >= batch * k), "linear_backward_update: dx is too short for {shape:?}");
    if batch == 0 || k == 0 || n == 0 {
        return;
    }
    let is_bf16 = TypeId::of::<T>() == TypeId::of::<bf16>();
    // Pairs of `low` are read as 32-bit words, which must be aligned.
    let has_pairs = low.as_ref().is_some_and(|l| n.is_multiple_of(2) && l.as_ptr().cast::<u32>().is_aligned());
    let pairs = is_bf16 && has_pairs && batch > FEW && ctx.isa().has_bf16();
    let slots = Slots::new(u, &mut w[..k * n], state, low);
    let pass = Pass { batch, k, n, x: x.as_ptr(), dx: dx.map_or(std::ptr::null_mut(), <[T]>::as_mut_ptr), slots, u: *u };
    let width = 32;
    let padded = n.next_multiple_of(width);
    let mut shared = ctx.shared();
    // dy as f32: rows padded to whole vectors for the rank-B pass, panels and their transpose for the tiled one.
    let rows = if batch <= FEW { batch.next_power_of_two() } else { batch };
    let room = shared.f32(rows * padded);
    if batch <= FEW {
        for (b, to) in room.chunks_exact_mut(padded).enumerate() {
            to.fill(0.0);
            if b < batch {
                to.iter_mut().zip(&dy[b * n..(b + 1) * n]).for_each(|(to, from)| *to = from.to_f32());
            }
        }
    } else if pairs {
        // SAFETY: T is bf16 and the machine has its dot product (`pairs`); `room` holds all panels of pairs.
        unsafe { pack_pairs(batch, n, dy.as_ptr().cast(), n, room.as_mut_ptr().cast()) };
    } else {
        // SAFETY: dy is `[batch, n]`; `room` holds all its panels.
        unsafe { simd!(ctx.isa(), pack_b, [T](batch, n, dy.as_ptr(), n, 1, room.as_mut_ptr())) };
    }
    let (panels, dy) = (&*room, Shares::new_const(dy));
    let grain = 64 * 1024 / (batch * n) + 1;
    let momentum_only = u.is_momentum_only();
    ctx.split(k, grain, ROWS, |thread, range| {
        let mut own = ctx.own(thread);
        let room: &mut [f32] = if batch <= FEW { &mut [] } else { own.f32(ROWS * (n + batch) + 8 * batch) };
        // SAFETY: lengths checked above; threads step disjoint rows of W and write disjoint columns of dx.
        unsafe {
            if pairs && momentum_only {
                tiled_bf16::<T, MomentumOnly>(&pass, panels, dy.ptr(), range, room);
            } else if pairs {
                tiled_bf16::<T, AnyRule>(&pass, panels, dy.ptr(), range, room);
            } else if momentum_only {
                simd!(ctx.isa(), rows_of, [T, MomentumOnly](&pass, panels, padded, dy.ptr(), range, room));
            } else {
                simd!(ctx.isa(), rows_of, [T, AnyRule](&pass, panels, padded, dy.ptr(), range, room));
            }
        }
    });
}

/// What every thread needs.
struct Pass<T> {
    batch: usize,
    k: usize,
    n: usize,
    x: *const T,
    dx: *mut T,
    slots: Slots<T>,
    u: Update,
}

// SAFETY: only pointers; threads use disjoint parts.
unsafe impl<T> Sync for Pass<T> {}

#[inline(always)]
unsafe fn rows_of<S: Simd, T: Element, P: Path>(
    p: &Pass<T>,
    panels: &[f32],
    padded: usize,
    dy: *const T,
    range: Range<usize>,
    room: &mut [f32],
) {
    unsafe {
        match p.batch {
            1 => few::<S, T, P, 1>(p, panels, padded, range),
            2 => few::<S, T, P, 2>(p, panels, padded, range),
            3 | 4 => few::<S, T, P, 4>(p, panels, padded, range),
            5..=FEW => few::<S, T, P, 8>(p, panels, padded, range),
            _ => tiled::<S, T, P>(p, panels, dy, range, room),
        }
    }
}

/// `B` rows of dy `[B, ld]` (zero beyond the batch) against the rows `range` of W.
#[inline(always)]
unsafe fn few<S: Simd, T: Element, P: Path, const B: usize>(p: &Pass<T>, dy: &[f32], ld: usize, range: Range<usize>) {
    unsafe {
        let u = p.u;
        let c = u.corrections();
        let (slots, n) = (p.slots, p.n);
        for row in range {
            let mut x = [S::zero(); B];
            for (b, x) in x.iter_mut().enumerate().take(p.batch) {
                *x = S::splat((*p.x.add(b * p.k + row)).to_f32());
            }
            let mut dots = [S::zero(); B];
            let mut j = 0;
            while j + S::LANES <= n {
                few_vector::<S, T, P, B>(&slots, &u, c, dy.as_ptr().add(j), ld, row * n + j, S::LANES, &x, &mut dots);
                j += S::LANES;
            }
            if j < n {
                few_vector::<S, T, P, B>(&slots, &u, c, dy.as_ptr().add(j), ld, row * n + j, n - j, &x, &mut dots);
            }
            if !p.dx.is_null() {
                for (b, dot) in dots.into_iter().enumerate().take(p.batch) {
                    *p.dx.add(b * p.k + row) = T::from_f32(S::sum(dot));
                }
            }
        }
    }
}

/// `count` weights at `at`: their share of the dot products, then their step.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn few_vector<S: Simd, T: Element, P: Path, const B: usize>(
    slots: &Slots<T>,
    u: &Update,
    c: (f32, f32),
    dy: *const f32,
    ld: usize,
    at: usize,
    count: usize,
    x: &[S::V; B],
    dots: &mut [S::V; B],
) {
    unsafe {
        let w = if slots.low.is_null() {
            f32::load_part::<S>(slots.w.add(at), count)
        } else {
            T::load_part::<S>(slots.low.add(at), count)
        };
        let mut g = S::zero();
        for b in 0..B {
            let d = S::load(dy.add(b * ld));
            dots[b] = S::fma(d, w, dots[b]);
            g = S::fma(x[b], d, g);
        }
        slots.step::<S, P>(u, c, at, count, g);
    }
}

/// Any batch: `panels` are dy `[B, N]` packed for the second product, `dy` itself is A of the first.
#[inline(always)]
unsafe fn tiled<S: Simd, T: Element, P: Path>(p: &Pass<T>, panels: &[f32], dy: *const T, range: Range<usize>, room: &mut [f32]) {
    unsafe {
        let (batch, k, n) = (p.batch, p.k, p.n);
        let (tile_rows, width) = (S::TILE_ROWS, 2 * S::LANES);
        let u = p.u;
        let c = u.corrections();
        let turned = room.as_mut_ptr();
        let packed_x = turned.add(ROWS * n);
        let mut out = [0.0f32; 8 * 32];
        let mut wide = [0.0f32; 8 * 512];
        for row in range.clone().step_by(ROWS) {
            let rows = (range.end - row).min(ROWS);
            if !p.dx.is_null() {
                if p.slots.low.is_null() {
                    pack_b::<S, f32>(n, rows, p.slots.w.add(row * n), 1, n, turned);
                } else {
                    pack_b::<S, T>(n, rows, p.slots.low.add(row * n), 1, n, turned);
                }
                for i in (0..batch).step_by(tile_rows) {
                    let m = (batch - i).min(tile_rows);
                    for j in (0..rows).step_by(width) {
                        let cols = (rows - j).min(width);
                        let b = turned.add(j * n);
                        if T::IS_F32 {
                            tile::<S>(m, n, dy.add(i * n).cast(), n, 1, b, width, out.as_mut_ptr());
                        } else {
                            // 512 columns of dy at a time, widened.
                            let mut sum = [0.0f32; 8 * 32];
                            for q in (0..n).step_by(512) {
                                let depth = (n - q).min(512);
                                for r in 0..m {
                                    for v in (0..depth).step_by(S::LANES) {
                                        let d = T::load_part::<S>(dy.add((i + r) * n + q + v), depth - v);
                                        f32::store_part::<S>(wide.as_mut_ptr().add(r * 512 + v), d, depth - v);
                                    }
                                }
                                tile::<S>(m, depth, wide.as_ptr(), 512, 1, b.add(q * width), width, out.as_mut_ptr());
                                for (s, o) in sum.iter_mut().zip(&out) {
                                    *s += o;
                                }
                            }
                            out = sum;
                        }
                        for r in 0..m {
                            let to = p.dx.add((i + r) * k + row + j);
                            for h in (0..cols).step_by(S::LANES) {
                                let v = S::load(out.as_ptr().add(r * width + h));
                                T::store_part::<S>(to.add(h), v, cols - h);
                            }
                        }
                    }
                }
            }
            pack_a::<S, T>(rows, batch, p.x.add(row), 1, k, packed_x);
            for i in (0..rows).step_by(tile_rows) {
                let m = (rows - i).min(tile_rows);
                for j in (0..n).step_by(width) {
                    // The tile's weights and state arrive while it is being computed.
                    for r in 0..m {
                        for h in (0..width).step_by(16) {
                            let at = (row + i + r) * n + j + h;
                            S::prefetch(p.slots.w.wrapping_add(at));
                            S::prefetch(p.slots.s[0].wrapping_add(at));
                        }
                    }
                    let b = panels.as_ptr().add(j * batch);
                    tile::<S>(m, batch, packed_x.add(i * batch), 1, tile_rows, b, width, out.as_mut_ptr());
                    for r in 0..m {
                        for h in 0..2 {
                            let from = j + h * S::LANES;
                            if from < n {
                                let g = S::load(out.as_ptr().add((2 * r + h) * S::LANES));
                                let left = (n - from).min(S::LANES);
                                p.slots.step::<S, P>(&u, c, (row + i + r) * n + from, left, g);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Packs rows of bf16 `[rows, n]` (rows `ld` apart) into panels `[rows / 2][32]` of vertical pairs, zero beyond.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn pack_pairs(rows: usize, n: usize, x: *const bf16, ld: usize, out: *mut i32) {
    unsafe {
        let count = rows.div_ceil(2);
        for j in (0..n).step_by(32) {
            let out = out.add(j * count);
            for q in 0..count {
                let (row, next) = (x.add(2 * q * ld + j), x.wrapping_add((2 * q + 1) * ld + j));
                let has_next = 2 * q + 1 < rows;
                if j + 32 <= n {
                    pair_rows(row, if has_next { next } else { std::ptr::null() }, out.add(q * 32));
                } else {
                    for c in 0..32 {
                        let low = if j + c < n { (*row.add(c)).to_bits() as u32 } else { 0 };
                        let high = if j + c < n && has_next { (*next.add(c)).to_bits() as u32 } else { 0 };
                        *out.add(q * 32 + c) = (low | high << 16) as i32;
                    }
                }
            }
        }
    }
}

/// [`tiled`] for bf16 by `vdpbf16ps`: pairs along N for dX, along the batch for dW. T is bf16, N even, `low` present;
/// `panels` are dy's pairs.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,bmi1,bmi2")]
unsafe fn tiled_bf16<T: Element, P: Path>(p: &Pass<T>, panels: &[f32], dy: *const T, range: Range<usize>, room: &mut [f32]) {
    unsafe {
        let (batch, k, n) = (p.batch, p.k, p.n);
        let u = p.u;
        let c = u.corrections();
        let (across, down) = (n / 2, batch.div_ceil(2));
        let panels: *const i32 = panels.as_ptr().cast();
        let turned = room.as_mut_ptr();
        let packed_x: *mut i32 = turned.add(ROWS * across).cast();
        let mut out = [0.0f32; 8 * 32];
        for row in range.clone().step_by(ROWS) {
            let rows = (range.end - row).min(ROWS);
            if !p.dx.is_null() {
                // Pairs along N are u32s side by side: the panel is a transpose of 32-bit words.
                let low: *const f32 = p.slots.low.add(row * n).cast();
                pack_b::<V16, f32>(across, rows, low, 1, across, turned);
                for i in (0..batch).step_by(8) {
                    let m = (batch - i).min(8);
                    tile_bf16(m, across, dy.add(i * n).cast(), across, 1, turned.cast(), out.as_mut_ptr());
                    for r in 0..m {
                        let to = p.dx.add((i + r) * k + row);
                        for h in (0..rows).step_by(16) {
                            T::store_part::<V16>(to.add(h), V16::load(out.as_ptr().add(r * 32 + h)), rows - h);
                        }
                    }
                }
            }
            pack_pairs(batch, rows, p.x.add(row).cast(), k, packed_x);
            for i in (0..rows).step_by(8) {
                let m = (rows - i).min(8);
                for j in (0..n).step_by(32) {
                    for r in 0..m {
                        for h in [0, 16] {
                            let at = (row + i + r) * n + j + h;
                            V16::prefetch(p.slots.w.wrapping_add(at));
                            V16::prefetch(p.slots.s[0].wrapping_add(at));
                        }
                    }
                    tile_bf16(m, down, packed_x.add(i), 1, 32, panels.add(j * down), out.as_mut_ptr());
                    for r in 0..m {
                        for h in (0..(n - j).min(32)).step_by(16) {
                            let left = (n - j - h).min(16);
                            let g = V16::load(out.as_ptr().add(r * 32 + h));
                            p.slots.step::<V16, P>(&u, c, (row + i + r) * n + j + h, left, g);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Random, contexts, wide, worst};
    use super::super::optimizer::tests::{reference, rules};
    use super::*;
    use half::{bf16, f16};

    fn case<T: Element>(ctx: &Context, r: &mut Random, shape: [usize; 3], u: Update, with_low: bool, tolerance: f64) {
        let [batch, k, n] = shape;
        let what = format!("{shape:?} {u:?} {} {:?} low {with_low}", T::NAME, ctx.isa());
        let x: Vec<T> = r.values(batch * k);
        let dy: Vec<T> = r.values(batch * n);
        let mut w: Vec<f32> = r.values(k * n);
        let mut low: Vec<T> = w.iter().map(|&w| T::from_f32(w)).collect();
        let states = u.optimizer.states();
        let mut state = [vec![0.25f32; if states > 0 { k * n } else { 0 }], vec![0.5f32; if states > 1 { k * n } else { 0 }]];
        let used: Vec<f32> = if with_low { wide(&low) } else { w.clone() };
        let (mut want_w, mut want_dx) = (Vec::new(), vec![0.0f64; batch * k]);
        for i in 0..k {
            for j in 0..n {
                let mut g = 0.0;
                for b in 0..batch {
                    g += x[b * k + i].to_f32() as f64 * dy[b * n + j].to_f32() as f64;
                    want_dx[b * k + i] += dy[b * n + j].to_f32() as f64 * used[i * n + j] as f64;
                }
                let mut one = w[i * n + j] as f64;
                let mut s = [if states > 0 { 0.25 } else { 0.0 }, if states > 1 { 0.5 } else { 0.0 }];
                reference(&u, &mut one, g, &mut s);
                want_w.push(one);
            }
        }
        let mut dx = vec![T::from_f32(f32::NAN); batch * k];
        let [a, b] = &mut state;
        let copy = with_low.then_some(&mut low[..]);
        linear_backward_update(ctx, shape, &x, &dy, &mut w, copy, [a, b], &u, Some(&mut dx));
        worst(&format!("dx of {what}"), r, &wide(&dx), &want_dx, tolerance * (n as f64).sqrt());
        worst(&format!("w of {what}"), r, &w, &want_w, 1e-5 * (batch as f64).sqrt());
        if with_low {
            let copied: Vec<f32> = w.iter().map(|&w| T::from_f32(w).to_f32()).collect();
            assert_eq!(wide(&low), copied, "{what}");
        }
    }

    #[test]
    fn fused_backward_and_step_agree_with_f64() {
        for ctx in contexts() {
            let mut r = Random::new();
            let rules = rules();
            let mut round = 0;
            for batch in [1, 2, 3, 7, 8, 9, 16, 33, 64] {
                for (k, n) in [(1, 1), (33, 10), (65, 17), (127, 128), (300, 33), (16, 600)] {
                    round += 1;
                    let u = rules[round % rules.len()];
                    case::<f32>(&ctx, &mut r, [batch, k, n], u, round % 2 == 0, 2e-6);
                    case::<bf16>(&ctx, &mut r, [batch, k, n], u, round % 3 != 0, 1e-2);
                    case::<f16>(&ctx, &mut r, [batch, k, n], rules[0], round % 3 == 0, 2e-3);
                }
            }
        }
    }
}
