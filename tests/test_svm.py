"""svm.py: scikit-learn called directly is the reference; then what a row says, and failures."""

import importlib.util
import sys
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import svm
from common.base.cli import UsageError

IMAGES, SAMPLES = 1797, 300
PIXELS, LABELS = load_digits(return_X_y=True)
PIXELS = np.round(PIXELS / 16 * 255) / 255  # as 8-bit images hold them, in [0, 1]


def split_digits(seed=0, samples=SAMPLES):
    """Training, validation and test indices, from the definition of the split."""
    order = np.random.RandomState(0).permutation(IMAGES)
    train, val, test = np.split(order, [IMAGES * 7 // 10, IMAGES * 7 // 10 + IMAGES // 10])
    return train[np.random.RandomState(seed).permutation(len(train))[:samples]], val, test


def reference(**settings):
    """The SVC of scikit-learn on those training images."""
    train = split_digits()[0]
    return SVC(**settings).fit(PIXELS[train], LABELS[train])


@pytest.fixture
def run(tmp_path):
    """A function: svm.py on the digits with these flags, writing under tmp_path/results."""
    base = ["--dataset", "digits", "--results-dir", str(tmp_path / "results")]
    return lambda *flags: svm.main([*base, "--samples", str(SAMPLES), *flags])


def predictions(tmp_path, row):
    return np.load(tmp_path / "results" / row["metrics"]["predictions"])


@pytest.mark.parametrize(("seed", "features"), [(0, "raw"), (3, "raw"), (0, "hog")])
def test_predictions_are_those_of_scikit_learn_called_directly(run, rows, tmp_path, seed, features):
    x, y = PIXELS, LABELS
    if features == "hog":
        hog = pytest.importorskip("skimage.feature").hog
        cells = {"pixels_per_cell": (4, 4), "cells_per_block": (2, 2)}
        x = np.array([hog(image, orientations=9, **cells) for image in x.reshape(-1, 8, 8)])
    threads = 1 + seed  # which change no prediction
    flags = ["--features", features, "--seed", str(seed), "--threads", str(threads)]
    assert run("--kernel", "poly", "rbf", "linear", *flags) == 0
    train, val, test = split_digits(seed)
    assert [row["config"]["kernel"] for row in rows("svm")] == ["poly", "rbf", "linear"]
    for row in rows("svm"):
        model = SVC(kernel=row["config"]["kernel"], max_iter=1000).fit(x[train], y[train])
        m, saved = row["metrics"], predictions(tmp_path, row)
        np.testing.assert_array_equal(saved["pred"], model.predict(x[test]))
        np.testing.assert_array_equal(saved["label"], y[test])
        np.testing.assert_array_equal(saved["index"], test)
        assert saved["classes"].tolist() == list("0123456789")
        assert "logits" not in saved
        assert m["test_acc"] == pytest.approx(model.score(x[test], y[test]), abs=1e-12)
        assert m["val_acc"] == pytest.approx(model.score(x[val], y[val]), abs=1e-12)
        assert m["n_support"] == len(model.support_)
        assert m["n_iter_max"] == model.n_iter_.max()
        assert (m["n_train"], m["n_val"], m["n_test"]) == (SAMPLES, 179, 361)
        assert (m["converged"], m["engine"], m["predict_jobs"]) == (True, "sklearn", threads)
        assert min(m["fit_ms"], m["predict_ms"], m["features_ms"]) > 0


@pytest.mark.filterwarnings("ignore:Solver terminated early")
@pytest.mark.parametrize("kernel", ["poly", "rbf", "linear"])
def test_answers_are_libsvms_where_votes_tie_and_values_are_all_but_zero(kernel, monkeypatch):
    """Points of a coarse lattice, many of them twice and under two labels, far from zero too."""
    lattice = np.array(list(product(np.arange(-2, 2.1, 0.5), repeat=3)))
    libsvm, asked, ties = SVC.predict, [], 0
    monkeypatch.setattr(SVC, "predict", lambda self, x: asked.append(len(x)) or libsvm(self, x))
    for seed, (classes, shift) in enumerate(product((2, 5, 12), (0, 0, 0, 1e4))):
        random = np.random.RandomState(seed)
        names = random.permutation(1000)[:classes] - 500
        labels = np.append(names, random.choice(names[1:], 120))  # of the first class one image
        points = random.randint(-2, 3, (len(labels), 3)) + shift
        model = SVC(kernel=kernel, max_iter=1000, decision_function_shape="ovo")
        model.fit(points, labels)
        expected = libsvm(model, lattice + shift)
        np.testing.assert_array_equal(svm.predict(model, lattice + shift, 2), expected)
        if classes > 2:
            first, second = np.triu_indices(classes, 1)
            winners = np.where(model.decision_function(lattice + shift) > 0, first, second)
            votes = np.sort([np.bincount(row, minlength=classes) for row in winners])
            ties += (votes[:, -1] == votes[:, -2]).sum()
    assert ties > 100
    assert 0 < sum(asked) < 6 * len(lattice)
    on_the_boundary = SVC(kernel=kernel).fit([[-1.0], [1.0]], [30, -7])
    assert on_the_boundary.decision_function([[0.0]]) == 0
    assert svm.predict(on_the_boundary, np.zeros((1, 1)), 2) == libsvm(on_the_boundary, [[0.0]])


@pytest.mark.filterwarnings("ignore:Solver terminated early")  # by the reference
def test_every_setting_reaches_the_machine(run, rows):
    run("--C", "0.2", "5", "--gamma", "scale", "auto", "--max-iter", "20", "-1")
    expected = [
        len(reference(C=c, gamma=gamma, max_iter=max_iter).support_)
        for c in (0.2, 5)
        for gamma in ("scale", "auto")
        for max_iter in (20, -1)
    ]
    assert [row["metrics"]["n_support"] for row in rows("svm")] == expected
    assert len(set(expected)) == 8


def test_max_iter_that_stops_the_solver_is_reported(run, rows, capsys):
    assert run("--kernel", "poly", "--max-iter", "10") == 0
    m, unlimited = rows("svm")[0]["metrics"], reference(kernel="poly")
    assert (m["converged"], m["n_iter_max"]) == (False, 10)
    assert m["pairs_stopped"] == (unlimited.n_iter_ > 10).sum()
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert "warning: --max-iter 10 stopped the solver" in line
    assert captured.out.splitlines()[-2].endswith("no")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--samples", "300", "1258"], "--samples: 1258 is more than the 1257 .* digits"),
        (["--split", "official"], "--split official: digits"),
        (["--kernel", "rbff"], "--kernel: .*'rbff'; did you mean 'rbf'?"),
        (["--C", "0"], "--C: 0.0 must be"),
        (["--engine", "sklearn", "sklearnex"], "sklearnex: .*pip install scikit-learn-intelex"),
        (["--engine", "sklearn", "cuml"], "--engine cuml: .*pip install cuml-cu12"),
        (["--features", "raw", "hog"], "--features hog: .*pip install scikit-image"),
    ],
)
def test_bad_usage_and_missing_libraries_are_one_line_and_nothing_is_written(
    run, tmp_path, monkeypatch, flags, said
):
    for name in ("sklearnex.svm", "cuml.svm", "skimage.feature"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=said) as caught:
        run(*flags)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results").exists()


