//! Work on rows: softmax, softmax cross-entropy, layer norm, argmax, and rows picked by number (embedding).

use super::pool::{Context, Shares};
use super::simd::*;

/// Rows each thread should at least get.
fn grain(cols: usize) -> usize {
    4 * 1024 / cols.max(1) + 1
}

fn need(what: &str, rows: usize, cols: usize, lens: &[usize]) {
    assert!(lens.iter().all(|&n| n >= rows * cols), "{what}: a slice of {lens:?} is too short for [{rows}, {cols}]");
}

/// The largest of a row times scale (minus infinity for none) and the sum of exp(scale x - it).
#[inline(always)]
unsafe fn peak_and_sum<S: Simd, T: Element>(cols: usize, scale: f32, x: *const T) -> (f32, f32) {
    unsafe {
        let mut peak = f32::NEG_INFINITY;
        let full = cols / S::LANES * S::LANES;
        if full > 0 {
            let mut m = S::mul(T::load::<S>(x), S::splat(scale));
            for j in (S::LANES..full).step_by(S::LANES) {
                m = S::max(S::mul(T::load::<S>(x.add(j)), S::splat(scale)), m);
            }
            peak = S::max_lane(m);
        }
        for j in full..cols {
            let v = (*x.add(j)).to_f32() * scale;
            peak = if v > peak { v } else { peak };
        }
        let mut sum = S::zero();
        for j in (0..full).step_by(S::LANES) {
            let v = S::fma(T::load::<S>(x.add(j)), S::splat(scale), S::splat(-peak));
            sum = S::add(sum, exp::<S>(v));
        }
        let mut total = S::sum(sum);
        if full < cols {
            let v = T::load_part::<S>(x.add(full), cols - full);
            let e = S::to_array(exp::<S>(S::fma(v, S::splat(scale), S::splat(-peak))));
            total += e[..cols - full].iter().sum::<f32>();
        }
        (peak, total)
    }
}

/// y = softmax(scale x) along the rows of `[rows, cols]`.
pub fn softmax<T: Element>(ctx: &Context, rows: usize, cols: usize, scale: f32, x: &[T], y: &mut [T]) {
    need("softmax", rows, cols, &[x.len(), y.len()]);
    let y = Shares::new(y);
    ctx.split(rows, grain(cols), 1, |_, range| {
        // SAFETY: sizes checked; rows are disjoint.
        unsafe {
            let out = y.part(range.start * cols..range.end * cols);
            simd!(ctx.isa(), softmax_rows, [T](cols, scale, &x[range.start * cols..range.end * cols], out))
        }
    });
}

#[inline(always)]
unsafe fn softmax_rows<S: Simd, T: Element>(cols: usize, scale: f32, x: &[T], y: &mut [T]) {
    unsafe {
        for r in 0..x.len().checked_div(cols).unwrap_or(0) {
            let (x, y) = (x.as_ptr().add(r * cols), y.as_mut_ptr().add(r * cols));
            let (peak, sum) = peak_and_sum::<S, T>(cols, scale, x);
            for j in (0..cols).step_by(S::LANES) {
                let v = T::load_part::<S>(x.add(j), cols - j);
                let e = exp::<S>(S::fma(v, S::splat(scale), S::splat(-peak)));
                T::store_part::<S>(y.add(j), S::mul(e, S::splat(1.0 / sum)), cols - j);
            }
        }
    }
}

/// dx = scale y (dy - sum(y dy)) along the rows, from the forward pass's y.
pub fn softmax_backward<T: Element>(ctx: &Context, rows: usize, cols: usize, scale: f32, y: &[T], dy: &[T], dx: &mut [T]) {
    need("softmax_backward", rows, cols, &[y.len(), dy.len(), dx.len()]);
    let dx = Shares::new(dx);
    ctx.split(rows, grain(cols), 1, |_, range| {
        // SAFETY: sizes checked; rows are disjoint.
        unsafe {
            let span = range.start * cols..range.end * cols;
            let out = dx.part(span.clone());
            simd!(ctx.isa(), softmax_backward_rows, [T](cols, scale, &y[span.clone()], &dy[span], out))
        }
    });
}

