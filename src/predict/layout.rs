//! How a training is laid out over GPUs, and whether it can be.

use super::transformer::Transformer;
use std::fmt;

/// What the matrix products of training are computed in; all else stays in 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrainingPrecision {
    /// float16 or bfloat16.
    Half,
    /// 8-bit floats with one scale a tensor.
    Fp8,
    /// 8-bit floats with a scale a row or block, made by software.
    Fp8Block,
    /// 8-bit floats with a scale for 32 values that the tensor cores apply (OCP microscaling, version 1.0).
    Mxfp8,
    /// 4-bit floats with a scale for 16 values (arXiv 2509.25149).
    Nvfp4,
}

impl TrainingPrecision {
    pub const ALL: [TrainingPrecision; 5] = [Self::Half, Self::Fp8, Self::Fp8Block, Self::Mxfp8, Self::Nvfp4];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Half => "bf16",
            Self::Fp8 => "fp8",
            Self::Fp8Block => "fp8-block",
            Self::Mxfp8 => "mxfp8",
            Self::Nvfp4 => "nvfp4",
        }
    }

    /// The word of a table: `FP8-CS`, `BF16`, `half`, `amp_fp8`, `FP8-MX`.
    pub fn named(word: &str) -> Option<TrainingPrecision> {
        let word: String = word.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase();
        Some(match word.as_str() {
            "bf16" | "fp16" | "half" | "ampbf16" | "ampfp16" | "float16" | "bfloat16" => Self::Half,
            "fp8" | "fp8cs" | "fp8ds" | "ampfp8" | "float8" | "float8tensorwise" | "fp8hybrid" => Self::Fp8,
            "fp8block" | "fp8sc" | "fp8subchannel" | "float8rowwise" => Self::Fp8Block,
            "mxfp8" | "fp8mx" => Self::Mxfp8,
            "nvfp4" | "fp4" => Self::Nvfp4,
            _ => return None,
        })
    }
}

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Task {
    /// All weights, sequences full: pre-training, and fine-tuning on packed sequences.
    All,
    /// Low-rank adapters alone (arXiv 2106.09685): no gradients of the weights.
    Adapters,
}

/// What is computed again in the backward pass instead of being kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Recompute {
    Nothing,
    /// The attention's scores (Korthikanti et al., arXiv 2205.05198); fused attention does this by itself.
    Selective,
    /// This share of the layers from their inputs, percent.
    Part(u8),
    /// Every layer from its input.
    Full,
    /// These modules of every layer, as Megatron-Core names them (`recompute_modules`).
    Modules(Modules),
    /// As much as memory asks for: first what costs little, then whole layers.
    AsNeeded,
}

/// Parts of a layer that can be computed again by themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Modules(u8);

impl Modules {
    pub const NONE: Modules = Modules(0);
    /// What norms put out.
    pub const NORMS: Modules = Modules(1);
    /// What the activation functions of feed-forward layers and experts put out.
    pub const ACTIVATIONS: Modules = Modules(1 << 1);
    /// Queries, keys and values of low-rank attention, from their latent vectors.
    pub const UP_PROJECTIONS: Modules = Modules(1 << 2);
    /// Attention between its queries, keys and values and its output.
    pub const CORE: Modules = Modules(1 << 3);
    /// Feed-forward layers without experts.
    pub const DENSE: Modules = Modules(1 << 4);
    /// Feed-forward layers of experts, with their exchange.
    pub const EXPERTS: Modules = Modules(1 << 5);
    /// Those that cost little for what they save.
    pub const CHEAP: Modules = Self::NORMS.and(Self::ACTIVATIONS).and(Self::UP_PROJECTIONS);

    pub const COUNT: usize = 6;

    pub const fn and(self, other: Modules) -> Modules {
        Modules(self.0 | other.0)
    }

    pub const fn has(self, other: Modules) -> bool {
        self.0 & other.0 == other.0
    }

    /// Of a single one: which of [`Self::COUNT`] it is.
    pub const fn place(self) -> usize {
        self.0.trailing_zeros() as usize
    }

