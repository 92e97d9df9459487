"""Configurations, chosen on validation images, compared on the test images that both answered: by
matched pairs, and the contrasts that study.toml names before any row is read."""

import hashlib
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from common.data import scores
from common.judge import rows, stats
from common.judge.rows import PROTOCOLS, Group, Row, best_of, division, grouped, join_notes, number
from common.judge.tables import Table, make_table

ALPHA = 0.05
PRECISE = 10**8
TUNED, IN_SETUP = ", each at its best learning rate", ", both in the study's setup"
Load = Callable[[Row], tuple[Mapping[str, Any] | None, str | None]]
Pair = tuple[Group, Group]


@dataclass(frozen=True, eq=False)
class Evidence:
    """The log, its configurations whose predictions can be compared, and how many rows cannot.
    Shapes: rows of the groups hold `right` (N,) bool, by test image, and a digest of the `images`;
    where another score than accuracy is chosen by, `score` (N,): each image's part in it, of which
    it is the mean, in units of 1 / PRECISE."""

    rows: Sequence[Row]
    groups: Sequence[Group]
    reasons: Mapping[str, int]  # why they cannot

    def of(self, dataset: str, kind: str) -> list[Group]:
        return [g for g in self.groups if g.config.get("dataset") == dataset and g.kind == kind]

    @property
    def datasets(self) -> list[str]:
        """The study's data sets, then the others that can be compared."""
        return rows.datasets_of(group.rows[0] for group in self.groups)


def collect(log: Sequence[Row], load: Load) -> Evidence:
    """Every distinct model whose predictions, or the reason why there are none, `load` returns."""
    groups, reasons = [], Counter()
    for kind in PROTOCOLS:
        distinct = rows.distinct(rows.latest_ok(log, kind))
        alike = rows.on_same_splits(distinct)
        if apart := len(distinct) - len(alike):
            reasons["on another random split of the images than those compared"] = apart
        usable = _usable(alike, load, reasons)
        groups += rows.by_seed(usable, *rows.TRANSPORT)
    begun, ended = ({row["run_id"] for row in log if row["kind"] == k} for k in ("epoch", "train"))
    raced = {run for row in log if row["kind"] == "race" for run in row["metrics"]["runs"]}
    if left := begun - ended - raced:
        reasons["epochs in the log, but neither a result nor an error"] = len(left)
    return Evidence(log, groups, reasons)


def _usable(runs: Sequence[Row], load: Load, reasons: Counter[str]) -> list[Row]:
    """Rows with right answers, of each split those on the images of most; reasons of the rest."""
    tested, usable = [], []
    for row in runs:
        answers, problem = load(row)
        logged = number(row, "metrics", "n_test")
        if answers is None:
            named = isinstance(row["metrics"].get("predictions"), str)
            reasons[str(problem) if named else "the row names no predictions"] += 1
        elif logged not in (None, count := len(answers["label"])):
            reasons[f"run {row['run_id']}: {count} predictions for {logged} images"] += 1
        else:
            images = np.stack([answers["label"], answers["index"]]).astype("<i8").tobytes()
            right = np.asarray(answers["pred"] == answers["label"])
            row = row | {"right": right, "images": hashlib.sha256(images).hexdigest()}
            if (metric := rows.metric_of(row["config"])) != "acc":
                parts = scores.parts_of(answers["label"], answers["pred"], metric)
                row["score"] = np.rint(PRECISE * parts).astype(np.int64)
            tested.append(row)
    for same in grouped(tested, split_of).values():
        images = statistics.mode(row["images"] for row in same)
        for alike in grouped(same, lambda row: row["config"].get("limit")).values():
            split = statistics.mode(row["metrics"].get("split_sha256") for row in alike)
            for row in alike:
                if row["images"] != images:
                    reasons[f"run {row['run_id']}: other test images or labels than the rest"] += 1
                elif row["metrics"].get("split_sha256") != split:
                    reasons[f"run {row['run_id']}: another split_sha256 than the rest"] += 1
                else:
                    usable.append(row)
    return usable


