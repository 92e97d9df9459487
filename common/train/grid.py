"""A grid's configurations, the trajectories that serve several of them, and what the log has."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from common.base.cli import UsageError, as_dict, expand_grid
from common.base.config import TrainConfig, may_mirror
from common.base.log import Log, run_id

Row = dict[str, Any]


@dataclass(frozen=True)
class Trajectory:
    """Configurations that one training serves, shortest first; `trained` is the one trained."""

    configs: tuple[TrainConfig, ...]

    @property
    def trained(self) -> TrainConfig:
        """The first of the longest configurations."""
        return max(self.configs, key=lambda c: c.epochs)


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
    if pin_memory_effect(config):
        config = replace(config, pin_memory=False, data_on="device")
    if not may_mirror(config.dataset):
        config = replace(config, flip=False, tta=False)
    return config


def pin_memory_effect(config: TrainConfig) -> str | None:
    """Why pin_memory changes nothing in this configuration, or None where it is a real factor."""
    if config.device == "cpu":
        return "none: a CPU has no copy to make"
    return "none: the images live on the device" if config.data_on == "device" else None


def train_id(config: TrainConfig) -> str:
    """The run_id of a configuration."""
    return run_id("train", as_dict(config))


def name_weights(config: TrainConfig) -> TrainConfig:
    """The configuration, with the content of its --weights file as part of its identity."""
    if config.weights is None:
        return config
    try:
        content = Path(config.weights).read_bytes()
    except OSError as error:
        raise UsageError(f"--weights: cannot load {config.weights}: {error.strerror}") from None
    return replace(config, weights_sha256=hashlib.sha256(content).hexdigest())


def look_up(configs: Sequence[TrainConfig], log: Log) -> tuple[dict[TrainConfig, Row], list]:
    """Of the configurations that the log has no row of: those whose training it has under another
    configuration, with the row of that; and those that are still to be trained."""
    rows, trained = log.finished("train"), {}
    for row in rows.values():
        with suppress(TypeError, UsageError):  # settings that this version does not have
            trained.setdefault(canonical(TrainConfig(**row["config"])), row)
    missing = [config for config in configs if train_id(config) not in rows]
    shared = {c: trained[canonical(c)] for c in missing if canonical(c) in trained}
    return shared, [config for config in missing if config not in shared]


def state_file(folder: Path, config: TrainConfig) -> Path:
    """Where an unfinished run is kept in a results folder."""
    return folder / f"checkpoints/{train_id(config)}.state.pt"


def append_row(log: Log, config: TrainConfig, metrics: Row, shared_with: str | None, **by) -> None:
    """Write a configuration's row: `shared_with` is the run that was trained, if it is another."""
    own = {"pin_memory_effect": pin_memory_effect(config), "shared_with": shared_with}
    log.append("train", as_dict(config), metrics | own, device=config.device, **by)


def check_values(values: dict[str, list[Any]]) -> None:
    """Raises: UsageError for a bad value, or a 16-bit type that nothing would be computed in."""
    expand_grid(TrainConfig, values)
    if values["amp"] == [False] and values["amp_dtype"] != ["auto"]:
        why = "--amp is false, so that nothing would be computed in it; leave one of the two out"
        raise UsageError(f"--amp-dtype {values['amp_dtype'][0]}: {why}")


def print_plan(configs: list[TrainConfig], todo: list[Trajectory], ms: float | None) -> None:
    """Say how much there is to do, how much of it is done, and how long the rest may take."""
    in_log = len(configs) - sum(len(t.configs) for t in todo)
    print(
        f"configurations: {len(configs)}, in the log: {in_log}; "
        f"trajectories: {len(group_trajectories(configs))}, to train: {len(todo)}"
    )
    if ms is not None:
        time = "unknown, for some steps fail" if math.isnan(ms) else format_minutes(ms / 6e4)
        print(f"estimated time of the training steps: {time} (a few of each kind were timed)")


def format_minutes(minutes: float) -> str:
    """Minutes, or hours where they are many."""
    return f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def format_finished(configs: Sequence[TrainConfig], log: Log) -> str:
    """A table of the finished configurations."""
    rows = log.finished("train")
    heads = "run, configuration, epochs, seed, val acc, test acc, train s, img/s, shared with"
    lines = []
    for config in configs:
        if row := rows.get(train_id(config)):
            m = row["metrics"]
            line = [row["run_id"], config.describe(), config.epochs, config.seed]
            line += [f"{m['val_acc']:.4f}", f"{m['test_acc']:.4f}", f"{m['train_ms'] / 1e3:.0f}"]
            lines.append([*line, f"{m['images_per_s']:.0f}", m["shared_with"] or ""])
    return tabulate(lines, heads.split(", "), disable_numparse=True)
