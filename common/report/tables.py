"""The report's tables of what was measured: their records; their words are in judge/tables.toml."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from common.base.log import KINDS, STATUSES
from common.base.machine import machine_of
from common.judge import mistakes as judge
from common.judge import rows as log
from common.judge.findings import judged_tables
from common.judge.mistakes import GALLERY, Mistakes, Predictions, load_predictions
from common.judge.published import COMMAND, beside, plainness, published, sides, unmeasured
from common.judge.rows import Group, Row, get, join_notes, number, slug
from common.judge.tables import WORDS, Table, fields, make_table

MOST_PROBLEMS = 200


def build_tables(
    rows: Sequence[Row], problems: Sequence[str], folder: Path, data_dir: str
) -> tuple[list[Table], list[Mistakes], list[str]]:
    """Every table, what the chosen networks get wrong, and every problem."""
    done = {kind: log.latest_ok(rows, kind) for kind in KINDS}
    train, svm, timed = done["train"], done["svm"], done["hw_train"]
    runs = [*train, *svm]
    chosen = {group.first()["run_id"] for group in log.pick_best(train)}
    loaded = {r["run_id"]: load_predictions(folder, r, r["run_id"] in chosen) for r in runs}
    predictions = {name: arrays for name, (arrays, _) in loaded.items() if arrays}
    problems = [*problems, *(loaded[name][1] for name in sorted(chosen - predictions.keys()))]
    mistakes = judge.find_mistakes(runs, predictions, data_dir)
    tables = [
        *log_tables(rows, done, problems),
        runs_table(rows),
        datasets_table(runs, predictions),
        *(accuracy_table("q1a", train, dataset) for dataset in log.datasets_of(train)),
        *(epochs_table(group, done["epoch"]) for group in log.pick_best(train)),
        accuracy_table("q1b", svm),
        speed_table("q2", timed, log.devices_note(timed)),
        speed_table("q2_phases", timed),
        q2_published_table(timed),
        flops_table(done["flops"]),
        speed_table("infer", done["hw_infer"], log.devices_note(done["hw_infer"])),
        speed_table("export", done["export"]),
        failed_table(rows),
        environment_table(rows),
        *mistake_tables(mistakes),
        *judged_tables(rows, lambda row: loaded[row["run_id"]], mistakes),
    ]
    return tables, mistakes, problems


def log_tables(rows: Sequence[Row], done: Mapping, problems: Sequence[str]) -> list[Table]:
    """What the log holds, the commits it was measured at, and what could not be used."""
    kinds, commits = [], []
    for kind in KINDS:
        if counts := Counter(row["status"] for row in rows if row["kind"] == kind):
            record = {"kind": kind, "superseded": counts["ok"] - len(done[kind])}
            kinds.append(record | {status: counts[status] for status in STATUSES})
    states = log.grouped(rows, lambda row: (get(row, "git", "commit"), get(row, "git", "dirty")))
    for (commit, dirty), same in states.items():
        times = sorted(row["time_utc"] for row in same)
        record = {"commit": str(commit or "unknown")[:12], "first": times[0], "last": times[-1]}
        commits.append(record | {"dirty": "unknown" if dirty is None else dirty, "rows": len(same)})
    skipped = [p.split(": skipped, ")[1] for p in problems if ": skipped, " in p]
    reasons = Counter(reason.split(": line ")[0] for reason in skipped).most_common()
    listed = [{"problem": problem} for problem in problems[:MOST_PROBLEMS]]
    return [
        make_table("log", kinds),
        make_table("commits", commits),
        make_table("skipped", [{"problem": reason, "rows": n} for reason, n in reasons]),
        make_table("problems", listed, count=len(problems), most=MOST_PROBLEMS),
    ]


def datasets_table(runs: Sequence[Row], predictions: Mapping[str, Predictions]) -> Table:
    """The sizes of each data set and split; the names of its classes come from predictions."""
    known = [row for row in runs if row["run_id"] in predictions]
    classes = {row["config"].get("dataset"): predictions[row["run_id"]]["classes"] for row in known}
    records = {}
    for row in runs:
        counts = [get(row, "metrics", "class_counts", part) for part in ("train", "val", "test")]
        if all(counts):
            sizes = dict(zip(("n_train", "n_val", "n_test"), map(sum, counts), strict=True))
            record = fields(row, "datasets") | sizes
            names = classes.get(record["dataset"], range(len(counts[0])))
            ranked = sorted(zip(counts[0], names, strict=False), key=lambda item: -item[0])
            largest, smallest = (f"{name} ({n:,})" for n, name in (ranked[0], ranked[-1]))
            record |= {"classes": len(ranked), "largest": largest, "smallest": smallest}
            records[record["dataset"], record["split"], *sizes.values()] = record
    return make_table("datasets", records.values())


def runs_table(rows: Iterable[Row]) -> Table:
    """Every training and every SVM of the log, one row a run: the last, or the last that is ok."""
    runs = log.grouped((r for r in rows if r["kind"] in ("train", "svm")), lambda r: r["run_id"])
    records = []
    for tries in runs.values():
        row = ([row for row in tries if row["status"] == "ok"] or tries)[-1]
        group = Group(row["config"], (row,))
        record = fields(row, "runs") | group.config | {"train_ms": group.cost_ms()}
        record |= log.accuracy_record(group) if row["status"] == "ok" else {}
        if group.kind == "svm":
            record["model"] = f"SVM, {group.config.get('kernel')}"
        records.append(record | {"note": join_notes(row["error"], group.protocol)})
    return make_table("runs", records)


def failed_table(rows: Sequence[Row]) -> Table:
    done = {(row["kind"], row["run_id"]) for row in rows if row["status"] == "ok"}
    names = ("dataset", "model", "kernel", "opt", "lr", "epochs", "engine", "scenario", "seed")
    records = []
    for row in (row for row in rows if row["status"] != "ok"):
        words = log.in_words(row["config"], [name for name in names if name in row["config"]])
        retried = "done" if (row["kind"], row["run_id"]) in done else None
        records.append(row | {"config": ", ".join(words), "retried": retried})
    return make_table("failed", records)


def environment_table(rows: Sequence[Row]) -> Table:
    """Every machine and library version in the log, with the number of rows behind it."""
    known = (fact for row in rows for fact in row["env"].items() if fact[0] != "load_average")
    facts = Counter((name, str(value)) for name, value in known)
    records = [{"property": k, "value": v, "rows": n} for (k, v), n in facts.items()]
    records.sort(key=lambda record: (record["property"], -record["rows"], record["value"]))
    loads = [number(row, "env", "load_average", "0") for row in rows]
    if loads := [load for load in loads if load is not None]:
        spread = f"{min(loads):.2f} to {max(loads):.2f}, median {statistics.median(loads):.2f}"
        records.append({"property": "load average, 1 min", "value": spread, "rows": len(loads)})
    return make_table("environment", records)


def epochs_table(group: Group, epochs: Sequence[Row]) -> Table:
    """The epochs of one run of what was chosen."""
    run, config = group.first(), group.config
    curve = [epoch["metrics"] for epoch in log.trajectory(run, epochs)]
    key = f"epochs_{slug(str(config.get('dataset')))}_{slug(run['run_id'])}"
    title = f"{log.split_name(config)}, run {run['run_id']}: {WORDS['epochs']['title']}"
    return make_table("epochs", curve, key=key, title=title)


def accuracy_table(part: str, runs: Sequence[Row], dataset: str | None = None) -> Table:
    """Every configuration beside what the study published, the study's protocol first, then the
    figures that stand alone: of networks of a data set, or of SVMs."""
    order, where, names = log.datasets_of(runs), {}, {}
    if dataset:
        title = f"{log.display(dataset)}: {WORDS[part]['title']}"
        where, names = {"dataset": dataset}, {"key": f"{part}_{slug(dataset)}", "title": title}
        runs = [row for row in runs if row["config"].get("dataset") == dataset]
    protocol, factors = log.PROTOCOLS["svm" if part == "q1b" else "train"]
    figures = [figure for figure in published(part, **where) if figure["dataset"] in order]
    figures = {tuple(figure[name] for name in factors): figure for figure in figures}
    groups, placed, waiting = log.by_seed(runs), [], dict(figures)
    varying = log.varying_settings([group.config for group in groups], {*factors, *protocol})
    plain = log.DEFAULTS["svm"]["engine"]  # the usual implementation first, if there are two

    def place(config: Row, rank: int) -> tuple:
        other = (config.get("engine") or plain) != plain
        return other, order.index(str(config.get("dataset"))), rank, log.order_of(config)

    for group in groups:
        key = None if group.protocol else tuple(map(group.config.get, factors))
        waiting.pop(key, None)
        record = configuration_record(group, figures.get(key), varying)
        placed.append((place(group.config, bool(group.protocol)), record))
    for figure in waiting.values():
        record = {name: figure.get(name) for name in (*factors, "samples")} | beside(figure)
        placed.append((place(figure, 2), record | {"note": unmeasured(f"make {part}")}))
    records = [record for _, record in sorted(placed, key=lambda item: item[0])]
    return make_table(part, records, log.devices_note(runs), missing=not runs, **names)


def configuration_record(group: Group, figure: Row | None, varying: Sequence[str]) -> Row:
    """A configuration beside the published figure of it, if there is one."""
    record = group.config | log.accuracy_record(group) | (beside(figure, group) if figure else {})
    record |= {k: group.mean(k) for k in ("train_ms", "fit_ms", "predict_ms", "n_support")}
    record["runs"] = ", ".join(row["run_id"] for row in group.rows)
    for name in ("shared_with", "precision"):
        values = dict.fromkeys(get(row, "metrics", name) for row in group.rows)
        record[name] = ", ".join(filter(None, values)) or None
    ended = [get(row, "metrics", "converged") for row in group.rows]
    some = f"{ended.count(True)} of {len(ended)}"
    record["converged"] = ended[0] if len(set(ended)) == 1 else some
    stopped = f"stopped by max_iter {group.config.get('max_iter')}" if False in ended else ""
    notes = [group.protocol, *log.in_words(group.config, varying), *map(log.busy_note, group.rows)]
    return record | {"note": join_notes(*notes, record.get("disagreement"), stopped)}


def mistake_tables(mistakes: Sequence[Mistakes]) -> list[Table]:
    """What the chosen networks get wrong: of all of them, then each in detail."""
    summary, details = [], []
    for m in mistakes:
        classes = judge.class_records(m.predictions)
        worst = min(classes, key=lambda c: c["recall"] if c["recall"] is not None else 1.0)
        record = {"where": m.where, "run_id": m.run_id, "images": len(m.right)}
        record |= {"mistakes": int((~m.right).sum()), "accuracy": m.right.mean()}
        record["weakest"] = f"{worst['class']}: most often taken for {worst['confused_with']}"
        if m.bins:
            record |= {"confidence": m.confidence.mean(), "ece": judge.calibration_error(m.bins)}
        shared = {"nobody": len(m.nobody), "voters": m.voters}
        summary.append(record | (shared if m.voters > 1 else {}))
        content = {"classes": (classes,), "class_pairs": (judge.confused_pairs(m.predictions),)}
        content |= {"reliability": (m.bins,), "worst": (m.worst, m.no_images)}
        content["nobody"] = (m.nobody[:GALLERY],)
        values = shared | {"images": len(m.right), "gallery": GALLERY}
        for name, shown in content.items():
            key, title = f"{name.removeprefix('class_')}_{m.key}", WORDS[name]["title"]
            details.append(make_table(name, *shown, key=key, title=f"{m.name}: {title}", **values))
    named = {"bins": judge.BINS, "missing": not mistakes}
    return [make_table("calibration", summary, **named), *details]


def speed_table(name: str, rows: Sequence[Row], devices: str = "") -> Table:
    """What rows hold of a table's columns, ordered by work, with notes on their machines."""
    records, machines = [], {machine_of(row["env"]) for row in rows}
    for row in rows:
        record = fields(row, name)
        known = filter(None, map(row["env"].get, ("device", "cpu_model")))
        machine = ", ".join(known) if len(machines) > 1 else ""
        quick = "quick: a fifth of the queries, one launch" if get(row, "metrics", "quick") else ""
        record["note"] = join_notes(machine, log.busy_note(row), log.noise_note(row), quick)
        if get(row, "metrics", "speedup_vs_eager"):
            record["baseline"] = "eager"
        records.append(record)
    names, sizes = ("dataset", "model", "opt", "scenario"), ("image_size", "batch_size")
    records.sort(key=lambda r: ([str(r.get(k)) for k in names], [number(r, k) or 0 for k in sizes]))
    return make_table(name, records, devices, missing=not rows)


