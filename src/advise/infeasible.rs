//! When nothing can be picked: which limit binds, which row comes nearest, or that nothing was measured at all.

use super::{Field, Infeasible, Outcome, RowStatus, objective::Figures, phrase, reasons};
use crate::vocab::{Objective, Vocabulary};

pub(super) fn outcome(field: &Field<'_>, figures: &Figures) -> Outcome {
    let feasible = field.feasible();
    if let Some(first) = feasible.first() {
        return Outcome::Infeasible(without_figure(field, *first, feasible.len()));
    }
    let broken: Vec<usize> = (0..field.judged.len()).filter(|k| field.judged[*k].row.status == RowStatus::Infeasible).collect();
    if broken.is_empty() { Outcome::Nothing } else { Outcome::Infeasible(no_row_meets(field, figures, &broken)) }
}

/// Rows meet the limits, but none has the figure that is to be optimised.
fn without_figure(field: &Field<'_>, nearest: usize, rows: usize) -> Infeasible {
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
        Objective::Cost | Objective::Time | Objective::Throughput => "no row has a timed block".to_string(),
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
