//! The book of accelerators: peaks, memory, links and power of each, with the source of every figure, from `data/hardware/gpus.toml`.
//!
//! All peaks are dense and at the boost clock, as the data sheets print them (half of the figure where a sheet prints the sparse one).
//! Rates of links are per direction and per GPU. What a machine sustains of them is for `predict` to say, not for the book.

mod read;

use crate::units::Bytes;

/// Chips whose tensor cores work alike: the efficiencies that are fitted belong to a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Generation {
    Volta,
    Turing,
    Ampere,
    Ada,
    Hopper,
    Blackwell,
}

impl Generation {
    pub const ALL: [Generation; 6] = [Self::Volta, Self::Turing, Self::Ampere, Self::Ada, Self::Hopper, Self::Blackwell];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Volta => "volta",
            Self::Turing => "turing",
            Self::Ampere => "ampere",
            Self::Ada => "ada",
            Self::Hopper => "hopper",
            Self::Blackwell => "blackwell",
        }
    }

    pub fn named(name: &str) -> Option<Generation> {
        Self::ALL.into_iter().find(|generation| generation.name() == name)
    }
}

/// Dense rates, operations a second: of the tensor cores, absent where the chip has no such unit, and of the plain fp32 units, absent where
/// no sheet was at hand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peaks {
    /// bfloat16 and float16 with 32-bit accumulation; float16 alone on chips without bfloat16.
    pub bf16: f64,
    pub tf32: Option<f64>,
    pub fp8: Option<f64>,
    pub fp4: Option<f64>,
    pub int8: Option<f64>,
    pub fp32: Option<f64>,
}

/// The link between the GPUs of one domain (NVLink, or PCIe where there is none).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScaleUp {
    /// GPUs that it joins.
    pub domain: u32,
    pub bytes_per_second: f64,
    /// The switch adds up what its ports send (NVLink SHARP).
    pub reduces_in_switch: bool,
    /// Of one hop, seconds.
    pub latency: f64,
}

/// The network between domains.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScaleOut {
    pub bytes_per_second: f64,
    /// Of one message, seconds.
    pub latency: f64,
}

/// What the prediction needs of a GPU and the links around it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    pub generation: Generation,
    pub peaks: Peaks,
    pub memory: Bytes,
    pub memory_bytes_per_second: f64,
    pub multiprocessors: u32,
    /// Power limit, watts.
    pub power_w: f64,
    /// Power limit at which the chip holds the clock of its peaks, watts: mostly that of the fastest part with this chip.
    pub full_power_w: f64,
    pub scale_up: ScaleUp,
    pub scale_out: ScaleOut,
    /// Where the host's memory hangs on a link of the GPU's kind.
    pub coherent_host: Option<CoherentHost>,
}

/// Memory of a host on NVLink-C2C (Grace), one GPU's share: activations of a training can wait there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CoherentHost {
    pub memory: Bytes,
    /// One direction.
    pub bytes_per_second: f64,
}

/// A GPU of the book.
#[derive(Clone, Debug, PartialEq)]
pub struct Gpu {
    /// `h100-sxm-80gb`.
    pub name: String,
    /// Other spellings, as tables and catalogues use them.
    pub aliases: Vec<String>,
    pub machine: Machine,
    /// Names of the accelerator in catalogues of prices, most usual first.
    pub price_names: Vec<String>,
    /// Where the figures stand.
    pub source: String,
}

/// All GPUs that are known.
#[derive(Clone, Debug, PartialEq)]
pub struct HardwareBook {
    pub gpus: Vec<Gpu>,
}

impl HardwareBook {
    /// The GPU of that name; case, spaces, dashes and underscores do not count.
    pub fn find(&self, name: &str) -> Option<&Gpu> {
        let wanted = folded(name);
        self.gpus.iter().find(|gpu| folded(&gpu.name) == wanted || gpu.aliases.iter().any(|alias| folded(alias) == wanted))
    }

