//! How a model is laid out to be served, and what that needs of each GPU's memory.

use super::{format::ServedFormat, parameters::Engine, work::ServingWork};
use crate::{
    hardware::Machine,
    predict::Transformer,
    units::{Bytes, three_figures},
};
use std::fmt;

/// One layout of replicas that serve a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServingLayout {
    /// Copies of the model that share the load.
    pub replicas: u32,
    /// GPUs over which attention, and without `attention_data` all layers, are divided.
    pub tensor: u32,
    /// Stages of layers.
    pub pipeline: u32,
    /// Ranks whose attention has sequences of its own, while all of them share the experts.
    pub attention_data: u32,
    /// Parts into which the experts are dealt out; the GPUs of a part divide each expert.
    pub expert: u32,
    pub format: ServedFormat,
    /// Bytes of an element of the cache.
    pub cache_bytes: f64,
    pub engine: Engine,
    /// Tokens of a step at most: prompts are cut to fit (chunked prefill, arXiv 2308.16369).
    pub step_tokens: u32,
    /// Live sequences of one rank of attention at most.
    pub most_sequences: u32,
    /// Share of what weights leave free that the cache takes.
    pub cache_share_of_free: f64,
    /// Tokens that each step proposes for a sequence besides the one that it is sure of (speculative decoding, arXiv 2211.17192, by layers of
    /// the model that predict further tokens, arXiv 2412.19437, section 2.2).
    pub draft_tokens: u32,
    /// Steps for which the engine holds a prompt back so that others are read with it (TensorRT-LLM: `batch_wait_timeout_iters`).
    pub wait_steps: u32,
    /// Steps for which it holds prompts back until every rank of attention has one (TensorRT-LLM: `attention_dp_config`, `timeout_iters`).
    pub balance_steps: u32,
    /// Steps between two looks for new requests while it decodes (SGLang: `scheduler_recv_interval`); 0 for every step.
    pub poll_steps: u32,
    /// Steps whose tokens are sent together where the process that runs the steps also makes the replies (TensorRT-LLM: `stream_interval` without
    /// `num_postprocess_workers`); 0 where the first token does not wait for others.
    pub group_steps: u32,
    /// Tokens up to which a step with prompts is captured as graphs too, but for its attention (vLLM: `max-cudagraph-capture-size`; TensorRT-LLM:
    /// `enable_piecewise_cuda_graph`); 0 where only steps that decode alone are.
    pub captured_tokens: u32,
}

/// Bytes that the context, its libraries, captured graphs and the activations of a step of 8,192 tokens take, as engines report them at
/// start: less where the engine was compiled.
pub const fn reserve_bytes(engine: Engine) -> f64 {
    if matches!(engine, Engine::TensorRtCompiled) { 2e9 } else { 4e9 }
}

impl ServingLayout {
    /// One replica of `tensor` GPUs with what engines take by themselves.
    pub const fn single(tensor: u32, format: ServedFormat, engine: Engine) -> ServingLayout {
        ServingLayout {
            replicas: 1,
            tensor,
            pipeline: 1,
            attention_data: 1,
            expert: 1,
            format,
            cache_bytes: match format {
                ServedFormat::Fp8 | ServedFormat::Fp8Block | ServedFormat::Fp4 | ServedFormat::Mxfp4 => 1.0,
                _ => 2.0,
            },
            engine,
            step_tokens: 8192,
            most_sequences: 2048,
            cache_share_of_free: 0.9,
            draft_tokens: 0,
            wait_steps: 0,
            balance_steps: 0,
            poll_steps: 0,
            group_steps: 0,
            captured_tokens: match engine {
                Engine::Vllm => 512,
                _ => 0,
            },
        }
    }

    /// Attention with data of its own on each of `ranks` GPUs, experts dealt out over them.
    pub const fn attention_data(ranks: u32, format: ServedFormat, engine: Engine) -> ServingLayout {
        let mut layout = ServingLayout::single(1, format, engine);
        layout.attention_data = ranks;
        layout.expert = ranks;
        layout
    }

    /// GPUs of one replica.
    pub const fn replica_gpus(&self) -> u32 {
        self.tensor * self.attention_data * self.pipeline
    }

    pub const fn gpus(&self) -> u32 {
        self.replica_gpus() * self.replicas
    }

    /// GPUs that divide one expert.
    pub(super) fn expert_tensor(&self) -> f64 {
        f64::from(self.tensor * self.attention_data) / f64::from(self.expert)
    }

