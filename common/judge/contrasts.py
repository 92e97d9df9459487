"""Predeclared contrasts of the report, as tables: what differs, by how much, how surely.

Every contrast is named here, before any row is read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.base.config import preset_of
from common.judge.evidence import (
    PROTOCOLS,
    Effect,
    Evidence,
    Model,
    Pair,
    Setting,
    best_setting,
    by_setting,
    main_recipe,
    matched,
    measure_effect,
    measure_interaction,
)
from common.judge.rows import (
    Row,
    datasets_of,
    join_notes,
    plain,
)
from common.judge.stats import holm
from common.judge.tables import Table, make_table
from common.judge.verdicts import BEATS, Level, dependence


@dataclass(frozen=True)
class Contrast:
    """Two levels of a factor; a difference is the first's accuracy minus the second's, each at its
    own best of the settings that are `tuned`, chosen on validation."""

    kind: str
    factor: str
    first: Any
    second: Any
    command: str
    tuned: tuple[str, ...] = ()

    @property
    def sides(self) -> tuple[str, str]:
        """Both levels in words."""
        return f"{self.factor} {plain(self.first)}", f"{self.factor} {plain(self.second)}"

    @property
    def name(self) -> str:
        """As it stands in the tables."""
        return f"{self.sides[0]} - {plain(self.second)}"


CONTRASTS = (
    Contrast("train", "model", "resnet18", "resnet50", "make q1a", ("lr",)),
    Contrast("train", "opt", "sgd", "adam", "make q1a", ("lr",)),
    Contrast("train", "epochs", 5, 3, "make q1a", ("lr",)),
    Contrast("train", "lr", 1e-3, 1e-4, "make q1a"),
    Contrast("svm", "kernel", "rbf", "poly", "make q1b"),
)
TUNED = ", each at its best learning rate"
NETWORK_AND_MACHINE = ("best ResNet", "best SVM")

EFFECT_NOTE = (
    "A difference is the first's test accuracy minus the second's, in points: of the means over "
    "seeds of each configuration, averaged over all matched pairs of configurations, which differ "
    "in that factor alone, and in the learning rate where each has its best on validation; of one "
    "protocol (the study's where the log has it), each training once however many rows share it. "
    "95 %: over test images and seeds; of one seed over test images alone, as those beside are. p: "
    "the level at which that interval ends at zero; of one seed McNemar's exact test, and for "
    "several pairs its extension to them, which flips the sign of each image's sum."
)


def contrast_tables(
    evidence: Evidence, records: Sequence[Row], interactions: Sequence[Row]
) -> list[Table]:
    """The tables of the contrasts, from what contrast_records and interaction_records found."""
    return [contrasts_table(records), interactions_table(interactions), pairs_table(evidence)]


def of_dataset(evidence: Evidence, dataset: str, kind: str) -> list[Setting]:
    """The settings of one data set and kind."""
    return by_setting(
        m for m in evidence.models
        if m.config.get("dataset") == dataset and m.row["kind"] == kind
    )  # fmt: skip


def datasets(evidence: Evidence) -> list[str]:
    """The study's data sets, then the others that were compared."""
    return datasets_of(model.row for model in evidence.models)


def contrast_pairs(
    evidence: Evidence, dataset: str, contrast: Contrast, tuned: bool = True
) -> list[Pair]:
    """The matched pairs of a contrast; not `tuned`: at every level of what would be."""
    settings = of_dataset(evidence, dataset, contrast.kind)
    levels = contrast.factor, contrast.first, contrast.second
    return main_recipe(matched(settings, *levels, contrast.tuned if tuned else ()))


def levels_of(pairs: Sequence[Pair], contrast: Contrast) -> list[Level]:
    """What the effect of a contrast is at each level of the other factors."""
    found = []
    for other in CONTRASTS:
        if other.factor == contrast.factor or other.kind != contrast.kind:
            continue
        levels: dict[Any, list[Pair]] = {}
        for pair in pairs:
            levels.setdefault(pair[0][0].config.get(other.factor), []).append(pair)
        for level, there in levels.items() if len(levels) > 1 else ():
            effect = measure_effect(there)
            name = f"{other.factor} {plain(level)}"
            found.append(
                Level(other.factor, name, effect.difference, effect.interval, effect.seeds)
            )
    return found


def best_pairs(evidence: Evidence, dataset: str) -> list[Pair]:
    """The best ResNet and the best SVM, each chosen on validation, on the same test images."""
    networks = [s for s in of_dataset(evidence, dataset, "train")
                if str(s[0].config.get("model")).startswith("resnet")]  # fmt: skip
    sides = networks, of_dataset(evidence, dataset, "svm")
    images = [{s[0].test_images for s in side} for side in sides]
    common = images[0] & images[1]
    network, svm = (
        best_setting(s for (s,) in main_recipe((s,) for s in side if s[0].test_images in common))
        for side in sides
    )
    alike = network and svm and network[0].test_images == svm[0].test_images
    return [(network, svm)] if alike else []


def effect_record(effect: Effect) -> Row:
    """An effect as columns."""
    return {
        "difference": effect.difference, "low": effect.interval[0], "high": effect.interval[1],
        "image_low": effect.image[0], "image_high": effect.image[1],
        "pairs": effect.pairs, "seeds": effect.seeds, "trajectories": effect.trainings,
        "first_only": round(effect.first_only), "second_only": round(effect.second_only),
        "p": effect.p, "seed_note": effect.seed_note,
    }  # fmt: skip


