#!/usr/bin/env python3
"""Records scikit-learn's and scipy's answers for our classification metrics and tests. Writes sklearn_metrics.json beside it.

    python3 -m venv .venv && .venv/bin/pip install numpy scikit-learn
    .venv/bin/python tests/reference/sklearn_metrics.py

`cases`: small random predictions, made to be awkward. Scores are rounded to two digits, so ties are common; some cases lack a
class among the true labels, among the predicted ones, or both; some have rows of one class alone, or a single row.
    y_true, y_pred   class numbers, 0 .. classes - 1. y_pred is drawn on its own, so it need not be the largest score's class.
    scores           multiclass: one list of `classes` scores a row; binary: the score of class 1
    precision, recall, f1   {micro, macro, macro_seen, per_class}; 0 / 0 counts as 0. `macro` is the mean over every class 0 ..
                     classes - 1, also one that neither list holds (scikit-learn with labels = all classes); `macro_seen` over
                     the classes that y_true or y_pred holds (scikit-learn without labels).
    confusion        [true][predicted]
    roc_auc          binary: the area; multiclass: {per_class, macro}, each class against the rest by its own column of scores. A class
                     that no row has, or that every row has, has no area: null; macro is the mean of those that have one, or null.
    roc_curve        where present (class 1, or the class given): false and true positive rate at every threshold, ties merged,
                     from (0, 0) to (1, 1): roc_curve with drop_intermediate=False. Its first threshold is infinite: null.

`mcnemar`: exact two-sided p for b and c discordant rows: min(1, 2 P(X <= min(b, c))), X ~ binomial(b + c, 1/2); b + c = 0 gives 1.
`intervals`: of k hits in n, at confidence 0.95 or 0.99: Clopper-Pearson (beta quantiles; 0 and 1 at the ends) and Wilson without
continuity correction (scipy's normal quantile), both from scipy's binomtest.
"""
import json
import pathlib

import numpy as np
import scipy
import sklearn
from scipy import stats
from sklearn import metrics

SEED = 7
# name, classes, rows, classes that y_true may hold, classes that y_pred may hold, how good the scores are, curve of class
CASES = [
    ("binary-good", 2, 60, [0, 1], [0, 1], 1.5, 1),
    ("binary-fair", 2, 40, [0, 1], [0, 1], 0.6, 1),
    ("binary-noise", 2, 50, [0, 1], [0, 1], 0.0, 1),
    ("binary-perfect", 2, 20, [0, 1], [0, 1], 9.0, 1),
    ("binary-reversed", 2, 30, [0, 1], [0, 1], -1.5, 1),
    ("binary-rare", 2, 60, [0, 0, 0, 0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1], 0.8, 1),
    ("binary-no-positive-true", 2, 25, [0], [0, 1], 0.5, None),
    ("binary-no-negative-true", 2, 25, [1], [0, 1], 0.5, None),
    ("binary-no-positive-predicted", 2, 30, [0, 1], [0], 0.5, 1),
    ("binary-one-class-only", 2, 20, [0], [0], 0.5, None),
    ("binary-all-scores-equal", 2, 24, [0, 1], [0, 1], None, 1),
    ("binary-one-row", 2, 1, [1], [1], 0.5, None),
    ("three-good", 3, 45, [0, 1, 2], [0, 1, 2], 1.5, 2),
    ("three-fair", 3, 30, [0, 1, 2], [0, 1, 2], 0.6, None),
    ("three-missing-in-true", 3, 40, [0, 2], [0, 1, 2], 0.8, 0),
    ("three-missing-in-predicted", 3, 40, [0, 1, 2], [0, 1], 0.8, None),
    ("three-missing-in-both", 3, 30, [0, 2], [0, 2], 0.8, None),
    ("three-one-true-class", 3, 20, [1], [0, 1, 2], 0.5, None),
    ("three-disjoint", 3, 20, [0, 1], [2], 0.5, None),
    ("four-rare", 4, 60, [0, 0, 0, 0, 0, 1, 1, 1, 2, 3], [0, 0, 1, 2, 3], 0.7, None),
    ("five-fair", 5, 60, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4], 0.6, 3),
    ("five-all-scores-equal", 5, 25, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4], None, None),
    ("ten-fair", 10, 60, list(range(10)), list(range(10)), 1.0, None),
    ("ten-missing", 10, 40, [0, 1, 3, 4, 7, 9], [0, 2, 3, 4, 8, 9], 0.7, None),
]
MCNEMAR = [(0, 0), (1, 0), (0, 1), (0, 5), (5, 0), (0, 6), (1, 5), (3, 3), (4, 5), (2, 9), (1, 8), (10, 3), (8, 21), (25, 25),
           (12, 40), (60, 41), (100, 70), (500, 430), (3, 60), (0, 100), (1000, 1100)]
