//! Models, data and the layouts whose losses and gradients must be one rank's, wherever the ranks live.
#![allow(dead_code)]

use advisor::{
    comm::Place,
    data::{DataSet, DataSource},
    models::find,
    record::{Candidate, OptimizerConfig, TrainConfig},
    strategy::{Tensor, Weights},
    train::Trainer,
    vocab::{Compression, Device, Layout, OptimizerKind, Phase, Precision, Schedule},
};
use std::{path::PathBuf, sync::Arc};

/// Uneven parts among them: 32 channels, 256 and 128 columns and 4 heads over 3 ranks.
pub const LAYOUTS: &[&str] = &[
    "dp=2",
    "dp=3",
    "dp=4",
    "zero=2",
    "zero=3",
    "zero=4",
    "tp=2",
    "tp=3",
    "tp=4",
    "dp=2,tp=2",
    "zero=2,tp=2",
    "pp=2",
    "pp=3",
    "gpipe=2",
    "gpipe=3",
    "dp=2,pp=2",
    "tp=2,pp=2",
    "tp=3,gpipe=2",
    "recompute",
    "dp=2,recompute",
    "tp=2,pp=2,recompute",
];

pub fn mnist() -> Arc<DataSet> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    Arc::new(DataSet::load(&DataSource::Shipped("mnist".into()), &[root]).unwrap())
}

pub fn config(kind: OptimizerKind, learning_rate: f64, batch_size: usize) -> TrainConfig {
    TrainConfig { schedule: Schedule::Cosine, ..TrainConfig::new(4, OptimizerConfig::new(kind, learning_rate), batch_size) }
}

pub fn candidate(phase: Phase, precision: Precision, layout: Layout, batch_size: usize) -> Candidate {
    Candidate { phase, device: Device::Cpu, precision, compression: Compression::NONE, layout, batch_size, threads: 2 }
}

/// A few texts, so that the vocabulary and with it the model is small.
pub fn texts() -> Arc<DataSet> {
    let words = ["good", "bad", "film", "plot", "the", "a", "dull", "fine", "very", "not"];
    let mut rows = "text,label\n".to_string();
    for row in 0..240usize {
        let text: Vec<&str> = (0..5 + row % 4).map(|k| words[(row * 7 + k * k * 3 + row / 10) % words.len()]).collect();
        rows += &format!("{},{}\n", text.join(" "), row * 7 % 10 % 2);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("texts.csv");
    std::fs::write(&path, rows).unwrap();
    let (text, label) = ("text".to_string(), "label".to_string());
    let source = DataSource::Text { path, text, label, split: None, test_share: 0.2, length: 8, vocabulary: 100 };
    Arc::new(DataSet::load(&source, &[]).unwrap())
}

/// Losses and weights after some steps of a layout with as many threads as ranks.
pub fn trained(
    model: &str,
    set: &Arc<DataSet>,
    precision: Precision,
    layout: &str,
    config: &TrainConfig,
    steps: usize,
) -> (Vec<f64>, Weights) {
    trained_at(&Place::Threads, model, set, precision, layout, config, steps)
}

/// The same with ranks that live at `place`.
pub fn trained_at(
    place: &Place,
    model: &str,
    set: &Arc<DataSet>,
    precision: Precision,
    layout: &str,
    config: &TrainConfig,
    steps: usize,
) -> (Vec<f64>, Weights) {
    let layout: Layout = layout.parse().unwrap();
    let candidate = Candidate { threads: layout.ranks(), ..candidate(Phase::Train, precision, layout, config.batch_size) };
    let mut trainer = Trainer::at(place, find(model).unwrap(), set.clone(), &candidate, config, 5).unwrap();
    trainer.steps(steps).unwrap();
    (trainer.take_losses().unwrap(), trainer.weights().unwrap())
}

/// Norm of the difference of two tensors.
pub fn distance(a: &Tensor, b: &Tensor) -> f64 {
    a.data.iter().zip(&b.data).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}

/// The models, each with its data.
pub fn models() -> [(&'static str, Arc<DataSet>); 3] {
    let images = mnist();
    [("simple-cnn", images.clone()), ("mlp", images), ("transformer", texts())]
}

/// A model before and after one step of plain gradient descent on one rank, at a large rate: what changes is the gradient.
pub struct OneRank {
    model: &'static str,
    set: Arc<DataSet>,
    config: TrainConfig,
    before: Weights,
    loss: f64,
    after: Weights,
}

impl OneRank {
    pub fn new(model: &'static str, set: &Arc<DataSet>) -> OneRank {
        let mut config = config(OptimizerKind::Sgd, 8.0, 24);
        (config.optimizer.momentum, config.schedule) = (0.0, Schedule::Constant);
        let (_, before) = trained(model, set, Precision::Fp32, "single", &config, 0);
        let (losses, after) = trained(model, set, Precision::Fp32, "single", &config, 1);
        OneRank { model, set: set.clone(), config, before, loss: losses[0], after }
    }

    /// Takes the same step with ranks that live at `place`, and compares.
    pub fn holds_for(&self, layout: &str, place: &Place) {
        let model = self.model;
        let (split_losses, split) = trained_at(place, model, &self.set, Precision::Fp32, layout, &self.config, 1);
        let error = (self.loss - split_losses[0]).abs() / self.loss;
        assert!(error <= 1e-5, "{model} {layout}: the loss differs by {error:e}");
        let changes = self.before.tensors.iter().zip(&self.after.tensors).map(|(before, after)| distance(before, after));
        let changes: Vec<f64> = changes.collect();
        let largest = changes.iter().copied().fold(0.0, f64::max);
        assert!(largest > 0.0, "{model}: a step changes something");
        for ((change, a), b) in changes.iter().zip(&self.after.tensors).zip(&split.tensors) {
            // A key's bias shifts all scores of a query alike: its gradient is zero but for roundings.
            let error = distance(a, b) / change.max(1e-3 * largest);
            assert!(error <= 1e-5, "{model} {layout}: the gradient of {} differs by {error:e}", a.name);
        }
    }
}
