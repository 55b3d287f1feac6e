//! A plan: the question that a TOML file asks of machines that are not here, read into types.
//!
//! `plan_shape` says which keys the file may have; here is what they mean, and the mistakes that no shape can see. Names of models, GPUs
//! and number formats are those of `Known`. Pure but for `Plan::load`, which reads one file.

use super::{
    layout::{Recompute, Sharding},
    plan_shape::{self, MOST_GPUS},
};
use crate::{
    input::{self, Diagnostic, Report, Source, Table},
    units::{Joules, Seconds, Usd, UsdPerHour},
    vocab::{Phase, Precision, Vocabulary},
};
use std::path::{Path, PathBuf};

/// What a plan file means.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// As the user gave it.
    pub path: PathBuf,
    /// The file as it was read.
    pub text: String,
    /// `[a-z0-9-]+`, at most 64 characters; the output folder's name.
    pub name: String,
    pub question: String,
    pub model: ModelWords,
    pub work: Work,
    /// At least one.
    pub machines: Vec<MachineWords>,
    pub limits: Limits,
    pub objective: PlanObjective,
    pub operation: Operation,
    pub layouts: LayoutLimits,
}

/// A model as the file gives it: a published shape, numbers, or a shape with numbers changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelWords {
    /// The file of a scenario whose graph is meant, as the plan has it; nothing else is said then.
    pub scenario: Option<String>,
    pub shape: Option<String>,
    pub layers: Option<u32>,
    pub hidden: Option<u32>,
    pub heads: Option<u32>,
    pub kv_heads: Option<u32>,
    pub head_size: Option<u32>,
    pub feed_forward: Option<u32>,
    pub gated: Option<bool>,
    pub vocabulary: Option<u32>,
    pub tied_embeddings: Option<bool>,
    pub experts: Option<ExpertWords>,
    pub prediction_layers: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertWords {
    pub count: u32,
    pub active: u32,
    pub feed_forward: Option<u32>,
    pub shared: u32,
    pub dense_layers: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    Train(TrainWork),
    Serve(ServeWork),
    Graph(GraphWork),
}

/// What the graph of a scenario does; what is left out is as the scenario says.
#[derive(Clone, Debug, PartialEq)]
pub struct GraphWork {
    pub phase: Phase,
    /// Of the whole training.
    pub examples: Option<f64>,
    pub epochs: Option<f64>,
    /// Examples of a step over all GPUs, rising.
    pub batches: Option<Vec<u32>>,
    pub precisions: Option<Vec<Precision>>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TrainWork {
    pub tokens: f64,
    pub sequence_length: u32,
    /// Sequences of an optimizer step, rising.
    pub batches: Vec<u32>,
    /// Places in `Known::precisions`, as listed in the file.
    pub precisions: Vec<usize>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ServeWork {
    pub requests_per_s: f64,
    pub input_tokens: u32,
    pub output_tokens: u32,
    pub max_first_token: Option<Seconds>,
    pub max_per_token: Option<Seconds>,
    /// Places in `Known::weights`.
    pub weights: Vec<usize>,
    /// Place in `Known::kv_caches`.
    pub kv_cache: usize,
    /// Place in `Known::engines`.
    pub engine: usize,
    /// Tokens proposed a step, rising; at least one number. 0 is none.
    pub draft_tokens: Vec<u32>,
    /// Chance that a proposed token is accepted, given that those before it were; absent where the fitted one holds.
    pub draft_acceptance: Option<f64>,
}

impl ServeWork {
    /// Whether tokens may be proposed.
    pub fn drafts(&self) -> bool {
        self.draft_tokens.iter().any(|tokens| *tokens > 0)
    }
}

/// Machines of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineWords {
    /// Place in `Known::gpus`.
    pub gpu: usize,
    pub gpus: GpuCounts,
    pub price: PriceWords,
    pub spot_usd_per_gpu_hour: Option<UsdPerHour>,
    /// Bytes a second for each GPU and direction, in place of the hardware book's.
    pub network_bytes_per_s: Option<f64>,
}

/// How many GPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuCounts {
    /// Rising.
    Listed(Vec<u32>),
    /// Every whole number of machines from the one to the other.
    Range(u32, u32),
}

