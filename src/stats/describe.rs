//! Location and spread of a few numbers.

/// Arithmetic mean; `None` without values.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Middle value, the mean of the two middle ones for an even count; `None` without values.
pub fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// The result of several trainings from their times to a target, `None` for one that never got there: fastest and slowest are dropped
/// and the rest averaged; one training that never got there counts as the slowest. `None` when two missed, or one of fewer than three.
/// MLPerf training rules, "results" (<https://github.com/mlcommons/training_policies>); fewer than three are averaged as they are.
pub fn time_of_trainings(times: &[Option<f64>]) -> Option<f64> {
    let mut sorted: Vec<f64> = times.iter().map(|time| time.unwrap_or(f64::INFINITY)).collect();
    sorted.sort_by(f64::total_cmp);
    let kept = if sorted.len() < 3 { &sorted[..] } else { &sorted[1..sorted.len() - 1] };
    mean(kept).filter(|time| time.is_finite())
}

/// Linear interpolation between order statistics (type 7 of Hyndman & Fan 1996, the default of R and NumPy). `q` in `[0, 1]`.
pub fn quantile(values: &[f64], q: f64) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = q.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(low + (high - low) * at.fract())
}

/// Standard deviation with `n - 1`; `None` below two values.
pub fn sample_deviation(values: &[f64]) -> Option<f64> {
    let centre = mean(values)?;
    let squares: f64 = values.iter().map(|v| (v - centre).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

/// Sample deviation over the mean.
pub fn relative_deviation(values: &[f64]) -> Option<f64> {
    let centre = mean(values)?;
    Some(sample_deviation(values)? / centre.abs()).filter(|v| v.is_finite())
}

/// Places of values outside Tukey's fences, 1.5 interquartile ranges beyond the quartiles. They are flagged, never removed.
pub fn outliers(values: &[f64]) -> Vec<usize> {
    let (Some(low), Some(high)) = (quantile(values, 0.25), quantile(values, 0.75)) else { return Vec::new() };
    let reach = 1.5 * (high - low);
    (0..values.len()).filter(|k| values[*k] < low - reach || values[*k] > high + reach).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_numpy() {
        let values = [3.0, 1.0, 2.0, 10.0];
        assert_eq!(median(&values), Some(2.5));
        assert_eq!(quantile(&values, 0.25), Some(1.75));
        assert_eq!(quantile(&values, 1.0), Some(10.0));
        assert_eq!(median(&[]), None);
        assert_eq!(sample_deviation(&[1.0]), None);
        assert!((sample_deviation(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap() - 2.138_089_935).abs() < 1e-9);
    }

    #[test]
    fn one_training_of_three_may_miss_its_target_and_counts_as_the_slowest() {
        let time = |times: &[Option<f64>]| time_of_trainings(times);
        assert_eq!(time(&[]), None);
        assert_eq!(time(&[Some(3.0)]), Some(3.0));
        assert_eq!(time(&[Some(3.0), Some(5.0)]), Some(4.0));
        assert_eq!(time(&[Some(3.0), None]), None);
        assert_eq!(time(&[Some(9.0), Some(3.0), None]), Some(9.0));
        assert_eq!(time(&[Some(9.0), None, None]), None);
        assert_eq!(time(&[Some(1.0), Some(2.0), Some(6.0), Some(4.0), Some(100.0)]), Some(4.0));
    }

    #[test]
    fn a_lone_spike_is_flagged() {
        let mut values = vec![1.0; 20];
        values[7] = 3.0;
        assert_eq!(outliers(&values), vec![7]);
        assert!(outliers(&[1.0, 1.1, 0.9]).is_empty());
    }
}
