"""Measure training speed by device, or inference speed of exported networks.

    python hw_bench.py --device cpu cuda
    python hw_bench.py --device cuda --loop notebook ours
    python hw_bench.py --mode infer

--mode train: whole steps (gather and resize fresh images, forward, backward, optimiser) of every
variant and optimiser of a network, after a warm-up, in rounds that run first forwards, then
backwards through them, so that a machine's drift meets all of them. On a CPU a sample is one step;
on an accelerator the mean of ten, since a look at the clock after each would stall its queue. Each
round has a step more, with a wait after every phase, for where the time goes. An epoch is
extrapolated from the median step, unless --full-epoch trains and tests one. Speed-ups are against
the optimiser's first variant on the first device. Where the CPU is the only device, its own
variants are compared: threads, precision, and torch.compile, whose cost without kernels kept from
earlier is in first_step_ms. Networks are channels_last, but in the notebook loop.

--mode infer: every engine has a process of its own, in which it first answers the whole test split;
it is timed only if it answers as the eager fp32 network does. Queries are different test images,
single or in batches, put to the engines in such rounds too. Making a query is not timed, nor is
loading (cold_start_ms, of the first launch). All is done in --launches sets of fresh processes.

docs/METHOD.md has the rest: tolerances, intervals, noise, shares of the device's measured peak.
Writes to --results-dir: log.jsonl (kind hw_train or hw_infer).
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import psutil
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out
from common.base import config as settings
from common.base.cli import as_dict, check_name, expand_grid, parse_command_line, run_script
from common.base.log import Log, run_id

MODES = {
    "train": (settings.HwTrainConfig, settings.HW_PRESETS, "q2"),
    "infer": (settings.HwInferConfig, settings.HW_INFER_PRESETS, "bench"),
}
NOTES = {
    "train": "~ extrapolated from the median step; speed-ups are against an optimiser's first "
    "variant; ? noisy, IQR over 10 % of the median",
    "infer": "speed-ups are against eager in the same scenario; ? noisy, IQR over 10 % of the "
    "median; quick: a fifth of the queries, in one launch",
}
Row = dict[str, Any]
BUSY_LOAD = 0.5  # of the cores: other work that is felt in the timings


def warn_if_busy() -> None:
    load, cores = psutil.getloadavg()[0], os.cpu_count()
    if load > BUSY_LOAD * cores:
        print(f"warning: load average {load:.1f} on {cores} cores before the start; timings suffer")


def finished(kind: str, configs: list[Any], log: Log) -> list[Row | None]:
    """The row of each configuration, if the log has it."""
    done = log.finished(kind)
    return [done.get(run_id(kind, as_dict(config))) for config in configs]


def measure(kind: str, group: Any, log: Log, force: bool) -> int:
    """Measure a group unless the log has its rows as they would be now. Returns: failures."""
    rows = finished(kind, group.configs, log)
    if all(rows) and not force:
        obsolete = group.obsolete(rows)
        print("  in the log" + (f", but {obsolete}" if obsolete else ""))
        if not obsolete:
            return 0
    failures = 0
    for config, metrics, error in group.measure():
        status, device = "failed" if error else "ok", getattr(config, "device", None)
        log.append(kind, as_dict(config), metrics, error=error, status=status, device=device)
        part = config.opt if kind == "hw_train" else config.scenario
        print(f"  {part}, {config.describe()}: {error or 'measured'}", flush=True)
        failures += error is not None
    return failures


def train_cells(config: Row, m: Row) -> Row:
    step, speedup, phases = m["step_ms"], m["speedup"], (m["phase_ms"] or {}).values()
    noisy = "?" * (m["noise"] > settings.NOISY)
    return {
        "data set": config["dataset"],
        "model": config["model"],
        "opt": config["opt"],
        "batch": config["batch_size"],
        "variant": m["label"],
        "step ms (IQR)": f"{digits(step['median'])} ({digits(step['iqr'])}){noisy}",
        "data copy fwd bwd opt": " ".join("-" if v is None else digits(v) for v in phases),
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


def digits(ms: float) -> str:
    """With three significant digits: an accelerator's phases are fractions of a millisecond."""
    return f"{float(f'{ms:.3g}'):g}"


def with_interval(ratio: float | None, interval: list[float] | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio:.2f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--mode", nargs="?", default="train")  # decides what the other flags are
    mode = parser.parse_known_args(argv)[0].mode or "train"
    check_name("--mode", mode, tuple(MODES))
    config_class, *presets = MODES[mode]
    grid, options = parse_command_line(argv, __doc__, config_class, settings.HwOptions, *presets)
    expand_grid(config_class, grid)  # a bad value is said before torch is even imported
    log, kind = Log(options.results_dir), f"hw_{mode}"
    if mode == "train":
        from common.speed import training

        groups = training.expand_groups(grid, options.data_dir)
        for group in groups:
            group.check()
    else:
        from common.judge.rows import pick_best
        from common.speed import inference

        groups = inference.expand_groups(grid, options.data_dir, log, pick_best)
    warn_if_busy()
    failures = 0
    for number, group in enumerate(groups, 1):
        print(f"[{number}/{len(groups)}] {group.title}", flush=True)
        failures += measure(kind, group, log, options.force)
    rows = finished(kind, [config for group in groups for config in group.configs], log)
    cells = train_cells if mode == "train" else infer_cells
    records = [cells(row["config"], row["metrics"]) for row in rows if row]
    print(tabulate(records, "keys", disable_numparse=True))
    print(f"{NOTES[mode]}\nlog: {log.path}")
    options.print_next()
    return 1 if failures else 0


if __name__ == "__main__":
    run_script(main)
