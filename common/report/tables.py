"""The records of the report's tables of what was measured; judge/tables.toml has their words."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from common.base.log import KINDS, STATUSES
from common.judge import rows as log
from common.judge.mistakes import (
    BINS,
    GALLERY,
    Mistakes,
    calibration_error,
    class_records,
    confused_pairs,
)
from common.judge.predictions import Predictions
from common.judge.published import published, side_by_side, unmeasured_note
from common.judge.rows import Group, Row, get, join_notes, number, slug
from common.judge.tables import WORDS, Table, fields, make_table
from common.judge.times import COMMAND, representative, sides

NO_LOGITS = "Confidence not stored: the predictions file of this run holds labels alone."
PARTS = ("train", "val", "test")
SHOWN_PROBLEMS = 200


def build_tables(
    rows: Sequence[Row], problems: Sequence[str], predictions: Mapping[str, Predictions]
) -> list[Table]:
    """Every table of what the log holds; of the predictions only the names of classes are used."""
    done = {kind: log.latest_ok(rows, kind) for kind in KINDS}
    exports = [fields(row, "export") for row in done["export"]]
    return [
        *log_tables(rows, problems),
        datasets_table([*done["train"], *done["svm"]], predictions),
        *(q1a_table(dataset, done["train"]) for dataset in log.datasets_of(done["train"])),
        *best_tables(done["train"], done["epoch"]),
        q1b_table(done["svm"]),
        speed_table("q2", done["hw_train"], log.devices_note(done["hw_train"])),
        speed_table("q2_phases", done["hw_train"]),
        q2_published_table(done["hw_train"]),
        flops_table(done["flops"]),
        speed_table("infer", done["hw_infer"], log.devices_note(done["hw_infer"])),
        make_table("export", exports, missing=not exports),
        failed_table(rows),
        environment_table(rows),
    ]


# --- the log --------------------------------------------------------------------------------------


def log_tables(rows: Sequence[Row], problems: Sequence[str]) -> list[Table]:
    """What the log holds, the commits it was measured at, and what could not be used."""
    counts = Counter((row["kind"], row["status"]) for row in rows)
    kinds = [
        {status: counts[kind, status] for status in STATUSES}
        | {"kind": kind, "superseded": counts[kind, "ok"] - len(log.latest_ok(rows, kind))}
        for kind in KINDS
    ]
    commits = log.grouped(rows, lambda row: (get(row, "git", "commit"), get(row, "git", "dirty")))
    measured = [
        {
            "commit": str(commit or "unknown")[:12],
            "dirty": "unknown" if dirty is None else dirty,
            "rows": len(there),
            "first": min(row["time_utc"] for row in there),
            "last": max(row["time_utc"] for row in there),
        }
        for (commit, dirty), there in commits.items()
    ]
    skipped = [p.split(": skipped, ")[1] for p in problems if ": skipped, " in p]
    reasons = Counter(reason.split(": line ")[0] for reason in skipped).most_common()
    shown = [{"problem": problem} for problem in problems[:SHOWN_PROBLEMS]]
    more = len(problems) - len(shown)
    return [
        make_table("log", kinds),
        make_table("commits", measured),
        make_table("skipped", [{"problem": reason, "rows": n} for reason, n in reasons]),
        make_table("problems", shown, f"Not shown: {more} more." if more else ""),
    ]


def datasets_table(rows: Sequence[Row], predictions: Mapping[str, Predictions]) -> Table:
    """What an accuracy on each data set and split has to be read with."""
    classes = {
        row["config"].get("dataset"): predictions[row["run_id"]]["classes"]
        for row in rows
        if row["run_id"] in predictions
    }
    records = {}
    for row in rows:
        counts = {part: get(row, "metrics", "class_counts", part) for part in PARTS}
        if all(counts.values()):
            record = fields(row, "datasets") | {f"n_{part}": sum(n) for part, n in counts.items()}
            names = classes.get(record["dataset"], range(len(counts["train"])))
            ranked = sorted(zip(counts["train"], names, strict=False), key=lambda item: -item[0])
            record["classes"] = len(ranked)
            for name, (n, label) in {"largest": ranked[0], "smallest": ranked[-1]}.items():
                record[name] = f"{label} ({n:,})"
            key = record["dataset"], record["split"], *(record[f"n_{part}"] for part in PARTS)
            records[key] = record
    return make_table("datasets", records.values())


def runs_table(rows: Iterable[Row]) -> Table:
    """Every training and every SVM of the log, one row a run: the last, or the last that is ok."""
    runs = log.grouped((r for r in rows if r["kind"] in ("train", "svm")), lambda r: r["run_id"])
    records = []
    for tries in runs.values():
        row = ([row for row in tries if row["status"] == "ok"] or tries)[-1]
        config, group = row["config"], Group(row["config"], (row,))
        record = fields(row, "runs") | config
        if row["status"] == "ok":
            record |= log.accuracy_record(group)
        if group.kind == "svm":
            record["model"] = f"SVM, {config.get('kernel')}"
        record["train_ms"] = group.cost_ms()
        record["note"] = join_notes(row["error"], group.protocol)
        records.append(record)
    return make_table("runs", records)


def failed_table(rows: Sequence[Row]) -> Table:
    """Every row that is not ok, with its error."""
    done = {(row["kind"], row["run_id"]) for row in rows if row["status"] == "ok"}
    names = ("dataset", "model", "kernel", "opt", "lr", "epochs", "engine", "scenario", "seed")
    records = []
    for row in rows:
        if row["status"] != "ok":
            settings = log.in_words(
                row["config"], [name for name in names if name in row["config"]]
            )
            retried = "done" if (row["kind"], row["run_id"]) in done else None
            records.append(row | {"config": ", ".join(settings), "retried": retried})
    return make_table("failed", records)


def environment_table(rows: Sequence[Row]) -> Table:
    """Every machine and library version in the log, with the number of rows behind it."""
    facts = ((k, str(v)) for row in rows for k, v in row["env"].items() if k != "load_average")
    records = [{"property": k, "value": v, "rows": n} for (k, v), n in Counter(facts).items()]
    records.sort(key=lambda record: (record["property"], -record["rows"], record["value"]))
    if loads := [log.load_of(row) for row in rows if get(row, "env", "load_average")]:
        spread = f"{min(loads):.2f} to {max(loads):.2f}, median {statistics.median(loads):.2f}"
        records.append({"property": "load average, 1 min", "value": spread, "rows": len(loads)})
    return make_table("environment", records)


# --- accuracies -----------------------------------------------------------------------------------


def q1a_table(dataset: str, train: Sequence[Row]) -> Table:
    """Every configuration of a data set, measured or published."""
    rows = [row for row in train if get(row, "config", "dataset") == dataset]
    figures = published("q1a", dataset=dataset)
    records = side_by_side(
        log.by_seed(rows), figures, log.TRAIN_PROTOCOL, log.TRAIN_FACTORS, "make q1a"
    )
    for record in records:
        if group := record.get("group"):
            record["train_ms"] = group.mean("train_ms")
            record["runs"] = ", ".join(row["run_id"] for row in group.rows)
            for name in ("shared_with", "precision"):
                values = dict.fromkeys(get(row, "metrics", name) for row in group.rows)
                record[name] = ", ".join(filter(None, values)) or None
    waiting = ""
    if missing := sum("group" not in record for record in records):
        waiting = (
            "A published figure stands only beside a run that kept to the study's protocol. Of its "
            f"{len(figures)} published configurations {missing} are not measured: make q1a."
        )
    return make_table(
        "q1a",
        records,
        waiting,
        log.devices_note(rows),
        key=f"q1a_{slug(dataset)}",
        title=f"{log.display(dataset)}: {WORDS['q1a']['title']}",
        missing=not rows,
    )


def best_tables(train: Sequence[Row], epochs: Sequence[Row]) -> list[Table]:
    """The chosen configuration of each data set and its epochs."""
    best, order = log.pick_best(train), log.datasets_of(train)
    studied = {g.config.get("dataset") for g in log.by_seed(train) if not g.protocol}
    records = side_by_side(best, published("best"), log.TRAIN_PROTOCOL, ("dataset",), "make q1a")
    for record in records:
        if group := record.get("group"):
            record |= group.config
            record["train_ms"] = group.mean("train_ms")
            record["run_id"] = group.first()["run_id"]
        elif record["dataset"] in studied:
            record["note"] = "another protocol was chosen"
    records.sort(key=lambda record: order.index(str(record["dataset"])))
    tables = [make_table("best", records, missing=not best)]
    for group in best:
        run, dataset = group.first(), str(group.config.get("dataset"))
        curve = [epoch["metrics"] for epoch in log.trajectory(run, epochs)]
        key = f"epochs_{slug(dataset)}_{slug(run['run_id'])}"
        title = f"{log.display(dataset)}: {WORDS['epochs']['title']} {run['run_id']}"
        tables.append(make_table("epochs", curve, key=key, title=title))
    return tables


def q1b_table(svm: Sequence[Row]) -> Table:
    """Every SVM, measured or published."""
    order = log.datasets_of(svm)
    records = side_by_side(
        log.by_seed(svm), published("q1b"), log.SVM_PROTOCOL, log.SVM_FACTORS, "make q1b"
    )
    for record in records:
        if group := record.get("group"):
            record |= {name: group.mean(name) for name in ("fit_ms", "predict_ms", "n_support")}
            record["engine"] = group.config.get("engine")
            ended = [get(row, "metrics", "converged") for row in group.rows]
            if None not in ended:
                some = f"{ended.count(True)} of {len(ended)}"
                record["converged"] = ended[0] if len(set(ended)) == 1 else some
            if False in ended:
                stopped = f"stopped by max_iter {group.config.get('max_iter')}"
                record["note"] = join_notes(record["note"], stopped)
    records.sort(key=lambda record: order.index(str(record["dataset"])))
    return make_table("q1b", records, log.devices_note(svm), missing=not svm)


def mistake_tables(mistakes: Sequence[Mistakes]) -> list[Table]:
    """What the chosen networks get wrong: of all of them, then each in detail."""
    summary = [
        {
            "dataset": m.dataset,
            "run_id": m.run_id,
            "images": len(m.right),
            "mistakes": int((~m.right).sum()),
            "accuracy": m.right.mean(),
            "confidence": None if m.confidence is None else m.confidence.mean(),
            "ece": calibration_error(m.bins) if m.bins else None,
            "nobody": len(m.nobody) if m.voters > 1 else None,
        }
        for m in mistakes
    ]
    unknown = (f"{m.name}: {NO_LOGITS}" for m in mistakes if m.confidence is None)
    tables = [make_table("calibration", summary, *unknown, missing=not mistakes, bins=BINS)]
    for m in mistakes:
        no_logits, more = "" if m.bins else NO_LOGITS, len(m.nobody) - GALLERY
        voters = "Only one model's predictions on this split are stored."
        if m.voters > 1:
            voters = (
                f"{len(m.nobody)} of {len(m.right)} test images are missed by all {m.voters} runs "
                "whose predictions on this split are stored."
            )
        others = f"The {more} others are not listed." if more > 0 else ""
        details = {
            "classes": (class_records(m.predictions),),
            "class_pairs": (confused_pairs(m.predictions),),
            "reliability": (m.bins, no_logits),
            "worst": (m.worst, no_logits, m.no_images),
            "nobody": (m.nobody[:GALLERY], voters, others),
        }
        for name, content in details.items():
            key = f"{name.removeprefix('class_')}_{m.key}"
            title = f"{m.name}: {WORDS[name]['title']}"
            tables.append(make_table(name, *content, key=key, title=title))
    return tables


# --- speed and cost -------------------------------------------------------------------------------


def speed_table(name: str, rows: Sequence[Row], devices: str = "") -> Table:
    """What rows hold of a table's columns, ordered by work, with notes on their machines."""
    records = []
    for row, machine in zip(rows, log.machine_notes(rows), strict=True):
        quick = "quick: a fifth of the queries, one launch" if get(row, "metrics", "quick") else ""
        record = fields(row, name)
        record["note"] = join_notes(machine, log.busy_note(row), log.noise_note(row), quick)
        if get(row, "metrics", "speedup_vs_eager"):
            record["baseline"] = "eager"
        records.append(record)

    def work(record: Row) -> list[str | float]:
        names = [str(record.get(name)) for name in ("dataset", "model", "opt", "scenario")]
        return [*names, *(number(record, size) or 0 for size in ("image_size", "batch_size"))]

    return make_table(name, sorted(records, key=work), devices, missing=not rows)


