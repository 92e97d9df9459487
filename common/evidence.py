"""Which test images each trained network or machine got right, and matched pairs of them.

Configurations that share a training are one model here, however many rows tell of it: a row that
only repeats another's predictions is no further evidence.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from common.config import SvmConfig, TrainConfig, defaults_of
from common.measured import (
    ONE_SEED,
    SVM_FACTORS,
    SVM_PROTOCOL,
    TRAIN_FACTORS,
    TRAIN_PROTOCOL,
    Row,
    cost_of,
    datasets_of,
    deviations,
    division,
    get,
    latest_ok,
    number,
)
from common.stats import paired_interval, sign_flip_test, t_interval

# They change how images reach a device, and no arithmetic: two runs that differ in them alone are
# one training done twice.
TRANSPORT = ("pin_memory", "data_on")
PROTOCOLS = {"train": (TRAIN_PROTOCOL, TRAIN_FACTORS), "svm": (SVM_PROTOCOL, SVM_FACTORS)}
DEFAULTS = {"train": defaults_of(TrainConfig), "svm": defaults_of(SvmConfig)}

Load = Callable[[Row], tuple[Mapping[str, Any] | None, str | None]]


@dataclass(frozen=True)
class Model:
    """A trained network or machine. `test_images` is a hash of their indices and labels.

    Shapes: right (N,) bool, whether it answered each test image rightly.
    """

    row: Row
    right: np.ndarray
    test_images: str = ""

    @property
    def config(self) -> Row:
        """Its settings."""
        return self.row["config"]

    @property
    def seed(self) -> int:
        """The seed of its training."""
        return int(number(self.config, "seed") or 0)

    @property
    def trajectory(self) -> str:
        """The training that it is an epoch of: at a constant rate, whatever its length."""
        if self.config.get("schedule", "constant") == "constant" and "epochs" in self.config:
            return self.without("epochs")
        return trained_by(self.row)

    @cached_property
    def recipe(self) -> str:
        """What its study held fixed: all but the factors that were varied, and the seed."""
        return self.without(*PROTOCOLS[self.row["kind"]][1], "seed")

    @property
    def protocol(self) -> str:
        """How it differs from the study's protocol; empty where it does not."""
        return deviations(self.config, PROTOCOLS[self.row["kind"]][0])

    @property
    def images(self) -> tuple[str, ...]:
        """What tells one division of the images from another."""
        return division(self.config)

    def without(self, *names: str) -> str:
        """Its settings but for some, as text: what is equal in a matched pair."""
        settings = DEFAULTS[self.row["kind"]] | self.config
        rest = {k: v for k, v in settings.items() if k not in names and k not in TRANSPORT}
        return json.dumps(rest, sort_keys=True)


@dataclass(frozen=True)
class Evidence:
    """The models that can be compared, and an account of the rows that are not among them."""

    models: tuple[Model, ...]
    counts: tuple[Row, ...]
    reasons: Mapping[str, int]


def trained_by(row: Row) -> str:
    """The run_id of the run that was really trained."""
    return get(row, "metrics", "shared_with") or row["run_id"]


def collect(rows: Sequence[Row], load: Load) -> Evidence:
    """Every distinct model with predictions that can be used, by data set as in the report.

    `load` returns a row's predictions, or the reason why there are none.
    """
    models, counts, reasons = [], [], Counter()
    for kind in PROTOCOLS:
        done = latest_ok(rows, kind)
        for dataset in datasets_of(done):
            mine = [row for row in done if get(row, "config", "dataset") == dataset]
            single = distinct(mine)
            usable = [m for row in single if (m := _read(row, load, reasons))]
            kept = [model for group in _by_images(usable) for model in _same(group, reasons)]
            models += kept
            counts.append({
                "dataset": dataset, "kind": kind, "rows": len(mine),
                "same_training": len(mine) - len(single),
                "unusable": len(single) - len(kept), "models": len(kept),
                **_unfinished(rows, kind, dataset),
            })  # fmt: skip
    return Evidence(tuple(models), tuple(counts), reasons)


