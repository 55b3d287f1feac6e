//! `advisor run`: measure scenarios and recommend.

use super::{Exit, progress::Progress, rates};
use crate::{
    backend::cuda,
    comm::{Launch, Process},
    cost::PriceBook,
    data::DataSet,
    harness::{self, Control, HarnessError, Job, Pace, Ranks},
    input::render,
    measure::{RateCase, environment, gpus, measure_gpu},
    record::{
        Candidate, Environment, Gpu, Processes, RunHeader, SCHEMA_VERSION, StoredRun, TrainConfig, Workers, store::StoreError,
    },
    scenario::{Known, Machine, Scenario},
    vocab::Device,
    workload::{self, Leader, counted},
};
use anyhow::Context;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// Measure scenarios on this machine and recommend
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  advisor run scenarios/*.toml\n  advisor run scenarios/small-digits.toml --quick --out /tmp/first-look\n  \
                        advisor run scenarios/*.toml --budget 5m\n  advisor run scenarios/*.toml --resume\n  \
                        mpirun -n 4 advisor run scenarios/*.toml\n\n\
                        Ctrl-C stops after the current step; --resume goes on. Exit codes: 0 done; 1 nothing meets every limit;\n\
                        2 wrong input; 4 the machine failed; 5 finished, but some candidates failed; 130 stopped by Ctrl-C."
)]
pub struct Args {
    /// Scenario files
    #[arg(required = true, value_name = "SCENARIO.toml")]
    scenarios: Vec<PathBuf>,
    /// Folder for the reports
    #[arg(long, value_name = "DIR", default_value = "reports")]
    out: PathBuf,
    /// One epoch, one seed, short blocks: a rough answer in a minute or two
    #[arg(long)]
    quick: bool,
    /// Go on with an interrupted run: what is finished is kept
    #[arg(long)]
    resume: bool,
    /// Start no further candidates after this time (`90s`, `5m`, `1h`)
    #[arg(long, value_name = "TIME", value_parser = duration)]
    budget: Option<Duration>,
    /// Price book instead of the shipped one (see `advisor prices import`)
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// Run on this device (`auto`, `cpu`, `cuda`, `cuda:1`) in place of those that the scenarios name
    #[arg(long, value_name = "DEVICE", value_parser = super::device)]
    device: Option<Device>,
    /// Predict nothing beside what is measured, and do not time single ops for it, which takes half a minute or more, once for each number of threads
    #[arg(long)]
    no_predictions: bool,
    /// Print the recommendations as JSON instead of tables
    #[arg(long)]
    json: bool,
}

/// `90s`, `5m`, `1.5h`, or seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let (digits, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    let factor = match unit {
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("unknown unit `{unit}`: expected s, m or h")),
    };
    let seconds = digits.parse::<f64>().map_err(|_| "expected a number with s, m or h, like `5m`".to_string())? * factor;
    Duration::try_from_secs_f64(seconds).map_err(|_| "expected a time from 0 s on".to_string())
}

/// A scenario with its data looked at and its header written.
struct Planned {
    scenario: Scenario,
    set: Arc<DataSet>,
    job_header: RunHeader,
    machine: Machine,
}

/// Started alone, or as one of several processes of a launch: then rank 0 is the run, and the others serve it.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let Some(launch) = Launch::of_this_process() else { return measure_all(args, None) };
    let Some(world) = super::join(&launch) else { return Ok(Exit::MachineFailed) };
    if world.rank() > 0 {
        workload::serve_ranks(world);
        return Ok(Exit::Done);
    }
    let leader = Leader::new(world).context("cannot start a thread")?;
    let exit = measure_all(args, Some(&leader));
    leader.end(exit.as_ref().map_or(Exit::MachineFailed as i32, |exit| *exit as i32));
    exit
}

fn measure_all(args: &Args, leader: Option<&Leader>) -> anyhow::Result<Exit> {
    let start = Instant::now();
    let book = match super::prices::book(args.prices.as_deref()) {
        Ok(book) => book,
        Err(error) => {
            eprintln!("error: {error:#}");
            return Ok(Exit::WrongInput);
        }
    };
    let Some(mut scenarios) = load(&args.scenarios, &book) else { return Ok(Exit::WrongInput) };
    if let Some(device) = args.device {
        scenarios.iter_mut().for_each(|scenario| scenario.grid.devices = vec![device]);
    }
    let world = leader.map(Leader::world);
    let processes = world.map(|world| Processes { library: world.library().to_string(), hosts: world.hosts().to_vec() });
    let environment = Environment { processes, ..environment() };
    let mut gpus = gpus();
    let cores_of_processes = world.map_or_else(Vec::new, |world| (1..=world.size()).map(|ranks| world.cores(ranks)).collect());
    let devices_of_processes = world.map_or_else(Vec::new, |world| world.processes().iter().map(devices_from).collect());
    let machine =
        Machine { cores: environment.logical_cores, cuda_devices: gpus.len(), cores_of_processes, devices_of_processes };
    for scenario in &scenarios {
        if !scenario.grid.devices.iter().any(|device| machine.can_use(*device)) {
            let reason = cuda::device_count().err().map(|error| format!(": {error}")).unwrap_or_default();
            eprintln!(
                "error: `{}` wants a device that this machine does not have{reason}\nhint: `device = \"auto\"` or `--device cpu` uses what is there; `advisor doctor` shows it",
                scenario.path.display()
            );
            return Ok(Exit::MachineFailed);
        }
    }
    let used =
        scenarios.iter().flat_map(|scenario| scenario.expand(&machine).candidates).filter_map(|c| last_gpu(&c, &machine)).max();
    gpus.truncate(used.map_or(0, |last| last + 1));
    for (ordinal, gpu) in gpus.iter_mut().enumerate() {
        if let Err(reason) = measure_gpu(gpu, ordinal) {
            eprintln!("error: CUDA device {ordinal} ({}) cannot be used: {reason}", gpu.name);
            return Ok(Exit::MachineFailed);
        }
    }
    let environment = Environment { gpus: gpus.clone(), ..environment };
    let mut planned = Vec::new();
    for scenario in scenarios {
        match plan(scenario, args, &environment, &machine, &gpus, &book) {
            Ok(one) => planned.push(one),
            Err(error) => {
                eprintln!("error: {error:#}");
                return Ok(Exit::WrongInput);
            }
        }
    }
    if !(args.no_predictions || rates::are_unwanted()) {
        rate(&mut planned, &environment)?;
    }
    let control = Arc::new(Control::default());
    let heard = control.clone();
    ctrlc::set_handler(move || {
        if heard.is_interrupted() {
            // A second Ctrl-C means now; finished rows are on disk.
            std::process::exit(INTERRUPTED);
        }
        heard.interrupt();
    })
    .context("cannot listen for Ctrl-C")?;
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut runs: Vec<StoredRun> = Vec::new();
    let mut failure = None;
    for one in &planned {
        let left = args.budget.map(|budget| budget.saturating_sub(start.elapsed()));
        match measure(one, args, left, &program, leader, &control) {
            Ok(run) => runs.push(run),
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
        if control.is_interrupted() {
            break;
        }
    }
    // Rows that exist are worth a report, also of a run that was stopped or that failed later.
    let exit = match &failure {
        Some(_) if runs.is_empty() => Exit::Done,
        _ => super::report::publish(&args.out, &runs, &book, args.json)?,
    };
    if let Some(error) = failure {
        eprintln!("error: {error}");
        return Ok(match error {
            HarnessError::OtherRun { .. }
            | HarnessError::Store(StoreError::Broken { .. } | StoreError::Empty { .. } | StoreError::Version { .. }) => {
                Exit::WrongInput
            }
            _ => Exit::MachineFailed,
        });
    }
    if control.is_interrupted() {
        eprintln!("stopped; go on with: {} --resume", command(args).trim_end_matches(" --resume"));
        std::process::exit(INTERRUPTED);
    }
    if runs.iter().any(|run| run.end.as_ref().is_some_and(|end| end.ended == "budget")) {
        eprintln!("the budget ended before all candidates were measured; go on with: {} --resume", without_budget(args));
    }
    Ok(exit)
}

/// 128 + SIGINT, as shells expect.
const INTERRUPTED: i32 = 130;

/// All scenarios, or nothing after every mistake of every file was told.
fn load(paths: &[PathBuf], book: &PriceBook) -> Option<Vec<Scenario>> {
    let models = super::known_models();
    let instances = book.names();
    let known = Known { models: &models, instances: &instances };
    let mut scenarios: Vec<Scenario> = Vec::new();
    let mut wrong = Vec::new();
    for path in paths {
        match Scenario::load(path, &known) {
            Ok(scenario) => {
                if let Some(other) = scenarios.iter().find(|s| s.name == scenario.name) {
                    wrong.push(format!(
                        "error: two scenarios are called `{}`\n  --> {}\n  --> {}\nhint: the name is the output folder: give each its own",
                        scenario.name,
                        other.path.display(),
                        path.display()
                    ));
                }
                scenarios.push(scenario);
            }
            Err(diagnostics) => wrong.push(render(&diagnostics)),
        }
    }
    if wrong.is_empty() {
        return Some(scenarios);
    }
    eprintln!("{}", wrong.join("\n\n"));
    None
}

fn command(args: &Args) -> String {
    let quoted = |path: &Path| {
        let text = path.display().to_string();
        let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+".contains(c));
        if plain { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
    };
    let mut parts = vec!["advisor run".to_string()];
    parts.extend(args.scenarios.iter().map(|path| quoted(path)));
    if args.out != Path::new("reports") {
        parts.push(format!("--out {}", quoted(&args.out)));
    }
    if args.quick {
        parts.push("--quick".into());
    }
    if args.no_predictions {
        parts.push("--no-predictions".into());
    }
    if let Some(device) = args.device {
        parts.push(format!("--device {device}"));
    }
    if let Some(prices) = &args.prices {
        parts.push(format!("--prices {}", quoted(prices)));
    }
    parts.join(" ")
}

fn without_budget(args: &Args) -> String {
    command(args)
}

/// The places from which shipped data is looked for.
fn search_from(scenario: &Scenario) -> Vec<PathBuf> {
    super::places(scenario.path.parent())
}

/// Names of the devices that a process takes as a rank from its first one on, from its second one on, and so on.
fn devices_from(process: &Process) -> Vec<String> {
    let numbers = (0..process.devices.len()).filter_map(|first| process.device(first));
    numbers.map(|number| format!("`{}` of `{}`", process.devices[number], process.host)).collect()
}

/// Number of the last CUDA device of this process's that a candidate uses. Ranks in other processes of a launch may see it as well.
fn last_gpu(candidate: &Candidate, machine: &Machine) -> Option<usize> {
    let Device::Cuda(first) = candidate.device else { return None };
    let of_launch = machine.devices_of_processes.first().filter(|_| candidate.layout.ranks() > 1);
    let Some(own) = of_launch else { return Some(first + candidate.layout.ranks() - 1) };
    // The first process is the first of its node, so it takes devices in their order.
    let used = machine.devices_of_ranks(first, candidate.layout).unwrap_or_default();
    own.iter().rposition(|name| used.contains(&name.as_str()))
}

/// Who works on a candidate, where their rates can be measured: ranks of a launch are not all here.
fn workers_of(candidate: &Candidate, is_launch: bool) -> Option<Workers> {
    (candidate.emulation().is_none() && !(is_launch && candidate.layout.ranks() > 1)).then(|| candidate.workers())
}

/// Puts the rates that each scenario is predicted from into its header, measuring what is not known of this machine.
fn rate(planned: &mut [Planned], environment: &Environment) -> anyhow::Result<()> {
    let is_launch = environment.processes.is_some();
    let ops = |one: &Planned| -> Vec<(Workers, Vec<RateCase>)> {
        let candidates = one.scenario.expand(&one.machine).candidates;
        // One that cannot be counted says so when it is run.
        let counted = |candidate: &Candidate| counted(&one.scenario.model, &one.set, candidate, &one.job_header.train).ok();
        candidates.iter().filter_map(|candidate| Some((workers_of(candidate, is_launch)?, counted(candidate)?.ops))).collect()
    };
    let wanted: Vec<_> = planned.iter().map(ops).collect();
    let of_each: Vec<Vec<Workers>> = wanted.iter().map(|one| one.iter().map(|(workers, _)| *workers).collect()).collect();
    let tables = rates::of(wanted.into_iter().flatten().collect(), environment)?;
    for (one, workers) in planned.iter_mut().zip(of_each) {
        one.job_header.environment.rates = tables.iter().filter(|table| workers.contains(&table.workers)).cloned().collect();
    }
    Ok(())
}

fn plan(
    scenario: Scenario,
    args: &Args,
    environment: &Environment,
    machine: &Machine,
    gpus: &[Gpu],
    book: &PriceBook,
) -> anyhow::Result<Planned> {
    // A scenario that uses no GPU is priced and described as if the machine had none.
    let candidates = scenario.expand(machine).candidates;
    let used = candidates.iter().filter_map(|candidate| last_gpu(candidate, machine)).max();
    let gpus = used.map_or_else(Vec::new, |last| gpus[..=last].to_vec());
    let environment = &Environment { gpus, ..environment.clone() };
    crate::cost::price(&scenario.cost, environment, book).with_context(|| format!("{}", scenario.path.display()))?;
    let set = DataSet::load(&scenario.data, &search_from(&scenario)).with_context(|| format!("{}", scenario.path.display()))?;
    let set = Arc::new(set);
    let train = if args.quick {
        TrainConfig { epochs: 1, seeds: 1, tune_epochs: 1, ..scenario.train.clone() }
    } else {
        scenario.train.clone()
    };
    // What repeats this scenario alone, without the other files of the command line.
    let alone = Args { scenarios: vec![scenario.path.clone()], prices: args.prices.clone(), out: args.out.clone(), ..*args };
    let isa = environment.instruction_sets.join(" ");
    let program = [environment.advisor_version.as_str(), environment.commit.as_deref().unwrap_or_default()];
    let devices: Vec<&str> = environment.gpus.iter().map(|gpu| gpu.uuid.as_deref().unwrap_or(&gpu.name)).collect();
    let devices = devices.join(" ");
    let launch = environment.processes.as_ref().map_or_else(String::new, |p| format!("{} {}", p.library, p.hosts.join(" ")));
    let mut around = vec![set.content_hash.as_str(), &environment.cpu, &isa, program[0], program[1], &devices];
    around.extend(environment.processes.is_some().then_some(launch.as_str()));
    let job_header = RunHeader {
        schema_version: SCHEMA_VERSION,
        scenario: scenario.name.clone(),
        question: scenario.question.clone(),
        scenario_text: scenario.text.clone(),
        config_hash: scenario.config_hash(args.quick, machine, &around),
        command: command(&alone),
        started_unix_s: super::unix_seconds(),
        environment: environment.clone(),
        quick: args.quick,
        phases: scenario.phases.clone(),
        classes: set.classes.clone(),
        test_labels: set.test.labels.clone(),
        train_rows: set.train.rows(),
        test_rows: set.test.rows(),
        unit: workload::find(scenario.task).unit.to_string(),
        model: scenario.model.clone(),
        data: scenario.data.to_string(),
        train,
        goal: scenario.goal.clone(),
        cost: scenario.cost.clone(),
        primary_metric: scenario.primary_metric,
    };
    Ok(Planned { scenario, set, job_header, machine: machine.clone() })
}

fn measure(
    one: &Planned,
    args: &Args,
    budget: Option<Duration>,
    program: &Path,
    leader: Option<&Leader>,
    control: &Control,
) -> Result<StoredRun, HarnessError> {
    let expansion = one.scenario.expand(&one.machine);
    let folder = args.out.join(&one.scenario.name);
    let job = Job {
        header: one.job_header.clone(),
        task: one.scenario.task,
        data: one.scenario.data.clone(),
        search_from: search_from(&one.scenario),
        candidates: expansion.candidates,
        skipped: expansion.skipped,
        baselines: one.scenario.phases.iter().map(|phase| one.scenario.baseline(*phase, &one.machine)).collect(),
        pace: if args.quick { Pace::QUICK } else { Pace::FULL },
        budget,
        resume: args.resume,
        folder: &folder,
        program,
        ranks: leader.map(|leader| leader as &dyn Ranks),
        control,
    };
    let mut progress = Progress::new(&one.scenario.name);
    let result = harness::run(&job, &mut |event| progress.on(&event));
    progress.end();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_read_with_their_units() {
        assert_eq!(duration("90s").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("1.5h").unwrap(), Duration::from_secs(5400));
        assert_eq!(duration("45").unwrap(), Duration::from_secs(45));
        assert!(duration("5x").is_err() && duration("m").is_err() && duration("-1s").is_err() && duration("").is_err());
    }
}
