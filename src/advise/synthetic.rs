//! Stored runs with a planted truth, for the tests of this module.

use crate::{
    record::{
        Block, Candidate, Constraints, CostBasis, Energy, Environment, Epoch, Goal, LatencyTail, Measurement, OptimizerConfig,
        Quality, RunHeader, RunRecord, SCHEMA_VERSION, SeedRun, Source, Status, StopCondition, StoredRun, TrainConfig,
        TrainingOutcome,
    },
    stats::Generator,
    units::{Bytes, Flops, Joules, Seconds, UsdPerHour},
    vocab::{Compression, Device, Layout, Metric, Objective, OptimizerKind, Phase, Precision},
};

pub(crate) fn candidate(phase: Phase, compression: Compression, batch_size: usize) -> Candidate {
    Candidate {
        phase,
        device: Device::Cpu,
        precision: Precision::Fp32,
        compression,
        layout: Layout::SINGLE,
        batch_size,
        threads: 2,
    }
}

/// Accuracy and answers; per-class figures are left out.
pub(crate) fn quality(predictions: Vec<u32>, labels: &[u32]) -> Quality {
    let right = predictions.iter().zip(labels).filter(|(a, b)| a == b).count();
    let metrics = [(Metric::Accuracy, right as f64 / labels.len().max(1) as f64)].into();
    Quality { predictions, metrics, per_class: vec![], confusion: vec![], roc: vec![] }
}

/// Two blocks (ABBA) a round at `rate` units a second, with the drift of the round and relative noise `noise` of its own.
pub(crate) fn measurement(
    batch: usize,
    rate: f64,
    rounds: std::ops::Range<u32>,
    drift: impl Fn(u32) -> f64,
    noise: f64,
    seed: u64,
) -> Measurement {
    let mut generator = Generator::new(seed);
    let mut blocks = Vec::new();
    for round in rounds {
        for position in 0..2 {
            let rate = rate * drift(round) * (1.0 + noise * generator.normal());
            let step = batch as f64 / rate;
            let start = Seconds(f64::from(round));
            blocks.push(Block {
                session: 0,
                round,
                position,
                start,
                step_s: vec![step; 50],
                steps: 50,
                total: Seconds(step * 50.0),
                machine_speed: None,
            });
        }
    }
    let latency_p99 = Some(LatencyTail { bound: Seconds(batch as f64 / rate * 1.2), steps: 600 });
    Measurement {
        blocks,
        warm_up: Seconds(0.5),
        warm_up_steps: 10,
        warm_up_stable: true,
        stop: StopCondition::Precise,
        latency_p99,
    }
}

pub(crate) fn labels(rows: usize) -> Vec<u32> {
    (0..rows).map(|k| (k % 10) as u32).collect()
}

/// An inference row of 8 rounds at `rate`, whose first `wrong` test rows are answered wrongly.
pub(crate) fn infer(compression: Compression, batch: usize, rate: f64, wrong: usize, noise: f64, seed: u64) -> RunRecord {
    let labels = labels(2000);
    let predictions = labels.iter().enumerate().map(|(k, label)| if k < wrong { (label + 1) % 10 } else { *label }).collect();
    let wander = |round: u32| 1.0 + 0.05 * f64::from(round).sin();
    RunRecord {
        status: Status::Ok,
        reason: None,
        source: Source::Measured,
        measurement: Some(measurement(batch, rate, 0..8, wander, noise, seed)),
        quality: Some(quality(predictions, &labels)),
        peak_memory: Some(Bytes(64 << 20)),
        model_size: Some(Bytes(200 << 10)),
        flops_per_unit: Some(Flops(1_000_000)),
        bytes_per_unit: Some(Bytes(100_000)),
        ..RunRecord::without_result(candidate(Phase::Infer, compression, batch), Status::Ok, String::new())
    }
}

/// A training row whose seeds reached the target after the given times and ended with the given metric.
pub(crate) fn train(precision: Precision, rate: f64, seeds: &[(Option<f64>, f64)]) -> RunRecord {
    let seeds = seeds.iter().enumerate().map(|(k, (time, metric))| SeedRun {
        seed: k as u64 + 1,
        epochs: vec![Epoch { elapsed: Seconds(1.0), train_loss: 0.1, metric: *metric }],
        loss_curve: vec![],
        time_to_target: time.map(Seconds),
        metric: *metric,
        skipped_steps: 0,
        failure: None,
        checkpoint: String::new(),
    });
    RunRecord {
        training: Some(TrainingOutcome { seeds: seeds.collect(), target: Some(0.97) }),
        measurement: Some(measurement(64, rate, 0..8, |_| 1.0, 0.002, 77 + precision as u64)),
        candidate: Candidate { precision, ..candidate(Phase::Train, Compression::NONE, 64) },
        quality: None,
        ..infer(Compression::NONE, 64, rate, 0, 0.0, 1)
    }
}

pub(crate) fn energy(joules: f64, valid: bool) -> Energy {
    let reason = (!valid).then(|| "the window was 0.2 s".to_string());
    Energy { total: Joules(joules), window: Seconds(1.0), units: 1000, valid, reason, counter: "powercap intel-rapl:0".into() }
}

/// A run priced at $3.60 an hour, $0.001 a second.
pub(crate) fn run(records: Vec<RunRecord>, objective: Objective, constraints: Constraints) -> StoredRun {
    let mut phases: Vec<Phase> = records.iter().map(|record: &RunRecord| record.candidate.phase).collect();
    phases.sort_by_key(|phase| *phase as u8);
    phases.dedup();
    let header = RunHeader {
        schema_version: SCHEMA_VERSION,
        scenario: "synthetic".into(),
        question: String::new(),
        scenario_text: String::new(),
        config_hash: String::new(),
        command: "advisor run synthetic.toml".into(),
        started_unix_s: 0,
        environment: Environment {
            physical_cores: 2,
            logical_cores: 2,
            memory: Bytes(24 << 30),
            peak_flops_per_core: Some(5e10),
            copy_bytes_per_s: Some(1e10),
            ..Environment::default()
        },
        quick: false,
        phases,
        classes: (0..10).map(|k| k.to_string()).collect(),
        test_labels: labels(2000),
        train_rows: 10_000,
        test_rows: 2000,
        unit: "image".into(),
        model: "mlp".into(),
        data: "mnist".into(),
        train: TrainConfig { seeds: 3, ..TrainConfig::new(3, OptimizerConfig::new(OptimizerKind::Sgd, 0.05), 64) },
        goal: Goal { constraints, objective },
        cost: CostBasis::Hourly(UsdPerHour(3.6)),
        primary_metric: Metric::Accuracy,
    };
    StoredRun { header, records, seeds: vec![], warnings: vec![], end: None }
}
