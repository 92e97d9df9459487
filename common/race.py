"""An answer in the time there is: a race between configurations, by the rules of judge/race.py.

Here are its clock, its files and its jobs. Every candidate is trained to the next rung and paused
there, with its state and its answers on the validation images kept. race.json tells how far the
race is: what was timed, how long it ran, who left after which rung. No rung is decided twice."""

import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from textwrap import fill
from threading import Lock
from typing import Any

import numpy as np

from common.base.cli import UsageError, as_dict, format_time
from common.base.config import TrainConfig, TrainOptions
from common.base.log import Log, Row, run_id, write_atomically
from common.judge import race as rules
from common.judge.findings import sentences
from common.judge.race import MOST_SEEDS, Candidate, makespan, rungs_of
from common.judge.rows import describe_all, division, grouped, split_name
from common.train import grid as grids
from common.train import workers
from common.train.check import estimate_ms
from common.train.distributed import ALONE
from common.train.grid import answers_file, state_file, train_id

USED = 0.95  # of the budget: the rest is for what was not foreseen
LAST = 10**9  # an epoch that stands for a configuration's last
WIDTH = 110  # of the screen


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
    finally:
        race.save()
    return list(itertools.chain(*chosen)), race.failures


def show(macro: str, *values: Any) -> None:
    """Print what a macro of findings.j2 says, in lines of the screen's width."""
    for line in sentences(macro, *values):
        print(fill(line, WIDTH, subsequent_indent="  "), flush=True)


def seconds_of(epochs: Sequence[Row]) -> float:
    """What epochs and their validation took."""
    times = [row["metrics"]["train_ms"] + row["metrics"].get("eval_ms", 0.0) for row in epochs]
    return sum(times) / 1e3


