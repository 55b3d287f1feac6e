//! How fast our kernels run ops on a GPU: measured on one, and taken from there to others.
//!
//! `advisor kernels` timed ops one by one on an H200 (reports/gpu/nvidia-h200-kernels.json). An op of a program stays as far below its roof
//! as the timed sizes nearest to it do, by the regression of `local`. The roof is that of Williams et al. (CACM 52(4), 2009) with the waves
//! of `gemm`: the last one is half empty in the mean, so a product costs as if its output were half a wave larger. On another GPU the same
//! share of that GPU's roof is assumed. Launching a kernel and waiting for the one before it takes as long everywhere.

use super::super::local::{Place, place, regressed};
use crate::{
    hardware::{Gpu, HardwareBook, Machine},
    record::{CountedOp, KernelRun, OpProfile},
    stats::median,
    vocab::{DType, Vocabulary},
};

/// Elements of the smallest tile of an output that a product is cut into, and the inner extent from which on it is shared out as well
/// (kernels/gemm.cu, kernels/wgmma.cu).
const TILE: f64 = 64.0 * 64.0;
const INNER: f64 = 256.0;
const LOST_WAVES: f64 = 0.5;

/// Of what was timed of a call at least so much is work: a floor must not make it nothing.
const LEAST_WORK: f64 = 0.1;

/// What an op's time is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    Product,
    Convolution,
    /// Elements and rows: memory alone counts.
    Memory,
    Update,
}

impl OpKind {
    pub const fn name(self) -> &'static str {
        match self {
            OpKind::Product => "products",
            OpKind::Convolution => "convolutions",
            OpKind::Memory => "elements and rows",
            OpKind::Update => "updates",
        }
    }
}

/// Ops, what they are, and the timed op that stands for them.
const OPS: &[(&str, OpKind, &str)] = &[
    ("matmul", OpKind::Product, "matmul"),
    ("linear", OpKind::Product, "matmul"),
    ("linear_grad_update", OpKind::Product, "matmul"),
    ("conv2d", OpKind::Convolution, "conv2d"),
    ("conv2d_relu_max_pool", OpKind::Convolution, "conv2d"),
    ("conv2d_grad_input", OpKind::Convolution, "conv2d_grad_input"),
    ("conv2d_grad_weight", OpKind::Convolution, "conv2d_grad_weight"),
    ("conv2d_relu_max_pool_grad", OpKind::Convolution, "conv2d_grad_weight"),
    ("relu_unpool", OpKind::Memory, "relu"),
    ("max_pool2d", OpKind::Memory, "max_pool2d"),
    ("max_pool2d_grad", OpKind::Memory, "max_pool2d"),
    ("relu", OpKind::Memory, "relu"),
    ("gelu", OpKind::Memory, "gelu"),
    ("tanh", OpKind::Memory, "gelu"),
    ("sigmoid", OpKind::Memory, "gelu"),
    ("exp", OpKind::Memory, "gelu"),
    ("relu_grad", OpKind::Memory, "add"),
    ("gelu_grad", OpKind::Memory, "gelu"),
    ("tanh_grad", OpKind::Memory, "gelu"),
    ("sigmoid_grad", OpKind::Memory, "gelu"),
    ("exp_grad", OpKind::Memory, "gelu"),
    ("add", OpKind::Memory, "add"),
    ("sub", OpKind::Memory, "add"),
    ("mul", OpKind::Memory, "add"),
    ("add_bias", OpKind::Memory, "add_bias"),
    ("scale", OpKind::Memory, "relu"),
    ("mul_scalar", OpKind::Memory, "relu"),
    ("sum_leading", OpKind::Memory, "sum_leading"),
    ("mean", OpKind::Memory, "sum_leading"),
    ("mean_grad", OpKind::Memory, "relu"),
    ("sum_first", OpKind::Memory, "sum_leading"),
    ("repeat_first", OpKind::Memory, "relu"),
    ("permute", OpKind::Memory, "relu"),
    ("softmax", OpKind::Memory, "softmax"),
    ("softmax_grad", OpKind::Memory, "softmax"),
    ("layer_norm", OpKind::Memory, "layer_norm"),
    ("layer_norm_grad", OpKind::Memory, "layer_norm"),
    ("softmax_cross_entropy", OpKind::Memory, "softmax_cross_entropy"),
    ("embedding", OpKind::Memory, "embedding"),
    ("embedding_grad", OpKind::Memory, "embedding"),
    ("warp", OpKind::Memory, "relu"),
    ("cast", OpKind::Memory, "cast"),
    ("all_finite", OpKind::Memory, "sum_leading"),
    ("adjust_loss_scale", OpKind::Memory, "relu"),
    ("replicate", OpKind::Memory, "relu"),
    ("update", OpKind::Update, "update"),
];

