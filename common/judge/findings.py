"""Key findings and recommendations: what the sentences of findings.j2 are made of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2

from common.base.machine import machine_of, timed_on
from common.judge import claims, compare, rows
from common.judge.published import published_table, results_table
from common.judge.rows import Row, get, grouped, join_notes, number
from common.judge.tables import Table, make_table
from common.judge.times import speedup_interval
from common.judge.verdicts import SEEDS, VERDICTS, leads

NEAR = 0.005  # of validation accuracy: what a user may give for a cheaper training
# Of speeds what is told apart, on what and in what it must be alike to be compared, and what two
# must share for both speed-ups to be over the same first one.
SPEEDS = {
    "hw_train": (
        "label",
        machine_of,
        "config.model config.opt config.image_size config.batch_size",
        "metrics.speedup.baseline",
    ),
    "hw_infer": (
        "engine",
        timed_on,
        "config.train_run_id metrics.dataset metrics.model metrics.scenario",
        "metrics.batch_size config.threads env.threads",
    ),
}
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    undefined=jinja2.StrictUndefined,
    autoescape=False,  # plain text: every form of the report escapes what it shows
)


def judged_tables(log: Sequence[Row], load: compare.Load) -> list[Table]:
    """Every table of the sections findings, claims and statistics.

    `load` returns a row's predictions, or the reason why there are none.
    """
    evidence = compare.collect(log, load)
    train, svm = rows.latest_ok(log, "train"), rows.latest_ok(log, "svm")
    results = claims.judge_claims(evidence)
    contrasts, ties = compare.contrast_records(evidence), compare.tie_records(evidence)
    return [
        results_table(train, svm),
        *findings_tables(results, contrasts, ties, log),
        *claims.claims_tables(results),
        *compare.comparison_tables(evidence, contrasts, ties, train),
        published_table(train, svm),
    ]


def findings_tables(
    results: Sequence[claims.Claim],
    contrasts: Sequence[Row],
    ties: Sequence[Row],
    log: Sequence[Row],
) -> list[Table]:
    """Both tables, from the claims, the records of the tables of contrasts and of ties, and the
    log's rows of speeds."""
    contests = contest_records(ties)
    speedups = [part for result in results if result.number == 8 for part in result.parts]
    faster = [p for p in speedups if p.interval and p.interval[0] > 1]
    recommended = [
        *sentences("recommended", contests, NEAR),
        *sentences("preferences", list(preferences(contrasts))),
        *sentences("devices", [p for p in faster if "over ResNet" not in p.subject]),
        *sentences("variants", list(fastest(log, "hw_train"))),
        *sentences("engines", list(fastest(log, "hw_infer"))),
    ]
    findings = [*sentences("claims", results, VERDICTS), *sentences("chosen", contests)]
    return [
        make_table("findings", [{"finding": line} for line in findings]),
        make_table("recommendations", [{"recommendation": line} for line in recommended]),
    ]


def sentences(macro: str, *values: Any) -> list[str]:
    """What a macro of findings.j2 makes of some values, a line for each paragraph."""
    text = getattr(TEMPLATES.get_template("findings.j2").module, macro)(*values)
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]


def verdict_lines(results: Sequence[claims.Claim]) -> list[str]:
    """The claims in words, a line for each verdict that there is."""
    same = grouped(results, lambda result: result.verdict)
    return [
        f"{verdict}: " + "; ".join(f"({r.number}) {r.text}" for r in same[verdict])
        for verdict in VERDICTS
        if verdict in same
    ]


def contest_records(ties: Sequence[Row]) -> list[Row]:
    """The records of the table of ties, by split of the images: the chosen one, its rivals, and of
    those tied with it, and near it in validation accuracy, the cheapest."""
    contests = []
    for chosen, *rivals in grouped(ties, lambda r: rows.division(r["group"].config)).values():
        least = chosen["val_acc"] - NEAR
        near = [r for r in rivals if r["val_acc"] is not None and r["val_acc"] >= least]
        tied = [r for r in rivals if r["tied"] is True]
        record = {"chosen": chosen, "rivals": rivals, "tied": tied}
        record |= {"cheapest_tied": cheapest(chosen, tied), "cheapest_near": cheapest(chosen, near)}
        record["open"] = [r["tied"] for r in rivals].count(None)
        record["images"] = len(chosen["group"].rows[0]["right"])
        contests.append(record | {"name": rows.display(str(chosen["dataset"]))})
    return contests