#[inline(always)]
unsafe fn softmax_backward_rows<S: Simd, T: Element>(cols: usize, scale: f32, y: &[T], dy: &[T], dx: &mut [T]) {
    unsafe {
        for r in 0..y.len().checked_div(cols).unwrap_or(0) {
            let (y, dy) = (y.as_ptr().add(r * cols), dy.as_ptr().add(r * cols));
            let dx = dx.as_mut_ptr().add(r * cols);
            let mut dot = S::zero();
            for j in (0..cols).step_by(S::LANES) {
                let n = cols - j;
                dot = S::fma(T::load_part::<S>(y.add(j), n), T::load_part::<S>(dy.add(j), n), dot);
            }
            let dot = S::splat(S::sum(dot));
            for j in (0..cols).step_by(S::LANES) {
                let n = cols - j;
                let d = S::sub(T::load_part::<S>(dy.add(j), n), dot);
                let v = S::mul(S::mul(T::load_part::<S>(y.add(j), n), S::splat(scale)), d);
                T::store_part::<S>(dx.add(j), v, n);
            }
        }
    }
}

/// Softmax cross-entropy of logits `[rows, cols]` against class `labels` `[rows]`: fills `row_loss` `[rows]`, returns its
/// mean, and writes `d_logits` = scale / rows (softmax - one hot) when asked for (`scale`: the loss scale, or 1).
/// Panics on a label outside `0..cols`.
#[allow(clippy::too_many_arguments)]
pub fn cross_entropy<T: Element>(
    ctx: &Context,
    rows: usize,
    cols: usize,
    logits: &[T],
    labels: &[u32],
    scale: f32,
    row_loss: &mut [f32],
    d_logits: Option<&mut [T]>,
) -> f32 {
    need("cross_entropy", rows, cols, &[logits.len()]);
    need("cross_entropy", rows, 1, &[labels.len(), row_loss.len()]);
    assert!(labels[..rows].iter().all(|&l| (l as usize) < cols), "cross_entropy: a label is not below {cols}");
    let d_logits = d_logits.map(|d| {
        need("cross_entropy", rows, cols, &[d.len()]);
        Shares::new(d)
    });
    let losses = Shares::new(&mut row_loss[..rows]);
    let factor = scale / rows as f32;
    ctx.split(rows, grain(cols), 1, |_, range| {
        // SAFETY: sizes checked; rows are disjoint.
        unsafe {
            let span = range.start * cols..range.end * cols;
            let out = d_logits.map_or(std::ptr::null_mut(), |d| d.part(span.clone()).as_mut_ptr());
            let labels = &labels[range.clone()];
            simd!(ctx.isa(), cross_entropy_rows, [T](cols, &logits[span], labels, factor, losses.part(range), out))
        }
    });
    let total: f64 = row_loss[..rows].iter().map(|&l| l as f64).sum();
    (total / rows as f64) as f32
}

#[inline(always)]
unsafe fn cross_entropy_rows<S: Simd, T: Element>(
    cols: usize,
    logits: &[T],
    labels: &[u32],
    factor: f32,
    losses: &mut [f32],
    d: *mut T,
) {
    unsafe {
        for (r, (&label, loss)) in labels.iter().zip(losses).enumerate() {
            let x = logits.as_ptr().add(r * cols);
            let (peak, sum) = peak_and_sum::<S, T>(cols, 1.0, x);
            *loss = sum.ln() + peak - (*x.add(label as usize)).to_f32();
            if d.is_null() {
                continue;
            }
            let d = d.add(r * cols);
            let over = S::splat(factor / sum);
            for j in (0..cols).step_by(S::LANES) {
                let e = exp::<S>(S::sub(T::load_part::<S>(x.add(j), cols - j), S::splat(peak)));
                T::store_part::<S>(d.add(j), S::mul(e, over), cols - j);
            }
            let own = (((*x.add(label as usize)).to_f32() - peak).exp() / sum - 1.0) * factor;
            *d.add(label as usize) = T::from_f32(own);
        }
    }
}

/// The shape of a layer norm over the rows of `[rows, cols]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerNorm {
    pub rows: usize,
    pub cols: usize,
    pub eps: f32,
}

