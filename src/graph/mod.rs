//! The intermediate representation: a model as a static graph of ops over values with known shape and element type.
//!
//! Everything that changes a model (autodiff, precision, pruning, quantisation, fusion, sharding) is a pass: graph in, graph out.
//! `lower` turns a graph into a `Program`, the list of steps with a memory plan that a backend runs. Layout is row-major,
//! images are `[B, H, W, C]`, convolution weights `[KH, KW, Cin, Cout]`, linear weights `[in, out]`.

mod autodiff;
pub(crate) mod cases;
mod exchange;
mod fuse;
mod lower;
mod op;
pub mod reference;
#[cfg(test)]
mod tests;

pub use autodiff::{Gradients, differentiate, differentiate_from};
pub use exchange::Exchange;
pub use fuse::fuse;
pub use lower::{Program, Slot, Step, lower};
pub use op::{Activation, Binary, DEAD_CODE, GraphError, Op, OptimizerStep, Unary, Window, Work};

use crate::vocab::DType;

/// Number of a value in its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(pub usize);

/// What a value is to the outside.
#[derive(Clone, Debug, PartialEq)]
pub enum Role {
    /// Written before each run: a batch, its labels, the loss scale.
    Input,
    /// A trainable weight; kept between runs.
    Parameter { fan_in: usize, fan_out: usize, is_bias: bool },
    /// Kept between runs but not trained by gradients: optimizer state, quantised weights, scales.
    State,
    /// Lives inside one run.
    Intermediate,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    pub name: String,
    /// Extents, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    pub dtype: DType,
    pub role: Role,
}

impl Value {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.size()
    }
}

/// An op with the values it reads and writes.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub op: Op,
    pub inputs: Vec<ValueId>,
    pub outputs: Vec<ValueId>,
}

/// A model, or a whole training step. Nodes stand in an order in which every value is written before it is read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    pub values: Vec<Value>,
    pub nodes: Vec<Node>,
    /// Values to be read after a run, by what they are called ("logits", "loss").
    pub outputs: Vec<(String, ValueId)>,
}

impl Graph {
    pub fn new() -> Self {
        Graph::default()
    }

    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0]
    }

    pub fn shape(&self, id: ValueId) -> &[usize] {
        &self.values[id.0].shape
    }

    pub fn dtype(&self, id: ValueId) -> DType {
        self.values[id.0].dtype
    }

    fn push_value(&mut self, name: String, shape: Vec<usize>, dtype: DType, role: Role) -> ValueId {
        self.values.push(Value { name, shape, dtype, role });
        ValueId(self.values.len() - 1)
    }

    pub fn input(&mut self, name: &str, shape: &[usize], dtype: DType) -> ValueId {
        self.push_value(name.to_string(), shape.to_vec(), dtype, Role::Input)
    }

    /// A trainable fp32 matrix or filter with its fans, for initialisation.
    pub fn weight(&mut self, name: &str, shape: &[usize], fan_in: usize, fan_out: usize) -> ValueId {
        self.push_value(name.to_string(), shape.to_vec(), DType::F32, Role::Parameter { fan_in, fan_out, is_bias: false })
    }

    /// A trainable fp32 vector that starts at zero (or at one, for a norm's gain: the initialiser decides by name `*.gain`).
    pub fn bias(&mut self, name: &str, length: usize, fan_in: usize) -> ValueId {
        self.push_value(name.to_string(), vec![length], DType::F32, Role::Parameter { fan_in, fan_out: length, is_bias: true })
    }

    pub fn state(&mut self, name: &str, shape: &[usize], dtype: DType) -> ValueId {
        self.push_value(name.to_string(), shape.to_vec(), dtype, Role::State)
    }

    /// Adds an op; checks its inputs and makes its outputs.
    pub fn apply_all(&mut self, op: Op, inputs: &[ValueId]) -> Result<Vec<ValueId>, GraphError> {
        let operands: Vec<&Value> = inputs.iter().map(|id| self.value(*id)).collect();
        let made = op.infer(&operands)?;
        let in_place = op.is_in_place();
        let first = self.nodes.len();
        let outputs = made
            .into_iter()
            .enumerate()
            .map(|(k, (shape, dtype))| self.push_value(format!("{}.{first}.{k}", op.name()), shape, dtype, Role::Intermediate))
            .collect::<Vec<_>>();
        debug_assert!(!in_place || outputs.is_empty(), "an in-place op writes its inputs");
        self.nodes.push(Node { op, inputs: inputs.to_vec(), outputs: outputs.clone() });
        Ok(outputs)
    }

    /// Puts an op without outputs before node `at`.
    pub fn insert_in_place(&mut self, at: usize, op: Op, inputs: &[ValueId]) -> Result<(), GraphError> {
        self.apply_all(op, inputs)?;
        let node = self.nodes.pop().expect("added above");
        debug_assert!(node.outputs.is_empty(), "what is made must stand before it is read");
        self.nodes.insert(at, node);
        Ok(())
    }

    /// Adds an op with one output.
    pub fn apply(&mut self, op: Op, inputs: &[ValueId]) -> Result<ValueId, GraphError> {
        Ok(self.apply_all(op, inputs)?[0])
    }

    pub fn mark_output(&mut self, name: &str, value: ValueId) {
        self.outputs.push((name.to_string(), value));
    }

    /// The value marked as output under `name`.
    pub fn output(&self, name: &str) -> Option<ValueId> {
        self.outputs.iter().find(|(n, _)| n == name).map(|(_, id)| *id)
    }

    /// Values of a role, in order of definition.
    pub fn parameters(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.ids().filter(|id| matches!(self.value(*id).role, Role::Parameter { .. }))
    }

    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.ids().find(|id| self.value(*id).name == name)
    }

    pub fn ids(&self) -> impl Iterator<Item = ValueId> + use<> {
        (0..self.values.len()).map(ValueId)
    }

    /// The node that writes a value, where one does.
    pub fn producer(&self, id: ValueId) -> Option<usize> {
        self.nodes.iter().position(|n| n.outputs.contains(&id))
    }

    /// Nodes that read a value.
    pub fn consumers(&self, id: ValueId) -> Vec<usize> {
        (0..self.nodes.len()).filter(|n| self.nodes[*n].inputs.contains(&id)).collect()
    }

    pub fn is_output(&self, id: ValueId) -> bool {
        self.outputs.iter().any(|(_, o)| *o == id)
    }

    /// Work of one run, summed over the nodes.
    pub fn work(&self) -> Work {
        self.nodes.iter().map(|n| self.node_work(n)).fold(Work::default(), Work::plus)
    }

    pub fn node_work(&self, node: &Node) -> Work {
        let read: Vec<&Value> = node.inputs.iter().map(|id| self.value(*id)).collect();
        let written: Vec<&Value> = node.outputs.iter().map(|id| self.value(*id)).collect();
        node.op.work(&read, &written)
    }

    /// Drops nodes whose results nobody reads, and keeps the order of the rest. Values keep their numbers.
    pub fn without_dead_nodes(mut self) -> Graph {
        let mut live = vec![false; self.values.len()];
        for (_, id) in &self.outputs {
            live[id.0] = true;
        }
        let mut keep = vec![false; self.nodes.len()];
        for (at, node) in self.nodes.iter().enumerate().rev() {
            if node.op.is_in_place() || node.outputs.iter().any(|id| live[id.0]) {
                keep[at] = true;
                for id in &node.inputs {
                    live[id.0] = true;
                }
            }
        }
        let mut kept = keep.iter();
        self.nodes.retain(|_| *kept.next().expect("one flag a node"));
        self
    }
}
