//! What failures add to a long run: expected wall time with checkpoints, by Daly's model of exponential failures.
//!
//! J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", Future Generation Computer Systems 22
//! (2006) 303-312: expected wall time is eq. 20, the best interval eq. 37. J. W. Young, Communications of the ACM 17 (1974) 530, has the
//! first order of the same. Failures come at a constant rate, during checkpoints and restarts too, and each loses what was computed since the
//! last checkpoint.

use crate::units::Seconds;

/// How often a run is interrupted and what it costs to go on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interruptions {
    /// Mean time between interruptions of the whole run; infinite where there are none.
    pub mean_between: Seconds,
    /// Time that one checkpoint keeps the run waiting.
    pub checkpoint: Seconds,
    /// From an interruption until the last checkpoint is loaded and work goes on.
    pub restart: Seconds,
}

/// A run with its checkpoints and interruptions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WallTime {
    /// Expected, from start to end.
    pub total: Seconds,
    /// Work between two checkpoints; absent where nothing interrupts.
    pub checkpoint_interval: Option<Seconds>,
    /// Expected count.
    pub interruptions: f64,
    /// Work over wall time.
    pub goodput: f64,
}

impl Interruptions {
    /// Work between two checkpoints that makes the expected wall time least: Daly's eq. 37, to about 0.1 % of the wall time wherever a
    /// checkpoint takes less than half the mean time between interruptions, and that mean time beyond.
    pub fn best_interval(&self) -> Seconds {
        let (write, mean) = (self.checkpoint.0, self.mean_between.0);
        if write >= 2.0 * mean {
            return self.mean_between;
        }
        let share = (write / (2.0 * mean)).sqrt();
        let interval = (2.0 * write * mean).sqrt() * (1.0 + share / 3.0 + share * share / 9.0) - write;
        // A checkpoint that costs nothing is taken all the time; a step of a second is the least that work is divided into.
        Seconds(interval.max(1.0))
    }

    /// Expected wall time of so much work.
    pub fn wall_time(&self, work: Seconds) -> WallTime {
        let mean = self.mean_between.0;
        if !mean.is_finite() {
            return WallTime { total: work, checkpoint_interval: None, interruptions: 0.0, goodput: 1.0 };
        }
        // Work shorter than an interval is one segment.
        let interval = self.best_interval().0.min(work.0.max(f64::MIN_POSITIVE));
        let segments = work.0 / interval;
        let total = mean * (self.restart.0 / mean).exp() * ((interval + self.checkpoint.0) / mean).exp_m1() * segments;
        WallTime {
            total: Seconds(total),
            checkpoint_interval: Some(Seconds(interval)),
            interruptions: total / mean,
            goodput: if total > 0.0 { work.0 / total } else { 1.0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn every(mean: f64, checkpoint: f64, restart: f64) -> Interruptions {
        Interruptions { mean_between: Seconds(mean), checkpoint: Seconds(checkpoint), restart: Seconds(restart) }
    }

    #[test]
    fn without_interruptions_there_is_only_work() {
        let wall = every(f64::INFINITY, 60.0, 600.0).wall_time(Seconds(1e6));
        assert_eq!((wall.total, wall.goodput, wall.interruptions), (Seconds(1e6), 1.0, 0.0));
    }

    #[test]
    fn for_rare_failures_the_interval_is_youngs_and_the_loss_of_first_order() {
        // Young: sqrt(2 x 10 s x 10^6 s) = 4,472 s; loss = checkpoint / interval + interval / 2 M + restart / M.
        let rare = every(1e6, 10.0, 300.0);
        let interval = rare.best_interval().0;
        assert!((interval / 4472.1 - 1.0).abs() < 0.003, "{interval}");
        let wall = rare.wall_time(Seconds(1e7));
        let first_order = 10.0 / interval + interval / 2e6 + 300.0 / 1e6;
        assert!((wall.total.0 / 1e7 - 1.0 - first_order).abs() < 0.02 * first_order, "{wall:?}");
        assert!((wall.interruptions - 10.0).abs() < 0.1);
    }

    proptest! {
        #[test]
        fn the_interval_is_the_best_one(mean in 1e3f64..1e8, share in 1e-5f64..0.3, restart in 0.0f64..1e3) {
            let with = every(mean, mean * share, restart);
            let best = with.best_interval().0;
            let wall = |interval: f64| ((interval + mean * share) / mean).exp_m1() / interval;
            for other in [0.5, 0.8, 1.25, 2.0] {
                prop_assert!(wall(best) <= wall(best * other) * (1.0 + 2e-3));
            }
        }

        #[test]
        fn more_failures_slower_disks_and_longer_restarts_never_help(
            mean in 1e3f64..1e8, checkpoint in 1.0f64..300.0, restart in 0.0f64..3e3, work in 1e4f64..1e8, factor in 1.0f64..10.0,
        ) {
            let total = |with: Interruptions| with.wall_time(Seconds(work)).total.0 * (1.0 + 2e-3);
            let plain = every(mean, checkpoint, restart).wall_time(Seconds(work)).total.0;
            prop_assert!(plain >= work * 0.999_999);
            prop_assert!(total(every(mean / factor, checkpoint, restart)) >= plain);
            prop_assert!(total(every(mean, checkpoint * factor, restart)) >= plain);
            prop_assert!(total(every(mean, checkpoint, restart * factor)) >= plain);
        }
    }
}
