"""How long a grid takes on many workers, and what its limit is: a discrete-event simulation.

Workers ask the scheduler for a training, read the log, train, and after each epoch store a
checkpoint and append to the log; scheduler, file system and log serve one at a time. What is not
given is measured, the epoch in the rows of --results-dir. See docs/SCALING.md. Last comes JSON.
"""

from __future__ import annotations

import heapq
import itertools
import math
import statistics
import tempfile
import timeit
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from shared import print_json, print_table

from common.base.cli import UsageError, option, parse_command_line, run_script
from common.base.log import append_line, read_rows

READS = 3  # of the whole log by a command: what is done, which epochs, the last table
FULL = 0.9  # share of the time from which on a part that serves one at a time is the limit
PARTS = ("scheduler", "files", "log")  # that serve one at a time
MEASURED = ("epoch_s", "store_s", "append_s", "read_s")  # where they are not given
UNITS = {"years": 31_557_600, "days": 86_400, "h": 3600, "min": 60, "s": 1}
POWERS = tuple(10**k for k in range(7))


@dataclass(frozen=True)
class Grid:
    """What is simulated. Units: seconds, each for one of what it is named after."""

    trajectories: tuple[int, ...] = option(POWERS[2:], "sizes, each simulated")
    workers: tuple[int, ...] = option(POWERS[:5], "no more than those")
    epochs: int = option(5, "of a training")
    rows: int = option(4, "of a training, beside one an epoch, as in --preset q1a")
    epoch_s: float | None = option(None, "an epoch [the median of --model in --results-dir]")
    store_s: float | None = option(None, "of the file system for a checkpoint [measured]")
    append_s: float | None = option(None, "to append a row under the log's lock [measured]")
    read_s: float | None = option(None, "to read a row, by each worker for itself [measured]")
    dispatch_s: float = option(0.01, "of the scheduler, for a training")
    sigma: float = option(0.2, "sd of the logarithm of a training's speed")
    mtbf_s: float = option(1e6, "between a worker's failures")
    restart_s: float = option(60.0, "from a failure to the epoch again")
    sharded: bool = option(False, "a log for every worker, which reads no other (--shard)")
    model: str = option("resnet18", "whose epoch and checkpoint are measured")
    results_dir: str = option("reference", "whose epochs, and where files are measured")
    seed: int = option(0, "of what is drawn")


def until_done(epoch_s: float, grid: Grid, random: Random) -> float:
    """Seconds until an epoch is done, with the failures on the way."""
    total_s = epoch_s
    if grid.mtbf_s < math.inf:
        while (failed_s := random.expovariate(1 / grid.mtbf_s)) < epoch_s:
            total_s += failed_s + grid.restart_s
    return total_s


def simulate(grid: Grid, trajectories: int, workers: int) -> dict[str, Any]:
    """Returns: makespan_s; efficiency, the share of the workers' time in epochs that counted; of
    each part the share of the whole time in which it served; what more workers would wait for."""
    random, free_s, busy_s = Random(grid.seed), dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0.0)
    left, written, worked_s, now = trajectories, 0, 0.0, 0.0

    def work() -> Iterator[tuple[str, float, float]]:
        """A worker's way: the part that it asks, how long that serves it, its time alone then."""
        nonlocal left, written, worked_s
        while left:
            left -= 1
            epoch_s = grid.epoch_s * random.lognormvariate(-(grid.sigma**2) / 2, grid.sigma)
            read_s = 0.0 if grid.sharded else grid.read_s * READS * written
            yield "scheduler", grid.dispatch_s, read_s + until_done(epoch_s, grid, random)
            for to_come in reversed(range(grid.epochs)):
                yield "files", grid.store_s, 0.0
                rows = 1 if to_come else 1 + grid.rows
                written, worked_s = written + rows, worked_s + epoch_s
                append_s = rows * grid.append_s
                next_s = until_done(epoch_s, grid, random) if to_come else 0.0
                yield ("log", 0.0, append_s + next_s) if grid.sharded else ("log", append_s, next_s)

    ways = [work() for _ in range(min(workers, trajectories))]
    events = [(0.0, worker) for worker in range(len(ways))]
    while events:
        now, worker = heapq.heappop(events)
        if step := next(ways[worker], None):
            part, service_s, alone_s = step
            free_s[part] = max(now, free_s[part]) + service_s
            busy_s[part] += service_s
            heapq.heappush(events, (free_s[part] + alone_s, worker))
    efficiency = worked_s / (workers * now) if now else 1.0
    shares = {part: busy_s[part] / now if now else 0.0 for part in PARTS}
    busiest = max(shares, key=shares.get)
    limit = busiest if shares[busiest] >= FULL else "workers"
    return {"makespan_s": now, "efficiency": efficiency} | shares | {"limit": limit}


def median_s(work: Callable[[], object], times: int) -> float:
    return statistics.median(timeit.repeat(work, number=1, repeat=times))


def measure(name: str, grid: Grid) -> float:
    """A cost: the network's median epoch in the log, or the median time to store what a run of it
    continues from, to append the log's last row, to read a row."""
    log = Path(grid.results_dir, "log.jsonl")
    rows = read_rows(log)[0]
    if name == "read_s":
        return median_s(lambda: read_rows(log), 3) / len(rows)
    if name == "epoch_s":
        own = [r for r in rows if r["kind"] == "epoch" and r["config"].get("model") == grid.model]
        if not own:
            where = f"no epoch of {grid.model} in the log of {grid.results_dir}"
            raise UsageError(f"--results-dir: {where}; give --epoch-s")
        return statistics.median(row["metrics"]["train_ms"] for row in own) / 1e3
    with tempfile.TemporaryDirectory(dir=grid.results_dir) as scratch:
        file = Path(scratch, "file")
        if name == "append_s":
            line = log.read_text().splitlines()[-1]
            return median_s(lambda: append_line(file, line), 100)
        from common.models import build_model
        from common.train.checkpoint import save_checkpoint

        weights = build_model(grid.model, 10).state_dict()
        state = {"model": weights, "momentum": {k: v.clone() for k, v in weights.items()}}
        return median_s(lambda: save_checkpoint(file, state), 5)


def main(argv: list[str] | None = None) -> int:
    _, grid = parse_command_line(argv, __doc__, options_class=Grid)
    for name in MEASURED:
        given = getattr(grid, name)
        value = measure(name, grid) if given is None else given
        grid = replace(grid, **{name: value})
        print(f"{name} {value:.6g} ({'measured' if given is None else 'given'})")
    sizes = itertools.product(grid.trajectories, grid.workers)
    lines, results = [], []
    for trajectories, workers in (size for size in sizes if size[1] <= size[0]):
        end = simulate(grid, trajectories, workers)
        seconds = end["makespan_s"]
        unit = next((unit for unit, s in UNITS.items() if seconds >= 2 * s), "s")
        line = {"trajectories": f"{trajectories:,}", "workers": f"{workers:,}"}
        line["takes"] = f"{seconds / UNITS[unit]:.1f} {unit}"
        line["an hour"] = f"{trajectories / seconds * 3600:,.0f}"
        line["in epochs"] = f"{end['efficiency']:.0%}"
        lines.append(line | {part: f"{end[part]:.0%}" for part in PARTS} | {"limit": end["limit"]})
        size = {"trajectories": trajectories, "workers": workers}
        results.append(asdict(grid) | size | end)
    print_table(lines, disable_numparse=True, colalign=["right"] * 8 + ["left"])
    print_json(results=results)
    return 0


if __name__ == "__main__":
    run_script(main)
