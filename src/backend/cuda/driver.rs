//! NVIDIA's driver as a machine, and the only door to cudarc. Every `unsafe` of the backend stands here, but for
//! calls of the libraries that `library` opens.
//!
//! The driver library is opened when it is first asked for. cudarc panics where the library or one of its symbols is missing, so its
//! presence is asked for first and the opening is fenced; error codes are printed by name, since cudarc's own messages ask the driver.

use super::{
    image,
    machine::{Address, Clock, Collectives, CudaError, EncodedMap, Facts, Launch, Machine, Recording, Staging, TensorMap},
    nccl::Nccl,
};
use crate::vocab::DType;
use cudarc::driver::{
    DriverError,
    result::{self, device, event, graph, stream},
    sys::{self, CUdevice_attribute as Attribute, CUevent_flags, CUfunction_attribute, CUstreamCaptureMode},
};
use std::{
    collections::HashMap,
    ffi::{CString, c_int, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
};

/// Static shared memory that a block gets without asking; more is opted in to.
const SHARED_BYTES_WITHOUT_ASKING: u32 = 48 << 10;

/// Code of a failed call, by its name in CUDA.
fn code(error: DriverError) -> String {
    format!("{:?}", error.0)
}

fn called<T>(call: &'static str, answer: Result<T, DriverError>) -> Result<T, CudaError> {
    answer.map_err(|error| CudaError::Call { call, code: code(error) })
}

/// Held while the silent panic hook is in place: two threads that swap hooks at once would leave it there for good.
static SILENT: Mutex<()> = Mutex::new(());

/// Runs first calls of the driver; a missing symbol, which panics in cudarc, becomes an error.
fn fenced<T>(calls: impl FnOnce() -> Result<T, CudaError>) -> Result<T, CudaError> {
    let _turn = SILENT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let answer = catch_unwind(AssertUnwindSafe(calls));
    std::panic::set_hook(hook);
    answer.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        let text = said.unwrap_or("a symbol is missing");
        Err(CudaError::OldDriver(text.lines().next().unwrap_or_default().to_string()))
    })
}

/// Devices that the driver shows.
///
/// # Errors
/// `NoDriver`, `OldDriver` or `NoDevice`, with what to do.
pub fn device_count() -> Result<usize, CudaError> {
    // SAFETY: opens and closes the library of the driver, which any process may do.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    fenced(|| {
        result::init().map_err(|error| CudaError::NoDevice(code(error)))?;
        let count = called("cuDeviceGetCount", device::get_count())?;
        if count > 0 { Ok(count as usize) } else { Err(CudaError::NoDevice("none is there".into())) }
    })
}

/// Version of CUDA that the driver speaks: (13, 0).
pub fn driver_version() -> Option<(u32, u32)> {
    device_count().ok()?;
    let mut version: c_int = 0;
    // SAFETY: the library is there (counted above) and the pointer is to an integer of ours.
    let answer = unsafe { sys::cuDriverGetVersion(&mut version) }.result();
    answer.ok().map(|()| (version as u32 / 1000, version as u32 % 1000 / 10))
}

/// What a device is, without opening it for work.
pub fn facts(ordinal: usize) -> Result<Facts, CudaError> {
    let count = device_count()?;
    if ordinal >= count {
        return Err(CudaError::Ordinal { ordinal, count });
    }
    fenced(|| {
        let device = called("cuDeviceGet", device::get(ordinal as c_int))?;
        let attribute = |which: Attribute| {
            // SAFETY: `device` came from the driver.
            called("cuDeviceGetAttribute", unsafe { device::get_attribute(device, which) }).map(|value| value as u32)
        };
        Ok(Facts {
            name: called("cuDeviceGetName", device::get_name(device))?,
            capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            // SAFETY: as above.
            memory_bytes: called("cuDeviceTotalMem", unsafe { device::total_mem(device) })? as u64,
        })
    })
}

