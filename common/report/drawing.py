"""The report's figures as matplotlib draws them, in the style of figures.mplstyle.

On the page an artist whose gid is dot:text shows the text on hovering, and one whose url is
curve:run_id is a line that can be switched off. Colours are inverted there at night, photos not.
"""

import statistics
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from adjustText import adjust_text
from matplotlib import collections, colors, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.judge.rows import Row, display, number

MARKERS = "os^Dv<>P"
METRICS = ("epoch", "val_acc", "train_acc", "val_loss", "train_loss")
MOST_POINTS = 60  # of a curve: more could not be told apart
MOST_CURVES = 8  # that the page shows at first, each in a colour of its own
MOST_NUMBERED = 100  # classes of a confusion matrix
MOST_PIXELS = 100  # a side of an image that a figure holds as it is
MOST_NAMES = 9  # in a panel
WIDTH = 7.4  # inches, in which text is as large in print as it is here
LEADER = {"arrowstyle": "-", "lw": 0.5, "color": "#777777"}
DURATIONS = {1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 36000: "10 h"}
Dot = tuple[str, float, float, float, str, bool]  # label, value, low, high, text beside it, solid
Name = tuple[float, float, str]  # x, y and the text beside them
ENDS = {"told apart": "x", "no time": "|", "failed": "x"}  # how a race ended for what left it
WORDS = tomllib.loads(Path(__file__).with_name("figures.toml").read_text("utf-8"))


def points_of(epochs: Sequence[Row]) -> np.ndarray:
    """METRICS of some epochs from first to last, few enough to draw; a null is not a number."""
    places = np.linspace(0, len(epochs) - 1, min(MOST_POINTS, len(epochs))).round().astype(int)
    return np.array([[number(epochs[j], name) for name in METRICS] for j in places], float)


