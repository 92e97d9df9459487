"""Each published accuracy beside the nearest run of the log, and why they differ where they do."""

from __future__ import annotations

from collections.abc import Sequence

from common.contrasts import KNOWN
from common.evidence import distinct
from common.measured import (
    SVM_FACTORS,
    SVM_PROTOCOL,
    TRAIN_PROTOCOL,
    Group,
    Row,
    accuracy_record,
    by_seed,
    deviations,
    difference_record,
    load_published,
    order_of,
    plain,
    unmeasured_note,
)
from common.tables import COMMANDS, Table, make_table

SAME = {"q1a": ("dataset", "model", "opt"), "q1b": SVM_FACTORS}
PROTOCOLS = {"q1a": TRAIN_PROTOCOL, "q1b": SVM_PROTOCOL}


def nearest(groups: Sequence[Group], figure: Row) -> Group | None:
    """The configuration that differs from a published one in the fewest settings; its data set,
    network and optimiser, or kernel, must be the same."""
    part = figure["part"]
    wanted = PROTOCOLS[part] | {k: figure[k] for k in ("lr", "epochs") if k in figure}
    near = [g for g in groups if all(g.config.get(k) == figure[k] for k in SAME[part])]

    def distance(group: Group) -> tuple[int, int, tuple]:
        other = sum(group.config.get(k, value) != value for k, value in wanted.items())
        return other, -len(group.rows), order_of(group.config)

    return min(near, key=distance, default=None)


def published_table(train: Sequence[Row], svm: Sequence[Row]) -> Table:
    """The study's accuracies beside what was measured, whatever its protocol."""
    groups = {"q1a": by_seed(distinct(train)), "q1b": by_seed(distinct(svm))}
    records = []
    for figure in load_published():
        if figure["part"] not in groups:
            continue
        names = ("model", "opt", "lr", "epochs", "kernel")
        setting = ", ".join(f"{k} {plain(figure[k])}" for k in names if k in figure)
        record = {
            "dataset": figure["dataset"], "setting": setting,
            "published_test_acc": figure["test_acc"],
            "note": unmeasured_note(COMMANDS[figure["part"]]),
        }  # fmt: skip
        if group := nearest(groups[figure["part"]], figure):
            record |= accuracy_record(group) | difference_record(group, figure)
            record["runs"] = group.first()["run_id"]
            record["note"] = record.get("disagreement") or "within the noise of test images"
            if "disagreement" not in record:
                factors = {k: figure[k] for k in ("lr", "epochs") if k in figure}
                other = deviations(group.config, PROTOCOLS[figure["part"]] | factors)
                record["note"] += f", in spite of {other}" if other else ""
        records.append(record)
    return make_table(
        "statistics", "published", "Published accuracies beside the nearest run",
        "dataset setting published_test_acc test_acc seeds difference difference_low "
        "difference_high runs note", records,
        "The nearest run has the same data set, network and optimiser, or kernel, and the fewest "
        "other settings. The study's own figures are taken to be of one run each on 14,000 images.",
        known=KNOWN,
    )  # fmt: skip
