"""What the log says to the study's claims, which are in claims.toml.

An interval wholly where a criterion holds, or wholly where it fails, decides; of accuracy on three
seeds of every setting or more. What surely holds at one level of another factor and surely fails
at another is mixed. The criterion judges every part of a claim."""

import itertools
import math
import statistics
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.base.config import DEVICES
from common.judge import compare, rows, stats, times, verdicts
from common.judge.compare import CONTRASTS, Evidence
from common.judge.published import STUDY_TEST_IMAGES, published
from common.judge.rows import STUDY_DATASETS, TRAIN_PROTOCOL, Row, grouped, join_notes, number
from common.judge.tables import Table, make_table
from common.judge.verdicts import SEEDS, Rule, judge

ENTRIES = tomllib.loads(Path(__file__).with_name("claims.toml").read_text("utf-8"))["claim"]
OPTIMIZERS = ("sgd", "adam")
WORKS = {
    f"{rows.spell('model', model)} with {rows.spell('opt', opt)}": {"model": model, "opt": opt}
    for model, opt in itertools.product(("resnet18", "resnet50"), OPTIMIZERS)
}
NO_TF32 = "fp32 here is without TF32, which --precision tf32 has"
Parts = Iterator["Part"]
LENGTH = 5  # epochs of the study's longer runs; a shorter run cannot speak of learning curves


@dataclass(frozen=True)
class Part:
    """What the log says to one part of a claim; "points" are fractions of accuracy here."""

    subject: str
    unit: str
    published: float | None
    reason: str  # of the verdict, in words
    verdict: str = "not measured"
    effect: float | None = None
    interval: stats.Interval | None = None
    basis: str | None = None
    runs: Sequence[str] = ()
    note: str | None = None
    needs: str | None = None  # what would decide it


@dataclass(frozen=True)
class Claim:
    """A claim of the study in our words, its criterion, and what the log says to its parts."""

    number: int
    text: str
    criterion: str
    parts: tuple[Part, ...]

    @property
    def verdict(self) -> str:
        """Supported only if all of its parts are; contradicted, or else mixed, if one is."""
        each = {part.verdict for part in self.parts}
        if len(each) == 1:
            return each.pop()
        return next((v for v in ("contradicted", "mixed") if v in each), "inconclusive")


def points_part(subject: str, rule: Rule, figure, command: str, basis: str, effect: Row) -> Part:
    """A part on accuracies, from an effect as of measure_effect, or {}; `command` measures more."""
    if "estimate" not in effect:
        return Part(subject, "points", figure, f"not measured: {command}", needs=command)
    estimate, seeds = effect["estimate"], effect["seeds"]
    value, interval = estimate.value, estimate.interval()
    verdict, why, needs = judge(rule, interval), "", None
    apart = verdicts.dependence(rule, effect.get("levels", {}))
    if verdict == "contradicted":
        apart = {text: True for text, surely in apart.items() if surely}  # noise excuses no claim
    if seeds < SEEDS:
        flag = "ARGS='--seed 0 1 2'" if command.startswith("make ") else "--seed 0 1 2"
        why, needs = effect["few"], f"three seeds of each setting: {command} {flag}"
        verdict = "inconclusive"
    elif verdict == "inconclusive":
        why = needs = verdicts.more_data(rule, estimate, seeds, effect["images"])
    elif apart:
        verdict = "mixed" if any(apart.values()) else "inconclusive"
        needs = None if any(apart.values()) else "more seeds of each setting"
    standing = "" if verdict == "mixed" else verdicts.standing(rule, value, interval)
    if seeds < SEEDS and standing.startswith("criterion"):
        standing += " so far, but not counted"
    reason = join_notes(standing, why, *apart, *effect.get("setups", ()), *effect.get("more", ()))
    reason = join_notes(reason, verdicts.own_miss(rule, figure))
    if "pairs" in effect:
        basis += "; pairs: {pairs}, seeds: {seeds}, trainings: {trajectories}".format(**effect)
    measured = verdict, value, interval, basis, effect["runs"], effect.get("caveat"), needs
    return Part(subject, "points", figure, reason, *measured)


def published_gap(dataset: str, contrast: compare.Contrast) -> float:
    """The published difference: the mean of pairs; of optimisers and rates, of the best of each."""
    factor, gaps = contrast.factor, []
    figures = published("q1b" if factor == "kernel" else "q1a", dataset=dataset)
    others = [name for name in rows.TRAIN_FACTORS if factor not in ("opt", "lr", name)]
    for same in grouped(figures, lambda figure: tuple(map(figure.get, others))).values():
        sides = [[f["test_acc"] for f in same if f[factor] == level] for level in contrast.levels]
        gaps += [max(sides[0]) - max(sides[1])] if all(sides) else []
    return statistics.fmean(gaps)


