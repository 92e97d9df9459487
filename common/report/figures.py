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

from common.judge.mistakes import GALLERY, Errors, confusion_matrix
from common.judge.rows import (
    Group,
    Row,
    accuracy_interval,
    by_seed,
    datasets_of,
    describe_all,
    display,
    get,
    latest_ok,
    number,
    pick_best,
    shorten,
    slug,
)

# Okabe and Ito's colours, told apart in every common form of colour blindness; their yellow is
# left out, too faint on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = "os^Dv<>P"
STYLE = {
    "font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "legend.frameon": False, "legend.fontsize": 8, "lines.linewidth": 1.5, "lines.markersize": 5,
    "figure.constrained_layout.use": True, "pdf.fonttype": 42,
    "svg.hashsalt": "bakeoff",
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
    metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(extension, {})
    buffer = io.BytesIO()
    figure.savefig(buffer, format=extension, dpi=150, metadata=metadata)
    return buffer.getvalue()


def literal(text: str) -> str:
    """Text that matplotlib shows as it is: a dollar sign would start mathematics."""
    return text.replace("$", r"\$")


@dataclass(frozen=True)
class Point:
    """One configuration, `detail` in full, `label` as far as it has a look of its own.

    Units: fractions and milliseconds.
    """

    label: str
    train_ms: float
    test_acc: float
    interval: tuple[float, float]
    chosen: bool = False
    detail: str = ""


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


def build_figures(rows: Sequence[Row], errors: Sequence[Errors]) -> list[ReportFigure]:
    """Every figure that the rows, and the errors of the chosen models, can carry."""
    done = {
        kind: latest_ok(rows, kind) for kind in ("epoch", "train", "svm", "hw_train", "hw_infer")
    }
    best = pick_best(done["train"])
    return [
        *_curve_figures(done["epoch"]),
        *_cost_figure(done["train"], done["svm"], best),
        *_error_figures(errors),
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
    panels = {display(name): points for name, points in cost_points(train, svm, best).items()}
    if panels:
        caption = (
            "Test accuracy with its 95 % interval against training time, for each configuration in "
            "the log, whatever its protocol: the tables say which."
        )
        yield ReportFigure("best", "accuracy_cost", caption, partial(accuracy_cost, panels))


def cost_points(
    train: Sequence[Row], svm: Sequence[Row], best: Sequence[Group]
) -> dict[str, list[Point]]:
    """Accuracy and training time of each configuration that has both, by data set."""
    chosen = {row["run_id"] for group in best for row in group.rows}
    panels: dict[str, list[Point]] = {name: [] for name in datasets_of([*train, *svm])}
    for rows, names, cost in (
        (train, ("model", "opt"), "train_ms"),
        (svm, ("kernel",), "fit_ms"),
    ):
        groups = by_seed(rows)
        details = describe_all([group.config for group in groups])
        for group, detail in zip(groups, details, strict=True):
            config, interval, cost_ms = group.config, accuracy_interval(group), group.mean(cost)
            if interval is None or not cost_ms:
                continue
            label = ", ".join(str(config.get(k)) for k in names)
            label = f"SVM, {label}" if cost == "fit_ms" else label
            panels[str(config.get("dataset"))].append(Point(
                label, cost_ms, group.mean("test_acc"), interval,
                group.rows[0]["run_id"] in chosen, detail,
            ))  # fmt: skip
    return {name: points for name, points in panels.items() if points}


def _error_figures(errors: Sequence[Errors]) -> Iterable[ReportFigure]:
    for e in errors:
        yield ReportFigure(
            "errors", f"confusion_{e.key}",
            f"{display(e.dataset)}: test images of run {e.run_id} by true and predicted class.",
            partial(confusion, confusion_matrix(e.held), e.held["classes"]),
        )  # fmt: skip
        if e.bins:
            caption = f"{e.name}: accuracy by confidence (95 %); on the diagonal they agree."
            yield ReportFigure(
                "errors", f"reliability_{e.key}", caption, partial(reliability_curve, e.bins)
            )
        shown = {"worst": (e.worst, "most confident mistakes"),
                 "nobody": (e.nobody[:GALLERY], "missed by every model")}  # fmt: skip
        for key, (records, title) in shown.items():
            if records and e.images:
                yield ReportFigure(
                    "errors", f"{key}_{e.key}", f"{e.name}: {title}; true class above, then what "
                    "it is taken for.", partial(gallery, records, e.images),
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


# --- confidence and images ------------------------------------------------------------------------


def reliability_curve(bins: Sequence[Row]) -> Figure:
    """Accuracy with its interval against mean confidence, in per cent."""
    figure = Figure(figsize=(4.4, 4))
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="#888888", linewidth=0.8)
    x = [100 * b["confidence"] for b in bins]
    y = [100 * b["accuracy"] for b in bins]
    bounds = [
        [100 * max(b["accuracy"] - b["accuracy_low"], 0) for b in bins],
        [100 * max(b["accuracy_high"] - b["accuracy"], 0) for b in bins],
    ]
    axes.errorbar(x, y, yerr=bounds, fmt="o", color=COLORS[0], elinewidth=0.8, capsize=2)
    axes.set(xlabel="Mean confidence, %", ylabel="Accuracy, %", xlim=(0, 102), ylim=(0, 102))
    return figure


def gallery(records: Sequence[Row], images: Mapping[int, np.ndarray]) -> Figure:
    """Test images, eight a line, each under its true class and what it is taken for."""
    columns = min(8, len(records))
    lines = -(-len(records) // columns)
    figure = Figure(figsize=(1.15 * columns + 0.2, 1.55 * lines))
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for axes in panels:
        axes.set_axis_off()
    for axes, record in zip(figure.axes, records, strict=False):
        axes.imshow(images[record["index"]], cmap="gray", vmin=0, vmax=255)
        axes.set_title(literal(f"{record['class']}\n{record['taken_for']}"), fontsize=6)
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
