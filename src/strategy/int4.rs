//! Weights of 4 bits: groups of inputs share an fp16 scale, by which the group's largest magnitude is 7. Rounded to nearest, or one input
//! after another with each rounding's error made good by the weights that follow (GPTQ: Frantar et al. 2022, after Hassibi & Stork 1993).
//!
//! GPTQ minimises `|X w - X q|^2 + damping |w - q|^2` over q, with X the activations seen in calibration. With `H = X^T X + damping` and
//! `H = U U^T`, U upper triangular, the best place for weight i after weights before it were rounded with errors e is
//! `w_i + sum_j (U_ji / U_ii) e_j`: the rows of the paper's Cholesky factor of `H^-1`, without an inverse. Where X has fewer rows than
//! columns the same numbers come from a matrix of X's rows (`by_rows`), which is smaller.

use super::Tensor;
use half::f16;

/// Largest magnitude on the grid; -8 is left out, so that it is symmetric.
const MOST: f32 = 7.0;

/// Damping as a share of the mean of H's diagonal (Frantar et al. 2022).
const DAMPING: f64 = 0.01;

/// A weight `[K, N]` on its grid.
pub(super) struct Grid {
    /// `[K, N]`, whole numbers in -7..=7.
    pub numbers: Vec<i8>,
    /// `[ceil(K / group), N]`, exact in fp16.
    pub scales: Vec<f32>,
}

impl Grid {
    /// Scales for `weight`, nothing rounded yet.
    fn scales_of(weight: &Tensor, group: usize) -> Vec<f32> {
        let (k, n) = (weight.shape[0], weight.shape[1]);
        let mut scales = vec![0.0f32; k.div_ceil(group) * n];
        for (at, v) in weight.data.iter().enumerate() {
            let scale = &mut scales[at / n / group * n + at % n];
            *scale = scale.max(v.abs() / MOST);
        }
        for scale in &mut scales {
            *scale = f16::from_f32(*scale).to_f32();
            // Zeros, or less than fp16 can say: all of them become zero.
            if *scale == 0.0 {
                *scale = 1.0;
            }
        }
        scales
    }

    /// Every weight at its nearest place.
    pub fn nearest(weight: &Tensor, group: usize) -> Grid {
        let n = weight.shape[1];
        let scales = Grid::scales_of(weight, group);
        let numbers = weight.data.iter().enumerate().map(|(at, v)| place(*v, scales[at / n / group * n + at % n])).collect();
        Grid { numbers, scales }
    }

    /// Places that lose least on `rows` `[R, K]` of activations. Inputs of most energy come first, while there are most weights left to make
    /// their errors good; scales are those of `nearest`, so that groups stay where they are.
    pub fn least_error(weight: &Tensor, group: usize, rows: &[f32]) -> Grid {
        let (k, n) = (weight.shape[0], weight.shape[1]);
        let scales = Grid::scales_of(weight, group);
        let count = rows.len() / k;
        let mut energy = vec![0.0f64; k];
        for row in rows.chunks_exact(k) {
            energy.iter_mut().zip(row).for_each(|(e, x)| *e += f64::from(*x).powi(2));
        }
        let damping = (DAMPING * energy.iter().sum::<f64>() / k as f64).max(1e-12);
        let mut order: Vec<usize> = (0..k).collect();
        order.sort_by(|a, b| energy[*b].total_cmp(&energy[*a]));
        // x[r * k + i]: activations in the order in which weights are placed.
        let x: Vec<f32> = rows.chunks_exact(k).flat_map(|row| order.iter().map(|i| row[*i])).collect();
        let mut numbers = vec![0i8; k * n];
        let mut write = |i: usize, shift: &[f64]| -> Vec<f64> {
            let (input, mut errors) = (order[i], Vec::with_capacity(shift.len()));
            for (j, shift) in shift.iter().enumerate() {
                let (w, scale) = (weight.data[input * n + j], scales[input / group * n + j]);
                // What pruning has made zero stays zero.
                let q = if w == 0.0 { 0 } else { place((f64::from(w) + shift) as f32, scale) };
                numbers[input * n + j] = q;
                errors.push(f64::from(w) - f64::from(q) * f64::from(scale));
            }
            errors
        };
        if count >= k {
            by_columns(&x, k, damping, n, &mut write);
        } else {
            by_rows(&x, k, damping, n, &mut write);
        }
        Grid { numbers, scales }
    }

