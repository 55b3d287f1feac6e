//! The quantisations of a compression word: `int8`, `int8:percentile`, `int8:entropy`, `int8-dynamic`, `int8-qat`, `int4`, `int4-gptq:64`,
//! `mixed:size=0.3`, `mixed:latency=0.6`.

use std::{fmt, str::FromStr};

/// In which numbers weights, and activations where they enter products, are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Quantization {
    /// Static 8-bit: per-channel weights, per-tensor activations whose ranges were calibrated.
    Int8(Range),
    /// 8-bit products of linear layers, each row of activations on a grid of its own, made at run time.
    Int8Dynamic,
    /// Static 8-bit after training with simulated grids for so many epochs (Jacob et al. 2018).
    Int8Aware { epochs: usize },
    /// 4-bit weights of linear layers in groups of so many along the input axis; activations stay fp32.
    Int4 { group: usize, rounding: Rounding },
    /// fp32, int8 or int4 for each layer: what loses least under a goal.
    Mixed(Goal),
}

/// How calibration takes a range of activations from what it saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    /// The largest magnitude.
    Largest,
    /// The percentile of magnitudes, in (50, 100).
    Percentile(f64),
    /// The range with the smallest KL divergence between the histogram and its quantised self (Migacz 2017).
    Entropy,
}

/// How a weight finds its place on a grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    Nearest,
    /// One input after another, each rounding's error made good by those that follow (Frantar et al. 2022).
    Gptq,
}

/// What a choice per layer must reach: a share, in (0, 1), of what fp32 takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// Of the bytes of the layers' weights.
    Size(f64),
    /// Of the time of a step.
    Latency(f64),
}

/// The percentile where the word names none: with 99.9 it brackets what Wu et al. 2020 found to work for most networks.
const USUAL_PERCENTILE: f64 = 99.99;

/// Epochs of `int8-qat` where the word names none.
const USUAL_EPOCHS: usize = 1;

/// Weights that share a scale where the word names no number; Frantar et al. 2022 use it.
const USUAL_GROUP: usize = 128;

impl Quantization {
    pub const INT8: Quantization = Quantization::Int8(Range::Largest);

    /// Whether activations must be watched on training rows first.
    pub const fn is_calibrated(self) -> bool {
        match self {
            Quantization::Int8(_) | Quantization::Mixed(_) | Quantization::Int8Aware { .. } => true,
            Quantization::Int4 { rounding, .. } => matches!(rounding, Rounding::Gptq),
            Quantization::Int8Dynamic => false,
        }
    }
}

impl FromStr for Quantization {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (word, setting) = text.split_once(':').map_or((text, None), |(word, setting)| (word, Some(setting)));
        let (key, value) =
            setting.map_or((None, None), |s| s.split_once('=').map_or((Some(s), None), |(key, value)| (Some(key), Some(value))));
        let number = |low: f64, high: f64| {
            let number = value.and_then(|digits| digits.parse::<f64>().ok());
            number.filter(|number| *number > low && *number < high).ok_or(())
        };
        // A bare whole number behind the colon.
        let whole = |usual: usize, fits: fn(usize) -> bool| match (key, value) {
            (None, _) => Ok(usual),
            (Some(digits), None) => digits.parse().ok().filter(|number| fits(*number)).ok_or(()),
            _ => Err(()),
        };
        let group = || whole(USUAL_GROUP, |group| matches!(group, 32 | 64 | 128 | 256));
        match (word, key, value) {
            ("int8", None, _) => Ok(Quantization::INT8),
            ("int8", Some("percentile"), None) => Ok(Quantization::Int8(Range::Percentile(USUAL_PERCENTILE))),
            ("int8", Some("percentile"), Some(_)) => number(50.0, 100.0).map(|p| Quantization::Int8(Range::Percentile(p))),
            ("int8", Some("entropy"), None) => Ok(Quantization::Int8(Range::Entropy)),
            ("int8-dynamic", None, _) => Ok(Quantization::Int8Dynamic),
            ("int8-qat", ..) => {
                whole(USUAL_EPOCHS, |epochs| (1..=1000).contains(&epochs)).map(|epochs| Quantization::Int8Aware { epochs })
            }
            ("int4", ..) => group().map(|group| Quantization::Int4 { group, rounding: Rounding::Nearest }),
            ("int4-gptq", ..) => group().map(|group| Quantization::Int4 { group, rounding: Rounding::Gptq }),
            ("mixed", Some("size"), Some(_)) => number(0.0, 1.0).map(|share| Quantization::Mixed(Goal::Size(share))),
            ("mixed", Some("latency"), Some(_)) => number(0.0, 1.0).map(|share| Quantization::Mixed(Goal::Latency(share))),
            _ => Err(()),
        }
    }
}

/// What a note calls it.
impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Range::Largest => f.write_str("largest magnitude"),
            Range::Percentile(percent) => write!(f, "percentile {percent} of magnitudes"),
            Range::Entropy => f.write_str("least KL divergence"),
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Quantization::Int8(Range::Largest) => f.write_str("int8"),
            Quantization::Int8(Range::Percentile(p)) if *p == USUAL_PERCENTILE => f.write_str("int8:percentile"),
            Quantization::Int8(Range::Percentile(p)) => write!(f, "int8:percentile={p}"),
            Quantization::Int8(Range::Entropy) => f.write_str("int8:entropy"),
            Quantization::Int8Dynamic => f.write_str("int8-dynamic"),
            Quantization::Int8Aware { epochs: USUAL_EPOCHS } => f.write_str("int8-qat"),
            Quantization::Int8Aware { epochs } => write!(f, "int8-qat:{epochs}"),
            Quantization::Int4 { group, rounding } => {
                f.write_str(if *rounding == Rounding::Gptq { "int4-gptq" } else { "int4" })?;
                if *group == USUAL_GROUP { Ok(()) } else { write!(f, ":{group}") }
            }
            Quantization::Mixed(Goal::Size(share)) => write!(f, "mixed:size={share}"),
            Quantization::Mixed(Goal::Latency(share)) => write!(f, "mixed:latency={share}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_means_nothing_is_unknown() {
        for text in [
            "int8:",
            "int8:percentile=",
            "int8:percentile=100",
            "int8:percentile=nan",
            "int8:entropy=1",
            "int8:99",
            "int8-dynamic:64",
            "int8-qat:0",
            "int8-qat:x",
            "int4:percentile",
            "int4:100",
            "int4:group=64",
            "mixed",
            "mixed:size",
            "mixed:size=1",
            "mixed:latency=0",
            "mixed:speed=0.5",
        ] {
            assert!(text.parse::<Quantization>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_usual_setting_prints_short_and_any_other_reads_back() {
        for (text, printed) in [
            ("int8:percentile=99.99", "int8:percentile"),
            ("int4:128", "int4"),
            ("int8-qat:1", "int8-qat"),
            ("int4-gptq:64", "int4-gptq:64"),
            ("int8-qat:4", "int8-qat:4"),
            ("mixed:latency=0.60", "mixed:latency=0.6"),
        ] {
            let parsed: Quantization = text.parse().unwrap();
            assert_eq!(parsed.to_string(), printed);
            assert_eq!(printed.parse::<Quantization>(), Ok(parsed));
        }
    }
}
