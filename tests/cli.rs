//! The program as a user runs it: files, exit codes, resuming after a kill, reports again, and the small commands.

#[path = "support/small.rs"]
mod small;

use serde_json::Value;
use small::{SMALL, text};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

/// The program, without the half minute that timing single ops takes; `predictions.rs` has that.
fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_advisor"));
    command.env("ADVISOR_RATES", "none");
    command
}

fn advisor(arguments: &[&str], folder: &Path) -> Output {
    program().args(arguments).current_dir(folder).env("NO_COLOR", "1").output().unwrap()
}

/// A folder with a scenario of this text.
fn folder_with(scenario: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("small.toml");
    fs::write(&path, scenario).unwrap();
    (dir, path)
}

/// Records of a log by candidate, the later one of two.
fn records(log: &Path) -> BTreeMap<String, Value> {
    let mut out = BTreeMap::new();
    let whole = fs::read_to_string(log).unwrap_or_default();
    for line in whole.lines() {
        let Ok(value) = serde_json::from_str::<Value>(line) else { continue };
        if value["kind"] == "candidate" {
            let c = &value["candidate"];
            out.insert(format!("{}/{}/{}/b{}", c["phase"], c["precision"], c["compression"], c["batch_size"]), value);
        }
    }
    out
}

#[test]
fn a_run_leaves_every_file_it_promises_and_its_report_can_be_made_again() {
    let (dir, _) = folder_with(SMALL);
    let run = advisor(&["run", "small.toml", "--quick", "--out", "out"], dir.path());
    assert!(run.status.success(), "{}\n{}", text(&run.stdout), text(&run.stderr));
    assert!(text(&run.stdout).contains("Inference: "), "{}", text(&run.stdout));
    let out = dir.path().join("out");
    for file in ["index.html", "results.csv"] {
        assert!(out.join(file).metadata().unwrap().len() > 100, "{file}");
    }
    for file in ["report.html", "results.csv", "samples.csv", "recommendation.json", "run.jsonl", "plots/infer-throughput.svg"] {
        assert!(out.join("small").join(file).metadata().unwrap().len() > 100, "{file}");
    }
    // int8 with bf16 is a row with its reason and no run.
    let results = fs::read_to_string(out.join("small/results.csv")).unwrap();
    let header = results.lines().next().unwrap();
    assert_eq!(header.split(',').collect::<Vec<_>>(), advisor::report::RESULT_COLUMNS);
    assert_eq!(results.lines().filter(|line| line.contains(",skipped,")).count(), 1, "{results}");
    let recommendation: Value =
        serde_json::from_str(&fs::read_to_string(out.join("small/recommendation.json")).unwrap()).unwrap();
    assert_eq!(recommendation["schema_version"], 1);
    assert_eq!(recommendation["phases"].as_array().unwrap().len(), 2);
    assert!(recommendation["command"].as_str().unwrap().starts_with("advisor run small.toml --out out --quick"));
    let page = fs::read_to_string(out.join("small/report.html")).unwrap();
    assert!(!page.contains("http://") || page.matches("http://").count() == page.matches("http://www.w3.org/").count());
    assert!(!page.contains("<script") && !page.contains("NaN"));
    // Same log, same bytes.
    let again = advisor(&["report", "out/small", "--out", "again", "--json"], dir.path());
    assert!(again.status.success(), "{}", text(&again.stderr));
    let printed: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(printed[0], recommendation);
    for file in ["report.html", "results.csv", "samples.csv", "recommendation.json"] {
        let path = |folder: &str| dir.path().join(folder).join("small").join(file);
        assert_eq!(fs::read(path("out")).unwrap(), fs::read(path("again")).unwrap(), "{file}");
    }
}

