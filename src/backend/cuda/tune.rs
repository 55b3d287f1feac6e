//! Choices of tiles that were measured on a device, and the file that keeps them.
//!
//! The model of `product` names the few configurations worth a look; each is timed as one recorded sequence of at least 20 launches on at
//! least three sets of operands, in turns with the others. The model's first stays unless another is clearly faster.

use super::{
    Cuda, CudaError,
    image::IMAGES,
    machine::{Address, Facts, Machine, Recording, encode_maps},
    plan,
    product::{self, Bucket, Choices, Config, Operands, Shape, ranked},
};
use crate::{
    backend::BackendError,
    graph::Program,
    stats::{Generator, median},
    vocab::{DType, Vocabulary},
};
use half::{bf16, f16};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    io::Write,
    path::{Path, PathBuf},
};

/// Names another file of choices, or `off` for none: the model alone decides.
pub const TUNING: &str = "ADVISOR_TUNING";

const VERSION: u32 = 1;

/// Configurations that are measured for a product.
const CANDIDATES: usize = 3;

/// A rival must need less than this share of the time of the model's first.
const CLEARLY: f64 = 0.98;

/// How much is measured for each configuration.
struct Effort {
    /// Least launches in a sample.
    launches: usize,
    samples: usize,
    /// Bytes of all operands together.
    operand_bytes: usize,
}

/// No cache holds the operands.
const EFFORT: Effort = Effort { launches: 20, samples: 7, operand_bytes: 240 << 20 };

/// Sets of operands that make up those bytes.
const SETS: std::ops::RangeInclusive<usize> = 3..=48;

#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    version: u32,
    devices: Vec<Device>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Device {
    #[serde(flatten)]
    identity: Identity,
    choices: Vec<Measured>,
}

/// What must be the same for a measured choice to hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Identity {
    gpu: String,
    multiprocessors: u32,
    /// Version of CUDA that the driver speaks.
    driver: String,
    /// Hash of the sources of the kernels for products.
    kernels: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Measured {
    product: Bucket,
    config: Config,
    /// Median seconds of a product by each of the configurations.
    times_s: Vec<(Config, f64)>,
}

/// One product's configurations with their times.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuned {
    /// `bf16 nn 4096 x 4096 x 4096`: type, layout, M, K, N.
    pub product: String,
    /// Kernel, parts of K, time by the model over that of its first, and measured seconds of one product.
    pub candidates: Vec<(String, usize, f64, f64)>,
    /// Which of them was kept.
    pub kept: usize,
}

fn identity(facts: &Facts) -> Identity {
    let files = ["gemm_f32", "gemm_mma", "gemm_wgmma"];
    let hash = |file: &&str| IMAGES.iter().find(|image| image.file == *file).map_or("", |image| &image.source_sha256[..16]);
    let driver = super::driver_version().map_or_else(|| "unknown".into(), |(major, minor)| format!("{major}.{minor}"));
    let kernels = files.iter().map(hash).collect::<Vec<_>>().join(" ");
    Identity { gpu: facts.name.clone(), multiprocessors: facts.multiprocessors, driver, kernels }
}

/// Where choices are kept: what `ADVISOR_TUNING` names, else `advisor/tuning.json` in the user's folder for caches. `None` where it is
/// `off` or there is no such folder.
pub fn tuning_file() -> Option<PathBuf> {
    match std::env::var_os(TUNING) {
        Some(word) if word == "off" => None,
        Some(path) => Some(PathBuf::from(path)),
        None => {
            let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
            let folder = cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache")))?;
            Some(folder.join("advisor").join("tuning.json"))
        }
    }
}

/// A file that is not there, broken or of another version holds no choices.
fn read(path: &Path) -> File {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let file: File = serde_json::from_str(&text).unwrap_or_default();
    if file.version == VERSION { file } else { File::default() }
}

/// Choices that were measured on devices of some kinds and come with the program. A driver newer than theirs loads the same images, so it is
/// not asked for; other kernels make them void.
const SHIPPED: &str = include_str!("../../../data/tuning.json");

/// The choices for a device: what comes with the program, in place of it what a file has of the device itself; none where there is to be no
/// file.
pub(super) fn load(path: Option<&Path>, facts: &Facts) -> Choices {
    let Some(path) = path else { return Choices::default() };
    let identity = identity(facts);
    let shipped: File = serde_json::from_str(SHIPPED).expect("the shipped file is one: tested");
    let shipped = shipped
        .devices
        .into_iter()
        .filter(|device| Identity { driver: identity.driver.clone(), ..device.identity.clone() } == identity);
    let measured = read(path).devices.into_iter().filter(|device| device.identity == identity);
    Choices(shipped.chain(measured).flat_map(|device| device.choices).map(|one| (one.product, one.config)).collect())
}

