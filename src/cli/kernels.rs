//! `advisor kernels`: our kernels on one device, against what the device can do and against another library.

use super::{Exit, bench_step::timing_config};
use crate::{
    backend::{
        self, Backend, check,
        cuda::{self, VendorProduct},
    },
    graph::Op,
    measure::{KernelBench, KernelCase, environment, gpus, kernel_cases, measure_gpu},
    models::{self, Model},
    record::{CheckRow, KernelRow, KernelRun, SCHEMA_VERSION, StepRow},
    report::{kernels_csv, kernels_document, kernels_markdown, kernels_plot, put},
    train::StepBench,
    vocab::{DType, Device, OptimizerKind, Phase, Precision, Vocabulary},
};
use anyhow::Context;
use serde_json::{Value, json};
use std::{
    cell::RefCell,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// Check and time our kernels on a device
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  advisor kernels --device cpu --filter softmax\n  advisor kernels --part bench --peer \"python3 scripts/gpu_pytorch.py\" --out /tmp/kernels\n  \
                        advisor kernels --from reports/gpu > docs/performance-gpu.md\n  advisor kernels --tune\n\n\
                        What `--tune` finds is kept in advisor/tuning.json in your folder for caches and used by every later run on the same GPU; \
                        ADVISOR_TUNING names another file, or `off`: tiles are then chosen by a model alone.\n\n\
                        On a GPU, products are timed beside cuBLAS where its library is found; ADVISOR_CUBLAS names its file, or `off`.\n\n\
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
    /// Measure the tiles that could make each product of the sweep and of our models on a GPU, and keep the fastest for later runs
    #[arg(long, conflicts_with_all = ["part", "peer", "out", "from"])]
    tune: bool,
    /// Folder for kernels.json (written anew with every row), kernels.csv and kernels.svg
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
    /// Each wrapped instruction of a GPU against its recorded twin
    Conformance,
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
    if args.tune {
        return super::tune::run(args.device, &args.filter, args.json);
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
    let peer = args.peer.as_deref().map(Peer::start).transpose()?.map(RefCell::new);
    let vendor = match device {
        Device::Cuda(ordinal) if args.part.includes(Part::Bench) => Some(cuda::Cublas::open(ordinal)),
        _ => None,
    };
    let mut run = KernelRun {
        schema_version: SCHEMA_VERSION,
        device: device.to_string(),
        started_unix_s: super::unix_seconds(),
        command: command(args),
        environment,
        gpu,
        peer: peer.as_ref().map(|peer| peer.borrow().name.clone()),
        vendor: vendor.as_ref().map(|opened| opened.as_ref().map_or_else(ToString::to_string, |library| library.name().into())),
        checks: Vec::new(),
        kernels: Vec::new(),
        steps: Vec::new(),
    };
    let save = |run: &KernelRun| -> anyhow::Result<()> {
        let Some(folder) = &args.out else { return Ok(()) };
        let mut text = serde_json::to_vec_pretty(run)?;
        text.push(b'\n');
        Ok(put(&folder.join(RECORD), &text)?)
    };
    if let (true, Device::Cuda(ordinal)) = (args.part.includes(Part::Conformance), device) {
        let rows = cuda::conformance(ordinal).map_err(|error| anyhow::anyhow!("{error}"))?;
        run.checks.extend(rows.into_iter().filter(|checked| checked.name.contains(&args.filter)).map(conformity));
        save(&run)?;
    }
    if args.part.includes(Part::Correctness) {
        run.checks.extend(checks(&*backend, device, &args.filter)?);
        save(&run)?;
    }
    let mut vendor = vendor.and_then(Result::ok);
    if args.part.includes(Part::Bench) {
        for case in kernel_cases(device) {
            let line = format!("{} {} {}", case.op.name(), case.shape(), case.dtype.name());
            if line.contains(&args.filter) {
                eprintln!("timing {line}");
                run.kernels.push(kernel(&*backend, &case, args.rounds, peer.as_ref(), vendor.as_mut()));
                save(&run)?;
            }
        }
    }
    if args.part.includes(Part::Steps) {
        for case in step_cases() {
            let line = format!("{} {} {} batch {}", case.model.name, case.phase.name(), case.precision.name(), case.batch_size);
            if line.contains(&args.filter) {
                eprintln!("timing {line}");
                run.steps.push(step(&*backend, &case, args.rounds, peer.as_ref())?);
                save(&run)?;
            }
        }
    }
    if let Some(folder) = &args.out {
        save(&run)?;
        put(&folder.join("kernels.csv"), &kernels_csv(&run)?)?;
        if let Some(plot) = kernels_plot(&run)? {
            put(&folder.join("kernels.svg"), plot.standalone().as_bytes())?;
        }
    }
    super::print(if args.json { serde_json::to_string_pretty(&run)? } else { kernels_markdown(&run) }.trim_end())?;
    Ok(if run.checks.iter().all(|check| check.passes) { Exit::Done } else { Exit::No })
}

/// The record of a call in its folder; written anew with every row, so that what ends the call loses none.
const RECORD: &str = "kernels.json";

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

fn checks(backend: &dyn Backend, device: Device, filter: &str) -> anyhow::Result<Vec<CheckRow>> {
    // Fresh numbers each time; the seed stands in what a failed check says.
    let seed = super::unix_seconds();
    let mut all = check::check(backend, seed)?;
    all.push(check::check_warp(backend, seed)?);
    all.extend(check::check_products(backend, seed)?);
    all.extend(check::check_convolutions(backend, seed)?);
    all.extend(check::check_quantized(backend, seed)?);
    if device.is_cuda() {
        all.extend(check::check_tf32(backend, seed, usize::MAX)?);
    }
    let row = |checked: check::Checked| CheckRow {
        passes: checked.passes(),
        error: checked.error.is_finite().then_some(checked.error),
        tolerance: checked.tolerance,
        name: checked.name,
        detail: checked.worst,
    };
    Ok(all.into_iter().filter(|checked| checked.name.contains(filter)).map(row).collect())
}

/// An instruction's check: its answers are those of the twin, bit by bit or within the recorded number of last places.
fn conformity(checked: cuda::Checked) -> CheckRow {
    let cuda::Checked { name, entry, words, verdict } = checked;
    let (passes, detail) = match verdict {
        cuda::Verdict::Same => (true, format!("{words} words of `{entry}` agree")),
        cuda::Verdict::Differs { at, expected, got, wrong } => {
            (false, format!("`{entry}`: {wrong} of {words} words differ, the first is word {at}: {got}, not {expected}"))
        }
        cuda::Verdict::NotRun(reason) => (false, format!("`{entry}` was not run: {reason}")),
    };
    CheckRow { name, error: None, tolerance: 0.0, passes, detail }
}

/// What was sampled of one other, or why it has nothing.
type Samples = Result<Vec<f64>, String>;

/// Ours, theirs one after the other and back again, ours: a drift falls on all alike. `theirs` takes a sample of the other of a number; one
/// that fails on the way has none from then on.
fn in_turns(
    rounds: usize,
    others: usize,
    mut ours: impl FnMut() -> Result<f64, String>,
    mut theirs: impl FnMut(usize) -> Result<f64, String>,
) -> Result<(Vec<f64>, Vec<Samples>), String> {
    let (mut a, mut b) = (Vec::new(), vec![Ok(Vec::new()); others]);
    for _ in 0..rounds {
        a.push(ours()?);
        for other in (0..others).chain((0..others).rev()) {
            if let Ok(samples) = &mut b[other] {
                match theirs(other) {
                    Ok(sample) => samples.push(sample),
                    Err(reason) => b[other] = Err(reason),
                }
            }
        }
        a.push(ours()?);
    }
    Ok((a, b))
}

/// Something that is timed beside ours: each call takes a sample, the first holds its preparation.
struct Other<'a> {
    name: String,
    sample: Box<dyn FnMut() -> Result<f64, String> + 'a>,
}

