//! How fast this machine runs single ops: measured once, kept beside other caches, read again by later runs.

use super::Exit;
use crate::{
    measure::{measure_rates, rate_cases},
    predict::LocalRates,
    record::{Environment, RATES_VERSION, RateTable, RatesFile, Workers},
    vocab::Device,
};
use anyhow::Context;
use std::path::PathBuf;

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
    let tables = complete(Vec::new(), &workers, &environment)?;
    if json {
        super::print(&serde_json::to_string_pretty(&tables)?)?;
    } else {
        tables.iter().try_for_each(|table| super::print(&line(table)))?;
    }
    Ok(Exit::Done)
}

/// Rates of `workers`, and all others that are kept; what was not measured yet is.
pub fn of(workers: &[Workers], environment: &Environment) -> anyhow::Result<Vec<RateTable>> {
    complete(kept(environment), workers, environment)
}

/// Rates that were kept on this machine by this program.
fn kept(environment: &Environment) -> Vec<RateTable> {
    let read = |path: PathBuf| serde_json::from_slice::<RatesFile>(&std::fs::read(path).ok()?).ok();
    let file = path().and_then(read).filter(|file| file.schema_version == RATES_VERSION);
    file.filter(|file| file.machine == machine(environment)).map_or_else(Vec::new, |file| file.tables)
}

/// Measures those of `workers` that `known` lacks, and keeps all. A machine without a place for caches measures again.
fn complete(known: Vec<RateTable>, workers: &[Workers], environment: &Environment) -> anyhow::Result<Vec<RateTable>> {
    let mut tables = known;
    let is_missing = |workers: &Workers| tables.iter().all(|table| table.workers != *workers);
    let mut missing: Vec<Workers> = workers.iter().copied().filter(is_missing).collect();
    missing.sort_unstable();
    missing.dedup();
    let cases = rate_cases();
    for workers in &missing {
        eprintln!("measuring how fast {} run single ops, once for this machine ...", words(*workers));
        let table = measure_rates(*workers, &cases, &doubted, &mut |_, _| ())?;
        if let Some(share) = table.shared() {
            eprintln!(
                "warning: others took {:.0} % of the processor time meanwhile, so these times are too long: not kept, and measured anew next time",
                100.0 * share
            );
        }
        tables.push(table);
    }
    let lasting = lasting(&tables);
    if missing.iter().any(|workers| lasting.iter().any(|table| table.workers == *workers)) {
        let file = RatesFile { schema_version: RATES_VERSION, machine: machine(environment), tables: lasting };
        match keep(&file) {
            Ok(path) => eprintln!("kept in {}", path.display()),
            Err(error) => eprintln!("not kept: {error:#}"),
        }
    }
    Ok(tables)
}

/// Those that say what the machine can do.
fn lasting(tables: &[RateTable]) -> Vec<RateTable> {
    tables.iter().filter(|table| table.shared().is_none()).cloned().collect()
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

/// `2 ranks of 1 thread`.
fn words(workers: Workers) -> String {
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
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
            rows: Vec::new(),
            exchanges: Vec::new(),
        };
        let device = RateTable { workers: Workers { device: Device::Cuda(0), ranks: 1, threads: 1 }, ..table(1, Some(0.9)) };
        let tables = [table(1, Some(0.02)), table(2, Some(0.4)), table(4, None), device.clone()];
        assert_eq!(lasting(&tables), [tables[0].clone(), tables[2].clone(), device]);
    }
}
