//! Exchanges of a session from device to device, where every rank has a device of its own and a library for it; the host decides so
//! together with all other ranks when the first exchange comes, and takes part in no later one.
//!
//! In 1F1B both sides of a link send before they receive, and a device that sends is not done until the other receives. So what a stage
//! hands on is copied aside and goes beside the queue, which waits for what it receives alone; and each direction of a link is a group of
//! two, for the library does what one group is asked for in order. Then a message that nobody has received yet holds up nothing but later
//! ones of its own direction, as where messages lie in mailboxes.

use super::{
    machine::{Address, Collectives, CudaError, DeviceGroup, GroupId, Machine, Merge},
    plan,
    watch::Watch,
};
use crate::{
    backend::{
        BackendError, Collective, CollectiveError, Links,
        exchange::{every_rank, own_part_len},
    },
    graph::{Exchange, Op, Program, Step, ValueId},
    vocab::DType,
};
use half::{bf16, f16};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The two directions of the link to a neighbouring stage.
struct Neighbour {
    /// Its rank of the two; this one is the other.
    number: usize,
    sends: Arc<dyn DeviceGroup>,
    receives: Arc<dyn DeviceGroup>,
}

/// Where a value that is sent lies until the other side has it.
struct Outbox {
    at: Address,
    /// Its message is the first of a run in its direction.
    is_first: bool,
}

/// The groups of a rank, as its device knows them; `None` for a rank that is alone in one.
pub(super) struct DeviceLinks {
    /// Before the groups, which it lets go of first.
    watch: Watch,
    data: Option<Arc<dyn DeviceGroup>>,
    tensor: Option<Arc<dyn DeviceGroup>>,
    pipeline: Option<Arc<dyn DeviceGroup>>,
    before: Option<Neighbour>,
    next: Option<Neighbour>,
    outboxes: BTreeMap<ValueId, Outbox>,
    name: String,
    /// Buckets whose sums are made beside the backward pass.
    beside: BTreeSet<usize>,
    /// Room for a value that is cut into equal parts, its end included.
    padded: Address,
    /// As many zeros as the largest part has numbers.
    zeros: Address,
}

/// How a session's exchanges go.
pub(super) enum Way {
    /// No exchange was asked for yet.
    Open,
    /// Through the host; the reason.
    Host(String),
    Devices(Box<DeviceLinks>),
}

impl Way {
    /// For records: `between devices by NCCL 2.27.3`.
    pub fn describe(&self) -> Option<String> {
        match self {
            Way::Open => None,
            Way::Host(reason) => Some(format!("exchanges went through the host: {reason}")),
            Way::Devices(links) => Some(format!("exchanges went from device to device by {}", links.name)),
        }
    }
}

/// Decides, with all other ranks, how exchanges go. Every rank calls it at its first exchange. `memory` gets what is allocated.
///
/// # Errors
/// Where the other ranks are gone or a group cannot be joined.
pub(super) fn decide(
    machine: &dyn Machine,
    links: &Links,
    program: &Program,
    memory: &mut Vec<Address>,
) -> Result<Way, BackendError> {
    let own = machine.collectives();
    // A library refuses two ranks on one device.
    let device = own.as_ref().map_or([0; 16], |library| library.device());
    let mut apart = own.is_ok();
    for group in [&links.data, &links.tensor, &links.pipeline] {
        let devices = shared::<16>(&**group, &device)?;
        apart &= (1..devices.len()).all(|at| !devices[..at].contains(&devices[at]));
    }
    if !every_rank(links, apart)? {
        return Ok(Way::Host(match own {
            Err(error) => error.to_string(),
            Ok(_) if !apart => "two ranks share a device, which the library refuses".into(),
            Ok(_) => "another rank has no library for it, or shares its device".into(),
        }));
    }
    let library = own?;
    let join = |id: &GroupId, rank: usize, ranks: usize| -> Result<Arc<dyn DeviceGroup>, BackendError> {
        let joined = library.join(id, rank, ranks, &|| links.trouble().is_some())?;
        joined.ok_or_else(|| links.trouble().map_or(BackendError::Alone { op: "join" }, BackendError::from))
    };
    let whole = |group: &dyn Collective| -> Result<Option<Arc<dyn DeviceGroup>>, BackendError> {
        if group.ranks() == 1 {
            return Ok(None);
        }
        let id = if group.rank() == 0 { library.new_id()? } else { [0; 128] };
        join(&shared(group, &id)?[0], group.rank(), group.ranks()).map(Some)
    };
    let (data, tensor, pipeline) = (whole(&*links.data)?, whole(&*links.tensor)?, whole(&*links.pipeline)?);
    let [before, next] = neighbours(&*links.pipeline, &*library, join)?;
    let mut allocate = |bytes: usize| -> Result<Address, CudaError> {
        let address = machine.allocate(bytes)?;
        memory.push(address);
        Ok(address)
    };
    let largest = program.steps.iter().filter_map(|step| part_of(program, step)).max().unwrap_or(0);
    let (padded, zeros) = (allocate(4 * largest * links.data.ranks())?, allocate(4 * largest)?);
    let mut outboxes = BTreeMap::new();
    let mut begun = BTreeSet::new();
    for step in &program.steps {
        if let Op::Exchange(Exchange::Send { to_next }) = &step.op {
            let value = step.inputs[0];
            outboxes.insert(value, Outbox { at: allocate(program.value(value).bytes())?, is_first: begun.insert(*to_next) });
        }
    }
    let ends = [&before, &next].into_iter().flatten().flat_map(|link| [&link.sends, &link.receives]);
    let groups = [&data, &tensor, &pipeline].into_iter().flatten().chain(ends).cloned().collect();
    let watch = Watch::start(links, groups).map_err(|error| CollectiveError::Transport(error.to_string()))?;
    Ok(Way::Devices(Box::new(DeviceLinks {
        watch,
        data,
        tensor,
        pipeline,
        before,
        next,
        outboxes,
        name: library.name(),
        beside: beside(program),
        padded,
        zeros,
    })))
}

