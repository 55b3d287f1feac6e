//! Scenario files from outside: each wrong one earns exactly the message that stands beside it, each shipped one is sound, and the schema
//! that editors read is the one that the program has.
//!
//! After a change of a message or of the schema, `ADVISOR_UPDATE=1 cargo test --test scenarios` writes the files anew; read the difference.

use advisor::{
    input::{Diagnostic, Source, render},
    scenario::{Known, KnownModel, Machine, Scenario, schema, template},
    vocab::RowKind,
};
use std::{
    fs,
    path::{Path, PathBuf},
};

const MODELS: &[KnownModel] = &[
    KnownModel { name: "simple-cnn", reads: RowKind::Image },
    KnownModel { name: "mlp", reads: RowKind::Image },
    KnownModel { name: "transformer", reads: RowKind::Text },
];
const INSTANCES: &[&str] = &["aws/c7a.large", "aws/c7g.xlarge", "hetzner/cx22"];

/// The repository.
fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    if manifest.join("scenarios").is_dir() {
        return manifest.to_path_buf();
    }
    std::env::var_os("ADVISOR_ROOT").expect("ADVISOR_ROOT names the repository").into()
}

fn is_update() -> bool {
    std::env::var_os("ADVISOR_UPDATE").is_some_and(|value| value == "1")
}

/// The TOML files of a folder, sorted.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|ending| ending == "toml")).collect();
    files.sort();
    files
}

fn known(run: impl FnOnce(&Known)) {
    let instances: Vec<String> = INSTANCES.iter().map(|name| name.to_string()).collect();
    run(&Known { models: MODELS, instances: &instances });
}

/// Compares, or writes in update mode; an answer is what differs.
fn held(path: &Path, found: &str) -> Option<String> {
    if is_update() {
        fs::write(path, found).unwrap();
        return None;
    }
    let expected = fs::read_to_string(path).unwrap_or_default().replace("\r\n", "\n");
    (expected != found).then(|| format!("{}\n--- expected\n{expected}--- found\n{found}", path.display()))
}

#[test]
fn every_bad_file_gives_exactly_its_message() {
    let folder = root().join("tests/bad_scenarios");
    let files = files(&folder);
    assert!(files.len() >= 20, "{} files in {}", files.len(), folder.display());
    let mut wrong = Vec::new();
    known(|known| {
        for path in &files {
            let text = fs::read_to_string(path).unwrap();
            let name = path.file_name().unwrap().to_str().unwrap();
            let found: Result<Scenario, Vec<Diagnostic>> =
                Scenario::read(Source::new(format!("bad_scenarios/{name}"), &text), known);
            match found {
                Ok(_) => wrong.push(format!("{name} was taken for a good file")),
                Err(diagnostics) => {
                    assert!(!diagnostics.is_empty(), "{name} failed without a word");
                    wrong.extend(held(&path.with_extension("txt"), &(render(&diagnostics) + "\n")));
                }
            }
        }
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_message_has_its_file() {
    for entry in fs::read_dir(root().join("tests/bad_scenarios")).unwrap() {
        let path = entry.unwrap().path();
        assert!(path.with_extension("toml").exists(), "{} belongs to no file", path.display());
    }
}

#[test]
fn every_shipped_scenario_loads_and_contains_its_baselines() {
    let files = files(&root().join("scenarios"));
    assert!(files.len() >= 3);
    known(|known| {
        for path in files {
            let scenario = Scenario::load(&path, known).unwrap_or_else(|found| panic!("{}", render(&found)));
            assert_eq!(
                Some(scenario.name.as_str()),
                path.file_stem().and_then(|stem| stem.to_str()),
                "a file is called as its scenario"
            );
            assert!(scenario.text.starts_with("#:schema ../docs/scenario.schema.json\n"));
            for cores in [1, 2, 64] {
                let machine = Machine { cores, ..Machine::default() };
                let candidates = scenario.expand(&machine).candidates;
                for &phase in &scenario.phases {
                    assert!(candidates.contains(&scenario.baseline(phase, &machine)), "{} on {cores} cores", path.display());
                }
            }
        }
    });
}

#[test]
fn the_committed_schema_is_the_one_of_the_program() {
    let found = serde_json::to_string_pretty(&schema(&MODELS.iter().map(|model| model.name).collect::<Vec<_>>())).unwrap() + "\n";
    let wrong = held(&root().join("docs/scenario.schema.json"), &found);
    assert!(wrong.is_none(), "{}", wrong.unwrap_or_default());
}

#[test]
fn the_template_loads_for_every_model() {
    known(|known| {
        for model in MODELS {
            let data = if model.reads == RowKind::Text { "sentiment-snippets" } else { "mnist" };
            let text = template("my-question", model.name, data);
            let scenario = Scenario::read(Source::new("my-question.toml", &text), known)
                .unwrap_or_else(|found| panic!("{}", render(&found)));
            assert_eq!((scenario.name.as_str(), scenario.model.as_str()), ("my-question", model.name));
        }
    });
}
