"""The study's accuracy by --preset record, against the time of the study's own recipe.

    python benchmarks/record.py
    python benchmarks/record.py --dataset fashion --seeds 3

For each seed the preset's network is trained from scratch in a fresh process, prepared as those of
the notebook loop are (threads, and freed memory kept), and tested once on the 14,000 test images of
the study's split, which stays the same. Its time is all that happens after packages are imported
and the images are in memory, and before the final evaluation: pixel statistics, building, every
step. The study's recipe is its best configuration of the data set (ResNet-18, five epochs) in the
notebook loop of benchmarks/notebook.py, in fp32 and with bf16 autocast, projected from blocks of
their steps that take turns with the seeds. A ratio is a projected time over the median time of the
seeds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import notebook
import scipy.stats
import torch
import torch._dynamo  # which torch.optim imports at its first optimiser

from common.base.cli import UsageError, run_script
from common.base.config import TrainConfig
from common.data.datasets import cached_dataset
from common.judge.published import published
from common.speed.process import Process
from common.speed.timing import alternate
from common.train.run import Run

STEPS = 10  # of the notebook loop between two seeds
RECIPE = ("dataset", "model", "opt", "lr", "epochs")


def study_recipes() -> dict[str, tuple[TrainConfig, float]]:
    """Of each data set the study's best configuration, and its published test accuracy."""
    best = published("best")
    recipes = [TrainConfig(device="cpu", **{name: row[name] for name in RECIPE}) for row in best]
    return {c.dataset: (c, row["test_acc"]) for c, row in zip(recipes, best, strict=True)}


def train_once(config: TrainConfig, data_dir: str) -> tuple[float, float, float, str]:
    """Train, then test. Returns: seconds, val_acc, test_acc, precision."""
    cached_dataset(config.dataset, data_dir)
    start = time.perf_counter()
    run = Run(config, data_dir)
    for epoch in range(1, config.epochs + 1):
        run.train_steps(epoch)
    seconds = time.perf_counter() - start
    return seconds, run.test(run.split.val)[1], run.test(run.split.test)[1], run.precision


def run_apart(config: TrainConfig, data_dir: str) -> tuple[float, float, float, str]:
    """train_once in a fresh process."""
    work = partial, train_once, config, data_dir
    process = Process(*work, threads=torch.get_num_threads())
    result = process.call("__call__")
    process.close()
    return result


def measure(dataset: str, configs: list[TrainConfig], data_dir: str) -> dict[str, Any]:
    """All seeds on one data set, with the notebook loop in between; print a line, return all."""
    study, published = study_recipes()[dataset]
    sides = [notebook.Side(f"notebook {name}", study, data_dir) for name in ("fp32", "bf16")]
    seeds = []
    for number, seed in enumerate(configs):
        for side in alternate(sides, number):
            side.time_block(STEPS)
        seeds.append(run_apart(seed, data_dir))
    for side in sides:
        side.end()
    config, n = configs[0], len(cached_dataset(dataset, data_dir).labels) * 7 // 10
    steps = math.ceil(n / study.batch_size) * study.epochs
    study_s = {side.name: statistics.median(side.step_s) * steps for side in sides}
    seconds, val, test, precision = zip(*seeds, strict=True)
    mean, sd, median_s = statistics.mean(test), statistics.stdev(test), statistics.median(seconds)
    half = scipy.stats.t.ppf(0.975, len(test) - 1) * sd / math.sqrt(len(test))
    total = notebook.step_flops(config, 1) * n * config.epochs
    ratios = {name: value / median_s for name, value in study_s.items()}
    beside = ", ".join(f"{name} {study_s[name]:.0f} s: 1/{ratios[name]:.0f}" for name in ratios)
    print(
        f"{dataset}: test accuracy {mean:.2%}, sd {sd:.2%} over {len(test)} seeds, 95 % interval "
        f"of the mean {mean - half:.2%} to {mean + half:.2%} (published {published:.2%}); "
        f"{median_s:.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), "
        f"{total / 1e12:.2f} TFLOP in {precision[0]}; the study's recipe "
        f"({study.model} {study.opt}, {study.epochs} epochs) in the loop of {beside}",
        flush=True,
    )
    accuracies = {"dataset": dataset, "test_acc": test, "val_acc": val}
    times = {"train_s": seconds, "notebook_step_s": {side.name: side.step_s for side in sides}}
    extra = {"train_flops": total, "study_s_extrapolated": study_s, "ratio": ratios}
    return accuracies | times | extra


def main(argv: list[str] | None = None) -> int:
    """Measure every data set asked for."""
    parser = argparse.ArgumentParser(description="--preset record against the study's recipe")
    add, names = parser.add_argument, list(study_recipes())
    add("--dataset", nargs="+", default=names, choices=names, help="[mnist fashion]")
    add("--seeds", type=int, default=None, help="the first so many (two or more) [the preset's]")
    add("--data-dir", default="data", help="folder of the data sets [data]")
    args = parser.parse_args(argv)
    if args.seeds is not None and args.seeds < 2:
        raise UsageError(f"--seeds: {args.seeds} leave no standard deviation; give 2 or more")
    notebook.print_machine()
    configs = notebook.expand_preset("record")
    seeds = {n: [c for c in configs if c.dataset == n][: args.seeds] for n in args.dataset}
    notebook.print_json([measure(n, configs, args.data_dir) for n, configs in seeds.items()])
    return 0


if __name__ == "__main__":
    run_script(main)