def split_of(row: Row) -> tuple[str, ...]:
    """What tells the images of a run's parts from those of others."""
    return *division(row["config"]), str(row["config"].get("split_seed"))


def dependence(rule: stats.Rule, levels: Mapping[str, Sequence[Row]], other="") -> dict[str, bool]:
    """The levels between which the effect crosses the rule's edge (of a range: zero), in words, and
    whether surely so: by the intervals too, on enough seeds."""

    def words(effect: Row, other: str, unit: str) -> str:
        value, known = effect["difference"], {1: ("more", "than"), -1: ("less", "than")}
        much, to = known.get(stats.leads((value, value)), ("about as", "as"))
        beside = f" {to} {other}" if other else ""
        ends = f"{100 * effect['low']:+.2f} to {100 * effect['high']:+.2f}"
        return f"{much} accurate{beside} {effect['level']} ({100 * value:+.2f}{unit}, {ends})"

    edge, apart = rule[0] if math.isinf(rule[1]) else 0.0, {}
    for effects in levels.values():
        low, *_, high = sorted(effects, key=lambda effect: effect["difference"])
        if low["difference"] < edge < high["difference"]:
            enough = min(low["seeds"], high["seeds"]) >= stats.SEEDS
            surely = enough and low["high"] < edge < high["low"]
            text = f"{words(high, other, ' points')} and {words(low, '', '')}"
            why = "on too few seeds to be sure"
            why = "not surely on two sides of the criterion" if enough else why
            apart[text if surely else f"{text}, {why}"] = surely
    return apart


def main_recipe(groups: Iterable[Group]) -> list[Group]:
    """Those of one recipe, all but what the study varied: the study's own, then that with most
    configurations of three seeds."""
    recipes = grouped(groups, lambda group: group.without(*PROTOCOLS[group.kind][1]))

    def rank(recipe: str) -> tuple[bool, int, str]:
        sure = sum(len(group.rows) >= stats.SEEDS for group in recipes[recipe])
        return recipes[recipe][0].protocol != "", -sure, -len(recipes[recipe]), recipe

    return recipes[min(recipes, key=rank)] if recipes else []


def effect_of(estimate: stats.Estimate, images: int, settings: Sequence[Sequence[Row]]) -> Row:
    """What is known of any effect: from its estimate, and the runs of each setting behind it."""
    seeds = [len(runs) for runs in settings]
    few, short = "fewer than three seeds", sum(n < stats.SEEDS for n in seeds)
    few += f" in {short} of {len(seeds)} settings" if short < len(seeds) else ""
    record = {"estimate": estimate, "images": images, "seeds": min(seeds), "few": few}
    return record | {"runs": [row["run_id"] for runs in settings for row in runs]}


