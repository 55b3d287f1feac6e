//! What the user wants: limits that must hold, the quantity to optimise, and what machine time costs.

use crate::{
    units::{PerSecond, Seconds, UsdPerHour},
    vocab::{Metric, Objective},
};
use serde::{Deserialize, Serialize};

/// Limits and objective of a scenario. A missing limit does not bind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Goal {
    pub constraints: Constraints,
    pub objective: Objective,
}

/// Every limit that a pick must meet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Constraints {
    /// Largest loss of the primary metric against fp32 uncompressed, absolute (0.005 = half a point), judged by the interval of a
    /// paired difference for inference, by the means over seeds for training.
    pub max_accuracy_drop: Option<f64>,
    /// Smallest primary metric.
    pub min_accuracy: Option<f64>,
    pub max_latency_p50: Option<Seconds>,
    pub max_latency_p99: Option<Seconds>,
    pub min_throughput: Option<PerSecond>,
    pub max_memory_bytes: Option<u64>,
    pub max_model_bytes: Option<u64>,
    pub max_usd_per_million: Option<f64>,
}

/// A quality that training has to reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    pub metric: Metric,
    pub at_least: f64,
}

/// Where the price of an hour comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CostBasis {
    /// The catalogue entry nearest to this machine.
    Auto,
    /// A catalogue entry by name: `aws/c3.large`.
    Instance(String),
    /// A price that the user states.
    Hourly(UsdPerHour),
    Owned(Owned),
}

/// Hardware that the user owns.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Owned {
    pub purchase_usd: f64,
    /// Years over which the purchase is written off.
    pub years: f64,
    /// Share of those hours in which it does useful work, in (0, 1].
    pub utilisation: f64,
    /// Draw under load, watts.
    pub watts: f64,
    pub usd_per_kwh: f64,
}
