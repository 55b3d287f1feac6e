//! NVIDIA's library of exchanges between GPUs, opened at run time. What it is asked for is queued on the device's stream, between the
//! kernels; the host waits for nothing.
//!
//! A rank that is gone would leave the others' devices waiting without an end. `give_up` frees them: `ncclCommAbort` is there to be called
//! beside calls that wait, and what was queued on the communicator ends without an error, so whoever reads results must ask whether it was
//! called.

use super::{
    driver::{Queue, Side},
    library,
    machine::{Address, Collectives, CudaError, DeviceGroup, GroupId, Merge},
};
use crate::vocab::DType;
use libloading::Library;
use std::{
    ffi::{c_int, c_void},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicPtr, Ordering},
        mpsc::{RecvTimeoutError, channel},
    },
    time::{Duration, Instant},
};

/// Names the library, or is `off`: exchanges then go through the host.
pub const NCCL: &str = "ADVISOR_NCCL";

const WHAT: &str = "NCCL";
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// `ncclUint8`, `ncclUint32` and `ncclFloat32`, of nccl.h.
const UINT8: c_int = 1;
const UINT32: c_int = 3;
const FLOAT32: c_int = 7;
/// `ncclSum` and `ncclMax`
const SUM: c_int = 0;
const MAX: c_int = 2;

/// How often a rank that joins looks whether the others are still coming.
const LOOK: Duration = Duration::from_millis(20);

/// How long a group that is given up waits for the call that is under way: one that takes longer waits for a rank that is gone.
const CALL: Duration = Duration::from_secs(1);

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
    abort: unsafe extern "C" fn(Communicator) -> c_int,
    error: unsafe extern "C" fn(Communicator, *mut c_int) -> c_int,
    start: unsafe extern "C" fn() -> c_int,
    end: unsafe extern "C" fn() -> c_int,
    /// from, to, count, type, how, communicator, stream
    all_reduce: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Communicator, *mut c_void) -> c_int,
    reduce_scatter: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Communicator, *mut c_void) -> c_int,
    /// from, to, count, type, communicator, stream
    all_gather: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Communicator, *mut c_void) -> c_int,
    /// from, count, type, rank, communicator, stream
    send: unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Communicator, *mut c_void) -> c_int,
    /// to, count, type, rank, communicator, stream
    receive: unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Communicator, *mut c_void) -> c_int,
}

fn answered(call: &'static str, result: c_int) -> Result<(), CudaError> {
    // ncclSuccess
    if result == 0 { Ok(()) } else { Err(CudaError::Call { call, code: format!("result {result}") }) }
}

/// Opens the library and finds its functions.
fn open() -> Result<(Library, Calls), CudaError> {
    let library = library::open(WHAT, NCCL, &NAMES)?;
    // SAFETY: the types of the fields are those of nccl.h.
    let calls = unsafe {
        Calls {
            version: library::function(&library, WHAT, "ncclGetVersion")?,
            new_id: library::function(&library, WHAT, "ncclGetUniqueId")?,
            join: library::function(&library, WHAT, "ncclCommInitRank")?,
            destroy: library::function(&library, WHAT, "ncclCommDestroy")?,
            abort: library::function(&library, WHAT, "ncclCommAbort")?,
            error: library::function(&library, WHAT, "ncclCommGetAsyncError")?,
            start: library::function(&library, WHAT, "ncclGroupStart")?,
            end: library::function(&library, WHAT, "ncclGroupEnd")?,
            all_reduce: library::function(&library, WHAT, "ncclAllReduce")?,
            reduce_scatter: library::function(&library, WHAT, "ncclReduceScatter")?,
            all_gather: library::function(&library, WHAT, "ncclAllGather")?,
            send: library::function(&library, WHAT, "ncclSend")?,
            receive: library::function(&library, WHAT, "ncclRecv")?,
        }
    };
    Ok((library, calls))
}

/// `NCCL 2.27.3`.
fn version(calls: &Calls) -> String {
    let mut version = 0;
    // SAFETY: the pointer is to an integer of ours.
    match unsafe { (calls.version)(&mut version) } {
        // 2.27.3 is 22703.
        0 => format!("{WHAT} {}.{}.{}", version / 10_000, version % 10_000 / 100, version % 100),
        _ => WHAT.into(),
    }
}

