//! Accuracy, precision, recall, F1 and the confusion matrix.
//!
//! Everything but the ROC figures is read off the confusion matrix. Definitions are those of scikit-learn's `precision_score`,
//! `recall_score`, `f1_score` with `labels=range(classes)` and `zero_division=0`; each is checked against it in `tests/metrics.rs`.

use super::roc::Steps;
use crate::{
    record::{ClassQuality, Metrics, Quality},
    vocab::Metric,
};

/// Why answers cannot be judged.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MetricError {
    /// `what` ("predictions", "scores") must be as many as `expected`.
    #[error("expected {expected} {what} for {rows} rows, got {given}")]
    Length { rows: usize, expected: usize, given: usize, what: &'static str },
    /// `what` ("true", "predicted") class of `row` is not below `classes`.
    #[error("{what} class {class} in row {row} is out of range: there are {classes} classes, numbered from 0")]
    Class { what: &'static str, class: u32, row: usize, classes: usize },
    #[error("no rows to judge")]
    Empty,
}

/// The class of the highest score in each row of `scores` [rows, classes], row-major: the first of equals. NaN never wins; a row of nothing
/// else gives class 0.
///
/// # Panics
/// When `scores` is not a whole number of rows or `classes` is 0.
pub fn argmax_rows(scores: &[f32], classes: usize) -> Vec<u32> {
    assert!(scores.len().is_multiple_of(classes) && classes > 0, "{} scores are not rows of {classes}", scores.len());
    let best = |row: &[f32]| {
        let mut best = 0;
        for (class, score) in row.iter().enumerate() {
            if *score > row[best] || (row[best].is_nan() && !score.is_nan()) {
                best = class;
            }
        }
        best as u32
    };
    scores.chunks_exact(classes).map(best).collect()
}

/// All figures of a classification from `labels` `[rows]`, the true classes, `predictions` `[rows]` and, where kept, `scores`
/// [rows, classes], row-major: more means more likely, any monotone scale.
///
/// With TP, FP, FN of one class against the rest: precision TP / (TP + FP), recall TP / (TP + FN), F1 2 TP / (2 TP + FP + FN); 0 / 0 is 0.
/// Macro means run over every class `0..classes`, also one that no row holds and none was given (scikit-learn with
/// `labels=range(classes)`, so a missing class lowers them), so that candidates are compared over the same classes. Micro figures pool
/// the decisions of all classes. ROC-AUC is one class against the rest; its macro mean runs over the classes that have both kinds of
/// rows, and `RocAucMacro` is absent where none has or no scores were kept. Curves come thinned to at most 101 points, their area within
/// 0.01 of the whole.
///
/// # Errors
/// No rows; `predictions` or `scores` of another length; a class not below `classes`.
pub fn classification(
    labels: &[u32],
    predictions: &[u32],
    scores: Option<&[f32]>,
    classes: usize,
) -> Result<Quality, MetricError> {
    let rows = labels.len();
    if rows == 0 {
        return Err(MetricError::Empty);
    }
    if predictions.len() != rows {
        return Err(MetricError::Length { rows, expected: rows, given: predictions.len(), what: "predictions" });
    }
    let in_range = |what: &'static str, class: u32, row: usize| {
        let known = (class as usize) < classes;
        if known { Ok(class as usize) } else { Err(MetricError::Class { what, class, row, classes }) }
    };
    let mut confusion = vec![vec![0u64; classes]; classes];
    for (row, (truth, answer)) in labels.iter().zip(predictions).enumerate() {
        confusion[in_range("true", *truth, row)?][in_range("predicted", *answer, row)?] += 1;
    }
    let expected = rows * classes;
    if let Some(given) = scores.map(<[f32]>::len).filter(|given| *given != expected) {
        return Err(MetricError::Length { rows, expected, given, what: "scores" });
    }
    let ratio = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    let mut per_class = Vec::with_capacity(classes);
    let mut curves = Vec::new();
    for class in 0..classes {
        let hits = confusion[class][class];
        let actual: u64 = confusion[class].iter().sum();
        let predicted: u64 = confusion.iter().map(|row| row[class]).sum();
        let steps = scores.and_then(|scores| {
            let of_class = scores.chunks_exact(classes).map(|row| row[class]);
            Steps::new(labels, of_class, class as u32)
        });
        curves.extend(steps.as_ref().map(|steps| steps.thinned(class as u32)));
        per_class.push(ClassQuality {
            precision: ratio(hits, predicted),
            recall: ratio(hits, actual),
            // 2 TP / (2 TP + FP + FN), the same as the harmonic mean and defined where that is 0 / 0.
            f1: ratio(2 * hits, actual + predicted),
            roc_auc: steps.map(|steps| steps.area()),
            support: actual,
        });
    }
    let mean = |of: &dyn Fn(&ClassQuality) -> f64| per_class.iter().map(of).sum::<f64>() / classes as f64;
    let accuracy = ratio((0..classes).map(|c| confusion[c][c]).sum(), rows as u64);
    let mut metrics = Metrics::from([
        (Metric::Accuracy, accuracy),
        (Metric::PrecisionMacro, mean(&|c| c.precision)),
        (Metric::RecallMacro, mean(&|c| c.recall)),
        (Metric::F1Macro, mean(&|c| c.f1)),
        // With one answer a row every false positive is some class's false negative, so the pooled figures all equal accuracy.
        (Metric::PrecisionMicro, accuracy),
        (Metric::RecallMicro, accuracy),
        (Metric::F1Micro, accuracy),
    ]);
    let areas: Vec<f64> = per_class.iter().filter_map(|c| c.roc_auc).collect();
    if !areas.is_empty() {
        metrics.insert(Metric::RocAucMacro, areas.iter().sum::<f64>() / areas.len() as f64);
    }
    Ok(Quality { predictions: predictions.to_vec(), metrics, per_class, confusion, roc: curves })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_input_is_named() {
        let error = |labels: &[u32], answers: &[u32], scores| classification(labels, answers, scores, 3).unwrap_err().to_string();
        assert_eq!(error(&[], &[], None), "no rows to judge");
        assert_eq!(error(&[0, 1], &[0], None), "expected 2 predictions for 2 rows, got 1");
        assert_eq!(error(&[0, 1], &[0, 1], Some(&[0.0; 5])), "expected 6 scores for 2 rows, got 5");
        let of = "class 3 in row 1 is out of range: there are 3 classes, numbered from 0";
        assert_eq!(error(&[0, 1], &[0, 3], None), format!("predicted {of}"));
        assert_eq!(error(&[0, 3], &[0, 1], None), format!("true {of}"));
        let none = classification(&[0], &[0], Some(&[]), 0).unwrap_err();
        assert_eq!(none, MetricError::Class { what: "true", class: 0, row: 0, classes: 0 });
    }

    #[test]
    fn the_first_of_equal_scores_wins_and_nan_never() {
        let nan = f32::NAN;
        assert_eq!(argmax_rows(&[0.5, 0.5, 0.1, nan, 0.0, -1.0, 1.0, nan, 2.0, nan, nan, f32::NEG_INFINITY], 3), [0, 1, 2, 2]);
        assert_eq!(argmax_rows(&[nan; 3], 3), [0]);
        assert!(argmax_rows(&[], 3).is_empty());
    }

    #[test]
    #[should_panic(expected = "5 scores are not rows of 3")]
    fn a_torn_row_is_refused() {
        argmax_rows(&[0.0; 5], 3);
    }
}
