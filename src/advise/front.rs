//! The front of objective against quality: rows that no other ok row beats in one without losing in the other.

use super::{Field, objective::Figures, quality};

/// Marks the rows on the front. Rows without an objective or without a quality are not on it.
pub(super) fn mark(field: &mut Field<'_>, figures: &Figures) {
    let metric = field.run.header.primary_metric;
    // Both as costs: less is better.
    let points: Vec<(usize, f64, f64)> = field
        .feasible()
        .into_iter()
        .filter_map(|row| {
            let value = figures.values[row]?;
            let objective = if figures.is_maximised { -value } else { value };
            Some((row, objective, quality::loss(metric, 0.0, field.judged[row].row.primary?.value)))
        })
        .collect();
    for at in undominated(&points.iter().map(|(_, objective, loss)| (*objective, *loss)).collect::<Vec<_>>()) {
        field.judged[points[at].0].row.on_front = true;
    }
}

/// Places of points that no other is at least as good as in both and better than in one.
fn undominated(points: &[(f64, f64)]) -> Vec<usize> {
    let beats = |a: &(f64, f64), b: &(f64, f64)| a.0 <= b.0 && a.1 <= b.1 && (a.0 < b.0 || a.1 < b.1);
    (0..points.len()).filter(|k| !points.iter().any(|other| beats(other, &points[*k]))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_points_are_both_on_the_front_and_beaten_ones_are_not() {
        let points = [(1.0, 3.0), (2.0, 2.0), (2.0, 2.0), (2.0, 3.0), (3.0, 1.0), (1.0, 4.0)];
        assert_eq!(undominated(&points), [0, 1, 2, 4]);
    }
}
