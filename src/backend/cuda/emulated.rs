//! The machine of the tests: the kernels of `kernels/`, compiled as C++ and run on the CPU by `kernels/emulator/`, which also watches
//! every access. See `kernels/emulator/emulator.cpp` for what it finds.

use super::machine::{Address, CudaError, Facts, Launch, Machine, Recording};
use libloading::Library;
use sha2::{Digest, Sha256};
use std::{
    alloc::Layout,
    collections::HashMap,
    ffi::{CStr, c_char},
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{LazyLock, Mutex},
};

/// Counters of the last launch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub sectors: u64,
    pub ideal_sectors: u64,
    pub shared_accesses: u64,
    pub shared_wavefronts: u64,
    pub barriers: u64,
}

/// Unused memory around each buffer: what lies within a page of one is taken for a stray access, and the emulator's own lists are on
/// the same heap.
const APART: usize = 8192;

/// The emulated kernels, or why they could not be built.
static KERNELS: LazyLock<Result<Library, String>> = LazyLock::new(build);
/// Launches with their counters are one at a time.
static TURN: Mutex<()> = Mutex::new(());

fn sources() -> (PathBuf, Vec<PathBuf>) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let mut kernels: Vec<PathBuf> = fs::read_dir(&folder)
        .expect("the repository has its kernels")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|end| end == "cu"))
        .collect();
    kernels.sort();
    (folder, kernels)
}

fn compile(arguments: &[&str], input: &Path, output: &Path) -> Result<(), String> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let run = Command::new(&compiler).args(arguments).arg(input).arg("-o").arg(output).output();
    let run = run.map_err(|e| format!("no C++ compiler: `{compiler}` cannot be started ({e})"))?;
    run.status.success().then_some(()).ok_or_else(|| format!("{}:\n{}", input.display(), String::from_utf8_lossy(&run.stderr)))
}

/// Compiles all kernels into one library, named by the hash of its sources, so that it is built once.
fn build() -> Result<Library, String> {
    let (folder, kernels) = sources();
    let mut hash = Sha256::new();
    let headers = ["common.cuh", "hopper.cuh", "emulator/emulator.h", "emulator/emulator.cpp", "emulator/hopper.h"];
    for path in kernels.iter().cloned().chain(headers.iter().map(|h| folder.join(h))) {
        hash.update(fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?);
    }
    let name: String = hash.finalize()[..8].iter().map(|b| format!("{b:02x}")).collect();
    let out = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/emulated").join(name);
    let library = out.join("kernels.so");
    if !library.exists() {
        fs::create_dir_all(&out).map_err(|e| e.to_string())?;
        let include = format!("-I{}", folder.display());
        let common = ["-std=c++17", "-mf16c", "-mfma", "-fPIC", "-Wall", "-DADVISOR_EMULATED", &include];
        let mut objects = vec![out.join("emulator.o")];
        compile(&[&common[..], &["-O2", "-c"]].concat(), &folder.join("emulator/emulator.cpp"), &objects[0])?;
        let flags =
            [&common[..], &["-O1", "-fsanitize=thread", "-fno-tree-sra", "--param=tsan-distinguish-volatile=1", "-c"]].concat();
        // Each file in a namespace of its own: types of one name in two files are two types.
        let wrapped = |kernel: &PathBuf| -> Result<PathBuf, String> {
            let stem = kernel.file_stem().and_then(|stem| stem.to_str()).expect("a file");
            let text = fs::read_to_string(kernel).map_err(|e| e.to_string())?;
            let hopper = if text.contains("\"hopper.cuh\"") { "#include \"hopper.cuh\"\n" } else { "" };
            let path = out.join(stem).with_extension("cpp");
            let text = format!("#include \"common.cuh\"\n{hopper}namespace kernels_of_{stem} {{\n#include \"{stem}.cu\"\n}}\n");
            fs::write(&path, text).map_err(|e| e.to_string()).map(|()| path)
        };
        let kernels = kernels.iter().map(wrapped).collect::<Result<Vec<_>, _>>()?;
        objects.extend(kernels.iter().map(|k| k.with_extension("o")));
        // Two at a time: most machines that run tests have that many cores.
        for pair in kernels.iter().zip(&objects[1..]).collect::<Vec<_>>().chunks(2) {
            let results: Vec<Result<(), String>> = std::thread::scope(|scope| {
                let running: Vec<_> = pair.iter().map(|(k, o)| scope.spawn(|| compile(&flags, k, o))).collect();
                running.into_iter().map(|r| r.join().expect("compiling does not panic")).collect()
            });
            results.into_iter().collect::<Result<(), String>>()?;
        }
        let objects: Vec<&str> = objects.iter().map(|o| o.to_str().expect("a path in UTF-8")).collect();
        let partial = out.join(format!("kernels.{}.so", std::process::id()));
        compile(&[&["-shared"][..], &objects[1..]].concat(), Path::new(objects[0]), &partial)?;
        fs::rename(&partial, &library).map_err(|e| e.to_string())?;
    }
    // SAFETY: the library is the one compiled above from the repository; loading it runs no code but C++ initialisers of plain data.
    unsafe { Library::new(&library) }.map_err(|e| e.to_string())
}

