//! 8-bit floating-point products (Micikevicius et al. 2022): e4m3 for activations and weights, e5m2 for the gradients that enter products,
//! each tensor scaled by a power of two to fit. In training the scale follows the largest numbers of the last steps (delayed scaling, as in
//! NVIDIA's Transformer Engine); for answers it comes from calibration. Rounded numbers lie in bf16, which holds them exactly: products are
//! those of 8-bit operands, whatever multiplies them.

use super::{Calibration, LowPrecision, StrategyError, Weights, precision::takes_fp8};
use crate::{
    graph::{Exchange, Graph, Node, Op, Role, ValueId},
    vocab::{DType, Fp8Format},
};
use std::collections::HashMap;

/// Steps whose largest numbers decide the scale: a spike is forgotten after as many, and a slow growth never outruns the margin.
const WINDOW: usize = 16;

/// Doublings left above the largest number seen. Between two steps the largest number of a tensor rarely doubles; what does saturates.
const MARGIN: u32 = 1;

const FORWARD: Fp8Format = Fp8Format::E4m3;
const BACKWARD: Fp8Format = Fp8Format::E5m2;

/// What a scale is of, as its name ends behind that of the weight of the product.
const INPUT: &str = ".fp8.input";
const WEIGHT: &str = ".fp8.weight";
const GRADIENT: &str = ".fp8.gradient";

/// Rounds the operands of products in a fused graph on bf16 storage, for training: weights from their fp32 masters, which then need no other
/// copy. `append_scaling` must end the step.
pub fn round_products(low: LowPrecision) -> Result<LowPrecision, StrategyError> {
    let LowPrecision { graph, mut copies } = low;
    let rounded = round(&graph, Some(&copies))?;
    copies.retain(|(_, copy)| !rounded.consumers(*copy).is_empty());
    Ok(LowPrecision { graph: rounded, copies })
}

/// The same for answers, where `round_weights` has rounded the weights: only activations are left to round, by scales that
/// `input_scales` makes.
pub fn round_inputs(graph: &Graph) -> Result<Graph, StrategyError> {
    round(graph, None)
}

/// `copies`: masters with their narrow copies, where weights are rounded as well and gradients will be.
fn round(graph: &Graph, copies: Option<&[(ValueId, ValueId)]>) -> Result<Graph, StrategyError> {
    // Values keep their numbers.
    let mut out = Graph { values: graph.values.clone(), ..Graph::new() };
    let mut inputs: HashMap<ValueId, ValueId> = HashMap::new();
    // What stands for the results of products.
    let mut now: HashMap<ValueId, ValueId> = HashMap::new();
    for old in &graph.nodes {
        let mut node = old.clone();
        node.inputs.iter_mut().for_each(|id| *id = now.get(id).copied().unwrap_or(*id));
        if !takes_fp8(graph, old) {
            out.nodes.push(node);
            continue;
        }
        let weight = weight_name(graph, node.inputs[1]);
        let x = node.inputs[0];
        node.inputs[0] = match inputs.get(&x) {
            Some(rounded) => *rounded,
            None => {
                let scale = out.state(&format!("{weight}{INPUT}"), &[], DType::F32);
                let op = Op::RoundFp8 { format: FORWARD, to: out.dtype(x) };
                out.apply_all(op, &[x, scale])?[0]
            }
        };
        inputs.insert(x, node.inputs[0]);
        let Some(copies) = copies else {
            out.nodes.push(node);
            continue;
        };
        let copy = node.inputs[1];
        let only_products = graph.consumers(copy).iter().all(|at| takes_fp8(graph, &graph.nodes[*at]));
        let master = copies.iter().find(|(_, low)| *low == copy).map(|(master, _)| *master).filter(|_| only_products);
        let scale = out.state(&weight_scale_name(&weight), &[], DType::F32);
        let op = Op::RoundFp8 { format: FORWARD, to: out.dtype(copy) };
        node.inputs[1] = out.apply_all(op, &[master.unwrap_or(copy), scale])?[0];
        let y = node.outputs[0];
        out.nodes.push(node);
        let scale = out.state(&format!("{weight}{GRADIENT}"), &[], DType::F32);
        now.insert(y, out.apply(Op::RoundGradient { format: BACKWARD }, &[y, scale])?);
    }
    out.outputs = graph.outputs.iter().map(|(name, id)| (name.clone(), now.get(id).copied().unwrap_or(*id))).collect();
    Ok(out)
}

/// `fc1.weight` of a parameter or of its copy `fc1.weight.bf16`.
fn weight_name(graph: &Graph, id: ValueId) -> String {
    let name = &graph.value(id).name;
    name.strip_suffix(".bf16").unwrap_or(name).to_string()
}

