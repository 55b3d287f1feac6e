//! The answer to a plan whose model is the graph of a scenario: its programs are counted here, for the floors that answer know no models.

use super::{Exit, plan_graphs::h200};
use crate::{
    data::DataSet,
    input::render,
    models,
    predict::{
        Answer, Books, GraphWork, Plan, gpus_per_machine,
        graphs::{GraphLaw, GraphQuestion, KernelRates, Uncounted, graph_answer, layouts_of},
    },
    record::CountedGraph,
    scenario::{Known, Machine, Scenario},
    vocab::{Compression, Device, Phase},
    workload::{self, Rows, counted_on_gpu},
};
use std::path::Path;

/// Most ranks that a layout's words may have.
const MOST_RANKS: u32 = 1024;

/// The answer, or an exit code after the mistakes were told.
pub fn answer(plan: &Plan, work: &GraphWork, books: &Books) -> anyhow::Result<Result<Answer, Exit>> {
    let named = plan.model.scenario.as_deref().unwrap_or_default();
    let path = plan.path.parent().unwrap_or(Path::new("")).join(named);
    if !path.is_file() {
        let near = beside(&path, named);
        let near: Vec<&str> = near.iter().map(String::as_str).collect();
        eprintln!("{}", render(&plan.without_scenario(&near)));
        return Ok(Err(Exit::WrongInput));
    }
    let (models, instances) = (super::known_models(), books.prices.names());
    let scenario = match Scenario::load(&path, &Known { models: &models, instances: &instances }) {
        Ok(scenario) => scenario,
        Err(found) => {
            eprintln!("{}\nerror: plan `{}`: its scenario `{named}` cannot be read", render(&found), plan.path.display());
            return Ok(Err(Exit::WrongInput));
        }
    };
    let set = match DataSet::load(&scenario.data, &super::places(path.parent())) {
        Ok(set) => set,
        Err(error) => {
            eprintln!("error: plan `{}`: the data of its scenario `{named}`: {error}", plan.path.display());
            return Ok(Err(Exit::WrongInput));
        }
    };
    let (counted, uncounted) = count(plan, work, books, &scenario, &set);
    let rows = set.train.rows() as f64;
    let epochs = work.epochs.unwrap_or(scenario.train.epochs as f64);
    let question = GraphQuestion {
        plan,
        work,
        unit: workload::find(scenario.task).unit,
        examples: work.examples.unwrap_or(epochs * rows),
        counted: &counted,
        uncounted: &uncounted,
        rates: &KernelRates::shipped(),
        law: &GraphLaw::shipped(),
    };
    Ok(Ok(graph_answer(&question, books)))
}

/// TOML files in the folder of `path`, spelled as the plan spells `named`.
fn beside(path: &Path, named: &str) -> Vec<String> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let spelled = Path::new(named).parent().unwrap_or(Path::new(""));
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let tomls =
        files.filter(|file| file.extension().is_some_and(|ending| ending == "toml") && super::plan_here::is_scenario(file));
    let mut names: Vec<String> =
        tomls.filter_map(|file| Some(spelled.join(file.file_name()?).to_string_lossy().into_owned())).collect();
    names.sort();
    names
}

/// Every candidate of every number of GPUs that the plan allows, and why some are none.
fn count(
    plan: &Plan,
    work: &GraphWork,
    books: &Books,
    scenario: &Scenario,
    set: &DataSet,
) -> (Vec<CountedGraph>, Vec<Uncounted>) {
    let most = plan.limits.gpus.unwrap_or(u32::MAX);
    let of =
        |machine: &crate::predict::MachineWords| machine.gpus.all(gpus_per_machine(&books.hardware.gpus[machine.gpu].machine));
    let mut counts: Vec<u32> = plan.machines.iter().flat_map(of).filter(|gpus| *gpus <= most).collect();
    counts.sort_unstable();
    counts.dedup();
    let (model, facts) = (models::find(&scenario.model).expect("the scenario names a model that there is"), h200());
    let rows = Rows { row: set.row, classes: set.classes.len() };
    let (mut counted, mut uncounted) = (Vec::new(), Vec::new());
    for gpus in counts {
        if gpus > MOST_RANKS {
            let reason = format!("graphs of ours are laid out over at most {MOST_RANKS} ranks");
            uncounted.push(Uncounted { gpus, title: format!("{gpus} GPUs"), reason });
            continue;
        }
        let mut asked = scenario.clone();
        asked.phases = vec![work.phase];
        let grid = &mut asked.grid;
        grid.devices = vec![Device::Cuda(0)];
        // What a compression is worth on a GPU hangs on kernels that nobody timed, and on accuracy.
        grid.compressions = vec![Compression::NONE];
        grid.layouts = layouts_of(gpus, work.phase, &scenario.grid.layouts, &plan.layouts);
        grid.precisions = work.precisions.clone().unwrap_or_else(|| grid.precisions.clone());
        let given = work.batches.as_ref().map(|batches| batches.iter().map(|batch| *batch as usize).collect());
        grid.batch_sizes = given.unwrap_or_else(|| grid.batch_sizes.clone());
        let expansion = asked.expand(&Machine {
            cores: 1,
            cuda_devices: gpus as usize,
            cores_of_processes: Vec::new(),
            devices_of_processes: Vec::new(),
        });
        let grid = &asked.grid;
        for candidate in expansion.candidates {
            // The baseline comes along, asked or not.
            let is_asked = grid.layouts.contains(&candidate.layout)
                && grid.precisions.contains(&candidate.precision)
                && grid.batch_sizes.contains(&candidate.batch_size);
            if !is_asked {
                continue;
            }
            let refused = |reason: String| Uncounted { gpus, title: candidate.title(), reason };
            if work.phase == Phase::Train && candidate.batch_size > set.train.rows() {
                uncounted.push(refused(format!("the batch is larger than the {} training rows", set.train.rows())));
                continue;
            }
            match counted_on_gpu(model, rows, &candidate, &scenario.train, &facts) {
                Ok(one) => counted.push(one),
                Err(error) => uncounted.push(refused(error.to_string())),
            }
        }
        let skipped = expansion.skipped.into_iter();
        uncounted.extend(skipped.map(|record| Uncounted {
            gpus,
            title: record.candidate.title(),
            reason: record.reason.unwrap_or_default(),
        }));
    }
    (counted, uncounted)
}
