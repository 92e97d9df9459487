"""The training loop that people write against train.py's, interleaved block by block.

    python benchmarks/notebook.py
    python benchmarks/notebook.py --model resnet50 --opt adam --blocks 8

The notebook loop (common/train/notebook.py): torchvision transforms on PIL images, a DataLoader,
fp32 in NCHW, and loss.item() at every step; once more with bf16 autocast around its forward pass.
Ours: the steps of train.py, without its running loss and accuracy. All train the same network from
the same weights on the same images, end to end. Each side has a process of its own, all prepared
alike; they wait for their turn (A B C, C B A, ...), so that a machine's drift meets all of them. A
side's speed is the median over its blocks, a ratio the median of the ratios block by block. Ours is
also given as a share of the machine's peak, the speed of a large matrix product in bf16, likewise
in turn; and as one run a core side by side. With all combinations measured, the time of the study's
whole grid is projected. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import timeit
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from common import cost, models
from common.base import cli, machine
from common.base.config import TRAIN_PRESETS, TrainConfig
from common.speed import peaks, timing
from common.speed.process import Process
from common.train import grid, loop
from common.train.notebook import notebook_steps
from common.train.run import Run

WARMUP_STEPS = 5
PEAK_SIDE = 2048  # of the square matrices
N_TRAIN = 49_000  # the study's training split


def step_timer(name: str, config: TrainConfig, data_dir: str) -> timeit.Timer:
    """What times the steps of a side in its process: of train.py's loop, of the notebook's, or
    large matrix products in bf16."""

    def steps() -> Iterator[Any]:
        if name == "peak":
            shape = (2, PEAK_SIDE, PEAK_SIDE)
            a, b = peaks.random_values(shape, torch.bfloat16, torch.device("cpu"))
            while True:
                yield torch.mm(a, b)
        run = Run(config, data_dir)
        if name.startswith("notebook"):
            images = (run.dataset, run.split.train, run.statistics)
            yield from notebook_steps(config, *images, run.device, name.removeprefix("notebook "))
        run.model.train()
        for epoch in itertools.count(1):
            for index in run.order(epoch):
                yield loop.train_step(run.setup, *run.batches.load(index))

    return timeit.Timer(partial(next, steps()), "import gc; gc.enable()")  # it is on in training


class Side:
    """One process, or several that share the machine's threads, each training when told to."""

    def __init__(self, name: str, config: TrainConfig, data_dir: str, processes: int = 1) -> None:
        side, threads = (name, config, data_dir), torch.get_num_threads() // processes
        self.processes = [Process(step_timer, *side, threads=threads) for _ in range(processes)]
        self.name, self.step_s = name, []
        self.run(WARMUP_STEPS)

    def run(self, steps: int) -> float:
        """Do so many steps in each process. Returns: seconds for each step done in any of them."""
        for process in self.processes:
            process.send("timeit", steps)
        return max(p.receive() for p in self.processes) / steps / len(self.processes)

    def time_block(self, steps: int) -> None:
        """Time so many steps, after one to be back in the caches."""
        self.run(1)
        self.step_s.append(self.run(steps))

    def end(self) -> None:
        """Let the processes end, and wait for them."""
        for process in self.processes:
            process.close()


def step_flops(config: TrainConfig, images: int) -> int:
    """FLOPs of a training step on so many images."""
    shape = (images, 3, config.image_size, config.image_size)
    model = models.build_model(config.model, 10)
    return cost.count_costs(model, shape, "conv_linear").train_step_flops


def expand_preset(name: str) -> list[TrainConfig]:
    """The configurations of one of train.py's presets, on the CPU."""
    defaults = {key: [value] for key, value in vars(TrainConfig(device="cpu")).items()}
    return cli.expand_grid(TrainConfig, defaults | TRAIN_PRESETS[name])


def compare(config: TrainConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one combination, print a line for each side, and return the measurements."""
    cores = torch.get_num_threads()
    names = ["notebook fp32", "notebook bf16", "ours", "peak"]
    sides = [Side(name, config, args.data_dir) for name in names]
    if cores > 1:
        sides.append(Side(f"ours, {cores} jobs", config, args.data_dir, cores))
    for block in range(args.blocks):
        for side in timing.alternate(sides, block):
            side.time_block(args.steps)
    for side in sides:
        side.end()
    step_s = {side.name: side.step_s for side in sides}
    peak_flops = [2 * PEAK_SIDE**3 / s for s in step_s.pop("peak")]
    flops = step_flops(config, config.batch_size)
    shares = [flops / s / peak for s, peak in zip(step_s["ours"], peak_flops, strict=True)]
    label = f"{config.model} {config.opt:5}"
    results = {"model": config.model, "opt": config.opt, "peak_flops_per_s": peak_flops}
    for name, own in step_s.items():
        ratio = statistics.median(a / b for a, b in zip(own, step_s["ours"], strict=True))
        speeds = [config.batch_size / s for s in own]
        speed, span = statistics.median(speeds), f"{min(speeds):.1f} to {max(speeds):.1f}"
        print(f"{label} {name:14} {speed:6.1f} images/s ({span})  ours / this {ratio:.2f}")
        results[name] = {"step_s": own, "ours_over_this": ratio}
    share, peak = statistics.median(shares), f"{statistics.median(peak_flops) / 1e9:.0f}"
    print(f"{label} ours reaches {share:.0%} of the machine's {peak} GFLOP/s in bf16", flush=True)
    return results | {"share_of_peak": share}


def print_grid(results: list[dict[str, Any]]) -> None:
    """The study's grid, 64 runs of the notebook loop, against the trajectories of make q1a."""
    measured = {(result["model"], result["opt"]): result for result in results}
    configs = expand_preset("q1a")
    if {(c.model, c.opt) for c in configs} - measured.keys():
        return
    trained = [t.trained for t in grid.group_trajectories(configs)]

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
    env, threads = machine.describe_machine(), torch.get_num_threads()
    load = env["load_average"][0]
    print(f"{env['cpu']}, {threads} threads, torch {torch.__version__}, load {load:.1f}")


def print_json(results: Any) -> None:
    """The last line: what was measured, by which commit, on what machine."""
    facts = {"git": machine.git_state(), "env": machine.describe_machine()}
    print(json.dumps(facts | {"results": results}))


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
        raise cli.UsageError(
            f"--blocks {args.blocks}, --steps {args.steps}: give 1 or more of each"
        )
    print_machine()
    results = [
        compare(TrainConfig(dataset=args.dataset, model=model, opt=opt, device="cpu"), args)
        for model, opt in itertools.product(args.model, args.opt)
    ]
    print_grid(results)
    print_json(results)
    return 0


if __name__ == "__main__":
    cli.run_script(main)
