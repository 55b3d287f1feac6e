//! Pruning of trained weights, in one shot: by magnitude (Han et al. 2015), two of four (Mishra et al. 2021), by channel (Li et al.
//! 2017, L1 norm of a channel's incoming weights). Weights that were trained again after it are taken as they are.

use super::{StrategyError, Tensor, Weights};
use crate::{
    graph::{Graph, Op, Role, ValueId},
    vocab::{Pattern, Pruning},
};
use std::collections::{HashMap, HashSet};

/// The unfused forward graph and the weights of `pruning`, from those of the whole model or, where training goes on after the pruning,
/// from what that has made.
pub fn prune(graph: &Graph, weights: &Weights, pruning: Pruning) -> Result<(Graph, Weights), StrategyError> {
    if !pruning.is_tuned() {
        return prune_once(graph, weights, pruning.pattern);
    }
    let not_pruned = || StrategyError::NotPruned { pruning: pruning.to_string() };
    let graph = match pruning.pattern {
        Pattern::Channel(_) => with_shapes_of(graph, weights)?,
        Pattern::Magnitude(_) | Pattern::TwoFour => graph.clone(),
    };
    let mut again = weights.clone();
    match pruning.pattern {
        Pattern::Magnitude(share) => prune_magnitude(&graph, &mut again, share),
        Pattern::TwoFour => prune_two_four(&graph, &mut again),
        Pattern::Channel(_) => {}
    }
    // What lacks the zeros would lose more now.
    if again == *weights { Ok((graph, again)) } else { Err(not_pruned()) }
}

/// Prunes the trained `weights` of an unfused forward graph; both in their new shapes.
pub fn prune_once(graph: &Graph, weights: &Weights, pattern: Pattern) -> Result<(Graph, Weights), StrategyError> {
    let mut pruned = weights.clone();
    match pattern {
        Pattern::Magnitude(share) => prune_magnitude(graph, &mut pruned, share),
        Pattern::TwoFour => prune_two_four(graph, &mut pruned),
        Pattern::Channel(share) => return prune_channels(graph, weights, share),
    }
    Ok((graph.clone(), pruned))
}

/// The graph over parameters of the shapes that `weights` have: what follows from them follows again.
fn with_shapes_of(graph: &Graph, weights: &Weights) -> Result<Graph, StrategyError> {
    let mut now: Vec<Option<ValueId>> = vec![None; graph.values.len()];
    let mut out = Graph::new();
    for id in graph.ids().filter(|id| graph.value(*id).role != Role::Intermediate) {
        let mut value = graph.value(id).clone();
        if matches!(value.role, Role::Parameter { .. }) {
            value.shape = weights.get(&value.name)?.shape.clone();
        }
        out.values.push(value);
        now[id.0] = Some(ValueId(out.values.len() - 1));
    }
    for node in &graph.nodes {
        let inputs: Vec<ValueId> = node.inputs.iter().map(|id| now[id.0].expect("written before it is read")).collect();
        let op = match &node.op {
            Op::Reshape { shape } => Op::Reshape { shape: reshaped(shape, out.value(inputs[0]).elements()) },
            other => other.clone(),
        };
        for (old, new) in node.outputs.iter().zip(out.apply_all(op, &inputs)?) {
            now[old.0] = Some(new);
        }
    }
    for (name, id) in &graph.outputs {
        out.mark_output(name, now[id.0].expect("outputs are written"));
    }
    Ok(out)
}

/// `shape` for so many elements: the last axis gives way, for channels stand there.
fn reshaped(shape: &[usize], elements: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if let Some((last, rest)) = shape.split_last_mut() {
        *last = elements / rest.iter().product::<usize>().max(1);
    }
    shape
}

