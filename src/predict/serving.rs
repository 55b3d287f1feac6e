//! The answer of a plan that serves: every kind and number of machines with its best layout of replicas under the load.

use super::{
    answer::{
        Answer, Breach, DraftFigures, LayoutFigures, Market, Refusal, Row, ServeFigures, SpotFigures, Swing, SwingEnd,
        WorkFigures, changed_by, hold_against, rank,
    },
    plan_file::{LayoutLimits, Plan, ServeWork},
    price::GpuPrice,
    search::{Counts, divisors},
    serve::{Arrival, Engine, Load, ServedFormat, ServingError, ServingEstimate, ServingLayout, ServingParameters, serving},
    spot::Pool,
    training::{gpus_per_machine, machine_of},
    transformer::Transformer,
    trust::ServingTrust,
};
use crate::{
    hardware::{Gpu, Machine},
    units::{Joules, Seconds, UsdPerHour},
};

/// Pipeline stages that are searched.
const PIPELINES: [u32; 4] = [1, 2, 4, 8];

/// All that a plan that serves is answered from.
#[derive(Clone, Copy)]
pub struct ServingQuestion<'a> {
    pub plan: &'a Plan,
    pub work: &'a ServeWork,
    pub model: &'a Transformer,
    /// The GPU of each of the plan's machines.
    pub gpus: &'a [Gpu],
    /// The price of each.
    pub prices: &'a [GpuPrice],
    pub parameters: &'a ServingParameters,
    pub trust: &'a ServingTrust,
}

/// Formats of caches as a plan names them, with bytes of an element; `None` is what the weights' format suggests.
pub const KV_CACHES: [(&str, Option<f64>); 3] = [("auto", None), ("bf16", Some(2.0)), ("fp8", Some(1.0))];

/// Engines as a plan names them, the first where it names none.
pub const ENGINES: [Engine; 3] = [Engine::TensorRt, Engine::Vllm, Engine::Sglang];

/// A layout with what it comes to.
struct Tried {
    layout: ServingLayout,
    /// Where its machines may be taken away.
    spot: Option<SpotFigures>,
    estimate: ServingEstimate,
}

