//! Pipeline parallelism: the ranks hold different stretches of the model, and a batch goes through them in pieces (micro-batches). GPipe
//! (Huang et al. 2019) sends all pieces forward, then all back; 1F1B (Narayanan et al. 2019) takes each piece back as soon as it can, so
//! that no more pieces are under way than there are stages.
//!
//! A stage's program is the whole schedule, unrolled: which activations live when, and so the memory, follows from it.

use super::StrategyError;
use crate::{
    graph::{Exchange, Graph, Op, Role, ValueId},
    vocab::PipelineSchedule,
};
use std::{collections::HashMap, ops::Range};

/// A stretch of a forward graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Its nodes.
    pub nodes: Range<usize>,
    /// The value that comes from the stage before; `None` for the first.
    pub input: Option<ValueId>,
    /// The value that goes to the stage behind; `None` for the last.
    pub output: Option<ValueId>,
}

/// What a stage does with micro-batch `k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    Forward(usize),
    Backward(usize),
}

/// Cuts a forward graph into `stages` stretches, the largest as small as it goes by its FLOPs. One value crosses each cut, and no parameter
/// is read on both sides. The first stage has weights: one without them could do nothing with the gradients that it is sent.
///
/// # Errors
/// `NothingToSplit` where there are not so many places to cut.
pub fn cut_stages(graph: &Graph, stages: usize) -> Result<Vec<Stage>, StrategyError> {
    let count = graph.nodes.len();
    // Last node of a stretch, with what crosses behind it.
    let has_weights = |id: &ValueId| !matches!(graph.value(*id).role, Role::Intermediate | Role::Input);
    let first = graph.nodes.iter().position(|node| node.inputs.iter().any(has_weights)).unwrap_or(0);
    let places = first..count.saturating_sub(1).max(first);
    let cuts: Vec<(usize, ValueId)> = places.filter_map(|at| Some((at, crossing(graph, at)?))).collect();
    let mut before = vec![0u64; count + 1];
    for (at, node) in graph.nodes.iter().enumerate() {
        before[at + 1] = before[at] + graph.node_work(node).flops.0;
    }
    // best[k]: the smallest largest stretch of those up to cut k, and the cut before.
    let work = |from: usize, to: usize| before[to] - before[from];
    let mut best: Vec<(u64, Vec<usize>)> = cuts.iter().enumerate().map(|(k, (at, _))| (work(0, at + 1), vec![k])).collect();
    for _ in 2..stages {
        let longer = |k: usize| -> (u64, Vec<usize>) {
            let (at, _) = cuts[k];
            let options = best[..k].iter().filter(|(largest, _)| *largest < u64::MAX).map(|(largest, chosen)| {
                let last = cuts[*chosen.last().expect("has one")].0;
                let mut chosen = chosen.clone();
                chosen.push(k);
                ((*largest).max(work(last + 1, at + 1)), chosen)
            });
            options.min().unwrap_or((u64::MAX, vec![k]))
        };
        best = (0..cuts.len()).map(longer).collect();
    }
    let ended = best.into_iter().filter(|(largest, _)| *largest < u64::MAX).map(|(largest, chosen)| {
        let last = cuts[*chosen.last().expect("has one")].0;
        (largest.max(work(last + 1, count)), chosen)
    });
    let (_, chosen) = ended.min().ok_or(StrategyError::NothingToSplit { ranks: stages })?;
    let mut out = Vec::with_capacity(stages);
    let (mut from, mut input) = (0, None);
    for k in chosen {
        let (at, value) = cuts[k];
        out.push(Stage { nodes: from..at + 1, input, output: Some(value) });
        (from, input) = (at + 1, Some(value));
    }
    out.push(Stage { nodes: from..count, input, output: None });
    Ok(out)
}

