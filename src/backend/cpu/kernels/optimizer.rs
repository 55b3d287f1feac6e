//! Optimiser steps in place: SGD with momentum, Adam, AdamW, RMSProp, PyTorch's semantics. One pass over weights,
//! gradient and state; it also undoes the loss scale, adds L1 and L2, and rewrites the low-precision copy.
//!
//! State below the smallest normal number becomes 0. Without a gradient it shrinks by its factor a step and, rounded to nearest, would stay at
//! a few times the smallest subnormal number for ever; arithmetic on such takes more than a hundred cycles on several processors (Intel 64 and IA-32
//! Architectures Optimization Reference Manual, floating-point assists).

use super::pool::{Context, Shares};
use super::simd::*;

/// Which rule, with its constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Optimizer {
    /// v = momentum v + g; w -= lr v.
    Sgd { momentum: f32 },
    /// Bias-corrected; w -= lr m' / (sqrt(v') + eps).
    Adam { beta1: f64, beta2: f64, eps: f32 },
    /// Adam after w *= 1 - lr decay.
    AdamW { beta1: f64, beta2: f64, eps: f32, decay: f32 },
    /// s = alpha s + (1 - alpha) g^2; w -= lr g / (sqrt(s) + eps), through a momentum buffer unless momentum is 0.
    RmsProp { alpha: f64, eps: f32, momentum: f32 },
}

impl Optimizer {
    /// How many state slices of the weights' length it keeps, zero at first.
    pub fn states(&self) -> usize {
        match *self {
            Optimizer::Sgd { momentum } => usize::from(momentum != 0.0),
            Optimizer::Adam { .. } | Optimizer::AdamW { .. } => 2,
            Optimizer::RmsProp { momentum, .. } => 1 + usize::from(momentum != 0.0),
        }
    }
}

/// One step of an optimiser: g = unscale gradient + l2 w + l1 sign(w), then the rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    pub optimizer: Optimizer,
    pub lr: f32,
    pub l1: f32,
    pub l2: f32,
    /// Multiplies the gradient: 1 / loss scale, or 1.
    pub unscale: f32,
    /// From 1.
    pub step: u32,
}

impl Update {
    pub fn new(optimizer: Optimizer, lr: f32) -> Update {
        Update { optimizer, lr, l1: 0.0, l2: 0.0, unscale: 1.0, step: 1 }
    }

    pub(super) fn is_momentum_only(&self) -> bool {
        self.l1 == 0.0 && matches!(self.optimizer, Optimizer::Sgd { momentum } if momentum != 0.0)
    }

    /// Step size after bias correction, and what the root of the second moment is multiplied with.
    pub(super) fn corrections(&self) -> (f32, f32) {
        match self.optimizer {
            Optimizer::Adam { beta1, beta2, .. } | Optimizer::AdamW { beta1, beta2, .. } => {
                let power = |b: f64| 1.0 - b.powi(self.step as i32);
                ((self.lr as f64 / power(beta1)) as f32, (1.0 / power(beta2).sqrt()) as f32)
            }
            _ => (self.lr, 1.0),
        }
    }

    pub(super) fn check(&self, n: usize, state: &[&mut [f32]; 2]) {
        for (i, s) in state.iter().enumerate().take(self.optimizer.states()) {
            assert!(s.len() >= n, "update: state {i} has {} elements, {self:?} needs {n}", s.len());
        }
    }
}

/// keep old + (1 - keep) new. A function, because a closure used twice would be compiled without the instruction set.
#[inline(always)]
unsafe fn mix<S: Simd>(keep: f64, old: S::V, new: S::V) -> S::V {
    // The complement is taken before rounding: 1 - 0.999 in f32 is off by 5e-5.
    unsafe { S::fma(S::splat(keep as f32), old, S::mul(S::splat((1.0 - keep) as f32), new)) }
}

/// `v` with 0 for what is smaller than every normal number; not-a-number stays.
#[inline(always)]
unsafe fn settled<S: Simd>(v: S::V) -> S::V {
    unsafe { S::select(S::gt(S::splat(f32::MIN_POSITIVE), S::max(v, S::neg(v))), S::zero(), v) }
}