    /// Dense feed-forward layers of a model with experts are divided over all ranks of a stage.
    pub(super) fn divides_dense_over_data(&self, work: &ServingWork) -> bool {
        self.attention_data > 1 && work.expert_layers > 0.0
    }

    pub(super) fn dense_parts(&self, work: &ServingWork) -> f64 {
        f64::from(if self.divides_dense_over_data(work) { self.tensor * self.attention_data } else { self.tensor })
    }

    /// Share of a sequence's cache that one GPU of its rank holds: heads are divided, but not below one; a latent vector is not.
    pub(super) fn cache_share(&self, work: &ServingWork) -> f64 {
        if work.latent { 1.0 } else { (1.0 / f64::from(self.tensor)).max(1.0 / work.key_value_heads) }
    }

    pub(super) fn attention_format(&self, work: &ServingWork) -> ServedFormat {
        if work.expert_layers > 0.0 && self.format.leaves_attention() { ServedFormat::Half } else { self.format }
    }

    /// Bytes of weights on the fullest GPU.
    pub fn weight_bytes(&self, work: &ServingWork) -> f64 {
        let attention = (work.attention_layers + work.window_layers) * work.attention + work.recurrent_layers * work.recurrent;
        let tensor = f64::from(self.tensor);
        let experts = work.expert * work.experts / (f64::from(self.expert) * self.expert_tensor());
        let layers = attention * self.attention_format(work).weight_bytes() / tensor
            + work.dense_layers * work.dense / self.dense_parts(work) * self.format.weight_bytes()
            + work.expert_layers * (experts + work.common / tensor) * self.format.weight_bytes();
        // The first stage holds the embedding, the last one the projection, in 16 bits, and what proposes tokens.
        let tables = if self.pipeline > 1 { 1.0 } else { 2.0 };
        // Every GPU of a layer chooses tokens by itself.
        let indexers = (work.attention_layers + work.window_layers) * work.indexer * self.attention_format(work).weight_bytes();
        (layers + indexers) / f64::from(self.pipeline)
            + tables * work.table * 2.0 / tensor
            + self.drafting_blocks(work) * self.drafting_bytes(work)
    }

    /// Blocks that are there to propose tokens.
    fn drafting_blocks(&self, work: &ServingWork) -> f64 {
        if self.draft_tokens > 0 { work.prediction_layers } else { 0.0 }
    }

    /// Bytes of the weights of one of them on a GPU: a block like the last one of the model.
    fn drafting_bytes(&self, work: &ServingWork) -> f64 {
        let tensor = f64::from(self.tensor);
        let feed = if work.expert_layers > 0.0 {
            work.expert * work.experts / (f64::from(self.expert) * self.expert_tensor()) + work.common / tensor
        } else {
            work.dense / self.dense_parts(work)
        };
        work.attention * self.attention_format(work).weight_bytes() / tensor
            + feed * self.format.weight_bytes()
            + work.prediction_joint * 2.0 / tensor
    }

    /// Bytes that a sequence of `context` tokens holds on each GPU of its rank.
    pub fn cache_bytes_of(&self, work: &ServingWork, context: f64) -> f64 {
        let drafting = self.drafting_blocks(work) * context * work.cached;
        (work.cache_elements(context) / f64::from(self.pipeline) + drafting) * self.cache_share(work) * self.cache_bytes
    }

    /// Bytes for caches on each GPU; negative where the weights do not fit.
    pub fn cache_room(&self, work: &ServingWork, machine: &Machine) -> f64 {
        let free = machine.memory.0 as f64 - self.weight_bytes(work) - reserve_bytes(self.engine);
        if free > 0.0 { free * self.cache_share_of_free } else { free }
    }

    /// Sequences of `context` tokens that one replica holds at once.
    pub fn capacity(&self, work: &ServingWork, machine: &Machine, context: f64) -> f64 {
        let of_rank = self.cache_room(work, machine).max(0.0) / self.cache_bytes_of(work, context);
        of_rank.floor().min(f64::from(self.most_sequences)) * f64::from(self.attention_data)
    }

    /// Whether the layout can be at all, memory aside.
    pub fn check(&self, model: &Transformer) -> Result<(), ServingError> {
        let blocks = model.blocks();
        let heads = model.attention.heads;
        if [self.replicas, self.tensor, self.pipeline, self.attention_data, self.expert, self.step_tokens, self.most_sequences]
            .contains(&0)
        {
            return Err(ServingError::Zero);
        }
        if !heads.is_multiple_of(self.tensor) {
            return Err(ServingError::Heads { heads, tensor: self.tensor });
        }
        if self.pipeline > blocks {
            return Err(ServingError::Blocks { blocks, pipeline: self.pipeline });
        }
        let experts = model.experts.map_or(1, |experts| experts.count);
        let ranks = self.tensor * self.attention_data;
        if self.expert > experts || !ranks.is_multiple_of(self.expert) {
            return Err(ServingError::Experts { experts, expert: self.expert, ranks });
        }
        Ok(())
    }
}

