//! The pick and how sure it is: odds, expected regret, and the rows that cannot be told apart from it.

use super::{
    ALPHA, Field, LEAST_EFFECT,
    objective::{Figure, Figures},
    quality::Changes,
    rows::seeds,
    speed::{self, Series},
};
use crate::{
    record::Quality,
    stats::{fewest_pairs, holm_of_tests, mcnemar_exact, median, permutation, sign_flip},
    vocab::Phase,
};

/// The pick with everything that the sentences about it need.
pub(super) struct Found {
    pub row: usize,
    /// Absent where nothing could be known of it; `no_odds` says why.
    pub odds: Option<Odds>,
    pub no_odds: Option<NoOdds>,
    /// Best first.
    pub ties: Vec<usize>,
    /// Those of `ties` that no test could have told apart from the pick, with what was there and what would be needed.
    pub too_few: Vec<(usize, Shortage)>,
    /// Other rows compared, in the order of their figures.
    pub others: Vec<usize>,
}

/// How sure the pick is.
pub(super) struct Odds {
    /// Of every feasible row that has the figure; they sum to 1.
    pub probabilities: Vec<(usize, f64)>,
    pub regret: f64,
}

/// Why there are no odds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoOdds {
    /// Nothing to be better than.
    OnlyRow,
    /// Each row was measured once.
    NoNoise,
    TooFew(Shortage),
}

/// Samples (timed rounds, seeds) of the row that has the fewest, and how many would be enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shortage {
    pub has: usize,
    pub needs: usize,
}

