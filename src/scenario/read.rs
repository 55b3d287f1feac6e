//! From the tables of the file to what they mean: defaults, units, and the mistakes that no shape can see.

use super::{Grid, Known, Scenario, shape};
use crate::{
    data::{DataSource, SHIPPED},
    input::{self, Diagnostic, Report, Source, Table},
    record::{Constraints, CostBasis, Goal, OptimizerConfig, Owned, Target, TrainConfig},
    units::{PerSecond, Seconds, UsdPerHour},
    vocab::{
        Augmentation, Compression, Device, InitKind, Layout, Metric, Objective, OptimizerKind, Phase, Precision, RowKind, Task,
        Vocabulary,
    },
};
use std::path::{Path, PathBuf};

/// More candidates than a person would wait for: at a second each they take half an hour.
const MOST_CANDIDATES: usize = 2000;

pub(super) fn read(source: Source, known: &Known) -> Result<Scenario, Vec<Diagnostic>> {
    let scenario = input::parse(&source, &shape::FILE, |file, report| build(file, report, &source.path, known))?;
    Ok(Scenario { path: source.path, text: source.text, ..scenario })
}

/// Everything but `path` and `text`. What the checker found wrong reads as its default here: the value is dropped in the end.
fn build(file: &Table, report: &mut Report, path: &Path, known: &Known) -> Scenario {
    let workload = file.table("workload");
    let workload = workload.as_ref();
    let model = workload.map(|table| model(table, report, known)).unwrap_or_default();
    let data_from =
        |folder: &Path| workload.and_then(|table| data(table, folder)).unwrap_or_else(|| DataSource::Shipped(String::new()));
    let rows = data_from(Path::new("")).rows();
    let task = workload.map_or(Task::ImageClassification, |table| task(table, report, known, &model, rows));
    let phases = workload.and_then(|table| words(table, "phase")).unwrap_or_else(|| vec![Phase::Train, Phase::Infer]);
    let grid = grid(file.table("grid").as_ref());
    let size = phases.iter().fold(0, |size: usize, phase| size.saturating_add(grid.size(*phase)));
    if size > MOST_CANDIDATES {
        let advice = "shorten an axis, or ask in several scenarios";
        let text = format!("{size} candidates in `[grid]`");
        report.add(file.key_span("grid"), text).expected(format!("at most {MOST_CANDIDATES}")).hint(advice);
    }
    // With the path as it is written, so that the question does not depend on the folder from which the program was started.
    let question =
        format!("Which precision, compression, layout and batch size serve {model} on {} best?", data_from(Path::new("")));
    Scenario {
        path: PathBuf::new(),
        text: String::new(),
        name: file.text("name").unwrap_or_default().to_string(),
        question: file.text("question").map_or(question, |text| text.trim().to_string()),
        task,
        model,
        data: data_from(path.parent().unwrap_or(Path::new(""))),
        phases,
        train: train(file.table("train").as_ref(), rows, report),
        grid,
        goal: Goal {
            constraints: file.table("constraints").map(|table| constraints(&table)).unwrap_or_default(),
            objective: file.table("objective").and_then(|table| objective(&table)).unwrap_or(Objective::Cost),
        },
        cost: file.table("cost").and_then(|table| cost(&table, report, known)).unwrap_or(CostBasis::Auto),
        primary_metric: match task {
            Task::ImageClassification | Task::TextClassification => Metric::Accuracy,
        },
    }
}

fn model(workload: &Table, report: &mut Report, known: &Known) -> String {
    let model = workload.text("model").unwrap_or_default();
    let names: Vec<&str> = known.models.iter().map(|model| model.name).collect();
    if !model.trim().is_empty() && !names.contains(&model) {
        report.unknown(workload.span("model"), "model", model, &names);
    }
    model.to_string()
}

/// The task that is named, or that the rows are for; model, rows and task must be of one kind.
fn task(workload: &Table, report: &mut Report, known: &Known, model: &str, rows: Option<RowKind>) -> Task {
    let named: Option<Task> = word(workload, "task");
    let Some(rows) = rows else { return named.unwrap_or(Task::ImageClassification) };
    if let Some(task) = named.filter(|task| task.rows() != rows) {
        let text = format!("task `{}` is about {}, but the data holds {}", task.name(), task.rows().plural(), rows.plural());
        report.add(workload.span("task"), text).hint("leave `task` out: it follows from the data");
    }
    if let Some(model) = known.models.iter().find(|known| known.name == model && known.reads != rows) {
        let fitting: Vec<&str> = known.models.iter().filter(|other| other.reads == rows).map(|other| other.name).collect();
        let text = format!("model `{}` reads {}, but the data holds {}", model.name, model.reads.plural(), rows.plural());
        report.add(workload.span("model"), text).expected(format!(
            "a model that reads {}: `{}`",
            rows.plural(),
            fitting.join("`, `")
        ));
    }
    let fitting = Task::WORDS.iter().map(|word| word.value).find(|task| task.rows() == rows);
    named.or(fitting).unwrap_or(Task::ImageClassification)
}

