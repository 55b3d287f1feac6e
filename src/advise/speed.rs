//! Rates by round, and ratios between candidates that were timed in the same rounds.
//!
//! Blocks of one (session, round) ran interleaved, so their ratio is free of the machine's slow drift. A candidate's comparable
//! figure is therefore the median of its ratios to the baseline, times the baseline's own median: rows that were timed in
//! different groups, hours apart, can be compared.

use super::{CONFIDENCE, Estimate, RESAMPLES};
use crate::{
    record::{Measurement, RunRecord},
    stats::{Generator, Interval, bootstrap_interval, mean, median, quantile},
};
use std::collections::BTreeMap;

/// Session and round.
pub(super) type RoundKey = (u32, u32);

/// A positive figure for each round: the mean over the candidate's blocks in it.
pub(super) type Series = BTreeMap<RoundKey, f64>;

/// The same with the candidate's blocks one by one, in the order of the round.
pub(super) type Blocks = BTreeMap<RoundKey, Vec<f64>>;

/// A candidate's blocks in the forms in which they are judged.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Timing {
    /// Units a second.
    pub rates: Series,
    /// Median seconds a step.
    pub latencies: Series,
    /// How fast the processor was around the blocks, by `MachineSpeed::overall`, where it was read.
    pub machine_speeds: Series,
    pub rates_by_block: Blocks,
    pub latencies_by_block: Blocks,
    /// Units a second of each block.
    pub block_rates: Vec<f64>,
    /// Seconds of each kept step; of blocks without kept steps their mean.
    pub steps: Vec<f64>,
    /// Steps, kept or not.
    pub samples: u64,
}

impl Timing {
    pub fn of(record: &RunRecord) -> Timing {
        let mut timing = Timing::default();
        let blocks = record.measurement.as_ref().map_or(&[][..], |Measurement { blocks, .. }| blocks);
        let (mut rates, mut latencies, mut speeds) = (Blocks::new(), Blocks::new(), Blocks::new());
        for block in blocks {
            let rate = block.rate(record.candidate.batch_size);
            if !(rate.is_finite() && rate > 0.0) {
                continue;
            }
            let key = (block.session, block.round);
            timing.samples += block.steps;
            timing.block_rates.push(rate);
            rates.entry(key).or_default().push(rate);
            if let Some(speed) = &block.machine_speed {
                speeds.entry(key).or_default().push(speed.overall());
            }
            let kept: Vec<f64> = block.step_s.iter().copied().filter(|s| s.is_finite() && *s > 0.0).collect();
            let kept = if kept.is_empty() { vec![block.total.0 / block.steps as f64] } else { kept };
            latencies.entry(key).or_default().extend(median(&kept));
            timing.steps.extend(kept);
        }
        let averages = |by_round: &Blocks| by_round.iter().filter_map(|(key, values)| Some((*key, mean(values)?))).collect();
        (timing.rates, timing.latencies, timing.machine_speeds) = (averages(&rates), averages(&latencies), averages(&speeds));
        (timing.rates_by_block, timing.latencies_by_block) = (rates, latencies);
        timing
    }

    /// Units a second: median over the blocks.
    pub fn throughput(&self) -> Option<Estimate> {
        estimate(&self.block_rates)
    }
}

/// Median with its bootstrap interval.
pub(super) fn estimate(values: &[f64]) -> Option<Estimate> {
    let middle = |values: &[f64]| median(values).expect("a resample is as long as its values, of which there are some");
    Some(Estimate { value: median(values)?, interval: bootstrap_interval(values, middle, RESAMPLES, CONFIDENCE, SEED) })
}

/// Any fixed number: the same run gives the same report.
pub(super) const SEED: u64 = 0xAD51_5041;

/// `a / b` for every round that both have, in order.
pub(super) fn shared_ratios(a: &Series, b: &Series) -> Vec<f64> {
    a.iter().filter_map(|(key, value)| Some(value / b.get(key)?)).filter(|ratio| ratio.is_finite() && *ratio > 0.0).collect()
}

/// `a / b` of the pairs that ABBA makes: in every round that both were timed in, first block with first and second with second. A
/// drift that favours one in the first pair favours the other in the second.
pub(super) fn paired_ratios(a: &Blocks, b: &Blocks) -> Vec<f64> {
    let pairs = a.iter().filter_map(|(key, values)| Some(values.iter().zip(b.get(key)?)));
    pairs.flatten().map(|(a, b)| a / b).filter(|ratio| ratio.is_finite() && *ratio > 0.0).collect()
}

/// The drift-free figure of `series`: median ratio to the baseline times the baseline's median. A candidate without a round in
/// common stands with its own median.
pub(super) fn comparable(series: &Series, baseline: Option<&Series>) -> Option<f64> {
    let own = |series: &Series| median(&series.values().copied().collect::<Vec<_>>());
    let drift_free = baseline.and_then(|base| Some(median(&shared_ratios(series, base))? * own(base)?));
    drift_free.or_else(|| own(series))
}

/// `comparable` with its interval: rounds are drawn once for the ratio and for the baseline, those that both have among themselves, so
/// that the baseline's own noise counts too.
pub(super) fn comparable_estimate(series: &Series, baseline: Option<&Series>) -> Option<Estimate> {
    let value = comparable(series, baseline)?;
    let base = baseline.filter(|base| !shared_ratios(series, base).is_empty());
    let Some(base) = base else { return estimate(&series.values().copied().collect::<Vec<_>>()) };
    let (mut shared, mut alone) = (Vec::new(), Vec::new());
    for (key, pace) in base {
        match series.get(key).map(|own| own / pace).filter(|ratio| ratio.is_finite() && *ratio > 0.0) {
            Some(ratio) => shared.push((ratio, *pace)),
            None => alone.push(*pace),
        }
    }
    if shared.len() < 2 {
        return Some(Estimate { value, interval: None });
    }
    let mut generator = Generator::new(SEED);
    let drawn: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            let draw: Vec<(f64, f64)> = shared.iter().map(|_| shared[generator.below(shared.len())]).collect();
            let ratios: Vec<f64> = draw.iter().map(|(ratio, _)| *ratio).collect();
            let mut paces: Vec<f64> = draw.iter().map(|(_, pace)| *pace).collect();
            paces.extend(alone.iter().map(|_| alone[generator.below(alone.len())]));
            Some(median(&ratios)? * median(&paces)?)
        })
        .collect();
    let tail = (1.0 - CONFIDENCE) / 2.0;
    let interval = quantile(&drawn, tail).zip(quantile(&drawn, 1.0 - tail)).map(|(low, high)| Interval { low, high });
    Some(Estimate { value, interval })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[(u32, u32, f64)]) -> Series {
        values.iter().map(|(session, round, value)| ((*session, *round), *value)).collect()
    }

    #[test]
    fn a_drift_between_groups_leaves_the_comparable_figure_alone() {
        // The machine is half as fast in session 1; the candidate is 20 % faster than the baseline throughout.
        let base = series(&[(0, 0, 100.0), (0, 1, 100.0), (0, 2, 100.0), (1, 0, 50.0), (1, 1, 50.0)]);
        let slow_half = series(&[(1, 0, 60.0), (1, 1, 60.0)]);
        assert!((comparable(&slow_half, Some(&base)).unwrap() - 120.0).abs() < 1e-9);
        assert_eq!(comparable(&slow_half, None), Some(60.0));
        assert_eq!(comparable(&series(&[(7, 0, 61.0)]), Some(&base)), Some(61.0), "no shared round: its own median");
        assert_eq!(comparable(&Series::new(), Some(&base)), None);
    }
}
