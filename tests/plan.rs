//! `advisor plan` as a user runs it: answers, exit codes, messages of wrong files; and the search held against trying every layout.
//!
//! After a change of a message or of the schema, `ADVISOR_UPDATE=1 cargo test --test plan` writes the files anew; read the difference.

use advisor::{
    input::{Source, render},
    predict::{Books, Found, Landscape, Plan, Site, TrainingPrecision, Work, enumerate, plan_schema, search, transformer_of},
};
use proptest::prelude::*;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

fn advisor(arguments: &[&str], folder: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_advisor"));
    command.args(arguments).current_dir(folder).env("NO_COLOR", "1").env("COLUMNS", "100").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A folder with a plan of this text.
fn folder_with(plan: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("small.toml"), plan).unwrap();
    dir
}

const SMALL: &str = r#"
name = "small"
[model]
shape = "llama-3.1-8b"
[train]
tokens = 1e11
sequence_length = 8192
batch_sequences = 128
[[machines]]
gpu = "h100-sxm-80gb"
gpus = { from = 1, to = 32 }
[[machines]]
gpu = "gb200-nvl72"
gpus = 32
"#;

#[test]
fn a_plan_leaves_every_file_it_promises_and_the_same_bytes_again() {
    let dir = folder_with(SMALL);
    let run = advisor(&["plan", "small.toml", "--out", "out"], dir.path());
    assert!(run.status.success(), "{}\n{}", text(&run.stdout), text(&run.stderr));
    let printed = text(&run.stdout);
    assert!(printed.contains("for the lowest cost") && printed.contains("modelled, not measured"), "{printed}");
    for file in ["plan.html", "plan.csv", "plan.json", "plots/front.svg", "plots/memory.svg"] {
        assert!(dir.path().join("out/small").join(file).metadata().unwrap().len() > 100, "{file}");
    }
    let answer: Value = serde_json::from_str(&fs::read_to_string(dir.path().join("out/small/plan.json")).unwrap()).unwrap();
    assert_eq!((&answer["source"], &answer["plan"]), (&Value::from("modelled"), &Value::from("small")));
    let pick = &answer["pick"];
    let parts: f64 = pick["step_time_parts_s"].as_object().unwrap().values().map(|part| part.as_f64().unwrap()).sum();
    assert!((parts / pick["training"]["step_time_s"].as_f64().unwrap() - 1.0).abs() < 1e-9, "{pick}");
    let bytes: f64 = pick["memory_bytes"].as_object().unwrap().values().map(|part| part.as_f64().unwrap()).sum();
    assert!(bytes <= pick["memory_limit_bytes"].as_f64().unwrap());
    // Money is the price of an hour times the wall time.
    let [usd, hour, time] = ["cost_usd", "price_usd_per_hour", "time_s"].map(|key| pick[key].as_f64().unwrap());
    assert!((hour * time / 3600.0 / usd - 1.0).abs() < 1e-9);
    // The machine without a price is a row with an empty cost.
    let table = fs::read_to_string(dir.path().join("out/small/plan.csv")).unwrap();
    assert!(table.lines().any(|line| line.contains("gb200-nvl72")), "{table}");
    let again = advisor(&["plan", "small.toml", "--out", "again", "--json"], dir.path());
    let json: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(json[0]["pick"], *pick);
    for file in ["plan.csv", "plots/front.svg"] {
        let path = |folder: &str| dir.path().join(folder).join("small").join(file);
        assert_eq!(fs::read(path("out")).unwrap(), fs::read(path("again")).unwrap(), "{file}");
    }
}

