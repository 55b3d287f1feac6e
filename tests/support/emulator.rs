//! Builds the kernels of `kernels/` for the CPU: the library of emulated kernels, and the stand-in of CUDA's driver over them.
//!
//! Shared by the unit tests and by those that start the program. Each flavour is built once per version of the sources, under
//! `target/emulated`.

use sha2::{Digest, Sha256};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

/// What was built.
pub struct Emulator {
    /// Library with every kernel and the emulator.
    #[allow(dead_code, reason = "tests that start the program load the driver alone")]
    pub kernels: PathBuf,
    /// Folder with the stand-in, for `LD_LIBRARY_PATH`.
    pub driver: PathBuf,
    /// Folder with the objects of all these, and of `threads`, from `kernels/emulator/threads.cpp`.
    #[allow(dead_code, reason = "for tests that plant an error in one of them")]
    pub folder: PathBuf,
}

/// What watches the kernels while they run.
#[derive(Clone, Copy, Debug)]
pub enum Flavour {
    /// The emulator sees and counts every access.
    Watched,
    /// Nothing looks at plain accesses: for runs of thousands of launches.
    #[allow(dead_code, reason = "only long runs need it")]
    Fast,
    /// The compiler's sanitizers of addresses and of undefined behaviour, over kernels and emulator: their library must be the first of
    /// the process.
    Addresses,
    /// The compiler's sanitizer of threads, for the program `threads`, which runs kernels of rows.cu alone.
    #[allow(dead_code, reason = "only one test needs it")]
    Threads,
}

static WATCHED: LazyLock<Result<Emulator, String>> = LazyLock::new(|| build(Flavour::Watched));
static FAST: LazyLock<Result<Emulator, String>> = LazyLock::new(|| build(Flavour::Fast));
static ADDRESSES: LazyLock<Result<Emulator, String>> = LazyLock::new(|| build(Flavour::Addresses));
static THREADS: LazyLock<Result<Emulator, String>> = LazyLock::new(|| build(Flavour::Threads));

/// The watched kernels.
#[allow(dead_code, reason = "not every test binary needs every flavour")]
pub fn emulator() -> Option<&'static Emulator> {
    emulator_of(Flavour::Watched)
}

/// A library of the compiler's; `None`, after a line that says why, where it is not installed and `ADVISOR_REQUIRE_KERNEL_TOOLS` is not
/// set.
#[allow(dead_code, reason = "only the unit tests ask for it")]
pub fn compiler_library(name: &str) -> Option<PathBuf> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let run = Command::new(&compiler).arg(format!("-print-file-name={name}")).output().ok()?;
    let path = PathBuf::from(String::from_utf8_lossy(&run.stdout).trim());
    // The name alone is the compiler's way of saying no.
    if path.is_absolute() {
        return Some(path);
    }
    assert!(std::env::var_os("ADVISOR_REQUIRE_KERNEL_TOOLS").is_none(), "`{compiler}` has no {name}");
    eprintln!("skipped: `{compiler}` has no {name}");
    None
}

/// `None`, after a line that says why, where there is no C++ compiler and `ADVISOR_REQUIRE_KERNEL_TOOLS` is not set.
///
/// # Panics
/// Where the kernels cannot be compiled.
pub fn emulator_of(flavour: Flavour) -> Option<&'static Emulator> {
    let built = match flavour {
        Flavour::Watched => &WATCHED,
        Flavour::Fast => &FAST,
        Flavour::Addresses => &ADDRESSES,
        Flavour::Threads => &THREADS,
    };
    match &**built {
        Ok(built) => Some(built),
        Err(reason) => {
            let missing = reason.starts_with("no C++ compiler") && std::env::var_os("ADVISOR_REQUIRE_KERNEL_TOOLS").is_none();
            assert!(missing, "the emulated kernels were not built: {reason}");
            eprintln!("skipped: {reason}");
            None
        }
    }
}

fn sources() -> (PathBuf, Vec<PathBuf>) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let mut kernels: Vec<PathBuf> = fs::read_dir(&folder)
        .expect("the repository has its kernels")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|end| end == "cu"))
        .collect();
    kernels.sort();
    (folder, kernels)
}

fn compile(arguments: &[&str], input: &Path, output: &Path) -> Result<(), String> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let run = Command::new(&compiler).args(arguments).arg(input).arg("-o").arg(output).output();
    let run = run.map_err(|e| format!("no C++ compiler: `{compiler}` cannot be started ({e})"))?;
    run.status.success().then_some(()).ok_or_else(|| format!("{}:\n{}", input.display(), String::from_utf8_lossy(&run.stderr)))
}

