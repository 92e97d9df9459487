"""Mistakes of the chosen networks, against scikit-learn and hand calculations."""

import numpy as np
import pytest

from common.base.cli import as_dict
from common.base.config import SvmConfig, TrainConfig
from common.data.datasets import load_dataset
from common.judge import mistakes
from common.report.tables import NO_LOGITS, mistake_tables


def held_of(label, pred, classes=3, **more):
    n = len(label)
    return {
        "label": np.array(label, "int16"), "pred": np.array(pred, "int16"),
        "index": np.arange(n), "classes": np.array([f"c{i}" for i in range(classes)]), **more,
    }  # fmt: skip


def row_of(run_id, dataset="digits", kind="train", **metrics):
    config = as_dict((TrainConfig if kind == "train" else SvmConfig)(dataset=dataset))
    config["lr"] = len(run_id) + ord(run_id[-1]) / 1000  # rows of different configurations
    return {"run_id": run_id, "kind": kind, "config": config, "metrics": {"val_acc": 0.5} | metrics}


@pytest.fixture(scope="module")
def random_held():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(500, 4)).astype("float16")
    label = rng.integers(0, 4, 500)
    return held_of(label, logits.astype("float32").argmax(1), 4, logits=logits)


# --- classes --------------------------------------------------------------------------------------


def test_classes_are_counted(random_held):
    label, pred = random_held["label"], random_held["pred"]
    matrix = mistakes.confusion(random_held)
    for i, record in enumerate(mistakes.class_records(random_held)):
        right = ((label == i) & (pred == i)).sum()
        assert record["images"] == (label == i).sum()
        assert record["recall"] == right / (label == i).sum()
        assert record["class_precision"] == right / (pred == i).sum()
        counts = [((label == i) & (pred == j)).sum() for j in range(4)]
        assert list(matrix[i]) == counts
        worst = max((n, -j) for j, n in enumerate(counts) if j != i)
        assert record["confused_with"] == f"c{-worst[1]} ({worst[0]})"


def test_a_class_without_images_or_predictions_has_nulls():
    records = mistakes.class_records(held_of([0, 0], [0, 1]))
    assert (records[1]["recall"], records[1]["class_precision"]) == (None, 0.0)
    assert (records[2]["recall"], records[2]["class_precision"]) == (None, None)


def test_pairs_are_counted_in_both_directions():
    held = held_of([0, 0, 0, 1, 2, 2, 1, 0], [1, 1, 0, 0, 1, 2, 1, 2])
    first, *rest = mistakes.confused_pairs(held)
    assert first == {
        "class": "c0", "other_class": "c1", "mistakes": 3, "there": 2, "back": 1, "share": 3 / 5,
    }  # fmt: skip
    assert [(r["class"], r["other_class"], r["mistakes"]) for r in rest] == [
        ("c0", "c2", 1), ("c1", "c2", 1),
    ]  # fmt: skip
    assert mistakes.confused_pairs(held_of([0, 1], [0, 1])) == []


# --- confidence -----------------------------------------------------------------------------------


def test_confidence_is_the_softmax_of_the_predicted_class(random_held):
    expected = np.exp(random_held["logits"].astype(float))
    expected = (expected / expected.sum(axis=1, keepdims=True)).max(axis=1)
    assert mistakes.confidences(random_held) == pytest.approx(expected, abs=1e-12)
    huge = held_of([0], [0], logits=np.array([[6e4, -6e4, 0]], "float16"))
    assert mistakes.confidences(huge) == pytest.approx([1.0])


def test_calibration_by_hand():
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.40, 0.40, 1 / 15, 1.0])
    correct = np.array([1, 1, 1, 0, 1, 0, 0, 1], bool)
    bins = mistakes.reliability(confidence, correct)
    # (0, 1/15] one image; (5/15, 6/15] two; (14/15, 1] five, of which four are right.
    assert [b["images"] for b in bins] == [1, 2, 5]
    assert [b["bin_high"] for b in bins] == pytest.approx([1 / 15, 6 / 15, 1])
    assert [b["accuracy"] for b in bins] == pytest.approx([0, 0.5, 0.8])
    by_hand = (1 * (1 / 15) + 2 * abs(0.5 - 0.4) + 5 * abs(0.8 - 4.8 / 5)) / 8
    assert mistakes.calibration_error(bins) == pytest.approx(by_hand)


