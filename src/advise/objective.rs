//! The figure that is optimised: what was observed of each row, and what 2,000 resamples of the measurements say it might have been.
//!
//! All rows of a resample share their draw: rounds that were timed together are drawn together, and so are test rows and seeds. A
//! noisy quarter of an hour that slowed everything is thus no reason to doubt an order.

use super::{
    Field, RESAMPLES,
    rows::seeds,
    speed::{self, Blocks, RoundKey, Series, Timing},
};
use crate::{
    cost,
    record::{Quality, RunRecord},
    stats::{Generator, median, time_of_trainings},
    units::{PerSecond, Seconds},
    vocab::{Metric, Objective, Phase},
};
use std::collections::{BTreeMap, HashMap};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Figure {
    UsdPerMillion,
    UsdToTarget,
    Latency,
    SecondsPerEpoch,
    SecondsToTarget,
    JoulesPerUnit,
    PeakMemory,
    Throughput,
    Quality,
}

/// The objective of every row of a phase.
pub(super) struct Figures {
    pub figure: Figure,
    pub is_maximised: bool,
    /// By row, in the figure's own unit; `None` where the row has no such figure.
    pub values: Vec<Option<f64>>,
    /// By row, `RESAMPLES` each; empty for rows that cannot be picked.
    pub draws: Vec<Vec<f64>>,
}

impl Figure {
    fn of(field: &Field<'_>) -> Figure {
        let has_target =
            field.run.header.train.target.is_some() || field.judged.iter().any(|judged| judged.row.time_to_target.is_some());
        let trains_to_target = field.phase == Phase::Train && has_target;
        match field.run.header.goal.objective {
            Objective::Cost if trains_to_target => Figure::UsdToTarget,
            Objective::Cost => Figure::UsdPerMillion,
            Objective::Time if trains_to_target => Figure::SecondsToTarget,
            Objective::Time if field.phase == Phase::Train => Figure::SecondsPerEpoch,
            Objective::Time => Figure::Latency,
            Objective::Energy => Figure::JoulesPerUnit,
            Objective::Memory => Figure::PeakMemory,
            Objective::Throughput => Figure::Throughput,
            Objective::Accuracy => Figure::Quality,
        }
    }

    /// The series of rounds from which it is made, where it is.
    pub fn series(self, timing: &Timing) -> Option<&Series> {
        match self {
            Figure::UsdPerMillion | Figure::Throughput | Figure::SecondsPerEpoch => Some(&timing.rates),
            Figure::Latency => Some(&timing.latencies),
            _ => None,
        }
    }

    /// The blocks from which it is made, where it is made of rounds.
    pub fn blocks(self, timing: &Timing) -> Option<&Blocks> {
        match self {
            Figure::UsdPerMillion | Figure::Throughput | Figure::SecondsPerEpoch => Some(&timing.rates_by_block),
            Figure::Latency => Some(&timing.latencies_by_block),
            _ => None,
        }
    }

    /// From a comparable rate or latency to the figure.
    fn of_pace(self, field: &Field<'_>, pace: f64) -> f64 {
        match self {
            Figure::UsdPerMillion => cost::usd_per_million(field.price.usd_per_hour, PerSecond(pace)).0,
            Figure::SecondsPerEpoch => field.run.header.train_rows.max(1) as f64 / pace,
            _ => pace,
        }
    }

    /// Whether one rate decides it, so that its ratio between two rows is that of their throughputs.
    pub fn is_of_rate(self) -> bool {
        matches!(self, Figure::UsdPerMillion | Figure::Throughput | Figure::SecondsPerEpoch)
    }
}

