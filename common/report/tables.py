"""The report's tables, built from the rows of the log: one content that every form renders.

A table holds raw values (fractions, milliseconds) and a column says how they are shown: CSV files
get the raw values, Markdown and LaTeX the shown ones.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.base.log import KINDS, STATUSES
from common.judge.published import load_published, side_by_side, unmeasured_note
from common.judge.rows import (
    ACCURACY_INTERVAL,
    SVM_FACTORS,
    SVM_PROTOCOL,
    TRAIN_FACTORS,
    TRAIN_PROTOCOL,
    Group,
    Row,
    busy_note,
    by_seed,
    datasets_of,
    deviations,
    devices_note,
    display,
    get,
    join_notes,
    latest_ok,
    machine_notes,
    noise_note,
    number,
    pick_best,
    plain,
    shorten,
    slug,
    trajectory,
)
from common.judge.tables import Table, make_table, significant
from common.judge.times import COMMAND, representative, sides

SECTIONS = (
    ("findings", "Key findings and recommendations", "make demo"),
    ("claims", "The study's claims, tested", "make all"),
    ("log", "What this report is made from", "make demo"),
    ("statistics", "Comparisons and their noise", "make q1a q1b"),
    ("q1a", "Question 1(a): networks", "make q1a"),
    ("best", "Best models", "make q1a"),
    ("errors", "Errors of the best networks", "make q1a"),
    ("q1b", "Question 1(b): support vector machines", "make q1b"),
    ("q2", "Question 2: training speed by device", "make q2"),
    ("flops", "Cost of the networks", "make flops"),
    ("infer", "Inference", "make bench"),
    ("export", "Exported models", "make best"),
    ("failed", "Runs that failed or were interrupted", ""),
    ("env", "Environment", ""),
)
COMMANDS = {key: command for key, _, command in SECTIONS}


# --- tables and how their values are shown --------------------------------------------------------


FORMS: dict[str, Callable[[Any], str]] = {
    "number": lambda value: f"{value:g}",
    "count": lambda value: f"{value:,.0f}",
    "percent": lambda value: f"{100 * value:.2f}",
    "points": lambda value: f"{100 * value:+.2f}",
    "signed": lambda value: f"{value:+.2f}",
    "seconds": lambda ms: significant(ms / 1e3),
    "measure": significant,
    "ratio": lambda value: f"{value:.2f}x",
    "p": lambda p: f"{p:.3f}" if p >= 0.001 else f"{p:.0e}" if p >= 1e-9 else "< 1e-9",
    "giga": lambda value: f"{value / 1e9:.4f}",
    "giga_signed": lambda value: f"{value / 1e9:+.4f}",
    "mega": lambda value: f"{value / 1e6:.2f}",
}


TEXTS = ("text", "start", "name")


@dataclass(frozen=True)
class Column:
    """A column: its name in CSV files, its heading, how a number in it is shown.

    Units: width_mm is the width in LaTeX of a column whose text wraps.
    """

    key: str
    head: str
    form: str = "text"
    width_mm: int | None = None

    @property
    def is_text(self) -> bool:
        """Whether it is set flush left."""
        return self.form in TEXTS

    def show(self, value: Any) -> str:
        """The text of a value; a dash for one that is null."""
        if value is None or value == "":
            return "-"
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, str):
            return {"start": value[:12], "name": shorten(value)}.get(self.form, value)
        if self.is_text:
            return str(value)
        return FORMS[self.form](value)


# A line break in a heading is one in LaTeX, and a space elsewhere.
COLUMNS = {
    column.key: column
    for column in (
        Column("dataset", "Data set", "name"),
        Column("model", "Network"),
        Column("kernel", "Kernel"),
        Column("opt", "Optimiser"),
        Column("lr", "Rate", "number"),
        Column("epochs", "Epochs", "number"),
        Column("pin_memory", "Pinned\nmemory"),
        Column("samples", "Training\nimages", "count"),
        Column("engine", "Engine"),
        Column("seeds", "Seeds", "number"),
        Column("seed", "Seed", "number"),
        Column("val_acc", "Val.\nacc. %", "percent"),
        Column("test_acc", "Test\nacc. %", "percent"),
        Column("interval", "95 % interval"),
        Column("test_acc_sd", "sd over\nseeds", "percent"),
        Column("test_acc_low", "95 %\nfrom", "percent"),
        Column("test_acc_high", "95 %\nto", "percent"),
        Column("published_test_acc", "Published\ntest acc. %", "percent"),
        Column("published_val_acc", "Published\nval. acc. %", "percent"),
        Column("difference", "Difference\npoints", "points"),
        Column("difference_low", "95 %\nfrom", "points"),
        Column("difference_high", "95 %\nto", "points"),
        Column("train_ms", "Training\ntime s", "seconds"),
        Column("precision", "Arith-\nmetic"),
        Column("runs", "Run", width_mm=19),
        Column("shared_with", "Shared\nwith", width_mm=19),
        Column("fit_ms", "Fit\ns", "seconds"),
        Column("published_fit_ms", "Published\nfit s", "seconds"),
        Column("predict_ms", "Predict\ns", "seconds"),
        Column("n_support", "Support\nvectors", "count"),
        Column("converged", "Converged"),
        Column("image_size", "Image\nside px", "number"),
        Column("batch_size", "Batch", "number"),
        Column("label", "Device and variant", width_mm=45),
        Column("images_per_s", "Images\nper s", "measure"),
        Column("step_ms", "Step\nmedian ms", "measure"),
        Column("step_iqr_ms", "Step\nIQR ms", "measure"),
        Column("steps", "Steps", "number"),
        Column("first_step_ms", "First\nstep ms", "measure"),
        Column("epoch_ms", "Epoch\ns", "seconds"),
        Column("published_epoch_ms", "Published\nepoch s", "seconds"),
        Column("extrapolated", "Epoch extra-\npolated"),
        Column("speedup", "Speed-up", "ratio"),
        Column("published_speedup", "Published\nspeed-up", "ratio"),
        Column("speedup_low", "95 %\nfrom", "ratio"),
        Column("speedup_high", "95 %\nto", "ratio"),
        Column("baseline", "over", width_mm=35),
        Column("mfu", "MFU %", "percent"),
        Column("roofline", "Roofline\n%", "percent"),
        Column("noise", "IQR of\nmedian %", "percent"),
        Column("data_ms", "Data\nms", "measure"),
        Column("copy_ms", "Copy\nms", "measure"),
        Column("forward_ms", "Forward\nms", "measure"),
        Column("backward_ms", "Backward\nms", "measure"),
        Column("optimizer_ms", "Optimiser\nms", "measure"),
        Column("compile_ms", "Compile\nms", "measure"),
        Column("peak_memory_bytes", "Peak\nmemory MB", "mega"),
        Column("energy_per_image_j", "Energy\nJ an image", "measure"),
        Column("cold_start_ms", "Cold\nstart ms", "measure"),
        Column("device", "Device"),
        Column("training", "Training", width_mm=40),
        Column("convention", "Convention"),
        Column("macs", "GMACs", "giga"),
        Column("flops", "GFLOPs", "giga"),
        Column("published_macs", 'Published\n"GFLOPs"', "giga"),
        Column("macs_difference", "GMACs minus\npublished", "giga_signed"),
        Column("params", "Parameters\nmillions", "mega"),
        Column("activations", "Activations\nmillions", "mega"),
        Column("weight_bytes", "Weights\nMB", "mega"),
        Column("train_step_flops", "Training step\nGFLOPs", "giga"),
        Column("scenario", "Scenario"),
        Column("threads", "Threads", "number"),
        Column("p50_ms", "p50\nms", "measure"),
        Column("p90_ms", "p90\nms", "measure"),
        Column("p99_ms", "p99\nms", "measure"),
        Column("queries", "Queries", "number"),
        Column("flips", "Prediction\nflips", "count"),
        Column("train_run_id", "Trained by"),
        Column("format", "Format"),
        Column("file", "File", width_mm=42),
        Column("size_bytes", "Size\nMB", "mega"),
        Column("parity_images", "Images\ncompared", "count"),
        Column("max_abs_logit", "Largest logit\ndifference", "number"),
        Column("acc_delta", "Accuracy\ndelta, points", "points"),
        Column("mcnemar_p", "McNemar\np", "p"),
        Column("sha256", "SHA-256\nstarts with", "start"),
        Column("class", "Class"),
        Column("images", "Test\nimages", "count"),
        Column("recall", "Recall %", "percent"),
        Column("class_precision", "Precision %", "percent"),
        Column("confused_with", "Most often taken for"),
        Column("other_class", "and"),
        Column("mistakes", "Mistakes", "count"),
        Column("there", "First taken\nfor second", "count"),
        Column("back", "Second taken\nfor first", "count"),
        Column("share", "Share %", "percent"),
        Column("accuracy", "Accuracy %", "percent"),
        Column("accuracy_low", "95 %\nfrom", "percent"),
        Column("accuracy_high", "95 %\nto", "percent"),
        Column("confidence", "Confidence %", "percent"),
        Column("ece", "ECE\npoints", "percent"),
        Column("nobody", "Missed by\nevery model", "count"),
        Column("bin_low", "Confidence\nabove %", "percent"),
        Column("bin_high", "to %", "percent"),
        Column("index", "Image", "number"),
        Column("taken_for", "Taken for"),
        Column("agreed", "Runs that\nsay so", "count"),
        Column("epoch", "Epoch", "number"),
        Column("train_loss", "Training\nloss", "measure"),
        Column("val_loss", "Val.\nloss", "measure"),
        Column("train_acc", "Training\nacc. %", "percent"),
        Column("kind", "Kind"),
        *(Column(status, status, "number") for status in STATUSES),
        Column("superseded", "superseded", "number"),
        Column("commit", "Commit"),
        Column("dirty", "Uncommitted\nchanges"),
        Column("rows", "Rows", "count"),
        Column("first", "First row"),
        Column("last", "Last row"),
        Column("run_id", "Run"),
        Column("status", "Status"),
        Column("config", "Configuration", width_mm=55),
        Column("error", "Error", width_mm=85),
        Column("time_utc", "Time (UTC)"),
        Column("retried", "Same work elsewhere in the log"),
        Column("split", "Division"),
        Column("n_train", "Training\nimages", "count"),
        Column("n_val", "Validation\nimages", "count"),
        Column("n_test", "Test\nimages", "count"),
        Column("classes", "Classes", "count"),
        Column("largest", "Largest class,\ntraining images"),
        Column("smallest", "Smallest class,\ntraining images"),
        Column("majority_acc", "Always the\nlargest, acc. %", "percent"),
        Column("test_duplicates", "Test images\nseen before", "count"),
        Column("problem", "Problem", width_mm=230),
        Column("property", "Property"),
        Column("value", "Value", width_mm=150),
        Column("note", "Note", width_mm=38),
        Column("contrast", "Contrast", width_mm=40),
        Column("pairs", "Pairs", "number"),
        Column("trajectories", "Trainings", "number"),
        Column("first_only", "First only\nright", "count"),
        Column("second_only", "Second only\nright", "count"),
        Column("low", "95 %\nfrom", "points"),
        Column("high", "95 %\nto", "points"),
        Column("image_low", "Test images\nalone, from", "points"),
        Column("image_high", "Test images\nalone, to", "points"),
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
        Column("partial", "Epochs but\nno result", "count"),
        Column("reason", "Reason", width_mm=150),
        Column("claim", "Claim", "number"),
        Column("text", "What the study says", width_mm=75),
        Column("verdict", "Verdict"),
        Column("criterion", "Holds if the interval has", width_mm=75),
        Column("subject", "Part", width_mm=38),
        Column("unit", "Unit"),
        Column("published", "Published", "signed"),
        Column("effect", "Measured", "signed"),
        Column("basis", "Rows compared", width_mm=55),
        Column("finding", "Finding", width_mm=250),
        Column("recommendation", "Recommendation", width_mm=250),
    )
}


# Where a table shows a column of this name in another way.
OTHERWISE = {
    ("claim_parts", column.key): column
    for column in (
        Column("low", "95 %\nfrom", "signed"),
        Column("high", "95 %\nto", "signed"),
        Column("runs", "Runs", width_mm=30),
        Column("note", "Note", width_mm=52),
    )
}


def columns_of(table: Table) -> list[Column]:
    """The columns of a table that hold anything."""
    return [
        OTHERWISE.get((table.key, name)) or COLUMNS[name]
        for name in table.columns
        if any(record[name] is not None for record in table.records)
    ]


def shown(table: Table) -> tuple[list[Column], list[list[str]]]:
    """Columns that hold anything, and the rows as text."""
    columns = columns_of(table)
    return columns, [[c.show(record[c.key]) for c in columns] for record in table.records]


# --- the tables -----------------------------------------------------------------------------------

INTERVAL_NOTE = (
    f"{ACCURACY_INTERVAL}. Several seeds are shown as their mean, with the standard deviation. "
    "A difference from a published figure has Newcombe's interval, as of two samples of images."
)
SHOWN_PROBLEMS = 200
PROTOCOL_NOTE = "A published figure stands only beside a run that kept to the study's protocol."


def build_tables(
    rows: Sequence[Row], problems: Sequence[str], predictions: Mapping[str, Mapping[str, Any]]
) -> list[Table]:
    """Every table that the log carries; of the predictions only the names of classes are used."""
    done = {kind: latest_ok(rows, kind) for kind in KINDS}
    published: dict[str, list[Row]] = {}
    for figure in load_published():
        published.setdefault(figure["part"], []).append(figure)
    return [
        *log_tables(rows, problems),
        datasets_table([*done["train"], *done["svm"]], predictions),
        *q1a_tables(done["train"], published["q1a"]),
        *best_tables(done, published["best"]),
        q1b_table(done["svm"], published["q1b"]),
        q2_table(done["hw_train"]),
        q2_phases_table(done["hw_train"]),
        q2_published_table(done["hw_train"], published["q2"]),
        flops_table(done["flops"], published["flops"]),
        infer_table(done["hw_infer"]),
        export_table(done["export"]),
        failed_table(rows),
        environment_table(rows),
    ]


def log_tables(rows: Sequence[Row], problems: Sequence[str]) -> list[Table]:
    """What the log holds, the commits it was measured at, and what could not be read."""
    counts = []
    for kind in KINDS:
        statuses = Counter(row["status"] for row in rows if row["kind"] == kind)
        kept = len(latest_ok(rows, kind))
        counts.append({"kind": kind, **{s: statuses[s] for s in STATUSES}})
        counts[-1]["superseded"] = statuses["ok"] - kept
    commits: dict[tuple[Any, Any], list[str]] = {}
    for row in rows:
        commit = get(row, "git", "commit"), get(row, "git", "dirty")
        commits.setdefault(commit, []).append(str(row["time_utc"]))
    measured = [
        {
            "commit": str(commit)[:12] if commit else "unknown",
            "dirty": "unknown" if dirty is None else dirty,
            "rows": len(times),
            "first": min(times),
            "last": max(times),
        }
        for (commit, dirty), times in commits.items()
    ]
    return [
        make_table(
            "log", "log", "Rows of the log", "kind ok failed interrupted superseded", counts,
            "Superseded: the same work done again; the last row that is ok counts.",
        ),
        make_table(
            "log", "commits", "Commits measured at", "commit dirty rows first last", measured
        ),
        *problem_tables(problems),
    ]  # fmt: skip


def problem_tables(problems: Sequence[str]) -> list[Table]:
    """What could not be used: lines of the log counted by reason, then each problem, up to a
    limit."""
    omitted = max(0, len(problems) - SHOWN_PROBLEMS)
    skipped = Counter(
        p.split(": skipped, ")[1].split(": line ")[0] for p in problems if ": skipped, " in p
    )
    return [
        make_table(
            "log", "skipped", "Lines of the log that were left out, by reason", "problem rows",
            [{"problem": reason, "rows": n} for reason, n in skipped.most_common()],
            "" if skipped else "None.",
        ),
        make_table(
            "log", "problems", "Problems in the log", "problem",
            [{"problem": p} for p in problems[:SHOWN_PROBLEMS]],
            "" if problems else "None.", f"Not shown: {omitted} more." if omitted else "",
        ),
    ]  # fmt: skip


def datasets_table(rows: Sequence[Row], predictions: Mapping[str, Mapping[str, Any]]) -> Table:
    """What an accuracy on each data set and division has to be read with."""
    named = {row["config"].get("dataset"): predictions[row["run_id"]]["classes"] for row in rows
             if row["run_id"] in predictions}  # fmt: skip
    records = {}
    for row in rows:
        parts = {k: get(row, "metrics", "class_counts", k) for k in ("train", "val", "test")}
        if not all(isinstance(counts, list) and counts for counts in parts.values()):
            continue  # a row of an older version
        counts = parts["train"]
        dataset = row["config"].get("dataset")
        names = [str(name) for name in named.get(dataset, range(len(counts)))]
        ranked = sorted(zip(counts, names, strict=False), key=lambda item: -item[0])
        sizes = {f"n_{part}": sum(n) for part, n in parts.items()}
        key = (dataset, get(row, "config", "split"), *sizes.values())
        records[key] = sizes | {
            "dataset": dataset, "split": get(row, "config", "split"), "classes": len(counts),
            "largest": f"{ranked[0][1]} ({ranked[0][0]:,})",
            "smallest": f"{ranked[-1][1]} ({ranked[-1][0]:,})",
            "majority_acc": number(row, "metrics", "majority_acc"),
            "test_duplicates": number(row, "metrics", "test_duplicates"),
        }  # fmt: skip
    return make_table(
        "log", "datasets", "Data sets",
        "dataset split n_train n_val n_test classes largest smallest majority_acc test_duplicates",
        records.values(), "Always the largest: test accuracy of always answering the largest "
        "class. Seen before: test images that are, pixel for pixel, among those trained or "
        "validated on." if records else "No row tells.",
    )  # fmt: skip


def q1a_tables(train: Sequence[Row], published: Sequence[Row]) -> list[Table]:
    """Every configuration of each data set, measured or published."""
    tables = []
    for dataset in datasets_of(train):
        mine = [row for row in train if get(row, "config", "dataset") == dataset]
        figures = [row for row in published if row["dataset"] == dataset]
        records = side_by_side(
            by_seed(mine), figures, TRAIN_PROTOCOL, TRAIN_FACTORS, COMMANDS["q1a"]
        )
        for record in records:
            if group := record.get("group"):
                shared = dict.fromkeys(get(row, "metrics", "shared_with") for row in group.rows)
                kinds = dict.fromkeys(get(row, "metrics", "precision") for row in group.rows)
                record["train_ms"] = group.mean("train_ms")
                record["shared_with"] = ", ".join(filter(None, shared)) or None
                record["precision"] = ", ".join(filter(None, kinds)) or None
                record["runs"] = ", ".join(row["run_id"] for row in group.rows)
        waiting = sum("group" not in record for record in records)
        tables.append(make_table(
            "q1a", f"q1a_{slug(dataset)}", f"{display(dataset)}: every configuration",
            "model opt lr epochs pin_memory seeds val_acc test_acc test_acc_sd test_acc_low "
            "test_acc_high published_test_acc difference difference_low difference_high train_ms "
            "precision runs shared_with note",
            records, INTERVAL_NOTE,
            "Shared with: the run that was really trained, where another configuration has the "
            "same trajectory." if any(r.get("shared_with") for r in records) else "",
            f"{PROTOCOL_NOTE} Of its {len(figures)} published configurations {waiting} are not "
            f"measured: {COMMANDS['q1a']}." if waiting else "",
            devices_note(mine), missing=not mine,
        ))  # fmt: skip
    return tables


def best_tables(done: Mapping[str, Sequence[Row]], published: Sequence[Row]) -> list[Table]:
    """The chosen configuration of each data set and its epochs."""
    best = pick_best(done["train"])
    records = side_by_side(best, published, TRAIN_PROTOCOL, ("dataset",), COMMANDS["best"])
    studied = {row["config"].get("dataset") for row in done["train"]
               if not deviations(row["config"], TRAIN_PROTOCOL)}  # fmt: skip
    for record in records:
        if group := record.get("group"):
            record |= group.config
            record["train_ms"] = group.mean("train_ms")
            record["run_id"] = group.first()["run_id"]
        elif record["dataset"] in studied:
            record["note"] = "another protocol was chosen"
    records.sort(key=lambda record: datasets_of(done["train"]).index(str(record["dataset"])))
    tables = [make_table(
        "best", "best", "Chosen on validation",
        "dataset model opt lr epochs pin_memory seeds val_acc test_acc test_acc_sd test_acc_low "
        "test_acc_high published_val_acc published_test_acc difference difference_low "
        "difference_high train_ms run_id note",
        records,
        "Highest validation accuracy of the data set and split, ties to the shorter training; the "
        "test images are looked at after the choice. Published: the study's own best, which may be "
        "another configuration.",
        missing=not best,
    )]  # fmt: skip
    return tables + [_epochs_table(group.first(), done["epoch"]) for group in best]


def _epochs_table(row: Row, epochs: Sequence[Row]) -> Table:
    name, run = str(get(row, "config", "dataset")), row["run_id"]
    curve = [epoch["metrics"] for epoch in trajectory(row, epochs)]
    return make_table(
        "best", f"epochs_{slug(name)}_{slug(run)}", f"{display(name)}: epochs of run {run}",
        "epoch train_loss train_acc val_loss val_acc lr train_ms", curve,
        "" if curve else "The log has no epochs of this run.",
    )  # fmt: skip


def q1b_table(svm: Sequence[Row], published: Sequence[Row]) -> Table:
    """Every support vector machine, measured or published."""
    records = side_by_side(by_seed(svm), published, SVM_PROTOCOL, SVM_FACTORS, COMMANDS["q1b"])
    for record in records:
        if not (group := record.get("group")):
            continue
        stopped = [row for row in group.rows if get(row, "metrics", "converged") is False]
        limit = group.config.get("max_iter")
        record |= {name: group.mean(name) for name in ("fit_ms", "predict_ms", "n_support")}
        record["engine"] = group.config.get("engine")
        record["converged"] = _all_or_some(group, "converged")
        record["note"] = join_notes(
            record["note"], f"stopped by max_iter {limit}" if stopped else ""
        )
    records.sort(key=lambda record: datasets_of(svm).index(str(record["dataset"])))
    return make_table(
        "q1b", "q1b", "Support vector machines: every configuration",
        "dataset kernel samples engine seeds val_acc test_acc test_acc_sd test_acc_low "
        "test_acc_high published_test_acc difference difference_low difference_high fit_ms "
        "published_fit_ms predict_ms n_support converged note", records, INTERVAL_NOTE,
        f"{PROTOCOL_NOTE} Published times are of the study's machine. One that max_iter stopped "
        "has not found its optimum, so that its accuracy depends on the solver's path.",
        devices_note(svm), missing=not svm,
    )  # fmt: skip


def _all_or_some(group: Group, metric: str) -> bool | str | None:
    found = [get(row, "metrics", metric) for row in group.rows]
    if None in found:
        return None
    return found[0] if len(set(found)) == 1 else f"{found.count(True)} of {len(found)}"


def q2_table(rows: Sequence[Row]) -> Table:
    """Training speed of each device and variant."""
    records = [
        {
            **{k: get(row, "config", k) for k in ("dataset", "model", "opt")},
            **{k: number(row, "config", k) for k in ("image_size", "batch_size")},
            "label": get(row, "metrics", "label") or get(row, "env", "device"),
            **{k: number(row, "metrics", k) for k in ("images_per_s", "epoch_ms", "test_acc")},
            "first_step_ms": number(row, "metrics", "first_step_ms"),
            "step_ms": number(row, "metrics", "step_ms", "median"),
            "step_iqr_ms": number(row, "metrics", "step_ms", "iqr"),
            "steps": number(row, "metrics", "step_ms", "n"),
            "extrapolated": get(row, "metrics", "extrapolated"),
            "speedup": number(row, "metrics", "speedup", "ratio"),
            **interval_of(get(row, "metrics", "speedup", "interval")),
            "baseline": get(row, "metrics", "speedup", "baseline_label"),
            "mfu": number(row, "metrics", "mfu"),
            "roofline": number(row, "metrics", "roofline", "fraction"),
            "note": join_notes(machine, busy_note(row), noise_note(row)),
        }
        for row, machine in zip(rows, machine_notes(rows), strict=True)
    ]
    records.sort(key=_by_group)
    return make_table(
        "q2", "q2", "Training speed by device and variant",
        "dataset model opt image_size batch_size label images_per_s step_ms step_iqr_ms steps "
        "epoch_ms extrapolated test_acc speedup speedup_low speedup_high baseline mfu roofline "
        "note", records,
        "An extrapolated epoch follows from a sample of steps: no whole epoch was run, and so "
        "there is no accuracy. Speed-up: geometric mean over interleaved blocks of steps, with its "
        "Student's interval. MFU: share of the device's own peak, the faster of a matrix "
        "product and a convolution in the same precision, measured beside it. Roofline: share of "
        "what that peak and the bandwidth of a copy allow, layer by layer.",
        devices_note(rows), missing=not rows,
    )  # fmt: skip


PHASES = ("data", "copy", "forward", "backward", "optimizer")


def q2_phases_table(rows: Sequence[Row]) -> Table:
    """Where a training step's time goes, and what else it costs."""
    records = [
        {
            **{k: get(row, "config", k) for k in ("dataset", "model", "opt")},
            **{k: number(row, "config", k) for k in ("image_size", "batch_size")},
            "label": get(row, "metrics", "label"),
            **{f"{k}_ms": number(row, "metrics", "phase_ms", k) for k in PHASES},
            **{k: number(row, "metrics", k)
               for k in ("first_step_ms", "compile_ms", "peak_memory_bytes", "energy_per_image_j")},
        }
        for row in rows
    ]  # fmt: skip
    records.sort(key=_by_group)
    return make_table(
        "q2", "q2_phases", "Where a training step's time goes",
        "dataset model opt image_size batch_size label data_ms copy_ms forward_ms backward_ms "
        "optimizer_ms first_step_ms compile_ms peak_memory_bytes energy_per_image_j", records,
        "Phases are medians of steps of their own, in which the device is waited for after each. "
        "A CPU's peak memory is the whole process's, where it measured one variant alone. Energy "
        "is empty where no counter can be read.",
        missing=not rows,
    )  # fmt: skip


