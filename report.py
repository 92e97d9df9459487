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
from collections.abc import Sequence
from pathlib import Path

from common.base.cli import UsageError, Validated, option, parse_command_line, run_script
from common.base.log import log_files, read_log, write_together

TITLE = "Image classification bake-off: measured beside published"
SECTIONS = (  # with the command that measures what is missing there
    ("findings", "Key findings and recommendations", "make demo"),
    ("claims", "The study's claims, tested", "make all"),
    ("log", "What this report is made from", "make demo"),
    ("statistics", "Comparisons and their noise", "make q1a q1b"),
    ("q1a", "Question 1(a): networks", "make q1a"),
    ("best", "Best models", "make q1a"),
    ("errors", "Errors of the best networks", "make q1a"),
    ("q1b", "Question 1(b): support vector machines", "make q1b"),
    ("q2", "Question 2: training speed by device", "make q2"),
    ("flops", "Cost of the networks", "make flops"),
    ("infer", "Inference", "make bench"),
    ("export", "Exported models", "make best"),
    ("failed", "Runs that failed or were interrupted", ""),
    ("env", "Environment", ""),
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
    sections = []
    for key, title, command in SECTIONS:
        own = [table for table in tables if table.section == key]
        section = {"key": key, "title": title, "command": command, "tables": own}
        section["missing"] = all(t.missing for t in own if not t.key.endswith("_published"))
        section["figures"] = [figure for figure in figures if figure.section == key]
        sections.append(section)
    content = b"".join(file.read_bytes() for file in log_files(folder) if file.exists())
    facts = {"title": TITLE, "sections": sections, "n_rows": len(rows)}
    facts["log_sha256"] = hashlib.sha256(content).hexdigest()[:12]
    facts["last"] = max(row["time_utc"] for row in rows)
    files = {out / "csv" / f"{table.key}.csv": csv_text(table).encode() for table in tables}
    for figure in figures:
        for extension, drawn in figure.to_bytes("png", "pdf").items():
            files[out / "figures" / f"{figure.key}.{extension}"] = drawn
    for extension in ("md", "tex"):
        files[out / f"report.{extension}"] = render(extension, **facts).encode()
    [every_run] = (table for table in tables if table.key == "runs")
    files[out / "report.html"] = render_page(runs, curves, every_run, facts).encode()
    write_together(files)
    print_summary(sections, problems)


def print_summary(sections: list[dict], problems: list[str]) -> None:
    """Print what was measured, what is missing, what is wrong."""
    from common.judge.rows import shorten

    tables = {table.key: table for section in sections for table in section["tables"]}
    for record in (*tables["best"].records, *tables["q1b"].records):
        acc, *ends = (record[f"test_acc{end}"] for end in ("", "_low", "_high"))
        if acc is not None:
            model = record.get("model") or f"SVM {record['kernel']}"
            interval = "" if None in ends else f" ({100 * ends[0]:.2f} to {100 * ends[1]:.2f})"
            print(f"{shorten(record['dataset'])}, {model}: {100 * acc:.2f} %{interval} on test")
    for section in sections:
        for table in section["tables"]:
            if table.missing:
                print(f"not measured: {table.title} ({section['command']})")
    if failed := tables["failed"].records:
        print(f"failed or interrupted, with errors in the report: {len(failed)}")
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
