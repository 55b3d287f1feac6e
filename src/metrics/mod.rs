//! Figures of quality from answers: one-label classification so far.
//!
//! Takes classes and scores as plain slices, gives `record::Quality`. Checked against scikit-learn in `tests/metrics.rs`. How sure a
//! figure is (intervals, tests between candidates) is left to `stats`.

mod classification;
mod roc;

pub use classification::{MetricError, argmax_rows, classification};
pub use roc::{roc_auc, roc_curve};
