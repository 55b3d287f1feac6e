//! The pick and how sure it is: odds, expected regret, and the rows that cannot be told apart from it.

use super::{
    ALPHA, Field, LEAST_EFFECT,
    objective::{Figure, Figures},
    quality::Changes,
    rows::seeds,
    speed,
};
use crate::{
    record::RunRecord,
    stats::{holm, mcnemar_exact, median, quantile, sign_flip},
    vocab::Phase,
};

/// The pick with everything that the sentences about it need.
pub(super) struct Found {
    pub row: usize,
    /// Of every feasible row that has the figure; they sum to 1.
    pub probabilities: Vec<(usize, f64)>,
    pub regret: f64,
    /// Best first.
    pub ties: Vec<usize>,
    /// Other rows compared, in the order of their figures.
    pub others: Vec<usize>,
    /// How many of them were judged by the interval of resamples, because the paired test could not have shown a difference.
    pub judged_by_interval: usize,
}

impl Found {
    pub fn probability(&self, row: usize) -> f64 {
        self.probabilities.iter().find(|(at, _)| *at == row).map_or(0.0, |(_, probability)| *probability)
    }
}

/// The feasible row of the best figure; of equal ones the first. `None` when no feasible row has the figure.
pub(super) fn pick(field: &Field<'_>, figures: &Figures) -> Option<Found> {
    let mut ranked: Vec<(usize, f64)> =
        field.feasible().into_iter().filter_map(|row| Some((row, figures.values[row]?))).collect();
    // The sort is stable: equal figures keep the order of the rows.
    ranked.sort_by(|a, b| if figures.is_maximised { b.1.total_cmp(&a.1) } else { a.1.total_cmp(&b.1) });
    let rows: Vec<usize> = ranked.iter().map(|(row, _)| *row).collect();
    let (&row, others) = rows.split_first()?;
    let (probabilities, regret) = odds(figures, &rows, row);
    let verdicts = compare(field, figures, row, others);
    Some(Found {
        row,
        probabilities,
        regret,
        ties: others.iter().zip(&verdicts).filter(|(_, verdict)| verdict.is_tie).map(|(other, _)| *other).collect(),
        others: others.to_vec(),
        judged_by_interval: verdicts.iter().filter(|verdict| verdict.is_by_interval).count(),
    })
}

/// Share of resamples that each row wins (equal winners share), and the mean relative loss of `pick` against the winner.
fn odds(figures: &Figures, rows: &[usize], pick: usize) -> (Vec<(usize, f64)>, f64) {
    let resamples = figures.draws[pick].len();
    let (mut wins, mut regret) = (vec![0.0; rows.len()], 0.0);
    for draw in 0..resamples {
        let value = |row: usize| figures.draws[row][draw];
        let best = rows.iter().map(|row| value(*row)).reduce(|a, b| if figures.is_better(b, a) { b } else { a });
        let best = best.expect("the pick is one of the rows");
        let winners: Vec<usize> = (0..rows.len()).filter(|k| value(rows[*k]) == best).collect();
        winners.iter().for_each(|k| wins[*k] += 1.0 / winners.len() as f64);
        regret += figures.loss(value(pick), best);
    }
    let of_all = |sum: f64| sum / resamples as f64;
    (rows.iter().zip(wins).map(|(row, wins)| (*row, of_all(wins))).collect(), of_all(regret))
}

struct Verdict {
    is_tie: bool,
    is_by_interval: bool,
}

/// How `other` is held against the pick.
enum Evidence {
    /// A paired test, to be corrected for all rows.
    P(f64),
    /// No paired test can show a difference: the interval of the resampled differences does it.
    Interval,
}

