//! Published tables of training speed: what each row asks, and what was published.
//!
//! A table is recognised by its columns, not by its file's name, so that rows of the same kind from elsewhere are read too. What a table does
//! not print is assumed here, once for the table, and said where it is: never by row.

use super::{
    layout::{Layout, LayoutError, Options, Recompute, Sharding, Stack, Task, TrainingPrecision},
    models::ModelBook,
    parameters::Parameters,
    recipes,
    step::{StepEstimate, Sustained, training_step_on},
    transformer::{Attention, Dense, Transformer},
};
use crate::{
    cost::csv,
    hardware::{Gpu, HardwareBook, Machine, folded},
};
use std::collections::BTreeMap;

/// A file of comma-separated values with a header.
#[derive(Clone)]
pub struct Csv {
    columns: Vec<String>,
    rows: Vec<csv::Cells>,
}

/// One row of it.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    csv: &'a Csv,
    cells: &'a [String],
    /// In the file, from 1.
    pub line: usize,
}

impl Csv {
    pub fn read(text: &str) -> Result<Csv, String> {
        let mut rows = csv::rows(text).map_err(|(line, reason)| format!("line {line}: {reason}"))?;
        if rows.is_empty() {
            return Err("no rows".to_string());
        }
        let (_, columns) = rows.remove(0);
        Ok(Csv { columns: columns.iter().map(|cell| cell.trim().to_string()).collect(), rows })
    }

    pub fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|name| name == column)
    }

    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    pub fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.rows.iter().map(|(line, cells)| Row { csv: self, cells, line: *line })
    }
}

impl<'a> Row<'a> {
    /// The cell of a column; `None` where it is empty or missing.
    pub fn text(&self, column: &str) -> Option<&'a str> {
        let at = self.csv.columns.iter().position(|name| name == column)?;
        Some(self.cells.get(at)?.trim()).filter(|cell| !cell.is_empty() && *cell != "-")
    }

    pub fn number(&self, column: &str) -> Option<f64> {
        self.text(column)?.replace([',', '_'], "").parse().ok().filter(|value: &f64| value.is_finite())
    }

    pub fn count(&self, column: &str) -> Option<u32> {
        self.number(column).filter(|value| *value >= 0.0 && value.fract() == 0.0 && *value < 1e9).map(|value| value as u32)
    }

    pub fn cells(&self) -> &'a [String] {
        self.cells
    }

    fn wanted(&self, column: &str) -> Result<u32, String> {
        self.count(column).filter(|value| *value > 0).ok_or_else(|| format!("`{column}` is not printed"))
    }
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Quantity {
    TokensPerSecondPerGpu,
    StepSeconds,
    StepMilliseconds,
    /// With the operations of a token as the source counts them.
    TflopsPerGpu {
        flops_per_token: f64,
    },
}

impl Quantity {
    pub const fn name(self) -> &'static str {
        match self {
            Self::TokensPerSecondPerGpu => "tokens/s/GPU",
            Self::StepSeconds => "s/step",
            Self::StepMilliseconds => "ms/step",
            Self::TflopsPerGpu { .. } => "TFLOP/s/GPU",
        }
    }

    pub fn of(self, step: &StepEstimate) -> f64 {
        match self {
            Self::TokensPerSecondPerGpu => step.tokens_per_second_per_gpu,
            Self::StepSeconds => step.step.0,
            Self::StepMilliseconds => step.step.as_ms(),
            Self::TflopsPerGpu { flops_per_token } => step.tokens_per_second_per_gpu * flops_per_token / 1e12,
        }
    }
}

/// What a row asks.
#[derive(Clone, Debug)]
pub struct Question {
    pub model: Transformer,
    pub machine: Machine,
    pub layout: Layout,
    pub quantity: Quantity,
    /// The source prints neither micro-batch nor interleaving: the fastest is taken, as its authors took it.
    pub tuned: bool,
}

