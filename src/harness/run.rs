//! A run: candidates in groups, blocks of a group interleaved, every finished row on disk at once.
//!
//! A group is up to seven candidates and the phase's baseline. Each is prepared and warmed up in its own worker; then rounds follow, in
//! each of which every candidate has two blocks, in a fresh random order and back again (ABBA), so that a drift of the machine falls on
//! all alike. After each round a candidate that is known well enough stops. The baseline goes on through all groups of its phase and so
//! links them.

use super::{
    protocol::{Described, Request, Response, Setup},
    worker::{Silence, Worker},
};
use crate::{
    data::DataSource,
    measure::CpuTimes,
    record::{
        Block, Candidate, Energy, LatencyTail, Line, Measurement, RunEnd, RunHeader, RunRecord, Source, Status, StopCondition,
        StoredRun, TrainingOutcome, store,
    },
    stats::{self, Generator, StopRule, Verdict},
    units::{Joules, Seconds},
    vocab::{Phase, Task},
};
use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// Candidates of a group beside the baseline: eight idle processes fit any machine's memory, and a round of eight keeps pairs within
/// seconds of each other.
const GROUP: usize = 7;

/// Reason of a row that was not tried because the time was up; such rows are tried when the run is resumed.
pub const OUT_OF_BUDGET: &str = "the time of --budget was over";

/// How long and how precisely to measure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    pub block: Seconds,
    pub rule: StopRule,
    pub warm_up_least: Seconds,
    pub warm_up_most: Seconds,
}

impl Pace {
    /// At least twelve blocks of 0.08 s: six ABBA rounds are the fewest from which a paired sign-flip test can reach 0.05. Then until
    /// the standard error of the rate is 0.5 %, it stops improving, or there are 32.
    pub const FULL: Pace = Pace {
        block: Seconds(0.08),
        rule: StopRule { least: 12, most: 32, precision: 0.005 },
        warm_up_least: Seconds(0.2),
        warm_up_most: Seconds(1.5),
    };

    /// Six short blocks: enough to see that all works and which candidates are far apart.
    pub const QUICK: Pace = Pace {
        block: Seconds(0.02),
        rule: StopRule { least: 6, most: 6, precision: 0.005 },
        warm_up_least: Seconds(0.02),
        warm_up_most: Seconds(0.2),
    };
}

/// A wish to stop, from another thread.
#[derive(Debug, Default)]
pub struct Control {
    interrupted: AtomicBool,
}

impl Control {
    pub fn interrupt(&self) {
        self.interrupted.store(true, Ordering::Relaxed);
    }

    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

/// What to run and where to write it.
pub struct Job<'a> {
    /// Header of a new log; `--resume` holds it against the stored one.
    pub header: RunHeader,
    pub task: Task,
    pub data: DataSource,
    pub search_from: Vec<PathBuf>,
    pub candidates: Vec<Candidate>,
    /// Rows that are known beforehand not to be tried.
    pub skipped: Vec<RunRecord>,
    /// Of each phase, the candidate that all others are compared with.
    pub baselines: Vec<Candidate>,
    pub pace: Pace,
    /// Wall time after which no further group starts.
    pub budget: Option<Duration>,
    pub resume: bool,
    /// Folder of the scenario: `run.jsonl` and `checkpoints/` lie in it.
    pub folder: &'a Path,
    /// The program that is started as worker.
    pub program: &'a Path,
    pub control: &'a Control,
}

/// News of a run, for a progress bar or a log.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// `done` of `all` candidates were finished by an earlier session.
    Planned {
        done: usize,
        all: usize,
    },
    /// What a candidate is doing now.
    Stage {
        candidate: String,
        stage: &'static str,
    },
    /// Share of the current group's work that is done, in `[0, 1]`, and the candidates of the group.
    Progress {
        share: f64,
        candidates: usize,
    },
    /// Told again for the baseline, whose row grows with every group.
    Finished {
        id: String,
        candidate: String,
        status: Status,
        reason: Option<String>,
    },
    Warning(String),
}

