"""Key findings and recommendations: sentences made of verdicts and numbers, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from common.base.log import machine_of, timed_on
from common.judge.claims import Result, claims_tables, judge_claims
from common.judge.contrasts import contrast_records, contrast_tables, interaction_records
from common.judge.evidence import Load, collect
from common.judge.noise import ALPHA, noise_tables, tie_records
from common.judge.published import published_table, results_table
from common.judge.rows import (
    Row,
    busy_note,
    display,
    get,
    join_notes,
    latest_ok,
    noise_note,
    number,
)
from common.judge.tables import Table, make_table
from common.judge.times import logged_interval
from common.judge.verdicts import SEEDS, VERDICTS, Part, dependence_text, leads

NEAR = 0.005  # of validation accuracy: what a user may give for a cheaper training


def judged_tables(rows: Sequence[Row], load: Load) -> list[Table]:
    """Every table of the sections findings, claims and statistics.

    `load` returns a row's predictions, or the reason why there are none.
    """
    evidence = collect(rows, load)
    train, svm = latest_ok(rows, "train"), latest_ok(rows, "svm")
    results = judge_claims(evidence, rows)
    contrasts, ties = contrast_records(evidence), tie_records(evidence)
    interactions = interaction_records(evidence)
    return [
        results_table(train, svm),
        *findings_tables(results, contrasts, ties, rows),
        *claims_tables(results),
        *contrast_tables(evidence, contrasts, interactions),
        *noise_tables(evidence, train, ties),
        published_table(train, svm),
    ]


def findings_tables(
    results: Sequence[Result], contrasts: Sequence[Row], tied: Sequence[Row], rows: Sequence[Row]
) -> list[Table]:
    """Both tables, from the claims, the records of the tables of contrasts and of ties, and the
    log's rows of speeds."""
    choose = (recommend_configuration, recommend_cheapest)
    recommended = [tell(records) for records in divisions(tied) for tell in choose]
    recommended += preferences(contrasts)
    recommended += [line for result in results if (line := recommend_device(result))]
    recommended += [*recommend_variants(latest_ok(rows, "hw_train")),
                    *recommend_engines(latest_ok(rows, "hw_infer"))]  # fmt: skip
    recommended = [line for line in recommended if line]
    return [
        sentences(
            "findings", "Key findings", "finding",
            [*claim_findings(results), *chosen_findings(tied)],
        ),
        sentences(
            "recommendations", "Recommendations", "recommendation", recommended,
            "" if recommended else "None: the log holds no difference that a choice could rest on.",
        ),
    ]  # fmt: skip


def sentences(key: str, title: str, name: str, lines: Sequence[str], *notes: str) -> Table:
    """A table of one sentence a row."""
    records = [{name: line} for line in lines]
    return make_table("findings", key, title, name, records, *notes)


def interval_text(effect: float, low: float, high: float, unit: str = "points") -> str:
    """An effect with its interval, in its unit."""
    if unit == "times":
        return f"{effect:.2f} times ({low:.2f} to {high:.2f})"
    return f"{100 * effect:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f})"


def claim_findings(results: Sequence[Result]) -> list[str]:
    """How many claims stand, and each that was decided with its numbers."""
    numbers = {v: [r.claim.number for r in results if r.verdict == v] for v in VERDICTS}
    counts = [f"{len(n)} {v}" + (f" ({', '.join(map(str, n))})" if n else "")
              for v, n in numbers.items()]  # fmt: skip
    lines = [f"Of the study's {len(results)} claims: {', '.join(counts)}."]
    for result in results:
        if result.verdict != "undecided":
            deciding = [part for part in result.parts if part.verdict == result.verdict]
            shown = "; ".join(map(part_text, deciding))
            lines.append(
                f"{result.claim.text} (claim {result.claim.number}): {result.verdict}. {shown}."
            )
    return lines


def verdict_lines(results: Sequence[Result]) -> list[str]:
    """The claims in words, a line for each verdict that there is."""
    said = {v: [r.claim for r in results if r.verdict == v] for v in VERDICTS}
    return [
        f"{verdict}: " + "; ".join(f"({claim.number}) {claim.text}" for claim in claims)
        for verdict, claims in said.items() if claims
    ]  # fmt: skip


def part_text(part: Part) -> str:
    """A measured part with its number."""
    said = f"{part.subject}: {interval_text(part.effect, *part.interval, part.unit)}"
    return f"{said}, {part.note}" if part.note else said