def measure_effect(pairs: Sequence[Pair], others: Sequence[Pair] = (), score="right") -> Row:
    """First minus second: the mean over pairs of mean test accuracies, minus that of `others`; or
    of what else is chosen by, its `score`.
    Units: fractions, but `first_only`: images that of two runs drawn from a pair the first alone
    gets right, on average, summed over pairs."""
    if not pairs:
        return {}
    weights: dict[Group, int] = Counter()
    for plus, minus in (*pairs, *((second, first) for first, second in others)):
        weights[plus] += 1
        weights[minus] -= 1
    if len({row.get("images") for g in weights for row in g.rows}) > 1:
        return measure_by_split(pairs, others, score)
    # In whole numbers: equal differences of an image must not differ by rounding.
    multiple = math.lcm(*(len(g.rows) for g in weights))
    shares = {g: weight * multiple // len(g.rows) for g, weight in weights.items()}
    rights = {g: np.array([row[score] for row in g.rows], np.int64) for g in weights}
    sums, whole = sum(shares[g] * rights[g].sum(0) for g in weights), multiple * len(pairs)
    whole *= PRECISE if score == "score" else 1
    value, image = float(sums.mean()) / whole, stats.paired_interval(sums, whole)
    spreads, shared = _spreads({g: share / whole for g, share in shares.items()}, rights)
    # What differs from image to image between seeds is in the seeds' variance already.
    alone = math.sqrt(max(0.0, 1 - shared * whole**2 * len(sums) / max(sums.var(), 1e-12)))
    estimate = stats.Estimate(value, tuple(value + alone * (end - value) for end in image), spreads)
    record = effect_of(estimate, len(sums), [g.rows for g in weights])
    one_seed = "one seed: the interval holds the noise of test images only"
    if spreads:
        one_seed = "settings of one seed are taken to vary as those of several do"
    trainings = {(_family(g), rows.repeat_of(row)) for g in weights for row in g.rows}
    means = [(rights[first].mean(0), rights[second].mean(0)) for first, second in pairs]
    exact = score == "right" and not spreads
    record |= {"difference": value, "p": stats.sign_flip_test(sums) if exact else estimate.p()}
    ends = "low", "high", "image_low", "image_high"
    record |= zip(ends, (*estimate.interval(), *image), strict=True)
    record |= {"pairs": len(pairs), "trajectories": len(trainings)}
    record["first_only"] = round(sum(float((a * (1 - b)).sum()) for a, b in means))
    record["second_only"] = round(sum(float((b * (1 - a)).sum()) for a, b in means))
    record["setups"] = [first.protocol for first, _ in pairs]
    record["caveat"] = one_seed if record["seeds"] == 1 else None
    return record | {"note": join_notes(record["caveat"], *record["setups"])}


def measure_by_split(pairs: Sequence[Pair], others: Sequence[Pair], score: str) -> Row:
    """The mean of the effects in each split of the images that all were tested on; {} if there is
    none. It varies over splits as over seeds; their test images overlap, so that those of several
    splits count for no more than those of one."""
    groups, effects = {g for pair in (*pairs, *others) for g in pair}, []
    for images in sorted(set.intersection(*({row["images"] for row in g.rows} for g in groups))):
        alike = {g: tuple(row for row in g.rows if row["images"] == images) for g in groups}
        own = {g: Group(g.config, alike[g]) for g in groups}
        sides = ([(own[a], own[b]) for a, b in each] for each in (pairs, others))
        effects.append(measure_effect(*sides, score))
    if len(effects) < 2:
        return effects[0] if effects else {}
    value, *image = (
        statistics.fmean(effect[name] for effect in effects)
        for name in ("difference", "image_low", "image_high")
    )
    spread = stats.sample_spread([effect["difference"] for effect in effects])
    estimate = stats.Estimate(value, tuple(image), spread)
    record = effects[0] | {"estimate": estimate, "difference": value, "p": estimate.p()}
    ends = "low", "high", "image_low", "image_high"
    record |= zip(ends, (*estimate.interval(), *image), strict=True)
    for name in ("runs", "trajectories", "first_only", "second_only"):
        record[name] = sum((effect[name] for effect in effects), type(record[name])())
    record |= {"seeds": len(effects), "few": "fewer than three splits"}
    record["caveat"] = f"mean over {len(effects)} splits"
    return record | {"note": join_notes(record["caveat"], *record["setups"])}


def _family(group: Group) -> str:
    """Its trainings but for the seed: at a constant learning rate any length is epochs of one."""
    constant = group.config.get("schedule", "constant") == "constant"
    return group.without("epochs") if constant else group.without()


def _spreads(shares: Mapping[Group, float], rights: Mapping[Group, np.ndarray]):
    """What the seeds add to the variance of the sum of right answers, each times its group's share,
    and how much of that differs by image; epochs of one training count together, seed by seed."""
    known, by_image = [], 0.0
    for family in grouped((g for g in shares if len(g.rows) > 1), _family).values():
        seeds: dict[Any, np.ndarray | float] = Counter()
        for g in family:
            scale = shares[g] * math.sqrt(len(g.rows) / (len(g.rows) - 1))
            for row, off in zip(g.rows, rights[g] - rights[g].mean(0), strict=True):
                seed = rows.repeat_of(row)
                seeds[seed] = seeds[seed] + scale * off
        luck = sum(float((off**2).mean()) / len(off) for off in seeds.values())
        by_image += luck
        # No less than the luck of single answers gives: a few seeds may agree by chance.
        variance = max(luck, sum(float(off.mean()) ** 2 for off in seeds.values()))
        total = sum(shares[g] ** 2 * len(g.rows) for g in family)
        known.append(stats.Spread(variance, total, min(len(g.rows) for g in family)))
    return stats.lend(known, [shares[g] ** 2 for g in shares if len(g.rows) == 1]), by_image


@dataclass(frozen=True, eq=False)
class Contrast:
    """Two levels of a factor, each at its own best, on validation, of what is `tuned`."""

    kind: str
    factor: str
    levels: Sequence[Any]
    command: str
    tuned: Sequence[str] = ()

    def __str__(self) -> str:
        return " minus ".join(rows.say(self.factor, level) for level in self.levels)

    @property
    def sides(self) -> tuple[str, str]:
        return tuple(rows.say(self.factor, level, prose=True) for level in self.levels)

    def pairs(self, evidence: Evidence, dataset: str, tuned=True, every=False) -> list[Pair]:
        """Configurations alike in all else; `tuned`: each at the best of the values of both;
        `every`: of all recipes."""
        groups, names, pairs = evidence.of(dataset, self.kind), self.tuned if tuned else (), []
        for same in grouped(groups, lambda group: group.without(self.factor, *names)).values():
            sides = ([g for g in same if g.config.get(self.factor) == k] for k in self.levels)
            one, other = ({tuple(map(g.config.get, names)): g for g in side} for side in sides)
            common = one.keys() & other.keys() or one.keys() | other.keys()
            choices = [[g for k, g in side.items() if k in common] for side in (one, other)]
            pair = tuple(c[0] if len(c) == 1 else best_of(c) for c in choices)
            pairs += [pair] if all(pair) else []
        firsts = main_recipe(first for first, _ in pairs)
        return [pair for pair in pairs if every or pair[0] in firsts]

    def reversals(self, evidence: Evidence, dataset: str) -> list[str]:
        """The setups in which it came out the other way round, with both accuracies."""
        sign, found = self.measure(evidence, dataset).get("difference", 0.0), {}
        setups = {first.protocol for first, _ in self.pairs(evidence, dataset)}
        every = self.pairs(evidence, dataset, every=True)
        for pair in (pair for pair in every if pair[0].protocol not in setups):
            first, second = (group.mean("test_acc") for group in pair)
            if (first - second) * sign < 0 and abs(first - second) > stats.MARGIN:
                both = f"({100 * first:.2f} against {100 * second:.2f} %)"
                found.setdefault(pair[0].protocol.partition(": ")[2], both)
        return [f"the other way round with {where} {both}" for where, both in found.items()]

    @cache  # noqa: B019 - for claims and tables alike; the process ends with the report
    def measure(self, evidence: Evidence, dataset: str) -> Row:
        """Its effect, also `averaged` over what is tuned, and at the `levels` of other factors."""
        averaged, pairs = (self.pairs(evidence, dataset, tuned) for tuned in (False, True))
        plain = pairs and not any(group.protocol for pair in pairs for group in pair)
        how, levels = TUNED if averaged != pairs else "", {}
        how = IN_SETUP if plain and self.kind == "svm" else how
        for factor in (c.factor for c in CONTRASTS if c.kind == self.kind):
            there = grouped(averaged, lambda pair, k=factor: pair[0].config.get(k))
            if factor != self.factor and len(there) > 1:
                where = "at" if factor == "lr" else "with"
                names = [f"{where} {rows.say(factor, level, prose=True)}" for level in there]
                effects = zip(map(measure_effect, there.values()), names, strict=True)
                known = [effect | {"level": name} for effect, name in effects if effect]
                levels |= {factor: known} if len(known) > 1 else {}
        average = measure_effect(averaged if averaged != pairs else [])
        return measure_effect(pairs) | {"how": how, "averaged": average, "levels": levels}


CONTRASTS = [Contrast(**entry) for entry in rows.STUDY["contrast"]]


def best_pairs(evidence: Evidence, dataset: str) -> list[Pair]:
    """The best ResNet and the best SVM, each chosen on validation, on the same test images."""
    networks, svms = evidence.of(dataset, "train"), evidence.of(dataset, "svm")
    sides = [g for g in networks if str(g.config.get("model")).startswith("resnet")], svms
    tested = {g: {row["images"] for row in g.rows} for side in sides for g in side}
    common = set.intersection(*(set().union(*map(tested.get, side)) for side in sides))
    alike = ([g for g in side if tested[g] & common] for side in sides)
    pair = tuple(best_of(main_recipe(side)) for side in alike)
    return [pair] if all(pair) and set.intersection(*map(tested.get, pair)) else []


def add_holm(records: Iterable[Row]) -> list[Row]:
    """Adjust the p-values of a table, which is one family."""
    records = list(records)
    tested = [record for record in records if "p" in record]
    for record, p in zip(tested, stats.holm([record["p"] for record in tested]), strict=True):
        record["p_holm"] = p
    return records


def contrast_records(evidence: Evidence) -> list[Row]:
    """The main effect of each factor, tuned and averaged, and the best network against the SVM."""
    records = []
    for dataset in evidence.datasets:
        for c in CONTRASTS:
            record = {"note": f"no pair in the log: {c.command}", "kind": c.kind, "sides": c.sides}
            record |= c.measure(evidence, dataset)
            record |= {"dataset": dataset, "contrast": f"{c}{record['how']}"}
            # Told by level is what is there at one and, at another, not a quarter of the whole.
            effect = record.get("difference", 1.0)
            rule = math.copysign(max(stats.MARGIN, abs(effect) / 4), effect), math.inf
            records.append(record | {"apart": dependence(rule, record["levels"], c.sides[1])})
            if averaged := record["averaged"]:
                records.append(averaged | {"dataset": dataset, "contrast": f"{c}, averaged"})
        record = {"note": "no pair in the log: make q1a q1b", "kind": "svm", "apart": {}}
        record |= {"sides": ("the best ResNet", "the best SVM")}
        pairs = best_pairs(evidence, dataset)
        alike = pairs and not any(group.protocol for group in pairs[0])
        record |= measure_effect(pairs) | {"how": IN_SETUP if alike else ""}
        name = f"best ResNet minus best SVM{record['how']}"
        records.append(record | {"dataset": dataset, "contrast": name})
    # Of other images than the study's nothing is missing.
    kept = [r for r in records if "p" in r or r["dataset"] in rows.STUDY_DATASETS]
    # A reader's first rows are the main effects.
    return sorted(add_holm(kept), key=lambda record: "apart" not in record)


def interaction_records(evidence: Evidence) -> Iterator[Row]:
    """How the effect of one factor changes with another, by matched fours."""
    couples = list(itertools.combinations([c for c in CONTRASTS if c.kind == "train"], 2))
    for dataset, (one, other) in itertools.product(evidence.datasets, couples):
        factors, pairs = (one.factor, other.factor), one.pairs(evidence, dataset, tuned=False)
        there = {(a.without(*factors), a.config.get(other.factor)): (a, b) for a, b in pairs}
        first, second = other.levels
        both = [key for key, level in there if level == first and (key, second) in there]
        if both:
            sides = ([there[key, level] for key in both] for level in other.levels)
            name = "{}: by how much more with {} than with {}".format(one, *other.sides)
            yield measure_effect(*sides) | {"dataset": dataset, "contrast": name}


def pair_records(evidence: Evidence) -> Iterator[Row]:
    """Each matched pair of configurations behind the contrasts."""
    for dataset, contrast in itertools.product(evidence.datasets, CONTRASTS):
        for first, second in contrast.pairs(evidence, dataset, tuned=False):
            record = {"dataset": dataset, "contrast": str(contrast)}
            record |= {"setting": first.name(contrast.factor), "first_acc": first.mean("test_acc")}
            record |= {"second_acc": second.mean("test_acc")}
            yield record | measure_effect([(first, second)])


def tie_records(evidence: Evidence) -> list[Row]:
    networks = (g for name in evidence.datasets for g in evidence.of(name, "train"))
    splits = grouped(networks, lambda group: division(group.config)).values()
    return list(itertools.chain(*map(compare_with_chosen, splits)))


def compare_with_chosen(groups: Sequence[Group]) -> list[Row]:
    """The chosen one of one split of the images, then its rivals, each tested against it."""
    chosen, records = best_of(groups), []
    for group in groups if chosen else ():
        effect, by = {"tied": "chosen"}, rows.chosen_by(group.config)
        if group is not chosen:
            effect = {"tied": None}
            effect |= measure_effect([(chosen, group)], score="score" if by else "right")
        record = effect | rows.accuracy_record(group) | {"group": group, "chosen_by": by or None}
        records.append(record | {"dataset": group.config.get("dataset"), "setting": group.name()})
    for record in add_holm(records):
        if "p" in record:
            apart = record["p_holm"] <= ALPHA and stats.leads((record["low"], record["high"])) != 0
            enough = min(len(chosen.rows), record["seeds"]) >= stats.SEEDS  # else neither is said
            record["tied"] = not apart if enough else None
    return sorted(records, key=lambda r: (r["tied"] != "chosen", -(r["group"].val() or 0)))


def validation_gap(group: Group) -> Row | None:
    """How much its validation accuracy promised too much, where that is known."""
    images = [number(group.rows[0], "metrics", name) for name in ("n_val", "n_test")]
    means = group.mean("val_acc"), group.mean("test_acc")
    if None in means or not all(images):
        return None
    gap = stats.difference_of(*([mean] for mean in means), images)
    return {"optimism": gap.value, "low": gap.image[0], "high": gap.image[1]}


def optimism_records(train: Sequence[Row]) -> Iterator[Row]:
    """The validation_gap of each chosen configuration."""
    for groups in rows.contests(train).values():
        if (group := best_of(groups)) and (gap := validation_gap(group)):
            record = group.config | rows.accuracy_record(group) | gap
            yield record | {"where": rows.split_name(group.config), "tried": len(groups)}


def seeds_table(train: Sequence[Row]) -> Table:
    """Noise of training beside noise of the test images, where a configuration has seeds."""
    groups, records = rows.configurations(train), []
    for group in groups:
        values, images = group.values("test_acc"), number(group.rows[0], "metrics", "n_test")
        if len(values) > 1 and images:
            record = group.config | rows.accuracy_record(group)
            mean = record["test_acc"]
            seeds = stats.Estimate(mean, (mean, mean), stats.sample_spread(values))
            record["mean_low"], record["mean_high"] = seeds.interval()
            records.append(record | {"image_sd": math.sqrt(mean * (1 - mean) / int(images))})
    note = "Configurations with a single seed, whose noise of training is not measured"
    single = len(groups) - len(records)
    return make_table("seeds", records, f"{note}: {single}." if single else "")


def comparison_tables(evidence: Evidence, contrasts, ties, train: Sequence[Row]) -> list[Table]:
    """From the records of contrasts and of ties, and the train rows that are ok."""
    reasons = [{"reason": text, "rows": n} for text, n in evidence.reasons.items()]
    return [
        make_table("contrasts", contrasts, missing=all("p" not in each for each in contrasts)),
        make_table("interactions", add_holm(interaction_records(evidence))),
        make_table("pairs", add_holm(pair_records(evidence))),
        make_table("tied", ties, alpha=ALPHA, points=100 * stats.MARGIN, seeds=stats.SEEDS),
        make_table("optimism", optimism_records(train)),
        seeds_table(train),
        make_table("unusable", reasons),
    ]
