//! Sums that a rank starts in one place and finishes in another. To start is to lay out what the rank contributes; nobody waits there. To
//! finish is to add what all have laid out, in the order of ranks; it waits only for ranks that have not come to their start.
//!
//! Threads that have a core each gain by the waits that are gone, not by transfers in the background: there is no free core to make them.
//! What is laid out alternates between two buffers, so that a rank may start a sum again while a slower one still reads the last: it
//! cannot be two ahead, because to finish a sum it needs the slower one's start.

use super::ThreadMember;
use crate::backend::{CollectiveError, Kept, OverlappedSums};
use std::{
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

/// One sum.
struct Sum {
    /// What each rank contributes, in odd rounds and in even ones.
    given: [Vec<RwLock<Vec<f32>>>; 2],
    /// How often each rank has started it.
    started: Vec<AtomicUsize>,
}

/// The sums of a group by their number.
pub(super) struct Sums {
    ranks: usize,
    all: RwLock<Vec<Arc<Sum>>>,
}

impl Sums {
    pub fn new(ranks: usize) -> Sums {
        Sums { ranks, all: RwLock::default() }
    }

    fn get(&self, number: usize) -> Arc<Sum> {
        let find = |all: &Vec<Arc<Sum>>| all.get(number).cloned();
        let found = find(&self.all.read().unwrap_or_else(PoisonError::into_inner));
        found.unwrap_or_else(|| {
            let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
            let buffers = || (0..self.ranks).map(|_| RwLock::default()).collect();
            let started = || (0..self.ranks).map(|_| AtomicUsize::new(0)).collect();
            while all.len() <= number {
                all.push(Arc::new(Sum { given: [buffers(), buffers()], started: started() }));
            }
            all[number].clone()
        })
    }
}

/// Elements that are summed over all ranks before the next ones: 8 KiB of each rank stay in the first cache.
const CHUNK: usize = 2048;

impl ThreadMember {
    /// Waits until all have started sum `number`, then shows `use_given` what each has laid out, in the order of ranks.
    fn with_given(
        &self,
        number: usize,
        length: usize,
        use_given: impl FnOnce(&[RwLockReadGuard<'_, Vec<f32>>]),
    ) -> Result<(), CollectiveError> {
        let sum = self.group.sums.get(number);
        let round = sum.started[self.rank].load(Ordering::Relaxed);
        let start = Instant::now();
        let waited = self.group.gate.until(|| sum.started.iter().all(|started| started.load(Ordering::Acquire) >= round));
        self.note_wait(start);
        waited?;
        let given: Vec<_> =
            sum.given[round % 2].iter().map(|given| given.read().unwrap_or_else(PoisonError::into_inner)).collect();
        if let Some(other) = given.iter().find(|given| given.len() != length) {
            return Err(CollectiveError::Length { expected: length, got: other.len() });
        }
        use_given(&given);
        Ok(())
    }
}

/// The sum of what all have given from element `from` on.
fn add(given: &[RwLockReadGuard<'_, Vec<f32>>], mut from: usize, sums: &mut [f32]) {
    for sums in sums.chunks_mut(CHUNK) {
        let range = from..from + sums.len();
        sums.copy_from_slice(&given[0][range.clone()]);
        for given in &given[1..] {
            sums.iter_mut().zip(&given[range.clone()]).for_each(|(sum, given)| *sum += given);
        }
        from = range.end;
    }
}

impl OverlappedSums for ThreadMember {
    fn start(&self, number: usize, data: &[&[f32]], _: Kept) -> Result<(), CollectiveError> {
        let sum = self.group.sums.get(number);
        let round = sum.started[self.rank].load(Ordering::Relaxed) + 1;
        {
            let mut given = sum.given[round % 2][self.rank].write().unwrap_or_else(PoisonError::into_inner);
            given.clear();
            data.iter().for_each(|data| given.extend_from_slice(data));
        }
        sum.started[self.rank].store(round, Ordering::Release);
        self.group.gate.wake();
        Ok(())
    }

    fn finish(&self, number: usize, data: &mut [&mut [f32]]) -> Result<(), CollectiveError> {
        let length = data.iter().map(|data| data.len()).sum();
        self.with_given(number, length, |given| {
            let mut from = 0;
            for data in data {
                add(given, from, data);
                from += data.len();
            }
        })
    }

    fn finish_parts(&self, number: usize, lengths: &[usize], parts: &mut [&mut [f32]]) -> Result<(), CollectiveError> {
        self.with_given(number, lengths.iter().sum(), |given| {
            let mut from = 0;
            for (part, length) in parts.iter_mut().zip(lengths) {
                let own = super::share_of(self.rank, *length, part.len());
                let (filled, behind) = part.split_at_mut(own.len());
                add(given, from + own.start, filled);
                behind.fill(0.0);
                from += length;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::thread_group;
    use super::*;

    #[test]
    fn sums_that_are_started_first_and_finished_later_are_those_of_their_round() {
        for ranks in [1, 2, 3, 5] {
            let members = thread_group(ranks);
            std::thread::scope(|scope| {
                for member in &members {
                    scope.spawn(move || {
                        for round in 0..50usize {
                            // Some ranks are late in some rounds.
                            if (round + member.rank).is_multiple_of(7) {
                                std::thread::sleep(std::time::Duration::from_micros(200));
                            }
                            let of = |rank: usize, number: usize, k: usize| (round * 100 + number * 10 + rank + k) as f32;
                            let data = |number, length| (0..length).map(|k| of(member.rank, number, k)).collect::<Vec<_>>();
                            let (mut a, mut b, c) = (data(0, 3), data(0, 1), data(1, 7));
                            member.start(0, &[&a, &b], Kept::Whole).unwrap();
                            member.start(1, &[&c], Kept::Parts).unwrap();
                            a.fill(f32::NAN);
                            let mut part = vec![f32::NAN; 7usize.div_ceil(ranks)];
                            member.finish_parts(1, &[7], &mut [&mut part]).unwrap();
                            member.finish(0, &mut [&mut a, &mut b]).unwrap();
                            let sum = |number, k| (0..ranks).map(|rank| of(rank, number, k)).sum::<f32>();
                            assert_eq!(a, [sum(0, 0), sum(0, 1), sum(0, 2)]);
                            assert_eq!(b, [sum(0, 0)]);
                            for (k, got) in part.iter().enumerate() {
                                let at = member.rank * part.len() + k;
                                assert_eq!(*got, if at < 7 { sum(1, at) } else { 0.0 }, "{ranks} ranks, {at}");
                            }
                        }
                    });
                }
            });
        }
    }

    #[test]
    fn a_rank_that_leaves_or_brings_another_length_ends_the_wait_with_an_error() {
        let mut members = thread_group(2);
        let leaver = members.pop().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                members[0].start(0, &[&[1.0]], Kept::Whole).unwrap();
                members[0].finish(0, &mut [&mut [0.0]])
            });
            std::thread::sleep(std::time::Duration::from_millis(20));
            drop(leaver);
            assert_eq!(waiting.join().unwrap(), Err(CollectiveError::Left { rank: 1, ranks: 2 }));
        });
        let members = thread_group(2);
        members[0].start(0, &[&[1.0]], Kept::Whole).unwrap();
        members[1].start(0, &[&[1.0, 2.0]], Kept::Whole).unwrap();
        assert_eq!(members[0].finish(0, &mut [&mut [0.0]]), Err(CollectiveError::Length { expected: 1, got: 2 }));
    }

    #[test]
    fn only_waiting_for_others_to_begin_counts_as_waiting() {
        let late = std::time::Duration::from_millis(30);
        let exchange = |member: &ThreadMember| {
            member.start(0, &[&[1.0; 1000]], Kept::Whole).unwrap();
            member.finish(0, &mut [&mut [0.0; 1000]]).unwrap();
        };
        // Seconds that the first and the late one wait.
        let waited = || {
            let members = thread_group(2);
            std::thread::scope(|scope| {
                scope.spawn(|| exchange(&members[0]));
                scope.spawn(|| {
                    std::thread::sleep(late);
                    exchange(&members[1]);
                });
            });
            use crate::backend::Collective;
            [members[0].waited().0, members[1].waited().0]
        };
        // On a busy machine the first may itself get its turn late, but hardly twenty times.
        let tries: Vec<[f64; 2]> = (0..20).map(|_| waited()).collect();
        let is_told = |[first, second]: &[f64; 2]| *first > 0.5 * late.as_secs_f64() && second < first;
        assert!(
            tries.iter().any(is_told),
            "the first waits for about as long as the other is late, which waits for next to nothing: {tries:?}"
        );
    }
}
