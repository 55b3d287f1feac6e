//! Candidates whose ranks are the processes of a launch: rank 0 conducts, every process does its part of each request.
//!
//! Rank 0's requests come from the harness through a queue, so that the harness waits for them as it waits for a worker process. The others
//! hear orders until the last. An error or a panic of one rank frees the others and ends the candidate; what a process can not survive (an
//! abort, a kill) ends the launch, for so does MPI.

use super::AnyWork;
use crate::{
    comm::{MpiError, Place, Seat, World},
    harness::{Line, Ranks, Request, Response, Work},
    record::Candidate,
    vocab::Layout,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::Duration,
};

/// What rank 0 tells the others.
#[derive(Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
enum Order {
    /// Be ready to make the groups of a layout.
    Open {
        slot: u32,
        layout: Layout,
    },
    Ask {
        slot: u32,
        request: Box<Request>,
    },
    Close {
        slot: u32,
        has_failed: bool,
    },
    End,
}

/// How a rank's part of a request went.
#[derive(Serialize, Deserialize)]
struct Outcome {
    /// Why it failed, where it did.
    reason: Option<String>,
    /// It failed only because another rank had left.
    is_second: bool,
}

const READY: &str = "ready";
const GO: &str = "go";

/// One candidate in this process.
struct Post {
    layout: Layout,
    seat: Option<Arc<Seat>>,
    work: Option<AnyWork>,
}

impl Post {
    fn open(world: &World, slot: u32, layout: Layout) -> Result<Post, MpiError> {
        let seat = world.seat(slot, layout)?;
        let work = seat.clone().map(|seat| AnyWork::at(Place::Process(seat)));
        Ok(Post { layout, seat, work })
    }

    /// Does this rank's part; `None` on a process that is no rank of the candidate.
    fn answer(&mut self, request: Request) -> Option<(Result<Response, String>, Outcome)> {
        let (seat, work) = (self.seat.as_ref()?, self.work.as_mut()?);
        let answer = catch_unwind(AssertUnwindSafe(|| work.answer(request))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned().or(panic.downcast_ref::<&str>().map(|text| text.to_string()));
            Err(text.unwrap_or_else(|| "a panic without a message".into()))
        });
        let outcome = Outcome {
            reason: answer.as_ref().err().cloned(),
            is_second: seat.left_by().is_some_and(|rank| rank != seat.number()),
        };
        if answer.is_err() {
            seat.leave();
            // What it holds may be half done; its memory is of use to others.
            self.work = None;
        }
        Some((answer, outcome))
    }

    fn close(mut self, world: &World, slot: u32, has_failed: bool) -> Result<(), MpiError> {
        self.work = None;
        world.give_back(slot, self.seat, has_failed)
    }
}

/// Does what rank 0 orders, until the last order.
pub fn serve_ranks(world: World) {
    let mut posts: HashMap<u32, Post> = HashMap::new();
    let outcome = obey(&world, &mut posts);
    if outcome.is_err() {
        // Rank 0 is gone, or nothing can be said to it: nobody is left to be told.
        world.abort(1);
    }
    drop(posts);
    world.end(0);
}

fn obey(world: &World, posts: &mut HashMap<u32, Post>) -> Result<(), MpiError> {
    loop {
        let text = world.hear(0)?;
        match serde_json::from_str(&text).map_err(|error| MpiError::Order(error.to_string()))? {
            Order::Open { slot, layout } => {
                world.tell(0, READY)?;
                if world.hear(0)? == GO {
                    posts.insert(slot, Post::open(world, slot, layout)?);
                }
            }
            Order::Ask { slot, request } => {
                let Some((_, outcome)) = posts.get_mut(&slot).and_then(|post| post.answer(*request)) else { continue };
                world.tell(0, &serde_json::to_string(&outcome).expect("plain data"))?;
            }
            Order::Close { slot, has_failed } => {
                if let Some(post) = posts.remove(&slot) {
                    post.close(world, slot, has_failed)?;
                }
            }
            Order::End => return Ok(()),
        }
    }
}

/// What the harness asks of rank 0's conductor.
enum Command {
    Open { slot: u32, layout: Layout },
    Ask { slot: u32, request: Box<Request>, answer: Sender<Result<Response, String>> },
    Close { slot: u32 },
}

/// Rank 0's end.
pub struct Leader {
    world: Arc<World>,
    commands: Sender<Command>,
    next: AtomicU32,
    conductor: std::thread::JoinHandle<()>,
}

/// How long the end of a run waits for ranks that are still at work on something that was given up.
const FAREWELL: Duration = Duration::from_secs(5);

impl Leader {
    /// # Errors
    /// Where the system gives no thread.
    pub fn new(world: World) -> std::io::Result<Leader> {
        let world = Arc::new(world);
        let (commands, queue) = channel();
        let conducted = world.clone();
        let conductor = std::thread::Builder::new().name("ranks".into()).spawn(move || conduct(&conducted, &queue))?;
        Ok(Leader { world, commands, next: AtomicU32::new(1), conductor })
    }

    pub fn world(&self) -> &World {
        &self.world
    }

