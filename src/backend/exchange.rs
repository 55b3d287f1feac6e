//! Ops that other ranks take part in, on buffers of the host: what every backend does where it has nothing better.

use super::{BackendError, CollectiveError, Links, Session};
use crate::graph::{Exchange, Op};

/// Runs step `index` of a session's program, an exchange, on copies of its operands as f32.
pub(super) fn exchange(session: &mut dyn Session, links: Option<&Links>, index: usize) -> Result<(), BackendError> {
    let step = session.program().steps[index].clone();
    let Op::Exchange(kind) = &step.op else { unreachable!("the session looked") };
    let links = links.ok_or(BackendError::Alone { op: kind.name() })?;
    let mut operands = Vec::with_capacity(step.inputs.len());
    for id in &step.inputs {
        let mut data = vec![0.0; session.program().value(*id).elements()];
        session.download_f32(*id, &mut data)?;
        operands.push(data);
    }
    let length = step.outputs.first().map_or(0, |id| session.program().value(*id).elements());
    let made = among_ranks(kind, links, &mut operands, length)?;
    for k in kind.written_inputs(step.inputs.len()) {
        session.upload_f32(step.inputs[k], &operands[k])?;
    }
    step.outputs.first().map_or(Ok(()), |id| session.upload_f32(*id, &made))
}

/// In-place ops change their operands, the others give their result. `length`: elements of that.
fn among_ranks(exchange: &Exchange, links: &Links, operands: &mut [Vec<f32>], length: usize) -> Result<Vec<f32>, BackendError> {
    match exchange {
        Exchange::AllReduce => {
            operands.iter_mut().try_for_each(|data| links.data.all_reduce_sum(data))?;
            Ok(Vec::new())
        }
        Exchange::SumRanks => {
            let mut sum = std::mem::take(&mut operands[0]);
            links.tensor.all_reduce_sum(&mut sum)?;
            Ok(sum)
        }
        Exchange::ReduceScatter { .. } => {
            let mut part = vec![0.0; length];
            links.data.reduce_scatter_sum(&operands[0], &mut part)?;
            Ok(part)
        }
        Exchange::TakePart { .. } => Ok(own_part(&operands[0], links.data.rank(), length)),
        Exchange::EveryRank => Ok(vec![f32::from(u8::from(every_rank(links, operands[0][0] == 1.0)?))]),
        Exchange::Send { to_next } => {
            let rank = links.pipeline.rank();
            links.pipeline.send(if *to_next { rank + 1 } else { rank - 1 }, &operands[0])?;
            Ok(Vec::new())
        }
        Exchange::Receive { from_before, .. } => {
            let rank = links.pipeline.rank();
            let mut data = vec![0.0; length];
            links.pipeline.receive(if *from_before { rank - 1 } else { rank + 1 }, &mut data)?;
            Ok(data)
        }
        Exchange::AllGather { .. } => {
            let (whole, rest) = operands.split_first_mut().expect("it has two operands: checked by infer");
            links.data.all_gather(&rest[0], whole)?;
            if let Some(copy) = rest.get_mut(1) {
                copy.clone_from(whole);
            }
            Ok(Vec::new())
        }
    }
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

/// Elements from `rank * length` on, zeros behind the last.
fn own_part(data: &[f32], rank: usize, length: usize) -> Vec<f32> {
    let own = own_part_len(data.len(), rank, length);
    let mut part = data[data.len().min(rank * length)..][..own].to_vec();
    part.resize(length, 0.0);
    part
}

/// How many of `count` elements lie in a rank's part.
pub(super) fn own_part_len(count: usize, rank: usize, length: usize) -> usize {
    count.saturating_sub(rank * length).min(length)
}
