//! Elementwise functions and their gradients, broadcasting arithmetic, casts, sums over rows and columns.
//! Memory-bound all of them; threads take over from about 16 Ki elements.

use super::pool::{Context, Shares, piece};
use super::simd::*;
use std::ops::Range;

/// Elements each thread should at least get: a few microseconds of memory traffic.
const GRAIN: usize = 16 * 1024;

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unary {
    Relu,
    /// x Phi(x), by erf.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    Tanh,
    Sigmoid,
    Exp,
}

/// An operation on two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    Add,
    Sub,
    Mul,
}

/// How the second operand is spread over the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broadcast {
    /// As long as the first.
    None,
    /// One row, repeated: its length divides the first's.
    LastAxis,
    /// One number.
    Scalar,
}

#[inline(always)]
unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    unsafe { S::div(S::splat(1.0), S::add(S::splat(1.0), exp::<S>(S::neg(x)))) }
}

/// sqrt(2 / pi), the tanh form's inner factor.
const INNER: f32 = 0.797_884_6;

#[inline(always)]
unsafe fn apply<S: Simd>(f: Unary, x: S::V) -> S::V {
    unsafe {
        match f {
            Unary::Relu => S::max(S::zero(), x),
            Unary::Gelu => {
                let half = S::mul(x, S::splat(0.5));
                S::fma(half, erf::<S>(S::mul(x, S::splat(std::f32::consts::FRAC_1_SQRT_2))), half)
            }
            Unary::GeluTanh => {
                let inner = S::mul(S::splat(INNER), S::fma(S::mul(S::mul(x, x), x), S::splat(0.044715), x));
                let half = S::mul(x, S::splat(0.5));
                S::fma(half, tanh::<S>(inner), half)
            }
            Unary::Tanh => tanh::<S>(x),
            Unary::Sigmoid => sigmoid::<S>(x),
            Unary::Exp => exp::<S>(x),
        }
    }
}

/// The derivative from what the forward pass saved: its output, for GELU its input.
#[inline(always)]
unsafe fn slope<S: Simd>(f: Unary, s: S::V) -> S::V {
    unsafe {
        let one = S::splat(1.0);
        match f {
            Unary::Relu => S::select(S::gt(s, S::zero()), one, S::zero()),
            Unary::Tanh => S::sub(one, S::mul(s, s)),
            Unary::Sigmoid => S::mul(s, S::sub(one, s)),
            Unary::Exp => s,
            Unary::Gelu => {
                let phi = S::mul(S::splat(0.398_942_3), exp::<S>(S::mul(S::mul(s, s), S::splat(-0.5))));
                let below = S::fma(S::splat(0.5), erf::<S>(S::mul(s, S::splat(std::f32::consts::FRAC_1_SQRT_2))), S::splat(0.5));
                S::fma(s, phi, below)
            }
            Unary::GeluTanh => {
                let square = S::mul(s, s);
                let t = tanh::<S>(S::mul(S::splat(INNER), S::fma(S::mul(square, s), S::splat(0.044715), s)));
                let inner = S::mul(S::splat(INNER), S::fma(square, S::splat(3.0 * 0.044715), one));
                let rise = S::mul(S::mul(s, S::splat(0.5)), S::mul(S::sub(one, S::mul(t, t)), inner));
                S::add(S::fma(S::splat(0.5), t, S::splat(0.5)), rise)
            }
        }
    }
}

/// y = f(x).
pub fn unary<T: Element>(ctx: &Context, f: Unary, x: &[T], y: &mut [T]) {
    assert!(y.len() >= x.len(), "unary: y is shorter than x");
    let out = Shares::new(y);
    ctx.split(x.len(), GRAIN, 64, |_, range| {
        // SAFETY: ranges are disjoint and inside both slices.
        unsafe { simd!(ctx.isa(), unary_range, [T](f, &x[range.clone()], out.part(range))) }
    });
}

#[inline(always)]
unsafe fn unary_range<S: Simd, T: Element>(f: Unary, x: &[T], y: &mut [T]) {
    unsafe {
        for i in (0..x.len()).step_by(S::LANES) {
            let n = x.len() - i;
            let v = apply::<S>(f, T::load_part::<S>(x.as_ptr().add(i), n));
            T::store_part::<S>(y.as_mut_ptr().add(i), v, n);
        }
    }
}