#[test]
fn fp8_is_judged_and_not_timed_and_tf32_is_left_to_gpus() {
    let scenario =
        SMALL.replace("[\"fp32\", \"bf16\"]", "[\"fp32\", \"tf32\", \"fp8\"]").replace(", \"int8\", \"magnitude:0.5\"", "");
    let scenario = scenario.replace("[grid]", "target = { metric = \"accuracy\", at_least = 0.1 }\n[grid]\ndevice = \"cpu\"");
    let (dir, _) = folder_with(&scenario);
    let run = advisor(&["run", "small.toml", "--quick", "--out", "out"], dir.path());
    assert!(run.status.success(), "{}\n{}", text(&run.stdout), text(&run.stderr));
    let results = fs::read_to_string(dir.path().join("out/small/results.csv")).unwrap();
    let mut lines = results.lines();
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    let rows: Vec<BTreeMap<&str, &str>> = lines.map(|line| header.iter().copied().zip(line.split(',')).collect()).collect();
    for phase in ["train", "infer"] {
        let row = |precision: &str| rows.iter().find(|row| row["phase"] == phase && row["precision"] == precision).unwrap();
        let (fp32, fp8) = (row("fp32"), row("fp8"));
        assert_eq!((fp32["source"], fp8["source"], fp8["status"], fp8["recommended"]), ("measured", "modelled", "ok", "false"));
        let timed = ["throughput_per_s", "speedup", "latency_p50_ms", "samples", "peak_memory_bytes", "cost_usd_per_million"];
        for column in
            timed.into_iter().chain(["time_to_target_s", "cost_to_target_usd", "energy_j_per_unit", "roofline_fraction"])
        {
            assert_eq!(fp8[column], "", "{phase} {column}");
        }
        let counted = ["accuracy", "flops_per_unit", "model_bytes"];
        assert!(counted.iter().all(|column| !fp8[column].is_empty()) && !fp32["throughput_per_s"].is_empty(), "{fp8:?}");
        let bytes = |row: &BTreeMap<&str, &str>| row["model_bytes"].parse::<f64>().unwrap();
        assert!(bytes(fp8) < 0.5 * bytes(fp32), "{phase}");
        assert_eq!(row("tf32")["status"], "skipped");
        assert!(row("tf32")["reason"].contains("tensor cores of a GPU"), "{}", row("tf32")["reason"]);
    }
    let accuracy = |precision: &str| -> f64 {
        rows.iter().find(|row| row["phase"] == "infer" && row["precision"] == precision).unwrap()["accuracy"].parse().unwrap()
    };
    assert!((accuracy("fp8") - accuracy("fp32")).abs() < 0.02, "{results}");
    let page = fs::read_to_string(dir.path().join("out/small/report.html")).unwrap();
    assert!(page.contains("fp8 is emulated here, bit for bit"));
    let log = records(&dir.path().join("out/small/run.jsonl"));
    for (_, record) in log.iter().filter(|(id, _)| id.contains("fp8")) {
        assert!(record["measurement"].is_null() && record["energy"].is_null() && record["time_split"].is_null(), "{record}");
    }
}

#[test]
fn wrong_input_is_exit_code_2_with_every_mistake_and_nothing_written() {
    let (dir, path) = folder_with(&SMALL.replace("precision = [", "precison = [").replace("epochs = 2", "epochs = 0"));
    fs::write(dir.path().join("twin.toml"), SMALL).unwrap();
    let run = advisor(&["run", "small.toml", "twin.toml", "--out", "out"], dir.path());
    assert_eq!(run.status.code(), Some(2));
    let message = text(&run.stderr);
    assert!(message.contains("did you mean `precision`?") && message.contains("`epochs` cannot be `0`"), "{message}");
    assert!(run.stdout.is_empty() && !dir.path().join("out").exists());
    fs::write(&path, SMALL).unwrap();
    let run = advisor(&["run", "small.toml", "twin.toml", "--out", "out"], dir.path());
    assert_eq!(run.status.code(), Some(2));
    assert!(text(&run.stderr).contains("two scenarios are called `small`"), "{}", text(&run.stderr));
    let run = advisor(&["run", "nowhere.toml"], dir.path());
    assert_eq!((run.status.code(), text(&run.stderr).contains("no such file")), (Some(2), true));
    let run = advisor(&["report", "nowhere"], dir.path());
    assert_eq!((run.status.code(), text(&run.stderr).contains("no run.jsonl")), (Some(2), true));
}

