//! One step of training: how long it takes, of what that is made, and what it holds and moves.
//!
//! A step is `m` micro-batches through a pipeline of `p` ranks with `v` chunks each: `m` times the slowest rank's forward and backward, and
//! the ramp of (p-1)/v such times more (Narayanan et al., arXiv 2104.04473, section 2.2), then what of the exchange of gradients the
//! backward pass does not hide, and the optimizer. Within a micro-batch a rank's time is that of its matrix products (`gemm`), its
//! attention, what is bound by memory, and the exchanges of tensor, context and expert parallelism that nothing hides; or the host's time to
//! launch all that, where it is longer. Weights that are sharded are gathered for every micro-batch beside the computation.

use super::{
    collective::{Group, Links},
    gemm::Rate,
    layout::{Graphs, Layout, Modules, Recompute, Sharding, Stack, Task, TrainingPrecision},
    memory::{Again, Held, Memory, Room, memory},
    parameters::{OfGeneration as Of, OfStack, Parameters},
    transformer::{Linear, Transformer, seen_causally},
};
use crate::hardware::Machine;
use crate::units::Seconds;

/// Where the time of a step goes; the parts add up to the whole. In seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TimeSplit {
    /// Matrix products of weights.
    pub products: f64,
    /// Attention's own products and scans.
    pub attention: f64,
    /// Norms, activations, routing, quantisation: bound by memory.
    pub elementwise: f64,
    /// What of all these is computed a second time.
    pub recomputation: f64,
    /// Exchanges that nothing hides.
    pub tensor: f64,
    pub context: f64,
    pub expert: f64,
    pub pipeline: f64,
    pub data: f64,
    /// Waiting for the host.
    pub host: f64,
    /// Ranks of the pipeline waiting at the ends of a step, and for the slowest.
    pub bubble: f64,
    pub optimizer: f64,
}

impl TimeSplit {
    pub fn parts(&self) -> [(&'static str, f64); 12] {
        [
            ("products", self.products),
            ("attention", self.attention),
            ("elementwise", self.elementwise),
            ("recomputation", self.recomputation),
            ("tensor exchange", self.tensor),
            ("context exchange", self.context),
            ("expert exchange", self.expert),
            ("pipeline exchange", self.pipeline),
            ("data exchange", self.data),
            ("host", self.host),
            ("bubble", self.bubble),
            ("optimizer", self.optimizer),
        ]
    }

    pub fn total(&self) -> f64 {
        self.parts().iter().map(|(_, seconds)| seconds).sum()
    }
}

/// What a step takes, holds and moves, on one GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepEstimate {
    pub step: Seconds,
    pub split: TimeSplit,
    pub memory: Memory,
    /// The memory of the GPU, bytes.
    pub capacity: f64,
    /// Bytes of activations that wait in the host's memory.
    pub offloaded: f64,
    /// What is computed again.
    pub again: Again,
    /// Operations of the model in one step, one GPU's share, causal attention counted by half and nothing twice.
    pub model_flops: f64,
    /// Of tokens of all ranks, one GPU's share.
    pub tokens_per_second_per_gpu: f64,
    /// Model operations over the dense peak in 16 bits: how publications count it.
    pub model_flops_utilisation: f64,
    /// Bytes that one GPU sends in a step, and in how many messages.
    pub sent_bytes: f64,
    pub messages: f64,
}

impl StepEstimate {
    /// Bytes by which the layout does not fit.
    pub fn missing_bytes(&self) -> Option<f64> {
        Some(self.memory.total() - self.offloaded - self.capacity).filter(|missing| *missing > 0.0)
    }
}

/// What a machine sustains under a software stack in a precision: all that a step needs of both, made once for many layouts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sustained {
    low: Rate,
    half: Rate,
    attention_flops: f64,
    memory: f64,
    links: Links,
    exchange: Links,
    dense_host: f64,
    expert_host: f64,
    /// Share of the host's time that graphs of layers leave.
    graphed: f64,
    traffic: f64,
    data_exposed: f64,
    tensor_exposed: f64,
    capacity: f64,
    /// Bytes of the host's memory in which activations can wait, and how many a second go there.
    host: f64,
    host_link: f64,
    peak: f64,
}

/// Seconds that every kernel costs the GPU beyond its work: launching and draining.
const LAUNCH: f64 = 2e-6;

/// Bytes of a memory that a training can use, over what the sheet says: ECC, page tables and fragments take the rest.
pub(super) const USABLE: f64 = 0.94;

/// Tokens by which the tiles of an expert's product are not filled, in the mean: half of 128 rows.
const UNFILLED: f64 = 64.0;

/// Backward over forward of fused attention: five products against two (Dao, arXiv 2307.08691, section 3.1).
const ATTENTION_BACKWARD: f64 = 2.5;

/// Seen tokens at which fused attention reaches half of its rate: one tile of queries has to be filled and emptied.
const ATTENTION_RAMP: f64 = 128.0;

/// Backward over forward of what is bound by memory: it reads inputs and gradients and writes gradients.
const ELEMENTWISE_BACKWARD: f64 = 1.7;

/// Bytes of one weight that the optimizer's step and the passes around it (norm, clearing) read and write: gradient, 32-bit weight and
/// two moments read, three of them and a 16-bit weight written, the gradient read and cleared once more.
const OPTIMIZER_BYTES: f64 = 38.0;

impl Sustained {
    /// Bytes of a GPU that may be used.
    pub fn capacity(&self) -> f64 {
        self.capacity
    }

    /// Bytes of activations that wait in the host's memory, where that is near: they go there and come back beside the computation.
    pub(super) fn offloaded(&self, layout: &Layout, held: &Memory, again: Again) -> f64 {
        if layout.sharding == Sharding::Weights && again == Again::default() {
            (held.total() - self.capacity).clamp(0.0, held.activations.min(self.host))
        } else {
            0.0
        }
    }

    /// What a layout holds on a GPU, and what is computed again.
    pub fn memory(&self, model: &Transformer, layout: &Layout) -> (Memory, Again) {
        memory(model, layout, Room { capacity: self.capacity, host: self.host, domain: self.links.domain })
    }

