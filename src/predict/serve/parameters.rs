//! The fitted parameters of serving: efficiencies by group of chips, costs by engine, and a few that hold everywhere.
//!
//! Each has a physical meaning, a starting value that says what one would expect, and a width: the fit pays for every step away from it
//! (`calibrate`). None belongs to a model, a layout or a row. `data/predict/serving.toml` holds the fitted values.

use super::format::CHIPS;
use crate::input::{self, Diagnostic, Field, Interval, Kind, Need, Shape, Source};

/// Software that serves: generations of it that the tables name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Engine {
    /// TensorRT-LLM with compiled engines (up to 0.17).
    TensorRtCompiled,
    /// The release candidates of TensorRT-LLM 1.0, served.
    TensorRtCandidate,
    /// TensorRT-LLM on PyTorch.
    TensorRt,
    Vllm,
    Sglang,
}

impl Engine {
    pub const ALL: [Engine; 5] = [Self::TensorRtCompiled, Self::TensorRtCandidate, Self::TensorRt, Self::Vllm, Self::Sglang];

    pub const fn name(self) -> &'static str {
        match self {
            Self::TensorRtCompiled => "tensorrt-llm-compiled",
            Self::TensorRtCandidate => "tensorrt-llm-1.0-candidate",
            Self::TensorRt => "tensorrt-llm",
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
        }
    }

    pub fn named(name: &str) -> Option<Engine> {
        let name = name.to_lowercase();
        if name == "trtllm" {
            return Some(Self::TensorRt);
        }
        Self::ALL.into_iter().find(|engine| engine.name() == name)
    }

    /// Whether a request takes the cache of its longest length when it begins (no eviction), or block by block as it grows
    /// (PagedAttention, arXiv 2309.06180).
    pub(super) const fn reserves_whole(self) -> bool {
        matches!(self, Self::TensorRtCompiled | Self::TensorRtCandidate | Self::TensorRt)
    }
}

/// What an engine costs besides the work itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EngineCosts {
    /// Launches of one block, seconds.
    pub block: f64,
    /// The host's part of launching one block that is not captured as a graph, as those of steps with prompts are not, seconds.
    pub eager_block: f64,
    /// Scheduling and sampling of a step, seconds.
    pub step: f64,
    /// And of each sequence in it, seconds.
    pub sequence: f64,
    /// From the arrival of a request to its prompt's first kernel and back, seconds.
    pub request: f64,
    /// Share of all requests that arrive together at the start of a run with a fixed number of users.
    pub burst: f64,
    /// What a prompt adds to a step of a live server over what its work alone would.
    pub prompt: f64,
    /// Tokens that are made before the first is sent.
    pub held_tokens: f64,
}

/// All parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct ServingParameters {
    /// Share of the memory's peak rate that kernels reach, by group of chips.
    pub memory: [f64; CHIPS.len()],
    /// Share of the peak of the 16-bit units that large matrix products reach, by group of chips.
    pub products: [f64; CHIPS.len()],
    /// The same share of 8-bit products over that of 16-bit ones, and of 4-bit ones over that of 8-bit ones.
    pub products_8_bit: f64,
    pub products_4_bit: f64,
    /// Products of 8-bit floats with a scale for each block over those with one scale.
    pub products_block: f64,
    /// Rows that a matrix product costs besides its own: ramp and tail of its tiles.
    pub product_rows: f64,
    /// Rate of reading the cache over that of other memory.
    pub cache_reading: f64,
    /// Share of the peak of the 16-bit units that attention over a prompt reaches.
    pub prompt_attention: f64,
    /// Share of what products reach that low-rank attention reaches when it decodes.
    pub latent_attention: f64,
    /// Launches that a layer of low-rank attention takes besides those of a block, seconds.
    pub latent_layer: f64,
    /// Products of experts over dense ones, in compiled engines and on PyTorch.
    pub experts_compiled: f64,
    pub experts: f64,
    /// Rows of one expert at which its products reach half of that.
    pub expert_rows: f64,
    /// How evenly tokens choose among experts: the shape of the gamma distribution that their shares are drawn from; large where all are met
    /// alike.
    pub expert_evenness: f64,
    /// Choosing, sorting and launching experts, seconds a layer.
    pub expert_layer: f64,
    /// What that takes besides where experts have a scale for each block, which are made and applied by kernels of their own.
    pub expert_layer_block: f64,
    /// The host's part of launching a layer of low-rank attention that is not captured as a graph, besides that of a block, seconds.
    pub latent_eager: f64,
    /// Each of the two exchanges around experts, seconds.
    pub expert_exchange: f64,
    /// Chance that a proposed token is accepted, given that those before it were.
    pub draft_acceptance: f64,
    /// Latency of a reduction among two GPUs, seconds, and the share of the link's rate that it reaches; NVLink and PCIe.
    pub nvlink_latency: f64,
    pub nvlink_rate: f64,
    pub pcie_latency: f64,
    pub pcie_rate: f64,
    /// Times that the hidden state of a token passes memory in a block besides matrix products.
    pub element_passes: f64,
    /// Sending a cache from the machines of prompts to those that decode, seconds a request.
    pub cache_transfer: f64,
    /// Share of the steps of a group of replies for which the first token waits.
    pub first_group: f64,
    /// What taking in a request costs the process that does it for all, seconds: those that come together wait for each other there.
    pub reception: f64,
    /// In the order of `Engine::ALL`.
    pub engines: [EngineCosts; Engine::ALL.len()],
}