def q2_published_table(rows: Sequence[Row]) -> Table:
    """The study's speeds beside ours: of a whole epoch if one was run, else the plain variant."""
    records = []
    for figure in published("q2"):
        work = {k: figure[k] for k in ("dataset", "model", "opt", "image_size", "batch_size")}
        cpu, gpu = sides([row for row in rows if work.items() <= row["config"].items()])
        here = gpu if figure["device"] == "gpu" else cpu
        tested = [row for row in here if number(row, "metrics", "test_acc") is not None]
        missing = (COMMAND, "needs a GPU") if figure["device"] == "gpu" else ("make q2",)
        note = None if tested else "no whole epoch was run: hw_bench.py --full-epoch does"
        note = note if here else unmeasured(*missing)
        row = min(tested or here, key=plainness, default={})
        records.append(fields(figure | row, "q2_published") | {"note": note})
    return make_table("q2_published", records)


def flops_table(rows: Sequence[Row]) -> Table:
    figures = {(f["model"], f["image_size"]): 1e9 * f["gmacs"] for f in published("flops")}
    waiting, records = dict(figures), []
    for row in rows:
        record = fields(row, "flops")
        shape = record["model"], record["image_size"]
        if shape in figures and get(row, "config", "classes") == 10:
            macs = waiting.pop(shape, figures[shape])
            difference = record["macs"] - macs if record["macs"] is not None else None
            record |= {"published_macs": macs, "macs_difference": difference}
        records.append(record)
    for (model, size), macs in waiting.items():
        record = {"model": model, "image_size": size, "published_macs": macs}
        records.append(record | {"note": unmeasured("make flops")})
    records.sort(key=lambda record: (str(record["model"]), record["image_size"] or 0))
    return make_table("flops", records, missing=not rows)