fn compare(field: &Field<'_>, figures: &Figures, pick: usize, others: &[usize]) -> Vec<Verdict> {
    let evidence: Vec<Evidence> = others.iter().map(|other| evidence(field, figures, pick, *other, others.len())).collect();
    let tested: Vec<usize> = (0..others.len()).filter(|k| matches!(evidence[*k], Evidence::P(_))).collect();
    let raw: Vec<f64> = evidence.iter().filter_map(|e| if let Evidence::P(p) = e { Some(*p) } else { None }).collect();
    let mut corrected = vec![0.0; others.len()];
    for (at, p) in tested.into_iter().zip(holm(&raw)) {
        corrected[at] = p;
    }
    others
        .iter()
        .enumerate()
        .map(|(at, other)| {
            let is_by_interval = matches!(evidence[at], Evidence::Interval);
            let is_undecided = if is_by_interval {
                interval_holds_zero(&figures.draws[pick], &figures.draws[*other], others.len())
            } else {
                corrected[at] > ALPHA
            };
            let is_tie = is_undecided || is_small(field, figures, pick, *other) || is_of_one_seed(field, figures, pick, *other);
            Verdict { is_tie, is_by_interval }
        })
        .collect()
}

fn evidence(field: &Field<'_>, figures: &Figures, pick: usize, other: usize, tests: usize) -> Evidence {
    if let Some(ratios) = log_ratios(field, figures, pick, other) {
        // Two of the 2^n sign patterns are the most extreme, and Holm multiplies the smallest p by the number of tests.
        let least = 2.0 * 0.5f64.powi(ratios.len() as i32) * tests as f64;
        return match sign_flip(&ratios) {
            Some(p) if least <= ALPHA => Evidence::P(p),
            _ => Evidence::Interval,
        };
    }
    if figures.figure == Figure::Quality && field.phase == Phase::Infer {
        let answers = |row: usize| field.judged[row].record.quality.as_ref();
        let changes = answers(pick).zip(answers(other)).and_then(|(a, b)| Changes::between(a, b, &field.run.header.test_labels));
        if let Some(changes) = changes {
            return Evidence::P(mcnemar_exact(changes.lost, changes.won));
        }
    }
    Evidence::Interval
}

/// Logarithms of the ratios of the pick's to the other's figure, for every pair of blocks in the rounds that both were timed in.
fn log_ratios(field: &Field<'_>, figures: &Figures, pick: usize, other: usize) -> Option<Vec<f64>> {
    let blocks = |row: usize| figures.figure.blocks(&field.judged[row].timing);
    Some(speed::paired_ratios(blocks(pick)?, blocks(other)?).into_iter().map(f64::ln).collect())
}

/// Corrected for `tests` comparisons (Bonferroni), as Holm corrects the others.
fn interval_holds_zero(pick: &[f64], other: &[f64], tests: usize) -> bool {
    let differences: Vec<f64> = pick.iter().zip(other).map(|(pick, other)| pick - other).collect();
    let tail = ALPHA / 2.0 / tests.max(1) as f64;
    match (quantile(&differences, tail), quantile(&differences, 1.0 - tail)) {
        (Some(low), Some(high)) => low <= 0.0 && high >= 0.0,
        _ => true,
    }
}

/// Below the least effect that anyone should act on. Points of a quality metric have no such floor: there the paired test decides.
fn is_small(field: &Field<'_>, figures: &Figures, pick: usize, other: usize) -> bool {
    if figures.figure == Figure::Quality {
        return false;
    }
    let paired = log_ratios(field, figures, pick, other).and_then(|ratios| median(&ratios));
    let ratio = paired.map(f64::exp).or_else(|| Some(figures.values[pick]? / figures.values[other]?));
    ratio.is_some_and(|ratio| (ratio - 1.0).abs() < LEAST_EFFECT)
}

/// One training each cannot tell two candidates' quality apart: seeds differ by more than most precisions do.
fn is_of_one_seed(field: &Field<'_>, figures: &Figures, pick: usize, other: usize) -> bool {
    let has_one = |record: &RunRecord| seeds(record).len() < 2;
    figures.figure == Figure::Quality
        && field.phase == Phase::Train
        && (has_one(field.judged[pick].record) || has_one(field.judged[other].record))
}
