//! Device words: `auto`, `cpu`, `cuda`, `cuda:1`.

use super::UnknownWord;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Where a candidate runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Device {
    Auto,
    Cpu,
    /// CUDA device of this number, as the driver counts. A layout of several ranks takes the ones that follow as well.
    Cuda(usize),
}

impl Device {
    pub const FORMS: &'static [(&'static str, &'static str)] = &[
        ("auto", "the first CUDA device where there is one, else the processor"),
        ("cpu", "this machine's processor"),
        ("cuda", "the first CUDA device"),
        ("cuda:1", "the CUDA device of this number, counted from 0"),
    ];

    /// The device of a rank: each takes a CUDA device of its own, while ranks on the processor share it.
    pub const fn of_rank(self, rank: usize) -> Device {
        match self {
            Device::Cuda(first) => Device::Cuda(first + rank),
            other => other,
        }
    }

    pub const fn is_cuda(self) -> bool {
        matches!(self, Device::Cuda(_))
    }
}

impl FromStr for Device {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        let unknown = || UnknownWord::new("device", text, Self::FORMS.iter().map(|(form, _)| *form));
        match text.split_once(':') {
            None if text == "auto" => Ok(Device::Auto),
            None if text == "cpu" => Ok(Device::Cpu),
            None if text == "cuda" => Ok(Device::Cuda(0)),
            Some(("cuda", number)) => number.parse().ok().filter(|n| *n < 1024).map(Device::Cuda).ok_or_else(unknown),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.pad("auto"),
            Device::Cpu => f.pad("cpu"),
            Device::Cuda(0) => f.pad("cuda"),
            Device::Cuda(number) => f.pad(&format!("cuda:{number}")),
        }
    }
}

impl From<Device> for String {
    fn from(value: Device) -> String {
        value.to_string()
    }
}

impl TryFrom<String> for Device {
    type Error = UnknownWord;
    fn try_from(text: String) -> Result<Self, UnknownWord> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_read_back_as_they_print() {
        for (form, _) in Device::FORMS {
            assert_eq!(form.parse::<Device>().unwrap().to_string(), *form);
        }
        assert_eq!("cuda:0".parse::<Device>().unwrap(), Device::Cuda(0));
        for text in ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda1", "cpu:0", "CUDA"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
        assert_eq!((Device::Cuda(1).of_rank(2), Device::Cpu.of_rank(2)), (Device::Cuda(3), Device::Cpu));
    }
}
