//! `advisor schema`: the JSON Schema of a scenario file.

use super::Exit;
use crate::scenario;

/// Print the JSON Schema of a scenario file
#[derive(clap::Args)]
#[command(after_help = "Example:\n  advisor schema > docs/scenario.schema.json")]
pub struct Args {}

pub fn run(_: &Args) -> anyhow::Result<Exit> {
    super::print(&serde_json::to_string_pretty(&scenario::schema(&super::model_names()))?)?;
    Ok(Exit::Done)
}
