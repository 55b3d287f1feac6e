//! The keys of a scenario file. The checker, its messages, the JSON Schema and the reader all go by these tables.

use crate::{
    data::SHIPPED,
    input::{self, Choice, Exclusive, Field, Interval, Kind, Need, Shape},
    vocab::{
        Augmentation, Compression, Device, InitKind, Layout, Metric, Objective, OptimizerKind, Phase, Precision, Schedule, Task,
        Vocabulary,
    },
};
use serde_json::{Value, json};

/// JSON Schema of a scenario file; `models` are the names that `model` may have.
pub fn schema(models: &[&str]) -> Value {
    let about = "What to measure, and what a good answer must keep to. Written in TOML, run by `advisor run`.";
    let mut schema = input::schema(&FILE, "advisor scenario", about);
    let model = schema.pointer_mut("/properties/workload/properties/model").and_then(Value::as_object_mut);
    let model = model.expect("`FILE` has `workload.model`: tested");
    model.remove("pattern");
    model.insert("enum".into(), json!(models));
    schema
}

/// Longest list of an axis: far more than anyone reads in a report.
const LONGEST_AXIS: usize = 64;

pub(super) static FILE: Shape = Shape {
    fields: &[
        Field {
            name: "name",
            about: "Name of the scenario and of its output folder",
            kind: Kind::Text {
                fits: is_name,
                pattern: "^[a-z0-9-]{1,64}$",
                says: "1 to 64 small letters, digits and hyphens, in quotes",
            },
            need: Need::Required { example: "name = \"my-question\"" },
        },
        optional("question", "What the report answers, as its reader would ask it", "made from model and data", Kind::TEXT),
        Field {
            name: "workload",
            about: "What is computed",
            kind: Kind::Table(&WORKLOAD),
            need: Need::Required { example: "[workload]" },
        },
        optional("train", "How the model is trained", "", Kind::Table(&TRAIN)),
        optional("grid", "The axes; every combination of their values is a candidate", "", Kind::Table(&GRID)),
        optional(
            "constraints",
            "Limits that the recommendation must meet; one left out does not bind",
            "",
            Kind::Table(&CONSTRAINTS),
        ),
        optional("objective", "What the recommendation is best at once every limit holds", "", Kind::Table(&OBJECTIVE)),
        optional("cost", "What an hour of the machine costs", "", Kind::Table(&COST)),
    ],
    exclusive: &[],
};

static WORKLOAD: Shape = Shape {
    fields: &[
        optional("task", "Kind of work; picks the metrics", "what the data set's rows are for", word::<Task>()),
        Field {
            name: "model",
            about: "The model, by name",
            kind: Kind::TEXT,
            need: Need::Required { example: "model = \"simple-cnn\"" },
        },
        Field {
            name: "data",
            about: "The data set: one that ships with the program, or files of your own",
            kind: Kind::Either(&[
                Kind::Word { what: "data set", choices: shipped, hint: no_hint },
                Kind::Tagged {
                    tag: "format",
                    shapes: &[
                        ("idx", "A folder with four IDX files: images and labels of training and test", &IDX),
                        ("csv", "One CSV file with a header line, one row an image", &CSV),
                        ("text", "One CSV file with a header line, one row a text", &TEXT),
                    ],
                },
            ]),
            need: Need::Required { example: "data = \"mnist\"" },
        },
        optional(
            "phase",
            "What candidates do: learn, answer, or both",
            "[\"train\", \"infer\"]",
            axis(&const { word::<Phase>() }),
        ),
    ],
    exclusive: &[],
};

static IDX: Shape = Shape {
    fields: &[Field {
        name: "path",
        about: "The folder, from the folder of this file",
        kind: Kind::TEXT,
        need: Need::Required { example: "path = \"my-images\"" },
    }],
    exclusive: &[],
};

