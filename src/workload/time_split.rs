//! Where the time of a step goes, from steps taken apart.

use crate::{
    graph::{Op, Program},
    record::TimeSplit,
    train::ApartStep,
    units::Seconds,
};

/// How a candidate's steps follow each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// The processor runs every op when it is called.
    Called,
    /// A device answers each step before the next begins.
    Answered,
    /// A device works through queued steps, so many seconds each, while the host fetches rows ahead.
    Queued { step_s: f64 },
}

/// The split of a rank with this program, over the middle half of its pairs of steps: what the machine disturbed is not typical.
pub fn rank_split(program: &Program, steps: &[ApartStep], pace: Pace, balance: Option<f64>) -> TimeSplit {
    let middle = middle_half(steps);
    let mean = |of: &dyn Fn(&ApartStep) -> f64| middle.iter().map(|step| of(step)).sum::<f64>() / middle.len().max(1) as f64;
    let (mut compute, mut memory, mut communication, mut bubble) = (0.0, 0.0, 0.0, mean(&|step| step.end_wait_s));
    for (k, step) in program.steps.iter().enumerate() {
        let work = program.step_work(step);
        let intensity = work.flops.0 as f64 / (work.bytes.0 as f64).max(1.0);
        let waited = mean(&|apart| apart.ops[k].waited.0);
        let rest = mean(&|apart| apart.ops[k].total.0) - waited;
        bubble += waited;
        match step.op {
            Op::Exchange(_) => communication += rest,
            _ if balance.is_some_and(|balance| intensity >= balance) => compute += rest,
            _ => memory += rest,
        }
    }
    let known = compute + memory + communication + bubble;
    let ordinary_s = mean(&|step| step.ordinary_s);
    let data = mean(&|step| step.data_s);
    let (launch, data, host, step) = match pace {
        Pace::Called => (0.0, data, (mean(&|step| step.apart_s) - known - data).max(0.0), ordinary_s),
        // What is neither the device's nor the fetching of rows: calls, and gaps between kernels.
        Pace::Answered => ((ordinary_s - known - data).max(0.0), data, 0.0, ordinary_s),
        Pace::Queued { step_s } => {
            let gap = (step_s - known).max(0.0);
            // Rows are waited for only where the host takes longer for a step than the device.
            let is_late = data + mean(&|step| step.call_s) > known;
            let data = if is_late { data.min(gap) } else { 0.0 };
            (gap - data, data, 0.0, step_s)
        }
    };
    TimeSplit {
        compute: Seconds(compute),
        memory: Seconds(memory),
        communication: Seconds(communication),
        bubble: Some(Seconds(bubble)),
        launch: Some(Seconds(launch)),
        data: Seconds(data),
        host: Seconds(host),
        step: Some(Seconds(step)),
    }
}

/// By the length of both steps of a pair, so that neither is favoured.
fn middle_half(steps: &[ApartStep]) -> Vec<&ApartStep> {
    let mut sorted: Vec<&ApartStep> = steps.iter().collect();
    sorted.sort_by(|a, b| (a.ordinary_s + a.apart_s).total_cmp(&(b.ordinary_s + b.apart_s)));
    let cut = sorted.len() / 4;
    sorted[cut..sorted.len() - cut].to_vec()
}

/// The mean over the ranks.
pub fn over_ranks(splits: &[TimeSplit]) -> TimeSplit {
    let mean = |of: fn(&TimeSplit) -> f64| Seconds(splits.iter().map(of).sum::<f64>() / splits.len().max(1) as f64);
    TimeSplit {
        compute: mean(|split| split.compute.0),
        memory: mean(|split| split.memory.0),
        communication: mean(|split| split.communication.0),
        bubble: Some(mean(|split| split.bubble.map_or(0.0, |part| part.0))),
        launch: Some(mean(|split| split.launch.map_or(0.0, |part| part.0))),
        data: mean(|split| split.data.0),
        host: mean(|split| split.host.0),
        step: Some(mean(|split| split.step.map_or(0.0, |part| part.0))),
    }
}

