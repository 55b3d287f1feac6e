//! The keys of a plan file. The checker, its messages, the JSON Schema and the reader all go by these tables.

use super::{
    layout::{Modules, Recompute},
    plan_file::Known,
};
use crate::{
    input::{self, Choice, Exclusive, Field, Interval, Kind, Need, Shape},
    vocab::{Phase, Precision, Vocabulary},
};
use serde_json::{Value, json};

/// JSON Schema of a plan file; `known` has the names that it may use.
pub fn schema(known: &Known) -> Value {
    let about = "What to train or to serve, on which machines, within which limits. Written in TOML, answered by `advisor plan`.";
    let mut schema = input::schema(&FILE, "advisor plan", about);
    let names = [
        ("/properties/model/properties/shape", known.models),
        ("/properties/train/properties/precision/anyOf/0", known.precisions),
        ("/properties/train/properties/precision/anyOf/1/items", known.precisions),
        ("/properties/serve/properties/weights/anyOf/0", known.weights),
        ("/properties/serve/properties/weights/anyOf/1/items", known.weights),
        ("/properties/serve/properties/kv_cache", known.kv_caches),
        ("/properties/serve/properties/engine", known.engines),
    ];
    for (place, names) in names {
        let word = schema.pointer_mut(place).and_then(Value::as_object_mut).expect("`FILE` has this key: tested");
        word.remove("pattern");
        word.insert("enum".into(), json!(names));
    }
    schema
}

/// Longest list of an axis: far more than anyone reads in a report.
const LONGEST_AXIS: usize = 64;

/// Largest count of GPUs that is searched.
pub(super) const MOST_GPUS: u64 = 1 << 20;

pub(super) static FILE: Shape = Shape {
    fields: &[
        Field {
            name: "name",
            about: "Name of the plan and of its output folder",
            kind: Kind::Text {
                fits: |text| {
                    (1..=64).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
                },
                pattern: "^[a-z0-9-]{1,64}$",
                says: "1 to 64 small letters, digits and hyphens, in quotes",
            },
            need: Need::Required { example: "name = \"my-plan\"" },
        },
        optional(
            "question",
            "What the report answers, as its reader would ask it",
            "made from the model and the work",
            Kind::TEXT,
        ),
        Field {
            name: "model",
            about: "The model: a published shape by name, or its numbers, or a shape with some numbers changed",
            kind: Kind::Table(&MODEL),
            need: Need::Required { example: "[model]" },
        },
        optional("train", "What is trained", "", Kind::Table(&TRAIN)),
        optional("serve", "What is served", "", Kind::Table(&SERVE)),
        optional("run", "What the graph of a scenario does", "", Kind::Table(&RUN)),
        Field {
            name: "machines",
            about: "The kinds of machines that may be taken, and how many",
            kind: Kind::List { of: &Kind::Table(&MACHINE), least: 1, most: LONGEST_AXIS, bare: true, distinct: false },
            need: Need::Required { example: "[[machines]]" },
        },
        optional("limits", "What the answer must keep to; one left out does not bind", "", Kind::Table(&LIMITS)),
        optional("objective", "What the answer is best at within every limit", "", Kind::Table(&OBJECTIVE)),
        optional("operation", "Failures, checkpoints and power of the machines", "", Kind::Table(&OPERATION)),
        optional("layouts", "Limits of the search over layouts; one left out does not bind", "", Kind::Table(&LAYOUTS)),
    ],
    exclusive: &[Exclusive { keys: &["train", "serve", "run"], required: true }],
};

static MODEL: Shape = Shape {
    fields: &[
        optional("scenario", "The file of a scenario whose graph is meant, from the plan's folder", "", Kind::TEXT),
        optional("shape", "A published model by name", "", Kind::TEXT),
        optional("layers", "Transformer layers", "of the shape", Kind::Whole { low: 1, high: 10_000 }),
        optional("hidden", "Width of the residual stream", "of the shape", WIDTH),
        optional("heads", "Query heads", "of the shape", Kind::Whole { low: 1, high: 4096 }),
        optional(
            "kv_heads",
            "Key and value heads; fewer than query heads where several share one",
            "as `heads`",
            Kind::Whole { low: 1, high: 4096 },
        ),
        optional("head_size", "Width of a head", "`hidden` over `heads`", Kind::Whole { low: 1, high: 65_536 }),
        optional("feed_forward", "Width of the feed-forward layer", "of the shape", WIDTH),
        optional("gated", "Whether the feed-forward layer has a gate (SwiGLU)", "true", Kind::Flag),
        optional("vocabulary", "Words of the vocabulary", "of the shape", Kind::Whole { low: 2, high: 10_000_000 }),
        optional("tied_embeddings", "Whether the first and the last layer share their table", "false", Kind::Flag),
        optional("experts", "A mixture of experts in place of the feed-forward layer", "none", Kind::Table(&EXPERTS)),
        optional(
            "prediction_layers",
            "Blocks that predict further tokens: trained beside the others, and what proposes `draft_tokens` when it serves",
            "of the shape",
            Kind::Whole { low: 0, high: 16 },
        ),
    ],
    exclusive: &[],
};

