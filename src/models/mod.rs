//! Model families: a size in, a forward graph out. The graph has the input `x` and the output `logits` `[B, classes]`.

mod mlp;
mod simple_cnn;

use crate::graph::{Graph, GraphError};

/// What a model is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rows a step on one rank.
    pub batch: usize,
    /// `[height, width, channels]`.
    pub image: [usize; 3],
    pub classes: usize,
}

/// A family.
pub struct Model {
    pub name: &'static str,
    pub about: &'static str,
    pub build: fn(&Size) -> Result<Graph, GraphError>,
}

pub const MODELS: &[Model] = &[
    Model {
        name: "simple-cnn",
        about: "3x3 convolution to 32 channels, ReLU, 2x2 max pool, 128 hidden units, ReLU, classes",
        build: simple_cnn::build,
    },
    Model { name: "mlp", about: "256 hidden units, ReLU, 128 hidden units, ReLU, classes", build: mlp::build },
];

/// The family called `name`.
pub fn find(name: &str) -> Option<&'static Model> {
    MODELS.iter().find(|model| model.name == name)
}

/// `y = x W + b`, unfused: fusion is a pass.
fn linear(
    graph: &mut Graph,
    name: &str,
    x: crate::graph::ValueId,
    inputs: usize,
    outputs: usize,
) -> Result<crate::graph::ValueId, GraphError> {
    let w = graph.weight(&format!("{name}.weight"), &[inputs, outputs], inputs, outputs);
    let b = graph.bias(&format!("{name}.bias"), outputs, inputs);
    let y = graph.apply(crate::graph::Op::MatMul { transpose_a: false, transpose_b: false }, &[x, w])?;
    graph.apply(crate::graph::Op::AddBias, &[y, b])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_have_the_parameters_they_are_known_for() {
        let count = |name: &str, image: [usize; 3]| -> usize {
            let graph = (find(name).unwrap().build)(&Size { batch: 4, image, classes: 10 }).unwrap();
            assert_eq!(graph.shape(graph.output("logits").unwrap()), [4, 10]);
            graph.parameters().map(|id| graph.value(id).elements()).sum()
        };
        assert_eq!(count("simple-cnn", [28, 28, 1]), 320 + 6272 * 128 + 128 + 1290);
        assert_eq!(count("mlp", [28, 28, 1]), 784 * 256 + 256 + 256 * 128 + 128 + 1290);
        assert_eq!(count("simple-cnn", [9, 7, 3]), 3 * 9 * 32 + 32 + 4 * 3 * 32 * 128 + 128 + 1290);
    }
}