/// Sets the smallest `share` of the weights of an unfused graph's products to zero, one threshold for the whole model. Biases and tables
/// of embeddings stay.
pub fn prune_magnitude(graph: &Graph, weights: &mut Weights, share: f64) {
    let products = products(graph);
    let mut sizes: Vec<f32> = weights
        .tensors
        .iter()
        .filter(|t| products.contains(t.name.as_str()))
        .flat_map(|t| t.data.iter().map(|v| v.abs()))
        .collect();
    let count = (share * sizes.len() as f64).round() as usize;
    if count == 0 {
        return;
    }
    let (_, threshold, _) = sizes.select_nth_unstable_by(count - 1, f32::total_cmp);
    let threshold = *threshold;
    // Of weights that equal the threshold only as many go as the share allows.
    let below = sizes.iter().filter(|s| **s < threshold).count();
    let mut equal_left = count - below;
    for tensor in weights.tensors.iter_mut().filter(|t| products.contains(t.name.as_str())) {
        for v in &mut tensor.data {
            let size = v.abs();
            if size < threshold {
                *v = 0.0;
            } else if size == threshold && equal_left > 0 {
                equal_left -= 1;
                *v = 0.0;
            }
        }
    }
}

/// Sets the two smallest of every four consecutive weights along the input axis to zero, per output. The input axis of a convolution
/// is its taps times its input channels; a last group of fewer than four stays as it is, and so do tables of embeddings.
fn prune_two_four(graph: &Graph, weights: &mut Weights) {
    let products = products(graph);
    for tensor in weights.tensors.iter_mut().filter(|t| products.contains(t.name.as_str())) {
        let outputs = *tensor.shape.last().expect("has axes");
        let inputs = tensor.data.len() / outputs;
        for output in 0..outputs {
            for group in 0..inputs / 4 {
                let at = |k: usize| (4 * group + k) * outputs + output;
                let mut order = [0, 1, 2, 3];
                order.sort_by(|a, b| tensor.data[at(*a)].abs().total_cmp(&tensor.data[at(*b)].abs()));
                tensor.data[at(order[0])] = 0.0;
                tensor.data[at(order[1])] = 0.0;
            }
        }
    }
}

/// Removes `share` of the output channels of every product whose result only flows through ops that keep channels apart into
/// another product; at least one channel stays. Takes an unfused forward graph; the result is smaller in shape, weights and work.
fn prune_channels(graph: &Graph, weights: &Weights, share: f64) -> Result<(Graph, Weights), StrategyError> {
    // Channels that stay on the last axis of a value; absent: all.
    let mut kept: HashMap<ValueId, Vec<usize>> = HashMap::new();
    let mut now: Vec<Option<ValueId>> = vec![None; graph.values.len()];
    let mut out = Graph::new();
    let mut pruned = weights.clone();
    let mut found = false;
    // Parameters in their order first; shapes follow below, when it is known what stays of each.
    for id in graph.ids() {
        let value = graph.value(id);
        if value.role != Role::Intermediate {
            out.values.push(value.clone());
            now[id.0] = Some(ValueId(out.values.len() - 1));
        }
    }
    for node in &graph.nodes {
        let incoming = node.inputs.first().and_then(|x| kept.get(x)).cloned();
        match (&node.op, product_weight(graph, &node.op, &node.inputs)) {
            (_, Some(w)) => {
                let name = graph.value(w).name.clone();
                let tensor = pruned.get_mut(&name)?;
                if let Some(incoming) = &incoming {
                    keep_inputs(tensor, incoming);
                }
                if can_lose_channels(graph, node.outputs[0]) {
                    let stays = strongest(tensor, share);
                    keep_outputs(tensor, &stays);
                    kept.insert(node.outputs[0], stays);
                    found = true;
                }
                out.values[now[w.0].expect("copied").0].shape = tensor.shape.clone();
            }
            (Op::AddBias, None) => {
                if let Some(incoming) = incoming {
                    let name = graph.value(node.inputs[1]).name.clone();
                    let tensor = pruned.get_mut(&name)?;
                    keep_outputs(tensor, &incoming);
                    out.values[now[node.inputs[1].0].expect("copied").0].shape = tensor.shape.clone();
                    kept.insert(node.outputs[0], incoming);
                }
            }
            (Op::Reshape { .. }, None) => {
                if let Some(incoming) = incoming {
                    let channels = *graph.shape(node.inputs[0]).last().expect("has channels");
                    let width = *graph.shape(node.outputs[0]).last().expect("has an axis");
                    let flat = (0..width / channels).flat_map(|place| incoming.iter().map(move |c| place * channels + c));
                    kept.insert(node.outputs[0], flat.collect());
                }
            }
            (_, None) => {
                if let Some(incoming) = incoming {
                    kept.insert(node.outputs[0], incoming);
                }
            }
        }
        let inputs: Vec<ValueId> = node.inputs.iter().map(|id| now[id.0].expect("written before it is read")).collect();
        let op = match &node.op {
            Op::Reshape { shape } => {
                let mut shape = shape.clone();
                if let (Some(stays), Some(last)) = (kept.get(&node.outputs[0]), shape.last_mut()) {
                    *last = stays.len();
                }
                Op::Reshape { shape }
            }
            other => other.clone(),
        };
        for (old, new) in node.outputs.iter().zip(out.apply_all(op, &inputs)?) {
            now[old.0] = Some(new);
        }
    }
    if !found {
        return Err(StrategyError::NothingToCompress { compression: format!("channel:{share}") });
    }
    for (name, id) in &graph.outputs {
        out.mark_output(name, now[id.0].expect("outputs are written"));
    }
    for value in &mut out.values {
        // Fans stay those of the trained layer: they matter only for initialisation.
        debug_assert!(value.shape.iter().all(|n| *n > 0));
    }
    Ok((out, pruned))
}

