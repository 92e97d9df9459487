"""From an interval and a rule to a verdict, to what it depends on, and to how much more data an
open one would take."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from common.judge.rows import Row, grouped
from common.judge.stats import Estimate, Interval

MARGIN = 0.001  # a smaller difference of accuracies is none that a choice should rest on
SEEDS = 3  # of every setting: a conclusion about accuracy rests on no fewer
POWER = 0.8
MOST_SEEDS = 100  # more is no advice
VERDICTS = ("supported", "contradicted", "mixed", "undecided")

Rule = Interval  # a claim holds where low < effect < high, and fails elsewhere
BEATS: Rule = (MARGIN, math.inf)


def judge(rule: Rule, interval: Interval) -> str:
    """The verdict of an interval: that of both of its ends, or none."""
    low, high = interval
    if rule[0] < low and high < rule[1]:
        return "supported"
    return "contradicted" if high < rule[0] or low > rule[1] else "undecided"


def leads(interval: Interval) -> int:
    """Which side of a difference surely leads by what counts: 1 the first, -1 the second, or 0."""
    low, high = interval
    return (judge(BEATS, (low, high)) == "supported") - (judge(BEATS, (-high, -low)) == "supported")


def dependence(rule: Rule, levels: Iterable[Row]) -> list[tuple[Row, Row, bool]]:
    """Of each factor whose levels disagree on which side of the rule's edge (of a range: of zero)
    the effect lies the highest and the lowest, and whether they surely do: their intervals too, on
    enough seeds. A level is an effect with its `factor` and the `level` in words."""
    edge = rule[0] if math.isinf(rule[1]) else 0.0
    apart = []
    for same in grouped(levels, lambda level: level["factor"]).values():
        low, high = (pick(same, key=lambda level: level["difference"]) for pick in (min, max))
        if low["difference"] < edge < high["difference"]:
            surely = min(low["seeds"], high["seeds"]) >= SEEDS
            apart.append((high, low, surely and low["high"] < edge < high["low"]))
    return apart


def dependence_text(apart: tuple[Row, Row, bool]) -> str:
    """What an effect depends on, with its numbers."""
    best, worst, surely = apart
    return (
        f"depends on {best['factor']}: {100 * best['difference']:+.2f} points at {best['level']}, "
        f"{100 * worst['difference']:+.2f} at {worst['level']}"
        f"{'' if surely else ', which may be noise'}"
    )


def more_data(rule: Rule, estimate: Estimate, seeds: int, images: int) -> str:
    """How many seeds of every setting, or images, would decide with a power of 80 %, were the value
    and the noises as measured."""
    value, (low, high) = estimate.value, rule
    if value in rule:
        return "at the criterion's edge"
    ends = (-math.inf, low) if value < low else (high, math.inf) if value > high else rule
    for n in range(seeds + 1, MOST_SEEDS + 1):
        if estimate.at(n).power(*ends) >= POWER:
            return f"too few seeds: about {n} of each setting would decide, in place of {seeds}"
    for factor in 1.02 ** np.arange(350):
        image = tuple(value + (end - value) / math.sqrt(factor) for end in estimate.image)
        if Estimate(value, image).power(*ends) >= POWER:
            if factor == 1:
                return f"too near the criterion's edge: more than {MOST_SEEDS} seeds would decide"
            size = 10 ** max(0, len(str(int(images * factor))) - 2)  # two digits are meant
            wanted = math.ceil(images * factor / size) * size
            return (
                f"no number of seeds would decide on {images:,} images; many seeds on about "
                f"{wanted:,} would"
            )
    return "too near the criterion's edge to decide"
