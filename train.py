"""Train one network, or a grid of them where a flag is given several values.

    python train.py --dataset fashion --opt adam
    python train.py --preset q1a --dry-run
    python train.py --preset race --budget 10m

Method: one training, a trajectory, may serve several configurations: with a constant learning rate
a run of 5 epochs is, after 3, the run of 3 epochs; on a CPU pin_memory changes no result. Each
configuration gets its row; one that has it is skipped. The last epoch's weights are tested, once.
After each epoch the state is saved, then its row: who continues after a kill adds a row that is
missing, tests what is due, and trains on. A worker is this command again, for one trajectory. With
--budget configurations race: what is told apart from the best is trained no further.

Writes to --results-dir: log.jsonl (kinds epoch, train, export), predictions/, checkpoints/ (states
too), plan.json for report.py --watch; race.json and race/; where asked, exports/, tensorboard/.
"""

import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out
from common.base.cli import UsageError, as_dict, expand_grid, parse_command_line, run_script
from common.base.config import TrainConfig, TrainOptions, name_in_log
from common.base.log import Log
from common.train import grid as grids


def main(argv: list[str] | None = None) -> int:
    """Plan, train, export, and print the table of what is finished."""
    started = time.monotonic()
    values, options = parse_command_line(argv, __doc__, TrainConfig, TrainOptions)
    if values["amp"] == [False] and values["amp_dtype"] != ["auto"]:
        why = "--amp is false, so that nothing would be computed in it; leave one of the two out"
        raise UsageError(f"--amp-dtype {values['amp_dtype'][0]}: {why}")
    from common import race
    from common.data.own import pin_datasets
    from common.deploy.export import check_format, export_all
    from common.train import workers
    from common.train.check import check_configs

    world = workers.set_up(values, options)
    if world.rank:  # the first process decides, and alone writes
        train_all(world.from_first(), None, options, world, print)
        return world.leave(0)
    for format in options.export:
        check_format(format)
    values["dataset"] = pin_datasets(values, options.data_dir)
    log = Log(options.results_dir, options.shard)
    configs = choose_configs(values, options.best, log)
    if not options.list_commands:
        check_configs(configs, options.data_dir)
    if options.budget:
        configs, failures = race.run(configs, log, options, train_all, started)
    else:
        failures = train_grid(configs, log, options, world)
    if options.dry_run:
        options.print_next("train.py", *(f for f in argv or sys.argv[1:] if f != "--dry-run"))
    if options.dry_run or options.list_commands:
        return 0
    failures += export_all(configs, log, options)
    print(grids.format_finished(configs, log))
    print(f"{time.monotonic() - started:.0f} s; log: {log.path}")
    options.print_next()
    return world.leave(1 if failures else 0)


def choose_configs(values: dict[str, list[Any]], best: bool, log: Log) -> list[TrainConfig]:
    """The configurations asked for; or of the finished ones each data set's best on validation."""
    configs = [grids.name_weights(config) for config in expand_grid(TrainConfig, values)]
    if not best:
        return configs
    from common.judge.rows import pick_best

    rows = log.finished("train")
    asked = {grids.train_id(config): config for config in configs}
    chosen = [group.first() for group in pick_best([rows[n] for n in asked if n in rows])]
    for name in map(name_in_log, values["dataset"]):
        if name not in {row["config"]["dataset"] for row in chosen}:
            where = f"is finished on {name} in {log.path}; train them first, without --best"
            raise UsageError(f"--best: none of the {len(configs)} configurations asked for {where}")
    return [asked[row["run_id"]] for row in chosen]


