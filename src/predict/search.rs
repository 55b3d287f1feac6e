//! The best layouts of one model on one number of GPUs: branch and bound over everything that fits, exact.
//!
//! A layout is an *arrangement* of ranks (tensor x pipeline x context x data, experts over some of them, batch, precision) and a *schedule*
//! on it (micro-batch, interleaving, recomputation, sharding). What a layout takes is another's to say: a `Landscape` has, beside the step
//! time, a floor under all step times of an arrangement. Arrangements are visited from the lowest floor up, and what stands on a floor
//! above the best layouts found is not looked at. As long as floors are floors, the result is that of trying every layout: the tests
//! hold it against that, for planted landscapes and for the real one.

use super::layout::{Recompute, Sharding};
use crate::units::Seconds;

/// How ranks are arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Arrangement {
    pub tensor: u32,
    pub pipeline: u32,
    pub context: u32,
    pub data: u32,
    pub expert: u32,
    /// Sequences of an optimizer step, over all ranks.
    pub batch: u32,
    /// Place in the plan's list of precisions.
    pub precision: u8,
}

impl Arrangement {
    pub fn gpus(&self) -> u32 {
        self.tensor * self.pipeline * self.context * self.data
    }
}

/// How an arrangement works through a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Schedule {
    /// Sequences.
    pub micro_batch: u32,
    /// Pieces of a pipeline stage; 1 is plain 1F1B.
    pub interleaving: u32,
    pub recompute: Recompute,
    pub sharding: Sharding,
}

/// What a layout comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    Fits {
        step: Seconds,
    },
    /// The memory that a GPU lacks.
    TooLarge {
        missing_bytes: f64,
    },
    /// It is no layout: a size does not divide what it must, say.
    Impossible,
}

/// The step time over the layouts of one model on one kind of machine.
pub trait Landscape {
    fn evaluate(&self, arrangement: &Arrangement, schedule: &Schedule) -> Verdict;

    /// Never above the step time of a schedule on this arrangement.
    fn floor(&self, arrangement: &Arrangement) -> Seconds;

    /// Never above the step time of a schedule with this micro-batch.
    fn floor_at(&self, arrangement: &Arrangement, micro_batch: u32) -> Seconds;
}

/// What may be chosen. Every list is in rising order and has no value twice.
#[derive(Clone, Debug, PartialEq)]
pub struct Space {
    pub gpus: u32,
    pub tensor: Vec<u32>,
    pub pipeline: Vec<u32>,
    pub context: Vec<u32>,
    pub expert: Vec<u32>,
    pub batches: Vec<u32>,
    pub precisions: u8,
    pub micro_batches: Vec<u32>,
    pub interleavings: Vec<u32>,
    pub recomputes: Vec<Recompute>,
    pub shardings: Vec<Sharding>,
    /// Whether gradients and weights may be sharded in a pipeline.
    pub shards_pipelines: bool,
    /// Blocks of the model: pipeline pieces are as even as these, or these with the embedding and the last projection beside them, allow.
    pub blocks: u32,
}

impl Space {
    /// Every arrangement: sizes multiply to the number of GPUs, experts are spread over ranks that otherwise share tensors, sequences and
    /// batches, and every data-parallel rank has the same whole number of sequences.
    pub fn arrangements(&self) -> Vec<Arrangement> {
        let mut out = Vec::new();
        for &tensor in self.tensor.iter().filter(|size| self.gpus.is_multiple_of(**size)) {
            let rest = self.gpus / tensor;
            for &pipeline in self.pipeline.iter().filter(|size| rest.is_multiple_of(**size)) {
                let rest = rest / pipeline;
                for &context in self.context.iter().filter(|size| rest.is_multiple_of(**size)) {
                    let data = rest / context;
                    let spread = tensor * context * data;
                    for &expert in self.expert.iter().filter(|size| spread.is_multiple_of(**size)) {
                        for &batch in self.batches.iter().filter(|batch| batch.is_multiple_of(data)) {
                            for precision in 0..self.precisions {
                                out.push(Arrangement { tensor, pipeline, context, data, expert, batch, precision });
                            }
                        }
                    }
                }
            }
        }
        out
    }