/// Ends a training step: every scale moves on by what its tensor was in this step, on all ranks alike where `is_shared`.
pub fn append_scaling(graph: &mut Graph, is_shared: bool) -> Result<(), StrategyError> {
    // A tensor may be rounded piece by piece: the largest of all counts.
    let mut seen: Vec<(ValueId, Fp8Format, Vec<ValueId>)> = Vec::new();
    for Node { op, inputs, outputs } in &graph.nodes {
        let Op::RoundFp8 { format, .. } = op else { continue };
        match seen.iter_mut().find(|(scale, ..)| *scale == inputs[1]) {
            Some((_, _, largest)) => largest.push(outputs[1]),
            None => seen.push((inputs[1], *format, vec![outputs[1]])),
        }
    }
    if is_shared && !seen.is_empty() {
        let all: Vec<ValueId> = seen.iter().flat_map(|(.., largest)| largest.iter().copied()).collect();
        graph.apply_all(Op::Exchange(Exchange::LargestOfRanks), &all)?;
    }
    for (scale, format, largest) in seen {
        let name = format!("{}.history", graph.value(scale).name);
        let history = graph.state(&name, &[WINDOW], DType::F32);
        let operands: Vec<ValueId> = [scale, history].into_iter().chain(largest).collect();
        graph.apply_all(Op::MoveFp8Scale { format, margin: MARGIN }, &operands)?;
    }
    Ok(())
}

/// What the scale of a weight is called in a training step, where it has one.
pub fn weight_scale_name(weight: &str) -> String {
    format!("{weight}{WEIGHT}")
}

/// Names of the scales of activations in a graph or program, as both a training step and an answering program have them.
pub fn input_scale_names<'n>(names: impl Iterator<Item = &'n str>) -> Vec<String> {
    names.filter(|name| name.ends_with(INPUT)).map(str::to_string).collect()
}

/// The scales of activations that `graph` reads, from the ranges that calibration found.
pub fn input_scales(graph: &Graph, calibration: &Calibration) -> Result<Vec<(String, f32)>, StrategyError> {
    let names = input_scale_names(graph.values.iter().filter(|value| value.role == Role::State).map(|value| value.name.as_str()));
    let scale = |name: String| {
        let weight = name.strip_suffix(INPUT).expect("selected by it");
        let most = calibration.largest(weight).ok_or_else(|| StrategyError::NotCalibrated { weight: weight.to_string() })?;
        // All zeros: any scale will do.
        let scale = FORWARD.scale(most, MARGIN).unwrap_or(1.0);
        Ok((name, scale))
    };
    names.into_iter().map(scale).collect()
}

/// Weights that enter products in 8 bits in a fused graph of a model.
pub fn rounded_weights(graph: &Graph) -> Vec<String> {
    let products = graph.nodes.iter().filter(|node| takes_fp8(graph, node));
    products.map(|node| weight_name(graph, node.inputs[1])).collect()
}

