//! Programs on every device against the f64 reference of their graph: every case and storage type.
//!
//! CUDA stands in the table as its kernels run on the CPU, which also watches every access of theirs. `cuda::tests` starts this table
//! again in a process whose CUDA driver is the stand-in of `kernels/emulator/driver.cpp`; there that driver is the one device.

use super::{cuda::Cuda, *};
use crate::{
    graph::{Graph, Op, OptimizerStep, Role, Window, cases::*, fuse, lower, reference},
    vocab::{DType, Fp8Format, OptimizerKind},
};

/// A backend with a few schedules; CUDA is left out, after a line that says so, where its kernels cannot be compiled for the CPU.
fn devices() -> Vec<(&'static str, Arc<dyn Backend>)> {
    if std::env::var_os(super::cuda::THROUGH_THE_DRIVER).is_some() {
        return vec![("cuda driver", Arc::new(Cuda::open(0).unwrap()))];
    }
    let mut out: Vec<(&'static str, Arc<dyn Backend>)> =
        vec![("cpu 1", Arc::new(cpu::Cpu::new(1))), ("cpu 2", Arc::new(cpu::Cpu::new(2)))];
    for (name, schedule) in [("cuda in order", 0), ("cuda shuffled", 7)] {
        if let Some(cuda) = Cuda::emulated(schedule) {
            out.push((name, Arc::new(cuda)));
        }
    }
    out
}

#[test]
fn forward_and_backward_match_the_reference_in_every_storage_type() {
    for (device, backend) in devices() {
        for checked in check::check(&*backend, 11).unwrap_or_else(|error| panic!("{device}: {error}")) {
            assert!(checked.passes(), "{device}: {}: {}", checked.name, checked.worst);
        }
    }
}

#[test]
fn warped_images_match_the_reference() {
    for (device, backend) in devices() {
        let checked = check::check_warp(&*backend, 3).unwrap();
        assert!(checked.passes(), "{device}: {}", checked.worst);
    }
}

#[test]
fn products_rounded_to_tf32_are_near_the_reference_on_cuda_and_refused_by_the_processor() {
    for (device, backend) in devices() {
        if device.starts_with("cpu") {
            let refused = check::check_tf32(&*backend, 11, 5_000_000).unwrap_err();
            assert!(
                refused.to_string().ends_with("by device `cpu`: it has no products of operands rounded to tf32"),
                "{refused}"
            );
            continue;
        }
        let mut largest: f64 = 0.0;
        for checked in check::check_tf32(&*backend, 11, 5_000_000).unwrap_or_else(|error| panic!("{device}: {error}")) {
            assert!(checked.passes(), "{device}: {}: {}", checked.name, checked.worst);
            largest = largest.max(checked.error);
        }
        // fp32 errs by a hundredth of that: some product was rounded.
        assert!(largest > 1e-4, "{device}: {largest:e}");
    }
}

/// Every code of a format times `unit`, with numbers between, beyond and below all of them.
fn around_fp8(format: Fp8Format, unit: f32) -> Vec<f32> {
    let codes = (0..=255u8).map(|code| format.decode(code)).filter(|x| x.is_finite());
    let near: Vec<f32> = codes.flat_map(|x| [x, x * 1.0625, x * 1.03, x * 0.97]).collect();
    let beside = [500.0f32, -3e4, 6e4, 1e30, 1e-9, -1e-30, 0.0];
    near.into_iter().chain(beside).map(|x| x * unit).collect()
}

#[test]
fn fp8_rounding_is_exact_on_every_device_and_the_largest_number_is_found() {
    for format in [Fp8Format::E4m3, Fp8Format::E5m2] {
        for (from, to) in [(DType::F32, DType::F32), (DType::F32, DType::Bf16), (DType::Bf16, DType::Bf16)] {
            for scale in [0.0f32, 1.0, 64.0, 2f32.powi(-30)] {
                let unit = if scale == 0.0 { 1.0 } else { 1.0 / scale };
                let data = around_fp8(format, unit);
                let mut graph = Graph::new();
                let (x, s) = (graph.input("x", &[data.len()], from), graph.input("s", &[], DType::F32));
                let made = graph.apply_all(Op::RoundFp8 { format, to }, &[x, s]).unwrap();
                graph.mark_output("y", made[0]);
                graph.mark_output("largest", made[1]);
                for (device, backend) in devices() {
                    let mut session = backend.load(lower(&graph), None).unwrap();
                    session.upload_f32(x, &data).unwrap();
                    session.upload_f32(s, &[scale]).unwrap();
                    let mut stored = vec![f32::NAN; data.len()];
                    session.download_f32(x, &mut stored).unwrap();
                    // Twice: the largest number starts anew.
                    for _ in 0..2 {
                        session.execute().unwrap();
                        let (mut y, mut largest) = (vec![f32::NAN; data.len()], [f32::NAN]);
                        session.download_f32(made[0], &mut y).unwrap();
                        session.download_f32(made[1], &mut largest).unwrap();
                        for (got, x) in y.iter().zip(&stored) {
                            let wanted = format.round(x / unit) * unit;
                            assert_eq!(got.to_bits(), wanted.to_bits(), "{device}, {format:?}, {from:?}, scale {scale}: {x}");
                        }
                        assert_eq!(largest[0], stored.iter().fold(0.0f32, |most, x| most.max(x.abs())), "{device}");
                    }
                    let mut expected = reference::zeros(&graph);
                    expected[x.0] = stored.iter().map(|x| f64::from(*x)).collect();
                    expected[s.0] = vec![f64::from(scale)];
                    reference::run(&graph.values, &graph.nodes, &mut expected, 0);
                    let mut y = vec![f32::NAN; data.len()];
                    session.download_f32(made[0], &mut y).unwrap();
                    assert!(
                        y.iter().zip(&expected[made[0].0]).all(|(got, want)| f64::from(*got) == *want),
                        "{device}: the reference"
                    );
                }
            }
        }
    }
}

#[test]
fn the_scale_of_8_bit_numbers_follows_the_largest_of_the_last_steps() {
    let mut graph = Graph::new();
    let (scale, history) = (graph.state("scale", &[], DType::F32), graph.state("history", &[4], DType::F32));
    let [a, b] = ["a", "b"].map(|name| graph.input(name, &[], DType::F32));
    graph.apply_all(Op::MoveFp8Scale { format: Fp8Format::E4m3, margin: 1 }, &[scale, history, a, b]).unwrap();
    // Two pieces a step. 448 / 2 / 1.75 is 128; a spike lasts four steps; what is not finite, and nothing but zeros, leaves the scale.
    let steps = [
        ([0.0, 0.0], 0.0),
        ([1.75, 0.5], 128.0),
        ([0.5, 1.76], 64.0),
        ([100.0, 1.0], 2.0),
        ([1.0, 1.0], 2.0),
        ([1.0, 1.0], 2.0),
        ([1.0, 1.0], 2.0),
        ([1.0, 0.25], 128.0),
        ([f32::INFINITY, 1.0], 128.0),
        ([f32::NAN, 1.0], 128.0),
        ([0.25, 0.25], 128.0),
        ([0.25, 0.25], 128.0),
        ([0.25, 0.25], 128.0),
        ([0.25, 0.25], 512.0),
    ];
    let mut expected = reference::zeros(&graph);
    for (device, backend) in devices() {
        let mut session = backend.load(lower(&graph), None).unwrap();
        for (k, (pieces, wanted)) in steps.into_iter().enumerate() {
            session.upload_f32(a, &[pieces[0]]).unwrap();
            session.upload_f32(b, &[pieces[1]]).unwrap();
            session.execute().unwrap();
            let mut got = [f32::NAN];
            session.download_f32(scale, &mut got).unwrap();
            assert_eq!(got[0], wanted, "{device}, step {k}");
        }
    }
    for (pieces, wanted) in steps.into_iter().take(8) {
        (expected[a.0], expected[b.0]) = (vec![f64::from(pieces[0])], vec![f64::from(pieces[1])]);
        reference::run(&graph.values, &graph.nodes, &mut expected, 0);
        assert_eq!(expected[scale.0], [f64::from(wanted)]);
    }
}

#[test]
fn a_gradient_is_rounded_where_it_goes_back_and_the_value_is_not() {
    let mut graph = Graph::new();
    let (x, w) = (graph.input("x", &[3, 4], DType::F32), graph.weight("w", &[4, 5], 4, 5));
    let scale = graph.state("scale", &[], DType::F32);
    let y = graph.apply(Op::MatMul { transpose_a: false, transpose_b: false }, &[x, w]).unwrap();
    let y = graph.apply(Op::RoundGradient { format: Fp8Format::E5m2 }, &[y, scale]).unwrap();
    graph.mark_output("logits", y);
    with_gradients(&mut graph);
    assert_eq!(graph.nodes.iter().filter(|node| matches!(node.op, Op::RoundFp8 { .. })).count(), 1);
    let mut data = contents(&graph, 3);
    data[scale.0] = vec![256.0];
    let mut expected = data.clone();
    reference::run(&graph.values, &graph.nodes, &mut expected, 0);
    for (device, backend) in devices() {
        let mut session = backend.load(lower(&graph), None).unwrap();
        check::upload(&mut *session, &data).unwrap();
        session.execute().unwrap();
        let (error, worst) = check::worst_error(&mut *session, &graph, &expected, 3).unwrap();
        assert!(error <= 1e-5, "{device}: {worst}");
    }
}

#[test]
fn a_wrong_result_does_not_pass() {
    let checked = |error: f64| check::Checked { name: String::new(), error, tolerance: 0.1, worst: String::new() }.passes();
    assert!(checked(0.1) && !checked(0.11) && !checked(f64::NAN));
}

#[test]
fn products_of_ragged_shapes_match_the_reference() {
    for checked in check::check_products(&cpu::Cpu::new(2), 5).unwrap() {
        assert!(checked.passes(), "{}: {}", checked.name, checked.worst);
    }
}

#[test]
fn convolutions_of_many_channels_match_the_reference() {
    for checked in check::check_convolutions(&cpu::Cpu::new(2), 5).unwrap() {
        assert!(checked.passes(), "{}: {}", checked.name, checked.worst);
    }
}

#[test]
fn quantised_products_of_ragged_shapes_match_the_reference() {
    for (device, backend) in devices() {
        for seed in [5, 6] {
            for checked in check::check_quantized(&*backend, seed).unwrap() {
                assert!(checked.passes(), "{device}: {}: {}", checked.name, checked.worst);
            }
        }
    }
}

#[test]
fn a_convolution_quantised_at_run_time_follows_its_largest_input_and_takes_zeros() {
    let mut graph = Graph::new();
    let x = graph.input("x", &[1, 3, 3, 1], DType::F32);
    let (w, s) = (graph.state("w", &[1, 1, 1, 2], DType::I8), graph.state("s", &[2], DType::F32));
    let b = graph.bias("b", 2, 1);
    let activation = crate::graph::Activation::None;
    let y = graph.apply(Op::Conv2dInt8Dynamic { window: Window::square(1, 1, 0), activation }, &[x, w, s, b]).unwrap();
    graph.mark_output("y", y);
    for (device, backend) in devices() {
        let mut session = backend.load(lower(&graph), None).unwrap();
        session.upload_i8(w, &[1, -2]).unwrap();
        session.upload_f32(s, &[1.0, 0.5]).unwrap();
        session.upload_f32(b, &[0.25, 0.0]).unwrap();
        // 127 steps are the largest, whatever it was in the run before: its multiples come out as they went in.
        for largest in [127.0f32, 0.0, 254.0, 127.0] {
            let step = largest / 127.0;
            let numbers: Vec<f32> = [127.0, -3.0, 0.0, 5.0, -127.0, 64.0, 1.0, 2.0, 100.0].iter().map(|q| q * step).collect();
            session.upload_f32(x, &numbers).unwrap();
            session.execute().unwrap();
            let mut got = [f32::NAN; 18];
            session.download_f32(y, &mut got).unwrap();
            for (k, got) in got.iter().enumerate() {
                let want = if k % 2 == 0 { numbers[k / 2] + 0.25 } else { -numbers[k / 2] };
                assert_eq!(*got, want, "{device}, {largest}: {k}");
            }
        }
    }
}

#[test]
fn products_that_skip_zeros_match_the_dense_ones_and_new_weights_are_packed_again() {
    use crate::graph::Activation;
    for (device, backend) in devices() {
        for (rows, inputs, outputs) in [(1, 20, 7), (3, 132, 33), (40, 260, 17)] {
            for (number, op) in
                [Op::LinearSparse { filled: 0, activation: Activation::Relu }, Op::LinearTwoFour { activation: Activation::Relu }]
                    .into_iter()
                    .enumerate()
            {
                let mut graph = Graph::new();
                let x = graph.input("x", &[rows, inputs], DType::F32);
                let (w, b) = (graph.weight("w", &[inputs, outputs], 1, 1), graph.bias("b", outputs, 1));
                let y = graph.apply(op, &[x, w, b]).unwrap();
                let dense = graph.apply(Op::Linear { activation: Activation::Relu }, &[x, w, b]).unwrap();
                graph.mark_output("y", y);
                graph.mark_output("dense", dense);
                let mut session = backend.load(lower(&graph), None).unwrap();
                // Eighths, so that sums are exact in any order.
                let number_of = |k: usize| ((k * 7919 + 13) % 61) as f32 / 8.0 - 3.5;
                session.upload_f32(x, &(0..rows * inputs).map(number_of).collect::<Vec<_>>()).unwrap();
                session.upload_f32(b, &(0..outputs).map(number_of).collect::<Vec<_>>()).unwrap();
                for shift in [1, 2] {
                    // Of every four along the inputs two are zero, or of the unstructured ones three quarters anywhere.
                    let is_zero = |k: usize| match number {
                        0 => k * 31 % 17 % 4 != shift,
                        _ => (k / outputs + shift) % 4 < 2,
                    };
                    let weights: Vec<f32> =
                        (0..inputs * outputs).map(|k| if is_zero(k) { 0.0 } else { number_of(k + shift) }).collect();
                    session.upload_f32(w, &weights).unwrap();
                    session.execute().unwrap();
                    let [mut got, mut want] = [vec![f32::NAN; rows * outputs], vec![f32::NAN; rows * outputs]];
                    session.download_f32(y, &mut got).unwrap();
                    session.download_f32(dense, &mut want).unwrap();
                    assert!(got == want && want.iter().any(|v| *v > 0.0), "{device}: [{rows}, {inputs}, {outputs}], {number}");
                }
            }
        }
    }
}

#[test]
fn later_runs_and_timed_runs_and_a_second_load_give_what_the_reference_gives() {
    for case in CASES {
        for (storage, tolerance) in check::STORAGE {
            let mut graph = fuse(check::on(&case.forward(), storage), true);
            with_gradients(&mut graph);
            // The seed of the test above: another may bring two values so near that a pool in bf16 takes the other for the larger.
            let data = contents(&graph, 11);
            for (device, backend) in devices() {
                // The second load takes memory that the first has left full.
                for load in 0..2 {
                    let mut session = backend.load(lower(&graph), None).unwrap();
                    check::upload(&mut *session, &data).unwrap();
                    let mut expected = data.clone();
                    // Launch by launch, recorded, replayed, and with events around each step.
                    for run in 0..if load == 0 { 4 } else { 1 } {
                        if run < 3 {
                            session.execute().unwrap();
                        } else {
                            let mut times = Vec::new();
                            session.execute_timed(&mut times).unwrap();
                            assert_eq!(times.len(), session.program().steps.len(), "{}, {device}", case.name);
                            assert!(
                                times.iter().all(|time| time.total.0 >= 0.0 && time.waited.0 == 0.0),
                                "{}, {device}: {times:?}",
                                case.name
                            );
                        }
                        reference::run(&graph.values, &graph.nodes, &mut expected, run);
                        let (error, worst) = check::worst_error(&mut *session, &graph, &expected, 11).unwrap();
                        assert!(error <= tolerance, "{}, {storage:?}, {device}, load {load}, run {run}: {worst}", case.name);
                    }
                }
            }
        }
    }
}

#[test]
fn updates_match_the_reference_over_several_steps() {
    for kind in [OptimizerKind::Sgd, OptimizerKind::Adam, OptimizerKind::Adamw, OptimizerKind::Rmsprop] {
        for (l1, l2) in [(0.0, 0.0), (1e-3, 1e-2)] {
            let case = CASES.iter().find(|c| c.name == "linear, relu, linear").unwrap();
            let mut graph = fuse(case.forward(), true);
            with_gradients(&mut graph);
            let rule = OptimizerStep { kind, learning_rate: 0.01, momentum: 0.9, beta1: 0.9, beta2: 0.99, epsilon: 1e-6, l1, l2 };
            let outputs = std::mem::take(&mut graph.outputs);
            for id in graph.parameters().collect::<Vec<_>>() {
                let value = graph.value(id).clone();
                let gradient = outputs.iter().find(|(n, _)| *n == format!("d {}", value.name)).unwrap().1;
                let mut operands = vec![id, gradient];
                operands.extend((0..rule.state_arrays()).map(|k| graph.state(&format!("s{k}"), &value.shape, DType::F32)));
                graph.apply_all(Op::Update { optimizer: rule, guarded: false }, &operands).unwrap();
            }
            let mut expected = contents(&graph, 4);
            for (k, value) in graph.values.iter().enumerate() {
                if value.role == Role::State {
                    expected[k].fill(0.0);
                }
            }
            let start = expected.clone();
            (0..5).for_each(|step| reference::run(&graph.values, &graph.nodes, &mut expected, step));
            for (device, backend) in devices() {
                let mut session = backend.load(lower(&graph), None).unwrap();
                check::upload(&mut *session, &start).unwrap();
                (0..5).for_each(|_| session.execute().unwrap());
                for id in graph.parameters() {
                    let mut got = vec![0.0; graph.value(id).elements()];
                    session.download_f32(id, &mut got).unwrap();
                    for (got, want) in got.iter().zip(&expected[id.0]) {
                        assert!((f64::from(*got) - want).abs() < 2e-5, "{kind:?}, {device}: {got} is not {want}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_guarded_update_waits_for_finite_gradients_and_undoes_the_scale() {
    for (scale, finite) in [(1024.0, 1.0), (1024.0, 0.0)] {
        let mut graph = Graph::new();
        let w = graph.weight("w", &[3, 4], 3, 4);
        let (g, loss_scale) = (graph.input("g", &[3, 4], DType::F32), graph.input("scale", &[], DType::F32));
        let flag = graph.apply(Op::AllFinite, &[g]).unwrap();
        graph.mark_output("finite", flag);
        let (state, copy) = (graph.state("s", &[3, 4], DType::F32), graph.state("w.f16", &[3, 4], DType::F16));
        let optimizer = OptimizerStep {
            kind: OptimizerKind::Sgd,
            learning_rate: 0.5,
            momentum: 0.0,
            beta1: 0.0,
            beta2: 0.0,
            epsilon: 0.0,
            l1: 0.0,
            l2: 0.0,
        };
        graph.apply_all(Op::Update { optimizer, guarded: true }, &[w, g, state, copy, loss_scale, flag]).unwrap();
        let mut gradient = [scale as f32; 12];
        if finite == 0.0 {
            gradient[7] = f32::INFINITY;
        }
        for (device, backend) in devices() {
            let mut session = backend.load(lower(&graph), None).unwrap();
            session.upload_f32(w, &[1.0; 12]).unwrap();
            session.upload_f32(g, &gradient).unwrap();
            session.upload_f32(loss_scale, &[scale as f32]).unwrap();
            session.execute().unwrap();
            let (mut weights, mut low, mut seen) = ([0.0; 12], [9.0; 12], [9.0]);
            session.download_f32(w, &mut weights).unwrap();
            session.download_f32(copy, &mut low).unwrap();
            session.download_f32(flag, &mut seen).unwrap();
            let (expected, expected_copy) = if finite == 1.0 { (0.5, 0.5) } else { (1.0, 0.0) };
            assert_eq!((weights, low, seen), ([expected; 12], [expected_copy; 12], [finite as f32]), "{device}");
        }
    }
}

/// An update with rate 1: the weight becomes minus the sum of all gradients that a device has seen.
fn minus_the_sum(weights: usize) -> (Graph, [ValueId; 2]) {
    let mut graph = Graph::new();
    let (w, g) = (graph.weight("w", &[weights], 1, 1), graph.input("g", &[weights], DType::F32));
    let kind = OptimizerKind::Sgd;
    let (momentum, beta1, beta2) = (0.0, 0.0, 0.0);
    let optimizer = OptimizerStep { kind, learning_rate: 1.0, momentum, beta1, beta2, epsilon: 0.0, l1: 0.0, l2: 0.0 };
    let state = graph.state("momentum", &[weights], DType::F32);
    graph.apply_all(Op::Update { optimizer, guarded: false }, &[w, g, state]).unwrap();
    (graph, [w, g])
}

#[test]
fn every_run_sees_the_input_that_was_filled_before_it_and_keeps_it() {
    let (graph, [w, g]) = minus_the_sum(40);
    for (device, backend) in devices() {
        let mut session = backend.load(lower(&graph), None).unwrap();
        let fill = |session: &mut dyn Session, value: f32| session.host_f32(g).expect("an f32 input").fill(value);
        // A device may be at the first run while the last is filled in.
        let mut sum = 0.0;
        for run in 1..=9 {
            fill(&mut *session, run as f32);
            // The rate takes the same way.
            let rate = if run % 3 == 0 { 0.5 } else { 1.0 };
            session.set_rate_factor(rate);
            session.execute().unwrap();
            sum += run as f32 * rate as f32;
        }
        session.set_rate_factor(1.0);
        for (given, now) in [(9.0, None), (100.0, Some(false)), (200.0, Some(true))] {
            match now {
                // Written once, seen by every later run.
                None => {}
                Some(false) => session.upload_f32(g, &[given; 40]).unwrap(),
                // A later upload replaces what was filled in.
                Some(true) => {
                    fill(&mut *session, 7.0);
                    session.upload_f32(g, &[given; 40]).unwrap();
                }
            }
            session.execute().unwrap();
            sum += given;
        }
        fill(&mut *session, 3.0);
        let (mut weights, mut input) = ([0.0; 40], [0.0; 40]);
        session.download_f32(g, &mut input).unwrap();
        session.execute_timed(&mut Vec::new()).unwrap();
        session.download_f32(w, &mut weights).unwrap();
        assert_eq!((weights, input), ([-sum - 3.0; 40], [3.0; 40]), "{device}");
        assert!(session.host_i32(g).is_none(), "{device}: it holds f32");
    }
}

#[test]
fn noted_scalars_and_times_come_in_order() {
    let (graph, [w, g]) = minus_the_sum(1);
    for (device, backend) in devices() {
        let mut session = backend.load(lower(&graph), None).unwrap();
        session.upload_f32(g, &[-1.0]).unwrap();
        for round in 0..2 {
            session.note_time().unwrap();
            // More than the CUDA backend notes before it reads.
            for _ in 0..1100 {
                session.execute().unwrap();
                session.note_f32(w).unwrap();
            }
            session.note_time().unwrap();
            let wanted: Vec<f32> = (1..=1100).map(|k| (1100 * round + k) as f32).collect();
            assert_eq!(session.take_noted().unwrap(), wanted, "{device}");
            let times = session.take_times().unwrap();
            assert!(times.len() == 1 && times[0].0 > 0.0, "{device}: {times:?}");
        }
        assert!(session.take_noted().unwrap().is_empty() && session.take_times().unwrap().is_empty(), "{device}");
    }
    let (graph, [w, _]) = minus_the_sum(2);
    for (device, backend) in devices() {
        assert!(backend.load(lower(&graph), None).unwrap().note_f32(w).is_err(), "{device}: it is no scalar");
    }
}

#[test]
fn loss_scaling_follows_the_flags_and_a_skipped_step_is_no_update() {
    let mut graph = Graph::new();
    let (w, g) = (graph.weight("w", &[3], 1, 1), graph.input("g", &[3], DType::F32));
    let (loss, scale) = (graph.input("loss", &[], DType::F32), graph.state("scale", &[], DType::F32));
    let counts = graph.state("counts", &[2], DType::F32);
    let states = [graph.state("s0", &[3], DType::F32), graph.state("s1", &[3], DType::F32)];
    let flag = graph.apply(Op::AllFinite, &[g]).unwrap();
    // Adam's bias correction tells how many updates were counted.
    let (kind, learning_rate, beta1, beta2) = (OptimizerKind::Adam, 0.1, 0.5, 0.75);
    let optimizer = OptimizerStep { kind, learning_rate, momentum: 0.0, beta1, beta2, epsilon: 1e-6, l1: 0.0, l2: 0.0 };
    graph.apply_all(Op::Update { optimizer, guarded: true }, &[w, g, states[0], states[1], scale, flag]).unwrap();
    graph.apply_all(Op::AdjustLossScale { growth_interval: 3, largest: 16.0 }, &[scale, counts, loss, flag]).unwrap();
    // Grows at every third good step, up to the largest and no further, falls to the smallest, and comes back.
    let steps: Vec<bool> = "+++--+++++++++++++------++++".chars().map(|sign| sign == '+').collect();
    let skipped = steps.iter().filter(|good| !**good).count();
    let mut expected = reference::zeros(&graph);
    (expected[w.0], expected[scale.0]) = (vec![1.0; 3], vec![4.0]);
    let watched = [w, scale, counts, loss];
    let gradient = |k: usize, good: bool| [0.25, if good { k as f64 } else { f64::INFINITY }, -2.0];
    let mut updates = 0;
    let wanted: Vec<Vec<f64>> = steps
        .iter()
        .enumerate()
        .map(|(k, good)| {
            (expected[g.0], expected[loss.0]) = (gradient(k, *good).to_vec(), vec![0.5]);
            reference::run(&graph.values, &graph.nodes, &mut expected, updates);
            updates += u64::from(*good);
            watched.iter().flat_map(|id| expected[id.0].clone()).collect()
        })
        .collect();
    assert_eq!(wanted[27][3..6], [1.0, 1.0, skipped as f64]);
    assert_eq!((wanted[16][3], wanted[17][3]), (16.0, 16.0));
    assert!(wanted[21][6] == 0.5 && wanted[22][6].is_nan() && wanted[23][6].is_nan() && wanted[24][6] == 0.5, "{wanted:?}");
    for (device, backend) in devices() {
        let mut session = backend.load(lower(&graph), None).unwrap();
        session.upload_f32(w, &[1.0; 3]).unwrap();
        session.upload_f32(scale, &[4.0]).unwrap();
        for (k, (good, wanted)) in steps.iter().zip(&wanted).enumerate() {
            session.upload_f32(g, &gradient(k, *good).map(|x| x as f32)).unwrap();
            session.upload_f32(loss, &[0.5]).unwrap();
            session.execute().unwrap();
            let mut got = Vec::new();
            for id in watched {
                let mut values = vec![9.0; graph.value(id).elements()];
                session.download_f32(id, &mut values).unwrap();
                got.extend(values);
            }
            let is_near = |(got, want): (&f32, &f64)| (f64::from(*got) - want).abs() < 1e-5 || got.is_nan() && want.is_nan();
            assert!(got.iter().zip(wanted).all(is_near), "{device}, step {k}: {got:?} is not {wanted:?}");
        }
    }
}

#[test]
fn int8_products_match_the_reference_exactly_up_to_rounding() {
    let mut graph = Graph::new();
    let x = graph.input("x", &[3, 6, 5, 2], DType::F32);
    let (w, s) = (graph.state("w", &[3, 3, 2, 16], DType::I8), graph.state("s", &[16], DType::F32));
    let b = graph.bias("b", 16, 1);
    let window = Window::square(3, 1, 1);
    let activation = crate::graph::Activation::Relu;
    let y = graph.apply(Op::Conv2dInt8 { window, input_scale: 1.0 / 64.0, activation }, &[x, w, s, b]).unwrap();
    let y = graph.apply(Op::Reshape { shape: vec![3, 480] }, &[y]).unwrap();
    let (v, t, c) = (graph.state("v", &[480, 7], DType::I8), graph.state("t", &[7], DType::F32), graph.bias("c", 7, 1));
    let activation = crate::graph::Activation::None;
    let z = graph.apply(Op::LinearInt8 { input_scale: 1.0, activation }, &[y, v, t, c]).unwrap();
    graph.mark_output("logits", z);
    let mut data = contents(&graph, 8);
    for (id, most) in [(w, 127.0), (v, 127.0)] {
        data[id.0].iter_mut().enumerate().for_each(|(k, value)| *value = ((k as f64 * 37.0) % (2.0 * most + 1.0)) - most);
    }
    // Away from half steps, where f32 and f64 may round apart.
    data[x.0].iter_mut().for_each(|v| *v = (*v * 64.0).round() / 64.0 + 0.001);
    let mut expected = data.clone();
    reference::run(&graph.values, &graph.nodes, &mut expected, 0);
    for (device, backend) in devices() {
        let mut session = backend.load(lower(&graph), None).unwrap();
        check::upload(&mut *session, &data).unwrap();
        // Twice: the second run uses the packed weights of the first.
        session.execute().unwrap();
        session.execute().unwrap();
        let mut got = vec![0.0; 21];
        session.download_f32(z, &mut got).unwrap();
        for (got, want) in got.iter().zip(&expected[z.0]) {
            assert!((f64::from(*got) - want).abs() <= 1e-3 * (1.0 + want.abs()), "{device}: {got} is not {want}");
        }
    }
}

#[test]
fn products_with_a_grid_for_each_row_and_with_4_bit_weights_match_the_reference() {
    use crate::graph::Activation::{None as Plain, Relu};
    for (rows, k, n, group, activation) in
        [(3, 70, 33, 32, Relu), (40, 129, 64, 64, Plain), (1, 256, 132, 128, Plain), (5, 8, 3, 32, Relu), (37, 64, 16, 64, Relu)]
    {
        let mut graph = Graph::new();
        let x = graph.input("x", &[rows, k], DType::F32);
        let (w, s) = (graph.state("w", &[k, n], DType::I8), graph.state("s", &[n], DType::F32));
        let b = graph.bias("b", n, 1);
        let y = graph.apply(Op::LinearInt8Dynamic { activation }, &[x, w, s, b]).unwrap();
        graph.mark_output("dynamic", y);
        let groups = k.div_ceil(group);
        let (v, t) = (graph.state("v", &[k.div_ceil(2), n], DType::I8), graph.state("t", &[groups, n], DType::F16));
        let z = graph.apply(Op::LinearInt4 { group, activation }, &[x, v, t, b]).unwrap();
        graph.mark_output("int4", z);
        let mut data = contents(&graph, 8);
        for id in [w, v] {
            data[id.0].iter_mut().enumerate().for_each(|(at, value)| *value = ((at as f64 * 37.0) % 255.0) - 127.0);
        }
        // Away from half steps, where f32 and f64 may round apart: each row's largest is 127 of its steps, a power of two.
        for (row, values) in data[x.0].chunks_mut(k).enumerate() {
            let step = 1.0 / f64::from(1 << (4 + row % 5));
            values.iter_mut().for_each(|v| *v = ((*v * 126.0).round() + 0.125) * step);
            values[row % k] = 127.0 * step;
        }
        let mut expected = data.clone();
        reference::run(&graph.values, &graph.nodes, &mut expected, 0);
        for (device, backend) in devices() {
            let mut session = backend.load(lower(&graph), None).unwrap();
            check::upload(&mut *session, &data).unwrap();
            session.execute().unwrap();
            session.execute().unwrap();
            let (error, worst) = check::worst_error(&mut *session, &graph, &expected, 8).unwrap();
            assert!(error <= 2e-5, "{device}, [{rows}, {k}] x [{k}, {n}]: {worst}");
        }
    }
}

#[test]
fn simulated_grids_match_the_reference_and_gradients_go_straight_through() {
    for (rows, n) in [(5, 7), (129, 40), (300, 64)] {
        let mut graph = Graph::new();
        let (x, w) = (graph.weight("x", &[rows, n], 1, 1), graph.weight("w", &[n, 3], 1, 1));
        let step = graph.state("step", &[], DType::F32);
        let scales = graph.apply(Op::ChannelScale, &[w]).unwrap();
        let y = graph.apply(Op::FakeQuantize, &[x, step]).unwrap();
        let v = graph.apply(Op::FakeQuantize, &[w, scales]).unwrap();
        let logits = graph.apply(Op::MatMul { transpose_a: false, transpose_b: false }, &[y, v]).unwrap();
        graph.mark_output("logits", logits);
        graph.mark_output("on its grid", y);
        graph.mark_output("scales", scales);
        with_gradients(&mut graph);
        let mut data = contents(&graph, 3);
        // A third of x lies outside of the grid, and nothing at its borders or between two of its places.
        data[step.0] = vec![0.625 / 127.0];
        data[x.0].iter_mut().for_each(|v| *v = ((*v * 127.0 / 0.625).round() + 0.25) * 0.625 / 127.0);
        let mut expected = data.clone();
        reference::run(&graph.values, &graph.nodes, &mut expected, 0);
        // The gradient by w is that by its grid; the one by x is that by its grid inside, and 0 outside.
        let [dx, dw] = ["d x", "d w"].map(|name| graph.output(name).unwrap());
        let outside = data[x.0].iter().zip(&expected[dx.0]).filter(|(v, _)| v.abs() > 0.625);
        assert!(outside.clone().count() > rows && outside.clone().all(|(_, d)| *d == 0.0));
        assert!(data[x.0].iter().zip(&expected[dx.0]).filter(|(v, _)| v.abs() < 0.625).all(|(_, d)| *d != 0.0));
        assert!(expected[dw.0].iter().all(|d| *d != 0.0));
        for (device, backend) in devices() {
            let mut session = backend.load(lower(&graph), None).unwrap();
            check::upload(&mut *session, &data).unwrap();
            session.execute().unwrap();
            let (error, worst) = check::worst_error(&mut *session, &graph, &expected, 3).unwrap();
            assert!(error <= 2e-5, "{device}, [{rows}, {n}]: {worst}");
        }
    }
}

#[test]
fn wrong_sizes_are_refused_by_name() {
    let mut graph = Graph::new();
    let x = graph.input("x", &[2, 3], DType::F32);
    let y = graph.apply(Op::Unary(crate::graph::Unary::Relu), &[x]).unwrap();
    graph.mark_output("y", y);
    for (_, backend) in devices() {
        let mut session = backend.load(lower(&graph), None).unwrap();
        let error = session.upload_f32(x, &[0.0; 5]).unwrap_err();
        assert_eq!(error.to_string(), "value `x` holds 6 elements of f32, got 5 of float");
    }
    assert!(open(Device::Cpu, 0).is_err());
}
