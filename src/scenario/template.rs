//! The file that `advisor init` writes: every key with what it is for, ready to run.

/// A scenario file for a newcomer. It loads as it is when `name`, `model` and `data` are good names.
pub fn template(name: &str, model: &str, data: &str) -> String {
    TEMPLATE.replace("NAME", name).replace("MODEL", model).replace("DATA", data)
}

const TEMPLATE: &str = r##"#:schema ../docs/scenario.schema.json
# A scenario: one question to measure. Run it with `advisor run FILE`, or try it first with `advisor run --quick FILE`.
# Only `name` and [workload] must be here; every other line may go, and then the value behind "default" holds.

name = "NAME"                         # also the folder of the results
# question = "Which batch size answers fastest?"  # heads the report

[workload]
model = "MODEL"
data  = "DATA"
# Your own images or texts instead, paths from the folder of this file:
# data = { format = "idx", path = "my-images" }
# data = { format = "csv", path = "my-images.csv", label = "class", shape = [28, 28, 1], maximum = 255.0 }
# data = { format = "text", path = "my-texts.csv", text = "text", label = "class" }   # with a model that reads text
phase = ["train", "infer"]            # measure learning, answering, or both (default: both)

[train]                               # how the weights are made that every `infer` candidate starts from
epochs     = 3                        # default: 3
batch_size = 64                       # default: 64
optimizer  = { kind = "sgd", learning_rate = 0.05, momentum = 0.9 }  # or adam, adamw, rmsprop
schedule   = "cosine"                 # or constant: how the learning rate goes over the run
init       = "he"                     # or xavier, gaussian, uniform
# regularisation = { l1 = 0.0, l2 = 1e-4 }        # default: none
# augment = ["flip", "rotate", "scale"]           # random changes of training images (default: none)
seeds      = 1                        # more trainings say how much accuracy varies by chance (default: 1)
# target = { metric = "accuracy", at_least = 0.9 }  # report the time that training takes to get there

[grid]                                # every list is an axis, every combination a candidate
precision   = ["fp32", "bf16"]        # and fp16 (default: fp32)
compression = ["none", "int8"]        # and int8-dynamic, int4, magnitude:0.8, channel:0.5, 2:4 ...; infer only (default: none)
layout      = ["single"]              # and dp=2 (two ranks share each batch), zero=2, tp=2, pp=2, recompute, dp=2,tp=2 (default: single)
batch_size  = [1, 64]                 # default: 64
# threads   = [1, 2]                  # default: all cores of the machine

[constraints]                         # what a recommendation must keep to; one left out does not bind
max_accuracy_drop = 0.01              # against fp32 uncompressed; 0.01 is one image in a hundred
# min_accuracy = 0.9
# max_latency_p50_ms = 1.0
# max_latency_p99_ms = 5.0
# min_throughput_per_s = 1000
# max_memory_mib = 512
# max_model_kib = 1024
# max_cost_usd_per_million = 0.5

[objective]                           # one of the two
minimise = "cost"                     # or time, energy, memory (default: cost)
# maximise = "throughput"             # or accuracy

[cost]                                # one of the three
instance = "auto"                     # the catalogue entry nearest to this machine, or one by name: `advisor prices list`
# hourly_usd = 0.9
# owned = { purchase_usd = 3000, years = 4, utilisation = 0.5, watts = 300, usd_per_kwh = 0.3 }
"##;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        input::Source,
        scenario::{Known, KnownModel, Scenario},
        vocab::RowKind,
    };

    #[test]
    fn the_template_loads_with_every_comment_lifted_on_its_own() {
        let models =
            [KnownModel { name: "mlp", reads: RowKind::Image }, KnownModel { name: "transformer", reads: RowKind::Text }];
        let known = Known { models: &models, instances: &[] };
        let load = |text: &str| {
            Scenario::read(Source::new("my-question.toml", text), &known).map_err(|found| crate::input::render(&found))
        };
        let text = template("my-question", "mlp", "mnist");
        assert!(text.starts_with("#:schema ../docs/scenario.schema.json\n"));
        load(&text).unwrap_or_else(|found| panic!("{found}"));
        let lines: Vec<&str> = text.lines().collect();
        let mut lifted = 0;
        for (at, line) in lines.iter().enumerate() {
            // `# key = value`: a line that the reader is invited to take into use, in place of those that it shuts out.
            let Some((key, _)) = line.strip_prefix("# ").and_then(|line| line.split_once('=')) else { continue };
            let key = key.trim();
            if !key.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
                continue;
            }
            let instead: &[&str] = match key {
                "data" => &["data"],
                "maximise" => &["minimise"],
                "hourly_usd" | "owned" => &["instance"],
                _ => &[],
            };
            let kept = |line: &str| !instead.iter().any(|key| line.split('=').next().is_some_and(|left| left.trim() == *key));
            let text: Vec<&str> = (0..lines.len())
                .filter(|other| kept(lines[*other]))
                .map(|other| if other == at { &lines[other][2..] } else { lines[other] })
                .collect();
            // Texts are for a model that reads them, as the comment says.
            let model = if line.contains("format = \"text\"") { "transformer" } else { "mlp" };
            load(&text.join("\n").replace("\"mlp\"", &format!("\"{model}\""))).unwrap_or_else(|found| panic!("{line}\n{found}"));
            lifted += 1;
        }
        assert_eq!(lifted, 18);
    }
}
