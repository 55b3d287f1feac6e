//! The house rule as a test: a module may import only what its row lists, and a dependency enters by its own door.
//!
//! A module is a file or folder directly under `src/`. An import is a path `crate::NAME` in code, outside comments and outside
//! everything below the first `#[cfg(test)]` of a file. A row may name only rows above it, so the table itself holds no loop.

use std::{collections::BTreeMap, fs, path::Path};

/// (module, what it may import)
const FLOORS: &[(&str, &[&str])] = &[
    // Floor 0: nothing of ours.
    ("units", &[]),
    ("input", &[]),
    ("stats", &[]),
    // Floors 1 and 2.
    ("vocab", &["units", "input", "stats"]),
    ("record", &["units", "vocab"]),
    ("data", &["units", "input", "stats", "vocab"]),
    ("hardware", &["units", "input", "vocab"]),
    // Floor 3.
    ("scenario", &["units", "input", "vocab", "record", "data"]),
    ("graph", &["units", "stats", "vocab"]),
    ("metrics", &["units", "vocab", "record", "stats"]),
    ("cost", &["units", "input", "vocab", "record", "stats"]),
    ("predict", &["units", "input", "vocab", "record", "stats", "cost", "hardware"]),
    // The left wing: it runs.
    ("strategy", &["units", "vocab", "data", "graph"]),
    ("backend", &["units", "stats", "vocab", "graph"]),
    ("comm", &["units", "vocab", "backend"]),
    ("measure", &["units", "vocab", "record", "stats", "graph", "backend", "comm"]),
    ("models", &["units", "vocab", "graph"]),
    (
        "train",
        &["units", "stats", "vocab", "record", "data", "graph", "metrics", "strategy", "backend", "comm", "measure", "models"],
    ),
    ("harness", &["units", "vocab", "record", "stats", "data", "scenario", "measure"]),
    (
        "workload",
        &[
            "units", "vocab", "stats", "record", "data", "scenario", "graph", "metrics", "strategy", "backend", "comm",
            "measure", "train", "models", "harness",
        ],
    ),
    // The right wing: it decides.
    ("advise", &["units", "vocab", "record", "stats", "cost", "predict"]),
    ("report", &["units", "vocab", "record", "stats", "cost", "advise", "predict"]),
    // The only one that prints.
    (
        "cli",
        &[
            "units", "input", "stats", "vocab", "record", "data", "scenario", "graph", "metrics", "cost", "strategy", "backend",
            "comm", "measure", "train", "models", "harness", "workload", "advise", "report", "hardware", "predict",
        ],
    ),
];

/// (dependency, the modules that may name it)
const DOORS: &[(&str, &[&str])] = &[
    ("polars", &["data", "report"]),
    ("plotters", &["report"]),
    ("clap", &["cli"]),
    ("anyhow", &["cli"]),
    ("indicatif", &["cli"]),
    ("ctrlc", &["cli"]),
    ("sysinfo", &["measure"]),
    ("flate2", &["data", "backend"]),
    ("cudarc", &["backend"]),
    // MPI; cuBLAS and NCCL, and kernels that the tests compile for the processor.
    ("libloading", &["comm", "backend"]),
    ("rustix", &["comm"]),
    ("nvml_wrapper", &["measure"]),
    ("toml", &["input"]),
    ("tokenizers", &["data"]),
];

/// (file or folder, why it needs `unsafe`)
const UNSAFE: &[(&str, &str)] = &[
    ("backend/cpu/kernels/", "vector instructions, and slices shared between threads in disjoint parts"),
    ("backend/cpu/mod.rs", "a cache line is plain data"),
    ("backend/cuda/cublas.rs", "cuBLAS is called by address"),
    ("backend/cuda/driver.rs", "the driver is called by address"),
    ("backend/cuda/emulated.rs", "compiled kernels are called by address"),
    ("backend/cuda/library.rs", "libraries of NVIDIA's are opened by name"),
    ("backend/cuda/nccl.rs", "NCCL is called by address"),
    ("comm/library.rs", "MPI is called by address"),
];

#[test]
fn unsafe_lives_where_it_must() {
    let mut wrong = Vec::new();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    visit(&src, &mut |path, _, source| {
        let file = path.strip_prefix(&*src.to_string_lossy()).unwrap_or(path).trim_start_matches('/');
        if UNSAFE.iter().any(|(place, _)| file.starts_with(place)) {
            return;
        }
        for (line, text) in source.lines().enumerate().map(|(line, text)| (line + 1, text.split("//").next().unwrap_or(""))) {
            if ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|word| text.contains(word)) {
                wrong.push(format!("{path}:{line}: `unsafe`, which lives in {UNSAFE:?} alone"));
            }
        }
    });
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn the_table_itself_has_no_loop() {
    for (row, (module, imports)) in FLOORS.iter().enumerate() {
        for import in *imports {
            let above = FLOORS[..row].iter().any(|(name, _)| name == import);
            assert!(above, "row `{module}` names `{import}`, which is not a row above it");
        }
    }
}

