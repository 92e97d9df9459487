"""The study's accuracy by --preset record, against the time of the study's own recipe.

    python benchmarks/record.py
    python benchmarks/record.py --dataset fashion --seeds 3

For each seed the preset's network is trained from scratch in a fresh process, prepared as those of
the notebook loop are (threads, and freed memory kept), and tested once on the 14,000 test images of
the study's split, which stays the same. Its time is all that happens after packages are imported
and the images are in memory, and before the final evaluation: pixel statistics, building, every
step.
The study's recipe is its best configuration of the data set (ResNet-18, five epochs) in the
notebook loop of benchmarks/notebook.py, in fp32 and with bf16 autocast, projected from blocks of
their steps that take turns with the seeds. A ratio is a projected time over the median time of the
seeds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import scipy.stats  # noqa: E402
import torch  # noqa: E402
import torch._dynamo  # noqa: E402 - which torch.optim imports at its first optimiser
from notebook import WARMUP_STEPS, Side, print_machine  # noqa: E402

from common.base.cli import (  # noqa: E402
    UsageError,
    expand_grid,
    run_script,
)
from common.base.config import TRAIN_PRESETS, TrainConfig  # noqa: E402
from common.base.machine import describe_machine, git_state  # noqa: E402
from common.cost import count_costs  # noqa: E402
from common.data.datasets import cached_dataset  # noqa: E402
from common.judge.published import load_published  # noqa: E402
from common.models import build_model  # noqa: E402
from common.speed.timing import alternate  # noqa: E402
from common.train.device import prepare_process  # noqa: E402
from common.train.run import Run  # noqa: E402

STEPS = 10  # of the notebook loop between two seeds
RECIPE = ("dataset", "model", "opt", "lr", "epochs")


def study_recipes() -> dict[str, tuple[TrainConfig, float]]:
    """Of each data set the study's best configuration, and its published test accuracy."""
    best = [row for row in load_published() if row["part"] == "best"]
    recipes = [TrainConfig(device="cpu", **{name: row[name] for name in RECIPE}) for row in best]
    return {c.dataset: (c, row["test_acc"]) for c, row in zip(recipes, best, strict=True)}


def train_once(pipe: Connection, config: TrainConfig, data_dir: str) -> None:
    """In a process of its own: train, then test; send seconds, val_acc, test_acc, precision."""
    prepare_process(torch.get_num_threads())
    cached_dataset(config.dataset, data_dir)
    start = time.perf_counter()
    run = Run(config, data_dir)
    for epoch in range(1, config.epochs + 1):
        run.train_steps(epoch)
    seconds = time.perf_counter() - start
    pipe.send((seconds, run.test(run.split.val)[1], run.test(run.split.test)[1], run.precision))


def run_apart(config: TrainConfig, data_dir: str) -> tuple[float, float, float, str]:
    """train_once in a fresh process."""
    context = multiprocessing.get_context("spawn")
    pipe, end = context.Pipe()
    process = context.Process(target=train_once, args=(end, config, data_dir))
    process.start()
    end.close()
    result = pipe.recv()
    process.join()
    return result


def measure(dataset: str, configs: list[TrainConfig], data_dir: str) -> dict[str, Any]:
    """All seeds on one data set, with the notebook loop in between; print a line, return all."""
    study, published = study_recipes()[dataset]
    sides = [Side(f"notebook {precision}", study, data_dir) for precision in ("fp32", "bf16")]
    for side in sides:
        side.run(WARMUP_STEPS)
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
    mean, sd = statistics.mean(test), statistics.stdev(test)
    half = scipy.stats.t.ppf(0.975, len(test) - 1) * sd / math.sqrt(len(test))
    shape = (1, 3, config.image_size, config.image_size)
    flops = count_costs(build_model(config.model, 10), shape, "conv_linear").train_step_flops
    total = flops * n * config.epochs
    ratios = {name: value / statistics.median(seconds) for name, value in study_s.items()}
    beside = ", ".join(f"{name} {study_s[name]:.0f} s: 1/{ratios[name]:.0f}" for name in ratios)
    print(
        f"{dataset}: test accuracy {mean:.2%}, sd {sd:.2%} over {len(test)} seeds, 95 % interval "
        f"of the mean {mean - half:.2%} to {mean + half:.2%} (published {published:.2%}); "
        f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), "
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
    print_machine()
    grid = {name: [value] for name, value in vars(TrainConfig(device="cpu")).items()}
    configs = expand_grid(TrainConfig, grid | TRAIN_PRESETS["record"])
    results = [
        measure(name, [c for c in configs if c.dataset == name][: args.seeds], args.data_dir)
        for name in args.dataset
    ]
    print(json.dumps({"git": git_state(), "env": describe_machine(), "results": results}))
    return 0


if __name__ == "__main__":
    run_script(main)
