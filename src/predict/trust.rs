//! How far an answer is to be trusted: the error on published rows that the fit had not seen, of the kind of row that is nearest to the answer,
//! and whether the answer lies where parameters were fitted at all.
//!
//! Errors of trainings are those of `data/predict/held-out.csv`; those of serving stand in the file of its parameters.

use super::{
    answer::Trust,
    domain::Domain,
    layout::{Layout, Stack},
    score::{self, Stratum},
    serve::{Engine, ServingDomain, ServingParameters, ServingWork, tables::Measure},
    tables::{Case, Quantity, Question, Regime},
    transformer::Transformer,
};
use crate::hardware::{Generation, Gpu};
use std::collections::BTreeSet;

/// Fewer rows than that say nothing of a kind of row.
const FEWEST: usize = 5;

/// The error that stands beside an answer: of the rows with its GPU (where there are too few, of its regime) and of those with its precision the
/// larger.
fn error_of<'s>(strata: &'s [Stratum], gpu: &str, regime: Regime, precision: &str) -> Option<&'s Stratum> {
    let find = |dimension: &str, value: &str| {
        strata.iter().find(|row| row.dimension == dimension && row.value == value && row.rows >= FEWEST)
    };
    let places = [find("gpu", gpu).or_else(|| find("regime", regime.name())), find("precision", precision)];
    places.into_iter().flatten().max_by(|a, b| a.median.total_cmp(&b.median))
}

fn trust_of(row: &Stratum) -> Trust {
    Trust {
        regime: row.value.clone(),
        error: Some(row.median / 100.0),
        error_p90: Some(row.ninetieth / 100.0),
        rows: row.rows,
        extrapolated: Vec::new(),
    }
}

/// What servings are trusted by.
pub struct ServingTrust {
    domain: ServingDomain,
}

impl ServingTrust {
    pub fn shipped() -> ServingTrust {
        ServingTrust { domain: ServingDomain::shipped() }
    }

    /// Of one layout of a model: of its latencies the one with the larger error.
    pub fn of(&self, model: &Transformer, gpu: &Gpu, engine: Engine, draft_tokens: u32, parameters: &ServingParameters) -> Trust {
        let measures = [Measure::FirstToken, Measure::PerToken].into_iter();
        let errors = measures.filter_map(|measure| parameters.error(measure, &gpu.machine, engine));
        let worst = errors.max_by(|a, b| a.median_percent.total_cmp(&b.median_percent));
        let mut trust = worst.map_or_else(Trust::default, |error| {
            let words = [error.engine.as_str(), error.chip.as_str(), error.measure.name()];
            Trust {
                regime: words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" "),
                error: Some(error.median_percent / 100.0),
                error_p90: Some(error.ninetieth_percent / 100.0),
                rows: error.rows,
                extrapolated: Vec::new(),
            }
        });
        trust.extrapolated.extend(self.domain.place(ServingWork::of(model).active_weights(), &gpu.machine, engine));
        trust.extrapolated.extend(self.domain.drafting(&model.name, engine, draft_tokens));
        trust
    }
}

/// What trainings are trusted by.
pub struct TrainingTrust {
    strata: Vec<Stratum>,
    domain: Domain,
    /// What ran on the fitted rows of a generation.
    stacks: BTreeSet<(Generation, Stack)>,
}

impl TrainingTrust {
    pub fn shipped() -> TrainingTrust {
        let (cases, _) = score::training_cases(&[]);
        let stack = |case: &Case| (case.question.machine.generation, case.question.layout.stack);
        TrainingTrust {
            strata: score::shipped_strata(),
            domain: Domain::of(&cases),
            stacks: cases.iter().filter(|case| case.current).map(stack).collect(),
        }
    }

