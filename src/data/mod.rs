//! Data sets: where rows come from, how they are ordered, split into batches, and changed by augmentation.
//!
//! Images are f32 `[H, W, C]`, row-major, 0 to 1; texts are numbers of words. Everything random depends on a seed and on nothing else, so every rank, precision
//! and machine sees the same rows.

mod augment;
mod batches;
mod csv;
mod idx;
mod load;
mod source;
mod text;

pub use augment::Augmenter;
pub use batches::{Batches, calibration_rows, gather, gather_tokens};
pub use load::find_data_dir;
pub use source::{DataSource, SHIPPED, Shipped};

use crate::vocab::RowShape;
use std::path::PathBuf;

/// What the rows of a part hold.
#[derive(Clone, Debug, PartialEq)]
pub enum Inputs {
    /// `[rows, H, W, C]`, 0 to 1.
    Images(Vec<f32>),
    /// `[rows, length]`.
    Tokens(Vec<i32>),
}

/// Rows with their classes.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub inputs: Inputs,
    /// Class numbers, one a row.
    pub labels: Vec<u32>,
}

impl Part {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.labels.len()
    }
}

/// A classification data set in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct DataSet {
    pub name: String,
    pub row: RowShape,
    /// Names of the classes by number.
    pub classes: Vec<String>,
    pub train: Part,
    pub test: Part,
    /// SHA-256 (hex) over shape, classes and all rows.
    pub content_hash: String,
}

/// Data that cannot be used, with the place of the trouble.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("no folder with the shipped data was found; tried {}; set ADVISOR_DATA to the repository's `data` folder", listed(.tried))]
    NoDataDir { tried: Vec<PathBuf> },
    #[error("no shipped data set is called `{name}`; there are {}", quoted(.known))]
    Unknown { name: String, known: Vec<String> },
    #[error("cannot read `{}`: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("none of {} is in `{}`", quoted(.names), folder.display())]
    MissingFile { folder: PathBuf, names: Vec<String> },
    #[error("`{}` is not an IDX file of bytes: expected {expected}, found {found}", path.display())]
    Idx { path: PathBuf, expected: String, found: String },
    /// `line` counts from 1, the header included.
    #[error("`{}` line {line}, column `{column}`: expected {expected}, found `{found}`", path.display())]
    Cell { path: PathBuf, line: usize, column: String, expected: String, found: String },
    /// `columns` are all of the file's; one whose name is near to `column` stands first.
    #[error("`{}` has no column `{column}`; it has {}", path.display(), quoted(.columns))]
    Column { path: PathBuf, column: String, columns: Vec<String> },
    #[error("`{}`: {reason}", path.display())]
    Content { path: PathBuf, reason: String },
}

fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| format!("`{}`", p.display())).collect::<Vec<_>>().join(", ")
}

fn quoted(names: &[String]) -> String {
    const MOST: usize = 12;
    let mut text = names.iter().take(MOST).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    if names.len() > MOST {
        text.push_str(&format!(" and {} more", names.len() - MOST));
    }
    text
}
