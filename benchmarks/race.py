"""How often a race ends with a configuration as good as the best of the whole grid, and how soon.

Nothing is trained: accuracies and times are those of the epochs in --results-dir. Each draw has
some configurations of one data set in random order, of each a seed that the log has, and a time.
Beside the rules of common/judge/race.py, on the same draws: Optuna's pruners (pip install optuna),
random search and the whole grid. What a race would spend on more seeds is not simulated.

Which validation images a network answered rightly is not in the log. It is drawn: as many as the
log says, from a normal variable of the image, which all share, and one of each answer, in the
proportion that makes two networks err on the same test images as often as the committed ones do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import multivariate_normal, norm
from shared import print_json, print_table

from common.base.cli import Validated, need, option, parse_command_line, run_script
from common.base.config import TrainConfig
from common.base.log import read_log
from common.judge import compare, race, rows, stats
from common.judge.mistakes import load_predictions
from common.judge.race import Candidate

IMAGES = 7000  # to validate on
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)  # of the time of the whole grid
End = tuple["Curve", float] | None  # what is chosen, and the time; None: refused


class Proof(Validated):
    """What is simulated."""

    races: int = option(400, "draws for each line", minimum=1)
    results_dir: str = option("reference", "folder whose log has the epochs")
    seed: int = option(0, "of what is drawn")


@dataclass(eq=False)
class Curve(Candidate):
    """A candidate whose future is known: `accs` and `answers` are of all epochs."""

    group: Any = None
    answers: Any = None

    @property
    def whole_s(self) -> float:
        return self.cost_s(self.epochs, 0)


def read_cpu(folder: Path) -> tuple[compare.Evidence, list[dict]]:
    """What a CPU trained of a results folder, and of its folder cpu, and the epochs of it."""
    log, homes = [], {}
    for home in (folder, folder / "cpu"):
        log += (own := [r for r in read_log(home)[0] if r["config"].get("device") == "cpu"])
        homes = {row["run_id"]: home for row in own} | homes
    evidence = compare.collect(log, lambda row: load_predictions(homes[row["run_id"]], row))
    return evidence, rows.latest_ok(log, "epoch")


def measure_curves(evidence: compare.Evidence, epochs: list[dict], dataset: str) -> list[list]:
    """Of each configuration of the study's split, at its longest, the curves of its seeds."""
    known: dict[str, list[Curve]] = {}
    own = [group for group in evidence.of(dataset, "train") if group.config["split"] == "study"]
    for group in sorted(own, key=lambda group: group.config["epochs"]):
        curves = []
        for row in group.rows:
            run = [epoch["metrics"] for epoch in rows.trajectory(row, epochs)]
            accs = {epoch["epoch"]: epoch["val_acc"] for epoch in run}
            if len(accs) == group.config["epochs"]:
                epoch_s = sum(epoch["train_ms"] for epoch in run) / 1e3 / len(run)
                curves.append(Curve(TrainConfig(**row["config"]), epoch_s, accs=accs, group=group))
        length = group.config["schedule"] != "constant" and group.config["epochs"]
        name = group.without("epochs") + str(length)  # shorter ones are parts of the longest
        known[name] = curves or known.get(name, [])
    return [curves for curves in known.values() if curves]


def measure_rho(groups: Sequence[rows.Group]) -> float:
    """The correlation of two networks' normal variables that gives as many common mistakes."""

    def correlation(first: np.ndarray, second: np.ndarray) -> float:
        ends, both = norm.ppf([first.mean(), second.mean()]), (first & second).mean()
        both_by = partial(multivariate_normal.cdf, ends, None)
        return brentq(lambda r: both_by([[1, r], [r, 1]]) - both, 0, 0.999)

    wrong = [~group.rows[0]["right"] for group in groups]
    return float(np.median([correlation(*pair) for pair in combinations(wrong, 2)]))


def draw(pool: list[list], rho: float, random: np.random.Generator) -> list[Curve]:
    """Some configurations in some order, with the answers of one seed of each."""
    shared, curves = random.standard_normal(IMAGES), []
    for i in random.permutation(len(pool))[: random.integers(5, len(pool) + 1)]:
        curve = pool[i][random.integers(len(pool[i]))]
        own = random.standard_normal((curve.epochs, IMAGES))
        order = (rho**0.5 * shared + (1 - rho) ** 0.5 * own).argsort().argsort()
        wrong = [round((1 - acc) * IMAGES) for acc in curve.accs.values()]
        curves.append(replace(curve, answers=order >= np.array(wrong)[:, None]))
    return curves


def run_race(curves: list[Curve], budget_s: float) -> End:
    needed_s = sum(c.epoch_s for c in curves) + max(c.cost_s(c.epochs, 1) for c in curves)
    if needed_s > budget_s:
        return None
    racing, spent_s = [replace(c, right={}) for c in curves], 0.0
    rungs = race.rungs_of(max(c.epochs for c in curves))
    for rung in rungs:
        spent_s += sum(c.cost_s(rung, c.done) for c in racing)
        for c in racing:
            done = min(rung, c.epochs)
            c.right[done] = c.answers[done - 1]
        left = race.who_leaves(racing, rung, budget_s - spent_s, len(rungs))
        racing = [c for c in racing if c not in left]
    return max(racing, key=lambda c: c.acc), spent_s


