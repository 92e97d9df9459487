"""How often the report's intervals hold the truth, and how often its verdicts are wrong.

Trainings whose truth is known are simulated. `noise`: the sd of an accuracy between seeds over that
between sets of images; `uneven`: one side's seeds vary three times as much. How often: `coverage`,
the 95 % interval of a difference holds the truth; `accuracy`, that of a mean; `told apart`, equal
recipes differ significantly; `wrong`, the verdict on "better by 0.1 points" opposes the truth,
at the worst of three. Second table: the power at the number of seeds that an open verdict names,
where 0.80 is aimed at. Third table: intervals of balanced accuracy and macro F1, and other ones.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr
from scipy.stats import norm
from shared import print_json, print_table

from common.base.cli import Validated, option, parse_command_line, run_script
from common.data import scores
from common.judge import compare, stats
from common.judge.rows import accuracy_record, by_seed
from common.judge.stats import BEATS, MARGIN, SEEDS, judge, more_data

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
    case, drawn = (design.pairs, round(10 * design.noise), design.uneven), []
    rng = np.random.default_rng([*map(len, design.seeds), *case])
    for _, lead in itertools.product(range(sims), TRUTHS):
        pairs = design.draw(rng, lead)
        low, high = compare.measure_effect(pairs)["estimate"].interval()
        wrong = judge(BEATS, (low, high)) == ("contradicted" if lead > MARGIN else "supported")
        drawn.append({"lead": lead, "coverage": float(low <= lead <= high), "wrong": wrong})
        if lead == 0:
            record = accuracy_record(pairs[0][0])
            drawn[-1]["accuracy"] = record["test_acc_low"] <= BASE <= record["test_acc_high"]
            drawn[-1]["told apart"] = compare.compare_with_chosen(pairs[0])[1]["tied"] is False
    shares = pd.DataFrame(drawn, dtype=float).groupby("lead").mean()  # by true difference
    equal = shares.loc[0.0, ["accuracy", "told apart"]].to_dict()
    return {"coverage": shares["coverage"].mean(), **equal, "wrong": shares["wrong"].max()}


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
    rng, k, n = np.random.default_rng([*sizes, round(100 * accuracy)]), len(sizes), np.array(sizes)
    chances = np.where(np.eye(k), 0, rng.dirichlet(np.ones(k), k))
    recalls = np.clip(accuracy + (rng.random(k) - 0.5) * (1 - accuracy), 0, 1)
    chances = np.diag(recalls) + ((1 - recalls) / chances.sum(1))[:, None] * chances
    truth, held = scores.rate(chances * n[:, None]), Counter()
    for _ in range(sims):
        counts = rng.multinomial(n, chances)
        ends = dict(scores.intervals(counts))
        own = counts[:, None] / n[:, None, None]
        drawn = rng.multinomial(n[:, None], own, (k, RESAMPLES)).swapaxes(0, 1)
        for name, rates in pd.DataFrame(map(scores.rate, drawn)).items():
            ends[f"{name}, bootstrap"] = np.quantile(rates, [0.025, 0.975])
        right, recall = counts.diagonal().tolist(), counts.diagonal() / n
        wilson = np.array(list(map(stats.wilson_interval, right, sizes)))
        off = np.sqrt(((recall - wilson.T) ** 2).sum(1)) / k
        ends["balanced, MOVER"] = recall.mean() + off * (-1, 1)
        for name, (low, high) in ends.items():
            held[name] += low <= truth[name.partition(",")[0]] <= high
    rates = {name: times / sims for name, times in sorted(held.items())}
    return {"images": ", ".join(map(str, sizes)), "accuracy": accuracy} | rates


def main(argv: list[str] | None = None) -> int:
    _, options = parse_command_line(argv, __doc__, options_class=Options)
    lines = []
    for name, pairs, noise in itertools.product(DESIGNS, (1, 4), options.noise):
        for uneven in (False, True) if noise else (False,):
            design = Design(DESIGNS[name], pairs, noise, options.images, uneven)
            case = {"seeds": name, "pairs": pairs, "noise": noise, "uneven": uneven}
            lines.append(case | check_design(design, options.sims))
    numbers = [check_number(*case, 14_000, options.sims) for case in NUMBERS]
    classes = itertools.product(SIZES, (0.6, 0.8, 0.95, 0.99))
    unequal = [check_scores(*case, options.sims) for case in classes]
    for table in (lines, numbers, unequal):
        print_table(table, floatfmt=".3f")
    ends = {"coverage": "min", "accuracy": "min", "told apart": "max", "wrong": "max"}
    worst = pd.DataFrame(lines).agg(ends).to_dict()
    worst |= pd.DataFrame(unequal).min(numeric_only=True).drop("accuracy").to_dict()
    print_json(worst=worst, lines=lines, numbers=numbers, scores=unequal)
    return 0


if __name__ == "__main__":
    run_script(main)