impl Figures {
    pub fn of(field: &Field<'_>) -> Figures {
        let figure = Figure::of(field);
        let is_maximised = field.run.header.goal.objective.is_maximised();
        let values: Vec<Option<f64>> =
            (0..field.judged.len()).map(|row| observed(field, figure, row).filter(|value| value.is_finite())).collect();
        let drawn: Vec<usize> = field.feasible().into_iter().filter(|row| values[*row].is_some()).collect();
        let mut figures = Figures { figure, is_maximised, draws: vec![Vec::new(); values.len()], values };
        match figure {
            _ if figure.is_paced() => figures.draw_rounds(field, &drawn),
            Figure::UsdToTarget | Figure::SecondsToTarget => figures.draw_seeds(field, &drawn, time_of_drawn),
            Figure::Quality if field.phase == Phase::Train => figures.draw_seeds(field, &drawn, metric_of_drawn),
            Figure::Quality => figures.draw_test_rows(field, &drawn),
            _ => figures.repeat(&drawn),
        }
        figures
    }

    /// Whether `a` is better than `b`.
    pub fn is_better(&self, a: f64, b: f64) -> bool {
        if self.is_maximised { a > b } else { a < b }
    }

    /// Relative loss of having `value` where `best` was to be had, from 0 to 1: a draw that never reaches the target is infinitely slow,
    /// and one such draw must not outweigh all others, so nothing counts as more than a loss of the whole.
    pub fn loss(&self, value: f64, best: f64) -> f64 {
        let loss = if self.is_maximised { (best - value) / best } else { (value - best) / best };
        if loss.is_nan() { 0.0 } else { loss.clamp(0.0, 1.0) }
    }

    /// Independent samples behind a row's figure (timed rounds, seeds, test rows); `None` for a figure that was measured once.
    pub fn samples(&self, field: &Field<'_>, row: usize) -> Option<usize> {
        let judged = &field.judged[row];
        match self.figure {
            figure if figure.is_paced() => figure.series(&judged.timing).map(Series::len),
            Figure::UsdToTarget | Figure::SecondsToTarget => Some(seeds(judged.record).len()),
            Figure::Quality if field.phase == Phase::Train => Some(seeds(judged.record).len()),
            Figure::Quality => {
                let rows = field.run.header.test_labels.len();
                judged.record.quality.as_ref().map(|quality| quality.predictions.len()).filter(|n| *n == rows && rows > 0)
            }
            _ => None,
        }
    }

    /// A figure without noise: every resample is what was observed.
    fn repeat(&mut self, rows: &[usize]) {
        for &row in rows {
            self.draws[row] = vec![self.values[row].expect("only rows with a value are drawn"); RESAMPLES];
        }
    }

    fn draw_rounds(&mut self, field: &Field<'_>, rows: &[usize]) {
        let series: Vec<&Series> = rows
            .iter()
            .map(|row| self.figure.series(&field.judged[*row].timing).expect("this figure is made of rounds"))
            .collect();
        let base = field.baseline.and_then(|at| self.figure.series(&field.judged[at].timing)).filter(|base| !base.is_empty());
        let groups = together(&series, base);
        let mut generator = Generator::new(speed::SEED);
        for _ in 0..RESAMPLES {
            let counts = draw_rounds(&groups, &mut generator);
            let base_median = base.and_then(|base| weighted_median(base, &counts).or_else(|| speed::comparable(base, None)));
            for (row, series) in rows.iter().zip(&series) {
                let ratios: Option<Series> =
                    base.map(|base| series.iter().filter_map(|(key, value)| Some((*key, value / base.get(key)?))).collect());
                let pace = match ratios.filter(|ratios| !ratios.is_empty()).zip(base_median) {
                    Some((ratios, base_median)) => median_of(&ratios, &counts, &mut generator) * base_median,
                    None => median_of(series, &counts, &mut generator),
                };
                self.draws[*row].push(self.figure.of_pace(field, pace));
            }
        }
    }

