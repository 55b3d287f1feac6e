//! Reports of a made-up answer, word by word.

use super::*;
use crate::{
    predict::{
        Alike, Answer, GpuPrice, GraphFigures, Known, LayoutFigures, Market, PlanObjective, Refusal, Row, ServeFigures,
        SpotFigures, Swing, SwingEnd, TrainFigures, Trust, WorkFigures, hold_against, rank,
    },
    units::{Joules, Seconds, Usd, UsdPerHour},
    vocab::Phase,
};

const PLAN: &str = r#"name = "small"
[model]
shape = "llama-3.1-70b"
[train]
tokens = 1e12
sequence_length = 8192
batch_sequences = 1024
[[machines]]
gpu = "h100"
gpus = { from = 256, to = 1024 }
[[machines]]
gpu = "b200"
gpus = 512
[limits]
max_days = 60
"#;

fn plan(text: &str) -> Plan {
    let known = Known {
        models: &["llama-3.1-70b"],
        spelt: &|_| None,
        predicting_models: &[],
        gpus: &[&["h100-sxm-80gb", "h100"], &["b200"]],
        precisions: &["bf16", "fp8"],
        weights: &["bf16"],
        kv_caches: &["bf16"],
        engines: &["tensorrt-llm"],
        instances: &[],
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.toml");
    std::fs::write(&path, text).unwrap();
    Plan::load(&path, &known).unwrap_or_else(|found| panic!("{found:?}"))
}

fn row(machine: usize, gpu: &str, gpus: u32, days: f64, usd: Option<f64>) -> Row {
    let step = days * 86_400.0 / 119_209.0 * 0.99;
    Row {
        machine,
        gpu: gpu.into(),
        gpus,
        market: Market::OnDemand,
        layout: LayoutFigures {
            tensor: 4,
            pipeline: 4,
            context: 1,
            expert: 1,
            data: gpus / 16,
            batch: 1024,
            micro_batch: 1,
            interleaving: 5,
            recomputation: "selective".into(),
            zero: 1,
            precision: "bf16".into(),
            replicas: 0,
            draft_tokens: 0,
        },
        time: Seconds(days * 86_400.0),
        cost: usd.map(Usd),
        energy: Some(Joules(700.0 * f64::from(gpus) * days * 86_400.0)),
        usd_per_hour: usd.map(|usd| UsdPerHour(usd / days / 24.0)),
        tokens_per_s: 1024.0 * 8192.0 / step,
        work: WorkFigures::Train(TrainFigures {
            step: Seconds(step),
            steps: 119_209.0,
            mfu: Some(0.41),
            work: Seconds(days * 86_400.0 * 0.99),
            goodput: 0.99,
            interruptions: 21.0,
            checkpoint_interval: Some(Seconds(1800.0)),
            checkpoint: Seconds(8.0),
        }),
        memory: vec![("weights", 9e9), ("optimizer state", 4e9), ("activations", 31e9)],
        memory_limit: 74e9,
        time_parts: vec![("compute", 0.7 * step), ("pipeline bubble", 0.1 * step), ("data-parallel exchange", 0.2 * step)],
        trust: Trust {
            regime: "hopper dense bf16".into(),
            error: Some(0.061),
            error_p90: Some(0.143),
            rows: 43,
            alike: vec![alike("tokens/s/GPU", 4, 0.032, -0.0321)],
            extrapolated: vec![],
        },
        breaches: vec![],
        on_front: false,
    }
}

fn alike(quantity: &str, rows: usize, error: f64, bias: f64) -> Alike {
    Alike { quantity: quantity.into(), rows, error, bias }
}

fn trained() -> Answer {
    let mut rows = vec![
        row(0, "h100-sxm-80gb", 256, 97.0, Some(1.76e6)),
        row(0, "h100-sxm-80gb", 512, 49.0, Some(1.78e6)),
        row(0, "h100-sxm-80gb", 1024, 25.4, Some(1.84e6)),
        row(1, "b200", 512, 22.1, None),
    ];
    rows[3].trust = Trust {
        regime: "blackwell dense bf16".into(),
        extrapolated: vec!["more GPUs than any fitted row".into()],
        ..Trust::default()
    };
    let plan = plan(PLAN);
    hold_against(&mut rows, &plan.limits);
    let pick = rank(&mut rows, plan.objective);
    let mut second = row(0, "h100-sxm-80gb", 512, 50.5, Some(1.83e6));
    second.layout.recomputation = "none".into();
    Answer {
        rows,
        pick,
        alternatives: vec![second],
        refusals: vec![Refusal {
            gpu: "h100-sxm-80gb".into(),
            gpus: 8,
            reason: "every layout lacks memory; the nearest lacks 61.0 GiB".into(),
            remedies: vec!["at least 32 GPUs".into()],
        }],
        swings: vec![Swing {
            assumption: "price of an hour".into(),
            ends: [
                SwingEnd { change: "-20 %".into(), objective: Some(1.42e6), other_pick: None },
                SwingEnd { change: "+20 %".into(), objective: None, other_pick: None },
            ],
        }],
        prices: vec![
            (
                "h100-sxm-80gb".into(),
                GpuPrice { on_demand: Some(UsdPerHour(2.95)), spot: None, explanation: "2.95 as stated".into() },
            ),
            ("b200".into(), GpuPrice { explanation: "the price book has no machine with b200".into(), ..GpuPrice::default() }),
        ],
        counts: crate::predict::Counts { arrangements: 812, pruned: 700, evaluated: 1234, too_large: 210 },
        notes: vec!["a note".into()],
    }
}

#[test]
fn the_terminal_says_the_pick_and_how_far_to_trust_it() {
    let (plan, answer) = (plan(PLAN), trained());
    let inputs = PlanInputs { plan: &plan, answer: &answer, command: "advisor plan plans/small.toml" };
    insta::assert_snapshot!(plan_terminal(&inputs, 100, false));
}

#[test]
fn where_nothing_meets_every_limit_the_binding_one_is_named() {
    let plan = plan(&PLAN.replace("max_days = 60", "max_days = 10"));
    let mut answer = trained();
    answer.rows.iter_mut().for_each(|row| row.breaches.clear());
    hold_against(&mut answer.rows, &plan.limits);
    answer.pick = rank(&mut answer.rows, plan.objective);
    assert_eq!(answer.pick, None);
    let inputs = PlanInputs { plan: &plan, answer: &answer, command: "advisor plan plans/small.toml" };
    insta::assert_snapshot!(plan_terminal(&inputs, 100, false));
    let page = plan_html(&inputs).unwrap();
    assert!(page.contains("Nothing meets every limit: max_days binds"));
}

#[test]
fn a_served_model_is_told_in_its_own_words() {
    let text = "name = \"chat\"\nmodel = { shape = \"llama-3.1-70b\" }\nserve = { requests_per_s = 20, input_tokens = 1000, output_tokens = 200 }\n\
                machines = { gpu = \"h100\", gpus = 8 }\n";
    let plan = plan(text);
    let answer = served();
    let inputs = PlanInputs { plan: &plan, answer: &answer, command: "advisor plan chat.toml" };
    insta::assert_snapshot!(plan_terminal(&inputs, 100, false));
    let page = plan_html(&inputs).unwrap();
    assert!(
        page.contains("a million output tokens") && page.contains("2 spares, so that as many are there 99.930 % of the time")
    );
    insta::assert_snapshot!("page-of-a-served-model", page);
    let csv = String::from_utf8(plan_csv(&inputs).unwrap()).unwrap();
    assert!(csv.lines().any(|line| line.contains(",spot,") && line.contains(",3,2,0.9993,")), "{csv}");
}

/// On demand, and at spot prices with spares beside it.
fn served() -> Answer {
    let mut answer = trained();
    answer.rows.truncate(1);
    let row = &mut answer.rows[0];
    row.breaches.clear();
    row.trust.alike = vec![alike("time per token", 18, 0.071, 0.004), alike("time to first token", 1, 0.12, 0.12)];
    row.work = WorkFigures::Serve(ServeFigures {
        replicas: 3,
        spot: None,
        first_token: Seconds(0.31),
        per_token: Seconds(0.021),
        concurrency: 31.5,
        utilisation: 0.72,
        drafts: None,
    });
    (row.time, row.cost, row.layout.replicas) = (Seconds(4.5), Some(Usd(0.83)), 3);
    let mut spot = answer.rows[0].clone();
    (spot.market, spot.gpus, spot.cost, spot.usd_per_hour) = (Market::Spot, 40, Some(Usd(0.58)), Some(UsdPerHour(50.0)));
    let WorkFigures::Serve(figures) = &mut spot.work else { unreachable!("served above") };
    figures.spot = Some(SpotFigures { spares: 2, availability: 0.9993 });
    answer.rows.push(spot);
    (answer.alternatives, answer.swings) = (vec![], vec![]);
    answer.pick = rank(&mut answer.rows, PlanObjective::Cost);
    answer
}

#[test]
fn the_page_of_a_training() {
    let (plan, answer) = (plan(PLAN), trained());
    let inputs = PlanInputs { plan: &plan, answer: &answer, command: "advisor plan plans/small.toml" };
    insta::assert_snapshot!("page-of-a-training", plan_html(&inputs).unwrap());
}

/// The graph of a scenario on two kinds of GPUs, one GPU and two.
fn of_a_graph() -> Answer {
    let graph = |machine: usize, gpu: &str, gpus: u32, seconds: f64, usd: f64| {
        let mut row = row(machine, gpu, gpus, 1.0, Some(usd));
        row.layout = LayoutFigures {
            tensor: 1,
            pipeline: 1,
            data: gpus,
            batch: 512,
            micro_batch: 0,
            interleaving: 1,
            recomputation: "none".into(),
            zero: 0,
            ..row.layout
        };
        row.work = WorkFigures::Graph(GraphFigures {
            phase: Phase::Train,
            unit: "image",
            step: Seconds(seconds / 1000.0),
            steps: 1000.0,
            work: Seconds(seconds),
            goodput: 0.99,
            interruptions: 0.0,
        });
        (row.time, row.tokens_per_s) = (Seconds(seconds), 512_000.0 / seconds);
        row.trust.alike.clear();
        row.memory = vec![("weights", 3e6), ("activations and gradients", 2e7)];
        row.memory_limit = 1e11;
        row.time_parts = vec![("products", 0.4 * seconds / 1000.0), ("launches", 0.6 * seconds / 1000.0)];
        row
    };
    let mut answer = trained();
    answer.rows = vec![
        graph(0, "h100-sxm-80gb", 1, 8.0, 0.006),
        graph(0, "h100-sxm-80gb", 2, 5.0, 0.0075),
        graph(1, "b200", 1, 4.0, 0.009),
    ];
    answer.rows[1].trust.extrapolated = vec!["no graph of ours was measured on several GPUs".into()];
    answer.alternatives = vec![];
    answer.pick = rank(&mut answer.rows, PlanObjective::Cost);
    answer
}

const GRAPH: &str = "name = \"digits\"\nmodel = { scenario = \"digits.toml\" }\nrun = { phase = \"train\", epochs = 3 }\n\
                     machines = [{ gpu = \"h100\", gpus = [1, 2] }, { gpu = \"b200\", gpus = 1 }]\n";

#[test]
fn the_graph_of_a_scenario_is_told_in_examples() {
    let (plan, answer) = (plan(GRAPH), of_a_graph());
    let inputs = PlanInputs { plan: &plan, answer: &answer, command: "advisor plan digits.toml" };
    insta::assert_snapshot!(plan_terminal(&inputs, 100, false));
    let page = plan_html(&inputs).unwrap();
    assert!(page.contains("examples a second") && page.contains("What may be used lies far beyond") && !page.contains("tokens"));
    insta::assert_snapshot!("page-of-a-graph", page);
    let csv = String::from_utf8(plan_csv(&inputs).unwrap()).unwrap();
    let at = |name: &str| PLAN_COLUMNS.iter().position(|column| *column == name).unwrap();
    let first: Vec<&str> = csv.lines().nth(1).unwrap().split(',').collect();
    assert_eq!((first[at("examples_per_s")], first[at("tokens_per_s")], first[at("cost_usd")]), ("64000.0", "", "0.006"));
}

/// Of the machine at hand: its candidates, told by their batches, without GPUs.
#[test]
fn the_machine_at_hand_is_no_gpu() {
    let mut plan = plan(GRAPH);
    plan.machines.clear();
    let mut answer = of_a_graph();
    for (row, batch) in answer.rows.iter_mut().zip([64, 128, 512]) {
        (row.gpus, row.gpu, row.layout.batch, row.energy) = (0, "a processor, 2 threads".into(), batch, None);
        row.trust = Trust { error: Some(0.09), ..Trust::default() };
    }
    let end = |change: &str, objective: f64, other_pick: Option<&str>| SwingEnd {
        change: change.into(),
        objective: Some(objective),
        other_pick: other_pick.map(str::to_string),
    };
    answer.swings = vec![Swing {
        assumption: "exchanges between ranks".into(),
        ends: [end("half", 0.0055, Some("a processor, 2 threads: bf16, dp=2, batch 128")), end("twice", 0.006, None)],
    }];
    let inputs = PlanInputs { plan: &plan, answer: &answer, command: "advisor plan digits.toml" };
    let page = plan_html(&inputs).unwrap();
    assert_eq!(
        sensitivity_terminal(&inputs, 200, false),
        "\nwhat the answer hangs on\n  - exchanges between ranks: half: $0.00550, and the pick is a processor, 2 threads: bf16, dp=2, batch 128; twice: $0.00600"
    );
    assert_eq!(sensitivity_json(&answer.swings)[0]["ends"][0]["change"], "half");
    for part in [
        "on this machine",
        "Numbers are batch sizes",
        "Every candidate of the scenario",
        "What would change the answer",
        "exchanges between ranks (half, twice)",
        "predicted from others of its kind to 9.0 %",
    ] {
        assert!(page.contains(part), "{part}");
    }
    for part in ["x a processor", "memory a GPU", "power", "fullest GPU"] {
        assert!(!page.contains(part), "{part}");
    }
    insta::assert_snapshot!("page-of-the-machine-at-hand", page);
}

#[test]
fn the_page_loads_nothing_and_knows_no_numbers_that_are_none() {
    let (plan, answer) = (plan(PLAN), trained());
    let inputs = PlanInputs { plan: &plan, answer: &answer, command: "advisor plan plans/small.toml" };
    let page = plan_html(&inputs).unwrap();
    assert!(page.matches("http://").count() == page.matches("http://www.w3.org/").count() && !page.contains("<script"));
    for part in ["NaN", "inf ", "-0 "] {
        assert!(!page.contains(part), "{part}");
    }
    for part in ["What would change the answer", "What does not fit", "on the front", "error unknown", "unknown</td>"] {
        assert!(page.contains(part), "{part}");
    }
    assert_eq!(page.matches("<svg ").count(), 4);
    assert_eq!(page, plan_html(&inputs).unwrap());
}

#[test]
fn an_unknown_cost_is_an_empty_cell_and_never_zero() {
    let (plan, answer) = (plan(PLAN), trained());
    let inputs = PlanInputs { plan: &plan, answer: &answer, command: "" };
    let csv = String::from_utf8(plan_csv(&inputs).unwrap()).unwrap();
    let mut lines = csv.lines();
    assert_eq!(lines.next().unwrap().split(',').collect::<Vec<_>>(), PLAN_COLUMNS);
    let at = |name: &str| PLAN_COLUMNS.iter().position(|column| *column == name).unwrap();
    let cells: Vec<Vec<&str>> = lines.map(|line| line.split(',').collect()).collect();
    assert_eq!(cells.len(), 4);
    let b200 = cells.iter().find(|row| row[at("gpu")] == "b200").unwrap();
    assert_eq!((b200[at("cost_usd")], b200[at("error_median")], b200[at("source")]), ("", "", "modelled"));
    assert_eq!(cells.iter().filter(|row| row[at("recommended")] == "true").count(), 1);
    let json = plan_json(&inputs);
    assert_eq!(json["pick"]["gpus"], 512);
    assert!(json["front"].as_array().unwrap().len() >= 2 && json["pick"]["training"]["mfu"] == 0.41);
}
