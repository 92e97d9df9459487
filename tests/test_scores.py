"""Balanced accuracy, macro F1 and what hangs on them, against scikit-learn and by hand."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from invented import Invented, only
from sklearn import metrics
from sklearn.dummy import DummyClassifier
from sklearn.svm import SVC
from sklearn.utils.class_weight import compute_class_weight

import svm
import train
from common.base.cli import UsageError
from common.base.config import TrainConfig
from common.data import scores
from common.deploy.export import write_card
from common.judge import rows as judge
from common.judge.compare import measure_effect, tie_records
from common.judge.findings import answer_records, contest_records, sentences
from common.train.checkpoint import load_checkpoint
from common.train.run import Run

SCORES = {
    "balanced": metrics.balanced_accuracy_score,
    "f1": lambda label, pred: metrics.f1_score(label, pred, average="macro"),
}


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("classes", [2, 5, 9])
def test_scores_are_scikit_learns(classes):
    """Of nine classes some have no image, some are never predicted and some are neither."""
    rng = np.random.default_rng(classes)
    label = rng.integers(0, min(classes, 6), 60) ** 2 // 6
    pred = np.where(rng.random(60) < 0.6, label, rng.integers(0, min(classes, 8), 60))
    found = scores.rate(scores.count_answers(label, pred, classes))
    assert found == pytest.approx({name: score(label, pred) for name, score in SCORES.items()})


def test_slopes_are_finite_differences():
    counts = np.random.default_rng(0).integers(1, 9, (4, 4)).astype(float)
    for i, j in np.ndindex(4, 4):
        moved = counts.copy()
        moved[i] += 1e-6 * (np.eye(4)[j] - np.eye(4)[0])  # a part of an image of class i
        for name, slope in scores.slopes(counts).items():
            rise = (scores.rate(moved)[name] - scores.rate(counts)[name]) / 1e-6
            assert slope[i, j] - slope[i, 0] == pytest.approx(rise, abs=1e-5)


def test_the_interval_of_one_class_is_agresti_and_coulls():
    """Price and Bonett's is of a mean of proportions; of a single one it adds two and two."""
    p = (7 + 2) / (10 + 4)
    half = 1.959964 * (p * (1 - p) / 14) ** 0.5
    found = scores.intervals(np.array([[7, 3], [0, 0]]))["balanced"]
    assert found == pytest.approx([p - half, p + half], abs=1e-5)


@pytest.mark.parametrize("sizes", [(100, 20, 5), (12,) * 8, (90, 10)])
def test_intervals_hold_the_truth(sizes):
    """At 600 simulations a rate of 0.95 has a standard error of 0.009."""
    rng, k, held = np.random.default_rng(0), len(sizes), {"balanced": 0, "f1": 0}
    for acc in (0.6, 0.9, 0.98):
        chances = np.where(np.eye(k), acc, (1 - acc) / (k - 1))
        truth = scores.rate(chances * np.array(sizes)[:, None])
        for _ in range(200):
            counts = np.stack([rng.multinomial(n, p) for n, p in zip(sizes, chances, strict=True)])
            for name, (low, high) in scores.intervals(counts).items():
                held[name] += low <= truth[name] <= high
    assert min(held.values()) / 600 > 0.93


def test_the_baseline_is_scikit_learns_dummy():
    label = np.repeat([0, 1, 2], [30, 12, 6])
    dummy = DummyClassifier(strategy="most_frequent").fit(label[:, None], label)
    answers = dummy.predict(label[:, None])
    counts = {"train": [60, 24, 12], "test": [30, 12, 6]}
    found = scores.baseline({"class_counts": counts, "majority_acc": 30 / 48})
    expected = {name: score(label, answers) for name, score in SCORES.items()}
    assert found == pytest.approx(expected | {"acc": metrics.accuracy_score(label, answers)})
    equal = {"train": [60, 52, 50], "test": [15, 8, 4]}
    assert scores.baseline({"class_counts": equal, "majority_acc": 0.6}) == {}
    assert scores.baseline({}) == {}


def answers_of(rng, label, acc):
    """Right with some probability, else of the largest class."""
    return np.where(rng.random(len(label)) < acc, label, 0)


class Unequal(Invented):
    """Trainings on three unequal classes, of which the score that is chosen by is known."""

    label = np.repeat([0, 1, 2], [400, 150, 50])

    def answered(self, pred, metric="balanced", val=0.5, **settings):
        counts = scores.count_answers(self.label, pred, 3)
        more = {f"test_{name}": value for name, value in scores.rate(counts).items()}
        more |= {f"test_{name}_interval": pair for name, pair in scores.intervals(counts).items()}
        sizes = np.bincount(self.label).tolist()
        more |= {"class_counts": dict.fromkeys(("train", "val", "test"), sizes)}
        more |= {"majority_acc": 400 / 600, "val_acc": 0.5, "val_balanced": val, "val_f1": val}
        name = self.train(pred == self.label, more, metric=metric, **settings)
        self.held[name] |= {"pred": pred, "label": self.label}
        return name


