//! This process as one rank of a layout whose ranks are processes: the groups that it belongs to, and exchanges in them over MPI.
//!
//! Every exchange goes through memory that is handed over to MPI for its time, so that a rank whose partner is gone can stop waiting
//! without taking back memory that MPI still writes to. Large sums go in pieces that fit a cache, so the copies are cheap.

use super::{
    Communicator, Membership,
    background::Background,
    library::{Comm, Element, MpiError, Pending},
    world::{Process, Shared, finish, share},
};
use crate::{
    backend::{Collective, CollectiveError, OverlappedSums},
    vocab::Layout,
};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

/// Elements of a piece of a large sum: 1 MiB.
pub(super) const PIECE: usize = 1 << 18;

/// Tag of messages between ranks.
const DATA: i32 = 3;

impl From<MpiError> for CollectiveError {
    fn from(error: MpiError) -> CollectiveError {
        CollectiveError::Transport(error.to_string())
    }
}

/// One rank of a layout, in this process.
pub struct Seat {
    /// Among the ranks of the layout.
    number: usize,
    members: Vec<Arc<ProcessMember>>,
    membership: Membership,
}

/// What the members of a seat share.
struct Link {
    world: Arc<Shared>,
    slot: u32,
    /// Its number among the ranks of the layout.
    number: usize,
    ranks: usize,
    /// 1 + the number of the rank that left; 0 while all are there.
    left: Arc<AtomicUsize>,
}

impl Link {
    fn stop(&self) -> Option<CollectiveError> {
        match self.left.load(Ordering::Acquire) {
            0 => self.world.trouble_among(self.ranks).map(CollectiveError::from),
            rank => Some(CollectiveError::Left { rank: rank - 1, ranks: self.ranks }),
        }
    }
}

impl Seat {
    pub(super) fn take(
        world: &Arc<Shared>,
        slot: u32,
        left: Arc<AtomicUsize>,
        layout: Layout,
    ) -> Result<Option<Arc<Seat>>, MpiError> {
        let (comm, ranks) = (world.comm(), layout.ranks());
        let takes_part = comm.rank < ranks;
        let (share, part) = layout.place(comm.rank);
        let (stage, piece) = layout.part_place(part);
        let color = |number: usize| takes_part.then_some(number);
        // Ranks with the same part; with parts of the same layers; with the same part of other layers.
        let all = comm.split(color(0))?;
        let data = comm.split(color(part))?;
        let tensor = comm.split(color(share * layout.pipeline_ranks() + stage))?;
        let pipeline = comm.split(color(share * layout.tensor_ranks() + piece))?;
        let (Some(all), Some(data), Some(tensor), Some(pipeline)) = (all, data, tensor, pipeline) else { return Ok(None) };
        let link = Arc::new(Link { world: world.clone(), slot, number: comm.rank, ranks, left });
        let member = |comm: Comm| {
            Arc::new(ProcessMember { comm, link: link.clone(), sent: Mutex::default(), background: Background::default() })
        };
        let members: Vec<Arc<ProcessMember>> = [all, data, tensor, pipeline].map(member).into();
        let of = |k: usize| -> Arc<dyn Communicator> { members[k].clone() };
        let membership = Membership { number: comm.rank, all: of(0), data: of(1), tensor: of(2), pipeline: of(3) };
        Ok(Some(Arc::new(Seat { number: comm.rank, members, membership })))
    }

    pub fn number(&self) -> usize {
        self.number
    }

    /// The host of each rank of the layout.
    pub fn hosts(&self) -> &[String] {
        &self.members[0].link.world.hosts()[..self.members[0].link.ranks]
    }

    /// What this process is.
    pub fn process(&self) -> &Process {
        self.members[0].link.world.process()
    }

    /// What the library says of itself.
    pub fn library(&self) -> &str {
        self.members[0].link.world.version()
    }

    pub(super) fn membership(&self) -> Membership {
        self.membership.clone()
    }

    /// The rank that left first, where one did.
    pub fn left_by(&self) -> Option<usize> {
        self.members[0].link.left.load(Ordering::Acquire).checked_sub(1)
    }

    /// Frees the others, for good.
    pub fn leave(&self) {
        self.members[0].leave();
    }