def _by_group(record: Row) -> list[Any]:
    names = [str(record[k]) for k in ("dataset", "model", "opt")]
    return [*names, record["image_size"] or 0, record["batch_size"] or 0]


def interval_of(pair: Any) -> Row:
    """A speed-up's interval as a row of the log holds it."""
    low, high = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
    return {"speedup_low": low, "speedup_high": high}


def q2_published_table(rows: Sequence[Row], published: Sequence[Row]) -> Table:
    """The study's own speeds, on its machines, and what the same work took here: a whole epoch
    where one was run, else the plain variant of the device."""
    records = []
    for figure in published:
        work = {k: figure[k] for k in ("dataset", "model", "opt", "image_size", "batch_size")}
        cpu, gpu = sides([row for row in rows if work.items() <= row["config"].items()])
        mine = gpu if figure["device"] == "gpu" else cpu
        tested = [row for row in mine if number(row, "metrics", "test_acc") is not None]
        row = representative(tested or mine)
        record = {**work, "device": figure["device"], "epochs": figure["epochs"],
                  "published_test_acc": figure["test_acc"],
                  "published_epoch_ms": figure["train_ms"],
                  "published_speedup": figure["speedup"]}  # fmt: skip
        if row:
            record |= {k: number(row, "metrics", k) for k in ("test_acc", "epoch_ms")}
            record |= {k: get(row, "metrics", k) for k in ("extrapolated", "label")}
            if not tested:
                record["note"] = "no whole epoch was run: hw_bench.py --full-epoch does"
        elif figure["device"] == "gpu":
            record["note"] = unmeasured_note(COMMAND, "needs a GPU")
        else:
            record["note"] = unmeasured_note(COMMANDS["q2"])
        records.append(record)
    return make_table(
        "q2", "q2_published", "The study's epochs, on its own machines, beside ours",
        "dataset model opt image_size batch_size device epochs published_test_acc test_acc "
        "published_epoch_ms epoch_ms extrapolated published_speedup label note", records,
    )  # fmt: skip


