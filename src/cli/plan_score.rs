//! `advisor plan score` and `advisor plan calibrate`: how far predictions lie from published runs, and the fit that they rest on.

use super::{Exit, plan_graphs};
use crate::predict::{
    Parameters,
    calibrate::fit,
    ranking,
    score::{self, FAMILIES, Family, GROUP, Reading, Refused, SERVING, Scored, Stratum, TRAINING},
    serve,
    tables::{Case, Csv},
};
use anyhow::Context;
use serde_json::{Value, json};
use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

/// Hold predictions against published runs
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  advisor plan score\n  advisor plan score --json\n  advisor plan score --out /tmp/held-out.csv\n  advisor plan score --table data/validation/nemo_b200.csv \
                        --out /tmp/b200.csv\n  advisor plan score --table data/validation/megatron_a100.csv --in-sample\n  advisor plan score --graphs\n\nWithout --table: the error on rows that the fit had not seen, whole groups of model, GPU and \
                        precision held out.\nWith --table: every row of the file, predicted beside published, with the shipped parameters, or with --in-sample \
                        by parameters that saw these very rows. \
                        Tables are known by their columns.\nExit codes: 0 done; 2 no such table; 5 done, but some rows were refused."
)]
pub struct ScoreArgs {
    /// Tables of published runs to predict, row by row
    #[arg(long, value_name = "FILE.csv")]
    table: Vec<PathBuf>,
    /// Fit the parameters to the rows of each --table first: no prediction, but how near the model can come to them
    #[arg(long, requires = "table")]
    in_sample: bool,
    /// More tables to fit and score besides the shipped ones
    #[arg(long, value_name = "FILE.csv", conflicts_with = "table")]
    with: Vec<PathBuf>,
    /// Where the rows go, predicted beside published: those of --table (instead of standard output), or those that were held out
    #[arg(long, value_name = "FILE.csv")]
    out: Option<PathBuf>,
    /// Graphs of ours instead: steps and runs that a GPU measured, each predicted by a fit that had not seen its model in its phase
    #[arg(long, conflicts_with_all = ["table", "with", "out"])]
    graphs: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Fit the parameters of predictions to published runs
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  advisor plan calibrate --out /tmp/parameters.toml\n  advisor plan calibrate --serving --out /tmp/serving.toml"
)]
pub struct CalibrateArgs {
    /// The parameters of serving instead of those of training
    #[arg(long)]
    serving: bool,
    /// Fit the parameters of graphs of ours, to what a GPU measured of them, and the errors that are printed beside an answer
    #[arg(long, conflicts_with_all = ["serving", "with", "held_out"])]
    graphs: bool,
    /// More tables to fit besides the shipped ones
    #[arg(long, value_name = "FILE.csv")]
    with: Vec<PathBuf>,
    /// Where the parameters go instead of standard output
    #[arg(long, value_name = "FILE.toml")]
    out: Option<PathBuf>,
    /// Where the errors on rows that a fit had not seen go, by stratum
    #[arg(long, value_name = "FILE.csv")]
    held_out: Option<PathBuf>,
}

fn read(path: &Path) -> Result<Csv, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read `{}`: {error}", path.display()))?;
    Csv::read(&text).map_err(|reason| format!("`{}`: {reason}", path.display()))
}

/// All of them, or nothing after their mistakes were told.
fn read_all(paths: &[PathBuf]) -> Option<Vec<Csv>> {
    let mut all = Vec::new();
    let mut is_good = true;
    for path in paths {
        let known = read(path).and_then(|csv| {
            let known = FAMILIES.iter().any(|family| (family.reads)(&csv));
            if known { Ok(csv) } else { Err(format!("`{}`: its columns are those of no table that is known", path.display())) }
        });
        match known {
            Ok(csv) => all.push(csv),
            Err(message) => {
                eprintln!("error: {message}");
                is_good = false;
            }
        }
    }
    is_good.then_some(all)
}

pub fn score(args: &ScoreArgs) -> anyhow::Result<Exit> {
    if args.graphs {
        return plan_graphs::score(args.json);
    }
    if !args.table.is_empty() {
        return score_tables(args);
    }
    let Some(with) = read_all(&args.with) else { return Ok(Exit::WrongInput) };
    let mut readings = Vec::new();
    for family in FAMILIES {
        readings.push((family.name, held_out(family, &with)));
    }
    if let Some(out) = &args.out {
        let mut all = Reading::default();
        for (_, reading) in &readings {
            all.add(reading.clone());
        }
        write_rows(out, &all)?;
    }
    if args.json {
        let families: Vec<Value> = readings.iter().map(|(name, reading)| as_json(name, reading, false)).collect();
        super::print(&serde_json::to_string_pretty(&json!({ "held_out": families, "other_predictors": others_json() }))?)?;
        return Ok(Exit::Done);
    }
    for (name, reading) in &readings {
        super::print(&format!("{name}: error on rows that the fit had not seen, percent\n{}", summary(reading)))?;
    }
    let (cases, _) = score::training_cases(&with);
    let parameters = Parameters::shipped();
    super::print(&format!("{}\n", ranking::summary(&ranking::ranked(&cases, &parameters))))?;
    super::print(&format!("{}\n", ranking::fitting(&cases, &parameters)))?;
    super::print(&others_text())?;
    Ok(Exit::Done)
}

