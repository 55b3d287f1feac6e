//! What a plan comes to, as data: every kind and number of machines with its best layout, those that no other beats in time and cost, the pick,
//! and why, where nothing meets every limit.
//!
//! Pure, and the same for training and for serving: `training` and `serving` make the rows.

use super::{
    plan_file::{LayoutLimits, Limits, PlanObjective},
    search,
};
use crate::{
    hardware::Gpu,
    record::Candidate,
    units::{Joules, Seconds, Usd, UsdPerHour},
    vocab::{Compression, Phase, Vocabulary},
};

/// The answer to a plan.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The best layout of each kind and number of machines that has one, best objective first, those that break a limit last.
    pub rows: Vec<Row>,
    /// Place in `rows`; absent where nothing meets every limit.
    pub pick: Option<usize>,
    /// Other layouts of the pick's machines, fastest first.
    pub alternatives: Vec<Row>,
    /// Kinds and numbers of machines without a layout that fits.
    pub refusals: Vec<Refusal>,
    /// How the pick moves with what was assumed, the largest first.
    pub swings: Vec<Swing>,
    /// What an hour of a GPU costs on each kind of machine, in the order of the plan.
    pub prices: Vec<(String, super::price::GpuPrice)>,
    pub counts: search::Counts,
    pub notes: Vec<String>,
}