/// Finds the libraries, or compiles them in a folder of its own that gets its final name when it is whole: two processes may build at
/// once, and one that is stopped leaves nothing that is taken for finished.
fn build(flavour: Flavour) -> Result<Emulator, String> {
    let (folder, kernels) = sources();
    let mut hash = Sha256::new();
    let parts = ["driver.cpp", "emulator.cpp", "emulator.h", "exchanges.h", "hopper.h", "threads.cpp"]
        .map(|name| folder.join("emulator").join(name));
    let headers = ["common.cuh", "hopper.cuh", "hopper_narrow.cuh"].map(|name| folder.join(name));
    // This file as well: its flags are part of what is built.
    hash.update(include_str!("emulator.rs"));
    for path in kernels.iter().chain(&parts).chain(&headers) {
        hash.update(fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?);
    }
    let name: String = hash.finalize()[..8].iter().map(|b| format!("{b:02x}")).collect();
    let name = format!("{name}-{flavour:?}").to_lowercase();
    let all = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/emulated");
    let done = all.join(&name);
    if !done.exists() {
        let partial = all.join(format!("{name}.{}", std::process::id()));
        compile_all(flavour, &folder, &kernels, &partial)?;
        if let Err(error) = fs::rename(&partial, &done) {
            // Another process was first.
            fs::remove_dir_all(&partial).map_err(|e| e.to_string())?;
            if !done.exists() {
                return Err(error.to_string());
            }
        }
    }
    Ok(Emulator { kernels: done.join("kernels.so"), driver: done.join("driver"), folder: done })
}

/// Flags for the emulator with its driver, for the kernels, which read one memory as several types, and for linking.
fn flags(flavour: Flavour) -> [Vec<&'static str>; 3] {
    const COMMON: [&str; 8] = ["-std=c++17", "-mf16c", "-mfma", "-fPIC", "-Wall", "-DADVISOR_EMULATED", INCLUDE, "-c"];
    const INCLUDE: &str = concat!("-I", env!("CARGO_MANIFEST_DIR"), "/kernels");
    let (own, kernel, link): (&[&str], &[&str], &[&str]) = match flavour {
        Flavour::Watched => {
            (&["-O2"], &["-O1", "-fsanitize=thread", "-fno-tree-sra", "--param=tsan-distinguish-volatile=1"], &[])
        }
        Flavour::Fast => (&["-O2", "-DADVISOR_UNWATCHED"], &["-O2", "-fno-strict-aliasing"], &[]),
        Flavour::Addresses => {
            const CHECK: [&str; 2] = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
            const FLAGS: [&str; 5] = ["-O1", CHECK[0], CHECK[1], "-fno-strict-aliasing", "-DADVISOR_UNWATCHED"];
            (&FLAGS, &FLAGS, &CHECK)
        }
        Flavour::Threads => {
            // Threads of a block change stacks, which this sanitizer's calls and returns do not follow.
            const PLAIN: &str = "--param=tsan-instrument-func-entry-exit=0";
            const FLAGS: [&str; 5] = ["-O1", "-fsanitize=thread", PLAIN, "-fno-strict-aliasing", "-DADVISOR_UNWATCHED"];
            (&FLAGS, &FLAGS, &["-fsanitize=thread"])
        }
    };
    [[&COMMON[..], own].concat(), [&COMMON[..], kernel].concat(), [&["-shared"], link].concat()]
}

/// Links the stand-in, which is found by its name, or the kernels alone.
fn link(flags: &[&str], objects: &[PathBuf], library: &Path) -> Result<(), String> {
    let objects: Vec<&str> = objects.iter().map(|o| o.to_str().expect("a path in UTF-8")).collect();
    let name: &[&str] = if library.ends_with("libcuda.so.1") { &["-ldl", "-Wl,-soname,libcuda.so.1"] } else { &[] };
    compile(&[flags, name, &objects[1..]].concat(), Path::new(objects[0]), library)
}

