//! Why the pick is the pick: whole sentences with their numbers, most important first.

use super::{
    Field, LEAST_EFFECT, RESAMPLES, RowStatus,
    objective::{Figure, Figures},
    phrase,
    pick::{Found, NoOdds},
    quality::Changes,
    rows::seeds,
};
use crate::{
    units::{Bytes, Joules, PerSecond, Seconds},
    vocab::Phase,
};

/// Better rows that a limit keeps out are named up to this many; the table has the others.
const KEPT_OUT: usize = 3;

pub(super) fn of(field: &Field<'_>, figures: &Figures, found: &Found) -> Vec<String> {
    let mut sentences = Vec::new();
    sentences.extend(against_baseline(field, figures, found));
    sentences.extend(drift(field, figures, found.row));
    sentences.extend(quality(field, found.row));
    sentences.push(odds(field, figures, found));
    sentences.extend(ties(field, figures, found));
    sentences.extend(limits(field));
    sentences.extend(kept_out(field, figures, found));
    sentences.extend(without_figure(field, figures));
    sentences
}

/// `costs $0.00115 per million images`: the figure of a row as the end of a sentence.
pub(super) fn figure(field: &Field<'_>, figures: &Figures, row: usize) -> Option<String> {
    let value = figures.values[row]?;
    let (header, judged) = (&field.run.header, &field.judged[row].row);
    let (unit, units) = (if header.unit.is_empty() { "unit" } else { &header.unit }, phrase::plural(&header.unit));
    let metric = header.primary_metric.facts();
    let target = field.judged[row].record.training.as_ref().and_then(|training| training.target);
    let target = target.map_or("the target".to_string(), |target| format!("the target of {target}"));
    let seeds = seeds(field.judged[row].record);
    let of_seeds = match seeds.len() {
        1 => "1 seed".to_string(),
        2 => "mean of 2 seeds".to_string(),
        n => format!("mean of {n} seeds without the fastest and the slowest"),
    };
    Some(match figures.figure {
        Figure::UsdPerMillion => {
            let usd = judged.usd_per_million.map_or(value, |usd| usd.value);
            format!("costs {} per million {units}", phrase::usd(usd))
        }
        Figure::Throughput => {
            let rate = judged.throughput.map_or(value, |rate| rate.value);
            format!("does {} {units} a second", PerSecond(rate).to_string().trim_end_matches("/s"))
        }
        Figure::Latency => {
            let latency = judged.latency_p50.unwrap_or(Seconds(value));
            let batch = field.judged[row].record.candidate.batch_size;
            format!("takes {latency} (median) for a step of {}", phrase::count(batch, unit))
        }
        Figure::SecondsPerEpoch => {
            format!("trains an epoch of {} in {}", phrase::count(header.train_rows, unit), Seconds(value))
        }
        Figure::UsdToTarget => format!("reaches {target} for {} ({of_seeds})", phrase::usd(value)),
        Figure::SecondsToTarget => format!("reaches {target} in {} ({of_seeds})", Seconds(value)),
        Figure::JoulesPerUnit => format!("takes {} for one {unit}", Joules(value)),
        Figure::PeakMemory => format!("needs {} at its peak", Bytes(value as u64)),
        Figure::Quality => format!("has {} {value:.*}", metric.title, metric.decimals),
    })
}

/// `41 % less`, `3.1 % more`, `the same` for the figure of `row` beside that of `other`.
pub(super) fn change(figures: &Figures, row: usize, other: usize) -> Option<String> {
    let change = figures.values[row]? / figures.values[other]? - 1.0;
    if !change.is_finite() {
        return None;
    }
    Some(match change {
        0.0 => "the same".to_string(),
        c if c < 0.0 => format!("{} less", phrase::percent(-c)),
        c => format!("{} more", phrase::percent(c)),
    })
}

