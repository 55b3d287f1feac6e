//! The waist of the house: what a run leaves behind, as plain data that can be saved, read back and judged again.
//!
//! The left wing (data, graphs, devices, clocks) fills these types; the right wing (statistics, prices, advice, reports) reads
//! them and nothing else. `store` keeps them as JSON lines. Unknown is `None`, never 0.

mod candidate;
mod communication;
mod counted;
mod goal;
mod gpu;
mod kernels;
mod measurement;
mod quality;
mod rates;
mod setup;
pub mod store;

pub use candidate::Candidate;
pub use communication::{COMMUNICATION_VERSION, CommunicationFile, CommunicationRow, CommunicationRun};
pub use counted::{CountedGraph, CountedOp, GraphMemory};
pub use goal::{Constraints, CostBasis, Goal, Owned, Target};
pub use gpu::Gpu;
pub use kernels::{CheckRow, KernelRow, KernelRun, StepRow};
pub use measurement::{Block, Energy, LatencyTail, MachineSpeed, Measurement, Neighbour, OpProfile, StopCondition, TimeSplit};
pub use quality::{ClassQuality, Epoch, Quality, RocCurve, SeedRun, TrainingOutcome};
pub use rates::{ExchangeRate, OpRate, RATES_VERSION, RateTable, RatesFile, Workers};
pub use setup::{OptimizerConfig, TrainConfig};

use crate::{
    units::{Bytes, Flops, Seconds},
    vocab::{Device, Precision},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of everything below; a reader refuses a newer one. Since 2, `TimeSplit::communication` leaves out waiting, which `bubble` has, and
/// `host` what is `launch`; older files are read, and those parts are not known of them.
pub const SCHEMA_VERSION: u32 = 2;

/// Where a number comes from. Three different words everywhere in the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// By a clock on the machine of the record.
    Measured,
    /// By a model, with its error beside it. Of a row that was run by an emulation (`Candidate::emulation`): what stands in it follows from
    /// numbers and counts, and what a clock said of the emulation is left out.
    Modelled,
    /// By somebody else's measurement, read from a file.
    Ingested,
}

/// How a candidate ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    /// It ran into an error; `reason` says which.
    Failed,
    /// It was never tried; `reason` says why (not applicable, budget spent).
    Skipped,
}

/// One candidate with all that was found out about it: one row of the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    pub candidate: Candidate,
    pub status: Status,
    /// Why it failed or was skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub source: Source,
    /// Speed; absent where nothing was timed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measurement: Option<Measurement>,
    /// Quality on the test rows, from the very weights that were timed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<Quality>,
    /// Phase `train` only: every seed's run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<TrainingOutcome>,
    /// Energy of the timed blocks; absent where the machine has no counter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy: Option<Energy>,
    /// Highest resident memory of the worker process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<Bytes>,
    /// Weights as this candidate stores them (after compression, in its storage type, metadata included).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_size: Option<Bytes>,
    /// Arithmetic of one unit (image, row) in this phase, from the very program that ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flops_per_unit: Option<Flops>,
    /// Memory traffic of one unit, each operand of each op once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_unit: Option<Bytes>,
    /// Per-op work and time of the program, in program order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profile: Vec<OpProfile>,
    /// Pipelines only: the ops of the stages behind the first, in their order, without times.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further_stages: Vec<Vec<OpProfile>>,
    /// Of a step, what is fetched for it over all ranks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_bytes: Option<Bytes>,
    /// Where a step's time goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_split: Option<TimeSplit>,
    /// Facts that a reader of the row should know ("calibrated on 512 training rows", "bf16 is emulated on this processor").
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Name of the checkpoint whose weights were used or made: SHA-256 (hex) of all that decides what training makes of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
}

impl RunRecord {
    /// Without what a clock or a counter said of an emulation, and with a note that says so.
    pub fn without_emulated_speed(mut self) -> Self {
        let Some(reason) = self.candidate.emulation() else { return self };
        (self.source, self.measurement, self.energy, self.peak_memory, self.time_split) =
            (Source::Modelled, None, None, None, None);
        self.profile.iter_mut().for_each(|op| op.time = None);
        self.training.iter_mut().flat_map(|training| &mut training.seeds).for_each(|seed| seed.time_to_target = None);
        self.notes.push(reason.to_string());
        self
    }

    /// A row for a candidate that was not run to its end.
    pub fn without_result(candidate: Candidate, status: Status, reason: String) -> Self {
        RunRecord {
            candidate,
            status,
            reason: Some(reason),
            source: Source::Measured,
            measurement: None,
            quality: None,
            training: None,
            energy: None,
            peak_memory: None,
            model_size: None,
            flops_per_unit: None,
            bytes_per_unit: None,
            profile: Vec::new(),
            further_stages: Vec::new(),
            input_bytes: None,
            time_split: None,
            notes: Vec::new(),
            checkpoint: None,
        }
    }
}

