//! The answer to a plan whose model is the graph of a scenario: every kind and number of GPUs with its best layout, number format and batch.

use super::{
    super::{
        answer::{
            Answer, GraphFigures, LayoutFigures, Market, Refusal, Row, Swing, SwingEnd, Trust, WorkFigures, changed_by,
            hold_against, rank,
        },
        parameters::Parameters,
        plan_file::{GraphWork, LayoutLimits, Plan},
        price::{GpuPrice, gpu_prices},
        question::Books,
        resilience::Interruptions,
        training::{gpus_per_machine, machine_of},
    },
    law::{GraphLaw, GraphStep},
    rates::KernelRates,
};
use crate::{
    hardware::Gpu,
    record::CountedGraph,
    units::{Bytes, Joules, Seconds, Usd, UsdPerHour},
    vocab::{Layout, Phase, Vocabulary},
};

const SECONDS_PER_YEAR: f64 = 365.25 * 86_400.0;

/// Layouts of the pick's machines that are told besides.
const ALTERNATIVES: usize = 6;

/// Share of a GPU's memory that may be used where the plan says nothing: the rest is for the driver's own and what is not counted.
const MEMORY_SHARE: f64 = 0.95;

/// A candidate that could not be counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Uncounted {
    pub gpus: u32,
    /// `bf16, dp=2, batch 256`.
    pub title: String,
    pub reason: String,
}

/// All that such a plan is answered from, beside the books.
#[derive(Clone, Copy)]
pub struct GraphQuestion<'a> {
    pub plan: &'a Plan,
    pub work: &'a GraphWork,
    /// What an example is: `image`.
    pub unit: &'static str,
    /// Examples of a whole training.
    pub examples: f64,
    /// Every candidate of every number of GPUs that the plan allows.
    pub counted: &'a [CountedGraph],
    pub uncounted: &'a [Uncounted],
    pub rates: &'a KernelRates,
    pub law: &'a GraphLaw,
}

/// The layouts of exactly so many GPUs: those that the scenario states, data parallelism with and without shared-out optimizer state, and
/// what the plan's `[layouts]` asks for.
pub fn layouts_of(gpus: u32, phase: Phase, stated: &[Layout], limits: &LayoutLimits) -> Vec<Layout> {
    let ones = vec![1];
    let mut out: Vec<Layout> = stated.iter().copied().filter(|layout| layout.ranks() == gpus as usize).collect();
    for tensor in limits.tensor.as_ref().unwrap_or(&ones) {
        for pipeline in limits.pipeline.as_ref().unwrap_or(&ones) {
            let parts = tensor * pipeline;
            if !gpus.is_multiple_of(parts) {
                continue;
            }
            let shares = gpus / parts;
            for data in ["dp", "zero"] {
                let sizes = [(data, shares), ("tp", *tensor), ("pp", *pipeline)];
                let words: Vec<String> =
                    sizes.iter().filter(|(_, size)| *size > 1).map(|(axis, size)| format!("{axis}={size}")).collect();
                let text = if words.is_empty() { "single".to_string() } else { words.join(",") };
                out.extend(text.parse::<Layout>().ok().filter(|layout| phase == Phase::Train || !layout.shares_state()));
            }
        }
    }
    let allowed = |sizes: &Option<Vec<u32>>, size: usize| sizes.as_ref().is_none_or(|sizes| sizes.contains(&(size as u32)));
    let zero = |layout: &Layout| {
        let is_stated = |stage: u8| limits.sharding.as_ref().is_none_or(|stages| stages.iter().any(|one| *one as u8 == stage));
        layout.data_ranks() == 1 || is_stated(u8::from(layout.shares_state()))
    };
    out.retain(|layout| {
        allowed(&limits.tensor, layout.tensor_ranks()) && allowed(&limits.pipeline, layout.pipeline_ranks()) && zero(layout)
    });
    out.sort_unstable();
    out.dedup();
    out
}

/// What is changed to see what the answer hangs on.
#[derive(Clone)]
struct Basis {
    gpus: Vec<Gpu>,
    prices: Vec<GpuPrice>,
    law: GraphLaw,
}

