//! Data parallelism: every rank holds all weights and a share of the batch; the gradients are summed before the update.
//!
//! The loss of a rank is already divided by the rows of the whole batch (`CrossEntropy { rows }`), so the sum over ranks is the
//! gradient of the whole batch's mean.

use super::StrategyError;
use crate::{
    graph::{Exchange, Graph, Op, OptimizerStep, ValueId},
    vocab::DType,
};

/// A bucket is full when it has so many bytes of gradients. Smaller ones would cost more by the latency of their exchange (some 10 us between
/// devices) than by its transfer, larger ones start late; models here have a few megabytes, so that 25 MB, as is usual for large models, would
/// leave one bucket that starts when the backward pass is over.
pub const BUCKET_BYTES: usize = 1 << 20;

/// Groups `gradients` in the order in which the backward pass finishes them, and starts the sum of each group over the data-parallel ranks as
/// soon as its last gradient is there, so that it goes on while the rest is computed (Li et al. 2020). The groups, as places in `gradients`;
/// their numbers are those of the buckets.
pub fn start_reduces(graph: &mut Graph, gradients: &[ValueId], bucket_bytes: usize) -> Result<Vec<Vec<usize>>, StrategyError> {
    let ready: Vec<usize> = gradients.iter().map(|id| last_touch(graph, *id)).collect();
    let mut order: Vec<usize> = (0..gradients.len()).collect();
    order.sort_by_key(|k| ready[*k]);
    let mut buckets: Vec<Vec<usize>> = Vec::new();
    let mut filled = usize::MAX;
    for k in order {
        if filled >= bucket_bytes {
            buckets.push(Vec::new());
            filled = 0;
        }
        buckets.last_mut().expect("one was begun").push(k);
        filled += graph.value(gradients[k]).bytes();
    }
    // From the last on, so that places stay right.
    for (number, members) in buckets.iter().enumerate().rev() {
        let behind = members.iter().map(|k| ready[*k] + 1).max().expect("a bucket has a gradient");
        let operands: Vec<ValueId> = members.iter().map(|k| gradients[*k]).collect();
        graph.insert_in_place(behind, Op::Exchange(Exchange::StartReduce { bucket: number }), &operands)?;
    }
    Ok(buckets)
}

/// The last node that reads or writes the memory of a value, also under another name.
fn last_touch(graph: &Graph, id: ValueId) -> usize {
    let mut names = vec![id];
    while let Some(made) = names.last().and_then(|id| graph.producer(*id)).filter(|node| graph.nodes[*node].op.is_alias()) {
        names.push(graph.nodes[made].inputs[0]);
    }
    let mut last = 0;
    for (at, node) in graph.nodes.iter().enumerate() {
        if node.inputs.iter().chain(&node.outputs).any(|id| names.contains(id)) {
            last = at;
            if node.op.is_alias() {
                names.extend(&node.outputs);
            }
        }
    }
    last
}

/// One parameter with its gradient, as each rank has summed it over its own rows.
#[derive(Clone, Copy, Debug)]
pub struct Trained {
    pub parameter: ValueId,
    pub gradient: ValueId,
    /// The low-precision copy that the forward pass reads.
    pub copy: Option<ValueId>,
}

/// A parameter's part on this rank, and that of its summed gradient.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub parameter: ValueId,
    pub gradient: ValueId,
}

/// Finishes the sums of a bucket, of which each of `ranks` keeps its part, with the same part of the parameter (Rajbhandari et al. 2020).
/// `update_part` goes on.
pub fn scatter_gradients(
    graph: &mut Graph,
    bucket: usize,
    trained: &[Trained],
    ranks: usize,
) -> Result<Vec<Part>, StrategyError> {
    let gradients: Vec<ValueId> = trained.iter().map(|one| one.gradient).collect();
    let parts = graph.apply_all(Op::Exchange(Exchange::ReduceScatter { bucket, ranks }), &gradients)?;
    let parts = trained.iter().zip(parts).map(|(one, gradient)| {
        let parameter = graph.apply(Op::Exchange(Exchange::TakePart { ranks }), &[one.parameter])?;
        Ok(Part { parameter, gradient })
    });
    parts.collect()
}

