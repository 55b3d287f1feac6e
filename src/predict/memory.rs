//! What a training holds in the memory of one GPU.
//!
//! Weights, gradients and the state of Adam in mixed precision: 2 + 4 + 12 bytes a parameter where gradients are summed in 32 bits, the last
//! term divided among data-parallel ranks by the sharding of the optimizer, all by that of the weights (Rajbhandari et al.,
//! arXiv 1910.02054). Activations of a layer by what each operation keeps for its gradient (Korthikanti et al., arXiv 2205.05198, section 4):
//! for a GPT that comes to s b h (34 + 5 a s / h) bytes, for other shapes to the sum of the same terms. A pipeline keeps as many micro-batches as
//! it has ranks, and (1 + (p-1)/(p v)) times that with interleaving (the same, section 4.2.3).

use super::{
    layout::{Dispatch, Graphs, Layout, Modules, Recompute, Sharding, Stack, Task, TrainingPrecision},
    transformer::Transformer,
};

/// Bytes of one GPU: of the pipeline rank that holds most.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    pub weights: f64,
    pub gradients: f64,
    pub optimizer: f64,
    pub activations: f64,
    /// The last projection's output and its gradient.
    pub logits: f64,
    /// Layers that are gathered for use, buckets of gradients, buffers of the exchanges.
    pub buffers: f64,
    /// Context of the driver, libraries and collectives, and what the allocator cannot use.
    pub reserve: f64,
}

impl Memory {
    pub fn total(&self) -> f64 {
        self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.buffers + self.reserve
    }

    /// With what the allocator cannot use in the reserve.
    fn allocated(self) -> Memory {
        Memory { reserve: self.reserve + (ALLOCATED - 1.0) * (self.total() - self.reserve), ..self }
    }
}

/// Context of CUDA, cuBLAS and the first communicator: a few hundred MiB each.
const CONTEXT_BYTES: f64 = 1.5e9;

/// Each further communicator of NCCL: two dozen channels with buffers of 4 MiB (`NCCL_BUFFSIZE`) and smaller ones, to both neighbours.
const COMMUNICATOR_BYTES: f64 = 0.25e9;

/// Share by which the buffers of routed tokens are larger than what balanced routing needs where a whole step is one graph and no size can be read
/// (`moe_paged_stash_buffer_size_factor_cuda` of Megatron-Bridge's recipes).
const STASH: f64 = 1.2;

/// What PyTorch's caching allocator keeps of the GPU over what lies in it: blocks are cut from segments of 2 MiB and 20 MiB and do not fill them, and
/// what was freed between two sizes waits for one of its own (Guo et al., arXiv 2401.08156, find 15 % in the mean of their trainings, 33 % at most).
/// This share is the one with which torchtitan's peaks of reserved memory are met in the median.
const ALLOCATED: f64 = 1.08;

/// Parameters of one GPU: those that every data-parallel rank has and those of experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Held {
    /// Of the pipeline rank that holds most, divided by tensor parallelism.
    pub common: f64,
    pub experts: f64,
}

impl Held {
    pub fn new(model: &Transformer, layout: &Layout) -> Held {
        let (tensor, pipeline) = (f64::from(layout.tensor), f64::from(layout.pipeline));
        let experts = model.expert_parameters();
        let tables = model.vocabulary_weights() * if model.tied || layout.pipeline > 1 { 1.0 } else { 2.0 };
        let all_tables = model.vocabulary_weights() * if model.tied { 1.0 } else { 2.0 };
        let layers = model.trained_parameters() - experts - all_tables;
        let chunks = f64::from(layout.pipeline * layout.interleave);
        let blocks = f64::from(model.blocks());
        let fullest = (blocks / chunks).ceil() * chunks / blocks / pipeline;
        Held { common: (layers * fullest + tables) / tensor, experts: experts * fullest / f64::from(layout.expert) }
    }

