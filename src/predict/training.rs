//! The answer of a plan that trains: every kind and number of machines with its best layout, in time, money and energy.

use super::{
    answer::{Answer, LayoutFigures, Market, Refusal, Row, TrainFigures, WorkFigures, hold_against, rank},
    landscape::Site,
    layout::{Recompute, Sharding, TrainingPrecision},
    memory::{Again, Memory},
    parameters::Parameters,
    plan_file::{GpuCounts, LayoutLimits, Operation, Plan, PlanObjective, TrainWork},
    price::GpuPrice,
    resilience::{Interruptions, WallTime},
    search::{self, Arrangement, Found, Outcome, Schedule, search},
    step::StepEstimate,
    transformer::Transformer,
    trust::TrainingTrust,
};
use crate::{
    hardware::{Gpu, Machine},
    units::{Bytes, Joules, Seconds, Usd, UsdPerHour},
};

/// Layouts that are kept of a number of machines: the best and what stands behind it.
const KEPT: usize = 6;

const SECONDS_PER_YEAR: f64 = 365.25 * 86_400.0;

/// Bytes of a checkpoint for each parameter: weights of 16 bits, and 32 bits each of the master weights and of Adam's two moments.
const CHECKPOINT_BYTES: f64 = 14.0;

/// All that a plan that trains is answered from.
#[derive(Clone, Copy)]
pub struct TrainingQuestion<'a> {
    pub plan: &'a Plan,
    pub work: &'a TrainWork,
    pub model: &'a Transformer,
    pub precisions: &'a [TrainingPrecision],
    /// The GPU of each of the plan's machines.
    pub gpus: &'a [Gpu],
    /// The price of each.
    pub prices: &'a [GpuPrice],
    pub parameters: &'a Parameters,
    pub trust: &'a TrainingTrust,
}

/// The best layouts of a kind and number of machines.
struct Searched {
    machine: usize,
    gpus: u32,
    outcome: Outcome,
}

/// GPUs of one machine as they are rented: those of the scale-up domain, 4 a tray where a rack is one domain (GB200 NVL72).
pub fn gpus_per_machine(machine: &Machine) -> u32 {
    if machine.scale_up.domain > 8 { 4 } else { machine.scale_up.domain }
}

impl GpuCounts {
    /// Every count, rising; of a range the whole numbers of machines, and parts of one machine below.
    pub fn all(&self, per_machine: u32) -> Vec<u32> {
        match self {
            GpuCounts::Listed(counts) => counts.clone(),
            GpuCounts::Range(from, to) => {
                let parts = (0..32).map(|power| 1u32 << power).take_while(|part| *part < per_machine);
                let whole = (1..=to / per_machine).map(|machines| machines * per_machine);
                parts.chain(whole).filter(|count| count >= from && count <= to).collect()
            }
        }
    }
}

/// The machine as the plan changes it.
pub fn machine_of(plan: &Plan, place: usize, gpu: &Gpu) -> Machine {
    let mut machine = gpu.machine;
    if let Some(rate) = plan.machines[place].network_bytes_per_s {
        machine.scale_out.bytes_per_second = rate;
    }
    if let Some(share) = plan.limits.memory_share {
        // The estimate leaves its own share out of what the sheet says.
        machine.memory = Bytes((machine.memory.0 as f64 * share / super::step::USABLE) as u64);
    }
    machine
}

/// One kind of machine, ready to be searched.
struct Place<'a> {
    machine: Machine,
    site: Option<Site<'a>>,
    /// Counts of GPUs that may be taken.
    counts: Vec<u32>,
}

fn places<'a>(question: &TrainingQuestion<'a>) -> Vec<Place<'a>> {
    let plan = question.plan;
    let most = plan.limits.gpus.unwrap_or(u32::MAX);
    let place = |(place, gpu): (usize, &Gpu)| {
        let machine = machine_of(plan, place, gpu);
        let counts =
            plan.machines[place].gpus.all(gpus_per_machine(&machine)).into_iter().filter(|count| *count <= most).collect();
        let site = Site::new(question.model, &machine, question.parameters, question.precisions, plan, question.work);
        Place { machine, site, counts }
    };
    question.gpus.iter().enumerate().map(place).collect()
}

