//! How far predictions lie from what was published.
//!
//! A family of tables (training; serving has its own) reads rows, predicts them, and says of each row where it belongs. What is printed is the same
//! for all: median and 90th percentile of the absolute percentage error by stratum, and the rank correlation over the layouts of one model.
//! The error that is told is that of rows which the fit had not seen: whole groups of model, GPU and precision are held out together.

use super::{
    calibrate::{self, FOLDS},
    domain::Domain,
    parameters::Parameters,
    serve,
    tables::{Books, Case, Csv, Regime, TableKind},
};
use crate::stats;
use std::collections::BTreeMap;

/// One published figure and what is predicted for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    pub id: String,
    /// In the file, from 1.
    pub line: usize,
    pub table: &'static str,
    /// What is compared, with its unit.
    pub quantity: &'static str,
    pub published: f64,
    pub predicted: f64,
    /// False for a figure that its source replaced: it counts for the floor, not for the error.
    pub current: bool,
    /// Dimension and value: `("gpu", "b200")`. The first is the regime, which may have a bar.
    pub strata: Vec<(&'static str, String)>,
    /// Rows of the same are layouts of one model, to be ranked among each other.
    pub ranked: Option<String>,
    /// Rows of the same differ in nothing that the table prints but their figures.
    pub same: String,
    /// Why the answer lies outside of what was fitted.
    pub extrapolated: Option<String>,
    /// Other words on the prediction: what was assumed or chosen.
    pub remark: String,
}

impl Scored {
    /// Percent; above 0 where the prediction is higher.
    pub fn error_percent(&self) -> f64 {
        100.0 * (self.predicted / self.published - 1.0)
    }
}

/// A row without a prediction.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    pub id: String,
    pub line: usize,
    pub reason: String,
}

/// What became of a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    pub scored: Vec<Scored>,
    pub refused: Vec<Refused>,
}

impl Reading {
    /// Adds what became of another table.
    pub fn add(&mut self, other: Reading) {
        self.scored.extend(other.scored);
        self.refused.extend(other.refused);
    }
}

/// Tables of one kind of question.
pub struct Family {
    pub name: &'static str,
    /// Whether a file with these columns is one of its tables.
    pub reads: fn(&Csv) -> bool,
    /// Predicts every row with the shipped parameters.
    pub predict: fn(&Csv) -> Reading,
    /// The same with parameters that were fitted to these very rows: how near the model can come.
    pub in_sample: fn(&Csv) -> Reading,
    /// Predicts every row of the shipped tables, and of these others, with parameters that were fitted without its group.
    pub held_out: fn(&[Csv]) -> Reading,
}

pub const TRAINING: Family = Family {
    name: "training",
    reads: |csv| TableKind::of(csv).is_some(),
    predict: |csv| predict_training(csv, |_| Parameters::shipped()),
    in_sample: |csv| predict_training(csv, |current| calibrate::fit(current, &Parameters::default())),
    held_out: held_out_training,
};

pub const SERVING: Family = Family {
    name: "serving",
    reads: serve::tables::is_serving,
    predict: serve::score::predict,
    in_sample: serve::score::in_sample,
    held_out: serve::score::held_out,
};

/// All families. A new one is a row here.
pub const FAMILIES: &[Family] = &[TRAINING, SERVING];

/// The tables of training that come with the program (data/PROVENANCE.md).
pub const SHIPPED: [(&str, &str); 13] = [
    ("megatron_korthikanti", include_str!("../../data/validation/megatron_korthikanti.csv")),
    ("megatron_a100", include_str!("../../data/validation/megatron_a100.csv")),
    ("megatron_h100", include_str!("../../data/validation/megatron_h100.csv")),
    ("llama3", include_str!("../../data/validation/llama3.csv")),
    ("mosaic_a100", include_str!("../../data/validation/mosaic_a100.csv")),
    ("mosaic_h100", include_str!("../../data/validation/mosaic_h100.csv")),
    ("torchtitan", include_str!("../../data/validation/torchtitan.csv")),
    ("nemo_h100", include_str!("../../data/validation/nemo_h100.csv")),
    ("nemo_b200", include_str!("../../data/validation/nemo_b200.csv")),
    ("nemo_b300", include_str!("../../data/validation/nemo_b300.csv")),
    ("nemo_gb200", include_str!("../../data/validation/nemo_gb200.csv")),
    ("nemo_gb300", include_str!("../../data/validation/nemo_gb300.csv")),
    ("nemo_long_sequence", include_str!("../../data/validation/nemo_long_sequence.csv")),
];

