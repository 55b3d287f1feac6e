//! The kernels that no program calls yet, and the driver through its stand-in.

use super::{
    Cuda, THROUGH_THE_DRIVER,
    emulated::{Emulated, emulator},
    machine::{Launch, Machine},
};
use crate::{
    backend::{Backend, Collective, CollectiveError},
    graph::{Graph, Op, Unary, cases::CASES, lower},
    vocab::DType,
};
use half::bf16;
use std::{collections::BTreeMap, process::Command, sync::Arc};

/// Numbers in [-1, 1] without a pattern that a kernel's strides could meet.
pub(super) fn numbers(count: usize, from: usize) -> Vec<f32> {
    (from..from + count).map(|k| (k.wrapping_mul(2_654_435_761) % 2003) as f32 / 1001.0 - 1.0).collect()
}

/// `emulated::HostMap` of kernels/emulator/hopper.h: a matrix of 16-bit numbers, `columns` next to each other, boxes with the 128-byte
/// swizzle.
fn tensor_map(base: u64, [rows, columns]: [u64; 2], [box_rows, box_columns]: [u32; 2]) -> Vec<u8> {
    let mut out = Vec::new();
    let words = [0x7061_6d20_7473_6f68, base, columns, rows, 1, 1, 1, 2 * columns, 0, 0, 0];
    words.iter().for_each(|word: &u64| out.extend(word.to_le_bytes()));
    [box_columns, box_rows, 1, 1, 1, 2, 2, 3, 0, 0].iter().for_each(|word: &u32| out.extend(word.to_le_bytes()));
    out
}

/// Two ranks of which the other has the same numbers.
struct Twin;

impl Collective for Twin {
    fn rank(&self) -> usize {
        0
    }

    fn ranks(&self) -> usize {
        2
    }

    fn all_reduce_sum(&self, data: &mut [f32]) -> Result<(), CollectiveError> {
        data.iter_mut().for_each(|x| *x *= 2.0);
        Ok(())
    }
}

#[test]
fn one_value_alone_is_summed_over_ranks_between_launches() {
    let Some(machine) = Emulated::open(0) else { return };
    let mut graph = Graph::new();
    let x = graph.input("x", &[5], DType::F32);
    let y = graph.apply(Op::Scale { factor: 3.0 }, &[x]).unwrap();
    graph.apply_all(Op::AllReduce, &[y]).unwrap();
    let z = graph.apply(Op::Unary(Unary::Relu), &[y]).unwrap();
    graph.mark_output("z", z);
    let mut session = Cuda { machine: Arc::new(machine) }.load(lower(&graph), Some(Arc::new(Twin))).unwrap();
    session.upload_f32(x, &[1.0, -1.0, 2.0, 0.5, 0.0]).unwrap();
    // As single launches, recorded, replayed, and with a clock around each step.
    for run in 0..4 {
        if run < 3 {
            session.execute().unwrap()
        } else {
            session.execute_timed(&mut Vec::new()).unwrap()
        }
        let mut out = [9.0; 5];
        session.download_f32(z, &mut out).unwrap();
        assert_eq!(out, [6.0, 0.0, 12.0, 3.0, 0.0], "run {run}");
    }
}

#[test]
fn a_device_is_measured_with_kernels_of_its_own() {
    let Some(machine) = Emulated::open(0) else { return };
    let peaks = super::peaks::peaks_of(&Cuda { machine: Arc::new(machine) }).unwrap();
    let rates = [peaks.copy_bytes_per_s, peaks.fp32_flops_per_s, peaks.bf16_flops_per_s];
    assert!(rates.iter().all(|rate| rate.is_finite() && *rate > 0.0), "{peaks:?}");
}

#[test]
fn the_hopper_product_is_right_on_ragged_shapes_in_every_layout() {
    let Some(machine) = Emulated::open(7) else { return };
    let (m, n, k) = (136usize, 200usize, 104usize);
    let low = |x: Vec<f32>| -> Vec<bf16> { x.into_iter().map(bf16::from_f32).collect() };
    let (a, b) = (low(numbers(m * k, 7)), low(numbers(k * n, 99)));
    let turned = |x: &[bf16], rows: usize, columns: usize| -> Vec<bf16> {
        (0..columns * rows).map(|at| x[at % rows * columns + at / rows]).collect()
    };
    for layout in ["nn", "nt", "tn"] {
        for width in [128u32, 256] {
            let a_stored = if layout == "tn" { turned(&a, m, k) } else { a.clone() };
            let b_stored = if layout == "nt" { turned(&b, k, n) } else { b.clone() };
            let put = |data: &[bf16]| {
                let address = machine.allocate(2 * data.len()).unwrap();
                machine.upload(address, bytemuck::cast_slice(data)).unwrap();
                address
            };
            let (a_at, b_at, c_at) = (put(&a_stored), put(&b_stored), machine.allocate(4 * m * n).unwrap());
            let [m64, n64, k64] = [m, n, k].map(|extent| extent as u64);
            let mut arguments = match layout {
                "tn" => tensor_map(a_at, [k64, m64], [64, 64]),
                _ => tensor_map(a_at, [m64, k64], [128, 64]),
            };
            arguments.extend(match layout {
                "nt" => tensor_map(b_at, [n64, k64], [width, 64]),
                _ => tensor_map(b_at, [k64, n64], [64, 64]),
            });
            arguments.extend(c_at.to_le_bytes());
            arguments.extend(0u64.to_le_bytes());
            for field in [m as u32, n as u32, k as u32, 1, 2, 0, 1, 0, 0, 0, 0, 0] {
                arguments.extend(field.to_le_bytes());
            }
            let kernel = format!("gemm_wgmma_bf16_{layout}_{width}");
            machine.launch(&Launch { kernel, grid: [2, 1, 1], block: 384, shared_bytes: 196_736, arguments }).unwrap();
            let mut c = vec![0.0f32; m * n];
            machine.download(c_at, bytemuck::cast_slice_mut(&mut c)).unwrap();
            for (at, got) in c.iter().enumerate() {
                let (i, j) = (at / n, at % n);
                let want: f64 = (0..k).map(|l| f64::from(a[i * k + l].to_f32()) * f64::from(b[l * n + j].to_f32())).sum();
                assert!((f64::from(*got) - want).abs() < 1e-4, "{layout} {width}: ({i}, {j}) is {got}, not {want}");
            }
            [a_at, b_at, c_at].into_iter().for_each(|address| machine.release(address));
        }
    }
}

