//! When nothing can be picked: which limit binds, which row comes nearest, or that nothing was measured at all.

use super::{
    Field, Infeasible, Outcome, RowStatus,
    objective::{Figure, Figures},
    phrase, quality, reasons,
    rows::seeds,
};
use crate::vocab::{Objective, Vocabulary};

pub(super) fn outcome(field: &Field<'_>, figures: &Figures) -> Outcome {
    let feasible = field.feasible();
    if let Some(first) = feasible.first() {
        return Outcome::Infeasible(without_figure(field, figures, *first, feasible.len()));
    }
    let broken: Vec<usize> = (0..field.judged.len()).filter(|k| field.judged[*k].row.status == RowStatus::Infeasible).collect();
    if broken.is_empty() { Outcome::Nothing } else { Outcome::Infeasible(no_row_meets(field, figures, &broken)) }
}

/// Rows meet the limits, but none has the figure that is to be optimised.
fn without_figure(field: &Field<'_>, figures: &Figures, nearest: usize, rows: usize) -> Infeasible {
    if matches!(figures.figure, Figure::UsdToTarget | Figure::SecondsToTarget) {
        return without_target(field, figures, nearest, rows);
    }
    let objective = field.run.header.goal.objective;
    let verb = if objective.is_maximised() { "maximise" } else { "minimise" };
    let why = match objective {
        Objective::Energy => match &field.judged[nearest].record.energy {
            Some(energy) => format!(
                "no row has a valid energy figure: {}",
                energy.reason.as_deref().unwrap_or("the machine's energy counter did not move enough")
            ),
            None => "this machine has no energy counter that could be read, so no row has a figure in joules".to_string(),
        },
        Objective::Memory => "no row has a figure for peak memory".to_string(),
        Objective::Accuracy => "no row has a figure for quality".to_string(),
        Objective::Cost | Objective::Time | Objective::Throughput => "no row within every limit has a timed block".to_string(),
    };
    Infeasible {
        binding: format!("{verb} = \"{}\"", objective.name()),
        nearest,
        reasons: vec![
            format!("{why}."),
            format!("{} within every limit could be ranked by another objective.", phrase::count(rows, "row")),
        ],
    }
}

/// Rows meet the limits, but none reached the quality that training has to reach.
fn without_target(field: &Field<'_>, figures: &Figures, first: usize, rows: usize) -> Infeasible {
    let header = &field.run.header;
    let metric = header.primary_metric;
    let loss = |row: usize| Some(quality::loss(metric, 0.0, field.judged[row].row.primary?.value)).filter(|loss| !loss.is_nan());
    // Whether an emulation reached it is not asked: its time would be nobody's.
    let is_timed = |row: &usize| field.judged[*row].record.candidate.emulation().is_none();
    let rows = rows - field.feasible().iter().filter(|row| !is_timed(row)).count();
    let with_metric = field.feasible().into_iter().filter(is_timed).filter_map(|row| Some((row, loss(row)?)));
    let nearest = with_metric.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(first, |(row, _)| row);
    let record = field.judged[nearest].record;
    let target = header.train.target.map(|target| target.at_least).or_else(|| record.training.as_ref()?.target);
    let title = metric.facts().title;
    let mut reasons = vec![format!(
        "None of {} within every limit reached the target{} with enough of its seeds.",
        phrase::count(rows, "row"),
        target.map(|target| format!(" of {target}")).unwrap_or_default()
    )];
    if let Some(primary) = field.judged[nearest].row.primary {
        let all = seeds(record);
        reasons.push(format!(
            "`{}` came nearest: its {title} is {:.*} (mean of {}), and {} of them reached the target.",
            field.title(nearest),
            metric.facts().decimals,
            primary.value,
            phrase::count(all.len(), "seed"),
            all.iter().filter(|seed| seed.time_to_target.is_some()).count()
        ));
    }
    let outside = (0..field.judged.len())
        .filter(|row| field.judged[*row].row.status == RowStatus::Infeasible && figures.values[*row].is_some())
        .count();
    if outside > 0 {
        reasons.push(format!("{} reached it but broke a limit.", phrase::count(outside, "row")));
    }
    Infeasible { binding: "train.target".to_string(), nearest, reasons }
}

fn no_row_meets(field: &Field<'_>, figures: &Figures, broken: &[usize]) -> Infeasible {
    let breaches = |row: usize| &field.judged[row].breaches;
    let mut keys: Vec<&'static str> = Vec::new();
    for breach in broken.iter().flat_map(|row| breaches(*row)) {
        if !keys.contains(&breach.violation.limit) {
            keys.push(breach.violation.limit);
        }
    }
    let freed = |key: &str| broken.iter().filter(|row| breaches(**row).iter().all(|b| b.violation.limit == key)).count();
    let breaking = |key: &str| broken.iter().filter(|row| breaches(**row).iter().any(|b| b.violation.limit == key)).count();
    // `max_by_key` takes the last of equals: asked backwards, the first limit stands.
    let binding = keys.iter().rev().max_by_key(|key| (freed(key), breaking(key))).copied().unwrap_or_default();
    let excess = |row: usize| breaches(row).iter().map(|b| b.violation.excess).fold(0.0, f64::max);
    let nearest = broken.iter().copied().min_by(|a, b| excess(*a).total_cmp(&excess(*b))).expect("some row is broken");

    let mut sentences = vec![format!(
        "No row meets every limit: {} of {} break `{binding}`.",
        breaking(binding),
        phrase::count(broken.len(), "measured row")
    )];
    sentences.push(match freed(binding) {
        0 => "Every row breaks more than one limit, so lifting a single one lets none through.".to_string(),
        rows => format!("Without `{binding}`, {} would meet the limits.", phrase::count(rows, "row")),
    });
    let texts: Vec<&str> = breaches(nearest).iter().map(|b| b.violation.text.as_str()).collect();
    sentences.push(format!("`{}` misses the limits by the least: {}.", field.title(nearest), texts.join("; ")));
    if let Some(figure) = reasons::figure(field, figures, nearest) {
        sentences.push(format!("It {figure}."));
    }
    for key in keys.iter().filter(|key| **key != binding) {
        sentences.push(format!("{} also break `{key}`.", phrase::count(breaking(key), "row")));
    }
    Infeasible { binding: binding.to_string(), nearest, reasons: sentences }
}