#[derive(Clone, Debug, PartialEq)]
pub enum PriceWords {
    /// The cheapest entry of the price book.
    Cheapest,
    Instance(String),
    PerGpuHour(UsdPerHour),
}

/// What an answer must keep to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    pub time: Option<Seconds>,
    pub cost: Option<Usd>,
    pub energy: Option<Joules>,
    pub gpus: Option<u32>,
    pub memory_share: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanObjective {
    Cost,
    Time,
    Energy,
}

impl PlanObjective {
    pub fn name(self) -> &'static str {
        match self {
            PlanObjective::Cost => "cost",
            PlanObjective::Time => "time",
            PlanObjective::Energy => "energy",
        }
    }
}

/// Failures, checkpoints and power.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Operation {
    pub failures_per_gpu_year: f64,
    pub restart: Seconds,
    pub checkpoint_bytes_per_s_per_gpu: f64,
    pub power_usage_effectiveness: f64,
    /// Interruptions of one machine in a day at spot prices; absent where these are no answer.
    pub spot_interruptions_per_machine_day: Option<f64>,
    /// From the loss of a machine at spot prices until another serves in its place; as `restart` where it is absent.
    pub spot_replacement: Option<Seconds>,
    /// Share of the time in which enough machines at spot prices must be there to serve the load.
    pub spot_availability: f64,
}

impl Operation {
    /// 43 minutes a month.
    pub const SPOT_AVAILABILITY: f64 = 0.999;
    /// Llama 3 405B, 16,384 H100 (arXiv 2407.21783, section 3.3.4): 419 unexpected interruptions in 54 days, that is
    /// 419 / (16,384 x 54 / 365.25) for each GPU and year.
    pub const FAILURES_PER_GPU_YEAR: f64 = 419.0 * 365.25 / (16_384.0 * 54.0);
    /// An assumption, not a published figure. The same paper's effective training time above 90 % at 466 interruptions in 54 days leaves each
    /// at most 17 minutes, lost work included.
    pub const RESTART: Seconds = Seconds(600.0);
    /// 2 TB/s sustained by the storage of the same run (section 3.3.1), over its 16,384 GPUs.
    pub const CHECKPOINT_BYTES_PER_S_PER_GPU: f64 = 2e12 / 16_384.0;
}

impl Default for Operation {
    fn default() -> Self {
        Operation {
            failures_per_gpu_year: Self::FAILURES_PER_GPU_YEAR,
            restart: Self::RESTART,
            checkpoint_bytes_per_s_per_gpu: Self::CHECKPOINT_BYTES_PER_S_PER_GPU,
            power_usage_effectiveness: 1.0,
            spot_interruptions_per_machine_day: None,
            spot_replacement: None,
            spot_availability: Self::SPOT_AVAILABILITY,
        }
    }
}

/// Limits of the search; `None` is every value that fits. Rising.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayoutLimits {
    pub tensor: Option<Vec<u32>>,
    pub pipeline: Option<Vec<u32>>,
    pub context: Option<Vec<u32>>,
    pub expert: Option<Vec<u32>>,
    pub micro_batch: Option<Vec<u32>>,
    pub interleaving: Option<Vec<u32>>,
    pub recompute: Option<Vec<Recompute>>,
    pub sharding: Option<Vec<Sharding>>,
}