fn against_baseline(field: &Field<'_>, figures: &Figures, found: &Found) -> Option<String> {
    let title = field.title(found.row);
    let figure = figure(field, figures, found.row)?;
    let next = || {
        let next = *found.others.first()?;
        Some(format!("; the next of the feasible rows, `{}`, has {}", field.title(next), change(figures, next, found.row)?))
    };
    let Some(baseline) = field.baseline else {
        return Some(format!("`{title}` {figure}; there is no fp32 baseline to compare it with{}.", next().unwrap_or_default()));
    };
    if baseline == found.row {
        return Some(format!("`{title}` is the baseline itself: it {figure}{}.", next().unwrap_or_default()));
    }
    let change = change(figures, found.row, baseline).map(|change| match change.as_str() {
        "the same" => format!(", the same as `{}`", field.title(baseline)),
        change => format!(", {change} than `{}`", field.title(baseline)),
    });
    let speedup = field.judged[found.row].row.speedup.map(|speedup| match speedup.interval {
        Some(interval) => {
            format!(" (speedup {}, 95 % interval {})", phrase::times(speedup.value), phrase::range(interval))
        }
        None => format!(" (speedup {}, from one round: no interval)", phrase::times(speedup.value)),
    });
    Some(format!("`{title}` {figure}{}{}.", change.unwrap_or_default(), speedup.unwrap_or_default()))
}

/// Said where the rate in the row's own seconds and its drift-free one differ by more than anyone should ignore.
fn drift(field: &Field<'_>, figures: &Figures, row: usize) -> Option<String> {
    let judged = &field.judged[row];
    let (own, value) = (judged.timing.throughput()?.value, judged.row.throughput?.value);
    let apart = (own / value - 1.0).abs();
    (figures.figure.is_of_rate() && apart.is_finite() && apart > LEAST_EFFECT).then(|| {
        format!(
            "Rates follow the ratio to the baseline in shared rounds, which the machine's drift leaves alone: in its own seconds `{}` was \
             {} {}.",
            field.title(row),
            phrase::percent(apart),
            if own < value { "slower" } else { "faster" }
        )
    })
}

fn quality(field: &Field<'_>, row: usize) -> Option<String> {
    let (header, judged) = (&field.run.header, &field.judged[row]);
    let metric = header.primary_metric.facts();
    let print = |value: f64| format!("{value:.*}", metric.decimals);
    let own = judged.row.primary?;
    let range = own.interval.map(|i| format!(" (95 % interval {} to {})", print(i.low), print(i.high))).unwrap_or_default();
    let base = field.baseline.filter(|at| *at != row).and_then(|at| Some((at, field.judged[at].row.primary?.value)));
    if field.phase == Phase::Train {
        let seeds = phrase::count(seeds(judged.record).len(), "seed");
        let against = base.map(|(at, value)| format!(", against {} for `{}`", print(value), field.title(at))).unwrap_or_default();
        return Some(format!("Its {} is {}{range}, the mean of {seeds}{against}.", metric.title, print(own.value)));
    }
    let Some((at, value)) = base else {
        return Some(format!("Its {} is {}{range}.", metric.title, print(own.value)));
    };
    let paired = judged.row.drop.and_then(|drop| {
        let (before, now) = (field.judged[at].record.quality.as_ref()?, judged.record.quality.as_ref()?);
        let changes = Changes::between(before, now, &header.test_labels)?;
        Some(format!(
            " on the same {}: {} lost, {} won, {} ({}); this test set could have shown a loss of {}",
            phrase::count(changes.rows as usize, "row"),
            phrase::count(changes.lost as usize, "row"),
            changes.won,
            phrase::mcnemar(&drop),
            drop.verdict.name(),
            print(drop.smallest_provable)
        ))
    });
    Some(format!(
        "Its {} is {} against {} of `{}`{}.",
        metric.title,
        print(own.value),
        print(value),
        field.title(at),
        paired.unwrap_or_default()
    ))
}

/// Superlative and what is resampled.
fn words(field: &Field<'_>, figure: Figure) -> (&'static str, Option<&'static str>) {
    match figure {
        Figure::UsdPerMillion => ("the cheapest", Some("timed rounds")),
        Figure::UsdToTarget => ("the cheapest", Some("seeds")),
        Figure::Latency | Figure::SecondsPerEpoch | Figure::Throughput => ("the fastest", Some("timed rounds")),
        Figure::SecondsToTarget => ("the fastest", Some("seeds")),
        Figure::JoulesPerUnit => ("the most frugal", None),
        Figure::PeakMemory => ("the smallest", None),
        Figure::Quality => ("the best", Some(if field.phase == Phase::Train { "seeds" } else { "test rows" })),
    }
}

