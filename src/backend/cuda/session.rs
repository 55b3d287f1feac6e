//! One program on a machine: its memory, its planned launches, and the recording that replays them.

use super::{
    links::{self, Way},
    machine::{Address, Clock, CudaError, Launch, Machine, Recording, Staging, encode_maps},
    plan::{self, Control, Places, Plan},
    product::Choices,
};
use crate::{
    backend::{BackendError, Links, OpTime, Session, exchange::exchange},
    graph::{Op, Program, Role, ValueId},
    units::{Bytes, Seconds},
    vocab::{DType, Vocabulary},
};
use half::{bf16, f16};
use std::{collections::BTreeMap, sync::Arc};

/// Launches between two points at which the host must act.
enum Piece {
    Launches {
        steps: std::ops::Range<usize>,
        recording: Option<Recording>,
    },
    /// Step that other ranks take part in.
    Exchange(usize),
}

/// The way of an input to the device: two buffers in turns, so that the host fills one while the device has yet to read the other.
struct Feed {
    to: Address,
    buffers: [Box<dyn Staging>; 2],
    /// The buffer that is filled now or next.
    turn: usize,
    /// It holds what the next run is to see.
    is_filled: bool,
}

impl Feed {
    fn new(machine: &dyn Machine, to: Address, words: usize) -> Result<Feed, CudaError> {
        Ok(Feed { to, buffers: [machine.staging(words)?, machine.staging(words)?], turn: 0, is_filled: false })
    }

    fn fill(&mut self) -> Result<&mut [u32], CudaError> {
        let words = self.buffers[self.turn].words()?;
        self.is_filled = true;
        Ok(words)
    }

    fn send(&mut self) -> Result<(), CudaError> {
        if self.is_filled {
            self.buffers[self.turn].upload(self.to)?;
            (self.turn, self.is_filled) = (1 - self.turn, false);
        }
        Ok(())
    }
}

/// Scalars that the device notes before the host must read them: 4 KiB, and one wait in so many steps.
const MOST_NOTED: usize = 1024;

/// Scalars that were noted and not taken.
#[derive(Default)]
struct Notes {
    /// Room for `MOST_NOTED`, once there is something to note.
    at: Option<Address>,
    /// Those that lie on the device.
    unread: usize,
    read: Vec<f32>,
}

pub(super) struct CudaSession {
    program: Program,
    machine: Arc<dyn Machine>,
    /// Of every slot, then scratch, constants and control.
    memory: Vec<Address>,
    places: Places,
    bytes: u64,
    plan: Plan,
    choices: Arc<Choices>,
    pieces: Vec<Piece>,
    /// Runs so far; the first goes launch by launch, so that a launch that fails is named, the second records.
    runs: u64,
    links: Option<Links>,
    way: Way,
    /// Of the inputs that were filled in place so far.
    feeds: BTreeMap<ValueId, Feed>,
    /// Factor on the learning rate, and its way to the device once it has changed.
    rate: f64,
    rate_feed: Option<Feed>,
    /// The factor on the device is not this one.
    rate_is_stale: bool,
    notes: Notes,
    clock: Box<dyn Clock>,
}

const FLOATS: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

impl CudaSession {
    pub fn load(
        program: Program,
        machine: Arc<dyn Machine>,
        choices: Arc<Choices>,
        links: Option<Links>,
    ) -> Result<CudaSession, BackendError> {
        // Sizes do not depend on addresses: the first plan says how much is needed, the second is the one that runs.
        let nowhere = Places::nowhere(&program);
        let sizes = plan::plan(&program, machine.facts(), &choices, &nowhere)?;
        let mut memory = Vec::new();
        let mut bytes = 0;
        let mut allocate = |size: usize| -> Result<Address, BackendError> {
            let address = machine.allocate(size)?;
            memory.push(address);
            bytes += size as u64;
            Ok(address)
        };
        let mut slot_bytes: Vec<usize> = program.slots.iter().map(|slot| slot.bytes).collect();
        for (id, weight) in &sizes.kept_weights {
            slot_bytes[program.slot_of[id.0].expect("a product reads it")] = weight.bytes();
        }
        let slots = slot_bytes.into_iter().map(&mut allocate).collect::<Result<Vec<_>, _>>()?;
        let places = Places {
            slots,
            scratch: allocate(sizes.scratch_bytes)?,
            constants: allocate(sizes.constants.len())?,
            control: allocate(Control::BYTES)?,
        };
        let mut plan = plan::plan(&program, machine.facts(), &choices, &places)?;
        encode_maps(&*machine, plan.steps.iter_mut().flatten())?;
        if !plan.constants.is_empty() {
            machine.upload(places.constants, &plan.constants)?;
        }
        machine.upload(places.control, &Control { updates: 0, rate: 1.0 }.bytes())?;
        let mut pieces = Vec::new();
        let mut from = 0;
        for (at, step) in program.steps.iter().enumerate() {
            if let Op::Exchange(_) = step.op {
                pieces.push(Piece::Launches { steps: from..at, recording: None });
                pieces.push(Piece::Exchange(at));
                from = at + 1;
            }
        }
        pieces.push(Piece::Launches { steps: from..program.steps.len(), recording: None });
        let clock = machine.clock();
        Ok(CudaSession {
            program,
            machine,
            memory,
            places,
            bytes,
            plan,
            choices,
            pieces,
            runs: 0,
            links,
            way: Way::Open,
            feeds: BTreeMap::new(),
            rate: 1.0,
            rate_feed: None,
            rate_is_stale: false,
            notes: Notes::default(),
            clock,
        })
    }

