//! Two hosts: `scripts/two_hosts.sh` runs a scenario over two network namespaces, at a free and at a slow link.
//!
//! Needs root, iproute2 and Open MPI; skipped with a line that says so where one is missing.

use std::{collections::HashMap, path::Path, process::Command};

#[test]
fn a_slow_link_between_hosts_costs_layouts_by_what_they_send() {
    let dir = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/two_hosts.sh");
    let rates = ["free", "20mbit"];
    let said = Command::new("bash")
        .arg(script)
        .arg(dir.path())
        .args(rates)
        .env("ADVISOR", env!("CARGO_BIN_EXE_advisor"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let errors = String::from_utf8_lossy(&said.stderr).into_owned();
    if said.status.code() == Some(77) {
        println!("{errors}");
        return;
    }
    assert!(said.status.success(), "{text}\n{errors}");
    println!("{text}");
    let rows: HashMap<&str, Vec<f64>> = text
        .lines()
        .skip(1)
        .map(|line| {
            let mut words = line.split_whitespace();
            let layout = words.next().unwrap();
            (layout, words.map(|word| word.parse().unwrap_or_else(|_| panic!("{layout}: {word}\n{text}"))).collect())
        })
        .collect();
    // Each row over that of one rank, which sends nothing.
    let ratio = |layout: &str, rate: usize| rows[layout][rate] / rows["single"][rate];
    // 203 kB of gradients a step leave each host at 20 Mbit/s: 81 ms, and so under 790 images a second, whatever computes.
    assert!(rows["dp=2"][1] < 790.0, "{text}");
    assert!(ratio("dp=2", 1) < ratio("dp=2", 0), "{text}");
    // A pipeline sends the activations of one layer, a third of that.
    assert!(rows["pp=2"][1] > rows["dp=2"][1], "{text}");
    let record = std::fs::read_to_string(dir.path().join("20mbit/two-hosts/run.jsonl")).unwrap();
    assert!(record.contains("`node1` (1) and `node2` (1)"), "rows name both hosts");
}
