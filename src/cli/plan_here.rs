//! `advisor plan SCENARIO.toml`: the candidates of a scenario on this machine, predicted from its rates of single ops. Nothing is trained.

use super::{Exit, rates};
use crate::{
    cost::{self, PriceBook, usd_per_million},
    data::DataSet,
    input::{Source, render},
    measure::environment,
    predict::{LocalRates, StepPrediction, predict_record},
    record::{Environment, RunRecord, Workers},
    scenario::{Known, Machine, Scenario},
    stats::median,
    units::three_figures,
    vocab::{Phase, Vocabulary},
    workload::{self, counted},
};
use serde_json::{Value, json};
use std::{path::Path, sync::Arc};

/// Candidate rows shown of a phase.
const MOST_ROWS: usize = 15;

/// A candidate with what is predicted of it.
struct Foreseen {
    record: RunRecord,
    prediction: StepPrediction,
    usd_per_million: f64,
}

impl Foreseen {
    fn per_second(&self) -> f64 {
        self.prediction.rate(self.record.candidate.batch_size).0
    }
}

/// Whether a file is a scenario rather than a plan.
pub fn is_scenario(path: &Path) -> bool {
    Source::read(path).is_ok_and(|source| source.has_key("workload"))
}

/// Predicts one scenario; its JSON where `json` wants one, else it is printed.
pub fn run(path: &Path, book: &PriceBook, json: bool) -> anyhow::Result<(Exit, Option<Value>)> {
    let (models, instances) = (super::known_models(), book.names());
    let scenario = match Scenario::load(path, &Known { models: &models, instances: &instances }) {
        Ok(scenario) => scenario,
        Err(found) => {
            eprintln!("{}", render(&found));
            return Ok((Exit::WrongInput, None));
        }
    };
    let environment = environment();
    let machine = Machine { cores: environment.logical_cores, ..Machine::default() };
    let price = cost::price(&scenario.cost, &environment, book)?;
    let set = Arc::new(DataSet::load(&scenario.data, &super::places(path.parent()))?);
    let expansion = scenario.expand(&machine);
    // What an emulation takes says nothing.
    let candidates: Vec<_> = expansion.candidates.iter().filter(|candidate| candidate.emulation().is_none()).collect();
    let workers: Vec<Workers> = candidates.iter().map(|one| Workers::of(one.device, one.layout, one.threads)).collect();
    let tables = rates::of(&workers, &environment)?;
    let environment = Environment { rates: tables, ..environment };
    let (mut foreseen, mut refused) = (Vec::new(), Vec::new());
    for candidate in candidates {
        match counted(&scenario.model, &set, candidate, &scenario.train) {
            Ok(record) => foreseen.extend(predict_record(&record, &environment).map(|prediction| {
                let rate = prediction.rate(candidate.batch_size);
                Foreseen { usd_per_million: usd_per_million(price.usd_per_hour, rate).0, record, prediction }
            })),
            Err(error) => refused.push((candidate.title(), error.to_string())),
        }
    }
    foreseen.sort_by(|a, b| b.per_second().total_cmp(&a.per_second()));
    let used = environment.rates.iter().filter(|table| workers.contains(&table.workers));
    let errors: Vec<f64> = used.filter_map(|table| LocalRates::new(table)?.median_error()).collect();
    let op_error = median(&errors);
    if json {
        return Ok((Exit::Done, Some(as_json(&scenario, &foreseen, op_error))));
    }
    let unit = workload::find(scenario.task).unit;
    super::print(&format!("{}: {}", scenario.name, scenario.question))?;
    super::print(&format!(
        "modelled on {}, {} cores; nothing was trained or timed but single ops",
        environment.cpu, machine.cores
    ))?;
    for phase in &scenario.phases {
        table(*phase, unit, &foreseen)?;
    }
    if !refused.is_empty() {
        super::print("")?;
    }
    refused.iter().try_for_each(|(title, reason)| super::print(&format!("refused: {title}: {reason}")))?;
    if let Some(error) = op_error {
        super::print(&format!(
            "Ops of these sizes are predicted from others of their kind to {:.0} % in the median; `advisor run` measures, and prints both.",
            100.0 * error
        ))?;
    }
    Ok((Exit::Done, None))
}

fn table(phase: Phase, unit: &str, foreseen: &[Foreseen]) -> anyhow::Result<()> {
    let rows: Vec<&Foreseen> = foreseen.iter().filter(|row| row.record.candidate.phase == phase).collect();
    super::print("")?;
    let heading = [format!("{unit}s a second"), "step ms".into(), "$ per million".into(), "memory".into(), "assumed".into()];
    let [rate, step, usd, memory, assumed] = heading;
    let width = rows.iter().take(MOST_ROWS).map(|row| row.record.candidate.title().chars().count()).max().unwrap_or(0).max(9);
    super::print(&format!("{:width$} {rate:>18} {step:>10} {usd:>14} {memory:>10} {assumed:>8}", phase.name()))?;
    for row in rows.iter().take(MOST_ROWS) {
        super::print(&format!(
            "{:width$} {:>18} {:>10} {:>14} {:>10} {:>8}",
            row.record.candidate.title(),
            three_figures(row.per_second()),
            three_figures(row.prediction.step.as_ms()),
            three_figures(row.usd_per_million),
            row.record.peak_memory.map_or_else(String::new, |bytes| bytes.to_string()),
            format!("{:.0} %", 100.0 * row.prediction.assumed_share)
        ))?;
    }
    if rows.len() > MOST_ROWS {
        super::print(&format!("{} slower ones are in --json", rows.len() - MOST_ROWS))?;
    }
    Ok(())
}

fn as_json(scenario: &Scenario, foreseen: &[Foreseen], op_error: Option<f64>) -> Value {
    let row = |row: &Foreseen| {
        json!({
            "candidate": row.record.candidate.id(),
            "predicted_throughput_per_s": row.per_second(),
            "predicted_step_ms": row.prediction.step.as_ms(),
            "cost_usd_per_million": row.usd_per_million,
            "memory_bytes": row.record.peak_memory.map(|bytes| bytes.0),
            "model_bytes": row.record.model_size.map(|bytes| bytes.0),
            "flops_per_unit": row.record.flops_per_unit.map(|flops| flops.0),
            "assumed_share": row.prediction.assumed_share,
        })
    };
    json!({
        "scenario": scenario.name,
        "question": scenario.question,
        "source": "modelled",
        "op_error_median": op_error,
        "candidates": foreseen.iter().map(row).collect::<Vec<_>>(),
    })
}
