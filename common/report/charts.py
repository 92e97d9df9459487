"""Charts of the page: where everything stands in a small SVG drawing, which a template writes.

All positions are in the drawing's own units, y down, rounded so that a page of many runs is small.
An accuracy stands on a logarithmic scale of its error: 90, 99 and 99.9 % are equally far apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.ticker import LogLocator, MaxNLocator

from common.report.figures import TICKS, Point

WIDTH, HEIGHT = 360, 240
LEFT, RIGHT, TOP, BOTTOM = 40, 352, 12, 206  # of the axes
MOST_POINTS = 60  # of a curve: more could not be told apart at this size

Scale = Callable[[float], float]


@dataclass(frozen=True)
class Frame:
    """Axes: their labels, and ticks as (position, text)."""

    x_label: str
    y_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class Dot:
    """A point with the interval of its y, and what it is."""

    x: float
    y: float
    low: float
    high: float
    label: str
    series: int = 0
    chosen: bool = False


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """A scale that maps low to start and high to end."""
    span = (high - low) or 1
    return lambda value: round(start + (value - low) / span * (end - start), 1)


def logarithmic(low: float, high: float, start: float, end: float) -> Scale:
    """The same of the logarithm; values are positive."""
    scale = linear(math.log(low), math.log(high), start, end)
    return lambda value: scale(math.log(value))


def linear_ticks(low: float, high: float, most: int = 5, whole: bool = False) -> list[float]:
    """Round values from low to high."""
    found = MaxNLocator(most, integer=whole).tick_values(low, high)
    return [float(value) for value in found if low <= value <= high]


def log_ticks(low: float, high: float) -> list[float]:
    """Round values from low to high for a logarithmic axis: few, but three where there are any."""
    found: list[float] = []
    for _, steps in reversed(TICKS):
        ticks = LogLocator(subs=steps, numticks=20).tick_values(low, high)
        found = [float(value) for value in ticks if low <= value <= high]
        if len(found) >= 3:
            break
    return found


def accuracy_axis(accuracies: Sequence[float]) -> tuple[Scale, list[tuple[float, str]]]:
    """A vertical scale of accuracies and its ticks, in per cent.

    A perfect accuracy, whose error has no logarithm, stands with half the smallest other error.
    """
    smallest = min([1 - value for value in accuracies if value < 1] or [0.5]) / 2
    errors = [max(1 - value, smallest) for value in accuracies]
    low = min(errors) / 1.15
    high = max(min(max(errors) * 1.15, 1.0), low * 1.5)
    of_error = logarithmic(low, high, TOP, BOTTOM)
    ticks = [(of_error(error), f"{100 * (1 - error):.6g}") for error in log_ticks(low, high)]
    return lambda accuracy: of_error(max(1 - accuracy, smallest)), _spread(ticks, 16)


def _spread(ticks: list[tuple[float, str]], apart: float) -> list[tuple[float, str]]:
    """The ticks that leave room for one another."""
    kept: list[tuple[float, str]] = []
    for tick in ticks:
        if not kept or abs(tick[0] - kept[-1][0]) >= apart:
            kept.append(tick)
    return kept


def path(points: Sequence[tuple[float, float]]) -> str:
    """A line through points as SVG path data; long ones lose points, never the first or last."""
    if len(points) > MOST_POINTS:
        last = len(points) - 1
        points = [points[round(i * last / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points)


# --- accuracy against cost ------------------------------------------------------------------------


@dataclass(frozen=True)
class CostChart:
    """Accuracy against cost: dots, the legend of their series, and the Pareto front."""

    frame: Frame
    dots: list[Dot]
    legend: list[str]
    front_path: str
    front: list[Point]


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in accuracy at the same or lower cost, cheapest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.train_ms, -p.test_acc)):
        if not front or point.test_acc > front[-1].test_acc:
            front.append(point)
    return front


def cost_chart(points: Sequence[Point]) -> CostChart:
    """Accuracy against training time of one data set."""
    legend = list(dict.fromkeys(point.label for point in points))
    accuracies = [value for p in points for value in (*p.interval, p.test_acc)]
    y, y_ticks = accuracy_axis(accuracies)
    costs_s = [p.train_ms / 1e3 for p in points]
    low, high = min(costs_s) / 1.2, max(costs_s) * 1.2
    x = logarithmic(low, high, LEFT, RIGHT)
    x_ticks = _spread([(x(value), f"{value:,g}") for value in log_ticks(low, high)], 26)
    dots = [
        Dot(x(p.train_ms / 1e3), y(p.test_acc), y(p.interval[0]), y(p.interval[1]),
            p.detail, legend.index(p.label), p.chosen)
        for p in points
    ]  # fmt: skip
    front = pareto_front(points)
    steps = [(x(p.train_ms / 1e3), y(p.test_acc)) for p in front]
    line = "M{:g},{:g}".format(*steps[0]) + "".join(f"H{a:g}V{b:g}" for a, b in steps[1:])
    frame = Frame("Training time, s", "Test accuracy, %", x_ticks, y_ticks)
    return CostChart(frame, dots, legend, f"{line}H{RIGHT}", front)


# --- learning curves ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """One run's values by epoch, on validation and on training images."""

    run_id: str
    val: list[tuple[float, float]]
    train: list[tuple[float, float]]


