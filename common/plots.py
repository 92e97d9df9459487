"""The report's figures: chosen from the rows of the log by build_figures, drawn by the rest.

A function that draws maps plain numbers to a matplotlib figure, and knows nothing of rows.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from common.measured import (
    Group,
    Row,
    accuracy_interval,
    by_seed,
    datasets_of,
    display,
    get,
    latest_ok,
    number,
    pick_best,
    shorten,
    slug,
)
from common.tables import confusion_matrix

# Okabe and Ito's colours, told apart in every common form of colour blindness; their yellow is
# left out, too faint on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = "os^Dv<>P"
STYLE = {
    "font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "legend.frameon": False, "legend.fontsize": 8, "lines.linewidth": 1.5, "lines.markersize": 5,
    "figure.constrained_layout.use": True, "pdf.fonttype": 42,
}  # fmt: skip


def styled() -> Any:
    """Context in which figures are drawn and saved alike whatever the user's own settings."""
    return matplotlib.style.context(["default", STYLE])


def look_of(i: int) -> dict[str, str]:
    """Colour and marker of the i-th series; the pairs repeat after 64."""
    n = len(COLORS)
    return {"color": COLORS[i % n], "marker": MARKERS[(i + i // n) % n]}


def to_bytes(figure: Figure, extension: str) -> bytes:
    """The file of a figure, without dates, so that the same figure gives the same bytes."""
    metadata = {"CreationDate": None} if extension == "pdf" else {}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=extension, dpi=150, metadata=metadata)
    return buffer.getvalue()


def literal(text: str) -> str:
    """Text that matplotlib shows as it is: a dollar sign would start mathematics."""
    return text.replace("$", r"\$")


@dataclass(frozen=True)
class Point:
    """One configuration. Units: fractions and milliseconds."""

    label: str
    train_ms: float
    test_acc: float
    interval: tuple[float, float]
    chosen: bool = False


@dataclass(frozen=True)
class Bar:
    """One speed-up in a panel, and the accuracy of what ran, as a fraction, where it is known.

    `sampled` where the epoch behind it was extrapolated.
    """

    panel: str
    label: str
    ratio: float
    test_acc: float | None
    sampled: bool = False

    @property
    def text(self) -> str:
        """What stands at its end."""
        accuracy = "" if self.test_acc is None else f", {100 * self.test_acc:.2f} % correct"
        return f"{self.ratio:.2f}x{accuracy}"


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report, undrawn."""

    section: str
    key: str
    caption: str
    draw: Callable[[], Figure]


# --- from rows to what is drawn -------------------------------------------------------------------


def build_figures(
    rows: Sequence[Row], predictions: Mapping[str, Mapping[str, Any]]
) -> list[ReportFigure]:
    """Every figure that the rows can carry."""
    done = {
        kind: latest_ok(rows, kind) for kind in ("epoch", "train", "svm", "hw_train", "hw_infer")
    }
    best = pick_best(done["train"])
    return [
        *_curve_figures(done["epoch"]),
        *_cost_figure(done["train"], done["svm"], best),
        *_confusion_figures(best, predictions),
        *_training_speedups(done["hw_train"]),
        *_inference_speedups(done["hw_infer"]),
    ]


def _curve_figures(epochs: Iterable[Row]) -> Iterable[ReportFigure]:
    datasets: dict[str, dict[str, list[Row]]] = {}
    for row in epochs:
        runs = datasets.setdefault(str(row["config"].get("dataset")), {})
        runs.setdefault(row["run_id"], []).append(row)
    for dataset, runs in datasets.items():
        kept = sorted(runs.values(), key=_last_val_acc, reverse=True)[: len(COLORS)]
        note = "" if len(kept) == len(runs) else f" The best {len(kept)} of {len(runs)} runs."
        caption = f"{display(dataset)}: learning curves on validation and training images.{note}"
        yield ReportFigure(
            "q1a", f"curves_{slug(dataset)}", caption, partial(learning_curves, _by_model(kept))
        )


def _last_val_acc(run: Sequence[Row]) -> float:
    last = max(run, key=lambda row: number(row, "metrics", "epoch") or 0)
    return number(last, "metrics", "val_acc") or 0


def _by_model(runs: Sequence[Sequence[Row]]) -> dict[str, dict[str, list[Row]]]:
    """Epoch metrics by network and by a label of the settings in which the runs differ."""
    configs = [run[0]["config"] for run in runs]
    names = [k for k in configs[0] if len({str(c.get(k)) for c in configs}) > 1]
    names = ["opt", "lr", *(k for k in names if k not in ("model", "opt", "lr"))]
    curves: dict[str, dict[str, list[Row]]] = {}
    for config, run in sorted(zip(configs, runs, strict=True), key=lambda pair: str(pair[0])):
        label = ", ".join(
            str(config.get(k)) if k == "opt" else f"{k.replace('_', ' ')} {config.get(k)}"
            for k in names
        )
        epochs = [row["metrics"] for row in run if number(row, "metrics", "epoch") is not None]
        model = str(config.get("model"))
        curves.setdefault(model, {})[label] = sorted(epochs, key=lambda metrics: metrics["epoch"])
    return dict(sorted(curves.items()))


def _cost_figure(
    train: Sequence[Row], svm: Sequence[Row], best: Sequence[Group]
) -> Iterable[ReportFigure]:
    chosen = {row["run_id"] for group in best for row in group.rows}
    panels: dict[str, list[Point]] = {}
    for group in [*by_seed(train), *by_seed(svm)]:
        config, interval = group.config, accuracy_interval(group)
        names = ("model", "opt") if "model" in config else ("kernel",)
        cost_ms = group.mean("train_ms" if "model" in config else "fit_ms")
        if interval is None or not cost_ms:
            continue
        label = ", ".join(str(config.get(k)) for k in names)
        label = label if "model" in config else f"SVM, {label}"
        point = Point(
            label, cost_ms, group.mean("test_acc"), interval, group.rows[0]["run_id"] in chosen
        )
        panels.setdefault(display(str(config.get("dataset"))), []).append(point)
    if panels:
        names = [display(name) for name in datasets_of([*train, *svm])]
        panels = dict(sorted(panels.items(), key=lambda panel: names.index(panel[0])))
        caption = (
            "Test accuracy with its 95 % interval against training time, for each configuration in "
            "the log, whatever its protocol: the tables say which."
        )
        yield ReportFigure("best", "accuracy_cost", caption, partial(accuracy_cost, panels))


def _confusion_figures(
    best: Sequence[Group], predictions: Mapping[str, Mapping[str, Any]]
) -> Iterable[ReportFigure]:
    for group in best:
        dataset, run = str(group.config.get("dataset")), group.first()["run_id"]
        if held := predictions.get(run):
            yield ReportFigure(
                "best", f"confusion_{slug(dataset)}_{slug(run)}",
                f"{display(dataset)}: test images of run {run} by true and predicted class.",
                partial(confusion, confusion_matrix(held), held["classes"]),
            )  # fmt: skip


def _training_speedups(rows: Iterable[Row]) -> Iterable[ReportFigure]:
    names = ("dataset", "model", "opt")
    bars = [
        Bar(
            f"{', '.join(shorten(str(row['config'].get(k))) for k in names)}, "
            f"{row['config'].get('image_size')} px, batch {row['config'].get('batch_size')}",
            str(get(row, "metrics", "label") or get(row, "env", "device")),
            number(row, "metrics", "speedup", "ratio"),
            number(row, "metrics", "test_acc"),
            bool(get(row, "metrics", "extrapolated")),
        )
        for row in rows
        if number(row, "metrics", "speedup", "ratio")
    ]
    if bars:
        caption = (
            "Training speed over the first variant of each panel. Hatched: from a sample of steps."
        )
        yield ReportFigure("q2", "speedup_train", caption, partial(speedups, bars, "the first"))


def _inference_speedups(rows: Iterable[Row]) -> Iterable[ReportFigure]:
    bars = [
        Bar(
            f"{shorten(str(get(row, 'metrics', 'dataset')))}, {get(row, 'metrics', 'model')}",
            _inference_label(row),
            number(row, "metrics", "speedup_vs_eager"),
            number(row, "metrics", "test_acc"),
        )
        for row in rows
        if number(row, "metrics", "speedup_vs_eager")
    ]
    if bars:
        caption = "Inference speed of the exported models over the eager network at the same batch."
        yield ReportFigure("infer", "speedup_infer", caption, partial(speedups, bars, "eager"))


def _inference_label(row: Row) -> str:
    scenario, batch = get(row, "metrics", "scenario"), get(row, "metrics", "batch_size")
    threads = get(row, "config", "threads")
    at = "" if threads is None else f", {threads} threads"
    return f"{scenario}, batch {batch}{at}: {get(row, 'metrics', 'engine')}"


# --- learning curves ------------------------------------------------------------------------------


def learning_curves(curves: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> Figure:
    """Accuracy and loss by epoch, one column of panels a network.

    `curves` maps network to label to the metrics of its epochs, in order.
    """
    labels = list(dict.fromkeys(label for runs in curves.values() for label in runs))
    looks = {label: look_of(i) for i, label in enumerate(labels)}
    figure = Figure(figsize=(3.2 + 3.2 * len(curves), 6))
    panels = figure.subplots(2, len(curves), sharex="col", sharey="row", squeeze=False)
    for column, (model, runs) in enumerate(curves.items()):
        top, bottom = panels[:, column]
        top.set_title(literal(model))
        for label, epochs in runs.items():
            _curve(top, epochs, "acc", 100, looks[label])
            _curve(bottom, epochs, "loss", 1, looks[label])
        bottom.set_xlabel("Epoch")
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0, 0].set_ylabel("Accuracy, %")
    panels[1, 0].set_ylabel("Cross-entropy loss")
    panels[1, 0].set_ylim(bottom=0)
    handles = [
        panels[0, 0].plot([], [], **looks[label], label=literal(label))[0] for label in labels
    ]
    handles += [
        panels[0, 0].plot([], [], color="#555555", ls=style, label=name)[0]
        for style, name in (("-", "validation"), (":", "training"))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)))
    return figure


def _curve(
    axes: Axes, epochs: Sequence[Mapping[str, Any]], metric: str, scale: float, look: dict
) -> None:
    x = [epoch["epoch"] for epoch in epochs]
    for part, style in (("val", "-"), ("train", ":")):
        values = [epoch.get(f"{part}_{metric}") for epoch in epochs]
        y = [np.nan if value is None else scale * value for value in values]
        marker = {} if part == "val" else {"mfc": "white", "ms": 3.5}
        axes.plot(x, y, linestyle=style, **look, **marker)


# --- confusion matrix -----------------------------------------------------------------------------


def confusion(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Confusion matrix: colour is the share of the true class, numbers count images."""
    share = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = max(5.0, 0.45 * len(classes) + 1.5)
    figure = Figure(figsize=(size + 0.8, size))
    axes = figure.subplots()
    # On a linear scale a good model's mistakes, a few per cent, would all be white.
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.4, vmin=0, vmax=100))
    axes.grid(False)
    names = [literal(str(name)) for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("Predicted class")
    axes.set_ylabel("True class")
    if len(names) <= 15:
        for i, j in np.argwhere(matrix > 0):
            color = "white" if share[i, j] > 40 else "#333333"
            axes.text(j, i, str(matrix[i, j]), ha="center", va="center", color=color, fontsize=7)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 1, 5, 20, 50, 100])
    bar.set_label("Share of the true class, %")
    bar.outline.set_visible(False)
    return figure