@pytest.mark.parametrize("metric", ["balanced", "f1"])
def test_a_difference_of_scores_has_the_interval_of_a_bootstrap_within_classes(metric):
    log, rng = Unequal(), np.random.default_rng(1)
    label, sides = log.label, [answers_of(rng, log.label, acc) for acc in (0.85, 0.75)]
    for pred, opt in zip(sides, ("adam", "sgd"), strict=True):
        log.answered(pred, metric, opt=opt)
    first, second = log.evidence().of("mnist", "train")
    found, score, drawn = measure_effect([(first, second)], score="score"), SCORES[metric], []
    places = [np.flatnonzero(label == c) for c in range(3)]
    for _ in range(400):
        chosen = np.concatenate([rng.choice(place, len(place)) for place in places])
        one, other = (score(label[chosen], pred[chosen]) for pred in sides)
        drawn.append(one - other)
    value = score(label, sides[0]) - score(label, sides[1])
    assert found["difference"] == pytest.approx(value)
    width, expected = found["high"] - found["low"], 2 * 1.96 * np.std(drawn)
    assert width == pytest.approx(expected, rel=0.12)
    assert (found["seeds"], found["images"]) == (1, 600)


def test_what_is_chosen_by_decides_contests_ties_and_what_is_said():
    log, rng = Unequal(), np.random.default_rng(0)
    good, poor = (answers_of(rng, log.label, acc) for acc in (0.9, 0.5))
    chosen = [log.answered(good, val=0.8, opt="adam", seed=s) for s in range(3)]
    for seed in range(3):
        log.answered(poor, val=0.6, opt="sgd", seed=seed)
    log.answered(poor, "accuracy", opt="sgd")
    by_balanced, by_accuracy = judge.pick_best(log.rows)
    assert {row["run_id"] for row in by_balanced.rows} == set(chosen)
    assert by_accuracy.config["opt"] == "sgd"  # alone in its contest
    first, second, alone = tie_records(log.evidence())
    assert (first["tied"], second["tied"], alone["tied"]) == ("chosen", False, "chosen")
    assert second["chosen_by"] == "balanced accuracy"
    balanced = [SCORES["balanced"](log.label, pred) for pred in (good, poor)]
    assert second["difference"] == pytest.approx(balanced[0] - balanced[1])
    ties = [first, second, alone]
    said = sentences("answers", answer_records(log.rows, contest_records(ties)))
    assert said[0].startswith("MNIST, the study's split, by balanced accuracy: ResNet-18, Adam")
    assert f"Balanced accuracy {100 * balanced[0]:.2f} % (" in said[0]
    assert (
        "Always answering the largest class has an accuracy of 66.67 %, balanced 33.33 %" in said[0]
    )
    record = judge.accuracy_record(by_balanced)
    assert record["test_balanced_low"] < balanced[0] < record["test_balanced_high"]


@pytest.fixture
def photos(tmp_path):
    """A function: a script on 300 grey images of three classes, 200, 70 and 30, with some flags."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], [200, 70, 30])
    x = (rng.normal(90, 60, (300, 8, 8)) + 25 * y[:, None, None]).clip(0, 255).astype("uint8")
    np.savez(tmp_path / "photos.npz", X=x, y=y)
    flags = ["--dataset", f"npz:{tmp_path / 'photos.npz'}", "--results-dir", f"{tmp_path}/results"]
    return lambda script, *more: script.main([*flags, "--data-dir", str(tmp_path), *more])


def check_row(row, folder):
    """That its scores are scikit-learn's, of the predictions that it names."""
    with np.load(folder / "results" / row["metrics"]["predictions"]) as saved:
        label, pred = saved["label"], saved["pred"]
    for name, score in SCORES.items():
        assert row["metrics"][f"test_{name}"] == pytest.approx(score(label, pred))
        low, high = row["metrics"][f"test_{name}_interval"]
        assert 0 <= low < score(label, pred) < high <= 1
    return label, pred