fn score_tables(args: &ScoreArgs) -> anyhow::Result<Exit> {
    let Some(tables) = read_all(&args.table) else { return Ok(Exit::WrongInput) };
    let mut all = Reading::default();
    for csv in &tables {
        for family in FAMILIES.iter().filter(|family| (family.reads)(csv)).take(1) {
            all.add(if args.in_sample { (family.in_sample)(csv) } else { (family.predict)(csv) });
        }
    }
    if let Some(out) = &args.out {
        write_rows(out, &all)?;
    }
    match (args.json, &args.out) {
        (true, _) => super::print(&serde_json::to_string_pretty(&as_json("tables", &all, true))?)?,
        (false, Some(_)) => super::print(&summary(&all))?,
        (false, None) => {
            super::print(as_csv(&all).trim_end())?;
            eprintln!("{}", summary(&all));
        }
    }
    eprint!("{}", refusals(&all.refused));
    Ok(if all.refused.is_empty() { Exit::Done } else { Exit::SomeFailed })
}

/// Predicts the shipped tables and those of these that the family reads, each row by a fit that had not seen its group.
fn held_out(family: &Family, with: &[Csv]) -> Reading {
    eprintln!("{}: fitting without one part of the groups after the other", family.name);
    let others: Vec<Csv> = with.iter().filter(|csv| (family.reads)(csv)).cloned().collect();
    (family.held_out)(&others)
}

pub fn calibrate(args: &CalibrateArgs) -> anyhow::Result<Exit> {
    let Some(with) = read_all(&args.with) else { return Ok(Exit::WrongInput) };
    let text = if args.graphs {
        plan_graphs::calibrated()?.0.to_toml()
    } else if args.serving {
        serve::written(&serve::score::calibrated(&with))
    } else {
        let (cases, _) = score::training_cases(&with);
        let current: Vec<&Case> = cases.iter().filter(|case| case.current).collect();
        eprintln!("fitting to {} rows", current.len());
        fit(&current, &Parameters::default()).to_toml()
    };
    match &args.out {
        Some(out) => std::fs::write(out, text).with_context(|| format!("cannot write `{}`", out.display()))?,
        None => super::print(text.trim_end())?,
    }
    if let Some(out) = &args.held_out {
        let family = if args.serving { &SERVING } else { &TRAINING };
        let strata = score::strata(&held_out(family, &with).scored);
        std::fs::write(out, score::strata_csv(&strata)).with_context(|| format!("cannot write `{}`", out.display()))?;
    }
    Ok(Exit::Done)
}

fn write_rows(out: &Path, reading: &Reading) -> anyhow::Result<()> {
    std::fs::write(out, as_csv(reading)).with_context(|| format!("cannot write `{}`", out.display()))
}

/// Refused rows by reason: the first few of each with their lines, the others counted (the rows that are written name them all).
fn refusals(refused: &[Refused]) -> String {
    const NAMED: usize = 3;
    let mut reasons: Vec<(&str, Vec<&Refused>)> = Vec::new();
    for row in refused {
        match reasons.iter_mut().find(|(reason, _)| *reason == row.reason) {
            Some((_, rows)) => rows.push(row),
            None => reasons.push((&row.reason, vec![row])),
        }
    }
    let mut text = String::new();
    for (reason, rows) in reasons {
        let named: Vec<String> = rows.iter().take(NAMED).map(|row| format!("line {} ({})", row.line, row.id)).collect();
        let others = rows.len().saturating_sub(NAMED);
        let others = if others > 0 { format!(" and {others} more") } else { String::new() };
        let _ = writeln!(text, "refused: {}{others}: {reason}", named.join(", "));
    }
    text
}

/// Predicted beside published, one row each; a refused row has its reason in place of a prediction.
fn as_csv(reading: &Reading) -> String {
    let mut text = String::from("source_id,line,table,status,quantity,published,predicted,error_percent,current,remark\n");
    for row in &reading.scored {
        let status = if row.extrapolated.is_some() { "extrapolated" } else { "predicted" };
        let remark = [row.extrapolated.as_deref().unwrap_or(""), &row.remark]
            .iter()
            .filter(|part| !part.is_empty())
            .copied()
            .collect::<Vec<_>>();
        let _ = writeln!(
            text,
            "{},{},{},{status},{},{},{:.4},{:.2},{},{}",
            cell(&row.id),
            row.line,
            row.table,
            cell(row.quantity),
            row.published,
            row.predicted,
            row.error_percent(),
            u8::from(row.current),
            cell(&remark.join("; "))
        );
    }
    for row in &reading.refused {
        let _ = writeln!(text, "{},{},,refused,,,,,,{}", cell(&row.id), row.line, cell(&row.reason));
    }
    text
}