impl LayoutLimits {
    /// Each limit that is stated, by its key, with the others alone; and all of them, with none, where there are several.
    pub fn lifted(&self) -> Vec<(&'static str, LayoutLimits)> {
        let with = |change: fn(&mut LayoutLimits)| {
            let mut limits = self.clone();
            change(&mut limits);
            limits
        };
        type Limit = (&'static str, bool, fn(&mut LayoutLimits));
        let each: [Limit; 8] = [
            ("tensor", self.tensor.is_some(), |limits| limits.tensor = None),
            ("pipeline", self.pipeline.is_some(), |limits| limits.pipeline = None),
            ("context", self.context.is_some(), |limits| limits.context = None),
            ("expert", self.expert.is_some(), |limits| limits.expert = None),
            ("micro_batch", self.micro_batch.is_some(), |limits| limits.micro_batch = None),
            ("interleaving", self.interleaving.is_some(), |limits| limits.interleaving = None),
            ("recomputation", self.recompute.is_some(), |limits| limits.recompute = None),
            ("zero", self.sharding.is_some(), |limits| limits.sharding = None),
        ];
        let mut out: Vec<_> =
            each.into_iter().filter(|(_, is_stated, _)| *is_stated).map(|(key, _, change)| (key, with(change))).collect();
        if out.len() > 1 {
            out.push(("[layouts]", LayoutLimits::default()));
        }
        out
    }
}

/// The names that a file may use and that this file does not own.
pub struct Known<'a> {
    pub models: &'a [&'a str],
    /// The name of the model that a spelling means, such as those of published tables (`LLAMA3_8B`).
    pub spelt: &'a dyn Fn(&str) -> Option<&'a str>,
    /// Those of them that have layers which predict further tokens.
    pub predicting_models: &'a [&'a str],
    /// GPUs with their aliases, by place.
    pub gpus: &'a [&'a [&'a str]],
    pub precisions: &'a [&'a str],
    pub weights: &'a [&'a str],
    pub kv_caches: &'a [&'a str],
    /// The first is what holds where a plan names none.
    pub engines: &'a [&'a str],
    /// Price catalogue entries: `nebius/gpu-h100-sxm_8gpu-128vcpu-1600gb`.
    pub instances: &'a [String],
}

impl Plan {
    /// Reads a file; the error is every mistake in it, in the order of the file.
    pub fn load(path: &Path, known: &Known) -> Result<Plan, Vec<Diagnostic>> {
        Plan::read(Source::read(path).map_err(|diagnostic| vec![diagnostic])?, known)
    }

    /// As `load`, from a text that was read already.
    pub fn read(source: Source, known: &Known) -> Result<Plan, Vec<Diagnostic>> {
        let plan = input::parse(&source, &plan_shape::FILE, |file, report| build(file, report, known))?;
        Ok(Plan { path: source.path, text: source.text, ..plan })
    }
}

impl Plan {
    /// The mistake of a plan whose scenario is not there, at its place in the file; `near` are scenarios that are.
    pub fn without_scenario(&self, near: &[&str]) -> Vec<Diagnostic> {
        let source = Source::new(&self.path, &self.text);
        let told = input::parse(&source, &plan_shape::FILE, |file, report| {
            let Some(table) = file.table("model") else { return };
            let named = table.text("scenario").unwrap_or_default();
            report.unknown(table.span("scenario"), "scenario", named, near);
        });
        told.err().unwrap_or_default()
    }
}