/// Why an op has no time.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum UnknownOp {
    #[error("no kernel like `{op}` in {dtype} was timed on the {gpu}, so nothing is known of its speed")]
    Untimed { op: String, dtype: &'static str, gpu: String },
    #[error("the hardware book has no {dtype} peak of the {gpu}")]
    NoPeak { dtype: &'static str, gpu: String },
}

/// A timed call.
struct Timed {
    op: String,
    dtype: DType,
    place: Place,
    work: Work,
    seconds: f64,
}

/// What an op does, as far as its roof goes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Work {
    flops: f64,
    bytes: f64,
    /// Elements of the output of a product or convolution, and the extent that it sums over.
    output: Option<(f64, f64)>,
}

/// Our kernels, as one GPU ran them.
pub struct KernelRates {
    /// In the hardware book.
    gpu: Gpu,
    rows: Vec<Timed>,
}

/// Extents of the operands of `[64, 784] x [784, 256]`.
fn operands(shape: &str) -> Vec<Vec<f64>> {
    let extents =
        |operand: &str| operand.trim_matches(['[', ']', ' ']).split(", ").filter_map(|text| text.parse().ok()).collect();
    shape.split(" x ").map(extents).collect()
}

impl Work {
    fn of(op: &str, shape: &str, flops: f64, bytes: f64) -> Work {
        Work { flops, bytes, output: output(op, &operands(shape), flops) }
    }

    /// Seconds at the machine's peaks.
    fn roof(&self, machine: &Machine, peak: Option<f64>) -> f64 {
        let memory = self.bytes.max(1.0) / machine.memory_bytes_per_second;
        let Some((peak, (elements, inner))) = peak.zip(self.output) else { return memory };
        let waves = elements * (inner / INNER).max(1.0) / (TILE * f64::from(machine.multiprocessors));
        memory.max(self.flops / peak * (1.0 + LOST_WAVES / waves))
    }
}

/// Elements of the output of a product, and the extent that it sums over, from its first two operands and its multiplications.
fn output(op: &str, operands: &[Vec<f64>], flops: f64) -> Option<(f64, f64)> {
    let [a, b, ..] = operands else { return None };
    let elements = |extents: &[f64]| extents.iter().product::<f64>();
    let last = |extents: &[f64]| extents.last().copied();
    let product = (flops / 2.0).max(1.0);
    let inner = match op {
        "matmul" | "linear" => {
            let alike = if a.len() > 2 && b.len() > 2 { elements(&b[..b.len() - 2]) } else { 1.0 };
            elements(a) * elements(b) / (product * alike)
        }
        // Of weights and rows: two products, of which that for the weights has their size.
        "linear_grad_update" => return Some((elements(a), elements(b) / a.first()?)),
        "conv2d" | "conv2d_relu_max_pool" => elements(b) / last(b)?,
        "conv2d_grad_input" => elements(b) / b.get(2)?,
        "conv2d_grad_weight" | "conv2d_relu_max_pool_grad" => elements(a) / last(a)?,
        _ => return None,
    };
    Some((product / inner.max(1.0), inner.max(1.0)))
}

/// Rate of the units that multiply numbers of this type: fp32 ones have plain units.
fn peak(machine: &Machine, dtype: DType) -> Option<f64> {
    match dtype {
        DType::F32 => machine.peaks.fp32,
        DType::Bf16 | DType::F16 => Some(machine.peaks.bf16),
        _ => None,
    }
}

impl KernelRates {
    /// Those that come with the program.
    pub fn shipped() -> KernelRates {
        let text = include_str!("../../../reports/gpu/nvidia-h200-kernels.json");
        let run: KernelRun = serde_json::from_str(text).expect("the committed record is one: tested");
        KernelRates::of(&run, &HardwareBook::shipped()).expect("the book has the H200: tested")
    }

