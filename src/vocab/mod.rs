//! The words of the product, each family one table: name, aliases, what it says.
//!
//! Parsing, help texts, "did you mean", the JSON Schema and the tests all read these tables. Families with a number in the word
//! (`magnitude:0.8`, `dp=2`) live in `compression` and `layout`; their forms are tables too.

mod compression;
mod layout;
mod metric;
mod words;

pub use compression::Compression;
pub use layout::Layout;
pub use metric::{Better, Metric, MetricFacts};
pub use words::{Augmentation, DType, Device, InitKind, Objective, OptimizerKind, Phase, Precision, Schedule, Task};

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
