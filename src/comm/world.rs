//! The processes that a launcher started, as this one sees them: who they are, that they live, and messages between them.
//!
//! Rank 0 leads. Each process has a thread that gives a sign of life every second, listens for those of others, and passes on that a
//! candidate was left; so whoever waits for a rank that is gone, or that has given up, is told and does not wait for ever. Nobody polls
//! without a pause: a waiting rank first yields its core and then sleeps, for on a machine with fewer cores than ranks, or with a network
//! whose packets the same cores handle, its partner could not get on otherwise.

use super::{
    launch::Launch,
    library::{Comm, Element, Library, MpiError, Pending},
    process::Seat,
};
use crate::vocab::Layout;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{RecvTimeoutError, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Time between two signs of life.
const BEAT: Duration = Duration::from_secs(1);

/// How often signs of others are looked for: a candidate that a rank has left ends within this time.
const LISTEN: Duration = Duration::from_millis(20);

/// Tags of messages on the control communicator.
const LENGTH: i32 = 1;
const TEXT: i32 = 2;

/// What a process says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// The host's name, as the library has it.
    pub host: String,
    pub cores: usize,
    /// The first rank of its node.
    pub node: usize,
    /// Among the processes of its node.
    pub local_rank: usize,
    /// CUDA devices that it sees, in the driver's order, by names that no other device has.
    pub devices: Vec<String>,
}

impl Process {
    /// The number of the device that it takes as a rank from `cuda:first` on; `None` where it sees none. Ranks of a node take the devices
    /// that follow, and begin anew where there are no more: so each has its own wherever there are enough, also where each sees but one.
    pub fn device(&self, first: usize) -> Option<usize> {
        (!self.devices.is_empty()).then(|| (first + self.local_rank) % self.devices.len())
    }
}

/// Processes that were started together.
pub struct World {
    shared: Arc<Shared>,
    pulse: Option<JoinHandle<()>>,
}

pub(super) struct Shared {
    library: Arc<Library>,
    world: Comm,
    /// For orders and answers.
    control: Comm,
    /// For signs of life.
    beats: Comm,
    processes: Vec<Process>,
    /// Of each of them.
    hosts: Vec<String>,
    version: String,
    patience: Duration,
    /// Told when MPI itself waits for a rank that does not come: then this process can do no more, and should end.
    on_stuck: Box<dyn Fn(&MpiError) + Send + Sync>,
    /// Ranks that fell silent.
    is_any_silent: AtomicBool,
    silent: Mutex<Vec<usize>>,
    /// Of each open slot, 1 + the number of the rank that left it; 0 while all are there.
    left: Mutex<HashMap<u32, Arc<AtomicUsize>>>,
    /// Slots that this process has left, to be told.
    notices: Mutex<Vec<u32>>,
    is_ending: AtomicBool,
}

/// Pauses between looks at something that another process must do.
pub(super) struct Pauses {
    since: Instant,
}

impl Pauses {
    pub fn new() -> Pauses {
        Pauses { since: Instant::now() }
    }

    /// 5 ms of yielding, longer than exchanges of ranks with equal work wait for each other; then sleeps that grow with the wait.
    pub fn pause(&self) {
        match self.since.elapsed().as_millis() {
            0..5 => std::thread::yield_now(),
            5..100 => std::thread::sleep(Duration::from_micros(100)),
            100..1000 => std::thread::sleep(Duration::from_millis(1)),
            _ => std::thread::sleep(Duration::from_millis(3)),
        }
    }
}

/// Waits until an operation is over, or until `stop` names a reason not to.
pub(super) fn finish<T: Element, E: From<MpiError>>(
    mut pending: Pending<T>,
    stop: impl Fn() -> Option<E>,
) -> Result<(Vec<T>, usize), E> {
    let pauses = Pauses::new();
    loop {
        if pending.poll()? {
            return Ok(pending.take());
        }
        if let Some(reason) = stop() {
            return Err(reason);
        }
        pauses.pause();
    }
}

