//! Whether the layouts that people chose are among those that are predicted to be fast.
//!
//! A published run was laid out by somebody who tried. Its layout is ranked by predicted step time among all that a plan searches for the same model,
//! GPUs, batch, sequence and precision and that are predicted to fit. One that its publisher gave up in a later release for the same model, GPUs and
//! precision was no good choice: such are counted with the others and told apart. Layouts of a study that runs many of one model on purpose (vTrain)
//! say nothing here, nor do those of software that has one kind of layout alone.

use super::{
    landscape,
    layout::{Layout, Recompute, Stack},
    parameters::Parameters,
    plan_file::LayoutLimits,
    search::{Arrangement, Found, Landscape, Schedule, Space, Verdict, enumerate},
    step::{Sustained, training_step_on},
    tables::{Case, Question},
};
use crate::units::Seconds;
use std::collections::BTreeSet;

/// One published layout among all.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranked {
    pub id: String,
    pub table: &'static str,
    /// Layouts that are predicted to fit.
    pub layouts: usize,
    /// Those predicted to be faster than the published one.
    pub faster: usize,
    /// The same publisher's later layout of the same model on the same GPUs is another.
    pub given_up: bool,
}

impl Ranked {
    /// Share of all layouts that are predicted to be faster.
    pub fn share(&self) -> f64 {
        self.faster as f64 / self.layouts.max(1) as f64
    }
}

/// Share of all layouts within which a chosen one should lie.
pub const TOP: f64 = 0.05;

/// With fewer layouts than that there was little to choose.
const FEWEST_LAYOUTS: usize = 40;

/// Layouts around one published one.
struct Around<'a> {
    question: &'a Question,
    on: Sustained,
}

impl Around<'_> {
    fn layout(&self, on: &Arrangement, with: &Schedule) -> Layout {
        Layout {
            tensor: on.tensor,
            pipeline: on.pipeline,
            context: on.context,
            expert: on.expert,
            interleave: with.interleaving,
            micro_batch: with.micro_batch,
            sharding: with.sharding,
            shard_group: 0,
            recompute: with.recompute,
            ..self.question.layout
        }
    }
}

impl Landscape for Around<'_> {
    fn evaluate(&self, on: &Arrangement, with: &Schedule) -> Verdict {
        let layout = self.layout(on, with);
        if layout.check(&self.question.model).is_err() {
            return Verdict::Impossible;
        }
        let estimate = training_step_on(&self.question.model, &layout, &self.on);
        match estimate.missing_bytes() {
            Some(missing_bytes) => Verdict::TooLarge { missing_bytes },
            None => Verdict::Fits { step: estimate.step },
        }
    }

    fn floor(&self, _: &Arrangement) -> Seconds {
        Seconds(0.0)
    }

    fn floor_at(&self, _: &Arrangement, _: u32) -> Seconds {
        Seconds(0.0)
    }
}

/// Every current layout of the cases once, those of software that lets one choose.
pub fn ranked(cases: &[Case], parameters: &Parameters) -> Vec<Ranked> {
    let mut seen = BTreeSet::new();
    let chosen = |case: &&Case| {
        case.current && case.strata.table != "vtrain" && !case.question.layout.stack.is_torch() && case.question.layout.gpus > 1
    };
    cases
        .iter()
        .filter(chosen)
        .filter(|case| seen.insert(format!("{} {:?}", case.group, case.question.layout)))
        .filter_map(|case| rank(case, parameters, is_given_up(case, cases)))
        .collect()
}

/// What one chooses of a layout besides its sharding.
fn sizes(of: &Layout) -> [u32; 6] {
    [of.tensor, of.pipeline, of.context, of.expert, of.interleave, of.micro_batch]
}

/// Whether the last release with this model, number of GPUs, sequence and task has other sizes.
fn is_given_up(case: &Case, cases: &[Case]) -> bool {
    let layout = &case.question.layout;
    let chosen = |of: &Layout| (sizes(of), of.sharding);
    let is_same = |other: &&Case| {
        let of = &other.question.layout;
        other.current
            && (&other.group, other.strata.table, &other.strata.task) == (&case.group, case.strata.table, &case.strata.task)
            && (of.gpus, of.sequence) == (layout.gpus, layout.sequence)
    };
    let Some(last) = cases.iter().filter(is_same).map(|other| other.release.as_str()).max() else { return false };
    let mut of_last = cases.iter().filter(is_same).filter(|other| other.release == last);
    last > case.release.as_str() && !of_last.any(|other| chosen(&other.question.layout) == chosen(layout))
}

