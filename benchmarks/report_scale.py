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

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from common.base.config import (  # noqa: E402
    TRAIN_PRESETS,
    SvmConfig,
    TrainConfig,
    as_dict,
    expand_grid,
    group_trajectories,
)
from common.base.log import dumps_strict, run_id, save_predictions  # noqa: E402

LIMITS = {"grid": (10.0, 1.0), "epochs": (30.0, 1.0)}  # seconds, GB
TEST_IMAGES = 14_000
CLASSES = [str(i) for i in range(10)]
ENV = {
    "python": "3.13.1", "platform": "Linux", "cpu": "a CPU", "cpu_count": 2, "torch": "2.14.1",
    "torchvision": "0.29.1", "threads": 1, "device": "a CPU", "load_average": [0.5, 0.4, 0.3],
}  # fmt: skip


def row_of(kind: str, config: dict[str, Any], metrics: dict[str, Any], **other: Any) -> dict:
    """A row as Log writes it."""
    return {
        "schema": 1, "kind": kind, "run_id": run_id(kind, config),
        "time_utc": "2025-01-02T03:04:05+00:00", "git": {"commit": "0" * 40, "dirty": False},
        "status": "ok", "error": None, "config": config, "env": ENV, "metrics": metrics,
    } | other  # fmt: skip


def study_configs(seeds: int) -> list[TrainConfig]:
    """The grid of question 1(a), on a CPU."""
    grid = {name: [value] for name, value in vars(TrainConfig(device="cpu")).items()}
    return expand_grid(TrainConfig, grid | TRAIN_PRESETS["q1a"] | {"seed": list(range(seeds))})


def train_rows(
    configs: list[TrainConfig], folder: Path, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """Rows of trainings, with their predictions, shared as train.py shares them."""
    label = rng.integers(0, 10, TEST_IMAGES)
    hard = rng.random(TEST_IMAGES)  # an image that is hard for one network is so for the next
    for trajectory in group_trajectories(configs):
        trained = run_id("train", as_dict(trajectory.trained))
        names: dict[int, str] = {}
        for config in trajectory.configs:
            name = run_id("train", as_dict(config))
            file = f"predictions/{names.setdefault(config.epochs, name)}.npz"
            accuracy = 0.9 + 0.01 * config.epochs - 0.01 * (config.lr < 1e-3)
            wrong = 0.7 * hard + 0.3 * rng.random(TEST_IMAGES) > accuracy
            pred = np.where(wrong, (label + 1) % 10, label)
            if names[config.epochs] == name:
                save_predictions(
                    folder / file, pred=pred, label=label, index=np.arange(TEST_IMAGES),
                    classes=CLASSES, logits=rng.normal(size=(TEST_IMAGES, 10)),
                )  # fmt: skip
                test_acc = float((pred == label).mean())
            yield row_of("train", as_dict(config), {
                "val_acc": test_acc, "test_acc": test_acc, "train_ms": 1e6, "n_train": 49_000,
                "n_val": 7_000, "n_test": TEST_IMAGES, "split_sha256": "0" * 64,
                "precision": "bf16", "predictions": file,
                "shared_with": None if name == trained else trained,
            })  # fmt: skip


def epoch_rows(config: TrainConfig, epochs: int) -> Iterator[dict[str, Any]]:
    """The epochs of one training."""
    for epoch in range(1, epochs + 1):
        yield row_of("epoch", as_dict(config), {
            "epoch": epoch, "train_loss": 1 / epoch, "train_acc": 1 - 0.3 / epoch,
            "val_loss": 1.1 / epoch, "val_acc": 1 - 0.4 / epoch, "lr": config.lr, "train_ms": 2e5,
        }, run_id=run_id("train", as_dict(config)))  # fmt: skip


def write_grid(folder: Path) -> None:
    """64 configurations, five seeds, every prediction; two support vector machines."""
    rng = np.random.default_rng(0)
    configs = study_configs(5)
    rows = list(train_rows(configs, folder, rng))
    for trajectory in group_trajectories(configs):
        rows += epoch_rows(trajectory.trained, 5)
    for dataset in ("mnist", "fashion"):
        for kernel in ("rbf", "poly"):
            metrics = {"test_acc": 0.9, "val_acc": 0.9, "fit_ms": 7e3, "n_test": TEST_IMAGES}
            rows.append(row_of("svm", as_dict(SvmConfig(dataset=dataset, kernel=kernel)), metrics))
    write_log(folder, rows)


def write_epochs(folder: Path) -> None:
    """1,000 runs of 100 epochs without predictions, and lines of every kind of fault."""
    rng = np.random.default_rng(0)
    rows, metrics = [], {"precision": "bf16", "n_test": TEST_IMAGES, "n_val": 7_000}
    for number in range(1000):
        config = replace(
            TrainConfig(dataset=("mnist", "fashion")[number % 2], device="cpu"),
            seed=number % 5, epochs=100, batch_size=16 + number // 10,
        )  # fmt: skip
        rows += epoch_rows(config, 100)
        accuracies = {"val_acc": rng.random(), "test_acc": rng.random(), "train_ms": 1e6}
        status = ("failed", "interrupted", "ok", "ok")[number % 4]
        ok = status == "ok"
        rows.append(row_of(
            "train", as_dict(config), metrics | accuracies if ok else {}, status=status,
            error=None if ok else "it broke",
        ))  # fmt: skip
        if number % 10 == 0:
            rows += [rows[-1], rows[-1] | {"schema": 2}, rows[-1] | {"kind": "magic"}]
    write_log(folder, rows, tail="{torn\n" * 500)


def write_log(folder: Path, rows: list[dict[str, Any]], tail: str = "") -> None:
    """The log, without the pauses of a durable one."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.jsonl", "w", encoding="utf-8") as file:
        file.writelines(f"{dumps_strict(row)}\n" for row in rows)
        file.write(tail)


def measure_report(folder: Path) -> dict[str, Any]:
    """Report on a folder. Units: seconds; gigabytes of peak resident memory.

    Raises: SystemExit when the report does not end well.
    """
    command = [sys.executable, str(ROOT / "report.py"), "--results-dir", str(folder)]
    printed = folder / "printed.txt"
    started = time.perf_counter()
    with open(printed, "wb") as file:
        process = subprocess.Popen(command, stdout=file)
        _, status, usage = os.wait4(process.pid, 0)  # this child's memory, and no other's
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"report.py failed: status {status}")
    lines = printed.read_text().splitlines()
    return {
        "lines": (folder / "log.jsonl").read_bytes().count(b"\n"), "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "load_average": os.getloadavg()[0], "peak_gb": round(usage.ru_maxrss / 1e6, 2),
        "problems": [line for line in lines if line.startswith("problems in the log")],
    }  # fmt: skip


def main() -> int:
    """Write, report, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", nargs="*", help=f"which logs ({', '.join(LIMITS)}) [all]")
    passed = True
    for name in parser.parse_args().log or LIMITS:
        with tempfile.TemporaryDirectory() as folder:
            {"grid": write_grid, "epochs": write_epochs}[name](Path(folder))
            found = measure_report(Path(folder))
        seconds, gigabytes = LIMITS[name]
        kept = found["seconds"] < seconds and found["peak_gb"] < gigabytes
        print(json.dumps({"log": name, **found, "limits_kept": kept}))
        passed &= kept
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
