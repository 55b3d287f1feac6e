//! Whole advices on runs whose truth is known, and properties that hold for any run.

use super::{synthetic::*, *};
use crate::{
    record::{Candidate, Constraints, CostBasis, MachineSpeed, OpProfile, OpRate, RateTable, Status, Workers},
    units::{Bytes, Flops, Seconds, UsdPerHour},
    vocab::{Compression, DType, Device, Layout, Objective, Phase, Precision},
};
use proptest::prelude::*;

fn advised(run: &StoredRun) -> PhaseAdvice {
    let mut advice = advise(run, &PriceBook::shipped()).unwrap();
    assert_eq!(advice.phases.len(), 1);
    advice.phases.remove(0)
}

fn picked(phase: &PhaseAdvice) -> &Pick {
    match &phase.outcome {
        Outcome::Pick(pick) => pick,
        other => panic!("{other:?}"),
    }
}

fn infeasible(phase: &PhaseAdvice) -> &Infeasible {
    match &phase.outcome {
        Outcome::Infeasible(infeasible) => infeasible,
        other => panic!("{other:?}"),
    }
}

const MAGNITUDE: Compression = Compression::magnitude(0.8);

#[test]
fn a_planted_three_percent_is_found_under_drift() {
    let records = vec![
        infer(Compression::NONE, 64, 10_000.0, 20, 0.003, 1),
        infer(MAGNITUDE, 64, 10_300.0, 20, 0.003, 2),
        infer(Compression::TWO_FOUR, 64, 9_900.0, 20, 0.003, 3),
    ];
    let phase = advised(&run(records, Objective::Cost, Constraints::default()));
    let pick = picked(&phase);
    assert_eq!(phase.rows[pick.row].title, "fp32, magnitude:0.8, batch 64, 2 threads");
    assert_eq!(phase.baseline, Some(0));
    assert!(pick.probability_best.unwrap() > 0.95, "{:?}", pick.probability_best);
    assert!(pick.expected_regret.unwrap() < 0.001);
    assert!(pick.ties.is_empty(), "{:?}", pick.reasons);
    let speedup = phase.rows[pick.row].speedup.unwrap();
    assert!((speedup.value - 1.03).abs() < 0.01, "{speedup:?}");
    let interval = speedup.interval.unwrap();
    assert!(interval.low < speedup.value && speedup.value < interval.high && interval.low > 1.01, "{interval:?}");
    // $0.001 a second at 10,300 images a second: about 9.7 cents a million.
    let usd = phase.rows[pick.row].usd_per_million.unwrap();
    assert!((usd.value - 0.0971).abs() < 0.003, "{usd:?}");
    assert!(phase.rows[pick.row].recommended);
    assert_eq!(phase.rows.iter().filter(|row| row.recommended).count(), 1);
}

#[test]
fn the_same_program_twice_is_a_tie() {
    let mut false_alarms = 0;
    for seed in 0..100 {
        let records = vec![
            infer(Compression::NONE, 64, 10_000.0, 20, 0.02, 2 * seed + 1),
            infer(MAGNITUDE, 64, 10_000.0, 20, 0.02, 2 * seed + 2),
        ];
        let phase = advised(&run(records, Objective::Throughput, Constraints::default()));
        let pick = picked(&phase);
        false_alarms += usize::from(pick.ties.is_empty());
        assert!(pick.probability_best.unwrap() >= 0.4, "seed {seed}: {:?}", pick.probability_best);
    }
    assert!(false_alarms <= 8, "{false_alarms} of 100 runs told two equal programs apart");
}

#[test]
fn too_few_rounds_tell_nothing_apart_and_give_no_odds() {
    let mut records = vec![infer(Compression::NONE, 64, 10_000.0, 20, 0.003, 1), infer(MAGNITUDE, 64, 20_000.0, 20, 0.003, 2)];
    let advised_with = |records: &[RunRecord], rounds: u32| {
        let mut records = records.to_vec();
        for record in &mut records {
            record.measurement.as_mut().unwrap().blocks.retain(|block| block.round < rounds);
        }
        advised(&run(records, Objective::Cost, Constraints::default()))
    };
    // What `--quick` takes.
    let phase = advised_with(&records, 3);
    let pick = picked(&phase);
    assert_eq!((pick.row, pick.ties.as_slice()), (1, &[0][..]), "the faster row is picked, and not told apart");
    assert_eq!((pick.probability_best, pick.expected_regret), (None, None));
    assert!(phase.rows.iter().all(|row| row.probability_best.is_none()));
    let has = |text: &str| assert!(pick.reasons.iter().any(|reason| reason.contains(text)), "{:?}", pick.reasons);
    has("too few timed rounds (3 in common; a test at p = 0.05 against 1 row needs 6)");
    has("is unknown: some rows have only 3 timed rounds, and odds need at least 6 of each row");
    let phase = advised_with(&records, 6);
    assert!(picked(&phase).ties.is_empty() && picked(&phase).probability_best.unwrap() > 0.99);
    // Six rounds are twelve pairs: enough for many rows.
    for seed in 0..10 {
        let mut record = infer(Compression::INT8, 64, 9_000.0, 20, 0.003, 10 + seed);
        record.candidate.batch_size = 100 + seed as usize;
        records.push(record);
    }
    assert!(picked(&advised_with(&records, 6)).ties.is_empty());
}

