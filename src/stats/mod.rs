//! Statistics that judge measurements: plain functions over plain numbers, deterministic for a given seed.
//!
//! | file | what |
//! | --- | --- |
//! | `describe` | median, quantile, mean, deviation, outliers, the time of several trainings |
//! | `counts` | binomial intervals and bounds, exact McNemar, paired difference of proportions |
//! | `resample` | sign-flip and permutation tests, bootstrap intervals, the generator behind them |
//! | `multiple` | Holm's correction |
//! | `stopping` | when enough samples were taken |

mod counts;
mod describe;
mod multiple;
mod resample;
mod stopping;

pub use counts::{
    Interval, Z90, Z95, binomial_tail, mcnemar_exact, paired_difference, quantile_upper_bound, smallest_provable_loss, wilson,
};
pub use describe::{mean, median, outliers, quantile, relative_deviation, sample_deviation, time_of_trainings};
pub use multiple::{holm, holm_of_tests};
pub use resample::{Generator, bootstrap_interval, fewest_pairs, permutation, sign_flip};
pub use stopping::{StopRule, Verdict};