    /// What each rank has given, on every rank.
    pub fn share(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        let all = &self.members[0];
        share(&all.comm, bytes, || all.link.stop())
    }

    /// Gives its communicators back, all ranks together; nobody may have left.
    pub(super) fn free(self) -> Result<(), MpiError> {
        let Seat { members, membership, .. } = self;
        drop(membership);
        for member in members {
            let Ok(ProcessMember { comm, link, sent, background }) = Arc::try_unwrap(member) else { continue };
            let sent = sent.into_inner().unwrap_or_else(PoisonError::into_inner);
            sent.into_iter()
                .chain(background.into_left())
                .try_for_each(|message| finish(message, || link.world.trouble_among(link.ranks)).map(drop))?;
            comm.free()?;
        }
        Ok(())
    }
}

/// One rank of a group of processes.
pub(super) struct ProcessMember {
    pub(super) comm: Comm,
    link: Arc<Link>,
    /// Messages that MPI may not be done with.
    sent: Mutex<Vec<Pending<f32>>>,
    /// Sums that are started and not finished.
    pub(super) background: Background,
}

impl ProcessMember {
    pub(super) fn finish_one<T: Element>(&self, pending: Pending<T>) -> Result<Vec<T>, CollectiveError> {
        finish(pending, || self.link.stop()).map(|(made, _)| made)
    }

    /// Nothing is begun once somebody has left.
    pub(super) fn check(&self) -> Result<(), CollectiveError> {
        self.link.stop().map_or(Ok(()), Err)
    }
}

impl Collective for ProcessMember {
    fn rank(&self) -> usize {
        self.comm.rank
    }

    fn ranks(&self) -> usize {
        self.comm.size
    }

    fn all_reduce_sum(&self, data: &mut [f32]) -> Result<(), CollectiveError> {
        if self.comm.size == 1 {
            return Ok(());
        }
        self.check()?;
        for piece in data.chunks_mut(PIECE) {
            let sum = self.finish_one(self.comm.all_reduce(piece.to_vec())?)?;
            piece.copy_from_slice(&sum);
        }
        Ok(())
    }

    fn reduce_scatter_sum(&self, data: &[f32], part: &mut [f32]) -> Result<(), CollectiveError> {
        self.check()?;
        let mut padded = data.to_vec();
        padded.resize(part.len() * self.comm.size, 0.0);
        part.copy_from_slice(&self.finish_one(self.comm.reduce_scatter(padded, part.len())?)?);
        Ok(())
    }

    fn all_gather(&self, part: &[f32], data: &mut [f32]) -> Result<(), CollectiveError> {
        self.check()?;
        let whole = self.finish_one(self.comm.all_gather(part.to_vec())?)?;
        let length = data.len();
        let whole = whole.get(..length).ok_or(CollectiveError::Length { expected: length, got: whole.len() })?;
        data.copy_from_slice(whole);
        Ok(())
    }

    fn send(&self, to: usize, data: &[f32]) -> Result<(), CollectiveError> {
        self.check()?;
        let message = self.comm.send(to, DATA, data.to_vec())?;
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let mut failure = None;
        sent.retain_mut(|earlier| match earlier.poll() {
            Ok(done) => !done,
            Err(error) => {
                failure = Some(error);
                false
            }
        });
        sent.push(message);
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    fn receive(&self, from: usize, data: &mut [f32]) -> Result<(), CollectiveError> {
        self.check()?;
        let message = self.comm.receive::<f32>(from, DATA, data.len())?;
        let (message, count) = finish(message, || self.link.stop())?;
        if count != data.len() {
            return Err(CollectiveError::Length { expected: data.len(), got: count });
        }
        data.copy_from_slice(&message);
        Ok(())
    }

    fn trouble(&self) -> Option<CollectiveError> {
        self.link.stop()
    }

    fn overlapped(&self) -> Option<&dyn OverlappedSums> {
        Some(self)
    }
}

impl Communicator for ProcessMember {
    fn barrier(&self) -> Result<(), CollectiveError> {
        self.check()?;
        self.finish_one(self.comm.barrier()?).map(drop)
    }

    fn leave(&self) {
        let own = self.link.number + 1;
        if self.link.left.compare_exchange(0, own, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.link.world.leave(self.link.slot);
        }
    }
}
