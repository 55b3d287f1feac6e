//! Rows of published tables of serving: what each asks, and what was measured.
//!
//! Three layouts of columns are known, told apart by their headers: throughput of TensorRT-LLM (`layout`, `isl`, `osl`, `metric`), its
//! online serving (`qps`), and served models with latencies (`silicon_ttft_ms`). A row whose model or GPU is in no book, or which the
//! rules of scoring leave out, is told with its reason.

use super::{
    Engine, ServedFormat, ServingLayout, ServingWork,
    batching::{Lengths, users_apart},
    format::chip,
    parameters::ServingParameters,
    recipes::{Run, told},
    step::Replica,
};
use crate::{
    hardware::{HardwareBook, Machine},
    predict::{
        ModelBook, Transformer,
        tables::{Csv, Row as Cells, group},
    },
};
use std::collections::{BTreeMap, BTreeSet};

/// What a published number measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Measure {
    /// Output tokens a second.
    Throughput,
    /// Time to the first token, milliseconds.
    FirstToken,
    /// Time per further token, milliseconds.
    PerToken,
}

impl Measure {
    pub const ALL: [Measure; 3] = [Self::Throughput, Self::FirstToken, Self::PerToken];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::FirstToken => "time to first token",
            Self::PerToken => "time per token",
        }
    }

    /// What is compared, with its unit.
    pub const fn quantity(self) -> &'static str {
        match self {
            Self::Throughput => "output tokens/s",
            Self::FirstToken => "ms to first token",
            Self::PerToken => "ms/token",
        }
    }
}

/// The load of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked {
    Queued { requests: f64, per_gpu: bool, layout: ServingLayout },
    Batch { sequences: f64, per_gpu: bool, layout: ServingLayout },
    Users { users: f64, layout: ServingLayout },
    Apart { users: f64, prompts: (ServingLayout, Option<f64>), decoding: (ServingLayout, f64) },
    Rate { rate: f64, requests: f64, layout: ServingLayout },
}

/// A row that can be predicted.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub id: String,
    /// In the file, from 1.
    pub line: usize,
    /// Rows of one model, GPU and precision: they are held out together.
    pub group: String,
    pub table: &'static str,
    /// Engine and kind of run.
    pub kind: String,
    pub gpu: String,
    pub work: ServingWork,
    pub machine: Machine,
    pub lengths: Lengths,
    pub asked: Asked,
    pub published: Vec<(Measure, f64)>,
    /// The row does not say what its layout is, so that an assumption stands in for it: it is predicted, but neither fitted nor counted with
    /// the others.
    pub unstated: bool,
    /// All that the row says about its configuration: rows with the same text and other results are repeated measurements.
    pub configuration: String,
}

/// A row that is left out.
#[derive(Clone, Debug, PartialEq)]
pub struct LeftOut {
    pub id: String,
    pub line: usize,
    pub reason: String,
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Read {
    pub rows: Vec<Row>,
    pub left_out: Vec<LeftOut>,
}

impl Read {
    fn take(&mut self, cells: &Cells, row: Result<Row, String>) {
        match row {
            Ok(row) => self.rows.push(Row { id: name_of(cells), line: cells.line, ..row }),
            Err(reason) => self.left_out.push(LeftOut { id: name_of(cells), line: cells.line, reason }),
        }
    }
}

/// Whether these columns are those of a table of serving.
pub fn is_serving(csv: &Csv) -> bool {
    csv.has("silicon_tpot_ms") || (csv.has("isl") && csv.has("osl") && (csv.has("qps") || (csv.has("metric") && csv.has("unit"))))
}

/// The rows of a table of serving.
pub fn read(csv: &Csv, hardware: &HardwareBook, models: &ModelBook) -> Read {
    let books = Books { hardware, models };
    if csv.has("silicon_tpot_ms") {
        return books.served(csv);
    }
    let mut all = Read::default();
    for cells in csv.rows() {
        all.take(&cells, if csv.has("qps") { books.online(&cells) } else { books.throughput(&cells) });
    }
    all
}

struct Books<'a> {
    hardware: &'a HardwareBook,
    models: &'a ModelBook,
}

fn text<'a>(row: &Cells<'a>, key: &str) -> &'a str {
    row.text(key).unwrap_or_default()
}

fn number(row: &Cells, key: &str) -> Option<f64> {
    row.number(key)
}