    /// The schedules of an arrangement, those with the least recomputation first.
    pub fn schedules(&self, on: &Arrangement) -> impl Iterator<Item = Schedule> {
        let of_rank = on.batch / on.data;
        let alone = on.data * on.context == 1;
        let most = if on.pipeline > 1 && !self.shards_pipelines { Sharding::Optimizer } else { Sharding::Weights };
        let (pipeline, blocks) = (on.pipeline, self.blocks);
        let micro_batches = self.micro_batches.iter().copied().filter(move |size| of_rank.is_multiple_of(*size));
        micro_batches.flat_map(move |micro_batch| {
            let micro_batches = of_rank / micro_batch;
            // Interleaving deals micro-batches out in groups of as many as there are ranks (Narayanan et al., arXiv 2104.04473, section 2.2).
            let fits = move |pieces: u32| {
                let chunks = pipeline * pieces;
                let is_even = blocks.is_multiple_of(chunks) || (blocks + 2).is_multiple_of(chunks);
                pieces == 1 || (pipeline > 1 && is_even && micro_batches.is_multiple_of(pipeline))
            };
            let interleavings = self.interleavings.iter().copied().filter(move |pieces| fits(*pieces));
            interleavings.flat_map(move |interleaving| {
                self.recomputes.iter().copied().flat_map(move |recompute| {
                    let has = move |one: &Sharding| *one <= most && (*one == self.shardings[0] || !alone);
                    let shardings = self.shardings.iter().copied().filter(has);
                    shardings.map(move |sharding| Schedule { micro_batch, interleaving, recompute, sharding })
                })
            })
        })
    }
}

/// One layout with its step time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    pub arrangement: Arrangement,
    pub schedule: Schedule,
    pub step: Seconds,
}

impl Found {
    /// Seconds for a sequence of the batch: layouts with different batches are compared by it.
    pub fn per_sequence(&self) -> f64 {
        self.step.0 / f64::from(self.arrangement.batch)
    }
}

/// What a search came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// The fastest layouts for a sequence of the batch, fastest first; of equal ones the one that comes first in the space.
    pub best: Vec<Found>,
    /// Of those that do not fit the one that lacks least memory, bytes; complete only where nothing fits.
    pub nearest: Option<(Arrangement, Schedule, f64)>,
    pub counts: Counts,
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub arrangements: u64,
    /// Arrangements whose floor was enough.
    pub pruned: u64,
    /// Layouts that were evaluated.
    pub evaluated: u64,
    /// Of these, those that do not fit.
    pub too_large: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.arrangements += other.arrangements;
        self.pruned += other.pruned;
        self.evaluated += other.evaluated;
        self.too_large += other.too_large;
    }
}

/// The least that a sequence of the batch can take on any arrangement, seconds; infinite where there is none.
pub fn floor(space: &Space, landscape: &impl Landscape) -> f64 {
    let floors = space.arrangements().into_iter().map(|on| landscape.floor(&on).0 / f64::from(on.batch));
    floors.fold(f64::INFINITY, f64::min)
}

/// The `keep` fastest layouts of a space, of those that take at most `most` seconds for a sequence of the batch.
pub fn search(space: &Space, landscape: &impl Landscape, keep: usize, most: f64) -> Outcome {
    let mut order: Vec<(f64, u32, Arrangement)> = space
        .arrangements()
        .into_iter()
        .enumerate()
        .map(|(place, on)| (landscape.floor(&on).0 / f64::from(on.batch), place as u32, on))
        .collect();
    order.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut outcome = Outcome { counts: Counts { arrangements: order.len() as u64, ..Counts::default() }, ..Outcome::default() };
    let mut best = Best { keep: keep.max(1), most, found: Vec::new() };
    for (visited, (floor, place, on)) in order.iter().enumerate() {
        // A floor that equals the worst kept one may hide an equal layout that comes earlier in the space.
        if *floor > best.worst() {
            outcome.counts.pruned = (order.len() - visited) as u64;
            break;
        }
        visit(space, landscape, on, u64::from(*place) << 32, &mut best, &mut outcome);
    }
    outcome.best = best.found.into_iter().map(|(_, _, found)| found).collect();
    outcome
}

