//! Ranks that are processes: losses and gradients over Open MPI and over MPICH equal those of one rank.
//!
//! Each test starts its own program again under `mpirun`; the ignored tests are what runs there. Where a library is not installed its tests
//! are skipped with a line that says so, unless `ADVISOR_REQUIRE_MPI` is set.

#[path = "support/launchers.rs"]
mod launchers;
#[path = "support/layouts.rs"]
mod layouts;

use advisor::{
    comm::{Launch, Place, World},
    vocab::Layout,
};
use launchers::Launcher;
use layouts::{LAYOUTS, OneRank};
use std::time::Duration;

fn world() -> World {
    let launch = Launch::of_this_process().expect("started by a launcher");
    World::join(&launch, Duration::from_secs(30)).unwrap()
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
            // With two processes the layouts of two ranks, with four the others.
            if layout.ranks() > world.size() || (world.size() > 2 && layout.ranks() == 2) {
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
    for (processes, layouts) in [(2, 5), (4, 11)] {
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
    use advisor::backend::CollectiveError;
    let world = world();
    meet(&world);
    let seat = world.seat(1, Layout::data(world.size())).unwrap().expect("all take part");
    let members = Place::Process(seat.clone()).members(Layout::data(world.size()));
    let last = world.size() - 1;
    // An exchange that works, then one that the last rank never comes to, and one after it.
    let mut data = vec![1.0; 300_000];
    members[0].all.all_reduce_sum(&mut data).unwrap();
    assert!(data.iter().all(|sum| *sum == world.size() as f32));
    if world.rank() == last {
        seat.leave();
    } else {
        let left = Err(CollectiveError::Left { rank: last, ranks: world.size() });
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
