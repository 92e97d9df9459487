"""Key findings and recommendations: what the sentences of findings.j2 are made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2

from common.base.machine import machine_of, timed_on
from common.judge import compare
from common.judge.claims import Result, claims_tables, judge_claims
from common.judge.published import published_table, results_table
from common.judge.rows import (
    Row,
    busy_note,
    display,
    division,
    get,
    grouped,
    join_notes,
    latest_ok,
    noise_note,
    number,
)
from common.judge.tables import Table, make_table
from common.judge.times import speedup_interval
from common.judge.verdicts import SEEDS, VERDICTS, dependence_text, leads

NEAR = 0.005  # of validation accuracy: what a user may give for a cheaper training
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    undefined=jinja2.StrictUndefined,
    autoescape=False,  # plain text: every form of the report escapes what it shows
)


def judged_tables(rows: Sequence[Row], load: compare.Load) -> list[Table]:
    """Every table of the sections findings, claims and statistics.

    `load` returns a row's predictions, or the reason why there are none.
    """
    evidence = compare.collect(rows, load)
    train, svm = latest_ok(rows, "train"), latest_ok(rows, "svm")
    results = judge_claims(evidence)
    contrasts, ties = compare.contrast_records(evidence), compare.tie_records(evidence)
    return [
        results_table(train, svm),
        *findings_tables(results, contrasts, ties, rows),
        *claims_tables(results),
        *compare.comparison_tables(evidence, contrasts, ties, train),
        published_table(train, svm),
    ]


def findings_tables(
    results: Sequence[Result], contrasts: Sequence[Row], ties: Sequence[Row], rows: Sequence[Row]
) -> list[Table]:
    """Both tables, from the claims, the records of the tables of contrasts and of ties, and the
    log's rows of speeds."""
    contests = contest_records(ties)
    speedups = [part for result in results if result.claim.number == 8 for part in result.parts]
    faster = [p for p in speedups if p.interval and p.interval[0] > 1]
    recommended = [
        *sentences("recommended", contests, NEAR),
        *sentences("preferences", list(preferences(contrasts))),
        *sentences("devices", [p for p in faster if "over ResNet" not in p.subject]),
        *sentences("variants", list(best_variants(latest_ok(rows, "hw_train")))),
        *sentences("engines", list(best_engines(latest_ok(rows, "hw_infer")))),
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


def verdict_lines(results: Sequence[Result]) -> list[str]:
    """The claims in words, a line for each verdict that there is."""
    claims = grouped(results, lambda result: result.verdict)
    return [
        f"{verdict}: " + "; ".join(f"({r.claim.number}) {r.claim.text}" for r in claims[verdict])
        for verdict in VERDICTS
        if verdict in claims
    ]


# --- configurations -------------------------------------------------------------------------------


def contest_records(ties: Sequence[Row]) -> list[Row]:
    """The records of the table of ties, by split of the images: the chosen one, its rivals, and of
    those tied with it, and near it in validation accuracy, the cheapest."""
    contests = []
    for chosen, *rivals in grouped(ties, lambda r: division(r["group"].config)).values():
        least = chosen["val_acc"] - NEAR
        near = [r for r in rivals if r["val_acc"] is not None and r["val_acc"] >= least]
        tied = [r for r in rivals if r["tied"] is True]
        contests.append(
            {
                "name": display(str(chosen["dataset"])),
                "chosen": chosen,
                "rivals": rivals,
                "tied": tied,
                "open": [r["tied"] for r in rivals].count(None),
                "images": len(chosen["group"].rows[0]["right"]),
                "cheapest_tied": cheapest(chosen, tied),
                "cheapest_near": cheapest(chosen, near),
            }
        )
    return contests


def cheapest(chosen: Row, rivals: Sequence[Row]) -> Row | None:
    """Of rivals on the chosen one's machine that of least cost, in words beside the chosen one's
    own; None where there is none to compare."""
    here = timed_on(chosen["group"].rows[0]["env"])
    alike = [rival for rival in rivals if timed_on(rival["group"].rows[0]["env"]) == here]
    costs = [(*cost, i) for i, rival in enumerate(alike) if (cost := training_cost(rival))]
    own = training_cost(chosen)
    if own is None or not costs:
        return None
    cost, text, i = min(costs)
    return alike[i] | {"ratio": own[0] / cost, "cost": text, "own": own[1]}


def training_cost(record: Row) -> tuple[float, str] | None:
    """What a configuration's training took and in words: on a CPU seconds of its cores, so that
    runs of unlike threads can be compared."""
    row = record["group"].rows[0]
    ms, threads = number(row, "metrics", "train_ms"), number(row, "env", "threads")
    if not ms:
        return None
    if not threads or get(row, "env", "device") != get(row, "env", "cpu"):
        return ms / 1e3, join_notes(f"{ms / 1e3:,.1f} s", busy_note(row))
    cost, plural = ms / 1e3 * threads, "s" if threads > 1 else ""
    text = f"{cost:,.1f} core-seconds ({threads:g} thread{plural})"
    return cost, join_notes(text, busy_note(row))


def preferences(contrasts: Sequence[Row]) -> Iterator[Row]:
    """The contrasts that tell two levels apart, after Holm and by what counts, on enough seeds, the
    better one first; and those of which something else decides which is better."""
    for record in contrasts:
        if "apart" not in record or "p" not in record or record["seeds"] < SEEDS:
            continue
        depends = [dependence_text(apart) for apart in record["apart"] if apart[-1]]
        (better, worse), effect = (
            record["sides"],
            [record[k] for k in ("difference", "low", "high")],
        )
        ahead = leads(tuple(effect[1:]))
        if ahead < 0 and not depends:
            better, worse = worse, better
            effect = [-effect[0], -effect[2], -effect[1]]
        if depends or (ahead and not record["apart"] and record["p_holm"] <= compare.ALPHA):
            names = {"name": display(str(record["dataset"])), "better": better, "worse": worse}
            yield record | names | {"depends": depends, "effect": effect}


# --- speeds ---------------------------------------------------------------------------------------


def best_variants(rows: Sequence[Row]) -> Iterator[Row]:
    """The fastest way to train each network, where its lead over the first one is beyond noise."""

    def work(row: Row) -> tuple[Any, ...]:
        names = ("model", "opt", "image_size", "batch_size")
        return machine_of(row["env"]), *map(row["config"].get, names)

    def baseline(row: Row) -> Any:
        return get(row, "metrics", "speedup", "baseline")

    return fastest(rows, work, baseline, "label")


def best_engines(rows: Sequence[Row]) -> Iterator[Row]:
    """The fastest engine for single images and for batches of each exported network, where its lead
    over eager is beyond noise; each lost no more accuracy than its gate allows."""

    def work(row: Row) -> tuple[Any, ...]:
        names = ("dataset", "model", "scenario")
        run = row["config"].get("train_run_id")
        return timed_on(row["env"]), run, *map(row["metrics"].get, names)

    def baseline(row: Row) -> tuple[Any, ...]:
        """What two engines must share for both speed-ups to be over the same eager."""
        paths = (("metrics", "batch_size"), ("config", "threads"), ("env", "threads"))
        return tuple(get(row, *path) for path in paths)

    return fastest([r for r in rows if not get(r, "metrics", "quick")], work, baseline, "engine")


def fastest(
    rows: Sequence[Row], work: Callable[[Row], Any], baseline: Callable[[Row], Any], name: str
) -> Iterator[Row]:
    """Of each work the fastest row whose lead over the first one is beyond noise, and the names of
    those whose speed-up over the same first one reaches into its interval."""

    def interval(row: Row) -> tuple[float, float]:
        return speedup_interval(row) or (0.0, 0.0)

    def rate(row: Row) -> float:
        return number(row, "metrics", "images_per_s") or 0.0

    for group in grouped(rows, work).values():
        if not (sure := [row for row in group if interval(row)[0] > 1]):
            continue
        best = max(sure, key=rate)
        rivals = [r for r in group if baseline(r) == baseline(best)]
        near = [r["metrics"][name] for r in rivals if interval(r)[1] >= interval(best)[0]]
        yield (
            best["config"]
            | best["metrics"]
            | {
                "name": display(str(get(best, "metrics", "dataset"))),
                "device_name": get(best, "env", "device"),
                "images_per_s": rate(best),
                "interval": interval(best),
                "near": [n for n in dict.fromkeys(near) if n != best["metrics"][name]],
                "engines": len({r["metrics"][name] for r in group}),
                "noise_note": noise_note(best),
            }
        )
