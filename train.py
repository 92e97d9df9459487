"""Train one network, or a grid of them where a flag is given several values.

    python train.py --dataset fashion --opt adam
    python train.py --preset q1a --dry-run

Method: with a constant learning rate the first 3 epochs of a 5-epoch run are the 3-epoch run, and
on a CPU pin_memory changes no arithmetic; so configurations that share a trajectory are trained
once, to the longest, and every one of them gets its row, which names the run that was trained.
The weights of the last epoch are tested, once. A configuration that is in the log is skipped, an
interrupted trajectory continues from its last epoch.

Writes to --results-dir: log.jsonl (kinds epoch, train, export), predictions/, checkpoints/,
plan.json for report.py --watch and, where asked for, exports/ and tensorboard/.
"""

from __future__ import annotations

import hashlib
import math
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import UsageError, first_line, is_out_of_memory, run_script
from common.config import (
    TRAIN_PRESETS,
    TrainConfig,
    TrainOptions,
    Trajectory,
    as_dict,
    expand_grid,
    group_trajectories,
    parse_command_line,
    pin_memory_effect,
    plainest_twin,
)
from common.results import Log, run_id, save_predictions, write_atomically

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from common.run import Run


def choose_configs(grid: dict[str, list[Any]], best: bool, log: Log) -> list[TrainConfig]:
    """The configurations asked for, each with the device that it will run on; or of these only
    each data set's best on validation, of those that are finished."""
    from common.data import pin_dataset
    from common.engine import resolve_device
    from common.measured import pick_best

    grid["dataset"] = list(dict.fromkeys(map(pin_dataset, grid["dataset"])))
    grid["device"] = list(dict.fromkeys(resolve_device(name).type for name in grid["device"]))
    configs = [name_weights(config) for config in expand_grid(TrainConfig, grid)]
    if not best:
        return configs
    rows = log.finished("train")
    asked = {train_id(config): config for config in configs}
    chosen = [g.first() for g in pick_best(rows[name] for name in asked if name in rows)]
    found = {row["config"]["dataset"] for row in chosen}
    if missing := [name for name in grid["dataset"] if name not in found]:
        raise UsageError(
            f"--best: none of the {len(configs)} configurations asked for is finished on "
            f"{missing[0]} in {log.path}; train them first, without --best"
        )
    return [asked[row["run_id"]] for row in chosen]


def name_weights(config: TrainConfig) -> TrainConfig:
    """The configuration, with the content of its --weights file as part of its identity."""
    if config.weights is None:
        return config
    try:
        content = Path(config.weights).read_bytes()
    except OSError as error:
        raise UsageError(f"--weights: cannot load {config.weights}: {error.strerror}") from None
    return replace(config, weights_sha256=hashlib.sha256(content).hexdigest())


def train_id(config: TrainConfig) -> str:
    """The run_id of a configuration."""
    return run_id("train", as_dict(config))


def print_plan(configs: list[TrainConfig], todo: list[Trajectory], data_dir: str) -> None:
    """Say how much there is to do, how much of it is done, and how long the rest may take."""
    from common.run import estimate_ms

    in_log = len(configs) - sum(len(t.configs) for t in todo)
    print(
        f"{len(configs)} configurations, {len(group_trajectories(configs))} trajectories; "
        f"in the log: {in_log} configurations; to train: {len(todo)} trajectories"
    )
    if todo:
        minutes = estimate_ms((t.trained for t in todo), data_dir) / 6e4
        said = f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
        if math.isnan(minutes):
            said = "unknown, for some steps fail"
        print(f"estimated time of the training steps: {said} (a few of each kind were timed)")


def find_twins(
    configs: list[TrainConfig], log: Log
) -> tuple[list[tuple[TrainConfig, dict[str, Any]]], list[TrainConfig]]:
    """Of the configurations not in the log: those whose twin, the same training, is there, each
    with its twin's row; and those that are still to be trained."""
    rows = log.finished("train")
    found = {}
    for row in rows.values():
        with suppress(TypeError, UsageError):  # a row of another version
            if row["config"].keys() == as_dict(TrainConfig()).keys():
                found.setdefault(plainest_twin(TrainConfig(**row["config"])), row)
    missing = [c for c in configs if train_id(c) not in rows]
    twins = [(c, found[plainest_twin(c)]) for c in missing if plainest_twin(c) in found]
    return twins, [c for c in missing if plainest_twin(c) not in found]


