//! Layout words: `single`, `dp=2`.

use super::UnknownWord;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// How one step is spread over ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Layout {
    Single,
    /// Data parallel: each of N >= 2 ranks takes a share of the batch; training sums gradients over the ranks.
    Data(usize),
}

impl Layout {
    pub const FORMS: &'static [(&'static str, &'static str)] =
        &[("single", "one rank does the whole batch"), ("dp=2", "data parallel over 2 ranks, gradients all-reduced")];

    pub const fn ranks(self) -> usize {
        match self {
            Layout::Single => 1,
            Layout::Data(ranks) => ranks,
        }
    }
}

impl FromStr for Layout {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        let unknown = || UnknownWord::new("layout", text, Self::FORMS.iter().map(|(form, _)| *form));
        match text.split_once('=') {
            None if text == "single" => Ok(Layout::Single),
            Some(("dp", ranks)) => ranks.parse().ok().filter(|n| (2..=1024).contains(n)).map(Layout::Data).ok_or_else(unknown),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Layout::Single => f.pad("single"),
            Layout::Data(ranks) => f.pad(&format!("dp={ranks}")),
        }
    }
}

impl From<Layout> for String {
    fn from(value: Layout) -> String {
        value.to_string()
    }
}

impl TryFrom<String> for Layout {
    type Error = UnknownWord;
    fn try_from(text: String) -> Result<Self, UnknownWord> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_read_back_as_they_print() {
        for (form, _) in Layout::FORMS {
            assert_eq!(form.parse::<Layout>().unwrap().to_string(), *form);
        }
        for text in ["dp", "dp=1", "dp=0", "dp=x", "zz=2", "Single"] {
            assert!(text.parse::<Layout>().is_err(), "{text}");
        }
    }
}
