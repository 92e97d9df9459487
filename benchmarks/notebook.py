"""The training loop that people write (common/train/notebook.py) against train.py's.

Both train the same network from the same weights on the same images, each in a process of its own,
in turns (A B C, C B A, ...): the notebook loop in fp32 and with bf16 autocast; ours, also with one
thread and as a run a core; beside --busy processes that compute, ours with threads that adapt, too.
Speeds, ratios and the share of a matrix product's speed in bf16 are medians over blocks. With all
combinations measured, the study's grid is projected. JSON: seconds of a step, by block.
"""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import time
import timeit
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from shared import print_json, print_table, with_range

from common import cost, models
from common.base.cli import Validated, expand_grid, option, parse_command_line, run_script
from common.base.config import TrainConfig
from common.speed import peaks, timing
from common.speed.timing import Process
from common.train import grid, loop
from common.train.device import threads
from common.train.notebook import notebook_steps
from common.train.run import Run

WARMUP_STEPS = 5
SETTLE_S = 2.0  # before each block beside others: a side that slept has looked at nobody's load
PEAK_SIDE = 2048  # of the square matrices
N_TRAIN = 49_000  # the study's training split


class Options(Validated):
    """What is compared, and how often."""

    dataset: str = option("fashion", "data set", ("mnist", "fashion"))
    model: tuple[str, ...] = option(("resnet18", "resnet50"), "networks")
    opt: tuple[str, ...] = option(("sgd", "adam"), "optimisers", ("sgd", "adam"))
    blocks: int = option(6, "timed blocks of each side", minimum=1)
    steps: int = option(10, "steps a block", minimum=1)
    busy: int = option(0, "processes that compute beside", minimum=0)
    data_dir: str = option("data", "folder of the data sets")


def steps_of(side: str, config: TrainConfig, data_dir: str) -> Iterator[Any]:
    """Endless steps of train.py's loop or of the notebook's, or matrix products in bf16."""
    if side == "peak":
        shape = (2, PEAK_SIDE, PEAK_SIDE)
        a, b = peaks.random_values(shape, torch.bfloat16, torch.device("cpu"))
        while True:
            yield torch.mm(a, b)
    run = Run(config, data_dir)
    if side.startswith("notebook"):
        yield from notebook_steps(run, side.removeprefix("notebook "))
    if side == "ours, adapting":
        threads.adapt()
    run.model.train()
    for epoch in itertools.count(1):
        for index in run.order(epoch):
            threads.look()
            yield loop.train_step(run.setup, *run.batches.load(index))


def step_timer(*side: Any) -> timeit.Timer:
    """Times a side's steps in its process, where garbage is collected as in training."""
    return timeit.Timer(partial(next, steps_of(*side)), "import gc; gc.enable()")


def time_blocks(
    side_threads: Mapping[str, Sequence[int]], steps: int, settle_s: float, *what: Any
) -> Iterator[dict[str, list[float]]]:
    """A block of steps of every side at each turn, in a process for each number of threads.
    `what` is trained. Yields: by side the seconds of a step, of every block so far."""
    sides, step_s = {}, {name: [] for name in side_threads}

    def run(name: str, steps: int) -> float:
        for process in sides[name]:
            process.send("timeit", steps)
        return max([process.receive() for process in sides[name]]) / steps / len(sides[name])

    for name, each in side_threads.items():
        sides[name] = [Process(step_timer, name, *what, threads=n) for n in each]
        run(name, WARMUP_STEPS)
    try:
        for number in itertools.count():
            for name in timing.alternate(list(sides), number):
                settled_s = time.monotonic() + settle_s
                while run(name, 1) and time.monotonic() < settled_s:
                    pass  # at least one, to be back in the caches
                step_s[name].append(run(name, steps))
            yield step_s
    finally:
        for process in itertools.chain(*sides.values()):
            process.close()


def step_flops(config: TrainConfig) -> int:
    """FLOPs of a training step on one image."""
    size = config.image_size
    model = models.build_on_meta(config.model, 10, size)
    return cost.count_costs(model, (1, 3, size, size), "conv_linear").train_step_flops


def project_s(config: TrainConfig, step_s: Sequence[float]) -> float:
    """Seconds of a training on the study's split, from those of a step."""
    return float(np.median(step_s)) * math.ceil(N_TRAIN / config.batch_size) * config.epochs


def compare(config: TrainConfig, options: Options) -> dict[str, list[float]]:
    """Measure one combination, and print a line for each side. Returns: as time_blocks yields."""
    cores = torch.get_num_threads()
    sides = {name: [cores] for name in ("notebook fp32", "notebook bf16", "ours", "peak")}
    if cores > 1:
        sides |= {"ours, one thread": [1], f"ours, {cores} jobs": [1] * cores}
    if options.busy:
        sides["ours, adapting"] = [cores]
    settle_s = SETTLE_S if options.busy else 0.0
    blocks = time_blocks(sides, options.steps, settle_s, config, options.data_dir)
    *_, step_s = itertools.islice(blocks, options.blocks)
    peak, ours = 2 * PEAK_SIDE**3 / np.array(step_s.pop("peak")), np.array(step_s["ours"])
    lines, flops = [], config.batch_size * step_flops(config)
    for name, own in step_s.items():
        line = {"network": config.model, "optimiser": config.opt, "side": name}
        line["images/s"] = with_range([config.batch_size / s for s in own])
        line["ours / this"] = f"{np.median(own / ours):.2f}"
        share = f"{np.median(flops / np.array(own) / peak):.0%}"
        lines.append(line | {f"of {np.median(peak) / 1e9:.0f} GFLOP/s in bf16": share})
    print_table(lines, disable_numparse=True)
    return step_s


def print_grid(measured: Mapping[tuple[str, str], Mapping[str, list[float]]]) -> None:
    """The study's grid, 64 runs of the notebook loop, against the 16 of make q1a."""
    configs = expand_grid(TrainConfig, TrainConfig.presets["q1a"] | {"device": ["cpu"]})
    if {(c.model, c.opt) for c in configs} - measured.keys():
        return
    trained = [trajectory.trained for trajectory in grid.group_trajectories(configs)]

    def hours(side: str, runs: Sequence[TrainConfig]) -> float:
        return sum(project_s(c, measured[c.model, c.opt][side]) for c in runs) / 3600

    notebook = hours("notebook fp32", configs)
    print(f"the grid, projected: {len(configs)} notebook runs {notebook:.1f} h; {len(trained)} of")
    for side in [name for name in next(iter(measured.values())) if name.startswith("ours")]:
        own = hours(side, trained)
        print(f"{side}: {own:.1f} h, {notebook / own:.2f} times as fast")


def main(argv: list[str] | None = None) -> int:
    _, options = parse_command_line(argv, __doc__, options_class=Options)
    measured = {}
    with ExitStack() as others:
        for _ in range(options.busy):
            others.callback(subprocess.Popen([sys.executable, "-c", "while True: pass"]).kill)
        for model, opt in itertools.product(options.model, options.opt):
            config = TrainConfig(dataset=options.dataset, model=model, opt=opt, device="cpu")
            measured[model, opt] = compare(config, options)
    print_grid(measured)
    print_json(results=[{"model": m, "opt": o, "step_s": s} for (m, o), s in measured.items()])
    return 0


if __name__ == "__main__":
    run_script(main)
