//! What a sweep over kernels leaves behind: times as they were taken, with the work they did.

use super::{Environment, Gpu};
use crate::vocab::DType;
use serde::{Deserialize, Serialize};

/// One op on one shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelRow {
    /// `matrix product`, `rows`, `elementwise`, `convolution`, `pooling`, `update`, `embedding`.
    pub family: String,
    /// `linear_relu`.
    pub op: String,
    /// `[4096, 4096] x [4096, 4096]`.
    pub shape: String,
    pub dtype: DType,
    /// True where each call found its operands outside the last cache.
    pub cold: bool,
    pub flops: u64,
    /// Read and written, each operand once.
    pub bytes: u64,
    /// Mean seconds of a call, in each of the samples.
    pub call_s: Vec<f64>,
    /// The same of another library, sample by sample taken in turns with ours; absent where it was not asked or could not answer.
    pub peer_call_s: Option<Vec<f64>>,
    /// The same of the vendor's library on the device, called by this program; absent where it is not there or has no such call.
    #[serde(default)]
    pub vendor_call_s: Option<Vec<f64>>,
    /// Why there is no time of ours or of the other library.
    pub reason: Option<String>,
    /// Which kernel ran where there are several, and why.
    #[serde(default)]
    pub choice: Option<String>,
}

/// One step of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    pub model: String,
    /// `train` or `infer`.
    pub phase: String,
    pub precision: String,
    pub batch_size: usize,
    /// Mean seconds of a step, in each of the samples.
    pub step_s: Vec<f64>,
    /// Other programs by name (`pytorch eager`, `pytorch compiled`), in turns with ours.
    pub peers: Vec<(String, Vec<f64>)>,
    pub reason: Option<String>,
}

/// One check with its error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckRow {
    pub name: String,
    /// Error over the tolerance is a failure; NaN is written as null and fails.
    pub error: Option<f64>,
    pub tolerance: f64,
    pub passes: bool,
    /// What was worst, or what went wrong.
    pub detail: String,
}

/// One call of `advisor kernels`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelRun {
    pub schema_version: u32,
    /// `cuda`, `cpu`.
    pub device: String,
    /// Seconds since 1970-01-01 UTC.
    pub started_unix_s: u64,
    pub command: String,
    pub environment: Environment,
    pub gpu: Option<Gpu>,
    /// Name and version of the library beside ours.
    pub peer: Option<String>,
    /// Name and version of the vendor's library on a GPU, or why it was not called.
    #[serde(default)]
    pub vendor: Option<String>,
    pub checks: Vec<CheckRow>,
    pub kernels: Vec<KernelRow>,
    pub steps: Vec<StepRow>,
}
