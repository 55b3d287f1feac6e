//! Layout words: `single`, `dp=2`, `zero=2`, `tp=2`, `dp=2,tp=2`.

use super::UnknownWord;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// How one step is spread over ranks: groups of tensor-parallel ranks, which share rows, and as many of them as there are shares of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Layout {
    data: usize,
    /// The optimizer's state is shared out over the data-parallel ranks.
    sharded: bool,
    tensor: usize,
}

/// Most ranks along one axis.
const MOST: usize = 1024;

impl Layout {
    pub const FORMS: &'static [(&'static str, &'static str)] = &[
        ("single", "one rank does the whole batch"),
        ("dp=2", "data parallel over 2 ranks, gradients all-reduced"),
        ("zero=2", "data parallel over 2 ranks, each with half of the optimizer's state"),
        ("tp=2", "tensor parallel over 2 ranks, each with a part of the weights"),
        ("dp=2,tp=2", "both, over 4 ranks"),
    ];

    pub const SINGLE: Layout = Layout { data: 1, sharded: false, tensor: 1 };

    /// Each of N ranks takes a share of the batch; training sums gradients over them.
    pub const fn data(ranks: usize) -> Layout {
        Layout { data: ranks, ..Layout::SINGLE }
    }

    /// The same, and each keeps and updates a part of every parameter.
    pub const fn zero(ranks: usize) -> Layout {
        Layout { data: ranks, sharded: true, ..Layout::SINGLE }
    }

    /// Each of N ranks holds a part of the weights and works on every row.
    pub const fn tensor(ranks: usize) -> Layout {
        Layout { tensor: ranks, ..Layout::SINGLE }
    }

    /// Each rank of this layout is `ranks` of them.
    pub const fn times_tensor(self, ranks: usize) -> Layout {
        Layout { tensor: self.tensor * ranks, ..self }
    }

    pub const fn ranks(self) -> usize {
        self.data * self.tensor
    }

    /// Shares of a batch.
    pub const fn data_ranks(self) -> usize {
        self.data
    }

    /// Parts of the weights.
    pub const fn tensor_ranks(self) -> usize {
        self.tensor
    }

    pub const fn shares_state(self) -> bool {
        self.sharded
    }

    /// The share of the batch and the part of the weights of a rank.
    pub const fn place(self, rank: usize) -> (usize, usize) {
        (rank / self.tensor, rank % self.tensor)
    }
}

impl FromStr for Layout {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        let unknown = || UnknownWord::new("layout", text, Self::FORMS.iter().map(|(form, _)| *form));
        if text == "single" {
            return Ok(Layout::SINGLE);
        }
        let mut layout = Layout::SINGLE;
        for part in text.split(',') {
            let (axis, ranks) = part.trim().split_once('=').ok_or_else(unknown)?;
            let ranks = ranks.parse().ok().filter(|ranks| (2..=MOST).contains(ranks)).ok_or_else(unknown)?;
            layout = match axis {
                "dp" if layout.data == 1 => Layout { data: ranks, ..layout },
                "zero" if layout.data == 1 => Layout { data: ranks, sharded: true, ..layout },
                "tp" if layout.tensor == 1 => Layout { tensor: ranks, ..layout },
                _ => return Err(unknown()),
            };
        }
        Ok(layout)
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let data = match self.data {
            1 => None,
            ranks => Some(format!("{}={ranks}", if self.sharded { "zero" } else { "dp" })),
        };
        let tensor = (self.tensor > 1).then(|| format!("tp={}", self.tensor));
        match (data, tensor) {
            (None, None) => f.pad("single"),
            (data, tensor) => f.pad(&data.into_iter().chain(tensor).collect::<Vec<_>>().join(",")),
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
        assert_eq!("tp=2,zero=3".parse::<Layout>().unwrap().to_string(), "zero=3,tp=2");
        for text in
            ["dp", "dp=1", "dp=0", "dp=x", "zz=2", "Single", "dp=2,dp=2", "dp=2,zero=2", "single,dp=2", "", "tp=2,", "dp=1025"]
        {
            assert!(text.parse::<Layout>().is_err(), "{text}");
        }
    }

    #[test]
    fn ranks_have_places() {
        let layout: Layout = "dp=2,tp=3".parse().unwrap();
        assert_eq!(layout, Layout::data(2).times_tensor(3));
        assert_eq!((layout.ranks(), layout.data_ranks(), layout.tensor_ranks()), (6, 2, 3));
        assert_eq!((0..6).map(|rank| layout.place(rank)).collect::<Vec<_>>(), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]);
    }
}