/// Runs kernels on the CPU.
pub struct Emulated {
    facts: Facts,
    blocks: Mutex<HashMap<Address, Layout>>,
    /// 0: threads in order, 1: in reverse, other: shuffled by this seed.
    schedule: u32,
    counts: Mutex<Vec<(String, Counts)>>,
    recordings: Mutex<Vec<Vec<Launch>>>,
}

impl Emulated {
    /// `None`, after a line that says why, where there is no C++ compiler and `ADVISOR_REQUIRE_KERNEL_TOOLS` is not set.
    pub fn open(schedule: u32) -> Option<Emulated> {
        if let Err(reason) = &*KERNELS {
            let missing = reason.starts_with("no C++ compiler") && std::env::var_os("ADVISOR_REQUIRE_KERNEL_TOOLS").is_none();
            assert!(missing, "the emulated kernels were not built: {reason}");
            eprintln!("skipped: {reason}");
            return None;
        }
        let facts = Facts {
            name: "emulated".into(),
            capability: (9, 0),
            multiprocessors: 4,
            shared_bytes_per_block: 232_448,
            memory_bytes: 1 << 32,
        };
        Some(Emulated { facts, blocks: Mutex::default(), schedule, counts: Mutex::default(), recordings: Mutex::default() })
    }

    fn library() -> &'static Library {
        KERNELS.as_ref().expect("open() checked it")
    }

    /// Size of the struct that a kernel takes.
    pub fn argument_bytes(kernel: &str) -> Option<u64> {
        // SAFETY: every EXPORT of kernels/emulator/emulator.h defines this symbol as a u64.
        unsafe { Self::library().get::<*const u64>(format!("arguments_of_{kernel}").as_bytes()).ok().map(|symbol| **symbol) }
    }

    /// Counters of every launch since the last call, by kernel.
    pub fn take_counts(&self) -> Vec<(String, Counts)> {
        std::mem::take(&mut self.counts.lock().expect("no test panics with it"))
    }
}

type Emulate = unsafe extern "C" fn(*const u32, *const u32, usize, *const u8) -> i32;

impl Machine for Emulated {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn allocate(&self, bytes: usize) -> Result<Address, CudaError> {
        let layout = Layout::from_size_align(bytes.max(1) + 2 * APART, 256).expect("256 is a power of two");
        // SAFETY: the layout is not empty. Freed in `release` with the same layout.
        let address = unsafe { std::alloc::alloc_zeroed(layout) } as Address + APART as Address;
        // SAFETY: the symbol has this signature in emulator.cpp.
        unsafe {
            let add = Self::library().get::<unsafe extern "C" fn(u64, u64)>(b"emulator_add_buffer").expect("in emulator.cpp");
            add(address, bytes as u64);
        }
        self.blocks.lock().expect("no test panics with it").insert(address, layout);
        Ok(address)
    }

    fn release(&self, address: Address) {
        let Some(layout) = self.blocks.lock().expect("no test panics with it").remove(&address) else { return };
        // SAFETY: allocated above with this layout; no launch runs while the lock of the emulator is not held by one.
        unsafe {
            let remove = Self::library().get::<unsafe extern "C" fn(u64)>(b"emulator_remove_buffer").expect("in emulator.cpp");
            remove(address);
            std::alloc::dealloc((address - APART as Address) as *mut u8, layout);
        }
    }

