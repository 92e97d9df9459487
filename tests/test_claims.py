"""The claims on logs whose truth is known: effects there, absent, reversed, and too little data."""

import functools
import itertools
import re
from collections import namedtuple

import numpy as np
import pytest
from invented import IMAGES, Invented, only, wrong_on
from scipy.stats import t

from common.judge import findings, stats
from common.judge.claims import Claim, Part, claims_tables, judge_claims, judged_part, standing
from common.judge.compare import contrast_records
from common.judge.stats import BEATS, Estimate, judge

RISING = {"mnist": [0.97, 0.985, 0.988, 0.989, 0.990], "fashion": [0.85, 0.88, 0.90, 0.91, 0.915]}

# What a log holds. Units: points of accuracy by which the named level is worse (loser: Adam on
# MNIST, SGD on FashionMNIST), ratios.
Truth = namedtuple(
    "Truth",
    "resnet50 loser short slow_rate poly gaps speedups adam_time gpu_acc fall images n_val spread",
)
USUAL = (IMAGES, 7000, 0.001)
PRESENT = Truth(0.3, 0.5, 0.4, 0.5, 1, (2.98, 5.87), (25, 37.5), 1.04, 0.5, 0, *USUAL)
TRUTHS = {
    "present": PRESENT,
    "absent": Truth(0, 0, 0, 0, 0, (0, 0), (1, 1), 1, 0, 0, *USUAL),
    "reversed": Truth(
        -0.6, -0.5, -0.4, -0.5, -1, (-2, -2), (0.5, 0.4), 0.9, 6, 0.05, *PRESENT[10:]
    ),
    "little": Truth(*PRESENT[:8], 3, 0.01, 150, 100, 0.5),
}
EXPECTED = ["supported", "contradicted", "contradicted", "inconclusive"]


def without_intervals(text):
    return re.sub(r", [+-][0-9.]+ to [+-][0-9.]+(?=[;)])", "", text)


