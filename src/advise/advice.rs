//! The advice as data, ready to be rendered: every judgement a report shows is made here and not there.

use crate::{
    cost::Price,
    stats::Interval,
    units::{Bytes, Flops, PerSecond, Seconds, Usd},
    vocab::{Metric, Objective, Phase},
};

/// An estimate with its 95 % interval; no interval where too few blocks were timed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    pub value: f64,
    pub interval: Option<Interval>,
}

/// All that is advised of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Advice {
    pub objective: Objective,
    pub primary_metric: Metric,
    pub price: Price,
    /// One per phase of the run, in the order of the scenario.
    pub phases: Vec<PhaseAdvice>,
}

/// Training and inference are judged apart: they answer different questions.
#[derive(Clone, Debug, PartialEq)]
pub struct PhaseAdvice {
    pub phase: Phase,
    /// One per record of the phase, in the order in which they were planned (rows that are ok first).
    pub rows: Vec<Row>,
    /// Row of the fp32, uncompressed, single candidate that others are compared with.
    pub baseline: Option<usize>,
    pub outcome: Outcome,
}

/// What the phase's answer is.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Pick(Pick),
    /// Rows were measured but none meets every limit.
    Infeasible(Infeasible),
    /// Nothing was measured.
    Nothing,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Pick {
    /// Row.
    pub row: usize,
    /// Chance that it is the best of the feasible rows, by resampling what was measured. Unknown where it is the only row, where each row
    /// was measured once (memory, energy), and where there are fewer rounds or seeds than any exact test at 0.05 needs.
    pub probability_best: Option<f64>,
    /// Mean relative loss of the objective, over the resamples, from taking this row rather than the best one; a resample's loss is at
    /// most 1. Unknown where the probability is.
    pub expected_regret: Option<f64>,
    /// Other feasible rows whose objective cannot be told apart from the pick's: corrected p > 0.05, too few rounds or seeds for any
    /// test, or an effect below 1 %. Best first.
    pub ties: Vec<usize>,
    /// Whole sentences with their numbers, most important first.
    pub reasons: Vec<String>,
    /// Prices and volumes at which the answer would change.
    pub flips: Vec<Flip>,
    /// Figures at which two choices cost the same.
    pub break_evens: Vec<BreakEven>,
}

/// A figure at which two choices cost the same.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakEven {
    /// `runner_up_usd_per_hour`, `catalogue_throughput_per_s`, `owned_utilisation` (a share).
    pub quantity: &'static str,
    /// In the unit that `quantity` names.
    pub value: f64,
    /// Whole sentence with the number.
    pub text: String,
}

/// A change of a price or of a volume that would change the answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Flip {
    /// Row that would become the pick.
    pub row: usize,
    /// Whole sentence with the number.
    pub text: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Infeasible {
    /// The limit whose removal lets the most rows through, as the scenario's key: `max_accuracy_drop`.
    pub binding: String,
    /// Row that misses the limits by the least, and by how much.
    pub nearest: usize,
    /// Whole sentences.
    pub reasons: Vec<String>,
}

/// Status of a row after judging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowStatus {
    Ok,
    /// Measured, but breaks a limit.
    Infeasible,
    Failed,
    Skipped,
}

impl RowStatus {
    pub const fn name(self) -> &'static str {
        match self {
            RowStatus::Ok => "ok",
            RowStatus::Infeasible => "infeasible",
            RowStatus::Failed => "failed",
            RowStatus::Skipped => "skipped",
        }
    }
}

/// Judgement of a loss of quality against the baseline on the same rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropVerdict {
    /// The same weights and answers by definition: the baseline itself.
    Reference,
    /// No difference shown (exact McNemar p > 0.05 after Holm's correction).
    NoneShown,
    Better,
    /// A loss is shown, and it is within the scenario's limit (or no limit is set).
    Loss,
    /// The observed loss is above the limit; `within_limit` says whether that is shown.
    TooMuch,
}

impl DropVerdict {
    pub const fn name(self) -> &'static str {
        match self {
            DropVerdict::Reference => "reference",
            DropVerdict::NoneShown => "no loss shown",
            DropVerdict::Better => "better",
            DropVerdict::Loss => "loss",
            DropVerdict::TooMuch => "too much",
        }
    }
}

/// Whether a loss is within the scenario's limit: a test of non-inferiority by the 90 % interval of the paired difference, whose ends are
/// one-sided 95 % bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitVerdict {
    /// The upper end is within the limit.
    Met,
    /// The limit lies between the ends: what was observed decides.
    NotProven,
    /// The lower end is above the limit.
    Broken,
}