    fn upload(&self, to: Address, data: &[u8]) -> Result<(), CudaError> {
        // SAFETY: callers copy into memory that `allocate` gave them and that is at least as long.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to as *mut u8, data.len()) };
        Ok(())
    }

    fn download(&self, from: Address, data: &mut [u8]) -> Result<(), CudaError> {
        // SAFETY: as in `upload`.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, data.as_mut_ptr(), data.len()) };
        Ok(())
    }

    fn launch(&self, launch: &Launch) -> Result<(), CudaError> {
        let failed = |reason: String| CudaError::Launch { launch: launch.to_string(), shapes: String::new(), reason };
        let expected = Self::argument_bytes(&launch.kernel).ok_or_else(|| failed("there is no such kernel".into()))?;
        if expected != launch.arguments.len() as u64 {
            return Err(failed(format!("it takes a struct of {expected} bytes, not {}", launch.arguments.len())));
        }
        let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // The struct in memory that is aligned for it.
        let mut arguments = vec![0u128; launch.arguments.len().div_ceil(16) + 4];
        let start = arguments.as_ptr().align_offset(64);
        bytemuck::cast_slice_mut::<u128, u8>(&mut arguments)[start * 16..][..launch.arguments.len()]
            .copy_from_slice(&launch.arguments);
        let (mut counts, block) = ([0u64; 7], [launch.block, 1, 1]);
        // SAFETY: the kernel exists and its struct has the right size (both checked); buffers are watched by the emulator; signatures are
        // those of emulator.h and emulator.cpp.
        let (code, reason) = unsafe {
            let library = Self::library();
            library.get::<unsafe extern "C" fn(u32)>(b"emulator_schedule").expect("in emulator.cpp")(self.schedule);
            let emulate = library.get::<Emulate>(format!("emulate_{}", launch.kernel).as_bytes()).expect("its struct was found");
            let at = arguments.as_ptr().add(start).cast();
            let code = emulate(launch.grid.as_ptr(), block.as_ptr(), launch.shared_bytes as usize, at);
            library.get::<unsafe extern "C" fn(*mut u64)>(b"emulator_counts").expect("in emulator.cpp")(counts.as_mut_ptr());
            let error = library.get::<unsafe extern "C" fn() -> *const c_char>(b"emulator_error").expect("in emulator.cpp");
            (code, CStr::from_ptr(error()).to_string_lossy().into_owned())
        };
        if code != 0 {
            return Err(failed(reason));
        }
        let [read_bytes, written_bytes, sectors, ideal_sectors, shared_accesses, shared_wavefronts, barriers] = counts;
        let counts = Counts { read_bytes, written_bytes, sectors, ideal_sectors, shared_accesses, shared_wavefronts, barriers };
        self.counts.lock().expect("no test panics with it").push((launch.kernel.clone(), counts));
        Ok(())
    }

    fn record(&self, launches: &[&Launch]) -> Result<Option<Recording>, CudaError> {
        let mut recordings = self.recordings.lock().expect("no test panics with it");
        recordings.push(launches.iter().map(|launch| (*launch).clone()).collect());
        Ok(Some(Recording(recordings.len() - 1)))
    }

    fn replay(&self, recording: &Recording) -> Result<(), CudaError> {
        let launches = self.recordings.lock().expect("no test panics with it")[recording.0].clone();
        launches.iter().try_for_each(|launch| self.launch(launch))
    }

    fn forget(&self, _recording: &Recording) {}

    fn synchronize(&self) -> Result<(), CudaError> {
        Ok(())
    }

    fn time(&self, pieces: &[&[Launch]]) -> Result<Vec<f64>, CudaError> {
        let timed = |piece: &&[Launch]| {
            let start = std::time::Instant::now();
            piece.iter().try_for_each(|launch| self.launch(launch)).map(|()| start.elapsed().as_secs_f64())
        };
        pieces.iter().map(timed).collect()
    }
}