/// Everything but `path` and `text`. What the checker found wrong reads as its default here: the value is dropped in the end.
fn build(file: &Table, report: &mut Report, known: &Known) -> Plan {
    let model = file.table("model").map(|table| model(&table, report, known)).unwrap_or_default();
    let run = file.table("run");
    if let Some(table) = file.table("model") {
        let (found, expected) = match (&model.scenario, &run) {
            (Some(_), None) => ("`[model]` names a scenario, and there is no `[run]`", "`run` beside a `scenario`"),
            (None, Some(_)) => ("`[run]` is for the graph of a scenario", "a `scenario` in `[model]`, or `train` or `serve`"),
            _ => ("", ""),
        };
        if !found.is_empty() {
            let key = if model.scenario.is_some() { "scenario" } else { "shape" };
            report.add(table.span(key), found).expected(expected);
        }
    }
    let work = match (file.table("train"), file.table("serve")) {
        (None, None) if run.is_some() => Work::Graph(self::run(&run.expect("seen above"), report)),
        (_, Some(serve)) => Work::Serve(self::serve(&serve, &model, report, known)),
        (train, None) => Work::Train(train.map(|table| self::train(&table, report, known)).unwrap_or(TrainWork {
            tokens: 1.0,
            sequence_length: 1,
            batches: vec![1],
            precisions: vec![0],
        })),
    };
    let name = model.shape.as_deref().unwrap_or("this model");
    let question = match &work {
        Work::Graph(run) => {
            let does = if run.phase == Phase::Train { "trains" } else { "answers with" };
            format!(
                "Which machine, and how many GPUs of it, {does} the graph of {} best?",
                model.scenario.as_deref().unwrap_or("it")
            )
        }
        Work::Train(train) => {
            format!("On which machines, and laid out how, does {name} learn from {} tokens best?", count_words(train.tokens))
        }
        Work::Serve(serve) => {
            format!(
                "Which machines, laid out how, answer {} requests a second with {name} best?",
                count_words(serve.requests_per_s)
            )
        }
    };
    Plan {
        path: PathBuf::new(),
        text: String::new(),
        name: file.text("name").unwrap_or_default().to_string(),
        question: file.text("question").map_or(question, |text| text.trim().to_string()),
        model,
        work,
        machines: file.tables("machines").unwrap_or_default().iter().map(|table| machine(table, report, known)).collect(),
        limits: file.table("limits").map(|table| limits(&table)).unwrap_or_default(),
        objective: file.table("objective").and_then(|table| objective(&table)).unwrap_or(PlanObjective::Cost),
        operation: file.table("operation").map(|table| operation(&table)).unwrap_or_default(),
        layouts: file.table("layouts").map(|table| layouts(&table)).unwrap_or_default(),
    }
}

fn number32(table: &Table, key: &str) -> Option<u32> {
    table.whole(key).and_then(|value| u32::try_from(value).ok())
}

/// One or many counts, rising.
fn sizes(table: &Table, key: &str) -> Option<Vec<u32>> {
    let mut sizes: Vec<u32> = table.counts(key)?.into_iter().filter_map(|value| u32::try_from(value).ok()).collect();
    sizes.sort_unstable();
    Some(sizes)
}

/// Places of the names under `key` in `names`; unknown ones are told.
fn named(table: &Table, key: &str, what: &str, names: &[&str], report: &mut Report) -> Option<Vec<usize>> {
    let given = table.words(key, |text| Some(text.to_string()))?;
    let mut places = Vec::new();
    for name in given {
        match names.iter().position(|known| *known == name) {
            Some(place) => places.push(place),
            None if name.trim().is_empty() => {}
            None => drop(report.unknown(table.span(key), what, &name, names)),
        }
    }
    Some(if places.is_empty() { vec![0] } else { places })
}

/// Keys of `[model]` beside `scenario`.
const SHAPE_KEYS: [&str; 12] = [
    "shape",
    "layers",
    "hidden",
    "heads",
    "kv_heads",
    "head_size",
    "feed_forward",
    "gated",
    "vocabulary",
    "tied_embeddings",
    "experts",
    "prediction_layers",
];

fn run(table: &Table, report: &mut Report) -> GraphWork {
    let phase = table.word("phase", |text| Phase::parse(text).ok()).unwrap_or(Phase::Train);
    if phase == Phase::Infer {
        for key in ["examples", "epochs"].into_iter().filter(|key| table.has(key)) {
            report
                .add(table.key_span(key), format!("`{key}` is for a training: answers are told by the million"))
                .expected("`phase = \"train\"`, or no such key");
        }
    }
    GraphWork {
        phase,
        examples: table.number("examples"),
        epochs: table.number("epochs"),
        batches: sizes(table, "batch_size"),
        precisions: table.words("precision", |text| Precision::parse(text).ok()),
    }
}

