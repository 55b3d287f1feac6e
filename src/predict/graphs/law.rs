//! A step of a graph of ours on GPUs: the work of its ops, what launching them takes, what ranks exchange, and the way of its rows.
//!
//! A step runs as one recorded graph of kernels, one behind the other, so each kernel costs its launch and the wait for the one before it.
//! Answers wait for the host: it copies the rows, sends them off, and awaits the scores. Training goes on while the host makes the next rows, so
//! that only sending them takes the device's time. Sums of gradients are counted as if nothing hid them (Thakur et al., IJHPCA 19(1), 2005, by
//! `collective`); stages of a pipeline wait for each other on the timeline of `local`.

use super::{
    super::{
        collective::{Group, Links},
        local::timeline,
        parameters::{OfGeneration, Parameters},
    },
    rates::{KernelRates, OpKind, UnknownOp},
};
use crate::{
    hardware::{Gpu, Machine},
    input::{self, Diagnostic, Field, Interval, Kind, Need, Shape, Source, Table},
    record::{CountedGraph, CountedOp, OpProfile},
    units::Seconds,
    vocab::{Layout, Phase, Vocabulary},
};
use std::fmt::Write;

/// What is fitted: four figures of a machine around a GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct GraphLaw {
    /// Seconds of a kernel besides its work.
    pub launch: f64,
    /// Seconds of the host for a step of answers.
    pub answer: f64,
    /// Seconds for a byte of rows that is answered: copied by the host, and sent.
    pub answered_byte: f64,
    /// Seconds for a byte of rows that is trained on: sent.
    pub trained_byte: f64,
    /// Most examples of a step on the GPU that was measured.
    pub largest_batch: f64,
    /// Of runs that the fit had not seen.
    pub errors: Vec<GraphError>,
}

/// Error of what was held out of the fit.
#[derive(Clone, Debug, PartialEq)]
pub struct GraphError {
    pub phase: Phase,
    /// Whole runs, with the way of their rows; else steps on rows that lay on the device.
    pub is_run: bool,
    pub rows: usize,
    pub median_percent: f64,
    pub ninetieth_percent: f64,
}

/// A step, part by part.
#[derive(Clone, Debug, PartialEq)]
pub struct GraphStep {
    pub total: Seconds,
    /// They add up to it.
    pub parts: Vec<(&'static str, f64)>,
}

/// Names of parts besides those of `OpKind`.
const LAUNCHES: &str = "launches";
const EXCHANGE: &str = "exchange";
const WAITING: &str = "waiting for other stages";
const ROWS: &str = "rows and host";

/// Parts in their order.
const PARTS: [&str; 8] = [
    OpKind::Product.name(),
    OpKind::Convolution.name(),
    OpKind::Memory.name(),
    OpKind::Update.name(),
    LAUNCHES,
    EXCHANGE,
    WAITING,
    ROWS,
];

impl GraphLaw {
    /// The figures that come with the program.
    pub fn shipped() -> GraphLaw {
        let source = Source::new("data/predict/graphs.toml", include_str!("../../../data/predict/graphs.toml"));
        GraphLaw::read(&source).unwrap_or_else(|found| panic!("{}", input::render(&found)))
    }

    pub fn read(source: &Source) -> Result<GraphLaw, Vec<Diagnostic>> {
        input::parse(source, &FILE, |file, _| {
            let number = |key: &str| file.number(key).unwrap_or(0.0);
            let error = |table: &Table| {
                Some(GraphError {
                    phase: table.word("phase", |text| Phase::parse(text).ok())?,
                    is_run: table.flag("is_run")?,
                    rows: table.count("rows")?,
                    median_percent: table.number("median_percent")?,
                    ninetieth_percent: table.number("ninetieth_percent")?,
                })
            };
            GraphLaw {
                launch: number("launch_s"),
                answer: number("answer_s"),
                answered_byte: number("answered_s_per_gb") / 1e9,
                trained_byte: number("trained_s_per_gb") / 1e9,
                largest_batch: number("largest_batch"),
                errors: file.tables("error").unwrap_or_default().iter().filter_map(error).collect(),
            }
        })
    }

