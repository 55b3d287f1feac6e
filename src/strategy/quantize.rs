//! Quantisation of trained weights: symmetric grids, integer sums or fp32 ones, everything outside products in fp32.
//!
//! int8: weights per output channel; activations per tensor with ranges from calibration rows (Jacob et al. 2018; Wu et al. 2020), or per
//! row at run time. int4: weights alone, in groups along the input axis (`int4`).

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

/// What the product with `weight` becomes. 4-bit weights and grids of single rows are for linear layers: a convolution reads its few
/// weights for every pixel, so they are not what it waits for, and its rows overlap.
fn format_of(quantization: Quantization, calibration: &Calibration, op: &Op, weight: &str) -> Result<LayerFormat, StrategyError> {
    let is_linear = matches!(op, Op::Linear { .. });
    Ok(match quantization {
        Quantization::Int8(range) => LayerFormat::Int8(range),
        Quantization::Int8Aware { .. } => LayerFormat::Int8(Range::Largest),
        Quantization::Int8Dynamic if is_linear => LayerFormat::Int8Dynamic,
        Quantization::Int4 { group, rounding } if is_linear => LayerFormat::Int4 { group, rounding },
        Quantization::Int8Dynamic | Quantization::Int4 { .. } => LayerFormat::Fp32,
        Quantization::Mixed(_) => calibration.choice(weight)?,
    })
}

/// A quantised graph with what it asks for.
#[derive(Clone, Debug)]
pub struct Quantized {
    pub graph: Graph,
    /// Whole numbers as floats.
    pub weights: Weights,
    /// Products that stay in fp32, by weight.
    pub kept: Vec<String>,
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
    let (mut quantized, mut kept) = (weights.clone(), Vec::new());
    // What each node becomes; `None` for what is no product, or stays one in fp32.
    let mut formats: Vec<Option<(ValueId, LayerFormat)>> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let mut format = None;
        if let Some(w) = quantizable(graph, &node.op, &node.inputs) {
            let name = &graph.value(w).name;
            match format_of(quantization, calibration, &node.op, name)? {
                LayerFormat::Fp32 => kept.push(name.clone()),
                other => format = Some((w, other)),
            }
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
        let operands = [find(&node.inputs[0]), weight, scale, find(&node.inputs[2])];
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
            (Op::Conv2d { window, activation }, LayerFormat::Int8(_)) => {
                out.apply(Op::Conv2dInt8 { window, input_scale, activation }, &operands)?
            }
            (Op::ConvReluPool { window }, LayerFormat::Int8(_)) => {
                let y = out.apply(Op::Conv2dInt8 { window, input_scale, activation: Activation::Relu }, &operands)?;
                out.apply(Op::MaxPool2d { window: Window::square(2, 2, 0) }, &[y])?
            }
            _ => return Err(StrategyError::NothingToCompress { compression: format!("{format} for `{name}`") }),
        };
        now[node.outputs[0].0] = Some(result);
    }
    for (name, id) in &graph.outputs {
        out.mark_output(name, now[id.0].expect("outputs are written"));
    }
    Ok(Quantized { graph: out, weights: quantized, kept })
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
    let (k, n) = (tensor.shape[0], tensor.shape[1]);
    let grid = match rounding {
        Rounding::Nearest => Grid::nearest(tensor, group),
        Rounding::Gptq => Grid::least_error(tensor, group, calibration.rows(&tensor.name)?),
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
        for (weight, width) in [("conv", 1), ("first", 64), ("second", 6)] {
            assert!(quantizable_weights(graph).iter().any(|name| name == weight));
            calibration.observe(weight, width, &vec![0.5; 4 * width]);
        }
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
        let ops = |word: &str| -> (Vec<&'static str>, Vec<String>) {
            let made = quantize(&fused, &weights, &calibration, word.parse().unwrap()).unwrap();
            // Whatever the graph keeps has its tensor.
            for id in made.graph.ids().filter(|id| !matches!(made.graph.value(*id).role, Role::Intermediate | Role::Input)) {
                let value = made.graph.value(id);
                assert_eq!(made.weights.get(&value.name).unwrap().shape, value.shape, "{word}: {}", value.name);
            }
            (made.graph.nodes.iter().map(|node| node.op.name()).collect(), made.kept)
        };
        let (pool, no) = ("conv2d_relu_max_pool", Vec::<String>::new());
        assert_eq!(ops("int8"), (vec!["conv2d_int8", "max_pool2d", "reshape", "linear_int8", "linear_int8"], no));
        let kept = vec!["conv".to_string()];
        assert_eq!(ops("int8-dynamic"), (vec![pool, "reshape", "linear_int8_dynamic", "linear_int8_dynamic"], kept.clone()));
        assert_eq!(ops("int4:32"), (vec![pool, "reshape", "linear_int4", "linear_int4"], kept.clone()));
        assert_eq!(ops("int4-gptq"), (vec![pool, "reshape", "linear_int4", "linear_int4"], kept.clone()));
        assert_eq!(ops("mixed:size=0.5"), (vec![pool, "reshape", "linear_int4", "linear_int8"], kept));
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
