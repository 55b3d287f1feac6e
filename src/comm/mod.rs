//! Communication between ranks: threads of one process, or processes that a launcher started.
//!
//! | file | what |
//! | --- | --- |
//! | `mod` | ranks that are threads, and where ranks live |
//! | `launch` | whether `mpirun` or `srun` started this process |
//! | `library` | the door to MPI, and all `unsafe` of it |
//! | `world` | the processes of a launch: signs of life, orders and answers |
//! | `process` | one rank of a layout whose ranks are processes |
//! | `sums` | sums over threads that are started in one place and finished in another |
//! | `background` | the same over processes |
//!
//! `thread_group` makes one `ThreadMember` a rank. A sum is added in the order of ranks, so every rank ends with the same bits. A member
//! that is dropped frees the others with an error instead of leaving them waiting.

mod background;
mod launch;
// A foreign library is called by address.
#[allow(unsafe_code)]
mod library;
mod process;
mod sums;
mod world;

pub use launch::Launch;
pub use library::MpiError;
pub use process::Seat;
pub use world::{Process, World};

use crate::{
    backend::{Collective, CollectiveError, OverlappedSums},
    units::Seconds,
    vocab::{Device, Layout},
};
use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};
use sums::Sums;

/// Elements of a piece of a sum over threads, 128 KiB: what ranks hand each other stays in their caches, and memory sees each element read
/// once and written once.
const PIECE: usize = 1 << 15;

/// Turns of spinning before a rank sleeps: about 20 us, the gap between ranks that do equal work.
const SPINS: usize = 2_000;

/// What ranks do beside the exchanges of their programs.
pub trait Communicator: Collective {
    /// Waits until every rank is here.
    fn barrier(&self) -> Result<(), CollectiveError>;
    /// Frees all others, for good: what they wait for, now or later, ends with `CollectiveError::Left`.
    fn leave(&self);
}

/// The groups of one rank of a layout.
#[derive(Clone)]
pub struct Membership {
    /// Among all ranks of the layout.
    pub number: usize,
    pub all: Arc<dyn Communicator>,
    /// Ranks with the same part of the model.
    pub data: Arc<dyn Communicator>,
    /// Ranks with the same rows and other parts of the same layers.
    pub tensor: Arc<dyn Communicator>,
    /// Ranks with the same rows and other layers.
    pub pipeline: Arc<dyn Communicator>,
}

/// Where the ranks of a layout live.
#[derive(Clone, Default)]
pub enum Place {
    /// All in this process.
    #[default]
    Threads,
    /// One of them in this process, the others in processes like it.
    Process(Arc<Seat>),
}

impl Place {
    /// Those ranks of a layout that live in this process.
    pub fn members(&self, layout: Layout) -> Vec<Membership> {
        match self {
            Place::Process(seat) => vec![seat.membership()],
            Place::Threads => thread_members(layout),
        }
    }

    /// Numbers of the ranks of a layout that live in this process.
    pub fn numbers(&self, layout: Layout) -> std::ops::Range<usize> {
        match self {
            Place::Process(seat) => seat.number()..seat.number() + 1,
            Place::Threads => 0..layout.ranks(),
        }
    }

    /// The device of rank `number`, which lives here: of a process the one by its rank on its node, so that nothing need be known of other
    /// nodes.
    pub fn device(&self, from: Device, number: usize) -> Device {
        match (self, from) {
            // Without a device the number says in the driver's words what is missing.
            (Place::Process(seat), Device::Cuda(first)) => Device::Cuda(seat.process().device(first).unwrap_or(first)),
            _ => from.of_rank(number),
        }
    }

