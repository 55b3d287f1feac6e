//! Figures of a plan as people read them, the same on the page and on the terminal. Everything is modelled, and says so once.

use super::PlanInputs;
use crate::{
    predict::{
        Alike, Answer, GraphFigures, HOURS_PER_MONTH, Plan, PlanObjective, Row, ServeFigures, TrainFigures, Trust, Work,
        WorkFigures, binding, thousands,
    },
    units::{Bytes, Joules, Seconds, Usd, three_figures},
    vocab::Phase,
};

/// What nothing is known of.
pub const UNKNOWN: &str = "unknown";

pub fn or_unknown(text: Option<String>) -> String {
    text.unwrap_or_else(|| UNKNOWN.to_string())
}

/// `41.2 days`, `3.10 h`.
pub fn long_time(time: Seconds) -> String {
    match time.0 {
        seconds if seconds >= 86_400.0 => format!("{} days", three_figures(seconds / 86_400.0)),
        seconds if seconds >= 3600.0 => format!("{} h", three_figures(seconds / 3600.0)),
        _ => time.to_string(),
    }
}

/// `$61.3 million`.
pub fn money(usd: Usd) -> String {
    let scales = [(1e12, " trillion"), (1e9, " billion"), (1e6, " million")];
    match scales.iter().find(|(scale, _)| usd.0 >= *scale) {
        Some((scale, word)) => format!("${}{word}", three_figures(usd.0 / scale)),
        None => usd.to_string(),
    }
}

/// `12.3 GWh`.
pub fn energy(joules: Joules) -> String {
    let kwh = joules.0 / 3.6e6;
    let scales = [(1e6, "GWh"), (1e3, "MWh"), (1.0, "kWh"), (1e-3, "Wh")];
    let (scale, unit) = scales.into_iter().find(|(scale, _)| kwh >= *scale).unwrap_or((1e-3, "Wh"));
    format!("{} {unit}", three_figures(kwh / scale))
}

pub fn gib(bytes: f64) -> String {
    format!("{} GiB", three_figures(bytes / f64::from(1 << 30)))
}

pub fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// Whether a plan is of the machine at hand: it asks for no other.
pub fn is_here(plan: &Plan) -> bool {
    plan.machines.is_empty()
}

/// What a row's time is: a heading.
pub fn time_title(plan: &Plan) -> &'static str {
    match &plan.work {
        Work::Train(_) => "days",
        Work::Serve(_) => "seconds an answer",
        Work::Graph(run) if run.phase == Phase::Train => "seconds of training",
        Work::Graph(_) => "milliseconds a step",
    }
}

/// What a row's cost is: a heading.
pub fn cost_title(plan: &Plan) -> &'static str {
    match &plan.work {
        Work::Train(_) => "dollars",
        Work::Serve(_) => "dollars a million output tokens",
        Work::Graph(run) if run.phase == Phase::Train => "dollars",
        Work::Graph(_) => "dollars a million answers",
    }
}

/// Time in the unit of `time_title`.
pub fn time_value(plan: &Plan, row: &Row) -> f64 {
    match &plan.work {
        Work::Train(_) => row.time.0 / 86_400.0,
        Work::Serve(_) => row.time.0,
        Work::Graph(run) if run.phase == Phase::Train => row.time.0,
        Work::Graph(_) => row.time.as_ms(),
    }
}

pub fn objective(plan: &Plan) -> &'static str {
    match (plan.objective, &plan.work) {
        (PlanObjective::Cost, _) => "lowest cost",
        (PlanObjective::Time, Work::Train(_)) => "shortest training",
        (PlanObjective::Time, Work::Serve(_)) => "fastest answers",
        (PlanObjective::Time, Work::Graph(run)) if run.phase == Phase::Train => "shortest training",
        (PlanObjective::Time, Work::Graph(_)) => "fastest answers",
        (PlanObjective::Energy, _) => "least energy",
    }
}

/// The value of the objective, as it is printed.
pub fn objective_value(plan: &Plan, value: f64) -> String {
    match plan.objective {
        PlanObjective::Cost => money(Usd(value)),
        PlanObjective::Time => long_time(Seconds(value)),
        PlanObjective::Energy => energy(Joules(value)),
    }
}

/// `held-out error of its regime (hopper, dense, bf16): 6.1 % in the median, 14 % at the 90th percentile, of 43 published rows`.
pub fn trust(trust: &Trust) -> String {
    let regime = if trust.regime.is_empty() { String::new() } else { format!(" ({})", trust.regime) };
    match (trust.error, trust.error_p90) {
        (Some(median), Some(p90)) => format!(
            "error on published runs held out of the fit{regime}: {} in the median, {} at the 90th percentile, of {} rows",
            percent(median),
            percent(p90),
            trust.rows
        ),
        (Some(median), None) => {
            format!(
                "error on published runs held out of the fit{regime}: {} in the median, of {} rows",
                percent(median),
                trust.rows
            )
        }
        (None, _) => format!("error unknown: no published run of this kind{regime} was there to hold it against"),
    }
}