    pub fn to_toml(&self) -> String {
        let mut text = String::from(
            "# What a graph of ours costs a GPU besides the work of its ops, and the errors of what was held out of the fit: `advisor plan calibrate\n\
             # --graphs` writes this file. docs/plan-graphs.md says what each means.\n\n",
        );
        let figures = [
            ("launch_s", self.launch),
            ("answer_s", self.answer),
            ("answered_s_per_gb", 1e9 * self.answered_byte),
            ("trained_s_per_gb", 1e9 * self.trained_byte),
        ];
        for (name, value) in figures {
            let _ = writeln!(text, "{name} = {value:.4e}");
        }
        let _ = writeln!(text, "largest_batch = {}", self.largest_batch);
        for error in &self.errors {
            let GraphError { phase, is_run, rows, median_percent, ninetieth_percent } = error;
            let _ = write!(
                text,
                "\n[[error]]\nphase = \"{}\"\nis_run = {is_run}\nrows = {rows}\nmedian_percent = {median_percent:.1}\nninetieth_percent = {ninetieth_percent:.1}\n",
                phase.name()
            );
        }
        text
    }

    /// The error of whole runs of a phase.
    pub fn error_of(&self, phase: Phase) -> Option<&GraphError> {
        self.errors.iter().find(|error| error.phase == phase && error.is_run)
    }

