//! What a training takes on machines that are not here: time and memory of a step from the shape of the model, the layout and the machine.
//!
//! Physical where physics says enough (operations, bytes, messages, schedules), fitted where it does not: a few shares of a peak that a
//! generation of chips and a software stack sustain (`parameters`). docs/plan.md has the formulas with their sources.
//!
//! On top of it the answer to a plan:
//!
//! | file | what |
//! | --- | --- |
//! | `plan_file`, `plan_shape` | the file that asks |
//! | `question` | from names to shapes, machines and prices |
//! | `search`, `landscape` | the best layouts, exact |
//! | `price`, `resilience`, `spot` | what an hour costs, what failures add, and spares for machines that are taken away |
//! | `answer`, `training`, `serving` | rows, front, pick |
//! | `sensitivity` | which assumption moves the answer |
//! | `graphs` | graphs of ours instead of a transformer's shape |
//! | `ranking` | whether layouts that people chose are predicted to be fast |
//! | `trust` | the held-out error beside every answer |

mod answer;
pub mod calibrate;
mod collective;
mod domain;
mod gemm;
pub mod graphs;
mod landscape;
mod layout;
mod local;
mod memory;
mod models;
mod parameters;
mod plan_file;
mod plan_shape;
mod price;
mod question;
pub mod ranking;
mod recipes;
mod resilience;
pub mod score;
mod search;
mod sensitivity;
pub mod serve;
mod serving;
mod spot;
mod step;
pub mod tables;
mod training;
mod transformer;
mod trust;

pub use answer::{
    Alike, Answer, Breach, DraftFigures, GraphFigures, HOURS_PER_MONTH, LayoutFigures, Market, Refusal, Row, ServeFigures,
    SpotFigures, Swing, SwingEnd, TrainFigures, Trust, WorkFigures, binding, changed_by, hold_against, rank, thousands,
};
pub use collective::{Group, Links};
pub use domain::Domain;
pub use gemm::Rate;
pub use landscape::Site;
pub use layout::{Dispatch, Graphs, Layout, LayoutError, Modules, Options, Recompute, Sharding, Stack, Task, TrainingPrecision};
pub use local::{
    LOCAL_PARTS, LocalAssumption, LocalFactors, LocalRates, StepPrediction, local_assumptions, local_parts, predict_record,
    predict_record_with, slowdown,
};
pub use memory::{Again, Held, Memory};
pub use models::{MODEL, ModelBook, read_model};
pub use parameters::{GENERATION_KNOBS, Knob, OfGeneration, OfStack, Parameters, Place, STACK_KNOBS};
pub use plan_file::{
    ExpertWords, GpuCounts, GraphWork, Known, LayoutLimits, Limits, MachineWords, ModelWords, Operation, Plan, PlanObjective,
    PriceWords, ServeWork, TrainWork, Work, count_words,
};
pub use plan_shape::schema as plan_schema;
pub use price::{GpuPrice, Names, gpu_price, gpu_prices};
pub use question::{Books, PlanError, answer_plan, transformer_of};
pub use resilience::{Interruptions, WallTime};
pub use search::{Arrangement, Counts, Found, Landscape, Outcome, Schedule, Space, Verdict, enumerate, search};
pub use serving::{ServingQuestion, serving_answer};
pub use spot::Pool;
pub use step::{StepEstimate, Sustained, TimeSplit, training_step, training_step_on};
pub use training::{TrainingQuestion, gpus_per_machine, training_answer};
pub use transformer::{Attention, Dense, Experts, Latent, Linear, Recurrent, RecurrentKind, Transformer, seen_causally};
pub use trust::{ServingTrust, TrainingTrust};