static CSV: Shape = Shape {
    fields: &[
        Field {
            name: "path",
            about: "The file, from the folder of this file",
            kind: Kind::TEXT,
            need: Need::Required { example: "path = \"my-images.csv\"" },
        },
        LABEL,
        Field {
            name: "shape",
            about: "Height, width and channels of an image",
            kind: Kind::List { of: &Kind::Whole { low: 1, high: 4096 }, least: 3, most: 3, bare: false, distinct: false },
            need: Need::Required { example: "shape = [28, 28, 1]" },
        },
        optional(
            "maximum",
            "Largest value of a pixel; pixels are divided by it",
            "255.0",
            Kind::Number(Interval::above(0.0, f64::INFINITY)),
        ),
        SPLIT,
        TEST_SHARE,
    ],
    exclusive: &[],
};

const LABEL: Field = Field {
    name: "label",
    about: "Column that holds the class",
    kind: Kind::TEXT,
    need: Need::Required { example: "label = \"class\"" },
};
const SPLIT: Field = optional("split", "Column that says `train` or `test`", "none, `test_share` decides", Kind::TEXT);
const TEST_SHARE: Field =
    optional("test_share", "Share of the rows held out for the test", "0.2", Kind::Number(Interval::between(0.0, 1.0)));

static TEXT: Shape = Shape {
    fields: &[
        Field {
            name: "path",
            about: "The file, from the folder of this file",
            kind: Kind::TEXT,
            need: Need::Required { example: "path = \"my-texts.csv\"" },
        },
        Field {
            name: "text",
            about: "Column that holds the text",
            kind: Kind::TEXT,
            need: Need::Required { example: "text = \"text\"" },
        },
        LABEL,
        SPLIT,
        TEST_SHARE,
        optional("length", "Words of a text that are read", "48", Kind::Whole { low: 1, high: 4096 }),
        optional(
            "vocabulary",
            "Most different words, the frequent ones of the training rows",
            "8000",
            Kind::Whole { low: 16, high: 1_000_000 },
        ),
    ],
    exclusive: &[],
};

static TRAIN: Shape = Shape {
    fields: &[
        optional("epochs", "Passes over the training rows", "3", Kind::Whole { low: 1, high: 1000 }),
        optional("optimizer", "Update rule of the weights", "{ kind = \"sgd\" }", Kind::Table(&OPTIMIZER)),
        optional("schedule", "How the learning rate goes over the run", "\"constant\"", word::<Schedule>()),
        optional("init", "How weights begin", "\"he\"", word::<InitKind>()),
        optional("regularisation", "Penalties on large weights", "{ l1 = 0.0, l2 = 0.0 }", Kind::Table(&REGULARISATION)),
        optional(
            "augment",
            "Random changes of training images",
            "[]",
            Kind::List { of: &const { word::<Augmentation>() }, least: 0, most: LONGEST_AXIS, bare: true, distinct: true },
        ),
        optional("seeds", "Independent trainings; their spread says how sure a result is", "1", Kind::Whole { low: 1, high: 20 }),
        // Room for `seeds` above it in the integers of TOML.
        optional(
            "first_seed",
            "Seed of the first training, the next has one more",
            "1",
            Kind::Whole { low: 0, high: u32::MAX as u64 },
        ),
        optional(
            "batch_size",
            "Images a step of the training whose weights `infer` uses",
            "64",
            Kind::Whole { low: 1, high: 65536 },
        ),
        optional("target", "Quality that training has to reach; the time to it is reported", "none", Kind::Table(&TARGET)),
        optional(
            "tune_epochs",
            "Passes over the training rows after a pruning that is `tuned`, or while one is `gradual`",
            "3",
            Kind::Whole { low: 1, high: 1000 },
        ),
    ],
    exclusive: &[],
};