/// What a peer is asked for.
fn asked<'a>(peer: &'a RefCell<Peer>, name: String, request: Value) -> Other<'a> {
    Other { name, sample: Box::new(move || peer.borrow_mut().ask(&request)) }
}

/// Samples of ours and, by their names, of the others, all taken in turns.
#[derive(Default)]
struct Timed {
    ours: Vec<f64>,
    theirs: Vec<(String, Vec<f64>)>,
    /// What has no times, and why.
    reason: Option<String>,
}

/// Times ours beside others. One that cannot do it is left out; with nothing left ours are taken alone.
fn beside(rounds: usize, ours: impl FnMut() -> Result<f64, String>, others: Vec<Other>) -> Timed {
    let mut timed = Timed::default();
    let mut known = Vec::new();
    for mut other in others {
        match (other.sample)() {
            Ok(_) => known.push(other),
            Err(reason) => timed.reason = Some(format!("no time of {}: {reason}", other.name)),
        }
    }
    match in_turns(rounds, known.len(), ours, |other| (known[other].sample)()) {
        Ok((ours, theirs)) => {
            timed.ours = ours;
            for (other, samples) in known.iter().zip(theirs) {
                match samples {
                    Ok(samples) => timed.theirs.push((other.name.clone(), samples)),
                    Err(reason) => timed.reason = Some(format!("no time of {}: {reason}", other.name)),
                }
            }
        }
        Err(reason) => timed.reason = Some(reason),
    }
    timed
}

