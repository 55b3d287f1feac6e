//! The order of training rows, and their way into a batch.

use crate::stats::Generator;

/// Batches of one data set, in an order of its own for every epoch. Rows that do not fill a batch wait for another epoch.
#[derive(Clone, Debug)]
pub struct Batches {
    order: Vec<u32>,
    batch_size: usize,
    seed: u64,
}

impl Batches {
    /// Batches over rows `0..rows`; `batch_size` from 1 to `rows`.
    pub fn new(rows: usize, batch_size: usize, seed: u64) -> Batches {
        let mut batches = Batches { order: (0..rows as u32).collect(), batch_size, seed };
        batches.epoch(0);
        batches
    }

    /// Puts the rows in the order of epoch `epoch`.
    pub fn epoch(&mut self, epoch: u64) {
        (0..).zip(&mut self.order).for_each(|(row, place)| *place = row);
        // Seed and epoch go through the generator once, so that neighbouring ones share nothing.
        let mixed = Generator::new(self.seed ^ Generator::new(epoch).next_u64()).next_u64();
        Generator::new(mixed).shuffle(&mut self.order);
    }

    /// Whole batches in an epoch.
    pub fn per_epoch(&self) -> usize {
        self.order.len() / self.batch_size
    }

    /// Rows of a batch of the epoch.
    pub fn rows(&self, step: usize) -> &[u32] {
        &self.order[step * self.batch_size..(step + 1) * self.batch_size]
    }

    /// The share of a batch that rank `rank` of `ranks` takes; `ranks` divides the batch.
    pub fn shard(&self, step: usize, rank: usize, ranks: usize) -> &[u32] {
        let share = self.batch_size / ranks;
        &self.rows(step)[rank * share..(rank + 1) * share]
    }
}

/// Copies images into a batch `[rows, H, W, C]`.
pub fn gather(all: &[f32], elements: usize, rows: &[u32], images: &mut [f32]) {
    for (row, image) in rows.iter().zip(images.chunks_exact_mut(elements)) {
        image.copy_from_slice(&all[*row as usize * elements..][..elements]);
    }
}

/// Copies texts into a batch `[rows, length]`.
pub fn gather_tokens(all: &[i32], length: usize, rows: &[u32], tokens: &mut [i32]) {
    for (row, text) in rows.iter().zip(tokens.chunks_exact_mut(length)) {
        text.copy_from_slice(&all[*row as usize * length..][..length]);
    }
}

/// `count` training rows (all, if there are fewer) for measuring activation ranges, without repetition. They come from the training
/// part, so they are disjoint from the test rows.
pub fn calibration_rows(train_rows: usize, count: usize, seed: u64) -> Vec<u32> {
    let mut rows: Vec<u32> = (0..train_rows as u32).collect();
    Generator::new(seed).shuffle(&mut rows);
    rows.truncate(count);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_epoch_reads_every_row_once_and_shards_make_up_the_batch(rows in 8usize..300, share in 1usize..5, seed: u64) {
            let (ranks, batch) = (2, 2 * share);
            let mut batches = Batches::new(rows, batch, seed);
            let mut orders = Vec::new();
            for epoch in [0, 1, 0] {
                batches.epoch(epoch);
                let seen: Vec<u32> = (0..batches.per_epoch()).flat_map(|s| batches.rows(s).to_vec()).collect();
                let mut sorted = seen.clone();
                sorted.sort_unstable();
                sorted.dedup();
                prop_assert_eq!(sorted.len(), rows / batch * batch);
                for step in 0..batches.per_epoch() {
                    let shards: Vec<u32> = (0..ranks).flat_map(|r| batches.shard(step, r, ranks).to_vec()).collect();
                    prop_assert_eq!(shards.as_slice(), batches.rows(step));
                }
                orders.push(seen);
            }
            prop_assert_eq!(&orders[0], &orders[2]);
            prop_assert!(orders[0] != orders[1]);
        }
    }

    #[test]
    fn gathered_rows_are_the_asked_ones() {
        let (mut images, mut tokens) = (vec![0.0; 8], vec![0; 8]);
        gather(&(0..12).map(|v| v as f32).collect::<Vec<_>>(), 4, &[2, 0], &mut images);
        gather_tokens(&(0..12).collect::<Vec<_>>(), 4, &[2, 0], &mut tokens);
        assert_eq!(images, [8.0, 9.0, 10.0, 11.0, 0.0, 1.0, 2.0, 3.0]);
        assert_eq!(tokens, [8, 9, 10, 11, 0, 1, 2, 3]);
    }

    #[test]
    fn calibration_rows_are_different_rows() {
        let mut rows = calibration_rows(100, 30, 4);
        assert_eq!(rows, calibration_rows(100, 30, 4));
        rows.sort_unstable();
        rows.dedup();
        assert_eq!((rows.len(), calibration_rows(10, 30, 4).len()), (30, 10));
    }
}