impl Found {
    pub fn probability(&self, row: usize) -> Option<f64> {
        self.odds.as_ref()?.probabilities.iter().find(|(at, _)| *at == row).map(|(_, probability)| *probability)
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
    let no_odds = no_odds(field, figures, &rows);
    let verdicts = compare(field, figures, row, others);
    let of_ties = || others.iter().zip(&verdicts).filter(|(_, verdict)| verdict.is_tie);
    Some(Found {
        row,
        odds: no_odds.is_none().then(|| odds(figures, &rows, row)),
        no_odds,
        ties: of_ties().map(|(other, _)| *other).collect(),
        too_few: of_ties().filter_map(|(other, verdict)| Some((*other, verdict.shortage?))).collect(),
        others: others.to_vec(),
    })
}

/// A resample of fewer values than could show anything in an exact test varies too little to speak of odds.
fn no_odds(field: &Field<'_>, figures: &Figures, rows: &[usize]) -> Option<NoOdds> {
    if rows.len() < 2 {
        return Some(NoOdds::OnlyRow);
    }
    let Some(samples) = rows.iter().map(|row| figures.samples(field, *row)).collect::<Option<Vec<usize>>>() else {
        return Some(NoOdds::NoNoise);
    };
    let (has, needs) = (samples.into_iter().min().unwrap_or(0), fewest_pairs(1));
    (has < needs).then_some(NoOdds::TooFew(Shortage { has, needs }))
}

/// Share of resamples that each row wins (equal winners share), and the mean relative loss of `pick` against the winner.
fn odds(figures: &Figures, rows: &[usize], pick: usize) -> Odds {
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
    Odds { probabilities: rows.iter().zip(wins).map(|(row, wins)| (*row, of_all(wins))).collect(), regret: of_all(regret) }
}

struct Verdict {
    is_tie: bool,
    shortage: Option<Shortage>,
}

/// How `other` is held against the pick.
enum Evidence {
    /// A test, to be corrected for all rows. Rows of one `test` gave the same answers: they are one test.
    P { p: f64, test: usize },
    /// No test on so few could show a difference.
    TooFew(Shortage),
    /// Each was measured once: the figures stand as they are.
    Once,
}

fn compare(field: &Field<'_>, figures: &Figures, pick: usize, others: &[usize]) -> Vec<Verdict> {
    let evidence: Vec<Evidence> = (0..others.len()).map(|at| evidence(field, figures, pick, others, at)).collect();
    let tested = |e: &Evidence| if let Evidence::P { p, test } = e { Some((*p, *test)) } else { None };
    let (raw, tests): (Vec<f64>, Vec<usize>) = evidence.iter().filter_map(tested).unzip();
    let mut corrected = holm_of_tests(&raw, &tests).into_iter();
    others
        .iter()
        .zip(evidence)
        .map(|(other, evidence)| {
            let (is_undecided, shortage) = match evidence {
                Evidence::P { .. } => (corrected.next().expect("one for every tested row") > ALPHA, None),
                Evidence::TooFew(shortage) => (true, Some(shortage)),
                Evidence::Once => (false, None),
            };
            Verdict { is_tie: is_undecided || is_small(field, figures, pick, *other), shortage }
        })
        .collect()
}

fn evidence(field: &Field<'_>, figures: &Figures, pick: usize, others: &[usize], at: usize) -> Evidence {
    let (other, tests) = (others[at], others.len());
    match figures.figure {
        figure if figure.is_paced() => {
            of_rounds(field, figures, pick, other, tests).map_or_else(Evidence::TooFew, |p| Evidence::P { p, test: at })
        }
        Figure::Quality if field.phase == Phase::Infer => of_answers(field, pick, others, at),
        Figure::Quality | Figure::UsdToTarget | Figure::SecondsToTarget => {
            let (differences, needs) = (seed_differences(field, figures.figure, pick, other), fewest_pairs(tests));
            match sign_flip(&differences) {
                Some(p) if differences.len() >= needs => Evidence::P { p, test: at },
                _ => Evidence::TooFew(Shortage { has: differences.len(), needs }),
            }
        }
        _ => Evidence::Once,
    }
}

/// p of two paced rows. In the rounds that both were timed in: the sign-flip test over the pairs that ABBA makes. Without enough of
/// those (rows of different groups): the permutation test between their ratios to the baseline, which ran in both groups. The pairs of
/// one round lie close together, so it is rounds that have to be enough.
fn of_rounds(field: &Field<'_>, figures: &Figures, pick: usize, other: usize, tests: usize) -> Result<f64, Shortage> {
    let series = |row: usize| figures.figure.series(&field.judged[row].timing);
    let shared = |a: Option<&Series>, b: Option<&Series>| a.zip(b).map_or(0, |(a, b)| speed::shared_ratios(a, b).len());
    // A round makes two pairs.
    let needs = fewest_pairs(1).max(fewest_pairs(tests).div_ceil(2));
    let together = shared(series(pick), series(other));
    let paired = log_ratios(field, figures, pick, other).unwrap_or_default();
    if together >= needs && paired.len() >= fewest_pairs(tests) {
        return sign_flip(&paired).ok_or(Shortage { has: together, needs });
    }
    let mut has = together;
    if let Some(base) = field.baseline.filter(|base| *base != pick && *base != other) {
        let linked = [pick, other].map(|row| shared(series(row), series(base))).into_iter().min().unwrap_or(0);
        let ratios = |row: usize| log_ratios(field, figures, row, base).unwrap_or_default();
        let (a, b) = (ratios(pick), ratios(other));
        // The two most extreme of all ways to put the values on two sides of these sizes.
        let least = 2.0 * (1..=a.len().min(b.len())).fold(1.0, |p, k| p * k as f64 / (a.len().max(b.len()) + k) as f64);
        if let Some(p) = permutation(&a, &b).filter(|_| linked >= needs && least * tests as f64 <= ALPHA) {
            return Ok(p);
        }
        has = has.max(linked);
    }
    Err(Shortage { has, needs: needs.max(has + 1) })
}

fn of_answers(field: &Field<'_>, pick: usize, others: &[usize], at: usize) -> Evidence {
    let answers = |row: usize| field.judged[row].record.quality.as_ref();
    let is_same = |a: Option<&Quality>, b: Option<&Quality>| a.zip(b).is_some_and(|(a, b)| a.predictions == b.predictions);
    let (own, now) = (answers(pick), answers(others[at]));
    let changes = own.zip(now).and_then(|(a, b)| Changes::between(a, b, &field.run.header.test_labels));
    // The first row with these answers names the test; the pick's own answers need none, and share the number of no other.
    let test = if is_same(own, now) { others.len() } else { others.iter().position(|o| is_same(answers(*o), now)).unwrap_or(at) };
    changes.map_or(Evidence::Once, |changes| Evidence::P { p: mcnemar_exact(changes.lost, changes.won), test })
}

/// The pick's figure against the other's for every seed that both trained: logarithms of the ratio of times, or the difference of the
/// metric. Where a seed missed the target, all count by their sign alone: that one was the slower.
fn seed_differences(field: &Field<'_>, figure: Figure, pick: usize, other: usize) -> Vec<f64> {
    let of = |row: usize| seeds(field.judged[row].record);
    let time = |seed: &crate::record::SeedRun| seed.time_to_target.map_or(f64::INFINITY, |time| time.0);
    let pairs = of(pick).iter().filter_map(|a| Some((a, of(other).iter().find(|b| b.seed == a.seed)?)));
    let differences: Vec<f64> = pairs
        .map(|(a, b)| match figure {
            Figure::Quality => a.metric - b.metric,
            _ if time(a) == time(b) => 0.0,
            _ => (time(a) / time(b)).ln(),
        })
        .filter(|difference| !difference.is_nan())
        .collect();
    if differences.iter().all(|difference| difference.is_finite()) {
        return differences;
    }
    differences.into_iter().map(|difference| if difference == 0.0 { 0.0 } else { difference.signum() }).collect()
}

/// Logarithms of the ratios of the pick's to the other's figure, for every pair of blocks in the rounds that both were timed in.
fn log_ratios(field: &Field<'_>, figures: &Figures, pick: usize, other: usize) -> Option<Vec<f64>> {
    let blocks = |row: usize| figures.figure.blocks(&field.judged[row].timing);
    Some(speed::paired_ratios(blocks(pick)?, blocks(other)?).into_iter().map(f64::ln).collect())
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
