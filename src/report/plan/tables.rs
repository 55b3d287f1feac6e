//! `plan.csv`, one row a kind and number of machines, and `plan.json`. Unknown is an empty cell, or `null`.

use super::{super::ReportError, PlanInputs, words};
use crate::{
    predict::{Alike, Row, Swing, SwingEnd, Trust, WorkFigures},
    record::Source,
    vocab::{Phase, Vocabulary},
};
use polars::prelude::{Column, CsvWriter, DataFrame, IntoColumn, NamedFrom, SerWriter, Series};
use serde_json::{Value, json};

/// Version of `plan.json`.
pub const PLAN_SCHEMA_VERSION: u32 = 1;

/// Columns of `plan.csv`, in order.
pub const PLAN_COLUMNS: &[&str] = &[
    "plan",
    "gpu",
    "gpus",
    "market",
    "precision",
    "tp",
    "pp",
    "cp",
    "ep",
    "dp",
    "global_batch",
    "micro_batch",
    "interleaving",
    "recomputation",
    "zero",
    "status",
    "reason",
    "step_time_s",
    "tokens_per_s",
    "examples_per_s",
    "mfu",
    "time_s",
    "work_s",
    "goodput",
    "interruptions",
    "checkpoint_interval_s",
    "replicas",
    "spare_replicas",
    "availability",
    "draft_tokens",
    "draft_acceptance",
    "tokens_per_step",
    "time_to_first_token_s",
    "time_per_output_token_s",
    "utilisation",
    "price_usd_per_hour",
    "cost_usd",
    "cost_usd_per_million_output_tokens",
    "cost_usd_per_million_examples",
    "energy_j",
    "memory_bytes",
    "memory_limit_bytes",
    "error_regime",
    "error_median",
    "error_p90",
    "error_alike",
    "extrapolated",
    "pareto",
    "recommended",
    "source",
];

/// The table as CSV.
pub fn plan_csv(inputs: &PlanInputs) -> Result<Vec<u8>, ReportError> {
    let rows: Vec<(usize, &Row)> = inputs.answer.rows.iter().enumerate().collect();
    let columns: Vec<Column> = PLAN_COLUMNS.iter().map(|name| column(name, inputs, &rows)).collect();
    let mut frame = DataFrame::new(rows.len(), columns)?;
    let mut out = Vec::new();
    CsvWriter::new(&mut out).finish(&mut frame)?;
    Ok(out)
}