    pub fn new(machine: &Machine, stack: Stack, precision: TrainingPrecision, parameters: &Parameters) -> Sustained {
        let generation = machine.generation;
        let of = |figure| parameters.of(generation, figure);
        let clock = (machine.power_w / machine.full_power_w).powf(of(Of::Power));
        let memory = machine.memory_bytes_per_second * of(Of::Memory);
        let rate = |peak: f64, share: f64, width: f64| Rate {
            flops: peak * share * clock,
            bytes: memory,
            multiprocessors: f64::from(machine.multiprocessors),
            lost_waves: of(Of::LostWaves),
            quantised: of(Of::Quantised),
            ramp: of(Of::Ramp),
            width,
            launch: LAUNCH,
        };
        let peaks = machine.peaks;
        let half = rate(peaks.bf16, of(Of::Half), 2.0);
        let scaled = match precision {
            TrainingPrecision::Fp8Block => Of::Fp8Block,
            TrainingPrecision::Mxfp8 => Of::Mxfp8,
            _ => Of::Fp8,
        };
        let low = match precision {
            TrainingPrecision::Half => half,
            TrainingPrecision::Nvfp4 => match peaks.fp4 {
                Some(peak) => rate(peak, of(Of::Fp4), 0.56),
                None => half,
            },
            _ => match peaks.fp8 {
                Some(peak) => rate(peak, of(scaled), 1.0),
                None => half,
            },
        };
        let attention = of(match stack {
            Stack::Composer => Of::AttentionFirst,
            Stack::TorchEager | Stack::TorchCompiled => Of::AttentionSecond,
            _ => Of::Attention,
        });
        let host =
            parameters.of_stack(stack, OfStack::Host) * if machine.coherent_host.is_some() { of(Of::NearHost) } else { 1.0 };
        Sustained {
            low,
            half,
            attention_flops: peaks.bf16 * clock * attention,
            memory,
            links: Links::new(machine, of(Of::Inside), of(Of::Between)),
            // What computation hides of an exchange looks like a faster link.
            exchange: Links::new(machine, of(Of::Inside) / of(Of::ExchangeInside), of(Of::Between) / of(Of::ExchangeBetween)),
            dense_host: of(Of::DenseHost) * host,
            expert_host: of(Of::ExpertHost) * host,
            graphed: parameters.of_stack(stack, OfStack::Graphed),
            traffic: parameters.of_stack(stack, OfStack::Traffic),
            data_exposed: parameters.of_stack(stack, OfStack::DataExposed),
            tensor_exposed: parameters.of_stack(stack, OfStack::TensorExposed),
            capacity: machine.memory.0 as f64 * USABLE,
            host: machine.coherent_host.map_or(0.0, |host| host.memory.0 as f64 * USABLE),
            host_link: machine.coherent_host.map_or(f64::INFINITY, |host| host.bytes_per_second),
            peak: peaks.bf16,
        }
    }
}

/// Seconds of one micro-batch in part of the model, by kind.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    products: f64,
    attention: f64,
    elementwise: f64,
    tensor: f64,
    context: f64,
    expert: f64,
}

impl Work {
    fn computed(&self) -> f64 {
        self.products + self.attention + self.elementwise
    }

    fn total(&self) -> f64 {
        self.computed() + self.tensor + self.context + self.expert
    }

    fn add(&mut self, other: Work, times: f64) {
        self.products += other.products * times;
        self.attention += other.attention * times;
        self.elementwise += other.elementwise * times;
        self.tensor += other.tensor * times;
        self.context += other.context * times;
        self.expert += other.expert * times;
    }
}

/// Bytes to quantise one element that enters a product: read in 16 bits, written as it is and transposed; tensor scales by what is there now
/// read it twice, 4-bit floats are turned by a Hadamard matrix and rounded at random first.
const fn quantisation_bytes(precision: TrainingPrecision) -> f64 {
    match precision {
        TrainingPrecision::Half => 0.0,
        TrainingPrecision::Fp8 => 5.0,
        TrainingPrecision::Mxfp8 => 4.0,
        TrainingPrecision::Fp8Block => 8.0,
        TrainingPrecision::Nvfp4 => 8.0,
    }
}

struct Costs<'a> {
    model: &'a Transformer,
    layout: &'a Layout,
    on: &'a Sustained,
    tokens: f64,
    tensor: f64,
    hidden: f64,
}

