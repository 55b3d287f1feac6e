//! The program on a machine that seems to have a GPU: CUDA's driver is the stand-in of `kernels/emulator/driver.cpp`.

#[path = "support/emulator.rs"]
mod emulator;
#[path = "support/patterns.rs"]
mod patterns;

use advisor::{
    data::{DataSet, DataSource},
    models::find,
    record::{Candidate, OptimizerConfig, SeedRun, TrainConfig},
    train::{TrainError, Trainer},
    vocab::{Compression, Device, Layout, Metric, OptimizerKind, Phase, Precision, Schedule},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// `advisor doctor --json` with the stand-in and these variables of its; `None` where there is no C++ compiler.
fn doctor(variables: &[(&str, &str)]) -> Option<Value> {
    let driver = &emulator::emulator()?.driver;
    let output = Command::new(env!("CARGO_BIN_EXE_advisor"))
        .env("ADVISOR_RATES", "none")
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
    let Some(cuda) = doctor(&[("ADVISOR_STANDIN_DEVICES", "3"), ("ADVISOR_NCCL", "off")]) else { return };
    assert_eq!(cuda["devices"].as_array().unwrap().len(), 3);
    assert_eq!(cuda["exchanges"], "through the host: NCCL cannot be opened: ADVISOR_NCCL is `off`");
    // The stand-in has its calls.
    let cuda = doctor(&[("ADVISOR_NCCL", "libcuda.so.1")]).unwrap();
    assert_eq!(cuda["exchanges"], "NCCL 2.27.3");
    let cuda = doctor(&[("ADVISOR_STANDIN_DEVICES", "0")]).unwrap();
    assert_eq!(cuda["absent"], "the CUDA driver shows no device (CUDA_ERROR_NO_DEVICE)");
}

/// Runs `s.toml` of a folder on the stand-in.
fn run(folder: &Path, driver: &Path, devices: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_advisor"))
        .env("ADVISOR_RATES", "none")
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
    fs::write(dir.path().join("rows.csv"), patterns::csv(100)).unwrap();
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

/// Set where the test below runs in a process whose driver is the stand-in: how many steps to train.
const STEPS: &str = "ADVISOR_TEST_TRAINS_STEPS";
const BATCH: usize = 4;

/// The rate changes at every step.
fn config(epochs: usize, optimizer: OptimizerConfig, batch_size: usize) -> TrainConfig {
    TrainConfig { schedule: Schedule::Cosine, ..TrainConfig::new(epochs, optimizer, batch_size) }
}

/// One epoch of so many steps on patterns of three classes.
fn trained(device: Device, precision: Precision, layout: Layout, steps: usize) -> (SeedRun, Option<String>) {
    let mut trainer = trainer(device, precision, layout, steps);
    let run = trainer.run(Metric::Accuracy).unwrap().0;
    (run, trainer.team().first().exchanges())
}

fn trainer(device: Device, precision: Precision, layout: Layout, steps: usize) -> Trainer {
    let set = patterns::rows(BATCH * steps, BATCH);
    let config = config(1, OptimizerConfig::new(OptimizerKind::Adam, 0.01), BATCH);
    let (phase, compression) = (Phase::Train, Compression::NONE);
    let candidate = Candidate { phase, device, precision, compression, layout, batch_size: BATCH, threads: 1 };
    Trainer::new(&patterns::MODEL, set, &candidate, &config, 1).unwrap()
}

#[test]
fn training_steps_wait_for_nothing_and_learn_and_skip_what_the_processor_does() {
    if let Some(steps) = std::env::var_os(STEPS) {
        let steps: usize = steps.to_str().unwrap().parse().unwrap();
        for (precision, tolerance) in [(Precision::Fp32, 1e-3), (Precision::Fp16, 2e-2)] {
            let [ours, theirs] = [Device::Cuda(0), Device::Cpu].map(|device| trained(device, precision, Layout::SINGLE, steps).0);
            assert_eq!(ours.skipped_steps, theirs.skipped_steps, "{precision:?}");
            assert_eq!(ours.skipped_steps > 1, precision == Precision::Fp16, "{}", ours.skipped_steps);
            assert_eq!((ours.loss_curve.len(), ours.failure), (steps, None));
            for (ours, theirs) in ours.loss_curve.iter().zip(&theirs.loss_curve) {
                assert!((ours.1 - theirs.1).abs() <= tolerance * theirs.1, "{precision:?}: {ours:?} is not {theirs:?}");
            }
        }
        return;
    }
    let Some(built) = emulator::emulator() else { return };
    let dir = tempfile::tempdir().unwrap();
    let counts = [10, 40].map(|steps: usize| -> BTreeMap<String, u64> {
        let log = dir.path().join(steps.to_string());
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "training_steps_wait_for_nothing_and_learn_and_skip_what_the_processor_does"])
            .env("LD_LIBRARY_PATH", &built.driver)
            .env("ADVISOR_STANDIN_LOG", &log)
            .env(STEPS, steps.to_string())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
        let lines = fs::read_to_string(log).unwrap();
        lines.lines().filter_map(|line| line.split_once(' ')).map(|(what, n)| (what.into(), n.parse().unwrap())).collect()
    });
    // Two runs of 30 steps more; each uploads images, labels and a rate.
    let more = |what: &str| counts[1][what] - counts[0][what];
    for waits in ["synchronisations", "copies_from_pageable_memory", "copies_to_host"] {
        assert_eq!(more(waits), 0, "{waits}: {counts:?}");
    }
    assert_eq!((more("copies_to_device"), more("copies_on_device")), (2 * 3 * 30, 2 * 30), "{counts:?}");
    assert!(more("event_waits") > 0, "page-locked memory was written anew without a wait: {counts:?}");
    for left in ["alive_host_memory", "alive_events", "alive_contexts", "host_memory_left_to_context", "events_left_to_context"] {
        assert_eq!(counts[1][left], 0, "{left}");
    }
}