impl ServingQuestion<'_> {
    fn load(&self) -> Load {
        let work = self.work;
        Load {
            arrival: Arrival::PerSecond(work.requests_per_s),
            input_tokens: f64::from(work.input_tokens),
            output_tokens: f64::from(work.output_tokens),
            first_token: work.max_first_token,
            per_token: work.max_per_token,
        }
    }

    /// Every layout of exactly so many GPUs.
    fn layouts(&self, machine: &Machine, gpus: u32) -> Vec<ServingLayout> {
        let model = self.model;
        let limits = &self.plan.layouts;
        let allowed = |limit: &Option<Vec<u32>>, size: u32| limit.as_ref().is_none_or(|sizes| sizes.contains(&size));
        let mut out = Vec::new();
        for place in &self.work.weights {
            let format = ServedFormat::ALL[*place];
            let engine = ENGINES[self.work.engine];
            let mut take = |layout: ServingLayout| {
                let fits = gpus.is_multiple_of(layout.replica_gpus())
                    && allowed(&limits.tensor, layout.tensor)
                    && allowed(&limits.pipeline, layout.pipeline)
                    && allowed(&limits.expert, layout.expert);
                if fits {
                    let cache_bytes = KV_CACHES[self.work.kv_cache].1.unwrap_or(layout.cache_bytes);
                    let replicas = gpus / layout.replica_gpus();
                    let drafting = self.work.draft_tokens.iter();
                    out.extend(drafting.map(|tokens| ServingLayout { replicas, cache_bytes, draft_tokens: *tokens, ..layout }));
                }
            };
            for tensor in divisors(model.attention.heads).into_iter().filter(|size| *size <= machine.scale_up.domain.max(8)) {
                for pipeline in PIPELINES {
                    let plain = ServingLayout { pipeline, ..ServingLayout::single(tensor, format, engine) };
                    take(plain);
                    if model.experts.is_some() && tensor > 1 {
                        take(ServingLayout { expert: tensor, ..plain });
                    }
                }
            }
            if let Some(experts) = model.experts {
                for ranks in divisors(experts.count).into_iter().filter(|ranks| *ranks > 1 && *ranks <= machine.scale_up.domain) {
                    take(ServingLayout::attention_data(ranks, format, engine));
                }
            }
        }
        out
    }

    /// The replicas of a layout on machines that may be taken away: those that are there for as long as the plan wants, which carry the load, and
    /// what stands in for them. `None` where too few are.
    fn on_spot(&self, layout: ServingLayout, machine: &Machine, gpus: u32) -> Option<(ServingLayout, SpotFigures)> {
        let operation = &self.plan.operation;
        // What is lost together: a machine with all its replicas, or a replica that needs several; of less than a machine all of it.
        let per_machine = gpus_per_machine(machine).min(gpus);
        let unit = layout.replica_gpus().max(per_machine);
        if !unit.is_multiple_of(layout.replica_gpus()) {
            return None;
        }
        let machines = f64::from(unit) / f64::from(per_machine);
        let pool = Pool::new(operation, gpus / unit, machines.ceil(), f64::from(per_machine))?;
        let needed = pool.reliable(operation.spot_availability);
        let each = unit / layout.replica_gpus();
        let spares = (pool.units - needed) * each;
        let figures = SpotFigures { spares, availability: pool.availability(needed) };
        (needed > 0).then_some((ServingLayout { replicas: needed * each, ..layout }, figures))
    }

    /// The best layout of so many GPUs: the fastest answer among those that carry the load within its limits, or what comes nearest.
    fn best(&self, machine: &Machine, gpus: u32, market: Market, counts: &mut Counts) -> Option<Tried> {
        let load = self.load();
        let mut best: Option<((bool, f64, f64), Tried)> = None;
        for layout in self.layouts(machine, gpus) {
            let (layout, spot) = match market {
                Market::OnDemand => (layout, None),
                Market::Spot => match self.on_spot(layout, machine, gpus) {
                    Some((layout, figures)) => (layout, Some(figures)),
                    None => continue,
                },
            };
            let estimate = serving(self.model, machine, &layout, &load, self.parameters);
            counts.evaluated += 1;
            let miss = match &estimate.verdict {
                Ok(()) => 1.0,
                Err(ServingError::Rate { wanted, possible }) => 1e6 * wanted / possible,
                Err(ServingError::FirstToken { limit, predicted } | ServingError::PerToken { limit, predicted }) => {
                    predicted / limit
                }
                Err(ServingError::Memory { short, .. }) => {
                    counts.too_large += 1;
                    1e12 * (1.0 + short.0 as f64)
                }
                Err(_) => continue,
            };
            let key = (estimate.verdict.is_err(), miss, self.answer_time(&estimate));
            let is_better = best.as_ref().is_none_or(|(other, _)| {
                key.0.cmp(&other.0).then(key.1.total_cmp(&other.1)).then(key.2.total_cmp(&other.2)).is_lt()
            });
            if is_better {
                best = Some((key, Tried { layout, spot, estimate }));
            }
        }
        best.map(|(_, tried)| tried)
    }

    /// From a request to the end of its answer.
    fn answer_time(&self, estimate: &ServingEstimate) -> f64 {
        estimate.first_token.0 + f64::from(self.work.output_tokens.saturating_sub(1)) * estimate.per_token.0
    }

    fn row(&self, at: usize, machine: &Machine, gpus: u32, Tried { layout, spot, estimate }: &Tried) -> Row {
        let price = &self.prices[at];
        let market = if spot.is_some() { Market::Spot } else { Market::OnDemand };
        let usd_per_gpu = if market == Market::Spot { price.spot } else { price.on_demand };
        let usd_per_hour = usd_per_gpu.map(|usd| UsdPerHour(usd.0 * f64::from(gpus)));
        let tokens_per_s = estimate.output_tokens_per_second;
        let seconds_per_million = 1e6 / tokens_per_s;
        let watts = machine.power_w * f64::from(gpus) * self.plan.operation.power_usage_effectiveness;
        let memory = &estimate.memory;
        let bytes = |bytes: crate::units::Bytes| bytes.0 as f64;
        let step = &estimate.decoding_step;
        Row {
            machine: at,
            gpu: self.gpus[at].name.clone(),
            gpus,
            market,
            layout: LayoutFigures {
                tensor: layout.tensor,
                pipeline: layout.pipeline,
                context: 1,
                expert: layout.expert,
                data: layout.attention_data,
                batch: 0,
                micro_batch: 0,
                interleaving: 1,
                recomputation: String::new(),
                zero: 0,
                precision: layout.format.name().to_string(),
                replicas: layout.replicas,
                draft_tokens: layout.draft_tokens,
            },
            time: Seconds(self.answer_time(estimate)),
            cost: usd_per_hour.map(|usd| usd.times(Seconds(seconds_per_million))),
            energy: Some(Joules(watts * seconds_per_million)),
            usd_per_hour,
            tokens_per_s,
            work: WorkFigures::Serve(ServeFigures {
                replicas: layout.replicas,
                spot: *spot,
                first_token: estimate.first_token,
                per_token: estimate.per_token,
                concurrency: estimate.live,
                utilisation: self.work.requests_per_s / estimate.possible_per_second,
                drafts: (layout.draft_tokens > 0).then_some(DraftFigures {
                    acceptance: self.parameters.draft_acceptance,
                    tokens_per_step: estimate.tokens_per_step,
                }),
            }),
            memory: vec![
                ("weights", bytes(memory.weights)),
                ("live caches", bytes(memory.cache)),
                ("room for caches", (bytes(memory.cache_room) - bytes(memory.cache)).max(0.0)),
                ("reserve", bytes(memory.reserve)),
            ],
            memory_limit: machine.memory.0 as f64,
            time_parts: vec![
                ("projections", step.projections),
                ("attention", step.attention),
                ("feed-forward", step.feed_forward),
                ("experts", step.experts),
                ("elementwise", step.elements),
                ("exchange", step.exchange),
                ("head", step.head),
                ("launches", step.launches),
            ],
            trust: self.trust.of(self.model, &self.gpus[at], layout.engine, layout.format, layout.draft_tokens),
            breaches: self.breaches(estimate),
            on_front: false,
        }
    }

    fn breaches(&self, estimate: &ServingEstimate) -> Vec<Breach> {
        let Err(error) = &estimate.verdict else { return Vec::new() };
        let (limit, factor) = match error {
            ServingError::Rate { wanted, possible } => ("requests_per_s", wanted / possible),
            ServingError::FirstToken { limit, predicted } => ("max_first_token_ms", predicted / limit),
            ServingError::PerToken { limit, predicted } => ("max_per_token_ms", predicted / limit),
            _ => ("memory", f64::INFINITY),
        };
        vec![Breach { limit, factor, text: error.to_string() }]
    }

    fn machines(&self) -> Vec<(Machine, Vec<u32>)> {
        let most = self.plan.limits.gpus.unwrap_or(u32::MAX);
        let of = |(at, gpu): (usize, &Gpu)| {
            let machine = machine_of(self.plan, at, gpu);
            let counts = self.plan.machines[at].gpus.all(gpus_per_machine(&machine)).into_iter().filter(|count| *count <= most);
            (machine, counts.collect())
        };
        self.gpus.iter().enumerate().map(of).collect()
    }

    /// Why no layout is of any of these numbers of GPUs, memory aside: which of the plan's limits are in the way is found by leaving them out.
    fn without_layout(&self, at: usize, machine: &Machine, counts: &[u32]) -> Refusal {
        let has_some = |limits: &LayoutLimits| {
            let plan = Plan { layouts: limits.clone(), ..self.plan.clone() };
            let question = ServingQuestion { plan: &plan, ..*self };
            counts.iter().any(|gpus| question.layouts(machine, *gpus).iter().any(|layout| layout.check(self.model).is_ok()))
        };
        let of = (&self.gpus[at], counts.last().copied().unwrap_or(0));
        let rule = "sizes of parallelism must divide the model's heads, blocks and experts and multiply to the GPUs of a replica";
        Refusal::without_layout(of, &self.plan.layouts, has_some, (rule, "another number of GPUs"))
    }

    fn rows(&self, answer: &mut Answer) {
        for (at, (machine, counts)) in self.machines().iter().enumerate() {
            let told = answer.rows.len() + answer.refusals.len();
            for gpus in counts {
                // At spot prices only where there is one, and the plan says how often machines go.
                let has_spot = self.prices[at].spot.is_some() && self.plan.operation.spot_interruptions_per_machine_day.is_some();
                let spot = if has_spot { self.best(machine, *gpus, Market::Spot, &mut answer.counts) } else { None };
                let fits = |tried: &Tried| !matches!(tried.estimate.verdict, Err(ServingError::Memory { .. }));
                answer.rows.extend(spot.filter(fits).map(|tried| self.row(at, machine, *gpus, &tried)));
                let Some(tried) = self.best(machine, *gpus, Market::OnDemand, &mut answer.counts) else { continue };
                match &tried.estimate.verdict {
                    Err(error @ ServingError::Memory { .. }) => answer.refusals.push(Refusal {
                        gpu: self.gpus[at].name.clone(),
                        gpus: *gpus,
                        reason: error.to_string(),
                        remedies: Vec::new(),
                    }),
                    _ => answer.rows.push(self.row(at, machine, *gpus, &tried)),
                }
            }
            if answer.rows.len() + answer.refusals.len() == told && !counts.is_empty() {
                answer.refusals.push(self.without_layout(at, machine, counts));
            }
        }
        hold_against(&mut answer.rows, &self.plan.limits);
        answer.pick = rank(&mut answer.rows, self.plan.objective);
    }
}