/// What each process of a communicator has given, on all of them.
pub(super) fn share<E: From<MpiError>>(comm: &Comm, bytes: &[u8], stop: impl Fn() -> Option<E>) -> Result<Vec<Vec<u8>>, E> {
    let (lengths, _) = finish(comm.all_gather((bytes.len() as u64).to_le_bytes().to_vec())?, &stop)?;
    let length = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("chunks of eight")) as usize;
    let lengths: Vec<usize> = lengths.chunks_exact(8).map(length).collect();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let mut padded = bytes.to_vec();
    padded.resize(longest, 0);
    let (whole, _) = finish(comm.all_gather(padded)?, &stop)?;
    Ok(lengths.iter().enumerate().map(|(rank, length)| whole[rank * longest..][..*length].to_vec()).collect())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    /// Joins the others; `devices` are those that this process sees, by name. A rank without a sign of life for `patience` is given up. `on_stuck` is called, on a thread of its own, where MPI
    /// does not come back for so long: it waits for a rank, polling, and cannot be told to stop.
    pub fn join(
        launch: &Launch,
        patience: Duration,
        devices: Vec<String>,
        on_stuck: impl Fn(&MpiError) + Send + Sync + 'static,
    ) -> Result<World, MpiError> {
        let library = Arc::new(Library::open(&launch.libraries)?);
        unbind();
        let world = library.start()?;
        if world.size != launch.processes {
            let library = library.path().to_string();
            return Err(MpiError::Launcher { started: launch.processes, known: world.size, library });
        }
        let split = || world.split(Some(0))?.ok_or(MpiError::NoGroup);
        let (control, beats) = (split()?, split()?);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let node = world.split_by_node()?;
        let local_rank = node.rank;
        let (first, _) = finish(node.all_gather((world.rank as u32).to_le_bytes().to_vec())?, || None::<MpiError>)?;
        let first = u32::from_le_bytes(first[..4].try_into().expect("four bytes of each"));
        node.free()?;
        let own = Process { host: library.host(), cores, node: first as usize, local_rank, devices };
        let all = share(&control, &serde_json::to_vec(&own).expect("plain data"), || None::<MpiError>)?;
        let read = |bytes: &Vec<u8>| serde_json::from_slice(bytes).map_err(|error| MpiError::Order(error.to_string()));
        let processes = all.iter().map(read).collect::<Result<Vec<Process>, _>>()?;
        let shared = Arc::new(Shared {
            version: library.version(),
            hosts: processes.iter().map(|process| process.host.clone()).collect(),
            processes,
            library,
            world,
            control,
            beats,
            patience,
            on_stuck: Box::new(on_stuck),
            is_any_silent: AtomicBool::new(false),
            silent: Mutex::default(),
            left: Mutex::default(),
            notices: Mutex::default(),
            is_ending: AtomicBool::new(false),
        });
        let beating = shared.clone();
        let pulse = std::thread::Builder::new().name("pulse".into()).spawn(move || Pulse::new(&beating).run());
        Ok(World { shared, pulse: pulse.ok() })
    }

    pub fn rank(&self) -> usize {
        self.shared.world.rank
    }

    pub fn size(&self) -> usize {
        self.shared.world.size
    }

    /// What the library says of itself.
    pub fn library(&self) -> &str {
        &self.shared.version
    }

    /// The host of each rank.
    pub fn hosts(&self) -> &[String] {
        &self.shared.hosts
    }

    /// Cores of the hosts of the first `ranks`, each host counted once.
    pub fn cores(&self, ranks: usize) -> usize {
        let hosts = &self.shared.hosts[..ranks.min(self.size())];
        let firsts = hosts.iter().enumerate().filter(|(rank, host)| !hosts[..*rank].contains(host));
        firsts.map(|(rank, _)| self.shared.processes[rank].cores).sum()
    }

    pub fn processes(&self) -> &[Process] {
        &self.shared.processes
    }

    /// Why no more can be done together: a rank that fell silent.
    pub fn trouble(&self) -> Option<MpiError> {
        self.shared.trouble_among(self.size())
    }

    /// Hands a text to another rank, which must `hear` it.
    pub fn tell(&self, to: usize, text: &str) -> Result<(), MpiError> {
        let control = &self.shared.control;
        let length = (text.len() as u64).to_le_bytes().to_vec();
        finish(control.send(to, LENGTH, length)?, || self.shared.trouble_with(to))?;
        finish(control.send(to, TEXT, text.as_bytes().to_vec())?, || self.shared.trouble_with(to))?;
        Ok(())
    }

    /// Waits for the next text of another rank.
    pub fn hear(&self, from: usize) -> Result<String, MpiError> {
        let control = &self.shared.control;
        let (length, _) = finish(control.receive::<u8>(from, LENGTH, 8)?, || self.shared.trouble_with(from))?;
        let length = u64::from_le_bytes(length.try_into().expect("eight bytes were asked for"));
        let (text, _) = finish(control.receive::<u8>(from, TEXT, length as usize)?, || self.shared.trouble_with(from))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Makes the groups of a layout from the first ranks; `None` for the others, which must ask as well. All must be about to ask:
    /// MPI itself waits for them here, and can not be told to stop.
    pub fn seat(&self, slot: u32, layout: Layout) -> Result<Option<Arc<Seat>>, MpiError> {
        let left = lock(&self.shared.left).entry(slot).or_default().clone();
        let (done, is_done) = channel::<()>();
        let watched = self.shared.clone();
        std::thread::spawn(move || {
            if is_done.recv_timeout(watched.patience) == Err(RecvTimeoutError::Timeout) {
                (watched.on_stuck)(&MpiError::Stuck { seconds: watched.patience.as_secs_f64() });
            }
        });
        let seat = Seat::take(&self.shared, slot, left, layout);
        drop(done);
        seat
    }

    /// Gives the groups of a slot back; all must do so. Those of a candidate that failed are kept: something may be under way on them.
    pub fn give_back(&self, slot: u32, seat: Option<Arc<Seat>>, has_failed: bool) -> Result<(), MpiError> {
        lock(&self.shared.left).remove(&slot);
        match seat.map(Arc::try_unwrap) {
            Some(Ok(seat)) if !has_failed => seat.free(),
            _ => Ok(()),
        }
    }

    /// Leaves the others in good order, which must do so too; where one is lost, ends them all with `code`.
    pub fn end(mut self, code: i32) {
        let shared = self.shared.clone();
        shared.is_ending.store(true, Ordering::Release);
        if let Some(pulse) = self.pulse.take() {
            pulse.thread().unpark();
            pulse.join().ok();
        }
        match shared.trouble_among(shared.world.size) {
            None => {
                if shared.library.finalize().is_err() {
                    shared.library.abort(code);
                }
            }
            // Rank 0 ends all with its own code.
            Some(_) if shared.world.rank > 0 => std::thread::sleep(shared.patience),
            Some(_) => shared.library.abort(code),
        }
    }

    /// Ends all processes at once.
    pub fn abort(&self, code: i32) -> ! {
        self.shared.library.abort(code)
    }
}

