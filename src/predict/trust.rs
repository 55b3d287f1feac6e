//! How far an answer is to be trusted: the error on published rows that the fit had not seen, of the kind of row that is nearest to the answer,
//! and whether the answer lies where parameters were fitted at all.
//!
//! Errors of trainings are those of `data/predict/held-out.csv`, those of serving those of `held-out-serving.csv`.

use super::{
    answer::{Alike, Trust},
    domain::Domain,
    layout::{Layout, Stack},
    score::{self, Stratum},
    serve::{self, Engine, ServedFormat, ServingDomain, ServingWork, tables::Measure},
    tables::{self, Case, Quantity, Question, Regime},
    transformer::Transformer,
};
use crate::hardware::{Generation, Gpu};
use std::collections::BTreeSet;

/// Fewer rows than that say nothing of a kind of row.
const FEWEST: usize = 5;

/// The same of a serving engine on a group of chips, whose runs scatter more.
const FEWEST_SERVED: usize = 20;

/// The errors of a kind of row, of which there are at least so many.
fn find<'s>(strata: &'s [Stratum], dimension: &str, value: &str, fewest: usize) -> Option<&'s Stratum> {
    strata.iter().find(|row| row.dimension == dimension && row.value == value && row.rows >= fewest)
}

/// The error that stands beside an answer: of the rows with its GPU (where there are too few, of its regime) and of those with its precision the
/// larger.
fn error_of<'s>(strata: &'s [Stratum], gpu: &str, regime: Regime, precision: &str) -> Option<&'s Stratum> {
    let find = |dimension, value| find(strata, dimension, value, FEWEST);
    let places = [find("gpu", gpu).or_else(|| find("regime", regime.name())), find("precision", precision)];
    places.into_iter().flatten().max_by(|a, b| a.median.total_cmp(&b.median))
}

fn trust_of(row: &Stratum) -> Trust {
    Trust {
        regime: row.value.clone(),
        error: Some(row.median / 100.0),
        error_p90: Some(row.ninetieth / 100.0),
        rows: row.rows,
        ..Trust::default()
    }
}

/// What became of published runs of this model, GPU and precision.
fn alike(strata: &[Stratum], model: &str, gpu: &str, precision: &str) -> Vec<Alike> {
    let group = score::of_group(&tables::group(model, gpu, precision), "");
    let of = |row: &Stratum| {
        let quantity = row.value.strip_prefix(&group).filter(|_| row.dimension == score::GROUP)?.to_string();
        Some(Alike { quantity, rows: row.rows, error: row.median / 100.0, bias: row.bias / 100.0 })
    };
    strata.iter().filter_map(of).collect()
}

/// What servings are trusted by.
pub struct ServingTrust {
    strata: Vec<Stratum>,
    domain: ServingDomain,
}

impl ServingTrust {
    pub fn shipped() -> ServingTrust {
        ServingTrust { strata: score::shipped_serving_strata(), domain: ServingDomain::shipped() }
    }

    /// The error of rows with this engine on these chips, or of all rows where there were too few of them to say.
    fn error(&self, measure: Measure, gpu: &Gpu, engine: Engine) -> Option<&Stratum> {
        let chips = serve::score::chips_of(engine, &gpu.machine, measure);
        find(&self.strata, serve::score::CHIPS_OF, &chips, FEWEST_SERVED)
            .or_else(|| find(&self.strata, "regime", &serve::score::regime(measure), FEWEST_SERVED))
    }

    /// Of one layout of a model: of its latencies the one with the larger error.
    pub fn of(&self, model: &Transformer, gpu: &Gpu, engine: Engine, format: ServedFormat, draft_tokens: u32) -> Trust {
        let errors = [Measure::FirstToken, Measure::PerToken].into_iter().filter_map(|measure| self.error(measure, gpu, engine));
        let worst = errors.max_by(|a, b| a.median.total_cmp(&b.median));
        let mut trust = worst.map_or_else(Trust::default, trust_of);
        trust.alike = alike(&self.strata, &model.name, &gpu.name, format.name());
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
        trust.alike = alike(&self.strata, &model.name, &gpu.name, layout.precision.name());
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
    fn published_runs_of_the_same_model_gpu_and_precision_stand_beside_an_answer() {
        let (hardware, models) = (HardwareBook::shipped(), ModelBook::shipped());
        let (h100, b200) = (hardware.find("h100-sxm-80gb").unwrap(), hardware.find("b200").unwrap());
        let quantities = |trust: Trust| {
            assert!(trust.alike.iter().all(|of| of.rows > 0 && of.bias.abs() <= of.error), "{trust:?}");
            trust.alike.into_iter().map(|of| of.quantity).collect::<Vec<_>>()
        };
        let trained = TrainingTrust::shipped();
        let of = |model: &str| {
            let layout = Layout { gpus: 64, tensor: 4, ..Layout::single(8192, 128, TrainingPrecision::Half) };
            quantities(trained.of(models.find(model).unwrap(), h100, &layout))
        };
        assert_eq!(of("llama-3.1-70b"), ["tokens/s/GPU"]);
        assert_eq!(of("gpt-1.7b"), [""; 0]);
        let served = ServingTrust::shipped();
        let of =
            |gpu: &Gpu, format| quantities(served.of(models.find("llama-3.1-70b").unwrap(), gpu, Engine::TensorRt, format, 0));
        for measure in [Measure::FirstToken, Measure::PerToken] {
            assert!(of(b200, ServedFormat::Fp8).iter().any(|quantity| quantity == measure.name()));
        }
        assert_eq!(of(hardware.find("v100-sxm2-32gb").unwrap(), ServedFormat::Fp8), [""; 0]);
    }

    #[test]
    fn few_rows_of_an_engine_on_its_chips_leave_the_word_to_all_rows() {
        let row = |dimension, value: String, rows| Stratum { dimension, value, rows, median: 9.0, ninetieth: 20.0, bias: 1.0 };
        let hardware = HardwareBook::shipped();
        let h100 = hardware.find("h100-sxm-80gb").unwrap();
        let of = |engine| serve::score::chips_of(engine, &h100.machine, Measure::PerToken);
        let strata = vec![
            row(serve::score::CHIPS_OF, of(Engine::Vllm), 30),
            row(serve::score::CHIPS_OF, of(Engine::Sglang), 19),
            row("regime", serve::score::regime(Measure::PerToken), 2000),
        ];
        let trust = ServingTrust { strata, domain: ServingDomain::shipped() };
        let rows = |measure, engine| trust.error(measure, h100, engine).map(|row| row.rows);
        assert_eq!(rows(Measure::PerToken, Engine::Vllm), Some(30));
        assert_eq!(rows(Measure::PerToken, Engine::Sglang), Some(2000));
        assert_eq!(rows(Measure::Throughput, Engine::Vllm), None);
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
        let served = ServingTrust::shipped().of(model, h100, Engine::TensorRt, ServedFormat::Fp8, 0);
        assert!(served.error.is_some_and(|error| error > 0.0 && error < 1.0), "{served:?}");
    }
}
