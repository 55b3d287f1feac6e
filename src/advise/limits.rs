//! The scenario's limits: which of them a row breaks, by how much, and in which words.
//!
//! A figure that a limit needs and that is missing breaks it: what is not known to hold does not hold.

use super::{Drop, Field, Judged, LimitVerdict, RowStatus, Violation, notes, phrase, quality, rows::seeds};
use crate::{
    units::{Bytes, PerSecond, Seconds, Usd, three_figures},
    vocab::Phase,
};

/// A broken limit with its numbers, in the unit of the scenario's key.
pub(super) struct Breach {
    pub violation: Violation,
    /// The row's own figure; `None` when it is unknown.
    pub actual: Option<f64>,
    pub allowed: f64,
    pub side: Side,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    AtMost,
    AtLeast,
}

/// Fewest steps from which a 99 % bound on p99 can be taken: 1 - 0.99^459 >= 0.99.
const STEPS_FOR_P99: u64 = 459;

/// A limit of the scenario held against one row.
struct Limit {
    key: &'static str,
    side: Side,
    /// In the key's unit; `None` when the scenario does not set it.
    allowed: Option<f64>,
    actual: Option<f64>,
    /// `p99`, for the sentence.
    name: &'static str,
    /// How a value in the key's unit is printed.
    print: fn(f64) -> String,
    /// Why the figure is missing, should it be.
    unknown: String,
    /// How sure the judgement is, as the end of the sentence.
    more: Option<String>,
}

impl Limit {
    fn breach(self) -> Option<Breach> {
        let allowed = self.allowed?;
        let Some(actual) = self.actual.filter(|value| !value.is_nan()) else {
            let text = format!("{} unknown: {}", self.name, self.unknown);
            let violation = Violation { limit: self.key, text, excess: f64::INFINITY };
            return Some(Breach { violation, actual: None, allowed, side: self.side });
        };
        let (beyond, word) = match self.side {
            Side::AtMost => (actual - allowed, "above"),
            Side::AtLeast => (allowed - actual, "below"),
        };
        if beyond <= 1e-9 * allowed.abs().max(1e-3) {
            return None;
        }
        let more = self.more.unwrap_or_default();
        let text = format!("{} {} is {word} {}{more}", self.name, (self.print)(actual), (self.print)(allowed));
        let excess = if allowed == 0.0 { beyond } else { beyond / allowed.abs() };
        Some(Breach { violation: Violation { limit: self.key, text, excess }, actual: Some(actual), allowed, side: self.side })
    }
}

/// Prints a value of a key as people read it.
pub(super) fn print(key: &str, value: f64) -> String {
    match key {
        "max_latency_p50_ms" | "max_latency_p99_ms" => ms(value),
        "min_throughput_per_s" => rate(value),
        "max_memory_mib" => mib(value),
        "max_model_kib" => kib(value),
        "max_cost_usd_per_million" => dollars(value),
        _ => share(value),
    }
}

fn ms(value: f64) -> String {
    Seconds(value / 1e3).to_string()
}

fn rate(value: f64) -> String {
    PerSecond(value).to_string()
}

fn mib(value: f64) -> String {
    Bytes((value * f64::from(1 << 20)) as u64).to_string()
}

fn kib(value: f64) -> String {
    Bytes((value * 1024.0) as u64).to_string()
}

fn dollars(value: f64) -> String {
    format!("{} per million", Usd(value))
}

/// A metric or a loss of it: four decimals, as metrics are printed, or three figures where that would print nothing.
pub(super) fn share(value: f64) -> String {
    if value.abs() >= 0.0005 || value == 0.0 { format!("{value:.4}") } else { three_figures(value) }
}

/// Judges every row that was measured; those that break a limit become infeasible.
pub(super) fn apply(field: &mut Field<'_>) {
    let baseline = field.baseline.and_then(|at| field.judged[at].row.primary).map(|primary| primary.value);
    let breaches: Vec<Vec<Breach>> = field
        .judged
        .iter()
        .map(|judged| match judged.row.status {
            RowStatus::Ok => limits(field, judged, baseline).into_iter().filter_map(Limit::breach).collect(),
            _ => Vec::new(),
        })
        .collect();
    for (judged, breaches) in field.judged.iter_mut().zip(breaches) {
        if breaches.is_empty() {
            continue;
        }
        judged.row.status = RowStatus::Infeasible;
        judged.row.violations = breaches.iter().map(|breach| breach.violation.clone()).collect();
        let texts: Vec<&str> = breaches.iter().map(|breach| breach.violation.text.as_str()).collect();
        judged.row.reason = Some(texts.join("; "));
        judged.breaches = breaches;
    }
}

