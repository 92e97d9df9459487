"""Time and memory of the report on logs that nobody has the machines to measure.

    python benchmarks/report_scale.py

Method: writes two synthetic logs, and reports on each in a process of its own, figures and files
included. `grid` is the study's 64 configurations with five seeds, each with 14,000 predictions on
test images; `epochs` has 100,000 epoch rows, and among its lines damaged ones, of other schemas, of
unknown kinds, repeated, failed and interrupted. Accuracies are invented, and say nothing.

Prints for each the seconds, of them those of the processor, the machine's load average, the peak
resident memory, and the problems counted; exits with 1 where a limit is passed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.base.cli import as_dict, expand_grid
from common.base.config import TRAIN_PRESETS, SvmConfig, TrainConfig
from common.base.log import dumps_strict, run_id, save_predictions
from common.train.grid import group_trajectories

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {"grid": (10.0, 1.0), "epochs": (30.0, 1.0)}  # seconds, GB
CPU = {"cpu": "a CPU", "cpu_count": 2, "threads": 1, "device": "a CPU", "load_average": [0.5] * 3}
STAMP = {
    "schema": 1,
    "time_utc": "2025-01-02T03:04:05+00:00",
    "git": {"commit": "0" * 40, "dirty": False},
    "env": CPU | {"python": "3.13.1", "torch": "2.14.1", "torchvision": "0.29.1"},
}
IMAGES = {"n_train": 49_000, "n_val": 7_000, "n_test": 14_000, "split_sha256": "0" * 64}


def row_of(kind: str, config: Any, status: str = "ok", **metrics: Any) -> dict[str, Any]:
    """A row as Log writes it."""
    name = run_id("train" if kind == "epoch" else kind, as_dict(config))
    row = STAMP | {"kind": kind, "run_id": name, "config": as_dict(config), "metrics": metrics}
    return row | {"status": status, "error": None if status == "ok" else "it broke"}


def grid_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """64 configurations, five seeds, every prediction, shared as train.py shares them; two support
    vector machines of each data set."""
    rng = np.random.default_rng(0)
    grid = {name: [value] for name, value in vars(TrainConfig(device="cpu")).items()}
    grid |= TRAIN_PRESETS["q1a"] | {"seed": list(range(5))}
    n = IMAGES["n_test"]
    label, hard = rng.integers(0, 10, n), rng.random(n)  # hard for one network, so for the next
    for trajectory in group_trajectories(expand_grid(TrainConfig, grid)):
        trained = run_id("train", as_dict(trajectory.trained))
        files: dict[int, str] = {}
        for config in trajectory.configs:
            name = run_id("train", as_dict(config))
            if config.epochs not in files:
                files[config.epochs] = f"predictions/{name}.npz"
                accuracy = 0.9 + 0.01 * config.epochs - 0.01 * (config.lr < 1e-3)
                wrong = 0.7 * hard + 0.3 * rng.random(n) > accuracy
                answers = {"pred": np.where(wrong, (label + 1) % 10, label), "label": label}
                answers |= {"index": np.arange(n), "logits": rng.normal(size=(n, 10))}
                path = folder / files[config.epochs]
                save_predictions(path, classes=list("0123456789"), **answers)
                test_acc = float(1 - wrong.mean())
            metrics = {"predictions": files[config.epochs], "train_ms": 1e6, "precision": "bf16"}
            metrics |= {"shared_with": None if name == trained else trained}
            yield row_of("train", config, val_acc=test_acc, test_acc=test_acc, **metrics, **IMAGES)
        yield from epoch_rows(trajectory.trained, 5)
    metrics = {"test_acc": 0.9, "val_acc": 0.9, "fit_ms": 7e3, "n_test": n}
    for dataset, kernel in itertools.product(("mnist", "fashion"), ("rbf", "poly")):
        yield row_of("svm", SvmConfig(dataset=dataset, kernel=kernel), **metrics)


def epoch_rows(config: TrainConfig, epochs: int) -> Iterator[dict[str, Any]]:
    for n in range(1, epochs + 1):
        losses = {"train_loss": 1 / n, "val_loss": 1.1 / n, "lr": config.lr, "train_ms": 2e5}
        accuracies = {"train_acc": 1 - 0.3 / n, "val_acc": 1 - 0.4 / n}
        yield row_of("epoch", config, epoch=n, **accuracies, **losses)


def many_epochs(folder: Path) -> Iterator[dict[str, Any]]:
    """1,000 runs of 100 epochs without predictions, some of them repeated or of another schema or
    kind; the damaged lines are added by write_log."""
    rng = np.random.default_rng(0)
    base = TrainConfig(device="cpu", epochs=100)
    for i in range(1000):
        dataset, status = ("mnist", "fashion")[i % 2], ("failed", "interrupted", "ok", "ok")[i % 4]
        config = replace(base, dataset=dataset, seed=i % 5, batch_size=16 + i // 10)
        yield from epoch_rows(config, 100)
        metrics = {"val_acc": rng.random(), "test_acc": rng.random(), "train_ms": 1e6, **IMAGES}
        yield (row := row_of("train", config, status, **(metrics if status == "ok" else {})))
        if i % 10 == 0:
            yield from (row, row | {"schema": 2}, row | {"kind": "magic"})


def main() -> int:
    """Write, report, print, judge. Units: seconds; gigabytes of peak resident memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", nargs="*", help=f"which logs ({', '.join(LIMITS)}) [all]")
    passed = True
    for name in parser.parse_args().log or LIMITS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            rows = {"grid": grid_rows, "epochs": many_epochs}[name](folder)
            lines = [dumps_strict(row) + "\n" for row in rows]  # without a durable log's pauses
            lines += ["{torn\n"] * 500 if name == "epochs" else []
            (folder / "log.jsonl").write_text("".join(lines))
            command = [sys.executable, str(ROOT / "report.py"), "--results-dir", str(folder)]
            started = time.perf_counter()
            with open(folder / "printed.txt", "wb") as file:
                process = subprocess.Popen(command, stdout=file)
                _, status, usage = os.wait4(process.pid, 0)  # this child's memory, and no other's
            seconds, gigabytes = time.perf_counter() - started, usage.ru_maxrss / 1e6
            if status:
                raise SystemExit(f"report.py failed: status {status}")
            printed = (folder / "printed.txt").read_text().splitlines()
        kept = round(seconds, 1) < LIMITS[name][0] and round(gigabytes, 2) < LIMITS[name][1]
        measured = {
            "log": name,
            "lines": len(lines),
            "seconds": round(seconds, 1),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
            "load_average": os.getloadavg()[0],
            "peak_gb": round(gigabytes, 2),
            "problems": [line for line in printed if line.startswith("problems in the log")],
        }
        print(json.dumps(measured | {"limits_kept": kept}))
        passed &= kept
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