def flops_table(rows: Sequence[Row], published: Sequence[Row]) -> Table:
    """Cost in each convention, with the published figure beside each."""
    figures = {(row["model"], row["image_size"]): 1e9 * row["gmacs"] for row in published}
    waiting = dict(figures)
    totals = ("macs", "flops", "params", "activations", "weight_bytes", "train_step_flops")
    records = []
    for row in rows:
        shape = get(row, "config", "model"), get(row, "config", "image_size")
        record = {"model": shape[0], "image_size": shape[1]}
        record |= {name: number(row, "metrics", name) for name in totals}
        record["convention"] = get(row, "metrics", "convention")
        if shape in figures and get(row, "config", "classes") == 10:
            waiting.pop(shape, None)
            record["published_macs"] = figures[shape]
            if record["macs"] is not None:
                record["macs_difference"] = record["macs"] - figures[shape]
        records.append(record)
    for (model, size), macs in waiting.items():
        absent = {"model": model, "image_size": size, "published_macs": macs}
        records.append(absent | {"note": unmeasured_note(COMMANDS["flops"])})
    records.sort(key=lambda record: (str(record["model"]), record["image_size"] or 0))
    return make_table(
        "flops", "flops", "One image forward, and its training step",
        "model image_size convention macs flops published_macs macs_difference params activations "
        "weight_bytes train_step_flops note", records,
        "The study's figures are MACs in the convention of thop, though it calls them FLOPs, of "
        "which a MAC is two.",
        missing=not rows,
    )  # fmt: skip