#[test]
fn rows_of_two_groups_are_told_apart_by_way_of_the_baseline() {
    let group = |rate: f64, rounds: std::ops::Range<u32>, seed: u64, batch: usize| {
        let mut record = infer(MAGNITUDE, batch, 1.0, 20, 0.0, 1);
        let wander = |round: u32| 1.0 + 0.2 * f64::from(round).sin();
        record.measurement = Some(measurement(batch, rate, rounds, wander, 0.01, seed));
        record
    };
    let advised_of = |rate: f64, rounds: u32, seed: u64| {
        let mut base = group(10_000.0, 0..2 * rounds, seed, 64);
        base.candidate.compression = Compression::NONE;
        let records = vec![base, group(20_000.0, 0..rounds, seed + 1, 32), group(rate, rounds..2 * rounds, seed + 2, 128)];
        advised(&run(records, Objective::Throughput, Constraints::default()))
    };
    let phase = advised_of(21_000.0, 8, 7);
    assert!(picked(&phase).ties.is_empty(), "{:?}", picked(&phase).reasons);
    let phase = advised_of(30_000.0, 3, 7);
    assert_eq!(picked(&phase).ties.len(), 2, "three rounds each are too few");
    let alarms = (0..60).filter(|seed| picked(&advised_of(20_000.0, 8, 100 + 3 * seed)).ties.is_empty()).count();
    assert!(alarms <= 5, "{alarms} of 60 runs told two equal programs apart");
}

#[test]
fn six_seeds_tell_trainings_apart_and_a_missed_target_counts_as_slower() {
    let times = |first: f64| (0..6).map(|k| (Some(first + f64::from(k)), 0.98)).collect::<Vec<_>>();
    let mut slow = times(100.0);
    slow[3].0 = None;
    let records = vec![train(Precision::Fp32, 5000.0, &slow), train(Precision::Bf16, 4000.0, &times(60.0))];
    let phase = advised(&run(records, Objective::Time, Constraints::default()));
    let pick = picked(&phase);
    assert_eq!((pick.row, pick.ties.len()), (1, 0), "{:?}", pick.reasons);
    assert!(pick.probability_best.unwrap() > 0.99);
}

#[test]
fn a_target_that_no_row_reaches_binds_and_is_not_replaced_by_another_figure() {
    let mut records = vec![
        train(Precision::Fp32, 5000.0, &[(None, 0.91), (None, 0.93), (Some(9.0), 0.97)]),
        train(Precision::Bf16, 9000.0, &[(None, 0.95), (None, 0.96), (None, 0.95)]),
    ];
    for objective in [Objective::Cost, Objective::Time] {
        let mut stored = run(records.clone(), objective, Constraints::default());
        stored.header.train.target = Some(crate::record::Target { metric: crate::vocab::Metric::Accuracy, at_least: 0.97 });
        let phase = advised(&stored);
        let found = infeasible(&phase);
        assert_eq!((found.binding.as_str(), found.nearest), ("train.target", 1));
        assert_eq!(found.reasons[0], "None of 2 rows within every limit reached the target of 0.97 with enough of its seeds.");
        let near = "`bf16, batch 64, 2 threads` came nearest: its accuracy is 0.9533 (mean of 3 seeds), and 0 of them reached the target.";
        assert_eq!(found.reasons[1], near);
    }
    // A row that breaks a limit may have reached it.
    let mut heavy = train(Precision::Fp16, 9000.0, &[(Some(5.0), 0.98)]);
    heavy.peak_memory = Some(Bytes(200 << 20));
    records.push(heavy);
    let limits = Constraints { max_memory_bytes: Some(100 << 20), ..Constraints::default() };
    let phase = advised(&run(records, Objective::Cost, limits));
    assert_eq!(infeasible(&phase).binding, "train.target");
    assert_eq!(infeasible(&phase).reasons[2], "1 row reached it but broke a limit.");
}

#[test]
fn rows_of_groups_that_ran_at_different_times_are_compared_without_the_drift() {
    // Group 1 ran while the machine was half as fast; its candidate is the better one all the same.
    let slow = |round: u32| if round >= 8 { 0.5 } else { 1.0 };
    let mut base = infer(Compression::NONE, 64, 10_000.0, 20, 0.0, 1);
    base.measurement = Some(measurement(64, 10_000.0, 0..16, slow, 0.002, 1));
    let mut early = infer(MAGNITUDE, 64, 0.0, 20, 0.0, 1);
    early.measurement = Some(measurement(64, 12_000.0, 0..8, slow, 0.002, 2));
    let mut late = infer(Compression::INT8, 64, 0.0, 20, 0.0, 1);
    late.measurement = Some(measurement(64, 15_000.0, 8..16, slow, 0.002, 3));
    let phase = advised(&run(vec![base, early, late], Objective::Cost, Constraints::default()));
    let pick = picked(&phase);
    assert_eq!(phase.rows[pick.row].title, "fp32, int8, batch 64, 2 threads");
    assert!(pick.probability_best.unwrap() > 0.95);
    assert!(phase.rows[pick.row].throughput.unwrap().value > phase.rows[1].throughput.unwrap().value);
    assert!(pick.reasons.iter().any(|reason| reason.contains("drift")), "{:?}", pick.reasons);
}

