//! The door to MPI: a library that is opened at run time, and owners of its communicators and of what is under way on them.
//!
//! Two binary interfaces are known, told apart by their symbols: Open MPI, whose handles are addresses of its own objects, and MPICH (and
//! what is compatible with it), whose handles are integers. Nothing is linked and no header is read: a machine without MPI has a clear
//! answer, and the same program serves both. Signatures and constants: the MPI standard 3.1, and of each interface its `mpi.h`.
//!
//! All `unsafe` of MPI is in this file. What makes it sound: a buffer that is handed over is owned by its `Pending` until MPI is done with
//! it, and is leaked where that is never known; one lock is held around every call.

use std::{
    ffi::{c_char, c_int, c_void},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MpiError {
    #[error("no MPI library was found (tried {tried}): install Open MPI or MPICH, or name the file in ADVISOR_MPI_LIBRARY")]
    Absent { tried: String },
    #[error("`{library}` is no MPI library that is known: it lacks `{symbol}`")]
    Symbol { library: String, symbol: &'static str },
    #[error("{function} failed: {text}")]
    Call { function: &'static str, text: String },
    #[error("this MPI library lets only one thread in (level {level}): one is needed that was built for threads")]
    Threads { level: i32 },
    #[error(
        "the launcher started {started} processes, but MPI knows of {known}: the launcher and `{library}` do not belong together; \
         srun must be told which interface it offers (`srun --mpi=pmix` for Open MPI, `srun --mpi=pmi2` for MPICH)"
    )]
    Launcher { started: usize, known: usize, library: String },
    #[error("rank {rank} on `{host}` gave no sign of life for {seconds:.0} s")]
    Silent { rank: usize, host: String, seconds: f64 },
    #[error("a message between processes of this launch is none that is known ({0}): are all of the same version?")]
    Order(String),
    #[error("MPI gave no communicator to a process that belongs to it")]
    NoGroup,
    #[error("MPI waited for {seconds:.0} s for a rank to make a group with: a process of the launch hangs")]
    Stuck { seconds: f64 },
    #[error("{0} elements are more than one MPI call takes")]
    TooLong(usize),
}

/// Room for the status of either interface: 24 and 20 bytes.
type Status = [u64; 8];

/// `MPI_THREAD_SERIALIZED`, in both interfaces.
const SERIALIZED: c_int = 2;

/// `MPI_UNDEFINED`, in both interfaces.
const UNDEFINED: c_int = -32766;

/// Longest text that either library writes (`MPI_MAX_LIBRARY_VERSION_STRING` of MPICH).
const LONGEST_TEXT: usize = 8192;

/// A handle as one of the interfaces has it.
trait Raw: Copy + Send + Sync + 'static {
    const NONE: Self;
    fn into_bits(self) -> u64;
    fn from_bits(bits: u64) -> Self;
}

/// Open MPI: an address.
impl Raw for usize {
    const NONE: usize = 0;
    fn into_bits(self) -> u64 {
        self as u64
    }
    fn from_bits(bits: u64) -> usize {
        bits as usize
    }
}

/// MPICH: an integer.
impl Raw for c_int {
    const NONE: c_int = 0;
    fn into_bits(self) -> u64 {
        u64::from(self as u32)
    }
    fn from_bits(bits: u64) -> c_int {
        bits as u32 as c_int
    }
}

type InitThread = unsafe extern "C" fn(*mut c_int, *mut *mut *mut c_char, c_int, *mut c_int) -> c_int;
type Text = unsafe extern "C" fn(*mut c_char, *mut c_int) -> c_int;
type Count<H> = unsafe extern "C" fn(H, *mut c_int) -> c_int;
type Split<H> = unsafe extern "C" fn(H, c_int, c_int, *mut H) -> c_int;
type SplitByType<H> = unsafe extern "C" fn(H, c_int, c_int, H, *mut H) -> c_int;
type PointToPoint<H> = unsafe extern "C" fn(*mut c_void, c_int, H, c_int, c_int, H, *mut H) -> c_int;
type Reduce<H> = unsafe extern "C" fn(*const c_void, *mut c_void, c_int, H, H, H, *mut H) -> c_int;
type Gather<H> = unsafe extern "C" fn(*const c_void, c_int, H, *mut c_void, c_int, H, H, *mut H) -> c_int;

