//! Time, work and energy of a candidate, as raw as they were taken.

use crate::{
    units::{Bytes, Flops, Joules, Seconds},
    vocab::DType,
};
use serde::{Deserialize, Serialize};

/// Why sampling stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopCondition {
    /// Relative standard error of the block rates fell below the wanted one.
    Precise,
    /// More blocks no longer improved the relative deviation.
    NoLongerImproving,
    /// The cap on time or rounds was reached first.
    TimeCap,
}

/// An uninterrupted series of timed steps of one candidate, between blocks of others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Block {
    /// Blocks of the same session and round ran interleaved, so their ratios share the machine's drift.
    pub session: u32,
    pub round: u32,
    /// Place in the round's order, counted over all candidates of the group.
    pub position: u32,
    /// Start, seconds after the session began.
    pub start: Seconds,
    /// Wall time of each step in order (one batch each); of training on a GPU, where steps are queued, the time between the ends of
    /// neighbouring steps by events on the device. At most the first 200 steps of a block are kept one by one.
    pub step_s: Vec<f64>,
    /// Steps in the block, kept or not.
    pub steps: u64,
    /// Wall time of the whole block, gaps between steps included: rates come from this.
    pub total: Seconds,
    /// How fast the processor worked right before and behind it, by work that is always the same; absent of devices and of processes of a
    /// launch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_speed: Option<MachineSpeed>,
}

/// What the processor reaches at a moment, of each of some threads that work at once.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineSpeed {
    /// fp32 multiply-adds on numbers in registers.
    pub flops_per_s: f64,
    /// Copies within a core's own caches, read and written.
    pub bytes_per_s: f64,
}

impl MachineSpeed {
    /// One number for both, their geometric mean: ops are bound by either, and both at once by what neighbours take of a core.
    pub fn overall(&self) -> f64 {
        (self.flops_per_s * self.bytes_per_s).sqrt()
    }

    /// The lower of both of two.
    pub fn slower(self, other: MachineSpeed) -> MachineSpeed {
        self.each(other, f64::min)
    }

    /// Halfway between two moments.
    pub fn between(self, other: MachineSpeed) -> MachineSpeed {
        self.each(other, |a, b| (a * b).sqrt())
    }

    fn each(self, other: MachineSpeed, of: impl Fn(f64, f64) -> f64) -> MachineSpeed {
        MachineSpeed {
            flops_per_s: of(self.flops_per_s, other.flops_per_s),
            bytes_per_s: of(self.bytes_per_s, other.bytes_per_s),
        }
    }
}

impl Block {
    /// Units a second over the block, for a batch of `batch_size` units a step.
    pub fn rate(&self, batch_size: usize) -> f64 {
        self.steps as f64 * batch_size as f64 / self.total.0
    }
}

/// All timed blocks of a candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    pub blocks: Vec<Block>,
    pub warm_up: Seconds,
    pub warm_up_steps: u64,
    /// True when the warm-up ended because times were stable, false when its cap came first.
    pub warm_up_stable: bool,
    pub stop: StopCondition,
    /// Upper confidence bound (99 %) on the 99th percentile of step latency; absent when too few steps were timed.
    pub latency_p99: Option<LatencyTail>,
}

/// A tail quantile bounded from above by an order statistic (MLPerf inference rules, early stopping).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatencyTail {
    pub bound: Seconds,
    /// Steps it rests on.
    pub steps: u64,
}

/// Which stage of a pipeline a message goes to or comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Neighbour {
    Before,
    Behind,
}

/// One op of the program: its work by counting, its time by a profiled run outside the timed blocks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpProfile {
    /// Family: `conv2d_bias_relu_max_pool`, `linear`, `all_reduce`.
    pub op: String,
    /// What its name and shape do not tell of how it is computed: `gelu` behind a layer, `transposed b` of a product; empty where nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
    /// Shape in the house's letters: `[64, 6272] x [6272, 128]`.
    pub shape: String,
    /// The narrowest type of numbers among the operands; absent in older files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<DType>,
    /// Of what goes between the stages of a pipeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neighbour: Option<Neighbour>,
    /// Per step (one batch).
    pub flops: Flops,
    pub bytes: Bytes,
    /// Bytes sent to other ranks.
    pub message_bytes: Bytes,
    /// Median over profiled steps; absent where the backend cannot tell.
    pub time: Option<Seconds>,
    /// Of that, waiting for other ranks to begin; absent where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited: Option<Seconds>,
}

/// Where the time of a step goes, seconds a step: means over the ranks, whose steps take equally long. The parts are those of one
/// series of steps, and add up to its mean step; `step` is that of ordinary steps between them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TimeSplit {
    /// Ops whose arithmetic intensity is above the machine's balance.
    pub compute: Seconds,
    /// Ops below it.
    pub memory: Seconds,
    /// Exchanges between ranks, without waiting for others to begin; with it in files of version 1.
    pub communication: Seconds,
    /// Waiting for other ranks to begin: for a stage of a pipeline, or for the slowest of a sum. Not known apart in files of version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bubble: Option<Seconds>,
    /// A device with nothing to do between its kernels; 0 on the processor. Part of `host` in files of version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launch: Option<Seconds>,
    /// Reading, augmenting and batching of rows, as far as the step waits for it.
    pub data: Seconds,
    /// What remains of the step: reading results, bookkeeping.
    pub host: Seconds,
    /// An ordinary step of the same rank, without clocks inside; absent in files of version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<Seconds>,
}

impl TimeSplit {
    /// Largest relative difference between the parts together and the step.
    pub const TOLERANCE: f64 = 0.05;

    /// Every part with its name.
    pub fn parts(&self) -> [(&'static str, Option<Seconds>); 7] {
        [
            ("compute", Some(self.compute)),
            ("memory", Some(self.memory)),
            ("communication", Some(self.communication)),
            ("bubble", self.bubble),
            ("launch", self.launch),
            ("data", Some(self.data)),
            ("host", Some(self.host)),
        ]
    }

    pub fn sum(&self) -> Seconds {
        Seconds(self.parts().iter().filter_map(|(_, part)| *part).map(|part| part.0).sum())
    }

    /// By how much of the step the parts exceed it, or fall short of it where negative; `None` where the step is not known.
    pub fn excess(&self) -> Option<f64> {
        let step = self.step?.0;
        (step > 0.0).then(|| self.sum().0 / step - 1.0)
    }
}

/// Energy over the timed blocks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    /// Of the whole package, idle included.
    pub total: Joules,
    pub window: Seconds,
    /// Units done in the window.
    pub units: u64,
    /// False when the window was too short or the counter did not move; `reason` says so.
    pub valid: bool,
    pub reason: Option<String>,
    /// Where it was read: `powercap intel-rapl:0`.
    pub counter: String,
}
