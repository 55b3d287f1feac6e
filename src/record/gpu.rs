//! A GPU as a record knows it.

use crate::{units::Bytes, vocab::DType};
use serde::{Deserialize, Serialize};

/// What a figure taken on a GPU depends on. Of one model, devices differ by several per cent (arXiv 2208.11035), so the device itself is named.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gpu {
    pub name: String,
    /// `GPU-` and 32 hexadecimal digits in groups, as NVIDIA's tools print it.
    pub uuid: Option<String>,
    /// Version of the installed driver.
    pub driver: Option<String>,
    /// `9.0`.
    pub capability: String,
    pub multiprocessors: u32,
    pub memory: Bytes,
    /// Architecture of the kernels that it runs (`sm_90a`; `compute_80` for those that the driver compiles).
    pub kernels: Option<String>,
    /// Highest clock of its multiprocessors, MHz.
    pub max_clock_mhz: Option<u32>,
    /// Limit that its power is held to, watts.
    pub power_limit_w: Option<f64>,
    /// Measured bandwidth of a large elementwise kernel, bytes/s (read + written).
    pub copy_bytes_per_s: Option<f64>,
    /// Measured rate of a large fp32 matrix product, FLOP/s.
    pub fp32_flops_per_s: Option<f64>,
    /// The same of one whose operands are rounded to tf32; absent in records of before it was measured.
    #[serde(default)]
    pub tf32_flops_per_s: Option<f64>,
    /// Measured rate of a large bf16 matrix product with fp32 sums, FLOP/s.
    pub bf16_flops_per_s: Option<f64>,
}

impl Gpu {
    /// Measured rates on a storage type: FLOP/s and bytes/s.
    pub fn rates(&self, storage: DType) -> Option<(f64, f64)> {
        // Both 16-bit types run at one rate on all devices of compute capability 8.0 and later.
        let flops = if storage == DType::F32 { self.fp32_flops_per_s } else { self.bf16_flops_per_s };
        flops.zip(self.copy_bytes_per_s)
    }
}
