//! `scripts/gpu-suite.sh` with a stand-in for `advisor` that logs its calls and does what a test asks: resuming, parts that fail,
//! parts that hang, machines without PyTorch. Needs bash and coreutils, no GPU.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

const PARTS: [&str; 8] = ["machine", "ceilings", "conformance", "correctness", "tune", "kernels", "steps", "scenarios"];

struct Suite {
    dir: tempfile::TempDir,
}

/// Written by a process of its own: a program cannot be started while a file that another test's new process has inherited is open for
/// writing it.
fn script(path: &Path, text: &str) {
    let mut writer =
        Command::new("bash").args(["-c", "cat >\"$0\" && chmod 755 \"$0\""]).arg(path).stdin(Stdio::piped()).spawn().unwrap();
    write!(writer.stdin.take().unwrap(), "#!/usr/bin/env bash\n{text}\n").unwrap();
    assert!(writer.wait().unwrap().success());
}

impl Suite {
    /// `body` is what the stand-in does after it has logged its arguments, which it finds in `$*`; `python` what Python does.
    fn new(body: &str, python: &str) -> Suite {
        let suite = Suite { dir: tempfile::tempdir().unwrap() };
        suite.advisor(body);
        script(&suite.dir.path().join("python"), python);
        suite
    }

    fn advisor(&self, body: &str) {
        let log = self.dir.path().join("log");
        script(&self.dir.path().join("advisor"), &format!("echo \"$*\" >>{}\necho '{{}}'\n{body}", log.display()));
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// The call of a part that is timed: its rows are kept as they come.
    fn timing(&self, part: &str, folder: &str) -> String {
        format!("kernels --device cuda --json --part {part} --rounds 3 --out {}", self.out().join(folder).display())
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("bash");
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/gpu-suite.sh")).args(arguments).arg(self.out());
        command.env("ADVISOR", self.dir.path().join("advisor")).env("PYTHON", self.dir.path().join("python"));
        command.output().expect("bash is there")
    }

    /// Calls of the stand-in since the last look.
    fn calls(&self) -> Vec<String> {
        let log = self.dir.path().join("log");
        let text = fs::read_to_string(&log).unwrap_or_default();
        let _ = fs::remove_file(log);
        text.lines().map(str::to_string).collect()
    }

    fn part(&self, name: &str) -> serde_json::Value {
        let text = fs::read_to_string(self.out().join(name).with_extension("json")).unwrap();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}: {text}"))
    }
}

const NO_PYTORCH: &str = "exit 3";

