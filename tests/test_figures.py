"""The report's figures: what is drawn, by matplotlib's artists, against values by hand."""

import itertools

import numpy as np
import pytest
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from common.base.cli import as_dict
from common.base.config import SvmConfig, TrainConfig
from common.data.fetch import read_dataset
from common.judge.compare import CONTRASTS
from common.judge.mistakes import image_record, load_images
from common.judge.tables import make_table
from common.report import figures


def run_row(acc, ms, name, kind="train", **settings):
    config = as_dict((SvmConfig if kind == "svm" else TrainConfig)(**settings))
    metrics = {"val_acc": acc, "test_acc": acc, "n_test": 14_000, "train_ms": ms, "fit_ms": ms}
    row = {"run_id": name, "kind": kind, "status": "ok", "config": config, "metrics": metrics}
    return row | {"env": {"cpu": name[0]}}


def drawn(figure):
    with style.context(["default", figures.STYLE]):
        return figure.draw()


def texts(axes):
    return [text.get_text() for text in axes.texts]


def axes_of(runs=(), curves=(), tables=(), races=()):
    """The axes of the last figure that there is of these."""
    *_, figure = figures.build_figures(runs, curves, [], tables, races)
    return drawn(figure).axes


def values(axes):
    return [dot.get_xdata()[0] for dot in axes.lines[1:]]  # the first is the origin


@pytest.fixture
def cost():
    runs = [
        run_row(0.95, 5e3, "fast", "svm", dataset="mnist"),
        run_row(0.99, 600e3, "study", dataset="mnist", epochs=3),
        run_row(0.985, 900e3, "worse", dataset="mnist", epochs=5),
        run_row(0.997, 700e3, "other", dataset="mnist", schedule="triangular", model="resnet14"),
        run_row(0.998, 3600e3, "official", dataset="mnist", split="official"),
    ]
    [axes] = axes_of(runs)
    return axes


def test_accuracy_against_cost_names_what_matters_beside_what_was_published(cost):
    assert set(texts(cost)) == {
        "published 99.33 %", "published SVM 96.35 %",
        "SVM, study's setup", "ResNet-18, study's setup",
        "ResNet-14, 5 epochs", "ResNet-18, 5 epochs, official split",
    }  # fmt: skip
    dashed = [line.get_ydata()[0] for line in cost.lines if line.get_linestyle() == "--"]
    assert dashed == pytest.approx([0.67, 3.65])  # errors in per cent
    gids = {line.get_gid(): line for line in cost.lines if line.get_gid()}
    rings = {gid for gid, line in gids.items() if line.get_markeredgecolor() == "black"}
    assert len(gids) == 5
    assert sorted("official" in gid for gid in rings) == [False, True]
    # Colours and markers tell families apart; what has no name is paler.
    looks = {(line.get_color(), line.get_marker()) for line in gids.values()}
    assert len(looks) == len({color for color, _ in looks}) == 3
    [pale] = [gid for gid, line in gids.items() if line.get_alpha() < 1]
    assert "5 epochs" in pale
    front = max((line.get_xydata() for line in cost.lines), key=len)
    # The official split's images are others: no part of the front, and half filled.
    assert front[[0, -1]] == pytest.approx(np.array([[5, 5], [700, 0.3]]))
    halves = [gid for gid, line in gids.items() if line.get_fillstyle() == "left"]
    assert ["official" in gid for gid in halves] == [True]
    ticks = [tick.get_text() for tick in cost.get_xticklabels()]
    assert ticks == ["10 s", "1 min", "10 min", "1 h"]


def test_names_neither_hide_each_other_nor_leave_the_axes(cost):
    cost.figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in cost.texts]
    frame = cost.get_window_extent().padded(1)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(frame.contains(*corner) for box in boxes for corner in box.corners())


@pytest.mark.parametrize("other", [{"dataset": "kmnist"}, {"split": "official"}])
def test_published_is_only_what_was_tested_on_the_same_images(other):
    [axes] = axes_of([run_row(0.9, 1e3, "run", **other)])
    assert not any("published" in text for text in texts(axes))