def test_a_training_keeps_the_weights_that_are_best_by_its_metric(photos, rows, tmp_path, capsys):
    flags = ["--model", "vgg5", "--image-size", "16", "--class-weight", "balanced", "--lr", "0.01"]
    flags += ["--augment", "photo", "--epochs", "4"]
    assert photos(train, *flags, "--metric", "balanced", "--export", "onnx") == 0
    screen = capsys.readouterr().out
    assert "balanced accuracy on validation" not in screen  # of one there is no contest
    (row,), epochs = rows("train"), [epoch["metrics"] for epoch in rows("epoch")]
    label, _ = check_row(row, tmp_path)
    share = (label == 0).mean()
    f1 = 2 * share / (1 + share) / 3
    base = f"accuracy {share:.1%}, balanced accuracy 33.3%, macro F1 {f1:.1%}"
    assert f"to beat, always answering the largest class: {base}" in screen
    shown = f"{epochs[0]['val_balanced']:.2%}".replace("%", " %")
    assert re.search(rf"epoch 1/4 .* balanced +{shown}", screen)
    best = int(np.argmax([epoch["val_balanced"] for epoch in epochs]))
    assert row["metrics"]["best_epoch"] == best + 1
    kept = load_checkpoint(tmp_path / "results" / row["metrics"]["best_checkpoint"])
    assert kept["epoch"] == best + 1
    (export,) = rows("export")
    words = f"{row['metrics']['test_balanced']:.1%}".removesuffix("%")
    card = (tmp_path / "results" / f"{export['metrics']['file']}.md").read_text()
    assert f"Balanced accuracy, the mean recall of the classes: {words}" in card
    # The same training, chosen by accuracy, is not trained again, and its best was not kept.
    assert photos(train, *flags) == 0
    again = only(rows("train"), run_id=rows("train")[-1]["run_id"])
    assert again["metrics"]["shared_with"] == row["run_id"]
    assert again["metrics"]["best_checkpoint"] is again["metrics"]["best_epoch"] is None
    assert len(rows("epoch")) == 4


def test_class_weights_are_scikit_learns(photos, tmp_path, rows):
    assert photos(svm, "--samples", "150", "--class-weight", "balanced", "none") == 0
    weighted, plain = rows("svm")
    assert "class_weight" not in plain["config"]
    answers = {row["run_id"]: check_row(row, tmp_path) for row in (weighted, plain)}
    config = TrainConfig(
        dataset=weighted["config"]["dataset"], class_weight="balanced", model="vgg5", device="cpu"
    )
    run = Run(config, str(tmp_path))
    labels = run.dataset.labels[run.split.train].numpy()
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(run.setup.class_weights, expected, rtol=1e-6)
    x = run.dataset.images
    chosen = run.split.train[np.random.RandomState(0).permutation(len(labels))[:150]]
    with np.load(tmp_path / "photos.npz") as stored:
        x, y = stored["X"].reshape(300, -1) / 255, stored["y"]
    for row, weight in ((weighted, "balanced"), (plain, None)):
        model = SVC(class_weight=weight, max_iter=1000).fit(x[chosen], y[chosen])
        np.testing.assert_array_equal(answers[row["run_id"]][1], model.predict(x[run.split.test]))


def test_a_race_goes_by_accuracy(photos):
    said = "--budget: a race goes by accuracy; leave out --metric f1"
    with pytest.raises(UsageError, match=said):
        photos(train, "--budget", "1m", "--metric", "f1", "--image-size", "16", "--model", "vgg5")


@pytest.mark.parametrize("other", [{"translate": 2}, {"flip": True}, {"erase": 0.5}])
def test_photo_augmentation_stands_alone(other):
    with pytest.raises(UsageError, match=f"--augment photo: .*leave out --{next(iter(other))}"):
        TrainConfig(augment="photo", **other)


def test_a_card_says_what_is_known_of_a_file_and_of_its_limits():
    config = {"dataset": "npz:x|y@3f2a9c1b2d3e", "model": "vgg5", "image_size": 8, "seed": 1}
    config |= {"split": "study", "split_seed": 0, "epochs": 3, "device": "cpu"}
    trained = {"test_acc": 0.9, "train_ms": 2500.0, "params": 1e6, "majority_acc": 0.75}
    trained["class_counts"] = {"train": [60, 20], "val": [9, 3], "test": [15, 5]}
    trained |= {"test_balanced": 0.8, "test_balanced_interval": [0.6, 0.9], "test_duplicates": 2}
    row = {"run_id": "a", "config": config, "metrics": trained, "env": {"device": "a CPU"}}
    other = row | {"run_id": "b", "config": config | {"seed": 2}, "metrics": {"test_acc": 0.85}}
    unlike = other | {"run_id": "c", "config": config | {"seed": 2, "lr": 9}}
    parity = {"images": 20, "right": 18, "flips": 1}
    export = {"file": "exports/a.int8.onnx", "format": "onnx-int8", "size_bytes": 3_000_000}
    export |= {"sha256": "abc", "parity": parity}
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    checkpoint = {"classes": ["a*b", "c"], "mean": [0.1] * 3}
    text = write_card([row, row, other, unlike], export, checkpoint, network)
    assert text == Path(__file__).with_name("card.md").read_text()
    published = row | {"config": config | {"weights": "imagenet"}}
    more = write_card([published], export, checkpoint, network)
    assert "weights published for vgg5" in more
    assert "licence" in more