    /// The address of a value, if `given` elements of one of `types` fit it.
    fn place(&self, id: ValueId, given: usize, types: &[DType], name: &'static str) -> Result<Address, BackendError> {
        let value = &self.program.values[id.0];
        match self.program.slot_of[id.0] {
            Some(slot) if value.elements() == given && types.contains(&value.dtype) => Ok(self.places.slots[slot]),
            _ => Err(BackendError::Size {
                name: value.name.clone(),
                expected: value.elements(),
                dtype: value.dtype.name(),
                got: given,
                given: name,
            }),
        }
    }

    /// Queues what the host has for the next run.
    fn send(&mut self) -> Result<(), BackendError> {
        if self.rate_is_stale {
            let feed = match &mut self.rate_feed {
                Some(feed) => feed,
                none => none.insert(Feed::new(&*self.machine, self.places.control + Control::RATE_AT, 1)?),
            };
            feed.fill()?[0] = (self.rate as f32).to_bits();
            feed.send()?;
            self.rate_is_stale = false;
        }
        self.feeds.values_mut().try_for_each(Feed::send)?;
        Ok(())
    }

    /// Where the host writes an input of this type.
    fn host<T: bytemuck::Pod>(&mut self, id: ValueId, dtype: DType) -> Option<&mut [T]> {
        let value = &self.program.values[id.0];
        let slot = self.program.slot_of[id.0].filter(|_| value.role == Role::Input && value.dtype == dtype)?;
        if !self.feeds.contains_key(&id) {
            // Without page-locked memory, `upload` is still there.
            let feed = Feed::new(&*self.machine, self.places.slots[slot], value.elements()).ok()?;
            self.feeds.insert(id, feed);
        }
        self.feeds.get_mut(&id)?.fill().ok().map(bytemuck::cast_slice_mut)
    }

    /// What was filled in and not sent counts no more: a later upload replaces it.
    fn drop_filled(&mut self, id: ValueId) {
        if let Some(feed) = self.feeds.get_mut(&id) {
            feed.is_filled = false;
        }
    }

    /// Fetches what lies on the device.
    fn read_notes(&mut self) -> Result<(), BackendError> {
        if let Some(at) = self.notes.at.filter(|_| self.notes.unread > 0) {
            let mut noted = vec![0.0f32; self.notes.unread];
            self.judged(self.machine.download(at, bytemuck::cast_slice_mut(&mut noted)))?;
            self.notes.read.extend(noted);
            self.notes.unread = 0;
        }
        Ok(())
    }

    /// What came of waiting for the device: nothing where exchanges were given up meanwhile, though the device knows of no error.
    fn judged<T>(&self, result: Result<T, CudaError>) -> Result<T, BackendError> {
        let trouble = if let Way::Devices(links) = &self.way { links.trouble() } else { None };
        trouble.map_or_else(|| Ok(result?), |trouble| Err(trouble.into()))
    }

    /// From device to device where all ranks can, else through the host.
    fn exchange(&mut self, step: usize) -> Result<(), BackendError> {
        let links = self.links.clone();
        if let (Way::Open, Some(links)) = (&self.way, &links) {
            self.way = links::decide(&*self.machine, links, &self.program, &mut self.memory)?;
        }
        if let Way::Devices(devices) = &self.way {
            let at = |id: ValueId| self.places.slots[self.program.slot_of[id.0].expect("lowering gives every operand a slot")];
            return devices.queue(&*self.machine, &self.program, &self.program.steps[step], at);
        }
        exchange(self, links.as_ref(), step)
    }

