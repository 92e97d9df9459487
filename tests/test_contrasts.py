"""Comparisons from stored predictions: what is paired, what counts once, what is left out."""

import numpy as np
import pytest
from invented import IMAGES, Invented, wrong_on

from common.claims import machine_parts
from common.config import TrainConfig, as_dict
from common.contrasts import (
    contrast_records,
    contrast_tables,
    interaction_records,
    interactions_table,
    pairs_table,
)
from common.evidence import best_on_validation, matched, measure_effect, trained_by
from common.findings import preferences
from common.measured import by_seed, latest_ok
from common.noise import evidence_tables, noise_tables, optimism_table, seeds_table, tie_records
from common.results import read_rows
from common.stats import mcnemar, newcombe_interval, t_interval


@pytest.fixture
def log():
    return Invented()


def only(records, **where):
    found = [record for record in records if where.items() <= record.items()]
    assert len(found) == 1
    return found[0]


def test_a_contrast_of_one_pair_is_mcnemar_s_test(log):
    log.train(wrong_on((0, 140), (500, 20)), dataset="mnist", opt="sgd")
    log.train(wrong_on((0, 140), (900, 50)), dataset="mnist", opt="adam")
    record = only(contrast_records(log.evidence()), dataset="mnist", contrast="opt sgd - adam")
    assert (record["first_only"], record["second_only"]) == (50, 20)
    assert record["difference"] == pytest.approx(30 / IMAGES)
    assert record["p"] == pytest.approx(mcnemar(50, 20))
    assert record["p_holm"] == record["p"]  # nothing else was compared
    assert (record["pairs"], record["trajectories"], record["seed_low"]) == (1, 2, None)
    assert record["low"] < 30 / IMAGES < record["high"]


def test_holm_is_over_every_contrast_of_every_data_set(log):
    for dataset, worse in (("mnist", 20), ("fashion", 40)):
        log.train(wrong_on((0, 100)), dataset=dataset, opt="sgd")
        log.train(wrong_on((0, 100 + worse)), dataset=dataset, opt="adam")
    records = contrast_records(log.evidence())
    mnist, fashion = (only(records, dataset=d, contrast="opt sgd - adam")
                      for d in ("mnist", "fashion"))  # fmt: skip
    assert fashion["p_holm"] == pytest.approx(2 * mcnemar(40, 0))
    assert mnist["p_holm"] == pytest.approx(mcnemar(20, 0))
    assert sum("p" in record for record in records) == 2
    assert only(records, dataset="mnist", contrast="lr 0.001 - 0.0001")["note"].endswith("make q1a")


def add_shared(log, opt, lengths=(5, 3)):
    """A trajectory as train.py writes it: twins with pinned memory, the shorter one on the way."""
    trained = None
    for epochs in lengths:
        right = wrong_on((0, 100 + 40 * (epochs == 3) + 30 * (opt == "adam")))
        for pin in (False, True):
            name = log.train(right, {"shared_with": trained}, dataset="mnist", opt=opt,
                             epochs=epochs, pin_memory=pin)  # fmt: skip
            trained = trained or name


def test_rows_of_one_training_are_one_piece_of_evidence(log):
    add_shared(log, "sgd")
    add_shared(log, "adam")
    evidence = log.evidence()
    assert len(log.rows) == 8
    assert len(evidence.models) == 4
    assert evidence.counts[0]["same_training"] == 4
    records = contrast_records(evidence)
    for name in ("opt sgd - adam", "epochs 5 - 3"):
        record = only(records, dataset="mnist", contrast=name)
        assert (record["pairs"], record["trajectories"]) == (2, 2)
    assert only(records, dataset="mnist", contrast="epochs 5 - 3")["first_only"] == 80


def test_a_training_repeated_elsewhere_under_pinned_memory_is_no_second_one(log):
    for pin in (False, True):
        for opt, wrong in (("sgd", 100), ("adam", 130)):
            log.train(wrong_on((0, wrong + pin)), dataset="mnist", opt=opt, pin_memory=pin,
                      data_on="host", device="cuda")  # fmt: skip
    record = only(contrast_records(log.evidence()), dataset="mnist", contrast="opt sgd - adam")
    assert record["pairs"] == 1


def test_runs_that_differ_in_something_else_too_are_no_pair(log):
    log.train(wrong_on((0, 100)), dataset="mnist", opt="sgd", seed=1)
    log.train(wrong_on((0, 200)), dataset="mnist", opt="adam", seed=2)
    log.train(wrong_on((0, 200)), dataset="fashion", opt="adam", seed=1)
    log.train(wrong_on((0, 200)), dataset="mnist", opt="adam", seed=1, split_seed=3)
    assert all("p" not in record for record in contrast_records(log.evidence()))


