//! One program on a machine: its memory, its planned launches, and the recording that replays them.

use super::{
    machine::{Address, Launch, Machine, Recording, encode_maps},
    plan::{self, Control, Places, Plan},
    product::Choices,
};
use crate::{
    backend::{BackendError, Links, Session, exchange::exchange},
    graph::{Program, ValueId},
    units::{Bytes, Seconds},
    vocab::{DType, Vocabulary},
};
use half::{bf16, f16};
use std::sync::Arc;

/// Launches between two points at which the host must act.
enum Piece {
    Launches {
        steps: std::ops::Range<usize>,
        recording: Option<Recording>,
    },
    /// Step that other ranks take part in.
    Exchange(usize),
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
    control: Control,
    /// The control block on the device is not what it should be.
    control_is_stale: bool,
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
        let slots = program.slots.iter().map(|slot| allocate(slot.bytes)).collect::<Result<Vec<_>, _>>()?;
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
        let mut pieces = Vec::new();
        let mut from = 0;
        for (at, step) in program.steps.iter().enumerate() {
            if step.op.is_exchange() {
                pieces.push(Piece::Launches { steps: from..at, recording: None });
                pieces.push(Piece::Exchange(at));
                from = at + 1;
            }
        }
        pieces.push(Piece::Launches { steps: from..program.steps.len(), recording: None });
        let control = Control { updates: 0, rate: 1.0 };
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
            control,
            control_is_stale: true,
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

    fn write_f32(&self, id: ValueId, data: &[f32]) -> Result<(), BackendError> {
        let to = self.place(id, data.len(), &FLOATS, "float")?;
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

    fn read_f32(&self, id: ValueId, out: &mut [f32]) -> Result<(), BackendError> {
        let from = self.place(id, out.len(), &FLOATS, "float")?;
        match self.program.values[id.0].dtype {
            DType::F32 => self.machine.download(from, bytemuck::cast_slice_mut(out))?,
            DType::Bf16 => {
                let mut low = vec![bf16::ZERO; out.len()];
                self.machine.download(from, bytemuck::cast_slice_mut(&mut low))?;
                out.iter_mut().zip(low).for_each(|(out, low)| *out = low.to_f32());
            }
            _ => {
                let mut low = vec![f16::ZERO; out.len()];
                self.machine.download(from, bytemuck::cast_slice_mut(&mut low))?;
                out.iter_mut().zip(low).for_each(|(out, low)| *out = low.to_f32());
            }
        }
        Ok(())
    }

    fn bring_control(&mut self) -> Result<(), BackendError> {
        if self.control_is_stale {
            self.machine.upload(self.places.control, &self.control.bytes())?;
            self.control_is_stale = false;
        }
        Ok(())
    }

    /// Through the host.
    fn exchange(&self, step: usize) -> Result<(), BackendError> {
        let step = &self.program.steps[step];
        let mut operands = Vec::with_capacity(step.inputs.len());
        for id in &step.inputs {
            let mut data = vec![0.0f32; self.program.values[id.0].elements()];
            self.read_f32(*id, &mut data)?;
            operands.push(data);
        }
        let length = step.outputs.first().map_or(0, |id| self.program.values[id.0].elements());
        let made = exchange(&step.op, self.links.as_ref(), &mut operands, length)?;
        for k in step.op.written_inputs(step.inputs.len()) {
            self.write_f32(step.inputs[k], &operands[k])?;
        }
        match step.outputs.first() {
            Some(id) => self.write_f32(*id, &made),
            None => Ok(()),
        }
    }

    fn finish_run(&mut self) {
        self.runs += 1;
        // The device counts as well: the last launch of a program with updates does.
        self.control.updates += 1;
        self.control_is_stale |= !self.plan.counts_updates;
    }
}

impl Session for CudaSession {
    fn program(&self) -> &Program {
        &self.program
    }

    fn upload_f32(&mut self, id: ValueId, data: &[f32]) -> Result<(), BackendError> {
        self.write_f32(id, data)
    }

    fn upload_i32(&mut self, id: ValueId, data: &[i32]) -> Result<(), BackendError> {
        let to = self.place(id, data.len(), &[DType::I32], "i32")?;
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

    fn host_f32(&mut self, _id: ValueId) -> Option<&mut [f32]> {
        None
    }

    fn host_i32(&mut self, _id: ValueId) -> Option<&mut [i32]> {
        None
    }

    fn download_f32(&mut self, id: ValueId, out: &mut [f32]) -> Result<(), BackendError> {
        self.read_f32(id, out)
    }

    fn execute(&mut self) -> Result<(), BackendError> {
        self.bring_control()?;
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
        self.finish_run();
        done
    }

    fn execute_timed(&mut self, times: &mut Vec<Seconds>) -> Result<(), BackendError> {
        self.bring_control()?;
        times.clear();
        for piece in &self.pieces {
            match piece {
                Piece::Exchange(step) => {
                    let start = std::time::Instant::now();
                    self.exchange(*step)?;
                    times.push(Seconds::since(start));
                }
                Piece::Launches { steps, .. } => {
                    let launches: Vec<&[Launch]> = self.plan.steps[steps.clone()].iter().map(Vec::as_slice).collect();
                    times.extend(self.machine.time(&launches)?.into_iter().map(Seconds));
                }
            }
        }
        self.finish_run();
        Ok(())
    }

    fn reasons(&self) -> Vec<Vec<String>> {
        let of = |products: &Vec<_>| products.iter().map(|shape| self.choices.explain(shape, self.machine.facts())).collect();
        self.plan.products.iter().map(of).collect()
    }

    fn set_update_count(&mut self, updates: u64) {
        self.control.updates = updates;
        self.control_is_stale = true;
    }

    fn set_rate_factor(&mut self, factor: f64) {
        self.control_is_stale |= self.control.rate != factor;
        self.control.rate = factor;
    }

    fn synchronize(&mut self) -> Result<(), BackendError> {
        Ok(self.machine.synchronize()?)
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
