//! Tests and intervals by resampling: nothing is assumed of the distribution.

use super::{counts::Interval, describe::quantile};

/// A small seeded generator (splitmix64, Steele, Lea & Flood 2014) for resampling and shuffling.
#[derive(Clone, Debug)]
pub struct Generator(u64);

impl Generator {
    pub fn new(seed: u64) -> Self {
        Generator(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `0..n`, by multiplication with rejection (Lemire 2019). `n` at least 1.
    pub fn below(&mut self, n: usize) -> usize {
        let n = n as u64;
        let threshold = n.wrapping_neg() % n;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(n);
            if product as u64 >= threshold {
                return (product >> 64) as usize;
            }
        }
    }

    /// Uniform in `[0, 1)`, 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box & Muller 1958).
    pub fn normal(&mut self) -> f64 {
        // 1 - u lies in (0, 1]: its logarithm is finite.
        let (u, v) = (1.0 - self.unit(), self.unit());
        (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()
    }

    /// Puts `items` in a random order (Fisher & Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// Two-sided p of the paired sign-flip test on the mean of `differences`: exact up to 16 pairs, 20,000 seeded draws beyond.
/// `None` without pairs. Fewer than 6 pairs cannot reach 0.05.
pub fn sign_flip(differences: &[f64]) -> Option<f64> {
    if differences.is_empty() {
        return None;
    }
    let observed = differences.iter().sum::<f64>().abs();
    // Equal sums must count as equal although their terms were added in another order.
    let reaches = |sum: f64| sum.abs() >= observed * (1.0 - 1e-12);
    if differences.len() <= 16 {
        let all = 1u32 << differences.len();
        let extreme = (0..all)
            .filter(|signs| {
                let signed = differences.iter().enumerate().map(|(k, d)| if signs >> k & 1 == 1 { -d } else { *d });
                reaches(signed.sum())
            })
            .count();
        return Some(extreme as f64 / f64::from(all));
    }
    let mut generator = Generator::new(0x51F1);
    let draws = 20_000;
    let extreme = (0..draws)
        .filter(|_| reaches(differences.iter().map(|d| if generator.next_u64() & 1 == 1 { -d } else { *d }).sum()))
        .count();
    // The observed assignment counts as one of the draws (Davison & Hinkley 1997, section 4.2).
    Some((extreme + 1) as f64 / f64::from(draws + 1))
}

/// Percentile bootstrap interval (Efron 1979) of `statistic` over `values`, `confidence` in (0, 1). `None` below two values.
pub fn bootstrap_interval(
    values: &[f64],
    statistic: impl Fn(&[f64]) -> f64,
    resamples: usize,
    confidence: f64,
    seed: u64,
) -> Option<Interval> {
    if values.len() < 2 {
        return None;
    }
    let mut generator = Generator::new(seed);
    let mut draw = vec![0.0; values.len()];
    let drawn: Vec<f64> = (0..resamples)
        .map(|_| {
            draw.iter_mut().for_each(|v| *v = values[generator.below(values.len())]);
            statistic(&draw)
        })
        .collect();
    let tail = (1.0 - confidence) / 2.0;
    Some(Interval { low: quantile(&drawn, tail)?, high: quantile(&drawn, 1.0 - tail)? })
}

/// Fewest pairs with which the exact sign-flip test can reach 0.05 where Holm's correction multiplies the smallest p by `tests`: two of
/// the `2^n` sign patterns are the most extreme.
pub fn fewest_pairs(tests: usize) -> usize {
    (1..).find(|n| 2.0 * 0.5f64.powi(*n) * tests.max(1) as f64 <= 0.05).expect("halving ends below any bound") as usize
}

/// Two-sided p of the permutation test on the difference of two means: exact up to 16 values in all, 20,000 seeded draws beyond. `None`
/// where a side has no value.
pub fn permutation(a: &[f64], b: &[f64]) -> Option<f64> {
    if a.is_empty() || b.is_empty() {
        return None;
    }
    let mut all: Vec<f64> = a.iter().chain(b).copied().collect();
    let whole: f64 = all.iter().sum();
    // The difference of the means, from the sum of those that are put on the side of `a`.
    let difference = |sum: f64| (sum / a.len() as f64 - (whole - sum) / b.len() as f64).abs();
    let observed = difference(a.iter().sum());
    let scale = all.iter().fold(0.0f64, |most, value| most.max(value.abs()));
    // Equal sums must count as equal although their terms were added in another order.
    let reaches = |sum: f64| difference(sum) >= observed - 1e-12 * scale;
    if all.len() <= 16 {
        let sides: Vec<u32> = (0..1u32 << all.len()).filter(|side| side.count_ones() as usize == a.len()).collect();
        let sum = |side: &u32| all.iter().enumerate().filter(|(k, _)| side >> k & 1 == 1).map(|(_, value)| value).sum();
        return Some(sides.iter().filter(|side| reaches(sum(side))).count() as f64 / sides.len() as f64);
    }
    let mut generator = Generator::new(0x9E4A);
    let draws = 20_000;
    let mut extreme = 0;
    for _ in 0..draws {
        for k in 0..a.len() {
            let other = k + generator.below(all.len() - k);
            all.swap(k, other);
        }
        extreme += usize::from(reaches(all[..a.len()].iter().sum()));
    }
    Some((extreme + 1) as f64 / f64::from(draws + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::median;

    #[test]
    fn six_equal_signs_are_the_least_that_reach_five_percent() {
        assert_eq!(sign_flip(&[1.0; 5]), Some(2.0 / 32.0));
        assert_eq!(sign_flip(&[1.0; 6]), Some(2.0 / 64.0));
        assert_eq!(sign_flip(&[1.0, -1.0]), Some(1.0));
        assert!(sign_flip(&[0.5; 40]).unwrap() < 1e-3);
        assert_eq!([1, 2, 3, 7, 100].map(fewest_pairs), [6, 7, 7, 9, 12]);
    }

    #[test]
    fn the_permutation_test_is_exact_for_few_values_and_keeps_its_level_for_many() {
        // Two of the 20 ways to put three of six values on a side are the most extreme.
        assert_eq!(permutation(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]), Some(0.1));
        assert_eq!(permutation(&[1.0; 3], &[1.0; 3]), Some(1.0));
        assert_eq!(permutation(&[], &[1.0]), None);
        assert!(permutation(&[1.0; 12], &[1.1; 12]).unwrap() < 1e-4);
        let mut generator = Generator::new(3);
        let mut normal = |n: usize| (0..n).map(|_| generator.normal()).collect::<Vec<f64>>();
        let alarms = (0..200).filter(|_| permutation(&normal(8), &normal(8)).unwrap() <= 0.05).count();
        assert!((2..=20).contains(&alarms), "{alarms} of 200");
    }

    #[test]
    fn draws_below_n_are_even() {
        let mut generator = Generator::new(1);
        let mut seen = [0; 7];
        for _ in 0..70_000 {
            seen[generator.below(7)] += 1;
        }
        assert!(seen.iter().all(|n| (9_500..10_500).contains(n)), "{seen:?}");
    }

    #[test]
    fn the_bootstrap_covers_the_truth_about_as_often_as_it_says() {
        let mut generator = Generator::new(9);
        // Sum of 12 uniforms: close to normal with mean 6.
        let mut normal = || (0..12).map(|_| generator.next_u64() as f64 / u64::MAX as f64).sum::<f64>();
        let mut covered = 0;
        for seed in 0..200 {
            let values: Vec<f64> = (0..30).map(|_| normal()).collect();
            let interval = bootstrap_interval(&values, |v| median(v).unwrap(), 400, 0.95, seed).unwrap();
            covered += usize::from(interval.low <= 6.0 && 6.0 <= interval.high);
        }
        assert!((178..=200).contains(&covered), "{covered} of 200");
    }
}
