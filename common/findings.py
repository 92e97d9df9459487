"""Key findings and recommendations: sentences made of verdicts and numbers, and of nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from common.claims import Result, claims_tables, judge_claims
from common.contrasts import KNOWN, contrast_records, contrast_tables
from common.evidence import Load, Model, collect
from common.measured import Row, display, get, latest_ok, number
from common.noise import ALPHA, noise_tables, tie_records
from common.replication import published_table, results_table
from common.tables import Column, Table, make_table
from common.verdicts import Part

COLUMNS = KNOWN | {
    key: Column(key, key.capitalize(), width_mm=250) for key in ("finding", "recommendation")
}
VERDICTS = ("supported", "contradicted", "undecided")


def judged_tables(rows: Sequence[Row], load: Load) -> list[Table]:
    """Every table of the sections findings, claims and statistics.

    `load` returns a row's predictions, or the reason why there are none.
    """
    evidence = collect(rows, load)
    train, svm = latest_ok(rows, "train"), latest_ok(rows, "svm")
    results = judge_claims(evidence, rows)
    contrasts, ties = contrast_records(evidence), tie_records(evidence)
    return [
        results_table(train, svm),
        *findings_tables(results, contrasts, ties),
        *claims_tables(results),
        *contrast_tables(evidence, contrasts),
        *noise_tables(evidence, train, ties),
        published_table(train, svm),
    ]


def findings_tables(
    results: Sequence[Result], contrasts: Sequence[Row], tied: Sequence[Row]
) -> list[Table]:
    """Both tables, from the claims, and the records of the tables of contrasts and of ties."""
    recommended = [*map(recommend_configuration, divisions(tied)), *preferences(contrasts)]
    recommended += [line for result in results if (line := recommend_device(result))]
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
    return make_table("findings", key, title, name, records, *notes, known=COLUMNS)


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


def part_text(part: Part) -> str:
    """A measured part with its number."""
    return f"{part.subject}: {interval_text(part.effect, *part.interval, part.unit)}"


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
        equal = sum(record["tied"] is True for record in rivals)
        tested = sum(record["tied"] is not None for record in rivals)
        lines.append(
            f"{display(str(chosen['dataset']))}: chosen on validation, {chosen['setting']}, "
            f"{100 * chosen['test_acc']:.2f} % on test ({100 * chosen['test_acc_low']:.2f} to "
            f"{100 * chosen['test_acc_high']:.2f} on {len(chosen['model'].right):,} images, seeds: "
            f"{chosen['seeds']}). "
            + (f"Of {tested} rivals {equal} are statistically tied with it." if tested
               else "Nothing else was measured on these images.")
        )  # fmt: skip
    return lines


def duration_ms(record: Row, device: object) -> float | None:
    """The training time of a configuration, if it was timed on this device."""
    model: Model = record["model"]
    same = get(model.row, "env", "device") == device
    return number(model.row, "metrics", "train_ms") if same else None


def recommend_configuration(records: Sequence[Row]) -> str | None:
    """The one chosen on validation, and the cheapest of those that the test images cannot tell from
    it: test images choose nothing here, the reader may."""
    chosen, *rivals = records
    if not rivals:
        return None
    device = get(chosen["model"].row, "env", "device")
    tied = [record for record in rivals if record["tied"] is True]
    timed = [(ms, i) for i, record in enumerate(tied) if (ms := duration_ms(record, device))]
    line = f"{display(str(chosen['dataset']))}: {chosen['setting']}, chosen on validation."
    own_ms, (best_ms, i) = duration_ms(chosen, device), min(timed, default=(None, 0))
    if not (own_ms and best_ms and best_ms < own_ms):
        return line
    gap = interval_text(tied[i]["difference"], tied[i]["low"], tied[i]["high"])
    return (
        f"{line} Cheapest of the {len(tied)} tied with it: {tied[i]['setting']}, "
        f"{best_ms / 1e3:,.0f} s of training in place of {own_ms / 1e3:,.0f} s; the chosen one "
        f"minus it: {gap}."
    )


def preferences(contrasts: Sequence[Row]) -> list[str]:
    """The levels that a contrast tells apart, after Holm and over the seeds that there are."""
    lines = []
    for record in contrasts:
        if (record.get("p_holm") or 1) > ALPHA:
            continue
        low = min(v for v in (record["low"], record["seed_low"]) if v is not None)
        high = max(v for v in (record["high"], record["seed_high"]) if v is not None)
        if low <= 0 <= high:
            continue
        caution = "" if record["seeds"] > 1 else ", one seed: the noise of training is not in it"
        better, worse = record["sides"] if low > 0 else record["sides"][::-1]
        effect = interval_text(record["difference"], low, high)
        lines.append(
            f"{display(str(record['dataset']))}: {better} rather than {worse} "
            f"({record['contrast']}: {effect}, pairs: {record['pairs']}{caution})."
        )
    return lines


def recommend_device(result: Result) -> str | None:
    """Train on the accelerator, where it was measured to be faster than the CPU."""
    faster = [p for p in result.parts if p.interval and p.interval[0] > 1]
    faster = [p for p in faster if "over ResNet" not in p.subject]
    if result.claim.number != 8 or not faster:
        return None
    return f"Train on the accelerator: {'; '.join(map(part_text, faster))} as fast as the CPU."
