//! From a plan file and the books to an answer: names become shapes, GPUs and prices.

use super::{
    answer::Answer,
    layout::TrainingPrecision,
    models::ModelBook,
    parameters::Parameters,
    plan_file::{ExpertWords, Known, ModelWords, Plan, Work},
    price::gpu_prices,
    sensitivity,
    serve::{Engine, ServedFormat, ServingParameters},
    serving::{ENGINES, KV_CACHES, ServingQuestion, serving_answer},
    training::{self, TrainingQuestion},
    transformer::{Attention, Dense, Experts, Transformer},
    trust::{ServingTrust, TrainingTrust},
};
use crate::{
    cost::PriceBook,
    hardware::{Gpu, HardwareBook},
};

/// All that is known beside the plan.
pub struct Books {
    pub hardware: HardwareBook,
    pub models: ModelBook,
    pub prices: PriceBook,
    pub parameters: Parameters,
    pub serving: ServingParameters,
}

/// Why a plan that reads well cannot be answered.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    #[error("`{key}` of the shape `{shape}` cannot be changed: it mixes kinds of layers")]
    MixedShape { key: &'static str, shape: String },
    #[error("{kv_heads} `kv_heads` do not divide {heads} `heads`")]
    Heads { heads: u32, kv_heads: u32 },
    #[error("`dense_layers` cannot be {dense}: the model has {layers} layers")]
    DenseLayers { dense: u32, layers: u32 },
    #[error("the graph of `{scenario}` is answered by `graph_answer`, with its programs counted")]
    Graph { scenario: String },
}

impl Books {
    pub fn shipped() -> Books {
        Books {
            hardware: HardwareBook::shipped(),
            models: ModelBook::shipped(),
            prices: PriceBook::shipped(),
            parameters: Parameters::shipped(),
            serving: ServingParameters::shipped(),
        }
    }

    /// Hands `run` the names that a plan file may use.
    pub fn known<T>(&self, run: impl FnOnce(&Known) -> T) -> T {
        let models: Vec<&str> = self.models.models.iter().map(|model| model.name.as_str()).collect();
        let predicting = self.models.models.iter().filter(|model| model.prediction_layers > 0);
        let predicting_models: Vec<&str> = predicting.map(|model| model.name.as_str()).collect();
        let gpus: Vec<Vec<&str>> = self.hardware.gpus.iter().map(names).collect();
        let gpus: Vec<&[&str]> = gpus.iter().map(Vec::as_slice).collect();
        let precisions = TrainingPrecision::ALL.map(TrainingPrecision::name);
        let instances = self.prices.names();
        run(&Known {
            models: &models,
            spelt: &|text| self.models.find(text).map(|model| model.name.as_str()),
            predicting_models: &predicting_models,
            gpus: &gpus,
            precisions: &precisions,
            weights: &ServedFormat::ALL.map(ServedFormat::name),
            kv_caches: &KV_CACHES.map(|(name, _)| name),
            engines: &ENGINES.map(Engine::name),
            instances: &instances,
        })
    }
}

/// Its name, then its aliases.
fn names(gpu: &Gpu) -> Vec<&str> {
    std::iter::once(gpu.name.as_str()).chain(gpu.aliases.iter().map(String::as_str)).collect()
}

/// The answer with what moves it.
pub fn answer_plan(plan: &Plan, books: &Books) -> Result<Answer, PlanError> {
    if let Some(scenario) = &plan.model.scenario {
        return Err(PlanError::Graph { scenario: scenario.clone() });
    }
    let model = transformer_of(&plan.model, &books.models)?;
    let gpus: Vec<Gpu> = plan.machines.iter().map(|machine| books.hardware.gpus[machine.gpu].clone()).collect();
    let prices = gpu_prices(plan, &gpus, &books.prices);
    match &plan.work {
        Work::Train(work) => {
            let precisions: Vec<TrainingPrecision> = work.precisions.iter().map(|place| TrainingPrecision::ALL[*place]).collect();
            let trust = TrainingTrust::shipped();
            let question = TrainingQuestion {
                plan,
                work,
                model: &model,
                precisions: &precisions,
                gpus: &gpus,
                prices: &prices,
                parameters: &books.parameters,
                trust: &trust,
            };
            let mut answer = training::training_answer(&question);
            answer.swings = sensitivity::swings(&question, &answer);
            Ok(answer)
        }
        Work::Graph(_) => unreachable!("its model is a scenario: answered above"),
        Work::Serve(work) => {
            let fitted = &books.serving;
            let draft_acceptance = work.draft_acceptance.unwrap_or(fitted.draft_acceptance);
            Ok(serving_answer(&ServingQuestion {
                plan,
                work,
                model: &model,
                gpus: &gpus,
                prices: &prices,
                parameters: &ServingParameters { draft_acceptance, ..fitted.clone() },
                trust: &ServingTrust::shipped(),
            }))
        }
    }
}