def test_another_engine_may_not_fall_back_and_what_it_does_not_tell_is_null(
    run, rows, monkeypatch, capsys
):
    class Accelerated(SVC):
        _onedal_estimator = "marks a fit by oneDAL"

    for svc, status in ((SVC, 1), (Accelerated, 0)):  # in the place of scikit-learn-intelex's
        monkeypatch.setitem(sys.modules, "sklearnex.svm", SimpleNamespace(SVC=svc))
        assert run("--engine", "sklearnex") == status
    failed, done = rows("svm")
    assert (failed["status"], done["status"]) == ("failed", "ok")
    assert "fell back to scikit-learn" in failed["error"]
    m = done["metrics"]
    assert [m[k] for k in ("converged", "n_iter_max", "pairs_stopped")] == [None] * 3
    assert m["engine"] == "sklearnex"
    assert capsys.readouterr().out.splitlines()[-2].endswith("unknown")


@pytest.mark.skipif(not importlib.util.find_spec("sklearnex"), reason="scikit-learn-intelex")
@pytest.mark.filterwarnings("default")
def test_scikit_learn_intelex_agrees(run, rows, tmp_path):
    assert run("--engine", "sklearn", "sklearnex") == 0
    ours, theirs = (predictions(tmp_path, row)["pred"] for row in rows("svm"))
    assert (ours == theirs).mean() > 0.99


def test_a_failing_fit_is_a_row_and_what_is_finished_is_skipped_unless_forced(
    run, rows, monkeypatch, capsys
):
    real_fit = SVC.fit

    def fit(self, *args):
        if self.kernel == "poly":
            raise ValueError("first line\nsecond line")
        return real_fit(self, *args)

    monkeypatch.setattr(SVC, "fit", fit)
    assert run("--kernel", "poly", "rbf") == 1
    failed, done = rows("svm")
    assert (failed["status"], failed["error"]) == ("failed", "ValueError: first line")
    assert (failed["metrics"], done["status"]) == ({}, "ok")
    out, err = capsys.readouterr()
    assert "[1/2] digits poly raw sklearn: failed, ValueError: first line" in err
    assert "failed" in out
    monkeypatch.undo()
    assert run("--kernel", "poly", "rbf") == 0  # what failed is tried again
    assert "[2/2] digits rbf raw sklearn: in the log" in capsys.readouterr().out
    assert run("--kernel", "rbf", "--force") == 0
    assert [row["status"] for row in rows("svm")] == ["failed", "ok", "ok", "ok"]
    assert [row["config"]["kernel"] for row in rows("svm")] == ["poly", "rbf", "poly", "rbf"]
    again = rows("svm")[3]
    assert again["run_id"] == done["run_id"]
    assert again["metrics"]["test_acc"] == done["metrics"]["test_acc"]


@pytest.mark.parametrize(("n_test", "shown"), [(361, "95.6%"), (14_000, "95.57%")])
def test_the_table_shows_no_more_digits_than_images_give(n_test, shown):
    metrics = {"test_acc": 0.955714, "n_test": n_test, "fit_ms": 1234.5, "predict_ms": 20.0}
    metrics |= {"n_support": 77, "converged": True}
    row = {"status": "ok", "config": {"kernel": "rbf"}, "metrics": metrics}
    last = svm.format_table([row], ["kernel"]).splitlines()[-1]
    assert last.split() == ["rbf", shown, "1.23", "0.02", "77", "yes"]
