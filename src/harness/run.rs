//! A run: candidates in groups, blocks of a group interleaved, every finished row on disk at once.
//!
//! A group is up to seven candidates and the phase's baseline. Each is prepared and warmed up in its own worker; then rounds follow, in
//! each of which every candidate has two blocks, in a fresh random order and back again (ABBA), so that a drift of the machine falls on
//! all alike. After each round a candidate that is known well enough stops. The baseline goes on through all groups of its phase and so
//! links them. Trainings of a group take turns as well, seed by seed.

use super::{
    protocol::{Described, Request, Response, Setup},
    worker::{Process, Ranks, Silence, Worker},
};
use crate::{
    data::DataSource,
    measure::CpuTimes,
    record::{
        Block, Candidate, Energy, LatencyTail, Line, Measurement, RateTable, RunEnd, RunHeader, RunRecord, Source, Status,
        StopCondition, StoredRun, TrainedSeed, TrainingOutcome, store,
    },
    stats::{self, Generator, StopRule, Verdict},
    units::{Joules, Seconds},
    vocab::{Compression, Metric, Phase, Quantization, Task},
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

/// Reason of a row whose ranks were processes of a launch while nothing worse is known: a process that dies ends the whole launch, this
/// one as well, and then the row stands. It is replaced as soon as the candidate ends in any other way, and tried again by `--resume`.
pub const ENDED_AMONG_RANKS: &str = "the run ended while this candidate's ranks were at work or waited for their turn: a process of an MPI \
                                     launch that dies takes all others with it";

/// How long and how precisely to measure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    pub block: Seconds,
    pub rule: StopRule,
    pub warm_up_least: Seconds,
    pub warm_up_most: Seconds,
    /// Length of the window in which a coarse energy counter is read.
    pub energy_window: Seconds,
}

impl Pace {
    /// At least twelve blocks of 0.08 s: six ABBA rounds are the fewest from which a paired sign-flip test can reach 0.05. Then until
    /// the standard error of the rate is 0.5 %, it stops improving, or there are 32.
    pub const FULL: Pace = Pace {
        block: Seconds(0.08),
        rule: StopRule { least: 12, most: 32, precision: 0.005 },
        warm_up_least: Seconds(0.2),
        warm_up_most: Seconds(1.5),
        energy_window: Seconds(2.5),
    };

    /// Six short blocks: enough to see that all works and which candidates are far apart.
    pub const QUICK: Pace = Pace {
        block: Seconds(0.02),
        rule: StopRule { least: 6, most: 6, precision: 0.005 },
        warm_up_least: Seconds(0.02),
        warm_up_most: Seconds(0.2),
        energy_window: Seconds(0.2),
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
    /// Processes of a launch: on them run candidates of several ranks.
    pub ranks: Option<&'a dyn Ranks>,
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
    #[error("`{}` was started with another scenario, mode, data, machine or version of this program: run without --resume, or give another --out", path.display())]
    OtherRun { path: PathBuf },
    #[error("cannot start `{} worker`: {source}", program.display())]
    Start { program: PathBuf, source: std::io::Error },
    #[error("cannot make the folder `{}`: {source}", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
}

/// Energy of the blocks in which it could be read.
#[derive(Clone, Copy, Default)]
struct Reading {
    total: f64,
    units: u64,
    window: f64,
}

/// A candidate with its worker and what it gave so far.
struct Live {
    candidate: Candidate,
    worker: Worker,
    blocks: Vec<Block>,
    energy: Option<Reading>,
    /// Seconds, steps, and whether their times were stable.
    warm_up: (f64, u64, bool),
    /// Trainings so far, in the order of their seeds.
    seeds: Vec<TrainedSeed>,
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