/// Rounds the named weights in place, each by the scale that its own largest number asks for.
pub fn round_weights(weights: &mut Weights, names: &[String]) {
    for tensor in weights.tensors.iter_mut().filter(|tensor| names.contains(&tensor.name)) {
        let most = tensor.data.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        let scale = FORWARD.scale(most, MARGIN).unwrap_or(1.0);
        tensor.data.iter_mut().for_each(|v| *v = FORWARD.round(*v * scale) / scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        graph::{Unary, fuse},
        strategy::{Tensor, to_storage},
    };

    /// Three layers; the middle one is read by two products of the same x.
    fn layers() -> Graph {
        let mut g = Graph::new();
        let product = Op::MatMul { transpose_a: false, transpose_b: false };
        let mut y = g.input("x", &[4, 8], DType::F32);
        for (name, k, n) in [("first", 8, 6), ("second", 6, 6), ("third", 6, 3)] {
            let (w, b) = (g.weight(name, &[k, n], k, n), g.bias(&format!("{name}.bias"), n, k));
            let x = y;
            y = g.apply(product.clone(), &[x, w]).unwrap();
            y = g.apply(Op::AddBias, &[y, b]).unwrap();
            if name != "third" {
                y = g.apply(Op::Unary(Unary::Relu), &[y]).unwrap();
            }
            if name == "second" {
                let v = g.weight("beside", &[k, n], k, n);
                let beside = g.apply(product.clone(), &[x, v]).unwrap();
                y = g.apply(Op::Binary(crate::graph::Binary::Add), &[y, beside]).unwrap();
            }
        }
        g.mark_output("logits", y);
        g
    }

    fn training() -> LowPrecision {
        let low = to_storage(&layers(), DType::Bf16).unwrap();
        round_products(LowPrecision { graph: fuse(low.graph, true), ..low }).unwrap()
    }

    #[test]
    fn the_first_and_the_last_product_stay_and_an_activation_is_rounded_once() {
        let LowPrecision { graph, copies } = training();
        let scales: Vec<&str> = graph.values.iter().map(|v| v.name.as_str()).filter(|name| name.contains(".fp8.")).collect();
        let expected =
            ["second.fp8.input", "second.fp8.weight", "second.fp8.gradient", "beside.fp8.weight", "beside.fp8.gradient"];
        assert_eq!(scales, expected);
        // Rounded weights come from the masters; the others keep their copies.
        let names: Vec<&str> = copies.iter().map(|(master, _)| graph.value(*master).name.as_str()).collect();
        assert_eq!(names, ["first", "third"]);
        let rounded = graph.nodes.iter().filter(|node| matches!(node.op, Op::RoundFp8 { .. }));
        assert_eq!(rounded.map(|node| graph.dtype(node.inputs[0])).collect::<Vec<_>>(), [DType::Bf16, DType::F32, DType::F32]);
    }

    #[test]
    fn gradients_are_rounded_to_e5m2_before_both_products_of_the_backward_pass() {
        let LowPrecision { mut graph, copies } = training();
        let labels = graph.input("labels", &[4], DType::I32);
        let logits = graph.output("logits").unwrap();
        let loss = graph.apply(Op::CrossEntropy { rows: 4 }, &[logits, labels]).unwrap();
        let copy_of = |id: ValueId| copies.iter().find(|(master, _)| *master == id).map_or(id, |(_, copy)| *copy);
        let wrt: Vec<ValueId> = graph.parameters().map(copy_of).collect();
        let forward = graph.nodes.len();
        crate::graph::differentiate(&mut graph, loss, &wrt, None).unwrap();
        let formats = |nodes: &[Node]| {
            let format = |node: &Node| match node.op {
                Op::RoundFp8 { format, .. } => Some(format),
                _ => None,
            };
            nodes.iter().filter_map(format).collect::<Vec<_>>()
        };
        assert_eq!(formats(&graph.nodes[..forward]), [Fp8Format::E4m3; 3]);
        assert_eq!(formats(&graph.nodes[forward..]), [Fp8Format::E5m2; 2]);
        // Each rounded gradient, and what ReLU's gradient selects of it, enters the product for the weights and that for x.
        let from_rounded = |mut id: ValueId| loop {
            let Some(at) = graph.producer(id) else { return false };
            match &graph.nodes[at].op {
                Op::RoundFp8 { .. } => return true,
                Op::UnaryGrad(_) => id = graph.nodes[at].inputs[1],
                _ => return false,
            }
        };
        let products = graph.nodes[forward..].iter().filter(|node| matches!(node.op, Op::MatMul { .. }));
        let counts: Vec<usize> = products.map(|node| node.inputs.iter().filter(|id| from_rounded(**id)).count()).collect();
        // third: two in bf16 with the copy; second and beside: two each with both operands rounded; first: the weights' alone.
        assert_eq!(counts.iter().filter(|count| **count == 2).count(), 4, "{counts:?}");
        append_scaling(&mut graph, true).unwrap();
        let moves: Vec<usize> =
            graph.nodes.iter().filter(|n| matches!(n.op, Op::MoveFp8Scale { .. })).map(|n| n.inputs.len()).collect();
        assert_eq!(moves, [3; 5]);
        let shared = graph.nodes.iter().find(|n| n.op == Op::Exchange(Exchange::LargestOfRanks)).unwrap();
        assert_eq!(shared.inputs.len(), 5);
    }

    #[test]
    fn answers_read_weights_that_were_rounded_before() {
        let low = to_storage(&layers(), DType::Bf16).unwrap();
        let graph = round_inputs(&fuse(low.graph, false)).unwrap();
        assert_eq!(graph.nodes.iter().filter(|node| matches!(node.op, Op::RoundFp8 { .. })).count(), 1);
        let names = rounded_weights(&graph);
        assert_eq!(names, ["second", "beside"]);
        let data: Vec<f32> = (0..36).map(|k| (k as f32 - 17.3) / 100.0).collect();
        let tensor = |name: &str| Tensor { name: name.into(), shape: vec![6, 6], data: data.clone() };
        let mut weights = Weights { tensors: vec![tensor("first"), tensor("second")] };
        round_weights(&mut weights, &names);
        assert_eq!(weights.tensors[0].data, data);
        let rounded = &weights.tensors[1].data;
        assert_ne!(*rounded, data);
        // Four significant bits, but for the smallest.
        assert!(rounded.iter().zip(&data).all(|(got, v)| (got - v).abs() <= v.abs() / 16.0 + 1e-6), "{rounded:?}");
        let mut calibration = Calibration::default();
        assert!(matches!(input_scales(&graph, &calibration), Err(StrategyError::NotCalibrated { .. })));
        calibration.observe("second", 2, &[0.5, -3.0]);
        // 448 / 3 is 149: 128 fits, and one doubling is left.
        assert_eq!(input_scales(&graph, &calibration).unwrap(), [("second.fp8.input".to_string(), 64.0)]);
    }
}
