//! Many tests at once.

/// Holm's step-down correction (Holm 1979): adjusted p values in the order given. Controls the chance of any false alarm.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let mut adjusted = vec![0.0; p.len()];
    let mut floor: f64 = 0.0;
    for (rank, at) in order.into_iter().enumerate() {
        floor = floor.max(((p.len() - rank) as f64 * p[at]).min(1.0));
        adjusted[at] = floor;
    }
    adjusted
}

/// `holm` where several p values belong to one test: those with the same number in `tests`, of which one value stands for all.
pub fn holm_of_tests(p: &[f64], tests: &[usize]) -> Vec<f64> {
    let mut distinct: Vec<usize> = tests.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    let of_test = |test: &usize| tests.iter().position(|other| other == test).map_or(1.0, |at| p[at]);
    let adjusted = holm(&distinct.iter().map(of_test).collect::<Vec<_>>());
    tests.iter().map(|test| distinct.binary_search(test).map_or(1.0, |at| adjusted[at])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holm_matches_a_worked_example() {
        let adjusted = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (got, expected) in adjusted.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert!((got - expected).abs() < 1e-12, "{adjusted:?}");
        }
    }

    #[test]
    fn a_test_that_is_named_thrice_counts_once() {
        assert_eq!(holm_of_tests(&[0.01, 0.01, 0.04, 0.01], &[5, 5, 2, 5]), [0.02, 0.02, 0.04, 0.02]);
        assert_eq!(holm_of_tests(&[], &[]), Vec::<f64>::new());
    }
}
