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

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out
from common.base.cli import UsageError, Validated, option, parse_command_line, run_script
from common.base.log import log_files, read_log, write_together

WIDTH, MOST_LINES = 110, 4  # of the screen
ANSWER = ("answer", "claims", "missing")  # the first screen
TITLE = "Image classification bake-off: measured beside published"
SECTIONS = (  # a question each, with the command that measures what is missing there
    ("q1a", "Which network?", "make q1a"),
    ("statistics", "What makes a network more accurate?", "make q1a"),
    ("curves", "How does it learn?", "make q1a"),
    ("errors", "What does it get wrong?", "make q1a"),
    ("q1b", "How good are support vector machines?", "make q1b"),
    ("q2", "How fast does it train?", "make q2"),
    ("flops", "What does a network cost?", "make flops"),
    ("infer", "How fast does it answer?", "make best bench"),
    ("claims", "Is what the study says true?", "make all"),
    ("log", "What is this report made from?", ""),
)


class ReportOptions(Validated):
    """Where to read and to write."""

    results_dir: str = option("results", "folder of the log")
    out: str | None = option(None, "folder to write to (default: report in the results folder)")
    data_dir: str = option("data", "folder of the data sets, for the images that were mistaken")
    pdf: bool = option(True, "compile report.pdf, where pdflatex or tectonic is installed")
    readme: bool = option(False, "print the results and verdicts, as the README shows them")
    watch: bool = option(False, "follow the running train.py: what is finished, time left")


def write_report(rows: list[dict], problems: list[str], out: Path, options: ReportOptions) -> None:
    """Write all but the PDF, or nothing where there is no room for all; print what it holds."""
    from common.judge.rows import latest_ok
    from common.report.documents import csv_text, render
    from common.report.figures import build_figures, curves_of
    from common.report.page import render_page
    from common.report.tables import build_tables

    folder = Path(options.results_dir)
    tables, mistakes, problems = build_tables(rows, problems, folder, options.data_dir)
    runs = [*latest_ok(rows, "train"), *latest_ok(rows, "svm")]
    curves = curves_of(latest_ok(rows, "epoch"))
    figures = build_figures(runs, curves, mistakes, tables)
    said: dict[str, Sequence] = {name: [] for name in (*ANSWER, *(key for key, *_ in SECTIONS))}
    known = {table.key: table.records for table in tables}
    for record in known["findings"]:
        said[record["section"]].append(record["finding"])
    said["claims"] = known["claims"]
    sections = []
    for key, title, command in SECTIONS:
        own = [table for table in tables if table.section == key]
        whole = next(table for table in own if table.brief)
        measured = any(t.records and not t.missing for t in own if not t.key.endswith("_published"))
        missing = whole.missing or not measured
        if missing:
            said["missing"].append(f"{title} Not measured: {command}")
        section = {"key": key, "title": title, "command": command, "missing": missing}
        section |= {"tables": own, "whole": whole, "lead": None if missing else whole.brief}
        section["figures"] = [figure for figure in figures if figure.section == key]
        sections.append(section | {"reading": said[key] if key not in ANSWER else []})
    content = b"".join(file.read_bytes() for file in log_files(folder) if file.exists())
    facts = {"title": TITLE, "answer": said, "sections": sections, "n_rows": len(rows)}
    facts["log_sha256"] = hashlib.sha256(content).hexdigest()[:12]
    facts["last"] = max(row["time_utc"] for row in rows)
    files = {out / "csv" / f"{table.key}.csv": csv_text(table).encode() for table in tables}
    for figure in (section["figures"][0] for section in sections if section["figures"]):
        for extension, drawn in figure.to_bytes("png", "pdf").items():
            files[out / "figures" / f"{figure.key}.{extension}"] = drawn
    for extension in ("md", "tex"):
        files[out / f"report.{extension}"] = render(extension, **facts).encode()
    files[out / "report.html"] = render_page(curves, tables, facts).encode()
    write_together(files)
    print_summary(said, tables, problems)


def print_summary(said: dict[str, Sequence], tables: list, problems: list[str]) -> None:
    """Print the first screen of the report, in lines of a screen's width."""
    lines, undecided = said["answer"][:4], {"inconclusive": [], "not measured": []}
    for claim in said["claims"]:
        if claim["verdict"] in undecided:
            undecided[claim["verdict"]].append(f"({claim['claim']})")
        else:
            lines.append("{verdict}: ({claim}) {text}. {reason}".format(**claim))
    lines += [
        f"claims {name}: {', '.join(numbers)}" for name, numbers in undecided.items() if numbers
    ]
    lines += [f"missing: {line}" for line in said["missing"][:MOST_LINES]]
    if (more := len(said["missing"]) - MOST_LINES) > 0:
        lines.append(f"missing: {more} more, in the report")
    if failed := next(table.records for table in tables if table.key == "failed"):
        lines.append(f"failed or interrupted, with errors in the report: {len(failed)}")
    print("\n".join(fill(line, WIDTH) for line in lines))
    if problems:
        print(f"problems in the log: {len(problems)}, the first: {problems[0]}")


def main(argv: Sequence[str] | None = None) -> int:
    _, options = parse_command_line(argv, __doc__, options_class=ReportOptions)
    folder = Path(options.results_dir)
    if options.watch:
        from common.train.grid import watch

        return watch(folder)
    rows, problems = read_log(folder)
    if not rows:
        why = f"none of its {len(problems)} lines can be read" if problems else "missing or empty"
        raise UsageError(
            f"--results-dir: {folder / 'log.jsonl'} is no log to report on: {why}; "
            "make demo writes results/demo, make smoke results/smoke, train.py results"
        )
    from common.report.documents import readme_results, write_pdf

    if options.readme:
        print(readme_results(rows, folder))
        return 0
    out = Path(options.out or folder / "report")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: cannot write to {out}: {error.strerror}") from None
    write_report(rows, problems, out, options)
    if options.pdf:
        print(write_pdf(out))
    print(f"report: {out / 'report.html'}")
    return 0


if __name__ == "__main__":
    run_script(main)
