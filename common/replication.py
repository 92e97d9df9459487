"""Measured beside published: what was chosen beside the study's best, and each of its accuracies
beside the nearest run, with why they differ where they do."""

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
    accuracy_interval,
    accuracy_record,
    busy_note,
    by_seed,
    choice_record,
    datasets_of,
    deviations,
    difference_record,
    division,
    get,
    join_notes,
    load_published,
    number,
    order_of,
    pick_best,
    plain,
    unmeasured_note,
)
from common.stats import t_interval
from common.tables import COMMANDS, Table, make_table

SAME = {"q1a": ("dataset", "model", "opt"), "q1b": SVM_FACTORS}
PROTOCOLS = {"q1a": TRAIN_PROTOCOL, "q1b": SVM_PROTOCOL}


# --- what was chosen ------------------------------------------------------------------------------


def results_table(train: Sequence[Row], svm: Sequence[Row]) -> Table:
    """The README's table: for each data set the best of the study's grid, of each other recipe that
    has several seeds, and of the support vector machines."""
    records = []
    for groups in contests(train, svm):
        for best in pick_best(row for group in groups for row in group.rows):
            records.append(result_record(best, len(groups)))
    order = datasets_of([*train, *svm])
    records.sort(key=lambda record: order.index(record["dataset"]))
    return make_table(
        "findings", "results", "Results: what was chosen on validation, beside the study's best",
        "dataset config seeds test_acc interval test_acc_sd published_test_acc difference train_ms "
        "machine note", records,
        "95 %: Wilson's interval on the test images for one seed, Student's over seeds for "
        "several, whose accuracy and time are means. Published: the study's best network, or "
        "support vector machine (SVM), of any settings. Time of an SVM: its fit.",
        missing=not records,
    )  # fmt: skip


def contests(train: Sequence[Row], svm: Sequence[Row]) -> list[list[Group]]:
    """The configurations between which validation chooses, of one division of the images each."""
    networks, machines = {}, {}
    for found, rows in ((networks, train), (machines, svm)):
        for group in by_seed(distinct(rows)):
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
    record, values = choice_record(group), group.values("test_acc")
    kind, bounds = "Wilson", accuracy_interval(group)
    if len(values) > 1:
        kind, bounds = "Student", t_interval(values)
    if bounds:
        record["interval"] = f"{100 * bounds[0]:.2f} to {100 * bounds[1]:.2f}, {kind}"
    record["dataset"] = str(group.config.get("dataset"))
    part = "q1b" if group.first()["kind"] == "svm" else "best"
    figures = [f for f in load_published() if f["part"] == part]
    figures = [f for f in figures if f["dataset"] == record["dataset"]]
    if figure := max(figures, key=lambda f: f["test_acc"], default=None):
        record["published_test_acc"] = figure["test_acc"]
        record |= difference_record(group, figure)
    chosen = f"best of {tried} on validation" if tried > 1 else ""
    busy = [row for row in group.rows if busy_note(row)]
    busiest = max(busy, key=lambda row: row["env"]["load_average"][0], default=None)
    return record | {
        "config": join_notes(record["name"], record["protocol"] or "the study's protocol", chosen),
        "train_ms": record["cost_ms"],
        "machine": join_notes(*map(machine_of, group.rows)),
        "note": busy_note(busiest) if busiest else None,
    }


def machine_of(row: Row) -> str | None:
    """The device that a run was timed on; of a network's CPU its threads, too."""
    device, threads = get(row, "env", "device"), number(row, "env", "threads")
    if not threads or row["kind"] == "svm" or device != get(row, "env", "cpu"):
        return device
    return f"{device}, {threads:g} of {number(row, 'env', 'cpu_count') or threads:g} threads"


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