impl Question {
    /// The step that is predicted.
    pub fn step(&self, parameters: &Parameters) -> StepEstimate {
        let on = Sustained::new(&self.machine, self.layout.stack, self.layout.precision, parameters);
        let step = |layout: &Layout| training_step_on(&self.model, layout, &on);
        if !self.tuned {
            return step(&self.layout);
        }
        let blocks = self.model.blocks();
        let candidates = [1, 2, 4, 8, 16].into_iter().flat_map(|micro_batch| {
            (1..=if self.layout.pipeline > 1 { 6 } else { 1 }).map(move |interleave| Layout {
                micro_batch,
                interleave,
                ..self.layout
            })
        });
        candidates
            .filter(|layout| layout.check(&self.model).is_ok() && blocks.is_multiple_of(layout.pipeline * layout.interleave))
            // Interleaving asks that micro-batches come in multiples of the pipeline.
            .filter(|layout| layout.interleave == 1 || layout.micro_batches().is_multiple_of(layout.pipeline))
            .map(|layout| step(&layout))
            .filter(|step| step.missing_bytes().is_none())
            .min_by(|a, b| a.step.0.total_cmp(&b.step.0))
            .unwrap_or_else(|| step(&self.layout))
    }

    pub fn predicted(&self, parameters: &Parameters) -> f64 {
        self.quantity.of(&self.step(parameters))
    }
}

/// A row that can be scored.
#[derive(Clone, Debug)]
pub struct Case {
    pub id: String,
    pub line: usize,
    /// Model, GPU and precision: what is held out together.
    pub group: String,
    /// The current figure, not one that the source replaced.
    pub current: bool,
    /// Of the software, as the table prints it.
    pub release: String,
    pub published: f64,
    /// Peak memory of a GPU, where it is published.
    pub memory_gib: Option<f64>,
    pub question: Question,
    pub strata: Strata,
}

/// Where a row belongs when errors are summed up.
#[derive(Clone, Debug, PartialEq)]
pub struct Strata {
    pub table: &'static str,
    pub regime: Regime,
    pub gpu: String,
    pub size: &'static str,
    pub precision: &'static str,
    pub task: String,
    pub model: String,
}

/// The parts of the domain for which an error is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Regime {
    MegatronA100,
    Dense,
    BlackwellOrExperts,
}

impl Regime {
    pub const ALL: [Regime; 3] = [Self::MegatronA100, Self::Dense, Self::BlackwellOrExperts];

    pub const fn name(self) -> &'static str {
        match self {
            Self::MegatronA100 => "Megatron on A100",
            Self::Dense => "dense on A100, H100",
            Self::BlackwellOrExperts => "Blackwell or experts",
        }
    }

    /// Median absolute percentage error that is asked for; the 90th percentile may be 2.5 times that.
    pub const fn bar_percent(self) -> f64 {
        match self {
            Self::MegatronA100 => 4.0,
            Self::Dense => 8.0,
            Self::BlackwellOrExperts => 12.0,
        }
    }
}

/// Both books, as rows need them.
pub struct Books {
    pub hardware: HardwareBook,
    pub models: ModelBook,
}

impl Books {
    pub fn shipped() -> Books {
        Books { hardware: HardwareBook::shipped(), models: ModelBook::shipped() }
    }
}

/// What a row asks and what was published, or why it is refused.
type ReadRow = fn(&Row, &Books) -> Result<(Question, f64), String>;

/// A kind of table: the columns by which it is known, and how a row of it is read.
pub struct TableKind {
    pub name: &'static str,
    columns: &'static [&'static str],
    read: ReadRow,
}

