//! The words of the product, each family one table: name, aliases, what it says.
//!
//! Parsing, help texts, "did you mean", the JSON Schema and the tests all read these tables. Families with a number in the word
//! (`magnitude:0.8`, `cuda:1`, `dp=2`) live in `compression`, `device` and `layout`; their forms are tables too.

mod compression;
mod device;
mod fp8;
mod layout;
mod metric;
mod quantization;
mod rows;
mod words;

pub use compression::{Compression, Pattern, Pruning, Tuning};
pub use device::Device;
pub use fp8::Fp8Format;
pub use layout::{Layout, PipelineSchedule};
pub use metric::{Better, Metric, MetricFacts};
pub use quantization::{Goal, Quantization, Range, Rounding};
pub use rows::{RowKind, RowShape};
pub use words::{Augmentation, DType, InitKind, Objective, OptimizerKind, Phase, Precision, Schedule, Task};

/// One word of a family.
pub struct Word<T: 'static> {
    pub value: T,
    pub name: &'static str,
    pub aliases: &'static [&'static str],
    /// One line for help and schema.
    pub about: &'static str,
}

/// A family of words without parameters.
pub trait Vocabulary: Copy + PartialEq + 'static {
    /// What the family is called in a message: "precision".
    const KIND: &'static str;
    const WORDS: &'static [Word<Self>];

    fn name(self) -> &'static str {
        Self::WORDS.iter().find(|w| w.value == self).map(|w| w.name).expect("every value has its word: tested")
    }

    fn about(self) -> &'static str {
        Self::WORDS.iter().find(|w| w.value == self).map(|w| w.about).expect("every value has its word: tested")
    }

    fn parse(text: &str) -> Result<Self, UnknownWord> {
        Self::WORDS
            .iter()
            .find(|w| w.name == text || w.aliases.contains(&text))
            .map(|w| w.value)
            .ok_or_else(|| UnknownWord::new(Self::KIND, text, Self::WORDS.iter().map(|w| w.name)))
    }
}

/// A word that no table knows.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("unknown {kind} `{found}`")]
pub struct UnknownWord {
    pub kind: &'static str,
    pub found: String,
    /// The names that would have been taken, in table order.
    pub expected: Vec<String>,
}

impl UnknownWord {
    pub fn new<'a>(kind: &'static str, found: &str, expected: impl IntoIterator<Item = &'a str>) -> Self {
        UnknownWord { kind, found: found.to_string(), expected: expected.into_iter().map(str::to_string).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Names and aliases of a family are all different and read back as their value.
    fn check<T: Vocabulary + std::fmt::Debug>(values: &[T]) {
        let mut seen = HashSet::new();
        for word in T::WORDS {
            for name in word.aliases.iter().chain([&word.name]) {
                assert!(seen.insert(*name), "`{name}` stands twice in {}", T::KIND);
                assert_eq!(T::parse(name).unwrap(), word.value);
            }
            assert!(!word.about.is_empty());
        }
        // `name` and `about` answer for every value, so a new variant without a word fails here.
        for value in values {
            assert_eq!(T::parse(value.name()).unwrap(), *value);
        }
        let unknown = T::parse("no such word").unwrap_err();
        assert_eq!(unknown.expected.len(), T::WORDS.len());
    }

    #[test]
    fn every_value_has_its_word_and_every_word_is_its_own() {
        use Metric::*;
        check(&[DType::F32, DType::Bf16, DType::F16, DType::I32, DType::I8, DType::U8]);
        check(&[self::Precision::Fp32, self::Precision::Bf16, self::Precision::Fp16]);
        check(&[Phase::Train, Phase::Infer]);
        check(&[Task::ImageClassification, Task::TextClassification]);
        check(&[OptimizerKind::Sgd, OptimizerKind::Adam, OptimizerKind::Adamw, OptimizerKind::Rmsprop]);
        check(&[Schedule::Constant, Schedule::Cosine, Schedule::Linear]);
        check(&[InitKind::Uniform, InitKind::Gaussian, InitKind::Xavier, InitKind::He]);
        check(&[Augmentation::Flip, Augmentation::Rotate, Augmentation::Scale]);
        use Objective as O;
        check(&[O::Cost, O::Time, O::Energy, O::Memory, O::Throughput, O::Accuracy]);
        check(&[self::Metric::Accuracy, PrecisionMacro, RecallMacro, F1Macro, PrecisionMicro, RecallMicro, F1Micro, RocAucMacro]);
    }

    #[test]
    fn the_rate_falls_to_nothing_as_the_schedule_says() {
        for (schedule, expected) in [(Schedule::Constant, [1.0; 4]), (Schedule::Linear, [1.0, 0.75, 0.5, 0.0])] {
            assert_eq!([0, 2, 4, 8].map(|step| schedule.factor(step, 8)), expected, "{schedule:?}");
        }
        let cosine = [0, 4, 8].map(|step| Schedule::Cosine.factor(step, 8));
        assert!(cosine.iter().zip([1.0, 0.5, 0.0]).all(|(got, want)| (got - want).abs() < 1e-12), "{cosine:?}");
    }
}