static OPTIMIZER: Shape = Shape {
    fields: &[
        optional("kind", "The rule", "\"sgd\"", word::<OptimizerKind>()),
        optional(
            "learning_rate",
            "Size of a step",
            "0.05 with sgd, 0.001 with the others",
            Kind::Number(Interval::above(0.0, 10.0)),
        ),
        optional("momentum", "Share of the last step that is kept (sgd, rmsprop)", "0.9 with sgd, 0 with rmsprop", DECAY),
        optional("beta1", "Decay of the first moment (adam, adamw)", "0.9", DECAY),
        optional("beta2", "Decay of the second moment (adam, adamw, rmsprop)", "0.999, with rmsprop 0.99", DECAY),
        optional("epsilon", "Keeps divisions finite (adam, adamw, rmsprop)", "1e-8", Kind::Number(Interval::above(0.0, 1.0))),
    ],
    exclusive: &[],
};

/// At 1 nothing would ever be forgotten.
const DECAY: Kind = Kind::Number(Interval { low: 0.0, above: false, high: 1.0, below: true });

static REGULARISATION: Shape = Shape {
    fields: &[
        optional("l1", "Coefficient of the sum of absolute weights", "0.0", Kind::Number(Interval::from(0.0, 1.0))),
        optional(
            "l2",
            "Coefficient of half the sum of squared weights; with adamw the decoupled weight decay",
            "0.0",
            Kind::Number(Interval::from(0.0, 1.0)),
        ),
    ],
    exclusive: &[],
};

static TARGET: Shape = Shape {
    fields: &[
        optional("metric", "What is judged", "\"accuracy\"", word::<Metric>()),
        Field {
            name: "at_least",
            about: "The value to reach",
            kind: Kind::Number(Interval::above(0.0, 1.0)),
            need: Need::Required { example: "at_least = 0.9" },
        },
    ],
    exclusive: &[],
};

static GRID: Shape = Shape {
    fields: &[
        optional("device", "Where candidates run", "[\"auto\"]", axis(&DEVICE)),
        optional("precision", "Number format of compute and storage", "[\"fp32\"]", axis(&const { word::<Precision>() })),
        optional("compression", "How trained weights are made smaller (infer only)", "[\"none\"]", axis(&COMPRESSION)),
        optional("layout", "How a step is spread over ranks", "[\"single\"]", axis(&LAYOUT)),
        optional("batch_size", "Images a step, over all ranks", "[64]", axis(&Kind::Whole { low: 1, high: 65536 })),
        optional("threads", "Compute threads, over all ranks", "all cores", axis(&Kind::Whole { low: 1, high: 4096 })),
    ],
    exclusive: &[],
};

static COMPRESSION: Kind = Kind::Form {
    what: "compression",
    forms: Compression::FORMS,
    canonical: |text| Some(text.parse::<Compression>().ok()?.to_string()),
};

static DEVICE: Kind =
    Kind::Form { what: "device", forms: Device::FORMS, canonical: |text| Some(text.parse::<Device>().ok()?.to_string()) };

static LAYOUT: Kind =
    Kind::Form { what: "layout", forms: Layout::FORMS, canonical: |text| Some(text.parse::<Layout>().ok()?.to_string()) };

static CONSTRAINTS: Shape = Shape {
    fields: &[
        optional(
            "max_accuracy_drop",
            "Largest loss of accuracy against fp32 uncompressed, absolute. Inference: the loss seen on the same test rows; the report says whether its one-sided 95 % bound proves it. Training: the difference of the means over seeds, without a test",
            "",
            Kind::Number(Interval::from(0.0, 1.0)),
        ),
        optional("min_accuracy", "Smallest accuracy", "", Kind::Number(Interval::above(0.0, 1.0))),
        optional("max_latency_p50_ms", "Largest median time of a step, milliseconds", "", Kind::Number(MILLISECONDS)),
        optional("max_latency_p99_ms", "Largest 99th percentile of a step's time, milliseconds", "", Kind::Number(MILLISECONDS)),
        optional("min_throughput_per_s", "Fewest images a second", "", Kind::Number(Interval::above(0.0, f64::INFINITY))),
        optional(
            "max_memory_mib",
            "Largest peak memory of a candidate's process, MiB",
            "",
            Kind::Number(Interval::above(0.0, f64::INFINITY)),
        ),
        optional(
            "max_model_kib",
            "Largest size of the stored weights, KiB; with magnitude and 2:4 the computed size of a packed file without the zeros",
            "",
            Kind::Number(Interval::above(0.0, f64::INFINITY)),
        ),
        optional(
            "max_cost_usd_per_million",
            "Largest cost of a million images, US dollars",
            "",
            Kind::Number(Interval::above(0.0, f64::INFINITY)),
        ),
    ],
    exclusive: &[],
};

