//! What exchanges between ranks take: latency and bandwidth by size.
//!
//! Every rank calls `measure_exchanges` with its own member of a group. Rank 0's clock counts; the others are told how often to repeat, and
//! all meet before each sample, so that a sample is the exchange and not the wait for a late rank.

use crate::{
    backend::CollectiveError,
    comm::{Communicator, thread_group},
    record::CommunicationRow,
    stats::median,
};
use std::time::Instant;

/// Sizes of messages, bytes, up to the largest that is wanted.
pub const SIZES: &[u64] = &[4, 256, 4 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20];

/// Shortest sample: ten thousand times the clock's step.
const SAMPLE_S: f64 = 1e-3;

/// Samples of a row: at least 5, and more while they take less than 0.3 s in all.
const SAMPLES: (usize, usize) = (5, 30);
const ROW_S: f64 = 0.3;

type Exchange<'a> = (&'static str, Box<dyn FnMut() -> Result<(), CollectiveError> + 'a>, u64);

/// All exchanges at all sizes up to `largest` bytes; the same rows on every rank, with times of its own.
pub fn measure_exchanges(member: &dyn Communicator, largest: u64) -> Result<Vec<CommunicationRow>, CollectiveError> {
    let ranks = member.ranks();
    let mut rows = Vec::new();
    for &bytes in SIZES.iter().filter(|bytes| **bytes <= largest) {
        let count = bytes as usize / 4;
        let share = count.div_ceil(ranks);
        let part = vec![1.0f32; share];
        let (mut summed, whole) = (vec![0.0f32; count], vec![1.0f32; count]);
        let (mut own, mut gathered, mut message) = (vec![0.0f32; share], vec![0.0f32; count], vec![1.0f32; count]);
        let all = ranks as u64;
        let exchanges: [Exchange<'_>; 4] = [
            ("all_reduce", Box::new(|| member.all_reduce_sum(&mut summed)), 2 * all * bytes),
            ("reduce_scatter", Box::new(|| member.reduce_scatter_sum(&whole, &mut own)), (all + 1) * bytes),
            ("all_gather", Box::new(|| member.all_gather(&part, &mut gathered)), (all + 1) * bytes),
            // There and back between the first two: two messages.
            ("send_receive", Box::new(|| bounce(member, &mut message)), 2 * bytes),
        ];
        for (operation, mut exchange, moved_bytes) in exchanges {
            let messages = if operation == "send_receive" { 2.0 } else { 1.0 };
            let (samples, repeats) = sample(member, &mut *exchange)?;
            let samples_s: Vec<f64> = samples.into_iter().map(|sample| sample / messages).collect();
            let median_s = median(&samples_s).unwrap_or(f64::NAN);
            rows.push(CommunicationRow { operation: operation.into(), bytes, samples_s, repeats, median_s, moved_bytes });
        }
    }
    Ok(rows)
}

/// The same between ranks that are threads of this process.
pub fn measure_thread_exchanges(ranks: usize, largest: u64) -> Result<Vec<CommunicationRow>, CollectiveError> {
    let members = thread_group(ranks);
    std::thread::scope(|scope| {
        let others: Vec<_> = members[1..].iter().map(|member| scope.spawn(move || measure_exchanges(member, largest))).collect();
        let rows = measure_exchanges(&members[0], largest);
        if rows.is_err() {
            members[0].leave();
        }
        others.into_iter().for_each(|other| drop(other.join()));
        rows
    })
}

/// A message from rank 0 to rank 1 and back; others have nothing to do.
fn bounce(member: &dyn Communicator, message: &mut [f32]) -> Result<(), CollectiveError> {
    match member.rank() {
        0 => {
            member.send(1, message)?;
            member.receive(1, message)
        }
        1 => {
            member.receive(0, message)?;
            member.send(0, message)
        }
        _ => Ok(()),
    }
}

/// Rank 0's number on every rank.
fn agree(member: &dyn Communicator, own: usize) -> Result<usize, CollectiveError> {
    let mut number = [if member.rank() == 0 { own as f32 } else { 0.0 }];
    member.all_reduce_sum(&mut number)?;
    Ok(number[0] as usize)
}

/// Samples of one exchange, seconds of one, and how many exchanges each is the mean of.
fn sample(
    member: &dyn Communicator,
    exchange: &mut dyn FnMut() -> Result<(), CollectiveError>,
) -> Result<(Vec<f64>, u64), CollectiveError> {
    let mut take = |repeats: usize| -> Result<f64, CollectiveError> {
        member.barrier()?;
        let start = Instant::now();
        for _ in 0..repeats {
            exchange()?;
        }
        Ok(start.elapsed().as_secs_f64() / repeats as f64)
    };
    // The first touches memory that nobody has used.
    take(1)?;
    let once = take(3)?;
    // Below 2^24, so that f32 carries it.
    let repeats = agree(member, ((SAMPLE_S / once).ceil() as usize).clamp(1, 100_000))?;
    let wanted = ROW_S / (once * repeats as f64).max(1e-9);
    let samples = agree(member, (wanted as usize).clamp(SAMPLES.0, SAMPLES.1))?;
    let taken = (0..samples).map(|_| take(repeats)).collect::<Result<_, _>>()?;
    Ok((taken, repeats as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exchanges_between_threads_have_samples_and_counted_bytes() {
        let members = thread_group(2);
        let rows = std::thread::scope(|scope| {
            let other = scope.spawn(|| measure_exchanges(&members[1], 4096));
            let rows = measure_exchanges(&members[0], 4096).unwrap();
            assert_eq!(other.join().unwrap().unwrap().len(), rows.len());
            rows
        });
        assert_eq!(rows.len(), 4 * 3);
        for row in &rows {
            assert!(row.samples_s.len() >= SAMPLES.0 && row.median_s > 0.0 && row.median_s < 1.0, "{row:?}");
            // Read by both, written by both; read by both, written once in all; a message is read and written.
            let times = match row.operation.as_str() {
                "all_reduce" => 4,
                "send_receive" => 2,
                _ => 3,
            };
            assert_eq!(row.moved_bytes, times * row.bytes, "{row:?}");
        }
        let row = CommunicationRow { median_s: 0.5, moved_bytes: 100, bytes: 25, ..rows[0].clone() };
        assert_eq!((row.bytes_per_s(), row.share_of_copy(400.0)), (50.0, 0.5));
    }
}
