//! Predictions for this machine, as a user meets them: single ops are timed once and kept.
//!
//! A test binary of its own, whose one test nothing else runs beside: times that others disturbed are not kept.

#[path = "support/small.rs"]
mod small;

use serde_json::Value;
use small::{SMALL, text};
use std::{fs, process::Command};

#[test]
fn single_ops_are_timed_once_and_what_follows_from_them_stands_beside_what_was_measured() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("small.toml"), SMALL).unwrap();
    let kept = dir.path().join("rates.json");
    let with_rates = |arguments: &[&str]| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_advisor"));
        program.args(arguments).env("ADVISOR_RATES", &kept).current_dir(dir.path()).output().unwrap()
    };
    let run = with_rates(&["run", "small.toml", "--quick", "--out", "out"]);
    let (said, told) = (text(&run.stdout), text(&run.stderr));
    assert!(run.status.success() && told.contains("run single ops, once for this machine"), "{told}");
    assert!(told.contains("ops of these models by themselves"), "{told}");
    let was_shared = told.contains("of the processor time meanwhile");
    assert_eq!(kept.exists(), !was_shared, "{told}");
    assert!(said.contains("Predicted from this machine's rates of single ops, while the same work took "), "{said}");
    let table = fs::read_to_string(dir.path().join("out/small/results.csv")).unwrap();
    let column = |name: &str| table.lines().next().unwrap().split(',').position(|heading| heading == name).unwrap();
    let (measured, predicted, error, slowdown) = (
        column("throughput_per_s"),
        column("predicted_throughput_per_s"),
        column("prediction_error"),
        column("machine_slowdown"),
    );
    let rows: Vec<Vec<&str>> =
        table.lines().skip(1).filter(|line| !line.contains(",skipped,")).map(|line| line.split(',').collect()).collect();
    for row in &rows {
        let number = |at: usize| row[at].parse::<f64>().unwrap_or_else(|_| panic!("{row:?}"));
        assert!((number(predicted) / number(measured) - 1.0 - number(error)).abs() < 1e-9, "{row:?}");
    }
    // The same rates again, and the same candidates.
    let plan = with_rates(&["plan", "small.toml", "--json"]);
    let told = text(&plan.stderr);
    assert!(plan.status.success() && told.contains("run single ops, once for this machine") == was_shared, "{told}");
    // Which of the three layers of a pruned model skip zeros was timed again, and is now and then another one.
    let added = told.lines().filter_map(|line| line.strip_prefix("measuring ")?.split_once(" op")?.0.parse::<usize>().ok());
    assert!(was_shared || added.sum::<usize>() <= 3, "{told}");
    let answer: Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert_eq!(answer[0]["source"], "modelled");
    let planned = answer[0]["candidates"].as_array().unwrap();
    for phase in ["train", "infer"] {
        let folder = dir.path().join(format!("reports/small-{phase}-predicted"));
        for file in ["plan.html", "plan.csv", "plan.json", "plots/memory.svg", "plots/time-split.svg"] {
            assert!(folder.join(file).metadata().unwrap().len() > 100, "{phase} {file}");
        }
        let page = fs::read_to_string(folder.join("plan.html")).unwrap();
        assert!(page.contains("on this machine") && !page.contains("NaN") && !page.contains("<script"), "{page}");
    }
    for row in rows.iter().filter(|row| row[column("phase")] == "infer") {
        let same = planned.iter().find(|one| one["candidate"] == row[column("candidate")]).unwrap_or_else(|| panic!("{row:?}"));
        let here = same["predicted_throughput_per_s"].as_f64().unwrap();
        // A plan says nothing of how fast the processor will be.
        let there = row[predicted].parse::<f64>().unwrap() * row[slowdown].parse::<f64>().unwrap();
        // The copy rate that rows are fetched at is measured anew; all are on a machine that others use.
        assert!(here > 0.0 && there > 0.0 && (was_shared || (here / there - 1.0).abs() < 0.5), "{row:?} {same}");
    }
}
