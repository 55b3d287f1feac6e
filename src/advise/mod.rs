//! From measured rows to a recommendation: limits, front, odds, ties, reasons.
//!
//! Everything here is a pure function of a `StoredRun` and a price book; it can be redone from `run.jsonl` at any time.
//!
//! | file | what |
//! | --- | --- |
//! | `advice` | the answer as data |
//! | `rows` | one record's figures, each with its interval |
//! | `speed` | rates by round, ratios that share the machine's drift |
//! | `quality` | paired tests of the answers against the baseline's |
//! | `limits` | which limits a row breaks, and by how much |
//! | `objective` | the figure that is optimised, observed and resampled |
//! | `front` | rows that no other beats in both objective and quality |
//! | `pick` | odds, expected regret, ties |
//! | `infeasible` | which limit binds when nothing meets them all |
//! | `flips` | prices, speeds and limits at which the answer changes |
//! | `break_evens` | prices, speeds and shares of use at which two choices cost the same |
//! | `reasons`, `notes`, `phrase` | sentences with their numbers |

mod advice;
mod break_evens;
mod flips;
mod front;
mod infeasible;
mod limits;
mod notes;
mod objective;
mod phrase;
mod pick;
mod quality;
mod reasons;
mod rows;
mod speed;
#[cfg(test)]
pub(crate) mod synthetic;
#[cfg(test)]
mod tests;

pub use advice::*;

use crate::{
    cost::{self, CostError, Price, PriceBook},
    record::{RunRecord, StoredRun},
    vocab::Phase,
};
use limits::Breach;
use objective::Figures;
use speed::Timing;

/// Resamples behind every interval and every probability.
const RESAMPLES: usize = 2000;

/// Confidence of every interval.
const CONFIDENCE: f64 = 0.95;

/// Level of every test.
const ALPHA: f64 = 0.05;

/// 1 %: the noise threshold of criterion.rs and the least effect of docs/method.md. A test on many rounds shows less than anyone should
/// act on: the same program, built or placed in memory anew, moves as much.
const LEAST_EFFECT: f64 = 0.01;

/// A record while it is judged.
struct Judged<'a> {
    record: &'a RunRecord,
    timing: Timing,
    breaches: Vec<Breach>,
    row: Row,
}

/// One phase while it is judged.
struct Field<'a> {
    run: &'a StoredRun,
    price: &'a Price,
    phase: Phase,
    judged: Vec<Judged<'a>>,
    /// Place in `judged`.
    baseline: Option<usize>,
}

impl Field<'_> {
    fn feasible(&self) -> Vec<usize> {
        (0..self.judged.len()).filter(|k| self.judged[*k].row.status == RowStatus::Ok).collect()
    }

    fn title(&self, row: usize) -> &str {
        &self.judged[row].row.title
    }

    /// Whether limits on speed bind this phase: where a run also measures inference, they speak of serving and not of training.
    fn has_speed_limits(&self) -> bool {
        self.phase == Phase::Infer || !self.run.header.phases.contains(&Phase::Infer)
    }
}

/// Judges every record of `run`, phase by phase, at the price of an hour that its scenario asks for.
pub fn advise(run: &StoredRun, book: &PriceBook) -> Result<Advice, CostError> {
    let price = cost::price(&run.header.cost, &run.header.environment, book)?;
    let mut phases: Vec<Phase> = Vec::new();
    for record in &run.records {
        if !phases.contains(&record.candidate.phase) {
            phases.push(record.candidate.phase);
        }
    }
    Ok(Advice {
        objective: run.header.goal.objective,
        primary_metric: run.header.primary_metric,
        phases: phases.into_iter().map(|phase| judge(run, &price, book, phase)).collect(),
        price,
    })
}

fn judge(run: &StoredRun, price: &Price, book: &PriceBook, phase: Phase) -> PhaseAdvice {
    let records: Vec<&RunRecord> = run.records.iter().filter(|r| r.candidate.phase == phase).collect();
    let baseline = rows::baseline(&records, run.header.train.batch_size).map(|at| records[at].candidate.id());
    let mut field = Field { run, price, phase, judged: rows::judge(run, price, phase, baseline.as_deref()), baseline: None };
    field.baseline = position(&field.judged, baseline.as_deref());
    limits::apply(&mut field);
    field.judged.sort_by_key(|judged| match judged.row.status {
        RowStatus::Ok => 0,
        RowStatus::Infeasible => 1,
        RowStatus::Failed => 2,
        RowStatus::Skipped => 3,
    });
    field.baseline = position(&field.judged, baseline.as_deref());

    let figures = Figures::of(&field);
    front::mark(&mut field, &figures);
    let outcome = match pick::pick(&field, &figures) {
        Some(found) => {
            let pick = Pick {
                row: found.row,
                probability_best: found.probability(found.row),
                expected_regret: found.odds.as_ref().map(|odds| odds.regret),
                ties: found.ties.clone(),
                reasons: reasons::of(&field, &figures, &found),
                flips: flips::of(&field, &figures, &found),
                break_evens: break_evens::of(&field, &figures, &found, book),
            };
            for (row, probability) in found.odds.iter().flat_map(|odds| &odds.probabilities) {
                field.judged[*row].row.probability_best = Some(*probability);
            }
            field.judged[pick.row].row.recommended = true;
            Outcome::Pick(pick)
        }
        None => infeasible::outcome(&field, &figures),
    };
    notes::add(&mut field);
    PhaseAdvice { phase, baseline: field.baseline, outcome, rows: field.judged.into_iter().map(|judged| judged.row).collect() }
}

fn position(judged: &[Judged<'_>], id: Option<&str>) -> Option<usize> {
    judged.iter().position(|judged| Some(judged.row.id.as_str()) == id)
}
