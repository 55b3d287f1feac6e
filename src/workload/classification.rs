//! One class a row, image or text: trains or answers, one candidate a process.

use super::{
    programs::{input_bytes, untimed},
    time_split::{Pace, over_ranks, rank_split, remark},
};
use crate::{
    backend::{OpTime, cuda},
    comm::Place,
    data::{DataSet, Inputs, Part},
    harness::{Described, Request, Response, Setup, WindowEnergy, Work},
    measure::{EnergyCounter, GpuSensor, SpeedProbe, forget_peak_resident, peak_resident},
    models::{self, Model},
    record::{Candidate, OpProfile, Quality},
    stats::{StopRule, median},
    strategy::{Tensor, Weights},
    train::{
        ApartStep, Checkpoint, Identity, Predictor, StepTimes, Team, TrainError, Trainer, lead, scaled_rate, train_aware, tuner,
    },
    units::{Bytes, Flops, Seconds},
    vocab::{Compression, Device, Layout, Phase, Precision, Pruning, Quantization, Rounding, Tuning},
};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, sync::Arc, time::Instant};

/// Steps that are taken apart: so many at least, and of short steps as many as fit into `PROFILE_S`, at most so many.
const PROFILED_STEPS: std::ops::RangeInclusive<usize> = 15..=500;

/// Short beside the blocks of a candidate, which take a second in all, and long beside a slice of the system's scheduler.
const PROFILE_S: f64 = 0.1;

/// Kept means of warm-up chunks among which stability is judged.
const STABLE_WINDOW: usize = 8;

/// A candidate's process.
#[derive(Default)]
pub struct Bench {
    place: Place,
    ready: Option<Ready>,
}

impl Bench {
    /// With the ranks of its candidate where `place` says.
    pub fn at(place: Place) -> Bench {
        Bench { place, ready: None }
    }
}

struct Ready {
    place: Place,
    setup: Setup,
    model: &'static Model,
    set: Arc<DataSet>,
    work: Doing,
    /// Median seconds a step, from the latest steps.
    step_s: f64,
    /// Of the processor, for candidates that run on it.
    counter: Option<EnergyCounter>,
    probe: Option<SpeedProbe>,
    /// Of the GPUs, for candidates that run on them.
    sensor: Option<GpuSensor>,
    throttled: Throttled,
    notes: Vec<String>,
    checkpoint: Option<String>,
}

/// What held a GPU's clocks down at the end of blocks.
#[derive(Default)]
struct Throttled {
    blocks: usize,
    of_blocks: usize,
    lowest_share: f64,
    reasons: Vec<&'static str>,
}

enum Doing {
    Train(Box<Trainer>),
    Infer(Box<Predictor>),
}

impl Doing {
    fn team(&mut self) -> &mut Team {
        match self {
            Doing::Train(trainer) => trainer.team(),
            Doing::Infer(predictor) => predictor.team(),
        }
    }
}

impl Work for Bench {
    fn answer(&mut self, request: Request) -> Result<Response, String> {
        let start = Instant::now();
        let busy = || start.elapsed().as_secs_f64();
        if let Request::Prepare(setup) = request {
            self.ready = Some(Ready::new(*setup, self.place.clone()).map_err(|e| e.to_string())?);
            return Ok(Response::Prepared { busy_s: busy() });
        }
        let ready = self.ready.as_mut().ok_or("the first request must be `prepare`")?;
        match request {
            Request::Prepare(_) => unreachable!("answered above"),
            Request::Train { seed } => {
                let (run, quality) = ready.train(seed).map_err(|e| e.to_string())?;
                Ok(Response::Trained { run: Box::new(run), quality: Box::new(quality), busy_s: busy() })
            }
            Request::WarmUp { least, most } => {
                let (steps, warm_up_s, stable) = ready.warm_up(least, most).map_err(|e| e.to_string())?;
                Ok(Response::Warm { steps, warm_up_s, stable, busy_s: busy() })
            }
            Request::Block { target } => {
                let before = ready.probe.as_mut().map(SpeedProbe::read);
                let (times, energy_j) = ready.block(target).map_err(|e| e.to_string())?;
                let behind = ready.probe.as_mut().map(SpeedProbe::read);
                let machine_speed = before.zip(behind).map(|(before, behind)| before.between(behind));
                let StepTimes { step_s, steps, total_s } = times;
                Ok(Response::Block { step_s, steps, total_s, energy_j, machine_speed, busy_s: busy() })
            }
            Request::Describe => {
                let described = ready.describe().map_err(|e| e.to_string())?;
                Ok(Response::Described { described: Box::new(described), busy_s: busy() })
            }
        }
    }
}

