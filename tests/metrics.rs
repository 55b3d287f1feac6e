//! Metrics against scikit-learn, on random answers with ties and missing classes (`tests/reference/sklearn_metrics.py`).

use advisor::{
    metrics,
    record::{Quality, RocCurve},
    stats,
    vocab::Metric,
};
use proptest::{collection::vec, prelude::*};
use serde_json::Value;

fn reference() -> Value {
    serde_json::from_str(include_str!("reference/sklearn_metrics.json")).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn close(name: &str, what: &str, got: f64, want: f64) {
    assert!((got - want).abs() < 1e-12, "{name}: {what} is {got}, not {want}");
}

fn trapezoids(curve: &RocCurve) -> f64 {
    let (x, y) = (&curve.false_positive_rate, &curve.true_positive_rate);
    (1..x.len()).map(|k| (x[k] - x[k - 1]) * (y[k] + y[k - 1]) / 2.0).sum()
}

#[test]
fn every_case_agrees_with_scikit_learn() {
    let reference = reference();
    let cases = reference["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 24);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let classes = case["classes"].as_u64().unwrap() as usize;
        let whole = |key: &str| numbers(&case[key]).into_iter().map(|v| v as u32).collect::<Vec<_>>();
        let (labels, answers) = (whole("y_true"), whole("y_pred"));
        let quality = metrics::classification(&labels, &answers, None, classes).unwrap();
        close(name, "accuracy", quality.metrics[&Metric::Accuracy], case["accuracy"].as_f64().unwrap());
        for (key, macro_mean, micro) in [
            ("precision", Metric::PrecisionMacro, Metric::PrecisionMicro),
            ("recall", Metric::RecallMacro, Metric::RecallMicro),
            ("f1", Metric::F1Macro, Metric::F1Micro),
        ] {
            close(name, key, quality.metrics[&macro_mean], case[key]["macro"].as_f64().unwrap());
            close(name, key, quality.metrics[&micro], case[key]["micro"].as_f64().unwrap());
            for (class, want) in numbers(&case[key]["per_class"]).into_iter().enumerate() {
                let of = &quality.per_class[class];
                let got = [of.precision, of.recall, of.f1][["precision", "recall", "f1"].iter().position(|k| *k == key).unwrap()];
                close(name, key, got, want);
            }
        }
        let confusion: Vec<Vec<u64>> = serde_json::from_value(case["confusion"].clone()).unwrap();
        assert_eq!(quality.confusion, confusion, "{name}");
    }
}

#[test]
fn areas_and_curves_agree_with_scikit_learn() {
    let (mut areas, mut curves) = (0, 0);
    for case in reference()["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let classes = case["classes"].as_u64().unwrap() as usize;
        let labels: Vec<u32> = numbers(&case["y_true"]).into_iter().map(|v| v as u32).collect();
        // Two classes: one score a row, for class 1. More: a row of scores.
        let of_class = |class: usize| -> Vec<f32> {
            let rows = case["scores"].as_array().unwrap();
            let score = |row: &Value| if classes == 2 { row.as_f64() } else { row[class].as_f64() };
            rows.iter().map(|row| score(row).unwrap() as f32).collect()
        };
        let wanted: Vec<(usize, Option<f64>)> = if classes == 2 {
            vec![(1, case["roc_auc"].as_f64())]
        } else {
            case["roc_auc"]["per_class"].as_array().unwrap().iter().map(Value::as_f64).enumerate().collect()
        };
        for (class, want) in wanted {
            let curve = metrics::roc_curve(&labels, &of_class(class), class as u32);
            assert_eq!(curve.is_some(), want.is_some(), "{name}, class {class}");
            let area = metrics::roc_auc(&labels, &of_class(class), class as u32);
            assert_eq!(area.is_some(), want.is_some(), "{name}, class {class}");
            if let (Some(curve), Some(area), Some(want)) = (&curve, area, want) {
                close(name, "area", area, want);
                close(name, "area under the points", trapezoids(curve), want);
                areas += 1;
            }
            let points = &case["roc_curve"];
            if let (Some(curve), Some(_)) = (&curve, points["class"].as_u64().filter(|c| *c == class as u64)) {
                assert_eq!(curve.false_positive_rate.len(), numbers(&points["fpr"]).len(), "{name}");
                for (got, want) in [(&curve.false_positive_rate, "fpr"), (&curve.true_positive_rate, "tpr")] {
                    got.iter().zip(numbers(&points[want])).for_each(|(got, want)| close(name, "curve", *got, want));
                }
                curves += 1;
            }
        }
        if classes > 2 {
            let rows = labels.len();
            let scores: Vec<f32> = (0..rows)
                .flat_map(|row| (0..classes).map(move |class| (row, class)))
                .map(|(row, class)| of_class(class)[row])
                .collect();
            let quality = metrics::classification(&labels, &labels, Some(&scores), classes).unwrap();
            assert_eq!(quality.metrics.contains_key(&Metric::RocAucMacro), case["roc_auc"]["macro"].is_number());
            if let Some(want) = case["roc_auc"]["macro"].as_f64() {
                close(name, "macro area", quality.metrics[&Metric::RocAucMacro], want);
            }
        }
    }
    assert!(areas > 30, "only {areas} areas were compared");
    assert_eq!(curves, 11, "curves compared");
}

#[test]
fn exact_tests_and_intervals_agree_with_scipy() {
    let reference = reference();
    for case in reference["mcnemar"].as_array().unwrap() {
        let got = stats::mcnemar_exact(case["b"].as_u64().unwrap(), case["c"].as_u64().unwrap());
        close("mcnemar", &case.to_string(), got, case["p"].as_f64().unwrap());
    }
    for case in reference["intervals"].as_array().unwrap().iter().filter(|c| c["confidence"] == 0.95) {
        let got = stats::wilson(case["k"].as_u64().unwrap(), case["n"].as_u64().unwrap());
        let want = numbers(&case["wilson"]);
        assert!((got.low - want[0]).abs() < 1e-9 && (got.high - want[1]).abs() < 1e-9, "{case}: {got:?}");
    }
}

/// Classes, then rows of (true class, predicted class).
fn answers() -> impl Strategy<Value = (usize, Vec<(u32, u32)>)> {
    (1usize..7).prop_flat_map(|classes| (Just(classes), vec((0..classes as u32, 0..classes as u32), 1..120)))
}

/// Rows of (true class, score): two classes, few enough scores for ties.
fn ranked() -> impl Strategy<Value = (Vec<u32>, Vec<f32>)> {
    vec((0u32..2, (-6i8..7).prop_map(f32::from)), 2..80).prop_map(|rows| rows.into_iter().unzip())
}

/// Scores of class 1 beside their opposites for class 0.
fn judged(labels: &[u32], scores: &[f32]) -> Quality {
    let both: Vec<f32> = scores.iter().flat_map(|score| [-score, *score]).collect();
    metrics::classification(labels, &metrics::argmax_rows(&both, 2), Some(&both), 2).unwrap()
}

proptest! {
    #[test]
    fn accuracy_is_the_trace_and_pooled_figures_equal_it((classes, rows) in answers()) {
        let (labels, predictions): (Vec<u32>, Vec<u32>) = rows.into_iter().unzip();
        let quality = metrics::classification(&labels, &predictions, None, classes).unwrap();
        let total: u64 = quality.confusion.iter().flatten().sum();
        let trace: u64 = (0..classes).map(|class| quality.confusion[class][class]).sum();
        prop_assert_eq!(total, labels.len() as u64);
        prop_assert_eq!(quality.per_class.iter().map(|class| class.support).sum::<u64>(), total);
        let right = labels.iter().zip(&predictions).filter(|(truth, answer)| truth == answer).count();
        prop_assert_eq!(trace, right as u64);
        for metric in [Metric::Accuracy, Metric::PrecisionMicro, Metric::RecallMicro, Metric::F1Micro] {
            prop_assert_eq!(quality.metrics[&metric], trace as f64 / total as f64);
        }
        for class in &quality.per_class {
            let sum = class.precision + class.recall;
            let harmonic = if sum == 0.0 { 0.0 } else { 2.0 * class.precision * class.recall / sum };
            prop_assert!((class.f1 - harmonic).abs() < 1e-12);
        }
        prop_assert!(quality.roc.is_empty() && !quality.metrics.contains_key(&Metric::RocAucMacro));
    }

    #[test]
    fn area_is_the_chance_to_rank_a_positive_first((labels, scores) in ranked()) {
        let of = |class: u32| labels.iter().zip(&scores).filter(move |(label, _)| **label == class).map(|(_, score)| *score);
        let (positives, negatives): (Vec<f32>, Vec<f32>) = (of(1).collect(), of(0).collect());
        let area = metrics::roc_auc(&labels, &scores, 1);
        prop_assert_eq!(area.is_some(), !positives.is_empty() && !negatives.is_empty());
        prop_assert_eq!(metrics::roc_curve(&labels, &scores, 1).is_some(), area.is_some());
        if let Some(area) = area {
            let pairs = positives.iter().flat_map(|p| negatives.iter().map(move |n| (p, n)));
            let wins: f64 = pairs.map(|(p, n)| if p > n { 1.0 } else if p == n { 0.5 } else { 0.0 }).sum();
            prop_assert!((area - wins / (positives.len() * negatives.len()) as f64).abs() < 1e-12);
        }
    }

    #[test]
    fn area_and_curve_stand_under_monotone_maps_and_turn_with_the_scores((labels, scores) in ranked()) {
        let mapped = |map: fn(f32) -> f32| scores.iter().map(|score| map(*score)).collect::<Vec<f32>>();
        for map in [f32::exp, |s| s * s * s, |s| 100.0 + s / 8.0, |s: f32| 1.0 / (1.0 + (-s).exp())] {
            prop_assert_eq!(metrics::roc_auc(&labels, &mapped(map), 1), metrics::roc_auc(&labels, &scores, 1));
            prop_assert_eq!(metrics::roc_curve(&labels, &mapped(map), 1), metrics::roc_curve(&labels, &scores, 1));
        }
        if let Some(area) = metrics::roc_auc(&labels, &scores, 1) {
            let reversed = metrics::roc_auc(&labels, &mapped(|s| -s), 1).unwrap();
            prop_assert!((reversed - (1.0 - area)).abs() < 1e-12);
        }
    }

    /// Runs of rows with one score (long steps) among rows with scores of their own (short ones).
    #[test]
    fn a_thinned_curve_keeps_its_ends_and_its_area(runs in vec((1usize..400, 0.0..1.0f64, any::<bool>()), 1..12)) {
        let (mut labels, mut scores) = (vec![0, 1], vec![1.0, 1.0]);
        for (length, share, tied) in runs {
            for row in 0..length {
                // An even sequence of this share: its whole part rises on `share` of the rows.
                labels.push(((row + 1) as f64 * share).floor() as u32 - (row as f64 * share).floor() as u32);
                let last = scores[scores.len() - 1];
                scores.push(if tied && row > 0 { last } else { last - 1.0 });
            }
        }
        for (class, curve) in judged(&labels, &scores).roc.iter().enumerate() {
            let (x, y) = (&curve.false_positive_rate, &curve.true_positive_rate);
            prop_assert_eq!(curve.class, class as u32);
            prop_assert!(x.len() == y.len() && x.len() <= 101);
            prop_assert!(x.is_sorted() && y.is_sorted());
            prop_assert_eq!((x[0], y[0], x[x.len() - 1], y[y.len() - 1]), (0.0, 0.0, 1.0, 1.0));
            let own: Vec<f32> = scores.iter().map(|score| if class == 1 { *score } else { -score }).collect();
            let exact = metrics::roc_auc(&labels, &own, class as u32).unwrap();
            prop_assert!((trapezoids(curve) - exact).abs() <= 0.01, "{} points, {} for {exact}", x.len(), trapezoids(curve));
        }
    }
}

#[test]
fn one_corner_among_many_short_steps_survives_thinning() {
    // `before` short steps, then 20000 negatives at one score and 20000 positives at the next, then short steps again.
    for before in 1000..1040 {
        let mut labels: Vec<u32> = (0..before).map(|k| k % 2).collect();
        let mut scores: Vec<f32> = (0..before).map(|k| 2000.0 - k as f32).collect();
        for (class, score) in [(0, 0.0), (1, -1.0)] {
            labels.extend([class; 20_000]);
            scores.extend([score; 20_000]);
        }
        labels.extend((0..1000).map(|k| k % 2));
        scores.extend((0..1000).map(|k| -10.0 - k as f32));
        let quality = judged(&labels, &scores);
        for (curve, class) in quality.roc.iter().zip(&quality.per_class) {
            assert!((trapezoids(curve) - class.roc_auc.unwrap()).abs() < 0.001, "{before} steps: {}", trapezoids(curve));
        }
    }
}

#[test]
fn classes_that_are_missing_count_as_zero_and_have_no_curve() {
    // Class 1 is only predicted, class 2 neither, class 3 only true.
    let scores: Vec<f32> = (0..16).map(|k| (k * 7 % 5) as f32).collect();
    let quality = metrics::classification(&[0, 0, 0, 3], &[0, 0, 1, 0], Some(&scores), 4).unwrap();
    let figures = |class: usize| {
        let of = &quality.per_class[class];
        (of.precision, of.recall, of.f1, of.support, of.roc_auc.is_some())
    };
    assert_eq!(figures(0), (2.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0, 3, true));
    assert_eq!(figures(1), (0.0, 0.0, 0.0, 0, false));
    assert_eq!(figures(2), (0.0, 0.0, 0.0, 0, false));
    assert_eq!(figures(3), (0.0, 0.0, 0.0, 1, true));
    close("missing", "macro F1", quality.metrics[&Metric::F1Macro], 2.0 / 3.0 / 4.0);
    assert_eq!(quality.roc.iter().map(|curve| curve.class).collect::<Vec<_>>(), [0, 3]);
    let mean = (quality.per_class[0].roc_auc.unwrap() + quality.per_class[3].roc_auc.unwrap()) / 2.0;
    close("missing", "macro area", quality.metrics[&Metric::RocAucMacro], mean);

    let alone = metrics::classification(&[1, 1], &[1, 0], Some(&[0.1, 0.9, 0.8, 0.2]), 2).unwrap();
    assert!(alone.roc.is_empty() && !alone.metrics.contains_key(&Metric::RocAucMacro));
}

#[test]
fn equal_scores_give_the_diagonal_and_nan_is_the_lowest() {
    let labels = [0, 1, 1, 0, 1];
    for score in [0.0, 0.25, f32::INFINITY, f32::NAN] {
        assert_eq!(metrics::roc_auc(&labels, &[score; 5], 1), Some(0.5));
        let curve = metrics::roc_curve(&labels, &[score; 5], 1).unwrap();
        assert_eq!((curve.false_positive_rate, curve.true_positive_rate), (vec![0.0, 1.0], vec![0.0, 1.0]));
    }
    assert_eq!(metrics::roc_auc(&labels, &[0.0, -0.0, 0.0, -0.0, -0.0], 1), Some(0.5));
    assert_eq!(metrics::roc_auc(&labels, &[f32::NAN, -9.0, 0.0, f32::NAN, 1.0], 1), Some(1.0));
}
