"""How good answers are where classes are unequal: balanced accuracy is the mean recall of the
classes, macro F1 the mean of their F1 scores; and how sure that is.
All is of counts of answers, (C, C), true class by predicted one. As scikit-learn has it, classes
without images have no recall, those never predicted either no F1 score."""

from collections.abc import Iterable, Mapping
from statistics import NormalDist
from typing import Any

import numpy as np

from common.base.config import METRICS

Z = NormalDist().inv_cdf(0.975)


def count_answers(labels: Any, answers: Any, classes: int) -> np.ndarray:
    """Shapes: (N,), (N,) -> (C, C)."""
    places = np.asarray(labels, np.int64) * classes + np.asarray(answers, np.int64)
    return np.bincount(places, minlength=classes**2).reshape(classes, classes)


def rate(counts: np.ndarray) -> dict[str, float]:
    right, images, answers = counts.diagonal(), counts.sum(1), counts.sum(0)
    asked, either = images > 0, images + answers > 0
    f1 = 2 * right[either] / (images + answers)[either]
    return {"balanced": float((right[asked] / images[asked]).mean()), "f1": float(f1.mean())}


def slopes(counts: np.ndarray) -> dict[str, np.ndarray]:
    """By how much one answer moves each score from what its class gives on average, to first order.
    Shapes: (C, C)."""
    right, images, answers = counts.diagonal(), counts.sum(1), counts.sum(0)
    both = np.where(images + answers > 0, images + answers, np.inf)
    recall = np.where(images > 0, images, np.inf) * np.count_nonzero(images)
    f1 = (2 * np.diag(1 / both) - 2 * right / both**2) / np.isfinite(both).sum()
    moves = {"balanced": np.diag(1 / recall), "f1": f1}
    sizes = np.where(images > 0, images, 1)[:, None]
    return {name: s - (counts * s).sum(1, keepdims=True) / sizes for name, s in moves.items()}


def intervals(counts: np.ndarray) -> dict[str, list[float]]:
    """95 % intervals of both scores, over the test images of each class: of the normal distribution
    after four images were added, shared out among the classes, half of them answered rightly.
    Source: Price and Bonett, Computational Statistics & Data Analysis 45 (2004), 449-456, of
    balanced accuracy; of F1 the delta method. benchmarks/coverage.py simulates their coverage."""
    scores, known = rate(counts), counts.sum(0) + counts.sum(1) > 0
    counts = counts[known][:, known]
    n, images = len(counts), counts.sum(1, keepdims=True)
    added = np.where(np.eye(n), 0.5, 0.5 / max(1, n - 1)) * (images > 0)
    counts = counts + 4 / np.count_nonzero(images) * added
    ends, moves = {}, slopes(counts)
    for name, value in rate(counts).items():
        half = Z * float(np.sqrt((counts * moves[name] ** 2).sum()))
        low, high = max(0.0, value - half), min(1.0, value + half)
        ends[name] = [min(low, scores[name]), max(high, scores[name])]
    return ends


def parts_of(labels: np.ndarray, answers: np.ndarray, metric: str) -> np.ndarray:
    """Of each image its part in a score, which is the mean of all parts. Shapes: (N,) -> (N,)."""
    counts = count_answers(labels, answers, int(max(labels.max(), answers.max())) + 1)
    return rate(counts)[metric] + len(labels) * slopes(counts)[metric][labels, answers]


def score_part(labels: Any, answers: Any, classes: int, part: str) -> dict[str, Any]:
    """What a row says of a part: its scores; of the test part their intervals too."""
    counts = count_answers(labels, answers, classes)
    scores = {f"{part}_{name}": value for name, value in rate(counts).items()}
    ends = intervals(counts) if part == "test" else {}
    return scores | {f"{part}_{name}_interval": pair for name, pair in ends.items()}


def baseline(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The test scores, by METRICS, of always answering training's largest class: what a network has
    to beat. Nothing where classes are about equal, of which accuracy tells enough."""
    counts = metrics.get("class_counts") or {}
    totals = [sum(parts) for parts in zip(*counts.values(), strict=True)]
    if not totals or max(totals) <= 1.5 * min(totals):
        return {}
    acc, classes = metrics["majority_acc"], sum(n > 0 for n in counts["test"])
    return {"acc": acc, "balanced": (acc > 0) / classes, "f1": 2 * acc / (1 + acc) / classes}


def cells(metrics: Mapping[str, Any], metric: str) -> dict[str, str]:
    """What a table shows beside accuracies where they tell too little, or are not chosen by."""
    names = [f"val_{METRICS[metric]}"] * (metric != "accuracy")
    names += ["test_balanced", "test_f1"] if names or baseline(metrics) else []
    return {name.replace("_", " "): f"{metrics[name]:.4f}" for name in names if name in metrics}


def to_beat(rows: Iterable[Mapping[str, Any]]) -> str:
    """Baselines of rows in words, a line each, below a table."""
    text = "\nto beat, always answering the largest class: accuracy {acc:.1%}"
    text += ", balanced accuracy {balanced:.1%}, macro F1 {f1:.1%}"
    known = filter(None, (baseline(row["metrics"]) for row in rows))
    return "".join(dict.fromkeys(text.format(**scores) for scores in known))
