//! A small scenario of several ranks under a launcher: its file, its rows, and a rank that is stopped while it is at work.
#![allow(dead_code)]

use super::launchers::{Launcher, Said, wait};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// A scenario file in `folder`.
pub fn scenario(folder: &Path, layouts: &str, epochs: usize) -> PathBuf {
    let path = folder.join("ranks.toml");
    let text = format!(
        "name = \"ranks\"\n[workload]\nmodel = \"mlp\"\ndata = \"digits-8x8\"\nphase = [\"train\", \"infer\"]\n\
         [train]\nepochs = {epochs}\nseeds = 1\nbatch_size = 32\n[grid]\ndevice = [\"cpu\"]\nbatch_size = [32]\nthreads = [2]\nlayout = [{layouts}]\n"
    );
    std::fs::write(&path, text).unwrap();
    path
}

/// Layout, phase, status, reason and notes of a row.
pub type Row = (String, String, String, String, String);

/// Rows of the last record of each candidate.
pub fn rows(out: &Path) -> Vec<Row> {
    let text = std::fs::read_to_string(out.join("ranks/run.jsonl")).unwrap_or_default();
    let mut rows: Vec<Row> = Vec::new();
    for line in text.lines() {
        let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        if line["kind"] != "candidate" {
            continue;
        }
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_string();
        let candidate = &line["candidate"];
        let (layout, phase) = (text(&candidate["layout"]), text(&candidate["phase"]));
        rows.retain(|(l, p, ..)| (l, p) != (&layout, &phase));
        rows.push((layout, phase, text(&line["status"]), text(&line["reason"]), line["notes"].to_string()));
    }
    rows
}

/// A quick run of two processes in `folder`: its rows have ended as `runs` says of their layout and phase, over the launcher's library.
pub fn quick_run(launcher: &Launcher, folder: &Path, layouts: &str, runs: impl Fn(&str, &str) -> bool) -> (PathBuf, Vec<Row>) {
    let file = scenario(folder, layouts, 2);
    let out = folder.join("out");
    let arguments = ["run", file.to_str().unwrap(), "--no-predictions", "--quick", "--out", out.to_str().unwrap()];
    let program = Path::new(env!("CARGO_BIN_EXE_advisor"));
    let said = launcher.run(2, program, &arguments, &[], Duration::from_secs(200));
    // 1: nothing feasible is an answer too.
    assert!(said.code().is_some_and(|code| code <= 1), "{said}");
    let rows = rows(&out);
    for (layout, phase, status, reason, notes) in &rows {
        let runs = runs(layout, phase);
        assert_eq!(status, if runs { "ok" } else { "skipped" }, "{layout} {phase}: {reason}\n{said}");
        let over = format!("2 ranks, each a process, over {}", launcher.library());
        assert_eq!(notes.contains(&over), runs && layout != "single", "{layout} {phase}: {notes}");
    }
    (out, rows)
}

/// The process that is rank `rank` of a launch of this program that writes to `out`.
fn process_of(rank: usize, out: &Path) -> Option<u32> {
    let is_it = |pid: &u32| {
        let read = |what: &str| std::fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap_or_default();
        let names = ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"];
        let numbers = names.map(|name| format!("{name}={rank}"));
        let line = read("cmdline");
        let mut words = line.split('\0');
        words.next().is_some_and(|name| name.ends_with("advisor"))
            && words.next() == Some("run")
            && line.contains(out.to_str().unwrap())
            && read("environ").split('\0').any(|variable| numbers.iter().any(|number| number == variable))
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(is_it)
}

/// Sends `signal` to rank 1 as soon as a candidate of two ranks is at work; how the launch ended, its rows, and how long that took.
pub fn run_with_a_signal(launcher: &Launcher, signal: &str) -> (Said, Vec<Row>, Duration) {
    let dir = tempfile::tempdir().unwrap();
    let file = scenario(dir.path(), "\"single\", \"dp=2\"", 200);
    run_file_with_a_signal(launcher, &file, &dir.path().join("out"), &[], signal)
}

/// The same of a scenario file, whose name in it is `ranks`, with more variables.
pub fn run_file_with_a_signal(
    launcher: &Launcher,
    file: &Path,
    out: &Path,
    more: &[(&str, &str)],
    signal: &str,
) -> (Said, Vec<Row>, Duration) {
    let arguments = ["run", file.to_str().unwrap(), "--no-predictions", "--out", out.to_str().unwrap()];
    let program = Path::new(env!("CARGO_BIN_EXE_advisor"));
    let variables = [&[("ADVISOR_RANK_PATIENCE_S", "3")], more].concat();
    let launch = launcher.start(2, program, &arguments, &variables);
    let deadline = Instant::now() + Duration::from_secs(100);
    while !rows(out).iter().any(|(layout, ..)| layout == "dp=2") {
        assert!(Instant::now() < deadline, "no candidate of two ranks began: {}", wait(launch, Duration::ZERO));
        std::thread::sleep(Duration::from_millis(10));
    }
    // Past the making of groups, where MPI itself waits; that ends the launch, as a death does.
    std::thread::sleep(Duration::from_millis(500));
    let pid = process_of(1, out).expect("rank 1 runs");
    let at = Instant::now();
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
    let said = wait(launch, Duration::from_secs(100));
    (said, rows(out), at.elapsed())
}
