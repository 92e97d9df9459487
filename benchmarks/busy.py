"""Training steps beside other processes that compute: threads that adapt, fixed ones, a notebook.

    python benchmarks/busy.py --dataset fashion

Each side has a process of its own, and in turns so many seconds of steps, after two untimed ones;
beside 0, 1 and 2 busy processes. Printed are medians over turns of milliseconds a step, and the
time against the best of the fixed numbers of threads. The last line is JSON.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from itertools import count

import torch
from shared import print_json, print_machine, print_table

from common.base.cli import Validated, option, parse_command_line, run_script
from common.base.config import TrainConfig
from common.speed import timing
from common.speed.process import Process
from common.train import loop
from common.train.notebook import notebook_steps
from common.train.run import Run
from common.train.threads import threads

BUSY = (0, 1, 2)
SETTLE_S = 2.0  # a side that slept has looked at nobody's load


class Options(Validated):
    """What is trained, and for how long."""

    dataset: str = option("fashion", "data set", ("mnist", "fashion", "digits"))
    model: str = option("resnet18", "network")
    seconds: float = option(6.0, "of steps a turn", above=0)
    turns: int = option(2, "turns of each side", minimum=1)
    data_dir: str = option("data", "folder of the data sets")


class Side:
    """One way to train, in its process."""

    def __init__(self, side: str, config: TrainConfig, data_dir: str) -> None:
        self.run = Run(config, data_dir)
        self.steps = notebook_steps(self.run, "fp32") if side == "notebook" else self.own_steps()
        if side == "adapts":
            threads.adapt()

    def own_steps(self):
        self.run.model.train()
        for epoch in count(1):
            for index in self.run.order(epoch):
                threads.look()
                yield loop.train_step(self.run.setup, *self.run.batches.load(index))

    def time(self, seconds: float) -> float:
        """Milliseconds a step, on average over so many seconds."""
        if seconds > SETTLE_S:
            self.time(SETTLE_S)
        start_s, n = time.perf_counter(), 0
        while (passed_s := time.perf_counter() - start_s) < seconds or n < 1:
            next(self.steps)
            n += 1
        return 1e3 * passed_s / n


def main(argv: list[str] | None = None) -> int:
    _, options = parse_command_line(argv, __doc__, options_class=Options)
    config = TrainConfig(dataset=options.dataset, model=options.model, device="cpu")
    cores, records = torch.get_num_threads(), []
    print_machine(f"{options.turns} turns of {options.seconds:g} s")
    fixed = {f"fixed, {n} thread{'s' * (n > 1)}": n for n in (1, cores)}
    sides = {"adapts": cores} | fixed | {"notebook": cores}
    processes = {
        name: Process(Side, name, config, options.data_dir, threads=n) for name, n in sides.items()
    }
    for n in BUSY:
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
        step_ms = {name: [] for name in sides}
        for turn in range(options.turns):
            for name in timing.alternate(list(sides), turn):
                step_ms[name].append(processes[name].call("time", options.seconds))
        for other in others:
            other.kill()
        medians = {name: statistics.median(ms) for name, ms in step_ms.items()}
        best = min(medians[name] for name in fixed)
        cells = {name: f"{ms:.0f} ({ms / best:.2f})" for name, ms in medians.items()}
        records.append({"busy processes": n} | cells)
    for process in processes.values():
        process.close()
    print_table(records)
    print_json(results=records)
    return 0


if __name__ == "__main__":
    run_script(main)
