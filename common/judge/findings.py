"""Key findings and recommendations: sentences made of verdicts and numbers, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from common.base.log import machine_of, timed_on
from common.judge.claims import Part, Result, claims_tables, judge_claims
from common.judge.compare import (
    ALPHA,
    Load,
    collect,
    comparison_tables,
    contrast_records,
    tie_records,
)
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
from common.judge.tables import Table, judged_table
from common.judge.times import speedup_interval
from common.judge.verdicts import SEEDS, VERDICTS, dependence_text, leads

NEAR = 0.005  # of validation accuracy: what a user may give for a cheaper training


def judged_tables(rows: Sequence[Row], load: Load) -> list[Table]:
    """Every table of the sections findings, claims and statistics.

    `load` returns a row's predictions, or the reason why there are none.
    """
    evidence = collect(rows, load)
    train, svm = latest_ok(rows, "train"), latest_ok(rows, "svm")
    results = judge_claims(evidence)
    contrasts, ties = contrast_records(evidence), tie_records(evidence)
    return [
        results_table(train, svm),
        *findings_tables(results, contrasts, ties, rows),
        *claims_tables(results),
        *comparison_tables(evidence, contrasts, ties, train),
        published_table(train, svm),
    ]


def findings_tables(
    results: Sequence[Result], contrasts: Sequence[Row], ties: Sequence[Row], rows: Sequence[Row]
) -> list[Table]:
    """Both tables, from the claims, the records of the tables of contrasts and of ties, and the
    log's rows of speeds."""
    contests = contests_of(ties)
    findings = [*claim_findings(results), *map(chosen_finding, contests)]
    recommended = [
        *(tell(contest) for contest in contests for tell in (recommend_chosen, recommend_cheapest)),
        *preferences(contrasts),
        *map(recommend_device, results),
        *recommend_variants(latest_ok(rows, "hw_train")),
        *recommend_engines(latest_ok(rows, "hw_infer")),
    ]
    return [
        judged_table("findings", [{"finding": line} for line in findings]),
        judged_table("recommendations", [{"recommendation": line} for line in recommended if line]),
    ]


def interval_text(effect: float, low: float, high: float, unit: str = "points") -> str:
    """An effect with its interval, in its unit."""
    if unit == "times":
        return f"{effect:.2f} times ({low:.2f} to {high:.2f})"
    return f"{100 * effect:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f})"


# --- claims ---------------------------------------------------------------------------------------


def claim_findings(results: Sequence[Result]) -> list[str]:
    """How many claims stand, and each that was decided with its numbers."""
    numbers = {v: [str(r.claim.number) for r in results if r.verdict == v] for v in VERDICTS}
    counts = [f"{len(n)} {v}" + (f" ({', '.join(n)})" if n else "") for v, n in numbers.items()]
    lines = [f"Of the study's {len(results)} claims: {', '.join(counts)}."]
    for result in results:
        if result.verdict != "undecided":
            deciding = [part_text(p) for p in result.parts if p.verdict == result.verdict]
            claim = f"{result.claim.text} (claim {result.claim.number}): {result.verdict}"
            lines.append(f"{claim}. {'; '.join(deciding)}.")
    return lines


def verdict_lines(results: Sequence[Result]) -> list[str]:
    """The claims in words, a line for each verdict that there is."""
    claims = {v: [r.claim for r in results if r.verdict == v] for v in VERDICTS}
    return [
        f"{verdict}: " + "; ".join(f"({claim.number}) {claim.text}" for claim in same)
        for verdict, same in claims.items()
        if same
    ]


def part_text(part: Part) -> str:
    """A measured part with its number."""
    text = f"{part.subject}: {interval_text(part.effect, *part.interval, part.unit)}"
    return f"{text}, {part.note}" if part.note else text


def recommend_device(result: Result) -> str | None:
    """Train on the accelerator, where it was measured to be faster than the CPU."""
    faster = [p for p in result.parts if p.interval and p.interval[0] > 1]
    faster = [part_text(p) for p in faster if "over ResNet" not in p.subject]
    if result.claim.number != 8 or not faster:
        return None
    return f"Train on the accelerator: {'; '.join(faster)} as fast as the CPU."