    /// Those of a record; `None` where the book does not have its GPU.
    pub fn of(run: &KernelRun, book: &HardwareBook) -> Option<KernelRates> {
        let name = &run.gpu.as_ref()?.name;
        let gpu = book.find_in(name.strip_prefix("NVIDIA ").unwrap_or(name))?.clone();
        let rows = run.kernels.iter().filter_map(|row| {
            Some(Timed {
                op: row.op.clone(),
                dtype: row.dtype,
                place: place(&row.shape, row.flops, row.bytes),
                work: Work::of(&row.op, &row.shape, row.flops as f64, row.bytes as f64),
                seconds: median(&row.call_s)?,
            })
        });
        Some(KernelRates { rows: rows.collect(), gpu })
    }

    /// The GPU that was timed, by its name in the hardware book.
    pub fn gpu(&self) -> &str {
        &self.gpu.name
    }

    /// Seconds of an op's work on `gpu`, launches left out, where each launch of a timed call took `launch` seconds; and what it is.
    pub fn work(&self, op: &CountedOp, gpu: &Gpu, launch: f64) -> Result<(f64, OpKind), UnknownOp> {
        let OpProfile { op: name, shape, flops, bytes, .. } = &op.profile;
        let dtype = op.profile.dtype.unwrap_or(DType::F32);
        let untimed = || UnknownOp::Untimed { op: name.clone(), dtype: dtype.name(), gpu: self.gpu.name.clone() };
        let (_, kind, stands_for) = OPS.iter().find(|(known, ..)| known == name).ok_or_else(untimed)?;
        let of_type = |dtype: DType| self.rows.iter().filter(move |row| row.op == *stands_for && row.dtype == dtype);
        // Memory does not care for the type: an op that was timed in fp32 alone stays as far below it in 16 bits.
        let rows: Vec<&Timed> = match (of_type(dtype).count(), kind) {
            (0, OpKind::Memory | OpKind::Update) => of_type(DType::F32).collect(),
            _ => of_type(dtype).collect(),
        };
        if rows.is_empty() {
            return Err(untimed());
        }
        let multiplies = matches!(kind, OpKind::Product | OpKind::Convolution);
        let peak_of = |gpu: &Gpu| match peak(&gpu.machine, dtype) {
            None if multiplies => Err(UnknownOp::NoPeak { dtype: dtype.name(), gpu: gpu.name.clone() }),
            peak => Ok(peak),
        };
        let (there, here) = (peak_of(gpu)?, peak_of(&self.gpu)?);
        let beyond = |row: &&Timed| {
            let seconds = (row.seconds - launch).max(LEAST_WORK * row.seconds);
            (row.place, (seconds / row.work.roof(&self.gpu.machine, here)).ln())
        };
        let work = Work::of(name, shape, flops.0 as f64, bytes.0 as f64);
        let points: Vec<(Place, f64)> = rows.iter().map(beyond).collect();
        let beyond = match multiplies {
            true => regressed(&points, &place(shape, flops.0, bytes.0)),
            false => median(&points.iter().map(|(_, beyond)| *beyond).collect::<Vec<_>>()).expect("there are rows"),
        };
        Ok((work.roof(&gpu.machine, there) * beyond.exp(), *kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Bytes, Flops};

    fn op(name: &str, shape: &str, dtype: DType, flops: u64, bytes: u64) -> CountedOp {
        let profile = OpProfile {
            op: name.into(),
            variant: String::new(),
            shape: shape.into(),
            dtype: Some(dtype),
            neighbour: None,
            flops: Flops(flops),
            bytes: Bytes(bytes),
            message_bytes: Bytes(0),
            time: None,
            waited: None,
        };
        CountedOp { profile, launches: 1 }
    }

    #[test]
    fn outputs_follow_from_operands_and_multiplications() {
        let of = |op: &str, shape: &str, flops: f64| output(op, &operands(shape), flops).unwrap();
        assert_eq!(of("matmul", "[64, 784] x [784, 256]", 2.0 * 64.0 * 784.0 * 256.0), (64.0 * 256.0, 784.0));
        // Transposed: 784 x 64 by 64 x 256.
        assert_eq!(of("matmul", "[64, 784] x [64, 256]", 2.0 * 784.0 * 64.0 * 256.0), (784.0 * 256.0, 64.0));
        assert_eq!(of("matmul", "[8, 32, 16] x [8, 32, 16]", 2.0 * 8.0 * 32.0 * 16.0 * 32.0), (8.0 * 32.0 * 32.0, 16.0));
        let flops = 2.0 * 512.0 * 14.0 * 14.0 * 9.0 * 32.0 * 64.0;
        assert_eq!(of("conv2d", "[512, 14, 14, 32] x [3, 3, 32, 64]", flops), (512.0 * 196.0 * 64.0, 288.0));
        assert_eq!(of("conv2d_grad_input", "[512, 14, 14, 64] x [3, 3, 32, 64]", flops), (512.0 * 196.0 * 32.0, 576.0));
        assert_eq!(of("conv2d_grad_weight", "[512, 14, 14, 32] x [512, 14, 14, 64]", flops), (9.0 * 32.0 * 64.0, 512.0 * 196.0));
    }

    /// Every timed product and convolution of the record is met by the regression over all of them.
    #[test]
    fn what_was_timed_is_predicted_on_the_gpu_that_was_timed() {
        let rates = KernelRates::shipped();
        let text = include_str!("../../../reports/gpu/nvidia-h200-kernels.json");
        let run: KernelRun = serde_json::from_str(text).unwrap();
        let gpu = rates.gpu.clone();
        let errors: Vec<f64> = run
            .kernels
            .iter()
            .filter(|row| OPS.iter().any(|(op, ..)| *op == row.op))
            .map(|row| {
                let (seconds, _) = rates.work(&op(&row.op, &row.shape, row.dtype, row.flops, row.bytes), &gpu, 0.0).unwrap();
                (seconds / median(&row.call_s).unwrap()).ln().abs()
            })
            .collect();
        assert!(errors.len() > 80 && median(&errors).unwrap() < 0.15, "{} rows, {:?}", errors.len(), median(&errors));
    }

    #[test]
    fn another_gpu_is_as_far_below_its_own_roof() {
        let (rates, book) = (KernelRates::shipped(), HardwareBook::shipped());
        let of = |name: &str, op: &CountedOp| rates.work(op, book.find(name).unwrap(), 2e-6).map(|(seconds, _)| seconds);
        let large = op("matmul", "[4096, 4096] x [4096, 4096]", DType::Bf16, 2 << 36, 3 << 25);
        let [h200, a100] = ["h200-sxm-141gb", "a100-sxm-80gb"].map(|name| of(name, &large).unwrap());
        assert!((a100 / h200 / (989.4 / 312.0) - 1.0).abs() < 0.03, "{}", a100 / h200);
        let elements = op("relu", "[67108864]", DType::F32, 1 << 26, 1 << 29);
        let [h200, a100] = ["h200-sxm-141gb", "a100-sxm-80gb"].map(|name| of(name, &elements).unwrap());
        assert!((a100 / h200 / (4800.0 / 2039.0) - 1.0).abs() < 0.01, "{}", a100 / h200);
        // Where neither GPU is filled, it is the speed of one multiprocessor that counts.
        let small = op("matmul", "[16, 64] x [64, 16]", DType::Bf16, 2 * 16 * 64 * 16, 6000);
        let [h200, b200] = ["h200-sxm-141gb", "b200"].map(|name| of(name, &small).unwrap());
        assert!((h200 / b200 / (2250.0 / 989.4 * 132.0 / 148.0) - 1.0).abs() < 0.05, "{}", h200 / b200);
    }

    #[test]
    fn what_nobody_timed_is_refused_with_its_name() {
        let (rates, book) = (KernelRates::shipped(), HardwareBook::shipped());
        let h200 = book.find("h200-sxm-141gb").unwrap();
        let int8 = op("linear_int8", "[64, 64] x [64, 64]", DType::F32, 1000, 1000);
        let message = rates.work(&int8, h200, 0.0).unwrap_err().to_string();
        assert!(message.contains("`linear_int8`") && message.contains("h200-sxm-141gb"), "{message}");
        let fp32 = op("matmul", "[64, 64] x [64, 64]", DType::F32, 2 << 18, 3 << 14);
        let message = rates.work(&fp32, book.find("h20-96gb").unwrap(), 0.0).unwrap_err().to_string();
        assert!(message.contains("no f32 peak") || message.contains("no fp32 peak"), "{message}");
    }
}