/// What the ranks of a candidate compute on, each process telling of its own.
#[derive(Serialize, Deserialize)]
struct UsedDevices {
    notes: Vec<String>,
    uuids: Vec<String>,
    processes: Vec<u32>,
}

impl UsedDevices {
    /// Of all ranks, wherever they live.
    fn find(place: &Place, candidate: &Candidate) -> Result<UsedDevices, Box<dyn std::error::Error>> {
        let mut own = UsedDevices { notes: Vec::new(), uuids: Vec::new(), processes: vec![std::process::id()] };
        for number in place.numbers(candidate.layout) {
            let Device::Cuda(ordinal) = place.device(candidate.device, number) else { continue };
            own.notes.push(format!("ran on {}", cuda::describe(ordinal)?));
            if candidate.precision == Precision::Fp8 && !cuda::multiplies_8_bits(ordinal)? {
                own.notes
                    .push("this GPU's products are of rounded numbers in 16 bits: its times are not those of fp8".to_string());
            }
            own.uuids.extend(cuda::uuid(ordinal));
        }
        let mut all = UsedDevices { notes: Vec::new(), uuids: Vec::new(), processes: Vec::new() };
        for bytes in place.share(serde_json::to_vec(&own)?)? {
            let UsedDevices { notes, uuids, processes } = serde_json::from_slice(&bytes)?;
            all.notes.extend(notes);
            all.uuids.extend(uuids);
            all.processes.extend(processes);
        }
        Ok(all)
    }
}

impl Ready {
    fn new(setup: Setup, place: Place) -> Result<Ready, Box<dyn std::error::Error>> {
        let model = models::find(&setup.model).ok_or_else(|| format!("no model is called `{}`", setup.model))?;
        let mut set = Arc::new(DataSet::load(&setup.data, &setup.search_from)?);
        let (mut notes, mut checkpoint) = (Vec::new(), None);
        let candidate = &setup.candidate;
        let on_cuda = candidate.device.is_cuda();
        if !on_cuda && candidate.precision == Precision::Bf16 && !crate::backend::cpu::has_bf16_products() {
            notes.push("this processor has no bf16 arithmetic: values are widened to fp32 in every product".to_string());
        }
        if !on_cuda && candidate.precision == Precision::Fp16 {
            notes.push("this processor has no fp16 arithmetic in use: values are widened to fp32 in every product".to_string());
        }
        let work = match candidate.phase {
            Phase::Train => {
                let rate = scaled_rate(&setup.train, candidate.batch_size);
                if candidate.batch_size != setup.train.batch_size {
                    let given = setup.train.optimizer.learning_rate;
                    notes.push(format!(
                        "learning rate {rate:.3e}, scaled from {given:.3e} at batch {} to batch {}",
                        setup.train.batch_size, candidate.batch_size
                    ));
                }
                let first = setup.train.first_seed;
                Doing::Train(Box::new(Trainer::at(&place, model, set.clone(), candidate, &setup.train, first)?))
            }
            Phase::Infer => {
                let (hash, weights, note) = shared_weights(&place, &setup, model, &set)?;
                notes.extend(note);
                checkpoint = Some(hash);
                notes.extend(candidate.compression.quantization.and_then(|q| calibration_note(q, set.train.rows())));
                let predictor = Predictor::at(&place, model, &set, &weights, candidate)?;
                notes.extend(predictor.program().notes.iter().cloned());
                // Answering needs no training rows.
                let mut rest = Arc::try_unwrap(set).unwrap_or_else(|shared| (*shared).clone());
                rest.train = Part { inputs: Inputs::Images(Vec::new()), labels: Vec::new() };
                set = Arc::new(rest);
                Doing::Infer(Box::new(predictor))
            }
        };
        // What one host has used is not what the ranks of several have.
        let is_one_host = place.hosts().is_none_or(|hosts| hosts.iter().all(|host| *host == hosts[0]));
        let (counter, sensor) = match candidate.device {
            Device::Cuda(_) => {
                let used = UsedDevices::find(&place, candidate)?;
                notes.extend(used.notes);
                (None, GpuSensor::open(&used.uuids, used.processes).filter(|_| is_one_host))
            }
            Device::Auto | Device::Cpu => (EnergyCounter::open().filter(|_| is_one_host), None),
        };
        if let Some(text) = place.description() {
            notes.push(text);
            if !on_cuda {
                notes.push("memory is not told: one process holds ranks of several candidates".to_string());
            }
        }
        match sensor.as_ref().map_or(0, GpuSensor::strangers) {
            0 => {}
            1 => notes.push("another process was computing on the GPU: these times are not the device's alone".into()),
            others => {
                notes.push(format!("{others} other processes were computing on the GPU: these times are not the device's alone"))
            }
        }
        forget_peak_resident();
        let throttled = Throttled { lowest_share: 1.0, ..Throttled::default() };
        let probe = (!on_cuda && place.hosts().is_none()).then(|| SpeedProbe::new(candidate.threads));
        Ok(Ready { place, setup, model, set, work, step_s: 0.0, counter, probe, sensor, throttled, notes, checkpoint })
    }

