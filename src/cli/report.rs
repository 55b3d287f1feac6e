//! `advisor report`: the reports of stored runs, made again.

use super::Exit;
use crate::{
    advise::advise,
    record::{StoredRun, store},
    report::{self, Inputs},
};
use std::path::{Path, PathBuf};

/// Make reports again from stored runs
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  advisor report reports\n  advisor report reports/image-classification --out /tmp/again --json"
)]
pub struct Args {
    /// Folders of runs, their run.jsonl, or a folder of such folders
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Folder to write to [default: the folder that holds the first run's folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Price book instead of the shipped one (see `advisor prices import`)
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// Print the recommendations as JSON instead of tables
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let mut logs = Vec::new();
    for path in &args.runs {
        let found = logs_at(path);
        if found.is_empty() {
            eprintln!("error: no run.jsonl at `{}`\nhint: name a folder that `advisor run --out` wrote", path.display());
            return Ok(Exit::WrongInput);
        }
        logs.extend(found);
    }
    let mut stored = Vec::new();
    for log in &logs {
        match store::read(log) {
            Ok(run) => stored.push(run),
            Err(error) => {
                eprintln!("error: {error}");
                return Ok(Exit::WrongInput);
            }
        }
    }
    let beside = || logs[0].parent().and_then(Path::parent).map_or_else(|| PathBuf::from("."), Path::to_path_buf);
    let out = args.out.clone().unwrap_or_else(beside);
    let book = match super::prices::book(args.prices.as_deref()) {
        Ok(book) => book,
        Err(error) => {
            eprintln!("error: {error:#}");
            return Ok(Exit::WrongInput);
        }
    };
    publish(&out, &stored, &book, args.json)
}

/// Every `run.jsonl` that `path` names: itself, in it, or one folder below.
fn logs_at(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_path_buf()];
    }
    let own = path.join("run.jsonl");
    if own.is_file() {
        return vec![own];
    }
    let folders = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = folders.map(|entry| entry.path().join("run.jsonl")).filter(|log| log.is_file()).collect();
    found.sort();
    found
}

/// Judges runs, writes all files and prints the summaries. The exit code is that of the answers.
pub fn publish(out: &Path, runs: &[StoredRun], book: &crate::cost::PriceBook, as_json: bool) -> anyhow::Result<Exit> {
    let mut advices = Vec::new();
    for run in runs {
        match advise(run, book) {
            Ok(advice) => advices.push(advice),
            Err(error) => {
                eprintln!("error: scenario `{}`: {error}", run.header.scenario);
                return Ok(Exit::WrongInput);
            }
        }
    }
    let inputs: Vec<Inputs> = runs.iter().zip(&advices).map(|(run, advice)| Inputs { run, advice }).collect();
    let pages = report::write(out, &inputs)?;
    if as_json {
        let all: Vec<_> = inputs.iter().map(report::recommendation_json).collect();
        super::print(&serde_json::to_string_pretty(&all)?)?;
    } else {
        let (width, colour) = super::terminal_style();
        for inputs in &inputs {
            super::print(&report::terminal(inputs, width, colour))?;
        }
    }
    for page in &pages {
        eprintln!("report: {}", page.display());
    }
    Ok(inputs.iter().map(|inputs| verdict(inputs)).max_by_key(|exit| *exit as u8).unwrap_or(Exit::Done))
}

/// 5 where candidates failed, 1 where a phase has no answer, else 0.
fn verdict(inputs: &Inputs) -> Exit {
    use crate::{advise::Outcome, record::Status};
    let failed = inputs.run.records.iter().any(|record| record.status == Status::Failed);
    let no_answer = inputs.advice.phases.iter().any(|phase| !matches!(phase.outcome, Outcome::Pick(_)));
    match (failed, no_answer) {
        (true, _) => Exit::SomeFailed,
        (false, true) => Exit::No,
        (false, false) => Exit::Done,
    }
}
