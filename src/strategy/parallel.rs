//! Data parallelism: every rank holds all weights and a share of the batch; the gradients are summed before the update.
//!
//! The loss of a rank is already divided by the rows of the whole batch (`CrossEntropy { rows }`), so the sum over ranks is the
//! gradient of the whole batch's mean.

use super::StrategyError;
use crate::{
    graph::{Exchange, Graph, Op, OptimizerStep, ValueId},
    vocab::DType,
};

/// Appends the all-reduce of `gradients`, last computed first, as the backward pass yields them.
pub fn all_reduce_gradients(graph: &mut Graph, gradients: &[ValueId]) -> Result<(), StrategyError> {
    for gradient in gradients.iter().rev() {
        graph.apply_all(Op::Exchange(Exchange::AllReduce), &[*gradient])?;
    }
    Ok(())
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

/// Sums each gradient over `ranks` data-parallel ranks, of which each keeps its part, with the same part of the parameter (Rajbhandari et
/// al. 2020, stage 1). `update_parts` goes on.
pub fn scatter_gradients(graph: &mut Graph, trained: &[Trained], ranks: usize) -> Result<Vec<Part>, StrategyError> {
    // Last computed first, as the backward pass yields them.
    let parts = trained.iter().rev().map(|one| {
        let gradient = graph.apply(Op::Exchange(Exchange::ReduceScatter { ranks }), &[one.gradient])?;
        Ok(Part { parameter: graph.apply(Op::Exchange(Exchange::TakePart { ranks }), &[one.parameter])?, gradient })
    });
    let mut parts: Vec<Part> = parts.collect::<Result<_, StrategyError>>()?;
    parts.reverse();
    Ok(parts)
}

/// Updates the parts with the optimizer state of those alone, then gathers the parameters. `guard`: loss scale and all-finite flag.
pub fn update_parts(
    graph: &mut Graph,
    trained: &[Trained],
    parts: &[Part],
    optimizer: OptimizerStep,
    guard: Option<[ValueId; 2]>,
    ranks: usize,
) -> Result<(), StrategyError> {
    for (one, part) in trained.iter().zip(parts) {
        let name = graph.value(one.parameter).name.clone();
        let shape = graph.shape(part.parameter).to_vec();
        let mut operands = vec![part.parameter, part.gradient];
        operands.extend((0..optimizer.state_arrays()).map(|k| graph.state(&format!("{name}.state{k}"), &shape, DType::F32)));
        operands.extend(guard.into_iter().flatten());
        graph.apply_all(Op::Update { optimizer, guarded: guard.is_some() }, &operands)?;
        let mut whole = vec![one.parameter, part.parameter];
        whole.extend(one.copy);
        graph.apply_all(Op::Exchange(Exchange::AllGather { ranks }), &whole)?;
    }
    Ok(())
}
