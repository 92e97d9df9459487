"""What the report concludes: the records that the sentences of findings.j2 are made of."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2

from common.base.machine import machine_of, timed_on
from common.judge import claims, compare, published, rows
from common.judge.rows import Group, Row, get, grouped, number
from common.judge.tables import Table, make_table
from common.judge.times import speedup_interval
from common.judge.verdicts import SEEDS, VERDICTS, leads

Claims = Sequence[claims.Claim]
Rows = Sequence[Row]

NEAR = 0.005  # of validation accuracy: what a user may give for a cheaper training
MOST_READ = 2  # sentences on speed in a section
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
TEMPLATES.globals["spell"] = rows.spell


def judged_tables(log: Rows, load: compare.Load) -> list[Table]:
    """Every table that concludes something, the sentences of the report first."""
    evidence = compare.collect(log, load)
    train, svm = rows.latest_ok(log, "train"), rows.latest_ok(log, "svm")
    results = claims.judge_claims(evidence)
    contrasts, ties = compare.contrast_records(evidence), compare.tie_records(evidence)
    speeds = {kind: list(fastest(log, kind)) for kind in SPEEDS}
    contests = contest_records(ties)
    answers = answer_records([*train, *svm], contests)
    lines = {
        "answer": sentences("answers", answers),
        "claims": sentences("claims", results),
        "missing": sentences("missing", needs_of(results)),
        "q1a": sentences("cheaper", contests, NEAR),
        "statistics": sentences("preferences", *preferences(contrasts)),
        "q2": sentences("variants", speeds["hw_train"][:MOST_READ]),
        "infer": sentences("engines", speeds["hw_infer"][:MOST_READ]),
    }
    said = [{"section": key, "finding": line} for key, own in lines.items() for line in own]
    return [
        make_table("findings", said),
        make_table("answers", answers),
        published.results_table(train, svm),
        *claims.claims_tables(results),
        *compare.comparison_tables(evidence, contrasts, ties, train),
        published.published_table(train, svm),
        make_table("fastest_training", speeds["hw_train"]),
        make_table("fastest_inference", speeds["hw_infer"]),
    ]


def sentences(macro: str, *values: Any) -> list[str]:
    """What a macro of findings.j2 makes of values, a line for each paragraph."""
    text = getattr(TEMPLATES.get_template("findings.j2").module, macro)(*values)
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]


def by_verdict(results: Claims) -> dict[str, list[claims.Claim]]:
    known = grouped(results, lambda result: result.verdict)
    return {verdict: known[verdict] for verdict in VERDICTS if verdict in known}


def needs_of(results: Claims) -> dict[str, list[str]]:
    """What would decide claims, or open parts of them: the claims of each need."""
    needs: dict[str, list[str]] = {}
    for result in results:
        for need, parts in grouped(result.parts, lambda part: part.needs).items():
            some = " in part" if len(parts) < len(result.parts) else ""
            needs.setdefault(need, []).append(f"{result.number}{some}")
    return {need: names for need, names in needs.items() if need}


def answer_records(runs: Rows, contests: Rows) -> list[Row]:
    """Of each data set and split what validation chooses, and the cheapest that may be as good."""
    order, records = rows.datasets_of(runs), []
    tied = {contest["chosen"]["run_id"]: contest["cheapest_tied"] for contest in contests}
    for same in grouped(runs, lambda row: rows.division(row["config"])).values():
        if group := rows.best_of(rows.configurations(same)):
            record = rows.choice_record(group) | {"dataset": group.config["dataset"]}
            record |= {"where": rows.split_name(group.config), "cheaper": None}
            best = tied.get(record["run_id"])
            if best and best["ratio"] > 1:
                record |= {"cheaper": best["setting"], "times_cheaper": best["ratio"]}
                record["rival"] = [best[k] for k in ("difference", "low", "high")]
            if figure := published.best_published(group):
                record |= published.difference_record(group, figure)
                record["published_test_acc"] = figure["test_acc"]
            records.append(record)
    return sorted(records, key=lambda record: order.index(record["dataset"]))


def contest_records(ties: Rows) -> list[Row]:
    """By split the chosen network, its rivals, and the cheapest tied with or near it."""
    contests = []
    for same in grouped(ties, lambda record: rows.division(record["group"].config)).values():
        chosen, *rivals = [record | cost_record(record["group"]) for record in same]
        tied = [r for r in rivals if r["tied"] is True]
        # No advice rests on Holm's adjustment alone.
        equal = [r for r in tied if not leads((r["low"], r["high"]))]
        near = [r for r in rivals if (r["val_acc"] or 0.0) >= chosen["val_acc"] - NEAR]
        contest = {"name": rows.split_name(chosen["group"].config), "chosen": chosen}
        contest |= {"n": len(rivals), "tied": len(tied)}
        contest |= {"open": [r["tied"] for r in rivals].count(None)}
        contest["cheapest_tied"] = cheapest(chosen, equal)
        contests.append(contest | {"cheapest_near": cheapest(chosen, near)})
    return contests


def cost_record(group: Group) -> Row:
    """A configuration in words, and its training's time on all threads of a CPU; 0: not known."""
    row, time_ms = group.first(), group.cost_ms() or 0.0
    on_cpu = get(row, "env", "device") == get(row, "env", "cpu")
    threads = number(row, "env", "threads") if on_cpu else None
    record = {"threads": threads, "thread_ms": time_ms * (threads or 1)}
    return rows.choice_record(group) | record | {"machine": timed_on(row["env"])}


