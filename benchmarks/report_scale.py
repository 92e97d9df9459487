"""Time and memory of the report on large logs, written here: their accuracies say nothing.

`grid` is the study's 64 configurations with five seeds, each with 14,000 predictions; `epochs` has
100,000 epoch rows, among damaged, repeated, failed and unknown ones. Exit status 1 past a limit.
"""

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
from shared import ROOT

from common.base.cli import as_dict, expand_grid
from common.base.config import TRAIN_PRESETS, SvmConfig, TrainConfig
from common.base.log import dumps_strict, run_id, save_predictions
from common.train.grid import group_trajectories

ENV = {"cpu": "a CPU", "cpu_count": 2, "threads": 1, "device": "a CPU", "load_average": [0.5] * 3}
ENV |= {"python": "3.13.1", "torch": "2.14.1", "torchvision": "0.29.1"}
STAMP = {"schema": 1, "time_utc": "2025-01-02T03:04:05+00:00", "env": ENV}
STAMP["git"] = {"commit": "0" * 40, "dirty": False}
IMAGES = {"n_train": 49_000, "n_val": 7_000, "n_test": 14_000, "split_sha256": "0" * 64}


def row_of(kind: str, config: Any, status: str = "ok", **metrics: Any) -> dict[str, Any]:
    name = run_id("train" if kind == "epoch" else kind, as_dict(config))
    row = STAMP | {"kind": kind, "run_id": name, "config": as_dict(config), "metrics": metrics}
    return row | {"status": status, "error": None if status == "ok" else "it broke"}


def epoch_rows(config: TrainConfig, epochs: int) -> Iterator[dict[str, Any]]:
    for n in range(1, epochs + 1):
        losses = {"train_loss": 1 / n, "val_loss": 1.1 / n, "lr": config.lr, "train_ms": 2e5}
        accuracies = {"train_acc": 1 - 0.3 / n, "val_acc": 1 - 0.4 / n}
        yield row_of("epoch", config, epoch=n, **accuracies, **losses)


def grid_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The study's trainings, shared as train.py shares them, and two SVMs of each data set."""
    rng, n = np.random.default_rng(0), IMAGES["n_test"]
    label, hard = rng.integers(0, 10, n), rng.random(n)  # hard for one network, so for the next
    preset = TRAIN_PRESETS["q1a"] | {"device": ["cpu"], "seed": list(range(5))}
    for trajectory in group_trajectories(expand_grid(TrainConfig, preset)):
        trained = run_id("train", as_dict(trajectory.trained))
        for epochs, configs in itertools.groupby(trajectory.configs, lambda c: c.epochs):
            first, *others = configs
            wrong = 0.7 * hard + 0.3 * rng.random(n) > 0.9 + epochs / 100 - (first.lr < 1e-3) / 100
            answers = {"pred": np.where(wrong, (label + 1) % 10, label), "label": label}
            answers |= {"index": np.arange(n), "logits": rng.normal(size=(n, 10))}
            file = f"predictions/{run_id('train', as_dict(first))}.npz"
            save_predictions(folder / file, classes=list("0123456789"), **answers)
            metrics = dict.fromkeys(("val_acc", "test_acc"), float(1 - wrong.mean())) | IMAGES
            metrics |= {"predictions": file, "train_ms": 1e6, "precision": "bf16"}
            for config in (first, *others):
                shared_with = None if config == trajectory.trained else trained
                yield row_of("train", config, shared_with=shared_with, **metrics)
        yield from epoch_rows(trajectory.trained, 5)
    metrics = {"test_acc": 0.9, "val_acc": 0.9, "fit_ms": 7e3, "n_test": n}
    for dataset, kernel in itertools.product(("mnist", "fashion"), ("rbf", "poly")):
        yield row_of("svm", SvmConfig(dataset=dataset, kernel=kernel), **metrics)


def many_epochs(folder: Path) -> Iterator[dict[str, Any]]:
    """1,000 runs of 100 epochs, some of them repeated or of another schema or kind."""
    rng, base = np.random.default_rng(0), TrainConfig(device="cpu", epochs=100)
    for i in range(1000):
        dataset, status = ("mnist", "fashion")[i % 2], ("failed", "interrupted", "ok", "ok")[i % 4]
        config = replace(base, dataset=dataset, seed=i % 5, batch_size=16 + i // 10)
        yield from epoch_rows(config, 100)
        metrics = {"val_acc": rng.random(), "test_acc": rng.random(), "train_ms": 1e6, **IMAGES}
        yield (row := row_of("train", config, status, **(metrics if status == "ok" else {})))
        if i % 10 == 0:
            yield from (row, row | {"schema": 2}, row | {"kind": "magic"})


# What writes each log, how many lines of it are torn; limits in seconds and GB of resident memory.
LOGS = {"grid": (grid_rows, 0, 10.0, 1.0), "epochs": (many_epochs, 500, 30.0, 1.0)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", nargs="*", help=f"which logs ({', '.join(LOGS)}) [all]")
    passed = True
    for name in parser.parse_args().log or LOGS:
        write, torn, most_s, most_gb = LOGS[name]
        with tempfile.TemporaryDirectory() as folder:
            # Without a durable log's pauses.
            lines = [*map(dumps_strict, write(Path(folder))), *["{torn"] * torn]
            Path(folder, "log.jsonl").write_text("\n".join(lines) + "\n")
            command = [sys.executable, str(ROOT / "report.py"), "--results-dir", folder]
            started = time.perf_counter()
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                printed = process.stdout.read().splitlines()
                _, status, usage = os.wait4(process.pid, 0)  # this child's memory, and no other's
            seconds = time.perf_counter() - started
        if status:
            raise SystemExit(f"report.py failed: status {status}")
        seconds, gigabytes = round(seconds, 1), round(usage.ru_maxrss / 1e6, 2)
        measured = {"log": name, "lines": len(lines), "seconds": seconds, "peak_gb": gigabytes}
        measured["cpu_seconds"] = round(usage.ru_utime + usage.ru_stime, 1)
        measured["load_average"] = os.getloadavg()[0]
        measured["problems"] = [s for s in printed if s.startswith("problems in the log")]
        measured["limits_kept"] = seconds < most_s and gigabytes < most_gb
        print(json.dumps(measured), flush=True)
        passed &= measured["limits_kept"]
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