INTERVALS = [(0, 1), (1, 1), (0, 10), (1, 10), (5, 10), (10, 10), (3, 29), (17, 20), (97, 100), (499, 500), (1951, 1996),
             (1996, 1996), (8955, 10000), (1, 100000)]


def scores_of(generator, y_true, classes, strength):
    if strength is None:
        return np.full((len(y_true), classes), round(1 / classes, 2))
    logits = generator.normal(size=(len(y_true), classes))
    logits[np.arange(len(y_true)), y_true] += strength
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return np.round(exponentials / exponentials.sum(1, keepdims=True), 2)


def area(is_class, scores):
    if is_class.all() or not is_class.any():
        return None
    return float(metrics.roc_auc_score(is_class, scores))


def averages(function, y_true, y_pred, labels):
    how = {"labels": labels, "zero_division": 0}
    return {
        "micro": float(function(y_true, y_pred, average="micro", **how)),
        "macro": float(function(y_true, y_pred, average="macro", **how)),
        "macro_seen": float(function(y_true, y_pred, average="macro", zero_division=0)),
        "per_class": [float(x) for x in function(y_true, y_pred, average=None, **how)],
    }


def case(generator, name, classes, rows, true_from, pred_from, strength, curve_of):
    y_true = generator.choice(true_from, rows)
    # Every class named is there at least once, so that "missing" cases miss just what they say.
    y_true[: min(rows, len(set(true_from)))] = list(dict.fromkeys(true_from))[:rows]
    # Two thirds right where the true class may be predicted.
    y_pred = np.where((generator.random(rows) < 0.67) & np.isin(y_true, pred_from), y_true, generator.choice(pred_from, rows))
    scores = scores_of(generator, y_true, classes, strength)
    labels = list(range(classes))
    out = {
        "name": name, "classes": classes, "y_true": y_true.tolist(), "y_pred": y_pred.tolist(),
        "scores": scores[:, 1].tolist() if classes == 2 else scores.tolist(),
        "accuracy": float(metrics.accuracy_score(y_true, y_pred)),
        "precision": averages(metrics.precision_score, y_true, y_pred, labels),
        "recall": averages(metrics.recall_score, y_true, y_pred, labels),
        "f1": averages(metrics.f1_score, y_true, y_pred, labels),
        "confusion": metrics.confusion_matrix(y_true, y_pred, labels=labels).tolist(),
    }
    if classes == 2:
        out["roc_auc"] = area(y_true == 1, scores[:, 1])
    else:
        per_class = [area(y_true == label, scores[:, label]) for label in labels]
        defined = [x for x in per_class if x is not None]
        out["roc_auc"] = {"per_class": per_class, "macro": float(np.mean(defined)) if defined else None}
    if curve_of is not None:
        fpr, tpr, thresholds = metrics.roc_curve(y_true == curve_of, scores[:, curve_of], drop_intermediate=False)
        out["roc_curve"] = {
            "class": curve_of, "fpr": fpr.tolist(), "tpr": tpr.tolist(), "thresholds": [None, *thresholds[1:].tolist()],
        }
    return out


def mcnemar(b, c):
    p = 1.0 if b + c == 0 else min(1.0, 2 * float(stats.binom.cdf(min(b, c), b + c, 0.5)))
    if b + c > 0:
        assert np.isclose(p, stats.binomtest(b, b + c, 0.5).pvalue, rtol=1e-12), (b, c)
    return {"b": b, "c": c, "p": p}


def interval(k, n, confidence):
    test = stats.binomtest(k, n)
    exact, wilson = (test.proportion_ci(confidence, method) for method in ("exact", "wilson"))
    return {"k": k, "n": n, "confidence": confidence, "clopper_pearson": [float(exact.low), float(exact.high)],
            "wilson": [float(wilson.low), float(wilson.high)]}


def main():
    generator = np.random.default_rng(SEED)
    out = {
        "sklearn": sklearn.__version__, "scipy": scipy.__version__, "numpy": np.__version__, "seed": SEED,
        "cases": [case(generator, *spec) for spec in CASES],
        "mcnemar": [mcnemar(b, c) for b, c in MCNEMAR],
        "intervals": [interval(k, n, confidence) for confidence in (0.95, 0.99) for k, n in INTERVALS],
    }
    path = pathlib.Path(__file__).resolve().parent / "sklearn_metrics.json"
    # Compact, but one entry a line, so that a change shows as the lines that changed.
    parts = []
    for key, value in out.items():
        if isinstance(value, list):
            entries = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in value)
            parts.append(f'"{key}":[\n{entries}\n]')
        else:
            parts.append(f'"{key}":{json.dumps(value)}')
    path.write_text("{" + ",\n".join(parts) + "}\n")
    json.loads(path.read_text())
    print(f"{len(out['cases'])} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