const WIDTH: Kind = Kind::Whole { low: 1, high: 1 << 24 };

static EXPERTS: Shape = Shape {
    fields: &[
        Field {
            name: "count",
            about: "Experts of a layer among which a token is routed",
            kind: Kind::Whole { low: 2, high: 65_536 },
            need: Need::Required { example: "count = 8" },
        },
        Field {
            name: "active",
            about: "Experts that a token visits",
            kind: Kind::Whole { low: 1, high: 4096 },
            need: Need::Required { example: "active = 2" },
        },
        optional("feed_forward", "Width of one expert", "`feed_forward` of the model", WIDTH),
        optional("shared", "Experts that every token visits", "0", Kind::Whole { low: 0, high: 4096 }),
        optional("dense_layers", "First layers that have a plain feed-forward layer", "0", Kind::Whole { low: 0, high: 10_000 }),
    ],
    exclusive: &[],
};

static TRAIN: Shape = Shape {
    fields: &[
        Field {
            name: "tokens",
            about: "Tokens to train on",
            kind: Kind::Number(Interval::from(1.0, 1e18)),
            need: Need::Required { example: "tokens = 1e12" },
        },
        Field {
            name: "sequence_length",
            about: "Tokens of a sequence",
            kind: Kind::Whole { low: 1, high: 1 << 26 },
            need: Need::Required { example: "sequence_length = 8192" },
        },
        optional("batch_sequences", "Sequences of an optimizer step; several are an axis", "", BATCHES),
        optional(
            "batch_tokens",
            "Tokens of an optimizer step, a multiple of the sequence length; several are an axis",
            "",
            Kind::List { of: &Kind::Number(Interval::from(1.0, 1e12)), least: 1, most: LONGEST_AXIS, bare: true, distinct: true },
        ),
        optional("precision", "Number format of the products; several are an axis", "[\"bf16\"]", NAMES),
    ],
    exclusive: &[Exclusive { keys: &["batch_sequences", "batch_tokens"], required: true }],
};

const BATCHES: Kind =
    Kind::List { of: &Kind::Whole { low: 1, high: 1 << 24 }, least: 1, most: LONGEST_AXIS, bare: true, distinct: true };

const NAMES: Kind = Kind::List { of: &Kind::TEXT, least: 1, most: LONGEST_AXIS, bare: true, distinct: true };

static SERVE: Shape = Shape {
    fields: &[
        Field {
            name: "requests_per_s",
            about: "Requests a second, on average",
            kind: Kind::Number(Interval::above(0.0, 1e9)),
            need: Need::Required { example: "requests_per_s = 10" },
        },
        Field {
            name: "input_tokens",
            about: "Tokens of a request",
            kind: Kind::Whole { low: 1, high: 1 << 24 },
            need: Need::Required { example: "input_tokens = 1000" },
        },
        Field {
            name: "output_tokens",
            about: "Tokens of an answer",
            kind: Kind::Whole { low: 1, high: 1 << 24 },
            need: Need::Required { example: "output_tokens = 300" },
        },
        optional("max_first_token_ms", "Longest wait for the first token", "none", MILLISECONDS),
        optional("max_per_token_ms", "Longest time between tokens that follow", "none", MILLISECONDS),
        optional("weights", "Number format of the weights; several are an axis", "[\"bf16\"]", NAMES),
        optional("kv_cache", "Number format of keys and values", "\"auto\": what engines take with the weights", Kind::TEXT),
        optional("engine", "The software that serves", "\"tensorrt-llm\"", Kind::TEXT),
        optional(
            "draft_tokens",
            "Tokens that each step proposes besides the one that it is sure of (speculative decoding by layers that predict further tokens); \
             several are tried, 0 is none",
            "0",
            Kind::List { of: &Kind::Whole { low: 0, high: 16 }, least: 1, most: 17, bare: true, distinct: true },
        ),
        optional(
            "draft_acceptance",
            "Share of proposed tokens that are accepted, of those before which all were",
            "what published runs were fitted with; the answer says it",
            Kind::Number(Interval::between(0.0, 1.0)),
        ),
    ],
    exclusive: &[],
};