/// The answer with what moves it.
pub fn graph_answer(question: &GraphQuestion, books: &Books) -> Answer {
    let plan = question.plan;
    let gpus: Vec<Gpu> = plan.machines.iter().map(|machine| books.hardware.gpus[machine.gpu].clone()).collect();
    let basis = Basis { prices: gpu_prices(plan, &gpus, &books.prices), gpus, law: question.law.clone() };
    let mut answer = answered(question, &basis, &books.parameters);
    answer.prices = basis.gpus.iter().map(|gpu| gpu.name.clone()).zip(basis.prices.iter().cloned()).collect();
    answer.swings = swings(question, &basis, &books.parameters, &answer);
    answer.notes = notes(question);
    answer
}

fn notes(question: &GraphQuestion) -> Vec<String> {
    let gpu = question.rates.gpu();
    let mut notes = vec![
        format!(
            "times rest on single ops and steps that an {gpu} measured (reports/gpu); other GPUs are taken to stay as far below their own peaks"
        ),
        "accuracy is not predicted: number formats and batches change it, and `advisor run` measures by how much".to_string(),
        "sums between GPUs count in full, as if nothing hid them; memory that the driver takes for itself is not counted"
            .to_string(),
    ];
    if question.work.phase == Phase::Train {
        notes
            .push("a training is so many examples, whatever the batch: that a larger one may need more is not in it".to_string());
    }
    notes
}

fn answered(question: &GraphQuestion, basis: &Basis, parameters: &Parameters) -> Answer {
    let plan = question.plan;
    let most = plan.limits.gpus.unwrap_or(u32::MAX);
    let mut answer = Answer::default();
    let mut all: Vec<Row> = Vec::new();
    for (at, gpu) in basis.gpus.iter().enumerate() {
        let mut gpu = gpu.clone();
        gpu.machine = machine_of(plan, at, &gpu);
        gpu.machine.memory = basis.gpus[at].machine.memory;
        let counts = plan.machines[at].gpus.all(gpus_per_machine(&gpu.machine)).into_iter().filter(|count| *count <= most);
        for gpus in counts {
            let mut rows: Vec<Row> = Vec::new();
            // The reason of the candidate that came nearest: one that is too large, before one that nobody can time.
            let (mut missing, mut unknown): (Option<(u64, String)>, Option<String>) = (None, None);
            for counted in question.counted.iter().filter(|counted| counted.candidate.layout.ranks() == gpus as usize) {
                answer.counts.evaluated += 1;
                let step = match basis.law.step(question.rates, parameters, counted, &gpu) {
                    Ok(step) => step,
                    Err(reason) => {
                        unknown.get_or_insert(reason.to_string());
                        continue;
                    }
                };
                let limit = gpu.machine.memory.0 as f64 * plan.limits.memory_share.unwrap_or(MEMORY_SHARE);
                let needed = counted.memory.total();
                if needed.0 as f64 > limit {
                    answer.counts.too_large += 1;
                    let short = needed.0 - limit as u64;
                    if missing.as_ref().is_none_or(|(least, _)| short < *least) {
                        missing = Some((short, too_large(counted, short)));
                    }
                    continue;
                }
                for market in [Market::OnDemand, Market::Spot] {
                    rows.extend(row(question, basis, (at, &gpu), counted, &step, market, limit));
                }
            }
            if rows.is_empty() {
                let uncounted = question.uncounted.iter().find(|one| one.gpus == gpus);
                let remedies =
                    missing.iter().map(|_| "more GPUs, a smaller batch, or a number format of 16 bits".to_string()).collect();
                let reason = missing.map(|(_, text)| text).or(unknown);
                let reason = reason.or(uncounted.map(|one| format!("{}: {}", one.title, one.reason)));
                let reason = reason.unwrap_or_else(|| "no layout of this graph has so many ranks".into());
                answer.refusals.push(Refusal { gpu: gpu.name.clone(), gpus, reason, remedies });
                continue;
            }
            hold_against(&mut rows, &plan.limits);
            all.append(&mut rows);
        }
    }
    rank(&mut all, plan.objective);
    // The first of each kind, number and market is its best.
    let mut others = Vec::new();
    for mut row in all {
        row.on_front = false;
        let is_known = |one: &Row| (one.machine, one.gpus, one.market) == (row.machine, row.gpus, row.market);
        if answer.rows.iter().any(is_known) { others.push(row) } else { answer.rows.push(row) }
    }
    answer.pick = rank(&mut answer.rows, plan.objective);
    if let Some(pick) = answer.pick.map(|at| &answer.rows[at]) {
        let of_pick = |row: &Row| (row.machine, row.gpus, row.market) == (pick.machine, pick.gpus, pick.market);
        answer.alternatives = others.into_iter().filter(of_pick).take(ALTERNATIVES).collect();
    }
    answer
}

