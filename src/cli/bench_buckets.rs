//! `advisor bench-buckets`: what a training step of data-parallel ranks of one thread takes by the size of the buckets in which gradients are
//! summed, side by side in one run (hidden). Ranks are threads, or the processes of a launch.
//!
//! In each round every size takes as many steps as fit a sample, in an order that turns around from round to round; what is printed is the
//! median over rounds of the ratio to the size that is in use, so that the machine's drift leaves it alone.

use super::{Exit, bench_step::timing_config};
use crate::{
    comm::{Launch, Place, World},
    data::{DataSet, DataSource},
    models,
    record::{Candidate, TrainConfig},
    stats::median,
    strategy::BUCKET_BYTES,
    train::Trainer,
    vocab::{Compression, Device, Layout, Phase, Precision},
};
use anyhow::Context;
use std::sync::Arc;

/// Length of a sample, and steps before the first.
const SAMPLE_S: f64 = 0.3;
const WARM_UP: usize = 4;

#[derive(clap::Args)]
pub struct Arguments {
    /// A model that reads images
    #[arg(long, default_value = "simple-cnn")]
    model: String,
    /// Rows of all ranks together
    #[arg(long, default_value_t = 256)]
    batch_size: usize,
    /// Ranks that are threads; under a launcher its processes are the ranks
    #[arg(long, default_value_t = 2)]
    ranks: usize,
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// KiB of gradients in a bucket; each whole tensor counts for the bucket in which it begins
    #[arg(long, value_delimiter = ',', default_values_t = [16, 64, 256, 1024, 4096])]
    sizes_kib: Vec<usize>,
}

/// One way to make a step, and its samples.
struct Way {
    name: String,
    trainer: Trainer,
    step_s: Vec<f64>,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<Exit> {
    let Some(launch) = Launch::of_this_process() else {
        let layout = Layout::data(arguments.ranks);
        super::print(&compare(arguments, layout, &Place::Threads, "threads")?)?;
        return Ok(Exit::Done);
    };
    let Some(world) = super::join(&launch) else { return Ok(Exit::MachineFailed) };
    let (rank, layout) = (world.rank(), Layout::data(world.size()));
    let seat = world.seat(1, layout)?.context("every process takes part")?;
    let library = world.library().to_string();
    let table = compare(arguments, layout, &Place::Process(seat.clone()), &library)?;
    end(world, seat)?;
    if rank == 0 {
        super::print(&table)?;
    }
    Ok(Exit::Done)
}

fn end(world: World, seat: Arc<crate::comm::Seat>) -> anyhow::Result<()> {
    world.give_back(1, Some(seat), false)?;
    world.end(Exit::MachineFailed as i32);
    Ok(())
}

/// All sizes, and one rank of one thread beside them.
fn compare(arguments: &Arguments, layout: Layout, place: &Place, transport: &str) -> anyhow::Result<String> {
    let model = models::find(&arguments.model).context("no such model")?;
    let set = Arc::new(DataSet::load(&DataSource::Shipped("mnist".into()), &super::places(None))?);
    let make = |layout: Layout, place: &Place, bucket_bytes: Option<usize>| {
        let candidate = Candidate {
            phase: Phase::Train,
            device: Device::Cpu,
            precision: Precision::Fp32,
            compression: Compression::NONE,
            layout,
            batch_size: arguments.batch_size,
            threads: layout.ranks(),
        };
        let config = TrainConfig { bucket_bytes, ..timing_config(arguments.batch_size) };
        Trainer::at(place, model, set.clone(), &candidate, &config, 1)
    };
    let mut ways = Vec::new();
    let mut add = |name: String, trainer| ways.push(Way { name, trainer, step_s: Vec::new() });
    if place.is_first() {
        add("one rank".into(), make(Layout::SINGLE, &Place::Threads, None)?);
    }
    for kib in &arguments.sizes_kib {
        add(format!("{kib} KiB"), make(layout, place, Some(kib << 10))?);
    }
    // It starts when the backward pass is over: nothing goes on meanwhile.
    add("one bucket".into(), make(layout, place, Some(usize::MAX))?);
    for way in &mut ways {
        way.trainer.steps(WARM_UP)?;
    }
    let last = ways.last_mut().expect("there is one");
    let step_s = last.trainer.steps(WARM_UP)?.total_s / WARM_UP as f64;
    // As rank 0 has it: all must take as many.
    let steps = ((SAMPLE_S / step_s).ceil() as u64).max(1);
    let shared = place.share(steps.to_le_bytes().to_vec())?;
    let steps = u64::from_le_bytes(shared[0].as_slice().try_into().context("eight bytes were sent")?) as usize;
    for round in 0..arguments.rounds {
        let mut order: Vec<usize> = (0..ways.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for at in order {
            let times = ways[at].trainer.steps(steps)?;
            ways[at].step_s.push(times.total_s / times.steps as f64);
            ways[at].trainer.drop_losses();
        }
    }
    Ok(table(&ways, arguments, layout, transport))
}

fn table(ways: &[Way], arguments: &Arguments, layout: Layout, transport: &str) -> String {
    let used = format!("{} KiB", BUCKET_BYTES >> 10);
    let base = ways.iter().find(|way| way.name == used).or(ways.last()).expect("there is one");
    let mut text = format!(
        "{}, batch {}, {} ranks of one thread over {transport}, {} rounds; ratios of step times to {}\n{:<12}{:>12}{:>10}{:>10}{:>10}",
        arguments.model,
        arguments.batch_size,
        layout.ranks(),
        arguments.rounds,
        base.name,
        "bucket",
        "step ms",
        "ratio",
        "lowest",
        "highest"
    );
    for way in ways {
        let ratios: Vec<f64> = way.step_s.iter().zip(&base.step_s).map(|(own, base)| own / base).collect();
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let most = ratios.iter().copied().fold(0.0, f64::max);
        let of = |all: &[f64]| median(all).unwrap_or(f64::NAN);
        text += &format!("\n{:<12}{:>12.3}{:>10.3}{least:>10.3}{most:>10.3}", way.name, 1e3 * of(&way.step_s), of(&ratios));
    }
    text
}
