//! When enough blocks were timed (docs/method.md; after NVBench's stopping criterion).

use super::{relative_deviation, sample_deviation};

/// Limits of sampling; the rule is asked after every round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StopRule {
    /// Never fewer blocks than this.
    pub least: usize,
    /// Never more.
    pub most: usize,
    /// Relative standard error of the mean that is precise enough.
    pub precision: f64,
}

/// What the rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Continue,
    /// Precise enough.
    Precise,
    /// The last third of the blocks did not lower the relative standard error by a tenth: more will not help soon.
    NoLongerImproving,
    /// `most` is reached.
    Exhausted,
}

impl StopRule {
    /// `rates`: one value a block, in order of time.
    pub fn judge(&self, rates: &[f64]) -> Verdict {
        if rates.len() < self.least.max(2) {
            return Verdict::Continue;
        }
        let error = |values: &[f64]| relative_deviation(values).map(|d| d / (values.len() as f64).sqrt());
        match error(rates) {
            Some(now) if now <= self.precision => return Verdict::Precise,
            Some(now) if rates.len() >= 2 * self.least => {
                let before = &rates[..rates.len() - rates.len() / 3];
                if error(before).is_some_and(|before| now > 0.9 * before) {
                    return Verdict::NoLongerImproving;
                }
            }
            _ => {}
        }
        if rates.len() >= self.most { Verdict::Exhausted } else { Verdict::Continue }
    }

    /// Whether the last `window` step times are flat enough to end a warm-up: the means of their halves differ by less than one
    /// standard error of their difference, or by less than 1 %.
    pub fn is_stable(times: &[f64]) -> bool {
        if times.len() < 4 {
            return false;
        }
        let (early, late) = times.split_at(times.len() / 2);
        let average = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
        let (a, b) = (average(early), average(late));
        let noise = |v: &[f64]| sample_deviation(v).unwrap_or(0.0).powi(2) / v.len() as f64;
        (a - b).abs() <= (noise(early) + noise(late)).sqrt().max(0.01 * b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: StopRule = StopRule { least: 6, most: 24, precision: 0.005 };

    #[test]
    fn quiet_rates_stop_at_the_least_and_wild_ones_at_the_most_or_when_stuck() {
        assert_eq!(RULE.judge(&[100.0; 5]), Verdict::Continue);
        assert_eq!(RULE.judge(&[100.0, 100.1, 99.9, 100.0, 100.1, 100.0]), Verdict::Precise);
        let wild: Vec<f64> = (0..24).map(|k| if k % 2 == 0 { 80.0 } else { 120.0 }).collect();
        assert_eq!(RULE.judge(&wild[..6]), Verdict::Continue);
        assert_ne!(RULE.judge(&wild), Verdict::Continue);
        let worse: Vec<f64> = (0..12).map(|k| 100.0 + f64::from(k * k)).collect();
        assert_eq!(RULE.judge(&worse), Verdict::NoLongerImproving);
    }

    #[test]
    fn a_falling_series_is_not_stable_and_a_flat_one_is() {
        let falling: Vec<f64> = (0..20).map(|k| 2.0 - 0.05 * f64::from(k)).collect();
        assert!(!StopRule::is_stable(&falling));
        assert!(StopRule::is_stable(&[1.0, 1.01, 0.99, 1.0, 1.0, 1.01]));
    }
}
