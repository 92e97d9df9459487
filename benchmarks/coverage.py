"""How often the report's intervals hold the truth, and how often its verdicts are wrong.

    python benchmarks/coverage.py
    python benchmarks/coverage.py --sims 200 --images 1000

Trainings whose truth is known: a test image has a difficulty, a recipe and each of its seeds a
skill, each answer a luck of its own, all normal (a probit model). The judging code of the report is
run on their answers. The noise of seeds is given as a multiple of that of test images: of the
standard deviation of a single accuracy from one seed to the next, and from one set of images to
the next. `coverage` is how often the 95 % interval of a difference holds the truth; `accuracy` that
of a mean accuracy; `told apart` how often two equal recipes are not tied; `wrong` how often the
verdict on "the first is better by 0.1 points" is the opposite of the truth, at the worst of three
true differences: none, that, and 0.3 points. `uneven` means that one side's seeds vary three times
as much as the other's. The second table checks the number of seeds that an open verdict names:
simulated power there, 0.80 being aimed at. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import stats
from scipy.special import ndtr

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.base.cli import run_script  # noqa: E402
from common.base.config import TrainConfig, as_dict  # noqa: E402
from common.judge.evidence import Model, Pair, Setting, measure_effect  # noqa: E402
from common.judge.noise import compare_with_chosen  # noqa: E402
from common.judge.rows import Group, accuracy_interval  # noqa: E402
from common.judge.verdicts import BEATS, MARGIN, SEEDS, judge, more_data  # noqa: E402

MEAN, IMAGE_SD, LUCK_SD = 1.9, 1.25, 0.35  # 92.8 % right; two seeds disagree on 5 % of images
TRUTHS = (0.0, MARGIN, 0.003)  # true differences
DESIGNS = {
    "equal": [(range(n), range(n)) for n in (2, 3, 5, 10)],
    "unbalanced": [(range(2), range(10)), (range(3), range(10)), (range(10), range(3))],
    "disjoint": [(range(2), range(2, 4)), (range(3), range(3, 6)), (range(5), range(10, 20))],
}


def skill_of(accuracy: float, seed_sd: float) -> float:
    """The mean skill of a recipe of this true accuracy."""
    return float(stats.norm.ppf(accuracy)) * np.sqrt(IMAGE_SD**2 + LUCK_SD**2 + seed_sd**2)


def draw_setting(
    rng: np.random.Generator, difficulty: np.ndarray, skill: float, seed_sd: float,
    seeds: range, **settings: object,
) -> Setting:  # fmt: skip
    """The trainings of one recipe on images of these difficulties, one for each seed."""
    models = []
    for seed in seeds:
        chance = ndtr((skill + rng.normal(0, seed_sd) - difficulty) / LUCK_SD)
        right = rng.random(len(difficulty)) < chance
        config = as_dict(TrainConfig(seed=seed, **settings))
        metrics = {"val_acc": settings["lr"], "test_acc": right.mean(), "n_test": len(right)}
        row = {"kind": "train", "run_id": f"{settings} {seed}", "config": config,
               "metrics": metrics}  # fmt: skip
        models.append(Model(row, right))
    return tuple(models)


def draw_pairs(
    rng: np.random.Generator, images: int, pairs: int, seeds: tuple[range, range],
    seed_sds: tuple[float, float], lead: float,
) -> list[Pair]:  # fmt: skip
    """Matched pairs of recipes, the first ahead by so much in truth, on new images."""
    difficulty = rng.normal(0, IMAGE_SD, images)
    base = float(ndtr(MEAN / np.hypot(IMAGE_SD, LUCK_SD)))
    return [
        tuple(
            draw_setting(rng, difficulty, skill_of(base + gain, sd), sd, of, opt=opt, lr=0.1 + k)
            for opt, of, sd, gain in zip(("sgd", "adam"), seeds, seed_sds, (lead, 0), strict=True)
        )
        for k in range(pairs)
    ]  # fmt: skip


def seed_sd_of(ratio: float, images: int) -> float:
    """The sd of skill that moves an accuracy by `ratio` times as much as the choice of images."""
    wide = np.hypot(IMAGE_SD, LUCK_SD)
    accuracy = ndtr(MEAN / wide)
    image_sd = np.sqrt(accuracy * (1 - accuracy) / images)
    return float(ratio * image_sd * wide / stats.norm.pdf(MEAN / wide))


def check_design(
    seeds: tuple[range, range], pairs: int, ratio: float, uneven: bool, images: int, sims: int
) -> dict[str, float]:
    """How often each of the things that the table names happens."""
    rng = np.random.default_rng([len(seeds[0]), len(seeds[1]), pairs, round(10 * ratio), uneven])
    sd = seed_sd_of(ratio, images)
    seed_sds = (1.5 * sd, 0.5 * sd) if uneven else (sd, sd)
    base = float(ndtr(MEAN / np.hypot(IMAGE_SD, LUCK_SD)))
    held = known = apart = 0
    wrong = dict.fromkeys(TRUTHS, 0)
    for _ in range(sims):
        for lead in TRUTHS:
            drawn = draw_pairs(rng, images, pairs, seeds, seed_sds, lead)
            interval = measure_effect(drawn).interval
            verdict = judge(BEATS, interval)
            wrong[lead] += verdict == ("contradicted" if lead > MARGIN else "supported")
            held += interval[0] <= lead <= interval[1]
            if lead == 0:
                first = drawn[0][0]
                low, high = accuracy_interval(Group({}, tuple(m.row for m in first)))
                known += low <= base <= high
                apart += compare_with_chosen(drawn[0])[1]["tied"] is False
    return {
        "coverage": held / sims / len(TRUTHS), "accuracy": known / sims,
        "told apart": apart / sims, "wrong": max(wrong.values()) / sims,
    }  # fmt: skip


def check_number(pairs: int, ratio: float, lead: float, images: int, sims: int) -> dict[str, float]:
    """The seeds that would decide, by an estimate whose noises are nearly the true ones, and how
    often so many do."""
    rng = np.random.default_rng([pairs, round(10 * ratio)])
    sd, many = seed_sd_of(ratio, images), 400
    pilot = measure_effect(draw_pairs(rng, images, pairs, (range(many),) * 2, (sd, sd), lead))
    shift = lead - pilot.difference
    spreads = tuple(
        replace(s, variance=s.variance * many / SEEDS, scale=s.scale * many / SEEDS, seeds=SEEDS,
                degrees=SEEDS - 1)
        for s in pilot.estimate.spreads
    )  # fmt: skip
    image = tuple(end + shift for end in pilot.estimate.image)
    estimate = replace(pilot.estimate, value=lead, image=image, spreads=spreads)
    advice = more_data(BEATS, estimate, SEEDS, images)
    named = re.search(r"about (\d+) of each", advice)
    found = {"pairs": pairs, "noise": ratio, "lead": lead, "advice": advice, "power": None}
    if named:
        seeds = (range(int(named[1])), range(100, 100 + int(named[1])))
        found["power"] = sum(
            judge(BEATS, measure_effect(
                draw_pairs(rng, images, pairs, seeds, (sd, sd), lead)).interval) == "supported"
            for _ in range(sims)
        ) / sims  # fmt: skip
    return found


def main(argv: list[str] | None = None) -> int:
    """Simulate every design, and print the tables."""
    from tabulate import tabulate

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sims", type=int, default=300, help="simulations of each line and true difference [300]"
    )
    parser.add_argument("--images", type=int, default=2000, help="test images [2000]")
    parser.add_argument("--noise", type=float, nargs="+", default=[0, 1, 3],
                        help="noise of seeds over that of images [0 1 3]")  # fmt: skip
    args = parser.parse_args(argv)
    lines = []
    for (name, designs), pairs in itertools.product(DESIGNS.items(), (1, 4)):
        for seeds, ratio, uneven in itertools.product(designs, args.noise, (False, True)):
            if uneven and not ratio:
                continue
            case = {"seeds": f"{name} {len(seeds[0])}, {len(seeds[1])}", "pairs": pairs,
                    "noise": ratio, "uneven": uneven}  # fmt: skip
            found = check_design(seeds, pairs, ratio, uneven, args.images, args.sims)
            lines.append(case | found)
    print(tabulate(lines, headers="keys", tablefmt="pipe", floatfmt=".3f"), flush=True)
    numbers = [
        check_number(pairs, ratio, lead, 14_000, args.sims)
        for pairs, ratio, lead in ((1, 1, 0.004), (1, 2, 0.006), (1, 3, 0.008), (4, 3, 0.005),
                                   (4, 2, 0.0033), (1, 0.5, 0.0025))
    ]  # fmt: skip
    print(tabulate(numbers, headers="keys", tablefmt="pipe", floatfmt=".3f"))
    ends = {"coverage": min, "accuracy": min, "told apart": max, "wrong": max}
    worst = {name: end(line[name] for line in lines) for name, end in ends.items()}
    print(json.dumps({"worst": worst, "lines": lines, "numbers": numbers}))
    return 0


if __name__ == "__main__":
    run_script(main)
