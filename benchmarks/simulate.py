"""How long a grid takes on many workers, and what its limit is: a discrete-event simulation.

Workers ask the scheduler for a training, read the log, train, and after each epoch store a
checkpoint and append to the log; scheduler, file system and log serve one at a time. The defaults
are those of docs/SCALING.md, which says what was measured and what is assumed. Last comes JSON.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from shared import print_json, print_table

from common.base.cli import option, parse_command_line, run_script

READS = 3  # of the whole log by a command: what is done, which epochs, the last table
FULL = 0.9  # share of the time from which on a part that serves one at a time is the limit
PARTS = ("scheduler", "files", "log")  # that serve one at a time
UNITS = {"years": 31_557_600, "days": 86_400, "h": 3600, "min": 60, "s": 1}
POWERS = tuple(10**k for k in range(7))


@dataclass(frozen=True)
class Grid:
    """What is simulated. Units: seconds, each for one of what it is named after."""

    trajectories: tuple[int, ...] = option(POWERS[2:], "sizes, each simulated")
    workers: tuple[int, ...] = option(POWERS[:5], "no more than those")
    epochs: int = option(5, "of a training")
    rows: int = option(4, "of a training, beside one an epoch, as in --preset q1a")
    epoch_s: float = option(263.7, "an epoch")
    store_s: float = option(0.15, "of the file system for a checkpoint")
    append_s: float = option(0.005, "to append a row under the log's lock")
    read_s: float = option(2e-5, "to read a row, by each worker for itself")
    dispatch_s: float = option(0.01, "of the scheduler, for a training")
    sigma: float = option(0.2, "sd of the logarithm of a training's speed")
    mtbf_s: float = option(1e6, "between a worker's failures")
    restart_s: float = option(60.0, "from a failure to the epoch again")
    sharded: bool = option(False, "a log for every worker, which reads no other (--shard)")
    seed: int = option(0, "of what is drawn")


def simulate(grid: Grid, trajectories: int, workers: int) -> dict[str, Any]:
    """Returns: makespan_s; efficiency, the share of the workers' time in epochs that counted; of
    each part the share of the whole time in which it served; what more workers would wait for."""
    random, free_s, busy_s = Random(grid.seed), dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0.0)
    left, written, worked_s, now = trajectories, 0, 0.0, 0.0

    def until_done(epoch_s: float) -> float:
        """Seconds until an epoch is done, with the failures on the way."""
        total_s = epoch_s
        while (failed_s := grid.mtbf_s * random.expovariate(1)) < epoch_s:
            total_s += failed_s + grid.restart_s
        return total_s

    def work() -> Iterator[tuple[str, float, float]]:
        """A worker's way: the part that it asks, how long that serves it, its time alone then."""
        nonlocal left, written, worked_s
        while left:
            left -= 1
            epoch_s = grid.epoch_s * random.lognormvariate(-(grid.sigma**2) / 2, grid.sigma)
            read_s = 0.0 if grid.sharded else grid.read_s * READS * written
            yield "scheduler", grid.dispatch_s, read_s + until_done(epoch_s)
            for to_come in reversed(range(grid.epochs)):
                yield "files", grid.store_s, 0.0
                rows = 1 if to_come else 1 + grid.rows
                written, worked_s = written + rows, worked_s + epoch_s
                append_s, next_s = rows * grid.append_s, until_done(epoch_s) if to_come else 0.0
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
    shares = {part: busy_s[part] / now for part in PARTS}
    busiest = max(shares, key=shares.get)
    limit = busiest if shares[busiest] >= FULL else "workers"
    return {"makespan_s": now, "efficiency": worked_s / (workers * now)} | shares | {"limit": limit}


def main(argv: list[str] | None = None) -> int:
    _, grid = parse_command_line(argv, __doc__, options_class=Grid)
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
        results.append({**asdict(grid), "trajectories": trajectories, "workers": workers, **end})
    print_table(lines, disable_numparse=True, colalign=["right"] * 8 + ["left"])
    print_json(results=results)
    return 0


if __name__ == "__main__":
    run_script(main)