    /// `of_drawn` makes the figure from the drawn seeds of a record. Seed k of every row is drawn together: it had the same data order.
    fn draw_seeds(&mut self, field: &Field<'_>, rows: &[usize], of_drawn: fn(&RunRecord, &[usize]) -> Option<f64>) {
        let mut generator = Generator::new(speed::SEED);
        for _ in 0..RESAMPLES {
            let mut draws: HashMap<usize, Vec<usize>> = HashMap::new();
            for &row in rows {
                let record = field.judged[row].record;
                let n = seeds(record).len();
                let drawn = draws.entry(n).or_insert_with(|| (0..n).map(|_| generator.below(n)).collect());
                let value = of_drawn(record, drawn).map(|value| match self.figure {
                    Figure::UsdToTarget if value.is_finite() => field.price.usd_per_hour.times(Seconds(value)).0,
                    _ => value,
                });
                self.draws[row].push(value.unwrap_or_else(|| self.values[row].expect("only rows with a value are drawn")));
            }
        }
    }

    /// Test rows with the same label and the same answers by all candidates are one kind; a draw is how often each kind came.
    fn draw_test_rows(&mut self, field: &Field<'_>, rows: &[usize]) {
        let labels = &field.run.header.test_labels;
        let metric = field.run.header.primary_metric;
        let answers = |row: usize| field.judged[row].record.quality.as_ref().map(|q: &Quality| &q.predictions);
        let (answered, silent): (Vec<usize>, Vec<usize>) =
            rows.iter().partition(|row| !labels.is_empty() && answers(**row).is_some_and(|a| a.len() == labels.len()));
        self.repeat(&silent);
        let mut kinds: BTreeMap<Vec<u32>, usize> = BTreeMap::new();
        let mut kind_of_row = Vec::with_capacity(labels.len());
        for (at, label) in labels.iter().enumerate() {
            let mut kind = vec![*label];
            kind.extend(answered.iter().filter_map(|row| answers(*row)).map(|answers| answers[at]));
            let next = kinds.len();
            kind_of_row.push(*kinds.entry(kind).or_insert(next));
        }
        let mut patterns = vec![Vec::new(); kinds.len()];
        for (kind, at) in kinds {
            patterns[at] = kind;
        }
        let mut counts = vec![0u64; patterns.len()];
        kind_of_row.iter().for_each(|kind| counts[*kind] += 1);
        let values = |counts: &[u64]| -> Vec<Option<f64>> {
            (0..answered.len())
                .map(|k| metric_of(metric, patterns.iter().map(|p| (p[0], p[k + 1])).zip(counts.iter().copied())))
                .collect()
        };
        // A resample's difference from the same formula on all rows is added to the recorded metric, so that a metric that cannot be
        // had from answers alone (ROC-AUC) or is averaged in another way stays where it was recorded.
        let whole = values(&counts);
        let mut generator = Generator::new(speed::SEED);
        for _ in 0..RESAMPLES {
            counts.fill(0);
            (0..labels.len()).for_each(|_| counts[kind_of_row[generator.below(labels.len())]] += 1);
            for ((row, now), whole) in answered.iter().zip(values(&counts)).zip(&whole) {
                let change = now.zip(*whole).map_or(0.0, |(now, whole)| now - whole);
                self.draws[*row].push(self.values[*row].expect("only rows with a value are drawn") + change);
            }
        }
    }
}

impl Figure {
    /// Whether it is made of timed rounds.
    pub fn is_paced(self) -> bool {
        self.is_of_rate() || self == Figure::Latency
    }
}

fn observed(field: &Field<'_>, figure: Figure, row: usize) -> Option<f64> {
    let judged = &field.judged[row];
    if let Some(series) = figure.series(&judged.timing) {
        let base = field.baseline.and_then(|at| figure.series(&field.judged[at].timing));
        return speed::comparable(series, base).map(|pace| figure.of_pace(field, pace));
    }
    let row = &judged.row;
    match figure {
        Figure::UsdToTarget => row.cost_to_target.map(|cost| cost.0),
        Figure::SecondsToTarget => row.time_to_target.map(|time| time.0),
        Figure::JoulesPerUnit => row.energy_j_per_unit.filter(|_| row.energy_valid == Some(true)),
        Figure::PeakMemory => row.peak_memory.map(|bytes| bytes.0 as f64),
        Figure::Quality => row.primary.map(|primary| primary.value),
        _ => None,
    }
}

