//! Reports: what a run found, as a page, tables, a recommendation for programs, and a screenful for a terminal.
//!
//! Every judgement comes from `advise`; here it is only said and drawn. Same input, same bytes.
//!
//! | file | what |
//! | --- | --- |
//! | `html`, `style.css` | `report.html` and `index.html`: one file each, nothing is loaded from elsewhere |
//! | `plan` | the answer of a plan: its own page, tables and screenful |
//! | `plots` | the figures, by plotters |
//! | `csv` | `results.csv`, `samples.csv`, by polars |
//! | `kernels` | sweeps over kernels: tables and the figure under the roof |
//! | `json` | `recommendation.json` |
//! | `terminal` | the summary that `run` prints |
//! | `words` | numbers and verdicts as people read them |
//! | `write` | all files of a run, each whole or not there |

mod csv;
mod html;
mod json;
mod kernels;
mod plan;
mod plots;
mod terminal;
#[cfg(test)]
mod tests;
mod words;
mod write;

pub use csv::{RESULT_COLUMNS, results_csv, samples_csv};
pub use html::{html, index_html};
pub use json::{RECOMMENDATION_SCHEMA_VERSION, recommendation_json};
pub use kernels::{floor_s, kernels_csv, kernels_document, kernels_markdown, kernels_plot};
pub use plan::{
    PLAN_COLUMNS, PLAN_SCHEMA_VERSION, PlanInputs, plan_csv, plan_html, plan_json, plan_terminal, sensitivity_json,
    sensitivity_terminal, write_plan,
};
pub use plots::{Plot, plots};
pub use terminal::terminal;
pub use write::{put, write};

use crate::{advise::Advice, record::StoredRun};
use std::path::PathBuf;

/// A run with its advice: all that a report shows.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub run: &'a StoredRun,
    pub advice: &'a Advice,
}

#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("cannot {doing} `{}`: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error("cannot draw the {plot}: {reason}")]
    Plot { plot: &'static str, reason: String },
    #[error("cannot make the table: {0}")]
    Table(#[from] polars::error::PolarsError),
}
