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
from common.judge.compare import CONTRASTS
from common.judge.mistakes import Mistakes, confusion
from common.judge.rows import Group, Row, number
from common.judge.tables import Table
from common.report.drawing import COLORS as COLORS  # some of these for the page
from common.report.drawing import (
    WORDS,
    confusion_matrix,
    gallery,
    main_effects,
    mean_curves,
    points_of,
    speedups,
)
from common.report.drawing import accuracy_cost as accuracy_cost
from common.report.drawing import errors_of as errors_of
from common.report.drawing import learning_curves as learning_curves
from common.report.drawing import pareto_front as pareto_front

Curves = dict[str, list[Row]]  # by data set

STYLE = Path(__file__).with_name("figures.mplstyle")
DATES = {"png": (), "pdf": ("CreationDate",), "svg": ("Date", "Creator", "Format", "Type")}
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
        drawn.append(("q1a", "accuracy_cost", partial(accuracy_cost, panels)))
    if chosen := chosen_curves(runs, curves):
        drawn.append(("curves", "curves", partial(mean_curves, chosen)))
    if effects := effect_panels(tables):
        drawn.append(("statistics", "effects", partial(main_effects, effects)))
    for table in tables:
        measured = [record for record in table.records if record.get("speedup")]
        if measured and (words := WORDS["speedups"].get(table.key)):
            drawn.append((table.section, words["key"], partial(speedups, measured, words)))
    figures = [ReportFigure(part, key, WORDS["captions"][key], draw) for part, key, draw in drawn]
    return figures + mistake_figures(list(mistakes))


def mistake_figures(mistakes: Sequence[Mistakes]) -> list[ReportFigure]:
    """Where the chosen networks err, the galleries of all of them first."""
    drawn: list[tuple[str, Mistakes, Callable[[], Figure]]] = []
    for key in ("worst", "confusion", "nobody"):
        for m in mistakes:
            if key == "confusion" and (~m.right).sum() > FEW:
                classes = m.predictions["classes"]
                draw = partial(confusion_matrix, confusion(m.predictions), classes)
            elif key != "confusion" and m.images and (records := getattr(m, key)[:SHOWN]):
                draw = partial(gallery, records, m.images, m.files)
            else:
                continue
            drawn.append((key, m, draw))
    return [
        ReportFigure("errors", f"{key}_{m.key}", f"{m.name}: {WORDS['captions'][key]}", draw)
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
        dataset, split, seed = log.division(group.config)
        length = int(number(group.config, "epochs") or 0)
        seeds = [known.get(log.trained_by(row), [])[:length] for row in group.rows]
        if last := min(map(len, seeds)):
            seed = "" if seed in ("0", "None") else f" {seed}"
            label = f"{group.config.get('model')}\n{split} split{seed}"
            values = np.stack([points_of(epochs[:last]) for epochs in seeds])
            chosen.setdefault(dataset, {})[label] = values
    return chosen


def effect_panels(tables: Iterable[Table]) -> dict[str, list[Row]]:
    """The measured main effects by factor, each side at its best, in the order of the factors."""
    records = [r for t in tables if t.key == "contrasts" for r in t.records]
    tuned = [r for r in records if r["difference"] is not None and "averaged" not in r["contrast"]]

    def factor(record: Row) -> str:
        names = (c.factor for c in CONTRASTS if record["contrast"].startswith(str(c)))
        return next(names, "best")

    panels = log.grouped(tuned, factor)
    return {name: panels[name] for name in WORDS["effects"] if name in panels}


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
        epochs = number(config, "epochs") or 0
        name = f"{config.get('model')}, {epochs:g} epoch{'s' if epochs != 1 else ''}"
    return f"{name}{official}" if group.protocol else f"study's {name.partition(',')[0]}"


def by_dataset(records: Iterable[Row], rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Records by the data set of their configuration, in the order of the rows'."""
    groups = log.grouped(records, lambda record: str(record["config"].get("dataset")))
    return {name: groups[name] for name in log.datasets_of(rows) if name in groups}
