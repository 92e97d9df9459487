"""What the study published, beside what was measured: the nearest runs and why they differ; and of
hw_bench.py which rows stand for a device, which may be compared, and how."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.base.machine import machine_of
from common.judge import rows
from common.judge.rows import PROTOCOLS, Group, Row, deviations, get, grouped, join_notes, number
from common.judge.stats import Interval, difference_of, median_ratio_interval
from common.judge.tables import Table, make_table
from common.speed.samples import ratio_interval

STUDY_TEST_IMAGES = 14_000
# The study's question 2; claims on ratios are tested on no other work.
TIMED = {"dataset": "fashion", "image_size": 224, "batch_size": 16}
COMMAND = "make q2 ARGS='--device cpu cuda'"
# Every figure of the study's tables; accuracies are fractions, times are milliseconds.
FIGURES = json.loads(Path(__file__).with_name("published.json").read_text("utf-8"))


def published(part: str, **where: object) -> list[Row]:
    """The figures of one of its tables, of these settings."""
    where["part"] = part
    return [figure for figure in FIGURES if where.items() <= figure.items()]


def unmeasured(command: str, reason: str = "no finished run of it in the log") -> str:
    """Why nothing stands beside a published figure, and what would."""
    return f"not measured, {reason}: {command} measures it"


def beside(figure: Row, group: Group | None = None) -> Row:
    """A published figure; what the mean test accuracy differs by, and why, where the interval of
    the difference leaves out zero."""
    record: Row = {f"published_{name}": figure.get(name) for name in ("test_acc", "fit_ms")}
    if not group or not (values := group.values("test_acc")):
        return record
    record["difference"] = statistics.fmean(values) - figure["test_acc"]
    if not (images := number(group.rows[0], "metrics", "n_test")):
        return record
    estimate = difference_of(values, [figure["test_acc"]], (int(images), STUDY_TEST_IMAGES))
    low, high = estimate.interval()
    record |= {"difference_low": low, "difference_high": high}
    if low <= 0 <= high:
        return record
    protocol, factors = PROTOCOLS[group.kind]
    varied = {k: figure[k] for k in factors if k in figure and k != "pin_memory"}
    reasons = [deviations(group.config, protocol | varied)]
    if any(get(row, "metrics", "converged") is False for row in group.rows):
        reasons.append("max_iter stopped the solver, whose path may be another")
    if any(get(row, "metrics", "precision") == "fp32" for row in group.rows):
        reasons.append("trained in fp32, not in mixed precision")
    one_seed = "; one seed, whose noise is not measured" if len(values) == 1 else ""
    reason = join_notes(*reasons) or f"unexplained{one_seed}"
    return record | {"disagreement": f"differs from the published figure: {reason}"}


def short_list(records: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """Of each data set three networks of the study's split: the study's setup, fast and best."""
    networks = [r for r in records if r["published"] and r["opt"] and r["test_acc"] is not None]
    return {
        name: {
            "study": min(same, key=lambda r: "study's setup" not in r["what"]),
            "fast": min(same, key=lambda r: r["cost_ms"] or math.inf),
            "best": max(same, key=lambda r: r["val_acc"]),
        }
        for name, same in grouped(networks, lambda r: r["dataset"]).items()
    }


def best_published(group: Group) -> Row | None:
    """The study's best network, or SVM on pixels, on the images that this group was tested on."""
    config, part = group.config, "q1b" if group.kind == "svm" else "best"
    alike = (config.get("split", "study"), config.get("features", "raw")) == ("study", "raw")
    own = published(part, dataset=config["dataset"]) if alike else []
    return max(own, key=lambda figure: figure["test_acc"], default=None)


def results_table(train: Sequence[Row], svm: Sequence[Row]) -> Table:
    """The best of each data set: of the study's grid, other recipes of several seeds, and SVMs."""
    order, contests = rows.datasets_of([*train, *svm]), []
    for groups in rows.contests(train).values():
        # Others than the study's with a single seed only where there is nothing else.
        kept = [group for group in groups if len(group.rows) > 1 or not group.protocol]
        recipes = grouped(kept or groups, lambda group: group.protocol)
        contests += [recipes[name] for name in sorted(recipes)]  # the study's is ""
    contests += rows.contests(svm).values()
    devices = rows.devices_note(row for groups in contests for g in groups for row in g.rows)
    contests.sort(key=lambda groups: order.index(str(groups[0].config.get("dataset"))))
    records = [_result_record(group) for group in filter(None, map(rows.best_of, contests))]
    return make_table("results", records, devices, missing=not records)


def _result_record(group: Group) -> Row:
    """A chosen configuration, beside the study's best of its kind."""
    record, config = rows.choice_record(group), group.config
    low, acc, high = (record[f"test_acc{end}"] for end in ("_low", "", "_high"))
    accuracy = "-" if acc is None else f"{100 * acc:.2f} %"
    accuracy += "" if low is None else f" ({100 * low:.2f} to {100 * high:.2f})"
    best = (best_published(group) or {}).get("test_acc")
    words = ["SVM", *rows.in_words(config, ["kernel", "engine"])]
    setup = group.setup or "the study's setup"
    if group.kind == "train":  # of a network all that differs would fill the table
        words = rows.in_words(config, ("model", "opt", "epochs"))
        setup = "other setup" if setup == group.protocol else setup
    dataset, split = rows.display(str(config.get("dataset"))), config.get("split", "study")
    what = f"{', '.join(words)} ({setup})"
    what += "" if split == "study" else f", {split} split"
    what += f", by {rows.chosen_by(config)}" if rows.chosen_by(config) else ""
    if any(get(row, "metrics", "converged") is False for row in group.rows):
        what += ", stopped by max_iter"
    record |= {"what": f"{dataset}: {what}", "dataset": dataset, "opt": config.get("opt")}
    record |= {"test_accuracy": accuracy, "published_test_acc": best}
    return record | {"published": best and f"{100 * best:.2f} %"}