def divisions(tied: Sequence[Row]) -> list[list[Row]]:
    """The records of the table of ties, by division of the images; the chosen one is the first."""
    found: dict[tuple, list[Row]] = {}
    for record in tied:
        found.setdefault(record["model"].images, []).append(record)
    return list(found.values())


def chosen_findings(tied: Sequence[Row]) -> list[str]:
    """What was chosen on validation, how accurate it is, and how many it cannot be told from."""
    lines = []
    for chosen, *rivals in divisions(tied):
        tied = [record["tied"] for record in rivals]
        counts = f"Rivals: {len(tied)}, statistically tied with it: {tied.count(True)}"
        counts += f", open for want of seeds: {tied.count(None)}" if None in tied else ""
        ends = (chosen["test_acc_low"], chosen["test_acc_high"])
        known = "" if None in ends else f"{100 * ends[0]:.2f} to {100 * ends[1]:.2f} on "
        lines.append(
            f"{display(str(chosen['dataset']))}: chosen on validation, {chosen['setting']}, "
            f"{100 * chosen['test_acc']:.2f} % on test ({known}{len(chosen['model'].right):,} "
            f"images, seeds: {chosen['seeds']}). "
            + (f"{counts}." if tied else "Nothing else was measured on these images.")
        )  # fmt: skip
    return lines


def training_cost(record: Row) -> tuple[float, str] | None:
    """What a configuration's training took and in words: on a CPU seconds of its cores, so that
    runs of unlike threads can be compared."""
    row = record["model"].row
    ms, threads = number(row, "metrics", "train_ms"), number(row, "env", "threads")
    if not ms:
        return None
    if not threads or get(row, "env", "device") != get(row, "env", "cpu"):
        return ms / 1e3, join_notes(f"{ms / 1e3:,.1f} s", busy_note(row))
    cost = ms / 1e3 * threads
    said = f"{cost:,.1f} core-seconds ({threads:g} thread{'s' if threads > 1 else ''})"
    return cost, join_notes(said, busy_note(row))


def cheapest(
    chosen: Row, rivals: Sequence[Row]
) -> tuple[tuple[float, str], tuple[float, str], Row] | None:
    """The chosen one's cost, the least of rivals on the same machine, and whose it is; None where
    there is none to compare."""
    own, here = training_cost(chosen), timed_on(chosen["model"].row["env"])
    mine = [rival for rival in rivals if timed_on(rival["model"].row["env"]) == here]
    costs = [(cost, i) for i, rival in enumerate(mine) if (cost := training_cost(rival))]
    if own is None or not costs:
        return None
    cost, i = min(costs)
    return own, cost, mine[i]


def lead_text(record: Row) -> str:
    """By how much the chosen one leads another on the test images."""
    return interval_text(record["difference"], record["low"], record["high"])


def recommend_configuration(records: Sequence[Row]) -> str | None:
    """The one chosen on validation, and the cheapest of those that the test images cannot tell from
    it: test images choose nothing here, the reader may."""
    chosen, *rivals = records
    if not rivals:
        return None
    tied = [record for record in rivals if record["tied"] is True]
    line = f"{display(str(chosen['dataset']))}: {chosen['setting']}, chosen on validation."
    found = cheapest(chosen, tied)
    if not found or found[1][0] >= found[0][0]:
        return line
    (_, own), (_, less), best = found
    return (
        f"{line} Cheapest of the {len(tied)} tied with it: {best['setting']}, {less} of training "
        f"in place of {own}; the chosen one minus it: {lead_text(best)}."
    )


def recommend_cheapest(records: Sequence[Row]) -> str | None:
    """Of those whose validation accuracy is near the chosen one's the cheapest, if it costs at most
    half as much."""
    chosen, *rivals = records
    least = chosen["val_acc"] - NEAR
    near = [r for r in rivals if r["val_acc"] is not None and r["val_acc"] >= least]
    found = cheapest(chosen, near)
    if not found or found[1][0] > found[0][0] / 2:
        return None
    (much, own), (little, less), best = found
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
        (better, worse), where = record["sides"], record["tuned"]
        if surely := [apart for apart in record["apart"] if apart[-1]]:
            told = "; ".join(map(dependence_text, surely))
            lines.append(f"{name}: {better} or {worse}: which is better {told}.")
        elif ahead and not record["apart"] and record["p_holm"] <= ALPHA:
            if ahead < 0:
                better, worse = worse, better
                effect = [-effect[0], -effect[2], -effect[1]]
            lines.append(
                f"{name}: {better} rather than {worse}{where} ({interval_text(*effect)}, "
                f"pairs: {record['pairs']})."
            )
    return lines