/// The tables of training, most particular first.
pub const TABLES: &[TableKind] = &[
    TableKind { name: "nemo", columns: &["framework", "gbs", "mbs", "tokens_per_s_per_gpu"], read: nemo },
    TableKind { name: "nemo_long_sequence", columns: &["seq_k", "tflops_per_gpu_with_cp"], read: long_sequence },
    TableKind { name: "torchtitan", columns: &["dp_shard", "local_batch", "tokens_per_s_per_gpu"], read: torchtitan },
    TableKind { name: "mosaic", columns: &["sharding", "grad_accum", "tokens_per_s_per_gpu"], read: mosaic },
    TableKind { name: "vtrain", columns: &["iteration_ms", "hidden", "micro_batch"], read: vtrain },
    TableKind { name: "megatron_korthikanti", columns: &["interleave", "sequence_parallel", "iteration_s"], read: korthikanti },
    TableKind { name: "megatron_a100", columns: &["counts_recompute", "tflops_per_gpu"], read: megatron },
    TableKind { name: "llama3", columns: &["batch_per_dp", "tflops_per_gpu"], read: llama3 },
    TableKind {
        name: "megatron_h100",
        columns: &["experiment", "value_kind"],
        read: |_, _| Err("no layout and no GPU count is printed".into()),
    },
];

impl TableKind {
    pub fn of(csv: &Csv) -> Option<&'static TableKind> {
        TABLES.iter().find(|kind| kind.columns.iter().all(|column| csv.has(column)))
    }

    /// Every row: a case, or why it is none.
    pub fn cases(&'static self, csv: &Csv, books: &Books) -> Vec<(usize, String, Result<Case, String>)> {
        csv.rows()
            .map(|row| {
                let id = row.text("source_id").map_or_else(|| format!("line {}", row.line), str::to_string);
                let case = self.case(&row, &id, books);
                (row.line, id, case)
            })
            .collect()
    }

    fn case(&'static self, row: &Row, id: &str, books: &Books) -> Result<Case, String> {
        let (question, published) = (self.read)(row, books)?;
        let gpu = row.text("gpu").and_then(|text| books.hardware.find_in(text)).map_or("?", |gpu| gpu.name.as_str()).to_string();
        let precision = question.layout.precision.name();
        let blackwell = question.machine.generation >= crate::hardware::Generation::Blackwell;
        let megatron_a100 = self.name.starts_with("megatron");
        let model = if self.name == "vtrain" || self.name == "megatron_a100" && row.count("hidden").is_some() {
            format!("gpt {}b", row.text("params_b").unwrap_or("?"))
        } else {
            question.model.name.clone()
        };
        let parameters = question.model.parameters();
        Ok(Case {
            id: id.to_string(),
            line: row.line,
            group: group(&model, &gpu, precision),
            current: row.text("status").is_none_or(|status| status == "current"),
            release: row.text("release").unwrap_or("").to_string(),
            published,
            memory_gib: row.number("memory_gib").filter(|value| *value > 0.0),
            strata: Strata {
                table: self.name,
                regime: if megatron_a100 {
                    Regime::MegatronA100
                } else if blackwell || question.model.experts.is_some() {
                    Regime::BlackwellOrExperts
                } else {
                    Regime::Dense
                },
                gpu,
                size: match parameters {
                    p if p < 1.5e9 => "below 1.5 billion",
                    p if p < 15e9 => "1.5 to 15 billion",
                    p if p < 100e9 => "15 to 100 billion",
                    _ => "100 billion and more",
                },
                precision,
                task: row.text("task").unwrap_or("pre-training").to_string(),
                model,
            },
            question,
        })
    }
}

/// Runs of one model, GPU and precision, which are held out together.
pub fn group(model: &str, gpu: &str, precision: &str) -> String {
    format!("{model}|{gpu}|{precision}")
}

fn gpu<'b>(row: &Row, books: &'b Books) -> Result<&'b Gpu, String> {
    let name = row.text("gpu").ok_or("`gpu` is not printed")?;
    books.hardware.find_in(name).ok_or_else(|| format!("no GPU `{name}` in the book"))
}

fn machine(row: &Row, books: &Books) -> Result<Machine, String> {
    Ok(gpu(row, books)?.machine)
}

fn named_model(name: &str, books: &Books) -> Result<Transformer, String> {
    books.models.find(name).cloned().ok_or_else(|| format!("no model `{name}` in the book"))
}