#[test]
fn an_infeasible_scenario_names_the_binding_limit_and_ends_with_1() {
    let limits = "[constraints]\nmax_latency_p50_ms = 0.000001\n";
    let (dir, _) = folder_with(&format!("{}{limits}", SMALL.replace("[\"train\", \"infer\"]", "\"infer\"")));
    let run = advisor(&["run", "small.toml", "--quick", "--out", "out", "--json"], dir.path());
    assert_eq!(run.status.code(), Some(1), "{}", text(&run.stderr));
    let printed: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(printed[0]["phases"][0]["outcome"], "infeasible");
    assert_eq!(printed[0]["phases"][0]["binding_constraint"], "max_latency_p50_ms");
}

#[test]
fn a_run_killed_at_any_moment_resumes_without_losing_a_finished_candidate() {
    let (dir, _) = folder_with(SMALL);
    let out = dir.path().join("out");
    let log = out.join("small/run.jsonl");
    // How long a whole run takes here: kills are spread over that time.
    let start = Instant::now();
    assert!(advisor(&["run", "small.toml", "--quick", "--out", "whole"], dir.path()).status.success());
    let whole = start.elapsed();
    let all = records(&dir.path().join("whole/small/run.jsonl")).len();
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    println!("seed {seed}, a whole run takes {whole:?}");
    let mut generator = advisor::stats::Generator::new(seed);
    let (mut kills, mut kept_by_a_kill) = (0, 0);
    while kills < 20 {
        if out.exists() {
            fs::remove_dir_all(&out).unwrap();
        }
        // One run, killed and resumed until it is through or five kills are spent on it.
        for attempt in 0..6 {
            let before = records(&log);
            let mut command = program();
            command.args(["run", "small.toml", "--quick", "--out", "out", "--resume"]).current_dir(dir.path());
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            if attempt < 5 && kills < 20 {
                std::thread::sleep(whole.mul_f64(generator.unit() * 0.9));
                let finished_before_the_kill = records(&log);
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
                let after = records(&log);
                let finished = |map: &BTreeMap<String, Value>| map.iter().filter(|(_, r)| r["status"] == "ok").count();
                for (id, record) in before.iter().chain(&finished_before_the_kill) {
                    let now = after.get(id).unwrap_or_else(|| panic!("seed {seed}: {id} was lost"));
                    // The baseline's record grows with every session; all others stay as they were.
                    let grows = id == "\"infer\"/\"fp32\"/\"none\"/b32" || id == "\"train\"/\"fp32\"/\"none\"/b32";
                    if grows {
                        let blocks = |r: &Value| r["measurement"]["blocks"].as_array().map_or(0, Vec::len);
                        assert!(blocks(now) >= blocks(record), "seed {seed}: {id} lost blocks");
                    } else {
                        assert_eq!(now, record, "seed {seed}: {id} changed");
                    }
                }
                kept_by_a_kill += finished(&after);
            } else {
                assert!(child.wait().unwrap().success(), "seed {seed}");
                assert_eq!(records(&log).len(), all, "seed {seed}");
                break;
            }
        }
    }
    assert!(kept_by_a_kill > 0, "no kill came after a finished candidate: the test shows nothing");
}

#[test]
fn a_run_with_another_scenario_is_not_resumed_into() {
    let (dir, path) = folder_with(&SMALL.replace("[\"train\", \"infer\"]", "\"infer\""));
    assert!(advisor(&["run", "small.toml", "--quick", "--out", "out"], dir.path()).status.success());
    let log = fs::read(dir.path().join("out/small/run.jsonl")).unwrap();
    fs::write(&path, SMALL).unwrap();
    let run = advisor(&["run", "small.toml", "--quick", "--out", "out", "--resume"], dir.path());
    assert_eq!(run.status.code(), Some(2), "{}", text(&run.stderr));
    assert!(text(&run.stderr).contains("was started with another scenario"), "{}", text(&run.stderr));
    assert_eq!(fs::read(dir.path().join("out/small/run.jsonl")).unwrap(), log);
}

