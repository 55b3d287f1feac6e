//! The step times of one model on one kind of machine as a landscape to search, with a floor that is one.

use super::{
    layout::{Layout, Recompute, Sharding, Task, TrainingPrecision},
    memory::Memory,
    parameters::Parameters,
    plan_file::{LayoutLimits, Plan, TrainWork},
    recipes::{self, Run},
    search::{Arrangement, Landscape, Schedule, Space, Verdict, divisors},
    step::{Blocks, StepEstimate, Sustained, step_of, training_step_on},
    transformer::Transformer,
};
use crate::{hardware::Machine, units::Seconds};

/// Largest context-parallel size that is searched, and the fewest tokens of a sequence that a rank is left with.
const MOST_CONTEXT: u32 = 64;
const LEAST_TOKENS: u32 = 1024;

/// Largest micro-batch that is searched, sequences.
const MOST_MICRO_BATCH: u32 = 64;

/// Layouts of one model on one kind of machine.
pub struct Site<'a> {
    model: &'a Transformer,
    /// Those of the plan that the machine has.
    precisions: Vec<TrainingPrecision>,
    /// How the software is run, a precision each.
    runs: Vec<Run>,
    /// What the machine sustains, a precision each.
    sustained: Vec<Sustained>,
    capacity: f64,
    sequence: u32,
    /// All but the number of GPUs.
    space: Space,
    /// What one micro-batch takes in all blocks on one group of tensor-, context- and expert-parallel ranks, by `place`.
    blocks: Vec<Blocks>,
}

impl<'a> Site<'a> {
    /// `None` where the machine's products know none of the plan's precisions.
    pub fn new(
        model: &'a Transformer,
        machine: &Machine,
        parameters: &Parameters,
        precisions: &[TrainingPrecision],
        plan: &Plan,
        work: &TrainWork,
    ) -> Option<Site<'a>> {
        let precisions: Vec<TrainingPrecision> = precisions.iter().copied().filter(|one| has(machine, *one)).collect();
        let runs: Vec<Run> = precisions.iter().map(|precision| recipes::of_today(model, machine, *precision)).collect();
        let both = precisions.iter().zip(&runs);
        let sustained: Vec<Sustained> =
            both.map(|(precision, run)| Sustained::new(machine, run.stack, *precision, parameters)).collect();
        let mut site = Site {
            model,
            capacity: sustained.first()?.capacity(),
            sustained,
            sequence: work.sequence_length,
            space: space(model, machine, precisions.len() as u8, &plan.layouts, &work.batches, work.sequence_length),
            precisions,
            runs,
            blocks: Vec::new(),
        };
        site.blocks = site.all_blocks();
        Some(site)
    }

    pub fn precision(&self, on: &Arrangement) -> TrainingPrecision {
        self.precisions[usize::from(on.precision)]
    }

    pub fn model(&self) -> &Transformer {
        self.model
    }

    /// What a layout holds on a GPU, without the activations that wait in the host's memory, and how many bytes these are.
    pub fn memory(&self, layout: &Layout) -> (Memory, f64) {
        // Of capacity and links to the host all precisions know the same.
        let (held, again) = self.sustained[0].memory(self.model, layout);
        let offloaded = self.sustained[0].offloaded(layout, &held, again);
        (Memory { activations: held.activations - offloaded, ..held }, offloaded)
    }

    /// Bytes of a GPU that may be used.
    pub fn capacity(&self) -> f64 {
        self.capacity
    }

    /// Everything that the plan leaves open on so many GPUs.
    pub fn space(&self, gpus: u32) -> Space {
        Space { gpus, ..self.space.clone() }
    }

    pub fn layout(&self, on: &Arrangement, with: &Schedule) -> Layout {
        let run = self.runs[usize::from(on.precision)];
        Layout {
            gpus: on.gpus(),
            tensor: on.tensor,
            pipeline: on.pipeline,
            context: on.context,
            expert: on.expert,
            interleave: with.interleaving,
            micro_batch: with.micro_batch,
            global_batch: on.batch,
            sequence: self.sequence,
            sequence_parallel: true,
            sharding: with.sharding,
            shard_group: 0,
            recompute: with.recompute,
            precision: self.precision(on),
            task: Task::All,
            stack: run.stack,
            tensor_overlap: true,
            options: run.options,
        }
    }

    pub fn estimate(&self, on: &Arrangement, with: &Schedule) -> StepEstimate {
        training_step_on(self.model, &self.layout(on, with), &self.sustained[usize::from(on.precision)])
    }

    /// The blocks of an arrangement with this micro-batch; `None` where a size is not one of the space.
    fn blocks(&self, on: &Arrangement, micro_batch: u32) -> Option<&Blocks> {
        let space = &self.space;
        let at = |list: &[u32], size: u32| list.iter().position(|one| *one == size);
        let (tensor, context) = (at(&space.tensor, on.tensor)?, at(&space.context, on.context)?);
        let (expert, micro_batch) = (at(&space.expert, on.expert)?, at(&space.micro_batches, micro_batch)?);
        let place = (usize::from(on.precision) * space.tensor.len() + tensor) * space.context.len() + context;
        self.blocks.get((place * space.expert.len() + expert) * space.micro_batches.len() + micro_batch)
    }

    fn all_blocks(&self) -> Vec<Blocks> {
        let space = &self.space;
        let mut out = Vec::new();
        for precision in 0..space.precisions {
            for &tensor in &space.tensor {
                for &context in &space.context {
                    for &expert in &space.expert {
                        for &micro_batch in &space.micro_batches {
                            let on = Arrangement { tensor, pipeline: 1, context, data: 1, expert, batch: micro_batch, precision };
                            let with = Schedule {
                                micro_batch,
                                interleaving: 1,
                                recompute: space.recomputes[0],
                                sharding: Sharding::Nothing,
                            };
                            let sustained = &self.sustained[usize::from(precision)];
                            out.push(Blocks::new(self.model, &self.layout(&on, &with), sustained));
                        }
                    }
                }
            }
        }
        out
    }
}