/// A size of a layout; 0 and an empty cell mean that nothing is divided.
fn size(row: &Cells, key: &str) -> u32 {
    number(row, key).unwrap_or(1.0).max(1.0) as u32
}

fn wanted(row: &Cells, key: &str) -> Result<f64, String> {
    number(row, key).ok_or_else(|| format!("no number in `{key}`"))
}

impl Books<'_> {
    /// The model of that name, or of the name without what checkpoints add to it: tuning, format, date.
    fn model(&self, name: &str) -> Option<&Transformer> {
        const ADDED: [&str; 18] = [
            "instruct", "chat", "hf", "it", "base", "thinking", "fp8", "fp4", "nvfp4", "mxfp4", "bf16", "int4", "int8", "awq",
            "gptq", "block", "dynamic", "v1",
        ];
        let mut name = name;
        loop {
            if let Some(model) = self.models.find(name) {
                return Some(model);
            }
            let (shorter, last) = name.rsplit_once(['-', ' ', '_'])?;
            let is_date = (4..=8).contains(&last.len()) && last.chars().all(|one| one.is_ascii_digit());
            if !is_date && !ADDED.contains(&last.to_lowercase().as_str()) {
                return None;
            }
            name = shorter;
        }
    }

    fn parts(&self, model: &str, gpu: &str) -> Result<(&Transformer, String, Machine), String> {
        let model = self.model(model).ok_or_else(|| format!("no model `{model}`"))?;
        let gpu = self.hardware.find_in(gpu).ok_or_else(|| format!("no GPU `{gpu}`"))?;
        Ok((model, gpu.name.clone(), gpu.machine))
    }

    /// `trtllm_*.csv`.
    fn throughput(&self, row: &Cells) -> Result<Row, String> {
        let (model, gpu, machine) = self.parts(text(row, "model"), text(row, "gpu"))?;
        let work = ServingWork::of(model);
        let version = text(row, "version");
        if version == "0.6.1" && text(row, "gpu").starts_with("A100") {
            return Err("0.6.1 on A100: the unit is ambiguous".to_string());
        }
        let compiled = version.starts_with("0.");
        let engine = if compiled { Engine::TensorRtCompiled } else { Engine::TensorRt };
        let format = format_of(model, text(row, "precision"))?;
        let mut layout = ServingLayout::single(size(row, "tp"), format, engine);
        layout.pipeline = size(row, "pp");
        let mut data = size(row, "dep");
        for part in text(row, "layout").split(',') {
            let number = |prefix: &str| part.trim().strip_prefix(prefix).and_then(|digits| digits.parse::<u32>().ok());
            if let Some(ranks) = number("DEP") {
                data = ranks;
            } else if let Some(stages) = number("PP") {
                layout.pipeline = stages;
            } else if let Some(ranks) = number("TP") {
                layout.tensor = ranks;
            }
        }
        let with_experts = work.expert_layers > 0.0;
        // The pages of 1.0 run models with experts with attention on each rank, whatever they call the layout.
        if with_experts && version == "1.0" && data == 1 {
            data = layout.tensor;
        }
        if data > 1 {
            (layout.tensor, layout.attention_data, layout.expert) = (1, data, data);
        } else if with_experts && !compiled {
            layout.expert = layout.tensor;
        }
        // The pages raise the share of the cache to 0.95.
        layout.cache_share_of_free = 0.95;
        let lengths = Lengths { input: wanted(row, "isl")?, output: wanted(row, "osl")?, equal: true };
        let (metric, unit) = (text(row, "metric"), text(row, "unit"));
        let per_gpu = unit.contains("/GPU") || metric.contains("per GPU");
        let value = wanted(row, "value")?;
        let batch = number(row, "batch");
        let (asked, measure, kind) = if metric.starts_with("first token") {
            (Asked::Batch { sequences: batch.unwrap_or(1.0), per_gpu: false, layout }, Measure::FirstToken, "batch")
        } else if metric.contains("static") {
            (Asked::Batch { sequences: wanted(row, "batch")?, per_gpu, layout }, Measure::Throughput, "batch")
        } else {
            (Asked::Queued { requests: requests(lengths), per_gpu, layout }, Measure::Throughput, "queued")
        };
        Ok(Row {
            id: String::new(),
            line: 0,
            group: group(&model.name, &gpu, format.name()),
            table: "trtllm",
            kind: format!("tensorrt-llm {version} {kind}{}", if data > 1 { ", attention data parallel" } else { "" }),
            configuration: format!("{version} {gpu} {} {format:?} {asked:?} {lengths:?} {measure:?}", model.name),
            gpu,
            work,
            machine,
            lengths,
            asked,
            published: vec![(measure, value)],
            unstated: false,
        })
    }

    /// `trtllm_online_serving.csv`.
    fn online(&self, row: &Cells) -> Result<Row, String> {
        let (model, gpu, machine) = self.parts(text(row, "model"), text(row, "gpu"))?;
        let format = format_of(model, text(row, "precision"))?;
        let layout = ServingLayout::single(size(row, "tp"), format, Engine::TensorRtCompiled);
        let lengths = Lengths { input: wanted(row, "isl")?, output: wanted(row, "osl")?, equal: true };
        let rate = number(row, "qps").unwrap_or(f64::INFINITY);
        let asked = Asked::Rate { rate, requests: wanted(row, "requests")?, layout };
        Ok(Row {
            id: String::new(),
            line: 0,
            group: group(&model.name, &gpu, format.name()),
            table: "trtllm_online",
            kind: format!("tensorrt-llm {} online", text(row, "version")),
            configuration: format!("{gpu} {} {asked:?} {lengths:?}", model.name),
            gpu,
            work: ServingWork::of(model),
            machine,
            lengths,
            asked,
            published: vec![
                (Measure::Throughput, wanted(row, "output_tokens_per_s")?),
                (Measure::FirstToken, wanted(row, "mean_ttft_ms")?),
                (Measure::PerToken, wanted(row, "mean_itl_ms")?),
            ],
            unstated: false,
        })
    }

    /// `serving_silicon.csv`.
    fn served(&self, csv: &Csv) -> Read {
        const OTHER: [&str; 6] = ["source_id", "row_id", "measured", "dump", "wip", "backend_version"];
        let mut all = Read::default();
        let mut seen = BTreeSet::new();
        // The same run stands in several dumps, in some of them without the numbers of workers: those are taken from its twin.
        let stated: BTreeMap<String, Cells> =
            csv.rows().filter(|row| row.text("prefill_num_workers").is_some()).map(|row| (run(&row), row)).collect();
        let mut most: BTreeMap<String, f64> = BTreeMap::new();
        for row in stated.values().filter(|row| text(row, "backend") == "trtllm") {
            if let Some(users) = number(row, "concurrency") {
                let most = most.entry(deployment(csv, row)).or_default();
                *most = users.max(*most);
            }
        }
        for row in csv.rows() {
            let told = csv.columns().iter().zip(row.cells()).filter(|(column, _)| !OTHER.contains(&column.as_str()));
            let whole: Vec<&str> = told.map(|(_, cell)| cell.as_str()).collect();
            let repeat = || Err("repeats another row exactly".to_string());
            let read = if seen.insert(whole.join("|")) {
                self.served_row(
                    &row,
                    stated.get(&run(&row)),
                    most.get(&deployment(csv, stated.get(&run(&row)).unwrap_or(&row))).copied(),
                )
            } else {
                repeat()
            };
            // A row that got its layout from its twin may now say the same as that.
            let mut is_new = |read: &Row| seen.insert(format!("{} {:?}", read.configuration, read.published));
            all.take(&row, read.and_then(|read| if is_new(&read) { Ok(read) } else { repeat() }));
        }
        all
    }

    fn served_row(&self, row: &Cells, twin: Option<&Cells>, most_users: Option<f64>) -> Result<Row, String> {
        let (model, gpu, machine) = self.parts(text(row, "model_path"), text(row, "system"))?;
        let work = ServingWork::of(model);
        let backend = text(row, "backend");
        let engine = match backend {
            "trtllm" if text(row, "backend_version").starts_with("1.0") => Engine::TensorRtCandidate,
            other => Engine::named(other).ok_or_else(|| format!("no engine `{other}`"))?,
        };
        let precision = match text(row, "precision") {
            "" => text(row, "gemm_quant_mode"),
            word => word,
        };
        let format = format_of(model, if precision.is_empty() { "bf16" } else { precision })?;
        let printed_lengths = Lengths { input: wanted(row, "isl")?, output: wanted(row, "osl")?, equal: true };
        // Those with the candidates of 1.0 have no day and are not runs of the benchmark, but the publisher's own: all requests of one length.
        let equal = text(row, "measured").is_empty() && engine == Engine::TensorRtCandidate;
        let drawn = if equal { 1.0 } else { DRAWN_LENGTH };
        let lengths = Lengths { input: printed_lengths.input * drawn, output: printed_lengths.output * drawn, equal };
        let layout_row = twin.unwrap_or(row);
        let apart = text(layout_row, "mode") == "disagg";
        let with_experts = work.expert_layers > 0.0;
        let users = match number(row, "concurrency") {
            Some(users) => users,
            None if apart => {
                wanted(row, "decode_batch_size")?
                    * f64::from(size(row, "decode_num_workers") * size(row, "decode_attention_dp_size"))
            }
            None => wanted(row, "batch_size")? * f64::from(size(row, "attention_dp_size")),
        };
        let known_workers = layout_row.text("prefill_num_workers").is_some();
        let base = ServingLayout::single(1, format, engine);
        let run = Run {
            model: &model.name,
            gpu: &gpu,
            release: text(row, "backend_version"),
            measured: text(row, "measured"),
            lengths: printed_lengths,
            users,
        };
        let room = |layout: &ServingLayout| layout.cache_room(&work, &machine) > 0.0;
        let (asked, unstated) = if !apart {
            let layout = printed(layout_row, "", &base, with_experts);
            let gpus = layout.tensor * layout.attention_data;
            // No engine divides a layer over more GPUs than a server has here: such sizes are those of all machines of prompts and decoding.
            if gpus > 8 {
                (assumed(&base, gpus, gpus, users, room), true)
            } else {
                (Asked::Users { users, layout: told(layout, &run) }, false)
            }
        } else if known_workers {
            let workers = |key: &str| f64::from(size(layout_row, key));
            let prompts = (printed(layout_row, "prefill_", &base, with_experts), Some(workers("prefill_num_workers")));
            let mut decoding = (printed(layout_row, "decode_", &base, with_experts), workers("decode_num_workers"));
            if let Some(most) = most_users {
                let of_rank = most / decoding.1 / f64::from(decoding.0.attention_data);
                decoding.0.most_sequences = places(of_rank);
            }
            (Asked::Apart { users, prompts, decoding }, false)
        } else {
            let gpus = |prefix: &str| {
                let layout = printed(layout_row, prefix, &base, with_experts);
                layout.tensor * layout.attention_data
            };
            (assumed(&base, gpus("prefill_"), gpus("decode_"), users, room), true)
        };
        let kind = match (&asked, unstated) {
            (Asked::Users { .. }, false) => "together",
            (_, false) => "apart",
            (_, true) if text(layout_row, "mode") == "agg" => "together, layout not stated",
            (_, true) => "apart, workers not stated",
        };
        Ok(Row {
            id: String::new(),
            line: 0,
            group: group(&model.name, &gpu, format.name()),
            table: "serving_silicon",
            kind: format!("served {backend} {kind}"),
            configuration: format!("{gpu} {} {backend} {asked:?} {lengths:?}", model.name),
            gpu,
            work,
            machine,
            lengths,
            asked,
            published: vec![
                (Measure::FirstToken, wanted(row, "silicon_ttft_ms")?),
                (Measure::PerToken, wanted(row, "silicon_tpot_ms")?),
            ],
            unstated,
        })
    }
}