/// `time to first token 12 % too high in the median (half of 18 rows within 14 %)`, one after the other.
pub fn alike(all: &[Alike]) -> String {
    let one = |Alike { quantity, rows, error, bias }: &Alike| {
        let bias = match bias {
            bias if bias.abs() < 0.005 => "neither too high nor too low".to_string(),
            bias => format!("{} too {}", percent(bias.abs()), if *bias > 0.0 { "high" } else { "low" }),
        };
        match rows {
            1 => format!("{quantity} {bias} (1 row)"),
            _ => format!("{quantity} {bias} in the median (half of {rows} rows within {})", percent(*error)),
        }
    };
    all.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// The same in a table's cell.
pub fn trust_short(trust: &Trust) -> String {
    let error = trust.error.map_or("error unknown".to_string(), |error| format!("±{}", percent(error)));
    if trust.extrapolated.is_empty() { error } else { format!("{error}, extrapolated") }
}

/// `3 kinds of machines`.
pub fn kinds(plan: &Plan) -> String {
    match plan.machines.len() {
        1 => "1 kind of machine".into(),
        kinds => format!("{kinds} kinds of machines"),
    }
}

/// The figures of a row that stand out, name and value.
pub fn figures(inputs: &PlanInputs, row: &Row) -> Vec<(&'static str, String)> {
    let mut out = Vec::new();
    match &row.work {
        WorkFigures::Train(train) => {
            out.push(("time", long_time(row.time)));
            out.push(("cost", or_unknown(row.cost.map(money))));
            out.push(("a step", train.step.to_string()));
            out.push(("tokens a second", three_figures(row.tokens_per_s)));
            out.push(("model FLOPs utilisation", or_unknown(train.mfu.map(percent))));
        }
        WorkFigures::Serve(serve) => {
            out.push(("a million output tokens", or_unknown(row.cost.map(money))));
            out.push(("a month", or_unknown(row.usd_per_hour.map(|usd| money(Usd(usd.0 * HOURS_PER_MONTH))))));
            out.push(("first token", serve.first_token.to_string()));
            out.push(("each token", serve.per_token.to_string()));
            out.push(("replicas", thousands(serve.replicas)));
        }
        WorkFigures::Graph(graph) if graph.phase == Phase::Train => {
            out.push(("time", long_time(row.time)));
            out.push(("cost", or_unknown(row.cost.map(money))));
            out.push(("a step", graph.step.to_string()));
            out.push(("examples a second", three_figures(row.tokens_per_s)));
        }
        WorkFigures::Graph(graph) => {
            out.push(("a million answers", or_unknown(row.cost.map(money))));
            out.push(("a step", graph.step.to_string()));
            out.push(("examples a second", three_figures(row.tokens_per_s)));
        }
    }
    let amount = if matches!(row.work, WorkFigures::Graph(_)) { bytes } else { gib };
    let memory = format!("{} of {}", amount(row.memory_bytes()), amount(row.memory_limit));
    // The machine at hand is no GPU, and of its power nothing is known but by measuring.
    if is_here(inputs.plan) {
        out.push(("memory", memory));
    } else {
        out.push(("memory a GPU", memory));
        let of_what = match &row.work {
            WorkFigures::Serve(_) => "energy of a million, at most",
            WorkFigures::Graph(graph) if graph.phase == Phase::Infer => "energy of a million, at most",
            WorkFigures::Train(_) | WorkFigures::Graph(_) => "energy at most",
        };
        out.push((of_what, or_unknown(row.energy.map(energy))));
    }
    out
}

/// Sentences behind the pick.
pub fn reasons(inputs: &PlanInputs, row: &Row) -> Vec<String> {
    let mut out = Vec::new();
    match &row.work {
        WorkFigures::Train(train) => out.extend(of_training(inputs, row, train)),
        WorkFigures::Serve(serve) => out.push(of_serving(serve)),
        WorkFigures::Graph(graph) => out.push(of_graph(row, graph)),
    }
    if let Some((_, price)) = inputs.answer.prices.get(row.machine) {
        let hour = row.usd_per_hour.filter(|_| row.gpus > 1).map(|usd| format!("{usd} for all {} GPUs; ", thousands(row.gpus)));
        let hour = hour.unwrap_or_default();
        out.push(format!("price: {hour}{}", price.explanation));
    }
    out.push(match row.trust.error.filter(|_| is_here(inputs.plan)) {
        Some(error) => {
            format!(
                "modelled from single ops, each timed by itself; one of another size is predicted from others of its kind to {} in the median",
                percent(error)
            )
        }
        None => format!("modelled, not measured; {}", trust(&row.trust)),
    });
    if !row.trust.alike.is_empty() {
        out.push(format!(
            "published runs of this model on this GPU in this precision, held out too, were predicted: {}",
            alike(&row.trust.alike)
        ));
    }
    for what in &row.trust.extrapolated {
        out.push(format!("extrapolated: {what}"));
    }
    out
}

fn of_training(inputs: &PlanInputs, row: &Row, train: &TrainFigures) -> Vec<String> {
    let mut out = Vec::new();
    let batch = row.layout.batch;
    out.push(format!(
        "{} steps of {} sequences, {} each; {}",
        three_figures(train.steps.ceil()),
        thousands(batch),
        train.step,
        parts(&row.time_parts)
    ));
    if train.interruptions > 0.0 {
        let interval = train.checkpoint_interval.map(|time| format!(", a checkpoint every {time}")).unwrap_or_default();
        out.push(format!(
            "{} interruptions expected{interval} ({} to write): {} of the time is work, {} more than without",
            three_figures(train.interruptions),
            train.checkpoint,
            percent(train.goodput),
            long_time(Seconds(row.time.0 - train.work.0))
        ));
    }
    if let Some(second) = inputs.answer.alternatives.first()
        && let WorkFigures::Train(other) = &second.work
    {
        let slower = (other.step.0 / f64::from(second.layout.batch)) / (train.step.0 / f64::from(batch)) - 1.0;
        out.push(format!("the next layout on these machines is {} slower: {}", percent(slower), second.layout.title()));
    }
    out
}

fn of_graph(row: &Row, graph: &GraphFigures) -> String {
    let what = if graph.phase == Phase::Train { "the training" } else { "a million answers" };
    format!(
        "{what}: {} steps of {} {}s, {} each; {}",
        three_figures(graph.steps.ceil()),
        thousands(row.layout.batch),
        graph.unit,
        graph.step,
        parts(&row.time_parts)
    )
}

fn of_serving(serve: &ServeFigures) -> String {
    let spares = serve.spot.map(|spot| {
        let count = if spot.spares == 1 { "1 spare".to_string() } else { format!("{} spares", thousands(spot.spares)) };
        format!("; {count}, so that as many are there {:.3} % of the time", 100.0 * spot.availability)
    });
    let drafts = serve.drafts.map(|drafts| {
        format!(
            "; with draft tokens accepted at {:.2}, each step makes {} tokens for a request",
            drafts.acceptance,
            three_figures(drafts.tokens_per_step)
        )
    });
    format!(
        "{} at {} of {} largest load, {}with {} requests at once{}{}",
        if serve.replicas == 1 { "1 replica".to_string() } else { format!("{} replicas", thousands(serve.replicas)) },
        percent(serve.utilisation),
        if serve.replicas == 1 { "its" } else { "their" },
        if serve.replicas == 1 { "" } else { "each " },
        three_figures(serve.concurrency),
        drafts.unwrap_or_default(),
        spares.unwrap_or_default()
    )
}

/// `compute 61 %, pipeline bubble 12 %, ...`, the largest first, without what is below half a percent.
pub fn parts(parts: &[(&'static str, f64)]) -> String {
    let whole: f64 = parts.iter().map(|(_, value)| value).sum();
    let mut sorted: Vec<_> = parts.iter().filter(|(_, value)| *value >= 0.005 * whole && *value > 0.0).collect();
    sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
    sorted.iter().map(|(name, value)| format!("{name} {:.0} %", 100.0 * value / whole)).collect::<Vec<_>>().join(", ")
}

/// Why there is no pick, and what would help.
pub fn no_pick(answer: &Answer) -> (String, Vec<String>) {
    if let Some((row, breach)) = binding(&answer.rows) {
        let title = format!("Nothing meets every limit: `{}` binds", breach.limit);
        let mut reasons = vec![format!("nearest: {}", row.title())];
        reasons.extend(row.breaches.iter().map(|breach| breach.text.clone()));
        return (title, reasons);
    }
    if answer.rows.iter().any(|row| row.breaches.is_empty()) {
        let reasons = answer.prices.iter().filter(|(_, price)| price.on_demand.is_none());
        let reasons =
            reasons.map(|(gpu, price)| format!("{gpu}: {}; `usd_per_gpu_hour` states one", price.explanation)).collect();
        return ("No price is known, so nothing is cheapest".into(), reasons);
    }
    let reasons = answer.refusals.iter().rev().take(3).flat_map(|refusal| {
        let place = format!("{} x {}: {}", thousands(refusal.gpus), refusal.gpu, refusal.reason);
        std::iter::once(place).chain(refusal.remedies.iter().map(|remedy| format!("it would fit with {remedy}")))
    });
    ("No layout fits on any of these machines".into(), reasons.collect())
}

/// `20.0 GiB`, as `Bytes` prints.
pub fn bytes(value: f64) -> String {
    Bytes(value as u64).to_string()
}