/// The functions of a library with handles of type `H`, and its constants.
struct Table<H> {
    init_thread: InitThread,
    finalize: unsafe extern "C" fn() -> c_int,
    abort: unsafe extern "C" fn(H, c_int) -> c_int,
    library_version: Text,
    processor_name: Text,
    error_string: unsafe extern "C" fn(c_int, *mut c_char, *mut c_int) -> c_int,
    comm_rank: Count<H>,
    comm_size: Count<H>,
    comm_split: Split<H>,
    comm_split_type: SplitByType<H>,
    comm_free: unsafe extern "C" fn(*mut H) -> c_int,
    set_error_handler: unsafe extern "C" fn(H, H) -> c_int,
    isend: PointToPoint<H>,
    irecv: PointToPoint<H>,
    test: unsafe extern "C" fn(*mut H, *mut c_int, *mut Status) -> c_int,
    get_count: unsafe extern "C" fn(*const Status, H, *mut c_int) -> c_int,
    iallreduce: Reduce<H>,
    ireduce_scatter_block: Reduce<H>,
    iallgather: Gather<H>,
    ibarrier: unsafe extern "C" fn(H, *mut H) -> c_int,
    world: H,
    float: H,
    byte: H,
    sum: H,
    errors_return: H,
    no_info: H,
    /// `MPI_COMM_TYPE_SHARED`: processes that may share memory, which are those of one node.
    of_one_node: c_int,
    in_place: usize,
}

/// A symbol of a library as the type that the caller says.
///
/// # Safety
/// `T` must be the type of the symbol.
unsafe fn symbol<T: Copy>(library: &libloading::Library, path: &str, name: &'static str) -> Result<T, MpiError> {
    // SAFETY: the caller names the symbol's type.
    let found = unsafe { library.get::<T>(name.as_bytes()) };
    found.map(|symbol| *symbol).map_err(|_| MpiError::Symbol { library: path.to_string(), symbol: name })
}

impl<H: Raw> Table<H> {
    /// # Safety
    /// The library must be of the interface whose handles are `H`; `constants` are its world, float, byte, sum, errors-return and no-info,
    /// `numbers` its `MPI_IN_PLACE` and `MPI_COMM_TYPE_SHARED`.
    unsafe fn load(lib: &libloading::Library, path: &str, constants: [H; 6], numbers: (usize, c_int)) -> Result<Self, MpiError> {
        let [world, float, byte, sum, errors_return, no_info] = constants;
        let (in_place, of_one_node) = numbers;
        // SAFETY: the signatures are those of the MPI standard, with the handles of this interface.
        unsafe {
            Ok(Table {
                init_thread: symbol(lib, path, "MPI_Init_thread")?,
                finalize: symbol(lib, path, "MPI_Finalize")?,
                abort: symbol(lib, path, "MPI_Abort")?,
                library_version: symbol(lib, path, "MPI_Get_library_version")?,
                processor_name: symbol(lib, path, "MPI_Get_processor_name")?,
                error_string: symbol(lib, path, "MPI_Error_string")?,
                comm_rank: symbol(lib, path, "MPI_Comm_rank")?,
                comm_size: symbol(lib, path, "MPI_Comm_size")?,
                comm_split: symbol(lib, path, "MPI_Comm_split")?,
                comm_split_type: symbol(lib, path, "MPI_Comm_split_type")?,
                comm_free: symbol(lib, path, "MPI_Comm_free")?,
                set_error_handler: symbol(lib, path, "MPI_Comm_set_errhandler")?,
                isend: symbol(lib, path, "MPI_Isend")?,
                irecv: symbol(lib, path, "MPI_Irecv")?,
                test: symbol(lib, path, "MPI_Test")?,
                get_count: symbol(lib, path, "MPI_Get_count")?,
                iallreduce: symbol(lib, path, "MPI_Iallreduce")?,
                ireduce_scatter_block: symbol(lib, path, "MPI_Ireduce_scatter_block")?,
                iallgather: symbol(lib, path, "MPI_Iallgather")?,
                ibarrier: symbol(lib, path, "MPI_Ibarrier")?,
                world,
                float,
                byte,
                sum,
                errors_return,
                no_info,
                of_one_node,
                in_place,
            })
        }
    }
}

impl<H: Raw> Table<H> {
    fn element(&self, kind: Kind) -> H {
        match kind {
            Kind::Float => self.float,
            Kind::Byte => self.byte,
        }
    }
}

