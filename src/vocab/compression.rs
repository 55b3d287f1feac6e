//! Compression words: `none`, one pruning, one quantisation, or both: `magnitude:0.8`, `channel:0.5`, `2:4`, `int8`, `channel:0.5+int8`.

use super::UnknownWord;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// How the trained weights are made smaller: pruned first, then quantised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Compression {
    pub pruning: Option<Pruning>,
    pub quantization: Option<Quantization>,
}

/// Which weights go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pruning {
    /// Unstructured, by magnitude; the share of weights set to zero, in (0, 1).
    Magnitude(f64),
    /// Structured, by output channel; the share removed, in (0, 1). The graph shrinks.
    Channel(f64),
    /// Two of every four consecutive weights along the input axis are zero.
    TwoFour,
}

/// In which numbers weights, and activations where they enter products, are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Quantization {
    /// Static 8-bit: per-channel weights, calibrated per-tensor activations.
    Int8,
}

impl Compression {
    pub const NONE: Compression = Compression { pruning: None, quantization: None };
    pub const TWO_FOUR: Compression = Compression { pruning: Some(Pruning::TwoFour), ..Compression::NONE };
    pub const INT8: Compression = Compression { quantization: Some(Quantization::Int8), ..Compression::NONE };

    /// Pruning by magnitude alone; `share` in (0, 1).
    pub const fn magnitude(share: f64) -> Compression {
        Compression { pruning: Some(Pruning::Magnitude(share)), ..Compression::NONE }
    }

    /// Pruning by channel alone; `share` in (0, 1).
    pub const fn channel(share: f64) -> Compression {
        Compression { pruning: Some(Pruning::Channel(share)), ..Compression::NONE }
    }

    /// The forms a scenario may use, with their meaning.
    pub const FORMS: &'static [(&'static str, &'static str)] = &[
        ("none", "the trained weights as they are"),
        ("magnitude:0.8", "unstructured pruning: the smallest 80 % of the weights become zero"),
        ("channel:0.5", "structured pruning: half of the channels or hidden units are removed and the graph shrinks"),
        ("2:4", "two of every four consecutive weights become zero"),
        ("int8", "static 8-bit quantisation, weights per channel, activations calibrated"),
        ("magnitude:0.8+int8", "pruned by magnitude, then quantised"),
        ("channel:0.5+int8", "pruned by channel, then quantised"),
        ("2:4+int8", "two of four weights become zero, then all are quantised"),
    ];
}

impl FromStr for Pruning {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let share = |digits: &str| digits.parse::<f64>().ok().filter(|s| *s > 0.0 && *s < 1.0).ok_or(());
        match text.split_once(':') {
            Some(("magnitude", digits)) => share(digits).map(Pruning::Magnitude),
            Some(("channel", digits)) => share(digits).map(Pruning::Channel),
            Some(("2", "4")) => Ok(Pruning::TwoFour),
            _ => Err(()),
        }
    }
}

impl FromStr for Quantization {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "int8" => Ok(Quantization::Int8),
            _ => Err(()),
        }
    }
}

impl FromStr for Compression {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        let unknown = || UnknownWord::new("compression", text, Self::FORMS.iter().map(|(form, _)| *form));
        if text == "none" {
            return Ok(Compression::NONE);
        }
        let mut compression = Compression::NONE;
        for part in text.split('+').map(str::trim) {
            match (part.parse(), part.parse()) {
                (Ok(pruning), _) if compression == Compression::NONE => compression.pruning = Some(pruning),
                (_, Ok(quantization)) if compression.quantization.is_none() => compression.quantization = Some(quantization),
                _ => return Err(unknown()),
            }
        }
        Ok(compression)
    }
}

impl fmt::Display for Pruning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pruning::Magnitude(share) => write!(f, "magnitude:{share}"),
            Pruning::Channel(share) => write!(f, "channel:{share}"),
            Pruning::TwoFour => f.write_str("2:4"),
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Quantization::Int8 => "int8",
        })
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [self.pruning.map(|p| p.to_string()), self.quantization.map(|q| q.to_string())];
        let words: Vec<String> = parts.into_iter().flatten().collect();
        f.pad(if words.is_empty() { "none".into() } else { words.join("+") }.as_str())
    }
}

impl From<Compression> for String {
    fn from(value: Compression) -> String {
        value.to_string()
    }
}

impl TryFrom<String> for Compression {
    type Error = UnknownWord;
    fn try_from(text: String) -> Result<Self, UnknownWord> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_reads_back_as_it_prints() {
        for (form, _) in Compression::FORMS {
            assert_eq!(form.parse::<Compression>().unwrap().to_string(), *form);
        }
        assert_eq!("2:4 + int8".parse::<Compression>().unwrap().to_string(), "2:4+int8");
    }

    #[test]
    fn a_share_outside_zero_to_one_is_unknown() {
        for text in ["magnitude:0", "magnitude:1", "channel:-0.5", "channel:nan", "magnitude:", "2:5", "int9"] {
            assert!(text.parse::<Compression>().is_err(), "{text}");
        }
    }

    #[test]
    fn one_pruning_comes_before_one_quantisation() {
        for text in ["int8+2:4", "2:4+channel:0.5", "int8+int8", "none+int8", "2:4+", "+int8"] {
            assert!(text.parse::<Compression>().is_err(), "{text}");
        }
    }
}