/// Sequences that one rank of a decoder takes at most, where so many users came to each rank in the deployment's fullest run. The names of the
/// benchmark's configuration files say it (InferenceX, `.github/configs/nvidia-master.yaml`: `ctx1_gen5_tep8_batch32` for 10 to 180 users on five
/// decoders), the table does not: users of the fullest run are mostly 1.0 to 1.5 times the places, and places powers of two, or 768.
fn places(users: f64) -> u32 {
    const LIMITS: [u32; 12] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024];
    LIMITS.into_iter().rev().find(|limit| f64::from(*limit) <= users).unwrap_or(1)
}

/// The benchmark behind `serving_silicon` draws lengths evenly between 0.8 of those that it prints and the whole.
const DRAWN_LENGTH: f64 = 0.9;
/// From how many users on the rows that print their workers have attention with data of its own on each rank.
const MANY_USERS: f64 = 256.0;

fn name_of(row: &Cells) -> String {
    row.text("source_id").map_or_else(|| format!("line {}", row.line), str::to_string)
}

/// Families whose makers publish their 8-bit checkpoints with a scale for each block (`weight_block_size` in the `config.json` of
/// DeepSeek-V3, Qwen3-32B-FP8, MiniMax-M2.5, GLM-5-FP8), whatever a table calls them.
const BLOCK_SCALED: [&str; 4] = ["deepseek-v3", "qwen3", "minimax-m2", "glm-5"];

