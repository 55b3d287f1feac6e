//! One step of a model on rows that already lie on its device, for comparing kernels: no data is fetched and nothing is read back.

use super::{TrainError, inference_program, load_weights, training_program};
use crate::{
    backend::{Session, open},
    graph::Graph,
    record::TrainConfig,
    strategy::{Calibration, Weights},
    vocab::{Compression, Device, Phase, Precision},
};
use std::time::Instant;

/// Length of a sample.
const SAMPLE_S: f64 = 0.05;

/// A step, ready for the clock.
pub struct StepBench {
    session: Box<dyn Session>,
    /// Steps in a sample.
    steps: usize,
}

impl StepBench {
    /// Loads the step of `forward` in `phase` with `images` `[B, H, W, C]` and `labels` `[B]`, and runs it until its kernels are loaded.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        device: Device,
        threads: usize,
        forward: &Graph,
        weights: &Weights,
        phase: Phase,
        precision: Precision,
        config: &TrainConfig,
        images: &[f32],
        labels: &[i32],
    ) -> Result<StepBench, TrainError> {
        let backend = open(device, threads)?;
        let session = match phase {
            Phase::Train => {
                let training = training_program(forward, precision, config, 1)?;
                let mut session = backend.load(training.program.clone(), None)?;
                load_weights(&mut *session, weights)?;
                session.upload_f32(training.x, images)?;
                session.upload_i32(training.labels, labels)?;
                if let Some((factor, _)) = training.guard {
                    session.upload_f32(factor, &[1024.0])?;
                }
                session
            }
            Phase::Infer => {
                let no_ranges = |_: &Graph| Ok(Calibration::default());
                let inference = inference_program(forward, weights, precision, Compression::None, no_ranges)?;
                let mut session = backend.load(inference.program.clone(), None)?;
                load_weights(&mut *session, &inference.weights)?;
                session.upload_f32(inference.x, images)?;
                session
            }
        };
        let mut bench = StepBench { session, steps: 3 };
        // Loads, records, replays; then finds out how many steps make a sample.
        bench.sample()?;
        let step_s = bench.sample()?;
        bench.steps = (SAMPLE_S / step_s.max(1e-9)).ceil().clamp(3.0, 1e6) as usize;
        Ok(bench)
    }

    /// Mean seconds of a step over one sample.
    pub fn sample(&mut self) -> Result<f64, TrainError> {
        let start = Instant::now();
        for _ in 0..self.steps {
            self.session.execute()?;
        }
        self.session.synchronize()?;
        Ok(start.elapsed().as_secs_f64() / self.steps as f64)
    }
}