fn limits(field: &Field<'_>, judged: &Judged<'_>, baseline: Option<f64>) -> Vec<Limit> {
    let (constraints, row) = (&field.run.header.goal.constraints, &judged.row);
    let bytes = |bytes: Option<Bytes>, unit: f64| bytes.map(|b| b.0 as f64 / unit);
    let mut limits = vec![
        drop(field, judged, baseline),
        Limit {
            key: "min_accuracy",
            side: Side::AtLeast,
            allowed: constraints.min_accuracy,
            actual: row.primary.map(|primary| primary.value),
            name: field.run.header.primary_metric.facts().title,
            print: share,
            unknown: "it was not measured".into(),
            more: None,
        },
        Limit {
            key: "max_memory_mib",
            side: Side::AtMost,
            allowed: constraints.max_memory_bytes.map(|bytes| bytes as f64 / f64::from(1 << 20)),
            actual: bytes(row.peak_memory, f64::from(1 << 20)),
            name: "peak memory",
            print: mib,
            unknown: "it was not measured".into(),
            more: None,
        },
        Limit {
            key: "max_model_kib",
            side: Side::AtMost,
            allowed: constraints.max_model_bytes.map(|bytes| bytes as f64 / 1024.0),
            actual: bytes(row.model_size, 1024.0),
            name: if notes::is_packed_size(&judged.record.candidate) { "model size (computed, packed)" } else { "model size" },
            print: kib,
            unknown: "it was not measured".into(),
            more: None,
        },
    ];
    if !field.has_speed_limits() {
        return limits;
    }
    limits.extend([
        Limit {
            key: "max_latency_p50_ms",
            side: Side::AtMost,
            allowed: constraints.max_latency_p50.map(Seconds::as_ms),
            actual: row.latency_p50.map(Seconds::as_ms),
            name: "p50",
            print: ms,
            unknown: "no step was timed".into(),
            more: None,
        },
        Limit {
            key: "max_latency_p99_ms",
            side: Side::AtMost,
            allowed: constraints.max_latency_p99.map(Seconds::as_ms),
            actual: row.latency_p99.map(Seconds::as_ms),
            name: "p99",
            print: ms,
            unknown: if row.samples < STEPS_FOR_P99 {
                format!("fewer than {STEPS_FOR_P99} steps were timed")
            } else {
                "the record holds no bound".into()
            },
            more: None,
        },
        Limit {
            key: "min_throughput_per_s",
            side: Side::AtLeast,
            allowed: constraints.min_throughput.map(|rate| rate.0),
            actual: row.throughput.map(|rate| rate.value),
            name: "throughput",
            print: rate,
            unknown: "no block was timed".into(),
            more: None,
        },
        Limit {
            key: "max_cost_usd_per_million",
            side: Side::AtMost,
            allowed: constraints.max_usd_per_million,
            actual: row.usd_per_million.map(|usd| usd.value),
            name: "cost",
            print: dollars,
            unknown: "no block was timed".into(),
            more: None,
        },
    ]);
    limits
}

/// Loss against the baseline: paired answers where there are some, else the difference of the metric (training: of the means over seeds).
/// The observed loss decides; the paired interval says whether that is shown.
fn drop(field: &Field<'_>, judged: &Judged<'_>, baseline: Option<f64>) -> Limit {
    let (header, row) = (&field.run.header, &judged.row);
    let metric = header.primary_metric;
    let is_baseline = field.baseline.is_some_and(|at| field.judged[at].row.id == row.id);
    let difference = || Some(quality::loss(metric, baseline?, row.primary?.value));
    let of_answers = |drop: Drop| {
        let shown = match drop.within_limit {
            Some(LimitVerdict::Broken) => ": shown",
            Some(_) => ": not proven",
            None => "",
        };
        let interval = drop.bounds.map(|i| format!("90 % interval {} to {}, ", share(i.low), share(i.high))).unwrap_or_default();
        format!("{shown} ({interval}{})", phrase::mcnemar(&drop))
    };
    let seeds = seeds(judged.record).len();
    let of_seeds =
        (field.phase == Phase::Train && seeds > 0).then(|| format!(" (means of {}, not tested)", phrase::count(seeds, "seed")));
    let more = row.drop.map(of_answers).or(of_seeds);
    Limit {
        key: "max_accuracy_drop",
        side: Side::AtMost,
        allowed: header.goal.constraints.max_accuracy_drop,
        actual: if is_baseline { Some(0.0) } else { row.drop.map(|drop| drop.value).or_else(difference) },
        name: "loss of accuracy",
        print: share,
        unknown: if field.baseline.is_none() { "no fp32 baseline was measured" } else { "it was not measured" }.into(),
        more,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(side: Side, allowed: f64, actual: Option<f64>) -> Limit {
        let unknown = "fewer than 459 steps were timed".to_string();
        Limit { key: "k", side, allowed: Some(allowed), actual, name: "p99", print: ms, unknown, more: None }
    }

    #[test]
    fn a_breach_says_both_numbers_and_how_far_beyond() {
        let breach = limit(Side::AtMost, 5.0, Some(7.1)).breach().unwrap();
        assert_eq!(breach.violation.text, "p99 7.10 ms is above 5.00 ms");
        assert!((breach.violation.excess - 0.42).abs() < 1e-12);
        let breach = limit(Side::AtLeast, 5.0, Some(4.0)).breach().unwrap();
        assert!((breach.violation.excess - 0.2).abs() < 1e-12);
        assert!(limit(Side::AtMost, 5.0, Some(5.0)).breach().is_none());
        assert!(limit(Side::AtLeast, 5.0, Some(5.0)).breach().is_none());
    }

    #[test]
    fn an_unknown_figure_breaks_its_limit() {
        let breach = limit(Side::AtMost, 5.0, None).breach().unwrap();
        assert_eq!(breach.violation.text, "p99 unknown: fewer than 459 steps were timed");
        assert_eq!(breach.actual, None);
    }
}