def test_main_effects_are_dots_with_intervals_hollow_of_few_seeds():
    names = [f"{c}, each at its best learning rate" for c in CONTRASTS]
    sides = {"difference": -0.005, "low": -0.015, "high": 0.001, "seeds": 3, "dataset": "mnist"}
    records = [sides | {"contrast": names[1]}, sides | {"contrast": f"{CONTRASTS[1]}, averaged"}]
    records += [sides | {"contrast": names[1], "dataset": "fashion", "seeds": 2, "high": 0.003}]
    records += [sides | {"contrast": "best ResNet minus best SVM", "seeds": 1}]
    records += [{"contrast": names[0], "dataset": "mnist"}]  # not measured
    [figure] = figures.build_figures([], [], [], [make_table("contrasts", records)])
    assert (figure.section, figure.key) == ("statistics", "effects")
    opt, best = drawn(figure).axes
    assert [axes.get_title() for axes in (opt, best)] == [
        "← Adam better | SGD better →", "← best SVM better | best ResNet better →",
    ]  # fmt: skip
    assert (texts(opt), texts(best)) == (["-0.50, 3 seeds", "-0.50, 2 seeds"], ["-0.50, 1 seed"])
    zero, *dots = opt.lines
    assert list(zero.get_xdata()) == [0, 0]
    places = [(*dot.get_xydata()[0], dot.get_markerfacecolor()) for dot in dots]
    assert places == [(-0.5, 0, "C0"), (-0.5, 1, "white")]
    ends = [bar.get_segments()[0][:, 0] for bar in opt.collections]
    assert np.array(ends) == pytest.approx(np.array([[-1.5, 0.1], [-1.5, 0.3]]))
    assert [tick.get_text() for tick in opt.get_yticklabels()] == ["MNIST", "FashionMNIST"]


def test_curves_are_the_mean_and_range_of_the_seeds_of_what_was_chosen():
    runs, curves = [], []
    for seed, (acc, lr) in enumerate([(0.8, 0.1), (0.9, 0.1), (0.7, 0.2)]):
        runs.append(run_row(acc, 1e3, f"run{seed}", dataset="mnist", seed=seed, lr=lr, epochs=2))
        metrics = [{"epoch": e, "val_acc": acc + e / 100, "val_loss": 1 - acc} for e in (1, 2, 3)]
        curves.append({"run_id": f"run{seed}", "epochs": metrics, "config": runs[-1]["config"]})
    left, right = axes_of(runs, curves)
    solid, dotted = left.lines
    assert solid.get_xydata() == pytest.approx(np.array([[1, 14], [2, 13]]))  # errors in per cent
    assert np.isnan(dotted.get_ydata()).all()  # training images: not stored
    edges = left.collections[0].get_paths()[0].vertices
    assert (edges[:, 1].min(), edges[:, 1].max()) == pytest.approx((8, 19))
    assert right.lines[0].get_ydata() == pytest.approx([0.15, 0.15])
    [name] = right.get_legend().get_texts()
    assert name.get_text() == "ResNet-18, the study's split"


def test_a_gallery_names_the_files_of_a_folder(tmp_path):
    for i, kind in itertools.product(range(6), ("cat", "dog")):
        (tmp_path / kind).mkdir(exist_ok=True)
        Image.new("L", (4, 4), 20 * i).save(tmp_path / kind / f"{kind} {i}.png")
    data = read_dataset(f"folder:{tmp_path}", tmp_path / "data")
    predictions = {"index": np.arange(12), "label": data.labels}
    images, why = load_images(data.name, None, predictions, {2, 7}, tmp_path / "data")
    assert why == ""
    assert images[7].tolist() == [[20] * 4] * 4
    predictions |= {"files": np.array(data.files), "classes": ["a class of long name", "dog"]}
    records = [image_record(predictions, 7, 0) | {"confidence": 0.987}]
    records += [image_record(predictions, 2, 1) | {"agreed": 3}]
    assert [r["file"] for r in records] == ["dog/dog 1.png", "cat/cat 2.png"]
    first, second = figures.gallery(records, images).axes
    assert texts(first) == ["dog\n→ a cl…ng name\n98.7 %\ndog 1.png"]
    assert texts(second) == ["a clas…ng name\n→ dog\n3 runs\ncat 2.png"]
    del records[0]["file"]  # of a published data set
    first, _ = figures.gallery(records, images).axes
    assert texts(first)[0].endswith("\n#7")


def test_a_confusion_matrix_is_shaded_by_the_share_of_the_true_class():
    [axes] = figures.confusion_matrix(np.array([[9, 1], [0, 5]]), ["a", "b"]).axes
    assert texts(axes) == ["9", "1", "5"]
    assert axes.images[0].get_array().tolist() == [[90, 10], [0, 100]]


def test_of_several_batches_the_largest_is_drawn_and_a_baseline_once():
    record = {"dataset": "mnist", "model": "resnet18", "test_acc": 0.5, "speedup_low": 0.5}
    sizes = [("single", 1, 1.0), ("offline", 16, 3.0), ("offline", 64, 1.0), ("offline", 64, 2.5)]
    names = ("scenario", "batch_size", "speedup")
    records = [record | dict(zip(names, size, strict=True)) for size in sizes]
    records = [r | {"engine": f"e{i}"} for i, r in enumerate([*records, records[2]])]
    single, offline = axes_of(tables=[make_table("infer", records)])
    assert offline.get_title() == "offline, batch size 64"
    assert values(single) == [1.0]
    assert values(offline) == [1.0, 2.5]
    assert offline.collections[1].get_segments()[0][:, 0].tolist() == [0.5, 2.5]  # its interval
    assert texts(offline) == ["1.00x, 50.00 %", "2.50x, 50.00 %"]


