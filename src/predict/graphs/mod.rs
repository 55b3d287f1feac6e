//! Graphs of ours on GPUs that are not here.
//!
//! | file | what |
//! | --- | --- |
//! | `rates` | how fast kernels run ops, taken from the GPU that was measured to others |
//! | `law` | a step: ops, launches, exchanges, rows |
//! | `answer` | rows, front and pick of a plan |
//! | `score` | the law held against what was measured, and its fit |

mod answer;
mod law;
mod rates;
mod score;

pub use answer::{GraphQuestion, Uncounted, graph_answer, layouts_of};
pub use law::{GraphError, GraphLaw, GraphStep};
pub use rates::{KernelRates, OpKind, UnknownOp};
pub use score::{GraphCase, HeldOut, calibrated, errors, fit, held_out};
