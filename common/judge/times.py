"""What the rows of hw_bench.py say to the study's claims on devices and times."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from common.base.log import machine_of
from common.judge.published import STUDY_TEST_IMAGES
from common.judge.rows import (
    Row,
    busy_note,
    by_seed,
    get,
    join_notes,
    latest_ok,
    number,
)
from common.judge.stats import Interval, difference_of, median_ratio_interval, ratio_interval
from common.judge.verdicts import (
    Part,
    Rule,
    at_least,
    between,
    decide_accuracy,
    decide_ratio,
    unmeasured,
)

# The study's question 2; claims on ratios are tested on no other work.
STUDY = {"dataset": "fashion", "image_size": 224, "batch_size": 16}
NAMES = {"resnet18": "ResNet-18", "resnet50": "ResNet-50"}
SPEEDUPS = {"resnet18": (24.0, 27.0), "resnet50": (37.0, 38.0)}
OPTIMISER_COST = (1.03, 1.05)
COMMAND = "make q2 ARGS='--device cpu cuda'"


def find(rows: Iterable[Row], where: Row) -> list[Row]:
    """The finished measurements of these settings."""
    return [r for r in latest_ok(rows, "hw_train") if where.items() <= r["config"].items()]


def representative(rows: Sequence[Row]) -> Row | None:
    """Of a device's variants the plain one: our loop, not compiled, most threads, 16 bits, and no
    noise that had to be accepted."""

    def rank(row: Row) -> tuple[bool, bool, float, bool, bool, float, str]:
        config = row["config"]
        return (
            config.get("loop", "ours") != "ours", bool(config.get("compile")),
            -(number(config, "threads") or 0), config.get("precision") == "fp32",
            bool(config.get("accept_noise")), number(row, "metrics", "noise") or 0.0,
            row["run_id"],
        )  # fmt: skip

    return min(rows, key=rank, default=None)


def sides(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of the CPU, and of accelerators."""
    cpu = [row for row in rows if row["config"].get("device") == "cpu"]
    return cpu, [row for row in rows if row["config"].get("device") not in ("cpu", "auto", None)]


def step_of(row: Row) -> tuple[float, float, int] | None:
    """Median, interquartile range and number of its timed steps, where the row has them."""
    values = [number(row, "metrics", "step_ms", k) for k in ("median", "iqr", "n")]
    if None in values or values[0] <= 0 or values[2] < 2:
        return None
    return values[0], values[1], int(values[2])


def comparable(row: Row) -> tuple[object, ...]:
    """What two rows must share for their times to be compared."""
    return (*machine_of(row["env"]), get(row, "env", "torch"))


def logged_interval(row: Row) -> Interval | None:
    """The interval of a row's speed-up, where it was measured with one."""
    low, high = (number(row, "metrics", "speedup", k) for k in ("low", "high"))
    if low is None or high is None:
        pair = get(row, "metrics", "speedup", "interval")
        if not (isinstance(pair, list) and len(pair) == 2):
            return None
        low, high = (number({"value": value}, "value") for value in pair)
    return None if low is None or high is None else (low, high)


def rounds_of(*rows: Row) -> list[list[float]] | None:
    """Each row's times of the rounds that all of them were measured in, or None."""
    groups = {get(row, "metrics", "rounds", "group") for row in rows}
    found = [get(row, "metrics", "rounds", "step_ms") for row in rows]
    if len(groups) > 1 or None in groups or not all(isinstance(times, list) for times in found):
        return None
    alike = len({len(times) for times in found}) == 1 and len(found[0]) > 1
    sound = all(number({"ms": ms}, "ms") and ms > 0 for times in found for ms in times)
    return found if alike and sound else None


def time_ratio(slow: Row, fast: Row) -> tuple[float, Interval] | None:
    """How many times as long one row's steps take as another's, with its interval: as logged where
    the second was measured against the first, by rounds where both were in the same, else from
    both rows' steps. None where the rows are of two machines, or of two versions of torch."""
    if comparable(slow) != comparable(fast):
        return None
    ratio, interval = number(fast, "metrics", "speedup", "ratio"), logged_interval(fast)
    if ratio and interval and get(fast, "metrics", "speedup", "baseline") == slow["run_id"]:
        return ratio, interval
    if rounds := rounds_of(slow, fast):
        return ratio_interval(*rounds)
    steps = step_of(slow), step_of(fast)
    if None in steps:
        return None
    return steps[0][0] / steps[1][0], median_ratio_interval(*steps)


def ratio_part(
    subject: str, rule: Rule, slow: Row, fast: Row, published: float, note: str = ""
) -> Part | None:
    """The verdict of a ratio of times, or None where a row lacks its steps."""
    if not (found := time_ratio(slow, fast)):
        return None
    labels = [get(row, "metrics", "label") or get(row, "env", "device") for row in (slow, fast)]
    return decide_ratio(
        subject, rule, *found, published=published, runs=(slow["run_id"], fast["run_id"]),
        basis=f"step time of {labels[0]} over {labels[1]}",
        note=join_notes("noise between processes is not in the interval", note,
                        busy_note(slow), busy_note(fast)),
    )  # fmt: skip


def published_times(published: Iterable[Row], **where: object) -> float:
    """The study's training time of these settings. Units: ms."""
    return next(
        r["train_ms"] for r in published if r["part"] == "q2" and where.items() <= r.items()
    )


