//! From a forward graph to programs: the order of the passes.
//!
//! Training: parts of the weights, precision, fusion, loss, autodiff, sums over ranks, updates, lowering. Answering: compression, parts of
//! the weights, precision, fusion, lowering.

use super::{LossScale, TrainError, tensor_for, weight_bytes};
use crate::{
    graph::{Binary, Exchange, Graph, Op, OptimizerStep, Program, ValueId, differentiate, differentiate_from, fuse, lower},
    record::TrainConfig,
    strategy::{
        BUCKET_BYTES, Calibration, LowPrecision, Part, Passes, Shards, Stage, Task, Tensor, Trained, Unrolled, Warped, Weights,
        append_scaling, cut_stages, input_scales, mask_gradients, prune, quantize, recompute, round_inputs, round_products,
        round_weights, rounded_weights, scatter_gradients, schedule, split_tensor, start_reduces, to_storage, update_part,
        warp_input,
    },
    vocab::{Compression, DType, Layout, Pattern, Precision},
};

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

/// A training step of one rank.
#[derive(Clone, Debug)]
pub struct TrainingProgram {
    pub program: Program,
    /// The rows, micro-batch by micro-batch; none where another rank reads them.
    pub x: Vec<ValueId>,
    /// How the images of each micro-batch are to be changed, f32 `[B, 6]` as `Op::Warp` takes it; none where they stay as they are.
    pub maps: Vec<ValueId>,
    /// i32 `[B]` of each micro-batch, where the rank has the loss.
    pub labels: Vec<ValueId>,
    /// This rank's part of the batch's mean loss; the parts of all ranks add up to it.
    pub loss: Option<ValueId>,
    /// fp16 only. Its factor must be started.
    pub scale: Option<LossScale>,
}

/// The constants of an update as an op carries them.
pub fn optimizer_step(config: &TrainConfig) -> OptimizerStep {
    let o = &config.optimizer;
    OptimizerStep {
        kind: o.kind,
        learning_rate: o.learning_rate,
        momentum: o.momentum,
        beta1: o.beta1,
        beta2: o.beta2,
        epsilon: o.epsilon,
        l1: config.l1,
        l2: config.l2,
    }
}

/// The forward graph of each part of the weights, with what that part is.
fn parts(forward: &Graph, layout: Layout) -> Result<Vec<(Graph, Shards)>, TrainError> {
    match layout.tensor_ranks() {
        1 => Ok(vec![(forward.clone(), Shards::default())]),
        ranks => Ok(split_tensor(forward, ranks)?),
    }
}

/// A fused forward graph in the storage of a precision, for training, with what is rounded to 8 bits.
fn narrowed(forward: &Graph, precision: Precision) -> Result<LowPrecision, TrainError> {
    let LowPrecision { graph, copies } = to_storage(forward, precision.storage())?;
    let low = LowPrecision { graph: fuse(graph, true), copies };
    Ok(if precision == Precision::Fp8 { round_products(low)? } else { low })
}

/// Lowers a graph whose products are to be made as `precision` says.
fn lowered_for(graph: &Graph, precision: Precision) -> Program {
    Program { rounds_to_tf32: precision == Precision::Tf32, ..lower(graph) }
}

/// The steps of the parts of the model, from the forward graph of one of `pieces` micro-batches of a share of the batch; without a pipeline
/// there is one.
pub fn training_programs(
    forward: &Graph,
    pieces: usize,
    precision: Precision,
    config: &TrainConfig,
    layout: Layout,
) -> Result<Vec<(TrainingProgram, Shards)>, TrainError> {
    let parts = parts(forward, layout)?;
    if layout.pipeline_ranks() > 1 {
        return pipeline_programs(&parts, pieces, precision, config, layout);
    }
    let made = parts.into_iter().map(|(graph, shards)| {
        let program = training_program(&graph, precision, config, layout)?;
        Ok((program, shards))
    });
    made.collect()
}

/// Builds the step of one rank from the forward graph of its share of the batch and its part of the weights.
pub fn training_program(
    forward: &Graph,
    precision: Precision,
    config: &TrainConfig,
    layout: Layout,
) -> Result<TrainingProgram, TrainError> {
    masked_training_program(forward, precision, config, layout, &HashSet::new())
}