/// The format of a checkpoint: gpt-oss is published in MXFP4 alone, whatever a table calls it.
fn format_of(model: &Transformer, word: &str) -> Result<ServedFormat, String> {
    if model.name.starts_with("gpt-oss") {
        return Ok(ServedFormat::Mxfp4);
    }
    match ServedFormat::named(word).ok_or_else(|| format!("no precision `{word}`"))? {
        ServedFormat::Fp8 if BLOCK_SCALED.iter().any(|family| model.name.starts_with(family)) => Ok(ServedFormat::Fp8Block),
        format => Ok(format),
    }
}

/// Requests of a queued run: the pages print them for each pair of lengths ("Preparing a Dataset"), 1,500 where they do not.
fn requests(lengths: Lengths) -> f64 {
    match (lengths.input as u32, lengths.output as u32) {
        (128, 128) => 30_000.0,
        (128, 2048) | (2048, 128) | (1000, 1000) | (500, 2000) => 3000.0,
        (20_000, 2000) => 1000.0,
        _ => 1500.0,
    }
}

/// What makes two rows runs of the same servers, with other numbers of users.
fn deployment(csv: &Csv, row: &Cells) -> String {
    const OTHER: [&str; 10] = [
        "source_id",
        "row_id",
        "concurrency",
        "wip",
        "dump",
        "batch_size",
        "prefill_batch_size",
        "decode_batch_size",
        "silicon_ttft_ms",
        "silicon_tpot_ms",
    ];
    let told = csv.columns().iter().zip(row.cells()).filter(|(column, _)| !OTHER.contains(&column.as_str()));
    told.map(|(_, cell)| cell.as_str()).collect::<Vec<_>>().join("|")
}

