//! The time of one step of a replica: some sequences decode a token each, some tokens of prompts are read besides.
//!
//! Every part is a roofline (Williams et al., doi 10.1145/1498765.1498785) over what one GPU computes, reads and sends:
//! * linear layers: 2 x rows x weights operations against the weights' bytes, joined smoothly, since a kernel near the ridge overlaps both
//!   only in part: (c^3 + m^3)^(1/3). A product costs some rows besides its own.
//! * attention when decoding reads the cache of every live sequence; low-rank attention reads one vector for all heads and computes with it
//!   (the absorbed form, arXiv 2405.04434, section 2.1).
//! * attention over a prompt: 2 (key + value) operations a head and pair of tokens (arXiv 2205.14135).
//! * experts: of E, A chosen by each of n tokens, E (1 - (1 + n A / (E k))^-k) are expected to be met, and only these are read: Poisson counts
//!   whose means are spread as a gamma distribution of shape k, for tokens do not choose evenly (Greenwood and Yule, doi 10.2307/2341080). With
//!   experts on several GPUs the busiest counts: mean + sqrt(2 variance ln ranks) of such counts.
//! * sparse attention (DeepSeek-V3.2): every token scores all before it with small heads of 8 bits, which no GPU shares with another, and attends
//!   to those with the largest scores in the absorbed form.
//! * reductions after attention and feed-forward: latency x log2(ranks) + 2 (ranks - 1) / ranks x bytes / rate (arXiv 1909.08053; Thakur et
//!   al., doi 10.1177/1094342005051521), half of the bytes where the switch adds up.
//! * attention with data of its own on each rank: tokens go to their experts and back (one byte there, two back, an element) instead.
//! * proposed tokens (speculative decoding) are rows of the same step, and passes through one more block each.
//! * launches of every block, and a step's scheduling on the host. Steps with prompts have a length of their own each and are not captured as
//!   graphs: the host launches their kernels one by one, beside the device, unless the engine captures steps of so many tokens too.

use super::{
    format::{ServedFormat, chip, has_nvlink},
    layout::ServingLayout,
    parameters::ServingParameters,
    work::ServingWork,
};
use crate::hardware::{Generation, Machine};

/// What a replica does in one step; all counts are those of the whole replica.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepLoad {
    /// Sequences that get one more token.
    pub decoding: f64,
    /// Their mean length, tokens.
    pub context: f64,
    /// Tokens of prompts.
    pub prompt_tokens: f64,
    /// Tokens that such a token sees, in the mean.
    pub prompt_context: f64,
    /// Tokens of one prompt, which cannot be divided over ranks of attention with data of their own.
    pub prompt_undivided: f64,
}

/// Seconds of a step of one pipeline stage, by what they are spent on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepTime {
    /// Linear layers of attention (and recurrent layers).
    pub projections: f64,
    pub attention: f64,
    /// Dense feed-forward layers.
    pub feed_forward: f64,
    pub experts: f64,
    /// What passes memory besides: norms, activations, residuals.
    pub elements: f64,
    pub exchange: f64,
    /// The last projection, onto the vocabulary.
    pub head: f64,
    /// Launches and the host.
    pub launches: f64,
}

impl StepTime {
    pub fn total(&self) -> f64 {
        self.projections
            + self.attention
            + self.feed_forward
            + self.experts
            + self.elements
            + self.exchange
            + self.head
            + self.launches
    }
}

/// The model on the machine, in a layout.
#[derive(Clone, Copy, Debug)]
pub struct Replica<'a> {
    pub work: &'a ServingWork,
    pub machine: &'a Machine,
    pub layout: &'a ServingLayout,
    pub parameters: &'a ServingParameters,
}

/// Bytes of an element of a hidden state.
const ELEMENT: f64 = 2.0;
/// GPUs of one server that share PCIe.
const SERVER: f64 = 8.0;

/// Heads of which sparse attention over prompts takes multiples, so that fewer on a GPU cost as much: FlashMLA's on Hopper (SGLang,
/// `_forward_flashmla_sparse`); TensorRT-LLM's on Blackwell take any.
fn sparse_heads(machine: &Machine) -> f64 {
    if machine.generation == Generation::Hopper { 64.0 } else { 1.0 }
}

fn joined(one: f64, other: f64) -> f64 {
    (one.powi(3) + other.powi(3)).cbrt()
}

