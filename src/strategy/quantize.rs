//! Quantisation of trained weights: symmetric grids, integer sums or fp32 ones, everything outside products in fp32.
//!
//! int8: weights per output channel; activations per tensor with ranges from calibration rows (Jacob et al. 2018; Wu et al. 2020), or at
//! run time: per row into a linear layer, per tensor into a convolution, whose windows overlap. int4: weights alone, in groups along the
//! inputs (`int4`), of a convolution the taps of its window times its channels; its weights are widened before it in every step, once for
//! all pixels.

use super::{Calibration, LayerFormat, StrategyError, Tensor, Weights, int4::Grid};
use crate::{
    graph::{Activation, Graph, Op, Role, ValueId, Window},
    vocab::{DType, Quantization, Range, Rounding},
};

/// The fused graph with the input of every product marked as output `into WEIGHT`, for calibration.
pub fn watch_inputs(graph: &Graph) -> Graph {
    let mut out = graph.clone();
    for node in &graph.nodes {
        if let Some(w) = quantizable(graph, &node.op, &node.inputs) {
            out.mark_output(&format!("into {}", graph.value(w).name), node.inputs[0]);
        }
    }
    out
}

/// Weights of the products of a fused graph that can be quantised, in its order.
pub fn quantizable_weights(graph: &Graph) -> Vec<String> {
    let weights = graph.nodes.iter().filter_map(|node| quantizable(graph, &node.op, &node.inputs));
    weights.map(|w| graph.value(w).name.clone()).collect()
}

fn quantizable(graph: &Graph, op: &Op, inputs: &[ValueId]) -> Option<ValueId> {
    let w = *inputs.get(1)?;
    let fits = matches!(op, Op::Linear { .. } | Op::Conv2d { .. } | Op::ConvReluPool { .. }) && inputs.len() == 3;
    (fits && matches!(graph.value(w).role, Role::Parameter { .. })).then_some(w)
}

/// The window of the convolution with `weight` of a fused graph; none for another product.
pub fn window_of(graph: &Graph, weight: &str) -> Option<Window> {
    graph.nodes.iter().find_map(|node| {
        let w = quantizable(graph, &node.op, &node.inputs)?;
        match node.op {
            Op::Conv2d { window, .. } | Op::ConvReluPool { window } if graph.value(w).name == weight => Some(window),
            _ => None,
        }
    })
}

/// What the product with `weight` becomes.
fn format_of(quantization: Quantization, calibration: &Calibration, weight: &str) -> Result<LayerFormat, StrategyError> {
    Ok(match quantization {
        Quantization::Int8(range) => LayerFormat::Int8(range),
        Quantization::Int8Aware { .. } => LayerFormat::Int8(Range::Largest),
        Quantization::Int8Dynamic => LayerFormat::Int8Dynamic,
        Quantization::Int4 { group, rounding } => LayerFormat::Int4 { group, rounding },
        Quantization::Mixed(_) => calibration.choice(weight)?,
    })
}

/// A quantised graph with what it asks for.
#[derive(Clone, Debug)]
pub struct Quantized {
    pub graph: Graph,
    /// Whole numbers as floats.
    pub weights: Weights,
}