impl Shared {
    pub fn comm(&self) -> &Comm {
        &self.world
    }

    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// This one.
    pub fn process(&self) -> &Process {
        &self.processes[self.world.rank]
    }

    pub fn version(&self) -> &str {
        &self.version
    }

    /// The first rank below `ranks` that fell silent.
    pub fn trouble_among(&self, ranks: usize) -> Option<MpiError> {
        if !self.is_any_silent.load(Ordering::Acquire) {
            return None;
        }
        let rank = lock(&self.silent).iter().copied().filter(|rank| *rank < ranks).min()?;
        let host = self.hosts.get(rank).cloned().unwrap_or_default();
        Some(MpiError::Silent { rank, host, seconds: self.patience.as_secs_f64() })
    }

    pub fn trouble_with(&self, rank: usize) -> Option<MpiError> {
        let is_silent = self.is_any_silent.load(Ordering::Acquire) && lock(&self.silent).contains(&rank);
        let host = self.hosts.get(rank).cloned().unwrap_or_default();
        is_silent.then_some(MpiError::Silent { rank, host, seconds: self.patience.as_secs_f64() })
    }

    /// Tells the others that this process has left a slot.
    pub fn leave(&self, slot: u32) {
        lock(&self.notices).push(slot);
    }

    fn give_up(&self, rank: usize) {
        let mut silent = lock(&self.silent);
        if !silent.contains(&rank) {
            silent.push(rank);
        }
        self.is_any_silent.store(true, Ordering::Release);
    }
}

/// What a sign says; its second word is a slot or a rank.
const ALIVE: u32 = 0;
const LEFT: u32 = 1;
const SILENT: u32 = 2;
const BYE: u32 = 3;

/// Bytes of a sign.
const SIGN: usize = 8;