const MARKETS: [Market; 2] = [Market::OnDemand, Market::Spot];

/// The answer, without what moves it.
pub fn training_answer(question: &TrainingQuestion) -> Answer {
    let plan = question.plan;
    let places = places(question);
    let mut answer = Answer::default();
    let mut searched: Vec<Searched> = Vec::new();
    for (at, place) in places.iter().enumerate() {
        let Some(site) = &place.site else {
            let reason = "its tensor cores have none of the precisions of the plan".to_string();
            let gpus = place.counts.first().copied().unwrap_or(0);
            answer.refusals.push(Refusal { gpu: question.gpus[at].name.clone(), gpus, reason, remedies: vec!["bf16".into()] });
            continue;
        };
        for &gpus in &place.counts {
            let outcome = search(&site.space(gpus), site, KEPT, f64::INFINITY);
            answer.counts += outcome.counts;
            searched.push(Searched { machine: at, gpus, outcome });
        }
    }
    let make = |one: &Searched, found: &Found, market| row(question, &places[one.machine], one.machine, one.gpus, found, market);
    for one in searched.iter().filter(|one| !one.outcome.best.is_empty()) {
        answer.rows.extend(MARKETS.into_iter().filter_map(|market| make(one, &one.outcome.best[0], market)));
    }
    answer.refusals.extend(refusals(question, &places, &searched));
    hold_against(&mut answer.rows, &plan.limits);
    answer.pick = rank(&mut answer.rows, plan.objective);
    if let Some(at) = answer.pick {
        let pick = &answer.rows[at];
        let of_pick = searched.iter().find(|one| one.machine == pick.machine && one.gpus == pick.gpus);
        let others = of_pick.iter().flat_map(|one| one.outcome.best[1..].iter().map(move |found| (one, found)));
        answer.alternatives = others.filter_map(|(one, found)| make(one, found, pick.market)).collect();
    }
    answer.prices = question.gpus.iter().map(|gpu| gpu.name.clone()).zip(question.prices.iter().cloned()).collect();
    answer
}

/// The pick alone, exact as in `answer`: kinds and numbers of machines are visited by the least that their objective can be, and those that can
/// be no better than what was found, or break a limit in any layout, are not searched.
pub fn pick(question: &TrainingQuestion) -> Option<Row> {
    let (plan, places) = (question.plan, places(question));
    let objective = |row: &Row| row.objective(plan.objective);
    // The row of a layout that takes so long for a sequence of the largest batch, and whether it is within the limits.
    let of = |at: usize, gpus: u32, market, found: &Found| {
        let mut rows = [row(question, &places[at], at, gpus, found, market)?];
        hold_against(&mut rows, &plan.limits);
        let [row] = rows;
        row.breaches.is_empty().then_some(row)
    };
    let mut order: Vec<(f64, usize, u32, Market)> = Vec::new();
    for (at, place) in places.iter().enumerate() {
        let Some(site) = &place.site else { continue };
        for &gpus in &place.counts {
            let least = search::floor(&site.space(gpus), site);
            for market in MARKETS {
                let bound = figures(question, &places[at], at, gpus, least, market).and_then(|figures| {
                    let beyond =
                        |found: Option<f64>, most: Option<f64>| most.is_some_and(|most| found.is_none_or(|found| found > most));
                    let is_out = beyond(Some(figures.wall.total.0), plan.limits.time.map(|time| time.0))
                        || beyond(figures.cost.map(|usd| usd.0), plan.limits.cost.map(|usd| usd.0))
                        || beyond(Some(figures.energy.0), plan.limits.energy.map(|energy| energy.0));
                    if is_out { None } else { figures.objective(plan.objective) }
                });
                order.extend(bound.filter(|bound| bound.is_finite()).map(|bound| (bound, at, gpus, market)));
            }
        }
    }
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    let mut best: Option<Row> = None;
    for (bound, at, gpus, market) in order {
        let value = best.as_ref().and_then(objective).unwrap_or(f64::INFINITY);
        if bound >= value {
            break;
        }
        let Some(site) = &places[at].site else { continue };
        // Slower layouts than that are no better than what was found.
        let most = if value.is_finite() { longest(question, &places[at], at, gpus, market, value) } else { f64::INFINITY };
        let outcome = search(&site.space(gpus), site, 1, most);
        let found = outcome.best.first().and_then(|found| of(at, gpus, market, found));
        if let Some(row) = found.filter(|row| objective(row).is_some_and(|other| other < value)) {
            best = Some(row);
        }
    }
    best
}