def contrasts(log: Evidence, factor: str, rule: Rule, datasets=STUDY_DATASETS, swap=False) -> Parts:
    """A predeclared contrast on each data set; `swap`: the other way round."""
    contrast = next(c for c in CONTRASTS if c.factor == factor)
    if swap:
        contrast = replace(contrast, levels=contrast.levels[::-1])
    for dataset in datasets:
        effect = contrast.measure(log, dataset)
        basis = str(contrast) + (effect["tuned"] or ", all else equal")
        if effect["averaged"]:
            basis += f" (averaged: {100 * effect['averaged']['difference']:+.2f} points)"
        basis += " (published: the best of each, of other length)" if factor == "opt" else ""
        figure, name = published_gap(dataset, contrast), STUDY_DATASETS[dataset]
        effect = effect | {"more": contrast.reversals(log, dataset)}
        yield points_part(name, rule, figure, contrast.command, basis, effect)


def best_of_rates(log: Evidence, rule: Rule) -> Parts:
    """The best of each learning rate, which may differ in the other factors."""
    contrast = next(c for c in CONTRASTS if c.factor == "lr")
    basis = "best of 0.001 minus best of 0.0001, each chosen on validation"
    for dataset, name in STUDY_DATASETS.items():
        groups = [g for (g,) in compare.main_recipe((g,) for g in log.of(dataset, "train"))]
        rates = ([g for g in groups if g.config.get("lr") == rate] for rate in contrast.levels)
        best, every = tuple(map(rows.best_of, rates)), contrast.measure(log, dataset)
        effect = compare.measure_effect([best] if all(best) else []) | {"levels": every["levels"]}
        if "difference" in every:
            alone = "of the best configurations only, over all matched pairs it is"
            effect["more"] = [f"{alone} {100 * every['difference']:+.2f} points"]
        yield points_part(name, rule, published_gap(dataset, contrast), "make q1a", basis, effect)


def best_of_kinds(log: Evidence, within: float) -> Parts:
    """The best ResNet beside the best SVM."""
    basis = "best ResNet minus best SVM, each chosen on validation"
    for dataset, name in STUDY_DATASETS.items():
        figures = (published(part, dataset=dataset) for part in ("q1a", "q1b"))
        network, svm = (max(figure["test_acc"] for figure in part) for part in figures)
        rule = (network - svm - within, network - svm + within)
        effect = compare.measure_effect(compare.best_pairs(log, dataset))
        yield points_part(name, rule, network - svm, "make q1a q1b", basis, effect)


def device_accuracy(log: Evidence, rule: Rule) -> Parts:
    """GPU minus CPU, of epochs and of trainings; where one is begun, a missing part is open."""
    epochs, trainings = [], []
    command = "python hw_bench.py --preset q2 --device cpu cuda --full-epoch"
    for subject, work in WORKS.items():
        cpu, gpu = (figure["test_acc"] for figure in published("q2", **work))
        done = times.study_rows(log.rows, **work, split="study")
        tested = [row for row in done if number(row, "metrics", "test_acc") is not None]
        sides, effect = [times.seeds_of(side) for side in times.sides(tested)[::-1]], {}
        if all(sides):
            accuracies = ([row["metrics"]["test_acc"] for row in side] for side in sides)
            # Without predictions as if on different images: wider than need be.
            estimate = stats.difference_of(*accuracies, (STUDY_TEST_IMAGES,) * 2)
            effect = compare.effect_of(estimate, STUDY_TEST_IMAGES, sides)
        basis = "GPU minus CPU, one epoch"
        epochs.append(points_part(subject, rule, gpu - cpu, command, basis, effect))
    command = "python train.py --preset q1a --device cpu cuda"
    kinds = [kind for kind in DEVICES if kind not in ("auto", "cpu")]
    beside = [compare.Contrast("train", "device", (kind, "cpu"), command) for kind in kinds]
    for dataset, name in STUDY_DATASETS.items():
        pairs = [pair for contrast in beside for pair in contrast.pairs(log, dataset)]
        effect = compare.measure_effect(pairs)
        found = dict.fromkeys(accelerator.config["device"] for accelerator, _ in pairs)
        basis = f"{' and '.join(found) or 'cuda'} minus cpu, all else equal"
        trainings.append(points_part(name, rule, None, command, basis, effect))
    begun = [parts for parts in (epochs, trainings) if any(p.effect is not None for p in parts)]
    return itertools.chain(*begun) if begun else iter(epochs)


