//! Compression words: `none`, one pruning, one quantisation, or both: `magnitude:0.8`, `channel:0.5`, `2:4`, `int8`, `channel:0.5+int8`. A
//! pruning may say that training goes on: `2:4+tuned`, `magnitude:0.8+gradual+int8`.
//! What a quantisation is stands in `quantization`.

use super::{Quantization, UnknownWord};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// How the trained weights are made smaller: pruned first, then quantised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Compression {
    pub pruning: Option<Pruning>,
    pub quantization: Option<Quantization>,
}

/// Which weights go, and whether training goes on without them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pruning {
    pub pattern: Pattern,
    pub tuning: Tuning,
}

/// Which weights go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    /// Unstructured, by magnitude; the share of weights set to zero, in (0, 1).
    Magnitude(f64),
    /// Structured, by output channel; the share removed, in (0, 1). The graph shrinks.
    Channel(f64),
    /// Two of every four consecutive weights along the input axis are zero.
    TwoFour,
}

/// Training of a pruned model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tuning {
    /// None: what is left of the trained weights stays as it is.
    #[default]
    None,
    /// Pruned in one shot, then trained again with the same weights missing (Han et al. 2015; Mishra et al. 2021).
    Tuned,
    /// Pruned a little at a time while training goes on (Zhu & Gupta 2017); by magnitude only.
    Gradual,
}

impl Pruning {
    /// One shot, without training afterwards.
    pub const fn once(pattern: Pattern) -> Pruning {
        Pruning { pattern, tuning: Tuning::None }
    }

    /// Whether training goes on after weights went.
    pub fn is_tuned(self) -> bool {
        self.tuning != Tuning::None
    }
}

impl Compression {
    pub const NONE: Compression = Compression { pruning: None, quantization: None };
    pub const TWO_FOUR: Compression = Compression { pruning: Some(Pruning::once(Pattern::TwoFour)), ..Compression::NONE };
    pub const INT8: Compression = Compression { quantization: Some(Quantization::INT8), ..Compression::NONE };

    /// Pruning by magnitude alone; `share` in (0, 1).
    pub const fn magnitude(share: f64) -> Compression {
        Compression { pruning: Some(Pruning::once(Pattern::Magnitude(share))), ..Compression::NONE }
    }

    /// Pruning by channel alone; `share` in (0, 1).
    pub const fn channel(share: f64) -> Compression {
        Compression { pruning: Some(Pruning::once(Pattern::Channel(share))), ..Compression::NONE }
    }

    /// The same with training after the pruning, where there is one.
    pub fn with_tuning(self, tuning: Tuning) -> Compression {
        Compression { pruning: self.pruning.map(|pruning| Pruning { tuning, ..pruning }), ..self }
    }

    /// The pruning as the weights of a candidate come from training: what `int8-qat` trains on was pruned before, and comes with its zeros.
    pub fn trained_pruning(self) -> Option<Pruning> {
        let is_aware = matches!(self.quantization, Some(Quantization::Int8Aware { .. }));
        let untuned_aware = |pruning: &Pruning| is_aware && !pruning.is_tuned();
        self.pruning.map(|pruning| if untuned_aware(&pruning) { Pruning { tuning: Tuning::Tuned, ..pruning } } else { pruning })
    }