/// y = (x - mean) rstd gamma + beta along the rows; `stats` `[rows, 2]` keeps mean and rstd for the way back.
pub fn layer_norm<T: Element>(
    ctx: &Context,
    norm: &LayerNorm,
    x: &[T],
    gamma: &[f32],
    beta: &[f32],
    y: &mut [T],
    stats: &mut [f32],
) {
    let (rows, cols) = (norm.rows, norm.cols);
    need("layer_norm", rows, cols, &[x.len(), y.len()]);
    need("layer_norm", 1, cols, &[gamma.len(), beta.len()]);
    need("layer_norm", rows, 2, &[stats.len()]);
    let (y, stats) = (Shares::new(y), Shares::new(stats));
    ctx.split(rows, grain(cols), 1, |_, range| {
        // SAFETY: sizes checked; rows are disjoint.
        unsafe {
            let span = range.start * cols..range.end * cols;
            let (out, stats) = (y.part(span.clone()), stats.part(range.start * 2..range.end * 2));
            simd!(ctx.isa(), norm_rows, [T](norm, &x[span], gamma, beta, out, stats))
        }
    });
}

#[inline(always)]
unsafe fn norm_rows<S: Simd, T: Element>(norm: &LayerNorm, x: &[T], gamma: &[f32], beta: &[f32], y: &mut [T], stats: &mut [f32]) {
    unsafe {
        let cols = norm.cols;
        let full = cols / S::LANES * S::LANES;
        for (r, stats) in stats.chunks_exact_mut(2).enumerate() {
            let (x, y) = (x.as_ptr().add(r * cols), y.as_mut_ptr().add(r * cols));
            let mut sum = S::zero();
            for j in (0..cols).step_by(S::LANES) {
                sum = S::add(sum, T::load_part::<S>(x.add(j), cols - j));
            }
            let mean = S::sum(sum) / cols as f32;
            // Two passes: the difference of squares would lose rows with a large mean.
            let mut square = S::zero();
            for j in (0..full).step_by(S::LANES) {
                let d = S::sub(T::load::<S>(x.add(j)), S::splat(mean));
                square = S::fma(d, d, square);
            }
            let mut square = S::sum(square);
            for j in full..cols {
                let d = (*x.add(j)).to_f32() - mean;
                square += d * d;
            }
            let rstd = 1.0 / (square / cols as f32 + norm.eps).sqrt();
            (stats[0], stats[1]) = (mean, rstd);
            for j in (0..cols).step_by(S::LANES) {
                let n = cols - j;
                let h = S::mul(S::sub(T::load_part::<S>(x.add(j), n), S::splat(mean)), S::splat(rstd));
                let g = f32::load_part::<S>(gamma.as_ptr().add(j), n);
                let v = S::fma(h, g, f32::load_part::<S>(beta.as_ptr().add(j), n));
                T::store_part::<S>(y.add(j), v, n);
            }
        }
    }
}

/// The gradients of [`layer_norm`], all overwritten; `stats` as the forward pass left them.
#[allow(clippy::too_many_arguments)]
pub fn layer_norm_backward<T: Element>(
    ctx: &Context,
    norm: &LayerNorm,
    x: &[T],
    gamma: &[f32],
    stats: &[f32],
    dy: &[T],
    dx: &mut [T],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
) {
    let (rows, cols) = (norm.rows, norm.cols);
    need("layer_norm_backward", rows, cols, &[x.len(), dy.len(), dx.len()]);
    need("layer_norm_backward", 1, cols, &[gamma.len(), dgamma.len(), dbeta.len()]);
    need("layer_norm_backward", rows, 2, &[stats.len()]);
    let parts = ctx.parts(rows, grain(cols));
    let mut shared = ctx.shared();
    let sums = shared.f32(parts * 2 * cols);
    let (share, dx) = (Shares::new(sums), Shares::new(dx));
    ctx.fork(parts, |part| {
        let range = super::pool::piece(rows, parts, part, 1);
        let span = range.start * cols..range.end * cols;
        // SAFETY: sizes checked; rows and sums are disjoint.
        unsafe {
            let sum = share.part(part * 2 * cols..(part + 1) * 2 * cols);
            sum.fill(0.0);
            let (out, stats) = (dx.part(span.clone()), &stats[range.start * 2..range.end * 2]);
            simd!(ctx.isa(), norm_back, [T](cols, &x[span.clone()], gamma, stats, &dy[span], out, sum))
        }
    });
    for (to, from) in [(dgamma, 0), (dbeta, cols)] {
        to[..cols].copy_from_slice(&sums[from..from + cols]);
        for part in 1..parts {
            let sum = &sums[part * 2 * cols + from..][..cols];
            to.iter_mut().zip(sum).for_each(|(a, b)| *a += b);
        }
    }
}