/// The longest that a sequence may take so that the objective is at most `value`: every figure grows with it, so halves are enough; rounded up.
fn longest(question: &TrainingQuestion, place: &Place, at: usize, gpus: u32, market: Market, value: f64) -> f64 {
    let is_beyond = |per_sequence: f64| {
        let figures = figures(question, place, at, gpus, per_sequence, market);
        figures.and_then(|figures| figures.objective(question.plan.objective)).is_none_or(|found| found > value)
    };
    let (mut low, mut high) = (1e-9, 1.0);
    while !is_beyond(high) && high < 1e12 {
        (low, high) = (high, 2.0 * high);
    }
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if is_beyond(middle) { high = middle } else { low = middle }
    }
    high
}

/// What a number of machines comes to when a sequence takes so long.
struct Figures {
    wall: WallTime,
    work: Seconds,
    checkpoint: Seconds,
    usd_per_hour: Option<UsdPerHour>,
    cost: Option<Usd>,
    energy: Joules,
}

impl Figures {
    fn objective(&self, objective: PlanObjective) -> Option<f64> {
        match objective {
            PlanObjective::Cost => self.cost.map(|usd| usd.0),
            PlanObjective::Time => Some(self.wall.total.0),
            PlanObjective::Energy => Some(self.energy.0),
        }
    }
}

/// None where the market is no answer. Every figure grows with `per_sequence`.
fn figures(
    question: &TrainingQuestion,
    place: &Place,
    at: usize,
    gpus: u32,
    per_sequence: f64,
    market: Market,
) -> Option<Figures> {
    let (plan, price) = (question.plan, &question.prices[at]);
    let interruptions = interruptions(&plan.operation, market, gpus, &place.machine, question.model)?;
    if market == Market::Spot && price.spot.is_none() {
        return None;
    }
    let work = Seconds(question.work.tokens / f64::from(question.work.sequence_length) * per_sequence);
    let wall = interruptions.wall_time(work);
    let usd_per_gpu = if market == Market::Spot { price.spot } else { price.on_demand };
    let usd_per_hour = usd_per_gpu.map(|usd| UsdPerHour(usd.0 * f64::from(gpus)));
    let watts = place.machine.power_w * f64::from(gpus) * plan.operation.power_usage_effectiveness;
    Some(Figures {
        wall,
        work,
        checkpoint: interruptions.checkpoint,
        usd_per_hour,
        cost: usd_per_hour.map(|usd| usd.times(wall.total)),
        energy: Joules(watts * wall.total.0),
    })
}

