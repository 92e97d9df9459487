"""What the study published, beside what was measured: the nearest runs, and why they differ."""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.base.config import preset_of
from common.judge import rows
from common.judge.rows import PROTOCOLS, Group, Row, deviations, get, grouped, join_notes, number
from common.judge.stats import difference_of
from common.judge.tables import Table, make_table, significant

STUDY_TEST_IMAGES = 14_000


@functools.cache
def load_published() -> list[Row]:
    """Every figure of the study's tables; accuracies are fractions, times are milliseconds."""
    return json.loads(Path(__file__).with_name("published.json").read_text())


def published(part: str, **where: object) -> list[Row]:
    """The figures of one of its tables, of these settings."""
    return [r for r in load_published() if r["part"] == part and where.items() <= r.items()]


def unmeasured_note(command: str, reason: str = "no finished run of it in the log") -> str:
    """Why nothing stands beside a published figure, and what would."""
    return f"not measured, {reason}: {command} measures it"


def side_by_side(
    groups: Sequence[Group],
    figures: Iterable[Row],
    protocol: Row,
    factors: Sequence[str],
    command: str,
) -> list[Row]:
    """A record for each configuration measured, the study's protocol first, and for each published
    one that was not, with the command that measures it.

    A published figure enters the record of a run only if that run kept to the study's protocol.
    """
    known = {tuple(figure[k] for k in factors): figure for figure in figures}
    waiting = dict(known)
    varying = rows.varying_settings([g.config for g in groups], {*factors, *protocol})
    records = []
    for group in groups:
        other = deviations(group.config, protocol)
        key = tuple(group.config.get(k) for k in factors)
        record = {k: group.config.get(k) for k in (*factors, *protocol)}
        record |= rows.accuracy_record(group)
        if not other and key in known:
            record |= _figure_record(known[key]) | difference_record(group, known[key])
            waiting.pop(key, None)
        record["note"] = join_notes(
            other,
            *rows.in_words(group.config, varying),
            *map(rows.busy_note, group.rows),
            record.pop("disagreement", ""),
        )
        records.append((bool(other), rows.order_of(group.config), record | {"group": group}))
    for figure in waiting.values():
        record = {k: figure[k] for k in (*rows.TRAIN_FACTORS, "kernel", "samples") if k in figure}
        record |= _figure_record(figure) | {"note": unmeasured_note(command)}
        records.append((2, rows.order_of(figure), record))
    return [record for *_, record in sorted(records, key=lambda item: item[:2])]


def _figure_record(figure: Row) -> Row:
    return {f"published_{k}": figure.get(k) for k in ("test_acc", "val_acc", "fit_ms")}


def difference_record(group: Group, figure: Row) -> Row:
    """Mean test accuracy minus the published one, of one run on other images, whose seed is taken
    to vary as these do; and the reason where its 95 % interval does not hold zero."""
    values, images = group.values("test_acc"), number(group.rows[0], "metrics", "n_test")
    if not values:
        return {}
    record: Row = {"difference": statistics.fmean(values) - figure["test_acc"]}
    if images:
        estimate = difference_of(values, [figure["test_acc"]], (int(images), STUDY_TEST_IMAGES))
        low, high = estimate.interval()
        record |= {"difference_low": low, "difference_high": high}
        if not low <= 0 <= high:
            reason = explain_difference(group, figure)
            record["disagreement"] = f"differs from the published figure: {reason}"
    return record


def explain_difference(group: Group, figure: Row) -> str:
    """What is known to differ between a configuration's runs and the study's."""
    protocol, factors = PROTOCOLS[group.kind]
    varied = {k: figure[k] for k in factors if k in figure and k != "pin_memory"}
    reasons = [deviations(group.config, protocol | varied)]
    if any(get(row, "metrics", "converged") is False for row in group.rows):
        reasons.append("max_iter stopped the solver, whose path may be another")
    if any(get(row, "metrics", "precision") == "fp32" for row in group.rows):
        reasons.append("trained in fp32, not in mixed precision")
    one = "; one seed, whose noise is not measured" if len(group.values("test_acc")) == 1 else ""
    return join_notes(*reasons) or f"unexplained{one}"


# --- what was chosen ------------------------------------------------------------------------------


def results_table(train: Sequence[Row], svm: Sequence[Row]) -> Table:
    """The README's table: for each data set the best of the study's grid, of each other recipe that
    has several seeds, and of the support vector machines."""
    contests = [recipe for groups in _by_division(train) for recipe in _by_recipe(groups)]
    contests += _by_division(svm)
    records = [
        _result_record(best, len({group.without("engine") for group in groups}))
        for groups in contests
        if (best := rows.best_of(groups))
    ]
    order = rows.datasets_of([*train, *svm])
    records.sort(key=lambda record: order.index(record["dataset"]))
    return make_table(
        "results",
        [record | {"dataset": rows.display(record["dataset"])} for record in records],
        rows.devices_note(row for groups in contests for group in groups for row in group.rows),
        missing=not records,
    )