def q2_published_table(rows: Sequence[Row]) -> Table:
    """The study's own speeds, on its machines, and what the same work took here: a whole epoch
    where one was run, else the plain variant of the device."""
    records = []
    for figure in published("q2"):
        work = {k: figure[k] for k in ("dataset", "model", "opt", "image_size", "batch_size")}
        cpu, gpu = sides([row for row in rows if work.items() <= row["config"].items()])
        here = gpu if figure["device"] == "gpu" else cpu
        tested = [row for row in here if number(row, "metrics", "test_acc") is not None]
        row = representative(tested or here)
        if row:
            note = None if tested else "no whole epoch was run: hw_bench.py --full-epoch does"
        elif figure["device"] == "gpu":
            note = unmeasured_note(COMMAND, "needs a GPU")
        else:
            note = unmeasured_note("make q2")
        records.append(fields(figure | (row or {}), "q2_published") | {"note": note})
    return make_table("q2_published", records)


def flops_table(rows: Sequence[Row]) -> Table:
    """Cost in each convention, with the published figure beside each."""
    waiting = {(f["model"], f["image_size"]): 1e9 * f["gmacs"] for f in published("flops")}
    figures, records = dict(waiting), []
    for row in rows:
        record = fields(row, "flops")
        shape = record["model"], record["image_size"]
        if shape in figures and get(row, "config", "classes") == 10:
            waiting.pop(shape, None)
            record["published_macs"] = figures[shape]
            if record["macs"] is not None:
                record["macs_difference"] = record["macs"] - figures[shape]
        records.append(record)
    for (model, size), macs in waiting.items():
        note = unmeasured_note("make flops")
        records.append({"model": model, "image_size": size, "published_macs": macs, "note": note})
    records.sort(key=lambda record: (str(record["model"]), record["image_size"] or 0))
    return make_table("flops", records, missing=not rows)
