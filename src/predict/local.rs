//! What a step takes on a machine whose rates were measured op by op: this one.
//!
//! An op that a program has is seldom one that was timed. Its time is that of a roof over its work, max(FLOPs / F, bytes / B) with the
//! highest rates of the table (Williams et al., CACM 52(4), 2009), times how far below that roof the same op stayed at the timed sizes
//! nearest to it. Between these goes a locally weighted regression of logarithms (Cleveland and Devlin, JASA 83(403), 1988) over bytes,
//! FLOPs and the last extents of the first two operands, damped so that few sizes do not make a steep slope. Steps of a pipeline follow from
//! a timeline of its stages.

use crate::{
    record::{Environment, ExchangeRate, Neighbour, OpProfile, OpRate, RateTable, RunRecord, Workers},
    stats::median,
    units::{PerSecond, Seconds},
};
use std::collections::VecDeque;

/// Timed sizes that a time is taken from.
const NEIGHBOURS: usize = 8;

/// Keeps a size that was timed from being everything: half of a factor e, squared.
const CLOSE: f64 = 0.25;

/// What damps slopes, against a variance of logarithms.
const DAMPING: f64 = 0.1;

/// How far beyond the nearest sizes' own values a slope may lead: a factor of 1.5.
const BEYOND: f64 = 0.405;

/// How many times as long as the others of its op say a row takes before it is doubted.
const DOUBTED: f64 = 1.3;

/// What is predicted of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepPrediction {
    pub step: Seconds,
    /// Share of it in ops that were not timed on this machine, and that were taken for others of about as much arithmetic for a byte.
    pub assumed_share: f64,
}

impl StepPrediction {
    /// Units a second at so many a step.
    pub fn rate(&self, batch_size: usize) -> PerSecond {
        PerSecond(batch_size as f64 / self.step.0)
    }
}

/// How many times as long as the rates say each kind of work takes: what is put in to see what an answer hangs on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LocalFactors {
    /// Ops whose arithmetic outlasts their memory traffic at the highest rates of the machine.
    pub products: f64,
    /// The others.
    pub memory: f64,
    /// Exchanges between ranks.
    pub exchanges: f64,
    /// Copying rows into the program's memory.
    pub copying: f64,
    /// Ops that were not timed, over what they are taken for.
    pub assumed: f64,
}

impl Default for LocalFactors {
    fn default() -> LocalFactors {
        LocalFactors { products: 1.0, memory: 1.0, exchanges: 1.0, copying: 1.0, assumed: 1.0 }
    }
}

/// An assumption behind a prediction for this machine: its name, by how many times the time of its part is changed at either end, and which part
/// that is.
pub struct LocalAssumption {
    pub name: &'static str,
    pub ends: [f64; 2],
    pub part: fn(&mut LocalFactors) -> &mut f64,
}

/// A part of a prediction: its name, and its factor.
pub type LocalPart = (&'static str, fn(&mut LocalFactors) -> &mut f64);

/// The parts of which a step is the sum.
pub const LOCAL_PARTS: [LocalPart; 4] = [
    ("products", |factors| &mut factors.products),
    ("ops bound by memory", |factors| &mut factors.memory),
    ("exchanges between ranks", |factors| &mut factors.exchanges),
    ("copying rows", |factors| &mut factors.copying),
];

/// Seconds of a step by `LOCAL_PARTS`: of each what the step grows by with it, which of a pipeline is its share of the longest way through the
/// stages. They add up to the step, for it is as many times as long when all of them are.
pub fn local_parts(record: &RunRecord, machine: &Environment) -> Option<Vec<(&'static str, f64)>> {
    let plain = predict_record(record, machine)?.step.0;
    /// Too little for another way through the stages to become the longest.
    const MORE: f64 = 1e-6;
    let grown = |(name, part): LocalPart| {
        let mut factors = LocalFactors::default();
        *part(&mut factors) += MORE;
        Some((name, ((predict_record_with(record, machine, factors)?.step.0 - plain) / MORE).max(0.0)))
    };
    LOCAL_PARTS.into_iter().map(grown).collect()
}

/// How far exchanges, copies and untimed ops are moved: between ranks that share a processor they hang on what else it does.
const WIDELY: [f64; 2] = [0.5, 2.0];

/// What predictions for this machine assume; ops by as much as they are off in the median when they are predicted from others of their kind.
pub fn local_assumptions(op_error: f64) -> Vec<LocalAssumption> {
    let by_error = [1.0 - op_error.min(0.9), 1.0 + op_error];
    vec![
        LocalAssumption { name: "time of products (error of single ops)", ends: by_error, part: |factors| &mut factors.products },
        LocalAssumption {
            name: "time of ops bound by memory (error of single ops)",
            ends: by_error,
            part: |factors| &mut factors.memory,
        },
        LocalAssumption { name: "exchanges between ranks", ends: WIDELY, part: |factors| &mut factors.exchanges },
        LocalAssumption { name: "copying rows", ends: WIDELY, part: |factors| &mut factors.copying },
        LocalAssumption { name: "ops that were not timed", ends: WIDELY, part: |factors| &mut factors.assumed },
    ]
}

/// How fast some workers run ops.
pub struct LocalRates<'a> {
    factors: LocalFactors,
    table: &'a RateTable,
    rows: Vec<Timed<'a>>,
    /// Highest rates of the table, FLOP/s and bytes/s.
    roof: (f64, f64),
}