/// Puts choices of a device into the file, in place of those for the same products.
fn keep(path: &Path, facts: &Facts, found: &[Measured]) -> std::io::Result<()> {
    let mut file = File { version: VERSION, ..read(path) };
    let identity = identity(facts);
    if !file.devices.iter().any(|device| device.identity == identity) {
        file.devices.push(Device { identity: identity.clone(), choices: Vec::new() });
    }
    let device = file.devices.iter_mut().find(|device| device.identity == identity).expect("put there above");
    device.choices.retain(|old| found.iter().all(|new| new.product != old.product));
    device.choices.extend(found.iter().cloned());
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    // Renamed into place, so that nobody reads half a file.
    let draft = path.with_extension(format!("{}.tmp", std::process::id()));
    let text = serde_json::to_vec_pretty(&file).expect("plain data");
    let written =
        std::fs::File::create(&draft).and_then(|mut out| out.write_all(&text)).and_then(|()| std::fs::rename(&draft, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&draft);
    }
    written
}

/// Measures the configurations for every product in `programs` on a device and keeps the fastest in `path`, product by product, so that
/// what was measured before an interruption stays.
///
/// # Errors
/// Of the device, and of the file, by its path.
pub fn tune(ordinal: usize, programs: &[Program], path: &Path, mut tell: impl FnMut(&Tuned)) -> Result<(), TuneError> {
    let device = Cuda::open(ordinal).map_err(BackendError::from)?;
    tune_on(&*device.machine, programs, &EFFORT, path, &mut tell)
}

#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error("cannot write `{}`: {error}", .path.display())]
    File { path: PathBuf, error: std::io::Error },
}

impl From<CudaError> for TuneError {
    fn from(error: CudaError) -> TuneError {
        TuneError::Backend(error.into())
    }
}

fn tune_on(
    machine: &dyn Machine,
    programs: &[Program],
    effort: &Effort,
    path: &Path,
    tell: &mut dyn FnMut(&Tuned),
) -> Result<(), TuneError> {
    let facts = machine.facts();
    let mut seen = HashSet::new();
    for program in programs {
        let plan = plan::plan(program, facts, &Choices::default(), &plan::Places::nowhere(program))?;
        for shape in plan.products.into_iter().flatten() {
            if !seen.insert(Bucket::of(&shape)) {
                continue;
            }
            let (measured, tuned) = tune_product(machine, &shape, effort)?;
            keep(path, facts, &[measured]).map_err(|error| TuneError::File { path: path.to_path_buf(), error })?;
            tell(&tuned);
        }
    }
    Ok(())
}

fn tune_product(machine: &dyn Machine, shape: &Shape, effort: &Effort) -> Result<(Measured, Tuned), CudaError> {
    let candidates: Vec<(Config, f64)> = ranked(shape, machine.facts()).into_iter().take(CANDIDATES).collect();
    let times = if candidates.len() > 1 { times(machine, shape, &candidates, effort)? } else { vec![f64::NAN] };
    let mut kept = 0;
    for (number, time) in times.iter().enumerate() {
        // Another rival that beat the model's first goes by its time alone.
        if *time < times[kept] * if kept == 0 { CLEARLY } else { 1.0 } {
            kept = number;
        }
    }
    let rows = candidates.iter().zip(&times);
    let row =
        |((config, cycles), time): (&(Config, f64), &f64)| (config.kernel(shape), config.splits, cycles / candidates[0].1, *time);
    let Shape { m, n, k, batch, input, .. } = *shape;
    let of = if batch > 1 { format!("{batch} of ") } else { String::new() };
    let input = if shape.rounds_to_tf32 { "tf32" } else { input.name() };
    let product = format!("{of}{input} {} {m} x {k} x {n}", shape.letters());
    let tuned = Tuned { product, candidates: rows.clone().map(row).collect(), kept };
    let times_s = rows.map(|((config, _), time)| (*config, *time)).filter(|(_, time)| time.is_finite()).collect();
    Ok((Measured { product: Bucket::of(shape), config: candidates[kept].0, times_s }, tuned))
}