/// Names of the others of a kernel.
const PEER: &str = "the other";
const VENDOR: &str = "the vendor's library";

fn kernel(
    backend: &dyn Backend,
    case: &KernelCase,
    rounds: usize,
    peer: Option<&RefCell<Peer>>,
    vendor: Option<&mut cuda::Cublas>,
) -> KernelRow {
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
        vendor_call_s: None,
        reason: None,
        choice: None,
    };
    let mut bench = match KernelBench::new(backend, case) {
        Ok(bench) => bench,
        Err(error) => {
            row.reason = Some(error.to_string());
            return row;
        }
    };
    (row.cold, row.choice) = (bench.cold, bench.choice.take());
    let mut others = Vec::new();
    if let Some(peer) = peer {
        match peer_request(case) {
            Some(request) => others.push(asked(peer, PEER.into(), request)),
            None => row.reason = Some("no time of the other: it is not asked for this op".into()),
        }
    }
    match vendor.and_then(|library| KernelBench::of_vendor(library, case)) {
        Some(Ok(mut theirs)) => {
            others.push(Other { name: VENDOR.into(), sample: Box::new(move || theirs.sample().map_err(|e| e.to_string())) });
        }
        Some(Err(error)) => row.reason = Some(format!("no time of {VENDOR}: {error}")),
        None => {}
    }
    let timed = beside(rounds, || bench.sample().map_err(|e| e.to_string()), others);
    row.call_s = timed.ours;
    for (name, times) in timed.theirs {
        *(if name == VENDOR { &mut row.vendor_call_s } else { &mut row.peer_call_s }) = Some(times);
    }
    row.reason = timed.reason.or(row.reason);
    row
}

/// What `scripts/gpu_pytorch.py` is asked for the same work; `None` for what it does not know.
fn peer_request(case: &KernelCase) -> Option<Value> {
    let precision = match case.dtype {
        DType::F32 => "fp32",
        DType::Bf16 => "bf16",
        DType::F16 => "fp16",
        _ => return None,
    };
    let extent = |of: usize, from_end: usize| case.shapes.get(of).and_then(|s| s.iter().rev().nth(from_end)).copied();
    let rows = || Some(json!({ "rows": extent(0, 1)?, "columns": extent(0, 0)? }));
    let images = |x: &[usize], filters: usize| {
        let [batch_size, height, width, channels] = *x else { return None };
        Some(json!({ "batch_size": batch_size, "height": height, "width": width, "channels": channels, "filters": filters }))
    };
    let (op, mut request) = match &case.op {
        Op::MatMul { .. } => {
            let VendorProduct { m, n, k, transpose_a, transpose_b, .. } = case.product()?;
            let letter = |turned: bool| if turned { 't' } else { 'n' };
            ("gemm", json!({ "m": m, "n": n, "k": k, "layout": format!("{}{}", letter(transpose_a), letter(transpose_b)) }))
        }
        Op::Softmax => ("softmax", rows()?),
        Op::LayerNorm { .. } => ("layer-norm", rows()?),
        Op::CrossEntropy { .. } => ("cross-entropy", rows()?),
        Op::Update { optimizer, .. } => match optimizer.kind {
            OptimizerKind::Sgd => ("sgd", json!({ "shapes": case.shapes })),
            OptimizerKind::Adam => ("adam", json!({ "shapes": case.shapes })),
            OptimizerKind::Adamw | OptimizerKind::Rmsprop => return None,
        },
        Op::Embedding => {
            let mut request = rows()?;
            request["count"] = json!(extent(1, 0)?);
            ("embedding", request)
        }
        Op::MaxPool2d { .. } => ("max-pool", images(&case.shapes[0], 0)?),
        Op::Conv2d { .. } => ("conv", images(&case.shapes[0], extent(1, 0)?)?),
        Op::Conv2dGradInput { input, .. } => ("conv-dgrad", images(input, extent(1, 0)?)?),
        Op::Conv2dGradWeight { .. } => ("conv-wgrad", images(&case.shapes[0], extent(1, 0)?)?),
        _ => return None,
    };
    request["op"] = json!(op);
    request["precision"] = json!(precision);
    request["seconds"] = json!(0.02);
    Some(request)
}