    fn kept_steps(&self) -> usize {
        self.blocks.iter().map(|block| block.step_s.len()).sum()
    }
}

/// What came of a request.
enum Answer {
    Given(Response),
    /// The run was told to stop.
    Interrupted,
    /// The worker is gone, with the reason.
    Lost(String),
}

/// Fewest steps from which p99 has an upper bound with 99 % confidence: 1 - 0.99^459 >= 0.99.
const STEPS_FOR_P99: usize = 459;

/// Longest that steps are timed for p99 alone.
const MOST_FOR_P99: Duration = Duration::from_secs(60);

/// How often a baseline that is lost is started again; it is what every other row is compared with.
const RESTARTS: u32 = 2;

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
        (log, StoredRun { header: job.header.clone(), records: vec![], seeds: vec![], warnings: vec![], end: None })
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

/// Reason of a row whose worker broke the protocol.
const OTHER_ANSWER: &str = "its worker answered another question";

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
        // A row that failed is tried again: the reason may be gone.
        let is_done = |run: &StoredRun, candidate: &Candidate| {
            let record = run.records.iter().find(|r| r.candidate.id() == candidate.id());
            record.is_some_and(|r| r.status != Status::Failed && r.reason.as_deref() != Some(OUT_OF_BUDGET))
        };
        let done = self.job.candidates.iter().filter(|c| is_done(&self.stored, c)).count();
        self.tell(Event::Planned { done, all: self.job.candidates.len() });
        if let Some(load) = self.job.header.environment.load_before {
            let cores = self.job.header.environment.logical_cores as f64;
            // Half of the cores busy with something else halves what some candidates get.
            if load > 0.5 * cores {
                self.warn(format!(
                    "the load average was {load:.1} on {cores} cores before the run: others were using the machine"
                ))?;
            }
        }
        let shared = self.job.header.environment.rates.iter().filter_map(RateTable::shared).reduce(f64::max);
        if let Some(share) = shared {
            self.warn(format!(
                "others took {:.0} % of the processor time while single ops were timed: predictions expect too little of this machine",
                100.0 * share
            ))?;
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
            Line::Seed(seed) => self.stored.seeds.push(*seed),
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

    /// The end of a candidate that cannot go on: its row, unless one with measurements stands already.
    fn lose(&mut self, candidate: &Candidate, reason: String) -> Result<(), HarnessError> {
        if self.find(candidate).is_some_and(|record| record.status == Status::Ok) {
            return self.warn(format!("`{}`: {reason}; its row holds what was timed before", candidate.title()));
        }
        self.finish(RunRecord::without_result(candidate.clone(), Status::Failed, reason))
    }

    fn skip_for_budget<'c>(&mut self, candidates: impl Iterator<Item = &'c Candidate>) -> Result<(), HarnessError> {
        for candidate in candidates {
            let is_open = |record: &RunRecord| record.reason.as_deref() == Some(ENDED_AMONG_RANKS);
            if self.find(candidate).is_none_or(is_open) {
                self.finish(RunRecord::without_result(candidate.clone(), Status::Skipped, OUT_OF_BUDGET.into()))?;
            }
        }
        Ok(())
    }