/// Median seconds of one product by each configuration.
fn times(machine: &dyn Machine, shape: &Shape, candidates: &[(Config, f64)], effort: &Effort) -> Result<Vec<f64>, CudaError> {
    let mut memory: Vec<Address> = Vec::new();
    let mut recordings: Vec<Recording> = Vec::new();
    let done = timed(machine, shape, candidates, effort, &mut memory, &mut recordings);
    recordings.iter().for_each(|recording| machine.forget(recording));
    let _ = machine.synchronize();
    memory.into_iter().for_each(|address| machine.release(address));
    done
}

fn timed(
    machine: &dyn Machine,
    shape: &Shape,
    candidates: &[(Config, f64)],
    effort: &Effort,
    memory: &mut Vec<Address>,
    recordings: &mut Vec<Recording>,
) -> Result<Vec<f64>, CudaError> {
    let Shape { m, n, k, batch, input, output, .. } = *shape;
    let mut allocate = |bytes: usize| -> Result<Address, CudaError> {
        let address = machine.allocate(bytes)?;
        memory.push(address);
        Ok(address)
    };
    let (a_bytes, b_bytes) = (batch * m * k * input.size(), batch * k * n * input.size());
    let c_bytes = batch * m * n * output.size();
    let sets = effort.operand_bytes.div_ceil((a_bytes + b_bytes + c_bytes).max(1)).clamp(*SETS.start(), *SETS.end());
    let (a, b) = (random(a_bytes, input, 1), random(b_bytes, input, 2));
    let most = candidates.iter().map(|(config, _)| config.workspace_bytes(shape)).max().unwrap_or(0);
    let workspace = allocate(most)?;
    // A quantised product also reads scales, of which zeros will do: they change no time.
    let scales = allocate(4 * n.max(1))?;
    let mut operands = Vec::with_capacity(sets);
    for _ in 0..sets {
        let at =
            Operands { a: allocate(a_bytes)?, b: allocate(b_bytes)?, bias: 0, c: allocate(c_bytes)?, workspace, activation: 0 };
        machine.upload(at.a, &a)?;
        machine.upload(at.b, &b)?;
        operands.push(at);
    }
    let count = effort.launches.max(sets);
    for (config, _) in candidates {
        let one = |at: &Operands| match (input, output) {
            (DType::I8, _) => product::int8_launches(shape, config, at, [scales, scales]),
            (DType::Bf16, DType::F32) => product::launches::<bf16, f32>(shape, config, machine.facts(), at),
            (DType::Bf16, _) => product::launches::<bf16, bf16>(shape, config, machine.facts(), at),
            (DType::F16, DType::F32) => product::launches::<f16, f32>(shape, config, machine.facts(), at),
            (DType::F16, _) => product::launches::<f16, f16>(shape, config, machine.facts(), at),
            _ => product::launches::<f32, f32>(shape, config, machine.facts(), at),
        };
        let mut launches: Vec<_> = (0..count).flat_map(|call| one(&operands[call % sets])).collect();
        encode_maps(machine, launches.iter_mut())?;
        recordings.extend(machine.record(&launches.iter().collect::<Vec<_>>())?);
    }
    let mut samples = vec![Vec::new(); candidates.len()];
    for round in 0..=effort.samples {
        for (recording, samples) in recordings.iter().zip(&mut samples) {
            let seconds = machine.time_replay(recording)?;
            // The first round loads what is not loaded.
            if round > 0 {
                samples.push(seconds / count as f64);
            }
        }
    }
    Ok(samples.iter().map(|samples| median(samples).unwrap_or(f64::NAN)).collect())
}