fn model(table: &Table, report: &mut Report, known: &Known) -> ModelWords {
    let scenario = table.text("scenario").map(str::to_string);
    if let Some(name) = &scenario {
        for key in SHAPE_KEYS.iter().filter(|key| table.has(key)) {
            report
                .add(
                    table.key_span(key),
                    format!("`{key}` says something of a shape, and `{name}` is a scenario with a graph of its own"),
                )
                .expected("`scenario` alone");
        }
    }
    let shape = table.text("shape").map(|text| (known.spelt)(text).unwrap_or(text).to_string());
    if let Some(name) = shape.as_deref().filter(|name| !name.trim().is_empty() && !known.models.contains(name)) {
        report.unknown(table.span("shape"), "model", name, known.models);
    }
    if shape.is_none() && scenario.is_none() {
        let numbers = ["layers", "hidden", "heads", "feed_forward", "vocabulary"];
        let missing: Vec<&str> = numbers.into_iter().filter(|key| !table.has(key)).collect();
        // Without any of its numbers it is the shape that was forgotten.
        let missing = if missing.len() == numbers.len() { vec!["shape"] } else { missing };
        for key in missing {
            report
                .add(table.span("shape"), format!("missing key `{key}` in `[model]`"))
                .expected("a published model's `shape`, or all its numbers")
                .hint("add `shape = \"llama-3.1-70b\"`, or the number");
        }
    }
    let experts = table.table("experts").map(|experts| ExpertWords {
        count: number32(&experts, "count").unwrap_or(2),
        active: number32(&experts, "active").unwrap_or(1),
        feed_forward: number32(&experts, "feed_forward"),
        shared: number32(&experts, "shared").unwrap_or(0),
        dense_layers: number32(&experts, "dense_layers").unwrap_or(0),
    });
    if let Some((table, experts)) = table.table("experts").zip(experts).filter(|(_, experts)| experts.active > experts.count) {
        report
            .add(table.span("active"), format!("`active` cannot be `{}`", experts.active))
            .expected(format!("at most the {} experts of `count`", experts.count));
    }
    let words = ModelWords {
        scenario,
        shape,
        layers: number32(table, "layers"),
        hidden: number32(table, "hidden"),
        heads: number32(table, "heads"),
        kv_heads: number32(table, "kv_heads"),
        head_size: number32(table, "head_size"),
        feed_forward: number32(table, "feed_forward"),
        gated: table.flag("gated"),
        vocabulary: number32(table, "vocabulary"),
        tied_embeddings: table.flag("tied_embeddings"),
        experts,
        prediction_layers: number32(table, "prediction_layers"),
    };
    if let (Some(heads), Some(kv_heads)) = (words.heads, words.kv_heads)
        && !heads.is_multiple_of(kv_heads)
    {
        report
            .add(table.span("kv_heads"), format!("`kv_heads` cannot be `{kv_heads}`"))
            .expected(format!("a divisor of the {heads} `heads`"));
    }
    if let (Some(heads), Some(hidden), None) = (words.heads, words.hidden, words.head_size)
        && !hidden.is_multiple_of(heads)
    {
        report
            .add(table.span("heads"), format!("`hidden` {hidden} is not a multiple of `heads` {heads}"))
            .hint("say `head_size` where heads have a width of their own");
    }
    words
}

fn train(table: &Table, report: &mut Report, known: &Known) -> TrainWork {
    let sequence_length = number32(table, "sequence_length").unwrap_or(1).max(1);
    let mut batches = sizes(table, "batch_sequences").unwrap_or_default();
    for tokens in table.numbers("batch_tokens").unwrap_or_default() {
        let sequences = tokens / f64::from(sequence_length);
        if sequences.fract() != 0.0 || sequences < 1.0 || sequences > f64::from(1 << 24) {
            let near = (sequences.round().max(1.0) * f64::from(sequence_length)) as u64;
            report
                .add(table.span("batch_tokens"), format!("`batch_tokens` cannot be `{tokens}`"))
                .expected(format!("a multiple of the sequence length {sequence_length}"))
                .hint(format!("the nearest is {near}"));
        } else {
            batches.push(sequences as u32);
        }
    }
    batches.sort_unstable();
    batches.dedup();
    TrainWork {
        tokens: table.number("tokens").unwrap_or(1.0),
        sequence_length,
        batches: if batches.is_empty() { vec![1] } else { batches },
        precisions: named(table, "precision", "precision", known.precisions, report).unwrap_or_else(|| vec![0]),
    }
}

