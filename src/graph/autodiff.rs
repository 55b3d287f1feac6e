//! Reverse-mode automatic differentiation as a pass: appends to a graph the nodes that compute gradients.
//!
//! The loss is the first result of a `CrossEntropy`, whose second result already is its gradient by the logits. Only values on a path
//! from `wrt` to the loss get a gradient, so the first layer's input costs nothing.

use super::{Activation, Binary, Exchange, Graph, GraphError, Node, Op, Unary, ValueId};
use crate::vocab::DType;
use std::collections::HashMap;

/// The gradient of each differentiated value, of its shape.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gradients {
    of: HashMap<ValueId, ValueId>,
}

impl Gradients {
    /// The gradient of `value`; `None` where the loss does not depend on it.
    pub fn of(&self, value: ValueId) -> Option<ValueId> {
        self.of.get(&value).copied()
    }
}

/// Appends the gradients of `loss` by each of `wrt`. With `seed`, a scalar, every gradient is multiplied by it (loss scaling).
///
/// # Errors
/// `NoGradient` where an op on the path has none.
pub fn differentiate(graph: &mut Graph, loss: ValueId, wrt: &[ValueId], seed: Option<ValueId>) -> Result<Gradients, GraphError> {
    let mut pass = Pass::new(graph, wrt);
    let node = pass.graph.nodes.iter().find(|node| matches!(node.op, Op::CrossEntropy { .. }) && node.outputs[0] == loss);
    if let Some(node) = node.cloned() {
        let mut gradient = node.outputs[1];
        if let Some(scale) = seed {
            gradient = pass.graph.apply(Op::MulScalar, &[gradient, scale])?;
        }
        pass.add(node.inputs[0], gradient)?;
    }
    pass.run()
}

/// Appends the gradients by each of `wrt` of something that depends on `y` alone and has the gradient `dy` by it: the rest of a model that
/// another rank has.
///
/// # Errors
/// As of `differentiate`.
pub fn differentiate_from(graph: &mut Graph, y: ValueId, dy: ValueId, wrt: &[ValueId]) -> Result<Gradients, GraphError> {
    let mut pass = Pass::new(graph, wrt);
    pass.add(y, dy)?;
    pass.run()
}

struct Pass<'g> {
    graph: &'g mut Graph,
    /// Values on a path from a differentiated one.
    depends: Vec<bool>,
    of: HashMap<ValueId, ValueId>,
}

