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
from common.judge.rows import Group, Row, number
from common.judge.tables import Table
from common.report import drawing

Curves = dict[str, list[Row]]  # by data set

STYLE = Path(__file__).with_name("figures.mplstyle")
DATES = {"png": (), "pdf": ("CreationDate",), "svg": ("Date", "Creator", "Format", "Type")}
CAPTIONS = drawing.WORDS["captions"]
SHOWN = 16  # images of a gallery, in two lines
FEW = 10  # mistakes, which need no confusion matrix: the gallery has them all


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
    drawn: list[tuple[str, str, Callable[[], Figure]]] = []
    if panels := cost_points(runs, [g for g in log.pick_best(runs) if g.kind == "train"]):
        drawn.append(("q1a", "accuracy_cost", partial(drawing.accuracy_cost, panels)))
    if chosen := chosen_curves(runs, curves):
        drawn.append(("curves", "curves", partial(drawing.mean_curves, chosen)))
    if effects := effect_panels(tables):
        drawn.append(("statistics", "effects", partial(drawing.main_effects, effects)))
    for table in tables:
        measured = [record for record in table.records if record.get("speedup")]
        if measured and (words := drawing.WORDS["speedups"].get(table.key)):
            drawn.append((table.section, words["key"], partial(drawing.speedups, measured, words)))
    figures = [ReportFigure(part, key, CAPTIONS[key], draw) for part, key, draw in drawn]
    return figures + mistake_figures(list(mistakes))


def mistake_figures(mistakes: Sequence[Mistakes]) -> list[ReportFigure]:
    """Where the chosen networks err, the galleries of all of them first."""
    drawn: list[tuple[str, Mistakes, Callable[[], Figure]]] = []
    for key in ("worst", "confusion", "nobody"):
        for m in mistakes:
            if key == "confusion" and (~m.right).sum() > FEW:
                classes = m.predictions["classes"]
                draw = partial(drawing.confusion_matrix, confusion(m.predictions), classes)
            elif key != "confusion" and m.images and (records := getattr(m, key)[:SHOWN]):
                draw = partial(drawing.gallery, records, m.images, m.files)
            else:
                continue
            drawn.append((key, m, draw))
    return [
        ReportFigure("errors", f"{key}_{m.key}", f"{m.name}: {CAPTIONS[key]}", draw)
        for key, m, draw in drawn
    ]


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


def chosen_curves(runs: Sequence[Row], curves: Curves) -> dict[str, dict[str, np.ndarray]]:
    """Of each data set by label the METRICS of each chosen network: (seeds, epochs, metrics)."""
    known, chosen = {c["run_id"]: c["epochs"] for same in curves.values() for c in same}, {}
    for group in log.pick_best([row for row in runs if row["kind"] == "train"]):
        dataset = str(group.config.get("dataset"))
        length = int(number(group.config, "epochs") or 0)
        seeds = [known.get(log.trained_by(row), [])[:length] for row in group.rows]
        if last := min(map(len, seeds)):
            split = log.split_name(group.config).rpartition(", ")[2]
            label = f"{log.say('model', group.config.get('model'))}\n{split}"
            values = np.stack([drawing.points_of(epochs[:last]) for epochs in seeds])
            chosen.setdefault(dataset, {})[label] = values
    return chosen


def effect_panels(tables: Iterable[Table]) -> dict[str, list[Row]]:
    """The measured main effects by their sides, "A minus B", each side at its best."""
    records = [r for t in tables if t.key == "contrasts" for r in t.records]
    tuned = [r for r in records if r["difference"] is not None and "averaged" not in r["contrast"]]
    return log.grouped(tuned, lambda record: record["contrast"].partition(",")[0])


def cost_points(runs: Sequence[Row], best: Iterable[Group]) -> dict[str, list[Row]]:
    """Accuracy and training time of each configuration that has both, by data set."""
    chosen = {row["run_id"] for group in best for row in group.rows}
    groups, points = log.configurations(runs), []
    for group, detail in zip(groups, log.describe_all([g.config for g in groups]), strict=True):
        point = log.accuracy_record(group) | {"config": group.config, "detail": detail}
        point["family"] = "SVM" if group.kind == "svm" else str(group.config.get("model"))
        point |= {"label": short_name(group), "train_ms": group.cost_ms()}
        point["chosen"] = group.rows[0]["run_id"] in chosen
        if point["test_acc_low"] is not None and point["train_ms"]:
            points.append(point)
    return by_dataset(points, runs)


def short_name(group: Group) -> str:
    """A configuration as the label of a point."""
    config = group.config
    official = "\nofficial split" if config.get("split") == "official" else ""
    if group.kind == "svm":
        name = f"SVM{' on HOG' if config.get('features') == 'hog' else ''}"
    else:
        name = ", ".join(log.in_words(config, ["model", "epochs"]))
    return f"{name}{official}" if group.protocol else f"study's {name.partition(',')[0]}"


def by_dataset(records: Iterable[Row], rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Records by the data set of their configuration, in the order of the rows'."""
    groups = log.grouped(records, lambda record: str(record["config"].get("dataset")))
    return {name: groups[name] for name in log.datasets_of(rows) if name in groups}