    pub fn all(&self) -> f64 {
        self.common + self.experts
    }
}

/// The memory that a GPU has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Room {
    /// Bytes that a training can use.
    pub capacity: f64,
    /// Bytes of the host's memory in which activations can wait.
    pub host: f64,
    /// GPUs that reach each other's memory.
    pub domain: f64,
}

/// What is computed again in the backward pass: these modules of all blocks, or this share of the blocks whole.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Again {
    pub modules: Modules,
    pub blocks: f64,
}

/// Bytes that one block keeps for its gradients, of `tokens` tokens of one rank: what tensor parallelism divides, and what it does only with
/// sequence parallelism. `scores` counts the attention's own matrices; what `again` computes a second time is not kept.
pub fn kept_by_a_block(model: &Transformer, layout: &Layout, scores: bool, again: Modules) -> f64 {
    let tokens = f64::from(layout.micro_batch) * f64::from(layout.sequence) / f64::from(layout.context);
    let tensor = f64::from(layout.tensor);
    let hidden = f64::from(model.hidden);
    let attention = &model.attention;
    let dropout = if !layout.stack.fuses_attention() { 1.0 } else { 0.0 };
    let blocks = f64::from(model.blocks()).max(1.0);
    let mixing = f64::from(model.attention_layers + model.window_layers) / blocks;
    // Inputs of products are kept as they enter them.
    let low = match layout.precision {
        TrainingPrecision::Half => 2.0,
        // torchao keeps them in 16 bits and quantises again.
        _ if layout.stack.is_torch() => 2.0,
        TrainingPrecision::Nvfp4 => 0.5625,
        _ => 1.0,
    };
    // Attention keeps its own output; the projection behind it the quantised one besides.
    let output = if again.has(Modules::CORE) {
        low
    } else if low < 2.0 {
        2.0 + low
    } else {
        2.0
    };
    let normed = if again.has(Modules::NORMS) { 0.0 } else { low };
    // Inputs of two norms, of the first projection and of the first feed-forward product, and two masks.
    let mut whole = mixing * hidden * (2.0 + normed + dropout);
    // Queries, keys and values, and the input of the last projection.
    let projected = match attention.latent {
        Some(latent) if again.has(Modules::UP_PROJECTIONS) => {
            whole += mixing * low * f64::from(latent.query_rank + latent.key_value_rank + latent.rotated);
            0.0
        }
        _ => 2.0 * (attention.query_width() + attention.key_value_width()),
    };
    let mut divided = mixing * (projected + output * attention.value_width());
    if scores && !layout.stack.fuses_attention() {
        divided += mixing * 5.0 * f64::from(attention.heads) * f64::from(layout.sequence);
    }
    if let Some(recurrent) = model.recurrent {
        let share = f64::from(recurrent.layers) / blocks;
        let [into, _] = recurrent.linears(hidden);
        whole += share * hidden * (2.0 + normed);
        divided += share * (2.0 * into.outputs + (2.0 + low) * recurrent.inner());
    }
    // The activation's input and, as the second product's, its output.
    let inner = if model.gated { 4.0 } else { 2.0 } + if again.has(Modules::ACTIVATIONS) { 0.0 } else { low };
    let dense = f64::from(model.dense.layers) / blocks;
    whole += dense * hidden * (2.0 + normed + dropout);
    divided += if again.has(Modules::DENSE) { 0.0 } else { dense * inner * f64::from(model.dense.width) };
    let mut routed = 0.0;
    if let Some(experts) = model.experts.filter(|_| again.has(Modules::EXPERTS)) {
        whole += f64::from(experts.layers) / blocks * hidden * 2.0;
    } else if let Some(experts) = model.experts {
        let share = f64::from(experts.layers) / blocks;
        let copies = f64::from(experts.active);
        whole += share * hidden * (2.0 + normed);
        divided += share * inner * f64::from(experts.shared_width);
        // The dispatched tokens as they enter the first product, and what the experts make of them. Probabilities are multiplied into the
        // activation (Megatron-Core), so what comes back is summed and not kept.
        let stash = if layout.options.graphs == Graphs::Step { STASH } else { 1.0 };
        routed += share * copies * stash * (low * experts.token_width(hidden) + inner * f64::from(experts.width));
    }
    let along = if layout.sequence_parallel { tensor } else { 1.0 };
    tokens * (whole / along + divided / tensor + routed / tensor)
}

