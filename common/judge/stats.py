"""How far an accuracy, a difference or a ratio can be trusted, and what that says to a rule.

Paired statistics take the sum over matched pairs of (first is right) - (second is right) for each
test image, so that an image counts once, however many pairs meet it."""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, chi2, norm, t

Interval = tuple[float, float]
Count = tuple[int, int]  # of images: those that are right, and all
Timing = tuple[float, float, int]  # median, interquartile range, samples

Rule = Interval  # a claim holds where low < effect < high, and fails elsewhere

RESAMPLES = 10_000
MOST_SUMS = 400  # that a bootstrap tells apart
MARGIN = 0.001  # a smaller difference of accuracies is none that a choice should rest on
SEEDS = 3  # of every setting: a conclusion about accuracy rests on no fewer
POWER = 0.8
MOST_SEEDS = 100  # more is no advice
BEATS: Rule = (MARGIN, math.inf)
VERDICTS = ("supported", "contradicted", "mixed", "inconclusive", "not measured")


@cache  # tables and figures ask for the same ones
def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of the proportion; ValueError unless 0 <= correct <= total >= 1.
    Source: Wilson, Journal of the American Statistical Association 22 (1927), 209-212."""
    low, high = binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return float(low), float(high)


def newcombe_interval(first: Count, second: Count, confidence: float = 0.95) -> Interval:
    """Interval of the difference of two accuracies on different images.
    Source: Newcombe, Statistics in Medicine 17 (1998), 873-890, method 10."""
    (p_low, p_high), (q_low, q_high) = (wilson_interval(*c, confidence) for c in (first, second))
    p, q = first[0] / first[1], second[0] / second[1]
    return p - q - math.hypot(p - p_low, q_high - q), p - q + math.hypot(p_high - p, q - q_low)


def sign_flip_test(sums: np.ndarray) -> float:
    """Exact two-sided p that first and second may be exchanged on every image: of a single pair,
    McNemar's exact test (Psychometrika 12 (1947), 153-157).
    The distribution of the sum over all sign patterns is that of one binomial variable for each
    magnitude, times it: no pattern is sampled. Shapes: sums (N,) integers."""
    magnitudes, counts = np.unique(np.abs(sums[sums != 0]).astype(np.int64), return_counts=True)
    step = int(np.gcd.reduce(magnitudes)) or 1  # 0 where the sides differ on no image
    chance = np.ones(1)
    for magnitude, count in zip((magnitudes // step).tolist(), counts.tolist(), strict=True):
        terms = np.zeros(count * magnitude + 1)
        terms[::magnitude] = binom.pmf(np.arange(count + 1), count, 0.5)
        chance = np.convolve(chance, terms)
    deviation = np.abs(2 * np.arange(len(chance)) - (len(chance) - 1))
    return float(min(1.0, chance[deviation >= abs(int(sums.sum())) // step].sum()))


def paired_interval(sums: np.ndarray, pairs: int) -> Interval:
    """Bootstrap interval of 95 %, over the test images, of the mean difference of accuracies.
    Images of the same sum are alike: drawing them with replacement is one multinomial draw of how
    many there are of each sum. One image on which the first side alone is right in all pairs is
    added, and one on which the second is: else no discordant image would mean no doubt.
    Shapes: sums (N,) integers. Source: Efron and Tibshirani, An Introduction to the Bootstrap
    (1993), chapter 13; the added images: Bonett and Price, Journal of Educational and Behavioral
    Statistics 37 (2012), 479-488."""
    sums = np.append(sums, [pairs, -pairs])
    step = max(1, int(np.ptp(sums)) // MOST_SUMS)  # above one, sums in one bin count as alike
    values, counts = np.unique(np.rint(sums / step) * step, return_counts=True)
    total = len(sums)
    drawn = np.random.default_rng(0).multinomial(total, counts / total, size=RESAMPLES)
    means = drawn @ values / total + (sums.mean() - values @ counts / total)
    low, high = np.quantile(means / pairs, [0.025, 0.975])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted so that the family as a whole errs as rarely as one test would.
    Source: Holm, Scandinavian Journal of Statistics 6 (1979), 65-70."""
    order, adjusted = np.argsort(p_values), np.empty(len(p_values))
    steps = np.arange(len(order), 0, -1) * np.asarray(p_values, float)[order]
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps))
    return adjusted.tolist()


def median_ratio_interval(first: Timing, second: Timing) -> Interval:
    """95 % interval of the ratio of two medians: a median's standard error is taken as that of
    normal samples of this range, the ratio's logarithm as Student's t on the fewer samples.
    Source: Kenney and Keeping, Mathematics of Statistics 1 (1962), sections 12.12 and 14.7."""
    errors = [1.2533 * iqr / 1.349 / math.sqrt(n) / median for median, iqr, n in (first, second)]
    degrees = max(1, min(first[2], second[2]) - 1)
    half = float(t.ppf(0.975, degrees)) * math.hypot(*errors)
    ratio = first[0] / second[0]
    return ratio * math.exp(-half), ratio * math.exp(half)


@dataclass(frozen=True)
class Spread:
    """What the seeds of one recipe add to an estimate."""

    variance: float
    scale: float  # the variance if each training of every recipe had variance one
    seeds: int


def sample_spread(values: Sequence[float]) -> tuple[Spread, ...]:
    """What the seeds add to the variance of the mean of their values; nothing known for one."""
    n = len(values)
    return (Spread(float(np.var(values, ddof=1)) / n, 1 / n, n),) if n > 1 else ()


