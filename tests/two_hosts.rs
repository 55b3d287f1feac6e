//! Two hosts: `scripts/two_hosts.sh` runs a scenario over two network namespaces, at a free and at a slow link, and on a GPU of each.
//!
//! Needs root, iproute2 and Open MPI; skipped with a line that says so where one is missing.

#[path = "support/emulator.rs"]
mod emulator;

use std::{collections::HashMap, path::Path, process::Command};

#[test]
fn a_slow_link_between_hosts_bounds_what_must_pass_it() {
    let dir = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/two_hosts.sh");
    let rates = ["free", "20mbit"];
    let said = Command::new("bash")
        .arg(script)
        .arg(dir.path())
        .args(rates)
        .env("ADVISOR", env!("CARGO_BIN_EXE_advisor"))
        .env("ADVISOR_RATES", "none")
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
    assert!(rows.values().flatten().all(|rows_per_s| *rows_per_s > 0.0), "{text}");
    // 203 kB of gradients a step leave each host at 20 Mbit/s: 81 ms, and so under 790 images a second, whatever computes and how busy it is.
    assert!(rows["dp=2"][1] < 790.0, "{text}");
    let record = std::fs::read_to_string(dir.path().join("20mbit/two-hosts/run.jsonl")).unwrap();
    assert!(record.contains("`node1` (1) and `node2` (1)"), "rows name both hosts");
}

#[test]
fn ranks_on_two_hosts_take_the_devices_of_their_own_host() {
    let Some(built) = emulator::emulator_of(emulator::Flavour::Fast) else { return };
    let dir = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/two_hosts.sh");
    // Each host has one device. By the rank among all processes the second rank would ask for one that is not there.
    let said = Command::new("bash")
        .arg(script)
        .arg(dir.path())
        .arg("free")
        .env("ADVISOR", env!("CARGO_BIN_EXE_advisor"))
        .env("ADVISOR_RATES", "none")
        .env("ADVISOR_TUNING", "off")
        .env("ADVISOR_DEVICE", "cuda")
        .env("ADVISOR_LAYOUTS", "\"dp=2\"")
        .env("LD_LIBRARY_PATH", &built.driver)
        .env("ADVISOR_STANDIN_DEVICES", "1")
        .env("ADVISOR_NCCL", built.driver.join("libcuda.so"))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&said.stderr).into_owned();
    if said.status.code() == Some(77) {
        println!("{errors}");
        return;
    }
    assert!(said.status.success(), "{}\n{errors}", String::from_utf8_lossy(&said.stdout));
    let record = std::fs::read_to_string(dir.path().join("free/two-hosts/run.jsonl")).unwrap();
    let mut lines = record.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let row = lines.rfind(|line| line["candidate"]["layout"] == "dp=2").expect("a row of two ranks");
    assert_eq!(row["status"], "ok", "{row}");
    let notes = row["notes"].to_string();
    for words in ["`node1` (1) and `node2` (1)", "exchanges went from device to device by NCCL 2.27.3"] {
        assert!(notes.contains(words), "{words}: {notes}");
    }
    assert_eq!(notes.matches("ran on Emulated GPU").count(), 2, "{notes}");
}
