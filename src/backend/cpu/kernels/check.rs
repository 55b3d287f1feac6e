//! What the kernels' tests share: a seeded generator whose seed every failure prints, contexts for every instruction
//! set, and the comparison with an f64 reference.

use super::{Context, Element, Isa};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// One context per instruction set of this machine, and a threaded one.
pub(super) fn contexts() -> Vec<Context> {
    let mut all: Vec<Context> = Isa::available().into_iter().map(|isa| Context::with_isa(1, isa)).collect();
    all.push(Context::new(2));
    all.push(Context::new(3));
    all
}

pub(super) struct Random {
    pub seed: u64,
    state: u64,
}

impl Random {
    /// Seeded by the clock, or by `KERNEL_SEED` to repeat a failure.
    pub(super) fn new() -> Random {
        static CALLS: AtomicU64 = AtomicU64::new(0);
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64);
        let seed = std::env::var("KERNEL_SEED")
            .ok()
            .and_then(|s| s.parse().ok())
            .unwrap_or_else(|| clock().wrapping_add(CALLS.fetch_add(1, Ordering::Relaxed)));
        Random { seed, state: seed }
    }

    /// splitmix64.
    pub(super) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Uniform in -1..1, never exactly zero.
    pub(super) fn unit(&mut self) -> f32 {
        ((self.next() >> 40) as f32 + 0.5) / (1 << 23) as f32 - 1.0
    }

    pub(super) fn values<T: Element>(&mut self, n: usize) -> Vec<T> {
        (0..n).map(|_| T::from_f32(self.unit())).collect()
    }
}

pub(super) fn wide<T: Element>(x: &[T]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

/// Fails with the worst element unless every |got - want| <= tolerance (1 + |want|).
pub(super) fn worst(what: &str, random: &Random, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let mut worst = (0usize, 0.0f64);
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let error = if g as f64 == w { 0.0 } else { (g as f64 - w).abs() / (1.0 + w.abs()) };
        if error.is_nan() || error > worst.1 {
            worst = (i, if error.is_nan() { f64::INFINITY } else { error });
        }
    }
    let (i, error) = worst;
    assert!(
        error <= tolerance,
        "{what}, seed {}: element {i} is {} instead of {} (error {error:.2e}, allowed {tolerance:.2e})",
        random.seed,
        got[i],
        want[i]
    );
}

/// erf by its series, beyond 2.5 by the continued fraction of erfc: about 1e-13.
pub(super) fn erf(x: f64) -> f64 {
    if x.abs() > 2.5 {
        let a = x.abs();
        let tail = (1..=120).rev().fold(a, |f, n| a + n as f64 / 2.0 / f);
        return x.signum() * (1.0 - (-a * a).exp() / tail * std::f64::consts::FRAC_2_SQRT_PI / 2.0);
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..60 {
        term *= -x * x / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

pub(super) fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))
}
