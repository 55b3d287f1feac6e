//! Workloads: a task with its unit, and the work that one worker does for it. One file each; this table lists them. `ranks` is for workers
//! that are ranks of a launch.

mod classification;
mod programs;
mod ranks;
mod time_split;

pub use programs::{Counted, Rows, counted, counted_on_gpu};
pub use ranks::{Leader, serve_ranks};

use crate::{
    comm::Place,
    harness::{Request, Response, Work},
    vocab::Task,
};

/// A kind of work.
pub struct Workload {
    pub task: Task,
    /// What one row is, in tables and sentences.
    pub unit: &'static str,
    open: fn(Place) -> Box<dyn Work>,
}

pub const WORKLOADS: &[Workload] = &[
    Workload { task: Task::ImageClassification, unit: "image", open: |place| Box::new(classification::Bench::at(place)) },
    Workload { task: Task::TextClassification, unit: "text", open: |place| Box::new(classification::Bench::at(place)) },
];

/// The workload of a task.
pub fn find(task: Task) -> &'static Workload {
    WORKLOADS.iter().find(|w| w.task == task).expect("every task has its workload: tested")
}

/// A worker that becomes whatever its first request asks for.
#[derive(Default)]
pub struct AnyWork {
    place: Place,
    work: Option<Box<dyn Work>>,
}

impl AnyWork {
    /// With its ranks where `place` says.
    pub fn at(place: Place) -> AnyWork {
        AnyWork { place, work: None }
    }
}

impl Work for AnyWork {
    fn answer(&mut self, request: Request) -> Result<Response, String> {
        if let Request::Prepare(setup) = &request {
            self.work = Some((find(setup.task).open)(self.place.clone()));
        }
        self.work.as_mut().ok_or("the first request must be `prepare`")?.answer(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::Vocabulary;

    #[test]
    fn every_task_has_its_workload() {
        assert!(Task::WORDS.iter().all(|word| WORKLOADS.iter().any(|w| w.task == word.value)));
    }
}
