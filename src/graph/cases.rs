//! Small graphs that together use every op of a model: one table for the tests of autodiff and of lowering, and for the checks of devices.

use super::{Activation, Binary, Graph, Op, Role, Unary, ValueId, Window, differentiate};
use crate::{stats::Generator, vocab::DType};

/// A forward graph; `build` returns the value that becomes the logits.
pub(crate) struct Case {
    pub name: &'static str,
    build: fn(&mut Graph) -> ValueId,
}

const MATMUL: Op = Op::MatMul { transpose_a: false, transpose_b: false };

fn apply(g: &mut Graph, op: Op, inputs: &[ValueId]) -> ValueId {
    g.apply(op, inputs).expect("the cases fit their ops")
}

fn weight(g: &mut Graph, name: &str, shape: &[usize]) -> ValueId {
    g.weight(name, shape, 1, 1)
}

fn conv(g: &mut Graph, window: Window, image: [usize; 4], channels: usize, bias: bool) -> ValueId {
    let x = weight(g, "x", &image);
    let w = weight(g, "w", &[window.size[0], window.size[1], image[3], channels]);
    let y = apply(g, Op::Conv2d { window, activation: Activation::None }, &[x, w]);
    if !bias {
        return y;
    }
    let b = g.bias("b", channels, 1);
    apply(g, Op::AddBias, &[y, b])
}

/// One encoder block of a transformer over `[B, T, C]`, two heads, pre-norm (Xiong et al. 2020).
fn transformer(g: &mut Graph) -> ValueId {
    let (batch, time, width, heads) = (2, 5, 8, 2);
    let tokens = g.input("tokens", &[batch, time], DType::I32);
    let table = weight(g, "table", &[3, width]);
    let places = weight(g, "places", &[time, width]);
    let x = apply(g, Op::Embedding, &[table, tokens]);
    let places = apply(g, Op::RepeatFirst { rows: batch }, &[places]);
    let mut x = apply(g, Op::Binary(Binary::Add), &[x, places]);
    let norm = |g: &mut Graph, name: &str, x: ValueId| {
        let gain = g.bias(&format!("{name}.gain"), width, 1);
        let bias = g.bias(&format!("{name}.bias"), width, 1);
        apply(g, Op::LayerNorm { epsilon: 1e-5 }, &[x, gain, bias])
    };
    let linear = |g: &mut Graph, name: &str, x: ValueId, from: usize, to: usize| {
        let w = weight(g, name, &[from, to]);
        let b = g.bias(&format!("{name}.bias"), to, from);
        let y = apply(g, MATMUL, &[x, w]);
        apply(g, Op::AddBias, &[y, b])
    };
    let normed = norm(g, "norm1", x);
    let split = |g: &mut Graph, name: &str| {
        let y = linear(g, name, normed, width, width);
        let y = apply(g, Op::Reshape { shape: vec![batch, time, heads, width / heads] }, &[y]);
        apply(g, Op::Permute { axes: vec![0, 2, 1, 3] }, &[y])
    };
    let (q, k, v) = (split(g, "q"), split(g, "k"), split(g, "v"));
    let scores = apply(g, Op::MatMul { transpose_a: false, transpose_b: true }, &[q, k]);
    let scores = apply(g, Op::Scale { factor: 0.5 }, &[scores]);
    let shares = apply(g, Op::Softmax, &[scores]);
    let mixed = apply(g, MATMUL, &[shares, v]);
    let mixed = apply(g, Op::Permute { axes: vec![0, 2, 1, 3] }, &[mixed]);
    let mixed = apply(g, Op::Reshape { shape: vec![batch, time, width] }, &[mixed]);
    let mixed = linear(g, "o", mixed, width, width);
    x = apply(g, Op::Binary(Binary::Add), &[x, mixed]);
    let normed = norm(g, "norm2", x);
    let wide = linear(g, "up", normed, width, 12);
    let wide = apply(g, Op::Unary(Unary::Gelu), &[wide]);
    let narrow = linear(g, "down", wide, 12, width);
    x = apply(g, Op::Binary(Binary::Add), &[x, narrow]);
    let pooled = apply(g, Op::Mean { axis: 1 }, &[x]);
    linear(g, "head", pooled, width, 3)
}

fn unary(g: &mut Graph, f: Unary) -> ValueId {
    let x = weight(g, "x", &[4, 6]);
    apply(g, Op::Unary(f), &[x])
}