#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    #[error(transparent)]
    Store(#[from] store::StoreError),
    #[error("`{}` was started with another scenario, mode or machine: run without --resume, or give another --out", path.display())]
    OtherRun { path: PathBuf },
    #[error("cannot start `{} worker`: {source}", program.display())]
    Start { program: PathBuf, source: std::io::Error },
    #[error("cannot make the folder `{}`: {source}", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
}

/// A prepared candidate with its worker and what it gave so far.
struct Live {
    candidate: Candidate,
    worker: Worker,
    blocks: Vec<Block>,
    energy: Option<Joules>,
    warm_up: (f64, u64, bool),
    training: Option<TrainingOutcome>,
    /// Set when enough was measured.
    stop: Option<StopCondition>,
    described: Option<Described>,
}

impl Live {
    /// Rates of the blocks that belong to one session, in order of time.
    fn rates(&self, session: u32) -> Vec<f64> {
        let of_session = self.blocks.iter().filter(|b| b.session == session);
        of_session.map(|b| b.rate(self.candidate.batch_size)).collect()
    }
}

/// Runs what is not yet in the log. Ends normally also when interrupted or out of budget; `RunEnd::ended` says which.
pub fn run(job: &Job, on_event: &mut dyn FnMut(Event)) -> Result<StoredRun, HarnessError> {
    let start = Instant::now();
    std::fs::create_dir_all(job.folder).map_err(|source| HarnessError::Folder { path: job.folder.to_path_buf(), source })?;
    let path = job.folder.join("run.jsonl");
    let (log, stored) = if job.resume && path.exists() {
        let (log, stored) = store::Log::resume(&path)?;
        if stored.header.config_hash != job.header.config_hash {
            return Err(HarnessError::OtherRun { path });
        }
        (log, stored)
    } else {
        let log = store::Log::create(&path, &job.header)?;
        (log, StoredRun { header: job.header.clone(), records: vec![], warnings: vec![], end: None })
    };
    let session = stored.records.iter().flat_map(|r| r.measurement.iter().flat_map(|m| &m.blocks)).map(|b| b.session + 1).max();
    let mut conductor =
        Conductor { job, log, stored, session: session.unwrap_or(0), round: 0, start, busy: 0.0, on_event, out_of_time: false };
    conductor.all()?;
    Ok(conductor.stored)
}

struct Conductor<'a, 'e> {
    job: &'a Job<'a>,
    log: store::Log,
    stored: StoredRun,
    session: u32,
    round: u32,
    start: Instant,
    /// Seconds in which a worker was busy with what it was asked.
    busy: f64,
    on_event: &'e mut dyn FnMut(Event),
    out_of_time: bool,
}

/// Longest that a worker may take for one request: a training of hours is possible, a hang is not waited for overnight.
const PATIENCE: Duration = Duration::from_secs(6 * 3600);

/// Longest that a block or a description may take.
const SHORT_PATIENCE: Duration = Duration::from_secs(600);

