//! `advisor doctor`: what this machine has, what it can do at most, how noisy it is.

use super::Exit;
use crate::{
    backend::{
        BackendError,
        cpu::kernels::{Isa, sustained_rate},
        cuda,
    },
    data::find_data_dir,
    measure::{CpuTimes, EnergyCounter, SparseProduct, environment, gpus, measure_gpu, measure_sparse},
    record::{Environment, Gpu},
    stats::{median, quantile, relative_deviation},
    units::{Bytes, three_figures},
};
use serde_json::json;

/// Show what this machine has, its measured peaks and its noise
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  advisor doctor\n  advisor doctor --json\n  advisor doctor --comm\n  advisor doctor --rates\n  mpirun -n 2 advisor doctor --comm"
)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Measure exchanges between ranks (threads, or the processes of `mpirun`) and keep the figures
    #[arg(long)]
    comm: bool,
    /// Time single ops on one thread, on all, and on two ranks, and keep the times for predictions
    #[arg(long, conflicts_with = "comm")]
    rates: bool,
    /// With --comm: the largest message
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20, requires = "comm")]
    largest: u64,
}

/// Blocks of the noise test.
const BLOCKS: usize = 40;

/// Spread of the same work done again and again: relative deviation, and the 95th percentile over the median.
struct Noise {
    deviation: f64,
    tail: f64,
    steal_share: Option<f64>,
}

/// A fixed amount of multiply-adds, many times: 40 blocks of 50 ms.
fn noise() -> Noise {
    let before = CpuTimes::read();
    let isa = Isa::best();
    let rates: Vec<f64> = (0..BLOCKS).map(|_| sustained_rate(isa, 0.05)).collect();
    let steal_share = before.and_then(|before| CpuTimes::read()?.steal_share_since(&before));
    let middle = median(&rates).unwrap_or(f64::NAN);
    let slow = quantile(&rates, 0.05).unwrap_or(f64::NAN);
    Noise { deviation: relative_deviation(&rates).unwrap_or(f64::NAN), tail: middle / slow, steal_share }
}

/// Rows at which zeros are counted on: one answer at a time, and fuller batches.
const SPARSE_ROWS: [usize; 4] = [1, 8, 64, 256];

/// Inputs and outputs of the layer there.
const SPARSE_LAYER: [usize; 2] = [1024, 1024];

/// What skipping zeros is worth at each of `SPARSE_ROWS`, on one thread.
fn sparse_products() -> Result<Vec<(usize, SparseProduct)>, BackendError> {
    let [inputs, outputs] = SPARSE_LAYER;
    let one = |rows: usize| Ok((rows, measure_sparse(1, [rows, inputs, outputs], 0.0)?));
    SPARSE_ROWS.into_iter().map(one).collect()
}

/// `from 88 % of zeros on at 1 row (2:4 1.93x dense), ...`
fn sparse_line(products: &[(usize, SparseProduct)]) -> String {
    let one = |(rows, product): &(usize, SparseProduct)| {
        let from = product.break_even.map_or("never".to_string(), |share| format!("from {:.0} %", 100.0 * share));
        let two_four = product.two_four_gain.map_or(String::new(), |gain| format!(" (2:4 {gain:.2}x)"));
        format!("{from} at {rows} {}{two_four}", if *rows == 1 { "row" } else { "rows" })
    };
    let [inputs, outputs] = SPARSE_LAYER;
    let each: Vec<String> = products.iter().map(one).collect();
    format!("{}; a layer of {inputs} x {outputs}, no zeros in its inputs, one thread", each.join(", "))
}

/// Each CUDA device with a line on it: the image of the kernels that it takes, and what it reached.
fn cuda_devices() -> Result<Vec<(String, Gpu)>, cuda::CudaError> {
    cuda::device_count()?;
    let line = |(ordinal, mut gpu): (usize, Gpu)| {
        let rates = match measure_gpu(&mut gpu, ordinal) {
            Ok(()) => {
                let tera = |rate: Option<f64>| rate.map_or_else(|| "not known".into(), |rate| three_figures(rate / 1e12));
                let [fp32, bf16] = [gpu.fp32_flops_per_s, gpu.bf16_flops_per_s].map(tera);
                let copy = tera(gpu.copy_bytes_per_s);
                format!("measured {copy} TB/s copying, {fp32} TFLOP/s fp32, {bf16} TFLOP/s bf16")
            }
            Err(reason) => format!("cannot be used: {reason}"),
        };
        let kernels = gpu.kernels.clone().unwrap_or_else(|| "none: compute capability 8.0 or later is needed".into());
        let text = format!(
            "{}, compute capability {}, {} multiprocessors, {}, kernels for {kernels}; {rates}",
            gpu.name, gpu.capability, gpu.multiprocessors, gpu.memory
        );
        (text, gpu)
    };
    Ok(gpus().into_iter().enumerate().map(line).collect())
}

