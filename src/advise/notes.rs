//! Plain remarks on a row: what the numbers say that the table alone does not.
//!
//! Whether zeros, a narrow type or more ranks bought time is judged against the row's twin, the candidate that differs in that one
//! word, so that another batch size or thread count cannot pass for an effect.

use super::{
    DropVerdict, Estimate, Field, LimitVerdict, RowStatus, limits, phrase,
    rows::seeds,
    speed::{self, Series},
};
use crate::{
    record::Candidate,
    stats::median,
    vocab::{Compression, Layout, Pattern, Precision, Vocabulary},
};

/// Whether a row's model size is computed, for a packed file that the program does not write.
pub(super) fn is_packed_size(candidate: &Candidate) -> bool {
    candidate.compression.pruning.is_some_and(|pruning| matches!(pruning.pattern, Pattern::Magnitude(_) | Pattern::TwoFour))
}

/// 2 %: a claim of "no gain" must not hang on what the least effect of 1 % leaves undecided.
const NO_GAIN: f64 = 0.02;

pub(super) fn add(field: &mut Field<'_>) {
    let notes: Vec<Vec<String>> = (0..field.judged.len()).map(|row| of(field, row)).collect();
    for (judged, notes) in field.judged.iter_mut().zip(notes) {
        judged.row.notes.extend(notes);
    }
}

fn of(field: &Field<'_>, row: usize) -> Vec<String> {
    let judged = &field.judged[row];
    if !matches!(judged.row.status, RowStatus::Ok | RowStatus::Infeasible) {
        return Vec::new();
    }
    let mut notes = Vec::new();
    notes.extend(loss(field, row));
    if is_packed_size(&judged.record.candidate) && judged.row.model_size.is_some() {
        notes.push(
            "its model size is computed: that of a packed file without the zeros, which this program does not write".to_string(),
        );
    }
    notes.extend(zeros(field, row));
    notes.extend(narrow(field, row));
    notes.extend(ranks(field, row));
    timing(field, row, &mut notes);
    training(field, row, &mut notes);
    if let Some(energy) = judged.record.energy.as_ref().filter(|energy| !energy.valid) {
        notes.push(format!("energy is not valid: {}", energy.reason.as_deref().unwrap_or("the record gives no reason")));
    }
    if let Some(share) = judged.row.roofline_fraction.filter(|share| *share > 1.0) {
        let candidate = &judged.record.candidate;
        let narrow = candidate.precision != Precision::Fp32 || candidate.compression.quantization.is_some();
        let or = if narrow { ", or its narrow arithmetic runs faster than the fp32 rate by which the roof is drawn" } else { "" };
        notes.push(format!("{share:.2} of the roof: data stayed in the cache instead of crossing to memory{or}"));
    }
    notes
}

/// A loss within the limit that so few test rows do not prove.
fn loss(field: &Field<'_>, row: usize) -> Option<String> {
    let limit = field.run.header.goal.constraints.max_accuracy_drop?;
    let judged = &field.judged[row].row;
    let drop = judged.drop.filter(|drop| drop.within_limit == Some(LimitVerdict::NotProven))?;
    (drop.verdict != DropVerdict::TooMuch).then(|| {
        format!(
            "its loss of accuracy, {}, is within the limit of {}, which is not proven: a loss up to {} is possible with {} (one-sided \
             95 % bound)",
            limits::share(drop.value),
            limits::share(limit),
            limits::share(drop.bounds.map_or(f64::NAN, |bounds| bounds.high)),
            phrase::count(field.run.header.test_labels.len(), "test row")
        )
    })
}

fn zeros(field: &Field<'_>, row: usize) -> Option<String> {
    let candidate = &field.judged[row].record.candidate;
    let kind = match candidate.compression.pruning.map(|pruning| pruning.pattern) {
        Some(Pattern::Magnitude(_)) => "unstructured",
        Some(Pattern::TwoFour) => "2:4",
        _ => return None,
    };
    let dense = Compression { pruning: None, ..candidate.compression };
    let ratio = against_twin(field, row, Candidate { compression: dense, ..candidate.clone() })?;
    let claim = match gain(ratio) {
        Gain::None if ratio.value > 1.0 - NO_GAIN => "buy no time here",
        Gain::NotShown => "are not shown to buy time here",
        Gain::None | Gain::Some => return None,
    };
    Some(format!("{kind} zeros {claim}: {}; they only help where the kernel skips them", phrase::ratio(ratio)))
}

