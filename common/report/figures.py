"""The report's figures: chosen from the rows of the log by build_figures, drawn by the rest.

On the page an artist whose gid is dot:text shows the text on hovering, and one whose url is
curve:run_id is a line that can be switched off.
"""

import io
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import collections, colors, lines, style, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.judge import rows as log
from common.judge.mistakes import GALLERY, Mistakes, confusion
from common.judge.rows import Group, Row, display, number
from common.judge.tables import Table

Curves = dict[str, list[Row]]  # by data set

# Okabe and Ito's colours, told apart in every common form of colour blindness; their yellow is
# left out, too faint on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = "os^Dv<>P"
STYLE = Path(__file__).with_name("figures.mplstyle")
DATES = {"png": (), "pdf": ("CreationDate",), "svg": ("Date", "Creator", "Format", "Type")}
METRICS = ("epoch", "val_acc", "train_acc", "val_loss", "train_loss")
MOST_POINTS = 60  # of a curve: more could not be told apart
MOST_NUMBERED = 100  # classes of a confusion matrix
MOST_PIXELS = 100  # a side of an image that a figure holds as it is
# Labelled steps of each decade, the first that gives three.
TICKS = ((1, 3), (1, 2, 5), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8))
SPEEDUPS = tomllib.loads(Path(__file__).with_name("speedups.toml").read_text("utf-8"))


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report, undrawn; `on_page` where the page has it in this form."""

    section: str
    key: str
    caption: str
    draw: Callable[[], Figure]
    on_page: bool = True

    def to_bytes(self, *extensions: str) -> dict[str, bytes]:
        """Its files by extension, alike whatever the user's own settings, and without dates."""
        files = {}
        with style.context(["default", STYLE]):
            figure = self.draw()
            for extension in extensions:
                form = {"format": extension, "transparent": extension == "svg", "dpi": 150}
                buffer = io.BytesIO()
                figure.savefig(buffer, metadata=dict.fromkeys(DATES[extension]), **form)
                figure.set_layout_engine("none")  # it is laid out
                files[extension] = buffer.getvalue()
        return files


def build_figures(
    runs: Sequence[Row], curves: Curves, mistakes: Iterable[Mistakes], tables: Iterable[Table]
) -> list[ReportFigure]:
    """Every figure for which there is anything to draw."""
    figures = []
    for dataset, known in curves.items():
        best = known[: len(COLORS)]
        caption = f"{display(dataset)}: learning curves on validation and training images."
        if len(known) > len(best):
            caption += f" The best {len(best)} of {len(known)} runs."
        draw = partial(learning_curves, best, log.describe_all([c["config"] for c in best]))
        figures.append(ReportFigure("q1a", f"curves_{log.slug(dataset)}", caption, draw, False))
    if panels := cost_points(runs, [g for g in log.pick_best(runs) if g.kind == "train"]):
        caption = (
            "Test accuracy with its 95 % interval against training time, for each configuration in "
            "the log, whatever its protocol: the tables say which. Dashed: the Pareto front."
        )
        draw = partial(accuracy_cost, panels)
        figures.append(ReportFigure("best", "accuracy_cost", caption, draw, False))
    for m in mistakes:
        draw = partial(confusion_matrix, confusion(m.predictions), m.predictions["classes"])
        drawn = {"confusion": ("test images by true and predicted class.", draw)}
        if m.bins:
            caption = "accuracy by confidence (95 %); on the diagonal they agree."
            drawn["reliability"] = caption, partial(reliability_diagram, m.bins)
        galleries = {"worst": ("most confident mistakes", m.worst)}
        galleries["nobody"] = "missed by every model", m.nobody[:GALLERY]
        for key, (name, records) in galleries.items():
            if m.images and records:
                caption = f"{name}; true class above, then what it is taken for."
                drawn[key] = caption, partial(gallery, records, m.images)
        for key, (caption, draw) in drawn.items():
            figures.append(ReportFigure("errors", f"{key}_{m.key}", f"{m.name}: {caption}", draw))
    for table in tables:
        measured = [record for record in table.records if record.get("speedup")]
        if measured and (words := SPEEDUPS.get(table.key)):
            draw = partial(speedups, measured, words["panel"], words["bar"], words["baseline"])
            figures.append(ReportFigure(table.section, words["key"], words["caption"], draw))
    return figures


