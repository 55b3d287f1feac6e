//! What a GPU measured of our graphs, with the programs that it ran: the cases that predictions of graphs are fitted to and scored by.

use super::Exit;
use crate::{
    backend::cuda::Facts,
    hardware::HardwareBook,
    input::Source,
    models,
    predict::{
        Parameters,
        graphs::{self, GraphCase, GraphError, GraphLaw, HeldOut, KernelRates},
        tables::Csv,
    },
    record::{Candidate, CountedGraph, KernelRun, TrainConfig},
    scenario::{Known, Scenario},
    stats::median,
    vocab::{Compression, Device, Layout, Phase, Precision, Vocabulary},
    workload::{Rows, counted_on_gpu},
};
use serde_json::{Value, json};

/// Steps on rows that lay on the device, and whole runs of shipped scenarios, both of one H200.
const STEPS: &str = include_str!("../../reports/gpu/nvidia-h200-steps.json");
const RUNS: &str = include_str!("../../reports/gpu/nvidia-h200-scenarios.csv");

/// The scenarios of the runs.
const SCENARIOS: [&str; 2] =
    [include_str!("../../scenarios/fashion-mlp.toml"), include_str!("../../scenarios/image-classification.toml")];

/// The device of the records: which kernels are chosen hangs on it.
pub fn h200() -> Facts {
    Facts {
        name: "NVIDIA H200".into(),
        capability: (9, 0),
        multiprocessors: 132,
        shared_bytes_per_block: 232_448,
        memory_bytes: 150_109_880_320,
    }
}

fn counted(model: &str, candidate: &Candidate, train: &TrainConfig) -> anyhow::Result<CountedGraph> {
    let model = models::find(model).ok_or_else(|| anyhow::anyhow!("no model `{model}`"))?;
    let size = model.usual_size(candidate.batch_size);
    Ok(counted_on_gpu(model, Rows { row: size.row, classes: size.classes }, candidate, train, &h200())?)
}

fn candidate(phase: Phase, precision: Precision, compression: Compression, batch_size: usize) -> Candidate {
    let (device, layout) = (Device::Cuda(0), Layout::SINGLE);
    Candidate { phase, device, precision, compression, layout, batch_size, threads: 1 }
}

/// All cases whose ops the record of kernels has.
pub fn cases() -> anyhow::Result<Vec<GraphCase>> {
    let mut cases = Vec::new();
    let run: KernelRun = serde_json::from_str(STEPS)?;
    for row in &run.steps {
        let Some(measured) = median(&row.step_s) else { continue };
        let (phase, precision): (Phase, Precision) = (Phase::parse(&row.phase)?, Precision::parse(&row.precision)?);
        let one = candidate(phase, precision, Compression::NONE, row.batch_size);
        let train = super::bench_step::timing_config(row.batch_size);
        cases.push(GraphCase {
            name: format!("{}, {}, {}, batch {}", row.model, row.phase, row.precision, row.batch_size),
            group: format!("{} {}", row.model, row.phase),
            is_run: false,
            counted: counted(&row.model, &one, &train)?,
            measured,
        });
    }
    let known = super::known_models();
    let csv = Csv::read(RUNS).map_err(anyhow::Error::msg)?;
    for text in SCENARIOS {
        let read = Scenario::read(Source::new("scenario", text), &Known { models: &known, instances: &[] });
        let scenario = read.map_err(|found| anyhow::anyhow!(crate::input::render(&found)))?;
        for row in csv.rows() {
            let cell = |name: &str| row.text(name).unwrap_or_default();
            if cell("scenario") != scenario.name || cell("source") != "measured" || cell("layout") != "single" {
                continue;
            }
            let (batch, throughput) = (cell("batch_size").parse::<usize>()?, cell("throughput_per_s").parse::<f64>()?);
            let (phase, precision): (Phase, Precision) = (Phase::parse(cell("phase"))?, Precision::parse(cell("precision"))?);
            let compression: Compression = cell("compression").parse()?;
            // Of what kernels of 8 and 4 bits take nothing was timed.
            if compression.quantization.is_some() {
                continue;
            }
            let one = candidate(phase, precision, compression, batch);
            cases.push(GraphCase {
                name: format!("{}, {}", scenario.name, cell("candidate")),
                group: format!("{} {}", scenario.name, cell("phase")),
                is_run: true,
                counted: counted(&scenario.model, &one, &scenario.train)?,
                measured: batch as f64 / throughput,
            });
        }
    }
    Ok(cases)
}