/// The one value that is made up to node `at` and read behind it, if nothing else crosses there.
fn crossing(graph: &Graph, at: usize) -> Option<ValueId> {
    let (left, right) = graph.nodes.split_at(at + 1);
    let made: Vec<ValueId> = left.iter().flat_map(|node| node.outputs.iter().copied()).collect();
    let mut read: Vec<ValueId> = right.iter().flat_map(|node| node.inputs.iter().copied()).collect();
    read.sort_unstable();
    read.dedup();
    let mut crossing = read.iter().filter(|id| made.contains(id));
    let value = *crossing.next()?;
    let is_shared =
        |id: &ValueId| graph.value(*id).role != Role::Intermediate && left.iter().any(|node| node.inputs.contains(id));
    // An input of the model belongs to the first stage.
    let is_input = |id: &ValueId| graph.value(*id).role == Role::Input;
    let alone = crossing.next().is_none() && !read.iter().any(|id| is_shared(id) || is_input(id));
    (alone && graph.dtype(value).is_float()).then_some(value)
}

/// The order in which a stage works on `pieces` micro-batches.
pub fn schedule(kind: PipelineSchedule, stage: usize, stages: usize, pieces: usize) -> Vec<Task> {
    match kind {
        PipelineSchedule::GPipe => (0..pieces).map(Task::Forward).chain((0..pieces).rev().map(Task::Backward)).collect(),
        PipelineSchedule::OneForwardOneBackward => {
            let ahead = (stages - stage - 1).min(pieces);
            let steady = (ahead..pieces).flat_map(|k| [Task::Forward(k), Task::Backward(k - ahead)]);
            (0..ahead).map(Task::Forward).chain(steady).chain((pieces - ahead..pieces).map(Task::Backward)).collect()
        }
    }
}

/// A stage's graph while it is being made.
pub struct Unrolled {
    pub graph: Graph,
    /// What stands here for the parameters and states of the forward graph.
    pub now: HashMap<ValueId, ValueId>,
}

impl Unrolled {
    /// Starts with the parameters and states that the stage reads, and those named in `also`.
    pub fn new(forward: &Graph, stage: &Stage, also: &[ValueId]) -> Unrolled {
        let nodes = &forward.nodes[stage.nodes.clone()];
        let (mut graph, mut now) = (Graph::new(), HashMap::new());
        for id in forward.ids() {
            let value = forward.value(id);
            let is_kept = matches!(value.role, Role::Parameter { .. } | Role::State);
            if is_kept && (also.contains(&id) || nodes.iter().any(|node| node.inputs.contains(&id))) {
                graph.values.push(value.clone());
                now.insert(id, ValueId(graph.values.len() - 1));
            }
        }
        Unrolled { graph, now }
    }

    /// Appends the stage's forward pass; `input` stands for what it reads from the model's input or the stage before. Gives what stands for
    /// `wanted`.
    pub fn forward(
        &mut self,
        forward: &Graph,
        stage: &Stage,
        (old, input): (ValueId, ValueId),
        wanted: ValueId,
    ) -> Result<ValueId, StrategyError> {
        let mut now = self.now.clone();
        now.insert(old, input);
        for node in &forward.nodes[stage.nodes.clone()] {
            let inputs: Vec<ValueId> = node.inputs.iter().map(|id| now[id]).collect();
            let made = self.graph.apply_all(node.op.clone(), &inputs)?;
            now.extend(node.outputs.iter().copied().zip(made));
        }
        Ok(now[&wanted])
    }

    /// Appends the receipt of a value like `like` of the forward graph.
    pub fn receive(&mut self, forward: &Graph, like: ValueId, from_before: bool) -> Result<ValueId, StrategyError> {
        let value = forward.value(like);
        let op = Op::Exchange(Exchange::Receive { shape: value.shape.clone(), dtype: value.dtype, from_before });
        Ok(self.graph.apply(op, &[])?)
    }