def distinct(rows: Sequence[Row]) -> list[Row]:
    """One row for each model, those without pinned memory first; of the same training done twice
    the later, whose code was that of the rest."""

    def pinned(row: Row) -> bool:
        return bool(row["config"].get("pin_memory"))

    latest_first = list(reversed(rows))
    kept: set[str] = set()
    seen: set[tuple[Any, ...]] = set()
    for row in sorted(latest_first, key=pinned):
        model = Model(row, np.empty(0))
        names = {(trained_by(row), row["config"].get("epochs")), (model.without(),)}
        if not names & seen:
            kept.add(row["run_id"])
        seen |= names
    return [row for row in sorted(rows, key=pinned) if row["run_id"] in kept]


def _read(row: Row, load: Load, reasons: Counter[str]) -> Model | None:
    held, problem = load(row)
    if held is None:
        names_none = not isinstance(get(row, "metrics", "predictions"), str)
        reasons["the row names no predictions" if names_none else str(problem)] += 1
        return None
    logged = number(row, "metrics", "n_test")
    if logged is not None and logged != len(held["label"]):
        reasons[f"run {row['run_id']}: {len(held['label'])} predictions for {logged} images"] += 1
        return None
    digest = hashlib.sha256(np.ascontiguousarray(held["label"]).astype("<i8").tobytes())
    digest.update(np.ascontiguousarray(held["index"]).astype("<i8").tobytes())
    return Model(row, np.asarray(held["pred"] == held["label"]), digest.hexdigest())


def _by_images(models: Iterable[Model]) -> list[list[Model]]:
    groups: dict[tuple[Any, ...], list[Model]] = {}
    for model in models:
        groups.setdefault(model.images, []).append(model)
    return list(groups.values())


def _same(group: Sequence[Model], reasons: Counter[str]) -> list[Model]:
    """Those that were tested on the same images with the same labels, and whose training split,
    for as many images, was the same one: the majority."""
    (images, _), *_ = Counter(model.test_images for model in group).most_common(1)
    splits: dict[Any, Counter[Any]] = {}
    for model in group:
        split = get(model.row, "metrics", "split_sha256")
        splits.setdefault(model.config.get("limit"), Counter())[split] += 1
    kept = []
    for model in group:
        (split, _), *_ = splits[model.config.get("limit")].most_common(1)
        if model.test_images != images:
            reasons[f"run {model.row['run_id']}: other test images or labels than the rest"] += 1
        elif get(model.row, "metrics", "split_sha256") != split:
            reasons[f"run {model.row['run_id']}: another split_sha256 than the rest"] += 1
        else:
            kept.append(model)
    return kept


def _unfinished(rows: Sequence[Row], kind: str, dataset: str) -> Row:
    """Runs that did not end well, each once: failed, interrupted, or epochs without a result."""
    mine = [row for row in rows if get(row, "config", "dataset") == dataset]
    ended = {row["run_id"]: row["status"] for row in mine if row["kind"] == kind}
    ok = {row["run_id"] for row in mine if row["kind"] == kind and row["status"] == "ok"}
    last = Counter(status for name, status in ended.items() if name not in ok)
    begun = {row["run_id"] for row in mine if row["kind"] == "epoch"} if kind == "train" else set()
    return {
        "failed": last["failed"],
        "interrupted": last["interrupted"],
        "partial": len(begun - ended.keys()),
    }


# --- matched pairs --------------------------------------------------------------------------------

Pair = tuple[Model, Model]


def matched(models: Iterable[Model], factor: str, first: Any, second: Any) -> list[Pair]:
    """Pairs of models that differ in one factor alone, on the same test images."""
    sides: dict[str, dict[Any, Model]] = {}
    for model in models:
        sides.setdefault(model.without(factor), {})[model.config.get(factor)] = model
    return [(s[first], s[second]) for s in sides.values() if first in s and second in s]


def main_recipe(pairs: Iterable[tuple[Model, ...]]) -> list[Any]:
    """The pairs of one recipe: the study's where there are any, else that of most pairs."""
    recipes: dict[str, list[tuple[Model, ...]]] = {}
    for pair in pairs:
        recipes.setdefault(pair[0].recipe, []).append(pair)

    def rank(recipe: str) -> tuple[bool, int, str]:
        return recipes[recipe][0][0].protocol != "", -len(recipes[recipe]), recipe

    return recipes[min(recipes, key=rank)] if recipes else []


