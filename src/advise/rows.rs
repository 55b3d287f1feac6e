//! One record's figures, each with its interval: what a table shows of a candidate before it is judged.

use super::{CONFIDENCE, Drop, Estimate, Judged, PredictedRate, RESAMPLES, Row, RowStatus, quality, speed};
use crate::{
    cost::{self, Price},
    predict::{predict_record, slowdown},
    record::{Environment, RunRecord, SeedRun, Status, StoredRun},
    stats::{Interval, bootstrap_interval, fewest_pairs, mean, median, time_of_trainings, wilson},
    units::{PerSecond, Seconds},
    vocab::{Compression, Layout, Metric, Phase, Precision},
};
use speed::Timing;

/// The fp32, uncompressed, single record that the others are compared with: that of the reference training's batch size, else the
/// largest; of those the one with the most threads.
pub(super) fn baseline(records: &[&RunRecord], train_batch: usize) -> Option<usize> {
    let plain = |record: &RunRecord| {
        let candidate = &record.candidate;
        record.status == Status::Ok
            && candidate.precision == Precision::Fp32
            && candidate.compression == Compression::NONE
            && candidate.layout == Layout::SINGLE
    };
    let rank = |record: &RunRecord| {
        let candidate = &record.candidate;
        (candidate.batch_size == train_batch, candidate.batch_size, candidate.threads)
    };
    (0..records.len()).filter(|k| plain(records[*k])).max_by_key(|k| (rank(records[*k]), std::cmp::Reverse(*k)))
}

/// All records of a phase with their figures, in the order of the run; limits are applied later.
pub(super) fn judge<'a>(run: &'a StoredRun, price: &Price, phase: Phase, baseline: Option<&str>) -> Vec<Judged<'a>> {
    let places: Vec<usize> = (0..run.records.len()).filter(|k| run.records[*k].candidate.phase == phase).collect();
    let timings: Vec<Timing> = places.iter().map(|k| Timing::of(&run.records[*k])).collect();
    let reference = places.iter().position(|k| Some(run.records[*k].candidate.id().as_str()) == baseline);
    let drops = drops(run, phase, &places, reference);
    let base_rates = reference.map(|at| timings[at].rates.clone());
    let base_speeds = reference.map(|at| timings[at].machine_speeds.clone());
    places
        .into_iter()
        .zip(timings)
        .zip(drops)
        .map(|((place, timing), drop)| {
            // Units a second, free of the machine's drift where the baseline ran in the same rounds. Rows of different groups compare by
            // this figure; the raw rates stay in the samples.
            let throughput = speed::comparable_estimate(&timing.rates, base_rates.as_ref());
            let speedup = base_rates.as_ref().and_then(|base| speed::estimate(&speed::shared_ratios(&timing.rates, base)));
            // The baseline is once as fast as itself, by definition.
            let is_baseline = baseline.is_some_and(|id| run.records[place].candidate.id() == id);
            let speedup = speedup.map(|ratio| if is_baseline { Estimate { interval: None, ..ratio } } else { ratio });
            // A rate follows the baseline's seconds, so the processor's speed for it does too.
            let machine_speed = speed::comparable(&timing.machine_speeds, base_speeds.as_ref());
            let mut row = figures(run, place, &timing, (throughput, machine_speed), price);
            row.drop = drop;
            row.speedup = speedup;
            Judged { record: &run.records[place], timing, breaches: Vec::new(), row }
        })
        .collect()
}

/// Training seeds have no paired answers; their loss is judged by the mean over seeds, in `limits`.
fn drops(run: &StoredRun, phase: Phase, places: &[usize], reference: Option<usize>) -> Vec<Option<Drop>> {
    match reference.filter(|_| phase == Phase::Infer) {
        Some(reference) => {
            let answers: Vec<_> = places.iter().map(|k| answered(&run.records[*k])).collect();
            let header = &run.header;
            let limit = header.goal.constraints.max_accuracy_drop;
            quality::drops(&answers, reference, &header.test_labels, header.primary_metric, limit)
        }
        None => vec![None; places.len()],
    }
}

fn answered(record: &RunRecord) -> Option<&crate::record::Quality> {
    record.quality.as_ref().filter(|_| record.status == Status::Ok)
}

