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
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.base.cli import (
    UsageError,
    as_dict,
    expand_grid,
    first_line,
    is_out_of_memory,
    need,
    parse_command_line,
    run_script,
)
from common.base.config import (
    TRAIN_PRESETS,
    TrainConfig,
    TrainOptions,
    Trajectory,
    group_trajectories,
    pin_memory_effect,
    plainest_twin,
)
from common.base.log import Log, run_id, save_predictions
from common.train.workers import Job, count_workers, in_worker, print_commands, share_out

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from common.train.distributed import World
    from common.train.run import Run


def choose_configs(grid: dict[str, list[Any]], best: bool, log: Log) -> list[TrainConfig]:
    """The configurations asked for; or of these only each data set's best on validation, of those
    that are finished."""
    from common.data.datasets import pin_dataset
    from common.judge.rows import pick_best

    grid["dataset"] = list(dict.fromkeys(map(pin_dataset, grid["dataset"])))
    configs = [name_weights(config) for config in expand_grid(TrainConfig, grid)]
    if not best:
        return configs
    rows = log.finished("train")
    asked = {train_id(config): config for config in configs}
    chosen = [g.first() for g in pick_best([rows[n] for n in asked if n in rows])]
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


def print_plan(
    configs: list[TrainConfig], todo: list[Trajectory], data_dir: str, estimated: bool
) -> None:
    """Say how much there is to do, how much of it is done, and how long the rest may take."""
    from common.train.run import estimate_ms

    in_log = len(configs) - sum(len(t.configs) for t in todo)
    print(
        f"configurations: {len(configs)}, in the log: {in_log}; "
        f"trajectories: {len(group_trajectories(configs))}, to train: {len(todo)}"
    )
    if estimated:
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
            config = TrainConfig(**row["config"])
            if row["config"].keys() == as_dict(config).keys():
                found.setdefault(plainest_twin(config), row)
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


def find_state(trajectory: Trajectory, log: Log, options: TrainOptions) -> dict[str, Any] | None:
    """What an interrupted training of the trajectory left to continue from."""
    from common.train.checkpoint import load_checkpoint

    file = log.folder / state_file_of(trajectory.trained)
    if options.resume and file.exists():
        state = load_checkpoint(file)
        if "best" in state and len(state["history"]) <= trajectory.milestones[0]:
            return state
    return None


def train_trajectory(trajectory: Trajectory, log: Log, options: TrainOptions, world: World) -> None:
    """Train to the last milestone, logging every epoch, and at each milestone the rows due."""
    from common.train.checkpoint import save_checkpoint
    from common.train.run import Run

    run = Run(trajectory.trained, options.data_dir, world)
    name = train_id(run.config)
    state_file = log.folder / state_file_of(run.config)
    if state := world.from_first(find_state(trajectory, log, options)):
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
        save_checkpoint(state_file, run.state())
        log.append("epoch", as_dict(run.config), metrics, name=name, device=run.config.device)
        if writer:
            write_scalars(writer, metrics)
    if writer:
        writer.close()
    state_file.unlink(missing_ok=True)


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
        if name != "epoch" and value is not None:
            writer.add_scalar(name, value, metrics["epoch"])
    writer.flush()


def follow(trajectories: list[Trajectory], options: TrainOptions, world: World) -> None:
    """What every process but the first does: the same training and tests, and no writing."""
    from common.train.loop import NonFiniteLoss
    from common.train.run import Run

    for trajectory in trajectories:
        run = Run(trajectory.trained, options.data_dir, world)
        if state := world.from_first():
            run.restore(state)
        with suppress(NonFiniteLoss):  # all processes see it, and the first logs it
            while True:
                if len(run.history) in trajectory.milestones:
                    run.test(run.split.test)
                    run.test(run.seen())
                if len(run.history) >= run.config.epochs:
                    break
                run.train_one_epoch()


def checkpoint_file(config: TrainConfig, best: bool = False) -> str:
    """Where weights are kept, relative to the results folder: the last epoch's, or the best's."""
    return f"checkpoints/{train_id(config)}{'.best' if best else ''}.pt"


def state_file_of(config: TrainConfig) -> str:
    """Where an unfinished run is kept, relative to the results folder."""
    return f"checkpoints/{train_id(config)}.state.pt"


