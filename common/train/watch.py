"""What a running grid has done and what is left, from its plan and its log.

train.py writes plan.json, the configurations that it is about to train; the log tells the rest. Two
grids that run at once in one folder share that file: the one started last is followed.
"""

import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from common.base.cli import UsageError, as_dict
from common.base.config import TrainConfig
from common.base.log import log_files, read_log, write_atomically
from common.train.grid import Trajectory, format_minutes, train_id

INTERVAL_S = 2.0
Row = dict[str, Any]
# Settings that leave the time of an epoch as it is.
FREE = {"dataset", "seed", "split_seed", "lr", "epochs", "pin_memory", "schedule", "weights"}


class Plan(NamedTuple):
    """When a grid was started, what it trains, and how many trajectories at once."""

    started: str
    trajectories: Sequence[Trajectory]
    workers: int


def write_plan(folder: Path, trajectories: Sequence[Trajectory], workers: int) -> None:
    """Say what is about to be trained, and how many at once."""
    configs = [[as_dict(config) for config in t.configs] for t in trajectories]
    plan = Plan(datetime.now(UTC).isoformat(timespec="seconds"), configs, workers)
    write_atomically(folder / "plan.json", json.dumps(plan._asdict()).encode())


def read_plan(folder: Path) -> Plan:
    """What write_plan wrote. Raises: UsageError."""
    path = folder / "plan.json"
    try:
        plan = Plan(**json.loads(path.read_bytes()))
        planned = [Trajectory(tuple(TrainConfig(**c) for c in t)) for t in plan.trajectories]
        return Plan(str(plan.started), planned, int(plan.workers))
    except FileNotFoundError:
        raise UsageError(f"--watch: {path} is missing: no train.py has been started here") from None
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"--watch: {path} is no plan of this version: {error}") from None


def progress(plan: Plan, rows: Sequence[Row]) -> str:
    """One line: what is finished, what runs, how long the rest may take; ends in "done" at last."""
    new = [row for row in rows if row["time_utc"] >= plan.started]
    status = {row["run_id"]: row["status"] for row in new if row["kind"] == "train"}
    epochs = {r["run_id"]: r["metrics"].get("epoch", 0) for r in new if r["kind"] == "epoch"}
    outcomes = [status.get(train_id(config)) for t in plan.trajectories for config in t.configs]
    failed = f", {outcomes.count('failed')} failed" if "failed" in outcomes else ""
    text = f"{outcomes.count('ok')} of {len(outcomes)} configurations finished{failed}"
    ended = {name for name, outcome in status.items() if outcome in ("ok", "failed")}
    waiting = [t.trained for t in plan.trajectories if {*map(train_id, t.configs)} - ended]
    if not waiting:
        return f"{text}; done"
    for running in waiting[: plan.workers]:  # they are begun in this order
        done = epochs.get(train_id(running), 0)
        text += f"; {running.describe()}: {done} of {running.epochs} epochs"
    left = {config: config.epochs - epochs.get(train_id(config), 0) for config in waiting}
    last = max([plan.started, *(row["time_utc"] for row in rows)])
    return f"{text}; {time_left(left, rows, plan.workers)}; last row {last[11:19]} UTC"


def time_left(epochs: dict[TrainConfig, int], rows: Sequence[Row], workers: int) -> str:
    """How long training so many epochs takes, as far as their like has been timed."""

    def kind(config: Row) -> str:  # what runs of equally long epochs have in common
        return json.dumps({k: v for k, v in config.items() if k not in FREE}, sort_keys=True)

    times_ms = defaultdict(list)
    for row in rows:
        if row["kind"] == "epoch" and row["metrics"].get("train_ms"):
            times_ms[kind(row["config"])].append(row["metrics"]["train_ms"])
    timed = [(n, times_ms.get(kind(as_dict(config)))) for config, n in epochs.items()]
    left_ms = [n * statistics.median(ms) for n, ms in timed if ms]
    if not left_ms:
        return "time left unknown until an epoch is timed"
    minutes = format_minutes(sum(left_ms) / 6e4 / min(workers, len(epochs)))
    untimed = len(epochs) - len(left_ms)
    return f"about {minutes} left" + (f" and {untimed} trainings not timed yet" if untimed else "")


def watch(folder: Path) -> int:
    """Follow a grid until it is done: on a terminal in one line, else in a line for each change."""
    start, end = ("\r\x1b[K", "") if sys.stdout.isatty() else ("", "\n")
    size, rows, shown = -1, [], ""
    while not shown.endswith("done"):
        plan = read_plan(folder)
        if size != (size := sum(f.stat().st_size for f in log_files(folder) if f.exists())):
            rows = [row for row in read_log(folder)[0] if row["kind"] in ("epoch", "train")]
        if shown != (shown := progress(plan, rows)):
            print(f"{start}{shown}", end=end, flush=True)
        if not shown.endswith("done"):
            time.sleep(INTERVAL_S)
    print(end="" if end else "\n", flush=True)
    return 0
