//! Trained weights by name: what a checkpoint holds and compressions change.

use super::StrategyError;

/// One parameter, fp32, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

/// All parameters of a model, in the order of its graph.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights {
    pub tensors: Vec<Tensor>,
}

impl Weights {
    pub fn get(&self, name: &str) -> Result<&Tensor, StrategyError> {
        self.tensors.iter().find(|t| t.name == name).ok_or_else(|| StrategyError::MissingWeight { name: name.to_string() })
    }

    pub fn get_mut(&mut self, name: &str) -> Result<&mut Tensor, StrategyError> {
        let found = self.tensors.iter_mut().find(|t| t.name == name);
        found.ok_or_else(|| StrategyError::MissingWeight { name: name.to_string() })
    }

    /// Share of zeros among the weights of two or more axes.
    pub fn sparsity(&self) -> f64 {
        let matrices = || self.tensors.iter().filter(|t| t.shape.len() > 1);
        let zeros: usize = matrices().map(|t| t.data.iter().filter(|v| **v == 0.0).count()).sum();
        let all: usize = matrices().map(|t| t.data.len()).sum();
        zeros as f64 / all.max(1) as f64
    }
}
