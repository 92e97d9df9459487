"""Comparisons from stored predictions: what is paired, what counts once, what is left out."""

import itertools
import math

import numpy as np
import pytest
from invented import IMAGES, Invented, only, wrong_on
from scipy import stats

from common.base.config import TrainConfig
from common.judge import compare
from common.judge.claims import judge_claims
from common.judge.compare import contrast_records, tie_records
from common.judge.findings import preferences
from common.judge.rows import latest_ok, pick_best
from common.judge.stats import newcombe_interval, paired_interval

WRONG = {"sgd": [100, 140, 150], "adam": [180, 150, 300]}


@pytest.fixture
def log():
    return Invented()


def mcnemar(first_only, second_only):
    return stats.binomtest(first_only, first_only + second_only).pvalue


def contrast_of(log, name="SGD minus Adam"):
    return only(contrast_records(log.evidence()), dataset="mnist", contrast=name)


def train_splits(log, **settings):
    """Of both optimisers three trainings, each on a random split of its own."""
    for opt, counts in WRONG.items():
        for seed, count in enumerate(counts):
            split = {"split_sha256": str(seed)}
            log.train(count, split, opt=opt, split_seed=seed, **settings)
    return log


def test_a_contrast_of_one_pair_is_mcnemar_s_test(log):
    for right in (900, wrong_on((0, 140), (500, 20))):  # of one that is repeated the last counts
        log.train(right, opt="sgd")
    log.train(wrong_on((0, 140), (900, 50)), opt="adam")
    record = contrast_of(log)
    assert (record["first_only"], record["second_only"]) == (50, 20)
    assert record["difference"] == pytest.approx(30 / IMAGES)
    assert record["p"] == record["p_holm"] == pytest.approx(mcnemar(50, 20))  # of nothing else
    assert (record["pairs"], record["trajectories"]) == (1, 2)
    assert record["low"] < 30 / IMAGES < record["high"]
    assert record["low"] == pytest.approx(record["image_low"])
    assert record["high"] == pytest.approx(record["image_high"])


def test_a_contrast_is_of_the_device_with_three_seeds_and_cuda_graphs_change_nothing(log):
    for epochs in (3, 5):
        log.grid("opt", {"sgd": 100, "adam": 150}, epochs=epochs, device="cpu", seeds=2)
    log.grid("opt", {"sgd": 160, "adam": 100}, epochs=5, device="cuda", seeds=3, cuda_graph=True)
    log.train(900, opt="sgd", device="cuda")  # a repetition of the first, but for the graph
    log.rows.insert(0, log.rows.pop())
    record = contrast_of(log)
    assert (record["seeds"], record["pairs"]) == (3, 1)
    assert record["difference"] == pytest.approx(-60 / IMAGES)
    (contrast,) = (c for c in compare.CONTRASTS if c.factor == "opt")
    assert contrast.reversals(log.evidence(), "mnist") == []  # it is no other setup


def test_holm_is_over_every_contrast_of_every_data_set(log):
    for dataset, worse in (("mnist", 20), ("fashion", 40)):
        log.grid("opt", {"sgd": 100, "adam": 100 + worse}, dataset=dataset)
    records = contrast_records(log.evidence())
    for dataset, p in (("mnist", mcnemar(20, 0)), ("fashion", 2 * mcnemar(40, 0))):
        record = only(records, dataset=dataset, contrast="SGD minus Adam")
        assert record["p_holm"] == pytest.approx(p)
    (none,) = {r["note"] for r in records if "p" not in r and r["kind"] == "train"}
    assert none == "no pair in the log: make q1a"
    assert sum("p" in record for record in records) == 2


def test_rows_of_one_training_are_one_piece_of_evidence(log):
    """As train.py writes them: each with pinned memory too, the shorter one on the way."""
    for opt in ("sgd", "adam"):
        trained = None
        for epochs, pin in itertools.product((5, 3), (False, True)):
            wrong = 100 + 40 * (epochs == 3) + 30 * (opt == "adam")
            settings = {"opt": opt, "epochs": epochs, "pin_memory": pin}
            name = log.train(wrong, {"shared_with": trained}, **settings)
            trained = trained or name
    evidence = log.evidence()
    assert (len(log.rows), len(evidence.groups)) == (8, 4)
    for name, first_only in (("SGD minus Adam", 60), ("5 epochs minus 3 epochs", 80)):
        record = contrast_of(log, name)
        assert (record["pairs"], record["trajectories"]) == (2, 2)
        assert record["first_only"] == first_only


