"""The page to explore, report.html: one file that asks the network for nothing.

The templates are report.html.j2, page.css and page.js, with tablesort (vendor/) inlined. Every
value is escaped by Jinja2; figures are those of the report, as SVG.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import partial

import numpy as np
from markupsafe import Markup

from common.judge import rows as log
from common.judge.rows import Row, display
from common.judge.tables import Table
from common.report import figures
from common.report.documents import TEMPLATES, render
from common.report.figures import Curves, ReportFigure

SCRIPTS = ("vendor/tablesort.min.js", "page.js")
MOST_CURVES = 400  # of a data set: each has a box to tick


def build_panels(curves: Curves) -> list[Row]:
    panels = []
    for dataset, known in curves.items():
        kept = known[:MOST_CURVES]
        caption = f"{display(dataset)}: accuracy and loss by epoch, one line a run; "
        caption += "the values are in the table of every run"
        draw = partial(figures.learning_curves, kept)
        panel = {"dataset": dataset, "curves": kept, "left_out": len(known) - len(kept)}
        panel["labels"] = log.describe_all([curve["config"] for curve in kept])
        panel["figure"] = ReportFigure("curves", f"panel_{len(panels)}", caption, draw)
        panels.append(panel)
    return panels


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
    head = '<svg class="drawn" role="img" aria-label="{}" '
    return Markup(head).format(figure.caption) + Markup(drawing)


def interval_marks(table: Table) -> list[list[float] | None]:
    """Low, accuracy and high of each row between 0 and 100, on one log scale of the error."""
    names = ("test_acc_low", "test_acc", "test_acc_high")
    ends = np.array([[r.get(name) for name in names] for r in table.records], float)
    known = ~np.isnan(ends).any(axis=1) if ends.size else np.zeros(0)
    if known.sum() < 2:
        return []
    places = -np.log(figures.errors_of(ends))
    low, high = places[known].min(), places[known].max()
    places = np.round(100 * (places - low) / ((high - low) or 1), 1).tolist()
    return [place if there else None for place, there in zip(places, known, strict=True)]


def render_page(curves: Curves, tables: Sequence[Table], facts: Row) -> str:
    """The text of report.html; `facts` are those of the other forms of the report."""
    script = Markup("\n".join((TEMPLATES / name).read_text("utf-8").strip() for name in SCRIPTS))
    [answers] = (table.records for table in tables if table.key == "answers")
    facts = facts | {"answers": answers, "curves": build_panels(curves)}
    facts |= {"interval_marks": interval_marks, "display": display, "script": script}
    facts |= {"svg": inline_svg, "shown_curves": len(figures.COLORS)}
    facts["script_digest"] = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    facts["style"] = Markup((TEMPLATES / "page.css").read_text("utf-8"))
    return render("html", **facts)