    /// Which of [`Self::COUNT`] are in it.
    pub fn places(self) -> impl Iterator<Item = usize> {
        (0..Self::COUNT).filter(move |at| self.0 >> at & 1 == 1)
    }
}

/// How tokens go to their experts on other machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dispatch {
    /// One copy for each expert (an all-to-all of NCCL).
    ByCopy,
    /// Once to a domain, however many of a token's experts lie there, and on from there (DeepEP, arXiv 2412.19437, section 3.2.2; HybridEP).
    ByDomain,
}

/// How much of a step the host starts as CUDA graphs instead of kernel by kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Graphs {
    Nothing,
    /// Attention, routing, recurrences: not the experts, whose sizes the host has to read.
    Layers,
    /// All of it.
    Step,
}

/// What the ranks of data parallelism divide among them (Rajbhandari et al., arXiv 1910.02054).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sharding {
    Nothing,
    /// The optimizer's state.
    Optimizer,
    /// And gradients.
    Gradients,
    /// And weights, gathered layer by layer (FSDP).
    Weights,
}

/// Options of the software that no size of a layout tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Options {
    pub graphs: Graphs,
    /// The products of experts, their activation and its quantisation are one kernel.
    pub fused_experts: bool,
    /// The exchange of experts runs under the computation of another micro-batch (DeepSeek-V3, arXiv 2412.19437, section 3.2.1).
    pub expert_overlap: bool,
    pub dispatch: Dispatch,
}

impl Options {
    /// Kernel by kernel.
    pub const PLAIN: Options =
        Options { graphs: Graphs::Nothing, fused_experts: false, expert_overlap: false, dispatch: Dispatch::ByDomain };
}

/// Software whose way of running a step differs in a way that no other setting tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stack {
    /// Megatron-LM of 2021 (arXiv 2104.04473): scores of attention are written to memory, the exchange of gradients does not overlap.
    MegatronFirst,
    /// Megatron-LM of 2022 (arXiv 2205.05198): more kernels fused, attention not yet.
    MegatronUnfused,
    /// Megatron-Core with Transformer Engine (NeMo, Megatron-Bridge).
    Megatron,
    /// FSDP of PyTorch in eager mode (MosaicML's llm-foundry).
    Composer,
    /// torchtitan in eager mode.
    TorchEager,
    /// torchtitan with torch.compile.
    TorchCompiled,
    /// FSDP2 of PyTorch with Transformer Engine's layers (NeMo AutoModel).
    AutoModel,
}

impl Stack {
    pub const ALL: [Stack; 7] = [
        Self::MegatronFirst,
        Self::MegatronUnfused,
        Self::Megatron,
        Self::Composer,
        Self::TorchEager,
        Self::TorchCompiled,
        Self::AutoModel,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::MegatronFirst => "megatron-first",
            Self::MegatronUnfused => "megatron-unfused",
            Self::Megatron => "megatron",
            Self::Composer => "composer",
            Self::TorchEager => "torch-eager",
            Self::TorchCompiled => "torch-compiled",
            Self::AutoModel => "automodel",
        }
    }

    pub fn named(name: &str) -> Option<Stack> {
        Self::ALL.into_iter().find(|stack| stack.name() == name)
    }

    /// Whether weights are PyTorch's FSDP's: 32-bit ones sharded, cast when they are gathered.
    pub const fn is_torch(self) -> bool {
        matches!(self, Self::Composer | Self::TorchEager | Self::TorchCompiled | Self::AutoModel)
    }

    /// Whether attention keeps its scores in the chip (FlashAttention, arXiv 2205.14135) and skips what the causal mask hides.
    pub const fn fuses_attention(self) -> bool {
        !matches!(self, Self::MegatronFirst | Self::MegatronUnfused)
    }
}

