"""How often the report's intervals hold the truth, and how often its verdicts are wrong.

Trainings whose truth is known are simulated. `noise`: the sd of an accuracy between seeds over that
between sets of images; `uneven`: one side's seeds vary three times as much. How often: `coverage`,
the 95 % interval of a difference holds the truth; `accuracy`, that of a mean; `told apart`, equal
recipes differ significantly; `wrong`, the verdict on "better by 0.1 points" opposes the truth,
at the worst of three. Second table: the power at the number of seeds that an open verdict names,
where 0.80 is aimed at. Third table: intervals of balanced accuracy and macro F1, and other ones.
The last line is JSON.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import ndtr
from scipy.stats import norm
from shared import print_json, print_table

from common.base.cli import Validated, option, parse_command_line, run_script
from common.data import scores
from common.judge import compare, stats
from common.judge.rows import accuracy_record, by_seed
from common.judge.verdicts import BEATS, MARGIN, SEEDS, judge, more_data

MEAN, IMAGE_SD, LUCK_SD = 1.9, 1.25, 0.35  # 92.8 % right; two seeds disagree on 5 % of images
WIDE = float(np.hypot(IMAGE_SD, LUCK_SD))
BASE = float(ndtr(MEAN / WIDE))  # the accuracy of a recipe without a lead
TRUTHS = (0.0, MARGIN, 0.003)  # true differences
DESIGNS = {f"equal {n}, {n}": (range(n), range(n)) for n in (2, 3, 5, 10)}
DESIGNS |= {f"unbalanced {n}, {m}": (range(n), range(m)) for n, m in ((2, 10), (3, 10), (10, 3))}
DESIGNS |= {f"disjoint {n}, {m}": (range(n), range(n, n + m)) for n, m in ((2, 2), (3, 3), (5, 10))}
# Pairs, noise of seeds and lead at which the number of seeds that is named is checked.
NUMBERS = ((1, 1, 0.004), (1, 2, 0.006), (1, 3, 0.008), (4, 3, 0.005))
NUMBERS += ((4, 2, 0.0033), (1, 0.5, 0.0025))
# Test images of each class.
SIZES = ((100, 20, 5), (60, 60), (90, 10), (1000, 50), (300, 100, 30, 10, 5), (40,) * 5, (12,) * 10)
RESAMPLES = 400


class Options(Validated):
    """What is simulated."""

    sims: int = option(300, "simulations of each line and true difference", minimum=1)
    images: int = option(2000, "test images", minimum=1)
    noise: tuple[float, ...] = option((0, 1, 3), "of seeds, over that of images")


@dataclass(frozen=True)
class Design:
    """The seeds of both recipes of each of so many matched pairs, and their noise."""

    seeds: tuple[range, range]
    pairs: int
    noise: float
    images: int
    uneven: bool = False

    def draw(self, rng: np.random.Generator, lead: float) -> list[compare.Pair]:
        """Trainings on new images, by a probit model: a pair's first recipe is ahead by `lead`."""
        difficulty = rng.normal(0, IMAGE_SD, self.images)
        image_sd = np.sqrt(BASE * (1 - BASE) / self.images)
        skill_sd = self.noise * image_sd * WIDE / norm.pdf(MEAN / WIDE)  # moves accuracy as much
        sds = (1.5 * skill_sd, 0.5 * skill_sd) if self.uneven else (skill_sd, skill_sd)
        sides = list(zip(("sgd", "adam"), (BASE + lead, BASE), sds, self.seeds, strict=True))
        rows = []
        for k, (opt, accuracy, sd, seeds) in itertools.product(range(self.pairs), sides):
            skill = norm.ppf(accuracy) * np.hypot(WIDE, sd)
            for seed in seeds:
                chance = ndtr((skill + rng.normal(0, sd) - difficulty) / LUCK_SD)
                right = rng.random(self.images) < chance
                row = {"kind": "train", "run_id": f"{opt} {k} {seed}", "right": right}
                row["config"] = {"opt": opt, "lr": 0.1 + k, "seed": seed}  # else the study's
                metrics = {"val_acc": 0.1 + k, "test_acc": right.mean(), "n_test": self.images}
                rows.append(row | {"metrics": metrics})
        groups = by_seed(rows)
        return list(zip(groups[::2], groups[1::2], strict=True))


def check_design(design: Design, sims: int) -> dict[str, float]:
    """How often each of the things that the table names happens."""
    sizes = map(len, design.seeds)
    rng = np.random.default_rng([*sizes, design.pairs, round(10 * design.noise), design.uneven])
    covered = accurate = apart = 0
    wrong = dict.fromkeys(TRUTHS, 0)
    for _, lead in itertools.product(range(sims), TRUTHS):
        drawn = design.draw(rng, lead)
        low, high = compare.measure_effect(drawn)["estimate"].interval()
        covered += low <= lead <= high
        opposite = "contradicted" if lead > MARGIN else "supported"
        wrong[lead] += judge(BEATS, (low, high)) == opposite
        if lead == 0:
            record = accuracy_record(drawn[0][0])
            accurate += record["test_acc_low"] <= BASE <= record["test_acc_high"]
            apart += compare.compare_with_chosen(drawn[0])[1]["tied"] is False
    counts = {"coverage": covered / len(TRUTHS), "accuracy": accurate, "told apart": apart}
    return {n: count / sims for n, count in (counts | {"wrong": max(wrong.values())}).items()}