def infer_table(rows: Sequence[Row]) -> Table:
    """Latency and throughput of each engine, beside the accuracy of what ran."""
    records = [
        {
            **{k: get(row, "metrics", k) for k in ("dataset", "model", "engine", "scenario")},
            **{k: number(row, "metrics", k) for k in ("batch_size", "images_per_s", "test_acc")},
            **{f"{k}_ms": number(row, "metrics", "latency_ms", k) for k in ("p50", "p90", "p99")},
            "queries": number(row, "metrics", "latency_ms", "n"),
            "flips": number(row, "metrics", "flips"),
            "acc_delta": number(row, "metrics", "parity", "acc_delta"),
            "mcnemar_p": number(row, "metrics", "parity", "mcnemar_p"),
            "cold_start_ms": number(row, "metrics", "cold_start_ms"),
            # Rows that do not name their peak were put beside a matrix product's alone.
            "mfu": number(row, "metrics", "mfu")
            if get(row, "metrics", "peak_flops_per_s")
            else None,
            "speedup": number(row, "metrics", "speedup_vs_eager"),
            **interval_of(get(row, "metrics", "speedup_interval")),
            "baseline": "eager" if number(row, "metrics", "speedup_vs_eager") else None,
            "train_run_id": get(row, "config", "train_run_id"),
            "threads": number(row, "config", "threads"),
            "note": join_notes(machine, busy_note(row), noise_note(row), _quick_note(row)),
        }
        for row, machine in zip(rows, machine_notes(rows), strict=True)
    ]
    names = ("dataset", "model", "scenario")
    records.sort(key=lambda record: (*(str(record[k]) for k in names), record["batch_size"] or 0))
    return make_table(
        "infer", "infer", "Exported models by engine",
        "dataset model scenario batch_size threads engine p50_ms p90_ms p99_ms queries "
        "images_per_s mfu test_acc acc_delta mcnemar_p flips speedup speedup_low speedup_high "
        "baseline cold_start_ms train_run_id note", records,
        "Flips: test images whose predicted class differs from that of the eager network in fp32; "
        "p: McNemar's exact test of the two accuracies. MFU: share of the "
        "machine's own peak, the faster of a matrix product and a convolution in the engine's "
        "precision (int8: a product) on as many threads. Speed-up: of the median latency, "
        "geometric mean over interleaved rounds, with Student's interval over launches.",
        devices_note(rows), missing=not rows,
    )  # fmt: skip


