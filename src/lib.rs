//! advisor: measures which precision, compression, parallel layout, batch size and machine give an AI workload the speed and the
//! accuracy it needs at the lowest cost, and says how sure it is.
//!
//! The house is an hourglass. The left wing runs (`data`, `graph`, `strategy`, `backend`, `train`, `harness`), the right wing decides
//! (`cost`, `predict`, `advise`, `report`); they meet in `record`, plain data that can be saved. CONTRIBUTING.md has the floors.

#![deny(unsafe_code)]

pub mod advise;
pub mod backend;
pub mod cli;
pub mod comm;
pub mod cost;
pub mod data;
pub mod graph;
pub mod hardware;
pub mod harness;
pub mod input;
pub mod measure;
pub mod metrics;
pub mod models;
pub mod predict;
pub mod record;
pub mod report;
pub mod scenario;
pub mod stats;
pub mod strategy;
pub mod train;
pub mod units;
pub mod vocab;
pub mod workload;
