"""The training loop that people write (common/train/notebook.py) against train.py's.

Both train the same network from the same weights on the same images, each in a process of its own,
in turns (A B C, C B A, ...): the notebook loop in fp32 and with bf16 autocast, ours, and ours as a
run a core. Speeds and ratios are medians over blocks. Our share of a matrix product's speed in bf16
stands beside; with all combinations measured, the study's grid is projected. The last line is
JSON: seconds of a step, by block.
"""

from __future__ import annotations

import itertools
import math
import timeit
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from shared import print_json, print_machine, with_range

from common import cost, models
from common.base.cli import Validated, expand_grid, option, parse_command_line, run_script
from common.base.config import TRAIN_PRESETS, TrainConfig
from common.speed import peaks, timing
from common.speed.process import Process
from common.train import grid, loop
from common.train.notebook import notebook_steps
from common.train.run import Run

WARMUP_STEPS = 5
PEAK_SIDE = 2048  # of the square matrices
N_TRAIN = 49_000  # the study's training split


class Options(Validated):
    """What is compared, and how often."""

    dataset: str = option("fashion", "data set", ("mnist", "fashion"))
    model: tuple[str, ...] = option(("resnet18", "resnet50"), "networks")
    opt: tuple[str, ...] = option(("sgd", "adam"), "optimisers", ("sgd", "adam"))
    blocks: int = option(6, "timed blocks of each side", minimum=1)
    steps: int = option(10, "steps a block", minimum=1)
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
    run.model.train()
    for epoch in itertools.count(1):
        for index in run.order(epoch):
            yield loop.train_step(run.setup, *run.batches.load(index))


def step_timer(*side: Any) -> timeit.Timer:
    """Times a side's steps in its process, where garbage is collected as in training."""
    return timeit.Timer(partial(next, steps_of(*side)), "import gc; gc.enable()")


def time_blocks(
    config: TrainConfig, data_dir: str, processes: Mapping[str, int], steps: int
) -> Iterator[dict[str, list[float]]]:
    """A block of steps of every side at each turn; a side's processes share the machine's threads.
    Yields: by side the seconds of a step, of every block so far."""
    sides, step_s = {}, {name: [] for name in processes}

    def run(name: str, steps: int) -> float:
        for process in sides[name]:
            process.send("timeit", steps)
        return max([process.receive() for process in sides[name]]) / steps / len(sides[name])

    for name, n in processes.items():
        side = (step_timer, name, config, data_dir)
        sides[name] = [Process(*side, threads=torch.get_num_threads() // n) for _ in range(n)]
        run(name, WARMUP_STEPS)
    try:
        for number in itertools.count():
            for name in timing.alternate(list(sides), number):
                run(name, 1)  # to be back in the caches
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


def compare(config: TrainConfig, options: Options) -> dict[str, list[float]]:
    """Measure one combination, and print a line for each side. Returns: as time_blocks yields."""
    cores = torch.get_num_threads()
    processes = dict.fromkeys(("notebook fp32", "notebook bf16", "ours", "peak"), 1)
    processes |= {f"ours, {cores} jobs": cores} if cores > 1 else {}
    blocks = time_blocks(config, options.data_dir, processes, options.steps)
    *_, step_s = itertools.islice(blocks, options.blocks)
    ours, label = np.array(step_s["ours"]), f"{config.model} {config.opt:5}"
    peak = 2 * PEAK_SIDE**3 / np.array(step_s.pop("peak"))
    for name, own in step_s.items():
        speed, ratio = with_range([config.batch_size / s for s in own]), np.median(own / ours)
        print(f"{label} {name:14} {speed} images/s  ours / this {ratio:.2f}")
    share = np.median(config.batch_size * step_flops(config) / ours / peak)
    reached = f"{share:.0%} of the machine's {np.median(peak) / 1e9:.0f} GFLOP/s in bf16"
    print(f"{label} ours reaches {reached}", flush=True)
    return step_s


def print_grid(measured: Mapping[tuple[str, str], Mapping[str, list[float]]]) -> None:
    """The study's grid, 64 runs of the notebook loop, against the 16 of make q1a."""
    configs = expand_grid(TrainConfig, TRAIN_PRESETS["q1a"] | {"device": ["cpu"]})
    if {(c.model, c.opt) for c in configs} - measured.keys():
        return
    trained = [trajectory.trained for trajectory in grid.group_trajectories(configs)]
    steps = math.ceil(N_TRAIN / configs[0].batch_size)

    def hours(side: str, runs: list[TrainConfig]) -> float:
        epochs_s = (np.median(measured[c.model, c.opt][side]) * steps * c.epochs for c in runs)
        return sum(epochs_s) / 3600

    notebook = hours("notebook fp32", configs)
    for side in [name for name in next(iter(measured.values())) if name.startswith("ours")]:
        ours = hours(side, trained)
        print(
            f"the grid, projected: {len(configs)} notebook runs {notebook:.1f} h, {side} on "
            f"{len(trained)} trajectories {ours:.1f} h: {notebook / ours:.2f} times"
        )


def main(argv: list[str] | None = None) -> int:
    _, options = parse_command_line(argv, __doc__, options_class=Options)
    print_machine()
    measured = {}
    for model, opt in itertools.product(options.model, options.opt):
        config = TrainConfig(dataset=options.dataset, model=model, opt=opt, device="cpu")
        measured[model, opt] = compare(config, options)
    print_grid(measured)
    print_json(results=[{"model": m, "opt": o, "step_s": s} for (m, o), s in measured.items()])
    return 0


if __name__ == "__main__":
    run_script(main)