/// What exchanges between CUDA devices go by.
fn exchanges() -> String {
    cuda::nccl_version().unwrap_or_else(|error| format!("through the host: {error}"))
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    if args.comm {
        return super::communication::run(args.json, args.largest);
    }
    let environment = environment();
    if args.rates {
        return super::rates::run(args.json, Environment { gpus: gpus(), ..environment });
    }
    let noise = noise();
    let energy = EnergyCounter::open();
    let data = find_data_dir(&super::places(None));
    let devices = cuda_devices();
    let products = sparse_products()?;
    if args.json {
        super::print(&serde_json::to_string_pretty(&json!({
            "environment": environment,
            "noise": { "relative_deviation": noise.deviation, "p95_over_median": noise.tail, "steal_share": noise.steal_share },
            "skipping_zeros": products.iter().map(|(rows, product)| json!({
                "rows": rows, "inputs": SPARSE_LAYER[0], "outputs": SPARSE_LAYER[1], "threads": 1,
                "break_even_zeros": product.break_even, "two_four_gain": product.two_four_gain,
            })).collect::<Vec<_>>(),
            "energy_counter": energy.as_ref().map(EnergyCounter::name),
            "data_folder": data.as_ref().ok().map(|d| d.display().to_string()),
            "cuda": match &devices {
                Ok(devices) => json!({ "driver": cuda::driver_version().map(|(major, minor)| format!("{major}.{minor}")), "devices": devices.iter().map(|(_, gpu)| gpu).collect::<Vec<_>>(), "exchanges": exchanges() }),
                Err(error) => json!({ "absent": error.to_string() }),
            },
        }))?)?;
        return Ok(Exit::Done);
    }
    let unknown = || "not known".to_string();
    let each = [
        ("processor", environment.cpu.clone()),
        ("cores", format!("{} physical, {} logical", environment.physical_cores, environment.logical_cores)),
        ("memory", environment.memory.to_string()),
        ("system", format!("{}, kernel {}", environment.os, environment.kernel)),
        ("instruction sets", environment.instruction_sets.join(", ")),
        (
            "fp32 peak, one core",
            environment.peak_flops_per_core.map_or_else(unknown, |f| format!("{} GFLOP/s", three_figures(f / 1e9))),
        ),
        ("copying, all cores", environment.copy_bytes_per_s.map_or_else(unknown, |b| format!("{}/s", Bytes(b as u64)))),
        ("skipping zeros wins", sparse_line(&products)),
        ("frequency governor", environment.governor.clone().unwrap_or_else(unknown)),
        ("load average", environment.load_before.map_or_else(unknown, |l| format!("{l:.2}"))),
        ("energy counter", energy.as_ref().map_or("none: energy will not be measured".into(), EnergyCounter::name)),
        (
            "noise",
            format!(
                "{:.2} % relative deviation of equal blocks, slowest in twenty {:.2}x the median",
                100.0 * noise.deviation,
                noise.tail
            ),
        ),
        ("stolen by the host", noise.steal_share.map_or_else(unknown, |s| format!("{:.2} % of the time", 100.0 * s))),
        ("shipped data", data.as_ref().map_or_else(|e| format!("{e}"), |d| d.display().to_string())),
        (
            "CUDA",
            match &devices {
                Ok(devices) => devices.iter().map(|(line, _)| line.as_str()).collect::<Vec<_>>().join(&format!("\n{:21}", "")),
                Err(error) => error.to_string(),
            },
        ),
    ];
    let exchanges = devices.is_ok().then(|| ("between CUDA devices", exchanges()));
    for (name, value) in each.into_iter().chain(exchanges) {
        super::print(&format!("{name:20} {value}"))?;
    }
    // 5 %: beyond it a difference of a few per cent between candidates drowns.
    if noise.deviation > 0.05 {
        eprintln!("this machine is noisy: small differences between candidates will not be told apart");
        return Ok(Exit::TooNoisy);
    }
    Ok(Exit::Done)
}
