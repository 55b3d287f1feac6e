//! `results.csv`, one row a candidate, and `samples.csv`, one row a timed step. Unknown is an empty cell.

use super::{Inputs, ReportError};
use crate::{
    advise::{Estimate, PhaseAdvice, Row},
    record::{KernelRow, KernelRun, RunHeader, RunRecord, Source, Status, StopCondition},
    stats::median,
    vocab::{Metric, Vocabulary},
};
use polars::prelude::{Column, CsvWriter, DataFrame, IntoColumn, NamedFrom, SerWriter, Series};

/// Columns of `results.csv`, in order.
pub const RESULT_COLUMNS: &[&str] = &[
    "scenario",
    "candidate",
    "phase",
    "device",
    "model",
    "precision",
    "compression",
    "layout",
    "batch_size",
    "threads",
    "status",
    "reason",
    "throughput_per_s",
    "throughput_ci_low_per_s",
    "throughput_ci_high_per_s",
    "speedup",
    "latency_p50_ms",
    "latency_p99_ms",
    "samples",
    "stop_condition",
    "peak_memory_bytes",
    "model_bytes",
    "energy_j_per_unit",
    "energy_valid",
    "accuracy",
    "precision_macro",
    "recall_macro",
    "f1_macro",
    "roc_auc_macro",
    "primary_metric",
    "primary_value",
    "primary_ci_low",
    "primary_ci_high",
    "accuracy_drop",
    "accuracy_verdict",
    "time_to_target_s",
    "cost_usd_per_million",
    "cost_to_target_usd",
    "instance",
    "price_usd_per_hour",
    "flops_per_unit",
    "bytes_per_unit",
    "roofline_fraction",
    "predicted_throughput_per_s",
    "prediction_error",
    "machine_slowdown",
    "step_compute_ms",
    "step_memory_ms",
    "step_communication_ms",
    "step_bubble_ms",
    "step_launch_ms",
    "step_data_ms",
    "step_host_ms",
    "step_split_excess",
    "pareto",
    "probability_best",
    "recommended",
    "source",
];

/// A judged row with its record and run.
struct Line<'a> {
    inputs: &'a Inputs<'a>,
    phase: &'a PhaseAdvice,
    row: &'a Row,
    record: &'a RunRecord,
}

impl Line<'_> {
    /// Empty for several seeds: their record keeps the answers of the first, and `accuracy` is the mean of all.
    fn metric(&self, metric: Metric) -> Option<f64> {
        if self.record.training.as_ref().is_some_and(|training| training.seeds.len() > 1) {
            return None;
        }
        self.record.quality.as_ref()?.metrics.get(&metric).copied()
    }
}

fn low(estimate: Option<Estimate>) -> Option<f64> {
    Some(estimate?.interval?.low)
}

fn high(estimate: Option<Estimate>) -> Option<f64> {
    Some(estimate?.interval?.high)
}

pub(super) fn stop_name(stop: StopCondition) -> &'static str {
    match stop {
        StopCondition::Precise => "precise",
        StopCondition::NoLongerImproving => "no_longer_improving",
        StopCondition::TimeCap => "time_cap",
    }
}

pub(super) fn source_name(source: Source) -> &'static str {
    match source {
        Source::Measured => "measured",
        Source::Modelled => "modelled",
        Source::Ingested => "ingested",
    }
}

