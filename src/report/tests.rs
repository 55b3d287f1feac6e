//! Reports of synthetic runs: every case renders, nothing foreign gets in, unknown stays unknown.

use super::*;
use crate::{
    advise::{Outcome, advise, synthetic},
    cost::PriceBook,
    record::{Constraints, OpProfile, RunRecord, Status, TimeSplit},
    units::{Bytes, Flops, Seconds},
    vocab::{Compression, Objective, Phase, Precision},
};

const HOSTILE: &str = "<script>alert(\"&'</script>";

fn full() -> StoredRun {
    let mut fast = synthetic::infer(Compression::INT8, 64, 15_000.0, 22, 0.01, 2);
    fast.notes = vec![format!("a `name` and {HOSTILE}")];
    fast.time_split = Some(TimeSplit { compute: Seconds(0.003), memory: Seconds(0.001), ..TimeSplit::default() });
    fast.profile = vec![OpProfile {
        op: "linear_int8".into(),
        variant: String::new(),
        shape: "[64, 784] x [784, 256]".into(),
        dtype: None,
        neighbour: None,
        flops: Flops(25_000_000),
        bytes: Bytes(400_000),
        message_bytes: Bytes(0),
        time: Some(Seconds(0.0004)),
        waited: None,
    }];
    let failed = RunRecord::without_result(
        synthetic::candidate(Phase::Infer, Compression::TWO_FOUR, 64),
        Status::Failed,
        format!("ended by signal 9 {HOSTILE}"),
    );
    let skipped = RunRecord::without_result(
        synthetic::candidate(Phase::Infer, Compression::channel(0.5), 64),
        Status::Skipped,
        "not applicable".into(),
    );
    let records = vec![
        synthetic::train(Precision::Fp32, 5_000.0, &[(Some(2.0), 0.975), (Some(2.2), 0.972), (Some(2.1), 0.974)]),
        synthetic::train(Precision::Bf16, 7_000.0, &[(None, 0.965), (Some(1.9), 0.971), (Some(1.7), 0.972)]),
        synthetic::infer(Compression::NONE, 64, 10_000.0, 20, 0.01, 1),
        fast,
        synthetic::infer(Compression::magnitude(0.8), 64, 10_050.0, 400, 0.01, 3),
        failed,
        skipped,
    ];
    let limits = Constraints { max_accuracy_drop: Some(0.01), ..Constraints::default() };
    let mut run = synthetic::run(records, Objective::Cost, limits);
    run.header.question = HOSTILE.into();
    run.header.scenario = "full".into();
    run.warnings.push("the load was high".into());
    run
}

fn empty() -> StoredRun {
    let failed =
        RunRecord::without_result(synthetic::candidate(Phase::Infer, Compression::NONE, 64), Status::Failed, "no memory".into());
    synthetic::run(vec![failed], Objective::Energy, Constraints::default())
}

fn with_inputs(run: &StoredRun, check: impl FnOnce(&Inputs)) {
    let advice = advise(run, &PriceBook::shipped()).unwrap();
    check(&Inputs { run, advice: &advice });
}

/// Every tag that opens closes, in order.
fn assert_balanced(markup: &str) {
    const VOID: &[&str] = &["meta", "br", "!DOCTYPE"];
    let mut open: Vec<String> = Vec::new();
    let mut rest = markup;
    while let Some(at) = rest.find('<') {
        rest = &rest[at + 1..];
        let end = rest.find('>').expect("a tag ends");
        let tag = &rest[..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "closing </{name}>");
        } else if !tag.ends_with('/') && !tag.starts_with('?') {
            let name = tag.split(|c: char| c.is_whitespace()).next().unwrap();
            if !VOID.contains(&name) {
                open.push(name.to_string());
            }
        }
    }
    assert!(open.is_empty(), "still open: {open:?}");
}

#[test]
fn pages_are_whole_load_nothing_and_let_nothing_foreign_in() {
    for run in [full(), empty()] {
        with_inputs(&run, |inputs| {
            for page in [html(inputs).unwrap(), index_html(std::slice::from_ref(inputs)).unwrap()] {
                let style = page.find("<style>").unwrap()..page.find("</style>").unwrap();
                assert_balanced(&page.replace(&page[style], "<style>"));
                assert!(!page.contains("<script") && !page.contains("NaN") && !page.contains(">inf"));
                let foreign = page.matches("http").count() - page.matches("http://www.w3.org/2000/svg").count();
                assert_eq!(foreign, 0, "something is loaded from elsewhere");
                assert!(!page.contains("src=") && !page.contains("@import"));
            }
            let page = html(inputs).unwrap();
            for phase in &inputs.advice.phases {
                for row in &phase.rows {
                    assert!(page.contains(&format!("id=\"{}\"", row.id)), "{} is missing", row.id);
                }
            }
        });
    }
}