def check_number(pairs: int, noise: float, lead: float, images: int, sims: int) -> dict[str, Any]:
    """The seeds that would decide, by nearly the true noises, and how often so many do."""
    rng, many = np.random.default_rng([pairs, round(10 * noise)]), 400
    design = Design((range(many), range(many)), pairs, noise, images)
    pilot, share = compare.measure_effect(design.draw(rng, lead))["estimate"], many / SEEDS
    spreads = tuple(stats.Spread(s.variance * share, s.scale * share, SEEDS) for s in pilot.spreads)
    image = tuple(end + lead - pilot.value for end in pilot.image)
    estimate = replace(pilot, value=lead, image=image, spreads=spreads)
    advice, power = more_data(BEATS, estimate, SEEDS, images), None
    if named := re.search(r"about (\d+) seeds of each", advice):
        n = int(named[1])
        design = replace(design, seeds=(range(n), range(100, 100 + n)))
        effects = (compare.measure_effect(design.draw(rng, lead))["estimate"] for _ in range(sims))
        power = [judge(BEATS, e.interval()) for e in effects].count("supported") / sims
    return {"pairs": pairs, "noise": noise, "lead": lead, "advice": advice, "power": power}


def check_scores(sizes: tuple[int, ...], accuracy: float, sims: int) -> dict[str, Any]:
    """How often intervals of scores hold the truth: ours, those of a bootstrap within classes, and
    of balanced accuracy the classes' Wilson intervals joined (MOVER). Recalls differ by class."""
    rng, k = np.random.default_rng([*sizes, round(100 * accuracy)]), len(sizes)
    chances = np.where(np.eye(k), 0, rng.dirichlet(np.ones(k), k))
    recalls = np.clip(accuracy + (rng.random(k) - 0.5) * (1 - accuracy), 0, 1)
    chances *= ((1 - recalls) / chances.sum(1))[:, None]
    chances += np.diag(recalls)
    truth, held = scores.rate(chances * np.array(sizes)[:, None]), Counter()
    for _ in range(sims):
        counts = np.stack([rng.multinomial(n, p) for n, p in zip(sizes, chances, strict=True)])
        pairs = zip(sizes, counts, strict=True)
        drawn = np.stack([rng.multinomial(n, own / n, RESAMPLES) for n, own in pairs], 1)
        rates = [scores.rate(again) for again in drawn]
        for name, (low, high) in scores.intervals(counts).items():
            held[name] += low <= truth[name] <= high
            low, high = np.quantile([again[name] for again in rates], [0.025, 0.975])
            held[f"{name}, bootstrap"] += low <= truth[name] <= high
        ends = [
            stats.wilson_interval(int(own[i]), n)
            for i, (n, own) in enumerate(zip(sizes, counts, strict=True))
        ]
        low, high = np.transpose(ends)
        recall = counts.diagonal() / sizes
        below, above = (np.sqrt(((recall - end) ** 2).sum()) / k for end in (low, high))
        held["balanced, MOVER"] += -below <= truth["balanced"] - recall.mean() <= above
    rates = {name: n / sims for name, n in sorted(held.items())}
    return {"images": ", ".join(map(str, sizes)), "accuracy": accuracy} | rates


def main(argv: list[str] | None = None) -> int:
    _, options = parse_command_line(argv, __doc__, options_class=Options)
    lines = []
    for name, pairs, noise in itertools.product(DESIGNS, (1, 4), options.noise):
        for uneven in (False, True) if noise else (False,):
            design = Design(DESIGNS[name], pairs, noise, options.images, uneven)
            case = {"seeds": name, "pairs": pairs, "noise": noise, "uneven": uneven}
            lines.append(case | check_design(design, options.sims))
    print_table(lines, floatfmt=".3f")
    numbers = [check_number(*case, 14_000, options.sims) for case in NUMBERS]
    print_table(numbers, floatfmt=".3f")
    cases = itertools.product(SIZES, (0.6, 0.8, 0.95, 0.99))
    unequal = [check_scores(*case, options.sims) for case in cases]
    print_table(unequal, floatfmt=".3f")
    ends = {"coverage": min, "accuracy": min, "told apart": max, "wrong": max}
    worst = {name: end(line[name] for line in lines) for name, end in ends.items()}
    worst |= {name: min(line[name] for line in unequal) for name in [*unequal[0]][2:]}
    print_json(worst=worst, lines=lines, numbers=numbers, scores=unequal)
    return 0


if __name__ == "__main__":
    run_script(main)
