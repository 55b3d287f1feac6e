//! What one core can do at most: multiply-adds from registers, no memory in the way.

use super::simd::*;
use std::time::Instant;

/// Independent chains: more than latency times ports (4 x 2 on the processors seen), few enough for 16 registers.
const CHAINS: usize = 12;

/// Multiply-adds per burst and chain.
const ROUNDS: usize = 20_000;

#[inline(always)]
unsafe fn burst<S: Simd>(out: &mut [f32; 16]) -> usize {
    unsafe {
        // Numbers the compiler cannot know, or it would do the plain loop itself.
        let (factor, term) = std::hint::black_box((0.999_999f32, 1e-6f32));
        let (factor, term) = (S::splat(factor), S::splat(term));
        let mut chains = [S::splat(1.0); CHAINS];
        for _ in 0..ROUNDS {
            for chain in &mut chains {
                *chain = S::fma(*chain, factor, term);
            }
        }
        // The result is used, so that nothing above can be left out.
        let mut sum = chains[0];
        for chain in &chains[1..] {
            sum = S::add(sum, *chain);
        }
        S::store(out.as_mut_ptr(), sum);
        2 * CHAINS * ROUNDS * S::LANES
    }
}

/// fp32 multiply-add rate of this core with `isa`, FLOP/s: the best of bursts over about `seconds`.
pub fn multiply_add_rate(isa: Isa, seconds: f64) -> f64 {
    bursts(isa, seconds).fold(0.0, |best, (flops, time)| f64::max(best, flops / time))
}

/// The same as a mean over all bursts: what the core gives over `seconds`, disturbances included.
pub fn sustained_rate(isa: Isa, seconds: f64) -> f64 {
    let (flops, time) = bursts(isa, seconds).fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    flops / time
}

/// FLOPs and seconds of one burst after another, until `seconds` are over.
fn bursts(isa: Isa, seconds: f64) -> impl Iterator<Item = (f64, f64)> {
    let start = Instant::now();
    std::iter::from_fn(move || {
        (start.elapsed().as_secs_f64() < seconds).then(|| {
            let mut out = [0.0; 16];
            let begin = Instant::now();
            // SAFETY: `simd!` runs the body of the instruction set it names, which `Isa` values promise to exist; `out` has 16
            // lanes, the most of any.
            let flops = unsafe { simd!(isa, burst, [](&mut out)) };
            let time = begin.elapsed().as_secs_f64();
            std::hint::black_box(out);
            (flops as f64, time)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_has_a_plausible_rate() {
        for isa in Isa::available() {
            let rate = multiply_add_rate(isa, 0.01);
            assert!(rate > 1e8 && rate < 1e13, "{isa:?}: {rate}");
        }
    }
}