#[test]
fn every_part_runs_once_and_is_done() {
    let suite = Suite::new("", "exit 0");
    let output = suite.run(&[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let calls = suite.calls();
    assert_eq!(calls.len(), PARTS.len(), "{calls:?}");
    assert_eq!(calls[0], "doctor --json");
    assert_eq!(calls[4], "kernels --device cuda --json --tune");
    assert_eq!(calls[2], "kernels --device cuda --json --part conformance");
    let bench = suite.timing("bench", "kernels");
    assert!(calls[5].starts_with(&format!("{bench} --peer ")) && calls[5].ends_with("scripts/gpu_pytorch.py"), "{}", calls[5]);
    assert!(
        calls[7].contains("--quick --device cuda --out ") && calls[7].contains("scenarios/small-digits.toml"),
        "{}",
        calls[7]
    );
    for part in PARTS {
        assert_eq!((suite.part(part)["status"].as_str(), suite.part(part)["part"].as_str()), (Some("done"), Some(part)));
        assert_eq!(fs::read_to_string(suite.out().join(part).with_extension("stdout")).unwrap(), "{}\n");
    }
    assert_eq!(suite.part("steps")["peer"], "PyTorch");
    let left = fs::read_dir(suite.out()).unwrap().any(|entry| entry.unwrap().file_name().to_string_lossy().ends_with(".new"));
    assert!(!left, "parts are moved into place");

    assert_eq!(suite.run(&[]).status.code(), Some(0));
    assert!(suite.calls().is_empty(), "a part that is done is not run again");
    assert_eq!(suite.run(&["--again"]).status.code(), Some(0));
    assert_eq!(suite.calls().len(), PARTS.len());
}

#[test]
fn a_part_that_fails_is_recorded_and_alone_runs_again() {
    let fails = r#"case "$*" in *correctness) printf 'first\nit said "no" \\ \t\001\n' >&2; exit 5 ;; esac"#;
    let suite = Suite::new(fails, NO_PYTORCH);
    assert_eq!(suite.run(&[]).status.code(), Some(5));
    assert_eq!(suite.calls().len(), PARTS.len(), "the rest goes on");
    let failed = suite.part("correctness");
    assert_eq!((failed["status"].as_str(), failed["exit_code"].as_i64()), (Some("failed"), Some(5)));
    assert!(failed["reason"].as_str().unwrap().starts_with(r#"exit code 5: it said "no" \"#), "{failed}");
    assert_eq!(suite.part("kernels")["status"], "done");

    suite.advisor("");
    assert_eq!(suite.run(&[]).status.code(), Some(0));
    assert_eq!(suite.calls(), ["kernels --device cuda --json --part correctness"]);
    assert_eq!(suite.part("correctness")["status"], "done");
}

#[test]
fn a_part_that_hangs_is_stopped_with_all_that_it_started_and_the_rest_goes_on() {
    let suite = Suite::new("case \"$*\" in *ceilings) sleep 300 & echo $! >${0%/*}/child; wait ;; esac", NO_PYTORCH);
    assert_eq!(suite.run(&["--limit", "2"]).status.code(), Some(5));
    let stopped = suite.part("ceilings");
    assert_eq!(stopped["reason"], "stopped after its limit of 2 s");
    assert_eq!(fs::read_to_string(suite.out().join("ceilings.stdout")).unwrap(), "{}\n", "what it had said is kept");
    assert_eq!(suite.part("scenarios")["status"], "done");
    let child = fs::read_to_string(suite.dir.path().join("child")).unwrap();
    // It was sent the signal before the next part began, but on a busy machine it has to get its turn to die.
    let state = || fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
    let is_gone = || state().is_empty() || state().contains(") Z ");
    for _ in 0..100 {
        if is_gone() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(is_gone(), "its child still runs: {}", state());
}

#[test]
fn a_run_cut_off_in_a_part_goes_on_with_that_part() {
    let suite = Suite::new("case \"$*\" in *conformance) kill -TERM $(cat ${0%/*}/suite); sleep 300 ;; esac", NO_PYTORCH);
    let (script, at) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/gpu-suite.sh"), suite.dir.path());
    // The shell's own number, kept by exec.
    let command = format!("echo $$ >{}/suite; exec bash {} {}", at.display(), script.display(), suite.out().display());
    let output = Command::new("bash")
        .args(["-c", &command])
        .env("ADVISOR", at.join("advisor"))
        .env("PYTHON", at.join("python"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert!(!suite.out().join("conformance.json").exists());
    assert_eq!(suite.calls().len(), 3);
    suite.advisor("");
    assert_eq!(suite.run(&[]).status.code(), Some(0));
    assert_eq!(suite.calls()[0], "kernels --device cuda --json --part conformance");
}

#[test]
fn without_pytorch_ours_is_measured_alone_and_the_reason_is_recorded() {
    for (python, reason) in [
        (NO_PYTORCH, "not run: no PyTorch"),
        ("exit 4", "not run: PyTorch sees no GPU"),
        ("exit 1", "not run: PyTorch cannot be started"),
    ] {
        let suite = Suite::new("", python);
        assert_eq!(suite.run(&[]).status.code(), Some(0));
        assert_eq!(suite.calls()[5..7], [suite.timing("bench", "kernels"), suite.timing("steps", "steps")]);
        assert_eq!(suite.part("kernels")["peer"], reason);
        assert_eq!(suite.part("steps")["peer"], reason);
    }
}

#[test]
fn a_scenario_that_nothing_meets_is_done_and_a_missing_program_is_not() {
    let suite = Suite::new("[[ $1 != run ]] || exit 1", NO_PYTORCH);
    assert_eq!(suite.run(&[]).status.code(), Some(0));
    assert_eq!((&suite.part("scenarios")["status"], &suite.part("scenarios")["exit_code"]), (&"done".into(), &1.into()));

    fs::remove_file(suite.dir.path().join("advisor")).unwrap();
    assert_eq!(suite.run(&["--again"]).status.code(), Some(5));
    for part in PARTS {
        assert!(suite.part(part)["reason"].as_str().unwrap().contains("cannot be started"), "{}", suite.part(part));
    }
}

#[test]
fn the_limits_end_within_ten_minutes_and_wrong_use_is_refused() {
    let suite = Suite::new("", NO_PYTORCH);
    let listed = String::from_utf8(suite.run(&["--list"]).stdout).unwrap();
    let limits: Vec<(&str, u32)> = listed
        .lines()
        .map(|line| line.split_once(' ').map(|(part, rest)| (part, rest.split(' ').next().unwrap().parse().unwrap())).unwrap())
        .collect();
    assert_eq!(limits.iter().map(|(part, _)| *part).collect::<Vec<_>>(), PARTS);
    // The look for PyTorch, nvidia-smi, and a second of grace for each.
    assert!(limits.iter().map(|(_, limit)| limit + 1).sum::<u32>() + 26 + 6 <= 600, "{listed}");
    assert!(suite.calls().is_empty());
    assert_eq!(suite.run(&["--limit", "soon"]).status.code(), Some(2));
    assert_eq!(suite.run(&["--no-such"]).status.code(), Some(2));
    let output = Command::new("bash")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/gpu-suite.sh"))
        .args([suite.out().to_str().unwrap(), "no-such-part"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("expected one of machine"), "{output:?}");
}
