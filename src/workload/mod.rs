//! Workloads: a task with its unit, and the work that one worker process does for it. One file each; this table lists them.

mod classification;
mod time_split;

use crate::{
    harness::{Request, Response, Work},
    vocab::Task,
};

/// A kind of work.
pub struct Workload {
    pub task: Task,
    /// What one row is, in tables and sentences.
    pub unit: &'static str,
    open: fn() -> Box<dyn Work>,
}

pub const WORKLOADS: &[Workload] = &[
    Workload { task: Task::ImageClassification, unit: "image", open: || Box::new(classification::Bench::default()) },
    Workload { task: Task::TextClassification, unit: "text", open: || Box::new(classification::Bench::default()) },
];

/// The workload of a task.
pub fn find(task: Task) -> &'static Workload {
    WORKLOADS.iter().find(|w| w.task == task).expect("every task has its workload: tested")
}

/// A worker that becomes whatever its first request asks for.
#[derive(Default)]
pub struct AnyWork(Option<Box<dyn Work>>);

impl Work for AnyWork {
    fn answer(&mut self, request: Request) -> Result<Response, String> {
        if let Request::Prepare(setup) = &request {
            self.0 = Some((find(setup.task).open)());
        }
        self.0.as_mut().ok_or("the first request must be `prepare`")?.answer(request)
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