/// A parameter's place in the fit.
#[derive(Clone, Debug, PartialEq)]
pub struct Prior {
    pub name: String,
    /// What one would expect before any measurement.
    pub start: f64,
    /// Standard deviation of the logarithm around it.
    pub width: f64,
    /// Bound that has no sense to pass (a share of a peak).
    pub most: f64,
}

/// All parameters in the order of the vector that is fitted.
pub fn priors() -> Vec<Prior> {
    let prior = |name: String, start: f64, width: f64, most: f64| Prior { name, start, width, most };
    let mut all = Vec::new();
    for chip in CHIPS {
        all.push(prior(format!("memory-{chip}"), 0.77, 0.2, 0.97));
        all.push(prior(format!("products-{chip}"), 0.65, 0.3, 0.95));
    }
    let none = f64::INFINITY;
    for (name, start, width, most) in [
        ("products-8-bit", 0.9, 0.3, none),
        ("products-4-bit", 0.7, 0.4, none),
        ("products-block", 0.8, 0.3, none),
        ("product-rows", 32.0, 0.8, none),
        ("cache-reading", 0.9, 0.3, 1.0),
        ("prompt-attention", 0.45, 0.4, 0.95),
        ("latent-attention", 0.5, 0.5, 1.0),
        ("latent-layer", 10e-6, 0.8, none),
        ("experts-compiled", 0.6, 0.4, 1.0),
        ("experts", 0.6, 0.4, 1.0),
        ("expert-rows", 64.0, 0.8, none),
        ("expert-evenness", 4.0, 1.0, none),
        ("expert-layer", 30e-6, 0.8, none),
        ("expert-layer-block", 20e-6, 0.8, none),
        ("latent-eager", 300e-6, 0.8, none),
        ("expert-exchange", 20e-6, 0.7, none),
        ("draft-acceptance", 0.6, 0.3, 0.95),
        ("nvlink-latency", 8e-6, 0.5, none),
        ("nvlink-rate", 0.6, 0.4, 1.0),
        ("pcie-latency", 20e-6, 0.6, none),
        ("pcie-rate", 0.5, 0.5, 1.0),
        ("element-passes", 12.0, 0.6, none),
        ("cache-transfer", 0.1, 1.0, none),
        ("first-group", 0.5, 0.5, 1.0),
        ("reception", 2e-3, 0.8, none),
    ] {
        all.push(prior(name.to_string(), start, width, most));
    }
    for engine in Engine::ALL {
        let name = engine.name();
        let request = if engine == Engine::TensorRtCandidate { 0.1 } else { 0.02 };
        for (what, start, width) in [
            ("block", 28e-6, 0.7),
            ("eager-block", 150e-6, 0.8),
            ("step", 0.8e-3, 0.8),
            ("sequence", 4e-6, 1.0),
            ("request", request, 1.0),
            // Ten requests a user in the runs of the public benchmark (`recipes`).
            ("burst", 0.1, if matches!(engine, Engine::TensorRt | Engine::Vllm | Engine::Sglang) { 0.15 } else { 0.7 }),
            ("prompt", 1.1, 0.3),
            ("held-tokens", 1.0, 1.0),
        ] {
            all.push(prior(format!("{name}-{what}"), start, width, none));
        }
    }
    all
}

impl ServingParameters {
    /// From values in the order of `priors`.
    pub fn of(values: &[f64]) -> ServingParameters {
        let priors = priors();
        assert_eq!(values.len(), priors.len(), "one value for each parameter");
        let mut values = values.iter().zip(&priors).map(|(value, prior)| value.min(prior.most));
        let mut next = || values.next().expect("as many as priors");
        let (mut memory, mut products) = ([0.0; CHIPS.len()], [0.0; CHIPS.len()]);
        for (memory, products) in memory.iter_mut().zip(&mut products) {
            (*memory, *products) = (next(), next());
        }
        ServingParameters {
            memory,
            products,
            products_8_bit: next(),
            products_4_bit: next(),
            products_block: next(),
            product_rows: next(),
            cache_reading: next(),
            prompt_attention: next(),
            latent_attention: next(),
            latent_layer: next(),
            experts_compiled: next(),
            experts: next(),
            expert_rows: next(),
            expert_evenness: next(),
            expert_layer: next(),
            expert_layer_block: next(),
            latent_eager: next(),
            expert_exchange: next(),
            draft_acceptance: next(),
            nvlink_latency: next(),
            nvlink_rate: next(),
            pcie_latency: next(),
            pcie_rate: next(),
            element_passes: next(),
            cache_transfer: next(),
            first_group: next(),
            reception: next(),
            engines: std::array::from_fn(|_| EngineCosts {
                block: next(),
                eager_block: next(),
                step: next(),
                sequence: next(),
                request: next(),
                burst: next(),
                prompt: next(),
                held_tokens: next(),
            }),
        }
    }

