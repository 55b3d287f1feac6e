//! Static int8 quantisation: symmetric, weights per output channel, activations per tensor with ranges measured on calibration rows
//! (Jacob et al. 2018; Wu et al. 2020). Sums are int32; everything outside products stays fp32.

use super::{StrategyError, Tensor, Weights};
use crate::{
    graph::{Activation, Graph, Op, Role, ValueId, Window},
    vocab::DType,
};

/// Largest absolute activation that entered each product, by the name of its weight.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calibration {
    pub largest: Vec<(String, f32)>,
}

impl Calibration {
    /// Takes the activations that one batch sent into the product with `weight`.
    pub fn observe(&mut self, weight: &str, activations: &[f32]) {
        let most = activations.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        match self.largest.iter_mut().find(|(name, _)| name == weight) {
            Some((_, largest)) => *largest = largest.max(most),
            None => self.largest.push((weight.to_string(), most)),
        }
    }

    /// Size of one step of the 8-bit grid.
    fn scale(&self, weight: &str) -> Result<f64, StrategyError> {
        let found = self.largest.iter().find(|(name, _)| name == weight);
        let (_, largest) = found.ok_or_else(|| StrategyError::NotCalibrated { weight: weight.to_string() })?;
        // All zeros: any step will do.
        Ok(if *largest > 0.0 { f64::from(*largest) / 127.0 } else { 1.0 })
    }
}

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

fn quantizable(graph: &Graph, op: &Op, inputs: &[ValueId]) -> Option<ValueId> {
    let w = *inputs.get(1)?;
    let fits = matches!(op, Op::Linear { .. } | Op::Conv2d { .. } | Op::ConvReluPool { .. }) && inputs.len() == 3;
    (fits && matches!(graph.value(w).role, Role::Parameter { .. })).then_some(w)
}

/// Rewrites a fused fp32 inference graph: products become int8, with weights `NAME.int8` and `NAME.scale` in place of `NAME`.
/// The returned weights hold what the graph asks for; int8 values as whole floats.
pub fn quantize(graph: &Graph, weights: &Weights, calibration: &Calibration) -> Result<(Graph, Weights), StrategyError> {
    let mut out = Graph::new();
    let mut now: Vec<Option<ValueId>> = vec![None; graph.values.len()];
    let mut quantized = weights.clone();
    let replaced: Vec<ValueId> = graph.nodes.iter().filter_map(|n| quantizable(graph, &n.op, &n.inputs)).collect();
    if replaced.is_empty() {
        return Err(StrategyError::NothingToCompress { compression: "int8".into() });
    }
    for id in graph.ids() {
        let value = graph.value(id);
        if value.role != Role::Intermediate && !replaced.contains(&id) {
            out.values.push(value.clone());
            now[id.0] = Some(ValueId(out.values.len() - 1));
        }
    }
    for node in &graph.nodes {
        let find = |id: &ValueId| now[id.0].expect("written before it is read");
        let Some(w) = quantizable(graph, &node.op, &node.inputs) else {
            let inputs: Vec<ValueId> = node.inputs.iter().map(find).collect();
            for (old, new) in node.outputs.iter().zip(out.apply_all(node.op.clone(), &inputs)?) {
                now[old.0] = Some(new);
            }
            continue;
        };
        let name = graph.value(w).name.clone();
        let input_scale = calibration.scale(&name)?;
        let tensor = quantized.get(&name)?.clone();
        let (grid, scales) = per_channel(&tensor);
        let (int8_name, scale_name) = (format!("{name}.int8"), format!("{name}.scale"));
        let weight = out.state(&int8_name, &tensor.shape, DType::I8);
        let scale = out.state(&scale_name, &[scales.len()], DType::F32);
        quantized.tensors.retain(|t| t.name != name);
        quantized.tensors.push(Tensor { name: scale_name, shape: vec![scales.len()], data: scales });
        quantized.tensors.push(Tensor { name: int8_name, shape: tensor.shape, data: grid });
        let operands = [find(&node.inputs[0]), weight, scale, find(&node.inputs[2])];
        let result = match node.op.clone() {
            Op::Linear { activation } => out.apply(Op::LinearInt8 { input_scale, activation }, &operands)?,
            Op::Conv2d { window, activation } => out.apply(Op::Conv2dInt8 { window, input_scale, activation }, &operands)?,
            Op::ConvReluPool { window } => {
                let y = out.apply(Op::Conv2dInt8 { window, input_scale, activation: Activation::Relu }, &operands)?;
                out.apply(Op::MaxPool2d { window: Window::square(2, 2, 0) }, &[y])?
            }
            _ => unreachable!("quantizable names these three"),
        };
        now[node.outputs[0].0] = Some(result);
    }
    for (name, id) in &graph.outputs {
        out.mark_output(name, now[id.0].expect("outputs are written"));
    }
    Ok((out, quantized))
}

/// Whole numbers in -127..=127 and the size of a step for every output channel.
fn per_channel(tensor: &Tensor) -> (Vec<f32>, Vec<f32>) {
    let outputs = *tensor.shape.last().expect("a weight has axes");
    let mut scales = vec![0.0f32; outputs];
    for (k, v) in tensor.data.iter().enumerate() {
        scales[k % outputs] = scales[k % outputs].max(v.abs() / 127.0);
    }
    scales.iter_mut().filter(|s| **s == 0.0).for_each(|s| *s = 1.0);
    let grid = tensor.data.iter().enumerate().map(|(k, v)| (v / scales[k % outputs]).round().clamp(-127.0, 127.0)).collect();
    (grid, scales)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_channel_uses_its_whole_grid_and_errs_by_half_a_step_at_most() {
        let data: Vec<f32> = (0..40).map(|k| ((k * 7919) % 101) as f32 / 50.0 - 1.0).collect();
        let tensor = Tensor { name: "w".into(), shape: vec![8, 5], data: data.clone() };
        let (grid, scales) = per_channel(&tensor);
        for c in 0..5 {
            let most = grid.iter().skip(c).step_by(5).fold(0.0f32, |m, v| m.max(v.abs()));
            assert_eq!(most, 127.0);
        }
        for (k, (q, v)) in grid.iter().zip(&data).enumerate() {
            assert!(q.fract() == 0.0 && (q * scales[k % 5] - v).abs() <= scales[k % 5] * 0.501);
        }
    }
}