def cheapest(chosen: Row, rivals: Rows) -> Row | None:
    """The rival of least cost on the chosen one's machine, and how many times cheaper it is."""
    alike = [r for r in rivals if r["machine"] == chosen["machine"] and r["thread_ms"]]
    best = min(alike, key=lambda rival: rival["thread_ms"], default=None)
    return best and best | {"ratio": chosen["thread_ms"] / best["thread_ms"]}


def preferences(contrasts: Rows) -> tuple[list[Row], list[Row]]:
    """Contrasts that tell two levels apart, or surely depend on another factor; and the others."""
    told, open = [], []
    for record in (r for r in contrasts if "apart" in r and "p" in r):
        depends = [text for text, surely in record["apart"].items() if surely]
        sides = better, worse = record["sides"]
        effect = value, low, high = [record[k] for k in ("difference", "low", "high")]
        ahead, enough = leads((low, high)), record["seeds"] >= SEEDS
        if ahead < 0 and not depends:
            better, worse, effect = worse, better, [-value, -high, -low]
        sure = ahead and not record["apart"] and record["p_holm"] <= compare.ALPHA
        why = "there are too few seeds to say which is better"
        if enough:  # what may depend on something has a sentence of its own
            why = "" if record["apart"] else "no difference above 0.1 points is significant"
        name, choice = rows.display(str(record["dataset"])), " or ".join(sides)
        record = record | {"name": name, "choice": choice, "depends": depends, "why": why}
        record |= {"first": sides[0], "better": better, "worse": worse, "effect": effect}
        (told if enough and (depends or sure) else open).append(record)
    return told, open


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
        more = {"near": "; ".join([*names][1:]) or None, "note": rows.noise_note(best) or None}
        more |= zip(("speedup_low", "speedup_high"), best["interval"], strict=True)
        more["device_name"] = get(best, "env", "device")
        more["p50_ms"] = get(best, "metrics", "latency_ms", "p50")
        ratio, over = (get(best, "metrics", "speedup", k) for k in ("ratio", "baseline_label"))
        more["speedup"] = ratio or get(best, "metrics", "speedup_vs_eager")
        more["over"] = over or ("eager" if kind == "hw_infer" else "the first")
        yield best["config"] | best["metrics"] | more
