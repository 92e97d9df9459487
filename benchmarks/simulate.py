"""How long a grid takes on many workers, and what its limit is: a discrete-event simulation.

    python benchmarks/simulate.py
    python benchmarks/simulate.py --trajectories 1000000 --workers 1000 10000 --sharded

A worker asks the scheduler for a trajectory, reads the log for what is done, and trains; after each
epoch it stores a checkpoint and appends to the log. Scheduler, file system and log serve one worker
at a time, in the order in which they are asked. A trajectory's speed is drawn once (lognormal, mean
1); a worker fails at random (exponential) and begins its epoch again after a restart. Of what is
not given the epoch is the median of the rows of --results-dir, and appending, reading and storing
are measured there, here and now; the rest has the defaults that --help names.
Every line of the table is simulated. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import heapq
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.base.cli import UsageError, run_script
from common.base.log import append_line, dumps_strict, read_rows

READS = 3  # of the whole log by a command: what is done, which epochs, the last table
FULL = 0.9  # share of the time from which on a part that serves one at a time is the limit
PARTS = ("scheduler", "files", "log")  # that serve one at a time
ASK, STORE, LOG = range(3)  # what a worker does next
MEASURED = ("epoch_s", "store_s", "append_s", "read_s")  # where they are not given
UNITS = {"years": 31_557_600, "days": 86_400, "h": 3600, "min": 60}


@dataclass(frozen=True)
class Grid:
    """What is simulated. Units: seconds, each for one of what it is named after."""

    trajectories: int
    workers: int
    epoch_s: float
    epochs: int = 5
    sigma: float = 0.0  # of the logarithm of a trajectory's speed
    mtbf_s: float = math.inf  # between failures of one worker
    restart_s: float = 0.0
    dispatch_s: float = 0.0  # a trajectory, by the scheduler
    store_s: float = 0.0  # a checkpoint, on the file system
    append_s: float = 0.0  # a row, under the log's lock
    read_s: float = 0.0  # a row of the log, by every worker for itself
    rows: int = 1  # at a trajectory's end, beside one an epoch
    sharded: bool = False  # every worker has a log of its own, and reads no other


@dataclass(frozen=True)
class Outcome:
    """What a simulated grid took, the share of the workers' time spent in epochs that counted, and
    the shares of the whole time in which the parts that serve one at a time did so."""

    makespan_s: float
    efficiency: float
    scheduler: float
    files: float
    log: float

    @property
    def limit(self) -> str:
        """What more workers would wait for."""
        name = max(PARTS, key=lambda part: getattr(self, part))
        return name if getattr(self, name) >= FULL else "workers"


def simulate(grid: Grid, seed: int = 0) -> Outcome:
    """Run the grid's events in the order of their times."""
    random, free_s, busy_s = Random(seed), dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0.0)
    left, written, worked_s, now = grid.trajectories, 0, 0.0, 0.0
    trained = [0] * grid.workers  # epochs of the worker's trajectory
    own_s = [0.0] * grid.workers  # length of an epoch of it

    def serve(part: str, now_s: float, service_s: float) -> float:
        """When the one that asks now has been served, in the order of asking."""
        free_s[part] = max(now_s, free_s[part]) + service_s
        busy_s[part] += service_s
        return free_s[part]

    def epoch(worker: int) -> float:
        """Seconds until an epoch is done, with the failures on the way."""
        total_s = own_s[worker]
        if grid.mtbf_s < math.inf:
            while (failed_s := random.expovariate(1 / grid.mtbf_s)) < own_s[worker]:
                total_s += failed_s + grid.restart_s
        return total_s

    events = [(0.0, worker, ASK) for worker in range(min(grid.workers, grid.trajectories))]
    while events:
        now, worker, step = heapq.heappop(events)
        if step == STORE:
            heapq.heappush(events, (serve("files", now, grid.store_s), worker, LOG))
            continue
        if step == ASK:
            if not left:
                continue
            left, trained[worker] = left - 1, 0
            own_s[worker] = grid.epoch_s * random.lognormvariate(-(grid.sigma**2) / 2, grid.sigma)
            read = 0 if grid.sharded else READS * written
            begin, done = serve("scheduler", now, grid.dispatch_s) + grid.read_s * read, False
        else:
            trained[worker] += 1
            worked_s += own_s[worker]
            done = trained[worker] == grid.epochs
            rows = 1 + grid.rows * done
            written += rows
            append_s = rows * grid.append_s
            begin = now + append_s if grid.sharded else serve("log", now, append_s)
        end, step = (begin, ASK) if done else (begin + epoch(worker), STORE)
        heapq.heappush(events, (end, worker, step))
    shares = (busy_s[part] / now if now else 0.0 for part in PARTS)
    return Outcome(now, worked_s / (grid.workers * now) if now else 1.0, *shares)


