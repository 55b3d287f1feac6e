//! The measures of quality: name, direction, how to print.

use super::{Vocabulary, Word};
use serde::{Deserialize, Serialize};

/// A quality metric of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    Accuracy,
    PrecisionMacro,
    RecallMacro,
    F1Macro,
    PrecisionMicro,
    RecallMicro,
    F1Micro,
    RocAucMacro,
}

/// Which direction of a metric is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    More,
    Less,
}

/// How a metric is judged and printed.
pub struct MetricFacts {
    pub better: Better,
    /// Title in tables and plots.
    pub title: &'static str,
    pub decimals: usize,
}

impl Metric {
    pub const fn facts(self) -> MetricFacts {
        let title = match self {
            Metric::Accuracy => "accuracy",
            Metric::PrecisionMacro => "precision (macro)",
            Metric::RecallMacro => "recall (macro)",
            Metric::F1Macro => "F1 (macro)",
            Metric::PrecisionMicro => "precision (micro)",
            Metric::RecallMicro => "recall (micro)",
            Metric::F1Micro => "F1 (micro)",
            Metric::RocAucMacro => "ROC-AUC (macro)",
        };
        MetricFacts { better: Better::More, title, decimals: 4 }
    }
}

impl Vocabulary for Metric {
    const KIND: &'static str = "metric";
    const WORDS: &'static [Word<Self>] = &[
        Word { value: Metric::Accuracy, name: "accuracy", aliases: &[], about: "share of rows answered correctly" },
        Word {
            value: Metric::PrecisionMacro,
            name: "precision_macro",
            aliases: &["precision"],
            about: "mean over classes of true positives among predicted positives",
        },
        Word {
            value: Metric::RecallMacro,
            name: "recall_macro",
            aliases: &["recall"],
            about: "mean over classes of true positives among actual positives",
        },
        Word {
            value: Metric::F1Macro,
            name: "f1_macro",
            aliases: &["f1"],
            about: "mean over classes of the harmonic mean of precision and recall",
        },
        Word { value: Metric::PrecisionMicro, name: "precision_micro", aliases: &[], about: "precision of all decisions pooled" },
        Word { value: Metric::RecallMicro, name: "recall_micro", aliases: &[], about: "recall of all decisions pooled" },
        Word { value: Metric::F1Micro, name: "f1_micro", aliases: &[], about: "F1 of all decisions pooled" },
        Word {
            value: Metric::RocAucMacro,
            name: "roc_auc_macro",
            aliases: &["roc_auc", "auc"],
            about: "mean over classes of the one-vs-rest area under the ROC curve",
        },
    ];
}
