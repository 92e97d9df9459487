"""An answer in the time there is: a race between configurations, by the rules of judge/race.py.

Here are its clock, its files and its jobs. Every candidate is trained to the next rung and paused
there, with its state and its answers on the validation images kept. race.json tells how far the
race is: what was timed, how long it ran, who left after which rung. No rung is decided twice."""

import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from textwrap import fill
from typing import Any

import numpy as np

from common.base.cli import UsageError, as_dict, format_time
from common.base.config import TrainConfig, TrainOptions
from common.base.log import Log, Row, run_id, write_atomically
from common.base.machine import describe_machine
from common.judge import race as rules
from common.judge.findings import sentences
from common.judge.race import MOST_SEEDS, Candidate, makespan, rungs_of
from common.judge.rows import describe_all, grouped, split_name
from common.train import grid as grids
from common.train import workers
from common.train.check import estimate_ms
from common.train.distributed import ALONE
from common.train.grid import answers_file, state_file, train_id

USED = 0.95  # of the budget: the rest is for what was not foreseen
LAST = 10**9  # an epoch that stands for a configuration's last


def run(
    configs: list[TrainConfig], log: Log, options: TrainOptions, train: Callable, started: float
) -> tuple[list[TrainConfig], int]:
    """Race the configurations, apart for each split of the images; `train` does jobs in this
    process. Returns: the runs of what was chosen, and how many failed."""
    race = Race(configs, log, options, train, started)
    race.plan()
    if options.dry_run:
        return [], 0
    race.save()
    try:
        chosen = [race.decide(contest) for contest in race.contests]
    finally:  # by Ctrl-C too: its time was spent
        race.save()
    return list(itertools.chain(*chosen)), race.failures


def show(macro: str, *values: Any) -> None:
    """Print what a macro of findings.j2 says, in lines of a screen's width."""
    for line in sentences(macro, *values):
        print(fill(line, width=110, subsequent_indent="  "), flush=True)


def seconds_of(epochs: Iterable[Row]) -> float:
    """What epochs and their validation took."""
    metrics = [row["metrics"] for row in epochs]
    return sum(m["train_ms"] + m.get("eval_ms", 0.0) for m in metrics) / 1e3


def where_of(config: TrainConfig) -> str:
    """The split of the images, in words: each has a contest of its own."""
    seed = f", split seed {config.split_seed}" if config.split_seed else ""
    return split_name(as_dict(config)) + seed