#[test]
fn every_import_goes_down() {
    let wrong = wrong_imports(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").as_path());
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn a_planted_upward_import_is_found_with_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("stats")).unwrap();
    fs::write(dir.path().join("stats/mod.rs"), "//! Planted.\nuse crate::{\n    units::Seconds,\n    report::html,\n};\n")
        .unwrap();
    let wrong = wrong_imports(dir.path());
    assert!(wrong.iter().any(|w| w.contains("stats/mod.rs:4") && w.contains("imports `report`")), "{wrong:?}");
    assert!(wrong.iter().any(|w| w.contains("stats/mod.rs:3") && w.contains("imports `units`")), "{wrong:?}");
}

#[test]
fn dependencies_enter_by_their_own_door() {
    let mut wrong = Vec::new();
    visit(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").as_path(), &mut |path, module, source| {
        for (line, text) in production_lines(source) {
            for (dependency, doors) in DOORS {
                let named = [format!("{dependency}::"), format!("use {dependency};"), format!("#[{dependency}(")];
                let names = named.iter().any(|n| text.match_indices(n.as_str()).any(|(at, _)| starts_a_path(text, at)));
                if names && !doors.contains(&module) && module != "main" {
                    wrong.push(format!("{path}:{line}: `{module}` names `{dependency}`, whose doors are {doors:?}"));
                }
            }
        }
    });
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

fn starts_a_path(text: &str, at: usize) -> bool {
    let before = text[..at].chars().next_back();
    before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':')
}

fn wrong_imports(src: &Path) -> Vec<String> {
    let table: BTreeMap<_, _> = FLOORS.iter().copied().collect();
    let mut wrong = Vec::new();
    visit(src, &mut |path, module, source| {
        if module == "main" || module == "lib" {
            return;
        }
        let Some(allowed) = table.get(module) else {
            wrong.push(format!("{path}: module `{module}` has no row in FLOORS"));
            return;
        };
        for (line, used) in imports(source) {
            if used != module && table.contains_key(used.as_str()) && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{path}:{line}: `{module}` imports `{used}`; its row allows {allowed:?}"));
            }
        }
    });
    wrong
}

fn production_lines(source: &str) -> impl Iterator<Item = (usize, &str)> {
    let code = source.split("#[cfg(test)]").next().unwrap_or("");
    code.lines().enumerate().map(|(i, l)| (i + 1, l.split("//").next().unwrap_or("")))
}

/// Modules right after `crate::`, also at the first level of braces, over several lines; with their lines.
fn imports(source: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    // Depth of braces below an open `crate::{`, and whether a name may start here.
    let mut depth = 0;
    for (line, text) in production_lines(source) {
        let mut rest = text;
        loop {
            if depth == 0 {
                let Some(at) = rest.find("crate::") else { break };
                rest = &rest[at + 7..];
                if let Some(inner) = rest.strip_prefix('{') {
                    (depth, rest) = (1, inner);
                } else {
                    found.push((line, first_name(rest)));
                }
                continue;
            }
            if depth == 1 {
                let name = first_name(rest.trim_start());
                if !name.is_empty() {
                    found.push((line, name));
                }
            }
            // On to the next comma at the first level, or out of the braces.
            let mut next = None;
            for (at, c) in rest.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 1 => next = Some(at + 1),
                    _ => {}
                }
                if depth == 0 {
                    next = Some(at + 1);
                }
                if next.is_some() {
                    break;
                }
            }
            let Some(at) = next else { break };
            rest = &rest[at..];
        }
    }
    found
}

fn first_name(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn visit(dir: &Path, found: &mut impl FnMut(&str, &str, &str)) {
    fn walk(dir: &Path, top: Option<&str>, found: &mut impl FnMut(&str, &str, &str)) {
        for entry in fs::read_dir(dir).expect("src exists") {
            let path = entry.expect("readable entry").path();
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let module = top.unwrap_or(&stem);
            if path.is_dir() {
                walk(&path, Some(module), found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found(&path.to_string_lossy(), module, &fs::read_to_string(&path).expect("utf-8 source"));
            }
        }
    }
    walk(dir, None, found);
}