    /// Runs every piece, with a clock around each step.
    fn run_timed(&mut self, pieces: &[Piece], times: &mut Vec<OpTime>) -> Result<(), BackendError> {
        for piece in pieces {
            match piece {
                Piece::Exchange(step) => {
                    // What the device still has to do is not the exchange's time.
                    self.machine.synchronize()?;
                    let waited = |session: &CudaSession| session.links.as_ref().map_or(0.0, |links| links.waited().0);
                    let (start, before) = (std::time::Instant::now(), waited(self));
                    self.exchange(*step)?;
                    self.judged(self.machine.synchronize())?;
                    times.push(OpTime { total: Seconds::since(start), waited: Seconds(waited(self) - before) });
                }
                Piece::Launches { steps, .. } => {
                    let launches: Vec<&[Launch]> = self.plan.steps[steps.clone()].iter().map(Vec::as_slice).collect();
                    let times_s = self.machine.time(&launches)?.into_iter();
                    times.extend(times_s.map(|time_s| OpTime { total: Seconds(time_s), ..OpTime::default() }));
                }
            }
        }
        Ok(())
    }
}

impl Session for CudaSession {
    fn program(&self) -> &Program {
        &self.program
    }

    fn upload_f32(&mut self, id: ValueId, data: &[f32]) -> Result<(), BackendError> {
        self.drop_filled(id);
        let to = self.place(id, data.len(), &FLOATS, "float")?;
        if let Some(weight) = self.plan.kept_weights.get(&id) {
            let packed = weight.encode(data).ok_or_else(|| BackendError::Unsupported {
                op: "round_fp8",
                shape: format!("{:?}", self.program.values[id.0].shape),
                device: "cuda",
                reason: "a weight that should have been rounded to e4m3 before was not",
            })?;
            return Ok(self.machine.upload(to, &packed)?);
        }
        match self.program.values[id.0].dtype {
            DType::F32 => self.machine.upload(to, bytemuck::cast_slice(data))?,
            DType::Bf16 => {
                let low: Vec<bf16> = data.iter().map(|x| bf16::from_f32(*x)).collect();
                self.machine.upload(to, bytemuck::cast_slice(&low))?;
            }
            _ => {
                let low: Vec<f16> = data.iter().map(|x| f16::from_f32(*x)).collect();
                self.machine.upload(to, bytemuck::cast_slice(&low))?;
            }
        }
        Ok(())
    }

    fn upload_i32(&mut self, id: ValueId, data: &[i32]) -> Result<(), BackendError> {
        let to = self.place(id, data.len(), &[DType::I32], "i32")?;
        self.drop_filled(id);
        Ok(self.machine.upload(to, bytemuck::cast_slice(data))?)
    }

    fn upload_i8(&mut self, id: ValueId, data: &[i8]) -> Result<(), BackendError> {
        let to = self.place(id, data.len(), &[DType::I8], "i8")?;
        match plan::transposed_weights(&self.program, id) {
            Some([k, n]) => {
                let mut turned = vec![0i8; data.len()];
                for (row, weights) in data.chunks_exact(n).enumerate() {
                    weights.iter().enumerate().for_each(|(column, w)| turned[column * k + row] = *w);
                }
                Ok(self.machine.upload(to, bytemuck::cast_slice(&turned))?)
            }
            None => Ok(self.machine.upload(to, bytemuck::cast_slice(data))?),
        }
    }

    fn host_f32(&mut self, id: ValueId) -> Option<&mut [f32]> {
        self.host(id, DType::F32)
    }

    fn host_i32(&mut self, id: ValueId) -> Option<&mut [i32]> {
        self.host(id, DType::I32)
    }

    fn download_f32(&mut self, id: ValueId, out: &mut [f32]) -> Result<(), BackendError> {
        self.feeds.get_mut(&id).map_or(Ok(()), Feed::send)?;
        let from = self.place(id, out.len(), &FLOATS, "float")?;
        if let Some(weight) = self.plan.kept_weights.get(&id) {
            let mut packed = vec![0; weight.bytes()];
            self.judged(self.machine.download(from, &mut packed))?;
            out.copy_from_slice(&weight.decode(&packed));
            return Ok(());
        }
        match self.program.values[id.0].dtype {
            DType::F32 => self.judged(self.machine.download(from, bytemuck::cast_slice_mut(out)))?,
            DType::Bf16 => {
                let mut low = vec![bf16::ZERO; out.len()];
                self.judged(self.machine.download(from, bytemuck::cast_slice_mut(&mut low)))?;
                out.iter_mut().zip(low).for_each(|(out, low)| *out = low.to_f32());
            }
            _ => {
                let mut low = vec![f16::ZERO; out.len()];
                self.judged(self.machine.download(from, bytemuck::cast_slice_mut(&mut low)))?;
                out.iter_mut().zip(low).for_each(|(out, low)| *out = low.to_f32());
            }
        }
        Ok(())
    }

