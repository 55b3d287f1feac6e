//! Where the parameters of serving were fitted, so that an answer outside says so.

use super::{
    format::{CHIPS, chip},
    parameters::Engine,
    score,
};
use crate::hardware::Machine;
use std::collections::BTreeMap;

/// Answers count as inside up to this factor beyond the fitted sizes.
const WIDER: f64 = 2.0;

/// What the fitted rows span.
#[derive(Clone, Debug, PartialEq)]
pub struct ServingDomain {
    /// Smallest and largest number of weights that a token meets, by group of chips and engine.
    spans: BTreeMap<(usize, Engine), (f64, f64)>,
}

impl ServingDomain {
    pub fn shipped() -> ServingDomain {
        let mut spans: BTreeMap<(usize, Engine), (f64, f64)> = BTreeMap::new();
        for row in score::rows(&[]).rows.iter().filter(|row| !row.unstated) {
            let size = row.work.active_weights();
            let span = spans.entry((row.chip(), row.engine())).or_insert((size, size));
            *span = (span.0.min(size), span.1.max(size));
        }
        ServingDomain { spans }
    }

    /// Why an answer for a model of which a token meets so many weights lies outside of what was fitted, if it does.
    pub fn place(&self, active_weights: f64, machine: &Machine, engine: Engine) -> Option<String> {
        let group = chip(machine);
        match self.spans.get(&(group, engine)) {
            None => Some(format!("{} was fitted on other chips than {}", engine.name(), CHIPS[group])),
            Some((low, _)) if active_weights < low / WIDER => {
                Some(format!("{:.1} billion weights a token, at least {:.1} were fitted", active_weights / 1e9, low / 1e9))
            }
            Some((_, high)) if active_weights > high * WIDER => {
                Some(format!("{:.1} billion weights a token, at most {:.1} were fitted", active_weights / 1e9, high / 1e9))
            }
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardware::HardwareBook;

    #[test]
    fn what_was_not_fitted_is_told() {
        let domain = ServingDomain::shipped();
        let machine = |name: &str| HardwareBook::shipped().find(name).unwrap().machine;
        assert_eq!(domain.place(8e9, &machine("H100"), Engine::TensorRtCompiled), None);
        assert!(domain.place(8e9, &machine("L40S"), Engine::Vllm).unwrap().contains("ada"));
        assert!(domain.place(4e12, &machine("H100"), Engine::TensorRtCompiled).unwrap().contains("at most"));
        assert!(domain.place(1e7, &machine("H100"), Engine::TensorRtCompiled).unwrap().contains("at least"));
    }
}
