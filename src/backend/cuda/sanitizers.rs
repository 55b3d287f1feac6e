//! The kernels and the emulator under the compiler's sanitizers of addresses and of undefined behaviour: what the emulator's own eyes
//! do not see, as a misaligned wide access, a shift too far, or a mistake of the emulator itself.

use super::emulated::{
    SANITIZED,
    build::{Flavour, compiler_library, emulator_of, planted},
};
use std::{path::Path, process::Command};

/// Runs tests of this binary again with these kernels. `Ok` when all pass, else what was said.
fn run(kernels: &Path, preloaded: &Path, tests: &[&str]) -> Result<(), String> {
    let run = Command::new(std::env::current_exe().unwrap())
        .args(tests)
        .arg("--nocapture")
        .env(SANITIZED, kernels)
        // Its library must be there before any memory is asked for.
        .env("LD_PRELOAD", preloaded)
        // What a process of Rust keeps to its end is no leak of a kernel.
        .env("ASAN_OPTIONS", "detect_leaks=0")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout) + String::from_utf8_lossy(&run.stderr);
    assert!(!said.contains("running 0 tests"), "no test is called {tests:?}");
    if run.status.success() { Ok(()) } else { Err(said.into_owned()) }
}

const EVERY_FAMILY: &str = "kernels_touch_no_more_sectors_and_banks_than_their_budgets";

#[test]
fn every_kernel_runs_under_the_sanitizers() {
    let Some(preloaded) = compiler_library("libasan.so") else { return };
    let Some(built) = emulator_of(Flavour::Addresses) else { return };
    // Ragged shapes are in the cases of every backend.
    let tests =
        ["backend::tests::forward_and_backward", "backend::tests::updates", EVERY_FAMILY, "every_configuration_of_a_product"];
    run(&built.kernels, &preloaded, &tests).unwrap();
}

#[test]
fn planted_errors_are_found_by_the_sanitizers() {
    let Some(preloaded) = compiler_library("libasan.so") else { return };
    // (file, what stands there, what is made of it, what is said of it)
    let errors = [
        // A store one piece further, beyond the end of the buffer.
        ("elementwise", "*(Pack<T>*)(y + first) = out;", "*(Pack<T>*)(y + first + COUNT) = out;", "use-after-poison"),
        // The last warp's number beside a shared array.
        ("rows", "if (lane() == 0) board[warp()] = x;", "if (lane() == 0) board[warp() + 1] = x;", "use-after-poison"),
        // 16 bytes from where no 16 bytes start.
        ("reduce", "*(const Pack<T>*)(p.x + first);", "*(const Pack<T>*)(p.x + first + 1);", "misaligned address"),
    ];
    for (file, from, to, words) in errors {
        let folder = tempfile::tempdir().unwrap();
        let Some(kernels) = planted(Flavour::Addresses, file, from, to, folder.path()) else { return };
        let said = run(&kernels, &preloaded, &[EVERY_FAMILY]).expect_err(file);
        assert!(said.contains(words), "{file}: {said}");
    }
}
