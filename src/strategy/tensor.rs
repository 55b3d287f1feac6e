//! Tensor parallelism (Shoeybi et al. 2019): the ranks share every batch and hold different parts of the weights.
//!
//! A product whose results flow through ops that keep columns apart into other products is split by columns, and those by rows: each rank
//! makes its columns and what they add to the next result, which is then summed over the ranks. So are two layers of a perceptron, a
//! convolution and the layer behind it, and the heads of an attention. Whatever cannot be split so is done by every rank.

use super::{StrategyError, Tensor, Weights, prune::product_weight};
use crate::graph::{Exchange, Graph, Op, Role, ValueId};
use std::{collections::HashMap, ops::Range};

/// A part of a parameter: places along one axis, in order.
#[derive(Clone, Debug, PartialEq)]
struct Shard {
    name: String,
    axis: usize,
    places: Vec<usize>,
}

/// The parts of the parameters that one rank holds; it holds the others whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shards(Vec<Shard>);

impl Shards {
    fn of(&self, name: &str) -> Option<&Shard> {
        self.0.iter().find(|shard| shard.name == name)
    }

    /// A rank's weights from the whole ones.
    pub fn cut(&self, whole: &Weights) -> Weights {
        let cut = |tensor: &Tensor| {
            let Some(shard) = self.of(&tensor.name) else { return tensor.clone() };
            let mut shape = tensor.shape.clone();
            shape[shard.axis] = shard.places.len();
            let data = shard.lines(&tensor.shape).flat_map(|line| tensor.data[line].iter().copied()).collect();
            Tensor { name: tensor.name.clone(), shape, data }
        };
        Weights { tensors: whole.tensors.iter().map(cut).collect() }
    }

    /// Puts a rank's part of a parameter where it belongs in the whole one.
    pub fn put(&self, part: &[f32], whole: &mut Tensor) {
        match self.of(&whole.name) {
            None => whole.data.copy_from_slice(part),
            Some(shard) => {
                let mut at = 0;
                for line in shard.lines(&whole.shape) {
                    let length = line.len();
                    whole.data[line].copy_from_slice(&part[at..at + length]);
                    at += length;
                }
            }
        }
    }

    /// The shape of a rank's part of a parameter.
    pub fn shape(&self, name: &str, whole: &[usize]) -> Vec<usize> {
        let mut shape = whole.to_vec();
        if let Some(shard) = self.of(name) {
            shape[shard.axis] = shard.places.len();
        }
        shape
    }
}

impl Shard {
    /// The elements of the part, in its order, as runs of the whole parameter.
    fn lines(&self, shape: &[usize]) -> impl Iterator<Item = Range<usize>> + '_ {
        let inner: usize = shape[self.axis + 1..].iter().product();
        let outer: usize = shape[..self.axis].iter().product();
        let extent = shape[self.axis];
        (0..outer).flat_map(move |block| {
            self.places.iter().map(move |place| {
                let start = (block * extent + place) * inner;
                start..start + inner
            })
        })
    }
}

/// What a rank holds of a value: places along one axis.
#[derive(Clone, Debug, PartialEq)]
struct Held {
    axis: usize,
    places: Vec<usize>,
}

/// Products that are split by columns, each with the columns that must stay together.
type Columns = HashMap<usize, usize>;

/// Splits an unfused forward graph over `ranks`; one graph and the parts of the parameters for each. Values have the same numbers in all of
/// them.
///
/// # Errors
/// `NothingToSplit` where no product can be split over so many.
pub fn split_tensor(graph: &Graph, ranks: usize) -> Result<Vec<(Graph, Shards)>, StrategyError> {
    let columns = columns(graph, ranks);
    if columns.is_empty() {
        return Err(StrategyError::NothingToSplit { ranks });
    }
    (0..ranks).map(|rank| split(graph, &columns, ranks, rank)).collect()
}

