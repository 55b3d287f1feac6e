//! The ranks of a layout: one session each, on threads of this process or one in each of several processes.

use super::{TrainError, load_weights, shared::Shared};
use crate::{
    backend::{CollectiveError, Links, Session, open},
    comm::{Communicator, Membership, Place},
    graph::{Program, Work},
    strategy::Weights,
    vocab::{Device, Layout},
};
use std::{sync::Arc, time::Instant};

/// Times of a series of steps, taken on rank 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepTimes {
    /// Wall time of each of the first steps, seconds. Where a device works through queued steps these are the times between the ends
    /// of neighbouring ones, by its clock.
    pub step_s: Vec<f64>,
    pub steps: u64,
    /// Wall time of the whole series, seconds.
    pub total_s: f64,
}

/// Steps whose times are kept one by one.
/// 200 a block: a dozen blocks hold five times what a bound on p99 needs, and a run's files stay small.
pub const KEPT_STEPS: usize = 200;

/// Takes the times of a series of steps that each end with their results on the host.
pub struct StepClock {
    times: StepTimes,
    keeps: bool,
    start: Instant,
    last: Instant,
}

impl StepClock {
    /// Starts now; single steps are kept where `keeps`, for one rank is enough.
    pub fn start(count: usize, keeps: bool) -> StepClock {
        let step_s = Vec::with_capacity(if keeps { count.min(KEPT_STEPS) } else { 0 });
        let times = StepTimes { step_s, ..StepTimes::default() };
        let start = Instant::now();
        StepClock { times, keeps, start, last: start }
    }

    /// A step has ended.
    pub fn step(&mut self) {
        self.times.steps += 1;
        if self.keeps && self.times.step_s.len() < KEPT_STEPS {
            let now = Instant::now();
            self.times.step_s.push((now - self.last).as_secs_f64());
            self.last = now;
        }
    }

    pub fn end(self) -> StepTimes {
        StepTimes { total_s: self.start.elapsed().as_secs_f64(), ..self.times }
    }
}

/// One rank: its program on its device, and its links to the others.
pub struct Rank {
    pub session: Box<dyn Session>,
    membership: Membership,
}

impl Rank {
    /// Among all ranks of the layout.
    pub fn number(&self) -> usize {
        self.membership.number
    }

    /// Waits until every rank is here.
    pub fn barrier(&self) -> Result<(), CollectiveError> {
        self.membership.all.barrier()
    }
}

/// The ranks of a candidate that live in this process: all of them, or one. Where it is one, every process does the same with its own, and
/// results of all ranks are shared between them.
pub struct Team {
    ranks: Vec<Rank>,
    place: Place,
    layout: Layout,
    /// Of each part of the model.
    programs: Vec<Program>,
}

impl Drop for Team {
    /// All sessions end before any rank leaves its groups: to those that are still there it would look like a failure.
    fn drop(&mut self) {
        let memberships: Vec<Membership> = self.ranks.iter().map(|rank| rank.membership.clone()).collect();
        self.ranks.clear();
        drop(memberships);
    }
}

/// Frees the other ranks when a rank ends early.
struct LeaveOnDrop(Vec<Arc<dyn Communicator>>);

impl Drop for LeaveOnDrop {
    fn drop(&mut self) {
        self.0.iter().for_each(|member| member.leave());
    }
}

impl Team {
    /// Loads the program of its part of the weights on every rank of this process; each rank gets its share of `threads`.
    pub fn new(
        place: &Place,
        device: Device,
        parts: &[(&Program, Weights)],
        layout: Layout,
        threads: usize,
    ) -> Result<Team, TrainError> {
        let ranks = layout.ranks();
        let threads = (threads / ranks).max(1);
        // Ranks on the processor share it.
        let mut shared = None;
        let mut made = Vec::new();
        for membership in place.members(layout) {
            let number = membership.number;
            let own = place.device(device, number);
            let backend = match &shared {
                Some((opened, backend)) if *opened == own => Arc::clone(backend),
                _ => shared.insert((own, open(own, threads)?)).1.clone(),
            };
            let Membership { data, tensor, pipeline, .. } = membership.clone();
            let links = (ranks > 1).then(|| Links { data, tensor, pipeline });
            let (program, weights) = &parts[layout.place(number).1];
            let mut session = backend.load((*program).clone(), links)?;
            load_weights(&mut *session, weights)?;
            made.push(Rank { session, membership });
        }
        let programs = parts.iter().map(|(program, _)| (*program).clone()).collect();
        Ok(Team { ranks: made, place: place.clone(), layout, programs })
    }

    /// Work of a step of all ranks.
    pub fn work(&self) -> Work {
        (0..self.layout.ranks()).map(|rank| self.program(rank).work()).fold(Work::default(), Work::plus)
    }

    /// The program of any rank, wherever it lives.
    pub fn program(&self, rank: usize) -> &Program {
        &self.programs[self.layout.place(rank).1]
    }

    /// The program of each stage of a pipeline, of its first rank; one where there are no stages.
    pub fn stages(&self) -> impl Iterator<Item = &Program> {
        let layout = self.layout;
        self.programs.iter().enumerate().filter(move |(part, _)| layout.part_place(*part).1 == 0).map(|(_, program)| program)
    }