/// Up to an hour.
const MILLISECONDS: Interval = Interval::above(0.0, 3.6e6);

static OBJECTIVE: Shape = Shape {
    fields: &[
        optional(
            "minimise",
            "Quantity of which the recommendation has least",
            "\"cost\"",
            Kind::Word { what: "quantity to minimise", choices: minimised, hint: belongs_to_maximise },
        ),
        optional(
            "maximise",
            "Quantity of which the recommendation has most",
            "",
            Kind::Word { what: "quantity to maximise", choices: maximised, hint: belongs_to_minimise },
        ),
    ],
    exclusive: &[Exclusive { keys: &["minimise", "maximise"], required: false }],
};

static COST: Shape = Shape {
    fields: &[
        optional(
            "instance",
            "`auto` for the catalogue entry nearest to this machine, or the name of one",
            "\"auto\"",
            Kind::Either(&[
                Kind::Text {
                    fits: |text| !text.trim().is_empty(),
                    pattern: r"\S",
                    says: "`auto` or the name of a catalogue entry, in quotes",
                },
                Kind::Table(&PRICE),
            ]),
        ),
        optional("hourly_usd", "Price of an hour, US dollars", "", HOURLY),
        optional("owned", "A machine of your own", "", Kind::Table(&OWNED)),
    ],
    exclusive: &[Exclusive { keys: &["instance", "hourly_usd", "owned"], required: false }],
};

/// `instance = { hourly_usd = 0.9 }`: the same prices, written in one line.
static PRICE: Shape = Shape {
    fields: &[
        optional("hourly_usd", "Price of an hour, US dollars", "", HOURLY),
        optional("owned", "A machine of your own", "", Kind::Table(&OWNED)),
    ],
    exclusive: &[Exclusive { keys: &["hourly_usd", "owned"], required: true }],
};

const HOURLY: Kind = Kind::Number(Interval::above(0.0, f64::INFINITY));

static OWNED: Shape = Shape {
    fields: &[
        needed("purchase_usd", "What it cost, US dollars", "purchase_usd = 3000", Interval::from(0.0, f64::INFINITY)),
        needed("years", "Years over which the purchase is written off", "years = 4", Interval::above(0.0, 50.0)),
        needed("utilisation", "Share of its hours in which it does useful work", "utilisation = 0.5", Interval::above(0.0, 1.0)),
        needed("watts", "Draw under load, watts", "watts = 300", Interval::from(0.0, f64::INFINITY)),
        needed("usd_per_kwh", "Price of electricity, US dollars per kWh", "usd_per_kwh = 0.3", Interval::from(0.0, 100.0)),
    ],
    exclusive: &[],
};

const fn optional(name: &'static str, about: &'static str, default: &'static str, kind: Kind) -> Field {
    Field { name, about, kind, need: Need::Optional { default } }
}

const fn needed(name: &'static str, about: &'static str, example: &'static str, interval: Interval) -> Field {
    Field { name, about, kind: Kind::Number(interval), need: Need::Required { example } }
}

const fn axis(of: &'static Kind) -> Kind {
    Kind::List { of, least: 1, most: LONGEST_AXIS, bare: true, distinct: true }
}

const fn word<T: Vocabulary>() -> Kind {
    Kind::Word { what: T::KIND, choices: choices::<T>, hint: no_hint }
}

fn choices<T: Vocabulary>() -> Vec<Choice> {
    T::WORDS.iter().map(|word| Choice { name: word.name, aliases: word.aliases, about: word.about }).collect()
}

fn shipped() -> Vec<Choice> {
    SHIPPED.iter().map(|data| Choice { name: data.name, aliases: &[], about: data.about }).collect()
}

