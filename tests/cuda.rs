//! The program on a machine that seems to have a GPU: CUDA's driver is the stand-in of `kernels/emulator/driver.cpp`.

#[path = "support/emulator.rs"]
mod emulator;

use serde_json::Value;
use std::process::Command;

/// `advisor doctor --json` with the stand-in and these variables of its; `None` where there is no C++ compiler.
fn doctor(variables: &[(&str, &str)]) -> Option<Value> {
    let driver = &emulator::emulator()?.driver;
    let output = Command::new(env!("CARGO_BIN_EXE_advisor"))
        .args(["doctor", "--json"])
        .env("LD_LIBRARY_PATH", driver)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    assert!(output.status.code().is_some(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice::<Value>(&output.stdout).unwrap()["cuda"].take())
}

#[test]
fn doctor_lists_devices_with_the_kernels_that_they_take() {
    for (capability, image) in [("9.0", "sm_90a"), ("8.0", "sm_80"), ("8.7", "sm_86"), ("12.0", "compute_80"), ("7.5", "none")] {
        let Some(cuda) = doctor(&[("ADVISOR_STANDIN_CAPABILITY", capability)]) else { return };
        assert_eq!(cuda["driver"], "12.0");
        let line = format!("Emulated GPU, compute capability {capability}, 4 multiprocessors, 4.00 GiB, kernels for {image}");
        assert_eq!(cuda["devices"], serde_json::json!([line]));
    }
}

#[test]
fn doctor_counts_devices_and_says_when_a_driver_shows_none() {
    let Some(cuda) = doctor(&[("ADVISOR_STANDIN_DEVICES", "3")]) else { return };
    assert_eq!(cuda["devices"].as_array().unwrap().len(), 3);
    let cuda = doctor(&[("ADVISOR_STANDIN_DEVICES", "0")]).unwrap();
    assert_eq!(cuda["absent"], "the CUDA driver shows no device (CUDA_ERROR_NO_DEVICE)");
}