/// A kind and number of machines with a layout.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Place in the plan's machines.
    pub machine: usize,
    /// Name of the GPU in the hardware book; of the processor where that is what works.
    pub gpu: String,
    /// 0 where it is the machine at hand.
    pub gpus: u32,
    pub market: Market,
    pub layout: LayoutFigures,
    /// Training: wall time of all tokens or examples, with what failures add. Serving: from a request to the end of its answer. Answers of a
    /// graph: a step.
    pub time: Seconds,
    /// Training: of all tokens or examples. Serving: of a million output tokens. Answers of a graph: of a million. Absent where the price is unknown.
    pub cost: Option<Usd>,
    /// Of the same, at the power limit of the GPUs. Absent where a figure of the power is unknown.
    pub energy: Option<Joules>,
    pub usd_per_hour: Option<UsdPerHour>,
    /// Tokens a second, of all GPUs: trained on, or answered with. Examples of a graph.
    pub tokens_per_s: f64,
    pub work: WorkFigures,
    /// Bytes on the fullest GPU, part by part.
    pub memory: Vec<(&'static str, f64)>,
    /// Bytes of a GPU that may be used.
    pub memory_limit: f64,
    /// Seconds of a step, part by part: they add up to it.
    pub time_parts: Vec<(&'static str, f64)>,
    pub trust: Trust,
    pub breaches: Vec<Breach>,
    /// No other row within the limits is faster and cheaper.
    pub on_front: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Market {
    OnDemand,
    Spot,
}

impl Market {
    pub fn name(self) -> &'static str {
        match self {
            Market::OnDemand => "on demand",
            Market::Spot => "spot",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum WorkFigures {
    Train(TrainFigures),
    Serve(ServeFigures),
    Graph(GraphFigures),
}

/// Replicas that may be taken away.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpotFigures {
    pub spares: u32,
    /// Share of the time in which at least the replicas that the load needs are there.
    pub availability: f64,
}

/// Of the graph of a scenario.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GraphFigures {
    pub phase: Phase,
    /// What an example is: `image`.
    pub unit: &'static str,
    pub step: Seconds,
    /// Of the whole training, or of a million answers.
    pub steps: f64,
    /// The same without failures and checkpoints.
    pub work: Seconds,
    pub goodput: f64,
    pub interruptions: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainFigures {
    pub step: Seconds,
    pub steps: f64,
    /// Model FLOPs over the peak of the precision's products; absent where the chip has no such peak in the book.
    pub mfu: Option<f64>,
    /// Work alone, without failures and checkpoints.
    pub work: Seconds,
    pub goodput: f64,
    pub interruptions: f64,
    pub checkpoint_interval: Option<Seconds>,
    pub checkpoint: Seconds,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServeFigures {
    /// That the load is served by; spares come on top.
    pub replicas: u32,
    /// At spot prices: what stands in for those that are taken away.
    pub spot: Option<SpotFigures>,
    pub first_token: Seconds,
    pub per_token: Seconds,
    /// Requests that a replica works on at once.
    pub concurrency: f64,
    /// Load over what the replicas could answer at most.
    pub utilisation: f64,
    /// Where tokens are proposed.
    pub drafts: Option<DraftFigures>,
}

/// What proposed tokens come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DraftFigures {
    /// Chance that one is accepted, given that those before it were.
    pub acceptance: f64,
    /// Tokens that a sequence gains in a step.
    pub tokens_per_step: f64,
}

/// A layout as it is printed.
#[derive(Clone, Debug, PartialEq)]
pub struct LayoutFigures {
    pub tensor: u32,
    pub pipeline: u32,
    pub context: u32,
    pub expert: u32,
    pub data: u32,
    /// Sequences or examples of a step; this and what follows say nothing of serving.
    pub batch: u32,
    /// 0 where layouts are told apart by their batch instead.
    pub micro_batch: u32,
    pub interleaving: u32,
    pub recomputation: String,
    pub zero: u8,
    pub precision: String,
    /// Copies of the model that share a served load, spares left out; 0 in training.
    pub replicas: u32,
    /// Tokens that a step of serving proposes; 0 where none.
    pub draft_tokens: u32,
}

impl LayoutFigures {
    /// The layout of a graph of ours, whose whole batch is all that is said of its size.
    pub fn of(candidate: &Candidate) -> LayoutFigures {
        let layout = candidate.layout;
        let size = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
        let mut precision = candidate.precision.name().to_string();
        if candidate.compression != Compression::NONE {
            precision += &format!(", {}", candidate.compression);
        }
        LayoutFigures {
            tensor: size(layout.tensor_ranks()),
            pipeline: size(layout.pipeline_ranks()),
            context: 1,
            expert: 1,
            data: size(layout.data_ranks()),
            batch: size(candidate.batch_size),
            micro_batch: 0,
            interleaving: 1,
            recomputation: if layout.recomputes() { "full".into() } else { "none".into() },
            zero: u8::from(layout.shares_state()),
            precision,
            replicas: 0,
            draft_tokens: 0,
        }
    }

    /// `bf16, tp=8, pp=4, dp=32, zero 1, micro-batch 1 of 1,024, interleaved 2, recompute selective`, without what is plain.
    pub fn title(&self) -> String {
        let mut parts = vec![match self.replicas {
            0 => self.precision.clone(),
            1 => format!("1 replica in {}", self.precision),
            replicas => format!("{} replicas in {}", thousands(replicas), self.precision),
        }];
        let sizes = [("tp", self.tensor), ("pp", self.pipeline), ("cp", self.context), ("ep", self.expert), ("dp", self.data)];
        parts.extend(sizes.iter().filter(|(_, size)| *size > 1).map(|(name, size)| format!("{name}={size}")));
        match self.draft_tokens {
            0 => {}
            1 => parts.push("1 draft token".into()),
            tokens => parts.push(format!("{tokens} draft tokens")),
        }
        if self.replicas == 0 {
            if self.zero > 0 && self.data * self.context > 1 {
                parts.push(format!("ZeRO-{}", self.zero));
            }
            parts.push(match self.micro_batch {
                0 => format!("batch {}", thousands(self.batch)),
                micro_batch => format!("micro-batch {micro_batch}"),
            });
            if self.interleaving > 1 {
                parts.push(format!("interleaved {}", self.interleaving));
            }
            if self.recomputation != "none" {
                parts.push(format!("recompute {}", self.recomputation));
            }
        }
        parts.join(", ")
    }
}

/// How far a modelled figure is to be trusted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trust {
    /// What the error was found on: `hopper, dense, fp8`.
    pub regime: String,
    /// Median absolute error on published rows that were held out of the fit, as a share; absent where there were none.
    pub error: Option<f64>,
    /// The same at the 90th percentile.
    pub error_p90: Option<f64>,
    /// Published rows behind it.
    pub rows: usize,
    /// Errors on published runs of this very model, GPU and precision, by what was measured. They were held out as well.
    pub alike: Vec<Alike>,
    /// In what the layout lies outside of what was fitted.
    pub extrapolated: Vec<String>,
}

/// How published runs of the same model, GPU and precision were predicted by a fit that had seen none of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Alike {
    /// What was measured: `tokens/s/GPU`, `time to first token`.
    pub quantity: String,
    pub rows: usize,
    /// Median absolute error, as a share.
    pub error: f64,
    /// Median error, as a share; above 0 where the prediction is higher.
    pub bias: f64,
}

/// A limit that a row does not meet.
#[derive(Clone, Debug, PartialEq)]
pub struct Breach {
    /// The key of the plan file.
    pub limit: &'static str,
    /// How far, as a factor above 1; infinite where the figure is unknown.
    pub factor: f64,
    pub text: String,
}

/// A kind and number of machines on which nothing fits.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    pub gpu: String,
    pub gpus: u32,
    pub reason: String,
    /// What would make it fit.
    pub remedies: Vec<String>,
}