fn too_large(counted: &CountedGraph, short: u64) -> String {
    let largest = memory_parts(counted).into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("it has parts");
    let title = LayoutFigures::of(&counted.candidate).title();
    format!(
        "every layout lacks memory; the nearest ({title}) lacks {} of {}, most of it {}",
        Bytes(short),
        counted.memory.total(),
        largest.0
    )
}

fn memory_parts(counted: &CountedGraph) -> Vec<(&'static str, f64)> {
    let memory = &counted.memory;
    let parts = [
        ("weights", memory.weights),
        ("optimizer state", memory.state),
        ("activations and gradients", memory.working),
        ("rows", memory.rows),
        ("scratch", memory.scratch),
    ];
    parts.map(|(name, bytes)| (name, bytes.0 as f64)).to_vec()
}

/// One row; none where the market is no answer.
fn row(
    question: &GraphQuestion,
    basis: &Basis,
    (at, gpu): (usize, &Gpu),
    counted: &CountedGraph,
    step: &GraphStep,
    market: Market,
    limit: f64,
) -> Option<Row> {
    let (plan, price) = (question.plan, &basis.prices[at]);
    let phase = question.work.phase;
    let gpus = counted.candidate.layout.ranks() as u32;
    let usd_per_gpu = if market == Market::Spot { Some(price.spot?) } else { price.on_demand };
    let interruptions = interruptions(question, gpu, gpus, counted, market)?;
    let usd_per_hour = usd_per_gpu.map(|usd| UsdPerHour(usd.0 * f64::from(gpus)));
    let watts = gpu.machine.power_w * f64::from(gpus) * plan.operation.power_usage_effectiveness;
    let per_second = counted.candidate.batch_size as f64 / step.total.0;
    let volume = if phase == Phase::Train { question.examples } else { 1e6 };
    let work = Seconds(volume / per_second);
    let wall = interruptions.wall_time(work);
    let cost: Option<Usd> = usd_per_hour.map(|usd| usd.times(wall.total));
    Some(Row {
        machine: at,
        gpu: gpu.name.clone(),
        gpus,
        market,
        layout: LayoutFigures::of(&counted.candidate),
        // An answer waits for its step alone.
        time: if phase == Phase::Train { wall.total } else { step.total },
        cost,
        energy: Some(Joules(watts * wall.total.0)),
        usd_per_hour,
        tokens_per_s: per_second,
        work: WorkFigures::Graph(GraphFigures {
            phase,
            unit: question.unit,
            step: step.total,
            steps: volume / counted.candidate.batch_size as f64,
            work,
            goodput: wall.goodput,
            interruptions: wall.interruptions,
        }),
        memory: memory_parts(counted),
        memory_limit: limit,
        time_parts: step.parts.clone(),
        trust: trust(question, gpu, counted),
        breaches: Vec::new(),
        on_front: false,
    })
}

/// What interrupts a training, by the operation of the plan; answers are asked anew. None where the plan says nothing of spot machines.
fn interruptions(
    question: &GraphQuestion,
    gpu: &Gpu,
    gpus: u32,
    counted: &CountedGraph,
    market: Market,
) -> Option<Interruptions> {
    let operation = &question.plan.operation;
    let taken = match market {
        Market::OnDemand => 0.0,
        Market::Spot => {
            let machines = (f64::from(gpus) / f64::from(gpus_per_machine(&gpu.machine))).ceil();
            operation.spot_interruptions_per_machine_day? * machines / 86_400.0
        }
    };
    if question.work.phase == Phase::Infer {
        let none = Seconds(0.0);
        return Some(Interruptions { mean_between: Seconds(f64::INFINITY), checkpoint: none, restart: none });
    }
    let failures = operation.failures_per_gpu_year * f64::from(gpus) / SECONDS_PER_YEAR;
    let kept = (counted.memory.weights.0 + counted.memory.state.0) as f64;
    Some(Interruptions {
        mean_between: Seconds(1.0 / (failures + taken)),
        checkpoint: Seconds(kept / operation.checkpoint_bytes_per_s_per_gpu),
        restart: operation.restart,
    })
}

