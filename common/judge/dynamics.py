"""What the epochs of the chosen trainings say to the study's claim on learning curves."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

from common.judge.rows import (
    STUDY_DATASETS,
    TRAIN_PROTOCOL,
    Group,
    Row,
    deviations,
    distinct,
    get,
    join_notes,
    latest_ok,
    number,
    pick_best,
    trajectory,
)
from common.judge.stats import Estimate, Interval, newcombe_interval, sample_spread
from common.judge.verdicts import Part, Rule, at_most, decide_accuracy, unmeasured

LEFT, FALL, OVERFIT = at_most(0.01), at_most(0.01), at_most(0.02)
LENGTH = 5  # epochs of the study's longer runs; a shorter run cannot speak of them
COMMAND = "make q1a"

Curve = list[Row]
Change = tuple[float, Interval]


def curve_parts(rows: Sequence[Row]) -> list[Part]:
    """Claim 11, but for the need of all five epochs on FashionMNIST, which is a paired contrast."""
    epochs, train = latest_ok(rows, "epoch"), latest_ok(rows, "train")
    parts = []
    for dataset, name in STUDY_DATASETS.items():
        group = chosen_run(train, dataset)
        runs = [(row, trajectory(row, epochs)) for row in group.rows] if group else []
        runs = [(row, curve) for row, curve in runs if is_whole(row, curve)]
        if dataset == "mnist":
            parts.append(curve_part(f"{name}: left after epoch 2", LEFT, left_after_two, runs))
        parts.append(curve_part(f"{name}: largest fall", FALL, largest_fall, runs))
        seen = [run for run in runs if number(run[0], "metrics", "train_acc") is not None]
        part = curve_part(f"{name}: overfitting", OVERFIT, overfitting, seen)
        if runs and not seen:
            again = "these runs were not tested on training images: --force trains them again"
            part = replace(part, note=again)
        parts.append(part)
    return parts


def chosen_run(train: Sequence[Row], dataset: str) -> Group | None:
    """The best ResNet on validation of the study's length, of the study's protocol if there is
    one."""
    mine = [
        row for row in distinct(train)
        if row["config"].get("dataset") == dataset and row["config"].get("epochs") == LENGTH
        and str(row["config"].get("model")).startswith("resnet")
    ]  # fmt: skip
    own = [row for row in mine if not deviations(row["config"], TRAIN_PROTOCOL)]
    return next(iter(pick_best(own or mine)), None)


def is_whole(row: Row, curve: Curve) -> bool:
    """Whether every epoch is there, with what the questions need."""
    return [number(e, "metrics", "epoch") for e in curve] == list(range(1, LENGTH + 1)) and all(
        [number(e, "metrics", "val_acc") is not None for e in curve]
        + [bool(number(row, "metrics", k)) for k in ("n_val", "n_train")]
    )


def curve_part(
    subject: str, rule: Rule, change: Callable[[Row, Curve], Change],
    runs: Sequence[tuple[Row, Curve]],
) -> Part:  # fmt: skip
    """The verdict of a change in the curves: the mean over seeds, of the values and of the ends of
    their intervals over images."""
    if not runs:
        return unmeasured(subject, None, "points", COMMAND)
    changes = [change(row, curve) for row, curve in runs]
    values = [value for value, _ in changes]
    image = tuple(statistics.fmean(ends) for ends in zip(*(i for _, i in changes), strict=True))
    estimate = Estimate(statistics.fmean(values), image, tuple(sample_spread(values)))
    return decide_accuracy(
        subject, rule, estimate, seeds=len(values), command=COMMAND,
        images=int(number(runs[0][0], "metrics", "n_val")),
        basis=f"the ResNet chosen on validation, seeds: {len(values)}",
        runs=tuple(row["run_id"] for row, _ in runs),
        note=join_notes(*(deviations(row["config"], TRAIN_PROTOCOL) for row, _ in runs)),
    )  # fmt: skip


def _validated(row: Row, epoch: Row) -> tuple[int, int]:
    """How many validation images an epoch's weights got right, and of how many."""
    images = int(number(row, "metrics", "n_val"))
    return round(get(epoch, "metrics", "val_acc") * images), images


def _difference(first: tuple[int, int], second: tuple[int, int], confidence: float) -> Change:
    """As if on different images, though they are the same: wider than need be."""
    value = first[0] / first[1] - second[0] / second[1]
    return value, newcombe_interval(first, second, confidence)


def left_after_two(row: Row, curve: Curve) -> Change:
    """Validation accuracy after the last epoch minus after the second."""
    return _difference(_validated(row, curve[-1]), _validated(row, curve[1]), 0.95)


def largest_fall(row: Row, curve: Curve) -> Change:
    """The largest loss of validation accuracy from an epoch to the next, of four: each interval has
    a quarter of the error."""
    counts = [_validated(row, epoch) for epoch in curve]
    confidence = 1 - 0.05 / (LENGTH - 1)
    steps = itertools.pairwise(counts)
    return max(_difference(before, after, confidence) for before, after in steps)


def overfitting(row: Row, curve: Curve) -> Change:
    """Training minus validation accuracy of the final weights, the former on as many images as the
    latter. An epoch's own training accuracy is no measure: its weights were still to be learned."""
    images = int(min(number(row, "metrics", f"n_{part}") for part in ("train", "val")))
    seen = round(row["metrics"]["train_acc"] * images), images
    return _difference(seen, _validated(row, curve[-1]), 0.95)
