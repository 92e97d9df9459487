"""Rows of the log: which count, which are of one configuration, which of these was chosen on
validation, and how to say it. They stay dicts: a DataFrame makes floats of integers beside None."""

import json
import math
import re
import statistics
import tomllib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.base.cli import as_dict, format_time
from common.base.config import METRICS, NOISY, SvmConfig, TrainConfig, may_mirror, preset_of
from common.base.log import TIMINGS, Log, Row, run_id
from common.base.machine import timed_on
from common.data.scores import baseline
from common.judge.stats import Estimate, sample_spread, wilson_interval

STUDY = tomllib.loads(Path(__file__).with_name("study.toml").read_text("utf-8"))
STUDY_DATASETS = STUDY["datasets"]
# What a row meant that is older than a setting.
DEFAULTS = {"train": vars(TrainConfig()), "svm": vars(SvmConfig())}
# By kind of run: what the study held fixed, with its values, and what it varied.
PROTOCOLS = {
    kind: ({name: DEFAULTS[kind][name] for name in STUDY[kind]["fixed"]}, STUDY[kind]["factors"])
    for kind in DEFAULTS
}
TRAIN_PROTOCOL = PROTOCOLS["train"][0]
OFF = (None, False, 0, "constant", "raw", "none")  # values of settings that do nothing
# How images and kernels reach a device, no arithmetic: runs that differ in these alone are one
# training repeated.
TRANSPORT = ("pin_memory", "data_on", "cuda_graph")
REPEATED = ("seed", "split_seed")  # what runs of one configuration may differ in
NAMED = ("dataset", "model", "opt", "lr", "kernel")  # settings that are said of every run


def get(row: Any, *path: str) -> Any:
    """A value deep in a row, or None where a step to it is missing; "0" is the first of a list."""
    for step in path:
        items = {str(i): item for i, item in enumerate(row)} if isinstance(row, list) else row
        row = items.get(step) if isinstance(items, dict) else None
    return row


def number(row: Any, *path: str) -> float | None:
    """A number deep in a row, or None where it is missing, null or something else."""
    value = get(row, *path)
    return None if isinstance(value, bool) or not isinstance(value, int | float) else value


