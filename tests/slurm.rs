//! Ranks that `srun` starts, in a Slurm that `scripts/slurm.sh` sets up on this machine for each launch.
//!
//! Skipped with a line that says so where Slurm is not installed, unless `ADVISOR_REQUIRE_SLURM` is set.

#[path = "support/launchers.rs"]
mod launchers;
#[path = "support/scenario_of_ranks.rs"]
mod scenario_of_ranks;

use launchers::Launcher;
use scenario_of_ranks::{quick_run, run_with_a_signal};
use std::time::Duration;

#[test]
fn a_scenario_runs_over_the_tasks_of_a_step() {
    for launcher in Launcher::slurm() {
        let dir = tempfile::tempdir().unwrap();
        let runs = |layout: &str, phase: &str| layout != "pp=2" || phase == "train";
        let (_, rows) = quick_run(&launcher, dir.path(), "\"single\", \"dp=2\", \"pp=2\"", runs);
        assert_eq!(rows.len(), 6, "{rows:?}");
    }
}

/// With PMIx the step ends with its first task; with PMI-2 nobody is told, and the others wait for a sign of life.
#[test]
fn a_task_that_is_killed_does_not_hang_its_step_and_its_row_says_why() {
    for launcher in Launcher::slurm() {
        let (said, rows, took) = run_with_a_signal(&launcher, "-KILL");
        assert!(said.code().is_some_and(|code| code != 0), "{said}");
        assert!(took < Duration::from_secs(60), "it hung for {took:?}");
        let (_, _, status, reason, _) = rows.iter().find(|(layout, ..)| layout == "dp=2").unwrap();
        let is_known = ["dies takes all others with it", "gave no sign of life"].iter().any(|why| reason.contains(why));
        assert!(status == "failed" && is_known, "{rows:?}");
    }
}

/// A step that Slurm started without the plug-in of the library: each task is alone to MPI.
#[test]
fn tasks_that_know_nothing_of_each_other_are_told_what_to_ask_of_srun() {
    if Launcher::slurm().is_empty() || Launcher::mpich().is_none() {
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/slurm.sh");
    let said = std::process::Command::new("bash")
        .args([script, "srun", "--mpi=none", "-n", "2", env!("CARGO_BIN_EXE_advisor"), "run", "scenarios/small-digits.toml"])
        .env("ADVISOR_MPI_LIBRARY", "libmpich.so.12")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&said.stderr);
    assert!(!said.status.success() && text.contains("MPI knows of 1") && text.contains("srun --mpi=pmi2"), "{text}");
}