# --- accuracy against cost ------------------------------------------------------------------------


# Labelled steps of each decade, by how far the largest cost is from the smallest.
TICKS = ((4, (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8)), (40, (1, 2, 5)), (math.inf, (1, 3)))


def accuracy_cost(points: Mapping[str, Sequence[Point]]) -> Figure:
    """Test accuracy with its interval against training time, one panel a data set."""
    labels = list(dict.fromkeys(point.label for panel in points.values() for point in panel))
    figure = Figure(figsize=(1 + 4 * len(points), 4.2))
    panels = figure.subplots(1, len(points), squeeze=False)[0]
    for axes, (title, panel) in zip(panels, points.items(), strict=True):
        for point in panel:
            _point(axes, point, labels.index(point.label))
        axes.set(title=literal(title), xscale="log", xlabel="Training time, s (log scale)")
        costs_s = [point.train_ms / 1e3 for point in panel]
        spread = max(costs_s) / min(costs_s)
        room = max(1.3, spread**0.08)
        axes.set_xlim(min(costs_s) / room, max(costs_s) * room)
        steps = next(steps for most, steps in TICKS if spread < most)
        axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=20))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    panels[0].set_ylabel("Test accuracy, %")
    handles = [
        panels[0].plot([], [], ls="", **look_of(i), label=literal(label))[0]
        for i, label in enumerate(labels)
    ]
    ring = {"mec": "black", "mfc": "none", "ms": 10, "marker": "o", "ls": ""}
    if any(point.chosen for panel in points.values() for point in panel):
        handles += panels[0].plot([], [], **ring, label="chosen on validation")
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    return figure


