//! What calibration saw of the activations that enter products, and the ranges it makes of that: the largest magnitude, a percentile, or
//! the range that loses least information (Migacz 2017, "8-bit inference with TensorRT"; Wu et al. 2020, "Integer quantization for deep
//! learning inference").

use super::StrategyError;
use crate::{
    graph::Window,
    vocab::{Range, Rounding},
};
use std::fmt;

/// Bins of a histogram of magnitudes. Migacz takes as many.
const BINS: usize = 2048;

/// Magnitudes of an 8-bit grid, zero among them: the fewest bins that a range may keep.
const LEVELS: usize = 128;

/// What an empty bin counts as where clamped values fall into it: a divergence from nothing would be infinite, and a range that ends in an
/// empty bin could never be chosen.
const HARDLY: f64 = 1e-4;

/// (sqrt(5) - 1) / 2
const GOLDEN: f64 = 0.618_033_988_749_895;

/// What is known of the activations that enter each product, by the name of its weight, and what follows from it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calibration {
    layers: Vec<(String, Histogram)>,
    /// Rows of activations, where they are kept: at most so many of a batch.
    kept: usize,
    rows: Vec<(String, Vec<f32>)>,
    /// Steps of grids that training has used.
    trained: Vec<(String, f64)>,
    /// For `Quantization::Mixed`: what each layer becomes.
    pub choices: Vec<(String, LayerFormat)>,
    /// What a reader of the result should know of the choices.
    pub notes: Vec<String>,
}

/// What a product computes with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LayerFormat {
    Fp32,
    /// Static 8-bit.
    Int8(Range),
    /// 8-bit with activations quantised at run time.
    Int8Dynamic,
    /// 4-bit weights.
    Int4 {
        group: usize,
        rounding: Rounding,
    },
}

impl fmt::Display for LayerFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LayerFormat::Fp32 => "fp32",
            LayerFormat::Int8(_) => "int8",
            LayerFormat::Int8Dynamic => "int8-dynamic",
            LayerFormat::Int4 { .. } => "int4",
        })
    }
}

impl Calibration {
    /// One that also keeps up to `each_batch` rows of every batch, for weights that are placed by what they do to activations.
    pub fn keeping_rows(each_batch: usize) -> Calibration {
        Calibration { kept: each_batch, ..Calibration::default() }
    }

    /// Steps of 8-bit grids as training has used them: nothing is observed.
    pub fn trained(scales: Vec<(String, f64)>) -> Calibration {
        Calibration { trained: scales, ..Calibration::default() }
    }

    /// Takes the activations `[.., width]` that one batch sent into the product with `weight`.
    pub fn observe(&mut self, weight: &str, width: usize, activations: &[f32]) {
        let at = self.count(weight, activations);
        let count = activations.len() / width;
        let kept = count.min(self.kept);
        // Evenly spread over the batch.
        let rows = (0..kept).map(|k| k * count / kept);
        self.rows[at].1.extend(rows.flat_map(|row| &activations[row * width..(row + 1) * width]));
    }

    /// The same of images `[B, H, W, C]` into a convolution: its rows are what the window sees, `[KH KW C]`, zeros where it hangs over.
    pub fn observe_images(&mut self, weight: &str, window: &Window, [b, h, w, c]: [usize; 4], images: &[f32]) {
        let at = self.count(weight, images);
        let [rows, columns] = window.output([h, w]).unwrap_or_default();
        let count = b * rows * columns;
        for k in 0..count.min(self.kept) {
            // Multiples of the golden ratio lie evenly, and unlike even steps they do not meet the same column of every image.
            let place = ((k as f64 * GOLDEN).fract() * count as f64) as usize;
            let (image, row, column) = (place / columns / rows, place / columns % rows, place % columns);
            for tap in 0..window.size[0] * window.size[1] {
                let (below, right) = (tap / window.size[1], tap % window.size[1]);
                let y = (row * window.stride[0] + below).checked_sub(window.padding[0]).filter(|y| *y < h);
                let x = (column * window.stride[1] + right).checked_sub(window.padding[1]).filter(|x| *x < w);
                let kept = &mut self.rows[at].1;
                match y.zip(x) {
                    Some((y, x)) => kept.extend_from_slice(&images[((image * h + y) * w + x) * c..][..c]),
                    None => kept.extend(std::iter::repeat_n(0.0, c)),
                }
            }
        }
    }

