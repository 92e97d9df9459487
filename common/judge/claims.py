"""What the log says to the study's claims, which are in claims.toml, part by part; docs/METHOD.md
has what decides one."""

import itertools
import math
import statistics
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.base.config import DEVICES
from common.judge import compare, rows, stats
from common.judge import published as study
from common.judge.compare import CONTRASTS, Evidence
from common.judge.published import STUDY_TEST_IMAGES, published
from common.judge.rows import STUDY_DATASETS, TRAIN_PROTOCOL, Row, grouped, join_notes, number
from common.judge.stats import SEEDS, Rule, judge
from common.judge.tables import Table, make_table

ENTRIES = tomllib.loads(Path(__file__).with_name("claims.toml").read_text("utf-8"))["claim"]
OPTIMIZERS = ("sgd", "adam")
WORKS = {
    f"{rows.spell('model', model)} with {rows.spell('opt', opt)}": {"model": model, "opt": opt}
    for model, opt in itertools.product(("resnet18", "resnet50"), OPTIMIZERS)
}
MEETS = {"supported": "meets", "contradicted": "misses", "inconclusive": "is at the edge of"}
REACHES = {"supported": "beyond", "contradicted": "into", "inconclusive": "across"}
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


def judged_part(
    subject: str, rule: Rule, figure, command: str, basis: str, effect: Row, unit="points"
) -> Part:
    """A part from an effect, as of measure_effect; without an estimate `command` measures it."""
    if "estimate" not in effect:
        why = effect.get("why", "not measured")
        return Part(subject, unit, figure, f"{why}: {command}", needs=command)
    estimate, seeds = effect["estimate"], effect.get("seeds", SEEDS)
    value, interval = estimate.value, estimate.interval()
    verdict, why, needs = judge(rule, interval), "", None
    apart = compare.dependence(rule, effect.get("levels", {}))
    if verdict == "contradicted":
        apart = {text: True for text, surely in apart.items() if surely}  # noise excuses no claim
    if seeds < SEEDS:
        flag = "ARGS='--seed 0 1 2'" if command.startswith("make ") else "--seed 0 1 2"
        why, needs = effect["few"], f"three seeds of each setting: {command} {flag}"
        verdict = "inconclusive"
    elif verdict == "inconclusive" and unit == "times":
        why = "too few timed steps to decide"
        needs = f"{why}: make q2 ARGS='--steps 200'"
    elif verdict == "inconclusive":
        why = needs = stats.more_data(rule, estimate, seeds, effect["images"])
    elif apart:
        verdict = "mixed" if any(apart.values()) else "inconclusive"
        needs = None if any(apart.values()) else "more seeds of each setting"
    stands = "" if verdict == "mixed" else standing(rule, value, interval)
    missed = figure is not None and judge(rule, (figure, figure)) == "contradicted"
    more = [*effect.get("setups", ()), *effect.get("more", ())]
    more += ["the study's own figure misses its criterion"] if missed else []
    reason = join_notes(stands, why, *apart, *more)
    if "pairs" in effect:
        basis += "; pairs: {pairs}, seeds: {seeds}, trainings: {trajectories}".format(**effect)
    measured = verdict, value, interval, basis, effect["runs"], effect.get("caveat"), needs
    return Part(subject, unit, figure, reason, *measured)


def standing(rule: Rule, value: float, interval: stats.Interval) -> str:
    """How an effect stands to a rule, in words; it leans to where its interval's middle half is."""
    if (decided := judge(rule, interval)) != "inconclusive":
        return f"the whole interval {MEETS[decided]} the criterion"
    leaning = judge(rule, tuple((value + end) / 2 for end in interval))
    if leaning != "inconclusive":
        return f"leans to {leaning}"
    side = judge(rule, (value, value))
    return f"the estimate {MEETS[side]} the criterion, the interval reaches {REACHES[side]} it"


def published_gap(dataset: str, contrast: compare.Contrast) -> float:
    """The published difference: the mean of pairs; of optimisers and rates, of the best of each."""
    factor, gaps = contrast.factor, []
    figures = published("q1b" if factor == "kernel" else "q1a", dataset=dataset)
    others = [name for name in rows.PROTOCOLS["train"][1] if factor not in ("opt", "lr", name)]
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
        basis = str(contrast) + (effect["how"] or ", all else equal")
        if effect["averaged"]:
            basis += f" (averaged: {100 * effect['averaged']['difference']:+.2f} points)"
        basis += " (published: the best of each, of other length)" if factor == "opt" else ""
        figure, name = published_gap(dataset, contrast), STUDY_DATASETS[dataset]
        effect = effect | {"more": contrast.reversals(log, dataset)}
        yield judged_part(name, rule, figure, contrast.command, basis, effect)