#[test]
fn nothing_feasible_is_exit_code_1_with_the_limit_that_binds_or_what_would_fit() {
    let dir = folder_with(&format!("{SMALL}[limits]\nmax_days = 0.01\n"));
    let run = advisor(&["plan", "small.toml", "--out", "out"], dir.path());
    assert_eq!(run.status.code(), Some(1));
    assert!(text(&run.stdout).contains("Nothing meets every limit: `max_days` binds"), "{}", text(&run.stdout));
    let dir = folder_with(
        &SMALL.replace("llama-3.1-8b", "llama-3.1-405b").replace("to = 32", "to = 8").replace("gpus = 32", "gpus = 1"),
    );
    let run = advisor(&["plan", "small.toml", "--out", "out"], dir.path());
    let printed = text(&run.stdout);
    assert_eq!(run.status.code(), Some(1), "{printed}");
    assert!(printed.contains("No layout fits on any of these machines"), "{printed}");
    assert!(
        printed.contains("lacks") && printed.contains("GiB") && printed.contains("it would fit with a GPU with"),
        "{printed}"
    );
}

#[test]
fn wrong_input_is_exit_code_2_with_every_mistake_and_nothing_written() {
    let wrong = SMALL
        .replace("llama-3.1-8b", "llama-3.1-8")
        .replace("sequence_length", "sequence_lenght")
        .replace("\"gb200-nvl72\"", "\"gb20\"");
    let dir = folder_with(&wrong);
    fs::write(dir.path().join("twin.toml"), SMALL).unwrap();
    let run = advisor(&["plan", "small.toml", "--out", "out"], dir.path());
    assert_eq!(run.status.code(), Some(2));
    let message = text(&run.stderr);
    for part in ["did you mean `llama-3.1-8b`?", "did you mean `sequence_length`?", "unknown GPU `gb20`"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(run.stdout.is_empty() && !dir.path().join("out").exists());
    fs::write(dir.path().join("small.toml"), SMALL).unwrap();
    let run = advisor(&["plan", "small.toml", "twin.toml", "--out", "out"], dir.path());
    assert_eq!(run.status.code(), Some(2));
    assert!(text(&run.stderr).contains("two plans are called `small`"), "{}", text(&run.stderr));
    let run = advisor(&["plan", "nowhere.toml"], dir.path());
    assert_eq!((run.status.code(), text(&run.stderr).contains("no such file")), (Some(2), true));
}

fn is_update() -> bool {
    std::env::var_os("ADVISOR_UPDATE").is_some_and(|value| value == "1")
}

/// Compares, or writes in update mode; an answer is what differs.
fn held(path: &Path, found: &str) -> Option<String> {
    if is_update() {
        fs::write(path, found).unwrap();
        return None;
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    (expected != found).then(|| format!("{}\n--- expected\n{expected}--- found\n{found}", path.display()))
}

#[test]
fn every_bad_plan_gives_exactly_its_message() {
    let books = Books::shipped();
    let mut wrong = Vec::new();
    let mut files: Vec<PathBuf> =
        fs::read_dir(root().join("tests/bad_plans")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|ending| ending == "toml"));
    files.sort();
    assert!(files.len() >= 6);
    for path in &files {
        let name = path.file_name().unwrap().to_str().unwrap();
        let source = Source::new(format!("bad_plans/{name}"), &fs::read_to_string(path).unwrap());
        match books.known(|known| Plan::read(source.clone(), known)) {
            Ok(_) => wrong.push(format!("{name} was taken for a good plan")),
            Err(found) => wrong.extend(held(&path.with_extension("txt"), &(render(&found) + "\n"))),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_committed_schema_is_the_one_of_the_program() {
    let schema = Books::shipped().known(plan_schema);
    let found = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    let wrong = held(&root().join("docs/plan.schema.json"), &found);
    assert!(wrong.is_none(), "{}", wrong.unwrap_or_default());
}

#[test]
fn every_shipped_plan_reads_and_is_called_as_its_file() {
    let books = Books::shipped();
    let files: Vec<PathBuf> = fs::read_dir(root().join("plans")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 4);
    for path in files {
        let plan = books.known(|known| Plan::load(&path, known)).unwrap_or_else(|found| panic!("{}", render(&found)));
        assert_eq!(Some(plan.name.as_str()), path.file_stem().and_then(|stem| stem.to_str()));
        assert!(plan.text.starts_with("#:schema ../docs/plan.schema.json\n"));
        match &plan.model.scenario {
            Some(scenario) => assert!(root().join("plans").join(scenario).is_file(), "{scenario}"),
            None => drop(transformer_of(&plan.model, &books.models).unwrap()),
        }
    }
}

const GRAPH: &str = r#"
name = "small"
[model]
scenario = "digits.toml"
[run]
phase = "train"
epochs = 100
precision = ["fp32", "bf16"]
batch_size = [64, 512]
[[machines]]
gpu = "h200-sxm-141gb"
gpus = [1, 2, 4]
[[machines]]
gpu = "h20-96gb"
gpus = 1
"#;

const DIGITS: &str = "name = \"digits\"\n[workload]\nmodel = \"mlp\"\ndata = \"mnist\"\nphase = [\"train\", \"infer\"]\n\
                      [grid]\nlayout = [\"single\", \"zero=2\", \"pp=2\"]\n";

fn folder_with_graph(plan: &str) -> tempfile::TempDir {
    let dir = folder_with(plan);
    fs::write(dir.path().join("digits.toml"), DIGITS).unwrap();
    dir
}

#[test]
fn a_graph_of_ours_is_planned_on_machines_of_the_catalogue() {
    let dir = folder_with_graph(GRAPH);
    let run = advisor(&["plan", "small.toml", "--out", "out"], dir.path());
    assert!(run.status.success(), "{}\n{}", text(&run.stdout), text(&run.stderr));
    // In whatever lines.
    let printed = text(&run.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "for the lowest cost",
        "graphs of ours on one h200-sxm-141gb, train",
        "accuracy is not predicted",
        "what the answer hangs on",
    ] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    for file in [
        "plan.html",
        "plan.csv",
        "plan.json",
        "plots/front.svg",
        "plots/memory.svg",
        "plots/time-split.svg",
        "plots/sensitivity.svg",
    ] {
        assert!(dir.path().join("out/small").join(file).metadata().unwrap().len() > 100, "{file}");
    }
    let answer: Value = serde_json::from_str(&fs::read_to_string(dir.path().join("out/small/plan.json")).unwrap()).unwrap();
    let pick = &answer["pick"];
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("a number in {pick}"));
    // 48,000 rows or however many the set has, a hundred times, at the rate of the step.
    let graph = &pick["graph"];
    let batch = number(&pick["layout"]["global_batch"]);
    assert!((number(&graph["examples_per_s"]) * number(&graph["step_time_s"]) / batch - 1.0).abs() < 1e-9);
    assert!((number(&graph["steps"]) * number(&graph["step_time_s"]) / number(&graph["work_s"]) - 1.0).abs() < 1e-9);
    let parts: f64 = pick["step_time_parts_s"].as_object().unwrap().values().map(number).sum();
    assert!((parts / number(&graph["step_time_s"]) - 1.0).abs() < 1e-9, "{pick}");
    assert!(
        (number(&pick["cost_usd"]) / (number(&pick["price_usd_per_hour"]) * number(&pick["time_s"]) / 3600.0) - 1.0).abs() < 1e-9
    );
    assert!(pick.get("tokens_per_s").is_none() && number(&pick["memory_bytes"]["weights"]) > 0.0);
    // One GPU of the kind that was measured has the held-out error; several are an extrapolation.
    let table = fs::read_to_string(dir.path().join("out/small/plan.csv")).unwrap();
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("small,h200-sxm-141gb,")).collect();
    assert_eq!(rows.len(), 3, "{table}");
    assert_eq!(rows.iter().filter(|row| row.contains("several GPUs")).count(), 2, "{table}");
    // No fp32 peak of the H20 is known: bf16 is what is left.
    assert!(table.lines().any(|line| line.starts_with("small,h20-96gb,1,on demand,bf16")), "{table}");
    let again = advisor(&["plan", "small.toml", "--out", "again", "--json"], dir.path());
    let json: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(json[0]["pick"], *pick);
}

/// Layouts of the scenario and of `[layouts]` are tried; answers are told by the million.
#[test]
fn a_graph_that_answers_is_told_by_the_million_and_stated_layouts_are_tried() {
    let infer = GRAPH.replace("phase = \"train\"\nepochs = 100", "phase = \"infer\"");
    let dir = folder_with_graph(&infer);
    let run = advisor(&["plan", "small.toml", "--out", "out", "--json"], dir.path());
    assert!(run.status.success(), "{}", text(&run.stderr));
    let json: Value = serde_json::from_slice(&run.stdout).unwrap();
    let pick = &json[0]["pick"];
    let [usd, hour, rate] =
        [&pick["cost_usd"], &pick["price_usd_per_hour"], &pick["graph"]["examples_per_s"]].map(|v| v.as_f64().unwrap());
    assert!((hour / 3600.0 * 1e6 / rate / usd - 1.0).abs() < 1e-9, "{pick}");
    let only = |layouts: &str| {
        let text = GRAPH.replace("[1, 2, 4]", "2").replace("[[machines]]\ngpu = \"h20-96gb\"\ngpus = 1\n", layouts);
        let dir = folder_with_graph(&text);
        let run = advisor(&["plan", "small.toml", "--out", "out", "--json"], dir.path());
        let json: Value = serde_json::from_slice(&run.stdout).unwrap_or_else(|_| panic!("{}", self::text(&run.stderr)));
        json[0]["pick"]["layout"].clone()
    };
    assert_eq!(only("[layouts]\npipeline = 2\n")["pp"], 2);
    assert_eq!(only("[layouts]\nzero = 1\n")["zero"], 1);
    assert_eq!(only("[layouts]\ntensor = 2\n")["tp"], 2);
}

/// At spot prices a served load takes spares, and stands beside the same on demand.
#[test]
fn serving_on_machines_that_may_be_taken_away_has_spares_beside_on_demand() {
    let plan = |spot: &str| {
        format!(
            "name = \"small\"\nmodel = {{ shape = \"llama-3.1-8b\" }}\nserve = {{ requests_per_s = 40, input_tokens = 1000, output_tokens = 200 }}\n\
             machines = {{ gpu = \"h100-sxm-80gb\", gpus = [16, 24, 32, 64] }}\n{spot}"
        )
    };
    let answer = |spot: &str| {
        let dir = folder_with(&plan(spot));
        let run = advisor(&["plan", "small.toml", "--out", "out"], dir.path());
        assert!(run.status.success(), "{}\n{}", text(&run.stdout), text(&run.stderr));
        let table = fs::read_to_string(dir.path().join("out/small/plan.csv")).unwrap();
        let head: Vec<String> = table.lines().next().unwrap().split(',').map(str::to_string).collect();
        let row = move |line: &str| -> BTreeMap<String, String> {
            head.iter().cloned().zip(line.split(',').map(str::to_string)).collect()
        };
        table.lines().skip(1).map(row).collect::<Vec<_>>()
    };
    let spot = |per_day: f64, minutes: f64| {
        format!("operation = {{ spot = {{ interruptions_per_machine_day = {per_day}, replacement_minutes = {minutes} }} }}\n")
    };
    let of = |rows: &[BTreeMap<String, String>], market: &str, gpus: &str| {
        rows.iter().find(|row| row["market"] == market && row["gpus"] == gpus).cloned()
    };
    let rows = answer(&spot(2.0, 30.0));
    let [demand, spared] = ["on demand", "spot"].map(|market| of(&rows, market, "64").unwrap());
    let number = |row: &BTreeMap<String, String>, key: &str| row[key].parse::<f64>().unwrap_or_else(|_| panic!("{key}: {row:?}"));
    assert!(number(&spared, "spare_replicas") >= 1.0 && number(&spared, "availability") >= 0.999, "{spared:?}");
    assert!(demand["spare_replicas"].is_empty() && number(&spared, "replicas") < number(&demand, "replicas"));
    // What is paid for is every machine, spares too.
    let of_million =
        |row: &BTreeMap<String, String>| number(row, "cost_usd_per_million_output_tokens") * number(row, "tokens_per_s");
    let hour = |row: &BTreeMap<String, String>| number(row, "price_usd_per_hour") / 3600.0 * 1e6;
    assert!((of_million(&spared) / hour(&spared) - 1.0).abs() < 1e-9 && hour(&spared) < hour(&demand));
    // Rarer and shorter losses need no more spares; without a word on them there is no answer at spot prices.
    let rare = of(&answer(&spot(0.01, 5.0)), "spot", "64").unwrap();
    assert!(number(&rare, "spare_replicas") <= number(&spared, "spare_replicas"));
    assert!(of(&answer(""), "spot", "64").is_none());
}

/// Draft tokens are an axis; what is assumed of their acceptance is told, and an own figure takes its place.
#[test]
fn proposed_tokens_are_tried_and_their_acceptance_is_told() {
    let answer = |serve: &str| -> Value {
        let plan = format!(
            "name = \"small\"\nmodel = {{ shape = \"deepseek-v3\" }}\nmachines = {{ gpu = \"b200\", gpus = 8, usd_per_gpu_hour = 4 }}\n\
             layouts = {{ tensor = 8, pipeline = 1, expert = 8 }}\n[serve]\nrequests_per_s = 0.5\ninput_tokens = 1000\noutput_tokens = 1000\nweights = \"fp4\"\n{serve}"
        );
        let dir = folder_with(&plan);
        let run = advisor(&["plan", "small.toml", "--out", "out", "--json"], dir.path());
        assert!(run.status.success(), "{}\n{}", text(&run.stdout), text(&run.stderr));
        serde_json::from_slice::<Value>(&run.stdout).unwrap()[0].clone()
    };
    let served = |answer: &Value, key: &str| answer["pick"]["serving"][key].as_f64().unwrap_or(f64::NAN);
    let per_token = |answer: &Value| served(answer, "time_per_output_token_s");
    let [none, three] = [answer(""), answer("draft_tokens = 3\n")];
    assert_eq!((served(&none, "draft_tokens"), served(&three, "draft_tokens")), (0.0, 3.0));
    assert!(none["pick"]["serving"]["draft_acceptance"].is_null());
    // Few requests at once: proposals cost little there.
    assert!(per_token(&three) < 0.8 * per_token(&none), "{} and {}", per_token(&three), per_token(&none));
    let a = served(&three, "draft_acceptance");
    assert!((served(&three, "tokens_per_step") - (1.0 + a + a * a + a * a * a)).abs() < 1e-9);
    // Weights and cache of the block that proposes.
    let held = |answer: &Value| answer["pick"]["memory_bytes"]["weights"].as_f64().unwrap();
    assert!(held(&three) > held(&none) && held(&three) < 1.1 * held(&none), "{} and {}", held(&three), held(&none));
    let told = |answer: &Value| answer["notes"].to_string() + &answer["sensitivity"].to_string();
    let chance = format!("draft tokens: each is taken to be accepted with a chance of {a:.2}");
    assert!(told(&three).contains(&chance), "{}", told(&three));
    let assumed = format!("share of draft tokens accepted ({a:.2} assumed)");
    assert!(told(&three).contains(&assumed) && !told(&none).contains("draft"));
    let chosen = answer("draft_tokens = [0, 3]\ndraft_acceptance = 0.9\n");
    assert!(
        per_token(&chosen) < per_token(&three) && told(&chosen).contains("0.90") && told(&chosen).contains("as the plan says")
    );
    // Where hardly any is accepted, none is proposed.
    assert_eq!(served(&answer("draft_tokens = [0, 3]\ndraft_acceptance = 0.01\n"), "draft_tokens"), 0.0);
    let far = answer("draft_tokens = 5\n");
    assert!(far["pick"]["trust"]["extrapolated"].to_string().contains("5 draft tokens a step, 1 and 3 were fitted"), "{far}");
}

/// Where no layout is within the plan's own limits, the answer names those that are in the way.
#[test]
fn limits_of_layouts_that_leave_none_are_named_with_what_would_help() {
    let printed = |plan: &str| {
        let dir = folder_with(plan);
        let run = advisor(&["plan", "small.toml", "--out", "out"], dir.path());
        let printed = text(&run.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(run.status.code(), Some(1), "{printed}");
        assert!(printed.contains("No layout fits on any of these machines"), "{printed}");
        printed
    };
    let trained = printed(&format!("{SMALL}[layouts]\ntensor = 7\npipeline = 1\n"));
    assert!(trained.contains("`[layouts]` leaves none") && trained.contains("it would fit with another `tensor`"), "{trained}");
    assert!(!trained.contains("another `pipeline`"), "{trained}");
    // Megatron-Core shards weights in no pipeline.
    let sharded = printed(&format!("{SMALL}[layouts]\npipeline = 4\nzero = 3\n"));
    assert!(sharded.contains("ZeRO 2 and 3 ask for one pipeline stage"), "{sharded}");
    assert!(sharded.contains("another `pipeline`") && sharded.contains("another `zero`"), "{sharded}");
    let serve = "name = \"small\"\nmodel = { shape = \"llama-3.1-8b\" }\nserve = { requests_per_s = 1, input_tokens = 1000, output_tokens = 200 }\n\
                 machines = { gpu = \"h100-sxm-80gb\", gpus = [1, 2] }\n[layouts]\ntensor = 7\n";
    let served = printed(serve);
    assert!(served.contains("2 x h100-sxm-80gb: no layout") && served.contains("another `tensor`"), "{served}");
    // What is too small is told with how many would do.
    let large = SMALL.replace("llama-3.1-8b", "llama-3.1-405b").replace("to = 32", "to = 8").replace("gpus = 32", "gpus = 1");
    let too_large = printed(&large);
    assert!(too_large.contains("of these GPUs"), "{too_large}");
}

#[test]
fn what_nothing_is_known_of_is_refused_with_the_reason() {
    let fp8 = GRAPH.replace("[\"fp32\", \"bf16\"]", "\"fp8\"").replace("[1, 2, 4]", "1");
    let dir = folder_with_graph(&fp8);
    let run = advisor(&["plan", "small.toml", "--out", "out"], dir.path());
    let printed = text(&run.stdout);
    assert_eq!(run.status.code(), Some(1), "{printed}");
    assert!(printed.contains("No layout fits") && printed.contains("was timed on the h200-sxm-141gb"), "{printed}");
    let large = GRAPH.replace("[64, 512]", "1000000");
    let dir = folder_with_graph(&large);
    let run = advisor(&["plan", "small.toml", "--out", "out"], dir.path());
    let printed = text(&run.stdout);
    assert!(run.status.code() == Some(1) && printed.contains("training rows"), "{printed}");
}

#[test]
fn a_scenario_that_is_not_there_is_told_at_its_place_with_the_nearest() {
    let dir = folder_with_graph(&GRAPH.replace("digits.toml", "digit.toml"));
    let run = advisor(&["plan", "small.toml", "--out", "out"], dir.path());
    let message = text(&run.stderr);
    assert_eq!(run.status.code(), Some(2));
    for part in ["unknown scenario `digit.toml`", "--> small.toml:4:12", "did you mean `digits.toml`?"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    fs::write(dir.path().join("digit.toml"), DIGITS.replace("mlp", "mlq")).unwrap();
    let run = advisor(&["plan", "small.toml", "--out", "out"], dir.path());
    let message = text(&run.stderr);
    assert!(run.status.code() == Some(2) && message.contains("unknown model `mlq`"), "{message}");
    assert!(run.stdout.is_empty() && !dir.path().join("out").exists());
}

/// Hands `run` the landscape of a plan's first machine.
fn on_site<T>(plan: &str, run: impl FnOnce(&Site) -> T) -> T {
    let books = Books::shipped();
    let plan =
        books.known(|known| Plan::read(Source::new("x.toml", plan), known)).unwrap_or_else(|found| panic!("{}", render(&found)));
    let model = transformer_of(&plan.model, &books.models).unwrap();
    let Work::Train(work) = &plan.work else { panic!("a plan that trains") };
    let machine = books.hardware.gpus[plan.machines[0].gpu].machine;
    let precisions: Vec<TrainingPrecision> = work.precisions.iter().map(|place| TrainingPrecision::ALL[*place]).collect();
    run(&Site::new(&model, &machine, &books.parameters, &precisions, &plan, work).unwrap())
}

fn plan_of(model: &str, sequence: u32, batches: &str, precisions: &str, gpu: &str, layouts: &str) -> String {
    format!(
        "name = \"x\"\n[model]\n{model}\n[train]\ntokens = 1e9\nsequence_length = {sequence}\nbatch_sequences = {batches}\n\
         precision = {precisions}\n[[machines]]\ngpu = \"{gpu}\"\ngpus = 8\n[layouts]\n{layouts}\n"
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// The real landscape of random models on random machines: the search finds what trying every layout finds, and no layout lies below
    /// the floor of its arrangement.
    #[test]
    fn the_search_is_exact_on_random_models_and_machines(
        layers in 2u32..49,
        heads in prop::sample::select(vec![4u32, 8, 12, 16, 24, 32, 64]),
        experts in prop::sample::select(vec![0u32, 0, 8, 16, 60]),
        sequence in prop::sample::select(vec![1024u32, 2048, 4096, 16384]),
        batches in prop::sample::select(vec!["[16]", "[96]", "[64, 192]", "[256]"]),
        gpu in prop::sample::select(vec!["a100-sxm-80gb", "a100-sxm-40gb", "h100-sxm-80gb", "h200-sxm-141gb", "b200", "gb200-nvl72", "l40s"]),
        gpus in prop::sample::select(vec![1u32, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128]),
        precisions in prop::sample::select(vec!["\"bf16\"", "[\"bf16\", \"fp8\"]"]),
        recomputation in prop::sample::select(vec!["\"as-needed\"", "[\"none\", \"selective\", \"full\", \"as-needed\"]"]),
        keep in 1usize..5,
    ) {
        let experts = match experts {
            0 => String::new(),
            count => format!("experts = {{ count = {count}, active = 4, feed_forward = 1024, shared = 1 }}\n"),
        };
        let model = format!(
            "layers = {layers}\nhidden = {}\nheads = {heads}\nkv_heads = 4\nfeed_forward = {}\nvocabulary = 32000\n{experts}",
            128 * heads, 384 * heads
        );
        let text = plan_of(&model, sequence, batches, precisions, gpu, &format!("recomputation = {recomputation}"));
        on_site(&text, |site| {
            let space = site.space(gpus);
            let mut all = enumerate(&space, site);
            for found in &all {
                let floor = site.floor(&found.arrangement);
                prop_assert!(found.step.0 >= floor.0, "{found:?} below its floor {floor:?}");
                prop_assert!(site.layout(&found.arrangement, &found.schedule).is_known_to_its_stack(), "{found:?}");
            }
            all.sort_by(|a, b| a.per_sequence().total_cmp(&b.per_sequence()));
            all.truncate(keep);
            let best: Vec<Found> = search(&space, site, keep, f64::INFINITY).best;
            prop_assert_eq!(best, all);
            Ok(())
        })?;
    }
}

/// 16,384 GPUs, every knob open: the search looks at less than half of the layouts, and finds what trying all of them finds.
#[test]
fn the_whole_space_of_16384_gpus_is_pruned_and_searched_exactly() {
    let text = plan_of("shape = \"llama-3.1-405b\"", 8192, "2048", "[\"bf16\", \"fp8\"]", "h100-sxm-80gb", "");
    on_site(&text, |site| {
        let space = site.space(16_384);
        let outcome = search(&space, site, 1, f64::INFINITY);
        let all = enumerate(&space, site);
        let best = all.iter().min_by(|a, b| a.per_sequence().total_cmp(&b.per_sequence())).unwrap();
        assert_eq!(outcome.best, [*best]);
        let every: usize = space.arrangements().iter().map(|on| space.schedules(on).count()).sum();
        assert!(outcome.counts.evaluated < every as u64 / 2, "{:?} of {every}", outcome.counts);
    });
}