def finish_milestone(run: Run, trajectory: Trajectory, log: Log) -> None:
    """Where configurations end with this epoch: test its weights, once, and write their rows."""
    from common.speed.timing import now_ms
    from common.train.checkpoint import save_checkpoint

    due = [c for c in trajectory.configs if c.epochs == len(run.history)]
    if not due:
        return
    start_ms = now_ms(run.device)
    test_loss, test_acc, logits = run.test(run.split.test)
    eval_ms = now_ms(run.device) - start_ms
    train_loss, train_acc, _ = run.test(run.seen())
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
    save_checkpoint(log.folder / files["best_checkpoint"], run.best)
    measured = {
        "test_acc": test_acc, "test_loss": test_loss, "eval_ms": eval_ms,
        "train_acc": train_acc, "train_loss": train_loss,
    }  # fmt: skip
    for config in due:
        shared_with = None if config == run.config else train_id(run.config)
        append_train(log, config, summarize(run) | measured | files, shared_with)


def summarize(run: Run) -> dict[str, Any]:
    """A row's metrics that follow from the epochs so far."""
    from common.data.datasets import describe_split
    from common.train.run import best_epoch

    last, best = run.history[-1], best_epoch(run.history)
    train_ms = sum(metrics["train_ms"] for metrics in run.history)
    n_train = len(run.split.train)
    return {
        "val_acc": last["val_acc"], "val_loss": last["val_loss"],
        "best_epoch": best["epoch"], "best_val_acc": best["val_acc"],
        "bn_statistics": last["bn_statistics"],  # training images they are of; None: running ones
        "train_ms": train_ms, "images_per_s": n_train * len(run.history) / train_ms * 1e3,
        "params": sum(p.numel() for p in run.model.parameters()), "precision": run.precision,
        "n_train": n_train, "n_val": len(run.split.val), "n_test": len(run.split.test),
        "split_sha256": run.split.sha256(), **describe_split(run.dataset, run.split),
    }  # fmt: skip


def train_all(trajectories: list[Trajectory], log: Log, options: TrainOptions, world: World) -> int:
    """Train one trajectory after the other; one that fails leaves failed rows, the rest goes on.

    Returns: the number of trajectories that failed.
    Raises: SystemExit for what the other processes of a training may not have met.
    """
    import torch

    from common.train.loop import NonFiniteLoss

    failures = 0
    for number, trajectory in enumerate(trajectories, 1):
        print(f"[{number}/{len(trajectories)}] {trajectory.trained.describe()}", flush=True)
        try:
            train_trajectory(trajectory, log, options, world)
        except UsageError:
            raise
        except KeyboardInterrupt:
            log_interruption(trajectory.trained, log)
            raise
        except Exception as error:
            if world.size > 1 and not isinstance(error, NonFiniteLoss):
                what = first_line(error)
                print(f"  ended: {what}", flush=True)
                log_interruption(trajectory.trained, log, what)
                sys.exit(1)
            failures += 1
            log_failure(trajectory, error, log)
        if trajectory.trained.compile:
            torch.compiler.reset()  # what is compiled is kept alive, and counts towards a limit
    return failures


def log_interruption(config: TrainConfig, log: Log, why: str | None = None) -> None:
    """Write a row that says that the configuration's training has not ended."""
    log.append("train", as_dict(config), {}, status="interrupted", error=why, device=config.device)


def log_failure(trajectory: Trajectory, error: Exception, log: Log) -> None:
    """Write a failed row for every configuration that is not finished."""
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
            log.append("train", as_dict(config), metrics, status="failed", error=what,
                       device=config.device)  # fmt: skip


def export_all(configs: list[TrainConfig], log: Log, options: TrainOptions) -> int:
    """Export every finished configuration in each format asked for. Returns: failures."""
    from common.deploy.export import export_run

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


def jobs_of(trajectories: list[Trajectory]) -> list[Job]:
    """Each trajectory as a piece of work for a worker, or for a command of its own."""
    return [Job(t.configs, t.trained, t.trained.describe()) for t in trajectories]


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