#[test]
fn a_loss_of_accuracy_above_the_limit_is_kept_out_and_the_flip_says_which_limit_lets_it_in() {
    let records = vec![
        infer(Compression::NONE, 64, 10_000.0, 20, 0.002, 1),
        infer(Compression::INT8, 64, 20_000.0, 44, 0.002, 2),
        infer(Compression::channel(0.5), 64, 12_000.0, 23, 0.002, 3),
    ];
    let constraints = Constraints { max_accuracy_drop: Some(0.005), ..Constraints::default() };
    let phase = advised(&run(records, Objective::Cost, constraints));
    let pick = picked(&phase);
    assert_eq!(phase.rows[pick.row].title, "fp32, channel:0.5, batch 64, 2 threads");
    let int8 = phase.rows.iter().position(|row| row.title.contains("int8")).unwrap();
    assert_eq!(phase.rows[int8].status, RowStatus::Infeasible);
    assert_eq!(phase.rows[int8].drop.unwrap().verdict, DropVerdict::TooMuch);
    let text = &phase.rows[int8].violations[0].text;
    assert!(text.starts_with("loss of accuracy 0.0120 is above 0.0050: shown (90 % interval 0.0"), "{text}");
    assert!(text.contains("exact McNemar p < 0.001"), "{text}");
    assert!(phase.rows[int8].probability_best.is_none());
    let flip = pick.flips.iter().find(|flip| flip.row == int8).unwrap();
    assert!(flip.text.contains("`max_accuracy_drop = 0.012` instead of 0.005"), "{}", flip.text);
    assert!(flip.text.contains("becomes the pick and costs 40 % less"), "{}", flip.text);
    assert_eq!(phase.rows[0].drop.unwrap().verdict, DropVerdict::Reference);
    assert!(pick.reasons[1].contains("3 rows lost, 0 won"), "{:?}", pick.reasons);
}

#[test]
fn a_limit_on_the_loss_is_met_broken_or_not_proven() {
    let records = vec![
        infer(Compression::NONE, 64, 10_000.0, 20, 0.002, 1),
        infer(Compression::channel(0.5), 64, 12_000.0, 22, 0.002, 2),
        infer(Compression::TWO_FOUR, 64, 11_000.0, 28, 0.002, 3),
        infer(MAGNITUDE, 64, 15_000.0, 32, 0.002, 4),
        infer(Compression::INT8, 64, 20_000.0, 60, 0.002, 5),
    ];
    let constraints = Constraints { max_accuracy_drop: Some(0.005), ..Constraints::default() };
    let phase = advised(&run(records, Objective::Cost, constraints));
    let row = |word: &str| phase.rows.iter().find(|row| row.title.contains(word)).unwrap();
    let judged = |word: &str| (row(word).status, row(word).drop.unwrap().within_limit);
    assert_eq!(judged("channel"), (RowStatus::Ok, Some(LimitVerdict::Met)));
    assert_eq!(judged("2:4"), (RowStatus::Ok, Some(LimitVerdict::NotProven)));
    assert_eq!(judged("magnitude"), (RowStatus::Infeasible, Some(LimitVerdict::NotProven)));
    assert_eq!(judged("int8"), (RowStatus::Infeasible, Some(LimitVerdict::Broken)));
    let note = &row("2:4").notes.iter().find(|note| note.contains("not proven")).unwrap();
    let expected = "its loss of accuracy, 0.0040, is within the limit of 0.0050, which is not proven: a loss up to 0.0066 is possible with \
                    2,000 test rows (one-sided 95 % bound)";
    assert_eq!(note.as_str(), expected);
    assert!(row("channel").notes.iter().all(|note| !note.contains("not proven")));
    assert!(row("magnitude").reason.as_deref().unwrap().contains("is above 0.0050: not proven (90 % interval 0.00"));
}

#[test]
fn the_interval_of_a_rate_holds_the_noise_of_the_baseline_too() {
    let mut base = infer(Compression::NONE, 64, 1.0, 20, 0.0, 1);
    base.measurement = Some(measurement(64, 10_000.0, 0..12, |_| 1.0, 0.05, 5));
    let mut twin = infer(MAGNITUDE, 64, 1.0, 20, 0.0, 1);
    // The same noise in every block: the ratio is exactly 2, the rate is not known any better than the baseline's.
    twin.measurement = Some(measurement(64, 20_000.0, 0..12, |_| 1.0, 0.05, 5));
    let phase = advised(&run(vec![base, twin], Objective::Throughput, Constraints::default()));
    let width = |row: usize| {
        let rate = phase.rows[row].throughput.unwrap();
        let interval = rate.interval.unwrap();
        assert!(interval.low <= rate.value && rate.value <= interval.high);
        (interval.high - interval.low) / rate.value
    };
    assert!(width(0) > 0.01, "{}", width(0));
    assert!((width(0) - width(1)).abs() < 0.01, "{} {}", width(0), width(1));
    assert_eq!(phase.rows[0].speedup, Some(Estimate { value: 1.0, interval: None }), "1 by definition");
}

#[test]
fn no_gain_is_only_said_where_it_is_shown() {
    // Every other round is slower by `swing`, and the others as much faster.
    let noted = |rate: f64, swing: f64| {
        let records = vec![train(Precision::Fp32, 5000.0, &[(Some(9.0), 0.98)]), {
            let mut record = train(Precision::Bf16, 1.0, &[(Some(9.0), 0.98)]);
            record.measurement =
                Some(measurement(64, rate, 0..8, |round| if round % 2 == 0 { 1.0 - swing } else { 1.0 + swing }, 0.0, 3));
            record
        }];
        let phase = advised(&run(records, Objective::Cost, Constraints::default()));
        let row = phase.rows.iter().find(|row| row.title.contains("bf16")).unwrap();
        row.notes.iter().find(|note| note.starts_with("bf16")).cloned()
    };
    assert!(noted(4_000.0, 0.002).unwrap().starts_with("bf16 is no faster than fp32 on this processor: 0.80x ("));
    assert!(noted(5_000.0, 0.4).unwrap().starts_with("bf16 is not shown to be faster than fp32 on this processor: "));
    assert_eq!(noted(8_000.0, 0.002), None);
}