impl Conductor<'_, '_> {
    fn all(&mut self) -> Result<(), HarnessError> {
        let before = CpuTimes::read();
        for record in &self.job.skipped {
            if self.find(&record.candidate).is_none() {
                self.append(Line::Candidate(Box::new(record.clone())))?;
            }
        }
        let is_done = |run: &StoredRun, candidate: &Candidate| {
            let record = run.records.iter().find(|r| r.candidate.id() == candidate.id());
            record.is_some_and(|r| r.reason.as_deref() != Some(OUT_OF_BUDGET))
        };
        let done = self.job.candidates.iter().filter(|c| is_done(&self.stored, c)).count();
        self.tell(Event::Planned { done, all: self.job.candidates.len() });
        if let Some(load) = self.job.header.environment.load_before {
            let cores = self.job.header.environment.logical_cores as f64;
            // Half of the cores busy with something else halves what some candidates get.
            if load > 0.5 * cores && self.session == 0 {
                self.warn(format!(
                    "the load average was {load:.1} on {cores} cores before the run: others were using the machine"
                ))?;
            }
        }
        for baseline in &self.job.baselines {
            let remaining: Vec<Candidate> =
                self.job.candidates.iter().filter(|c| c.phase == baseline.phase && !is_done(&self.stored, c)).cloned().collect();
            if !remaining.is_empty() {
                self.phase(baseline, remaining)?;
            }
        }
        let steal = before.and_then(|before| CpuTimes::read()?.steal_share_since(&before));
        if let Some(share) = steal.filter(|share| *share > 0.01) {
            self.warn(format!("{:.1} % of the processor time went to other guests of this host during the run", 100.0 * share))?;
        }
        let wall = self.start.elapsed().as_secs_f64();
        let ended = match (self.job.control.is_interrupted(), self.out_of_time) {
            (true, _) => "interrupted",
            (_, true) => "budget",
            _ => "complete",
        };
        let overhead_share = ((wall - self.busy) / wall).max(0.0);
        let end = RunEnd { wall: Seconds(wall), overhead_share, ended: ended.to_string() };
        self.append(Line::End(end))
    }

    fn tell(&mut self, event: Event) {
        (self.on_event)(event);
    }

    fn warn(&mut self, text: String) -> Result<(), HarnessError> {
        self.tell(Event::Warning(text.clone()));
        self.append(Line::Warning { text })
    }

    fn find(&self, candidate: &Candidate) -> Option<&RunRecord> {
        self.stored.records.iter().find(|r| r.candidate.id() == candidate.id())
    }

    /// Writes a line to the disk and to the run in memory.
    fn append(&mut self, line: Line) -> Result<(), HarnessError> {
        self.log.append(&line)?;
        match line {
            Line::Candidate(record) => self.stored.accept(*record),
            Line::Warning { text } => self.stored.warnings.push(text),
            Line::End(end) => self.stored.end = Some(end),
            Line::Run(_) => {}
        }
        Ok(())
    }

    fn finish(&mut self, record: RunRecord) -> Result<(), HarnessError> {
        let event = Event::Finished {
            id: record.candidate.id(),
            candidate: record.candidate.title(),
            status: record.status,
            reason: record.reason.clone(),
        };
        self.append(Line::Candidate(Box::new(record)))?;
        self.tell(event);
        Ok(())
    }

    fn time_is_up(&mut self) -> bool {
        self.out_of_time |= self.job.budget.is_some_and(|budget| self.start.elapsed() >= budget);
        self.out_of_time || self.job.control.is_interrupted()
    }