/// The error of what was held out of the fit on the GPU that was measured; anywhere else, and with others, it is an extrapolation.
fn trust(question: &GraphQuestion, gpu: &Gpu, counted: &CountedGraph) -> Trust {
    let phase = question.work.phase;
    let measured = question.rates.gpu();
    let mut trust = Trust { regime: format!("graphs of ours on one {measured}, {}", phase.name()), ..Trust::default() };
    if let Some(error) = question.law.error_of(phase) {
        trust.error = Some(error.median_percent / 100.0);
        trust.error_p90 = Some(error.ninetieth_percent / 100.0);
        trust.rows = error.rows;
    }
    if gpu.name != measured {
        trust.extrapolated.push(format!("shares of peaks that the {measured} sustains taken to this GPU"));
    }
    // As elsewhere, twice what was fitted is still inside.
    let on_gpu = counted.candidate.batch_size as f64 / counted.candidate.layout.data_ranks() as f64;
    let largest = question.law.largest_batch;
    if on_gpu > 2.0 * largest {
        trust.extrapolated.push(format!("{on_gpu} examples a step on one GPU, and {largest} were the most that was measured"));
    }
    if counted.candidate.layout.ranks() > 1 {
        trust.extrapolated.push("no graph of ours was measured on several GPUs".to_string());
    }
    trust
}

/// How much is put in where no error is known.
const PLAIN_ERROR: f64 = 0.2;

fn swings(question: &GraphQuestion, basis: &Basis, parameters: &Parameters, plain: &Answer) -> Vec<Swing> {
    let Some(pick) = plain.pick.map(|at| &plain.rows[at]) else { return Vec::new() };
    let objective = question.plan.objective;
    let Some(value) = pick.objective(objective) else { return Vec::new() };
    let error = pick.trust.error.unwrap_or(PLAIN_ERROR);
    type Change = fn(&mut Basis, f64);
    let assumptions: [(&str, [f64; 2], Change); 5] = [
        ("speed of kernels (error of the model)", [1.0 - error, 1.0 + error], |basis, factor| {
            for gpu in &mut basis.gpus {
                gpu.machine.memory_bytes_per_second *= factor;
                gpu.machine.peaks.bf16 *= factor;
                gpu.machine.peaks.fp32.iter_mut().for_each(|peak| *peak *= factor);
            }
        }),
        ("launch of a kernel", [0.75, 1.25], |basis, factor| basis.law.launch *= factor),
        ("way of the rows to the device", [0.5, 2.0], |basis, factor| {
            basis.law.answer *= factor;
            basis.law.answered_byte *= factor;
            basis.law.trained_byte *= factor;
        }),
        ("links between GPUs", [0.5, 2.0], |basis, factor| {
            for gpu in &mut basis.gpus {
                gpu.machine.scale_up.bytes_per_second *= factor;
                gpu.machine.scale_up.latency /= factor;
                gpu.machine.scale_out.bytes_per_second *= factor;
                gpu.machine.scale_out.latency /= factor;
            }
        }),
        ("price of an hour", [0.8, 1.25], |basis, factor| {
            basis.prices.iter_mut().for_each(|price| price.scale(factor));
        }),
    ];
    let mut out: Vec<Swing> = Vec::new();
    for (name, factors, change) in assumptions {
        let ends = factors.map(|factor| {
            let mut changed = basis.clone();
            change(&mut changed, factor);
            let answer = answered(question, &changed, parameters);
            SwingEnd::of(changed_by(factor), &answer, pick, objective)
        });
        out.push(Swing { assumption: name.to_string(), ends });
    }
    // What has no part in the answer goes without saying: links where one GPU is picked.
    out.retain(|swing| swing.size(value) > 0.0);
    out.sort_by(|a, b| b.size(value).total_cmp(&a.size(value)));
    out
}