/// Bytes of the buffers into which other ranks of the domain write tokens and results: as large as if all came to one rank (HybridEP; NVIDIA Transformer
/// Engine, request 3035, names tokens x ranks).
fn exchanged(model: &Transformer, layout: &Layout, domain: f64) -> f64 {
    let Some(experts) = model.experts.filter(|_| layout.expert > 1 && layout.options.dispatch == Dispatch::ByDomain) else {
        return 0.0;
    };
    let tokens = f64::from(layout.micro_batch) * f64::from(layout.sequence) / f64::from(layout.context * layout.tensor);
    2.0 * 2.0 * tokens * domain.min(f64::from(layout.expert)) * experts.token_width(f64::from(model.hidden))
}

/// Bytes of the input of a block, which full recomputation keeps.
pub fn kept_of_an_input(model: &Transformer, layout: &Layout) -> f64 {
    let tokens = f64::from(layout.micro_batch) * f64::from(layout.sequence) / f64::from(layout.context);
    let along = if layout.sequence_parallel { f64::from(layout.tensor) } else { 1.0 };
    2.0 * tokens * f64::from(model.hidden) / along
}

/// The bytes of every part, and what is computed again: as `layout.recompute` has it, or as little as fits into `capacity`.
pub fn memory(model: &Transformer, layout: &Layout, room: Room) -> (Memory, Again) {
    let Room { capacity, host, domain } = room;
    let held = Held::new(model, layout);
    let shards = f64::from(layout.shards());
    let fully = layout.stack.is_torch();
    let expert_shards = f64::from((layout.gpus / (layout.pipeline * layout.expert)).max(1)).min(shards);
    let among = |all: f64| held.common / all + held.experts / if all > 1.0 { expert_shards } else { 1.0 };
    // PyTorch's FSDP keeps 32-bit weights as the optimizer's own and casts what it gathers; Megatron keeps 16-bit weights beside them, and
    // today's recipes sum gradients in 16 bits.
    let (weight, gradient, state) = match layout.stack {
        // NeMo AutoModel loads 16-bit weights and trains those.
        Stack::AutoModel => (2.0, 2.0, 4.0),
        _ if fully => (4.0, 4.0, 8.0),
        Stack::MegatronFirst | Stack::MegatronUnfused => (2.0, 4.0, 12.0),
        _ => (2.0, 2.0, 12.0),
    };
    let (weights, gradients, optimizer) = match layout.sharding {
        Sharding::Nothing => (held.all() * weight, held.all() * gradient, held.all() * state),
        Sharding::Optimizer => (held.all() * weight, held.all() * gradient, among(shards) * state),
        Sharding::Gradients => (held.all() * weight, among(shards) * gradient, among(shards) * state),
        Sharding::Weights => (among(shards) * weight, among(shards) * gradient, among(shards) * state),
    };
    let (gradients, optimizer) = if layout.task == Task::Adapters { (0.0, 0.0) } else { (gradients, optimizer) };
    let blocks = f64::from(model.blocks());
    let pipeline = f64::from(layout.pipeline);
    let interleave = f64::from(layout.interleave);
    let chunks = pipeline * interleave;
    let own = (blocks / chunks).ceil() * interleave;
    let ahead = if layout.interleave > 1 { pipeline * (1.0 + (pipeline - 1.0) / (pipeline * interleave)) } else { pipeline };
    let flying = ahead.min(f64::from(layout.micro_batches())).max(1.0);
    let tokens = f64::from(layout.micro_batch) * f64::from(layout.sequence) / f64::from(layout.context);
    let logits = tokens * f64::from(model.vocabulary) / f64::from(layout.tensor)
        * match layout.stack {
            // Kept in 16 and 32 bits, with the probabilities and their gradient in both.
            Stack::TorchEager => 14.0,
            // llm-foundry's `fused_crossentropy` makes the gradient where the logits lie.
            Stack::Composer => 4.0,
            _ if fully => 8.0,
            _ => 4.0,
        };
    let gathered = if layout.sharding == Sharding::Weights && layout.pipeline > 1 {
        // A pipeline meets every layer in every micro-batch: it keeps weights gathered for the step, and sums whole gradients, in 32 bits.
        (2.0 + 4.0) * held.all()
    } else if layout.sharding == Sharding::Weights {
        2.0 * (held.all() - model.vocabulary_weights() / f64::from(layout.tensor)).max(0.0) / own * 2.0
            + 2.0 * model.vocabulary_weights() / f64::from(layout.tensor)
    } else {
        0.0
    };
    let scores = layout.recompute != Recompute::Selective;
    let full = kept_by_a_block(model, layout, scores, Modules::NONE);
    let input = kept_of_an_input(model, layout);
    let groups = [layout.tensor, layout.pipeline, layout.context, layout.expert, layout.data()];
    let communicators = groups.iter().filter(|size| **size > 1).count().saturating_sub(1) as f64;
    let reserve = CONTEXT_BYTES + COMMUNICATOR_BYTES * communicators;
    let buffers = gathered + exchanged(model, layout, domain);
    let fixed = Memory { weights, gradients, optimizer, activations: 0.0, logits, buffers, reserve };
    // All that blocks keep while they wait, and the one at work.
    let kept = |again: Again| {
        let lean = kept_by_a_block(model, layout, scores, again.modules);
        flying * own * (again.blocks * input + (1.0 - again.blocks) * lean) + if again == Again::default() { 0.0 } else { full }
    };
    let again = match layout.recompute {
        Recompute::Nothing | Recompute::Selective => Again::default(),
        Recompute::Part(percent) => Again { blocks: f64::from(percent) / 100.0, ..Again::default() },
        Recompute::Full => Again { blocks: 1.0, ..Again::default() },
        Recompute::Modules(modules) => Again { modules, blocks: 0.0 },
        Recompute::AsNeeded => {
            let logits_too = if layout.pipeline > 1 { logits } else { 0.0 };
            let usable = reserve + (capacity - reserve) / ALLOCATED;
            let room = usable - (fixed.total() - logits_too);
            // Sharded weights go with activations that wait in the host's memory, where that is near.
            let host = if layout.sharding == Sharding::Weights { host } else { 0.0 };
            if room + host / ALLOCATED >= flying * own * full {
                Again::default()
            } else {
                let modules = if fully { Modules::NONE } else { Modules::CHEAP };
                let lean = kept_by_a_block(model, layout, scores, modules);
                // With the block at work, which is whole for a while.
                let missing = |of: f64| full + flying * own * of - room;
                if missing(lean) <= 0.0 {
                    Again { modules, blocks: 0.0 }
                } else {
                    // Megatron-Core computes modules or whole layers again, not some of both.
                    Again { modules: Modules::NONE, blocks: (missing(full) / (flying * own * (full - input))).clamp(0.0, 1.0) }
                }
            }
        }
    };
    if layout.pipeline == 1 {
        return (Memory { activations: kept(again), ..fixed }.allocated(), again);
    }
    // The first rank holds most micro-batches, the last one the logits of one.
    let (first, last) = (kept(again), kept(again) / flying);
    let whole = if first > last + logits { (first, 0.0) } else { (last, logits) };
    (Memory { activations: whole.0, logits: whole.1, ..fixed }.allocated(), again)
}

