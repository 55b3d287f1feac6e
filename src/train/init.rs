//! Initial weights: vocab's `InitKind`, seeded. Biases start at zero, a norm's gain at one.

use crate::{
    graph::{Graph, Role},
    stats::Generator,
    strategy::{Tensor, Weights},
    vocab::InitKind,
};

/// Half width of `uniform` and standard deviation of `gaussian`.
const PLAIN_SIZE: f64 = 0.05;

/// Weights for every parameter of `graph`, in its order. Parameter k of seed s is drawn from a stream of its own.
pub fn initial_weights(graph: &Graph, kind: InitKind, seed: u64) -> Weights {
    let mut seeds = Generator::new(seed);
    let tensors = graph.parameters().map(|id| {
        let value = graph.value(id);
        let mut generator = Generator::new(seeds.next_u64());
        let Role::Parameter { fan_in, fan_out, is_bias } = value.role else { unreachable!("parameters only") };
        let uniform = |generator: &mut Generator, bound: f64| (2.0 * generator.unit() - 1.0) * bound;
        let mut draw = || -> f64 {
            match kind {
                _ if is_bias => f64::from(u8::from(value.name.ends_with(".gain"))),
                InitKind::Uniform => uniform(&mut generator, PLAIN_SIZE),
                InitKind::Gaussian => generator.normal() * PLAIN_SIZE,
                InitKind::Xavier => uniform(&mut generator, (6.0 / (fan_in + fan_out) as f64).sqrt()),
                InitKind::He => generator.normal() * (2.0 / fan_in as f64).sqrt(),
            }
        };
        let data = (0..value.elements()).map(|_| draw() as f32).collect();
        Tensor { name: value.name.clone(), shape: value.shape.clone(), data }
    });
    Weights { tensors: tensors.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        models::{Size, find},
        vocab::RowShape,
    };

    #[test]
    fn each_kind_has_the_spread_its_formula_says() {
        let graph = (find("mlp").unwrap().build)(&Size { batch: 1, row: RowShape::Image([28, 28, 1]), classes: 10 }).unwrap();
        for (kind, deviation) in [
            (InitKind::Uniform, 0.05 / 3f64.sqrt()),
            (InitKind::Gaussian, 0.05),
            (InitKind::Xavier, (2.0f64 / (784.0 + 256.0)).sqrt()),
            (InitKind::He, (2.0 / 784.0f64).sqrt()),
        ] {
            let weights = initial_weights(&graph, kind, 7);
            assert_eq!(weights, initial_weights(&graph, kind, 7));
            assert_ne!(weights, initial_weights(&graph, kind, 8));
            let w = &weights.get("fc1.weight").unwrap().data;
            let square: f64 = w.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / w.len() as f64;
            assert!((square.sqrt() / deviation - 1.0).abs() < 0.01, "{kind:?}: {} against {deviation}", square.sqrt());
            assert!(weights.get("fc1.bias").unwrap().data.iter().all(|v| *v == 0.0));
        }
    }
}
