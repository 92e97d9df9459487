"""The study's claims, one by one: the rows that bear on each, the effect, and a verdict.

Each claim's rule was fixed before any row was read: where its effect must lie for the claim to
hold, and where it must lie to contradict it. An interval that lies wholly in one of the two
decides; any other leaves the claim undecided. What is said of accuracy rests on three seeds of
every setting or more, and nothing is decided on fewer. A claim that surely holds at one level of
another factor and surely fails at another is mixed. The rule is applied to every part (data set,
network); a claim is supported only if all of its parts are, contradicted or mixed if one is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from common.judge.contrasts import (
    CONTRASTS,
    TUNED,
    best_pairs,
    contrast_pairs,
    levels_of,
    of_dataset,
)
from common.judge.dynamics import curve_parts
from common.judge.evidence import (
    Evidence,
    Pair,
    best_setting,
    main_recipe,
    matched,
    measure_effect,
)
from common.judge.published import load_published
from common.judge.rows import STUDY_DATASETS, Row, join_notes
from common.judge.tables import Table, make_table
from common.judge.times import device_accuracy_parts, optimiser_time_parts, speedup_parts
from common.judge.verdicts import (
    BEATS,
    Level,
    Part,
    Rule,
    at_least,
    between,
    decide_accuracy,
    unmeasured,
)

PUBLISHED = load_published()
NO_WORSE_BY, SAME_GAP, SAME_DEVICE = 0.002, 0.005, 0.03


@dataclass(frozen=True)
class Claim:
    """A claim of the study in our words, its rule in words, and the function that tests it."""

    number: int
    text: str
    criterion: str
    parts: Callable[[Evidence, Sequence[Row]], list[Part]]


@dataclass(frozen=True)
class Result:
    """A claim and what the rows say to it."""

    claim: Claim
    parts: tuple[Part, ...]

    @property
    def verdict(self) -> str:
        """Of all parts together."""
        found = {part.verdict for part in self.parts}
        one_is_enough = (v for v in ("contradicted", "mixed") if v in found)
        return next(one_is_enough, "supported" if found == {"supported"} else "undecided")


def published_accuracy(**where: object) -> float:
    """The highest test accuracy that the study published for these settings."""
    return max(
        row["test_acc"] for row in PUBLISHED
        if row["part"] in ("q1a", "q1b") and where.items() <= row.items()
    )  # fmt: skip


def published_effect(dataset: str, factor: str, first: object, second: object) -> float:
    """The mean of the published differences of configurations that differ in one factor alone."""
    names = ("model", "opt", "lr", "epochs", "pin_memory", "kernel")
    sides: dict[tuple, dict[object, float]] = {}
    for row in PUBLISHED:
        if row["part"] in ("q1a", "q1b") and row["dataset"] == dataset and factor in row:
            rest = tuple(row.get(k) for k in names if k != factor)
            sides.setdefault(rest, {})[row[factor]] = row["test_acc"]
    found = [s[first] - s[second] for s in sides.values() if first in s and second in s]
    return sum(found) / len(found)


def accuracy_part(
    dataset: str, rule: Rule, pairs: Sequence[Pair], published: float | None, basis: str,
    command: str, levels: Sequence[Level] = (),
) -> Part:  # fmt: skip
    """The verdict of paired test accuracies."""
    subject = STUDY_DATASETS[dataset]
    if not pairs:
        return unmeasured(subject, published, "points", command)
    effect = measure_effect(pairs)
    names = {model.row["run_id"]: None for pair in pairs for side in pair for model in side}
    return decide_accuracy(
        subject, rule, effect.estimate, seeds=effect.seeds, images=effect.images, command=command,
        published=published, runs=tuple(names), levels=levels,
        basis=f"{basis}; pairs: {effect.pairs}, seeds: {effect.seeds}, "
        f"trainings: {effect.trainings}",
        note=join_notes(effect.seed_note, *(first[0].protocol for first, _ in pairs)),
    )  # fmt: skip


def factor_part(
    evidence: Evidence, dataset: str, factor: str, rule: Rule, swap: bool = False,
    published: float | None = None,
) -> Part:  # fmt: skip
    """The verdict of a predeclared contrast, the other way round where `swap`; `published` where
    the study's figures make no matched pairs."""
    (contrast,) = (c for c in CONTRASTS if c.factor == factor)
    levels = (contrast.first, contrast.second)
    pairs, averaged = (contrast_pairs(evidence, dataset, contrast, tuned) for tuned in (1, 0))
    if swap:
        levels = levels[::-1]
        pairs, averaged = ([(b, a) for a, b in side] for side in (pairs, averaged))
    basis = f"{levels[0]} minus {levels[1]}, all else equal"
    if pairs != averaged:
        basis = f"{levels[0]} minus {levels[1]}{TUNED}"
        if averaged:
            basis += f" (averaged: {100 * measure_effect(averaged).difference:+.2f} points)"
    if published is None:
        published = published_effect(dataset, factor, *levels)
    else:
        basis += " (published: the best of each, of other length)"
    return accuracy_part(
        dataset, rule, pairs, published, basis, contrast.command, levels_of(averaged, contrast)
    )


