//! Fusion: chains that a kernel can do in one pass over memory become one op.
//!
//! `matmul + add_bias (+ relu | gelu)` to `linear`; `conv2d + add_bias (+ relu | gelu)` to `conv2d`; and that with a ReLU and a 2x2
//! max pool behind it to `conv2d_relu_max_pool`. A value that anyone else reads is never swallowed.

use super::{Activation, Graph, Node, Op, Unary, ValueId, Window};
use std::collections::HashMap;

/// Fuses `graph`. With `training`, GELU stays on its own, because its gradient needs the value before it.
pub fn fuse(mut graph: Graph, training: bool) -> Graph {
    while let Some((producer, consumer, fused)) = candidate(&graph, training) {
        graph.nodes[consumer] = fused;
        graph.nodes.remove(producer);
    }
    graph
}

/// The first producer and consumer that can be one node, and that node.
fn candidate(graph: &Graph, training: bool) -> Option<(usize, usize, Node)> {
    let mut readers: HashMap<ValueId, (usize, usize)> = HashMap::new();
    for (at, node) in graph.nodes.iter().enumerate() {
        for id in &node.inputs {
            readers.entry(*id).and_modify(|(count, _)| *count += 1).or_insert((1, at));
        }
    }
    graph.nodes.iter().enumerate().find_map(|(at, node)| {
        let y = *node.outputs.first()?;
        let only_reader = match readers.get(&y) {
            Some((1, reader)) if !graph.is_output(y) => *reader,
            _ => return None,
        };
        let fused = pair(graph, node, &graph.nodes[only_reader], training)?;
        Some((at, only_reader, fused))
    })
}

/// `first` and the only reader of its result as one node.
fn pair(graph: &Graph, first: &Node, second: &Node, training: bool) -> Option<Node> {
    let node = |op: Op, inputs: Vec<ValueId>| Some(Node { op, inputs, outputs: second.outputs.clone() });
    let bias_added = matches!(second.op, Op::AddBias) && second.inputs[0] == first.outputs[0];
    let tail = match second.op {
        Op::Unary(Unary::Relu) => Some(Activation::Relu),
        Op::Unary(Unary::Gelu) if !training => Some(Activation::Gelu),
        _ => None,
    };
    let with = |extra: ValueId| first.inputs.iter().copied().chain([extra]).collect::<Vec<_>>();
    match &first.op {
        Op::MatMul { transpose_a: false, transpose_b: false } if bias_added && graph.shape(first.inputs[1]).len() == 2 => {
            node(Op::Linear { activation: Activation::None }, with(second.inputs[1]))
        }
        Op::Linear { activation: Activation::None } => node(Op::Linear { activation: tail? }, first.inputs.clone()),
        Op::Conv2d { window, activation: Activation::None } => {
            if bias_added && first.inputs.len() == 2 {
                return node(Op::Conv2d { window: *window, activation: Activation::None }, with(second.inputs[1]));
            }
            node(Op::Conv2d { window: *window, activation: tail? }, first.inputs.clone())
        }
        Op::Conv2d { window, activation: Activation::Relu } if first.inputs.len() == 3 && window.stride == [1, 1] => {
            let pools = matches!(&second.op, Op::MaxPool2d { window } if *window == Window::square(2, 2, 0));
            // The pool's index and the fused code differ in meaning; only gradients read either, and they are not there yet.
            let index_unread = second.outputs.get(1).is_some_and(|index| graph.consumers(*index).is_empty());
            if pools && index_unread { node(Op::ConvReluPool { window: *window }, first.inputs.clone()) } else { None }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::DType;

    #[test]
    fn a_network_fuses_to_its_layers_and_an_output_in_the_middle_stays() {
        let mut graph = Graph::new();
        let x = graph.input("x", &[2, 8, 8, 1], DType::F32);
        let (w, b) = (graph.weight("w", &[3, 3, 1, 4], 9, 36), graph.bias("b", 4, 9));
        let (v, c) = (graph.weight("v", &[64, 5], 64, 5), graph.bias("c", 5, 64));
        let window = Window::square(3, 1, 1);
        let y = graph.apply(Op::Conv2d { window, activation: Activation::None }, &[x, w]).unwrap();
        let y = graph.apply(Op::AddBias, &[y, b]).unwrap();
        let y = graph.apply(Op::Unary(Unary::Relu), &[y]).unwrap();
        let y = graph.apply(Op::MaxPool2d { window: Window::square(2, 2, 0) }, &[y]).unwrap();
        let y = graph.apply(Op::Reshape { shape: vec![2, 64] }, &[y]).unwrap();
        let y = graph.apply(Op::MatMul { transpose_a: false, transpose_b: false }, &[y, v]).unwrap();
        let y = graph.apply(Op::AddBias, &[y, c]).unwrap();
        graph.mark_output("before", y);
        let y = graph.apply(Op::Unary(Unary::Relu), &[y]).unwrap();
        graph.mark_output("after", y);
        let names: Vec<_> = fuse(graph, true).nodes.iter().map(|n| n.op.name()).collect();
        assert_eq!(names, ["conv2d_relu_max_pool", "reshape", "linear", "relu"]);
    }
}