/// The device's own name, as NVIDIA's tools print it: `GPU-` and 32 hexadecimal digits in groups.
pub fn uuid(ordinal: usize) -> Option<String> {
    device_count().ok().filter(|count| ordinal < *count)?;
    let uuid = fenced(|| {
        let device = called("cuDeviceGet", device::get(ordinal as c_int))?;
        called("cuDeviceGetUuid", device::get_uuid(device))
    });
    let bytes = uuid.ok()?.bytes;
    let hex = |range: std::ops::Range<usize>| bytes[range].iter().map(|byte| format!("{:02x}", *byte as u8)).collect::<String>();
    Some(format!("GPU-{}-{}-{}-{}-{}", hex(0..4), hex(4..6), hex(6..8), hex(8..10), hex(10..16)))
}

struct Function {
    handle: sys::CUfunction,
    /// Dynamic shared memory that was asked for so far.
    shared_bytes: u32,
}

struct Graph {
    graph: sys::CUgraph,
    executable: sys::CUgraphExec,
}

/// Handles of one device.
struct Handles {
    modules: HashMap<(&'static str, &'static str), sys::CUmodule>,
    functions: HashMap<String, Function>,
    graphs: Vec<Option<Graph>>,
    /// Freed memory by size, to be given out again: loading a program of the same shape costs no allocation.
    pool: HashMap<usize, Vec<Address>>,
    sizes: HashMap<Address, usize>,
}

/// The context of a device and its one stream, on which everything runs in order. They live as long as anything that needs them.
pub(super) struct Queue {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
}

// SAFETY: context and stream may be used from any thread that has made the context current, which every method does first.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

impl Queue {
    fn open(device: sys::CUdevice) -> Result<Queue, CudaError> {
        // SAFETY: `device` came from the driver; the context is released in `drop`.
        let context = called("cuDevicePrimaryCtxRetain", unsafe { result::primary_ctx::retain(device) })?;
        let mut queue = Queue { device, context, stream: std::ptr::null_mut() };
        queue.enter()?;
        queue.stream = called("cuStreamCreate", stream::create(stream::StreamKind::NonBlocking))?;
        Ok(queue)
    }

    pub fn stream(&self) -> *mut c_void {
        self.stream.cast()
    }

