//! The plain families: words that carry no number.

use super::{RowKind, Vocabulary, Word};
use serde::{Deserialize, Serialize};

/// Type of an element in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    F32,
    Bf16,
    F16,
    I32,
    I8,
    U8,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::Bf16 | DType::F16 => 2,
            DType::I8 | DType::U8 => 1,
        }
    }

    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::Bf16 | DType::F16)
    }
}

impl Vocabulary for DType {
    const KIND: &'static str = "element type";
    const WORDS: &'static [Word<Self>] = &[
        Word { value: DType::F32, name: "f32", aliases: &[], about: "IEEE 754 binary32" },
        Word { value: DType::Bf16, name: "bf16", aliases: &[], about: "bfloat16: 8 exponent bits, 7 fraction bits" },
        Word { value: DType::F16, name: "f16", aliases: &[], about: "IEEE 754 binary16" },
        Word { value: DType::I32, name: "i32", aliases: &[], about: "32-bit signed integer" },
        Word { value: DType::I8, name: "i8", aliases: &[], about: "8-bit signed integer" },
        Word { value: DType::U8, name: "u8", aliases: &[], about: "8-bit unsigned integer" },
    ];
}

/// Numeric format of compute and storage. Mixed forms keep fp32 master weights and accumulate in fp32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    Fp32,
    Bf16,
    Fp16,
    Tf32,
    Fp8,
}

impl Precision {
    /// Element type in which activations and weights are stored during compute. Numbers of fp8 lie in bf16, which holds each of them times
    /// any power of two exactly, as it holds what is not rounded to 8 bits in half the memory of fp32.
    pub const fn storage(self) -> DType {
        match self {
            Precision::Fp32 | Precision::Tf32 => DType::F32,
            Precision::Bf16 | Precision::Fp8 => DType::Bf16,
            Precision::Fp16 => DType::F16,
        }
    }
}

impl Vocabulary for Precision {
    const KIND: &'static str = "precision";
    const WORDS: &'static [Word<Self>] = &[
        Word { value: Precision::Fp32, name: "fp32", aliases: &["f32", "float32"], about: "single precision throughout" },
        Word {
            value: Precision::Bf16,
            name: "bf16",
            aliases: &["bfloat16"],
            about: "bfloat16 storage, fp32 accumulation and master weights",
        },
        Word {
            value: Precision::Fp16,
            name: "fp16",
            aliases: &["f16", "float16", "half"],
            about: "half storage, fp32 accumulation and master weights, dynamic loss scaling",
        },
        Word {
            value: Precision::Tf32,
            name: "tf32",
            aliases: &["tensorfloat32"],
            about: "fp32 storage, products on tensor cores of operands rounded to 10 fraction bits (CUDA only)",
        },
        Word {
            value: Precision::Fp8,
            name: "fp8",
            aliases: &["float8"],
            about: "products of e4m3 numbers (gradients: e5m2) with delayed scaling, bf16 storage, fp32 accumulation and master weights; \
                    emulated on a processor: its quality is measured there, its speed is not",
        },
    ];
}

/// What a candidate does: learn, or answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Train,
    Infer,
}

impl Vocabulary for Phase {
    const KIND: &'static str = "phase";
    const WORDS: &'static [Word<Self>] = &[
        Word { value: Phase::Train, name: "train", aliases: &["training"], about: "forward, backward and optimizer step" },
        Word { value: Phase::Infer, name: "infer", aliases: &["inference"], about: "forward only, from trained weights" },
    ];
}

/// Kind of work; picks the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    ImageClassification,
    TextClassification,
}

impl Task {
    /// What its rows are.
    pub const fn rows(self) -> RowKind {
        match self {
            Task::ImageClassification => RowKind::Image,
            Task::TextClassification => RowKind::Text,
        }
    }
}

impl Vocabulary for Task {
    const KIND: &'static str = "task";
    const WORDS: &'static [Word<Self>] = &[
        Word { value: Task::ImageClassification, name: "image-classification", aliases: &[], about: "one class an image" },
        Word {
            value: Task::TextClassification,
            name: "text-classification",
            aliases: &["sentiment"],
            about: "one class a text, its sentiment for one",
        },
    ];
}

/// Update rule of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    Sgd,
    Adam,
    Adamw,
    Rmsprop,
}

