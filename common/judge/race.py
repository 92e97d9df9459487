"""The rules of a race: which configurations stop after a rung, and what its answer is.

Every candidate is trained for 1 epoch, then 2, 4, 8, ... up to its own number: the rungs. After
each, those leave that validation images tell apart from the leader and that are not expected to
make up for it, and those for which there is no time. No clock, no file and no test image here."""

import heapq
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from common.base.config import TrainConfig
from common.judge.compare import ALPHA, compare_with_chosen, split_of
from common.judge.rows import Group, Row, accuracy_record, grouped, latest_ok
from common.judge.stats import holm, sign_flip_test
from common.judge.tables import Table, make_table

MOST_SEEDS = 10  # of a finalist: more would hardly narrow an interval


@dataclass(eq=False)
class Candidate:
    """A configuration in a race: which validation images it answered rightly by rung, and its
    accuracy by epoch. Units: seconds of an epoch with its validation, of the test at the end, and
    of whatever else it takes to begin a training or to go on. Shapes: right (N,) bool."""

    config: TrainConfig
    epoch_s: float = 0.0
    test_s: float = 0.0
    start_s: float = 0.0
    run: str = ""  # its id
    name: str = ""
    right: dict[int, np.ndarray] = field(default_factory=dict)
    accs: dict[int, float] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        return self.config.epochs

    @property
    def done(self) -> int:
        return max(self.right, default=0)

    @property
    def acc(self) -> float:
        return float(self.right[self.done].mean())

    @property
    def so_far(self) -> list[float]:
        """Its accuracy after each epoch that it has raced."""
        return [self.accs[epoch] for epoch in sorted(self.accs) if epoch <= self.done]

    def cost_s(self, until: int, since: int) -> float:
        """Of training on from one epoch to another, or to its last if that comes first."""
        more = min(until, self.epochs) - since
        return self.start_s + more * self.epoch_s if more > 0 else 0.0

    def reach(self, luck: float) -> float:
        """What its accuracy may yet become: the best so far, what an epoch's `luck` may hide of it,
        and with each doubling of its epochs what the best doubling gave. After one epoch nothing is
        known."""
        if self.done == self.epochs:
            return self.acc
        accs = [(rung, self.right[rung].mean()) for rung in sorted(self.right)]
        gains = [(b - a) / math.log2(n / m) for (m, a), (n, b) in itertools.pairwise(accs)]
        gain = max(0.0, *gains) if gains else math.inf
        return max(self.so_far) + luck + gain * math.log2(self.epochs / self.done)


def rungs_of(epochs: int) -> list[int]:
    return [2**k for k in range(epochs.bit_length()) if 2**k < epochs] + [epochs]


def luck_of(racing: Iterable[Candidate]) -> float:
    """How far an epoch may be off: the deepest fall below an earlier epoch of the same training."""
    falls = (max(c.so_far[: n + 1]) - acc for c in racing for n, acc in enumerate(c.so_far))
    return max(falls, default=0.0)


def makespan(seconds: Iterable[float], workers: int) -> float:
    """How long jobs take that so many workers take on in this order."""
    free = [0.0] * workers
    for job_s in seconds:
        heapq.heapreplace(free, free[0] + job_s)
    return max(free)


def ranked(racing: Iterable[Candidate]) -> list[Candidate]:
    """By accuracy, but in turn from each schedule and length: early epochs tell what is good among
    those of one, not among those of several."""

    def kind(c: Candidate) -> int:
        return 0 if c.config.schedule == "constant" else c.epochs

    order = sorted(racing, key=lambda c: (-c.acc, c.epoch_s * c.epochs))
    return [c for turn in itertools.zip_longest(*grouped(order, kind).values()) for c in turn if c]


