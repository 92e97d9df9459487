"""The study's claims, an entry each in ENTRIES: what it says, when it holds, and what measures it.

Each rule was fixed before any row was read. An interval wholly where it holds, or wholly where it
fails, decides; of accuracy on three seeds of every setting or more. What surely holds at one level
of another factor and surely fails at another is mixed. The rule judges every part of a claim."""

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from common.base.config import DEVICES
from common.judge import compare, rows, stats, times, verdicts
from common.judge.compare import CONTRASTS, Evidence
from common.judge.published import STUDY_TEST_IMAGES, published
from common.judge.rows import STUDY_DATASETS, TRAIN_PROTOCOL, Row, grouped, join_notes, number
from common.judge.tables import Table, make_table
from common.judge.verdicts import BEATS, SEEDS, Rule, judge

NAMES = {"resnet18": "ResNet-18", "resnet50": "ResNet-50"}
OPTIMIZERS = ("sgd", "adam")
WORKS = {
    f"{name} with {rows.spell('opt', opt)}": {"model": model, "opt": opt}
    for (model, name), opt in itertools.product(NAMES.items(), OPTIMIZERS)
}
TOO_FEW = "too few timed steps to decide"
NO_TF32 = "fp32 here is without TF32, which --precision tf32 has"
Parts = Iterator["Part"]
LENGTH = 5  # epochs of the study's longer runs; a shorter run cannot speak of learning curves


@dataclass(frozen=True)
class Part:
    """What the log says to one part of a claim; "points" are fractions of accuracy here."""

    subject: str
    unit: str
    published: float | None
    verdict: str = "not measured"
    effect: float | None = None
    interval: stats.Interval | None = None
    basis: str | None = None
    runs: Sequence[str] = ()
    note: str | None = None
    needs: str | None = None  # what would decide it


@dataclass(frozen=True)
class Claim:
    """A claim of the study in our words, its rule in words, and what the log says to its parts."""

    number: int
    text: str
    criterion: str
    parts: tuple[Part, ...]

    @property
    def verdict(self) -> str:
        """Supported only if all of its parts are; contradicted, or else mixed, if one is."""
        each = {part.verdict for part in self.parts}
        if each == {"supported"}:
            return "supported"
        if each == {"not measured"}:
            return "not measured"
        return next((v for v in ("contradicted", "mixed") if v in each), "inconclusive")


def points_part(subject: str, rule: Rule, figure, command: str, basis: str, effect: Row) -> Part:
    """A part on accuracies, from an effect as of measure_effect, or {}; `command` measures more."""
    if "estimate" not in effect:
        return Part(subject, "points", figure, note=f"not measured: {command}", needs=command)
    estimate, seeds = effect["estimate"], effect["seeds"]
    interval = estimate.interval()
    verdict, why = judge(rule, interval), ""
    apart = verdicts.dependence(rule, effect.get("levels", {}))
    if verdict == "contradicted":
        apart = {text: True for text, surely in apart.items() if surely}  # noise excuses no claim
    if seeds < SEEDS:
        flag = "ARGS='--seed 0 1 2'" if command.startswith("make ") else "--seed 0 1 2"
        verdict, why = "inconclusive", f"three seeds of each setting: {command} {flag}"
    elif verdict == "inconclusive":
        why = verdicts.more_data(rule, estimate, seeds, effect["images"])
    elif apart:
        verdict = "mixed" if any(apart.values()) else "inconclusive"
    leaning = judge(rule, (estimate.value, estimate.value))
    leans = f"leans to {leaning}" if verdict == "inconclusive" != leaning else ""
    note = join_notes(leans, why, *apart, effect.get("note"))
    if "pairs" in effect:
        basis += "; pairs: {pairs}, seeds: {seeds}, trainings: {trajectories}".format(**effect)
    value, runs = estimate.value, effect["runs"]
    needs = why or ("more seeds of each setting" if verdict == "inconclusive" else None)
    return Part(subject, "points", figure, verdict, value, interval, basis, runs, note, needs)


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
        yield points_part(name, rule, figure, contrast.command, basis, effect)


def best_of_rates(log: Evidence) -> Parts:
    """The best of each learning rate, which may differ in the other factors."""
    contrast = next(c for c in CONTRASTS if c.factor == "lr")
    basis = "best of 0.001 minus best of 0.0001, each chosen on validation"
    for dataset, name in STUDY_DATASETS.items():
        groups = [g for (g,) in compare.main_recipe((g,) for g in log.of(dataset, "train"))]
        rates = ([g for g in groups if g.config.get("lr") == rate] for rate in contrast.levels)
        best, levels = tuple(map(rows.best_of, rates)), contrast.measure(log, dataset)["levels"]
        effect = compare.measure_effect([best] if all(best) else []) | {"levels": levels}
        yield points_part(name, BEATS, published_gap(dataset, contrast), "make q1a", basis, effect)