fn precision(row: &Row, machine: &Machine) -> Result<TrainingPrecision, String> {
    let word = row.text("precision").ok_or("`precision` is not printed")?;
    let found = TrainingPrecision::named(word).ok_or_else(|| format!("unknown precision `{word}`"))?;
    supported(found, machine)
}

fn supported(precision: TrainingPrecision, machine: &Machine) -> Result<TrainingPrecision, String> {
    let has = match precision {
        TrainingPrecision::Half => true,
        TrainingPrecision::Nvfp4 => machine.peaks.fp4.is_some(),
        _ => machine.peaks.fp8.is_some(),
    };
    if has { Ok(precision) } else { Err(format!("the GPU has no {}", precision.name())) }
}

fn checked(model: &Transformer, layout: Layout) -> Result<Layout, String> {
    layout.check(model).map_err(|error: LayoutError| error.to_string())?;
    Ok(layout)
}

/// A GPT of the columns layers, hidden and heads: learned positions, biases, one table for embedding and last projection.
fn gpt(row: &Row, books: &Books) -> Result<Transformer, String> {
    let (Some(layers), Some(hidden), Some(heads)) = (row.count("layers"), row.count("hidden"), row.count("heads")) else {
        return named_model(row.text("model").ok_or("neither a model nor its shape is printed")?, books);
    };
    if layers == 0 || heads == 0 || !hidden.is_multiple_of(heads) {
        return Err("layers, hidden and heads are no shape".into());
    }
    Ok(Transformer {
        name: row.text("model").unwrap_or("gpt").to_lowercase(),
        aliases: Vec::new(),
        hidden,
        attention: Attention { heads, key_value_heads: heads, head_size: hidden / heads, latent: None, gated: false },
        attention_layers: layers,
        window_layers: 0,
        window: 0,
        recurrent: None,
        dense: Dense { layers, width: 4 * hidden },
        experts: None,
        gated: false,
        vocabulary: row.count("vocab").unwrap_or(51200),
        tied: true,
        positions: row.count("seq").unwrap_or(2048),
        biased: true,
        prediction_layers: 0,
        source: "columns of the table".into(),
    })
}

fn common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// NeMo, Megatron-Bridge, Megatron-LM on H100 and later, AutoModel. Not printed: CUDA graphs, recomputation and what hides the exchange of
/// experts (as the recipes have it, `recipes`), overlap of tensor parallelism (on), sharding of the optimizer (on).
fn nemo(row: &Row, books: &Books) -> Result<(Question, f64), String> {
    let gpu = gpu(row, books)?;
    let machine = gpu.machine;
    let model = named_model(row.text("model").ok_or("`model` is not printed")?, books)?;
    let automodel = row.text("framework").is_some_and(|name| folded(name).contains("automodel"));
    let fsdp = row.count("fsdp").unwrap_or(0);
    let precision = precision(row, &machine)?;
    let size = |column| row.count(column).filter(|value| *value > 0).unwrap_or(1);
    let run = recipes::published(&model, &gpu.name, precision, row.text("release").unwrap_or(""));
    let (mut global_batch, mut micro_batch) = (row.wanted("gbs")?, row.wanted("mbs")?);
    if global_batch < micro_batch {
        // One page prints these two columns the other way round: its accumulation steps say so.
        std::mem::swap(&mut global_batch, &mut micro_batch);
    }
    let layout = Layout {
        gpus: row.wanted("gpus")?,
        tensor: size("tp"),
        pipeline: size("pp"),
        context: size("cp"),
        expert: match model.experts {
            // AutoModel leaves the cell empty where experts lie on all ranks that share weights.
            Some(experts) if automodel && row.count("ep").is_none() => common_divisor(experts.count, fsdp.max(1)),
            Some(_) => size("ep"),
            None => 1,
        },
        interleave: size("vp"),
        micro_batch,
        global_batch,
        sequence: row.wanted("seq")?,
        sequence_parallel: true,
        sharding: if automodel || fsdp > 0 { Sharding::Weights } else { Sharding::Optimizer },
        // A flag in early pages, the size of the group later.
        shard_group: if fsdp > 1 { fsdp } else { 0 },
        recompute: if automodel { Recompute::AsNeeded } else { run.recompute },
        precision,
        task: if row.text("task").is_some_and(|task| folded(task).contains("lora")) { Task::Adapters } else { Task::All },
        stack: if automodel { Stack::AutoModel } else { run.stack },
        tensor_overlap: true,
        options: if automodel { Options::PLAIN } else { run.options },
    };
    let layout = checked(&model, layout)?;
    let published =
        row.number("tokens_per_s_per_gpu").filter(|value| *value > 0.0).ok_or("`tokens_per_s_per_gpu` is not printed")?;
    Ok((Question { model, machine, layout, quantity: Quantity::TokensPerSecondPerGpu, tuned: false }, published))
}

