//! What a run shows while it goes: a bar on a terminal, plain lines elsewhere. All on standard error.

use crate::{harness::Event, record::Status};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    collections::HashSet,
    io::IsTerminal,
    time::{Duration, Instant},
};

/// Parts of a candidate that the bar can show.
const PARTS: u64 = 100;

/// Between two plain lines about the same stage.
const PLAIN_PAUSE: Duration = Duration::from_secs(10);

pub struct Progress {
    scenario: String,
    bar: Option<ProgressBar>,
    all: usize,
    done: usize,
    started: Instant,
    done_before: usize,
    /// Ids of the candidates that this session finished.
    finished: HashSet<String>,
    last_line: Instant,
}

impl Progress {
    pub fn new(scenario: &str) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(PARTS), ProgressDrawTarget::stderr());
            let colour = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
            let shape = if colour { "{bar:24.cyan}" } else { "{bar:24}" };
            let template = format!("{{prefix}} {shape} {{msg}}");
            bar.set_style(ProgressStyle::with_template(&template).expect("a valid template").progress_chars("=> "));
            bar.set_prefix(scenario.to_string());
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        let now = Instant::now();
        Progress {
            scenario: scenario.to_string(),
            bar,
            all: 0,
            done: 0,
            started: now,
            done_before: 0,
            finished: HashSet::new(),
            last_line: now,
        }
    }

    /// Remaining time, from the candidates finished in this session.
    fn remaining(&self) -> String {
        let finished = self.done - self.done_before;
        if finished == 0 {
            return String::new();
        }
        let each = self.started.elapsed().as_secs_f64() / finished as f64;
        let left = crate::units::Seconds((each * (self.all - self.done) as f64).round().max(1.0));
        format!(", about {left} left")
    }

    pub fn on(&mut self, event: &Event) {
        match event {
            Event::Planned { done, all } => {
                (self.all, self.done, self.done_before) = (*all, *done, *done);
                if let Some(bar) = &self.bar {
                    bar.set_length(*all as u64 * PARTS);
                    bar.set_position(*done as u64 * PARTS);
                } else if *done > 0 {
                    eprintln!("{}: {done} of {all} candidates were measured before", self.scenario);
                } else {
                    eprintln!("{}: {all} candidates", self.scenario);
                }
            }
            Event::Stage { candidate, stage } => {
                let text = format!("{}/{} {stage} {candidate}{}", self.done, self.all, self.remaining());
                match &self.bar {
                    Some(bar) => bar.set_message(text),
                    None if self.last_line.elapsed() > PLAIN_PAUSE => {
                        self.last_line = Instant::now();
                        eprintln!("{}: {text}", self.scenario);
                    }
                    None => {}
                }
            }
            Event::Progress { share, candidates } => {
                if let Some(bar) = &self.bar {
                    // Timing is about half of a candidate's work; the other half counts when it is finished.
                    let parts = share.min(1.0) * *candidates as f64 * PARTS as f64 * 0.5;
                    bar.set_position(self.done as u64 * PARTS + parts as u64);
                }
            }
            Event::Finished { id, candidate, status, reason } => {
                if *status != Status::Skipped && self.finished.insert(id.clone()) {
                    self.done = (self.done + 1).min(self.all);
                }
                if let Some(bar) = &self.bar {
                    bar.set_position(self.done as u64 * PARTS);
                }
                if *status == Status::Failed {
                    self.say(&format!("failed: {candidate}: {}", reason.as_deref().unwrap_or("no reason was given")));
                }
            }
            Event::Warning(text) => self.say(&format!("warning: {text}")),
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{}: {text}", self.scenario)),
            None => eprintln!("{}: {text}", self.scenario),
        }
    }

    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
