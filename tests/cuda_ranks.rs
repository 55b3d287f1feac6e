//! Ranks on GPUs that are processes: each takes the device of its rank on its node, and they exchange by NCCL, whose communicators are made
//! over MPI. The driver and NCCL are the stand-ins of `kernels/emulator/`; no machine with several GPUs is in these tests.
//!
//! Each test starts its own program again under `mpirun`; the ignored tests are what runs there. Where a library is not installed its tests
//! are skipped with a line that says so, unless `ADVISOR_REQUIRE_MPI` is set.

#[path = "support/emulator.rs"]
mod emulator;
#[path = "support/launchers.rs"]
mod launchers;
#[path = "support/patterns.rs"]
mod patterns;
#[path = "support/scenario_of_ranks.rs"]
mod scenario_of_ranks;

use advisor::{
    backend::cuda,
    comm::{Launch, Place, World},
    record::{Candidate, OptimizerConfig, TrainConfig},
    strategy::{Tensor, Weights},
    train::Trainer,
    vocab::{Compression, Device, Layout, OptimizerKind, Phase, Precision, Schedule},
};
use emulator::Emulator;
use launchers::{Launcher, Said};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// What is to be said of the way of exchanges, in the processes of a launch.
const WAY: &str = "ADVISOR_TEST_WAY";

const BATCH: usize = 8;

fn world(patience: u64) -> World {
    let launch = Launch::of_this_process().expect("started by a launcher");
    let devices = (0..cuda::device_count().unwrap()).filter_map(cuda::uuid).collect();
    World::join(&launch, Duration::from_secs(patience), devices, |error| panic!("{error}")).unwrap()
}

/// Nobody waits inside MPI for a rank that still computes.
fn meet(world: &World) {
    if world.rank() == 0 {
        (1..world.size()).for_each(|rank| assert_eq!(world.hear(rank).unwrap(), "here"));
        (1..world.size()).for_each(|rank| world.tell(rank, "go").unwrap());
    } else {
        world.tell(0, "here").unwrap();
        assert_eq!(world.hear(0).unwrap(), "go");
    }
}

/// Plain gradient descent at a large rate: what a step changes is the gradient.
fn trainer(place: &Place, layout: Layout) -> Trainer {
    let mut config = TrainConfig::new(1, OptimizerConfig::new(OptimizerKind::Sgd, 4.0), BATCH);
    (config.optimizer.momentum, config.schedule) = (0.0, Schedule::Constant);
    let (phase, device, precision) = (Phase::Train, Device::Cuda(0), Precision::Fp32);
    let candidate = Candidate {
        phase,
        device,
        precision,
        compression: Compression::NONE,
        layout,
        batch_size: BATCH,
        threads: layout.ranks(),
    };
    Trainer::at(place, &patterns::MODEL, patterns::rows(4 * BATCH, BATCH), &candidate, &config, 5).unwrap()
}

/// The loss of a step, and weights after it.
fn after_a_step(trainer: &mut Trainer) -> (f64, Weights) {
    trainer.steps(1).unwrap();
    (trainer.take_losses().unwrap()[0], trainer.weights().unwrap())
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    a.data.iter().zip(&b.data).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}

#[test]
#[ignore = "run by `mpirun`, see the other tests"]
fn rank_that_trains_on_a_device() {
    const LAYOUTS: [&str; 10] =
        ["dp=2", "zero=2", "tp=2", "pp=2", "gpipe=2", "dp=4", "zero=4", "dp=2,tp=2", "dp=2,pp=2", "tp=2,pp=2"];
    let way = std::env::var(WAY).expect("set by the test that starts this one");
    let world = world(60);
    let process = &world.processes()[world.rank()];
    // One machine is one node.
    assert_eq!((process.node, process.local_rank), (0, world.rank()));
    let mut one = trainer(&Place::Threads, Layout::SINGLE);
    let before = one.weights().unwrap();
    let (loss, after) = after_a_step(&mut one);
    drop(one);
    let mut compared = 0;
    for text in LAYOUTS {
        let layout: Layout = text.parse().unwrap();
        if layout.ranks() != world.size() {
            continue;
        }
        compared += 1;
        meet(&world);
        let seat = world.seat(compared, layout).unwrap().expect("all take part");
        let place = Place::Process(seat.clone());
        assert_eq!(place.device(Device::Cuda(0), seat.number()), Device::Cuda(world.rank() % process.devices.len()));
        let mut split = trainer(&place, layout);
        let (split_loss, split_after) = after_a_step(&mut split);
        let said = split.team().first().exchanges();
        assert!(said.as_ref().is_some_and(|said| said.contains(&way)), "{text}: {said:?}");
        let error = (loss - split_loss).abs() / loss;
        assert!(error <= 1e-5, "{text}: the loss differs by {error:e}");
        for ((before, a), b) in before.tensors.iter().zip(&after.tensors).zip(&split_after.tensors) {
            let change = distance(before, a);
            assert!(change > 0.0, "{}: a step changes something", a.name);
            let error = distance(a, b) / change;
            assert!(error <= 1e-5, "{text}: the gradient of {} differs by {error:e}", a.name);
        }
        drop((split, place));
        world.give_back(compared, Some(seat), false).unwrap();
    }
    meet(&world);
    if world.rank() == 0 {
        println!("compared {compared} over {}", world.library());
    }
    world.end(0);
}

