"""Which test images each trained network or machine got right, and matched pairs of them.

Configurations that share a training are one model here, however many rows tell of it: a row that
only repeats another's predictions is no further evidence.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from common.judge.rows import (
    ONE_SEED,
    SVM_FACTORS,
    SVM_PROTOCOL,
    TRAIN_FACTORS,
    TRAIN_PROTOCOL,
    TRANSPORT,
    Group,
    Row,
    best_of,
    datasets_of,
    deviations,
    distinct,
    division,
    get,
    latest_ok,
    number,
    settings_of,
)
from common.judge.stats import Estimate, Spread, lend, paired_interval, sign_flip_test

PROTOCOLS = {"train": (TRAIN_PROTOCOL, TRAIN_FACTORS), "svm": (SVM_PROTOCOL, SVM_FACTORS)}

Load = Callable[[Row], tuple[Mapping[str, Any] | None, str | None]]


@dataclass(frozen=True, eq=False)
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
    def family(self) -> str:
        """The trainings that it is of, whatever their seed: at a constant learning rate those of
        any length are epochs of one."""
        constant = self.config.get("schedule", "constant") == "constant"
        return self.without("seed", "epochs") if constant else self.without("seed")

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
        return settings_of(self.row, *names, *TRANSPORT)


@dataclass(frozen=True)
class Evidence:
    """The models that can be compared, and an account of the rows that are not among them."""

    models: tuple[Model, ...]
    counts: tuple[Row, ...]
    reasons: Mapping[str, int]


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

Setting = tuple[Model, ...]  # the models of one configuration, which differ in their seed alone
Pair = tuple[Setting, Setting]


def by_setting(models: Iterable[Model]) -> list[Setting]:
    """Group models that differ in their seed alone."""
    settings: dict[str, list[Model]] = {}
    for model in models:
        settings.setdefault(model.without("seed"), []).append(model)
    return [tuple(setting) for setting in settings.values()]


def best_setting(settings: Iterable[Setting]) -> Setting | None:
    """The best on validation, by the rule of best_of."""
    settings = list(settings)
    groups = [Group(s[0].config, tuple(m.row for m in s)) for s in settings]
    best = best_of(groups)
    return next((s for s, group in zip(settings, groups, strict=True) if group is best), None)


def matched(
    settings: Sequence[Setting], factor: str, first: Any, second: Any, tuned: Sequence[str] = ()
) -> list[Pair]:
    """Pairs of settings that differ in one factor alone, on the same test images; and in those
    that are `tuned`, of which each side has its best on validation, chosen among those values that
    both sides have, or where they share none among its own."""
    sides: dict[str, dict[Any, list[Setting]]] = {}
    for setting in settings:
        rest = sides.setdefault(setting[0].without("seed", factor, *tuned), {})
        rest.setdefault(setting[0].config.get(factor), []).append(setting)
    found = []
    for levels in sides.values():
        if first in levels and second in levels:
            tries = [{tuple(s[0].config.get(name) for name in tuned): s for s in levels[level]}
                     for level in (first, second)]  # fmt: skip
            common = tries[0].keys() & tries[1].keys() or tries[0].keys() | tries[1].keys()
            open_to = ([s for value, s in side.items() if value in common] for side in tries)
            found.append(tuple(s[0] if len(s) == 1 else best_setting(s) for s in open_to))
    return [pair for pair in found if all(pair)]


def main_recipe(pairs: Iterable[tuple[Setting, ...]]) -> list[Any]:
    """The pairs of one recipe: the study's where there are any, else that of most pairs."""
    recipes: dict[str, list[tuple[Setting, ...]]] = {}
    for pair in pairs:
        recipes.setdefault(pair[0][0].recipe, []).append(pair)

    def rank(recipe: str) -> tuple[bool, int, str]:
        return recipes[recipe][0][0][0].protocol != "", -len(recipes[recipe]), recipe

    return recipes[min(recipes, key=rank)] if recipes else []