#[test]
fn the_reason_states_cost_speedup_and_odds() {
    let records = vec![infer(Compression::NONE, 64, 10_000.0, 20, 0.0, 1), infer(Compression::INT8, 256, 20_000.0, 20, 0.0, 2)];
    let mut phase = advised(&run(records, Objective::Cost, Constraints::default()));
    let Outcome::Pick(pick) = &mut phase.outcome else { panic!() };
    let first = &pick.reasons[0];
    assert!(first.starts_with("`fp32, int8, batch 256, 2 threads` costs $0.0"), "{first}");
    assert!(first.contains("per million images, 50 % less than `fp32, batch 64, 2 threads`"), "{first}");
    assert!(first.contains("(speedup 2.00x, 95 % interval 2.00 to 2.00)"), "{first}");
    assert!(pick.reasons.iter().any(|r| r.contains("the cheapest of 2 feasible rows is above 0.99")), "{:?}", pick.reasons);
    assert!(pick.flips[0].text.contains("its throughput rises by more than 100 %"), "{:?}", pick.flips);
    assert!(
        pick.flips[1].text.contains("only on an equally fast machine of $1.80/h, 50 % below the $3.60/h"),
        "{:?}",
        pick.flips
    );
}

#[test]
fn break_evens_follow_from_the_prices_and_the_speeds() {
    let records = vec![infer(Compression::NONE, 64, 10_000.0, 20, 0.0, 1), infer(Compression::INT8, 64, 20_000.0, 20, 0.0, 2)];
    let mut stored = run(records, Objective::Cost, Constraints::default());
    stored.header.environment.instruction_sets = vec!["avx2".into()];
    let evens = picked(&advised(&stored)).break_evens.clone();
    let rate = advised(&stored).rows[1].throughput.unwrap().value;
    let [price, speed] = evens.as_slice() else { panic!("{evens:?}") };
    assert_eq!(price.quantity, "runner_up_usd_per_hour");
    assert!((price.value - 1.8).abs() < 1e-9, "half as fast, half the price: {price:?}");
    assert_eq!(speed.quantity, "catalogue_throughput_per_s");
    assert!((speed.value / (rate * 0.0496 / 3.6) - 1.0).abs() < 1e-9, "{speed:?}");
    assert!(
        speed.text.starts_with("On `nebius/cpu-e2_2vcpu-8gb` at $0.0496/h, `fp32, int8, batch 64, 2 threads` costs the same"),
        "{speed:?}"
    );
    // 0.0396 $/h beside 0.01 $/h of power, from 347.1 $ over two years: half of the hours.
    stored.header.cost = CostBasis::Owned(crate::record::Owned {
        purchase_usd: 0.0396 * 8766.0,
        years: 2.0,
        utilisation: 0.9,
        watts: 100.0,
        usd_per_kwh: 0.1,
    });
    let evens = picked(&advised(&stored)).break_evens.clone();
    assert_eq!(evens[2].quantity, "owned_utilisation");
    assert!((evens[2].value - 0.5).abs() < 1e-9, "{evens:?}");
    stored.header.cost = CostBasis::Auto;
    assert_eq!(picked(&advised(&stored)).break_evens.len(), 1, "priced as the catalogue's own");
}

#[test]
fn an_infeasible_set_names_the_limit_that_binds_and_the_nearest_row() {
    let mut heavy = infer(Compression::NONE, 64, 10_000.0, 20, 0.0, 1);
    heavy.peak_memory = Some(Bytes(200 << 20));
    let records = vec![heavy, infer(MAGNITUDE, 64, 9_000.0, 20, 0.0, 2), infer(Compression::INT8, 64, 12_000.0, 20, 0.0, 3)];
    let constraints =
        Constraints { max_latency_p50: Some(Seconds(0.005)), max_memory_bytes: Some(100 << 20), ..Constraints::default() };
    let phase = advised(&run(records, Objective::Cost, constraints));
    let found = infeasible(&phase);
    assert_eq!(found.binding, "max_latency_p50_ms");
    assert_eq!(phase.rows[found.nearest].title, "fp32, int8, batch 64, 2 threads");
    assert_eq!(found.reasons[0], "No row meets every limit: 3 of 3 measured rows break `max_latency_p50_ms`.");
    assert_eq!(found.reasons[1], "Without `max_latency_p50_ms`, 2 rows would meet the limits.");
    assert!(phase.rows.iter().all(|row| row.status == RowStatus::Infeasible && !row.recommended));
}

#[test]
fn a_missing_tail_breaks_the_limit_on_it() {
    let mut record = infer(Compression::NONE, 64, 10_000.0, 20, 0.0, 1);
    let measurement = record.measurement.as_mut().unwrap();
    measurement.latency_p99 = None;
    measurement.blocks.truncate(4);
    let constraints = Constraints { max_latency_p99: Some(Seconds(1.0)), ..Constraints::default() };
    let phase = advised(&run(vec![record], Objective::Cost, constraints));
    assert_eq!(phase.rows[0].reason.as_deref(), Some("p99 unknown: fewer than 459 steps were timed"));
    assert_eq!(infeasible(&phase).binding, "max_latency_p99_ms");
}

#[test]
fn without_an_energy_counter_the_objective_itself_binds() {
    let mut records = vec![infer(Compression::NONE, 64, 10_000.0, 20, 0.0, 1), infer(MAGNITUDE, 64, 9_000.0, 20, 0.0, 2)];
    let phase = advised(&run(records.clone(), Objective::Energy, Constraints::default()));
    assert_eq!(infeasible(&phase).binding, "minimise = \"energy\"");
    assert!(infeasible(&phase).reasons[0].contains("no energy counter"));
    records[0].energy = Some(energy(5.0, true));
    records[1].energy = Some(energy(1.0, false));
    let phase = advised(&run(records, Objective::Energy, Constraints::default()));
    assert_eq!(picked(&phase).row, 0, "a figure that is not valid does not win");
    assert_eq!(phase.rows[0].energy_j_per_unit, Some(0.005));
    assert_eq!(phase.rows[1].energy_valid, Some(false));
    assert!(phase.rows[1].notes.iter().any(|note| note == "energy is not valid: the window was 0.2 s"));
}

