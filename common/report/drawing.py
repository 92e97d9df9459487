"""The report's figures as matplotlib draws them.

On the page an artist whose gid is dot:text shows the text on hovering, and one whose url is
curve:run_id is a line that can be switched off. Colours are inverted there at night, images not.
"""

import itertools
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import collections, colors, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.judge import rows as log
from common.judge.published import published
from common.judge.rows import Row, display, number
from common.judge.verdicts import SEEDS

# Okabe and Ito's colours, told apart in every common form of colour blindness; their yellow is
# left out, too faint on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = "os^Dv<>P"
METRICS = ("epoch", "val_acc", "train_acc", "val_loss", "train_loss")
MOST_POINTS = 60  # of a curve: more could not be told apart
MOST_NUMBERED = 100  # classes of a confusion matrix
MOST_PIXELS = 100  # a side of an image that a figure holds as it is
MOST_NAMES = 9  # in a panel
WIDTH = 7.4  # inches, in which text is as large in print as it is here
# Labelled steps of each decade, the first that gives three.
TICKS = ((1, 3), (1, 2, 5), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8))
# Where a name may stand: how far from its point, in typographic points, and on which side, as the
# part of its width and height where the point is: above, below, right, left, and between.
REACHES = (5, 14, 26, 40)
SIDES = ((0.5, 0), (0.5, 1), (0, 0.5), (1, 0.5), (0, 0), (1, 0), (0, 1), (1, 1))
ALIGNED = ({0: "left", 0.5: "center", 1: "right"}, {0: "bottom", 0.5: "center", 1: "top"})
FAMILIES = ("resnet18", "resnet50", "resnet14", "vgg5", "SVM")  # of one look in every figure
DURATIONS = {1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 36000: "10 h"}
WORDS = tomllib.loads(Path(__file__).with_name("figures.toml").read_text("utf-8"))