fn narrow(field: &Field<'_>, row: usize) -> Option<String> {
    let candidate = &field.judged[row].record.candidate;
    if candidate.precision == Precision::Fp32 {
        return None;
    }
    let ratio = against_twin(field, row, Candidate { precision: Precision::Fp32, ..candidate.clone() })?;
    let name = candidate.precision.name();
    let claim = match gain(ratio) {
        Gain::None => "is no faster",
        Gain::NotShown => "is not shown to be faster",
        Gain::Some => return None,
    };
    Some(format!("{name} {claim} than fp32 on this processor: {}", phrase::ratio(ratio)))
}

fn ranks(field: &Field<'_>, row: usize) -> Option<String> {
    let candidate = &field.judged[row].record.candidate;
    if candidate.layout == Layout::SINGLE {
        return None;
    }
    let ratio = against_twin(field, row, Candidate { layout: Layout::SINGLE, ..candidate.clone() })?;
    let claim = match gain(ratio) {
        Gain::None => "gains nothing",
        Gain::NotShown => "is not shown to gain anything",
        Gain::Some => return None,
    };
    Some(format!("{} {claim} over one rank of as many threads: {}", candidate.layout, phrase::ratio(ratio)))
}

fn timing(field: &Field<'_>, row: usize, notes: &mut Vec<String>) {
    let judged = &field.judged[row];
    // Its own note says why it was not timed.
    if judged.record.candidate.emulation().is_some() {
        return;
    }
    match judged.timing.block_rates.len() {
        0 => return notes.push("no block was timed: it has no speed".to_string()),
        1 => notes.push("one timed block: too few for an interval".to_string()),
        _ => {}
    }
    if field.baseline.is_some_and(|at| at != row) && judged.row.speedup.is_none() {
        notes.push(
            "no timed round in common with the baseline: it is compared by its own median, and the machine's drift is not taken out"
                .to_string(),
        );
    }
    if judged.record.measurement.as_ref().is_some_and(|measurement| !measurement.warm_up_stable) {
        notes.push("its times were not yet stable when the warm-up reached its cap".to_string());
    }
}

fn training(field: &Field<'_>, row: usize, notes: &mut Vec<String>) {
    let record = field.judged[row].record;
    let Some(training) = &record.training else { return };
    let seeds = seeds(record);
    if seeds.len() == 1 {
        notes.push("one seed: the spread between trainings is unknown".to_string());
    }
    for seed in seeds {
        if let Some(failure) = &seed.failure {
            notes.push(format!("seed {} ended early: {failure}", seed.seed));
        }
    }
    if record.candidate.emulation().is_some() {
        return;
    }
    let reached = seeds.iter().filter(|seed| seed.time_to_target.is_some()).count();
    if let Some(target) = training.target.filter(|_| reached < seeds.len()) {
        let missing = if field.judged[row].row.time_to_target.is_none() { ": too few for a time to target" } else { "" };
        notes.push(format!("{reached} of {} reached the target of {target}{missing}", phrase::count(seeds.len(), "seed")));
    }
}

/// Throughput over that of the measured row with the candidate `twin`: in rounds that both share, else by way of the baseline.
fn against_twin(field: &Field<'_>, row: usize, twin: Candidate) -> Option<Estimate> {
    let id = twin.id();
    let other = field.judged.iter().find(|judged| judged.row.id == id)?;
    let own = &field.judged[row];
    let ratios = speed::shared_ratios(&own.timing.rates, &other.timing.rates);
    speed::estimate(&ratios).or_else(|| {
        let base: Option<&Series> = field.baseline.map(|at| &field.judged[at].timing.rates);
        let pace = |series: &Series| match base {
            Some(base) => median(&speed::shared_ratios(series, base)),
            None => None,
        };
        let value = pace(&own.timing.rates)? / pace(&other.timing.rates)?;
        value.is_finite().then_some(Estimate { value, interval: None })
    })
}

enum Gain {
    /// Shown to be below 2 %.
    None,
    /// The interval holds both no gain and one; or there is no interval, and the value is below 2 %.
    NotShown,
    Some,
}

fn gain(ratio: Estimate) -> Gain {
    match ratio.interval {
        Some(interval) if interval.high < 1.0 + NO_GAIN => Gain::None,
        Some(interval) if interval.low <= 1.0 => Gain::NotShown,
        None if ratio.value < 1.0 + NO_GAIN => Gain::NotShown,
        _ => Gain::Some,
    }
}
