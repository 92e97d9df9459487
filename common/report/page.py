"""The page to explore, report.html: what each of its parts shows, from the rows of the log.

One file that asks the network for nothing; the templates are report.html.j2, page.css and page.js,
with tablesort (vendor/) inlined. Every value is escaped by Jinja2.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from common.judge.mistakes import GALLERY, Errors, confusion_matrix
from common.judge.rows import (
    SVM_PROTOCOL,
    TRAIN_PROTOCOL,
    Group,
    Row,
    accuracy_record,
    best_of,
    choice_record,
    datasets_of,
    describe_all,
    deviations,
    display,
    division,
    get,
    join_notes,
    latest_ok,
    number,
    pick_best,
)
from common.judge.tables import Table, make_table
from common.report import charts
from common.report.figures import COLORS, ReportFigure, cost_points, styled, to_bytes
from common.report.tables import COMMANDS, FORMS, shown

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("vendor/tablesort.min.js", "page.js")
SHOWN_CURVES = len(COLORS)  # at first
MOST_CURVES = 400  # of a data set: each has a box to tick
# Figures that the page has in a form of its own.
REPLACED = ("curves_", "accuracy_cost", "confusion_", "reliability_", "worst_", "nobody_")


def duration(ms: float | None) -> str:
    """A time as one would say it."""
    if ms is None:
        return "unknown"
    for unit, length_ms in (("h", 3.6e6), ("min", 6e4), ("s", 1e3)):
        if ms >= 1.5 * length_ms or unit == "s":
            return f"{ms / length_ms:.2g} {unit}" if ms < 1e5 else f"{ms / length_ms:.0f} {unit}"
    raise AssertionError


# --- the answer -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What was chosen for a data set, and the best of each other kind of model beside it."""

    dataset: str
    choice: Row
    others: list[Row]
    chart: charts.CostChart | None


def build_answers(train: Sequence[Row], svm: Sequence[Row]) -> list[Answer]:
    """An answer for each data set and split that anything was trained on."""
    kinds: dict[tuple[str, ...], dict[str, list[Row]]] = {}
    for row in (*train, *svm):
        kinds.setdefault(division(row["config"]), {}).setdefault(_kind_of(row), []).append(row)
    contests = [[g for rows in each.values() for g in pick_best(rows)] for each in kinds.values()]
    best = [group for groups in contests if (group := best_of(groups))]
    points = cost_points(train, svm, best)
    answers = []
    for groups in filter(None, contests):
        group = best_of(groups)
        others = [choice_record(other) for other in groups if other is not group]
        others.sort(key=lambda record: -record["val_acc"])
        dataset = str(group.config.get("dataset"))
        chart = charts.cost_chart(points[dataset]) if dataset in points else None
        answers.append(Answer(dataset, choice_record(group), others, chart))
    order = datasets_of([*train, *svm])
    return sorted(answers, key=lambda answer: order.index(answer.dataset))


def _kind_of(row: Row) -> str:
    """What an answer compares: a network, or support vector machines of any kernel."""
    return "SVM" if row["kind"] == "svm" else str(row["config"].get("model"))


# --- every run ------------------------------------------------------------------------------------


def runs_table(rows: Sequence[Row]) -> Table:
    """Every training and every support vector machine of the log, one row a run."""
    last: dict[str, Row] = {}
    for row in rows:
        if row["kind"] in ("train", "svm") and (row["status"] == "ok" or not (
            row["run_id"] in last and last[row["run_id"]]["status"] == "ok"
        )):  # fmt: skip
            last[row["run_id"]] = row
    return make_table(
        "runs", "runs", "Every run",
        "dataset model opt lr epochs pin_memory seed val_acc test_acc test_acc_low test_acc_high "
        "train_ms precision run_id status shared_with note",
        [_run_record(row) for row in last.values()],
        "Training time of a support vector machine: its fit. Shared with: the run that was really "
        "trained, where this one has the same trajectory.",
    )  # fmt: skip


def _run_record(row: Row) -> Row:
    config, svm = row["config"], row["kind"] == "svm"
    record = {k: config.get(k) for k in ("dataset", "opt", "lr", "epochs", "pin_memory", "seed")}
    record["model"] = f"SVM, {config.get('kernel')}" if svm else config.get("model")
    record |= {k: get(row, "metrics", k) for k in ("precision", "shared_with")}
    record |= {k: row[k] for k in ("run_id", "status")}
    record |= accuracy_record(Group(config, (row,))) if row["status"] == "ok" else {}
    record["train_ms"] = number(row, "metrics", "fit_ms" if svm else "train_ms")
    protocol = SVM_PROTOCOL if svm else TRAIN_PROTOCOL
    return record | {"note": join_notes(row["error"] or "", deviations(config, protocol))}


# --- learning curves ------------------------------------------------------------------------------


@dataclass(frozen=True)
class CurvePanel:
    """The learning curves of a data set: two charts, and the runs as (id, label, accuracy)."""

    dataset: str
    accuracy: charts.CurveChart | None
    loss: charts.CurveChart | None
    runs: list[tuple[str, str, float | None]]
    left_out: int


def build_curves(epochs: Sequence[Row]) -> list[CurvePanel]:
    """The curves of every data set, the best on validation first."""
    datasets: dict[str, dict[str, list[Row]]] = {}
    for row in epochs:
        if number(row, "metrics", "epoch") is not None:
            runs = datasets.setdefault(str(row["config"].get("dataset")), {})
            runs.setdefault(row["run_id"], []).append(row)
    return [_curve_panel(name, datasets[name]) for name in datasets_of(epochs) if name in datasets]