/// Set in the process of a test whose driver is the stand-in.
const ON_THE_STAND_IN: &str = "ADVISOR_TEST_ON_THE_STAND_IN";

#[test]
fn tf32_and_fp8_learn_on_a_device_what_the_processor_learns() {
    if std::env::var_os(ON_THE_STAND_IN).is_some() {
        // The processor has no tf32: its fp32 stands beside it. Where sums differ, three bits of a fraction round to the other side.
        for (precision, theirs, tolerance) in [(Precision::Tf32, Precision::Fp32, 1e-2), (Precision::Fp8, Precision::Fp8, 5e-2)] {
            let [ours, theirs] = [(Device::Cuda(0), precision), (Device::Cpu, theirs)]
                .map(|(device, precision)| trained(device, precision, Layout::SINGLE, 40).0);
            assert_eq!((ours.loss_curve.len(), ours.failure), (40, None));
            assert!(ours.loss_curve[39].1 < 0.9 * ours.loss_curve[0].1, "{precision:?}: {:?}", ours.loss_curve);
            for (ours, theirs) in ours.loss_curve.iter().zip(&theirs.loss_curve) {
                assert!((ours.1 - theirs.1).abs() <= tolerance * theirs.1, "{precision:?}: {ours:?} is not {theirs:?}");
            }
        }
        return;
    }
    let Some(built) = emulator::emulator() else { return };
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tf32_and_fp8_learn_on_a_device_what_the_processor_learns"])
        .env("LD_LIBRARY_PATH", &built.driver)
        .env(ON_THE_STAND_IN, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

/// Losses of steps with MNIST and the settings of scenarios/image-classification.toml, but for smaller batches.
fn losses(device: Device, steps: usize) -> Vec<f64> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let set = Arc::new(DataSet::load(&DataSource::Shipped("mnist".into()), &[root]).unwrap());
    let config = config(5, OptimizerConfig { momentum: 0.9, ..OptimizerConfig::new(OptimizerKind::Sgd, 0.05) }, 32);
    let candidate = Candidate {
        phase: Phase::Train,
        device,
        precision: Precision::Fp32,
        compression: Compression::NONE,
        layout: Layout::SINGLE,
        batch_size: 8,
        threads: 1,
    };
    let mut trainer = Trainer::new(find("simple-cnn").unwrap(), set, &candidate, &config, 1).unwrap();
    trainer.steps(steps).unwrap();
    trainer.take_losses().unwrap()
}

#[test]
fn the_shipped_network_learns_on_a_device_as_on_the_processor_for_a_hundred_steps() {
    if std::env::var_os(ON_THE_STAND_IN).is_none() {
        let Some(built) = emulator::emulator_of(emulator::Flavour::Fast) else { return };
        let run = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_shipped_network_learns_on_a_device_as_on_the_processor_for_a_hundred_steps", "--nocapture"])
            .env("LD_LIBRARY_PATH", &built.driver)
            .env(ON_THE_STAND_IN, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&run.stderr));
        return;
    }
    let steps = 100;
    let (ours, theirs) = (losses(Device::Cuda(0), steps), losses(Device::Cpu, steps));
    assert_eq!((ours.len(), theirs.len()), (steps, steps));
    let late: f64 = theirs[steps - 10..].iter().sum::<f64>() / 10.0;
    assert!(late < 0.8 * theirs[0], "it learns: {theirs:?}");
    let apart = |k: &usize| (ours[*k] - theirs[*k]).abs() / theirs[*k];
    let worst = (0..steps).max_by(|a, b| apart(a).total_cmp(&apart(b))).unwrap();
    println!("worst: {:.1e} at step {worst}", apart(&worst));
    // Sums in another order and fused operations: 2e-6 when this was written.
    assert!(apart(&worst) <= 1e-4, "step {worst}: {} is not {}", ours[worst], theirs[worst]);
}

