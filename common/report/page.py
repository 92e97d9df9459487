"""The page to explore, report.html: one file that asks the network for nothing.

The templates are report.html.j2, page.css and page.js, with tablesort (vendor/) inlined. Every
value is escaped by Jinja2; figures are those of the report, as SVG.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import partial

from markupsafe import Markup

from common.judge import rows as log
from common.judge.rows import Row, grouped
from common.report import drawing
from common.report.documents import TEMPLATES, render
from common.report.figures import CAPTIONS, ReportFigure

SCRIPTS = ("vendor/tablesort.min.js", "page.js")
MOST_CURVES = 400  # of a panel: each has a box to tick
ALIKE = ("dataset", "model", "opt", "lr", "epochs", "note")  # in rows of one configuration


def build_panels(curves: Sequence[Row]) -> list[Row]:
    """The learning curves of each data set and split, with their labels."""
    panels = []
    for name, own in grouped(curves, lambda curve: log.split_name(curve["config"])).items():
        kept = own[:MOST_CURVES]
        draw, caption = partial(drawing.learning_curves, kept), CAPTIONS["panel"].format(name)
        figure = ReportFigure("curves", f"panel_{len(panels)}", caption, draw)
        labels = short_labels([curve["config"] for curve in kept])
        panel = {"name": name, "curves": list(zip(kept, labels, strict=True)), "figure": figure}
        panels.append(panel | {"left_out": len(own) - len(kept)})
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


def render_page(curves: Sequence[Row], facts: Row) -> str:
    """The text of report.html; `facts` are those of the other forms of the report."""
    script = Markup("\n".join((TEMPLATES / name).read_text("utf-8").strip() for name in SCRIPTS))
    answers, runs = [], facts["known"]["runs"].records
    for answer in facts["known"]["answers"].records:
        chosen = next(run for run in runs if run["run_id"] == answer["run_id"])
        same = [run for run in runs if all(run[k] == chosen[k] for k in ALIKE)]
        answers.append(answer | {"runs": sorted(same, key=lambda run: str(run["seed"]))})
    return render(
        "html",
        **facts,
        answers=answers,
        curves=build_panels(curves),
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup((TEMPLATES / "page.css").read_text("utf-8")),
        shown_curves=drawing.MOST_CURVES,
        svg=inline_svg,
    )