fn cell(text: &str) -> String {
    if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_string() }
}

fn summary(reading: &Reading) -> String {
    let mut text = format!("{:<11} {:<58} {:>5} {:>7} {:>7} {:>7}\n", "", "", "rows", "median", "90th", "bias");
    let mut line = |row: &Stratum, note: &str| {
        let _ = writeln!(
            text,
            "{:<11} {:<58} {:>5} {:>7.1} {:>7.1} {:>+7.1}{note}",
            row.dimension, row.value, row.rows, row.median, row.ninetieth, row.bias
        );
    };
    // Groups are many: they stand in the JSON, and beside answers.
    for row in score::strata(&reading.scored).iter().filter(|row| row.dimension != GROUP) {
        let bar = if row.dimension == "regime" { score::bar_percent(&row.value) } else { None };
        line(row, &bar.map_or(String::new(), |bar| verdict(row, bar)));
    }
    for floor in score::floors(&reading.scored) {
        line(&floor, "");
    }
    for (name, layouts, coefficient) in score::rankings(&reading.scored) {
        let _ = writeln!(text, "{:<11} {name:<58} {layouts:>5} Spearman {coefficient:.3}", "ranking");
    }
    let extrapolated = reading.scored.iter().filter(|row| row.extrapolated.is_some()).count();
    let _ = write!(text, "{} rows refused, {extrapolated} extrapolated", reading.refused.len());
    text
}

/// Against the bars: the median's, and 2.5 times that for the 90th percentile.
fn verdict(row: &Stratum, bar: f64) -> String {
    let says = |value: f64, bar: f64| if value <= bar { "within".to_string() } else { format!("{:.1} over", value - bar) };
    format!("   bar {bar} and {}: {}, {}", 2.5 * bar, says(row.median, bar), says(row.ninetieth, 2.5 * bar))
}

fn others_text() -> String {
    let mut text =
        String::from("\nwhat other predictors are said to reach (mean or largest of their own rows, seen by their fits)\n");
    for (name, claim, source) in score::OTHERS {
        let _ = writeln!(text, "  {name}: {claim} ({source})");
    }
    text.trim_end().to_string()
}

fn others_json() -> Vec<Value> {
    score::OTHERS.iter().map(|(name, claim, source)| json!({ "name": name, "claim": claim, "source": source })).collect()
}

fn as_json(name: &str, reading: &Reading, rows: bool) -> Value {
    let stratum = |row: &Stratum| {
        json!({
            "dimension": row.dimension,
            "value": row.value,
            "rows": row.rows,
            "median_percent": row.median,
            "p90_percent": row.ninetieth,
            "bias_percent": row.bias,
            "bar_percent": if row.dimension == "regime" { score::bar_percent(&row.value) } else { None },
        })
    };
    let scored = |row: &Scored| {
        json!({
            "id": row.id,
            "line": row.line,
            "table": row.table,
            "quantity": row.quantity,
            "published": row.published,
            "predicted": row.predicted,
            "error_percent": row.error_percent(),
            "current": row.current,
            "extrapolated": row.extrapolated,
            "remark": row.remark,
        })
    };
    let refused: Vec<Value> =
        reading.refused.iter().map(|row| json!({ "id": row.id, "line": row.line, "reason": row.reason })).collect();
    let rankings: Vec<Value> = score::rankings(&reading.scored)
        .into_iter()
        .map(|(name, layouts, coefficient)| json!({ "name": name, "layouts": layouts, "spearman": coefficient }))
        .collect();
    let mut out = json!({
        "name": name,
        "strata": score::strata(&reading.scored).iter().map(stratum).collect::<Vec<_>>(),
        "floor": score::floors(&reading.scored).iter().map(stratum).collect::<Vec<_>>(),
        "rankings": rankings,
        "refused": refused,
    });
    if rows {
        out["rows"] = reading.scored.iter().map(scored).collect();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_with_commas_or_quotes_is_quoted() {
        assert_eq!(cell("a"), "a");
        assert_eq!(cell("a, \"b\""), "\"a, \"\"b\"\"\"");
    }

    #[test]
    fn a_refused_row_keeps_its_place_and_its_reason() {
        let reading = Reading {
            refused: vec![score::Refused { id: "x".into(), line: 3, reason: "no model, sorry".into() }],
            ..Reading::default()
        };
        assert!(as_csv(&reading).ends_with("x,3,,refused,,,,,,\"no model, sorry\"\n"));
    }
}
