//! Random changes of training images: one affine map, whatever changes are asked for. The program of a training step resamples by it.

use crate::{
    stats::Generator,
    vocab::{Augmentation, RowShape},
};

/// Largest rotation either way, degrees.
const LARGEST_DEGREES: f64 = 10.0;

/// Scale factors, smallest and largest.
const SCALES: [f64; 2] = [0.9, 1.1];

/// Draws the changes of images of one shape.
#[derive(Clone, Debug)]
pub struct Augmenter {
    flip: bool,
    rotate: bool,
    scale: bool,
    /// `[H, W]`
    extent: [usize; 2],
}

impl Augmenter {
    /// For images `[H, W, C]`.
    pub fn new(kinds: &[Augmentation], [height, width, _]: [usize; 3]) -> Augmenter {
        let has = |kind| kinds.contains(&kind);
        let extent = [height, width];
        Augmenter { flip: has(Augmentation::Flip), rotate: has(Augmentation::Rotate), scale: has(Augmentation::Scale), extent }
    }

    /// For rows of any kind; texts stay as they are, whatever is asked for.
    pub fn for_rows(kinds: &[Augmentation], row: RowShape) -> Augmenter {
        match row {
            RowShape::Image(shape) => Augmenter::new(kinds, shape),
            RowShape::Tokens { .. } => Augmenter::new(&[], [0; 3]),
        }
    }

    /// Where the pixels of a changed image come from, as `graph::Op::Warp` takes it. The draw depends on seed, epoch and row alone.
    pub fn map(&self, seed: u64, epoch: u64, row: u32) -> [f32; 6] {
        let mut generator = Generator::new(seed ^ Generator::new(epoch << 32 | u64::from(row)).next_u64());
        // All three are drawn always: a row's rotation does not depend on whether flips are asked for.
        let (mirror, turn, size) = (generator.next_u64() & 1 == 1, generator.unit(), generator.unit());
        let angle = if self.rotate { (2.0 * turn - 1.0) * LARGEST_DEGREES.to_radians() } else { 0.0 };
        let scale = if self.scale { SCALES[0] + size * (SCALES[1] - SCALES[0]) } else { 1.0 };
        let (sin, cos) = ((angle.sin() / scale) as f32, (angle.cos() / scale) as f32);
        let side = if self.flip && mirror { -1.0 } else { 1.0 };
        let [middle_y, middle_x] = self.extent.map(|extent| (extent as f32 - 1.0) / 2.0);
        [cos, -side * sin, middle_y, sin, side * cos, middle_x]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_asked_for_does_not_happen() {
        let map = |kinds: &[Augmentation], row| Augmenter::new(kinds, [16, 12, 1]).map(1, 0, row);
        for row in 0..50 {
            assert_eq!(map(&[], row), [1.0, 0.0, 7.5, 0.0, 1.0, 5.5]);
            let [a, b, _, c, d, _] = map(&[Augmentation::Flip], row);
            assert_eq!((a, b, c, d.abs()), (1.0, 0.0, 0.0, 1.0));
            let [a, b, _, c, d, _] = map(&[Augmentation::Rotate], row);
            // A rotation: of length 1, at right angles, by 10 degrees at most.
            assert!((a * a + b * b - 1.0).abs() < 1e-6 && (a, b) == (d, -c) && a >= 0.984, "{a} {b}");
            let [a, b, _, c, d, _] = map(&[Augmentation::Scale], row);
            assert!(b == 0.0 && c == 0.0 && a == d && (1.0 / 1.1 - 1e-6..=1.0 / 0.9 + 1e-6).contains(&a), "{a}");
        }
        assert!(
            (0..50).any(|row| map(&[Augmentation::Flip], row)[4] < 0.0)
                && (0..50).any(|row| map(&[Augmentation::Flip], row)[4] > 0.0)
        );
    }

    #[test]
    fn a_rows_turn_does_not_depend_on_what_else_is_asked_for_but_on_seed_and_epoch() {
        use Augmentation::{Flip, Rotate};
        let both = Augmenter::new(&[Rotate, Flip], [16, 16, 1]);
        let turned = Augmenter::new(&[Rotate], [16, 16, 1]);
        for row in 0..50 {
            assert_eq!(both.map(3, 1, row)[0], turned.map(3, 1, row)[0]);
            assert_eq!(both.map(3, 1, row), both.map(3, 1, row));
            assert!(both.map(3, 1, row) != both.map(4, 1, row) && both.map(3, 1, row) != both.map(3, 2, row));
        }
    }
}