def speedup_parts(rows: Sequence[Row], published: Sequence[Row]) -> list[Part]:
    """Claim 8: each network and optimiser, then the deeper network's speed-up over the other's."""
    parts, found = [], {}
    for model, bounds in SPEEDUPS.items():
        for opt in ("sgd", "adam"):
            times = [
                published_times(published, model=model, opt=opt, device=d) for d in ("cpu", "gpu")
            ]
            subject = f"{NAMES[model]} with {opt}"
            cpu, gpu = map(representative, sides(find(rows, STUDY | {"model": model, "opt": opt})))
            part = None
            if cpu and gpu:
                part = ratio_part(subject, between(*bounds), cpu, gpu, times[0] / times[1])
            found[model, opt] = part
            parts.append(part or unmeasured(subject, times[0] / times[1], "times", COMMAND))
    for opt in ("sgd", "adam"):
        pair = found["resnet50", opt], found["resnet18", opt]
        if all(pair):
            parts.append(depth_part(opt, *pair))
    return parts


def depth_part(opt: str, deep: Part, shallow: Part) -> Part:
    """The ratio of two speed-ups."""
    half = math.hypot(*(math.log(p.interval[1] / p.interval[0]) / 2 for p in (deep, shallow)))
    ratio = deep.effect / shallow.effect
    return decide_ratio(
        f"ResNet-50 over ResNet-18 with {opt}", at_least(1.0), ratio,
        (ratio * math.exp(-half), ratio * math.exp(half)),
        published=deep.published / shallow.published, basis="ratio of the speed-ups above",
        runs=(*deep.runs, *shallow.runs),
    )  # fmt: skip


def optimiser_time_parts(rows: Sequence[Row], published: Sequence[Row]) -> list[Part]:
    """Claim 10: Adam's step over SGD's, of the same variant, on each device that was measured; only
    where the two took turns, for a machine's drift is as large as the difference."""
    parts = []
    for model in SPEEDUPS:
        times = {d: [published_times(published, model=model, opt=o, device=d)
                     for o in ("adam", "sgd")] for d in ("cpu", "gpu")}  # fmt: skip
        measured = sides(find(rows, STUDY | {"model": model}))
        for device, side in zip(("cpu", "gpu"), measured, strict=True):
            subject = f"{NAMES[model]} on a {device.upper()}"
            ratio = times[device][0] / times[device][1]
            turns = [
                (row, adam)
                for row in find(side, {"opt": "sgd"})
                if (adam := _same_but(side, row, "opt", "adam")) and rounds_of(row, adam)
            ]
            sgd = representative([row for row, _ in turns])
            part = None
            if sgd:
                adam = next(adam for row, adam in turns if row is sgd)
                part = ratio_part(subject, between(*OPTIMISER_COST), adam, sgd, ratio)
            command = "make q2" if device == "cpu" else COMMAND
            part = part or unmeasured(subject, ratio, "times", command)
            there = {row["config"].get("opt") for row in side}
            if part.effect is None and there >= {"adam", "sgd"}:
                why = f"steps of both did not take turns: {command} measures it"
                part = replace(part, note=why)
            parts.append(part)
    return parts


def _same_but(rows: Iterable[Row], like: Row, name: str, value: object) -> Row | None:
    """The row of the same machine that differs in one setting alone."""
    wanted = json.dumps(like["config"] | {name: value}, sort_keys=True)
    mine = (row for row in rows if comparable(row) == comparable(like))
    return next((r for r in mine if json.dumps(r["config"], sort_keys=True) == wanted), None)


def device_accuracy_parts(rows: Sequence[Row], rule: Rule, published: Sequence[Row]) -> list[Part]:
    """Claim 9, from whole epochs; without predictions, as if on different images, which errs on the
    side of a wider interval."""
    parts = []
    for model in SPEEDUPS:
        for opt in ("sgd", "adam"):
            figures = [
                next(r["test_acc"] for r in published if r["part"] == "q2"
                     and {"model": model, "opt": opt, "device": d}.items() <= r.items())
                for d in ("gpu", "cpu")
            ]  # fmt: skip
            subject = f"{NAMES[model]} with {opt}"
            tested = [r for r in find(rows, STUDY | {"model": model, "opt": opt, "split": "study"})
                      if number(r, "metrics", "test_acc") is not None]  # fmt: skip
            command = "python hw_bench.py --preset q2 --device cpu cuda --full-epoch"
            both = [seeds_of(side) for side in sides(tested)]
            if not all(both):
                parts.append(unmeasured(subject, figures[0] - figures[1], "points", command))
                continue
            cpu, gpu = ([number(row, "metrics", "test_acc") for row in side] for side in both)
            parts.append(decide_accuracy(
                subject, rule, difference_of(gpu, cpu, (STUDY_TEST_IMAGES, STUDY_TEST_IMAGES)),
                seeds=min(map(len, both)), images=STUDY_TEST_IMAGES, command=command,
                published=figures[0] - figures[1], basis="GPU minus CPU, one epoch",
                runs=tuple(row["run_id"] for side in both for row in side),
            ))  # fmt: skip
    return parts


def seeds_of(rows: Sequence[Row]) -> list[Row]:
    """The representative of a device's variants, and its like of other seeds, of one machine."""
    chosen = representative(rows)
    group = next((group.rows for group in by_seed(rows) if chosen in group.rows), ())
    alike = [row for row in group if comparable(row) == comparable(chosen)]
    return list({row["config"].get("seed"): row for row in alike}.values())