/// NeMo's long sequences, the run with context parallelism; its operations count the whole attention.
fn long_sequence(row: &Row, books: &Books) -> Result<(Question, f64), String> {
    let machine = machine(row, books)?;
    let model = named_model(row.text("model").ok_or("`model` is not printed")?, books)?;
    let sequence = row.wanted("seq_k")? * 1024;
    let layout = Layout {
        gpus: row.wanted("gpus")?,
        tensor: row.wanted("tp")?,
        pipeline: row.wanted("pp")?,
        context: row.wanted("cp")?,
        ..Layout::single(sequence, row.wanted("batch_size")?, precision(row, &machine)?)
    };
    if layout.tensor * layout.pipeline * layout.context * row.wanted("dp")? != layout.gpus {
        return Err("its parallel sizes do not multiply to its GPUs".into());
    }
    let layout = checked(&model, layout)?;
    let published = row.number("tflops_per_gpu_with_cp").ok_or("`tflops_per_gpu_with_cp` is not printed")?;
    let quantity = Quantity::TflopsPerGpu { flops_per_token: model.training_flops_per_token(f64::from(sequence), false) };
    Ok((Question { model, machine, layout, quantity, tuned: false }, published))
}

/// torchtitan. Not printed in most tables: the sequence length (that of the configuration files: 8,192, for Llama 2 4,096), and whether
/// a run without a word on torch.compile had it (only with 8-bit floats). Selective checkpointing is of every second layer, or of every second
/// product: both as half the layers.
fn torchtitan(row: &Row, books: &Books) -> Result<(Question, f64), String> {
    let machine = machine(row, books)?;
    let name = row.text("model").ok_or("`model` is not printed")?;
    let model = named_model(name, books)?;
    let gpus = row.wanted("gpus")?;
    let size = |column| row.count(column).filter(|value| *value > 0);
    let (pipeline, context) = (size("pp").unwrap_or(1), size("cp").unwrap_or(1));
    let tensor = size("tp").or_else(|| Some(gpus / (size("dp_shard")? * pipeline * context))).unwrap_or(1).max(1);
    let float8 = row.text("float8").unwrap_or("0");
    let precision = match folded(float8).as_str() {
        "0" | "bf16" => TrainingPrecision::Half,
        word if word.contains("rowwise") => TrainingPrecision::Fp8Block,
        word if word.contains("mx") => TrainingPrecision::Mxfp8,
        _ => TrainingPrecision::Fp8,
    };
    let precision = supported(precision, &machine)?;
    let compiled = row.text("torch_compile").map_or(precision != TrainingPrecision::Half, |flag| flag == "1");
    let local = row.wanted("local_batch")?;
    let data = gpus / (tensor * pipeline * context).max(1);
    let checkpointing = row.text("activation_checkpointing").map(folded).unwrap_or_else(|| "selective".into());
    let layout = Layout {
        gpus,
        tensor,
        pipeline,
        context,
        interleave: if row.text("pp_schedule").is_some_and(|schedule| folded(schedule).contains("interleaved")) { 2 } else { 1 },
        micro_batch: if pipeline > 1 { 1 } else { local },
        sharding: Sharding::Weights,
        recompute: match checkpointing.as_str() {
            "none" => Recompute::Nothing,
            "full" => Recompute::Full,
            _ => Recompute::Part(50),
        },
        stack: if compiled { Stack::TorchCompiled } else { Stack::TorchEager },
        tensor_overlap: row.text("async_tp") == Some("1"),
        ..Layout::single(
            size("seq").unwrap_or(if folded(name).starts_with("llama2") { 4096 } else { 8192 }),
            local * data,
            precision,
        )
    };
    let layout = checked(&model, layout)?;
    let published = row.number("tokens_per_s_per_gpu").ok_or("`tokens_per_s_per_gpu` is not printed")?;
    Ok((Question { model, machine, layout, quantity: Quantity::TokensPerSecondPerGpu, tuned: false }, published))
}