fn column(name: &str, lines: &[Line]) -> Column {
    let text = |of: &dyn Fn(&Line) -> Option<String>| Series::new(name.into(), lines.iter().map(of).collect::<Vec<_>>());
    let real = |of: &dyn Fn(&Line) -> Option<f64>| Series::new(name.into(), lines.iter().map(of).collect::<Vec<_>>());
    let whole = |of: &dyn Fn(&Line) -> Option<u64>| Series::new(name.into(), lines.iter().map(of).collect::<Vec<_>>());
    let flag = |of: &dyn Fn(&Line) -> Option<bool>| Series::new(name.into(), lines.iter().map(of).collect::<Vec<_>>());
    fn header<'r>(line: &'r Line) -> &'r RunHeader {
        &line.inputs.run.header
    }
    let series = match name {
        "scenario" => text(&|l| Some(header(l).scenario.clone())),
        "candidate" => text(&|l| Some(l.row.id.clone())),
        "phase" => text(&|l| Some(l.phase.phase.name().into())),
        "device" => text(&|l| Some(l.record.candidate.device.to_string())),
        "model" => text(&|l| Some(header(l).model.clone())),
        "precision" => text(&|l| Some(l.record.candidate.precision.name().into())),
        "compression" => text(&|l| Some(l.record.candidate.compression.to_string())),
        "layout" => text(&|l| Some(l.record.candidate.layout.to_string())),
        "batch_size" => whole(&|l| Some(l.record.candidate.batch_size as u64)),
        "threads" => whole(&|l| Some(l.record.candidate.threads as u64)),
        "status" => text(&|l| Some(l.row.status.name().into())),
        "reason" => text(&|l| l.row.reason.clone()),
        "throughput_per_s" => real(&|l| l.row.throughput.map(|e| e.value)),
        "throughput_ci_low_per_s" => real(&|l| low(l.row.throughput)),
        "throughput_ci_high_per_s" => real(&|l| high(l.row.throughput)),
        "speedup" => real(&|l| l.row.speedup.map(|e| e.value)),
        "latency_p50_ms" => real(&|l| l.row.latency_p50.map(|s| s.as_ms())),
        "latency_p99_ms" => real(&|l| l.row.latency_p99.map(|s| s.as_ms())),
        "samples" => whole(&|l| l.record.measurement.as_ref().map(|_| l.row.samples)),
        "stop_condition" => text(&|l| l.record.measurement.as_ref().map(|m| stop_name(m.stop).into())),
        "peak_memory_bytes" => whole(&|l| l.row.peak_memory.map(|b| b.0)),
        "model_bytes" => whole(&|l| l.row.model_size.map(|b| b.0)),
        "energy_j_per_unit" => real(&|l| l.row.energy_j_per_unit),
        "energy_valid" => flag(&|l| l.row.energy_valid),
        "accuracy" => real(&|l| l.row.accuracy),
        "precision_macro" => real(&|l| l.metric(Metric::PrecisionMacro)),
        "recall_macro" => real(&|l| l.metric(Metric::RecallMacro)),
        "f1_macro" => real(&|l| l.metric(Metric::F1Macro)),
        "roc_auc_macro" => real(&|l| l.metric(Metric::RocAucMacro)),
        "primary_metric" => text(&|l| Some(header(l).primary_metric.name().into())),
        "primary_value" => real(&|l| l.row.primary.map(|e| e.value)),
        "primary_ci_low" => real(&|l| low(l.row.primary)),
        "primary_ci_high" => real(&|l| high(l.row.primary)),
        "accuracy_drop" => real(&|l| l.row.drop.map(|d| d.value)),
        "accuracy_verdict" => text(&|l| l.row.drop.map(|d| d.verdict.name().into())),
        "time_to_target_s" => real(&|l| l.row.time_to_target.map(|s| s.0)),
        "cost_usd_per_million" => real(&|l| l.row.usd_per_million.map(|e| e.value)),
        "cost_to_target_usd" => real(&|l| l.row.cost_to_target.map(|u| u.0)),
        "instance" => text(&|l| Some(l.inputs.advice.price.instance.clone())),
        "price_usd_per_hour" => real(&|l| Some(l.inputs.advice.price.usd_per_hour.0)),
        "flops_per_unit" => whole(&|l| l.row.flops_per_unit.map(|f| f.0)),
        "bytes_per_unit" => whole(&|l| l.row.bytes_per_unit.map(|b| b.0)),
        "roofline_fraction" => real(&|l| l.row.roofline_fraction),
        "predicted_throughput_per_s" => real(&|l| l.row.predicted.map(|predicted| predicted.rate.0)),
        "prediction_error" => real(&|l| l.row.predicted?.error),
        "machine_slowdown" => real(&|l| l.row.predicted?.slowdown),
        "step_split_excess" => real(&|l| l.record.time_split.as_ref()?.excess()),
        part if part.starts_with("step_") => real(&|l| {
            let parts = l.record.time_split.as_ref()?.parts();
            let (_, time) = parts.into_iter().find(|(name, _)| part == format!("step_{name}_ms"))?;
            Some(time?.as_ms())
        }),
        "pareto" => flag(&|l| l.record.measurement.as_ref().map(|_| l.row.on_front)),
        "probability_best" => real(&|l| l.row.probability_best),
        "recommended" => flag(&|l| Some(l.row.recommended)),
        "source" => text(&|l| Some(source_name(l.record.source).into()).filter(|_| l.record.status == Status::Ok)),
        other => unreachable!("`{other}` is not in RESULT_COLUMNS"),
    };
    series.into_column()
}

fn bytes(columns: Vec<Column>) -> Result<Vec<u8>, ReportError> {
    let mut frame = DataFrame::new_infer_height(columns)?;
    let mut out = Vec::new();
    CsvWriter::new(&mut out).finish(&mut frame)?;
    Ok(out)
}