def test_the_study_s_protocol_goes_before_more_pairs_of_another(log):
    for image_size, seeds in ((64, 1), (32, 3)):
        for seed in range(seeds):
            log.train(wrong_on((0, 100)), dataset="mnist", image_size=image_size, seed=seed)
            log.train(wrong_on((0, 120)), dataset="mnist", image_size=image_size, seed=seed,
                      opt="adam")  # fmt: skip
    record = only(contrast_records(log.evidence()), dataset="mnist", contrast="opt sgd - adam")
    assert (record["pairs"], record["note"]) == (1, None)


def test_seeds_have_student_s_interval_of_their_mean_differences(log):
    worse = (20, 50, 80)
    for seed, wrong in enumerate(worse):
        log.train(wrong_on((0, 100)), dataset="mnist", opt="sgd", seed=seed)
        log.train(wrong_on((0, 100 + wrong)), dataset="mnist", opt="adam", seed=seed)
    record = only(contrast_records(log.evidence()), dataset="mnist", contrast="opt sgd - adam")
    half = 4.302652729911275 * 30 / np.sqrt(3)  # Student's 97.5 % quantile of two degrees
    assert record["seed_low"] == pytest.approx((50 - half) / IMAGES)
    assert record["seed_high"] == pytest.approx((50 + half) / IMAGES)
    assert (record["seeds"], record["pairs"]) == (3, 3)


def test_equal_and_perfect_models_differ_by_nothing_but_doubt(log):
    for opt in ("sgd", "adam"):
        log.train(wrong_on(), dataset="mnist", opt=opt)
    record = only(contrast_records(log.evidence()), dataset="mnist", contrast="opt sgd - adam")
    assert (record["difference"], record["p"]) == (0, 1)
    assert record["low"] < 0 < record["high"]


def test_an_interaction_is_the_difference_of_two_effects(log):
    wrong = {("sgd", 1e-3): 100, ("adam", 1e-3): 150, ("sgd", 1e-4): 100, ("adam", 1e-4): 300}
    for (opt, lr), count in wrong.items():
        log.train(wrong_on((0, count)), dataset="mnist", opt=opt, lr=lr)
    (record,) = interactions_table(interaction_records(log.evidence())).records()
    assert record["contrast"] == "(opt sgd - adam) at lr 0.001 - at 0.0001"
    assert record["difference"] == pytest.approx((50 - 200) / IMAGES)
    assert record["high"] < 0


def test_each_pair_has_its_row_with_both_accuracies(log):
    for lr in (1e-3, 1e-4):
        log.train(wrong_on((0, 140)), dataset="mnist", opt="sgd", lr=lr)
        log.train(wrong_on((0, 280)), dataset="mnist", opt="adam", lr=lr)
    records = [r for r in pairs_table(log.evidence()).records() if r["contrast"].startswith("opt")]
    assert [r["setting"] for r in records] == [
        "model resnet18, lr 0.001, epochs 5", "model resnet18, lr 0.0001, epochs 5",
    ]  # fmt: skip
    assert [(r["first_acc"], r["second_acc"]) for r in records] == [(0.99, 0.98)] * 2


def test_the_best_network_meets_the_best_machine_chosen_on_validation(log):
    log.train(wrong_on((0, 100)), {"val_acc": 0.9}, dataset="mnist")
    log.train(wrong_on((0, 200)), {"val_acc": 0.95}, dataset="mnist", opt="adam")
    log.train(wrong_on((0, 10)), {"val_acc": 0.99}, dataset="mnist", model="vgg5")
    log.svm(wrong_on((0, 500)), {"val_acc": 0.8}, dataset="mnist", kernel="rbf")
    log.svm(wrong_on((0, 300)), {"val_acc": 0.7}, dataset="mnist", kernel="poly")
    records = contrast_records(log.evidence())
    record = only(records, dataset="mnist", contrast="best ResNet - best SVM")
    assert record["difference"] == pytest.approx(300 / IMAGES)


def test_one_machine_meets_every_seed_of_the_network_and_is_still_one(log):
    for seed in range(3):
        log.train(wrong_on((0, 100 + seed)), {"val_acc": 0.9}, dataset="mnist", seed=seed)
    log.svm(wrong_on((0, 400)), dataset="mnist")
    records = contrast_records(log.evidence())
    record = only(records, dataset="mnist", contrast="best ResNet - best SVM")
    assert (record["pairs"], record["seeds"]) == (3, 1)
    expected = t_interval([(400 - 100 - seed) / IMAGES for seed in range(3)])
    assert (record["seed_low"], record["seed_high"]) == pytest.approx(expected)
    (part, _) = machine_parts(log.evidence(), log.rows)
    assert "one side has one seed" in part.note
    (line,) = preferences([record], [])
    assert "pairs: 3, one side has one seed, whose noise is not in the interval)" in line


