//! `advisor prices`: what machines cost an hour.

use super::Exit;
use crate::cost::{Entry, PriceBook};
use anyhow::Context;
use clap::Subcommand;
use serde_json::json;
use std::path::{Path, PathBuf};

/// List, show and import prices of machines
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  advisor prices list nebius\n  advisor prices show nebius/cpu-e2_2vcpu-8gb\n  \
                        advisor prices import ~/.sky/catalogs/v8/aws/vms.csv --provider aws -o aws.csv\n  \
                        advisor run scenarios/*.toml --prices aws.csv")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List entries whose name or accelerator contains every given word
    List {
        words: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Price book to read instead of the shipped one
        #[arg(long, value_name = "FILE")]
        prices: Option<PathBuf>,
    },
    /// Show one entry with its source
    Show {
        name: String,
        #[arg(long)]
        json: bool,
        #[arg(long, value_name = "FILE")]
        prices: Option<PathBuf>,
    },
    /// Turn a SkyPilot catalogue (vms.csv) into a price book for --prices
    Import {
        file: PathBuf,
        /// Provider of the machines in the file [default: its folder's name]
        #[arg(long)]
        provider: Option<String>,
        /// Price book to write
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
}

/// The price book of `file`, or the shipped one.
pub fn book(file: Option<&Path>) -> anyhow::Result<PriceBook> {
    match file {
        None => Ok(PriceBook::shipped()),
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
            Ok(PriceBook::read(&text, path)?)
        }
    }
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    match &args.command {
        Command::List { words, json, prices } => {
            let Some(book) = opened(prices.as_deref()) else { return Ok(Exit::WrongInput) };
            let fits = |entry: &&Entry| {
                let text = format!("{} {}", entry.name(), entry.accelerator.as_deref().unwrap_or("")).to_lowercase();
                words.iter().all(|word| text.contains(&word.to_lowercase()))
            };
            let found: Vec<&Entry> = book.entries.iter().filter(fits).collect();
            if *json {
                let list: Vec<_> = found.iter().map(|entry| as_json(entry, &book)).collect();
                super::print(&serde_json::to_string_pretty(&list)?)?;
            } else {
                let width = found.iter().map(|e| e.name().len()).max().unwrap_or(8);
                for entry in &found {
                    super::print(&format!("{:width$}  {}", entry.name(), summary(entry)))?;
                }
            }
            if found.is_empty() {
                eprintln!("no entry contains {}", words.join(" and "));
                return Ok(Exit::No);
            }
            Ok(Exit::Done)
        }
        Command::Show { name, json, prices } => {
            let Some(book) = opened(prices.as_deref()) else { return Ok(Exit::WrongInput) };
            match book.find(name) {
                Ok(entry) if *json => super::print(&serde_json::to_string_pretty(&as_json(entry, &book))?)?,
                Ok(entry) => {
                    super::print(&format!("{}\n  {}", entry.name(), summary(entry)))?;
                    super::print(&format!("  region {}; prices of {}", entry.region, book.date))?;
                    super::print(&format!(
                        "  source {}, commit {}",
                        entry.source_file,
                        entry.source_commit.as_deref().unwrap_or("unknown")
                    ))?;
                }
                Err(error) => {
                    eprintln!("error: {error}");
                    return Ok(Exit::WrongInput);
                }
            }
            Ok(Exit::Done)
        }
        Command::Import { file, provider, output } => {
            let text = std::fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))?;
            let provider = provider.clone().or_else(|| Some(file.parent()?.file_name()?.to_string_lossy().into_owned()));
            let book = match PriceBook::read_of(&text, file, provider.as_deref()) {
                Ok(book) => book,
                Err(error) => {
                    eprintln!("error: {error}");
                    return Ok(Exit::WrongInput);
                }
            };
            std::fs::write(output, as_csv(&book)).with_context(|| format!("cannot write `{}`", output.display()))?;
            super::print(&format!("{} entries in {}", book.entries.len(), output.display()))?;
            Ok(Exit::Done)
        }
    }
}

/// The book, or nothing after its error was told.
fn opened(file: Option<&Path>) -> Option<PriceBook> {
    book(file).inspect_err(|error| eprintln!("error: {error:#}")).ok()
}

fn number(value: Option<f64>) -> String {
    value.map(|v| v.to_string()).unwrap_or_default()
}

fn summary(entry: &Entry) -> String {
    let price = entry.usd_per_hour_on_demand.map_or("no on-demand price".into(), |p| format!("${p}/h"));
    let spot = entry.usd_per_hour_spot.map(|p| format!(", spot ${p}/h")).unwrap_or_default();
    let accelerator = entry.accelerator.as_ref().map(|a| format!(", {} x {a}", number(entry.accelerator_count)));
    let cpus = entry.vcpus.map_or("? vCPUs".into(), |n| format!("{n} vCPUs"));
    let memory = entry.memory_gib.map_or("? GiB".into(), |n| format!("{n} GiB"));
    format!("{price}{spot}, {cpus}, {memory}{}", accelerator.unwrap_or_default())
}

fn as_json(entry: &Entry, book: &PriceBook) -> serde_json::Value {
    json!({
        "name": entry.name(),
        "accelerator": entry.accelerator,
        "accelerator_count": entry.accelerator_count,
        "vcpus": entry.vcpus,
        "memory_gib": entry.memory_gib,
        "region": entry.region,
        "usd_per_hour_on_demand": entry.usd_per_hour_on_demand,
        "usd_per_hour_spot": entry.usd_per_hour_spot,
        "source_file": entry.source_file,
        "source_commit": entry.source_commit,
        "date": book.date,
    })
}

fn as_csv(book: &PriceBook) -> String {
    let mut out = String::from(
        "provider,instance,accelerator,accelerator_count,vcpus,memory_gib,region,usd_per_hour_on_demand,usd_per_hour_spot,source_file,source_commit\n",
    );
    let quoted =
        |text: &str| if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.into() };
    for e in &book.entries {
        let cells: Vec<String> = vec![
            quoted(&e.provider),
            quoted(&e.instance),
            quoted(e.accelerator.as_deref().unwrap_or("")),
            number(e.accelerator_count),
            number(e.vcpus),
            number(e.memory_gib),
            quoted(&e.region),
            number(e.usd_per_hour_on_demand),
            number(e.usd_per_hour_spot),
            quoted(&e.source_file),
            quoted(e.source_commit.as_deref().unwrap_or("")),
        ];
        out.push_str(&cells.join(","));
        out.push('\n');
    }
    out
}