    fn train(&mut self, seed: u64) -> Result<(crate::record::SeedRun, Quality), TrainError> {
        let (candidate, train) = (&self.setup.candidate, &self.setup.train);
        let (model, data, precision) = (self.model.name, &self.set.content_hash, candidate.precision);
        let identity = Identity { model, data, train, precision, seed, pruning: None };
        let mut trainer = Trainer::at(&self.place, self.model, self.set.clone(), candidate, train, seed)?;
        let (mut run, quality, weights) = trainer.run(self.setup.primary_metric)?;
        self.notes.extend(run.failure.as_ref().map(|failure| format!("seed {seed}: {failure}")));
        // The weights of the reference candidate are those that inference candidates ask for by this name.
        let is_reference = candidate.precision == Precision::Fp32
            && candidate.layout == Layout::SINGLE
            && candidate.batch_size == train.batch_size
            && candidate.device == self.setup.reference_device
            && candidate.threads == self.setup.reference_threads;
        if is_reference && run.failure.is_none() {
            run.checkpoint = identity.hash();
            let path = Checkpoint::path(&self.setup.checkpoints, &run.checkpoint);
            Checkpoint { weights, run: run.clone() }.save(&path)?;
            self.checkpoint.get_or_insert(run.checkpoint.clone());
        }
        Ok((run, quality))
    }

    fn steps(&mut self, count: usize) -> Result<StepTimes, TrainError> {
        match &mut self.work {
            Doing::Train(trainer) => {
                let times = trainer.steps(count)?;
                // Losses of timed steps are nobody's result.
                trainer.drop_losses();
                Ok(times)
            }
            Doing::Infer(predictor) => predictor.steps(&self.set.test, count),
        }
    }

    /// Pairs of steps of each rank, one of each pair taken apart.
    fn take_apart(&mut self, pairs: usize) -> Result<Vec<Vec<ApartStep>>, TrainError> {
        match &mut self.work {
            Doing::Train(trainer) => trainer.take_apart(pairs),
            Doing::Infer(predictor) => predictor.take_apart(&self.set.test, pairs),
        }
    }

    /// Runs until `least` is over and times are stable, at most `most`; steps, seconds, and whether stable.
    fn warm_up(&mut self, least: Seconds, most: Seconds) -> Result<(u64, f64, bool), TrainError> {
        let start = Instant::now();
        let (mut steps, mut chunk, mut means) = (0u64, 1usize, Vec::new());
        loop {
            let times = self.steps(chunk)?;
            steps += times.steps;
            self.step_s = times.total_s / times.steps as f64;
            if times.total_s < 0.005 && chunk < 1 << 16 {
                // Too short to judge by: the chunks grow first.
                chunk *= 2;
            } else {
                means.push(self.step_s);
            }
            // All ranks must go round as often.
            let elapsed = lead(&self.place, || Ok::<_, TrainError>(start.elapsed().as_secs_f64()))?;
            let latest = &means[means.len().saturating_sub(STABLE_WINDOW)..];
            let stable = latest.len() >= 4 && StopRule::is_stable(latest);
            if (elapsed >= least.0 && stable) || elapsed >= most.0 {
                return Ok((steps, elapsed, stable));
            }
        }
    }

