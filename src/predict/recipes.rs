//! What published trainings were started with beyond what their tables print.
//!
//! The tables of Megatron-Bridge print sizes and batches. CUDA graphs, fused experts, what hides their exchange and what is computed again stand in
//! the scripts that start the runs (NVIDIA-NeMo/Megatron-Bridge, scripts/performance/configs/*/*_workload_base_configs.py, later
//! src/megatron/bridge/perf_recipes), and in the requests that changed these between releases. Only options are taken from there, no speeds.

use super::{
    layout::{Dispatch, Graphs, Modules, Options, Recompute, Stack, TrainingPrecision as Precision},
    transformer::Transformer,
};
use crate::hardware::{Generation, Machine};

/// How a training was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub stack: Stack,
    pub options: Options,
    pub recompute: Recompute,
}

const fn run(options: Options) -> Run {
    Run { stack: Stack::Megatron, options, recompute: Recompute::AsNeeded }
}

const OVERLAPPED: Options = Options { expert_overlap: true, ..Options::PLAIN };
/// Kernel by kernel, computed again as memory asks, a copy of a token for each of its experts.
const SIMPLE: Run = run(Options { dispatch: Dispatch::ByCopy, ..Options::PLAIN });
const PLAIN: Run = run(Options::PLAIN);
const GRAPHED: Run = run(Options { graphs: Graphs::Layers, ..Options::PLAIN });
/// Whole steps as one graph, grouped products of experts with their activation, exchanges of one micro-batch under another.
const FUSED: Options = Options { graphs: Graphs::Step, fused_experts: true, ..OVERLAPPED };
const WHOLE: Run = run(FUSED);

const fn again(run: Run, modules: Modules) -> Run {
    Run { recompute: Recompute::Modules(modules), ..run }
}

const UP: Modules = Modules::UP_PROJECTIONS;
const NORMS_AND_ACTIVATIONS: Modules = Modules::NORMS.and(Modules::ACTIVATIONS);
/// `moe`, `moe_act`, `layernorm`, `core_attn`.
const ALL_BUT_PROJECTIONS: Modules = NORMS_AND_ACTIVATIONS.and(Modules::EXPERTS).and(Modules::CORE);

/// One line of the recipes: a model on some GPUs in some precisions, since a release of the container.
struct Recipe {
    model: &'static str,
    gpus: &'static [&'static str],
    /// Empty for all.
    precisions: &'static [Precision],
    since: &'static str,
    run: Run,
}

const fn recipe(
    model: &'static str,
    gpus: &'static [&'static str],
    precisions: &'static [Precision],
    since: &'static str,
    run: Run,
) -> Recipe {
    Recipe { model, gpus, precisions, since, run }
}

const H100: &[&str] = &["h100-sxm-80gb"];
const GRACE: &[&str] = &["gb200-nvl72", "gb300-nvl72"];
const GB200: &[&str] = &["gb200-nvl72"];
const GB300: &[&str] = &["gb300-nvl72"];
const BOXES: &[&str] = &["b200", "b300"];
const B200: &[&str] = &["b200"];
const B300: &[&str] = &["b300"];
const BLACKWELL: &[&str] = &["b200", "b300", "gb200-nvl72", "gb300-nvl72"];
const ANY: &[Precision] = &[];
const MX: &[Precision] = &[Precision::Mxfp8];
const FP4: &[Precision] = &[Precision::Nvfp4];

