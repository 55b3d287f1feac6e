//! Data parallelism: every rank holds all weights and a share of the batch; the gradients are summed before the update.
//!
//! The loss of a rank is already divided by the rows of the whole batch (`CrossEntropy { rows }`), so the sum over ranks is the
//! gradient of the whole batch's mean.

use super::StrategyError;
use crate::graph::{Graph, Op, ValueId};

/// Appends the all-reduce of `gradients`, last computed first, as the backward pass yields them.
pub fn all_reduce_gradients(graph: &mut Graph, gradients: &[ValueId]) -> Result<(), StrategyError> {
    for gradient in gradients.iter().rev() {
        graph.apply_all(Op::AllReduce, &[*gradient])?;
    }
    Ok(())
}