    fn block(&mut self, target: Seconds) -> Result<(StepTimes, Option<f64>), TrainError> {
        // At least two steps, so that a block is a series also where one step is longer than the target.
        let count = ((target.0 / self.step_s.max(1e-9)).ceil() as usize).clamp(2, 10_000_000);
        let before = self.counter.as_ref().and_then(EnergyCounter::read);
        let times = self.steps(count)?;
        let after = self.counter.as_ref().and_then(EnergyCounter::read);
        self.step_s = times.total_s / times.steps as f64;
        let energy = self.counter.as_ref().zip(before.zip(after)).map(|(c, (before, after))| c.between(&before, &after).0);
        if let Some(sensor) = &self.sensor {
            let reasons = sensor.throttles();
            self.throttled.of_blocks += 1;
            self.throttled.blocks += usize::from(!reasons.is_empty());
            if let Some(share) = sensor.clock_share() {
                self.throttled.lowest_share = self.throttled.lowest_share.min(share);
            }
            for reason in reasons {
                if !self.throttled.reasons.contains(&reason) {
                    self.throttled.reasons.push(reason);
                }
            }
        }
        Ok((times, energy))
    }

    /// Energy of a window of steps on GPUs, whose counters move only every few ten milliseconds: too coarse for single blocks.
    fn gpu_energy(&mut self) -> Result<Option<WindowEnergy>, TrainError> {
        let Some(before) = self.sensor.as_ref().and_then(GpuSensor::energy) else { return Ok(None) };
        let start = Instant::now();
        let (mut steps, window) = (0, self.setup.energy_window.0);
        while start.elapsed().as_secs_f64() < window {
            let left = window - start.elapsed().as_secs_f64();
            steps += self.steps(((left / self.step_s.max(1e-9)).ceil() as usize).clamp(2, 10_000_000))?.steps;
        }
        let after = self.sensor.as_ref().and_then(GpuSensor::energy);
        let window_s = start.elapsed().as_secs_f64();
        // Twenty moves of the slowest counter (100 ms): its first and last then weigh a twentieth.
        let least_s = 2.0;
        Ok(after.map(|after| WindowEnergy { total_j: after.0 - before.0, window_s, steps, least_s }))
    }

    fn describe(&mut self) -> Result<Described, TrainError> {
        let quality = match &mut self.work {
            Doing::Train(_) => None,
            Doing::Infer(predictor) => Some(predictor.judge(&self.set)?),
        };
        // Neither times nor energy of an emulation are anybody's result.
        let energy = if self.setup.candidate.emulation().is_none() { self.gpu_energy()? } else { None };
        let Throttled { blocks, of_blocks, lowest_share, reasons } = &self.throttled;
        if *blocks > 0 {
            self.notes.push(format!(
                "at the end of {blocks} of {of_blocks} blocks the GPU's clock was held down ({}); the lowest seen was {:.0} % of its highest",
                reasons.join(", "),
                100.0 * lowest_share
            ));
        }
        // Before the profile, whose clocks and lists are not the candidate's own.
        let peak_memory = match (self.setup.candidate.device.is_cuda(), self.place.hosts()) {
            (true, _) => Some(Bytes(self.work.team().memory_of_all()?)),
            (false, Some(_)) => None,
            (false, None) => peak_resident(),
        };
        self.notes.extend(self.work.team().first().exchanges());
        let pairs = (PROFILE_S / (2.0 * self.step_s).max(1e-9)) as usize;
        let pairs = pairs.clamp(*PROFILED_STEPS.start(), *PROFILED_STEPS.end());
        let steps = self.take_apart(pairs)?;
        let (program, model_bytes) = match &self.work {
            Doing::Train(trainer) => (trainer.program().program.clone(), trainer.weight_bytes()),
            Doing::Infer(predictor) => (predictor.program().program.clone(), predictor.program().model_bytes),
        };
        let work = self.work.team().work();
        let candidate = &self.setup.candidate;
        let units = candidate.batch_size as u64;
        let (is_training, on_cuda) = (candidate.phase == Phase::Train, candidate.device.is_cuda());
        let pace = match (is_training, on_cuda) {
            (_, false) => Pace::Called,
            (false, true) => Pace::Answered,
            (true, true) => {
                let times = self.steps(pairs)?;
                Pace::Queued { step_s: times.total_s / times.steps as f64 }
            }
        };
        let balance = self.setup.balance;
        let team = self.work.team();
        let of_ranks = steps.iter().enumerate().map(|(rank, steps)| rank_split(team.program(rank), steps, pace, balance));
        let time_split = over_ranks(&of_ranks.collect::<Vec<_>>());
        self.notes.extend(remark(&time_split));
        let input_bytes = input_bytes(team, self.setup.candidate.layout);
        let further_stages = team.stages().skip(1).map(|program| untimed(program).collect()).collect();
        let of_op = |k: usize, of: fn(&OpTime) -> Seconds| {
            Seconds(median(&steps[0].iter().map(|step| of(&step.ops[k]).0).collect::<Vec<_>>()).unwrap_or(0.0))
        };
        let has_others = steps.len() > 1;
        Ok(Described {
            quality,
            peak_memory,
            model_size: Some(Bytes(model_bytes)),
            flops_per_unit: Some(Flops(work.flops.0 / units)),
            bytes_per_unit: Some(Bytes(work.bytes.0 / units)),
            time_split: Some(time_split),
            profile: untimed(&program)
                .enumerate()
                .map(|(k, op)| OpProfile {
                    time: Some(of_op(k, |time| time.total)),
                    waited: has_others.then(|| of_op(k, |time| time.waited)),
                    ..op
                })
                .collect(),
            further_stages,
            input_bytes,
            notes: self.notes.clone(),
            checkpoint: self.checkpoint.clone(),
            energy,
            energy_counter: self.counter.as_ref().map(EnergyCounter::name).or(self.sensor.as_ref().map(GpuSensor::name)),
        })
    }
}