@dataclass(frozen=True)
class CurveChart:
    """Curves as path data: (run, validation, training)."""

    frame: Frame
    paths: list[tuple[str, str, str]]


def curve_chart(curves: Sequence[Curve], metric: str) -> CurveChart | None:
    """Accuracy or loss by epoch; None where there is nothing to draw."""
    points = [point for c in curves for point in (*c.val, *c.train)]
    if not points:
        return None
    last = max(epoch for epoch, _ in points)
    x = linear(1, max(last, 2), LEFT + 6, RIGHT - 6)
    values = [value for _, value in points]
    if metric == "acc":
        y, y_ticks = accuracy_axis(values)
    else:
        positive = [value for value in values if value > 0] or [1.0]
        low, high = min(positive) / 1.1, max(max(positive), 1e-12) * 1.1
        scale = logarithmic(low, high, BOTTOM, TOP)
        y_ticks = _spread([(scale(v), f"{v:g}") for v in log_ticks(low, high)], 16)

        def y(value: float) -> float:
            return scale(max(value, low))

    def draw(values: Sequence[tuple[float, float]]) -> str:
        return path([(x(epoch), y(value)) for epoch, value in values]) if values else ""

    x_ticks = [(x(v), f"{v:g}") for v in linear_ticks(1, max(last, 2), 8, whole=True)]
    label = {"acc": "Accuracy, %", "loss": "Cross-entropy loss"}[metric]
    frame = Frame("Epoch", label, x_ticks, y_ticks)
    return CurveChart(frame, [(c.run_id, draw(c.val), draw(c.train)) for c in curves])


# --- confidence -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReliabilityChart:
    """Accuracy by confidence, and the line on which both agree."""

    frame: Frame
    dots: list[Dot]
    diagonal: str


def reliability_chart(bins: Sequence[dict]) -> ReliabilityChart:
    """Accuracy against confidence of each bin, in per cent."""
    x, y = linear(0, 100, LEFT, RIGHT - 6), linear(0, 100, BOTTOM, TOP)
    dots = [
        Dot(
            x(100 * b["confidence"]), y(100 * b["accuracy"]),
            y(100 * b["accuracy_low"]), y(100 * b["accuracy_high"]),
            f"{b['images']:,} images of confidence {100 * b['confidence']:.1f} %: "
            f"{100 * b['accuracy']:.1f} % right",
        )
        for b in bins
    ]  # fmt: skip
    ticks = (0, 25, 50, 75, 100)
    frame = Frame(
        "Confidence, %", "Accuracy, %", [(x(t), f"{t}") for t in ticks],
        [(y(t), f"{t}") for t in ticks],
    )  # fmt: skip
    return ReliabilityChart(frame, dots, path([(x(0), y(0)), (x(100), y(100))]))