# --- configurations -------------------------------------------------------------------------------


def contests_of(ties: Sequence[Row]) -> list[list[Row]]:
    """The records of the table of ties, by split of the images; the chosen one is the first."""
    return list(grouped(ties, lambda record: division(record["group"].config)).values())


def chosen_finding(contest: Sequence[Row]) -> str:
    """What was chosen on validation, how accurate it is, and how many it cannot be told from."""
    chosen, *rivals = contest
    tied = [record["tied"] for record in rivals]
    counts = f"Rivals: {len(tied)}, statistically tied with it: {tied.count(True)}"
    counts += f", open for want of seeds: {tied.count(None)}" if None in tied else ""
    low, high = chosen["test_acc_low"], chosen["test_acc_high"]
    interval = "" if low is None else f"{100 * low:.2f} to {100 * high:.2f} on "
    images = len(chosen["group"].rows[0]["right"])
    return (
        f"{display(str(chosen['dataset']))}: chosen on validation, {chosen['setting']}, "
        f"{100 * chosen['test_acc']:.2f} % on test ({interval}{images:,} images, seeds: "
        f"{chosen['seeds']}). {counts if tied else 'Nothing else was measured on these images'}."
    )


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


def cheapest(
    chosen: Row, rivals: Sequence[Row]
) -> tuple[tuple[float, str], tuple[float, str], Row] | None:
    """The chosen one's cost, the least of rivals on the same machine, and whose it is; None where
    there is none to compare."""
    here = timed_on(chosen["group"].rows[0]["env"])
    alike = [rival for rival in rivals if timed_on(rival["group"].rows[0]["env"]) == here]
    costs = [(cost, i) for i, rival in enumerate(alike) if (cost := training_cost(rival))]
    own = training_cost(chosen)
    if own is None or not costs:
        return None
    cost, i = min(costs)
    return own, cost, alike[i]


def lead_text(record: Row) -> str:
    """By how much the chosen one leads another on the test images."""
    return interval_text(record["difference"], record["low"], record["high"])


def recommend_chosen(contest: Sequence[Row]) -> str | None:
    """The one chosen on validation, and the cheapest of those that the test images cannot tell from
    it: test images choose nothing here, the reader may."""
    chosen, *rivals = contest
    if not rivals:
        return None
    tied = [record for record in rivals if record["tied"] is True]
    line = f"{display(str(chosen['dataset']))}: {chosen['setting']}, chosen on validation."
    costs = cheapest(chosen, tied)
    if not costs or costs[1][0] >= costs[0][0]:
        return line
    (_, own), (_, less), best = costs
    return (
        f"{line} Cheapest of the {len(tied)} tied with it: {best['setting']}, {less} of training "
        f"in place of {own}; the chosen one minus it: {lead_text(best)}."
    )


def recommend_cheapest(contest: Sequence[Row]) -> str | None:
    """Of those whose validation accuracy is near the chosen one's the cheapest, if it costs at most
    half as much."""
    chosen, *rivals = contest
    least = chosen["val_acc"] - NEAR
    near = [r for r in rivals if r["val_acc"] is not None and r["val_acc"] >= least]
    costs = cheapest(chosen, near)
    if not costs or costs[1][0] > costs[0][0] / 2:
        return None
    (much, own), (little, less), best = costs
    return (
        f"{display(str(chosen['dataset']))}, where {100 * NEAR:g} points of validation accuracy "
        f"may be lost: {best['setting']}, {much / little:,.0f} times cheaper: {less} of training "
        f"in place of {own}; on test the chosen one minus it: {lead_text(best)}."
    )