static RUN: Shape = Shape {
    fields: &[
        Field {
            name: "phase",
            about: "Whether it learns or answers",
            kind: Kind::Word { what: "phase", choices: phases, hint: |_| None },
            need: Need::Required { example: "phase = \"train\"" },
        },
        optional(
            "epochs",
            "Passes over the training rows of the scenario",
            "of the scenario",
            Kind::Number(Interval::above(0.0, 1e9)),
        ),
        optional("examples", "Examples of the whole training", "", Kind::Number(Interval::above(0.0, 1e18))),
        optional("batch_size", "Examples of a step over all GPUs; several are an axis", "of the scenario", BATCHES),
        optional(
            "precision",
            "Number format; several are an axis",
            "of the scenario",
            Kind::List {
                of: &Kind::Word { what: "precision", choices: precisions, hint: |_| None },
                least: 1,
                most: LONGEST_AXIS,
                bare: true,
                distinct: true,
            },
        ),
    ],
    exclusive: &[Exclusive { keys: &["epochs", "examples"], required: false }],
};

fn phases() -> Vec<Choice> {
    choices::<Phase>()
}

fn precisions() -> Vec<Choice> {
    choices::<Precision>()
}

fn choices<T: Vocabulary>() -> Vec<Choice> {
    T::WORDS.iter().map(|word| Choice { name: word.name, aliases: word.aliases, about: word.about }).collect()
}

const MILLISECONDS: Kind = Kind::Number(Interval::above(0.0, 1e7));

static MACHINE: Shape = Shape {
    fields: &[
        Field {
            name: "gpu",
            about: "The GPU, by a name of the hardware book",
            kind: Kind::TEXT,
            need: Need::Required { example: "gpu = \"h100\"" },
        },
        Field {
            name: "gpus",
            about: "How many GPUs: one count, a list of counts, or every whole number of machines in a range",
            kind: Kind::Either(&[
                Kind::List { of: &COUNT, least: 1, most: LONGEST_AXIS, bare: true, distinct: true },
                Kind::Table(&RANGE),
            ]),
            need: Need::Required { example: "gpus = { from = 64, to = 1024 }" },
        },
        optional("instance", "Price by an entry of the price book", "the cheapest entry with this GPU", Kind::TEXT),
        optional("usd_per_gpu_hour", "Price of a GPU for an hour, US dollars", "", DOLLARS),
        optional("spot_usd_per_gpu_hour", "The same where it may be taken away at any time", "of the price book", DOLLARS),
        optional(
            "network_gb_per_s_per_gpu",
            "Network between machines, gigabytes a second for each GPU and direction",
            "of the hardware book",
            Kind::Number(Interval::above(0.0, 1e5)),
        ),
    ],
    exclusive: &[Exclusive { keys: &["instance", "usd_per_gpu_hour"], required: false }],
};

const COUNT: Kind = Kind::Whole { low: 1, high: MOST_GPUS };
const DOLLARS: Kind = Kind::Number(Interval::above(0.0, 1e6));

static RANGE: Shape = Shape {
    fields: &[
        Field { name: "from", about: "Fewest GPUs", kind: COUNT, need: Need::Required { example: "from = 8" } },
        Field { name: "to", about: "Most GPUs", kind: COUNT, need: Need::Required { example: "to = 1024" } },
    ],
    exclusive: &[],
};

static LIMITS: Shape = Shape {
    fields: &[
        optional("max_days", "Longest training", "none", Kind::Number(Interval::above(0.0, 1e6))),
        optional(
            "max_usd",
            "Most money: of the training, or of a month of serving",
            "none",
            Kind::Number(Interval::above(0.0, 1e15)),
        ),
        optional("max_mwh", "Most energy of the training", "none", Kind::Number(Interval::above(0.0, 1e12))),
        optional("max_gpus", "Most GPUs", "none", COUNT),
        optional(
            "memory_share",
            "Share of a GPU's memory that may be used; the rest is for what allocators lose",
            "0.95",
            Kind::Number(Interval::above(0.0, 1.0)),
        ),
    ],
    exclusive: &[],
};

static OBJECTIVE: Shape = Shape {
    fields: &[optional(
        "minimise",
        "The figure that is made small",
        "\"cost\"",
        Kind::Word { what: "objective", choices: objectives, hint: |_| None },
    )],
    exclusive: &[],
};