def network_parts(evidence: Evidence, rows: Sequence[Row]) -> list[Part]:
    """Claim 1."""
    rule = at_least(-NO_WORSE_BY)
    return [factor_part(evidence, name, "model", rule) for name in STUDY_DATASETS]


def sgd_parts(evidence: Evidence, rows: Sequence[Row]) -> list[Part]:
    """Claim 2. The published figures are those of the best run of each, of unlike length."""
    best = [published_accuracy(dataset="mnist", opt=name) for name in ("sgd", "adam")]
    return [factor_part(evidence, "mnist", "opt", BEATS, published=best[0] - best[1])]


def adam_parts(evidence: Evidence, rows: Sequence[Row]) -> list[Part]:
    """Claim 3."""
    best = [published_accuracy(dataset="fashion", opt=name) for name in ("adam", "sgd")]
    return [factor_part(evidence, "fashion", "opt", BEATS, swap=True, published=best[0] - best[1])]


def length_parts(evidence: Evidence, rows: Sequence[Row]) -> list[Part]:
    """Claim 4."""
    rule = between(0.003, 0.005)
    return [factor_part(evidence, name, "epochs", rule) for name in STUDY_DATASETS]


def rate_parts(evidence: Evidence, rows: Sequence[Row]) -> list[Part]:
    """Claim 5: the best of each rate, chosen on validation, may differ in the other factors."""
    (contrast,) = (c for c in CONTRASTS if c.factor == "lr")
    parts = []
    for dataset in STUDY_DATASETS:
        settings = main_recipe((s,) for s in of_dataset(evidence, dataset, "train"))
        high, low = (
            best_setting(s for (s,) in settings if s[0].config.get("lr") == lr)
            for lr in (contrast.first, contrast.second)
        )
        best = [published_accuracy(dataset=dataset, lr=lr) for lr in (1e-3, 1e-4)]
        parts.append(accuracy_part(
            dataset, BEATS, [(high, low)] if high and low else [], best[0] - best[1],
            "best of 0.001 minus best of 0.0001, each chosen on validation", contrast.command,
            levels_of(contrast_pairs(evidence, dataset, contrast), contrast),
        ))  # fmt: skip
    return parts


def kernel_parts(evidence: Evidence, rows: Sequence[Row]) -> list[Part]:
    """Claim 6."""
    return [factor_part(evidence, name, "kernel", BEATS) for name in STUDY_DATASETS]


def machine_parts(evidence: Evidence, rows: Sequence[Row]) -> list[Part]:
    """Claim 7."""
    parts = []
    for dataset in STUDY_DATASETS:
        network, machine = (published_accuracy(part=p, dataset=dataset) for p in ("q1a", "q1b"))
        gap = network - machine
        parts.append(accuracy_part(
            dataset, between(gap - SAME_GAP, gap + SAME_GAP), best_pairs(evidence, dataset), gap,
            "best ResNet minus best SVM, each chosen on validation", "make q1a q1b",
        ))  # fmt: skip
    return parts


def device_parts(evidence: Evidence, rows: Sequence[Row]) -> list[Part]:
    """Claim 9: whole epochs of hw_bench.py, and trainings that differ in their device alone."""
    rule = between(-SAME_DEVICE, SAME_DEVICE)
    epochs = device_accuracy_parts(rows, rule, PUBLISHED)
    trainings = []
    for dataset in STUDY_DATASETS:
        pairs = main_recipe(
            matched(of_dataset(evidence, dataset, "train"), "device", "cuda", "cpu")
        )
        basis = "cuda minus cpu, all else equal"
        command = "python train.py --preset q1a --device cpu cuda"
        trainings.append(accuracy_part(dataset, rule, pairs, None, basis, command))
    # Of what was begun no part that was not measured is left out: it keeps the claim open.
    sides = [side for side in (epochs, trainings) if any(p.effect is not None for p in side)]
    return [part for side in sides for part in side] or epochs


