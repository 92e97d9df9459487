"""Rows of hw_bench.py: which stand for a device, which may be compared, and how."""

from collections.abc import Iterable, Sequence

from common.base.machine import machine_of
from common.judge.rows import Row, get, grouped, latest_ok, number, settings_of
from common.judge.stats import Interval, median_ratio_interval
from common.speed.samples import ratio_interval

# The study's question 2; claims on ratios are tested on no other work.
STUDY = {"dataset": "fashion", "image_size": 224, "batch_size": 16}
COMMAND = "make q2 ARGS='--device cpu cuda'"


def study_rows(rows: Iterable[Row], **where: object) -> list[Row]:
    """The finished measurements of the study's work, of these settings."""
    settings = (STUDY | where).items()
    return [row for row in latest_ok(rows, "hw_train") if settings <= row["config"].items()]


def sides(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of the CPU, and of accelerators."""
    cpu = [row for row in rows if row["config"].get("device") == "cpu"]
    return cpu, [row for row in rows if row["config"].get("device") not in ("cpu", "auto", None)]


def plainness(row: Row) -> tuple[object, ...]:
    """Sorting key of a device's variants: our plain loop on most threads, then the surest times."""
    config, noise = row["config"], number(row, "metrics", "noise") or 0.0
    steps = number(row, "metrics", "step_ms", "n") or 0
    sped_up = bool(config.get("compile") or config.get("cuda_graph"))
    other = config.get("loop", "ours") != "ours", sped_up
    slow = -(number(config, "threads") or 0), config.get("precision") in ("fp32", "tf32")
    return *other, *slow, bool(config.get("accept_noise")), -steps, noise, row["run_id"]


def representative(rows: Iterable[Row]) -> Row | None:
    """Of a device's variants the plain one."""
    return min(rows, key=plainness, default=None)


def seeds_of(rows: Sequence[Row]) -> list[Row]:
    """The plainest of a device's variants, with every seed on one machine."""
    variants = grouped(rows, lambda row: (settings_of(row, "seed"), comparable(row))).values()
    plainest = min(variants, key=lambda same: min(map(plainness, same)), default=())
    return list({row["config"].get("seed"): row for row in plainest}.values())


def comparable(row: Row) -> tuple[object, ...]:
    """What two rows must share for their times to be compared."""
    return *machine_of(row["env"]), get(row, "env", "torch")


def speedup_interval(row: Row) -> Interval | None:
    """The interval of a row's speed-up, of training or of an engine, where it has one."""
    ends = get(row, "metrics", "speedup_interval") or get(row, "metrics", "speedup", "interval")
    sound = isinstance(ends, list) and len(ends) == 2
    return tuple(ends) if sound and all(type(end) in (int, float) for end in ends) else None


def rounds_of(*rows: Row) -> list[list[float]] | None:
    """Each row's times of the rounds that all were measured in, on one machine, or None."""
    groups = {(get(row, "metrics", "rounds", "group"), comparable(row)) for row in rows}
    times = [get(row, "metrics", "rounds", "step_ms") for row in rows]
    if len(groups) > 1 or get(rows[0], "metrics", "rounds", "group") is None:
        return None
    whole = all(isinstance(each, list) and len(each) == len(times[0]) > 1 for each in times)
    sound = whole and all(isinstance(ms, int | float) and ms > 0 for each in times for ms in each)
    return times if sound else None


def time_ratio(slow: Row, fast: Row) -> tuple[float, Interval] | None:
    """How many times as long one's steps take as the other's, with its interval, if comparable."""
    if comparable(slow) != comparable(fast):
        return None
    ratio, interval = number(fast, "metrics", "speedup", "ratio"), speedup_interval(fast)
    if ratio and interval and get(fast, "metrics", "speedup", "baseline") == slow["run_id"]:
        return ratio, interval
    if rounds := rounds_of(slow, fast):
        return ratio_interval(*rounds)
    steps = [get(row, "metrics", "step_ms") for row in (slow, fast)]
    steps = [[number(step, name) for name in ("median", "iqr", "n")] for step in steps]
    if any(None in step or step[0] <= 0 or step[2] < 2 for step in steps):
        return None
    return steps[0][0] / steps[1][0], median_ratio_interval(*steps)
