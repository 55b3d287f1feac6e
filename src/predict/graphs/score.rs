//! The law held against what a GPU measured of our graphs, and its fit.
//!
//! The launch is fitted on steps whose rows lay on the device, then what a phase's rows take on its whole runs. Of every group (a model in a phase) the error is that of a fit without it.

use super::{
    super::parameters::Parameters,
    law::{GraphError, GraphLaw},
    rates::KernelRates,
};
use crate::{
    hardware::Gpu,
    record::CountedGraph,
    stats::quantile,
    vocab::{Phase, Vocabulary},
};

/// Something measured, with the programs that were.
#[derive(Clone, Debug)]
pub struct GraphCase {
    /// `simple-cnn, train, fp32, batch 64`.
    pub name: String,
    /// What is held out together.
    pub group: String,
    /// A whole run, with the way of its rows; else steps on rows that lay on the device.
    pub is_run: bool,
    pub counted: CountedGraph,
    /// Seconds of a step.
    pub measured: f64,
}

/// A case with what a fit without its group says.
#[derive(Clone, Debug)]
pub struct HeldOut {
    pub name: String,
    pub phase: Phase,
    pub is_run: bool,
    pub measured: f64,
    pub predicted: f64,
    /// By the fit to all cases.
    pub fitted: f64,
}

impl HeldOut {
    /// Predicted over measured, less 1.
    pub fn error(&self) -> f64 {
        self.predicted / self.measured - 1.0
    }
}

/// Factor between neighbouring values that are tried, and how many of them.
const STEP: f64 = 1.01;
const TRIED: i32 = 1200;

/// The best of values from `low` on.
fn best(low: f64, loss: impl Fn(f64) -> f64) -> f64 {
    let values = (0..TRIED).map(|power| low * STEP.powi(power)).chain([0.0]);
    values.map(|value| (loss(value), value)).min_by(|a, b| a.0.total_cmp(&b.0)).map_or(0.0, |(_, value)| value)
}

/// A case, its work apart from launches: what a fit needs of it, once for each launch that is tried.
fn on_device(case: &GraphCase, law: &GraphLaw, rates: &KernelRates, parameters: &Parameters, gpu: &Gpu) -> Option<f64> {
    law.on_device(rates, parameters, &case.counted, gpu).ok().map(|step| step.total.0)
}

/// Fits the figures to `cases`; those with unknown ops have no part in it.
pub fn fit(cases: &[&GraphCase], rates: &KernelRates, parameters: &Parameters, gpu: &Gpu) -> GraphLaw {
    let largest_batch = cases.iter().map(|case| case.counted.candidate.batch_size as f64).fold(0.0, f64::max);
    let blank = GraphLaw { launch: 0.0, answer: 0.0, answered_byte: 0.0, trained_byte: 0.0, largest_batch, errors: Vec::new() };
    let miss = |predicted: f64, measured: f64| (predicted / measured).ln().abs();
    let steps: Vec<&&GraphCase> = cases.iter().filter(|case| !case.is_run).collect();
    let launch = best(1e-7, |launch| {
        // Beyond 20 us no kernel of these steps has its launch.
        if launch > 2e-5 {
            return f64::INFINITY;
        }
        let law = GraphLaw { launch, ..blank.clone() };
        steps.iter().filter_map(|case| Some(miss(on_device(case, &law, rates, parameters, gpu)?, case.measured))).sum()
    });
    let law = GraphLaw { launch, ..blank };
    let runs = |phase: Phase| {
        let of_phase = cases.iter().filter(move |case| case.is_run && case.counted.candidate.phase == phase);
        let timed = of_phase.filter_map(|case| {
            Some((on_device(case, &law, rates, parameters, gpu)?, case.counted.input_bytes.0 as f64, case.measured))
        });
        timed.collect::<Vec<(f64, f64, f64)>>()
    };
    // A figure for each step of training as well made held-out runs worse: two groups do not tell it from the rows.
    let trained = runs(Phase::Train);
    let trained_byte = best(1e-12, |byte| loss(&trained, 0.0, byte));
    let answered = runs(Phase::Infer);
    // Each with the other as it is: a handful of rounds settles both.
    let (mut answer, mut answered_byte) = (1e-5, 1e-10);
    for _ in 0..20 {
        answered_byte = best(1e-12, |byte| loss(&answered, answer, byte));
        answer = best(1e-7, |answer| loss(&answered, answer, answered_byte));
    }
    GraphLaw { answer, answered_byte, trained_byte, ..law }
}

/// How far runs (seconds on the device, bytes, measured seconds) are missed where each step and byte of rows takes so long.
fn loss(runs: &[(f64, f64, f64)], step: f64, byte: f64) -> f64 {
    runs.iter().map(|(device, bytes, measured)| ((device + step + byte * bytes) / measured).ln().abs()).sum()
}

/// Every case as a fit without its group says it; those with unknown ops are left out.
pub fn held_out(cases: &[GraphCase], rates: &KernelRates, parameters: &Parameters, gpu: &Gpu) -> Vec<HeldOut> {
    let whole = fit(&cases.iter().collect::<Vec<_>>(), rates, parameters, gpu);
    let mut groups: Vec<&str> = cases.iter().map(|case| case.group.as_str()).collect();
    groups.sort_unstable();
    groups.dedup();
    let mut out = Vec::new();
    for group in groups {
        let rest: Vec<&GraphCase> = cases.iter().filter(|case| case.group != group).collect();
        let law = fit(&rest, rates, parameters, gpu);
        for case in cases.iter().filter(|case| case.group == group) {
            let of = |law: &GraphLaw| {
                let step = law.on_device(rates, parameters, &case.counted, gpu).ok()?;
                Some(step.total.0 + if case.is_run { law.rows(&case.counted) } else { 0.0 })
            };
            let (Some(predicted), Some(fitted)) = (of(&law), of(&whole)) else { continue };
            let (name, phase) = (case.name.clone(), case.counted.candidate.phase);
            out.push(HeldOut { name, phase, is_run: case.is_run, measured: case.measured, predicted, fitted });
        }
    }
    out
}

/// The errors of what was held out, by phase, steps and runs apart.
pub fn errors(rows: &[HeldOut]) -> Vec<GraphError> {
    let mut out = Vec::new();
    for phase in Phase::WORDS.iter().map(|word| word.value) {
        for is_run in [true, false] {
            let of = rows.iter().filter(|row| row.phase == phase && row.is_run == is_run);
            let sizes: Vec<f64> = of.map(|row| 100.0 * row.error().abs()).collect();
            let Some((median_percent, ninetieth_percent)) = quantile(&sizes, 0.5).zip(quantile(&sizes, 0.9)) else { continue };
            out.push(GraphError { phase, is_run, rows: sizes.len(), median_percent, ninetieth_percent });
        }
    }
    out
}

/// The fit to all cases, with the errors of what is held out.
pub fn calibrated(cases: &[GraphCase], rates: &KernelRates, parameters: &Parameters, gpu: &Gpu) -> (GraphLaw, Vec<HeldOut>) {
    let rows = held_out(cases, rates, parameters, gpu);
    let law = fit(&cases.iter().collect::<Vec<_>>(), rates, parameters, gpu);
    (GraphLaw { errors: errors(&rows), ..law }, rows)
}