#[test]
fn training_is_judged_by_the_cost_to_the_target() {
    let seeds = |times: [f64; 3]| times.map(|time| (Some(time), 0.975));
    let records = vec![
        train(Precision::Fp32, 5000.0, &seeds([100.0, 110.0, 120.0])),
        train(Precision::Bf16, 4000.0, &seeds([60.0, 62.0, 61.0])),
        // The fastest steps, but only one of three seeds gets there.
        train(Precision::Fp16, 9000.0, &[(Some(20.0), 0.97), (None, 0.5), (None, 0.4)]),
    ];
    let phase = advised(&run(records, Objective::Cost, Constraints::default()));
    let pick = picked(&phase);
    assert_eq!(phase.rows[pick.row].title, "bf16, batch 64, 2 threads");
    assert_eq!(phase.rows[pick.row].time_to_target, Some(Seconds(61.0)));
    assert!((phase.rows[pick.row].cost_to_target.unwrap().0 - 0.061).abs() < 1e-12);
    assert_eq!(phase.rows[2].time_to_target, None);
    assert_eq!(phase.rows[2].probability_best, None);
    assert!(phase.rows[2].notes.iter().any(|note| note.contains("1 of 3 seeds reached the target of 0.97: too few")));
    assert!(phase.rows[1].notes.iter().any(|note| note.starts_with("bf16 is no faster than fp32 on this processor: 0.80x")));
    assert_eq!((pick.probability_best, pick.expected_regret), (None, None), "three seeds are no basis for odds");
    assert_eq!(pick.ties, [0], "nor for a difference");
    let few = "It is not told apart from `fp32, batch 64, 2 threads`: too few seeds (3 in common; a test at p = 0.05 against 1 row needs 6).";
    assert!(pick.reasons.iter().any(|reason| reason == few), "{:?}", pick.reasons);
    assert!((phase.rows[0].primary.unwrap().value - 0.975).abs() < 1e-12);
    assert!(phase.rows.iter().all(|row| row.drop.is_none()));
}

#[test]
fn training_loss_of_accuracy_is_judged_by_the_mean_over_seeds() {
    let records = vec![
        train(Precision::Fp32, 5000.0, &[(None, 0.98), (None, 0.97)]),
        train(Precision::Bf16, 9000.0, &[(None, 0.95), (None, 0.96)]),
    ];
    let constraints = Constraints {
        max_accuracy_drop: Some(0.01),
        // Limits of serving bind a run of training alone, and this one is met.
        max_latency_p50: Some(Seconds(1.0)),
        ..Constraints::default()
    };
    let phase = advised(&run(records, Objective::Time, constraints));
    assert_eq!(phase.rows[picked(&phase).row].title, "fp32, batch 64, 2 threads");
    assert_eq!(phase.rows[1].reason.as_deref(), Some("loss of accuracy 0.0200 is above 0.0100 (means of 2 seeds, not tested)"));
}

#[test]
fn limits_of_serving_do_not_bind_training_beside_inference() {
    let mut training = train(Precision::Fp32, 5000.0, &[(Some(10.0), 0.98)]);
    training.measurement.as_mut().unwrap().latency_p99 = None;
    let records = vec![training, infer(Compression::NONE, 64, 10_000.0, 20, 0.0, 1)];
    let constraints = Constraints { max_latency_p99: Some(Seconds(1.0)), ..Constraints::default() };
    let advice = advise(&run(records, Objective::Cost, constraints), &PriceBook::shipped()).unwrap();
    assert_eq!(advice.phases.iter().map(|p| p.phase).collect::<Vec<_>>(), [Phase::Train, Phase::Infer]);
    let reasons = &picked(&advice.phases[0]).reasons;
    assert!(reasons.iter().any(|reason| reason.contains("do not bind training")), "{reasons:?}");
}

#[test]
fn equal_memory_goes_to_the_earlier_row_and_one_measurement_has_no_odds() {
    let mut records = vec![
        infer(Compression::NONE, 64, 10_000.0, 20, 0.0, 1),
        infer(MAGNITUDE, 64, 9_000.0, 20, 0.0, 2),
        infer(Compression::INT8, 64, 9_000.0, 20, 0.0, 3),
    ];
    records[2].peak_memory = Some(Bytes(100 << 20));
    let phase = advised(&run(records, Objective::Memory, Constraints::default()));
    let pick = picked(&phase);
    assert_eq!((pick.row, pick.probability_best, pick.expected_regret), (0, None, None));
    assert_eq!(pick.ties, [1], "the third differs by more than 1 %, by one measurement each");
    assert!(pick.reasons.iter().any(|reason| reason.contains("is unknown: each was measured once")), "{:?}", pick.reasons);
}

#[test]
fn accuracy_is_decided_by_the_paired_test() {
    let records = vec![
        infer(Compression::NONE, 64, 10_000.0, 40, 0.0, 1),
        infer(MAGNITUDE, 64, 9_000.0, 38, 0.0, 2),
        infer(Compression::INT8, 64, 9_000.0, 90, 0.0, 3),
    ];
    let phase = advised(&run(records, Objective::Accuracy, Constraints::default()));
    let pick = picked(&phase);
    assert_eq!((pick.row, pick.ties.as_slice()), (1, &[0][..]), "two rows won are no difference, fifty are");
    assert!(pick.probability_best.unwrap() > 0.8 && pick.probability_best.unwrap() < 1.0, "{:?}", pick.probability_best);
}