/// A library of `flavour` with one thing changed in the source called `stem`, built in `folder`: the stand-in where that is "driver",
/// else the kernels.
#[allow(dead_code, reason = "not every test binary plants errors")]
pub fn planted(flavour: Flavour, stem: &str, from: &str, to: &str, folder: &Path) -> Option<PathBuf> {
    let built = &emulator_of(flavour)?.folder;
    let is_driver = stem == "driver";
    let (kernels, _) = sources();
    let original = if is_driver { kernels.join("emulator/driver.cpp") } else { kernels.join(stem).with_extension("cu") };
    let text = fs::read_to_string(&original).unwrap();
    assert_eq!(text.matches(from).count(), 1, "{}: {from}", original.display());
    fs::write(folder.join(original.file_name().expect("a file")), text.replace(from, to)).unwrap();
    let source = folder.join(stem).with_extension("cpp");
    if !is_driver {
        fs::copy(built.join(stem).with_extension("cpp"), &source).unwrap();
    }
    let [own, kernel, shared] = flags(flavour);
    let object = folder.join(stem).with_extension("o");
    compile(if is_driver { &own } else { &kernel }, &source, &object).unwrap();
    let is_other = |path: &PathBuf| {
        path.extension().is_some_and(|end| end == "o") && ![stem, "driver"].iter().any(|stem| path.file_stem().unwrap() == *stem)
    };
    let others = fs::read_dir(built).unwrap().map(|entry| entry.unwrap().path()).filter(is_other);
    let library = folder.join(if is_driver { "libcuda.so.1" } else { "kernels.so" });
    link(&shared, &others.chain([object]).collect::<Vec<_>>(), &library).unwrap();
    Some(library)
}

fn compile_all(flavour: Flavour, folder: &Path, kernels: &[PathBuf], out: &Path) -> Result<(), String> {
    fs::create_dir_all(out.join("driver")).map_err(|e| e.to_string())?;
    let [own, kernel, shared] = flags(flavour);
    let is_needed = |path: &&PathBuf| !matches!(flavour, Flavour::Threads) || path.ends_with("rows.cu");
    // Each file in a namespace of its own: types of one name in two files are two types.
    let wrapped = |kernel: &PathBuf| -> Result<PathBuf, String> {
        let stem = kernel.file_stem().and_then(|stem| stem.to_str()).expect("a file");
        let text = fs::read_to_string(kernel).map_err(|e| e.to_string())?;
        let included = ["hopper.cuh", "hopper_narrow.cuh"].map(|name| format!("#include \"{name}\"\n"));
        let hopper: String = included.into_iter().filter(|line| text.contains(line.trim_end())).collect();
        let path = out.join(stem).with_extension("cpp");
        let text = format!("#include \"common.cuh\"\n{hopper}namespace kernels_of_{stem} {{\n#include \"{stem}.cu\"\n}}\n");
        fs::write(&path, text).map_err(|e| e.to_string()).map(|()| path)
    };
    let [emulator, driver] = ["emulator", "driver"].map(|part| (folder.join("emulator").join(part).with_extension("cpp"), &own));
    let mut inputs = vec![emulator];
    for path in kernels.iter().filter(is_needed) {
        inputs.push((wrapped(path)?, &kernel));
    }
    inputs.push(driver);
    let object = |input: &Path| out.join(input.file_name().expect("a file")).with_extension("o");
    // Two at a time: most machines that run tests have that many cores.
    for pair in inputs.chunks(2) {
        let results: Vec<Result<(), String>> = std::thread::scope(|scope| {
            let running: Vec<_> = pair
                .iter()
                .map(|(input, flags)| {
                    let output = object(input);
                    scope.spawn(move || compile(flags, input, &output))
                })
                .collect();
            running.into_iter().map(|r| r.join().expect("compiling does not panic")).collect()
        });
        results.into_iter().collect::<Result<(), String>>()?;
    }
    let objects: Vec<PathBuf> = inputs.iter().map(|(input, _)| object(input)).collect();
    let library = out.join("driver/libcuda.so.1");
    link(&shared, &objects[..objects.len() - 1], &out.join("kernels.so"))?;
    link(&shared, &objects, &library)?;
    if matches!(flavour, Flavour::Threads) {
        let library = library.to_str().expect("a path in UTF-8");
        let flags = ["-std=c++17", "-O1", "-fsanitize=thread", "-Wall", library];
        compile(&flags, &folder.join("emulator/threads.cpp"), &out.join("threads"))?;
    }
    // Its other name is asked for first, and must not be that of a real driver.
    fs::copy(&library, library.with_extension("")).map(|_| ()).map_err(|e| e.to_string())
}
