//! Threads and scratch for the kernels: a fork-join pool that spins briefly, then sleeps, and the [`Context`] every
//! kernel takes. Work is split by thread count alone, so results never depend on timing.
//! A spinning worker picks up work in under a microsecond; a sleeping one needs a wake-up (tens of microseconds).

use super::simd::{Element, Isa};
use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// About 50 us of `pause` on the machines seen: longer than the gaps between the kernels of a step, short enough not
/// to take a core from others for long.
const SPINS: usize = 2_000;

type Job = *const (dyn Fn(usize) + Sync);

struct Shared {
    job: UnsafeCell<Option<Job>>,
    epoch: AtomicUsize,
    pending: AtomicUsize,
    sleeping: AtomicUsize,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    lock: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is written only while no worker is between epochs (pending == 0), and read only after `epoch` changed.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// A fixed number of threads, the caller among them, that run one function together.
pub struct Pool {
    shared: Arc<Shared>,
    threads: usize,
    workers: Vec<JoinHandle<()>>,
    one_at_a_time: Mutex<()>,
}

impl Pool {
    /// A pool of `threads` (at least 1): `threads - 1` workers and the caller.
    pub fn new(threads: usize) -> Pool {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            job: UnsafeCell::new(None),
            epoch: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
            sleeping: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        });
        let workers = (1..threads)
            .map(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("kernel-{index}"))
                    .spawn(move || work(&shared, index))
                    .expect("the system can start a thread")
            })
            .collect();
        Pool { shared, threads, workers, one_at_a_time: Mutex::new(()) }
    }

    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `f(0)` .. `f(threads - 1)`, each on its own thread, and returns when all have. A panic in any is raised here.
    pub fn run(&self, f: &(dyn Fn(usize) + Sync)) {
        if self.threads == 1 {
            return f(0);
        }
        let _turn = unpoisoned(self.one_at_a_time.lock());
        let shared = &*self.shared;
        // SAFETY: the lifetime is only hidden: this call returns (or unwinds) after `pending` is 0, when no worker
        // holds the pointer; no worker reads `job` now because the last epoch is complete.
        unsafe {
            let job: Job = std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Job>(f);
            *shared.job.get() = Some(job);
        }
        shared.pending.store(self.threads - 1, Relaxed);
        shared.epoch.fetch_add(1, SeqCst);
        if shared.sleeping.load(SeqCst) > 0 {
            let _held = unpoisoned(shared.lock.lock());
            shared.wake.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| f(0)));
        let mut spins = 0;
        while shared.pending.load(Acquire) != 0 {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        if let Some(panic) = unpoisoned(shared.panic.lock()).take() {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.epoch.fetch_add(1, SeqCst);
        {
            let _held = unpoisoned(self.shared.lock.lock());
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        let mut spins = 0;
        while shared.epoch.load(Acquire) == seen {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
                continue;
            }
            shared.sleeping.fetch_add(1, SeqCst);
            let mut held = unpoisoned(shared.lock.lock());
            while shared.epoch.load(SeqCst) == seen {
                held = unpoisoned(shared.wake.wait(held));
            }
            shared.sleeping.fetch_sub(1, SeqCst);
        }
        seen = seen.wrapping_add(1);
        if shared.stop.load(SeqCst) {
            return;
        }
        // SAFETY: the epoch changed, so `run` has stored a job and stays in place until `pending` falls to 0 below.
        let job = unsafe { (*shared.job.get()).map(|job| &*job) };
        if let Some(job) = job
            && let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(index)))
        {
            *unpoisoned(shared.panic.lock()) = Some(panic);
        }
        shared.pending.fetch_sub(1, Release);
    }
}

fn unpoisoned<T>(lock: Result<T, PoisonError<T>>) -> T {
    lock.unwrap_or_else(PoisonError::into_inner)
}

/// Reusable memory that grows to the largest request and is aligned to a cache line.
#[derive(Default)]
pub(super) struct Scratch {
    lines: Vec<Line>,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

impl Scratch {
    /// `n` numbers of whatever value was left there.
    pub(super) fn f32(&mut self, n: usize) -> &mut [f32] {
        self.grow(n * 4);
        // SAFETY: `lines` holds at least `n * 4` initialised bytes, aligned to 64; any bits are an f32.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), n) }
    }