/// The answer with what moves it.
pub fn serving_answer(question: &ServingQuestion) -> Answer {
    let mut answer = Answer::default();
    question.rows(&mut answer);
    answer.prices = question.gpus.iter().map(|gpu| gpu.name.clone()).zip(question.prices.iter().cloned()).collect();
    answer.swings = swings(question, &answer);
    let operation = &question.plan.operation;
    if answer.rows.iter().any(|row| row.market == Market::Spot) {
        let Seconds(replacement) = operation.spot_replacement.unwrap_or(operation.restart);
        answer.notes.push(format!(
            "spot: spares are counted so that {} % of the time as many replicas as the load needs are there, machines being lost one by one and replaced \
             in {:.0} minutes; where a provider takes many at once, more are needed. Requests on a machine that goes are asked again",
            100.0 * operation.spot_availability,
            replacement / 60.0
        ));
    }
    if question.work.drafts() {
        let acceptance = question.parameters.draft_acceptance;
        let whence = match question.work.draft_acceptance {
            Some(_) => "as the plan says",
            None => {
                "fitted to published runs of DeepSeek-R1 with TensorRT-LLM; other models and texts have other shares, and `draft_acceptance` states one"
            }
        };
        answer.notes.push(format!(
            "draft tokens: each is taken to be accepted with a chance of {acceptance:.2} once those before it were ({whence}); \
             k of them make 1 + a + ... + a^k tokens a step"
        ));
    }
    answer
}