/// dx = dy f'(x). `saved` is the output of the forward pass, for [`Unary::Gelu`] and [`Unary::GeluTanh`] its input.
pub fn unary_backward<T: Element>(ctx: &Context, f: Unary, saved: &[T], dy: &[T], dx: &mut [T]) {
    assert!(saved.len() >= dy.len() && dx.len() >= dy.len(), "unary_backward: a slice is shorter than dy");
    let out = Shares::new(dx);
    ctx.split(dy.len(), GRAIN, 64, |_, range| {
        // SAFETY: ranges are disjoint and inside all slices.
        unsafe {
            let (s, d) = (&saved[range.clone()], &dy[range.clone()]);
            simd!(ctx.isa(), backward_range, [T](f, s, d, out.part(range)))
        }
    });
}

#[inline(always)]
unsafe fn backward_range<S: Simd, T: Element>(f: Unary, saved: &[T], dy: &[T], dx: &mut [T]) {
    unsafe {
        for i in (0..dy.len()).step_by(S::LANES) {
            let n = dy.len() - i;
            let d = T::load_part::<S>(dy.as_ptr().add(i), n);
            let s = T::load_part::<S>(saved.as_ptr().add(i), n);
            // Relu selects, so that an infinite gradient is not turned into NaN where it does not flow.
            let v = if f == Unary::Relu { S::select(S::gt(s, S::zero()), d, S::zero()) } else { S::mul(d, slope::<S>(f, s)) };
            T::store_part::<S>(dx.as_mut_ptr().add(i), v, n);
        }
    }
}

/// y = a op b, with b spread over a as `broadcast` says.
pub fn binary<T: Element>(ctx: &Context, op: Binary, broadcast: Broadcast, a: &[T], b: &[T], y: &mut [T]) {
    assert!(y.len() >= a.len(), "binary: y is shorter than a");
    let row = match broadcast {
        Broadcast::None => a.len(),
        Broadcast::LastAxis => b.len(),
        Broadcast::Scalar => 1,
    };
    if a.is_empty() {
        return;
    }
    assert!(row > 0 && b.len() >= row && a.len().is_multiple_of(row), "binary: {} does not fit {}", b.len(), a.len());
    let out = Shares::new(y);
    let step = if broadcast == Broadcast::LastAxis { row } else { 64 };
    ctx.split(a.len(), GRAIN, step, |_, range| {
        // SAFETY: ranges are disjoint, inside a and y, and start at a multiple of the row.
        unsafe {
            let (a, y) = (&a[range.clone()], out.part(range.clone()));
            match broadcast {
                Broadcast::None => simd!(ctx.isa(), binary_row, [T](op, a, &b[range], y)),
                Broadcast::Scalar => simd!(ctx.isa(), binary_scalar, [T](op, a, b[0].to_f32(), y)),
                Broadcast::LastAxis => simd!(ctx.isa(), binary_rows, [T](op, a, b, y)),
            }
        }
    });
}

#[inline(always)]
unsafe fn combine<S: Simd>(op: Binary, a: S::V, b: S::V) -> S::V {
    unsafe {
        match op {
            Binary::Add => S::add(a, b),
            Binary::Sub => S::sub(a, b),
            Binary::Mul => S::mul(a, b),
        }
    }
}

#[inline(always)]
unsafe fn binary_row<S: Simd, T: Element>(op: Binary, a: &[T], b: &[T], y: &mut [T]) {
    unsafe {
        for i in (0..a.len()).step_by(S::LANES) {
            let n = a.len() - i;
            let v = combine::<S>(op, T::load_part::<S>(a.as_ptr().add(i), n), T::load_part::<S>(b.as_ptr().add(i), n));
            T::store_part::<S>(y.as_mut_ptr().add(i), v, n);
        }
    }
}

#[inline(always)]
unsafe fn binary_rows<S: Simd, T: Element>(op: Binary, a: &[T], b: &[T], y: &mut [T]) {
    unsafe {
        for (a, y) in a.chunks_exact(b.len()).zip(y.chunks_exact_mut(b.len())) {
            binary_row::<S, T>(op, a, b, y);
        }
    }
}

#[inline(always)]
unsafe fn binary_scalar<S: Simd, T: Element>(op: Binary, a: &[T], b: f32, y: &mut [T]) {
    unsafe {
        for i in (0..a.len()).step_by(S::LANES) {
            let n = a.len() - i;
            let v = combine::<S>(op, T::load_part::<S>(a.as_ptr().add(i), n), S::splat(b));
            T::store_part::<S>(y.as_mut_ptr().add(i), v, n);
        }
    }
}

