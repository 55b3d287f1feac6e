//! `advisor plan SCENARIO.toml`: the candidates of a scenario on this machine, predicted from its rates of single ops. Nothing is trained.

use super::{Exit, rates};
use crate::{
    cost::{self, Price, PriceBook, usd_per_million},
    data::DataSet,
    input::{Source, render},
    measure::environment,
    predict::{
        Answer, Counts, GpuPrice, GraphFigures, GraphWork, LayoutFigures, LayoutLimits, Limits, LocalFactors, LocalRates, Market,
        ModelWords, Operation, Plan, PlanObjective, Refusal, Row, StepPrediction, Swing, SwingEnd, Trust, Work, WorkFigures,
        changed_by, local_assumptions, local_parts, predict_record, predict_record_with, rank,
    },
    record::{Environment, RunRecord, Workers},
    report::{PlanInputs, sensitivity_json, sensitivity_terminal, write_plan},
    scenario::{Known, Machine, Scenario},
    stats::median,
    units::{Seconds, UsdPerHour, three_figures},
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
pub fn run(path: &Path, book: &PriceBook, json: bool, out: &Path) -> anyhow::Result<(Exit, Option<Value>)> {
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
    let (mut records, mut wanted, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for candidate in candidates {
        match counted(&scenario.model, &set, candidate, &scenario.train) {
            Ok(one) => {
                wanted.push((candidate.workers(), one.ops));
                records.push(one.record);
            }
            Err(error) => refused.push((candidate.title(), error.to_string())),
        }
    }
    let workers: Vec<Workers> = wanted.iter().map(|(workers, _)| *workers).collect();
    let environment = Environment { rates: rates::of(wanted, &environment)?, ..environment };
    let mut foreseen: Vec<Foreseen> = Vec::new();
    for record in records {
        foreseen.extend(predict_record(&record, &environment).map(|prediction| {
            let rate = prediction.rate(record.candidate.batch_size);
            Foreseen { usd_per_million: usd_per_million(price.usd_per_hour, rate).0, record, prediction }
        }));
    }
    foreseen.sort_by(|a, b| b.per_second().total_cmp(&a.per_second()));
    let used = environment.rates.iter().filter(|table| workers.contains(&table.workers));
    let errors: Vec<f64> = used.filter_map(|table| LocalRates::new(table)?.median_error()).collect();
    let op_error = median(&errors);
    let mut answers = Vec::new();
    for phase in &scenario.phases {
        let (plan, answer) = answer(&scenario, *phase, &foreseen, &refused, (&environment, op_error, &price), set.train.rows());
        let command = format!("advisor plan {} --out {}", scenario.path.display(), out.display());
        let page = write_plan(out, &PlanInputs { plan: &plan, answer: &answer, command: &command })?;
        eprintln!("report: {}", page.display());
        answers.push((*phase, plan, answer));
    }
    if json {
        let mut value = as_json(&scenario, &foreseen, op_error);
        value["sensitivity"] =
            answers.iter().map(|(phase, _, answer)| (phase.name().to_string(), sensitivity_json(&answer.swings))).collect();
        return Ok((Exit::Done, Some(value)));
    }
    let unit = workload::find(scenario.task).unit;
    super::print(&format!("{}: {}", scenario.name, scenario.question))?;
    super::print(&format!(
        "modelled on {}, {} cores; nothing was trained or timed but single ops",
        environment.cpu, machine.cores
    ))?;
    let (width, colour) = super::terminal_style();
    for (phase, plan, answer) in &answers {
        table(*phase, unit, &foreseen)?;
        let hangs_on = sensitivity_terminal(&PlanInputs { plan, answer, command: "" }, width, colour);
        if !hangs_on.is_empty() {
            super::print(&hangs_on)?;
        }
    }
    if !refused.is_empty() {
        super::print("")?;
    }
    refused.iter().try_for_each(|(title, reason)| super::print(&format!("refused: {title}: {reason}")))?;
    if let Some(error) = op_error {
        super::print(&format!(
            "Ops were timed one by one; those of other sizes are predicted from others of their kind to {:.0} % in the median. `advisor run` measures, and prints both.",
            100.0 * error
        ))?;
    }
    Ok((Exit::Done, None))
}

/// A phase as a plan and its answer, for the pages and tables that plans for other machines have.
fn answer(
    scenario: &Scenario,
    phase: Phase,
    foreseen: &[Foreseen],
    refused: &[(String, String)],
    (machine, op_error, price): (&Environment, Option<f64>, &Price),
    training_rows: usize,
) -> (Plan, Answer) {
    let path = scenario.path.display().to_string();
    let examples = (phase == Phase::Train).then_some((scenario.train.epochs * training_rows) as f64);
    let work = GraphWork { phase, examples, epochs: None, batches: None, precisions: None };
    let plan = Plan {
        path: scenario.path.clone(),
        text: scenario.text.clone(),
        name: format!("{}-{}-predicted", scenario.name, phase.name()),
        question: scenario.question.clone(),
        model: ModelWords { scenario: Some(path), ..ModelWords::default() },
        work: Work::Graph(work),
        machines: Vec::new(),
        limits: Limits::default(),
        objective: PlanObjective::Cost,
        operation: Operation::default(),
        layouts: LayoutLimits::default(),
    };
    let of_phase: Vec<&Foreseen> = foreseen.iter().filter(|one| one.record.candidate.phase == phase).collect();
    let volume = examples.unwrap_or(1e6);
    let split = |one: &Foreseen| {
        let time_parts = local_parts(&one.record, machine).unwrap_or_default();
        Row { time_parts, ..row(one, one.prediction, scenario, volume, (machine, op_error, price)) }
    };
    let mut rows: Vec<Row> = of_phase.iter().map(|one| split(one)).collect();
    let pick = rank(&mut rows, plan.objective);
    let swings = pick.map(|at| swings(&rows[at], &of_phase, scenario, volume, (machine, op_error, price))).unwrap_or_default();
    let refusals = refused.iter().map(|(title, reason)| Refusal {
        gpu: title.clone(),
        gpus: 0,
        reason: reason.clone(),
        remedies: Vec::new(),
    });
    let hour = GpuPrice { on_demand: Some(price.usd_per_hour), spot: None, explanation: price.explanation.clone() };
    let answer = Answer {
        pick,
        refusals: refusals.collect(),
        prices: vec![(machine.cpu.clone(), hour)],
        counts: Counts { evaluated: rows.len() as u64, ..Counts::default() },
        notes: vec![
            "times rest on single ops that were timed on this machine, and on the counted work of each candidate's programs"
                .into(),
            "accuracy is not predicted: number formats and compressions change it, and `advisor run` measures by how much".into(),
        ],
        rows,
        swings,
        ..Answer::default()
    };
    (plan, answer)
}

/// How much is put in where no op could be predicted from others.
const PLAIN_ERROR: f64 = 0.15;

/// How the pick moves with what the predictions assume, the largest first.
fn swings(
    pick: &Row,
    foreseen: &[&Foreseen],
    scenario: &Scenario,
    volume: f64,
    (machine, op_error, price): (&Environment, Option<f64>, &Price),
) -> Vec<Swing> {
    let objective = PlanObjective::Cost;
    let Some(value) = pick.objective(objective) else { return Vec::new() };
    let answered = |factors: LocalFactors, price: &Price| {
        let row = |one: &&Foreseen| {
            let prediction = predict_record_with(&one.record, machine, factors)?;
            Some(row(one, prediction, scenario, volume, (machine, op_error, price)))
        };
        let mut rows: Vec<Row> = foreseen.iter().filter_map(row).collect();
        Answer { pick: rank(&mut rows, objective), rows, ..Answer::default() }
    };
    let end = |factor: f64, answer: &Answer| SwingEnd::of(changed_by(factor), answer, pick, objective);
    let mut out: Vec<Swing> = Vec::new();
    for assumption in local_assumptions(op_error.unwrap_or(PLAIN_ERROR)) {
        let ends = assumption.ends.map(|factor| {
            let mut factors = LocalFactors::default();
            *(assumption.part)(&mut factors) = factor;
            end(factor, &answered(factors, price))
        });
        out.push(Swing { assumption: assumption.name.into(), ends });
    }
    let ends = [0.8, 1.25].map(|factor| {
        let other = Price { usd_per_hour: UsdPerHour(price.usd_per_hour.0 * factor), ..price.clone() };
        end(factor, &answered(LocalFactors::default(), &other))
    });
    out.push(Swing { assumption: "price of an hour".into(), ends });
    // What has no part in the answer goes without saying: exchanges where there is one rank.
    out.retain(|swing| swing.size(value) > 1e-3 || swing.ends.iter().any(|end| end.other_pick.is_some()));
    out.sort_by(|a, b| b.size(value).total_cmp(&a.size(value)));
    out
}

/// A candidate as a row of a plan, its step not taken apart: `volume` examples of training, or a million answers.
fn row(
    one: &Foreseen,
    prediction: StepPrediction,
    scenario: &Scenario,
    volume: f64,
    (machine, op_error, price): (&Environment, Option<f64>, &Price),
) -> Row {
    let candidate = &one.record.candidate;
    let (step, phase) = (prediction.step, candidate.phase);
    let per_second = prediction.rate(candidate.batch_size).0;
    let work = Seconds(volume / per_second);
    let mut extrapolated = Vec::new();
    if prediction.assumed_share >= 0.005 {
        extrapolated.push(format!("{:.0} % of the step in ops taken for others of their kind", 100.0 * prediction.assumed_share));
    }
    Row {
        machine: candidate.threads,
        gpu: format!("{}, {} thread{}", machine.cpu, candidate.threads, if candidate.threads == 1 { "" } else { "s" }),
        gpus: 0,
        market: Market::OnDemand,
        layout: LayoutFigures::of(candidate),
        time: if phase == Phase::Train { work } else { step },
        cost: Some(price.usd_per_hour.times(work)),
        energy: None,
        usd_per_hour: Some(price.usd_per_hour),
        tokens_per_s: per_second,
        work: WorkFigures::Graph(GraphFigures {
            phase,
            unit: workload::find(scenario.task).unit,
            step,
            steps: volume / candidate.batch_size as f64,
            work,
            goodput: 1.0,
            interruptions: 0.0,
        }),
        memory: vec![("program", one.record.peak_memory.map_or(0.0, |bytes| bytes.0 as f64))],
        memory_limit: machine.memory.0 as f64,
        time_parts: Vec::new(),
        trust: Trust { regime: "single ops of this machine".into(), error: op_error, extrapolated, ..Trust::default() },
        breaches: Vec::new(),
        on_front: false,
    }
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
