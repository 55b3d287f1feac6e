//! Where the parameters were fitted, so that an answer outside says so.

use super::{
    layout::Stack,
    tables::{Case, Question},
};
use crate::hardware::Generation;
use std::collections::BTreeMap;

/// A range of what was fitted.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Range {
    low: f64,
    high: f64,
}

impl Range {
    const NONE: Range = Range { low: f64::INFINITY, high: f64::NEG_INFINITY };

    fn take(&mut self, value: f64) {
        self.low = self.low.min(value);
        self.high = self.high.max(value);
    }

    /// Within the range widened by `factor` on both sides.
    fn contains(&self, value: f64, factor: f64) -> bool {
        value >= self.low / factor && value <= self.high * factor
    }
}

/// What the fitted rows of one generation span.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spanned {
    parameters: Range,
    gpus: Range,
    sequence: Range,
    with_experts: bool,
    precisions: [bool; 5],
    stacks: [bool; Stack::ALL.len()],
}

/// What the fitted rows span, by generation.
pub struct Domain {
    by_generation: BTreeMap<Generation, Spanned>,
}

/// Answers are taken as inside up to this factor beyond the fitted range.
const WIDER: f64 = 2.0;

impl Domain {
    pub fn of(cases: &[Case]) -> Domain {
        let mut by_generation = BTreeMap::new();
        for case in cases.iter().filter(|case| case.current) {
            let question = &case.question;
            let spanned = by_generation.entry(question.machine.generation).or_insert(Spanned {
                parameters: Range::NONE,
                gpus: Range::NONE,
                sequence: Range::NONE,
                with_experts: false,
                precisions: [false; 5],
                stacks: [false; Stack::ALL.len()],
            });
            spanned.parameters.take(question.model.parameters());
            spanned.gpus.take(f64::from(question.layout.gpus));
            spanned.sequence.take(f64::from(question.layout.sequence));
            spanned.with_experts |= question.model.experts.is_some();
            spanned.precisions[question.layout.precision as usize] = true;
            spanned.stacks[question.layout.stack as usize] = true;
        }
        Domain { by_generation }
    }

    /// `None` inside; why the answer is an extrapolation; or why there is none.
    pub fn place(&self, question: &Question) -> Result<Option<String>, String> {
        let generation = question.machine.generation;
        let Some(spanned) = self.by_generation.get(&generation) else {
            return Err(format!("no published training on the generation {} was there to fit", generation.name()));
        };
        let mut outside = Vec::new();
        let mut look = |range: Range, value: f64, what: &str, unit: f64| {
            if !range.contains(value, WIDER) {
                outside.push(format!("{what} {:.3} outside {:.3} to {:.3}", value / unit, range.low / unit, range.high / unit));
            }
        };
        look(spanned.parameters, question.model.parameters(), "billions of parameters", 1e9);
        look(spanned.gpus, f64::from(question.layout.gpus), "GPUs", 1.0);
        look(spanned.sequence, f64::from(question.layout.sequence), "tokens of a sequence", 1.0);
        if question.model.experts.is_some() && !spanned.with_experts {
            outside.push(format!("no model of experts was fitted on {}", generation.name()));
        }
        if !spanned.precisions[question.layout.precision as usize] {
            outside.push(format!("{} was not fitted on {}", question.layout.precision.name(), generation.name()));
        }
        if !spanned.stacks[question.layout.stack as usize] {
            outside.push(format!("the software {} was not fitted on {}", question.layout.stack.name(), generation.name()));
        }
        Ok((!outside.is_empty()).then(|| outside.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::score;

    /// A100 has rows of Megatron-LM before it fused attention, none of Megatron-Core with CUDA graphs, which plans assume.
    #[test]
    fn software_that_was_not_fitted_on_a_generation_is_told() {
        let (cases, _) = score::training_cases(&[]);
        let domain = Domain::of(&cases);
        let of = |generation, stack| {
            let case = cases.iter().find(|case| case.current && case.question.machine.generation == generation).unwrap();
            let mut question = case.question.clone();
            question.layout.stack = stack;
            domain.place(&question).unwrap().unwrap_or_default()
        };
        let told = |generation, stack: Stack| of(generation, stack).contains(&format!("{} was not fitted", stack.name()));
        assert!(told(Generation::Ampere, Stack::Megatron));
        assert!(!told(Generation::Ampere, Stack::MegatronUnfused));
        assert!(!told(Generation::Hopper, Stack::Megatron));
    }
}