# --- effects --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effect:
    """A difference of test accuracies, first minus second: of the settings' means over seeds, the
    mean over matched pairs of settings.

    `estimate` holds both noises, `image` is the interval over test images for these models as they
    were trained, `seeds` the fewest that a setting has, `first_only` the images that of two models
    drawn from a pair the first alone gets right, on average, summed over pairs.
    Units: fractions.
    """

    estimate: Estimate
    image: tuple[float, float]
    p: float
    pairs: int
    seeds: int
    trainings: int
    images: int
    first_only: float
    second_only: float

    @property
    def difference(self) -> float:
        """The estimate itself."""
        return self.estimate.value

    @property
    def interval(self) -> tuple[float, float]:
        """Of 95 %, over test images and seeds; over test images alone where each has one seed."""
        return self.estimate.interval()

    @property
    def seed_note(self) -> str:
        """What of the seeds' noise the interval does not hold."""
        if self.seeds > 1:
            return ""
        if not self.estimate.spreads:
            return ONE_SEED
        return "settings of one seed are taken to vary as those of several do"


def measure_effect(pairs: Sequence[Pair]) -> Effect:
    """The effect that matched pairs show. Raises: ValueError where there are none."""
    if not pairs:
        raise ValueError("an effect needs at least one pair")
    return _effect([term for a, b in pairs for term in ((1, a), (-1, b))], pairs)


def measure_interaction(first: Sequence[Pair], second: Sequence[Pair]) -> Effect:
    """How much larger the effect of some pairs is than that of others, matched one by one."""
    fours = zip(first, second, strict=True)
    terms = [t for (a, b), (c, d) in fours for t in ((1, a), (-1, b), (-1, c), (1, d))]
    return _effect(terms, first)


def _effect(terms: Iterable[tuple[int, Setting]], pairs: Sequence[Pair]) -> Effect:
    """The sum of settings' mean accuracies, each times its weight, over the number of pairs."""
    weights: dict[Setting, int] = Counter()
    for weight, setting in terms:
        weights[setting] += weight
    # In whole numbers: equal differences of an image must not differ by rounding.
    whole = math.lcm(*map(len, weights)) * len(pairs)
    shares = {s: w * whole // (len(pairs) * len(s)) for s, w in weights.items()}
    rights = {s: np.array([m.right for m in s], np.int64) for s in weights}
    sums = sum(share * rights[s].sum(0) for s, share in shares.items())
    value, image = float(sums.mean()) / whole, paired_interval(sums, whole)
    spreads, shared = _spreads({s: share / whole for s, share in shares.items()}, rights)
    # What differs from image to image between seeds is in the seeds' variance already.
    alone = math.sqrt(max(0.0, 1 - shared * whole**2 * len(sums) / max(sums.var(), 1e-12)))
    narrow = (value + alone * (image[0] - value), value + alone * (image[1] - value))
    estimate = Estimate(value, narrow, spreads) if spreads else Estimate(value, image)
    both = [(rights[a].mean(0), rights[b].mean(0)) for a, b in pairs]
    return Effect(
        estimate=estimate,
        image=image,
        p=estimate.p() if spreads else sign_flip_test(sums),
        pairs=len(pairs),
        seeds=min(map(len, weights)),
        trainings=len({(m.family, m.seed) for s in weights for m in s}),
        images=len(sums),
        first_only=sum(float((a * (1 - b)).sum()) for a, b in both),
        second_only=sum(float((b * (1 - a)).sum()) for a, b in both),
    )


def _spreads(
    shares: Mapping[Setting, float], rights: Mapping[Setting, np.ndarray]
) -> tuple[tuple[Spread, ...], float]:
    """What the seeds add to the variance of the sum of right answers, each times its setting's
    share, and how much of that differs from image to image.

    Settings whose models are epochs of the same trainings are taken together, seed by seed.
    """
    families: dict[str, list[Setting]] = {}
    for setting in shares:
        if len(setting) > 1:
            families.setdefault(setting[0].family, []).append(setting)
    known, by_image = [], 0.0
    for settings in families.values():
        seeds: dict[int, np.ndarray | float] = Counter()
        for s in settings:
            scale = shares[s] * math.sqrt(len(s) / (len(s) - 1))
            for model, off in zip(s, rights[s] - rights[s].mean(0), strict=True):
                seeds[model.seed] = seeds[model.seed] + scale * off
        luck = sum(float((off**2).mean()) / len(off) for off in seeds.values())
        by_image += luck
        # No less than the luck of single answers gives: a few seeds may agree by chance.
        variance = max(luck, sum(float(off.mean()) ** 2 for off in seeds.values()))
        n = min(map(len, settings))
        known.append(Spread(variance, sum(shares[s] ** 2 * len(s) for s in settings), n, n - 1))
    return lend(known, [shares[s] ** 2 for s in shares if len(s) == 1]), by_image