    /// Makes the context current on this thread.
    pub fn enter(&self) -> Result<(), CudaError> {
        // SAFETY: the context lives as long as `self`.
        called("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.context) })
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: the stream lives as long as `self`.
        called("cuStreamSynchronize", unsafe { stream::synchronize(self.stream) })
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let _ = self.enter();
        // SAFETY: whoever had work on the stream is gone, and so is whatever was made in the context.
        unsafe {
            if !self.stream.is_null() {
                let _ = stream::destroy(self.stream);
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

/// A second stream of the same context, for work beside that of the queue.
pub(super) struct Side {
    queue: Arc<Queue>,
    stream: sys::CUstream,
    event: sys::CUevent,
}

// SAFETY: stream and event may be used from any thread that has made the context current, which every method does first.
unsafe impl Send for Side {}

impl Side {
    pub fn new(queue: &Arc<Queue>) -> Result<Side, CudaError> {
        queue.enter()?;
        let event = called("cuEventCreate", event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING))?;
        let mut side = Side { queue: queue.clone(), stream: std::ptr::null_mut(), event };
        side.stream = called("cuStreamCreate", stream::create(stream::StreamKind::NonBlocking))?;
        Ok(side)
    }

    /// Here goes what is to run beside the queue, behind all that the queue was asked for so far.
    pub fn behind_queue(&self) -> Result<*mut c_void, CudaError> {
        self.one_behind_the_other(self.queue.stream, self.stream)?;
        Ok(self.stream.cast())
    }

    /// What the queue is asked for from here on waits for all that was asked for beside it.
    pub fn join_queue(&self) -> Result<(), CudaError> {
        self.one_behind_the_other(self.stream, self.queue.stream)
    }

    fn one_behind_the_other(&self, first: sys::CUstream, second: sys::CUstream) -> Result<(), CudaError> {
        self.queue.enter()?;
        // SAFETY: event and streams are of this context; a wait is for the record that was queued last.
        called("cuEventRecord", unsafe { event::record(self.event, first) })?;
        // SAFETY: as above; flags 0 ask for nothing special.
        called("cuStreamWaitEvent", unsafe {
            stream::wait_event(second, self.event, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT)
        })
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = self.queue.enter();
        // SAFETY: nobody else has the stream and the event; the driver keeps them until what is queued on them is done.
        unsafe {
            if !self.stream.is_null() {
                let _ = stream::destroy(self.stream);
            }
            let _ = event::destroy(self.event);
        }
    }
}

/// Events on the stream, in order.
struct Events {
    queue: Arc<Queue>,
    made: Vec<sys::CUevent>,
}

// SAFETY: events may be used from any thread that has made the context current, which every method does first.
unsafe impl Send for Events {}

impl Events {
    fn new(queue: &Arc<Queue>) -> Events {
        Events { queue: queue.clone(), made: Vec::new() }
    }

    fn forget(&mut self) {
        let _ = self.queue.enter();
        for event in self.made.drain(..) {
            // SAFETY: each was created below and is used no more; the driver keeps one that is still to be reached.
            let _ = unsafe { event::destroy(event) };
        }
    }
}

impl Clock for Events {
    fn mark(&mut self) -> Result<(), CudaError> {
        self.queue.enter()?;
        let event = called("cuEventCreate", event::create(CUevent_flags::CU_EVENT_DEFAULT))?;
        self.made.push(event);
        // SAFETY: the event was just made, in the stream's context.
        called("cuEventRecord", unsafe { event::record(event, self.queue.stream) })
    }

    fn take(&mut self) -> Result<Vec<f64>, CudaError> {
        self.queue.synchronize()?;
        let between = |pair: &[sys::CUevent]| {
            // SAFETY: both events were recorded and waited for.
            called("cuEventElapsedTime", unsafe { event::elapsed(pair[0], pair[1]) })
        };
        let seconds = |pair| between(pair).map(|milliseconds| f64::from(milliseconds) / 1e3);
        let times = self.made.windows(2).map(seconds).collect();
        self.forget();
        times
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.forget();
    }
}

/// Page-locked memory, and an event behind the copy from it that was queued last.
struct Pinned {
    queue: Arc<Queue>,
    memory: *mut u32,
    words: usize,
    is_read: sys::CUevent,
}

// SAFETY: the memory is of this owner alone; the event may be used from any thread that has made the context current.
unsafe impl Send for Pinned {}

impl Pinned {
    fn new(queue: &Arc<Queue>, words: usize) -> Result<Pinned, CudaError> {
        queue.enter()?;
        let is_read = called("cuEventCreate", event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING))?;
        let mut made = Pinned { queue: queue.clone(), memory: std::ptr::null_mut(), words, is_read };
        // SAFETY: the context is current; the memory is freed in `drop`. Flags 0 ask for nothing special.
        made.memory = called("cuMemHostAlloc", unsafe { result::malloc_host(4 * words.max(1), 0) })?.cast();
        // SAFETY: so many words were just allocated, at the start of a page.
        unsafe { made.memory.write_bytes(0, words) };
        Ok(made)
    }

    fn wait(&self) -> Result<(), CudaError> {
        self.queue.enter()?;
        // SAFETY: the event lives as long as `self`; one that was never recorded is not waited for.
        called("cuEventSynchronize", unsafe { event::synchronize(self.is_read) })
    }
}

impl Staging for Pinned {
    fn words(&mut self) -> Result<&mut [u32], CudaError> {
        self.wait()?;
        // SAFETY: the words were written when they were allocated, and the copy that read them is done; they are borrowed with `self`.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.memory, self.words) })
    }

    fn upload(&mut self, to: Address) -> Result<(), CudaError> {
        self.queue.enter()?;
        // SAFETY: as in `words`; nothing writes them before the event is waited for.
        let words = unsafe { std::slice::from_raw_parts(self.memory, self.words) };
        // SAFETY: callers copy into memory that `allocate` gave them and that is at least as long.
        called("cuMemcpyHtoDAsync", unsafe { result::memcpy_htod_async(to, words, self.queue.stream) })?;
        // SAFETY: event and stream are of this context.
        let recorded = called("cuEventRecord", unsafe { event::record(self.is_read, self.queue.stream) });
        // Without its event the copy is waited for here.
        recorded.or_else(|error| self.queue.synchronize().and(Err(error)))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.wait();
        // SAFETY: memory and event are ours, the last copy is done or the context is broken, and neither is used again.
        unsafe {
            if !self.memory.is_null() {
                let _ = result::free_host(self.memory.cast());
            }
            let _ = event::destroy(self.is_read);
        }
    }
}

/// A device that is open for work.
pub(super) struct Driver {
    facts: Facts,
    queue: Arc<Queue>,
    handles: Mutex<Handles>,
}

// SAFETY: the driver's handles may be used from any thread that has made the context current, which every method does first; the
// tables of them are behind a lock.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}

impl Driver {
    pub fn open(ordinal: usize) -> Result<Driver, CudaError> {
        let facts = facts(ordinal)?;
        fenced(|| {
            let device = called("cuDeviceGet", device::get(ordinal as c_int))?;
            let queue = Arc::new(Queue::open(device)?);
            let handles = Handles {
                modules: HashMap::new(),
                functions: HashMap::new(),
                graphs: Vec::new(),
                pool: HashMap::new(),
                sizes: HashMap::new(),
            };
            Ok(Driver { facts, queue, handles: Mutex::new(handles) })
        })
    }

    fn handles(&self) -> std::sync::MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The kernel's handle, from the best image, with at least `shared_bytes` of dynamic shared memory allowed.
    fn function(&self, launch: &Launch) -> Result<sys::CUfunction, CudaError> {
        let mut handles = self.handles();
        let Handles { modules, functions, .. } = &mut *handles;
        if !functions.contains_key(&launch.kernel) {
            let image = image::choose(&launch.kernel, self.facts.capability)?;
            let key = (image.file, image.architecture);
            let module = match modules.get(&key) {
                Some(module) => *module,
                None => {
                    let bytes = image.unpacked();
                    // SAFETY: the image is a whole cubin, or PTX that ends with a zero; the driver copies it.
                    let module = unsafe { result::module::load_data(bytes.as_ptr().cast::<c_void>()) };
                    *modules.entry(key).or_insert(called("cuModuleLoadData", module)?)
                }
            };
            let name = CString::new(launch.kernel.as_str()).expect("kernel names hold no zero");
            // SAFETY: the module stays loaded until the context is released.
            let handle = called("cuModuleGetFunction", unsafe { result::module::get_function(module, name) })?;
            functions.insert(launch.kernel.clone(), Function { handle, shared_bytes: SHARED_BYTES_WITHOUT_ASKING });
        }
        let function = functions.get_mut(&launch.kernel).expect("inserted above");
        if launch.shared_bytes > function.shared_bytes {
            let which = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the handle is of a loaded module.
            let answer =
                unsafe { result::function::set_function_attribute(function.handle, which, launch.shared_bytes as c_int) };
            called("cuFuncSetAttribute", answer)?;
            function.shared_bytes = launch.shared_bytes;
        }
        Ok(function.handle)
    }

    fn start(&self, launch: &Launch) -> Result<(), CudaError> {
        let function = self.function(launch)?;
        let [x, y, z] = launch.grid;
        // The driver reads the one parameter through its pointer, at the alignment of the struct: 64 where it holds a tensor map.
        let mut storage = vec![0u128; launch.arguments.len().div_ceil(16) + 4];
        let first = storage.as_ptr().align_offset(64);
        bytemuck::cast_slice_mut::<u128, u8>(&mut storage)[16 * first..][..launch.arguments.len()]
            .copy_from_slice(&launch.arguments);
        let argument: *mut c_void = storage[first..].as_mut_ptr().cast();
        let mut parameters = [argument];
        // SAFETY: the kernel takes one struct, whose size and fields a test compares with the signature that made these bytes; the
        // addresses in it are of memory that the session keeps; the driver copies the struct before it returns.
        let answer = unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (launch.block, 1, 1),
                launch.shared_bytes,
                self.queue.stream,
                &mut parameters,
            )
        };
        answer.map_err(|error| CudaError::Launch { launch: launch.to_string(), shapes: String::new(), reason: code(error) })
    }

    /// Makes one replayable piece of what `queue` puts on the stream; the context is current.
    fn capture(&self, queue: impl FnOnce() -> Result<(), CudaError>) -> Result<Recording, CudaError> {
        // SAFETY: the stream is ours; every path below ends the capture.
        called("cuStreamBeginCapture", unsafe {
            stream::begin_capture(self.queue.stream, CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        })?;
        let started = queue();
        // SAFETY: a capture is under way on this stream.
        let captured = called("cuStreamEndCapture", unsafe { stream::end_capture(self.queue.stream) });
        let mut executable: sys::CUgraphExec = std::ptr::null_mut();
        // The launch that failed says more than the capture that it ended.
        let made = started.and(captured.clone()).and_then(|captured| {
            // SAFETY: the graph was just captured; flags 0 ask for nothing special.
            called("cuGraphInstantiate", unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, captured, 0) }.result())
        });
        let captured = match (made, captured) {
            (Ok(()), Ok(captured)) => captured,
            (Err(error), Ok(unused)) => {
                // SAFETY: nobody else has the graph.
                let _ = unsafe { graph::destroy(unused) };
                return Err(error);
            }
            (Err(error), Err(_)) | (Ok(()), Err(error)) => return Err(error),
        };
        let mut handles = self.handles();
        handles.graphs.push(Some(Graph { graph: captured, executable }));
        Ok(Recording(handles.graphs.len() - 1))
    }

