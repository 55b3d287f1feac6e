//! Compression words: `none`, `magnitude:0.8`, `channel:0.5`, `2:4`, `int8`.

use super::UnknownWord;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// How the trained weights are made smaller.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Compression {
    None,
    /// Unstructured magnitude pruning; the share of weights set to zero, in (0, 1).
    Magnitude(f64),
    /// Structured pruning of output channels; the share removed, in (0, 1). The graph shrinks.
    Channel(f64),
    /// Two of every four consecutive weights along the input axis are zero.
    TwoFour,
    /// Static 8-bit quantisation: per-channel weights, calibrated per-tensor activations.
    Int8,
}

impl Compression {
    /// The forms a scenario may use, with their meaning.
    pub const FORMS: &'static [(&'static str, &'static str)] = &[
        ("none", "the trained weights as they are"),
        ("magnitude:0.8", "unstructured pruning: the smallest 80 % of the weights become zero"),
        ("channel:0.5", "structured pruning: half of the channels or hidden units are removed and the graph shrinks"),
        ("2:4", "two of every four consecutive weights become zero"),
        ("int8", "static 8-bit quantisation, weights per channel, activations calibrated"),
    ];
}

impl FromStr for Compression {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        let unknown = || UnknownWord::new("compression", text, Self::FORMS.iter().map(|(form, _)| *form));
        let share = |digits: &str| digits.parse::<f64>().ok().filter(|s| *s > 0.0 && *s < 1.0).ok_or_else(unknown);
        match text.split_once(':') {
            Some(("magnitude", digits)) => share(digits).map(Compression::Magnitude),
            Some(("channel", digits)) => share(digits).map(Compression::Channel),
            Some(("2", "4")) => Ok(Compression::TwoFour),
            None if text == "none" => Ok(Compression::None),
            None if text == "int8" => Ok(Compression::Int8),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compression::None => f.pad("none"),
            Compression::Magnitude(share) => f.pad(&format!("magnitude:{share}")),
            Compression::Channel(share) => f.pad(&format!("channel:{share}")),
            Compression::TwoFour => f.pad("2:4"),
            Compression::Int8 => f.pad("int8"),
        }
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
    }

    #[test]
    fn a_share_outside_zero_to_one_is_unknown() {
        for text in ["magnitude:0", "magnitude:1", "channel:-0.5", "channel:nan", "magnitude:", "2:5", "int9"] {
            assert!(text.parse::<Compression>().is_err(), "{text}");
        }
    }
}