/// Cases of the shipped tables and of these others, and the rows that are none.
pub fn training_cases(others: &[Csv]) -> (Vec<Case>, Vec<Refused>) {
    let books = Books::shipped();
    let shipped: Vec<Csv> =
        SHIPPED.iter().map(|(name, text)| Csv::read(text).unwrap_or_else(|e| panic!("{name}: {e}"))).collect();
    let (mut cases, mut refused) = (Vec::new(), Vec::new());
    for csv in shipped.iter().chain(others) {
        let Some(kind) = TableKind::of(csv) else { continue };
        read_table(kind, csv, &books, &mut cases, &mut refused);
    }
    (cases, refused)
}

fn read_table(kind: &'static TableKind, csv: &Csv, books: &Books, cases: &mut Vec<Case>, refused: &mut Vec<Refused>) {
    for (line, id, case) in kind.cases(csv, books) {
        match case {
            Ok(case) => cases.push(case),
            Err(reason) => refused.push(Refused { id, line, reason }),
        }
    }
}

/// `parameters` are made of the current rows of the table.
fn predict_training(csv: &Csv, parameters: impl Fn(&[&Case]) -> Parameters) -> Reading {
    let Some(kind) = TableKind::of(csv) else { return Reading::default() };
    let (mut cases, mut refused) = (Vec::new(), Vec::new());
    read_table(kind, csv, &Books::shipped(), &mut cases, &mut refused);
    let (fitted, _) = training_cases(&[]);
    let domain = Domain::of(&fitted);
    let parameters = parameters(&cases.iter().filter(|case| case.current).collect::<Vec<_>>());
    let mut scored = Vec::new();
    for case in &cases {
        match domain.place(&case.question) {
            Err(reason) => refused.push(Refused { id: case.id.clone(), line: case.line, reason }),
            Ok(extrapolated) => scored.extend(score(case, &parameters, extrapolated)),
        }
    }
    refused.sort_by_key(|row| row.line);
    Reading { scored, refused }
}

/// Predicts all cases, each with the parameters of a fit that had not seen its group.
fn held_out_training(others: &[Csv]) -> Reading {
    let (cases, refused) = training_cases(others);
    let fold_of = calibrate::folds(&cases, FOLDS);
    let fits = calibrate::fits(&cases, &fold_of, FOLDS, &Parameters::default());
    let scored = cases.iter().zip(fold_of).flat_map(|(case, fold)| score(case, &fits[fold], None)).collect();
    Reading { scored, refused }
}

/// The figure of a case, and its memory where that is published too.
fn score(case: &Case, parameters: &Parameters, extrapolated: Option<String>) -> Vec<Scored> {
    const GIB: f64 = (1u64 << 30) as f64;
    let step = case.question.step(parameters);
    let strata = &case.strata;
    let layout = &case.question.layout;
    let mut remarks = Vec::new();
    if step.again.blocks > 0.0 && layout.recompute == super::layout::Recompute::AsNeeded {
        remarks.push(format!("{:.0} % of the blocks taken as computed again", 100.0 * step.again.blocks));
    }
    if let Some(missing) = step.missing_bytes() {
        remarks.push(format!("memory is counted {:.1} GiB too small for it", missing / GIB));
    }
    let one = Scored {
        id: case.id.clone(),
        line: case.line,
        table: strata.table,
        quantity: case.question.quantity.name(),
        published: case.published,
        predicted: case.question.quantity.of(&step),
        current: case.current,
        strata: vec![
            ("regime", strata.regime.name().to_string()),
            ("gpu", strata.gpu.clone()),
            ("size", strata.size.to_string()),
            ("precision", strata.precision.to_string()),
            ("task", strata.task.clone()),
            ("source", strata.table.to_string()),
            (GROUP, of_group(&case.group, case.question.quantity.name())),
        ],
        ranked: (strata.table == "vtrain").then(|| format!("vtrain {}", strata.model)),
        same: format!("{} {} {} {layout:?}", strata.table, strata.model, strata.gpu),
        extrapolated: extrapolated.clone(),
        remark: remarks.join("; "),
    };
    let memory = case.memory_gib.map(|published| Scored {
        quantity: "GiB",
        published,
        predicted: step.memory.total() / GIB,
        strata: vec![("regime", MEMORY.to_string()), ("source", strata.table.to_string())],
        ranked: None,
        remark: String::new(),
        ..one.clone()
    });
    std::iter::once(one).chain(memory).collect()
}

