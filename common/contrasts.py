"""Predeclared comparisons of the report, as tables: what differs, by how much, how surely.

Every comparison is named here, before any row is read. Configurations are chosen on validation
images, compared on test images.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from common.evidence import (
    PROTOCOLS,
    Effect,
    Evidence,
    Model,
    Pair,
    best_on_validation,
    distinct,
    main_recipe,
    matched,
    measure_effect,
    measure_interaction,
    pair_seeds,
)
from common.measured import (
    Group,
    Row,
    accuracy_record,
    by_seed,
    datasets_of,
    join_notes,
    number,
    pick_best,
    plain,
)
from common.stats import binomial_sd, holm, newcombe_interval, t_interval
from common.tables import COLUMNS, Column, Table, make_table

ALPHA = 0.05


@dataclass(frozen=True)
class Contrast:
    """Two levels of a factor; a difference is the first's accuracy minus the second's."""

    kind: str
    factor: str
    first: Any
    second: Any
    command: str

    @property
    def name(self) -> str:
        """As it stands in the tables."""
        return f"{self.factor} {plain(self.first)} - {plain(self.second)}"


CONTRASTS = (
    Contrast("train", "model", "resnet18", "resnet50", "make q1a"),
    Contrast("train", "opt", "sgd", "adam", "make q1a"),
    Contrast("train", "epochs", 5, 3, "make q1a"),
    Contrast("train", "lr", 1e-3, 1e-4, "make q1a"),
    Contrast("svm", "kernel", "rbf", "poly", "make q1b"),
)
NETWORK_AND_MACHINE = "best ResNet - best SVM"

KNOWN = COLUMNS | {
    column.key: column
    for column in (
        Column("contrast", "Contrast", width_mm=40),
        Column("pairs", "Pairs", "number"),
        Column("trajectories", "Trainings", "number"),
        Column("first_only", "First only\nright", "count"),
        Column("second_only", "Second only\nright", "count"),
        Column("low", "95 %\nfrom", "points"),
        Column("high", "95 %\nto", "points"),
        Column("seed_low", "Over seeds\nfrom", "points"),
        Column("seed_high", "Over seeds\nto", "points"),
        Column("p", "p", "p"),
        Column("p_holm", "p, Holm", "p"),
        Column("setting", "Configuration", width_mm=75),
        Column("first_acc", "First\nacc. %", "percent"),
        Column("second_acc", "Second\nacc. %", "percent"),
        Column("tied", "Tied with\nthe chosen"),
        Column("optimism", "Validation\nminus test", "points"),
        Column("tried", "Configurations\nchosen from", "count"),
        Column("mean_low", "Mean: 95 %\nfrom", "percent"),
        Column("mean_high", "Mean: 95 %\nto", "percent"),
        Column("image_sd", "sd of\ntest images", "percent"),
        Column("same_training", "Same\ntraining", "count"),
        Column("unusable", "Unusable\npredictions", "count"),
        Column("models", "Compared", "count"),
        Column("failed", "failed", "count"),
        Column("interrupted", "interrupted", "count"),
        Column("partial", "Epochs but\nno result", "count"),
        Column("reason", "Reason", width_mm=150),
    )
}

EFFECT_NOTE = (
    "A difference is the first's test accuracy minus the second's, in points, averaged over all "
    "matched pairs: runs that differ in that factor alone, of one protocol (the study's where the "
    "log has it), each training once however many rows share it. 95 %: paired bootstrap over test "
    "images, of these runs as they were trained. Over seeds: Student's interval of the seeds' mean "
    "differences. p: McNemar's exact test, and for several pairs its extension to them, which "
    "flips the sign of each image's sum."
)


def statistics_tables(
    evidence: Evidence, train: Sequence[Row], effects: Sequence[Row], ties: Sequence[Row]
) -> list[Table]:
    """Every table of the section, from the models compared, the train rows that are ok, and what
    contrast_records and tie_records found."""
    return [
        contrasts_table(effects),
        interactions_table(evidence),
        pairs_table(evidence),
        tied_table(ties),
        optimism_table(train),
        seeds_table(train),
        *evidence_tables(evidence),
    ]


def of_dataset(evidence: Evidence, dataset: str, kind: str) -> list[Model]:
    """The models of one data set and kind."""
    return [
        m for m in evidence.models
        if m.config.get("dataset") == dataset and m.row["kind"] == kind
    ]  # fmt: skip


def datasets(evidence: Evidence) -> list[str]:
    """The study's data sets, then the others that were compared."""
    return datasets_of(model.row for model in evidence.models)