/// y += alpha x.
pub fn axpy<T: Element>(ctx: &Context, alpha: f32, x: &[T], y: &mut [T]) {
    assert!(y.len() >= x.len(), "axpy: y is shorter than x");
    let out = Shares::new(y);
    ctx.split(x.len(), GRAIN, 64, |_, range| {
        // SAFETY: ranges are disjoint and inside both slices.
        unsafe { simd!(ctx.isa(), axpy_range, [T](alpha, &x[range.clone()], out.part(range))) }
    });
}

#[inline(always)]
unsafe fn axpy_range<S: Simd, T: Element>(alpha: f32, x: &[T], y: &mut [T]) {
    unsafe {
        for i in (0..x.len()).step_by(S::LANES) {
            let n = x.len() - i;
            let to = y.as_mut_ptr().add(i);
            let v = S::fma(S::splat(alpha), T::load_part::<S>(x.as_ptr().add(i), n), T::load_part::<S>(to, n));
            T::store_part::<S>(to, v, n);
        }
    }
}

/// y = x in another storage type, rounded to nearest even.
pub fn cast<A: Element, B: Element>(ctx: &Context, x: &[A], y: &mut [B]) {
    assert!(y.len() >= x.len(), "cast: y is shorter than x");
    let out = Shares::new(y);
    ctx.split(x.len(), GRAIN, 64, |_, range| {
        // SAFETY: ranges are disjoint and inside both slices.
        unsafe { simd!(ctx.isa(), cast_range, [A, B](&x[range.clone()], out.part(range))) }
    });
}

#[inline(always)]
unsafe fn cast_range<S: Simd, A: Element, B: Element>(x: &[A], y: &mut [B]) {
    unsafe {
        for i in (0..x.len()).step_by(S::LANES) {
            let n = x.len() - i;
            B::store_part::<S>(y.as_mut_ptr().add(i), A::load_part::<S>(x.as_ptr().add(i), n), n);
        }
    }
}

/// Whether no element is infinite or NaN.
pub fn all_finite<T: Element>(ctx: &Context, x: &[T]) -> bool {
    let found = std::sync::atomic::AtomicBool::new(true);
    ctx.split(x.len(), GRAIN, 64, |_, range| {
        // SAFETY: reads inside x only.
        if !unsafe { simd!(ctx.isa(), finite_range, [T](&x[range])) } {
            found.store(false, std::sync::atomic::Ordering::Relaxed);
        }
    });
    found.into_inner()
}

#[inline(always)]
unsafe fn finite_range<S: Simd, T: Element>(x: &[T]) -> bool {
    unsafe {
        // x * 0 is 0 for finite x and NaN otherwise, and sums keep it.
        let mut sum = S::zero();
        for i in (0..x.len()).step_by(S::LANES) {
            sum = S::fma(T::load_part::<S>(x.as_ptr().add(i), x.len() - i), S::zero(), sum);
        }
        S::sum(sum) == 0.0
    }
}

/// out `[cols]` = the sum over the rows of x `[rows, cols]`: a bias gradient.
pub fn column_sums<T: Element>(ctx: &Context, rows: usize, cols: usize, x: &[T], out: &mut [f32]) {
    assert!(x.len() >= rows * cols && out.len() >= cols, "column_sums: a slice is too short for [{rows}, {cols}]");
    let parts = ctx.parts(rows * cols, GRAIN).min(rows.max(1));
    let mut shared = ctx.shared();
    let sums = shared.f32(parts * cols);
    let share = Shares::new(sums);
    ctx.fork(parts, |part| {
        // SAFETY: one range of sums per part; reads inside x.
        unsafe {
            let sum = share.part(part * cols..(part + 1) * cols);
            let rows = piece(rows, parts, part, 1);
            simd!(ctx.isa(), column_range, [T](&x[rows.start * cols..rows.end * cols], sum))
        }
    });
    if cols == 0 {
        return;
    }
    out[..cols].copy_from_slice(&sums[..cols]);
    for sum in sums[cols..].chunks_exact(cols) {
        out.iter_mut().zip(sum).for_each(|(a, b)| *a += b);
    }
}