    /// Two numbers a byte, the low half the earlier input: `[ceil(K / 2), N]` as a tensor of whole floats.
    pub fn packed(&self, n: usize) -> Vec<f32> {
        let half = |row: usize, j: usize| self.numbers.get(row * n + j).map_or(0, |q| *q as u8 & 15);
        let k = self.numbers.len() / n;
        (0..k.div_ceil(2) * n).map(|at| f32::from((half(at / n * 2, at % n) | half(at / n * 2 + 1, at % n) << 4) as i8)).collect()
    }
}

fn place(v: f32, scale: f32) -> i8 {
    (v / scale).round_ties_even().clamp(-MOST, MOST) as i8
}

/// Calls `write(i, shifts)` for every input in order; it answers with the errors that it made, of each of `width` columns.
fn by_columns(x: &[f32], k: usize, damping: f64, width: usize, write: &mut impl FnMut(usize, &[f64]) -> Vec<f64>) {
    let u = upper_factor(x, k, damping);
    let mut errors: Vec<Vec<f64>> = Vec::with_capacity(k);
    for i in 0..k {
        let mut shift = vec![0.0; width];
        for (j, error) in errors.iter().enumerate() {
            let share = u[j * k + i] / u[i * k + i];
            shift.iter_mut().zip(error).for_each(|(s, e)| *s += share * e);
        }
        errors.push(write(i, &shift));
    }
}

/// U, upper triangular, with `U U^T = X^T X + damping`: Cholesky's algorithm from the last column to the first.
fn upper_factor(x: &[f32], k: usize, damping: f64) -> Vec<f64> {
    let mut u = vec![0.0f64; k * k];
    for row in x.chunks_exact(k) {
        for (h, x) in u.chunks_exact_mut(k).zip(row).filter(|(_, x)| **x != 0.0) {
            h.iter_mut().zip(row).for_each(|(h, v)| *h += f64::from(*x) * f64::from(*v));
        }
    }
    for i in 0..k {
        u[i * k + i] += damping;
    }
    for j in (0..k).rev() {
        // Damping keeps it above zero; rounding may not.
        let pivot = u[j * k + j].max(damping * 1e-3).sqrt();
        let column: Vec<f64> = (0..j).map(|i| u[i * k + j] / pivot).collect();
        for (i, scale) in column.iter().enumerate() {
            u[i * k + j] = *scale;
            u[i * k..i * k + i + 1].iter_mut().zip(&column).for_each(|(h, c)| *h -= scale * c);
        }
        u[j * k + j] = pivot;
        // Only the lower half of what is left was brought up to date: mirror the column that is read next.
        if j > 0 {
            for i in 0..j - 1 {
                u[i * k + j - 1] = u[(j - 1) * k + i];
            }
        }
        for i in 0..j {
            u[j * k + i] = 0.0;
        }
    }
    u
}