def cheapest(chosen: Row, rivals: Sequence[Row]) -> Row | None:
    """Of rivals on the chosen one's machine that of least cost, in words beside the chosen one's
    own: seconds of training, on a CPU of its cores, so that runs of unlike threads can be compared.
    None where there is none to compare."""

    def cost(record: Row) -> tuple[float, str] | None:
        row = record["group"].rows[0]
        ms, threads = number(row, "metrics", "train_ms"), number(row, "env", "threads")
        if not ms:
            return None
        if not threads or get(row, "env", "device") != get(row, "env", "cpu"):
            return ms / 1e3, join_notes(f"{ms / 1e3:,.1f} s", rows.busy_note(row))
        seconds, plural = ms / 1e3 * threads, "s" if threads > 1 else ""
        text = f"{seconds:,.1f} core-seconds ({threads:g} thread{plural})"
        return seconds, join_notes(text, rows.busy_note(row))

    here = timed_on(chosen["group"].rows[0]["env"])
    alike = [rival for rival in rivals if timed_on(rival["group"].rows[0]["env"]) == here]
    costs = [(*known, i) for i, rival in enumerate(alike) if (known := cost(rival))]
    if (own := cost(chosen)) is None or not costs:
        return None
    least, text, i = min(costs)
    return alike[i] | {"ratio": own[0] / least, "cost": text, "own": own[1]}


def preferences(contrasts: Sequence[Row]) -> Iterator[Row]:
    """The contrasts that tell two levels apart, after Holm and by what counts, on enough seeds, the
    better one first; and those of which something else decides which is better."""
    for record in contrasts:
        if "apart" not in record or "p" not in record or record["seeds"] < SEEDS:
            continue
        depends = [text for text, surely in record["apart"].items() if surely]
        better, worse = record["sides"]
        effect = value, low, high = [record[k] for k in ("difference", "low", "high")]
        ahead = leads((low, high))
        if ahead < 0 and not depends:
            better, worse, effect = worse, better, [-value, -high, -low]
        if depends or (ahead and not record["apart"] and record["p_holm"] <= compare.ALPHA):
            names = {"name": rows.display(str(record["dataset"])), "better": better, "worse": worse}
            yield record | names | {"depends": depends, "effect": effect}


def fastest(log: Sequence[Row], kind: str) -> Iterator[Row]:
    """The fastest way to train each network, or engine for single images and for batches of each
    exported network, where its lead over the first one is beyond noise; and the names of those
    whose speed-up over the same first one reaches into its interval."""
    name, machine, work, first = SPEEDS[kind]

    def values(row: Row, paths: str) -> tuple[Any, ...]:
        return tuple(get(row, *path.split(".")) for path in paths.split())

    whole = [row for row in rows.latest_ok(log, kind) if not get(row, "metrics", "quick")]
    for group in grouped(whole, lambda row: (machine(row["env"]), *values(row, work))).values():
        measured = [
            row["config"]
            | row["metrics"]
            | {
                "name": rows.display(str(get(row, "metrics", "dataset"))),
                "device_name": get(row, "env", "device"),
                "images_per_s": number(row, "metrics", "images_per_s") or 0.0,
                "interval": speedup_interval(row) or (0.0, 0.0),
                "first": values(row, first),
                "noise_note": rows.noise_note(row),
            }
            for row in group
        ]
        if sure := [row for row in measured if row["interval"][0] > 1]:
            best = max(sure, key=lambda row: row["images_per_s"])
            alike = [row for row in measured if row["first"] == best["first"]]
            near = [r[name] for r in alike if r["interval"][1] >= best["interval"][0]]
            near = [other for other in dict.fromkeys(near) if other != best[name]]
            yield best | {"near": near, "engines": len({row[name] for row in measured})}