/// One vector of weights stepped by one of gradients; `s` points at the state and is rewritten.
#[inline(always)]
pub(super) unsafe fn step_vector<S: Simd>(u: &Update, corrections: (f32, f32), w: S::V, g: S::V, s: &mut [S::V; 2]) -> S::V {
    unsafe {
        let mut g = if u.unscale == 1.0 { g } else { S::mul(g, S::splat(u.unscale)) };
        if u.l2 != 0.0 {
            g = S::fma(S::splat(u.l2), w, g);
        }
        if u.l1 != 0.0 {
            let up = S::select(S::gt(w, S::zero()), S::splat(u.l1), S::zero());
            let down = S::select(S::gt(S::zero(), w), S::splat(-u.l1), S::zero());
            g = S::add(g, S::add(up, down));
        }
        let (rate, root) = corrections;
        let (rate, root) = (S::splat(-rate), S::splat(root));
        match u.optimizer {
            Optimizer::Sgd { momentum } => {
                if momentum != 0.0 {
                    g = S::fma(S::splat(momentum), s[0], g);
                    s[0] = g;
                }
                S::fma(rate, g, w)
            }
            Optimizer::Adam { beta1, beta2, eps } | Optimizer::AdamW { beta1, beta2, eps, .. } => {
                let mut w = w;
                if let Optimizer::AdamW { decay, .. } = u.optimizer {
                    w = S::mul(w, S::splat(1.0 - u.lr * decay));
                }
                s[0] = mix::<S>(beta1, s[0], g);
                s[1] = mix::<S>(beta2, s[1], S::mul(g, g));
                let below = S::fma(S::sqrt(s[1]), root, S::splat(eps));
                S::fma(rate, S::div(s[0], below), w)
            }
            Optimizer::RmsProp { alpha, eps, momentum } => {
                s[0] = mix::<S>(alpha, s[0], S::mul(g, g));
                let mut d = S::div(g, S::add(S::sqrt(s[0]), S::splat(eps)));
                if momentum != 0.0 {
                    d = S::fma(S::splat(momentum), s[1], d);
                    s[1] = d;
                }
                S::fma(rate, d, w)
            }
        }
    }
}

/// Whether a loop is compiled for the usual rule alone; decided once per call, because deciding per vector cost three
/// times the arithmetic (23 instead of 7 cycles a vector on Zen 4).
pub(super) trait Path {
    /// SGD with momentum and without L1.
    const MOMENTUM_ONLY: bool;
}
pub(super) struct MomentumOnly;
pub(super) struct AnyRule;
impl Path for MomentumOnly {
    const MOMENTUM_ONLY: bool = true;
}
impl Path for AnyRule {
    const MOMENTUM_ONLY: bool = false;
}

/// Where one step reads and writes: weights, state (null when unused) and the low-precision copy (null when none).
#[derive(Clone, Copy)]
pub(super) struct Slots<L> {
    pub w: *mut f32,
    pub s: [*mut f32; 2],
    pub low: *mut L,
}

// SAFETY: only pointers; threads use disjoint parts.
unsafe impl<L> Send for Slots<L> {}
// SAFETY: as above.
unsafe impl<L> Sync for Slots<L> {}

impl<L: Element> Slots<L> {
    pub(super) fn new(u: &Update, w: &mut [f32], state: [&mut [f32]; 2], low: Option<&mut [L]>) -> Slots<L> {
        u.check(w.len(), &state);
        assert!(low.as_ref().is_none_or(|l| l.len() >= w.len()), "update: the low-precision copy is too short");
        let used = u.optimizer.states();
        let [a, b] = state;
        let pointer = |s: &mut [f32], i: usize| if i < used { s.as_mut_ptr() } else { std::ptr::null_mut() };
        Slots { w: w.as_mut_ptr(), s: [pointer(a, 0), pointer(b, 1)], low: low.map_or(std::ptr::null_mut(), <[L]>::as_mut_ptr) }
    }

