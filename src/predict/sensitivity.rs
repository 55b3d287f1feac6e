//! Which assumption moves the answer: each is changed alone, both ways, and the plan is answered again.

use super::{
    answer::{Answer, Row, Swing, SwingEnd, changed_by},
    layout::Stack,
    parameters::{OfGeneration, OfStack, Parameters, Place},
    plan_file::{Operation, Plan},
    price::GpuPrice,
    training::{TrainingQuestion, pick},
};
use crate::{
    hardware::{Generation, Gpu},
    units::Seconds,
};

/// What a plan is answered from, to be changed.
#[derive(Clone)]
struct Basis {
    operation: Operation,
    gpus: Vec<Gpu>,
    prices: Vec<GpuPrice>,
    parameters: Parameters,
}

/// One assumption: its name, the words for either end, and what they do. `None` where it has no part in the question.
struct Assumption {
    name: &'static str,
    words: [String; 2],
    change: Change,
}

/// Puts one end of an assumption in.
type Change = Box<dyn Fn(&mut Basis, usize)>;

/// How much is put in where no error is known: a tenth of what products sustain.
const PLAIN_ERROR: f64 = 0.1;

/// The swings of the pick, largest first.
pub fn swings(question: &TrainingQuestion, plain: &Answer) -> Vec<Swing> {
    let Some(plain) = plain.pick.map(|at| &plain.rows[at]) else { return Vec::new() };
    let objective = question.plan.objective;
    let Some(value) = plain.objective(objective) else { return Vec::new() };
    let basis = Basis {
        operation: question.plan.operation,
        gpus: question.gpus.to_vec(),
        prices: question.prices.to_vec(),
        parameters: question.parameters.clone(),
    };
    let mut out: Vec<Swing> = Vec::new();
    for assumption in assumptions(question.plan, plain.trust.error.unwrap_or(PLAIN_ERROR)) {
        let ends = [0, 1].map(|end| {
            let mut changed = basis.clone();
            (assumption.change)(&mut changed, end);
            let plan = Plan { operation: changed.operation, ..question.plan.clone() };
            let question = TrainingQuestion {
                plan: &plan,
                gpus: &changed.gpus,
                prices: &changed.prices,
                parameters: &changed.parameters,
                ..*question
            };
            let other = pick(&question);
            let is_other = |row: &&Row| row.place() != plain.place() || row.layout != plain.layout;
            SwingEnd {
                change: assumption.words[end].clone(),
                objective: other.as_ref().and_then(|row| row.objective(objective)),
                other_pick: other
                    .as_ref()
                    .filter(is_other)
                    .map(|row| if row.place() == plain.place() { row.layout.title() } else { row.title() }),
            }
        });
        out.push(Swing { assumption: assumption.name.to_string(), ends });
    }
    out.retain(|swing| swing.size(value) > 1e-4 || swing.ends.iter().any(|end| end.other_pick.is_some()));
    out.sort_by(|a, b| b.size(value).total_cmp(&a.size(value)));
    out
}

fn scaled(name: &'static str, factors: [f64; 2], change: impl Fn(&mut Basis, f64) + 'static) -> Assumption {
    Assumption { name, words: factors.map(changed_by), change: Box::new(move |basis, end| change(basis, factors[end])) }
}

fn assumptions(plan: &Plan, error: f64) -> Vec<Assumption> {
    let mut out = vec![
        scaled("speed of products (error of the model)", [1.0 - error, 1.0 + error], |basis, factor| {
            for figure in [OfGeneration::Half, OfGeneration::Fp8, OfGeneration::Fp4] {
                of_generations(&mut basis.parameters, figure, factor);
            }
        }),
        scaled("speed of memory", [0.9, 1.1], |basis, factor| {
            of_generations(&mut basis.parameters, OfGeneration::Memory, factor);
        }),
        scaled("links inside a domain (NVLink)", [0.8, 1.25], |basis, factor| {
            basis.gpus.iter_mut().for_each(|gpu| gpu.machine.scale_up.bytes_per_second *= factor);
        }),
        scaled("network between machines", [0.5, 2.0], |basis, factor| {
            basis.gpus.iter_mut().for_each(|gpu| gpu.machine.scale_out.bytes_per_second *= factor);
        }),
        scaled("gradient exchange that nothing hides", [0.5, 2.0], |basis, factor| {
            for stack in Stack::ALL {
                let place = Place::Stack(stack, OfStack::DataExposed as usize);
                basis.parameters.set(place, (basis.parameters.get(place) * factor).min(1.0));
            }
        }),
        scaled("memory that a training can use", [0.95, 1.02], |basis, factor| {
            for gpu in &mut basis.gpus {
                gpu.machine.memory.0 = (gpu.machine.memory.0 as f64 * factor) as u64;
            }
        }),
        scaled("price of an hour", [0.8, 1.25], |basis, factor| {
            basis.prices.iter_mut().for_each(|price| price.scale(factor));
        }),
        scaled("failures", [0.5, 2.0], |basis, factor| basis.operation.failures_per_gpu_year *= factor),
        scaled("time of a restart", [0.5, 2.0], |basis, factor| {
            basis.operation.restart = Seconds(basis.operation.restart.0 * factor);
        }),
        scaled("rate of checkpoints", [0.5, 2.0], |basis, factor| basis.operation.checkpoint_bytes_per_s_per_gpu *= factor),
    ];
    if plan.operation.spot_interruptions_per_machine_day.is_some() {
        out.push(scaled("spot machines taken away", [0.5, 2.0], |basis, factor| {
            basis.operation.spot_interruptions_per_machine_day.iter_mut().for_each(|rate| *rate *= factor);
        }));
    }
    out
}

fn of_generations(parameters: &mut Parameters, figure: OfGeneration, factor: f64) {
    for generation in Generation::ALL {
        let place = Place::Generation(generation, figure as usize);
        parameters.set(place, parameters.get(place) * factor);
    }
}