def test_runs_that_differ_in_something_else_are_no_pair_and_the_study_s_protocol_goes_first(log):
    log.train(100, opt="sgd")
    for other in ({"batch_size": 8}, {"dataset": "fashion"}, {"split": "official"}):
        log.train(200, opt="adam", **other)
    assert all("p" not in record for record in contrast_records(log.evidence()))
    for image_size, seeds in ((64, 1), (32, 3)):
        log.grid("opt", {"sgd": 100, "adam": 120}, seeds=seeds, image_size=image_size)
    record = contrast_of(log)
    assert record["pairs"] == 1
    assert record["note"] == "one seed: the interval holds the noise of test images only"


def test_several_splits_of_the_images_count_as_seeds_do(log):
    """By hand: the mean of three splits' differences, each paired on the split's own test images;
    Student's over the splits, and the noise of one split's images."""
    for row in train_splits(log).rows:
        log.held[row["run_id"]]["index"] += row["config"]["split_seed"]
    sgd, adam = log.evidence().groups
    assert len(sgd.rows) == len(adam.rows) == 3
    record = contrast_of(log)
    differences = (np.array(WRONG["adam"]) - WRONG["sgd"]) / IMAGES
    assert record["difference"] == pytest.approx(differences.mean())
    rights = [np.array([wrong_on((0, n)) for n in counts], int) for counts in WRONG.values()]
    ends = [paired_interval(first - second, 1) for first, second in zip(*rights, strict=True)]
    half = stats.t.ppf(0.975, 2) * stats.sem(differences)
    offsets = np.hypot(np.mean(ends, 0) - differences.mean(), half) * [-1, 1]
    assert (record["low"], record["high"]) == pytest.approx(differences.mean() + offsets)
    assert (record["seeds"], record["trajectories"], len(record["runs"])) == (3, 6, 6)
    (chosen, rival) = tie_records(log.evidence())  # on validation all are alike but for their means
    assert (chosen["setting"], chosen["seeds"]) == (sgd.name(), 3)
    assert rival["tied"] is True
    settings = [record["setting"] for record in tie_records(log.evidence())]
    log.train(10, opt="sgd", split_seed=7)  # where no other was tested, and one that is on few
    log.train(10, opt="muon", split_seed=0)
    assert [record["setting"] for record in tie_records(log.evidence())] == settings
    other = "on another random split of the images than those compared"
    assert log.evidence().reasons == {other: 2}


def test_of_seeds_on_one_test_part_the_split_s_seed_is_no_less_a_seed(log):
    """The official test part stays, whatever validates: three split seeds are as three seeds."""
    by_seed = contrast_of(Invented().grid("opt", WRONG, split="official"))
    by_split = contrast_of(train_splits(log, split="official"))
    for key in ("difference", "low", "high", "p", "seeds", "trajectories"):
        assert by_seed[key] == by_split[key]


def test_the_interval_holds_the_noise_of_images_and_of_seeds_each_once(log):
    """By hand: the seeds' by Welch, the images' by the bootstrap, less what is in the seeds'."""
    wrong = WRONG | {"adam": [*WRONG["adam"], 220]}
    record = contrast_of(log.grid("opt", wrong))
    rights = [np.array([wrong_on((0, n)) for n in side], float) for side in wrong.values()]
    answers = stats.ttest_ind(*(r.mean(1) for r in rights), equal_var=False)
    half = np.ptp(answers.confidence_interval()) / 2
    images = rights[0].mean(0) - rights[1].mean(0)
    own = sum(r.var(0, ddof=1).mean() / len(r) for r in rights) / IMAGES
    kept = np.sqrt(1 - own / (images.var() / IMAGES))
    low, high = paired_interval(np.rint(12 * images).astype(int), 12)
    mean = images.mean()
    assert record["difference"] == pytest.approx(mean)
    assert record["low"] == pytest.approx(mean - np.hypot(kept * (mean - low), half))
    assert record["high"] == pytest.approx(mean + np.hypot(kept * (high - mean), half))
    assert (record["image_low"], record["image_high"]) == pytest.approx((low, high))
    assert (record["seeds"], record["pairs"], record["trajectories"]) == (3, 1, 7)


