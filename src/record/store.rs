//! `run.jsonl`: an append-only log, one JSON object a line, flushed to the disk line by line.
//!
//! A kill can tear only the last line; reading drops a torn last line and `Log::resume` cuts it off before appending.
//! A broken line anywhere else is an error: nothing is guessed.

use super::{Line, RunEnd, RunHeader, RunRecord, SCHEMA_VERSION, StoredRun};
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {doing} `{}`: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("`{}` line {line} is not a record: {reason}", path.display())]
    Broken { path: PathBuf, line: usize, reason: String },
    #[error("`{}` has no finished header line: nothing was measured, so start it anew without --resume", path.display())]
    Empty { path: PathBuf },
    #[error("`{}` is being written by another run", path.display())]
    Busy { path: PathBuf },
    #[error("`{}` has schema version {found}; this program reads up to {SCHEMA_VERSION}", path.display())]
    Version { path: PathBuf, found: u64 },
}

/// The log of a run that is being written.
pub struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    /// A new log with its header; an older file of that name is kept beside it as `run.jsonl.previous`. The log appears with its header
    /// or not at all.
    ///
    /// # Errors
    /// `Busy` where another process writes a log of this name, `Io` where the disk does not take it.
    pub fn create(path: &Path, header: &RunHeader) -> Result<Log, StoreError> {
        let fail = |doing| move |source| StoreError::Io { doing, path: path.to_path_buf(), source };
        if path.exists() {
            let earlier = File::open(path).map_err(fail("open the earlier"))?;
            lock(&earlier, path)?;
            std::fs::rename(path, path.with_extension("jsonl.previous")).map_err(fail("keep the earlier"))?;
        }
        let partial = path.with_extension(format!("jsonl.partial-{}", std::process::id()));
        let mut log = Log::locked(File::create(&partial).map_err(fail("create"))?, path)?;
        let written = log.append(&Line::Run(Box::new(header.clone())));
        let named = written.and_then(|()| std::fs::rename(&partial, path).map_err(fail("create")));
        if let Err(error) = named {
            std::fs::remove_file(&partial).ok();
            return Err(error);
        }
        Ok(log)
    }

    /// Opens a log to go on; a torn last line is cut off.
    ///
    /// # Errors
    /// As `read`, and `Busy` where another process goes on with it.
    pub fn resume(path: &Path) -> Result<(Log, StoredRun), StoreError> {
        let fail = |doing| move |source| StoreError::Io { doing, path: path.to_path_buf(), source };
        let mut log = Log::locked(OpenOptions::new().write(true).open(path).map_err(fail("open"))?, path)?;
        let (stored, whole) = read_with_length(path)?;
        log.file.set_len(whole).map_err(fail("cut the torn line of"))?;
        log.file.seek(SeekFrom::End(0)).map_err(fail("open"))?;
        Ok((log, stored))
    }

    fn locked(file: File, path: &Path) -> Result<Log, StoreError> {
        lock(&file, path)?;
        Ok(Log { file, path: path.to_path_buf() })
    }

    /// Writes one line and waits until the disk has it.
    pub fn append(&mut self, line: &Line) -> Result<(), StoreError> {
        let mut text = serde_json::to_string(line).expect("records are plain data: serialising them cannot fail");
        text.push('\n');
        let fail = |source| StoreError::Io { doing: "append to", path: self.path.clone(), source };
        let start = self.file.stream_position().map_err(fail)?;
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // A full disk leaves half a line: take it back so that the lines before stay readable.
            self.file.set_len(start).ok();
            self.file.seek(SeekFrom::Start(start)).ok();
            return Err(StoreError::Io { doing: "append to", path: self.path.clone(), source });
        }
        Ok(())
    }
}

/// The lock belongs to the open file, and a process that another thread starts at this moment holds that open file too until it has
/// become its program: closing alone would leave the log busy for as long.
impl Drop for Log {
    fn drop(&mut self) {
        self.file.unlock().ok();
    }
}