/// What is asked of a library, with handles as bits. Pointers follow the rules of the MPI function of the same name.
trait Calls: Send + Sync {
    unsafe fn init(&self, level: &mut c_int) -> c_int;
    unsafe fn finalize(&self) -> c_int;
    unsafe fn abort(&self, code: c_int) -> c_int;
    unsafe fn version(&self, text: *mut c_char, length: &mut c_int) -> c_int;
    unsafe fn processor(&self, text: *mut c_char, length: &mut c_int) -> c_int;
    unsafe fn error(&self, code: c_int, text: *mut c_char, length: &mut c_int) -> c_int;
    fn world(&self) -> u64;
    unsafe fn place(&self, comm: u64, rank: &mut c_int, size: &mut c_int) -> c_int;
    unsafe fn split(&self, comm: u64, color: c_int, key: c_int, made: &mut u64) -> c_int;
    unsafe fn split_by_node(&self, comm: u64, key: c_int, made: &mut u64) -> c_int;
    unsafe fn return_errors(&self, comm: u64) -> c_int;
    unsafe fn free(&self, comm: u64) -> c_int;
    unsafe fn start(&self, comm: u64, what: &Start, request: &mut u64) -> c_int;
    /// `count` is set where an element's kind is given.
    unsafe fn test(&self, request: &mut u64, kind: Option<Kind>, done: &mut bool, count: &mut c_int) -> c_int;
}

/// Type of an element.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Float,
    Byte,
}

/// An operation with the addresses that MPI may use until it is done. `count` is that of the MPI call.
struct Start {
    what: What,
    kind: Kind,
    from: *const c_void,
    to: *mut c_void,
    count: c_int,
}

#[derive(Clone, Copy)]
enum What {
    Send { to: c_int, tag: c_int },
    Receive { from: c_int, tag: c_int },
    AllReduce,
    ReduceScatter,
    AllGather,
    Barrier,
}

// SAFETY of all blocks: the caller keeps the promises of the MPI function; handles came from this library.
impl<H: Raw> Calls for Table<H> {
    unsafe fn init(&self, level: &mut c_int) -> c_int {
        unsafe { (self.init_thread)(std::ptr::null_mut(), std::ptr::null_mut(), SERIALIZED, level) }
    }

    unsafe fn finalize(&self) -> c_int {
        unsafe { (self.finalize)() }
    }

    unsafe fn abort(&self, code: c_int) -> c_int {
        unsafe { (self.abort)(self.world, code) }
    }

    unsafe fn version(&self, text: *mut c_char, length: &mut c_int) -> c_int {
        unsafe { (self.library_version)(text, length) }
    }

    unsafe fn processor(&self, text: *mut c_char, length: &mut c_int) -> c_int {
        unsafe { (self.processor_name)(text, length) }
    }

    unsafe fn error(&self, code: c_int, text: *mut c_char, length: &mut c_int) -> c_int {
        unsafe { (self.error_string)(code, text, length) }
    }

    fn world(&self) -> u64 {
        self.world.into_bits()
    }

    unsafe fn place(&self, comm: u64, rank: &mut c_int, size: &mut c_int) -> c_int {
        let comm = H::from_bits(comm);
        unsafe { (self.comm_rank)(comm, rank).max((self.comm_size)(comm, size)) }
    }

    unsafe fn split(&self, comm: u64, color: c_int, key: c_int, made: &mut u64) -> c_int {
        let mut handle = H::NONE;
        let code = unsafe { (self.comm_split)(H::from_bits(comm), color, key, &mut handle) };
        *made = handle.into_bits();
        code
    }

    unsafe fn split_by_node(&self, comm: u64, key: c_int, made: &mut u64) -> c_int {
        let mut handle = H::NONE;
        let code = unsafe { (self.comm_split_type)(H::from_bits(comm), self.of_one_node, key, self.no_info, &mut handle) };
        *made = handle.into_bits();
        code
    }

    unsafe fn return_errors(&self, comm: u64) -> c_int {
        unsafe { (self.set_error_handler)(H::from_bits(comm), self.errors_return) }
    }

    unsafe fn free(&self, comm: u64) -> c_int {
        let mut handle = H::from_bits(comm);
        unsafe { (self.comm_free)(&mut handle) }
    }