def test_pareto_front():
    points = np.array([(1, 20), (2, 30), (2, 10), (2, 15), (3, 10), (9, 5)])
    assert figures.pareto_front(*points.T).tolist() == [0, 2, 5]


@pytest.mark.parametrize("accuracies", [[100], [0], [10, 99, 100], [50, 50], [90, 99, 99.9]])
def test_accuracies_stand_inside_the_axes_and_a_tenth_of_the_error_as_far_anywhere(accuracies):
    axes, errors = Figure().subplots(), figures.errors_of(np.array(accuracies) / 100)
    figures.scale_log(axes, "y", errors, errors=True)
    points = np.stack(np.broadcast_arrays(1, [*errors, *axes.get_yticks()]), axis=1)
    places = axes.transAxes.inverted().transform(axes.transData.transform(points))[:, 1]
    own = list(places[: len(errors)])
    assert own == sorted(own)
    assert all(0 <= y <= 1 for y in places)
    if accuracies == [90, 99, 99.9]:
        assert np.ptp(np.diff(own)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("low", [0.0004, 700])
@pytest.mark.parametrize("ratio", [1.5, 2, 7, 30, 900, 1e6])
def test_a_logarithmic_axis_has_ticks_but_not_too_many(low, ratio):
    ticks = list(figures.log_ticks(low, low * ratio))
    assert (3 if ratio >= 2 else 1) <= len(ticks) <= 14
    assert ticks == sorted(ticks)


def test_speeds_of_one_label_are_dots_of_their_own_hollow_where_extrapolated():
    work = {"dataset": "fashion", "model": "resnet18", "opt": "sgd", "image_size": 224}
    work |= {"batch_size": 16, "label": "cpu", "extrapolated": True}
    records = [work | {"speedup": ratio} for ratio in (1.0, 3.1, None)]
    [axes] = axes_of(tables=[make_table("q2", records)])
    assert values(axes) == [1.0, 3.1]
    assert [dot.get_markerfacecolor() for dot in axes.lines[1:]] == ["white", "white"]


def test_what_is_alone_over_a_baseline_of_its_own_shares_a_panel_with_other_works():
    records, cpu = [], ("1 thread", ("2 threads", 2.0), ("4 threads", 3.0))
    every = cpu, ("cpu", ("gpu", 9.0)), ("a", ("b", 4.0), ("c", 5.0)), ("by itself",)
    for model, (first, *others) in itertools.product(("resnet18", "resnet50"), every):
        work = {"dataset": "fashion", "model": model, "opt": "sgd", "image_size": 224}
        work |= {"batch_size": 16, "baseline": first}
        records += [work | {"label": k, "speedup": x} for k, x in ((first, 1.0), *others)]
    panels = axes_of(tables=[make_table("q2", records)])
    assert {axes.get_title(): values(axes) for axes in panels} == {
        "ResNet-18\nover 1 thread": [1.0, 2.0, 3.0],
        "ResNet-18\nover a": [1.0, 4.0, 5.0],
        "ResNet-50\nover 1 thread": [1.0, 2.0, 3.0],
        "ResNet-50\nover a": [1.0, 4.0, 5.0],
        "gpu\nover cpu": [9.0, 9.0],
    }
    names = [[text.get_text() for text in axes.get_yticklabels()] for axes in panels]
    assert names[-1] == ["ResNet-18", "ResNet-50"]


def test_a_race_is_a_line_a_configuration_that_ends_as_it_ended():
    ends = [("left", "told apart", None), ("best", None, "chosen")]
    standings = [
        {"name": name, "why": why, "tied": tied, "points": [(s, 1, s / 10) for s in (1, 2)]}
        for name, why, tied in ends
    ]
    race = {"where": "MNIST", "spent_s": 9, "standings": [*standings, {"points": []}]}
    [axes] = axes_of(races=[race])
    looks = {line.get_gid(): (line.get_marker(), line.get_linewidth()) for line in axes.lines}
    assert looks == {"dot:left": ("x", 1), "dot:best": ("o", 2.5)}
    assert axes.lines[0].get_xydata().tolist() == [[1, 90], [2, 80]]  # errors in per cent
    assert texts(axes) == ["best"]