/// Of several that fit the last one holds.
const RECIPES: &[Recipe] = &[
    // configs/qwen/qwen3_workload_base_configs.py; requests 4249 (26.06) and 4606 (r0.5.0, June 30th).
    recipe("qwen3-235b-a22b", GRACE, ANY, "26.02", GRAPHED),
    recipe("qwen3-235b-a22b", BOXES, ANY, "25.11", SIMPLE),
    recipe("qwen3-235b-a22b", H100, ANY, "25.09", run(Options { dispatch: Dispatch::ByCopy, ..OVERLAPPED })),
    recipe("qwen3-235b-a22b", GRACE, MX, "26.06", WHOLE),
    recipe("qwen3-235b-a22b", BOXES, MX, "26.06.01", WHOLE),
    recipe("qwen3-next-80b-a3b", BLACKWELL, ANY, "26.02", PLAIN),
    recipe("qwen3-30b-a3b", BLACKWELL, ANY, "26.02", GRAPHED),
    recipe("qwen3-30b-a3b", H100, ANY, "26.04", PLAIN),
    recipe("qwen3-30b-a3b", H100, &[Precision::Half], "26.04", GRAPHED),
    recipe("qwen3-30b-a3b", GRACE, MX, "26.06", WHOLE),
    recipe("qwen3-30b-a3b", BOXES, MX, "26.06.01", WHOLE),
    // configs/gpt_oss/gpt_oss_workload_base_configs.py
    recipe("gpt-oss-120b", H100, ANY, "25.11", again(SIMPLE, NORMS_AND_ACTIVATIONS)),
    recipe("gpt-oss-120b", &["b200", "gb200-nvl72"], ANY, "25.11", again(SIMPLE, NORMS_AND_ACTIVATIONS)),
    recipe("gpt-oss-120b", &["b300", "gb300-nvl72"], ANY, "25.11", GRAPHED),
    recipe("gpt-oss-120b", GRACE, MX, "26.06", WHOLE),
    recipe("gpt-oss-120b", B300, MX, "26.06", run(Options { graphs: Graphs::Layers, ..FUSED })),
    // configs/deepseek/deepseek_workload_base_configs.py; requests 3983, 4226 (26.06) and 4458 (June 23rd).
    recipe("deepseek-v3", H100, ANY, "25.09", again(run(OVERLAPPED), UP.and(Modules::DENSE))),
    recipe("deepseek-v3", GB300, ANY, "25.11", again(PLAIN, UP)),
    recipe("deepseek-v3", GB300, &[Precision::Half], "26.04", again(GRAPHED, Modules::ACTIVATIONS)),
    recipe("deepseek-v3", GB200, ANY, "25.09", again(GRAPHED, Modules::DENSE)),
    recipe("deepseek-v3", GB200, &[Precision::Half], "25.11", again(GRAPHED, UP)),
    recipe("deepseek-v3", B300, ANY, "26.02", again(GRAPHED, UP)),
    recipe("deepseek-v3", B200, ANY, "25.09", again(PLAIN, UP)),
    recipe(
        "deepseek-v3",
        B200,
        MX,
        "26.04.01",
        again(run(Options { graphs: Graphs::Layers, ..OVERLAPPED }), UP.and(Modules::DENSE)),
    ),
    recipe("deepseek-v3", GB300, MX, "26.06", again(WHOLE, Modules::NONE)),
    recipe("deepseek-v3", GB200, MX, "26.06", again(WHOLE, UP)),
    recipe("deepseek-v3", B300, MX, "26.06.01", again(WHOLE, UP)),
    // perf_recipes/deepseek/gb200/deepseek_v4.py
    recipe("deepseek-v4-flash", GRACE, MX, "26.08", again(run(Options { expert_overlap: false, ..FUSED }), UP)),
    // configs/kimi/kimi_workload_base_configs.py; request 5168 (after 26.06.01).
    recipe("kimi-k2", GB300, ANY, "26.02", again(PLAIN, UP)),
    recipe("kimi-k2", GB200, ANY, "26.02", again(GRAPHED, UP)),
    recipe("kimi-k2", BOXES, ANY, "26.02", again(PLAIN, UP)),
    recipe("kimi-k2", H100, ANY, "26.02", again(PLAIN, UP.and(Modules::DENSE))),
    recipe("kimi-k2", GB300, MX, "26.08", again(WHOLE, Modules::NONE)),
    // configs/nemotronh/nemotron_3_workload_base_configs.py
    recipe("nemotron-3-nano-30b-a3b", BLACKWELL, ANY, "26.02", again(GRAPHED, Modules::NONE)),
    recipe("nemotron-3-nano-30b-a3b", H100, &[Precision::Half], "26.02", again(GRAPHED, Modules::EXPERTS.and(Modules::NORMS))),
    recipe("nemotron-3-nano-30b-a3b", H100, &[Precision::Fp8], "26.02", again(GRAPHED, ALL_BUT_PROJECTIONS)),
    recipe("nemotron-3-super-120b-a12b", BLACKWELL, ANY, "26.04", again(GRAPHED, Modules::NONE)),
    recipe("nemotron-3-super-120b-a12b", GB200, ANY, "26.04", again(GRAPHED, ALL_BUT_PROJECTIONS)),
    recipe("nemotron-3-super-120b-a12b", B200, ANY, "26.04", again(PLAIN, NORMS_AND_ACTIVATIONS.and(Modules::CORE))),
    recipe("nemotron-3-super-120b-a12b", &["b200", "gb200-nvl72"], FP4, "26.04", again(GRAPHED, Modules::NONE)),
    recipe("nemotron-3-ultra-550b-a55b", BLACKWELL, ANY, "26.08", GRAPHED),
    recipe("nemotron-3.5-lightning-30b-a3b", BLACKWELL, ANY, "26.08", GRAPHED),
    // configs/llama/llama3_workload_base_configs.py
    recipe("llama-3.1-70b", B200, &[Precision::Half], "25.11", run(Options { graphs: Graphs::Step, ..Options::PLAIN })),
    recipe("llama-3.1-70b", GB200, FP4, "26.06.01", GRAPHED),
    recipe("llama-3.1-8b", BLACKWELL, ANY, "25.09", run(Options { graphs: Graphs::Step, ..Options::PLAIN })),
];