fn figures(
    run: &StoredRun,
    place: usize,
    timing: &Timing,
    (throughput, machine_speed): (Option<Estimate>, Option<f64>),
    price: &Price,
) -> Row {
    let (header, record) = (&run.header, &run.records[place]);
    let valid_energy = record.energy.as_ref().filter(|energy| energy.units > 0 && energy.total.0.is_finite());
    let time_to_target = time_to_target(record);
    Row {
        record: place,
        id: record.candidate.id(),
        title: record.candidate.title(),
        status: match record.status {
            Status::Ok => RowStatus::Ok,
            Status::Failed => RowStatus::Failed,
            Status::Skipped => RowStatus::Skipped,
        },
        reason: record.reason.clone(),
        throughput,
        speedup: None,
        latency_p50: median(&timing.steps).map(Seconds),
        latency_p99: record.measurement.as_ref().and_then(|m| m.latency_p99).map(|tail| tail.bound),
        samples: timing.samples,
        peak_memory: record.peak_memory,
        model_size: record.model_size,
        energy_j_per_unit: valid_energy.map(|energy| energy.total.0 / energy.units as f64),
        energy_valid: record.energy.as_ref().map(|energy| energy.valid && valid_energy.is_some()),
        primary: primary(record, header.primary_metric, &header.test_labels),
        accuracy: accuracy(record, header.primary_metric),
        drop: None,
        time_to_target,
        cost_to_target: time_to_target.map(|time| price.usd_per_hour.times(time)),
        usd_per_million: throughput.map(|rate| {
            let cost = |rate: f64| cost::usd_per_million(price.usd_per_hour, PerSecond(rate)).0;
            // The faster end of the rate is the cheaper end of the cost.
            let interval = rate.interval.map(|i| Interval { low: cost(i.high), high: cost(i.low) });
            Estimate { value: cost(rate.value), interval }
        }),
        flops_per_unit: record.flops_per_unit,
        bytes_per_unit: record.bytes_per_unit,
        roofline_fraction: throughput.and_then(|rate| Some(rate.value / roof(record, &header.environment)?)),
        predicted: predict_record(record, &header.environment).map(|prediction| {
            let slowdown = machine_speed.and_then(|speed| slowdown(record, &header.environment, speed));
            let rate = PerSecond(prediction.rate(record.candidate.batch_size).0 / slowdown.unwrap_or(1.0));
            let error = throughput.map(|measured| rate.0 / measured.value - 1.0);
            PredictedRate { rate, error, slowdown, assumed_share: prediction.assumed_share }
        }),
        violations: Vec::new(),
        on_front: false,
        probability_best: None,
        recommended: false,
        notes: record.notes.clone(),
    }
}

/// Seeds of a training record.
pub(super) fn seeds(record: &RunRecord) -> &[SeedRun] {
    record.training.as_ref().map_or(&[], |training| &training.seeds)
}

fn time_to_target(record: &RunRecord) -> Option<Seconds> {
    let times: Vec<Option<f64>> = seeds(record).iter().map(|seed| seed.time_to_target.map(|time| time.0)).collect();
    time_of_trainings(&times).map(Seconds)
}

/// Training: mean over seeds with its bootstrap interval. Inference: the metric with Wilson's interval where it is a share of rows.
fn primary(record: &RunRecord, metric: Metric, labels: &[u32]) -> Option<Estimate> {
    let values: Vec<f64> = seeds(record).iter().map(|seed| seed.metric).filter(|value| value.is_finite()).collect();
    if record.candidate.phase == Phase::Train && !values.is_empty() {
        let average = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        // Resamples of fewer vary too little to be called 95 %.
        let interval = bootstrap_interval(&values, average, RESAMPLES, CONFIDENCE, speed::SEED);
        let interval = interval.filter(|_| values.len() >= fewest_pairs(1));
        return Some(Estimate { value: mean(&values)?, interval });
    }
    let quality = record.quality.as_ref()?;
    let value = quality.metrics.get(&metric).copied().filter(|value| value.is_finite())?;
    let rows = quality.predictions.len();
    let is_share = quality::is_share_of_rows(metric) && rows > 0 && rows == labels.len() && (0.0..=1.0).contains(&value);
    let right = (value * rows as f64).round() as u64;
    Some(Estimate { value, interval: is_share.then(|| wilson(right, rows as u64)) })
}

fn accuracy(record: &RunRecord, primary_metric: Metric) -> Option<f64> {
    if record.candidate.phase == Phase::Train && primary_metric == Metric::Accuracy && !seeds(record).is_empty() {
        return mean(&seeds(record).iter().map(|seed| seed.metric).collect::<Vec<_>>());
    }
    if seeds(record).len() > 1 {
        // What was kept of the answers is the first seed's.
        return None;
    }
    record.quality.as_ref()?.metrics.get(&Metric::Accuracy).copied()
}

/// Units a second that the machine allows: the smaller of what its cores or devices compute and what its memory moves.
fn roof(record: &RunRecord, environment: &Environment) -> Option<f64> {
    let (peak, copy) = environment.rates(&record.candidate)?;
    let (flops, bytes) = (record.flops_per_unit?.0 as f64, record.bytes_per_unit?.0 as f64);
    let roof = (peak / flops).min(copy / bytes);
    (roof.is_finite() && roof > 0.0).then_some(roof)
}