def _quick_note(row: Row) -> str:
    return "quick: a fifth of the queries, one launch" if get(row, "metrics", "quick") else ""


def export_table(rows: Sequence[Row]) -> Table:
    """Every exported file with what its predictions differ in."""
    records = [
        {
            **{k: get(row, "config", k) for k in ("dataset", "model")},
            **{k: get(row, "metrics", k) for k in ("format", "file", "train_run_id", "sha256")},
            "size_bytes": number(row, "metrics", "size_bytes"),
            "parity_images": number(row, "metrics", "parity", "images"),
            **{
                k: number(row, "metrics", "parity", k)
                for k in ("flips", "max_abs_logit", "acc_delta")
            },
        }
        for row in rows
    ]
    return make_table(
        "export", "export", "Exported files and their parity with the trained network",
        "dataset model format file size_bytes parity_images flips max_abs_logit acc_delta "
        "train_run_id sha256", records, missing=not rows,
    )  # fmt: skip


def failed_table(rows: Sequence[Row]) -> Table:
    """Every row that is not ok, with its error."""
    done = {(row["kind"], row["run_id"]) for row in rows if row["status"] == "ok"}
    records = [
        {
            **{k: row[k] for k in ("kind", "run_id", "status", "error", "time_utc")},
            "config": _short_config(row["config"]),
            "retried": "done" if (row["kind"], row["run_id"]) in done else None,
        }
        for row in rows
        if row["status"] != "ok"
    ]
    return make_table(
        "failed", "failed", "Not finished", "kind run_id status config error time_utc retried",
        records, "" if records else "None.",
    )  # fmt: skip


def _short_config(config: Row) -> str:
    names = ("dataset", "model", "kernel", "opt", "lr", "epochs", "engine", "scenario", "seed")
    return ", ".join(f"{k} {plain(config[k])}" for k in names if k in config)


def environment_table(rows: Sequence[Row]) -> Table:
    """Every machine and library version in the log, with the rows it stands behind."""
    found: Counter[tuple[str, str]] = Counter()
    loads = []
    for row in rows:
        env = row["env"] if isinstance(row["env"], dict) else {}
        found.update((k, str(v)) for k, v in env.items() if k != "load_average")
        if isinstance(env.get("load_average"), list) and env["load_average"]:
            loads.append(env["load_average"][0])
    records = [{"property": k, "value": v, "rows": n} for (k, v), n in found.items()]
    records.sort(key=lambda record: (record["property"], -record["rows"], record["value"]))
    if loads:
        spread = f"{min(loads):.2f} to {max(loads):.2f}, median {statistics.median(loads):.2f}"
        records.append({"property": "load average, 1 min", "value": spread, "rows": len(loads)})
    return make_table("env", "environment", "Machines and versions", "property value rows", records)
