//! A scenario: the question that a TOML file asks, read into types, and the candidates that answer it.
//!
//! `shape` says which keys the file may have, `read` what they mean, `expand` which candidates the grid makes on a machine, `template`
//! writes a file to start from. Pure but for `Scenario::load`, which reads one file. Running anything is left to the floors above.

mod expand;
mod read;
mod shape;
mod template;

pub use expand::{Expansion, Machine};
pub use shape::schema;
pub use template::template;

use crate::{
    data::DataSource,
    input::{Diagnostic, Source},
    record::{CostBasis, Goal, TrainConfig},
    vocab::{Compression, Device, Layout, Metric, Phase, Precision, RowKind, Task},
};
use std::path::{Path, PathBuf};

/// What a scenario file means.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// As the user gave it.
    pub path: PathBuf,
    /// The file as it was read.
    pub text: String,
    /// `[a-z0-9-]+`, at most 64 characters; the output folder's name.
    pub name: String,
    pub question: String,
    pub task: Task,
    /// A name of `Known::models`.
    pub model: String,
    pub data: DataSource,
    /// Distinct, at least one.
    pub phases: Vec<Phase>,
    pub train: TrainConfig,
    pub grid: Grid,
    pub goal: Goal,
    pub cost: CostBasis,
    /// Metric by which rows are compared and constrained.
    pub primary_metric: Metric,
}

/// The axes. Every list but `threads` has at least one value, none twice.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    pub devices: Vec<Device>,
    pub precisions: Vec<Precision>,
    /// For `infer` alone: training makes the weights that a compression makes smaller.
    pub compressions: Vec<Compression>,
    pub layouts: Vec<Layout>,
    /// Units a step, over all ranks.
    pub batch_sizes: Vec<usize>,
    /// Compute threads over all ranks; empty means all cores of the machine.
    pub threads: Vec<usize>,
}

/// A model that a scenario may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownModel<'a> {
    pub name: &'a str,
    pub reads: RowKind,
}

/// The names that a file may use and that this module does not own. Those of data sets are `data::SHIPPED`.
pub struct Known<'a> {
    pub models: &'a [KnownModel<'a>],
    /// Price catalogue entries: `aws/c7a.large`.
    pub instances: &'a [String],
}

impl Scenario {
    /// Reads a file; the error is every mistake in it, in the order of the file.
    pub fn load(path: &Path, known: &Known) -> Result<Scenario, Vec<Diagnostic>> {
        Scenario::read(Source::read(path).map_err(|diagnostic| vec![diagnostic])?, known)
    }

    /// As `load`, from a text that was read already.
    pub fn read(source: Source, known: &Known) -> Result<Scenario, Vec<Diagnostic>> {
        read::read(source, known)
    }
}