/// The fit to all of them, and each as a fit without its group says it.
pub fn calibrated() -> anyhow::Result<(GraphLaw, Vec<HeldOut>)> {
    let rates = KernelRates::shipped();
    let book = HardwareBook::shipped();
    let gpu = book.find(rates.gpu()).expect("the rates were read with this book");
    Ok(graphs::calibrated(&cases()?, &rates, &Parameters::shipped(), gpu))
}

/// `advisor plan score --graphs`: predicted beside measured.
pub fn score(json: bool) -> anyhow::Result<Exit> {
    let (law, rows) = calibrated()?;
    if json {
        let row = |row: &HeldOut| {
            json!({
                "name": row.name,
                "is_run": row.is_run,
                "measured_step_us": 1e6 * row.measured,
                "predicted_step_us": 1e6 * row.predicted,
                "error_percent": 100.0 * row.error(),
            })
        };
        let all: Vec<Value> = rows.iter().map(row).collect();
        super::print(&serde_json::to_string_pretty(&json!({ "held_out": all }))?)?;
        return Ok(Exit::Done);
    }
    super::print(&format!("{:<62} {:>11} {:>12} {:>7}", "step on an H200", "measured us", "predicted us", "error"))?;
    for row in &rows {
        let error = format!("{:+.0} %", 100.0 * row.error());
        super::print(&format!("{:<62} {:>11.1} {:>12.1} {error:>7}", row.name, 1e6 * row.measured, 1e6 * row.predicted))?;
    }
    super::print("\neach predicted by a fit that had not seen its model in this phase")?;
    for GraphError { phase, is_run, rows, median_percent, ninetieth_percent } in &law.errors {
        let what = if *is_run { "runs, rows from the host" } else { "steps on rows that lie on the device" };
        super::print(&format!(
            "{:<6} {what:<37} {rows:>3} rows, {median_percent:.1} % in the median, {ninetieth_percent:.1} % at the 90th percentile",
            phase.name()
        ))?;
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The committed figures are those of the fit; and what a fit has not seen it still meets, prints of both beside it
    /// (`advisor plan score --graphs`). The bounds are what held when they were committed, rounded up: worse is a step back.
    #[test]
    fn predictions_stand_beside_what_the_h200_measured() {
        let (law, rows) = calibrated().unwrap();
        assert_eq!(law.to_toml(), include_str!("../../data/predict/graphs.toml"));
        assert!(rows.len() > 90, "{}", rows.len());
        for row in &rows {
            println!("{}: {:.1} us measured, {:.1} predicted", row.name, 1e6 * row.measured, 1e6 * row.predicted);
            assert!(row.error().abs() < 0.7, "{row:?}");
        }
        for error in &law.errors {
            let bound = if error.phase == Phase::Train { 20.0 } else { 15.0 };
            assert!(error.median_percent < bound && error.ninetieth_percent < 40.0, "{error:?}");
        }
    }

    #[test]
    fn memory_of_the_programs_is_what_the_runs_held() {
        let csv = Csv::read(RUNS).unwrap();
        let held = |name: &str| {
            let row = csv
                .rows()
                .find(|row| name.ends_with(row.text("candidate").unwrap()) && name.starts_with(row.text("scenario").unwrap()));
            row.and_then(|row| row.number("peak_memory_bytes"))
        };
        let mut errors = Vec::new();
        for case in cases().unwrap().iter().filter(|case| case.is_run) {
            let Some(held) = held(&case.name) else { continue };
            let error = case.counted.memory.total().0 as f64 / held - 1.0;
            println!("{}: {} of {held}: {:+.1} %", case.name, case.counted.memory.total().0, 100.0 * error);
            errors.push(error.abs());
        }
        // One product of the largest batch in fp32 took tiles there that were measured to be best, and that need less scratch.
        let within = errors.iter().filter(|error| **error < 0.005).count();
        assert!(errors.len() > 50 && within + 3 >= errors.len() && errors.iter().all(|error| *error < 0.2), "{errors:?}");
    }
}