#[test]
fn remarks_compare_a_row_with_its_twin_and_not_with_another_batch_size() {
    let double = |mut record: RunRecord, candidate: Candidate| {
        record.candidate = candidate;
        record
    };
    let dp = Candidate { layout: Layout::data(2), ..candidate(Phase::Infer, Compression::NONE, 256) };
    let records = vec![
        infer(Compression::NONE, 64, 10_000.0, 20, 0.002, 1),
        infer(Compression::NONE, 256, 20_000.0, 20, 0.002, 2),
        infer(MAGNITUDE, 256, 20_050.0, 20, 0.002, 3),
        double(infer(Compression::NONE, 256, 15_000.0, 20, 0.002, 4), dp),
    ];
    let phase = advised(&run(records, Objective::Cost, Constraints::default()));
    let note = |row: usize, start: &str| phase.rows[row].notes.iter().any(|note| note.starts_with(start));
    assert!(note(2, "unstructured zeros buy no time here: 1.00x ("), "{:?}", phase.rows[2].notes);
    assert!(note(3, "dp=2 gains nothing over one rank of as many threads: 0.75x"), "{:?}", phase.rows[3].notes);
    assert!(phase.rows[2].speedup.unwrap().value > 1.9);
}

#[test]
fn the_roof_is_the_lower_of_arithmetic_and_memory() {
    // 1 MFLOP a unit on 2 x 50 GFLOP/s: 100,000 a second; 100 kB a unit at 10 GB/s: 100,000 a second; a third of that is reached.
    let mut records = vec![infer(Compression::NONE, 64, 33_333.0, 20, 0.0, 1), infer(MAGNITUDE, 64, 250_000.0, 20, 0.0, 1)];
    records[0].measurement = Some(measurement(64, 33_333.0, 0..8, |_| 1.0, 0.0, 1));
    let phase = advised(&run(records.clone(), Objective::Cost, Constraints::default()));
    assert!((phase.rows[0].roofline_fraction.unwrap() - 0.33333).abs() < 1e-6);
    assert!(phase.rows[1].notes.iter().any(|note| note.contains("of the roof: data stayed in the cache")));
    records[0].flops_per_unit = None;
    assert_eq!(advised(&run(records, Objective::Cost, Constraints::default())).rows[0].roofline_fraction, None);
}

#[test]
fn holes_are_rows_and_not_panics() {
    let nothing = |status, batch| RunRecord {
        candidate: candidate(Phase::Infer, Compression::NONE, batch),
        ..RunRecord::without_result(candidate(Phase::Infer, Compression::NONE, batch), status, "a reason".into())
    };
    let empty = run(vec![], Objective::Cost, Constraints::default());
    assert!(advise(&empty, &PriceBook::shipped()).unwrap().phases.is_empty());
    let failed = run(vec![nothing(Status::Skipped, 1), nothing(Status::Failed, 2)], Objective::Cost, Constraints::default());
    let phase = advised(&failed);
    assert_eq!(phase.outcome, Outcome::Nothing);
    assert_eq!(phase.rows.iter().map(|row| row.status).collect::<Vec<_>>(), [RowStatus::Failed, RowStatus::Skipped]);
    // Only a compressed row: no baseline, and no judgement of its loss.
    let lone = run(vec![infer(Compression::INT8, 64, 1e4, 20, 0.0, 1)], Objective::Cost, Constraints::default());
    let phase = advised(&lone);
    assert_eq!((phase.baseline, phase.rows[0].speedup, phase.rows[0].drop), (None, None, None));
    assert!(picked(&phase).reasons[0].contains("no fp32 baseline"));
    let limited = Constraints { max_accuracy_drop: Some(0.01), ..Constraints::default() };
    let phase = advised(&run(lone.records, Objective::Cost, limited));
    assert_eq!(phase.rows[0].reason.as_deref(), Some("loss of accuracy unknown: no fp32 baseline was measured"));
    let mut unpriced = empty;
    unpriced.header.cost = CostBasis::Instance("nowhere/x".into());
    assert!(advise(&unpriced, &PriceBook::shipped()).is_err());
}

#[test]
fn the_same_run_gives_the_same_advice() {
    let records = vec![infer(Compression::NONE, 64, 1e4, 20, 0.02, 1), infer(MAGNITUDE, 64, 1.01e4, 22, 0.02, 2)];
    let stored = run(records, Objective::Cost, Constraints::default());
    let book = PriceBook::shipped();
    assert_eq!(advise(&stored, &book).unwrap(), advise(&stored, &book).unwrap());
}

#[derive(Debug, Clone)]
struct Loose {
    kind: usize,
    batch: usize,
    rate: f64,
    noise: f64,
    wrong: usize,
    rounds: (u32, u32),
    holes: u32,
    times: Vec<Option<f64>>,
}

fn loose() -> impl Strategy<Value = Loose> {
    let times = prop::collection::vec(prop::option::of(0.1f64..1e3), 0..4);
    (0usize..6, 1usize..4, 1.0f64..1e6, 0.0f64..0.2, 0usize..300, (0u32..6, 0u32..12), any::<u32>(), times).prop_map(
        |(kind, batch, rate, noise, wrong, rounds, holes, times)| Loose { kind, batch, rate, noise, wrong, rounds, holes, times },
    )
}