/// Runs an ignored test of this file in so many processes that see so many devices.
fn launch(launcher: &Launcher, built: &Emulator, test: &str, [processes, devices]: [usize; 2], more: &[(&str, &str)]) -> Said {
    let program = std::env::current_exe().unwrap();
    let (devices, library) = (devices.to_string(), built.driver.join("libcuda.so"));
    let mut variables = vec![
        ("LD_LIBRARY_PATH", built.driver.to_str().unwrap()),
        ("ADVISOR_STANDIN_DEVICES", devices.as_str()),
        ("ADVISOR_NCCL", library.to_str().unwrap()),
        ("ADVISOR_TUNING", "off"),
    ];
    variables.extend(more);
    let arguments = ["--exact", test, "--ignored", "--nocapture"];
    launcher.run(processes, &program, &arguments, &variables, Duration::from_secs(200))
}

fn losses_and_gradients_are_those_of_one_device(launcher: Option<Launcher>) {
    // Four processes that see two devices share them; without the library, or where devices are shared, MPI carries all.
    const DEVICES: &str = "from device to device by NCCL 2.27.3";
    const SHARED: &str = "through the host: two ranks share a device, which the library refuses";
    const OFF: &str = "through the host: NCCL cannot be opened: ADVISOR_NCCL is `off`";
    let (Some(launcher), Some(built)) = (launcher, emulator::emulator_of(emulator::Flavour::Fast)) else { return };
    for (numbers, way) in [([2, 2], DEVICES), ([4, 4], DEVICES), ([4, 2], SHARED), ([2, 2], OFF)] {
        let mut variables = vec![(WAY, way)];
        variables.extend((way == OFF).then_some(("ADVISOR_NCCL", "off")));
        let said = launch(&launcher, built, "rank_that_trains_on_a_device", numbers, &variables);
        assert!(said.is_done(), "{numbers:?}, {way}:\n{said}");
        // Half of the ten layouts have two ranks.
        let compared = format!("compared 5 over {}", launcher.library());
        assert!(said.text().contains(&compared), "`{compared}` is not in:\n{said}");
    }
}

#[test]
fn losses_and_gradients_of_devices_over_open_mpi_are_those_of_one_device() {
    losses_and_gradients_are_those_of_one_device(Launcher::open_mpi());
}

#[test]
fn losses_and_gradients_of_devices_over_mpich_are_those_of_one_device() {
    losses_and_gradients_are_those_of_one_device(Launcher::mpich());
}

#[test]
#[ignore = "run by `mpirun`, see the other tests"]
fn rank_whose_device_waits() {
    let is_silent = std::env::var(WAY).unwrap() == "silent";
    let world = world(3);
    meet(&world);
    let layout = Layout::data(2);
    let seat = world.seat(1, layout).unwrap().expect("all take part");
    let mut trainer = trainer(&Place::Process(seat.clone()), layout);
    trainer.steps(1).unwrap();
    meet(&world);
    if world.rank() == 1 {
        if is_silent {
            // As a machine that hangs: this process does nothing from here on, and the others' launcher does not notice.
            std::process::Command::new("kill").args(["-STOP", &std::process::id().to_string()]).status().unwrap();
            // The signal stops the thread that takes it first, and this one a moment later.
            loop {
                std::thread::park();
            }
        }
        seat.leave();
        world.hear(0).unwrap();
        std::process::exit(0);
    }
    // The device waits in an exchange that the other one never comes to.
    let start = Instant::now();
    let session = trainer.team().first();
    let end = session.execute().and_then(|()| session.synchronize());
    println!("freed after {:.0} s: {}", start.elapsed().as_secs_f64(), end.unwrap_err());
    drop(trainer);
    println!("and let go");
    // A launcher passes on what was said before it ends its processes only if it has read it by then.
    std::thread::sleep(Duration::from_secs(1));
    world.abort(0);
}

#[test]
fn a_rank_that_leaves_or_falls_silent_frees_the_devices_of_the_others() {
    let Some(built) = emulator::emulator_of(emulator::Flavour::Fast) else { return };
    for launcher in [Launcher::open_mpi(), Launcher::mpich()].into_iter().flatten() {
        for (end, reason) in [("left", "rank 1 of 2 left while others waited for it"), ("silent", "gave no sign of life for 3 s")]
        {
            let start = Instant::now();
            let said = launch(&launcher, built, "rank_whose_device_waits", [2, 2], &[(WAY, end)]);
            assert!(said.text().contains("freed after") && said.text().contains(reason), "{end}: {said}");
            assert!(said.text().contains("and let go"), "{end}: {said}");
            // The stand-in itself would end the wait after a minute.
            assert!(start.elapsed() < Duration::from_secs(45), "{end}: {:?}: {said}", start.elapsed());
        }
    }
}