    /// `n` elements of whatever value was left there.
    pub(super) fn of<T: Element>(&mut self, n: usize) -> &mut [T] {
        self.grow(n * size_of::<T>());
        // SAFETY: as for `f32`; any bits are an `Element` too.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), n) }
    }

    /// `n` bytes of whatever value was left there.
    pub(super) fn bytes(&mut self, n: usize) -> &mut [u8] {
        self.grow(n);
        // SAFETY: `lines` holds at least `n` initialised bytes; any bits are a u8.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), n) }
    }

    /// `n` signed bytes of whatever value was left there.
    pub(super) fn i8(&mut self, n: usize) -> &mut [i8] {
        self.grow(n);
        // SAFETY: as for `bytes`.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), n) }
    }

    fn grow(&mut self, bytes: usize) {
        let lines = bytes.div_ceil(64);
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0; 16]));
        }
    }
}

/// A tensor's memory: `n` zeros aligned to a cache line, which a vector of 16 must not straddle (measured on Zen 4:
/// the batch-1 backward pass is limited by split stores otherwise). Dereferences to a slice.
pub struct Buffer<T> {
    lines: Vec<Line>,
    len: usize,
    kind: std::marker::PhantomData<T>,
}

/// Plain numbers for which every bit pattern, zero too, is a value.
pub trait Plain: Copy + private::Sealed {}
mod private {
    pub trait Sealed {}
}
macro_rules! plain {
    ($($t:ty),*) => { $(impl Plain for $t {} impl private::Sealed for $t {})* };
}
plain!(f32, half::bf16, half::f16, u8, i8, u32, i32);

impl<T: Plain> Buffer<T> {
    pub fn zeros(len: usize) -> Buffer<T> {
        let lines = vec![Line([0; 16]); (len * size_of::<T>()).div_ceil(64)];
        Buffer { lines, len, kind: std::marker::PhantomData }
    }

    pub fn from_slice(values: &[T]) -> Buffer<T> {
        let mut buffer = Buffer::zeros(values.len());
        buffer.copy_from_slice(values);
        buffer
    }
}

impl<T: Plain> std::ops::Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `lines` holds `len` elements, initialised and aligned; any bits are a `Plain`.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl<T: Plain> std::ops::DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

impl<T> Clone for Buffer<T> {
    fn clone(&self) -> Buffer<T> {
        Buffer { lines: self.lines.clone(), len: self.len, kind: self.kind }
    }
}

/// What every kernel call needs: the threads, the instruction set and the scratch. Calls take turns inside it.
pub struct Context {
    pool: Pool,
    isa: Isa,
    own: Vec<Mutex<Scratch>>,
    shared: Mutex<Scratch>,
    staging: Mutex<Scratch>,
    turned: Mutex<Scratch>,
    unfolded: Vec<Mutex<Scratch>>,
}

impl Context {
    /// `threads` threads and the machine's best instruction set.
    pub fn new(threads: usize) -> Context {
        Context::with_isa(threads, Isa::best())
    }