    /// Appends the sending of a value.
    pub fn send(&mut self, value: ValueId, to_next: bool) -> Result<(), StrategyError> {
        Ok(self.graph.apply_all(Op::Exchange(Exchange::Send { to_next }), &[value]).map(|_| ())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{graph::Unary, vocab::DType};

    fn chain(widths: &[usize]) -> Graph {
        let mut g = Graph::new();
        let mut y = g.input("x", &[4, widths[0]], DType::F32);
        for (k, pair) in widths.windows(2).enumerate() {
            let w = g.weight(&format!("w{k}"), pair, pair[0], pair[1]);
            y = g.apply(Op::MatMul { transpose_a: false, transpose_b: false }, &[y, w]).unwrap();
            y = g.apply(Op::Unary(Unary::Relu), &[y]).unwrap();
        }
        g.mark_output("logits", y);
        g
    }

    #[test]
    fn stages_are_as_even_as_they_go_and_hand_over_one_value() {
        let graph = chain(&[8, 8, 8, 8, 32]);
        for stages in 2..=4 {
            let cut = cut_stages(&graph, stages).unwrap();
            assert_eq!(cut.len(), stages);
            assert_eq!((cut[0].nodes.start, cut[stages - 1].nodes.end), (0, graph.nodes.len()));
            for pair in cut.windows(2) {
                assert_eq!((pair[0].nodes.end, pair[0].output), (pair[1].nodes.start, pair[1].input));
                assert!(pair[0].output.is_some());
            }
        }
        // The last layer alone does more than the three before it.
        let two = cut_stages(&graph, 2).unwrap();
        assert_eq!(two[1].nodes, 6..8);
        assert!(matches!(cut_stages(&graph, 9), Err(StrategyError::NothingToSplit { ranks: 9 })));
    }

    #[test]
    fn the_first_stage_has_weights_also_where_it_would_be_more_even_without() {
        let mut g = Graph::new();
        let x = g.input("x", &[4, 8, 8], DType::F32);
        let mut y = g.apply(Op::Reshape { shape: vec![4, 64] }, &[x]).unwrap();
        // Three quarters of the work in the first layer: before it and behind it are as even as it goes.
        for (k, pair) in [64, 64, 16, 4].windows(2).enumerate() {
            let w = g.weight(&format!("w{k}"), pair, pair[0], pair[1]);
            y = g.apply(Op::MatMul { transpose_a: false, transpose_b: false }, &[y, w]).unwrap();
        }
        g.mark_output("logits", y);
        let nodes: Vec<_> = cut_stages(&g, 3).unwrap().into_iter().map(|stage| stage.nodes).collect();
        assert_eq!(nodes, [0..2, 2..3, 3..4]);
    }

    #[test]
    fn a_value_that_is_read_on_both_sides_leaves_no_cut_between() {
        let mut g = Graph::new();
        let x = g.input("x", &[2, 4], DType::F32);
        let a = g.apply(Op::Unary(Unary::Tanh), &[x]).unwrap();
        let b = g.apply(Op::Unary(Unary::Exp), &[a]).unwrap();
        let c = g.apply(Op::Binary(crate::graph::Binary::Add), &[a, b]).unwrap();
        g.mark_output("logits", c);
        // Behind the first node only `a` crosses; behind the second, `a` and `b`.
        assert_eq!((crossing(&g, 0), crossing(&g, 1)), (Some(a), None));
    }

    #[test]
    fn schedules_do_every_piece_once_and_1f1b_keeps_few_under_way() {
        for kind in [PipelineSchedule::GPipe, PipelineSchedule::OneForwardOneBackward] {
            for (stages, pieces) in [(2, 1), (2, 4), (3, 8), (4, 3)] {
                for stage in 0..stages {
                    let tasks = schedule(kind, stage, stages, pieces);
                    assert_eq!(tasks.len(), 2 * pieces);
                    let (mut under_way, mut most) = (0usize, 0);
                    for (at, task) in tasks.iter().enumerate() {
                        match task {
                            Task::Forward(_) => under_way += 1,
                            Task::Backward(k) => {
                                assert!(tasks[..at].contains(&Task::Forward(*k)));
                                under_way -= 1;
                            }
                        }
                        most = most.max(under_way);
                    }
                    let limit = if kind == PipelineSchedule::GPipe { pieces } else { (stages - stage).min(pieces) };
                    assert_eq!(most, limit, "{kind:?} {stage} of {stages}, {pieces} pieces");
                }
            }
        }
    }
}
