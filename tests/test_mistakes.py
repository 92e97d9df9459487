"""Mistakes of the chosen networks, against hand calculations."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from common.base.cli import as_dict
from common.base.config import SvmConfig, TrainConfig
from common.data import fetch
from common.data.datasets import load_dataset
from common.judge import mistakes
from common.judge.findings import sentences
from common.judge.stats import wilson_interval
from common.report.tables import mistake_tables


def predictions_of(label, pred, classes=3, **more):
    arrays = {"label": np.array(label, "int16"), "pred": np.array(pred, "int16")}
    names = np.array([f"c{i}" for i in range(classes)])
    return arrays | {"index": np.arange(len(label)), "classes": names} | more


def row_of(run_id, dataset="digits", kind="train", **metrics):
    config = as_dict((TrainConfig if kind == "train" else SvmConfig)(dataset=dataset))
    config["lr"] = len(run_id) + ord(run_id[-1]) / 1000  # rows of different configurations
    return {"run_id": run_id, "kind": kind, "config": config, "metrics": {"val_acc": 0.5} | metrics}


def found_in(rows, predictions):
    found = mistakes.find_mistakes(rows, predictions, "nowhere")
    return found, {table.key: table for table in mistake_tables(found)}


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(500, 4)).astype("float16")
    label = rng.integers(0, 4, 500)
    return predictions_of(label, logits.astype("float32").argmax(1), 4, logits=logits)


def test_classes_are_counted(drawn):
    matrix = np.zeros((4, 4), int)
    np.add.at(matrix, (drawn["label"], drawn["pred"]), 1)
    assert (mistakes.confusion(drawn) == matrix).all()
    precision, recall, _, images = precision_recall_fscore_support(drawn["label"], drawn["pred"])
    for i, record in enumerate(mistakes.class_records(drawn)):
        assert (record["images"], record["recall"]) == (images[i], pytest.approx(recall[i]))
        assert record["class_precision"] == pytest.approx(precision[i])
        ends = wilson_interval(int(matrix[i, i]), int(images[i]))
        assert (record["recall_low"], record["recall_high"]) == ends
        wrong = np.where(np.arange(4) == i, 0, matrix[i])
        assert record["confused_with"] == f"c{wrong.argmax()} ({wrong.max()})"
    # A class without images, or without predictions, has nulls.
    _, *others = mistakes.class_records(predictions_of([0, 0], [0, 1]))
    shown = [(r["recall"], r["class_precision"], r["confused_with"]) for r in others]
    assert shown == [(None, 0.0, None), (None, None, None)]


def test_pairs_are_counted_in_both_directions():
    drawn = predictions_of([0, 0, 0, 1, 2, 2, 1, 0], [1, 1, 0, 0, 1, 2, 1, 2])
    first, *rest = mistakes.confused_pairs(drawn)
    counts = {"mistakes": 3, "there": 2, "back": 1, "share": 3 / 5}
    assert first == {"class": "c0", "other_class": "c1"} | counts
    pairs = [(r["class"], r["other_class"], r["mistakes"]) for r in rest]
    assert pairs == [("c0", "c2", 1), ("c1", "c2", 1)]
    assert mistakes.confused_pairs(predictions_of([0, 1], [0, 1])) == []


def test_confidence_is_the_softmax_of_the_predicted_class(drawn):
    expected = np.exp(drawn["logits"].astype(float))
    expected = (expected / expected.sum(axis=1, keepdims=True)).max(axis=1)
    huge = predictions_of([0], [0], logits=np.array([[6e4, -6e4, 0]], "float16"))
    for answers, confidence in ((drawn, expected), (huge, [1.0])):
        ((m,), _) = found_in([row_of("a")], {"a": answers})
        assert m.confidence == pytest.approx(confidence, abs=1e-12)


def test_calibration_by_hand():
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.40, 0.40, 1 / 15, 1.0])
    correct = np.array([1, 1, 1, 0, 1, 0, 0, 1], bool)
    bins = mistakes.reliability(confidence, correct)
    # (0, 1/15] one image; (5/15, 6/15] two; (14/15, 1] five, of which four are right.
    assert [b["images"] for b in bins] == [1, 2, 5]
    assert [b["bin_high"] for b in bins] == pytest.approx([1 / 15, 6 / 15, 1])
    assert [b["accuracy"] for b in bins] == pytest.approx([0, 0.5, 0.8])
    assert [b["confidence"] for b in bins] == pytest.approx([1 / 15, 0.4, 4.8 / 5])
    by_hand = (1 * (1 / 15) + 2 * abs(0.5 - 0.4) + 5 * abs(0.8 - 4.8 / 5)) / 8
    assert mistakes.calibration_error(bins) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("logit", "said", "confidence"),
    [
        (30, "Overconfident", "100.00"),
        (0, "Underconfident", "33.33"),
        (0.6935, "Well calibrated, within a point", "50.01"),  # of e^0.6935 / (e^0.6935 + 2)
    ],
)
def test_whether_confidence_is_above_or_below_accuracy_is_said(logit, said, confidence):
    logits = np.array([[logit, 0, 0]] * 2, "float16")
    found, _ = found_in([row_of("a")], {"a": predictions_of([0, 1], [0, 0], logits=logits)})
    numbers = f"(confidence {confidence} %, accuracy 50.00 %)"
    assert sentences("calibration", found) == [f"{said}: digits, random split {numbers}."]


def test_without_logits_the_report_says_that_confidence_is_not_stored():
    (m,), tables = found_in([row_of("a")], {"a": predictions_of([0, 1, 2], [0, 1, 1])})
    assert (m.confidence, m.bins, m.worst) == (None, [], [])
    assert "a predictions file holds labels alone" in tables["calibration"].notes[0]
    assert tables["reliability_digits_a"].notes[0].startswith("Confidence not stored: ")
    (summary,) = tables["calibration"].records
    assert (summary["ece"], summary["nobody"]) == (None, None)  # not zero


def test_the_most_confident_mistakes_come_first():
    predictions = predictions_of([0, 1, 2, 0], [1, 1, 0, 2])
    first, *rest = mistakes.confident_mistakes(predictions, np.array([0.6, 0.99, 0.8, 0.7]))
    assert first == {"index": 2, "class": "c2", "taken_for": "c0", "confidence": 0.8}
    assert [record["index"] for record in rest] == [3, 0]


def test_images_that_every_model_gets_wrong():
    answers = [1, 1, 0, 2], [2, 1, 1, 0], [1, 1, 1, 1]
    runs = [predictions_of([0, 0, 0, 0], pred) for pred in answers]
    records = mistakes.wrong_everywhere(runs[0], runs)
    agreed = [(r["index"], r["taken_for"], r["agreed"]) for r in records]
    assert agreed == [(1, "c1", 3), (0, "c1", 2)]
    assert mistakes.wrong_everywhere(runs[0], runs[:1]) == []


def test_each_model_tested_on_the_same_images_votes_once():
    elsewhere = predictions_of([0, 0], [1, 0]) | {"index": np.array([7, 8])}
    rows = [row_of("a", val_acc=0.9), row_of("b"), row_of("c", kind="svm"), row_of("d", "mnist")]
    right, half, wrong = (predictions_of([0, 0], pred) for pred in ([0, 0], [0, 1], [1, 1]))
    found, tables = found_in(rows, {"a": wrong, "b": elsewhere, "c": half, "d": right})
    (m,) = (m for m in found if m.run_id == "a")
    assert [r["index"] for r in m.nobody] == [1]
    assert tables["nobody_digits_a"].notes[0].startswith("1 of 2 test images are missed by all 2")
    assert [r["nobody"] for r in tables["calibration"].records if r["run_id"] == "a"] == [1]
    alone, pinned = row_of("a"), row_of("b", shared_with="a")
    pinned["config"]["pin_memory"] = True
    (m,), _ = found_in([alone, pinned], {"a": wrong, "b": wrong})
    assert (m.run_id, len(m.nobody)) == ("a", 0)  # of one model nothing is "by all"


def test_images_come_from_the_data_set():
    data = load_dataset("digits")
    label = data.labels[:50].numpy()
    predictions = predictions_of(label, (label + 1) % 10, 10)
    images, why = mistakes.load_images("digits", 64, predictions, {3, 7}, "nowhere")
    assert why == ""
    assert (images[7] == data.images[7, 0].numpy()).all()


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("digits", "not the one that was predicted"),
        ("mnist", "no source has train-images-idx3-ubyte"),
        ("kmnist", "no source has"),
        ("of another version", "is no data set of this version"),
    ],
)
def test_without_images_it_says_why_and_fetches_nothing(dataset, message, tmp_path, monkeypatch):
    for name in ("_download", "_run"):
        monkeypatch.setattr(fetch, name, lambda *args: pytest.fail("it fetches"))
    predictions = predictions_of([9, 9, 9], [9, 9, 9], 10)
    images, why = mistakes.load_images(dataset, 64, predictions, {0}, tmp_path)
    assert images == {}
    assert why.startswith("The images are not shown: ")
    assert message in why
    assert not list(tmp_path.iterdir())