fn serve(table: &Table, model: &ModelWords, report: &mut Report, known: &Known) -> ServeWork {
    let seconds = |key: &str| table.number(key).map(|ms| Seconds(ms / 1e3));
    let draft_tokens = sizes(table, "draft_tokens").filter(|sizes| !sizes.is_empty()).unwrap_or_else(|| vec![0]);
    let drafts = draft_tokens.iter().any(|tokens| *tokens > 0);
    let shape = model.shape.as_deref();
    // Of a name that is none, nothing more is said than that.
    let is_unknown = shape.is_some_and(|name| !known.models.contains(&name));
    let has_layers =
        model.prediction_layers.map_or(shape.is_some_and(|name| known.predicting_models.contains(&name)), |layers| layers > 0);
    if drafts && !has_layers && !is_unknown {
        let of = shape.map_or("this model".to_string(), |name| format!("`{name}`"));
        let like = known.predicting_models.first().map(|name| format!(" (`{name}` has them)")).unwrap_or_default();
        report
            .add(table.span("draft_tokens"), format!("{of} has no layers that predict further tokens, so nothing proposes any"))
            .expected(format!("a shape with such layers{like}, `prediction_layers` in `[model]`, or 0"))
            .hint("a trained draft head of one block is `prediction_layers = 1`");
    }
    if !drafts && table.has("draft_acceptance") {
        report
            .add(table.key_span("draft_acceptance"), "`draft_acceptance` says nothing where no token is proposed")
            .expected("`draft_tokens` above 0 beside it");
    }
    ServeWork {
        requests_per_s: table.number("requests_per_s").unwrap_or(1.0),
        input_tokens: number32(table, "input_tokens").unwrap_or(1),
        output_tokens: number32(table, "output_tokens").unwrap_or(1),
        max_first_token: seconds("max_first_token_ms"),
        max_per_token: seconds("max_per_token_ms"),
        weights: named(table, "weights", "weight format", known.weights, report).unwrap_or_else(|| vec![0]),
        kv_cache: named(table, "kv_cache", "cache format", known.kv_caches, report).map_or(0, |places| places[0]),
        engine: named(table, "engine", "engine", known.engines, report).map_or(0, |places| places[0]),
        draft_tokens,
        draft_acceptance: table.number("draft_acceptance"),
    }
}

fn machine(table: &Table, report: &mut Report, known: &Known) -> MachineWords {
    let given = table.text("gpu").unwrap_or_default();
    let gpu = known.gpus.iter().position(|names| names.iter().any(|name| name.eq_ignore_ascii_case(given)));
    if gpu.is_none() && !given.trim().is_empty() {
        let names: Vec<&str> = known.gpus.iter().filter_map(|names| names.first().copied()).collect();
        // A slip in an alias leads to it as well.
        let near = input::nearest(given, known.gpus.iter().flat_map(|names| names.iter().copied()));
        let diagnostic = report.unknown(table.span("gpu"), "GPU", given, &names);
        if diagnostic.hint.is_none() {
            diagnostic.hint_if(near.map(|near| format!("did you mean `{near}`?")));
        }
    }
    let range = table.table("gpus").map(|range| {
        let (from, to) = (number32(&range, "from").unwrap_or(1), number32(&range, "to").unwrap_or(MOST_GPUS as u32));
        if from > to {
            report.add(range.span("to"), format!("`to` cannot be `{to}`")).expected(format!("at least `from`, which is {from}"));
        }
        GpuCounts::Range(from, to)
    });
    let instance = table.text("instance").filter(|name| !name.trim().is_empty());
    if let Some(name) = instance.filter(|name| !known.instances.iter().any(|instance| instance == name)) {
        let names: Vec<&str> = known.instances.iter().map(String::as_str).collect();
        let diagnostic = report.unknown(table.span("instance"), "instance", name, &names);
        if diagnostic.hint.is_none() {
            diagnostic.hint("`advisor prices list` prints the catalogue");
        }
    }
    let stated = table.number("usd_per_gpu_hour").map(|usd| PriceWords::PerGpuHour(UsdPerHour(usd)));
    MachineWords {
        gpu: gpu.unwrap_or(0),
        gpus: range.unwrap_or_else(|| GpuCounts::Listed(sizes(table, "gpus").unwrap_or_else(|| vec![1]))),
        price: instance.map(|name| PriceWords::Instance(name.to_string())).or(stated).unwrap_or(PriceWords::Cheapest),
        spot_usd_per_gpu_hour: table.number("spot_usd_per_gpu_hour").map(UsdPerHour),
        network_bytes_per_s: table.number("network_gb_per_s_per_gpu").map(|rate| rate * 1e9),
    }
}