/// Every product that can be split, in the order of the graph.
fn columns(graph: &Graph, ranks: usize) -> Columns {
    let mut columns = Columns::new();
    let fits = |columns: &Columns| (0..ranks).all(|rank| held(graph, columns, ranks, rank).is_some());
    let units: Vec<usize> = std::iter::once(1)
        .chain(graph.nodes.iter().filter_map(|node| match &node.op {
            Op::Reshape { shape } => shape.last().copied(),
            _ => None,
        }))
        .collect();
    for (at, node) in graph.nodes.iter().enumerate() {
        if product_weight(graph, &node.op, &node.inputs).is_none() {
            continue;
        }
        // Alone, or with the products that read the same: queries, keys and values are split together or not at all.
        let reads_the_same = |other: usize| {
            let other = &graph.nodes[other];
            other.inputs[0] == node.inputs[0] && product_weight(graph, &other.op, &other.inputs).is_some()
        };
        let siblings: Vec<usize> = (at..graph.nodes.len()).filter(|other| reads_the_same(*other)).collect();
        'tries: for unit in &units {
            for together in [&siblings[..1], &siblings[..]] {
                let mut tried = columns.clone();
                tried.extend(together.iter().map(|at| (*at, *unit)));
                if fits(&tried) {
                    columns = tried;
                    break 'tries;
                }
            }
        }
    }
    columns
}

/// Columns of a rank: whole units, as even as they go.
fn share(columns: usize, unit: usize, ranks: usize, rank: usize) -> Option<Vec<usize>> {
    let units = columns / unit;
    if !columns.is_multiple_of(unit) || units < ranks {
        return None;
    }
    Some((units * rank / ranks * unit..units * (rank + 1) / ranks * unit).collect())
}

/// What a rank holds of each value that it does not hold whole; `None` where some op cannot work on parts.
fn held(graph: &Graph, columns: &Columns, ranks: usize, rank: usize) -> Option<HashMap<ValueId, Held>> {
    let mut held: HashMap<ValueId, Held> = HashMap::new();
    for (at, node) in graph.nodes.iter().enumerate() {
        let last = |id: ValueId| graph.shape(id).len() - 1;
        let is_product = product_weight(graph, &node.op, &node.inputs).is_some();
        let incoming = node.inputs.first().and_then(|x| held.get(x)).cloned();
        let others: Vec<Option<&Held>> = node.inputs.iter().skip(1).map(|id| held.get(id)).collect();
        let alone = others.iter().all(Option::is_none);
        let out = match (&node.op, incoming) {
            (_, Some(x)) if is_product => match columns.get(&at) {
                None if x.axis == last(node.inputs[0]) && alone => None,
                _ => return None,
            },
            (_, None) if is_product => match columns.get(&at) {
                Some(unit) => {
                    let y = node.outputs[0];
                    Some(Held { axis: last(y), places: share(graph.shape(y)[last(y)], *unit, ranks, rank)? })
                }
                None => None,
            },
            (_, None) if alone => None,
            (Op::AddBias | Op::Unary(_) | Op::Scale { .. } | Op::MaxPool2d { .. }, Some(x)) if alone => Some(x),
            (Op::Softmax, Some(x)) if x.axis != last(node.inputs[0]) => Some(x),
            (Op::Permute { axes }, Some(x)) => {
                let axis = axes.iter().position(|axis| *axis == x.axis)?;
                Some(Held { axis, ..x })
            }
            (Op::Reshape { shape }, Some(x)) => Some(reshaped(graph.shape(node.inputs[0]), shape, &x)?),
            // Heads of an attention: each rank multiplies its own.
            (Op::MatMul { .. }, Some(x)) if others[0] == Some(&x) && x.axis + 1 < last(node.inputs[0]) => Some(x),
            (Op::Binary(_), Some(x)) if others[0] == Some(&x) => Some(x),
            _ => return None,
        };
        if let Some(out) = out {
            // A second result, the winners of a pool, is cut alike.
            node.outputs.iter().for_each(|id| drop(held.insert(*id, out.clone())));
        }
    }
    graph.outputs.iter().all(|(_, id)| !held.contains_key(id)).then_some(held)
}