impl Vocabulary for OptimizerKind {
    const KIND: &'static str = "optimizer";
    const WORDS: &'static [Word<Self>] = &[
        Word { value: OptimizerKind::Sgd, name: "sgd", aliases: &[], about: "stochastic gradient descent with momentum" },
        Word { value: OptimizerKind::Adam, name: "adam", aliases: &[], about: "Adam (Kingma & Ba 2015)" },
        Word {
            value: OptimizerKind::Adamw,
            name: "adamw",
            aliases: &[],
            about: "Adam with decoupled weight decay (Loshchilov & Hutter 2019)",
        },
        Word { value: OptimizerKind::Rmsprop, name: "rmsprop", aliases: &[], about: "RMSProp (Tieleman & Hinton 2012)" },
    ];
}

/// Initialisation of weights; biases start at zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InitKind {
    Uniform,
    Gaussian,
    Xavier,
    He,
}

impl Vocabulary for InitKind {
    const KIND: &'static str = "initialisation";
    const WORDS: &'static [Word<Self>] = &[
        Word { value: InitKind::Uniform, name: "uniform", aliases: &["random"], about: "uniform in [-0.05, 0.05]" },
        Word { value: InitKind::Gaussian, name: "gaussian", aliases: &["normal"], about: "normal, standard deviation 0.05" },
        Word {
            value: InitKind::Xavier,
            name: "xavier",
            aliases: &["glorot"],
            about: "uniform, bound sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010)",
        },
        Word {
            value: InitKind::He,
            name: "he",
            aliases: &["kaiming"],
            about: "normal, standard deviation sqrt(2 / fan_in) (He et al. 2015)",
        },
    ];
}

/// How the learning rate goes over a training run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    #[default]
    Constant,
    Cosine,
    Linear,
}

impl Schedule {
    /// Factor on the learning rate at a step of a run of `steps` steps.
    pub fn factor(self, step: usize, steps: usize) -> f64 {
        let done = (step as f64 / steps.max(1) as f64).min(1.0);
        match self {
            Schedule::Constant => 1.0,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            Schedule::Linear => 1.0 - done,
        }
    }
}

impl Vocabulary for Schedule {
    const KIND: &'static str = "schedule";
    const WORDS: &'static [Word<Self>] = &[
        Word { value: Schedule::Constant, name: "constant", aliases: &[], about: "one learning rate throughout" },
        Word {
            value: Schedule::Cosine,
            name: "cosine",
            aliases: &[],
            about: "half a cosine from the learning rate down to zero (Loshchilov & Hutter 2017, one cycle)",
        },
        Word { value: Schedule::Linear, name: "linear", aliases: &[], about: "from the learning rate down to zero in a line" },
    ];
}

/// Random change of a training image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Augmentation {
    Flip,
    Rotate,
    Scale,
}

impl Vocabulary for Augmentation {
    const KIND: &'static str = "augmentation";
    const WORDS: &'static [Word<Self>] = &[
        Word { value: Augmentation::Flip, name: "flip", aliases: &["mirror"], about: "left-right mirror, one in two" },
        Word {
            value: Augmentation::Rotate,
            name: "rotate",
            aliases: &[],
            about: "rotation by up to 10 degrees either way, bilinear",
        },
        Word {
            value: Augmentation::Scale,
            name: "scale",
            aliases: &["zoom"],
            about: "scale by 0.9 to 1.1 about the centre, bilinear",
        },
    ];
}

/// What the pick optimises once every constraint holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    Cost,
    Time,
    Energy,
    Memory,
    Throughput,
    Accuracy,
}

impl Objective {
    /// True for the words that stand after `maximise`; the others stand after `minimise`.
    pub const fn is_maximised(self) -> bool {
        matches!(self, Objective::Throughput | Objective::Accuracy)
    }
}

impl Vocabulary for Objective {
    const KIND: &'static str = "objective";
    const WORDS: &'static [Word<Self>] = &[
        Word {
            value: Objective::Cost,
            name: "cost",
            aliases: &[],
            about: "dollars per million units (training: dollars to target)",
        },
        Word {
            value: Objective::Time,
            name: "time",
            aliases: &["latency"],
            about: "median latency of a step (training: seconds to target)",
        },
        Word { value: Objective::Energy, name: "energy", aliases: &[], about: "joules per unit" },
        Word { value: Objective::Memory, name: "memory", aliases: &[], about: "peak memory of the worker" },
        Word { value: Objective::Throughput, name: "throughput", aliases: &[], about: "units a second" },
        Word { value: Objective::Accuracy, name: "accuracy", aliases: &[], about: "the task's primary metric" },
    ];
}
