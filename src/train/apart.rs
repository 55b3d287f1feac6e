//! Steps taken apart: a clock around the fetching of rows, around every op and around the end of a step, in turns with ordinary steps.

use super::{TrainError, team::Rank};
use crate::backend::{OpTime, Session};
use std::time::Instant;

/// One step of a rank taken apart, and an ordinary one before it. All in seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ApartStep {
    /// The ordinary step.
    pub ordinary_s: f64,
    /// Of that, the call that runs the program, or queues it on a device.
    pub call_s: f64,
    /// The step taken apart, its clocks included.
    pub apart_s: f64,
    /// Fetching rows.
    pub data_s: f64,
    /// Of each op of the program.
    pub ops: Vec<OpTime>,
    /// Waiting for other ranks at the end of the step.
    pub end_wait_s: f64,
}

/// Takes `count` pairs of steps. `fetch` puts rows into the session, `end` reads what a step leaves and says how long it waited for others.
pub(super) fn take_apart(
    rank: &mut Rank,
    count: usize,
    mut fetch: impl FnMut(&mut dyn Session) -> Result<(), TrainError>,
    mut end: impl FnMut(&mut Rank) -> Result<f64, TrainError>,
) -> Result<Vec<ApartStep>, TrainError> {
    let mut steps = Vec::with_capacity(count);
    for _ in 0..count {
        let mut step = ApartStep::default();
        let start = Instant::now();
        fetch(&mut *rank.session)?;
        let fetched = Instant::now();
        rank.session.execute()?;
        step.call_s = fetched.elapsed().as_secs_f64();
        end(rank)?;
        rank.session.synchronize()?;
        step.ordinary_s = start.elapsed().as_secs_f64();
        let start = Instant::now();
        fetch(&mut *rank.session)?;
        step.data_s = start.elapsed().as_secs_f64();
        rank.session.execute_timed(&mut step.ops)?;
        step.end_wait_s = end(rank)?;
        rank.session.synchronize()?;
        step.apart_s = start.elapsed().as_secs_f64();
        steps.push(step);
    }
    Ok(steps)
}
