//! Layout words: `single`, `dp=2`, `zero=2`, `tp=2`, `pp=2`, `gpipe=2`, `recompute`, and products such as `dp=2,tp=2`.

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
    pipeline: usize,
    schedule: PipelineSchedule,
    /// Activations are dropped and computed again in the backward pass.
    recompute: bool,
}

/// The order in which stages of a pipeline work on their micro-batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PipelineSchedule {
    /// Each piece goes back as soon as it can: as many are under way as there are stages.
    OneForwardOneBackward,
    /// All pieces go forward, then all back.
    GPipe,
}

/// Micro-batches for each stage of a pipeline: a stage then waits less than a fifth of the time (Huang et al. 2019).
const PIECES_PER_STAGE: usize = 4;

/// Most ranks along one axis.
const MOST: usize = 1024;

impl Layout {
    pub const FORMS: &'static [(&'static str, &'static str)] = &[
        ("single", "one rank does the whole batch"),
        ("dp=2", "data parallel over 2 ranks, gradients all-reduced"),
        ("zero=2", "data parallel over 2 ranks, each with half of the optimizer's state"),
        ("tp=2", "tensor parallel over 2 ranks, each with a part of the weights"),
        ("pp=2", "pipeline over 2 ranks, each with half of the layers, by 1F1B"),
        ("gpipe=2", "the same, all micro-batches forward before any goes back"),
        ("dp=2,tp=2", "data and tensor parallel, over 4 ranks"),
        ("tp=2,pp=2", "each half of the layers split over 2 ranks, over 4 ranks"),
        ("recompute", "one rank that drops activations and computes them again, for less memory"),
        ("pp=2,recompute", "the same in each stage of a pipeline"),
    ];

    pub const SINGLE: Layout = Layout {
        data: 1,
        sharded: false,
        tensor: 1,
        pipeline: 1,
        schedule: PipelineSchedule::OneForwardOneBackward,
        recompute: false,
    };

    /// Each of N ranks takes a share of the batch; training sums gradients over them.
    pub const fn data(ranks: usize) -> Layout {
        Layout { data: ranks, ..Layout::SINGLE }
    }

    pub const fn ranks(self) -> usize {
        self.data * self.parts()
    }

    /// Shares of a batch.
    pub const fn data_ranks(self) -> usize {
        self.data
    }

    /// Parts of the weights.
    pub const fn tensor_ranks(self) -> usize {
        self.tensor
    }

    /// Stretches of the model.
    pub const fn pipeline_ranks(self) -> usize {
        self.pipeline
    }

    pub const fn schedule(self) -> PipelineSchedule {
        self.schedule
    }

    /// Ranks that hold the model together.
    pub const fn parts(self) -> usize {
        self.tensor * self.pipeline
    }

    /// Micro-batches of a share of `rows`: as many as divide it, up to four a stage.
    pub fn micro_batches(self, rows: usize) -> usize {
        let most = if self.pipeline == 1 { 1 } else { PIECES_PER_STAGE * self.pipeline };
        (1..=most).rev().find(|pieces| rows.is_multiple_of(*pieces)).unwrap_or(1)
    }

    pub const fn shares_state(self) -> bool {
        self.sharded
    }

    pub const fn recomputes(self) -> bool {
        self.recompute
    }

    /// The stage of a part of the model, and which part of the weights of that stage it is.
    pub const fn part_place(self, part: usize) -> (usize, usize) {
        (part / self.tensor, part % self.tensor)
    }

    /// The share of the batch and the part of the model of a rank.
    pub const fn place(self, rank: usize) -> (usize, usize) {
        (rank / self.parts(), rank % self.parts())
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
            if part.trim() == "recompute" && !layout.recompute {
                layout.recompute = true;
                continue;
            }
            let (axis, ranks) = part.trim().split_once('=').ok_or_else(unknown)?;
            let ranks = ranks.parse().ok().filter(|ranks| (2..=MOST).contains(ranks)).ok_or_else(unknown)?;
            layout = match axis {
                "dp" if layout.data == 1 => Layout { data: ranks, ..layout },
                "zero" if layout.data == 1 => Layout { data: ranks, sharded: true, ..layout },
                "tp" if layout.tensor == 1 => Layout { tensor: ranks, ..layout },
                "pp" | "gpipe" if layout.pipeline == 1 => {
                    let gpipe = axis == "gpipe";
                    let schedule = if gpipe { PipelineSchedule::GPipe } else { PipelineSchedule::OneForwardOneBackward };
                    Layout { pipeline: ranks, schedule, ..layout }
                }
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
        let name = if self.schedule == PipelineSchedule::GPipe { "gpipe" } else { "pp" };
        let pipeline = (self.pipeline > 1).then(|| format!("{name}={}", self.pipeline));
        let recompute = self.recompute.then(|| "recompute".to_string());
        let words: Vec<String> = data.into_iter().chain(tensor).chain(pipeline).chain(recompute).collect();
        f.pad(if words.is_empty() { "single".to_string() } else { words.join(",") }.as_str())
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
        assert_eq!("gpipe=2,dp=3".parse::<Layout>().unwrap().to_string(), "dp=3,gpipe=2");
        assert_eq!("recompute,pp=2,tp=3".parse::<Layout>().unwrap().to_string(), "tp=3,pp=2,recompute");
        assert_eq!("tp=2,zero=3".parse::<Layout>().unwrap().to_string(), "zero=3,tp=2");
        for text in [
            "dp",
            "dp=1",
            "dp=0",
            "dp=x",
            "zz=2",
            "Single",
            "dp=2,dp=2",
            "dp=2,zero=2",
            "single,dp=2",
            "",
            "tp=2,",
            "dp=1025",
            "pp=2,gpipe=2",
            "recompute=2",
            "recompute,recompute",
            "single,recompute",
        ] {
            assert!(text.parse::<Layout>().is_err(), "{text}");
        }
    }

    #[test]
    fn ranks_have_places() {
        let layout: Layout = "dp=2,tp=3".parse().unwrap();
        assert_eq!((layout.ranks(), layout.data_ranks(), layout.tensor_ranks()), (6, 2, 3));
        let stages: Layout = "dp=2,tp=3,pp=2".parse().unwrap();
        assert_eq!((stages.ranks(), stages.parts(), stages.place(7)), (12, 6, (1, 1)));
        assert_eq!(
            (0..6).map(|part| stages.part_place(part)).collect::<Vec<_>>(),
            [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
        );
        assert_eq!("pp=2".parse::<Layout>().unwrap().micro_batches(24), 8);
        assert_eq!(("pp=2".parse::<Layout>().unwrap().micro_batches(9), layout.micro_batches(24)), (3, 1));
        assert_eq!((0..6).map(|rank| layout.place(rank)).collect::<Vec<_>>(), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]);
    }
}