/// The same for pruned weights: those of `masked` are trained where their masks are 1. Masks must be loaded.
pub fn masked_training_program(
    forward: &Graph,
    precision: Precision,
    config: &TrainConfig,
    layout: Layout,
    masked: &HashSet<String>,
) -> Result<TrainingProgram, TrainError> {
    let ranks = layout.data_ranks();
    let LowPrecision { mut graph, copies } = narrowed(forward, precision)?;
    let forward_nodes = 0..graph.nodes.len();
    let logits = graph.output("logits").ok_or(TrainError::NoOutput { name: "logits" })?;
    let rows = graph.shape(logits)[0];
    let labels = graph.input("labels", &[rows], DType::I32);
    let guarded = precision == Precision::Fp16;
    let scale = guarded.then(|| LossScale::new(&mut graph));
    let loss_scale = scale.map(|scale| scale.factor);
    let loss = graph.apply(Op::CrossEntropy { rows: rows * ranks }, &[logits, labels])?;
    let backward = graph.nodes.len();
    // What is differentiated is what the forward pass reads: the copy where there is one.
    let parameters: Vec<ValueId> = graph.parameters().collect();
    let copy_of = |id: ValueId| copies.iter().find(|(master, _)| *master == id).map(|(_, copy)| *copy);
    let read: Vec<ValueId> = parameters.iter().map(|id| copy_of(*id).unwrap_or(*id)).collect();
    let gradients = differentiate(&mut graph, loss, &read, loss_scale)?;
    let mut trained = Vec::new();
    for (parameter, read) in parameters.iter().zip(&read) {
        // A parameter that the loss does not depend on stays as it is.
        let Some(mut gradient) = gradients.of(*read) else { continue };
        if graph.dtype(gradient) != DType::F32 {
            gradient = graph.apply(Op::Cast { to: DType::F32 }, &[gradient])?;
        }
        trained.push(Trained { parameter: *parameter, gradient, copy: copy_of(*parameter) });
    }
    mask_gradients(&mut graph, &mut trained, masked)?;
    apply_updates(&mut graph, trained, config, layout, scale, loss)?;
    // Logits were an output for autodiff's sake; a training step needs the loss alone.
    graph.outputs.clear();
    graph.mark_output("loss", loss);
    if layout.recomputes() {
        recompute(&mut graph, &[Passes { forward: forward_nodes, backward, is_followed: true }])?;
    }
    let x = graph.find("x").ok_or(TrainError::NoOutput { name: "x" })?;
    let (x, maps) = augmented(&mut graph, vec![x], config)?;
    Ok(TrainingProgram { program: lowered_for(&graph, precision), x, maps, labels: vec![labels], loss: Some(loss), scale })
}

/// Ends a step: sums of gradients over ranks, updates, the loss scale, the scales of 8-bit numbers.
fn apply_updates(
    graph: &mut Graph,
    trained: Vec<Trained>,
    config: &TrainConfig,
    layout: Layout,
    scale: Option<LossScale>,
    loss: ValueId,
) -> Result<(), TrainError> {
    let (ranks, loss_scale) = (layout.data_ranks(), scale.map(|scale| scale.factor));
    let optimizer = optimizer_step(config);
    let gradients: Vec<ValueId> = trained.iter().map(|one| one.gradient).collect();
    let buckets = match ranks {
        1 => vec![(0..trained.len()).collect()],
        _ => start_reduces(graph, &gradients, config.bucket_bytes.unwrap_or(BUCKET_BYTES))?,
    };
    let shared_out = layout.shares_state() && ranks > 1;
    // A bucket's sums are finished, and its parameters updated while they are at hand; where a flag guards the updates, all sums come first.
    let mut waiting = Vec::new();
    for (number, members) in buckets.iter().enumerate() {
        let members: Vec<Trained> = members.iter().map(|k| trained[*k]).collect();
        let mut parts: Vec<Option<Part>> = vec![None; members.len()];
        if shared_out {
            parts = scatter_gradients(graph, number, &members, ranks)?.into_iter().map(Some).collect();
        } else if ranks > 1 {
            let gradients: Vec<ValueId> = members.iter().map(|one| one.gradient).collect();
            graph.apply_all(Op::Exchange(Exchange::AllReduce { bucket: number }), &gradients)?;
        }
        for (one, part) in members.into_iter().zip(parts) {
            match scale {
                None => update(graph, &one, part, optimizer, None, ranks)?,
                Some(_) => waiting.push((one, part)),
            }
        }
    }
    let all: Vec<ValueId> = waiting.iter().map(|(one, part)| part.map_or(one.gradient, |part| part.gradient)).collect();
    // A stage without parameters has no gradient that could be wrong, and takes part with what is always finite.
    let watched = if all.is_empty() { loss_scale.into_iter().collect() } else { all };
    let mut finite = if scale.is_some() { Some(graph.apply(Op::AllFinite, &watched)?) } else { None };
    // Ranks that see other gradients must skip the same steps.
    if let Some(flag) = finite.as_mut().filter(|_| shared_out || layout.parts() > 1) {
        *flag = graph.apply(Op::Exchange(Exchange::EveryRank), &[*flag])?;
    }
    let guard = loss_scale.zip(finite).map(|(scale, finite)| [scale, finite]);
    for (one, part) in waiting {
        update(graph, &one, part, optimizer, guard, ranks)?;
    }
    if let Some((scale, finite)) = scale.zip(finite) {
        scale.adjust(graph, loss, finite)?;
    }
    // Ranks that have other rows, or other parts of a weight, scale what they have alike.
    append_scaling(graph, ranks > 1 || layout.tensor_ranks() > 1)?;
    Ok(())
}

