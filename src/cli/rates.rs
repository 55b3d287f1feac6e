//! How fast this machine runs single ops: measured once, kept beside other caches, read again by later runs.

use super::Exit;
use crate::{
    measure::{RateCase, extend_rates, measure_rates, rate_cases},
    predict::LocalRates,
    record::{Environment, RATES_VERSION, RateTable, RatesFile, Workers},
    units::Seconds,
    vocab::Device,
};
use anyhow::Context;
use std::{collections::BTreeMap, path::PathBuf};

/// What `ADVISOR_RATES` names, else `advisor/rates.json` in the user's folder for caches.
fn path() -> Option<PathBuf> {
    super::cache_file("ADVISOR_RATES", "rates.json")
}

/// `ADVISOR_RATES=none` stands for `--no-predictions`.
pub fn are_unwanted() -> bool {
    std::env::var_os("ADVISOR_RATES").is_some_and(|value| value == "none")
}

/// What must be equal for rates to hold.
fn machine(environment: &Environment) -> String {
    let gpus: Vec<&str> = environment.gpus.iter().map(|gpu| gpu.name.as_str()).collect();
    let Environment { cpu, logical_cores, advisor_version, commit, rustc, .. } = environment;
    let commit = commit.as_deref().unwrap_or("no commit known");
    format!("{cpu}, {logical_cores} cores, {}; {advisor_version}, {commit}, {rustc}", gpus.join(", "))
}

/// `advisor doctor --rates`: measures anew.
pub fn run(json: bool, environment: Environment) -> anyhow::Result<Exit> {
    let cores = environment.logical_cores;
    let of = |ranks: usize| Workers { device: Device::Cpu, ranks, threads: (cores / ranks).max(1) };
    let mut workers = vec![Workers { device: Device::Cpu, ranks: 1, threads: 1 }, of(1), of(2)];
    workers.retain(|workers| workers.ranks * workers.threads <= cores);
    workers.extend((!environment.gpus.is_empty()).then_some(Workers { device: Device::Cuda(0), ranks: 1, threads: 1 }));
    let tables = complete(Vec::new(), workers.into_iter().map(|workers| (workers, Vec::new())).collect(), &environment)?;
    if json {
        super::print(&serde_json::to_string_pretty(&tables)?)?;
    } else {
        tables.iter().try_for_each(|table| super::print(&line(table)))?;
    }
    Ok(Exit::Done)
}

/// Rates of workers at the sizes of a sweep and at those of the ops beside them, and all others that are kept; what was not measured yet is.
pub fn of(wanted: Vec<(Workers, Vec<RateCase>)>, environment: &Environment) -> anyhow::Result<Vec<RateTable>> {
    complete(kept(environment), wanted, environment)
}

/// Rates that were kept on this machine by this program.
fn kept(environment: &Environment) -> Vec<RateTable> {
    let read = |path: PathBuf| serde_json::from_slice::<RatesFile>(&std::fs::read(path).ok()?).ok();
    let file = path().and_then(read).filter(|file| file.schema_version == RATES_VERSION);
    file.filter(|file| file.machine == machine(environment)).map_or_else(Vec::new, |file| file.tables)
}

/// Measures what `known` lacks, and keeps all. A machine without a place for caches measures again.
fn complete(
    known: Vec<RateTable>,
    wanted: Vec<(Workers, Vec<RateCase>)>,
    environment: &Environment,
) -> anyhow::Result<Vec<RateTable>> {
    let mut by_workers: BTreeMap<Workers, Vec<RateCase>> = BTreeMap::new();
    wanted.into_iter().for_each(|(workers, ops)| by_workers.entry(workers).or_default().extend(ops));
    let mut rates = Rates { tables: known.clone(), lasting: known, has_news: false };
    for workers in by_workers.keys() {
        if rates.of(*workers).is_none() {
            eprintln!("measuring how fast {} run single ops, once for this machine ...", words(*workers));
            rates.take(measure_rates(*workers, &rate_cases(), &doubted)?);
        }
    }
    for (workers, ops) in by_workers {
        let mut table = rates.of(workers).expect("measured above").clone();
        let lacking = lacking(&table, ops);
        if !lacking.is_empty() {
            eprintln!("measuring {} of these models by themselves, {} ...", plural(lacking.len(), "op"), words(workers));
            extend_rates(&mut table, &lacking, &doubted)?;
            rates.take(table);
        }
    }
    let Rates { tables, lasting, has_news } = rates;
    if has_news {
        let file = RatesFile { schema_version: RATES_VERSION, machine: machine(environment), tables: lasting };
        match keep(&file) {
            Ok(path) => eprintln!("kept in {}", path.display()),
            Err(error) => eprintln!("not kept: {error:#}"),
        }
    }
    Ok(tables)
}

