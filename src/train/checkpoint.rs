//! Trained weights on disk, named by what they were trained from: model, data, configuration, seed.
//!
//! Format: one line of JSON (version, names and shapes, the seed run that made them), then all values as little-endian f32.

use crate::{
    record::{SeedRun, TrainConfig},
    strategy::{Tensor, Weights},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("cannot {doing} checkpoint `{}`: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error("`{}` is not a checkpoint: {reason}; delete it and it will be trained again", path.display())]
    Broken { path: PathBuf, reason: String },
}

/// Everything that decides what weights come out of training, but for rounding; the program itself is added by `hash`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Identity<'a> {
    pub model: &'a str,
    /// SHA-256 of the data's content.
    pub data: &'a str,
    pub train: &'a TrainConfig,
    pub precision: crate::vocab::Precision,
    pub seed: u64,
    /// Of weights that were trained again: the pruning that came before it, or meanwhile. They began as those of the same training.
    pub pruning: Option<String>,
}

impl Identity<'_> {
    /// SHA-256 (hex).
    pub fn hash(&self) -> String {
        // Neither the number of seeds nor a target changes what one seed's run makes, nor does what comes after it.
        let tune_epochs = self.pruning.as_ref().map_or(0, |_| self.train.tune_epochs);
        let train = TrainConfig { seeds: 1, first_seed: self.seed, target: None, tune_epochs, ..self.train.clone() };
        let text = serde_json::to_string(&Identity { train: &train, ..self.clone() }).expect("plain data");
        // Another program may train otherwise from the same words.
        let program = concat!(env!("CARGO_PKG_VERSION"), " ");
        let commit = option_env!("ADVISOR_COMMIT").unwrap_or_default();
        Sha256::digest(format!("checkpoint {VERSION} {program}{commit} {text}")).iter().map(|b| format!("{b:02x}")).collect()
    }
}

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    tensors: Vec<(String, Vec<usize>)>,
    run: SeedRun,
}

/// Weights with the run that made them.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    pub weights: Weights,
    pub run: SeedRun,
}

impl Checkpoint {
    /// Where the checkpoint of `hash` lies in `folder`.
    pub fn path(folder: &Path, hash: &str) -> PathBuf {
        folder.join(format!("{hash}.ckpt"))
    }

    /// Writes to a temporary name and renames, so that a file of this name is always whole.
    pub fn save(&self, path: &Path) -> Result<(), CheckpointError> {
        let fail = |doing| move |source| CheckpointError::Io { doing, path: path.to_path_buf(), source };
        let tensors = self.weights.tensors.iter().map(|t| (t.name.clone(), t.shape.clone())).collect();
        let header = Header { version: VERSION, tensors, run: self.run.clone() };
        let mut bytes = serde_json::to_vec(&header).expect("plain data");
        bytes.push(b'\n');
        self.weights.tensors.iter().flat_map(|t| &t.data).for_each(|v| bytes.extend(v.to_le_bytes()));
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(fail("make the folder of"))?;
        }
        let partial = path.with_extension(format!("partial-{}", std::process::id()));
        let write = || -> std::io::Result<()> {
            let mut file = fs::File::create(&partial)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&partial, path)
        };
        write().map_err(|source| {
            fs::remove_file(&partial).ok();
            fail("write")(source)
        })
    }

    pub fn load(path: &Path) -> Result<Checkpoint, CheckpointError> {
        let bytes = fs::read(path).map_err(|source| CheckpointError::Io { doing: "read", path: path.to_path_buf(), source })?;
        let broken = |reason: String| CheckpointError::Broken { path: path.to_path_buf(), reason };
        let end = bytes.iter().position(|b| *b == b'\n').ok_or_else(|| broken("it has no header line".into()))?;
        let header: Header = serde_json::from_slice(&bytes[..end]).map_err(|e| broken(e.to_string()))?;
        if header.version != VERSION {
            return Err(broken(format!("version {} where {VERSION} was expected", header.version)));
        }
        let count = |shape: &[usize]| shape.iter().try_fold(1usize, |n, extent| n.checked_mul(*extent));
        let all = header.tensors.iter().try_fold(0usize, |sum, (_, shape)| sum.checked_add(count(shape)?));
        let data = &bytes[end + 1..];
        if all.and_then(|n| n.checked_mul(4)) != Some(data.len()) {
            return Err(broken(format!("{} bytes of values, but its header names {all:?} values", data.len())));
        }
        let mut values = data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let tensors = header.tensors.into_iter().map(|(name, shape)| {
            let data = values.by_ref().take(count(&shape).unwrap_or(0)).collect();
            Tensor { name, shape, data }
        });
        Ok(Checkpoint { weights: Weights { tensors: tensors.collect() }, run: header.run })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_after_a_training_names_its_own_weights_alone() {
        use crate::{record::OptimizerConfig, vocab};
        let optimizer = OptimizerConfig::new(vocab::OptimizerKind::Sgd, 0.05);
        let train = TrainConfig { tune_epochs: 2, ..TrainConfig::new(1, optimizer, 64) };
        let longer = TrainConfig { tune_epochs: 3, ..train.clone() };
        let hash = |train: &TrainConfig, pruning: Option<&str>| {
            let pruning = pruning.map(str::to_string);
            Identity { model: "mlp", data: "d", train, precision: vocab::Precision::Fp32, seed: 1, pruning }.hash()
        };
        assert_eq!(hash(&train, None), hash(&longer, None));
        let tuned = [
            hash(&train, None),
            hash(&train, Some("2:4+tuned")),
            hash(&longer, Some("2:4+tuned")),
            hash(&train, Some("magnitude:0.8+tuned")),
        ];
        assert_eq!(tuned.iter().collect::<std::collections::HashSet<_>>().len(), 4);
    }

    #[test]
    fn a_checkpoint_reads_back_whole_and_a_cut_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = Checkpoint::path(&dir.path().join("deeper"), "abc");
        let tensor = |name: &str, shape: &[usize]| {
            let data = (0..shape.iter().product()).map(|k: usize| k as f32 / 3.0).collect();
            Tensor { name: name.into(), shape: shape.to_vec(), data }
        };
        let weights = Weights { tensors: vec![tensor("w", &[2, 3]), tensor("b", &[3])] };
        let run = SeedRun {
            seed: 3,
            epochs: vec![],
            loss_curve: vec![(0, 2.25)],
            time_to_target: None,
            metric: 0.5,
            skipped_steps: 0,
            failure: None,
            checkpoint: "abc".into(),
        };
        let checkpoint = Checkpoint { weights, run };
        checkpoint.save(&path).unwrap();
        assert_eq!(Checkpoint::load(&path).unwrap(), checkpoint);
        let bytes = fs::read(&path).unwrap();
        for cut in 0..bytes.len() {
            fs::write(&path, &bytes[..cut]).unwrap();
            assert!(matches!(Checkpoint::load(&path), Err(CheckpointError::Broken { .. })), "cut at {cut}");
        }
    }
}
