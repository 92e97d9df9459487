"""Where the chosen networks err on the test images, by stored predictions: arrays label, pred and
index by image, logits where they were stored, and classes."""

import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from scipy.special import softmax

from common.base.cli import find_name
from common.base.config import DATASETS
from common.base.log import locate
from common.data.fetch import read_dataset
from common.data.scores import count_answers
from common.judge.rows import Row, distinct, division, pick_best, slug, split_name
from common.judge.stats import wilson_interval

BINS = 15  # of confidence, as in Guo et al.
GALLERY = 24  # images
MANY = 400  # test images of a class whose recall is known well enough
ARRAYS = ("pred", "label", "index", "classes")

Predictions = Mapping[str, np.ndarray]
Loaded = tuple[Predictions | None, str | None]  # or one line that says why there are none
Images = dict[int, np.ndarray]  # by index into the data set; (H, W) or, in colour, (H, W, 3) uint8


def load_predictions(folder: Path, row: Row, logits: bool = False) -> Loaded:
    """A run's predictions on the test images, with the stored logits if wanted."""
    name, run = row["metrics"].get("predictions"), f"run {row['run_id']}"
    if not isinstance(name, str):
        return None, f"{run}: the row names no predictions"
    try:
        content = io.BytesIO(locate(folder, name).read_bytes())
        with np.load(content, allow_pickle=False) as saved:
            more = {"files", "logits"} if logits else {"files"}
            arrays = {key: saved[key] for key in (*ARRAYS, *(more & set(saved)))}
        if len({len(array) for key, array in arrays.items() if key != "classes"}) > 1:
            raise ValueError("its arrays are not of one length")
        if arrays["index"].shape != arrays["label"].shape:
            raise ValueError("it does not name the image of each answer")
        used = np.stack([arrays["pred"], arrays["label"]])
        if used.size == 0 or used.min() < 0 or used.max() >= len(arrays["classes"]):
            raise ValueError("its classes are not those of its images")
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        return None, f"{run}: {name} cannot be used, {error}"
    accuracy, logged = np.mean(arrays["pred"] == arrays["label"]), row["metrics"].get("test_acc")
    if logged is None or abs(accuracy - logged) > 1e-6:
        return None, f"{run}: {name} has accuracy {accuracy:.6f}, the row {logged}"
    return arrays, None


@dataclass(frozen=True)
class Mistakes:
    """What one chosen run gets wrong; worst and nobody are records of test images."""

    key: str  # part of the names of its files
    where: str  # data set and split
    run_id: str
    predictions: Predictions
    right: np.ndarray
    confidence: np.ndarray | None  # softmax probability of each predicted class
    bins: list[Row]
    worst: list[Row]
    nobody: list[Row]
    voters: int  # runs that `nobody` is about
    images: Images  # that are shown
    no_images: str  # why there are none

    @property
    def name(self) -> str:
        return f"{self.where}, run {self.run_id}"


def find_mistakes(
    rows: Sequence[Row], predictions: Mapping[str, Predictions], data_dir: str | Path
) -> list[Mistakes]:
    """Those of each network chosen on validation whose predictions are known; SVMs vote too."""
    found = []
    for group in pick_best([row for row in rows if row["kind"] == "train"]):
        run, dataset = group.first()["run_id"], str(group.config.get("dataset"))
        if (own := predictions.get(run)) is None:
            continue
        contest = division(group.config)
        alike = distinct([row for row in rows if division(row["config"]) == contest])
        votes = [predictions[row["run_id"]] for row in alike if row["run_id"] in predictions]
        votes = [v for v in votes if all(np.array_equal(v[k], own[k]) for k in ("index", "label"))]
        nobody = wrong_everywhere(own, votes)
        right, confidence, bins, worst = own["pred"] == own["label"], None, [], []
        if "logits" in own:
            chances = softmax(own["logits"].astype(np.float64), axis=1)
            confidence = chances[np.arange(len(chances)), own["pred"]]
            bins, worst = reliability(confidence, right), confident_mistakes(own, confidence)
        shown = {record["index"] for record in [*worst, *nobody[:GALLERY]]}
        pixels = load_images(dataset, group.config.get("image_size"), own, shown, data_dir)
        names = f"{slug(dataset)}_{slug(run)}", split_name(group.config), run
        known = own, right, confidence, bins, worst, nobody, len(votes)
        found.append(Mistakes(*names, *known, *pixels))
    return found


def confusion(predictions: Predictions) -> np.ndarray:
    """Counts of test images. Shapes: (C, C), true class by predicted class."""
    return count_answers(predictions["label"], predictions["pred"], len(predictions["classes"]))