/// The dimension of the smallest strata: runs of one model, GPU and precision, by what was measured. They were held out together.
pub const GROUP: &str = "group";

/// Its value, of a group as `tables::group` names it.
pub fn of_group(group: &str, quantity: &str) -> String {
    format!("{group}: {quantity}")
}

/// The stratum of published memory.
pub const MEMORY: &str = "memory of a GPU";

/// The bar of a regime, percent, for the median; the 90th percentile may be 2.5 times that.
pub fn bar_percent(regime: &str) -> Option<f64> {
    let of_training = Regime::ALL.into_iter().find(|one| one.name() == regime).map(Regime::bar_percent);
    of_training.or_else(|| serve::score::bar_percent(regime))
}

/// Errors of one stratum, percent.
#[derive(Clone, Debug, PartialEq)]
pub struct Stratum {
    pub dimension: &'static str,
    pub value: String,
    pub rows: usize,
    pub median: f64,
    pub ninetieth: f64,
    /// Median with its sign: above 0 where predictions are too high.
    pub bias: f64,
}

/// Errors of the current rows by stratum, in the order in which dimensions first come.
pub fn strata(scored: &[Scored]) -> Vec<Stratum> {
    let mut order: Vec<&'static str> = Vec::new();
    let mut errors: BTreeMap<(usize, String), Vec<f64>> = BTreeMap::new();
    for row in scored.iter().filter(|row| row.current) {
        for (dimension, value) in &row.strata {
            let at = order.iter().position(|known| known == dimension).unwrap_or_else(|| {
                order.push(dimension);
                order.len() - 1
            });
            errors.entry((at, value.clone())).or_default().push(row.error_percent());
        }
    }
    errors.into_iter().filter_map(|((at, value), errors)| stratum(order[at], value, &errors)).collect()
}

/// Dimensions of strata, as tables of them name them.
const DIMENSIONS: [&str; 10] =
    ["regime", "gpu", "size", "precision", "task", "source", "run", "engine", serve::score::CHIPS_OF, GROUP];

/// As `data/predict/held-out.csv` and `held-out-serving.csv` are written.
pub fn strata_csv(strata: &[Stratum]) -> String {
    let mut text = String::from("dimension,value,rows,median_percent,p90_percent,bias_percent\n");
    for row in strata {
        let value = if row.value.contains(',') { format!("\"{}\"", row.value) } else { row.value.clone() };
        text += &format!("{},{value},{},{:.2},{:.2},{:.2}\n", row.dimension, row.rows, row.median, row.ninetieth, row.bias);
    }
    text
}

/// The held-out errors of the shipped parameters, as `advisor plan calibrate --held-out` wrote them.
pub fn shipped_strata() -> Vec<Stratum> {
    read_strata(include_str!("../../data/predict/held-out.csv"))
}

/// The same of the parameters of serving (`advisor plan calibrate --serving --held-out`).
pub fn shipped_serving_strata() -> Vec<Stratum> {
    read_strata(include_str!("../../data/predict/held-out-serving.csv"))
}

/// What `strata_csv` wrote.
fn read_strata(text: &str) -> Vec<Stratum> {
    let csv = Csv::read(text).unwrap_or_else(|error| panic!("errors of rows held out: {error}"));
    let read = |row: super::tables::Row| {
        let dimension = row.text("dimension")?;
        Some(Stratum {
            dimension: DIMENSIONS.into_iter().find(|known| *known == dimension)?,
            value: row.text("value")?.to_string(),
            rows: row.count("rows")? as usize,
            median: row.number("median_percent")?,
            ninetieth: row.number("p90_percent")?,
            bias: row.number("bias_percent")?,
        })
    };
    csv.rows().filter_map(read).collect()
}