/// Joins the groups of the links to the stages before and behind. The first stage of a link names both of its groups.
fn neighbours(
    stages: &dyn Collective,
    library: &dyn Collectives,
    join: impl Fn(&GroupId, usize, usize) -> Result<Arc<dyn DeviceGroup>, BackendError>,
) -> Result<[Option<Neighbour>; 2], BackendError> {
    let (rank, ranks) = (stages.rank(), stages.ranks());
    if ranks == 1 {
        return Ok([None, None]);
    }
    let (forwards, backwards) = (shared(stages, &library.new_id()?)?, shared(stages, &library.new_id()?)?);
    // Link by link from the first stage on: every stage is then awaited at one that it comes to.
    let mut before = None;
    if rank > 0 {
        let (receives, sends) = (join(&forwards[rank - 1], 1, 2)?, join(&backwards[rank - 1], 1, 2)?);
        before = Some(Neighbour { number: 0, sends, receives });
    }
    let mut next = None;
    if rank + 1 < ranks {
        let (sends, receives) = (join(&forwards[rank], 0, 2)?, join(&backwards[rank], 0, 2)?);
        next = Some(Neighbour { number: 1, sends, receives });
    }
    Ok([before, next])
}

/// Buckets that are started and finished whole: sums of which each rank keeps a part have no place before they are finished.
fn beside(program: &Program) -> BTreeSet<usize> {
    let buckets = |which: fn(&Exchange) -> Option<usize>| -> BTreeSet<usize> {
        let of = |step: &Step| if let Op::Exchange(kind) = &step.op { which(kind) } else { None };
        program.steps.iter().filter_map(of).collect()
    };
    let started = buckets(|kind| if let Exchange::StartReduce { bucket } = kind { Some(*bucket) } else { None });
    let whole = buckets(|kind| if let Exchange::AllReduce { bucket } = kind { Some(*bucket) } else { None });
    &started & &whole
}

/// Numbers of the largest part that one rank has, for exchanges that cut.
fn part_of(program: &Program, step: &Step) -> Option<usize> {
    let parts = match &step.op {
        Op::Exchange(Exchange::ReduceScatter { .. } | Exchange::TakePart { .. }) => &step.outputs[..],
        Op::Exchange(Exchange::AllGather { .. }) => &step.inputs[1..2],
        _ => return None,
    };
    parts.iter().map(|part| program.value(*part).elements()).max()
}

/// The bytes of every rank, by the links of the host, which carry numbers.
fn shared<const N: usize>(group: &dyn Collective, bytes: &[u8; N]) -> Result<Vec<[u8; N]>, BackendError> {
    let part: Vec<f32> = bytes.iter().map(|byte| f32::from(*byte)).collect();
    let mut all = vec![0.0; N * group.ranks()];
    group.all_gather(&part, &mut all)?;
    let one = |numbers: &[f32]| std::array::from_fn(|k| numbers[k] as u8);
    Ok(all.chunks_exact(N).map(one).collect())
}