fn binary(g: &mut Graph, op: Binary) -> ValueId {
    let (a, b) = (weight(g, "a", &[4, 6]), weight(g, "b", &[4, 6]));
    // One operand is read twice, so that its gradients add up.
    let y = apply(g, Op::Binary(op), &[a, b]);
    apply(g, Op::Binary(Binary::Mul), &[y, a])
}

fn matmul(g: &mut Graph, a: &[usize], b: &[usize], transpose_a: bool, transpose_b: bool) -> ValueId {
    let (a, b) = (weight(g, "a", a), weight(g, "b", b));
    apply(g, Op::MatMul { transpose_a, transpose_b }, &[a, b])
}

pub(crate) const CASES: &[Case] = &[
    Case { name: "matmul", build: |g| matmul(g, &[4, 7], &[7, 5], false, false) },
    Case { name: "matmul, A transposed", build: |g| matmul(g, &[7, 4], &[7, 5], true, false) },
    Case { name: "matmul, B transposed", build: |g| matmul(g, &[4, 7], &[5, 7], false, true) },
    Case { name: "matmul, both transposed", build: |g| matmul(g, &[7, 4], &[5, 7], true, true) },
    Case { name: "matmul, batched", build: |g| matmul(g, &[2, 3, 4, 7], &[2, 3, 7, 5], false, false) },
    Case { name: "matmul, batched, A transposed", build: |g| matmul(g, &[3, 7, 4], &[3, 7, 5], true, false) },
    Case { name: "matmul, rows folded", build: |g| matmul(g, &[2, 3, 7], &[7, 5], false, false) },
    Case {
        name: "linear, relu, linear",
        build: |g| {
            let (x, w, v) = (g.input("x", &[4, 7], DType::F32), weight(g, "w", &[7, 6]), weight(g, "v", &[6, 3]));
            let (b, c) = (g.bias("b", 6, 7), g.bias("c", 3, 6));
            let y = apply(g, MATMUL, &[x, w]);
            let y = apply(g, Op::AddBias, &[y, b]);
            let y = apply(g, Op::Unary(Unary::Relu), &[y]);
            let y = apply(g, MATMUL, &[y, v]);
            apply(g, Op::AddBias, &[y, c])
        },
    },
    Case {
        name: "linear with gelu",
        build: |g| {
            let (x, w, b) = (weight(g, "x", &[2, 3, 7]), weight(g, "w", &[7, 6]), g.bias("b", 6, 7));
            let y = apply(g, MATMUL, &[x, w]);
            let y = apply(g, Op::AddBias, &[y, b]);
            apply(g, Op::Unary(Unary::Gelu), &[y])
        },
    },
    Case { name: "conv2d 3x3, padding 1", build: |g| conv(g, Window::square(3, 1, 1), [2, 5, 6, 3], 4, true) },
    Case {
        name: "conv2d 3x2, stride 2x1",
        build: |g| {
            let window = Window { size: [3, 2], stride: [2, 1], padding: [0, 1] };
            conv(g, window, [2, 7, 5, 2], 3, false)
        },
    },
    Case {
        name: "conv2d, relu",
        build: |g| {
            let y = conv(g, Window::square(3, 1, 0), [2, 5, 5, 1], 4, true);
            apply(g, Op::Unary(Unary::Relu), &[y])
        },
    },
    Case {
        name: "conv2d, relu, max pool",
        build: |g| {
            let y = conv(g, Window::square(3, 1, 1), [2, 6, 7, 2], 16, true);
            let y = apply(g, Op::Unary(Unary::Relu), &[y]);
            apply(g, Op::MaxPool2d { window: Window::square(2, 2, 0) }, &[y])
        },
    },
    Case {
        name: "max pool 3x3, stride 2, overlapping",
        build: |g| {
            let x = weight(g, "x", &[2, 7, 5, 3]);
            apply(g, Op::MaxPool2d { window: Window::square(3, 2, 0) }, &[x])
        },
    },
    Case { name: "relu", build: |g| unary(g, Unary::Relu) },
    Case { name: "gelu", build: |g| unary(g, Unary::Gelu) },
    Case { name: "tanh", build: |g| unary(g, Unary::Tanh) },
    Case { name: "sigmoid", build: |g| unary(g, Unary::Sigmoid) },
    Case { name: "exp", build: |g| unary(g, Unary::Exp) },
    Case { name: "add", build: |g| binary(g, Binary::Add) },
    Case { name: "sub", build: |g| binary(g, Binary::Sub) },
    Case { name: "mul", build: |g| binary(g, Binary::Mul) },
    Case {
        name: "scale, permute",
        build: |g| {
            let x = weight(g, "x", &[2, 3, 4, 5]);
            let y = apply(g, Op::Scale { factor: -1.5 }, &[x]);
            apply(g, Op::Permute { axes: vec![3, 1, 0, 2] }, &[y])
        },
    },
    Case {
        name: "sums, mean, repeat",
        build: |g| {
            let x = weight(g, "x", &[2, 3, 4]);
            let over_rows = apply(g, Op::SumLeading, &[x]);
            let again = apply(g, Op::RepeatFirst { rows: 3 }, &[over_rows]);
            let first = apply(g, Op::SumFirst, &[x]);
            let mean = apply(g, Op::Mean { axis: 1 }, &[x]);
            let mean = apply(g, Op::SumFirst, &[mean]);
            let mean = apply(g, Op::RepeatFirst { rows: 3 }, &[mean]);
            let y = apply(g, Op::Binary(Binary::Mul), &[again, first]);
            apply(g, Op::Binary(Binary::Add), &[y, mean])
        },
    },
    Case {
        name: "softmax",
        build: |g| {
            let x = weight(g, "x", &[3, 4, 5]);
            apply(g, Op::Softmax, &[x])
        },
    },
    Case {
        name: "layer norm",
        build: |g| {
            let (x, gain, bias) = (weight(g, "x", &[2, 3, 8]), g.bias("gain", 8, 1), g.bias("bias", 8, 1));
            apply(g, Op::LayerNorm { epsilon: 1e-5 }, &[x, gain, bias])
        },
    },
    Case { name: "transformer encoder block", build: transformer },
];