def lend(known: Sequence[Spread], scales: Sequence[float]) -> tuple[Spread, ...]:
    """The known spreads with what recipes of one seed add, if they vary as these on average."""
    more = sum(scales) / max(1, len(known))
    return tuple(Spread(s.variance * (1 + more / s.scale), s.scale + more, s.seeds) for s in known)


@dataclass(frozen=True)
class Estimate:
    """An accuracy, or a difference of accuracies, with both of its noises.
    The two are joined by adding their squares on each side of the value (MOVER). Student's degrees
    of freedom for the seeds are the smaller of Welch's and of those for equal variances: with two
    seeds a measured variance is often far too small, and Welch's degrees of freedom then far too
    many. benchmarks/coverage.py simulates all of it.
    Source: Zou and Donner, Statistics in Medicine 27 (2008), 1693-1702; Welch, Biometrika 34
    (1947), 28-35; test images and trainings as crossed random effects: Gallas, Bandos, Samuelson
    and Wagner, Communications in Statistics 38 (2009), 2586-2603."""

    value: float
    image: Interval  # of 95 %, over test images alone
    spreads: tuple[Spread, ...] = ()  # what the seeds add; empty where no recipe has several

    @property
    def seed_error(self) -> float:
        return math.sqrt(sum(spread.variance for spread in self.spreads))

    @property
    def degrees(self) -> float:
        def welch(name: str) -> float:
            parts = [(getattr(spread, name), spread.seeds - 1) for spread in self.spreads]
            squares = sum(part * part / degrees for part, degrees in parts)  # 0: they add nothing
            return sum(part for part, _ in parts) ** 2 / squares if squares else math.inf

        return min(welch("variance"), welch("scale"))

    def interval(self, level: float = 0.05) -> Interval:
        """Two-sided interval that misses the truth with a probability of at most `level`."""
        scale = norm.isf(level / 2) / norm.isf(0.025)
        seed = t.isf(level / 2, self.degrees) * self.seed_error if self.seed_error else 0.0
        low, high = (math.hypot(scale * (end - self.value), seed) for end in self.image)
        return self.value - low, self.value + high

    def p(self) -> float:
        """The level at which the interval ends at zero."""
        if self.value == 0:
            return 1.0

        def beyond(log_p: float) -> float:
            low, high = self.interval(math.exp(log_p))
            return low if self.value > 0 else -high

        least = math.log(1e-100)
        return math.exp(brentq(beyond, least, 0.0)) if beyond(least) < 0 else 0.0

    def power(self, low: float, high: float) -> float:
        """How often the interval lies between low and high, were the value the truth."""
        half = (self.image[1] - self.image[0]) / 2
        # The seeds' may hold all the noise of the images: alone, these then have none.
        total = math.hypot(half / norm.isf(0.025), self.seed_error) or 1e-12
        if self.seed_error:  # as measured again, which is a matter of luck
            chances = (np.arange(400) + 0.5) / 400
            seed = np.sqrt(chi2.ppf(chances, self.degrees) / self.degrees) * self.seed_error
            half = np.hypot(half, t.isf(0.025, self.degrees) * seed)
        below, above = (norm.cdf((end - self.value) / total) for end in (low + half, high - half))
        return float(np.maximum(above - below, 0).mean())

    def at(self, seeds: int) -> "Estimate":
        """With at least so many seeds of every recipe, of the same noise."""
        shares = [(s, min(1.0, s.seeds / seeds)) for s in self.spreads]
        spreads = (Spread(s.variance * k, s.scale * k, max(s.seeds, seeds)) for s, k in shares)
        return replace(self, spreads=tuple(spreads))


def difference_of(
    first: Sequence[float], second: Sequence[float], images: Sequence[int], confidence=0.95
) -> Estimate:
    """Of two recipes' mean accuracies, as if on different images; one seed varies as the others."""
    means = [float(np.mean(values)) for values in (first, second)]
    counts = [(round(mean * n), n) for mean, n in zip(means, images, strict=True)]
    known = [*sample_spread(first), *sample_spread(second)]
    singles = [1.0] * sum(len(values) == 1 for values in (first, second))
    image = newcombe_interval(*counts, confidence)
    return Estimate(means[0] - means[1], image, lend(known, singles))


def judge(rule: Rule, interval: Interval) -> str:
    """The verdict of an interval: that of both of its ends, or none."""
    (low, high), (above, below) = interval, rule
    if above < low and high < below:
        return "supported"
    return "contradicted" if high < above or low > below else "inconclusive"


def leads(interval: Interval) -> int:
    """Which side of a difference surely leads by what counts: 1 the first, -1 the second, or 0."""
    low, high = interval
    return (low > MARGIN) - (-high > MARGIN)


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
    for factor in 1.02 ** np.arange(233):  # up to a hundred times as many
        image = tuple(value + (end - value) / math.sqrt(factor) for end in estimate.image)
        if Estimate(value, image).power(*ends) >= POWER:
            if factor == 1:
                return f"too near the criterion's edge: more than {MOST_SEEDS} seeds would decide"
            size = 10 ** max(0, len(str(int(images * factor))) - 2)  # two digits are meant
            more = f"about {math.ceil(images * factor / size) * size:,} images would be needed"
            why = "cannot be decided on this data set, if the estimate stays"
            return f"{why}: {more}, in place of {images:,}"
    return "too near the criterion's edge to decide"