def contrast_pairs(evidence: Evidence, dataset: str, contrast: Contrast) -> list[Pair]:
    """The matched pairs of a contrast."""
    models = of_dataset(evidence, dataset, contrast.kind)
    return main_recipe(matched(models, contrast.factor, contrast.first, contrast.second))


def best_pairs(evidence: Evidence, dataset: str) -> list[Pair]:
    """The best ResNet and the best SVM, each chosen on validation, on the same test images."""
    networks = [m for m in of_dataset(evidence, dataset, "train")
                if str(m.config.get("model")).startswith("resnet")]  # fmt: skip
    networks = [m for (m,) in main_recipe((m,) for m in networks)]
    machines = [m for (m,) in main_recipe((m,) for m in of_dataset(evidence, dataset, "svm"))]
    network, machine = best_on_validation(networks), best_on_validation(machines)
    pairs = pair_seeds(network, machine)
    return [(a, b) for a, b in pairs if a.row["test_images"] == b.row["test_images"]]


def effect_record(effect: Effect) -> Row:
    """An effect as columns."""
    return {
        "difference": effect.difference, "low": effect.image[0], "high": effect.image[1],
        "seed_low": effect.seed[0] if effect.seed else None,
        "seed_high": effect.seed[1] if effect.seed else None,
        "pairs": effect.pairs, "seeds": effect.seeds, "trajectories": effect.trajectories,
        "first_only": effect.first_only, "second_only": effect.second_only, "p": effect.p,
    }  # fmt: skip


def add_holm(records: Iterable[Row]) -> None:
    """Adjust the p-values of a table, which is one family."""
    tested = [record for record in records if record.get("p") is not None]
    for record, p in zip(tested, holm([record["p"] for record in tested]), strict=True):
        record["p_holm"] = p


def contrast_records(evidence: Evidence) -> list[Row]:
    """The main effect of each factor by matched pairs, and the best network against the best
    machine."""
    records = []
    for dataset in datasets(evidence):
        found = [(c.name, c.command, contrast_pairs(evidence, dataset, c)) for c in CONTRASTS]
        found.append((NETWORK_AND_MACHINE, "make q1a q1b", best_pairs(evidence, dataset)))
        for name, command, pairs in found:
            record: Row = {"dataset": dataset, "contrast": name}
            if pairs:
                record |= effect_record(measure_effect(pairs))
                record["note"] = join_notes(*(pair[0].protocol for pair in pairs))
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
        "seed_low seed_high p p_holm note", records, EFFECT_NOTE,
        "Holm's adjustment is over all rows with a p. Several pairs answer the same test images: "
        "an image on which all of them differ counts once, with that weight.",
        missing=all("p" not in record for record in records), known=KNOWN,
    )  # fmt: skip


def interactions_table(evidence: Evidence) -> Table:
    """How the effect of one factor changes with another, by matched fours."""
    records = []
    factors = [contrast for contrast in CONTRASTS if contrast.kind == "train"]
    for dataset in datasets(evidence):
        models = of_dataset(evidence, dataset, "train")
        for one, other in itertools.combinations(factors, 2):
            first, second = matched_fours(models, one, other)
            if first:
                record = effect_record(measure_interaction(first, second))
                levels = f"at {other.factor} {plain(other.first)} - at {plain(other.second)}"
                name = f"({one.name}) {levels}"
                records.append(record | {"dataset": dataset, "contrast": name})
    return make_table(
        "statistics", "interactions", "Two-way interactions by matched fours",
        "dataset contrast pairs seeds trajectories difference low high seed_low seed_high",
        records, "By how much the first effect is larger at one level of the other factor than at "
        "the other level; intervals as above." if records else "No matched four in the log.",
        known=KNOWN,
    )  # fmt: skip