def time_to_end(order: Sequence[Candidate], workers: int) -> float:
    """How long it takes until one is trained whole and tested, if after each rung half leave."""
    total_s, since = 0.0, max(c.done for c in order)
    for rung in rungs_of(max(c.epochs for c in order)):
        if rung > since:
            total_s += makespan([c.cost_s(rung, since) for c in order], workers)
            order, since = order[: -(-len(order) // 2)], rung
    return total_s + max(c.start_s + c.test_s for c in order)


def who_leaves(
    racing: Sequence[Candidate], rung: int, left_s: float, looks: int, workers: int = 1
) -> dict[Candidate, Row]:
    """Which of those that raced to a rung leave, why, and how far they trail the leader; `looks` is
    the number of all rungs.

    Told apart: by the exact paired test, at 5 % over all pairs (Holm), for the leader is known only
    when all are seen, and over all looks. No time: from the last up, until the rest can be paid
    for. One stays, unless all failed."""
    known = [c for c in racing if min(rung, c.epochs) in c.right]
    left = {c: {"why": "failed", "trails": None} for c in racing if c not in known}
    order = sorted(known, key=lambda c: -c.acc)
    right, luck = {c: c.right[c.done].astype(int) for c in known}, luck_of(known)
    pairs = itertools.combinations(order, 2)  # the first ones are the leader's
    p_values = holm([sign_flip_test(right[one] - right[other]) for one, other in pairs])
    told = zip(order[1:], p_values, strict=False)
    told = [c for c, p in told if p <= ALPHA / looks and c.reach(luck) < order[0].acc]
    open = ranked(c for c in order if c not in told)
    staying = [c for c in open if time_to_end([c], workers) <= left_s] or open[:1]
    while len(staying) > 1 and time_to_end(staying, workers) > left_s:
        staying.pop()
    for c in (c for c in order if c not in staying):
        why = "told apart" if c in told else "no time"
        left[c] = {"why": why, "trails": order[0].acc - c.acc}
    return {c: {"rung": rung, "name": c.name} | end for c, end in left.items()}


def next_seeds(counts: Mapping[Candidate, int], left_s: float, workers: int) -> list[Candidate]:
    """Of which finalists, in turn, another seed is trained now: as many as fit into the time, with
    the test of every seed of whichever is chosen. `counts` of seeds has the best first."""
    counts, batch = dict(counts), []
    for _ in range(workers):
        c = min(counts, key=counts.get)
        counts[c] += 1
        jobs_s = [b.cost_s(b.epochs, 0) for b in (*batch, c)]
        tests_s = counts[c] * max(c.start_s + c.test_s for c in counts)
        if counts[c] > MOST_SEEDS or makespan(jobs_s, workers) + tests_s > left_s:
            break
        batch.append(c)
    return batch


def standings(
    racing: Sequence[Candidate], rungs: Mapping[str, Row], seeds: Mapping[Candidate, list[Row]]
) -> list[Row]:
    """How each candidate ended, the chosen one first: after which rung it left and why, or, of a
    finalist, whether it is tied with the chosen one on validation images, over all its seeds."""
    groups = {Group(own[0]["config"], tuple(own)): c for c, own in seeds.items() if own}
    ends = {groups[r["group"]]: r for r in (compare_with_chosen(list(groups)) if groups else [])}
    for end in ends.values():  # chosen by these very images: any pair might have been it
        if end["tied"] is False:
            end["tied"] = end["p"] * math.comb(len(ends), 2) > ALPHA
    records = []
    for c in racing:
        places = [(own["at_s"], min(int(rung), c.epochs)) for rung, own in rungs.items()]
        points = [(at_s, n, float(c.right[n].mean())) for at_s, n in places if n in c.right]
        record = {"run_id": c.run, "name": c.name, "cost_s": c.cost_s(c.epochs, 0)}
        record |= {"points": points, "val_acc": points[-1][2] if points else None}
        for own in rungs.values():
            record |= own["left"].get(c.run, {})
        shown = ("val_acc", "tied", "difference", "low", "high", "seeds")
        records.append(record | {key: ends[c].get(key) for key in shown if c in ends})
    records.sort(key=lambda r: (r.get("rung", math.inf), r["val_acc"] or 0.0), reverse=True)
    return sorted(records, key=lambda r: r.get("tied") != "chosen")


def conclude(standings: Sequence[Row], tested: Sequence[Row], workers: int) -> Row:
    """The answer of a race, and what another hour would buy: how many that there was no time for,
    and then how many more seeds of each finalist."""
    left_s, served, more = 3600.0 * workers, 0, 0
    waiting = sorted(r["cost_s"] for r in standings if r.get("why") == "no time")
    for cost_s in waiting:
        served += cost_s <= left_s
        left_s -= cost_s
    if finalists := [r for r in standings if "tied" in r]:
        most = min(MOST_SEEDS - r["seeds"] for r in finalists)
        more = min(most, int(max(0.0, left_s) // sum(r["cost_s"] for r in finalists)))
    answer = {"standings": standings, "waiting": len(waiting), "served": served, "more": more}
    return answer | (accuracy_record(Group(tested[0]["config"], tuple(tested))) if tested else {})


def race_records(log: Iterable[Row]) -> list[Row]:
    """The races in the log; of one that went on with more time its last answer."""
    last = {}
    for row in latest_ok(log, "race"):
        last[split_of(row), row["config"]["race"]] = row["config"] | row["metrics"]
    return list(last.values())


def race_tables(races: Iterable[Row]) -> list[Table]:
    """How each configuration of each race ended, where there was one."""
    records = [{"where": race["where"]} | record for race in races for record in race["standings"]]
    return [make_table("race", records)] if records else []