def _by_division(runs: Sequence[Row]) -> list[list[Group]]:
    groups = grouped(rows.configurations(runs), lambda group: rows.division(group.config))
    return list(groups.values())


def _by_recipe(networks: Sequence[Group]) -> list[list[Group]]:
    """Networks by how they differ from the study's protocol, those that do not first; others with a
    single seed only where there is nothing else."""
    kept = [group for group in networks if len(group.rows) > 1 or not group.protocol]
    recipes = grouped(kept or networks, lambda group: group.protocol)
    return [recipes[name] for name in sorted(recipes)]


def _result_record(group: Group, tried: int) -> Row:
    """A configuration that was chosen of so many, beside the study's best of its kind."""
    record, row = rows.choice_record(group), group.first()
    dataset, split = str(row["config"].get("dataset")), row["config"].get("split", "study")
    ends = record["test_acc_low"], record["test_acc_high"]
    figures = published("q1b" if group.kind == "svm" else "best", dataset=dataset)
    preset = preset_of(row["config"]) if group.kind == "train" else None
    recipe = f"--preset {preset}" if preset and record["protocol"] else record["protocol"]
    unconverged = any(get(r, "metrics", "converged") is False for r in group.rows)
    cost_ms = record["cost_ms"]
    return record | {
        "dataset": dataset,
        "interval": None if None in ends else " to ".join(f"{100 * end:.2f}" for end in ends),
        "published_test_acc": max((figure["test_acc"] for figure in figures), default=None)
        if split == "study"
        else None,
        "config": join_notes(
            record["name"],
            recipe or "the study's protocol",
            "official split" if preset and split == "official" else "",
            f"best of {tried} on validation" if tried > 1 else "",
            "stopped by max_iter" if unconverged else "",
        ),
        "training": join_notes(
            "" if cost_ms is None else f"{significant(cost_ms / 1e3)} s",
            *map(_threads_of, group.rows),
            rows.busy_note(max(group.rows, key=rows.load_of)),
        ),
    }


def _threads_of(row: Row) -> str:
    """How much of its CPU a network was trained with; of another device its name."""
    device, threads = get(row, "env", "device"), number(row, "env", "threads")
    if row["kind"] == "svm" or not device:
        return ""
    if device != get(row, "env", "cpu") or not threads:
        return device
    return f"{threads:g} thread{'s' if threads > 1 else ''}"


# --- each published accuracy ----------------------------------------------------------------------


def published_table(train: Sequence[Row], svm: Sequence[Row]) -> Table:
    """The study's accuracies beside the nearest run, whatever its protocol."""
    records = []
    for part, runs in (("q1a", train), ("q1b", svm)):
        groups = rows.configurations(runs)
        records += [_nearest_record(figure, groups) for figure in published(part)]
    return make_table("published", records)


def _nearest_record(figure: Row, groups: Iterable[Group]) -> Row:
    """A published accuracy beside the configuration that differs in the fewest settings; its data
    set, network and optimiser, or kernel, must be the same."""
    same = rows.SVM_FACTORS if "kernel" in figure else ("dataset", "model", "opt")
    length = {name: figure[name] for name in ("lr", "epochs") if name in figure}
    protocol = PROTOCOLS["svm" if "kernel" in figure else "train"][0] | length
    factors = [name for name in ("model", "opt", "lr", "epochs", "kernel") if name in figure]
    record = {
        "dataset": figure["dataset"],
        "setting": ", ".join(rows.in_words(figure, factors)),
        "published_test_acc": figure["test_acc"],
    }

    def distance(group: Group) -> tuple[int, int, tuple[str, ...]]:
        other = sum(group.config.get(k, value) != value for k, value in protocol.items())
        return other, -len(group.rows), rows.order_of(group.config)

    near = [g for g in groups if all(g.config.get(k) == figure[k] for k in same)]
    if not (group := min(near, key=distance, default=None)):
        return record | {"note": unmeasured_note(f"make {figure['part']}")}
    record |= rows.accuracy_record(group) | difference_record(group, figure)
    noise = "test images and seeds" if record["seeds"] > 1 else "test images"
    other = deviations(group.config, protocol)
    within = f"within the noise of {noise}{f', in spite of {other}' if other else ''}"
    return record | {
        "runs": group.first()["run_id"],
        "note": record.get("disagreement") or within,
    }
