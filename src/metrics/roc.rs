//! Receiver operating characteristics: one class against the rest.
//!
//! The threshold runs from the highest score to the lowest; rows of equal score pass it together and make one straight step, as in
//! Fawcett, "An introduction to ROC analysis" (2006), algorithms 1 and 2, and in scikit-learn's `roc_curve` and `roc_auc_score`. Points
//! are counts until the last division, so areas and corners are exact and no monotone map of the scores changes them.

use crate::record::RocCurve;

/// Most points of a stored curve.
const POINTS: usize = 101;

/// Stretches of a curve longer than `POINTS`; each keeps its first and its last point. 50, as two points each are still within `POINTS`.
const STRETCHES: u128 = 50;

/// The whole curve in counts.
pub(super) struct Steps {
    /// (negatives, positives) at or above each distinct score, highest score first, with (0, 0) before them.
    at_or_above: Vec<(u64, u64)>,
}

impl Steps {
    /// `labels` and `scores` run together, one pair a row. `None` when `class` has no row or every row.
    pub(super) fn new(labels: &[u32], scores: impl ExactSizeIterator<Item = f32>, class: u32) -> Option<Self> {
        assert_eq!(labels.len(), scores.len(), "one score a row");
        let is_class = labels.iter().map(|label| *label == class);
        // NaN says nothing for the class: it stands with the lowest.
        let score = scores.map(|score| if score.is_nan() { f32::NEG_INFINITY } else { score });
        let mut rows: Vec<(f32, bool)> = score.zip(is_class).collect();
        rows.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        let mut at_or_above = vec![(0, 0)];
        let (mut negatives, mut positives) = (0, 0);
        // `==` and not `total_cmp`: -0.0 and 0.0 are one score.
        for equals in rows.chunk_by(|a, b| a.0 == b.0) {
            let hits = equals.iter().filter(|(_, is_class)| *is_class).count() as u64;
            positives += hits;
            negatives += equals.len() as u64 - hits;
            at_or_above.push((negatives, positives));
        }
        (negatives > 0 && positives > 0).then_some(Steps { at_or_above })
    }

    /// Rows outside the class and in it.
    fn totals(&self) -> (u64, u64) {
        *self.at_or_above.last().expect("`new` begins with (0, 0)")
    }

    /// Trapezoids over the steps, 0 to 1.
    pub(super) fn area(&self) -> f64 {
        let (negatives, positives) = self.totals();
        let doubled: u128 = self
            .at_or_above
            .windows(2)
            .map(|step| u128::from(step[1].0 - step[0].0) * (u128::from(step[1].1) + u128::from(step[0].1)))
            .sum();
        doubled as f64 / (2 * u128::from(negatives) * u128::from(positives)) as f64
    }

    /// Every point.
    fn curve(&self, class: u32) -> RocCurve {
        self.curve_through(class, &self.at_or_above)
    }

    /// At most 101 points. If the points where the curve bends are no more than that, they are kept and nothing is lost.
    ///
    /// Otherwise the way from (0, 0) to (1, 1), whose length along the axes is 2, is cut into 50 stretches of h = 0.04, and the first
    /// and last bend in each are kept. What lies between rises and moves right only, so a chord misses at most
    /// dx dy / 2 <= (dx + dy)^2 / 8 <= h^2 / 8 of the area, all 50 together at most 0.01; no bend beside a step longer than h goes.
    /// Keeping every so-many-th bend was tried: it can drop the one bend between two long steps, and half the area with it.
    pub(super) fn thinned(&self, class: u32) -> RocCurve {
        let bends = self.bends();
        if bends.len() <= POINTS {
            return self.curve_through(class, &bends);
        }
        let (negatives, positives) = self.totals();
        let (negatives, positives) = (u128::from(negatives), u128::from(positives));
        let stretch = |point: &(u64, u64)| {
            let way = u128::from(point.0) * positives + u128::from(point.1) * negatives;
            (way * STRETCHES / (2 * negatives * positives)).min(STRETCHES - 1)
        };
        let mut kept = Vec::with_capacity(POINTS);
        for together in bends.chunk_by(|a, b| stretch(a) == stretch(b)) {
            kept.push(together[0]);
            if let [_, .., last] = together {
                kept.push(*last);
            }
        }
        self.curve_through(class, &kept)
    }

