"""From an interval and a rule to a verdict, and to how much more data an open one would take."""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.measured import Row, join_notes
from common.stats import Interval, needed_factor

MARGIN = 0.001  # a smaller difference of accuracies is none that a choice should rest on
UNITS = {"points": 100.0, "times": 1.0}  # a unit's size in that of the effects
MOST = 1000  # times the data: beyond it, more of it is no advice


@dataclass(frozen=True)
class Rule:
    """A claim holds where low < effect < high; it fails below `fails_below` or above
    `fails_above`, which overlap its range where a difference is too small to matter."""

    low: float
    high: float
    fails_below: float
    fails_above: float


def between(low: float, high: float) -> Rule:
    """The effect lies between two values."""
    return Rule(low, high, low, high)


def at_least(value: float) -> Rule:
    """The effect is not below a value."""
    return between(value, math.inf)


def at_most(value: float) -> Rule:
    """The effect is not above a value."""
    return between(-math.inf, value)


BEATS = Rule(0.0, math.inf, MARGIN, math.inf)


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
    if high < rule.fails_below or low > rule.fails_above:
        return "contradicted"
    return "undecided"


def decide(
    subject: str, rule: Rule, effect: float, interval: Interval, *, unit: str, basis: str,
    runs: tuple[str, ...], published: float | None = None, amount: tuple[int, str] | None = None,
    note: str | None = None,
) -> Part:  # fmt: skip
    """A measured part. `amount` is the data behind the interval, and what it is counted in."""
    verdict = judge(rule, interval)
    wanted = more_data(rule, effect, interval, amount) if verdict == "undecided" else ""
    return Part(
        subject, verdict, unit, published, effect, interval, basis, runs,
        join_notes(wanted, note or ""),
    )  # fmt: skip


def more_data(rule: Rule, effect: float, interval: Interval, amount: tuple[int, str] | None) -> str:
    """How much data would decide, were the effect as measured."""
    factors = []
    if rule.low < effect < rule.high:
        edges = [edge for edge in (rule.low, rule.high) if math.isfinite(edge)]
        factors.append(max(needed_factor(effect, interval, edge) for edge in edges))
    if effect < rule.fails_below:
        factors.append(needed_factor(effect, interval, rule.fails_below))
    if effect > rule.fails_above:
        factors.append(needed_factor(effect, interval, rule.fails_above))
    factor = min(factors, default=math.inf)
    if amount is None or factor > MOST:
        return "too little data" if amount is None else "too near the criterion's edge to decide"
    have, what = amount
    wanted = max(have + 1, math.ceil(have * factor))
    size = 10 ** max(0, len(str(wanted)) - 2)  # two digits are as many as are meant
    wanted = -(-wanted // size) * size
    return f"too little data: about {wanted:,} {what} would decide, in place of {have:,}"


def unmeasured(subject: str, published: float | None, unit: str, command: str) -> Part:
    """A part on which no row bears."""
    return Part(
        subject, "undecided", unit, published, None, None, "", (),
        f"not measured: {command} measures it",
    )  # fmt: skip