    /// The forms a scenario may use, with their meaning.
    pub const FORMS: &'static [(&'static str, &'static str)] = &[
        ("none", "the trained weights as they are"),
        ("magnitude:0.8", "unstructured pruning: the smallest 80 % of the weights become zero"),
        ("channel:0.5", "structured pruning: half of the channels or hidden units are removed and the graph shrinks"),
        ("2:4", "two of every four consecutive weights become zero"),
        ("magnitude:0.8+tuned", "pruned by magnitude, then trained again with the same weights missing"),
        ("magnitude:0.8+gradual", "pruned by magnitude a little at a time while training goes on"),
        ("channel:0.5+tuned", "pruned by channel, then the smaller model is trained again"),
        ("2:4+tuned", "two of every four weights become zero, then the others are trained again"),
        ("int8", "static 8-bit quantisation, weights per channel, activations calibrated to their largest value"),
        ("int8:percentile", "the same, activations calibrated to the 99.99th percentile"),
        ("int8:percentile=99.9", "the same, activations calibrated to this percentile"),
        ("int8:entropy", "the same, activations calibrated to the range that loses least information (KL divergence)"),
        ("int8-dynamic", "8-bit products, activations quantised at run time (row by row into linear layers), no calibration"),
        ("int8-qat", "static 8-bit after one epoch of training with simulated 8-bit grids"),
        ("int8-qat:3", "the same after so many epochs"),
        ("int4", "4-bit weights in groups of 128, rounded to nearest"),
        ("int4:64", "the same in groups of 32, 64, 128 or 256"),
        ("int4-gptq", "4-bit weights in groups of 128, each rounding's error made good by later weights (GPTQ)"),
        ("int4-gptq:64", "the same in groups of 32, 64, 128 or 256"),
        ("mixed:size=0.3", "fp32, int8 or int4 for each layer by its sensitivity, within 0.3 of the bytes of fp32 weights"),
        ("mixed:latency=0.6", "the same, within 0.6 of the measured time of an fp32 step"),
        ("magnitude:0.8+int8", "pruned by magnitude, then quantised"),
        ("channel:0.5+int8", "pruned by channel, then quantised"),
        ("channel:0.5+int8-dynamic", "pruned by channel, then quantised with grids of activations found at run time"),
        ("channel:0.5+int4", "pruned by channel, then 4-bit weights"),
        ("2:4+int8", "two of four weights become zero, then all are quantised"),
        ("magnitude:0.8+int8-qat", "pruned by magnitude, then trained with simulated 8-bit grids, the same weights missing"),
        ("channel:0.5+int8-qat", "pruned by channel, then the smaller model is trained with simulated 8-bit grids"),
        ("2:4+int8-qat", "two of four weights become zero, then the others are trained with simulated 8-bit grids"),
        ("magnitude:0.8+tuned+int8", "pruned by magnitude, trained again, then quantised"),
        ("magnitude:0.8+gradual+int8", "pruned by magnitude during training, then quantised"),
        ("channel:0.5+tuned+int8", "pruned by channel, trained again, then quantised"),
        ("2:4+tuned+int8", "two of four weights become zero, the others are trained again, then all are quantised"),
    ];
}

impl FromStr for Pattern {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let share = |digits: &str| digits.parse::<f64>().ok().filter(|s| *s > 0.0 && *s < 1.0).ok_or(());
        match text.split_once(':') {
            Some(("magnitude", digits)) => share(digits).map(Pattern::Magnitude),
            Some(("channel", digits)) => share(digits).map(Pattern::Channel),
            Some(("2", "4")) => Ok(Pattern::TwoFour),
            _ => Err(()),
        }
    }
}

impl FromStr for Tuning {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "tuned" => Ok(Tuning::Tuned),
            "gradual" => Ok(Tuning::Gradual),
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
            // What the part before may be followed by.
            let open = compression.pruning.as_mut().filter(|pruning| compression.quantization.is_none() && !pruning.is_tuned());
            if let (Some(pruning), Ok(tuning)) = (open, part.parse()) {
                if tuning == Tuning::Gradual && !matches!(pruning.pattern, Pattern::Magnitude(_)) {
                    return Err(unknown());
                }
                pruning.tuning = tuning;
                continue;
            }
            match (part.parse(), part.parse()) {
                (Ok(pattern), _) if compression == Compression::NONE => compression.pruning = Some(Pruning::once(pattern)),
                (_, Ok(quantization)) if compression.quantization.is_none() => compression.quantization = Some(quantization),
                _ => return Err(unknown()),
            }
        }
        Ok(compression)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Magnitude(share) => write!(f, "magnitude:{share}"),
            Pattern::Channel(share) => write!(f, "channel:{share}"),
            Pattern::TwoFour => f.write_str("2:4"),
        }
    }
}

impl fmt::Display for Pruning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tuning = match self.tuning {
            Tuning::None => "",
            Tuning::Tuned => "+tuned",
            Tuning::Gradual => "+gradual",
        };
        write!(f, "{}{tuning}", self.pattern)
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
    fn training_goes_on_after_a_pruning_once_and_gradually_only_by_magnitude() {
        let two_four = "2:4+tuned+int8".parse::<Compression>().unwrap();
        assert_eq!(
            two_four,
            Compression { quantization: Some(Quantization::INT8), ..Compression::TWO_FOUR }.with_tuning(Tuning::Tuned)
        );
        let once = "2:4+int8-qat".parse::<Compression>().unwrap();
        assert_eq!((once.pruning.unwrap().tuning, once.trained_pruning().unwrap().tuning), (Tuning::None, Tuning::Tuned));
        for (text, tuning) in [("2:4+int8", Tuning::None), ("magnitude:0.8+gradual+int8-qat", Tuning::Gradual)] {
            assert_eq!(text.parse::<Compression>().unwrap().trained_pruning().unwrap().tuning, tuning);
        }
        for text in
            ["tuned", "none+tuned", "int8+tuned", "2:4+int8+tuned", "2:4+tuned+tuned", "2:4+gradual", "channel:0.5+gradual"]
        {
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