/// What makes two rows the same run.
fn run(row: &Cells) -> String {
    let rounded = |key: &str| number(row, key).map_or(String::new(), |value| format!("{value:.3}"));
    ["system", "backend", "isl", "osl"].map(|key| text(row, key)).join("|")
        + &format!("|{}|{}|{}", rounded("concurrency"), rounded("silicon_ttft_ms"), rounded("silicon_tpot_ms"))
}

/// A layout as the columns with this prefix print it. Two readings are mended, each shown by rows that print the same two times with both
/// layouts: sizes that were multiplied by themselves (tensor 64 with experts 8 x 8 is 8 GPUs), and ranks of attention that were counted
/// again as tensor-parallel ones.
fn printed(row: &Cells, prefix: &str, base: &ServingLayout, with_experts: bool) -> ServingLayout {
    let of = |key: &str| size(row, &format!("{prefix}{key}"));
    let (tensor, data) = (of("tp_size"), of("attention_dp_size"));
    let (expert_tensor, expert) = (of("moe_tp_size"), of("moe_ep_size"));
    let with = |tensor: u32, data: u32, expert: u32| ServingLayout {
        tensor,
        attention_data: data,
        expert,
        pipeline: of("pp_size"),
        ..*base
    };
    if !with_experts {
        return with(tensor, data, 1);
    }
    if tensor * data >= 16 && expert_tensor == expert && expert > 1 {
        return if data > 1 { with(1, expert, expert) } else { with(expert, 1, expert) };
    }
    if tensor == data && tensor > 1 {
        return with(1, tensor, tensor);
    }
    let ranks = tensor * data;
    with(tensor, data, if ranks.is_multiple_of(expert) { expert } else { 1 })
}

