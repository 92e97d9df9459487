"""What was measured, from the rows of the log, and what the study published beside it."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.base.config import NOISY, SvmConfig, TrainConfig, defaults_of
from common.base.log import TIMINGS, machine_of, timed_on
from common.data.datasets import may_mirror
from common.judge.stats import Estimate, difference_of, sample_spread, wilson_interval

Row = dict[str, Any]

MAX_SLUG = 80  # of the 255 bytes that file systems take
STUDY_DATASETS = {"mnist": "MNIST", "fashion": "FashionMNIST"}
STUDY_TEST_IMAGES = 14_000
ONE_SEED = "one seed: the interval holds the noise of test images only"

# What the study held fixed. A run that differs in one of these is not beside a published figure.
TRAIN_PROTOCOL = {
    "split": "study", "limit": None, "image_size": 64, "batch_size": 16, "amp": True,
    "weights": None, "weight_decay": None, "schedule": "constant", "label_smoothing": 0.0,
    "translate": 0, "flip": False, "erase": 0.0, "tta": False, "world_size": 1,
}  # fmt: skip
SVM_PROTOCOL = {
    "split": "study", "samples": 10_000, "features": "raw", "C": 1.0, "gamma": "scale",
    "max_iter": 1000, "image_size": None,
}  # fmt: skip
TRAIN_FACTORS = ("dataset", "model", "opt", "lr", "epochs", "pin_memory")
SVM_FACTORS = ("dataset", "kernel")
DEFAULTS = {"train": defaults_of(TrainConfig), "svm": defaults_of(SvmConfig)}
# They change how images reach a device, and no arithmetic: two runs that differ in them alone are
# one training done twice.
TRANSPORT = ("pin_memory", "data_on")


def get(row: Any, *path: str) -> Any:
    """A value deep in a row, or None where any step to it is missing."""
    for step in path:
        row = row.get(step) if isinstance(row, dict) else None
    return row


def number(row: Any, *path: str) -> float | None:
    """A number deep in a row, or None where it is missing, null or something else."""
    value = get(row, *path)
    return None if isinstance(value, bool) or not isinstance(value, (int, float)) else value


def latest_ok(rows: Iterable[Row], kind: str) -> list[Row]:
    """The successful rows of a kind; of those that name the same work, the last one. The same work
    timed on two machines is not the same."""
    last = {}
    for row in rows:
        if row["kind"] == kind and row["status"] == "ok":
            machine = timed_on(row["env"]) if kind in TIMINGS else None
            key = row["run_id"], get(row, "metrics", "epoch") if kind == "epoch" else machine
            last.pop(key, None)  # so that the order is that of the rows that count
            last[key] = row
    return list(last.values())


def machine_notes(rows: Sequence[Row]) -> list[str]:
    """The device of each row, where they are of several machines; else nothing."""
    several = len({machine_of(row["env"]) for row in rows}) > 1  # whatever their devices
    if not several:
        return [""] * len(rows)
    return [
        ", ".join(filter(None, (get(row, "env", "device"), get(row, "env", "cpu_model"))))
        for row in rows
    ]


@dataclass(frozen=True)
class Group:
    """The runs of one configuration, which differ in their seed alone."""

    config: Row
    rows: tuple[Row, ...]

    def values(self, metric: str) -> list[float]:
        """The metric of each seed that has it."""
        found = (number(row, "metrics", metric) for row in self.rows)
        return [value for value in found if value is not None]

    def mean(self, metric: str) -> float | None:
        """Mean over seeds."""
        values = self.values(metric)
        return statistics.fmean(values) if values else None

    def first(self) -> Row:
        """The run that stands for the group where only one can be shown: the lowest seed's."""
        return min(self.rows, key=lambda row: (number(row, "config", "seed") or 0, row["run_id"]))


def settings_of(row: Row, *left_out: str) -> str:
    """A run's settings but for some, as text: what is equal in runs that are compared."""
    settings = DEFAULTS.get(row["kind"], {}) | row["config"]
    return json.dumps({k: v for k, v in settings.items() if k not in left_out}, sort_keys=True)