def test_seeds_count_alike_whatever_their_numbers_and_their_agreement_may_be_chance(log):
    shared = contrast_of(log.grid("opt", {"sgd": [200, 240, 280], "adam": [150, 260, 190]}))
    for row in log.rows[3:]:
        row["config"]["seed"] += 3
    apart = contrast_of(log)
    for name in ("difference", "low", "high", "p"):
        assert shared[name] == apart[name]
    log.rows.clear()  # three seeds of each, no image missed twice, all as often wrong
    for (opt, wrong), seed in itertools.product((("sgd", 100), ("adam", 120)), range(3)):
        log.train(wrong_on((1000 * seed + 5000 * (opt == "adam"), wrong)), opt=opt, seed=seed)
    record = contrast_of(log)
    luck = np.sqrt((100 + 120) / 3) / IMAGES  # of the mean of three counts each
    assert record["high"] - record["low"] > 2 * 1.9 * luck
    assert record["p"] > 0.02


def test_a_setting_counts_once_however_many_seeds_it_has(log):
    """One pair of two has thirty seeds: the effect stays the mean of the two."""
    log.grid("opt", {"sgd": [100, 101, 102] * 10, "adam": 201}, lr=1e-3)
    log.grid("opt", {"sgd": 900, "adam": 600}, lr=1e-4, epochs=3)
    record = contrast_of(log)
    assert record["difference"] == pytest.approx((100 - 300) / 2 / IMAGES)
    assert (record["pairs"], record["seeds"], record["trajectories"]) == (2, 1, 33)
    assert "one seed" in record["note"]


def test_epochs_of_one_training_share_its_noise(log):
    """3 and 5 epochs of a seed go up and down together: of their difference that noise is gone."""
    rng = np.random.default_rng(0)
    luck = enumerate((0, 90, 200))
    for (seed, shift), (epochs, count) in itertools.product(luck, ((5, 300), (3, 350))):
        right = wrong_on((0, count + shift))
        right[rng.integers(1000, IMAGES, 5)] = False
        log.train(right, epochs=epochs, seed=seed)
    record = contrast_of(log, "5 epochs minus 3 epochs")
    assert record["low"] > 25 / IMAGES  # of two samples of trainings it would be -150
    assert record["high"] < 75 / IMAGES


def test_optimisers_meet_each_at_its_best_learning_rate_chosen_on_validation(log):
    """And the average over all rates, which tells of the worst, stands beside."""
    known = {("sgd", 1e-3): (100, 0.99), ("adam", 1e-3): (150, 0.98), ("sgd", 1e-4): (900, 0.9)}
    for (opt, lr), (wrong, val_acc) in (known | {("adam", 1e-4): (120, 0.97)}).items():
        log.train(wrong, {"val_acc": val_acc}, opt=opt, lr=lr)
    for name, pairs, wrong in (("each at its best learning rate", 1, 50), ("averaged", 2, -365)):
        record = contrast_of(log, f"SGD minus Adam, {name}")
        assert (record["pairs"], record["difference"]) == (pairs, pytest.approx(wrong / IMAGES))


def test_an_interaction_is_the_difference_of_two_effects_and_each_pair_has_a_row(log):
    wrong = {("sgd", 1e-3): 100, ("adam", 1e-3): 150, ("sgd", 1e-4): 100, ("adam", 1e-4): 300}
    (record,) = compare.interaction_records(log.grid("opt lr", wrong).evidence())
    with_rate = "with a learning rate of 0.001 than with a learning rate of 0.0001"
    assert record["contrast"] == f"SGD minus Adam: by how much more {with_rate}"
    assert record["difference"] == pytest.approx((50 - 200) / IMAGES)
    assert record["high"] < 0
    records = [r for r in compare.pair_records(log.evidence()) if r["contrast"] == "SGD minus Adam"]
    rates = [f"ResNet-18, learning rate {rate}, 5 epochs" for rate in ("0.001", "0.0001")]
    assert [record["setting"] for record in records] == rates
    accuracies = [(record["first_acc"], record["second_acc"]) for record in records]
    assert accuracies == [(1 - 100 / IMAGES, 1 - wrong / IMAGES) for wrong in (150, 300)]


