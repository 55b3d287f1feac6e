//! The ranks of a layout: one session each, on threads of this process.

use super::{TrainError, load_weights};
use crate::{
    backend::{CollectiveError, Links, Session, open},
    comm::{ThreadMember, thread_group},
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
    /// Among all ranks.
    pub member: Arc<ThreadMember>,
    /// Among those of its kinds.
    groups: [Arc<ThreadMember>; 3],
}

/// All ranks of a candidate.
pub struct Team {
    ranks: Vec<Rank>,
}

/// Frees the other ranks when a rank ends early.
struct LeaveOnDrop(Vec<Arc<ThreadMember>>);

impl Drop for LeaveOnDrop {
    fn drop(&mut self) {
        self.0.iter().for_each(|member| member.leave());
    }
}

impl Team {
    /// Loads the program of its part of the weights on every rank; each gets its share of `threads`.
    pub fn new(device: Device, parts: &[(&Program, Weights)], layout: Layout, threads: usize) -> Result<Team, TrainError> {
        let ranks = layout.ranks();
        let threads = (threads / ranks).max(1);
        let shared = open(device, threads)?;
        let group = |ranks: usize| thread_group(ranks).into_iter().map(Arc::new).collect::<Vec<_>>();
        let all = group(ranks);
        let data: Vec<_> = (0..layout.parts()).map(|_| group(layout.data_ranks())).collect();
        // Ranks with parts of the same layers, and ranks with the same part of other layers.
        let groups = |ranks: usize| (0..layout.ranks() / ranks).map(|_| group(ranks)).collect::<Vec<_>>();
        let (tensor, pipeline) = (groups(layout.tensor_ranks()), groups(layout.pipeline_ranks()));
        let mut made = Vec::new();
        for (rank, member) in all.into_iter().enumerate() {
            let backend = if device.of_rank(rank) == device { shared.clone() } else { open(device.of_rank(rank), threads)? };
            let (share, part) = layout.place(rank);
            let (stage, piece) = layout.part_place(part);
            let tensor = &tensor[share * layout.pipeline_ranks() + stage];
            let pipeline = &pipeline[share * layout.tensor_ranks() + piece];
            let groups = [data[part][share].clone(), tensor[piece].clone(), pipeline[stage].clone()];
            let [data, tensor, pipeline] = groups.clone();
            let links = (ranks > 1).then(|| Links { data, tensor, pipeline });
            let (program, weights) = &parts[part];
            let mut session = backend.load((*program).clone(), links)?;
            load_weights(&mut *session, weights)?;
            made.push(Rank { session, member, groups });
        }
        Ok(Team { ranks: made })
    }

    /// Work of a step of all ranks.
    pub fn work(&self) -> Work {
        self.ranks.iter().map(|rank| rank.session.program().work()).fold(Work::default(), Work::plus)
    }

    /// The session of a rank.
    pub fn session(&mut self, rank: usize) -> &mut dyn Session {
        &mut *self.ranks[rank].session
    }

    pub fn len(&self) -> usize {
        self.ranks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ranks.is_empty()
    }

    /// The session of rank 0, for reading results that all ranks share.
    pub fn first(&mut self) -> &mut dyn Session {
        &mut *self.ranks[0].session
    }

    /// The sessions of all ranks.
    pub fn sessions(&mut self) -> impl Iterator<Item = &mut (dyn Session + 'static)> {
        self.ranks.iter_mut().map(|rank| &mut *rank.session)
    }

    /// Memory of all ranks' sessions, bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.ranks.iter().map(|rank| rank.session.memory().0).sum()
    }

    /// Does `work` on every rank at once, with a state of its own each, and hands back the results in order of ranks. One rank runs
    /// on the caller's thread. The first error of any rank is returned; ranks that only lost their partner do not count as first.
    pub fn each<S: Send, R: Send>(
        &mut self,
        states: &mut [S],
        work: impl Fn(usize, &mut Rank, &mut S) -> Result<R, TrainError> + Sync,
    ) -> Result<Vec<R>, TrainError> {
        if let ([rank], [state]) = (&mut self.ranks[..], &mut states[..]) {
            return Ok(vec![work(0, rank, state)?]);
        }
        let run = |number: usize, rank: &mut Rank, state: &mut S| {
            let mut guard = LeaveOnDrop(std::iter::once(&rank.member).chain(&rank.groups).cloned().collect());
            let result = work(number, rank, state);
            if result.is_ok() {
                guard.0.clear();
            }
            result
        };
        let results: Vec<Result<R, TrainError>> = std::thread::scope(|scope| {
            let run = &run;
            let mut pairs = self.ranks.iter_mut().zip(states.iter_mut()).enumerate();
            let first = pairs.next();
            let others: Vec<_> = pairs.map(|(number, (rank, state))| scope.spawn(move || run(number, rank, state))).collect();
            let mut results: Vec<_> = first.map(|(number, (rank, state))| run(number, rank, state)).into_iter().collect();
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
