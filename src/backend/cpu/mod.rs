//! The CPU backend: programs run step by step over aligned slots, by the kernels of `kernels/`.
//!
//! A slot is moved out while a step writes it, so every step has plain disjoint slices.

mod execute;
// Vector instructions, and slices shared between threads in disjoint parts: the two things that need `unsafe`. Every entry checks
// the lengths it was given before it hands out a pointer.
#[allow(unsafe_code)]
pub mod kernels;

use super::{Backend, BackendError, Links, OpTime, Session};
use crate::{
    graph::{Program, ValueId},
    units::{Bytes, Seconds},
    vocab::{DType, Vocabulary},
};
use bytemuck::Pod;
use half::{bf16, f16};
use kernels::Context;
use std::time::Instant;

/// The processor with a pool of threads.
pub struct Cpu {
    threads: usize,
}

impl Cpu {
    pub fn new(threads: usize) -> Self {
        Cpu { threads }
    }
}

/// Whether this processor multiplies bf16 numbers without widening them first.
pub fn has_bf16_products() -> bool {
    kernels::Isa::best().has_bf16()
}

impl Backend for Cpu {
    fn describe(&self) -> String {
        let isa = format!("{:?}", kernels::Isa::best()).to_lowercase();
        format!("cpu, {} thread{}, {isa}", self.threads, if self.threads == 1 { "" } else { "s" })
    }

    fn load(&self, program: Program, links: Option<Links>) -> Result<Box<dyn Session>, BackendError> {
        if let Some(step) = program.steps.first().filter(|_| program.rounds_to_tf32) {
            let (op, shape) = (step.op.name(), program.step_shape(step));
            let reason = "it has no products of operands rounded to tf32";
            return Err(BackendError::Unsupported { op, shape, device: "cpu", reason });
        }
        let slots = program.slots.iter().map(|slot| Storage::zeros(slot.bytes)).collect();
        let scratch = execute::Scratch::for_program(&program);
        let ctx = Context::new(self.threads);
        let last_update = program.last_update();
        Ok(Box::new(CpuSession {
            program,
            slots,
            ctx,
            scratch,
            links,
            updates: 0,
            last_update,
            rate: 1.0,
            noted: Vec::new(),
            times: Vec::new(),
        }))
    }
}

/// A cache line; slots are made of these, so that vectors never straddle two lines at a slot's start.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: 64 bytes of plain data at alignment 64: no padding, any bit pattern is valid.
#[allow(unsafe_code)]
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Pod for Line {}

/// Memory of one slot.
#[derive(Default)]
struct Storage(Vec<Line>);

impl Storage {
    fn zeros(bytes: usize) -> Storage {
        Storage(vec![Line([0; 64]); bytes.div_ceil(64)])
    }

    /// The first `len` elements.
    fn as_slice<T: Pod>(&self, len: usize) -> &[T] {
        &bytemuck::cast_slice(&self.0)[..len]
    }

    fn as_mut_slice<T: Pod>(&mut self, len: usize) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.0)[..len]
    }
}

struct CpuSession {
    program: Program,
    slots: Vec<Storage>,
    ctx: Context,
    scratch: execute::Scratch,
    links: Option<Links>,
    /// Updates done so far, and what counts them.
    updates: u64,
    last_update: Option<(usize, Option<ValueId>)>,
    /// Factor on every update's learning rate.
    rate: f64,
    noted: Vec<f32>,
    times: Vec<Instant>,
}

impl CpuSession {
    /// The slot of a value and its length, if `given` elements of one of `types` fit it.
    fn place(&self, id: ValueId, given: usize, types: &[DType], name: &'static str) -> Result<(usize, usize), BackendError> {
        let value = &self.program.values[id.0];
        match self.program.slot_of[id.0] {
            Some(slot) if value.elements() == given && types.contains(&value.dtype) => Ok((slot, given)),
            _ => Err(BackendError::Size {
                name: value.name.clone(),
                expected: value.elements(),
                dtype: value.dtype.name(),
                got: given,
                given: name,
            }),
        }
    }

    fn host<T: Pod>(&mut self, id: ValueId, dtype: DType) -> Option<&mut [T]> {
        let value = &self.program.values[id.0];
        let slot = self.program.slot_of[id.0].filter(|_| value.dtype == dtype)?;
        Some(self.slots[slot].as_mut_slice(value.elements()))
    }
}