def _point(axes: Axes, point: Point, i: int) -> None:
    x, y = point.train_ms / 1e3, 100 * point.test_acc
    low, high = (100 * bound for bound in point.interval)
    bounds = [[max(y - low, 0)], [max(high - y, 0)]]
    axes.errorbar(x, y, yerr=bounds, capsize=2, elinewidth=0.8, alpha=0.9, **look_of(i))
    if point.chosen:
        axes.plot(x, y, marker="o", ms=10, mec="black", mfc="none")


# --- speed-ups ------------------------------------------------------------------------------------


def speedups(bars: Sequence[Bar], baseline: str) -> Figure:
    """Horizontal bars of speed-ups, one panel a workload; 1 is the baseline."""
    panels = list(dict.fromkeys(bar.panel for bar in bars))
    labels = list(dict.fromkeys(bar.label for bar in bars))
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    width = 0.07 * max(map(len, labels)) + 3.8 * columns
    figure = Figure(figsize=(width, lines * (0.9 + 0.3 * len(labels))))
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid, panels, strict=False):
        mine = [bar for bar in bars if bar.panel == panel]
        places = [labels.index(bar.label) for bar in mine]
        drawn = axes.barh(places, [bar.ratio for bar in mine], color=COLORS[0], height=0.65)
        for patch, bar in zip(drawn, mine, strict=True):
            if bar.sampled:
                patch.set(facecolor="#9CC7E4", edgecolor=COLORS[0], hatch="///", linewidth=0.5)
        axes.bar_label(drawn, [bar.text for bar in mine], padding=3, fontsize=8)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_title(literal(panel))
        axes.grid(axis="y", visible=False)
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(literal(f"Speed-up over {baseline}, times"))
    first = figure.axes[0]
    first.set_yticks(range(len(labels)), [literal(label) for label in labels])
    first.invert_yaxis()
    longest = max(len(bar.text) for bar in bars)
    first.set_xlim(0, (1.1 + 0.025 * longest) * max(bar.ratio for bar in bars))
    return figure