/// Programs of the other library that a step is compared with, and at which batch alone: compiling takes it ten seconds a step.
const PEER_MODES: [(&str, Option<usize>); 3] = [("eager", None), ("graph", None), ("compile", Some(64))];

/// A step of a model that is timed.
struct StepCase {
    model: &'static Model,
    phase: Phase,
    precision: Precision,
    batch_size: usize,
}

/// Every model in every precision: training at two batches, answering at three.
fn step_cases() -> Vec<StepCase> {
    const PHASES: [(Phase, usize); 5] =
        [(Phase::Train, 64), (Phase::Train, 256), (Phase::Infer, 1), (Phase::Infer, 64), (Phase::Infer, 256)];
    let mut cases = Vec::new();
    for model in models::MODELS {
        for (phase, batch_size) in PHASES {
            for precision in [Precision::Fp32, Precision::Bf16, Precision::Fp16] {
                cases.push(StepCase { model, phase, precision, batch_size });
            }
        }
    }
    cases
}

fn step(backend: &dyn Backend, case: &StepCase, rounds: usize, peer: Option<&RefCell<Peer>>) -> anyhow::Result<StepRow> {
    let StepCase { model, phase, precision, batch_size } = *case;
    let mut row = StepRow {
        model: model.name.to_string(),
        phase: phase.name().to_string(),
        precision: precision.name().to_string(),
        batch_size,
        step_s: Vec::new(),
        peers: Vec::new(),
        reason: None,
    };
    let forward = (model.build)(&model.usual_size(batch_size))?;
    let mut bench = match StepBench::new(backend, &forward, phase, precision, &timing_config(batch_size)) {
        Ok(bench) => bench,
        Err(error) => {
            row.reason = Some(error.to_string());
            return Ok(row);
        }
    };
    let request = |mode: &str| {
        json!({
            "step": model.name, "phase": phase.name(), "precision": precision.name(), "batch_size": batch_size, "mode": mode,
            "seconds": 0.05,
        })
    };
    let others = peer.map_or_else(Vec::new, |peer| {
        let name = peer.borrow().name.clone();
        let modes = PEER_MODES.iter().filter(|(_, only_at)| only_at.is_none_or(|only_at| only_at == batch_size));
        modes.map(|(mode, _)| asked(peer, format!("{name} {mode}"), request(mode))).collect()
    });
    let timed = beside(rounds, || bench.sample().map_err(|e| e.to_string()), others);
    row.step_s = timed.ours;
    row.peers = timed.theirs;
    row.reason = timed.reason;
    Ok(row)
}

/// Another library's process: one request a line, one answer a line. One that ended is started again for the next request.
struct Peer {
    command: String,
    process: PeerProcess,
    name: String,
}

struct PeerProcess {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl PeerProcess {
    fn start(command: &str) -> std::io::Result<PeerProcess> {
        let mut child = Command::new("sh").args(["-c", command]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (stdin, stdout) = (child.stdin.take().expect("piped"), BufReader::new(child.stdout.take().expect("piped")));
        Ok(PeerProcess { child, stdin, stdout })
    }
}

impl Peer {
    fn start(command: &str) -> anyhow::Result<Peer> {
        let process = PeerProcess::start(command).with_context(|| format!("cannot start `{command}`"))?;
        let mut peer = Peer { command: command.into(), process, name: String::new() };
        let first = json!({ "op": "copy", "elements": 1024, "precision": "fp32", "seconds": 0.01 });
        let answer = peer.exchange(&first).map_err(|e| anyhow::anyhow!("`{command}`: {e}"))?;
        let word = |key: &str| answer[key].as_str().unwrap_or("unknown").to_string();
        peer.name = format!("{} {}", word("peer"), word("version"));
        Ok(peer)
    }