/// MosaicML's llm-foundry: models of the MPT family by size, learned positions as many as the sequence is long.
fn mosaic(row: &Row, books: &Books) -> Result<(Question, f64), String> {
    let machine = machine(row, books)?;
    let size = row.text("model").ok_or("`model` is not printed")?;
    let sequence = row.wanted("seq")?;
    let model = named_model(&format!("mpt-{}", size.to_lowercase().trim_start_matches("mpt-")), books)?;
    let model = Transformer { positions: sequence, ..model };
    if let Some(printed) = row.number("params")
        && (model.parameters() / printed - 1.0).abs() > 0.02
    {
        return Err(format!("the source counts {printed} parameters, the book's mpt-{size} has {:.0}", model.parameters()));
    }
    let gpus = row.wanted("gpus")?;
    let micro_batch = row.wanted("micro_batch")?;
    let layout = Layout {
        gpus,
        micro_batch,
        sharding: match row.text("sharding").unwrap_or("FULL_SHARD") {
            "NO_SHARD" => Sharding::Nothing,
            "SHARD_GRAD_OP" => Sharding::Gradients,
            _ => Sharding::Weights,
        },
        recompute: if row.text("activation_checkpointing") == Some("True") { Recompute::Full } else { Recompute::Nothing },
        stack: Stack::Composer,
        ..Layout::single(sequence, micro_batch * row.wanted("grad_accum")? * gpus, precision(row, &machine)?)
    };
    let layout = checked(&model, layout)?;
    let published =
        row.number("tokens_per_s_per_gpu").filter(|value| *value > 0.0).ok_or("`tokens_per_s_per_gpu` is not printed")?;
    Ok((Question { model, machine, layout, quantity: Quantity::TokensPerSecondPerGpu, tuned: false }, published))
}

/// What Megatron-LM was in 2022.
fn early_megatron(sequence: u32, global_batch: u32) -> Layout {
    Layout {
        sequence_parallel: false,
        sharding: Sharding::Nothing,
        recompute: Recompute::Full,
        stack: Stack::MegatronUnfused,
        tensor_overlap: false,
        ..Layout::single(sequence, global_batch, TrainingPrecision::Half)
    }
}

/// vTrain's ground truth: one-forward-one-backward, all activations computed again, gradients exchanged at the end.
fn vtrain(row: &Row, books: &Books) -> Result<(Question, f64), String> {
    let mut machine = machine(row, books)?;
    // Its configurations print 800 Gb/s for a node of eight GPUs.
    machine.scale_out.bytes_per_second = 800e9 / 8.0 / 8.0;
    let model = gpt(row, books)?;
    let layout = Layout {
        gpus: row.wanted("gpus")?,
        tensor: row.wanted("tp")?,
        pipeline: row.wanted("pp")?,
        micro_batch: row.wanted("micro_batch")?,
        ..early_megatron(row.wanted("seq")?, row.wanted("global_batch")?)
    };
    let layout = checked(&model, layout)?;
    let published = row.number("iteration_ms").ok_or("`iteration_ms` is not printed")?;
    Ok((Question { model, machine, layout, quantity: Quantity::StepMilliseconds, tuned: false }, published))
}

