//! Random changes of training images: one affine map and one bilinear resampling, whatever changes are asked for.

use crate::{stats::Generator, vocab::Augmentation};

/// Largest rotation either way, degrees.
const LARGEST_DEGREES: f64 = 10.0;

/// Scale factors, smallest and largest.
const SCALES: [f64; 2] = [0.9, 1.1];

/// Changes images of one shape.
#[derive(Clone, Debug)]
pub struct Augmenter {
    flip: bool,
    rotate: bool,
    scale: bool,
    shape: [usize; 3],
}

impl Augmenter {
    /// For images `[H, W, C]`.
    pub fn new(kinds: &[Augmentation], shape: [usize; 3]) -> Augmenter {
        let has = |kind| kinds.contains(&kind);
        Augmenter { flip: has(Augmentation::Flip), rotate: has(Augmentation::Rotate), scale: has(Augmentation::Scale), shape }
    }

    /// True when images stay as they are.
    pub fn is_identity(&self) -> bool {
        !(self.flip || self.rotate || self.scale)
    }

    /// Writes the changed `image` to `out`, both `[H, W, C]`. The draw depends on seed, epoch and row alone.
    pub fn apply(&self, image: &[f32], seed: u64, epoch: u64, row: u32, out: &mut [f32]) {
        let mut generator = Generator::new(seed ^ Generator::new(epoch << 32 | u64::from(row)).next_u64());
        // All three are drawn always: a row's rotation does not depend on whether flips are asked for.
        let (mirror, turn, size) = (generator.next_u64() & 1 == 1, generator.unit(), generator.unit());
        let mirror = self.flip && mirror;
        let degrees = if self.rotate { (2.0 * turn - 1.0) * LARGEST_DEGREES } else { 0.0 };
        let scale = if self.scale { SCALES[0] + size * (SCALES[1] - SCALES[0]) } else { 1.0 };
        if degrees == 0.0 && scale == 1.0 {
            self.copy(image, mirror, out);
        } else {
            self.resample(image, mirror, degrees.to_radians(), scale, out);
        }
    }

    fn copy(&self, image: &[f32], mirror: bool, out: &mut [f32]) {
        let [_, width, channels] = self.shape;
        if !mirror {
            return out.copy_from_slice(image);
        }
        for (from, to) in image.chunks_exact(width * channels).zip(out.chunks_exact_mut(width * channels)) {
            for (from, to) in from.chunks_exact(channels).rev().zip(to.chunks_exact_mut(channels)) {
                to.copy_from_slice(from);
            }
        }
    }

    /// Looks up, for every pixel of the result, where it came from; outside the image all is 0.
    fn resample(&self, image: &[f32], mirror: bool, angle: f64, scale: f64, out: &mut [f32]) {
        let [height, width, channels] = self.shape;
        let centre = [(height as f32 - 1.0) / 2.0, (width as f32 - 1.0) / 2.0];
        let (sin, cos) = ((angle.sin() / scale) as f32, (angle.cos() / scale) as f32);
        let pixel = |y: i32, x: i32, c: usize| -> f32 {
            let inside = y >= 0 && x >= 0 && y < height as i32 && x < width as i32;
            if inside { image[(y as usize * width + x as usize) * channels + c] } else { 0.0 }
        };
        for (row, line) in out.chunks_exact_mut(width * channels).enumerate() {
            let dy = row as f32 - centre[0];
            for (column, to) in line.chunks_exact_mut(channels).enumerate() {
                let dx = column as f32 - centre[1];
                let dx = if mirror { -dx } else { dx };
                let (y, x) = (centre[0] + cos * dy - sin * dx, centre[1] + sin * dy + cos * dx);
                let (y0, x0) = (y.floor(), x.floor());
                let (fy, fx) = (y - y0, x - x0);
                let (y0, x0) = (y0 as i32, x0 as i32);
                let mix =
                    |a: f32, b: f32, c: f32, d: f32| (a * (1.0 - fx) + b * fx) * (1.0 - fy) + (c * (1.0 - fx) + d * fx) * fy;
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A disc in the middle of a 16 x 16 image, two channels.
    fn disc() -> Vec<f32> {
        let inside = |at: usize| (at / 16) as f64 - 7.5;
        (0..256)
            .flat_map(|k| {
                let (y, x) = (inside(k), (k % 16) as f64 - 7.5);
                let v = if y * y + x * x < 25.0 { 1.0 } else { 0.0 };
                [v, v / 2.0]
            })
            .collect()
    }

    const SHAPE: [usize; 3] = [16, 16, 2];

    #[test]
    fn a_mirror_twice_is_the_image_and_nothing_asked_changes_nothing() {
        let image: Vec<f32> = (0..512).map(|v| v as f32).collect();
        let augmenter = Augmenter::new(&[Augmentation::Flip], SHAPE);
        let (mut once, mut twice) = (vec![0.0; 512], vec![0.0; 512]);
        let mirrored = (0..50).find(|row| {
            augmenter.apply(&image, 1, 0, *row, &mut once);
            once != image
        });
        augmenter.apply(&once, 1, 0, mirrored.unwrap(), &mut twice);
        assert_eq!((twice, once[0]), (image.clone(), image[30]));
        let mut same = vec![0.0; 512];
        let none = Augmenter::new(&[], SHAPE);
        none.apply(&image, 1, 0, 3, &mut same);
        assert!(none.is_identity() && same == image);
    }

    proptest! {
        #[test]
        fn a_disc_stays_a_disc(seed: u64, epoch in 0u64..100, row in 0u32..10_000) {
            let image = disc();
            let (mut out, mut again) = (vec![0.0; 512], vec![0.0; 512]);
            let augmenter = Augmenter::new(&[Augmentation::Rotate, Augmentation::Flip], SHAPE);
            augmenter.apply(&image, seed, epoch, row, &mut out);
            augmenter.apply(&image, seed, epoch, row, &mut again);
            prop_assert_eq!(&out, &again);
            prop_assert!(out.iter().all(|v| (0.0..=1.0 + 1e-6).contains(v)));
            let (before, after): (f32, f32) = (image.iter().sum(), out.iter().sum());
            prop_assert!((before - after).abs() < 0.03 * before, "{} became {}", before, after);
            let scaled = Augmenter::new(&[Augmentation::Scale], SHAPE);
            scaled.apply(&image, seed, epoch, row, &mut out);
            let after: f32 = out.iter().sum();
            prop_assert!((0.75..1.28).contains(&(after / before)), "{} became {}", before, after);
        }
    }
}