/// Updates a parameter, or this rank's part of it. `guard`: loss scale and all-finite flag.
fn update(
    graph: &mut Graph,
    one: &Trained,
    part: Option<Part>,
    optimizer: OptimizerStep,
    guard: Option<[ValueId; 2]>,
    ranks: usize,
) -> Result<(), TrainError> {
    if let Some(part) = part {
        return Ok(update_part(graph, one, &part, optimizer, guard, ranks)?);
    }
    let (name, shape) = (graph.value(one.parameter).name.clone(), graph.shape(one.parameter).to_vec());
    let mut operands = vec![one.parameter, one.gradient];
    operands.extend((0..optimizer.state_arrays()).map(|k| graph.state(&format!("{name}.state{k}"), &shape, DType::F32)));
    operands.extend(one.copy);
    operands.extend(guard.into_iter().flatten());
    graph.apply_all(Op::Update { optimizer, guarded: guard.is_some() }, &operands)?;
    Ok(())
}

/// The steps of the stages of a pipeline, stage by stage of each part of the weights, from the forward graphs of those for one of `pieces`
/// micro-batches.
fn pipeline_programs(
    parts: &[(Graph, Shards)],
    pieces: usize,
    precision: Precision,
    config: &TrainConfig,
    layout: Layout,
) -> Result<Vec<(TrainingProgram, Shards)>, TrainError> {
    let lowered = parts.iter().map(|(graph, _)| {
        let LowPrecision { graph, copies } = narrowed(graph, precision)?;
        Ok((graph, copies))
    });
    let lowered: Vec<_> = lowered.collect::<Result<_, TrainError>>()?;
    // Parts have the same nodes in other sizes: all are cut where the first is, so that what a stage sends is what the next awaits.
    let stages = cut_stages(&lowered[0].0, layout.pipeline_ranks())?;
    let mut made = Vec::with_capacity(layout.parts());
    for (number, stage) in stages.iter().enumerate() {
        let tasks = schedule(layout.schedule(), number, stages.len(), pieces);
        for ((fused, copies), (_, shards)) in lowered.iter().zip(parts) {
            made.push((stage_program(fused, copies, stage, &tasks, precision, config, layout)?, shards.clone()));
        }
    }
    Ok(made)
}