    /// Of one layout of a model.
    pub fn of(&self, model: &Transformer, gpu: &Gpu, layout: &Layout) -> Trust {
        let is_blackwell = gpu.machine.generation >= Generation::Blackwell;
        let regime = if is_blackwell || model.experts.is_some() { Regime::BlackwellOrExperts } else { Regime::Dense };
        let mut trust = error_of(&self.strata, &gpu.name, regime, layout.precision.name()).map_or_else(Trust::default, trust_of);
        let question = Question {
            model: model.clone(),
            machine: gpu.machine,
            layout: *layout,
            quantity: Quantity::TokensPerSecondPerGpu,
            tuned: false,
        };
        match self.domain.place(&question) {
            Ok(None) => {}
            Ok(Some(why)) => trust.extrapolated = why.split("; ").map(str::to_string).collect(),
            // Nothing of this generation was fitted: an error of others says nothing here.
            Err(why) => return Trust { extrapolated: vec![why], ..Trust::default() },
        }
        let generation = gpu.machine.generation;
        if !self.stacks.contains(&(generation, layout.stack)) {
            // Other software's error would say nothing of this one's.
            let why = format!("no run of this software ({}) on {} was there to fit", layout.stack.name(), generation.name());
            trust.extrapolated.push(why);
            return Trust { extrapolated: trust.extrapolated, ..Trust::default() };
        }
        trust
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hardware::HardwareBook,
        predict::{ModelBook, TrainingPrecision},
    };

    #[test]
    fn the_larger_error_of_the_nearest_kinds_of_row_speaks_for_an_answer() {
        let row = |dimension, value: &str, rows, median| Stratum {
            dimension,
            value: value.into(),
            rows,
            median,
            ninetieth: 3.0 * median,
            bias: 0.0,
        };
        let strata = [
            row("gpu", "h100", 50, 6.0),
            row("gpu", "h200", 1, 3.0),
            row("precision", "fp8", 40, 8.0),
            row("precision", "bf16", 90, 4.0),
            row("regime", Regime::Dense.name(), 200, 5.0),
        ];
        let of = |gpu: &str, precision: &str| error_of(&strata, gpu, Regime::Dense, precision).map(|row| row.median);
        assert_eq!([of("h100", "fp8"), of("h100", "bf16"), of("h200", "bf16")], [Some(8.0), Some(6.0), Some(5.0)]);
        assert_eq!(error_of(&[], "h100", Regime::Dense, "fp8"), None);
    }

    #[test]
    fn outside_of_what_was_fitted_an_answer_says_so() {
        let trust = TrainingTrust::shipped();
        let (hardware, models) = (HardwareBook::shipped(), ModelBook::shipped());
        let (h100, model) = (hardware.find("h100-sxm-80gb").unwrap(), models.find("llama-3.1-70b").unwrap());
        let layout = Layout { gpus: 64, tensor: 8, pipeline: 4, ..Layout::single(8192, 128, TrainingPrecision::Half) };
        let inside = trust.of(model, h100, &layout);
        assert!(inside.extrapolated.is_empty() && inside.error.is_some_and(|error| error > 0.0 && error < 0.5), "{inside:?}");
        let long = trust.of(model, h100, &Layout { sequence: 1 << 24, ..layout });
        assert!(!long.extrapolated.is_empty());
        let volta = trust.of(model, hardware.find("v100-sxm2-32gb").unwrap(), &layout);
        assert!(volta.error.is_none() && volta.extrapolated.len() == 1, "{volta:?}");
        let (a100, stack) = (hardware.find("a100-sxm-80gb").unwrap(), Stack::Megatron);
        let unseen = trust.of(model, a100, &Layout { stack, ..layout });
        assert!(unseen.error.is_none() && unseen.extrapolated.iter().any(|why| why.contains("megatron")), "{unseen:?}");
        let served = ServingTrust::shipped().of(model, h100, Engine::TensorRt, 0, &ServingParameters::shipped());
        assert!(served.error.is_some_and(|error| error > 0.0 && error < 1.0), "{served:?}");
    }
}
