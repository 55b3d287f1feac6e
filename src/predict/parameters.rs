//! The few figures that no data sheet prints: what a generation of GPUs and a software stack sustain. `advisor plan calibrate` fits them to
//! published tables, `data/predict/parameters.toml` holds the fitted ones.

use super::layout::Stack;
use crate::{
    hardware::Generation,
    input::{self, Diagnostic, Field, Interval, Kind, Need, Shape, Source, Table},
};
use std::fmt::Write;

/// One figure: name in the file, what it says, the range in which it means anything, and a value before any fit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Knob {
    pub name: &'static str,
    pub about: &'static str,
    pub low: f64,
    pub high: f64,
    pub start: f64,
}

const fn knob(name: &'static str, about: &'static str, low: f64, high: f64, start: f64) -> Knob {
    Knob { name, about, low, high, start }
}

/// Figures of a generation, by their place in its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum OfGeneration {
    Half,
    Fp8,
    Fp8Block,
    Mxfp8,
    Fp4,
    LostWaves,
    Ramp,
    Attention,
    AttentionSecond,
    AttentionFirst,
    Memory,
    Inside,
    Between,
    ExchangeInside,
    ExchangeBetween,
    DenseHost,
    ExpertHost,
    Power,
    NearHost,
    Quantised,
}

/// The figures of a generation, in the order of [`OfGeneration`].
pub const GENERATION_KNOBS: [Knob; 20] = [
    knob("half", "share of the peak that large products sustain in 16 bits", 0.4, 0.98, 0.8),
    knob("fp8", "share of the peak that large products sustain in 8 bits", 0.3, 0.95, 0.7),
    knob("fp8_block", "the same with scales of rows or blocks that software applies", 0.2, 0.95, 0.5),
    knob("mxfp8", "the same with scales that the tensor cores apply", 0.3, 0.95, 0.7),
    knob("fp4", "share of the peak that large products sustain in 4 bits", 0.2, 0.95, 0.55),
    knob("lost_waves", "waves of tiles that a product loses at its end", 0.0, 3.0, 0.5),
    knob("ramp", "inner length that starting and ending a tile costs", 0.0, 2000.0, 200.0),
    knob("attention", "share of the 16-bit peak that the vendor's fused attention sustains", 0.1, 0.9, 0.5),
    knob("attention_second", "the same with FlashAttention-2 (arXiv 2307.08691)", 0.1, 0.9, 0.35),
    knob("attention_first", "the same with FlashAttention (arXiv 2205.14135) and its port to Triton", 0.1, 0.9, 0.25),
    knob("memory", "share of the memory's rate that kernels bound by it sustain", 0.4, 1.0, 0.8),
    knob("inside", "share of the scale-up link's rate that collectives sustain", 0.2, 1.0, 0.7),
    knob("between", "share of the network's rate that collectives sustain", 0.2, 1.0, 0.7),
    knob("exchange_inside", "share of the all-to-all inside a domain that nothing hides", 0.05, 1.0, 0.6),
    knob("exchange_between", "share of the all-to-all between domains that nothing hides", 0.05, 1.0, 0.6),
    knob("dense_host", "seconds of the host for a block without experts, forward", 1e-6, 3e-3, 2e-4),
    knob("expert_host", "seconds of the host for a layer of experts, forward", 1e-6, 1e-2, 2e-3),
    // A chip's dynamic power grows with the cube of its clock while voltage follows (Weste and Harris, CMOS VLSI Design, 4th ed., section 5.2), with
    // the clock alone where voltage is at its lowest.
    knob(
        "power",
        "exponent of the sustained clock over the share that a part has of the fastest one's power",
        0.3333,
        1.0,
        0.3333,
    ),
    // A prior: processors of one time differ by less than three in how fast one thread goes.
    knob("near_host", "time of a host on NVLink-C2C (Grace), in units of that of one on PCI Express", 0.3333, 3.0, 1.0),
    knob("quantised", "share that is lost of the places that a product's last wave of tiles leaves empty", 0.0, 1.0, 0.5),
];

/// Figures of a software stack, by their place in its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum OfStack {
    Traffic,
    DataExposed,
    TensorExposed,
    Host,
    Graphed,
}