fn minimised() -> Vec<Choice> {
    objectives(false)
}

fn maximised() -> Vec<Choice> {
    objectives(true)
}

fn objectives(is_maximised: bool) -> Vec<Choice> {
    let words = Objective::WORDS.iter().filter(|word| word.value.is_maximised() == is_maximised);
    words.map(|word| Choice { name: word.name, aliases: word.aliases, about: word.about }).collect()
}

fn no_hint(_: &str) -> Option<String> {
    None
}

fn belongs_to_maximise(text: &str) -> Option<String> {
    let objective = Objective::parse(text).ok().filter(|objective| objective.is_maximised())?;
    Some(format!("write `maximise = \"{}\"`", objective.name()))
}

fn belongs_to_minimise(text: &str) -> Option<String> {
    let objective = Objective::parse(text).ok().filter(|objective| !objective.is_maximised())?;
    Some(format!("write `minimise = \"{}\"`", objective.name()))
}

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        input::Source,
        scenario::{Known, KnownModel, Scenario},
        vocab::RowKind,
    };

    #[test]
    fn the_schema_names_models_and_data_sets() {
        let schema = schema(&["simple-cnn", "mlp"]);
        let workload = &schema["properties"]["workload"]["properties"];
        assert_eq!(workload["model"]["enum"], json!(["simple-cnn", "mlp"]));
        let data = workload["data"].to_string();
        assert!(SHIPPED.iter().all(|shipped| data.contains(&format!("\"{}\"", shipped.name))));
        assert_eq!(schema["required"], json!(["name", "workload"]));
    }

    /// Reads `[workload]` with more keys, as `(table, line)`.
    fn with(lines: &[(String, String)]) -> Scenario {
        let mut text = "name = \"x\"\nworkload.model = \"mlp\"\nworkload.data = \"mnist\"\n".to_string();
        for (table, line) in lines {
            text += &if table.is_empty() { format!("{line}\n") } else { format!("{table}.{line}\n") };
        }
        let known = Known { models: &[KnownModel { name: "mlp", reads: RowKind::Image }], instances: &[] };
        let found = Scenario::read(Source::new("x.toml", &text), &known);
        Scenario { text: String::new(), ..found.unwrap_or_else(|found| panic!("{text}\n{}", crate::input::render(&found))) }
    }

    /// Every default of `shape` that is a TOML value, as `(table, line)`.
    fn defaults(shape: &'static Shape, table: &str, out: &mut Vec<(String, String)>) {
        for field in shape.fields {
            let path = if table.is_empty() { field.name.to_string() } else { format!("{table}.{}", field.name) };
            match (&field.kind, &field.need) {
                // A target that is given at all is more than a default.
                (Kind::Table(inner), _) if field.name != "target" => defaults(inner, &path, out),
                (_, Need::Optional { default }) if default.starts_with(['"', '[']) || default.parse::<f64>().is_ok() => {
                    out.push((table.to_string(), format!("{} = {default}", field.name)));
                }
                _ => {}
            }
        }
    }

    #[test]
    fn a_default_that_is_written_out_changes_nothing() {
        let mut lines = Vec::new();
        defaults(&FILE, "", &mut lines);
        assert!(lines.len() >= 18, "{lines:?}");
        // `beta1` and `epsilon` are no keys of the default optimizer.
        lines.retain(|(table, line)| table != "train.optimizer" || line.starts_with("kind"));
        assert_eq!(with(&lines), with(&[]));
    }

    #[test]
    fn a_hint_of_a_required_key_is_a_line_that_helps() {
        fn visit(shape: &'static Shape) -> usize {
            let mut found = 0;
            for field in shape.fields {
                if let Need::Required { example } = field.need {
                    let begins = example.starts_with(&format!("{} = ", field.name)) || example == format!("[{}]", field.name);
                    assert!(begins, "{example}");
                    found += 1;
                }
                if let Kind::Table(inner) = &field.kind {
                    found += visit(inner);
                }
            }
            found
        }
        assert_eq!(visit(&FILE), 10);
    }
}