fn column(name: &str, inputs: &PlanInputs, rows: &[(usize, &Row)]) -> Column {
    let text = |of: &dyn Fn(&Row) -> String| Series::new(name.into(), rows.iter().map(|(_, r)| of(r)).collect::<Vec<_>>());
    let real = |of: &dyn Fn(&Row) -> Option<f64>| Series::new(name.into(), rows.iter().map(|(_, r)| of(r)).collect::<Vec<_>>());
    let whole = |of: &dyn Fn(&Row) -> Option<u32>| Series::new(name.into(), rows.iter().map(|(_, r)| of(r)).collect::<Vec<_>>());
    let train = |row: &Row| match &row.work {
        WorkFigures::Train(train) => Some(*train),
        WorkFigures::Serve(_) | WorkFigures::Graph(_) => None,
    };
    let serve = |row: &Row| match &row.work {
        WorkFigures::Serve(serve) => Some(*serve),
        WorkFigures::Train(_) | WorkFigures::Graph(_) => None,
    };
    let graph = |row: &Row| match &row.work {
        WorkFigures::Graph(graph) => Some(*graph),
        WorkFigures::Train(_) | WorkFigures::Serve(_) => None,
    };
    // What a training has: of a transformer, or of a graph.
    let trains = |row: &Row| train(row).is_some() || graph(row).is_some_and(|graph| graph.phase == Phase::Train);
    let steps = |row: &Row| train(row).is_some() || graph(row).is_some();
    let wall = |row: &Row| match &row.work {
        WorkFigures::Train(train) => Some((train.work, train.goodput, train.interruptions)),
        WorkFigures::Graph(graph) if trains(row) => Some((graph.work, graph.goodput, graph.interruptions)),
        WorkFigures::Serve(_) | WorkFigures::Graph(_) => None,
    };
    let series = match name {
        "plan" => text(&|_| inputs.plan.name.clone()),
        "gpu" => text(&|r| r.gpu.clone()),
        "gpus" => whole(&|r| Some(r.gpus)),
        "market" => text(&|r| r.market.name().to_string()),
        "precision" => text(&|r| r.layout.precision.clone()),
        "tp" => whole(&|r| Some(r.layout.tensor)),
        "pp" => whole(&|r| Some(r.layout.pipeline)),
        "cp" => whole(&|r| Some(r.layout.context)),
        "ep" => whole(&|r| Some(r.layout.expert)),
        "dp" => whole(&|r| Some(r.layout.data)),
        "global_batch" => whole(&|r| steps(r).then_some(r.layout.batch)),
        "micro_batch" => whole(&|r| train(r).map(|_| r.layout.micro_batch)),
        "interleaving" => whole(&|r| trains(r).then_some(r.layout.interleaving)),
        "recomputation" => text(&|r| if trains(r) { r.layout.recomputation.to_string() } else { String::new() }),
        "zero" => whole(&|r| trains(r).then_some(u32::from(r.layout.zero))),
        "status" => text(&|r| if r.breaches.is_empty() { "ok" } else { "infeasible" }.to_string()),
        "reason" => text(&|r| r.breaches.iter().map(|b| b.text.clone()).collect::<Vec<_>>().join("; ")),
        "step_time_s" => real(&|r| train(r).map(|t| t.step.0).or(graph(r).map(|g| g.step.0))),
        "tokens_per_s" => real(&|r| graph(r).is_none().then_some(r.tokens_per_s)),
        "examples_per_s" => real(&|r| graph(r).map(|_| r.tokens_per_s)),
        "mfu" => real(&|r| train(r).and_then(|t| t.mfu)),
        "time_s" => real(&|r| Some(r.time.0)),
        "work_s" => real(&|r| wall(r).map(|(work, ..)| work.0)),
        "goodput" => real(&|r| wall(r).map(|(_, goodput, _)| goodput)),
        "interruptions" => real(&|r| wall(r).map(|(.., interruptions)| interruptions)),
        "checkpoint_interval_s" => real(&|r| train(r).and_then(|t| t.checkpoint_interval).map(|s| s.0)),
        "replicas" => whole(&|r| serve(r).map(|s| s.replicas)),
        "spare_replicas" => whole(&|r| serve(r).and_then(|s| s.spot).map(|spot| spot.spares)),
        "availability" => real(&|r| serve(r).and_then(|s| s.spot).map(|spot| spot.availability)),
        "draft_tokens" => whole(&|r| serve(r).map(|_| r.layout.draft_tokens)),
        "draft_acceptance" => real(&|r| serve(r).and_then(|s| s.drafts).map(|drafts| drafts.acceptance)),
        "tokens_per_step" => real(&|r| serve(r).and_then(|s| s.drafts).map(|drafts| drafts.tokens_per_step)),
        "time_to_first_token_s" => real(&|r| serve(r).map(|s| s.first_token.0)),
        "time_per_output_token_s" => real(&|r| serve(r).map(|s| s.per_token.0)),
        "utilisation" => real(&|r| serve(r).map(|s| s.utilisation)),
        "price_usd_per_hour" => real(&|r| r.usd_per_hour.map(|usd| usd.0)),
        "cost_usd" => real(&|r| r.cost.filter(|_| trains(r)).map(|usd| usd.0)),
        "cost_usd_per_million_output_tokens" => real(&|r| r.cost.filter(|_| serve(r).is_some()).map(|usd| usd.0)),
        "cost_usd_per_million_examples" => {
            real(&|r| r.cost.filter(|_| graph(r).is_some_and(|graph| graph.phase == Phase::Infer)).map(|usd| usd.0))
        }
        "energy_j" => real(&|r| r.energy.map(|joules| joules.0)),
        "memory_bytes" => real(&|r| Some(r.memory_bytes().round())),
        "memory_limit_bytes" => real(&|r| Some(r.memory_limit.round())),
        "error_regime" => text(&|r| r.trust.regime.clone()),
        "error_median" => real(&|r| r.trust.error),
        "error_p90" => real(&|r| r.trust.error_p90),
        "error_alike" => text(&|r| words::alike(&r.trust.alike)),
        "extrapolated" => text(&|r| r.trust.extrapolated.join("; ")),
        "pareto" => flags(name, rows, |_, row| row.on_front),
        "recommended" => flags(name, rows, |at, _| inputs.answer.pick == Some(at)),
        "source" => text(&|_| super::super::csv::source_name(Source::Modelled).to_string()),
        _ => unreachable!("`{name}` has no rule: tested"),
    };
    series.into_column()
}

fn flags(name: &str, rows: &[(usize, &Row)], of: impl Fn(usize, &Row) -> bool) -> Series {
    Series::new(name.into(), rows.iter().map(|(at, row)| of(*at, row)).collect::<Vec<_>>())
}

/// What the answer hangs on, for programs.
pub fn sensitivity_json(swings: &[Swing]) -> Value {
    let of = |swing: &Swing| {
        let end = |end: &SwingEnd| json!({ "change": end.change, "objective": end.objective, "other_pick": end.other_pick });
        json!({ "assumption": swing.assumption, "ends": swing.ends.iter().map(end).collect::<Vec<_>>() })
    };
    swings.iter().map(of).collect()
}