/// One row; none where the market is no answer.
fn row(question: &TrainingQuestion, place: &Place, at: usize, gpus: u32, found: &Found, market: Market) -> Option<Row> {
    let (work, site) = (question.work, place.site.as_ref()?);
    let figures = figures(question, place, at, gpus, found.per_sequence(), market)?;
    let estimate = site.estimate(&found.arrangement, &found.schedule);
    let (memory, offloaded) = site.memory(&site.layout(&found.arrangement, &found.schedule));
    let precision = site.precision(&found.arrangement);
    let tokens_per_step = f64::from(found.arrangement.batch) * f64::from(work.sequence_length);
    let tokens_per_s = tokens_per_step / found.step.0;
    Some(Row {
        machine: at,
        gpu: question.gpus[at].name.clone(),
        gpus,
        market,
        layout: layout_figures(found, precision, &estimate, offloaded),
        time: figures.wall.total,
        cost: figures.cost,
        energy: Some(figures.energy),
        usd_per_hour: figures.usd_per_hour,
        tokens_per_s,
        work: WorkFigures::Train(TrainFigures {
            step: found.step,
            steps: work.tokens / tokens_per_step,
            mfu: mfu(question.model, &place.machine, precision, work.sequence_length, tokens_per_s / f64::from(gpus)),
            work: figures.work,
            goodput: figures.wall.goodput,
            interruptions: figures.wall.interruptions,
            checkpoint_interval: figures.wall.checkpoint_interval,
            checkpoint: figures.checkpoint,
        }),
        memory: memory_parts(&memory),
        memory_limit: estimate.capacity,
        time_parts: estimate.split.parts().to_vec(),
        trust: question.trust.of(question.model, &question.gpus[at], &site.layout(&found.arrangement, &found.schedule)),
        breaches: Vec::new(),
        on_front: false,
    })
}

/// What interrupts a run; none where the plan says nothing of spot machines.
fn interruptions(
    operation: &Operation,
    market: Market,
    gpus: u32,
    machine: &Machine,
    model: &Transformer,
) -> Option<Interruptions> {
    let gpus = f64::from(gpus);
    let failures = operation.failures_per_gpu_year * gpus / SECONDS_PER_YEAR;
    let taken = match market {
        Market::OnDemand => 0.0,
        Market::Spot => {
            let machines = (gpus / f64::from(gpus_per_machine(machine))).ceil();
            operation.spot_interruptions_per_machine_day? * machines / 86_400.0
        }
    };
    let bytes = CHECKPOINT_BYTES * model.trained_parameters();
    Some(Interruptions {
        mean_between: Seconds(1.0 / (failures + taken)),
        checkpoint: Seconds(bytes / (operation.checkpoint_bytes_per_s_per_gpu * gpus)),
        restart: operation.restart,
    })
}

/// Operations that the model asks for over the peak of its products (Chowdhery et al., arXiv 2204.02311, appendix B: whole attention, nothing
/// that is computed again).
fn mfu(
    model: &Transformer,
    machine: &Machine,
    precision: TrainingPrecision,
    sequence: u32,
    tokens_per_s_per_gpu: f64,
) -> Option<f64> {
    let peak = match precision {
        TrainingPrecision::Half => Some(machine.peaks.bf16),
        TrainingPrecision::Nvfp4 => machine.peaks.fp4,
        _ => machine.peaks.fp8,
    }?;
    Some(model.training_flops_per_token(f64::from(sequence), false) * tokens_per_s_per_gpu / peak)
}

fn layout_figures(found: &Found, precision: TrainingPrecision, estimate: &StepEstimate, offloaded: f64) -> LayoutFigures {
    let (on, with) = (&found.arrangement, &found.schedule);
    LayoutFigures {
        tensor: on.tensor,
        pipeline: on.pipeline,
        context: on.context,
        expert: on.expert,
        data: on.data,
        batch: on.batch,
        micro_batch: with.micro_batch,
        interleaving: with.interleaving,
        recomputation: recomputation(with.recompute, estimate.again, offloaded),
        zero: with.sharding as u8,
        precision: precision.name().to_string(),
        replicas: 0,
        draft_tokens: 0,
    }
}

