//! How far predictions of serving are from published rows: this family's part of `advisor plan score`.

use super::{
    calibrate::fit,
    domain::ServingDomain,
    format::{CHIPS, chip},
    parameters::{Engine, ServingParameters},
    tables::{self, Measure, Read, Row},
};
use crate::{
    hardware::{HardwareBook, Machine},
    predict::{
        ModelBook,
        score::{GROUP, Reading, Refused, Scored, of_group},
        tables::Csv,
    },
};
use std::collections::{BTreeMap, BTreeSet};

/// Parts into which the groups are dealt out.
pub const FOLDS: usize = 5;
/// Steps of a fit; it ends by itself before.
pub const FIT_STEPS: usize = 40;
/// The bar of every measure of serving, percent in the median; the 90th percentile may be 2.5 times that.
const BAR_PERCENT: f64 = 15.0;

/// The tables of serving that come with the program (data/PROVENANCE.md).
pub const SHIPPED: [(&str, &str); 10] = [
    ("trtllm_a100", include_str!("../../../data/validation/trtllm_a100.csv")),
    ("trtllm_b200", include_str!("../../../data/validation/trtllm_b200.csv")),
    ("trtllm_gb200", include_str!("../../../data/validation/trtllm_gb200.csv")),
    ("trtllm_gh200", include_str!("../../../data/validation/trtllm_gh200.csv")),
    ("trtllm_h100", include_str!("../../../data/validation/trtllm_h100.csv")),
    ("trtllm_h200", include_str!("../../../data/validation/trtllm_h200.csv")),
    ("trtllm_l40s", include_str!("../../../data/validation/trtllm_l40s.csv")),
    ("trtllm_rtx6000", include_str!("../../../data/validation/trtllm_rtx6000.csv")),
    ("trtllm_online_serving", include_str!("../../../data/validation/trtllm_online_serving.csv")),
    ("serving_silicon", include_str!("../../../data/validation/serving_silicon.csv")),
];

/// The rows of the shipped tables and of these others.
pub fn rows(others: &[Csv]) -> Read {
    let (hardware, models) = (HardwareBook::shipped(), ModelBook::shipped());
    let mut all = Read::default();
    let mut take = |csv: &Csv| {
        let read = tables::read(csv, &hardware, &models);
        all.rows.extend(read.rows);
        all.left_out.extend(read.left_out);
    };
    for (name, text) in SHIPPED {
        take(&Csv::read(text).unwrap_or_else(|reason| panic!("{name}: {reason}")));
    }
    others.iter().filter(|csv| tables::is_serving(csv)).for_each(take);
    all
}

/// All rows of a table by the shipped parameters.
pub fn predict(csv: &Csv) -> Reading {
    predict_by(csv, |_| ServingParameters::shipped())
}

/// All rows of a table by parameters that were fitted to them.
pub fn in_sample(csv: &Csv) -> Reading {
    predict_by(csv, |rows| {
        let stated: Vec<&Row> = rows.iter().filter(|row| !row.unstated).collect();
        ServingParameters::of(&fit(&stated, FIT_STEPS))
    })
}

fn predict_by(csv: &Csv, parameters: impl Fn(&[Row]) -> ServingParameters) -> Reading {
    let read = tables::read(csv, &HardwareBook::shipped(), &ModelBook::shipped());
    let parameters = parameters(&read.rows);
    let domain = ServingDomain::shipped();
    let predicted: Vec<Vec<f64>> = read.rows.iter().map(|row| row.predicted(&parameters)).collect();
    reading(&read, &predicted, |row| domain.place(row.work.active_weights(), &row.machine, row.engine()))
}

/// All rows of the shipped tables and of these others, each by parameters that were fitted without its group.
pub fn held_out(others: &[Csv]) -> Reading {
    let read = rows(others);
    reading(&read, &held_out_predictions(&read.rows), |_| None)
}

/// Predictions for each row by parameters that were fitted without its group.
pub fn held_out_predictions(rows: &[Row]) -> Vec<Vec<f64>> {
    let groups: BTreeSet<&str> = rows.iter().map(|row| row.group.as_str()).collect();
    let fold: BTreeMap<&str, usize> = groups.into_iter().enumerate().map(|(at, group)| (group, at % FOLDS)).collect();
    let mut all = vec![Vec::new(); rows.len()];
    for part in 0..FOLDS {
        let others: Vec<&Row> = rows.iter().filter(|row| !row.unstated && fold[row.group.as_str()] != part).collect();
        let parameters = ServingParameters::of(&fit(&others, FIT_STEPS));
        for (row, predicted) in rows.iter().zip(&mut all) {
            if fold[row.group.as_str()] == part {
                *predicted = row.predicted(&parameters);
            }
        }
    }
    all
}

/// Values that fit the shipped rows and these others best, in the order of `priors`.
pub fn calibrated(others: &[Csv]) -> Vec<f64> {
    let read = rows(others);
    let fitted: Vec<&Row> = read.rows.iter().filter(|row| !row.unstated).collect();
    fit(&fitted, FIT_STEPS)
}

