//! Where the parameters of serving were fitted, so that an answer outside says so.

use super::{
    format::{CHIPS, chip},
    parameters::Engine,
    score,
};
use crate::hardware::Machine;
use std::collections::{BTreeMap, BTreeSet};

/// Answers count as inside up to this factor beyond the fitted sizes.
const WIDER: f64 = 2.0;

/// What the fitted rows span.
#[derive(Clone, Debug, PartialEq)]
pub struct ServingDomain {
    /// Smallest and largest number of weights that a token meets, by group of chips and engine.
    spans: BTreeMap<(usize, Engine), (f64, f64)>,
    /// Models and engines that proposed tokens, with how many a step.
    drafts: BTreeMap<(String, Engine), BTreeSet<u32>>,
}

impl ServingDomain {
    pub fn shipped() -> ServingDomain {
        let mut spans: BTreeMap<(usize, Engine), (f64, f64)> = BTreeMap::new();
        let mut drafts: BTreeMap<(String, Engine), BTreeSet<u32>> = BTreeMap::new();
        for row in score::rows(&[]).rows.iter().filter(|row| !row.unstated) {
            let size = row.work.active_weights();
            let span = spans.entry((row.chip(), row.engine())).or_insert((size, size));
            *span = (span.0.min(size), span.1.max(size));
            if row.draft_tokens() > 0 {
                drafts.entry((row.model().to_string(), row.engine())).or_default().insert(row.draft_tokens());
            }
        }
        ServingDomain { spans, drafts }
    }

    /// Why an answer with so many proposed tokens a step lies outside of what was fitted, if it does.
    pub fn drafting(&self, model: &str, engine: Engine, tokens: u32) -> Option<String> {
        if tokens == 0 {
            return None;
        }
        let list = |counts: &BTreeSet<u32>| counts.iter().map(u32::to_string).collect::<Vec<_>>().join(" and ");
        match self.drafts.get(&(model.to_string(), engine)) {
            Some(counts) if counts.contains(&tokens) => None,
            Some(counts) => Some(format!("{tokens} draft tokens a step, {} were fitted", list(counts))),
            None => {
                let on: BTreeSet<String> =
                    self.drafts.keys().map(|(model, engine)| format!("{model} with {}", engine.name())).collect();
                let on = on.into_iter().collect::<Vec<_>>().join(" and ");
                Some(format!("draft tokens were fitted on {on} alone, and how often they are accepted hangs on model and texts"))
            }
        }
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

    #[test]
    fn proposed_tokens_of_other_models_and_engines_than_were_fitted_are_told() {
        let domain = ServingDomain::shipped();
        assert_eq!(domain.drafting("deepseek-v3", Engine::TensorRt, 0), None);
        assert_eq!(domain.drafting("deepseek-v3", Engine::TensorRt, 3), None);
        assert!(domain.drafting("deepseek-v3", Engine::TensorRt, 5).unwrap().contains("1 and 3 were fitted"));
        assert!(domain.drafting("deepseek-v3", Engine::Sglang, 3).unwrap().contains("deepseek-v3 with tensorrt-llm"));
        assert!(domain.drafting("qwen3.5-27b", Engine::TensorRt, 1).unwrap().contains("alone"));
    }
}
