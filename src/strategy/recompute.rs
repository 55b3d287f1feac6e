//! Recomputation of activations (Chen et al. 2016): the backward pass makes again what it needs of the forward pass, so that fewer values
//! live from one to the other. The same ops on the same operands give the same bits, and so the same gradients.
//!
//! The forward nodes fall into segments. What a later segment reads is kept; all else of a segment is made again where the backward pass
//! first needs any of it. How many segments there are is tried, and the memory plan decides: about the square root of the number of layers
//! where all are alike. Where no number saves memory, nothing is dropped.

use super::StrategyError;
use crate::graph::{Graph, ValueId, lower};
use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

/// Where a forward pass and its backward pass stand in a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Passes {
    pub forward: Range<usize>,
    /// The first node of the backward pass.
    pub backward: usize,
    /// The backward pass follows at once: the last segment is still there, and stays.
    pub is_followed: bool,
}

/// Rewrites the backward passes of a whole step to read values that are made again, so that the step needs least memory. `passes`: of each
/// micro-batch, in any order.
pub fn recompute(graph: &mut Graph, passes: &[Passes]) -> Result<(), StrategyError> {
    let mut passes = passes.to_vec();
    // From the last backward pass on: what is put before a node moves only what stands behind it.
    passes.sort_by_key(|pass| std::cmp::Reverse(pass.backward));
    let longest = passes.iter().map(|pass| pass.forward.len()).max().unwrap_or(0);
    let counts = (0..).flat_map(|k| [2usize.pow(k), 3 * 2usize.pow(k)]).take_while(|count| *count < 4 * longest.max(1));
    let (mut best, mut least) = (None, lower(graph).memory());
    for count in counts.filter(|count| *count <= longest) {
        let mut tried = graph.clone();
        passes.iter().try_for_each(|pass| rewrite(&mut tried, pass, count))?;
        let memory = lower(&tried).memory();
        if memory < least {
            (best, least) = (Some(tried), memory);
        }
    }
    best.into_iter().for_each(|best| *graph = best);
    Ok(())
}

/// The same for one pass, with its forward nodes in `count` segments.
fn rewrite(graph: &mut Graph, passes: &Passes, count: usize) -> Result<(), StrategyError> {
    let segments = segments(graph, passes.forward.clone(), count);
    // Segment of every value that is not kept.
    let mut dropped: HashMap<ValueId, usize> = HashMap::new();
    let again = if passes.is_followed { segments.len() - 1 } else { segments.len() };
    for (number, segment) in segments.iter().enumerate().take(again) {
        let kept = read_behind(graph, segment, segments.last().map_or(0, |last| last.end));
        let made = graph.nodes[segment.clone()].iter().flat_map(|node| &node.outputs);
        dropped.extend(made.filter(|id| !kept.contains(id)).map(|id| (*id, number)));
    }
    let tail = graph.nodes.split_off(passes.backward);
    let read: HashSet<ValueId> = tail.iter().flat_map(|node| &node.inputs).copied().collect();
    let mut now: HashMap<ValueId, ValueId> = HashMap::new();
    let mut is_done = vec![false; segments.len()];
    for mut node in tail {
        let needed: Vec<usize> = node.inputs.iter().filter_map(|id| dropped.get(id).copied()).collect();
        for number in needed {
            if !std::mem::replace(&mut is_done[number], true) {
                make_again(graph, &segments[number], &dropped, &read, &mut now)?;
            }
        }
        node.inputs.iter_mut().for_each(|id| *id = now.get(id).copied().unwrap_or(*id));
        graph.nodes.push(node);
    }
    Ok(())
}

/// Appends the nodes of a segment that lead to dropped values which are `read` again; `now` learns what stands for those.
fn make_again(
    graph: &mut Graph,
    segment: &Range<usize>,
    dropped: &HashMap<ValueId, usize>,
    read: &HashSet<ValueId>,
    now: &mut HashMap<ValueId, ValueId>,
) -> Result<(), StrategyError> {
    let nodes = graph.nodes[segment.clone()].to_vec();
    let mut wanted = read.clone();
    let mut needed = vec![false; nodes.len()];
    for (k, node) in nodes.iter().enumerate().rev() {
        if node.outputs.iter().any(|id| wanted.contains(id) && dropped.contains_key(id)) {
            needed[k] = true;
            wanted.extend(&node.inputs);
        }
    }
    for node in nodes.into_iter().zip(needed).filter_map(|(node, is_needed)| is_needed.then_some(node)) {
        let inputs: Vec<ValueId> = node.inputs.iter().map(|id| now.get(id).copied().unwrap_or(*id)).collect();
        let made = graph.apply_all(node.op, &inputs)?;
        now.extend(node.outputs.into_iter().zip(made).filter(|(old, _)| dropped.contains_key(old)));
    }
    Ok(())
}