/// Updates a part with the optimizer state of that alone, then gathers the parameter. `guard`: loss scale and all-finite flag.
pub fn update_part(
    graph: &mut Graph,
    one: &Trained,
    part: &Part,
    optimizer: OptimizerStep,
    guard: Option<[ValueId; 2]>,
    ranks: usize,
) -> Result<(), StrategyError> {
    let name = graph.value(one.parameter).name.clone();
    let shape = graph.shape(part.parameter).to_vec();
    let mut operands = vec![part.parameter, part.gradient];
    operands.extend((0..optimizer.state_arrays()).map(|k| graph.state(&format!("{name}.state{k}"), &shape, DType::F32)));
    operands.extend(guard.into_iter().flatten());
    graph.apply_all(Op::Update { optimizer, guarded: guard.is_some() }, &operands)?;
    let mut whole = vec![one.parameter, part.parameter];
    whole.extend(one.copy);
    graph.apply_all(Op::Exchange(Exchange::AllGather { ranks }), &whole)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Activation, differentiate};

    /// Two layers with their loss and gradients by the parameters, of 64 x 32 and 32 x 4 weights.
    fn step() -> (Graph, Vec<ValueId>) {
        let mut g = Graph::new();
        let x = g.input("x", &[8, 64], DType::F32);
        let labels = g.input("labels", &[8], DType::I32);
        let (v, a) = (g.weight("v", &[64, 32], 64, 32), g.bias("a", 32, 64));
        let (w, b) = (g.weight("w", &[32, 4], 32, 4), g.bias("b", 4, 32));
        let y = g.apply(Op::Linear { activation: Activation::Relu }, &[x, v, a]).unwrap();
        let y = g.apply(Op::Linear { activation: Activation::None }, &[y, w, b]).unwrap();
        let loss = g.apply(Op::CrossEntropy { rows: 8 }, &[y, labels]).unwrap();
        let gradients = differentiate(&mut g, loss, &[v, a, w, b], None).unwrap();
        let gradients = [v, a, w, b].map(|id| gradients.of(id).unwrap()).to_vec();
        (g, gradients)
    }

    #[test]
    fn buckets_start_as_soon_as_their_last_gradient_is_there() {
        // The layer behind comes first. 4 * (32 * 4 + 4) = 528 bytes of gradients there, 8,320 in the other.
        for (bytes, want) in [
            (1, vec![vec![2], vec![3], vec![0], vec![1]]),
            (520, vec![vec![2, 3], vec![0], vec![1]]),
            (1 << 20, vec![vec![2, 3, 0, 1]]),
        ] {
            let (mut g, gradients) = step();
            let buckets = start_reduces(&mut g, &gradients, bytes).unwrap();
            assert_eq!(buckets, want, "{bytes}");
            let starts: Vec<usize> =
                (0..g.nodes.len()).filter(|at| matches!(g.nodes[*at].op, Op::Exchange(Exchange::StartReduce { .. }))).collect();
            assert_eq!(starts.len(), buckets.len());
            for (at, (number, members)) in starts.iter().zip(buckets.iter().enumerate()) {
                let node = &g.nodes[*at];
                assert_eq!(node.op, Op::Exchange(Exchange::StartReduce { bucket: number }));
                assert_eq!(node.inputs, members.iter().map(|k| gradients[*k]).collect::<Vec<_>>());
                // Nobody touches what it sums afterwards, and the node before it made the last of it.
                let touches =
                    |later: &crate::graph::Node| later.inputs.iter().chain(&later.outputs).any(|id| node.inputs.contains(id));
                assert!(!g.nodes[at + 1..].iter().any(touches));
                assert!(g.nodes[at - 1].outputs.iter().any(|id| node.inputs.contains(id)), "{bytes}, bucket {number}");
            }
            // Arithmetic of the first layer's gradients is behind the start of the last layer's.
            let behind = g.nodes[starts[0]..].iter().filter(|node| matches!(node.op, Op::MatMul { .. })).count();
            assert_eq!(behind > 0, buckets.len() > 1, "{bytes}");
        }
    }

    #[test]
    fn a_gradient_that_is_read_again_under_another_name_is_not_handed_over_before() {
        let mut g = Graph::new();
        let x = g.input("x", &[4, 4], DType::F32);
        let made = g.apply(Op::Scale { factor: 2.0 }, &[x]).unwrap();
        let gradient = g.apply(Op::Reshape { shape: vec![16] }, &[made]).unwrap();
        let other = g.apply(Op::Reshape { shape: vec![2, 8] }, &[made]).unwrap();
        let read = g.apply(Op::Scale { factor: 3.0 }, &[other]).unwrap();
        g.mark_output("read", read);
        start_reduces(&mut g, &[gradient], 1).unwrap();
        assert_eq!(g.nodes.last().unwrap().op, Op::Exchange(Exchange::StartReduce { bucket: 0 }));
    }
}