/// Why a layout cannot serve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ServingError {
    Zero,
    Heads {
        heads: u32,
        tensor: u32,
    },
    Blocks {
        blocks: u32,
        pipeline: u32,
    },
    Experts {
        experts: u32,
        expert: u32,
        ranks: u32,
    },
    /// Weights and the cache of one sequence do not fit.
    Memory {
        short: Bytes,
        remedy: Remedy,
    },
    /// More requests a second than the replicas can answer.
    Rate {
        wanted: f64,
        possible: f64,
    },
    /// Slower than asked, seconds.
    FirstToken {
        limit: f64,
        predicted: f64,
    },
    PerToken {
        limit: f64,
        predicted: f64,
    },
}

/// What would make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Divide each layer over so many GPUs.
    Tensor(u32),
    /// Divide the layers into so many stages.
    Pipeline(u32),
    /// Store the weights, or the cache, in fewer bits.
    FewerBits,
}

impl fmt::Display for ServingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zero => write!(f, "a part of the layout is 0"),
            Self::Heads { heads, tensor } => write!(f, "{heads} heads are no multiple of the tensor-parallel size {tensor}"),
            Self::Blocks { blocks, pipeline } => write!(f, "{blocks} blocks are fewer than {pipeline} pipeline stages"),
            Self::Experts { experts, expert, ranks } => {
                write!(f, "{experts} experts cannot lie on {expert} expert-parallel ranks, or these do not divide {ranks} GPUs")
            }
            Self::Memory { short, remedy } => {
                write!(f, "{:.1} GiB short of memory on each GPU: ", short.0 as f64 / f64::from(1 << 30))?;
                match remedy {
                    Remedy::Tensor(ranks) => write!(f, "tensor-parallel size {ranks} would fit"),
                    Remedy::Pipeline(stages) => write!(f, "{stages} pipeline stages would fit"),
                    Remedy::FewerBits => write!(f, "weights or cache in fewer bits, or a larger GPU"),
                }
            }
            Self::Rate { wanted, possible } => {
                let [wanted, possible] = [wanted, possible].map(|rate| three_figures(*rate));
                write!(f, "{wanted} requests a second wanted, {possible} possible: more replicas")
            }
            Self::FirstToken { limit, predicted } => {
                write!(
                    f,
                    "first token after {predicted:.3} s, at most {limit:.3} s wanted: more replicas, or a larger tensor-parallel size"
                )
            }
            Self::PerToken { limit, predicted } => {
                write!(
                    f,
                    "{predicted:.4} s a token, at most {limit:.4} s wanted: more replicas, or a larger tensor-parallel size"
                )
            }
        }
    }
}

impl ServingLayout {
    /// Whether one sequence of `context` tokens fits, or what is short and which change would fit it.
    pub fn fits(&self, model: &Transformer, work: &ServingWork, machine: &Machine, context: f64) -> Result<(), ServingError> {
        let missing = |layout: &ServingLayout| {
            let needed = layout.cache_bytes_of(work, context) - layout.cache_room(work, machine);
            (needed > 0.0).then_some(needed)
        };
        let Some(short) = missing(self) else { return Ok(()) };
        let fits = |layout: &ServingLayout| layout.check(model).is_ok() && missing(layout).is_none();
        let doubled = |value: u32| (1..=6).map(move |power| value << power);
        let tensor = doubled(self.tensor).find(|tensor| {
            let expert = if self.expert > 1 { self.expert * (tensor / self.tensor) } else { 1 };
            fits(&ServingLayout { tensor: *tensor, expert, ..*self })
        });
        let pipeline = doubled(self.pipeline).find(|pipeline| fits(&ServingLayout { pipeline: *pipeline, ..*self }));
        let remedy = match (tensor, pipeline) {
            (Some(tensor), _) if tensor <= machine.scale_up.domain.max(8) => Remedy::Tensor(tensor),
            (_, Some(pipeline)) => Remedy::Pipeline(pipeline),
            (Some(tensor), None) => Remedy::Tensor(tensor),
            (None, None) => Remedy::FewerBits,
        };
        Err(ServingError::Memory { short: Bytes(short.ceil() as u64), remedy })
    }
}