/// One stage's step: its tasks, one behind the other, then the updates of its parameters.
fn stage_program(
    fused: &Graph,
    copies: &[(ValueId, ValueId)],
    stage: &Stage,
    tasks: &[Task],
    precision: Precision,
    config: &TrainConfig,
    layout: Layout,
) -> Result<TrainingProgram, TrainError> {
    let model_x = fused.find("x").ok_or(TrainError::NoOutput { name: "x" })?;
    let logits = fused.output("logits").ok_or(TrainError::NoOutput { name: "logits" })?;
    let rows = fused.shape(logits)[0];
    let all_rows = rows * tasks.len() / 2 * layout.data_ranks();
    let copy_of = |id: ValueId| copies.iter().find(|(master, _)| *master == id).map(|(_, copy)| *copy);
    let reads = |id: ValueId| fused.nodes[stage.nodes.clone()].iter().any(|node| node.inputs.contains(&id));
    // Parameters with what the forward pass reads of each.
    let owned: Vec<(ValueId, ValueId)> =
        fused.parameters().map(|id| (id, copy_of(id).unwrap_or(id))).filter(|(_, read)| reads(*read)).collect();
    let masters: Vec<ValueId> = owned.iter().map(|(master, _)| *master).collect();
    let mut unrolled = Unrolled::new(fused, stage, &masters);
    let scale = (precision == Precision::Fp16).then(|| LossScale::new(&mut unrolled.graph));
    let (mut x, mut labels, mut loss) = (Vec::new(), Vec::new(), None);
    // Of each micro-batch its input, its result, and where its forward pass stands.
    let mut under_way: HashMap<usize, (ValueId, ValueId, Range<usize>)> = HashMap::new();
    let mut sums: Vec<Option<ValueId>> = vec![None; owned.len()];
    let mut passes = Vec::new();
    for (at, task) in tasks.iter().enumerate() {
        match *task {
            Task::Forward(piece) => {
                let (old, input) = match stage.input {
                    Some(id) => (id, unrolled.receive(fused, id, true)?),
                    None => {
                        let value = fused.value(model_x);
                        x.push(unrolled.graph.input(&format!("x.{piece}"), &value.shape, value.dtype));
                        (model_x, x[x.len() - 1])
                    }
                };
                let first = unrolled.graph.nodes.len();
                let mut y = unrolled.forward(fused, stage, (old, input), stage.output.unwrap_or(logits))?;
                let nodes = first..unrolled.graph.nodes.len();
                if stage.output.is_some() {
                    unrolled.send(y, true)?;
                } else {
                    let graph = &mut unrolled.graph;
                    labels.push(graph.input(&format!("labels.{piece}"), &[rows], DType::I32));
                    y = graph.apply(Op::CrossEntropy { rows: all_rows }, &[y, labels[labels.len() - 1]])?;
                    loss = Some(match loss {
                        Some(before) => graph.apply(Op::Binary(Binary::Add), &[before, y])?,
                        None => y,
                    });
                }
                under_way.insert(piece, (input, y, nodes));
            }
            Task::Backward(piece) => {
                let (input, y, nodes) = under_way.remove(&piece).expect("a schedule goes back after it went forward");
                let backward = unrolled.graph.nodes.len();
                let mut wrt: Vec<ValueId> = owned.iter().map(|(_, read)| unrolled.now[read]).collect();
                wrt.extend(stage.input.map(|_| input));
                let gradients = match stage.output {
                    None => differentiate(&mut unrolled.graph, y, &wrt, scale.map(|scale| scale.factor))?,
                    Some(output) => {
                        let dy = unrolled.receive(fused, output, false)?;
                        differentiate_from(&mut unrolled.graph, y, dy, &wrt)?
                    }
                };
                for (sum, (_, read)) in sums.iter_mut().zip(&owned) {
                    let Some(mut gradient) = gradients.of(unrolled.now[read]) else { continue };
                    let graph = &mut unrolled.graph;
                    if graph.dtype(gradient) != DType::F32 {
                        gradient = graph.apply(Op::Cast { to: DType::F32 }, &[gradient])?;
                    }
                    *sum = Some(match *sum {
                        Some(before) => graph.apply(Op::Binary(Binary::Add), &[before, gradient])?,
                        None => gradient,
                    });
                }
                if stage.input.is_some() {
                    let dx = gradients.of(input).ok_or(TrainError::NoOutput { name: "gradient of a stage's input" })?;
                    unrolled.send(dx, false)?;
                }
                let is_followed = at > 0 && tasks[at - 1] == Task::Forward(piece);
                passes.push(Passes { forward: nodes, backward, is_followed });
            }
        }
    }
    let Unrolled { mut graph, now } = unrolled;
    let trained = owned.iter().zip(&sums).filter_map(|((master, _), sum)| {
        Some(Trained { parameter: now[master], gradient: (*sum)?, copy: copy_of(*master).map(|copy| now[&copy]) })
    });
    let trained: Vec<Trained> = trained.collect();
    // Only the last stage knows the loss; the others' scaling has none to spoil.
    let last_word = loss.unwrap_or_else(|| graph.state("no_loss", &[], DType::F32));
    apply_updates(&mut graph, trained, config, layout, scale, last_word)?;
    if let Some(loss) = loss {
        graph.mark_output("loss", loss);
    }
    if layout.recomputes() {
        recompute(&mut graph, &passes)?;
    }
    let (x, maps) = augmented(&mut graph, x, config)?;
    Ok(TrainingProgram { program: lowered_for(&graph, precision), x, maps, labels, loss, scale })
}