impl LimitVerdict {
    pub const fn name(self) -> &'static str {
        match self {
            LimitVerdict::Met => "met",
            LimitVerdict::NotProven => "not proven",
            LimitVerdict::Broken => "broken",
        }
    }
}

/// Quality of a row against the baseline's answers on the same test rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drop {
    /// Baseline's metric minus this row's; positive is worse.
    pub value: f64,
    /// 95 % interval of the paired difference; absent for metrics that are not a share of rows.
    pub interval: Option<Interval>,
    /// 90 % interval: each end is a one-sided 95 % bound.
    pub bounds: Option<Interval>,
    /// Against `max_accuracy_drop`; absent for the baseline, without a limit, and without an interval.
    pub within_limit: Option<LimitVerdict>,
    /// Exact McNemar p of this row alone.
    pub p_alone: f64,
    /// The same after Holm's correction for all `tests` of the phase.
    pub p: f64,
    /// Different sets of answers that were held against the baseline's: rows that answer alike are one test.
    pub tests: usize,
    /// Share of test rows whose predicted class differs from the baseline's.
    pub flip_rate: f64,
    /// Smallest loss that these test rows could have shown, at the same corrected level.
    pub smallest_provable: f64,
    pub verdict: DropVerdict,
}

/// A limit that a row breaks.
#[derive(Clone, Debug, PartialEq)]
pub struct Violation {
    /// Key of the scenario: `max_latency_p99_ms`.
    pub limit: &'static str,
    /// `p99 7.1 ms is above 5 ms`.
    pub text: String,
    /// How far beyond the limit, relative to it.
    pub excess: f64,
}

/// One record, judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Place in `StoredRun::records`.
    pub record: usize,
    pub id: String,
    pub title: String,
    pub status: RowStatus,
    /// Why it failed, was skipped, or is infeasible.
    pub reason: Option<String>,
    /// Units a second.
    pub throughput: Option<Estimate>,
    /// Throughput over the baseline's, from rounds that both were timed in.
    pub speedup: Option<Estimate>,
    pub latency_p50: Option<Seconds>,
    /// Upper 99 % confidence bound.
    pub latency_p99: Option<Seconds>,
    /// Timed steps.
    pub samples: u64,
    pub peak_memory: Option<Bytes>,
    pub model_size: Option<Bytes>,
    pub energy_j_per_unit: Option<f64>,
    pub energy_valid: Option<bool>,
    /// Primary metric on the test rows, with its interval (Wilson) where it is a share of rows. For training rows: mean over seeds.
    pub primary: Option<Estimate>,
    pub accuracy: Option<f64>,
    pub drop: Option<Drop>,
    /// Over the seeds as `stats::time_of_trainings` has it.
    pub time_to_target: Option<Seconds>,
    pub cost_to_target: Option<Usd>,
    /// Dollars for a million units at the measured throughput.
    pub usd_per_million: Option<Estimate>,
    pub flops_per_unit: Option<Flops>,
    pub bytes_per_unit: Option<Bytes>,
    /// Achieved throughput over the smaller of the compute and the memory roof. Above 1 where data stayed in the cache, or where
    /// arithmetic is narrower than the fp32 by which the roof is drawn.
    pub roofline_fraction: Option<f64>,
    /// Units a second that were predicted from the machine's measured rates of single ops; absent where these were not measured.
    pub predicted: Option<PredictedRate>,
    pub violations: Vec<Violation>,
    /// On the front of objective against quality: no other ok row is at least as good in both and better in one.
    pub on_front: bool,
    pub probability_best: Option<f64>,
    pub recommended: bool,
    /// Plain remarks: the record's own, and what the numbers say ("unstructured pruning buys no time here: 1.00x, 0.98 to 1.02").
    pub notes: Vec<String>,
}

/// A prediction beside the row's measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PredictedRate {
    pub rate: PerSecond,
    /// Over the measured rate, less 1.
    pub error: Option<f64>,
    /// How many times as long work that is always the same took around the row's blocks as while single ops were timed, which is counted in;
    /// absent where it was not read.
    pub slowdown: Option<f64>,
    /// Share of the predicted step in ops that were taken for others.
    pub assumed_share: f64,
}

impl PhaseAdvice {
    /// Median size of the relative errors of predictions, and of how many; `None` where nothing was predicted.
    pub fn prediction_error(&self) -> Option<(f64, usize)> {
        let errors: Vec<f64> = self.rows.iter().filter_map(|row| Some(row.predicted?.error?.abs())).collect();
        Some((crate::stats::median(&errors)?, errors.len()))
    }
}

impl Row {
    pub fn throughput(&self) -> Option<PerSecond> {
        self.throughput.map(|t| PerSecond(t.value))
    }
}