    /// Adds to the histogram of what enters the product with `weight`; its place.
    fn count(&mut self, weight: &str, activations: &[f32]) -> usize {
        let at = self.layers.iter().position(|(name, _)| name == weight).unwrap_or_else(|| {
            self.layers.push((weight.to_string(), Histogram::default()));
            self.rows.push((weight.to_string(), Vec::new()));
            self.layers.len() - 1
        });
        self.layers[at].1.add(activations);
        at
    }

    /// The largest magnitude that entered the product with `weight`, where it was observed.
    pub(super) fn largest(&self, weight: &str) -> Option<f32> {
        self.layers.iter().find(|(name, _)| name == weight).map(|(_, histogram)| histogram.largest)
    }

    /// Rows of what entered the product with `weight`.
    pub(super) fn rows(&self, weight: &str) -> Result<&[f32], StrategyError> {
        let found = self.rows.iter().find(|(name, rows)| name == weight && !rows.is_empty());
        found.map(|(_, rows)| rows.as_slice()).ok_or_else(|| StrategyError::NotCalibrated { weight: weight.to_string() })
    }

    /// What was chosen for the product with `weight`.
    pub(super) fn choice(&self, weight: &str) -> Result<LayerFormat, StrategyError> {
        let found = self.choices.iter().find(|(name, _)| name == weight);
        found.map(|(_, format)| *format).ok_or_else(|| StrategyError::NotCalibrated { weight: weight.to_string() })
    }

    /// Size of one step of the 8-bit grid for the input of the product with `weight`.
    ///
    /// # Errors
    /// Where nothing was observed there.
    pub fn scale(&self, weight: &str, range: Range) -> Result<f64, StrategyError> {
        if let Some((_, scale)) = self.trained.iter().find(|(name, _)| name == weight) {
            return Ok(*scale);
        }
        let found = self.layers.iter().find(|(name, _)| name == weight);
        let (_, histogram) = found.ok_or_else(|| StrategyError::NotCalibrated { weight: weight.to_string() })?;
        let limit = histogram.range(range);
        // All zeros: any step will do.
        Ok(if limit > 0.0 { limit / 127.0 } else { 1.0 })
    }
}

/// Counts of magnitudes in equal bins from zero on.
#[derive(Clone, Debug, PartialEq)]
struct Histogram {
    largest: f32,
    /// Of a bin; zero until something other than zero was seen.
    width: f64,
    counts: Vec<u64>,
    /// Zeros seen before the width was known.
    zeros: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { largest: 0.0, width: 0.0, counts: vec![0; BINS], zeros: 0 }
    }
}

impl Histogram {
    fn add(&mut self, values: &[f32]) {
        let most = values.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        self.largest = self.largest.max(most);
        if self.width == 0.0 {
            if most == 0.0 {
                self.zeros += values.len() as u64;
                return;
            }
            self.width = f64::from(most) / BINS as f64;
            self.counts[0] += std::mem::take(&mut self.zeros);
        }
        // Twice the width: two bins become one, and nothing that was counted is lost.
        while f64::from(most) > self.width * BINS as f64 && most.is_finite() {
            for k in 0..BINS {
                self.counts[k] = if k < BINS / 2 { self.counts[2 * k] + self.counts[2 * k + 1] } else { 0 };
            }
            self.width *= 2.0;
        }
        for v in values {
            self.counts[((f64::from(v.abs()) / self.width) as usize).min(BINS - 1)] += 1;
        }
    }