fn stratum(dimension: &'static str, value: String, errors: &[f64]) -> Option<Stratum> {
    let sizes: Vec<f64> = errors.iter().map(|error| error.abs()).collect();
    Some(Stratum {
        dimension,
        value,
        rows: errors.len(),
        median: stats::median(&sizes)?,
        ninetieth: stats::quantile(&sizes, 0.9)?,
        bias: stats::median(errors)?,
    })
}

/// What a predictor cannot do better than: how far figures of one configuration lie from their own median, in percent, where there are several
/// (other releases, remeasured, corrected).
pub fn floor(scored: &[Scored]) -> Option<Stratum> {
    let mut same: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for row in scored.iter().filter(|row| row.quantity != "GiB") {
        same.entry(&row.same).or_default().push(row.published);
    }
    let mut errors = Vec::new();
    for figures in same.values().filter(|figures| figures.len() > 1) {
        let centre = stats::median(figures)?;
        errors.extend(figures.iter().map(|figure| 100.0 * (figure / centre - 1.0)));
    }
    stratum("floor", "the same configuration measured again".to_string(), &errors)
}

/// The floor of each regime by itself where several quantities are predicted, and then of what engines served, engine by engine.
pub fn floors(scored: &[Scored]) -> Vec<Stratum> {
    let counted: Vec<&Scored> = scored.iter().filter(|row| row.quantity != "GiB").collect();
    if counted.windows(2).all(|pair| pair[0].quantity == pair[1].quantity) {
        return floor(scored).into_iter().collect();
    }
    let mut all = Vec::new();
    for dimension in ["regime", "engine"] {
        let mut groups: BTreeMap<&str, Vec<Scored>> = BTreeMap::new();
        for row in &counted {
            for (_, value) in row.strata.iter().filter(|(name, _)| *name == dimension) {
                groups.entry(value).or_default().push((*row).clone());
            }
        }
        let named =
            |(value, rows): (&str, Vec<Scored>)| Some(Stratum { value: format!("measured again, {value}"), ..floor(&rows)? });
        all.extend(groups.into_iter().filter_map(named));
    }
    all
}

/// Rank correlation of predicted and published over the layouts of one model: name, layouts, Spearman's coefficient.
pub fn rankings(scored: &[Scored]) -> Vec<(String, usize, f64)> {
    let mut by_model: BTreeMap<&str, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
    for row in scored {
        if let Some(name) = &row.ranked {
            let (published, predicted) = by_model.entry(name).or_default();
            published.push(row.published);
            predicted.push(row.predicted);
        }
    }
    let long = by_model.into_iter().filter(|(_, (published, _))| published.len() >= 5);
    long.filter_map(|(name, (a, b))| Some((name.to_string(), a.len(), spearman(&a, &b)?))).collect()
}

/// Spearman's rank correlation: Pearson's of the ranks, ties at their mean rank.
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    let (a, b) = (ranks(a), ranks(b));
    let (mean_a, mean_b) = (stats::mean(&a)?, stats::mean(&b)?);
    let products: f64 = a.iter().zip(&b).map(|(x, y)| (x - mean_a) * (y - mean_b)).sum();
    let squares = |values: &[f64], mean: f64| values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    let size = (squares(&a, mean_a) * squares(&b, mean_b)).sqrt();
    (size > 0.0).then(|| products / size)
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let rank = |value: f64| {
        let below = values.iter().filter(|other| **other < value).count() as f64;
        let equal = values.iter().filter(|other| **other == value).count() as f64;
        below + (equal - 1.0) / 2.0
    };
    values.iter().map(|value| rank(*value)).collect()
}

