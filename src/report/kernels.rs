//! Sweeps over kernels as tables and a figure: how far each kernel is from what its device can do, and from another library.

use super::{ReportError, plots, words};
use crate::{
    record::{KernelRow, KernelRun, StepRow},
    stats::{Interval, bootstrap_interval, median},
    units::three_figures,
    vocab::{DType, Vocabulary},
};
use std::fmt::Write;

/// Cell of what nobody has measured.
const NOT_YET: &str = "not yet measured";

/// Resamples behind the interval of a ratio.
const RESAMPLES: usize = 2_000;

/// FLOP/s and bytes/s that the device of a run reached.
fn device_rates(run: &KernelRun, storage: DType) -> Option<(f64, f64)> {
    match &run.gpu {
        Some(gpu) => gpu.rates(storage),
        None => run.environment.processor_rates(run.environment.physical_cores.max(1)),
    }
}

/// How fast a kernel could be on its device: the larger of its arithmetic and its memory traffic at measured rates, seconds.
pub fn floor_s(run: &KernelRun, row: &KernelRow) -> Option<f64> {
    let (flops, bytes) = device_rates(run, row.dtype)?;
    Some((row.flops as f64 / flops).max(row.bytes as f64 / bytes))
}

/// How many times as fast as the other, with a 95 % interval from the pairs of samples.
fn ratio(ours: &[f64], theirs: &[f64]) -> Option<(f64, Option<Interval>)> {
    let pairs: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| theirs / ours).collect();
    let middle = median(&pairs)?;
    let interval = bootstrap_interval(&pairs, |resample| median(resample).unwrap_or(f64::NAN), RESAMPLES, 0.95, 1);
    Some((middle, interval))
}

fn ratio_text(ours: &[f64], theirs: Option<&[f64]>) -> String {
    match theirs.and_then(|theirs| ratio(ours, theirs)) {
        Some((middle, Some(interval))) => format!("{middle:.2}x ({:.2} to {:.2})", interval.low, interval.high),
        Some((middle, None)) => format!("{middle:.2}x"),
        None => NOT_YET.into(),
    }
}

fn microseconds(seconds: &[f64]) -> String {
    median(seconds).map_or_else(|| NOT_YET.into(), |s| format!("{} us", three_figures(s * 1e6)))
}

fn rates(row: &KernelRow) -> (String, String) {
    let Some(seconds) = median(&row.call_s) else { return (NOT_YET.into(), NOT_YET.into()) };
    (three_figures(row.bytes as f64 / seconds / 1e9), three_figures(row.flops as f64 / seconds / 1e9))
}

/// Share of the floor that a kernel reaches, as text.
fn share(run: &KernelRun, row: &KernelRow) -> String {
    match (median(&row.call_s), floor_s(run, row)) {
        (Some(seconds), Some(floor)) => format!("{:.0} %", 100.0 * floor / seconds),
        _ => NOT_YET.into(),
    }
}

