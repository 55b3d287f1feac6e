//! The kernels that no program calls yet, and the driver through its stand-in.

use super::{
    Cuda, THROUGH_THE_DRIVER,
    driver::Driver,
    emulated::{Emulated, SANITIZED, emulator},
    machine::{Facts, Machine, encode_maps},
    product::{self, Config, Operands, Shape, ranked},
};
use crate::{
    backend::{Backend, Collective, CollectiveError, Links},
    graph::{Exchange, Graph, Op, Unary, cases::CASES, lower},
    vocab::DType,
};
use half::{bf16, f16};
use std::{collections::BTreeMap, process::Command, sync::Arc};

/// Numbers in [-1, 1] without a pattern that a kernel's strides could meet.
pub(super) fn numbers(count: usize, from: usize) -> Vec<f32> {
    (from..from + count).map(|k| (k.wrapping_mul(2_654_435_761) % 2003) as f32 / 1001.0 - 1.0).collect()
}

/// Two ranks of which the other has the same numbers.
struct Twin;

fn twins() -> Links {
    Links { data: Arc::new(Twin), tensor: Arc::new(Twin), pipeline: Arc::new(Twin) }
}

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

    fn reduce_scatter_sum(&self, data: &[f32], part: &mut [f32]) -> Result<(), CollectiveError> {
        part.iter_mut().zip(data).for_each(|(part, x)| *part = 2.0 * x);
        Ok(())
    }

    fn all_gather(&self, part: &[f32], data: &mut [f32]) -> Result<(), CollectiveError> {
        data.iter_mut().enumerate().for_each(|(k, x)| *x = part[k % part.len()]);
        Ok(())
    }

    fn send(&self, _to: usize, _data: &[f32]) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn receive(&self, _from: usize, data: &mut [f32]) -> Result<(), CollectiveError> {
        data.fill(1.0);
        Ok(())
    }

    fn trouble(&self) -> Option<CollectiveError> {
        None
    }
}

#[test]
fn one_value_alone_is_summed_over_ranks_between_launches() {
    let Some(machine) = Emulated::open(0) else { return };
    let mut graph = Graph::new();
    let x = graph.input("x", &[5], DType::F32);
    let y = graph.apply(Op::Scale { factor: 3.0 }, &[x]).unwrap();
    graph.apply_all(Op::Exchange(Exchange::StartReduce { bucket: 0 }), &[y]).unwrap();
    graph.apply_all(Op::Exchange(Exchange::AllReduce { bucket: 0 }), &[y]).unwrap();
    let z = graph.apply(Op::Unary(Unary::Relu), &[y]).unwrap();
    graph.mark_output("z", z);
    let mut session = Cuda { machine: Arc::new(machine), choices: Arc::default() }.load(lower(&graph), Some(twins())).unwrap();
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
    let peaks = super::peaks::peaks_of(&Cuda { machine: Arc::new(machine), choices: Arc::default() }).unwrap();
    let rates = [peaks.copy_bytes_per_s, peaks.fp32_flops_per_s, peaks.tf32_flops_per_s, peaks.bf16_flops_per_s];
    assert!(rates.iter().all(|rate| rate.is_finite() && *rate > 0.0), "{peaks:?}");
}

/// Numbers as a type of device memory holds them: their bytes, and what they are worth.
pub(super) fn stored(numbers: &[f32], dtype: DType) -> (Vec<u8>, Vec<f64>) {
    let low = |bits: u16| bits.to_le_bytes().to_vec();
    let one = |x: &f32| match dtype {
        DType::Bf16 => (low(bf16::from_f32(*x).to_bits()), bf16::from_f32(*x).to_f64()),
        DType::F16 => (low(f16::from_f32(*x).to_bits()), f16::from_f32(*x).to_f64()),
        _ => (x.to_le_bytes().to_vec(), f64::from(*x)),
    };
    let (bytes, values): (Vec<_>, Vec<_>) = numbers.iter().map(one).unzip();
    (bytes.concat(), values)
}

pub(super) fn read(bytes: &[u8], dtype: DType) -> Vec<f64> {
    match dtype {
        DType::Bf16 => bytemuck::cast_slice::<u8, bf16>(bytes).iter().map(|x| x.to_f64()).collect(),
        DType::F16 => bytemuck::cast_slice::<u8, f16>(bytes).iter().map(|x| x.to_f64()).collect(),
        _ => bytemuck::cast_slice::<u8, f32>(bytes).iter().map(|x| f64::from(*x)).collect(),
    }
}