impl DeviceLinks {
    /// Queues an exchange. `at` gives addresses.
    pub fn queue(
        &self,
        machine: &dyn Machine,
        program: &Program,
        step: &Step,
        at: impl Fn(ValueId) -> Address,
    ) -> Result<(), BackendError> {
        let Op::Exchange(kind) = &step.op else { unreachable!("the session looked") };
        let elements = |id: ValueId| program.value(id).elements();
        let ranks = self.data.as_ref().map_or(1, |group| group.ranks());
        let buffers = |step: &Step| -> Vec<(Address, usize)> { step.inputs.iter().map(|id| (at(*id), elements(*id))).collect() };
        match kind {
            Exchange::StartReduce { bucket } => {
                if let Some(group) = self.data.as_ref().filter(|_| self.beside.contains(bucket)) {
                    group.start_sums(&buffers(step))?;
                }
            }
            Exchange::AllReduce { bucket } => match &self.data {
                Some(group) if self.beside.contains(bucket) => group.finish()?,
                Some(group) => group.all_reduce(&buffers(step), DType::F32, Merge::Sum)?,
                None => {}
            },
            Exchange::SumRanks => {
                let (x, y) = (step.inputs[0], step.outputs[0]);
                machine.copy(at(x), at(y), program.value(x).bytes())?;
                if let Some(group) = &self.tensor {
                    group.all_reduce(&[(at(y), elements(y))], program.value(x).dtype, Merge::Sum)?;
                }
            }
            Exchange::ReduceScatter { .. } => {
                for (x, part) in step.inputs.iter().zip(&step.outputs) {
                    self.reduce_scatter(machine, (at(*x), elements(*x)), (at(*part), elements(*part)))?;
                }
            }
            Exchange::TakePart { .. } => {
                let (x, part) = (step.inputs[0], step.outputs[0]);
                let rank = self.data.as_ref().map_or(0, |group| group.rank());
                let length = elements(part);
                let own = own_part_len(elements(x), rank, length);
                if own > 0 {
                    machine.copy(at(x) + 4 * (rank * length) as Address, at(part), 4 * own)?;
                }
                if own < length {
                    machine.copy(self.zeros, at(part) + 4 * own as Address, 4 * (length - own))?;
                }
            }
            Exchange::AllGather { .. } => {
                let (x, part) = (step.inputs[0], step.inputs[1]);
                let (count, length) = (elements(x), elements(part));
                let to = if count < length * ranks { self.padded } else { at(x) };
                match &self.data {
                    Some(group) => group.all_gather(at(part), to, length)?,
                    None => machine.copy(at(part), to, 4 * length)?,
                }
                if to != at(x) {
                    machine.copy(to, at(x), 4 * count)?;
                }
                if let Some(copy) = step.inputs.get(2) {
                    self.refresh(machine, at(x), at(*copy), count, program.value(*copy).dtype)?;
                }
            }
            Exchange::EveryRank => {
                let flag = at(step.outputs[0]);
                machine.copy(at(step.inputs[0]), flag, 4)?;
                for group in [&self.data, &self.tensor, &self.pipeline].into_iter().flatten() {
                    group.all_reduce(&[(flag, 1)], DType::F32, Merge::Least)?;
                }
            }
            Exchange::LargestOfRanks => {
                for group in [&self.data, &self.tensor].into_iter().flatten() {
                    group.largest(&buffers(step))?;
                }
            }
            Exchange::Send { to_next } => {
                let (value, link) = (step.inputs[0], self.neighbour(*to_next)?);
                let (outbox, bytes) = (&self.outboxes[&value], program.value(value).bytes());
                if outbox.is_first {
                    // What was sent in the run before is received by now, or will be without anything from this one.
                    link.sends.finish()?;
                }
                machine.copy(at(value), outbox.at, bytes)?;
                link.sends.start_send(outbox.at, bytes, link.number)?;
            }
            Exchange::Receive { from_before, .. } => {
                let (value, link) = (step.outputs[0], self.neighbour(!*from_before)?);
                link.receives.receive(at(value), program.value(value).bytes(), link.number)?;
            }
        }
        Ok(())
    }

    /// Why exchanges came to nothing, where they did: results of this rank are then worth nothing.
    pub fn trouble(&self) -> Option<CollectiveError> {
        self.watch.trouble()
    }

    fn neighbour(&self, is_next: bool) -> Result<&Neighbour, BackendError> {
        let found = if is_next { &self.next } else { &self.before };
        found.as_ref().ok_or(BackendError::Alone { op: "send" })
    }

    /// The rank's part of the sum of `count` numbers, zeros behind the last.
    fn reduce_scatter(
        &self,
        machine: &dyn Machine,
        (x, count): (Address, usize),
        (part, length): (Address, usize),
    ) -> Result<(), CudaError> {
        let Some(group) = &self.data else { return machine.copy(x, part, 4 * length) };
        let mut from = x;
        if count < length * group.ranks() {
            from = self.padded;
            machine.copy(x, from, 4 * count)?;
            machine.copy(self.zeros, from + 4 * count as Address, 4 * (length * group.ranks() - count))?;
        }
        group.reduce_scatter(from, part, length)
    }

    /// A low-precision copy of fp32 weights.
    fn refresh(&self, machine: &dyn Machine, from: Address, to: Address, count: usize, dtype: DType) -> Result<(), BackendError> {
        let launch = match dtype {
            DType::Bf16 => plan::cast::<f32, bf16>(from, to, count, machine.facts()),
            DType::F16 => plan::cast::<f32, f16>(from, to, count, machine.facts()),
            _ => return Ok(machine.copy(from, to, 4 * count)?),
        };
        Ok(machine.launch(&launch)?)
    }
}
