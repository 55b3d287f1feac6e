//! Exchanges of a session from device to device, where every rank has a device of its own and a library for it; the host decides so
//! together with all other ranks when the first exchange comes, and takes part in no later one.
//!
//! What the stages of a pipeline hand on goes through the host all the same: in 1F1B both sides of a link send before they receive, and a
//! stream that sends waits until the other receives.

use super::{
    machine::{Address, CudaError, DeviceGroup, GroupId, Machine, Merge},
    plan,
};
use crate::{
    backend::{
        BackendError, Collective, Links,
        exchange::{every_rank, own_part_len},
    },
    graph::{Exchange, Op, Program, Step, ValueId},
    vocab::DType,
};
use half::{bf16, f16};
use std::collections::BTreeSet;

/// The groups of a rank, as its device knows them; `None` for a rank that is alone in one.
pub(super) struct DeviceLinks {
    data: Option<Box<dyn DeviceGroup>>,
    tensor: Option<Box<dyn DeviceGroup>>,
    pipeline: Option<Box<dyn DeviceGroup>>,
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
            Way::Devices(links) => {
                let but = if links.pipeline.is_some() { ", what stages hand on through the host" } else { "" };
                Some(format!("exchanges went from device to device by {}{but}", links.name))
            }
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
            Ok(_) => "a rank has no library for it, or no device of its own".into(),
        }));
    }
    let library = own?;
    let join = |group: &dyn Collective| -> Result<Option<Box<dyn DeviceGroup>>, BackendError> {
        if group.ranks() == 1 {
            return Ok(None);
        }
        let id: GroupId = if group.rank() == 0 { library.new_id()? } else { [0; 128] };
        let id = shared::<128>(group, &id)?[0];
        Ok(Some(library.join(&id, group.rank(), group.ranks())?))
    };
    let (data, tensor, pipeline) = (join(&*links.data)?, join(&*links.tensor)?, join(&*links.pipeline)?);
    let largest = program.steps.iter().filter_map(|step| part_of(program, step)).max().unwrap_or(0);
    let mut allocate = |numbers: usize| -> Result<Address, CudaError> {
        let address = machine.allocate(4 * numbers)?;
        memory.push(address);
        Ok(address)
    };
    let (padded, zeros) = (allocate(largest * links.data.ranks())?, allocate(largest)?);
    Ok(Way::Devices(Box::new(DeviceLinks {
        data,
        tensor,
        pipeline,
        name: library.name(),
        beside: beside(program),
        padded,
        zeros,
    })))
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
    /// Queues an exchange; false for one that goes through the host. `at` gives addresses.
    pub fn queue(
        &self,
        machine: &dyn Machine,
        program: &Program,
        step: &Step,
        at: impl Fn(ValueId) -> Address,
    ) -> Result<bool, BackendError> {
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
                Some(group) if self.beside.contains(bucket) => group.finish_sums()?,
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
            // A few numbers, whose largest by bits the host finds.
            Exchange::Send { .. } | Exchange::Receive { .. } | Exchange::LargestOfRanks => return Ok(false),
        }
        Ok(true)
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