/// Held until it is given back or every copy of the open file is closed, also by a kill. A file system without locks is written without one.
fn lock(file: &File, path: &Path) -> Result<(), StoreError> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(StoreError::Busy { path: path.to_path_buf() }),
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
}

/// Reads a log back.
pub fn read(path: &Path) -> Result<StoredRun, StoreError> {
    read_with_length(path).map(|(run, _)| run)
}

/// The run, and the length in bytes of its whole lines.
fn read_with_length(path: &Path) -> Result<(StoredRun, u64), StoreError> {
    let mut bytes = Vec::new();
    File::open(path).and_then(|mut f| f.read_to_end(&mut bytes)).map_err(|source| StoreError::Io {
        doing: "read",
        path: path.to_path_buf(),
        source,
    })?;
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let mut run: Option<StoredRun> = None;
    for (index, raw) in bytes[..whole].split(|b| *b == b'\n').enumerate().filter(|(_, raw)| !raw.is_empty()) {
        let broken = |reason: String| StoreError::Broken { path: path.to_path_buf(), line: index + 1, reason };
        if run.is_none() {
            // The version is looked at before the shape, so that a newer file is named as such.
            let value: serde_json::Value = serde_json::from_slice(raw).map_err(|e| broken(e.to_string()))?;
            let found = value["schema_version"].as_u64().unwrap_or(0);
            if found > u64::from(SCHEMA_VERSION) {
                return Err(StoreError::Version { path: path.to_path_buf(), found });
            }
        }
        match (serde_json::from_slice(raw).map_err(|e| broken(e.to_string()))?, &mut run) {
            (Line::Run(header), slot @ None) => {
                *slot =
                    Some(StoredRun { header: *header, records: Vec::new(), seeds: Vec::new(), warnings: Vec::new(), end: None });
            }
            (Line::Run(_), Some(_)) => return Err(broken("a second header".into())),
            (_, None) => return Err(broken("expected the header first".into())),
            (Line::Seed(seed), Some(run)) => run.seeds.push(*seed),
            (Line::Candidate(record), Some(run)) => run.accept(*record),
            (Line::Warning { text }, Some(run)) => run.warnings.push(text),
            (Line::End(end), Some(run)) => run.end = Some(end),
        }
    }
    let run = run.ok_or_else(|| StoreError::Empty { path: path.to_path_buf() })?;
    Ok((run, whole as u64))
}

impl StoredRun {
    /// Adds a record; it takes the place of an earlier one of the same candidate.
    pub fn accept(&mut self, record: RunRecord) {
        let id = record.candidate.id();
        self.records.retain(|r| r.candidate.id() != id);
        self.records.push(record);
        self.end = None::<RunEnd>;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Candidate, Constraints, CostBasis, Environment, Goal, OptimizerConfig, Status, TrainConfig};
    use crate::vocab::{Compression, Device, Layout, Metric, Objective, OptimizerKind, Phase, Precision};

    fn header() -> RunHeader {
        RunHeader {
            schema_version: SCHEMA_VERSION,
            scenario: "s".into(),
            question: String::new(),
            scenario_text: "name = \"s\"".into(),
            config_hash: "00".into(),
            command: "advisor run s.toml".into(),
            started_unix_s: 0,
            environment: Environment::default(),
            quick: false,
            phases: vec![Phase::Infer],
            classes: vec!["0".into(), "1".into()],
            test_labels: vec![0, 1],
            train_rows: 4,
            test_rows: 2,
            unit: "image".into(),
            model: "mlp".into(),
            data: "mnist".into(),
            train: TrainConfig::new(1, OptimizerConfig::new(OptimizerKind::Sgd, 0.05), 64),
            goal: Goal { constraints: Constraints::default(), objective: Objective::Cost },
            cost: CostBasis::Auto,
            primary_metric: Metric::Accuracy,
        }
    }

