//! A candidate's programs counted op by op, without a device: what predictions for GPUs that are not here rest on.

use super::{Candidate, OpProfile};
use crate::units::Bytes;

/// The programs of a candidate with their work.
#[derive(Clone, Debug, PartialEq)]
pub struct CountedGraph {
    pub candidate: Candidate,
    /// The ops of each stage of a pipeline, of its first rank, in their order; one stage where there are none.
    pub stages: Vec<Vec<CountedOp>>,
    /// Rows of a step on one rank, as they are handed to the device.
    pub input_bytes: Bytes,
    /// Of the rank that needs most.
    pub memory: GraphMemory,
    /// The weights alone, in their storage types.
    pub model_size: Bytes,
}

/// An op with the kernels that run it on a GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct CountedOp {
    pub profile: OpProfile,
    /// None where it joins another's, or where other ranks take part in it.
    pub launches: usize,
}

/// Memory of a program, part by part.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GraphMemory {
    /// Master copies in fp32 included.
    pub weights: Bytes,
    /// What the optimizer keeps between steps, and scales.
    pub state: Bytes,
    pub rows: Bytes,
    /// Activations and gradients, which share memory where their lives do not overlap.
    pub working: Bytes,
    /// Partial results of kernels.
    pub scratch: Bytes,
}

impl GraphMemory {
    pub fn total(&self) -> Bytes {
        Bytes([self.weights, self.state, self.rows, self.working, self.scratch].iter().map(|part| part.0).sum())
    }
}