impl Replica<'_> {
    fn memory_rate(&self) -> f64 {
        self.machine.memory_bytes_per_second * self.parameters.memory[chip(self.machine)]
    }

    fn product_rate(&self, format: ServedFormat) -> f64 {
        let p = self.parameters;
        let bits = format.unit_bits(self.machine);
        let share = match bits {
            4 => p.products_8_bit * p.products_4_bit,
            8 if format == ServedFormat::Fp8Block => p.products_8_bit * p.products_block,
            8 => p.products_8_bit,
            _ => 1.0,
        };
        ServedFormat::peak(self.machine, bits) * p.products[chip(self.machine)] * share
    }

    /// A linear layer of `weights` on this GPU over `rows` tokens.
    fn linear(&self, rows: f64, weights: f64, format: ServedFormat) -> f64 {
        let computing = 2.0 * (rows + self.parameters.product_rows) * weights / self.product_rate(format);
        joined(computing, weights * format.weight_bytes() / self.memory_rate())
    }

    /// Rate, bytes a second, and latency, seconds, of an exchange among so many GPUs.
    fn link(&self, ranks: f64) -> (f64, f64) {
        let (p, machine) = (self.parameters, self.machine);
        let inside = ranks <= f64::from(machine.scale_up.domain);
        if inside && has_nvlink(machine) {
            (machine.scale_up.bytes_per_second * p.nvlink_rate, p.nvlink_latency)
        } else if !has_nvlink(machine) && ranks <= SERVER {
            (machine.scale_up.bytes_per_second * p.pcie_rate, p.pcie_latency)
        } else {
            (machine.scale_out.bytes_per_second, p.pcie_latency + machine.scale_out.latency)
        }
    }

    fn reduction(&self, ranks: f64, tokens: f64) -> f64 {
        if ranks <= 1.0 {
            return 0.0;
        }
        let (rate, latency) = self.link(ranks);
        let shortened = if has_nvlink(self.machine) { 0.5 } else { 1.0 };
        let bytes = 2.0 * (ranks - 1.0) / ranks * tokens * self.work.hidden * ELEMENT * shortened;
        latency * ranks.log2() + bytes / rate
    }

    /// One layer of experts on one GPU: `own` tokens of its rank, `all` of the replica.
    fn expert_layer(&self, own: f64, all: f64) -> f64 {
        let (w, l, p) = (self.work, self.layout, self.parameters);
        let (ranks, parts) = (f64::from(l.expert), l.expert_tensor());
        let of_each = all * w.active / w.experts;
        let met = w.experts * (1.0 - (1.0 + of_each / p.expert_evenness).powf(-p.expert_evenness));
        // One token chooses no expert twice.
        let met = met.max(w.active);
        let mean = all * w.active / ranks;
        let variance = mean * (1.0 + of_each / p.expert_evenness);
        let busiest = if ranks > 1.0 { mean + (2.0 * variance * ranks.ln()).sqrt() } else { mean };
        let rows = all * w.active / met;
        let efficiency = if l.engine == super::Engine::TensorRtCompiled { p.experts_compiled } else { p.experts };
        let rate = self.product_rate(l.format) * efficiency * rows / (rows + p.expert_rows);
        let computing = 2.0 * busiest * w.expert / parts / rate;
        let reading = met / ranks * w.expert / parts * l.format.weight_bytes() / self.memory_rate();
        // Rows are gathered for their experts and added up again, whole rows on every GPU however its experts are cut: four passes.
        let moving = mean * w.hidden * ELEMENT * 4.0 / self.memory_rate();
        let choosing = p.expert_layer + if l.format == ServedFormat::Fp8Block { p.expert_layer_block } else { 0.0 };
        joined(computing, reading) + self.linear(own, w.common / f64::from(l.tensor), l.format) + moving + choosing
    }

    /// Attention of the decoding sequences of a rank over the caches of one layer.
    fn decoding_attention(&self, sequences: f64, context: f64) -> f64 {
        let (w, l, p) = (self.work, self.layout, self.parameters);
        let heads = w.heads / f64::from(l.tensor) * f64::from(1 + l.draft_tokens);
        let bytes = sequences * context * w.cached * l.cache_share(w) * l.cache_bytes;
        let per_pair = if w.latent { 2.0 * (w.cached + w.cached) } else { 2.0 * (w.key + w.value) };
        let rate = self.product_rate(ServedFormat::Half) * p.latent_attention;
        (bytes / (self.memory_rate() * p.cache_reading)).max(sequences * context * heads * per_pair / rate)
    }

    /// Choosing the tokens that sparse attention sees, in one layer: `decoding` and `prompts` tokens score all before them, in 8 bits, with all
    /// heads on every GPU; the scores, in 32 bits, are written and read twice to find the largest.
    fn choosing(&self, decoding: f64, context: f64, prompts: f64, prompt_context: f64) -> f64 {
        let (w, p) = (self.work, self.parameters);
        let scores = decoding * context + prompts * prompt_context;
        let computing = 2.0 * scores * w.index_heads * w.index_size / (ServedFormat::peak(self.machine, 8) * p.prompt_attention);
        computing + (decoding * context * w.index_size + 3.0 * 4.0 * scores) / self.memory_rate()
    }

    /// One step of one pipeline stage.
    pub fn step(&self, load: &StepLoad) -> StepTime {
        let (w, l, p) = (self.work, self.layout, self.parameters);
        let (tensor, data) = (f64::from(l.tensor), f64::from(l.attention_data));
        let decoding = load.decoding / data;
        let prompts = if l.attention_data > 1 {
            (load.prompt_tokens / data).max(load.prompt_tokens.min(load.prompt_undivided))
        } else {
            load.prompt_tokens
        };
        let tried = f64::from(1 + l.draft_tokens);
        let rows = decoding * tried + prompts;
        let all = load.decoding * tried + load.prompt_tokens;
        if rows <= 0.0 {
            return StepTime::default();
        }
        let stages = f64::from(l.pipeline);
        let attention_format = l.attention_format(w);
        let mixing = w.attention_layers + w.window_layers;
        let memory = self.memory_rate();

        let projections = self.linear(rows, w.attention / tensor, attention_format) * mixing
            + self.linear(rows, w.recurrent / tensor, attention_format) * w.recurrent_layers
            + self.linear(rows, w.indexer, attention_format) * mixing;
        // Chosen tokens are attended to in the absorbed form, also by prompts, by kernels that take multiples of so many heads.
        let sparse = w.indexer > 0.0;
        let (heads, pair) = if sparse {
            let multiple = sparse_heads(self.machine);
            ((w.heads / tensor / multiple).ceil() * multiple, w.cached + w.cached)
        } else {
            (w.heads / tensor, w.key + w.value)
        };
        let prompt = |context: f64| 2.0 * prompts * context * heads * pair / (self.machine.peaks.bf16 * p.prompt_attention);
        let choosing =
            if sparse { self.choosing(decoding * tried, load.context, prompts, load.prompt_context) * mixing } else { 0.0 };
        // A recurrent state is read and written in 32 bits.
        let states = decoding * w.state / tensor * 8.0 / memory;
        let attention = (self.decoding_attention(decoding, load.context) + prompt(load.prompt_context)) * w.attention_layers
            + (self.decoding_attention(decoding, load.context.min(w.window)) + prompt(load.prompt_context.min(w.window)))
                * w.window_layers
            + choosing
            + states * w.recurrent_layers;
        let dense_rows = if l.divides_dense_over_data(w) { all } else { rows };
        let feed_forward = self.linear(dense_rows, w.dense / l.dense_parts(w), l.format) * w.dense_layers;
        let experts = if w.expert_layers > 0.0 { self.expert_layer(rows, all) * w.expert_layers } else { 0.0 };
        let elements = p.element_passes * rows * w.hidden * ELEMENT / memory * w.blocks();
        let exchange = if l.attention_data > 1 {
            let ranks = tensor * data;
            let (rate, _) = self.link(ranks);
            // In a domain wider than a server tokens are sent to their experts; in a server all are gathered by all and reduced.
            let sent = if self.machine.scale_up.domain > 8 {
                rows * w.active.min(f64::from(l.expert))
            } else {
                all.max(rows) * (ranks - 1.0) / ranks
            };
            w.expert_layers * (2.0 * p.expert_exchange + sent * w.hidden * 3.0 / rate)
                + w.blocks() * self.reduction(tensor, rows)
                + w.dense_layers
                    * if l.divides_dense_over_data(w) { self.reduction(ranks, all) } else { self.reduction(tensor, rows) }
        } else {
            (w.blocks() + w.dense_layers + w.expert_layers) * self.reduction(tensor, rows)
        };
        // What chooses tokens is launched as often again.
        let latent = f64::from(u8::from(w.latent) + u8::from(sparse));
        let costs = p.engine(l.engine);
        let last = decoding * tried + (prompts / load.prompt_context.max(1.0)).min(prompts);
        let handed = if l.pipeline > 1 {
            let (rate, latency) = self.link(2.0);
            rows * w.hidden * ELEMENT / rate + latency
        } else {
            0.0
        };
        // Each proposed token takes a pass through one more block and through the head.
        let blocks = (1.0 + f64::from(l.draft_tokens) / w.blocks()) / stages;
        let mut time = StepTime {
            projections: projections * blocks,
            attention: attention * blocks,
            feed_forward: feed_forward * blocks,
            experts: experts * blocks,
            elements: elements * blocks,
            exchange: exchange * blocks + handed,
            // Stages hold as many blocks each; the last one has the head besides and sets the pace.
            head: self.linear(last, w.table / tensor, ServedFormat::Half) * tried,
            launches: w.blocks() * (costs.block + latent * p.latent_layer) * blocks,
        };
        if prompts > 0.0 && rows > f64::from(l.captured_tokens) {
            let device = time.total();
            let host = w.blocks() * (costs.eager_block + latent * p.latent_eager) * blocks;
            time.launches += joined(device, host) - device;
        }
        time.launches += costs.step + costs.sequence * decoding;
        time
    }
}