/// What a reader needs to know of the machine to trust or repeat a figure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    pub host: String,
    pub os: String,
    pub kernel: String,
    /// Processor's marketing name.
    pub cpu: String,
    pub physical_cores: usize,
    pub logical_cores: usize,
    pub memory: Bytes,
    /// Instruction sets that the kernels can use, best last ("avx2", "avx512-vnni").
    pub instruction_sets: Vec<String>,
    /// Frequency governor, where the system tells.
    pub governor: Option<String>,
    /// Share of CPU time stolen by the hypervisor during the run, where the system tells.
    pub steal_share: Option<f64>,
    /// Load average of one minute before the run began.
    pub load_before: Option<f64>,
    /// Measured fp32 multiply-add rate of one core, FLOP/s.
    pub peak_flops_per_core: Option<f64>,
    /// CUDA devices that candidates of the run may use, in the driver's order; empty where none does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<Gpu>,
    /// Processes that a launcher started to be ranks; absent where ranks are threads of a process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<Processes>,
    /// Measured large-copy bandwidth of all cores, bytes/s (read + written).
    pub copy_bytes_per_s: Option<f64>,
    /// How fast single ops run here, of all who work on candidates; empty where that was not measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rates: Vec<RateTable>,
    pub advisor_version: String,
    pub rustc: String,
    /// Git commit of the program, where known at build time.
    pub commit: Option<String>,
}

impl Environment {
    /// Measured rates of what a candidate runs on: FLOP/s in its storage type and bytes/s, over all its ranks. `None` where they were not
    /// measured.
    pub fn rates(&self, candidate: &Candidate) -> Option<(f64, f64)> {
        match candidate.device {
            Device::Cuda(first) => {
                // Devices are known of the first host alone.
                let hosts = self.processes.as_ref().map_or(&[][..], |processes| &processes.hosts);
                let of_ranks = &hosts[..hosts.len().min(candidate.layout.ranks())];
                if of_ranks.iter().any(|host| *host != of_ranks[0]) {
                    return None;
                }
                let gpus = self.gpus.get(first..first + candidate.layout.ranks())?;
                let each = gpus.iter().map(|gpu| match candidate.precision {
                    Precision::Tf32 => gpu.tf32_flops_per_s.zip(gpu.copy_bytes_per_s),
                    other => gpu.rates(other.storage()),
                });
                each.reduce(|all, one| all.zip(one).map(|((a, b), (c, d))| (a + c, b + d)))?
            }
            Device::Auto | Device::Cpu => self.processor_rates(candidate.threads),
        }
    }

    /// The same of so many threads of the processor, in fp32.
    pub fn processor_rates(&self, threads: usize) -> Option<(f64, f64)> {
        let cores = if self.physical_cores == 0 { threads } else { threads.min(self.physical_cores) };
        Some((self.peak_flops_per_core? * cores as f64, self.copy_bytes_per_s?))
    }
}

/// Processes of a launch (`mpirun`, `srun`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Processes {
    /// What the MPI library says of itself.
    pub library: String,
    /// The host of each process.
    pub hosts: Vec<String>,
}

/// First line of `run.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunHeader {
    pub schema_version: u32,
    pub scenario: String,
    pub question: String,
    /// The scenario file as it was read, byte for byte.
    pub scenario_text: String,
    /// SHA-256 (hex) of what the scenario and the command line mean, of the data's content, the processor and the program;
    /// `--resume` refuses another.
    pub config_hash: String,
    /// The command that repeats this run.
    pub command: String,
    /// Seconds since 1970-01-01 UTC.
    pub started_unix_s: u64,
    pub environment: Environment,
    pub quick: bool,
    /// Phases that the scenario measures, also where a run was stopped before it came to one.
    #[serde(default)]
    pub phases: Vec<crate::vocab::Phase>,
    /// Classes by number, for tables and plots.
    pub classes: Vec<String>,
    /// True class of every test row, in order.
    pub test_labels: Vec<u32>,
    pub train_rows: usize,
    pub test_rows: usize,
    /// What one unit is: "image", "row".
    pub unit: String,
    pub model: String,
    pub data: String,
    pub train: TrainConfig,
    pub goal: Goal,
    pub cost: CostBasis,
    /// Metric by which rows are compared and constrained.
    pub primary_metric: crate::vocab::Metric,
}

/// Last line of a finished session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunEnd {
    pub wall: Seconds,
    /// Share of the wall time that was not a candidate's own work (build, training, evaluation, blocks).
    pub overhead_share: f64,
    /// `complete`, `interrupted`, `budget`.
    pub ended: String,
}

/// A training of one seed that is over, written before its candidate is a row, so that a kill does not lose it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainedSeed {
    pub candidate: Candidate,
    pub run: SeedRun,
    /// On the test rows, from the weights at the end.
    pub quality: Quality,
}

/// A line of `run.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Line {
    Run(Box<RunHeader>),
    Seed(Box<TrainedSeed>),
    /// A finished row (ok, failed or skipped).
    Candidate(Box<RunRecord>),
    /// Something that a reader of the report must see ("clock jumped", "load average was 3.1").
    Warning {
        text: String,
    },
    End(RunEnd),
}

/// A whole run, read back.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRun {
    pub header: RunHeader,
    /// In the order of finishing; of two records of one candidate the later stands.
    pub records: Vec<RunRecord>,
    /// Finished trainings, also of candidates that are no row yet.
    pub seeds: Vec<TrainedSeed>,
    pub warnings: Vec<String>,
    /// Of the last session; absent when it was killed.
    pub end: Option<RunEnd>,
}

/// Metric values by name, for tables.
pub type Metrics = BTreeMap<crate::vocab::Metric, f64>;