def append_train(
    log: Log, config: TrainConfig, metrics: dict[str, Any], shared_with: str | None,
    measured_by: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write one configuration's row."""
    own = {"pin_memory_effect": pin_memory_effect(config), "shared_with": shared_with}
    log.append(
        "train", as_dict(config), metrics | own, device=config.device, measured_by=measured_by
    )


def train_trajectory(trajectory: Trajectory, log: Log, options: TrainOptions) -> None:
    """Train to the last milestone, logging every epoch, and at each milestone the rows due."""
    from common.checkpoint import load_checkpoint, save_checkpoint
    from common.run import Run

    run = Run(trajectory.trained, options.data_dir)
    name = train_id(run.config)
    state_file = log.folder / state_file_of(run.config)
    if options.resume and not options.force and state_file.exists():
        state = load_checkpoint(state_file)
        if len(state["history"]) <= trajectory.milestones[0]:
            run.restore(state)
    logged = {r["metrics"]["epoch"] for r in log.read("epoch") if r["run_id"] == name}
    for metrics in run.history:  # killed between a checkpoint and its row
        if metrics["epoch"] not in logged:
            log.append("epoch", as_dict(run.config), metrics, name=name, device=run.config.device)
    writer = open_tensorboard(run, log) if options.tensorboard else None
    while True:
        finish_milestone(run, trajectory, log)
        if len(run.history) >= run.config.epochs:
            break
        metrics = run.train_one_epoch()
        if best_epoch(run.history) is metrics:
            save_checkpoint(log.folder / checkpoint_file(run.config, best=True), run.weights())
        save_checkpoint(state_file, run.state())
        log.append("epoch", as_dict(run.config), metrics, name=name, device=run.config.device)
        if writer:
            write_scalars(writer, metrics)
    if writer:
        writer.close()
    state_file.unlink(missing_ok=True)


def check_tensorboard() -> None:
    """Raises: UsageError where event files cannot be written."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--tensorboard: {first_line(error)}; install it with: pip install tensorboard"
        ) from None


def open_tensorboard(run: Run, log: Log) -> SummaryWriter:
    """The event files of a run: they start with its epochs so far, and hide those of older ones."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(log.folder / "tensorboard" / train_id(run.config), purge_step=0)
    for metrics in run.history:
        write_scalars(writer, metrics)
    return writer


def write_scalars(writer: SummaryWriter, metrics: dict[str, Any]) -> None:
    """An epoch's metrics, at its number."""
    for name, value in metrics.items():
        if name != "epoch":
            writer.add_scalar(name, value, metrics["epoch"])
    writer.flush()


def best_epoch(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The epoch of highest validation accuracy, the first of equals."""
    return max(history, key=lambda metrics: metrics["val_acc"])


def checkpoint_file(config: TrainConfig, best: bool = False) -> str:
    """Where weights are kept, relative to the results folder: the last epoch's, or the best's."""
    return f"checkpoints/{train_id(config)}{'.best' if best else ''}.pt"


def state_file_of(config: TrainConfig) -> str:
    """Where an unfinished run is kept, relative to the results folder."""
    return f"checkpoints/{train_id(config)}.state.pt"


def finish_milestone(run: Run, trajectory: Trajectory, log: Log) -> None:
    """Where configurations end with this epoch: test its weights, once, and write their rows."""
    from common.checkpoint import save_checkpoint
    from common.timing import now_ms

    due = [c for c in trajectory.configs if c.epochs == len(run.history)]
    if not due:
        return
    start_ms = now_ms(run.device)
    test_loss, test_acc, logits = run.test(run.split.test)
    eval_ms = now_ms(run.device) - start_ms
    files = {
        "predictions": f"predictions/{train_id(due[0])}.npz",
        "checkpoint": checkpoint_file(due[0]),
        "best_checkpoint": checkpoint_file(due[0], best=True),
    }
    save_predictions(
        log.folder / files["predictions"], pred=logits.argmax(1), logits=logits,
        label=run.dataset.labels[run.split.test], index=run.split.test,
        classes=run.dataset.classes,
    )  # fmt: skip
    save_checkpoint(log.folder / files["checkpoint"], run.weights())
    if due[0] != run.config:
        best = (log.folder / checkpoint_file(run.config, best=True)).read_bytes()
        write_atomically(log.folder / files["best_checkpoint"], best)
    measured = {"test_acc": test_acc, "test_loss": test_loss, "eval_ms": eval_ms}
    for config in due:
        shared_with = None if config == run.config else train_id(run.config)
        append_train(log, config, summarize(run) | measured | files, shared_with)


def summarize(run: Run) -> dict[str, Any]:
    """A row's metrics that follow from the epochs so far."""
    from common.data import describe_split

    last, best = run.history[-1], best_epoch(run.history)
    train_ms = sum(metrics["train_ms"] for metrics in run.history)
    n_train = len(run.split.train)
    return {
        "val_acc": last["val_acc"], "val_loss": last["val_loss"],
        "best_epoch": best["epoch"], "best_val_acc": best["val_acc"],
        "train_ms": train_ms, "images_per_s": n_train * len(run.history) / train_ms * 1e3,
        "params": sum(p.numel() for p in run.model.parameters()), "precision": run.precision,
        "n_train": n_train, "n_val": len(run.split.val), "n_test": len(run.split.test),
        "split_sha256": run.split.sha256(), **describe_split(run.dataset, run.split),
    }  # fmt: skip


def train_all(trajectories: list[Trajectory], log: Log, options: TrainOptions) -> int:
    """Train one trajectory after the other; one that fails leaves failed rows, the rest goes on.

    Returns: the number of trajectories that failed.
    """
    failures = 0
    for number, trajectory in enumerate(trajectories, 1):
        print(f"[{number}/{len(trajectories)}] {trajectory.trained.describe()}", flush=True)
        try:
            train_trajectory(trajectory, log, options)
        except UsageError:
            raise
        except KeyboardInterrupt:
            log.append("train", as_dict(trajectory.trained), {}, status="interrupted")
            raise
        except Exception as error:
            failures += 1
            what = first_line(error)
            if is_out_of_memory(error):
                config = trajectory.trained
                what = (
                    f"out of memory at --batch-size {config.batch_size}, --image-size "
                    f"{config.image_size}: lower one of them ({what})"
                )
            print(f"  failed: {what}", flush=True)
            metrics = getattr(error, "metrics", {})
            finished = log.finished("train")
            for config in trajectory.configs:
                if train_id(config) not in finished:
                    log.append("train", as_dict(config), metrics, status="failed", error=what)
    return failures


def export_all(configs: list[TrainConfig], log: Log, options: TrainOptions) -> int:
    """Export every finished configuration in each format asked for. Returns: failures."""
    from common.export import export_run

    rows = log.finished("train")
    done = {(r["metrics"]["train_run_id"], r["config"]["format"]): r["metrics"]["file"]
            for r in log.finished("export").values()}  # fmt: skip
    failures = 0
    for name in dict.fromkeys(train_id(c) for c in configs if train_id(c) in rows):
        for format in options.export:
            file = done.get((name, format))
            if file and (log.folder / file).exists() and not options.force:
                continue
            row = export_run(log, rows[name], format, options.data_dir)
            failures += row["status"] != "ok"
            print(f"export {format}: {row['metrics'].get('file') or row['error']}")
    return failures


def print_table(configs: list[TrainConfig], log: Log) -> None:
    """The finished configurations, one a line."""
    from tabulate import tabulate

    rows = log.finished("train")
    lines = []
    for config in configs:
        if row := rows.get(train_id(config)):
            m = row["metrics"]
            lines.append([
                row["run_id"], config.describe(), config.epochs, config.seed,
                f"{m['val_acc']:.4f}", f"{m['test_acc']:.4f}", f"{m['train_ms'] / 1e3:.0f}",
                f"{m['images_per_s']:.0f}", m["shared_with"] or "",
            ])  # fmt: skip
    head = ["run", "configuration", "epochs", "seed", "val acc", "test acc", "train s", "img/s",
            "shared with"]  # fmt: skip
    print(tabulate(lines, head, disable_numparse=True))


def main(argv: list[str] | None = None) -> int:
    """Plan, train, export, and print what was found."""
    grid, options = parse_command_line(argv, __doc__, TrainConfig, TrainOptions, TRAIN_PRESETS)
    expand_grid(TrainConfig, grid)  # a bad value is said before torch is even imported
    if grid["amp"] == [False] and grid["amp_dtype"] != ["auto"]:
        raise UsageError(
            f"--amp-dtype {grid['amp_dtype'][0]}: --amp is false, so that nothing would be "
            "computed in it; leave one of the two out"
        )
    import torch

    from common.data import explain_images, print_once
    from common.engine import keep_freed_memory, make_deterministic
    from common.export import check_format
    from common.run import check_config
    from common.watch import write_plan

    keep_freed_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.deterministic:
        make_deterministic()
    for format in options.export:
        check_format(format)
    if options.tensorboard:
        check_tensorboard()
    log = Log(options.results_dir)
    configs = choose_configs(grid, options.best, log)
    for config in configs:
        precision = check_config(config, options.data_dir)
        if config.amp and precision == "fp32":
            print(
                f"{config.describe()}: fp32, for this CPU has no fast bf16; --amp changes nothing"
            )
    print_once(
        explain_images(c.dataset, options.data_dir, c.image_size, c.split, c.split_seed, c.limit)
        for c in configs
    )
    twins, rest = ([], configs) if options.force else find_twins(configs, log)
    todo = group_trajectories(rest)
    if len(configs) > 1 or options.dry_run:
        print_plan(configs, todo, options.data_dir)
    if options.dry_run:
        return 0
    started = time.monotonic()
    if todo:
        write_plan(log.folder, todo)
    for config in set(configs) - set(rest):  # killed between its row and this
        (log.folder / state_file_of(config)).unlink(missing_ok=True)
    for config, row in twins:
        shared_with = row["metrics"]["shared_with"] or row["run_id"]
        append_train(log, config, row["metrics"], shared_with, measured_by=row)
    failures = train_all(todo, log, options)
    failures += export_all(configs, log, options) if options.export else 0
    print_table(configs, log)
    print(f"{time.monotonic() - started:.0f} s; log: {log.path}")
    return 1 if failures else 0


if __name__ == "__main__":
    run_script(main)
