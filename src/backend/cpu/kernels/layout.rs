//! Moves: 2D transpose and general permutation of axes. Any plain type; f32-sized ones by 8 x 8 blocks.

use super::pool::{Context, Shares};
use super::simd::*;

/// y `[cols, rows]` = x `[rows, cols]` transposed.
pub fn transpose<T: Copy + Send + Sync>(ctx: &Context, rows: usize, cols: usize, x: &[T], y: &mut [T]) {
    let size = rows * cols;
    assert!(x.len() >= size && y.len() >= size, "transpose: a slice is too short for [{rows}, {cols}]");
    let (x, y) = (Shares::new_const(&x[..size]), Shares::new(&mut y[..size]));
    ctx.split(cols, 16 * 1024 / rows.max(1) + 1, 16, |_, range| {
        // SAFETY: both slices hold `size`; each thread writes its own rows of y.
        unsafe { turn(ctx.isa(), rows, range.len(), x.ptr().add(range.start), cols, y.ptr().add(range.start * rows), rows) }
    });
}

/// Transposes `rows x cols` of x (rows `x_row` apart) into y (rows `y_row` apart).
unsafe fn turn<T: Copy>(isa: Isa, rows: usize, cols: usize, x: *const T, x_row: usize, y: *mut T, y_row: usize) {
    // SAFETY: the caller's: both areas are valid for their strides.
    unsafe {
        if size_of::<T>() == 4 && align_of::<T>() == 4 {
            return simd!(isa, turn_f32, [](rows, cols, x.cast(), x_row, y.cast(), y_row));
        }
        // 32 x 32 blocks keep the strided side in the first cache.
        for i0 in (0..rows).step_by(32) {
            for j0 in (0..cols).step_by(32) {
                for j in j0..(j0 + 32).min(cols) {
                    for i in i0..(i0 + 32).min(rows) {
                        *y.add(j * y_row + i) = *x.add(i * x_row + j);
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn turn_f32<S: Simd>(rows: usize, cols: usize, x: *const f32, x_row: usize, y: *mut f32, y_row: usize) {
    unsafe {
        for i in (0..rows).step_by(8) {
            for j in (0..cols).step_by(8) {
                if i + 8 <= rows && j + 8 <= cols {
                    S::transpose8(x.add(i * x_row + j), x_row, y.add(j * y_row + i), y_row);
                } else {
                    for j in j..(j + 8).min(cols) {
                        for i in i..(i + 8).min(rows) {
                            // As bits: T may be any four bytes.
                            *y.add(j * y_row + i).cast::<u32>() = *x.add(i * x_row + j).cast::<u32>();
                        }
                    }
                }
            }
        }
    }
}

/// y = x with its axes reordered: axis i of y is axis `axes[i]` of x, whose shape is `shape` (at most 8 axes).
pub fn permute<T: Copy + Send + Sync>(ctx: &Context, shape: &[usize], axes: &[usize], x: &[T], y: &mut [T]) {
    let size: usize = shape.iter().product();
    let rank = shape.len();
    assert!(rank <= 8 && axes.len() == rank, "permute: {axes:?} does not fit {shape:?}");
    let mut seen = [false; 8];
    for &a in axes {
        assert!(a < rank && !seen[a], "permute: {axes:?} is no permutation");
        seen[a] = true;
    }
    assert!(x.len() >= size && y.len() >= size, "permute: a slice is too short for {shape:?}");
    if size == 0 {
        return;
    }
    // Axes that stay side by side count as one; ones of length 1 as none.
    let mut strides = [1usize; 8];
    for i in (0..rank.saturating_sub(1)).rev() {
        strides[i] = strides[i + 1] * shape[i + 1];
    }
    let (mut dims, mut steps, mut n) = ([1usize; 8], [0usize; 8], 0);
    for &a in axes {
        if shape[a] == 1 {
            continue;
        }
        if n > 0 && steps[n - 1] == strides[a] * shape[a] {
            dims[n - 1] *= shape[a];
            steps[n - 1] = strides[a];
        } else {
            (dims[n], steps[n]) = (shape[a], strides[a]);
            n += 1;
        }
    }
    if n == 0 || (n == 1 && steps[0] == 1) {
        y[..size].copy_from_slice(&x[..size]);
        return;
    }
    let last = dims[n - 1];
    // When the last axis of x ends up elsewhere, the two innermost axes of y that hold it are transposed as blocks.
    let inner = if steps[n - 1] == 1 { 1 } else { 2.min(n) };
    let block: usize = dims[n - inner..n].iter().product();
    let outer = size / block;
    let (x, y) = (Shares::new_const(&x[..size]), Shares::new(&mut y[..size]));
    ctx.split(outer, 16 * 1024 / block + 1, 1, |_, range| {
        for index in range {
            let (mut rest, mut from) = (index, 0);
            for d in (0..n - inner).rev() {
                from += rest % dims[d] * steps[d];
                rest /= dims[d];
            }
            // SAFETY: `from` plus the inner axes' steps index x's shape; each index writes its own block of y.
            unsafe {
                let (from, to) = (x.ptr().add(from).cast_const(), y.ptr().add(index * block));
                if inner == 1 {
                    std::ptr::copy_nonoverlapping(from, to, last);
                } else if steps[n - 2] == 1 {
                    turn(ctx.isa(), last, dims[n - 2], from, steps[n - 1], to, last);
                } else {
                    for i in 0..dims[n - 2] {
                        for j in 0..last {
                            *to.add(i * last + j) = *from.add(i * steps[n - 2] + j * steps[n - 1]);
                        }
                    }
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::check::{Random, contexts};
    use super::*;

    #[test]
    fn transposes_move_every_element() {
        for ctx in contexts() {
            for (rows, cols) in [(1, 1), (15, 17), (16, 16), (127, 33), (129, 300)] {
                let x: Vec<u32> = (0..rows * cols).map(|i| i as u32).collect();
                let mut y = vec![u32::MAX; x.len()];
                transpose(&ctx, rows, cols, &x, &mut y);
                let small: Vec<u8> = x.iter().map(|&v| v as u8).collect();
                let mut z = vec![0u8; x.len()];
                transpose(&ctx, rows, cols, &small, &mut z);
                for i in 0..rows {
                    for j in 0..cols {
                        assert_eq!(y[j * rows + i], x[i * cols + j]);
                        assert_eq!(z[j * rows + i], small[i * cols + j]);
                    }
                }
            }
        }
    }

    #[test]
    fn permutations_agree_with_the_definition() {
        for ctx in contexts() {
            let mut r = Random::new();
            for _ in 0..150 {
                let rank = 1 + r.below(5);
                let shape: Vec<usize> = (0..rank).map(|_| [1, 2, 3, 8, 9, 17][r.below(6)]).collect();
                let mut axes: Vec<usize> = (0..rank).collect();
                for i in 0..rank {
                    axes.swap(i, i + r.below(rank - i));
                }
                let size: usize = shape.iter().product();
                let x: Vec<f32> = (0..size).map(|i| i as f32).collect();
                let mut y = vec![f32::NAN; size];
                permute(&ctx, &shape, &axes, &x, &mut y);
                for (to, got) in y.iter().enumerate() {
                    let (mut rest, mut from) = (to, 0);
                    for &a in axes.iter().rev() {
                        from += rest % shape[a] * shape[a + 1..].iter().product::<usize>();
                        rest /= shape[a];
                    }
                    assert_eq!(*got, x[from], "{shape:?} {axes:?} at {to}, seed {}", r.seed);
                }
            }
        }
    }
}
