//! Low-precision storage: inputs, activations and weight matrices in bf16 or fp16; sums, biases, norms, the loss and the master
//! weights in fp32 (Micikevicius et al. 2018).

use super::StrategyError;
use crate::{
    graph::{Graph, Op, Role, ValueId},
    vocab::DType,
};

/// A rewritten forward graph.
#[derive(Clone, Debug)]
pub struct LowPrecision {
    pub graph: Graph,
    /// Each fp32 master weight with the low-precision copy that the forward pass reads.
    pub copies: Vec<(ValueId, ValueId)>,
}

/// Rewrites a forward graph to compute on `storage`. Parameters of two or more axes get a copy called `NAME.bf16` (`NAME.f16`), a
/// state that whoever writes the parameter must write too; outputs stay fp32. With `F32` nothing changes.
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
            Role::Parameter { .. } if value.shape.len() > 1 => {
                let low =
                    out.state(&format!("{}.{}", value.name, crate::vocab::Vocabulary::name(storage)), &value.shape, storage);
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
        let inputs: Vec<ValueId> = node.inputs.iter().map(|id| now[id.0].expect("written before it is read")).collect();
        let outputs = out.apply_all(node.op.clone(), &inputs)?;
        for (old, new) in node.outputs.iter().zip(outputs) {
            now[old.0] = Some(new);
        }
    }
    for (name, id) in &graph.outputs {
        let mut value = now[id.0].expect("outputs are written");
        if out.dtype(value) == storage {
            value = out.apply(Op::Cast { to: DType::F32 }, &[value])?;
        }
        out.mark_output(name, value);
    }
    Ok(LowPrecision { graph: out, copies })
}
