//! What would have to change for the answer to change: a runner-up's figure, a price, a limit. Each a sentence with its
//! number, so that a reader with other prices or other limits need not run anything again.

use super::{
    Field, Flip, RowStatus,
    limits::{self, Side},
    objective::{Figure, Figures},
    phrase,
    pick::Found,
    reasons,
};
use crate::units::UsdPerHour;

/// Relaxed limits are named up to this many.
const RELAXED: usize = 4;

pub(super) fn of(field: &Field<'_>, figures: &Figures, found: &Found) -> Vec<Flip> {
    let mut flips = Vec::new();
    flips.extend(runner_up(field, figures, found));
    flips.extend(price_of_baseline(field, figures, found));
    flips.extend(relaxed(field, figures, found));
    flips
}

/// By how much the second must improve.
fn runner_up(field: &Field<'_>, figures: &Figures, found: &Found) -> Option<Flip> {
    let row = *found.others.first()?;
    let (best, second) = (figures.values[found.row]?, figures.values[row]?);
    let ratio = second / best;
    if !(ratio.is_finite() && ratio > 0.0) || ratio == 1.0 {
        return None;
    }
    let rises = |what: &str, by: f64| format!("{what} rises by more than {}", phrase::percent(by));
    let falls = |what: &str| format!("{what} falls by more than {}", phrase::percent(1.0 - 1.0 / ratio));
    let condition = match figures.figure {
        Figure::UsdPerMillion | Figure::SecondsPerEpoch => rises("throughput", ratio - 1.0),
        Figure::Throughput => rises("throughput", 1.0 / ratio - 1.0),
        Figure::Latency => falls("median latency"),
        Figure::UsdToTarget | Figure::SecondsToTarget => falls("training time to the target"),
        Figure::JoulesPerUnit => falls("energy"),
        Figure::PeakMemory => falls("peak memory"),
        Figure::Quality => {
            let metric = field.run.header.primary_metric.facts();
            format!("{} rises by more than {:.*}", metric.title, metric.decimals, best - second)
        }
    };
    Some(Flip { row, text: format!("`{}` becomes the pick if its {condition}, all else the same.", field.title(row)) })
}

/// The price of an hour at which the plain choice costs what the pick costs now.
fn price_of_baseline(field: &Field<'_>, figures: &Figures, found: &Found) -> Option<Flip> {
    let row = field.baseline.filter(|at| *at != found.row && field.judged[*at].row.status == RowStatus::Ok)?;
    if !matches!(figures.figure, Figure::UsdPerMillion | Figure::UsdToTarget) {
        return None;
    }
    let (best, plain) = (figures.values[found.row]?, figures.values[row]?);
    let today = field.price.usd_per_hour;
    let tie = UsdPerHour(today.0 * best / plain);
    if !(tie.0.is_finite() && tie.0 > 0.0 && plain > best) {
        return None;
    }
    let text = format!(
        "`{}` would be as cheap as `{}` only on an equally fast machine of {tie}, {} below the {today} of `{}`.",
        field.title(row),
        field.title(found.row),
        phrase::percent(1.0 - best / plain),
        field.price.instance
    );
    Some(Flip { row, text })
}

/// Limits whose relaxation lets a better row in: for each limit the rows that only it keeps out and that no row let in earlier beats.
fn relaxed(field: &Field<'_>, figures: &Figures, found: &Found) -> Vec<Flip> {
    let Some(best) = figures.values[found.row] else { return Vec::new() };
    let mut waiting: Vec<(usize, f64, f64, f64)> = (0..field.judged.len())
        .filter_map(|row| {
            let [breach] = field.judged[row].breaches.as_slice() else { return None };
            let value = figures.values[row].filter(|value| figures.is_better(*value, best))?;
            Some((row, breach.violation.excess, breach.actual?, value))
        })
        .collect();
    waiting.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut best_by_limit: Vec<(&'static str, f64)> = Vec::new();
    let mut flips = Vec::new();
    for (row, _, actual, value) in waiting {
        let breach = &field.judged[row].breaches[0];
        let key = breach.violation.limit;
        let earlier = best_by_limit.iter_mut().find(|(limit, _)| *limit == key);
        match earlier {
            Some((_, earlier)) if !figures.is_better(value, *earlier) => continue,
            Some((_, earlier)) => *earlier = value,
            None => best_by_limit.push((key, value)),
        }
        let Some(change) = reasons::change(figures, row, found.row) else { continue };
        let what = match figures.figure {
            Figure::UsdPerMillion | Figure::UsdToTarget => "costs",
            Figure::Latency | Figure::SecondsPerEpoch | Figure::SecondsToTarget => "takes",
            Figure::JoulesPerUnit | Figure::PeakMemory => "needs",
            Figure::Throughput | Figure::Quality => "gives",
        };
        let text = format!(
            "With `{key} = {}` instead of {}, `{}` becomes the pick and {what} {change} (its own figure is {}).",
            typed(actual, breach.side),
            plain(breach.allowed, 6),
            field.title(row),
            limits::print(key, actual)
        );
        flips.push(Flip { row, text });
    }
    flips.truncate(RELAXED);
    flips
}

/// A limit as one would type it that just lets `value` through: three figures, rounded to the lenient side.
fn typed(value: f64, side: Side) -> String {
    if value == 0.0 {
        return "0".to_string();
    }
    let digits = value.abs().log10().floor() as i32;
    let step = 10f64.powi(digits - 2);
    let steps = value / step;
    // A value that is a whole number of steps but for rounding stays there.
    let steps = if (steps - steps.round()).abs() < 1e-6 {
        steps.round()
    } else {
        match side {
            Side::AtMost => steps.ceil(),
            Side::AtLeast => steps.floor(),
        }
    };
    plain(steps * step, (2 - digits).clamp(0, 12) as usize)
}

/// A number with at most `decimals`, without trailing zeros.
fn plain(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relaxed_limit_is_rounded_to_the_side_that_lets_the_row_in() {
        assert_eq!(typed(0.011523, Side::AtMost), "0.0116");
        assert_eq!(typed(0.0120, Side::AtMost), "0.012");
        assert_eq!(typed(7.1, Side::AtMost), "7.1");
        assert_eq!(typed(12345.0, Side::AtLeast), "12300");
        assert_eq!(typed(12345.0, Side::AtMost), "12400");
        assert_eq!((plain(0.005, 6), plain(100.0, 6)), ("0.005".into(), "100".into()));
    }
}
