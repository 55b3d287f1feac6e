//! Ops that other ranks take part in, on buffers of the host: what every backend does where it has nothing better.

use super::{BackendError, CollectiveError, Kept, Links, Session};
use crate::graph::{Exchange, Op, Program, ValueId};

/// Runs step `index` of a session's program, an exchange, on copies of its operands as f32.
pub(super) fn exchange(session: &mut dyn Session, links: Option<&Links>, index: usize) -> Result<(), BackendError> {
    let step = session.program().steps[index].clone();
    let Op::Exchange(kind) = &step.op else { unreachable!("the session looked") };
    let links = links.ok_or(BackendError::Alone { op: kind.name() })?;
    let length_of = |session: &dyn Session, id: &ValueId| session.program().value(*id).elements();
    let overlapped = links.data.overlapped();
    // What goes on meanwhile is read where it starts, else where it is finished.
    let reads = match kind {
        Exchange::StartReduce { .. } => overlapped.is_some(),
        Exchange::AllReduce { .. } | Exchange::ReduceScatter { .. } => overlapped.is_none(),
        _ => true,
    };
    let mut operands: Vec<Vec<f32>> = step.inputs.iter().map(|id| vec![0.0; length_of(session, id)]).collect();
    if reads {
        step.inputs.iter().zip(&mut operands).try_for_each(|(id, data)| session.download_f32(*id, data))?;
    }
    let mut made: Vec<Vec<f32>> = step.outputs.iter().map(|id| vec![0.0; length_of(session, id)]).collect();
    if let (Exchange::StartReduce { bucket }, Some(sums)) = (kind, overlapped) {
        let slices: Vec<&[f32]> = operands.iter().map(Vec::as_slice).collect();
        return Ok(sums.start(*bucket, &slices, kept_of(session.program(), *bucket))?);
    }
    among_ranks(kind, links, &mut operands, &mut made)?;
    for k in kind.written_inputs(step.inputs.len()) {
        session.upload_f32(step.inputs[k], &operands[k])?;
    }
    step.outputs.iter().zip(&made).try_for_each(|(id, data)| session.upload_f32(*id, data))
}

/// In-place ones change their operands, the others fill `made`.
fn among_ranks(exchange: &Exchange, links: &Links, operands: &mut [Vec<f32>], made: &mut [Vec<f32>]) -> Result<(), BackendError> {
    let overlapped = links.data.overlapped();
    match exchange {
        // Where sums do not go on meanwhile there is nothing to start.
        Exchange::StartReduce { .. } => {}
        Exchange::AllReduce { bucket } => match overlapped {
            Some(sums) => {
                let mut slices: Vec<&mut [f32]> = operands.iter_mut().map(Vec::as_mut_slice).collect();
                sums.finish(*bucket, &mut slices)?;
            }
            None => operands.iter_mut().try_for_each(|data| links.data.all_reduce_sum(data))?,
        },
        Exchange::ReduceScatter { bucket, .. } => match overlapped {
            Some(sums) => {
                let lengths: Vec<usize> = operands.iter().map(Vec::len).collect();
                let mut slices: Vec<&mut [f32]> = made.iter_mut().map(Vec::as_mut_slice).collect();
                sums.finish_parts(*bucket, &lengths, &mut slices)?;
            }
            None => {
                let mut pairs = operands.iter().zip(made);
                pairs.try_for_each(|(data, part)| links.data.reduce_scatter_sum(data, part))?;
            }
        },
        Exchange::SumRanks => {
            made[0].copy_from_slice(&operands[0]);
            links.tensor.all_reduce_sum(&mut made[0])?;
        }
        Exchange::TakePart { .. } => take_part(&operands[0], links.data.rank(), &mut made[0]),
        Exchange::EveryRank => made[0][0] = f32::from(u8::from(every_rank(links, operands[0][0] == 1.0)?)),
        Exchange::LargestOfRanks => {
            let lengths: Vec<usize> = operands.iter().map(Vec::len).collect();
            let mut all = operands.concat();
            for group in [&links.data, &links.tensor] {
                let mut of_ranks = vec![0.0; all.len() * group.ranks()];
                group.all_gather(&all, &mut of_ranks)?;
                for part in of_ranks.chunks(all.len()) {
                    // As bits: numbers that are not negative order so, and what is not a number comes last.
                    all.iter_mut().zip(part).for_each(|(most, x)| *most = f32::from_bits(most.to_bits().max(x.to_bits())));
                }
            }
            let mut rest = all.as_slice();
            for (operand, length) in operands.iter_mut().zip(lengths) {
                let (own, behind) = rest.split_at(length);
                operand.copy_from_slice(own);
                rest = behind;
            }
        }
        Exchange::Send { to_next } => {
            let rank = links.pipeline.rank();
            links.pipeline.send(if *to_next { rank + 1 } else { rank - 1 }, &operands[0])?;
        }
        Exchange::Receive { from_before, .. } => {
            let rank = links.pipeline.rank();
            links.pipeline.receive(if *from_before { rank - 1 } else { rank + 1 }, &mut made[0])?;
        }
        Exchange::AllGather { .. } => {
            let (whole, rest) = operands.split_first_mut().expect("it has two operands: checked by infer");
            links.data.all_gather(&rest[0], whole)?;
            if let Some(copy) = rest.get_mut(1) {
                copy.clone_from(whole);
            }
        }
    }
    Ok(())
}

/// What a rank keeps of the sum of a bucket.
pub(super) fn kept_of(program: &Program, bucket: usize) -> Kept {
    let cuts = |kind: &Exchange| matches!(kind, Exchange::ReduceScatter { bucket: cut, .. } if *cut == bucket);
    let is_cut = program.steps.iter().any(|step| matches!(&step.op, Op::Exchange(kind) if cuts(kind)));
    if is_cut { Kept::Parts } else { Kept::Whole }
}

/// Whether every rank of every kind says yes.
pub(super) fn every_rank(links: &Links, yes: bool) -> Result<bool, CollectiveError> {
    let mut count = [f32::from(u8::from(yes))];
    for group in [&links.data, &links.tensor, &links.pipeline] {
        group.all_reduce_sum(&mut count)?;
    }
    let ranks = links.data.ranks() * links.tensor.ranks() * links.pipeline.ranks();
    Ok(count[0] == ranks as f32)
}

/// Elements from `rank * part.len()` on, zeros behind the last.
fn take_part(data: &[f32], rank: usize, part: &mut [f32]) {
    let own = own_part_len(data.len(), rank, part.len());
    let from = data.len().min(rank * part.len());
    part[..own].copy_from_slice(&data[from..][..own]);
    part[own..].fill(0.0);
}

/// How many of `count` elements lie in a rank's part.
pub(super) fn own_part_len(count: usize, rank: usize, length: usize) -> usize {
    count.saturating_sub(rank * length).min(length)
}
