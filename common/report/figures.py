"""The report's figures: what of the log each shows, drawn by matplotlib in the style of
figures.mplstyle.

On the page an artist whose gid is dot:text shows the text on hovering, and one whose url is
curve:run_id is a line that can be switched off. Colours are inverted there at night, photos not."""

import io
import itertools
import statistics
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from adjustText import adjust_text
from matplotlib import collections, colors, style, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.judge import rows as log
from common.judge.mistakes import Mistakes, confusion
from common.judge.published import best_published
from common.judge.rows import Row, display, number
from common.judge.stats import SEEDS
from common.judge.tables import Table

STYLE = Path(__file__).with_name("figures.mplstyle")
WORDS = tomllib.loads(Path(__file__).with_name("figures.toml").read_text("utf-8"))
CAPTIONS = WORDS["captions"]
DATES = {"png": (), "pdf": ("CreationDate",), "svg": ("Date", "Creator", "Format", "Type")}
SHOWN = 16  # images of a gallery, in two lines
FEW = 10  # mistakes, which need no confusion matrix: the gallery has them all
METRICS = ("epoch", "val_acc", "train_acc", "val_loss", "train_loss")
MOST_POINTS = 60  # of a curve: more could not be told apart
SHOWN_CURVES = 8  # that the page shows at first, each in a colour of its own
MOST_CURVES = 400  # of a panel of the page: each has a box to tick
MOST_NUMBERED = 100  # classes of a confusion matrix
MOST_PIXELS = 100  # a side of an image that a figure holds as it is
MOST_NAMES = 9  # in a panel
WIDTH = 7.4  # inches, in which text is as large in print as it is here
DURATIONS = {1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 36000: "10 h"}
Rows = Sequence[Row]
Dot = tuple[str, float, float, float, str, bool]  # label, value, low, high, text beside it, solid
Name = tuple[float, float, str]  # x, y and the text beside them
ENDS = {"told apart": "x", "no time": "|", "failed": "x"}  # how a race ended for what left it


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report, undrawn; `dataset` where others of its section are of others."""

    section: str
    key: str
    caption: str
    draw: Callable[[], Figure]
    dataset: str = ""

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
    runs: Rows,
    curves: Rows,
    mistakes: Sequence[Mistakes],
    tables: Iterable[Table],
    races: Rows = (),
) -> list[ReportFigure]:
    """Every figure for which there is anything to draw; of mistakes the galleries first."""
    drawn = [
        ("q1a", "accuracy_cost", accuracy_cost, cost_points(runs)),
        ("q1a", "race", draw_races, races),
        ("curves", "curves", mean_curves, chosen_curves(runs, curves)),
    ]
    for table in tables:
        if words := WORDS["dots"].get(table.key):
            panels, title = (speedup_panels if "bar" in words else effect_panels)(table, words)
            draw = partial(dots, words=words, title=title)
            drawn.append((table.section, words["key"], draw, panels))
    figures = [ReportFigure(*key, CAPTIONS[key[1]], partial(f, x)) for *key, f, x in drawn if x]
    for key, m in itertools.product(("worst", "confusion", "nobody"), mistakes):
        if key == "confusion" and (~m.right).sum() > FEW:
            draw = partial(confusion_matrix, confusion(m.predictions), m.predictions["classes"])
        elif key != "confusion" and m.images and (records := getattr(m, key)[:SHOWN]):
            draw = partial(gallery, records, m.images)
        else:
            continue
        caption, dataset = f"{m.name}: {CAPTIONS[key]}", m.where.partition(", ")[0]
        figures.append(ReportFigure("errors", f"{key}_{m.key}", caption, draw, dataset))
    return figures


def curves_of(epochs: Iterable[Row]) -> list[Row]:
    """The runs by data set, the best on validation first."""
    known = [row for row in epochs if number(row, "metrics", "epoch") is not None]
    known.sort(key=lambda row: row["metrics"]["epoch"])
    curves, order = [], log.datasets_of(known)
    for run_id, run in log.grouped(known, lambda row: row["run_id"]).items():
        metrics = [row["metrics"] for row in run]
        curve = {"run_id": run_id, "config": run[0]["config"], "epochs": metrics}
        curves.append(curve | {"val_acc": number(metrics[-1], "val_acc")})

    def rank(curve: Row) -> tuple[int, float, str]:
        place = order.index(str(curve["config"].get("dataset")))
        return place, -(curve["val_acc"] or 0), curve["run_id"]

    return sorted(curves, key=rank)


def chosen_curves(runs: Rows, curves: Rows) -> dict[str, dict[str, np.ndarray]]:
    """Of each data set by label the METRICS of each chosen network, errors in per cent in place of
    accuracies. Shapes: (seeds, epochs, metrics)."""
    known, chosen = {c["run_id"]: c["epochs"] for c in curves}, {}
    for group in log.pick_best([row for row in runs if row["kind"] == "train"]):
        dataset = str(group.config.get("dataset"))
        length = int(number(group.config, "epochs") or 0)
        seeds = [known.get(log.trained_by(row), [])[:length] for row in group.rows]
        if last := min(map(len, seeds)):
            values = np.stack([points_of(epochs[:last]) for epochs in seeds])
            values[..., 1:3] = errors_of(values[..., 1:3])
            split = log.split_name(group.config).rpartition(", ")[2]
            label = f"{log.say('model', group.config.get('model'))}, {split}"
            chosen.setdefault(dataset, {})[label] = values
    return chosen


def effect_panels(table: Table, words: Row) -> tuple[dict[str, list[Dot]], str]:
    """The measured main effects by their sides, "A minus B", each side at its best."""
    panels = {}
    for r in table.records:
        first, _, second = r["contrast"].partition(",")[0].partition(" minus ")
        if r["difference"] is not None and "averaged" not in r["contrast"]:
            value, low, high = (100 * r[name] for name in ("difference", "low", "high"))
            text = f"{value:+z.2f}, {r['seeds']} seed{'s' if r['seeds'] > 1 else ''}"
            dot = log.display(r["dataset"]), value, low, high, text, r["seeds"] >= SEEDS
            panels.setdefault(f"← {second} better | {first} better →", []).append(dot)
    return panels, ""


def speedup_panels(table: Table, words: Row) -> tuple[dict[str, list[Dot]], str]:
    """Speed-ups by what varies of the columns of a panel; and what does not vary, as a title. Where
    there are several baselines, what is alone over one has a panel of all works, at the end."""

    def name(record: Row, columns: Iterable[str]) -> str:
        known = [(c, record[c]) for c in columns if record[c] is not None]
        return ", ".join((log.spell if isinstance(v, str) else log.say)(c, v) for c, v in known)

    def size(record: Row) -> list[float]:
        return [record[c] or 0 for c in words["largest"]]

    fixed = [c for c in words["panel"] if c not in words["largest"]]
    measured = [record for record in table.records if record["speedup"]]
    alike = log.grouped(measured, lambda record: name(record, fixed)).values()
    kept = [r for same in alike for r in same if size(r) == max(map(size, same))]
    varying = [c for c in words["panel"] if len({str(r[c]) for r in kept}) > 1]
    panels, several = {}, len({r.get("baseline") for r in kept}) > 1

    def others(same: Rows) -> int:
        return len({name(r, words["bar"]) for r in same} - {same[0].get("baseline")})

    alike = log.grouped(kept, lambda r: (name(r, varying), r.get("baseline"))).values()
    for same in sorted(alike, key=lambda same: several and others(same) == 1):
        for r in same if others(same) or not several else ():
            panel, line, value = name(r, varying), name(r, words["bar"]), r["speedup"]
            if alone := several and others(same) == 1:
                panel, line = line, panel
            panel += f"\nover {r['baseline']}" if several else ""
            if value == 1 and (alone or panel in panels):
                continue  # compared with itself it tells nothing
            low, high = r["speedup_low"] or value, r["speedup_high"] or value
            text = f"{value:.2f}x" + (f", {100 * r['test_acc']:.2f} %" if r["test_acc"] else "")
            dot = line, value, low, high, text, not r.get("extrapolated")
            panels.setdefault(panel, []).append(dot)
    return panels, name(kept[0], [c for c in words["panel"] if c not in varying]) if kept else ""


def cost_points(runs: Rows) -> dict[str, list[Row]]:
    """Accuracy and training time of each configuration that has both, by data set."""
    chosen = {row["run_id"] for g in log.pick_best(runs) if g.kind == "train" for row in g.rows}
    groups, points = log.configurations(runs), []
    for group, detail in zip(groups, log.describe_all([g.config for g in groups]), strict=True):
        config = group.config
        family = "SVM" if group.kind == "svm" else log.say("model", config.get("model"))
        point = log.accuracy_record(group) | {"config": config, "detail": detail, "family": family}
        own = log.in_words(config, ["model", "epochs"])
        if group.kind == "svm":
            own = ["SVM on HOG" if config.get("features") == "hog" else "SVM"]
        split = log.split_name(config).rpartition(", ")[2]
        own += [split] if config.get("split", "study") != "study" else []
        # What points must share for one to be better than the other.
        point["where"] = split, log.accelerator_of(config)
        point["label"] = ", ".join(own) if group.protocol else f"{family}, study's setup"
        point |= {"train_ms": group.cost_ms(), "chosen": group.rows[0]["run_id"] in chosen}
        if figure := best_published(group):
            kind, acc = " SVM" if group.kind == "svm" else "", 100 * figure["test_acc"]
            point["published"] = f"published{kind} {acc:.2f} %", 100 - acc
        if point["test_acc_low"] is not None and point["train_ms"]:
            points.append(point)
    groups = log.grouped(points, lambda point: str(point["config"].get("dataset")))
    return {name: groups[name] for name in log.datasets_of(runs) if name in groups}


def build_panels(curves: Rows) -> list[Row]:
    """The learning curves of each data set and split, with their labels, for the page."""
    panels = []
    for name, own in log.grouped(curves, lambda curve: log.split_name(curve["config"])).items():
        kept, key, caption = own[:MOST_CURVES], f"panel_{len(panels)}", CAPTIONS["panel"]
        draw = partial(learning_curves, kept)
        figure = ReportFigure("curves", key, caption.format(name), draw)
        labels = short_labels([curve["config"] for curve in kept])
        panel = {"name": name, "curves": list(zip(kept, labels, strict=True)), "figure": figure}
        panels.append(panel | {"left_out": len(own) - len(kept)})
    return panels


def short_labels(configs: Rows) -> list[str]:
    """Each configuration in words: its network and what else it takes to tell it from others."""
    first, last = ("model", "opt", "lr", "epochs"), ("pin_memory", "data_on", "seed")
    others = (k for config in configs for k in config if k not in last)
    told, kinds = [], 0
    for name in dict.fromkeys((*first, *others, *last)):
        values = {str([config.get(k) for k in (*told, name)]) for config in configs}
        if len(values) > kinds or name == "model":
            told, kinds = [*told, name], len(values)
    return [", ".join(log.in_words(config, told)) for config in configs]


def points_of(epochs: Rows) -> np.ndarray:
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
        leader = {"arrowstyle": "-", "lw": 0.5, "color": "#777777"}
        adjust_text(texts, x, y, ax=axes, arrowprops=leader, **apart)


def learning_curves(curves: Rows) -> Figure:
    """Accuracy and loss by epoch, for the page; runs beyond the first are off."""
    figure = Figure(figsize=(9, 3.6))
    series = np.full((len(curves), MOST_POINTS, len(METRICS)), np.nan)
    for values, curve in zip(series, curves, strict=True):
        points = points_of(curve["epochs"])
        values[: len(points)] = points
    series[..., 1:3] = errors_of(series[..., 1:3])
    off = ["" if i < SHOWN_CURVES else " off" for i in range(len(curves))]
    urls = [f"curve{state}:{c['run_id']}" for state, c in zip(off, curves, strict=True)]
    for axes, columns in zip(figure.subplots(1, 2), ([1, 2], [3, 4]), strict=True):
        for column, dashes in zip(columns, "-:", strict=True):  # of validation, and of training
            # One artist for all lines, of which there may be thousands.
            look = {"linestyles": dashes, "colors": [f"C{i}" for i in range(len(curves))]}
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
    norm = colors.PowerNorm(0.4, vmin=0, vmax=100)
    axes.imshow(share, interpolation="none", cmap="Blues", norm=norm)
    axes.grid(False)
    axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, names)
    axes.set(xlabel="Predicted class", ylabel="True class")
    for i, j in np.argwhere(matrix > 0) if len(classes) <= MOST_NUMBERED else ():
        color = "white" if share[i, j] > 40 else "#333333"
        axes.text(j, i, str(matrix[i, j]), ha="center", va="center", color=color)
    return figure


def gallery(records: Rows, images: Mapping[int, np.ndarray]) -> Figure:
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


def accuracy_cost(panels: Mapping[str, Rows]) -> Figure:
    """Test accuracy against training time, with what was published, one panel a data set."""
    families = dict.fromkeys(p["family"] for panel in panels.values() for p in panel)
    # A colour and a marker each: the pairs repeat after 64.
    looks = {name: (f"C{i}", "os^Dv<>P"[(i + i // 8) % 8]) for i, name in enumerate(families)}
    figure, grid = panels_of(len(panels), 3.7)
    named = {}
    for axes, (dataset, panel) in zip(grid, panels.items(), strict=True):
        named[axes] = draw_costs(axes, panel, looks)
        axes.set(title=display(dataset), xlabel="Training time, s")
        low, high = axes.get_xlim()
        if len(marks := {s: text for s, text in DURATIONS.items() if low <= s <= high}) > 1:
            axes.set_xticks(list(marks), list(marks.values()))
            axes.set_xlabel("Training time")
    grid[0].set_ylabel("Test accuracy, % (log scale of the error)")
    for family, (color, marker) in looks.items():
        grid[0].plot([], [], marker, color=color, label=family, ls="", mec="none")
    figure.legend(loc="outside lower center", ncols=6)
    label_points(named)
    return figure


def draw_costs(axes: Axes, panel: Rows, looks: Row) -> list[Name]:
    """Points with their intervals, and the Pareto front of the split that most are of, on the
    device of what is chosen there; others are half filled. Named: what was chosen, and of each
    label the best on validation."""
    panel = sorted(panel, key=lambda p: (not p["chosen"], -(p["val_acc"] or 0)))
    ends = [[p[f"test_acc{end}"] for end in ("", "_low", "_high")] for p in panel]
    errors, seconds = errors_of(np.array(ends)), np.array([p["train_ms"] / 1e3 for p in panel])
    best = {p["label"]: p for p in panel[::-1]}
    split = statistics.mode(p["where"][0] for p in panel)
    where = next(p["where"] for p in panel if p["where"][0] == split)
    shown = [p for p in panel if p["chosen"] or p is best[p["label"]]][:MOST_NAMES]
    known, names = dict(p["published"] for p in panel if "published" in p), []
    for p, x, (y, low, high) in zip(panel, seconds, errors, strict=True):
        color, marker = looks[p["family"]]
        look = {"color": color, "alpha": 1 if p in shown else 0.4}
        axes.vlines(x, low, high, lw=0.8, zorder=1, **look)
        look |= {} if p["where"] == where else {"fillstyle": "left", "mfcalt": "white"}
        look |= {"mec": "black", "ms": 8} if p["chosen"] else {}
        axes.plot(x, y, marker, in_layout=False, gid=f"dot:{p['detail']}", **look)
        names += [(x, y, p["label"])] if p in shown else []
    look = {"color": "#999999", "lw": 0.8, "zorder": 1}
    alike = [p["where"] == where for p in panel]
    points = np.stack([seconds, errors[:, 0]])[:, alike]
    axes.plot(*points[:, pareto_front(*points)], drawstyle="steps-post", **look)
    scale_log(axes, "x", seconds)
    scale_log(axes, "y", np.append(errors, list(known.values())), errors=True)
    for name, error in known.items():
        axes.axhline(error, ls="--", **look)
        names.append((np.prod(axes.get_xlim()) ** 0.5, error, name))
    return names


def draw_races(records: Rows) -> Figure:
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