def best_of_rates(log: Evidence, rule: Rule, basis: str) -> Parts:
    """The best of each learning rate, which may differ in the other factors."""
    contrast = next(c for c in CONTRASTS if c.factor == "lr")
    for dataset, name in STUDY_DATASETS.items():
        groups = compare.main_recipe(log.of(dataset, "train"))
        rates = ([g for g in groups if g.config.get("lr") == rate] for rate in contrast.levels)
        best, every = tuple(map(rows.best_of, rates)), contrast.measure(log, dataset)
        effect = compare.measure_effect([best] if all(best) else []) | {"levels": every["levels"]}
        if "difference" in every:
            alone = "of the best configurations only, over all matched pairs it is"
            effect["more"] = [f"{alone} {100 * every['difference']:+.2f} points"]
        yield judged_part(name, rule, published_gap(dataset, contrast), "make q1a", basis, effect)


def best_of_kinds(log: Evidence, within: float, basis: str) -> Parts:
    """The best ResNet beside the best SVM."""
    for dataset, name in STUDY_DATASETS.items():
        figures = (published(part, dataset=dataset) for part in ("q1a", "q1b"))
        network, svm = (max(figure["test_acc"] for figure in part) for part in figures)
        rule = (network - svm - within, network - svm + within)
        effect = compare.measure_effect(compare.best_pairs(log, dataset))
        yield judged_part(name, rule, network - svm, "make q1a q1b", basis, effect)


def device_accuracy(log: Evidence, rule: Rule, epoch: str, training: str) -> Parts:
    """GPU minus CPU, of epochs and of trainings, by their commands; where one is begun, a missing
    part is open."""
    epochs, trainings = [], []
    for subject, work in WORKS.items():
        cpu, gpu = (figure["test_acc"] for figure in published("q2", **work))
        done = study.study_rows(log.rows, **work, split="study")
        tested = [row for row in done if number(row, "metrics", "test_acc") is not None]
        sides, effect = [study.seeds_of(side) for side in study.sides(tested)[::-1]], {}
        if all(sides):
            accuracies = ([row["metrics"]["test_acc"] for row in side] for side in sides)
            # Without predictions as if on different images: wider than need be.
            estimate = stats.difference_of(*accuracies, (STUDY_TEST_IMAGES,) * 2)
            effect = compare.effect_of(estimate, STUDY_TEST_IMAGES, sides)
        part = judged_part(subject, rule, gpu - cpu, epoch, "GPU minus CPU, one epoch", effect)
        epochs.append(part)
    kinds = [kind for kind in DEVICES if kind not in ("auto", "cpu")]
    beside = [compare.Contrast("train", "device", (kind, "cpu"), training) for kind in kinds]
    for dataset, name in STUDY_DATASETS.items():
        pairs = [pair for contrast in beside for pair in contrast.pairs(log, dataset)]
        known = dict.fromkeys(accelerator.config["device"] for accelerator, _ in pairs)
        basis = f"{' and '.join(known) or 'cuda'} minus cpu, all else equal"
        effect = compare.measure_effect(pairs)
        trainings.append(judged_part(name, rule, None, training, basis, effect))
    begun = [parts for parts in (epochs, trainings) if any(p.effect is not None for p in parts)]
    return itertools.chain(*begun) if begun else iter(epochs)


def times_part(
    subject: str, rule: Rule, figure: float, command: str, *pair: Row | None, why="not measured"
) -> Part:
    """How many times as long one row's steps take as the other's; `why` that is not known."""
    basis, effect = "", {"why": why}
    if all(pair) and (ratio := study.time_ratio(*pair)):
        labels = [rows.get(r, "metrics", "label") or r["config"]["device"] for r in pair]
        basis = f"step time of {' over '.join(labels)}"
        sides = zip(labels, (rows.get(r, "env", "device") for r in pair), strict=True)
        sides = dict.fromkeys(f"{label} ({device})" for label, device in sides)
        more = [" against ".join(sides), "noise between processes is not in the interval"]
        if any(row["config"].get("precision") == "fp32" for row in study.sides(pair)[1]):
            more.append("fp32 here is without TF32, which --precision tf32 has")
        effect = {"estimate": stats.Estimate(*ratio), "runs": tuple(r["run_id"] for r in pair)}
        effect["more"] = [*more, *map(rows.busy_note, pair)]
    return judged_part(subject, rule, figure, command, basis, effect, unit="times")


def speedups(log: Evidence, **rules: Rule) -> Parts:
    """Of each network and optimiser, then the deeper network's over the other's."""
    parts = {}
    for subject, work in WORKS.items():
        cpu, gpu = (figure["train_ms"] for figure in published("q2", **work))
        sides = study.sides(study.study_rows(log.rows, **work))
        plain = (min(side, key=study.plainness, default=None) for side in sides)
        part = times_part(subject, rules[work["model"]], cpu / gpu, study.COMMAND, *plain)
        parts[work["opt"], work["model"]] = part
    yield from parts.values()
    for opt in OPTIMIZERS:
        deep, shallow = parts[opt, "resnet50"], parts[opt, "resnet18"]
        if deep.interval and shallow.interval:
            widths = (math.log(p.interval[1] / p.interval[0]) / 2 for p in (deep, shallow))
            half, ratio = math.exp(math.hypot(*widths)), deep.effect / shallow.effect
            subject = f"ResNet-50 over ResNet-18 with {rows.spell('opt', opt)}"
            effect = {"estimate": stats.Estimate(ratio, (ratio / half, ratio * half))}
            effect["runs"], figure = deep.runs + shallow.runs, deep.published / shallow.published
            known = figure, study.COMMAND, "ratio of the speed-ups above", effect, "times"
            yield judged_part(subject, (1.0, math.inf), *known)