    pub fn engine(&self, engine: Engine) -> &EngineCosts {
        &self.engines[Engine::ALL.iter().position(|one| *one == engine).expect("all engines stand in `ALL`")]
    }

    /// The values that come with the program.
    pub fn shipped() -> ServingParameters {
        let source = Source::new("data/predict/serving.toml", include_str!("../../../data/predict/serving.toml"));
        Self::read(&source).unwrap_or_else(|found| panic!("{}", input::render(&found)))
    }

    /// From a file of `[[parameter]]` tables with `name` and `value`: every parameter once.
    pub fn read(source: &Source) -> Result<ServingParameters, Vec<Diagnostic>> {
        input::parse(source, &FILE, |file, report| {
            let mut found = std::collections::BTreeMap::new();
            for table in file.tables("parameter").unwrap_or_default() {
                let (Some(name), Some(value)) = (table.text("name"), table.number("value")) else { continue };
                if !priors().iter().any(|prior| prior.name == name) {
                    report.add(table.span("name"), format!("no parameter is called `{name}`"));
                }
                if found.insert(name.to_string(), value).is_some() {
                    report.add(table.span("name"), format!("`{name}` stands twice"));
                }
            }
            let missing: Vec<String> =
                priors().into_iter().map(|prior| prior.name).filter(|name| !found.contains_key(name)).collect();
            if let Some(first) = missing.first() {
                report.add(file.span("parameter"), format!("{} parameters are missing, first of them `{first}`", missing.len()));
            }
            let values: Vec<f64> = priors().iter().map(|prior| found.get(&prior.name).copied().unwrap_or(prior.start)).collect();
            ServingParameters::of(&values)
        })
    }
}

/// The file of such values.
pub fn written(values: &[f64]) -> String {
    let mut text = "# Fitted parameters of serving, SI units: `advisor plan calibrate --serving` writes this file. docs/plan-serving.md says what\n\
                    # each means.\n"
        .to_string();
    for (prior, value) in priors().iter().zip(values) {
        text += &format!("\n[[parameter]]\nname = \"{}\"\nvalue = {:.4e}\n", prior.name, value.min(prior.most));
    }
    text
}

const REQUIRED: Need = Need::Required { example: "" };

const fn field(name: &'static str, about: &'static str, kind: Kind, need: Need) -> Field {
    Field { name, about, kind, need }
}

static FILE: Shape = Shape {
    fields: &[field(
        "parameter",
        "Parameters of serving",
        Kind::List { of: &Kind::Table(&PARAMETER), least: 1, most: 1000, bare: false, distinct: false },
        REQUIRED,
    )],
    exclusive: &[],
};

static PARAMETER: Shape = Shape {
    fields: &[
        field("name", "Name", Kind::TEXT, REQUIRED),
        field("value", "Value, SI units", Kind::Number(Interval::above(0.0, f64::INFINITY)), REQUIRED),
    ],
    exclusive: &[],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let values: Vec<f64> = priors().iter().enumerate().map(|(at, prior)| prior.start * (1.0 + 0.001 * at as f64)).collect();
        let text = written(&values);
        let read = ServingParameters::read(&Source::new("x.toml", &text)).unwrap();
        let meant = ServingParameters::of(&values);
        assert!((read.engines[4].held_tokens / meant.engines[4].held_tokens - 1.0).abs() < 1e-3);
        assert!((read.memory[0] / meant.memory[0] - 1.0).abs() < 1e-3);
    }

    #[test]
    fn a_missing_and_a_wrong_name_are_told() {
        let text = "[[parameter]]\nname = \"memory-ampere\"\nvalue = 0.8\n[[parameter]]\nname = \"memory\"\nvalue = 0.8\n";
        let told = input::render(&ServingParameters::read(&Source::new("x.toml", text)).unwrap_err());
        assert!(told.contains("no parameter is called `memory`"), "{told}");
        assert!(told.contains("first of them `products-ampere`"), "{told}");
    }

    #[test]
    fn shipped_values_are_shares_where_they_must_be() {
        let shipped = ServingParameters::shipped();
        for share in shipped.memory.iter().chain(&shipped.products).chain([
            &shipped.nvlink_rate,
            &shipped.pcie_rate,
            &shipped.prompt_attention,
        ]) {
            assert!((0.1..=1.0).contains(share), "{share}");
        }
    }
}
