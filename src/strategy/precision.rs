//! Low precision: inputs, activations and weight matrices in a narrow type. What stays wider is in two tables: `IN_FP32` for every narrow
//! precision (Micikevicius et al. 2018), and `NOT_FP8` for products that do not take 8-bit operands.

use super::StrategyError;
use crate::{
    graph::{Exchange, Graph, Node, Op, Role, Value, ValueId},
    vocab::{DType, Vocabulary},
};

/// A rewritten forward graph.
#[derive(Clone, Debug)]
pub struct LowPrecision {
    pub graph: Graph,
    /// Each fp32 master weight with the low-precision copy that the forward pass reads.
    pub copies: Vec<(ValueId, ValueId)>,
}

/// Where a value stands.
#[derive(Clone, Copy, Debug)]
pub enum Place<'g> {
    Parameter(&'g Value),
    /// An output of the model.
    Output,
    /// An operand of an op.
    Operand(&'g Op),
}

/// Something that stays in fp32 while the rest is narrow.
pub struct InFp32 {
    pub what: &'static str,
    pub reason: &'static str,
    holds: fn(Place) -> bool,
}

/// What stays in fp32 where storage is narrow. Sums are no row: every kernel has its own in fp32.
pub const IN_FP32: &[InFp32] = &[
    InFp32 {
        what: "parameters of one axis (biases, gains of norms)",
        reason: "they are few, and each is added to or multiplies a whole column",
        holds: |place| matches!(place, Place::Parameter(value) if value.shape.len() < 2),
    },
    InFp32 {
        what: "outputs of the model",
        reason: "scores are compared with each other: near ones must not become equal",
        holds: |place| matches!(place, Place::Output),
    },
    InFp32 {
        what: "the loss (softmax_cross_entropy)",
        reason: "exponentials and their sum need more than 11 bits, and the gradient starts here",
        holds: |place| matches!(place, Place::Operand(Op::CrossEntropy { .. })),
    },
    InFp32 {
        what: "weights and optimizer state (update)",
        reason: "a change of less than half a last place of a narrow weight would be lost at every step",
        holds: |place| matches!(place, Place::Operand(Op::Update { .. } | Op::AdjustLossScale { .. } | Op::MoveFp8Scale { .. })),
    },
    InFp32 {
        what: "gradients that ranks add up (all_reduce, reduce_scatter, all_gather)",
        reason: "the sum over ranks is the sum over rows, and no rank may round it before it is whole",
        holds: |place| {
            use Exchange::{AllGather, AllReduce, ReduceScatter};
            matches!(place, Place::Operand(Op::Exchange(AllReduce { .. } | ReduceScatter { .. } | AllGather { .. })))
        },
    },
];

/// Whether a table's row keeps this place in fp32.
pub fn stays_in_fp32(place: Place) -> bool {
    IN_FP32.iter().any(|row| (row.holds)(place))
}

/// Rewrites a forward graph to compute on `storage`. Parameters that may be narrow get a copy called `NAME.bf16` (`NAME.f16`), a state that
/// whoever writes the parameter must write too. With `F32` nothing changes.
pub fn to_storage(graph: &Graph, storage: DType) -> Result<LowPrecision, StrategyError> {
    if storage == DType::F32 {
        return Ok(LowPrecision { graph: graph.clone(), copies: Vec::new() });
    }
    let mut out = Graph::new();
    // What stands for each old value, in the new graph.
    let mut now: Vec<Option<ValueId>> = vec![None; graph.values.len()];
    let mut copies = Vec::new();
    // Values of the outside keep their order, so that parameters are found in the same order.
    for id in graph.ids() {
        let value = graph.value(id);
        if value.role == Role::Intermediate {
            continue;
        }
        out.values.push(value.clone());
        now[id.0] = Some(ValueId(out.values.len() - 1));
    }
    for id in graph.ids() {
        let value = graph.value(id);
        match value.role {
            Role::Parameter { .. } if !stays_in_fp32(Place::Parameter(value)) => {
                let low = out.state(&format!("{}.{}", value.name, storage.name()), &value.shape, storage);
                let master = now[id.0].expect("copied above");
                copies.push((master, low));
                now[id.0] = Some(low);
            }
            Role::Input if value.dtype == DType::F32 => {
                let low = out.apply(Op::Cast { to: storage }, &[now[id.0].expect("copied above")])?;
                now[id.0] = Some(low);
            }
            _ => {}
        }
    }
    for node in &graph.nodes {
        let is_wide = stays_in_fp32(Place::Operand(&node.op));
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for id in &node.inputs {
            let value = now[id.0].expect("written before it is read");
            inputs.push(if is_wide { widened(&mut out, value, storage)? } else { value });
        }
        let outputs = out.apply_all(node.op.clone(), &inputs)?;
        for (old, new) in node.outputs.iter().zip(outputs) {
            now[old.0] = Some(new);
        }
    }
    for (name, id) in &graph.outputs {
        let mut value = now[id.0].expect("outputs are written");
        if stays_in_fp32(Place::Output) {
            value = widened(&mut out, value, storage)?;
        }
        out.mark_output(name, value);
    }
    Ok(LowPrecision { graph: out, copies })
}

/// A narrow value as fp32.
fn widened(graph: &mut Graph, value: ValueId, storage: DType) -> Result<ValueId, StrategyError> {
    if graph.dtype(value) == storage { Ok(graph.apply(Op::Cast { to: DType::F32 }, &[value])?) } else { Ok(value) }
}

/// A product that does not take 8-bit operands.
pub struct NotFp8 {
    pub what: &'static str,
    pub reason: &'static str,
    holds: fn(&Graph, &Node) -> bool,
}

/// Products that stay in bf16 under `fp8`; all others take e4m3 operands, and e5m2 gradients (Micikevicius et al. 2022).
pub const NOT_FP8: &[NotFp8] = &[
    NotFp8 {
        what: "the product that reads the model's rows",
        reason: "pixels and the like come in their own range and few channels: 8 bits lose there first, and there is little to win",
        holds: |graph, node| graph.value(source(graph, node.inputs[0])).role == Role::Input,
    },
    NotFp8 {
        what: "the product that gives the model's outputs",
        reason: "its errors reach the scores without a layer behind that could learn to bear them",
        holds: |graph, node| graph.outputs.iter().any(|(_, id)| source(graph, *id) == node.outputs[0]),
    },
    NotFp8 {
        what: "products of two activations (attention)",
        reason: "no weight is stored narrower for it, and one query's scores may lie anywhere in the range of all",
        holds: |graph, node| !is_weight(graph, node.inputs[1]),
    },
];

/// What a value was made of by ops that only rename, cast or shift it.
fn source(graph: &Graph, mut id: ValueId) -> ValueId {
    while let Some(at) = graph.producer(id).filter(|at| {
        let op = &graph.nodes[*at].op;
        op.is_alias() || matches!(op, Op::Cast { .. } | Op::AddBias | Op::Exchange(Exchange::SumRanks))
    }) {
        id = graph.nodes[at].inputs[0];
    }
    id
}

/// Kept between runs: a parameter, or the copy of one.
fn is_weight(graph: &Graph, id: ValueId) -> bool {
    matches!(graph.value(id).role, Role::Parameter { .. } | Role::State)
}

/// Whether the node is a product that takes 8-bit operands: (x, weight, ..).
pub(super) fn takes_fp8(graph: &Graph, node: &Node) -> bool {
    let is_product = matches!(node.op, Op::MatMul { .. } | Op::Linear { .. } | Op::Conv2d { .. } | Op::ConvReluPool { .. })
        && node.inputs.len() > 1;
    is_product && !NOT_FP8.iter().any(|row| (row.holds)(graph, node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::differentiate;

    #[test]
    fn a_loss_inside_of_a_narrow_graph_reads_fp32() {
        let mut g = Graph::new();
        let (x, w, b) = (g.input("x", &[4, 8], DType::F32), g.weight("w", &[8, 3], 8, 3), g.bias("b", 3, 8));
        let labels = g.input("labels", &[4], DType::I32);
        let y = g.apply(Op::MatMul { transpose_a: false, transpose_b: false }, &[x, w]).unwrap();
        let y = g.apply(Op::AddBias, &[y, b]).unwrap();
        let loss = g.apply(Op::CrossEntropy { rows: 4 }, &[y, labels]).unwrap();
        g.mark_output("loss", loss);
        g.mark_output("logits", y);
        for storage in [DType::Bf16, DType::F16] {
            let LowPrecision { mut graph, copies } = to_storage(&g, storage).unwrap();
            let of = |graph: &Graph, name: &str| {
                graph
                    .nodes
                    .iter()
                    .find(|n| n.op.name() == name)
                    .map(|n| n.inputs.iter().map(|id| graph.dtype(*id)).collect::<Vec<_>>())
            };
            assert_eq!(of(&graph, "matmul"), Some(vec![storage; 2]));
            assert_eq!(of(&graph, "add_bias"), Some(vec![storage, DType::F32]));
            assert_eq!(of(&graph, "softmax_cross_entropy"), Some(vec![DType::F32, DType::I32]));
            assert!(graph.outputs.iter().all(|(_, id)| graph.dtype(*id) == DType::F32));
            assert_eq!(copies.len(), 1);
            let loss = graph.output("loss").unwrap();
            assert!(differentiate(&mut graph, loss, &[copies[0].1], None).unwrap().of(copies[0].1).is_some());
        }
    }

    #[test]
    fn the_documentation_has_both_tables_as_they_are() {
        let text = include_str!("../../docs/method.md");
        let rows = |head: &str| -> Vec<&str> {
            let behind = text.lines().skip_while(|line| *line != head).skip(2);
            behind.take_while(|line| line.starts_with('|')).collect()
        };
        let written = |what: &str, reason: &str| format!("| {what} | {reason} |");
        let wide: Vec<String> = IN_FP32.iter().map(|row| written(row.what, row.reason)).collect();
        assert_eq!(rows("| in fp32 | why |"), wide);
        let not_fp8: Vec<String> = NOT_FP8.iter().map(|row| written(row.what, row.reason)).collect();
        assert_eq!(rows("| in bf16 under fp8 | why |"), not_fp8);
    }

    #[test]
    fn every_row_of_the_tables_holds_somewhere_and_has_a_reason() {
        let mut g = Graph::new();
        let (vector, matrix) = (g.bias("b", 3, 3), g.weight("w", &[3, 3], 3, 3));
        let update = Op::MoveFp8Scale { format: crate::vocab::Fp8Format::E4m3, margin: 0 };
        let loss = Op::CrossEntropy { rows: 1 };
        let places = [
            Place::Parameter(g.value(vector)),
            Place::Output,
            Place::Operand(&loss),
            Place::Operand(&update),
            Place::Operand(&Op::Exchange(Exchange::AllReduce { bucket: 0 })),
        ];
        assert_eq!(places.len(), IN_FP32.len());
        for (row, place) in IN_FP32.iter().zip(places) {
            assert!((row.holds)(place) && row.reason.len() > 20, "{}", row.what);
        }
        assert!(!stays_in_fp32(Place::Parameter(g.value(matrix))) && !stays_in_fp32(Place::Operand(&Op::Softmax)));
        assert!(NOT_FP8.iter().all(|row| row.reason.len() > 20));
    }
}
