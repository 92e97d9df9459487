"""Write the report: what the log holds, beside what the study published.

Reads results/log.jsonl, its shards (log.*.jsonl), the predictions that they name and, for the
images that were mistaken, the data folder; measures and fetches nothing. The same log gives the
same bytes. Writes report.html, a page to explore in one file; report.md; report.tex and, where a
TeX is installed, report.pdf; a CSV file for each table; figures as PNG and PDF. A part that the log
lacks is named, with the command that measures it. With --readme it prints the README's results
instead, with --watch it follows a running grid, and writes nothing.

    python report.py
    python report.py --results-dir reference
    python report.py --results-dir reference --readme
    python report.py --watch
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import shutil
import subprocess
import tempfile
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from common.base.cli import UsageError, Validated, option, parse_command_line, run_script
from common.base.log import locate, log_files, read_log, write_atomically, write_together

if TYPE_CHECKING:  # imported after the command line is parsed, so that --help answers at once
    import jinja2

    from common.judge.mistakes import Errors
    from common.judge.rows import Row
    from common.judge.tables import Table
    from common.report.figures import ReportFigure

TITLE = "Image classification bake-off: measured beside published"
TEMPLATES = Path(__file__).parent / "common" / "report" / "templates"


@dataclass(frozen=True)
class ReportOptions(Validated):
    """Where to read and to write."""

    results_dir: str = option("results", "folder of the log")
    out: str | None = option(
        None, "folder to write to (default: report, inside the results folder)"
    )
    data_dir: str = option("data", "folder of the data sets, for the images that were mistaken")
    pdf: bool = option(True, "compile report.pdf, where pdflatex or tectonic is installed")
    readme: bool = option(False, "print the results and verdicts, as the README shows them")
    watch: bool = option(False, "follow the running train.py: what is finished, time left")


@dataclass(frozen=True)
class Section:
    """A section of the report, with all that it shows."""

    key: str
    title: str
    tables: list[Table]
    figures: list[ReportFigure]

    @property
    def missing(self) -> bool:
        """Whether nothing of it was measured."""
        return all(table.missing for table in self.tables if not table.key.endswith("_published"))


# --- what the log names ---------------------------------------------------------------------------


def load_predictions(
    folder: Path, row: Row, logits: bool = False
) -> tuple[dict[str, Any] | None, str | None]:
    """A run's predictions on the test images, or one line that says why there are none.

    `logits`: with them too, where they were stored.
    """
    import numpy as np

    name = row["metrics"].get("predictions")
    if not isinstance(name, str):
        return None, f"run {row['run_id']}: the row names no predictions"
    try:
        content = locate(folder, name).read_bytes()
        with np.load(io.BytesIO(content), allow_pickle=False) as held:
            wanted = ("pred", "label", "classes", "index", *(["logits"] * logits))
            found = {key: held[key] for key in wanted if key != "logits" or key in held}
        if len({len(found[key]) for key in found.keys() - {"classes"}}) > 1:
            raise ValueError("its arrays are not of one length")
        used = np.stack([found["pred"], found["label"]])
        if found["index"].shape != found["label"].shape:
            raise ValueError("it does not name the image of each answer")
        if used.size == 0 or used.min() < 0 or used.max() >= len(found["classes"]):
            raise ValueError("its classes are not those of its images")
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        return None, f"run {row['run_id']}: {name} cannot be used, {error}"
    accuracy, logged = np.mean(found["pred"] == found["label"]), row["metrics"].get("test_acc")
    if logged is None or abs(accuracy - logged) > 1e-6:
        return None, f"run {row['run_id']}: {name} has accuracy {accuracy:.6f}, the row {logged}"
    return found, None


# --- forms ----------------------------------------------------------------------------------------

TEX_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%",
    "#": r"\#", "_": r"\_\allowbreak{}", "^": r"\^{}", "~": r"\~{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "`": r"\`{}", "/": r"/\allowbreak{}", "-": "-{}",
}  # fmt: skip
# The accents that LaTeX's default encoding can set, on letters that it has.
TEX_ACCENTS = "\u0300\u0301\u0302\u0303\u0308"


def escape_markdown(value: Any) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = " ".join(str(value).split())
    text = re.sub(r"[\\`*\[\]<>|&#~$]", r"\\\g<0>", text)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\_", text)  # inside a word it is plain


def escape_tex(value: Any) -> str:
    """Text that LaTeX shows as it is; a character that it cannot set becomes its code point."""
    return "".join(_tex_character(c) for c in " ".join(str(value).split()))


def _tex_character(c: str) -> str:
    if " " <= c <= "~":
        return TEX_SPECIAL.get(c, c)
    parts = unicodedata.normalize("NFD", c)
    accented = len(parts) == 2 and parts[0].isascii() and parts[1] in TEX_ACCENTS
    return c if accented and c <= "\u00ff" else f"[U+{ord(c):04X}]"


def markdown_table(table: Table) -> str:
    """A pipe table of the columns that hold anything."""
    from tabulate import tabulate

    from common.report.tables import shown

    columns, rows = shown(table)
    return tabulate(
        [[escape_markdown(cell) for cell in row] for row in rows],
        [escape_markdown(column.head.replace("-\n", "")) for column in columns],
        tablefmt="pipe", disable_numparse=True,
        colalign=["left" if column.is_text else "right" for column in columns],
    )  # fmt: skip


def tex_columns(table: Table) -> str:
    """The column specification of a longtable."""
    from common.report.tables import columns_of

    columns = columns_of(table)
    return "".join(
        f"p{{{c.width_mm}mm}}" if c.width_mm
        else "l" if c.is_text else "r"
        for c in columns
    )  # fmt: skip


def tex_heads(table: Table) -> str:
    """The headings of a longtable, over two lines where they say so."""
    from common.report.tables import columns_of

    heads = []
    for column in columns_of(table):
        side = "l" if column.is_text else "r"
        lines = r" \\ ".join(map(escape_tex, column.head.split("\n")))
        heads.append(rf"\shortstack[{side}]{{{lines}}}")
    return " & ".join(heads)


def template_engine(escape: Callable[[Any], str]) -> jinja2.Environment:
    """Jinja2 that escapes every value, except what a filter below has made."""
    import jinja2
    from markupsafe import Markup

    from common.report.tables import shown

    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        block_start_string="[%", block_end_string="%]",
        variable_start_string="<<<", variable_end_string=">>>",
        comment_start_string="[##", comment_end_string="##]",
        finalize=lambda value: value if isinstance(value, Markup) else escape(value),
    )  # fmt: skip
    made = {"markdown": markdown_table, "columns": tex_columns, "heads": tex_heads, "raw": str}
    engine.filters["shown"] = shown
    engine.filters |= {
        name: lambda value, make=make: Markup(make(value)) for name, make in made.items()
    }
    return engine


def csv_text(table: Table) -> str:
    """A table's raw values: fractions, milliseconds, and nothing where a value is null."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.columns)
    for record in table.records:
        writer.writerow(
            f"{value:.10g}" if isinstance(value, float) else value for value in record.values()
        )
    return buffer.getvalue()


