"""Tables of what the noise leaves open: which configurations are tied, how much a choice promised
too much, how seeds scatter, and which rows could not be compared.

Configurations are chosen on validation images, compared on test images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from common.judge.contrasts import add_holm, datasets, effect_record, of_dataset, setting_of
from common.judge.evidence import Evidence, Setting, best_setting, measure_effect
from common.judge.rows import (
    Group,
    Row,
    accuracy_record,
    configurations,
    division,
    number,
    pick_best,
)
from common.judge.stats import binomial_sd, newcombe_interval, t_interval
from common.judge.tables import Table, make_table
from common.judge.verdicts import MARGIN, SEEDS, leads

ALPHA = 0.05


def noise_tables(evidence: Evidence, train: Sequence[Row], ties: Sequence[Row]) -> list[Table]:
    """Every table, from the models compared, the train rows that are ok, and what tie_records
    found."""
    return [
        tied_table(ties), optimism_table(train), seeds_table(train), *evidence_tables(evidence),
    ]  # fmt: skip


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
        "The chosen one has the highest validation accuracy. Tied: its difference, over test "
        f"images and seeds, does not reach {ALPHA:g} with Holm's adjustment over its rivals, or "
        f"its interval reaches below {100 * MARGIN:g} points. A tie is no proof of equality. Not "
        f"tied is said on {SEEDS} seeds of both or more: on fewer it is open." if records else
        "No run with predictions in the log.",
    )  # fmt: skip


def _divisions(settings: Iterable[Setting]) -> list[list[Setting]]:
    """Settings by division of the images."""
    found: dict[tuple[Any, ...], list[Setting]] = {}
    for setting in settings:
        found.setdefault(setting[0].images, []).append(setting)
    return list(found.values())


def compare_with_chosen(settings: Sequence[Setting]) -> list[Row]:
    """The chosen configuration of one division of the images, then its rivals by validation
    accuracy, each with its test against it."""
    chosen = best_setting(settings)
    records = []
    for setting in settings if chosen else ():
        accuracy = accuracy_record(Group(setting[0].config, tuple(m.row for m in setting)))
        effect = {} if setting is chosen else effect_record(measure_effect([(chosen, setting)]))
        records.append(accuracy | effect | {
            "dataset": setting[0].config.get("dataset"), "setting": setting_of(setting[0]),
            "model": setting[0], "seeds": len(setting), "tied": "chosen" if not effect else None,
        })  # fmt: skip
    add_holm(records)
    for record in records:
        if record["tied"] != "chosen":
            apart = record["p_holm"] <= ALPHA and leads((record["low"], record["high"])) != 0
            enough = min(len(chosen), record["seeds"]) >= SEEDS
            record["tied"] = None if apart and not enough else not apart
    return sorted(records, key=lambda r: (r["tied"] != "chosen", -(r["val_acc"] or 0)))


def optimism_table(train: Sequence[Row]) -> Table:
    """How much the validation accuracy of a chosen configuration promised too much."""
    records = []
    for group in pick_best(train):
        record = group.config | accuracy_record(group)
        same = [g for g in configurations(train) if division(g.config) == division(group.config)]
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
        "The more configurations the highest validation accuracy is chosen from, the luckier "
        "the winner. 95 %: Newcombe's interval of two samples of images." if records else
        "No run with both accuracies and the number of its images in the log.",
    )  # fmt: skip


def seeds_table(train: Sequence[Row]) -> Table:
    """Noise of training beside noise of the test images, where a configuration has seeds."""
    records, single = [], 0
    for group in configurations(train):
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
        "Mean: Student's interval over seeds, for these test images. sd of test images: the "
        "sampling error of that many images." if records else "",
        f"Configurations with a single seed, whose noise of training is not measured: {single}."
        if single else "",
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
            "that did not finish.",
        ),
        make_table(
            "statistics", "unusable", "Predictions that could not be compared", "reason rows",
            reasons, "" if reasons else "None.",
        ),
    ]  # fmt: skip
