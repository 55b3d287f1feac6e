//! Numbers as they stand in sentences: one form for each kind, so that two sentences never round the same figure differently.

use super::{Drop, Estimate};
use crate::{
    stats::Interval,
    units::{Usd, three_figures},
};

/// `41 %`, `3.2 %`, `0.04 %`.
pub(super) fn percent(share: f64) -> String {
    let value = share * 100.0;
    match value.abs() {
        0.0 => "0 %".to_string(),
        v if v >= 9.95 => format!("{value:.0} %"),
        v if v >= 0.1 => format!("{value:.1} %"),
        v if v >= 0.001 => format!("{value:.3} %"),
        _ => "below 0.001 %".to_string(),
    }
}

/// `1.71x`.
pub(super) fn times(ratio: f64) -> String {
    if ratio < 0.1 { format!("{}x", three_figures(ratio)) } else { format!("{ratio:.2}x") }
}

/// `1.66 to 1.75`.
pub(super) fn range(interval: Interval) -> String {
    format!("{:.2} to {:.2}", interval.low, interval.high)
}

/// `1.71x (1.66 to 1.75)`, without the brackets where there is no interval.
pub(super) fn ratio(estimate: Estimate) -> String {
    match estimate.interval {
        Some(interval) => format!("{} ({})", times(estimate.value), range(interval)),
        None => times(estimate.value),
    }
}

/// `p = 0.31`, `p < 0.001`.
pub(super) fn p_value(p: f64) -> String {
    match p {
        p if p < 0.001 => "p < 0.001".to_string(),
        p if p < 0.1 => format!("p = {p:.3}"),
        p => format!("p = {p:.2}"),
    }
}

/// `exact McNemar p = 0.007, 0.050 after Holm over 7 answers`.
pub(super) fn mcnemar(drop: &Drop) -> String {
    let alone = p_value(drop.p_alone);
    if drop.tests < 2 {
        return format!("exact McNemar {alone}");
    }
    let corrected = p_value(drop.p);
    let corrected = corrected.trim_start_matches("p = ").trim_start_matches("p ");
    format!("exact McNemar {alone}, {corrected} after Holm over {}", count(drop.tests, "answer"))
}

/// A probability, never printed as certain: what is resampled is a sample itself.
pub(super) fn probability(p: f64) -> String {
    match p {
        p if p >= 0.995 => "above 0.99".to_string(),
        p if p < 0.005 => "below 0.01".to_string(),
        p => format!("{p:.2}"),
    }
}

pub(super) fn usd(value: f64) -> String {
    Usd(value).to_string()
}

/// `images`, for a unit called `image`.
pub(super) fn plural(unit: &str) -> String {
    if unit.is_empty() { "units".to_string() } else { format!("{unit}s") }
}

/// `1 row`, `1,996 rows`.
pub(super) fn count(n: usize, thing: &str) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (k, digit) in digits.chars().enumerate() {
        if k > 0 && (digits.len() - k).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    format!("{text} {}{}", thing, if n == 1 { "" } else { "s" })
}

/// `a`, `a and b`, `a, b and c`, each in backticks because titles hold commas.
pub(super) fn list(titles: &[&str]) -> String {
    let quoted: Vec<String> = titles.iter().map(|title| format!("`{title}`")).collect();
    match quoted.split_last() {
        None => String::new(),
        Some((only, [])) => only.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well_in_sentences() {
        assert_eq!((percent(0.4149), percent(0.0321), percent(0.0004)), ("41 %".into(), "3.2 %".into(), "0.040 %".into()));
        assert_eq!(percent(0.0), "0 %");
        assert_eq!((p_value(1.0), p_value(0.0312), p_value(1e-9)), ("p = 1.00".into(), "p = 0.031".into(), "p < 0.001".into()));
        assert_eq!(
            (probability(1.0), probability(0.42), probability(0.0)),
            ("above 0.99".into(), "0.42".into(), "below 0.01".into())
        );
        assert_eq!((count(1, "row"), count(1996, "row")), ("1 row".into(), "1,996 rows".into()));
        assert_eq!(list(&["a", "b", "c"]), "`a`, `b` and `c`");
        assert_eq!(ratio(Estimate { value: 1.706, interval: Some(Interval { low: 1.66, high: 1.75 }) }), "1.71x (1.66 to 1.75)");
    }
}
