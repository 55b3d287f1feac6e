//! Autodiff against central differences, fusion against the unfused graph, lowering against the graph.

use super::{cases::*, *};
use crate::vocab::{DType, OptimizerKind};

fn loss(graph: &Graph, data: &[Vec<f64>]) -> f64 {
    let mut data = data.to_vec();
    reference::run(&graph.values, &graph.nodes, &mut data, 0);
    data[graph.output("loss").unwrap().0][0]
}

/// Checks every gradient of `graph` at several elements of each parameter.
fn check_gradients(name: &str, graph: &Graph, seed: u64) {
    let data = contents(graph, seed);
    let mut after = data.clone();
    reference::run(&graph.values, &graph.nodes, &mut after, 0);
    for id in graph.parameters() {
        let value = graph.value(id);
        let gradient = &after[graph.output(&format!("d {}", value.name)).unwrap().0];
        assert_eq!(gradient.len(), value.elements());
        let mut seen = 0.0f64;
        for k in (0..value.elements()).step_by(value.elements().div_ceil(40).max(1)) {
            // 1e-5: the cubic error is then 1e-10 and the rounding error 1e-11, both far below the tolerance.
            let h = 1e-5;
            let at = |shift: f64| {
                let mut data = data.clone();
                data[id.0][k] += shift;
                loss(graph, &data)
            };
            let expected = (at(h) - at(-h)) / (2.0 * h);
            let got = gradient[k];
            assert!(
                (got - expected).abs() <= 1e-7 + 1e-6 * expected.abs(),
                "{name}, seed {seed}: d {}[{k}] {got} vs {expected}",
                value.name
            );
            seen = seen.max(got.abs());
        }
        // A key's bias shifts every score of a row alike: softmax does not see it.
        assert!(seen > 1e-9 || value.name == "k.bias", "{name}: d {} is all zero", value.name);
    }
}

#[test]
fn gradients_match_central_differences_plain_and_fused() {
    for case in CASES {
        for seed in [1, 2] {
            for fused in [false, true] {
                let mut graph = case.forward();
                if fused {
                    graph = fuse(graph, true);
                }
                with_gradients(&mut graph);
                check_gradients(case.name, &graph, seed);
            }
        }
    }
}

#[test]
fn fusion_changes_no_result() {
    for case in CASES {
        for training in [false, true] {
            let plain = case.forward();
            let fused = fuse(plain.clone(), training);
            let result = |graph: &Graph| {
                let mut data = contents(&plain, 3);
                reference::run(&graph.values, &graph.nodes, &mut data, 0);
                data[graph.output("logits").unwrap().0].clone()
            };
            let (a, b) = (result(&plain), result(&fused));
            assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-12), "{}", case.name);
        }
    }
}

/// A training step of `case`: gradients and an update of every parameter.
fn training_step(case: &Case, kind: OptimizerKind) -> Graph {
    let mut graph = fuse(case.forward(), true);
    with_gradients(&mut graph);
    let optimizer =
        OptimizerStep { kind, learning_rate: 0.1, momentum: 0.9, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, l1: 0.0, l2: 1e-3 };
    let parameters: Vec<ValueId> = graph.parameters().collect();
    let outputs = std::mem::take(&mut graph.outputs);
    for id in parameters {
        let value = graph.value(id).clone();
        let (_, gradient) = outputs.iter().find(|(n, _)| *n == format!("d {}", value.name)).unwrap();
        let mut operands = vec![id, *gradient];
        for k in 0..optimizer.state_arrays() {
            operands.push(graph.state(&format!("{}.state{k}", value.name), &value.shape, DType::F32));
        }
        graph.apply_all(Op::Update { optimizer, guarded: false }, &operands).unwrap();
    }
    graph.outputs = outputs.into_iter().filter(|(n, _)| !n.starts_with("d ")).collect();
    graph
}

/// Runs a program as a backend would: over its slots, with garbage in what is not kept.
fn run_program(program: &Program, data: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let longest = program.values.iter().map(Value::elements).max().unwrap();
    let mut slots = vec![vec![f64::NAN; longest]; program.slots.len()];
    let mut out = vec![Vec::new(); program.values.len()];
    for (k, value) in program.values.iter().enumerate() {
        if let (Some(slot), false) = (program.slot_of[k], value.role == Role::Intermediate) {
            slots[slot][..value.elements()].copy_from_slice(&data[k]);
        }
    }
    for step in &program.steps {
        let mut local: Vec<Vec<f64>> = vec![Vec::new(); program.values.len()];
        for id in &step.inputs {
            local[id.0] = slots[program.slot_of[id.0].unwrap()][..program.value(*id).elements()].to_vec();
        }
        let inputs: Vec<usize> = step.inputs.iter().map(|id| program.slot_of[id.0].unwrap()).collect();
        for id in &step.outputs {
            let slot = program.slot_of[id.0].unwrap();
            assert!(!inputs.contains(&slot), "{} writes over what it reads", step.op.name());
        }
        reference::run(&program.values, std::slice::from_ref(step), &mut local, 0);
        let written = step.op.written_inputs(step.inputs.len()).into_iter().map(|k| step.inputs[k]);
        for id in written.chain(step.outputs.iter().copied()) {
            let slot = program.slot_of[id.0].unwrap();
            slots[slot][..local[id.0].len()].copy_from_slice(&local[id.0]);
        }
    }
    for (k, value) in program.values.iter().enumerate() {
        if let Some(slot) = program.slot_of[k].filter(|slot| program.slots[*slot].persistent) {
            out[k] = slots[slot][..value.elements()].to_vec();
        }
    }
    out
}