fn recomputation(mode: Recompute, again: Again, offloaded: f64) -> String {
    match mode {
        Recompute::Nothing => "none".into(),
        Recompute::Selective => "selective".into(),
        Recompute::Full => "full".into(),
        Recompute::Part(percent) => format!("{percent} % of the layers"),
        Recompute::AsNeeded if offloaded > 0.0 => format!("none, {} of activations to the host", gib(offloaded)),
        Recompute::AsNeeded if again == Again::default() => "none".into(),
        Recompute::Modules(_) => "modules".into(),
        Recompute::AsNeeded if again.blocks <= 0.0 => "modules".into(),
        Recompute::AsNeeded => format!("{:.0} % of the layers", (100.0 * again.blocks).max(1.0)),
    }
}

fn memory_parts(memory: &Memory) -> Vec<(&'static str, f64)> {
    vec![
        ("weights", memory.weights),
        ("gradients", memory.gradients),
        ("optimizer state", memory.optimizer),
        ("activations", memory.activations),
        ("logits", memory.logits),
        ("buffers", memory.buffers),
        ("reserve", memory.reserve),
    ]
}

/// Kinds and numbers of machines with layouts of which none fits; of a range the largest number alone, the others say no more.
fn refusals(question: &TrainingQuestion, places: &[Place], searched: &[Searched]) -> Vec<Refusal> {
    let mut out = Vec::new();
    for one in searched.iter().filter(|one| one.outcome.best.is_empty()) {
        let gpu = &question.gpus[one.machine];
        let is_asked = matches!(question.plan.machines[one.machine].gpus, GpuCounts::Listed(_));
        let is_larger = |other: &&Searched| other.machine == one.machine && other.gpus > one.gpus;
        if !is_asked
            && searched.iter().filter(is_larger).any(|other| other.outcome.best.is_empty() && other.outcome.nearest.is_some())
        {
            continue;
        }
        let Some((on, with, missing)) = &one.outcome.nearest else {
            // Of a range, numbers that nothing divides go without saying, unless none is divided.
            let mut of_machine = searched.iter().filter(|other| other.machine == one.machine);
            let has_none = of_machine
                .all(|other| other.outcome.best.is_empty() && other.outcome.nearest.is_none() && other.gpus <= one.gpus);
            if is_asked || has_none {
                out.push(without_layout(question, one.machine, one.gpus));
            }
            continue;
        };
        let Some(site) = &places[one.machine].site else { continue };
        let layout = site.layout(on, with);
        let (held, _) = site.memory(&layout);
        let largest = [
            ("weights", held.weights),
            ("gradients", held.gradients),
            ("optimizer state", held.optimizer),
            ("activations", held.activations),
        ];
        let largest = largest.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("four parts");
        let reason = format!(
            "every layout lacks memory; the nearest ({}) lacks {} of {}, most of it {}",
            title(on, with, site.precision(on)),
            gib(*missing),
            gib(held.total()),
            largest.0
        );
        let fits = searched.iter().filter(|other| other.machine == one.machine && !other.outcome.best.is_empty());
        let fewest = fits.map(|other| other.gpus).filter(|gpus| *gpus > one.gpus).min();
        let fewest = fewest.or_else(|| enough(question, site, one.gpus));
        out.push(Refusal {
            gpu: gpu.name.clone(),
            gpus: one.gpus,
            reason,
            remedies: remedies(site, on, with, held.total(), fewest),
        });
    }
    out
}

/// Most GPUs that are tried for a model that does not fit.
const MOST_TRIED: u32 = 16_384;

/// A number of GPUs beyond what was asked on which a layout fits, by doubling.
fn enough(question: &TrainingQuestion, site: &Site, gpus: u32) -> Option<u32> {
    let most = question.plan.limits.gpus.unwrap_or(MOST_TRIED).min(MOST_TRIED);
    let mut doubled = std::iter::successors(gpus.checked_mul(2), |gpus| gpus.checked_mul(2)).take_while(|gpus| *gpus <= most);
    doubled.find(|gpus| !search(&site.space(*gpus), site, 1, f64::INFINITY).best.is_empty())
}

