//! Rounding to 8-bit floating-point formats, emulated bit for bit: numbers stay in a wider type, which holds them exactly. Plain loops; what
//! an emulation costs is nobody's figure.

use super::pool::{Context, Shares};
use super::simd::Element;
use crate::vocab::Fp8Format;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Elements for which a thread is worth waking.
const GRAIN: usize = 8 * 1024;

/// `y = round(scale x) / scale`, and the largest |x|, NaN where there is one. `scale` is a power of two; 0 stands for 1.
pub fn round_fp8<A: Element, B: Element>(ctx: &Context, format: Fp8Format, scale: f32, x: &[A], y: &mut [B]) -> f32 {
    assert!(y.len() >= x.len(), "round_fp8: y is shorter than x");
    // A format known to the compiler leaves a loop without branches.
    match format {
        Fp8Format::E4m3 => round_all(ctx, scale, x, y, |x| Fp8Format::E4m3.round(x)),
        Fp8Format::E5m2 => round_all(ctx, scale, x, y, |x| Fp8Format::E5m2.round(x)),
    }
}

fn round_all<A: Element, B: Element>(ctx: &Context, scale: f32, x: &[A], y: &mut [B], round: impl Fn(f32) -> f32 + Sync) -> f32 {
    let scale = if scale == 0.0 { 1.0 } else { scale };
    let back = 1.0 / scale;
    let largest = AtomicU32::new(0);
    let out = Shares::new(y);
    ctx.split(x.len(), GRAIN, 64, |_, range| {
        // SAFETY: ranges are disjoint and inside y.
        let part = unsafe { out.part(range.clone()) };
        let mut most = 0;
        for (y, x) in part.iter_mut().zip(&x[range]) {
            let x = x.to_f32();
            // Bits of numbers that are not negative order as the numbers do, and NaN comes last.
            most = most.max(x.to_bits() & 0x7fff_ffff);
            *y = B::from_f32(round(x * scale) * back);
        }
        largest.fetch_max(most, Relaxed);
    });
    f32::from_bits(largest.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn numbers_of_the_format_survive_and_others_go_to_the_nearest_whatever_the_type_and_the_threads() {
        for format in [Fp8Format::E4m3, Fp8Format::E5m2] {
            let codes = (0..=255u8).map(|code| format.decode(code)).filter(|x| x.is_finite());
            let exact: Vec<f32> = codes.cycle().take(40_000).collect();
            for threads in [1, 3] {
                let ctx = Context::new(threads);
                for scale in [1.0f32, 2f32.powi(-37), 2f32.powi(20)] {
                    let x: Vec<f32> = exact.iter().map(|x| x / scale).collect();
                    let (mut wide, mut low) = (vec![f32::NAN; x.len()], vec![bf16::NAN; x.len()]);
                    let most = round_fp8(&ctx, format, scale, &x, &mut wide);
                    assert_eq!((most, wide.as_slice()), (format.largest() / scale, x.as_slice()));
                    round_fp8(&ctx, format, scale, &x, &mut low);
                    assert!(low.iter().zip(&x).all(|(low, x)| low.to_f32() == *x));
                    // Once more, from bf16, off the grid by less than half a step of either format.
                    let beside: Vec<bf16> = low.iter().map(|x| bf16::from_f32(x.to_f32() * 1.03)).collect();
                    let mut again = vec![bf16::NAN; x.len()];
                    round_fp8(&ctx, format, scale, &beside, &mut again);
                    for (got, from) in again.iter().zip(&beside) {
                        assert_eq!(got.to_f32(), format.round(from.to_f32() * scale) / scale);
                    }
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_saturates_and_is_seen() {
        let ctx = Context::new(2);
        let mut y = [0.0f32; 4];
        let most = round_fp8(&ctx, Fp8Format::E4m3, 0.0, &[1.0f32, -600.0, 3.0, 0.0], &mut y);
        assert_eq!((most, y), (600.0, [1.0, -448.0, 3.0, 0.0]));
        let most = round_fp8(&ctx, Fp8Format::E5m2, 1.0, &[f32::INFINITY, f32::NAN, 0.0, 1.0], &mut y);
        assert!(most.is_nan() && y[0] == 57_344.0 && y[1].is_nan(), "{most} {y:?}");
    }
}