    /// The same with a chosen instruction set. Panics where the machine lacks it.
    pub fn with_isa(threads: usize, isa: Isa) -> Context {
        assert!(Isa::available().contains(&isa), "this machine lacks {isa:?}");
        let pool = Pool::new(threads);
        let each = || (0..pool.threads()).map(|_| Mutex::default()).collect();
        let (own, unfolded) = (each(), each());
        let (shared, staging, turned) = Default::default();
        Context { pool, isa, own, unfolded, shared, staging, turned }
    }

    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Scratch that belongs to `thread` of the running kernel.
    pub(super) fn own(&self, thread: usize) -> MutexGuard<'_, Scratch> {
        unpoisoned(self.own[thread].lock())
    }

    /// Scratch the threads of a kernel share; taken before the fork.
    pub(super) fn shared(&self) -> MutexGuard<'_, Scratch> {
        unpoisoned(self.shared.lock())
    }

    /// Scratch for a kernel that hands its content to another kernel, which may take `shared` itself.
    pub(super) fn staging(&self) -> MutexGuard<'_, Scratch> {
        unpoisoned(self.staging.lock())
    }

    /// Scratch for weights turned for a gradient, beside `shared` and `staging`.
    pub(super) fn turned(&self) -> MutexGuard<'_, Scratch> {
        unpoisoned(self.turned.lock())
    }

    /// A second scratch of `thread`, for the unfolded rows a product reads.
    pub(super) fn unfolded(&self, thread: usize) -> MutexGuard<'_, Scratch> {
        unpoisoned(self.unfolded[thread].lock())
    }

    /// How many threads to use for `n` pieces when each thread should get at least `grain`.
    pub(super) fn parts(&self, n: usize, grain: usize) -> usize {
        (n / grain.max(1)).clamp(1, self.threads())
    }

    /// Calls `f(part)` for each of `parts <= threads` parts, each on its own thread.
    pub(super) fn fork(&self, parts: usize, f: impl Fn(usize) + Sync) {
        if parts <= 1 {
            return f(0);
        }
        self.pool.run(&|thread| {
            if thread < parts {
                f(thread);
            }
        });
    }

    /// Splits `0..n` into equal ranges, at least `grain` long and multiples of `step`, and calls `f(thread, range)`.
    pub(super) fn split(&self, n: usize, grain: usize, step: usize, f: impl Fn(usize, Range<usize>) + Sync) {
        let parts = self.parts(n, grain);
        self.fork(parts, |part| {
            let range = piece(n, parts, part, step);
            if !range.is_empty() {
                f(part, range);
            }
        });
    }
}

/// Part `part` of `parts` of `0..n`, in multiples of `step`.
pub(super) fn piece(n: usize, parts: usize, part: usize, step: usize) -> Range<usize> {
    let steps = n.div_ceil(step);
    let begin = (steps * part / parts * step).min(n);
    let end = (steps * (part + 1) / parts * step).min(n);
    begin..end
}

/// A mutable slice shared by the threads of one kernel, each of which writes its own part.
#[derive(Clone, Copy)]
pub(super) struct Shares<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: it is only a pointer; `Shares::part` and `ptr` say what its users must keep.
unsafe impl<T: Send> Send for Shares<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shares<T> {}

impl<T> Shares<T> {
    pub(super) fn new(slice: &mut [T]) -> Shares<T> {
        Shares { start: slice.as_mut_ptr(), len: slice.len() }
    }

    /// For reading only: whoever uses `ptr` must not write through it.
    pub(super) fn new_const(slice: &[T]) -> Shares<T> {
        Shares { start: slice.as_ptr().cast_mut(), len: slice.len() }
    }

    /// One part, checked to lie inside.
    ///
    /// # Safety
    /// No two live parts overlap, and the slice outlives them.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn part<'a>(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part {range:?} of {}", self.len);
        // SAFETY: inside the slice (just checked), exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// Where it starts.
    pub(super) fn ptr(&self) -> *mut T {
        self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_runs_once_and_ranges_cover() {
        for threads in [1, 2, 3, 5] {
            let context = Context::new(threads);
            for n in [1, 2, 7, 100, 1001] {
                let mut hits = vec![0u8; n];
                let shares = Shares::new(&mut hits);
                for _ in 0..50 {
                    context.split(n, 1, 4, |_, range| {
                        // SAFETY: `split` hands out disjoint ranges.
                        unsafe { shares.part(range) }.iter_mut().for_each(|h| *h += 1)
                    });
                }
                assert!(hits.iter().all(|&h| h == 50), "{threads} threads, {n}");
            }
        }
    }

    #[test]
    fn a_panic_in_a_worker_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(2);
        let caught = catch_unwind(AssertUnwindSafe(|| pool.run(&|t| assert!(t == 0, "worker"))));
        assert!(caught.is_err());
        let count = AtomicUsize::new(0);
        pool.run(&|_| {
            count.fetch_add(1, SeqCst);
        });
        assert_eq!(count.load(SeqCst), 2);
    }

    #[test]
    fn a_worker_that_fell_asleep_wakes() {
        let pool = Pool::new(2);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(5));
            let count = AtomicUsize::new(0);
            pool.run(&|_| {
                count.fetch_add(1, SeqCst);
            });
            assert_eq!(count.load(SeqCst), 2);
        }
    }
}