def points_of(epochs: Sequence[Row]) -> np.ndarray:
    """METRICS of some epochs from first to last, few enough to draw; a null is not a number."""
    places = np.linspace(0, len(epochs) - 1, min(MOST_POINTS, len(epochs))).round().astype(int)
    return np.array([[number(epochs[j], name) for name in METRICS] for j in places], float)


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
    return ticks[:: -(-len(ticks) // 6)] if len(ticks) else ticks


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


def panels_of(
    count: int, width: float, height: float, columns: int = 2, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, in lines of at most so many columns, each of this size."""
    lines, columns = -(-count // columns), min(columns, count)
    figure = Figure(figsize=(width * (columns if columns > 1 else 1.4), height * lines))
    grid = figure.subplots(lines, columns, squeeze=False, **shared).ravel()
    for axes in grid[count:]:
        axes.set_axis_off()
    return figure, list(grid[:count])


def label_points(named: Mapping[Axes, Iterable[tuple[float, float, str]]]) -> None:
    """Write names beside points (x, y, name), each on the side where it hides fewest of the lines
    and names that are there. Last of all: where they fit shows once all is laid out."""
    next(iter(named)).figure.draw_without_rendering()
    for axes, names in named.items():
        scale, taken = 72 / axes.figure.dpi, []  # to typographic points
        for line in axes.lines:
            ends = line.get_transform().transform(line.get_xydata()) * scale
            for a, b in itertools.pairwise(ends):
                dots = np.linspace(a, b, 2 + int(np.nan_to_num(np.abs(b - a).max()) / 15))
                taken += [(*(dot - 2), *(dot + 2), 1) for dot in dots]
            if len(ends) == 1:
                taken.append((*(ends[0] - 3), *(ends[0] + 3), 4))
        frame = axes.bbox.extents * scale
        for x, y, name in names:
            place, words = axes.transData.transform((x, y)) * scale, name.split("\n")
            size, tries = np.array([4.6 * max(map(len, words)), 10 * len(words)]), []
            for reach, side in itertools.product(REACHES, SIDES):
                away = (1 - 2 * np.array(side)) * reach
                (x0, y0), (x1, y1) = (place + away - side * size + i * size for i in (0, 1))
                out = x0 < frame[0] or y0 < frame[1] or x1 > frame[2] or y1 > frame[3]
                hidden = (
                    b[4] for b in taken if x0 < b[2] and b[0] < x1 and y0 < b[3] and b[1] < y1
                )
                cost = sum(hidden) + 200 * out + reach / 20
                tries.append((cost, tuple(away), side, (x0, y0, x1, y1, 40)))
            _, away, (h, v), box = min(tries)
            taken.append(box)
            look = {"ha": ALIGNED[0][h], "va": ALIGNED[1][v], "fontsize": 8}
            if max(map(abs, away)) > REACHES[0]:
                look["arrowprops"] = {"arrowstyle": "-", "lw": 0.5, "color": "#777777"}
                dots = np.linspace(place, place + away, 6)[1:]
                taken += [(*(dot - 3), *(dot + 3), 4) for dot in dots]
            axes.annotate(name, (x, y), away, textcoords="offset points", in_layout=False, **look)


def learning_curves(curves: Sequence[Row]) -> Figure:
    """Accuracy and loss by epoch, for the page; runs beyond the first are off."""
    figure = Figure(figsize=(9, 3.6))
    series = np.full((len(curves), MOST_POINTS, len(METRICS)), np.nan)
    look = {"linestyles": ["-", ":"], "colors": [], "urls": []}  # of validation and training
    for i, curve in enumerate(curves):
        points = points_of(curve["epochs"])
        series[i, : len(points)] = points
        look["colors"] += 2 * [look_of(i)["color"]]
        look["urls"] += 2 * [f"curve{' off' if i >= len(COLORS) else ''}:{curve['run_id']}"]
    series[..., 1:3] = errors_of(series[..., 1:3])
    for axes, columns in zip(figure.subplots(1, 2), ([1, 2], [3, 4]), strict=True):
        # One artist for all lines, of which there may be thousands.
        paths = [points[:, [0, column]] for points in series for column in columns]
        axes.add_collection(collections.LineCollection(paths, **look))
        axes.autoscale()
        name_curves(axes, series[..., columns], 1 in columns)
    return figure


def name_curves(axes: Axes, values: np.ndarray, accuracy: bool) -> None:
    axes.set(xlabel="Epoch", ylabel="Accuracy, %" if accuracy else "Cross-entropy loss")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    scale_log(axes, "y", values, errors=accuracy)


def mean_curves(chosen: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Accuracy and loss by epoch, a line of axes a data set; the range over seeds is shaded."""
    figure, grid = panels_of(2 * len(chosen), WIDTH / 2, 2.1)
    named = {}
    for (dataset, known), left, right in zip(chosen.items(), grid[::2], grid[1::2], strict=True):
        seeds = [values.copy() for values in known.values()]
        for i, values in enumerate(seeds):
            values[..., 1:3] = errors_of(values[..., 1:3])
            x, color = values[0, :, 0], look_of(i)["color"]
            for column, axes in enumerate((left, left, right, right), 1):
                y = values[..., column]
                axes.plot(x, y.mean(0), "-" if column in (1, 3) else ":", color=color)
                axes.fill_between(x, y.min(0), y.max(0), color=color, alpha=0.2, lw=0)
        ends = [values[:, -1].mean(0)[:2] for values in seeds]
        every = np.concatenate([values.reshape(-1, len(METRICS)) for values in seeds])
        for axes, columns in ((left, [1, 2]), (right, [3, 4])):
            name_curves(axes, every[:, columns], axes is left)
            if max(x for x, _ in ends) > 3 * min(x for x, _ in ends):
                scale_log(axes, "x", every[:, 0])
        named[left] = [(*end, label) for end, label in zip(ends, known, strict=True)]
        left.set_title(display(dataset), loc="left")
    figure.supxlabel("Solid: validation images; dotted: training images", fontsize=9)
    label_points(named)
    return figure


def confusion_matrix(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Colour is the share of the true class, numbers count images."""
    share = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = max(5.0, 0.45 * len(classes) + 1.5)
    figure = Figure(figsize=(size, size))
    axes, classes = figure.subplots(), [clip(str(name), 24) for name in classes]
    rows, columns = np.nonzero(matrix)
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    cells = np.stack([columns, rows], axis=1)[:, None] + corners
    # On a linear scale a good model's mistakes, a few per cent, would all be white.
    look = {"cmap": "Blues", "norm": colors.PowerNorm(0.4, vmin=0, vmax=100)}
    # No image, which the page would not turn dark with the numbers on it.
    axes.add_collection(collections.PolyCollection(cells, array=share[rows, columns], **look))
    places, ends = range(len(classes)), (-0.5, len(classes) - 0.5)
    axes.set(xlim=ends, ylim=ends[::-1], aspect="equal")
    axes.grid(False)
    axes.set_xticks(places, classes, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, classes)
    axes.set(xlabel="Predicted class", ylabel="True class")
    for i, j in np.argwhere(matrix > 0) if len(classes) <= MOST_NUMBERED else ():
        color = "white" if share[i, j] > 40 else "#333333"
        axes.text(j, i, str(matrix[i, j]), ha="center", va="center", color=color, fontsize=8)
    return figure


def clip(text: str, length: int) -> str:
    """Without its middle where it is longer."""
    half = length // 2
    return text if len(text) <= length else f"{text[: half - 1]}…{text[-half:]}"


def gallery(
    records: Sequence[Row], images: Mapping[int, np.ndarray], files: Mapping[int, str]
) -> Figure:
    """Test images, eight a line, each over its true class, the answer and where it is from."""
    figure, grid = panels_of(len(records), WIDTH / 8, 1.6, columns=8)
    for axes, r in zip(grid, records, strict=True):
        axes.set_axis_off()
        pixels = images[r["index"]]
        resampled = "auto" if len(pixels) > MOST_PIXELS else "none"
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation=resampled)
        sure = f"{100 * r['confidence']:.1f} %" if "confidence" in r else f"{r['agreed']} runs"
        name = files.get(r["index"], f"#{r['index']}")
        words = (r["class"], f"→ {r['taken_for']}", sure, Path(name).name)
        look = {"ha": "center", "va": "top", "fontsize": 8}
        axes.text(
            0.5,
            -0.03,
            "\n".join(clip(text, 14) for text in words),
            transform=axes.transAxes,
            **look,
        )
        axes.set_gid(f"dot:Test image {name}: {r['class']}, taken for {r['taken_for']}")
    return figure


def accuracy_cost(panels: Mapping[str, Sequence[Row]]) -> Figure:
    """Test accuracy against training time with the Pareto front and what was published, one panel
    a data set. Named: what was chosen, and of each label the most accurate."""
    families = dict.fromkeys([*FAMILIES, *(p["family"] for ps in panels.values() for p in ps)])
    looks, ring = {name: look_of(i) for i, name in enumerate(families)}, {"mec": "black", "ms": 8}
    figure, grid = panels_of(len(panels), WIDTH / 2, 3.7)
    named = {}
    for axes, (dataset, panel) in zip(grid, panels.items(), strict=True):
        known = published_errors(dataset, panel)
        ends = [[p[f"test_acc{end}"] for end in ("_low", "", "_high")] for p in panel]
        errors, seconds = errors_of(np.array(ends)), np.array([p["train_ms"] / 1e3 for p in panel])
        order = sorted(range(len(panel)), key=lambda i, panel=panel: panel[i]["test_acc"])
        best = {panel[i]["label"]: i for i in order}.values()  # the last of a label
        shown = [i for i in order[::-1] if i in best or panel[i]["chosen"]]
        shown = sorted(shown, key=lambda i, panel=panel: not panel[i]["chosen"])[:MOST_NAMES]
        for i, (p, x, (low, y, high)) in enumerate(zip(panel, seconds, errors, strict=True)):
            look = looks[p["family"]] | {"alpha": 1 if i in shown else 0.4}
            axes.vlines(x, low, high, color=look["color"], lw=0.8, alpha=look["alpha"])
            look |= ring if p["chosen"] else {}
            axes.plot(x, y, in_layout=False, gid=f"dot:{p['detail']}", **look)
        front = [panel.index(point) for point in pareto_front(panel)]
        steps = np.repeat(seconds[front], 2)[1:], np.repeat(errors[front, 1], 2)[:-1]
        axes.plot(*steps, color="#999999", lw=0.8, zorder=1)
        scale_log(axes, "x", seconds)
        scale_log(axes, "y", np.append(errors, list(known.values())), errors=True)
        axes.set(title=display(dataset), xlabel="Training time, s")
        low, high = axes.get_xlim()
        if len(marks := {s: text for s, text in DURATIONS.items() if low <= s <= high}) > 1:
            axes.set_xticks(list(marks), list(marks.values()))
            axes.set_xlabel("Training time")
        for error in known.values():
            axes.axhline(error, color="#555555", ls="--", lw=0.8, zorder=1)
        named[axes] = [((low * high) ** 0.5, error, name) for name, error in known.items()]
        named[axes] += [
            (seconds[i], errors[i, 1], panel[i]["label"]) for i in order[::-1] if i in shown
        ]
    grid[0].set_ylabel("Test accuracy, %")
    label_points(named)
    return figure


def published_errors(dataset: str, panel: Sequence[Row]) -> dict[str, float]:
    """In per cent, of the study's best network and SVM, where a point is on its split."""
    known = {}
    if any(point["config"].get("split", "study") == "study" for point in panel):
        for part, name in {"best": "published", "q1b": "published SVM"}.items():
            if accuracies := [100 * f["test_acc"] for f in published(part, dataset=dataset)]:
                known[f"{name} {max(accuracies):.2f} %"] = 100 - max(accuracies)
    return known


def main_effects(panels: Mapping[str, Sequence[Row]]) -> Figure:
    """Differences with their intervals, one panel a factor and a line a data set."""
    most = max(map(len, panels.values()))
    figure, grid = panels_of(len(panels), WIDTH / 2, 0.6 + 0.22 * most)
    for axes, (contrast, records) in zip(grid, panels.items(), strict=True):
        first, _, second = contrast.partition(" minus ")
        points = 100 * np.array([[r[n] for n in ("low", "difference", "high")] for r in records])
        axes.axvline(0, color="black", lw=0.8)
        for place, ((low, value, high), r) in enumerate(zip(points, records, strict=True)):
            inside = COLORS[0] if r["seeds"] >= SEEDS else "white"
            axes.hlines(place, low, high, color=COLORS[0], lw=1.5)
            axes.plot(value, place, "o", color=COLORS[0], mfc=inside, ms=6)
            words = f"{round(value, 2) + 0:+.2f}, {r['seeds']} seed{'s' if r['seeds'] > 1 else ''}"
            look = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8}
            axes.text(1.02, place, words, **look)
        low, high = min(0, points.min()), max(0, points.max())
        room = 0.1 * (high - low) or 1
        axes.set(ylim=(len(records) - 0.5, -0.5), xlim=(low - room, high + room))
        axes.set_yticks(range(len(records)), [clip(display(r["dataset"]), 16) for r in records])
        axes.grid(axis="y", visible=False)
        look = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
        for text, x, ha in ((f"← {second} better", -4, "right"), (f"{first} better →", 4, "left")):
            axes.annotate(text, (0, 1), (x, 4), ha=ha, fontsize=8, **look)
    figure.supxlabel("Difference in test accuracy, percentage points", fontsize=9)
    return figure


def speedups(records: Sequence[Row], words: Row) -> Figure:
    """Bars of speed-ups by panel and label, hollow where the epoch behind one was extrapolated."""

    def name(record: Row, columns: Iterable[str]) -> str:
        named = record | {"dataset": display(str(record["dataset"]))}
        known = [(c, named[c]) for c in columns if named[c] is not None]
        return ", ".join(v if isinstance(v, str) else log.in_words(named, [c])[0] for c, v in known)

    def size(record: Row) -> list[float]:
        return [record[c] or 0 for c in words["largest"]]

    fixed = [c for c in words["panel"] if c not in words["largest"]]
    alike = log.grouped(records, lambda record: name(record, fixed)).values()
    kept = [r for same in alike for r in same if size(r) == max(map(size, same))]
    varying = [c for c in words["panel"] if len({str(r[c]) for r in kept}) > 1]
    panels = log.grouped(kept, lambda record: name(record, varying))
    # What is compared with itself alone tells nothing.
    panels = {k: [r for r in v if r is v[0] or r["speedup"] != 1] for k, v in panels.items()}
    most = max(map(len, panels.values()))
    figure, grid = panels_of(len(panels), WIDTH / 2, 0.8 + 0.2 * most, sharex=True)
    for axes, (title, bars) in zip(grid, panels.items(), strict=True):
        inside = ["none" if bar.get("extrapolated") else COLORS[0] for bar in bars]
        look = {"color": inside, "edgecolor": COLORS[0], "linewidth": 1}
        drawn = axes.barh(range(len(bars)), [bar["speedup"] for bar in bars], 0.65, **look)
        accuracies = [f", {100 * a:.2f} %" if (a := bar["test_acc"]) else "" for bar in bars]
        texts = [f"{bar['speedup']:.2f}x{a}" for bar, a in zip(bars, accuracies, strict=True)]
        axes.bar_label(drawn, texts, padding=3, fontsize=8)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_title(clip(title, 50), loc="left")
        labels = [clip(name(bar, words["bar"]), 32) for bar in bars]
        axes.set_yticks(range(len(bars)), labels, fontsize=8)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1.6 * max(record["speedup"] for record in kept))  # room for the texts
    figure.suptitle(name(kept[0], [c for c in words["panel"] if c not in varying]), fontsize=9)
    figure.supxlabel(f"Speed-up over {words['baseline']}, times", fontsize=9)
    return figure