def measure(name: str, folder: str | Path, model: str) -> float:
    """A cost of the grid, here and now: the median epoch of a network in a log, or the median time
    to store what a run of it continues from, to append a log's last row durably, to read a row.

    Raises: UsageError when the log has no epoch of the network.
    """

    def median_s(work: Callable[[], object], n: int) -> float:
        times = []
        for _ in range(n):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    log = Path(folder, "log.jsonl")
    if name == "read_s":
        return median_s(lambda: read_rows(log), 3) / len(read_rows(log)[0])
    if name == "epoch_s":
        epochs = [r for r in read_rows(log)[0] if r["kind"] == "epoch"]
        own = [r["metrics"]["train_ms"] for r in epochs if r["config"].get("model") == model]
        if own:
            return statistics.median(own) / 1e3
        no_epoch = f"no epoch of {model} in the log of {folder}"
        raise UsageError(f"--results-dir: {no_epoch}; give --epoch-s")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        if name == "append_s":
            line = log.read_text().splitlines()[-1]
            return median_s(lambda: append_line(Path(scratch, "log.jsonl"), line), 100)
        from common.models import build_model
        from common.train.checkpoint import save_checkpoint

        weights = build_model(model, 10).state_dict()
        state = {"model": weights, "momentum": {k: v.clone() for k, v in weights.items()}}
        return median_s(lambda: save_checkpoint(Path(scratch, "run.pt"), state), 5)


def main(argv: list[str] | None = None) -> int:
    """Simulate every combination of sizes, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add, sizes = parser.add_argument, [10**k for k in range(2, 7)]
    add("--trajectories", type=int, nargs="+", default=sizes, help="[100 to 1000000]")
    add("--workers", type=int, nargs="+", default=[1, 10, 100, 1000, 10_000], help="[1 to 10000]")
    add("--epochs", type=int, default=5, help="of a trajectory [5]")
    add("--rows", type=int, default=4, help="rows at its end, as in --preset q1a [4]")
    add("--epoch-s", type=float, help="an epoch [the median of --model in --results-dir]")
    add("--append-s", type=float, help="to append a row to the log [measured]")
    add("--read-s", type=float, help="to read a row of it [measured]")
    add("--store-s", type=float, help="of the file system for a checkpoint [measured]")
    add("--dispatch-s", type=float, default=0.01, help="of the scheduler, a trajectory [0.01]")
    add("--sigma", type=float, default=0.2, help="sd of the logarithm of the speed [0.2]")
    add("--mtbf-s", type=float, default=1e6, help="between a worker's failures [1e6]")
    add("--restart-s", type=float, default=60.0, help="from a failure to the epoch again [60]")
    add("--sharded", action="store_true", help="a log for every worker (--shard)")
    add("--model", default="resnet18", help="whose epoch and checkpoint it is [resnet18]")
    add("--results-dir", default="reference", help="whose epochs, and where files are [reference]")
    add("--seed", type=int, default=0, help="of what is drawn [0]")
    args = vars(parser.parse_args(argv))
    seed, folder, model = (args.pop(name) for name in ("seed", "results_dir", "model"))
    for name in MEASURED:
        how = "measured" if args[name] is None else "given"
        args[name] = measure(name, folder, model) if args[name] is None else args[name]
        print(f"{name} {args[name]:.6g} ({how})")
    lines, results = [], []
    sizes, workers = args.pop("trajectories"), args.pop("workers")
    for case in (Grid(n, count, **args) for n in sizes for count in workers if count <= n):
        end = simulate(case, seed)
        shares = (f"{s:.0%}" for s in (end.efficiency, end.scheduler, end.files, end.log))
        units = (
            f"{end.makespan_s / s:.1f} {u}" for u, s in UNITS.items() if end.makespan_s >= 2 * s
        )
        took, speed = next(units, f"{end.makespan_s:.1f} s"), case.trajectories / end.makespan_s
        grid = (f"{case.trajectories:,}", f"{case.workers:,}", took, f"{speed * 3600:,.0f}")
        lines.append([*grid, *shares, end.limit])
        results.append(asdict(case) | asdict(end))
    heads = ["trajectories", "workers", "takes", "an hour", "in epochs"]
    heads += ["scheduler", "files", "log", "limit"]
    aligned = ["right"] * 8 + ["left"]
    print(tabulate(lines, heads, tablefmt="pipe", disable_numparse=True, colalign=aligned))
    print(dumps_strict(results))
    return 0


if __name__ == "__main__":
    run_script(main)