fn limits(table: &Table) -> Limits {
    Limits {
        time: table.number("max_days").map(|days| Seconds(days * 86_400.0)),
        cost: table.number("max_usd").map(Usd),
        energy: table.number("max_mwh").map(|mwh| Joules(mwh * 3.6e9)),
        gpus: number32(table, "max_gpus"),
        memory_share: table.number("memory_share"),
    }
}

fn objective(table: &Table) -> Option<PlanObjective> {
    table.word("minimise", |text| {
        [PlanObjective::Cost, PlanObjective::Time, PlanObjective::Energy].into_iter().find(|word| word.name() == text)
    })
}

fn operation(table: &Table) -> Operation {
    let plain = Operation::default();
    Operation {
        failures_per_gpu_year: table.number("failures_per_gpu_year").unwrap_or(plain.failures_per_gpu_year),
        restart: table.number("restart_minutes").map_or(plain.restart, |minutes| Seconds(60.0 * minutes)),
        checkpoint_bytes_per_s_per_gpu: table
            .number("checkpoint_gb_per_s_per_gpu")
            .map_or(plain.checkpoint_bytes_per_s_per_gpu, |rate| rate * 1e9),
        power_usage_effectiveness: table.number("power_usage_effectiveness").unwrap_or(plain.power_usage_effectiveness),
        spot_interruptions_per_machine_day: table.table("spot").and_then(|spot| spot.number("interruptions_per_machine_day")),
        spot_replacement: table
            .table("spot")
            .and_then(|spot| spot.number("replacement_minutes"))
            .map(|minutes| Seconds(60.0 * minutes)),
        spot_availability: table.table("spot").and_then(|spot| spot.number("availability")).unwrap_or(plain.spot_availability),
    }
}

fn layouts(table: &Table) -> LayoutLimits {
    let recompute = table.words("recomputation", |text| {
        plan_shape::RECOMPUTATIONS.iter().find(|(name, ..)| *name == text).map(|(_, _, mode)| *mode)
    });
    let stages = [Sharding::Nothing, Sharding::Optimizer, Sharding::Gradients, Sharding::Weights];
    LayoutLimits {
        tensor: sizes(table, "tensor"),
        pipeline: sizes(table, "pipeline"),
        context: sizes(table, "context"),
        expert: sizes(table, "expert"),
        micro_batch: sizes(table, "micro_batch"),
        interleaving: sizes(table, "interleaving"),
        recompute: recompute.map(|mut modes| {
            modes.sort_unstable();
            modes
        }),
        sharding: sizes(table, "zero")
            .map(|given| given.into_iter().filter_map(|stage| stages.get(stage as usize).copied()).collect()),
    }
}

/// `15 trillion`, `1.5 billion`, `20`.
pub fn count_words(value: f64) -> String {
    let scales = [(1e12, " trillion"), (1e9, " billion"), (1e6, " million")];
    let (scale, word) = scales.into_iter().find(|(scale, _)| value >= *scale).unwrap_or((1.0, ""));
    let scaled = value / scale;
    let text = format!("{scaled:.2}");
    format!("{}{word}", text.trim_end_matches('0').trim_end_matches('.'))
}
