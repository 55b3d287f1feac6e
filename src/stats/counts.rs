//! Proportions and paired yes-or-no answers.

/// A closed interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

/// Two-sided 95 % point of the normal distribution.
pub const Z95: f64 = 1.959_963_984_540_054;

/// Two-sided 90 % point of the normal distribution, the one-sided 95 % point.
pub const Z90: f64 = 1.644_853_626_951_472_7;

/// 95 % interval of a proportion (Wilson 1927); `[0, 1]` without trials.
pub fn wilson(successes: u64, trials: u64) -> Interval {
    if trials == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let (n, p) = (trials as f64, successes as f64 / trials as f64);
    let z2 = Z95 * Z95;
    let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z95 / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    Interval { low: (centre - half).max(0.0), high: (centre + half).min(1.0) }
}

/// `P(X <= k)` for X binomial with `n` trials of probability `p`, summed from its largest term's logarithm.
pub fn binomial_tail(k: u64, n: u64, p: f64) -> f64 {
    if k >= n {
        return 1.0;
    }
    if p <= 0.0 {
        return 1.0;
    }
    if p >= 1.0 {
        return 0.0;
    }
    // ln of C(n, i) p^i (1-p)^(n-i), by recurrence from i = 0.
    let (ln_p, ln_q) = (p.ln(), (1.0 - p).ln());
    let mut term = n as f64 * ln_q;
    let mut terms = vec![term];
    for i in 0..k {
        term += ((n - i) as f64).ln() - ((i + 1) as f64).ln() + ln_p - ln_q;
        terms.push(term);
    }
    let largest = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = terms.iter().map(|t| (t - largest).exp()).sum();
    (largest + sum.ln()).exp().min(1.0)
}

/// Exact two-sided McNemar test: `lost` rows right before and wrong now, `won` the other way. 1 when nothing flipped.
pub fn mcnemar_exact(lost: u64, won: u64) -> f64 {
    (2.0 * binomial_tail(lost.min(won), lost + won, 0.5)).min(1.0)
}

/// Interval of the paired difference `(lost - won) / rows` (adjusted Wald, Bonett & Price 2012); `z` is `Z95` or `Z90`.
pub fn paired_difference(lost: u64, won: u64, rows: u64, z: f64) -> Interval {
    let n = rows as f64 + 2.0;
    let (l, w) = ((lost as f64 + 1.0) / n, (won as f64 + 1.0) / n);
    let half = z * ((l + w - (l - w).powi(2)) / n).sqrt();
    Interval { low: (l - w - half).max(-1.0), high: (l - w + half).min(1.0) }
}

/// Smallest loss that the exact McNemar test (two-sided, level `alpha`) could show on `rows` rows when `flips` of them change their
/// answer's correctness. At 0.05 six one-way flips are the least that can: `2 / 2^6 < 0.05 <= 2 / 2^5`.
pub fn smallest_provable_loss(flips: u64, rows: u64, alpha: f64) -> f64 {
    let least = (1..1000).find(|flips| mcnemar_exact(*flips, 0) <= alpha).unwrap_or(1000);
    let flips = flips.max(least);
    let won = (0..=flips / 2).rev().find(|won| mcnemar_exact(flips - won, *won) <= alpha).unwrap_or(0);
    (flips - 2 * won) as f64 / rows as f64
}

/// Upper confidence bound on the `q` quantile: the smallest order statistic that exceeds it with probability `confidence`,
/// whatever the distribution (MLPerf inference rules, early stopping). `None` when there are too few values.
pub fn quantile_upper_bound(values: &[f64], q: f64, confidence: f64) -> Option<f64> {
    let n = values.len() as u64;
    // The k-th smallest of n exceeds the quantile with probability P(X <= k - 1), X binomial(n, q); it grows with k.
    let reaches = |k: u64| {
        (1..=n).contains(&k) && {
            let below = if k == n { 1.0 - q.powf(n as f64) } else { binomial_tail(k - 1, n, q) };
            below >= confidence
        }
    };
    if !reaches(n) {
        return None;
    }
    let (mut low, mut high) = (0, n);
    while high - low > 1 {
        let middle = (low + high) / 2;
        if reaches(middle) { high = middle } else { low = middle }
    }
    let k = high;
    let mut sorted = values.to_vec();
    let (_, at, _) = sorted.select_nth_unstable_by(k as usize - 1, f64::total_cmp);
    Some(*at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binomial_tail_matches_exact_values() {
        assert!((binomial_tail(2, 5, 0.5) - 0.5).abs() < 1e-12);
        assert!((binomial_tail(0, 10, 0.1) - 0.9f64.powi(10)).abs() < 1e-12);
        assert!((binomial_tail(9, 10, 0.99) - (1.0 - 0.99f64.powi(10))).abs() < 1e-12);
        assert_eq!(binomial_tail(10, 10, 0.3), 1.0);
    }

    #[test]
    fn mcnemar_needs_six_one_way_flips() {
        assert_eq!(mcnemar_exact(0, 0), 1.0);
        assert!(mcnemar_exact(5, 0) > 0.05);
        assert!(mcnemar_exact(6, 0) < 0.05);
        assert!((mcnemar_exact(10, 2) - 0.038_574_218_75).abs() < 1e-12);
        assert_eq!(mcnemar_exact(10, 2), mcnemar_exact(2, 10));
        assert_eq!(smallest_provable_loss(0, 1000, 0.05), 0.006);
        assert_eq!(smallest_provable_loss(12, 1000, 0.05), 0.008);
    }

    #[test]
    fn wilson_matches_published_values() {
        let interval = wilson(81, 263);
        assert!((interval.low - 0.2553).abs() < 5e-5 && (interval.high - 0.3662).abs() < 5e-5, "{interval:?}");
        assert_eq!(wilson(0, 0), Interval { low: 0.0, high: 1.0 });
    }

    #[test]
    fn a_tail_bound_needs_459_values_for_p99_at_99_percent() {
        let values: Vec<f64> = (0..458).map(f64::from).collect();
        assert_eq!(quantile_upper_bound(&values, 0.99, 0.99), None);
        let values: Vec<f64> = (0..459).map(f64::from).collect();
        assert_eq!(quantile_upper_bound(&values, 0.99, 0.99), Some(458.0));
        let values: Vec<f64> = (0..10_000).map(f64::from).collect();
        let bound = quantile_upper_bound(&values, 0.99, 0.99).unwrap();
        assert!(bound > 9_900.0 && bound < 9_930.0, "{bound}");
    }

    #[test]
    fn paired_difference_covers_the_observed_one() {
        let interval = paired_difference(30, 10, 1000, Z95);
        assert!(interval.low < 0.02 && interval.high > 0.02 && interval.low > 0.0, "{interval:?}");
    }
}