def grouped(items: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """Items by key, in the order in which the keys come."""
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def latest_ok(rows: Iterable[Row], kind: str) -> list[Row]:
    """The last successful row of each work of a kind; what two machines timed is two works."""
    last: dict[Any, Row] = {}
    for row in rows:
        if (row["kind"], row["status"]) == (kind, "ok"):
            part = timed_on(row["env"]) if kind in TIMINGS else get(row, "metrics", "epoch")
            last.pop((row["run_id"], part), None)  # so that the order is that of those that count
            last[row["run_id"], part] = row
    return list(last.values())


@dataclass(frozen=True, eq=False)
class Group:
    """The runs of one configuration: of several seeds, or of several random splits of the images,
    which count as seeds do."""

    config: Row
    rows: tuple[Row, ...]

    @property
    def kind(self) -> str:
        return self.rows[0]["kind"]

    @property
    def protocol(self) -> str:
        return deviations(self.config, PROTOCOLS[self.kind][0])

    @property
    def setup(self) -> str:
        """How it differs from the study's protocol, or the preset that does."""
        preset = preset_of(self.config) if self.protocol and self.kind == "train" else None
        return f"--preset {preset}" if preset else self.protocol

    def name(self, *left_out: str) -> str:
        """What the study varied, but for some of it, and the setup where it is another."""
        hidden = {"dataset", "pin_memory", *left_out}
        factors = [name for name in PROTOCOLS[self.kind][1] if name not in hidden]
        words = ", ".join(in_words(self.config, factors))
        words += f", on {kind}" if (kind := accelerator_of(self.config)) else ""
        return f"{words} ({self.setup})" if self.setup else words

    def values(self, metric: str) -> list[float]:
        values = (number(row, "metrics", metric) for row in self.rows)
        return [value for value in values if value is not None]

    def mean(self, metric: str) -> float | None:
        values = self.values(metric)
        return statistics.fmean(values) if values else None

    def val(self) -> float | None:
        """What it is chosen by: the mean over seeds of its score on validation images."""
        return self.mean(f"val_{metric_of(self.config)}")

    def cost_ms(self) -> float | None:
        return self.mean("fit_ms" if self.kind == "svm" else "train_ms")

    def first(self) -> Row:
        """The run that is shown where only one can be: the lowest seed's."""
        return min(self.rows, key=lambda row: (repeat_of(row), row["run_id"]))

    def without(self, *names: str) -> str:
        """Its settings but for some, as text."""
        return settings_of(self.rows[0], *REPEATED, *TRANSPORT, *names)


def settings_of(row: Row, *left_out: str) -> str:
    """A run's settings but for some, as text; a row older than a setting is of its default."""
    settings = DEFAULTS.get(row["kind"], {}) | row["config"]
    return json.dumps({k: v for k, v in settings.items() if k not in left_out}, sort_keys=True)


def by_seed(rows: Iterable[Row], *left_out: str) -> list[Group]:
    return [
        Group({k: v for k, v in same[0]["config"].items() if k not in REPEATED}, tuple(same))
        for same in grouped(rows, lambda row: settings_of(row, *REPEATED, *left_out)).values()
    ]


def repeat_of(row: Row) -> tuple[Any, ...]:
    """Which of a configuration's runs it is: its split's seed and its own."""
    return tuple(number(row, "config", name) or 0 for name in REPEATED[::-1])


def accelerator_of(config: Row) -> str | None:
    """The kind of accelerator that a configuration is of; None of a CPU."""
    kind = config.get("device")
    return None if kind in ("cpu", "auto") else kind


def trained_by(row: Row) -> str:
    """The run_id of the run that was really trained."""
    return get(row, "metrics", "shared_with") or row["run_id"]


def distinct(rows: Sequence[Row]) -> list[Row]:
    """One row for each model of a contest, unpinned memory first; of repeated runs the last."""

    def pinned(row: Row) -> bool:
        return bool(row["config"].get("pin_memory"))

    kept, seen, latest_first = [], set(), rows[::-1]
    for row in sorted(latest_first, key=pinned):
        trained = trained_by(row), row["config"].get("epochs"), metric_of(row["config"])
        names = {trained, settings_of(row, *TRANSPORT)}
        if not names & seen:
            kept.insert(0, row)
        seen |= names
    return sorted(kept, key=pinned)


def on_same_splits(rows: Sequence[Row]) -> list[Row]:
    """Of each contest the runs on the same random splits of the images, of configurations that have
    them all: those splits that leave most runs. Means over different splits do not compare."""
    kept = []
    for groups in grouped(by_seed(rows, *TRANSPORT), lambda g: division(g.config)).values():
        splits = [frozenset(row["config"].get("split_seed") for row in g.rows) for g in groups]
        most = max(splits, key=lambda own: (sum(o >= own for o in splits) * len(own), len(own)))
        whole = (g for g, own in zip(groups, splits, strict=True) if own >= most)
        kept += [row for g in whole for row in g.rows if row["config"].get("split_seed") in most]
    return kept


def configurations(rows: Sequence[Row]) -> list[Group]:
    """The configurations that were trained, each training once, on the same splits."""
    return by_seed(on_same_splits(distinct(rows)), *TRANSPORT)


def metric_of(config: Row) -> str:
    """By what of validation images a configuration is chosen, as a row's metrics end."""
    return METRICS.get(str(config.get("metric")), "acc")


def chosen_by(config: Row) -> str:
    """The same in words, where it is not accuracy."""
    return STUDY["metrics"].get(metric_of(config), "")


def division(config: Row) -> tuple[str, ...]:
    """What tells one contest from another: images, how they are split, and what is chosen by."""
    return str(config.get("dataset")), str(config.get("split")), metric_of(config)


def split_name(config: Row) -> str:
    """A data set, its split and what is chosen by, as a heading."""
    dataset, split = str(config.get("dataset")), config.get("split", "study")
    kind = "the study's" if dataset in STUDY_DATASETS else "random"
    name = f"{display(dataset)}, {kind if split == 'study' else split} split"
    return f"{name}, by {chosen_by(config)}" if chosen_by(config) else name


def best_of(groups: Iterable[Group]) -> Group | None:
    """The best on validation images, never on test images; ties: the shorter training, the name."""

    def rank(group: Group) -> tuple[float, float, str]:
        return -group.val(), group.cost_ms() or math.inf, settings_of(group.rows[0], *REPEATED)

    return min((g for g in groups if g.val() is not None), key=rank, default=None)


def contests(rows: Sequence[Row]) -> dict[tuple[str, ...], list[Group]]:
    """The configurations that compete: networks, or SVMs, of one data set and split."""
    return grouped(configurations(rows), lambda group: (group.kind, *division(group.config)))


def pick_best(rows: Sequence[Row]) -> list[Group]:
    """The best network, and the best SVM, of each data set and split."""
    return [best for groups in contests(rows).values() if (best := best_of(groups))]


def print_leader(log: Log, kind: str, configs: Iterable[Any], run: Any) -> None:
    """Which of the configurations that compete with `run`, now done, leads; of seeds alone none."""
    asked, own = map(as_dict, configs), division(as_dict(run))
    rivals = {run_id(kind, config): config for config in asked if division(config) == own}
    varying = varying_settings(list(rivals.values()), (*REPEATED, *TRANSPORT))
    done = log.finished(kind) if varying else {}  # of seeds alone nothing is read
    rows = [row for name, row in done.items() if name in rivals]
    for best in pick_best(rows):
        n, data, by = len(best.rows), display(best.config["dataset"]), chosen_by(best.config)
        name = describe(best.config, [setting for setting in varying if setting not in NAMED])
        score = f"{100 * best.val():.2f} % {by}".rstrip() + " on validation"
        score += f", mean of {n} seeds" if n > 1 else ""
        done_of = f"({len(rows)} of {len(rivals)} done)"
        print(f"  leads on {data}, {score}: {name} {done_of}", flush=True)


def trajectory(run: Row, epochs: Iterable[Row]) -> list[Row]:
    """The epoch rows behind a run, of the run that was really trained where it is shared."""
    trained, length = trained_by(run), number(run, "config", "epochs") or 0
    own = [(number(r, "metrics", "epoch") or 0, r) for r in epochs if r["run_id"] == trained]
    return [row for n, row in sorted(own, key=lambda item: item[0]) if n <= length]


def accuracy_record(group: Group) -> Row:
    """Mean accuracies; of test images the sd over seeds, and the 95 % interval of both noises; and
    so of balanced accuracy and macro F1 where classes are unequal, or it is chosen by them."""
    values, metrics = group.values("test_acc"), group.rows[0]["metrics"]
    base, images = baseline(metrics), number(metrics, "n_test")
    record: Row = dict.fromkeys(("test_acc", "test_acc_low", "test_acc_high"))
    record["test_acc_sd"] = statistics.stdev(values) if len(values) > 1 else None
    record |= {"seeds": len(group.rows), "val_acc": group.mean("val_acc")}
    shown = ["balanced", "f1"] if base or metric_of(group.config) != "acc" else []
    for name in ("acc", *shown):
        if not (values := group.values(f"test_{name}")):
            continue
        mean = statistics.fmean(values)
        record |= {f"test_{name}": mean, f"val_{name}": group.mean(f"val_{name}")}
        known = [get(row, "metrics", f"test_{name}_interval") for row in group.rows]
        if name == "acc" and images:
            known = [wilson_interval(round(mean * images), int(images))]
        if all(known):
            image = tuple(map(statistics.fmean, zip(*known, strict=True)))
            low, high = Estimate(mean, image, sample_spread(values)).interval()
            record |= {f"test_{name}_low": max(low, 0.0), f"test_{name}_high": min(high, 1.0)}
    return record | {f"always_{name}": value for name, value in base.items()}


def choice_record(group: Group) -> Row:
    """A configuration in words and numbers; of its cost the mean over seeds."""
    row, ms, env = group.first(), group.cost_ms(), group.first()["env"]
    threads = number(env, "threads") if env.get("device") == env.get("cpu") else None
    how = [f"{threads:g} thread{'s' * (threads > 1)}"] if threads and group.kind == "train" else []
    how += [str(env.get("device", kind))] if (kind := accelerator_of(group.config)) else []
    how += ["busy machine"] if any(map(busy_note, group.rows)) else []
    cost = "unknown time" if ms is None else format_time(ms / 1e3)
    cost += f" ({', '.join(how)})" if how else ""
    record = accuracy_record(group) | {"protocol": group.protocol, "run_id": row["run_id"]}
    record |= {"name": ("SVM, " if group.kind == "svm" else "") + group.name(), "cost_ms": ms}
    record |= {"n_test": number(row, "metrics", "n_test"), "device": env.get("device")}
    return record | {"threads": threads, "cost": cost, "machine": timed_on(env)}


def slug(text: str) -> str:
    """A name that is safe in a file name, whose 255 bytes it must leave some of."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower())[-80:].strip("_") or "unnamed"


def datasets_of(rows: Iterable[Row]) -> list[str]:
    """The study's data sets, unless all rows are of others, then the others in the log."""
    names = list(dict.fromkeys(str(get(row, "config", "dataset")) for row in rows))
    study = [] if names and STUDY_DATASETS.keys().isdisjoint(names) else STUDY_DATASETS
    return list(dict.fromkeys([*study, *names]))


def display(dataset: str) -> str:
    """A data set's name as its authors write it; of your own images without their folders."""
    kind, colon, path = dataset.partition(":")
    return STUDY_DATASETS.get(dataset) or kind + colon + path.rsplit("/", 1)[-1]


def spell(name: str, value: Any) -> str:
    """The value of a setting as people write it."""
    text = "default" if value is None else str(value)
    if name == "dataset":
        return display(text)
    if name in ("model", "opt", "kernel", "features"):
        return STUDY["spelled"].get(text) or re.sub(r"^resnet(\d+)$", r"ResNet-\1", text)
    return text.lower() if isinstance(value, bool) else text


def say(name: str, value: Any, prose: bool = False) -> str:
    """A setting in words; in prose with its article."""
    forms = STUDY["said"] | (STUDY["prose"] if prose else {})
    form = forms.get(name, name.replace("_", " ") + " {}")
    form = form[value in OFF] if isinstance(form, list) else form
    text = form.format(spell(name, value))
    return text.removesuffix("s") if (name, value) == ("epochs", 1) else text


def in_words(config: Row, names: Iterable[str]) -> list[str]:
    return [say(name, config.get(name)) for name in names]


def deviations(config: Row, protocol: Row) -> str:
    """How a run differs from the study's protocol; empty where it does not."""
    other = {k: config.get(k) for k, value in protocol.items() if config.get(k, value) != value}
    if not may_mirror(str(config.get("dataset"))):
        other = {k: v for k, v in other.items() if k not in ("flip", "tta")}  # they do nothing
    if not other:
        return ""
    sizes = [k for k in ("image_size", "samples") if isinstance(other.get(k), int)]
    reduced = other.get("limit") or any(other[k] < (protocol[k] or 0) for k in sizes)
    return f"{'reduced' if reduced else 'other'} setup: {', '.join(in_words(other, other))}"


def varying_settings(configs: Sequence[Row], shown: Collection[str]) -> list[str]:
    """The settings in which configurations differ, but those that are shown anyway."""
    names = dict.fromkeys(k for config in configs for k in config if k not in shown)
    return [k for k in names if len({json.dumps(c.get(k)) for c in configs}) > 1]


def describe(config: Row, names: Iterable[str]) -> str:
    """A run in words: its model, and of its other settings those named."""
    head = ["SVM", *in_words(config, ["kernel"])]
    if "model" in config:
        head = in_words(config, ("model", "opt", "lr"))
    return ", ".join([*head, *in_words(config, names)])


def describe_all(configs: Sequence[Row]) -> list[str]:
    """Runs in words, each told from the others of the same model and data set."""

    def kind(config: Row) -> tuple[str, ...]:
        return tuple(str(config.get(name)) for name in ("dataset", "model", "kernel"))

    varying = {key: varying_settings(same, NAMED) for key, same in grouped(configs, kind).items()}
    return [describe(config, varying[kind(config)]) for config in configs]


def order_of(config: Row) -> tuple[str, ...]:
    """Sorting key of configurations, the study's factors first."""
    names = ("model", "kernel", "opt", "lr", "epochs", "pin_memory")
    return *(str(config.get(name)) for name in names), json.dumps(config, sort_keys=True)


def join_notes(*notes: str | None) -> str | None:
    """The notes that are not empty, each once."""
    return "; ".join(dict.fromkeys(filter(None, notes))) or None


def busy_note(row: Row) -> str:
    """That others computed beside a run: its own threads, else all cores, explain its load."""
    load = number(row, "env", "load_average", "0") or 0.0  # of the minute before it was written
    own = number(row, "env", "threads" if row["kind"] == "train" else "cpu_count")
    own = own or number(row, "env", "cpu_count") or math.inf
    return f"busy machine: load {load:.1f}, {own:g} of it its own" if load > own + 0.5 else ""


def noise_note(row: Row) -> str:
    noise = number(row, "metrics", "noise") or 0.0
    return f"noisy: IQR {100 * noise:.0f} % of the median" if noise > NOISY else ""


def devices_note(rows: Iterable[Row]) -> str:
    counts = Counter(str(get(row, "env", "device")) for row in rows)
    devices = ", ".join(f"{device} (rows: {n})" for device, n in counts.items())
    return f"Measured on {devices}" if devices else ""