#[inline(always)]
unsafe fn norm_back<S: Simd, T: Element>(
    cols: usize,
    x: &[T],
    gamma: &[f32],
    stats: &[f32],
    dy: &[T],
    dx: &mut [T],
    sum: &mut [f32],
) {
    unsafe {
        let (dgamma, dbeta) = (sum.as_mut_ptr(), sum.as_mut_ptr().add(cols));
        for (r, stats) in stats.chunks_exact(2).enumerate() {
            let (x, dy) = (x.as_ptr().add(r * cols), dy.as_ptr().add(r * cols));
            let dx = dx.as_mut_ptr().add(r * cols);
            let (mean, rstd) = (S::splat(stats[0]), S::splat(stats[1]));
            let (mut plain, mut along) = (S::zero(), S::zero());
            for j in (0..cols).step_by(S::LANES) {
                let n = cols - j;
                let h = S::mul(S::sub(T::load_part::<S>(x.add(j), n), mean), rstd);
                let d = T::load_part::<S>(dy.add(j), n);
                let g = S::mul(d, f32::load_part::<S>(gamma.as_ptr().add(j), n));
                plain = S::add(plain, g);
                along = S::fma(g, h, along);
                let (a, b) = (dgamma.add(j), dbeta.add(j));
                f32::store_part::<S>(a, S::fma(d, h, f32::load_part::<S>(a, n)), n);
                f32::store_part::<S>(b, S::add(d, f32::load_part::<S>(b, n)), n);
            }
            let plain = S::splat(S::sum(plain) / cols as f32);
            let along = S::splat(S::sum(along) / cols as f32);
            for j in (0..cols).step_by(S::LANES) {
                let n = cols - j;
                let h = S::mul(S::sub(T::load_part::<S>(x.add(j), n), mean), rstd);
                let g = S::mul(T::load_part::<S>(dy.add(j), n), f32::load_part::<S>(gamma.as_ptr().add(j), n));
                let v = S::mul(rstd, S::sub(S::sub(g, plain), S::mul(h, along)));
                T::store_part::<S>(dx.add(j), v, n);
            }
        }
    }
}

/// y `[ids, width]` = the rows `ids` of `table`. Panics on a row the table lacks.
pub fn embedding<T: Element>(ctx: &Context, width: usize, table: &[T], ids: &[u32], y: &mut [T]) {
    need("embedding", ids.len(), width, &[y.len()]);
    let y = Shares::new(y);
    ctx.split(ids.len(), 4 * grain(width), 1, |_, range| {
        for i in range {
            let from = ids[i] as usize * width;
            // SAFETY: one row of y per step.
            unsafe { y.part(i * width..(i + 1) * width) }.copy_from_slice(&table[from..from + width]);
        }
    });
}

/// Adds dy `[ids, width]` to the rows `ids` of `dtable`, in the order of `ids` (threads split the width).
pub fn embedding_backward<T: Element>(ctx: &Context, width: usize, dy: &[T], ids: &[u32], dtable: &mut [f32]) {
    need("embedding_backward", ids.len(), width, &[dy.len()]);
    let table = Shares::new(dtable);
    ctx.split(width, 16 * 1024 / ids.len().max(1) + 16, 16, |_, columns| {
        for (i, &id) in ids.iter().enumerate() {
            let at = id as usize * width;
            // SAFETY: one range of columns per thread.
            let row = unsafe { table.part(at + columns.start..at + columns.end) };
            let from = &dy[i * width + columns.start..i * width + columns.end];
            row.iter_mut().zip(from).for_each(|(a, b)| *a += b.to_f32());
        }
    });
}