def invent_trainings(truth=PRESENT, seeds=(0, 1, 2)):
    """The 16 trainings of each data set, a row each, the epochs of the longer ones, and SVMs."""
    log, rng = Invented(), np.random.default_rng(0)
    shares = {"mnist": 3.0, "fashion": 8.0}  # points of error of the best network
    levels = ("resnet18", "resnet50"), ("sgd", "adam"), (1e-3, 1e-4), (3, 5)

    def answers(error):
        return wrong_on((0, round(max(0, error) / 100 * truth.images)), images=truth.images)

    for (number, (dataset, share)), seed in itertools.product(enumerate(shares.items()), seeds):
        val = list(RISING[dataset])
        val[3] -= truth.fall
        for model, opt, lr, epochs in itertools.product(*levels):
            error = share + truth.resnet50 * (model == "resnet50") + truth.short * (epochs == 3)
            error += truth.loser * (opt == ("adam", "sgd")[number]) + truth.slow_rate * (lr < 1e-3)
            right = answers(error)
            right[rng.integers(0, truth.images, truth.images // 2000)] ^= True
            metrics = {"val_acc": 1 - error / 100, "train_acc": val[-1] + 0.005}
            settings = {"model": model, "opt": opt, "lr": lr, "epochs": epochs, "seed": seed}
            name = log.train(right, metrics | {"n_val": truth.n_val}, dataset=dataset, **settings)
            if epochs == 5:
                log.epochs(name, val, [*val[:-1], val[-1] + 0.005])
        ahead = truth.resnet50, truth.loser, truth.short, truth.slow_rate
        best = share + sum(min(0, lead) for lead in ahead) + truth.gaps[number]
        log.svm(answers(best + max(0, -truth.poly)), dataset=dataset, kernel="rbf", seed=seed)
        log.svm(answers(best + max(0, truth.poly)), dataset=dataset, kernel="poly", seed=seed)
    return log


@functools.cache
def results_of(scenario):
    truth = TRUTHS[scenario]
    log = invent_trainings(truth)
    ratios = dict(zip(("resnet18", "resnet50"), truth.speedups, strict=True))
    cases = itertools.product(ratios, ("sgd", "adam"), ("cpu", "cuda"), range(3))
    for model, opt, device, seed in cases:
        ms = 1000.0 * (truth.adam_time if opt == "adam" else 1.0)
        ms /= ratios[model] if device == "cuda" else 1.0
        test_acc = 0.85 - truth.gpu_acc / 100 * (device == "cuda")
        settings = {"model": model, "opt": opt, "device": device, "seed": seed}
        n, group = 30 if truth.spread < 0.1 else 3, f"{model} {seed}"
        log.speed(ms, {"test_acc": test_acc}, truth.spread, n, group, **settings)
    evidence = log.evidence()
    return judge_claims(evidence), evidence


def parts_of(log, number):
    """The parts of one claim by their subjects."""
    return {part.subject: part for part in judge_claims(log.evidence())[number - 1].parts}


@pytest.mark.parametrize(("scenario", "verdict"), [*zip(TRUTHS, EXPECTED, strict=True)])
def test_the_verdict_is_the_truth(scenario, verdict):
    verdicts = dict.fromkeys(range(1, 12), verdict)
    verdicts |= {1: "supported", 9: "supported"} if scenario == "absent" else {}
    results, _ = results_of(scenario)
    assert {result.number: result.verdict for result in results} == verdicts


@pytest.mark.parametrize(
    ("scenario", "number", "subject", "effect", "published", "verdict"),
    [
        ("present", 7, "MNIST", 2.98, 2.98, "supported"),
        ("present", 8, "ResNet-50 over ResNet-18 with SGD", 1.5, 37.67 / 26.94, "supported"),
        ("reversed", 8, "ResNet-50 over ResNet-18 with SGD", 0.8, 37.67 / 26.94, "contradicted"),
        ("present", 10, "ResNet-18 on a CPU", 1.04, 3_090_957 / 3_269_881, "supported"),
        ("reversed", 10, "ResNet-18 on a GPU", 0.9, 1.0504, "contradicted"),
    ],
)
def test_every_part_has_its_row(scenario, number, subject, effect, published, verdict):
    results, _ = results_of(scenario)
    verdicts, parts = (table.records for table in claims_tables(results, ["why"] * 11))
    assert [row["claim"] for row in verdicts] == list(range(1, 12))
    assert len(parts) == sum(len(result.parts) for result in results)
    row = only(parts, claim=number, subject=subject)
    assert row["effect"] == pytest.approx(effect, rel=0.02)
    assert row["published"] == pytest.approx(published, rel=1e-3)
    assert row["verdict"] == verdict


def test_on_an_empty_log_nothing_is_said_but_how_to_measure():
    for result in judge_claims(Invented().evidence()):
        assert result.verdict == "not measured"
        for part in result.parts:
            assert part.effect is part.interval is None
            assert re.match(r"(make|python) ", part.needs)
            assert part.reason == f"not measured: {part.needs}"


RANGE = (0.003, 0.005)
MET, MISSED = (f"the whole interval {word} the criterion" for word in ("meets", "misses"))
REACHES_BEYOND = "the estimate meets the criterion, the interval reaches beyond it"
REACHES_INTO = "the estimate misses the criterion, the interval reaches into it"


@pytest.mark.parametrize(
    ("rule", "low", "high", "verdict", "words"),
    [
        (BEATS, 0.0011, 0.01, "supported", MET),
        (BEATS, 0.0001, 0.0009, "contradicted", MISSED),
        (BEATS, -0.0005, 0.0009, "contradicted", MISSED),
        (RANGE, 0.0031, 0.0049, "supported", MET),
        (RANGE, 0.0051, 0.008, "contradicted", MISSED),
        (RANGE, 0, 0.0029, "contradicted", MISSED),
        # Open, it leans only to where the middle half of the interval is.
        (BEATS, 0.0, 0.006, "inconclusive", "leans to supported"),
        (BEATS, -0.001, 0.005, "inconclusive", REACHES_BEYOND),
        (BEATS, -0.004, 0.002, "inconclusive", "leans to contradicted"),
        (RANGE, 0.0025, 0.0055, "inconclusive", "leans to supported"),
        (RANGE, -0.003, 0.021, "inconclusive", REACHES_INTO),
        (RANGE, -0.001, 0.005, "inconclusive", REACHES_INTO),
    ],
)
def test_an_interval_decides_on_one_side_only(rule, low, high, verdict, words):
    assert judge(rule, (low, high)) == verdict
    assert standing(rule, (low + high) / 2, (low, high)) == words


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_decide_nothing_of_accuracy_and_lean(seeds):
    results = judge_claims(invent_trainings(seeds=range(seeds)).evidence())
    measured = [part for result in results for part in result.parts if part.effect is not None]
    for part in measured:
        assert part.verdict == "inconclusive"
        far = "(the whole interval meets the criterion|leans to supported); fewer than three seeds"
        own = "(; of the best configurations only, .* points)?(; the study's own .* criterion)?"
        assert re.match(f"{far}{own}$", part.reason)
        assert re.match("three seeds of each setting: make q1.* ARGS='--seed 0 1 2'$", part.needs)
    assert ("one seed: the interval holds" in str(measured[0].note)) == (seeds == 1)
    edge = part_of(Invented().grid("opt", {"sgd": 100, "adam": 114}, seeds=seeds), 2)
    assert edge.reason == (
        "the estimate is at the edge of the criterion, the interval reaches across it; "
        "fewer than three seeds"
    )


def test_one_setting_of_one_seed_keeps_a_claim_open():
    log, work = invent_trainings(), {"dataset": "fashion", "lr": 1e-3}
    first = next(row["config"] for row in log.rows if work.items() <= row["config"].items())
    more = [first | {"seed": seed} for seed in (1, 2)]
    log.rows = [row for row in log.rows if row["config"] not in more]
    mnist, fashion = parts_of(log, 1).values()
    assert (mnist.verdict, mnist.reason) == ("supported", MET)
    few = "the whole interval meets the criterion; fewer than three seeds in 1 of 8 settings"
    assert (fashion.verdict, fashion.reason) == ("inconclusive", few)


def part_of(log, number):
    """The only part of a claim that was measured."""
    (part,) = (part for part in parts_of(log, number).values() if part.effect is not None)
    return part


def test_seeds_that_disagree_leave_open_what_test_images_would_decide():
    log = Invented().grid("opt", {"sgd": [100] * 3, "adam": [120, 500, 160]})
    part, effect = part_of(log, 2), contrast_records(log.evidence())[1]
    assert effect["image_low"] > 0.001 > 0 > effect["low"] == part.interval[0]
    assert part.verdict == "inconclusive"
    assert part.needs.endswith("seeds of each setting would decide, in place of 3")
    assert part.note is None


def advice(value, half_image, *seeds):
    """What is said of this value, by the variance of a single training on each side and how many
    there are."""
    spreads = tuple(stats.Spread(variance / n, 1 / n, n) for variance, n in seeds)
    estimate = Estimate(value, (value - half_image, value + half_image), spreads)
    return stats.more_data(BEATS, estimate, 3, 14_000)


def test_how_many_seeds_would_decide_is_told_of_each_setting():
    """That so many have the power is simulated in test_coverage.py. Of 3 and 40 seeds more of the
    40 would be of no use."""
    told = advice(0.005, 0.0002, (0.004**2, 3), (0.004**2, 40))
    (number,) = re.findall(r"about (\d+) seeds of each setting would decide, in place of 3$", told)
    assert 4 < int(number) < 40


def test_where_no_number_of_seeds_would_decide_images_are_asked_for():
    seeds = [(0.001**2, 3)] * 2
    told = advice(0.002, 0.002, *seeds)
    why, how = "cannot be decided on this data set, if the estimate stays", "in place of 14,000"
    number = re.match(f"{why}: about ([0-9,]+) images would be needed, {how}$", told)[1]
    number = number.replace(",", "")
    needed = 14_000 * ((1.959964 + 0.841621) / 1.959964 * 0.002 / 0.001) ** 2
    assert needed <= int(number) < 1.1 * needed
    assert len(number.rstrip("0")) <= 2
    assert advice(0.001, 0.002, *seeds) == "at the criterion's edge"
    assert advice(0.0010001, 0.002, *seeds) == "too near the criterion's edge to decide"


@pytest.mark.parametrize(
    ("low", "best", "high", "verdict"),
    [
        (0.0001, 0.001, -300, "mixed"),
        (0.01, 0.03, -300, "mixed"),  # rates that nobody foresaw
        (0.0001, 0.001, 300, "supported"),
    ],
)
def test_a_claim_of_another_sign_at_another_learning_rate_is_mixed(low, best, high, verdict):
    """Adam leads by 700 answers at a low rate; compared are both at their best, the other one."""
    at = "at a learning rate of"
    depends = f"more accurate {at} {low} (+5.00 points) and less accurate {at} {best} (-2.14)"
    wrong = {("sgd", low): 2900, ("adam", low): 2200, ("sgd", best): 1200 + high}
    wrong |= {("adam", best): 1200}
    part = part_of(Invented().grid("opt lr", wrong, seeds=3, dataset="fashion"), 3)
    assert part.verdict == verdict
    assert without_intervals(part.reason) == (depends if high < 0 else MET)
    assert part.effect == pytest.approx(high / IMAGES)
    assert f"averaged: {100 * (700 + high) / 2 / IMAGES:+.2f} points" in part.basis


SGD = "more accurate with SGD (+2.00 points, +1.00 to +3.00)"
SURELY = f"{SGD} and less accurate with Adam (-1.00, -2.00 to -0.10)"
NOISE, FEW = ", not surely on two sides of the criterion", ", on too few seeds to be sure"
PERHAPS = f"{SGD} and about as accurate with Adam (-0.10, -1.00 to +0.80){NOISE}"


@pytest.mark.parametrize(
    ("value", "adam", "seeds", "verdict", "reason"),
    [
        (0.01, (-0.001, -0.01, 0.008), 3, "inconclusive", f"{MET}; {PERHAPS}"),
        (-0.01, (-0.001, -0.01, 0.008), 3, "contradicted", MISSED),
        (-0.01, (-0.01, -0.02, -0.001), 3, "mixed", SURELY),
        (0.01, (-0.01, -0.02, -0.001), 3, "mixed", SURELY),
        (0.01, (-0.01, -0.02, -0.001), 2, "inconclusive", f"{MET}; {SURELY}{FEW}"),
        (0.01, (0.01, 0.005, 0.015), 3, "supported", MET),
    ],
)
def test_a_sign_that_may_be_noise_is_never_plainly_supported(value, adam, seeds, verdict, reason):
    """An effect beside those of both optimisers, of which that of SGD surely is 2 points."""
    names = "level", "seeds", "difference", "low", "high"
    sides = ("with SGD", 3, 0.02, 0.01, 0.03), ("with Adam", seeds, *adam)
    levels = {"opt": [dict(zip(names, side, strict=True)) for side in sides]}
    estimate = Estimate(value, (value - 0.002, value + 0.002))
    effect = {"estimate": estimate, "seeds": 3, "runs": (), "levels": levels}
    part = judged_part("x", BEATS, None, "make q1a", "", effect)
    assert (part.verdict, part.reason) == (verdict, reason)
    assert part.needs == ("more seeds of each setting" if verdict == "inconclusive" else None)


def test_a_side_has_no_more_learning_rates_to_choose_from_than_the_other():
    """SGD was tried at three, Adam at one: what is compared is that one."""
    wrong = {("sgd", 0.001): 600, ("sgd", 0.01): 500, ("sgd", 0.03): 480, ("adam", 0.001): 600}
    assert part_of(Invented().grid("opt lr", wrong, seeds=3), 2).effect == 0
    wrong = {("sgd", 0.01): 500, ("adam", 0.001): 600}
    part = part_of(Invented().grid("opt lr", wrong, seeds=3), 2)
    assert part.basis.startswith("SGD minus Adam, each at its best learning rate (published")


def test_a_reduced_protocol_is_named_in_the_verdict():
    # Of a single setting, which needs no validation accuracy to be compared.
    log = Invented().grid("opt", {"sgd": 100, "adam": 300}, {"val_acc": None}, seeds=3, limit=100)
    assert findings.sentences("reasons", judge_claims(log.evidence()))[1] == (
        "MNIST: +1.43 points (+1.24 to +1.63), published +0.20. The whole interval meets the "
        "criterion; reduced setup: 100 training images."
    )


def both_devices(seeds=1, metrics=None, **settings):
    """Rows of hw_bench.py of a CPU, and of a GPU that is 25 times as fast."""
    log = Invented()
    for (device, ms), seed in itertools.product((("cpu", 1000.0), ("cuda", 40.0)), range(seeds)):
        log.speed(ms, metrics, device=device, seed=seed, **settings)
    return log


def test_one_part_only_leaves_a_claim_open_and_one_seed_on_three_machines_is_one_seed():
    claim = judge_claims(both_devices(3, {"test_acc": 0.85}).evidence())[8]
    assert [part.verdict for part in claim.parts].count("supported") == 1
    assert len(claim.parts) == 4
    assert claim.verdict == "inconclusive"
    log = Invented()
    for device, machine in itertools.product(("cpu", "cuda"), "abc"):
        log.speed(100.0, {"test_acc": 0.85}, device=device)
        log.rows[-1]["env"]["cpu_model"] = machine
    part = parts_of(log, 9)["ResNet-18 with SGD"]
    assert part.verdict == "inconclusive"
    assert part.needs.startswith("three seeds of each setting: python hw_bench.py")


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_trainings_on_any_accelerator_are_beside_those_of_a_cpu(kind):
    part = part_of(Invented().grid("device", {"cpu": 100, kind: 240}, seeds=3), 9)
    assert part.verdict == "supported"
    assert part.basis.startswith(f"{kind} minus cpu, all else equal; ")
    assert part.effect == pytest.approx(-0.01)


def test_a_ratio_is_of_rounds_or_else_of_medians_and_of_two_machines_there_is_none():
    log, subject = both_devices(group="one"), "ResNet-18 with SGD"
    cpu, gpu = log.rows
    cpu["metrics"]["rounds"]["step_ms"], gpu["metrics"]["rounds"]["step_ms"] = [260, 250], [10, 10]
    assert parts_of(log, 8)[subject].effect == pytest.approx((26 * 25) ** 0.5)
    for precision, told in (("fp32", True), ("tf32", False), ("bf16", False)):
        part = parts_of(both_devices(precision=precision), 8)[subject]
        assert (part.effect, part.verdict) == (pytest.approx(25, rel=0.01), "supported")
        assert ("fp32 here is without TF32" in part.reason) == told
    cpu["env"]["cpu"] = "another"
    assert parts_of(log, 8)[subject].verdict == "not measured"
    log = both_devices(image_size=64)  # other work than the study's says nothing of its speed
    for number in (8, 10):
        assert {part.effect for part in parts_of(log, number).values()} == {None}


def test_of_repeated_timings_the_surest_counts_whatever_noise_was_accepted():
    log = Invented()
    for noise, opts in ((0.24, (250.0, 300.0)), (0.02, (260.0, 265.0)), (0.10, (999.0, 9.0))):
        for opt, ms in zip(("sgd", "adam"), opts, strict=True):
            for device, share in (("cpu", 1), ("cuda", 10)):
                own = {"device": device, "opt": opt, "accept_noise": noise < 0.2}
                own["steps"] = 9 + int(100 * noise)
                log.speed(ms / share, {"noise": noise}, group=f"{noise}{device}", **own)
    assert parts_of(log, 8)["ResNet-18 with SGD"].effect == pytest.approx(10, rel=0.01)
    for place in ("on a CPU", "on a GPU"):
        assert parts_of(log, 10)[f"ResNet-18 {place}"].effect == pytest.approx(265 / 260, rel=0.01)


def test_the_cost_of_adam_is_that_of_rounds_which_both_met():
    """A machine that slows down slows both; what it did between two groups is unknown."""
    log = Invented()
    for opt, times in (("sgd", [1000, 1500, 1001, 1502]), ("adam", [1041, 1560, 1042, 1561])):
        log.speed(1000.0, {"rounds": {"group": "one", "step_ms": times}}, opt=opt, device="cpu")
    part = parts_of(log, 10)["ResNet-18 on a CPU"]
    logs = np.log([1041 / 1000, 1560 / 1500, 1042 / 1001, 1561 / 1502])
    half = t.ppf(0.975, 3) * logs.std(ddof=1) / 2
    assert part.effect == pytest.approx(np.exp(logs.mean()))
    assert part.interval == pytest.approx(np.exp([logs.mean() - half, logs.mean() + half]))
    whole = log.rows[0]["config"] | {"full_epoch": True}
    log.add("hw_train", whole, log.rows[0]["metrics"] | {"noise": 0.0})
    log.rows[0]["metrics"]["noise"] = log.rows[1]["metrics"]["noise"] = 0.05
    assert parts_of(log, 10)["ResNet-18 on a CPU"] == part  # the one without a partner is no rival
    log.rows.pop()
    adam = log.rows[1]
    rounds, env = adam["metrics"]["rounds"], adam["env"] | {"cpu_model": "another"}
    changes = [{"group": "another"}, {"group": None}, {"step_ms": times[1:]}, {"step_ms": None}]
    changes += [{"step_ms": [0, *times[1:]]}, {}]  # and of one group by chance, on two machines
    for change in changes:
        adam["env"] = adam["env"] if change else env
        adam["metrics"]["rounds"] = rounds | change
        part = parts_of(log, 10)["ResNet-18 on a CPU"]
        assert (part.effect, part.needs) == (None, "make q2")
        assert part.reason == "steps of both did not take turns: make q2"


@pytest.mark.parametrize(
    ("gap", "verdict"), [(0.005, "supported"), (0.04, "contradicted"), (0.02, "inconclusive")]
)
def test_overfitting_is_training_minus_validation_accuracy(gap, verdict):
    """Of the final weights: an epoch's running figure is lower, and says nothing here."""
    log, val = Invented(), RISING["fashion"]
    for seed in range(3):
        name = log.train(1000, {"train_acc": val[-1] + gap}, dataset="fashion", seed=seed)
        log.epochs(name, val, [acc - 0.5 for acc in val])
    part = parts_of(log, 11)["FashionMNIST: overfitting"]
    assert part.effect == pytest.approx(gap, abs=1e-4)
    assert part.verdict == verdict
    for row in log.rows:
        row["metrics"].pop("train_acc")  # an older row, whose training images were not tested
    parts = parts_of(log, 11)
    assert parts["FashionMNIST: overfitting"].effect is None
    assert parts["FashionMNIST: overfitting"].needs.endswith(": make q1a ARGS=--force")
    assert parts["FashionMNIST: largest fall"].effect is not None


def lines_of(log, section):
    """The report's sentences of a section."""
    table, *_ = findings.judged_tables(log.rows, log.load)
    return [r["finding"] for r in table.records if r["section"] == section]


def test_findings_say_what_was_decided_and_nothing_else():
    results, evidence = results_of("present")
    assert findings.missing_records(results, []) == []
    lines = findings.sentences("reasons", results)
    assert len(lines) == 11
    assert lines[7].count("25.00 times (24.") == 2
    assert lines[7].count("noise between processes is not in the interval") == 1  # not of each
    told, _ = findings.preferences(contrast_records(evidence))
    sides = {(record["name"], record["better"], record["worse"]) for record in told}
    assert sides >= {("MNIST", "SGD", "Adam"), ("FashionMNIST", "Adam", "SGD")}
    results, evidence = results_of("little")
    assert all(part.needs for result in results for part in result.parts)
    told, still_open = findings.preferences(contrast_records(evidence))
    assert {record["better"] for record in told} <= {"the best ResNet"}
    assert "SGD or Adam" in {record["choice"] for record in still_open}


def test_a_claim_that_is_decided_by_some_parts_is_told_by_those_and_what_is_missing_by_name():
    parts = [Part("fine", "points", 0.01, "met", "supported", 0.01, (0.005, 0.015))]
    parts += [Part("a: bad", "points", None, "why", "contradicted", -2e-5, (-0.01, 0.0005))]
    parts += [Part("none", "times", 2.0, "no GPU", needs="make q2")]
    claims = [Claim(3, "It is so", "", tuple(parts)), Claim(4, "And so", "", (parts[2],))]
    open = Claim(5, "And so", "", (parts[0], parts[2]))
    assert findings.sentences("reasons", [*claims, open]) == [
        "a, bad: +0.00 points (-1.00 to +0.05). Why.",
        "No GPU.",
        "fine: +1.00 points (+0.50 to +1.50), published +1.00. Met. Not measured: none.",
    ]
    *_, line = findings.sentences("readme", {}, claims)
    told = "1 is contradicted: (3) It is so (missed: a: bad +0.00 points). 1 is not measured: (4)."
    assert line == f"Of the study's 2 claims {told}"
    [record] = findings.missing_records(claims, [])
    assert record == {"claims": "3 in part, 4", "lacks": None, "command": "make q2", "time": None}
    lines = findings.sentences("missing", [record, record | {"time": "about 2 h"}])
    assert lines == [f"claims 3 in part, 4: {time}make q2" for time in ("", "about 2 h here: ")]


def test_what_one_command_trains_is_asked_for_once_and_a_cuda_card_by_name():
    again, both = (f"make {part} ARGS='--seed 0 1 2'" for part in ("q1a", "q1a q1b"))
    lacks, cuda, edge = "three seeds of each setting", "make q2 ARGS='--device cuda'", "at the edge"
    needs = {1: f"{lacks}: {again}", 7: f"{lacks}: {both}", 8: cuda, 11: edge}
    claims = [Claim(n, "", "", (Part("x", "points", None, "", needs=s),)) for n, s in needs.items()]
    known = findings.missing_records(claims, [])
    told = [("1, 7", lacks, both), ("8", "a CUDA card", cuda), ("11", edge, None)]
    assert [(r["claims"], r["lacks"], r["command"]) for r in known] == told


def test_a_kernel_that_loses_with_other_features_is_told_and_so_is_a_study_that_misses_its_claim():
    log = invent_trainings()
    for kernel, wrong in (("rbf", 260), ("poly", 230)):
        log.svm(wrong, dataset="mnist", kernel=kernel, features="hog")
    parts, other = parts_of(log, 6), "the other way round with HOG features"
    assert parts["MNIST"].reason == f"{MET}; {other} (98.14 against 98.36 %)"
    assert parts["FashionMNIST"].reason == MET
    misses = {name: "own figure misses" in part.reason for name, part in parts_of(log, 4).items()}
    assert misses == {"MNIST": False, "FashionMNIST": True}  # published: +0.45 and +1.72 points


def test_an_effect_beyond_any_doubt_is_told_and_of_too_few_seeds_none():
    wrong = {("sgd", 5): 100, ("adam", 5): 2050, ("sgd", 3): 100, ("adam", 3): 2050}
    log = Invented().grid("opt epochs", wrong, seeds=3)
    records = contrast_records(log.evidence())
    assert only(records, dataset="mnist", contrast="SGD minus Adam")["p_holm"] < 1e-9
    lines = lines_of(log, "statistics")
    assert lines[0].startswith("On MNIST SGD was more accurate than Adam: by 13.93 points (")
    none, lead, *_, few = lines_of(Invented().grid("opt epochs", wrong), "statistics")
    settled = "No factor of the networks is settled, for want of 3 seeds of each setting: "
    assert none == f"{settled}SGD or Adam; 5 epochs or 3 epochs."
    led = r"On MNIST SGD leads Adam, by 13.93 points \(13.* to 14.*\), on fewer than th"
    assert re.match(led, lead)
    assert few == "On MNIST there are too few seeds to say which is better: 5 epochs or 3 epochs."


@pytest.mark.parametrize(
    ("resnet18", "resnet50", "told"),  # wrong answers of SGD, where Adam has 200
    [
        (100, 240, ("more", "than", "18 (+0.71 points)", "less", "50 (-0.29)")),
        (100, 203, ("more", "than", "18 (+0.71 points)", "about as", "50 (-0.02)")),
        (600, 203, ("about as", "as", "50 (-0.02 points)", "less", "18 (-2.86)")),
        (203, 203, None),
    ],
)
def test_what_is_better_here_and_worse_there_is_not_recommended_but_told(resnet18, resnet50, told):
    wrong = {("sgd", "resnet18"): resnet18, ("sgd", "resnet50"): resnet50}
    wrong |= {("adam", "resnet18"): 200, ("adam", "resnet50"): 200}
    log = Invented().grid("opt model", wrong, seeds=3)
    lines = list(map(without_intervals, lines_of(log, "statistics")))
    if told is None:  # a lead that counts as none
        none = "On MNIST no difference above 0.1 points is significant: "
        assert lines == [f"{none}ResNet-18 or ResNet-50; SGD or Adam."]
        return
    told = "{} accurate {} Adam with ResNet-{} and {} accurate with ResNet-{}".format(*told)
    assert f"On MNIST SGD was {told}." in lines
    assert not any(":" in line and "Adam" in line for line in lines)  # neither plainly nor as open
    log = Invented().grid("opt model", wrong)
    lines = list(map(without_intervals, lines_of(log, "statistics")))
    assert f"On MNIST SGD was {told}{FEW}." in lines
    assert not any(" leads " in line and "Adam" in line for line in lines)


def test_the_cheapest_tied_configuration_is_named_beside_the_chosen_one():
    log, split = Invented(), "MNIST, the study's split: "
    low, high = (f"{100 * end:.2f}" for end in stats.wilson_interval(13_900, 14_000))
    name = "ResNet-18, SGD, learning rate {}, 5 epochs"
    chosen, tied, worse = (name.format(lr) for lr in (0.001, 0.01, 0.1))
    answer = f"{split}{chosen}: 99.29 % on test images ({low} to {high}; {{}}). Training: 9 s ("
    told = f"{split}2 configurations beside the chosen one, which takes 9 s (busy machine)"
    for seed in range(3):
        log.train(100, {"train_ms": 9000.0, "val_acc": 0.99}, seed=seed)
        log.rows[-1]["env"]["load_average"] = [9.0, 0, 0]
        log.train(wrong_on((1, 100)), {"train_ms": 5000.0, "val_acc": 0.98}, lr=0.01, seed=seed)
        log.train(900, {"train_ms": 1000.0, "val_acc": 0.90}, lr=0.1, seed=seed)
        if seed == 0:  # which says nothing of either
            few = "All 2 others have too few seeds to be compared."
            start = answer.format("one seed, whose noise is not in it")
            assert lines_of(log, "answer") == [f"{start}busy machine). {few}"]
            assert lines_of(log, "q1a")[0] == f"{told}, 2 on too few seeds to tell from it."
    (line,) = lines_of(log, "answer")
    start, end = line.split("busy machine). No significant difference, and 1.8 times cheaper: ")
    assert start == answer.format("3 seeds")
    assert end.startswith(f"{tied}, lower by 0.00 points (")
    equal = "No significant difference on 3 seeds, by intervals that are "
    equal += f"adjusted for 2 comparisons: {tied} (+0.00 points; 5 s)."
    told = f"{told}. {equal} Less accurate: {worse} (-5.71 points; 1 s)."
    assert without_intervals(lines_of(log, "q1a")[0]) == told
    log.svm(50, {"val_acc": 0.999, "fit_ms": 100.0}, kernel="rbf")  # a network is no rival of it
    (line,) = lines_of(log, "answer")
    assert line.startswith(f"{split}SVM, RBF kernel: 99.64 % on test images")
    assert "cheaper" not in line


def test_of_a_run_that_stands_for_two_trainings_both_accuracies_are_told():
    log = Invented()
    name = [log.train(wrong) for wrong in (140, 100)][-1]
    config = {"train_run_id": name, "engine": "eager"}
    log.add("hw_infer", config, {"engine": "eager", "test_acc": 0.98})
    log.train(200, lr=0.1)
    (line,) = lines_of(log, "log")
    assert line.startswith(f"Run {name} stands for several trainings of the same settings")
    told = re.findall(r"([\d.]+) % \((\w+)", line)
    assert told == [("99.00", "training"), ("99.29", "training"), ("98.00", "inference")]
    log.rows = log.rows[1:2] + log.rows[3:]
    assert lines_of(log, "log") == []


def test_what_is_missing_says_how_long_the_study_s_trainings_take_as_their_like_did():
    """Of ResNet-18 with SGD: three epochs more of what has five, five of three other trainings."""
    log, settings = Invented(), {"data_on": "host", "seed": 0}
    name, need = log.train(100, **settings), "three seeds of each setting: make q1a ARGS='--seed 0'"
    assert findings.time_of(need, log.rows) is None
    log.epochs(name, [0.9] * 5, [0.9] * 5, train_ms=60_000)
    assert findings.time_of(need, log.rows) == "more than 18.0 min"
    assert findings.time_of("make q2", log.rows) is None
    for model, opt in itertools.product(("resnet18", "resnet50"), ("sgd", "adam")):
        name = log.train(9, **settings | {"model": model, "opt": opt, "lr": 9.0})
        log.epochs(name, [0.9], [0.9], train_ms=60_000)
    assert findings.time_of(need, log.rows) == "about 78.0 min"
    # And of two more seeds: (78 + 2 * 16 * 5) min.
    assert ", about 4.0 h here: make q1a ARGS='--seed 0 1 2'" in lines_of(log, "missing")[0]


def test_what_is_nearly_as_accurate_at_half_the_cost_is_named():
    log = Invented()
    models = {"resnet18": (100, 9000.0, 0.99), "vgg5": (400, 40.0, 0.986)}
    models |= {"resnet34": (400, 20.0, 0.984), "resnet50": (400, 4600.0, 0.989)}
    for model, (wrong, ms, val_acc) in models.items():
        log.train(wrong, {"train_ms": ms, "val_acc": val_acc}, model=model)
    near = "Where 0.5 points of validation accuracy may be lost, VGG-5, SGD, learning rate 0.001, "
    near += "5 epochs is 225 times cheaper: 0.04 s in place of 9 s. Its test accuracy is lower by "
    (line,) = lines_of(log, "q1a")
    assert f"{near}2.14 points (1.9" in line
    log.held[log.rows[1]["run_id"]]["pred"][50:] = 1
    assert "Its test accuracy is higher by 0.36 points (0.2" in lines_of(log, "q1a")[0]
    del log.rows[1]
    assert "cheaper" not in lines_of(log, "q1a")[0]


def test_the_cost_of_unlike_threads_is_that_of_their_cores_and_a_busy_machine_is_named():
    log = Invented()
    env = {"cpu": "a CPU", "device": "a CPU", "cpu_count": 2}
    for model, threads, load, ms in (("resnet18", 1, 3.5, 9000.0), ("vgg5", 2, 0.1, 45.0)):
        log.train(100 * threads, {"train_ms": ms, "val_acc": 0.99 - threads / 1000}, model=model)
        log.rows[-1]["env"] = env | {"threads": threads, "load_average": [load, 0, 0]}
    dear = "in place of 9 s (1 thread, busy machine)."
    assert f"100 times cheaper: 0.045 s (2 threads) {dear}" in lines_of(log, "q1a")[0]
    log.rows[-1]["env"]["cpu_model"] = "another"
    assert "cheaper" not in lines_of(log, "q1a")[0]


def test_the_time_of_another_device_is_named_and_makes_nothing_cheaper():
    log = Invented()
    env = {"cpu": "a CPU", "device": "a CPU", "cpu_count": 2, "threads": 2}
    for model, device, wrong, ms in (("resnet18", "cpu", 100, 9e3), ("vgg5", "cuda", 400, 40.0)):
        log.grid("model", {model: [wrong] * 3}, {"train_ms": ms}, device=device)
        for row in log.rows[-3:]:
            row["env"] = env | ({"device": "a card"} if device == "cuda" else {})
    (line,) = lines_of(log, "q1a")
    assert "0.04 s (a card)" in line
    assert "heaper:" not in line + lines_of(log, "answer")[0]


def test_the_fastest_variant_is_named_where_it_surely_leads():
    """The last two variants were measured in another run, whose first one was faster."""
    log = Invented()
    names = "ratio", "interval", "baseline", "baseline_label"
    for threads, rate, *speedup in (
        (1, 160, 1.0, [1.0, 1.0], "a"),
        (2, 300, 1.9, [1.8, 2.0], "a"),
        (4, 340, 2.1, [0.9, 4.0], "a"),
        (7, 305, 1.4, [1.3, 1.45], "b"),
        (8, 310, 1.5, [1.4, 1.6], "b"),
    ):
        metrics = {"speedup": dict(zip(names, [*speedup, "the first"], strict=True))}
        metrics |= {"images_per_s": rate, "label": f"{threads} threads"}
        log.speed(100.0, metrics, device="cpu", threads=threads)
    assert lines_of(log, "q2") == [
        "CPU only: no GPU was measured.",
        'ResNet-18 with SGD trains fastest on a CPU as "8 threads": 1.50 times (1.40 to 1.60) as '
        'fast as "the first", at 310 images/s of 224x224 pixels in batches of 16. No significant '
        "difference from it: 7 threads.",
    ]


# The last two are of other batches or threads: over another eager, they say nothing.
OFFLINE = [(256, 2, 390, 3.9, [3.7, 4.1]), (64, 2, 380, 9, [8, 10]), (256, 1, 200, 9, [8, 10])]


@pytest.mark.parametrize(
    ("scenario", "batch", "what", "eager", "rate", "others"),
    [
        ("single", 1, "one image", "10.0 ms", "2.50 ms", [(1, 2, 500, 5, [0.8, 9])]),
        ("offline", 256, "batches of 256", "100 images/s", "400 images/s", OFFLINE),
    ],
)
def test_the_fastest_engine_is_named_where_it_surely_leads(
    scenario, batch, what, eager, rate, others
):
    """The third is quick, with a fifth of the queries: no rival."""
    same = (batch, 2, 100, 1, [1, 1]), (batch, 2, 400, 4, [3, 5]), (batch, 2, 900, 9, [8, 10])
    engines = "eager", "onnxruntime", "openvino-int8", "openvino", "torchscript", "aotinductor"
    log, measured = Invented(), zip(engines, [*same, *others], strict=False)
    for engine, (size, threads, speed, ratio, interval) in measured:
        config = {"train_run_id": "abc", "engine": engine, "batch_size": size, "threads": threads}
        own = {"engine": engine, "scenario": scenario, "batch_size": size, "dataset": "mnist"}
        own |= {"images_per_s": speed, "speedup_interval": interval, "model": "vgg5"}
        own |= {"latency_ms": {"p50": 1000 / speed}, "speedup_vs_eager": ratio}
        own |= {"test_acc": 0.99, "noise": 0.24, "quick": engine.endswith("int8")}
        log.add("hw_infer", config, own)
    assert lines_of(log, "infer") == [
        f"VGG-5, trained on MNIST, answers {what} fastest on a CPU with onnxruntime: {rate}, with "
        "99.00 % of the test images right. That is 4.00 times (3.00 to 5.00) as fast as "
        f'"eager", which does {eager} (noisy: IQR 24 % of the median). No significant difference '
        "from it: openvino."
    ]


def test_another_recipe_and_the_best_svm_are_told_as_numbers_and_so_is_a_validation_that_flatters():
    log = Invented()
    for seed in range(3):
        log.train(150, opt="adam", seed=seed)
        log.train(60, {"val_acc": 0.9993}, opt="muon", schedule="triangular", seed=seed)
    log.svm(400)
    tables = {table.key: table for table in findings.judged_tables(log.rows, log.load)}
    told = "\n".join(record["finding"] for record in tables["findings"].records)
    gap = 0.9993 - (1 - 60 / 14_000)  # in 7,000 images to validate on, and 14,000 to test
    low, high = stats.newcombe_interval((6995, 7000), (13_940, 14_000))
    for text in (
        f"Validation promised {100 * gap:.2f} points more ({100 * low:.2f} to {100 * high:.2f}).",
        "learning rate 0.001, 5 epochs, gets 98.93 %, published 99.33 % (-0.40 points, ",
        "minus that: +0.64 points (",
        "in several settings at once (warm-up and linear decay); what each of them adds was not ",
        "gets 97.14 % of the test images right, the chosen network 99.57 %. The SVM's accuracy is "
        "lower by 2.43 points (",
        ", on fewer than three seeds in 1 of 2 settings.",
    ):
        assert text in told
