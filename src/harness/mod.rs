//! The conductor of a run: which candidate works when, in a process of its own, and what is written down the moment it ends.
//!
//! | file | what |
//! | --- | --- |
//! | `protocol` | the messages between parent and worker, one JSON object a line |
//! | `worker` | both ends of a worker: a process of the candidate's own, or ranks of a launch |
//! | `run` | groups, rounds, records, resuming, budget |
//!
//! It sends events and prints nothing; what a worker does is `workload`'s.

mod protocol;
mod run;
mod worker;

pub use protocol::{Described, Request, Response, Setup, WindowEnergy};
pub use run::{Control, Event, HarnessError, Job, Pace, run};
pub use worker::{Line, Ranks, Work, serve};