impl Case {
    /// The forward graph with its logits `[R, C]`, marked as output.
    pub(crate) fn forward(&self) -> Graph {
        let mut g = Graph::new();
        let y = (self.build)(&mut g);
        let shape = g.shape(y).to_vec();
        let columns = *shape.last().expect("no case ends in a scalar");
        let logits = apply(&mut g, Op::Reshape { shape: vec![shape.iter().product::<usize>() / columns, columns] }, &[y]);
        g.mark_output("logits", logits);
        g
    }
}

/// Adds the loss and its gradients by every parameter; outputs `loss` and `d NAME`.
pub(crate) fn with_gradients(g: &mut Graph) {
    let logits = g.output("logits").expect("`forward` marks it");
    let rows = g.shape(logits)[0];
    let labels = g.input("labels", &[rows], DType::I32);
    let logits = if g.dtype(logits) == DType::F32 { logits } else { apply(g, Op::Cast { to: DType::F32 }, &[logits]) };
    let loss = apply(g, Op::CrossEntropy { rows }, &[logits, labels]);
    g.mark_output("loss", loss);
    let wrt: Vec<ValueId> = g.parameters().collect();
    let gradients = differentiate(g, loss, &wrt, None).expect("the loss is a scalar of this graph");
    for id in wrt {
        let name = format!("d {}", g.value(id).name);
        g.mark_output(&name, gradients.of(id).expect("every parameter of a case is used"));
    }
}

/// Reproducible contents of every input and parameter: floats in (-1, 1) away from ties, small integers for labels and tokens, all numbers
/// of a symmetric grid for quantised weights.
pub(crate) fn contents(g: &Graph, seed: u64) -> Vec<Vec<f64>> {
    let mut generator = Generator::new(seed);
    let entropy = g.nodes.iter().find(|n| matches!(n.op, Op::CrossEntropy { .. }));
    let classes = entropy.map(|n| g.shape(n.inputs[0])[1]);
    g.values
        .iter()
        .map(|v| match (&v.role, v.dtype) {
            (Role::Intermediate, _) => vec![0.0; v.elements()],
            (_, DType::I32) => {
                let most = if v.name == "labels" { classes.expect("labels come with a loss") } else { 3 };
                (0..v.elements()).map(|_| generator.below(most) as f64).collect()
            }
            (_, DType::I8) => (0..v.elements()).map(|_| generator.below(255) as f64 - 127.0).collect(),
            // Squares and counts are not negative.
            (Role::State, _) => (0..v.elements()).map(|_| generator.below(512) as f64 / 512.0).collect(),
            // Odd multiples of 2^-9, exact in every float type that has 9 bits, never 0.
            _ => (0..v.elements()).map(|_| (2 * generator.below(512) + 1) as f64 / 512.0 - 1.0).collect(),
        })
        .collect()
}
