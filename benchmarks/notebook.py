"""The training loop that people write against train.py's, interleaved block by block.

    python benchmarks/notebook.py
    python benchmarks/notebook.py --model resnet50 --opt adam --blocks 8

The notebook loop (common/train/notebook.py): torchvision transforms on PIL images, a DataLoader,
fp32 in NCHW, and loss.item() at every step; once more with bf16 autocast around its forward pass.
Ours: the batches, network, optimiser and steps of train.py, as common/train/run.py builds them,
without its running loss and accuracy. All train the same network from the same weights on the same
images, end to end, from the data set in memory or on disk to the updated weights. Each side has a
process of its own, all prepared alike (threads, and freed memory kept); they wait for their turn (A
B C, C B A, ...), so that a machine's drift meets all of them. A side's speed is the median over its
blocks, a ratio the median of the ratios block by block. Ours is also given as a share of the
machine's peak, the speed of a large matrix product in bf16, likewise in turn; and as one run a core
side by side. With all combinations measured, the time of the study's whole grid is projected. The
last line is JSON."""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from common.base.cli import (  # noqa: E402
    UsageError,
    expand_grid,
    run_script,
)
from common.base.config import TRAIN_PRESETS, TrainConfig  # noqa: E402
from common.base.machine import describe_machine, git_state  # noqa: E402
from common.cost import count_costs  # noqa: E402
from common.models import build_model  # noqa: E402
from common.speed.peaks import random_values  # noqa: E402
from common.speed.timing import alternate  # noqa: E402
from common.train.device import prepare_process  # noqa: E402
from common.train.grid import group_trajectories  # noqa: E402
from common.train.loop import train_step  # noqa: E402
from common.train.notebook import notebook_steps  # noqa: E402
from common.train.run import Run  # noqa: E402

WARMUP_STEPS = 5
PEAK_SIDE = 2048  # of the square matrices
N_TRAIN = 49_000  # the study's training split


def steps_of(name: str, config: TrainConfig, data_dir: str) -> Iterator[Any]:
    """One step of a side at each turn: of train.py's loop, of the notebook's, or one large matrix
    product in bf16."""
    if name == "peak":
        a, b = random_values((2, PEAK_SIDE, PEAK_SIDE), torch.bfloat16, torch.device("cpu"))
        while True:
            yield torch.mm(a, b)
    run = Run(config, data_dir)
    if name.startswith("notebook"):
        images = (run.dataset, run.split.train, run.statistics)
        yield from notebook_steps(config, *images, run.device, name.removeprefix("notebook "))
    run.model.train()
    for epoch in count(1):
        for index in run.order(epoch):
            train_step(run.setup, *run.batches.load(index))
            yield


def serve(pipe: Connection, name: str, config: TrainConfig, data_dir: str, threads: int) -> None:
    """What a side's process does: so many steps as it is sent, until that is none."""
    prepare_process(threads)
    steps = steps_of(name, config, data_dir)
    while n := pipe.recv():
        start = time.perf_counter()
        for _ in range(n):
            next(steps)
        pipe.send(time.perf_counter() - start)


class Side:
    """One process, or several that share the machine's threads, each training when told to."""

    def __init__(self, name: str, config: TrainConfig, data_dir: str, processes: int = 1) -> None:
        context = multiprocessing.get_context("spawn")
        self.name, threads = name, torch.get_num_threads() // processes
        self.pipes, self.processes, self.step_s = [], [], []
        for _ in range(processes):
            pipe, end = context.Pipe()
            args = (end, name, config, data_dir, threads)
            self.processes.append(context.Process(target=serve, args=args, daemon=True))
            self.processes[-1].start()
            end.close()
            self.pipes.append(pipe)

    def run(self, steps: int) -> float:
        """Do so many steps in each process. Returns: seconds for each step done in any of them."""
        for pipe in self.pipes:
            pipe.send(steps)
        return max(pipe.recv() for pipe in self.pipes) / steps / len(self.pipes)

    def time_block(self, steps: int) -> None:
        """Time so many steps, after one to be back in the caches."""
        self.run(1)
        self.step_s.append(self.run(steps))

    def end(self) -> None:
        """Let the processes end, and wait for them."""
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(0)
            process.join()


