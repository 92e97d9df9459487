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
from common.base.log import KINDS, log_files, read_log, write_together

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


def write_report(
    rows: Sequence[dict], problems: Sequence[str], folder: Path, out: Path, data_dir: str
) -> list[str]:
    """Write every form of the report but the PDF, or none where there is no room for all. Returns:
    the lines for the screen."""
    from common.judge.rows import latest_ok
    from common.report.documents import csv_text, render
    from common.report.figures import build_figures, curves_of
    from common.report.page import render_page
    from common.report.tables import build_tables

    done = {kind: latest_ok(rows, kind) for kind in KINDS}
    tables, mistakes, problems = build_tables(rows, done, problems, folder, data_dir)
    runs, curves = [*done["train"], *done["svm"]], curves_of(done["epoch"])
    figures = build_figures(runs, curves, mistakes, tables)
    sections = []
    for key, title, command in SECTIONS:
        own = [table for table in tables if table.section == key]
        missing = all(table.missing for table in own if not table.key.endswith("_published"))
        section = {"key": key, "title": title, "command": command, "missing": missing}
        section["figures"] = [figure for figure in figures if figure.section == key]
        sections.append(section | {"tables": own})
    content = b"".join(file.read_bytes() for file in log_files(folder) if file.exists())
    facts = {
        "title": TITLE,
        "sections": sections,
        "n_rows": len(rows),
        "log_sha256": hashlib.sha256(content).hexdigest()[:12],
        "last": max(row["time_utc"] for row in rows),
    }
    files = {out / "csv" / f"{table.key}.csv": csv_text(table).encode() for table in tables}
    for figure in figures:
        path = out / "figures" / figure.key
        files[path.with_suffix(".png")], files[path.with_suffix(".pdf")] = figure.to_bytes(
            "png", "pdf"
        )
    for extension in ("md", "tex"):
        files[out / f"report.{extension}"] = render(extension, **facts).encode()
    [every_run] = (table for table in tables if table.key == "runs")
    files[out / "report.html"] = render_page(runs, curves, every_run, **facts).encode()
    write_together(files)
    return summary(sections, problems)


def summary(sections: Sequence[dict], problems: Sequence[str]) -> list[str]:
    """What was measured, what is missing, what is wrong."""
    from common.judge.rows import shorten

    tables = {table.key: table for section in sections for table in section["tables"]}
    lines = []
    for record in (*tables["best"].records, *tables["q1b"].records):
        acc, *ends = (record[f"test_acc{end}"] for end in ("", "_low", "_high"))
        if acc is not None:
            model = record.get("model") or f"SVM {record['kernel']}"
            interval = "" if None in ends else f" ({100 * ends[0]:.2f} to {100 * ends[1]:.2f})"
            name = f"{shorten(record['dataset'])}, {model}"
            lines.append(f"{name}: {100 * acc:.2f} %{interval} on test")
    for section in sections:
        missing = (table for table in section["tables"] if table.missing)
        lines += [f"not measured: {table.title} ({section['command']})" for table in missing]
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
    out = Path(options.out) if options.out else folder / "report"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: cannot write to {out}: {error.strerror}") from None
    print("\n".join(write_report(rows, problems, folder, out, options.data_dir)))
    if options.pdf:
        print(write_pdf(out))
    print(f"report: {out / 'report.html'}")
    return 0


if __name__ == "__main__":
    run_script(main)