/// The same where X has R < K rows. With `A_i = (1 + sum over j > i of x_j x_j^T / damping)^-1`, which takes out of an error in the
/// outputs all that weights behind i can make good, weight i shifts by `x_i A_i r / (x_i A_i x_i + damping)` for the error r so far.
fn by_rows(x: &[f32], k: usize, damping: f64, width: usize, write: &mut impl FnMut(usize, &[f64]) -> Vec<f64>) {
    let r = x.len() / k;
    let column = |i: usize| (0..r).map(|row| f64::from(x[row * k + i])).collect::<Vec<f64>>();
    // Rows of A_i x_i, and their denominators; A grows from the last input to the first (Sherman & Morrison).
    let mut reach = vec![0.0f32; k * r];
    let mut below = vec![0.0f64; k];
    let mut a = vec![0.0f64; r * r];
    (0..r).for_each(|d| a[d * r + d] = 1.0);
    for i in (0..k).rev() {
        let xi = column(i);
        let mut v = vec![0.0f64; r];
        // A is symmetric: rows will do for columns.
        for (row, scale) in a.chunks_exact(r).zip(&xi).filter(|(_, scale)| **scale != 0.0) {
            v.iter_mut().zip(row).for_each(|(v, a)| *v += scale * a);
        }
        below[i] = v.iter().zip(&xi).map(|(v, x)| v * x).sum::<f64>() + damping;
        reach[i * r..(i + 1) * r].iter_mut().zip(&v).for_each(|(to, v)| *to = *v as f32);
        for (row, v_row) in a.chunks_exact_mut(r).zip(&v).filter(|(_, v)| **v != 0.0) {
            let scale = v_row / below[i];
            row.iter_mut().zip(&v).for_each(|(a, v)| *a -= scale * v);
        }
    }
    // The error in every output, row by row of `width`.
    let mut residual = vec![0.0f64; r * width];
    for i in 0..k {
        let mut shift = vec![0.0f64; width];
        for (errors, v) in residual.chunks_exact(width).zip(&reach[i * r..(i + 1) * r]).filter(|(_, v)| **v != 0.0) {
            let share = f64::from(*v) / below[i];
            shift.iter_mut().zip(errors).for_each(|(s, e)| *s += share * e);
        }
        let errors = write(i, &shift);
        for (to, xi) in residual.chunks_exact_mut(width).zip(column(i)).filter(|(_, xi)| *xi != 0.0) {
            to.iter_mut().zip(&errors).for_each(|(to, e)| *to += xi * e);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in (-1, 1) without a pattern that matters.
    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// Rows whose columns lean on each other, as activations do.
    fn rows(count: usize, k: usize) -> Vec<f32> {
        let (mixing, free) = (numbers(4 * k, 3), numbers(count * (k + 4), 5));
        (0..count * k)
            .map(|at| {
                let (row, i) = (&free[at / k * (k + 4)..], at % k);
                (0..4).map(|f| row[f] * mixing[f * k + i]).sum::<f32>() + 0.2 * row[4 + i]
            })
            .collect()
    }

    fn error(weight: &Tensor, grid: &Grid, group: usize, x: &[f32]) -> f64 {
        let (k, n) = (weight.shape[0], weight.shape[1]);
        let gap =
            |i: usize, j: usize| weight.data[i * n + j] - f32::from(grid.numbers[i * n + j]) * grid.scales[i / group * n + j];
        let of = |row: &[f32], j: usize| (0..k).map(|i| f64::from(row[i] * gap(i, j))).sum::<f64>().powi(2);
        x.chunks_exact(k).map(|row| (0..n).map(|j| of(row, j)).sum::<f64>()).sum()
    }

    fn weight(k: usize, n: usize) -> Tensor {
        Tensor { name: "w".into(), shape: vec![k, n], data: numbers(k * n, 9) }
    }

    #[test]
    fn nearest_is_within_half_a_step_and_uses_each_groups_grid() {
        let weight = weight(70, 5);
        let grid = Grid::nearest(&weight, 32);
        assert_eq!(grid.scales.len(), 3 * 5);
        for (at, v) in weight.data.iter().enumerate() {
            let scale = grid.scales[at / 5 / 32 * 5 + at % 5];
            assert!((f32::from(grid.numbers[at]) * scale - v).abs() <= scale * 0.51, "{at}");
            assert_eq!(f16::from_f32(scale).to_f32(), scale);
        }
        let widest = grid.numbers[..32 * 5].iter().map(|q| q.abs()).max();
        assert_eq!(widest, Some(7));
    }

    #[test]
    fn least_error_beats_nearest_on_rows_it_saw_and_on_others_by_columns_and_by_rows() {
        let (k, n, group) = (96, 12, 32);
        let (weight, all) = (weight(k, n), rows(900, k));
        let nearest = Grid::nearest(&weight, group);
        for seen in [600, 40] {
            let (x, fresh) = (&all[..seen * k], &all[600 * k..]);
            let grid = Grid::least_error(&weight, group, x);
            assert_eq!(grid.scales, nearest.scales);
            let (ours, plain) = (error(&weight, &grid, group, x), error(&weight, &nearest, group, x));
            assert!(ours < 0.5 * plain, "{seen} rows: {ours} against {plain}");
            let (ours, plain) = (error(&weight, &grid, group, fresh), error(&weight, &nearest, group, fresh));
            assert!(ours < plain, "{seen} rows, others: {ours} against {plain}");
        }
    }

    type Write<'a> = dyn FnMut(usize, &[f64]) -> Vec<f64> + 'a;

    #[test]
    fn both_ways_make_the_same_choices_and_those_of_the_definition() {
        let (k, width, damping) = (7, 3, 0.05);
        let x = rows(5, k);
        let w: Vec<f64> = numbers(k * width, 21).into_iter().map(f64::from).collect();
        let run = |solve: &dyn Fn(&mut Write)| {
            let mut shifts = Vec::new();
            solve(&mut |i, shift| {
                shifts.extend_from_slice(shift);
                // Rounded to whole numbers.
                (0..width).map(|j| w[i * width + j] - (w[i * width + j] + shift[j]).round()).collect()
            });
            shifts
        };
        let columns = run(&|write| by_columns(&x, k, damping, width, &mut |i, s| write(i, s)));
        let rows = run(&|write| by_rows(&x, k, damping, width, &mut |i, s| write(i, s)));
        for (a, b) in columns.iter().zip(&rows) {
            assert!((a - b).abs() < 1e-5, "{columns:?} {rows:?}");
        }
        // The definition: with errors so far fixed, the error of weight i that, together with the best ones behind it, costs least.
        let h: Vec<f64> = (0..k * k)
            .map(|at| {
                let dot: f64 = x.chunks_exact(k).map(|row| f64::from(row[at / k]) * f64::from(row[at % k])).sum();
                dot + if at / k == at % k { damping } else { 0.0 }
            })
            .collect();
        let mut errors = vec![0.0; k];
        for i in 0..k {
            // Gauss-Seidel on the free errors i.. of the quadratic form; it is positive definite.
            let mut free = errors.clone();
            for _ in 0..20_000 {
                for a in i..k {
                    let others: f64 = (0..k).filter(|b| *b != a).map(|b| h[a * k + b] * free[b]).sum();
                    free[a] = -others / h[a * k + a];
                }
            }
            let shift = columns[i * width];
            assert!((free[i] + shift).abs() < 1e-4, "{i}: {} against {shift}", -free[i]);
            errors[i] = w[i * width] - (w[i * width] + shift).round();
        }
    }

    #[test]
    fn zeros_stay_zero_and_bytes_hold_two_numbers() {
        let mut weight = weight(33, 4);
        weight.data.iter_mut().step_by(3).for_each(|v| *v = 0.0);
        let grid = Grid::least_error(&weight, 32, &rows(10, 33));
        assert!(grid.numbers.iter().step_by(3).all(|q| *q == 0));
        let bytes = grid.packed(4);
        assert_eq!(bytes.len(), 17 * 4);
        for (at, q) in grid.numbers.iter().enumerate() {
            let byte = bytes[at / 4 / 2 * 4 + at % 4] as i8;
            assert_eq!(if (at / 4).is_multiple_of(2) { byte << 4 >> 4 } else { byte >> 4 }, *q);
        }
    }
}
