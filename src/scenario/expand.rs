//! From the grid to candidates on one machine. A combination that makes no sense is a skipped row with its reason, never silence.

use super::{Grid, Scenario};
use crate::{
    data::DataSource,
    record::{Candidate, RunRecord, Status},
    vocab::{Compression, Device, Layout, Phase, Precision, Quantization},
};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

/// What the expansion must know of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Cores that candidates may use, at least 1.
    pub cores: usize,
    /// CUDA devices that the driver shows; 0 also where there is no driver.
    pub cuda_devices: usize,
    /// Where a launcher started processes to be ranks, the cores of the hosts of the first, of the first two, and so on.
    pub cores_of_processes: Vec<usize>,
    /// For each of these processes, names of the CUDA devices that it would take as a rank from `cuda:0` on, from `cuda:1` on, and so on.
    pub devices_of_processes: Vec<Vec<String>>,
}

/// The candidates of a scenario on a machine. No id stands twice, in neither list nor in both.
#[derive(Clone, Debug, PartialEq)]
pub struct Expansion {
    /// To be run, in the order of the grid.
    pub candidates: Vec<Candidate>,
    /// Those that will not be tried, with the reason.
    pub skipped: Vec<RunRecord>,
}

impl Grid {
    /// Combinations that the grid makes in `phase`; the most that a number holds where there are more.
    pub(super) fn size(&self, phase: Phase) -> usize {
        let threads = self.threads.len().max(1);
        let compressions = self.compressions(phase).len();
        let axes = [self.devices.len(), threads, self.precisions.len(), self.layouts.len(), self.batch_sizes.len(), compressions];
        axes.into_iter().fold(1, usize::saturating_mul)
    }

    /// Compression acts on trained weights, so training knows only `none`.
    fn compressions(&self, phase: Phase) -> &[Compression] {
        match phase {
            Phase::Train => &[Compression::NONE],
            Phase::Infer => &self.compressions,
        }
    }

    /// Compute threads on `machine`, as the grid lists them.
    fn threads(&self, machine: &Machine) -> Vec<usize> {
        if self.threads.is_empty() { vec![machine.cores.max(1)] } else { self.threads.clone() }
    }

    /// Every combination of `phase`, sensible or not: device, then threads, precision, layout, batch size, compression.
    fn combinations(&self, phase: Phase, machine: &Machine) -> Vec<Candidate> {
        let mut all = Vec::new();
        for &device in &self.devices {
            for threads in self.threads(machine) {
                for &precision in &self.precisions {
                    for &layout in &self.layouts {
                        for &batch_size in &self.batch_sizes {
                            for &compression in self.compressions(phase) {
                                let device = machine.found(device);
                                // A rank on a CUDA device has one thread of the processor, which feeds it.
                                let threads = match device.is_cuda() {
                                    true => layout.ranks(),
                                    false if self.threads.is_empty() => machine.cores_for(layout),
                                    false => threads,
                                };
                                all.push(Candidate { phase, device, precision, compression, layout, batch_size, threads });
                            }
                        }
                    }
                }
            }
        }
        all
    }
}

impl Scenario {
    /// The candidates of the grid, phase by phase in the order of the file, each phase with its baseline.
    pub fn expand(&self, machine: &Machine) -> Expansion {
        let mut expansion = Expansion { candidates: Vec::new(), skipped: Vec::new() };
        let mut seen = HashSet::new();
        for &phase in &self.phases {
            let first = expansion.candidates.len();
            for candidate in self.grid.combinations(phase, machine) {
                if !seen.insert(candidate.id()) {
                    continue;
                }
                match reason_to_skip(&candidate, machine) {
                    Some(reason) => expansion.skipped.push(RunRecord::without_result(candidate, Status::Skipped, reason)),
                    None => expansion.candidates.push(candidate),
                }
            }
            let baseline = self.baseline(phase, machine);
            if seen.insert(baseline.id()) {
                expansion.candidates.insert(first, baseline);
            }
        }
        expansion
    }