/// Rewrites a fused fp32 inference graph: products get weights `NAME.int8` or `NAME.int4` and `NAME.scale` in place of `NAME`.
pub fn quantize(
    graph: &Graph,
    weights: &Weights,
    calibration: &Calibration,
    quantization: Quantization,
) -> Result<Quantized, StrategyError> {
    let mut out = Graph::new();
    let mut now: Vec<Option<ValueId>> = vec![None; graph.values.len()];
    let mut quantized = weights.clone();
    // What each node becomes; `None` for what is no product, or stays one in fp32.
    let mut formats: Vec<Option<(ValueId, LayerFormat)>> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let mut format = None;
        if let Some(w) = quantizable(graph, &node.op, &node.inputs) {
            let of_layer = format_of(quantization, calibration, &graph.value(w).name)?;
            format = (of_layer != LayerFormat::Fp32).then_some((w, of_layer));
        }
        formats.push(format);
    }
    let replaced: Vec<ValueId> = formats.iter().flatten().map(|(w, _)| *w).collect();
    if replaced.is_empty() && !matches!(quantization, Quantization::Mixed(_)) {
        return Err(StrategyError::NothingToCompress { compression: quantization.to_string() });
    }
    for id in graph.ids() {
        let value = graph.value(id);
        if value.role != Role::Intermediate && !replaced.contains(&id) {
            out.values.push(value.clone());
            now[id.0] = Some(ValueId(out.values.len() - 1));
        }
    }
    for (node, format) in graph.nodes.iter().zip(&formats) {
        let find = |id: &ValueId| now[id.0].expect("written before it is read");
        let Some((w, format)) = *format else {
            let inputs: Vec<ValueId> = node.inputs.iter().map(find).collect();
            for (old, new) in node.outputs.iter().zip(out.apply_all(node.op.clone(), &inputs)?) {
                now[old.0] = Some(new);
            }
            continue;
        };
        let name = graph.value(w).name.clone();
        let tensor = quantized.get(&name)?.clone();
        let [numbers, scales] = match format {
            LayerFormat::Int4 { group, rounding } => in_groups(&tensor, group, rounding, calibration)?,
            _ => per_channel(&tensor),
        };
        let of = if matches!(format, LayerFormat::Int4 { .. }) { DType::F16 } else { DType::F32 };
        let weight = out.state(&numbers.name, &numbers.shape, DType::I8);
        let scale = out.state(&scales.name, &scales.shape, of);
        quantized.tensors.retain(|t| t.name != name);
        quantized.tensors.extend([scales, numbers]);
        let (x, bias) = (find(&node.inputs[0]), find(&node.inputs[2]));
        let operands = [x, weight, scale, bias];
        let input_scale = match format {
            LayerFormat::Int8(range) => calibration.scale(&name, range)?,
            _ => 1.0,
        };
        let result = match (node.op.clone(), format) {
            (Op::Linear { activation }, LayerFormat::Int4 { group, .. }) => {
                out.apply(Op::LinearInt4 { group, activation }, &operands)?
            }
            (Op::Linear { activation }, LayerFormat::Int8Dynamic) => {
                out.apply(Op::LinearInt8Dynamic { activation }, &operands)?
            }
            (Op::Linear { activation }, _) => out.apply(Op::LinearInt8 { input_scale, activation }, &operands)?,
            (convolution, LayerFormat::Int4 { group, .. }) => {
                let shape = tensor.shape.clone();
                let wide = out.apply(Op::DequantizeInt4 { shape, group }, &[weight, scale])?;
                out.apply(convolution, &[x, wide, bias])?
            }
            (convolution, _) => {
                let (window, activation, pool) = match convolution {
                    Op::Conv2d { window, activation } => (window, activation, None),
                    Op::ConvReluPool { window } => (window, Activation::Relu, Some(Window::square(2, 2, 0))),
                    _ => return Err(StrategyError::NothingToCompress { compression: format!("{format} for `{name}`") }),
                };
                let op = match format {
                    LayerFormat::Int8Dynamic => Op::Conv2dInt8Dynamic { window, activation },
                    _ => Op::Conv2dInt8 { window, input_scale, activation },
                };
                let y = out.apply(op, &operands)?;
                pool.map_or(Ok(y), |window| out.apply(Op::MaxPool2d { window }, &[y]))?
            }
        };
        now[node.outputs[0].0] = Some(result);
    }
    for (name, id) in &graph.outputs {
        out.mark_output(name, now[id.0].expect("outputs are written"));
    }
    Ok(Quantized { graph: out, weights: quantized })
}

/// Whole numbers in -127..=127 and the size of a step for every output channel.
fn per_channel(tensor: &Tensor) -> [Tensor; 2] {
    let outputs = *tensor.shape.last().expect("a weight has axes");
    let mut scales = vec![0.0f32; outputs];
    for (k, v) in tensor.data.iter().enumerate() {
        scales[k % outputs] = scales[k % outputs].max(v.abs() / 127.0);
    }
    scales.iter_mut().filter(|s| **s == 0.0).for_each(|s| *s = 1.0);
    let grid = tensor.data.iter().enumerate().map(|(k, v)| (v / scales[k % outputs]).round().clamp(-127.0, 127.0)).collect();
    let name = |what: &str| format!("{}.{what}", tensor.name);
    [
        Tensor { name: name("int8"), shape: tensor.shape.clone(), data: grid },
        Tensor { name: name("scale"), shape: vec![outputs], data: scales },
    ]
}

/// Bytes of two 4-bit numbers, and the step of every group and output.
fn in_groups(tensor: &Tensor, group: usize, rounding: Rounding, calibration: &Calibration) -> Result<[Tensor; 2], StrategyError> {
    let n = *tensor.shape.last().expect("a weight has axes");
    let k = tensor.data.len() / n;
    let matrix = Tensor { shape: vec![k, n], ..tensor.clone() };
    let grid = match rounding {
        Rounding::Nearest => Grid::nearest(&matrix, group),
        Rounding::Gptq => Grid::least_error(&matrix, group, calibration.rows(&tensor.name)?),
    };
    let name = |what: &str| format!("{}.{what}", tensor.name);
    Ok([
        Tensor { name: name("int4"), shape: vec![k.div_ceil(2), n], data: grid.packed(n) },
        Tensor { name: name("scale"), shape: vec![k.div_ceil(group), n], data: grid.scales },
    ])
}

