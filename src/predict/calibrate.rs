//! Fitting the parameters to published rows, and the error on rows that a fit has not seen.
//!
//! The loss is the Huber loss (Huber, Ann. Math. Statist. 35(1), 1964) of the logarithm of predicted over published: symmetric in too fast and too
//! slow, and deaf to how far a broken row lies off. A group of many rows counts as the root of their number, so that one long table does not rule.
//! A weak pull towards the values before any fit decides what the rows leave open. The search goes along one figure at a time, in steps that
//! grow after success and shrink after failure (Hooke and Jeeves, J. ACM 8(2), 1961): no derivatives, no chance, the same answer always.

use super::{
    layout::Stack,
    parameters::{GENERATION_KNOBS, OfGeneration, Parameters, Place, STACK_KNOBS},
    tables::{Case, by_group},
};
use crate::hardware::Generation;

/// Errors above this count linearly.
const HUBER: f64 = 0.06;

/// Strength of the pull towards the starting values, for one knob moved by its own logarithm.
const PULL: f64 = 0.02;

/// How much stronger it is for the shares of the tensor cores' peaks: libraries' large products are measured everywhere, and reach 70 to 80 % of
/// the sheet's figure in 16 and 8 bits.
const FIRM: f64 = 20.0;

/// The step at which the search stops, as a share of a figure.
const FINEST: f64 = 0.002;

/// 60 ended short of where fits to the shipped tables stand still.
const MOST_ROUNDS: usize = 400;

/// Folds of whole groups.
pub const FOLDS: usize = 24;

/// The figures that these cases speak of.
fn places(cases: &[&Case]) -> Vec<Place> {
    let mut places = Vec::new();
    for generation in Generation::ALL {
        if cases.iter().any(|case| case.question.machine.generation == generation) {
            places.extend((0..GENERATION_KNOBS.len()).map(|at| Place::Generation(generation, at)));
        }
    }
    for stack in Stack::ALL {
        if cases.iter().any(|case| case.question.layout.stack == stack) {
            places.extend((0..STACK_KNOBS.len()).map(|at| Place::Stack(stack, at)));
        }
    }
    places
}

fn speaks_of(case: &Case, place: Place) -> bool {
    match place {
        Place::Generation(generation, _) => case.question.machine.generation == generation,
        Place::Stack(stack, _) => case.question.layout.stack == stack,
    }
}

fn huber(error: f64) -> f64 {
    let size = error.abs();
    if size <= HUBER { error * error / 2.0 } else { HUBER * (size - HUBER / 2.0) }
}

/// How far a figure lies from where it started: as a logarithm where it is a rate or a time, as it is where 0 is in its range.
fn moved(place: Place, value: f64) -> f64 {
    let knob = place.knob();
    if knob.low > 0.0 { (value / knob.start).ln() } else { (value - knob.start) / (knob.high - knob.low) }
}

/// Fits the figures to the cases, from where `start` has them.
pub fn fit(cases: &[&Case], start: &Parameters) -> Parameters {
    let mut parameters = start.clone();
    let places = places(cases);
    let mut weights = vec![0.0; cases.len()];
    let owned: Vec<Case> = cases.iter().map(|case| (*case).clone()).collect();
    for rows in by_group(&owned).values() {
        for row in rows {
            weights[*row] = 1.0 / (rows.len() as f64).sqrt();
        }
    }
    let error = |at: usize, parameters: &Parameters| {
        let case = cases[at];
        let ratio = case.question.predicted(parameters) / case.published;
        weights[at] * huber(if ratio > 0.0 { ratio.ln() } else { 10.0 })
    };
    let pull = |place: Place, value: f64| {
        let peak = matches!(place, Place::Generation(_, at) if at <= OfGeneration::Fp4 as usize);
        PULL * if peak { FIRM } else { 1.0 } * huber(moved(place, value))
    };
    let mut errors: Vec<f64> = (0..cases.len()).map(|at| error(at, &parameters)).collect();
    let touched: Vec<Vec<usize>> =
        places.iter().map(|place| (0..cases.len()).filter(|at| speaks_of(cases[*at], *place)).collect()).collect();
    let mut steps = vec![0.2; places.len()];
    for _ in 0..MOST_ROUNDS {
        let mut better = false;
        for (which, place) in places.iter().enumerate() {
            let knob = place.knob();
            let now = parameters.get(*place);
            let before: f64 = touched[which].iter().map(|at| errors[*at]).sum::<f64>() + pull(*place, now);
            let mut found = false;
            for direction in [1.0, -1.0] {
                let step: f64 = steps[which] * direction;
                let next = if knob.low > 0.0 { now * step.exp() } else { now + step * (knob.high - knob.low) };
                let next = next.clamp(knob.low, knob.high);
                if next == now {
                    continue;
                }
                parameters.set(*place, next);
                let trial: Vec<f64> = touched[which].iter().map(|at| error(*at, &parameters)).collect();
                if trial.iter().sum::<f64>() + pull(*place, next) < before - 1e-12 {
                    for (at, value) in touched[which].iter().zip(trial) {
                        errors[*at] = value;
                    }
                    found = true;
                    break;
                }
                parameters.set(*place, now);
            }
            steps[which] = if found { (steps[which] * 1.5).min(0.5) } else { steps[which] * 0.5 };
            better |= found;
        }
        if !better && steps.iter().all(|step| *step < FINEST) {
            break;
        }
    }
    parameters
}

/// The fold of every case: whole groups, in the order of a hash of their names, so that no order of tables matters.
pub fn folds(cases: &[Case], count: usize) -> Vec<usize> {
    let groups = by_group(cases);
    let mut names: Vec<(&str, u64)> = groups.keys().map(|name| (*name, fnv(name))).collect();
    names.sort_by_key(|(_, hash)| *hash);
    let mut folds = vec![0; cases.len()];
    for (at, (name, _)) in names.iter().enumerate() {
        for case in &groups[name] {
            folds[*case] = at % count;
        }
    }
    folds
}

/// FNV-1a (Fowler, Noll, Vo), 64 bits.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The fit of each fold: to the current cases of all the others.
pub fn fits(cases: &[Case], fold_of: &[usize], count: usize, start: &Parameters) -> Vec<Parameters> {
    let one = &|fold: usize| {
        let seen: Vec<&Case> =
            cases.iter().zip(fold_of).filter(|(case, of)| **of != fold && case.current).map(|(case, _)| case).collect();
        fit(&seen, start)
    };
    // As many threads as there are cores: fits share nothing but what they read.
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(count);
    let mut fits = vec![start.clone(); count];
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..cores)
            .map(|core| scope.spawn(move || (core..count).step_by(cores).map(|fold| (fold, one(fold))).collect::<Vec<_>>()))
            .collect();
        for thread in running {
            for (fold, fitted) in thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
                fits[fold] = fitted;
            }
        }
    });
    fits
}