def _curve_panel(dataset: str, found: Mapping[str, Sequence[Row]]) -> CurvePanel:
    runs = {name: sorted(rows, key=lambda r: r["metrics"]["epoch"]) for name, rows in found.items()}
    final = {name: number(rows[-1], "metrics", "val_acc") for name, rows in runs.items()}
    order = sorted(runs, key=lambda name: (-(final[name] or 0), name))
    kept = order[:MOST_CURVES]

    def draw(metric: str) -> charts.CurveChart | None:
        curves = [
            charts.Curve(
                name, _points(runs[name], f"val_{metric}"), _points(runs[name], f"train_{metric}")
            )
            for name in kept
        ]
        return charts.curve_chart(curves, metric)

    said = describe_all([runs[name][0]["config"] for name in kept])
    labels = [(name, label, final[name]) for name, label in zip(kept, said, strict=True)]
    return CurvePanel(dataset, draw("acc"), draw("loss"), labels, len(order) - len(kept))


def _points(rows: Sequence[Row], metric: str) -> list[tuple[float, float]]:
    found = [(row["metrics"]["epoch"], number(row, "metrics", metric)) for row in rows]
    return [(epoch, value) for epoch, value in found if value is not None]


# --- errors ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ErrorPanel:
    """The confusion matrix of a chosen run as (count, shade) by line, and its galleries."""

    name: str
    key: str
    classes: list[str]
    matrix: list[list[tuple[int, int]]]
    chart: charts.ReliabilityChart | None
    galleries: list[tuple[str, list[tuple[str, Row]]]]
    no_images: str


def build_error_panel(e: Errors) -> ErrorPanel:
    """What the page draws of a run's errors.

    Mistakes are shaded by the square root of their share: a good model's are a few per cent.
    """
    matrix = confusion_matrix(e.held)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shade = np.sqrt(share)
    np.fill_diagonal(shade, 0)
    shade = np.rint(100 * shade / max(shade.max(), 1e-9)).astype(int)
    galleries = [
        (title, [(_png_uri(e.images[r["index"]]), r) for r in records])
        for title, records in (
            ("Most confident mistakes", e.worst),
            ("Missed by every model", e.nobody[:GALLERY]),
        )
        if records and e.images
    ]
    cells = [
        [(int(n), int(s)) for n, s in zip(*line, strict=True)]
        for line in zip(matrix, shade, strict=True)
    ]
    chart = charts.reliability_chart(e.bins) if e.bins else None
    names = [str(name) for name in e.held["classes"]]
    return ErrorPanel(e.name, e.key, names, cells, chart, galleries, e.no_images)


def _png_uri(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", optimize=True)
    return _data_uri("image/png", buffer.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


# --- the file -------------------------------------------------------------------------------------


def cells(table: Table) -> list[list[tuple[str, Any]]]:
    """The rows of a table as (text, value to sort by), in the columns that hold anything."""
    columns, rows = shown(table)
    return [
        [(text, _sort_key(record[c.key])) for text, c in zip(texts, columns, strict=True)]
        for texts, record in zip(rows, table.records, strict=True)
    ]


def _sort_key(value: Any) -> str:
    if isinstance(value, (bool, str)) or value is None:
        return ""
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def interval_marks(table: Table) -> list[tuple[float, float, float] | None]:
    """Low, accuracy and high of each row between 0 and 100, on one scale, where a table has them.

    The scale is logarithmic in the error, as that of the charts.
    """
    records = table.records
    names = ("test_acc_low", "test_acc", "test_acc_high")
    found = [tuple(record.get(k) for k in names) for record in records]
    held = [triple for triple in found if None not in triple]
    if len(held) < 2:
        return []
    least = min([1 - v for triple in held for v in triple if v < 1] or [0.5]) / 2
    errors = [max(1 - value, least) for triple in held for value in triple]
    low, high = math.log(min(errors)), math.log(max(errors))

    def place(accuracy: float) -> float:
        return round(100 * (high - math.log(max(1 - accuracy, least))) / ((high - low) or 1), 1)

    return [None if None in triple else tuple(map(place, triple)) for triple in found]


def embed_figure(figure: ReportFigure) -> str:
    """A figure without a form of its own on the page, as the address of an image."""
    with styled():
        return _data_uri("image/svg+xml", to_bytes(figure.draw(), "svg"))


def render_page(
    sections: Sequence[Any], rows: Sequence[Row], errors: Sequence[Errors], runs: Table,
    facts: Mapping[str, Any],
) -> str:  # fmt: skip
    """The text of report.html."""
    done = {kind: latest_ok(rows, kind) for kind in ("epoch", "train", "svm")}
    script = Markup("\n".join((TEMPLATES / name).read_text("utf-8").strip() for name in SCRIPTS))
    best = [r for s in sections for t in s.tables if t.key == "best" for r in t.records]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined,
        autoescape=True, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    engine.filters |= {
        "cells": cells, "shown": shown, "marks": interval_marks, "duration": duration,
        "display": display,
        "percent": FORMS["percent"], "points": FORMS["points"], "embed": embed_figure,
    }  # fmt: skip
    return engine.get_template("report.html.j2").render(
        sections=sections, runs=runs, answers=build_answers(done["train"], done["svm"]),
        curves=build_curves(done["epoch"]), errors=[build_error_panel(e) for e in errors],
        published={r["run_id"]: r for r in best if r["difference"] is not None},
        shown_curves=SHOWN_CURVES, chart=charts, replaced=REPLACED, commands=COMMANDS,
        script=script,
        script_digest=digest, style=Markup((TEMPLATES / "page.css").read_text("utf-8")), **facts,
    )  # fmt: skip
