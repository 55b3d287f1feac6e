//! `advisor doctor --comm`: what exchanges between ranks take, between threads of this process or, under `mpirun`, between processes.

use super::Exit;
use crate::{
    backend::CollectiveError,
    comm::{Launch, Place},
    measure::{environment, measure_exchanges, measure_thread_exchanges},
    record::{COMMUNICATION_VERSION, CommunicationFile, CommunicationRun},
    units::{Bytes, three_figures},
    vocab::Layout,
};
use anyhow::Context;
use std::path::PathBuf;

/// Numbers of ranks that are threads: two, and one on every core.
fn thread_ranks(cores: usize) -> Vec<usize> {
    let mut all = vec![2, cores];
    all.retain(|ranks| *ranks > 1);
    all.dedup();
    all
}

pub fn run(json: bool, largest: u64) -> anyhow::Result<Exit> {
    let runs = match Launch::of_this_process() {
        None => between_threads(largest)?,
        Some(launch) => {
            let Some(world) = super::join(&launch) else { return Ok(Exit::MachineFailed) };
            let (rank, hosts, library) = (world.rank(), world.hosts().to_vec(), world.library().to_string());
            let copy_bytes_per_s = if rank == 0 { environment().copy_bytes_per_s } else { None };
            let layout = Layout::data(world.size());
            // Nobody waits inside MPI while rank 0 measures how fast memory copies.
            if rank == 0 {
                (1..world.size()).try_for_each(|other| world.tell(other, "go"))?;
            } else {
                world.hear(0)?;
            }
            let seat = world.seat(1, layout)?.context("every process takes part")?;
            let member = Place::Process(seat).members(layout).remove(0);
            let rows = measure_exchanges(&*member.all, largest)?;
            world.end(Exit::MachineFailed as i32);
            if rank > 0 {
                return Ok(Exit::Done);
            }
            vec![made(library, hosts, copy_bytes_per_s, rows)]
        }
    };
    let kept = keep(&runs);
    if json {
        super::print(&serde_json::to_string_pretty(&runs)?)?;
    } else {
        runs.iter().try_for_each(table)?;
    }
    match kept {
        Ok(path) => eprintln!("kept in {}", path.display()),
        Err(error) => eprintln!("not kept: {error:#}"),
    }
    Ok(Exit::Done)
}

fn made(
    transport: String,
    hosts: Vec<String>,
    copy_bytes_per_s: Option<f64>,
    rows: Vec<crate::record::CommunicationRow>,
) -> CommunicationRun {
    let advisor_version = env!("CARGO_PKG_VERSION").to_string();
    CommunicationRun {
        unix_s: super::unix_seconds(),
        advisor_version,
        transport,
        ranks: hosts.len(),
        hosts,
        copy_bytes_per_s,
        rows,
    }
}

fn between_threads(largest: u64) -> Result<Vec<CommunicationRun>, CollectiveError> {
    let environment = environment();
    let mut runs = Vec::new();
    for ranks in thread_ranks(environment.logical_cores) {
        let rows = measure_thread_exchanges(ranks, largest)?;
        runs.push(made("threads".into(), vec![environment.host.clone(); ranks], environment.copy_bytes_per_s, rows));
    }
    Ok(runs)
}

fn path() -> Option<PathBuf> {
    super::cache_file("ADVISOR_COMMUNICATION", "communication.json")
}

/// Adds runs to the file; each replaces the one of the same hosts and transport. A file of another version is begun anew.
fn keep(runs: &[CommunicationRun]) -> anyhow::Result<PathBuf> {
    let path = path().context("this user has no folder for caches")?;
    let old = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<CommunicationFile>(&bytes).ok());
    let mut file = old
        .filter(|file| file.schema_version == COMMUNICATION_VERSION)
        .unwrap_or(CommunicationFile { schema_version: COMMUNICATION_VERSION, runs: Vec::new() });
    let is_new = |old: &CommunicationRun| runs.iter().any(|new| (&new.transport, &new.hosts) == (&old.transport, &old.hosts));
    file.runs.retain(|old| !is_new(old));
    file.runs.extend_from_slice(runs);
    super::write_cache(&path, &serde_json::to_vec_pretty(&file)?).with_context(|| path.display().to_string())?;
    Ok(path)
}

fn table(run: &CommunicationRun) -> anyhow::Result<()> {
    let unknown = || "not known".to_string();
    let copy = run.copy_bytes_per_s.map_or_else(unknown, |rate| format!("{}/s", Bytes(rate as u64)));
    super::print(&format!("{} ranks over {} on {}; copying, all cores: {copy}", run.ranks, run.transport, run.hosts.join(", ")))?;
    super::print(&format!(
        "{:16} {:>10} {:>12} {:>12} {:>14} {:>8}",
        "exchange", "size", "median us", "spread %", "GB/s", "of copy"
    ))?;
    for row in &run.rows {
        let spread = 100.0 * crate::stats::relative_deviation(&row.samples_s).unwrap_or(f64::NAN);
        let share = run.copy_bytes_per_s.map_or_else(unknown, |copy| format!("{:.0} %", 100.0 * row.share_of_copy(copy)));
        super::print(&format!(
            "{:16} {:>10} {:>12} {:>12.1} {:>14} {:>8}",
            row.operation,
            Bytes(row.bytes).to_string(),
            three_figures(1e6 * row.median_s),
            spread,
            three_figures(row.bytes_per_s() / 1e9),
            share
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_of_two_is_measured_once_and_one_core_has_none_of_its_own() {
        assert_eq!((thread_ranks(2), thread_ranks(8), thread_ranks(1)), (vec![2], vec![2, 8], vec![2]));
    }
}