/// What a reader must know of a split whose parts are not the whole.
pub fn remark(split: &TimeSplit) -> Option<String> {
    let excess = split.excess().filter(|excess| excess.abs() > TimeSplit::TOLERANCE)?;
    let (more, share) = (if excess > 0.0 { "more" } else { "less" }, 100.0 * excess.abs());
    Some(format!("the parts of the time split add up to {share:.0} % {more} than an ordinary step takes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::OpTime,
        graph::{Exchange, Graph, lower},
        vocab::DType,
    };

    /// A product, a sum over ranks of it, and a copy: of 1 ms, of 2 ms with 0.5 ms of waiting, of 3 ms.
    fn program() -> Program {
        let mut g = Graph::new();
        let (x, w) = (g.input("x", &[512, 512], DType::F32), g.weight("w", &[512, 512], 1, 1));
        let y = g.apply(Op::MatMul { transpose_a: false, transpose_b: false }, &[x, w]).unwrap();
        let y = g.apply(Op::Exchange(Exchange::SumRanks), &[y]).unwrap();
        let y = g.apply(Op::Permute { axes: vec![1, 0] }, &[y]).unwrap();
        g.mark_output("y", y);
        lower(&g)
    }

    fn step(apart_s: f64, ordinary_s: f64) -> ApartStep {
        let op = |total: f64, waited: f64| OpTime { total: Seconds(total), waited: Seconds(waited) };
        ApartStep {
            ordinary_s,
            call_s: 0.0001,
            apart_s,
            data_s: 0.001,
            ops: vec![op(0.001, 0.0), op(0.002, 0.0005), op(0.003, 0.0)],
            end_wait_s: 0.0002,
        }
    }

    fn assert_near(split: &TimeSplit, want: [f64; 7]) {
        for ((name, got), want) in split.parts().into_iter().zip(want) {
            assert!((got.unwrap().0 - want).abs() < 1e-12, "{name}: {got:?} is not {want}");
        }
    }

    #[test]
    fn every_second_of_a_called_step_has_one_place() {
        // The slowest step and the fastest are left out.
        let steps = [step(0.5, 0.5), step(0.008, 0.008), step(0.008, 0.008), step(0.0075, 0.0075)];
        let split = rank_split(&program(), &steps, Pace::Called, Some(10.0));
        assert_near(&split, [0.001, 0.003, 0.0015, 0.0007, 0.0, 0.001, 0.0008]);
        assert!(split.excess().unwrap().abs() < 1e-9 && remark(&split).is_none(), "{split:?}");
        // Without a measured balance nothing is known to be bound by arithmetic.
        assert_eq!(rank_split(&program(), &steps, Pace::Called, None).compute, Seconds(0.0));
    }

    #[test]
    fn a_split_that_is_not_the_step_says_so() {
        let split = rank_split(&program(), &[step(0.008, 0.0095)], Pace::Called, Some(10.0));
        assert_eq!(remark(&split).unwrap(), "the parts of the time split add up to 16 % less than an ordinary step takes");
        // A device whose ops take longer one by one than together.
        let split = rank_split(&program(), &[step(0.008, 0.008)], Pace::Queued { step_s: 0.005 }, Some(10.0));
        assert!(remark(&split).unwrap().contains("24 % more"), "{split:?}");
    }

    #[test]
    fn gaps_of_a_device_are_launches_unless_it_waits_for_rows() {
        let of = |step: ApartStep, pace| rank_split(&program(), &[step], pace, Some(10.0));
        // 6.2 ms of ops and waits in a step of 7 ms; fetching is hidden behind them.
        assert_near(&of(step(0.01, 0.01), Pace::Queued { step_s: 0.007 }), [0.001, 0.003, 0.0015, 0.0007, 0.0008, 0.0, 0.0]);
        let late = ApartStep { data_s: 0.0075, ..step(0.01, 0.01) };
        assert_near(&of(late, Pace::Queued { step_s: 0.015 }), [0.001, 0.003, 0.0015, 0.0007, 0.0013, 0.0075, 0.0]);
        assert_near(&of(step(0.02, 0.008), Pace::Answered), [0.001, 0.003, 0.0015, 0.0007, 0.0008, 0.001, 0.0]);
    }
}
