//! Number formats of served weights and caches: what they weigh and in which unit of the chip their products run.

use crate::hardware::{Generation, Machine};

/// How the weights of a served model are stored and multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServedFormat {
    /// bfloat16 or float16.
    Half,
    /// 8-bit floats with one scale for a matrix or for each of its channels, weights and activations.
    Fp8,
    /// 8-bit floats with a scale for 128 x 128 weights and 1 x 128 activations (DeepSeek-V3, arXiv 2412.19437, section 3.3.2).
    Fp8Block,
    /// 8-bit integers, weights and activations (SmoothQuant, arXiv 2211.10438).
    Int8,
    /// 8-bit integers, weights alone.
    Int8Weights,
    /// 4-bit integers in groups of 128, weights alone (AWQ, arXiv 2306.00978).
    Int4Weights,
    /// 4-bit floats with a scale for 16 values, weights and activations (NVFP4).
    Fp4,
    /// 4-bit floats with a scale for 32 values, weights alone; activations in 8 bits where the chip has 4-bit units (OCP MX, version 1.0).
    Mxfp4,
}

impl ServedFormat {
    pub const ALL: [ServedFormat; 8] =
        [Self::Half, Self::Fp8, Self::Fp8Block, Self::Int8, Self::Int8Weights, Self::Int4Weights, Self::Fp4, Self::Mxfp4];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Half => "bf16",
            Self::Fp8 => "fp8",
            Self::Fp8Block => "fp8-block",
            Self::Int8 => "int8",
            Self::Int8Weights => "int8-weights",
            Self::Int4Weights => "int4-weights",
            Self::Fp4 => "fp4",
            Self::Mxfp4 => "mxfp4",
        }
    }

    /// The word of a table or a file: `FP8`, `nvfp4`, `w4a16`, `int4_wo`, `fp8_block`.
    pub fn named(word: &str) -> Option<ServedFormat> {
        let word: String = word.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase();
        Some(match word.as_str() {
            "bf16" | "fp16" | "half" | "float16" | "bfloat16" => Self::Half,
            "fp8" | "fp8static" | "mxfp8" | "float8" | "w8a8fp8" => Self::Fp8,
            "fp8block" => Self::Fp8Block,
            "int8" | "w8a8" | "int8sq" | "sq" => Self::Int8,
            "int8weights" | "int8wo" | "w8a16" => Self::Int8Weights,
            "int4weights" | "int4" | "int4wo" | "w4a16" | "awq" | "gptq" | "w4afp8" => Self::Int4Weights,
            "fp4" | "nvfp4" => Self::Fp4,
            "mxfp4" | "w4a16mxfp4" | "w4a8mxfp4" => Self::Mxfp4,
            _ => return None,
        })
    }

    /// Bytes of a weight with its share of the scales.
    pub const fn weight_bytes(self) -> f64 {
        match self {
            Self::Half => 2.0,
            Self::Fp8 | Self::Fp8Block | Self::Int8 | Self::Int8Weights => 1.0,
            // 16 bits of scale for 128 weights.
            Self::Int4Weights => 0.5 + 2.0 / 128.0,
            // 8 bits of scale for 16, and for 32 weights.
            Self::Fp4 => 0.5 + 1.0 / 16.0,
            Self::Mxfp4 => 0.5 + 1.0 / 32.0,
        }
    }

    /// Bits of the unit of `machine` in which the products run: 16 where the chip has none for this format, so that weights are widened first.
    pub fn unit_bits(self, machine: &Machine) -> u32 {
        let peaks = &machine.peaks;
        match self {
            Self::Half | Self::Int8Weights | Self::Int4Weights => 16,
            Self::Fp8 | Self::Fp8Block if peaks.fp8.is_some() => 8,
            Self::Int8 if peaks.int8.is_some() => 8,
            Self::Fp4 if peaks.fp4.is_some() => 4,
            Self::Mxfp4 if peaks.fp4.is_some() => 8,
            Self::Fp8 | Self::Fp8Block | Self::Int8 | Self::Fp4 | Self::Mxfp4 => 16,
        }
    }

    /// Dense rate of the unit of so many bits, operations a second.
    pub(super) fn peak(machine: &Machine, bits: u32) -> f64 {
        let peaks = &machine.peaks;
        match bits {
            4 => peaks.fp4.unwrap_or(peaks.bf16),
            8 => peaks.fp8.or(peaks.int8).unwrap_or(peaks.bf16),
            _ => peaks.bf16,
        }
    }

    /// Whether checkpoints of this format keep attention in 16 bits when the model has experts: those of 4 bits do (the model cards of
    /// DeepSeek-R1-FP4, Kimi-K2 and gpt-oss name the experts, or the feed-forward layers, as what is quantised).
    pub(super) const fn leaves_attention(self) -> bool {
        matches!(self, Self::Int4Weights | Self::Fp4 | Self::Mxfp4)
    }
}

/// The groups of chips whose efficiencies are fitted apart: a generation, and of Blackwell the boards without NVLink (another die, GDDR7).
pub(super) const CHIPS: [&str; 5] = ["ampere", "ada", "hopper", "blackwell", "blackwell-pcie"];

pub(super) fn chip(machine: &Machine) -> usize {
    match machine.generation {
        Generation::Volta | Generation::Turing | Generation::Ampere => 0,
        Generation::Ada => 1,
        Generation::Hopper => 2,
        Generation::Blackwell if has_nvlink(machine) => 3,
        Generation::Blackwell => 4,
    }
}

/// A link faster than PCIe 5.0 x16 (64 GB/s a direction).
pub(super) fn has_nvlink(machine: &Machine) -> bool {
    machine.scale_up.bytes_per_second > 64.5e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardware::HardwareBook;

    #[test]
    fn a_format_without_a_unit_of_its_own_runs_in_16_bits() {
        let book = HardwareBook::shipped();
        let machine = |name: &str| book.find(name).unwrap().machine;
        assert_eq!(ServedFormat::Fp8.unit_bits(&machine("A100")), 16);
        assert_eq!(ServedFormat::Int8.unit_bits(&machine("A100")), 8);
        assert_eq!(ServedFormat::Fp8.unit_bits(&machine("H100")), 8);
        assert_eq!(ServedFormat::Fp4.unit_bits(&machine("H100")), 16);
        assert_eq!(ServedFormat::Fp4.unit_bits(&machine("B200")), 4);
        assert_eq!(ServedFormat::Mxfp4.unit_bits(&machine("B200")), 8);
        assert_eq!(ServedFormat::Int4Weights.unit_bits(&machine("B200")), 16);
    }

    #[test]
    fn every_name_is_read_back() {
        for format in ServedFormat::ALL {
            assert_eq!(ServedFormat::named(format.name()), Some(format));
        }
        assert_eq!(ServedFormat::named("NVFP4"), Some(ServedFormat::Fp4));
        assert_eq!(ServedFormat::named("int4_wo"), Some(ServedFormat::Int4Weights));
        assert_eq!(ServedFormat::named("fp3"), None);
    }
}