/// The forward graph for training that knows what int8 will do to it: before fusion, each product that `quantize` would replace reads
/// its weight on a grid per output channel, made anew every step, and its input on a grid whose step is the state `WEIGHT.step`, a
/// scalar (Jacob et al. 2018). Gradients go straight through.
pub fn simulate_int8(forward: &Graph, weights: &[String]) -> Result<Graph, StrategyError> {
    let mut out = Graph::new();
    let mut now: Vec<Option<ValueId>> = vec![None; forward.values.len()];
    for id in forward.ids() {
        let value = forward.value(id);
        if value.role != Role::Intermediate {
            out.values.push(value.clone());
            now[id.0] = Some(ValueId(out.values.len() - 1));
        }
    }
    let mut simulated = 0;
    for node in &forward.nodes {
        let mut inputs: Vec<ValueId> = node.inputs.iter().map(|id| now[id.0].expect("written before it is read")).collect();
        let product = matches!(node.op, Op::MatMul { transpose_a: false, transpose_b: false } | Op::Conv2d { .. });
        if product && weights.contains(&forward.value(node.inputs[1]).name) {
            let name = forward.value(node.inputs[1]).name.clone();
            let step = out.state(&step_name(&name), &[], DType::F32);
            let scales = out.apply(Op::ChannelScale, &[inputs[1]])?;
            inputs[0] = out.apply(Op::FakeQuantize, &[inputs[0], step])?;
            inputs[1] = out.apply(Op::FakeQuantize, &[inputs[1], scales])?;
            simulated += 1;
        }
        for (old, new) in node.outputs.iter().zip(out.apply_all(node.op.clone(), &inputs)?) {
            now[old.0] = Some(new);
        }
    }
    if simulated != weights.len() {
        return Err(StrategyError::NothingToCompress { compression: "int8-qat".into() });
    }
    for (name, id) in &forward.outputs {
        out.mark_output(name, now[id.0].expect("outputs are written"));
    }
    Ok(out)
}

