//! Notes the compiler and, in a checkout, the commit, which stand in every record; and writes the table of compiled CUDA kernels, after
//! a look whether they still belong to their sources.

use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{env, fmt::Write, fs, path::Path, process::Command};

const REBUILD: &str = "run `python3 scripts/build_kernels.py` and commit kernels/built";

fn main() {
    provenance();
    kernels();
    println!("cargo:rerun-if-changed=build.rs");
}

fn provenance() {
    let output = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    println!("cargo:rustc-env=ADVISOR_RUSTC={}", output(&rustc, &["--version"]).unwrap_or_else(|| "rustc unknown".into()));
    if let Some(commit) = output("git", &["rev-parse", "--short=12", "HEAD"]) {
        println!("cargo:rustc-env=ADVISOR_COMMIT={commit}");
        println!("cargo:rerun-if-changed=.git/HEAD");
        println!("cargo:rerun-if-changed=.git/logs/HEAD");
    }
}

/// Writes `images.rs`: one row for each kernel file and architecture, with the packed image and the entries in it.
fn kernels() {
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let folder = Path::new(&root).join("kernels");
    println!("cargo:rerun-if-changed={}", folder.display());
    let manifest =
        fs::read_to_string(folder.join("built/manifest.json")).expect("kernels/built/manifest.json is part of the repository");
    let manifest: Value = serde_json::from_str(&manifest).expect("the manifest is JSON");
    let files = manifest["files"].as_object().expect("the manifest lists its files");
    for entry in fs::read_dir(&folder).expect("the repository has its kernels").flatten() {
        let path = entry.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if path.extension().is_some_and(|end| end == "cu") && !files.contains_key(stem) {
            panic!("kernels/{stem}.cu was never compiled: {REBUILD}");
        }
    }
    let mut table = String::from("pub(super) const IMAGES: &[Image] = &[\n");
    for (stem, file) in files {
        let mut hash = Sha256::new();
        let headers = file["headers"].as_array().expect("a list").iter().filter_map(Value::as_str).map(str::to_string);
        for name in std::iter::once(format!("{stem}.cu")).chain(headers) {
            hash.update(fs::read(folder.join(&name)).unwrap_or_else(|e| panic!("kernels/{name}: {e}")));
        }
        let found: String = hash.finalize().iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        if file["source_sha256"] != found {
            panic!("kernels/{stem}.cu has changed since it was compiled: {REBUILD}");
        }
        // The PTX lists no entries of its own: they are those of any other image of the file.
        let images = file["images"].as_object().expect("the manifest lists images");
        let entries = images.values().find_map(|image| image["kernels"].as_object().filter(|kernels| !kernels.is_empty()));
        let names: Vec<&String> = entries.map(|kernels| kernels.keys().collect()).unwrap_or_default();
        for (architecture, image) in images {
            let path = folder.join("built").join(image["file"].as_str().expect("a file name"));
            writeln!(
                table,
                "    Image {{ file: {stem:?}, source_sha256: {found:?}, architecture: {architecture:?}, packed: include_bytes!({path:?}), \
                 entries: &{names:?} }},"
            )
            .expect("writing to a string");
        }
    }
    table.push_str("];\n");
    let out = Path::new(&env::var("OUT_DIR").expect("cargo sets it")).join("images.rs");
    fs::write(out, table).expect("cargo's folder can be written");
}
