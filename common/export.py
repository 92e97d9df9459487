"""Export finished runs of the log again, each from its checkpoint.

    python -m common.export 1a2b3c
    python -m common.export 1a2b3c --format onnx onnx-int8

A file is kept only if it predicts the test split as the network does.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import MISSING
from pathlib import Path

from common.base.cli import UsageError, Validated, option, parse_command_line, run_script
from common.base.config import EXPORT_FORMATS
from common.base.log import Log, log_files


class ExportOptions(Validated):
    """What to export again, and where it is."""

    runs: tuple[str, ...] = option(MISSING, "run_id, or how it starts")
    format: tuple[str, ...] = option(EXPORT_FORMATS, "formats to write", EXPORT_FORMATS)
    results_dir: str = option("results", "folder of the log and of the checkpoints")
    data_dir: str = option("data", "folder of the data sets, whose test images are the gate")


def main(argv: Sequence[str] | None = None) -> int:
    _, options = parse_command_line(argv, __doc__, options_class=ExportOptions)
    folder = options.results_dir
    if not any(file.is_file() for file in log_files(Path(folder))):
        raise UsageError(f"--results-dir: {folder} has no log.jsonl; train.py writes it")
    log, rows = Log(folder), []
    finished = log.finished("train")
    for start in options.runs:
        named = [run for run in finished if run.startswith(start)]
        if len(named) != 1:
            among = named or list(finished) or ["none"]
            listed = ", ".join(among[:10] + ["..."] * (len(among) > 10))
            count = f"{len(named) or 'no'} finished trainings of {log.path} start so"
            raise UsageError(f"RUN {start}: {count}; choose from {listed}")
        rows.append(finished[named[0]])
    from common.deploy.export import check_format, export_run

    for format in options.format:
        check_format(format)
    pairs = itertools.product(rows, options.format)
    done = [export_run(log, row, format, options.data_dir) for row, format in pairs]
    return int(any(row["status"] != "ok" for row in done))


if __name__ == "__main__":
    run_script(main)