    /// Measures what remains of a phase. The baseline is measured again in a session that adds rows, as the link between sessions.
    fn phase(&mut self, baseline: &Candidate, remaining: Vec<Candidate>) -> Result<(), HarnessError> {
        let others: Vec<Candidate> = remaining.iter().filter(|c| c.id() != baseline.id()).cloned().collect();
        if baseline.phase == Phase::Infer && !self.time_is_up() && !self.share_weights(baseline, &remaining)? {
            return Ok(());
        }
        let mut anchor: Option<Live> = None;
        let mut groups: Vec<&[Candidate]> = others.chunks(GROUP).collect();
        if groups.is_empty() {
            groups.push(&[]);
        }
        for (number, group) in groups.iter().enumerate() {
            if self.time_is_up() {
                if !self.job.control.is_interrupted() {
                    let first = (number == 0).then_some(baseline);
                    self.skip_for_budget(first.into_iter().chain(groups[number..].iter().copied().flatten()))?;
                }
                return Ok(());
            }
            let (mut live, mut has_anchor) = self.prepare(anchor.take(), baseline, group)?;
            self.rounds(&mut live, &mut has_anchor, baseline)?;
            let mut live = live.into_iter();
            if has_anchor && let Some(mut first) = live.next() {
                // Written after every group with all its blocks so far: a kill later loses none of them.
                if self.complete(&mut first)? {
                    first.stop = None;
                    anchor = Some(first);
                }
            }
            for mut one in live {
                self.complete(&mut one)?;
            }
            if self.job.control.is_interrupted() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Times what p99 still needs, describes, and writes the row; false when the candidate failed or the run was interrupted.
    fn complete(&mut self, one: &mut Live) -> Result<bool, HarnessError> {
        let whole = self.tail(one)? && self.describe(one)?;
        if whole {
            let record = self.record(one);
            self.doubt(&record)?;
            self.finish(record)?;
        }
        Ok(whole)
    }

    /// A baseline that answers no better than a constant has learnt nothing, and nothing follows from its comparisons.
    fn doubt(&mut self, record: &RunRecord) -> Result<(), HarnessError> {
        let is_new = self.find(&record.candidate).is_none();
        if !is_new || !self.job.baselines.iter().any(|baseline| baseline.id() == record.candidate.id()) {
            return Ok(());
        }
        let labels = &self.job.header.test_labels;
        let mut counts = vec![0usize; self.job.header.classes.len()];
        labels.iter().for_each(|label| counts[*label as usize] += 1);
        let constant = counts.iter().copied().max().unwrap_or(0) as f64 / labels.len().max(1) as f64;
        let accuracy = record.quality.as_ref().and_then(|quality| quality.metrics.get(&Metric::Accuracy)).copied();
        match accuracy.filter(|accuracy| *accuracy <= constant) {
            Some(accuracy) => self.warn(format!(
                "`{}` has an accuracy of {accuracy:.4}, no more than always answering the most frequent class ({constant:.4}): it has \
                 learnt nothing, and accuracies that equal its own say nothing",
                record.candidate.title()
            )),
            None => Ok(()),
        }
    }

    /// Has the weights that inference candidates share made by processes of their own, so that no candidate's memory holds a training: those
    /// of all, then those of each compression for which training goes on. False when the first failed, for then every candidate would, or the
    /// run was interrupted; the others' failure is told by their own candidates.
    fn share_weights(&mut self, baseline: &Candidate, remaining: &[Candidate]) -> Result<bool, HarnessError> {
        let mut makers: Vec<&Candidate> = vec![baseline];
        // What is trained on for a candidate's weights beside what all share.
        let trained_on = |candidate: &Candidate| {
            let Compression { pruning, quantization } = candidate.compression;
            let aware = quantization.filter(|kind| matches!(kind, Quantization::Int8Aware { .. }));
            (pruning.filter(|pruning| pruning.is_tuned() || aware.is_some()), aware)
        };
        for candidate in remaining {
            let own = trained_on(candidate);
            if own != (None, None) && makers.iter().all(|maker| trained_on(maker) != own) {
                makers.push(candidate);
            }
        }
        for (number, maker) in makers.into_iter().enumerate() {
            if number > 0 && self.time_is_up() {
                return Ok(!self.job.control.is_interrupted());
            }
            self.tell(Event::Stage { candidate: maker.title(), stage: "training" });
            let mut one = self.start(maker)?;
            let setup = self.setup(maker);
            match self.ask(&mut one, &Request::Prepare(Box::new(setup)), PATIENCE) {
                Answer::Given(_) => {}
                Answer::Interrupted => return Ok(false),
                Answer::Lost(reason) if number == 0 => {
                    for candidate in remaining {
                        self.lose(candidate, reason.clone())?;
                    }
                    return Ok(false);
                }
                Answer::Lost(_) => {}
            }
        }
        Ok(true)
    }

    /// Asks a worker and counts the time that it was busy.
    fn ask(&mut self, one: &mut Live, request: &Request, limit: Duration) -> Answer {
        match one.worker.ask(request, limit, self.job.control) {
            Ok(response) => {
                self.busy += match &response {
                    Response::Prepared { busy_s }
                    | Response::Trained { busy_s, .. }
                    | Response::Warm { busy_s, .. }
                    | Response::Block { busy_s, .. }
                    | Response::Described { busy_s, .. } => *busy_s,
                    Response::Failed { .. } => 0.0,
                };
                Answer::Given(response)
            }
            Err(Silence::Interrupted) => Answer::Interrupted,
            Err(Silence::Failed(reason)) => Answer::Lost(reason),
        }
    }

    fn start(&mut self, candidate: &Candidate) -> Result<Live, HarnessError> {
        let program = self.job.program;
        let over_processes = candidate.layout.ranks() > 1;
        let worker = match self.job.ranks.filter(|_| over_processes) {
            Some(ranks) => {
                if self.find(candidate).is_none_or(|record| record.status != Status::Ok) {
                    let open = RunRecord::without_result(candidate.clone(), Status::Failed, ENDED_AMONG_RANKS.into());
                    self.append(Line::Candidate(Box::new(open)))?;
                }
                Worker::Ranks(ranks.start(candidate))
            }
            None => Worker::Process(
                Process::start(program).map_err(|source| HarnessError::Start { program: program.to_path_buf(), source })?,
            ),
        };
        Ok(Live {
            candidate: candidate.clone(),
            worker,
            blocks: Vec::new(),
            energy: None,
            warm_up: (0.0, 0, false),
            seeds: Vec::new(),
            // Times of an emulation are nobody's result: none are taken.
            stop: candidate.emulation().map(|_| StopCondition::TimeCap),
            described: None,
        })
    }

    fn setup(&self, candidate: &Candidate) -> Setup {
        let job = self.job;
        let environment = &job.header.environment;
        let baseline = job.baselines.iter().find(|baseline| baseline.phase == candidate.phase).unwrap_or(candidate);
        let on_cuda = baseline.device.is_cuda();
        Setup {
            candidate: candidate.clone(),
            task: job.task,
            model: job.header.model.clone(),
            data: job.data.clone(),
            search_from: job.search_from.clone(),
            train: job.header.train.clone(),
            primary_metric: job.header.primary_metric,
            checkpoints: job.folder.join("checkpoints"),
            reference_device: baseline.device,
            reference_threads: if on_cuda { 1 } else { environment.logical_cores },
            energy_window: job.pace.energy_window,
            balance: environment.rates(candidate).map(|(flops, bytes)| flops / bytes),
        }
    }

    /// Starts, trains and warms up the candidates of a group, and the baseline where `anchor` is none. Those that fail get their rows and
    /// are left out, as are those for which there is no time. The baseline comes first where the second answer is true.
    fn prepare(
        &mut self,
        anchor: Option<Live>,
        baseline: &Candidate,
        group: &[Candidate],
    ) -> Result<(Vec<Live>, bool), HarnessError> {
        let ready = usize::from(anchor.is_some());
        let mut live: Vec<Live> = anchor.into_iter().collect();
        let wanted: Vec<&Candidate> = (ready == 0).then_some(baseline).into_iter().chain(group).collect();
        for (at, candidate) in wanted.iter().enumerate() {
            // One at least, so that every session gets on.
            if at > 0 && self.time_is_up() {
                if !self.job.control.is_interrupted() {
                    self.skip_for_budget(wanted[at..].iter().copied())?;
                }
                break;
            }
            self.tell(Event::Stage { candidate: candidate.title(), stage: "preparing" });
            let mut one = self.start(candidate)?;
            let setup = self.setup(candidate);
            match self.ask(&mut one, &Request::Prepare(Box::new(setup)), PATIENCE) {
                Answer::Given(_) => live.push(one),
                Answer::Interrupted => return Ok((Vec::new(), false)),
                Answer::Lost(reason) => self.lose(candidate, reason)?,
            }
        }
        let whole = self.train(&mut live, ready)? && self.warm_up(&mut live, ready)?;
        if !whole {
            return Ok((Vec::new(), false));
        }
        let has_anchor = live.first().is_some_and(|first| first.candidate.id() == baseline.id());
        Ok((live, has_anchor))
    }

    /// Training candidates train every seed, one after another within a seed, in a fresh random order, so that a slow minute of the
    /// machine does not fall on one candidate's seeds alone. What an earlier session finished is taken from the log. False when
    /// interrupted.
    fn train(&mut self, live: &mut Vec<Live>, ready: usize) -> Result<bool, HarnessError> {
        if live.first().is_none_or(|one| one.candidate.phase != Phase::Train) {
            return Ok(true);
        }
        let train = self.job.header.train.clone();
        for seed in (0..train.seeds as u64).map(|k| train.first_seed + k) {
            let mut order: Vec<usize> = (ready..live.len()).collect();
            Generator::new(seed ^ u64::from(self.round) << 32).shuffle(&mut order);
            let mut lost = Vec::new();
            for at in order {
                let one = &mut live[at];
                let id = one.candidate.id();
                let known = self.stored.seeds.iter().find(|known| known.run.seed == seed && known.candidate.id() == id).cloned();
                if let Some(known) = known {
                    one.seeds.push(known);
                    continue;
                }
                (self.on_event)(Event::Stage { candidate: one.candidate.title(), stage: "training" });
                match self.ask(one, &Request::Train { seed }, PATIENCE) {
                    Answer::Given(Response::Trained { run, quality, .. }) => {
                        let trained = TrainedSeed { candidate: one.candidate.clone(), run: *run, quality: *quality };
                        one.seeds.push(trained.clone());
                        self.append(Line::Seed(Box::new(trained)))?;
                    }
                    Answer::Interrupted => return Ok(false),
                    Answer::Given(_) => lost.push((at, OTHER_ANSWER.to_string())),
                    Answer::Lost(reason) => lost.push((at, reason)),
                }
            }
            self.remove(live, lost)?;
        }
        Ok(true)
    }

    /// Candidates that are lost get their rows and leave.
    fn remove(&mut self, live: &mut Vec<Live>, mut lost: Vec<(usize, String)>) -> Result<(), HarnessError> {
        lost.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        for (at, reason) in lost {
            let one = live.remove(at);
            self.lose(&one.candidate, reason)?;
        }
        Ok(())
    }

    /// False when interrupted.
    fn warm_up(&mut self, live: &mut Vec<Live>, ready: usize) -> Result<bool, HarnessError> {
        let request = Request::WarmUp { least: self.job.pace.warm_up_least, most: self.job.pace.warm_up_most };
        let mut lost = Vec::new();
        for (at, one) in live.iter_mut().enumerate().skip(ready).filter(|(_, one)| one.candidate.emulation().is_none()) {
            self.tell(Event::Stage { candidate: one.candidate.title(), stage: "warming up" });
            match self.ask(one, &request, SHORT_PATIENCE) {
                Answer::Given(Response::Warm { steps, warm_up_s, stable, .. }) => one.warm_up = (warm_up_s, steps, stable),
                Answer::Interrupted => return Ok(false),
                Answer::Given(_) => lost.push((at, OTHER_ANSWER.to_string())),
                Answer::Lost(reason) => lost.push((at, reason)),
            }
        }
        self.remove(live, lost)?;
        Ok(true)
    }

    /// Interleaved rounds until every candidate is known well enough. The first of `live` is the baseline where `has_anchor`; a baseline
    /// that is lost is started again and keeps its blocks.
    fn rounds(&mut self, live: &mut Vec<Live>, has_anchor: &mut bool, baseline: &Candidate) -> Result<(), HarnessError> {
        let rule = self.job.pace.rule;
        let mut generator = Generator::new(u64::from(self.session) << 32 | u64::from(self.round) | 1 << 63);
        let first_round = self.round;
        let mut restarts = RESTARTS;
        loop {
            let waits = |one: &Live| one.stop.is_none();
            // Alone, the baseline goes on only until it has its own least number of blocks.
            let others_wait = live.iter().skip(usize::from(*has_anchor)).any(waits);
            let anchor_waits = *has_anchor && live.first().is_some_and(waits);
            if !others_wait && !anchor_waits {
                return Ok(());
            }
            let mut order: Vec<usize> = (0..live.len()).filter(|k| (*has_anchor && *k == 0) || live[*k].stop.is_none()).collect();
            generator.shuffle(&mut order);
            let sequence: Vec<usize> = order.iter().chain(order.iter().rev()).copied().collect();
            let mut lost: Vec<(usize, String)> = Vec::new();
            for (position, at) in sequence.into_iter().enumerate() {
                if lost.iter().any(|(gone, _)| *gone == at) {
                    continue;
                }
                match self.block(&mut live[at], position as u32) {
                    Answer::Given(_) => {}
                    Answer::Lost(reason) => lost.push((at, reason)),
                    Answer::Interrupted => {
                        // What was timed so far is a measurement when every rule's least is met, which `describe` cannot judge now.
                        live.clear();
                        return Ok(());
                    }
                }
            }
            self.round += 1;
            for (at, one) in live.iter_mut().enumerate() {
                if one.stop.is_none() || (*has_anchor && at == 0) {
                    one.stop = match rule.judge(&one.rates(self.session)) {
                        Verdict::Continue => None,
                        Verdict::Precise => Some(StopCondition::Precise),
                        Verdict::NoLongerImproving => Some(StopCondition::NoLongerImproving),
                        Verdict::Exhausted => Some(StopCondition::TimeCap),
                    };
                }
            }
            let gone = lost.iter().position(|(at, _)| *has_anchor && *at == 0).map(|k| lost.remove(k).1);
            self.remove(live, lost)?;
            if let Some(reason) = gone {
                let old = live.remove(0);
                let fresh = if restarts > 0 { self.restart(&old)? } else { None };
                restarts = restarts.saturating_sub(1);
                match fresh {
                    Some(fresh) => {
                        self.warn(format!("the baseline `{}` was started again: {reason}", baseline.title()))?;
                        live.insert(0, fresh);
                    }
                    None => {
                        // The others go on to their own ends; rows without a round in common with the baseline say so.
                        *has_anchor = false;
                        if old.described.is_some() {
                            let record = self.record(&old);
                            self.finish(record)?;
                        }
                        self.lose(baseline, reason)?;
                    }
                }
            }
            let rounds = f64::from(self.round - first_round);
            let expected =
                (rule.least as f64 / 2.0).max(rounds + live.iter().filter(|one| one.stop.is_none()).count().min(1) as f64);
            self.tell(Event::Progress { share: rounds / expected, candidates: live.len() });
        }
    }

    /// A new worker for a candidate that lost its own, with all that was measured before; `None` where that fails too.
    fn restart(&mut self, old: &Live) -> Result<Option<Live>, HarnessError> {
        let mut fresh = self.start(&old.candidate)?;
        let setup = self.setup(&old.candidate);
        if !matches!(self.ask(&mut fresh, &Request::Prepare(Box::new(setup)), PATIENCE), Answer::Given(_)) {
            return Ok(None);
        }
        fresh.blocks = old.blocks.clone();
        fresh.energy = old.energy;
        fresh.seeds = old.seeds.clone();
        fresh.described = old.described.clone();
        let request = Request::WarmUp { least: self.job.pace.warm_up_least, most: self.job.pace.warm_up_most };
        match self.ask(&mut fresh, &request, SHORT_PATIENCE) {
            Answer::Given(Response::Warm { steps, warm_up_s, stable, .. }) => fresh.warm_up = (warm_up_s, steps, stable),
            _ => return Ok(None),
        }
        Ok(Some(fresh))
    }

    /// Times one block.
    fn block(&mut self, one: &mut Live, position: u32) -> Answer {
        self.tell(Event::Stage { candidate: one.candidate.title(), stage: "timing" });
        let start = Seconds(self.start.elapsed().as_secs_f64());
        match self.ask(one, &Request::Block { target: self.job.pace.block }, SHORT_PATIENCE) {
            Answer::Given(Response::Block { step_s, steps, total_s, energy_j, machine_speed, busy_s }) => {
                if let Some(energy) = energy_j {
                    let reading = one.energy.get_or_insert_default();
                    reading.total += energy;
                    reading.units += steps * one.candidate.batch_size as u64;
                    reading.window += total_s;
                }
                let (session, round, total) = (self.session, self.round, Seconds(total_s));
                one.blocks.push(Block { session, round, position, start, step_s, steps, total, machine_speed });
                Answer::Given(Response::Prepared { busy_s })
            }
            Answer::Given(_) => Answer::Lost(OTHER_ANSWER.to_string()),
            other => other,
        }
    }

    /// Where a limit asks for p99: blocks of this candidate alone, until there are steps enough for it. False when it failed or the run
    /// was interrupted.
    fn tail(&mut self, one: &mut Live) -> Result<bool, HarnessError> {
        let is_served = one.candidate.phase == Phase::Infer || self.job.baselines.len() == 1;
        let is_limited = self.job.header.goal.constraints.max_latency_p99.is_some() && one.candidate.emulation().is_none();
        let start = Instant::now();
        while is_served && is_limited && one.kept_steps() < STEPS_FOR_P99 && start.elapsed() < MOST_FOR_P99 {
            self.round += 1;
            match self.block(one, 0) {
                Answer::Given(_) => {}
                Answer::Interrupted => return Ok(false),
                Answer::Lost(reason) => {
                    self.lose(&one.candidate, reason)?;
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Asks for everything but times; false when the candidate failed or the run was interrupted.
    fn describe(&mut self, one: &mut Live) -> Result<bool, HarnessError> {
        if one.described.is_some() {
            return Ok(true);
        }
        self.tell(Event::Stage { candidate: one.candidate.title(), stage: "judging" });
        match self.ask(one, &Request::Describe, SHORT_PATIENCE) {
            Answer::Given(Response::Described { described, .. }) => {
                one.described = Some(*described);
                Ok(true)
            }
            Answer::Interrupted => Ok(false),
            Answer::Given(_) => self.lose(&one.candidate, OTHER_ANSWER.to_string()).map(|()| false),
            Answer::Lost(reason) => self.lose(&one.candidate, reason).map(|()| false),
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
        // The processor's counters move about once a millisecond; below half a second of blocks their steps show.
        let of_blocks = one.energy.map(|reading| (reading, 0.5));
        let of_window = described.energy.map(|window| {
            let units = window.steps * one.candidate.batch_size as u64;
            (Reading { total: window.total_j, units, window: window.window_s }, window.least_s)
        });
        let energy = of_window.or(of_blocks).zip(described.energy_counter.clone()).map(|((reading, least), counter)| {
            let Reading { total, units, window } = reading;
            let reason = if total <= 0.0 {
                Some("the counter did not move".to_string())
            } else if window < least {
                Some(format!("only {window:.2} s were timed"))
            } else {
                None
            };
            Energy { total: Joules(total), window: Seconds(window), units, valid: reason.is_none(), reason, counter }
        });
        // The quality of a training candidate is that of its first seed, whose weights are named in the record.
        let quality = one.seeds.first().map(|seed| seed.quality.clone()).or(described.quality);
        let target = self.job.header.train.target.map(|target| target.at_least);
        let runs: Vec<_> = one.seeds.iter().map(|seed| seed.run.clone()).collect();
        let training = (!runs.is_empty()).then_some(TrainingOutcome { seeds: runs, target });
        let (warm_up, warm_up_steps, warm_up_stable) = one.warm_up;
        let record = RunRecord {
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
            quality,
            training,
            energy,
            peak_memory: described.peak_memory,
            model_size: described.model_size,
            flops_per_unit: described.flops_per_unit,
            bytes_per_unit: described.bytes_per_unit,
            profile: described.profile,
            further_stages: described.further_stages,
            input_bytes: Some(described.input_bytes),
            time_split: described.time_split,
            notes: described.notes,
            checkpoint: described.checkpoint,
        };
        record.without_emulated_speed()
    }
}