def run_pruner(curves: list[Curve], pruner: Any, optuna: Any) -> End:
    """One trial after the other, each until it is pruned."""
    study, spent_s, whole = optuna.create_study(direction="maximize", pruner=pruner), 0.0, []
    for curve in curves:
        trial = study.ask()
        for epoch, acc in curve.accs.items():
            trial.report(acc, epoch)
            spent_s += curve.epoch_s
            if epoch < curve.epochs and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, acc)
            whole.append(curve)
    return max(whole, key=lambda c: c.accs[c.epochs]), spent_s


def run_random(curves: list[Curve], budget_s: float) -> End:
    """Whole trainings in the order as drawn, those that there is time for."""
    spent_s, whole = 0.0, []
    for curve in curves:
        if spent_s + curve.whole_s <= budget_s:
            spent_s += curve.whole_s
            whole.append(curve)
    return (max(whole, key=lambda c: c.accs[c.epochs]), spent_s) if whole else None


@cache
def compare_first(best: rows.Group, other: rows.Group) -> tuple[bool, float]:
    """Whether the other's test accuracy is not significantly lower than the best's, by the paired
    test of the first seed of each, and by how much its mean is lower."""
    if best is other:
        return True, 0.0
    pair = tuple(rows.Group(group.config, (group.first(),)) for group in (best, other))
    effect = compare.measure_effect([pair])
    worse = stats.leads((effect["low"], effect["high"])) > 0 and effect["p"] <= compare.ALPHA
    return not worse, best.mean("test_acc") - other.mean("test_acc")


def line(name: str, draws: list[list[Curve]], ends: list[End]) -> dict[str, Any]:
    """A line of the table, of the draws that the method takes on: means of the share of the grid's
    time; of whether what is chosen is tied with the best of the grid, which has the highest mean
    validation accuracy; of how far it is behind that."""
    known = []
    for curves, end in zip(draws, ends, strict=True):
        if end:
            best = max((c.group for c in curves), key=lambda group: group.mean("val_acc"))
            share = end[1] / sum(c.whole_s for c in curves)
            known.append((share, *compare_first(best, end[0].group)))
    record = {"method": name, "draws": len(known), "refused": len(ends) - len(known)}
    if known:
        share, tied, behind = np.mean(known, axis=0)
        record |= {"time": share, "of three seeds": share / 3}
        record |= {"tied": tied, "behind, points": 100 * behind}
    return record


def compare_methods(pool: list[list], rho: float, proof: Proof, optuna: Any) -> list[dict]:
    """A line for each method and time; pruners where a race would not be refused, and all three."""
    random = np.random.default_rng(proof.seed)
    draws = [draw(pool, rho, random) for _ in range(proof.races)]
    whole_s = [sum(c.whole_s for c in curves) for curves in draws]
    halving, median = optuna.pruners.SuccessiveHalvingPruner, optuna.pruners.MedianPruner
    pruners = {f"halving by {n}": halving(1, n) for n in (2, 4)} | {"median": median(5, 0)}
    lines = [line("whole grid", draws, list(map(run_random, draws, whole_s)))]
    for name, pruner in pruners.items():
        ends = {f"Optuna, {name}": [run_pruner(curves, pruner, optuna) for curves in draws]}
        times_s = [spent_s for _, spent_s in ends[f"Optuna, {name}"]]
        ends["  race, in that time"] = raced = list(map(run_race, draws, times_s))
        ends["  random search, in that time"] = list(map(run_random, draws, times_s))
        for method, own in ends.items():
            kept = [end if ours else None for end, ours in zip(own, raced, strict=True)]
            lines.append(line(method, draws, kept))
    times = {f"{share:.0%} of": [share * s for s in whole_s] for share in SHARES}
    times["a random part of"] = [random.uniform(0.2, 1) * s for s in whole_s]
    for name, times_s in times.items():
        ends = list(map(run_race, draws, times_s))
        lines.append(line(f"race, {name} the grid's time", draws, ends))
    return lines


def main(argv: list[str] | None = None) -> int:
    _, proof = parse_command_line(argv, __doc__, options_class=Proof)
    optuna = need("optuna", "benchmarks/race.py")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    (evidence, epochs), results = read_cpu(Path(proof.results_dir)), []
    for dataset in rows.STUDY_DATASETS:
        every = measure_curves(evidence, epochs, dataset)
        study = [seeds for seeds in every if not seeds[0].group.protocol]
        rho = measure_rho([seeds[0].group for seeds in every])
        for name, pool in (("the study's grid", study), ("with the other recipes", every)):
            counts = ", ".join(str(len(seeds)) for seeds in pool)
            print(f"\n{rows.display(dataset)}, {name}: configurations: {len(pool)}, with so many")
            print(f"seeds each in the log: {counts}; correlation of their mistakes: {rho:.2f}\n")
            lines = compare_methods(pool, rho, proof, optuna)
            print_table(lines, missingval="-", floatfmt=("", "", "", ".0%", ".0%", ".1%", ".2f"))
            results += [{"dataset": dataset, "grid": name, "rho": rho} | each for each in lines]
    print_json(races=proof.races, results=results)
    return 0


if __name__ == "__main__":
    run_script(main)