fn odds(field: &Field<'_>, figures: &Figures, found: &Found) -> String {
    let (superlative, resampled) = words(field, figures.figure);
    let rows = phrase::count(found.others.len() + 1, "feasible row");
    let resampled = resampled.unwrap_or("measurements");
    let unknown = format!("The probability that it is {superlative} of {rows} is unknown");
    match (&found.odds, found.no_odds) {
        (Some(odds), _) => format!(
            "The probability that it is {superlative} of {rows} is {} ({RESAMPLES} resamples of the {resampled}); by taking it one loses {} \
             on average against the best.",
            phrase::probability(found.probability(found.row).unwrap_or(0.0)),
            phrase::percent(odds.regret)
        ),
        (None, Some(NoOdds::OnlyRow)) => "It is the only feasible row.".to_string(),
        (None, Some(NoOdds::TooFew(few))) => {
            let samples = if few.has == 1 { resampled.trim_end_matches('s') } else { resampled };
            format!("{unknown}: some rows have only {} {samples}, and odds need at least {} of each row.", few.has, few.needs)
        }
        (None, _) => format!("{unknown}: each was measured once, so this order carries no estimate of noise."),
    }
}

fn ties(field: &Field<'_>, figures: &Figures, found: &Found) -> Vec<String> {
    let (_, resampled) = words(field, figures.figure);
    let titles = |rows: &[usize]| phrase::list(&rows.iter().map(|row| field.title(*row)).collect::<Vec<_>>());
    let few: Vec<usize> = found.too_few.iter().map(|(row, _)| *row).collect();
    let tested: Vec<usize> = found.ties.iter().copied().filter(|row| !few.contains(row)).collect();
    let mut sentences = Vec::new();
    if !tested.is_empty() {
        let why = match (figures.figure, resampled) {
            (_, None) => "a difference below 1 %",
            (Figure::Quality, _) => "corrected p > 0.05",
            _ => "corrected p > 0.05, or a difference below 1 %",
        };
        sentences.push(format!("It cannot be told apart from {} ({why}).", titles(&tested)));
    }
    let has = found.too_few.iter().map(|(_, shortage)| shortage.has).min();
    if let Some((has, needs)) = has.zip(found.too_few.iter().map(|(_, shortage)| shortage.needs).max()) {
        sentences.push(format!(
            "It is not told apart from {}: too few {} ({has} in common; a test at p = 0.05 against {} needs {needs}).",
            titles(&few),
            resampled.unwrap_or("measurements"),
            phrase::count(found.others.len(), "row")
        ));
    }
    if found.ties.is_empty() && !found.others.is_empty() {
        sentences.push(match resampled {
            Some(_) => "It can be told apart from every other feasible row.".to_string(),
            None => "Every other feasible row differs by 1 % or more, by one measurement each.".to_string(),
        });
    }
    sentences
}

fn limits(field: &Field<'_>) -> Option<String> {
    let constraints = &field.run.header.goal.constraints;
    let has_speed = constraints.max_latency_p50.is_some()
        || constraints.max_latency_p99.is_some()
        || constraints.min_throughput.is_some()
        || constraints.max_usd_per_million.is_some();
    (has_speed && !field.has_speed_limits()).then(|| {
        "The limits on latency, throughput and cost per million speak of inference and do not bind training.".to_string()
    })
}

/// Rows that would have been better but break a limit.
fn kept_out(field: &Field<'_>, figures: &Figures, found: &Found) -> Vec<String> {
    let Some(best) = figures.values[found.row] else { return Vec::new() };
    let mut better: Vec<(usize, f64)> = (0..field.judged.len())
        .filter(|row| field.judged[*row].row.status == RowStatus::Infeasible)
        .filter_map(|row| Some((row, figures.values[row].filter(|value| figures.is_better(*value, best))?)))
        .collect();
    better.sort_by(|a, b| if figures.is_maximised { b.1.total_cmp(&a.1) } else { a.1.total_cmp(&b.1) });
    better
        .into_iter()
        .take(KEPT_OUT)
        .filter_map(|(row, _)| {
            let why = field.judged[row].row.reason.as_deref()?;
            let change = change(figures, row, found.row)?;
            Some(format!("`{}` would have {change} but is not feasible: {why}.", field.title(row)))
        })
        .collect()
}

fn without_figure(field: &Field<'_>, figures: &Figures) -> Option<String> {
    let rows = field.feasible().into_iter().filter(|row| figures.values[*row].is_none()).count();
    let why = match figures.figure {
        Figure::UsdToTarget | Figure::SecondsToTarget => "missed the target with too many seeds",
        Figure::JoulesPerUnit => "no valid energy figure",
        _ => "no figure for the objective",
    };
    (rows > 0).then(|| format!("{} within the limits could not be compared: {why}.", phrase::count(rows, "row")))
}