    /// The ends and the points where the direction changes.
    fn bends(&self) -> Vec<(u64, u64)> {
        let points = &self.at_or_above;
        let is_bend = |at: &[(u64, u64)]| {
            let way = |from: (u64, u64), to: (u64, u64)| (u128::from(to.0 - from.0), u128::from(to.1 - from.1));
            let (before, after) = (way(at[0], at[1]), way(at[1], at[2]));
            before.0 * after.1 != before.1 * after.0
        };
        let inner = points.windows(3).filter(|at| is_bend(at)).map(|at| at[1]);
        std::iter::once(points[0]).chain(inner).chain([self.totals()]).collect()
    }

    fn curve_through(&self, class: u32, points: &[(u64, u64)]) -> RocCurve {
        let (negatives, positives) = self.totals();
        RocCurve {
            class,
            false_positive_rate: points.iter().map(|point| point.0 as f64 / negatives as f64).collect(),
            true_positive_rate: points.iter().map(|point| point.1 as f64 / positives as f64).collect(),
        }
    }
}

/// The whole curve of `class` against the rest, from (0, 0) to (1, 1), one point for each distinct score: scikit-learn's `roc_curve` with
/// `drop_intermediate=False`.
///
/// `labels` `[rows]` are true classes, `scores` `[rows]` those of `class`: more means more likely, the scale is free, NaN counts as the lowest.
/// `None` when `class` has no positive or no negative row.
///
/// # Panics
/// When the two lengths differ.
pub fn roc_curve(labels: &[u32], scores: &[f32], class: u32) -> Option<RocCurve> {
    Steps::new(labels, scores.iter().copied(), class).map(|steps| steps.curve(class))
}

/// The area under [`roc_curve`] by trapezoids: the chance that a row of `class` scores above another, a tie counting half (Hanley and
/// McNeil 1982). Shapes, NaN and `None` as there.
///
/// # Panics
/// When the two lengths differ.
pub fn roc_auc(labels: &[u32], scores: &[f32], class: u32) -> Option<f64> {
    Steps::new(labels, scores.iter().copied(), class).map(|steps| steps.area())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(at_or_above: Vec<(u64, u64)>) -> Steps {
        Steps { at_or_above }
    }

    #[test]
    fn bends_stay_and_points_between_them_go() {
        let straight = steps(vec![(0, 0), (1, 2), (2, 4), (3, 4), (5, 4), (5, 5)]);
        assert_eq!(straight.bends(), [(0, 0), (2, 4), (5, 4), (5, 5)]);
        assert_eq!(straight.thinned(0).false_positive_rate, [0.0, 0.4, 1.0, 1.0]);
    }

    #[test]
    fn a_curve_of_101_bends_is_kept_whole_and_of_102_is_cut() {
        let stairs = |points: u64| steps((0..points).map(|k| (k / 2, k.div_ceil(2))).collect());
        assert_eq!(stairs(101).bends().len(), 101);
        assert_eq!(stairs(101).thinned(0), stairs(101).curve(0));
        assert!(stairs(102).thinned(0).true_positive_rate.len() <= 100);
    }

    #[test]
    fn a_bend_between_two_long_steps_is_kept_wherever_it_stands() {
        for before in 100..160 {
            let mut points: Vec<(u64, u64)> = (0..before).map(|k: u64| (k / 2, k.div_ceil(2))).collect();
            let (x, y) = points[points.len() - 1];
            let corner = (x + 1000, y);
            points.extend([corner, (corner.0, corner.1 + 1000)]);
            points.extend((1..100).map(|k: u64| (corner.0 + k.div_ceil(2), corner.1 + 1000 + k / 2)));
            let all = steps(points);
            let (negatives, positives) = all.totals();
            let thin = all.thinned(0);
            let kept: Vec<(f64, f64)> = thin.false_positive_rate.into_iter().zip(thin.true_positive_rate).collect();
            assert!(kept.contains(&(corner.0 as f64 / negatives as f64, corner.1 as f64 / positives as f64)), "{before}");
        }
    }
}