# --- the report -----------------------------------------------------------------------------------


def build_sections(
    rows: Sequence[Row], problems: Sequence[str], folder: Path, data_dir: str = "data"
) -> tuple[list[Section], list[Errors], list[str]]:
    """Everything that the report shows, undrawn, the errors of the chosen models, and every
    problem."""
    from common.judge import findings
    from common.judge import mistakes as errors
    from common.judge import rows as measured
    from common.report import figures as plots
    from common.report import tables

    train, svm = (measured.latest_ok(rows, kind) for kind in ("train", "svm"))
    chosen = {group.first()["run_id"] for group in measured.pick_best(train)}
    held = {
        row["run_id"]: load_predictions(folder, row, logits=row["run_id"] in chosen)
        for row in [*train, *svm]
    }
    predictions = {name: found for name, (found, _) in held.items() if found}
    problems = [*problems, *(held[name][1] for name in sorted(chosen - predictions.keys()))]
    mistakes = errors.build_errors([*train, *svm], predictions, data_dir)
    built = [
        *tables.build_tables(rows, problems, predictions),
        *errors.error_tables(mistakes),
        *findings.judged_tables(rows, lambda row: held[row["run_id"]]),
    ]
    figures = plots.build_figures(rows, mistakes)
    sections = [
        Section(
            key, title, [t for t in built if t.section == key],
            [f for f in figures if f.section == key],
        )
        for key, title, _ in tables.SECTIONS
    ]  # fmt: skip
    return sections, mistakes, problems


def write_report(
    sections: Sequence[Section], rows: Sequence[Row], mistakes: Sequence[Errors],
    facts: dict[str, Any], out: Path,
) -> None:  # fmt: skip
    """Write every form of the report but the PDF, or none where there is no room for all."""
    from common.report import figures as plots
    from common.report import page
    from common.report.tables import COMMANDS

    runs = page.runs_table(rows)
    tables = [runs, *(table for section in sections for table in section.tables)]
    files = {out / "csv" / f"{table.key}.csv": csv_text(table).encode() for table in tables}
    for figure in (figure for section in sections for figure in section.figures):
        with plots.styled():
            drawing = figure.draw()
            for extension in ("png", "pdf"):
                path = out / "figures" / f"{figure.key}.{extension}"
                files[path] = plots.to_bytes(drawing, extension)
    for extension, escape in (("md", escape_markdown), ("tex", escape_tex)):
        template = template_engine(escape).get_template(f"report.{extension}.j2")
        text = template.render(sections=sections, commands=COMMANDS, **facts)
        files[out / f"report.{extension}"] = text.encode()
    files[out / "report.html"] = page.render_page(sections, rows, mistakes, runs, facts).encode()
    write_together(files)