#[test]
fn figures_are_drawn_for_what_was_measured_and_only_for_that() {
    with_inputs(&full(), |inputs| {
        let figures = plots(inputs).unwrap();
        let stems: Vec<&str> = figures.iter().map(|p| p.stem.as_str()).collect();
        for stem in ["train-front", "train-throughput", "infer-front", "infer-throughput", "infer-time-split"] {
            assert!(stems.contains(&stem), "{stem} is not among {stems:?}");
        }
        for plot in &figures {
            assert_balanced(&plot.svg);
            assert!(!plot.svg.contains("NaN") && !plot.svg.contains("#010203"), "{}", plot.stem);
            assert!(plot.standalone().starts_with("<svg style="));
        }
        assert_eq!(figures, plots(inputs).unwrap(), "same input, same bytes");
    });
    with_inputs(&empty(), |inputs| assert_eq!(plots(inputs).unwrap(), vec![]));
}

#[test]
fn tables_have_their_columns_and_leave_unknown_cells_empty() {
    with_inputs(&full(), |inputs| {
        let table = String::from_utf8(results_csv(std::slice::from_ref(inputs)).unwrap()).unwrap();
        let mut lines = table.lines();
        assert_eq!(lines.next().unwrap().split(',').collect::<Vec<_>>(), RESULT_COLUMNS);
        assert_eq!(table.lines().count(), 1 + inputs.run.records.len());
        let skipped = table.lines().find(|line| line.contains("not applicable")).unwrap();
        let cells: Vec<&str> = skipped.split(',').collect();
        let cell = |name: &str| cells[RESULT_COLUMNS.iter().position(|c| *c == name).unwrap()];
        for unknown in ["throughput_per_s", "accuracy", "energy_j_per_unit", "samples", "pareto", "cost_usd_per_million"] {
            assert_eq!(cell(unknown), "", "{unknown}");
        }
        assert_eq!((cell("status"), cell("source"), cell("recommended")), ("skipped", "", "false"));
        let failed = table.lines().find(|line| line.contains("ended by signal 9")).unwrap();
        assert!(failed.ends_with(','), "no source: {failed}");
        let samples = String::from_utf8(samples_csv(inputs).unwrap()).unwrap();
        let steps: usize = inputs
            .run
            .records
            .iter()
            .filter_map(|r| r.measurement.as_ref())
            .flat_map(|m| &m.blocks)
            .map(|b| b.step_s.len())
            .sum();
        assert_eq!(samples.lines().count(), 1 + steps);
    });
}

#[test]
fn several_seeds_show_no_figure_of_the_first_alone() {
    for (seeds, expected) in [(1, "0.5"), (2, "")] {
        let mut record = synthetic::train(Precision::Fp32, 5_000.0, &vec![(Some(2.0), 0.975); seeds]);
        let mut quality = synthetic::quality(vec![0], &[0]);
        quality.metrics.insert(crate::vocab::Metric::F1Macro, 0.5);
        record.quality = Some(quality);
        with_inputs(&synthetic::run(vec![record], Objective::Cost, Constraints::default()), |inputs| {
            let table = String::from_utf8(results_csv(std::slice::from_ref(inputs)).unwrap()).unwrap();
            let row = table.lines().nth(1).unwrap().replace("\"fp32, batch 64, 2 threads\"", "title");
            let cells: Vec<&str> = row.split(',').collect();
            let cell = |name: &str| cells[RESULT_COLUMNS.iter().position(|c| *c == name).unwrap()];
            assert_eq!((cell("f1_macro"), cell("accuracy")), (expected, "0.975"));
        });
    }
}

#[test]
fn the_terminal_summary_fits_its_width_and_carries_the_answer() {
    with_inputs(&full(), |inputs| {
        for width in [40, 60, 80, 100, 160] {
            let summary = terminal(inputs, width, false);
            assert!(summary.contains("Inference: ") && summary.contains("Training: ") && summary.contains("failed: "));
            assert!(!summary.contains('\x1b'));
            // Table lines fit; a heading may be longer than a narrow terminal.
            let table = summary.lines().filter(|line| line.starts_with(['*', 'x']) || line.starts_with("  candidate"));
            if width >= 80 {
                table.for_each(|line| assert!(line.chars().count() <= width, "{line}"));
            }
        }
        assert!(terminal(inputs, 100, true).contains("\x1b[32m"));
    });
}