/// The table of one run, for a terminal and for `docs/`.
pub fn kernels_markdown(run: &KernelRun) -> String {
    let mut out = String::new();
    let mut put = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    let device = match &run.gpu {
        Some(gpu) => words::gpu(gpu),
        None => format!(
            "{}, {} cores; copying {}, fp32 {} a core",
            run.environment.cpu,
            run.environment.physical_cores,
            words::or_unknown(run.environment.copy_bytes_per_s.map(|b| format!("{} GB/s", three_figures(b / 1e9)))),
            words::or_unknown(run.environment.peak_flops_per_core.map(|f| format!("{} GFLOP/s", three_figures(f / 1e9))))
        ),
    };
    put(format!("Measured on {} with `{}`: {device}.", words::date(run.started_unix_s), run.command));
    let peer = run.peer.as_deref().unwrap_or("no other library");
    put(format!("Beside it, in turns with every sample: {peer}."));
    let has_vendor = run.kernels.iter().any(|row| row.vendor_call_s.is_some());
    if let Some(vendor) = &run.vendor {
        put(if has_vendor { format!("So was {vendor}.") } else { format!("The vendor's library was not called: {vendor}.") });
    }
    if !run.checks.is_empty() {
        let failed: Vec<_> = run.checks.iter().filter(|check| !check.passes).collect();
        put(String::new());
        put(format!("Checks: {} of {} passed.", run.checks.len() - failed.len(), run.checks.len()));
        for check in failed {
            put(format!("- **failed**: {}: {} (tolerance {:e})", check.name, check.detail, check.tolerance));
        }
    }
    if !run.kernels.is_empty() {
        put(String::new());
        let (name, line) = if has_vendor { (" against the vendor's library |", "---|") } else { ("", "") };
        put(format!("| kernel | shape | type | operands | time | GB/s | GFLOP/s | of the roof | against the other |{name}"));
        put(format!("|---|---|---|---|---|---|---|---|---|{line}"));
        for row in &run.kernels {
            let (bytes, flops) = rates(row);
            let against = match &row.reason {
                Some(reason) => reason.clone(),
                None => ratio_text(&row.call_s, row.peer_call_s.as_deref()),
            };
            let vendor = match &row.vendor_call_s {
                Some(theirs) => format!(" {} |", ratio_text(&row.call_s, Some(theirs))),
                None if has_vendor => " |".into(),
                None => String::new(),
            };
            put(format!(
                "| {} | {} | {} | {} | {} | {bytes} | {flops} | {} | {against} |{vendor}",
                row.op,
                row.shape,
                row.dtype.name(),
                if row.cold { "cold" } else { "in a cache" },
                microseconds(&row.call_s),
                share(run, row)
            ));
        }
    }
    let chosen: Vec<_> = run.kernels.iter().filter_map(|row| Some((row, row.choice.as_ref()?))).collect();
    if !chosen.is_empty() {
        put(String::new());
        put("Why each product runs as it does:".into());
        put(String::new());
        for (row, choice) in chosen {
            put(format!("- {} {}, {}: {choice}", row.op, row.shape, row.dtype.name()));
        }
    }
    if !run.steps.is_empty() {
        let mut peers: Vec<&str> = run.steps.iter().flat_map(|step| step.peers.iter().map(|(name, _)| name.as_str())).collect();
        peers.sort_unstable();
        peers.dedup();
        put(String::new());
        put(format!(
            "| model | phase | precision | batch | time of a step |{}",
            peers.iter().fold(String::new(), |mut all, p| {
                let _ = write!(all, " against {p} |");
                all
            })
        ));
        put(format!("|---|---|---|---|---|{}", "---|".repeat(peers.len())));
        for step in &run.steps {
            put(step_row(step, &peers));
        }
    }
    out
}

fn step_row(step: &StepRow, peers: &[&str]) -> String {
    let mut line = format!(
        "| {} | {} | {} | {} | {} |",
        step.model,
        step.phase,
        step.precision,
        step.batch_size,
        match &step.reason {
            Some(reason) if step.step_s.is_empty() => reason.clone(),
            Some(reason) => format!("{} ({reason})", microseconds(&step.step_s)),
            None => microseconds(&step.step_s),
        }
    );
    for peer in peers {
        let theirs = step.peers.iter().find(|(name, _)| name == peer).map(|(_, times)| times.as_slice());
        let _ = write!(line, " {} |", ratio_text(&step.step_s, theirs));
    }
    line
}

/// `docs/performance-gpu.md` from committed records, or what there is to say where there are none.
pub fn kernels_document(runs: &[KernelRun], command: &str) -> String {
    let mut out = format!(
        "# Kernels on GPUs\n\nMade from the records in `reports/gpu/` by `{command}`; not written by hand.\n\nEach time is the median of samples \
         of at least 20 ms; \"cold\" calls find their operands outside every cache. The roof is the larger of a kernel's arithmetic and its \
         memory traffic at the rates that the same device reached in the same run. A ratio above 1 means that ours is faster; in brackets its \
         95 % interval over pairs of samples taken in turns.\n"
    );
    if runs.is_empty() {
        out.push_str(
            "\nNo GPU has been at hand: every figure is not yet measured. `scripts/gpu-suite.sh OUT_DIR` measures them on a machine with an \
             NVIDIA GPU in ten minutes; its records belong into `reports/gpu/`.\n",
        );
    }
    for run in runs {
        let name = run.gpu.as_ref().map_or("processor", |gpu| gpu.name.as_str());
        let _ = write!(out, "\n## {name}\n\n{}", kernels_markdown(run));
    }
    out
}

/// One line a kernel, all samples summed up; empty where not measured.
pub fn kernels_csv(run: &KernelRun) -> Result<Vec<u8>, ReportError> {
    super::csv::kernels(run, |row| floor_s(run, row))
}