/// The weights that a candidate answers with, in every process of it, and a note on how they were made: a host of its own has no files of
/// the first.
fn shared_weights(
    place: &Place,
    setup: &Setup,
    model: &'static Model,
    set: &Arc<DataSet>,
) -> Result<(String, Weights, Option<String>), Box<dyn std::error::Error>> {
    type Plain = (String, Vec<(String, Vec<usize>, Vec<f32>)>, Option<String>);
    let (hash, tensors, note): Plain = lead(place, || {
        let shared = |error: Box<dyn std::error::Error>| TrainError::Shared(error.to_string());
        let (mut hash, mut weights) = trained_weights(setup, model, set).map_err(shared)?;
        let mut note = None;
        if let Some(pruning) = setup.candidate.compression.pruning.filter(|pruning| pruning.is_tuned()) {
            let tuned = tuned_weights(setup, model, set, pruning, &weights).map_err(shared)?;
            (hash, weights, note) = (tuned.hash, tuned.weights, Some(tuned.note));
        }
        if matches!(setup.candidate.compression.quantization, Some(Quantization::Int8Aware { .. })) {
            weights = aware_weights(setup, model, set, &hash, &weights).map_err(shared)?;
        }
        Ok((hash, weights.tensors.into_iter().map(|t| (t.name, t.shape, t.data)).collect(), note))
    })?;
    let tensors = tensors.into_iter().map(|(name, shape, data)| Tensor { name, shape, data });
    Ok((hash, Weights { tensors: tensors.collect() }, note))
}

/// The weights that all inference candidates share: trained once, in fp32 on all cores, and kept by their identity.
///
/// # Errors
/// Where training fails or its weights are of no use: what is not finite is no measurement of anything.
fn trained_weights(
    setup: &Setup,
    model: &'static Model,
    set: &Arc<DataSet>,
) -> Result<(String, Weights), Box<dyn std::error::Error>> {
    let train = &setup.train;
    let (seed, precision) = (train.first_seed, Precision::Fp32);
    let hash = Identity { model: model.name, data: &set.content_hash, train, precision, seed, pruning: None }.hash();
    let reference = crate::record::Candidate {
        phase: Phase::Train,
        precision,
        compression: Compression::NONE,
        layout: Layout::SINGLE,
        batch_size: train.batch_size,
        device: setup.reference_device,
        threads: setup.reference_threads,
    };
    let what = "the fp32 training that makes the shared weights";
    let start = || Trainer::new(model, set.clone(), &reference, train, seed);
    let kept = kept_weights(setup, &hash, what, start)?;
    Ok((hash, kept.weights))
}

/// Weights that were trained on, and how.
struct Tuned {
    hash: String,
    weights: Weights,
    note: String,
}