#[test]
fn a_program_does_what_its_graph_does_in_less_memory() {
    for case in CASES {
        for kind in [OptimizerKind::Sgd, OptimizerKind::Adamw] {
            let graph = training_step(case, kind);
            let program = lower(&graph);
            let data = contents(&graph, 5);
            let mut expected = data.clone();
            reference::run(&graph.values, &graph.nodes, &mut expected, 0);
            let got = run_program(&program, &data);
            let mut checked = 0;
            for id in graph.ids() {
                let kept = graph.is_output(id) || matches!(graph.value(id).role, Role::Parameter { .. } | Role::State);
                if kept {
                    assert_eq!(got[id.0].len(), expected[id.0].len(), "{}: {}", case.name, graph.value(id).name);
                    for (a, b) in got[id.0].iter().zip(&expected[id.0]) {
                        assert!((a - b).abs() <= 1e-12 * (1.0 + b.abs()), "{}: {} {a} vs {b}", case.name, graph.value(id).name);
                        checked += 1;
                    }
                }
            }
            assert!(checked > 0);
            let all: usize = graph.values.iter().map(Value::bytes).sum();
            assert!(program.memory().0 as usize <= all, "{}", case.name);
        }
    }
}

#[test]
fn a_step_alone_does_what_it_does_among_others_on_memory_of_its_own() {
    for case in CASES {
        let program = lower(&training_step(case, OptimizerKind::Adamw));
        for step in &program.steps {
            let alone = program.alone(step, 2);
            assert_eq!((alone.steps.len(), alone.slots.len()), (2, alone.values.len()), "{}: {}", case.name, step.op.name());
            assert!(
                alone
                    .values
                    .iter()
                    .all(|value| value.role != Role::Input || !alone.outputs.iter().any(|(n, _)| *n == value.name))
            );
            for own in &alone.steps {
                assert_eq!(own.op, step.op);
                assert_eq!(alone.step_work(own), program.step_work(step));
                assert_eq!(alone.step_shape(own), program.step_shape(step));
                let among = |id: &ValueId| program.value(*id).role == Role::Intermediate;
                for (own, id) in own.inputs.iter().zip(&step.inputs) {
                    let role = if among(id) { &Role::Input } else { &program.value(*id).role };
                    assert_eq!(&alone.value(*own).role, role);
                }
            }
            let [first, second] = [0, 1].map(|k| alone.steps[k].inputs.iter().chain(&alone.steps[k].outputs).collect::<Vec<_>>());
            assert!(first.iter().all(|id| !second.contains(id)));
            // The same numbers into both sets, the same out of both.
            let half = alone.values.len() / 2;
            let mut data: Vec<Vec<f64>> = alone.values.iter().map(|value| vec![0.5; value.elements()]).collect();
            reference::run(&alone.values, &alone.steps, &mut data, 0);
            assert_eq!(data[..half], data[half..], "{}: {}", case.name, step.op.name());
        }
    }
}

#[test]
fn a_linear_layer_trains_in_one_pass_over_its_weights() {
    let case = CASES.iter().find(|c| c.name == "linear, relu, linear").unwrap();
    let program = lower(&training_step(case, OptimizerKind::Sgd));
    let names: Vec<_> = program.steps.iter().map(|s| s.op.name()).collect();
    assert_eq!(names.iter().filter(|n| **n == "linear_grad_update").count(), 2, "{names:?}");
    assert!(!names.contains(&"matmul"), "{names:?}");
}

#[test]
fn wrong_operands_are_refused_with_their_shapes() {
    let mut graph = Graph::new();
    let (a, b) = (graph.input("a", &[2, 3], DType::F32), graph.input("b", &[4, 5], DType::F32));
    let error = graph.apply(Op::MatMul { transpose_a: false, transpose_b: false }, &[a, b]).unwrap_err();
    assert_eq!(error.to_string(), "`matmul` takes A [.., M, K] and B [.., K, N] of one float type, got f32[2, 3], f32[4, 5]");
}