def dynamics_parts(evidence: Evidence, rows: Sequence[Row]) -> list[Part]:
    """Claim 11."""
    length = factor_part(evidence, "fashion", "epochs", BEATS)
    return [*curve_parts(rows), replace(length, subject="FashionMNIST: 5 minus 3 epochs")]


LEAD = "difference above 0.1 points; a smaller one counts as none"
CLAIMS = (
    Claim(1, "ResNet-18 is as accurate as ResNet-50 or better, on both data sets",
          "ResNet-18 minus ResNet-50 is above -0.2 points", network_parts),
    Claim(2, "On MNIST, SGD is more accurate than Adam",
          LEAD, sgd_parts),
    Claim(3, "On FashionMNIST, Adam is more accurate than SGD",
          LEAD, adam_parts),
    Claim(4, "Five epochs give 0.3 to 0.5 points more than three",
          "difference between 0.3 and 0.5 points", length_parts),
    Claim(5, "The best models are better at a rate of 0.001 than at 0.0001",
          LEAD, rate_parts),
    Claim(6, "The RBF kernel is more accurate than the polynomial one, on both data sets",
          LEAD, kernel_parts),
    Claim(7, "The best ResNet leads the best SVM by 2.98 points on MNIST, 5.87 on FashionMNIST",
          "difference within 0.5 points of the published one", machine_parts),
    Claim(8, "A GPU trains ResNet-18 24 to 27 times, ResNet-50 37 to 38 times as fast as a CPU; "
          "the deeper network gains more", "ratios within these bounds; ratio of ratios above 1",
          lambda evidence, rows: speedup_parts(rows, PUBLISHED)),
    Claim(9, "CPU and GPU end at the same accuracy, within 3 points",
          "difference between -3 and 3 points", device_parts),
    Claim(10, "Adam costs 3 to 5 % more training time than SGD",
          "ratio of step times between 1.03 and 1.05",
          lambda evidence, rows: optimiser_time_parts(rows, PUBLISHED)),
    Claim(11, "On MNIST most is learned in two epochs, FashionMNIST needs all five; accuracy does "
          "not oscillate, and there is little overfitting",
          "left to gain on MNIST after epoch 2: below 1 point of validation accuracy; "
          "FashionMNIST, 5 minus 3 epochs: above 0.1 points; largest fall between epochs: below "
          "1 point; training minus validation accuracy: below 2 points",
          dynamics_parts),
)  # fmt: skip


def judge_claims(evidence: Evidence, rows: Sequence[Row]) -> list[Result]:
    """Every claim with its parts."""
    return [Result(claim, tuple(claim.parts(evidence, rows))) for claim in CLAIMS]


def claims_tables(results: Sequence[Result]) -> list[Table]:
    """The verdicts, and the effects that they rest on."""
    verdicts = [
        {
            "claim": r.claim.number, "text": r.claim.text, "verdict": r.verdict,
            "criterion": r.claim.criterion, "reason": why(r),
        }
        for r in results
    ]  # fmt: skip
    parts = [part.record() | {"claim": r.claim.number} for r in results for part in r.parts]
    return [
        make_table(
            "claims", "claims", "Verdicts", "claim text verdict criterion reason", verdicts,
            "Supported: the interval of every part lies where the criterion says. Contradicted: "
            "that of at least one part lies outside. Mixed: a part depends on another factor, at "
            "one level of which it surely holds and at another surely fails. Undecided: anything "
            "else, and what is said of accuracy on fewer than three seeds. Each part is tested at "
            "5 %, unadjusted.",
        ),
        make_table(
            "claims", "claim_parts", "The rows behind each verdict",
            "claim subject unit published effect low high verdict basis runs note", parts,
            "95 %: over test images (paired bootstrap) and seeds (Student's), joined as "
            "independent noises. Data needed: for 80 % power, were effect and noise as measured.",
        ),
    ]  # fmt: skip


def why(result: Result) -> str:
    """The parts of each verdict, in a few words."""
    groups: dict[str, list[str]] = {}
    for part in result.parts:
        said = "not measured" if part.effect is None else part.verdict
        groups.setdefault(said, []).append(part.subject)
    return "; ".join(f"{said}: {', '.join(names)}" for said, names in groups.items())