/// Runs `kernels/emulator/threads.cpp` with the stand-in of this folder; what the sanitizer of threads says of it.
fn in_threads(built: &emulator::Emulator, driver: &Path) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("rows.cubin");
    let packed = fs::File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/built/rows.sm_90a.cubin.gz")).unwrap();
    std::io::copy(&mut flate2::read::GzDecoder::new(packed), &mut fs::File::create(&image).unwrap()).unwrap();
    let run = Command::new(built.folder.join("threads")).arg(image).env("LD_LIBRARY_PATH", driver).output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout) + String::from_utf8_lossy(&run.stderr);
    (run.status.success(), said.into_owned())
}

#[test]
fn threads_of_the_host_share_nothing_without_an_order() {
    if emulator::compiler_library("libtsan.so").is_none() {
        return;
    }
    let Some(built) = emulator::emulator_of(emulator::Flavour::Threads) else { return };
    let (succeeded, said) = in_threads(built, &built.driver);
    assert!(succeeded && said.starts_with("4 threads"), "{said}");
    // One call without the lock of the stand-in must be found; one that waits for nobody, or the threads might wait for each other for ever.
    let folder = tempfile::tempdir().unwrap();
    let call = "CALL cuMemAlloc_v2(u64* out, size_t bytes) {\n";
    let (lock, none) = (format!("{call}    OUTSIDE_CAPTURES;"), format!("{call}    if (usable()) return INVALID_CONTEXT;"));
    let (lock, none) = (lock.as_str(), none.as_str());
    emulator::planted(emulator::Flavour::Threads, "driver", lock, none, folder.path()).unwrap();
    // Only where threads overlap: locks of other calls order those that come one behind the other.
    let mut said = String::new();
    let found = (0..10).any(|_| {
        let (succeeded, now) = in_threads(built, folder.path());
        said = now;
        !succeeded && said.contains("WARNING: ThreadSanitizer: data race")
    });
    assert!(found, "{said}");
}

/// Set where the test below runs in a process with two devices: what is said of the way of exchanges.
const EXCHANGES: &str = "ADVISOR_TEST_EXCHANGES";