/// The answer for programs.
pub fn plan_json(inputs: &PlanInputs) -> Value {
    let answer = inputs.answer;
    let prices: Vec<Value> = answer
        .prices
        .iter()
        .map(|(gpu, price)| {
            json!({
                "gpu": gpu,
                "usd_per_gpu_hour": price.on_demand.map(|usd| usd.0),
                "spot_usd_per_gpu_hour": price.spot.map(|usd| usd.0),
                "explanation": price.explanation,
            })
        })
        .collect();
    let refusals: Vec<Value> = answer
        .refusals
        .iter()
        .map(|r| json!({ "gpu": r.gpu, "gpus": r.gpus, "reason": r.reason, "remedies": r.remedies }))
        .collect();
    json!({
        "schema_version": PLAN_SCHEMA_VERSION,
        "plan": inputs.plan.name,
        "question": inputs.plan.question,
        "source": "modelled",
        "objective": inputs.plan.objective.name(),
        "pick": answer.pick.map(|at| row(&answer.rows[at])),
        "front": answer.rows.iter().filter(|r| r.on_front).map(row).collect::<Vec<_>>(),
        "alternatives": answer.alternatives.iter().map(row).collect::<Vec<_>>(),
        "refusals": refusals,
        "sensitivity": sensitivity_json(&answer.swings),
        "prices": prices,
        "searched": {
            "arrangements": answer.counts.arrangements,
            "pruned": answer.counts.pruned,
            "layouts_evaluated": answer.counts.evaluated,
            "layouts_too_large": answer.counts.too_large,
        },
        "notes": answer.notes,
        "command": inputs.command,
    })
}

fn row(row: &Row) -> Value {
    let layout = &row.layout;
    let pairs = |parts: &[(&'static str, f64)]| -> Value {
        Value::Object(parts.iter().map(|(name, value)| (name.replace([' ', '-'], "_"), json!(value))).collect())
    };
    let mut out = json!({
        "gpu": row.gpu,
        "gpus": row.gpus,
        "market": row.market.name(),
        "layout": {
            "precision": layout.precision,
            "tp": layout.tensor,
            "pp": layout.pipeline,
            "cp": layout.context,
            "ep": layout.expert,
            "dp": layout.data,
        },
        "time_s": row.time.0,
        "cost_usd": row.cost.map(|usd| usd.0),
        "price_usd_per_hour": row.usd_per_hour.map(|usd| usd.0),
        "energy_j": row.energy.map(|joules| joules.0),
        "tokens_per_s": row.tokens_per_s,
        "memory_bytes": pairs(&row.memory),
        "memory_limit_bytes": row.memory_limit,
        "step_time_parts_s": pairs(&row.time_parts),
        "trust": trust(&row.trust),
        "breaches": row.breaches.iter().map(|b| json!({ "limit": b.limit, "text": b.text })).collect::<Vec<_>>(),
    });
    match &row.work {
        WorkFigures::Graph(graph) => {
            out["layout"]["global_batch"] = json!(layout.batch);
            out["layout"]["recomputation"] = json!(layout.recomputation);
            out["layout"]["zero"] = json!(layout.zero);
            // Examples are no tokens.
            out.as_object_mut().expect("made above").remove("tokens_per_s");
            out["graph"] = json!({
                "phase": graph.phase.name(),
                "unit": graph.unit,
                "step_time_s": graph.step.0,
                "steps": graph.steps,
                "examples_per_s": row.tokens_per_s,
                "work_s": graph.work.0,
                "goodput": graph.goodput,
                "interruptions": graph.interruptions,
            });
        }
        WorkFigures::Train(train) => {
            out["layout"]["global_batch"] = json!(layout.batch);
            out["layout"]["micro_batch"] = json!(layout.micro_batch);
            out["layout"]["interleaving"] = json!(layout.interleaving);
            out["layout"]["recomputation"] = json!(layout.recomputation);
            out["layout"]["zero"] = json!(layout.zero);
            out["training"] = json!({
                "step_time_s": train.step.0,
                "steps": train.steps,
                "mfu": train.mfu,
                "work_s": train.work.0,
                "goodput": train.goodput,
                "interruptions": train.interruptions,
                "checkpoint_interval_s": train.checkpoint_interval.map(|s| s.0),
                "checkpoint_s": train.checkpoint.0,
            });
        }
        WorkFigures::Serve(serve) => {
            out["serving"] = json!({
                "replicas": serve.replicas,
                "time_to_first_token_s": serve.first_token.0,
                "time_per_output_token_s": serve.per_token.0,
                "concurrency": serve.concurrency,
                "utilisation": serve.utilisation,
                "spare_replicas": serve.spot.map(|spot| spot.spares),
                "availability": serve.spot.map(|spot| spot.availability),
                "draft_tokens": layout.draft_tokens,
                "draft_acceptance": serve.drafts.map(|drafts| drafts.acceptance),
                "tokens_per_step": serve.drafts.map(|drafts| drafts.tokens_per_step),
            });
        }
    }
    out
}

fn alike(of: &Alike) -> Value {
    json!({ "quantity": of.quantity, "rows": of.rows, "error_median": of.error, "bias": of.bias })
}

fn trust(trust: &Trust) -> Value {
    json!({
        "regime": trust.regime,
        "error_median": trust.error,
        "error_p90": trust.error_p90,
        "rows": trust.rows,
        "alike": trust.alike.iter().map(alike).collect::<Vec<_>>(),
        "extrapolated": trust.extrapolated,
    })
}