    /// Records calls of another library, which queues them on the stream that it is handed.
    pub fn record_calls(&self, calls: impl FnOnce(*mut c_void) -> Result<(), CudaError>) -> Result<Recording, CudaError> {
        self.queue.enter()?;
        self.capture(|| calls(self.queue.stream()))
    }

    /// Runs calls of another library with the context current.
    pub fn with_stream<T>(&self, calls: impl FnOnce(*mut c_void) -> Result<T, CudaError>) -> Result<T, CudaError> {
        self.queue.enter()?;
        calls(self.queue.stream())
    }
}

impl Machine for Driver {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn allocate(&self, bytes: usize) -> Result<Address, CudaError> {
        self.queue.enter()?;
        let size = bytes.max(1).next_multiple_of(512);
        let kept = self.handles().pool.get_mut(&size).and_then(Vec::pop);
        let failed = |error: DriverError| CudaError::Memory { bytes: size, reason: code(error) };
        let address = match kept {
            Some(address) => address,
            // SAFETY: the context is current; the memory is freed in `drop`.
            None => unsafe { result::malloc_sync(size) }.map_err(failed)?,
        };
        self.handles().sizes.insert(address, size);
        // SAFETY: the memory has `size` bytes.
        unsafe { result::memset_d8_async(address, 0, size, self.queue.stream) }.map_err(failed)?;
        Ok(address)
    }