def test_the_best_network_and_svm_chosen_on_validation_meet_on_images_that_both_have(log):
    log.train(100, {"val_acc": 0.9})
    log.train(200, {"val_acc": 0.95}, opt="adam")
    log.train(10, {"val_acc": 0.99}, model="vgg5")
    log.svm(500, {"val_acc": 0.8}, kernel="rbf")
    log.svm(300, {"val_acc": 0.7}, kernel="poly")
    for opt, lr in itertools.product(("sgd", "adam"), (1e-3, 1e-4)):
        name = log.train(100, {"val_acc": 0.99}, opt=opt, lr=lr, split_seed=1)
        log.held[name]["index"] = log.held[name]["index"] + 1
    record = contrast_of(log, "best ResNet minus best SVM, both in the study's setup")
    assert record["difference"] == pytest.approx(300 / IMAGES)


def test_a_side_of_one_seed_is_taken_to_vary_as_the_other_does_and_decides_nothing(log):
    log.grid("opt", {"sgd": [100, 140, 180]}, {"val_acc": 0.9})
    log.svm(400)
    record = contrast_of(log, "best ResNet minus best SVM, both in the study's setup")
    assert (record["pairs"], record["seeds"]) == (1, 1)
    half = stats.t.isf(0.025, 2) * 40 / IMAGES * math.sqrt(1 / 3 + 1)
    assert record["difference"] - record["low"] > half
    assert record["note"] == "settings of one seed are taken to vary as those of several do"
    part = judge_claims(log.evidence())[6].parts[0]
    assert part.verdict == "inconclusive"
    assert part.needs == "three seeds of each setting: make q1a q1b ARGS='--seed 0 1 2'"
    told, (still_open,) = preferences([record])
    assert (told, still_open["choice"]) == ([], "the best ResNet or the best SVM")


def test_a_row_older_than_a_setting_is_of_its_default(log):
    """A grid is compared with it, and its own row of that configuration takes its place."""
    log.train(100, opt="adam")
    old = log.rows[-1]
    old["config"] = {k: v for k, v in old["config"].items() if k not in ("erase", "flip")}
    log.grid("lr", {1e-3: 300, 1e-4: 400}, opt="sgd")
    assert contrast_of(log)["difference"] == pytest.approx(-200 / IMAGES)
    log.train(150, opt="adam", data_on="host")
    assert len(log.evidence().groups) == 3
    assert contrast_of(log)["difference"] == pytest.approx(-150 / IMAGES)
    log.rows.append(old | {"time_utc": "later"})  # trained once more
    times = [row["time_utc"] for group in log.evidence().groups for row in group.rows]
    assert times.count("later") == 1


def test_what_is_tied_with_the_chosen_one_is_told_from_what_is_not(log):
    rights = {0.1: wrong_on((0, 200)), 0.2: wrong_on((0, 190), (500, 12))}
    rights |= {0.3: wrong_on((0, 300)), 0.4: wrong_on((0, 100))}
    for lr, right in rights.items():
        log.train(right, {"val_acc": 1 - lr / 10}, lr=lr)
    records = tie_records(log.evidence())
    assert records[2]["p_holm"] == pytest.approx(3 * mcnemar(100, 0))
    assert [record["tied"] for record in records] == ["chosen", None, None, None]  # of one seed
    for seed, (lr, right) in itertools.product((1, 2), rights.items()):
        log.train(right, {"val_acc": 1 - lr / 10}, lr=lr, seed=seed)
    records = tie_records(log.evidence())
    assert [record["tied"] for record in records] == ["chosen", True, False, False]


def test_a_small_lead_is_a_tie_however_sure_and_a_p_of_many_tests_is_adjusted(log):
    for lr, wrong in ((0.1, 100), (0.2, 111)):
        log.grid("lr", {lr: wrong}, {"val_acc": 1 - lr}, seeds=3)
    _, rival = tie_records(log.evidence())
    assert rival["p_holm"] < 0.01
    assert rival["tied"] is True
    log.rows.clear()
    log.grid("lr", {0.1: [300, 301, 302]}, {"val_acc": 0.99})
    log.grid("lr", {lr: [335, 347, 359] for lr in (0.2, 0.3, 0.4, 0.5)}, {"val_acc": 0.9})
    rivals = tie_records(log.evidence())[1:]
    assert all(record["low"] > 0.001 for record in rivals)
    assert [(record["p"] < 0.05, record["tied"]) for record in rivals] == [(True, True)] * 4