/// Every layout of a space that fits, in the space's order: what `search` is held against, and what ranks are taken in.
pub fn enumerate(space: &Space, landscape: &impl Landscape) -> Vec<Found> {
    let mut all = Vec::new();
    for arrangement in space.arrangements() {
        for schedule in space.schedules(&arrangement) {
            if let Verdict::Fits { step } = landscape.evaluate(&arrangement, &schedule) {
                all.push(Found { arrangement, schedule, step });
            }
        }
    }
    all
}

/// The fastest layouts so far, each with its place in the space.
struct Best {
    keep: usize,
    /// Slower ones are of no interest.
    most: f64,
    found: Vec<(f64, u64, Found)>,
}

impl Best {
    fn worst(&self) -> f64 {
        if self.found.len() < self.keep { self.most } else { self.found[self.keep - 1].0 }
    }

    fn offer(&mut self, key: f64, place: u64, found: Found) {
        if key > self.worst() {
            return;
        }
        let at = self.found.partition_point(|(other, earlier, _)| (*other, *earlier) < (key, place));
        self.found.insert(at, (key, place, found));
        self.found.truncate(self.keep);
    }
}

fn visit(space: &Space, landscape: &impl Landscape, on: &Arrangement, first_place: u64, best: &mut Best, outcome: &mut Outcome) {
    let mut floor = (0, 0.0);
    for (at, schedule) in space.schedules(on).enumerate() {
        if floor.0 != schedule.micro_batch {
            floor = (schedule.micro_batch, landscape.floor_at(on, schedule.micro_batch).0 / f64::from(on.batch));
        }
        if floor.1 > best.worst() {
            continue;
        }
        let verdict = landscape.evaluate(on, &schedule);
        outcome.counts.evaluated += 1;
        match verdict {
            Verdict::Fits { step } => {
                let found = Found { arrangement: *on, schedule, step };
                best.offer(found.per_sequence(), first_place + at as u64, found);
            }
            Verdict::TooLarge { missing_bytes } => {
                outcome.counts.too_large += 1;
                if outcome.nearest.is_none_or(|(_, _, least)| missing_bytes < least) {
                    outcome.nearest = Some((*on, schedule, missing_bytes));
                }
            }
            Verdict::Impossible => {}
        }
    }
}

