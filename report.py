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
from dataclasses import dataclass
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
    out: str | None = option(
        None, "folder to write to (default: report, inside the results folder)"
    )
    data_dir: str = option("data", "folder of the data sets, for the images that were mistaken")
    pdf: bool = option(True, "compile report.pdf, where pdflatex or tectonic is installed")
    readme: bool = option(False, "print the results and verdicts, as the README shows them")
    watch: bool = option(False, "follow the running train.py: what is finished, time left")


@dataclass(frozen=True)
class Section:
    """A section of the report, with all that it shows, undrawn."""

    key: str
    title: str
    command: str
    tables: list
    figures: list

    @property
    def missing(self) -> bool:
        """Whether nothing of it was measured."""
        return all(table.missing for table in self.tables if not table.key.endswith("_published"))


def build_sections(
    rows: Sequence[dict], problems: Sequence[str], folder: Path, data_dir: str = "data"
) -> tuple[list[Section], list[str]]:
    """Everything that the report shows, and every problem of the log and its predictions."""
    from common.judge.findings import judged_tables
    from common.judge.mistakes import find_mistakes
    from common.judge.predictions import load_predictions
    from common.judge.rows import latest_ok, pick_best
    from common.report.figures import build_figures
    from common.report.tables import build_tables, mistake_tables

    train, svm = latest_ok(rows, "train"), latest_ok(rows, "svm")
    chosen = {group.first()["run_id"] for group in pick_best(train)}
    loaded = {
        row["run_id"]: load_predictions(folder, row, logits=row["run_id"] in chosen)
        for row in (*train, *svm)
    }
    predictions = {name: arrays for name, (arrays, _) in loaded.items() if arrays}
    problems = [*problems, *(loaded[name][1] for name in sorted(chosen - predictions.keys()))]
    mistakes = find_mistakes([*train, *svm], predictions, data_dir)
    tables = [
        *build_tables(rows, problems, predictions),
        *mistake_tables(mistakes),
        *judged_tables(rows, lambda row: loaded[row["run_id"]]),
    ]
    figures = build_figures(rows, mistakes, tables)
    sections = [
        Section(
            *section,
            [table for table in tables if table.section == section[0]],
            [figure for figure in figures if figure.section == section[0]],
        )
        for section in SECTIONS
    ]
    return sections, problems


def write_report(sections: Sequence[Section], rows: Sequence[dict], out: Path, **facts) -> None:
    """Write every form of the report but the PDF, or none where there is no room for all."""
    from common.report.documents import csv_text, render
    from common.report.page import render_page
    from common.report.tables import runs_table

    runs = runs_table(rows)
    files = {
        out / "csv" / f"{table.key}.csv": csv_text(table).encode()
        for table in (runs, *(table for section in sections for table in section.tables))
    }
    for figure in (figure for section in sections for figure in section.figures):
        for extension in ("png", "pdf"):
            path = out / "figures" / f"{figure.key}.{extension}"
            files[path] = figure.to_bytes(extension)
    facts |= {"title": TITLE, "sections": sections}
    for extension in ("md", "tex"):
        files[out / f"report.{extension}"] = render(extension, n_rows=len(rows), **facts).encode()
    files[out / "report.html"] = render_page(rows, runs, **facts).encode()
    write_together(files)


def summary(sections: Sequence[Section], problems: Sequence[str]) -> list[str]:
    """The lines for the screen: what was measured, what is missing, what is wrong."""
    from common.judge.rows import shorten

    tables = {table.key: table for section in sections for table in section.tables}
    lines = []
    for record in (*tables["best"].records, *tables["q1b"].records):
        if record["test_acc"] is not None:
            model = record.get("model") or f"SVM {record['kernel']}"
            accuracy = f"{100 * record['test_acc']:.2f} %"
            if record["test_acc_low"] is not None:
                low, high = 100 * record["test_acc_low"], 100 * record["test_acc_high"]
                accuracy += f" ({low:.2f} to {high:.2f})"
            lines.append(f"{shorten(record['dataset'])}, {model}: {accuracy} on test")
    for section in sections:
        missing = (table for table in section.tables if table.missing)
        lines += [f"not measured: {table.title} ({section.command})" for table in missing]
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
    sections, problems = build_sections(rows, problems, folder, options.data_dir)
    content = b"".join(file.read_bytes() for file in log_files(folder) if file.exists())
    write_report(
        sections,
        rows,
        out,
        log_sha256=hashlib.sha256(content).hexdigest()[:12],
        last=max(row["time_utc"] for row in rows),
    )
    print("\n".join(summary(sections, problems)))
    if options.pdf:
        print(write_pdf(out))
    print(f"report: {out / 'report.html'}")
    return 0


if __name__ == "__main__":
    run_script(main)