/// The inputs of a step whose images are changed as `config` asks, and the maps; texts stay as they are.
fn augmented(graph: &mut Graph, x: Vec<ValueId>, config: &TrainConfig) -> Result<(Vec<ValueId>, Vec<ValueId>), TrainError> {
    if config.augment.is_empty() || x.iter().any(|id| graph.shape(*id).len() != 4) {
        return Ok((x, Vec::new()));
    }
    let warped = x.into_iter().map(|id| warp_input(graph, id)).collect::<Result<Vec<_>, _>>()?;
    Ok(warped.into_iter().map(|Warped { images, maps }| (images, maps)).unzip())
}

/// A forward pass of one rank with the weights it wants.
#[derive(Clone, Debug)]
pub struct InferenceProgram {
    pub program: Program,
    pub x: ValueId,
    pub logits: ValueId,
    pub weights: Weights,
    /// Bytes of the weights as a file of this candidate would hold them: storage type, and for sparse forms values with their places.
    pub model_bytes: u64,
    /// Names of the weights that are rounded to 8 bits before they are loaded; `weights` holds them so.
    pub rounded: Vec<String>,
    /// What a reader of the result should know of the compression.
    pub notes: Vec<String>,
}

/// Applies `compression`, then `precision`, to a forward graph with trained `weights`, on one rank. `calibrate` is asked for activation
/// ranges of the pruned model where int8 or fp8 needs them.
pub fn inference_program(
    forward: &Graph,
    weights: &Weights,
    precision: Precision,
    compression: Compression,
    calibrate: impl FnOnce() -> Result<Calibration, TrainError>,
) -> Result<InferenceProgram, TrainError> {
    let mut made = inference_programs(forward, weights, precision, compression, Layout::SINGLE, calibrate)?;
    Ok(made.remove(0).0)
}

