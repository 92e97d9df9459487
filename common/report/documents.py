"""The report as Markdown, LaTeX, PDF and CSV."""

import csv
import io
import os
import re
import shutil
import subprocess
import tempfile
import tomllib
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

TEMPLATES = Path(__file__).parent / "templates"
WORDS = tomllib.loads(Path(__file__).with_name("sections.toml").read_text("utf-8"))
TEX_SPECIAL = str.maketrans({
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%",
    "#": r"\#", "_": r"\_\allowbreak{}", "^": r"\^{}", "~": r"\~{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "`": r"\`{}", "/": r"/\allowbreak{}", "-": "-{}",
})  # fmt: skip
# LaTeX's default encoding can set ASCII, and grave to diaeresis on the letters of Latin-1.
TEX_UNKNOWN = re.compile("[^ -~À-ÄÈ-ÏÑ-ÖÙ-Ýà-äè-ïñ-öù-ýÿ]")
TEX = {
    "pdflatex": ["-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "report.tex"],
    "tectonic": ["report.tex"],
}
SYNTAX = {
    "block_start_string": "[%", "block_end_string": "%]", "variable_start_string": "<<<",
    "variable_end_string": ">>>", "comment_start_string": "[##", "comment_end_string": "##]",
}  # fmt: skip


def escape_markdown(value: Any) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = re.sub(r"[\\`*\[\]<>|&#~$]", r"\\\g<0>", " ".join(str(value).split()))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\_", text)  # inside a word it is plain


def escape_tex(value: Any) -> str:
    """Text that LaTeX shows as it is; a character that it cannot set becomes its code point."""
    text = TEX_UNKNOWN.sub(lambda c: f"[U+{ord(c[0]):04X}]", " ".join(str(value).split()))
    return text.translate(TEX_SPECIAL)


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
    their names, are folded away."""
    known, said = (
        {table.key: table for table in tables},
        {"study": [], "answer": [], "missing": [], "unmeasured": []},
    )
    for record in known["findings"].records:
        said.setdefault(record["section"], []).append(record["finding"])
    facts = {"title": WORDS["title"], "known": known, "said": said, "sections": []}
    facts |= {"claims": known["claims"].records, "verdicts": VERDICTS}
    for key, words in WORDS["sections"].items():
        own = [table for table in tables if table.section == key]
        whole = next(table for table in own if table.brief)
        measured = any(t.records and not t.missing for t in own if not t.key.endswith("_published"))
        section = words | {"key": key, "tables": own, "whole": whole, "reading": said.get(key, [])}
        section["missing"] = whole.missing or not measured
        if section["missing"]:
            said["unmeasured"].append(f"{words['title']} Not measured: {words['command']}")
        drawn = [figure for figure in figures if figure.section == key]
        shown = [same[0] for same in grouped(drawn, lambda figure: figure.dataset).values()]
        items = [(figure.caption, figure) for figure in drawn if figure not in shown]
        items += [(table.title, table) for table in own if table.records]
        section["folded"] = grouped(items, lambda item: item[0].partition(": ")[0])
        facts["sections"].append(section | {"figures": shown})
    return facts


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
        settings |= SYNTAX | {"keep_trailing_newline": True}
        settings["finalize"] = lambda value: value if isinstance(value, Markup) else escape(value)
    engine = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), **settings)
    engine.filters |= {"shown": shown, "raw": Markup, "markdown": markdown_table}
    return engine.get_template(f"report.{extension}.j2").render(**content)


def write_pdf(out: Path) -> str:
    """Compile report.tex, aside, and keep the PDF alone; say in one line what came of it."""
    (out / "report.pdf").unlink(missing_ok=True)  # one of an older report would be taken for this
    engine = next(filter(shutil.which, TEX), None)
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
                done = subprocess.run([engine, *TEX[engine]], cwd=folder, **how)
                if done.returncode != 0:
                    lines = (done.stdout + done.stderr).splitlines() or ["it printed nothing"]
                    faults = [line for line in lines if line.startswith(("!", "error"))]
                    return f"no report.pdf: {engine} failed, {(faults or lines[-1:])[0]}"
            write_atomically(out / "report.pdf", (Path(folder) / "report.pdf").read_bytes())
    except OSError as error:
        return f"no report.pdf: {error}"
    return f"report.pdf: by {engine}"