def pareto_front(costs: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """The points that no other beats in error at the same or lower cost, cheapest first."""
    order = np.lexsort((errors, costs))
    least = np.minimum.accumulate(errors[order])
    return order[np.append(True, least[1:] < least[:-1])]


def clip(text: str, length: int) -> str:
    """Without its middle where it is longer."""
    half = length // 2
    return text if len(text) <= length else f"{text[: half - 1]}…{text[-half:]}"


def log_ticks(low: float, high: float) -> np.ndarray:
    """Round values from low to high for a logarithmic axis: few, but three where there are any."""
    decades = ticker.LogLocator(subs=(1, 2, 5), numticks=20)
    locator = decades if high > 10 * low else ticker.MaxNLocator(6, steps=(1, 2, 5, 10))
    ticks = locator.tick_values(low, high)
    ticks = ticks[(ticks >= low) & (ticks <= high)]
    return ticks[:: -(-len(ticks) // 6) or 1]


def scale_log(axes: Axes, name: str, values: np.ndarray, errors: bool = False) -> None:
    """Put an axis, x or y, on a log scale; errors, in per cent, are labelled as accuracies."""
    positive = values[values > 0] if (values > 0).any() else np.ones(1)
    low, high = positive.min() / 1.15, positive.max() * 1.15
    ends = (high, low) if errors else (low, high)
    axes.set(**{f"{name}scale": "log", f"{name}ticks": log_ticks(low, high), f"{name}lim": ends})
    axis = getattr(axes, f"{name}axis")
    axis.set_major_formatter(lambda x, _: f"{100 - x:.6g}" if errors else f"{x:,g}")
    axis.set_minor_locator(ticker.NullLocator())


def errors_of(accuracies: np.ndarray) -> np.ndarray:
    """Errors in per cent; that of a perfect accuracy is taken as half the smallest other one."""
    errors = 100 * (1 - accuracies)
    return np.maximum(errors, errors[errors > 0].min(initial=50) / 2)


def panels_of(count: int, height: float, columns: int = 2) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, in lines of at most so many columns."""
    lines, used = -(-count // columns), min(columns, count)
    figure = Figure(figsize=(WIDTH / columns * max(used, 1.4), height * lines))
    return figure, [figure.add_subplot(lines, used, 1 + i) for i in range(count)]


def label_points(named: Mapping[Axes, Iterable[Name]]) -> None:
    """Write names beside points (x, y, name), clear of each other and of what is drawn. Last of
    all: where they fit shows once all is laid out."""
    next(iter(named)).figure.draw_without_rendering()
    for axes, names in named.items():
        places = [line.get_transform().transform(line.get_xydata()) for line in axes.lines]
        points = axes.transData.inverted().transform(np.concatenate(places))
        x, y = points[np.isfinite(points).all(axis=1)].T
        texts = [axes.text(*name, ha="center", va="center", in_layout=False) for name in names]
        apart = {"expand": (1.15, 2.2), "force_text": (0.1, 0.4), "iter_lim": 200}
        adjust_text(texts, x, y, ax=axes, arrowprops=LEADER, **apart)


def learning_curves(curves: Sequence[Row]) -> Figure:
    """Accuracy and loss by epoch, for the page; runs beyond the first are off."""
    figure = Figure(figsize=(9, 3.6))
    series = np.full((len(curves), MOST_POINTS, len(METRICS)), np.nan)
    for values, curve in zip(series, curves, strict=True):
        points = points_of(curve["epochs"])
        values[: len(points)] = points
    series[..., 1:3] = errors_of(series[..., 1:3])
    off = ["" if i < MOST_CURVES else " off" for i in range(len(curves))]
    urls = [f"curve{state}:{c['run_id']}" for state, c in zip(off, curves, strict=True)]
    for axes, columns in zip(figure.subplots(1, 2), ([1, 2], [3, 4]), strict=True):
        for column, style in zip(columns, "-:", strict=True):  # of validation, and of training
            # One artist for all lines, of which there may be thousands.
            look = {"linestyles": style, "colors": [f"C{i}" for i in range(len(curves))]}
            paths = list(series[..., [0, column]])
            axes.add_collection(collections.LineCollection(paths, urls=urls, **look))
        axes.autoscale()
        scale_curves(axes, series[..., columns], 1 in columns)
    return figure


def scale_curves(axes: Axes, values: np.ndarray, accuracy: bool) -> None:
    axes.set(xlabel="Epoch", ylabel="Accuracy, %" if accuracy else "Cross-entropy loss")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    scale_log(axes, "y", values, errors=accuracy)


def mean_curves(chosen: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Accuracy and loss by epoch, a line of axes a data set; the range over seeds is shaded."""
    figure, grid = panels_of(2 * len(chosen), 2.1)
    for (dataset, known), left, right in zip(chosen.items(), grid[::2], grid[1::2], strict=True):
        left.set_title(display(dataset))
        every = np.concatenate([values.reshape(-1, len(METRICS)) for values in known.values()])
        for i, (label, values) in enumerate(known.items()):
            for column, axes in enumerate((left, left, right, right), 1):
                x, y = values[0, :, 0], values[..., column]
                look = {"ls": "-", "label": label} if column in (1, 3) else {"ls": ":"}
                axes.plot(x, y.mean(0), color=f"C{i}", **look)
                axes.fill_between(x, y.min(0), y.max(0), color=f"C{i}", alpha=0.2, lw=0)
        right.legend()
        lengths = [values[0, -1, 0] for values in known.values()]
        for axes, columns in ((left, [1, 2]), (right, [3, 4])):
            scale_curves(axes, every[:, columns], axes is left)
            if max(lengths) > 3 * min(lengths):
                scale_log(axes, "x", every[:, 0])
    figure.supxlabel("Solid: validation images; dotted, where it was logged: training images")
    return figure


def confusion_matrix(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Colour is the share of the true class, numbers count images."""
    share = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size, names = max(5.0, 0.45 * len(classes) + 1.5), [clip(str(name), 24) for name in classes]
    figure = Figure(figsize=(size, size))
    axes, places = figure.subplots(), range(len(classes))
    # On a linear scale a good model's mistakes, a few per cent, would all be white.
    axes.imshow(
        share, interpolation="none", cmap="Blues", norm=colors.PowerNorm(0.4, vmin=0, vmax=100)
    )
    axes.grid(False)
    axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, names)
    axes.set(xlabel="Predicted class", ylabel="True class")
    for i, j in np.argwhere(matrix > 0) if len(classes) <= MOST_NUMBERED else ():
        color = "white" if share[i, j] > 40 else "#333333"
        axes.text(j, i, str(matrix[i, j]), ha="center", va="center", color=color)
    return figure


def gallery(records: Sequence[Row], images: Mapping[int, np.ndarray]) -> Figure:
    """Test images, eight a line, each over its true class, the answer and where it is from."""
    figure, grid = panels_of(len(records), 1.6, columns=8)
    for axes, r in zip(grid, records, strict=True):
        axes.set_axis_off()
        pixels = images[r["index"]]
        resampled = "auto" if len(pixels) > MOST_PIXELS else "none"
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation=resampled)
        sure = f"{100 * r['confidence']:.1f} %" if "confidence" in r else f"{r['agreed']} runs"
        name = r.get("file") or f"#{r['index']}"
        words = (r["class"], f"→ {r['taken_for']}", sure, Path(name).name)
        text = "\n".join(clip(word, 14) for word in words)
        axes.text(0.5, -0.03, text, transform=axes.transAxes, ha="center", va="top")
        axes.set_gid(f"dot:Test image {name}: {r['class']}, taken for {r['taken_for']}")
    return figure


def accuracy_cost(panels: Mapping[str, Sequence[Row]]) -> Figure:
    """Test accuracy against training time, with what was published, one panel a data set."""
    families = list(dict.fromkeys(p["family"] for panel in panels.values() for p in panel))
    figure, grid = panels_of(len(panels), 3.7)
    named = {}
    for axes, (dataset, panel) in zip(grid, panels.items(), strict=True):
        named[axes] = draw_costs(axes, panel, families)
        axes.set(title=display(dataset), xlabel="Training time, s")
        low, high = axes.get_xlim()
        if len(marks := {s: text for s, text in DURATIONS.items() if low <= s <= high}) > 1:
            axes.set_xticks(list(marks), list(marks.values()))
            axes.set_xlabel("Training time")
    grid[0].set_ylabel("Test accuracy, %")
    key = {"ls": "", "mec": "none"}
    for i, family in enumerate(families):
        grid[0].plot([], [], marker_of(i), color=f"C{i}", label=family, **key)
    figure.legend(loc="outside lower center", ncols=6)
    label_points(named)
    return figure


def marker_of(i: int) -> str:
    """The marker of a family in the colour C{i}: the pairs repeat after 64."""
    return MARKERS[(i + i // 8) % 8]


def draw_costs(axes: Axes, panel: Sequence[Row], families: Sequence[str]) -> list[Name]:
    """Points with their intervals, and the Pareto front of the split that most are of; those of
    others are hollow. Named: what was chosen, and of each label the most accurate."""
    panel = sorted(panel, key=lambda p: (not p["chosen"], -p["test_acc"]))
    ends = [[p[f"test_acc{end}"] for end in ("", "_low", "_high")] for p in panel]
    errors, seconds = errors_of(np.array(ends)), np.array([p["train_ms"] / 1e3 for p in panel])
    best = {p["label"]: p for p in panel[::-1]}
    shown = [p for p in panel if p["chosen"] or p is best[p["label"]]][:MOST_NAMES]
    split = statistics.mode(p["split"] for p in panel)
    known, names = dict(p["published"] for p in panel if "published" in p), []
    for p, x, (y, low, high) in zip(panel, seconds, errors, strict=True):
        i = families.index(p["family"])
        look = {"color": f"C{i}", "alpha": 1 if p in shown else 0.4}
        axes.vlines(x, low, high, lw=0.8, zorder=1, **look)
        look |= {} if p["split"] == split else {"mfc": "white"}
        look |= {"mec": "black", "ms": 8} if p["chosen"] else {}
        axes.plot(x, y, marker_of(i), in_layout=False, gid=f"dot:{p['detail']}", **look)
        names += [(x, y, p["label"])] if p in shown else []
    look = {"color": "#999999", "lw": 0.8, "zorder": 1}
    alike = [p["split"] == split for p in panel]
    points = np.stack([seconds, errors[:, 0]])[:, alike]
    axes.plot(*points[:, pareto_front(*points)], drawstyle="steps-post", **look)
    scale_log(axes, "x", seconds)
    scale_log(axes, "y", np.append(errors, list(known.values())), errors=True)
    for name, error in known.items():
        axes.axhline(error, ls="--", **look)
        names.append((np.prod(axes.get_xlim()) ** 0.5, error, name))
    return names


def races(records: Sequence[Row]) -> Figure:
    """Validation accuracy against the time of a race, a line a configuration, one panel a race."""
    figure, grid = panels_of(len(records), 3.0)
    named = {}
    for axes, race in zip(grid, records, strict=True):
        raced = [r for r in race["standings"] if r["points"]]
        accs = np.array([acc for r in raced for *_, acc in r["points"]])
        errors = dict(zip(accs, errors_of(accs), strict=True))
        named[axes] = []
        for i, r in reversed(list(enumerate(raced))):
            x, y = zip(*((s, errors[acc]) for s, _, acc in r["points"]), strict=True)
            chosen, end = r.get("tied") == "chosen", ENDS.get(r.get("why"), "o")
            look = {"color": f"C{i}", "marker": end, "markevery": [-1], "lw": 2.5 if chosen else 1}
            axes.plot(x, y, gid=f"dot:{r['name']}", **look)
            named[axes] += [(x[-1], y[-1], r["name"])] if chosen else []
        scale_log(axes, "y", np.array(list(errors.values())), errors=True)
        axes.set(title=race["where"], xlabel="Time of the race, s", xlim=(0, race["spent_s"]))
    grid[0].set_ylabel("Validation accuracy, %")
    label_points(named)
    return figure


def dots(panels: Mapping[str, Sequence[Dot]], words: Row, title: str = "") -> Figure:
    """Values with their intervals, a line each, by panel; words: the axis, and where it starts."""
    figure, grid = panels_of(len(panels), 0.6 + 0.22 * max(map(len, panels.values())))
    for axes, (name, own) in zip(grid, panels.items(), strict=True):
        axes.axvline(words["origin"], color="black", lw=0.8)
        for place, (_, value, low, high, text, solid) in enumerate(own):
            axes.hlines(place, low, high)
            axes.plot(value, place, "o", color="C0", mfc="C0" if solid else "white", ms=6)
            axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center")
        axes.margins(x=0.1)
        axes.set_ylim(len(own) - 0.5, -0.5)
        axes.set_yticks(range(len(own)), [clip(label, 32) for label, *_ in own])
        axes.grid(axis="y", visible=False)
        axes.set_title(clip(name, 60), loc="center", fontsize=8)
    figure.suptitle(title)
    figure.supxlabel(words["axis"])
    return figure
