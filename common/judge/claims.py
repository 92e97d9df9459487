"""The study's claims, an entry each in ENTRIES: what it says, when it holds, and what measures it.

Each claim's rule was fixed before any row was read: where its effect must lie for the claim to
hold, and where it must lie to contradict it. An interval that lies wholly in one of the two
decides; any other leaves the claim undecided. What is said of accuracy rests on three seeds of
every setting or more, and nothing is decided on fewer. A claim that surely holds at one level of
another factor and surely fails at another is mixed. The rule is applied to every part (data set,
network); a claim is supported only if all of its parts are, contradicted or mixed if one is.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from common.judge import compare, rows, stats, times, verdicts
from common.judge.published import STUDY_TEST_IMAGES, published
from common.judge.rows import STUDY_DATASETS, TRAIN_PROTOCOL, Row, grouped, join_notes, number
from common.judge.stats import Estimate, Interval
from common.judge.tables import Table, make_table
from common.judge.verdicts import BEATS, SEEDS, Rule, judge

UNITS = {"points": 100.0, "times": 1.0}  # a unit's size in that of the effects
NAMES = {"resnet18": "ResNet-18", "resnet50": "ResNet-50"}
OPTIMIZERS = ("sgd", "adam")
DEVICES = ("cpu", "gpu")
WORKS = {
    f"{name} with {opt}": {"model": model, "opt": opt}
    for model, name in NAMES.items()
    for opt in OPTIMIZERS
}
LENGTH = 5  # epochs of the study's longer runs; a shorter run cannot speak of learning curves


@dataclass(frozen=True)
class Part:
    """What the log says to one part of a claim.

    Units: fractions of accuracy for the unit "points", ratios for "times".
    """

    subject: str
    unit: str
    published: float | None
    verdict: str = "undecided"
    effect: float | None = None
    interval: Interval | None = None
    basis: str | None = None
    runs: Sequence[str] = ()
    note: str | None = None


@dataclass(frozen=True)
class Claim:
    """A claim of the study in our words, its rule in words, and what yields its parts."""

    number: int
    text: str
    criterion: str
    parts: Callable[[compare.Evidence], Iterable[Part]]


@dataclass(frozen=True)
class Result:
    """A claim and what the log says to it."""

    claim: Claim
    parts: tuple[Part, ...]

    @property
    def verdict(self) -> str:
        """Of all parts together."""
        each = {part.verdict for part in self.parts}
        one_is_enough = (v for v in ("contradicted", "mixed") if v in each)
        return next(one_is_enough, "supported" if each == {"supported"} else "undecided")


def points_part(
    subject: str, rule: Rule, figure: float | None, command: str, effect: Row | None, levels=()
) -> Part:
    """A part on accuracies: an `effect` is an estimate of settings of at least so many `seeds`,
    tested on so many `images`, with what it rests on; `levels` tells what else it may depend on,
    `command` measures more of it.

    Mixed: the claim surely holds at one level of another factor and surely fails at another. Where
    only the estimates say so it is undecided.
    """
    if effect is None:
        return Part(subject, "points", figure, note=f"not measured: {command} measures it")
    estimate, seeds = effect["estimate"], effect["seeds"]
    interval = estimate.interval()
    verdict, why = judge(rule, interval), ""
    apart = verdicts.dependence(rule, levels)
    if verdict == "contradicted":
        apart = {text: True for text, surely in apart.items() if surely}  # noise excuses no claim
    if seeds < SEEDS:
        flag = f"--seed {' '.join(map(str, range(SEEDS)))}"
        flag = f"ARGS='{flag}'" if command.startswith("make ") else flag
        verdict, why = "undecided", f"three seeds: {command} {flag}"
    elif verdict == "undecided":
        why = verdicts.more_data(rule, estimate, seeds, effect["images"])
    elif apart:
        verdict = "mixed" if any(apart.values()) else "undecided"
    leaning = judge(rule, (estimate.value, estimate.value))
    leans = f"leans to {leaning}" if verdict == "undecided" != leaning else ""
    note = join_notes(leans, why, *apart, effect["note"])
    basis, runs = effect["basis"], effect["runs"]
    return Part(subject, "points", figure, verdict, estimate.value, interval, basis, runs, note)


def compared(pairs: Sequence[compare.Pair], basis: str) -> Row | None:
    """The effect of matched pairs, where there are any, with what it rests on."""
    if not pairs:
        return None
    effect = compare.measure_effect(pairs)
    counts = "pairs: {pairs}, seeds: {seeds}, trainings: {trajectories}".format(**effect)
    return effect | {"basis": f"{basis}; {counts}"}


def published_gap(dataset: str, factor: str, levels: Sequence[object], best: bool) -> float:
    """The published difference of two levels of a factor: of the best of each, or the mean of
    configurations that differ in that factor alone."""
    figures = published("q1b" if factor == "kernel" else "q1a", dataset=dataset)
    names = [] if best else [name for name in rows.TRAIN_FACTORS if name != factor]
    gaps = []
    for same in grouped(figures, lambda figure: tuple(map(figure.get, names))).values():
        sides = [[f["test_acc"] for f in same if f[factor] == level] for level in levels]
        gaps += [max(sides[0]) - max(sides[1])] if all(sides) else []
    return statistics.fmean(gaps)


def contrasts(
    log: compare.Evidence, factor: str, rule: Rule, datasets=STUDY_DATASETS, best=False, swap=False
) -> Iterator[Part]:
    """A predeclared contrast on each data set, the other way round where `swap`; beside the
    published difference of the `best` of each, where the figures make no matched pairs."""
    (contrast,) = (c for c in compare.CONTRASTS if c.factor == factor)
    if swap:
        contrast = replace(contrast, first=contrast.second, second=contrast.first)
    levels = contrast.first, contrast.second
    for dataset in datasets:
        pairs, averaged = (contrast.pairs(log, dataset, tuned) for tuned in (True, False))
        alike = pairs == averaged
        basis = f"{levels[0]} minus {levels[1]}{', all else equal' if alike else compare.TUNED}"
        if not alike and averaged:
            average = compare.measure_effect(averaged)["difference"]
            basis += f" (averaged: {100 * average:+.2f} points)"
        basis += " (published: the best of each, of other length)" if best else ""
        figure, effect = published_gap(dataset, factor, levels, best), compared(pairs, basis)
        name, by_level = STUDY_DATASETS[dataset], contrast.levels(averaged)
        yield points_part(name, rule, figure, contrast.command, effect, by_level)


def best_of_rates(log: compare.Evidence) -> Iterator[Part]:
    """The best of each learning rate, which may differ in the other factors."""
    (contrast,) = (c for c in compare.CONTRASTS if c.factor == "lr")
    basis = "best of 0.001 minus best of 0.0001, each chosen on validation"
    for dataset, name in STUDY_DATASETS.items():
        groups = [g for (g,) in compare.main_recipe((g,) for g in log.of(dataset, "train"))]
        best = [rows.best_of(g for g in groups if g.config.get("lr") == lr) for lr in (1e-3, 1e-4)]
        effect = compared([best] if all(best) else [], basis)
        figure = published_gap(dataset, "lr", (1e-3, 1e-4), best=True)
        levels = contrast.levels(contrast.pairs(log, dataset))
        yield points_part(name, BEATS, figure, "make q1a", effect, levels)


def best_of_kinds(log: compare.Evidence) -> Iterator[Part]:
    """The best ResNet beside the best SVM."""
    for dataset, name in STUDY_DATASETS.items():
        figures = (published(part, dataset=dataset) for part in ("q1a", "q1b"))
        network, svm = (max(figure["test_acc"] for figure in part) for part in figures)
        basis = "best ResNet minus best SVM, each chosen on validation"
        rule = (network - svm - 0.005, network - svm + 0.005)
        effect = compared(compare.best_pairs(log, dataset), basis)
        yield points_part(name, rule, network - svm, "make q1a q1b", effect)


def device_accuracy(log: compare.Evidence) -> list[Part]:
    """GPU minus CPU: of whole epochs of hw_bench.py, without predictions, as if on different
    images, which errs on the side of a wider interval; and of trainings that differ in their device
    alone. Of what was begun no part that was not measured is left out: it keeps the claim open."""
    rule, images = (-0.03, 0.03), STUDY_TEST_IMAGES
    epochs, trainings = [], []
    for subject, work in WORKS.items():
        gpu, cpu = (published("q2", **work, device=d)[0]["test_acc"] for d in ("gpu", "cpu"))
        tested = [
            row
            for row in times.study_rows(log.rows, **work, split="study")
            if number(row, "metrics", "test_acc") is not None
        ]
        sides, effect = [times.seeds_of(side) for side in times.sides(tested)][::-1], None
        if all(sides):
            accuracies = [[row["metrics"]["test_acc"] for row in side] for side in sides]
            effect = {
                "estimate": stats.difference_of(*accuracies, (images, images)),
                "seeds": min(map(len, sides)),
                "images": images,
                "basis": "GPU minus CPU, one epoch",
                "runs": [row["run_id"] for side in sides[::-1] for row in side],
                "note": None,
            }
        command = "python hw_bench.py --preset q2 --device cpu cuda --full-epoch"
        epochs.append(points_part(subject, rule, gpu - cpu, command, effect))
    for dataset, name in STUDY_DATASETS.items():
        groups = log.of(dataset, "train")
        pairs = compare.main_recipe(compare.matched(groups, "device", "cuda", "cpu"))
        effect = compared(pairs, "cuda minus cpu, all else equal")
        command = "python train.py --preset q1a --device cpu cuda"
        trainings.append(points_part(name, rule, None, command, effect))
    begun = [parts for parts in (epochs, trainings) if any(p.effect is not None for p in parts)]
    return [part for parts in begun for part in parts] or epochs


def step_ratio(slow: Row | None, fast: Row | None) -> Row | None:
    """How many times as long one row's steps take as another's, where they can be compared."""
    if not (slow and fast and (ratio := times.time_ratio(slow, fast))):
        return None
    labels = [rows.get(r, "metrics", "label") or rows.get(r, "env", "device") for r in (slow, fast)]
    note = "noise between processes is not in the interval"
    return {
        "effect": ratio[0],
        "interval": ratio[1],
        "basis": f"step time of {' over '.join(labels)}",
        "runs": (slow["run_id"], fast["run_id"]),
        "note": join_notes(note, *map(rows.busy_note, (slow, fast))),
    }


def times_part(
    subject: str, rule: Rule, figure: float, effect: Row | None, command: str = times.COMMAND
) -> Part:
    """A part on a ratio of times, and what it rests on."""
    if effect is None:
        return Part(subject, "times", figure, note=f"not measured: {command} measures it")
    verdict = judge(rule, effect["interval"])
    why = "too few timed steps to decide" if verdict == "undecided" else ""
    effect = effect | {"note": join_notes(why, effect["note"])}
    return Part(subject, "times", figure, verdict, **effect)


def speedups(log: compare.Evidence) -> Iterator[Part]:
    """Of each network and optimiser, then the deeper network's over the other's."""
    rules = {"resnet18": (24.0, 27.0), "resnet50": (37.0, 38.0)}
    parts = {}
    for subject, work in WORKS.items():
        cpu_ms, gpu_ms = (published("q2", **work, device=d)[0]["train_ms"] for d in DEVICES)
        sides = map(times.representative, times.sides(times.study_rows(log.rows, **work)))
        effect = step_ratio(*sides)
        parts[subject] = times_part(subject, rules[work["model"]], cpu_ms / gpu_ms, effect)
    yield from parts.values()
    for opt in OPTIMIZERS:
        deep, shallow = (parts[f"{name} with {opt}"] for name in ("ResNet-50", "ResNet-18"))
        if deep.interval and shallow.interval:
            widths = (math.log(p.interval[1] / p.interval[0]) / 2 for p in (deep, shallow))
            half, ratio = math.exp(math.hypot(*widths)), deep.effect / shallow.effect
            effect = {"effect": ratio, "interval": (ratio / half, ratio * half)}
            effect |= {"basis": "ratio of the speed-ups above", "note": None}
            effect |= {"runs": (*deep.runs, *shallow.runs)}
            subject, figure = f"ResNet-50 over ResNet-18 with {opt}", deep.published
            yield times_part(subject, (1.0, math.inf), figure / shallow.published, effect)


def adam_cost(log: compare.Evidence) -> Iterator[Part]:
    """Adam's step over SGD's, of the same variant, on each device that was measured; only where the
    two took turns, for a machine's drift is as large as the difference."""
    for model in NAMES:
        sides = times.sides(times.study_rows(log.rows, model=model))
        for device, side in zip(DEVICES, sides, strict=True):
            work = {"model": model, "device": device}
            ms = [published("q2", **work, opt=opt)[0]["train_ms"] for opt in OPTIMIZERS]
            turns = [
                (sgd, adam)
                for sgd, adam in itertools.product(side, side)
                if sgd["config"].get("opt") == "sgd"
                and adam["config"] == sgd["config"] | {"opt": "adam"}
                and times.comparable(adam) == times.comparable(sgd)
                and times.rounds_of(sgd, adam)
            ]
            chosen = times.representative(sgd for sgd, _ in turns)
            sgd, adam = next((pair for pair in turns if pair[0] is chosen), (None, None))
            subject = f"{NAMES[model]} on a {device.upper()}"
            command = "make q2" if device == "cpu" else times.COMMAND
            effect, figure = step_ratio(adam, sgd), ms[1] / ms[0]
            part = times_part(subject, (1.03, 1.05), figure, effect, command)
            there = {row["config"].get("opt") for row in side}
            if part.effect is None and there.issuperset(OPTIMIZERS):
                part = replace(
                    part, note=f"steps of both did not take turns: {command} measures it"
                )
            yield part


