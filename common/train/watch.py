"""What a running grid has done and what is left, from its plan and its log.

train.py writes plan.json, the configurations that it is about to train; the log tells the rest. Two
grids that run at once in one folder share that file: the one started last is followed.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.base.cli import UsageError, as_dict
from common.base.config import TrainConfig, Trajectory
from common.base.log import parse_row, run_id, write_atomically
from common.judge.rows import number

INTERVAL_S = 2.0
Row = dict[str, Any]
# Settings that leave the time of an epoch as it is.
FREE = {"dataset", "seed", "split_seed", "lr", "epochs", "pin_memory", "schedule", "weights"}


def write_plan(folder: Path, trajectories: Sequence[Trajectory], workers: int) -> None:
    """Say what is about to be trained, and how many at once."""
    configs = [[as_dict(config) for config in t.configs] for t in trajectories]
    started = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({"started": started, "workers": workers, "trajectories": configs})
    write_atomically(folder / "plan.json", text.encode())


def read_plan(folder: Path) -> tuple[str, list[Trajectory], int]:
    """When the grid was started, what it trains, and how many at once. Raises: UsageError."""
    path = folder / "plan.json"
    try:
        plan = json.loads(path.read_bytes())
        found = [Trajectory(tuple(TrainConfig(**c) for c in t)) for t in plan["trajectories"]]
        return str(plan["started"]), found, int(plan["workers"])
    except FileNotFoundError:
        raise UsageError(f"--watch: {path} is missing: no train.py has been started here") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--watch: {path} is no plan of this version: {error}") from None


def read_on(path: Path, start: int) -> tuple[list[Row], int]:
    """The valid rows of the log's whole lines from a place on, and the place to go on from."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read()
    except FileNotFoundError:
        return [], start
    data = data[: data.rfind(b"\n") + 1]
    rows = []
    for line in data.splitlines():
        with suppress(ValueError, RecursionError):  # the report names them
            rows.append(parse_row(line))
    return rows, start + len(data)


def name_of(config: TrainConfig) -> str:
    """The run_id of a configuration."""
    return run_id("train", as_dict(config))


def speed_key(config: Row) -> str:
    """What runs of equally long epochs have in common."""
    return json.dumps({k: v for k, v in config.items() if k not in FREE}, sort_keys=True)


def progress(
    started: str, trajectories: Sequence[Trajectory], workers: int, rows: Iterable[Row]
) -> str:
    """One line: what is finished, what runs, how long the rest may take; ends in "done" at last."""
    status: dict[str, str] = {}
    epochs: dict[str, int] = {}
    times_ms: dict[str, list[float]] = {}
    last = started
    for row in rows:
        name, new = row["run_id"], row["time_utc"] >= started
        last = max(last, row["time_utc"])
        if row["kind"] == "train" and new:
            status[name] = row["status"]
        if row["kind"] == "epoch":
            if (train_ms := number(row, "metrics", "train_ms")) is not None:
                times_ms.setdefault(speed_key(row["config"]), []).append(train_ms)
            if new:
                epochs[name] = row["metrics"].get("epoch", 0)
    names = [name_of(config) for t in trajectories for config in t.configs]
    ended = {name for name in names if status.get(name) in ("ok", "failed")}
    failed = sum(status[name] == "failed" for name in ended)
    said = f"{len(ended) - failed} of {len(names)} configurations finished"
    said += f", {failed} failed" if failed else ""
    waiting = [t for t in trajectories if any(name_of(c) not in ended for c in t.configs)]
    if not waiting:
        return f"{said}; done"
    for running in (t.trained for t in waiting[:workers]):  # they are begun in this order
        done = epochs.get(name_of(running), 0)
        said += f"; {running.describe()}: {done} of {running.epochs} epochs"
    left = time_left(waiting, epochs, times_ms, workers)
    return f"{said}; {left}; last row {last[11:19]} UTC"


def time_left(
    waiting: Sequence[Trajectory], epochs: dict[str, int], times_ms: dict[str, list[float]],
    workers: int,
) -> str:  # fmt: skip
    """How long the training steps that are left take, as far as their like has been timed."""
    left_ms, unknown = 0.0, 0
    for t in waiting:
        timed = times_ms.get(speed_key(as_dict(t.trained)))
        left = t.trained.epochs - epochs.get(name_of(t.trained), 0)
        if timed:
            left_ms += left * statistics.median(timed)
        else:
            unknown += 1
    if unknown == len(waiting):
        return "time left unknown until an epoch is timed"
    minutes = left_ms / 6e4 / min(workers, len(waiting))
    said = f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
    return f"about {said} left" + (f" and {unknown} trainings not timed yet" if unknown else "")


def watch(folder: Path) -> int:
    """Follow a grid until it is done: on a terminal in one line, else in a line for each change."""
    terminal = sys.stdout.isatty()
    rows: list[Row] = []
    place, shown = 0, ""
    while True:
        plan = read_plan(folder)
        found, place = read_on(folder / "log.jsonl", place)
        rows += (row for row in found if row["kind"] in ("epoch", "train"))
        said = progress(*plan, rows)
        if said != shown:
            print(f"\r\x1b[K{said}" if terminal else said, end="" if terminal else "\n", flush=True)
        shown = said
        if said.endswith("done"):
            print(end="\n" if terminal else "", flush=True)
            return 0
        time.sleep(INTERVAL_S)
