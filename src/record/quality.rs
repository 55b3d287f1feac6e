//! What the answers were worth: predictions row by row, metrics over them, and how training got there.

use super::Metrics;
use crate::units::Seconds;
use serde::{Deserialize, Serialize};

/// One class against the rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassQuality {
    pub precision: f64,
    pub recall: f64,
    pub f1: f64,
    /// Absent when the class has no positive or no negative row.
    pub roc_auc: Option<f64>,
    /// Test rows of this class.
    pub support: u64,
}

/// A receiver operating characteristic, thinned for plotting (at most 101 points, corners kept).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RocCurve {
    pub class: u32,
    pub false_positive_rate: Vec<f64>,
    pub true_positive_rate: Vec<f64>,
}

/// Quality on the test rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Predicted class of every test row, in the order of the data's test part.
    pub predictions: Vec<u32>,
    pub metrics: Metrics,
    pub per_class: Vec<ClassQuality>,
    /// Rows: true class; columns: predicted class.
    pub confusion: Vec<Vec<u64>>,
    /// One curve a class; empty where scores were not kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roc: Vec<RocCurve>,
}

/// A point of the learning curve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Training time so far: data loading included, validation excluded.
    pub elapsed: Seconds,
    /// Mean training loss over the epoch's steps.
    pub train_loss: f64,
    /// The task's primary metric on the test rows after the epoch.
    pub metric: f64,
}

/// One training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeedRun {
    pub seed: u64,
    pub epochs: Vec<Epoch>,
    /// Data loss of up to 400 steps spread evenly over the run, as (step, loss).
    pub loss_curve: Vec<(u64, f64)>,
    /// Training time until the target was first met at an epoch's end; absent when it was not or none was set.
    pub time_to_target: Option<Seconds>,
    /// Final value of the primary metric.
    pub metric: f64,
    /// fp16 only: steps skipped because a scaled gradient was not finite.
    pub skipped_steps: u64,
    /// Why this run ended early ("loss is not finite at step 12"); its metric is then that of the last epoch or 0.
    pub failure: Option<String>,
    pub checkpoint: String,
}

impl SeedRun {
    /// A run that has not begun.
    pub fn new(seed: u64) -> SeedRun {
        SeedRun {
            seed,
            epochs: Vec::new(),
            loss_curve: Vec::new(),
            time_to_target: None,
            metric: 0.0,
            skipped_steps: 0,
            failure: None,
            checkpoint: String::new(),
        }
    }
}

/// All seeds of a training candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingOutcome {
    pub seeds: Vec<SeedRun>,
    /// Value the primary metric must reach, where the scenario names one.
    pub target: Option<f64>,
}