/// Kernels under the roof of their device: arithmetic intensity against rate, both on logarithmic axes.
pub fn kernels_plot(run: &KernelRun) -> Result<Option<plots::Plot>, ReportError> {
    let points: Vec<(String, f64, f64)> = run
        .kernels
        .iter()
        .filter_map(|row| {
            let seconds = median(&row.call_s)?;
            let intensity = row.flops as f64 / row.bytes as f64;
            (row.flops > 0).then(|| (row.family.clone(), intensity, row.flops as f64 / seconds))
        })
        .collect();
    plots::roofline(&points, device_rates(run, DType::Bf16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{CheckRow, Environment, Gpu};

    fn run() -> KernelRun {
        let row = KernelRow {
            family: "matrix product".into(),
            op: "matmul".into(),
            shape: "[64, 64] x [64, 64]".into(),
            dtype: DType::Bf16,
            cold: true,
            flops: 1_000_000,
            bytes: 1_000,
            call_s: vec![2e-6, 2e-6, 2e-6],
            peer_call_s: Some(vec![1e-6, 1e-6, 1e-6]),
            vendor_call_s: None,
            reason: None,
            choice: Some("gemm_bf16_nn_64: 1 tile".into()),
        };
        let without = KernelRow { call_s: vec![], peer_call_s: None, reason: Some("out of memory".into()), ..row.clone() };
        let gpu = Gpu {
            name: "G1".into(),
            copy_bytes_per_s: Some(1e12),
            fp32_flops_per_s: Some(1e11),
            tf32_flops_per_s: None,
            bf16_flops_per_s: Some(1e12),
            ..Gpu::default()
        };
        KernelRun {
            schema_version: 1,
            device: "cuda".into(),
            started_unix_s: 0,
            command: "advisor kernels".into(),
            environment: Environment::default(),
            gpu: Some(gpu),
            peer: Some("library 1.0".into()),
            vendor: Some("no library".into()),
            checks: vec![CheckRow {
                name: "relu".into(),
                error: None,
                tolerance: 0.1,
                passes: false,
                detail: "y[0] is NaN".into(),
            }],
            kernels: vec![row, without],
            steps: vec![StepRow {
                model: "mlp".into(),
                phase: "train".into(),
                precision: "fp32".into(),
                batch_size: 64,
                step_s: vec![1e-5; 3],
                peers: vec![("eager".into(), vec![4e-5; 3])],
                reason: None,
            }],
        }
    }

    #[test]
    fn a_table_has_shares_of_the_roof_ratios_and_reasons() {
        let text = kernels_markdown(&run());
        assert!(text.contains("Checks: 0 of 1 passed."), "{text}");
        assert!(text.contains("| 2.00 us | 0.500 | 500 | 50 % | 0.50x (0.50 to 0.50) |"), "{text}");
        assert!(
            text.contains("| not yet measured | not yet measured | not yet measured | not yet measured | out of memory |"),
            "{text}"
        );
        assert!(text.contains("- matmul [64, 64] x [64, 64], bf16: gemm_bf16_nn_64: 1 tile\n"), "{text}");
        assert!(text.contains("| mlp | train | fp32 | 64 | 10.0 us | 4.00x (4.00 to 4.00) |"), "{text}");
    }

    #[test]
    fn the_vendors_library_has_a_column_where_it_was_called_and_a_reason_where_not() {
        let mut run = run();
        let text = kernels_markdown(&run);
        assert!(
            text.contains("The vendor's library was not called: no library.") && !text.contains("against the vendor"),
            "{text}"
        );
        run.vendor = Some("cuBLAS 12.9.1".into());
        run.kernels[0].vendor_call_s = Some(vec![1.8e-6; 3]);
        let text = kernels_markdown(&run);
        assert!(text.contains("So was cuBLAS 12.9.1.") && text.contains("| against the vendor's library |"), "{text}");
        assert!(text.contains("| 0.50x (0.50 to 0.50) | 0.90x (0.90 to 0.90) |"), "{text}");
        // Not every row has a call of the vendor's.
        assert!(text.contains("| out of memory | |"), "{text}");
    }

    #[test]
    fn a_step_keeps_its_time_where_another_has_none() {
        let mut run = run();
        run.steps[0].reason = Some("no time of compiled: it ended".into());
        assert!(kernels_markdown(&run).contains("| 10.0 us (no time of compiled: it ended) | 4.00x"));
        run.steps[0].step_s.clear();
        assert!(kernels_markdown(&run).contains("| 64 | no time of compiled: it ended | not yet measured |"));
    }

    #[test]
    fn without_records_the_document_says_so_and_gives_no_figure() {
        let text = kernels_document(&[], "advisor kernels --from reports/gpu");
        assert!(text.contains("not yet measured") && !text.contains("| kernel |"), "{text}");
        assert!(kernels_document(&[run()], "x").contains("## G1\n"));
    }

    #[test]
    fn the_csv_leaves_unknown_cells_empty_and_the_plot_leaves_unknown_points_out() {
        let csv = String::from_utf8(kernels_csv(&run()).unwrap()).unwrap();
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines.len(), 3, "{csv}");
        assert!(lines[2].ends_with(",,,,,,,out of memory"), "{csv}");
        assert!(kernels_plot(&run()).unwrap().unwrap().svg.contains("<svg"));
        assert!(kernels_plot(&KernelRun { kernels: vec![], ..run() }).unwrap().is_none());
    }
}