const FLOATS: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

impl Session for CpuSession {
    fn program(&self) -> &Program {
        &self.program
    }

    fn upload_f32(&mut self, id: ValueId, data: &[f32]) -> Result<(), BackendError> {
        let (slot, len) = self.place(id, data.len(), &FLOATS, "float")?;
        let storage = &mut self.slots[slot];
        match self.program.values[id.0].dtype {
            DType::F32 => storage.as_mut_slice::<f32>(len).copy_from_slice(data),
            DType::Bf16 => kernels::cast(&self.ctx, data, storage.as_mut_slice::<bf16>(len)),
            _ => kernels::cast(&self.ctx, data, storage.as_mut_slice::<f16>(len)),
        }
        self.scratch.forget_packed(&self.program, id);
        Ok(())
    }

    fn upload_i32(&mut self, id: ValueId, data: &[i32]) -> Result<(), BackendError> {
        let (slot, len) = self.place(id, data.len(), &[DType::I32], "i32")?;
        self.slots[slot].as_mut_slice::<i32>(len).copy_from_slice(data);
        Ok(())
    }

    fn upload_i8(&mut self, id: ValueId, data: &[i8]) -> Result<(), BackendError> {
        let (slot, len) = self.place(id, data.len(), &[DType::I8], "i8")?;
        self.slots[slot].as_mut_slice::<i8>(len).copy_from_slice(data);
        self.scratch.forget_packed(&self.program, id);
        Ok(())
    }

    fn host_f32(&mut self, id: ValueId) -> Option<&mut [f32]> {
        self.host(id, DType::F32)
    }

    fn host_i32(&mut self, id: ValueId) -> Option<&mut [i32]> {
        self.host(id, DType::I32)
    }

    fn download_f32(&mut self, id: ValueId, out: &mut [f32]) -> Result<(), BackendError> {
        let (slot, len) = self.place(id, out.len(), &FLOATS, "float")?;
        let storage = &self.slots[slot];
        match self.program.values[id.0].dtype {
            DType::F32 => out.copy_from_slice(storage.as_slice::<f32>(len)),
            DType::Bf16 => kernels::cast(&self.ctx, storage.as_slice::<bf16>(len), out),
            _ => kernels::cast(&self.ctx, storage.as_slice::<f16>(len), out),
        }
        Ok(())
    }

    fn execute(&mut self) -> Result<(), BackendError> {
        for step in 0..self.program.steps.len() {
            self.run_step(step)?;
        }
        Ok(())
    }

    fn execute_timed(&mut self, times: &mut Vec<OpTime>) -> Result<(), BackendError> {
        times.clear();
        let waited = |session: &CpuSession| session.links.as_ref().map_or(0.0, |links| links.waited().0);
        let mut before = waited(self);
        for step in 0..self.program.steps.len() {
            let start = Instant::now();
            self.run_step(step)?;
            let total = Seconds::since(start);
            let now = waited(self);
            times.push(OpTime { total, waited: Seconds(now - before) });
            before = now;
        }
        Ok(())
    }

    fn set_rate_factor(&mut self, factor: f64) {
        self.rate = factor;
    }

    fn note_f32(&mut self, id: ValueId) -> Result<(), BackendError> {
        let (slot, _) = self.place(id, 1, &[DType::F32], "float")?;
        self.noted.push(self.slots[slot].as_slice::<f32>(1)[0]);
        Ok(())
    }

    fn take_noted(&mut self) -> Result<Vec<f32>, BackendError> {
        Ok(std::mem::take(&mut self.noted))
    }

    fn note_time(&mut self) -> Result<(), BackendError> {
        self.times.push(Instant::now());
        Ok(())
    }

    fn take_times(&mut self) -> Result<Vec<Seconds>, BackendError> {
        let times = std::mem::take(&mut self.times);
        Ok(times.windows(2).map(|pair| Seconds((pair[1] - pair[0]).as_secs_f64())).collect())
    }

    fn memory(&self) -> Bytes {
        Bytes(self.slots.iter().map(|s| s.0.len() as u64 * 64).sum())
    }
}