    unsafe fn start(&self, comm: u64, start: &Start, request: &mut u64) -> c_int {
        let Start { what, kind, from, to, count } = *start;
        let (comm, mut handle) = (H::from_bits(comm), H::NONE);
        let element = self.element(kind);
        let code = unsafe {
            match what {
                What::Send { to: rank, tag } => (self.isend)(from.cast_mut(), count, element, rank, tag, comm, &mut handle),
                What::Receive { from: rank, tag } => (self.irecv)(to, count, element, rank, tag, comm, &mut handle),
                What::AllReduce => {
                    (self.iallreduce)(self.in_place as *const c_void, to, count, element, self.sum, comm, &mut handle)
                }
                What::ReduceScatter => (self.ireduce_scatter_block)(from, to, count, element, self.sum, comm, &mut handle),
                What::AllGather => (self.iallgather)(from, count, element, to, count, element, comm, &mut handle),
                What::Barrier => (self.ibarrier)(comm, &mut handle),
            }
        };
        *request = handle.into_bits();
        code
    }

    unsafe fn test(&self, request: &mut u64, kind: Option<Kind>, done: &mut bool, count: &mut c_int) -> c_int {
        let (mut handle, mut flag, mut status) = (H::from_bits(*request), 0, Status::default());
        let code = unsafe { (self.test)(&mut handle, &mut flag, &mut status) };
        *request = handle.into_bits();
        *done = flag != 0;
        match kind.filter(|_| code == 0 && *done) {
            Some(kind) => unsafe { (self.get_count)(&status, self.element(kind), count) },
            None => code,
        }
    }
}

/// An opened library. Never closed: its threads and exit handlers outlive any owner.
pub(super) struct Library {
    calls: Box<dyn Calls>,
    /// MPI is asked by one thread at a time.
    lock: Mutex<()>,
    path: String,
}

fn check(calls: &dyn Calls, function: &'static str, code: c_int) -> Result<(), MpiError> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: the text is longer than any that either library writes.
    let said = text(|buffer, length| unsafe { calls.error(code, buffer, length) });
    let said = if said.is_empty() { format!("code {code}") } else { said };
    Err(MpiError::Call { function, text: said })
}

fn count_of(elements: usize) -> Result<c_int, MpiError> {
    c_int::try_from(elements).map_err(|_| MpiError::TooLong(elements))
}

impl Library {
    /// Opens the first of `names` that the loader finds.
    pub fn open(names: &[String]) -> Result<Library, MpiError> {
        for name in names {
            // Global: Open MPI's plug-ins look for its symbols.
            let flags = libloading::os::unix::RTLD_NOW | libloading::os::unix::RTLD_GLOBAL;
            // SAFETY: an MPI library's initialisers have no requirement of their caller.
            let opened = unsafe { libloading::os::unix::Library::open(Some(name), flags) };
            let Ok(library) = opened else { continue };
            let library = libloading::Library::from(library);
            let calls = Library::bind(&library, name)?;
            std::mem::forget(library);
            return Ok(Library { calls, lock: Mutex::new(()), path: name.clone() });
        }
        Err(MpiError::Absent { tried: names.join(", ") })
    }

    /// Finds out which interface the library has.
    fn bind(lib: &libloading::Library, path: &str) -> Result<Box<dyn Calls>, MpiError> {
        // SAFETY: only the addresses of these objects are taken; they are Open MPI's handles, and no other library has them.
        let handle = |name| unsafe { symbol::<*const c_void>(lib, path, name) }.map(|address| address as usize);
        if handle("ompi_mpi_comm_world").is_ok() {
            let names = [
                "ompi_mpi_comm_world",
                "ompi_mpi_float",
                "ompi_mpi_byte",
                "ompi_mpi_op_sum",
                "ompi_mpi_errors_return",
                "ompi_mpi_info_null",
            ];
            let mut constants = [0; 6];
            for (constant, name) in constants.iter_mut().zip(names) {
                *constant = handle(name)?;
            }
            // SAFETY: these symbols are Open MPI's. `MPI_IN_PLACE` is 1 there, `MPI_COMM_TYPE_SHARED` 0.
            return Ok(Box::new(unsafe { Table::<usize>::load(lib, path, constants, (1, 0))? }));
        }
        // The interface that MPICH and its relatives have shared since 2014 (MPICH ABI Compatibility Initiative).
        let constants = [0x4400_0000, 0x4c00_040a, 0x4c00_010d, 0x5800_0003, 0x5400_0001, 0x1c00_0000];
        // SAFETY: a library without Open MPI's symbols is taken for MPICH's kin; `MPI_IN_PLACE` is -1 there, `MPI_COMM_TYPE_SHARED` 1.
        Ok(Box::new(unsafe { Table::<c_int>::load(lib, path, constants, (usize::MAX, 1))? }))
    }

