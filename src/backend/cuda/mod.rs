//! The CUDA backend: a program becomes a list of launches of the kernels in `kernels/`, planned once when it is loaded, recorded as one
//! CUDA graph and replayed.
//!
//! `machine` is what the backend needs of a device; `driver` is the real one and the only door to cudarc; the tests have `emulated`,
//! which runs the same kernels on the CPU.

mod conformance;
mod convolution;
#[allow(unsafe_code)]
mod cublas;
#[allow(unsafe_code)]
mod driver;
#[cfg(test)]
#[allow(unsafe_code)]
mod emulated;
// A kernel's type spells out its argument struct.
#[allow(clippy::type_complexity)]
mod fp8;
mod image;
mod kept;
mod kernel;
#[allow(unsafe_code)]
mod library;
mod links;
#[cfg(test)]
mod lint;
mod machine;
#[allow(unsafe_code)]
mod nccl;
mod peaks;
// A kernel's type spells out its argument struct.
#[allow(clippy::type_complexity)]
mod plan;
mod product;
#[cfg(test)]
mod sanitizers;
mod session;
#[cfg(test)]
mod tests;
mod tune;
// A kernel's type spells out its argument struct.
#[allow(clippy::type_complexity)]
mod two_four;
mod watch;

pub use conformance::{Checked, Verdict, conformance};
pub use cublas::{CUBLAS, Cublas, ProductBench, VendorProduct};
pub use driver::{device_count, driver_version, facts, uuid};
pub use machine::{CudaError, Facts};
pub use nccl::{NCCL, nccl_version};
pub use peaks::{Peaks, peaks};
pub use tune::{TUNING, TuneError, Tuned, tune, tuning_file};

use super::{Backend, BackendError, Links, Session};
use crate::graph::Program;
use machine::Machine;
use product::Choices;
use std::sync::Arc;

/// Architecture of the kernel images that a device of this compute capability takes; `None` where none runs on it.
pub fn image_for(capability: (u32, u32)) -> Option<&'static str> {
    image::choose("relu_f32", capability).ok().map(|image| image.architecture)
}

/// One line for records: name, compute capability, and the image of the kernels that runs on it.
pub fn describe(ordinal: usize) -> Result<String, CudaError> {
    facts(ordinal).map(|facts| one_line(&facts))
}

/// Whether products of numbers that were rounded to 8 bits read 8 bits on this device; where they do not, those numbers lie in 16.
pub fn multiplies_8_bits(ordinal: usize) -> Result<bool, CudaError> {
    facts(ordinal).map(|facts| fp8::runs_on(&facts))
}

/// The launches of each step of `program` on a device like `facts`, and the bytes of partial results between them. Nothing is asked of a
/// device.
///
/// # Errors
/// Where no kernel runs a step.
pub fn launches(program: &Program, facts: &Facts) -> Result<(Vec<usize>, usize), BackendError> {
    let plan = plan::plan(program, facts, &Choices::default(), &plan::Places::nowhere(program))?;
    Ok((plan.steps.iter().map(Vec::len).collect(), plan.scratch_bytes))
}

fn one_line(facts: &Facts) -> String {
    let (major, minor) = facts.capability;
    let image = image_for(facts.capability).unwrap_or("none");
    format!("{}, compute capability {major}.{minor}, kernels for {image}", facts.name)
}

/// Set where the tests of `backend` are to run on device 0 of the driver, which is then the stand-in.
#[cfg(test)]
pub(super) const THROUGH_THE_DRIVER: &str = "ADVISOR_TEST_THROUGH_THE_DRIVER";

/// A CUDA device.
pub struct Cuda {
    machine: Arc<dyn Machine>,
    choices: Arc<Choices>,
}

impl Cuda {
    /// # Errors
    /// Where there is no driver, no such device, or it cannot be opened.
    pub fn open(ordinal: usize) -> Result<Cuda, CudaError> {
        let machine = driver::Driver::open(ordinal)?;
        let choices = tune::load(tune::tuning_file().as_deref(), machine.facts());
        Ok(Cuda { machine: Arc::new(machine), choices: Arc::new(choices) })
    }

    /// The kernels on the CPU; `None` where there is no C++ compiler.
    #[cfg(test)]
    pub fn emulated(schedule: u32) -> Option<Cuda> {
        Some(Cuda { machine: Arc::new(emulated::Emulated::open(schedule)?), choices: Arc::default() })
    }
}

impl Backend for Cuda {
    fn describe(&self) -> String {
        let measured = match self.choices.0.len() {
            0 => String::new(),
            count => format!(", {count} measured choices of tiles"),
        };
        format!("cuda, {}{measured}", one_line(self.machine.facts()))
    }

    fn load(&self, program: Program, links: Option<Links>) -> Result<Box<dyn Session>, BackendError> {
        Ok(Box::new(session::CudaSession::load(program, self.machine.clone(), self.choices.clone(), links)?))
    }
}