    /// Steps the `n` (at most a vector) weights at `at` by the gradient `g`.
    #[inline(always)]
    pub(super) unsafe fn step<S: Simd, P: Path>(&self, u: &Update, c: (f32, f32), at: usize, n: usize, g: S::V) {
        unsafe {
            if P::MOMENTUM_ONLY {
                let Optimizer::Sgd { momentum } = u.optimizer else { std::hint::unreachable_unchecked() };
                let (w_at, v_at) = (self.w.add(at), self.s[0].add(at));
                let (w, v) = (f32::load_part::<S>(w_at, n), f32::load_part::<S>(v_at, n));
                let g = S::fma(S::splat(u.l2), w, S::mul(g, S::splat(u.unscale)));
                let v = S::fma(S::splat(momentum), v, g);
                let w = S::fma(S::splat(-u.lr), v, w);
                f32::store_part::<S>(v_at, settled::<S>(v), n);
                f32::store_part::<S>(w_at, w, n);
                if !self.low.is_null() {
                    L::store_part::<S>(self.low.add(at), w, n);
                }
                return;
            }
            let mut s = [S::zero(); 2];
            for (v, p) in s.iter_mut().zip(self.s) {
                if !p.is_null() {
                    *v = f32::load_part::<S>(p.add(at), n);
                }
            }
            let w = f32::load_part::<S>(self.w.add(at), n);
            let w = step_vector::<S>(u, c, w, g, &mut s);
            f32::store_part::<S>(self.w.add(at), w, n);
            for (v, p) in s.into_iter().zip(self.s) {
                if !p.is_null() {
                    f32::store_part::<S>(p.add(at), settled::<S>(v), n);
                }
            }
            if !self.low.is_null() {
                L::store_part::<S>(self.low.add(at), w, n);
            }
        }
    }
}

/// Steps all of `w` by `g`. `state` as [`Optimizer::states`] says (`&mut []` for unused ones); `low`, when given, is
/// rewritten as w in low precision.
pub fn update<G: Element, L: Element>(
    ctx: &Context,
    u: &Update,
    w: &mut [f32],
    g: &[G],
    state: [&mut [f32]; 2],
    low: Option<&mut [L]>,
) {
    assert!(g.len() >= w.len(), "update: {} gradients for {} weights", g.len(), w.len());
    let n = w.len();
    let slots = Slots::new(u, w, state, low);
    let g = Shares::new_const(g);
    ctx.split(n, 16 * 1024, 64, |_, range| {
        // SAFETY: lengths checked; ranges are disjoint.
        unsafe {
            if u.is_momentum_only() {
                simd!(ctx.isa(), update_range, [G, L, MomentumOnly](u, &slots, g.ptr(), range))
            } else {
                simd!(ctx.isa(), update_range, [G, L, AnyRule](u, &slots, g.ptr(), range))
            }
        }
    });
}