/// Rounds that must be drawn from the same bag: those that share a row. The baseline is in nearly all and joins none; rounds that
/// only the baseline has make one bag a session.
fn together(series: &[&Series], base: Option<&Series>) -> Vec<Vec<RoundKey>> {
    let mut groups: Vec<Vec<RoundKey>> = Vec::new();
    for series in series.iter().filter(|series| !base.is_some_and(|base| std::ptr::eq(**series, base))) {
        let mut joined: Vec<RoundKey> = series.keys().copied().collect();
        groups.retain_mut(|group| {
            let shares = group.iter().any(|key| series.contains_key(key));
            if shares {
                joined.append(group);
            }
            !shares
        });
        joined.sort_unstable();
        joined.dedup();
        groups.push(joined);
    }
    let mut alone: BTreeMap<u32, Vec<RoundKey>> = BTreeMap::new();
    for key in base.into_iter().flat_map(Series::keys).filter(|key| !groups.iter().any(|group| group.contains(key))) {
        alone.entry(key.0).or_default().push(*key);
    }
    groups.extend(alone.into_values());
    groups.retain(|group| !group.is_empty());
    groups
}

fn draw_rounds(groups: &[Vec<RoundKey>], generator: &mut Generator) -> HashMap<RoundKey, usize> {
    let mut counts = HashMap::new();
    for group in groups {
        for _ in 0..group.len() {
            *counts.entry(group[generator.below(group.len())]).or_insert(0) += 1;
        }
    }
    counts
}

/// Median of the values, each as often as its round was drawn; `None` when none was.
fn weighted_median(series: &Series, counts: &HashMap<RoundKey, usize>) -> Option<f64> {
    let drawn: Vec<f64> =
        series.iter().flat_map(|(key, value)| std::iter::repeat_n(*value, counts.get(key).copied().unwrap_or(0))).collect();
    median(&drawn)
}

/// `weighted_median`; a row that the draw left out entirely (it stopped early, among rows with many more rounds) draws from its own.
fn median_of(series: &Series, counts: &HashMap<RoundKey, usize>, generator: &mut Generator) -> f64 {
    weighted_median(series, counts).unwrap_or_else(|| {
        let values: Vec<f64> = series.values().copied().collect();
        let own: Vec<f64> = values.iter().map(|_| values[generator.below(values.len())]).collect();
        median(&own).expect("only rows with a value, hence with rounds, are drawn")
    })
}

/// Time to the target of the drawn seeds; a draw that misses it is infinitely slow, so it loses against every one that does not.
fn time_of_drawn(record: &RunRecord, drawn: &[usize]) -> Option<f64> {
    let times: Vec<Option<f64>> = drawn.iter().map(|k| seeds(record)[*k].time_to_target.map(|time| time.0)).collect();
    Some(time_of_trainings(&times).unwrap_or(f64::INFINITY))
}

fn metric_of_drawn(record: &RunRecord, drawn: &[usize]) -> Option<f64> {
    let values: Vec<f64> = drawn.iter().map(|k| seeds(record)[*k].metric).filter(|value| value.is_finite()).collect();
    crate::stats::mean(&values)
}

