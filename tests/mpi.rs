//! Ranks that are processes: losses and gradients over Open MPI and over MPICH equal those of one rank.
//!
//! Each test starts its own program again under `mpirun`; the ignored tests are what runs there. Where a library is not installed its tests
//! are skipped with a line that says so, unless `ADVISOR_REQUIRE_MPI` is set.

#[path = "support/launchers.rs"]
mod launchers;
#[path = "support/layouts.rs"]
mod layouts;
#[path = "support/scenario_of_ranks.rs"]
mod scenario_of_ranks;

use advisor::{
    comm::{Launch, Place, World},
    vocab::Layout,
};
use launchers::Launcher;
use layouts::{LAYOUTS, OneRank};
use scenario_of_ranks::{quick_run, run_with_a_signal};
use std::{path::Path, time::Duration};

fn world() -> World {
    let launch = Launch::of_this_process().expect("started by a launcher");
    World::join(&launch, Duration::from_secs(30), Vec::new(), |error| panic!("{error}")).unwrap()
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

#[test]
#[ignore = "run by `mpirun`, see the other tests"]
fn rank_that_trains() {
    let world = world();
    let mut compared = 0;
    for (model, set) in layouts::models() {
        let one = OneRank::new(model, &set);
        for text in LAYOUTS {
            let layout: Layout = text.parse().unwrap();
            // With two processes the layouts of two ranks, with four those of three and four.
            let fewest = if world.size() > 2 { 3 } else { 2 };
            if !(fewest..=world.size()).contains(&layout.ranks()) {
                continue;
            }
            meet(&world);
            compared += 1;
            let seat = world.seat(compared, layout).unwrap();
            assert_eq!(seat.is_some(), world.rank() < layout.ranks());
            if let Some(seat) = &seat {
                one.holds_for(text, &Place::Process(seat.clone()));
            }
            world.give_back(compared, seat, false).unwrap();
        }
    }
    if world.rank() == 0 {
        println!("compared {compared} over {}", world.library());
    }
    world.end(0);
}

fn losses_and_gradients_are_those_of_one_rank(launcher: Option<Launcher>) {
    let Some(launcher) = launcher else { return };
    let program = std::env::current_exe().unwrap();
    let test = ["--exact", "rank_that_trains", "--ignored", "--nocapture"];
    for (processes, layouts) in [(2, 6), (4, 13)] {
        let output = launcher.run(processes, &program, &test, &[], Duration::from_secs(500));
        assert!(output.is_done(), "{processes} processes:\n{output}");
        let compared = format!("compared {} over {}", 3 * layouts, launcher.library());
        assert!(output.text().contains(&compared), "`{compared}` is not in:\n{output}");
    }
}

#[test]
fn losses_and_gradients_over_open_mpi_are_those_of_one_rank() {
    losses_and_gradients_are_those_of_one_rank(Launcher::open_mpi());
}

#[test]
fn losses_and_gradients_over_mpich_are_those_of_one_rank() {
    losses_and_gradients_are_those_of_one_rank(Launcher::mpich());
}

#[test]
#[ignore = "run by `mpirun`, see the other tests"]
fn rank_that_may_give_up() {
    use advisor::backend::{CollectiveError, Kept};
    let world = world();
    meet(&world);
    let seat = world.seat(1, Layout::data(world.size())).unwrap().expect("all take part");
    let members = Place::Process(seat.clone()).members(Layout::data(world.size()));
    let last = world.size() - 1;
    // An exchange that works, then one that the last rank never comes to, and one after it.
    let mut data = vec![1.0; 300_000];
    members[0].all.all_reduce_sum(&mut data).unwrap();
    assert!(data.iter().all(|sum| *sum == world.size() as f32));
    // Sums under way at once, one longer than a piece, one of which each rank keeps its parts; finished in another order.
    let sums = members[0].data.overlapped().expect("processes sum while they compute");
    let (mut long, mut short) = (vec![1.0; 300_000], vec![2.0; 3]);
    sums.start(0, &[&long, &short], Kept::Whole).unwrap();
    sums.start(1, &[&[1.0; 7], &[2.0; 2]], Kept::Parts).unwrap();
    let lengths = [7, 2];
    let mut parts = lengths.map(|length: usize| vec![f32::NAN; length.div_ceil(world.size())]);
    let [first, second] = &mut parts;
    sums.finish_parts(1, &lengths, &mut [first, second]).unwrap();
    for (k, (part, length)) in parts.iter().zip(lengths).enumerate() {
        for (at, sum) in part.iter().enumerate() {
            let is_there = world.rank() * part.len() + at < length;
            assert_eq!(*sum, if is_there { ((k + 1) * world.size()) as f32 } else { 0.0 });
        }
    }
    sums.finish(0, &mut [&mut long, &mut short]).unwrap();
    assert!(long.iter().all(|sum| *sum == world.size() as f32) && short.iter().all(|sum| *sum == 2.0 * world.size() as f32));
    if world.rank() == last {
        seat.leave();
    } else {
        let left = Err(CollectiveError::Left { rank: last, ranks: world.size() });
        // One that is under way without the last rank; where its leaving is heard first, none begins.
        let abandoned = sums.start(0, &[&long], Kept::Whole).and_then(|()| sums.finish(0, &mut [&mut long]));
        assert_eq!(abandoned, left);
        assert_eq!(members[0].data.all_reduce_sum(&mut data), left);
        assert_eq!(members[0].data.receive(last, &mut data), left);
        assert_eq!(seat.left_by(), Some(last));
    }
    drop(members);
    world.give_back(1, Some(seat), true).unwrap();
    // What others do is not touched by it.
    meet(&world);
    let seat = world.seat(2, Layout::data(world.size())).unwrap().expect("all take part");
    let members = Place::Process(seat.clone()).members(Layout::data(world.size()));
    let (mut part, mut whole) = (vec![0.0; 3], vec![0.0; 5]);
    let given: Vec<f32> = (0..5).map(|k| (k * (world.rank() + 1)) as f32).collect();
    members[0].data.reduce_scatter_sum(&given, &mut part[..5usize.div_ceil(world.size())]).unwrap();
    members[0].data.all_gather(&part[..5usize.div_ceil(world.size())], &mut whole).unwrap();
    let ranks: usize = (1..=world.size()).sum();
    assert!(whole.iter().enumerate().all(|(k, sum)| *sum == (k * ranks) as f32), "{whole:?}");
    // Messages are taken in the order of sending, and a wrong length is an error.
    if world.rank() == 0 {
        members[0].data.send(1, &[1.0, 2.0]).unwrap();
        members[0].data.send(1, &[3.0]).unwrap();
    } else if world.rank() == 1 {
        let mut two = [0.0; 2];
        members[0].data.receive(0, &mut two).unwrap();
        assert_eq!(two, [1.0, 2.0]);
        assert_eq!(members[0].data.receive(0, &mut two), Err(CollectiveError::Length { expected: 2, got: 1 }));
    }
    drop(members);
    world.give_back(2, Some(seat), false).unwrap();
    println!("rank {} is done", world.rank());
    world.end(0);
}

#[test]
fn a_rank_that_leaves_frees_the_others_and_what_follows_works() {
    let program = std::env::current_exe().unwrap();
    let test = ["--exact", "rank_that_may_give_up", "--ignored", "--nocapture"];
    for launcher in [Launcher::open_mpi(), Launcher::mpich()].into_iter().flatten() {
        for processes in [2, 3] {
            let output = launcher.run(processes, &program, &test, &[], Duration::from_secs(100));
            assert!(output.is_done() && output.text().matches("is done").count() == processes, "{processes}:\n{output}");
        }
    }
}

#[test]
fn a_scenario_runs_over_processes_and_says_so() {
    for launcher in [Launcher::open_mpi(), Launcher::mpich()].into_iter().flatten() {
        let dir = tempfile::tempdir().unwrap();
        // Answers take no `zero` and no pipeline.
        let runs =
            |layout: &str, phase: &str| layout != "dp=4" && (phase == "train" || ["single", "dp=2", "tp=2"].contains(&layout));
        let layouts = "\"single\", \"dp=2\", \"zero=2\", \"tp=2\", \"pp=2\", \"dp=4\"";
        let (out, rows) = quick_run(&launcher, dir.path(), layouts, runs);
        assert_eq!(rows.len(), 12, "{rows:?}");
        let table = std::fs::read_to_string(out.join("results.csv")).unwrap();
        assert_eq!(table.lines().filter(|line| line.contains(",ok,")).count(), 8, "{table}");
        let page = std::fs::read_to_string(out.join("ranks/report.html")).unwrap();
        assert!(page.contains(&format!("2 over {}", launcher.library())), "the page names the processes");
    }
}

#[test]
fn a_rank_that_is_killed_ends_the_launch_and_its_row_says_why() {
    for launcher in [Launcher::open_mpi(), Launcher::mpich()].into_iter().flatten() {
        let (said, rows, took) = run_with_a_signal(&launcher, "-KILL");
        assert!(said.code().is_some_and(|code| code != 0), "{said}");
        assert!(took < Duration::from_secs(60), "it hung for {took:?}");
        let (_, _, status, reason, _) = rows.iter().find(|(layout, ..)| layout == "dp=2").unwrap();
        assert!(status == "failed" && reason.contains("dies takes all others with it"), "{rows:?}");
    }
}

#[test]
fn a_rank_that_hangs_fails_its_candidates_and_the_others_are_measured() {
    for launcher in [Launcher::open_mpi(), Launcher::mpich()].into_iter().flatten() {
        let (said, rows, took) = run_with_a_signal(&launcher, "-STOP");
        assert!(took < Duration::from_secs(95), "it hung for {took:?}: {said}");
        for (layout, phase, status, reason, _) in &rows {
            let is_lost = layout == "dp=2";
            assert_eq!(status, if is_lost { "failed" } else { "ok" }, "{layout} {phase}: {reason}\n{said}");
            assert!(!is_lost || reason.contains("gave no sign of life for 3 s"), "{layout} {phase}: {reason}");
        }
        assert_eq!(rows.len(), 4, "{rows:?}\n{said}");
        // 5: finished, but some candidates failed.
        assert_eq!(said.code(), Some(5), "{said}");
    }
}

#[test]
fn exchanges_over_processes_are_measured_and_kept() {
    let program = Path::new(env!("CARGO_BIN_EXE_advisor"));
    for launcher in [Launcher::open_mpi(), Launcher::mpich()].into_iter().flatten() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("kept.json");
        let variables = [("ADVISOR_COMMUNICATION", kept.to_str().unwrap())];
        let arguments = ["doctor", "--comm", "--largest", "65536"];
        let said = launcher.run(2, program, &arguments, &variables, Duration::from_secs(100));
        assert!(said.is_done() && said.text().contains(launcher.library()), "{said}");
        let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&kept).unwrap()).unwrap();
        assert_eq!(kept["schema_version"], 1);
        let runs = kept["runs"].as_array().unwrap();
        assert!(runs.len() == 1 && runs[0]["transport"].as_str().unwrap().starts_with(launcher.library()), "{kept}");
        for operation in ["all_reduce", "reduce_scatter", "all_gather", "send_receive"] {
            let rows: Vec<_> = runs[0]["rows"].as_array().unwrap().iter().filter(|row| row["operation"] == operation).collect();
            assert!(
                rows.len() == 4 && rows.iter().all(|row| row["samples_s"].as_array().unwrap().len() >= 5),
                "{operation}: {rows:?}"
            );
        }
    }
}