/// A record with any part missing or odd.
fn loosened(loose: &Loose, seed: u64) -> RunRecord {
    let hole = |bit: u32| loose.holes >> bit & 7 == 0;
    let compression = [Compression::NONE, MAGNITUDE, Compression::INT8, Compression::TWO_FOUR][loose.kind % 4];
    let mut record = infer(compression, loose.batch, loose.rate, loose.wrong, 0.0, seed);
    if loose.kind >= 4 {
        let seeds: Vec<_> = loose.times.iter().map(|time| (*time, loose.noise)).collect();
        record = train([Precision::Fp32, Precision::Bf16][loose.kind % 2], loose.rate, &seeds);
        record.candidate.batch_size = loose.batch;
    }
    let (first, length) = loose.rounds;
    record.measurement = Some(measurement(loose.batch, loose.rate, first..first + length, |_| 1.0, loose.noise, seed));
    let measurement = record.measurement.as_mut().unwrap();
    if hole(0) {
        measurement.blocks.iter_mut().for_each(|block| block.total = Seconds(0.0));
    }
    if hole(3) {
        measurement.blocks.iter_mut().for_each(|block| block.step_s.clear());
    }
    if hole(6) {
        measurement.latency_p99 = None;
    }
    if hole(9) {
        record.measurement = None;
    }
    if hole(12) {
        record.quality = None;
    }
    if hole(15) {
        record.quality.iter_mut().for_each(|quality| quality.predictions.truncate(3));
    }
    if hole(18) {
        record.peak_memory = None;
    }
    if hole(21) {
        record.status = if loose.holes & 1 == 0 { Status::Failed } else { Status::Skipped };
    }
    if !hole(24) {
        record.energy = Some(energy(loose.rate, loose.holes & 1 == 0));
    }
    if hole(27) {
        record.flops_per_unit = None;
        record.quality.iter_mut().for_each(|quality| quality.metrics.clear());
    }
    record
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_run_is_advised_and_probabilities_sum_to_one(
        rows in prop::collection::vec(loose(), 0..7),
        objective in 0usize..6,
        limits in any::<u8>(),
        labels in any::<bool>(),
        price in prop_oneof![Just(0.0), 0.01f64..10.0],
    ) {
        use Objective::*;
        let set = |bit: u8, value: f64| (limits >> bit & 1 == 1).then_some(value);
        let constraints = Constraints {
            max_accuracy_drop: set(0, 0.02),
            min_accuracy: set(1, 0.9),
            max_latency_p50: set(2, 1e-3).map(Seconds),
            max_latency_p99: set(3, 1e-3).map(Seconds),
            min_throughput: set(4, 1e4).map(crate::units::PerSecond),
            max_memory_bytes: set(5, 1e7).map(|bytes| bytes as u64),
            max_model_bytes: set(6, 0.0).map(|bytes| bytes as u64),
            max_usd_per_million: set(7, 0.1),
        };
        let mut stored = run(vec![], [Cost, Time, Energy, Memory, Throughput, Accuracy][objective], constraints);
        stored.header.cost = CostBasis::Hourly(UsdPerHour(price));
        if !labels {
            stored.header.test_labels.clear();
        }
        for (at, row) in rows.iter().enumerate() {
            stored.accept(loosened(row, at as u64 + 1));
        }
        let advice = advise(&stored, &PriceBook::shipped()).unwrap();
        prop_assert_eq!(advice.phases.iter().map(|phase| phase.rows.len()).sum::<usize>(), stored.records.len());
        for phase in &advice.phases {
            prop_assert!(phase.rows.windows(2).all(|pair| pair[0].status as u8 <= pair[1].status as u8));
            for row in &phase.rows {
                prop_assert_eq!(row.status == RowStatus::Infeasible, !row.violations.is_empty());
                prop_assert!(row.violations.iter().all(|violation| violation.excess > 0.0));
                prop_assert!(row.probability_best.is_none() || row.status == RowStatus::Ok);
                prop_assert!(!row.on_front || row.status == RowStatus::Ok);
                prop_assert!(row.reason.is_some() || row.status == RowStatus::Ok || row.status == RowStatus::Failed || row.status == RowStatus::Skipped);
            }
            let has_ok = phase.rows.iter().any(|row| row.status == RowStatus::Ok);
            match &phase.outcome {
                Outcome::Pick(pick) => {
                    let odds: Vec<f64> = phase.rows.iter().filter_map(|row| row.probability_best).collect();
                    prop_assert!(odds.is_empty() || (odds.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{odds:?}");
                    prop_assert_eq!(phase.rows[pick.row].probability_best, pick.probability_best);
                    prop_assert_eq!(pick.probability_best.is_some(), pick.expected_regret.is_some());
                    prop_assert!(pick.expected_regret.is_none_or(|regret| (0.0..=1.0).contains(&regret)));
                    prop_assert!(phase.rows[pick.row].recommended && !pick.ties.contains(&pick.row));
                    prop_assert!(pick.reasons.iter().all(|text| text.ends_with('.') && !text.contains("NaN")), "{:?}", pick.reasons);
                    prop_assert!(pick.flips.iter().all(|flip| flip.text.ends_with('.') && !flip.text.contains("NaN")), "{:?}", pick.flips);
                }
                Outcome::Infeasible(found) => {
                    prop_assert!(found.nearest < phase.rows.len() && !found.binding.is_empty());
                }
                Outcome::Nothing => prop_assert!(!has_ok),
            }
        }
    }
}

#[test]
fn a_row_of_an_emulation_has_quality_and_no_speed_and_is_picked_for_quality_alone() {
    let plain = || infer(Compression::NONE, 64, 10_000.0, 20, 0.003, 1);
    // The fastest and best of all, were its times its own.
    let emulated = || {
        let record = infer(Compression::NONE, 64, 90_000.0, 0, 0.003, 2);
        let candidate = Candidate { precision: Precision::Fp8, ..record.candidate.clone() };
        RunRecord { candidate, ..record }.without_emulated_speed()
    };
    let speed = [Objective::Cost, Objective::Time, Objective::Throughput, Objective::Memory, Objective::Energy];
    for objective in speed.into_iter().chain([Objective::Accuracy]) {
        let phase = advised(&run(vec![plain(), emulated()], objective, Constraints::default()));
        let row = phase.rows.iter().find(|row| row.title.starts_with("fp8")).unwrap();
        assert!(row.throughput.is_none() && row.speedup.is_none() && row.usd_per_million.is_none() && row.peak_memory.is_none());
        assert!(row.primary.is_some() && row.drop.is_some() && row.status == RowStatus::Ok, "{row:?}");
        assert!(row.notes.iter().any(|note| note.starts_with("fp8 is emulated here")), "{:?}", row.notes);
        assert!(!row.notes.iter().any(|note| note.contains("no block was timed")), "{:?}", row.notes);
        assert_eq!(row.recommended, objective == Objective::Accuracy, "{objective:?}");
        assert!(row.recommended || !row.on_front, "{objective:?}");
    }
    // What is not known to hold does not hold.
    let limits = Constraints { max_latency_p50: Some(Seconds(1.0)), ..Constraints::default() };
    let phase = advised(&run(vec![plain(), emulated()], Objective::Accuracy, limits));
    let row = phase.rows.iter().find(|row| row.title.starts_with("fp8")).unwrap();
    assert!(row.status == RowStatus::Infeasible && !row.recommended, "{:?}", row.reason);
    let mut trained = train(Precision::Fp8, 9000.0, &[(Some(1.0), 0.98), (Some(1.0), 0.98)]);
    trained = trained.without_emulated_speed();
    let slow = train(Precision::Fp32, 4000.0, &[(Some(60.0), 0.97), (Some(62.0), 0.97)]);
    let phase = advised(&run(vec![slow, trained], Objective::Time, Constraints::default()));
    assert!(phase.rows[picked(&phase).row].title.starts_with("fp32"));
    let row = phase.rows.iter().find(|row| row.title.starts_with("fp8")).unwrap();
    assert!(row.time_to_target.is_none() && row.primary.is_some());
    assert!(!row.notes.iter().any(|note| note.contains("reached the target")), "{:?}", row.notes);
    // Where no timed row reaches the target, an emulation of better quality is not the nearest.
    let records = vec![train(Precision::Fp32, 4000.0, &[(None, 0.95)]), train(Precision::Fp8, 1.0, &[(Some(1.0), 0.99)])];
    let records = records.into_iter().map(RunRecord::without_emulated_speed).collect();
    let mut asked = run(records, Objective::Time, Constraints::default());
    asked.header.train.target = Some(crate::record::Target { metric: crate::vocab::Metric::Accuracy, at_least: 0.97 });
    let phase = advised(&asked);
    let outcome = infeasible(&phase);
    assert!(phase.rows[outcome.nearest].title.starts_with("fp32"), "{:?}", outcome.reasons);
    assert!(outcome.reasons[0].starts_with("None of 1 row "), "{:?}", outcome.reasons);
}

/// A product of `batch` rows that takes so long.
fn op(batch: u64, seconds: f64) -> (OpProfile, OpRate) {
    let (flops, bytes) = (Flops(batch << 10), Bytes(batch << 8));
    let (op, shape, dtype, time) =
        ("linear".to_string(), format!("[{batch}, 32] x [32, 16]"), DType::F32, Some(Seconds(seconds)));
    let profile = OpProfile {
        op: op.clone(),
        variant: String::new(),
        shape: shape.clone(),
        dtype: Some(dtype),
        neighbour: None,
        flops,
        bytes,
        message_bytes: Bytes(0),
        time,
        waited: None,
    };
    (profile, OpRate { op, variant: String::new(), dtype, shape, flops, bytes, time: Seconds(seconds) })
}

/// The processor loses half of its speed now and then; the rows are timed in other rounds than each other, and their rates follow those of the
/// baseline. A prediction does, too.
#[test]
fn predictions_are_made_for_the_speed_that_the_rates_stand_for() {
    let speed = |overall: f64| MachineSpeed { flops_per_s: 4.0 * overall, bytes_per_s: 0.25 * overall };
    let drift = |round: u32| if round.is_multiple_of(3) { 0.5 } else { 1.0 };
    let (profile, rates): (Vec<OpProfile>, Vec<OpRate>) =
        [64u64, 256].map(|batch| op(batch, batch as f64 / 10_000.0)).into_iter().unzip();
    let rows = [(64, 0..20), (256, 7..13)].into_iter().zip(profile).enumerate();
    let records = rows.map(|(seed, ((batch, rounds), op))| {
        let mut record = infer(Compression::NONE, batch, 10_000.0, 20, 0.0, 1);
        let mut measurement = measurement(batch, 10_000.0, rounds, drift, 0.002, seed as u64);
        measurement.blocks.iter_mut().for_each(|block| block.machine_speed = Some(speed(drift(block.round))));
        (record.measurement, record.profile) = (Some(measurement), vec![op]);
        record
    });
    let mut run = run(records.collect(), Objective::Throughput, Constraints::default());
    let workers = Workers { device: Device::Cpu, ranks: 1, threads: 2 };
    let mut table =
        RateTable { workers, unix_s: 0, others_share: None, machine_speed: Some(speed(0.8)), rows: rates, exchanges: Vec::new() };
    // At 0.8 of the speed all takes longer.
    table.rows.iter_mut().for_each(|row| row.time.0 /= 0.8);
    run.header.environment.rates = vec![table];
    let phase = advised(&run);
    for row in &phase.rows {
        let predicted = row.predicted.unwrap();
        assert!(predicted.error.unwrap().abs() < 0.01, "{predicted:?} of {:?}", row.throughput);
        assert!((predicted.slowdown.unwrap() - 0.8).abs() < 0.01, "{predicted:?}");
    }
    // Nobody reads the speed of a device: its rates stand as they are.
    run.header.environment.rates[0].machine_speed = None;
    let predicted = advised(&run).rows[0].predicted.unwrap();
    assert_eq!((predicted.slowdown, predicted.rate.0.round()), (None, 8_000.0));
}