impl Refusal {
    /// Why there is no layout of so many GPUs at all, memory aside: by `rule`. Which of a plan's limits are in the way is found by leaving them out:
    /// `has_some` says whether there are layouts within others. Where none is, `otherwise` would help.
    pub fn without_layout(
        (gpu, gpus): (&Gpu, u32),
        limits: &LayoutLimits,
        has_some: impl Fn(&LayoutLimits) -> bool,
        (rule, otherwise): (&str, &str),
    ) -> Refusal {
        let lifted = limits.lifted().into_iter().filter(|(_, limits)| has_some(limits));
        let mut remedies: Vec<String> = lifted.map(|(key, _)| format!("another `{key}`")).collect();
        let mut reason = format!("no layout: {rule}");
        match remedies.is_empty() {
            true => remedies.push(otherwise.into()),
            false => reason += "; `[layouts]` leaves none",
        }
        Refusal { gpu: gpu.name.clone(), gpus, reason, remedies }
    }
}

/// How the answer moves with one assumption.
#[derive(Clone, Debug, PartialEq)]
pub struct Swing {
    /// `efficiency of products`.
    pub assumption: String,
    /// What was put in its place at either end: `-10 %`, `+10 %`.
    pub ends: [SwingEnd; 2],
}

#[derive(Clone, Debug, PartialEq)]
pub struct SwingEnd {
    pub change: String,
    /// The objective of the best answer under this assumption; absent where nothing meets every limit then.
    pub objective: Option<f64>,
    /// What would be picked, where it is another.
    pub other_pick: Option<String>,
}

impl SwingEnd {
    /// What `answer` says, given with `change` put in for an assumption, beside the `pick` without that.
    pub fn of(change: impl Into<String>, answer: &Answer, pick: &Row, objective: PlanObjective) -> SwingEnd {
        let other = answer.pick.map(|at| &answer.rows[at]);
        let is_other = |row: &&Row| row.place() != pick.place() || row.layout != pick.layout;
        SwingEnd {
            change: change.into(),
            objective: other.and_then(|row| row.objective(objective)),
            other_pick: other.filter(is_other).map(Row::title),
        }
    }
}

/// `+10 %`, `half`: an assumption at `factor` times its value.
pub fn changed_by(factor: f64) -> String {
    match factor {
        0.5 => return "half".into(),
        2.0 => return "twice".into(),
        _ => {}
    }
    let percent = 100.0 * (factor - 1.0);
    if percent.abs() < 9.95 { format!("{percent:+.1} %") } else { format!("{percent:+.0} %") }
}

impl Swing {
    /// Largest change of the objective as a share of `of`, infinite where an end has no answer.
    pub fn size(&self, of: f64) -> f64 {
        let change = |end: &SwingEnd| end.objective.map_or(f64::INFINITY, |value| (value / of - 1.0).abs());
        self.ends.iter().map(change).fold(0.0, f64::max)
    }
}

impl Row {
    /// The figure that `objective` is about; absent where it is unknown.
    pub fn objective(&self, objective: PlanObjective) -> Option<f64> {
        match objective {
            PlanObjective::Cost => self.cost.map(|usd| usd.0),
            PlanObjective::Time => Some(self.time.0),
            PlanObjective::Energy => self.energy.map(|joules| joules.0),
        }
    }

    /// `1,024 x h100-sxm-80gb (spot): bf16, tp=8, ...`.
    pub fn title(&self) -> String {
        format!("{}: {}", self.place(), self.layout.title())
    }

    /// `1,024 x h100-sxm-80gb (spot)`.
    pub fn place(&self) -> String {
        let market = if self.market == Market::Spot { " (spot)" } else { "" };
        match self.gpus {
            0 => format!("{}{market}", self.gpu),
            gpus => format!("{} x {}{market}", thousands(gpus), self.gpu),
        }
    }