/// Every divisor, rising.
pub fn divisors(of: u32) -> Vec<u32> {
    (1..=of).filter(|size| of.is_multiple_of(*size)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A planted landscape: every choice has a factor, memory falls with what shares it out.
    #[derive(Clone, Debug)]
    struct Planted {
        factors: Vec<f64>,
        memory: f64,
    }

    fn again(mode: Recompute) -> f64 {
        match mode {
            Recompute::Nothing => 0.0,
            Recompute::Selective => 1.0,
            _ => 2.0,
        }
    }

    impl Planted {
        fn factor(&self, of: u32) -> f64 {
            1.0 + self.factors[of as usize % self.factors.len()]
        }
    }

    impl Landscape for Planted {
        fn evaluate(&self, on: &Arrangement, with: &Schedule) -> Verdict {
            let sharing = f64::from(on.tensor * on.pipeline) * (1.0 + with.sharding as u8 as f64) * (1.0 + again(with.recompute));
            let memory = f64::from(with.micro_batch) * 64.0 / sharing;
            if memory > self.memory {
                return Verdict::TooLarge { missing_bytes: memory - self.memory };
            }
            let slower = self.factor(with.micro_batch * 7 + with.interleaving * 3 + with.sharding as u32)
                * (1.0 + 0.3 * again(with.recompute));
            Verdict::Fits { step: Seconds(self.floor(on).0 * slower) }
        }

        fn floor(&self, on: &Arrangement) -> Seconds {
            let slower = self.factor(on.tensor * 5 + on.pipeline * 11 + on.context * 17 + on.expert * 23);
            Seconds(f64::from(on.batch) * slower / f64::from(on.gpus()) / f64::from(1 + on.precision))
        }

        fn floor_at(&self, on: &Arrangement, _: u32) -> Seconds {
            self.floor(on)
        }
    }

    fn space(gpus: u32) -> Space {
        Space {
            gpus,
            tensor: vec![1, 2, 4, 8],
            pipeline: vec![1, 2, 3, 4],
            context: vec![1, 2],
            expert: vec![1, 2, 4],
            batches: vec![48, 96],
            precisions: 2,
            micro_batches: vec![1, 2, 4],
            interleavings: vec![1, 2],
            recomputes: vec![Recompute::Nothing, Recompute::Selective, Recompute::Full],
            shardings: vec![Sharding::Nothing, Sharding::Optimizer, Sharding::Weights],
            shards_pipelines: true,
            blocks: 24,
        }
    }

    #[test]
    fn sizes_multiply_to_the_gpus_and_batches_divide() {
        let space = space(24);
        let all = space.arrangements();
        assert!(all.len() > 100);
        for on in &all {
            assert_eq!(on.gpus(), 24);
            assert!(on.batch.is_multiple_of(on.data));
            for schedule in space.schedules(on) {
                assert!((on.batch / on.data).is_multiple_of(schedule.micro_batch));
                let (pieces, micro_batches) = (schedule.interleaving, on.batch / on.data / schedule.micro_batch);
                assert!(pieces == 1 || on.pipeline > 1 && micro_batches.is_multiple_of(on.pipeline));
            }
        }
        let mut once = all.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), all.len());
    }

    #[test]
    fn pipelines_shard_no_weights_where_their_software_cannot() {
        let with_weights = |shards_pipelines: bool, pipeline: u32| {
            let space = Space { shards_pipelines, ..space(24) };
            let of = |on: &Arrangement| space.schedules(on).filter(|schedule| schedule.sharding == Sharding::Weights).count();
            space.arrangements().iter().filter(|on| on.pipeline == pipeline).map(of).sum::<usize>()
        };
        assert!(with_weights(false, 1) > 0 && with_weights(false, 2) == 0 && with_weights(true, 2) > 0);
    }

    #[test]
    fn where_nothing_fits_the_nearest_is_told() {
        let landscape = Planted { factors: vec![0.5], memory: 0.001 };
        let outcome = search(&space(8), &landscape, 3, f64::INFINITY);
        assert!(outcome.best.is_empty());
        let (on, schedule, missing) = outcome.nearest.unwrap();
        // Two data-parallel ranks at stage 3 share out more than the last factor of two of the tensors would.
        assert_eq!((on.tensor * on.pipeline, on.data, schedule.micro_batch, schedule.sharding), (4, 2, 1, Sharding::Weights));
        assert!((missing - (64.0 / (4.0 * 4.0 * 3.0) - 0.001)).abs() < 1e-12);
        assert_eq!(outcome.counts.pruned, 0);
    }

    proptest! {
        #[test]
        fn the_search_finds_what_trying_every_layout_finds(
            factors in proptest::collection::vec(0.0f64..1.0, 3..40),
            memory in 0.5f64..100.0,
            gpus in prop::sample::select(vec![1u32, 2, 6, 8, 12, 16, 24, 48, 64, 96]),
            keep in 1usize..6,
        ) {
            let landscape = Planted { factors, memory };
            let space = space(gpus);
            let outcome = search(&space, &landscape, keep, f64::INFINITY);
            let mut all = enumerate(&space, &landscape);
            all.sort_by(|a, b| a.per_sequence().total_cmp(&b.per_sequence()));
            all.truncate(keep);
            prop_assert_eq!(&outcome.best, &all);
            // With a bound, what is not slower, and nothing else.
            let most = all.get(all.len() / 2).map_or(1.0, Found::per_sequence);
            let within: Vec<Found> = all.into_iter().filter(|found| found.per_sequence() <= most).collect();
            prop_assert_eq!(search(&space, &landscape, keep, most).best, within);
            prop_assert!(outcome.best.iter().all(|found| found.per_sequence() >= floor(&space, &landscape)));
        }
    }
}