TEX = {
    "pdflatex": ("-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "report.tex"),
    "tectonic": ("report.tex",),
}


def write_pdf(out: Path) -> str:
    """Compile report.tex, aside, and keep the PDF alone. Returns: one line for the screen."""
    (out / "report.pdf").unlink(missing_ok=True)  # one of an older report would be taken for this
    engine = next(filter(shutil.which, TEX), None)
    if engine is None:
        return "no report.pdf: neither pdflatex nor tectonic is installed"
    try:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(out / "report.tex", folder)
            if (out / "figures").exists():  # a log may carry none
                shutil.copytree(out / "figures", Path(folder) / "figures")
            if why := _compile(engine, folder):
                return f"no report.pdf: {engine} failed, {why}"
            write_atomically(out / "report.pdf", (Path(folder) / "report.pdf").read_bytes())
    except OSError as error:
        return f"no report.pdf: {error}"
    return f"report.pdf: by {engine}"


def _compile(engine: str, folder: str) -> str | None:
    """Run the engine until references settle. Returns: what it said, where it failed."""
    # The text comes from a log, which may come from anywhere: no file but the report's is in reach.
    # The date is for tectonic; the template tells pdflatex to write none.
    env = {**os.environ, "openin_any": "p", "openout_any": "p", "SOURCE_DATE_EPOCH": "0"}
    for _ in range(3 if engine == "pdflatex" else 1):  # tectonic repeats by itself
        done = subprocess.run(
            [engine, *TEX[engine]], cwd=folder, env=env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            said = done.stdout.decode(errors="replace").splitlines() or ["nothing said"]
            return next((line for line in said if line.startswith(("!", "error"))), said[-1])
    return None


def readme_results(rows: Sequence[Row], folder: Path) -> str:
    """The table of results with its notes, and what became of the study's claims, in Markdown: the
    README's, of the committed log."""
    from common.judge.claims import judge_claims
    from common.judge.compare import collect
    from common.judge.findings import verdict_lines
    from common.judge.published import results_table
    from common.judge.rows import latest_ok

    table = results_table(latest_ok(rows, "train"), latest_ok(rows, "svm"))
    if table.missing:
        raise UsageError("--readme: the log holds no accuracy yet; run make q1a first")
    results = judge_claims(collect(rows, lambda row: load_predictions(folder, row)))
    claims = [f"- {escape_markdown(line)}" for line in verdict_lines(results)]
    notes = map(escape_markdown, table.notes)
    head = f"Of the study's {len(results)} claims, tested on these rows:"
    return "\n\n".join([markdown_table(table), *notes, head, "\n".join(claims)])


def summary(sections: Sequence[Section], problems: Sequence[str]) -> list[str]:
    """The lines for the screen: what was found, what is missing, what is wrong."""
    from common.judge.rows import shorten
    from common.report.tables import COMMANDS

    tables = {table.key: table for section in sections for table in section.tables}
    lines = []
    for record in (*tables["best"].records, *tables["q1b"].records):
        if record["test_acc"] is not None:
            what = record.get("model") or f"SVM {record['kernel']}"
            accuracy = f"{100 * record['test_acc']:.2f} %"
            if record["test_acc_low"] is not None:
                low, high = 100 * record["test_acc_low"], 100 * record["test_acc_high"]
                accuracy += f" ({low:.2f} to {high:.2f})"
            lines.append(f"{shorten(record['dataset'])}, {what}: {accuracy} on test")
    lines += [
        f"not measured: {t.title} ({COMMANDS[t.section]})" for t in tables.values() if t.missing
    ]
    if failed := tables["failed"].records:
        lines.append(f"failed or interrupted, with errors in the report: {len(failed)}")
    if problems:
        lines.append(f"problems in the log: {len(problems)}, the first: {problems[0]}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report of a results folder."""
    _, options = parse_command_line(argv, __doc__, options_class=ReportOptions)
    folder = Path(options.results_dir)
    if options.watch:
        from common.train.watch import watch

        return watch(folder)
    rows, problems = read_log(folder)
    if not rows:
        why = f"none of its {len(problems)} lines can be read" if problems else "missing or empty"
        log = folder / "log.jsonl"
        raise UsageError(
            f"--results-dir: {log} is no log to report on: {why}; make demo writes results/demo, "
            "make smoke results/smoke, train.py results"
        )
    if options.readme:
        print(readme_results(rows, folder))
        return 0
    out = Path(options.out) if options.out else folder / "report"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: cannot write to {out}: {error.strerror}") from None
    sections, mistakes, problems = build_sections(rows, problems, folder, options.data_dir)
    content = b"".join(file.read_bytes() for file in log_files(folder) if file.exists())
    facts = {
        "title": TITLE,
        "rows": len(rows),
        "log_sha256": hashlib.sha256(content).hexdigest()[:12],
        "last": max(str(row["time_utc"]) for row in rows),
    }
    write_report(sections, rows, mistakes, facts, out)
    print("\n".join(summary(sections, problems)))
    if options.pdf:
        print(write_pdf(out))
    print(f"report: {out / 'report.html'}")
    return 0


if __name__ == "__main__":
    run_script(main)
