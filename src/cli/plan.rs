//! `advisor plan`: layouts and costs on machines that are not here.

use super::{Exit, plan_graph, plan_here, plan_score};
use crate::{
    input::render,
    predict::{Books, Plan, Work, answer_plan},
    report::{PlanInputs, plan_json, plan_terminal, write_plan},
};
use clap::Subcommand;
use std::path::{Path, PathBuf};

/// Predict layouts, time and cost on machines that are not here, and the candidates of scenarios on this one
#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  advisor plan plans/llama-3-70b-pretraining.toml\n  advisor plan plans/*.toml --out /tmp/plans --json\n  advisor plan scenarios/image-classification.toml\n  advisor plan score\n\n\
                  Every figure is modelled; its error on published runs stands beside it. Exit codes: 0 done; 1 nothing meets every limit;\n\
                  2 wrong input; 4 the machine failed."
)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Plan files, or scenarios, which are predicted for this machine from its rates of single ops
    #[arg(required = true, value_name = "PLAN.toml")]
    plans: Vec<PathBuf>,
    /// Folder for the reports
    #[arg(long, value_name = "DIR", default_value = "reports")]
    out: PathBuf,
    /// Price book instead of the shipped one (see `advisor prices import`)
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// Print the answers as JSON instead of tables
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    Score(plan_score::ScoreArgs),
    Calibrate(plan_score::CalibrateArgs),
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    match &args.command {
        Some(Command::Score(args)) => plan_score::score(args),
        Some(Command::Calibrate(args)) => plan_score::calibrate(args),
        None => answer(args),
    }
}

fn answer(args: &Args) -> anyhow::Result<Exit> {
    let prices = match super::prices::book(args.prices.as_deref()) {
        Ok(book) => book,
        Err(error) => {
            eprintln!("error: {error:#}");
            return Ok(Exit::WrongInput);
        }
    };
    let books = Books { prices, ..Books::shipped() };
    let (here, elsewhere): (Vec<PathBuf>, Vec<PathBuf>) =
        args.plans.iter().cloned().partition(|path| plan_here::is_scenario(path));
    let Some(plans) = load(&elsewhere, &books) else { return Ok(Exit::WrongInput) };
    let mut exit = Exit::Done;
    let mut as_json = Vec::new();
    for path in &here {
        let (ended, answer) = plan_here::run(path, &books.prices, args.json, &args.out)?;
        if ended != Exit::Done {
            return Ok(ended);
        }
        as_json.extend(answer);
    }
    for plan in &plans {
        let answer = if let Work::Graph(work) = &plan.work {
            match plan_graph::answer(plan, work, &books)? {
                Ok(answer) => answer,
                Err(exit) => return Ok(exit),
            }
        } else {
            match answer_plan(plan, &books) {
                Ok(answer) => answer,
                Err(error) => {
                    eprintln!("error: plan `{}`: {error}", plan.path.display());
                    return Ok(Exit::WrongInput);
                }
            }
        };
        let command = command(args, &plan.path);
        let inputs = PlanInputs { plan, answer: &answer, command: &command };
        let page = write_plan(&args.out, &inputs)?;
        if args.json {
            as_json.push(plan_json(&inputs));
        } else {
            let (width, colour) = super::terminal_style();
            super::print(&plan_terminal(&inputs, width, colour))?;
        }
        eprintln!("report: {}", page.display());
        if answer.pick.is_none() {
            exit = Exit::No;
        }
    }
    if args.json {
        super::print(&serde_json::to_string_pretty(&as_json)?)?;
    }
    Ok(exit)
}

/// All plans, or nothing after their mistakes were told.
fn load(paths: &[PathBuf], books: &Books) -> Option<Vec<Plan>> {
    let mut plans: Vec<Plan> = Vec::new();
    let mut is_good = true;
    for path in paths {
        match books.known(|known| Plan::load(path, known)) {
            Ok(plan) => {
                if let Some(twin) = plans.iter().find(|other| other.name == plan.name) {
                    eprintln!(
                        "error: two plans are called `{}`: `{}` and `{}`\nhint: their reports would lie in one folder",
                        plan.name,
                        twin.path.display(),
                        path.display()
                    );
                    is_good = false;
                }
                plans.push(plan);
            }
            Err(found) => {
                eprintln!("{}", render(&found));
                is_good = false;
            }
        }
    }
    is_good.then_some(plans)
}

/// The command that repeats one answer.
fn command(args: &Args, path: &Path) -> String {
    let mut command = format!("advisor plan {} --out {}", quoted(path), quoted(&args.out));
    if let Some(prices) = &args.prices {
        command += &format!(" --prices {}", quoted(prices));
    }
    command
}

fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if text.chars().all(is_plain) && !text.is_empty() { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}