/// What is known of this machine.
struct Rates {
    /// For this run.
    tables: Vec<RateTable>,
    /// Those that say what the machine can do.
    lasting: Vec<RateTable>,
    has_news: bool,
}

impl Rates {
    fn of(&self, workers: Workers) -> Option<&RateTable> {
        self.tables.iter().find(|table| table.workers == workers)
    }

    /// A table that was measured just now, in place of a shorter one.
    fn take(&mut self, table: RateTable) {
        match table.shared() {
            Some(share) => eprintln!(
                "warning: others took {:.0} % of the processor time meanwhile, so these times are too long: not kept, and measured anew next time",
                100.0 * share
            ),
            None => {
                put(&mut self.lasting, table.clone());
                self.has_news = true;
            }
        }
        put(&mut self.tables, table);
    }
}

/// In place of the one of the same workers, or behind all.
fn put(tables: &mut Vec<RateTable>, table: RateTable) {
    match tables.iter_mut().find(|other| other.workers == table.workers) {
        Some(other) => *other = table,
        None => tables.push(table),
    }
}

/// Those of `ops` whose sizes a table does not have, each once.
fn lacking(table: &RateTable, ops: Vec<RateCase>) -> Vec<RateCase> {
    let mut rows = table.rows.clone();
    let is_new = |case: &RateCase| {
        let row = case.row(Seconds(0.0));
        let is_new = !rows.iter().any(|other| other.is_of_size(&row));
        rows.extend(is_new.then_some(row));
        is_new
    };
    ops.into_iter().filter(is_new).collect()
}

/// Rows to time again.
fn doubted(table: &RateTable) -> Vec<usize> {
    LocalRates::new(table).map_or_else(Vec::new, |rates| rates.doubted())
}

fn keep(file: &RatesFile) -> anyhow::Result<PathBuf> {
    let path = path().context("this user has no folder for caches")?;
    super::write_cache(&path, &serde_json::to_vec(file)?).with_context(|| path.display().to_string())?;
    Ok(path)
}

fn plural(count: usize, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}

/// `2 ranks of 1 thread`.
fn words(workers: Workers) -> String {
    if workers.device.is_cuda() {
        return workers.device.to_string();
    }
    let threads = plural(workers.threads, "thread");
    if workers.ranks == 1 { threads } else { format!("{} of {threads}", plural(workers.ranks, "rank")) }
}

/// `2 threads: 612 ops timed, each predicted from the others to 9 % in the median`.
fn line(table: &RateTable) -> String {
    let error = LocalRates::new(table).and_then(|rates| rates.median_error());
    let error =
        error.map_or(String::new(), |error| format!(", each predicted from the others to {:.0} % in the median", 100.0 * error));
    format!("{}: {} ops timed{error}", words(table.workers), table.rows.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_taken_beside_others_are_not_kept() {
        let table = |threads: usize, others_share: Option<f64>| RateTable {
            workers: Workers { device: Device::Cpu, ranks: 1, threads },
            unix_s: 0,
            others_share,
            machine_speed: None,
            rows: Vec::new(),
            exchanges: Vec::new(),
        };
        let device = RateTable { workers: Workers { device: Device::Cuda(0), ranks: 1, threads: 1 }, ..table(1, Some(0.9)) };
        let tables = [table(1, Some(0.02)), table(2, Some(0.4)), table(4, None), device.clone()];
        let mut rates = Rates { tables: Vec::new(), lasting: Vec::new(), has_news: false };
        rates.take(tables[1].clone());
        assert!(!rates.has_news);
        tables.iter().for_each(|table| rates.take(table.clone()));
        assert_eq!((rates.tables.len(), rates.has_news), (4, true));
        assert_eq!(rates.lasting, [tables[0].clone(), tables[2].clone(), device]);
        // Ops that were added beside others serve this run, and what was kept stays.
        let added = RateTable { others_share: Some(0.5), ..table(1, None) };
        rates.take(added.clone());
        assert_eq!((rates.of(added.workers), &rates.lasting[0]), (Some(&added), &tables[0]));
    }

    #[test]
    fn each_size_that_a_table_lacks_is_timed_once() {
        let cases = rate_cases();
        let rows = cases[..3].iter().map(|case| case.row(Seconds(1e-6))).collect();
        let workers = Workers { device: Device::Cpu, ranks: 1, threads: 1 };
        let table = RateTable { workers, unix_s: 0, others_share: None, machine_speed: None, rows, exchanges: Vec::new() };
        let wanted = [1, 3, 4, 3, 0].map(|k| cases[k].clone()).to_vec();
        let rows: Vec<_> = lacking(&table, wanted).iter().map(|case| case.row(Seconds(0.0))).collect();
        assert_eq!(rows, [3, 4].map(|k: usize| cases[k].row(Seconds(0.0))));
    }
}
