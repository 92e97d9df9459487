"""Measure training speed by device, or inference speed of exported networks.

    python hw_bench.py --device cpu cuda
    python hw_bench.py --device cuda --loop notebook ours
    python hw_bench.py --mode infer

Method of --mode train: whole steps (gather and resize fresh images, forward, backward, optimiser)
of every variant and optimiser of a network, after a warm-up, in rounds that run first forwards,
then backwards through them, so that a machine's drift meets all of them. On a CPU a sample is one
step; on an accelerator the mean of ten, since a look at the clock after each would stall its queue.
Each round has a step more, with a wait after every phase, for where the time goes. An epoch is
extrapolated from the median step, unless --full-epoch trains and tests one. Speed-ups are against
the optimiser's first variant on the first device, with Student's interval over the rounds. Where
the CPU is the only device, its own variants are compared: threads, precision, and torch.compile,
whose cost without kernels kept from earlier is in first_step_ms. The device's peaks, of a matrix
product or a convolution, and of a copy, are measured; each row says what share of them a step
reached. Networks are channels_last, but in the notebook loop (common/train/notebook.py).

Method of --mode infer: every engine has a process of its own, all prepared alike. It first answers
the whole test split, and is timed only if it answers as the eager fp32 network does (in bf16 and
int8: without losing 0.2 points of accuracy). Queries are different test images, put to the engines
in such rounds too, modelled on MLPerf's single stream (batch 1) and offline (images/s by batch
size) but much shorter: 100 queries and 10 s at least. Making a query is not timed, nor is loading
(cold_start_ms, of the first launch). All of it is done in --launches sets of fresh processes; the
interval of a speed-up is over them.

In both a timing whose IQR is over a tenth of its median is flagged, and over a quarter refused.
Writes to --results-dir: log.jsonl (kind hw_train or hw_infer).
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Callable
from typing import Any

from tabulate import tabulate

from common.base import config as settings
from common.base.cli import as_dict, check_name, expand_grid, parse_command_line, run_script
from common.base.log import Log, run_id

MODES = {
    "train": (settings.HwTrainConfig, settings.HW_PRESETS, "q2"),
    "infer": (settings.HwInferConfig, settings.HW_INFER_PRESETS, "bench"),
}
KINDS = {settings.HwTrainConfig: "hw_train", settings.HwInferConfig: "hw_infer"}
Row = dict[str, Any]  # of the log, the table, or what is in one
BUSY_LOAD = 0.5  # of the cores: other work that is felt in the timings


def bench_train(grid: dict[str, list[Any]], options: settings.HwOptions, log: Log) -> int:
    """Measure every group that the log lacks a row of, or has of different rounds; print a table.

    Returns: failures.
    """
    import torch

    from common.speed import training

    threads = torch.get_num_threads()
    groups = training.expand_groups(grid)
    for group in groups:
        training.check_group(group, options.data_dir)
    warn_if_busy()
    compiled = any(config.compile for group in groups for config in group)
    if compiled:
        # Beyond its limit of recompilations torch would quietly run eagerly.
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        torch.compile(torch.nn.ReLU())(torch.zeros(1))  # so that no variant pays for its start
    failures = 0
    for number, group in enumerate(groups, 1):
        print(f"[{number}/{len(groups)}] {group[0].dataset} {group[0].model}", flush=True)
        done = log.finished("hw_train")
        rows = [done.get(hw_id(config)) for config in group]
        if all(rows) and not options.force:
            rounds = {row["metrics"].get("rounds", {}).get("group") for row in rows}
            together = len(rows) == 1 or (len(rounds) == 1 and None not in rounds)
            print("  in the log" + ("" if together else ", but not measured in the same rounds"))
            if together:
                continue
        for config, metrics, error in training.measure_group(group, options.data_dir, threads):
            label = f"{config.opt}, {config.describe()}"
            failures += append(log, config, label, metrics, error)
        if compiled:
            torch.compiler.reset()  # its cache keeps networks alive, and counts towards the limit
    print_table([config for group in groups for config in group], log, train_cells)
    print(
        "~ extrapolated from the median step; speed-ups are against an optimiser's first variant; "
        "? noisy, IQR over 10 % of the median"
    )
    return failures


def bench_infer(grid: dict[str, list[Any]], options: settings.HwOptions, log: Log) -> int:
    """Measure every run that the log lacks a row of; print a table. Returns: failures."""
    from common.judge.rows import pick_best
    from common.speed import inference

    plan = [
        (run, files, inference.expand_queries(grid, run["run_id"], files))
        for run, files in inference.find_files(grid["train_run_id"], log, pick_best)
    ]
    warn_if_busy()
    failures = 0
    for number, (run, files, configs) in enumerate(plan, 1):
        names = {key: run["config"][key] for key in ("dataset", "model")}
        print(f"[{number}/{len(plan)}] {' '.join(names.values())}, run {run['run_id']}", flush=True)
        paths = {engine: log.folder / file for engine, file in files.items()}
        sums = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in set(paths.values())}
        done = log.finished("hw_infer")
        for threads in dict.fromkeys(config.threads for config in configs):
            part = [config for config in configs if config.threads == threads]
            rows = [done.get(hw_id(config)) for config in part]
            known = [row and row["metrics"].get("sha256") for row in rows]  # of the file as it was
            if not options.force and known == [sums[paths[config.engine]] for config in part]:
                print(f"  in the log, of {threads} threads")
                continue
            args = run["config"], paths, part, options.data_dir
            for config, metrics, error in inference.measure_run(*args):
                file = {"file": files[config.engine], "sha256": sums[paths[config.engine]]}
                label = f"{config.scenario}, {config.describe()}"
                failures += append(log, config, label, names | file | metrics, error)
    print_table([config for _, _, configs in plan for config in configs], log, infer_cells)
    print(
        "speed-ups are against eager in the same scenario; ? noisy, IQR over 10 % of the median; "
        "quick: a fifth of the queries, in one launch"
    )
    return failures


def hw_id(config: Any) -> str:
    """The run_id of a measurement."""
    return run_id(KINDS[type(config)], as_dict(config))


def append(log: Log, config: Any, label: str, metrics: dict[str, Any], error: str | None) -> bool:
    """Write the row of a measurement, and say so. Returns: whether it failed."""
    status, device = "failed" if error else "ok", getattr(config, "device", None)
    kind = KINDS[type(config)]
    log.append(kind, as_dict(config), metrics, error=error, status=status, device=device)
    print(f"  {label}: {error or 'measured'}", flush=True)
    return error is not None


def print_table(configs: list[Any], log: Log, cells: Callable[..., Row]) -> None:
    """What was measured, a row a line."""
    done = log.finished(KINDS[type(configs[0])])
    rows = [row for config in configs if (row := done.get(hw_id(config)))]
    records = [cells(row["config"], row["metrics"]) for row in rows]
    print(tabulate(records, "keys", disable_numparse=True))


def train_cells(config: Row, m: Row) -> Row:
    step, speedup, phases = m["step_ms"], m["speedup"], (m["phase_ms"] or {}).values()
    noisy = "?" * (m["noise"] > settings.NOISY)
    return {
        "data set": config["dataset"],
        "model": config["model"],
        "opt": config["opt"],
        "batch": config["batch_size"],
        "variant": m["label"],
        "step ms (IQR)": f"{step['median']:.1f} ({step['iqr']:.1f}){noisy}",
        "data copy fwd bwd opt": " ".join("-" if v is None else f"{v:.0f}" for v in phases),
        "first step ms": f"{m['first_step_ms']:.0f}",
        "images/s": f"{m['images_per_s']:.1f}",
        "epoch s": f"{'~' * m['extrapolated']}{m['epoch_ms'] / 1e3:.1f}",
        "speed-up (95 %)": with_interval(speedup["ratio"], speedup["interval"]),
        "of peak, roofline": m["mfu"] and f"{m['mfu']:.0%}, {m['roofline']['fraction']:.0%}",
        "test acc": "" if m["test_acc"] is None else f"{m['test_acc']:.4f}",
    }


def infer_cells(config: Row, m: Row) -> Row:
    flags = "?" * (m["noise"] > settings.NOISY) + " quick" * m["quick"]
    return {
        "data set": m["dataset"],
        "model": m["model"],
        "scenario": config["scenario"],
        "batch": config["batch_size"],
        "threads": config["threads"],
        "engine": config["engine"],
        **{f"{p} ms": f"{m['latency_ms'][p]:.2f}" for p in ("p50", "p90", "p99")},
        "images/s": f"{m['images_per_s']:.0f}{flags}",
        "speed-up (95 %)": with_interval(m["speedup_vs_eager"], m["speedup_interval"]),
        "test acc": f"{m['test_acc']:.4f}",
        "flips": m["flips"],
        "cold ms": f"{m['cold_start_ms']:.0f}",
    }


def with_interval(ratio: float | None, interval: list[float] | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio:.2f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")


def warn_if_busy() -> None:
    """Say so when other work will be felt in the timings."""
    load, cores = os.getloadavg()[0], os.cpu_count()
    if load > BUSY_LOAD * cores:
        print(f"warning: load average {load:.1f} on {cores} cores before the start; timings suffer")


def main(argv: list[str] | None = None) -> int:
    """Measure what was asked for and print it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--mode", nargs="?", default="train")  # decides what the other flags are
    mode = parser.parse_known_args(argv)[0].mode or "train"
    check_name("--mode", mode, tuple(MODES))
    config_class, presets, preset = MODES[mode]
    grid, options = parse_command_line(
        argv, __doc__, config_class, settings.HwOptions, presets, preset
    )
    expand_grid(config_class, grid)  # a bad value is said before torch is even imported
    log = Log(options.results_dir)
    failures = (bench_train if mode == "train" else bench_infer)(grid, options, log)
    print(f"log: {log.path}")
    return 1 if failures else 0


if __name__ == "__main__":
    run_script(main)
