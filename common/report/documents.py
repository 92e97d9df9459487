"""The report as a page, Markdown, LaTeX, PDF and CSV."""

import base64
import csv
import hashlib
import io
import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from tabulate import tabulate

from common.base.cli import UsageError
from common.base.log import write_atomically
from common.judge import claims, compare, findings, mistakes, published
from common.judge.rows import Row, grouped, latest_ok
from common.judge.stats import VERDICTS
from common.judge.tables import Table
from common.report.columns import shown

SCRIPTS = ("vendor/tablesort.min.js", "page.js")  # of the page
ALIKE = ("dataset", "model", "opt", "lr", "epochs", "note")  # in rows of one configuration
TEMPLATES = Path(__file__).parent / "templates"
WORDS = tomllib.loads(Path(__file__).with_name("sections.toml").read_text("utf-8"))
# LaTeX's default encoding can set ASCII, and grave to diaeresis on the letters of Latin-1.
TEX_UNKNOWN = re.compile("[^ -~À-ÄÈ-ÏÑ-ÖÙ-Ýà-äè-ïñ-öù-ýÿ]")


def escape_markdown(value: Any) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = re.sub(r"[\\`*\[\]<>|&#~$]", r"\\\g<0>", " ".join(str(value).split()))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\_", text)  # inside a word it is plain


def escape_tex(value: Any) -> str:
    """Text that LaTeX shows as it is; a character that it cannot set becomes its code point."""
    text = TEX_UNKNOWN.sub(lambda c: f"[U+{ord(c[0]):04X}]", " ".join(str(value).split()))
    return text.translate(str.maketrans(WORDS["tex_characters"]))


def csv_text(table: Table) -> str:
    """A table's raw values, in the units of its records; nothing where a value is null."""
    buffer, rows = io.StringIO(), (record.values() for record in table.records)
    lines = [[f"{v:.10g}" if isinstance(v, float) else v for v in row] for row in rows]
    csv.writer(buffer, lineterminator="\n").writerows([table.columns, *lines])
    return buffer.getvalue()


def markdown_table(table: Table) -> Markup:
    """A pipe table of the columns that hold anything, escaped."""
    columns, rows = shown(table)
    cells = [[escape_markdown(cell) for cell in row] for row in rows]
    heads = [escape_markdown(column.heading) for column in columns]
    sides = ["right" if column.number else "left" for column in columns]
    return Markup(tabulate(cells, heads, tablefmt="pipe", disable_numparse=True, colalign=sides))


def gather(tables: Sequence[Table], figures: Sequence[Any]) -> dict[str, Any]:
    """What every form of the report shows: known tables, what is said of each part, its sections;
    of a section's figures the first of each data set, the others and its tables, by the heads of
    their names, are folded away. What is missing is told where the study's claims are judged."""
    known, said, sections = {table.key: table for table in tables}, defaultdict(list), []
    for record in known["findings"].records:
        said[record["section"]].append(record["finding"])
    for key, words in WORDS["sections"].items():
        own = [table for table in tables if table.section == key]
        whole = next(table for table in own if table.brief)
        measured = any(t.records and not t.missing for t in own if not t.key.endswith("_published"))
        missing = whole.missing or not measured
        if not known["claims"].records and (missing or key == "claims"):
            continue
        if missing:
            said["unmeasured"].append(f"{words['title']} Not measured: {words['command']}")
        drawn = [figure for figure in figures if figure.section == key]
        first = [same[0] for same in grouped(drawn, lambda figure: figure.dataset).values()]
        items = [(figure.caption, figure) for figure in drawn if figure not in first]
        items += [(table.title, table) for table in own if table.records]
        section = {"key": key, "tables": own, "whole": whole, "reading": said[key]}
        section |= {"folded": grouped(items, lambda item: item[0].partition(": ")[0])}
        sections.append(words | section | {"figures": first, "missing": missing})
    facts = {"title": WORDS["title"], "known": known, "said": said, "sections": sections}
    return facts | {"claims": known["claims"].records, "verdicts": VERDICTS}