/// Paths of the file count from its folder.
fn data(workload: &Table, folder: &Path) -> Option<DataSource> {
    if let Some(name) = workload.text("data") {
        return SHIPPED.iter().any(|data| data.name == name).then(|| DataSource::Shipped(name.to_string()));
    }
    let table = workload.table("data")?;
    let path = folder.join(table.text("path")?);
    match table.tag("format")? {
        "idx" => Some(DataSource::Idx { folder: path }),
        "csv" => Some(DataSource::Csv {
            path,
            label: table.text("label")?.to_string(),
            shape: table.counts("shape")?.try_into().ok()?,
            maximum: table.number("maximum").unwrap_or(255.0),
            split: table.text("split").map(str::to_string),
            test_share: table.number("test_share").unwrap_or(0.2),
        }),
        "text" => Some(DataSource::Text {
            path,
            text: table.text("text")?.to_string(),
            label: table.text("label")?.to_string(),
            split: table.text("split").map(str::to_string),
            test_share: table.number("test_share").unwrap_or(0.2),
            length: table.count("length").unwrap_or(48),
            vocabulary: table.count("vocabulary").unwrap_or(8000),
        }),
        _ => None,
    }
}

fn train(table: Option<&Table>, rows: Option<RowKind>, report: &mut Report) -> TrainConfig {
    let augment = table.and_then(|table| words::<Augmentation>(table, "augment")).unwrap_or_default();
    if let Some(table) = table.filter(|_| rows == Some(RowKind::Text) && !augment.is_empty()) {
        report.add(table.span("augment"), "`augment` changes images, but the data holds text").hint("leave it out");
    }
    let regularisation = table.and_then(|table| table.table("regularisation"));
    let penalty = |key: &str| regularisation.as_ref().and_then(|table| table.number(key)).unwrap_or(0.0);
    let target = table.and_then(|table| table.table("target"));
    let count = |key: &str, default: usize| table.and_then(|table| table.count(key)).unwrap_or(default);
    TrainConfig {
        epochs: count("epochs", 3),
        optimizer: optimizer(table.and_then(|table| table.table("optimizer")).as_ref(), report),
        schedule: table.and_then(|table| word(table, "schedule")).unwrap_or_default(),
        init: table.and_then(|table| word(table, "init")).unwrap_or(InitKind::He),
        l1: penalty("l1"),
        l2: penalty("l2"),
        augment,
        seeds: count("seeds", 1),
        first_seed: table.and_then(|table| table.whole("first_seed")).unwrap_or(1),
        batch_size: count("batch_size", 64),
        target: target.and_then(|table| {
            let metric = word(&table, "metric").unwrap_or(Metric::Accuracy);
            Some(Target { metric, at_least: table.number("at_least")? })
        }),
        tune_epochs: count("tune_epochs", TrainConfig::TUNE_EPOCHS),
        bucket_bytes: None,
    }
}

fn optimizer(table: Option<&Table>, report: &mut Report) -> OptimizerConfig {
    let kind = table.and_then(|table| word(table, "kind")).unwrap_or(OptimizerKind::Sgd);
    let (learning_rate, keys): (f64, &[&str]) = match kind {
        OptimizerKind::Sgd => (0.05, &["momentum"]),
        OptimizerKind::Adam | OptimizerKind::Adamw => (0.001, &["beta1", "beta2", "epsilon"]),
        OptimizerKind::Rmsprop => (0.001, &["momentum", "beta2", "epsilon"]),
    };
    let mut config = OptimizerConfig::new(kind, learning_rate);
    let Some(table) = table else { return config };
    config.learning_rate = table.number("learning_rate").unwrap_or(learning_rate);
    let constants = [
        ("momentum", &mut config.momentum),
        ("beta1", &mut config.beta1),
        ("beta2", &mut config.beta2),
        ("epsilon", &mut config.epsilon),
    ];
    // A wrong `kind` is told already; what the others mean to it nobody knows.
    let is_known = !table.has("kind") || word::<OptimizerKind>(table, "kind").is_some();
    for (key, constant) in constants {
        if table.has(key) && is_known && !keys.contains(&key) {
            let expected = keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
            report
                .add(table.key_span(key), format!("`{}` has no `{key}`", kind.name()))
                .expected(format!("`learning_rate`, {expected}"))
                .hint("remove it, or choose another `kind`");
        }
        *constant = table.number(key).unwrap_or(*constant);
    }
    config
}

