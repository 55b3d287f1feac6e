//! The program on a machine that seems to have a GPU: CUDA's driver is the stand-in of `kernels/emulator/driver.cpp`.

#[path = "support/emulator.rs"]
mod emulator;

use serde_json::Value;
use std::{
    fs,
    io::Read,
    path::Path,
    process::{Command, Output},
};

/// `advisor doctor --json` with the stand-in and these variables of its; `None` where there is no C++ compiler.
fn doctor(variables: &[(&str, &str)]) -> Option<Value> {
    let driver = &emulator::emulator()?.driver;
    let output = Command::new(env!("CARGO_BIN_EXE_advisor"))
        .args(["doctor", "--json"])
        .env("LD_LIBRARY_PATH", driver)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    assert!(output.status.code().is_some(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice::<Value>(&output.stdout).unwrap()["cuda"].take())
}

#[test]
fn doctor_lists_devices_with_the_kernels_that_they_take() {
    for (capability, image) in
        [("9.0", Some("sm_90a")), ("8.0", Some("sm_80")), ("8.7", Some("sm_86")), ("12.0", Some("compute_80")), ("7.5", None)]
    {
        let Some(cuda) = doctor(&[("ADVISOR_STANDIN_CAPABILITY", capability)]) else { return };
        assert_eq!(cuda["driver"], "12.0");
        let device = &cuda["devices"][0];
        assert_eq!((device["name"].as_str(), device["capability"].as_str()), (Some("Emulated GPU"), Some(capability)));
        assert_eq!(device["uuid"], "GPU-00000000-0000-0000-0000-000000000000");
        assert_eq!((device["multiprocessors"].as_u64(), device["memory"].as_u64()), (Some(4), Some(4 << 30)));
        assert_eq!(device["kernels"].as_str(), image);
        // What no kernel runs on has no rates.
        assert_eq!(device["bf16_flops_per_s"].as_f64().is_some(), image.is_some(), "{device}");
    }
}

#[test]
fn doctor_counts_devices_and_says_when_a_driver_shows_none() {
    let Some(cuda) = doctor(&[("ADVISOR_STANDIN_DEVICES", "3")]) else { return };
    assert_eq!(cuda["devices"].as_array().unwrap().len(), 3);
    let cuda = doctor(&[("ADVISOR_STANDIN_DEVICES", "0")]).unwrap();
    assert_eq!(cuda["absent"], "the CUDA driver shows no device (CUDA_ERROR_NO_DEVICE)");
}

/// Runs `s.toml` of a folder on the stand-in.
fn run(folder: &Path, driver: &Path, devices: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_advisor"))
        .args(["run", "s.toml", "--quick", "--out", "out"])
        .current_dir(folder)
        .env("LD_LIBRARY_PATH", driver)
        .env("ADVISOR_STANDIN_DEVICES", devices)
        .env("ADVISOR_TUNING", "off")
        .output()
        .unwrap()
}

/// Losses of the first seed of a trained row.
fn curve(record: &Value) -> Vec<f64> {
    let curve = record["training"]["seeds"][0]["loss_curve"].as_array().unwrap();
    curve.iter().map(|point| point[1].as_f64().unwrap()).collect()
}

const SCENARIO: &str = r#"
name = "on-a-gpu"
[workload]
model = "mlp"
data = { format = "csv", path = "rows.csv", label = "label", shape = [3, 4, 1], maximum = 9, test_share = 0.3 }
phase = ["train", "infer"]
[train]
epochs = 1
batch_size = 16
[grid]
device = ["cuda", "cpu"]
layout = ["single", "dp=2"]
batch_size = [16]
threads = [2]
[cost]
hourly_usd = 1.0
"#;

#[test]
fn a_scenario_runs_on_devices_and_on_the_processor_and_both_learn_the_same() {
    let Some(built) = emulator::emulator() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut rows = "a,b,c,d,e,f,g,h,i,j,k,l,label\n".to_string();
    for row in 0..100 {
        let pixel = |k: usize| if k % 3 == row % 3 { 6 + (row * 7 + k) % 4 } else { (row * 5 + k * 3) % 4 };
        let pixels: Vec<String> = (0..12).map(|k| pixel(k).to_string()).collect();
        rows += &format!("{},class{}\n", pixels.join(","), row % 3);
    }
    fs::write(dir.path().join("rows.csv"), rows).unwrap();
    fs::write(dir.path().join("s.toml"), SCENARIO).unwrap();
    let output = run(dir.path(), &built.driver, "2");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stdout));
    let log = fs::read_to_string(dir.path().join("out/on-a-gpu/run.jsonl")).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let gpus = lines[0]["environment"]["gpus"].as_array().unwrap();
    assert_eq!((gpus.len(), gpus[1]["kernels"].as_str()), (2, Some("sm_90a")));
    let records: Vec<&Value> = lines.iter().filter(|line| line["kind"] == "candidate").collect();
    let of = |phase: &str, device: &str, layout: &str| {
        let is = |r: &&&Value| {
            let c = &r["candidate"];
            c["phase"] == phase && c["device"] == device && c["layout"] == layout
        };
        *records.iter().rfind(is).unwrap_or_else(|| panic!("no row {phase} {device} {layout}"))
    };
    for (phase, layout) in [("train", "single"), ("train", "dp=2"), ("infer", "single"), ("infer", "dp=2")] {
        let (ours, theirs) = (of(phase, "cuda", layout), of(phase, "cpu", layout));
        assert_eq!((ours["status"].as_str(), theirs["status"].as_str()), (Some("ok"), Some("ok")), "{ours}");
        let notes = ours["notes"].to_string();
        assert!(notes.contains("ran on Emulated GPU, compute capability 9.0, kernels for sm_90a"), "{notes}");
    }
    let reference = curve(of("train", "cpu", "single"));
    assert!(reference.len() >= 4 && reference.last() < reference.first(), "{reference:?}");
    for (device, layout) in [("cuda", "single"), ("cuda", "dp=2")] {
        for (ours, theirs) in curve(of("train", device, layout)).iter().zip(&reference) {
            assert!((ours - theirs).abs() <= 1e-3 * theirs, "{device} {layout}: {ours} is not {theirs}");
        }
    }
    // One device: two ranks find no second, and the row says so.
    fs::write(dir.path().join("s.toml"), SCENARIO.replace("[\"cuda\", \"cpu\"]", "\"cuda:1\"")).unwrap();
    let output = run(dir.path(), &built.driver, "1");
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stderr).contains("wants a device that this machine does not have"));
}