/// A training laid out over GPUs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Layout {
    pub gpus: u32,
    pub tensor: u32,
    pub pipeline: u32,
    pub context: u32,
    pub expert: u32,
    /// Model chunks of each pipeline rank (Narayanan et al., arXiv 2104.04473, section 2.2).
    pub interleave: u32,
    /// Sequences of a micro-batch of one data-parallel rank.
    pub micro_batch: u32,
    /// Sequences of a step, all ranks.
    pub global_batch: u32,
    /// Tokens.
    pub sequence: u32,
    /// What lies between the tensor-parallel parts is divided along the sequence (arXiv 2205.05198).
    pub sequence_parallel: bool,
    pub sharding: Sharding,
    /// Ranks that share what is sharded; 0 for all of data parallelism (and context parallelism).
    pub shard_group: u32,
    pub recompute: Recompute,
    pub precision: TrainingPrecision,
    pub task: Task,
    pub stack: Stack,
    /// Exchanges of tensor parallelism are cut up and run under the products (user buffers, asynchronous tensor parallelism).
    pub tensor_overlap: bool,
    pub options: Options,
}

/// Why a layout cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutError {
    Zero(&'static str),
    /// tensor x pipeline x context does not divide the GPUs.
    Gpus {
        product: u32,
        gpus: u32,
    },
    /// The global batch is not a multiple of micro-batch x data-parallel ranks.
    Batch {
        global_batch: u32,
        ranks: u32,
        micro_batch: u32,
    },
    /// Heads of queries, or of keys and values, are not a multiple of the tensor-parallel size.
    Heads {
        what: &'static str,
        heads: u32,
        tensor: u32,
    },
    /// More pipeline chunks than blocks.
    Blocks {
        blocks: u32,
        chunks: u32,
    },
    /// More expert-parallel ranks than experts, or they do not divide the ranks of a pipeline stage.
    Experts {
        experts: u32,
        expert: u32,
    },
    Sequence {
        sequence: u32,
        context: u32,
    },
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zero(what) => write!(f, "{what} is 0"),
            Self::Gpus { product, gpus } => write!(f, "tensor x pipeline x context = {product} does not divide {gpus} GPUs"),
            Self::Batch { global_batch, ranks, micro_batch } => {
                write!(f, "{global_batch} sequences are no multiple of {ranks} data-parallel ranks x {micro_batch} a micro-batch")
            }
            Self::Heads { what, heads, tensor } => {
                write!(f, "{heads} {what} are no multiple of the tensor-parallel size {tensor}")
            }
            Self::Blocks { blocks, chunks } => write!(f, "{blocks} blocks are fewer than {chunks} pipeline chunks"),
            Self::Experts { experts, expert } => {
                write!(f, "{experts} experts cannot lie on {expert} expert-parallel ranks, or these do not divide a stage's GPUs")
            }
            Self::Sequence { sequence, context } => {
                write!(f, "{sequence} tokens are no multiple of {context} context-parallel ranks")
            }
        }
    }
}

impl Layout {
    /// One GPU, one sequence a micro-batch, nothing divided.
    pub const fn single(sequence: u32, global_batch: u32, precision: TrainingPrecision) -> Layout {
        Layout {
            gpus: 1,
            tensor: 1,
            pipeline: 1,
            context: 1,
            expert: 1,
            interleave: 1,
            micro_batch: 1,
            global_batch,
            sequence,
            sequence_parallel: true,
            sharding: Sharding::Optimizer,
            shard_group: 0,
            recompute: Recompute::AsNeeded,
            precision,
            task: Task::All,
            stack: Stack::Megatron,
            tensor_overlap: true,
            options: Options::PLAIN,
        }
    }

    /// Data-parallel ranks.
    pub fn data(&self) -> u32 {
        self.gpus / (self.tensor * self.pipeline * self.context).max(1)
    }

    /// Micro-batches of a step in one pipeline.
    pub fn micro_batches(&self) -> u32 {
        (self.global_batch / (self.data() * self.micro_batch).max(1)).max(1)
    }

    /// Whether the exchange of experts runs under another micro-batch: the pipelines of Megatron-Core do that in interleaved schedules alone
    /// (its `TransformerConfig` refuses `overlap_moe_expert_parallel_comm` elsewhere).
    pub fn overlaps_experts(&self) -> bool {
        self.options.expert_overlap && self.expert > 1 && (self.pipeline == 1 || self.interleave > 1)
    }

