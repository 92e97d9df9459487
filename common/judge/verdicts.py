"""From an interval and a rule to a verdict, and to how much more data an open one would take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from common.judge.rows import Row, join_notes
from common.judge.stats import Estimate, Interval

MARGIN = 0.001  # a smaller difference of accuracies is none that a choice should rest on
SEEDS = 3  # of every setting: a conclusion about accuracy rests on no fewer
POWER = 0.8
UNITS = {"points": 100.0, "times": 1.0}  # a unit's size in that of the effects
MOST_SEEDS = 100  # more is no advice
VERDICTS = ("supported", "contradicted", "mixed", "undecided")


@dataclass(frozen=True)
class Rule:
    """A claim holds where low < effect < high, and fails elsewhere."""

    low: float
    high: float


def between(low: float, high: float) -> Rule:
    """The effect lies between two values."""
    return Rule(low, high)


def at_least(value: float) -> Rule:
    """The effect is not below a value."""
    return Rule(value, math.inf)


def at_most(value: float) -> Rule:
    """The effect is not above a value."""
    return Rule(-math.inf, value)


BEATS = at_least(MARGIN)


@dataclass(frozen=True)
class Part:
    """What the rows say to one part of a claim.

    Units: fractions of accuracy for the unit "points", ratios for "times".
    """

    subject: str
    verdict: str
    unit: str
    published: float | None
    effect: float | None
    interval: Interval | None
    basis: str
    runs: tuple[str, ...]
    note: str | None

    def record(self) -> Row:
        """As columns, in the part's unit."""
        size = UNITS[self.unit]
        low, high = self.interval or (None, None)
        named = ", ".join(self.runs[:3])
        more = f" and {len(self.runs) - 3} more" if len(self.runs) > 3 else ""
        values = {"published": self.published, "effect": self.effect, "low": low, "high": high}
        return {k: None if v is None else v * size for k, v in values.items()} | {
            "subject": self.subject, "verdict": self.verdict, "unit": self.unit,
            "basis": self.basis or None, "runs": named + more or None, "note": self.note,
        }  # fmt: skip


def judge(rule: Rule, interval: Interval) -> str:
    """The verdict of an interval."""
    low, high = interval
    if rule.low < low and high < rule.high:
        return "supported"
    if high < rule.low or low > rule.high:
        return "contradicted"
    return "undecided"


def leads(interval: Interval) -> int:
    """Which side of a difference surely leads by what counts: 1 the first, -1 the second, or 0."""
    low, high = interval
    ahead, behind = (judge(BEATS, ends) == "supported" for ends in ((low, high), (-high, -low)))
    return ahead - behind


def decide_ratio(
    subject: str, rule: Rule, effect: float, interval: Interval, *, basis: str,
    runs: tuple[str, ...], published: float | None = None, note: str | None = None,
) -> Part:  # fmt: skip
    """A measured part on times."""
    verdict = judge(rule, interval)
    more = "too few timed steps to decide" if verdict == "undecided" else ""
    return Part(subject, verdict, "times", published, effect, interval, basis, runs,
                join_notes(more, note or ""))  # fmt: skip


@dataclass(frozen=True)
class Level:
    """What an effect is at one level of another factor."""

    factor: str
    level: str
    effect: float
    interval: Interval
    seeds: int


def decide_accuracy(
    subject: str, rule: Rule, estimate: Estimate, *, seeds: int, images: int, command: str,
    basis: str, runs: tuple[str, ...], published: float | None = None, note: str | None = None,
    levels: Sequence[Level] = (),
) -> Part:  # fmt: skip
    """A measured part on accuracies, of settings of at least so many seeds, tested on so many
    images; `levels` tells what else the effect may depend on, `command` measures more of it.

    Mixed: the claim surely holds at one level of another factor and surely fails at another. Where
    only the estimates say so it is undecided.
    """
    interval = estimate.interval()
    verdict, why = judge(rule, interval), ""
    apart = dependence(rule, levels)
    if verdict == "contradicted":
        apart = [told for told in apart if told[-1]]  # what may be noise excuses no claim
    if seeds < SEEDS:
        verdict, why = "undecided", f"three seeds: {with_seeds(command)}"
    elif verdict == "undecided":
        why = more_data(rule, estimate, seeds, images)
    elif apart:
        verdict = "mixed" if any(surely for *_, surely in apart) else "undecided"
    leaning = judge(rule, (estimate.value, estimate.value))
    leans = f"leans to {leaning}" if verdict == "undecided" != leaning else ""
    return Part(subject, verdict, "points", published, estimate.value, interval, basis, runs,
                join_notes(leans, why, *map(dependence_text, apart), note or ""))  # fmt: skip


def dependence_text(apart: tuple[Level, Level, bool]) -> str:
    """What an effect depends on, with its numbers."""
    best, worst, surely = apart
    return (
        f"depends on {best.factor}: {100 * best.effect:+.2f} points at {best.level}, "
        f"{100 * worst.effect:+.2f} at {worst.level}{'' if surely else ', which may be noise'}"
    )


def with_seeds(command: str) -> str:
    """The command that measures three seeds of what it measures."""
    flag = f"--seed {' '.join(map(str, range(SEEDS)))}"
    return f"{command} ARGS='{flag}'" if command.startswith("make ") else f"{command} {flag}"


def dependence(rule: Rule, levels: Iterable[Level]) -> list[tuple[Level, Level, bool]]:
    """Of each factor whose levels disagree on which side of the rule's edge (of a range: of zero)
    the effect lies the highest and the lowest, and whether they surely do: their intervals too, on
    enough seeds."""
    edge = rule.low if math.isinf(rule.high) else 0.0
    factors: dict[str, list[Level]] = {}
    for level in levels:
        factors.setdefault(level.factor, []).append(level)
    found = []
    for same in factors.values():
        low, high = (pick(same, key=lambda level: level.effect) for pick in (min, max))
        if low.effect < edge < high.effect:
            surely = min(low.seeds, high.seeds) >= SEEDS
            found.append((high, low, surely and low.interval[1] < edge < high.interval[0]))
    return found


def more_data(rule: Rule, estimate: Estimate, seeds: int, images: int) -> str:
    """How many seeds of every setting, or images, would decide with a power of 80 %, were the value
    and the noises as measured."""
    value = estimate.value
    if value in (rule.low, rule.high):
        return "at the criterion's edge"
    ends = (rule.low, rule.high) if rule.low < value < rule.high else (
        (-math.inf, rule.low) if value < rule.low else (rule.high, math.inf)
    )  # fmt: skip
    for n in range(seeds + 1, MOST_SEEDS + 1):
        if estimate.at(n).power(*ends) >= POWER:
            return f"too few seeds: about {n} of each setting would decide, in place of {seeds}"
    for factor in 1.02 ** np.arange(350):
        image = tuple(value + (end - value) / math.sqrt(factor) for end in estimate.image)
        if Estimate(value, image).power(*ends) >= POWER:
            size = 10 ** max(0, len(str(int(images * factor))) - 2)  # two digits are meant
            wanted = math.ceil(images * factor / size) * size
            if factor == 1:
                return f"too near the criterion's edge: more than {MOST_SEEDS} seeds would decide"
            return (
                f"no number of seeds would decide on {images:,} images; many seeds on about "
                f"{wanted:,} would"
            )
    return "too near the criterion's edge to decide"


def unmeasured(subject: str, published: float | None, unit: str, command: str) -> Part:
    """A part on which no row bears."""
    return Part(
        subject, "undecided", unit, published, None, None, "", (),
        f"not measured: {command} measures it",
    )  # fmt: skip