def readme_results(rows: Sequence[Row], folder: Path) -> str:
    """The README's table of results, and what was found in three sentences, in Markdown."""
    table = published.results_table(latest_ok(rows, "train"), latest_ok(rows, "svm"))
    if table.missing:
        raise UsageError("--readme: the log holds no accuracy yet; run make q1a first")
    evidence = compare.collect(rows, lambda row: mistakes.load_predictions(folder, row))
    best = published.short_list(table.records)
    lines = findings.sentences("readme", best, claims.judge_claims(evidence))
    chosen = [r for records in best.values() for r in records.values()]
    known = list({id(record): record for record in chosen}.values())
    table = replace(table.brief, records=tuple(known))
    return "\n\n".join([markdown_table(table), *map(escape_markdown, lines)])


def render(extension: str, **content: Any) -> str:
    """The text of report.html, .md, .tex or .txt, in which every value is escaped."""
    settings = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    if extension == "html":
        settings["autoescape"] = True
    else:
        escape = {"md": escape_markdown, "tex": escape_tex, "txt": str}[extension]
        settings |= WORDS["syntax"] | {"keep_trailing_newline": True}
        settings["finalize"] = lambda value: value if isinstance(value, Markup) else escape(value)
    engine = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), **settings)
    engine.filters |= {"shown": shown, "raw": Markup, "markdown": markdown_table}
    return engine.get_template(f"report.{extension}.j2").render(**content)


def inline_svg(figure: Any) -> Markup:
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


def render_page(panels: Sequence[Row], shown_curves: int, facts: Row) -> str:
    """The text of report.html, one file that asks the network for nothing; `facts` are those of the
    other forms of the report, `panels` of curves, of which so many are shown at first."""
    script = Markup("\n".join((TEMPLATES / name).read_text("utf-8").strip() for name in SCRIPTS))
    answers, runs = [], facts["known"]["runs"].records
    for answer in facts["known"]["answers"].records:
        chosen = next(run for run in runs if run["run_id"] == answer["run_id"])
        same = [run for run in runs if all(run[k] == chosen[k] for k in ALIKE)]
        answers.append(answer | {"runs": sorted(same, key=lambda run: str(run["seed"]))})
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = Markup((TEMPLATES / "page.css").read_text("utf-8"))
    parts = {"script": script, "script_digest": digest, "style": style, "svg": inline_svg}
    parts |= {"answers": answers, "curves": panels, "shown_curves": shown_curves}
    return render("html", **facts, **parts)


def write_pdf(out: Path) -> str:
    """Compile report.tex, aside, and keep the PDF alone; say in one line what came of it."""
    (out / "report.pdf").unlink(missing_ok=True)  # one of an older report would be taken for this
    engine = next(filter(shutil.which, WORDS["tex"]), None)
    if engine is None:
        return "no report.pdf: neither pdflatex nor tectonic is installed"
    # The text comes from a log, which may come from anywhere: no file but the report's is in reach.
    # The date is for tectonic; the template tells pdflatex to write none.
    env = os.environ | {"openin_any": "p", "openout_any": "p", "SOURCE_DATE_EPOCH": "0"}
    how = {"env": env, "input": "", "capture_output": True, "errors": "replace"}
    try:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(out / "report.tex", folder)
            if (out / "figures").exists():  # a log may carry none
                shutil.copytree(out / "figures", Path(folder) / "figures")
            for _ in range(3 if engine == "pdflatex" else 1):  # until references settle
                done = subprocess.run([engine, *WORDS["tex"][engine]], cwd=folder, **how)
                if done.returncode != 0:
                    lines = (done.stdout + done.stderr).splitlines() or ["it printed nothing"]
                    faults = [line for line in lines if line.startswith(("!", "error"))]
                    return f"no report.pdf: {engine} failed, {(faults or lines[-1:])[0]}"
            write_atomically(out / "report.pdf", (Path(folder) / "report.pdf").read_bytes())
    except OSError as error:
        return f"no report.pdf: {error}"
    return f"report.pdf: by {engine}"