def ratio_part(subject: str, rule: Rule, figure: float, basis: str, runs, effect, *notes) -> Part:
    """A part on times, from a ratio and its interval."""
    verdict = judge(rule, effect[1])
    few = "too few timed steps to decide" if verdict == "inconclusive" else ""
    needs = f"{few}: make q2 ARGS='--steps 200'" if few else None
    own = verdicts.own_miss(rule, figure)
    reason = join_notes(verdicts.standing(rule, *effect), few, *notes, own)
    return Part(subject, "times", figure, reason, verdict, *effect, basis, runs, needs=needs)


def times_part(subject: str, rule: Rule, figure: float, missing: str, *pair: Row | None) -> Part:
    """How many times as long one row's steps take as the other's, or what is `missing`."""
    if not all(pair) or not (effect := times.time_ratio(*pair)):
        return Part(subject, "times", figure, missing, needs=missing.split(": ", 1)[1])
    labels = (rows.get(row, "metrics", "label") or rows.get(row, "env", "device") for row in pair)
    basis, runs = f"step time of {' over '.join(labels)}", tuple(row["run_id"] for row in pair)
    fp32 = any(row["config"].get("precision") == "fp32" for row in times.sides(pair)[1])
    notes = "noise between processes is not in the interval", NO_TF32 if fp32 else ""
    notes += tuple(map(rows.busy_note, pair))
    return ratio_part(subject, rule, figure, basis, runs, effect, *notes)


def speedups(log: Evidence, **rules: Rule) -> Parts:
    """Of each network and optimiser, then the deeper network's over the other's."""
    missing, parts = f"not measured: {times.COMMAND}", {}
    for subject, work in WORKS.items():
        cpu, gpu = (figure["train_ms"] for figure in published("q2", **work))
        sides = map(times.representative, times.sides(times.study_rows(log.rows, **work)))
        part = times_part(subject, rules[work["model"]], cpu / gpu, missing, *sides)
        parts[work["opt"], work["model"]] = part
    yield from parts.values()
    for opt in OPTIMIZERS:
        deep, shallow = parts[opt, "resnet50"], parts[opt, "resnet18"]
        if deep.interval and shallow.interval:
            widths = (math.log(p.interval[1] / p.interval[0]) / 2 for p in (deep, shallow))
            half, ratio = math.exp(math.hypot(*widths)), deep.effect / shallow.effect
            subject = f"ResNet-50 over ResNet-18 with {rows.spell('opt', opt)}"
            figure, runs = deep.published / shallow.published, (*deep.runs, *shallow.runs)
            effect, basis = (ratio, (ratio / half, ratio * half)), "ratio of the speed-ups above"
            yield ratio_part(subject, (1.0, math.inf), figure, basis, runs, effect)


def adam_cost(log: Evidence, rule: Rule) -> Parts:
    """Adam's step over SGD's only where they took turns: a machine drifts by as much."""
    for model in dict.fromkeys(work["model"] for work in WORKS.values()):
        both = (times.study_rows(log.rows, model=model, opt=opt) for opt in OPTIMIZERS)
        for device, sgds, adams in zip(("cpu", "gpu"), *map(times.sides, both), strict=True):
            turns = [
                (sgd, adam)
                for sgd, adam in itertools.product(sgds, adams)
                if adam["config"] == sgd["config"] | {"opt": "adam"} and times.rounds_of(sgd, adam)
            ]
            sgd, adam = min(turns, key=lambda pair: times.plainness(pair[0]), default=(None, None))
            sgd_ms, adam_ms = (f["train_ms"] for f in published("q2", model=model, device=device))
            why = "steps of both did not take turns" if sgds and adams else "not measured"
            missing = f"{why}: {'make q2' if device == 'cpu' else times.COMMAND}"
            subject = f"{rows.spell('model', model)} on a {device.upper()}"
            yield times_part(subject, rule, adam_ms / sgd_ms, missing, adam, sgd)


def curves(log: Evidence, left: float, gain: Rule, fall: float, overfitting: float) -> Parts:
    """What is left to learn, the largest fall and the overfitting; then the need of five epochs."""
    again = "these runs were not tested on training images: make q1a ARGS=--force"
    for dataset, name in STUDY_DATASETS.items():
        runs = curves_of(log.rows, dataset)
        if dataset == "mnist":
            yield curve_part(f"{name}: left after epoch 2", left, runs, "left")
        yield curve_part(f"{name}: largest fall", fall, runs, "fall")
        part = curve_part(f"{name}: overfitting", overfitting, runs, "overfitting")
        yield replace(part, reason=again, needs=again) if runs and part.effect is None else part
    (length,) = contrasts(log, "epochs", gain, ["fashion"])
    yield replace(length, subject="FashionMNIST: 5 minus 3 epochs")