/// 0 where the prediction is that it cannot run, though it ran.
fn answered(value: f64) -> f64 {
    if value.is_finite() { value } else { 0.0 }
}

/// The regime of a measure, which has the bar.
pub fn regime(measure: Measure) -> String {
    format!("serving: {}", measure.name())
}

/// The bar of a regime of serving, percent.
pub fn bar_percent(name: &str) -> Option<f64> {
    name.starts_with("serving: ").then_some(BAR_PERCENT)
}

/// The dimension of an engine on a group of chips, whose efficiencies are fitted together.
pub const CHIPS_OF: &str = "chips";

/// Its value.
pub fn chips_of(engine: Engine, machine: &Machine, measure: Measure) -> String {
    format!("{} on {}: {}", engine.name(), CHIPS[chip(machine)], measure.name())
}

fn reading(read: &Read, predicted: &[Vec<f64>], place: impl Fn(&Row) -> Option<String>) -> Reading {
    let mut scored = Vec::new();
    for (row, predicted) in read.rows.iter().zip(predicted) {
        for (value, (measure, published)) in predicted.iter().zip(&row.published) {
            let measured = measure.name();
            let mut strata = Vec::new();
            if row.unstated {
                strata.push(("regime", format!("serving, layout not stated: {measured}")));
            } else {
                strata.push(("regime", regime(*measure)));
                strata.push(("run", format!("{}: {measured}", row.kind)));
                strata.push(("gpu", format!("{}: {measured}", row.gpu)));
                strata.push(("engine", format!("{}: {measured}", row.engine().name())));
                strata.push(("precision", format!("{}: {measured}", row.format().name())));
                strata.push((CHIPS_OF, chips_of(row.engine(), &row.machine, *measure)));
                strata.push((GROUP, of_group(&row.group, measured)));
            }
            let mut remarks = Vec::new();
            if row.unstated {
                remarks.push("the row does not state the layout: assumed");
            }
            if !value.is_finite() {
                remarks.push("predicted not to fit into memory");
            }
            scored.push(Scored {
                id: row.id.clone(),
                line: row.line,
                table: row.table,
                quantity: measure.quantity(),
                published: *published,
                predicted: answered(*value),
                current: true,
                strata,
                ranked: None,
                same: format!("{} {measured}", row.configuration),
                extrapolated: place(row),
                remark: remarks.join("; "),
            });
        }
    }
    let refused = read.left_out.iter().map(|row| Refused { id: row.id.clone(), line: row.line, reason: row.reason.clone() });
    Reading { scored, refused: refused.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::score;

    #[test]
    fn every_shipped_row_is_predicted_or_has_a_reason() {
        let read = rows(&[]);
        assert!(read.rows.len() > 2500, "{} rows", read.rows.len());
        let others: Vec<_> = read.left_out.iter().filter(|row| row.reason != "repeats another row exactly").collect();
        assert!(others.len() < 20, "{others:?}");
        let parameters = ServingParameters::shipped();
        for row in &read.rows {
            assert_eq!(row.predicted(&parameters).len(), row.published.len());
        }
    }

    /// The bars that hold, with the shipped parameters: the error of rows that were held out is printed by `advisor plan score`.
    #[test]
    fn shipped_parameters_keep_the_bars_but_for_the_tail_of_the_first_token() {
        let read = rows(&[]);
        let parameters = ServingParameters::shipped();
        let predicted: Vec<Vec<f64>> = read.rows.iter().map(|row| row.predicted(&parameters)).collect();
        let scored = reading(&read, &predicted, |_| None).scored;
        let measures = Measure::ALL.map(regime);
        let kept: Vec<_> = score::strata(&scored).into_iter().filter(|row| measures.contains(&row.value)).collect();
        assert_eq!(kept.len(), measures.len());
        for row in kept {
            let tail_is_kept = row.ninetieth < 2.5 * BAR_PERCENT;
            assert!(row.median < BAR_PERCENT && (tail_is_kept || row.value.ends_with(Measure::FirstToken.name())), "{row:?}");
        }
    }

    #[test]
    fn a_row_of_an_unknown_model_or_gpu_is_left_out_with_its_name() {
        let (_, text) = SHIPPED[0];
        let csv = Csv::read(&text.replace("Mistral 7B", "No Such 7B")).unwrap();
        let reading = predict(&csv);
        assert!(reading.refused.iter().any(|row| row.reason.contains("no model `No Such 7B`")));
        assert!(!reading.scored.is_empty());
        let csv = Csv::read(&text.replace("A100-SXM4-80GB", "Z9")).unwrap();
        assert!(predict(&csv).refused.iter().any(|row| row.reason.contains("no GPU `Z9`")));
    }

    #[test]
    fn exact_repeats_and_the_ambiguous_unit_are_left_out() {
        let reasons: BTreeSet<String> = rows(&[]).left_out.into_iter().map(|row| row.reason).collect();
        assert!(reasons.contains("repeats another row exactly"));
        assert!(reasons.contains("0.6.1 on A100: the unit is ambiguous"));
    }
}