/// The same for each part of the weights of a layout; values have the same numbers in all.
pub fn inference_programs(
    forward: &Graph,
    weights: &Weights,
    precision: Precision,
    compression: Compression,
    layout: Layout,
    calibrate: impl FnOnce() -> Result<Calibration, TrainError>,
) -> Result<Vec<(InferenceProgram, Shards)>, TrainError> {
    let (mut graph, mut weights) = (forward.clone(), weights.clone());
    let mut notes = Vec::new();
    let mut calibrate = Some(calibrate);
    if let Some(pruning) = compression.trained_pruning() {
        let before: usize = graph.parameters().map(|id| graph.value(id).elements()).sum();
        (graph, weights) = prune(&graph, &weights, pruning)?;
        let what = match pruning.pattern {
            Pattern::Magnitude(_) => format!("{:.1} % of the weights are zero", 100.0 * weights.sparsity()),
            Pattern::Channel(_) => {
                format!("{:.1} % of the weights are left", 100.0 * weight_count(&weights) as f64 / before as f64)
            }
            Pattern::TwoFour => "two of four weights are zero".to_string(),
        };
        let untuned = if pruning.is_tuned() { "" } else { "; not trained again after pruning" };
        notes.push(format!("{what}{untuned}"));
    }
    if let Some(quantization) = compression.quantization {
        let fused = fuse(graph, false);
        let calibration =
            if quantization.is_calibrated() { calibrate.take().expect("asked here first")()? } else { Calibration::default() };
        let made = quantize(&fused, &weights, &calibration, quantization)?;
        notes.extend(calibration.notes);
        (graph, weights) = (made.graph, made.weights);
    }
    let narrow = |graph: &Graph| -> Result<Graph, TrainError> {
        let fused = fuse(to_storage(graph, precision.storage())?.graph, false);
        Ok(if precision == Precision::Fp8 { round_inputs(&fused)? } else { fused })
    };
    let mut rounded = Vec::new();
    if precision == Precision::Fp8 {
        let narrowed = narrow(&graph)?;
        rounded = rounded_weights(&narrowed);
        // int8 has taken what there was to round, and its ranges.
        if let Some(calibrate) = calibrate.take().filter(|_| !rounded.is_empty()) {
            let calibration = calibrate()?;
            let scale = |(name, scale)| Tensor { name, shape: Vec::new(), data: vec![scale] };
            weights.tensors.extend(input_scales(&narrowed, &calibration)?.into_iter().map(scale));
        }
        round_weights(&mut weights, &rounded);
        notes.push(format!(
            "{} of its products take e4m3 operands: weights rounded by their own range, activations by ranges from calibration",
            rounded.len()
        ));
    }
    // Half of what bf16 takes, and a scale.
    let saved: u64 = weights.tensors.iter().filter(|t| rounded.contains(&t.name)).map(|t| t.data.len() as u64 - 4).sum();
    // Weights as stored: a sparse matrix needs its values and where they stand.
    let stored = |program: &Program| match compression.pruning.map(|pruning| pruning.pattern) {
        Some(Pattern::Magnitude(_)) => sparse_bytes(program, &weights, &rounded),
        Some(Pattern::TwoFour) => two_four_bytes(program, &weights, &rounded),
        _ => weight_bytes(program) - saved,
    };
    let lowered = |graph: &Graph| -> Result<Program, TrainError> {
        let fused = narrow(graph)?;
        let mut program = lowered_for(&fused, precision);
        let is_rounded = |name: &str| tensor_for(&weights, name).is_some_and(|tensor| rounded.contains(&tensor.name));
        program.rounded_weights = program.kept().filter(|(_, value)| is_rounded(&value.name)).map(|(id, _)| id).collect();
        Ok(program)
    };
    let whole = lowered(&graph)?;
    // Of the whole model, whoever holds its parts.
    let model_bytes = stored(&whole);
    let programs = match layout.tensor_ranks() {
        1 => vec![(whole, Shards::default())],
        ranks => {
            let parts = split_tensor(&graph, ranks)?.into_iter();
            parts.map(|(graph, shards)| Ok((lowered(&graph)?, shards))).collect::<Result<Vec<_>, TrainError>>()?
        }
    };
    let made = programs.into_iter().map(|(program, shards)| {
        let x = program.find("x").ok_or(TrainError::NoOutput { name: "x" })?;
        let logits = program.output("logits").ok_or(TrainError::NoOutput { name: "logits" })?;
        let (weights, rounded, notes) = (shards.cut(&weights), rounded.clone(), notes.clone());
        Ok((InferenceProgram { program, x, logits, weights, model_bytes, rounded, notes }, shards))
    });
    made.collect()
}

fn weight_count(weights: &Weights) -> usize {
    weights.tensors.iter().map(|t| t.data.len()).sum()
}

/// Bytes of what a program keeps, its matrices as `of(values, element bytes)` says, the rest dense. Elements of `rounded` ones have one byte.
fn packed_bytes(program: &Program, weights: &Weights, rounded: &[String], of: impl Fn(&Tensor, u64) -> u64) -> u64 {
    let stored = program.kept().map(|(_, value)| match tensor_for(weights, &value.name) {
        Some(tensor) if rounded.contains(&tensor.name) => of(tensor, 1),
        // Two weights a byte leave no zeros to skip.
        Some(tensor) if tensor.shape.len() >= 2 && !tensor.name.ends_with(".int4") => of(tensor, value.dtype.size() as u64),
        _ => value.bytes() as u64,
    });
    stored.sum()
}

/// Matrices as non-zero values with 16-bit column gaps (a bitmap where that is smaller), the rest dense.
fn sparse_bytes(program: &Program, weights: &Weights, rounded: &[String]) -> u64 {
    packed_bytes(program, weights, rounded, |tensor, size| {
        let elements = tensor.data.len() as u64;
        let filled = tensor.data.iter().filter(|v| **v != 0.0).count() as u64;
        (filled * size + (filled * 2).min(elements.div_ceil(8))).min(elements * size)
    })
}

/// Matrices as half their values and two bits a value for its place, the rest dense.
fn two_four_bytes(program: &Program, weights: &Weights, rounded: &[String]) -> u64 {
    packed_bytes(program, weights, rounded, |tensor, size| {
        let elements = tensor.data.len() as u64;
        let outputs = *tensor.shape.last().expect("has axes") as u64;
        let grouped = elements / outputs / 4 * 4 * outputs;
        grouped / 2 * size + (grouped / 2).div_ceil(4) + (elements - grouped) * size
    })
}