def best_on_validation(models: Iterable[Model]) -> list[Model]:
    """The models, one a seed, of the configuration of highest mean validation accuracy; ties go to
    the shorter training."""
    groups: dict[str, list[Model]] = {}
    for model in models:
        if number(model.row, "metrics", "val_acc") is not None:
            groups.setdefault(model.without("seed"), []).append(model)

    def rank(group: list[Model]) -> tuple[float, float, str]:
        times = [number(m.row, "metrics", cost_of(m.row)) for m in group]
        cost = np.inf if None in times else float(np.mean(times))
        accuracy = np.mean([number(m.row, "metrics", "val_acc") for m in group])
        return -float(accuracy), cost, group[0].without("seed")

    return min(groups.values(), key=rank) if groups else []


def pair_seeds(first: Sequence[Model], second: Sequence[Model]) -> list[Pair]:
    """Two configurations' models by seed. One that has a single seed meets all of the other's; with
    no seed in common they meet in the order of their seeds, as independent runs may."""
    if len(first) == 1 or len(second) == 1:
        return [(a, b) for a in first for b in second]
    by_seed = {model.seed: model for model in second}
    pairs = [(model, by_seed[model.seed]) for model in first if model.seed in by_seed]
    sides = (sorted(side, key=lambda model: model.seed) for side in (first, second))
    return pairs or list(zip(*sides, strict=False))


# --- effects --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effect:
    """A difference of test accuracies, first minus second, averaged over matched pairs.

    `image` is the interval over test images, for these models as they were trained; `seed` that
    over seeds, where there are several; `seeds` is how many the side of fewer has.
    Units: fractions.
    """

    difference: float
    image: tuple[float, float]
    seed: tuple[float, float] | None
    p: float
    pairs: int
    seeds: int
    trajectories: int
    images: int
    first_only: int
    second_only: int

    @property
    def cautious(self) -> tuple[float, float]:
        """The smallest interval that holds both."""
        both = (self.image, self.seed or self.image)
        return min(low for low, _ in both), max(high for _, high in both)

    @property
    def seed_note(self) -> str:
        """What of the seeds' noise no interval holds."""
        if self.seed is None:
            return ONE_SEED
        return "" if self.seeds > 1 else "one side has one seed, whose noise is not in the interval"


def measure_effect(pairs: Sequence[Pair]) -> Effect:
    """The effect that matched pairs show. Raises: ValueError where there are none."""
    if not pairs:
        raise ValueError("an effect needs at least one pair")
    differences = [((a.seed, b.seed), a.right.astype(np.int32) - b.right) for a, b in pairs]
    return _effect(differences, {model.trajectory for pair in pairs for model in pair})


def measure_interaction(first: Sequence[Pair], second: Sequence[Pair]) -> Effect:
    """How much larger the effect of some pairs is than that of others, matched one by one."""
    differences = [
        ((a.seed, b.seed), a.right.astype(np.int32) - b.right - c.right + d.right)
        for (a, b), (c, d) in zip(first, second, strict=True)
    ]
    return _effect(differences, {m.trajectory for pair in (*first, *second) for m in pair})


def _effect(
    differences: Sequence[tuple[tuple[int, int], np.ndarray]], trajectories: set[str]
) -> Effect:
    """Shapes: differences (N,) of each pair, with its sides' seeds."""
    sums = np.sum([difference for _, difference in differences], axis=0)
    by_seed: dict[tuple[int, int], list[float]] = {}
    for seeds, difference in differences:
        by_seed.setdefault(seeds, []).append(float(difference.mean()))
    seeds = min(len(set(side)) for side in zip(*by_seed, strict=True))
    means = [float(np.mean(found)) for found in by_seed.values()]
    return Effect(
        difference=float(sums.mean() / len(differences)),
        image=paired_interval(sums, len(differences)),
        seed=t_interval(means),
        p=sign_flip_test(sums),
        pairs=len(differences),
        seeds=seeds,
        trajectories=len(trajectories),
        images=len(sums),
        first_only=sum(int(np.maximum(d, 0).sum()) for _, d in differences),
        second_only=sum(int(np.maximum(-d, 0).sum()) for _, d in differences),
    )
