"""A grid's configurations: the training runs that serve several of them, what the log has of them,
and how far a running grid is. train.py writes plan.json, what it is about to train; the log tells
the rest. Of two grids that run at once in one folder the one started last is followed."""

import hashlib
import json
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from common.base.cli import UsageError, as_dict, format_time
from common.base.config import PUBLISHED, TrainConfig, may_mirror
from common.base.log import Log, Row, log_files, read_log, run_id, write_atomically

# Settings that leave the time of an epoch as it is.
FREE = {"dataset", "seed", "split_seed", "lr", "epochs", "pin_memory", "schedule", "weights"}
FREE |= {"class_weight", "metric"}


@dataclass(frozen=True)
class Trajectory:
    """A shared training run: the configurations that it serves, shortest first."""

    configs: tuple[TrainConfig, ...]

    @property
    def trained(self) -> TrainConfig:
        """The first of the longest configurations."""
        return max(self.configs, key=lambda c: c.epochs)

    @property
    def job(self) -> tuple[str, tuple[TrainConfig, ...]]:
        """What a worker is given: a label, and the configurations."""
        return self.trained.describe(), self.configs


class Plan(NamedTuple):
    """When a grid was started, what it trains, and how many runs at once."""

    started: str
    trajectories: Sequence[Trajectory]
    workers: int


def group_trajectories(configs: Sequence[TrainConfig]) -> list[Trajectory]:
    """Group the configurations whose training is the same but for its length."""
    groups = defaultdict(list)
    for config in configs:
        key = canonical(config)
        if config.schedule == "constant":  # else a shorter run is no part of a longer one
            key = replace(key, epochs=1)
        groups[key].append(config)
    return [Trajectory(tuple(sorted(g, key=lambda c: c.epochs))) for g in groups.values()]


def canonical(config: TrainConfig) -> TrainConfig:
    """The same training, with every setting that changes nothing in it at its default."""
    idle = {"metric": "accuracy"}
    idle |= {"pin_memory": False, "data_on": "device"} if pin_memory_effect(config) else {}
    idle |= {} if may_mirror(config.dataset) else {"flip": False, "tta": False}
    return replace(config, **idle)


def pin_memory_effect(config: TrainConfig) -> str | None:
    """Why pin_memory changes nothing in this configuration, or None where it is a real factor."""
    if config.device == "cpu":
        return "none: a CPU has no copy to make"
    return "none: the images live on the device" if config.data_on == "device" else None


def train_id(config: TrainConfig) -> str:
    return run_id("train", as_dict(config))


def name_weights(config: TrainConfig) -> TrainConfig:
    """The configuration, with the content of its --weights as part of its identity."""
    if config.weights is None:
        return config
    if config.weights == PUBLISHED:
        from common import models  # torch, which takes seconds

        size = config.image_size or models.find_published(config.model).image_size
        digest = models.hash_published(config.model)
        return replace(config, image_size=size, weights_sha256=digest)
    try:
        digest = hashlib.sha256(Path(config.weights).read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"--weights: cannot load {config.weights}: {error.strerror}") from None
    return replace(config, weights_sha256=digest)


def look_up(configs: Sequence[TrainConfig], rows: dict[str, Row]) -> tuple[dict, list]:
    """Of the configurations that are not among the finished `rows`: those whose training is there
    under another configuration, with the row of that; and those that are still to be trained."""
    trained: dict[str, Row] = {}  # by name, in which your own images are wherever they lie
    for row in rows.values():
        with suppress(TypeError, UsageError):  # settings that this version does not have
            trained.setdefault(train_id(canonical(TrainConfig(**row["config"]))), row)
    missing = [config for config in configs if train_id(config) not in rows]
    shared = {c: trained[n] for c in missing if (n := train_id(canonical(c))) in trained}
    return shared, [config for config in missing if config not in shared]


def state_file(folder: Path, config: TrainConfig) -> Path:
    """Where an unfinished run is kept in a results folder."""
    return folder / f"checkpoints/{train_id(config)}.state.pt"


def answers_file(folder: Path, config: TrainConfig, epoch: int) -> Path:
    """Where the answers on the validation images are that a pause leaves, at the latest at the
    configuration's end."""
    return folder / f"race/{train_id(config)}.{min(epoch, config.epochs)}.npz"


