"""From an interval and a rule to a verdict, what it depends on, and what an open one would take."""

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
    (low, high), (above, below) = interval, rule
    if above < low and high < below:
        return "supported"
    return "contradicted" if high < above or low > below else "undecided"


def leads(interval: Interval) -> int:
    """Which side of a difference surely leads by what counts: 1 the first, -1 the second, or 0."""
    low, high = interval
    return (low > MARGIN) - (-high > MARGIN)


def dependence(rule: Rule, levels: Iterable[Row]) -> dict[str, bool]:
    """The factors whose levels disagree on which side of the rule's edge (of a range: of zero) the
    effect lies, with the highest and the lowest in words; and whether they surely disagree: their
    intervals too, on enough seeds. A level is an effect with its `factor` and `level` in words."""
    edge, apart = rule[0] if math.isinf(rule[1]) else 0.0, {}
    for factor, same in grouped(levels, lambda level: level["factor"]).items():
        low, high = (pick(same, key=lambda level: level["difference"]) for pick in (min, max))
        if low["difference"] < edge < high["difference"]:
            enough = min(low["seeds"], high["seeds"]) >= SEEDS
            surely = enough and low["high"] < edge < high["low"]
            best, worst = (100 * level["difference"] for level in (high, low))
            text = f"depends on {factor}: {best:+.2f} points at {high['level']}, "
            text += f"{worst:+.2f} at {low['level']}{'' if surely else ', which may be noise'}"
            apart[text] = surely
    return apart


def more_data(rule: Rule, estimate: Estimate, seeds: int, images: int) -> str:
    """How many seeds of every setting, or images, would decide with a power of 80 %."""
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
            wanted = f"many seeds on about {math.ceil(images * factor / size) * size:,} would"
            return f"no number of seeds would decide on {images:,} images; {wanted}"
    return "too near the criterion's edge to decide"