/// The weights that inference candidates of one pruning share where training goes on after it; made as `trained_weights` are, from those.
fn tuned_weights(
    setup: &Setup,
    model: &'static Model,
    set: &Arc<DataSet>,
    pruning: Pruning,
    trained: &Weights,
) -> Result<Tuned, Box<dyn std::error::Error>> {
    let train = &setup.train;
    let (seed, precision, word) = (train.first_seed, Precision::Fp32, pruning.to_string());
    let data = &set.content_hash;
    let hash = Identity { model: model.name, data, train, precision, seed, pruning: Some(word.clone()) }.hash();
    let start = || tuner(model, set.clone(), pruning, train, trained, setup.reference_device, setup.reference_threads);
    let kept = kept_weights(setup, &hash, &format!("the training of `{word}`"), start)?;
    let rate = train.optimizer.learning_rate;
    let how =
        if pruning.tuning == Tuning::Gradual { "weights went little by little in" } else { "trained again after pruning for" };
    let epochs = match train.tune_epochs {
        1 => "1 epoch".to_string(),
        many => format!("{many} epochs"),
    };
    let took = kept.run.epochs.last().map_or(0.0, |epoch| epoch.elapsed.0);
    let note = format!(
        "{how} {epochs} at the training's learning rate of {rate:.3e}; that took {took:.2} s, which are in no figure here"
    );
    Ok(Tuned { hash, weights: kept.weights, note })
}

/// A checkpoint by its name, made by the training that `start` prepares where there is none.
fn kept_weights(
    setup: &Setup,
    hash: &str,
    what: &str,
    start: impl FnOnce() -> Result<Trainer, TrainError>,
) -> Result<Checkpoint, Box<dyn std::error::Error>> {
    let path: PathBuf = Checkpoint::path(&setup.checkpoints, hash);
    let checkpoint = if path.exists() {
        Checkpoint::load(&path)?
    } else {
        let (mut run, _, weights) = start()?.run(setup.primary_metric)?;
        // Kept also when it failed: the other candidates need not try again to learn it.
        run.checkpoint = hash.to_string();
        let checkpoint = Checkpoint { weights, run };
        checkpoint.save(&path)?;
        checkpoint
    };
    match &checkpoint.run.failure {
        Some(failure) => Err(format!("{what} failed (seed {}): {failure}", checkpoint.run.seed).into()),
        None => Ok(checkpoint),
    }
}

/// What calibration read, where a quantisation has any.
fn calibration_note(quantization: Quantization, train_rows: usize) -> Option<String> {
    let what = match quantization {
        Quantization::Int8(range) => format!("activation ranges ({range})"),
        Quantization::Int8Aware { epochs } => {
            format!(
                "trained {epochs} more {} with simulated int8 grids; activation ranges",
                if epochs == 1 { "epoch" } else { "epochs" }
            )
        }
        Quantization::Mixed(_) => "sensitivity of layers and activation ranges (largest magnitude)".to_string(),
        Quantization::Int4 { rounding: Rounding::Gptq, .. } => "weights placed by the activations".to_string(),
        Quantization::Int4 { .. } | Quantization::Int8Dynamic => return None,
    };
    Some(format!("{what} from {} training rows, none of them a test row", crate::train::CALIBRATION_ROWS.min(train_rows)))
}

