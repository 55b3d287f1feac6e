//! What parent and worker say to each other. Every answer tells how long the worker was busy with it.

use crate::{
    data::DataSource,
    record::{Candidate, MachineSpeed, OpProfile, Quality, SeedRun, TimeSplit, TrainConfig},
    units::{Bytes, Flops, Seconds},
    vocab::{Device, Metric, Task},
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// All that a worker needs to become one candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    pub candidate: Candidate,
    pub task: Task,
    pub model: String,
    pub data: DataSource,
    /// Places from which shipped data is looked for.
    pub search_from: Vec<PathBuf>,
    pub train: TrainConfig,
    pub primary_metric: Metric,
    /// Folder of trained weights.
    pub checkpoints: PathBuf,
    /// The training whose weights inference candidates share runs here,
    pub reference_device: Device,
    /// on so many threads.
    pub reference_threads: usize,
    /// Length of the window in which a counter is read that is too coarse for single blocks.
    pub energy_window: Seconds,
    /// FLOP per byte at which the machine's compute and memory limits meet, for all threads of the candidate.
    pub balance: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Request {
    /// Load data, make or load weights, build the program.
    Prepare(Box<Setup>),
    /// Train one seed to the end (phase `train`).
    Train { seed: u64 },
    /// Run steps for at least `least`, until their times are stable, at most `most`.
    WarmUp { least: Seconds, most: Seconds },
    /// Time an uninterrupted series of steps that lasts about `target`.
    Block { target: Seconds },
    /// Judge, count, profile.
    Describe,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Response {
    Prepared {
        busy_s: f64,
    },
    Trained {
        run: Box<SeedRun>,
        quality: Box<Quality>,
        busy_s: f64,
    },
    Warm {
        steps: u64,
        warm_up_s: f64,
        stable: bool,
        busy_s: f64,
    },
    Block {
        step_s: Vec<f64>,
        steps: u64,
        total_s: f64,
        energy_j: Option<f64>,
        machine_speed: Option<MachineSpeed>,
        busy_s: f64,
    },
    Described {
        described: Box<Described>,
        busy_s: f64,
    },
    /// The candidate cannot go on; the worker ends.
    Failed {
        reason: String,
    },
}

/// Energy of an uninterrupted series of steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WindowEnergy {
    pub total_j: f64,
    pub window_s: f64,
    pub steps: u64,
    /// Shorter windows show the counter's steps.
    pub least_s: f64,
}

/// What is known of a candidate beside its times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Described {
    pub quality: Option<Quality>,
    pub peak_memory: Option<Bytes>,
    pub model_size: Option<Bytes>,
    pub flops_per_unit: Option<Flops>,
    pub bytes_per_unit: Option<Bytes>,
    pub profile: Vec<OpProfile>,
    pub further_stages: Vec<Vec<OpProfile>>,
    pub input_bytes: Bytes,
    pub time_split: Option<TimeSplit>,
    pub notes: Vec<String>,
    pub checkpoint: Option<String>,
    /// Energy of a window of its own, for counters that are too coarse for single blocks.
    pub energy: Option<WindowEnergy>,
    /// Where energy was read; absent on a machine without a counter.
    pub energy_counter: Option<String>,
}