def test_the_best_is_the_same_whoever_asks(log):
    """By mean validation accuracy over seeds, repeats under pinned memory being one, ties to the
    cheaper, then by name; networks and SVMs apart."""
    for seed, pin in ((0, False), (0, True), (1, True), (2, True)):
        metrics = {"val_acc": 0.9 + 0.01 * seed, "train_ms": 7.0}
        log.train(90, metrics, lr=0.2, seed=seed, pin_memory=pin)
    log.train(50, {"val_acc": 0.91, "train_ms": 9.0}, lr=0.1)
    log.svm(10, {"val_acc": 0.99, "fit_ms": 5.0})
    network, svm = pick_best([*latest_ok(log.rows, "train"), *latest_ok(log.rows, "svm")])
    assert (network.config["lr"], len(network.rows)) == (0.2, 3)
    assert svm.rows[0]["kind"] == "svm"
    chosen = tie_records(log.evidence())[0]["group"]
    assert {row["run_id"] for row in chosen.rows} == {row["run_id"] for row in network.rows}


def test_the_gap_is_validation_minus_test_of_the_chosen_and_seeds_have_their_own_noise(log):
    for lr, val_acc in ((0.1, 0.95), (0.2, 0.99)):
        log.grid("pin_memory", {False: 280, True: 280}, {"val_acc": val_acc}, lr=lr)
    (record,) = compare.optimism_records(latest_ok(log.rows, "train"))
    assert record["optimism"] == pytest.approx(0.01)
    expected = newcombe_interval((6930, 7000), (13_720, 14_000))
    assert (record["low"], record["high"]) == pytest.approx(expected)
    assert record["tried"] == 2
    log.rows.clear()
    log.grid("opt", {"sgd": [100, 140, 180], "adam": 140})
    table = compare.seeds_table(latest_ok(log.rows, "train"))
    (record,) = table.records
    assert record["test_acc"] == pytest.approx(0.99)
    assert record["test_acc_sd"] == pytest.approx(40 / IMAGES)
    assert record["image_sd"] == pytest.approx(np.sqrt(0.99 * 0.01 / IMAGES))
    half = stats.t.isf(0.025, 2) * 40 / np.sqrt(3) / IMAGES
    assert (record["mean_low"], record["mean_high"]) == pytest.approx((0.99 - half, 0.99 + half))
    assert table.notes[-1].endswith("is not measured: 1.")


def test_what_cannot_be_compared_is_counted_with_its_reason(log):
    log.grid("lr", {0.1: 100, 0.2: 100, 0.3: 100})
    faults = {"predictions": None}, {"n_test": 5}, {"split_sha256": "b"}, {}, {}
    names = [log.train(100, fault, lr=0.4 + i) for i, fault in enumerate(faults)]
    log.held.pop(names[0])
    log.held[names[3]]["label"] = log.held[names[3]]["label"] + (np.arange(IMAGES) == 7)
    log.held[names[4]]["index"] = log.held[names[4]]["index"] + 1
    log.add("train", TrainConfig(lr=20.0), {}, status="interrupted", name="ended")
    for name in ("ended", "begun"):
        log.add("epoch", TrainConfig(lr=3.0), {"epoch": 1}, name=name)
    evidence = log.evidence()
    assert len(evidence.groups) == 3
    assert evidence.reasons == {
        "the row names no predictions": 1,
        f"run {names[1]}: {IMAGES} predictions for 5 images": 1,
        f"run {names[2]}: another split_sha256 than the rest": 1,
        f"run {names[3]}: other test images or labels than the rest": 1,
        f"run {names[4]}: other test images or labels than the rest": 1,
        "epochs in the log, but neither a result nor an error": 1,
    }
    *_, reasons = compare.comparison_tables(evidence, [], [], [])
    assert sum(row["rows"] for row in reasons.records) == 6


def test_of_an_empty_log_every_table_says_what_it_lacks(log):
    evidence = log.evidence()
    contrasts, *rest = compare.comparison_tables(evidence, contrast_records(evidence), [], [])
    assert contrasts.missing
    for table in rest:
        assert not table.records
        assert table.notes or table.key == "seeds"