def curves_of(epochs: Iterable[Row]) -> Curves:
    """The runs of each data set, the best on validation first."""
    known = [row for row in epochs if number(row, "metrics", "epoch") is not None]
    known.sort(key=lambda row: row["metrics"]["epoch"])
    curves = []
    for run_id, run in log.grouped(known, lambda row: row["run_id"]).items():
        metrics = [row["metrics"] for row in run]
        curve = {"run_id": run_id, "config": run[0]["config"], "epochs": metrics}
        curves.append(curve | {"val_acc": number(metrics[-1], "val_acc")})
    curves.sort(key=lambda curve: (-(curve["val_acc"] or 0), curve["run_id"]))
    return by_dataset(curves, known)


def cost_points(runs: Sequence[Row], best: Iterable[Group]) -> dict[str, list[Row]]:
    """Accuracy and training time of each configuration that has both, by data set."""
    chosen = {row["run_id"] for group in best for row in group.rows}
    groups, points = log.by_seed(runs), []
    for group, detail in zip(groups, log.describe_all([g.config for g in groups]), strict=True):
        model, opt, kernel = (group.config.get(name) for name in ("model", "opt", "kernel"))
        point = log.accuracy_record(group) | {"config": group.config, "detail": detail}
        point["label"] = f"SVM, {kernel}" if group.kind == "svm" else f"{model}, {opt}"  # its look
        point |= {"train_ms": group.cost_ms(), "chosen": group.rows[0]["run_id"] in chosen}
        if point["test_acc_low"] is not None and point["train_ms"]:
            points.append(point)
    return by_dataset(points, runs)