def published_table(train: Sequence[Row], svm: Sequence[Row]) -> Table:
    """The study's accuracies, each beside the run that differs in the fewest settings."""
    records, groups = [], {"q1a": rows.configurations(train), "q1b": rows.configurations(svm)}
    for figure in (figure for part in groups for figure in published(part)):
        kind, part = "svm" if figure["part"] == "q1b" else "train", figure["part"]
        same = {k: figure[k] for k in ("dataset", "model", "opt", "kernel") if k in figure}
        protocol = PROTOCOLS[kind][0] | {k: figure[k] for k in ("lr", "epochs") if k in figure}
        factors = [name for name in ("model", "opt", "lr", "epochs", "kernel") if name in figure]
        record = {"dataset": figure["dataset"], "published_test_acc": figure["test_acc"]}
        record["setting"] = ", ".join(rows.in_words(figure, factors))
        record["note"] = unmeasured(f"make {part}")

        def distance(group: Group, protocol: Row = protocol) -> tuple:
            other = sum(group.config.get(k, value) != value for k, value in protocol.items())
            return other, -len(group.rows), rows.order_of(group.config)

        near = [group for group in groups[part] if same.items() <= group.config.items()]
        if group := min(near, key=distance, default=None):
            record |= rows.accuracy_record(group) | beside(figure, group)
            noise = "test images and seeds" if record["seeds"] > 1 else "test images"
            other = deviations(group.config, protocol)
            within = f"within the noise of {noise}{f', in spite of {other}' if other else ''}"
            record["note"] = record.get("disagreement") or within
            record["runs"] = group.first()["run_id"]
        records.append(record)
    return make_table("published", records)


def study_rows(log: Iterable[Row], **where: object) -> list[Row]:
    """The finished measurements of the study's work, of these settings."""
    settings = (TIMED | where).items()
    return [row for row in rows.latest_ok(log, "hw_train") if settings <= row["config"].items()]


def sides(timed: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of the CPU, and of accelerators."""
    cpu = [row for row in timed if row["config"].get("device") == "cpu"]
    return cpu, [row for row in timed if rows.accelerator_of(row["config"])]


def plainness(row: Row) -> tuple[object, ...]:
    """Sorting key of a device's variants: our plain loop on most threads, then the surest times."""
    config = row["config"]
    sped_up = bool(config.get("compile") or config.get("cuda_graph"))
    other = config.get("loop", "ours") != "ours", sped_up
    slow = -(number(config, "threads") or 0), config.get("precision") in ("fp32", "tf32")
    return *other, *slow, unsureness(row), row["run_id"]


def unsureness(row: Row) -> float:
    """How far noise may move a median of steps, relative to it; most where that is not known."""
    noise, steps = number(row, "metrics", "noise"), number(row, "metrics", "step_ms", "n")
    return math.inf if noise is None or not steps else noise / math.sqrt(steps)


def seeds_of(timed: Sequence[Row]) -> list[Row]:
    """The plainest of a device's variants, with every seed on one machine."""
    variants = grouped(timed, lambda row: (rows.settings_of(row, "seed"), comparable(row))).values()
    plainest = min(variants, key=lambda same: min(map(plainness, same)), default=())
    return list({row["config"].get("seed"): row for row in plainest}.values())


def comparable(row: Row) -> tuple[object, ...]:
    """What two rows must share for their times to be compared."""
    return *machine_of(row["env"]), get(row, "env", "torch")


def rounds_of(*timed: Row) -> list[list[float]] | None:
    """Each row's times of the rounds that all were measured in, on one machine, or None."""
    groups = {(get(row, "metrics", "rounds", "group"), comparable(row)) for row in timed}
    times = [get(row, "metrics", "rounds", "step_ms") or [] for row in timed]
    together = len(groups) == 1 and get(timed[0], "metrics", "rounds", "group")
    whole = len(times[0]) > 1 and len(set(map(len, times))) == 1
    sound = together and whole and all(ms > 0 for each in times for ms in each)
    return times if sound else None


def time_ratio(slow: Row, fast: Row) -> tuple[float, Interval] | None:
    """How many times as long one's steps take as the other's, with its interval, if comparable."""
    if comparable(slow) != comparable(fast):
        return None
    if rounds := rounds_of(slow, fast):
        return ratio_interval(*rounds)
    steps = [get(row, "metrics", "step_ms") for row in (slow, fast)]
    steps = [[number(step, name) for name in ("median", "iqr", "n")] for step in steps]
    if any(None in step or step[0] <= 0 or step[2] < 2 for step in steps):
        return None
    return steps[0][0] / steps[1][0], median_ratio_interval(*steps)