/// Whether the machine's tensor cores take numbers of that precision.
fn has(machine: &Machine, precision: TrainingPrecision) -> bool {
    match precision {
        TrainingPrecision::Half => true,
        TrainingPrecision::Fp8 | TrainingPrecision::Fp8Block => machine.peaks.fp8.is_some(),
        // Scales for blocks of values came with the tensor cores that have 4-bit floats.
        TrainingPrecision::Mxfp8 | TrainingPrecision::Nvfp4 => machine.peaks.fp4.is_some(),
    }
}

/// Pipeline stages that a model is cut into: blocks, or blocks with the embedding, the last projection or both beside them, evenly; or a power of
/// two unevenly, as published layouts of models with an odd number of blocks are.
fn pipelines(blocks: u32) -> Vec<u32> {
    let is_even = |stages: u32| (0..=2).any(|more| (blocks + more).is_multiple_of(stages));
    (1..=blocks).filter(|stages| is_even(*stages) || stages.is_power_of_two()).collect()
}

/// Everything that `limits` leave open, with the number of GPUs at 1.
pub(super) fn space(
    model: &Transformer,
    machine: &Machine,
    precisions: u8,
    limits: &LayoutLimits,
    batches: &[u32],
    sequence: u32,
) -> Space {
    let blocks = model.blocks();
    let or = |given: &Option<Vec<u32>>, all: Vec<u32>| given.clone().unwrap_or(all);
    let powers = |most: u32| (0..32).map(|power| 1u32 << power).take_while(|size| *size <= most).collect::<Vec<_>>();
    let attention = &model.attention;
    let divides = |size: &u32| *size <= machine.scale_up.domain && attention.key_value_heads.is_multiple_of(*size);
    let experts = model.experts.map_or(1, |experts| experts.count);
    let stages = vec![Sharding::Nothing, Sharding::Optimizer, Sharding::Gradients, Sharding::Weights];
    Space {
        gpus: 1,
        tensor: or(&limits.tensor, divisors(attention.heads).into_iter().filter(divides).collect()),
        pipeline: or(&limits.pipeline, pipelines(blocks)),
        context: or(&limits.context, powers(MOST_CONTEXT.min(sequence / LEAST_TOKENS).max(1))),
        expert: or(&limits.expert, divisors(experts)),
        batches: batches.to_vec(),
        precisions,
        micro_batches: or(&limits.micro_batch, powers(MOST_MICRO_BATCH)),
        interleavings: or(&limits.interleaving, (1..=blocks).collect()),
        recomputes: limits.recompute.clone().unwrap_or_else(|| vec![Recompute::AsNeeded]),
        shardings: limits.sharding.clone().unwrap_or(stages),
        // Plans are made for Megatron-Core (`Layout::is_known_to_its_stack`).
        shards_pipelines: false,
        blocks,
    }
}

impl Landscape for Site<'_> {
    fn evaluate(&self, on: &Arrangement, with: &Schedule) -> Verdict {
        let layout = self.layout(on, with);
        if layout.check(self.model).is_err() {
            return Verdict::Impossible;
        }
        let sustained = &self.sustained[usize::from(on.precision)];
        let held = sustained.memory(self.model, &layout);
        let missing_bytes = held.0.total() - sustained.offloaded(&layout, &held.0, held.1) - self.capacity;
        if missing_bytes > 0.0 {
            return Verdict::TooLarge { missing_bytes };
        }
        let step = match self.blocks(on, with.micro_batch) {
            Some(blocks) => step_of(self.model, &layout, sustained, blocks, held).step,
            None => training_step_on(self.model, &layout, sustained).step,
        };
        Verdict::Fits { step }
    }

    fn floor(&self, on: &Arrangement) -> Seconds {
        let of_rank = on.batch / on.data;
        let sizes = self.space.micro_batches.iter().filter(|size| of_rank.is_multiple_of(**size));
        Seconds(sizes.map(|size| self.floor_at(on, *size).0).fold(f64::INFINITY, f64::min))
    }

    /// Every micro-batch without what the rest of a layout adds, and the ramp of the pipeline with as many pieces as there can be.
    fn floor_at(&self, on: &Arrangement, micro_batch: u32) -> Seconds {
        let Some(blocks) = self.blocks(on, micro_batch) else { return Seconds(0.0) };
        let pipeline = f64::from(on.pipeline);
        let pieces = f64::from(((self.space.blocks + 2) / on.pipeline).max(1));
        let is_overlapped = self.runs[usize::from(on.precision)].options.expert_overlap;
        let rank = if is_overlapped { blocks.overlapped().total() } else { blocks.total() } / pipeline;
        let micro_batches = f64::from(on.batch / on.data / micro_batch);
        // Sums in another order may differ in their last digits.
        Seconds((micro_batches + (pipeline - 1.0) / pieces) * rank * (1.0 - 1e-9))
    }
}