def by_dataset(records: Iterable[Row], rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Records by the data set of their configuration, in the order of the rows'."""
    groups = log.grouped(records, lambda record: str(record["config"].get("dataset")))
    return {name: groups[name] for name in log.datasets_of(rows) if name in groups}


def pareto_front(points: Iterable[Row]) -> list[Row]:
    """The points that no other beats in accuracy at the same or lower cost, cheapest first."""
    front: list[Row] = []
    for point in sorted(points, key=lambda p: (p["train_ms"], -p["test_acc"])):
        if not front or point["test_acc"] > front[-1]["test_acc"]:
            front.append(point)
    return front


def look_of(i: int) -> Row:
    """Colour and marker of the i-th series; the pairs repeat after 64."""
    n = len(COLORS)
    return {"color": COLORS[i % n], "marker": MARKERS[(i + i // n) % n], "ls": ""}


def log_ticks(low: float, high: float) -> np.ndarray:
    """Round values from low to high for a logarithmic axis: few, but three where there are any."""
    for steps in TICKS:
        ticks = ticker.LogLocator(subs=steps, numticks=20).tick_values(low, high)
        ticks = ticks[(ticks >= low) & (ticks <= high)]
        if len(ticks) >= 3:
            break
    return ticks


def scale_log(axes: Axes, name: str, values: np.ndarray, errors: bool = False) -> None:
    """Put an axis, x or y, on a log scale; errors, in per cent, are labelled as accuracies."""
    positive = values[values > 0] if (values > 0).any() else np.ones(1)
    low, high = positive.min() / 1.15, positive.max() * 1.15
    ends = (high, low) if errors else (low, high)
    axes.set(**{f"{name}scale": "log", f"{name}ticks": log_ticks(low, high), f"{name}lim": ends})
    axis = {"x": axes.xaxis, "y": axes.yaxis}[name]
    axis.set_major_formatter(lambda x, _: f"{100 - x:.6g}" if errors else f"{x:,g}")
    axis.set_minor_locator(ticker.NullLocator())


def errors_of(accuracies: np.ndarray) -> np.ndarray:
    """Errors in per cent; that of a perfect accuracy is taken as half the smallest other one."""
    errors = 100 * (1 - accuracies)
    return np.maximum(errors, errors[errors > 0].min(initial=50) / 2)


def interval_dots(axes: Axes, x: np.ndarray, ends: np.ndarray, looks: Sequence[Row]) -> None:
    """Points with their intervals, as low, value and high."""
    axes.vlines(x, ends[:, 0], ends[:, 2], colors=[look["color"] for look in looks], lw=0.8)
    for place, value, look in zip(x, ends[:, 1], looks, strict=True):
        axes.plot(place, value, in_layout=False, **look)  # the axes tell theirs


def add_legend(figure: Figure, looks: Mapping[str, Row], columns: int) -> None:
    handles = [lines.Line2D([], [], label=label, **look) for label, look in looks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def learning_curves(curves: Sequence[Row], labels: Sequence[str] = ()) -> Figure:
    """Accuracy and loss by epoch; without labels no legend, and runs beyond the first are off."""
    figure = Figure(figsize=(9, 3.6 + 0.2 * len(labels)))
    left, right = figure.subplots(1, 2)
    series = np.full((len(curves), MOST_POINTS, len(METRICS)), np.nan)
    look = {"linestyles": ["-", ":"], "colors": [], "urls": []}  # of validation and training
    for i, curve in enumerate(curves):
        last = len(curve["epochs"]) - 1
        places = np.linspace(0, last, min(MOST_POINTS, last + 1)).round().astype(int)
        points = [[number(curve["epochs"][j], name) for name in METRICS] for j in places]
        series[i, : len(points)] = np.array(points, float)  # a null is not a number
        look["colors"] += 2 * [look_of(i)["color"]]
        look["urls"] += 2 * [f"curve{' off' if i >= len(COLORS) else ''}:{curve['run_id']}"]
    series[..., 1:3] = errors_of(series[..., 1:3])
    for axes, columns in ((left, [1, 2]), (right, [3, 4])):
        # One artist for all lines, of which there may be thousands.
        paths = [points[:, [0, column]] for points in series for column in columns]
        axes.add_collection(collections.LineCollection(paths, **look))
        axes.autoscale()
        for i in range(len(labels)):
            axes.plot(series[i, :, 0], series[i][:, columns], **look_of(i))
        axes.set(xlabel="Epoch", ylabel="Accuracy, %" if axes is left else "Cross-entropy loss")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        scale_log(axes, "y", series[..., columns], errors=axes is left)
    if labels:
        looks = {label: look_of(i) | {"ls": "-"} for i, label in enumerate(labels)}
        for part, dashes in {"validation": "-", "training": ":"}.items():
            looks[part] = {"ls": dashes, "color": "#555555"}
        add_legend(figure, looks, 2)
    return figure


def confusion_matrix(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Colour is the share of the true class, numbers count images."""
    share = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = max(5.0, 0.45 * len(classes) + 1.5)
    figure = Figure(figsize=(size + 0.8, size))
    axes = figure.subplots()
    # On a linear scale a good model's mistakes, a few per cent, would all be white.
    norm = colors.PowerNorm(0.4, vmin=0, vmax=100)
    image = axes.imshow(share, cmap="Blues", norm=norm, interpolation="none")
    axes.grid(False)
    places = range(len(classes))
    axes.set_xticks(places, classes, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, classes)
    axes.set(xlabel="Predicted class", ylabel="True class")
    for i, j in np.argwhere(matrix > 0) if len(classes) <= MOST_NUMBERED else ():
        color = "white" if share[i, j] > 40 else "#333333"
        axes.text(j, i, str(matrix[i, j]), ha="center", va="center", color=color, fontsize=7)
    look = {"ticks": [0, 1, 5, 20, 50, 100], "label": "Share of the true class, %"}
    figure.colorbar(image, ax=axes, shrink=0.8, **look).outline.set_visible(False)
    return figure


def reliability_diagram(bins: Sequence[Row]) -> Figure:
    """Accuracy with its interval against mean confidence, in per cent."""
    figure = Figure(figsize=(4.4, 4))
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="#888888", linewidth=0.8)
    names = ("confidence", "accuracy_low", "accuracy", "accuracy_high")
    places = 100 * np.array([[b[name] for name in names] for b in bins])
    looks = []
    for b, (sure, _, right, _) in zip(bins, places, strict=True):
        text = f"{b['images']:,} images of confidence {sure:.1f} %: {right:.1f} % right"
        looks.append(look_of(0) | {"gid": f"dot:{text}"})
    interval_dots(axes, places[:, 0], places[:, 1:], looks)
    axes.set(xlabel="Mean confidence, %", ylabel="Accuracy, %", xlim=(0, 102), ylim=(0, 102))
    return figure


def gallery(records: Sequence[Row], images: Mapping[int, np.ndarray]) -> Figure:
    """Test images, eight a line, each under its true class and what it is taken for."""
    columns = min(8, len(records))
    height = -(-len(records) // columns)
    figure = Figure(figsize=(1.15 * columns + 0.2, 1.75 * height))
    for axes in figure.subplots(height, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, r in zip(figure.axes, records, strict=False):
        pixels = images[r["index"]]
        resampled = "auto" if len(pixels) > MOST_PIXELS else "none"
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation=resampled)
        sure = f"{r['confidence']:.2%} sure" if "confidence" in r else f"{r['agreed']} runs agree"
        axes.set_title(f"{r['class']}\n{r['taken_for']}\n{sure}", fontsize=7)
        axes.set_gid(f"dot:Test image {r['index']}: {r['class']}, taken for {r['taken_for']}")
    return figure


def accuracy_cost(panels: Mapping[str, Sequence[Row]]) -> Figure:
    """Test accuracy against training time and the Pareto front, one panel a data set."""
    points = [point for panel in panels.values() for point in panel]
    labels = dict.fromkeys(point["label"] for point in points)
    looks, ring = {name: look_of(i) for i, name in enumerate(labels)}, {"mec": "black", "ms": 8}
    figure = Figure(figsize=(1 + 4 * len(panels), 4.2))
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (dataset, panel) in zip(grid, panels.items(), strict=True):
        ends = [[p[f"test_acc{end}"] for end in ("_low", "", "_high")] for p in panel]
        errors, seconds = errors_of(np.array(ends)), np.array([p["train_ms"] / 1e3 for p in panel])
        dots = [looks[p["label"]] | {"gid": f"dot:{p['detail']}"} for p in panel]
        dots = [dot | ring if p["chosen"] else dot for dot, p in zip(dots, panel, strict=True)]
        interval_dots(axes, seconds, errors, dots)
        front = [panel.index(point) for point in pareto_front(panel)]
        look = {"color": "#777777", "ls": "--", "lw": 0.8, "zorder": 1}
        axes.step(seconds[front], errors[front, 1], where="post", **look)
        scale_log(axes, "x", seconds)
        scale_log(axes, "y", errors, errors=True)
        axes.set(title=display(dataset), xlabel="Training time, s")
    grid[0].set_ylabel("Test accuracy, %")
    if any(point["chosen"] for point in points):
        looks["chosen on validation"] = look_of(0) | ring | {"mfc": "none"}
    add_legend(figure, looks, 2 + len(panels))
    return figure


def speedups(records: Sequence[Row], panel: list[str], label: list[str], baseline: str) -> Figure:
    """Bars of speed-ups by panel and label, hatched where the epoch behind one was extrapolated."""

    def name(record: Row, columns: Sequence[str]) -> str:
        named = record | {"dataset": log.shorten(str(record["dataset"]))}
        known = [(c, named[c]) for c in columns if named[c] is not None]
        return ", ".join(v if isinstance(v, str) else log.in_words(named, [c])[0] for c, v in known)

    panels = log.grouped(records, lambda record: name(record, panel))
    sizes = [len(bars) for bars in panels.values()]
    figure = Figure(figsize=(9, sum(0.9 + 0.25 * size for size in sizes)))
    grid = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=sizes).flat
    for axes, (title, bars) in zip(grid, panels.items(), strict=True):
        texts = [f"{bar['speedup']:.2f}x" for bar in bars]
        for i, bar in enumerate(bars):
            if bar["test_acc"] is not None:
                texts[i] += f", {100 * bar['test_acc']:.2f} % correct"
        sampled = [bool(bar.get("extrapolated")) for bar in bars]
        look = {"color": ["#9CC7E4" if s else COLORS[0] for s in sampled], "edgecolor": COLORS[0]}
        look |= {"hatch": ["///" if s else "" for s in sampled], "linewidth": 0.5}
        drawn = axes.barh(range(len(bars)), [bar["speedup"] for bar in bars], 0.65, **look)
        axes.bar_label(drawn, texts, padding=3, fontsize=8)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_title(title, loc="left")
        axes.set_yticks(range(len(bars)), [name(bar, label) for bar in bars])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"Speed-up over {baseline}, times")
    axes.set_xlim(0, 1.3 * max(record["speedup"] for record in records))  # room for the texts
    return figure