#[inline(always)]
unsafe fn column_range<S: Simd, T: Element>(x: &[T], sum: &mut [f32]) {
    unsafe {
        let cols = sum.len();
        let rows = x.len().checked_div(cols).unwrap_or(0);
        let mut j = 0;
        // Eight vectors of sums stay in registers down the rows.
        while j < cols {
            let width = (cols - j).min(8 * S::LANES);
            let mut acc = [S::zero(); 8];
            for r in 0..rows {
                let row = x.as_ptr().add(r * cols + j);
                if width == 8 * S::LANES {
                    for (v, a) in acc.iter_mut().enumerate() {
                        *a = S::add(*a, T::load::<S>(row.add(v * S::LANES)));
                    }
                } else {
                    for (v, a) in acc.iter_mut().enumerate().take(width.div_ceil(S::LANES)) {
                        *a = S::add(*a, T::load_part::<S>(row.add(v * S::LANES), width - v * S::LANES));
                    }
                }
            }
            for (v, a) in acc.into_iter().enumerate().take(width.div_ceil(S::LANES)) {
                f32::store_part::<S>(sum.as_mut_ptr().add(j + v * S::LANES), a, width - v * S::LANES);
            }
            j += width;
        }
    }
}

/// out `[rows]` = the sum of each row of x `[rows, cols]`.
pub fn row_sums<T: Element>(ctx: &Context, rows: usize, cols: usize, x: &[T], out: &mut [f32]) {
    assert!(x.len() >= rows * cols && out.len() >= rows, "row_sums: a slice is too short for [{rows}, {cols}]");
    let out = Shares::new(&mut out[..rows]);
    ctx.split(rows, GRAIN / cols.max(1) + 1, 16, |_, range: Range<usize>| {
        // SAFETY: ranges are disjoint; reads inside x.
        unsafe { simd!(ctx.isa(), row_range, [T](cols, &x[range.start * cols..range.end * cols], out.part(range))) }
    });
}

