//! One point of the grid: everything that distinguishes one row of a report from another.

use super::Workers;
use crate::vocab::{Compression, Device, Layout, Phase, Precision, Vocabulary};
use serde::{Deserialize, Serialize};

const EMULATED_FP8: &str = "fp8 is emulated here, bit for bit: its quality is measured, but numbers of 8 bits lie and are multiplied in 16, so \
     nothing follows for the speed, energy and memory of fp8 arithmetic, and they are left out";

/// One combination of axes. Two candidates are the same exactly when their ids are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    pub phase: Phase,
    /// A real device, never `auto`.
    pub device: Device,
    pub precision: Precision,
    pub compression: Compression,
    pub layout: Layout,
    /// Units a step, over all ranks.
    pub batch_size: usize,
    /// Compute threads over all ranks; on CUDA devices the threads that feed them, one a rank.
    pub threads: usize,
}

impl Candidate {
    /// Who works on it.
    pub fn workers(&self) -> Workers {
        Workers::of(self.device, self.layout, self.threads)
    }

    /// `infer/cpu/bf16/none/single/b64/t2`: readable, unique within a scenario, stable between runs.
    pub fn id(&self) -> String {
        format!(
            "{}/{}/{}/{}/{}/b{}/t{}",
            self.phase.name(),
            self.device,
            self.precision.name(),
            self.compression,
            self.layout,
            self.batch_size,
            self.threads
        )
    }

    /// Why times of this candidate, where it was run, say nothing of the arithmetic that it stands for; `None` where they do. Its quality is
    /// measured all the same: every number is what that arithmetic makes of it, up to the order of sums.
    pub fn emulation(&self) -> Option<&'static str> {
        (self.precision == Precision::Fp8 && !self.device.is_cuda()).then_some(EMULATED_FP8)
    }

    /// What a person calls it: `bf16, int8, dp=2, batch 64, 2 threads` without the parts that are plain.
    pub fn title(&self) -> String {
        let mut parts = vec![self.precision.name().to_string()];
        if self.compression != Compression::NONE {
            parts.push(self.compression.to_string());
        }
        if self.layout != Layout::SINGLE {
            parts.push(self.layout.to_string());
        }
        parts.push(format!("batch {}", self.batch_size));
        parts.push(match (self.device, self.threads) {
            (Device::Cuda(_), _) => self.device.to_string(),
            (_, 1) => "1 thread".to_string(),
            (_, threads) => format!("{threads} threads"),
        });
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_names_every_axis_and_title_leaves_out_the_plain_ones() {
        let candidate = Candidate {
            phase: Phase::Infer,
            device: Device::Cpu,
            precision: Precision::Bf16,
            compression: Compression::NONE,
            layout: Layout::data(2),
            batch_size: 64,
            threads: 2,
        };
        assert_eq!(candidate.id(), "infer/cpu/bf16/none/dp=2/b64/t2");
        assert_eq!(candidate.title(), "bf16, dp=2, batch 64, 2 threads");
        assert_eq!(candidate.emulation(), None);
        assert!(Candidate { precision: Precision::Fp8, ..candidate.clone() }.emulation().is_some());
        let candidate = Candidate { device: Device::Cuda(1), ..candidate };
        assert_eq!(candidate.id(), "infer/cuda:1/bf16/none/dp=2/b64/t2");
        assert_eq!(candidate.title(), "bf16, dp=2, batch 64, cuda:1");
        assert_eq!(Candidate { precision: Precision::Fp8, ..candidate.clone() }.emulation(), None, "what runs there is timed");
    }
}
