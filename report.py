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
    from common.judge.race import race_records
    from common.judge.rows import latest_ok
    from common.report import figures
    from common.report.documents import csv_text, gather, render, render_page
    from common.report.tables import build_tables

    folder = Path(options.results_dir)
    tables, mistakes, problems = build_tables(rows, problems, folder, options.data_dir)
    runs = [*latest_ok(rows, "train"), *latest_ok(rows, "svm")]
    curves = figures.curves_of(latest_ok(rows, "epoch"))
    drawn = figures.build_figures(runs, curves, mistakes, tables, race_records(rows))
    facts = gather(tables, drawn)
    content = b"".join(file.read_bytes() for file in log_files(folder) if file.exists())
    facts |= {"n_rows": len(rows), "log_sha256": hashlib.sha256(content).hexdigest()[:12]}
    facts["last"] = max(row["time_utc"] for row in rows)
    files = {out / "csv" / f"{table.key}.csv": csv_text(table).encode() for table in tables}
    for figure in (figure for section in facts["sections"] for figure in section["figures"]):
        for extension, content in figure.to_bytes("png", "pdf").items():
            files[out / "figures" / f"{figure.key}.{extension}"] = content
    for extension in ("md", "tex"):
        files[out / f"report.{extension}"] = render(extension, **facts).encode()
    page = render_page(figures.build_panels(curves), figures.SHOWN_CURVES, facts)
    files[out / "report.html"] = page.encode()
    write_together(files)
    screen = render("txt", **facts).splitlines()
    print("\n".join(fill(line, width=110) for line in screen))
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
        why = f"{folder / 'log.jsonl'} is no log to report on: {why}"
        way_out = "make demo writes results/demo, make smoke results/smoke, train.py results"
        raise UsageError(f"--results-dir: {why}; {way_out}")
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
