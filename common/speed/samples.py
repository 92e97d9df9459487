"""What times come to: a median, its noise, a ratio to others. Needs no torch."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from common.base.cli import as_dict
from common.base.config import REFUSED
from common.base.log import Row, run_id


@dataclass(eq=False)
class Side:
    """One of the sides that take turns, round by round: its times, and what ended them, if so."""

    config: Any
    samples_ms: list[float] = field(default_factory=list)
    rounds_ms: list[float] = field(default_factory=list)  # each round's median
    peak_bytes: int | None = 0
    joules: float = 0.0  # of so many images
    images_metered: int = 0
    noise: float | None = None
    error: str | None = None

    def add(self, round_ms: list[float], joules: float | None, images: int) -> None:
        """The times of a round, and the energy of its images, None where no meter can be read."""
        self.samples_ms += round_ms
        self.rounds_ms.append(statistics.median(round_ms))
        if joules:
            self.joules += joules
            self.images_metered += images

    def judge(self) -> None:
        """Sum the times up; those that are too noisy are refused."""
        if self.error:
            return
        low, median, high = np.percentile(self.samples_ms, [25, 50, 75]).tolist()
        self.summary = {"median": median, "iqr": high - low, "n": len(self.samples_ms)}
        self.noise = (high - low) / median
        if self.noise > REFUSED and not self.config.accept_noise:
            share = f"IQR {self.noise:.0%} of the median {median:.3g} ms (limit {REFUSED:.0%})"
            way_out = "give the machine nothing else to do, or --accept-noise"
            self.error = f"too noisy: {share}; {way_out}"

    def over(self, base: "Side | None", kind: str, launches: int = 1) -> Row:
        """The ratio_interval over another side, nulls where either has an error; and which it is,
        in rows of a kind."""
        known = base and not self.error and not base.error
        pair = ratio_interval(base.rounds_ms, self.rounds_ms, launches) if known else (None, None)
        over = dict(zip(("ratio", "interval"), pair, strict=True))
        over["baseline"] = base and run_id(kind, as_dict(base.config))
        return over | {"baseline_label": base and base.config.describe()}

    def measured(self, group: str, unit: str) -> Row:
        """What rows of either kind hold; those of a group were measured in the same rounds."""
        return {
            "noise": self.noise,
            "peak_memory_bytes": self.peak_bytes or None,
            "energy_per_image_j": self.joules / self.images_metered if self.joules else None,
            "rounds": {"group": group, f"{unit}_ms": self.rounds_ms},
        }


def ratio_interval(
    baseline_ms: Sequence[float], own_ms: Sequence[float], launches: int = 1
) -> tuple[float, tuple[float, float] | None]:
    """How many times as fast, from interleaved blocks, of which each side has a time: the geometric
    mean of their ratios and its 95 % interval, None for a single block: Student's over the
    logarithms. A drift that both sides met widens nothing. Where blocks come from several launches,
    the interval is over the launches' means, for processes differ by more than their blocks do.
    A bootstrap of two to ten blocks would hold the truth in 51 to 89 % of cases (simulated).
    Source: Kalibera and Jones, "Rigorous Benchmarking in Reasonable Time", 2013."""
    logs = np.log(baseline_ms) - np.log(own_ms)
    ratio = float(np.exp(logs.mean()))
    logs = logs.reshape(launches, -1).mean(1) if launches > 1 else logs
    if len(logs) < 2:
        return ratio, None
    half = stats.t.ppf(0.975, len(logs) - 1) * np.std(logs, ddof=1) / np.sqrt(len(logs))
    return ratio, tuple(np.exp(logs.mean() + np.array([-half, half])).tolist())
