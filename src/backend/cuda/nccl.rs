//! NVIDIA's library of exchanges between GPUs, opened at run time. What it is asked for is queued on the device's stream, between the
//! kernels; the host waits for nothing.

use super::{
    driver::{Queue, Side},
    library,
    machine::{Address, Collectives, CudaError, DeviceGroup, GroupId, Merge},
};
use crate::vocab::DType;
use libloading::Library;
use std::{
    ffi::{c_int, c_void},
    sync::Arc,
};

/// Names the library, or is `off`: exchanges then go through the host.
pub const NCCL: &str = "ADVISOR_NCCL";

const WHAT: &str = "NCCL";
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// `ncclFloat32`, of nccl.h.
const FLOAT32: c_int = 7;
/// `ncclSum`
const SUM: c_int = 0;

type Communicator = *mut c_void;
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId(GroupId);

/// The functions of nccl.h that are called.
#[derive(Clone, Copy)]
struct Calls {
    version: unsafe extern "C" fn(*mut c_int) -> c_int,
    new_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    join: unsafe extern "C" fn(*mut Communicator, c_int, UniqueId, c_int) -> c_int,
    destroy: unsafe extern "C" fn(Communicator) -> c_int,
    start: unsafe extern "C" fn() -> c_int,
    end: unsafe extern "C" fn() -> c_int,
    /// from, to, count, type, how, communicator, stream
    all_reduce: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Communicator, *mut c_void) -> c_int,
    reduce_scatter: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Communicator, *mut c_void) -> c_int,
    /// from, to, count, type, communicator, stream
    all_gather: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Communicator, *mut c_void) -> c_int,
}

fn answered(call: &'static str, result: c_int) -> Result<(), CudaError> {
    // ncclSuccess
    if result == 0 { Ok(()) } else { Err(CudaError::Call { call, code: format!("result {result}") }) }
}

/// The library on one device.
pub(super) struct Nccl {
    calls: Calls,
    queue: Arc<Queue>,
    device: [u8; 16],
    library: Arc<Library>,
}

impl Nccl {
    /// `device` is the device's own name.
    pub fn open(queue: Arc<Queue>, device: [u8; 16]) -> Result<Nccl, CudaError> {
        let library = library::open(WHAT, NCCL, &NAMES)?;
        // SAFETY: the types of the fields are those of nccl.h.
        let calls = unsafe {
            Calls {
                version: library::function(&library, WHAT, "ncclGetVersion")?,
                new_id: library::function(&library, WHAT, "ncclGetUniqueId")?,
                join: library::function(&library, WHAT, "ncclCommInitRank")?,
                destroy: library::function(&library, WHAT, "ncclCommDestroy")?,
                start: library::function(&library, WHAT, "ncclGroupStart")?,
                end: library::function(&library, WHAT, "ncclGroupEnd")?,
                all_reduce: library::function(&library, WHAT, "ncclAllReduce")?,
                reduce_scatter: library::function(&library, WHAT, "ncclReduceScatter")?,
                all_gather: library::function(&library, WHAT, "ncclAllGather")?,
            }
        };
        Ok(Nccl { calls, queue, device, library: Arc::new(library) })
    }
}

impl Collectives for Nccl {
    fn name(&self) -> String {
        let mut version = 0;
        // SAFETY: the pointer is to an integer of ours.
        match unsafe { (self.calls.version)(&mut version) } {
            // 2.27.3 is 22703.
            0 => format!("{WHAT} {}.{}.{}", version / 10_000, version % 10_000 / 100, version % 100),
            _ => WHAT.into(),
        }
    }

    fn device(&self) -> [u8; 16] {
        self.device
    }