/// What other predictors are said to reach: name, claim, where it stands.
pub const OTHERS: [(&str, &str, &str); 5] = [
    (
        "Calculon",
        "step time of 8 Megatron points on A100: mean 3.65 %, largest 8.87 %; parameters and optimizer memory: mean 8.49 %; activations: mean 2.08 %",
        "its own llm-validation at caa4b11f8fe1",
    ),
    ("vTrain", "step time: mean 8.37 % on 8 A100, 14.73 % on up to 512", "announcement of KAIST; the paper is arXiv 2312.12391"),
    ("Zhang et al.", "step time: mean 4.98 % on A100, 9.38 % on GH200, models up to 20 billion", "abstract of arXiv 2509.22832"),
    (
        "AIConfigurator",
        "time of matrix products on shapes left out: mean 7 to 15 %; no figure for whole models",
        "docs/design/hybrid_modeling_design.md at 095f58a51c4c",
    ),
    ("llm-analysis, Vidur", "no error figure in the texts of their repositories", "d841e40aec8c, 7d47513363ec"),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked by hand: ranks 1 2 3 4 5 against 2 1 4 3 5 give 1 - 6 x 4 / (5 x 24) = 0.8.
    #[test]
    fn rank_correlation_is_spearmans() {
        let found = spearman(&[1.0, 2.0, 3.0, 4.0, 5.0], &[20.0, 10.0, 40.0, 30.0, 50.0]).unwrap();
        assert!((found - 0.8).abs() < 1e-12);
        assert_eq!(spearman(&[1.0, 1.0], &[1.0, 2.0]), None);
    }

    #[test]
    fn every_shipped_row_is_a_case_or_has_a_reason() {
        let (cases, refused) = training_cases(&[]);
        assert!(cases.len() > 400, "{} cases", cases.len());
        assert!(refused.len() < 20, "{refused:?}");
        assert!(refused.iter().all(|row| !row.reason.is_empty()));
    }

    #[test]
    fn strata_come_back_as_they_were_written() {
        let shipped = shipped_strata();
        for regime in Regime::ALL {
            assert!(
                shipped.iter().any(|row| row.dimension == "regime" && row.value == regime.name() && row.rows > 5),
                "{shipped:?}"
            );
        }
        assert_eq!(strata_csv(&shipped), include_str!("../../data/predict/held-out.csv"));
        assert_eq!(strata_csv(&shipped_serving_strata()), include_str!("../../data/predict/held-out-serving.csv"));
    }

    /// The fit itself, not the held-out error: what `advisor plan score` prints is larger, and docs/plan.md has it.
    #[test]
    fn the_shipped_parameters_lie_within_the_bars_on_the_shipped_rows() {
        let (cases, _) = training_cases(&[]);
        let parameters = Parameters::shipped();
        let scored: Vec<Scored> = cases.iter().flat_map(|case| score(case, &parameters, None)).collect();
        for row in strata(&scored).iter().filter(|row| row.dimension == "regime") {
            if let Some(bar) = bar_percent(&row.value) {
                assert!(row.median <= bar, "{row:?}, bar {bar}");
                assert!(row.ninetieth <= 2.5 * bar, "{row:?}, bar {}", 2.5 * bar);
            }
        }
    }

    #[test]
    fn a_row_of_an_unknown_model_is_refused_with_one_reason() {
        let (_, text) = SHIPPED.iter().find(|(name, _)| *name == "nemo_b200").unwrap();
        let csv = Csv::read(&text.replace("LLAMA3_8B", "NO_SUCH_MODEL")).unwrap();
        let reading = (TRAINING.predict)(&csv);
        assert!(reading.refused.iter().any(|row| row.reason.contains("no model `NO_SUCH_MODEL`")), "{:?}", reading.refused);
        assert!(!reading.scored.is_empty());
    }

    #[test]
    fn parameters_that_saw_a_table_come_nearer_to_it() {
        let (_, text) = SHIPPED.iter().find(|(name, _)| *name == "megatron_a100").unwrap();
        let csv = Csv::read(text).unwrap();
        let error = |reading: Reading| {
            let all: Vec<f64> = reading.scored.iter().map(|row| row.error_percent().abs()).collect();
            all.iter().sum::<f64>() / all.len() as f64
        };
        let (shipped, own) = (error((TRAINING.predict)(&csv)), error((TRAINING.in_sample)(&csv)));
        assert!(own < shipped, "{own} % in the mean, {shipped} % with the shipped parameters");
    }

    #[test]
    fn the_floor_is_the_spread_of_one_configuration() {
        let (cases, _) = training_cases(&[]);
        let parameters = Parameters::shipped();
        let scored: Vec<Scored> = cases.iter().flat_map(|case| score(case, &parameters, None)).collect();
        let floor = floor(&scored).unwrap();
        assert!(floor.rows > 100 && floor.median < 5.0 && floor.ninetieth > floor.median, "{floor:?}");
    }
}