/// The figures of a stack, in the order of [`OfStack`].
pub const STACK_KNOBS: [Knob; 5] = [
    knob("traffic", "memory traffic between products, in units of that of fused kernels", 0.5, 6.0, 1.0),
    knob("data_exposed", "share of the exchange among data-parallel ranks that nothing hides", 0.0, 1.0, 0.2),
    knob("tensor_exposed", "share of the exchange among tensor-parallel ranks that nothing hides", 0.0, 1.0, 0.6),
    knob("host", "time of the host, in units of that of a generation", 0.05, 4.0, 1.0),
    knob("graphed", "share of the host's time that CUDA graphs of layers leave", 0.05, 1.0, 0.6),
];

/// All fitted figures.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters {
    generations: [[f64; GENERATION_KNOBS.len()]; Generation::ALL.len()],
    stacks: [[f64; STACK_KNOBS.len()]; Stack::ALL.len()],
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters {
            generations: [GENERATION_KNOBS.map(|knob| knob.start); Generation::ALL.len()],
            stacks: [STACK_KNOBS.map(|knob| knob.start); Stack::ALL.len()],
        }
    }
}

/// Names one figure of [`Parameters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Generation(Generation, usize),
    Stack(Stack, usize),
}

impl Place {
    pub fn knob(self) -> Knob {
        match self {
            Place::Generation(_, at) => GENERATION_KNOBS[at],
            Place::Stack(_, at) => STACK_KNOBS[at],
        }
    }
}

impl Parameters {
    pub fn of(&self, generation: Generation, figure: OfGeneration) -> f64 {
        self.generations[generation as usize][figure as usize]
    }

    pub fn of_stack(&self, stack: Stack, figure: OfStack) -> f64 {
        self.stacks[stack as usize][figure as usize]
    }

    pub fn get(&self, place: Place) -> f64 {
        match place {
            Place::Generation(generation, at) => self.generations[generation as usize][at],
            Place::Stack(stack, at) => self.stacks[stack as usize][at],
        }
    }

    pub fn set(&mut self, place: Place, value: f64) {
        match place {
            Place::Generation(generation, at) => self.generations[generation as usize][at] = value,
            Place::Stack(stack, at) => self.stacks[stack as usize][at] = value,
        }
    }

    /// The figures that come with the program.
    pub fn shipped() -> Parameters {
        let source = Source::new("data/predict/parameters.toml", include_str!("../../data/predict/parameters.toml"));
        Self::read(&source).unwrap_or_else(|found| panic!("{}", input::render(&found)))
    }

    /// Reads a file as `to_toml` writes it; what it leaves out keeps its value before any fit.
    pub fn read(source: &Source) -> Result<Parameters, Vec<Diagnostic>> {
        input::parse(source, &FILE, |file, _| {
            let mut parameters = Parameters::default();
            for generation in Generation::ALL {
                read_row(
                    file,
                    "generation",
                    generation.name(),
                    &GENERATION_KNOBS,
                    &mut parameters.generations[generation as usize],
                );
            }
            for stack in Stack::ALL {
                read_row(file, "stack", stack.name(), &STACK_KNOBS, &mut parameters.stacks[stack as usize]);
            }
            parameters
        })
    }

    /// As `data/predict/parameters.toml` is written.
    pub fn to_toml(&self) -> String {
        let mut text = String::from(
            "# Written by `advisor plan calibrate --out data/predict/parameters.toml`; src/predict/parameters.rs says what each means.\n",
        );
        let mut row = |head: &str, name: &str, knobs: &[Knob], values: &[f64]| {
            let _ = write!(text, "\n[{head}.{name}]\n");
            for (knob, value) in knobs.iter().zip(values) {
                let _ = writeln!(text, "{} = {}", knob.name, rounded(*value));
            }
        };
        for generation in Generation::ALL {
            row("generation", generation.name(), &GENERATION_KNOBS, &self.generations[generation as usize]);
        }
        for stack in Stack::ALL {
            row("stack", stack.name(), &STACK_KNOBS, &self.stacks[stack as usize]);
        }
        text
    }
}