def preferences(contrasts: Sequence[Row]) -> list[str]:
    """The levels that a contrast tells apart, after Holm and by what counts, on enough seeds; or
    what it depends on which of them is better."""
    lines = []
    for record in contrasts:
        if "apart" not in record or "p" not in record or record["seeds"] < SEEDS:
            continue
        effect = [record[k] for k in ("difference", "low", "high")]
        ahead, name = leads(tuple(effect[1:])), display(str(record["dataset"]))
        better, worse = record["sides"]
        if surely := [apart for apart in record["apart"] if apart[-1]]:
            levels = "; ".join(map(dependence_text, surely))
            lines.append(f"{name}: {better} or {worse}: which is better {levels}.")
        elif ahead and not record["apart"] and record["p_holm"] <= ALPHA:
            if ahead < 0:
                better, worse = worse, better
                effect = [-effect[0], -effect[2], -effect[1]]
            lines.append(
                f"{name}: {better} rather than {worse}{record['tuned']} "
                f"({interval_text(*effect)}, pairs: {record['pairs']})."
            )
    return lines


# --- speeds ---------------------------------------------------------------------------------------


def recommend_variants(rows: Sequence[Row]) -> list[str]:
    """The fastest way to train each network, where its lead over the first one is beyond noise."""

    def work(row: Row) -> tuple[Any, ...]:
        names = ("model", "opt", "image_size", "batch_size")
        return machine_of(row["env"]), *map(row["config"].get, names)

    lines = []
    for (_, model, opt, size, batch), row, group in fastest(rows, work):
        best, speedup = row["metrics"], row["metrics"]["speedup"]
        rivals = [
            r for r in group if get(r, "metrics", "speedup", "baseline") == speedup.get("baseline")
        ]
        lines.append(
            f"Train {model} with {opt} at {size}x{size}, batches of {batch}, on "
            f"{get(row, 'env', 'device')}: {best['label']}, {rate_of(row):,.0f} images/s, "
            f"{interval_text(speedup['ratio'], *lead_of(row), 'times')} as fast as "
            f"{speedup.get('baseline_label')}{overlaps(row, rivals, 'label')}."
        )
    return lines


def recommend_engines(rows: Sequence[Row]) -> list[str]:
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

    full = [row for row in rows if not get(row, "metrics", "quick")]
    lines = []
    for (_, run, dataset, model, scenario), row, group in fastest(full, work):
        best = row["metrics"]
        query, speed = f"batches of {best['batch_size']}", f"{best['images_per_s']:,.0f} images/s"
        if scenario == "single":
            query, speed = "one image", f"{number(best, 'latency_ms', 'p50'):.2f} ms"
        engines = len({r["metrics"]["engine"] for r in group})
        rivals = [r for r in group if baseline(r) == baseline(row)]
        line = (
            f"Answer {query} by {model} ({display(str(dataset))}, run {run}) on "
            f"{get(row, 'env', 'device')} with {best['engine']}, the fastest of {engines} "
            f"measured: {speed}, {interval_text(best['speedup_vs_eager'], *lead_of(row), 'times')} "
            f"as fast as eager, at {100 * best['test_acc']:.2f} % on test"
            f"{overlaps(row, rivals, 'engine')}"
        )
        lines.append(join_notes(line, noise_note(row)) + ".")
    return lines


def fastest(
    rows: Sequence[Row], work: Callable[[Row], tuple[Any, ...]]
) -> Iterator[tuple[tuple[Any, ...], Row, list[Row]]]:
    """Of each work the fastest row whose lead over the first one is beyond noise, and all rows."""
    for key, group in grouped(rows, work).items():
        if sure := [row for row in group if lead_of(row)[0] > 1]:
            yield key, max(sure, key=rate_of), group


def lead_of(row: Row) -> tuple[float, float]:
    """The interval of a row's speed-up; (0, 0) where it has none."""
    return speedup_interval(row) or (0.0, 0.0)


def overlaps(best: Row, rivals: Sequence[Row], name: str) -> str:
    """The rivals whose speed-ups over the same first one reach into the best's interval."""
    near = {r["metrics"][name]: None for r in rivals if lead_of(r)[1] >= lead_of(best)[0]}
    near.pop(best["metrics"][name], None)
    return f"; not told apart from {', '.join(near)}" if near else ""


def rate_of(row: Row) -> float:
    """A row's images a second."""
    return number(row, "metrics", "images_per_s") or 0.0