    fn record(batch_size: usize) -> RunRecord {
        let candidate = Candidate {
            phase: Phase::Infer,
            device: Device::Cpu,
            precision: Precision::Fp32,
            compression: Compression::INT8,
            layout: Layout::SINGLE,
            batch_size,
            threads: 1,
        };
        RunRecord::without_result(candidate, Status::Skipped, "a reason".into())
    }

    #[test]
    fn a_log_torn_at_any_byte_keeps_every_whole_line_and_resumes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.jsonl");
        let mut log = Log::create(&path, &header()).unwrap();
        for batch in [1, 64] {
            log.append(&Line::Candidate(Box::new(record(batch)))).unwrap();
        }
        drop(log);
        let bytes = std::fs::read(&path).unwrap();
        let line_ends: Vec<_> = bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1).collect();
        for cut in 0..=bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let whole = line_ends.iter().filter(|end| **end <= cut).count();
            if whole == 0 {
                assert!(matches!(read(&path), Err(StoreError::Empty { .. })), "cut at {cut}");
                continue;
            }
            let (mut log, stored) = Log::resume(&path).unwrap();
            assert_eq!(stored.records.len(), whole - 1, "cut at {cut}");
            log.append(&Line::Candidate(Box::new(record(256)))).unwrap();
            assert_eq!(read(&path).unwrap().records.len(), whole, "cut at {cut}");
        }
    }

    #[test]
    fn a_log_has_one_writer_and_appears_with_its_header() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.jsonl");
        let log = Log::create(&path, &header()).unwrap();
        assert!(read(&path).is_ok(), "whole from the start");
        assert!(matches!(Log::resume(&path), Err(StoreError::Busy { .. })));
        assert!(matches!(Log::create(&path, &header()), Err(StoreError::Busy { .. })));
        drop(log);
        Log::resume(&path).unwrap();
        Log::create(&path, &header()).unwrap();
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[test]
    fn a_finished_log_is_free_while_a_process_that_is_being_started_still_holds_the_open_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.jsonl");
        let created = Log::create(&path, &header()).unwrap();
        let held_by_a_fork = created.file.try_clone().unwrap();
        drop(created);
        let (resumed, _) = Log::resume(&path).unwrap();
        drop((resumed, held_by_a_fork));

        std::fs::write(&path, "torn").unwrap();
        assert!(matches!(Log::resume(&path), Err(StoreError::Empty { .. })));
        assert!(matches!(Log::resume(&path), Err(StoreError::Empty { .. })), "a refusal leaves it free");
    }

    #[test]
    fn a_broken_line_in_the_middle_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.jsonl");
        let mut log = Log::create(&path, &header()).unwrap();
        log.append(&Line::Warning { text: "w".into() }).unwrap();
        let text = std::fs::read_to_string(&path).unwrap().replace("\"warning\"", "\"warming\"");
        std::fs::write(&path, text).unwrap();
        assert!(matches!(read(&path), Err(StoreError::Broken { line: 2, .. })));
    }

    #[test]
    fn a_newer_schema_is_refused_by_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.jsonl");
        std::fs::write(&path, "{\"kind\":\"run\",\"schema_version\":99}\n").unwrap();
        assert!(matches!(read(&path), Err(StoreError::Version { found: 99, .. })));
    }

    #[test]
    fn the_later_record_of_a_candidate_stands() {
        let mut run = StoredRun { header: header(), records: vec![], seeds: vec![], warnings: vec![], end: None };
        run.accept(record(1));
        let mut later = record(1);
        later.reason = Some("later".into());
        run.accept(later.clone());
        assert_eq!(run.records, vec![later]);
    }

    #[test]
    fn a_split_of_version_1_is_read_and_what_it_did_not_tell_apart_is_not_known() {
        let text = r#"{"compute":0.004,"memory":0.003,"communication":0.002,"data":0.0005,"host":0.0005}"#;
        let split: crate::record::TimeSplit = serde_json::from_str(text).unwrap();
        assert_eq!((split.bubble, split.launch, split.step, split.excess()), (None, None, None, None));
        assert!((split.sum().0 - 0.01).abs() < 1e-12);
    }
}