/// Runs one product by one configuration, with a bias and ReLU, and gives its largest error over the largest sum of absolute values.
fn product_error(machine: &dyn Machine, shape: &Shape, config: &Config, facts: &Facts) -> f64 {
    let Shape { m, n, k, batch, .. } = *shape;
    let (a, a_values) = stored(&numbers(batch * m * k, 7), shape.input);
    let (b, b_values) = stored(&numbers(batch * k * n, 99), shape.input);
    let bias = numbers(n, 3);
    let put = |bytes: &[u8]| {
        let address = machine.allocate(bytes.len()).unwrap();
        machine.upload(address, bytes).unwrap();
        address
    };
    let mut c = vec![0u8; batch * m * n * shape.output.size()];
    let (a, b, bias_at) = (put(&a), put(&b), put(bytemuck::cast_slice(&bias)));
    // What was there before must not matter.
    let (c_at, workspace) = (put(&vec![0xff; c.len()]), put(&vec![0xff; config.workspace_bytes(shape)]));
    let operands = Operands { a, b, bias: bias_at, c: c_at, workspace, activation: 1 };
    let mut launches = match (shape.input, shape.output) {
        (DType::F32, _) => product::launches::<f32, f32>(shape, config, facts, &operands),
        (DType::Bf16, DType::F32) => product::launches::<bf16, f32>(shape, config, facts, &operands),
        (DType::Bf16, _) => product::launches::<bf16, bf16>(shape, config, facts, &operands),
        (_, DType::F32) => product::launches::<f16, f32>(shape, config, facts, &operands),
        _ => product::launches::<f16, f16>(shape, config, facts, &operands),
    };
    encode_maps(machine, launches.iter_mut()).unwrap();
    launches.iter().for_each(|launch| machine.launch(launch).unwrap_or_else(|error| panic!("{shape:?}: {error}")));
    machine.download(c_at, &mut c).unwrap();
    [a, b, bias_at, c_at, workspace].into_iter().for_each(|address| machine.release(address));
    let (mut worst, mut largest) = (0.0f64, 0.0f64);
    for (at, got) in read(&c, shape.output).into_iter().enumerate() {
        let (of, i, j) = (at / (m * n), at / n % m, at % n);
        let mut sum = f64::from(bias[j]);
        let mut size = sum.abs();
        for l in 0..k {
            let x = a_values[of * m * k + if shape.transpose_a { l * m + i } else { i * k + l }];
            let y = b_values[of * k * n + if shape.transpose_b { j * k + l } else { l * n + j }];
            sum += x * y;
            size += (x * y).abs();
        }
        let error = (got - sum.max(0.0)).abs();
        worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
        largest = largest.max(size);
    }
    worst / largest
}

