"""The report's figures: chosen from the rows of the log by build_figures, drawn by the rest.

A function that draws maps plain numbers to a matplotlib figure, and knows nothing of rows. An
artist whose gid is class:text becomes on the page a group of that class with the text on hovering.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from common.judge import rows as log
from common.judge.mistakes import GALLERY, Mistakes, confusion
from common.judge.rows import Group, Row, display, number
from common.judge.tables import Table

# Okabe and Ito's colours, told apart in every common form of colour blindness; their yellow is
# left out, too faint on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = "os^Dv<>P"
STYLE = {
    "font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "legend.frameon": False, "legend.fontsize": 8, "lines.linewidth": 1.5, "lines.markersize": 5,
    "figure.constrained_layout.use": True, "pdf.fonttype": 42,
    "svg.hashsalt": "bakeoff", "svg.fonttype": "none",
}  # fmt: skip
MOST_POINTS = 60  # of a curve: more could not be told apart
MOST_NUMBERED = 100  # classes of a confusion matrix
# Labelled steps of each decade, the first that gives three.
TICKS = ((1, 3), (1, 2, 5), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8))
# Of the tables with speed-ups: the figure's key, the baseline, the columns that name a panel and
# those that name a bar in it, the caption.
SPEEDUPS = {
    "q2": (
        "speedup_train",
        "the first",
        ("dataset", "model", "opt", "image_size", "batch_size"),
        ("label",),
        "Training speed over the first variant of each panel. Hatched: from a sample of steps.",
    ),
    "infer": (
        "speedup_infer",
        "eager",
        ("dataset", "model"),
        ("scenario", "batch_size", "threads", "engine"),
        "Inference speed of the exported models over the eager network at the same batch.",
    ),
}


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report, undrawn; `on_page` where the page has it in this form."""

    section: str
    key: str
    caption: str
    draw: Callable[[], Figure]
    on_page: bool = True

    def to_bytes(self, extension: str) -> bytes:
        """Its file, alike whatever the user's own settings, and without dates."""
        metadata = {"png": {}, "pdf": {"CreationDate": None}}.get(
            extension, dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
        buffer = io.BytesIO()
        with matplotlib.style.context(["default", STYLE]):
            self.draw().savefig(
                buffer, format=extension, dpi=150, metadata=metadata, transparent=extension == "svg"
            )
        return buffer.getvalue()


def look_of(i: int) -> dict[str, str]:
    """Colour and marker of the i-th series; the pairs repeat after 64."""
    n = len(COLORS)
    return {"color": COLORS[i % n], "marker": MARKERS[(i + i // n) % n]}


def literal(text: str) -> str:
    """Text that matplotlib shows as it is: a dollar sign would start mathematics."""
    return text.replace("$", r"\$")


# --- from rows to what is drawn -------------------------------------------------------------------


def build_figures(
    rows: Sequence[Row], mistakes: Sequence[Mistakes], tables: Sequence[Table]
) -> list[ReportFigure]:
    """Every figure that the rows, the mistakes of the chosen networks and the tables can carry."""
    train, svm = log.latest_ok(rows, "train"), log.latest_ok(rows, "svm")
    figures = []
    for dataset, curves in curves_of(log.latest_ok(rows, "epoch")).items():
        caption = f"{display(dataset)}: learning curves on validation and training images."
        if len(curves) > len(COLORS):
            caption += f" The best {len(COLORS)} of {len(curves)} runs."
        best = curves[: len(COLORS)]
        draw = partial(learning_curves, best, log.describe_all([curve.config for curve in best]))
        figures.append(ReportFigure("q1a", f"curves_{log.slug(dataset)}", caption, draw, False))
    if panels := cost_points(train, svm, log.pick_best(train)):
        caption = (
            "Test accuracy with its 95 % interval against training time, for each configuration in "
            "the log, whatever its protocol: the tables say which. Dashed: the Pareto front."
        )
        draw = partial(accuracy_cost, panels)
        figures.append(ReportFigure("best", "accuracy_cost", caption, draw, False))
    figures += [figure for m in mistakes for figure in mistake_figures(m)]
    for table in tables:
        if table.key in SPEEDUPS:
            figures += speedup_figure(table)
    return figures


@dataclass(frozen=True)
class Curve:
    """A run and the metrics of its epochs, in order."""

    run_id: str
    config: Row
    epochs: list[Row]

    @property
    def val_acc(self) -> float | None:
        """The validation accuracy of the last epoch."""
        return number(self.epochs[-1], "val_acc")


def curves_of(epochs: Iterable[Row]) -> dict[str, list[Curve]]:
    """The runs of each data set, the best on validation first."""
    known = [row for row in epochs if number(row, "metrics", "epoch") is not None]
    known.sort(key=lambda row: row["metrics"]["epoch"])
    datasets: dict[str, list[Curve]] = {name: [] for name in log.datasets_of(known)}
    for run_id, run in log.grouped(known, lambda row: row["run_id"]).items():
        curve = Curve(run_id, run[0]["config"], [row["metrics"] for row in run])
        datasets[str(curve.config.get("dataset"))].append(curve)
    for curves in datasets.values():
        curves.sort(key=lambda curve: (-(curve.val_acc or 0), curve.run_id))
    return {name: curves for name, curves in datasets.items() if curves}


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


def cost_points(
    train: Sequence[Row], svm: Sequence[Row], best: Sequence[Group]
) -> dict[str, list[Point]]:
    """Accuracy and training time of each configuration that has both, by data set."""
    chosen = {row["run_id"] for group in best for row in group.rows}
    panels: dict[str, list[Point]] = {name: [] for name in log.datasets_of([*train, *svm])}
    groups = [*log.by_seed(train), *log.by_seed(svm)]
    details = log.describe_all([group.config for group in groups])
    for group, detail in zip(groups, details, strict=True):
        config, row, interval = group.config, group.rows[0], log.accuracy_interval(group)
        cost_ms = group.cost_ms()
        if interval and cost_ms:
            kernel = f"SVM, {config.get('kernel')}"
            label = kernel if group.kind == "svm" else f"{config['model']}, {config.get('opt')}"
            panels[str(config.get("dataset"))].append(Point(
                label, cost_ms, group.mean("test_acc"), interval, row["run_id"] in chosen, detail,
            ))  # fmt: skip
    return {name: points for name, points in panels.items() if points}


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in accuracy at the same or lower cost, cheapest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.train_ms, -p.test_acc)):
        if not front or point.test_acc > front[-1].test_acc:
            front.append(point)
    return front


def mistake_figures(m: Mistakes) -> Iterable[ReportFigure]:
    """The confusion matrix of a chosen run, its confidence and its galleries."""
    figures = {
        "confusion": (
            f"{display(m.dataset)}: test images of run {m.run_id} by true and predicted class.",
            partial(confusion_matrix, confusion(m.predictions), m.predictions["classes"]),
        )
    }
    if m.bins:
        caption = f"{m.name}: accuracy by confidence (95 %); on the diagonal they agree."
        figures["reliability"] = caption, partial(reliability_diagram, m.bins)
    ends = "; true class above, then what it is taken for."
    if m.images and m.worst:
        caption = f"{m.name}: most confident mistakes{ends}"
        figures["worst"] = caption, partial(gallery, m.worst, m.images)
    if m.images and m.nobody:
        caption = f"{m.name}: missed by every model{ends}"
        figures["nobody"] = caption, partial(gallery, m.nobody[:GALLERY], m.images)
    return [ReportFigure("errors", f"{key}_{m.key}", *rest) for key, rest in figures.items()]


def speedup_figure(table: Table) -> Iterable[ReportFigure]:
    """The speed-ups of a table."""

    def name(record: Row, columns: Sequence[str]) -> str:
        named = record | {"dataset": log.shorten(str(record["dataset"]))}
        known = {c: named[c] for c in columns if named[c] is not None}
        texts = (
            v if isinstance(v, str) else log.in_words({c: v}, [c])[0] for c, v in known.items()
        )
        return ", ".join(texts)

    key, baseline, panel, label, caption = SPEEDUPS[table.key]
    measured = [record for record in table.records if record["speedup"]]
    panels = {
        title: [(name(record, label), record) for record in records]  # a label may come twice
        for title, records in log.grouped(measured, lambda record: name(record, panel)).items()
    }
    if panels:
        yield ReportFigure(table.section, key, caption, partial(speedups, panels, baseline))


# --- axes -----------------------------------------------------------------------------------------


def log_ticks(low: float, high: float) -> np.ndarray:
    """Round values from low to high for a logarithmic axis: few, but three where there are any."""
    for steps in TICKS:
        ticks = LogLocator(subs=steps, numticks=20).tick_values(low, high)
        ticks = ticks[(ticks >= low) & (ticks <= high)]
        if len(ticks) >= 3:
            break
    return ticks


def label_log(axis: Axis, values: Iterable[float]) -> tuple[float, float]:
    """Label a logarithmic axis. Returns: limits with room around the values."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = min(positive) / 1.3, max(positive) * 1.3
    axis.set_ticks(log_ticks(low, high))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_locator(NullLocator())
    return low, high


def scale_accuracy(axes: Axes, accuracies: Iterable[float]) -> None:
    """Put accuracies, in per cent, on a logarithmic scale of their error: 90, 99 and 99.9 % are
    equally far apart. A perfect one stands with half the smallest other error."""
    errors = 100 - np.array([a for a in accuracies if not math.isnan(a)] or [50.0])
    least = min(errors[errors > 0], default=50) / 2
    low, high = max(errors.min(), least) / 1.15, max(errors.max(), least) * 1.15

    def forward(accuracy: np.ndarray) -> np.ndarray:
        return -np.log10(np.maximum(100 - accuracy, least))

    axes.set_yscale("function", functions=(forward, lambda place: 100 - 10.0**-place))
    axes.set_yticks(100 - log_ticks(low, high))
    axes.set_ylim(100 - high, 100 - low)
    axes.yaxis.set_major_formatter("{x:.6g}")


# --- drawings -------------------------------------------------------------------------------------


def learning_curves(curves: Sequence[Curve], labels: Sequence[str], legend: bool = True) -> Figure:
    """Accuracy and loss by epoch, one line a run; without a legend those beyond the first are off,
    until the page shows them."""
    figure = Figure(figsize=(9, 3.6 + 0.2 * legend * len(curves)))
    panels = figure.subplots(1, 2)
    for axes, metric, scale in zip(panels, ("acc", "loss"), (100, 1), strict=True):
        values = []
        for i, curve in enumerate(curves):
            ends = np.linspace(0, len(curve.epochs) - 1, min(MOST_POINTS, len(curve.epochs)))
            epochs = [curve.epochs[j] for j in ends.round().astype(int)]
            look = look_of(i) if legend else {"color": look_of(i)["color"]}
            gid = f"curve{' off' if i >= len(COLORS) else ''}:{curve.run_id}"
            for part, style in (("val", "-"), ("train", ":")):
                known = [number(epoch, f"{part}_{metric}") for epoch in epochs]
                y = [math.nan if value is None else scale * value for value in known]
                values += y
                axes.plot([e["epoch"] for e in epochs], y, style, gid=gid, in_layout=False, **look)
        axes.set_xlabel("Epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if metric == "acc":
            scale_accuracy(axes, values)
    panels[0].set_ylabel("Accuracy, %")
    panels[1].set(ylabel="Cross-entropy loss", yscale="log")
    label_log(panels[1].yaxis, values)
    handles = [axes.plot([], [], **look_of(i), label=literal(t))[0] for i, t in enumerate(labels)]
    for style, name in (("-", "validation"), (":", "training")):
        handles += axes.plot([], [], style, color="#555555", label=name)
    if legend:
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def confusion_matrix(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
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
    axes.set(xlabel="Predicted class", ylabel="True class")
    for i, j in np.argwhere(matrix > 0) if len(names) <= MOST_NUMBERED else ():
        color = "white" if share[i, j] > 40 else "#333333"
        axes.text(j, i, str(matrix[i, j]), ha="center", va="center", color=color, fontsize=7)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 1, 5, 20, 50, 100])
    bar.set_label("Share of the true class, %")
    bar.outline.set_visible(False)
    return figure


def interval_dot(
    axes: Axes, x: float, accuracy: float, ends: Sequence[float], text: str, **look: Any
) -> None:
    """A point with its interval, in per cent from fractions, and its text on the page."""
    low, high = (100 * end for end in ends)
    gid = {"gid": f"dot:{text}", "in_layout": False}  # the axes tell their layout
    axes.vlines(x, low, high, linewidth=0.8, color=look["color"], **gid)
    axes.plot(x, 100 * accuracy, **look, **gid)


def reliability_diagram(bins: Sequence[Row]) -> Figure:
    """Accuracy with its interval against mean confidence, in per cent."""
    figure = Figure(figsize=(4.4, 4))
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="#888888", linewidth=0.8)
    for b in bins:
        text = (
            f"{b['images']:,} images of confidence {100 * b['confidence']:.1f} %: "
            f"{100 * b['accuracy']:.1f} % right"
        )
        ends = b["accuracy_low"], b["accuracy_high"]
        interval_dot(axes, 100 * b["confidence"], b["accuracy"], ends, text, **look_of(0))
    axes.set(xlabel="Mean confidence, %", ylabel="Accuracy, %", xlim=(0, 102), ylim=(0, 102))
    return figure


def gallery(records: Sequence[Row], images: Mapping[int, np.ndarray]) -> Figure:
    """Test images, eight a line, each under its true class and what it is taken for."""
    columns = min(8, len(records))
    lines = -(-len(records) // columns)
    figure = Figure(figsize=(1.15 * columns + 0.2, 1.75 * lines))
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for axes in panels:
        axes.set_axis_off()
    for axes, r in zip(figure.axes, records, strict=False):
        axes.imshow(images[r["index"]], cmap="gray", vmin=0, vmax=255)
        sure = f"{r['confidence']:.2%} sure" if "confidence" in r else f"{r['agreed']} runs agree"
        axes.set_title(literal(f"{r['class']}\n{r['taken_for']}\n{sure}"), fontsize=7)
        axes.set_gid(f"dot:Test image {r['index']}: {r['class']}, taken for {r['taken_for']}")
    return figure


def accuracy_cost(points: Mapping[str, Sequence[Point]]) -> Figure:
    """Test accuracy with its interval against training time, one panel a data set, and the front
    of those that no other beats at their cost."""
    labels = list(dict.fromkeys(point.label for panel in points.values() for point in panel))
    figure = Figure(figsize=(1 + 4 * len(points), 4.2))
    panels = figure.subplots(1, len(points), squeeze=False)[0]
    for axes, (dataset, panel) in zip(panels, points.items(), strict=True):
        for p in panel:
            look = look_of(labels.index(p.label)) | ({"mec": "black", "ms": 8} if p.chosen else {})
            interval_dot(axes, p.train_ms / 1e3, p.test_acc, p.interval, p.detail, **look)
        front = [(p.train_ms / 1e3, 100 * p.test_acc) for p in pareto_front(panel)]
        axes.step(
            *zip(*front, strict=True), where="post", color="#777777", ls="--", lw=0.8, zorder=1
        )
        scale_accuracy(axes, [100 * value for p in panel for value in (*p.interval, p.test_acc)])
        axes.set(title=literal(display(dataset)), xlabel="Training time, s", xscale="log")
        axes.set_xlim(label_log(axes.xaxis, [p.train_ms / 1e3 for p in panel]))
    panels[0].set_ylabel("Test accuracy, %")
    handles = [
        panels[0].plot([], [], ls="", **look_of(i), label=literal(label))[0]
        for i, label in enumerate(labels)
    ]
    if any(point.chosen for panel in points.values() for point in panel):
        ring = {"mec": "black", "mfc": "none", "ms": 8, "marker": "o", "ls": ""}
        handles += panels[0].plot([], [], **ring, label="chosen on validation")
    figure.legend(handles=handles, loc="outside lower center", ncols=2 + len(points))
    return figure


def speedups(panels: Mapping[str, Sequence[tuple[str, Row]]], baseline: str) -> Figure:
    """Horizontal bars of speed-ups by panel and label, with the accuracy of what ran; hatched where
    the epoch behind one was extrapolated, 1 is the baseline."""
    sizes = [len(bars) for bars in panels.values()]
    figure = Figure(figsize=(9, sum(0.9 + 0.25 * size for size in sizes)))
    grid = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=sizes).flat
    for axes, (title, bars) in zip(grid, panels.items(), strict=True):
        ratios = [bar["speedup"] for _, bar in bars]
        drawn = axes.barh(range(len(bars)), ratios, 0.65, color=COLORS[0])
        texts = []
        for patch, (_, bar) in zip(drawn, bars, strict=True):
            accuracy = bar["test_acc"]
            correct = "" if accuracy is None else f", {100 * accuracy:.2f} % correct"
            texts.append(f"{bar['speedup']:.2f}x{correct}")
            if bar.get("extrapolated"):
                patch.set(facecolor="#9CC7E4", edgecolor=COLORS[0], hatch="///", linewidth=0.5)
        axes.bar_label(drawn, texts, padding=3, fontsize=8)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_title(literal(title), loc="left")
        axes.set_yticks(range(len(bars)), [literal(label) for label, _ in bars])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"Speed-up over {baseline}, times")
    most = max(bar["speedup"] for bars in panels.values() for _, bar in bars)
    axes.set_xlim(0, 1.3 * most)  # with room for the texts
    return figure
