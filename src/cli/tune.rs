//! `advisor kernels --tune`: measures which tile makes each product fastest on a GPU, and keeps it.

use super::Exit;
use crate::{
    backend::cuda::{self, TuneError, Tuned},
    graph::Program,
    measure::kernel_cases,
    models,
    strategy::Calibration,
    train::{inference_program, initial_weights, training_program},
    units::three_figures,
    vocab::{Compression, Device, Layout, Precision, Vocabulary},
};
use serde_json::json;

/// Batches at which the products of our models are measured.
const BATCHES: [usize; 3] = [1, 64, 256];

pub fn run(device: Device, filter: &str, json: bool) -> anyhow::Result<Exit> {
    let ordinal = match device {
        Device::Cpu => {
            eprintln!("error: `--tune` measures tiles of a GPU: the kernels of the processor have none to choose");
            return Ok(Exit::WrongInput);
        }
        Device::Auto => 0,
        Device::Cuda(ordinal) => ordinal,
    };
    let Some(path) = cuda::tuning_file() else {
        eprintln!("error: {} is `off`, or there is no folder for caches: there is no file to keep what is found", cuda::TUNING);
        return Ok(Exit::WrongInput);
    };
    let mut all = Vec::new();
    let mut tell = |tuned: &Tuned| {
        if !json {
            eprintln!("{}", line(tuned));
        }
        all.push(tuned.clone());
    };
    match cuda::tune(ordinal, &programs(filter)?, &path, &mut tell) {
        Ok(()) => {}
        Err(error @ TuneError::File { .. }) => return Err(error.into()),
        Err(error) => {
            eprintln!("error: {error}");
            return Ok(Exit::MachineFailed);
        }
    }
    let changed = all.iter().filter(|tuned| tuned.kept != 0).count();
    if json {
        let candidate = |(number, (kernel, parts, modelled, seconds)): (usize, &(String, usize, f64, f64))| json!({ "kernel": kernel, "parts_of_k": parts, "modelled": modelled, "seconds": seconds.is_finite().then_some(seconds), "place": number });
        let row = |tuned: &Tuned| {
            let candidates: Vec<_> = tuned.candidates.iter().enumerate().map(candidate).collect();
            json!({ "product": tuned.product, "candidates": candidates, "kept": tuned.kept })
        };
        let rows: Vec<_> = all.iter().map(row).collect();
        super::print(&serde_json::to_string_pretty(&json!({ "file": path, "products": rows }))?)?;
    } else {
        super::print(&format!(
            "products measured: {}; with a faster tile than the model's choice: {changed}; kept in {}",
            all.len(),
            path.display()
        ))?;
    }
    Ok(Exit::Done)
}

/// `bf16 nn 4096 x 4096 x 4096: gemm_wgmma_bf16_nn_256 181 us, gemm_wgmma_bf16_nn_128 203 us; kept the first`.
fn line(tuned: &Tuned) -> String {
    let one = |(kernel, parts, _, seconds): &(String, usize, f64, f64)| {
        let parts = if *parts > 1 { format!(" in {parts} parts") } else { String::new() };
        let time = if seconds.is_finite() { format!(" {} us", three_figures(seconds * 1e6)) } else { " (alone)".into() };
        format!("{kernel}{parts}{time}")
    };
    let all: Vec<String> = tuned.candidates.iter().map(one).collect();
    let kept =
        if tuned.kept == 0 { "the model's choice stays".into() } else { format!("kept {}", tuned.candidates[tuned.kept].0) };
    format!("{}: {}; {kept}", tuned.product, all.join(", "))
}

/// One call of each kernel of the sweep, and steps of each model in each precision.
fn programs(filter: &str) -> anyhow::Result<Vec<Program>> {
    let of_case = |case: &crate::measure::KernelCase| format!("{} {} {}", case.op.name(), case.shape(), case.dtype.name());
    let cases = kernel_cases(Device::Cuda(0)).into_iter().filter(|case| of_case(case).contains(filter));
    let mut out: Vec<Program> = cases.map(|case| case.program()).collect();
    for model in models::MODELS.iter().filter(|model| model.name.contains(filter)) {
        for batch in BATCHES {
            let forward = (model.build)(&model.usual_size(batch))?;
            let config = super::bench_step::timing_config(batch);
            let weights = initial_weights(&forward, config.init, config.first_seed);
            for precision in [Precision::Fp32, Precision::Bf16, Precision::Fp16] {
                let no_ranges = || Ok(Calibration::default());
                out.push(training_program(&forward, precision, &config, Layout::SINGLE)?.program);
                out.push(inference_program(&forward, &weights, precision, Compression::NONE, no_ranges)?.program);
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_the_sweep_and_of_the_models_are_measured_and_a_filter_narrows_them() {
        let all = programs("").unwrap().len();
        let models = programs("simple-cnn").unwrap().len();
        assert_eq!(models, BATCHES.len() * 3 * 2);
        assert!(programs("matmul").unwrap().len() > 20 && all > models * models::MODELS.len());
    }

    #[test]
    fn a_line_says_what_was_measured_and_what_is_kept() {
        let candidates = vec![("a".into(), 1, 1.0, 2e-6), ("b".into(), 4, 1.2, 1e-6)];
        let tuned = Tuned { product: "f32 nn 1 x 2 x 3".into(), candidates, kept: 1 };
        assert_eq!(line(&tuned), "f32 nn 1 x 2 x 3: a 2.00 us, b in 4 parts 1.00 us; kept b");
    }
}
