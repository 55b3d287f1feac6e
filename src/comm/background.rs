//! Sums over processes that go on while the rank computes: MPI is handed a bucket where its last gradient is there, and asked for the sums
//! where they are needed.
//!
//! Neither Open MPI nor MPICH gets on with a sum by itself: it goes on where MPI is called. So a thread of the group looks at what is under
//! way, and sleeps in between, for the rank's own threads have the cores. A wait for a sum ends like every other when a rank leaves.

use super::{
    library::{MpiError, Pending},
    process::{PIECE, ProcessMember},
};
use crate::backend::{CollectiveError, Kept, OverlappedSums};
use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

/// Between two looks: short beside a backward pass of milliseconds, long beside a look.
const LOOK: Duration = Duration::from_micros(100);

/// What is under way.
#[derive(Default)]
struct State {
    /// By the number of the sum: its pieces in order, or why there are none.
    sums: BTreeMap<usize, Result<Vec<Pending<f32>>, MpiError>>,
    is_over: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Something is under way now, or all is over.
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at what is under way until all is over.
    fn watch(&self) {
        let mut state = self.lock();
        while !state.is_over {
            let mut is_any_left = false;
            for sum in state.sums.values_mut() {
                let Ok(pieces) = sum else { continue };
                let looked = pieces.iter_mut().try_fold(true, |all, piece| Ok(piece.poll()? && all));
                match looked {
                    Ok(all) => is_any_left |= !all,
                    Err(error) => *sum = Err(error),
                }
            }
            state = match is_any_left {
                false => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                // The lock is given back meanwhile.
                true => self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }
}

/// The sums of a group that are started and not finished, and the thread that looks at them.
#[derive(Default)]
pub(super) struct Background {
    shared: Arc<Shared>,
    /// From the first sum on; none where the system gave no thread, and sums go on where they are waited for.
    watcher: Mutex<Option<JoinHandle<()>>>,
}

impl Background {
    fn add(&self, number: usize, pieces: Vec<Pending<f32>>) {
        let mut state = self.shared.lock();
        state.sums.insert(number, Ok(pieces));
        drop(state);
        self.shared.changed.notify_one();
        let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        if watcher.is_none() {
            let shared = self.shared.clone();
            *watcher = std::thread::Builder::new().name("sums".into()).spawn(move || shared.watch()).ok();
        }
    }

    fn take(&self, number: usize) -> Result<Vec<Pending<f32>>, CollectiveError> {
        let found = self.shared.lock().sums.remove(&number);
        let never = || Err(CollectiveError::Transport(format!("sum {number} was never started")));
        found.map_or_else(never, |pieces| Ok(pieces?))
    }

    /// What was started and never asked for.
    pub fn into_left(self) -> Vec<Pending<f32>> {
        std::mem::take(&mut self.shared.lock().sums).into_values().flatten().flatten().collect()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.changed.notify_one();
        if let Some(watcher) = self.watcher.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            watcher.join().ok();
        }
    }
}

impl OverlappedSums for ProcessMember {
    /// All tensors in one message, so that small ones wait for one exchange; large ones in pieces that fit a cache. Of a sum of which each rank
    /// keeps its parts, rank r's parts lie next to each other: it is scattered while it is made, and half as much travels.
    fn start(&self, number: usize, data: &[&[f32]], kept: Kept) -> Result<(), CollectiveError> {
        self.check()?;
        let pieces = match kept {
            Kept::Whole => {
                let whole = data.concat();
                whole.chunks(PIECE).map(|piece| self.comm.all_reduce(piece.to_vec())).collect::<Result<Vec<_>, _>>()?
            }
            Kept::Parts => {
                let ranks = self.comm.size;
                let part: usize = data.iter().map(|data| data.len().div_ceil(ranks)).sum();
                let mut given = Vec::with_capacity(part * ranks);
                for rank in 0..ranks {
                    for data in data {
                        let length = data.len().div_ceil(ranks);
                        let end = given.len() + length;
                        given.extend_from_slice(&data[super::share_of(rank, data.len(), length)]);
                        given.resize(end, 0.0);
                    }
                }
                vec![self.comm.reduce_scatter(given, part)?]
            }
        };
        self.background.add(number, pieces);
        Ok(())
    }

    fn finish(&self, number: usize, data: &mut [&mut [f32]]) -> Result<(), CollectiveError> {
        let pieces = self.background.take(number)?;
        let mut sums = pieces.into_iter().map(|piece| self.finish_one(piece));
        let (mut sum, mut from) = (Vec::new(), 0);
        for data in data {
            let mut filled = 0;
            while filled < data.len() {
                if from == sum.len() {
                    let got = filled;
                    let next = sums.next().ok_or(CollectiveError::Length { expected: data.len(), got })?;
                    (sum, from) = (next?, 0);
                }
                let count = (sum.len() - from).min(data.len() - filled);
                data[filled..filled + count].copy_from_slice(&sum[from..from + count]);
                (filled, from) = (filled + count, from + count);
            }
        }
        Ok(())
    }

    fn finish_parts(&self, number: usize, _: &[usize], parts: &mut [&mut [f32]]) -> Result<(), CollectiveError> {
        let mut pieces = self.background.take(number)?;
        let own = pieces.pop().map_or(Ok(Vec::new()), |piece| self.finish_one(piece))?;
        let expected = parts.iter().map(|part| part.len()).sum();
        if !pieces.is_empty() || own.len() != expected {
            return Err(CollectiveError::Length { expected, got: own.len() });
        }
        let mut rest = own.as_slice();
        for part in parts {
            let (own, behind) = rest.split_at(part.len());
            part.copy_from_slice(own);
            rest = behind;
        }
        Ok(())
    }
}
