//! Answers against the baseline's answers on the same test rows: exact McNemar with Holm's correction, the share of rows whose
//! answer flipped, and the smallest loss that these rows could have shown.

use super::{ALPHA, Drop, DropVerdict, LimitVerdict};
use crate::{
    record::Quality,
    stats::{Interval, Z90, Z95, holm_of_tests, mcnemar_exact, paired_difference, smallest_provable_loss},
    vocab::{Better, Metric},
};

/// Whether a metric of single-label answers is a share of rows, so that binomial intervals hold.
pub(super) fn is_share_of_rows(metric: Metric) -> bool {
    matches!(metric, Metric::Accuracy | Metric::PrecisionMicro | Metric::RecallMicro | Metric::F1Micro)
}

/// How much worse `value` is than `baseline`, in the metric's own direction.
pub(super) fn loss(metric: Metric, baseline: f64, value: f64) -> f64 {
    match metric.facts().better {
        Better::More => baseline - value,
        Better::Less => value - baseline,
    }
}

/// Rows that changed between two sets of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Changes {
    /// Right with the baseline, wrong now.
    pub lost: u64,
    pub won: u64,
    /// Another answer, right or wrong.
    pub flipped: u64,
    pub rows: u64,
}

impl Changes {
    /// `None` unless both answered every labelled row, of which there must be some.
    pub fn between(baseline: &Quality, other: &Quality, labels: &[u32]) -> Option<Changes> {
        let rows = labels.len();
        if rows == 0 || baseline.predictions.len() != rows || other.predictions.len() != rows {
            return None;
        }
        let mut changes = Changes { lost: 0, won: 0, flipped: 0, rows: rows as u64 };
        for ((before, now), label) in baseline.predictions.iter().zip(&other.predictions).zip(labels) {
            changes.flipped += u64::from(before != now);
            changes.lost += u64::from(before == label && now != label);
            changes.won += u64::from(before != label && now == label);
        }
        Some(changes)
    }
}

/// The judgement of each row of a phase; `None` where it or the baseline has no answers. The baseline is row `baseline`.
pub(super) fn drops(
    qualities: &[Option<&Quality>],
    baseline: usize,
    labels: &[u32],
    metric: Metric,
    limit: Option<f64>,
) -> Vec<Option<Drop>> {
    let Some(reference) = qualities[baseline] else { return vec![None; qualities.len()] };
    let changes: Vec<_> = qualities.iter().map(|other| Changes::between(reference, (*other)?, labels)).collect();
    let answers = |row: usize| qualities[row].map(|quality| &quality.predictions);
    // Rows with the baseline's own answers need no test, and rows that answer alike (batch sizes, layouts, threads) are one.
    let tested: Vec<usize> =
        (0..qualities.len()).filter(|k| changes[*k].is_some() && answers(*k) != Some(&reference.predictions)).collect();
    let test_of = |row: usize| tested.iter().position(|other| answers(*other) == answers(row)).unwrap_or(row);
    let of_rows: Vec<usize> = tested.iter().map(|row| test_of(*row)).collect();
    let alone = |row: usize| changes[row].map_or(1.0, |Changes { lost, won, .. }| mcnemar_exact(lost, won));
    let mut corrected = vec![1.0; qualities.len()];
    for (row, p) in tested.iter().zip(holm_of_tests(&tested.iter().map(|row| alone(*row)).collect::<Vec<_>>(), &of_rows)) {
        corrected[*row] = p;
    }
    let tests = of_rows.iter().collect::<std::collections::BTreeSet<_>>().len();
    (0..qualities.len())
        .map(|row| {
            let Changes { lost, won, flipped, rows } = changes[row]?;
            let share = is_share_of_rows(metric);
            let value = if share {
                (lost as f64 - won as f64) / rows as f64
            } else {
                loss(metric, *reference.metrics.get(&metric)?, *qualities[row]?.metrics.get(&metric)?)
            };
            let p = corrected[row];
            let bounds = share.then(|| paired_difference(lost, won, rows, Z90));
            let within_limit = limit.zip(bounds).filter(|_| row != baseline).map(|(limit, bounds)| within(bounds, limit));
            Some(Drop {
                value,
                interval: share.then(|| paired_difference(lost, won, rows, Z95)),
                bounds,
                within_limit,
                p_alone: alone(row),
                p,
                tests,
                flip_rate: flipped as f64 / rows as f64,
                smallest_provable: smallest_provable_loss(lost + won, rows, ALPHA / tests.max(1) as f64).min(1.0),
                verdict: if row == baseline { DropVerdict::Reference } else { verdict(value, p, limit) },
            })
        })
        .collect()
}

fn within(bounds: Interval, limit: f64) -> LimitVerdict {
    if !is_above(bounds.high, limit) {
        LimitVerdict::Met
    } else if is_above(bounds.low, limit) {
        LimitVerdict::Broken
    } else {
        LimitVerdict::NotProven
    }
}

