//! `advisor init`: a scenario file to start from.

use super::{Exit, model_names};
use crate::{data::SHIPPED, input::nearest, models, scenario};
use std::{fs::OpenOptions, io::Write, path::PathBuf};

/// Write a commented scenario file to start from
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  advisor init my-digits --model simple-cnn --data mnist\n  advisor run scenarios/my-digits.toml"
)]
pub struct Args {
    /// Name of the scenario: small letters, digits, hyphens
    name: String,
    /// Model to measure (simple-cnn, mlp)
    #[arg(long, default_value = "simple-cnn")]
    model: String,
    /// Shipped data to measure on (mnist, fashion-mnist, digits-8x8)
    #[arg(long, default_value = "mnist")]
    data: String,
    /// File to write [default: scenarios/NAME.toml]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write over an existing file
    #[arg(long)]
    force: bool,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let data: Vec<&str> = SHIPPED.iter().map(|s| s.name).collect();
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if args.name.is_empty() || args.name.len() > 64 || !args.name.chars().all(fits) {
        eprintln!("error: `{}` cannot name a scenario\n  expected 1 to 64 of a-z, 0-9 and -", args.name);
        return Ok(Exit::WrongInput);
    }
    for (what, given, known) in [("model", &args.model, &model_names()), ("data", &args.data, &data)] {
        if !known.contains(&given.as_str()) {
            eprintln!("error: unknown {what} `{given}`\n  expected one of {}", known.join(", "));
            if let Some(near) = nearest(given, known.iter().copied()) {
                eprintln!("hint: did you mean `{near}`?");
            }
            return Ok(Exit::WrongInput);
        }
    }
    let shipped = SHIPPED.iter().find(|data| data.name == args.data).expect("checked above");
    let model = models::find(&args.model).expect("checked above");
    if model.reads != shipped.rows() {
        let fitting = models::MODELS.iter().filter(|model| model.reads == shipped.rows()).map(|model| model.name);
        eprintln!(
            "error: model `{}` reads {}, but `{}` holds {}\n  expected one of {}",
            model.name,
            model.reads.plural(),
            shipped.name,
            shipped.rows().plural(),
            fitting.collect::<Vec<_>>().join(", ")
        );
        return Ok(Exit::WrongInput);
    }
    let path = args.output.clone().unwrap_or_else(|| PathBuf::from("scenarios").join(format!("{}.toml", args.name)));
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    if !args.force {
        options.create_new(true);
    }
    match options.open(&path) {
        Ok(mut file) => file.write_all(scenario::template(&args.name, &args.model, &args.data).as_bytes())?,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            eprintln!("error: `{}` is already there\nhint: --force writes over it", path.display());
            return Ok(Exit::WrongInput);
        }
        Err(error) => return Err(anyhow::anyhow!("cannot write `{}`: {error}", path.display())),
    }
    super::print(&path.display().to_string())?;
    eprintln!("next: advisor run {}", path.display());
    Ok(Exit::Done)
}