/// What of a reshaped value is held: where images become rows, the last axis becomes heads, or heads become the last axis again.
fn reshaped(from: &[usize], to: &[usize], x: &Held) -> Option<Held> {
    let last = from.len() - 1;
    if x.axis == last && to.len() == 2 && to[0] == from[0] {
        let channels = from[last];
        let places = (0..to[1] / channels).flat_map(|pixel| x.places.iter().map(move |c| pixel * channels + c)).collect();
        return Some(Held { axis: 1, places });
    }
    if x.axis == last && to.len() == from.len() + 1 && to[..last] == from[..last] {
        let depth = to[last + 1];
        let whole = x.places.chunks(depth).all(|head| head.len() == depth && head[0].is_multiple_of(depth));
        return whole.then(|| Held { axis: last, places: x.places.iter().step_by(depth).map(|place| place / depth).collect() });
    }
    if x.axis + 1 == last && to.len() + 1 == from.len() && to[..last - 1] == from[..last - 1] {
        let depth = from[last];
        let places = x.places.iter().flat_map(|head| head * depth..(head + 1) * depth).collect();
        return Some(Held { axis: last - 1, places });
    }
    None
}

/// One rank's graph.
fn split(graph: &Graph, columns: &Columns, ranks: usize, rank: usize) -> Result<(Graph, Shards), StrategyError> {
    let held = held(graph, columns, ranks, rank).expect("`columns` tried it");
    let mut shards = Shards::default();
    let mut cut = |id: ValueId, axis: usize, places: &[usize]| {
        let name = graph.value(id).name.clone();
        if shards.of(&name).is_none() {
            shards.0.push(Shard { name, axis, places: places.to_vec() });
        }
    };
    for node in &graph.nodes {
        let (x, y) = (node.inputs.first().and_then(|x| held.get(x)), node.outputs.first().and_then(|y| held.get(y)));
        match (product_weight(graph, &node.op, &node.inputs), x, y) {
            (Some(w), Some(x), _) => cut(w, graph.shape(w).len() - 2, &x.places),
            (Some(w), None, Some(y)) => cut(w, graph.shape(w).len() - 1, &y.places),
            (None, Some(x), _) if node.op == Op::AddBias && x.axis + 1 == graph.shape(node.inputs[0]).len() => {
                cut(node.inputs[1], 0, &x.places);
            }
            _ => {}
        }
    }
    let mut out = Graph::new();
    let mut now: Vec<Option<ValueId>> = vec![None; graph.values.len()];
    for id in graph.ids() {
        let mut value = graph.value(id).clone();
        if value.role != Role::Intermediate {
            value.shape = shards.shape(&value.name, &value.shape);
            out.values.push(value);
            now[id.0] = Some(ValueId(out.values.len() - 1));
        }
    }
    // What split products read, once for all that read it: its gradient is then summed over the ranks once.
    let mut replicated: HashMap<ValueId, ValueId> = HashMap::new();
    for (at, node) in graph.nodes.iter().enumerate() {
        let mut inputs: Vec<ValueId> = node.inputs.iter().map(|id| now[id.0].expect("written before it is read")).collect();
        if columns.contains_key(&at) {
            let x = node.inputs[0];
            let copy = match replicated.get(&x) {
                Some(copy) => *copy,
                None => out.apply(Op::Replicate, &[inputs[0]])?,
            };
            replicated.insert(x, copy);
            inputs[0] = copy;
        }
        let op = match &node.op {
            Op::Reshape { shape } => {
                let mut shape = shape.clone();
                if let Some(y) = held.get(&node.outputs[0]) {
                    shape[y.axis] = y.places.len();
                }
                Op::Reshape { shape }
            }
            other => other.clone(),
        };
        let mut made = out.apply_all(op, &inputs)?;
        let is_product = product_weight(graph, &node.op, &node.inputs).is_some();
        if is_product && held.contains_key(&node.inputs[0]) {
            made[0] = out.apply(Op::Exchange(Exchange::SumRanks), &made)?;
        }
        for (old, new) in node.outputs.iter().zip(made) {
            now[old.0] = Some(new);
        }
    }
    for (name, id) in &graph.outputs {
        out.mark_output(name, now[id.0].expect("outputs are written"));
    }
    Ok((out, shards))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{graph::Activation, vocab::DType};

    fn two_layers(columns: usize) -> Graph {
        let mut g = Graph::new();
        let x = g.input("x", &[4, 6], DType::F32);
        let (w1, w2) = (g.weight("w1", &[6, columns], 6, columns), g.weight("w2", &[columns, 3], columns, 3));
        let (b1, b2) = (g.bias("b1", columns, 6), g.bias("b2", 3, columns));
        let product = Op::MatMul { transpose_a: false, transpose_b: false };
        let y = g.apply(product.clone(), &[x, w1]).unwrap();
        let y = g.apply(Op::AddBias, &[y, b1]).unwrap();
        let y = g.apply(Op::Unary(crate::graph::Unary::Relu), &[y]).unwrap();
        let y = g.apply(product, &[y, w2]).unwrap();
        let y = g.apply(Op::AddBias, &[y, b2]).unwrap();
        g.mark_output("logits", y);
        g
    }

    #[test]
    fn columns_then_rows_with_one_sum_and_uneven_shares() {
        let parts = split_tensor(&two_layers(7), 3).unwrap();
        let shape = |k: usize, name: &str| parts[k].0.value(parts[k].0.find(name).unwrap()).shape.clone();
        assert_eq!([0, 1, 2].map(|k| shape(k, "w1")), [vec![6, 2], vec![6, 2], vec![6, 3]]);
        assert_eq!([0, 1, 2].map(|k| shape(k, "w2")), [vec![2, 3], vec![2, 3], vec![3, 3]]);
        assert_eq!((shape(2, "b1"), shape(2, "b2")), (vec![3], vec![3]));
        for (graph, _) in &parts {
            let count = |op: &Op| graph.nodes.iter().filter(|node| node.op == *op).count();
            assert_eq!((count(&Op::Exchange(Exchange::SumRanks)), count(&Op::Replicate)), (1, 1));
            assert_eq!(graph.values.len(), parts[0].0.values.len());
        }
        assert!(matches!(split_tensor(&two_layers(2), 3), Err(StrategyError::NothingToSplit { ranks: 3 })));
    }

    #[test]
    fn parts_make_up_the_whole() {
        let graph = two_layers(7);
        let tensor = |id: ValueId| {
            let value = graph.value(id);
            Tensor {
                name: value.name.clone(),
                shape: value.shape.clone(),
                data: (0..value.elements()).map(|k| k as f32).collect(),
            }
        };
        let whole = Weights { tensors: graph.parameters().map(tensor).collect() };
        let mut again = whole.clone();
        again.tensors.iter_mut().for_each(|tensor| tensor.data.fill(-1.0));
        for (part, shards) in split_tensor(&graph, 2).unwrap() {
            let cut = shards.cut(&whole);
            for (tensor, whole) in cut.tensors.iter().zip(&mut again.tensors) {
                assert_eq!(part.value(part.find(&tensor.name).unwrap()).shape, tensor.shape);
                shards.put(&tensor.data, whole);
            }
        }
        assert_eq!(again, whole);
    }

    #[test]
    fn a_fused_graph_or_a_lone_layer_has_nothing_to_split() {
        let mut g = Graph::new();
        let x = g.input("x", &[4, 6], DType::F32);
        let (w, b) = (g.weight("w", &[6, 8], 6, 8), g.bias("b", 8, 6));
        let y = g.apply(Op::Linear { activation: Activation::None }, &[x, w, b]).unwrap();
        g.mark_output("logits", y);
        assert!(matches!(split_tensor(&g, 2), Err(StrategyError::NothingToSplit { ranks: 2 })));
    }
}