def recommend_device(result: Result) -> str | None:
    """Train on the accelerator, where it was measured to be faster than the CPU."""
    faster = [p for p in result.parts if p.interval and p.interval[0] > 1]
    faster = [p for p in faster if "over ResNet" not in p.subject]
    if result.claim.number != 8 or not faster:
        return None
    return f"Train on the accelerator: {'; '.join(map(part_text, faster))} as fast as the CPU."


def recommend_variants(rows: Sequence[Row]) -> list[str]:
    """The fastest way to train each network, where its lead over the first one is beyond noise."""

    def work(row: Row) -> tuple[object, ...]:
        names = ("model", "opt", "image_size", "batch_size")
        return machine_of(row["env"]), *(get(row, "config", name) for name in names)

    lines = []
    for (_, model, opt, size, batch), row, group in fastest(rows, work):
        found, same = row["metrics"], ("metrics", "speedup", "baseline")
        rivals = [r for r in group if get(r, *same) == get(row, *same)]
        lines.append(
            f"Train {model} with {opt} at {size}x{size}, batches of {batch}, on "
            f"{get(row, 'env', 'device')}: {found['label']}, {rate_of(row):,.0f} images/s, "
            f"{interval_text(found['speedup']['ratio'], *lead_of(row), 'times')} as fast as "
            f"{found['speedup'].get('baseline_label')}{overlaps(row, rivals, 'label')}."
        )
    return lines


def recommend_engines(rows: Sequence[Row]) -> list[str]:
    """The fastest engine for single images and for batches of each exported network, where its lead
    over eager is beyond noise; each lost no more accuracy than its gate allows."""

    def work(row: Row) -> tuple[object, ...]:
        names = ("dataset", "model", "scenario")
        return (timed_on(row["env"]), get(row, "config", "train_run_id"),
                *(get(row, "metrics", name) for name in names))  # fmt: skip

    full = [row for row in rows if not get(row, "metrics", "quick")]
    lines = []
    for (_, run, dataset, model, scenario), row, group in fastest(full, work):
        found = row["metrics"]
        asked = "one image" if scenario == "single" else f"batches of {found['batch_size']}"
        said = f"{number(found, 'latency_ms', 'p50'):.2f} ms" if scenario == "single" else (
            f"{found['images_per_s']:,.0f} images/s"
        )  # fmt: skip
        measured = len({r["metrics"]["engine"] for r in group})
        lead = interval_text(found["speedup_vs_eager"], *lead_of(row), "times")
        lines.append(join_notes(
            f"Answer {asked} by {model} ({display(str(dataset))}, run {run}) on "
            f"{get(row, 'env', 'device')} with {found['engine']}, the fastest of {measured} "
            f"measured: {said}, {lead} as fast as eager, at {100 * found['test_acc']:.2f} % on test"
            f"{overlaps(row, [r for r in group if same_work(r, row)], 'engine')}", noise_note(row),
        ) + ".")  # fmt: skip
    return lines


def fastest(
    rows: Sequence[Row], work: Callable[[Row], tuple[object, ...]]
) -> Iterator[tuple[tuple[object, ...], Row, list[Row]]]:
    """Of each work the fastest row whose lead over the first one is beyond noise, and all rows."""
    works: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        works.setdefault(work(row), []).append(row)
    for key, group in works.items():
        if sure := [row for row in group if lead_of(row)[0] > 1]:
            yield key, max(sure, key=rate_of), group


def lead_of(row: Row) -> tuple[float, float]:
    """The interval of a row's speed-up; (0, 0) where it has none."""
    engine = get(row, "metrics", "speedup_interval")
    if isinstance(engine, list) and len(engine) == 2:
        return engine[0], engine[1]
    return logged_interval(row) or (0.0, 0.0)


def same_work(first: Row, second: Row) -> bool:
    """Whether two engines' rows are of one size of batch and number of threads, so that both
    speed-ups are over the same eager."""
    names = (("metrics", "batch_size"), ("config", "threads"), ("env", "threads"))
    return all(get(first, *name) == get(second, *name) for name in names)


def overlaps(best: Row, rivals: Sequence[Row], name: str) -> str:
    """The rivals whose speed-ups over the same first one reach into the best's interval."""
    near = {r["metrics"][name]: None for r in rivals if lead_of(r)[1] >= lead_of(best)[0]}
    near.pop(best["metrics"][name], None)
    return f"; not told apart from {', '.join(near)}" if near else ""


def rate_of(row: Row | None) -> float:
    """A row's images a second."""
    return number(row, "metrics", "images_per_s") or 0.0