/// Prompts and decoding apart, where the row does not say how many workers there are or how they share the work. What the rows that do say have in
/// the median: few users on four decoders that divide every layer, many on one whose ranks have attention of their own, with more of them where
/// more than 64 users would come on a GPU; as many readers as keep up.
fn assumed(base: &ServingLayout, prompt_gpus: u32, decode_gpus: u32, users: f64, fits: impl Fn(&ServingLayout) -> bool) -> Asked {
    let wide = users >= MANY_USERS;
    let of = |gpus: u32| {
        if wide {
            ServingLayout { tensor: 1, attention_data: gpus, expert: gpus, ..*base }
        } else {
            ServingLayout { tensor: gpus, attention_data: 1, expert: gpus, ..*base }
        }
    };
    // The smallest of so many GPUs or more that holds the weights.
    let holding = |gpus: u32| (0..=6).map(|power| of(gpus << power)).find(|layout| fits(layout)).unwrap_or(of(gpus));
    if prompt_gpus == decode_gpus && decode_gpus > 8 {
        // One size for both that no worker has: all GPUs, of which the largest power of two decodes, readers have four each.
        let decoders = if decode_gpus.is_power_of_two() { decode_gpus / 2 } else { 1 << decode_gpus.ilog2() };
        let readers = f64::from((decode_gpus - decoders) / 4).max(1.0);
        return Asked::Apart { users, prompts: (holding(4), Some(readers)), decoding: (holding(decoders), 1.0) };
    }
    let decoding = holding(decode_gpus);
    let decoders = if wide { (users / 64.0 / f64::from(decoding.replica_gpus())).round().max(1.0) } else { 4.0 };
    Asked::Apart { users, prompts: (holding(prompt_gpus), None), decoding: (decoding, decoders) }
}

impl Row {
    /// What is predicted for each published number; NaN where the model says that it cannot run.
    pub fn predicted(&self, parameters: &ServingParameters) -> Vec<f64> {
        let replica = |layout| Replica { work: &self.work, machine: &self.machine, layout, parameters };
        let shared = |per_gpu: bool, layout: &ServingLayout| if per_gpu { f64::from(layout.replica_gpus()) } else { 1.0 };
        let lengths = self.lengths;
        let values = |first: f64, per: f64, rate: f64| -> Vec<f64> {
            let of = |measure: &Measure| match measure {
                Measure::Throughput => rate,
                Measure::FirstToken => first * 1e3,
                Measure::PerToken => per * 1e3,
            };
            self.published.iter().map(|(measure, _)| of(measure)).collect()
        };
        match &self.asked {
            Asked::Queued { requests, per_gpu, layout } => {
                let time = replica(layout).queued(*requests, lengths).unwrap_or(f64::NAN);
                values(f64::NAN, f64::NAN, requests * lengths.output / time / shared(*per_gpu, layout))
            }
            Asked::Batch { sequences, per_gpu, layout } => {
                let (first, all) = replica(layout).batch(*sequences, lengths);
                values(first, f64::NAN, sequences * lengths.output / all / shared(*per_gpu, layout))
            }
            Asked::Users { users, layout } => {
                let seen = replica(layout).users(*users, lengths);
                values(seen.first_token, seen.per_token, f64::NAN)
            }
            Asked::Apart { users, prompts, decoding } => {
                let seen = users_apart((&replica(&prompts.0), prompts.1), (&replica(&decoding.0), decoding.1), *users, lengths);
                values(seen.first_token, seen.per_token, f64::NAN)
            }
            Asked::Rate { rate, requests, layout } => {
                let (seen, time) = replica(layout).run(*rate, *requests, lengths);
                values(seen.first_token, seen.per_token, requests * lengths.output / time)
            }
        }
    }

    fn layout(&self) -> &ServingLayout {
        match &self.asked {
            Asked::Queued { layout, .. }
            | Asked::Batch { layout, .. }
            | Asked::Users { layout, .. }
            | Asked::Rate { layout, .. } => layout,
            Asked::Apart { decoding, .. } => &decoding.0,
        }
    }

    pub fn engine(&self) -> Engine {
        self.layout().engine
    }

    pub fn format(&self) -> ServedFormat {
        self.layout().format
    }

    /// Tokens that a step proposes.
    pub fn draft_tokens(&self) -> u32 {
        self.layout().draft_tokens
    }

    /// Its name in the book.
    pub fn model(&self) -> &str {
        self.group.split('|').next().unwrap_or_default()
    }