def train_grid(configs: list[TrainConfig], log: Log, options: TrainOptions, world: Any) -> int:
    """Train what the log lacks, or print the commands or the plan. Returns: how many failed."""
    from common.judge.rows import print_leader
    from common.train import workers
    from common.train.check import estimate_ms

    force = options.force and not options.best  # what --best finds is exported again, not trained
    shared, missing = ({}, configs) if force else grids.look_up(configs, log.finished("train"))
    todo = grids.group_trajectories(missing)
    if options.list_commands:
        workers.print_commands("train", [t.job for t in todo], options)
        return 0
    # Of several processes no step is timed; and one trajectory is begun sooner than timed.
    timed = world.size == 1 and len(todo) > (0 if options.dry_run else 1)
    epoch_ms = estimate_ms([t.trained for t in todo], options.data_dir) if timed else {}
    ms = sum(config.epochs * ms[:2].sum() for config, ms in epoch_ms.items()) if timed else None
    if len(configs) > 1 or options.dry_run:
        grids.print_plan(configs, todo, ms)
    world.from_first([] if options.dry_run else todo)  # to the others, which wait for it above
    if options.dry_run:
        return 0
    job_s = (ms or 0.0) / 1e3 / max(1, len(todo))
    count = workers.count_workers(options, configs[0].device, len(todo), job_s)
    if todo and not (workers.in_worker() or options.shard):  # else it is a part of a grid
        grids.write_plan(log.folder, todo, count)
    # No state is left of what is finished, or begun again by --force; but a worker may go on.
    for config in configs if force and not workers.in_worker() else set(configs) - set(missing):
        grids.state_file(log.folder, config).unlink(missing_ok=True)
    for config, row in shared.items():
        name = row["metrics"]["shared_with"] or row["run_id"]
        grids.append_row(log, config, row["metrics"], name, git=row["git"], env=row["env"])
    after = partial(print_leader, log, "train", configs)
    here, jobs = partial(train_all, todo, log, options, world, after), [t.job for t in todo]
    return workers.share_out("train", jobs, log, options, count, after, here)


def train_all(
    todo: list[grids.Trajectory], log: Log | None, options: TrainOptions, world: Any, after: Any
) -> int:
    """Train one after the other; one that fails leaves failed rows, and the rest goes on. The first
    process alone has a log, and calls `after` when one is done. Returns: how many failed."""
    import torch

    from common.train.loop import NonFiniteLoss
    from common.train.run import explain_failure

    failures = 0
    for number, trajectory in enumerate(todo, 1):
        config = trajectory.trained
        print(f"[{number}/{len(todo)}] {config.describe()}", flush=True)
        unfinished = {grids.train_id(c): as_dict(c) for c in trajectory.configs}
        going_on = suppress(NonFiniteLoss)  # all processes meet it, and the first logs it
        if log:
            going_on = log.failed_rows("train", unfinished.values(), explain_failure)
        try:
            with going_on as failed, world.ending_together(NonFiniteLoss, UsageError):
                train_trajectory(trajectory, unfinished, log, options, world)
        except (KeyboardInterrupt, SystemExit) as end:
            if log:
                log.append("train", as_dict(config), {}, status="interrupted", error=str(end))
            raise
        if failed:
            failures += 1
            print(f"  failed: {failed[0]['error']}", flush=True)
        elif log:
            after(config)
        if config.compile:
            torch.compiler.reset()  # what is compiled is kept alive, and counts towards a limit
    return failures


def train_trajectory(
    trajectory: grids.Trajectory, unfinished: dict, log: Log | None, options: TrainOptions, world
) -> None:
    """Train to the longest configuration, keeping every epoch; where configurations end with an
    epoch, test its weights, once, and take from `unfinished` those whose rows are written."""
    from common.train.checkpoint import load_checkpoint, save_checkpoint
    from common.train.run import Run, write_events

    run, name = Run(trajectory.trained, options.data_dir, world), grids.train_id(trajectory.trained)
    file = grids.state_file(log.folder, run.config) if log else None
    state = load_checkpoint(file) if log and options.resume and file.exists() else None
    if state and len(state["history"]) > trajectory.configs[0].epochs:
        state = None  # past a configuration's end: the weights to test are gone
    if state := world.from_first(state):  # what a killed or interrupted process left
        run.restore(state)
    rows = log.read("epoch") if state and log else []
    logged = {row["metrics"]["epoch"] for row in rows if row["run_id"] == name}
    new = [epoch for epoch in run.history if epoch["epoch"] not in logged]
    while True:
        for epoch in new if log else ():
            log.append("epoch", as_dict(run.config), epoch, run_id=name)
        if log and options.tensorboard:
            write_events(log.folder / "tensorboard" / name, run.history)
        if options.pause_after and len(run.history) >= min(options.pause_after, run.config.epochs):
            return run.pause(log.folder) if log else None
        due = [c for c in trajectory.configs if c.epochs == len(run.history)]
        if due and not options.pause_after:
            metrics = run.finish(log.folder if log else None, grids.train_id(due[0]))
            for config in due if log else ():
                grids.append_row(log, config, metrics, None if config == run.config else name)
                del unfinished[grids.train_id(config)]
        if len(run.history) == run.config.epochs:
            break
        new = [run.train_one_epoch()]
        if log:  # before its row, which a process that continues from here adds if it lacks
            save_checkpoint(file, run.state())
    if log:
        file.unlink(missing_ok=True)


if __name__ == "__main__":
    run_script(main)