/// The model that a file's words mean.
pub fn transformer_of(words: &ModelWords, book: &ModelBook) -> Result<Transformer, PlanError> {
    let mut model = match words.shape.as_deref().and_then(|name| book.find(name)) {
        Some(model) => model.clone(),
        None => blank(),
    };
    let is_plain = model.window_layers == 0 && model.recurrent.is_none() && model.attention.latent.is_none();
    let plain = |key: &'static str, given: bool| match given && !is_plain {
        true => Err(PlanError::MixedShape { key, shape: model.name.clone() }),
        false => Ok(()),
    };
    plain("layers", words.layers.is_some())?;
    plain("heads", words.heads.is_some() || words.kv_heads.is_some() || words.head_size.is_some())?;
    let layers = words.layers.unwrap_or(model.attention_layers);
    if words.layers.is_some() {
        model.attention_layers = layers;
        match &mut model.experts {
            Some(experts) => experts.layers = layers.saturating_sub(model.dense.layers),
            None => model.dense.layers = layers,
        }
    }
    model.hidden = words.hidden.unwrap_or(model.hidden);
    let old = model.attention;
    let heads = words.heads.unwrap_or(old.heads);
    // Heads of a shape whose number changes have keys and values of their own unless the file says otherwise.
    let kv_heads = words.kv_heads.unwrap_or(if words.heads.is_some() { heads } else { old.key_value_heads });
    if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(PlanError::Heads { heads, kv_heads });
    }
    let is_changed = words.hidden.is_some() || words.heads.is_some();
    let head_size = words.head_size.unwrap_or(if is_changed { model.hidden / heads } else { old.head_size });
    model.attention = Attention { heads, key_value_heads: kv_heads, head_size, ..old };
    model.dense.width = words.feed_forward.unwrap_or(model.dense.width);
    model.gated = words.gated.unwrap_or(model.gated);
    model.vocabulary = words.vocabulary.unwrap_or(model.vocabulary);
    model.tied = words.tied_embeddings.unwrap_or(model.tied);
    model.prediction_layers = words.prediction_layers.unwrap_or(model.prediction_layers);
    if let Some(experts) = words.experts {
        let all = model.attention_layers + model.window_layers;
        if experts.dense_layers >= all {
            return Err(PlanError::DenseLayers { dense: experts.dense_layers, layers: all });
        }
        model.experts = Some(experts_of(experts, &model, all));
        model.dense.layers = experts.dense_layers;
    }
    Ok(model)
}

fn experts_of(words: ExpertWords, model: &Transformer, layers: u32) -> Experts {
    let width = words.feed_forward.unwrap_or(model.dense.width);
    Experts {
        layers: layers - words.dense_layers,
        count: words.count,
        active: words.active,
        width,
        shared_width: words.shared * width,
        latent: 0,
    }
}

/// A plain gated transformer without any size.
fn blank() -> Transformer {
    Transformer {
        name: "own".into(),
        aliases: Vec::new(),
        hidden: 0,
        attention: Attention { heads: 0, key_value_heads: 0, head_size: 0, latent: None, gated: false },
        attention_layers: 0,
        window_layers: 0,
        window: 0,
        recurrent: None,
        dense: Dense { layers: 0, width: 0 },
        experts: None,
        gated: true,
        vocabulary: 0,
        tied: false,
        positions: 0,
        biased: false,
        prediction_layers: 0,
        source: "the plan file".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_known_by_every_spelling_of_the_book() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spelt.toml");
        let books = Books::shipped();
        for (text, name) in
            [("glm-5", "glm-5"), ("GLM-5", "glm-5"), ("LLAMA3_8B", "llama-3.1-8b"), ("openai/gpt-oss-120b", "gpt-oss-120b")]
        {
            let plan = format!(
                "name = \"x\"\n[model]\nshape = \"{text}\"\n[serve]\nrequests_per_s = 1\ninput_tokens = 100\noutput_tokens = 100\n\
                 [[machines]]\ngpu = \"b200\"\ngpus = 8\n"
            );
            std::fs::write(&path, plan).unwrap();
            let read = books.known(|known| Plan::load(&path, known)).unwrap_or_else(|found| panic!("{text}: {found:?}"));
            assert_eq!(read.model.shape.as_deref(), Some(name));
        }
    }
}