/// Names of the weights of products.
pub(super) fn products(graph: &Graph) -> HashSet<&str> {
    let weights = graph.nodes.iter().filter_map(|node| product_weight(graph, &node.op, &node.inputs));
    weights.map(|id| graph.value(id).name.as_str()).collect()
}

/// The weight of a product with a parameter as its second operand.
pub(super) fn product_weight(graph: &Graph, op: &Op, inputs: &[ValueId]) -> Option<ValueId> {
    let w = *inputs.get(1)?;
    let is_product = matches!(op, Op::MatMul { transpose_a: false, transpose_b: false } | Op::Conv2d { .. });
    (is_product && matches!(graph.value(w).role, Role::Parameter { .. })).then_some(w)
}

/// Whether every use of `value` keeps channels apart until a product with a parameter sums over them.
fn can_lose_channels(graph: &Graph, value: ValueId) -> bool {
    if graph.is_output(value) {
        return false;
    }
    let readers = graph.consumers(value);
    !readers.is_empty()
        && readers.iter().all(|at| {
            let node = &graph.nodes[*at];
            if node.inputs[0] != value || node.inputs[1..].contains(&value) {
                return false;
            }
            match &node.op {
                op if product_weight(graph, op, &node.inputs).is_some() => true,
                Op::AddBias | Op::Unary(_) | Op::MaxPool2d { .. } | Op::Scale { .. } => can_lose_channels(graph, node.outputs[0]),
                // Flattening keeps (place, channel) order; any other reshape would mix channels.
                Op::Reshape { shape } => {
                    let flat = shape.len() == 2 && shape[0] == graph.shape(value)[0];
                    flat && can_lose_channels(graph, node.outputs[0])
                }
                _ => false,
            }
        })
}

/// The output channels with the largest L1 norms, in order; `share` of them goes.
fn strongest(tensor: &Tensor, share: f64) -> Vec<usize> {
    let outputs = *tensor.shape.last().expect("has axes");
    let norm = |c: usize| -> f64 { tensor.data.iter().skip(c).step_by(outputs).map(|v| f64::from(v.abs())).sum() };
    let mut order: Vec<(f64, usize)> = (0..outputs).map(|c| (norm(c), c)).collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let stay = (outputs - (share * outputs as f64).round() as usize).max(1);
    let mut stays: Vec<usize> = order[..stay].iter().map(|(_, c)| *c).collect();
    stays.sort_unstable();
    stays
}

/// Keeps rows of the input axis: of a matrix its first axis, of a convolution `[KH, KW, Cin, Cout]` its third.
fn keep_inputs(tensor: &mut Tensor, stays: &[usize]) {
    let axis = tensor.shape.len() - 2;
    let (inputs, outputs) = (tensor.shape[axis], tensor.shape[axis + 1]);
    let old = std::mem::take(&mut tensor.data);
    tensor.data = old
        .chunks(inputs * outputs)
        .flat_map(|tap| stays.iter().flat_map(move |row| tap[row * outputs..(row + 1) * outputs].iter().copied()))
        .collect();
    tensor.shape[axis] = stays.len();
}

