//! From `data/hardware/gpus.toml` to the book.

use super::{CoherentHost, Generation, Gpu, HardwareBook, Machine, Peaks, ScaleOut, ScaleUp, folded};
use crate::{
    input::{self, Choice, Diagnostic, Field, Interval, Kind, Need, Report, Shape, Source, Table},
    units::Bytes,
};

const TERA: f64 = 1e12;
const GIGA: f64 = 1e9;

const REQUIRED: Need = Need::Required { example: "" };
const OPTIONAL: Need = Need::Optional { default: "" };
const RATE: Kind = Kind::Number(Interval::above(0.0, f64::INFINITY));
const COUNT: Kind = Kind::Whole { low: 1, high: 1 << 20 };
const NAMES: Kind = Kind::List { of: &Kind::TEXT, least: 0, most: 64, bare: false, distinct: true };

const fn field(name: &'static str, about: &'static str, kind: Kind, need: Need) -> Field {
    Field { name, about, kind, need }
}

const GENERATION: Kind = Kind::Word { what: "generation", choices: generations, hint: |_| None };

fn generations() -> Vec<Choice> {
    Generation::ALL.iter().map(|one| Choice { name: one.name(), aliases: &[], about: "" }).collect()
}

static FILE: Shape = Shape {
    fields: &[field(
        "gpu",
        "GPUs",
        Kind::List { of: &Kind::Table(&GPU), least: 1, most: 1000, bare: false, distinct: false },
        REQUIRED,
    )],
    exclusive: &[],
};

static GPU: Shape = Shape {
    fields: &[
        field("name", "Name", Kind::TEXT, REQUIRED),
        field("aliases", "Other spellings", NAMES, OPTIONAL),
        field("price_names", "Names in catalogues of prices", NAMES, OPTIONAL),
        field("generation", "Generation", GENERATION, REQUIRED),
        field("bf16_tflops", "Dense rate, bfloat16", RATE, REQUIRED),
        field("tf32_tflops", "Dense rate, TF32", RATE, OPTIONAL),
        field("fp8_tflops", "Dense rate, 8-bit floats", RATE, OPTIONAL),
        field("fp4_tflops", "Dense rate, 4-bit floats", RATE, OPTIONAL),
        field("int8_tops", "Dense rate, 8-bit integers", RATE, OPTIONAL),
        field("fp32_tflops", "Rate of the plain units, 32-bit floats", RATE, OPTIONAL),
        field("memory_gb", "Memory, 10^9 bytes", RATE, REQUIRED),
        field("memory_gb_per_s", "Rate of the memory", RATE, REQUIRED),
        field("multiprocessors", "Streaming multiprocessors", COUNT, REQUIRED),
        field("power_w", "Power limit", RATE, REQUIRED),
        field("full_power_w", "Power limit of the fastest part with this chip", RATE, OPTIONAL),
        field("domain", "GPUs in one domain of the scale-up link", COUNT, REQUIRED),
        field("link_gb_per_s", "Rate of the scale-up link, one direction", RATE, REQUIRED),
        field("link_latency_us", "Latency of the scale-up link", RATE, REQUIRED),
        field("reduces_in_switch", "1 where the switch adds up", Kind::Whole { low: 0, high: 1 }, OPTIONAL),
        field("network_gb_per_s", "Rate of the network of one GPU, one direction", RATE, REQUIRED),
        field("network_latency_us", "Latency of the network", RATE, REQUIRED),
        field("coherent_host_gb", "Host's memory on NVLink-C2C, a GPU's share, 10^9 bytes", RATE, OPTIONAL),
        field("coherent_host_gb_per_s", "Rate of NVLink-C2C, a GPU's share, one direction", RATE, OPTIONAL),
        field("source", "Where the figures stand", Kind::TEXT, REQUIRED),
    ],
    exclusive: &[],
};

impl HardwareBook {
    /// The book that comes with the program.
    pub fn shipped() -> HardwareBook {
        let source = Source::new("data/hardware/gpus.toml", include_str!("../../data/hardware/gpus.toml"));
        Self::read(&source).unwrap_or_else(|found| panic!("{}", input::render(&found)))
    }

    pub fn read(source: &Source) -> Result<HardwareBook, Vec<Diagnostic>> {
        input::parse(source, &FILE, |file, report| {
            let tables = file.tables("gpu").unwrap_or_default();
            HardwareBook { gpus: tables.iter().filter_map(|table| gpu(table, report)).collect() }
        })
    }
}

fn gpu(table: &Table, report: &mut Report) -> Option<Gpu> {
    let name = table.text("name")?.to_string();
    if name != name.to_lowercase() || folded(&name).is_empty() {
        report.add(table.span("name"), "a name is written small");
    }
    let names = |key| table.words(key, |word| Some(word.to_string())).unwrap_or_default();
    let tera = |key| table.number(key).map(|value| value * TERA);
    let power_w = table.number("power_w")?;
    Some(Gpu {
        aliases: names("aliases"),
        price_names: names("price_names"),
        source: table.text("source")?.to_string(),
        machine: Machine {
            generation: table.word("generation", Generation::named)?,
            peaks: Peaks {
                bf16: tera("bf16_tflops")?,
                tf32: tera("tf32_tflops"),
                fp8: tera("fp8_tflops"),
                fp4: tera("fp4_tflops"),
                int8: tera("int8_tops"),
                fp32: tera("fp32_tflops"),
            },
            memory: Bytes((table.number("memory_gb")? * GIGA) as u64),
            memory_bytes_per_second: table.number("memory_gb_per_s")? * GIGA,
            multiprocessors: table.count("multiprocessors")? as u32,
            power_w,
            full_power_w: table.number("full_power_w").unwrap_or(power_w),
            scale_up: ScaleUp {
                domain: table.count("domain")? as u32,
                bytes_per_second: table.number("link_gb_per_s")? * GIGA,
                reduces_in_switch: table.whole("reduces_in_switch") == Some(1),
                latency: table.number("link_latency_us")? * 1e-6,
            },
            scale_out: ScaleOut {
                bytes_per_second: table.number("network_gb_per_s")? * GIGA,
                latency: table.number("network_latency_us")? * 1e-6,
            },
            coherent_host: table
                .number("coherent_host_gb")
                .zip(table.number("coherent_host_gb_per_s"))
                .map(|(memory, rate)| CoherentHost { memory: Bytes((memory * GIGA) as u64), bytes_per_second: rate * GIGA }),
        },
        name,
    })
}