def matched_fours(
    models: Sequence[Model], one: Contrast, other: Contrast
) -> tuple[list[Pair], list[Pair]]:
    """The pairs of one contrast at both levels of another, in the same order."""
    levels: list[dict[str, Pair]] = []
    pairs = main_recipe(matched(models, one.factor, one.first, one.second))
    for level in (other.first, other.second):
        there = [pair for pair in pairs if pair[0].config.get(other.factor) == level]
        levels.append({pair[0].without(one.factor, other.factor): pair for pair in there})
    both = [key for key in levels[0] if key in levels[1]]
    return [levels[0][key] for key in both], [levels[1][key] for key in both]


def setting_of(model: Model, *left_out: str) -> str:
    """A configuration in the study's factors, and how it differs from the study's protocol."""
    names = [k for k in PROTOCOLS[model.row["kind"]][1] if k not in ("dataset", *left_out)]
    known = [f"{k} {plain(model.config.get(k))}" for k in names if k != "pin_memory"]
    return ", ".join(known) + (f" ({model.protocol})" if model.protocol else "")


def pairs_table(evidence: Evidence) -> Table:
    """Each matched pair of configurations behind the contrasts."""
    records = []
    for dataset in datasets(evidence):
        for contrast in CONTRASTS:
            settings: dict[str, list[Pair]] = {}
            for pair in contrast_pairs(evidence, dataset, contrast):
                settings.setdefault(pair[0].without(contrast.factor, "seed"), []).append(pair)
            for pairs in settings.values():
                sides = ([float(m.right.mean()) for m in side] for side in zip(*pairs, strict=True))
                first, second = map(statistics.fmean, sides)
                records.append(effect_record(measure_effect(pairs)) | {
                    "dataset": dataset, "contrast": contrast.name, "first_acc": first,
                    "second_acc": second, "setting": setting_of(pairs[0][0], contrast.factor),
                })  # fmt: skip
    add_holm(records)
    return make_table(
        "statistics", "pairs", "The matched pairs behind the contrasts",
        "dataset contrast setting seeds first_acc second_acc first_only second_only difference "
        "low high p p_holm", records,
        "Several seeds: accuracies are means, images right on one side only are sums over seeds."
        if records else "No matched pair in the log.", known=KNOWN,
    )  # fmt: skip


def tie_records(evidence: Evidence) -> list[Row]:
    """Each configuration against the chosen one, for every division of the images."""
    return [
        record
        for dataset in datasets(evidence)
        for rivals in _divisions(of_dataset(evidence, dataset, "train"))
        for record in compare_with_chosen(rivals)
    ]


def tied_table(records: Sequence[Row]) -> Table:
    """Which configurations the test images cannot tell from the one chosen on validation."""
    return make_table(
        "statistics", "tied", "Configurations statistically tied with the chosen one",
        "dataset setting seeds val_acc test_acc difference low high p p_holm tied", records,
        "The chosen one has the highest validation accuracy. Tied: McNemar's exact test against "
        f"it, with Holm's adjustment over its rivals, does not reach {ALPHA:g} on the test images. "
        "With few test images more are tied: a tie is not a proof of equality." if records else
        "No run with predictions in the log.", known=KNOWN,
    )  # fmt: skip


def _divisions(models: Iterable[Model]) -> list[list[Model]]:
    """Models by division of the images."""
    found: dict[tuple[Any, ...], list[Model]] = {}
    for model in models:
        found.setdefault(model.images, []).append(model)
    return list(found.values())