const HUNDRED_STEPS: &str = r#"
name = "hundred-steps"
[workload]
model = "simple-cnn"
data = { format = "csv", path = "rows.csv", label = "label", shape = [8, 8, 1], maximum = 16, test_share = 0.05 }
phase = "train"
[train]
epochs = 1
batch_size = 4
optimizer = { kind = "sgd", learning_rate = 0.05, momentum = 0.9 }
[grid]
device = ["cpu", "cuda"]
batch_size = [4]
threads = [1]
[cost]
hourly_usd = 1.0
"#;

#[test]
fn simple_cnn_learns_the_same_on_both_devices_over_a_hundred_steps() {
    let Some(built) = emulator::emulator() else { return };
    let dir = tempfile::tempdir().unwrap();
    let packed = fs::File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/data/digits-8x8/digits-8x8.csv.gz")).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
    // The first column says which part a row belongs to.
    let rows: Vec<&str> = text.lines().take(1 + 424).map(|line| line.split_once(',').unwrap().1).collect();
    fs::write(dir.path().join("rows.csv"), rows.join("\n") + "\n").unwrap();
    fs::write(dir.path().join("s.toml"), HUNDRED_STEPS).unwrap();
    let output = run(dir.path(), &built.driver, "1");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let log = fs::read_to_string(dir.path().join("out/hundred-steps/run.jsonl")).unwrap();
    let records: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |device: &str| {
        let trained = |r: &&Value| r["kind"] == "candidate" && r["candidate"]["device"] == device;
        curve(records.iter().rfind(trained).unwrap_or_else(|| panic!("no row on {device}")))
    };
    let (ours, theirs) = (of("cuda"), of("cpu"));
    assert!(ours.len() >= 100 && ours.len() == theirs.len(), "{} and {} steps", ours.len(), theirs.len());
    let tenth = ours.len() / 10;
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    assert!(mean(&ours[ours.len() - tenth..]) < mean(&ours[..tenth]), "it learns nothing: {ours:?}");
    let worst = ours.iter().zip(&theirs).map(|(ours, theirs)| (ours - theirs).abs() / theirs).fold(0.0, f64::max);
    assert!(worst <= 1e-3, "losses differ by {worst:e}");
}