/// Processes that a process has started and that still run, by number.
#[cfg(target_os = "linux")]
fn children(of: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    let mut found: Vec<u32> = text.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    found.sort_unstable();
    found
}

fn wait_for(what: &str, mut happens: impl FnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(60);
    while !happens() {
        assert!(Instant::now() < patience, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn kill(process: u32, signal: &str) {
    Command::new("kill").args([signal, &process.to_string()]).status().unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn a_baseline_that_dies_is_started_again_and_no_row_loses_its_comparison() {
    // Full pace, so that there is time to kill it while it is timed.
    let (dir, _) = folder_with(&SMALL.replace("[\"train\", \"infer\"]", "\"infer\""));
    let mut command = program();
    command.args(["run", "small.toml", "--out", "out"]).current_dir(dir.path());
    let run = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let parent = run.id();
    wait_for("a whole group of workers", || children(parent).len() == 5);
    // The last worker is started before it warms up: a moment later all are timed. The baseline was the first.
    std::thread::sleep(Duration::from_secs(3));
    kill(children(parent)[0], "-KILL");
    let output = run.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let log = dir.path().join("out/small/run.jsonl");
    let whole = fs::read_to_string(&log).unwrap();
    assert!(whole.contains("the baseline `fp32, batch 32, 1 thread` was started again: its worker ended by signal 9"), "{whole}");
    let results = fs::read_to_string(dir.path().join("out/small/results.csv")).unwrap();
    let speedup = advisor::report::RESULT_COLUMNS.iter().position(|c| *c == "speedup").unwrap();
    let measured: Vec<&str> = results.lines().filter(|line| line.contains(",ok,")).collect();
    assert_eq!(measured.len(), 5, "{results}");
    assert!(measured.iter().all(|line| !line.split(',').nth(speedup).unwrap().is_empty()), "{results}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_killed_parent_leaves_no_worker_behind() {
    let (dir, _) = folder_with(&SMALL.replace("epochs = 2", "epochs = 1000"));
    let mut command = program();
    command.args(["run", "small.toml", "--out", "out"]).current_dir(dir.path());
    let mut run = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("a worker", || !children(run.id()).is_empty());
    // Into the training, which asks for no input.
    std::thread::sleep(Duration::from_millis(500));
    let workers = children(run.id());
    run.kill().unwrap();
    run.wait().unwrap();
    let is_there = |process: &u32| {
        let status = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        !status.is_empty() && !status.contains(") Z ")
    };
    wait_for("the end of the workers", || !workers.iter().any(is_there));
}

#[test]
fn trainings_that_were_over_before_a_kill_are_not_done_again() {
    let scenario = SMALL.replace("epochs = 2", "epochs = 2\nseeds = 3").replace("[\"train\", \"infer\"]", "\"train\"");
    let (dir, _) = folder_with(&scenario);
    let log = dir.path().join("out/small/run.jsonl");
    let seeds = || {
        let whole = fs::read_to_string(&log).unwrap_or_default();
        let lines = whole.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let of_seeds = lines.filter(|line| line["kind"] == "seed");
        of_seeds.map(|line| format!("{}/{}", line["candidate"]["precision"], line["run"]["seed"])).collect::<Vec<_>>()
    };
    let start = |resume: &[&str]| {
        let mut command = program();
        command.args(["run", "small.toml", "--out", "out"]).args(resume).current_dir(dir.path());
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let mut run = start(&[]);
    wait_for("a finished training", || !seeds().is_empty());
    run.kill().unwrap();
    run.wait().unwrap();
    assert!(start(&["--resume"]).wait().unwrap().success());
    let mut found = seeds();
    found.sort();
    let expected: Vec<String> =
        ["bf16", "fp32"].iter().flat_map(|p| (1..=3).map(move |seed| format!("\"{p}\"/{seed}"))).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_run_is_not_resumed_with_other_data() {
    let scenario = SMALL.replace("[\"train\", \"infer\"]", "\"infer\"").replace(
        "\"digits-8x8\"",
        "{ format = \"csv\", path = \"points.csv\", label = \"class\", shape = [1, 2, 1], maximum = 10.0 }",
    );
    let (dir, _) = folder_with(&scenario);
    let table = |turned: bool| {
        let rows = (0..400).map(|k| format!("{},{},{}\n", (k % 2) ^ usize::from(turned), 5 * (k % 2) + k % 3, k % 7));
        format!("class,x,y\n{}", rows.collect::<String>())
    };
    fs::write(dir.path().join("points.csv"), table(false)).unwrap();
    let run = advisor(&["run", "small.toml", "--quick", "--out", "out"], dir.path());
    assert!(run.status.success(), "{}", text(&run.stderr));
    fs::write(dir.path().join("points.csv"), table(true)).unwrap();
    let run = advisor(&["run", "small.toml", "--quick", "--out", "out", "--resume"], dir.path());
    assert_eq!(run.status.code(), Some(2), "{}", text(&run.stderr));
    assert!(text(&run.stderr).contains("was started with another scenario, mode, data"), "{}", text(&run.stderr));
}

#[test]
fn weights_that_diverged_are_no_basis_of_a_recommendation() {
    let scenario = SMALL.replace("[\"train\", \"infer\"]", "\"infer\"");
    let scenario = scenario
        .replace("epochs = 2", "epochs = 2\noptimizer = { kind = \"sgd\", learning_rate = 10 }\nregularisation = { l2 = 1.0 }");
    let (dir, _) = folder_with(&scenario);
    for resume in [&[][..], &["--resume"][..]] {
        let run = advisor(&[&["run", "small.toml", "--quick", "--out", "out"], resume].concat(), dir.path());
        assert_eq!(run.status.code(), Some(5), "{}", text(&run.stderr));
        let rows = records(&dir.path().join("out/small/run.jsonl"));
        let failed: Vec<&Value> = rows.values().filter(|row| row["status"] == "failed").collect();
        assert_eq!(failed.len(), 5, "{rows:?}");
        let reason = failed[0]["reason"].as_str().unwrap();
        assert!(reason.contains("the fp32 training that makes the shared weights failed (seed 1): "), "{reason}");
    }
}

#[test]
fn a_network_that_has_learnt_nothing_is_said_to() {
    // So large a rate kills every ReLU: the answer is the same for all rows.
    let scenario = SMALL.replace("[\"train\", \"infer\"]", "\"infer\"").replace("\"mlp\"", "\"simple-cnn\"");
    let scenario =
        scenario.replace("\"digits-8x8\"", "\"mnist\"").replace("[\"none\", \"int8\", \"magnitude:0.5\"]", "[\"none\"]");
    let rate = "optimizer = { kind = \"sgd\", learning_rate = 10, momentum = 0.99 }";
    let (dir, _) = folder_with(&scenario.replace("epochs = 2", &format!("epochs = 2\n{rate}")));
    let run = advisor(&["run", "small.toml", "--quick", "--out", "out"], dir.path());
    assert!(text(&run.stdout).contains("it has learnt nothing"), "{}{}", text(&run.stdout), text(&run.stderr));
}

#[test]
fn a_limit_on_p99_is_measured_until_it_can_be_judged_and_memory_is_the_candidates_own() {
    let scenario = SMALL
        .replace("[\"train\", \"infer\"]", "\"infer\"")
        .replace("\"mlp\"", "\"simple-cnn\"")
        .replace("\"bf16\"]", "\"bf16\"]\nlayout = [\"single\"]")
        .replace("[\"none\", \"int8\", \"magnitude:0.5\"]", "[\"none\"]")
        .replace("batch_size = [32]\nthreads", "batch_size = [256]\nthreads");
    let (dir, _) = folder_with(&format!("{scenario}[constraints]\nmax_latency_p99_ms = 10000\n"));
    let run = advisor(&["run", "small.toml", "--quick", "--out", "out"], dir.path());
    assert!(run.status.success(), "{}", text(&run.stderr));
    let rows = records(&dir.path().join("out/small/run.jsonl"));
    assert_eq!(rows.len(), 2);
    for row in rows.values() {
        assert!(row["measurement"]["latency_p99"]["steps"].as_u64().unwrap() >= 459, "{row:#}");
    }
    // The baseline made the shared weights' process before: what the training needed is not in its own memory.
    let memory: Vec<f64> = rows.values().map(|row| row["peak_memory"].as_f64().unwrap()).collect();
    assert!((memory[0] / memory[1] - 1.0).abs() < 0.25, "{memory:?}");
}

#[test]
fn a_budget_ends_early_and_a_resumed_run_measures_the_rest() {
    let (dir, _) = folder_with(&SMALL.replace("[\"train\", \"infer\"]", "\"infer\""));
    let run = advisor(&["run", "small.toml", "--quick", "--out", "out", "--budget", "0s"], dir.path());
    assert_eq!(run.status.code(), Some(1), "nothing was measured: {}", text(&run.stderr));
    assert!(text(&run.stderr).contains("go on with: advisor run small.toml --out out --quick --resume"), "{}", text(&run.stderr));
    let log = dir.path().join("out/small/run.jsonl");
    assert!(records(&log).values().all(|r| r["status"] == "skipped"));
    assert!(advisor(&["run", "small.toml", "--quick", "--out", "out", "--resume"], dir.path()).status.success());
    assert_eq!(records(&log).values().filter(|r| r["status"] == "ok").count(), 5);
}

#[cfg(target_os = "linux")]
#[test]
fn ctrl_c_stops_cleanly_and_says_how_to_go_on() {
    let (dir, _) = folder_with(&SMALL.replace("epochs = 2", "epochs = 1000"));
    let mut command = program();
    command.args(["run", "small.toml", "--out", "out"]).current_dir(dir.path());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let log = dir.path().join("out/small/run.jsonl");
    let patience = Instant::now() + Duration::from_secs(30);
    while !log.exists() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(300));
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("go on with: advisor run small.toml --out out --resume"), "{}", text(&output.stderr));
    let last = fs::read_to_string(&log).unwrap().lines().last().unwrap().to_string();
    assert!(last.contains("\"ended\":\"interrupted\""), "{last}");
}

#[test]
fn a_candidate_that_cannot_run_is_a_row_and_exit_code_5() {
    // More rows a step than the training part has.
    let (dir, _) = folder_with(
        &SMALL.replace("batch_size = [32]", "batch_size = [32, 4096]").replace("[\"train\", \"infer\"]", "\"train\""),
    );
    let run = advisor(&["run", "small.toml", "--quick", "--out", "out"], dir.path());
    assert_eq!(run.status.code(), Some(5), "{}", text(&run.stderr));
    let failed = records(&dir.path().join("out/small/run.jsonl"));
    let reasons: Vec<&str> = failed.values().filter_map(|r| r["reason"].as_str()).collect();
    assert!(reasons.iter().any(|r| r.contains("a batch of 4096 is larger than the 1437 training rows")), "{reasons:?}");
}

#[test]
fn small_commands_answer() {
    let dir = tempfile::tempdir().unwrap();
    let ask = |arguments: &[&str]| advisor(arguments, dir.path());
    let init = ask(&["init", "mine", "--model", "mlp", "--data", "digits-8x8"]);
    assert!(init.status.success() && dir.path().join("scenarios/mine.toml").exists(), "{}", text(&init.stderr));
    assert_eq!(ask(&["init", "mine"]).status.code(), Some(2), "it is there already");
    assert_eq!(ask(&["init", "other", "--data", "mnsit"]).status.code(), Some(2));
    assert!(text(&ask(&["prices", "list", "nebius", "cpu"]).stdout).contains("nebius/cpu-e2_2vcpu-8gb"));
    assert!(text(&ask(&["prices", "show", "nebius/cpu-e2_2vcpu-8gb"]).stdout).contains("$0.0496/h"));
    let unknown = ask(&["prices", "show", "nebius/cpu-e2_2vcpu-9gb"]);
    assert!(unknown.status.code() == Some(2) && text(&unknown.stderr).contains("did you mean"), "{}", text(&unknown.stderr));
    let schema: Value = serde_json::from_slice(&ask(&["schema"]).stdout).unwrap();
    assert!(schema["properties"]["workload"].is_object());
    assert!(text(&ask(&["completions", "bash"]).stdout).contains("advisor"));
    assert!(text(&ask(&["man"]).stdout).contains("advisor"));
    let doctor: Value = serde_json::from_slice(&ask(&["doctor", "--json"]).stdout).unwrap();
    assert!(doctor["environment"]["logical_cores"].as_u64().unwrap() >= 1);
    for command in ["run", "report", "init", "prices", "doctor", "schema"] {
        let help = ask(&[command, "--help"]);
        assert!(help.status.success() && text(&help.stdout).contains("Example"), "{command}");
    }
}

#[test]
fn a_table_of_published_runs_is_predicted_row_by_row() {
    let dir = tempfile::tempdir().unwrap();
    let shipped = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("data/validation/nemo_b200.csv")).unwrap();
    fs::write(dir.path().join("runs.csv"), shipped.replacen("LLAMA3_8B", "UNHEARD_OF", 1)).unwrap();
    let answer = advisor(&["plan", "score", "--table", "runs.csv"], dir.path());
    assert_eq!(answer.status.code(), Some(5), "{}", text(&answer.stderr));
    let rows = text(&answer.stdout);
    assert_eq!(rows.lines().count(), shipped.lines().count(), "a line for every row");
    assert!(rows.contains("refused,,,,,,no model `UNHEARD_OF` in the book"), "{rows}");
    assert!(text(&answer.stderr).contains("Blackwell or experts"));
    let out = advisor(&["plan", "score", "--table", "runs.csv", "--out", "scored.csv"], dir.path());
    assert_eq!(fs::read_to_string(dir.path().join("scored.csv")).unwrap(), rows);
    assert!(text(&out.stdout).contains("Blackwell or experts"));
    let fitted = advisor(&["plan", "score", "--table", "runs.csv", "--in-sample"], dir.path());
    let own = text(&fitted.stdout);
    assert!(own.lines().count() == rows.lines().count() && own != rows, "{own}");
    assert_eq!(advisor(&["plan", "score", "--in-sample"], dir.path()).status.code(), Some(2));
    fs::write(dir.path().join("other.csv"), "a,b\n1,2\n").unwrap();
    assert_eq!(advisor(&["plan", "score", "--table", "other.csv"], dir.path()).status.code(), Some(2));
}

#[test]
fn every_path_that_the_documents_name_exists() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut documents: Vec<PathBuf> =
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].iter().map(|name| root.join(name)).collect();
    for folder in ["docs", "docs/decisions"] {
        let entries = fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        documents.extend(entries.filter(|path| path.extension().is_some_and(|e| e == "md")));
    }
    let mut missing = Vec::new();
    for document in &documents {
        let content = fs::read_to_string(document).unwrap();
        for quoted in content.split('`').skip(1).step_by(2) {
            let is_path = ["src/", "tests/", "scripts/", "data/", "docs/", "scenarios/", "benches/", "reports/example", ".ci/"]
                .iter()
                .any(|top| quoted.starts_with(top));
            let plain = quoted.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
            if is_path && plain && !root.join(quoted).exists() {
                missing.push(format!("{}: {quoted}", document.display()));
            }
        }
        for link in content.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or("");
            let beside = document.parent().unwrap().join(target);
            if !target.is_empty() && !target.contains("://") && !beside.exists() {
                missing.push(format!("{}: ({link})", document.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