    /// Dismisses the others. Where one of them is lost or cannot be stopped, all processes end here with `code`.
    pub fn end(self, code: i32) {
        let Leader { world, commands, conductor, .. } = self;
        drop(commands);
        let patience = std::time::Instant::now() + FAREWELL;
        while !conductor.is_finished() && std::time::Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
        if !conductor.is_finished() {
            world.abort(code);
        }
        conductor.join().ok();
        if let Ok(world) = Arc::try_unwrap(world) {
            world.end(code);
        }
    }
}

impl Ranks for Leader {
    fn start(&self, candidate: &Candidate) -> Box<dyn Line> {
        let slot = self.next.fetch_add(1, Ordering::Relaxed);
        // A conductor that is gone says so when it is asked.
        self.commands.send(Command::Open { slot, layout: candidate.layout }).ok();
        Box::new(Queued { slot, commands: self.commands.clone(), answer: None })
    }
}

/// A candidate's place in the queue of rank 0's conductor.
struct Queued {
    slot: u32,
    commands: Sender<Command>,
    answer: Option<Receiver<Result<Response, String>>>,
}

impl Line for Queued {
    fn ask(&mut self, request: &Request) {
        let (answer, receiver) = channel();
        self.answer = Some(receiver);
        self.commands.send(Command::Ask { slot: self.slot, request: Box::new(request.clone()), answer }).ok();
    }

    fn answer(&mut self, patience: Duration) -> Option<Result<Response, String>> {
        match self.answer.as_ref()?.recv_timeout(patience) {
            Ok(answer) => Some(answer),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Err("the ranks of the launch take no more orders".into())),
        }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.commands.send(Command::Close { slot: self.slot }).ok();
    }
}

/// Rank 0's part: orders, its own share of the work, and what became of the others'.
fn conduct(world: &World, queue: &Receiver<Command>) {
    let mut posts: HashMap<u32, Result<Post, String>> = HashMap::new();
    while let Ok(command) = queue.recv() {
        match command {
            Command::Open { slot, layout } => {
                posts.insert(slot, open(world, slot, layout).map_err(|error| error.to_string()));
            }
            Command::Ask { slot, request, answer } => {
                let Some(found) = posts.get_mut(&slot) else { continue };
                let given = match found {
                    Ok(post) => ask(world, post, slot, *request),
                    Err(reason) => Err(reason.clone()),
                };
                if let (Err(reason), Ok(_)) = (&given, &found)
                    && let Ok(post) = std::mem::replace(found, Err(reason.clone()))
                {
                    close(world, slot, post, true);
                }
                answer.send(given).ok();
            }
            Command::Close { slot } => {
                if let Some(Ok(post)) = posts.remove(&slot) {
                    close(world, slot, post, false);
                }
            }
        }
    }
    for rank in 1..world.size() {
        // One that is lost hears nothing; the end of the world deals with it.
        tell(world, rank, &Order::End).ok();
    }
}

fn tell(world: &World, rank: usize, order: &Order) -> Result<(), MpiError> {
    world.tell(rank, &serde_json::to_string(order).expect("orders are plain data"))
}

/// Sees that all are there before MPI is asked for groups, for there it waits without an end.
fn open(world: &World, slot: u32, layout: Layout) -> Result<Post, MpiError> {
    if let Some(trouble) = world.trouble() {
        return Err(trouble);
    }
    for rank in 1..world.size() {
        tell(world, rank, &Order::Open { slot, layout })?;
    }
    let mut missing = None;
    for rank in 1..world.size() {
        missing = world.hear(rank).err().or(missing);
    }
    for rank in 1..world.size() {
        world
            .tell(rank, if missing.is_none() { GO } else { "" })
            .or_else(|error| missing.is_some().then_some(()).ok_or(error))?;
    }
    match missing {
        Some(missing) => Err(missing),
        None => Post::open(world, slot, layout),
    }
}

fn ask(world: &World, post: &mut Post, slot: u32, request: Request) -> Result<Response, String> {
    let others = 1..post.layout.ranks();
    let mut lost = None;
    for rank in others.clone() {
        lost = tell(world, rank, &Order::Ask { slot, request: Box::new(request.clone()) }).err().or(lost);
    }
    if let (Some(lost), Some(seat)) = (&lost, &post.seat) {
        seat.leave();
        return Err(lost.to_string());
    }
    let (own, outcome) = post.answer(request).ok_or("rank 0 belongs to every layout")?;
    let mut outcomes = vec![(0, outcome)];
    for rank in others {
        let heard = world.hear(rank).and_then(|text| serde_json::from_str(&text).map_err(|e| MpiError::Order(e.to_string())));
        outcomes.push((rank, heard.unwrap_or_else(|error| Outcome { reason: Some(error.to_string()), is_second: false })));
    }
    // Who failed by himself knows why.
    let failed = outcomes.iter().filter_map(|(rank, outcome)| Some((outcome.is_second, *rank, outcome.reason.as_ref()?)));
    match failed.min() {
        Some((_, rank, reason)) => Err(format!("rank {rank} on `{}`: {reason}", world.hosts()[rank])),
        None => own,
    }
}

fn close(world: &World, slot: u32, post: Post, has_failed: bool) {
    for rank in 1..world.size() {
        // A lost rank has no groups to give back.
        tell(world, rank, &Order::Close { slot, has_failed }).ok();
    }
    post.close(world, slot, has_failed).ok();
}