def add_holm(records: Iterable[Row]) -> None:
    """Adjust the p-values of a table, which is one family."""
    tested = [record for record in records if record.get("p") is not None]
    for record, p in zip(tested, holm([record["p"] for record in tested]), strict=True):
        record["p_holm"] = p


def contrast_records(evidence: Evidence) -> list[Row]:
    """The main effect of each factor by matched pairs, each level at its best of what is tuned and
    averaged over it, and the best network against the best SVM."""
    records = []
    for dataset in datasets(evidence):
        found = []
        for c in CONTRASTS:
            averaged, pairs = (contrast_pairs(evidence, dataset, c, tuned) for tuned in (0, 1))
            tuned = "" if averaged == pairs else TUNED
            apart = dependence(BEATS, levels_of(averaged, c))
            found.append((c.name, c.sides, c.command, pairs, {"tuned": tuned, "apart": apart}))
            if averaged and tuned:
                found.append((f"{c.name}, averaged", c.sides, c.command, averaged, {}))
        best, name = best_pairs(evidence, dataset), " - ".join(NETWORK_AND_MACHINE)
        own = {"tuned": "", "apart": []}
        found.append((name, NETWORK_AND_MACHINE, "make q1a q1b", best, own))
        for name, sides, command, pairs, more in found:
            contrast = name + more.get("tuned", "")
            record: Row = {"dataset": dataset, "contrast": contrast, "sides": sides} | more
            if pairs:
                record |= effect_record(measure_effect(pairs))
                record["note"] = join_notes(
                    record["seed_note"], *(first[0].protocol for first, _ in pairs)
                )
            else:
                record["note"] = f"no pair in the log: {command}"
            records.append(record)
    add_holm(records)
    return records


def contrasts_table(records: Sequence[Row]) -> Table:
    """The predeclared contrasts."""
    return make_table(
        "statistics", "contrasts", "Predeclared contrasts: main effects by matched pairs",
        "dataset contrast pairs seeds trajectories first_only second_only difference low high "
        "image_low image_high p p_holm note", records, EFFECT_NOTE,
        "Holm's adjustment is over all rows with a p. Several pairs answer the same test images: "
        "an image on which all of them differ counts once, with that weight.",
        missing=all("p" not in record for record in records),
    )  # fmt: skip


def interaction_records(evidence: Evidence) -> list[Row]:
    """How the effect of one factor changes with another, by matched fours."""
    records = []
    factors = [contrast for contrast in CONTRASTS if contrast.kind == "train"]
    for dataset in datasets(evidence):
        settings = of_dataset(evidence, dataset, "train")
        for one, other in itertools.combinations(factors, 2):
            first, second = matched_fours(settings, one, other)
            if first:
                record = effect_record(measure_interaction(first, second))
                levels = f"at {other.factor} {plain(other.first)} - at {plain(other.second)}"
                name = f"({one.name}) {levels}"
                names = {"dataset": dataset, "contrast": name, "between": (one, other)}
                records.append(record | names)
    add_holm(records)
    return records


def interactions_table(records: Sequence[Row]) -> Table:
    """The interactions that could be measured."""
    return make_table(
        "statistics", "interactions", "Two-way interactions by matched fours",
        "dataset contrast pairs seeds trajectories difference low high image_low image_high p "
        "p_holm",
        records, "By how much the first effect is larger at one level of the other factor than at "
        "the other level; intervals as above, Holm's adjustment over this table." if records else
        "No matched four in the log.",
    )  # fmt: skip


def matched_fours(
    settings: Sequence[Setting], one: Contrast, other: Contrast
) -> tuple[list[Pair], list[Pair]]:
    """The pairs of one contrast at both levels of another, in the same order."""
    levels: list[dict[str, Pair]] = []
    pairs = main_recipe(matched(settings, one.factor, one.first, one.second))
    for level in (other.first, other.second):
        there = [pair for pair in pairs if pair[0][0].config.get(other.factor) == level]
        names = "seed", one.factor, other.factor
        levels.append({pair[0][0].without(*names): pair for pair in there})
    both = [key for key in levels[0] if key in levels[1]]
    return [levels[0][key] for key in both], [levels[1][key] for key in both]


def setting_of(model: Model, *left_out: str) -> str:
    """A configuration in the study's factors, and how it differs from the study's protocol: the
    preset that it is of, or its settings."""
    names = [k for k in PROTOCOLS[model.row["kind"]][1] if k not in ("dataset", *left_out)]
    known = [f"{k} {plain(model.config.get(k))}" for k in names if k != "pin_memory"]
    preset = preset_of(model.config) if model.protocol and model.row["kind"] == "train" else None
    other = f"--preset {preset}" if preset else model.protocol
    return ", ".join(known) + (f" ({other})" if other else "")


def pairs_table(evidence: Evidence) -> Table:
    """Each matched pair of configurations behind the contrasts."""
    records = []
    for dataset in datasets(evidence):
        for contrast in CONTRASTS:
            for pair in contrast_pairs(evidence, dataset, contrast, tuned=False):
                first, second = (float(np.mean([m.right for m in side])) for side in pair)
                records.append(effect_record(measure_effect([pair])) | {
                    "dataset": dataset, "contrast": contrast.name, "first_acc": first,
                    "second_acc": second, "setting": setting_of(pair[0][0], contrast.factor),
                })  # fmt: skip
    add_holm(records)
    return make_table(
        "statistics", "pairs", "The matched pairs behind the contrasts",
        "dataset contrast setting seeds first_acc second_acc first_only second_only difference "
        "low high p p_holm", records,
        "Several seeds: accuracies are means, images right on one side only those of two runs "
        "drawn from them, on average." if records else "No matched pair in the log.",
    )  # fmt: skip
