//! How fast the processor works at this moment. Neighbours on the same host, heat and clocks move it by a factor of two within seconds on
//! some machines, with nothing else to be seen of them; work that is always the same tells.

use crate::{
    backend::cpu::kernels::{Isa, sustained_rate},
    record::MachineSpeed,
};
use std::{sync::Barrier, time::Instant};

/// Length of either half of a reading: short beside a sample or a block, long beside a clock's step.
const HALF_S: f64 = 0.000_2;

/// Bytes that are copied: more than a first cache holds, and few beside a core's second, so that little of what lies there is lost.
const COPIED: usize = 1 << 18;

/// The same work again and again, by all threads at once.
pub struct SpeedProbe {
    /// Of each thread.
    buffers: Vec<(Vec<u8>, Vec<u8>)>,
    isa: Isa,
}

impl SpeedProbe {
    pub fn new(threads: usize) -> SpeedProbe {
        SpeedProbe { buffers: (0..threads.max(1)).map(|_| (vec![1; COPIED], vec![0; COPIED])).collect(), isa: Isa::best() }
    }

    /// What the slowest thread reaches, for steps wait for it.
    pub fn read(&mut self) -> MachineSpeed {
        let (barrier, isa) = (Barrier::new(self.buffers.len()), self.isa);
        let one = |(from, to): &mut (Vec<u8>, Vec<u8>)| {
            barrier.wait();
            MachineSpeed { flops_per_s: sustained_rate(isa, HALF_S), bytes_per_s: copy_rate(from, to) }
        };
        if let [alone] = &mut self.buffers[..] {
            return one(alone);
        }
        let of_threads: Vec<MachineSpeed> = std::thread::scope(|scope| {
            let threads: Vec<_> = self.buffers.iter_mut().map(|buffers| scope.spawn(|| one(buffers))).collect();
            threads.into_iter().map(|thread| thread.join().expect("copying does not panic")).collect()
        });
        of_threads.into_iter().reduce(MachineSpeed::slower).expect("there is a thread")
    }
}

/// Bytes a second, read and written.
fn copy_rate(from: &[u8], to: &mut [u8]) -> f64 {
    let (start, mut copies) = (Instant::now(), 0);
    loop {
        to.copy_from_slice(std::hint::black_box(from));
        std::hint::black_box(&mut *to);
        copies += 1;
        let elapsed = start.elapsed().as_secs_f64();
        if elapsed >= HALF_S {
            return (2 * COPIED * copies) as f64 / elapsed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_is_a_speed_that_a_processor_can_have() {
        for threads in [1, 2] {
            let speed = SpeedProbe::new(threads).read();
            assert!((1e8..1e13).contains(&speed.flops_per_s) && (1e8..1e13).contains(&speed.bytes_per_s), "{speed:?}");
        }
    }
}