    /// The GPU whose name or alias `text` begins with, after `find`: tables add remarks to names (`H100 (96GB HBM2e, 500W)`).
    pub fn find_in(&self, text: &str) -> Option<&Gpu> {
        let wanted = folded(text);
        let names = |gpu: &Gpu| std::iter::once(&gpu.name).chain(&gpu.aliases).map(|name| folded(name)).collect::<Vec<_>>();
        let longest = |gpu: &Gpu| names(gpu).iter().filter(|name| wanted.starts_with(name.as_str())).map(String::len).max();
        self.find(text).or_else(|| {
            self.gpus.iter().filter_map(|gpu| Some((longest(gpu)?, gpu))).max_by_key(|(length, _)| *length).map(|(_, gpu)| gpu)
        })
    }
}

/// Letters and digits alone, small.
pub fn folded(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric() || *c == '.').flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_the_tables_is_found() {
        let book = HardwareBook::shipped();
        for (text, name) in [
            ("H100", "h100-sxm-80gb"),
            ("H100 80GB 700W", "h100-sxm-80gb"),
            ("H100 (96GB HBM2e, 2.4 TB/s, 500W limit)", "h100-96gb-hbm2e-500w"),
            ("H100 (94GB HBM2e, lower TDP)", "h100-96gb-hbm2e-500w"),
            ("a100_80gb", "a100-sxm-80gb"),
            ("a100_40gb", "a100-sxm-40gb"),
            ("A100-80GB-SXM", "a100-sxm-80gb"),
            ("A100-SXM4-80GB", "a100-sxm-80gb"),
            ("A100", "a100-sxm-80gb"),
            ("h100_80gb", "h100-sxm-80gb"),
            ("H100 80GB HBM3", "h100-sxm-80gb"),
            ("H200 141GB HBM3", "h200-sxm-141gb"),
            ("H200 131GB HBM3", "h200-sxm-141gb"),
            ("GH200 480GB", "gh200-480gb"),
            ("B200", "b200"),
            ("b300_sxm", "b300"),
            ("gb200", "gb200-nvl72"),
            ("GB300", "gb300-nvl72"),
            ("RTX 6000 Pro Blackwell Server Edition", "rtx-pro-6000-blackwell-server"),
            ("L40S", "l40s"),
        ] {
            assert_eq!(book.find_in(text).map(|gpu| gpu.name.as_str()), Some(name), "{text}");
        }
        assert_eq!(book.find_in("TPU v5p"), None);
    }

    /// A Grace has 480 GB and 450 GB/s each way for one GPU or two.
    #[test]
    fn parts_with_a_grace_reach_their_share_of_its_memory() {
        let book = HardwareBook::shipped();
        let share =
            |name: &str| book.find(name).unwrap().machine.coherent_host.map(|host| (host.memory.0, host.bytes_per_second));
        assert_eq!(share("gh200-480gb"), Some((480_000_000_000, 450e9)));
        assert_eq!(share("gb200-nvl72"), Some((240_000_000_000, 225e9)));
        assert_eq!(share("b200"), None);
    }

    #[test]
    fn peaks_stand_in_the_order_that_silicon_has() {
        for gpu in HardwareBook::shipped().gpus {
            let peaks = gpu.machine.peaks;
            assert!(peaks.fp8.is_none_or(|fp8| fp8 > 1.9 * peaks.bf16), "{}", gpu.name);
            assert!(peaks.fp4.is_none_or(|fp4| fp4 > peaks.fp8.unwrap()), "{}", gpu.name);
            assert!(peaks.fp32.is_none_or(|fp32| fp32 < peaks.bf16), "{}", gpu.name);
            assert!(gpu.machine.power_w <= gpu.machine.full_power_w, "{}", gpu.name);
            assert!(gpu.machine.scale_up.bytes_per_second < gpu.machine.memory_bytes_per_second, "{}", gpu.name);
        }
    }
}