    fn locked(&self) -> (MutexGuard<'_, ()>, &dyn Calls) {
        (self.lock.lock().unwrap_or_else(PoisonError::into_inner), &*self.calls)
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    /// Starts MPI; once a process.
    pub fn start(self: &Arc<Library>) -> Result<Comm, MpiError> {
        let (guard, calls) = self.locked();
        let mut level = 0;
        // SAFETY: called once, before any other function of the library.
        check(calls, "MPI_Init_thread", unsafe { calls.init(&mut level) })?;
        if level < SERIALIZED {
            return Err(MpiError::Threads { level });
        }
        let world = calls.world();
        drop(guard);
        self.comm(world)
    }

    fn comm(self: &Arc<Library>, handle: u64) -> Result<Comm, MpiError> {
        let (_guard, calls) = self.locked();
        let (mut rank, mut size) = (0, 0);
        // SAFETY: the handle is a communicator of this library.
        unsafe {
            check(calls, "MPI_Comm_set_errhandler", calls.return_errors(handle))?;
            check(calls, "MPI_Comm_size", calls.place(handle, &mut rank, &mut size))?;
        }
        Ok(Comm { library: self.clone(), handle, rank: rank as usize, size: size as usize })
    }

    /// First line of what the library says of itself.
    pub fn version(&self) -> String {
        let (_guard, calls) = self.locked();
        // SAFETY: the text is longer than any that either library writes.
        let whole = text(|buffer, length| unsafe { calls.version(buffer, length) });
        // MPICH: lines of `name:\tvalue`.
        let fields: Vec<&str> = whole.lines().take(1).flat_map(|line| line.split_whitespace()).collect();
        let line = fields.join(" ");
        line.split(", package").next().unwrap_or_default().trim().to_string()
    }

    /// The host's name, as the library has it.
    pub fn host(&self) -> String {
        let (_guard, calls) = self.locked();
        // SAFETY: as above.
        text(|buffer, length| unsafe { calls.processor(buffer, length) })
    }

    /// Ends MPI, together with all other processes; nothing may be under way.
    pub fn finalize(&self) -> Result<(), MpiError> {
        let (_guard, calls) = self.locked();
        // SAFETY: communicators are not used afterwards: the world that owns them ends here.
        check(calls, "MPI_Finalize", unsafe { calls.finalize() })
    }

    /// Ends all processes of the job at once.
    pub fn abort(&self, code: i32) -> ! {
        let (_guard, calls) = self.locked();
        // SAFETY: may be called at any time after the start.
        unsafe { calls.abort(code) };
        std::process::exit(code)
    }
}

fn text(write: impl FnOnce(*mut c_char, &mut c_int) -> c_int) -> String {
    let (mut buffer, mut length) = (vec![0u8; LONGEST_TEXT + 1], 0);
    let code = write(buffer.as_mut_ptr().cast(), &mut length);
    let length = if code == 0 { (length.max(0) as usize).min(LONGEST_TEXT) } else { 0 };
    String::from_utf8_lossy(&buffer[..length]).trim_end_matches('\0').to_string()
}

/// A communicator: this process's rank among some processes.
pub(super) struct Comm {
    library: Arc<Library>,
    handle: u64,
    pub rank: usize,
    pub size: usize,
}

/// What travels: `f32` and bytes.
pub(super) trait Element: Copy + Default + Send {
    const KIND: Kind;
}

impl Element for f32 {
    const KIND: Kind = Kind::Float;
}

impl Element for u8 {
    const KIND: Kind = Kind::Byte;
}

/// An operation under way, with the memory that it reads and writes.
pub(super) struct Pending<T: Element> {
    library: Arc<Library>,
    function: &'static str,
    request: u64,
    done: bool,
    given: Vec<T>,
    made: Vec<T>,
    receives: bool,
    /// Elements that came, for a receive.
    count: c_int,
}

impl<T: Element> Pending<T> {
    /// Whether it is over; asking makes MPI get on with it.
    pub fn poll(&mut self) -> Result<bool, MpiError> {
        if !self.done {
            let kind = self.receives.then_some(T::KIND);
            let (_guard, calls) = self.library.locked();
            // SAFETY: the request came from this library, and its memory is owned by `self`.
            check(calls, self.function, unsafe { calls.test(&mut self.request, kind, &mut self.done, &mut self.count) })?;
        }
        Ok(self.done)
    }

