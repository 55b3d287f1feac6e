//! The machine of the tests: the kernels of `kernels/`, compiled as C++ and run on the CPU by `kernels/emulator/`, which also watches
//! every access. See `kernels/emulator/emulator.cpp` for what it finds.

#[path = "../../../tests/support/emulator.rs"]
pub(super) mod build;

use super::machine::{Address, Clock, Collectives, CudaError, EncodedMap, Facts, Launch, Machine, Recording, Staging, TensorMap};
pub use build::emulator;
use libloading::Library;
use std::{
    alloc::Layout,
    collections::HashMap,
    ffi::{CStr, c_char},
    sync::{LazyLock, Mutex},
    time::Instant,
};

/// Counters of the last launch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub sectors: u64,
    pub ideal_sectors: u64,
    pub half_lines: u64,
    pub ideal_half_lines: u64,
    pub shared_accesses: u64,
    pub shared_wavefronts: u64,
    pub barriers: u64,
}

/// Unused memory around each buffer: what lies within a page of one is taken for a stray access, and the emulator's own lists are on
/// the same heap.
const APART: usize = 8192;

/// `None` where there is no C++ compiler.
static KERNELS: LazyLock<Option<Library>> = LazyLock::new(load);
/// Launches with their counters are one at a time.
static TURN: Mutex<()> = Mutex::new(());

/// Names the library of kernels in a process that runs under their sanitizers.
pub const SANITIZED: &str = "ADVISOR_TEST_SANITIZED";

fn load() -> Option<Library> {
    let kernels = match std::env::var_os(SANITIZED) {
        Some(path) => path.into(),
        None => emulator()?.kernels.clone(),
    };
    // SAFETY: the library is compiled from the repository; loading it runs no code but C++ initialisers of plain data.
    Some(unsafe { Library::new(kernels) }.expect("what was just linked can be loaded"))
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
        KERNELS.as_ref()?;
        let facts = Facts {
            name: "emulated".into(),
            capability: (9, 0),
            multiprocessors: 4,
            shared_bytes_per_block: 232_448,
            memory_bytes: 1 << 32,
        };
        Some(Emulated { facts, blocks: Mutex::default(), schedule, counts: Mutex::default(), recordings: Mutex::default() })
    }

    /// The same with so much shared memory a block: kernels of warpgroups want most of what there is.
    pub fn with_shared_bytes(mut self, bytes: u32) -> Emulated {
        self.facts.shared_bytes_per_block = bytes;
        self
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

/// Memory of the host; copies are made at once.
struct Host(Vec<u32>);

impl Staging for Host {
    fn words(&mut self) -> Result<&mut [u32], CudaError> {
        Ok(&mut self.0)
    }

    fn upload(&mut self, to: Address) -> Result<(), CudaError> {
        // SAFETY: callers copy into memory that `allocate` gave them and that is at least as long.
        unsafe { std::ptr::copy_nonoverlapping(self.0.as_ptr(), to as *mut u32, self.0.len()) };
        Ok(())
    }
}

/// Calls are done when they return.
struct Points(Vec<Instant>);

impl Clock for Points {
    fn mark(&mut self) -> Result<(), CudaError> {
        self.0.push(Instant::now());
        Ok(())
    }

    fn take(&mut self) -> Result<Vec<f64>, CudaError> {
        let points = std::mem::take(&mut self.0);
        Ok(points.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect())
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

    /// `emulated::HostMap` of kernels/emulator/hopper.h.
    fn tensor_map(&self, map: &TensorMap) -> Result<EncodedMap, CudaError> {
        let [x, y, z, w] = map.extents.map(|extent| extent as u64);
        // A dimension that is not there has no stride.
        let stride = |dimension: usize| if dimension < map.rank { map.strides()[dimension - 1] } else { 0 };
        let words: [u64; 11] = [0x7061_6d20_7473_6f68, map.base, x, y, z, w, 1, stride(1), stride(2), stride(3), 0];
        let [tile_x, tile_y, tile_z, tile_w] = map.tile;
        let size = map.dtype.size() as u32;
        let ends: [u32; 10] = [tile_x, tile_y, tile_z, tile_w, 1, map.rank as u32, size, 3, 0, 0];
        let mut out = [0; 128];
        out[..88].copy_from_slice(bytemuck::cast_slice(&words));
        out[88..].copy_from_slice(bytemuck::cast_slice(&ends));
        Ok(out)
    }

    fn staging(&self, words: usize) -> Result<Box<dyn Staging>, CudaError> {
        Ok(Box::new(Host(vec![0; words])))
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: callers copy between memory that `allocate` gave them and that is at least as long.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
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
        let (mut counts, block) = ([0u64; 9], [launch.block, 1, 1]);
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
        let [read_bytes, written_bytes, sectors, ideal_sectors, half_lines, ideal_half_lines, rest @ ..] = counts;
        let [shared_accesses, shared_wavefronts, barriers] = rest;
        let counts = Counts {
            read_bytes,
            written_bytes,
            sectors,
            ideal_sectors,
            half_lines,
            ideal_half_lines,
            shared_accesses,
            shared_wavefronts,
            barriers,
        };
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
            let start = Instant::now();
            piece.iter().try_for_each(|launch| self.launch(launch)).map(|()| start.elapsed().as_secs_f64())
        };
        pieces.iter().map(timed).collect()
    }

    fn time_replay(&self, recording: &Recording) -> Result<f64, CudaError> {
        let start = std::time::Instant::now();
        self.replay(recording).map(|()| start.elapsed().as_secs_f64())
    }

    fn collectives(&self) -> Result<Box<dyn Collectives>, CudaError> {
        Err(CudaError::NoLibrary { what: "NCCL", reason: "the emulator is one device".into() })
    }

    fn clock(&self) -> Box<dyn Clock> {
        Box::new(Points(Vec::new()))
    }
}