def class_records(predictions: Predictions) -> list[Row]:
    """Recall, precision and the likeliest mistake of each class."""
    names, matrix, records = predictions["classes"], confusion(predictions), []
    for i, name in enumerate(names):
        right, images, answers = matrix[i, i], matrix[i].sum(), matrix[:, i].sum()
        wrong = np.where(np.arange(len(names)) == i, 0, matrix[i])
        likeliest = f"{names[wrong.argmax()]} ({wrong.max()})" if wrong.any() else None
        record = {"class": str(name), "images": int(images), "confused_with": likeliest}
        record["recall"] = right / images if images else None
        if 0 < images < MANY:
            pair = wilson_interval(int(right), int(images))
            record |= zip(("recall_low", "recall_high"), pair, strict=True)
        records.append(record | {"class_precision": right / answers if answers else None})
    return records


def confused_pairs(predictions: Predictions) -> list[Row]:
    """The ten pairs of classes that most mistakes are between, in either direction."""
    names, matrix = predictions["classes"], confusion(predictions)
    mistakes, records = matrix.sum() - np.trace(matrix), []
    for i, j in np.argwhere(np.triu(matrix + matrix.T, 1)):
        there, back = int(matrix[i, j]), int(matrix[j, i])
        record = {"class": str(names[i]), "other_class": str(names[j]), "mistakes": there + back}
        records.append(record | {"there": there, "back": back, "share": (there + back) / mistakes})
    return sorted(records, key=lambda record: -record["mistakes"])[:10]


def reliability(confidence: np.ndarray, correct: np.ndarray) -> list[Row]:
    """Accuracy beside mean confidence in each bin of confidence that has images; bins are of equal
    width and hold their upper edge.
    Source: Guo et al., On Calibration of Modern Neural Networks (2017), section 2."""
    edges = np.linspace(0, 1, BINS + 1)
    place = np.searchsorted(edges[1:-1], confidence)
    records = []
    for i in np.unique(place):
        right, sure = correct[place == i], confidence[place == i]
        low, high = wilson_interval(int(right.sum()), len(right))
        record = {"bin_low": edges[i], "bin_high": edges[i + 1], "images": len(right)}
        record |= {"confidence": sure.mean(), "accuracy": int(right.sum()) / len(right)}
        records.append(record | {"accuracy_low": low, "accuracy_high": high})
    return records


def calibration_error(bins: Sequence[Row]) -> float:
    """Expected calibration error: mean over images of their bin's |accuracy - mean confidence|."""
    sizes = [b["images"] for b in bins]
    return np.average([abs(b["accuracy"] - b["confidence"]) for b in bins], weights=sizes)


def image_record(predictions: Predictions, i: int, taken_for: int) -> Row:
    """A test image, by its position among the predictions."""
    names, label = predictions["classes"], predictions["label"][i]
    record = {"index": int(predictions["index"][i]), "class": str(names[label])}
    record |= {"file": str(predictions["files"][i])} if "files" in predictions else {}
    return record | {"taken_for": str(names[taken_for])}


def confident_mistakes(predictions: Predictions, confidence: np.ndarray) -> list[Row]:
    """The mistakes of highest confidence, the surest first."""
    pred = predictions["pred"]
    wrong = np.flatnonzero(pred != predictions["label"])
    order = wrong[np.argsort(-confidence[wrong], kind="stable")][:GALLERY]
    return [image_record(predictions, i, pred[i]) | {"confidence": confidence[i]} for i in order]


def wrong_everywhere(own: Predictions, voters: Sequence[Predictions]) -> list[Row]:
    """The images that two or more voters all get wrong."""
    if len(voters) < 2:
        return []
    votes = np.stack([voter["pred"] for voter in voters])
    records = []
    for i in np.flatnonzero((votes != own["label"]).all(axis=0)):
        counts = np.bincount(votes[:, i])
        records.append(image_record(own, i, counts.argmax()) | {"agreed": int(counts.max())})
    return sorted(records, key=lambda record: -record["agreed"])  # labels that may be wrong first


def load_images(
    dataset: str, image_size: int | None, own: Predictions, wanted: set[int], data_dir: str | Path
) -> tuple[Images, str]:
    """Pixels of some images, never fetched, or one line that says why there are none."""
    if not wanted:
        return {}, ""
    try:
        if not find_name(dataset, DATASETS):
            raise ValueError(f"{dataset} is no data set of this version.")
        data = read_dataset(dataset, data_dir, image_size, fetch=False)
        index, labels = own["index"], data.labels
        if index.min() < 0 or index.max() >= len(labels) or (labels[index] != own["label"]).any():
            raise ValueError("the data set is not the one that was predicted.")
    except (ValueError, OSError) as error:
        return {}, f"The images are not shown: {error}"
    images = data.images[:, 0] if data.images.shape[1] == 1 else data.images.transpose(0, 2, 3, 1)
    return {i: images[i] for i in sorted(wanted)}, ""