    /// What each process has given, in the order of ranks; only one's own where all ranks are threads of this one.
    pub fn share(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, CollectiveError> {
        match self {
            Place::Process(seat) => seat.share(&bytes),
            Place::Threads => Ok(vec![bytes]),
        }
    }

    /// The host of each rank, where ranks are processes.
    pub fn hosts(&self) -> Option<&[String]> {
        match self {
            Place::Process(seat) => Some(seat.hosts()),
            Place::Threads => None,
        }
    }

    /// One line on ranks that are processes: how many, over what, and where.
    pub fn description(&self) -> Option<String> {
        match self {
            Place::Process(seat) => Some(describe(seat.hosts(), seat.library())),
            Place::Threads => None,
        }
    }

    /// Whether rank 0 lives here.
    pub fn is_first(&self) -> bool {
        match self {
            Place::Process(seat) => seat.number() == 0,
            Place::Threads => true,
        }
    }
}

/// "4 ranks, each a process, over Open MPI v4.1.4 on `a` (2) and `b` (2)".
pub fn describe(hosts: &[String], library: &str) -> String {
    let firsts: Vec<&String> =
        hosts.iter().enumerate().filter(|(at, host)| !hosts[..*at].contains(host)).map(|(_, h)| h).collect();
    let of = |host: &&String| format!("`{host}` ({})", hosts.iter().filter(|other| other == host).count());
    let places = firsts.iter().map(of).collect::<Vec<_>>().join(" and ");
    format!("{} ranks, each a process, over {library} on {places}", hosts.len())
}

fn thread_members(layout: Layout) -> Vec<Membership> {
    let group = |ranks: usize| -> Vec<Arc<dyn Communicator>> {
        thread_group(ranks).into_iter().map(|member| -> Arc<dyn Communicator> { Arc::new(member) }).collect()
    };
    let data: Vec<_> = (0..layout.parts()).map(|_| group(layout.data_ranks())).collect();
    // Ranks with parts of the same layers, and ranks with the same part of other layers.
    let groups = |ranks: usize| (0..layout.ranks() / ranks).map(|_| group(ranks)).collect::<Vec<_>>();
    let (tensor, pipeline) = (groups(layout.tensor_ranks()), groups(layout.pipeline_ranks()));
    let member = |(number, all): (usize, Arc<dyn Communicator>)| {
        let (share, part) = layout.place(number);
        let (stage, piece) = layout.part_place(part);
        let tensor = tensor[share * layout.pipeline_ranks() + stage][piece].clone();
        let pipeline = pipeline[share * layout.tensor_ranks() + piece][stage].clone();
        Membership { number, all, data: data[part][share].clone(), tensor, pipeline }
    };
    group(layout.ranks()).into_iter().enumerate().map(member).collect()
}

struct Group {
    ranks: usize,
    /// What each rank contributes, and elements of the whole of which that is a piece.
    given: Vec<RwLock<Vec<f32>>>,
    whole: Vec<AtomicUsize>,
    /// Each rank's share of the sum.
    summed: Vec<RwLock<Vec<f32>>>,
    /// Messages from rank `a` to rank `b` at `a * ranks + b`.
    mail: Vec<Mailbox>,
    gate: Gate,
    /// Sums that are finished elsewhere than they are started.
    sums: Sums,
}

#[derive(Default)]
struct Mailbox {
    messages: Mutex<VecDeque<Vec<f32>>>,
    filled: Condvar,
}

/// A reusable barrier that can be broken for good.
struct Gate {
    ranks: usize,
    waiting: Mutex<Waiting>,
    passed: Condvar,
    /// Copy of `Waiting::round`, for spinning.
    round: AtomicUsize,
}

#[derive(Default)]
struct Waiting {
    arrived: usize,
    round: usize,
    left: Option<usize>,
}

impl Gate {
    fn pass(&self) -> Result<(), CollectiveError> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let broken = |waiting: &Waiting| waiting.left.map(|rank| CollectiveError::Left { rank, ranks: self.ranks });
        if let Some(error) = broken(&waiting) {
            return Err(error);
        }
        let round = waiting.round;
        waiting.arrived += 1;
        if waiting.arrived == self.ranks {
            waiting.arrived = 0;
            waiting.round += 1;
            self.round.store(waiting.round, Ordering::Release);
            self.passed.notify_all();
            return Ok(());
        }
        drop(waiting);
        for _ in 0..SPINS {
            if self.round.load(Ordering::Acquire) != round {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while waiting.round == round {
            if let Some(error) = broken(&waiting) {
                return Err(error);
            }
            waiting = self.passed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Wakes those that wait in `until`: what they wait for may be true now.
    fn wake(&self) {
        // Nobody is between looking and waiting while the lock is held.
        let _waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        self.passed.notify_all();
    }

    /// Waits until `is_true`, which another rank makes so before it calls `wake`.
    fn until(&self, is_true: impl Fn() -> bool) -> Result<(), CollectiveError> {
        for _ in 0..SPINS {
            if is_true() {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while !is_true() {
            if let Some(rank) = waiting.left {
                return Err(CollectiveError::Left { rank, ranks: self.ranks });
            }
            waiting = self.passed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn left(&self) -> Option<CollectiveError> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.left.map(|rank| CollectiveError::Left { rank, ranks: self.ranks })
    }

    fn leave(&self, rank: usize) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.left.get_or_insert(rank);
        self.passed.notify_all();
    }
}

/// One rank of a group.
pub struct ThreadMember {
    rank: usize,
    group: Arc<Group>,
    /// Nanoseconds of waiting for others to begin.
    waited: AtomicU64,
}

/// Makes the members of a new group, rank 0 first.
pub fn thread_group(ranks: usize) -> Vec<ThreadMember> {
    let buffers = || (0..ranks).map(|_| RwLock::new(Vec::new())).collect();
    let gate = Gate { ranks, waiting: Mutex::default(), passed: Condvar::new(), round: AtomicUsize::new(0) };
    let whole = (0..ranks).map(|_| AtomicUsize::new(0)).collect();
    let mail = (0..ranks * ranks).map(|_| Mailbox::default()).collect();
    let group = Arc::new(Group { ranks, given: buffers(), whole, summed: buffers(), mail, gate, sums: Sums::new(ranks) });
    (0..ranks).map(|rank| ThreadMember { rank, group: group.clone(), waited: AtomicU64::new(0) }).collect()
}

impl ThreadMember {
    /// Notes that this rank has waited since `start` for others to begin.
    fn note_wait(&self, start: Instant) {
        // One rank adds, others only look.
        self.waited.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }

    /// Waits until every rank has come to the same exchange.
    fn begin(&self) -> Result<(), CollectiveError> {
        let start = Instant::now();
        let passed = self.group.gate.pass();
        self.note_wait(start);
        passed
    }
}

impl Communicator for ThreadMember {
    fn barrier(&self) -> Result<(), CollectiveError> {
        self.group.gate.pass()
    }

    fn leave(&self) {
        self.group.gate.leave(self.rank);
        for mailbox in &self.group.mail {
            // Nobody is between looking and waiting while the lock is held.
            let _messages = mailbox.messages.lock().unwrap_or_else(PoisonError::into_inner);
            mailbox.filled.notify_all();
        }
    }
}

/// Where rank `rank`'s share of `length` elements lies, `share` of them a rank and what is left for the last.
fn share_of(rank: usize, length: usize, share: usize) -> std::ops::Range<usize> {
    (rank * share).min(length)..((rank + 1) * share).min(length)
}

impl ThreadMember {
    /// Lays out what this rank contributes to the shares of others, `share` elements each, of a piece of `whole` elements.
    fn give(&self, data: &[f32], share: usize, whole: usize) {
        self.group.whole[self.rank].store(whole, Ordering::Release);
        let own = share_of(self.rank, data.len(), share);
        let mut given = self.group.given[self.rank].write().unwrap_or_else(PoisonError::into_inner);
        given.resize(data.len(), 0.0);
        // What lies at its own share is nobody else's business.
        given[..own.start].copy_from_slice(&data[..own.start]);
        given[own.end..].copy_from_slice(&data[own.end..]);
    }

    /// Sums this rank's share of what all have, in the order of ranks.
    fn sum_share(&self, data: &[f32], share: usize, whole: usize) -> Result<(), CollectiveError> {
        let range = share_of(self.rank, data.len(), share);
        let mut sum = self.group.summed[self.rank].write().unwrap_or_else(PoisonError::into_inner);
        sum.clear();
        for (rank, given) in self.group.given.iter().enumerate() {
            let given = given.read().unwrap_or_else(PoisonError::into_inner);
            let others = self.group.whole[rank].load(Ordering::Acquire);
            if given.len() != data.len() || others != whole {
                return Err(CollectiveError::Length { expected: whole, got: others });
            }
            let given = if rank == self.rank { &data[range.clone()] } else { &given[range.clone()] };
            if rank == 0 {
                sum.extend_from_slice(given);
                continue;
            }
            for (sum, given) in sum.iter_mut().zip(given) {
                *sum += given;
            }
        }
        Ok(())
    }

    /// Copies the shares of all ranks.
    fn take_shares(&self, data: &mut [f32], share: usize) -> Result<(), CollectiveError> {
        for rank in 0..self.group.ranks {
            let sum = self.group.summed[rank].read().unwrap_or_else(PoisonError::into_inner);
            let range = share_of(rank, data.len(), share);
            if sum.len() != range.len() {
                return Err(CollectiveError::Length { expected: range.len(), got: sum.len() });
            }
            data[range].copy_from_slice(&sum);
        }
        Ok(())
    }
}

impl Collective for ThreadMember {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.group.ranks
    }

    /// Piece by piece reduce-scatter, then all-gather: rank r sums the r-th share.
    fn all_reduce_sum(&self, data: &mut [f32]) -> Result<(), CollectiveError> {
        let group = &*self.group;
        if group.ranks == 1 {
            return Ok(());
        }
        let whole = data.len();
        // Also where there is nothing to sum, so that ranks of different lengths notice.
        let pieces = whole.div_ceil(PIECE).max(1);
        for piece in 0..pieces {
            let data = &mut data[piece * PIECE..((piece + 1) * PIECE).min(whole)];
            let share = data.len().div_ceil(group.ranks);
            self.give(data, share, whole);
            // Who comes last to the first piece is waited for; the others are the transfer.
            if piece == 0 {
                self.begin()?
            } else {
                group.gate.pass()?
            };
            self.sum_share(data, share, whole)?;
            group.gate.pass()?;
            // What is given next lies elsewhere, and nobody sums it before all have come here.
            self.take_shares(data, share)?;
        }
        // Nobody may start the next sum before all have read this one.
        group.gate.pass()
    }

    fn reduce_scatter_sum(&self, data: &[f32], part: &mut [f32]) -> Result<(), CollectiveError> {
        let group = &*self.group;
        self.give(data, part.len(), data.len());
        self.begin()?;
        self.sum_share(data, part.len(), data.len())?;
        let sum = group.summed[self.rank].read().unwrap_or_else(PoisonError::into_inner);
        part[..sum.len()].copy_from_slice(&sum);
        part[sum.len()..].fill(0.0);
        drop(sum);
        group.gate.pass()
    }

    fn send(&self, to: usize, data: &[f32]) -> Result<(), CollectiveError> {
        let mailbox = &self.group.mail[self.rank * self.group.ranks + to];
        mailbox.messages.lock().unwrap_or_else(PoisonError::into_inner).push_back(data.to_vec());
        mailbox.filled.notify_all();
        Ok(())
    }

    fn receive(&self, from: usize, data: &mut [f32]) -> Result<(), CollectiveError> {
        let mailbox = &self.group.mail[from * self.group.ranks + self.rank];
        let start = Instant::now();
        let mut messages = mailbox.messages.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(message) = messages.pop_front() {
                self.note_wait(start);
                if message.len() != data.len() {
                    return Err(CollectiveError::Length { expected: data.len(), got: message.len() });
                }
                data.copy_from_slice(&message);
                return Ok(());
            }
            if let Some(error) = self.group.gate.left() {
                return Err(error);
            }
            messages = mailbox.filled.wait(messages).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn all_gather(&self, part: &[f32], data: &mut [f32]) -> Result<(), CollectiveError> {
        let group = &*self.group;
        {
            let mut own = group.summed[self.rank].write().unwrap_or_else(PoisonError::into_inner);
            own.clear();
            own.extend_from_slice(&part[..share_of(self.rank, data.len(), part.len()).len()]);
        }
        self.begin()?;
        self.take_shares(data, part.len())?;
        group.gate.pass()
    }

    fn trouble(&self) -> Option<CollectiveError> {
        self.group.gate.left()
    }

    fn waited(&self) -> Seconds {
        Seconds(self.waited.load(Ordering::Relaxed) as f64 * 1e-9)
    }

    fn overlapped(&self) -> Option<&dyn OverlappedSums> {
        Some(self)
    }
}

impl Drop for ThreadMember {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_gets_the_same_sum_for_every_length() {
        for ranks in [1, 2, 3, 5] {
            let members = thread_group(ranks);
            std::thread::scope(|scope| {
                for member in &members {
                    scope.spawn(move || {
                        for length in [0, 1, 2, 7, 64, 1001, PIECE, PIECE + 1, 3 * PIECE - 1] {
                            let mut data: Vec<f32> = (0..length).map(|k| (k + member.rank()) as f32).collect();
                            member.all_reduce_sum(&mut data).unwrap();
                            let others: usize = (0..ranks).sum();
                            assert!(data.iter().enumerate().all(|(k, v)| *v == (k * ranks + others) as f32));
                        }
                    });
                }
            });
        }
    }

    #[test]
    fn parts_of_a_sum_go_to_their_ranks_and_come_together_again() {
        for ranks in [1, 2, 3, 5] {
            let members = thread_group(ranks);
            std::thread::scope(|scope| {
                for member in &members {
                    scope.spawn(move || {
                        for length in [1usize, 2, 7, 64, 1001] {
                            let data: Vec<f32> = (0..length).map(|k| (k + member.rank()) as f32).collect();
                            let mut part = vec![9.0; length.div_ceil(ranks)];
                            member.reduce_scatter_sum(&data, &mut part).unwrap();
                            let others: usize = (0..ranks).sum();
                            for (k, got) in part.iter().enumerate() {
                                let at = member.rank() * part.len() + k;
                                let want = if at < length { (at * ranks + others) as f32 } else { 0.0 };
                                assert_eq!(*got, want, "{ranks} ranks, {length}, rank {}, {at}", member.rank());
                            }
                            let mut whole = vec![9.0; length];
                            member.all_gather(&part, &mut whole).unwrap();
                            assert!(whole.iter().enumerate().all(|(k, v)| *v == (k * ranks + others) as f32));
                        }
                    });
                }
            });
        }
    }

    #[test]
    fn a_rank_that_leaves_frees_the_others_with_an_error() {
        let mut members = thread_group(2);
        let leaver = members.pop().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| members[0].all_reduce_sum(&mut [1.0]));
            drop(leaver);
            assert_eq!(waiting.join().unwrap(), Err(CollectiveError::Left { rank: 1, ranks: 2 }));
        });
    }

    #[test]
    fn messages_arrive_in_order_and_a_rank_that_leaves_ends_the_wait() {
        let mut members = thread_group(3);
        let last = members.pop().unwrap();
        std::thread::scope(|scope| {
            let receiver = scope.spawn(|| {
                let mut got = [0.0; 2];
                let mut seen = Vec::new();
                for from in [0, 1, 0] {
                    last.receive(from, &mut got).unwrap();
                    seen.push(got[0]);
                }
                (seen, last.receive(1, &mut got))
            });
            members[0].send(2, &[1.0, 0.0]).unwrap();
            members[1].send(2, &[2.0, 0.0]).unwrap();
            members[0].send(2, &[3.0, 0.0]).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
            drop(members.pop());
            assert_eq!(receiver.join().unwrap(), (vec![1.0, 2.0, 3.0], Err(CollectiveError::Left { rank: 1, ranks: 3 })));
        });
    }

    #[test]
    fn different_lengths_are_an_error_and_not_a_wrong_sum() {
        // Also where the first pieces are alike.
        for (length, more) in [(3, 1), (PIECE, 1), (PIECE, PIECE), (0, 1)] {
            let members = thread_group(2);
            std::thread::scope(|scope| {
                let sum = |m: ThreadMember| move || m.all_reduce_sum(&mut vec![1.0; length + m.rank() * more]);
                let handles: Vec<_> = members.into_iter().map(|m| scope.spawn(sum(m))).collect();
                assert!(handles.into_iter().all(|h| h.join().unwrap().is_err()), "{length} and {more} more");
            });
        }
    }
}
