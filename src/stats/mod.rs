//! Statistics that judge measurements: plain functions over plain numbers, deterministic for a given seed.
//!
//! | file | what |
//! | --- | --- |
//! | `describe` | median, quantile, mean, deviation, outliers, the time of several trainings |
//! | `counts` | binomial intervals and bounds, exact McNemar, paired difference of proportions |
//! | `resample` | exact sign-flip test, bootstrap intervals, the generator behind them |
//! | `multiple` | Holm's correction |
//! | `stopping` | when enough samples were taken |

mod counts;
mod describe;
mod multiple;
mod resample;
mod stopping;

pub use counts::{
    Interval, binomial_tail, mcnemar_exact, paired_difference, quantile_upper_bound, smallest_provable_loss, wilson,
};
pub use describe::{mean, median, outliers, quantile, relative_deviation, sample_deviation, time_of_trainings};
pub use multiple::holm;
pub use resample::{Generator, bootstrap_interval, sign_flip};
pub use stopping::{StopRule, Verdict};