impl<'g> Pass<'g> {
    fn new(graph: &'g mut Graph, wrt: &[ValueId]) -> Pass<'g> {
        let mut depends = vec![false; graph.values.len()];
        wrt.iter().for_each(|id| depends[id.0] = true);
        for node in &graph.nodes {
            if node.inputs.iter().any(|id| depends[id.0]) {
                node.outputs.iter().for_each(|id| depends[id.0] = true);
            }
        }
        Pass { depends, of: HashMap::new(), graph }
    }

    /// From the gradients that are there back to all others.
    fn run(mut self) -> Result<Gradients, GraphError> {
        let nodes = self.graph.nodes.clone();
        for node in nodes.iter().rev() {
            let dy = node.outputs.first().and_then(|y| self.of.get(y).copied());
            if let Some(dy) = dy.filter(|_| !matches!(node.op, Op::CrossEntropy { .. })) {
                self.back(node, dy)?;
            }
        }
        Ok(Gradients { of: self.of })
    }

    fn needs(&self, id: ValueId) -> bool {
        self.depends[id.0]
    }

    /// Notes a gradient, or adds it to what is there.
    fn add(&mut self, value: ValueId, gradient: ValueId) -> Result<(), GraphError> {
        if !self.needs(value) {
            return Ok(());
        }
        let sum = match self.of.get(&value).copied() {
            Some(before) => {
                let gradient = self.cast(gradient, self.graph.dtype(before))?;
                self.graph.apply(Op::Binary(Binary::Add), &[before, gradient])?
            }
            None => gradient,
        };
        self.of.insert(value, sum);
        Ok(())
    }

    fn cast(&mut self, value: ValueId, to: DType) -> Result<ValueId, GraphError> {
        if self.graph.dtype(value) == to { Ok(value) } else { self.graph.apply(Op::Cast { to }, &[value]) }
    }

    /// `value` with all axes but the last folded into one.
    fn rows(&mut self, value: ValueId) -> Result<ValueId, GraphError> {
        let shape = self.graph.shape(value);
        if shape.len() == 2 {
            return Ok(value);
        }
        let last = *shape.last().expect("rows have an axis");
        let shape = vec![self.graph.value(value).elements() / last, last];
        self.graph.apply(Op::Reshape { shape }, &[value])
    }

    /// The gradient before the activation, from the result `y` and its gradient.
    fn before(&mut self, node: &Node, activation: Activation, dy: ValueId) -> Result<ValueId, GraphError> {
        match activation {
            Activation::None => Ok(dy),
            Activation::Relu => self.graph.apply(Op::UnaryGrad(Unary::Relu), &[node.outputs[0], dy]),
            Activation::Gelu => Err(GraphError::NoGradient { op: node.op.name() }),
        }
    }

    /// The gradient of a bias from that of the sum.
    fn bias(&mut self, bias: ValueId, dz: ValueId) -> Result<(), GraphError> {
        if !self.needs(bias) {
            return Ok(());
        }
        let sum = self.graph.apply(Op::SumLeading, &[dz])?;
        let sum = self.cast(sum, self.graph.dtype(bias))?;
        self.add(bias, sum)
    }

    fn back(&mut self, node: &Node, dy: ValueId) -> Result<(), GraphError> {
        let none = || GraphError::NoGradient { op: node.op.name() };
        if !node.inputs.iter().any(|id| self.needs(*id)) {
            return Ok(());
        }
        let input = |k: usize| node.inputs[k];
        let shape_of = |graph: &Graph, id: ValueId| -> [usize; 4] {
            graph.shape(id).try_into().expect("images and their gradients have four axes: checked by infer")
        };
        match &node.op {
            Op::MatMul { transpose_a, transpose_b } => {
                let (a, b) = (input(0), input(1));
                let (ta, tb) = (*transpose_a, *transpose_b);
                if self.needs(a) {
                    let da = if ta {
                        self.graph.apply(Op::MatMul { transpose_a: tb, transpose_b: true }, &[b, dy])?
                    } else {
                        self.graph.apply(Op::MatMul { transpose_a: false, transpose_b: !tb }, &[dy, b])?
                    };
                    self.add(a, da)?;
                }
                if self.needs(b) {
                    let folds = self.graph.shape(b).len() == 2;
                    let (a, dy) = if folds { (self.rows(a)?, self.rows(dy)?) } else { (a, dy) };
                    let db = if tb {
                        self.graph.apply(Op::MatMul { transpose_a: true, transpose_b: ta }, &[dy, a])?
                    } else {
                        self.graph.apply(Op::MatMul { transpose_a: !ta, transpose_b: false }, &[a, dy])?
                    };
                    self.add(b, db)?;
                }
            }
            Op::Linear { activation } => {
                let dz = self.before(node, *activation, dy)?;
                if self.needs(input(1)) {
                    let (x, dz) = (self.rows(input(0))?, self.rows(dz)?);
                    let dw = self.graph.apply(Op::MatMul { transpose_a: true, transpose_b: false }, &[x, dz])?;
                    self.add(input(1), dw)?;
                }
                if let Some(bias) = node.inputs.get(2) {
                    self.bias(*bias, dz)?;
                }
                if self.needs(input(0)) {
                    let dx = self.graph.apply(Op::MatMul { transpose_a: false, transpose_b: true }, &[dz, input(1)])?;
                    self.add(input(0), dx)?;
                }
            }
            Op::Conv2d { window, activation } => {
                let dz = self.before(node, *activation, dy)?;
                if self.needs(input(1)) {
                    let dw = self.graph.apply(Op::Conv2dGradWeight { window: *window }, &[input(0), dz])?;
                    self.add(input(1), dw)?;
                }
                if let Some(bias) = node.inputs.get(2) {
                    self.bias(*bias, dz)?;
                }
                if self.needs(input(0)) {
                    let shape = shape_of(self.graph, input(0));
                    let dx = self.graph.apply(Op::Conv2dGradInput { window: *window, input: shape }, &[dz, input(1)])?;
                    self.add(input(0), dx)?;
                }
            }
            Op::ConvReluPool { window } => {
                let code = node.outputs[1];
                let made = self.graph.apply_all(Op::ConvReluPoolGrad { window: *window }, &[input(0), dy, code])?;
                self.add(input(1), made[0])?;
                let db = self.cast(made[1], self.graph.dtype(input(2)))?;
                self.add(input(2), db)?;
                if self.needs(input(0)) {
                    let [b, h, w, c] = shape_of(self.graph, input(0));
                    let channels = self.graph.shape(input(1))[3];
                    let [oh, ow] = window.output([h, w]).ok_or_else(none)?;
                    let unpool = Op::ConvReluUnpool { input: [b, oh, ow, channels] };
                    let dz = self.graph.apply(unpool, &[dy, code])?;
                    let back = Op::Conv2dGradInput { window: *window, input: [b, h, w, c] };
                    let dx = self.graph.apply(back, &[dz, input(1)])?;
                    self.add(input(0), dx)?;
                }
            }
            Op::MaxPool2d { window } => {
                let op = Op::MaxPool2dGrad { window: *window, input: shape_of(self.graph, input(0)) };
                let dx = self.graph.apply(op, &[dy, node.outputs[1]])?;
                self.add(input(0), dx)?;
            }
            Op::Unary(f) => {
                let operand = if *f == Unary::Gelu { input(0) } else { node.outputs[0] };
                let dx = self.graph.apply(Op::UnaryGrad(*f), &[operand, dy])?;
                self.add(input(0), dx)?;
            }
            Op::Binary(Binary::Add) => {
                self.add(input(0), dy)?;
                self.add(input(1), dy)?;
            }
            Op::Binary(Binary::Sub) => {
                self.add(input(0), dy)?;
                if self.needs(input(1)) {
                    let negative = self.graph.apply(Op::Scale { factor: -1.0 }, &[dy])?;
                    self.add(input(1), negative)?;
                }
            }
            Op::Binary(Binary::Mul) => {
                for (to, other) in [(0, 1), (1, 0)] {
                    if self.needs(input(to)) {
                        let d = self.graph.apply(Op::Binary(Binary::Mul), &[dy, input(other)])?;
                        self.add(input(to), d)?;
                    }
                }
            }
            Op::AddBias => {
                self.add(input(0), dy)?;
                self.bias(input(1), dy)?;
            }
            Op::Scale { factor } => {
                let dx = self.graph.apply(Op::Scale { factor: *factor }, &[dy])?;
                self.add(input(0), dx)?;
            }
            Op::MulScalar => {
                if self.needs(input(1)) {
                    return Err(none());
                }
                let dx = self.graph.apply(Op::MulScalar, &[dy, input(1)])?;
                self.add(input(0), dx)?;
            }
            Op::SumLeading => {
                let shape = self.graph.shape(input(0)).to_vec();
                let rows = shape[..shape.len() - 1].iter().product();
                let repeated = self.graph.apply(Op::RepeatFirst { rows }, &[dy])?;
                let dx = self.graph.apply(Op::Reshape { shape }, &[repeated])?;
                self.add(input(0), dx)?;
            }
            Op::SumFirst => {
                let rows = self.graph.shape(input(0))[0];
                let dx = self.graph.apply(Op::RepeatFirst { rows }, &[dy])?;
                self.add(input(0), dx)?;
            }
            Op::RepeatFirst { .. } => {
                let dx = self.graph.apply(Op::SumFirst, &[dy])?;
                let dx = self.cast(dx, self.graph.dtype(input(0)))?;
                self.add(input(0), dx)?;
            }
            Op::Mean { axis } => {
                let extent = self.graph.shape(input(0))[*axis];
                let dx = self.graph.apply(Op::MeanGrad { axis: *axis, extent }, &[dy])?;
                self.add(input(0), dx)?;
            }
            Op::Replicate => {
                let dx = self.graph.apply(Op::Exchange(Exchange::SumRanks), &[dy])?;
                self.add(input(0), dx)?;
            }
            Op::Exchange(Exchange::SumRanks) => self.add(input(0), dy)?,
            Op::Reshape { .. } => {
                let shape = self.graph.shape(input(0)).to_vec();
                let dx = self.graph.apply(Op::Reshape { shape }, &[dy])?;
                self.add(input(0), dx)?;
            }
            Op::Permute { axes } => {
                let mut back = vec![0; axes.len()];
                axes.iter().enumerate().for_each(|(to, from)| back[*from] = to);
                let dx = self.graph.apply(Op::Permute { axes: back }, &[dy])?;
                self.add(input(0), dx)?;
            }
            Op::Softmax => {
                let dx = self.graph.apply(Op::SoftmaxGrad, &[node.outputs[0], dy])?;
                self.add(input(0), dx)?;
            }
            Op::LayerNorm { .. } => {
                let operands = [input(0), input(1), node.outputs[1], node.outputs[2], dy];
                let made = self.graph.apply_all(Op::LayerNormGrad, &operands)?;
                for (k, gradient) in made.into_iter().enumerate() {
                    self.add(input(k), gradient)?;
                }
            }
            Op::Embedding => {
                let vocabulary = self.graph.shape(input(0))[0];
                let table = self.graph.apply(Op::EmbeddingGrad { vocabulary }, &[input(1), dy])?;
                self.add(input(0), table)?;
            }
            Op::FakeQuantize => {
                let whole = self.graph.producer(input(1)).is_some_and(|made| self.graph.nodes[made].op == Op::ChannelScale);
                // Nothing lies outside of a grid that was made for the largest value; the scale itself is not trained.
                let dx = if whole { dy } else { self.graph.apply(Op::FakeQuantizeGrad, &[input(0), input(1), dy])? };
                self.add(input(0), dx)?;
            }
            Op::Cast { .. } => {
                let dx = self.cast(dy, self.graph.dtype(input(0)))?;
                self.add(input(0), dx)?;
            }
            // Straight through the rounding (Bengio et al. 2013).
            Op::RoundFp8 { .. } => {
                let dx = self.cast(dy, self.graph.dtype(input(0)))?;
                self.add(input(0), dx)?;
            }
            Op::RoundGradient { format } => {
                let op = Op::RoundFp8 { format: *format, to: self.graph.dtype(dy) };
                let made = self.graph.apply_all(op, &[dy, input(1)])?;
                self.add(input(0), made[0])?;
            }
            _ => return Err(none()),
        }
        Ok(())
    }
}
