//! Numbers and verdicts as people read them. Unknown is always the words "not measured", never a number.

use crate::{
    advise::{Drop, DropVerdict, Estimate, LimitVerdict, PhaseAdvice, PredictedRate, Row},
    record::{Gpu, RunHeader},
    units::{Seconds, Usd, three_figures},
    vocab::{Objective, Phase},
};

pub const UNKNOWN: &str = "not measured";

pub fn or_unknown(text: Option<String>) -> String {
    text.unwrap_or_else(|| UNKNOWN.to_string())
}

/// `16,700 (16,500 to 16,900)`.
pub fn with_interval(estimate: &Estimate, print: impl Fn(f64) -> String) -> String {
    match estimate.interval {
        Some(interval) => format!("{} ({} to {})", print(estimate.value), print(interval.low), print(interval.high)),
        None => print(estimate.value),
    }
}

pub fn milliseconds(time: Seconds) -> String {
    format!("{} ms", three_figures(time.as_ms()))
}

pub fn usd(value: f64) -> String {
    Usd(value).to_string()
}

pub fn ratio(value: f64) -> String {
    format!("{value:.2}x")
}

pub fn share(value: f64) -> String {
    format!("{value:.4}")
}

/// `-0.0010 (no loss shown)`; a gain has a plus sign.
pub fn drop(drop: &Drop) -> String {
    match drop.verdict {
        DropVerdict::Reference => "reference".to_string(),
        DropVerdict::TooMuch if drop.within_limit == Some(LimitVerdict::NotProven) => {
            format!("{:+.4} (too much, not proven)", -drop.value)
        }
        verdict => format!("{:+.4} ({})", -drop.value, verdict.name()),
    }
}

/// A GPU with what it reached.
pub fn gpu(gpu: &Gpu) -> String {
    let tera = |rate: Option<f64>, unit: &str| or_unknown(rate.map(|rate| format!("{} {unit}", three_figures(rate / 1e12))));
    format!(
        "{} ({}), driver {}, {}; copying {}, fp32 {}, bf16 {}",
        gpu.name,
        gpu.uuid.as_deref().unwrap_or("device not named"),
        gpu.driver.as_deref().unwrap_or("unknown"),
        gpu.memory,
        tera(gpu.copy_bytes_per_s, "TB/s"),
        tera(gpu.fp32_flops_per_s, "TFLOP/s"),
        tera(gpu.bf16_flops_per_s, "TFLOP/s")
    )
}

/// Never certain: what is resampled is a sample itself.
pub fn probability(value: f64) -> String {
    if value >= 0.995 {
        "above 99 %".to_string()
    } else if value < 0.005 {
        "below 1 %".to_string()
    } else {
        format!("{:.0} %", 100.0 * value)
    }
}

/// `best with probability 93 %`, or that no odds can be given.
pub fn odds(probability: Option<f64>) -> String {
    match probability {
        Some(value) => format!("best with probability {}", self::probability(value)),
        None => "odds unknown".to_string(),
    }
}

/// What a phase is about, as a heading.
pub fn phase_title(phase: Phase) -> &'static str {
    match phase {
        Phase::Train => "Training",
        Phase::Infer => "Inference",
    }
}

/// `lowest cost`, `highest throughput`: what the pick was chosen for.
pub fn objective(objective: Objective) -> &'static str {
    match objective {
        Objective::Cost => "lowest cost",
        Objective::Time => "shortest time",
        Objective::Energy => "lowest energy",
        Objective::Memory => "smallest memory",
        Objective::Throughput => "highest throughput",
        Objective::Accuracy => "highest quality",
    }
}

/// The unit in plural: `images`.
pub fn units(header: &RunHeader) -> String {
    format!("{}s", header.unit)
}

/// One line that says what a row does: speed, cost, quality.
pub fn figures(row: &Row, header: &RunHeader) -> Vec<(String, String)> {
    let mut out = Vec::new();
    if let Some(speed) = &row.throughput {
        out.push((format!("{} a second", units(header)), with_interval(speed, three_figures)));
    }
    if let Some(speedup) = &row.speedup {
        out.push(("against the fp32 baseline".into(), with_interval(speedup, ratio)));
    }
    if let Some(cost) = &row.usd_per_million {
        out.push((format!("a million {}", units(header)), with_interval(cost, usd)));
    }
    if let Some(time) = row.time_to_target {
        out.push(("to the target".into(), time.to_string()));
    }
    if let Some(cost) = row.cost_to_target {
        out.push(("cost to the target".into(), cost.to_string()));
    }
    if let Some(p50) = row.latency_p50 {
        out.push(("a batch (median)".into(), milliseconds(p50)));
    }
    if let Some(primary) = &row.primary {
        out.push((header.primary_metric.facts().title.into(), with_interval(primary, share)));
    }
    out
}

/// Text for HTML and SVG.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// `2026-11-23 21:04 UTC` from seconds since 1970 (civil-from-days, Hinnant 2013).
pub fn date(unix_s: u64) -> String {
    let (days, second) = ((unix_s / 86_400) as i64, unix_s % 86_400);
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", second / 3600, second % 3600 / 60)
}

/// Hosts with how often each stands there, in order: `a` (2), `b` (1).
pub fn hosts(all: &[String]) -> String {
    let is_first = |at: usize| !all[..at].contains(&all[at]);
    let of = |at: usize| format!("`{}` ({})", all[at], all.iter().filter(|host| **host == all[at]).count());
    (0..all.len()).filter(|at| is_first(*at)).map(of).collect::<Vec<_>>().join(", ")
}

/// `1,230 (+4 %)`: predicted, and how far from what was measured.
pub fn prediction(predicted: &PredictedRate) -> String {
    let error = predicted.error.map_or(String::new(), |error| format!(" ({:+.0} %)", 100.0 * error));
    format!("{}{error}", three_figures(predicted.rate.0))
}

/// How far the predictions of a phase were from what was measured.
pub fn predictions(phase: &PhaseAdvice) -> Option<String> {
    let (error, rows) = phase.prediction_error()?;
    let slowdowns = || phase.rows.iter().filter_map(|row| row.predicted?.slowdown);
    let (least, most) = (slowdowns().reduce(f64::min), slowdowns().reduce(f64::max));
    let at = least.zip(most).map_or(String::new(), |(least, most)| {
        format!(", while the same work took {least:.2} to {most:.2} times as long as when these were taken")
    });
    Some(format!(
        "Predicted from this machine's rates of single ops{at}: {:.0} % off the measured rates in the median of {rows} row{}.",
        100.0 * error,
        if rows == 1 { "" } else { "s" }
    ))
}

#[cfg(test)]
mod word_tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_795_467_840), "2026-11-23 21:04 UTC");
    }

    #[test]
    fn certainty_is_not_rounded_into_being() {
        assert_eq!(
            [probability(1.0), probability(0.999), probability(0.42), probability(0.0)],
            ["above 99 %", "above 99 %", "42 %", "below 1 %"]
        );
    }
}
