//! Max pooling with the winner's place, and averaging over a middle axis (global average pool), both ways, NHWC.

use super::pool::{Context, Shares};
use super::simd::*;

/// The shape of a 2D pool without padding; what does not fill a window is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool2d {
    pub batch: usize,
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
}

impl Pool2d {
    pub fn out_height(&self) -> usize {
        (self.height + 1).saturating_sub(self.kernel[0]).div_ceil(self.stride[0])
    }
    pub fn out_width(&self) -> usize {
        (self.width + 1).saturating_sub(self.kernel[1]).div_ceil(self.stride[1])
    }
    fn check(&self, x: usize, y: usize) {
        let [kh, kw] = self.kernel;
        assert!(kh * kw > 0 && kh * kw <= 256 && self.stride[0] * self.stride[1] > 0, "max_pool2d: bad {self:?}");
        let inputs = self.batch * self.height * self.width * self.channels;
        let outputs = self.batch * self.out_height() * self.out_width() * self.channels;
        assert!(x >= inputs && y >= outputs, "max_pool2d: {x} and {y} elements are too few for {self:?}");
    }
}

/// y `[B, OH, OW, C]` = the largest of each window of x `[B, H, W, C]`; `index` its place kh KW + kw (the first of
/// equals). At most 256 places. NaN wins.
pub fn max_pool2d<T: Element>(ctx: &Context, pool: &Pool2d, x: &[T], y: &mut [T], index: Option<&mut [u8]>) {
    pool.check(x.len(), y.len());
    let (oh, ow, c) = (pool.out_height(), pool.out_width(), pool.channels);
    let outputs = pool.batch * oh * ow * c;
    let index = index.map(|index| {
        assert!(index.len() >= outputs, "max_pool2d: index is too short for {pool:?}");
        Shares::new(index)
    });
    let y = Shares::new(y);
    ctx.split(pool.batch * oh, 8 * 1024 / (ow * c).max(1) + 1, 1, |_, range| {
        for row in range {
            let at = row * ow * c;
            // SAFETY: sizes checked; one output row per step.
            unsafe {
                let y = y.part(at..at + ow * c);
                let index = index.map_or(std::ptr::null_mut(), |i| i.part(at..at + ow * c).as_mut_ptr());
                simd!(ctx.isa(), max_row, [T](pool, row, x, y, index));
            }
        }
    });
}

#[inline(always)]
unsafe fn max_row<S: Simd, T: Element>(pool: &Pool2d, row: usize, x: &[T], y: &mut [T], index: *mut u8) {
    unsafe {
        let (oh, ow, c) = (pool.out_height(), pool.out_width(), pool.channels);
        let [kh, kw] = pool.kernel;
        let top = row / oh * pool.height + row % oh * pool.stride[0];
        for q in 0..ow {
            for v in (0..c).step_by(S::LANES) {
                let left = c - v;
                let corner = x.as_ptr().add((top * pool.width + q * pool.stride[1]) * c + v);
                let mut best = T::load_part::<S>(corner, left);
                let mut winner = S::zero();
                for place in 1..kh * kw {
                    let at = corner.add((place / kw * pool.width + place % kw) * c);
                    let value = T::load_part::<S>(at, left);
                    let here = S::splat(place as f32);
                    let larger = S::gt(value, best);
                    let nan = S::eq(value, value);
                    let alive = S::eq(best, best);
                    // Larger, or the first NaN.
                    let taken = S::select(larger, here, winner);
                    winner = S::select(nan, taken, S::select(alive, here, winner));
                    let kept = S::select(larger, value, best);
                    best = S::select(nan, kept, S::select(alive, value, best));
                }
                let to = q * c + v;
                T::store_part::<S>(y.as_mut_ptr().add(to), best, left);
                if !index.is_null() {
                    for (l, w) in S::to_array(winner).into_iter().enumerate().take(left.min(S::LANES)) {
                        *index.add(to + l) = w as u8;
                    }
                }
            }
        }
    }
}

