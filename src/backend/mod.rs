//! Devices that run a `Program`. A backend loads programs; a session is one program with its memory on the device.
//!
//! Whatever runs here is decided above: a backend knows shapes, element types and ops, not models, precisions or ranks.

pub mod check;
pub mod cpu;
pub mod cuda;
mod exchange;
#[cfg(test)]
mod tests;

use crate::{
    graph::{Program, ValueId},
    units::{Bytes, Seconds},
    vocab::Device,
};
use std::sync::Arc;

#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error("device `{device}` needs at least one thread, got {threads}")]
    Threads { device: Device, threads: usize },
    #[error("value `{name}` holds {expected} elements of {dtype}, got {got} of {given}")]
    Size { name: String, expected: usize, dtype: &'static str, got: usize, given: &'static str },
    #[error("op `{op}` on {shape} is not supported by device `{device}`: {reason}")]
    Unsupported { op: &'static str, shape: String, device: &'static str, reason: &'static str },
    #[error("op `{op}` needs other ranks, but this session has none")]
    Alone { op: &'static str },
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    #[error(transparent)]
    Cuda(#[from] cuda::CudaError),
}

/// A rank that stopped answering, or an exchange that does not fit.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CollectiveError {
    #[error("rank {rank} of {ranks} left while others waited for it")]
    Left { rank: usize, ranks: usize },
    #[error("ranks exchange different lengths: {expected} and {got}")]
    Length { expected: usize, got: usize },
    /// What carries the messages failed, or a rank fell silent.
    #[error("{0}")]
    Transport(String),
}

/// Exchange between the ranks of one program; `comm` implements it.
pub trait Collective: Send + Sync {
    fn rank(&self) -> usize;
    fn ranks(&self) -> usize;
    /// Every rank ends with the sum over all ranks, the same bits on each.
    fn all_reduce_sum(&self, data: &mut [f32]) -> Result<(), CollectiveError>;
    /// `part` is this rank's part of the sum: the elements from `rank * part.len()` on, zeros behind the last.
    fn reduce_scatter_sum(&self, data: &[f32], part: &mut [f32]) -> Result<(), CollectiveError>;
    /// `data` from the parts of all ranks, one behind the other.
    fn all_gather(&self, part: &[f32], data: &mut [f32]) -> Result<(), CollectiveError>;
    /// Hands `data` to rank `to`, without waiting for it.
    fn send(&self, to: usize, data: &[f32]) -> Result<(), CollectiveError>;
    /// Waits for what rank `from` has sent, in the order of sending.
    fn receive(&self, from: usize, data: &mut [f32]) -> Result<(), CollectiveError>;
    /// Why nobody waits for this group any more: a rank has left it, or fell silent.
    fn trouble(&self) -> Option<CollectiveError>;
    /// How long this rank has waited so far for others to begin; what comes after, the transfer itself, does not count.
    fn waited(&self) -> Seconds {
        Seconds(0.0)
    }
    /// Sums that go on while the rank computes; without them a sum is made where it is finished.
    fn overlapped(&self) -> Option<&dyn OverlappedSums> {
        None
    }
}

/// What a rank keeps of a sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kept {
    Whole,
    Parts,
}

/// Sums over the ranks of a group that are started in one place and finished in another. Each has a number; all ranks start them in the
/// same order, and none again before it has finished it.
pub trait OverlappedSums {
    /// Hands over what this rank contributes; `kept` says how it will be finished.
    fn start(&self, number: usize, data: &[&[f32]], kept: Kept) -> Result<(), CollectiveError>;
    /// The whole sums, the same bits on each rank. What `data` holds before does not matter.
    fn finish(&self, number: usize, data: &mut [&mut [f32]]) -> Result<(), CollectiveError>;
    /// This rank's parts of the sums, cut as `reduce_scatter_sum` cuts; `lengths`: of what was started.
    fn finish_parts(&self, number: usize, lengths: &[usize], parts: &mut [&mut [f32]]) -> Result<(), CollectiveError>;
}

/// The groups that a rank belongs to.
#[derive(Clone)]
pub struct Links {
    /// Ranks with the same weights and other rows.
    pub data: Arc<dyn Collective>,
    /// Ranks with the same rows and other parts of the same layers.
    pub tensor: Arc<dyn Collective>,
    /// Ranks with the same rows and other layers, in their order.
    pub pipeline: Arc<dyn Collective>,
}

