//! Fits the parameters of serving to published rows: weighted absolute errors of logarithms, with a price for leaving the expected values.
//!
//! Gauss-Newton steps with Levenberg's damping on the logarithms of the parameters, weights made anew in each step so that absolute errors
//! count instead of squares (iteratively reweighted least squares; Holland and Welsch, doi 10.1080/03610927708827533): published tables
//! hold rows that were measured with other settings than they print, and squares would follow those.

use super::{
    parameters::{ServingParameters, priors},
    tables::{Measure, Row},
};
use std::collections::BTreeMap;

/// Below this error, 5 %, a row counts by its square: published figures repeat no better.
const SMALL: f64 = 0.05;
/// No row is further off than e^3: an infeasible prediction counts as 1.
const FAR: f64 = 3.0;
const INFEASIBLE: f64 = 1.0;
/// Weight of a parameter that leaves its expected value by one width, against a row that is off by a factor e.
const PRICE: f64 = 1.5;

/// Rows of a group that count as one each; a group counts as the root of its rows, so that the largest do not decide alone.
const USUAL: f64 = 30.0;

const fn weight(measure: Measure) -> f64 {
    match measure {
        // Fewest rows, and the best defined.
        Measure::Throughput => 2.0,
        Measure::PerToken | Measure::FirstToken => 1.0,
    }
}

struct Problem<'a> {
    rows: &'a [&'a Row],
    starts: Vec<f64>,
    widths: Vec<f64>,
    weights: Vec<f64>,
}

impl Problem<'_> {
    fn values(&self, moved: &[f64]) -> Vec<f64> {
        moved.iter().zip(&self.starts).map(|(moved, start)| start * moved.exp()).collect()
    }

    fn errors(&self, moved: &[f64]) -> Vec<f64> {
        let parameters = ServingParameters::of(&self.values(moved));
        let mut errors = Vec::with_capacity(self.weights.len());
        for row in self.rows {
            for (predicted, (_, published)) in row.predicted(&parameters).iter().zip(&row.published) {
                let error = (predicted / published).ln();
                errors.push(if error.is_finite() { error.clamp(-FAR, FAR) } else { INFEASIBLE });
            }
        }
        errors
    }

    fn cost(&self, errors: &[f64], moved: &[f64]) -> f64 {
        let of_rows: f64 = errors.iter().zip(&self.weights).map(|(error, weight)| weight * error.hypot(SMALL)).sum();
        let of_moves: f64 = moved.iter().zip(&self.widths).map(|(moved, width)| PRICE * (moved / width).powi(2)).sum();
        of_rows + of_moves
    }
}

/// Values of all parameters, in the order of `priors`, that fit `rows` best.
pub fn fit(rows: &[&Row], steps: usize) -> Vec<f64> {
    let priors = priors();
    let mut of_group: BTreeMap<&str, f64> = BTreeMap::new();
    for row in rows {
        *of_group.entry(&row.group).or_default() += 1.0;
    }
    let problem = Problem {
        rows,
        starts: priors.iter().map(|prior| prior.start).collect(),
        widths: priors.iter().map(|prior| prior.width).collect(),
        weights: rows
            .iter()
            .flat_map(|row| {
                let share = (USUAL / of_group[row.group.as_str()]).sqrt();
                row.published.iter().map(move |(measure, _)| share * weight(*measure))
            })
            .collect(),
    };
    let count = priors.len();
    let mut moved = vec![0.0; count];
    let mut errors = problem.errors(&moved);
    let mut cost = problem.cost(&errors, &moved);
    let mut damping = 1e-2;
    for _ in 0..steps {
        let slopes: Vec<Vec<f64>> = (0..count)
            .map(|at| {
                const STEP: f64 = 0.02;
                let mut other = moved.clone();
                other[at] += STEP;
                problem.errors(&other).iter().zip(&errors).map(|(there, here)| (there - here) / STEP).collect()
            })
            .collect();
        let weights: Vec<f64> = errors.iter().zip(&problem.weights).map(|(error, weight)| weight / error.hypot(SMALL)).collect();
        let product = |one: &[f64], other: &[f64]| -> f64 {
            one.iter().zip(other).zip(&weights).map(|((one, other), weight)| one * other * weight).sum()
        };
        let mut matrix = vec![vec![0.0; count]; count];
        let mut side = vec![0.0; count];
        for row in 0..count {
            for column in row..count {
                let value = product(&slopes[row], &slopes[column]);
                matrix[row][column] = value;
                matrix[column][row] = value;
            }
            let price = 2.0 * PRICE / problem.widths[row].powi(2);
            matrix[row][row] += price;
            side[row] = -product(&slopes[row], &errors) - price * moved[row];
        }
        let mut better = false;
        let mut settled = false;
        for _ in 0..6 {
            let mut damped = matrix.clone();
            for (at, row) in damped.iter_mut().enumerate() {
                row[at] *= 1.0 + damping;
            }
            let step = solved(damped, side.clone());
            let next: Vec<f64> = moved.iter().zip(&step).map(|(moved, step)| moved + step.clamp(-0.5, 0.5)).collect();
            let next_errors = problem.errors(&next);
            let next_cost = problem.cost(&next_errors, &next);
            if next_cost < cost {
                settled = cost - next_cost < 1e-4 * cost;
                (moved, errors, cost) = (next, next_errors, next_cost);
                damping = f64::max(damping / 3.0, 1e-4);
                better = true;
                break;
            }
            damping *= 4.0;
        }
        if !better || settled {
            break;
        }
    }
    problem.values(&moved)
}

/// Solution of a symmetric positive definite system, by elimination.
fn solved(mut matrix: Vec<Vec<f64>>, mut side: Vec<f64>) -> Vec<f64> {
    let count = side.len();
    for pivot in 0..count {
        let (above, below) = matrix.split_at_mut(pivot + 1);
        let top = &above[pivot];
        for (offset, row) in below.iter_mut().enumerate() {
            let factor = row[pivot] / top[pivot];
            if factor != 0.0 {
                row[pivot..].iter_mut().zip(&top[pivot..]).for_each(|(cell, top)| *cell -= factor * top);
                side[pivot + 1 + offset] -= factor * side[pivot];
            }
        }
    }
    for row in (0..count).rev() {
        let known: f64 = (row + 1..count).map(|column| matrix[row][column] * side[column]).sum();
        side[row] = (side[row] - known) / matrix[row][row];
    }
    side
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_system_is_solved() {
        let solution = solved(vec![vec![4.0, 1.0], vec![1.0, 3.0]], vec![1.0, 2.0]);
        assert!((solution[0] - 1.0 / 11.0).abs() < 1e-12 && (solution[1] - 7.0 / 11.0).abs() < 1e-12);
    }
}