Curve = list[tuple[int, int]]  # of validation images: how many right after each epoch, of how many
Change = tuple[float, Interval]


def curves(log: compare.Evidence) -> Iterator[Part]:
    """What is left to learn, the largest fall and the overfitting; then the need of five epochs."""
    for dataset, name in STUDY_DATASETS.items():
        runs = curves_of(log.rows, dataset)
        if dataset == "mnist":
            left = [change_of(curve[-1], curve[1]) for _, curve in runs]
            yield curve_part(f"{name}: left after epoch 2", 0.01, left, runs)
        # Of four falls from an epoch to the next: each interval has a quarter of the error.
        falls = [
            max(change_of(*step, 1 - 0.05 / (LENGTH - 1)) for step in itertools.pairwise(curve))
            for _, curve in runs
        ]
        yield curve_part(f"{name}: largest fall", 0.01, falls, runs)
        # The final weights on as many training images as validation images. An epoch's own training
        # accuracy is no measure: its weights were still to be learned.
        tested, gaps = [], []
        for row, curve in runs:
            metrics = row["metrics"]
            if (train_acc := number(metrics, "train_acc")) is not None:
                images = int(min(metrics["n_train"], metrics["n_val"]))
                gaps.append(change_of((round(train_acc * images), images), curve[-1]))
                tested.append((row, curve))
        part = curve_part(f"{name}: overfitting", 0.02, gaps, tested)
        if runs and not tested:
            again = "these runs were not tested on training images: --force trains them again"
            part = replace(part, note=again)
        yield part
    (length,) = contrasts(log, "epochs", BEATS, ["fashion"])
    yield replace(length, subject="FashionMNIST: 5 minus 3 epochs")


