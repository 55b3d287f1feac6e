//! What machine time costs: the price book, the nearest catalogue entry, owned hardware, dollars per useful unit.
//!
//! | file | what |
//! | --- | --- |
//! | `book` | the catalogue: reading it, finding an entry, the entry nearest to a machine of its architecture |
//! | `csv` | cells of a comma-separated file, quoted ones included |
//! | `price` | from a scenario's cost basis to the price of an hour, with its explanation |
//! | `per_unit` | from the price of an hour to the price of a unit, and back |

mod book;
pub mod csv;
mod per_unit;
mod price;

pub use book::{Entry, PriceBook};
pub use per_unit::{price_to_tie, throughput_to_tie, usd_per_million};
pub use price::{break_even_utilisation, nearest, price};

use std::path::PathBuf;

/// The price of an hour, and where it comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Price {
    pub usd_per_hour: crate::units::UsdPerHour,
    /// `nebius/cpu-e2_2vcpu-8gb`, `stated`, `owned`.
    pub instance: String,
    /// One sentence: how it was chosen and how far it fits this machine.
    pub explanation: String,
    /// File, commit and date of a catalogue price.
    pub source: Option<String>,
}

/// Why there is no price.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CostError {
    #[error("unknown instance `{name}`: the price book has no such entry{}", did_you_mean(nearest))]
    Unknown {
        name: String,
        /// Names of the book that look like it, the most similar first.
        nearest: Vec<String>,
    },
    #[error("`{name}` has no on-demand price in the price book: state one with `instance = {{ hourly_usd = ... }}`")]
    NoPrice { name: String },
    #[error("no catalogue entry is near this machine ({machine}): state a price with `instance = {{ hourly_usd = ... }}`")]
    NothingNear { machine: String },
    #[error("`{key} = {value}` cannot price a machine: expected {expected}")]
    Unusable { key: &'static str, value: f64, expected: &'static str },
    #[error("`{}` has no column `{column}`: expected those of prices.csv or of a SkyPilot catalogue", path.display())]
    MissingColumn { path: PathBuf, column: &'static str },
    #[error("`{}` line {line}: {reason}", path.display())]
    Broken { path: PathBuf, line: usize, reason: String },
}

fn did_you_mean(nearest: &[String]) -> String {
    if nearest.is_empty() {
        return String::new();
    }
    format!("; did you mean {}?", nearest.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or "))
}
