"""From an interval and a rule to a verdict, what it depends on, and what an open one would take."""

import bisect
import math
from collections.abc import Mapping, Sequence

import numpy as np

from common.judge.rows import Row, join_notes
from common.judge.stats import Estimate, Interval

MARGIN = 0.001  # a smaller difference of accuracies is none that a choice should rest on
SEEDS = 3  # of every setting: a conclusion about accuracy rests on no fewer
POWER = 0.8
MOST_SEEDS = 100  # more is no advice
VERDICTS = ("supported", "contradicted", "mixed", "inconclusive", "not measured")

Rule = Interval  # a claim holds where low < effect < high, and fails elsewhere
BEATS: Rule = (MARGIN, math.inf)


def judge(rule: Rule, interval: Interval) -> str:
    """The verdict of an interval: that of both of its ends, or none."""
    (low, high), (above, below) = interval, rule
    if above < low and high < below:
        return "supported"
    return "contradicted" if high < above or low > below else "inconclusive"


def standing(rule: Rule, value: float, interval: Interval) -> str:
    """How an effect stands to a rule, in words; it leans to where its interval's middle half is."""
    known = {"supported": "criterion met", "contradicted": "criterion missed"}
    if (decided := judge(rule, interval)) in known:
        return known[decided]
    leaning = judge(rule, tuple((value + end) / 2 for end in interval))
    words = f"leans to {leaning}" if leaning in known else ""
    if math.isinf(rule[0]) or math.isinf(rule[1]) or rule[0] < value < rule[1]:
        return words
    side = "below" if value <= rule[0] else "above"
    return join_notes(words, f"the estimate is {side} the criterion's range")


def own_miss(rule: Rule, figure: float | None) -> str:
    """That the published figure is not what the claim says, where it is not."""
    missed = figure is not None and judge(rule, (figure, figure)) == "contradicted"
    return "the study's own figure misses its criterion" if missed else ""


def leads(interval: Interval) -> int:
    """Which side of a difference surely leads by what counts: 1 the first, -1 the second, or 0."""
    low, high = interval
    return (low > MARGIN) - (-high > MARGIN)


def dependence(rule: Rule, levels: Mapping[str, Sequence[Row]], other="") -> dict[str, bool]:
    """The levels between which the effect crosses the rule's edge (of a range: zero), in words, and
    whether surely so: by the intervals too, on enough seeds."""

    def words(effect: Row, other: str, unit: str) -> str:
        value, known = effect["difference"], {1: ("more", "than"), -1: ("less", "than")}
        much, to = known.get(leads((value, value)), ("about as", "as"))
        beside = f" {to} {other}" if other else ""
        return f"{much} accurate{beside} {effect['level']} ({100 * value:+.2f}{unit})"

    edge, apart = rule[0] if math.isinf(rule[1]) else 0.0, {}
    for effects in levels.values():
        low, *_, high = sorted(effects, key=lambda effect: effect["difference"])
        if low["difference"] < edge < high["difference"]:
            enough = min(low["seeds"], high["seeds"]) >= SEEDS
            surely = enough and low["high"] < edge < high["low"]
            text = f"{words(high, other, ' points')} and {words(low, '', '')}"
            apart[text if surely else f"{text}, which may be noise"] = surely
    return apart


def more_data(rule: Rule, estimate: Estimate, seeds: int, images: int) -> str:
    """How many seeds of every setting, or images, would decide with a power of 80 %."""
    value, edges = estimate.value, (-math.inf, *rule, math.inf)
    if value in rule:
        return "at the criterion's edge"
    side = bisect.bisect(edges, value)
    ends = edges[side - 1 : side + 1]
    for n in range(seeds + 1, MOST_SEEDS + 1):
        if estimate.at(n).power(*ends) >= POWER:
            return f"about {n} seeds of each setting would decide, in place of {seeds}"
    for factor in 1.02 ** np.arange(350):
        image = tuple(value + (end - value) / math.sqrt(factor) for end in estimate.image)
        if Estimate(value, image).power(*ends) >= POWER:
            if factor == 1:
                return f"too near the criterion's edge: more than {MOST_SEEDS} seeds would decide"
            size = 10 ** max(0, len(str(int(images * factor))) - 2)  # two digits are meant
            more = f"about {math.ceil(images * factor / size) * size:,} images would be needed"
            return f"cannot be decided on this data set: {more}, in place of {images:,}"
    return "too near the criterion's edge to decide"