def by_seed(rows: Iterable[Row], *left_out: str) -> list[Group]:
    """Group runs that differ in their seed alone, or in what else is left out."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(settings_of(row, "seed", *left_out), []).append(row)
    return [
        Group({k: v for k, v in rows[0]["config"].items() if k != "seed"}, tuple(rows))
        for rows in groups.values()
    ]


def trained_by(row: Row) -> str:
    """The run_id of the run that was really trained."""
    return get(row, "metrics", "shared_with") or row["run_id"]


def distinct(rows: Sequence[Row]) -> list[Row]:
    """One row for each model, those without pinned memory first; of the same training done twice
    the later, whose code was that of the rest."""

    def pinned(row: Row) -> bool:
        return bool(row["config"].get("pin_memory"))

    latest_first = list(reversed(rows))
    kept: set[str] = set()
    seen: set[tuple[Any, ...]] = set()
    for row in sorted(latest_first, key=pinned):
        trained = (trained_by(row), row["config"].get("epochs"))
        names = {trained, (settings_of(row, *TRANSPORT),)}
        if not names & seen:
            kept.add(row["run_id"])
        seen |= names
    return [row for row in sorted(rows, key=pinned) if row["run_id"] in kept]


def configurations(rows: Sequence[Row]) -> list[Group]:
    """The configurations that were trained, each training once."""
    return by_seed(distinct(rows), *TRANSPORT)


ACCURACY_INTERVAL = (
    "95 %: Wilson's interval on the test images and Student's over the seeds, where there are "
    "several, joined as independent noises"
)


def accuracy_interval(group: Group) -> tuple[float, float] | None:
    """95 % interval of the mean test accuracy: Wilson's on the test images, joined with Student's
    over seeds where there are several."""
    values, total = group.values("test_acc"), number(group.rows[0], "metrics", "n_test")
    if not values or not total:
        return None
    mean = statistics.fmean(values)
    image = wilson_interval(round(mean * total), int(total))
    low, high = Estimate(mean, image, tuple(sample_spread(values))).interval()
    return max(low, 0.0), min(high, 1.0)


def cost_of(row: Row) -> str:
    """The metric that tells what a run cost: of an SVM its fit."""
    return "fit_ms" if row["kind"] == "svm" else "train_ms"


def best_of(groups: Iterable[Group]) -> Group | None:
    """The best: of highest mean validation accuracy; ties go to the shorter training or fit, then
    to the name. Test accuracy has no part in it. None where no group has a validation accuracy."""

    def rank(group: Group) -> tuple[float, float, str]:
        cost_ms = group.mean(cost_of(group.rows[0]))
        duration_ms = math.inf if cost_ms is None else cost_ms
        return -group.mean("val_acc"), duration_ms, settings_of(group.rows[0], "seed")

    known = [group for group in groups if group.mean("val_acc") is not None]
    return min(known, key=rank, default=None)


def pick_best(rows: Sequence[Row]) -> list[Group]:
    """The best network, and the best SVM, of each data set and split."""
    kinds: dict[tuple[str, ...], list[Group]] = {}
    for group in configurations(rows):
        kinds.setdefault((group.rows[0]["kind"], *division(group.config)), []).append(group)
    return [best for groups in kinds.values() if (best := best_of(groups))]


def division(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What tells one division of the images from another."""
    return tuple(str(config.get(k)) for k in ("dataset", "split", "split_seed"))


def trajectory(best: Row, epochs: Sequence[Row]) -> list[Row]:
    """The epoch rows behind a run, of the run that was really trained where it is shared."""
    trained = get(best, "metrics", "shared_with") or best["run_id"]
    length = number(best, "config", "epochs") or 0
    found = [row for row in epochs if row["run_id"] == trained]
    found = [row for row in found if (number(row, "metrics", "epoch") or 0) <= length]
    return sorted(found, key=lambda row: number(row, "metrics", "epoch") or 0)


def slug(text: str) -> str:
    """A name that is safe in a file name, cut to its end where it is long."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower())[-MAX_SLUG:].strip("_") or "unnamed"


def datasets_of(rows: Iterable[Row]) -> list[str]:
    """The study's data sets, then the others in the log."""
    return list(dict.fromkeys([*STUDY_DATASETS, *(str(get(r, "config", "dataset")) for r in rows)]))


def display(dataset: str) -> str:
    """A data set's name as its authors write it."""
    return STUDY_DATASETS.get(dataset) or shorten(dataset)


def shorten(dataset: str) -> str:
    """A data set's name, of your own images without the folders that they are in."""
    kind, colon, path = dataset.partition(":")
    return kind + colon + path.rsplit("/", 1)[-1]