#[cfg(test)]
mod tests {
    use super::super::{
        layout::{Options, TrainingPrecision},
        models::ModelBook,
    };
    use super::*;

    fn layout(tensor: u32, sequence_parallel: bool, recompute: Recompute) -> Layout {
        Layout {
            gpus: tensor,
            tensor,
            sequence_parallel,
            recompute,
            stack: Stack::MegatronUnfused,
            sharding: Sharding::Nothing,
            ..Layout::single(2048, 1, TrainingPrecision::Half)
        }
    }

    fn room(capacity: f64) -> Room {
        Room { capacity, host: 0.0, domain: 8.0 }
    }

    /// Korthikanti et al., arXiv 2205.05198, Table 2: bytes of a layer in units of s b h.
    #[test]
    fn activations_of_a_layer_are_those_of_the_published_table() {
        let model = ModelBook::shipped().find("gpt-3-175b").unwrap().clone();
        let unit = 2048.0 * 12288.0;
        let scores = 5.0 * 96.0 * 2048.0 / 12288.0;
        for (tensor, along, with_scores, published) in [
            (1, false, true, 34.0 + scores),
            (8, false, true, 10.0 + (24.0 + scores) / 8.0),
            (8, true, true, (34.0 + scores) / 8.0),
            (8, true, false, 34.0 / 8.0),
        ] {
            let found = kept_by_a_block(&model, &layout(tensor, along, Recompute::Nothing), with_scores, Modules::NONE) / unit;
            assert!((found / published - 1.0).abs() < 0.001, "tensor {tensor}: {found} s b h, published {published}");
        }
        assert_eq!(kept_of_an_input(&model, &layout(1, false, Recompute::Full)) / unit, 2.0);
    }