impl Costs<'_> {
    /// Forward and backward products of a layer's linears, over `rows` rows; the one at `last` is divided along its inputs.
    fn linears(&self, linears: &[Linear], count: f64, rows: f64, last: usize, rate: &Rate) -> (f64, f64) {
        let (mut forward, mut backward) = (0.0, 0.0);
        for (at, linear) in linears.iter().enumerate() {
            if linear.outputs == 0.0 {
                continue;
            }
            let (inputs, outputs) = if at == last {
                (linear.inputs / self.tensor, linear.outputs)
            } else {
                (linear.inputs, linear.outputs / self.tensor)
            };
            forward += rate.products(count, rows, outputs, inputs);
            backward += rate.products(count, rows, inputs, outputs);
            if self.layout.task == Task::All {
                backward += rate.products(count, inputs, outputs, rows);
            }
        }
        (forward, backward)
    }

    /// Seconds of memory traffic of `bytes` a token.
    fn traffic(&self, bytes: f64) -> f64 {
        self.tokens * bytes / self.on.memory
    }

    /// Quantising the inputs of these linears, forward, and their gradients, backward, of `copies` rows a token.
    fn quantised(&self, linears: &[Linear], copies: f64) -> (f64, f64) {
        let bytes = quantisation_bytes(self.layout.precision) * copies / self.tensor;
        let sum = |of: fn(&Linear) -> f64| linears.iter().map(of).sum::<f64>();
        (self.traffic(bytes * sum(|linear| linear.inputs)), self.traffic(bytes * sum(|linear| linear.outputs)))
    }

    /// Traffic of a layer: `whole` bytes a token that only sequence parallelism divides, `divided` that tensor parallelism does.
    fn passes(&self, whole: f64, divided: f64) -> (f64, f64) {
        let along = if self.layout.sequence_parallel { self.tensor } else { 1.0 };
        let forward = self.traffic((whole / along + divided / self.tensor) * self.on.traffic);
        (forward, forward * ELEMENTWISE_BACKWARD)
    }

    /// The exchange around one part that tensor parallelism divides: gathered before and summed behind; backward the input once more.
    fn tensor_exchange(&self) -> (f64, f64) {
        if self.layout.tensor == 1 {
            return (0.0, 0.0);
        }
        let group = Group::new(self.layout.tensor, 1);
        let bytes = 2.0 * self.tokens * self.hidden;
        let exposed = if self.layout.tensor_overlap { self.on.tensor_exposed } else { 1.0 };
        if self.layout.sequence_parallel {
            let gather = self.on.links.gather(bytes, group) * exposed;
            (2.0 * gather, 3.0 * gather)
        } else {
            let sum = self.on.links.all_reduce(bytes, group) * exposed;
            (sum, sum)
        }
    }

    /// Attention over `window` tokens: seconds forward and backward of its own products.
    fn attention_core(&self, window: f64) -> (f64, f64) {
        let attention = &self.model.attention;
        let sequence = f64::from(self.layout.sequence);
        if !self.layout.stack.fuses_attention() {
            return self.unfused_core(sequence);
        }
        let seen = seen_causally(sequence, window);
        let flops = 2.0 * (attention.query_width() + attention.value_width()) * seen * self.tokens / self.tensor;
        // A ring takes its part of the keys at each hop, in a kernel of its own.
        let forward = flops / self.on.attention_flops * (1.0 + ATTENTION_RAMP * f64::from(self.layout.context) / seen);
        (forward, forward * ATTENTION_BACKWARD)
    }

    /// Scores written to memory, whole: two products a head and 13 bytes a score (scaled and masked softmax, dropout with its mask, each read
    /// and written), twice that backward.
    fn unfused_core(&self, sequence: f64) -> (f64, f64) {
        let attention = &self.model.attention;
        let (heads, size) = (f64::from(attention.heads), f64::from(attention.head_size));
        let count = f64::from(self.layout.micro_batch) * heads / self.tensor;
        let products =
            self.on.half.products(count, sequence, sequence, size) + self.on.half.products(count, sequence, size, sequence);
        let scores = count * sequence * sequence * 13.0 / self.on.memory * self.on.traffic;
        let once = products + scores;
        (once, if self.layout.recompute == Recompute::Selective { 3.0 * once } else { 2.0 * once })
    }

    fn attention_layer(&self, window: f64) -> (Work, Work) {
        let attention = &self.model.attention;
        let linears = attention.linears(self.hidden);
        let last = linears.iter().rposition(|linear| linear.outputs > 0.0).unwrap_or(0);
        let (forward, backward) = self.linears(&linears, 1.0, self.tokens, last, &self.on.low);
        let (core, core_backward) = self.attention_core(window);
        let widths = attention.query_width() + attention.key_value_width();
        let (pass, pass_backward) = self.passes(10.0 * self.hidden, 4.0 * widths + self.merged());
        let (quantised, quantised_backward) = self.quantised(&linears, 1.0);
        let (tensor, tensor_backward) = self.tensor_exchange();
        let (context, context_backward) = self.context_exchange(core, core_backward);
        (
            Work { products: forward, attention: core, elementwise: pass + quantised, tensor, context, expert: 0.0 },
            Work {
                products: backward,
                attention: core_backward,
                elementwise: pass_backward + quantised_backward,
                tensor: tensor_backward,
                context: context_backward,
                expert: 0.0,
            },
        )
    }

    /// Bytes of a token with which the results of a ring's hops are merged: each one's output in 16 bits is read, scaled into a sum in 32 bits.
    fn merged(&self) -> f64 {
        if self.layout.context == 1 { 0.0 } else { 10.0 * f64::from(self.layout.context) * self.model.attention.value_width() }
    }

    /// Keys and values that go round a ring under the attention (Liu et al., arXiv 2310.01889), and their gradients with them backward: what
    /// takes longer than the attention.
    fn context_exchange(&self, core: f64, core_backward: f64) -> (f64, f64) {
        if self.layout.context == 1 {
            return (0.0, 0.0);
        }
        let bytes = 2.0 * self.model.attention.key_value_width() * self.tokens / self.tensor;
        let hops = f64::from(self.layout.context - 1);
        let group = Group::new(self.layout.context, self.layout.tensor);
        let stride = if self.on.links.together(group) >= group.size { self.tensor } else { self.on.links.domain };
        let ring = hops * self.on.links.send(bytes, stride);
        (beyond(ring, core, HIDDEN_COST), beyond(2.0 * ring, core_backward, HIDDEN_COST))
    }

    fn dense_layer(&self) -> (Work, Work) {
        let linears = self.model.dense.linears(self.hidden, self.model.gated);
        let (forward, backward) = self.linears(&linears, 1.0, self.tokens, 1, &self.on.low);
        let width = f64::from(self.model.dense.width) * if self.model.gated { 6.0 } else { 4.0 };
        let (pass, pass_backward) = self.passes(10.0 * self.hidden, width);
        let (quantised, quantised_backward) = self.quantised(&linears, 1.0);
        let (tensor, tensor_backward) = self.tensor_exchange();
        (
            Work { products: forward, elementwise: pass + quantised, tensor, ..Work::default() },
            Work {
                products: backward,
                elementwise: pass_backward + quantised_backward,
                tensor: tensor_backward,
                ..Work::default()
            },
        )
    }

    fn recurrent_layer(&self) -> (Work, Work) {
        let Some(recurrent) = self.model.recurrent else { return Default::default() };
        let linears = recurrent.linears(self.hidden);
        let (forward, backward) = self.linears(&linears, 1.0, self.tokens, 1, &self.on.low);
        let scan = recurrent.scan_flops() * self.tokens / self.tensor / self.on.attention_flops;
        // The convolution, the scan and the gated norm each read and write what the first projection makes.
        let (pass, pass_backward) = self.passes(10.0 * self.hidden, 12.0 * linears[0].outputs);
        let (quantised, quantised_backward) = self.quantised(&linears, 1.0);
        let (tensor, tensor_backward) = self.tensor_exchange();
        (
            Work { products: forward, attention: scan, elementwise: pass + quantised, tensor, ..Work::default() },
            Work {
                products: backward,
                attention: ATTENTION_BACKWARD * scan,
                elementwise: pass_backward + quantised_backward,
                tensor: tensor_backward,
                ..Work::default()
            },
        )
    }

    fn experts_layer(&self) -> (Work, Work) {
        let Some(experts) = self.model.experts else { return Default::default() };
        let (gated, copies) = (self.model.gated, f64::from(experts.active));
        let common = experts.common(self.hidden, gated);
        let (mut forward, mut backward) = self.linears(&common, 1.0, self.tokens, 2, &self.on.low);
        // Experts are whole on their GPU; tensor-parallel ranks bring a part of the tokens each.
        let own = Costs { tensor: 1.0, tokens: self.tokens / self.tensor, ..*self };
        let group = Group::new(self.layout.expert, 1);
        let held = f64::from(experts.count) / f64::from(self.layout.expert);
        let rows = own.tokens * copies / held;
        let linears = experts.linears(self.hidden, gated);
        let (one, one_backward) = own.linears(&linears, held, rows + UNFILLED.min(rows), usize::MAX, &self.on.low);
        forward += one;
        backward += one_backward;
        let token = experts.token_width(self.hidden);
        let width = if gated { 6.0 } else { 4.0 };
        // One kernel takes the product, the activation and its quantisation, and the gradients of these behind the product of theirs.
        let fused = self.layout.options.fused_experts && !self.model.biased;
        // What the exchange does not do itself of sorting tokens to their experts and back reads and writes each copy once.
        let activation = if fused { 0.0 } else { width * f64::from(experts.width) };
        let routed = copies * (4.0 * token + activation) + 16.0 * f64::from(experts.count);
        // Grouped products have no place for biases at their end: these are added in a pass of their own, unless all of it is one kernel.
        let biases =
            if self.model.biased { copies * 4.0 * linears.iter().map(|linear| linear.outputs).sum::<f64>() } else { 0.0 };
        let (pass, pass_backward) = self.passes(10.0 * self.hidden, width * f64::from(experts.shared_width) + routed + biases);
        let (quantised, quantised_backward) = if fused {
            (self.quantised(&linears[..1], copies).0, self.quantised(&linears[1..], copies).1)
        } else {
            self.quantised(&linears, copies)
        };
        let (shared, shared_backward) = self.quantised(&common[1..], 1.0);
        let exchange = 2.0 * self.on.exchange.all_to_all(own.tokens, 2.0 * token, copies, group, self.layout.options.dispatch);
        let (tensor, tensor_backward) = if experts.shared_width > 0 { self.tensor_exchange() } else { (0.0, 0.0) };
        (
            Work { products: forward, elementwise: pass + quantised + shared, tensor, expert: exchange, ..Work::default() },
            Work {
                products: backward,
                elementwise: pass_backward + quantised_backward + shared_backward,
                tensor: tensor_backward,
                expert: exchange,
                ..Work::default()
            },
        )
    }

    /// Seconds of [`Modules`] in all blocks, forward, but for the last two, which are layers.
    fn modules(&self) -> [f64; Modules::COUNT] {
        let model = self.model;
        let mixing = f64::from(model.attention_layers + model.window_layers);
        let feeding = f64::from(model.dense.layers + model.experts.map_or(0, |experts| experts.layers));
        let recurrent = f64::from(model.recurrent.map_or(0, |one| one.layers));
        let along = if self.layout.sequence_parallel { self.tensor } else { 1.0 };
        let norms = (mixing + feeding + recurrent) * self.traffic(4.0 * self.hidden / along * self.on.traffic);
        let width = if model.gated { 6.0 } else { 4.0 };
        let routed = model
            .experts
            .map_or(0.0, |experts| f64::from(experts.layers) * f64::from(experts.active * experts.width + experts.shared_width));
        let activated = f64::from(model.dense.layers) * f64::from(model.dense.width) + routed;
        let activations = self.traffic(width * activated / self.tensor * self.on.traffic);
        let linears = model.attention.linears(self.hidden);
        let up = match model.attention.latent {
            Some(latent) if latent.query_rank > 0 => {
                self.linears(&[linears[1], linears[3]], 1.0, self.tokens, usize::MAX, &self.on.low).0
            }
            Some(_) => self.linears(&linears[2..3], 1.0, self.tokens, usize::MAX, &self.on.low).0,
            None => 0.0,
        };
        let core = |layers: u32, window: f64| {
            if layers == 0 { 0.0 } else { f64::from(layers) * self.attention_core(window).0 }
        };
        let core =
            core(model.attention_layers, f64::from(self.layout.sequence)) + core(model.window_layers, f64::from(model.window));
        [norms, activations, mixing * up, core, 0.0, 0.0]
    }

    /// The last projection and the loss: in 16 bits, its output in 32 read and written a few times.
    fn head(&self) -> (Work, Work) {
        let vocabulary = f64::from(self.model.vocabulary);
        let (forward, backward) =
            self.linears(&[Linear::new(self.hidden, vocabulary)], 1.0, self.tokens, usize::MAX, &self.on.half);
        let pass = self.traffic(8.0 * vocabulary / self.tensor * self.on.traffic);
        (
            Work { products: forward, elementwise: pass, ..Work::default() },
            Work { products: backward, elementwise: pass, ..Work::default() },
        )
    }
}