/// out `[rows]` = the place of each row's largest value, the first of equals.
pub fn argmax_rows<T: Element>(ctx: &Context, rows: usize, cols: usize, x: &[T], out: &mut [u32]) {
    need("argmax_rows", rows, cols, &[x.len()]);
    assert!(cols > 0 && out.len() >= rows, "argmax_rows: out is too short for {rows} rows");
    let out = Shares::new(out);
    ctx.split(rows, grain(cols), 1, |_, range| {
        // SAFETY: rows are disjoint.
        for (to, row) in unsafe { out.part(range.clone()) }.iter_mut().zip(x[range.start * cols..].chunks_exact(cols)) {
            let (mut best, mut at) = (row[0].to_f32(), 0);
            for (j, v) in row.iter().enumerate().skip(1) {
                if v.to_f32() > best {
                    (best, at) = (v.to_f32(), j);
                }
            }
            *to = at as u32;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::check::{Random, contexts, wide, worst};
    use super::*;
    use half::{bf16, f16};

    const SHAPES: [(usize, usize); 8] = [(1, 1), (3, 10), (5, 15), (4, 16), (7, 17), (64, 33), (2, 129), (40, 300)];

    fn rows_of<T: Element>(ctx: &Context, r: &mut Random) {
        let tolerance = if T::IS_F32 { 4e-6 } else { 1e-2 };
        for (rows, cols) in SHAPES {
            let what = format!("[{rows}, {cols}] {} {:?}", T::NAME, ctx.isa());
            let x: Vec<T> = wide(&r.values::<f32>(rows * cols)).iter().map(|v| T::from_f32(v * 5.0)).collect();
            let dy: Vec<T> = r.values(rows * cols);
            let scale = 0.7;
            let (xf, df) = (wide(&x), wide(&dy));
            let softened = |row: &[f32], scale: f64| -> Vec<f64> {
                let e: Vec<f64> = row.iter().map(|&v| (scale * v as f64).exp()).collect();
                let sum: f64 = e.iter().sum();
                e.iter().map(|v| v / sum).collect()
            };
            let nan = vec![T::from_f32(f32::NAN); rows * cols];
            let mut y = nan.clone();
            softmax(ctx, rows, cols, scale, &x, &mut y);
            let want: Vec<f64> = xf.chunks(cols).flat_map(|row| softened(row, scale as f64)).collect();
            worst(&format!("softmax {what}"), r, &wide(&y), &want, tolerance);
            let mut dx = nan.clone();
            softmax_backward(ctx, rows, cols, scale, &y, &dy, &mut dx);
            let yf = wide(&y);
            let want: Vec<f64> = (0..rows * cols)
                .map(|i| {
                    let span = i / cols * cols..(i / cols + 1) * cols;
                    let dot: f64 = span.map(|j| yf[j] as f64 * df[j] as f64).sum();
                    scale as f64 * yf[i] as f64 * (df[i] as f64 - dot)
                })
                .collect();
            worst(&format!("softmax' {what}"), r, &wide(&dx), &want, tolerance);

            let labels: Vec<u32> = (0..rows).map(|_| r.below(cols) as u32).collect();
            let (mut losses, mut d) = (vec![f32::NAN; rows], nan.clone());
            let mean = cross_entropy(ctx, rows, cols, &x, &labels, 8.0, &mut losses, Some(&mut d));
            let (mut want_loss, mut want_d) = (Vec::new(), Vec::new());
            for (row, &label) in xf.chunks(cols).zip(&labels) {
                let p = softened(row, 1.0);
                want_loss.push(-p[label as usize].ln());
                want_d.extend(p.iter().enumerate().map(|(j, p)| (p - f64::from(j == label as usize)) * 8.0 / rows as f64));
            }
            worst(&format!("loss {what}"), r, &losses, &want_loss, 4e-6);
            worst(&format!("d logits {what}"), r, &wide(&d), &want_d, tolerance);
            let want = want_loss.iter().sum::<f64>() / rows as f64;
            assert!((mean as f64 - want).abs() < 1e-5 * (1.0 + want), "{what}");

            let mut at = vec![u32::MAX; rows];
            argmax_rows(ctx, rows, cols, &x, &mut at);
            for (row, &at) in xf.chunks(cols).zip(&at) {
                assert!(row.iter().all(|v| *v <= row[at as usize]), "{what}");
            }

            let norm = LayerNorm { rows, cols, eps: 1e-3 };
            let (gamma, beta): (Vec<f32>, Vec<f32>) = (r.values(cols), r.values(cols));
            let (mut y, mut stats) = (nan.clone(), vec![f32::NAN; 2 * rows]);
            layer_norm(ctx, &norm, &x, &gamma, &beta, &mut y, &mut stats);
            let (mut dx, mut dg, mut db) = (nan.clone(), vec![f32::NAN; cols], vec![f32::NAN; cols]);
            layer_norm_backward(ctx, &norm, &x, &gamma, &stats, &dy, &mut dx, &mut dg, &mut db);
            let (mut want_y, mut want_dx) = (Vec::new(), Vec::new());
            let (mut want_dg, mut want_db) = (vec![0.0; cols], vec![0.0; cols]);
            for (x, d) in xf.chunks(cols).zip(df.chunks(cols)) {
                let n = cols as f64;
                let mean = x.iter().map(|&v| v as f64).sum::<f64>() / n;
                let var = x.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / n;
                let rstd = 1.0 / (var + 1e-3).sqrt();
                let h: Vec<f64> = x.iter().map(|&v| (v as f64 - mean) * rstd).collect();
                let g: Vec<f64> = (0..cols).map(|j| d[j] as f64 * gamma[j] as f64).collect();
                let plain = g.iter().sum::<f64>() / n;
                let along = g.iter().zip(&h).map(|(g, h)| g * h).sum::<f64>() / n;
                for j in 0..cols {
                    want_y.push(h[j] * gamma[j] as f64 + beta[j] as f64);
                    want_dx.push(rstd * (g[j] - plain - h[j] * along));
                    want_dg[j] += d[j] as f64 * h[j];
                    want_db[j] += d[j] as f64;
                }
            }
            worst(&format!("layer norm {what}"), r, &wide(&y), &want_y, tolerance);
            worst(&format!("layer norm dx {what}"), r, &wide(&dx), &want_dx, 5.0 * tolerance);
            worst(&format!("dgamma {what}"), r, &dg, &want_dg, 3e-5);
            worst(&format!("dbeta {what}"), r, &db, &want_db, 3e-5);
        }
    }

    #[test]
    fn rows_agree_with_f64_both_ways() {
        for ctx in contexts() {
            let mut r = Random::new();
            rows_of::<f32>(&ctx, &mut r);
            rows_of::<bf16>(&ctx, &mut r);
            rows_of::<f16>(&ctx, &mut r);
        }
    }

    #[test]
    fn large_logits_do_not_overflow() {
        for ctx in contexts() {
            let x = [1e4f32, -1e4, 1e4, 0.0];
            let mut y = [f32::NAN; 4];
            softmax(&ctx, 1, 4, 1.0, &x, &mut y);
            assert_eq!(y, [0.5, 0.0, 0.5, 0.0]);
            let mut loss = [f32::NAN];
            assert_eq!(cross_entropy(&ctx, 1, 4, &x, &[1], 1.0, &mut loss, None::<&mut [f32]>), 2e4f32 + 2f32.ln());
        }
    }

    #[test]
    fn embedding_rows_come_and_go_back() {
        for ctx in contexts() {
            let mut r = Random::new();
            for (width, count) in [(1, 1), (17, 40), (128, 300)] {
                let table: Vec<f32> = r.values(20 * width);
                let ids: Vec<u32> = (0..count).map(|_| r.below(20) as u32).collect();
                let mut y = vec![f32::NAN; count * width];
                embedding(&ctx, width, &table, &ids, &mut y);
                let mut d = vec![1.0f32; table.len()];
                embedding_backward(&ctx, width, &y, &ids, &mut d);
                let mut want = vec![1.0f64; table.len()];
                for (i, &id) in ids.iter().enumerate() {
                    for j in 0..width {
                        assert_eq!(y[i * width + j], table[id as usize * width + j]);
                        want[id as usize * width + j] += y[i * width + j] as f64;
                    }
                }
                worst("embedding", &r, &d, &want, 1e-5);
            }
        }
    }
}
