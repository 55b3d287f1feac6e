//! Where rows come from: a data set that ships with the program, or files of the user.

use crate::vocab::RowKind;
use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf};

/// A data set as a scenario names it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataSource {
    /// A name of `SHIPPED`.
    Shipped(String),
    /// A folder with four IDX files (LeCun's format, gzip allowed): training and test images and labels.
    Idx { folder: PathBuf },
    /// One file with a header line, one row an image, pixels in every column but `label`, row-major.
    Csv {
        path: PathBuf,
        /// Column of the class; its distinct values, sorted (as numbers where all are), are the classes.
        label: String,
        /// `[height, width, channels]`.
        shape: [usize; 3],
        /// Pixels are divided by this.
        maximum: f64,
        /// Column that says `train` or `test`; without one, `test_share` decides.
        split: Option<String>,
        /// Share of the rows, spread evenly over the file, that are held out for the test, in (0, 1).
        test_share: f64,
    },
    /// One file with a header line, one row a text; the other columns are nobody's.
    Text {
        path: PathBuf,
        /// Column of the text.
        text: String,
        /// As for images, so are the next two.
        label: String,
        split: Option<String>,
        test_share: f64,
        /// Words of a text that are read.
        length: usize,
        /// Most different words, the frequent ones of the training rows.
        vocabulary: usize,
    },
}

impl DataSource {
    /// What its rows are; `None` for a shipped set that there is not.
    pub fn rows(&self) -> Option<RowKind> {
        match self {
            DataSource::Shipped(name) => SHIPPED.iter().find(|shipped| shipped.name == name).map(Shipped::rows),
            DataSource::Idx { .. } | DataSource::Csv { .. } => Some(RowKind::Image),
            DataSource::Text { .. } => Some(RowKind::Text),
        }
    }
}

impl fmt::Display for DataSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DataSource::Shipped(name) => f.write_str(name),
            DataSource::Idx { folder } => write!(f, "{}", folder.display()),
            DataSource::Csv { path, .. } | DataSource::Text { path, .. } => write!(f, "{}", path.display()),
        }
    }
}

/// A data set in `data/`.
pub struct Shipped {
    pub name: &'static str,
    pub about: &'static str,
    pub(super) format: ShippedFormat,
    /// What the classes are called, by number; digits when empty.
    pub(super) classes: &'static [&'static str],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ShippedFormat {
    /// Four IDX files in `data/<name>/`.
    Idx,
    /// `data/<name>/<name>.csv.gz`.
    Csv,
    /// The same, with a column `text`.
    Text,
}

impl Shipped {
    /// What its rows are.
    pub fn rows(&self) -> RowKind {
        match self.format {
            ShippedFormat::Idx | ShippedFormat::Csv => RowKind::Image,
            ShippedFormat::Text => RowKind::Text,
        }
    }
}

/// Every data set that ships with the program; sources and licences in `data/PROVENANCE.md`.
pub const SHIPPED: &[Shipped] = &[
    Shipped {
        name: "mnist",
        about: "handwritten digits, 28x28 grey, 8,004 training and 1,996 test images",
        format: ShippedFormat::Idx,
        classes: &[],
    },
    Shipped {
        name: "fashion-mnist",
        about: "articles of clothing, 28x28 grey, 8,000 training and 2,000 test images",
        format: ShippedFormat::Idx,
        classes: &["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"],
    },
    Shipped { name: "digits-8x8", about: "handwritten digits, 8x8 grey, 1,797 images", format: ShippedFormat::Csv, classes: &[] },
    Shipped {
        name: "sentiment-snippets",
        about: "sentences of film and product reviews and tweets, negative or positive, 13,161 training and 3,257 test texts",
        format: ShippedFormat::Text,
        classes: &["negative", "positive"],
    },
];
