//! Fake quantisation, which training puts where int8 products will be: values on the 8-bit grid, still f32. Rounding is to nearest even,
//! magnitudes are held to 127 steps; the gradient goes straight through inside that range (Bengio et al. 2013) and is zero outside.

use super::pool::{Context, Shares};
use super::simd::*;

/// Per column of x `[.., N]`: the step by which its largest magnitude is 127; 1 where all are zero.
pub fn channel_scales(ctx: &Context, columns: usize, x: &[f32], scales: &mut [f32]) {
    assert!(columns > 0 && scales.len() >= columns, "channel_scales: room for {} of {columns}", scales.len());
    let out = Shares::new(&mut scales[..columns]);
    let rows = x.len() / columns;
    ctx.split(columns, (200_000 / rows.max(1)).max(16), 16, |_, range| {
        // SAFETY: ranges are disjoint.
        let scales = unsafe { out.part(range.clone()) };
        scales.fill(0.0);
        for row in x.chunks_exact(columns) {
            for (scale, v) in scales.iter_mut().zip(&row[range.clone()]) {
                *scale = scale.max(v.abs());
            }
        }
        scales.iter_mut().for_each(|s| *s = if *s > 0.0 { *s / 127.0 } else { 1.0 });
    });
}

/// y = scale round(x / scale), with one scale for all or one a column.
pub fn fake_quantize(ctx: &Context, x: &[f32], scales: &[f32], y: &mut [f32]) {
    each_row(ctx, x, scales, y, |ctx_isa, x, scales, _, y| {
        // SAFETY: the instruction set is the context's; slices have one length.
        unsafe { simd!(ctx_isa, fake_row, [](x, scales, y)) }
    });
}

/// dx = dy where x lies within 127 steps, else 0.
pub fn fake_quantize_backward(ctx: &Context, x: &[f32], scales: &[f32], dy: &[f32], dx: &mut [f32]) {
    assert!(dy.len() >= x.len(), "fake_quantize_backward: dy is shorter than x");
    each_row(ctx, x, scales, dx, |_, x, scales, at, dx| {
        let scale = |k: usize| scales[if scales.len() == 1 { 0 } else { k }];
        for (k, ((dx, x), dy)) in dx.iter_mut().zip(x).zip(&dy[at..]).enumerate() {
            *dx = if x.abs() <= 127.0 * scale(k) { *dy } else { 0.0 };
        }
    });
}

/// Calls `f(instruction set, x, scales, first place, out)` for rows, or for pieces where one scale serves all.
fn each_row(
    ctx: &Context,
    x: &[f32],
    scales: &[f32],
    out: &mut [f32],
    f: impl Fn(Isa, &[f32], &[f32], usize, &mut [f32]) + Sync,
) {
    assert!(!scales.is_empty() && out.len() >= x.len(), "fake_quantize: a slice is too short");
    let width = if scales.len() == 1 { 4096 } else { scales.len() };
    let out = Shares::new(&mut out[..x.len()]);
    ctx.split(x.len(), 16 * 1024, width, |_, range| {
        for at in range.clone().step_by(width) {
            let piece = at..(at + width).min(range.end);
            // SAFETY: ranges are disjoint and inside both slices.
            f(ctx.isa(), &x[piece.clone()], scales, at, unsafe { out.part(piece) });
        }
    });
}

#[inline(always)]
unsafe fn fake_row<S: Simd>(x: &[f32], scales: &[f32], y: &mut [f32]) {
    unsafe {
        for i in (0..x.len()).step_by(S::LANES) {
            let left = x.len() - i;
            let scale = if scales.len() == 1 { S::splat(scales[0]) } else { f32::load_part::<S>(scales.as_ptr().add(i), left) };
            let v = S::div(f32::load_part::<S>(x.as_ptr().add(i), left), scale);
            let v = S::round(S::max(S::splat(-127.0), S::min(S::splat(127.0), v)));
            f32::store_part::<S>(y.as_mut_ptr().add(i), S::mul(v, scale), left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Random, contexts};
    use super::*;

    #[test]
    fn values_land_on_the_grid_and_gradients_pass_inside_it() {
        for ctx in contexts() {
            let mut r = Random::new();
            for (rows, columns) in [(1, 1), (3, 17), (40, 33), (700, 40)] {
                let x: Vec<f32> = r.values(rows * columns);
                let dy: Vec<f32> = r.values(rows * columns);
                let mut own = vec![f32::NAN; columns];
                channel_scales(&ctx, columns, &x, &mut own);
                for (c, scale) in own.iter().enumerate() {
                    let most = x.iter().skip(c).step_by(columns).fold(0.0f32, |m, v| m.max(v.abs()));
                    assert_eq!(*scale, most / 127.0);
                }
                // A third of the values lie outside of this one.
                for scales in [own, vec![0.6 / 127.0]] {
                    let (mut y, mut dx) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
                    fake_quantize(&ctx, &x, &scales, &mut y);
                    fake_quantize_backward(&ctx, &x, &scales, &dy, &mut dx);
                    for k in 0..x.len() {
                        let s = scales[k % scales.len()];
                        let q = (x[k] / s).round_ties_even().clamp(-127.0, 127.0);
                        assert_eq!(y[k], q * s, "{k} of [{rows}, {columns}], {:?}, seed {}", ctx.isa(), r.seed);
                        assert_eq!(dx[k], if x[k].abs() <= 127.0 * s { dy[k] } else { 0.0 });
                    }
                }
            }
            let mut zero = [9.0; 3];
            channel_scales(&ctx, 3, &[0.0; 6], &mut zero);
            assert_eq!(zero, [1.0; 3]);
        }
    }
}
