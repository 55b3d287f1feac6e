//! How fast a machine runs single ops, as `advisor doctor --rates` measured it: what predictions for this machine rest on.

use super::MachineSpeed;
use crate::{
    units::{Bytes, Flops, Seconds},
    vocab::{DType, Device, Layout},
};
use serde::{Deserialize, Serialize};

/// Version of the file of kept rates; another one is not read.
pub const RATES_VERSION: u32 = 3;

/// The file of kept rates: of one machine and one program, for what another processor or another build runs is another matter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RatesFile {
    pub schema_version: u32,
    /// Processor, program and devices, in words that differ where rates may.
    pub machine: String,
    pub tables: Vec<RateTable>,
}

/// Who works: threads of the processor, or a device. Ranks that share the processor slow each other down, so they were measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Workers {
    pub device: Device,
    /// At the same time.
    pub ranks: usize,
    /// Of each rank.
    pub threads: usize,
}

impl Workers {
    /// Who works where `layout` spreads `threads` over its ranks; devices have nothing to share, and are as one.
    pub fn of(device: Device, layout: Layout, threads: usize) -> Workers {
        match device {
            Device::Cuda(_) => Workers { device: Device::Cuda(0), ranks: 1, threads: 1 },
            Device::Auto | Device::Cpu => {
                let ranks = layout.ranks();
                Workers { device: Device::Cpu, ranks, threads: (threads / ranks).max(1) }
            }
        }
    }
}

/// What some workers reach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RateTable {
    pub workers: Workers,
    /// Seconds since 1970-01-01 UTC.
    pub unix_s: u64,
    /// Share of the machine's processor time that others took meanwhile, where the system tells.
    #[serde(default)]
    pub others_share: Option<f64>,
    /// How fast the processor was while ops were timed, in the middle of all readings, and for which all times stand; absent of devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_speed: Option<MachineSpeed>,
    pub rows: Vec<OpRate>,
    /// Exchanges between the ranks, by their operation and the bytes of the whole message.
    pub exchanges: Vec<ExchangeRate>,
}

/// Share of the processor time that others may take before times are not what the machine can do.
const SHARED: f64 = 0.1;

impl RateTable {
    /// What others took of the processor meanwhile, where it is too much. Times of a device are its own.
    pub fn shared(&self) -> Option<f64> {
        self.others_share.filter(|share| *share > SHARED && !self.workers.device.is_cuda())
    }
}

/// One op at one size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpRate {
    /// As `OpProfile` has them.
    pub op: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
    pub dtype: DType,
    pub shape: String,
    pub flops: Flops,
    pub bytes: Bytes,
    /// Middle one of several samples, each the mean of calls in a row, at the speed of the table.
    pub time: Seconds,
}

impl OpRate {
    /// What rows that are predicted from each other have in common.
    pub fn family(&self) -> (&str, &str, DType) {
        (&self.op, &self.variant, self.dtype)
    }

    /// Whether it is the same op at the same size, as far as a table tells sizes apart.
    pub fn is_of_size(&self, other: &OpRate) -> bool {
        self.family() == other.family() && (&self.shape, self.flops, self.bytes) == (&other.shape, other.flops, other.bytes)
    }
}

/// One exchange at one size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExchangeRate {
    /// `all_reduce`, `reduce_scatter`, `all_gather`, `send_receive`.
    pub operation: String,
    pub bytes: Bytes,
    pub time: Seconds,
}
