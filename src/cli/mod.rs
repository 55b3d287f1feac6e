//! The command line: one file per command, the only place that prints, and the exit codes.
//!
//! Results go to standard output, everything else to standard error. Exit codes: 0 done; 1 ran, and the answer is no (nothing
//! feasible); 2 wrong input; 3 too noisy or ambiguous to say; 4 the machine or a dependency failed; 5 finished, but some
//! candidates failed.

mod bench_buckets;
mod bench_step;
mod communication;
mod doctor;
mod init;
mod kernels;
mod plan;
mod plan_graph;
mod plan_graphs;
mod plan_here;
mod plan_score;
mod prices;
mod progress;
mod rates;
mod report;
mod run;
mod schema;
mod tune;
mod worker;

use crate::{
    backend::cuda,
    comm::{Launch, MpiError, World},
    scenario::KnownModel,
    vocab::{Device, UnknownWord},
};
use clap::{CommandFactory, Parser, Subcommand};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    Done = 0,
    /// It ran, and the answer is no.
    No = 1,
    WrongInput = 2,
    TooNoisy = 3,
    MachineFailed = 4,
    SomeFailed = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

#[derive(Parser)]
#[command(
    name = "advisor",
    version,
    about = "Measures which precision, compression, layout, batch size and machine serve an AI workload at the lowest cost",
    after_help = "Example:\n  advisor run scenarios/*.toml\n\nExit codes: 0 done; 1 nothing feasible; 2 wrong input; 3 too noisy to say; \
                  4 the machine or a dependency failed; 5 finished, but some candidates failed."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::Args),
    Report(report::Args),
    Plan(plan::Args),
    Init(init::Args),
    Prices(prices::Args),
    Doctor(doctor::Args),
    Kernels(kernels::Args),
    Schema(schema::Args),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  advisor completions bash > /etc/bash_completion.d/advisor")]
    Completions {
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    #[command(after_help = "Example:\n  advisor man | man -l -")]
    Man,
    /// Measure one candidate on command of a parent process
    #[command(hide = true)]
    Worker,
    /// Time single steps on command of a comparing script
    #[command(hide = true)]
    BenchStep,
    /// Time training steps over ranks by how many bytes of gradients are summed together
    #[command(hide = true)]
    BenchBuckets(bench_buckets::Arguments),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Init(args) => init::run(&args),
        Command::Prices(args) => prices::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Kernels(args) => kernels::run(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "advisor", &mut std::io::stdout());
            Ok(Exit::Done)
        }
        Command::Man => {
            clap_mangen::Man::new(Cli::command()).render(&mut std::io::stdout()).map(|()| Exit::Done).map_err(anyhow::Error::from)
        }
        Command::Worker => worker::run(),
        Command::BenchStep => bench_step::run(),
        Command::BenchBuckets(arguments) => bench_buckets::run(&arguments),
    };
    match outcome {
        Ok(exit) => exit.into(),
        Err(error) => {
            // A reader that closed the pipe early wanted no more.
            let broken_pipe = error
                .chain()
                .any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe));
            if broken_pipe {
                return Exit::Done.into();
            }
            eprintln!("error: {error:#}");
            Exit::MachineFailed.into()
        }
    }
}

/// A rank of a launch that gives no sign of life for so long is given up; one that only computes gives them.
const RANK_PATIENCE: Duration = Duration::from_secs(30);

/// Joins the other processes of a launch; `None` after a line that says why not.
fn join(launch: &Launch) -> Option<World> {
    let named = std::env::var("ADVISOR_RANK_PATIENCE_S").ok().and_then(|text| text.parse().ok());
    let on_stuck = |error: &MpiError| {
        eprintln!("error: {error}; what is finished is on disk, and `advisor run --resume` goes on");
        std::process::exit(Exit::MachineFailed as i32);
    };
    // Names of devices are their own, wherever they are.
    let devices = (0..cuda::device_count().unwrap_or(0)).filter_map(cuda::uuid).collect();
    match World::join(launch, named.map_or(RANK_PATIENCE, Duration::from_secs), devices, on_stuck) {
        Ok(world) => Some(world),
        Err(error) => {
            eprintln!("error: a launcher started {} processes, but they cannot work together: {error}", launch.processes);
            None
        }
    }
}

/// Names of all models, as scenarios and their schema know them.
fn model_names() -> Vec<&'static str> {
    crate::models::MODELS.iter().map(|model| model.name).collect()
}

/// Models as a scenario names them.
fn known_models() -> Vec<KnownModel<'static>> {
    crate::models::MODELS.iter().map(|model| KnownModel { name: model.name, reads: model.reads }).collect()
}

/// A device word; a mistake names those that there are.
fn device(text: &str) -> Result<Device, String> {
    text.parse().map_err(|error: UnknownWord| format!("{error}: expected one of {}", error.expected.join(", ")))
}

/// Seconds since 1970-01-01 UTC.
fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Places beside or above which shipped data may lie: a scenario's folder, the current one, the program's, the sources'.
fn places(scenario_folder: Option<&std::path::Path>) -> Vec<PathBuf> {
    let absolute = |folder: &std::path::Path| std::path::absolute(folder).ok();
    let sources = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let program = std::env::current_exe().ok().and_then(|exe| exe.parent().map(std::path::Path::to_path_buf));
    let current = std::env::current_dir().ok();
    scenario_folder.and_then(absolute).into_iter().chain(current).chain(program).chain([sources]).collect()
}

/// Width of the terminal on standard output (100 elsewhere), and whether to colour.
fn terminal_style() -> (usize, bool) {
    use std::io::IsTerminal;
    let on_terminal = std::io::stdout().is_terminal();
    let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let width = std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok());
    let measured = || terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    (width.or_else(|| on_terminal.then(measured).flatten()).unwrap_or(100), on_terminal && !plain)
}

/// Writes text and a line end to standard output, as an error where that fails (a closed pipe).
fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(())
}
/// The file that `variable` names, else `advisor/<name>` in the user's folder for caches.
fn cache_file(variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(named) = std::env::var_os(variable) {
        return Some(PathBuf::from(named));
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache")))?;
    Some(folder.join("advisor").join(name))
}

/// To a temporary name first, so that a file of this name is always whole.
fn write_cache(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    std::fs::write(&partial, bytes)?;
    std::fs::rename(&partial, path)
}
