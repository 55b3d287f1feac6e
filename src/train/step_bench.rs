//! One step of a model on rows that already lie on its device, for comparing kernels: no data is fetched and nothing is read back.

use super::{TrainError, inference_program, initial_weights, load_weights, training_program};
use crate::{
    backend::{Backend, Session},
    graph::{Graph, ValueId, fuse},
    record::TrainConfig,
    stats::Generator,
    strategy::{Calibration, watch_inputs},
    vocab::{Compression, DType, Layout, Phase, Precision},
};
use std::time::Instant;

/// Length of a sample.
const SAMPLE_S: f64 = 0.05;

/// Different words in random texts; every model's vocabulary has as many.
const WORDS: usize = 1000;

/// A step, ready for the clock.
pub struct StepBench {
    session: Box<dyn Session>,
    /// Steps in a sample.
    steps: usize,
}

impl StepBench {
    /// Loads the step of `forward` in `phase` with random rows and weights, and runs it until its kernels are loaded.
    pub fn new(
        backend: &dyn Backend,
        forward: &Graph,
        phase: Phase,
        precision: Precision,
        config: &TrainConfig,
    ) -> Result<StepBench, TrainError> {
        let weights = initial_weights(forward, config.init, config.first_seed);
        let mut generator = Generator::new(config.first_seed);
        let mut upload_rows = |session: &mut dyn Session, x: ValueId| {
            let value = session.program().value(x);
            let (count, is_text) = (value.elements(), value.dtype == DType::I32);
            match is_text {
                true => session.upload_i32(x, &(0..count).map(|_| generator.below(WORDS) as i32).collect::<Vec<_>>()),
                false => session.upload_f32(x, &(0..count).map(|_| generator.unit() as f32).collect::<Vec<_>>()),
            }
        };
        let session = match phase {
            Phase::Train => {
                let training = training_program(forward, precision, config, Layout::SINGLE)?;
                let mut session = backend.load(training.program.clone(), None)?;
                load_weights(&mut *session, &weights)?;
                upload_rows(&mut *session, training.x[0])?;
                let logits = forward.output("logits").ok_or(TrainError::NoOutput { name: "logits" })?;
                let [rows, classes] = [0, 1].map(|axis| forward.shape(logits)[axis]);
                session.upload_i32(training.labels[0], &(0..rows).map(|row| (row % classes) as i32).collect::<Vec<_>>())?;
                if let Some(scale) = training.scale {
                    scale.start(&mut *session)?;
                }
                session
            }
            Phase::Infer => {
                // No rows to measure ranges on, and any will do for the clock.
                let ranges = || {
                    let mut calibration = Calibration::default();
                    let watched = watch_inputs(&fuse(forward.clone(), false));
                    let names = watched.outputs.iter().filter_map(|(name, _)| name.strip_prefix("into "));
                    names.for_each(|name| calibration.observe(name, 1, &[1.0]));
                    Ok(calibration)
                };
                let inference = inference_program(forward, &weights, precision, Compression::NONE, ranges)?;
                let mut session = backend.load(inference.program.clone(), None)?;
                load_weights(&mut *session, &inference.weights)?;
                upload_rows(&mut *session, inference.x)?;
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