    /// Whether its software lays a training out so: Megatron-Core shards gradients and weights with Megatron-FSDP, which goes together with tensor,
    /// context and expert parallelism, not with pipelines (Megatron Core user guide, Megatron-FSDP).
    pub fn is_known_to_its_stack(&self) -> bool {
        self.pipeline == 1 || self.sharding <= Sharding::Optimizer || self.stack.is_torch()
    }

    /// Tokens of a step, all ranks.
    pub fn tokens(&self) -> f64 {
        f64::from(self.global_batch) * f64::from(self.sequence)
    }

    /// Ranks that share what is sharded.
    pub fn shards(&self) -> u32 {
        let all = self.data() * self.context;
        if self.shard_group == 0 { all } else { self.shard_group.min(all) }
    }

    pub fn check(&self, model: &Transformer) -> Result<(), LayoutError> {
        for (value, what) in [
            (self.gpus, "the number of GPUs"),
            (self.tensor, "the tensor-parallel size"),
            (self.pipeline, "the pipeline-parallel size"),
            (self.context, "the context-parallel size"),
            (self.expert, "the expert-parallel size"),
            (self.interleave, "the number of model chunks"),
            (self.micro_batch, "the micro-batch"),
            (self.global_batch, "the global batch"),
            (self.sequence, "the sequence length"),
        ] {
            if value == 0 {
                return Err(LayoutError::Zero(what));
            }
        }
        let product = self.tensor.saturating_mul(self.pipeline).saturating_mul(self.context);
        if !self.gpus.is_multiple_of(product) {
            return Err(LayoutError::Gpus { product, gpus: self.gpus });
        }
        let (ranks, micro_batch) = (self.data(), self.micro_batch);
        if !self.global_batch.is_multiple_of(ranks.saturating_mul(micro_batch)) {
            return Err(LayoutError::Batch { global_batch: self.global_batch, ranks, micro_batch });
        }
        let attention = &model.attention;
        for (heads, what) in [(attention.heads, "heads"), (attention.key_value_heads, "key and value heads")] {
            if !heads.is_multiple_of(self.tensor) {
                return Err(LayoutError::Heads { what, heads, tensor: self.tensor });
            }
        }
        let chunks = self.pipeline.saturating_mul(self.interleave);
        if model.blocks() + 2 < chunks {
            return Err(LayoutError::Blocks { blocks: model.blocks(), chunks });
        }
        if let Some(experts) = model.experts
            && (!experts.count.is_multiple_of(self.expert) || !(self.gpus / self.pipeline).is_multiple_of(self.expert))
        {
            return Err(LayoutError::Experts { experts: experts.count, expert: self.expert });
        }
        if !self.sequence.is_multiple_of(self.context) {
            return Err(LayoutError::Sequence { sequence: self.sequence, context: self.context });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::models::ModelBook, *};

    /// Llama 70B has 64 heads that share 8 of keys and values (`num_query_groups` of Megatron-Core's `TransformerConfig`).
    #[test]
    fn tensor_parallelism_divides_the_heads_of_keys_and_values_too() {
        let model = ModelBook::shipped().find("llama-3.1-70b").unwrap().clone();
        let check = |tensor| Layout { gpus: tensor, tensor, ..Layout::single(8192, 1, TrainingPrecision::Half) }.check(&model);
        assert_eq!(check(8), Ok(()));
        let refused = check(16).unwrap_err();
        assert_eq!(refused.to_string(), "8 key and value heads are no multiple of the tensor-parallel size 16");
    }

    #[test]
    fn gradients_and_weights_are_sharded_in_pipelines_by_pytorch_alone() {
        let known = |pipeline, sharding, stack| {
            let layout = Layout { gpus: 16, pipeline, sharding, stack, ..Layout::single(8192, 16, TrainingPrecision::Half) };
            layout.is_known_to_its_stack()
        };
        for sharding in [Sharding::Gradients, Sharding::Weights] {
            assert!(known(1, sharding, Stack::Megatron) && known(4, sharding, Stack::AutoModel));
            assert!(!known(4, sharding, Stack::Megatron));
        }
        assert!(known(4, Sharding::Optimizer, Stack::Megatron));
    }
}