    fn release(&self, address: Address) {
        let mut handles = self.handles();
        if let Some(size) = handles.sizes.remove(&address) {
            handles.pool.entry(size).or_default().push(address);
        }
    }

    fn upload(&self, to: Address, data: &[u8]) -> Result<(), CudaError> {
        self.queue.enter()?;
        // SAFETY: callers copy into memory that `allocate` gave them and that is at least as long. From pageable memory the driver
        // returns once it has its own copy.
        called("cuMemcpyHtoDAsync", unsafe { result::memcpy_htod_async(to, data, self.queue.stream) })
    }

    fn download(&self, from: Address, data: &mut [u8]) -> Result<(), CudaError> {
        self.queue.enter()?;
        // SAFETY: as in `upload`; the call below waits until `data` is written.
        called("cuMemcpyDtoHAsync", unsafe { result::memcpy_dtoh_async(data, from, self.queue.stream) })?;
        self.synchronize()
    }

    fn tensor_map(&self, map: &TensorMap) -> Result<EncodedMap, CudaError> {
        self.queue.enter()?;
        let mut out = sys::CUtensorMap { opaque: [0; 16] };
        let dtype = match map.dtype {
            DType::U8 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            DType::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            _ => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        // Dimension 0 is the innermost, which has no stride.
        let (extents, strides) = (map.extents.map(|extent| extent as u64), map.strides());
        let (tile, steps) = (map.tile, [1u32; 4]);
        fenced(|| {
            // SAFETY: all arrays have an entry for each of at most four dimensions (strides: from the second on); the address is not
            // read here.
            let answer = unsafe {
                sys::cuTensorMapEncodeTiled(
                    &mut out,
                    dtype,
                    map.rank as u32,
                    map.base as *mut c_void,
                    extents.as_ptr(),
                    strides.as_ptr(),
                    tile.as_ptr(),
                    steps.as_ptr(),
                    sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                    sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                    sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                    sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
                )
            };
            called("cuTensorMapEncodeTiled", answer.result())
        })?;
        Ok(bytemuck::cast(out.opaque))
    }

    fn staging(&self, words: usize) -> Result<Box<dyn Staging>, CudaError> {
        Ok(Box::new(Pinned::new(&self.queue, words)?))
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), CudaError> {
        self.queue.enter()?;
        // SAFETY: callers copy between memory that `allocate` gave them and that is at least as long.
        called("cuMemcpyDtoDAsync", unsafe { result::memcpy_dtod_async(to, from, bytes, self.queue.stream) })
    }

    fn launch(&self, launch: &Launch) -> Result<(), CudaError> {
        self.queue.enter()?;
        self.start(launch)
    }

    fn record(&self, launches: &[&Launch]) -> Result<Option<Recording>, CudaError> {
        self.queue.enter()?;
        // Modules are loaded before: loading is not allowed while a stream is recorded.
        launches.iter().try_for_each(|launch| self.function(launch).map(|_| ()))?;
        self.capture(|| launches.iter().try_for_each(|launch| self.start(launch))).map(Some)
    }

    fn replay(&self, recording: &Recording) -> Result<(), CudaError> {
        self.queue.enter()?;
        let handles = self.handles();
        let graph = handles.graphs[recording.0].as_ref().expect("a session replays before it forgets");
        // SAFETY: the graph is instantiated and not destroyed.
        called("cuGraphLaunch", unsafe { graph::launch(graph.executable, self.queue.stream) })
    }

    fn forget(&self, recording: &Recording) {
        if self.synchronize().is_err() {
            return;
        }
        if let Some(kept) = self.handles().graphs[recording.0].take() {
            // SAFETY: nothing replays it any more (waited for above), and nobody else has the handles.
            let _ = unsafe { (graph::exec_destroy(kept.executable), graph::destroy(kept.graph)) };
        }
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        self.queue.synchronize()
    }

    fn time(&self, pieces: &[&[Launch]]) -> Result<Vec<f64>, CudaError> {
        let mut clock = Events::new(&self.queue);
        clock.mark()?;
        for piece in pieces {
            piece.iter().try_for_each(|launch| self.start(launch))?;
            clock.mark()?;
        }
        clock.take()
    }

    fn time_replay(&self, recording: &Recording) -> Result<f64, CudaError> {
        let mut clock = Events::new(&self.queue);
        clock.mark()?;
        self.replay(recording)?;
        clock.mark()?;
        clock.take().map(|seconds| seconds[0])
    }

    fn clock(&self) -> Box<dyn Clock> {
        Box::new(Events::new(&self.queue))
    }

    fn collectives(&self) -> Result<Box<dyn Collectives>, CudaError> {
        let uuid = called("cuDeviceGetUuid", device::get_uuid(self.queue.device))?;
        Ok(Box::new(Nccl::open(self.queue.clone(), uuid.bytes.map(|byte| byte as u8))?))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // A fault makes every call but the last fail; the context is released all the same, so that the device can be opened anew.
        let _ = self.synchronize();
        let mut handles = self.handles();
        let kept: Vec<Address> = handles.pool.drain().flat_map(|(_, kept)| kept).collect();
        let used: Vec<Address> = handles.sizes.drain().map(|(address, _)| address).collect();
        // SAFETY: all work is done; the memory and the graphs are ours and used no more. Modules too: the context outlives this,
        // where the device is open a second time.
        unsafe {
            for address in kept.into_iter().chain(used) {
                let _ = result::free_sync(address);
            }
            for graph in handles.graphs.drain(..).flatten() {
                let _ = (graph::exec_destroy(graph.executable), graph::destroy(graph.graph));
            }
            for (_, module) in handles.modules.drain() {
                let _ = result::module::unload(module);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_device_gets_a_reason_and_no_panic() {
        match device_count() {
            Ok(count) => assert!(count > 0 && facts(count).is_err()),
            Err(error) => {
                assert!(matches!(error, CudaError::NoDriver | CudaError::NoDevice(_) | CudaError::OldDriver(_)), "{error}");
                assert_eq!(driver_version(), None);
                assert_eq!(Driver::open(0).err(), Some(error));
            }
        }
    }

    /// `relu_f32` on `count` numbers.
    fn relu(x: Address, y: Address, count: u64, block: u32) -> Launch {
        let arguments = [x, y, count].iter().flat_map(|word| word.to_le_bytes()).collect();
        Launch { kernel: "relu_f32".into(), grid: [1, 1, 1], block, shared_bytes: 0, arguments, maps: Vec::new() }
    }

    /// Only with the stand-in, in the process that `cuda::tests` starts: a real device would not survive the fault.
    #[test]
    fn failures_are_named_and_the_device_can_be_used_after_them() {
        if std::env::var_os(super::super::THROUGH_THE_DRIVER).is_none() {
            return;
        }
        let driver = Driver::open(0).unwrap();
        let (x, y) = (driver.allocate(1024).unwrap(), driver.allocate(1024).unwrap());
        driver.upload(x, &[0; 1024]).unwrap();
        let invalid = |call| CudaError::Call { call, code: "CUDA_ERROR_INVALID_VALUE".into() };
        assert_eq!(driver.upload(x, &[0; 2048]), Err(invalid("cuMemcpyHtoDAsync")));
        assert_eq!(driver.download(x, &mut [0; 2048]), Err(invalid("cuMemcpyDtoHAsync")));
        assert!(matches!(driver.allocate(5 << 30), Err(CudaError::Memory { .. })));
        let unknown = Launch { kernel: "no_such_kernel".into(), ..relu(x, y, 256, 256) };
        assert!(matches!(driver.launch(&unknown), Err(CudaError::NoImage { .. })));
        // A launch that is refused ends the capture, and the next one works.
        let (good, wide) = (relu(x, y, 256, 256), relu(x, y, 256, 2048));
        assert!(matches!(driver.record(&[&good, &wide]), Err(CudaError::Launch { .. })));
        let recording = driver.record(&[&good, &good]).unwrap().unwrap();
        driver.replay(&recording).unwrap();
        assert!(driver.time_replay(&recording).unwrap() >= 0.0);
        driver.forget(&recording);
        driver.download(y, &mut [0; 1024]).unwrap();
        // A kernel that reads beside its memory breaks the context, and the device until it is opened again.
        driver.launch(&relu(x + 1024, y, 256, 256)).unwrap();
        let fault = CudaError::Call { call: "cuStreamSynchronize", code: "CUDA_ERROR_ILLEGAL_ADDRESS".into() };
        assert_eq!(driver.synchronize(), Err(fault.clone()));
        drop(driver);
        let driver = Driver::open(0).unwrap();
        assert_eq!(driver.synchronize(), Ok(()));
        assert_eq!(driver.allocate(4096).map(|_| ()), Ok(()));
        assert!(matches!(Driver::open(1), Err(CudaError::Ordinal { ordinal: 1, count: 1 })));
    }

    /// As above: the stand-in makes 2048 events and no more.
    #[test]
    fn events_that_cannot_all_be_made_are_given_back() {
        if std::env::var_os(super::super::THROUGH_THE_DRIVER).is_none() {
            return;
        }
        let driver = Driver::open(0).unwrap();
        for _ in 0..2 {
            let refused = CudaError::Call { call: "cuEventCreate", code: "CUDA_ERROR_OUT_OF_MEMORY".into() };
            assert_eq!(driver.time(&[[].as_slice(); 3000]), Err(refused));
            assert_eq!(driver.time(&[[].as_slice(); 1500]).map(|times| times.len()), Ok(1500));
        }
    }

    /// As above. Safe code cannot do it: `words` waits.
    #[test]
    fn page_locked_memory_that_changes_under_a_queued_copy_is_a_fault_of_the_stand_in() {
        if std::env::var_os(super::super::THROUGH_THE_DRIVER).is_none() {
            return;
        }
        let fault = |call| CudaError::Call { call, code: "CUDA_ERROR_ILLEGAL_ADDRESS".into() };
        let driver = Driver::open(0).unwrap();
        let (to, mut host) = (driver.allocate(64).unwrap(), Pinned::new(&driver.queue, 16).unwrap());
        for word in 1..=3 {
            host.words().unwrap().fill(word);
            host.upload(to).unwrap();
        }
        let mut seen = [0; 64];
        driver.download(to, &mut seen).unwrap();
        assert_eq!(seen[..8], [3, 0, 0, 0, 3, 0, 0, 0]);
        host.upload(to).unwrap();
        // SAFETY: the words are there; the copy that still reads them is what this test is about.
        unsafe { host.memory.write(7) };
        assert_eq!(driver.synchronize(), Err(fault("cuStreamSynchronize")));
        drop((host, driver));
        // Freed too early, and twice.
        let driver = Driver::open(0).unwrap();
        let (to, mut host) = (driver.allocate(64).unwrap(), Pinned::new(&driver.queue, 16).unwrap());
        let memory = std::mem::replace(&mut host.memory, std::ptr::null_mut());
        // SAFETY: the memory is taken from its owner above.
        let free = || called("cuMemFreeHost", unsafe { result::free_host(memory.cast()) });
        assert_eq!(
            (free(), free()),
            (Ok(()), Err(CudaError::Call { call: "cuMemFreeHost", code: "CUDA_ERROR_INVALID_VALUE".into() }))
        );
        drop(host);
        let mut host = Pinned::new(&driver.queue, 16).unwrap();
        host.upload(to).unwrap();
        let memory = std::mem::replace(&mut host.memory, std::ptr::null_mut());
        // SAFETY: as above.
        let _ = called("cuMemFreeHost", unsafe { result::free_host(memory.cast()) });
        assert_eq!(driver.synchronize(), Err(fault("cuStreamSynchronize")));
    }

    #[test]
    fn a_panic_of_the_loader_becomes_an_error() {
        let answer: Result<(), CudaError> = fenced(|| panic!("Missing symbol {}: dlsym", "cuStreamCreate"));
        assert_eq!(answer, Err(CudaError::OldDriver("Missing symbol cuStreamCreate: dlsym".into())));
    }
}