/// A row of the table, ready for use.
struct Timed<'a> {
    /// Which row of the table.
    at: usize,
    row: &'a OpRate,
    place: Place,
    /// Logarithm of its time over that under the roof.
    beyond: f64,
}

/// Where an op lies among sizes: logarithms of its bytes, its FLOPs and the last extents of its first two operands.
pub(super) type Place = [f64; 4];

pub(super) fn place(shape: &str, flops: u64, bytes: u64) -> Place {
    let last = |operand: Option<&str>| {
        let extent = operand.and_then(|text| text.trim_matches(['[', ']', ' ']).rsplit(", ").next()?.parse::<f64>().ok());
        extent.unwrap_or(1.0).max(1.0).ln()
    };
    let mut operands = shape.split(" x ");
    [(bytes as f64).max(1.0).ln(), (flops as f64).max(1.0).ln(), last(operands.next()), last(operands.next())]
}

fn distance(a: &Place, b: &Place) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
}

impl<'a> LocalRates<'a> {
    /// `None` where the table is empty.
    pub fn new(table: &'a RateTable) -> Option<LocalRates<'a>> {
        let highest = |of: fn(&OpRate) -> f64| table.rows.iter().map(of).filter(|rate| rate.is_finite()).fold(0.0, f64::max);
        let roof = (highest(|row| row.flops.0 as f64 / row.time.0), highest(|row| row.bytes.0 as f64 / row.time.0));
        if !(roof.0 > 0.0 && roof.1 > 0.0) {
            return None;
        }
        let rows = table.rows.iter().enumerate().filter(|(_, row)| row.time.0 > 0.0);
        let rows = rows.map(|(at, row)| Timed {
            at,
            row,
            place: place(&row.shape, row.flops.0, row.bytes.0),
            beyond: (row.time.0 / under(roof, row.flops.0, row.bytes.0)).ln(),
        });
        Some(LocalRates { factors: LocalFactors::default(), table, rows: rows.collect(), roof })
    }

    /// That of these workers, where there is one.
    pub fn find(tables: &'a [RateTable], workers: Workers) -> Option<LocalRates<'a>> {
        LocalRates::new(tables.iter().find(|table| table.workers == workers)?)
    }

    /// Seconds of an op, changed by what is put in, and whether it had to be taken for another.
    fn op(&self, op: &OpProfile) -> (f64, bool) {
        let LocalFactors { products, memory, exchanges, assumed, .. } = self.factors;
        if let Some(seconds) = self.exchange(op) {
            return (seconds * exchanges, false);
        }
        let (seconds, is_assumed) = self.timed(op);
        let multiplies = op.flops.0 as f64 / self.roof.0 > op.bytes.0 as f64 / self.roof.1;
        (seconds * if multiplies { products } else { memory } * if is_assumed { assumed } else { 1.0 }, is_assumed)
    }

    /// As the table has it.
    fn timed(&self, op: &OpProfile) -> (f64, bool) {
        let alike = |timed: &&Timed| timed.row.op == op.op && op.dtype.is_none_or(|dtype| dtype == timed.row.dtype);
        let same = |timed: &&Timed| alike(timed) && timed.row.variant == op.variant;
        let named = |timed: &&Timed| timed.row.op == op.op;
        let is_it = |timed: &&Timed| {
            same(timed) && (&timed.row.shape, timed.row.flops, timed.row.bytes) == (&op.shape, op.flops, op.bytes)
        };
        if let Some(timed) = self.rows.iter().find(is_it) {
            return (timed.row.time.0, false);
        }
        let at = place(&op.shape, op.flops.0, op.bytes.0);
        let under = under(self.roof, op.flops.0, op.bytes.0);
        let time = |rows: Vec<&Timed>| under * nearest(&rows, &at).exp();
        let all = |is_one: &dyn Fn(&&Timed) -> bool| self.rows.iter().filter(|row| is_one(row)).collect::<Vec<_>>();
        for (rows, is_assumed) in [(all(&same), false), (all(&alike), true), (all(&named), true)] {
            if !rows.is_empty() {
                return (time(rows), is_assumed);
            }
        }
        // Whatever does about as much for a byte.
        let intensity = |flops: u64, bytes: u64| (flops as f64 + 1.0).ln() - (bytes as f64).max(1.0).ln();
        let as_intense = |timed: &&Timed| {
            (intensity(timed.row.flops.0, timed.row.bytes.0) - intensity(op.flops.0, op.bytes.0)).abs() < std::f64::consts::LN_2
        };
        let rows = all(&as_intense);
        (if rows.is_empty() { under } else { time(rows) }, true)
    }

    /// Seconds of what other ranks take part in, waiting left out; `None` for any other op.
    fn exchange(&self, op: &OpProfile) -> Option<f64> {
        let numbers = 4 * op.flops.0;
        Some(match op.op.as_str() {
            // Laying out what a rank gives, and taking out a part, are copies.
            "reduce_start" | "take_part" => op.bytes.0.max(2 * op.message_bytes.0) as f64 / self.roof.1,
            "all_reduce" | "sum_ranks" | "every_rank" | "largest_of_ranks" => self.message("all_reduce", numbers),
            "reduce_scatter" => self.message("reduce_scatter", numbers),
            "all_gather" => self.message("all_gather", op.message_bytes.0),
            "send" => self.message("send_receive", op.message_bytes.0),
            // Its sender's time; waiting is told by the timeline.
            "receive" => 0.0,
            _ => return None,
        })
    }

    /// Seconds of an exchange of so many bytes, between the measured sizes.
    fn message(&self, operation: &str, bytes: u64) -> f64 {
        let rows: Vec<&ExchangeRate> = self.table.exchanges.iter().filter(|row| row.operation == operation).collect();
        let Some((first, last)) = rows.first().zip(rows.last()) else { return 2.0 * bytes as f64 / self.roof.1 };
        let size = (bytes as f64).max(1.0);
        if size >= last.bytes.0 as f64 {
            return last.time.0 * size / last.bytes.0 as f64;
        }
        let between = rows.windows(2).find(|pair| size <= pair[1].bytes.0 as f64 && size >= pair[0].bytes.0 as f64);
        let Some([below, above]) = between else { return first.time.0 };
        let share = (size - below.bytes.0 as f64) / (above.bytes.0 as f64 - below.bytes.0 as f64);
        below.time.0 + share * (above.time.0 - below.time.0)
    }

    /// A step of a program, or of the programs of a pipeline's stages.
    pub fn step(&self, stages: &[&[OpProfile]]) -> Option<StepPrediction> {
        let timed: Vec<Vec<(f64, bool)>> = stages.iter().map(|ops| ops.iter().map(|op| self.op(op)).collect()).collect();
        let all = || timed.iter().flatten();
        let whole: f64 = all().map(|(seconds, _)| seconds).sum();
        let assumed: f64 = all().filter(|(_, is_assumed)| *is_assumed).fold(0.0, |sum, (seconds, _)| sum + seconds);
        let seconds: Vec<Vec<f64>> = timed.iter().map(|stage| stage.iter().map(|(seconds, _)| *seconds).collect()).collect();
        let step = if stages.len() == 1 { whole } else { timeline(stages, &seconds)? };
        (whole > 0.0).then(|| StepPrediction { step: Seconds(step), assumed_share: assumed / whole })
    }

    /// Of each row how many times as long it took as the others of its op say; `None` where there are no others.
    fn against_others(&self) -> impl Iterator<Item = Option<f64>> {
        self.rows.iter().enumerate().map(|(k, timed)| {
            let others = self.rows.iter().enumerate().filter(|(j, other)| *j != k && other.row.family() == timed.row.family());
            let others: Vec<&Timed> = others.map(|(_, other)| other).collect();
            (!others.is_empty()).then(|| (timed.beyond - nearest(&others, &timed.place)).exp())
        })
    }

    /// Median relative error of the table's own rows, each predicted from the others of its op.
    pub fn median_error(&self) -> Option<f64> {
        median(&self.against_others().flatten().map(|ratio| (1.0 / ratio - 1.0).abs()).collect::<Vec<_>>())
    }

    /// Rows of the table that took longer than the others of their op say: what disturbs a timing only makes it longer.
    pub fn doubted(&self) -> Vec<usize> {
        let is_doubted = |ratio: Option<f64>| ratio.is_some_and(|ratio| ratio > DOUBTED);
        self.rows.iter().zip(self.against_others()).filter(|(_, ratio)| is_doubted(*ratio)).map(|(timed, _)| timed.at).collect()
    }
}

/// Seconds under the roof.
fn under((flops_per_s, bytes_per_s): (f64, f64), flops: u64, bytes: u64) -> f64 {
    (flops as f64 / flops_per_s).max(bytes.max(1) as f64 / bytes_per_s)
}

/// How far below the roof an op at `at` stays, by a regression over the nearest rows.
fn nearest(rows: &[&Timed], at: &Place) -> f64 {
    regressed(&rows.iter().map(|timed| (timed.place, timed.beyond)).collect::<Vec<_>>(), at)
}

/// The value at `at` of a regression over the nearest of `points`, of which there is at least one.
pub(super) fn regressed(points: &[(Place, f64)], at: &Place) -> f64 {
    type Point = (Place, f64);
    let mut close: Vec<(f64, Point)> = points.iter().map(|point| (distance(&point.0, at), *point)).collect();
    close.sort_by(|a, b| a.0.total_cmp(&b.0));
    close.truncate(NEIGHBOURS);
    let whole: f64 = close.iter().map(|(distance, _)| 1.0 / (distance + CLOSE)).sum();
    let weights: Vec<f64> = close.iter().map(|(distance, _)| 1.0 / (distance + CLOSE) / whole).collect();
    let mean =
        |of: &dyn Fn(&Point) -> f64| close.iter().zip(&weights).map(|((_, point), weight)| weight * of(point)).sum::<f64>();
    let middle: Place = std::array::from_fn(|axis| mean(&|point| point.0[axis]));
    let level = mean(&|point| point.1);
    let apart = |point: &Point, axis: usize| point.0[axis] - middle[axis];
    let matrix: [Place; 4] = std::array::from_fn(|a| {
        std::array::from_fn(|b| mean(&|point| apart(point, a) * apart(point, b)) + if a == b { DAMPING } else { 0.0 })
    });
    let right: Place = std::array::from_fn(|axis| mean(&|point| apart(point, axis) * (point.1 - level)));
    let slopes = solve(matrix, right);
    let value = level + slopes.iter().enumerate().map(|(axis, slope)| slope * (at[axis] - middle[axis])).sum::<f64>();
    let values = || close.iter().map(|(_, point)| point.1);
    value.clamp(values().fold(f64::INFINITY, f64::min) - BEYOND, values().fold(f64::NEG_INFINITY, f64::max) + BEYOND)
}

/// x of A x = b, for A symmetric and positive definite: elimination needs no pivots then.
fn solve<const N: usize>(mut a: [[f64; N]; N], mut b: [f64; N]) -> [f64; N] {
    for column in 0..N {
        for row in column + 1..N {
            let factor = a[row][column] / a[column][column];
            let above = a[column];
            a[row].iter_mut().zip(above).for_each(|(value, above)| *value -= factor * above);
            b[row] -= factor * b[column];
        }
    }
    for row in (0..N).rev() {
        let known: f64 = (row + 1..N).map(|k| a[row][k] * b[k]).sum();
        b[row] = (b[row] - known) / a[row][row];
    }
    b
}

/// When the last stage is done: each works through its ops in order, and waits for what neighbours have not sent yet. `None` where one waits
/// for what nobody sends.
pub(super) fn timeline(stages: &[&[OpProfile]], seconds: &[Vec<f64>]) -> Option<f64> {
    let mut clock = vec![0.0f64; stages.len()];
    let mut next = vec![0usize; stages.len()];
    // When what is under way has been sent: from a stage to the one behind it, and back.
    let mut forward: Vec<VecDeque<f64>> = vec![VecDeque::new(); stages.len()];
    let mut back = forward.clone();
    loop {
        let mut has_moved = false;
        for stage in 0..stages.len() {
            while let Some(op) = stages[stage].get(next[stage]) {
                if op.op == "receive" {
                    let queue = match op.neighbour? {
                        Neighbour::Before => &mut forward[stage.checked_sub(1)?],
                        Neighbour::Behind => &mut back[(stage + 1 < stages.len()).then_some(stage + 1)?],
                    };
                    let Some(sent) = queue.pop_front() else { break };
                    clock[stage] = clock[stage].max(sent);
                }
                clock[stage] += seconds[stage][next[stage]];
                if op.op == "send" {
                    let queue = if op.neighbour? == Neighbour::Behind { &mut forward[stage] } else { &mut back[stage] };
                    queue.push_back(clock[stage]);
                }
                next[stage] += 1;
                has_moved = true;
            }
        }
        if next.iter().zip(stages).all(|(next, ops)| *next == ops.len()) {
            return Some(clock.into_iter().fold(0.0, f64::max));
        }
        if !has_moved {
            return None;
        }
    }
}

/// What is predicted of a step of `record` from rates of `machine`, on which it ran. `None` where nothing was timed of its workers, or
/// where it has no program.
pub fn predict_record(record: &RunRecord, machine: &Environment) -> Option<StepPrediction> {
    predict_record_with(record, machine, LocalFactors::default())
}

/// The same, where each kind of work takes so many times as long.
pub fn predict_record_with(record: &RunRecord, machine: &Environment, factors: LocalFactors) -> Option<StepPrediction> {
    let candidate = &record.candidate;
    let rates = LocalRates::find(&machine.rates, candidate.workers()).filter(|_| !record.profile.is_empty())?;
    let rates = LocalRates { factors, ..rates };
    let stages: Vec<&[OpProfile]> = std::iter::once(&record.profile).chain(&record.further_stages).map(Vec::as_slice).collect();
    let mut prediction = rates.step(&stages)?;
    // Rows are copied into the program's memory before its first op; a device's come while it works.
    if !candidate.device.is_cuda() {
        let copied = record.input_bytes.zip(machine.copy_bytes_per_s).map_or(0.0, |(bytes, rate)| 2.0 * bytes.0 as f64 / rate);
        prediction.step.0 += copied * factors.copying;
    }
    Some(prediction)
}

/// How many times as long as the rates say all takes while the processor reaches `overall` by `MachineSpeed::overall`; `None` where it was not
/// read beside the rates of the record's workers.
pub fn slowdown(record: &RunRecord, machine: &Environment, overall: f64) -> Option<f64> {
    let workers = record.candidate.workers();
    let usual = machine.rates.iter().find(|table| table.workers == workers)?.machine_speed?;
    Some(usual.overall() / overall)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        record::{Candidate, Environment, Status},
        units::{Bytes, Flops},
        vocab::{Compression, DType, Device, Layout, Phase, Precision},
    };

    const WORKERS: Workers = Workers { device: Device::Cpu, ranks: 1, threads: 1 };

    fn rate(op: &str, [m, k, n]: [u64; 3], time: f64) -> OpRate {
        let (flops, bytes) = (Flops(2 * m * k * n), Bytes(4 * (m * k + k * n + m * n)));
        OpRate {
            op: op.into(),
            variant: String::new(),
            dtype: DType::F32,
            shape: format!("[{m}, {k}] x [{k}, {n}]"),
            flops,
            bytes,
            time: Seconds(time),
        }
    }

    fn op(rate: &OpRate) -> OpProfile {
        OpProfile {
            op: rate.op.clone(),
            variant: rate.variant.clone(),
            shape: rate.shape.clone(),
            dtype: Some(rate.dtype),
            neighbour: None,
            flops: rate.flops,
            bytes: rate.bytes,
            message_bytes: Bytes(0),
            time: None,
            waited: None,
        }
    }

    /// A machine of 1 TFLOP/s that needs 1 us to begin.
    fn law([m, k, n]: [u64; 3]) -> f64 {
        1e-6 + (2 * m * k * n) as f64 / 1e12
    }

    fn table() -> RateTable {
        let size = |k: u64| 16 << (2 * (k % 4));
        let all = (0..64).map(|k| [size(k), size(k / 4), size(k / 16)]);
        let rows = all.map(|shape| rate("linear", shape, law(shape))).collect();
        RateTable { workers: WORKERS, unix_s: 0, others_share: None, machine_speed: None, rows, exchanges: Vec::new() }
    }

    #[test]
    fn sizes_between_those_that_were_timed_follow_the_machine_s_law() {
        let table = table();
        let rates = LocalRates::new(&table).unwrap();
        for shape in [[100, 100, 100], [32, 512, 128], [700, 300, 40], [256, 256, 256]] {
            let predicted = rates.step(&[&[op(&rate("linear", shape, 0.0))]]).unwrap();
            let error = predicted.step.0 / law(shape) - 1.0;
            assert!(error.abs() < 0.15 && predicted.assumed_share == 0.0, "{shape:?}: {error:+.3}");
        }
        assert!(rates.median_error().unwrap() < 0.1, "{:?}", rates.median_error());
    }

    #[test]
    fn a_row_that_took_longer_than_the_others_say_is_doubted() {
        let mut table = table();
        let is_doubted = |table: &RateTable| LocalRates::new(table).unwrap().doubted().contains(&40);
        assert!(!is_doubted(&table));
        table.rows[40].time.0 *= 2.0;
        // A row without a time keeps its place.
        table.rows[3].time.0 = 0.0;
        assert!(is_doubted(&table));
        table.rows[40].time.0 /= 4.0;
        assert!(!is_doubted(&table), "nothing makes an op faster than it is");
    }

    #[test]
    fn an_op_that_was_not_timed_is_taken_for_another_and_said_to_be() {
        let table = table();
        let rates = LocalRates::new(&table).unwrap();
        let [known, unknown] = ["linear", "convolution"].map(|name| op(&rate(name, [256, 256, 256], 0.0)));
        let both = rates.step(&[&[known.clone(), unknown]]).unwrap();
        assert!((both.assumed_share - 0.5).abs() < 0.1, "{both:?}");
        let other_type = OpProfile { dtype: Some(DType::Bf16), ..known };
        assert_eq!(rates.step(&[&[other_type]]).unwrap().assumed_share, 1.0);
    }

    #[test]
    fn an_op_that_was_timed_at_its_size_takes_what_it_took() {
        let mut table = table();
        table.rows[40].time.0 *= 3.0;
        let rates = LocalRates::new(&table).unwrap();
        let predicted = rates.step(&[&[op(&table.rows[40])]]).unwrap();
        assert_eq!((predicted.step, predicted.assumed_share), (table.rows[40].time, 0.0));
    }

    #[test]
    fn stages_wait_for_each_other_and_a_message_that_nobody_sends_is_no_answer() {
        let table = table();
        let rates = LocalRates::new(&table).unwrap();
        let work = op(&rate("linear", [1024, 1024, 1024], 0.0));
        let of = |name: &str, neighbour| OpProfile {
            op: name.into(),
            neighbour: Some(neighbour),
            flops: Flops(0),
            bytes: Bytes(0),
            ..work.clone()
        };
        let first = [work.clone(), of("send", Neighbour::Behind), of("receive", Neighbour::Behind), work.clone()];
        let second = [of("receive", Neighbour::Before), work.clone(), of("send", Neighbour::Before)];
        let one = rates.step(&[std::slice::from_ref(&work)]).unwrap().step.0;
        let both = rates.step(&[&first, &second]).unwrap().step.0;
        assert!((both / (3.0 * one) - 1.0).abs() < 0.01, "{both} is not three times {one}");
        assert!(rates.step(&[&first, &second[..2]]).is_none());
    }

    #[test]
    fn exchanges_lie_between_their_measured_sizes() {
        let exchange =
            |bytes: u64, time: f64| ExchangeRate { operation: "all_reduce".into(), bytes: Bytes(bytes), time: Seconds(time) };
        let table = RateTable { exchanges: vec![exchange(4, 1e-6), exchange(1 << 20, 1e-3)], ..table() };
        let rates = LocalRates::new(&table).unwrap();
        assert!((rates.message("all_reduce", 1 << 19) / 0.5e-3 - 1.0).abs() < 0.01);
        assert_eq!((rates.message("all_reduce", 1), rates.message("all_reduce", 1 << 22)), (1e-6, 4e-3));
    }

    /// One thread of the processor.
    fn candidate() -> Candidate {
        Candidate {
            phase: Phase::Infer,
            device: Device::Cpu,
            precision: Precision::Fp32,
            compression: Compression::NONE,
            layout: Layout::SINGLE,
            batch_size: 64,
            threads: 1,
        }
    }

    #[test]
    fn each_assumption_moves_its_own_part_of_a_step() {
        let table = RateTable {
            exchanges: vec![ExchangeRate { operation: "all_reduce".into(), bytes: Bytes(1 << 20), time: Seconds(1e-3) }],
            ..table()
        };
        let product = op(&rate("linear", [1024, 1024, 1024], 0.0));
        let moved = OpProfile { op: "permute".into(), flops: Flops(0), bytes: Bytes(1 << 22), ..product.clone() };
        let summed = OpProfile { op: "all_reduce".into(), flops: Flops(1 << 18), ..product.clone() };
        let record = RunRecord {
            profile: vec![product, moved, summed],
            input_bytes: Some(Bytes(1_000_000)),
            ..RunRecord::without_result(candidate(), Status::Ok, String::new())
        };
        let machine = Environment { rates: vec![table], copy_bytes_per_s: Some(1e9), ..Environment::default() };
        let plain = predict_record(&record, &machine).unwrap().step.0;
        let mut parts = 0.0;
        for assumption in local_assumptions(0.1).iter().filter(|one| !one.name.contains("not timed")) {
            let mut factors = LocalFactors::default();
            *(assumption.part)(&mut factors) = 3.0;
            let more = (predict_record_with(&record, &machine, factors).unwrap().step.0 - plain) / 2.0;
            assert!(more > 0.0, "{}", assumption.name);
            assert!(assumption.ends[0] < 1.0 && assumption.ends[1] > 1.0);
            parts += more;
        }
        assert!((parts / plain - 1.0).abs() < 1e-9, "{parts} of {plain}");
        let told = local_parts(&record, &machine).unwrap();
        let whole: f64 = told.iter().map(|(_, seconds)| seconds).sum();
        assert!(told.iter().all(|(_, seconds)| *seconds > 0.0) && (whole / plain - 1.0).abs() < 1e-6, "{told:?} of {plain}");
    }

    #[test]
    fn ops_of_another_variant_are_no_neighbours() {
        let mut table = table();
        let slower =
            table.rows.clone().into_iter().map(|row| OpRate { variant: "gelu".into(), time: Seconds(2.0 * row.time.0), ..row });
        let slower: Vec<OpRate> = slower.collect();
        table.rows.extend(slower);
        let rates = LocalRates::new(&table).unwrap();
        let plain = op(&rate("linear", [256, 256, 256], 0.0));
        let of = |variant: &str| rates.step(&[&[OpProfile { variant: variant.into(), ..plain.clone() }]]).unwrap();
        assert!((of("gelu").step.0 / of("").step.0 - 2.0).abs() < 0.01, "{:?}", of("gelu"));
        assert_eq!((of("gelu").assumed_share, of("tanh").assumed_share), (0.0, 1.0));
    }

    #[test]
    fn a_record_is_predicted_from_the_rates_of_its_own_workers() {
        let mut candidate = candidate();
        let record = |candidate: &Candidate| {
            let profile = vec![op(&rate("linear", [64, 64, 64], 0.0))];
            RunRecord { profile, ..RunRecord::without_result(candidate.clone(), Status::Ok, String::new()) }
        };
        let machine = Environment { rates: vec![table()], copy_bytes_per_s: Some(1e9), ..Environment::default() };
        let alone = predict_record(&record(&candidate), &machine).unwrap().step.0;
        let fed = RunRecord { input_bytes: Some(Bytes(1000)), ..record(&candidate) };
        assert!((predict_record(&fed, &machine).unwrap().step.0 - alone - 2e-6).abs() < 1e-12);
        candidate.threads = 2;
        assert!(predict_record(&record(&candidate), &machine).is_none());
        assert!(predict_record(&record(&candidate), &Environment::default()).is_none());
    }
}