    /// The fp32, uncompressed, single candidate of `phase` that the others are compared with, always one of `expand`. Its batch is that of
    /// the training where the grid has it, else the largest; its device the first of the grid that the machine has; its threads are the most
    /// that the grid has and the machine can give, one on a CUDA device.
    pub fn baseline(&self, phase: Phase, machine: &Machine) -> Candidate {
        let cores = machine.cores.max(1);
        let largest = self.grid.batch_sizes.iter().copied().max().unwrap_or(self.train.batch_size);
        let has_training = self.grid.batch_sizes.contains(&self.train.batch_size);
        let devices = || self.grid.devices.iter().map(|device| machine.found(*device));
        let device = devices().find(|device| machine.has(*device)).or_else(|| devices().next()).unwrap_or(Device::Cpu);
        let most = || self.grid.threads(machine).into_iter().filter(|threads| *threads <= cores).max().unwrap_or(cores);
        Candidate {
            phase,
            device,
            precision: Precision::Fp32,
            compression: Compression::NONE,
            layout: Layout::SINGLE,
            batch_size: if has_training { self.train.batch_size } else { largest },
            threads: if device.is_cuda() { 1 } else { most() },
        }
    }

    /// SHA-256 (hex) of what the scenario means on `machine`, of `quick`, and of what `around` it decides figures too (the data's content,
    /// the processor, the program). Comments, formatting, other spellings of a value and the folder
    /// from which the program was started do not change it.
    pub fn config_hash(&self, quick: bool, machine: &Machine, around: &[&str]) -> String {
        let expansion = self.expand(machine);
        let ids = |candidates: &mut dyn Iterator<Item = &Candidate>| candidates.map(Candidate::id).collect::<Vec<_>>();
        let meaning = json!({
            "name": self.name,
            "question": self.question,
            "task": self.task,
            "model": self.model,
            "data": without_folder(&self.data, self.path.parent().unwrap_or(Path::new(""))),
            "train": self.train,
            "candidates": ids(&mut expansion.candidates.iter()),
            "skipped": ids(&mut expansion.skipped.iter().map(|record| &record.candidate)),
            "goal": self.goal,
            "cost": self.cost,
            "primary_metric": self.primary_metric,
            "quick": quick,
            "around": around,
        });
        Sha256::digest(meaning.to_string()).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Machine {
    /// Whether candidates on `device` can run here.
    pub fn can_use(&self, device: Device) -> bool {
        self.has(self.found(device))
    }

    /// Cores that the ranks of a layout have together.
    fn cores_for(&self, layout: Layout) -> usize {
        let of_processes = self.cores_of_processes.get(layout.ranks() - 1).filter(|_| layout.ranks() > 1);
        of_processes.copied().unwrap_or(self.cores).max(1)
    }

    /// Names of the devices that the ranks of a layout, processes of a launch, take from `cuda:first` on; `Err` is a rank without one.
    pub fn devices_of_ranks(&self, first: usize, layout: Layout) -> Result<Vec<&str>, usize> {
        let name = |rank: usize| {
            let devices = self.devices_of_processes.get(rank)?;
            devices.get(first % devices.len().max(1)).map(String::as_str)
        };
        (0..layout.ranks()).map(|rank| name(rank).ok_or(rank)).collect()
    }

    /// Why processes of the launch are no ranks on devices of their own.
    fn lack_of_devices(&self, first: usize, layout: Layout) -> Option<String> {
        let names = match self.devices_of_ranks(first, layout) {
            Ok(names) => names,
            Err(rank) => return Some(format!("{layout}: the driver shows process {rank} of the launch no CUDA device")),
        };
        let shared =
            (1..names.len()).find_map(|rank| Some((names[..rank].iter().position(|name| *name == names[rank])?, rank)))?;
        let (one, other) = shared;
        Some(format!(
            "{layout}: ranks {one} and {other} would share {}, so its times say nothing; start as many processes on a host as it has devices",
            names[one]
        ))
    }

    /// What `auto` means here: the first CUDA device where there is one.
    fn found(&self, device: Device) -> Device {
        match device {
            Device::Auto if self.cuda_devices > 0 => Device::Cuda(0),
            Device::Auto => Device::Cpu,
            other => other,
        }
    }

    fn has(&self, device: Device) -> bool {
        match device {
            Device::Cuda(number) => number < self.cuda_devices,
            Device::Auto | Device::Cpu => true,
        }
    }
}

/// Why a combination is not worth trying; the first reason that holds.
fn reason_to_skip(candidate: &Candidate, machine: &Machine) -> Option<String> {
    let Candidate { layout, batch_size, threads, .. } = *candidate;
    let ranks = layout.ranks();
    let cores = machine.cores_for(layout);
    if let Device::Cuda(first) = candidate.device {
        let shown = match machine.cuda_devices {
            0 => "no CUDA device (`advisor doctor` says why)".to_string(),
            1 => "1 CUDA device".to_string(),
            count => format!("{count} CUDA devices"),
        };
        if !machine.has(candidate.device) {
            return Some(format!("`{}` is not there: this machine shows {shown}", candidate.device));
        }
        let is_here = ranks == 1 || machine.cores_of_processes.is_empty();
        if is_here && first + ranks > machine.cuda_devices {
            return Some(format!(
                "{layout} from `{}` on needs {ranks} CUDA devices, this machine shows {shown}",
                candidate.device
            ));
        }
    } else if threads > cores {
        let of = if cores == 1 { "1 core".to_string() } else { format!("{cores} cores") };
        return Some(format!("{threads} threads on {of} would share cores, so its times say nothing"));
    }
    if candidate.precision == Precision::Tf32 && !candidate.device.is_cuda() {
        return Some("tf32 is how tensor cores of a GPU read fp32 numbers: a processor has no such products".into());
    }
    let processes = machine.cores_of_processes.len();
    if processes > 0 && ranks > processes {
        return Some(format!("{layout} needs {ranks} processes, and the launcher started {processes}"));
    }
    if let (Device::Cuda(first), 1.., 2..) = (candidate.device, processes, ranks)
        && let Some(reason) = machine.lack_of_devices(first, layout)
    {
        return Some(reason);
    }
    if ranks > threads {
        return Some(format!("{layout} needs at least {ranks} threads, this candidate has {threads}"));
    }
    let shares = layout.data_ranks();
    if batch_size < shares {
        return Some(format!("{layout} needs a batch of at least {shares}, this candidate has {batch_size}"));
    }
    if !batch_size.is_multiple_of(shares) {
        return Some(format!("{layout} needs a batch that {shares} ranks can share evenly, this candidate has {batch_size}"));
    }
    if layout.shares_state() && candidate.phase == Phase::Infer {
        return Some(format!("{layout} shares out the optimizer's state, and answering has none"));
    }
    if layout.recomputes() && candidate.phase == Phase::Infer {
        return Some(format!("{layout} computes activations again for the backward pass, and answering has none"));
    }
    if layout.pipeline_ranks() > 1 && candidate.phase == Phase::Infer {
        return Some(format!("{layout} keeps its stages busy with the pieces of a training step; answers take `dp` or `tp`"));
    }
    if layout.pipeline_ranks() > 1 && layout.shares_state() {
        return Some(format!("{layout}: the stages of a pipeline keep their optimizer's state"));
    }
    if layout.tensor_ranks() > 1 && candidate.compression.quantization.is_some() {
        return Some(format!("{layout} splits products in floating point: quantised weights are not split"));
    }
    if let Some(quantization) = candidate.compression.quantization.filter(|_| candidate.precision != Precision::Fp32) {
        return Some(match quantization {
            Quantization::Int8(_) | Quantization::Int8Dynamic | Quantization::Int8Aware { .. } => {
                "int8 stores weights and activations in 8 bits, so a second storage type has no meaning".into()
            }
            Quantization::Int4 { .. } => format!("{quantization} multiplies 4-bit weights with fp32 activations"),
            Quantization::Mixed(_) => format!("{quantization} chooses among fp32, int8 and int4 for each layer itself"),
        });
    }
    None
}

/// The source with its path as the file wrote it.
fn without_folder(data: &DataSource, folder: &Path) -> DataSource {
    let inside = |path: &mut PathBuf| {
        if let Ok(rest) = path.strip_prefix(folder) {
            *path = rest.to_path_buf();
        }
    };
    let mut data = data.clone();
    match &mut data {
        DataSource::Shipped(_) => {}
        DataSource::Idx { folder: path } | DataSource::Csv { path, .. } | DataSource::Text { path, .. } => inside(path),
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        input::Source,
        scenario::{Known, KnownModel},
        vocab::RowKind,
    };

    const TWO: Machine = Machine { cores: 2, cuda_devices: 0, cores_of_processes: Vec::new(), devices_of_processes: Vec::new() };

    fn at(path: &str, more: &str) -> Scenario {
        let text = format!("name = \"x\"\n[workload]\nmodel = \"mlp\"\n{more}");
        let text = if more.contains("data =") { text } else { text.replace("model =", "data = \"mnist\"\nmodel =") };
        let found = Scenario::read(
            Source::new(path, &text),
            &Known { models: &[KnownModel { name: "mlp", reads: RowKind::Image }], instances: &[] },
        );
        found.unwrap_or_else(|found| panic!("{}", crate::input::render(&found)))
    }

    fn with(more: &str) -> Scenario {
        at("x.toml", more)
    }

    fn ids(scenario: &Scenario, machine: Machine) -> Vec<String> {
        scenario.expand(&machine).candidates.iter().map(Candidate::id).collect()
    }

    /// `(id, reason)` of what is skipped.
    fn skipped(scenario: &Scenario, machine: Machine) -> Vec<(String, String)> {
        let rows = scenario.expand(&machine).skipped;
        assert!(rows.iter().all(|row| row.status == Status::Skipped));
        rows.into_iter().map(|row| (row.candidate.id(), row.reason.unwrap())).collect()
    }

    #[test]
    fn candidates_come_in_the_order_of_the_axes_and_training_is_never_compressed() {
        let scenario =
            with("phase = [\"train\", \"infer\"]\n[grid]\nprecision = [\"fp32\", \"bf16\"]\ncompression = [\"none\", \"2:4\"]");
        let expected = [
            "train/cpu/fp32/none/single/b64/t2",
            "train/cpu/bf16/none/single/b64/t2",
            "infer/cpu/fp32/none/single/b64/t2",
            "infer/cpu/fp32/2:4/single/b64/t2",
            "infer/cpu/bf16/none/single/b64/t2",
            "infer/cpu/bf16/2:4/single/b64/t2",
        ];
        assert_eq!(ids(&scenario, TWO), expected);
        assert_eq!(skipped(&scenario, TWO), []);
        let scenario = with("phase = \"infer\"\n[grid]\nlayout = [\"single\", \"dp=2\"]\nbatch_size = [2, 64]\nthreads = [2, 1]");
        let order: Vec<String> = ids(&scenario, TWO).iter().map(|id| id["infer/cpu/fp32/none/".len()..].to_string()).collect();
        assert_eq!(order, ["single/b2/t2", "single/b64/t2", "dp=2/b2/t2", "dp=2/b64/t2", "single/b2/t1", "single/b64/t1"]);
    }

    #[test]
    fn a_combination_without_sense_is_skipped_with_its_reason() {
        let only = |more: &str, machine: Machine| {
            let scenario = with(&format!("phase = \"infer\"\n[grid]\n{more}"));
            let reasons: Vec<String> = skipped(&scenario, machine).into_iter().map(|(_, reason)| reason).collect();
            reasons
        };
        assert_eq!(
            only("precision = [\"fp32\", \"bf16\"]\ncompression = [\"none\", \"int8\"]", TWO),
            ["int8 stores weights and activations in 8 bits, so a second storage type has no meaning"]
        );
        assert_eq!(
            only("precision = [\"fp32\", \"tf32\"]", TWO),
            ["tf32 is how tensor cores of a GPU read fp32 numbers: a processor has no such products"]
        );
        let gpu = Machine { cuda_devices: 1, ..TWO };
        assert_eq!(only("precision = [\"fp32\", \"tf32\"]", gpu), Vec::<String>::new());
        assert_eq!(
            only("precision = \"bf16\"\ncompression = [\"int8-dynamic\", \"int4-gptq\", \"mixed:size=0.3\"]", TWO),
            [
                "int8 stores weights and activations in 8 bits, so a second storage type has no meaning",
                "int4-gptq multiplies 4-bit weights with fp32 activations",
                "mixed:size=0.3 chooses among fp32, int8 and int4 for each layer itself"
            ]
        );
        assert_eq!(
            only("compression = [\"2:4+int8-qat\", \"channel:0.5+tuned+int8-qat\", \"2:4+int4\"]", TWO),
            Vec::<String>::new()
        );
        assert_eq!(only("layout = \"dp=4\"", TWO), ["dp=4 needs at least 4 threads, this candidate has 2"]);
        assert_eq!(only("threads = [1, 8]", TWO), ["8 threads on 2 cores would share cores, so its times say nothing"]);
        assert_eq!(
            only("threads = 2", Machine { cores: 1, cuda_devices: 0, ..Machine::default() }),
            ["2 threads on 1 core would share cores, so its times say nothing"]
        );
        assert_eq!(
            only("layout = \"dp=2\"\nbatch_size = [1, 3, 4]", TWO),
            [
                "dp=2 needs a batch of at least 2, this candidate has 1",
                "dp=2 needs a batch that 2 ranks can share evenly, this candidate has 3"
            ]
        );
    }

    #[test]
    fn the_same_candidate_stands_once() {
        assert_eq!(ids(&with("[grid]\ndevice = [\"auto\", \"cpu\"]"), TWO).len(), 2);
    }

    #[test]
    fn auto_is_a_cuda_device_where_there_is_one_and_ranks_need_one_each() {
        let one = Machine { cores: 8, cuda_devices: 1, ..Machine::default() };
        let auto = with("phase = \"infer\"\n[grid]\nlayout = [\"single\", \"dp=2\"]\nthreads = [1, 8]");
        assert_eq!(
            ids(&auto, one.clone()),
            ["infer/cuda/fp32/none/single/b64/t1"],
            "the processor's threads are no axis of a CUDA device"
        );
        let reasons = |scenario: &Scenario, machine| skipped(scenario, machine).into_iter().map(|(_, r)| r).collect::<Vec<_>>();
        assert_eq!(reasons(&auto, one.clone()), ["dp=2 from `cuda` on needs 2 CUDA devices, this machine shows 1 CUDA device"]);
        let two = Machine { cores: 8, cuda_devices: 2, ..Machine::default() };
        assert_eq!(ids(&auto, two.clone()).len(), 2);
        let both = with("phase = \"infer\"\n[grid]\ndevice = [\"cuda:1\", \"cpu\"]");
        assert_eq!(ids(&both, one.clone()), ["infer/cpu/fp32/none/single/b64/t8"]);
        assert_eq!(both.baseline(Phase::Infer, &one).device, Device::Cpu, "the first device that the machine has");
        assert_eq!(both.baseline(Phase::Infer, &two).device, Device::Cuda(1));
        assert_eq!(reasons(&both, one), ["`cuda:1` is not there: this machine shows 1 CUDA device"]);
        let absent = "`cuda:1` is not there: this machine shows no CUDA device (`advisor doctor` says why)";
        assert_eq!(reasons(&both, TWO), [absent]);
    }

    #[test]
    fn a_baseline_that_the_grid_lacks_is_added_first_of_its_phase() {
        let scenario = with("[grid]\nprecision = \"bf16\"\ncompression = \"2:4\"\nbatch_size = [1, 32, 8]\nthreads = [1, 2, 64]");
        let ids = ids(&scenario, TWO);
        assert_eq!(ids[0], "train/cpu/fp32/none/single/b32/t2");
        assert_eq!(ids[7], "infer/cpu/fp32/none/single/b32/t2");
        assert_eq!(ids.len(), 14);
    }

    #[test]
    fn the_baseline_takes_the_batch_of_training_and_the_threads_of_the_machine() {
        let scenario = with("[grid]\nbatch_size = [1, 64, 256]");
        assert_eq!(scenario.baseline(Phase::Infer, &TWO).id(), "infer/cpu/fp32/none/single/b64/t2");
        let crowded = with("[grid]\nthreads = 8");
        assert_eq!(ids(&crowded, TWO), ["train/cpu/fp32/none/single/b64/t2", "infer/cpu/fp32/none/single/b64/t2"]);
    }

    #[test]
    fn the_hash_changes_with_the_meaning_and_with_nothing_else() {
        let plain = "[grid]\nprecision = [\"fp32\", \"bf16\"]\nbatch_size = 64";
        let hash = |more: &str| with(more).config_hash(false, &TWO, &[]);
        assert_eq!(hash(plain).len(), 64);
        let same = "# a comment\n[grid]\nbatch_size   = [64]\nthreads = 2\nprecision = [\n  \"float32\",\n  \"bfloat16\",\n]";
        assert_eq!(hash(plain), hash(same));
        let others = [
            hash(""),
            hash(&format!("{plain}\n[train]\nepochs = 4")),
            hash(&format!("{plain}\n[constraints]\nmin_accuracy = 0.5")),
            hash(&format!("{plain}\n[objective]\nminimise = \"time\"")),
            hash(&format!("{plain}\n[cost]\nhourly_usd = 1")),
            hash(&format!("phase = \"infer\"\n{plain}")),
            with(plain).config_hash(true, &TWO, &[]),
            with(plain).config_hash(false, &Machine { cores: 1, cuda_devices: 0, ..Machine::default() }, &[]),
        ];
        let all: HashSet<&String> = others.iter().collect();
        assert!(all.len() == others.len() && !all.contains(&hash(plain)));
        let own = "data = { format = \"idx\", path = \"images\" }";
        assert_eq!(at("a/x.toml", own).config_hash(false, &TWO, &[]), at("/b/c/x.toml", own).config_hash(false, &TWO, &[]));
    }

    #[test]
    fn ranks_that_are_processes_have_the_cores_of_their_hosts() {
        // Two processes on each of two hosts of four cores.
        let launched = || Machine { cores: 4, cores_of_processes: vec![4, 4, 8, 8], ..Machine::default() };
        let scenario =
            with("phase = [\"train\"]\n[grid]\nbatch_size = [60]\nlayout = [\"single\", \"dp=2\", \"dp=4\", \"dp=5\"]");
        let threads: Vec<usize> = scenario.expand(&launched()).candidates.iter().map(|candidate| candidate.threads).collect();
        assert_eq!(threads, [4, 4, 8]);
        let skipped: Vec<String> = skipped(&scenario, launched()).into_iter().map(|(_, reason)| reason).collect();
        assert_eq!(skipped, ["dp=5 needs 5 processes, and the launcher started 4"]);
        let named =
            with("phase = [\"train\"]\n[grid]\nbatch_size = [60]\nlayout = [\"single\", \"dp=2\", \"dp=4\"]\nthreads = [8]");
        let candidates = named.expand(&launched()).candidates;
        // The baseline has what its host has.
        assert_eq!(candidates.iter().map(|c| (c.layout.ranks(), c.threads)).collect::<Vec<_>>(), [(1, 4), (4, 8)]);
    }

    #[test]
    fn ranks_that_are_processes_need_a_device_each() {
        // Two processes on each of two hosts; the second host has one device, its other process sees none of its own.
        let launched = |devices: [&[&str]; 4]| Machine {
            cores: 4,
            cuda_devices: devices[0].len(),
            cores_of_processes: vec![4, 4, 8, 8],
            devices_of_processes: devices.map(|names| names.iter().map(ToString::to_string).collect()).to_vec(),
        };
        let scenario = |device: &str| {
            with(&format!(
                "phase = [\"train\"]\n[grid]\ndevice = [\"{device}\"]\nbatch_size = [60]\nlayout = [\"single\", \"dp=2\", \"dp=4\", \"dp=5\"]"
            ))
        };
        let reasons = |device: &str, machine: Machine| -> Vec<String> {
            skipped(&scenario(device), machine).into_iter().map(|(_, reason)| reason).collect()
        };
        let five = "dp=5 needs 5 processes, and the launcher started 4";
        let apart: [&[&str]; 4] = [&["a", "b"], &["b", "a"], &["c", "d"], &["d", "c"]];
        assert_eq!(reasons("cuda", launched(apart)), [five]);
        // From the second device on it is the other way round.
        assert_eq!(reasons("cuda:1", launched(apart)), [five]);
        assert_eq!(launched(apart).devices_of_ranks(1, Layout::data(4)), Ok(vec!["b", "a", "d", "c"]));
        // Each sees its own alone.
        assert_eq!(reasons("cuda", launched([&["a"], &["b"], &["c"], &["d"]])), [five]);
        let shared =
            "dp=4: ranks 2 and 3 would share c, so its times say nothing; start as many processes on a host as it has devices";
        assert_eq!(reasons("cuda", launched([&["a", "b"], &["b", "a"], &["c"], &["c"]])), [shared, five]);
        let none = "dp=4: the driver shows process 3 of the launch no CUDA device";
        assert_eq!(reasons("cuda", launched([&["a", "b"], &["b", "a"], &["c"], &[]])), [none, five]);
    }
}
