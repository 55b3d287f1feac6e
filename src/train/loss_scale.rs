//! Dynamic loss scaling for fp16 (Micikevicius et al. 2018): gradients are multiplied so that small ones survive 11 bits; after an
//! overflow the step is skipped and the factor halved, after a run of good steps doubled.
//!
//! The factor lives on the device, where the last op of a step changes it: no step waits for the host's decision.

use crate::{
    backend::{BackendError, Session},
    graph::{Graph, GraphError, Op, ValueId},
    vocab::DType,
};

/// 2^15: PyTorch starts at 2^16; half of it saves the first skipped step on the models here.
const START: f32 = 32_768.0;
const LARGEST: f64 = 16_777_216.0;
/// Good steps before the factor doubles. Runs here are some hundred steps long, a tenth of what PyTorch's 2,000 assume.
const PATIENCE: u32 = 200;

/// Where a training step keeps its scaling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    /// Scalar by which the loss's gradient is multiplied.
    pub factor: ValueId,
    /// `[2]`: good steps in a row, skipped steps.
    counts: ValueId,
}

impl LossScale {
    pub fn new(graph: &mut Graph) -> LossScale {
        let factor = graph.state("loss_scale", &[], DType::F32);
        LossScale { factor, counts: graph.state("loss_scale.counts", &[2], DType::F32) }
    }

    /// Ends a step whose gradients gave the flag `finite`. With endless overflow `loss` becomes NaN.
    pub fn adjust(&self, graph: &mut Graph, loss: ValueId, finite: ValueId) -> Result<(), GraphError> {
        let op = Op::AdjustLossScale { growth_interval: PATIENCE, largest: LARGEST };
        graph.apply_all(op, &[self.factor, self.counts, loss, finite]).map(|_| ())
    }

    /// Puts the first factor into fresh memory.
    pub fn start(&self, session: &mut dyn Session) -> Result<(), BackendError> {
        session.upload_f32(self.factor, &[START])
    }

    /// Steps that were skipped so far.
    pub fn skipped(&self, session: &mut dyn Session) -> Result<u64, BackendError> {
        let mut counts = [0.0; 2];
        session.download_f32(self.counts, &mut counts)?;
        Ok(counts[1] as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{backend::open, graph::lower, vocab::Device};

    #[test]
    fn overflow_halves_and_patience_doubles() {
        let mut graph = Graph::new();
        let scale = LossScale::new(&mut graph);
        let (loss, finite) = (graph.input("loss", &[], DType::F32), graph.input("finite", &[], DType::F32));
        scale.adjust(&mut graph, loss, finite).unwrap();
        let mut session = open(Device::Cpu, 1).unwrap().load(lower(&graph), None).unwrap();
        scale.start(&mut *session).unwrap();
        // Factor and loss after a step.
        let mut observe = |is_finite: bool| {
            session.upload_f32(loss, &[1.5]).unwrap();
            session.upload_f32(finite, &[f32::from(u8::from(is_finite))]).unwrap();
            session.execute().unwrap();
            let (mut factor, mut seen) = ([0.0], [0.0]);
            session.download_f32(scale.factor, &mut factor).unwrap();
            session.download_f32(loss, &mut seen).unwrap();
            (factor[0], seen[0], scale.skipped(&mut *session).unwrap())
        };
        assert_eq!(observe(false), (START / 2.0, 1.5, 1));
        (1..PATIENCE).for_each(|_| assert_eq!(observe(true), (START / 2.0, 1.5, 1)));
        assert_eq!(observe(true), (START, 1.5, 1));
        (0..PATIENCE * 12).for_each(|_| assert!(observe(true).1 == 1.5));
        assert_eq!(observe(true).0, LARGEST as f32);
        assert!(!(0..100).all(|_| observe(false).1.is_finite()), "endless overflow must end");
        // The factor stays one by which can be divided.
        assert_eq!((observe(false).0, observe(true)), (0.5, (0.5, 1.5, 27)));
    }
}