/// Values made in `segment` that forward nodes behind it, up to `end`, read.
fn read_behind(graph: &Graph, segment: &Range<usize>, end: usize) -> HashSet<ValueId> {
    let made: HashSet<ValueId> = graph.nodes[segment.clone()].iter().flat_map(|node| &node.outputs).copied().collect();
    let read = graph.nodes[segment.end..end].iter().flat_map(|node| &node.inputs);
    read.filter(|id| made.contains(id)).copied().collect()
}

/// The forward nodes in `count` stretches that make about as many bytes each.
fn segments(graph: &Graph, forward: Range<usize>, count: usize) -> Vec<Range<usize>> {
    let bytes_of = |at: usize| match graph.nodes[at].op.is_alias() {
        true => 0,
        false => graph.nodes[at].outputs.iter().map(|id| graph.value(*id).bytes()).sum::<usize>(),
    };
    let all: usize = forward.clone().map(bytes_of).sum();
    let (mut segments, mut from, mut sum) = (Vec::with_capacity(count), forward.start, 0);
    for at in forward.clone() {
        sum += bytes_of(at);
        if sum * count >= all * (segments.len() + 1) && at + 1 < forward.end {
            segments.push(from..at + 1);
            from = at + 1;
        }
    }
    segments.push(from..forward.end);
    segments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        graph::{Op, Unary, cases, differentiate, lower, reference},
        vocab::DType,
    };

    /// `depth` layers of a square product and a GELU with their loss and gradients, which are outputs; and where the backward pass begins.
    fn deep(depth: usize, is_followed: bool) -> (Graph, Passes) {
        let mut g = Graph::new();
        let mut y = g.input("x", &[64, 16], DType::F32);
        for k in 0..depth {
            let w = g.weight(&format!("w{k}"), &[16, 16], 16, 16);
            y = g.apply(Op::MatMul { transpose_a: false, transpose_b: false }, &[y, w]).unwrap();
            y = g.apply(Op::Unary(Unary::Gelu), &[y]).unwrap();
        }
        let forward = 0..g.nodes.len();
        let labels = g.input("labels", &[64], DType::I32);
        let loss = g.apply(Op::CrossEntropy { rows: 64 }, &[y, labels]).unwrap();
        let backward = g.nodes.len();
        let wrt: Vec<ValueId> = g.parameters().collect();
        let gradients = differentiate(&mut g, loss, &wrt, None).unwrap();
        g.mark_output("loss", loss);
        for (k, id) in wrt.iter().enumerate() {
            g.mark_output(&format!("d {k}"), gradients.of(*id).unwrap());
        }
        (g, Passes { forward, backward, is_followed })
    }

    fn results(graph: &Graph) -> Vec<Vec<f64>> {
        let mut data = cases::contents(graph, 5);
        reference::run(&graph.values, &graph.nodes, &mut data, 0);
        graph.outputs.iter().map(|(_, id)| data[id.0].clone()).collect()
    }

    #[test]
    fn gradients_keep_their_bits_at_less_memory_and_more_arithmetic() {
        for is_followed in [true, false] {
            let (plain, passes) = deep(16, is_followed);
            let mut again = plain.clone();
            recompute(&mut again, std::slice::from_ref(&passes)).unwrap();
            assert_eq!(results(&plain), results(&again));
            let (before, after) = (lower(&plain), lower(&again));
            assert!(after.memory().0 * 4 < before.memory().0 * 3, "{} of {}", after.memory().0, before.memory().0);
            // No more than the forward pass once more.
            let more = after.work().flops.0 - before.work().flops.0;
            let once: u64 = plain.nodes[passes.forward].iter().map(|node| plain.node_work(node).flops.0).sum();
            assert!(more > 0 && more <= once, "{more} of {once}");
        }
    }

    #[test]
    fn memory_grows_by_the_square_root_of_the_depth() {
        let slots = |depth: usize| {
            let (mut graph, passes) = deep(depth, true);
            recompute(&mut graph, &[passes]).unwrap();
            lower(&graph).slots.iter().filter(|slot| !slot.persistent).map(|slot| slot.bytes).sum::<usize>()
        };
        let (shallow, deep) = (slots(16), slots(64));
        assert!(deep < 3 * shallow, "{deep} at four times the depth of {shallow}");
    }

    #[test]
    fn every_case_has_the_gradients_that_it_had() {
        for case in cases::CASES {
            let mut plain = crate::graph::fuse(case.forward(), true);
            let forward = 0..plain.nodes.len();
            cases::with_gradients(&mut plain);
            let loss = |node: &crate::graph::Node| matches!(node.op, Op::CrossEntropy { .. });
            let backward = plain.nodes.iter().position(loss).unwrap() + 1;
            plain.outputs.retain(|(name, _)| name != "logits");
            let passes = Passes { forward, backward, is_followed: false };
            // Whether it saves memory or not.
            for count in 1..=passes.forward.len() {
                let mut again = plain.clone();
                rewrite(&mut again, &passes, count).unwrap();
                assert_eq!(results(&plain), results(&again), "{}, {count}", case.name);
            }
        }
    }
}