def test_reliability_curve_is_scikit_learn_s():
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(1)
    confidence = rng.uniform(size=2000)
    correct = rng.uniform(size=2000) < confidence
    accuracy, mean = calibration_curve(correct, confidence, n_bins=mistakes.BINS)
    bins = mistakes.reliability(confidence, correct)
    assert [b["accuracy"] for b in bins] == pytest.approx(accuracy)
    assert [b["confidence"] for b in bins] == pytest.approx(mean)
    assert mistakes.calibration_error(bins) < 0.05  # calibrated by construction


def test_without_logits_the_report_says_that_confidence_is_not_stored():
    held = held_of([0, 1, 2], [0, 1, 1])
    (e,) = mistakes.find_mistakes([row_of("a")], {"a": held}, "nowhere")
    assert (e.confidence, e.bins, e.worst) == (None, [], [])
    tables = {t.key: t for t in mistake_tables([e])}
    assert f"digits, run a: {NO_LOGITS}" in tables["calibration"].notes
    assert NO_LOGITS in tables["worst_digits_a"].notes
    (summary,) = tables["calibration"].records
    assert (summary["ece"], summary["nobody"]) == (None, None)  # not zero


# --- images ---------------------------------------------------------------------------------------


def test_the_most_confident_mistakes_come_first():
    held = held_of([0, 1, 2, 0], [1, 1, 0, 2])
    found = mistakes.confident_mistakes(held, np.array([0.6, 0.99, 0.8, 0.7]))
    assert [r["index"] for r in found] == [2, 3, 0]
    assert found[0] == {"index": 2, "class": "c2", "taken_for": "c0", "confidence": 0.8}


def test_images_that_every_model_gets_wrong():
    label = [0, 0, 0, 0]
    runs = [held_of(label, p) for p in ([1, 1, 0, 2], [2, 1, 1, 0], [1, 1, 1, 1])]
    records = mistakes.wrong_everywhere(runs[0], runs)
    assert [(r["index"], r["taken_for"], r["agreed"]) for r in records] == [
        (1, "c1", 3), (0, "c1", 2),
    ]  # fmt: skip
    assert mistakes.wrong_everywhere(runs[0], runs[:1]) == []


def test_only_runs_tested_on_the_same_images_vote():
    here = held_of([0, 0], [1, 1])
    elsewhere = held_of([0, 0], [1, 0]) | {"index": np.array([7, 8])}
    rows = [row_of("a", val_acc=0.9), row_of("b"), row_of("c", kind="svm"), row_of("d", "mnist")]
    held = {"a": here, "b": elsewhere, "c": held_of([0, 0], [0, 1]), "d": held_of([0, 0], [0, 0])}
    e = next(e for e in mistakes.find_mistakes(rows, held, "nowhere") if e.run_id == "a")
    assert [r["index"] for r in e.nobody] == [1]
    tables = {t.key: t for t in mistake_tables([e])}
    assert tables["nobody_digits_a"].notes[0].startswith("1 of 2 test images are missed by all 2")
    assert tables["calibration"].records[0]["nobody"] == 1


def test_a_run_votes_once_however_many_rows_share_it():
    alone, twin = row_of("a"), row_of("b")
    twin["config"] = twin["config"] | {"pin_memory": True}
    twin["metrics"] = twin["metrics"] | {"shared_with": "a"}
    held = held_of([0, 0], [1, 1])
    (e,) = mistakes.find_mistakes([alone, twin], {"a": held, "b": held}, "nowhere")
    assert (e.run_id, len(e.nobody)) == ("a", 0)  # of one model nothing is "by all"


def test_images_come_from_the_data_set():
    data = load_dataset("digits")
    label = data.labels[:50].numpy()
    held = held_of(label, (label + 1) % 10, 10)
    images, why = mistakes.load_images("digits", 64, held, {3, 7}, "nowhere")
    assert why == ""
    assert (images[7] == data.images[7, 0].numpy()).all()


@pytest.mark.parametrize(
    ("dataset", "label", "said"),
    [
        ("digits", [9, 9, 9], "not the one that was predicted"),
        ("mnist", [0, 1, 2], "no source has train-images-idx3-ubyte"),
        ("kmnist", [0, 1, 2], "no source has"),
        ("of another version", [0, 1, 2], "is no data set of this version"),
    ],
)
def test_without_the_images_it_says_why_and_fetches_nothing(
    dataset, label, said, tmp_path, monkeypatch
):
    import common.data.fetch

    for name in ("_download", "_run"):
        monkeypatch.setattr(common.data.fetch, name, lambda *args: pytest.fail("it fetches"))
    images, why = mistakes.load_images(dataset, 64, held_of(label, label, 10), {0}, tmp_path)
    assert images == {}
    assert why.startswith("The images are not shown: ")
    assert said in why
    assert not list(tmp_path.iterdir())