def curves_of(log: Sequence[Row], dataset: str) -> list[Row]:
    """The chosen ResNet's runs with all their epochs, and the changes in each curve."""
    work, done = {"dataset": dataset, "epochs": LENGTH}, rows.distinct(rows.latest_ok(log, "train"))
    trained = [row for row in done if work.items() <= row["config"].items()]
    trained = [row for row in trained if str(row["config"].get("model")).startswith("resnet")]
    own = [row for row in trained if not rows.deviations(row["config"], TRAIN_PROTOCOL)]
    best, epochs, runs = rows.pick_best(own or trained), rows.latest_ok(log, "epoch"), []
    for row in best[0].rows if best else ():
        logged = [epoch["metrics"] for epoch in rows.trajectory(row, epochs)]
        values = {number(metrics, "epoch"): number(metrics, "val_acc") for metrics in logged}
        sizes = [number(row, "metrics", name) for name in ("n_val", "n_train")]
        if [*values] != [*range(1, LENGTH + 1)] or None in values.values() or not all(sizes):
            continue
        n_val, images = int(sizes[0]), int(min(sizes))
        curve = [(round(value * n_val), n_val) for value in values.values()]
        # Of four falls from an epoch to the next: each interval has a quarter of the error.
        falls = (change_of(*step, 1 - 0.05 / (LENGTH - 1)) for step in itertools.pairwise(curve))
        run = row | {"left": change_of(curve[-1], curve[1]), "fall": max(falls)}
        # The final weights on as many training images as validation images. An epoch's own training
        # accuracy is no measure: its weights were still to be learned.
        if (train_acc := number(row, "metrics", "train_acc")) is not None:
            run["overfitting"] = change_of((round(train_acc * images), images), curve[-1])
        runs.append(run)
    return runs


def change_of(first: tuple[int, int], second: tuple[int, int], confidence: float = 0.95):
    """A difference of accuracies, its interval as if on different images: wider than need be."""
    value = first[0] / first[1] - second[0] / second[1]
    return value, stats.newcombe_interval(first, second, confidence)


def curve_part(subject: str, below: float, runs: Sequence[Row], name: str) -> Part:
    """On a change in the curves: the means over seeds, of values and of ends over images."""
    runs, effect = [run for run in runs if name in run], {}
    if runs:
        values, intervals = zip(*(run[name] for run in runs), strict=True)
        image = tuple(statistics.fmean(ends) for ends in zip(*intervals, strict=True))
        estimate = stats.Estimate(statistics.fmean(values), image, stats.sample_spread(values))
        effect = compare.effect_of(estimate, int(runs[0]["metrics"]["n_val"]), [runs])
        effect["setups"] = [rows.deviations(run["config"], TRAIN_PROTOCOL) for run in runs]
    basis = f"the ResNet chosen on validation, seeds: {len(runs)}"
    return points_part(subject, (-math.inf, below), None, "make q1a", basis, effect)


def judge_claims(log: Evidence) -> list[Claim]:
    """Every claim with its parts."""
    known = contrasts, best_of_rates, best_of_kinds, speedups, device_accuracy, adam_cost, curves
    measures = {measure.__name__: measure for measure in known}
    return [
        Claim(n, c["text"], c["criterion"], tuple(measures[c["measure"]](log, **c["settings"])))
        for n, c in enumerate(ENTRIES, 1)
    ]


def claims_tables(claims: Sequence[Claim], reasons: Sequence[str]) -> list[Table]:
    """The verdicts with their reasons in words, and the effects that they rest on."""
    judged, parts = [], []
    for claim, reason in zip(claims, reasons, strict=True):
        names = {"claim": claim.number, "verdict": claim.verdict, "reason": reason}
        judged.append(vars(claim) | names)
        for part in claim.parts:
            ends = zip(("low", "high"), part.interval or (None, None), strict=True)
            values = {"published": part.published, "effect": part.effect} | dict(ends)
            size = 100 if part.unit == "points" else 1
            record = vars(part) | {name: value and value * size for name, value in values.items()}
            more = f" and {len(part.runs) - 3} more" if len(part.runs) > 3 else ""
            record |= {"claim": claim.number, "runs": ", ".join(part.runs[:3]) + more or None}
            parts.append(record | {"note": join_notes(part.reason, part.note)})
    return [make_table("claims", judged), make_table("claim_parts", parts)]