def compare_with_chosen(models: Sequence[Model]) -> list[Row]:
    """The chosen configuration of one division of the images, then its rivals by validation
    accuracy, each with its test against it."""
    chosen = best_on_validation(models)
    groups: dict[str, list[Model]] = {}
    for model in models:
        groups.setdefault(model.without("seed"), []).append(model)
    records = []
    for group in groups.values() if chosen else ():
        accuracy = accuracy_record(Group(group[0].config, tuple(m.row for m in group)))
        record = accuracy | {
            "dataset": group[0].config.get("dataset"), "setting": setting_of(group[0]),
            "model": group[0], "tied": "chosen" if group[0] is chosen[0] else None,
        }  # fmt: skip
        pairs = [] if record["tied"] else pair_seeds(chosen, group)
        records.append(record | (effect_record(measure_effect(pairs)) if pairs else {}))
        records[-1]["seeds"] = len(group)
    add_holm(records)
    for record in records:
        if record.get("p_holm") is not None:
            record["tied"] = record["p_holm"] > ALPHA
    return sorted(records, key=lambda r: (r["tied"] != "chosen", -(r["val_acc"] or 0)))


def optimism_table(train: Sequence[Row]) -> Table:
    """How much the validation accuracy of a chosen configuration promised too much."""
    records = []
    trained = distinct(train)
    for group in pick_best(trained):
        record = group.config | accuracy_record(group)
        same = [g for g in by_seed(trained) if all(
            g.config.get(k) == group.config.get(k) for k in ("dataset", "split", "split_seed")
        )]  # fmt: skip
        sizes = [number(group.rows[0], "metrics", k) for k in ("n_val", "n_test")]
        if record["test_acc"] is None or not all(sizes):
            continue
        counts = [
            (round(a * n), int(n))
            for a, n in zip((record["val_acc"], record["test_acc"]), sizes, strict=True)
        ]
        record["low"], record["high"] = newcombe_interval(*counts)
        record["optimism"] = record["val_acc"] - record["test_acc"]
        record["tried"] = len(same)
        records.append(record)
    return make_table(
        "statistics", "optimism", "Optimism: validation minus test accuracy of the chosen",
        "dataset model opt lr epochs seeds tried val_acc test_acc optimism low high", records,
        "The more configurations the highest validation accuracy is chosen from, the more of it is "
        "luck. 95 %: Newcombe's interval of two samples of images." if records else
        "No run with both accuracies and the number of its images in the log.", known=KNOWN,
    )  # fmt: skip


def seeds_table(train: Sequence[Row]) -> Table:
    """Noise of training beside noise of the test images, where a configuration has seeds."""
    records, single = [], 0
    for group in by_seed(distinct(train)):
        values, images = group.values("test_acc"), number(group.rows[0], "metrics", "n_test")
        if len(values) < 2 or not images:
            single += 1
            continue
        record = group.config | accuracy_record(group)
        record["mean_low"], record["mean_high"] = t_interval(values)
        record["image_sd"] = binomial_sd(record["test_acc"], int(images))
        records.append(record)
    return make_table(
        "statistics", "seeds", "Noise of the seed beside noise of the test images",
        "dataset model opt lr epochs seeds test_acc test_acc_sd mean_low mean_high "
        "image_sd", records,
        "Mean: Student's interval over seeds, for these test images. sd of test images: what the "
        "drawing of that many images alone gives an accuracy." if records else "",
        f"Configurations with a single seed, whose noise of training is not measured: {single}."
        if single else "", known=KNOWN,
    )  # fmt: skip


def evidence_tables(evidence: Evidence) -> list[Table]:
    """What was compared, what was not, and why."""
    reasons = [{"reason": text, "rows": n} for text, n in evidence.reasons.items()]
    return [
        make_table(
            "statistics", "evidence", "Rows behind the comparisons",
            "dataset kind rows same_training unusable models failed interrupted partial",
            [record for record in evidence.counts if any(
                record[k] for k in ("rows", "failed", "interrupted", "partial")
            )],
            "Rows: the last that is ok of each configuration. Same training: they share the "
            "trajectory of another row, and are no further evidence. Failed, interrupted: runs "
            "that never ended well.", known=KNOWN,
        ),
        make_table(
            "statistics", "unusable", "Predictions that could not be compared", "reason rows",
            reasons, "" if reasons else "None.", known=KNOWN,
        ),
    ]  # fmt: skip