def curves_of(log: Sequence[Row], dataset: str) -> list[tuple[Row, Curve]]:
    """The runs of the best ResNet on validation of the study's length, of the study's protocol if
    there is one, each with its curve, where every epoch is there."""
    trained = [
        row
        for row in rows.distinct(rows.latest_ok(log, "train"))
        if (row["config"].get("dataset"), row["config"].get("epochs")) == (dataset, LENGTH)
        and str(row["config"].get("model")).startswith("resnet")
    ]
    own = [row for row in trained if not rows.deviations(row["config"], TRAIN_PROTOCOL)]
    best, epochs, runs = rows.pick_best(own or trained), rows.latest_ok(log, "epoch"), []
    for row in best[0].rows if best else ():
        logged = [epoch["metrics"] for epoch in rows.trajectory(row, epochs)]
        values = [number(metrics, "val_acc") for metrics in logged]
        n_val, n_train = (number(row, "metrics", name) for name in ("n_val", "n_train"))
        whole = [number(metrics, "epoch") for metrics in logged] == list(range(1, LENGTH + 1))
        if whole and None not in values and n_val and n_train:
            runs.append((row, [(round(value * int(n_val)), int(n_val)) for value in values]))
    return runs


def curve_part(
    subject: str, below: float, changes: Iterable[Change], runs: Sequence[tuple[Row, Curve]]
) -> Part:
    """The verdict of a change in the curves: the mean over seeds, of the values and of the ends of
    their intervals over images."""
    effect = None
    if runs:
        values, intervals = zip(*changes, strict=True)
        image = tuple(statistics.fmean(ends) for ends in zip(*intervals, strict=True))
        effect = {
            "estimate": Estimate(statistics.fmean(values), image, stats.sample_spread(values)),
            "seeds": len(runs),
            "images": int(runs[0][0]["metrics"]["n_val"]),
            "basis": f"the ResNet chosen on validation, seeds: {len(runs)}",
            "runs": [row["run_id"] for row, _ in runs],
            "note": join_notes(*(rows.deviations(r["config"], TRAIN_PROTOCOL) for r, _ in runs)),
        }
    return points_part(subject, (-math.inf, below), None, "make q1a", effect)