    /// 18 bytes a parameter without sharding; with that of the optimizer over d ranks 6 + 12/d (Megatron-LM, distributed optimizer).
    #[test]
    fn states_of_a_parameter_are_those_of_mixed_precision() {
        let model = ModelBook::shipped().find("gpt-3-175b").unwrap().clone();
        let plain = layout(8, true, Recompute::Selective);
        let (found, _) = memory(&model, &plain, room(80e9));
        let parameters = model.parameters() / 8.0;
        let bytes = |memory: &Memory| memory.weights + memory.gradients + memory.optimizer;
        assert!((bytes(&found) / parameters / 18.0 - 1.0).abs() < 0.001);
        let sharded = Layout { gpus: 64, global_batch: 8, sharding: Sharding::Optimizer, ..plain };
        let (found, _) = memory(&model, &sharded, room(80e9));
        assert!((bytes(&found) / parameters / (6.0 + 12.0 / 8.0) - 1.0).abs() < 0.001);
    }

    #[test]
    fn a_pipeline_keeps_what_its_ranks_have_in_flight() {
        let model = ModelBook::shipped().find("gpt-3-175b").unwrap().clone();
        let base = Layout { gpus: 64, pipeline: 8, global_batch: 64, ..layout(8, true, Recompute::Selective) };
        let (plain, _) = memory(&model, &base, room(80e9));
        let (interleaved, _) = memory(&model, &Layout { interleave: 3, ..base }, room(80e9));
        let expected = 1.0 + 7.0 / (8.0 * 3.0);
        assert!((interleaved.activations / plain.activations / expected - 1.0).abs() < 1e-9);
        // As much as all layers of one micro-batch, because 8 ranks hold an eighth of the layers 8 times.
        let one = 96.0 * kept_by_a_block(&model, &base, false, Modules::NONE);
        assert!((plain.activations / one - 1.0).abs() < 1e-9);
    }

