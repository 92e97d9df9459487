"""Measure training speed by device, or inference speed of exported networks.

    python hw_bench.py --device cpu cuda
    python hw_bench.py --device cuda --loop notebook ours
    python hw_bench.py --mode infer

--mode train: whole steps (gather and resize fresh images, forward, backward, optimiser) of every
variant and optimiser of a network, after a warm-up, in rounds that run first forwards, then
backwards through them, so that a machine's drift meets all of them; on an accelerator a sample is
the mean of ten steps. Each round has a step more, with a wait after every phase, for where the time
goes. An epoch is extrapolated from the median step, unless --full-epoch trains and tests one.
Speed-ups are over the optimiser's first variant on the first device. Where the CPU is the only
device, its own variants are compared: threads, precision, and torch.compile.

--mode infer: every engine has a process of its own, in which it first answers the whole test split;
it is timed only if it answers as the eager fp32 network does. Queries are different test images,
single or in batches, put to the engines in such rounds too, without the time to make them or to
load an engine (cold_start_ms). All is done in --launches sets of fresh processes.

docs/METHOD.md has the rest. Writes to --results-dir: log.jsonl (kind hw_train or hw_infer).
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out
from common.base.cli import as_dict, check_name, parse_command_line, run_script
from common.base.config import HwInferConfig, HwOptions, HwTrainConfig
from common.base.log import Log, run_id

MODES = {"train": HwTrainConfig, "infer": HwInferConfig}


def finished(kind: str, configs: list[Any], log: Log) -> list[dict[str, Any] | None]:
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
    for side, metrics in group.measure():
        config, error = side.config, side.error
        log.append(kind, as_dict(config), metrics, error=error)
        part = config.opt if kind == "hw_train" else config.scenario
        print(f"  {part}, {config.describe()}: {error or 'measured'}", flush=True)
        failures += error is not None
    return failures


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--mode", nargs="?", default="train")  # decides what the other flags are
    mode = parser.parse_known_args(argv)[0].mode or "train"
    check_name("--mode", mode, tuple(MODES))
    grid, options = parse_command_line(argv, __doc__, MODES[mode], HwOptions)
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
    load, cores, failures = psutil.getloadavg()[0], os.cpu_count(), 0
    if load > 0.5 * cores:  # other work that is felt in the timings
        print(f"warning: load average {load:.1f} on {cores} cores before the start; timings suffer")
    for number, group in enumerate(groups, 1):
        print(f"[{number}/{len(groups)}] {group.title}", flush=True)
        failures += measure(kind, group, log, options.force)
    from common.judge.tables import WORDS  # after what was measured, whose memory they would take
    from common.report.columns import shown
    from common.report.tables import speed_table

    rows = finished(kind, [config for group in groups for config in group.configs], log)
    for name in ("q2", "q2_phases") if mode == "train" else ("infer",):  # tables of the report
        table = speed_table(name, [row for row in rows if row])
        columns, cells = shown(replace(table, columns=WORDS[name]["screen"].split()))
        heads = ["\n".join(column.lines) for column in columns]
        print(tabulate(cells, heads, disable_numparse=True), end="\n\n")
    print(f"log: {log.path}")
    options.print_next()
    return 1 if failures else 0


if __name__ == "__main__":
    run_script(main)