/// A metric from (label, answer) pairs and how often each came; `None` for those that need scores.
fn metric_of(metric: Metric, pairs: impl Iterator<Item = ((u32, u32), u64)>) -> Option<f64> {
    let (mut right, mut all) = (0u64, 0u64);
    // By class: true positives, predicted, actual.
    let mut classes: BTreeMap<u32, (u64, u64, u64)> = BTreeMap::new();
    let per_class = matches!(metric, Metric::PrecisionMacro | Metric::RecallMacro | Metric::F1Macro);
    for ((label, answer), times) in pairs.filter(|(_, times)| *times > 0) {
        all += times;
        right += if label == answer { times } else { 0 };
        if per_class {
            classes.entry(answer).or_default().1 += times;
            let actual = classes.entry(label).or_default();
            actual.2 += times;
            actual.0 += if label == answer { times } else { 0 };
        }
    }
    let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    let over_classes = |value: fn(u64, u64, u64) -> (u64, u64)| {
        let actual: Vec<_> = classes.values().filter(|class| class.2 > 0).collect();
        let sum: f64 = actual.iter().map(|class| value(class.0, class.1, class.2)).map(|(part, whole)| share(part, whole)).sum();
        Some(sum / actual.len() as f64).filter(|value| value.is_finite())
    };
    match metric {
        Metric::PrecisionMacro => over_classes(|right, predicted, _| (right, predicted)),
        Metric::RecallMacro => over_classes(|right, _, actual| (right, actual)),
        Metric::F1Macro => over_classes(|right, predicted, actual| (2 * right, predicted + actual)),
        Metric::RocAucMacro => None,
        _ => (all > 0).then(|| share(right, all)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{advise::synthetic, vocab::Precision};

    fn series(rounds: std::ops::Range<u32>) -> Series {
        rounds.map(|round| ((0, round), 1.0)).collect()
    }

    #[test]
    fn rounds_that_share_a_row_are_drawn_together_and_the_baseline_joins_none() {
        let (base, a, b, c) = (series(0..12), series(0..4), series(2..6), series(6..10));
        let mut groups = together(&[&base, &a, &b, &c], Some(&base));
        groups.iter_mut().for_each(|group| group.sort_unstable());
        let sizes: Vec<usize> = groups.iter().map(Vec::len).collect();
        assert_eq!(sizes, [6, 4, 2], "{groups:?}");
        let counts = draw_rounds(&groups, &mut Generator::new(1));
        assert_eq!(counts.values().sum::<usize>(), 12);
        assert_eq!((0..6).filter_map(|r| counts.get(&(0, r))).sum::<usize>(), 6, "each bag keeps its size");
    }

    #[test]
    fn a_draw_that_misses_the_target_is_infinitely_slow_and_no_loss_is_more_than_the_whole() {
        let record = synthetic::train(Precision::Fp32, 1e3, &[(Some(10.0), 0.98), (Some(12.0), 0.98), (None, 0.9)]);
        assert_eq!(time_of_drawn(&record, &[0, 1, 2]), Some(12.0));
        assert_eq!(time_of_drawn(&record, &[0, 2, 2]), Some(f64::INFINITY));
        let figures = Figures { figure: Figure::SecondsToTarget, is_maximised: false, values: vec![], draws: vec![] };
        assert_eq!(figures.loss(f64::INFINITY, 10.0), 1.0);
        assert_eq!(figures.loss(f64::INFINITY, f64::INFINITY), 0.0);
        assert_eq!(figures.loss(15.0, 10.0), 0.5);
        assert_eq!(figures.loss(50.0, 10.0), 1.0);
    }

    #[test]
    fn metrics_from_answers_match_hand_counts() {
        // Labels 0 0 0 1, answers 0 0 1 1.
        let pairs = || [((0, 0), 2), ((0, 1), 1), ((1, 1), 1)].into_iter();
        let near = |metric, expected: f64| assert!((metric_of(metric, pairs()).unwrap() - expected).abs() < 1e-12, "{metric:?}");
        near(Metric::Accuracy, 0.75);
        near(Metric::PrecisionMacro, (1.0 + 0.5) / 2.0);
        near(Metric::RecallMacro, (2.0 / 3.0 + 1.0) / 2.0);
        near(Metric::F1Macro, (4.0 / 5.0 + 2.0 / 3.0) / 2.0);
        assert_eq!(metric_of(Metric::RocAucMacro, pairs()), None);
        assert_eq!(metric_of(Metric::Accuracy, std::iter::empty()), None);
    }
}