/// Numbers of mixed sign: products of zeros or of equal numbers would run at higher clocks than those of anybody's data.
fn random(bytes: usize, dtype: DType, seed: u64) -> Vec<u8> {
    let mut generator = Generator::new(seed);
    let mut out = Vec::with_capacity(bytes);
    while out.len() < bytes {
        let x = generator.unit() as f32 * 2.0 - 1.0;
        match dtype {
            DType::Bf16 => out.extend(bf16::from_f32(x).to_le_bytes()),
            DType::F16 => out.extend(f16::from_f32(x).to_le_bytes()),
            DType::I8 => out.push((x * 127.0) as i8 as u8),
            _ => out.extend(x.to_le_bytes()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{super::emulated::Emulated, *};
    use crate::graph::{Graph, Op, lower};

    fn facts() -> Facts {
        let name = "a device".to_string();
        Facts { name, capability: (9, 0), multiprocessors: 132, shared_bytes_per_block: 232_448, memory_bytes: 80 << 30 }
    }

    fn shape(n: usize) -> Shape {
        let (m, k, input, output) = (n, n, DType::F32, DType::F32);
        Shape { m, n, k, batch: 1, transpose_a: false, transpose_b: false, input, output, rounds_to_tf32: false }
    }

    fn measured(n: usize, tile: usize) -> Measured {
        let config = Config { family: product::Family::Cores, tile: [64, tile], splits: 1 };
        Measured { product: Bucket::of(&shape(n)), config, times_s: vec![(config, 1e-3)] }
    }

    #[test]
    fn the_shipped_choices_are_for_kernels_that_there_are() {
        let shipped: File = serde_json::from_str(SHIPPED).unwrap();
        assert_eq!(shipped.version, VERSION);
        for device in &shipped.devices {
            let facts = Facts { name: device.identity.gpu.clone(), multiprocessors: device.identity.multiprocessors, ..facts() };
            for one in &device.choices {
                let Bucket { input, output, rounds_to_tf32, transpose_a, transpose_b, batch, m, n, k } = one.product;
                let shape = Shape { m, n, k, batch, transpose_a, transpose_b, input, output, rounds_to_tf32 };
                assert!(one.config.suits(&shape, &facts), "{one:?}");
            }
            // Of other kernels than today's, they are not used.
            let used = load(Some(Path::new("no such file")), &facts).0.len();
            let holds = device.identity.kernels == identity(&facts).kernels;
            assert_eq!(used, if holds { device.choices.len() } else { 0 });
        }
    }

    #[test]
    fn choices_are_kept_and_replaced_product_by_product_and_belong_to_their_device() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/tuning.json");
        assert_eq!(load(Some(&path), &facts()), Choices::default());
        keep(&path, &facts(), &[measured(512, 64), measured(1024, 64)]).unwrap();
        keep(&path, &facts(), &[measured(1024, 128)]).unwrap();
        let tile = |n: usize, facts: &Facts| load(Some(&path), facts).pick(&shape(n), facts).tile[1];
        assert_eq!((tile(512, &facts()), tile(1024, &facts())), (64, 128));
        assert_eq!(load(Some(&path), &facts()).0.len(), 2);
        assert_eq!(load(None, &facts()).0.len(), 0);
        let other = Facts { multiprocessors: 114, ..facts() };
        assert_eq!(load(Some(&path), &other).0.len(), 0, "another device");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn a_broken_or_foreign_file_is_no_error_and_holds_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuning.json");
        for text in ["{", "[]", r#"{"version": 99, "devices": []}"#, ""] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(load(Some(&path), &facts()), Choices::default());
        }
        keep(&path, &facts(), &[measured(512, 64)]).unwrap();
        assert_eq!(load(Some(&path), &facts()).0.len(), 1);
        // A folder stands in the way.
        assert!(keep(folder.path(), &facts(), &[measured(512, 64)]).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn products_of_programs_are_measured_and_the_next_plan_takes_what_was_kept() {
        let Some(machine) = Emulated::open(0) else { return };
        let mut graph = Graph::new();
        let (x, w) = (graph.input("x", &[40, 24], DType::Bf16), graph.input("w", &[24, 16], DType::Bf16));
        let y = graph.apply(Op::MatMul { transpose_a: false, transpose_b: false }, &[x, w]).unwrap();
        graph.mark_output("y", y);
        let program = lower(&graph);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuning.json");
        let mut told = Vec::new();
        let effort = Effort { launches: 1, samples: 1, operand_bytes: 0 };
        // The same product twice is measured once.
        tune_on(&machine, &[program.clone(), program.clone()], &effort, &path, &mut |tuned| told.push(tuned.clone())).unwrap();
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].product, "bf16 nn 40 x 24 x 16");
        assert_eq!(told[0].candidates.len(), CANDIDATES);
        assert!(told[0].candidates.iter().all(|(_, _, modelled, seconds)| *modelled >= 1.0 && *seconds > 0.0), "{told:?}");
        let choices = load(Some(&path), machine.facts());
        let plan = plan::plan(&program, machine.facts(), &choices, &plan::Places::nowhere(&program)).unwrap();
        let kept = &told[0].candidates[told[0].kept].0;
        assert_eq!(&plan.steps[0][0].kernel, kept);
        assert!(choices.explain(&plan.products[0][0], machine.facts()).contains("measured"));
    }
}
