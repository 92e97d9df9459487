"""The page to explore, report.html: one file that asks the network for nothing.

The templates are report.html.j2, page.css and page.js, with tablesort (vendor/) inlined. Every
value is escaped by Jinja2; figures are those of the report, as SVG.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from markupsafe import Markup

from common.judge import rows as log
from common.judge.rows import Row, grouped
from common.judge.tables import Table
from common.judge.verdicts import VERDICTS
from common.report import drawing
from common.report.documents import TEMPLATES, render
from common.report.figures import Curves, ReportFigure

SCRIPTS = ("vendor/tablesort.min.js", "page.js")
MOST_CURVES = 400  # of a panel: each has a box to tick
ANCHORS = {"runs": "run_id", "claim_parts": "claim"}  # tables whose rows are linked to, by what
ALIKE = ("dataset", "model", "opt", "lr", "epochs", "note")  # in rows of one configuration
FEW = 3  # of one name, which are folded together


def build_panels(curves: Curves) -> list[Row]:
    """The learning curves of each data set and split."""
    known, panels = [curve for own in curves.values() for curve in own], []
    for name, own in grouped(known, lambda curve: log.split_name(curve["config"])).items():
        kept = own[:MOST_CURVES]
        caption = f"{name}: accuracy and loss by epoch, one line a run; "
        caption += "the values are in the table of every run"
        draw = partial(drawing.learning_curves, kept)
        panel = {"name": name, "curves": kept, "left_out": len(own) - len(kept)}
        panel["labels"] = short_labels([curve["config"] for curve in kept])
        panel["figure"] = ReportFigure("curves", f"panel_{len(panels)}", caption, draw)
        panels.append(panel)
    return panels


def short_labels(configs: Sequence[Row]) -> list[str]:
    """Each configuration in words: its network and what else it takes to tell it from others."""
    first, last = ("model", "opt", "lr", "epochs"), ("pin_memory", "data_on", "seed")
    others = (k for config in configs for k in config if k not in last)
    told, kinds = [], 0
    for name in dict.fromkeys((*first, *others, *last)):
        values = {str([config.get(k) for k in (*told, name)]) for config in configs}
        if len(values) > kinds or name == "model":
            told, kinds = [*told, name], len(values)
    return [", ".join(log.in_words(config, told)) for config in configs]


def inline_svg(figure: ReportFigure) -> Markup:
    """A figure as SVG within the page: groups that are what their gid or url says, no name that
    another figure has too, and coordinates to a hundredth of a point."""
    drawing = figure.to_bytes("svg")["svg"].decode()
    drawing = drawing[drawing.index("<svg ") + 5 :]
    named = r'<g class="\1" data-name="\2"><title>\2</title>'
    for pattern, new in (
        (r'<a xlink:href="([^":]*):([^"]*)"[^>]*>', named),
        ("</a>", "</g>"),
        (r'<g id="dot:([^"]*)">', r"<g><title>\1</title>"),
        (r'<g id="[^"]*"(/?)>', r"<g\1>"),
        (r'(id="|href="#|url\(#)(?=[a-z])', rf"\1{figure.key}-"),
    ):
        drawing = re.sub(pattern, new, drawing)
    places = r' (?:d|x|y|transform)="[^"]*"'
    drawing = re.sub(places, lambda place: re.sub(r"(?<=\.\d\d)\d+", "", place[0]), drawing)
    kind = "drawn photographs" if "<title>Test image " in drawing else "drawn"
    head = '<svg class="{}" role="img" aria-label="{}" '
    return Markup(head).format(kind, figure.caption) + Markup(drawing)


def interval_marks(table: Table) -> list[list[float] | None]:
    """Low, accuracy and high of each row between 0 and 100, on one log scale of the error."""
    names = ("test_acc_low", "test_acc", "test_acc_high")
    ends = np.array([[r.get(name) for name in names] for r in table.records], float)
    known = ~np.isnan(ends).any(axis=1) if ends.size else np.zeros(0)
    if known.sum() < 2:
        return []
    places = -np.log(drawing.errors_of(ends))
    low, high = places[known].min(), places[known].max()
    places = np.round(100 * (places - low) / ((high - low) or 1), 1).tolist()
    return [place if there else None for place, there in zip(places, known, strict=True)]


def row_anchors(table: Table) -> list[str | None]:
    """The identity of each row of the page's table; of several that would share it the first's."""
    names = [record.get(ANCHORS.get(table.key)) for record in table.records]
    known = {name: i for i, name in reversed(list(enumerate(names))) if name is not None}
    return [f"{table.key}-{n}" if known.get(n) == i else None for i, n in enumerate(names)]


def fold(section: Row) -> list[tuple[str, list[tuple[str, Any]]]]:
    """What is folded of a section, by name: figures and tables; several of one head together."""
    shown = section["figures"][:1]
    items = [(figure.caption, figure) for figure in section["figures"]]
    items += [(table.title, table) for table in section["tables"] if table.records]
    folds = []
    for head, same in grouped(items, lambda item: item[0].partition(": ")[0]).items():
        same = [item for item in same if item[1] not in shown]
        if len(same) < FEW:
            folds += [("", [item]) for item in same]
        else:
            rests = (name.partition(": ")[2] for name, _ in same)
            names = [rest[:1].upper() + rest[1:] for rest in rests]
            folds.append((head, [(n, item) for n, (_, item) in zip(names, same, strict=True)]))
    return folds


def read_verdicts(lines: Sequence[str], rows: Sequence[str | None]) -> list[Row]:
    """The parts of the sentences on claims, with the row behind each."""
    verdicts = []
    for line in lines:
        words = re.match(r"([^:]*): \((\d+)\) (.*?\.)(?: |$)(.*)", line)
        known = dict(zip(("verdict", "number", "text", "numbers"), words.groups(), strict=True))
        row = f"claim_parts-{known['number']}"
        verdicts.append(known | {"row": row if row in rows else None})
    return verdicts


def render_page(curves: Curves, tables: Sequence[Table], facts: Row) -> str:
    """The text of report.html; `facts` are those of the other forms of the report."""
    script = Markup("\n".join((TEMPLATES / name).read_text("utf-8").strip() for name in SCRIPTS))
    known = {table.key: table for table in tables}
    answers, runs = known["answers"].records, known["runs"].records
    facts = facts | {"answers": [dict(record) for record in answers]}
    for answer in facts["answers"]:
        chosen = next(run for run in runs if run["run_id"] == answer["run_id"])
        same = [run for run in runs if all(run[k] == chosen[k] for k in ALIKE)]
        answer["runs"] = sorted(same, key=lambda run: str(run["seed"]))
    facts["verdicts"] = read_verdicts(facts["answer"]["claims"], row_anchors(known["claim_parts"]))
    said = [verdict["verdict"] for verdict in facts["verdicts"]]
    facts["counts"] = [(verdict, said.count(verdict)) for verdict in VERDICTS if verdict in said]
    facts |= {"curves": build_panels(curves), "interval_marks": interval_marks, "svg": inline_svg}
    facts |= {"row_anchors": row_anchors, "fold": fold, "script": script}
    facts["shown_curves"] = len(drawing.COLORS)
    facts["script_digest"] = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    facts["style"] = Markup((TEMPLATES / "page.css").read_text("utf-8"))
    return render("html", **facts)