def load_published() -> list[Row]:
    """Every figure of the study's tables; accuracies are fractions, times are milliseconds."""
    return json.loads(Path(__file__).with_name("published.json").read_text())


# --- published beside measured --------------------------------------------------------------------


def deviations(config: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    """How a run differs from the study's protocol; empty where it does not."""
    other = {k: config.get(k) for k, value in protocol.items() if config.get(k, value) != value}
    if not may_mirror(str(config.get("dataset"))):
        other = {k: v for k, v in other.items() if k not in ("flip", "tta")}  # they do nothing
    if not other:
        return ""
    smaller = {k for k in ("image_size", "samples") if isinstance(other.get(k), int)}
    reduced = other.get("limit") or any(other[k] < (protocol[k] or 0) for k in smaller)
    settings = ", ".join(f"{k.replace('_', ' ')} {plain(value)}" for k, value in other.items())
    return f"{'reduced' if reduced else 'other'} protocol: {settings}"


def plain(value: Any) -> str:
    """A setting's value in words."""
    if value is None:
        return "default"
    return str(value).lower() if isinstance(value, bool) else str(value)


def varying_settings(
    configs: Sequence[Mapping[str, Any]], shown: Collection[str] = ()
) -> list[str]:
    """The settings in which configurations differ, but those that are shown anyway."""
    names = dict.fromkeys(k for config in configs for k in config if k not in shown)
    return [k for k in names if len({json.dumps(c.get(k)) for c in configs}) > 1]


def describe(config: Mapping[str, Any], varying: Sequence[str]) -> str:
    """A run in words: its model, and of its settings those named."""
    if "model" in config:
        said = [plain(config["model"]), plain(config.get("opt")), f"rate {plain(config.get('lr'))}"]
    else:
        said = ["SVM", plain(config.get("kernel"))]
    told = {"dataset", "model", "opt", "lr", "kernel"}
    said += [f"{k.replace('_', ' ')} {plain(config.get(k))}" for k in varying if k not in told]
    return ", ".join(said)


def describe_all(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Runs in words, each told from the others of the same model and data set."""
    kinds: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    keys = [tuple(str(c.get(k)) for k in ("dataset", "model", "kernel")) for c in configs]
    for key, config in zip(keys, configs, strict=True):
        kinds.setdefault(key, []).append(config)
    varying = {key: varying_settings(kind) for key, kind in kinds.items()}
    return [describe(c, varying[key]) for key, c in zip(keys, configs, strict=True)]


def order_of(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """Sorting key of configurations, the study's factors first."""
    names = ("model", "kernel", "opt", "lr", "epochs", "pin_memory")
    return (*(str(config.get(k)) for k in names), json.dumps(config, sort_keys=True))


def side_by_side(
    groups: Sequence[Group], published: Sequence[Row], protocol: Row, factors: Sequence[str],
    command: str,
) -> list[Row]:  # fmt: skip
    """A record for each configuration measured, the study's protocol first, and for each published
    one that was not, with the command that measures it.

    A published figure enters the record of a run only if that run kept to the study's protocol.
    """
    figures = {tuple(row[k] for k in factors): row for row in published}
    waiting = dict(figures)
    varying = varying_settings([g.config for g in groups], {*factors, *protocol})
    records = []
    for group in groups:
        other = deviations(group.config, protocol)
        key = tuple(group.config.get(k) for k in factors)
        record = {k: group.config.get(k) for k in (*factors, *protocol)} | accuracy_record(group)
        if not other and key in figures:
            record |= _published(figures[key]) | difference_record(group, figures[key])
            waiting.pop(key, None)
        extra = [f"{k.replace('_', ' ')} {plain(group.config.get(k))}" for k in varying]
        apart = record.pop("disagreement", "")
        record["note"] = join_notes(other, *extra, *map(busy_note, group.rows), apart)
        records.append((1 if other else 0, order_of(group.config), record | {"group": group}))
    for row in waiting.values():
        rest = {k: row[k] for k in (*TRAIN_FACTORS, "kernel", "samples") if k in row}
        rest |= _published(row)
        records.append((2, order_of(row), rest | {"note": unmeasured_note(command)}))
    return [record for *_, record in sorted(records, key=lambda item: item[:2])]


def unmeasured_note(command: str, reason: str = "no finished run of it in the log") -> str:
    """Why nothing stands beside a published figure, and what would."""
    return f"not measured, {reason}: {command} measures it"


def _published(row: Row) -> Row:
    return {
        "published_test_acc": row["test_acc"],
        "published_val_acc": row.get("val_acc"),
        "published_fit_ms": row.get("fit_ms"),
    }


def difference_record(group: Group, figure: Row) -> Row:
    """Mean test accuracy minus the published one, of one run on other images, whose seed is taken
    to vary as these do; and the reason where its 95 % interval does not hold zero."""
    values, images = group.values("test_acc"), number(group.rows[0], "metrics", "n_test")
    if not values:
        return {}
    record: Row = {"difference": statistics.fmean(values) - figure["test_acc"]}
    if not images:
        return record
    found = difference_of(values, [figure["test_acc"]], (int(images), STUDY_TEST_IMAGES))
    low, high = found.interval()
    record |= {"difference_low": low, "difference_high": high}
    if not low <= 0 <= high:
        reason = explain_difference(group, figure)
        record["disagreement"] = f"differs from the published figure: {reason}"
    return record


def explain_difference(group: Group, figure: Row) -> str:
    """What is known to differ between a configuration's runs and the study's."""
    names = [k for k in (*TRAIN_FACTORS, "kernel") if k in figure and k != "pin_memory"]
    protocol = SVM_PROTOCOL if "kernel" in figure else TRAIN_PROTOCOL
    factors = {k: figure[k] for k in names}
    known = [deviations(group.config, {**protocol, **factors})]
    if any(get(row, "metrics", "converged") is False for row in group.rows):
        known.append("max_iter stopped the solver, whose path may be another")
    if any(get(row, "metrics", "precision") == "fp32" for row in group.rows):
        known.append("trained in fp32, not in mixed precision")
    one = "; one seed, whose noise is not measured" if len(group.values("test_acc")) == 1 else ""
    return join_notes(*known) or f"unexplained{one}"


def accuracy_record(group: Group) -> Row:
    """Mean, spread over seeds and interval of a configuration's accuracy."""
    values = group.values("test_acc")
    low, high = accuracy_interval(group) or (None, None)
    return {
        "seeds": len(group.rows),
        "val_acc": group.mean("val_acc"),
        "test_acc": group.mean("test_acc"),
        "test_acc_sd": statistics.stdev(values) if len(values) > 1 else None,
        "test_acc_low": low,
        "test_acc_high": high,
    }


def choice_record(group: Group) -> Row:
    """A chosen configuration in words and numbers; the cost of a machine is its fit."""
    row = group.first()
    svm = row["kind"] == "svm"
    return accuracy_record(group) | {
        "name": describe(group.config, [] if svm else ["epochs"]),
        "run_id": row["run_id"], "cost_ms": group.mean(cost_of(row)),
        "n_test": number(row, "metrics", "n_test"), "device": get(row, "env", "device"),
        "protocol": deviations(group.config, SVM_PROTOCOL if svm else TRAIN_PROTOCOL),
    }  # fmt: skip


def join_notes(*notes: str) -> str | None:
    """The notes that say anything, each once."""
    return "; ".join(dict.fromkeys(filter(None, notes))) or None


def busy_note(row: Row) -> str:
    """Says so where the machine had more to do than this run when it was timed."""
    load, cpus = load_of(row), number(row, "env", "cpu_count")
    if not cpus or load <= 1.5 * cpus:
        return ""
    return f"busy machine: load {load:.1f} on {cpus:g} CPUs"


def load_of(row: Row) -> float:
    """The load average of the minute before a row was written; 0 where it is not known."""
    load = get(row, "env", "load_average")
    known = isinstance(load, list) and load and isinstance(load[0], int | float)
    return float(load[0]) if known else 0.0


def noise_note(row: Row) -> str:
    """Says that a timing spread more than it should."""
    noise = number(row, "metrics", "noise")
    return f"noisy: IQR {noise:.0%} of the median" if noise and noise > NOISY else ""


def devices_note(rows: Iterable[Row]) -> str:
    """The devices behind a table, with the number of rows of each."""
    found = Counter(str(get(row, "env", "device")) for row in rows)
    return "Measured on " + ", ".join(f"{k} (rows: {n})" for k, n in found.items()) if found else ""