/// What an exchange costs the computation under which it runs, as a share of its own time: it takes multiprocessors and memory from it.
const HIDDEN_COST: f64 = 0.1;

/// The same for the exchange of experts: its kernels take 20 to 32 of the multiprocessors (DeepEP, HybridEP), and memory besides.
const TAKEN_BY_EXCHANGE: f64 = 0.25;

/// What is left of an exchange under a computation: what takes longer, and a share of the rest.
fn beyond(exchange: f64, computation: f64, share: f64) -> f64 {
    (exchange - computation).max(0.0) + share * exchange.min(computation)
}

/// What a rank waits for a host that needs `host` to launch what takes `work`: the larger sets the pace where one is far larger, and kernels
/// of all lengths make a soft change between the two.
fn waited(host: f64, work: f64) -> f64 {
    host.hypot(work) - work
}

/// A step of training.
pub fn training_step(model: &Transformer, machine: &Machine, layout: &Layout, parameters: &Parameters) -> StepEstimate {
    let on = Sustained::new(machine, layout.stack, layout.precision, parameters);
    training_step_on(model, layout, &on)
}

/// A step of training on a machine whose sustained rates are known: no allocation, about a microsecond.
pub fn training_step_on(model: &Transformer, layout: &Layout, on: &Sustained) -> StepEstimate {
    step_of(model, layout, on, &Blocks::new(model, layout, on), on.memory(model, layout))
}