def append_row(log: Log, config: TrainConfig, metrics: Row, shared_with: str | None, **by) -> None:
    """Write a configuration's row: `shared_with` is the run that was trained, if it is another."""
    own = {"pin_memory_effect": pin_memory_effect(config), "shared_with": shared_with}
    if metrics.get("best_by", "accuracy") != config.metric:  # the best by this was not kept
        own |= dict.fromkeys(("best_epoch", "best_val_acc", "best_by", "best_checkpoint"))
    log.append("train", as_dict(config), metrics | own, **by)


def print_plan(configs: list[TrainConfig], todo: list[Trajectory], ms: float | None) -> None:
    in_log = len(configs) - sum(len(t.configs) for t in todo)
    trajectories = f"trajectories: {len(group_trajectories(configs))}, to train: {len(todo)}"
    print(f"configurations: {len(configs)}, in the log: {in_log}; {trajectories}")
    if ms is not None:
        text = "unknown, for some steps fail" if math.isnan(ms) else format_time(ms / 1e3)
        print(f"estimated time of training and validation: {text} (a few steps were timed)")


def format_finished(configs: Sequence[TrainConfig], log: Log) -> str:
    from common.data.scores import cells, to_beat  # numpy, for which --help would wait

    finished, rows, records = log.finished("train"), [], []
    for config in configs:
        if row := finished.get(train_id(config)):
            m = row["metrics"]
            record = {"run": row["run_id"], "configuration": config.describe()}
            record |= {"epochs": config.epochs, "seed": config.seed}
            record |= {"val acc": f"{m['val_acc']:.4f}", "test acc": f"{m['test_acc']:.4f}"}
            record |= cells(m, config.metric) | {"train s": f"{m['train_ms'] / 1e3:.0f}"}
            record |= {"img/s": f"{m['images_per_s']:.0f}", "shared with": m["shared_with"] or ""}
            rows.append(row)
            records.append(record)
    return tabulate(records, "keys", disable_numparse=True) + to_beat(rows)


def write_plan(folder: Path, trajectories: Sequence[Trajectory], workers: int) -> None:
    configs = [[as_dict(config) for config in t.configs] for t in trajectories]
    plan = Plan(datetime.now(UTC).isoformat(timespec="seconds"), configs, workers)
    write_atomically(folder / "plan.json", json.dumps(plan._asdict()).encode())


def read_plan(folder: Path) -> Plan:
    path = folder / "plan.json"
    try:
        plan = Plan(**json.loads(path.read_bytes()))
        planned = [Trajectory(tuple(TrainConfig(**c) for c in t)) for t in plan.trajectories]
        return Plan(str(plan.started), planned, int(plan.workers))
    except FileNotFoundError:
        why = "no grid has been started here (a race prints how far it is itself)"
        raise UsageError(f"--watch: {path} is missing: {why}") from None
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
    left = {config: config.epochs - epochs.get(train_id(config), 0) for config in waiting}
    for running in waiting[: plan.workers]:  # they are begun in this order
        done = running.epochs - left[running]
        text += f"; {running.describe()}: {done} of {running.epochs} epochs"
    left_ms = time_epochs(left, rows)
    left_s, untimed = sum(left_ms) / 1e3 / min(plan.workers, len(left)), len(left) - len(left_ms)
    parts = [f"about {format_time(left_s)} left"] if left_ms else []
    parts += [f"{untimed} trainings not timed yet"] if untimed else []
    last = max([plan.started, *(row["time_utc"] for row in rows)])
    return f"{text}; {' and '.join(parts)}; last row {last[11:19]} UTC"


def time_epochs(epochs: dict[TrainConfig, int], rows: Sequence[Row]) -> list[float]:
    """Units: ms that so many epochs take, of each configuration whose like has been timed."""

    def kind(config: Row) -> str:  # what runs of equally long epochs have in common
        return json.dumps({k: v for k, v in config.items() if k not in FREE}, sort_keys=True)

    times_ms = defaultdict(list)
    for row in rows:
        if row["kind"] == "epoch" and row["metrics"].get("train_ms"):
            times_ms[kind(row["config"])].append(row["metrics"]["train_ms"])
    timed = [(n, times_ms.get(kind(as_dict(config)))) for config, n in epochs.items()]
    return [n * statistics.median(ms) for n, ms in timed if ms]


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
            time.sleep(2.0)
    print(end="" if end else "\n", flush=True)
    return 0