/// dx `[B, H, W, C]`, overwritten: each dy `[B, OH, OW, C]` goes to its window's winner.
pub fn max_pool2d_backward<T: Element>(ctx: &Context, pool: &Pool2d, dy: &[T], index: &[u8], dx: &mut [T]) {
    pool.check(dx.len(), dy.len());
    let (oh, ow, c) = (pool.out_height(), pool.out_width(), pool.channels);
    assert!(index.len() >= pool.batch * oh * ow * c, "max_pool2d_backward: index is too short for {pool:?}");
    let image = pool.height * pool.width * c;
    let [_, kw] = pool.kernel;
    let disjoint = pool.stride[0] >= pool.kernel[0] && pool.stride[1] >= pool.kernel[1];
    let dx = Shares::new(dx);
    ctx.split(pool.batch, 8 * 1024 / (oh * ow * c).max(1) + 1, 1, |thread, range| {
        let mut own = ctx.own(thread);
        for b in range {
            // SAFETY: one image per step.
            let out = unsafe { dx.part(b * image..(b + 1) * image) };
            let windows = (0..oh * ow).map(|i| {
                let corner = (i / ow * pool.stride[0] * pool.width + i % ow * pool.stride[1]) * c;
                (corner, (b * oh * ow + i) * c)
            });
            let place = |corner: usize, ch: usize, k: u8| corner + (k as usize / kw * pool.width + k as usize % kw) * c + ch;
            if disjoint {
                out.fill(T::default());
                for (corner, at) in windows {
                    for ch in 0..c {
                        out[place(corner, ch, index[at + ch])] = dy[at + ch];
                    }
                }
            } else {
                // Windows overlap: sums are kept in f32 and rounded once.
                let sum = own.f32(image);
                sum.fill(0.0);
                for (corner, at) in windows {
                    for ch in 0..c {
                        sum[place(corner, ch, index[at + ch])] += dy[at + ch].to_f32();
                    }
                }
                out.iter_mut().zip(&*sum).for_each(|(o, s)| *o = T::from_f32(*s));
            }
        }
    });
}

/// y `[B, C]` = the mean over the middle axis of x `[B, P, C]`.
pub fn global_average_pool<T: Element>(ctx: &Context, shape: [usize; 3], x: &[T], y: &mut [T]) {
    let [batch, pixels, c] = shape;
    assert!(x.len() >= batch * pixels * c && y.len() >= batch * c, "global_average_pool: too short for {shape:?}");
    let y = Shares::new(y);
    ctx.split(batch, 16 * 1024 / (pixels * c).max(1) + 1, 1, |_, range| {
        for b in range {
            // SAFETY: one row of y per step.
            unsafe {
                let y = y.part(b * c..(b + 1) * c);
                simd!(ctx.isa(), mean_rows, [T](&x[b * pixels * c..(b + 1) * pixels * c], y));
            }
        }
    });
}

#[inline(always)]
unsafe fn mean_rows<S: Simd, T: Element>(x: &[T], y: &mut [T]) {
    unsafe {
        let c = y.len();
        let pixels = x.len().checked_div(c).unwrap_or(0);
        for v in (0..c).step_by(S::LANES) {
            let mut sum = S::zero();
            for p in 0..pixels {
                sum = S::add(sum, T::load_part::<S>(x.as_ptr().add(p * c + v), c - v));
            }
            let mean = S::mul(sum, S::splat(1.0 / pixels as f32));
            T::store_part::<S>(y.as_mut_ptr().add(v), mean, c - v);
        }
    }
}