def compare(config: TrainConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one combination, print a line for each side, and return the measurements."""
    cores = torch.get_num_threads()
    names = ["notebook fp32", "notebook bf16", "ours", "peak"]
    sides = [Side(name, config, args.data_dir) for name in names]
    if cores > 1:
        sides.append(Side(f"ours, {cores} jobs", config, args.data_dir, cores))
    for side in sides:
        side.run(WARMUP_STEPS)
    for block in range(args.blocks):
        for side in alternate(sides, block):
            side.time_block(args.steps)
    for side in sides:
        side.end()
    step_s = {side.name: side.step_s for side in sides}
    peaks = [2 * PEAK_SIDE**3 / s for s in step_s.pop("peak")]
    shape = (config.batch_size, 3, config.image_size, config.image_size)
    flops = count_costs(build_model(config.model, 10), shape, "conv_linear").train_step_flops
    shares = [flops / s / peak for s, peak in zip(step_s["ours"], peaks, strict=True)]
    label = f"{config.model} {config.opt:5}"
    results = {"model": config.model, "opt": config.opt, "peak_flops_per_s": peaks}
    for name, own in step_s.items():
        ratio = statistics.median(a / b for a, b in zip(own, step_s["ours"], strict=True))
        speeds = [config.batch_size / s for s in own]
        speed, span = statistics.median(speeds), f"{min(speeds):.1f} to {max(speeds):.1f}"
        print(f"{label} {name:14} {speed:6.1f} images/s ({span})  ours / this {ratio:.2f}")
        results[name] = {"step_s": own, "ours_over_this": ratio}
    share, peak = statistics.median(shares), statistics.median(peaks)
    print(
        f"{label} ours reaches {share:.0%} of the machine's {peak / 1e9:.0f} GFLOP/s in bf16",
        flush=True,
    )
    return results | {"share_of_peak": share}


def print_grid(results: list[dict[str, Any]]) -> None:
    """The study's grid, 64 runs of the notebook loop, against the trajectories of make q1a."""
    measured = {(result["model"], result["opt"]): result for result in results}
    grid = {name: [value] for name, value in vars(TrainConfig(device="cpu")).items()}
    configs = expand_grid(TrainConfig, grid | TRAIN_PRESETS["q1a"])
    if {(c.model, c.opt) for c in configs} - measured.keys():
        return
    trained = [t.trained for t in group_trajectories(configs)]

    def hours(runs: list[TrainConfig], side: str) -> float:
        step_s = {key: statistics.median(m[side]["step_s"]) for key, m in measured.items()}
        steps_an_epoch = math.ceil(N_TRAIN / runs[0].batch_size)
        return sum(step_s[c.model, c.opt] * steps_an_epoch * c.epochs for c in runs) / 3600

    notebook = hours(configs, "notebook fp32")
    for side in [name for name in results[0] if name.startswith("ours")]:
        ours = hours(trained, side)
        print(
            f"the grid, projected: {len(configs)} notebook runs {notebook:.1f} h, {side} on "
            f"{len(trained)} trajectories {ours:.1f} h: {notebook / ours:.2f} times"
        )


def print_machine() -> None:
    """What is measured on."""
    env, threads = describe_machine(), torch.get_num_threads()
    load = env["load_average"][0]
    print(f"{env['cpu']}, {threads} threads, torch {torch.__version__}, load {load:.1f}")


def main(argv: list[str] | None = None) -> int:
    """Measure every combination asked for, and print the ratios."""
    parser = argparse.ArgumentParser(description="the notebook loop against train.py's")
    add = parser.add_argument
    add("--dataset", default="fashion", choices=("mnist", "fashion"), help="[fashion]")
    add("--model", nargs="+", default=["resnet18", "resnet50"], help="[resnet18 resnet50]")
    add("--opt", nargs="+", default=["sgd", "adam"], choices=("sgd", "adam"), help="[sgd adam]")
    add("--blocks", type=int, default=6, help="timed blocks of each side [6]")
    add("--steps", type=int, default=10, help="steps a block [10]")
    add("--data-dir", default="data", help="folder of the data sets [data]")
    args = parser.parse_args(argv)
    if min(args.blocks, args.steps) < 1:
        raise UsageError(f"--blocks {args.blocks}, --steps {args.steps}: give 1 or more of each")
    print_machine()
    results = [
        compare(TrainConfig(dataset=args.dataset, model=model, opt=opt, device="cpu"), args)
        for model in args.model
        for opt in args.opt
    ]
    print_grid(results)
    print(json.dumps({"git": git_state(), "env": describe_machine(), "results": results}))
    return 0


if __name__ == "__main__":
    run_script(main)