#[test]
fn every_configuration_of_a_product_is_right_on_ragged_shapes_in_every_layout() {
    let machine: Box<dyn Machine> = match std::env::var_os(THROUGH_THE_DRIVER) {
        Some(_) => Box::new(Driver::open(0).unwrap()),
        None => {
            let Some(machine) = Emulated::open(7) else { return };
            Box::new(machine)
        }
    };
    // More multiprocessors than the machine has, that K is split as well.
    let facts = Facts { multiprocessors: 16, ..machine.facts().clone() };
    let mut seen = std::collections::BTreeSet::new();
    // The second has rows that the tensor memory engine cannot take, the third a batch, the fourth few rows and a long K.
    let extents = [[1, 136, 200, 104], [1, 65, 131, 70], [2, 72, 48, 40], [1, 8, 136, 536]];
    let (f32, low) = ([(DType::F32, DType::F32)], [DType::Bf16, DType::F16]);
    let types = low.into_iter().flat_map(|low| [(low, low), (low, DType::F32)]).chain(f32);
    let types = types.map(|(input, output)| (input, output, false)).chain([(DType::F32, DType::F32, true)]);
    // Through the driver it is the maps that are new, under the sanitizers the kernels of warpgroups.
    let few = std::env::var_os(THROUGH_THE_DRIVER).is_some() || std::env::var_os(SANITIZED).is_some();
    for [batch, m, n, k] in extents.into_iter().take(if few { 1 } else { 4 }) {
        for (input, output, rounds_to_tf32) in types.clone().filter(|(input, output, _)| !few || input == output) {
            for (transpose_a, transpose_b) in [(false, false), (false, true), (true, false), (true, true)] {
                let shape = Shape { m, n, k, batch, transpose_a, transpose_b, input, output, rounds_to_tf32 };
                for (config, cycles) in ranked(&shape, &facts) {
                    assert!(cycles.is_finite() && cycles > 0.0);
                    let error = product_error(&*machine, &shape, &config, &facts);
                    let is_rounded = config.kernel(&shape).contains("tf32");
                    assert!(!is_rounded || error > 1e-6, "{shape:?} by {config:?}: {error:e} is no error of tf32");
                    let tolerance = match output {
                        DType::F32 if is_rounded => 4e-4,
                        DType::F32 => 1e-6,
                        DType::Bf16 => 1.0 / 256.0,
                        _ => 1.0 / 2048.0,
                    };
                    assert!(error <= tolerance, "{shape:?} by {config:?}: {error:e}");
                    seen.insert((config.kernel(&shape), config.splits > 1));
                }
            }
        }
    }
    if few {
        return;
    }
    // 12 + 2 entries in fp32, 3 layouts of 2 tiles in tf32; of the others, 3 layouts of 2 tiles of 2 outputs by warps, and of 2 widths by
    // warpgroups.
    let whole = seen.iter().filter(|(_, is_split)| !is_split).count();
    assert_eq!(whole, 12 + 2 + 3 * 2 + 2 * (3 * 2 * 2 + 3 * 2), "{seen:?}");
    let split = |start: &str| seen.iter().any(|(kernel, is_split)| *is_split && kernel.starts_with(start));
    for start in ["gemm_f32_", "gemv_f32_", "gemm_tf32_", "gemm_bf16_", "gemm_f16_", "gemm_wgmma_bf16_", "gemm_wgmma_f16_"] {
        assert!(split(start), "{start} was never split");
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
        .env(super::TUNING, "off")
        // The name by which cudarc opens the stand-in: one file, one state.
        .env(super::CUBLAS, emulator()?.driver.join("libcuda.so"))
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
fn products_by_warpgroups_have_their_tensor_maps_from_the_driver() {
    let Some(counts) = through_the_driver(&["every_configuration_of_a_product"], "9.0") else { return };
    assert!(counts["tensor_maps"] == 2 * 2 * 3 * 2, "{counts:?}");
    assert_eq!(left(&counts), Vec::<String>::new());
}

#[test]
fn convolutions_by_warpgroups_have_their_tensor_maps_from_the_driver() {
    let Some(counts) = through_the_driver(&["every_convolution_by_warpgroups"], "9.0") else { return };
    assert!(counts["tensor_maps"] >= 2 * 2 * 3, "{counts:?}");
    assert_eq!(left(&counts), Vec::<String>::new());
}

#[test]
fn the_vendors_library_is_called_as_its_manual_says() {
    let Some(counts) = through_the_driver(&["the_vendors_products_are_those_that_were_asked_for"], "9.0") else { return };
    // Each of the two of a series once before it is recorded and once in the recording.
    assert_eq!((counts["blas_products"], counts["graphs_captured"], counts["graphs_launched"]), (3 * 4 * 4, 12, 24));
    assert_eq!((counts["blas_handles_destroyed"], left(&counts)), (1, Vec::new()));
}

#[test]
fn the_driver_is_left_usable_by_failures() {
    let Some(counts) = through_the_driver(&["failures_are_named_and_the_device_can_be_used_after_them"], "9.0") else { return };
    let graphs: Vec<&str> =
        ["alive_graphs", "alive_executables", "alive_contexts"].into_iter().filter(|name| counts[*name] > 0).collect();
    assert!(graphs.is_empty(), "{graphs:?}");
}

#[test]
fn a_missing_wait_is_found_and_memory_is_freed_once() {
    let test = "page_locked_memory_that_changes_under_a_queued_copy_is_a_fault_of_the_stand_in";
    let Some(counts) = through_the_driver(&[test], "9.0") else { return };
    assert_eq!((counts["host_allocations"], counts["alive_contexts"]), (3, 0));
}

#[test]
fn no_event_is_left_where_one_of_many_cannot_be_made() {
    let Some(counts) = through_the_driver(&["events_that_cannot_all_be_made_are_given_back"], "9.0") else { return };
    assert_eq!(left(&counts), Vec::<String>::new());
}

#[test]
fn an_older_device_takes_its_cubins_and_a_newer_one_the_ptx() {
    for (capability, kind) in [("8.0", "cubins_loaded"), ("12.0", "ptx_loaded")] {
        let Some(counts) = through_the_driver(&["backend::tests::updates_match"], capability) else { return };
        let loaded: Vec<&str> = counts.keys().map(String::as_str).filter(|name| name.ends_with("_loaded")).collect();
        assert_eq!(loaded, [kind]);
    }
}