def best_of_kinds(log: Evidence) -> Parts:
    """The best ResNet beside the best SVM."""
    basis = "best ResNet minus best SVM, each chosen on validation"
    for dataset, name in STUDY_DATASETS.items():
        figures = (published(part, dataset=dataset) for part in ("q1a", "q1b"))
        network, svm = (max(figure["test_acc"] for figure in part) for part in figures)
        rule = (network - svm - 0.005, network - svm + 0.005)
        effect = compare.measure_effect(compare.best_pairs(log, dataset))
        yield points_part(name, rule, network - svm, "make q1a q1b", basis, effect)


def device_accuracy(log: Evidence) -> list[Part]:
    """GPU minus CPU, of epochs and of trainings; where one is begun, a missing part is open."""
    rule, images = (-0.03, 0.03), STUDY_TEST_IMAGES
    epochs, trainings = [], []
    command = "python hw_bench.py --preset q2 --device cpu cuda --full-epoch"
    for subject, work in WORKS.items():
        cpu, gpu = (figure["test_acc"] for figure in published("q2", **work))
        done = times.study_rows(log.rows, **work, split="study")
        tested = [row for row in done if number(row, "metrics", "test_acc") is not None]
        sides, effect = [times.seeds_of(side) for side in times.sides(tested)], {}
        if all(sides):
            accuracies = ([row["metrics"]["test_acc"] for row in side] for side in sides[::-1])
            # Without predictions as if on different images: wider than need be.
            estimate = stats.difference_of(*accuracies, (images, images))
            effect = {"estimate": estimate, "seeds": min(map(len, sides)), "images": images}
            effect["runs"] = [row["run_id"] for side in sides for row in side]
        basis = "GPU minus CPU, one epoch"
        epochs.append(points_part(subject, rule, gpu - cpu, command, basis, effect))
    command = "python train.py --preset q1a --device cpu cuda"
    kinds = [kind for kind in DEVICES if kind not in ("auto", "cpu")]
    contrasts = [compare.Contrast("train", "device", (kind, "cpu"), command) for kind in kinds]
    for dataset, name in STUDY_DATASETS.items():
        pairs = [pair for contrast in contrasts for pair in contrast.pairs(log, dataset)]
        effect = compare.measure_effect(pairs)
        found = dict.fromkeys(accelerator.config["device"] for accelerator, _ in pairs)
        basis = f"{' and '.join(found) or 'cuda'} minus cpu, all else equal"
        trainings.append(points_part(name, rule, None, command, basis, effect))
    begun = [parts for parts in (epochs, trainings) if any(p.effect is not None for p in parts)]
    return list(itertools.chain(*begun)) or epochs


def times_part(subject: str, rule: Rule, figure: float, missing: str, *pair: Row | None) -> Part:
    """How many times as long one row's steps take as the other's, or what is `missing`."""
    if not all(pair) or not (measured := times.time_ratio(*pair)):
        return Part(subject, "times", figure, note=missing, needs=missing.split(": ", 1)[1])
    ratio, interval = measured
    verdict, runs = judge(rule, interval), tuple(row["run_id"] for row in pair)
    labels = (rows.get(row, "metrics", "label") or rows.get(row, "env", "device") for row in pair)
    basis = f"step time of {' over '.join(labels)}"
    why, loads = TOO_FEW if verdict == "inconclusive" else None, map(rows.busy_note, pair)
    fp32 = any(row["config"].get("precision") == "fp32" for row in times.sides(pair)[1])
    noise = "noise between processes is not in the interval"
    note = join_notes(why, noise, NO_TF32 if fp32 else None, *loads)
    return Part(subject, "times", figure, verdict, ratio, interval, basis, runs, note, why)


def speedups(log: Evidence) -> Parts:
    """Of each network and optimiser, then the deeper network's over the other's."""
    rules = {"resnet18": (24.0, 27.0), "resnet50": (37.0, 38.0)}
    missing, parts = f"not measured: {times.COMMAND}", {}
    for subject, work in WORKS.items():
        cpu, gpu = (figure["train_ms"] for figure in published("q2", **work))
        sides = map(times.representative, times.sides(times.study_rows(log.rows, **work)))
        parts[subject] = times_part(subject, rules[work["model"]], cpu / gpu, missing, *sides)
    yield from parts.values()
    for opt in (rows.spell("opt", opt) for opt in OPTIMIZERS):
        deep, shallow = (parts[f"{name} with {opt}"] for name in ("ResNet-50", "ResNet-18"))
        if deep.interval and shallow.interval:
            widths = (math.log(p.interval[1] / p.interval[0]) / 2 for p in (deep, shallow))
            half, ratio = math.exp(math.hypot(*widths)), deep.effect / shallow.effect
            interval, runs = (ratio / half, ratio * half), (*deep.runs, *shallow.runs)
            verdict, basis = judge((1.0, math.inf), interval), "ratio of the speed-ups above"
            subject = f"ResNet-50 over ResNet-18 with {opt}"
            note = TOO_FEW if verdict == "inconclusive" else None
            figure = deep.published / shallow.published
            yield Part(subject, "times", figure, verdict, ratio, interval, basis, runs, note, note)


