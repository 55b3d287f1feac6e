//! `advisor kernels`: our kernels on one device, against what the device can do and against another library.

use super::Exit;
use crate::{
    backend::{self, Backend, check},
    measure::{KernelBench, KernelCase, environment, gpus, kernel_cases, measure_gpu},
    models::{self, Size},
    record::{CheckRow, KernelRow, KernelRun, OptimizerConfig, SCHEMA_VERSION, StepRow, TrainConfig},
    report::{kernels_csv, kernels_document, kernels_markdown, kernels_plot, put},
    stats::Generator,
    train::{StepBench, initial_weights},
    vocab::{Device, InitKind, OptimizerKind, Phase, Precision, Schedule, Vocabulary},
};
use anyhow::Context;
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::SystemTime,
};

/// Check and time our kernels on a device
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  advisor kernels --device cpu --filter softmax\n  advisor kernels --part bench --peer \"python3 scripts/gpu_pytorch.py\" --out /tmp/kernels\n  \
                        advisor kernels --from reports/gpu > docs/performance-gpu.md\n\n\
                        Exit codes: 0 done; 1 a check failed; 2 wrong input; 4 there is no such device."
)]
pub struct Args {
    /// Where to run
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = super::device)]
    device: Device,
    /// Threads of the processor (all cores)
    #[arg(long)]
    threads: Option<usize>,
    /// What to do
    #[arg(long, value_enum, default_value = "all")]
    part: Part,
    /// Only kernels or models whose name, shape or type holds this text
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// A program that times the same on another library, asked and answering in lines of JSON
    #[arg(long, value_name = "COMMAND")]
    peer: Option<String>,
    /// Rounds of two samples each, in turns with the other library's
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Folder for kernels.json, kernels.csv and kernels.svg
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the record as JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Measure nothing: print the document that the records in this file or folder make
    #[arg(long, value_name = "PATH", conflicts_with_all = ["part", "filter", "peer", "out", "json", "device"])]
    from: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// All of the others
    All,
    /// What the device reaches: copying, products
    Ceilings,
    /// Every op against an f64 reference on fresh random numbers
    Correctness,
    /// Times of single kernels
    Bench,
    /// Times of whole steps of models
    Steps,
}

impl Part {
    fn includes(self, part: Part) -> bool {
        self == Part::All || self == part
    }
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    if let Some(path) = &args.from {
        return document(path);
    }
    let mut environment = environment();
    let mut gpus = gpus();
    let device = match args.device {
        Device::Auto if gpus.is_empty() => Device::Cpu,
        Device::Auto => Device::Cuda(0),
        other => other,
    };
    let threads = args.threads.unwrap_or(environment.logical_cores).max(1);
    let backend = match backend::open(device, threads) {
        Ok(backend) => backend,
        Err(error) => {
            eprintln!(
                "error: {error}\nhint: `--device cpu` runs the kernels of this machine's processor; `advisor doctor` shows what is there"
            );
            return Ok(Exit::MachineFailed);
        }
    };
    let gpu = match device {
        Device::Cuda(ordinal) => {
            let mut gpu = gpus.remove(ordinal);
            measure_gpu(&mut gpu, ordinal).map_err(anyhow::Error::msg)?;
            Some(gpu)
        }
        Device::Auto | Device::Cpu => {
            environment.physical_cores = environment.physical_cores.min(threads);
            None
        }
    };
    let mut peer = args.peer.as_deref().map(Peer::start).transpose()?;
    let mut run = KernelRun {
        schema_version: SCHEMA_VERSION,
        device: device.to_string(),
        started_unix_s: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        command: command(args),
        environment,
        gpu,
        peer: peer.as_ref().map(|peer| peer.name.clone()),
        checks: Vec::new(),
        kernels: Vec::new(),
        steps: Vec::new(),
    };
    if args.part.includes(Part::Correctness) {
        run.checks = checks(&*backend, &args.filter)?;
    }
    if args.part.includes(Part::Bench) {
        for case in kernel_cases(device) {
            let line = format!("{} {} {}", case.op.name(), case.shape(), case.dtype.name());
            if line.contains(&args.filter) {
                eprintln!("timing {line}");
                run.kernels.push(kernel(&*backend, &case, args.rounds, peer.as_mut()));
            }
        }
    }
    if args.part.includes(Part::Steps) {
        steps(device, threads, args, peer.as_mut(), &mut run)?;
    }
    if let Some(folder) = &args.out {
        let mut text = serde_json::to_vec_pretty(&run)?;
        text.push(b'\n');
        put(&folder.join("kernels.json"), &text)?;
        put(&folder.join("kernels.csv"), &kernels_csv(&run)?)?;
        if let Some(plot) = kernels_plot(&run)? {
            put(&folder.join("kernels.svg"), plot.standalone().as_bytes())?;
        }
    }
    super::print(if args.json { serde_json::to_string_pretty(&run)? } else { kernels_markdown(&run) }.trim_end())?;
    Ok(if run.checks.iter().all(|check| check.passes) { Exit::Done } else { Exit::No })
}