#[inline(always)]
unsafe fn row_range<S: Simd, T: Element>(cols: usize, x: &[T], out: &mut [f32]) {
    unsafe {
        for (r, out) in out.iter_mut().enumerate() {
            let row = x.as_ptr().add(r * cols);
            let mut sum = S::zero();
            for j in (0..cols).step_by(S::LANES) {
                sum = S::add(sum, T::load_part::<S>(row.add(j), cols - j));
            }
            *out = S::sum(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Random, contexts, erf, gelu, wide, worst};
    use super::*;
    use half::{bf16, f16};

    fn exact(f: Unary, x: f64) -> f64 {
        match f {
            Unary::Relu => x.max(0.0),
            Unary::Gelu => gelu(x),
            Unary::GeluTanh => 0.5 * x * (1.0 + (0.7978845608028654 * (x + 0.044715 * x * x * x)).tanh()),
            Unary::Tanh => x.tanh(),
            Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Unary::Exp => x.exp(),
        }
    }

    const ALL: [Unary; 6] = [Unary::Relu, Unary::Gelu, Unary::GeluTanh, Unary::Tanh, Unary::Sigmoid, Unary::Exp];

    #[test]
    fn functions_and_slopes_agree_with_f64() {
        assert!((erf(1.0) - 0.8427007929497149).abs() < 1e-14);
        for ctx in contexts() {
            let mut r = Random::new();
            for f in ALL {
                for n in [1, 15, 16, 17, 129, 40_001] {
                    let x: Vec<f32> = r.values::<f32>(n).iter().map(|x| x * 8.0).collect();
                    let mut y = vec![f32::NAN; n];
                    unary(&ctx, f, &x, &mut y);
                    let want: Vec<f64> = x.iter().map(|&x| exact(f, x as f64)).collect();
                    worst(&format!("{f:?} {n} {:?}", ctx.isa()), &r, &y, &want, 2e-6);
                    let saved = if matches!(f, Unary::Gelu | Unary::GeluTanh) { &x } else { &y };
                    let dy: Vec<f32> = r.values(n);
                    let mut dx = vec![f32::NAN; n];
                    unary_backward(&ctx, f, saved, &dy, &mut dx);
                    let h = 1e-5;
                    let want: Vec<f64> = x
                        .iter()
                        .zip(&dy)
                        .map(|(&x, &d)| {
                            let x = x as f64;
                            let slope = match f {
                                Unary::Relu => f64::from(x > 0.0),
                                _ => (exact(f, x + h) - exact(f, x - h)) / (2.0 * h),
                            };
                            d as f64 * slope
                        })
                        .collect();
                    worst(&format!("{f:?}' {n} {:?}", ctx.isa()), &r, &dx, &want, 4e-6);
                }
            }
        }
    }

    #[test]
    fn exp_is_right_at_its_ends() {
        for ctx in contexts() {
            let x = [-200.0f32, -88.0, -87.0, 0.0, 1e-8, 88.0, 89.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
            let mut y = [0.0f32; 10];
            unary(&ctx, Unary::Exp, &x, &mut y);
            assert!(y[0] == 0.0 && y[1] < 1e-37 && y[3] == 1.0 && y[6].is_infinite() && y[7].is_infinite());
            assert!(y[8] == 0.0 && y[9].is_nan(), "{y:?}");
            assert!((y[2] as f64 / (-87.0f64).exp() - 1.0).abs() < 1e-6 && (y[5] as f64 / 88f64.exp() - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn casts_round_to_nearest_even_on_every_bit_pattern() {
        for ctx in contexts() {
            let every: Vec<u16> = (0..=u16::MAX).collect();
            let halves: Vec<f16> = every.iter().map(|&b| f16::from_bits(b)).collect();
            let brains: Vec<bf16> = every.iter().map(|&b| bf16::from_bits(b)).collect();
            let mut single = vec![0.0f32; every.len()];
            cast(&ctx, &halves, &mut single);
            for (h, s) in halves.iter().zip(&single) {
                assert!(h.to_f32() == *s || (h.is_nan() && s.is_nan()));
            }
            cast(&ctx, &brains, &mut single);
            for (h, s) in brains.iter().zip(&single) {
                assert!(h.to_f32() == *s || (h.is_nan() && s.is_nan()));
            }
            let mut r = Random::new();
            let bits: Vec<f32> = (0..100_003).map(|_| f32::from_bits(r.next() as u32)).collect();
            let (mut b, mut h) = (vec![bf16::ZERO; bits.len()], vec![f16::ZERO; bits.len()]);
            cast(&ctx, &bits, &mut b);
            cast(&ctx, &bits, &mut h);
            for ((x, b), h) in bits.iter().zip(&b).zip(&h) {
                assert!(*b == bf16::from_f32(*x) || (x.is_nan() && b.is_nan()), "{x} {b} {:?}", ctx.isa());
                assert!(*h == f16::from_f32_const(*x) || (x.is_nan() && h.is_nan()), "{x} {h} {:?}", ctx.isa());
            }
        }
    }

    #[test]
    fn arithmetic_and_sums_are_exact_on_small_integers() {
        for ctx in contexts() {
            let mut r = Random::new();
            for (rows, cols) in [(1, 1), (5, 17), (33, 128), (129, 300), (700, 65)] {
                let mut small = |n: usize| (0..n).map(|_| r.below(17) as f32 - 8.0).collect::<Vec<f32>>();
                let (a, full, row) = (small(rows * cols), small(rows * cols), small(cols));
                for (broadcast, b) in [(Broadcast::None, &full), (Broadcast::LastAxis, &row), (Broadcast::Scalar, &vec![3.0])] {
                    for op in [Binary::Add, Binary::Sub, Binary::Mul] {
                        let mut y = vec![f32::NAN; a.len()];
                        binary(&ctx, op, broadcast, &a, b, &mut y);
                        for i in 0..a.len() {
                            let b = b[i % b.len()];
                            let want = match op {
                                Binary::Add => a[i] + b,
                                Binary::Sub => a[i] - b,
                                Binary::Mul => a[i] * b,
                            };
                            assert_eq!(y[i], want, "{op:?} {broadcast:?} {i}");
                        }
                    }
                }
                let (mut c, mut s) = (vec![f32::NAN; cols], vec![f32::NAN; rows]);
                column_sums(&ctx, rows, cols, &a, &mut c);
                row_sums(&ctx, rows, cols, &a, &mut s);
                for (j, c) in c.iter().enumerate() {
                    assert_eq!(*c, (0..rows).map(|i| a[i * cols + j]).sum::<f32>());
                }
                for (i, s) in s.iter().enumerate() {
                    assert_eq!(*s, a[i * cols..(i + 1) * cols].iter().sum::<f32>());
                }
                let mut y = full.clone();
                axpy(&ctx, 2.0, &a, &mut y);
                assert!((0..y.len()).all(|i| y[i] == full[i] + 2.0 * a[i]));
                let low: Vec<bf16> = a.iter().map(|&x| bf16::from_f32(x)).collect();
                assert_eq!(wide(&low), a);
                assert!(all_finite(&ctx, &a));
                let at = r.below(a.len());
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut a = a.clone();
                    a[at] = bad;
                    assert!(!all_finite(&ctx, &a), "{bad} at {at}");
                }
            }
        }
    }
}