fn verdict(value: f64, p: f64, limit: Option<f64>) -> DropVerdict {
    if limit.is_some_and(|limit| is_above(value, limit)) {
        DropVerdict::TooMuch
    } else if p > ALPHA {
        DropVerdict::NoneShown
    } else if value <= 0.0 {
        DropVerdict::Better
    } else {
        DropVerdict::Loss
    }
}

/// Above a limit by more than the rounding of a difference of two metrics.
pub(super) fn is_above(value: f64, limit: f64) -> bool {
    value > limit + 1e-9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advise::{phrase, synthetic::quality};

    fn labels() -> Vec<u32> {
        vec![1; 1000]
    }

    /// The first `lost` rows wrong, except that rows `950..950 + won`, wrong in the baseline, are right.
    fn answers(lost: usize, won: usize) -> Quality {
        let predictions = (0..1000).map(|k| u32::from(k >= lost && !(950 + won..1000).contains(&k))).collect();
        quality(predictions, &labels())
    }

    #[test]
    fn verdicts_follow_the_paired_test_and_the_limit() {
        let [base, same, lost, won] = [answers(0, 0), answers(3, 2), answers(12, 0), answers(0, 10)];
        let rows = [Some(&base), Some(&same), Some(&lost), Some(&won), None];
        let judged = drops(&rows, 0, &labels(), Metric::Accuracy, Some(0.02));
        let names: Vec<_> = judged.iter().flatten().map(|d| d.verdict).collect();
        assert_eq!(names, [DropVerdict::Reference, DropVerdict::NoneShown, DropVerdict::Loss, DropVerdict::Better]);
        assert!(judged[4].is_none());
        let drop = judged[2].unwrap();
        assert!((drop.value - 0.012).abs() < 1e-12);
        assert!((drop.flip_rate - 0.012).abs() < 1e-12);
        // Three rows are tested: the smallest p is tripled.
        assert!((drop.p - 3.0 * mcnemar_exact(12, 0)).abs() < 1e-12);
        let strict = drops(&rows, 0, &labels(), Metric::Accuracy, Some(0.01));
        assert_eq!(strict[2].unwrap().verdict, DropVerdict::TooMuch);
        assert_eq!(strict[1].unwrap().verdict, DropVerdict::NoneShown);
    }

    #[test]
    fn a_loss_of_exactly_the_limit_is_within_it() {
        let (base, other) = (answers(0, 0), answers(5, 0));
        let judged = drops(&[Some(&base), Some(&other)], 0, &labels(), Metric::Accuracy, Some(0.005));
        assert_eq!(judged[1].unwrap().verdict, DropVerdict::NoneShown);
    }

    #[test]
    fn holm_takes_back_what_one_test_alone_would_show() {
        // 6 one-way flips: p = 0.031 alone, 0.094 among three different answers.
        let (base, six) = (answers(0, 0), answers(6, 0));
        let alone = drops(&[Some(&base), Some(&six)], 0, &labels(), Metric::Accuracy, None)[1].unwrap();
        assert_eq!((alone.verdict, alone.tests, alone.smallest_provable), (DropVerdict::Loss, 1, 0.006));
        let (two, three) = (answers(2, 0), answers(3, 0));
        let many = drops(&[Some(&base), Some(&six), Some(&two), Some(&three)], 0, &labels(), Metric::Accuracy, None);
        let drop = many[1].unwrap();
        let p = mcnemar_exact(6, 0);
        assert_eq!((drop.verdict, drop.p_alone, drop.p, drop.tests), (DropVerdict::NoneShown, p, 3.0 * p, 3));
        // At 0.05 / 3 seven flips are the least.
        assert_eq!(drop.smallest_provable, 0.007);
        assert_eq!(phrase::mcnemar(&drop), "exact McNemar p = 0.031, 0.094 after Holm over 3 answers");
        assert_eq!(phrase::mcnemar(&alone), "exact McNemar p = 0.031");
    }

    #[test]
    fn rows_with_the_same_answers_are_one_test_and_those_with_the_baselines_none() {
        let (base, six) = (answers(0, 0), answers(6, 0));
        let rows = [Some(&base), Some(&six), Some(&six), Some(&base), Some(&six)];
        let judged = drops(&rows, 0, &labels(), Metric::Accuracy, None);
        for drop in [judged[1], judged[2], judged[4]].map(Option::unwrap) {
            assert_eq!((drop.verdict, drop.p, drop.tests), (DropVerdict::Loss, mcnemar_exact(6, 0), 1));
        }
        assert_eq!(judged[3].unwrap().p, 1.0);
    }

    #[test]
    fn answers_to_other_rows_are_not_compared() {
        let (base, other) = (answers(0, 0), quality(vec![1; 10], &[1; 10]));
        assert!(drops(&[Some(&base), Some(&other)], 0, &labels(), Metric::Accuracy, None)[1].is_none());
        assert!(drops(&[Some(&base)], 0, &[], Metric::Accuracy, None)[0].is_none());
    }
}