#[test]
fn ranks_exchange_from_device_to_device_and_learn_what_one_rank_does() {
    // A second storage type has copies to refresh, and messages of another size; fp16 has a flag that all ranks must agree on, fp8 the
    // largest number of all.
    const CASES: [(Precision, f64, &[&str]); 4] = [
        (Precision::Fp32, 1e-5, &["dp=2", "zero=2", "tp=2", "pp=2", "gpipe=2"]),
        (Precision::Bf16, 2e-2, &["zero=2", "pp=2"]),
        (Precision::Fp16, 2e-2, &["zero=2", "tp=2"]),
        (Precision::Fp8, 5e-2, &["dp=2", "tp=2"]),
    ];
    const STEPS: usize = 6;
    if let Ok(expected) = std::env::var(EXCHANGES) {
        for (precision, tolerance, layouts) in CASES {
            let (one, none) = trained(Device::Cuda(0), precision, Layout::SINGLE, STEPS);
            assert_eq!(none, None);
            for layout in layouts {
                let (run, way) = trained(Device::Cuda(0), precision, layout.parse().unwrap(), STEPS);
                assert!(way.as_ref().is_some_and(|way| way.contains(&expected)), "{layout}: {way:?}");
                assert_eq!((run.failure, run.skipped_steps), (None, one.skipped_steps), "{layout} {precision:?}");
                for (ours, theirs) in run.loss_curve.iter().zip(&one.loss_curve) {
                    assert!(
                        (ours.1 - theirs.1).abs() <= tolerance * theirs.1,
                        "{layout} {precision:?}: {ours:?} is not {theirs:?}"
                    );
                }
            }
        }
        return;
    }
    // What goes through the host is compared alone: nobody looks at its accesses again.
    let (Some(watched), Some(fast)) = (emulator::emulator(), emulator::emulator_of(emulator::Flavour::Fast)) else { return };
    let dir = tempfile::tempdir().unwrap();
    let counts = |built: &emulator::Emulator, library: &str, expected: &str| -> BTreeMap<String, u64> {
        let log = dir.path().join("log");
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "ranks_exchange_from_device_to_device_and_learn_what_one_rank_does"])
            .env("LD_LIBRARY_PATH", &built.driver)
            .env("ADVISOR_STANDIN_LOG", &log)
            .env("ADVISOR_STANDIN_DEVICES", "2")
            .env("ADVISOR_NCCL", library)
            .env(EXCHANGES, expected)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
        let lines = fs::read_to_string(&log).unwrap();
        lines.lines().map(|line| line.split_once(' ').unwrap()).map(|(what, n)| (what.into(), n.parse().unwrap())).collect()
    };
    // The name by which cudarc opens the stand-in: one file, one state.
    let library = watched.driver.join("libcuda.so");
    let devices = counts(watched, library.to_str().unwrap(), "from device to device by NCCL 2.27.3");
    let host = counts(fast, "off", "through the host: NCCL cannot be opened: ADVISOR_NCCL is `off`");
    // Two ranks in a group of each of the eleven, and in two of each link of the three pipelines.
    assert_eq!((devices["nccl_joined"], devices["nccl_left"]), (11 * 2 + 3 * 4, 11 * 2 + 3 * 4), "{devices:?}");
    // One exchange or more a step of each rank, which then comes to no host; four messages or more a step of a pipeline, with both ends.
    let least = 11 * 2 * STEPS;
    assert!(devices["nccl_calls"] as usize >= least && !host.contains_key("nccl_calls"), "{devices:?}");
    assert!(devices["nccl_messages"] as usize >= 3 * 4 * 2 * STEPS && !devices.contains_key("nccl_given_up"), "{devices:?}");
    assert!(devices["copies_to_host"] as usize + least <= host["copies_to_host"] as usize, "{devices:?} {host:?}");
}

#[test]
fn a_rank_that_fails_frees_devices_that_wait_for_it() {
    if std::env::var_os(ON_THE_STAND_IN).is_some() {
        for layout in ["dp=2", "pp=2"] {
            let mut trainer = trainer(Device::Cuda(0), Precision::Fp32, layout.parse().unwrap(), 8);
            trainer.steps(2).unwrap();
            let start = Instant::now();
            let ended: Mutex<Option<String>> = Mutex::default();
            // The first rank has a step to do with the second, which has gone.
            let outcome: Result<Vec<Vec<f32>>, TrainError> = trainer.team().each(&mut [(), ()], |number, rank, ()| {
                if number == 1 {
                    std::thread::sleep(Duration::from_millis(100));
                    return Err(TrainError::Panic("it fell over".into()));
                }
                let end = rank.session.execute().and_then(|()| rank.session.synchronize());
                *ended.lock().unwrap() = end.as_ref().err().map(ToString::to_string);
                Ok(end.map(|()| Vec::new())?)
            });
            assert!(matches!(&outcome, Err(TrainError::Panic(text)) if text == "it fell over"), "{layout}: {outcome:?}");
            let ended = ended.into_inner().unwrap();
            assert_eq!(ended.as_deref(), Some("rank 1 of 2 left while others waited for it"), "{layout}");
            // The stand-in itself would end the wait after a minute.
            assert!(start.elapsed() < Duration::from_secs(30), "{layout}: {:?}", start.elapsed());
        }
        return;
    }
    let Some(built) = emulator::emulator() else { return };
    let log = tempfile::NamedTempFile::new().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_rank_that_fails_frees_devices_that_wait_for_it"])
        .env("LD_LIBRARY_PATH", &built.driver)
        .env("ADVISOR_STANDIN_DEVICES", "2")
        .env("ADVISOR_STANDIN_LOG", log.path())
        .env("ADVISOR_NCCL", built.driver.join("libcuda.so"))
        .env(ON_THE_STAND_IN, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let log = fs::read_to_string(log.path()).unwrap();
    // Both ranks give up: one group of a split batch, three of a pipeline of two.
    assert!(log.lines().any(|line| line == "nccl_given_up 8"), "{log}");
}
