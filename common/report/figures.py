"""The report's figures, and what of the log each shows; drawing.py draws them."""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from common.judge import rows as log
from common.judge.mistakes import Mistakes, confusion
from common.judge.published import best_published
from common.judge.rows import Row, number
from common.judge.stats import SEEDS
from common.judge.tables import Table
from common.report import drawing

STYLE = Path(__file__).with_name("figures.mplstyle")
DATES = {"png": (), "pdf": ("CreationDate",), "svg": ("Date", "Creator", "Format", "Type")}
CAPTIONS = drawing.WORDS["captions"]
SHOWN = 16  # images of a gallery, in two lines
FEW = 10  # mistakes, which need no confusion matrix: the gallery has them all


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
    runs: Sequence[Row],
    curves: Sequence[Row],
    mistakes: Sequence[Mistakes],
    tables: Iterable[Table],
    races: Sequence[Row] = (),
) -> list[ReportFigure]:
    """Every figure for which there is anything to draw; of mistakes the galleries first."""
    drawn = [
        ("q1a", "accuracy_cost", drawing.accuracy_cost, cost_points(runs)),
        ("q1a", "race", drawing.races, races),
        ("curves", "curves", drawing.mean_curves, chosen_curves(runs, curves)),
    ]
    for table in tables:
        if words := drawing.WORDS["dots"].get(table.key):
            panels, title = (speedup_panels if "bar" in words else effect_panels)(table, words)
            draw = partial(drawing.dots, words=words, title=title)
            drawn.append((table.section, words["key"], draw, panels))
    figures = [
        ReportFigure(*key, CAPTIONS[key[1]], partial(draw, x)) for *key, draw, x in drawn if x
    ]
    errors = [mistake_figure(key, m) for key in ("worst", "confusion", "nobody") for m in mistakes]
    return figures + [figure for figure in errors if figure]


def mistake_figure(key: str, m: Mistakes) -> ReportFigure | None:
    """Where a chosen network errs."""
    if key == "confusion" and (~m.right).sum() > FEW:
        draw = partial(drawing.confusion_matrix, confusion(m.predictions), m.predictions["classes"])
    elif key != "confusion" and m.images and (records := getattr(m, key)[:SHOWN]):
        draw = partial(drawing.gallery, records, m.images)
    else:
        return None
    caption, dataset = f"{m.name}: {CAPTIONS[key]}", m.where.partition(", ")[0]
    return ReportFigure("errors", f"{key}_{m.key}", caption, draw, dataset)


def curves_of(epochs: Iterable[Row]) -> list[Row]:
    """The runs by data set, the best on validation first."""
    known = [row for row in epochs if number(row, "metrics", "epoch") is not None]
    known.sort(key=lambda row: row["metrics"]["epoch"])
    curves = []
    for run_id, run in log.grouped(known, lambda row: row["run_id"]).items():
        metrics = [row["metrics"] for row in run]
        curve = {"run_id": run_id, "config": run[0]["config"], "epochs": metrics}
        curves.append(curve | {"val_acc": number(metrics[-1], "val_acc")})
    curves.sort(key=lambda curve: (-(curve["val_acc"] or 0), curve["run_id"]))
    order = log.datasets_of(known)
    return sorted(curves, key=lambda curve: order.index(str(curve["config"].get("dataset"))))


def chosen_curves(runs: Sequence[Row], curves: Sequence[Row]) -> dict[str, dict[str, np.ndarray]]:
    """Of each data set by label the METRICS of each chosen network, errors in per cent in place of
    accuracies. Shapes: (seeds, epochs, metrics)."""
    known, chosen = {c["run_id"]: c["epochs"] for c in curves}, {}
    for group in log.pick_best([row for row in runs if row["kind"] == "train"]):
        dataset = str(group.config.get("dataset"))
        length = int(number(group.config, "epochs") or 0)
        seeds = [known.get(log.trained_by(row), [])[:length] for row in group.rows]
        if last := min(map(len, seeds)):
            values = np.stack([drawing.points_of(epochs[:last]) for epochs in seeds])
            values[..., 1:3] = drawing.errors_of(values[..., 1:3])
            split = log.split_name(group.config).rpartition(", ")[2]
            label = f"{log.say('model', group.config.get('model'))}, {split}"
            chosen.setdefault(dataset, {})[label] = values
    return chosen


def effect_panels(table: Table, words: Row) -> tuple[dict[str, list[drawing.Dot]], str]:
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


def speedup_panels(table: Table, words: Row) -> tuple[dict[str, list[drawing.Dot]], str]:
    """Speed-ups by what varies of the columns of a panel; and what does not vary, as a title."""

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
    panels = {}
    for r in kept:
        own, value = panels.setdefault(name(r, varying), []), r["speedup"]
        low, high = r["speedup_low"] or value, r["speedup_high"] or value
        text = f"{value:.2f}x" + (f", {100 * r['test_acc']:.2f} %" if r["test_acc"] else "")
        if not own or value != 1:  # what is compared with itself alone tells nothing
            own.append((name(r, words["bar"]), value, low, high, text, not r.get("extrapolated")))
    return panels, name(kept[0], [c for c in words["panel"] if c not in varying]) if kept else ""


def cost_points(runs: Sequence[Row]) -> dict[str, list[Row]]:
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
        point["split"] = log.split_name(config).rpartition(", ")[2]
        own += [point["split"]] if config.get("split", "study") != "study" else []
        point["label"] = ", ".join(own) if group.protocol else f"study's {family}"
        point |= {"train_ms": group.cost_ms(), "chosen": group.rows[0]["run_id"] in chosen}
        if figure := best_published(group):
            kind, acc = " SVM" if group.kind == "svm" else "", 100 * figure["test_acc"]
            point["published"] = f"published{kind} {acc:.2f} %", 100 - acc
        if point["test_acc_low"] is not None and point["train_ms"]:
            points.append(point)
    groups = log.grouped(points, lambda point: str(point["config"].get("dataset")))
    return {name: groups[name] for name in log.datasets_of(runs) if name in groups}