/// The command that repeats this call.
fn command(args: &Args) -> String {
    let mut parts = vec!["advisor kernels".to_string()];
    if args.device != Device::Auto {
        parts.push(format!("--device {}", args.device));
    }
    if args.part != Part::All {
        parts.push(format!("--part {}", format!("{:?}", args.part).to_lowercase()));
    }
    if !args.filter.is_empty() {
        parts.push(format!("--filter '{}'", args.filter));
    }
    parts.extend(args.threads.map(|threads| format!("--threads {threads}")));
    parts.extend(args.peer.as_ref().map(|peer| format!("--peer '{peer}'")));
    parts.join(" ")
}

fn document(path: &Path) -> anyhow::Result<Exit> {
    let mut files = vec![path.to_path_buf()];
    if path.is_dir() {
        let entries = std::fs::read_dir(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        files =
            entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|p| p.extension().is_some_and(|e| e == "json")).collect();
        files.sort();
    } else if !path.exists() && path.extension().is_none() {
        // A folder that nobody has put a record in yet.
        files.clear();
    }
    let mut runs = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))?;
        match serde_json::from_str::<KernelRun>(&text) {
            Ok(run) if run.schema_version <= SCHEMA_VERSION => runs.push(run),
            Ok(run) => {
                eprintln!(
                    "error: `{}` is of version {}, this program reads up to {SCHEMA_VERSION}",
                    file.display(),
                    run.schema_version
                );
                return Ok(Exit::WrongInput);
            }
            Err(error) => {
                eprintln!("error: `{}` is no record of kernels: {error}", file.display());
                return Ok(Exit::WrongInput);
            }
        }
    }
    super::print(kernels_document(&runs, &format!("advisor kernels --from {}", path.display())).trim_end())?;
    Ok(Exit::Done)
}

fn checks(backend: &dyn Backend, filter: &str) -> anyhow::Result<Vec<CheckRow>> {
    // Fresh numbers each time; the seed stands in what a failed check says.
    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |d| d.as_secs());
    let mut all = check::check(backend, seed)?;
    all.extend(check::check_products(backend, seed)?);
    let row = |checked: check::Checked| CheckRow {
        passes: checked.passes(),
        error: checked.error.is_finite().then_some(checked.error),
        tolerance: checked.tolerance,
        name: checked.name,
        detail: checked.worst,
    };
    Ok(all.into_iter().filter(|checked| checked.name.contains(filter)).map(row).collect())
}

/// Ours, theirs, theirs, ours: a drift falls on both alike.
fn in_turns(
    rounds: usize,
    mut ours: impl FnMut() -> Result<f64, String>,
    mut theirs: Option<&mut dyn FnMut() -> Result<f64, String>>,
) -> Result<(Vec<f64>, Vec<f64>), String> {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        a.push(ours()?);
        if let Some(theirs) = theirs.as_mut() {
            b.push(theirs()?);
            b.push(theirs()?);
        }
        a.push(ours()?);
    }
    Ok((a, b))
}

fn kernel(backend: &dyn Backend, case: &KernelCase, rounds: usize, peer: Option<&mut Peer>) -> KernelRow {
    let work = case.work();
    let mut row = KernelRow {
        family: case.family.to_string(),
        op: case.op.name().to_string(),
        shape: case.shape(),
        dtype: case.dtype,
        cold: false,
        flops: work.flops.0,
        bytes: work.bytes.0,
        call_s: Vec::new(),
        peer_call_s: None,
        reason: None,
    };
    let mut bench = match KernelBench::new(backend, case) {
        Ok(bench) => bench,
        Err(error) => {
            row.reason = Some(error.to_string());
            return row;
        }
    };
    row.cold = bench.cold;
    let request = json!({ "kind": "kernel", "op": case.op.name(), "detail": format!("{:?}", case.op), "shapes": case.shapes, "dtype": case.dtype.name() });
    // The other library may not know the op: then it has no times, and ours are taken alone.
    let mut peer = match peer.map(|peer| (peer.ask(&request, "call_s"), peer)) {
        Some((Ok(_), peer)) => Some(peer),
        Some((Err(reason), _)) => {
            row.reason = Some(format!("no time of the other: {reason}"));
            None
        }
        None => None,
    };
    let mut theirs = peer.as_mut().map(|peer| || peer.ask(&request, "call_s"));
    let theirs = theirs.as_mut().map(|theirs| theirs as &mut dyn FnMut() -> Result<f64, String>);
    match in_turns(rounds, || bench.sample().map_err(|e| e.to_string()), theirs) {
        Ok((ours, theirs)) => {
            row.call_s = ours;
            row.peer_call_s = (!theirs.is_empty()).then_some(theirs);
        }
        Err(reason) => row.reason = Some(reason),
    }
    row
}

/// Programs of the other library that a step is compared with.
const PEER_MODES: [&str; 2] = ["eager", "compiled"];