/// The thread that gives and hears signs.
struct Pulse<'w> {
    shared: &'w Shared,
    /// What is awaited of each other rank; none once it has said goodbye.
    awaited: Vec<(usize, Option<Pending<u8>>)>,
    seen: Vec<Instant>,
    sent: Vec<Pending<u8>>,
    /// Ranks whose silence was told.
    told: Vec<usize>,
}

impl<'w> Pulse<'w> {
    fn new(shared: &'w Shared) -> Pulse<'w> {
        let others = (0..shared.world.size).filter(|rank| *rank != shared.world.rank);
        let awaited = others.map(|rank| (rank, shared.beats.receive(rank, 0, SIGN).ok())).collect();
        Pulse { shared, awaited, seen: vec![Instant::now(); shared.world.size], sent: Vec::new(), told: Vec::new() }
    }

    fn run(mut self) {
        let mut last_beat: Option<Instant> = None;
        let mut has_said_bye = false;
        loop {
            for slot in std::mem::take(&mut *lock(&self.shared.notices)) {
                self.tell_all(LEFT, slot);
            }
            if last_beat.is_none_or(|last| last.elapsed() >= BEAT) {
                last_beat = Some(Instant::now());
                match self.shared.world.rank {
                    0 => self.tell_all(ALIVE, 0),
                    _ => self.tell(0, ALIVE, 0),
                }
            }
            self.listen();
            self.sent.retain_mut(|sign| matches!(sign.poll(), Ok(false)));
            self.judge();
            if self.shared.is_ending.load(Ordering::Acquire) {
                if !has_said_bye {
                    self.tell_all(BYE, 0);
                    has_said_bye = true;
                }
                let all_gone = self.awaited.iter().all(|(_, sign)| sign.is_none()) && self.sent.is_empty();
                if all_gone || self.shared.trouble_among(self.shared.world.size).is_some() {
                    return;
                }
            }
            std::thread::park_timeout(LISTEN);
        }
    }

    fn tell(&mut self, to: usize, what: u32, about: u32) {
        let text = [what.to_le_bytes(), about.to_le_bytes()].concat();
        // A sign that cannot be sent is silence, which the other end notices.
        self.sent.extend(self.shared.beats.send(to, 0, text));
    }

    fn tell_all(&mut self, what: u32, about: u32) {
        for rank in (0..self.shared.world.size).filter(|rank| *rank != self.shared.world.rank) {
            self.tell(rank, what, about);
        }
    }

    fn listen(&mut self) {
        for (rank, awaited) in &mut self.awaited {
            while let Some(sign) = awaited.take_if(|sign| matches!(sign.poll(), Ok(true))) {
                let (text, _) = sign.take();
                let word = |at: usize| u32::from_le_bytes(text[at..at + 4].try_into().expect("a sign has two words"));
                self.seen[*rank] = Instant::now();
                match word(0) {
                    LEFT => lock(&self.shared.left).entry(word(4)).or_default().store(*rank + 1, Ordering::Release),
                    SILENT => self.shared.give_up(word(4) as usize),
                    BYE => continue,
                    _ => {}
                }
                *awaited = self.shared.beats.receive(*rank, 0, SIGN).ok();
            }
        }
    }

    /// Rank 0 watches all, the others watch rank 0.
    fn judge(&mut self) {
        let own = self.shared.world.rank;
        let watched = self.awaited.iter().filter(|(rank, sign)| sign.is_some() && (own == 0 || *rank == 0));
        let silent = watched.map(|(rank, _)| *rank).filter(|rank| self.seen[*rank].elapsed() > self.shared.patience);
        let news: Vec<usize> = silent.filter(|rank| !self.told.contains(rank)).collect();
        for rank in news {
            self.told.push(rank);
            self.shared.give_up(rank);
            if own == 0 {
                self.tell_all(SILENT, rank as u32);
            }
        }
    }
}

/// Lets this process run on all cores that it may: launchers bind each rank to one, and the candidates of one rank, and the threads of a
/// rank, would share that one.
fn unbind() {
    let mut all = rustix::thread::CpuSet::new();
    (0..rustix::thread::CpuSet::MAX_CPU).for_each(|cpu| all.set(cpu));
    // Where it is refused the launcher's binding stands, and the number of cores says so.
    rustix::thread::sched_setaffinity(None, &all).ok();
}
