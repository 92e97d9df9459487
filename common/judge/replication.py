"""Measured beside published: what was chosen beside the study's best, and each of its accuracies
beside the nearest run, with why they differ where they do."""

from __future__ import annotations

from collections.abc import Sequence

from common.base.config import preset_of
from common.judge.rows import (
    ACCURACY_INTERVAL,
    SVM_FACTORS,
    SVM_PROTOCOL,
    TRAIN_PROTOCOL,
    Group,
    Row,
    accuracy_record,
    best_of,
    busy_note,
    choice_record,
    configurations,
    datasets_of,
    deviations,
    devices_note,
    difference_record,
    display,
    division,
    get,
    join_notes,
    load_of,
    load_published,
    number,
    order_of,
    plain,
    unmeasured_note,
)
from common.judge.tables import Table, make_table, significant

SAME = {"q1a": ("dataset", "model", "opt"), "q1b": SVM_FACTORS}
PROTOCOLS = {"q1a": TRAIN_PROTOCOL, "q1b": SVM_PROTOCOL}


# --- what was chosen ------------------------------------------------------------------------------


def results_table(train: Sequence[Row], svm: Sequence[Row]) -> Table:
    """The README's table: for each data set the best of the study's grid, of each other recipe that
    has several seeds, and of the support vector machines."""
    records = []
    for groups in contests(train, svm):
        if best := best_of(groups):
            engines = [{k: v for k, v in g.config.items() if k != "engine"} for g in groups]
            records.append(result_record(best, len({str(sorted(c.items())) for c in engines})))
    order = datasets_of([*train, *svm])
    records.sort(key=lambda record: order.index(record["dataset"]))
    records = [record | {"dataset": display(record["dataset"])} for record in records]
    return make_table(
        "findings", "results", "Results: what was chosen on validation, beside the study's best",
        "dataset config seeds test_acc interval published_test_acc training", records,
        f"{ACCURACY_INTERVAL}; accuracy and time are then means. Of a single seed it holds no "
        "noise of training. Published: the study's best network, or support vector machine (SVM), "
        "where the test images are the same. Training of an SVM: its fit.",
        devices_note(row for groups in contests(train, svm) for g in groups for row in g.rows),
        missing=not records,
    )  # fmt: skip


def contests(train: Sequence[Row], svm: Sequence[Row]) -> list[list[Group]]:
    """The configurations between which validation chooses, of one division of the images each."""
    networks, machines = {}, {}
    for found, rows in ((networks, train), (machines, svm)):
        for group in configurations(rows):
            found.setdefault(division(group.config), []).append(group)
    recipes = [recipe for groups in networks.values() for recipe in by_recipe(groups)]
    return [*recipes, *machines.values()]


def by_recipe(networks: Sequence[Group]) -> list[list[Group]]:
    """Networks by how they differ from the study's protocol, those that do not first; others with a
    single seed only where there is nothing else."""
    recipe = {id(group): deviations(group.config, TRAIN_PROTOCOL) for group in networks}
    kept = [group for group in networks if len(group.rows) > 1 or not recipe[id(group)]]
    found: dict[str, list[Group]] = {}
    for group in kept or networks:
        found.setdefault(recipe[id(group)], []).append(group)
    return [found[name] for name in sorted(found)]


def result_record(group: Group, tried: int) -> Row:
    """A configuration that was chosen of so many, beside the study's best of its kind."""
    record, row = choice_record(group), group.first()
    config = row["config"]
    record["dataset"] = str(config.get("dataset"))
    if record["test_acc_low"] is not None:
        ends = record["test_acc_low"], record["test_acc_high"]
        record["interval"] = " to ".join(f"{100 * end:.2f}" for end in ends)
    part = "q1b" if row["kind"] == "svm" else "best"
    figures = [f for f in load_published() if f["part"] == part]
    figures = [f["test_acc"] for f in figures if f["dataset"] == record["dataset"]]
    if config.get("split", "study") == "study":
        record["published_test_acc"] = max(figures, default=None)
    preset = preset_of(config) if row["kind"] == "train" else None
    recipe = f"--preset {preset}" if preset and record["protocol"] else record["protocol"]
    unconverged = any(get(r, "metrics", "converged") is False for r in group.rows)
    cost_ms = record["cost_ms"]
    return record | {
        "config": join_notes(
            record["name"], recipe or "the study's protocol",
            "official split" if preset and config.get("split") == "official" else "",
            f"best of {tried} on validation" if tried > 1 else "",
            "stopped by max_iter" if unconverged else "",
        ),
        "training": join_notes(
            "" if cost_ms is None else f"{significant(cost_ms / 1e3)} s",
            *map(threads_of, group.rows), busy_note(max(group.rows, key=load_of)),
        ),
    }  # fmt: skip


def threads_of(row: Row) -> str:
    """How much of its CPU a network was trained with; of another device its name."""
    device, threads = get(row, "env", "device"), number(row, "env", "threads")
    if row["kind"] == "svm" or not device:
        return ""
    if device != get(row, "env", "cpu") or not threads:
        return device
    return f"{threads:g} thread{'s' if threads > 1 else ''}"


# --- each published accuracy ----------------------------------------------------------------------


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
    groups = {"q1a": configurations(train), "q1b": configurations(svm)}
    records = []
    for figure in load_published():
        if figure["part"] not in groups:
            continue
        names = ("model", "opt", "lr", "epochs", "kernel")
        setting = ", ".join(f"{k} {plain(figure[k])}" for k in names if k in figure)
        record = {
            "dataset": figure["dataset"], "setting": setting,
            "published_test_acc": figure["test_acc"],
            "note": unmeasured_note(f"make {figure['part']}"),
        }  # fmt: skip
        if group := nearest(groups[figure["part"]], figure):
            record |= accuracy_record(group) | difference_record(group, figure)
            record["runs"] = group.first()["run_id"]
            noise = "test images and seeds" if record["seeds"] > 1 else "test images"
            record["note"] = record.get("disagreement") or f"within the noise of {noise}"
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
        "other settings. The study's own figures are taken to be of one run each on 14,000 images. "
        "Runs of one split share its test images: the differences of a data set move together.",
    )  # fmt: skip