class Race:
    """A race in a results folder, and how far it is."""

    def __init__(self, configs: Sequence[TrainConfig], log: Log, options, train, started) -> None:
        """Go on with the race that was left here, if it is of these configurations, or begin it."""
        if by := next((c.metric for c in configs if c.metric != "accuracy"), None):
            raise UsageError(f"--budget: a race goes by accuracy; leave out --metric {by}")
        self.log, self.options, self.train, self.started = log, options, train, started
        self.failures, seeds = 0, list(dict.fromkeys(c.seed for c in configs))
        self.seeds = [*seeds, *range(max(seeds) + 1, max(seeds) + MOST_SEEDS)]
        first = grids.group_trajectories([c for c in configs if c.seed == seeds[0]])
        racing = [t.trained for t in first]
        names = zip(racing, describe_all(list(map(as_dict, racing))), strict=True)
        self.candidates = [Candidate(c, run=train_id(c), name=name) for c, name in names]
        self.contests = grouped(self.candidates, lambda c: where_of(c.config))
        self.file = log.folder / f"race{'.' + options.shard if options.shard else ''}.json"
        try:
            left = json.loads(self.file.read_bytes()) if self.file.exists() else {}
        except ValueError as error:
            why = f"{self.file} cannot be read ({error}); delete it, which starts the race anew"
            raise UsageError(f"--budget: {why}") from None
        name = run_id("race", {"candidates": [c.run for c in self.candidates], "seeds": seeds})
        new = {contest: {"rungs": {}, "seeds": []} for contest in self.contests}
        self.state: Row = {"race": name, "spent_s": 0.0, "contests": new}
        known = left.get("race") == name and left["contests"].keys() == new.keys()
        if known and not options.force:
            self.resume(left)
        else:
            self.begin()

    def resume(self, left: Row) -> None:
        """Take over what was decided; in a longer race who left for want of time may stay. The log
        knows of epochs that were trained since the clock was saved."""
        for own in left["contests"].values() if left["budget_s"] < self.options.budget_s else ():
            short = [int(n) for n, end in own["rungs"].items() if "no time" in str(end)]
            own["rungs"] = {n: e for n, e in own["rungs"].items() if int(n) < min([LAST, *short])}
        left["spent_s"] += seconds_of(self.log.read("epoch")[left["epochs"] :]) / left["workers"]
        self.state = left

    def begin(self) -> None:
        """Take away what is in the way: a grid's states; with --force all of a race before.
        Raises: UsageError where a configuration was tested already."""
        folder, force, done = self.log.folder, self.options.force, self.log.finished("train")
        known = sum(c.run in done and self.answers(c.config) is None for c in self.candidates)
        if known and not force:
            why = f"{known} of {len(self.candidates)} configurations are in {self.log.path}, tested"
            why += ", without what a race compares; give another --results-dir, or --force"
            raise UsageError(f"--budget: {why}")
        for c in () if self.options.dry_run else self.candidates:
            for config in self.runs_of(c, MOST_SEEDS if force else 1):
                if force or not answers_file(folder, config, 1).exists():
                    state_file(folder, config).unlink(missing_ok=True)
                    for file in folder.glob(f"race/{train_id(config)}.*.npz"):
                        file.unlink()

    def runs_of(self, c: Candidate, count: int) -> list[TrainConfig]:
        """A candidate with so many seeds: of those asked for, then those that follow the last."""
        return [replace(c.config, seed=seed) for seed in self.seeds[:count]]

    @property
    def spent_s(self) -> float:
        """The time that was computed, in all sessions."""
        return self.state["spent_s"] + time.monotonic() - self.started

    def save(self, *done: TrainConfig) -> None:
        state = self.state | {"spent_s": self.spent_s, "epochs": len(self.log.read("epoch"))}
        write_atomically(self.file, json.dumps(state, indent=1).encode())

    def price(self) -> int:
        """Time a few steps of each candidate. Returns: how many are trained at once."""
        configs, state = [c.config for c in self.candidates], self.state
        if "start_s" not in state:
            state["start_s"] = time.monotonic() - self.started
            timed = estimate_ms(configs, self.options.data_dir).values()
            state["timed_s"] = [np.nan_to_num(ms / 1e3).tolist() for ms in timed]
            state["planned_s"] = self.spent_s
        timed_s = np.array(state["timed_s"])  # steps and validation of an epoch, and the test
        job_s, kind = float(timed_s[:, :2].sum(1).mean()), configs[0].device
        count = workers.count_workers(self.options, kind, len(configs), job_s)
        state |= {"workers": count, "budget_s": self.options.budget_s}
        # Where processes share the cores, each is at worst as much slower as there are of them.
        timed_s *= count if (kind, self.options.backend) == ("cpu", "loky") else 1
        for c, (train_s, val_s, test_s) in zip(self.candidates, timed_s, strict=True):
            c.epoch_s, c.test_s = float(train_s + val_s), float(test_s)
            c.start_s = state["start_s"] if count > 1 else 0.0
        return count

    def plan(self) -> None:
        """Share the time out between the contests, and print it. Raises: UsageError where it is too
        short for an epoch of each configuration, and the longest training whole."""
        count, n, budget_s, least_s = self.price(), len(self.candidates), self.options.budget_s, {}
        until_s = self.state["planned_s"]
        for contest, own in self.contests.items():
            rest_s = max(c.cost_s(LAST, 1) + c.start_s + c.test_s for c in own)
            least_s[contest] = makespan([c.cost_s(1, 0) for c in own], count) + rest_s
        needed_s = math.ceil((until_s + sum(least_s.values())) / USED)
        begun = any(own["rungs"] for own in self.state["contests"].values())
        if needed_s > budget_s and not begun:
            least = f"{needed_s}s" if needed_s < 120 else f"{math.ceil(needed_s / 60)}m"
            why = f"an epoch of each of {n} configurations, and then of each contest the longest "
            why += f"training whole, take about {least}; give at least that, or fewer of them"
            raise UsageError(f"--budget {self.options.budget}: {why}")
        whole_s = makespan([c.cost_s(LAST, 0) for c in self.candidates], count)
        whole = f"by timed steps all of them whole would take {format_time(whole_s)}"
        print(f"race: {n} configurations in {self.options.budget}, {count} at once; {whole}")
        spare = (USED * budget_s - until_s) / sum(least_s.values())  # times the least
        for contest, own in self.contests.items():
            until_s += spare * least_s[contest]
            self.state["contests"][contest]["until_s"] = until_s
            rungs = ", ".join(map(str, rungs_of(max(c.epochs for c in own))))
            text = f"{len(own)} configurations, until {format_time(until_s)}"
            print(f"  {contest}: {text}, compared after epochs {rungs}", flush=True)

    def go_on(self, configs: Sequence[TrainConfig], epoch: int | None) -> None:
        """Train to an epoch, and pause there; where it is None to the end, and test."""
        log, tested = self.log, self.log.finished("train")

        def lacks(config: TrainConfig) -> bool:
            if epoch:
                return not answers_file(log.folder, config, epoch).exists()
            return train_id(config) not in tested or state_file(log.folder, config).exists()

        todo = [grids.Trajectory((config,)) for config in configs if lacks(config)]
        last = {row["run_id"]: row["metrics"]["epoch"] for row in log.read("epoch")}
        for t in todo if epoch else ():  # another race's state may be past this rung
            if last.get(train_id(t.trained), 0) > epoch:
                state_file(log.folder, t.trained).unlink(missing_ok=True)
        options = replace(self.options, budget=None, export=(), force=True, pause_after=epoch)
        here = partial(self.train, todo, log, options, ALONE, self.save)
        jobs, count = [t.job for t in todo], self.state["workers"]
        if todo:
            self.failures += workers.share_out("train", jobs, log, options, count, self.save, here)
            self.save()
        epochs = grouped(log.read("epoch"), lambda row: row["run_id"])
        for c, own in ((c, epochs[c.run]) for c in self.candidates if c.run in epochs):
            c.accs = {row["metrics"]["epoch"]: row["metrics"]["val_acc"] for row in own}
            own = own[-1:] if c.config.freeze else own  # whose first asked the body for each image
            estimated_s, c.epoch_s = c.epoch_s, seconds_of(own) / len(own)
            c.test_s *= c.epoch_s / (estimated_s or 1.0)

    def answers(self, config: TrainConfig, epoch: int = LAST) -> np.ndarray | None:
        """Which validation images it answered rightly after an epoch, if it got so far."""
        file = answers_file(self.log.folder, config, epoch)
        if not file.exists():
            return None
        with np.load(file, allow_pickle=False) as saved:
            return saved["pred"] == saved["label"]

    def eliminate(self, racing: list[Candidate], own: Row) -> list[Candidate]:
        """Train from rung to rung, without those that leave. Returns: the candidates that got to
        their end; none where the time is too short for any."""
        count, rungs = self.state["workers"], rungs_of(max(c.epochs for c in racing))
        for rung in rungs:
            if not racing or (len(racing) == 1 and rung < rungs[-1]):
                continue
            end = own["rungs"].get(str(rung))
            if not end:
                due = [c.config for c in racing if c.done < c.epochs]
                begun = any(self.answers(config, rung) is not None for config in due)
                needed_s = rules.time_to_end(racing, count)
                if rung > 1 and not begun and self.spent_s + needed_s > own["until_s"]:
                    return []
                self.go_on([c.config for c in racing], rung)
            for c in racing:
                if (right := self.answers(c.config, rung)) is not None:
                    c.right[min(rung, c.epochs)] = right
            if not end:
                at_s, looks = self.spent_s, len(rungs)
                left = rules.who_leaves(racing, rung, own["until_s"] - at_s, looks, count)
                end = {"left": {c.run: why for c, why in left.items()}, "at_s": at_s}
                own["rungs"][str(rung)] = end
                self.save()
            show("rung", rung, racing, end)
            racing = [c for c in racing if c.run not in end["left"]]
        return racing

    def train_seeds(self, finalists: list[Candidate], own: Row) -> dict[Candidate, list]:
        """Use the time left for seeds of the finalists. Returns: the runs of each, best first."""
        order = sorted(finalists, key=lambda c: -c.acc)
        while order:
            counts = {c: 1 + own["seeds"].count(c.run) for c in order}
            runs = {c: self.runs_of(c, counts[c]) for c in order}
            self.go_on(list(itertools.chain(*runs.values())), LAST)
            left_s = own["until_s"] - self.spent_s
            batch = rules.next_seeds(counts, left_s, self.state["workers"])
            if not batch:
                return {c: [r for r in runs[c] if self.answers(r) is not None] for c in order}
            own["seeds"] += [c.run for c in batch]
            self.save()
        return {}

    def decide(self, contest: str) -> list[TrainConfig]:
        """Run one contest to its answer, and print it. Returns: the runs of what was chosen."""
        racing, own = self.contests[contest], self.state["contests"][contest]
        trained = self.train_seeds(self.eliminate(racing, own), own)
        validated = {c: list(map(self.validate, runs)) for c, runs in trained.items()}
        standings = rules.standings(racing, own["rungs"], validated)
        best = standings[0]["run_id"]
        chosen = [run for c, runs in trained.items() if c.run == best for run in runs]
        self.go_on(chosen, None)
        done, first = self.log.finished("train"), racing[0].config
        tested = [done[run] for run in map(train_id, chosen) if run in done]
        config = {name: getattr(first, name) for name in ("dataset", "split", "split_seed")}
        config |= {"budget_s": self.options.budget_s, "race": self.state["race"]}
        facts = {"where": contest, "spent_s": self.spent_s}
        facts["runs"] = [c.run for c in racing]
        facts["runs"] += [train_id(run) for runs in trained.values() for run in runs[1:]]
        facts |= rules.conclude(standings, tested, self.state["workers"])
        if run_id("race", config) not in self.log.finished("race") or self.options.force:
            self.log.append("race", config, facts, env=describe_machine(first.device))
        show("race", [config | facts])
        return chosen

    def validate(self, config: TrainConfig) -> Row:
        """A finished training as a row whose test images are the validation images."""
        row, right = {"kind": "train", "run_id": train_id(config)}, self.answers(config)
        metrics = {"val_acc": float(right.mean())}
        return row | {"config": as_dict(config), "right": right, "metrics": metrics}