/// Every model in every precision: training at two batches, answering at three.
fn steps(device: Device, threads: usize, args: &Args, mut peer: Option<&mut Peer>, run: &mut KernelRun) -> anyhow::Result<()> {
    let mut generator = Generator::new(1);
    for model in models::MODELS {
        for (phase, batch_size) in
            [(Phase::Train, 64), (Phase::Train, 256), (Phase::Infer, 1), (Phase::Infer, 64), (Phase::Infer, 256)]
        {
            for precision in [Precision::Fp32, Precision::Bf16, Precision::Fp16] {
                let line = format!("{} {} {} batch {batch_size}", model.name, phase.name(), precision.name());
                if !line.contains(&args.filter) {
                    continue;
                }
                eprintln!("timing {line}");
                let size = Size { batch: batch_size, image: [28, 28, 1], classes: 10 };
                let forward = (model.build)(&size)?;
                let config = config(batch_size);
                let weights = initial_weights(&forward, config.init, 1);
                let mut row = StepRow {
                    model: model.name.to_string(),
                    phase: phase.name().to_string(),
                    precision: precision.name().to_string(),
                    batch_size,
                    step_s: Vec::new(),
                    peers: Vec::new(),
                    reason: None,
                };
                let images: Vec<f32> = (0..batch_size * 28 * 28).map(|_| generator.unit() as f32).collect();
                let labels: Vec<i32> = (0..batch_size).map(|_| generator.below(10) as i32).collect();
                let made = StepBench::new(device, threads, &forward, &weights, phase, precision, &config, &images, &labels);
                let mut bench = match made {
                    Ok(bench) => bench,
                    Err(error) => {
                        row.reason = Some(error.to_string());
                        run.steps.push(row);
                        continue;
                    }
                };
                let modes = if peer.is_some() { &PEER_MODES[..] } else { &[] };
                let mut ours = || bench.sample().map_err(|e| e.to_string());
                if modes.is_empty() {
                    match in_turns(args.rounds, &mut ours, None) {
                        Ok((times, _)) => row.step_s = times,
                        Err(reason) => row.reason = Some(reason),
                    }
                }
                for mode in modes {
                    let request = json!({
                        "kind": "step", "model": model.name, "phase": phase.name(), "precision": precision.name(),
                        "batch_size": batch_size, "mode": mode,
                    });
                    let peer = peer.as_mut().expect("there are modes only with a peer");
                    let mut theirs = || peer.ask(&request, "step_s");
                    // The first answer holds their preparation.
                    let timed = theirs().and_then(|_| in_turns(args.rounds, &mut ours, Some(&mut theirs)));
                    match timed {
                        Ok((times, theirs)) => {
                            row.step_s = times;
                            row.peers.push((format!("{} {mode}", peer.name), theirs));
                        }
                        Err(reason) => row.reason = Some(reason),
                    }
                }
                run.steps.push(row);
            }
        }
    }
    Ok(())
}

fn config(batch_size: usize) -> TrainConfig {
    TrainConfig {
        epochs: 1,
        optimizer: OptimizerConfig::new(OptimizerKind::Sgd, 0.01),
        schedule: Schedule::Constant,
        init: InitKind::He,
        l1: 0.0,
        l2: 0.0,
        augment: Vec::new(),
        seeds: 1,
        first_seed: 1,
        batch_size,
        target: None,
    }
}

/// Another library's process: one request a line, one answer a line.
struct Peer {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    name: String,
}

impl Peer {
    fn start(command: &str) -> anyhow::Result<Peer> {
        let spawned = Command::new("sh").args(["-c", command]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.with_context(|| format!("cannot start `{command}`"))?;
        let (stdin, stdout) = (child.stdin.take().expect("piped"), BufReader::new(child.stdout.take().expect("piped")));
        let mut peer = Peer { child, stdin, stdout, name: String::new() };
        let answer = peer.exchange(&json!({ "kind": "hello" })).map_err(|e| anyhow::anyhow!("`{command}`: {e}"))?;
        peer.name = answer["name"].as_str().unwrap_or("the other").to_string();
        Ok(peer)
    }

    fn exchange(&mut self, request: &Value) -> Result<Value, String> {
        let gone = |error: std::io::Error| format!("it is gone ({error})");
        writeln!(self.stdin, "{request}").and_then(|()| self.stdin.flush()).map_err(gone)?;
        let mut line = String::new();
        if self.stdout.read_line(&mut line).map_err(gone)? == 0 {
            return Err("it ended".into());
        }
        let answer: Value = serde_json::from_str(&line).map_err(|e| format!("it said what is no answer: {e}"))?;
        match answer["error"].as_str() {
            Some(error) => Err(error.to_string()),
            None => Ok(answer),
        }
    }

    /// Seconds under `key` of the answer.
    fn ask(&mut self, request: &Value, key: &str) -> Result<f64, String> {
        let answer = self.exchange(request)?;
        answer[key].as_f64().filter(|s| s.is_finite() && *s > 0.0).ok_or_else(|| format!("its answer has no `{key}`"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It would wait for another line for ever.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