/// What exchanges between devices here: the library with its version.
///
/// # Errors
/// The reason why there is none.
pub fn nccl_version() -> Result<String, CudaError> {
    open().map(|(_library, calls)| version(&calls))
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
        let (library, calls) = open()?;
        Ok(Nccl { calls, queue, device, library: Arc::new(library) })
    }
}

impl Collectives for Nccl {
    fn name(&self) -> String {
        version(&self.calls)
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

    /// The library joins on a thread of its own, for it waits for the others and cannot be told to stop: where one does not come that
    /// thread is left behind.
    fn join(
        &self,
        id: &GroupId,
        rank: usize,
        ranks: usize,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Option<Arc<dyn DeviceGroup>>, CudaError> {
        let side = Side::new(&self.queue)?;
        let (calls, queue, library, id) = (self.calls, self.queue.clone(), self.library.clone(), UniqueId(*id));
        let (sender, joined) = channel();
        let join = move || {
            let answer = queue.enter().and_then(|()| {
                let mut communicator: Communicator = std::ptr::null_mut();
                // SAFETY: the context is current; the pointer is to a handle of ours.
                let result = unsafe { (calls.join)(&mut communicator, ranks as c_int, id, rank as c_int) };
                answered("ncclCommInitRank", result)?;
                let communicator = AtomicPtr::new(communicator);
                Ok(Group { communicator, calling: Mutex::new(()), rank, ranks, calls, queue, side, _library: library })
            });
            // Where nobody waits any more the group ends here.
            sender.send(answer).ok();
        };
        let started = std::thread::Builder::new().name("join of devices".into()).spawn(join);
        started.map_err(|error| CudaError::Call { call: "ncclCommInitRank", code: error.to_string() })?;
        loop {
            match joined.recv_timeout(LOOK) {
                Ok(answer) => return answer.map(|group| -> Option<Arc<dyn DeviceGroup>> { Some(Arc::new(group)) }),
                Err(RecvTimeoutError::Timeout) if is_over() => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(CudaError::Call { call: "ncclCommInitRank", code: "its thread ended".into() });
                }
            }
        }
    }
}

/// A communicator. Its functions are of the library, which lives as long.
struct Group {
    /// Null once it was given up.
    communicator: AtomicPtr<c_void>,
    /// Held around every call but that which frees a call that waits.
    calling: Mutex<()>,
    rank: usize,
    ranks: usize,
    calls: Calls,
    queue: Arc<Queue>,
    side: Side,
    _library: Arc<Library>,
}

// SAFETY: a communicator may be used from any thread that has made its context current, one at a time, which `calling` sees to; the side
// may be used from any thread, and only the session's does.
unsafe impl Sync for Group {}

impl Group {
    /// One call at a time, none once the group was given up.
    fn call<T>(&self, call: impl FnOnce(Communicator) -> Result<T, CudaError>) -> Result<T, CudaError> {
        let _turn = self.calling.lock().unwrap_or_else(PoisonError::into_inner);
        let communicator = self.communicator.load(Ordering::Acquire);
        if communicator.is_null() {
            return Err(CudaError::Call { call: WHAT, code: "the group of devices was given up".into() });
        }
        self.queue.enter()?;
        call(communicator)
    }

    /// All as one, so that many small ones cost one launch.
    fn reduce(&self, buffers: &[(Address, usize)], dtype: c_int, merge: c_int, stream: *mut c_void) -> Result<(), CudaError> {
        self.call(|communicator| {
            // SAFETY: a series is opened and closed by this thread.
            answered("ncclGroupStart", unsafe { (self.calls.start)() })?;
            let queued = buffers.iter().try_for_each(|(address, count)| {
                let at = *address as *mut c_void;
                // SAFETY: the session's memory holds so many numbers at the address until the stream is done with them.
                let result = unsafe { (self.calls.all_reduce)(at, at, *count, dtype, merge, communicator, stream) };
                answered("ncclAllReduce", result)
            });
            // SAFETY: opened above.
            let ended = answered("ncclGroupEnd", unsafe { (self.calls.end)() });
            queued.and(ended)
        })
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
        // ncclFloat16, ncclBfloat16; ncclMin
        let dtype = match dtype {
            DType::F16 => 6,
            DType::Bf16 => 9,
            _ => FLOAT32,
        };
        self.reduce(buffers, dtype, if merge == Merge::Sum { SUM } else { 3 }, self.queue.stream())
    }