/// dx `[B, P, C]`, overwritten, = dy `[B, C]` / P everywhere along the middle axis.
pub fn global_average_pool_backward<T: Element>(ctx: &Context, shape: [usize; 3], dy: &[T], dx: &mut [T]) {
    let [batch, pixels, c] = shape;
    let enough = dx.len() >= batch * pixels * c && dy.len() >= batch * c;
    assert!(enough, "global_average_pool_backward: too short for {shape:?}");
    let dx = Shares::new(dx);
    ctx.split(batch, 16 * 1024 / (pixels * c).max(1) + 1, 1, |_, range| {
        for b in range {
            // SAFETY: one image per step.
            let out = unsafe { dx.part(b * pixels * c..(b + 1) * pixels * c) };
            if pixels == 0 || c == 0 {
                continue;
            }
            let (first, rest) = out.split_at_mut(c);
            first.iter_mut().zip(&dy[b * c..]).for_each(|(o, d)| *o = T::from_f32(d.to_f32() / pixels as f32));
            rest.chunks_exact_mut(c).for_each(|row| row.copy_from_slice(first));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::check::{Random, contexts, wide, worst};
    use super::*;
    use half::{bf16, f16};

    fn pools<T: Element>(ctx: &Context, r: &mut Random) {
        for (height, width, channels, kernel, stride) in [
            (8, 8, 32, [2, 2], [2, 2]),
            (7, 9, 17, [2, 2], [2, 2]),
            (7, 6, 5, [3, 2], [1, 2]),
            (9, 9, 3, [3, 3], [2, 2]),
            (1, 1, 1, [1, 1], [1, 1]),
        ] {
            let pool = Pool2d { batch: 3, height, width, channels, kernel, stride };
            let what = format!("{pool:?} {} {:?}", T::NAME, ctx.isa());
            let x: Vec<T> = r.values(3 * height * width * channels);
            let (oh, ow) = (pool.out_height(), pool.out_width());
            assert_eq!((oh, ow), ((height - kernel[0]) / stride[0] + 1, (width - kernel[1]) / stride[1] + 1));
            let n = 3 * oh * ow * channels;
            let (mut y, mut index) = (vec![T::from_f32(f32::NAN); n], vec![255u8; n]);
            max_pool2d(ctx, &pool, &x, &mut y, Some(&mut index));
            let dy: Vec<T> = r.values(n);
            let mut dx = vec![T::from_f32(f32::NAN); x.len()];
            max_pool2d_backward(ctx, &pool, &dy, &index, &mut dx);
            let mut want = vec![0.0f64; x.len()];
            for at in 0..n {
                let (c, q, p, b) = (at % channels, at / channels % ow, at / channels / ow % oh, at / channels / ow / oh);
                let place = |k: usize| {
                    let (i, j) = (p * stride[0] + k / kernel[1], q * stride[1] + k % kernel[1]);
                    ((b * height + i) * width + j) * channels + c
                };
                let mut best = 0;
                for k in 1..kernel[0] * kernel[1] {
                    if x[place(k)].to_f32() > x[place(best)].to_f32() {
                        best = k;
                    }
                }
                assert_eq!((y[at], index[at] as usize), (x[place(best)], best), "{what} at {at}");
                want[place(best)] += dy[at].to_f32() as f64;
            }
            worst(&what, r, &wide(&dx), &want, if T::IS_F32 { 1e-6 } else { 1e-2 });
        }
        for shape in [[1, 1, 1], [3, 49, 33], [2, 64, 128]] {
            let [b, p, c] = shape;
            let x: Vec<T> = r.values(b * p * c);
            let mut y = vec![T::from_f32(f32::NAN); b * c];
            global_average_pool(ctx, shape, &x, &mut y);
            let mut want = vec![0.0; b * c];
            for (i, v) in x.iter().enumerate() {
                want[i / (p * c) * c + i % c] += v.to_f32() as f64 / p as f64;
            }
            let tolerance = if T::IS_F32 { 1e-6 } else { 1e-2 };
            worst("mean", r, &wide(&y), &want, tolerance);
            let mut dx = vec![T::from_f32(f32::NAN); x.len()];
            global_average_pool_backward(ctx, shape, &y, &mut dx);
            let want: Vec<f64> = (0..dx.len()).map(|i| y[i / (p * c) * c + i % c].to_f32() as f64 / p as f64).collect();
            worst("mean backward", r, &wide(&dx), &want, tolerance);
        }
    }

    #[test]
    fn pools_agree_with_the_definition_both_ways() {
        for ctx in contexts() {
            let mut r = Random::new();
            pools::<f32>(&ctx, &mut r);
            pools::<bf16>(&ctx, &mut r);
            pools::<f16>(&ctx, &mut r);
        }
    }

    #[test]
    fn not_a_number_wins_the_pool() {
        let pool = Pool2d { batch: 1, height: 2, width: 2, channels: 1, kernel: [2, 2], stride: [2, 2] };
        for ctx in contexts() {
            for at in 0..4 {
                let mut x = [1.0f32, 3.0, 2.0, 0.0];
                x[at] = f32::NAN;
                let (mut y, mut index) = ([0.0f32], [9u8]);
                max_pool2d(&ctx, &pool, &x, &mut y, Some(&mut index));
                assert!(y[0].is_nan() && index[0] as usize == at);
            }
        }
    }
}