    fn exchange(&mut self, request: &Value) -> Result<Value, String> {
        let gone = |error: std::io::Error| format!("it is gone ({error})");
        if self.process.child.try_wait().map_err(gone)?.is_some() {
            self.process = PeerProcess::start(&self.command).map_err(gone)?;
        }
        let PeerProcess { stdin, stdout, .. } = &mut self.process;
        writeln!(stdin, "{request}").and_then(|()| stdin.flush()).map_err(gone)?;
        let mut line = String::new();
        if stdout.read_line(&mut line).map_err(gone)? == 0 {
            return Err("it ended".into());
        }
        let answer: Value = serde_json::from_str(&line).map_err(|e| format!("it said what is no answer: {e}"))?;
        match answer["error"].as_str() {
            Some(error) => Err(error.to_string()),
            None => Ok(answer),
        }
    }

    /// Median seconds of one call or step.
    fn ask(&mut self, request: &Value) -> Result<f64, String> {
        let answer = self.exchange(request)?;
        let seconds = answer["seconds_median"].as_f64().filter(|s| s.is_finite() && *s > 0.0);
        seconds.ok_or_else(|| "its answer has no `seconds_median`".to_string())
    }
}

impl Drop for PeerProcess {
    fn drop(&mut self) {
        // It would wait for another line for ever.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_library_is_asked_for_the_same_work() {
        let asked: Vec<Value> = kernel_cases(Device::Cuda(0)).iter().filter_map(peer_request).collect();
        let has = |wanted: Value| {
            let is = |request: &Value| wanted.as_object().unwrap().iter().all(|(key, value)| request[key] == *value);
            assert!(asked.iter().any(is), "{wanted}");
        };
        has(json!({ "op": "gemm", "m": 64, "k": 3136, "n": 128, "layout": "nn", "precision": "bf16" }));
        has(json!({ "op": "gemm", "m": 4096, "k": 4096, "n": 4096, "layout": "tn" }));
        has(json!({ "op": "softmax", "rows": 65536, "columns": 1024, "precision": "fp16" }));
        has(json!({ "op": "conv", "batch_size": 512, "height": 14, "channels": 32, "filters": 64 }));
        has(json!({ "op": "conv-dgrad", "channels": 32, "filters": 64 }));
        has(json!({ "op": "conv-wgrad", "channels": 1, "filters": 32 }));
        has(json!({ "op": "embedding", "rows": 32_000, "columns": 512, "count": 16384 }));
    }

    #[test]
    fn samples_are_taken_in_turns_and_a_peer_that_is_no_peer_is_an_error() {
        let order = std::cell::RefCell::new(String::new());
        let turns = |others: usize| {
            let ours = || {
                order.borrow_mut().push('o');
                Ok(1.0)
            };
            let theirs = |other: usize| {
                order.borrow_mut().push(['t', 'u'][other]);
                Ok(2.0)
            };
            let (a, b) = in_turns(2, others, ours, theirs).unwrap();
            (a, b, order.take())
        };
        assert_eq!(turns(1), (vec![1.0; 4], vec![Ok(vec![2.0; 4])], "ottootto".into()));
        assert_eq!(turns(2), (vec![1.0; 4], vec![Ok(vec![2.0; 4]); 2], "otuutootuuto".into()));
        // One that fails on the way takes nothing from the rest.
        let mut calls = 0;
        let fails = |other: usize| {
            calls += other;
            if other == 1 && calls > 2 { Err("lost".to_string()) } else { Ok(2.0) }
        };
        assert_eq!(in_turns(2, 2, || Ok(1.0), fails).unwrap(), (vec![1.0; 4], vec![Ok(vec![2.0; 4]), Err("lost".into())]));
        assert!(Peer::start("echo nonsense").is_err() && Peer::start("true").is_err());
        let answer = r#"while read line; do echo '{"seconds_median": 0.5, "peer": "p", "version": "1"}'; done"#;
        let mut peer = Peer::start(answer).unwrap();
        assert_eq!(peer.ask(&json!({})), Ok(0.5));
        assert_eq!(peer.name, "p 1");
        // One that ends after an answer is there again for the next request.
        let mut peer = Peer::start(r#"read line; echo '{"seconds_median": 0.5}'"#).unwrap();
        peer.process.child.wait().unwrap();
        assert_eq!(peer.ask(&json!({})), Ok(0.5));
    }
}