    /// The time of a step whose rows lie on the device already.
    pub fn on_device(
        &self,
        rates: &KernelRates,
        parameters: &Parameters,
        counted: &CountedGraph,
        gpu: &Gpu,
    ) -> Result<GraphStep, UnknownOp> {
        let links = links(&gpu.machine, parameters);
        let layout = counted.candidate.layout;
        let mut stages: Vec<Vec<(f64, &'static str)>> = Vec::new();
        let mut launches = Vec::new();
        for ops in &counted.stages {
            let mut seconds = Vec::with_capacity(ops.len());
            let mut waits = 0.0;
            for op in ops {
                let launch = self.launch * op.launches as f64;
                waits += launch;
                seconds.push(match exchange(&links, layout, op, &gpu.machine) {
                    Some(exchanged) => (exchanged, EXCHANGE),
                    None => {
                        let (work, kind) = rates.work(op, gpu, self.launch)?;
                        (work, kind.name())
                    }
                });
            }
            stages.push(seconds);
            launches.push(waits);
        }
        let of_stage = |at: usize| stages[at].iter().map(|(seconds, _)| seconds).sum::<f64>() + launches[at];
        let busiest = (0..stages.len()).max_by(|a, b| of_stage(*a).total_cmp(&of_stage(*b))).unwrap_or(0);
        let total = if stages.len() > 1 { self.pipeline(counted, &stages) } else { of_stage(busiest) };
        let mut parts = PARTS.map(|name| (name, 0.0));
        let mut add = |name: &str, seconds: f64| {
            parts.iter_mut().filter(|(part, _)| *part == name).for_each(|(_, sum)| *sum += seconds);
        };
        stages[busiest].iter().for_each(|(seconds, part)| add(part, *seconds));
        add(LAUNCHES, launches[busiest]);
        add(WAITING, (total - of_stage(busiest)).max(0.0));
        Ok(GraphStep { total: Seconds(total), parts: parts.to_vec() })
    }

    /// When the last stage is done.
    fn pipeline(&self, counted: &CountedGraph, stages: &[Vec<(f64, &'static str)>]) -> f64 {
        let profiles: Vec<Vec<OpProfile>> =
            counted.stages.iter().map(|ops| ops.iter().map(|op| op.profile.clone()).collect()).collect();
        let slices: Vec<&[OpProfile]> = profiles.iter().map(Vec::as_slice).collect();
        let seconds: Vec<Vec<f64>> = stages
            .iter()
            .zip(&counted.stages)
            .map(|(seconds, ops)| {
                seconds.iter().zip(ops).map(|((seconds, _), op)| seconds + self.launch * op.launches as f64).collect()
            })
            .collect();
        timeline(&slices, &seconds).expect("stages of one program await what the others send")
    }

    /// Seconds that the rows of a step add: those of one rank, for ranks feed themselves side by side.
    pub fn rows(&self, counted: &CountedGraph) -> f64 {
        let bytes = counted.input_bytes.0 as f64;
        match counted.candidate.phase {
            Phase::Train => self.trained_byte * bytes,
            Phase::Infer => self.answer + self.answered_byte * bytes,
        }
    }

    /// The time of a step of a run.
    pub fn step(
        &self,
        rates: &KernelRates,
        parameters: &Parameters,
        counted: &CountedGraph,
        gpu: &Gpu,
    ) -> Result<GraphStep, UnknownOp> {
        let mut step = self.on_device(rates, parameters, counted, gpu)?;
        let rows = self.rows(counted);
        step.total.0 += rows;
        step.parts.iter_mut().filter(|(part, _)| *part == ROWS).for_each(|(_, seconds)| *seconds += rows);
        Ok(step)
    }
}

fn links(machine: &Machine, parameters: &Parameters) -> Links {
    let share = |figure| parameters.of(machine.generation, figure);
    Links::new(machine, share(OfGeneration::Inside), share(OfGeneration::Between))
}

/// Seconds of what other ranks take part in; `None` for any other op.
fn exchange(links: &Links, layout: Layout, op: &CountedOp, machine: &Machine) -> Option<f64> {
    let size = |ranks: usize| u32::try_from(ranks).unwrap_or(u32::MAX);
    let data = Group::new(size(layout.data_ranks()), size(layout.parts()));
    let tensor = Group::new(size(layout.tensor_ranks()), 1);
    let all = Group::new(size(layout.ranks()), 1);
    let profile = &op.profile;
    let message = profile.message_bytes.0 as f64;
    // Sums are of fp32 numbers.
    let summed = 4.0 * profile.flops.0 as f64;
    Some(match profile.op.as_str() {
        // Laying out what a rank gives, and taking out a part, are copies.
        "reduce_start" | "take_part" => profile.bytes.0.max(2 * profile.message_bytes.0) as f64 / machine.memory_bytes_per_second,
        "all_reduce" => links.all_reduce(summed, data),
        "reduce_scatter" => links.gather(summed, data),
        "all_gather" => links.gather(message, data),
        "sum_ranks" => links.all_reduce(message, tensor),
        "every_rank" | "largest_of_ranks" => links.all_reduce(summed, all),
        "send" => links.send(message, f64::from(size(layout.tensor_ranks()))),
        // Its sender's time; the timeline has the waiting.
        "receive" => 0.0,
        _ => return None,
    })
}

const POSITIVE: Kind = Kind::Number(Interval::from(0.0, 1e9));
const REQUIRED: Need = Need::Required { example: "" };

const fn field(name: &'static str, about: &'static str, kind: Kind, need: Need) -> Field {
    Field { name, about, kind, need }
}

static FILE: Shape = Shape {
    fields: &[
        field("launch_s", "Seconds of a kernel besides its work", POSITIVE, REQUIRED),
        field("answer_s", "Seconds of the host for a step of answers", POSITIVE, REQUIRED),
        field("answered_s_per_gb", "Seconds for a gigabyte of rows that are answered", POSITIVE, REQUIRED),
        field("trained_s_per_gb", "Seconds for a gigabyte of rows that are trained on", POSITIVE, REQUIRED),
        field("largest_batch", "Most examples of a step that was measured", POSITIVE, REQUIRED),
        field(
            "error",
            "Errors of what was held out",
            Kind::List { of: &Kind::Table(&ERROR), least: 0, most: 16, bare: false, distinct: false },
            Need::Optional { default: "" },
        ),
    ],
    exclusive: &[],
};

static ERROR: Shape = Shape {
    fields: &[
        field("phase", "Training or inference", Kind::TEXT, REQUIRED),
        field("is_run", "Whether rows came from the host", Kind::Flag, REQUIRED),
        field("rows", "How many", Kind::Whole { low: 1, high: 1 << 20 }, REQUIRED),
        field("median_percent", "Median size", POSITIVE, REQUIRED),
        field("ninetieth_percent", "90th percentile", POSITIVE, REQUIRED),
    ],
    exclusive: &[],
};