    /// What the allocator keeps unused counts where memory decides: the sum is never below what lies in it, and the context is no part of it.
    #[test]
    fn the_allocator_keeps_a_share_of_what_lies_in_it() {
        let model = ModelBook::shipped().find("llama-3.1-8b").unwrap().clone();
        for base in [
            Layout { gpus: 8, ..layout(8, true, Recompute::Full) },
            Layout { gpus: 16, pipeline: 2, ..layout(8, true, Recompute::Full) },
        ] {
            let (held, _) = memory(&model, &base, room(80e9));
            let lying = held.total() - held.reserve;
            assert!(lying > 0.0);
            let reserve = CONTEXT_BYTES + if base.pipeline > 1 { COMMUNICATOR_BYTES } else { 0.0 };
            assert!((held.total() - reserve - ALLOCATED * lying).abs() < 1e-3 * lying);
        }
    }

    #[test]
    fn as_much_is_computed_again_as_memory_asks_for() {
        let model = ModelBook::shipped().find("llama-3.1-8b").unwrap().clone();
        let base = Layout { gpus: 8, global_batch: 128, ..Layout::single(8192, 128, TrainingPrecision::Half) };
        let (roomy, none) = memory(&model, &base, room(1e12));
        assert_eq!(none, Again::default());
        // What norms and activation functions put out is a third of what a block keeps: for less than that no block is computed again whole.
        let less = |share: f64| roomy.total() - share * roomy.activations;
        let (fitted, again) = memory(&model, &base, room(less(0.1)));
        assert_eq!(again, Again { modules: Modules::CHEAP, blocks: 0.0 });
        assert!(fitted.total() <= less(0.1));
        let (fitted, again) = memory(&model, &base, room(less(0.5)));
        assert!(again.modules == Modules::NONE && again.blocks > 0.45 && again.blocks < 0.8, "{again:?}");
        assert!((fitted.total() / less(0.5) - 1.0).abs() < 1e-4);
    }

    /// DeepSeek-V3 at 4,096 tokens: 128 heads of 128 + 64 queries and keys and 128 values in 16 bits are not kept, but the latent vectors of
    /// 1536 + 512 + 64 numbers that they come from, in 8 bits.
    #[test]
    fn modules_that_are_computed_again_are_not_kept() {
        let model = ModelBook::shipped().find("deepseek-v3").unwrap().clone();
        let base = Layout { expert: 8, gpus: 8, ..Layout::single(4096, 8, TrainingPrecision::Mxfp8) };
        let kept = |modules| kept_by_a_block(&model, &base, true, modules) / 4096.0;
        let saved = kept(Modules::NONE) - kept(Modules::UP_PROJECTIONS);
        let mixed = 2.0 * (2.0 * 128.0 * 192.0 + 128.0 * 128.0) - f64::from(1536 + 512 + 64);
        assert!((saved - mixed).abs() < 1e-6 * mixed, "{saved} against {mixed}");
        let modules = [Modules::NORMS, Modules::ACTIVATIONS, Modules::CORE, Modules::DENSE, Modules::EXPERTS];
        assert!(modules.into_iter().all(|one| kept(one) < kept(Modules::NONE)));
        assert!(kept(Modules::CHEAP) < kept(Modules::UP_PROJECTIONS));
    }

    /// 4,096 tokens of 7,168 numbers from each of 64 ranks, in and out, in 16 bits: 7.5 GB; with a copy to each expert nothing of the kind.
    #[test]
    fn buffers_of_an_exchange_hold_what_a_whole_domain_may_send() {
        let model = ModelBook::shipped().find("deepseek-v3").unwrap().clone();
        let base = Layout { expert: 64, gpus: 64, ..Layout::single(4096, 64, TrainingPrecision::Mxfp8) };
        assert_eq!(exchanged(&model, &base, 72.0), 4.0 * 4096.0 * 64.0 * 7168.0);
        assert_eq!(exchanged(&model, &base, 8.0), 4.0 * 4096.0 * 8.0 * 7168.0);
        let by_copy = Options { dispatch: Dispatch::ByCopy, ..Options::PLAIN };
        assert_eq!(exchanged(&model, &Layout { options: by_copy, ..base }, 72.0), 0.0);
    }
}
