//! Images resampled by an affine map each: rotated, scaled, mirrored.

use super::pool::{Context, Shares};

/// Images y `[B, H, W, C]` from x of the same shape: the pixel at (dy, dx) from the middle of y is what lies in x at
/// (m0 dy + m1 dx + m2, m3 dy + m4 dx + m5), between four pixels; outside the image all is 0. `maps` is `[B, 6]`.
pub fn warp(ctx: &Context, [batch, height, width, channels]: [usize; 4], x: &[f32], maps: &[f32], y: &mut [f32]) {
    let size = height * width * channels;
    assert!(x.len() >= batch * size && y.len() >= batch * size && maps.len() >= 6 * batch, "warp: operands are too short");
    let y = Shares::new(y);
    ctx.split(batch, 4096 / size.max(1) + 1, 1, |_, range| {
        for image in range {
            // SAFETY: sizes checked; one image a step.
            let out = unsafe { y.part(image * size..(image + 1) * size) };
            let map = maps[6 * image..][..6].try_into().expect("six numbers");
            one(&x[image * size..][..size], map, [height, width, channels], out);
        }
    });
}

fn one(image: &[f32], m: [f32; 6], [height, width, channels]: [usize; 3], out: &mut [f32]) {
    let middle = [(height as f32 - 1.0) / 2.0, (width as f32 - 1.0) / 2.0];
    let pixel = |y: i32, x: i32, c: usize| -> f32 {
        let inside = y >= 0 && x >= 0 && y < height as i32 && x < width as i32;
        if inside { image[(y as usize * width + x as usize) * channels + c] } else { 0.0 }
    };
    for (row, line) in out.chunks_exact_mut(width * channels).enumerate() {
        let dy = row as f32 - middle[0];
        for (column, to) in line.chunks_exact_mut(channels).enumerate() {
            let dx = column as f32 - middle[1];
            let (y, x) = (m[2] + m[0] * dy + m[1] * dx, m[5] + m[3] * dy + m[4] * dx);
            let (y0, x0) = (y.floor(), x.floor());
            let (fy, fx) = (y - y0, x - x0);
            let (y0, x0) = (y0 as i32, x0 as i32);
            let mix = |a: f32, b: f32, c: f32, d: f32| (a * (1.0 - fx) + b * fx) * (1.0 - fy) + (c * (1.0 - fx) + d * fx) * fy;
            // Away from the border no neighbour needs a look at where it lies.
            let inner = y0 >= 0 && x0 >= 0 && y0 + 1 < height as i32 && x0 + 1 < width as i32;
            if inner {
                let at = (y0 as usize * width + x0 as usize) * channels;
                let (top, bottom) = (&image[at..at + 2 * channels], &image[at + width * channels..][..2 * channels]);
                for (c, to) in to.iter_mut().enumerate() {
                    *to = mix(top[c], top[c + channels], bottom[c], bottom[c + channels]);
                }
            } else {
                for (c, to) in to.iter_mut().enumerate() {
                    *to = mix(pixel(y0, x0, c), pixel(y0, x0 + 1, c), pixel(y0 + 1, x0, c), pixel(y0 + 1, x0 + 1, c));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_is_exact_and_a_quarter_turn_moves_whole_pixels() {
        let image: Vec<f32> = (0..2 * 4 * 4 * 3).map(|v| v as f32).collect();
        let mut out = vec![f32::NAN; image.len()];
        // The first is mirrored, the second turned: its pixel (row, column) comes from (column, 3 - row).
        let maps = [1.0, 0.0, 1.5, 0.0, -1.0, 1.5, 0.0, 1.0, 1.5, -1.0, 0.0, 1.5];
        warp(&Context::new(2), [2, 4, 4, 3], &image, &maps, &mut out);
        for (at, got) in out.iter().enumerate() {
            let (row, column, channel) = (at / 12 % 4, at / 3 % 4, at % 3);
            let from = if at < 48 { [row, 3 - column] } else { [column, 3 - row] };
            assert_eq!(*got, image[at / 48 * 48 + (from[0] * 4 + from[1]) * 3 + channel], "{at}");
        }
    }
}