/// Korthikanti et al., arXiv 2205.05198, Table 5.
fn korthikanti(row: &Row, books: &Books) -> Result<(Question, f64), String> {
    let machine = machine(row, books)?;
    let published = row.number("iteration_s").ok_or("no iteration time is printed")?;
    let model = gpt(row, books)?;
    let layout = Layout {
        gpus: row.wanted("gpus")?,
        tensor: row.wanted("tp")?,
        pipeline: row.wanted("pp")?,
        interleave: row.wanted("interleave")?,
        micro_batch: row.wanted("micro_batch")?,
        sequence_parallel: row.text("sequence_parallel") == Some("1"),
        recompute: if row.text("recompute") == Some("selective") { Recompute::Selective } else { Recompute::Full },
        ..early_megatron(row.wanted("seq")?, row.wanted("global_batch")?)
    };
    let layout = checked(&model, layout)?;
    Ok((Question { model, machine, layout, quantity: Quantity::StepSeconds, tuned: false }, published))
}

/// Narayanan et al., arXiv 2104.04473, Table 1. Operations are theirs: 96 B s l h^2 (1 + s/6h + V/16lh), which counts recomputation.
fn megatron(row: &Row, books: &Books) -> Result<(Question, f64), String> {
    let machine = machine(row, books)?;
    let model = gpt(row, books)?;
    let sequence = row.count("seq").unwrap_or(2048);
    let layout = Layout {
        gpus: row.wanted("gpus")?,
        tensor: row.wanted("tp")?,
        pipeline: row.wanted("pp")?,
        stack: Stack::MegatronFirst,
        ..early_megatron(sequence, row.wanted("global_batch")?)
    };
    let layout = checked(&model, layout)?;
    let (layers, hidden, s) = (f64::from(model.blocks()), f64::from(model.hidden), f64::from(sequence));
    let vocabulary = f64::from(model.vocabulary);
    let flops_per_token = 96.0 * layers * hidden * hidden * (1.0 + s / (6.0 * hidden) + vocabulary / (16.0 * layers * hidden));
    let published = row.number("tflops_per_gpu").ok_or("`tflops_per_gpu` is not printed")?;
    Ok((Question { model, machine, layout, quantity: Quantity::TflopsPerGpu { flops_per_token }, tuned: true }, published))
}

/// Llama 3, arXiv 2407.21783, Table 4: weights sharded but kept after the forward pass, one block a pipeline chunk (section 3.3.2), no
/// recomputation at 8,192 tokens. Operations count the causal half of attention.
fn llama3(row: &Row, books: &Books) -> Result<(Question, f64), String> {
    let machine = machine(row, books)?;
    let model = named_model(row.text("model").ok_or("`model` is not printed")?, books)?;
    let sequence = row.wanted("seq")?;
    let (data, pipeline) = (row.wanted("dp")?, row.wanted("pp")?);
    let layout = Layout {
        gpus: row.wanted("gpus")?,
        tensor: row.wanted("tp")?,
        context: row.wanted("cp")?,
        pipeline,
        interleave: if pipeline > 1 { (model.blocks() + 2) / pipeline } else { 1 },
        sharding: Sharding::Gradients,
        recompute: if sequence <= 8192 { Recompute::Nothing } else { Recompute::AsNeeded },
        ..Layout::single(sequence, data * row.wanted("batch_per_dp")?, precision(row, &machine)?)
    };
    let layout = checked(&model, layout)?;
    let published = row.number("tflops_per_gpu").ok_or("`tflops_per_gpu` is not printed")?;
    let quantity = Quantity::TflopsPerGpu { flops_per_token: model.training_flops_per_token(f64::from(sequence), true) };
    Ok((Question { model, machine, layout, quantity, tuned: false }, published))
}

/// Cases by the group that is held out together.
pub fn by_group(cases: &[Case]) -> BTreeMap<&str, Vec<usize>> {
    let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, case) in cases.iter().enumerate() {
        groups.entry(&case.group).or_default().push(at);
    }
    groups
}