    /// Ranks in this process.
    pub fn len(&self) -> usize {
        self.ranks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ranks.is_empty()
    }

    /// The session of the first rank of this process, for reading results that all ranks share.
    pub fn first(&mut self) -> &mut dyn Session {
        &mut *self.ranks[0].session
    }

    /// The number of that rank among all.
    pub fn first_number(&self) -> usize {
        self.ranks[0].number()
    }

    /// The ranks of this process.
    pub fn ranks(&mut self) -> impl Iterator<Item = &mut Rank> {
        self.ranks.iter_mut()
    }

    /// What the process of rank 0 finds, on every process.
    pub fn lead<T: serde::Serialize + serde::de::DeserializeOwned>(
        &self,
        find: impl FnOnce() -> Result<T, TrainError>,
    ) -> Result<T, TrainError> {
        lead(&self.place, find)
    }

    /// Memory of the sessions of all ranks, wherever they live, bytes.
    pub fn memory_of_all(&mut self) -> Result<u64, TrainError> {
        let mut states = vec![(); self.ranks.len()];
        Ok(self.each(&mut states, |_, rank, ()| Ok(rank.session.memory().0))?.iter().sum())
    }

    /// Does `work` on every rank at once, with a state of its own for each of this process, and hands back the results of all ranks in
    /// their order. One rank runs on the caller's thread. The first error of any rank is returned; ranks that only lost their partner do
    /// not count as first.
    pub fn each<S: Send, R: Shared + Send>(
        &mut self,
        states: &mut [S],
        work: impl Fn(usize, &mut Rank, &mut S) -> Result<R, TrainError> + Sync,
    ) -> Result<Vec<R>, TrainError> {
        let run = |rank: &mut Rank, state: &mut S| {
            let Membership { all, data, tensor, pipeline, .. } = rank.membership.clone();
            let mut guard = LeaveOnDrop(vec![all, data, tensor, pipeline]);
            let result = work(rank.number(), rank, state);
            if result.is_ok() {
                guard.0.clear();
            }
            result
        };
        if let Place::Process(seat) = &self.place {
            let (rank, state) = (&mut self.ranks[0], &mut states[0]);
            // Processes come here one after the other; their clocks start together.
            rank.barrier()?;
            let result = run(rank, state)?;
            let mut bytes = Vec::new();
            result.write(&mut bytes);
            let all = seat.share(&bytes)?;
            return all.iter().map(|bytes| R::read(&mut &bytes[..]).ok_or(TrainError::Garbled)).collect();
        }
        if let ([rank], [state]) = (&mut self.ranks[..], &mut states[..]) {
            return Ok(vec![work(0, rank, state)?]);
        }
        let results: Vec<Result<R, TrainError>> = std::thread::scope(|scope| {
            let run = &run;
            let mut pairs = self.ranks.iter_mut().zip(states.iter_mut());
            let first = pairs.next();
            let others: Vec<_> = pairs.map(|(rank, state)| scope.spawn(move || run(rank, state))).collect();
            let mut results: Vec<_> = first.map(|(rank, state)| run(rank, state)).into_iter().collect();
            results.extend(others.into_iter().map(|handle| {
                handle.join().unwrap_or_else(|panic| {
                    let text = panic.downcast_ref::<String>().cloned().or(panic.downcast_ref::<&str>().map(|t| t.to_string()));
                    Err(TrainError::Panic(text.unwrap_or_else(|| "a panic without a message".into())))
                })
            }));
            results
        });
        let lost_partner = |e: &TrainError| {
            use crate::backend::BackendError;
            matches!(
                e,
                TrainError::Collective(CollectiveError::Left { .. })
                    | TrainError::Backend(BackendError::Collective(CollectiveError::Left { .. }))
            )
        };
        let mut values = Vec::new();
        let mut errors = Vec::new();
        for result in results {
            match result {
                Ok(value) => values.push(value),
                Err(error) => errors.push(error),
            }
        }
        errors.sort_by_key(lost_partner);
        match errors.into_iter().next() {
            Some(error) => Err(error),
            None => Ok(values),
        }
    }
}

/// What the process of rank 0 finds, on every process of `place`; its failure is everybody's.
pub fn lead<T: serde::Serialize + serde::de::DeserializeOwned>(
    place: &Place,
    find: impl FnOnce() -> Result<T, TrainError>,
) -> Result<T, TrainError> {
    let Place::Process(seat) = place else { return find() };
    let found = if place.is_first() { Some(find()) } else { None };
    let text = match &found {
        Some(Ok(found)) => serde_json::to_vec(found).map_err(|_| TrainError::Garbled)?,
        // The others learn of a failure by this rank's leaving.
        Some(Err(_)) => {
            seat.leave();
            return found.expect("it is there");
        }
        None => Vec::new(),
    };
    let all = seat.share(&text)?;
    match found {
        Some(found) => found,
        None => serde_json::from_slice(&all[0]).map_err(|_| TrainError::Garbled),
    }
}