def adam_cost(log: Evidence) -> Parts:
    """Adam's step over SGD's only where they took turns: a machine drifts by as much."""
    for model, name in NAMES.items():
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
            subject, figure = f"{name} on a {device.upper()}", adam_ms / sgd_ms
            yield times_part(subject, (1.03, 1.05), figure, missing, adam, sgd)


def curves(log: Evidence) -> Parts:
    """What is left to learn, the largest fall and the overfitting; then the need of five epochs."""
    again = "these runs were not tested on training images: make q1a ARGS=--force"
    for dataset, name in STUDY_DATASETS.items():
        runs = curves_of(log.rows, dataset)
        if dataset == "mnist":
            yield curve_part(f"{name}: left after epoch 2", 0.01, runs, "left")
        yield curve_part(f"{name}: largest fall", 0.01, runs, "fall")
        part = curve_part(f"{name}: overfitting", 0.02, runs, "overfitting")
        yield replace(part, note=again, needs=again) if runs and part.effect is None else part
    (length,) = contrasts(log, "epochs", BEATS, ["fashion"])
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
        spread, images = stats.sample_spread(values), int(runs[0]["metrics"]["n_val"])
        estimate = stats.Estimate(statistics.fmean(values), image, spread)
        other = [rows.deviations(run["config"], TRAIN_PROTOCOL) for run in runs]
        effect = {"estimate": estimate, "seeds": len(runs), "images": images}
        effect |= {"runs": [run["run_id"] for run in runs], "note": join_notes(*other)}
    basis = f"the ResNet chosen on validation, seeds: {len(runs)}"
    return points_part(subject, (-math.inf, below), None, "make q1a", basis, effect)


LEAD = "difference above 0.1 points; a smaller one counts as none"
ENTRIES = {  # what it says: when it holds, and what measures it
    "ResNet-18 is as accurate as ResNet-50 or better, on both data sets": (
        "ResNet-18 minus ResNet-50 is above -0.2 points",
        lambda log: contrasts(log, "model", (-0.002, math.inf)),
    ),
    "On MNIST, SGD is more accurate than Adam": (
        LEAD,
        lambda log: contrasts(log, "opt", BEATS, ["mnist"]),
    ),
    "On FashionMNIST, Adam is more accurate than SGD": (
        LEAD,
        lambda log: contrasts(log, "opt", BEATS, ["fashion"], swap=True),
    ),
    "Five epochs give 0.3 to 0.5 points more than three": (
        "difference between 0.3 and 0.5 points",
        lambda log: contrasts(log, "epochs", (0.003, 0.005)),
    ),
    "The best models are better at a learning rate of 0.001 than at 0.0001": (LEAD, best_of_rates),
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


def judge_claims(log: Evidence) -> list[Claim]:
    """Every claim with its parts."""
    entries = enumerate(ENTRIES.items(), 1)
    return [Claim(n, text, rule, tuple(measure(log))) for n, (text, (rule, measure)) in entries]


def claims_tables(claims: Sequence[Claim]) -> list[Table]:
    """The verdicts, and the effects that they rest on."""
    judged, parts = [], []
    for claim in claims:
        same = grouped(claim.parts, lambda part: part.verdict)
        why = "; ".join(f"{k}: {', '.join(p.subject for p in v)}" for k, v in same.items())
        names = {"claim": claim.number, "verdict": claim.verdict, "reason": why}
        judged.append(vars(claim) | names)
        for part in claim.parts:
            low, high = part.interval or (None, None)
            values = {"published": part.published, "effect": part.effect, "low": low, "high": high}
            size = 100 if part.unit == "points" else 1
            scaled = {name: value and value * size for name, value in values.items()}
            more = f" and {len(part.runs) - 3} more" if len(part.runs) > 3 else ""
            runs = {"claim": claim.number, "runs": ", ".join(part.runs[:3]) + more or None}
            parts.append(vars(part) | scaled | runs)
    return [make_table("claims", judged), make_table("claim_parts", parts)]