class Race:
    """A race in a results folder, and how far it is."""

    def __init__(self, configs: Sequence[TrainConfig], log: Log, options, train, started) -> None:
        """Go on with the race that was left here, if it is of these configurations, or begin it."""
        if by := next((c.metric for c in configs if c.metric != "accuracy"), None):
            raise UsageError(f"--budget: a race goes by accuracy; leave out --metric {by}")
        self.log, self.options, self.train, self.started = log, options, train, started
        self.lock, self.failures = Lock(), 0
        self.seeds = list(dict.fromkeys(c.seed for c in configs))
        first = grids.group_trajectories([c for c in configs if c.seed == self.seeds[0]])
        self.configs = {train_id(t.trained): t.trained for t in first}
        splits = {run: " ".join(division(as_dict(c))) for run, c in self.configs.items()}
        self.contests = grouped(self.configs, splits.get)
        self.file = log.folder / f"race{'.' + options.shard if options.shard else ''}.json"
        name = run_id("race", {"candidates": list(self.configs), "seeds": self.seeds})
        self.state: Row = {"race": name, "spent_s": 0.0, "contests": {}}
        try:
            left = json.loads(self.file.read_bytes()) if self.file.exists() else {}
        except ValueError as error:
            why = f"{self.file} cannot be read ({error}); delete it, which starts the race anew"
            raise UsageError(f"--budget: {why}") from None
        if left.get("race") == name and not options.force:
            self.resume(left)
        else:
            self.begin(left)

    def resume(self, left: Row) -> None:
        """Take over what was decided; in a longer race who left for want of time may stay. After a
        kill the log knows of epochs that the clock's file does not."""
        for own in left["contests"].values() if left["budget_s"] < self.options.budget_s else ():
            short = [int(n) for n, rung in own["rungs"].items() if "no time" in str(rung)]
            own["rungs"] = {n: r for n, r in own["rungs"].items() if int(n) < min([LAST, *short])}
            own["ended"] = False
        left["spent_s"] += seconds_of(self.log.read("epoch")[left["epochs"] :]) / left["workers"]
        self.state = left

    def begin(self, left: Row) -> None:
        """Take away what is in the way: a grid's states; with --force all of a race before.
        Raises: UsageError where a configuration was tested already."""
        folder, finished, force = self.log.folder, self.log.finished("train"), self.options.force
        ends = {run: answers_file(folder, c, LAST) for run, c in self.configs.items()}
        known = sum(run in finished and not file.exists() for run, file in ends.items())
        if known and not force:
            why = f"{known} of {len(ends)} configurations are in {self.log.path}, tested, without "
            why += "what a race compares; give another --results-dir, or --force"
            raise UsageError(f"--budget: {why}")
        seeds = range(MOST_SEEDS if left else 1)
        runs = [self.with_seed(run, n) for run in self.configs for n in seeds]
        for config in () if self.options.dry_run else runs:
            for rung in rungs_of(config.epochs) if force else ():
                answers_file(folder, config, rung).unlink(missing_ok=True)
            if force or not answers_file(folder, config, 1).exists():
                state_file(folder, config).unlink(missing_ok=True)

    @property
    def spent_s(self) -> float:
        """The time that was computed, in all sessions."""
        return self.state["spent_s"] + time.monotonic() - self.started

    def save(self, *done: TrainConfig) -> None:
        with self.lock:  # jobs end at once, each in a thread of its own
            state = self.state | {"spent_s": self.spent_s, "epochs": len(self.log.read("epoch"))}
            write_atomically(self.file, json.dumps(state, indent=1).encode())

    def price(self) -> None:
        """Time a few steps of each candidate, and say how many are trained at once."""
        configs, options = list(self.configs.values()), self.options
        start_s = time.monotonic() - self.started
        if "timed_s" not in self.state:
            timed = estimate_ms(configs, options.data_dir).values()
            self.state["timed_s"] = [np.nan_to_num(ms / 1e3).tolist() for ms in timed]
            self.state["planned_s"] = self.spent_s
        timed_s = np.array(self.state["timed_s"])  # steps and validation of an epoch, and the test
        epoch_s = float(timed_s[:, :2].sum(1).mean())
        count = workers.count_workers(options, configs[0].device, len(configs), epoch_s)
        self.state |= {"workers": count, "budget_s": options.budget_s}
        # Where processes share the cores, each is at worst as much slower as there are of them.
        if configs[0].device == "cpu" and options.backend == "loky":
            timed_s *= count
        names = describe_all(list(map(as_dict, configs)))
        self.candidates = {
            run: Candidate(as_dict(c), train_s + val_s, test_s, start_s if count > 1 else 0.0, name)
            for (run, c), (train_s, val_s, test_s), name in zip(
                self.configs.items(), timed_s.tolist(), names, strict=True
            )
        }

    def plan(self) -> None:
        """Share the time out between the contests, and print it. Raises: UsageError where it is too
        short for an epoch of each configuration, and the longest training whole."""
        self.price()
        n, count, budget_s = len(self.configs), self.state["workers"], self.options.budget_s
        least_s = {}
        for contest, runs in self.contests.items():
            known = [self.candidates[run] for run in runs]
            rest_s = max(c.cost_s(LAST, 1) + c.start_s + c.test_s for c in known)
            least_s[contest] = makespan([c.cost_s(1, 0) for c in known], count) + rest_s
        needed_s = math.ceil((self.state["planned_s"] + sum(least_s.values())) / USED)
        if needed_s > budget_s and not self.state["contests"]:
            least = f"{needed_s}s" if needed_s < 120 else f"{math.ceil(needed_s / 60)}m"
            why = f"an epoch of each of {n} configurations, and then of each contest the longest "
            why += f"training whole, take about {least}; give at least that, or fewer of them"
            raise UsageError(f"--budget {self.options.budget}: {why}")
        whole_s = makespan([c.cost_s(LAST, 0) for c in self.candidates.values()], count)
        whole = f"by timed steps all of them whole would take {format_time(whole_s)}"
        print(f"race: {n} configurations in {self.options.budget}, {count} at once; {whole}")
        until_s, self.until_s = self.state["planned_s"], {}
        spare = (USED * budget_s - until_s) / sum(least_s.values())  # times the least
        for contest, runs in self.contests.items():
            self.until_s[contest] = until_s = until_s + spare * least_s[contest]
            where = split_name(self.candidates[runs[0]].config)
            rungs = ", ".join(map(str, rungs_of(max(self.configs[run].epochs for run in runs))))
            text = f"{len(runs)} configurations, until {format_time(until_s)}"
            print(f"  {where}: {text}, compared after epochs {rungs}", flush=True)

    def go_on(self, configs: Sequence[TrainConfig], epoch: int | None) -> None:
        """Train to an epoch, and pause there; where it is None to the end, and test."""
        log, tested = self.log, self.log.finished("train")

        def lacks(config: TrainConfig) -> bool:
            if epoch:
                return not answers_file(log.folder, config, epoch).exists()
            return train_id(config) not in tested or state_file(log.folder, config).exists()

        todo = [grids.Trajectory((config,)) for config in configs if lacks(config)]
        options = replace(self.options, budget=None, export=(), force=True, pause_after=epoch)
        here = partial(self.train, todo, log, options, ALONE, self.save)
        jobs, count = [t.job for t in todo], self.state["workers"]
        if todo:
            self.failures += workers.share_out("train", jobs, log, options, count, self.save, here)
            self.save()
        epochs = grouped(log.read("epoch"), lambda row: row["run_id"])
        for run, c in self.candidates.items():
            if own := epochs.get(run):
                c.accs = {row["metrics"]["epoch"]: row["metrics"]["val_acc"] for row in own}
                estimated_s, c.epoch_s = c.epoch_s, seconds_of(own) / len(own)
                c.test_s *= c.epoch_s / (estimated_s or 1.0)

    def answers(self, config: TrainConfig, epoch: int = LAST) -> np.ndarray | None:
        """Which validation images it answered rightly after an epoch, if it got so far."""
        file = answers_file(self.log.folder, config, epoch)
        if not file.exists():
            return None
        with np.load(file, allow_pickle=False) as saved:
            return saved["pred"] == saved["label"]

    def eliminate(self, runs: Sequence[str], own: Row, until_s: float) -> dict[str, Candidate]:
        """Train from rung to rung, without those that leave. Returns: the candidates that got to
        their end; none where the time is too short for any."""
        count, racing = self.state["workers"], {run: self.candidates[run] for run in runs}
        rungs = rungs_of(max(c.epochs for c in racing.values()))
        for rung in rungs:
            if not racing or (len(racing) == 1 and rung < rungs[-1]):
                continue
            if new := str(rung) not in own["rungs"]:
                needed_s = rules.time_to_end(list(racing.values()), count)
                if rung > 1 and self.spent_s + needed_s > until_s:
                    return {}
                self.go_on([self.configs[run] for run in racing], rung)
            for run, c in racing.items():
                if (right := self.answers(self.configs[run], rung)) is not None:
                    c.right[min(rung, c.epochs)] = right
            if new:
                at_s = self.spent_s
                left = rules.who_leaves(racing, rung, until_s - at_s, len(rungs), count)
                own["rungs"][str(rung)] = {"left": left, "at_s": at_s}
                self.save()
            show("rung", rung, racing, own["rungs"][str(rung)])
            left = own["rungs"][str(rung)]["left"]
            racing = {run: c for run, c in racing.items() if run not in left}
        return racing

    def train_seeds(self, finalists: dict[str, Candidate], own: Row, until_s: float):
        """Use the time left for seeds of the finalists. Returns: the runs of each, best first."""
        order = sorted(finalists, key=lambda run: -finalists[run].acc)
        while True:
            counts = {run: 1 + own["seeds"].count(run) for run in order}
            runs = {run: [self.with_seed(run, n) for n in range(counts[run])] for run in order}
            self.go_on([config for run in order for config in runs[run]], LAST)
            if own["ended"] or not finalists:
                return {run: [c for c in runs[run] if self.answers(c) is not None] for run in order}
            known = {finalists[run]: counts[run] for run in order}
            batch = rules.next_seeds(known, until_s - self.spent_s, self.state["workers"])
            own["seeds"] += [run for c in batch for run in order if finalists[run] is c]
            own["ended"] = not batch
            self.save()

    def with_seed(self, run: str, number: int) -> TrainConfig:
        """A candidate with another seed: of those asked for, then those that follow the last."""
        seeds = [*self.seeds, *range(max(self.seeds) + 1, max(self.seeds) + MOST_SEEDS)]
        return replace(self.configs[run], seed=seeds[number])

    def decide(self, contest: str) -> list[TrainConfig]:
        """Run one contest to its answer, and print it. Returns: the runs of what was chosen."""
        runs, new = self.contests[contest], {"rungs": {}, "seeds": [], "ended": False}
        own, until_s = self.state["contests"].setdefault(contest, new), self.until_s[contest]
        trained = self.train_seeds(self.eliminate(runs, own, until_s), own, until_s)
        validated = {run: list(map(self.validated, trained[run])) for run in trained}
        known = {run: self.candidates[run] for run in runs}
        standings = rules.standings(known, own["rungs"], validated)
        chosen = trained[standings[0]["run_id"]] if trained else []
        self.go_on(chosen, None)
        done, first = self.log.finished("train"), self.configs[runs[0]]
        tested = [done[run] for run in map(train_id, chosen) if run in done]
        names = {name: getattr(first, name) for name in ("dataset", "split", "split_seed")}
        names |= {"budget_s": self.options.budget_s, "race": self.state["race"]}
        facts = {"where": split_name(as_dict(first)), "spent_s": self.spent_s}
        facts["runs"] = [*runs, *(train_id(c) for run in trained for c in trained[run][1:])]
        facts |= rules.conclude(standings, tested, self.state["workers"])
        if run_id("race", names) not in self.log.finished("race") or self.options.force:
            self.log.append("race", names, facts, device=first.device)
        show("race", [names | facts])
        return chosen

    def validated(self, config: TrainConfig) -> Row:
        """A finished training as a row whose test images are the validation images."""
        row = {"kind": "train", "run_id": train_id(config), "config": as_dict(config)}
        right = self.answers(config)
        return row | {"right": right, "metrics": {"val_acc": float(right.mean())}}