    /// Measures what remains of a phase. The baseline is measured again in a session that adds rows, as the link between sessions.
    fn phase(&mut self, baseline: &Candidate, remaining: Vec<Candidate>) -> Result<(), HarnessError> {
        let others: Vec<Candidate> = remaining.into_iter().filter(|c| c.id() != baseline.id()).collect();
        let mut anchor: Option<Live> = None;
        let mut groups: Vec<&[Candidate]> = others.chunks(GROUP).collect();
        if groups.is_empty() {
            groups.push(&[]);
        }
        for (number, group) in groups.iter().enumerate() {
            if self.time_is_up() {
                if !self.job.control.is_interrupted() {
                    let left = groups[number..].iter().flat_map(|g| g.iter().cloned());
                    let unmeasured = (number == 0 && self.find(baseline).is_none()).then(|| baseline.clone());
                    for candidate in unmeasured.into_iter().chain(left) {
                        self.finish(RunRecord::without_result(candidate, Status::Skipped, OUT_OF_BUDGET.into()))?;
                    }
                }
                return Ok(());
            }
            let mut live: Vec<Live> = Vec::new();
            if anchor.is_none() {
                anchor = self.prepare(baseline)?;
            }
            live.extend(anchor.take());
            let has_anchor = !live.is_empty();
            for candidate in *group {
                live.extend(self.prepare(candidate)?);
            }
            self.rounds(&mut live, has_anchor)?;
            let mut live = live.into_iter();
            if has_anchor && let Some(mut first) = live.next() {
                // Written after every group with all its blocks so far: a kill later loses none of them.
                if self.describe(&mut first)? {
                    let record = self.record(&first);
                    self.finish(record)?;
                    first.stop = None;
                    anchor = Some(first);
                }
            }
            for mut one in live {
                if self.describe(&mut one)? {
                    let record = self.record(&one);
                    self.finish(record)?;
                }
            }
            if self.job.control.is_interrupted() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Asks a worker; a failure becomes the candidate's row. `None` where there is no answer.
    fn ask(
        &mut self,
        live: &mut (Candidate, Worker),
        request: &Request,
        limit: Duration,
    ) -> Result<Option<Response>, HarnessError> {
        match live.1.ask(request, limit, self.job.control) {
            Ok(response) => {
                self.busy += match &response {
                    Response::Prepared { busy_s }
                    | Response::Trained { busy_s, .. }
                    | Response::Warm { busy_s, .. }
                    | Response::Block { busy_s, .. }
                    | Response::Described { busy_s, .. } => *busy_s,
                    Response::Failed { .. } => 0.0,
                };
                Ok(Some(response))
            }
            Err(Silence::Interrupted) => Ok(None),
            Err(Silence::Failed(reason)) => {
                self.finish(RunRecord::without_result(live.0.clone(), Status::Failed, reason))?;
                Ok(None)
            }
        }
    }

    /// Starts a worker and brings it to the point where blocks can be timed. `None` when it failed or the run was interrupted.
    fn prepare(&mut self, candidate: &Candidate) -> Result<Option<Live>, HarnessError> {
        if self.job.control.is_interrupted() {
            return Ok(None);
        }
        let job = self.job;
        self.tell(Event::Stage { candidate: candidate.title(), stage: "preparing" });
        let worker =
            Worker::start(job.program).map_err(|source| HarnessError::Start { program: job.program.to_path_buf(), source })?;
        let mut pair = (candidate.clone(), worker);
        let environment = &job.header.environment;
        let balance = environment.peak_flops_per_core.zip(environment.copy_bytes_per_s);
        let setup = Setup {
            candidate: candidate.clone(),
            task: job.task,
            model: job.header.model.clone(),
            data: job.data.clone(),
            search_from: job.search_from.clone(),
            train: job.header.train.clone(),
            primary_metric: job.header.primary_metric,
            checkpoints: job.folder.join("checkpoints"),
            all_threads: environment.logical_cores,
            balance: balance.map(|(flops, bytes)| flops * candidate.threads.min(environment.physical_cores) as f64 / bytes),
        };
        if self.ask(&mut pair, &Request::Prepare(Box::new(setup)), PATIENCE)?.is_none() {
            return Ok(None);
        }
        let mut training = None;
        // The quality of a training candidate is that of its first seed, whose weights are named in the record.
        let mut first_quality = None;
        if candidate.phase == Phase::Train {
            let train = &job.header.train;
            let mut seeds = Vec::new();
            for seed in (0..train.seeds as u64).map(|k| train.first_seed + k) {
                self.tell(Event::Stage { candidate: candidate.title(), stage: "training" });
                match self.ask(&mut pair, &Request::Train { seed }, PATIENCE)? {
                    Some(Response::Trained { run, quality, .. }) => {
                        first_quality.get_or_insert(*quality);
                        seeds.push(*run);
                    }
                    _ => return Ok(None),
                }
            }
            training = Some(TrainingOutcome { seeds, target: train.target.map(|t| t.at_least) });
        }
        self.tell(Event::Stage { candidate: candidate.title(), stage: "warming up" });
        let request = Request::WarmUp { least: job.pace.warm_up_least, most: job.pace.warm_up_most };
        let Some(Response::Warm { steps, warm_up_s, stable, .. }) = self.ask(&mut pair, &request, SHORT_PATIENCE)? else {
            return Ok(None);
        };
        let described = first_quality.map(|quality| Described {
            quality: Some(quality),
            peak_memory: None,
            model_size: None,
            flops_per_unit: None,
            bytes_per_unit: None,
            profile: Vec::new(),
            time_split: None,
            notes: Vec::new(),
            checkpoint: None,
            energy_counter: None,
        });
        let (candidate, worker) = pair;
        Ok(Some(Live {
            candidate,
            worker,
            blocks: Vec::new(),
            energy: None,
            warm_up: (warm_up_s, steps, stable),
            training,
            stop: None,
            described,
        }))
    }

    /// Interleaved rounds until every candidate is known well enough. The first of `live` is the baseline where `has_anchor`.
    fn rounds(&mut self, live: &mut Vec<Live>, has_anchor: bool) -> Result<(), HarnessError> {
        let rule = self.job.pace.rule;
        let mut generator = Generator::new(u64::from(self.session) << 32 | u64::from(self.round) | 1 << 63);
        let first_round = self.round;
        loop {
            let waits = |one: &Live| one.stop.is_none();
            // Alone, the baseline goes on only until it has its own least number of blocks.
            let others_wait = live.iter().skip(usize::from(has_anchor)).any(waits);
            let anchor_waits = has_anchor && live.first().is_some_and(waits);
            if !others_wait && !anchor_waits {
                return Ok(());
            }
            let mut order: Vec<usize> = (0..live.len()).filter(|k| (has_anchor && *k == 0) || live[*k].stop.is_none()).collect();
            generator.shuffle(&mut order);
            let sequence: Vec<usize> = order.iter().chain(order.iter().rev()).copied().collect();
            let mut lost: Vec<usize> = Vec::new();
            for (position, at) in sequence.into_iter().enumerate() {
                if self.job.control.is_interrupted() {
                    // What was timed so far is a measurement when every rule's least is met, which `describe` cannot judge now.
                    live.clear();
                    return Ok(());
                }
                if !lost.contains(&at) && !self.block(&mut live[at], position as u32)? {
                    lost.push(at);
                }
            }
            self.round += 1;
            for (at, one) in live.iter_mut().enumerate() {
                if one.stop.is_none() || (has_anchor && at == 0) {
                    one.stop = match rule.judge(&one.rates(self.session)) {
                        Verdict::Continue => None,
                        Verdict::Precise => Some(StopCondition::Precise),
                        Verdict::NoLongerImproving => Some(StopCondition::NoLongerImproving),
                        Verdict::Exhausted => Some(StopCondition::TimeCap),
                    };
                }
            }
            lost.sort_unstable();
            if has_anchor && lost.first() == Some(&0) {
                // Without the link the others still have their own times; their rows say that the comparison is missing.
                live.iter_mut().skip(1).for_each(|one| one.stop = one.stop.or(Some(StopCondition::TimeCap)));
                lost.into_iter().rev().for_each(|at| drop(live.remove(at)));
                return Ok(());
            }
            lost.into_iter().rev().for_each(|at| drop(live.remove(at)));
            let rounds = f64::from(self.round - first_round);
            let expected =
                (rule.least as f64 / 2.0).max(rounds + live.iter().filter(|one| one.stop.is_none()).count().min(1) as f64);
            self.tell(Event::Progress { share: rounds / expected, candidates: live.len() });
        }
    }

    /// Times one block; false when the candidate failed.
    fn block(&mut self, one: &mut Live, position: u32) -> Result<bool, HarnessError> {
        self.tell(Event::Stage { candidate: one.candidate.title(), stage: "timing" });
        let start = Seconds(self.start.elapsed().as_secs_f64());
        let request = Request::Block { target: self.job.pace.block };
        let answer = one.worker.ask(&request, SHORT_PATIENCE, self.job.control);
        match answer {
            Ok(Response::Block { step_s, steps, total_s, energy_j, busy_s }) => {
                self.busy += busy_s;
                if let Some(energy) = energy_j {
                    one.energy = Some(Joules(one.energy.map_or(0.0, |e| e.0) + energy));
                }
                let total = Seconds(total_s);
                one.blocks.push(Block { session: self.session, round: self.round, position, start, step_s, steps, total });
                Ok(true)
            }
            Ok(_) => {
                let reason = "its worker answered another question".to_string();
                self.finish(RunRecord::without_result(one.candidate.clone(), Status::Failed, reason))?;
                Ok(false)
            }
            Err(Silence::Interrupted) => Ok(false),
            Err(Silence::Failed(reason)) => {
                self.finish(RunRecord::without_result(one.candidate.clone(), Status::Failed, reason))?;
                Ok(false)
            }
        }
    }

    /// Asks for everything but times; false when the candidate failed or the run was interrupted.
    fn describe(&mut self, one: &mut Live) -> Result<bool, HarnessError> {
        let known = one.described.as_ref().is_some_and(|d| !d.profile.is_empty());
        if known {
            return Ok(true);
        }
        self.tell(Event::Stage { candidate: one.candidate.title(), stage: "judging" });
        match one.worker.ask(&Request::Describe, SHORT_PATIENCE, self.job.control) {
            Ok(Response::Described { described, busy_s }) => {
                self.busy += busy_s;
                let trained = one.described.take().and_then(|d| d.quality);
                let mut described = *described;
                described.quality = trained.or(described.quality);
                one.described = Some(described);
                Ok(true)
            }
            Ok(_) | Err(Silence::Interrupted) => Ok(false),
            Err(Silence::Failed(reason)) => {
                self.finish(RunRecord::without_result(one.candidate.clone(), Status::Failed, reason))?;
                Ok(false)
            }
        }
    }

    fn record(&self, one: &Live) -> RunRecord {
        let described = one.described.clone().expect("described before it is recorded");
        // Blocks that an earlier session wrote stay: they link the rows of that session.
        let earlier = self.find(&one.candidate).and_then(|r| r.measurement.clone());
        let earlier_blocks = earlier.iter().flat_map(|m| &m.blocks).filter(|b| b.session != self.session);
        let blocks: Vec<Block> = earlier_blocks.chain(&one.blocks).cloned().collect();
        let steps: Vec<f64> = blocks.iter().flat_map(|b| &b.step_s).copied().collect();
        let latency_p99 = stats::quantile_upper_bound(&steps, 0.99, 0.99)
            .map(|bound| LatencyTail { bound: Seconds(bound), steps: steps.len() as u64 });
        let units: u64 = one.blocks.iter().map(|b| b.steps * one.candidate.batch_size as u64).sum();
        let window: f64 = one.blocks.iter().map(|b| b.total.0).sum();
        let energy = one.energy.zip(described.energy_counter.clone()).map(|(total, counter)| {
            // The counters move about once a millisecond; below half a second of blocks their steps show.
            let reason = if total.0 <= 0.0 {
                Some("the counter did not move".to_string())
            } else if window < 0.5 {
                Some(format!("only {window:.2} s were timed"))
            } else {
                None
            };
            Energy { total, window: Seconds(window), units, valid: reason.is_none(), reason, counter }
        });
        let (warm_up, warm_up_steps, warm_up_stable) = one.warm_up;
        RunRecord {
            candidate: one.candidate.clone(),
            status: Status::Ok,
            reason: None,
            source: Source::Measured,
            measurement: Some(Measurement {
                blocks,
                warm_up: Seconds(warm_up),
                warm_up_steps,
                warm_up_stable,
                stop: one.stop.unwrap_or(StopCondition::TimeCap),
                latency_p99,
            }),
            quality: described.quality,
            training: one.training.clone(),
            energy,
            peak_memory: described.peak_memory,
            model_size: described.model_size,
            flops_per_unit: described.flops_per_unit,
            bytes_per_unit: described.bytes_per_unit,
            profile: described.profile,
            time_split: described.time_split,
            notes: described.notes,
            checkpoint: described.checkpoint,
        }
    }
}
