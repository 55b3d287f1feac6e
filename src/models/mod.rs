//! Model families: a size in, a forward graph out. The graph has the input `x` (f32 `[B, H, W, C]` of images, i32 `[B, T]` of texts) and
//! the output `logits` `[B, classes]`.

mod mlp;
mod simple_cnn;
mod transformer;

use crate::{
    graph::{Graph, GraphError},
    vocab::{RowKind, RowShape},
};

/// What a model is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rows a step on one rank.
    pub batch: usize,
    pub row: RowShape,
    pub classes: usize,
}

impl Size {
    /// `[height, width, channels]`.
    fn image(&self) -> Result<[usize; 3], GraphError> {
        match self.row {
            RowShape::Image(shape) => Ok(shape),
            RowShape::Tokens { .. } => Err(GraphError::Rows { reads: RowKind::Image.plural(), given: RowKind::Text.plural() }),
        }
    }

    /// Words of a text, and different words.
    fn tokens(&self) -> Result<(usize, usize), GraphError> {
        match self.row {
            RowShape::Tokens { length, vocabulary } => Ok((length, vocabulary)),
            RowShape::Image(_) => Err(GraphError::Rows { reads: RowKind::Text.plural(), given: RowKind::Image.plural() }),
        }
    }
}

/// A family.
pub struct Model {
    pub name: &'static str,
    pub about: &'static str,
    /// The rows it is for.
    pub reads: RowKind,
    pub build: fn(&Size) -> Result<Graph, GraphError>,
}

impl Model {
    /// The rows on which it is measured where no data set says others: MNIST's images, or texts of 48 words of 8,000.
    pub fn usual_size(&self, batch: usize) -> Size {
        match self.reads {
            RowKind::Image => Size { batch, row: RowShape::Image([28, 28, 1]), classes: 10 },
            RowKind::Text => Size { batch, row: RowShape::Tokens { length: 48, vocabulary: 8000 }, classes: 2 },
        }
    }
}

pub const MODELS: &[Model] = &[
    Model {
        name: "simple-cnn",
        about: "3x3 convolution to 32 channels, ReLU, 2x2 max pool, 128 hidden units, ReLU, classes",
        reads: RowKind::Image,
        build: simple_cnn::build,
    },
    Model {
        name: "mlp",
        about: "256 hidden units, ReLU, 128 hidden units, ReLU, classes",
        reads: RowKind::Image,
        build: mlp::build,
    },
    Model {
        name: "transformer",
        about: "embeddings of width 64, two pre-norm blocks of 4 heads and 128 hidden units with GELU, mean, classes",
        reads: RowKind::Text,
        build: transformer::build,
    },
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
            let row = RowShape::Image(image);
            let graph = (find(name).unwrap().build)(&Size { batch: 4, row, classes: 10 }).unwrap();
            assert_eq!(graph.shape(graph.output("logits").unwrap()), [4, 10]);
            graph.parameters().map(|id| graph.value(id).elements()).sum()
        };
        assert_eq!(count("simple-cnn", [28, 28, 1]), 320 + 6272 * 128 + 128 + 1290);
        assert_eq!(count("mlp", [28, 28, 1]), 784 * 256 + 256 + 256 * 128 + 128 + 1290);
        assert_eq!(count("simple-cnn", [9, 7, 3]), 3 * 9 * 32 + 32 + 4 * 3 * 32 * 128 + 128 + 1290);
    }

    #[test]
    fn the_transformer_has_the_parameters_of_its_parts_and_reads_texts_alone() {
        let row = RowShape::Tokens { length: 48, vocabulary: 1000 };
        let size = Size { batch: 4, row, classes: 2 };
        let transformer = find("transformer").unwrap();
        let graph = (transformer.build)(&size).unwrap();
        assert_eq!(graph.shape(graph.output("logits").unwrap()), [4, 2]);
        let count: usize = graph.parameters().map(|id| graph.value(id).elements()).sum();
        let block = 2 * 2 * 64 + 4 * (64 * 64 + 64) + 64 * 128 + 128 + 128 * 64 + 64;
        assert_eq!(count, 1000 * 64 + 48 * 64 + 2 * block + 2 * 64 + 64 * 2 + 2);
        for model in MODELS {
            let row = if model.reads == RowKind::Text { RowShape::Image([8, 8, 1]) } else { row };
            let error = (model.build)(&Size { row, ..size }).unwrap_err().to_string();
            assert!(error.starts_with("the model reads"), "{}: {error}", model.name);
        }
    }
}
