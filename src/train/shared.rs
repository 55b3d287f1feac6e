//! Results of a rank as bytes, so that ranks in other processes have them too: little-endian numbers, lists after their lengths.

use super::{ApartStep, StepTimes};
use crate::{backend::OpTime, units::Seconds};

/// What can be read back from what it wrote.
pub trait Shared: Sized {
    fn write(&self, bytes: &mut Vec<u8>);
    /// Takes itself from the front; `None` where it is not there.
    fn read(bytes: &mut &[u8]) -> Option<Self>;
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*first)
}

impl Shared for () {
    fn write(&self, _: &mut Vec<u8>) {}
    fn read(_: &mut &[u8]) -> Option<()> {
        Some(())
    }
}

impl Shared for f32 {
    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.to_le_bytes());
    }
    fn read(bytes: &mut &[u8]) -> Option<f32> {
        take(bytes).map(f32::from_le_bytes)
    }
}

impl Shared for f64 {
    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.to_le_bytes());
    }
    fn read(bytes: &mut &[u8]) -> Option<f64> {
        take(bytes).map(f64::from_le_bytes)
    }
}

impl Shared for u64 {
    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.to_le_bytes());
    }
    fn read(bytes: &mut &[u8]) -> Option<u64> {
        take(bytes).map(u64::from_le_bytes)
    }
}

impl Shared for Seconds {
    fn write(&self, bytes: &mut Vec<u8>) {
        self.0.write(bytes);
    }
    fn read(bytes: &mut &[u8]) -> Option<Seconds> {
        f64::read(bytes).map(Seconds)
    }
}

impl<T: Shared> Shared for Vec<T> {
    fn write(&self, bytes: &mut Vec<u8>) {
        (self.len() as u64).write(bytes);
        self.iter().for_each(|one| one.write(bytes));
    }
    fn read(bytes: &mut &[u8]) -> Option<Vec<T>> {
        let length = u64::read(bytes)?;
        (0..length).map(|_| T::read(bytes)).collect()
    }
}

impl Shared for OpTime {
    fn write(&self, bytes: &mut Vec<u8>) {
        self.total.write(bytes);
        self.waited.write(bytes);
    }
    fn read(bytes: &mut &[u8]) -> Option<OpTime> {
        Some(OpTime { total: Seconds::read(bytes)?, waited: Seconds::read(bytes)? })
    }
}

impl Shared for ApartStep {
    fn write(&self, bytes: &mut Vec<u8>) {
        let ApartStep { ordinary_s, call_s, apart_s, data_s, ops, end_wait_s } = self;
        [*ordinary_s, *call_s, *apart_s, *data_s, *end_wait_s].iter().for_each(|time| time.write(bytes));
        ops.write(bytes);
    }
    fn read(bytes: &mut &[u8]) -> Option<ApartStep> {
        let mut time = || f64::read(bytes);
        let [ordinary_s, call_s, apart_s, data_s, end_wait_s] = [time()?, time()?, time()?, time()?, time()?];
        Some(ApartStep { ordinary_s, call_s, apart_s, data_s, end_wait_s, ops: Vec::read(bytes)? })
    }
}

impl Shared for StepTimes {
    fn write(&self, bytes: &mut Vec<u8>) {
        self.step_s.write(bytes);
        self.steps.write(bytes);
        self.total_s.write(bytes);
    }
    fn read(bytes: &mut &[u8]) -> Option<StepTimes> {
        Some(StepTimes { step_s: Vec::read(bytes)?, steps: u64::read(bytes)?, total_s: f64::read(bytes)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_read_back_as_they_were_written_and_torn_ones_do_not() {
        let times = StepTimes { step_s: vec![0.25, f64::INFINITY], steps: 7, total_s: 1e-9 };
        let value = vec![times.clone(), StepTimes::default()];
        let mut bytes = Vec::new();
        value.write(&mut bytes);
        assert_eq!(Vec::<StepTimes>::read(&mut &bytes[..]), Some(value));
        assert_eq!(Vec::<StepTimes>::read(&mut &bytes[..bytes.len() - 1]), None);
        // Scores that are no numbers arrive as such.
        let scores = vec![vec![1.5f32, f32::NAN], vec![]];
        bytes.clear();
        scores.write(&mut bytes);
        let back = Vec::<Vec<f32>>::read(&mut &bytes[..]).unwrap();
        assert!(back[0][0] == 1.5 && back[0][1].is_nan() && back[1].is_empty());
    }
}