/// Keeps entries of the last axis.
fn keep_outputs(tensor: &mut Tensor, stays: &[usize]) {
    let outputs = *tensor.shape.last().expect("has axes");
    let old = std::mem::take(&mut tensor.data);
    tensor.data = old.chunks(outputs).flat_map(|row| stays.iter().map(move |c| row[*c])).collect();
    *tensor.shape.last_mut().expect("has axes") = stays.len();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::DType;

    /// A product with `w` behind a look-up in a table.
    fn graph(shape: &[usize]) -> Graph {
        let mut g = Graph::new();
        let table = g.weight("table", &[3, shape[0]], 1, 1);
        let (x, w) = (g.input("x", &[2], DType::I32), g.weight("w", shape, 1, 1));
        let y = g.apply(Op::Embedding, &[table, x]).unwrap();
        g.apply(Op::MatMul { transpose_a: false, transpose_b: false }, &[y, w]).unwrap();
        g
    }

    #[test]
    fn tables_of_embeddings_are_not_pruned() {
        let named = |name: &str, shape: &[usize]| Tensor {
            name: name.into(),
            shape: shape.to_vec(),
            data: (1..=shape.iter().product()).map(|k: usize| k as f32).collect(),
        };
        let whole = Weights { tensors: vec![named("table", &[3, 4]), named("w", &[4, 2])] };
        let graph = graph(&[4, 2]);
        let zeros =
            |weights: &Weights| weights.tensors.iter().map(|t| t.data.iter().filter(|v| **v == 0.0).count()).collect::<Vec<_>>();
        let (mut by_size, mut two_four) = (whole.clone(), whole.clone());
        prune_magnitude(&graph, &mut by_size, 0.5);
        prune_two_four(&graph, &mut two_four);
        assert_eq!((zeros(&by_size), zeros(&two_four)), (vec![0, 4], vec![0, 4]));
    }

    fn tensor(shape: &[usize], data: Vec<f32>) -> Weights {
        Weights { tensors: vec![Tensor { name: "w".into(), shape: shape.to_vec(), data }] }
    }

    #[test]
    fn magnitude_zeroes_exactly_the_share_even_among_equals() {
        let mut weights = tensor(&[2, 5], vec![1.0, -1.0, 1.0, 3.0, 1.0, -1.0, 2.0, 1.0, 1.0, -1.0]);
        prune_magnitude(&graph(&[2, 5]), &mut weights, 0.5);
        assert_eq!(weights.tensors[0].data.iter().filter(|v| **v == 0.0).count(), 5);
        assert!(weights.tensors[0].data.contains(&3.0) && weights.tensors[0].data.contains(&2.0));
        assert_eq!(weights.sparsity(), 0.5);
    }

    #[test]
    fn two_of_every_four_inputs_of_each_output_stay() {
        // [6, 2]: one group of four inputs and a rest of two, for two outputs.
        let data = vec![1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0, 0.1, 0.2, 0.3, 0.4];
        let mut weights = tensor(&[6, 2], data);
        prune_two_four(&graph(&[6, 2]), &mut weights);
        assert_eq!(weights.tensors[0].data, vec![0.0, 8.0, 0.0, 7.0, 3.0, 0.0, 4.0, 0.0, 0.1, 0.2, 0.3, 0.4]);
    }

    #[test]
    fn removed_channels_were_the_weakest_and_their_places_close_up() {
        let tensor = Tensor { name: "w".into(), shape: vec![2, 4], data: vec![1.0, -9.0, 0.5, 3.0, 1.0, 9.0, 0.5, -3.0] };
        assert_eq!(strongest(&tensor, 0.5), vec![1, 3]);
        let mut inputs = Tensor { name: "v".into(), shape: vec![4, 1], data: vec![10.0, 11.0, 12.0, 13.0] };
        keep_inputs(&mut inputs, &[1, 3]);
        assert_eq!((inputs.shape, inputs.data), (vec![2, 1], vec![11.0, 13.0]));
    }
}