    fn largest(&self, buffers: &[(Address, usize)]) -> Result<(), CudaError> {
        self.reduce(buffers, UINT32, MAX, self.queue.stream())
    }

    fn start_sums(&self, buffers: &[(Address, usize)]) -> Result<(), CudaError> {
        self.reduce(buffers, FLOAT32, SUM, self.side.behind_queue()?)
    }

    fn start_send(&self, from: Address, bytes: usize, to: usize) -> Result<(), CudaError> {
        let (from, stream) = (from as *const c_void, self.side.behind_queue()?);
        // SAFETY: the session's memory holds so many bytes at the address, which nobody writes before `finish`.
        self.call(|communicator| {
            answered("ncclSend", unsafe { (self.calls.send)(from, bytes, UINT8, to as c_int, communicator, stream) })
        })
    }

    fn finish(&self) -> Result<(), CudaError> {
        self.side.join_queue()
    }

    fn receive(&self, to: Address, bytes: usize, from: usize) -> Result<(), CudaError> {
        let (to, stream) = (to as *mut c_void, self.queue.stream());
        // SAFETY: the session's memory has so many bytes at the address.
        self.call(|communicator| {
            answered("ncclRecv", unsafe { (self.calls.receive)(to, bytes, UINT8, from as c_int, communicator, stream) })
        })
    }

    fn reduce_scatter(&self, from: Address, to: Address, part: usize) -> Result<(), CudaError> {
        let (from, to, stream) = (from as *const c_void, to as *mut c_void, self.queue.stream());
        self.call(|communicator| {
            // SAFETY: as above; `from` holds a part for every rank.
            let result = unsafe { (self.calls.reduce_scatter)(from, to, part, FLOAT32, SUM, communicator, stream) };
            answered("ncclReduceScatter", result)
        })
    }

    fn all_gather(&self, from: Address, to: Address, part: usize) -> Result<(), CudaError> {
        let (from, to, stream) = (from as *const c_void, to as *mut c_void, self.queue.stream());
        self.call(|communicator| {
            // SAFETY: as above; `to` has room for a part of every rank.
            let result = unsafe { (self.calls.all_gather)(from, to, part, FLOAT32, communicator, stream) };
            answered("ncclAllGather", result)
        })
    }

    fn check(&self) -> Result<(), CudaError> {
        self.call(|communicator| {
            let mut result = 0;
            // SAFETY: the pointer is to an integer of ours.
            answered("ncclCommGetAsyncError", unsafe { (self.calls.error)(communicator, &mut result) })?;
            answered("an exchange between devices", result)
        })
    }

    fn give_up(&self) {
        let start = Instant::now();
        let mut turn = self.calling.try_lock().ok();
        while turn.is_none() && start.elapsed() < CALL {
            std::thread::sleep(Duration::from_millis(1));
            turn = self.calling.try_lock().ok();
        }
        let communicator = self.communicator.swap(std::ptr::null_mut(), Ordering::AcqRel);
        if !communicator.is_null() {
            let _ = self.queue.enter();
            // SAFETY: made by `join`, and nobody takes it any more. A call that is still in it waits for another rank; to free such a one
            // is what this function of the library is for.
            let _ = unsafe { (self.calls.abort)(communicator) };
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let communicator = self.communicator.swap(std::ptr::null_mut(), Ordering::AcqRel);
        if !communicator.is_null() {
            let _ = self.queue.enter();
            // SAFETY: the communicator was made by `join` and is used no more.
            let _ = unsafe { (self.calls.destroy)(communicator) };
        }
    }
}