#[inline(always)]
unsafe fn update_range<S: Simd, G: Element, L: Element, P: Path>(
    u: &Update,
    slots: &Slots<L>,
    g: *const G,
    range: std::ops::Range<usize>,
) {
    unsafe {
        let (u, slots) = (*u, *slots);
        let c = u.corrections();
        let mut at = range.start;
        while at + S::LANES <= range.end {
            slots.step::<S, P>(&u, c, at, S::LANES, G::load::<S>(g.add(at)));
            at += S::LANES;
        }
        if at < range.end {
            let n = range.end - at;
            slots.step::<S, P>(&u, c, at, n, G::load_part::<S>(g.add(at), n));
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::check::{Random, contexts, wide, worst};
    use super::*;
    use half::bf16;

    /// The rules in f64, written again from PyTorch's documentation.
    pub(in super::super) fn reference(u: &Update, w: &mut f64, g: f64, s: &mut [f64; 2]) {
        let lr = u.lr as f64;
        let mut g = g * u.unscale as f64 + u.l2 as f64 * *w;
        if *w != 0.0 {
            g += u.l1 as f64 * w.signum();
        }
        match u.optimizer {
            Optimizer::Sgd { momentum } => {
                s[0] = momentum as f64 * s[0] + g;
                *w -= lr * s[0];
            }
            Optimizer::Adam { beta1, beta2, eps } | Optimizer::AdamW { beta1, beta2, eps, .. } => {
                if let Optimizer::AdamW { decay, .. } = u.optimizer {
                    *w -= lr * decay as f64 * *w;
                }
                let (b1, b2) = (beta1, beta2);
                s[0] = b1 * s[0] + (1.0 - b1) * g;
                s[1] = b2 * s[1] + (1.0 - b2) * g * g;
                let m = s[0] / (1.0 - b1.powi(u.step as i32));
                let v = s[1] / (1.0 - b2.powi(u.step as i32));
                *w -= lr * m / (v.sqrt() + eps as f64);
            }
            Optimizer::RmsProp { alpha, eps, momentum } => {
                s[0] = alpha * s[0] + (1.0 - alpha) * g * g;
                let d = g / (s[0].sqrt() + eps as f64);
                s[1] = momentum as f64 * s[1] + d;
                *w -= lr * s[1];
            }
        }
    }

    pub(in super::super) fn rules() -> Vec<Update> {
        // A small eps would let a gradient that cancels to almost nothing decide the direction of a whole step.
        let (beta1, beta2, eps) = (0.9, 0.999, 1e-3f32);
        let mut all: Vec<Update> = [
            Optimizer::Sgd { momentum: 0.9 },
            Optimizer::Sgd { momentum: 0.0 },
            Optimizer::Adam { beta1, beta2, eps },
            Optimizer::AdamW { beta1, beta2, eps, decay: 0.1 },
            Optimizer::RmsProp { alpha: 0.99, eps, momentum: 0.0 },
            Optimizer::RmsProp { alpha: 0.9, eps, momentum: 0.5 },
        ]
        .map(|o| Update::new(o, 0.05))
        .into();
        for u in &mut all[..4] {
            (u.l1, u.l2, u.unscale) = (0.01, 0.02, 0.25);
        }
        all
    }

    /// Those that a rule keeps; the others are empty.
    fn slices(state: &mut [Vec<f32>; 2], used: usize) -> [&mut [f32]; 2] {
        let [a, b] = state;
        [if used > 0 { a } else { &mut [] }, if used == 2 { b } else { &mut [] }]
    }

    /// A unit that no example reaches has no gradient: its state has to end at 0, not creep among subnormal numbers.
    #[test]
    fn a_state_without_gradients_ends_at_zero() {
        for ctx in contexts() {
            for base in rules() {
                let plain = Update { l1: 0.0, l2: 0.0, ..base };
                let (n, used) = (37, plain.optimizer.states());
                let mut state = [vec![2e-38f32; n], vec![2e-38f32; n]];
                let mut w = vec![0.5f32; n];
                for step in 1..=700 {
                    update::<f32, f32>(&ctx, &Update { step, ..plain }, &mut w, &vec![0.0; n], slices(&mut state, used), None);
                }
                for s in &state[..used] {
                    assert!(s.iter().all(|x| *x == 0.0), "{plain:?} {:?}: {:e}", ctx.isa(), s[0]);
                }
            }
            let mut broken = [f32::NAN, f32::INFINITY, -1e-30];
            let u = Update::new(Optimizer::Sgd { momentum: 0.9 }, 0.05);
            update::<f32, f32>(&ctx, &u, &mut [0.5; 3], &[0.0; 3], [&mut broken, &mut []], None);
            assert!(broken[0].is_nan() && broken[1] == f32::INFINITY && broken[2] == 0.9 * -1e-30, "{broken:?}");
        }
    }

    #[test]
    fn five_steps_of_each_rule_agree_with_f64() {
        for ctx in contexts() {
            let mut r = Random::new();
            for base in rules() {
                for n in [1, 17, 129, 40_000] {
                    let mut w: Vec<f32> = r.values(n);
                    let mut low = vec![bf16::NAN; n];
                    let mut state = [vec![0.0f32; n], vec![0.0f32; n]];
                    let mut want: Vec<f64> = w.iter().map(|&x| x as f64).collect();
                    let mut want_state = vec![[0.0f64; 2]; n];
                    for step in 1..=5 {
                        let u = Update { step, ..base };
                        let g: Vec<f32> = r.values(n);
                        update(&ctx, &u, &mut w, &g, slices(&mut state, u.optimizer.states()), Some(&mut low));
                        for i in 0..n {
                            reference(&u, &mut want[i], g[i] as f64, &mut want_state[i]);
                        }
                    }
                    let what = format!("{base:?} {n} {:?}", ctx.isa());
                    worst(&what, &r, &w, &want, 3e-5);
                    let copied: Vec<f32> = w.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
                    assert_eq!(wide(&low), copied, "{what}");
                }
            }
        }
    }
}