def set_up(grid: dict[str, list[Any]], options: TrainOptions) -> tuple[World, int]:
    """Set this process up, and fill in what the machine decides: the devices, and how many
    processes train together.

    Returns: this process's place among those, and the number of workers.
    Raises: UsageError.
    """
    import torch

    from common.speed.timing import prepare_process
    from common.train.distributed import join_world
    from common.train.loop import make_deterministic, resolve_device

    prepare_process(options.threads or torch.get_num_threads())
    if options.deterministic:
        make_deterministic()
    if not options.list_commands or "auto" in grid["device"]:
        grid["device"] = list(dict.fromkeys(resolve_device(name).type for name in grid["device"]))
    world = join_world(grid["device"])
    grid["world_size"] = [world.size]
    workers = count_workers(options, grid["device"][0])
    if world.size > 1 and (workers > 1 or options.backend != "loky" or options.list_commands):
        raise UsageError("--jobs, --backend, --list-commands: one process only; leave torchrun out")
    return world, workers


def check_amp(grid: dict[str, list[Any]]) -> None:
    """Raises: UsageError for a 16-bit type that nothing would be computed in."""
    if grid["amp"] == [False] and grid["amp_dtype"] != ["auto"]:
        raise UsageError(
            f"--amp-dtype {grid['amp_dtype'][0]}: --amp is false, so that nothing would be "
            "computed in it; leave one of the two out"
        )


def check_all(configs: list[TrainConfig], data_dir: str) -> None:
    """Say what is wrong with any configuration, or to be known of its images, before training.

    Raises: UsageError.
    """
    from common.data.datasets import explain_images, print_once
    from common.train.run import check_config

    for config in configs:
        precision = check_config(config, data_dir)
        if config.amp and precision == "fp32":
            print(
                f"{config.describe()}: fp32, for this CPU has no fast bf16; --amp changes nothing"
            )
    print_once(
        explain_images(c.dataset, data_dir, c.image_size, c.split, c.split_seed, c.limit)
        for c in configs
    )


def main(argv: list[str] | None = None) -> int:
    """Plan, train, export, and print what was found."""
    grid, options = parse_command_line(argv, __doc__, TrainConfig, TrainOptions, TRAIN_PRESETS)
    expand_grid(TrainConfig, grid)  # a bad value is said before torch is even imported
    check_amp(grid)
    from common.deploy.export import check_format
    from common.train.watch import write_plan

    world, workers = set_up(grid, options)
    if world.rank:
        follow(world.from_first(), options, world)
        return world.leave(0)
    for format in options.export:
        check_format(format)
    if options.tensorboard:
        need("torch.utils.tensorboard", "--tensorboard", "tensorboard")
    log = Log(options.results_dir, options.shard)
    configs = choose_configs(grid, options.best, log)
    force = options.force and not options.best  # what --best finds is exported again, not trained
    if options.list_commands:
        todo = group_trajectories(configs if force else find_twins(configs, log)[1])
        print_commands("train", jobs_of(todo), options)
        return 0
    check_all(configs, options.data_dir)
    twins, rest = ([], configs) if force else find_twins(configs, log)
    todo = group_trajectories(rest)
    if len(configs) > 1 or options.dry_run:
        # Of several processes no step is timed; and one trajectory is begun sooner than timed.
        estimated = world.size == 1 and (len(todo) > 1 or (options.dry_run and bool(todo)))
        print_plan(configs, todo, options.data_dir, estimated)
    world.from_first([] if options.dry_run else todo)
    if options.dry_run:
        return 0
    started = time.monotonic()
    if todo and not (in_worker() or options.shard):  # else it is a part of what another plans
        write_plan(log.folder, todo, workers)
    afresh = set(configs) if force and not in_worker() else set()
    for config in set(configs) - set(rest) | afresh:  # finished: killed between its row and this
        (log.folder / state_file_of(config)).unlink(missing_ok=True)
    for config, row in twins:
        shared_with = row["metrics"]["shared_with"] or row["run_id"]
        append_train(log, config, row["metrics"], shared_with, measured_by=row)
    if workers > 1 or options.backend != "loky":
        failures = share_out("train", "train", jobs_of(todo), log, options, workers)
    else:
        failures = train_all(todo, log, options, world)
    failures += export_all(configs, log, options) if options.export else 0
    print_table(configs, log)
    print(f"{time.monotonic() - started:.0f} s; log: {log.path}")
    return world.leave(1 if failures else 0)


if __name__ == "__main__":
    run_script(main)