    fn new_id(&self) -> Result<GroupId, CudaError> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: the pointer is to an id of ours.
        answered("ncclGetUniqueId", unsafe { (self.calls.new_id)(&mut id) })?;
        Ok(id.0)
    }

    fn join(&self, id: &GroupId, rank: usize, ranks: usize) -> Result<Box<dyn DeviceGroup>, CudaError> {
        self.queue.enter()?;
        let mut communicator: Communicator = std::ptr::null_mut();
        // SAFETY: the context is current; the pointer is to a handle of ours.
        let result = unsafe { (self.calls.join)(&mut communicator, ranks as c_int, UniqueId(*id), rank as c_int) };
        answered("ncclCommInitRank", result)?;
        let (calls, queue, library) = (self.calls, self.queue.clone(), self.library.clone());
        let side = Side::new(&queue)?;
        Ok(Box::new(Group { communicator, rank, ranks, calls, queue, side, _library: library }))
    }
}

/// A communicator. Its functions are of the library, which lives as long.
struct Group {
    communicator: Communicator,
    rank: usize,
    ranks: usize,
    calls: Calls,
    queue: Arc<Queue>,
    side: Side,
    _library: Arc<Library>,
}

// SAFETY: a communicator may be used from any thread that has made its context current, one at a time; the session owns it.
unsafe impl Send for Group {}

impl Group {
    /// All as one, so that many small ones cost one launch.
    fn reduce(&self, buffers: &[(Address, usize)], dtype: c_int, merge: c_int, stream: *mut c_void) -> Result<(), CudaError> {
        // SAFETY: a series is opened and closed by this thread.
        answered("ncclGroupStart", unsafe { (self.calls.start)() })?;
        let queued = buffers.iter().try_for_each(|(address, count)| {
            let at = *address as *mut c_void;
            // SAFETY: the session's memory holds so many numbers at the address until the stream is done with them.
            let result = unsafe { (self.calls.all_reduce)(at, at, *count, dtype, merge, self.communicator, stream) };
            answered("ncclAllReduce", result)
        });
        // SAFETY: opened above.
        let ended = answered("ncclGroupEnd", unsafe { (self.calls.end)() });
        queued.and(ended)
    }
}

impl DeviceGroup for Group {
    fn ranks(&self) -> usize {
        self.ranks
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn all_reduce(&self, buffers: &[(Address, usize)], dtype: DType, merge: Merge) -> Result<(), CudaError> {
        self.queue.enter()?;
        // ncclFloat16, ncclBfloat16; ncclMin
        let dtype = match dtype {
            DType::F16 => 6,
            DType::Bf16 => 9,
            _ => FLOAT32,
        };
        self.reduce(buffers, dtype, if merge == Merge::Sum { SUM } else { 3 }, self.queue.stream())
    }

    fn start_sums(&self, buffers: &[(Address, usize)]) -> Result<(), CudaError> {
        self.reduce(buffers, FLOAT32, SUM, self.side.behind_queue()?)
    }

    fn finish_sums(&self) -> Result<(), CudaError> {
        self.side.join_queue()
    }

    fn reduce_scatter(&self, from: Address, to: Address, part: usize) -> Result<(), CudaError> {
        self.queue.enter()?;
        let (from, to, stream) = (from as *const c_void, to as *mut c_void, self.queue.stream());
        // SAFETY: as above; `from` holds a part for every rank.
        let result = unsafe { (self.calls.reduce_scatter)(from, to, part, FLOAT32, SUM, self.communicator, stream) };
        answered("ncclReduceScatter", result)
    }

    fn all_gather(&self, from: Address, to: Address, part: usize) -> Result<(), CudaError> {
        self.queue.enter()?;
        let (from, to, stream) = (from as *const c_void, to as *mut c_void, self.queue.stream());
        // SAFETY: as above; `to` has room for a part of every rank.
        let result = unsafe { (self.calls.all_gather)(from, to, part, FLOAT32, self.communicator, stream) };
        answered("ncclAllGather", result)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.queue.enter();
        // SAFETY: the communicator was made by `join` and is used no more.
        let _ = unsafe { (self.calls.destroy)(self.communicator) };
    }
}