/// `kernels.csv`: one row a kernel; `floor_s` is the time that its device would need at measured rates.
pub(super) fn kernels(run: &KernelRun, floor_s: impl Fn(&KernelRow) -> Option<f64>) -> Result<Vec<u8>, ReportError> {
    let rows = &run.kernels;
    fn text<'r>(name: &str, rows: &'r [KernelRow], of: impl Fn(&'r KernelRow) -> Option<&'r str>) -> Column {
        Series::new(name.into(), rows.iter().map(of).collect::<Vec<_>>()).into_column()
    }
    let real = |name: &str, of: &dyn Fn(&KernelRow) -> Option<f64>| {
        Series::new(name.into(), rows.iter().map(of).collect::<Vec<_>>()).into_column()
    };
    let whole = |name: &str, of: &dyn Fn(&KernelRow) -> u64| {
        Series::new(name.into(), rows.iter().map(of).collect::<Vec<_>>()).into_column()
    };
    let columns = vec![
        text("family", rows, |row| Some(&row.family)),
        text("op", rows, |row| Some(&row.op)),
        text("shape", rows, |row| Some(&row.shape)),
        text("dtype", rows, |row| Some(row.dtype.name())),
        text("operands", rows, |row| Some(if row.cold { "cold" } else { "in a cache" })),
        whole("flops", &|row| row.flops),
        whole("bytes", &|row| row.bytes),
        whole("samples", &|row| row.call_s.len() as u64),
        real("time_s", &|row| median(&row.call_s)),
        real("bytes_per_s", &|row| Some(row.bytes as f64 / median(&row.call_s)?)),
        real("flops_per_s", &|row| Some(row.flops as f64 / median(&row.call_s)?)),
        real("roof_fraction", &|row| Some(floor_s(row)? / median(&row.call_s)?)),
        real("peer_time_s", &|row| median(row.peer_call_s.as_deref()?)),
        real("vendor_time_s", &|row| median(row.vendor_call_s.as_deref()?)),
        text("reason", rows, |row| row.reason.as_deref()),
    ];
    let mut frame = DataFrame::new_infer_height(columns)?;
    let mut out = Vec::new();
    CsvWriter::new(&mut out).finish(&mut frame)?;
    Ok(out)
}

/// The table of all given scenarios, one row a candidate.
pub fn results_csv(scenarios: &[Inputs]) -> Result<Vec<u8>, ReportError> {
    let lines: Vec<Line> = scenarios
        .iter()
        .flat_map(|inputs| inputs.advice.phases.iter().map(move |phase| (inputs, phase)))
        .flat_map(|(inputs, phase)| {
            phase.rows.iter().map(move |row| Line { inputs, phase, row, record: &inputs.run.records[row.record] })
        })
        .collect();
    bytes(RESULT_COLUMNS.iter().map(|name| column(name, &lines)).collect())
}

/// Every kept step time with the block it belongs to.
pub fn samples_csv(inputs: &Inputs) -> Result<Vec<u8>, ReportError> {
    let (mut candidate, mut session, mut round, mut position) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut start, mut step, mut time, mut steps, mut total) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut flops, mut bytes_per_s) = (Vec::new(), Vec::new());
    for record in &inputs.run.records {
        let id = record.candidate.id();
        for block in record.measurement.iter().flat_map(|m| &m.blocks) {
            for (k, step_s) in block.step_s.iter().enumerate() {
                candidate.push(id.clone());
                session.push(block.session);
                round.push(block.round);
                position.push(block.position);
                start.push(block.start.0);
                step.push(k as u64);
                time.push(*step_s);
                steps.push(block.steps);
                total.push(block.total.0);
                flops.push(block.machine_speed.map(|speed| speed.flops_per_s));
                bytes_per_s.push(block.machine_speed.map(|speed| speed.bytes_per_s));
            }
        }
    }
    let scenario = vec![inputs.run.header.scenario.clone(); candidate.len()];
    bytes(vec![
        Series::new("scenario".into(), scenario).into_column(),
        Series::new("candidate".into(), candidate).into_column(),
        Series::new("session".into(), session).into_column(),
        Series::new("round".into(), round).into_column(),
        Series::new("position".into(), position).into_column(),
        Series::new("block_start_s".into(), start).into_column(),
        Series::new("step".into(), step).into_column(),
        Series::new("step_s".into(), time).into_column(),
        Series::new("block_steps".into(), steps).into_column(),
        Series::new("block_total_s".into(), total).into_column(),
        Series::new("block_machine_flops_per_s".into(), flops).into_column(),
        Series::new("block_machine_bytes_per_s".into(), bytes_per_s).into_column(),
    ])
}
