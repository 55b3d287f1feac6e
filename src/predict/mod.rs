//! What a training takes on machines that are not here: time and memory of a step from the shape of the model, the layout and the machine.
//!
//! Physical where physics says enough (operations, bytes, messages, schedules), fitted where it does not: a few shares of a peak that a
//! generation of chips and a software stack sustain (`parameters`). docs/plan.md has the formulas with their sources.

pub mod calibrate;
mod collective;
mod domain;
mod gemm;
mod layout;
mod memory;
mod models;
mod parameters;
pub mod score;
mod step;
pub mod tables;
mod transformer;

pub use collective::{Group, Links};
pub use domain::Domain;
pub use gemm::Rate;
pub use layout::{Layout, LayoutError, Recompute, Sharding, Stack, Task, TrainingPrecision};
pub use memory::{Held, Memory};
pub use models::{MODEL, ModelBook, read_model};
pub use parameters::{GENERATION_KNOBS, Knob, OfGeneration, OfStack, Parameters, Place, STACK_KNOBS};
pub use step::{StepEstimate, Sustained, TimeSplit, training_step, training_step_on};
pub use transformer::{Attention, Dense, Experts, Latent, Linear, Recurrent, RecurrentKind, Transformer, seen_causally};
