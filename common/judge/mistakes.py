"""Where the chosen networks err: classes, pairs, confidence, images, and those that nobody gets.

Works on stored predictions ("held"): label, pred, classes and index by image, and logits where they
were stored. The images come from the data folder, and are never fetched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.base.cli import UsageError, find_name
from common.base.config import DATASETS
from common.data.fetch import read_dataset
from common.judge.rows import Group, Row, display, distinct, pick_best, slug
from common.judge.stats import wilson_interval
from common.judge.tables import Table, make_table

BINS = 15  # of confidence, as in Guo et al.
PAIRS = 10
GALLERY = 24  # images
NO_LOGITS = "Confidence not stored: the predictions file of this run holds labels alone."
Held = Mapping[str, Any]


@dataclass(frozen=True)
class Errors:
    """What is known of one chosen run's mistakes.

    `worst` and `nobody` are records of test images, each with its `index` into the data set;
    `voters` is the number of runs that `nobody` is about. `images` has their pixels by index, and
    is empty where `no_images` says why.
    """

    dataset: str
    run_id: str
    held: Held
    confidence: np.ndarray | None
    bins: list[Row]
    worst: list[Row]
    nobody: list[Row]
    voters: int
    images: dict[int, np.ndarray]
    no_images: str

    @property
    def key(self) -> str:
        """Part of the names of its files."""
        return f"{slug(self.dataset)}_{slug(self.run_id)}"

    @property
    def name(self) -> str:
        """Its data set and run, for titles."""
        return f"{display(self.dataset)}, run {self.run_id}"


def build_errors(
    train: Sequence[Row], predictions: Mapping[str, Held], data_dir: str | Path
) -> list[Errors]:
    """The errors of each configuration chosen on validation, where its predictions are held.

    `train` may hold support vector machines: they vote on the images that nobody gets.
    """
    chosen = pick_best([row for row in train if row["kind"] == "train"])
    return [
        _errors_of(group, train, predictions, data_dir)
        for group in chosen
        if group.first()["run_id"] in predictions
    ]


def _errors_of(
    group: Group, rows: Sequence[Row], predictions: Mapping[str, Held], data_dir: str | Path
) -> Errors:
    run, dataset = group.first()["run_id"], str(group.config.get("dataset"))
    held = predictions[run]
    confidence = confidences(held)
    mine = [row for row in rows if row["config"].get("dataset") == dataset]
    peers = [predictions[row["run_id"]] for row in distinct(mine) if row["run_id"] in predictions]
    peers = [peer for peer in peers if same_images(peer, held)]
    nobody = wrong_everywhere(held, peers)
    worst = [] if confidence is None else confident_mistakes(held, confidence)
    wanted = {record["index"] for record in [*worst, *nobody[:GALLERY]]}
    size = group.config.get("image_size")
    images, why = load_images(dataset, size, held, wanted, data_dir) if wanted else ({}, "")
    bins = [] if confidence is None else reliability(confidence, held["pred"] == held["label"])
    return Errors(dataset, run, held, confidence, bins, worst, nobody, len(peers), images, why)


# --- classes --------------------------------------------------------------------------------------


def confusion_matrix(held: Held) -> np.ndarray:
    """Counts of test images. Shapes: (C, C), true class by predicted class."""
    size = len(held["classes"])
    flat = held["label"].astype(np.int64) * size + held["pred"]
    return np.bincount(flat, minlength=size * size).reshape(size, size)


def class_records(held: Held) -> list[Row]:
    """Recall, precision and the likeliest mistake of each class."""
    matrix = confusion_matrix(held)
    records = []
    for i, name in enumerate(held["classes"]):
        wrong = np.where(np.arange(len(matrix)) == i, 0, matrix[i])
        worst = int(wrong.argmax())
        images, predicted = int(matrix[i].sum()), int(matrix[:, i].sum())
        records.append({
            "class": str(name),
            "images": images,
            "recall": float(matrix[i, i] / images) if images else None,
            "class_precision": float(matrix[i, i] / predicted) if predicted else None,
            "confused_with": f"{held['classes'][worst]} ({wrong[worst]})" if wrong.any() else None,
        })  # fmt: skip
    return records


def confused_pairs(held: Held) -> list[Row]:
    """The pairs of classes that most mistakes are between, in either direction."""
    matrix, names = confusion_matrix(held), held["classes"]
    mistakes = int(matrix.sum() - np.trace(matrix))
    pairs = [
        (int(matrix[i, j]), int(matrix[j, i]), str(names[i]), str(names[j]))
        for i in range(len(matrix))
        for j in range(i + 1, len(matrix))
        if matrix[i, j] + matrix[j, i]
    ]
    pairs.sort(key=lambda pair: -(pair[0] + pair[1]))
    return [
        {"class": a, "other_class": b, "mistakes": there + back, "there": there, "back": back,
         "share": (there + back) / mistakes}
        for there, back, a, b in pairs[:PAIRS]
    ]  # fmt: skip


# --- confidence -----------------------------------------------------------------------------------


def confidences(held: Held) -> np.ndarray | None:
    """Softmax probability of each predicted class; None where no logits were stored."""
    if "logits" not in held:
        return None
    logits = held["logits"].astype(np.float64)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds[np.arange(len(odds)), held["pred"]] / odds.sum(axis=1)


def reliability(confidence: np.ndarray, correct: np.ndarray) -> list[Row]:
    """Accuracy beside mean confidence in each bin of confidence that has images.

    Bins are of equal width and hold their upper edge.
    Source: Guo et al., On Calibration of Modern Neural Networks (2017), section 2.
    """
    edges = np.linspace(0, 1, BINS + 1)
    place = np.searchsorted(edges[1:-1], confidence)
    records = []
    for i in np.unique(place):
        here = place == i
        right, total = int(correct[here].sum()), int(here.sum())
        low, high = wilson_interval(right, total)
        records.append({
            "bin_low": float(edges[i]), "bin_high": float(edges[i + 1]), "images": total,
            "confidence": float(confidence[here].mean()), "accuracy": right / total,
            "accuracy_low": low, "accuracy_high": high,
        })  # fmt: skip
    return records


def expected_calibration_error(bins: Sequence[Row]) -> float:
    """Mean over images of the distance of their bin's accuracy from its mean confidence."""
    total = sum(b["images"] for b in bins)
    return sum(b["images"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / total


# --- images ---------------------------------------------------------------------------------------


def _image_record(held: Held, i: int) -> Row:
    """A test image by its position in the split."""
    names = held["classes"]
    return {
        "index": int(held["index"][i]), "class": str(names[held["label"][i]]),
        "taken_for": str(names[held["pred"][i]]),
    }  # fmt: skip


def confident_mistakes(held: Held, confidence: np.ndarray) -> list[Row]:
    """The mistakes of highest confidence, the surest first."""
    wrong = np.flatnonzero(held["pred"] != held["label"])
    order = wrong[np.argsort(-confidence[wrong], kind="stable")][:GALLERY]
    return [_image_record(held, i) | {"confidence": float(confidence[i])} for i in order]


def same_images(a: Held, b: Held) -> bool:
    """Whether two runs were tested on the same images in the same order."""
    return np.array_equal(a["index"], b["index"]) and np.array_equal(a["label"], b["label"])


def wrong_everywhere(held: Held, peers: Sequence[Held]) -> list[Row]:
    """The images that each of the peers gets wrong; none where there are not two to agree.

    Those that most peers take for the same class come first: there the label may be wrong.
    """
    if len(peers) < 2:
        return []
    votes = np.stack([peer["pred"] for peer in peers])
    records = []
    for i in np.flatnonzero((votes != held["label"]).all(axis=0)):
        count = np.bincount(votes[:, i])
        records.append(_image_record(held, i) | {
            "taken_for": str(held["classes"][count.argmax()]), "agreed": int(count.max()),
        })  # fmt: skip
    return sorted(records, key=lambda record: -record["agreed"])


def load_images(
    dataset: str, image_size: int | None, held: Held, wanted: set[int], data_dir: str | Path
) -> tuple[dict[int, np.ndarray], str]:
    """Pixels of some images by index, or one line that says why there are none.

    Shapes: each (H, W) or, in colour, (H, W, 3) uint8.
    """
    if not find_name(dataset, DATASETS):
        return {}, f"The images are not shown: {dataset} is no data set of this version."
    try:
        data = read_dataset(dataset, data_dir, image_size, fetch=False)
    except (UsageError, ValueError, OSError) as error:
        return {}, f"The images are not shown: {error}"
    index, labels = held["index"], data.labels
    if index.min() < 0 or index.max() >= len(labels) or (labels[index] != held["label"]).any():
        return {}, "The images are not shown: the data set is not the one that was predicted."
    images = data.images[:, 0] if data.images.shape[1] == 1 else data.images.transpose(0, 2, 3, 1)
    return {i: images[i] for i in sorted(wanted)}, ""


# --- tables ---------------------------------------------------------------------------------------


def error_tables(errors: Sequence[Errors]) -> list[Table]:
    """Every table of the section."""
    summary = [
        {
            "dataset": e.dataset, "run_id": e.run_id, "images": len(e.held["label"]),
            "mistakes": int((e.held["pred"] != e.held["label"]).sum()),
            "accuracy": float((e.held["pred"] == e.held["label"]).mean()),
            "confidence": None if e.confidence is None else float(e.confidence.mean()),
            "ece": expected_calibration_error(e.bins) if e.bins else None,
            "nobody": len(e.nobody) if e.voters > 1 else None,
        }
        for e in errors
    ]  # fmt: skip
    tables = [make_table(
        "errors", "calibration", "Mistakes and confidence of the chosen networks",
        "dataset run_id images mistakes accuracy confidence ece nobody", summary,
        f"ECE: expected calibration error in {BINS} bins of equal width: how far confidence is "
        "from accuracy, on average over the test images.",
        *(f"{e.name}: {NO_LOGITS}" for e in errors if e.confidence is None),
        missing=not errors,
    )]  # fmt: skip
    for e in errors:
        tables += _tables_of(e)
    return tables


def _tables_of(e: Errors) -> list[Table]:
    more = len(e.nobody) - GALLERY
    said = (
        f"{len(e.nobody)} of {len(e.held['label'])} test images are missed by all {e.voters} runs "
        "whose predictions on this split are stored."
        if e.voters > 1
        else "Only one model's predictions on this split are stored."
    )
    return [
        make_table(
            "errors", f"classes_{e.key}", f"{e.name}: classes",
            "class images recall class_precision confused_with", class_records(e.held),
        ),
        make_table(
            "errors", f"pairs_{e.key}", f"{e.name}: classes most often confused",
            "class other_class mistakes there back share", confused_pairs(e.held),
            "Share: of all mistakes.",
        ),
        make_table(
            "errors", f"reliability_{e.key}", f"{e.name}: accuracy by confidence",
            "bin_low bin_high images confidence accuracy accuracy_low accuracy_high", e.bins,
            "" if e.bins else NO_LOGITS,
        ),
        make_table(
            "errors", f"worst_{e.key}", f"{e.name}: most confident mistakes",
            "index class taken_for confidence", e.worst,
            "" if e.confidence is not None else NO_LOGITS, e.no_images,
        ),
        make_table(
            "errors", f"nobody_{e.key}", f"{e.name}: missed by every model",
            "index class taken_for agreed", e.nobody[:GALLERY], said,
            f"The {more} others are not listed." if more > 0 else "",
        ),
    ]  # fmt: skip