def test_sides_without_a_common_seed_meet_in_order(log):
    for kind, seeds in ((log.train, (0, 1)), (log.svm, (2, 3))):
        for seed in seeds:
            kind(wrong_on((0, 100 * (seed + 1))), {"val_acc": 0.9}, dataset="mnist", seed=seed)
    records = contrast_records(log.evidence())
    record = only(records, dataset="mnist", contrast="best ResNet - best SVM")
    assert (record["pairs"], record["seeds"]) == (2, 2)
    assert record["difference"] == pytest.approx(200 / IMAGES)


def test_a_row_older_than_a_setting_is_of_its_default(log):
    """A grid is compared with it, and its own row of that configuration takes its place."""
    log.train(wrong_on((0, 100)), dataset="mnist", opt="adam")
    old = log.rows[-1]
    old["config"] = {k: v for k, v in old["config"].items() if k not in ("erase", "flip")}
    for lr, wrong in ((1e-3, 300), (1e-4, 400)):
        log.train(wrong_on((0, wrong)), dataset="mnist", opt="sgd", lr=lr)
    record = only(contrast_records(log.evidence()), dataset="mnist", contrast="opt sgd - adam")
    assert record["difference"] == pytest.approx(-200 / IMAGES)
    log.train(wrong_on((0, 150)), dataset="mnist", opt="adam", data_on="host")
    evidence = log.evidence()
    assert len(evidence.models) == 3
    log.rows.append(old | {"time_utc": "later"})  # trained once more
    assert sum(m.row is log.rows[-1] for m in log.evidence().models) == 1
    log.rows.pop()
    record = only(contrast_records(evidence), dataset="mnist", contrast="opt sgd - adam")
    assert record["difference"] == pytest.approx(-150 / IMAGES)


# --- ties, optimism, seeds ------------------------------------------------------------------------


def test_what_is_tied_with_the_chosen_one_is_told_from_what_is_not(log):
    log.train(wrong_on((0, 200)), {"val_acc": 0.99}, dataset="mnist", lr=0.1)
    log.train(wrong_on((0, 190), (500, 12)), {"val_acc": 0.98}, dataset="mnist", lr=0.2)
    log.train(wrong_on((0, 300)), {"val_acc": 0.97}, dataset="mnist", lr=0.3)
    log.train(wrong_on((0, 100)), {"val_acc": 0.96}, dataset="mnist", lr=0.4)
    records = tie_records(log.evidence())
    assert [record["tied"] for record in records] == ["chosen", True, False, False]
    assert records[2]["p_holm"] == pytest.approx(3 * mcnemar(100, 0))


def test_a_rival_among_many_is_not_worse_for_a_p_that_many_tests_would_give(log):
    log.train(wrong_on((0, 200)), {"val_acc": 0.99}, dataset="mnist", lr=0.1)
    for number in range(4):
        log.train(wrong_on((0, 207)), {"val_acc": 0.9}, dataset="mnist", lr=0.2 + number)
    rivals = tie_records(log.evidence())[1:]
    assert {record["p"] < 0.05 for record in rivals} == {True}
    assert [record["tied"] for record in rivals] == [True] * 4


def test_test_accuracy_has_no_part_in_the_choice(log):
    log.train(wrong_on((0, 900)), {"val_acc": 0.99, "train_ms": 5}, dataset="mnist", lr=0.1)
    log.train(wrong_on(), {"val_acc": 0.98}, dataset="mnist", lr=0.2)
    log.train(wrong_on((0, 9)), {"val_acc": 0.99, "train_ms": 4}, dataset="mnist", lr=0.3)
    (chosen,) = best_on_validation(log.evidence().models)
    assert chosen.config["lr"] == 0.3  # the shorter of two equals


def test_optimism_is_validation_minus_test_of_the_chosen(log):
    for lr, val_acc in ((0.1, 0.95), (0.2, 0.99)):
        for pin in (False, True):
            log.train(wrong_on((0, 280)), {"val_acc": val_acc}, dataset="mnist", lr=lr,
                      pin_memory=pin)  # fmt: skip
    (record,) = optimism_table(latest_ok(log.rows, "train")).records()
    assert record["optimism"] == pytest.approx(0.01)
    expected = newcombe_interval((6930, 7000), (13_720, 14_000))
    assert (record["low"], record["high"]) == pytest.approx(expected)
    assert record["tried"] == 2