def adam_cost(log: Evidence, rule: Rule) -> Parts:
    """Adam's step over SGD's only where they took turns: a machine drifts by as much. Of several
    pairs, however their steps were sped up, the surest."""
    for model in dict.fromkeys(work["model"] for work in WORKS.values()):
        both = (study.study_rows(log.rows, model=model, opt=opt) for opt in OPTIMIZERS)
        for device, sgds, adams in zip(("cpu", "gpu"), *map(study.sides, both), strict=True):
            turns = [
                (adam, sgd)
                for sgd, adam in itertools.product(sgds, adams)
                if adam["config"] == sgd["config"] | {"opt": "adam"} and study.rounds_of(sgd, adam)
            ]
            pair = min(
                turns, key=lambda pair: max(map(study.unsureness, pair)), default=(None, None)
            )
            sgd_ms, adam_ms = (f["train_ms"] for f in published("q2", model=model, device=device))
            why = "steps of both did not take turns" if sgds and adams else "not measured"
            command = "make q2" if device == "cpu" else study.COMMAND
            subject = f"{rows.spell('model', model)} on a {device.upper()}"
            yield times_part(subject, rule, adam_ms / sgd_ms, command, *pair, why=why)


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
    """The chosen ResNet's runs with all their epochs, and the changes in each curve; intervals are
    as if on different images: wider than need be."""
    work = {"dataset": dataset, "epochs": LENGTH}.items()
    trained = [row for row in rows.latest_ok(log, "train") if work <= row["config"].items()]
    trained = [row for row in trained if str(row["config"].get("model")).startswith("resnet")]
    own = [row for row in trained if not rows.deviations(row["config"], TRAIN_PROTOCOL)]
    best, epochs, runs = rows.pick_best(own or trained), rows.latest_ok(log, "epoch"), []
    for row in best[0].rows if best else ():
        logged = [epoch["metrics"] for epoch in rows.trajectory(row, epochs)]
        accs = {number(metrics, "epoch"): number(metrics, "val_acc") for metrics in logged}
        sizes = [number(row, "metrics", name) for name in ("n_val", "n_train")]
        if [*accs] != [*range(1, LENGTH + 1)] or None in accs.values() or not all(sizes):
            continue
        val, images = [int(sizes[0])] * 2, [int(min(sizes)), int(sizes[0])]
        # Of four falls from an epoch to the next: each interval has a quarter of the error.
        level, steps = 1 - 0.05 / (LENGTH - 1), itertools.pairwise(accs.values())
        falls = [stats.difference_of([acc], [then], val, level) for acc, then in steps]
        run = row | {"left": stats.difference_of([accs[LENGTH]], [accs[2]], val)}
        run["fall"] = max(falls, key=lambda fall: (fall.value, fall.image))
        # The final weights on as many training images as validation images. An epoch's own training
        # accuracy is no measure: its weights were still to be learned.
        if (train_acc := number(row, "metrics", "train_acc")) is not None:
            run["overfitting"] = stats.difference_of([train_acc], [accs[LENGTH]], images)
        runs.append(run)
    return runs


def curve_part(subject: str, below: float, runs: Sequence[Row], name: str) -> Part:
    """On a change in the curves: the means over seeds, of values and of ends over images."""
    runs, effect = [run for run in runs if name in run], {}
    if runs:
        values = [run[name].value for run in runs]
        image = tuple(map(statistics.fmean, zip(*(run[name].image for run in runs), strict=True)))
        estimate = stats.Estimate(statistics.fmean(values), image, stats.sample_spread(values))
        effect = compare.effect_of(estimate, int(runs[0]["metrics"]["n_val"]), [runs])
        effect["setups"] = [rows.deviations(run["config"], TRAIN_PROTOCOL) for run in runs]
    basis = f"the ResNet chosen on validation, seeds: {len(runs)}"
    return judged_part(subject, (-math.inf, below), None, "make q1a", basis, effect)


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
        names = {"claim": claim.number, "verdict": claim.verdict}
        judged.append(vars(claim) | names | {"reason": reason})
        for part in claim.parts:
            values = dict(zip(("low", "high"), part.interval or (None, None), strict=True))
            values |= {"published": part.published, "effect": part.effect}
            size = 100 if part.unit == "points" else 1
            record = vars(part) | {name: value and value * size for name, value in values.items()}
            more = f" and {len(part.runs) - 3} more" if len(part.runs) > 3 else ""
            record |= {"claim": claim.number, "runs": ", ".join(part.runs[:3]) + more or None}
            parts.append(record | {"note": join_notes(part.reason, part.note)})
    return [make_table("claims", judged), make_table("claim_parts", parts)]