fn grid(table: Option<&Table>) -> Grid {
    Grid {
        devices: table.and_then(|table| table.words("device", |text| text.parse().ok())).unwrap_or_else(|| vec![Device::Auto]),
        precisions: table.and_then(|table| words(table, "precision")).unwrap_or_else(|| vec![Precision::Fp32]),
        compressions: table
            .and_then(|table| table.words("compression", |text| text.parse().ok()))
            .unwrap_or_else(|| vec![Compression::NONE]),
        layouts: table.and_then(|table| table.words("layout", |text| text.parse().ok())).unwrap_or_else(|| vec![Layout::SINGLE]),
        batch_sizes: table.and_then(|table| table.counts("batch_size")).unwrap_or_else(|| vec![64]),
        threads: table.and_then(|table| table.counts("threads")).unwrap_or_default(),
    }
}

fn constraints(table: &Table) -> Constraints {
    let seconds = |key: &str| table.number(key).map(|ms| Seconds(ms / 1e3));
    // Rounded up: a limit of a fraction of a byte is no limit of 0.
    let bytes = |key: &str, unit: f64| table.number(key).map(|found| (found * unit).ceil() as u64);
    Constraints {
        max_accuracy_drop: table.number("max_accuracy_drop"),
        min_accuracy: table.number("min_accuracy"),
        max_latency_p50: seconds("max_latency_p50_ms"),
        max_latency_p99: seconds("max_latency_p99_ms"),
        min_throughput: table.number("min_throughput_per_s").map(PerSecond),
        max_memory_bytes: bytes("max_memory_mib", 1024.0 * 1024.0),
        max_model_bytes: bytes("max_model_kib", 1024.0),
        max_usd_per_million: table.number("max_cost_usd_per_million"),
    }
}

fn objective(table: &Table) -> Option<Objective> {
    word(table, "minimise").or_else(|| word(table, "maximise"))
}

fn cost(table: &Table, report: &mut Report, known: &Known) -> Option<CostBasis> {
    if let Some(name) = table.text("instance") {
        if name == "auto" {
            return Some(CostBasis::Auto);
        }
        if !name.trim().is_empty() && !known.instances.iter().any(|instance| instance == name) {
            let names: Vec<&str> = known.instances.iter().map(String::as_str).chain(["auto"]).collect();
            let diagnostic = report.unknown(table.span("instance"), "instance", name, &names);
            if diagnostic.hint.is_none() {
                diagnostic.hint("`advisor prices list` prints the catalogue");
            }
        }
        return Some(CostBasis::Instance(name.to_string()));
    }
    let inline = table.table("instance");
    let table = inline.as_ref().unwrap_or(table);
    let hourly = table.number("hourly_usd").map(|usd| CostBasis::Hourly(UsdPerHour(usd)));
    hourly.or_else(|| table.table("owned").and_then(|table| owned(&table)).map(CostBasis::Owned))
}

fn owned(table: &Table) -> Option<Owned> {
    Some(Owned {
        purchase_usd: table.number("purchase_usd")?,
        years: table.number("years")?,
        utilisation: table.number("utilisation")?,
        watts: table.number("watts")?,
        usd_per_kwh: table.number("usd_per_kwh")?,
    })
}

fn word<T: Vocabulary>(table: &Table, key: &str) -> Option<T> {
    table.word(key, |text| T::parse(text).ok())
}