/// How much is put in where no error is known.
const PLAIN_ERROR: f64 = 0.15;

/// By how much the share of accepted tokens is moved: as far as what DeepSeek-V3's own report has of its second token (0.85 to 0.90, arXiv
/// 2412.19437, section 5.4.3) lies above what was fitted.
const OTHER_ACCEPTANCE: f64 = 0.2;

/// What an answer is found from, to be changed.
#[derive(Clone)]
struct Basis {
    work: ServeWork,
    gpus: Vec<Gpu>,
    prices: Vec<GpuPrice>,
    parameters: ServingParameters,
}

/// An assumption: its name, the words for either end, and what they do.
type Assumption = (String, [String; 2], Box<dyn Fn(&mut Basis, usize)>);

fn scaled(name: &str, factors: [f64; 2], change: impl Fn(&mut Basis, f64) + 'static) -> Assumption {
    (name.to_string(), factors.map(changed_by), Box::new(move |basis, end| change(basis, factors[end])))
}

fn assumptions(question: &ServingQuestion, error: f64) -> Vec<Assumption> {
    let mut all = vec![
        scaled("speed of machines (error of the model)", [1.0 - error, 1.0 + error], |basis, factor| {
            for gpu in &mut basis.gpus {
                gpu.machine.memory_bytes_per_second *= factor;
                let peaks = &mut gpu.machine.peaks;
                peaks.bf16 *= factor;
                [&mut peaks.fp8, &mut peaks.fp4, &mut peaks.int8].into_iter().flatten().for_each(|peak| *peak *= factor);
            }
        }),
        scaled("requests a second", [0.75, 1.25], |basis, factor| basis.work.requests_per_s *= factor),
        scaled("tokens of an answer", [0.75, 1.25], |basis, factor| {
            basis.work.output_tokens = (f64::from(basis.work.output_tokens) * factor).round().max(1.0) as u32;
        }),
        scaled("price of an hour", [0.8, 1.25], |basis, factor| {
            basis.prices.iter_mut().for_each(|price| price.scale(factor));
        }),
    ];
    if question.work.drafts() {
        let acceptance = question.parameters.draft_acceptance;
        let ends = [-OTHER_ACCEPTANCE, OTHER_ACCEPTANCE].map(|shift| (acceptance + shift).clamp(0.01, 0.99));
        all.push((
            format!("share of draft tokens accepted ({acceptance:.2} assumed)"),
            ends.map(|end| format!("{end:.2}")),
            Box::new(move |basis, end| basis.parameters.draft_acceptance = ends[end]),
        ));
    }
    all
}

fn swings(question: &ServingQuestion, plain: &Answer) -> Vec<Swing> {
    let Some(pick) = plain.pick.map(|at| &plain.rows[at]) else { return Vec::new() };
    let objective = question.plan.objective;
    let Some(value) = pick.objective(objective) else { return Vec::new() };
    let basis = Basis {
        work: question.work.clone(),
        gpus: question.gpus.to_vec(),
        prices: question.prices.to_vec(),
        parameters: question.parameters.clone(),
    };
    let mut out: Vec<Swing> = Vec::new();
    for (assumption, words, change) in assumptions(question, pick.trust.error.unwrap_or(PLAIN_ERROR)) {
        let ends = [0, 1].map(|end| {
            let mut changed = basis.clone();
            change(&mut changed, end);
            let Basis { work, gpus, prices, parameters } = &changed;
            let changed = ServingQuestion { work, gpus, prices, parameters, ..*question };
            let mut answer = Answer::default();
            changed.rows(&mut answer);
            SwingEnd::of(words[end].as_str(), &answer, pick, objective)
        });
        out.push(Swing { assumption, ends });
    }
    out.sort_by(|a, b| b.size(value).total_cmp(&a.size(value)));
    out
}