    fn execute(&mut self) -> Result<(), BackendError> {
        self.send()?;
        let mut pieces = std::mem::take(&mut self.pieces);
        let mut run = || -> Result<(), BackendError> {
            for piece in &mut pieces {
                match piece {
                    Piece::Exchange(step) => self.exchange(*step)?,
                    Piece::Launches { recording: Some(recording), .. } => self.machine.replay(recording)?,
                    Piece::Launches { steps, recording } => {
                        let launches: Vec<&Launch> = self.plan.steps[steps.clone()].iter().flatten().collect();
                        if self.runs > 0 && !launches.is_empty() {
                            *recording = self.machine.record(&launches)?;
                        }
                        match recording {
                            Some(recording) => self.machine.replay(recording)?,
                            None => {
                                for step in steps.clone() {
                                    let shapes = || self.program.step_shape(&self.program.steps[step]);
                                    for launch in &self.plan.steps[step] {
                                        self.machine.launch(launch).map_err(|error| error.on(shapes()))?;
                                    }
                                }
                            }
                        }
                    }
                }
            }
            Ok(())
        };
        let done = run();
        self.pieces = pieces;
        self.runs += 1;
        // A group that was given up takes no more: the reason is what counts.
        self.judged(Ok(()))?;
        done
    }

    fn execute_timed(&mut self, times: &mut Vec<OpTime>) -> Result<(), BackendError> {
        self.send()?;
        times.clear();
        let pieces = std::mem::take(&mut self.pieces);
        let done = self.run_timed(&pieces, times);
        self.pieces = pieces;
        self.judged(Ok(()))?;
        done?;
        self.runs += 1;
        Ok(())
    }

    fn reasons(&self) -> Vec<Vec<String>> {
        let product = |shape: &_| self.choices.explain(shape, self.machine.facts());
        let steps = self.plan.products.iter().zip(&self.plan.convolutions);
        steps.map(|(products, convolutions)| products.iter().map(product).chain(convolutions.iter().cloned()).collect()).collect()
    }

    fn set_rate_factor(&mut self, factor: f64) {
        self.rate_is_stale |= self.rate != factor;
        self.rate = factor;
    }

    fn note_f32(&mut self, id: ValueId) -> Result<(), BackendError> {
        let from = self.place(id, 1, &[DType::F32], "float")?;
        if self.notes.unread == MOST_NOTED {
            self.read_notes()?;
        }
        let at = match self.notes.at {
            Some(at) => at,
            None => {
                let at = self.machine.allocate(4 * MOST_NOTED)?;
                self.memory.push(at);
                self.bytes += 4 * MOST_NOTED as u64;
                *self.notes.at.insert(at)
            }
        };
        self.machine.copy(from, at + 4 * self.notes.unread as Address, 4)?;
        self.notes.unread += 1;
        Ok(())
    }

    fn take_noted(&mut self) -> Result<Vec<f32>, BackendError> {
        self.read_notes()?;
        Ok(std::mem::take(&mut self.notes.read))
    }

    fn note_time(&mut self) -> Result<(), BackendError> {
        Ok(self.clock.mark()?)
    }

    fn take_times(&mut self) -> Result<Vec<Seconds>, BackendError> {
        let taken = self.clock.take();
        Ok(self.judged(taken)?.into_iter().map(Seconds).collect())
    }

    fn synchronize(&mut self) -> Result<(), BackendError> {
        self.judged(self.machine.synchronize())
    }

    fn exchanges(&self) -> Option<String> {
        self.way.describe()
    }

    fn memory(&self) -> Bytes {
        Bytes(self.bytes)
    }
}

impl Drop for CudaSession {
    fn drop(&mut self) {
        for piece in &self.pieces {
            if let Piece::Launches { recording: Some(recording), .. } = piece {
                self.machine.forget(recording);
            }
        }
        // What was queued may still use the memory that is given back.
        let _ = self.machine.synchronize();
        for address in &self.memory {
            self.machine.release(*address);
        }
    }
}