/// Why there is no layout of so many GPUs at all, memory aside: which of the plan's limits are in the way is found by leaving them out.
fn without_layout(question: &TrainingQuestion, machine: usize, gpus: u32) -> Refusal {
    let has_some = |limits: &LayoutLimits| {
        let plan = Plan { layouts: limits.clone(), ..question.plan.clone() };
        let question = TrainingQuestion { plan: &plan, ..*question };
        let site = places(&question).swap_remove(machine).site;
        site.is_some_and(|site| {
            let found = search(&site.space(gpus), &site, 1, f64::INFINITY);
            !found.best.is_empty() || found.nearest.is_some()
        })
    };
    let rule = "sizes of parallelism must divide the model's heads, blocks and experts and multiply to the number of GPUs, and the batch \
                be a multiple of the data-parallel size; ZeRO 2 and 3 ask for one pipeline stage";
    let words = (rule, "another number of GPUs, or another batch");
    Refusal::without_layout((&question.gpus[machine], gpus), &question.plan.layouts, has_some, words)
}

/// What would make a layout fit: one knob at a time, also beyond what the plan allows.
fn remedies(site: &Site, on: &Arrangement, with: &Schedule, needed: f64, fewest: Option<u32>) -> Vec<String> {
    let mut out = Vec::new();
    let mut fits = |text: String, on: Arrangement, with: Schedule| {
        let layout = site.layout(&on, &with);
        if layout.is_known_to_its_stack()
            && layout.check(site.model()).is_ok()
            && site.memory(&layout).0.total() <= site.capacity()
        {
            out.push(text);
        }
    };
    if with.recompute != Recompute::Full && with.recompute != Recompute::AsNeeded {
        fits("full recomputation".into(), *on, Schedule { recompute: Recompute::Full, ..*with });
    }
    if with.sharding != Sharding::Weights && on.data * on.context > 1 {
        fits("ZeRO stage 3".into(), *on, Schedule { sharding: Sharding::Weights, ..*with });
    }
    if with.micro_batch > 1 {
        fits("a micro-batch of 1".into(), *on, Schedule { micro_batch: 1, ..*with });
    }
    if on.data.is_multiple_of(2) {
        let half = Arrangement { data: on.data / 2, ..*on };
        fits(format!("pp={}", 2 * on.pipeline), Arrangement { pipeline: 2 * on.pipeline, ..half }, *with);
        fits(format!("tp={}", 2 * on.tensor), Arrangement { tensor: 2 * on.tensor, ..half }, *with);
        fits(format!("cp={}", 2 * on.context), Arrangement { context: 2 * on.context, ..half }, *with);
    }
    if let Some(gpus) = fewest {
        out.push(format!("{gpus} of these GPUs"));
    }
    // The estimate leaves a share of what the sheet says to the system.
    out.push(format!("a GPU with {:.0} GB", (needed / super::step::USABLE / 1e9).ceil()));
    out
}

fn title(on: &Arrangement, with: &Schedule, precision: TrainingPrecision) -> String {
    format!(
        "{}, tp={} pp={} cp={} ep={} dp={}, micro-batch {}, ZeRO-{}",
        precision.name(),
        on.tensor,
        on.pipeline,
        on.context,
        on.expert,
        on.data,
        with.micro_batch,
        with.sharding as u8
    )
}

fn gib(bytes: f64) -> String {
    Bytes(bytes as u64).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_parts_of_a_machine_and_then_whole_ones() {
        assert_eq!(GpuCounts::Range(1, 24).all(8), [1, 2, 4, 8, 16, 24]);
        assert_eq!(GpuCounts::Range(9, 30).all(8), [16, 24]);
        assert_eq!(GpuCounts::Range(1, 3).all(1), [1, 2, 3]);
        assert_eq!(GpuCounts::Listed(vec![3, 5]).all(8), [3, 5]);
    }
}