static OPERATION: Shape = Shape {
    fields: &[
        optional(
            "failures_per_gpu_year",
            "Unexpected interruptions of a run for each GPU and year of 365.25 days",
            "0.173, of a run on 16,384 GPUs (arXiv 2407.21783, section 3.3.4)",
            Kind::Number(Interval::from(0.0, 1e4)),
        ),
        optional("restart_minutes", "From an interruption until work goes on", "10", Kind::Number(Interval::from(0.0, 1e4))),
        optional(
            "checkpoint_gb_per_s_per_gpu",
            "Rate at which checkpoints are written, gigabytes a second for each GPU",
            "0.122, of the same run (section 3.3.1)",
            Kind::Number(Interval::above(0.0, 1e4)),
        ),
        optional(
            "power_usage_effectiveness",
            "Power of the building over that of the machines",
            "1.0: the machines alone",
            Kind::Number(Interval::from(1.0, 10.0)),
        ),
        optional("spot", "Machines at spot prices are answers as well, with so many interruptions", "none", Kind::Table(&SPOT)),
    ],
    exclusive: &[],
};

static SPOT: Shape = Shape {
    fields: &[
        Field {
            name: "interruptions_per_machine_day",
            about: "How often one machine is taken away in a day; every one interrupts a training, and takes its replicas from what is served",
            kind: Kind::Number(Interval::from(0.0, 1e4)),
            need: Need::Required { example: "interruptions_per_machine_day = 0.05" },
        },
        optional(
            "replacement_minutes",
            "Serving: from the loss of a machine until another serves in its place",
            "as `restart_minutes`",
            Kind::Number(Interval::from(0.0, 1e4)),
        ),
        optional(
            "availability",
            "Serving: share of the time in which enough replicas must be there; spares are taken until it holds",
            "0.999",
            Kind::Number(Interval::between(0.0, 1.0)),
        ),
    ],
    exclusive: &[],
};

static LAYOUTS: Shape = Shape {
    fields: &[
        optional("tensor", "Sizes of tensor parallelism", "every one that fits", SIZES),
        optional("pipeline", "Pipeline stages", "every one that fits", SIZES),
        optional("context", "Sizes of context parallelism", "every one that fits", SIZES),
        optional("expert", "Sizes of expert parallelism", "every one that fits", SIZES),
        optional("micro_batch", "Sequences of a micro-batch", "1, 2, 4, ... 64", SIZES),
        optional("interleaving", "Pieces of each pipeline stage", "every one that fits", SIZES),
        optional(
            "recomputation",
            "What of the activations is computed again",
            "\"as-needed\"",
            Kind::List {
                of: &Kind::Word { what: "recomputation", choices: recomputations, hint: |_| None },
                least: 1,
                most: 4,
                bare: true,
                distinct: true,
            },
        ),
        optional(
            "zero",
            "ZeRO stages: what data-parallel ranks share out (0 nothing, 1 optimizer state, 2 and gradients, 3 and weights)",
            "[0, 1, 2, 3]",
            Kind::List { of: &Kind::Whole { low: 0, high: 3 }, least: 1, most: 4, bare: true, distinct: true },
        ),
    ],
    exclusive: &[],
};

const SIZES: Kind = Kind::List { of: &COUNT, least: 1, most: LONGEST_AXIS, bare: true, distinct: true };

const fn optional(name: &'static str, about: &'static str, default: &'static str, kind: Kind) -> Field {
    Field { name, about, kind, need: Need::Optional { default } }
}

fn objectives() -> Vec<Choice> {
    vec![
        Choice { name: "cost", aliases: &[], about: "dollars of the whole training, or of a million tokens served" },
        Choice { name: "time", aliases: &[], about: "days of the training, or the wait for an answer" },
        Choice { name: "energy", aliases: &[], about: "energy of the whole training, or of a million tokens served" },
    ]
}

/// Words, what they say, and what they mean.
pub(super) const RECOMPUTATIONS: &[(&str, &str, Recompute)] = &[
    ("none", "every activation is kept", Recompute::Nothing),
    ("selective", "the core of attention is computed again (arXiv 2205.05198)", Recompute::Selective),
    ("full", "every layer is computed again from its input", Recompute::Full),
    ("modules", "norms, activation functions and low-rank projections of every layer", Recompute::Modules(Modules::CHEAP)),
    ("as-needed", "as little as memory asks for: nothing, modules, or some layers whole", Recompute::AsNeeded),
];

fn recomputations() -> Vec<Choice> {
    RECOMPUTATIONS.iter().map(|(name, about, _)| Choice { name, aliases: &[], about }).collect()
}