def change_of(first: tuple[int, int], second: tuple[int, int], confidence: float = 0.95) -> Change:
    """As if on different images, though they are the same: wider than need be."""
    value = first[0] / first[1] - second[0] / second[1]
    return value, stats.newcombe_interval(first, second, confidence)


LEAD = "difference above 0.1 points; a smaller one counts as none"
ENTRIES = {  # what it says: when it holds, and what measures it
    "ResNet-18 is as accurate as ResNet-50 or better, on both data sets": (
        "ResNet-18 minus ResNet-50 is above -0.2 points",
        lambda log: contrasts(log, "model", (-0.002, math.inf)),
    ),
    "On MNIST, SGD is more accurate than Adam": (
        LEAD,
        lambda log: contrasts(log, "opt", BEATS, ["mnist"], best=True),
    ),
    "On FashionMNIST, Adam is more accurate than SGD": (
        LEAD,
        lambda log: contrasts(log, "opt", BEATS, ["fashion"], best=True, swap=True),
    ),
    "Five epochs give 0.3 to 0.5 points more than three": (
        "difference between 0.3 and 0.5 points",
        lambda log: contrasts(log, "epochs", (0.003, 0.005)),
    ),
    "The best models are better at a rate of 0.001 than at 0.0001": (LEAD, best_of_rates),
    "The RBF kernel is more accurate than the polynomial one, on both data sets": (
        LEAD,
        lambda log: contrasts(log, "kernel", BEATS),
    ),
    "The best ResNet leads the best SVM by 2.98 points on MNIST, 5.87 on FashionMNIST": (
        "difference within 0.5 points of the published one",
        best_of_kinds,
    ),
    "A GPU trains ResNet-18 24 to 27 times, ResNet-50 37 to 38 times as fast as a CPU; the deeper "
    "network gains more": ("ratios within these bounds; ratio of ratios above 1", speedups),
    "CPU and GPU end at the same accuracy, within 3 points": (
        "difference between -3 and 3 points",
        device_accuracy,
    ),
    "Adam costs 3 to 5 % more training time than SGD": (
        "ratio of step times between 1.03 and 1.05",
        adam_cost,
    ),
    "On MNIST most is learned in two epochs, FashionMNIST needs all five; accuracy does not "
    "oscillate, and there is little overfitting": (
        "left to gain on MNIST after epoch 2: below 1 point of validation accuracy; FashionMNIST, "
        "5 minus 3 epochs: above 0.1 points; largest fall between epochs: below 1 point; training "
        "minus validation accuracy: below 2 points",
        curves,
    ),
}
CLAIMS = [Claim(n, text, *entry) for n, (text, entry) in enumerate(ENTRIES.items(), 1)]


def judge_claims(log: compare.Evidence) -> list[Result]:
    """Every claim with its parts."""
    return [Result(claim, tuple(claim.parts(log))) for claim in CLAIMS]


def claims_tables(results: Sequence[Result]) -> list[Table]:
    """The verdicts, and the effects that they rest on."""
    judged, parts = [], []
    for r in results:
        same = grouped(r.parts, lambda p: "not measured" if p.effect is None else p.verdict)
        why = "; ".join(f"{k}: {', '.join(p.subject for p in v)}" for k, v in same.items())
        words = {"claim": r.claim.number, "verdict": r.verdict, "reason": why}
        judged.append(vars(r.claim) | words)
        for part in r.parts:
            low, high = part.interval or (None, None)
            values = {"published": part.published, "effect": part.effect, "low": low, "high": high}
            scaled = {k: None if v is None else v * UNITS[part.unit] for k, v in values.items()}
            more = f" and {len(part.runs) - 3} more" if len(part.runs) > 3 else ""
            runs = {"claim": r.claim.number, "runs": ", ".join(part.runs[:3]) + more or None}
            parts.append(vars(part) | scaled | runs)
    return [make_table("claims", judged), make_table("claim_parts", parts)]
