//! Ops that other ranks take part in, or that depend on the rank that runs them: a session runs them between kernels.
//!
//! What each does with the ranks' buffers is written once, in `backend::exchange`.

use super::{Value, op::Made};
use crate::{units::Bytes, vocab::DType};

#[derive(Clone, Debug, PartialEq)]
pub enum Exchange {
    /// Hands the gradients of a bucket over, to be summed over the data-parallel ranks while the rank goes on. Nobody reads or writes them
    /// before the sum is finished.
    StartReduce { bucket: usize },
    /// Finishes what was started, in place: every operand is its sum.
    AllReduce { bucket: usize },
    /// Finishes what was started: of the sum of each operand, f32 `[..]` of n elements, every rank keeps its part, `[ceil(n / ranks)]`, zeros
    /// behind the last element.
    ReduceScatter { bucket: usize, ranks: usize },
    /// The sum of x over the tensor-parallel ranks; its gradient goes back as it is (`g` of Shoeybi et al. 2019).
    SumRanks,
    /// A rank's own part of x, cut as `ReduceScatter` cuts.
    TakePart { ranks: usize },
    /// A flag that is 1 where it is 1 on every rank of every kind, else 0.
    EveryRank,
    /// In place: each operand, f32 and not negative, becomes the largest over the data-parallel and tensor-parallel ranks.
    LargestOfRanks,
    /// Hands x to the stage of a pipeline behind this one, or before it.
    Send { to_next: bool },
    /// What the stage before this one has sent, or the one behind it; in the order of sending.
    Receive { shape: Vec<usize>, dtype: DType, from_before: bool },
    /// In place: (x, part, optionally a low-precision copy): x, and the copy, from the parts of all data-parallel ranks.
    AllGather { ranks: usize },
}

impl Exchange {
    pub fn name(&self) -> &'static str {
        match self {
            Exchange::StartReduce { .. } => "reduce_start",
            Exchange::AllReduce { .. } => "all_reduce",
            Exchange::SumRanks => "sum_ranks",
            Exchange::ReduceScatter { .. } => "reduce_scatter",
            Exchange::TakePart { .. } => "take_part",
            Exchange::EveryRank => "every_rank",
            Exchange::LargestOfRanks => "largest_of_ranks",
            Exchange::Send { .. } => "send",
            Exchange::Receive { .. } => "receive",
            Exchange::AllGather { .. } => "all_gather",
        }
    }

    /// True for those that write their operands, or send them away, and have no outputs of their own.
    pub fn is_in_place(&self) -> bool {
        use Exchange::*;
        matches!(self, StartReduce { .. } | AllReduce { .. } | LargestOfRanks | AllGather { .. } | Send { .. })
    }

    /// Operands that are written.
    pub fn written_inputs(&self, inputs: usize) -> Vec<usize> {
        match self {
            Exchange::AllReduce { .. } | Exchange::LargestOfRanks => (0..inputs).collect(),
            Exchange::AllGather { .. } => (0..inputs).filter(|k| *k != 1).collect(),
            _ => Vec::new(),
        }
    }

    /// Shapes and element types of the outputs; what was expected where the operands do not fit.
    pub(super) fn infer(&self, operands: &[&Value]) -> Result<Made, &'static str> {
        let one = |shape: &[usize], dtype: DType| Ok(vec![(shape.to_vec(), dtype)]);
        let all_f32 = operands.iter().all(|v| v.dtype == DType::F32);
        match (self, operands) {
            (Exchange::StartReduce { .. } | Exchange::AllReduce { .. } | Exchange::LargestOfRanks, [_, ..]) if all_f32 => {
                Ok(vec![])
            }
            (Exchange::ReduceScatter { ranks, .. }, [_, ..]) if all_f32 && *ranks > 0 => {
                Ok(operands.iter().map(|v| (vec![v.elements().div_ceil(*ranks)], DType::F32)).collect())
            }
            (Exchange::Send { .. }, [x]) if x.dtype.is_float() => Ok(vec![]),
            (Exchange::Receive { shape, dtype, .. }, []) if dtype.is_float() => one(shape, *dtype),
            (Exchange::EveryRank, [flag]) if flag.shape.is_empty() && flag.dtype == DType::F32 => one(&[], DType::F32),
            (Exchange::SumRanks, [x]) if x.dtype.is_float() => one(&x.shape, x.dtype),
            (Exchange::TakePart { ranks }, [x]) if x.dtype == DType::F32 && *ranks > 0 => {
                one(&[x.elements().div_ceil(*ranks)], DType::F32)
            }
            (Exchange::AllGather { ranks }, [x, part, copy @ ..]) if x.dtype == DType::F32 && *ranks > 0 => {
                let fits = part.shape == [x.elements().div_ceil(*ranks)] && part.dtype == DType::F32;
                let copied = copy.len() <= 1 && copy.iter().all(|copy| copy.shape == x.shape && copy.dtype.is_float());
                if fits && copied { Ok(vec![]) } else { Err("f32 x [..], a part of it, and optionally a copy of x's shape") }
            }
            _ => Err("other operands (see the exchange's description)"),
        }
    }

    /// Additions, counted as one operand's.
    pub(super) fn sums(&self, read: &[&Value]) -> u64 {
        match self {
            Exchange::AllReduce { .. }
            | Exchange::SumRanks
            | Exchange::ReduceScatter { .. }
            | Exchange::EveryRank
            | Exchange::LargestOfRanks => read.iter().map(|v| v.elements() as u64).sum(),
            _ => 0,
        }
    }

    /// Payload handed to other ranks; of a sum that is started, there.
    pub(super) fn message_bytes(&self, read: &[&Value]) -> Bytes {
        match self {
            Exchange::AllGather { .. } => Bytes(read[0].bytes() as u64),
            Exchange::StartReduce { .. } | Exchange::SumRanks | Exchange::EveryRank | Exchange::Send { .. } => {
                Bytes(read.iter().map(|v| v.bytes() as u64).sum())
            }
            _ => Bytes(0),
        }
    }
}