/// What all blocks of a model take in one micro-batch: all of a step that tells apart neither the pipeline, nor data-parallel ranks and what they
/// shard, nor what is computed again. Layouts that differ in these alone share it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Blocks {
    forward: Work,
    backward: Work,
    head: Work,
    head_backward: Work,
    /// Seconds of the host, forward, without graphs.
    host: f64,
    /// Seconds of each of [`Modules`] in all blocks, forward.
    modules: [f64; Modules::COUNT],
}

impl Blocks {
    /// Seconds, without the host.
    pub fn total(&self) -> f64 {
        self.forward.total() + self.backward.total() + self.head.total() + self.head_backward.total()
    }

    /// The same with the exchange of experts under the computation of another micro-batch.
    pub fn overlapped(mut self) -> Blocks {
        for work in [&mut self.forward, &mut self.backward] {
            work.expert = beyond(work.expert, work.computed(), TAKEN_BY_EXCHANGE);
        }
        self
    }

    pub fn new(model: &Transformer, layout: &Layout, on: &Sustained) -> Blocks {
        let tokens = f64::from(layout.micro_batch) * f64::from(layout.sequence) / f64::from(layout.context);
        let costs = Costs { model, layout, on, tokens, tensor: f64::from(layout.tensor), hidden: f64::from(model.hidden) };

        // All blocks of the model, one micro-batch.
        let (mut forward, mut backward) = (Work::default(), Work::default());
        let mut host = 0.0;
        let mut take = |layers: u32, (one, one_backward): (Work, Work), seconds: f64| {
            forward.add(one, f64::from(layers));
            backward.add(one_backward, f64::from(layers));
            host += f64::from(layers) * seconds;
            f64::from(layers) * one.total()
        };
        let mut modules = costs.modules();
        let sequence = f64::from(layout.sequence);
        if model.attention_layers > 0 {
            take(model.attention_layers, costs.attention_layer(sequence), on.dense_host / 2.0);
        }
        if model.window_layers > 0 {
            take(model.window_layers, costs.attention_layer(f64::from(model.window)), on.dense_host / 2.0);
        }
        if let Some(recurrent) = model.recurrent {
            take(recurrent.layers, costs.recurrent_layer(), on.dense_host / 2.0);
        }
        if model.dense.layers > 0 {
            modules[Modules::DENSE.place()] = take(model.dense.layers, costs.dense_layer(), on.dense_host / 2.0);
        }
        if let Some(experts) = model.experts {
            modules[Modules::EXPERTS.place()] = take(experts.layers, costs.experts_layer(), on.expert_host);
        }
        // The head, with the blocks that predict further tokens, lies on the last rank.
        let (mut head, mut head_backward) = (Work::default(), Work::default());
        let heads = f64::from(1 + model.prediction_layers);
        let (one, one_backward) = costs.head();
        head.add(one, heads);
        head_backward.add(one_backward, heads);
        if model.prediction_layers > 0 {
            let extra = f64::from(model.prediction_layers);
            for (one, one_backward) in [
                costs.attention_layer(sequence),
                if model.experts.is_some() { costs.experts_layer() } else { costs.dense_layer() },
            ] {
                head.add(one, extra);
                head_backward.add(one_backward, extra);
            }
        }
        Blocks { forward, backward, head, head_backward, host, modules }
    }
}