/// `weights` of checkpoint `hash` after training with simulated int8 grids as the candidate says, kept beside it.
fn aware_weights(
    setup: &Setup,
    model: &'static Model,
    set: &Arc<DataSet>,
    hash: &str,
    weights: &Weights,
) -> Result<Weights, Box<dyn std::error::Error>> {
    let compression = setup.candidate.compression;
    // A tuned pruning has a checkpoint of its own; what is pruned here alone is told by its word.
    let kind: String =
        compression.to_string().chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let path = Checkpoint::path(&setup.checkpoints, &format!("{hash}-{kind}"));
    if path.exists() {
        return Ok(Checkpoint::load(&path)?.weights);
    }
    let (device, threads) = (setup.reference_device, setup.reference_threads);
    let (weights, run) = train_aware(model, set.clone(), compression, &setup.train, weights, device, threads)?;
    let checkpoint = Checkpoint { weights, run };
    checkpoint.save(&path)?;
    Ok(checkpoint.weights)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        data::DataSource,
        record::{Candidate, OptimizerConfig, TimeSplit, TrainConfig},
        vocab::{Device, Metric, OptimizerKind, Task},
    };

    fn setup(phase: Phase, layout: Layout, checkpoints: PathBuf) -> Setup {
        Setup {
            candidate: Candidate {
                phase,
                device: Device::Cpu,
                precision: Precision::Fp32,
                compression: Compression::NONE,
                layout,
                batch_size: 32,
                threads: 2,
            },
            task: Task::ImageClassification,
            model: "mlp".into(),
            data: DataSource::Shipped("digits-8x8".into()),
            search_from: vec![PathBuf::from(env!("CARGO_MANIFEST_DIR"))],
            train: TrainConfig { first_seed: 3, ..TrainConfig::new(2, OptimizerConfig::new(OptimizerKind::Sgd, 0.05), 32) },
            primary_metric: Metric::Accuracy,
            checkpoints,
            reference_device: Device::Cpu,
            reference_threads: 2,
            energy_window: Seconds(0.1),
            balance: Some(10.0),
        }
    }

    /// Every second of steps taken apart has one place and no second has two, on each rank; and a description says where its parts are not the
    /// ordinary step, which is a matter of timing.
    fn assert_adds_up(bench: &mut Bench, described: &Described) {
        let said = described.notes.iter().any(|note| note.contains("the parts of the time split"));
        let split = described.time_split.as_ref().unwrap();
        assert_eq!(said, split.excess().unwrap().abs() > TimeSplit::TOLERANCE, "{split:?}");
        let ready = bench.ready.as_mut().unwrap();
        for (rank, steps) in ready.take_apart(16).unwrap().iter().enumerate() {
            let program = ready.work.team().program(rank);
            assert_eq!(steps.len(), 16);
            for step in steps {
                assert!(step.ops.len() == program.steps.len() && step.call_s <= step.ordinary_s, "{step:?}");
                assert!(step.ops.iter().all(|op| op.waited.0 >= 0.0 && op.waited.0 <= op.total.0), "{step:?}");
                let split = rank_split(program, std::slice::from_ref(step), Pace::Called, Some(10.0));
                assert!(split.parts().iter().all(|(_, part)| part.unwrap().0 >= 0.0), "{split:?}");
                assert!((split.sum().0 / step.apart_s - 1.0).abs() < 1e-6, "{split:?} of {step:?}");
            }
        }
    }

    #[test]
    fn every_second_of_a_step_taken_apart_has_one_place_in_every_layout() {
        let dir = tempfile::tempdir().unwrap();
        for layout in ["single", "dp=2", "zero=2", "tp=2", "pp=2"] {
            let layout: Layout = layout.parse().unwrap();
            let mut bench = Bench::default();
            let setup = Setup { model: "mlp".into(), ..setup(Phase::Train, layout, dir.path().into()) };
            bench.answer(Request::Prepare(Box::new(setup))).unwrap();
            bench.answer(Request::WarmUp { least: Seconds(0.05), most: Seconds(0.5) }).unwrap();
            let Response::Described { described, .. } = bench.answer(Request::Describe).unwrap() else { panic!() };
            assert_adds_up(&mut bench, &described);
            let split = described.time_split.unwrap();
            assert_eq!(split.communication.0 > 0.0, layout != Layout::SINGLE, "{layout}: {split:?}");
            assert_eq!(described.profile.iter().any(|op| op.waited.is_some()), layout != Layout::SINGLE);
        }
    }

    #[test]
    fn a_worker_trains_answers_and_describes_itself_from_the_same_weights() {
        let dir = tempfile::tempdir().unwrap();
        for layout in [Layout::SINGLE, Layout::data(2)] {
            let mut bench = Bench::default();
            let ask = |bench: &mut Bench, request| bench.answer(request).unwrap();
            ask(&mut bench, Request::Prepare(Box::new(setup(Phase::Train, layout, dir.path().into()))));
            let Response::Trained { run, quality, .. } = ask(&mut bench, Request::Train { seed: 3 }) else { panic!() };
            assert_eq!((run.epochs.len(), run.checkpoint.is_empty()), (2, layout != Layout::SINGLE));
            assert!(quality.metrics[&Metric::Accuracy] > 0.6 && quality.predictions.len() == 360);
            let warm = Request::WarmUp { least: Seconds(0.01), most: Seconds(0.5) };
            let Response::Warm { steps, .. } = ask(&mut bench, warm) else { panic!() };
            assert!(steps > 0);
            let Response::Block { step_s, steps, total_s, .. } = ask(&mut bench, Request::Block { target: Seconds(0.02) }) else {
                panic!()
            };
            assert!(steps >= 2 && step_s.len() as u64 == steps.min(200) && step_s.iter().sum::<f64>() <= total_s * 1.001);
            let Response::Described { described, .. } = ask(&mut bench, Request::Describe) else { panic!() };
            assert!(described.quality.is_none() && described.profile.iter().all(|op| op.time.is_some()));
            assert_adds_up(&mut bench, &described);
            let reduces = described.profile.iter().filter(|op| op.op == "all_reduce").count();
            assert_eq!(reduces > 0, layout != Layout::SINGLE);
        }
        let mut bench = Bench::default();
        bench.answer(Request::Prepare(Box::new(setup(Phase::Infer, Layout::SINGLE, dir.path().into())))).unwrap();
        let Response::Described { described, .. } = bench.answer(Request::Describe).unwrap() else { panic!() };
        // One multiply-add a weight, a bias and a ReLU each: counted by hand for 64-256-128-10.
        let flops = 2 * (64 * 256 + 256 * 128 + 128 * 10) + 256 + 128 + 10 + 256 + 128;
        assert_eq!(described.flops_per_unit, Some(Flops(flops)));
        assert_eq!(described.model_size, Some(Bytes(4 * (64 * 256 + 256 + 256 * 128 + 128 + 1280 + 10))));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "one training, one checkpoint");
    }

    #[test]
    fn candidates_of_one_tuned_pruning_share_its_weights_and_smaller_models_do_less() {
        let dir = tempfile::tempdir().unwrap();
        let describe = |compression: &str, batch_size: usize| {
            let mut setup = setup(Phase::Infer, Layout::SINGLE, dir.path().into());
            setup.candidate = Candidate { compression: compression.parse().unwrap(), batch_size, ..setup.candidate };
            let mut bench = Bench::default();
            bench.answer(Request::Prepare(Box::new(setup))).unwrap();
            let Response::Described { described, .. } = bench.answer(Request::Describe).unwrap() else { panic!() };
            described
        };
        let whole = describe("none", 32);
        let checkpoints = || std::fs::read_dir(dir.path()).unwrap().count();
        let accuracy = |described: &Described| described.quality.as_ref().unwrap().metrics[&Metric::Accuracy];
        for (number, pruning) in
            ["2:4+tuned", "channel:0.5+tuned", "magnitude:0.8+tuned", "magnitude:0.8+gradual"].iter().enumerate()
        {
            let one = describe(pruning, 32);
            assert_eq!(checkpoints(), number + 2, "{pruning}");
            assert_ne!(one.checkpoint, whole.checkpoint);
            assert!(
                one.notes.iter().any(|note| note.contains("3 epochs at the training's learning rate of 5.000e-2")),
                "{:?}",
                one.notes
            );
            assert!(one.model_size < whole.model_size, "{pruning}");
            for others in [describe(pruning, 1), describe(&format!("{pruning}+int8"), 32)] {
                assert_eq!((checkpoints(), &others.checkpoint), (number + 2, &one.checkpoint), "{pruning}");
            }
            assert!(accuracy(&one) > accuracy(&whole) - 0.05, "{pruning}: {} after {}", accuracy(&one), accuracy(&whole));
        }
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let set = Arc::new(DataSet::load(&DataSource::Shipped("digits-8x8".into()), &[root]).unwrap());
        // Trained on with simulated grids, from what pruning leaves here, and from what tuning made of it.
        let before = checkpoints();
        for (number, word) in ["2:4+int8-qat", "2:4+tuned+int8-qat", "channel:0.5+int8-qat"].into_iter().enumerate() {
            let one = describe(word, 32);
            assert_eq!(checkpoints(), before + number + 1, "{word}");
            assert!(
                one.notes.iter().any(|note| note.contains("trained 1 more epoch with simulated int8 grids")),
                "{:?}",
                one.notes
            );
            assert!(accuracy(&one) > accuracy(&whole) - 0.05, "{word}: {} after {}", accuracy(&one), accuracy(&whole));
            assert_eq!(describe(word, 1).model_size, one.model_size);
            // The same program where it is counted and not run.
            let Setup { candidate, train, .. } = setup(Phase::Infer, Layout::SINGLE, dir.path().into());
            let candidate = Candidate { compression: word.parse().unwrap(), ..candidate };
            let record = crate::workload::counted("mlp", &set, &candidate, &train).unwrap().record;
            assert_eq!(record.flops_per_unit, one.flops_per_unit, "{word}");
            assert_eq!(checkpoints(), before + number + 1, "{word}");
        }
        let shrunk = describe("channel:0.5+tuned", 32);
        let flops = 2 * (64 * 128 + 128 * 64 + 64 * 10) + 128 + 64 + 10 + 128 + 64;
        assert_eq!((shrunk.flops_per_unit, describe("channel:0.5", 32).flops_per_unit), (Some(Flops(flops)), Some(Flops(flops))));
    }
}
