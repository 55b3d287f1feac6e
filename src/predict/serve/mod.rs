//! Serving on machines we do not have: time to the first token, time per token, tokens a second and $ per million of them.
//!
//! `serving` answers for one layout and one load. `step` times a step from operations, bytes and messages, `layout` says what fits,
//! `batching` makes latencies and throughput of steps; `parameters` are few, fitted by `calibrate` on the tables that `tables` reads, and
//! `score` says how far off the result is. Nothing here knows a clock.

mod batching;
pub mod calibrate;
mod domain;
mod estimate;
mod format;
mod layout;
mod parameters;
mod recipes;
pub mod score;
mod step;
pub mod tables;
#[cfg(test)]
mod tests;
mod work;

pub use batching::{Cycle, Latencies, Lengths, users_apart};
pub use domain::ServingDomain;
pub use estimate::{Arrival, Load, ServingEstimate, ServingMemory, serving};
pub use format::ServedFormat;
pub use layout::{Remedy, ServingError, ServingLayout, reserve_bytes};
pub use parameters::{Engine, EngineCosts, Prior, ServingParameters, priors, written};
pub use step::{Replica, StepLoad, StepTime};
pub use work::ServingWork;