/// The step whose blocks and memory are known.
pub(super) fn step_of(
    model: &Transformer,
    layout: &Layout,
    on: &Sustained,
    blocks_of: &Blocks,
    (held_memory, again): (Memory, Again),
) -> StepEstimate {
    let blocks_of = if layout.overlaps_experts() { blocks_of.overlapped() } else { *blocks_of };
    let Blocks { mut forward, mut backward, head, head_backward, host, modules } = blocks_of;
    // Seconds of all blocks that are computed a second time.
    let parts: f64 = again.modules.places().map(|at| modules[at]).sum();
    let recomputed = again.blocks * forward.total() + parts;
    let tokens = f64::from(layout.micro_batch) * f64::from(layout.sequence) / f64::from(layout.context);
    let sequence = f64::from(layout.sequence);

    // One rank of the pipeline.
    let (pipeline, interleave) = (f64::from(layout.pipeline), f64::from(layout.interleave));
    let blocks = f64::from(model.blocks());
    let chunks = pipeline * interleave;
    let fullest = (blocks / chunks).ceil() * interleave;
    let spare = fullest * pipeline - blocks;
    let share = 1.0 / pipeline;
    let offloaded = on.offloaded(layout, &held_memory, again);
    // Under the forward pass they go there, under the backward pass they come back.
    let offload = |work: &Work| beyond(offloaded / on.host_link, work.total() * share, HIDDEN_COST) * pipeline;
    forward.elementwise += offload(&forward);
    backward.elementwise += offload(&backward);
    let host_rank = share
        * host
        * match layout.options.graphs {
            // Megatron-Core takes no graphs where whole layers are computed again or activations wait in the host's memory.
            _ if again.blocks > 0.0 || offloaded > 0.0 => 1.0,
            Graphs::Nothing => 1.0,
            Graphs::Layers => on.graphed,
            Graphs::Step => 0.0,
        };
    // The mean rank: forward and backward, each at least as long as the host needs to launch it.
    let forward_rank = forward.total() * share;
    let backward_rank = (backward.total() + recomputed) * share;
    let waiting = waited(host_rank, forward_rank) + waited(host_rank * (1.0 + again.blocks), backward_rank);
    let block = (forward.total() + backward.total() + recomputed) / blocks + waiting * pipeline / blocks;
    let head_time = head.total() + head_backward.total();

    // Sharded weights: gathered forward and again backward, gradients summed behind, beside the computation of the micro-batch.
    let held = Held::new(model, layout);
    let (mut gathered, mut sent, mut messages) = (0.0, 0.0, 0.0);
    let all_data = layout.data() * layout.context;
    let shards = Group::new(layout.shards(), layout.tensor);
    let expert_ranks = (layout.gpus / (layout.pipeline * layout.expert)).max(1);
    let expert_group = Group::new(expert_ranks.min(layout.shards()), layout.expert);
    let exchanged = |weight: f64, all: Group, experts: Group| {
        on.links.gather(weight * held.common, all) + on.links.gather(weight * held.experts, experts)
    };
    let piecewise = layout.shards() > 1
        && layout.pipeline == 1
        && (layout.sharding == Sharding::Weights || layout.sharding == Sharding::Gradients && layout.task == Task::All);
    if piecewise {
        let low_gather =
            matches!(layout.stack, Stack::TorchEager | Stack::TorchCompiled) && layout.precision == TrainingPrecision::Fp8;
        let weight = if low_gather { 1.0 } else { 2.0 };
        let gather = exchanged(weight, shards, expert_group);
        let scatter = if layout.task == Task::All {
            exchanged(if layout.stack.is_torch() { 4.0 } else { 2.0 }, shards, expert_group)
        } else {
            0.0
        };
        let again = if layout.sharding == Sharding::Weights { gather } else { 0.0 };
        let compute = (forward_rank + head.total() * share, backward_rank + head_backward.total() * share);
        gathered = beyond(gather, compute.0, on.data_exposed) + beyond(again + scatter, compute.1, on.data_exposed);
        sent += held.all() * weight * 2.0 + held.all() * 4.0;
        messages += 3.0 * fullest;
    }

    let micro_batches = f64::from(layout.micro_batches());
    let mean = (blocks * block + head_time) * share + gathered;
    // Places that stay empty are those of the embedding and of the head; blocks that predict further tokens take all of them.
    let empty = if model.prediction_layers > 0 { spare } else { (spare / 2.0).ceil() };
    let last = (fullest - empty).max(0.0) * block + head_time;
    let slowest = (fullest * block).max(last) + gathered;
    let ramp = (pipeline - 1.0) / interleave * mean;
    let idle = if layout.pipeline > 1 { micro_batches * (slowest - mean) + ramp } else { 0.0 };

    // Messages between neighbours of the pipeline.
    let mut between = 0.0;
    if layout.pipeline > 1 {
        let bytes = 2.0 * tokens * f64::from(model.hidden) / f64::from(layout.tensor);
        let stride = f64::from(layout.gpus) / pipeline;
        let one = on.links.send(bytes, stride);
        // Where the links' traffic is hidden, it still takes multiprocessors and memory, and every message its launches on both ends.
        let hidden = on.data_exposed.max(HIDDEN_COST) * one + 2.0 * LAUNCH;
        between = 2.0 * (micro_batches * interleave * hidden + (pipeline - 1.0) * one);
        sent += 2.0 * micro_batches * interleave * bytes;
        messages += 2.0 * micro_batches * interleave;
    }

    // Gradients and weights once a step, hidden under one micro-batch at most.
    let mut data = 0.0;
    if layout.task == Task::All && all_data > 1 {
        let all = Group::new(all_data, layout.tensor);
        let experts = Group::new(expert_ranks, layout.expert);
        let once = if !piecewise {
            exchanged(2.0, all, experts) + exchanged(if layout.stack.is_torch() { 4.0 } else { 2.0 }, all, experts)
        } else if layout.shards() < all_data {
            let replicas = Group::new(all_data / layout.shards(), layout.tensor * layout.shards());
            2.0 * on.links.gather(4.0 * held.all() / f64::from(layout.shards()), replicas)
        } else {
            0.0
        };
        // A chunk's gradients go while the pipeline's other chunks still run.
        let under = mean * (1.0 + pipeline * (interleave - 1.0) / interleave).min(micro_batches);
        data = on.data_exposed * once + ((1.0 - on.data_exposed) * once - under).max(0.0);
        if once > 0.0 {
            sent += 4.0 * held.all();
            messages += 2.0 * fullest;
        }
    }
    let optimizer = if layout.task == Task::All {
        let shared = if layout.sharding == Sharding::Nothing { 1.0 } else { f64::from(layout.shards()) };
        let expert_shared = if layout.sharding == Sharding::Nothing { 1.0 } else { expert_group.size };
        (held.common / shared + held.experts / expert_shared) * OPTIMIZER_BYTES / on.memory
    } else {
        0.0
    };

    let times = micro_batches * share;
    let sum = |part: fn(&Work) -> f64| times * (part(&forward) + part(&backward) + part(&head) + part(&head_backward));
    let split = TimeSplit {
        products: sum(|work| work.products),
        attention: sum(|work| work.attention),
        elementwise: sum(|work| work.elementwise),
        recomputation: times * recomputed,
        tensor: sum(|work| work.tensor),
        context: sum(|work| work.context),
        expert: sum(|work| work.expert),
        pipeline: between,
        data: data + micro_batches * gathered,
        host: micro_batches * waiting,
        bubble: idle,
        optimizer,
    };
    let step = split.total();
    let gpus = f64::from(layout.gpus);
    let flops = model.training_flops_per_token(sequence, true) * if layout.task == Task::Adapters { 2.0 / 3.0 } else { 1.0 };
    let model_flops = flops * layout.tokens() / gpus;
    StepEstimate {
        step: Seconds(step),
        split,
        memory: held_memory,
        capacity: on.capacity,
        offloaded,
        again,
        model_flops,
        tokens_per_second_per_gpu: layout.tokens() / step / gpus,
        model_flops_utilisation: model_flops / step / on.peak,
        sent_bytes: sent,
        messages,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        layout::{Dispatch, Options},
        models::ModelBook,
        parameters::{OfGeneration, Place},
    };
    use super::*;
    use crate::{
        hardware::{CoherentHost, HardwareBook},
        units::Bytes,
    };

    fn machine(name: &str) -> Machine {
        HardwareBook::shipped().find(name).unwrap().machine
    }

    fn model(name: &str) -> Transformer {
        ModelBook::shipped().find(name).unwrap().clone()
    }

    /// 64 GPUs, tensor 4, pipeline 4, interleaved.
    fn layout() -> Layout {
        Layout { gpus: 64, tensor: 4, pipeline: 4, interleave: 2, ..Layout::single(4096, 128, TrainingPrecision::Half) }
    }

    fn seconds(model: &Transformer, machine: &Machine, layout: &Layout) -> f64 {
        training_step(model, machine, layout, &Parameters::shipped()).step.0
    }

    #[test]
    fn the_parts_of_a_step_add_up_to_it_and_none_is_negative() {
        for (name, gpu, expert) in
            [("llama-3.1-70b", "h100-sxm-80gb", 1), ("deepseek-v3", "gb200-nvl72", 16), ("nemotron-3-nano-30b-a3b", "b200", 8)]
        {
            let layout = Layout { expert, ..layout() };
            let step = training_step(&model(name), &machine(gpu), &layout, &Parameters::shipped());
            let sum: f64 = step.split.parts().iter().map(|(_, seconds)| seconds).sum();
            assert!((sum / step.step.0 - 1.0).abs() < 1e-12);
            assert!(step.split.parts().iter().all(|(part, seconds)| *seconds >= -1e-9 || panic!("{name} {part} {seconds}")));
            let tokens = step.tokens_per_second_per_gpu * step.step.0 * 64.0;
            assert!((tokens / layout.tokens() - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn a_faster_machine_is_never_slower() {
        let model = model("deepseek-v3");
        let layout = Layout { expert: 16, context: 2, ..layout() };
        let base = machine("h100-sxm-80gb");
        let slow = seconds(&model, &base, &layout);
        let faster: [fn(&mut Machine); 5] = [
            |m| m.peaks.bf16 *= 1.5,
            |m| m.memory_bytes_per_second *= 1.5,
            |m| m.scale_up.bytes_per_second *= 1.5,
            |m| m.scale_out.bytes_per_second *= 1.5,
            |m| m.memory.0 *= 2,
        ];
        for (which, change) in faster.into_iter().enumerate() {
            let mut machine = base;
            change(&mut machine);
            let fast = seconds(&model, &machine, &layout);
            assert!(fast <= slow * (1.0 + 1e-9), "change {which}: {fast} s against {slow} s");
        }
    }

    /// Narayanan et al., arXiv 2104.04473, section 2.2: the ramp is (p-1)/m of the work, (p-1)/(v m) with interleaving.
    #[test]
    fn the_bubble_is_that_of_the_schedule() {
        let model = model("gpt-3-175b");
        let machine = machine("a100-sxm-80gb");
        let base = Layout {
            gpus: 64,
            tensor: 8,
            pipeline: 8,
            global_batch: 64,
            recompute: Recompute::Full,
            sharding: Sharding::Nothing,
            stack: Stack::MegatronUnfused,
            ..Layout::single(2048, 64, TrainingPrecision::Half)
        };
        let bubble = |interleave: u32| {
            let split = training_step(&model, &machine, &Layout { interleave, ..base }, &Parameters::shipped()).split;
            split.bubble
                / (split.products + split.attention + split.elementwise + split.recomputation + split.tensor + split.host)
        };
        // The head makes the last rank a little slower than the mean, which is no part of the ramp.
        assert!((bubble(1) - 7.0 / 64.0).abs() < 0.025, "{}", bubble(1));
        assert!((bubble(1) - bubble(2) - 7.0 / 128.0).abs() < 0.01, "{}", bubble(2));
    }

    #[test]
    fn graphs_take_the_host_out_of_a_step() {
        let model = model("qwen3-235b-a22b");
        let machine = machine("gb200-nvl72");
        let base =
            Layout { gpus: 256, pipeline: 8, expert: 32, interleave: 3, ..Layout::single(4096, 8192, TrainingPrecision::Mxfp8) };
        let step = |graphs, recompute| {
            let options = Options { graphs, ..Options::PLAIN };
            training_step(&model, &machine, &Layout { options, recompute, ..base }, &Parameters::shipped())
        };
        let hosts = [Graphs::Nothing, Graphs::Layers, Graphs::Step].map(|graphs| step(graphs, Recompute::AsNeeded).split.host);
        assert!(hosts[0] > hosts[1] && hosts[1] > 0.0 && hosts[2] == 0.0, "{hosts:?}");
        // Where whole layers are computed again there are none.
        let full = [Graphs::Nothing, Graphs::Step].map(|graphs| step(graphs, Recompute::Full).split.host);
        assert!(full[0] > 0.0 && full[0] == full[1], "{full:?}");
    }

    #[test]
    fn an_overlapped_exchange_costs_what_it_takes_from_the_computation() {
        let model = model("deepseek-v3");
        let machine = machine("h100-sxm-80gb");
        let base =
            Layout { gpus: 512, pipeline: 8, interleave: 4, expert: 64, ..Layout::single(4096, 4096, TrainingPrecision::Fp8) };
        let expert = |interleave, expert_overlap, dispatch| {
            let options = Options { expert_overlap, dispatch, ..Options::PLAIN };
            training_step(&model, &machine, &Layout { interleave, options, ..base }, &Parameters::shipped()).split.expert
        };
        let (open, hidden) = (expert(4, false, Dispatch::ByDomain), expert(4, true, Dispatch::ByDomain));
        assert!(hidden > 0.0 && hidden < open, "{hidden} s under {open} s");
        assert!(expert(4, false, Dispatch::ByCopy) > open);
        // A pipeline that is not interleaved has no other micro-batch to run it under.
        assert_eq!(expert(1, true, Dispatch::ByDomain), expert(1, false, Dispatch::ByDomain));
    }

    /// Of one chip the part with less power is slower in its products, by more where voltage is at its lowest.
    #[test]
    fn a_part_with_less_power_sustains_less() {
        let model = model("llama-3.1-70b");
        let whole = machine("gb300-nvl72");
        let limited = Machine { power_w: whole.full_power_w * 0.8, ..whole };
        let layout = Layout { gpus: 64, tensor: 2, pipeline: 4, ..Layout::single(8192, 128, TrainingPrecision::Fp8) };
        let products = |machine: &Machine, exponent| {
            let mut parameters = Parameters::shipped();
            parameters.set(Place::Generation(machine.generation, OfGeneration::Power as usize), exponent);
            training_step(&model, machine, &layout, &parameters).split.products
        };
        let slower = [1.0 / 3.0, 1.0].map(|exponent| products(&limited, exponent) / products(&whole, exponent));
        assert!(slower[0] > 1.05 && slower[0] < slower[1] && slower[1] < 1.25, "{slower:?}");
    }

    /// Llama 70B with whole weights sharded over 64 GB200: activations wait in the host's memory as far as that goes, at the rate of its link.
    #[test]
    fn activations_wait_in_the_hosts_memory_as_far_as_it_goes() {
        let model = model("llama-3.1-70b");
        let machine = machine("gb200-nvl72");
        let step = |machine: &Machine, micro_batch| {
            let layout = Layout {
                gpus: 64,
                micro_batch,
                sharding: Sharding::Weights,
                ..Layout::single(8192, 64 * micro_batch, TrainingPrecision::Fp8)
            };
            training_step(&model, machine, &layout, &Parameters::shipped())
        };
        let (two, eight) = (step(&machine, 2), step(&machine, 8));
        assert!(two.offloaded > 0.0 && two.again == Again::default() && two.missing_bytes().is_none(), "{two:?}");
        // Eight sequences keep more than there is room for: blocks are computed again instead.
        assert!(eight.offloaded == 0.0 && eight.again.blocks > 0.0, "{eight:?}");
        let limited = |host| step(&Machine { coherent_host: Some(host), ..machine }, 2);
        let host = machine.coherent_host.unwrap();
        let small = limited(CoherentHost { memory: Bytes(host.memory.0 / 4), ..host });
        assert!(small.offloaded == 0.0 && small.again.blocks > 0.0, "{small:?}");
        // There and back under two passes of seconds each: a link of 1 GB/s is what the step waits for.
        let slow = limited(CoherentHost { bytes_per_second: 1e9, ..host });
        assert!(slow.step.0 > 1.9 * two.offloaded / 1e9, "{} s", slow.step.0);
    }

    /// Of two hosts the slower one sets the pace of small kernels.
    #[test]
    fn a_host_on_a_link_of_its_own_has_its_own_pace() {
        let model = model("qwen3-235b-a22b");
        let near = machine("gb200-nvl72");
        let layout = Layout { gpus: 256, pipeline: 8, expert: 32, ..Layout::single(4096, 8192, TrainingPrecision::Mxfp8) };
        let host = |machine: &Machine, pace| {
            let mut parameters = Parameters::shipped();
            parameters.set(Place::Generation(machine.generation, OfGeneration::NearHost as usize), pace);
            training_step(&model, machine, &layout, &parameters).split.host
        };
        assert!(host(&near, 2.0) > host(&near, 1.0) && host(&near, 1.0) > host(&near, 0.5));
        let far = Machine { coherent_host: None, ..near };
        assert_eq!(host(&far, 2.0), host(&far, 0.5));
    }

    #[test]
    fn modules_cost_less_than_whole_layers() {
        let model = model("deepseek-v3");
        let machine = machine("gb200-nvl72");
        let base = Layout { gpus: 256, pipeline: 4, expert: 64, ..Layout::single(4096, 2048, TrainingPrecision::Mxfp8) };
        let again = |recompute| {
            training_step(&model, &machine, &Layout { recompute, ..base }, &Parameters::shipped()).split.recomputation
        };
        let costs = [
            Recompute::Nothing,
            Recompute::Modules(Modules::UP_PROJECTIONS),
            Recompute::Modules(Modules::CHEAP),
            Recompute::Modules(Modules::CHEAP.and(Modules::EXPERTS)),
        ]
        .map(again);
        assert!(costs[0] == 0.0 && costs.is_sorted_by(|a, b| a < b) && costs[3] < again(Recompute::Full), "{costs:?}");
    }

    /// A ring of two merges two results of each token, and no more than that is left of it where attention is long.
    #[test]
    fn a_ring_costs_the_merging_of_its_hops() {
        let model = model("llama-3.1-8b");
        let machine = machine("h100-sxm-80gb");
        let base = Layout { gpus: 16, ..Layout::single(32768, 64, TrainingPrecision::Half) };
        let step = |context, micro_batch| {
            training_step(&model, &machine, &Layout { context, micro_batch, ..base }, &Parameters::shipped())
        };
        let (one, two) = (step(1, 1), step(2, 2));
        assert!(
            two.split.elementwise > one.split.elementwise && two.step.0 < 1.15 * one.step.0,
            "{:?} {:?}",
            one.split,
            two.split
        );
    }

    #[test]
    fn full_recomputation_costs_one_forward_pass() {
        let model = model("llama-3.1-8b");
        let machine = machine("h100-sxm-80gb");
        let base = Layout { gpus: 8, global_batch: 64, ..Layout::single(8192, 64, TrainingPrecision::Half) };
        let step = |recompute| training_step(&model, &machine, &Layout { recompute, ..base }, &Parameters::shipped());
        let (kept, again) = (step(Recompute::Nothing), step(Recompute::Full));
        let extra = (again.step.0 - kept.step.0) / kept.step.0;
        assert!((0.22..0.36).contains(&extra), "{extra}");
        assert!(again.memory.activations < 0.2 * kept.memory.activations);
        assert!(kept.missing_bytes().unwrap_or(0.0) >= again.missing_bytes().unwrap_or(0.0));
    }

    #[test]
    fn adapters_need_no_gradients_of_weights() {
        let model = model("llama-3.1-8b");
        let machine = machine("h100-sxm-80gb");
        let base = Layout {
            gpus: 8,
            global_batch: 64,
            recompute: Recompute::Nothing,
            ..Layout::single(4096, 64, TrainingPrecision::Half)
        };
        let all = training_step(&model, &machine, &base, &Parameters::shipped());
        let adapters = training_step(&model, &machine, &Layout { task: Task::Adapters, ..base }, &Parameters::shipped());
        assert!((adapters.split.products / all.split.products - 2.0 / 3.0).abs() < 0.03);
        assert_eq!(adapters.split.optimizer, 0.0);
        assert_eq!(adapters.memory.optimizer, 0.0);
    }
}