    /// The result, and for a receive the elements that came; call it when `poll` has said yes.
    pub fn take(mut self) -> (Vec<T>, usize) {
        assert!(self.done, "only what is over has a result");
        (std::mem::take(&mut self.made), self.count.max(0) as usize)
    }
}

impl<T: Element> Drop for Pending<T> {
    fn drop(&mut self) {
        if !self.done {
            // MPI may still read and write this memory.
            std::mem::forget((std::mem::take(&mut self.given), std::mem::take(&mut self.made)));
        }
    }
}

impl Comm {
    /// Those of the same color, in the order of their ranks here; `None` for a process without color. All processes must ask together.
    pub fn split(&self, color: Option<usize>) -> Result<Option<Comm>, MpiError> {
        let wanted = color.map_or(Ok(UNDEFINED), count_of)?;
        let mut made = 0;
        {
            let (_guard, calls) = self.library.locked();
            // SAFETY: the handle is a communicator of this library.
            check(calls, "MPI_Comm_split", unsafe { calls.split(self.handle, wanted, self.rank as c_int, &mut made) })?;
        }
        if color.is_none() { Ok(None) } else { self.library.comm(made).map(Some) }
    }

    /// Those of the same node, in the order of their ranks here. All processes must ask together.
    pub fn split_by_node(&self) -> Result<Comm, MpiError> {
        let mut made = 0;
        {
            let (_guard, calls) = self.library.locked();
            // SAFETY: the handle is a communicator of this library.
            let code = unsafe { calls.split_by_node(self.handle, self.rank as c_int, &mut made) };
            check(calls, "MPI_Comm_split_type", code)?;
        }
        self.library.comm(made)
    }

    /// Gives a communicator back, all its processes together; nothing may be under way on it.
    pub fn free(self) -> Result<(), MpiError> {
        let (_guard, calls) = self.library.locked();
        // SAFETY: it was made by `split`, and nobody has it any more.
        check(calls, "MPI_Comm_free", unsafe { calls.free(self.handle) })
    }

    fn begin<T: Element>(
        &self,
        function: &'static str,
        what: What,
        given: Vec<T>,
        mut made: Vec<T>,
        count: usize,
    ) -> Result<Pending<T>, MpiError> {
        let (from, to) = (given.as_ptr().cast(), made.as_mut_ptr().cast());
        let start = Start { what, kind: T::KIND, from, to, count: count_of(count)? };
        // Vectors may move: the memory behind them does not.
        let library = self.library.clone();
        let receives = matches!(what, What::Receive { .. });
        let mut pending = Pending { library, function, request: 0, done: false, given, made, receives, count: 0 };
        let (_guard, calls) = self.library.locked();
        // SAFETY: the callers below size `given` and `made` for `count` elements as the function of MPI wants them; `pending` owns both
        // until the request is done.
        let code = unsafe { calls.start(self.handle, &start, &mut pending.request) };
        check(calls, function, code)?;
        Ok(pending)
    }

    pub fn send<T: Element>(&self, to: usize, tag: i32, data: Vec<T>) -> Result<Pending<T>, MpiError> {
        let count = data.len();
        self.begin("MPI_Isend", What::Send { to: count_of(to)?, tag }, data, Vec::new(), count)
    }

    /// Receives at most `count` elements.
    pub fn receive<T: Element>(&self, from: usize, tag: i32, count: usize) -> Result<Pending<T>, MpiError> {
        let made = vec![T::default(); count];
        self.begin("MPI_Irecv", What::Receive { from: count_of(from)?, tag }, Vec::new(), made, count)
    }

    pub fn all_reduce(&self, data: Vec<f32>) -> Result<Pending<f32>, MpiError> {
        let count = data.len();
        self.begin("MPI_Iallreduce", What::AllReduce, Vec::new(), data, count)
    }

    /// `data` has `count` elements for each process; the result has one's own.
    pub fn reduce_scatter(&self, data: Vec<f32>, count: usize) -> Result<Pending<f32>, MpiError> {
        assert_eq!(data.len(), count * self.size, "a part for each process");
        self.begin("MPI_Ireduce_scatter_block", What::ReduceScatter, data, vec![0.0; count], count)
    }

    /// The result has the parts of all processes, which must have equal lengths.
    pub fn all_gather<T: Element>(&self, part: Vec<T>) -> Result<Pending<T>, MpiError> {
        let count = part.len();
        let made = vec![T::default(); count * self.size];
        self.begin("MPI_Iallgather", What::AllGather, part, made, count)
    }

    pub fn barrier(&self) -> Result<Pending<u8>, MpiError> {
        self.begin("MPI_Ibarrier", What::Barrier, Vec::new(), Vec::new(), 0)
    }
}