fn rank(case: &Case, parameters: &Parameters, given_up: bool) -> Option<Ranked> {
    let question = &case.question;
    let layout = &question.layout;
    let limits = match layout.stack {
        stack if stack.fuses_attention() => LayoutLimits::default(),
        // The first Megatron-LM had what its rows have, the next chose what to compute again; neither knew context parallelism.
        stack => LayoutLimits {
            context: Some(vec![1]),
            recompute: Some(match stack {
                Stack::MegatronFirst => vec![layout.recompute],
                _ => vec![Recompute::Nothing, Recompute::Selective, Recompute::Full],
            }),
            sharding: Some(vec![layout.sharding]),
            ..LayoutLimits::default()
        },
    };
    let space = landscape::space(&question.model, &question.machine, 1, &limits, &[layout.global_batch], layout.sequence);
    let around = Around { question, on: Sustained::new(&question.machine, layout.stack, layout.precision, parameters) };
    // Software that is none of the known ones and shards a pipeline can do so elsewhere.
    let space = Space { gpus: layout.gpus, shards_pipelines: !layout.is_known_to_its_stack(), ..space };
    let all = enumerate(&space, &around);
    // Few tables print what is computed again, and some rows are there to show what it costs: sizes are judged with what suits them best, as
    // the others are. Where micro-batch and interleaving are not printed, these too are what suits best.
    let printed = if question.tuned { 4 } else { 6 };
    let is_published = |found: &&Found| {
        let other = around.layout(&found.arrangement, &found.schedule);
        (&sizes(&other)[..printed], other.sharding) == (&sizes(layout)[..printed], layout.sharding)
    };
    let at_best = all.iter().filter(is_published).map(|found| found.step.0).min_by(f64::total_cmp);
    let published = at_best.unwrap_or_else(|| question.step(parameters).step.0);
    let faster = all.iter().filter(|found| found.step.0 < published * (1.0 - 1e-9)).count();
    (all.len() >= FEWEST_LAYOUTS).then(|| Ranked {
        id: case.id.clone(),
        table: case.strata.table,
        layouts: all.len(),
        faster,
        given_up,
    })
}

/// Of published runs, which all ran, those whose memory is counted as fitting: `407 of 452 published runs are counted as fitting into their GPU (90 %)`.
pub fn fitting(cases: &[Case], parameters: &Parameters) -> String {
    let current: Vec<&Case> = cases.iter().filter(|case| case.current).collect();
    let fit = current.iter().filter(|case| case.question.step(parameters).missing_bytes().is_none()).count();
    let share = 100.0 * fit as f64 / current.len().max(1) as f64;
    format!("{fit} of {} published runs are counted as fitting into their GPU ({share:.0} %)", current.len())
}

/// `published layouts among the predicted fastest 5 %: 80 of 100 (80 %), without those that a later release gave up 76 of 90 (84 %); …`.
pub fn summary(ranked: &[Ranked]) -> String {
    let mut shares: Vec<f64> = ranked.iter().map(Ranked::share).collect();
    shares.sort_by(f64::total_cmp);
    let Some(median) = crate::stats::median(&shares) else { return "no published layout to rank".into() };
    let within = |keep: fn(&&Ranked) -> bool| {
        let kept: Vec<&Ranked> = ranked.iter().filter(keep).collect();
        let within = kept.iter().filter(|one| one.share() <= TOP).count();
        format!("{within} of {} ({:.0} %)", kept.len(), 100.0 * within as f64 / kept.len().max(1) as f64)
    };
    format!(
        "published layouts among the predicted fastest {:.0} %: {}, without those that a later release gave up {}; in the median {:.1} % of all layouts are predicted to be faster",
        100.0 * TOP,
        within(|_| true),
        within(|one| !one.given_up),
        100.0 * median
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::score;

    fn given_up(id: &str) -> bool {
        let (cases, _) = score::training_cases(&[]);
        is_given_up(cases.iter().find(|case| case.id == id).unwrap(), &cases)
    }

    /// Qwen3 30B on 8 B200: one sequence a micro-batch in 26.02, four from 26.02.01 on.
    #[test]
    fn a_layout_that_a_later_release_replaces_is_given_up() {
        assert!(given_up("nemo_b200_026"));
        assert!(!given_up("nemo_b200_030"));
        assert!(!given_up("llama3_1"));
    }

    /// Of a handful of tables alone, so that the test is quick: the summary of all is printed by `advisor plan score`.
    #[test]
    fn a_published_layout_is_ranked_among_those_that_fit() {
        let (cases, _) = score::training_cases(&[]);
        let few: Vec<Case> =
            cases.into_iter().filter(|case| case.strata.table.starts_with("megatron") || case.strata.table == "llama3").collect();
        let ranked = ranked(&few, &Parameters::shipped());
        assert!(ranked.len() >= 5, "{ranked:?}");
        assert!(ranked.iter().all(|one| one.faster < one.layouts && one.layouts >= FEWEST_LAYOUTS), "{ranked:?}");
        assert!(summary(&ranked).starts_with("published layouts among the predicted fastest 5 %"));
        assert_eq!(summary(&[]), "no published layout to rank");
        let fitting = fitting(&few, &Parameters::shipped());
        assert!(fitting.ends_with("%)") && fitting.contains(&format!(" of {} published runs", few.len())), "{fitting}");
    }
}