    pub fn memory_bytes(&self) -> f64 {
        self.memory.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// `16,384`.
pub fn thousands(value: u32) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Notes which limits each row breaks.
pub fn hold_against(rows: &mut [Row], limits: &Limits) {
    for row in rows {
        let mut check = |limit: &'static str, found: Option<f64>, most: Option<f64>, print: &dyn Fn(f64) -> String| {
            let Some(most) = most else { return };
            match found {
                Some(found) if found <= most => {}
                Some(found) => {
                    let text = format!("{} where `{limit}` is {}", print(found), print(most));
                    row.breaches.push(Breach { limit, factor: found / most, text });
                }
                None => {
                    let text = format!("`{limit}` is {}, but what this comes to is unknown", print(most));
                    row.breaches.push(Breach { limit, factor: f64::INFINITY, text });
                }
            }
        };
        let days = |seconds: f64| format!("{} days", crate::units::three_figures(seconds / 86_400.0));
        let trains = match &row.work {
            WorkFigures::Train(_) => true,
            WorkFigures::Serve(_) => false,
            WorkFigures::Graph(graph) => graph.phase == Phase::Train,
        };
        if trains {
            check("max_days", Some(row.time.0), limits.time.map(|time| time.0), &days);
            check("max_usd", row.cost.map(|usd| usd.0), limits.cost.map(|usd| usd.0), &|usd| Usd(usd).to_string());
            let mwh = |joules: f64| format!("{} MWh", crate::units::three_figures(joules / 3.6e9));
            check("max_mwh", row.energy.map(|joules| joules.0), limits.energy.map(|joules| joules.0), &mwh);
        } else {
            // A month of serving, at the price of an hour.
            let month = row.usd_per_hour.map(|usd| usd.0 * HOURS_PER_MONTH);
            check("max_usd", month, limits.cost.map(|usd| usd.0), &|usd| format!("{} a month", Usd(usd)));
        }
        check("max_gpus", Some(f64::from(row.gpus)), limits.gpus.map(f64::from), &|gpus| format!("{gpus} GPUs"));
    }
}

/// 365.25 days over 12 months.
pub const HOURS_PER_MONTH: f64 = 730.5;

/// Best objective first, those that break a limit after the others, those with an unknown objective last of each. Marks the front of time
/// against cost among rows within the limits, and returns the place of the pick.
pub fn rank(rows: &mut [Row], objective: PlanObjective) -> Option<usize> {
    let key = |row: &Row| (!row.breaches.is_empty(), row.objective(objective).unwrap_or(f64::INFINITY));
    rows.sort_by(|a, b| {
        let ((out_a, value_a), (out_b, value_b)) = (key(a), key(b));
        out_a.cmp(&out_b).then(value_a.total_cmp(&value_b)).then(a.time.0.total_cmp(&b.time.0)).then(a.gpus.cmp(&b.gpus))
    });
    let mut order: Vec<usize> = (0..rows.len()).filter(|at| rows[*at].breaches.is_empty() && rows[*at].cost.is_some()).collect();
    let cost = |row: &Row| row.cost.map_or(f64::INFINITY, |usd| usd.0);
    // Fastest first; a row is on the front where it is cheaper than everything faster.
    order.sort_by(|a, b| {
        let (a, b) = (&rows[*a], &rows[*b]);
        a.time.0.total_cmp(&b.time.0).then(cost(a).total_cmp(&cost(b)))
    });
    let mut cheapest = f64::INFINITY;
    for at in order {
        let cost = cost(&rows[at]);
        rows[at].on_front = cost < cheapest;
        cheapest = cheapest.min(cost);
    }
    let first = rows.first()?;
    (first.breaches.is_empty() && first.objective(objective).is_some()).then_some(0)
}

/// The limit that stands in the way: of the row that comes nearest, the limit that it misses by most.
pub fn binding(rows: &[Row]) -> Option<(&Row, &Breach)> {
    let worst = |row: &Row| row.breaches.iter().map(|breach| breach.factor).fold(0.0, f64::max);
    let nearest = rows.iter().filter(|row| !row.breaches.is_empty()).min_by(|a, b| worst(a).total_cmp(&worst(b)))?;
    let breach = nearest.breaches.iter().max_by(|a, b| a.factor.total_cmp(&b.factor))?;
    Some((nearest, breach))
}