def test_the_noise_of_seeds_stands_beside_that_of_test_images(log):
    for seed, wrong in enumerate((100, 140, 180)):
        log.train(wrong_on((0, wrong)), dataset="mnist", seed=seed)
    log.train(wrong_on((0, 140)), dataset="mnist", opt="adam")
    table = seeds_table(latest_ok(log.rows, "train"))
    (record,) = table.records()
    assert record["test_acc"] == pytest.approx(0.99)
    assert record["test_acc_sd"] == pytest.approx(40 / IMAGES)
    assert record["image_sd"] == pytest.approx(np.sqrt(0.99 * 0.01 / IMAGES))
    half = 4.302652729911275 * 40 / np.sqrt(3) / IMAGES
    assert (record["mean_low"], record["mean_high"]) == pytest.approx((0.99 - half, 0.99 + half))
    assert table.notes[-1].endswith("is not measured: 1.")


# --- what cannot be compared ----------------------------------------------------------------------


def test_what_cannot_be_compared_is_counted_with_its_reason(log):
    for lr in (0.1, 0.2, 0.3):
        log.train(wrong_on((0, 100)), dataset="mnist", lr=lr)
    names = [
        log.train(wrong_on((0, 100)), settings, dataset="mnist", lr=lr)
        for lr, settings in ((0.4, {"predictions": None}), (0.5, {"n_test": 5}),
                             (0.6, {"split_sha256": "b"}), (0.7, {}), (0.8, {}))
    ]  # fmt: skip
    log.held.pop(names[0])
    log.held[names[3]]["label"] = log.held[names[3]]["label"] + (np.arange(IMAGES) == 7)
    log.held[names[4]]["index"] = log.held[names[4]]["index"] + 1
    failed = log.add("train", as_dict(TrainConfig(lr=1.0)), {}, status="failed")
    log.add("train", as_dict(TrainConfig(lr=1.0)), {}, status="failed")
    log.add("train", as_dict(TrainConfig(lr=2.0)), {}, status="interrupted")
    log.add("train", as_dict(TrainConfig(lr=0.1, device="cpu")), {}, status="failed")  # done after
    log.add("epoch", as_dict(TrainConfig(lr=3.0)), {"epoch": 1}, name="begun")
    evidence = log.evidence()
    counts = evidence.counts[0]
    assert (counts["rows"], counts["models"], counts["unusable"]) == (8, 3, 5)
    assert (counts["failed"], counts["interrupted"], counts["partial"]) == (1, 1, 1)
    assert failed not in {model.row["run_id"] for model in evidence.models}
    assert evidence.reasons == {
        "the row names no predictions": 1,
        f"run {names[1]}: {IMAGES} predictions for 5 images": 1,
        f"run {names[2]}: another split_sha256 than the rest": 1,
        f"run {names[3]}: other test images or labels than the rest": 1,
        f"run {names[4]}: other test images or labels than the rest": 1,
    }
    rows, reasons = evidence_tables(evidence)
    assert len(rows.rows) == 1
    assert sum(row["rows"] for row in reasons.records()) == 5


def test_the_last_of_repeated_runs_counts(log):
    log.train(wrong_on((0, 900)), dataset="mnist", opt="sgd")
    log.train(wrong_on((0, 100)), dataset="mnist", opt="sgd")
    log.train(wrong_on((0, 130)), dataset="mnist", opt="adam")
    record = only(contrast_records(log.evidence()), dataset="mnist", contrast="opt sgd - adam")
    assert record["difference"] == pytest.approx(30 / IMAGES)


def test_of_an_empty_log_every_table_says_what_it_lacks():
    evidence = Invented().evidence()
    contrasts, *rest = contrast_tables(
        evidence, contrast_records(evidence), interaction_records(evidence)
    )
    assert contrasts.missing == "make q1a q1b"
    for table in (*rest, *noise_tables(evidence, [], [])):
        assert not table.rows
        assert table.notes or table.key == "seeds"


def test_no_pairs_no_effect():
    with pytest.raises(ValueError, match="at least one pair"):
        measure_effect([])
    assert matched([], "opt", "sgd", "adam") == []


def test_rows_keep_one_copy_of_what_they_repeat(tmp_path, log):
    import json

    for seed in (0, 1):
        log.train(wrong_on(), dataset="mnist", seed=seed)
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*log.rows, log.rows[0]]))
    rows, _ = read_rows(path)
    assert rows[:2] == log.rows
    assert rows[0]["config"] is rows[2]["config"]
    assert rows[0]["config"] is not rows[1]["config"]
    assert len(by_seed(rows)) == 1
    assert trained_by(rows[0]) == rows[0]["run_id"]