#[test]
fn the_terminal_names_six_ties_and_counts_more_than_one_other() {
    let advice = advise(&full(), &PriceBook::shipped()).unwrap();
    for (ties, named, more) in [(1, 1, None), (6, 6, None), (7, 7, None), (8, 6, Some("and 2 more (see report.html)"))] {
        let mut advice = advice.clone();
        let phase = advice.phases.iter_mut().find(|phase| matches!(phase.outcome, Outcome::Pick(_))).unwrap();
        let Outcome::Pick(pick) = &mut phase.outcome else { unreachable!("looked for above") };
        let tied = (pick.row + 1) % phase.rows.len();
        pick.ties = vec![tied; ties];
        let title = phase.rows[tied].title.clone();
        let summary = terminal(&Inputs { run: &full(), advice: &advice }, 4000, false);
        let line = summary.lines().find(|line| line.contains("cannot be told apart from: ")).unwrap();
        assert_eq!(line.matches(&title).count(), named, "{line}");
        assert_eq!(line.split_once("; and ").map(|(_, counted)| format!("and {counted}")).as_deref(), more, "{line}");
    }
}

#[test]
fn the_recommendation_says_what_it_rests_on() {
    with_inputs(&full(), |inputs| {
        let value = recommendation_json(inputs);
        assert_eq!(value["schema_version"], RECOMMENDATION_SCHEMA_VERSION);
        let infer = value["phases"].as_array().unwrap().iter().find(|p| p["phase"] == "infer").unwrap().clone();
        assert_eq!(infer["outcome"], "pick");
        assert!(infer["pick"]["candidate"].as_str().unwrap().contains("/int8/"), "{infer:#}");
        assert!(infer["probability_best"].as_f64().unwrap() > 0.9 && !infer["reasons"].as_array().unwrap().is_empty());
    });
    with_inputs(&empty(), |inputs| {
        assert_eq!(recommendation_json(inputs)["phases"][0]["outcome"], "nothing_measured");
    });
}

#[test]
fn files_are_whole_or_not_there() {
    let dir = tempfile::tempdir().unwrap();
    with_inputs(&full(), |inputs| {
        let pages = write(dir.path(), std::slice::from_ref(inputs)).unwrap();
        assert_eq!(pages, [dir.path().join("index.html"), dir.path().join("full/report.html")]);
        let left: Vec<_> = std::fs::read_dir(dir.path().join("full")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().contains("partial")), "{left:?}");
    });
    // A file where a folder should be: the error names it.
    std::fs::write(dir.path().join("blocked"), "").unwrap();
    with_inputs(&full(), |inputs| {
        let error = write(&dir.path().join("blocked"), std::slice::from_ref(inputs)).unwrap_err().to_string();
        assert!(error.contains("blocked"), "{error}");
    });
}

/// Figures have tests of their own: a snapshot names them and leaves out their marks.
fn without_figures(page: &str) -> String {
    let style = page.find("<style>").unwrap()..page.find("</style>").unwrap();
    let mut rest = page.replacen(&page[style], "<style>", 1);
    let mut out = String::new();
    while let Some(at) = rest.find("<svg") {
        let end = at + rest[at..].find("</svg>").expect("a figure ends") + "</svg>".len();
        out.push_str(&rest[..at]);
        out.push_str("<svg/>");
        rest.drain(..end);
    }
    out + &rest
}

#[test]
fn the_same_run_gives_the_same_words_everywhere() {
    for (name, run) in [("full", full()), ("empty", empty())] {
        with_inputs(&run, |inputs| {
            insta::assert_snapshot!(format!("{name}-terminal-110"), terminal(inputs, 110, false));
            insta::assert_snapshot!(format!("{name}-terminal-60"), terminal(inputs, 60, false));
            insta::assert_snapshot!(format!("{name}-page"), without_figures(&html(inputs).unwrap()));
            insta::assert_snapshot!(format!("{name}-index"), without_figures(&index_html(std::slice::from_ref(inputs)).unwrap()));
            let recommendation = serde_json::to_string_pretty(&recommendation_json(inputs)).unwrap();
            insta::assert_snapshot!(format!("{name}-recommendation"), recommendation);
        });
    }
}