/// How a published run of this model was started: by its recipe, or, where there is none, as models like it were.
pub fn published(model: &Transformer, gpu: &str, precision: Precision, release: &str) -> Run {
    let fits = |recipe: &&Recipe| {
        recipe.model == model.name
            && recipe.gpus.contains(&gpu)
            && (recipe.precisions.is_empty() || recipe.precisions.contains(&precision))
            && release >= recipe.since
    };
    let of_this_year = BLACKWELL.contains(&gpu) && release >= "26.02";
    let like_it = if model.experts.is_some() && of_this_year { GRAPHED } else { SIMPLE };
    RECIPES.iter().rfind(fits).map_or(like_it, |recipe| recipe.run)
}

/// How a plan's training is started: as this year's recipes start models like it.
pub fn of_today(model: &Transformer, machine: &Machine, precision: Precision) -> Run {
    let blackwell = machine.generation >= Generation::Blackwell;
    match model.experts {
        Some(_) if blackwell && model.gated && precision == Precision::Mxfp8 => WHOLE,
        Some(_) if blackwell => GRAPHED,
        Some(_) => run(OVERLAPPED),
        None => PLAIN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{hardware::HardwareBook, predict::ModelBook};

    #[test]
    fn every_recipe_names_a_model_and_gpus_of_the_books() {
        let (models, hardware) = (ModelBook::shipped(), HardwareBook::shipped());
        for recipe in RECIPES {
            assert_eq!(models.find(recipe.model).map(|model| model.name.as_str()), Some(recipe.model));
            for gpu in recipe.gpus {
                assert_eq!(hardware.find(gpu).map(|gpu| gpu.name.as_str()), Some(*gpu));
            }
        }
    }

    #[test]
    fn a_later_release_is_started_by_its_own_recipe() {
        let model = ModelBook::shipped().find("qwen3-235b-a22b").unwrap().clone();
        let of = |gpu, precision, release| published(&model, gpu, precision, release).options;
        assert_eq!(of("gb200-nvl72", Precision::Mxfp8, "26.04.01").graphs, Graphs::Layers);
        assert_eq!(of("gb200-nvl72", Precision::Mxfp8, "26.06"), FUSED);
        // Boxes of eight followed with the next release, other precisions did not.
        assert_eq!(of("b200", Precision::Mxfp8, "26.06").graphs, Graphs::Nothing);
        assert_eq!(of("b200", Precision::Mxfp8, "26.06.01"), FUSED);
        assert_eq!(of("gb200-nvl72", Precision::Half, "26.06").graphs, Graphs::Layers);
        assert_eq!(of("h100-sxm-80gb", Precision::Fp8, "26.08").dispatch, Dispatch::ByCopy);
        assert_eq!(of("h100-sxm-80gb", Precision::Fp8, "24.07"), SIMPLE.options);
    }
}
