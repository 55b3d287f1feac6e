//! The report of a plan: a page, a table of all rows, the answer for programs, and a screenful for a terminal.
//!
//! A document of its own beside that of measured runs (docs/decisions/0007-a-plan-has-its-own-document.md); style, figures and words are shared.

mod figures;
mod html;
mod tables;
mod terminal;
#[cfg(test)]
mod tests;
mod words;

pub use html::plan_html;
pub use tables::{PLAN_COLUMNS, PLAN_SCHEMA_VERSION, plan_csv, plan_json, sensitivity_json};
pub use terminal::{plan_terminal, sensitivity_terminal};

use super::{ReportError, put};
use crate::predict::{Answer, Plan};
use std::path::{Path, PathBuf};

/// A plan with its answer: all that a report shows.
#[derive(Clone, Copy, Debug)]
pub struct PlanInputs<'a> {
    pub plan: &'a Plan,
    pub answer: &'a Answer,
    /// The command that repeats it.
    pub command: &'a str,
}

/// Writes `plan.html`, `plan.csv`, `plan.json` and the figures below `dir/<name>/`; returns the page.
pub fn write_plan(dir: &Path, inputs: &PlanInputs) -> Result<PathBuf, ReportError> {
    let folder = dir.join(&inputs.plan.name);
    for plot in figures::figures(inputs)? {
        put(&folder.join("plots").join(format!("{}.svg", plot.stem)), plot.standalone().as_bytes())?;
    }
    put(&folder.join("plan.csv"), &plan_csv(inputs)?)?;
    let mut json = serde_json::to_vec_pretty(&plan_json(inputs)).expect("plain data");
    json.push(b'\n');
    put(&folder.join("plan.json"), &json)?;
    let page = folder.join("plan.html");
    put(&page, plan_html(inputs)?.as_bytes())?;
    Ok(page)
}