const SCENARIO: &str = r#"
name = "ranks"
[workload]
model = "mlp"
data = { format = "csv", path = "rows.csv", label = "label", shape = [3, 4, 1], maximum = 9, test_share = 0.3 }
phase = ["train", "infer"]
[train]
epochs = 1
batch_size = 16
[grid]
device = ["cuda"]
layout = ["single", "dp=2", "pp=2", "dp=3"]
batch_size = [16]
[cost]
hourly_usd = 1.0
"#;

/// A folder with the scenario and its rows.
fn folder(scenario: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("rows.csv"), patterns::csv(100)).unwrap();
    std::fs::write(dir.path().join("ranks.toml"), scenario).unwrap();
    dir
}

#[test]
fn a_scenario_runs_on_devices_over_processes_and_says_so() {
    let (Some(launcher), Some(built)) = (Launcher::open_mpi(), emulator::emulator_of(emulator::Flavour::Fast)) else { return };
    let dir = folder(SCENARIO);
    let (file, out, library) = (dir.path().join("ranks.toml"), dir.path().join("out"), built.driver.join("libcuda.so"));
    let arguments = ["run", file.to_str().unwrap(), "--no-predictions", "--quick", "--out", out.to_str().unwrap()];
    let run = |devices: &str| {
        let variables = [
            ("LD_LIBRARY_PATH", built.driver.to_str().unwrap()),
            ("ADVISOR_STANDIN_DEVICES", devices),
            ("ADVISOR_NCCL", library.to_str().unwrap()),
            ("ADVISOR_TUNING", "off"),
        ];
        let said = launcher.run(2, Path::new(env!("CARGO_BIN_EXE_advisor")), &arguments, &variables, Duration::from_secs(200));
        assert!(said.code().is_some_and(|code| code <= 1), "{said}");
        scenario_of_ranks::rows(&out)
    };
    let rows = run("2");
    assert_eq!(rows.len(), 8, "{rows:?}");
    for (layout, phase, status, reason, notes) in &rows {
        let runs = layout != "dp=3" && (layout != "pp=2" || phase == "train");
        assert_eq!(status, if runs { "ok" } else { "skipped" }, "{layout} {phase}: {reason}");
        let is_split = runs && layout != "single";
        assert_eq!(notes.contains("2 ranks, each a process, over Open MPI"), is_split, "{layout} {phase}: {notes}");
        assert_eq!(notes.matches("ran on Emulated GPU").count(), if is_split { 2 } else { usize::from(runs) }, "{notes}");
        // Answers of `dp` exchange nothing.
        let exchanges = is_split && phase == "train";
        assert_eq!(notes.contains("from device to device by NCCL 2.27.3"), exchanges, "{layout} {phase}: {notes}");
        assert!(layout != "dp=3" || reason == "dp=3 needs 3 processes, and the launcher started 2", "{reason}");
    }
    // Two processes that see one device would share it.
    let rows = run("1");
    for (layout, phase, status, reason, _) in rows.iter().filter(|(layout, ..)| layout == "dp=2") {
        assert_eq!(status, "skipped", "{layout} {phase}");
        let device = "dp=2: ranks 0 and 1 would share `GPU-00000000-0000-0000-0000-000000000000` of";
        assert!(reason.starts_with(device), "{reason}");
    }
}

#[test]
fn a_rank_on_a_device_that_dies_or_hangs_ends_its_candidate_with_the_reason() {
    let (Some(launcher), Some(built)) = (Launcher::open_mpi(), emulator::emulator_of(emulator::Flavour::Fast)) else { return };
    let scenario = SCENARIO
        .replace("[\"train\", \"infer\"]", "\"train\"")
        .replace("\"dp=2\", \"pp=2\", \"dp=3\"", "\"dp=2\"")
        .replace("epochs = 1", "epochs = 20\nseeds = 1");
    let library = built.driver.join("libcuda.so");
    let variables = [
        ("LD_LIBRARY_PATH", built.driver.to_str().unwrap()),
        ("ADVISOR_STANDIN_DEVICES", "2"),
        ("ADVISOR_NCCL", library.to_str().unwrap()),
        ("ADVISOR_TUNING", "off"),
    ];
    for (signal, reason) in [("-KILL", "dies takes all others with it"), ("-STOP", "gave no sign of life for 3 s")] {
        let dir = folder(&scenario);
        let (file, out) = (dir.path().join("ranks.toml"), dir.path().join("out"));
        let (said, rows, took) = scenario_of_ranks::run_file_with_a_signal(&launcher, &file, &out, &variables, signal);
        assert!(took < Duration::from_secs(60), "{signal}: it hung for {took:?}: {said}");
        let (.., status, why, _) = rows.iter().find(|(layout, ..)| layout == "dp=2").unwrap();
        assert!(status == "failed" && why.contains(reason), "{signal}: {rows:?}\n{said}");
        // A death ends the launch; beside one that hangs, what has one rank is still measured.
        assert!(
            signal == "-KILL" || rows.iter().any(|(layout, _, status, ..)| layout == "single" && status == "ok"),
            "{rows:?}\n{said}"
        );
        assert!(said.code().is_some_and(|code| if signal == "-KILL" { code != 0 } else { code == 5 }), "{signal}: {said}");
    }
}