/// The state that holds the step of the grid of what enters the product with `weight`.
pub fn step_name(weight: &str) -> String {
    format!("{weight}.step")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_channel_uses_its_whole_grid_and_errs_by_half_a_step_at_most() {
        let data: Vec<f32> = (0..40).map(|k| ((k * 7919) % 101) as f32 / 50.0 - 1.0).collect();
        let tensor = Tensor { name: "w".into(), shape: vec![8, 5], data: data.clone() };
        let [Tensor { data: grid, .. }, Tensor { data: scales, .. }] = per_channel(&tensor);
        for c in 0..5 {
            let most = grid.iter().skip(c).step_by(5).fold(0.0f32, |m, v| m.max(v.abs()));
            assert_eq!(most, 127.0);
        }
        for (k, (q, v)) in grid.iter().zip(&data).enumerate() {
            assert!(q.fract() == 0.0 && (q * scales[k % 5] - v).abs() <= scales[k % 5] * 0.501);
        }
    }

    /// Convolution, ReLU, pool, linear, ReLU, linear.
    fn network() -> (Graph, Weights) {
        let mut g = Graph::new();
        let x = g.input("x", &[2, 8, 8, 1], DType::F32);
        let (w, b) = (g.weight("conv", &[3, 3, 1, 4], 9, 36), g.bias("b", 4, 9));
        let (v, c) = (g.weight("first", &[64, 6], 64, 6), g.bias("c", 6, 64));
        let (u, d) = (g.weight("second", &[6, 3], 6, 3), g.bias("d", 3, 6));
        let window = Window::square(3, 1, 1);
        let relu = Op::Unary(crate::graph::Unary::Relu);
        let product = Op::MatMul { transpose_a: false, transpose_b: false };
        let mut y = g.apply(Op::Conv2d { window, activation: Activation::None }, &[x, w]).unwrap();
        y = g.apply(Op::AddBias, &[y, b]).unwrap();
        y = g.apply(relu.clone(), &[y]).unwrap();
        y = g.apply(Op::MaxPool2d { window: Window::square(2, 2, 0) }, &[y]).unwrap();
        y = g.apply(Op::Reshape { shape: vec![2, 64] }, &[y]).unwrap();
        y = g.apply(product.clone(), &[y, v]).unwrap();
        y = g.apply(Op::AddBias, &[y, c]).unwrap();
        y = g.apply(relu, &[y]).unwrap();
        y = g.apply(product, &[y, u]).unwrap();
        y = g.apply(Op::AddBias, &[y, d]).unwrap();
        g.mark_output("logits", y);
        let of = |id: ValueId| {
            let value = g.value(id);
            let data = (0..value.elements()).map(|k| ((k * 7919 + id.0 * 31) % 101) as f32 / 50.0 - 1.0).collect();
            Tensor { name: value.name.clone(), shape: value.shape.clone(), data }
        };
        let tensors = g.parameters().map(of).collect();
        (g, Weights { tensors })
    }

    fn calibration(graph: &Graph) -> Calibration {
        let mut calibration = Calibration::keeping_rows(8);
        assert_eq!(quantizable_weights(graph), ["conv", "first", "second"]);
        for (weight, width) in [("first", 64), ("second", 6)] {
            assert_eq!(window_of(graph, weight), None);
            calibration.observe(weight, width, &vec![0.5; 4 * width]);
        }
        let window = window_of(graph, "conv").unwrap();
        calibration.observe_images("conv", &window, [1, 4, 4, 1], &[0.5; 16]);
        calibration
    }

    #[test]
    fn each_word_replaces_its_products_and_leaves_the_others() {
        let (graph, weights) = network();
        let fused = crate::graph::fuse(graph, false);
        let mut calibration = calibration(&fused);
        calibration.choices = vec![
            ("conv".into(), LayerFormat::Fp32),
            ("first".into(), LayerFormat::Int4 { group: 32, rounding: Rounding::Nearest }),
            ("second".into(), LayerFormat::Int8(Range::Entropy)),
        ];
        let ops = |word: &str, calibration: &Calibration| -> Vec<&'static str> {
            let made = quantize(&fused, &weights, calibration, word.parse().unwrap()).unwrap();
            // Whatever the graph keeps has its tensor.
            for id in made.graph.ids().filter(|id| !matches!(made.graph.value(*id).role, Role::Intermediate | Role::Input)) {
                let value = made.graph.value(id);
                assert_eq!(made.weights.get(&value.name).unwrap().shape, value.shape, "{word}: {}", value.name);
            }
            // Bytes of two numbers, and the steps of their groups: 9 taps of one channel, 64 inputs.
            if word.starts_with("int4") {
                let shape = |name: &str| made.weights.get(name).unwrap().shape.clone();
                assert_eq!([shape("conv.int4"), shape("conv.scale")], [[5, 4], [1, 4]], "{word}");
                let groups = if word == "int4:32" { 2 } else { 1 };
                assert_eq!([shape("first.int4"), shape("first.scale")], [[32, 6], [groups, 6]], "{word}");
            }
            made.graph.nodes.iter().map(|node| node.op.name()).collect()
        };
        let pool = "conv2d_relu_max_pool";
        assert_eq!(ops("int8", &calibration), ["conv2d_int8", "max_pool2d", "reshape", "linear_int8", "linear_int8"]);
        assert_eq!(
            ops("int8-dynamic", &calibration),
            ["conv2d_int8_dynamic", "max_pool2d", "reshape", "linear_int8_dynamic", "linear_int8_dynamic"]
        );
        for word in ["int4:32", "int4-gptq"] {
            assert_eq!(ops(word, &calibration), ["dequantize_int4", pool, "reshape", "linear_int4", "linear_int4"], "{word}");
        }
        assert_eq!(ops("mixed:size=0.5", &calibration), [pool, "reshape", "linear_int4", "linear_int8"]);
        calibration.choices[0].1 = LayerFormat::Int4 { group: 32, rounding: Rounding::Nearest };
        assert_eq!(ops("mixed:size=0.5", &calibration), ["dequantize_int4", pool, "reshape", "linear_int4", "linear_int8"]);
    }

    #[test]
    fn simulated_products_read_grids_and_what_they_train_is_the_weight_itself() {
        let (graph, _) = network();
        let names = quantizable_weights(&crate::graph::fuse(graph.clone(), false));
        let simulated = simulate_int8(&graph, &names).unwrap();
        let ops: Vec<_> = crate::graph::fuse(simulated.clone(), true).nodes.iter().map(|node| node.op.name()).collect();
        assert_eq!(ops.iter().filter(|op| **op == "fake_quantize").count(), 6);
        assert_eq!(ops.iter().filter(|op| **op == "channel_scale").count(), 3);
        assert_eq!(ops.iter().filter(|op| op.starts_with("linear") || op.starts_with("conv2d")).count(), 3);
        let parameters = |graph: &Graph| graph.parameters().map(|id| graph.value(id).name.clone()).collect::<Vec<_>>();
        assert_eq!(parameters(&graph), parameters(&simulated));
        assert!(simulated.find("first.step").is_some());
        assert!(simulate_int8(&graph, &["other".to_string()]).is_err());
    }
}
