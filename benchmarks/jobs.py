"""One training with all cores against as many trainings of one thread, in trajectories an hour.

    python benchmarks/jobs.py
    python benchmarks/jobs.py --model vgg5 --batch-size 512 --limit 49000

Both sides are train.py on the same grid, of several seeds: --jobs 1 with all threads, and a job a
core of one thread each. They take turns, A B B A, every time in a fresh process and folder, so
that a machine's drift meets both; a block's time is from the command to its end, start and
evaluation included. The ratio is the median over the pairs of blocks. Beside what was measured
stands what benchmarks/simulate.py makes of the side's own epochs and of nothing else: what a side
takes longer is what the simulation leaves out (starting, evaluation, the last trajectory alone).
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from joblib import cpu_count
from simulate import Grid, simulate
from tabulate import tabulate

from common.base.cli import UsageError, run_script
from common.base.log import read_rows
from common.base.machine import describe_machine, git_state

HEADS = ("jobs x threads", "trajectories an hour (range)", "simulated", "measured / simulated")
TRAIN = ("dataset", "model", "opt", "batch_size", "image_size", "limit", "data_dir")  # passed on


def run_block(flags: list[str], jobs: int, threads: int) -> tuple[float, list[float]]:
    """One grid, once. Returns: its seconds, and those of each epoch's steps."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [*flags, "--results-dir", folder, "--jobs", str(jobs), "--threads", str(threads)]
        start = time.perf_counter()
        command = [sys.executable, str(ROOT / "train.py"), *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise UsageError(f"train.py ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        rows = read_rows(Path(folder, "log.jsonl"))[0]
    return seconds, [r["metrics"]["train_ms"] / 1e3 for r in rows if r["kind"] == "epoch"]


def main(argv: list[str] | None = None) -> int:
    """Measure both sides in turns, and print trajectories an hour and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--dataset", default="fashion", help="[fashion]")
    add("--model", default="resnet18", help="[resnet18]")
    add("--opt", default="sgd", help="[sgd]")
    add("--batch-size", type=int, default=16, help="[16]")
    add("--image-size", type=int, default=64, help="[64]")
    add("--limit", type=int, default=10_000, help="training images [10000]")
    add("--per-job", type=int, default=2, help="trajectories of a block, for each core [2]")
    add("--pairs", type=int, default=2, help="blocks of each side [2: A B B A]")
    add("--data-dir", default="data", help="folder of the data sets [data]")
    args = parser.parse_args(argv)
    if min(args.per_job, args.pairs) < 1:
        raise UsageError(f"--per-job {args.per_job}, --pairs {args.pairs}: give 1 or more of each")
    cores = cpu_count()
    if cores < 2:
        raise UsageError("one core: there is nothing to compare")
    trajectories = cores * args.per_job
    flags = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in TRAIN]
    flags += ["--epochs", "1", "--device", "cpu", "--seed", *map(str, range(trajectories))]
    env, sides = describe_machine(), [(1, cores), (cores, 1)]
    print(
        f"{env['cpu']}, {cores} cores, load {env['load_average'][0]:.1f}; {args.model} {args.opt}, "
        f"{trajectories} trajectories of {args.limit} images a block",
        flush=True,
    )
    blocks = {side: [] for side in sides}
    for pair in range(args.pairs):
        for side in sides[:: -1 if pair % 2 else 1]:
            blocks[side].append(run_block(flags, *side))
    lines, results = [], []
    for (jobs, threads), own in blocks.items():
        speeds = [trajectories / seconds * 3600 for seconds, _ in own]
        epoch_s = statistics.median(s for _, epochs in own for s in epochs)
        end = simulate(Grid(trajectories, jobs, epoch_s, epochs=1))
        simulated, speed = trajectories / end.makespan_s * 3600, statistics.median(speeds)
        measured = f"{speed:.1f} ({min(speeds):.1f} to {max(speeds):.1f})"
        compared = f"{simulated:.1f}", f"{speed / simulated:.2f}"
        lines.append((f"{jobs} x {threads}", measured, *compared))
        side = {"jobs": jobs, "threads": threads, "simulated_per_h": simulated}
        results.append(side | {"block_s": [b[0] for b in own], "epoch_s": [b[1] for b in own]})
    print(tabulate(lines, HEADS, tablefmt="pipe", disable_numparse=True))
    ratios = [a[0] / b[0] for a, b in zip(*blocks.values(), strict=True)]
    print(
        f"{cores} jobs of one thread do {statistics.median(ratios):.2f} times as many as one of "
        f"{cores} threads ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    print(json.dumps({"git": git_state(), "env": env, "ratios": ratios, "results": results}))
    return 0


if __name__ == "__main__":
    run_script(main)