impl Links {
    /// Why nobody waits for others any more, where one has left or fell silent.
    pub fn trouble(&self) -> Option<CollectiveError> {
        [&self.data, &self.tensor, &self.pipeline].into_iter().find_map(|group| group.trouble())
    }

    /// How long this rank has waited so far for any other to begin.
    pub fn waited(&self) -> Seconds {
        Seconds([&self.data, &self.tensor, &self.pipeline].map(|group| group.waited().0).iter().sum())
    }
}

/// Time of a step of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OpTime {
    pub total: Seconds,
    /// Of that, waiting for other ranks to begin.
    pub waited: Seconds,
}

/// A device with its compute threads.
pub trait Backend: Send + Sync {
    /// One line for records: "cpu, 2 threads, avx512".
    fn describe(&self) -> String;
    /// Allocates all memory of `program`, zeroed. Nothing is allocated by later runs.
    fn load(&self, program: Program, links: Option<Links>) -> Result<Box<dyn Session>, BackendError>;
}

/// A program with its memory.
pub trait Session: Send {
    fn program(&self) -> &Program;
    /// Copies `data` in, converting to the value's float type.
    fn upload_f32(&mut self, value: ValueId, data: &[f32]) -> Result<(), BackendError>;
    fn upload_i32(&mut self, value: ValueId, data: &[i32]) -> Result<(), BackendError>;
    fn upload_i8(&mut self, value: ValueId, data: &[i8]) -> Result<(), BackendError>;
    /// Host memory that an input has when the next run begins, where the type fits; for filling a batch without a copy. It is the value's
    /// own memory on the processor, and page-locked memory that is sent off by the run on a device, which may be at earlier runs still.
    /// What it holds before is not said: all of it must be written. Later runs keep the value.
    fn host_f32(&mut self, value: ValueId) -> Option<&mut [f32]>;
    fn host_i32(&mut self, value: ValueId) -> Option<&mut [i32]>;
    /// Copies a float value out, converting to f32. Only inputs, parameters, state and outputs outlive a run.
    fn download_f32(&mut self, value: ValueId, out: &mut [f32]) -> Result<(), BackendError>;
    /// Runs the program once. Adam's bias correction counts the runs so far but those whose updates were skipped.
    fn execute(&mut self) -> Result<(), BackendError>;
    /// Runs it once with a clock around each step; the times are written to `times`, one a step.
    fn execute_timed(&mut self, times: &mut Vec<OpTime>) -> Result<(), BackendError>;
    /// Factor on the learning rate of the updates from here on; 1 at first.
    fn set_rate_factor(&mut self, factor: f64);
    /// Notes what the scalar `value`, of type f32, is after the runs so far. A device does so when it gets there.
    fn note_f32(&mut self, value: ValueId) -> Result<(), BackendError>;
    /// What was noted since the last call, in order; waits for it.
    fn take_noted(&mut self) -> Result<Vec<f32>, BackendError>;
    /// Notes when all that was asked for so far is done, by the clock of the device.
    fn note_time(&mut self) -> Result<(), BackendError>;
    /// Times from each noted time to the next since the last call, one fewer than were noted; waits for them.
    fn take_times(&mut self) -> Result<Vec<Seconds>, BackendError>;
    /// Waits until all that was asked for is done; a device with a queue may answer `execute` before.
    fn synchronize(&mut self) -> Result<(), BackendError> {
        Ok(())
    }
    /// Which kernels were chosen among several for each step, and why; empty where there was no choice.
    fn reasons(&self) -> Vec<Vec<String>> {
        vec![Vec::new(); self.program().steps.len()]
    }
    /// How exchanges with other ranks went, where there is more than one way; known after the first.
    fn exchanges(&self) -> Option<String> {
        None
    }
    /// Device memory of the session.
    fn memory(&self) -> Bytes;
}

/// Opens a device. `threads` is the size of its pool, where it has one. `auto` is the processor: what it means on a machine is decided
/// where candidates are made.
pub fn open(device: Device, threads: usize) -> Result<Arc<dyn Backend>, BackendError> {
    if threads == 0 {
        return Err(BackendError::Threads { device, threads });
    }
    match device {
        Device::Auto | Device::Cpu => Ok(Arc::new(cpu::Cpu::new(threads))),
        Device::Cuda(number) => Ok(Arc::new(cuda::Cuda::open(number)?)),
    }
}