fn words<T: Vocabulary>(table: &Table, key: &str) -> Option<Vec<T>> {
    table.words(key, |text| T::parse(text).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::KnownModel;
    use crate::{input::render, vocab::Schedule};

    const MODELS: &[KnownModel] = &[
        KnownModel { name: "simple-cnn", reads: RowKind::Image },
        KnownModel { name: "mlp", reads: RowKind::Image },
        KnownModel { name: "transformer", reads: RowKind::Text },
    ];

    const MINIMAL: &str = "name = \"x\"\n[workload]\nmodel = \"mlp\"\ndata = \"mnist\"\n";

    fn load(text: &str) -> Result<Scenario, String> {
        let instances = ["aws/c7a.large".to_string()];
        let known = Known { models: MODELS, instances: &instances };
        Scenario::read(Source::new("scenarios/x.toml", text), &known).map_err(|found| render(&found))
    }

    fn with(more: &str) -> Scenario {
        load(&format!("{MINIMAL}{more}")).unwrap_or_else(|found| panic!("{found}"))
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let scenario = with("");
        assert_eq!(scenario.question, "Which precision, compression, layout and batch size serve mlp on mnist best?");
        assert_eq!(scenario.phases, [Phase::Train, Phase::Infer]);
        let train = TrainConfig {
            epochs: 3,
            optimizer: OptimizerConfig::new(OptimizerKind::Sgd, 0.05),
            schedule: Schedule::Constant,
            init: InitKind::He,
            l1: 0.0,
            l2: 0.0,
            augment: vec![],
            seeds: 1,
            first_seed: 1,
            batch_size: 64,
            target: None,
            tune_epochs: TrainConfig::TUNE_EPOCHS,
            bucket_bytes: None,
        };
        assert_eq!(scenario.train, train);
        let grid = Grid {
            devices: vec![Device::Auto],
            precisions: vec![Precision::Fp32],
            compressions: vec![Compression::NONE],
            layouts: vec![Layout::SINGLE],
            batch_sizes: vec![64],
            threads: vec![],
        };
        assert_eq!(scenario.grid, grid);
        assert_eq!(scenario.goal, Goal { constraints: Constraints::default(), objective: Objective::Cost });
        assert_eq!((scenario.cost, scenario.primary_metric), (CostBasis::Auto, Metric::Accuracy));
        assert_eq!((scenario.path.as_path(), scenario.text.as_str()), (Path::new("scenarios/x.toml"), MINIMAL));
    }

    #[test]
    fn each_optimizer_has_its_own_learning_rate_and_constants() {
        for (kind, rate) in [("sgd", 0.05), ("adam", 0.001), ("adamw", 0.001), ("rmsprop", 0.001)] {
            let found = with(&format!("[train]\noptimizer.kind = \"{kind}\"")).train.optimizer;
            assert_eq!(found, OptimizerConfig::new(OptimizerKind::parse(kind).unwrap(), rate));
        }
        let found = with(
            "[train]\noptimizer = { kind = \"rmsprop\", learning_rate = 0.01, momentum = 0.5, beta2 = 0.9, epsilon = 1e-6 }",
        );
        let optimizer = found.train.optimizer;
        assert_eq!((optimizer.learning_rate, optimizer.momentum, optimizer.beta2, optimizer.epsilon), (0.01, 0.5, 0.9, 1e-6));
        assert!(load(&format!("{MINIMAL}[train]\noptimizer.epsilon = 1e-6")).unwrap_err().contains("`sgd` has no `epsilon`"));
    }

    #[test]
    fn limits_are_kept_in_the_units_of_the_house() {
        let limits = "[constraints]\nmax_latency_p50_ms = 2\nmax_latency_p99_ms = 5.0\nmin_throughput_per_s = 1000\n\
                      max_memory_mib = 1.5\nmax_model_kib = 0.0001\nmax_cost_usd_per_million = 0.25\nmin_accuracy = 1\nmax_accuracy_drop = 0";
        let expected = Constraints {
            max_accuracy_drop: Some(0.0),
            min_accuracy: Some(1.0),
            max_latency_p50: Some(Seconds(0.002)),
            max_latency_p99: Some(Seconds(0.005)),
            min_throughput: Some(PerSecond(1000.0)),
            max_memory_bytes: Some(1_572_864),
            max_model_bytes: Some(1),
            max_usd_per_million: Some(0.25),
        };
        assert_eq!(with(limits).goal.constraints, expected);
    }

    #[test]
    fn a_price_may_stand_in_three_places() {
        let owned = "{ purchase_usd = 3000, years = 4, utilisation = 0.5, watts = 300, usd_per_kwh = 0.3 }";
        let expected = Owned { purchase_usd: 3000.0, years: 4.0, utilisation: 0.5, watts: 300.0, usd_per_kwh: 0.3 };
        let cost = |line: &str| with(&format!("[cost]\n{line}")).cost;
        assert_eq!(cost("instance = \"auto\""), CostBasis::Auto);
        assert_eq!(cost("instance = \"aws/c7a.large\""), CostBasis::Instance("aws/c7a.large".into()));
        assert_eq!(cost("hourly_usd = 0.9"), CostBasis::Hourly(UsdPerHour(0.9)));
        assert_eq!(cost("instance = { hourly_usd = 0.9 }"), CostBasis::Hourly(UsdPerHour(0.9)));
        assert_eq!(cost(&format!("owned = {owned}")), CostBasis::Owned(expected));
        assert_eq!(cost(&format!("instance = {{ owned = {owned} }}")), CostBasis::Owned(expected));
    }

    #[test]
    fn task_model_and_data_must_be_of_one_kind_and_the_task_follows_from_the_data() {
        let text = MINIMAL.replace("mlp", "transformer").replace("\"mnist\"", "\"sentiment-snippets\"");
        let scenario = load(&text).unwrap_or_else(|found| panic!("{found}"));
        assert_eq!(scenario.task, Task::TextClassification);
        assert_eq!(load(MINIMAL).unwrap().task, Task::ImageClassification);
        let wrong = load(&MINIMAL.replace("\"mnist\"", "\"sentiment-snippets\"")).unwrap_err();
        assert!(
            wrong.contains("model `mlp` reads images, but the data holds text") && wrong.contains("`transformer`"),
            "{wrong}"
        );
        let wrong = load(&text.replace("model =", "task = \"image-classification\"\nmodel =")).unwrap_err();
        assert!(wrong.contains("task `image-classification` is about images, but the data holds text"), "{wrong}");
        let wrong = load(&format!("{text}[train]\naugment = [\"flip\"]\n")).unwrap_err();
        assert!(wrong.contains("`augment` changes images"), "{wrong}");
        let own = "{ format = \"text\", path = \"x.csv\", text = \"body\", label = \"class\" }";
        match load(&text.replace("\"sentiment-snippets\"", own)).unwrap_or_else(|found| panic!("{found}")).data {
            DataSource::Text { text, length, vocabulary, .. } => {
                assert_eq!((text.as_str(), length, vocabulary), ("body", 48, 8000))
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn paths_of_data_count_from_the_folder_of_the_file() {
        let data = |line: &str| load(&MINIMAL.replace("\"mnist\"", line)).unwrap_or_else(|found| panic!("{found}")).data;
        assert_eq!(data("{ format = \"idx\", path = \"images\" }"), DataSource::Idx { folder: "scenarios/images".into() });
        assert_eq!(data("{ format = \"idx\", path = \"/images\" }"), DataSource::Idx { folder: "/images".into() });
        let csv = DataSource::Csv {
            path: "scenarios/x.csv".into(),
            label: "class".into(),
            shape: [8, 9, 1],
            maximum: 16.0,
            split: Some("part".into()),
            test_share: 0.25,
        };
        let line = "{ format = \"csv\", path = \"x.csv\", label = \"class\", shape = [8, 9, 1], maximum = 16, split = \"part\", test_share = 0.25 }";
        assert_eq!(data(line), csv);
        match data("{ format = \"csv\", path = \"x.csv\", label = \"class\", shape = [8, 8, 1] }") {
            DataSource::Csv { maximum, split, test_share, .. } => assert_eq!((maximum, split, test_share), (255.0, None, 0.2)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn words_may_stand_alone_or_by_their_aliases() {
        let scenario =
            with("phase = \"inference\"\n[grid]\nprecision = \"half\"\nbatch_size = 8\n[objective]\nmaximise = \"throughput\"");
        assert_eq!((scenario.phases, scenario.grid.precisions), (vec![Phase::Infer], vec![Precision::Fp16]));
        assert_eq!((scenario.grid.batch_sizes, scenario.goal.objective), (vec![8], Objective::Throughput));
        let target = with("[train]\ntarget = { at_least = 1 }").train.target;
        assert_eq!(target, Some(Target { metric: Metric::Accuracy, at_least: 1.0 }));
    }

    #[test]
    fn axes_beyond_all_measure_are_mistakes_and_no_overflow() {
        let long = vec!["\"\""; 50_000].join(", ");
        let counts = vec!["9"; 50_000].join(", ");
        let grid = format!("[grid]\nbatch_size = [{counts}]\nthreads = [{counts}]\nlayout = [{long}]\nprecision = [{long}]");
        assert!(load(&format!("{MINIMAL}{grid}")).is_err());
        let grid = Grid {
            batch_sizes: vec![1; 1 << 22],
            threads: vec![1; 1 << 22],
            layouts: vec![Layout::SINGLE; 1 << 22],
            ..with("").grid
        };
        assert_eq!(grid.size(Phase::Train), usize::MAX);
    }

    #[test]
    fn the_largest_grid_is_exactly_two_thousand() {
        let axis = |most: usize| (1..=most).map(|size| size.to_string()).collect::<Vec<_>>().join(", ");
        let grid = |rows: usize| format!("phase = [\"infer\"]\n[grid]\nbatch_size = [{}]\nthreads = [{}]", axis(rows), axis(50));
        with(&grid(40));
        let found = load(&format!("{MINIMAL}{}", grid(41))).unwrap_err();
        assert!(found.starts_with("error: 2050 candidates in `[grid]`"), "{found}");
    }
}
