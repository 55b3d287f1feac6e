//! How many machines that may be taken away serve as well as a number that may not.
//!
//! A machine is taken away at a constant rate and replaced after a while, independently of the others. In the long run it is missing for the share
//! r t / (1 + r t) of the time, r the rate and t the time to replace it (availability of a repaired unit: Barlow and Proschan, Mathematical Theory of
//! Reliability, 1965, chapter 5). Of n + s machines at least n are there with the probability that a binomial count of missing ones is at most s
//! (a k-out-of-n system, ibid., chapter 2).
//!
//! Providers take machines of one kind and place together (Mao et al., SkyServe, arXiv 2411.01438, sections 2 and 3), so that such a count is a
//! lower bound on what is needed in one place, and one for machines spread over places.

use super::plan_file::Operation;
use crate::{stats::binomial_tail, units::Seconds};

const SECONDS_PER_YEAR: f64 = 365.25 * 86_400.0;

/// Units that are lost and replaced one by one: machines, or replicas that need several.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pool {
    pub units: u32,
    /// Share of the time in which one is missing.
    pub missing: f64,
}

impl Pool {
    /// `units` of `machines` machines each, with `gpus_per_machine` GPUs; a unit is missing while any of its machines is. `None` where the
    /// plan says nothing of spot machines.
    pub fn new(operation: &Operation, units: u32, machines: f64, gpus_per_machine: f64) -> Option<Pool> {
        let failures = operation.failures_per_gpu_year * gpus_per_machine / SECONDS_PER_YEAR;
        let rate = operation.spot_interruptions_per_machine_day? / 86_400.0 + failures;
        let Seconds(replacement) = operation.spot_replacement.unwrap_or(operation.restart);
        let there = 1.0 / (1.0 + rate * replacement);
        Some(Pool { units, missing: 1.0 - there.powf(machines) })
    }

    /// Probability that at least `needed` units are there.
    pub fn availability(&self, needed: u32) -> f64 {
        match self.units.checked_sub(needed) {
            Some(spares) => binomial_tail(u64::from(spares), u64::from(self.units), self.missing),
            None => 0.0,
        }
    }

    /// The most units that are there for at least this share of the time.
    pub fn reliable(&self, availability: f64) -> u32 {
        (0..=self.units).rev().find(|needed| self.availability(*needed) >= availability).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn operation(per_day: f64, minutes: f64) -> Operation {
        Operation {
            failures_per_gpu_year: 0.0,
            spot_interruptions_per_machine_day: Some(per_day),
            spot_replacement: Some(Seconds(60.0 * minutes)),
            ..Operation::default()
        }
    }

    #[test]
    fn a_machine_that_is_lost_daily_and_back_in_an_hour_is_missing_a_25th_of_the_time() {
        let pool = Pool::new(&operation(1.0, 60.0), 4, 1.0, 8.0).unwrap();
        assert!((pool.missing - 1.0 / 25.0).abs() < 1e-12, "{pool:?}");
        assert!((pool.availability(4) - 0.96f64.powi(4)).abs() < 1e-12);
        // Of four at most one is missing: 0.96^4 + 4 x 0.04 x 0.96^3.
        assert!((pool.availability(3) - (0.96f64.powi(4) + 0.16 * 0.96f64.powi(3))).abs() < 1e-12);
        assert_eq!((pool.reliable(0.99), pool.reliable(0.84), pool.availability(5)), (3, 4, 0.0));
        // A replica of two machines is there when both are.
        assert!((Pool::new(&operation(1.0, 60.0), 4, 2.0, 8.0).unwrap().missing - (1.0 - 0.96f64.powi(2))).abs() < 1e-12);
        assert!(Pool::new(&Operation::default(), 4, 1.0, 8.0).is_none());
    }

    /// Long simulations of machines that are lost and replaced spend the share of time that the formula says.
    #[test]
    fn a_simulated_pool_is_as_available_as_the_formula_says() {
        let (rate, replacement, units) = (1.0f64, 0.1, 6u32);
        let pool = Pool { units, missing: rate * replacement / (1.0 + rate * replacement) };
        let mut generator = crate::stats::Generator::new(7);
        // Of each machine when it changes next, and whether it is there.
        let mut draw = |mean: f64| -mean * (1.0 - generator.unit()).ln();
        let mut machines: Vec<(f64, bool)> = (0..units).map(|_| (draw(1.0 / rate), true)).collect();
        let (mut now, mut enough) = (0.0, 0.0);
        while now < 20_000.0 {
            let next = (0..machines.len()).min_by(|a, b| machines[*a].0.total_cmp(&machines[*b].0)).unwrap();
            let there = machines.iter().filter(|(_, is_there)| *is_there).count();
            enough += if there >= 5 { machines[next].0 - now } else { 0.0 };
            now = machines[next].0;
            let is_there = !machines[next].1;
            machines[next] = (now + draw(if is_there { 1.0 / rate } else { replacement }), is_there);
        }
        let share = enough / now;
        assert!((share - pool.availability(5)).abs() < 0.01, "{share} where {} was said", pool.availability(5));
    }

    proptest! {
        #[test]
        fn more_interruptions_longer_replacements_and_higher_targets_never_free_a_machine(
            per_day in 0.001f64..20.0, minutes in 1.0f64..300.0, units in 1u32..200, target in 0.5f64..0.9999, factor in 1.0f64..5.0,
        ) {
            let reliable = |per_day, minutes, target| Pool::new(&operation(per_day, minutes), units, 1.0, 8.0).unwrap().reliable(target);
            let plain = reliable(per_day, minutes, target);
            prop_assert!(plain <= units);
            prop_assert!(reliable(per_day * factor, minutes, target) <= plain);
            prop_assert!(reliable(per_day, minutes * factor, target) <= plain);
            prop_assert!(reliable(per_day, minutes, 1.0 - (1.0 - target) / factor) <= plain);
        }
    }
}
