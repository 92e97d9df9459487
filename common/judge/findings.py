"""Key findings and recommendations: what the sentences of findings.j2 are made of."""

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

Claims = Sequence[claims.Claim]
Rows = Sequence[Row]

NEAR = 0.005  # of validation accuracy: what a user may give for a cheaper training
# Of speeds what is told apart; in what, beside the machine, they must be alike to be compared; and
# what two must share for both speed-ups to be over the same first one.
SPEEDS = {
    "hw_train": (
        "label",
        "config.model config.opt config.image_size config.batch_size",
        "metrics.speedup.baseline",
    ),
    "hw_infer": (
        "engine",
        "env.device config.train_run_id metrics.dataset metrics.model metrics.scenario",
        "metrics.batch_size config.threads env.threads",
    ),
}
LOADER = jinja2.FileSystemLoader(Path(__file__).parent)
# Plain text: every form of the report escapes what it shows.
TEMPLATES = jinja2.Environment(loader=LOADER, undefined=jinja2.StrictUndefined, autoescape=False)


def judged_tables(log: Rows, load: compare.Load) -> list[Table]:
    """Every table of the sections findings, claims and statistics."""
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


def findings_tables(results: Claims, contrasts: Rows, ties: Rows, log: Rows) -> list[Table]:
    """The findings and the recommendations; of the log the speeds."""
    contests = contest_records(ties)
    speedups = [p for r in results if claims.ENTRIES[r.text][1] is claims.speedups for p in r.parts]
    faster = [p for p in speedups if p.interval and p.interval[0] > 1]
    findings = [*sentences("claims", results, VERDICTS), *sentences("chosen", contests)]
    recommended = [
        *sentences("recommended", contests, NEAR),
        *sentences("preferences", preferences(contrasts)),
        *sentences("devices", [p for p in faster if "over ResNet" not in p.subject]),
        *sentences("variants", fastest(log, "hw_train")),
        *sentences("engines", fastest(log, "hw_infer")),
    ]
    return [
        make_table("findings", [{"finding": line} for line in findings]),
        make_table("recommendations", [{"recommendation": line} for line in recommended]),
    ]


def sentences(macro: str, *values: Any) -> list[str]:
    """What a macro of findings.j2 makes of values, a line for each paragraph."""
    text = getattr(TEMPLATES.get_template("findings.j2").module, macro)(*values)
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]


def verdict_lines(results: Claims) -> list[str]:
    """The claims in words, a line for each verdict that there is."""
    lines: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
    for result in results:
        lines[result.verdict].append(f"({result.number}) {result.text}")
    return [f"{verdict}: {'; '.join(texts)}" for verdict, texts in lines.items() if texts]


def contest_records(ties: Rows) -> list[Row]:
    """By split of the images the chosen one, its rivals, and the cheapest tied with or near it."""
    contests = []
    for same in grouped(ties, lambda record: rows.division(record["group"].config)).values():
        chosen, *rivals = [record | cost_of(record) for record in same]
        tied = [r for r in rivals if r["tied"] is True]
        near = [r for r in rivals if (r["val_acc"] or 0.0) >= chosen["val_acc"] - NEAR]
        contest = {"name": rows.display(str(chosen["dataset"])), "chosen": chosen, "rivals": rivals}
        contest |= {"tied": tied, "cheapest_tied": cheapest(chosen, tied)}
        contest |= {"open": [r["tied"] for r in rivals].count(None)}
        contest |= {"cheapest_near": cheapest(chosen, near)}
        contests.append(contest | {"images": len(chosen["group"].rows[0]["right"])})
    return contests


def cost_of(record: Row) -> Row:
    """Seconds of training, 0 where not known; the same in words; the machine."""
    row = record["group"].rows[0]
    seconds, unit = (number(row, "metrics", "train_ms") or 0.0) / 1e3, "s"
    threads = number(row, "env", "threads")
    if threads and get(row, "env", "device") == get(row, "env", "cpu"):
        seconds *= threads  # so that runs of unlike threads can be compared
        unit = f"core-seconds ({threads:g} thread{'s' if threads > 1 else ''})"
    words = join_notes(f"{seconds:,.1f} {unit}", rows.busy_note(row))
    return {"seconds": seconds, "cost": words, "machine": timed_on(row["env"])}


def cheapest(chosen: Row, rivals: Rows) -> Row | None:
    """The rival of least cost on the chosen one's machine, and how many times cheaper it is."""
    alike = [r for r in rivals if r["machine"] == chosen["machine"] and r["seconds"]]
    best = min(alike, key=lambda rival: rival["seconds"], default=None)
    return best and best | {"ratio": chosen["seconds"] / best["seconds"]}


def preferences(contrasts: Rows) -> Iterator[Row]:
    """The contrasts that surely tell two levels apart, or of which something else decides."""
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


def fastest(log: Rows, kind: str) -> Iterator[Row]:
    """Of each work the fastest variant or engine that surely beats the first, and what is near."""
    name, work, first = SPEEDS[kind]

    def values(row: Row, paths: str) -> tuple[Any, ...]:
        return tuple(get(row, *path.split(".")) for path in paths.split())

    whole = [row for row in rows.latest_ok(log, kind) if not get(row, "metrics", "quick")]
    whole = [row | {"interval": speedup_interval(row) or (0.0, 0.0)} for row in whole]
    for group in grouped(whole, lambda r: (machine_of(r["env"]), values(r, work))).values():
        if not (sure := [row for row in group if row["interval"][0] > 1]):
            continue
        best = max(sure, key=lambda row: number(row, "metrics", "images_per_s") or 0.0)
        alike = [row for row in group if values(row, first) == values(best, first)]
        near = [r for r in alike if r["interval"][1] >= best["interval"][0]]
        names = dict.fromkeys(get(row, "metrics", name) for row in (best, *near))
        more = {"near": list(names)[1:], "noise_note": rows.noise_note(best)}
        more |= {"interval": best["interval"], "device_name": get(best, "env", "device")}
        more["name"] = rows.display(str(get(best, "metrics", "dataset")))
        more["engines"] = len({get(row, "metrics", name) for row in group})
        yield best["config"] | best["metrics"] | more
