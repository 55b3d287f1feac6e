//! `advisor bench-step`: times steps of simple-cnn on MNIST's digits on command of a comparing script (hidden).
//!
//! One request a line: `{"threads":1,"batch_size":64,"phase":"train","precision":"fp32","layout":"single",
//! "seconds":0.5}`; one answer a line:
//! `{"images_per_s":..,"samples_s":[..]}` or `{"error":".."}`. Prepared candidates are kept between requests.

use super::Exit;
use crate::{
    data::{DataSet, DataSource},
    models,
    record::{Candidate, OptimizerConfig, TrainConfig},
    train::{Predictor, StepTimes, TrainError, Trainer},
    vocab::{Compression, Device, Layout, OptimizerKind, Phase, Precision},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{collections::HashMap, io::BufRead, sync::Arc};

#[derive(Deserialize)]
struct Request {
    threads: usize,
    batch_size: usize,
    phase: Phase,
    precision: Precision,
    /// One rank where it is left out.
    #[serde(default = "single")]
    layout: Layout,
    seconds: f64,
}

fn single() -> Layout {
    Layout::SINGLE
}

enum Ready {
    Train(Box<Trainer>),
    Infer(Box<Predictor>),
}

pub fn run() -> anyhow::Result<Exit> {
    let set = Arc::new(DataSet::load(&DataSource::Shipped("mnist".into()), &super::places(None))?);
    let mut ready: HashMap<String, (Ready, f64)> = HashMap::new();
    for line in std::io::stdin().lock().lines() {
        let answer = answer(&line?, &set, &mut ready).unwrap_or_else(|error| json!({ "error": format!("{error:#}") }));
        super::print(&answer.to_string())?;
    }
    Ok(Exit::Done)
}

fn answer(line: &str, set: &Arc<DataSet>, ready: &mut HashMap<String, (Ready, f64)>) -> anyhow::Result<Value> {
    let request: Request = serde_json::from_str(line)?;
    let candidate = Candidate {
        phase: request.phase,
        device: Device::Cpu,
        precision: request.precision,
        compression: Compression::NONE,
        layout: request.layout,
        batch_size: request.batch_size,
        threads: request.threads,
    };
    let id = candidate.id();
    if !ready.contains_key(&id) {
        let made = prepare(&candidate, set)?;
        ready.insert(id.clone(), (made, 0.0));
    }
    let (work, step_s) = ready.get_mut(&id).expect("inserted above");
    let mut all = StepTimes::default();
    while all.total_s < request.seconds {
        // The first series finds out how long a step is.
        let left = request.seconds - all.total_s;
        let count = if *step_s > 0.0 { ((left / *step_s).ceil() as usize).max(1) } else { 2 };
        let times = match work {
            Ready::Train(trainer) => trainer.steps(count)?,
            Ready::Infer(predictor) => predictor.steps(&set.test, count)?,
        };
        let first = *step_s == 0.0;
        *step_s = times.total_s / times.steps as f64;
        if !first {
            all.step_s.extend(times.step_s);
            all.steps += times.steps;
            all.total_s += times.total_s;
        }
    }
    if let Ready::Train(trainer) = work {
        trainer.drop_losses();
    }
    Ok(json!({ "images_per_s": all.steps as f64 * request.batch_size as f64 / all.total_s, "samples_s": all.step_s }))
}

fn prepare(candidate: &Candidate, set: &Arc<DataSet>) -> Result<Ready, TrainError> {
    let model = models::find("simple-cnn").expect("it stands in the table");
    let config = timing_config(candidate.batch_size);
    Ok(match candidate.phase {
        Phase::Train => Ready::Train(Box::new(Trainer::new(model, set.clone(), candidate, &config, 1)?)),
        Phase::Infer => {
            // An epoch of training first: how many activations are zero decides what a kernel may skip, and fresh weights have too many.
            let first = Candidate { phase: Phase::Train, precision: Precision::Fp32, batch_size: 32, ..candidate.clone() };
            let mut trainer = Trainer::new(model, set.clone(), &first, &TrainConfig { batch_size: 32, ..config }, 1)?;
            trainer.steps(set.train.rows() / 32)?;
            let weights = trainer.weights()?;
            Ready::Infer(Box::new(Predictor::new(model, set, &weights, candidate)?))
        }
    })
}

/// How models are trained whose steps are only timed.
pub(super) fn timing_config(batch_size: usize) -> TrainConfig {
    TrainConfig::new(1, OptimizerConfig::new(OptimizerKind::Sgd, 0.01), batch_size)
}
