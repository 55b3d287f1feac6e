//! Training of pruned weights: the gradient of every weight that went is multiplied by zero, so that it stays zero, and what the optimizer
//! keeps of it too: every rule here leaves a weight of zero with a gradient of zero and a state of zero where it is.

use super::{StrategyError, Tensor, Trained, Weights, prune::products};
use crate::{
    graph::{Binary, Graph, Op},
    vocab::DType,
};
use std::collections::HashSet;

/// Ends the name of the state that holds 1 for the weights of a parameter that are trained and 0 for the others.
pub const MASK: &str = ".mask";

/// Names of the weights of an unfused forward graph that have masks: those of its products.
pub fn masked_weights(graph: &Graph) -> HashSet<String> {
    products(graph).into_iter().map(str::to_string).collect()
}

/// A mask for each weight of `names`: of what is zero, zero.
pub fn masks(names: &HashSet<String>, weights: &Weights) -> Vec<Tensor> {
    let masked = weights.tensors.iter().filter(|t| names.contains(&t.name));
    let mask = |t: &Tensor| Tensor {
        name: format!("{}{MASK}", t.name),
        shape: t.shape.clone(),
        data: t.data.iter().map(|v| f32::from(u8::from(*v != 0.0))).collect(),
    };
    masked.map(mask).collect()
}

/// Multiplies the gradients of the parameters of `names` by their masks, between autodiff and the updates.
pub fn mask_gradients(graph: &mut Graph, trained: &mut [Trained], names: &HashSet<String>) -> Result<(), StrategyError> {
    for one in trained {
        let value = graph.value(one.parameter);
        if !names.contains(&value.name) {
            continue;
        }
        let (name, shape) = (format!("{}{MASK}", value.name), value.shape.clone());
        let mask = graph.state(&name, &shape, DType::F32);
        one.gradient = graph.apply(Op::Binary(Binary::Mul), &[one.gradient, mask])?;
    }
    Ok(())
}

/// Share of weights that is zero after a part `done` of the time in which it grows to `share` (Zhu & Gupta 2017, equation 1, from a
/// share of nothing): fast at first, while many weights are of little use, ever slower then.
pub fn cubic_share(share: f64, done: f64) -> f64 {
    share * (1.0 - (1.0 - done.clamp(0.0, 1.0)).powi(3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cubic_share_rises_from_nothing_to_the_whole_ever_slower() {
        let shares: Vec<f64> = (0..=10).map(|k| cubic_share(0.8, f64::from(k) / 10.0)).collect();
        assert_eq!((shares[0], shares[10]), (0.0, 0.8));
        assert!((shares[5] - 0.7).abs() < 1e-12, "0.8 (1 - 1/8)");
        let steps: Vec<f64> = shares.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(steps.windows(2).all(|pair| pair[1] < pair[0]));
        assert_eq!(cubic_share(0.8, 2.0), 0.8);
    }
}