    /// The magnitude that becomes 127.
    fn range(&self, range: Range) -> f64 {
        let largest = f64::from(self.largest);
        match range {
            Range::Largest => largest,
            Range::Percentile(percent) => {
                let all: u64 = self.counts.iter().sum();
                let below = percent / 100.0 * all as f64;
                let mut sum = 0;
                let bin = self.counts.iter().position(|count| {
                    sum += count;
                    sum as f64 >= below
                });
                bin.map_or(largest, |bin| ((bin + 1) as f64 * self.width).min(largest))
            }
            Range::Entropy => (self.least_divergence() as f64 * self.width).min(largest),
        }
    }

    /// Bins that are kept by the range whose quantised histogram is nearest to the real one.
    fn least_divergence(&self) -> usize {
        let mut counts: Vec<f64> = self.counts.iter().map(|count| *count as f64).collect();
        // Exact zeros, which a ReLU makes in masses, are exact on every grid: they must not outvote the rest.
        counts[0] = counts[1];
        let (mut best, mut least) = (BINS, f64::INFINITY);
        for kept in LEVELS..=BINS {
            let divergence = divergence(&counts, kept);
            if divergence < least {
                (best, least) = (kept, divergence);
            }
        }
        best
    }
}

/// KL divergence of the first `kept` bins, what lies behind them clamped into the last, from themselves on a grid of `LEVELS`.
fn divergence(counts: &[f64], kept: usize) -> f64 {
    let clamped: f64 = counts[kept..].iter().sum();
    let all: f64 = counts.iter().sum();
    let inside = all - clamped;
    if all == 0.0 || inside == 0.0 {
        return f64::INFINITY;
    }
    let mut sum = 0.0;
    for level in 0..LEVELS {
        let bins = level * kept / LEVELS..(level + 1) * kept / LEVELS;
        // A level stands for all its bins alike that hold anything.
        let filled = counts[bins.clone()].iter().filter(|count| **count > 0.0).count();
        let mean = counts[bins.clone()].iter().sum::<f64>() / filled.max(1) as f64;
        for bin in bins {
            let real = counts[bin] + if bin + 1 == kept { clamped } else { 0.0 };
            if real > 0.0 {
                let quantised = if counts[bin] > 0.0 { mean } else { HARDLY };
                sum += real / all * ((real / all) / (quantised / inside)).ln();
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(batches: &[&[f32]], range: Range) -> f64 {
        let mut calibration = Calibration::default();
        batches.iter().for_each(|batch| calibration.observe("w", 1, batch));
        calibration.scale("w", range).unwrap() * 127.0
    }

    fn normal(count: usize) -> Vec<f32> {
        // Box & Muller 1958, from evenly spread numbers.
        let angle = |k: usize| std::f64::consts::TAU * (k as f64 * 0.618_033_988_749_895).fract();
        let length = |k: usize| (-2.0 * ((k as f64 + 0.5) / count as f64).ln()).sqrt();
        (0..count).map(|k| (length(k) * angle(k).cos()) as f32).collect()
    }

    #[test]
    fn a_percentile_leaves_its_share_outside_whatever_the_order_of_batches() {
        let values: Vec<f32> = (1..=10_000).map(|k| if k % 2 == 0 { k as f32 } else { -(k as f32) }).collect();
        let (low, high) = values.split_at(300);
        for batches in [vec![low, high], vec![high, low], vec![&[0.0; 5][..], low, high]] {
            for (percent, expected) in [(99.0, 9_900.0), (99.9, 9_990.0), (60.0, 6_000.0)] {
                let got = range(&batches, Range::Percentile(percent));
                // A bin is at most twice 10,000 / 2,048 wide once batches have made it wider.
                assert!((got - expected).abs() <= 10.0, "{percent}: {got}");
            }
            assert_eq!(range(&batches, Range::Largest), 10_000.0);
        }
    }

    #[test]
    fn entropy_clips_one_outlier_and_keeps_a_flat_distribution_whole() {
        let mut values = normal(200_000);
        values.push(60.0);
        let clipped = range(&[&values], Range::Entropy);
        assert!((2.5..8.0).contains(&clipped), "{clipped}");
        let flat: Vec<f32> = (0..200_000).map(|k| k as f32 / 200_000.0).collect();
        let whole = range(&[&flat], Range::Entropy);
        assert!(whole > 0.95, "{whole}");
        // The zeros of a ReLU change nothing.
        let half: Vec<f32> = values.iter().map(|v| v.max(0.0)).collect();
        let rectified = range(&[&half], Range::Entropy);
        assert!((2.5..8.0).contains(&rectified), "{rectified}");
    }

    #[test]
    fn the_error_of_clipped_ranges_is_below_that_of_the_largest_where_an_outlier_is_far() {
        let mut values = normal(100_000);
        values.push(200.0);
        let error = |how: Range| {
            let scale = range(&[&values], how) / 127.0;
            let q = |v: f64| (v / scale).round_ties_even().clamp(-127.0, 127.0) * scale;
            values[..100_000].iter().map(|v| (q(f64::from(*v)) - f64::from(*v)).powi(2)).sum::<f64>()
        };
        let largest = error(Range::Largest);
        for how in [Range::Percentile(99.99), Range::Percentile(99.9), Range::Entropy] {
            assert!(error(how) < largest / 10.0, "{how:?}: {} against {largest}", error(how));
        }
    }

    #[test]
    fn rows_of_a_convolution_are_what_its_window_sees() {
        // A number for each place and channel of two images of 4 x 3.
        let (shape, window) = ([2, 4, 3, 2], Window { size: [3, 2], stride: [2, 1], padding: [1, 1] });
        let images: Vec<f32> = (1..=48).map(|v| v as f32).collect();
        let at = |image: usize, y: isize, x: isize, c: usize| {
            let inside = (0..4).contains(&y) && (0..3).contains(&x);
            if inside { images[((image * 4 + y as usize) * 3 + x as usize) * 2 + c] } else { 0.0 }
        };
        // [2, 2, 4] places of the window.
        let mut expected: Vec<Vec<f32>> = Vec::new();
        for place in 0..16 {
            let (image, top, left) = (place / 8, place / 4 % 2 * 2, place % 4);
            let of =
                |tap: usize| at(image, top as isize - 1 + tap as isize / 4, left as isize - 1 + tap as isize / 2 % 2, tap % 2);
            expected.push((0..12).map(of).collect());
        }
        let mut all = Calibration::keeping_rows(1000);
        all.observe_images("w", &window, shape, &images);
        let rows: Vec<Vec<f32>> = all.rows("w").unwrap().chunks(12).map(<[f32]>::to_vec).collect();
        assert_eq!(rows.len(), 16);
        assert!(rows.iter().all(|row| expected.contains(row)));
        // Few of many are of both images and of several rows and columns.
        let mut few = Calibration::keeping_rows(6);
        few.observe_images("w", &window, shape, &images);
        let rows: Vec<usize> =
            few.rows("w").unwrap().chunks(12).map(|row| expected.iter().position(|other| other == row).unwrap()).collect();
        for part in [|place: usize| place / 8, |place: usize| place / 4 % 2, |place: usize| place % 2] {
            assert!(rows.iter().any(|place| part(*place) == 0) && rows.iter().any(|place| part(*place) == 1), "{rows:?}");
        }
        assert_eq!(few.scale("w", Range::Largest).unwrap(), 48.0 / 127.0);
    }

    #[test]
    fn nothing_but_zeros_has_a_scale_and_what_was_not_seen_has_none() {
        for how in [Range::Largest, Range::Percentile(99.9), Range::Entropy] {
            assert_eq!(range(&[&[0.0; 4]], how), 127.0);
        }
        assert!(matches!(Calibration::default().scale("w", Range::Largest), Err(StrategyError::NotCalibrated { .. })));
    }
}
