//! `advisor plan`: predictions for machines that are not here.

use super::{Exit, plan_score};
use clap::Subcommand;

/// Predict layouts, time and cost on machines that are not here
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Score(plan_score::ScoreArgs),
    Calibrate(plan_score::CalibrateArgs),
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    match &args.command {
        Command::Score(args) => plan_score::score(args),
        Command::Calibrate(args) => plan_score::calibrate(args),
    }
}
