//! `recommendation.json`: the answer for programs.

use super::Inputs;
use crate::{
    advise::{BreakEven, Estimate, Outcome, PhaseAdvice, Row},
    record::TimeSplit,
    vocab::Vocabulary,
};
use serde_json::{Value, json};

/// Version of the meaning of every key below.
pub const RECOMMENDATION_SCHEMA_VERSION: u32 = 1;

fn estimate(estimate: &Option<Estimate>) -> Value {
    match estimate {
        Some(e) => json!({ "value": e.value, "ci_low": e.interval.map(|i| i.low), "ci_high": e.interval.map(|i| i.high) }),
        None => Value::Null,
    }
}

/// Milliseconds of each part of a step; null where a part is not known.
fn time_split(split: &TimeSplit) -> Value {
    let mut parts: serde_json::Map<String, Value> =
        split.parts().into_iter().map(|(name, time)| (format!("{name}_ms"), json!(time.map(|t| t.as_ms())))).collect();
    parts.insert("step_ms".into(), json!(split.step.map(|step| step.as_ms())));
    parts.insert("excess".into(), json!(split.excess()));
    Value::Object(parts)
}

fn row(inputs: &Inputs, phase: &PhaseAdvice, at: usize) -> Value {
    let row: &Row = &phase.rows[at];
    let split = inputs.run.records[row.record].time_split.as_ref();
    json!({
        "candidate": row.id,
        "title": row.title,
        "status": row.status.name(),
        "throughput_per_s": estimate(&row.throughput),
        "speedup": estimate(&row.speedup),
        "predicted_throughput_per_s": row.predicted.map(|predicted| predicted.rate.0),
        "latency_p50_ms": row.latency_p50.map(|s| s.as_ms()),
        "latency_p99_ms": row.latency_p99.map(|s| s.as_ms()),
        "cost_usd_per_million": estimate(&row.usd_per_million),
        "time_to_target_s": row.time_to_target.map(|s| s.0),
        "cost_to_target_usd": row.cost_to_target.map(|u| u.0),
        "primary_value": estimate(&row.primary),
        "accuracy_drop": row.drop.map(|d| d.value),
        "accuracy_verdict": row.drop.map(|d| d.verdict.name()),
        "accuracy_limit": row.drop.and_then(|d| d.within_limit).map(|v| v.name()),
        "probability_best": row.probability_best,
        "time_split": split.map(time_split),
        "violations": row.violations.iter().map(|v| json!({ "limit": v.limit, "text": v.text, "excess": v.excess })).collect::<Vec<_>>(),
    })
}

fn phase(inputs: &Inputs, phase: &PhaseAdvice) -> Value {
    let mut out = json!({
        "phase": phase.phase.name(),
        "baseline": phase.baseline.map(|at| phase.rows[at].id.clone()),
        "candidates": phase.rows.len(),
        "prediction_error_median": phase.prediction_error().map(|(error, _)| error),
    });
    match &phase.outcome {
        Outcome::Pick(pick) => {
            out["outcome"] = json!("pick");
            out["pick"] = row(inputs, phase, pick.row);
            out["probability_best"] = json!(pick.probability_best);
            out["expected_regret"] = json!(pick.expected_regret);
            out["ties"] = pick.ties.iter().map(|at| row(inputs, phase, *at)).collect();
            out["reasons"] = json!(pick.reasons);
            let even = |e: &BreakEven| json!({ "quantity": e.quantity, "value": e.value, "text": e.text });
            out["break_evens"] = pick.break_evens.iter().map(even).collect();
            out["flips"] = pick.flips.iter().map(|f| json!({ "candidate": phase.rows[f.row].id, "text": f.text })).collect();
        }
        Outcome::Infeasible(none) => {
            out["outcome"] = json!("infeasible");
            out["binding_constraint"] = json!(none.binding);
            out["nearest"] = row(inputs, phase, none.nearest);
            out["reasons"] = json!(none.reasons);
        }
        Outcome::Nothing => out["outcome"] = json!("nothing_measured"),
    }
    out
}

/// The recommendation of a run.
pub fn recommendation_json(inputs: &Inputs) -> Value {
    let (header, advice) = (&inputs.run.header, inputs.advice);
    json!({
        "schema_version": RECOMMENDATION_SCHEMA_VERSION,
        "scenario": header.scenario,
        "question": header.question,
        "objective": advice.objective.name(),
        "primary_metric": advice.primary_metric.name(),
        "unit": header.unit,
        "price": {
            "instance": advice.price.instance,
            "usd_per_hour": advice.price.usd_per_hour.0,
            "explanation": advice.price.explanation,
            "source": advice.price.source,
        },
        "source": "measured",
        "quick": header.quick,
        "complete": inputs.run.end.as_ref().is_some_and(|end| end.ended == "complete"),
        "phases": advice.phases.iter().map(|one| phase(inputs, one)).collect::<Vec<_>>(),
        "command": header.command,
        "config_hash": header.config_hash,
    })
}