#[test]
fn every_compiled_kernel_is_in_the_emulated_library_and_none_spills() {
    let manifest = include_str!("../../../kernels/built/manifest.json");
    let manifest: serde_json::Value = serde_json::from_str(manifest).unwrap();
    let has_library = Emulated::open(0).is_some();
    let mut seen = 0;
    for file in manifest["files"].as_object().unwrap().values() {
        for image in file["images"].as_object().unwrap().values() {
            for (kernel, used) in image["kernels"].as_object().unwrap() {
                assert_eq!(used["spill_bytes"], 0, "{kernel}");
                assert!(!has_library || Emulated::argument_bytes(kernel).is_some(), "{kernel}");
                seen += 1;
            }
        }
    }
    assert!(seen > 500, "{seen}");
}

/// Runs tests of this binary again in a process whose driver is the stand-in, pretending this compute capability, and gives what the
/// stand-in has counted. `None` where there is no C++ compiler.
fn through_the_driver(tests: &[&str], capability: &str) -> Option<BTreeMap<String, u64>> {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let run = Command::new(std::env::current_exe().unwrap())
        .args(tests)
        .env("LD_LIBRARY_PATH", &emulator()?.driver)
        .env("ADVISOR_STANDIN_LOG", &log)
        .env("ADVISOR_STANDIN_CAPABILITY", capability)
        .env(THROUGH_THE_DRIVER, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}{}", String::from_utf8_lossy(&run.stderr));
    assert!(!said.contains("running 0 tests"), "no test is called {tests:?}");
    let counts = std::fs::read_to_string(log).unwrap();
    let count = |line: &str| line.split_once(' ').map(|(name, count)| (name.to_string(), count.parse().unwrap()));
    Some(counts.lines().filter_map(count).collect())
}

/// What a process leaves to the driver to clean up.
fn left(counts: &BTreeMap<String, u64>) -> Vec<String> {
    let left = |name: &&String| name.starts_with("alive_") || name.ends_with("_left_to_context");
    counts.keys().filter(left).filter(|name| counts[*name] > 0).map(|name| format!("{name}: {}", counts[name])).collect()
}

#[test]
fn every_test_of_the_backends_passes_through_the_driver_and_leaves_nothing_behind() {
    // Left out: the test that runs every case once; another runs each several times over.
    let tests = ["backend::tests::", "--skip", "forward_and_backward"];
    let Some(counts) = through_the_driver(&tests, "9.0") else { return };
    let count = |name: &str| counts.get(name).copied().unwrap_or_default();
    // At least one for each case in each of the three storage types.
    assert!(count("graphs_captured") >= 3 * CASES.len() as u64, "{counts:?}");
    assert_eq!(count("graphs_captured"), count("graphs_instantiated"), "{counts:?}");
    // Each was recorded in the second run of a session, replayed at once and again in the third.
    assert!(count("graphs_launched") > count("graphs_captured"), "{counts:?}");
    assert!(count("cubins_loaded") > 0 && count("ptx_loaded") == 0, "{counts:?}");
    assert_eq!(left(&counts), Vec::<String>::new());
}

#[test]
fn the_driver_is_left_usable_by_failures() {
    let Some(counts) = through_the_driver(&["failures_are_named_and_the_device_can_be_used_after_them"], "9.0") else { return };
    let graphs: Vec<&str> =
        ["alive_graphs", "alive_executables", "alive_contexts"].into_iter().filter(|name| counts[*name] > 0).collect();
    assert!(graphs.is_empty(), "{graphs:?}");
}

#[test]
fn an_older_device_takes_its_cubins_and_a_newer_one_the_ptx() {
    for (capability, kind) in [("8.0", "cubins_loaded"), ("12.0", "ptx_loaded")] {
        let Some(counts) = through_the_driver(&["backend::tests::updates_match"], capability) else { return };
        let loaded: Vec<&str> = counts.keys().map(String::as_str).filter(|name| name.ends_with("_loaded")).collect();
        assert_eq!(loaded, [kind]);
    }
}