    /// The group of chips whose efficiencies the row is predicted with.
    pub fn chip(&self) -> usize {
        chip(&self.machine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn books<T>(asked: impl FnOnce(&Books) -> T) -> T {
        asked(&Books { hardware: &HardwareBook::shipped(), models: &ModelBook::shipped() })
    }

    #[test]
    fn names_of_checkpoints_are_found() {
        books(|books| {
            for (name, model) in [
                ("LLaMA v3.3 70B", "llama-3.1-70b"),
                ("Llama 3.3 70B", "llama-3.1-70b"),
                ("LLaMA v4 Scout", "llama-4-scout-17b-16e"),
                ("LLaMA v4 Maverick", "llama-4-maverick-17b-128e"),
                ("LLaMA 7B", "llama-2-7b"),
                ("LLaMA 70B", "llama-2-70b"),
                ("LLaMA 3.1 8B", "llama-3.1-8b"),
                ("Falcon 180B", "falcon-180b"),
                ("Mixtral 8x22B", "mixtral-8x22b"),
                ("meta-llama/Llama-3.3-70B-Instruct-FP8", "llama-3.1-70b"),
                ("nvidia/Llama-3.1-405B-Instruct-FP4", "llama-3.1-405b"),
                ("nvidia/Qwen3-32B-NVFP4", "qwen3-32b"),
                ("deepseek-ai/DeepSeek-R1-0528", "deepseek-v3"),
                ("nvidia/DeepSeek-V3.1-NVFP4", "deepseek-v3"),
                ("Qwen/Qwen3-30B-A3B-Instruct-2507", "qwen3-30b-a3b"),
                ("moonshotai/Kimi-K2-Instruct", "kimi-k2"),
                ("zai-org/GLM-5-FP8", "glm-5"),
                ("MiniMaxAI/MiniMax-M2", "minimax-m2.5"),
            ] {
                assert_eq!(books.model(name).map(|found| found.name.as_str()), Some(model), "{name}");
            }
            assert!(books.model("no such-fp8").is_none());
        });
    }

    /// Places of a decoder: those of the deployment's fullest run, whichever of its runs a row is.
    #[test]
    fn a_decoder_has_the_places_that_its_fullest_run_fills() {
        assert_eq!([1.4, 3.0, 9.0, 48.0, 274.0, 768.0, 0.5].map(places), [1, 2, 8, 32, 256, 768, 1]);
        let header = "source_id,measured,concurrency,backend,backend_version,model_path,system,precision,mode,isl,osl,\
                      prefill_num_workers,prefill_tp_size,prefill_attention_dp_size,decode_num_workers,decode_tp_size,\
                      decode_attention_dp_size,decode_batch_size,silicon_ttft_ms,silicon_tpot_ms";
        let row = |id: &str, backend: &str, users: u32| {
            format!(
                "{id},2026-02-03,{users},{backend},x,deepseek-ai/DeepSeek-V3,gb300,fp4,disagg,1024,1024,1,1,2,4,8,1,1,{users},9\n"
            )
        };
        let text = format!("{header}\n{}{}{}", row("a", "trtllm", 12), row("b", "trtllm", 192), row("c", "sglang", 192));
        let csv = Csv::read(&text).unwrap();
        let read = read(&csv, &HardwareBook::shipped(), &ModelBook::shipped());
        let most: Vec<u32> = read.rows.iter().map(|row| row.layout().most_sequences).collect();
        assert_eq!(most, [32, 32, 2048], "{:?}", read.left_out);
    }

    #[test]
    fn sizes_that_were_multiplied_by_themselves_are_mended() {
        let header = "tp_size,attention_dp_size,moe_tp_size,moe_ep_size,pp_size";
        let base = ServingLayout::single(1, ServedFormat::Fp4, Engine::TensorRt);
        for (cells, tensor, data, expert) in [
            ("64,1,8,8,1", 8, 1, 8),
            ("1,64,8,8,1", 1, 8, 8),
            ("1,16,4,4,1", 1, 4, 4),
            ("4,4,1,16,1", 1, 4, 4),
            ("8,1,1,8,1", 8, 1, 8),
            ("8,1,8,1,1", 8, 1, 1),
            ("1,8,1,8,1", 1, 8, 8),
        ] {
            let csv = Csv::read(&format!("{header}\n{cells}\n")).unwrap();
            let layout = printed(&csv.rows().next().unwrap(), "", &base, true);
            assert_eq!((layout.tensor, layout.attention_data, layout.expert), (tensor, data, expert), "{cells}");
        }
    }
}
