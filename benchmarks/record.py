"""The study's accuracy by --preset record, against the time of the study's own recipe.

Every seed trains from scratch in a fresh process; its time is of all but imports, the loading of
images and its one test on the study's test images. The study's recipe, its best configuration of
the data set, is projected from blocks of steps of notebook.py's loop, in turns with the seeds. A
ratio is a projected time over the seeds' median.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import notebook
import torch
import torch._dynamo  # which torch.optim imports at its first optimiser
from scipy.stats import ttest_1samp
from shared import print_json, print_table, with_range

from common.base.cli import Validated, expand_grid, option, parse_command_line, run_script
from common.base.config import TrainConfig
from common.data.datasets import load_dataset
from common.judge.published import published
from common.speed.timing import Process
from common.train.run import Run

DATASETS = ("mnist", "fashion")
STEPS = 10  # of the notebook loop between two seeds


class Options(Validated):
    """What is trained."""

    dataset: tuple[str, ...] = option(DATASETS, "data sets", DATASETS)
    seeds: int | None = option(None, "the first so many [the preset's ten]", minimum=2)
    data_dir: str = option("data", "folder of the data sets")


def train_once(config: TrainConfig, data_dir: str) -> tuple[float, float, float, str]:
    """Train, then test. Returns: seconds, val_acc, test_acc, precision."""
    load_dataset(config.dataset, data_dir)
    start = time.perf_counter()
    run = Run(config, data_dir)
    for epoch in range(1, config.epochs + 1):
        run.train_steps(epoch)
    seconds = time.perf_counter() - start
    return seconds, run.test(run.split.val)[1], run.test(run.split.test)[1], run.precision


def run_apart(config: TrainConfig, data_dir: str) -> tuple[float, float, float, str]:
    """train_once in a fresh process."""
    process = Process(partial, train_once, config, data_dir, threads=torch.get_num_threads())
    result = process.call("__call__")
    process.close()
    return result


def measure(dataset: str, options: Options) -> dict[str, Any]:
    """All seeds on one data set, with the notebook loop in between; print a line, return all."""
    (best,) = published("best", dataset=dataset)
    recipe = {name: best[name] for name in ("dataset", "model", "opt", "lr", "epochs")}
    study = TrainConfig(device="cpu", **recipe)
    preset = TrainConfig.presets["record"] | {"dataset": [dataset], "device": ["cpu"]}
    configs = expand_grid(TrainConfig, preset)[: options.seeds]
    loops = {name: [torch.get_num_threads()] for name in ("notebook fp32", "notebook bf16")}
    blocks, runs = notebook.time_blocks(loops, STEPS, 0.0, study, options.data_dir), []
    for config in configs:
        step_s = next(blocks)
        runs.append(run_apart(config, options.data_dir))
    blocks.close()
    seconds, val, test, precision = zip(*runs, strict=True)
    low, high = ttest_1samp(test, 0).confidence_interval()  # Student's, 95 %
    flops = notebook.step_flops(config) * notebook.N_TRAIN * config.epochs
    study_s = {name: notebook.project_s(study, own) for name, own in step_s.items()}
    ratio = {name: value / statistics.median(seconds) for name, value in study_s.items()}
    line = {"data set": dataset, "seeds": len(test)}
    line["test accuracy"] = f"{statistics.mean(test):.2%} ({low:.2%} to {high:.2%})"
    line |= {"sd": f"{statistics.stdev(test):.2%}", "published": f"{best['test_acc']:.2%}"}
    line |= {"seconds": with_range(seconds, 2), "TFLOP": f"{flops / 1e12:.2f} in {precision[0]}"}
    for name, projected_s in study_s.items():
        line[f"{study.model}, {name}"] = f"{projected_s:.0f} s: 1/{ratio[name]:.0f}"
    print_table([line])
    results = {"dataset": dataset, "test_acc": test, "val_acc": val, "train_s": seconds}
    results |= {"notebook_step_s": step_s, "train_flops": flops, "ratio": ratio}
    return results | {"study_s_extrapolated": study_s}


def main(argv: list[str] | None = None) -> int:
    _, options = parse_command_line(argv, __doc__, options_class=Options)
    print_json(results=[measure(dataset, options) for dataset in options.dataset])
    return 0


if __name__ == "__main__":
    run_script(main)