/// Four significant figures.
fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

fn read_row(file: &Table, head: &str, name: &str, knobs: &[Knob], values: &mut [f64]) {
    let Some(row) = file.table(head).and_then(|table| table.table(name)) else { return };
    for (knob, value) in knobs.iter().zip(values) {
        *value = row.number(knob.name).unwrap_or(*value);
    }
}

const OPTIONAL: Need = Need::Optional { default: "" };

const fn fields<const N: usize>(knobs: &'static [Knob; N]) -> [Field; N] {
    let mut out =
        [const { Field { name: "", about: "", kind: Kind::Number(Interval::from(0.0, f64::INFINITY)), need: OPTIONAL } }; N];
    let mut at = 0;
    while at < N {
        out[at].name = knobs[at].name;
        out[at].about = knobs[at].about;
        at += 1;
    }
    out
}

static GENERATION_FIELDS: [Field; GENERATION_KNOBS.len()] = fields(&GENERATION_KNOBS);
static STACK_FIELDS: [Field; STACK_KNOBS.len()] = fields(&STACK_KNOBS);
static GENERATION: Shape = Shape { fields: &GENERATION_FIELDS, exclusive: &[] };
static STACK: Shape = Shape { fields: &STACK_FIELDS, exclusive: &[] };

const fn row(name: &'static str, shape: &'static Shape) -> Field {
    Field { name, about: "", kind: Kind::Table(shape), need: OPTIONAL }
}

static GENERATIONS: Shape = Shape {
    fields: &[
        row("volta", &GENERATION),
        row("turing", &GENERATION),
        row("ampere", &GENERATION),
        row("ada", &GENERATION),
        row("hopper", &GENERATION),
        row("blackwell", &GENERATION),
    ],
    exclusive: &[],
};

static STACKS: Shape = Shape {
    fields: &[
        row("megatron-first", &STACK),
        row("megatron-unfused", &STACK),
        row("megatron", &STACK),
        row("composer", &STACK),
        row("torch-eager", &STACK),
        row("torch-compiled", &STACK),
        row("automodel", &STACK),
    ],
    exclusive: &[],
};

static FILE: Shape = Shape { fields: &[row("generation", &GENERATIONS), row("stack", &STACKS)], exclusive: &[] };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_comes_back_as_it_was_written() {
        let mut parameters = Parameters::default();
        parameters.set(Place::Generation(Generation::Hopper, OfGeneration::Ramp as usize), 321.0);
        parameters.set(Place::Stack(Stack::Composer, OfStack::Traffic as usize), 1.75);
        let back = Parameters::read(&Source::new("p.toml", &parameters.to_toml())).unwrap();
        assert_eq!(back, parameters);
        assert_eq!(back.of(Generation::Hopper, OfGeneration::Ramp), 321.0);
    }

    #[test]
    fn every_shipped_figure_lies_in_its_range() {
        let shipped = Parameters::shipped();
        for generation in Generation::ALL {
            for (at, knob) in GENERATION_KNOBS.iter().enumerate() {
                let value = shipped.get(Place::Generation(generation, at));
                assert!((knob.low..=knob.high).contains(&value), "{} {}: {value}", generation.name(), knob.name);
            }
        }
        for stack in Stack::ALL {
            for (at, knob) in STACK_KNOBS.iter().enumerate() {
                let value = shipped.get(Place::Stack(stack, at));
                assert!((knob.low..=knob.high).contains(&value), "{} {}: {value}", stack.name(), knob.name);
            }
        }
    }

    #[test]
    fn names_stand_in_the_order_of_their_places() {
        assert_eq!(GENERATION_KNOBS[OfGeneration::ExpertHost as usize].name, "expert_host");
        assert_eq!(GENERATION_KNOBS[OfGeneration::Power as usize].name, "power");
        assert_eq!(GENERATION_KNOBS[OfGeneration::Quantised as usize].name, "quantised");
        assert_eq!(GENERATION_KNOBS[OfGeneration::Memory as usize].name, "memory");
        assert_eq!(STACK_KNOBS[OfStack::Host as usize].name, "host");
    }
}
