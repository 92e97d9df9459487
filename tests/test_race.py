"""Races: the rules by hand and against known truth; and their clock, files, kills and words."""

import itertools
import json
import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
from processes import ROOT, finish, outcome, start, wait_for
from scipy.stats import binomtest, norm

import report
import train
from common import race as driver
from common.base.cli import UsageError
from common.base.config import TrainConfig, TrainOptions
from common.base.log import read_log
from common.judge import race as rules
from common.judge import rows as rows_of_log
from common.judge.race import Candidate, who_leaves
from common.train.checkpoint import load_checkpoint
from common.train.run import Run

TINY = ["--dataset", "digits", "--limit", "48", "--image-size", "16", "--model", "vgg5"]
TINY += ["--threads", "1"]
GRID = ["--opt", "sgd", "adam", "--lr", "1e-2", "1e-3", "--epochs", "3"]
SECONDS = 10.0  # of an epoch by the clock of some tests


def candidate(wrong, epochs=8, epoch_s=1.0, n=1000, **config):
    """Of so many wrong answers on its rungs, all on the first of the images."""
    own = Candidate(TrainConfig(epochs=epochs, **config), epoch_s)
    for rung, count in zip(rules.rungs_of(epochs), wrong, strict=False):
        own.right[rung] = np.arange(n) >= count
        own.accs[rung] = own.acc
    return own


def leaves(*racing, left_s=1e9, looks=4, workers=1):
    """Why whom of these leaves, by number."""
    left = who_leaves(racing, max(c.done for c in racing), left_s, looks, workers)
    return {racing.index(c): end["why"] for c, end in left.items()}


def test_rungs_and_the_time_of_jobs_and_of_the_rest_of_a_race():
    assert [rules.rungs_of(n) for n in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8]]
    assert rules.rungs_of(9) == [1, 2, 4, 8, 9]
    assert rules.makespan([3, 1, 1, 2], 1) == 7
    assert rules.makespan([3, 1, 1, 2], 2) == 4  # 3 and then none; 1, 1, 2
    four = [candidate([9, 9], epochs=5, epoch_s=2.0) for _ in range(4)]  # two epochs are done
    for c in four:
        c.start_s, c.test_s = 1.0, 0.5
    # All four go on for two epochs, then two for one, and one of those that are left is tested.
    assert rules.time_to_end(four, 1) == 4 * (1 + 2 * 2) + 2 * (1 + 2) + (1 + 0.5)
    assert rules.time_to_end(four, 2) == 2 * 5 + 3 + 1.5
    short = candidate([9, 9], epochs=2, epoch_s=2.0)  # which has nothing to do but its test
    assert rules.time_to_end([four[0], short], 1) == 5 + 3 + 1.5


def test_what_may_yet_be_made_up_for_by_hand():
    slow = candidate([400, 300, 250], epochs=16)  # 0.60, 0.70, 0.75 after 1, 2 and 4 epochs
    # The best doubling gave 0.10, two are to come, and an epoch may be 0.03 off.
    assert slow.reach(0.03) == pytest.approx(0.75 + 2 * 0.10 + 0.03)
    assert candidate([400], epochs=16).reach(0.0) == np.inf
    assert candidate([400], epochs=1).reach(0.03) == 0.6  # it is at its end
    fell = candidate([100, 140, 120], epochs=16)
    assert fell.reach(0.0) == pytest.approx(0.90 + 2 * 0.02)  # from its best epoch
    assert rules.luck_of([slow, fell]) == pytest.approx(0.04)


def test_told_apart_by_mcnemar_holm_and_the_number_of_looks():
    """Of n images that one side alone answers rightly p is 2 / 2**n. Of three pairs Holm takes the
    least times 3, here 3 * 2 / 2**9 = 0.0117, and the next times 2: 2 * 2 / 2**8 = 0.0156."""
    assert binomtest(0, 9).pvalue == pytest.approx(2 / 2**9)
    racing = [candidate([wrong], epochs=1) for wrong in (0, 8, 9)]
    assert leaves(*racing, looks=5) == {}  # 0.05 / 5 is less
    assert leaves(*racing, looks=4) == {2: "told apart"}
    assert leaves(*racing, looks=3) == {1: "told apart", 2: "told apart"}


def test_nobody_is_told_apart_who_may_make_up_for_it():
    assert leaves(candidate([0]), candidate([500])) == {}  # after one epoch nothing is known
    leader = candidate([100, 90], epochs=8)
    assert leaves(leader, candidate([200, 190])) == {1: "told apart"}  # two hundredths are to come
    assert leaves(leader, candidate([240, 190])) == {}  # ten are
    assert leaves(leader, candidate([200, 190]), candidate([10, 130])) == {}  # an epoch's luck


def test_for_want_of_time_the_last_go_and_each_schedule_keeps_its_best():
    many = [candidate([n], epochs=2) for n in (10, 20, 30)]
    slow = candidate([40], epochs=2, schedule="triangular")
    # One epoch of each is left, 4 s, and no more than one of them is tested, for nothing.
    for left_s, gone in ((4, ""), (3, "2"), (2, "12"), (1, "123"), (0, "123")):
        assert leaves(*many, slow, left_s=left_s) == {int(n): "no time" for n in gone}
    large = candidate([0], epochs=2, epoch_s=9.0)
    assert leaves(large, *many, left_s=3) == {0: "no time"}  # no training of it would end
    assert leaves(*many, slow, left_s=2, workers=2) == {}


def test_what_has_no_answers_failed_and_takes_no_other_with_it():
    lost = candidate([])
    assert who_leaves([lost], 1, 9.0, 1)[lost]["why"] == "failed"
    assert leaves(candidate([5]), lost) == {1: "failed"}


def test_seeds_are_trained_in_turn_while_a_whole_one_fits():
    one, two = (candidate([n], epochs=2, epoch_s=s) for n, s in ((1, 3.0), (2, 1.0)))
    one.test_s = two.test_s = 1.0
    # Two epochs of 3 s, and a test of 1 s for each seed of the chosen one, the new one included.
    assert rules.next_seeds({one: 1, two: 1}, 8.0, 1) == [one]
    assert rules.next_seeds({one: 1, two: 1}, 7.9, 1) == []  # not two, whose turn it is not
    assert rules.next_seeds({one: 2, two: 1}, 9.0, 1) == [two]
    assert rules.next_seeds({one: 1, two: 1}, 9.0, 2) == [one, two]
    assert rules.next_seeds({one: rules.MOST_SEEDS}, 1e9, 1) == []


def drawn(random, accs, rho=0.9, n=2000):
    """Answers of networks of such accuracies, which mostly err on the same images."""
    shared, racing = random.standard_normal(n), []
    for acc in accs:
        own = np.sqrt(rho) * shared + np.sqrt(1 - rho) * random.standard_normal(n)
        racing.append(candidate([], epochs=1))
        racing[-1].right[1] = own > norm.ppf(1 - acc)
    return racing


def test_equal_networks_are_rarely_told_apart_and_unequal_ones_are():
    """At their end, in one look at six: of equal ones any at most in 5 % of races."""
    random, losers = np.random.default_rng(0), {1, 2, 3, 4, 5}
    wrong = [leaves(*drawn(random, [0.9] * 6), looks=1) != {} for _ in range(200)]
    unequal = (drawn(random, [0.94, *[0.9] * 5]) for _ in range(50))
    found = [losers <= leaves(*racing, looks=1).keys() for racing in unequal]
    assert np.mean(wrong) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    assert np.mean(found) >= 0.95


def race(folder, budget, *more, grid=GRID):
    return train.main([*TINY, *grid, "--results-dir", str(folder), "--budget", budget, *more])


def decisions(folder, file="race.json"):
    """What was decided, without times."""
    state = json.loads((folder / file).read_text())["contests"]
    return {
        key: [{rung: end["left"] for rung, end in own["rungs"].items()}, own["seeds"]]
        for key, own in state.items()
    }


def ends_of(races):
    """Of each race, who left it and why."""
    ends = [(row["run_id"], row["metrics"]["standings"]) for row in races]
    return [(name, [(end["run_id"], end.get("why")) for end in own]) for name, own in ends]


def assert_same_rows(rows, ours, theirs):
    for kind in ("epoch", "train"):
        done = [[r for r in rows(kind, name) if r["status"] == "ok"] for name in (ours, theirs)]
        assert sorted(map(outcome, done[0])) == sorted(map(outcome, done[1]))
    assert ends_of(rows("race", ours)) == ends_of(rows("race", theirs))


def test_pausing_leaves_the_bits_of_not_pausing_and_tests_nothing(tmp_path, rows):
    one = [*TINY, "--epochs", "3", "--results-dir", str(tmp_path / "one")]
    apart = [*one[:-1], str(tmp_path / "apart")]
    assert train.main(one) == 0
    for epoch in ("1", "2", "2", "7"):  # the last is beyond its end
        assert train.main([*apart, "--pause-after", epoch]) == 0
        assert rows("train", "apart") == []
        assert not (tmp_path / "apart" / "predictions").exists()
    assert train.main(apart) == 0
    assert_same_rows(rows, "one", "apart")
    [row] = rows("train", "one")
    folders = [tmp_path / name for name in ("one", "apart")]
    states = [load_checkpoint(f / row["metrics"]["checkpoint"])["model"] for f in folders]
    assert all((value == states[1][name]).all() for name, value in states[0].items())
    assert [r["metrics"]["epoch"] for r in rows("epoch", "apart")] == [1, 2, 3]
    for epoch in rows("epoch", "apart"):
        file = folders[1] / "race" / f"{epoch['run_id']}.{epoch['metrics']['epoch']}.npz"
        with np.load(file) as kept:
            assert (kept["pred"] == kept["label"]).mean() == epoch["metrics"]["val_acc"]
            assert len(set(kept["index"])) == 179


@pytest.fixture
def clock(monkeypatch):
    """Epochs take SECONDS, whatever they take, and are estimated to do so; and nothing else does.
    A function that sets how much longer they take than estimated."""
    now, factor = [0.0], [1.0]
    for module in (driver, train):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    epoch = np.array([SECONDS * 1e3, 0.0, 0.0])
    monkeypatch.setattr(driver, "estimate_ms", lambda configs, _: dict.fromkeys(configs, epoch))
    trained = Run.train_one_epoch

    def train_one_epoch(run):
        now[0] += SECONDS * factor[0]
        metrics = trained(run)
        metrics |= {"train_ms": SECONDS * factor[0] * 1e3, "eval_ms": 0.0}
        return metrics

    monkeypatch.setattr(Run, "train_one_epoch", train_one_epoch)
    return lambda value: factor.__setitem__(0, value)


def spent(folder):
    return json.loads((folder / "race.json").read_text())["spent_s"]


def test_a_time_that_is_too_short_is_refused_with_the_least(tmp_path, clock):
    """Of four an epoch each, then two of the longest: 60 s, of which a twentieth is to spare."""
    with pytest.raises(UsageError, match=r"--budget 63s: an epoch of each of 4 .* about 64s;"):
        race(tmp_path, "63s")
    assert not (tmp_path / "race.json").exists()
    assert race(tmp_path, "64s") == 0
    assert spent(tmp_path) == 60
    with pytest.raises(UsageError, match="take about 5m; give"):  # two data sets, as it were
        race(tmp_path / "two", "1m", "--split-seed", *"0123")


@pytest.mark.parametrize("budget", [70, 130, 300])
def test_the_time_is_kept_whatever_it_is_and_the_report_shows_it(
    tmp_path, clock, capsys, rows, budget
):
    folder = tmp_path / "results"
    assert race(folder, f"{budget}s") == 0
    assert 0.75 * budget <= spent(folder) <= budget
    shown = capsys.readouterr().out
    assert "race: 4 configurations in" in shown
    assert "leads, " in shown
    [row], tested = rows("race"), rows("train")
    chosen, *others = row["metrics"]["standings"]
    assert len(tested) == chosen["seeds"] == row["metrics"]["seeds"]  # and no other was tested
    assert tested[0]["run_id"] == chosen["run_id"]
    assert {r["config"]["seed"] for r in tested} == set(range(len(tested)))
    assert f"the choice is {chosen['name']}:" in shown
    assert all(name in shown for name in (r["name"] for r in others))
    if budget == 130:
        assert report.main(["--results-dir", str(folder), "--no-pdf"]) == 0
        table = (folder / "report" / "csv" / "race.csv").read_text().splitlines()
        assert len(table) == 1 + 4
        text = (folder / "report" / "report.md").read_text()
        assert "of 4 configurations, raced within 2.2 min, the choice is" in text
        assert "neither a result nor an error" not in text
        page = (folder / "report" / "report.html").read_text()
        assert "Races: validation accuracy against the time" in page


def test_a_machine_that_is_slower_than_estimated_costs_candidates_and_not_time(tmp_path, clock):
    clock(1.5)
    assert race(tmp_path, "150s") == 0
    assert spent(tmp_path) <= 1.1 * 150


def test_where_nothing_could_be_finished_a_longer_race_goes_on(tmp_path, clock, capsys, rows):
    clock(3.0)
    folder = tmp_path / "results"
    race(folder, "100s")
    assert spent(folder) <= 120  # the first rung alone: then no training would end
    assert "none was trained to its end in time" in capsys.readouterr().out
    assert rows("train") == []
    epochs = len(rows("epoch"))
    assert race(folder, "400s") == 0
    names = [(r["run_id"], r["metrics"]["epoch"]) for r in rows("epoch")]
    assert len(names) == len(set(names)) > epochs  # nothing was trained twice
    assert rows("train")
    assert 120 < spent(folder) <= 400
    first, last = rows("race")
    assert first["run_id"] != last["run_id"]
    capsys.readouterr()
    assert race(folder, "400s") == 0  # done: the answer again
    assert "the choice is" in capsys.readouterr().out
    assert (len(rows("race")), len(rows("epoch"))) == (2, len(names))
    assert race(folder, "400s", "--force") == 0
    assert len(rows("epoch")) > len(names)


@pytest.mark.parametrize(("budget", "more"), [("130s", False), ("200s", True)])
def test_ctrl_c_and_on(tmp_path, clock, monkeypatch, rows, budget, more):
    """After every epoch of a race, until it is done: the same decisions, and the same rows. The
    longer race has time for more seeds."""
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    assert race(whole, budget) == 0
    assert any(seeds for _, seeds in decisions(whole).values()) == more
    slow, calls = Run.train_one_epoch, itertools.count()

    def train_one_epoch(run):
        if next(calls) % 2:
            raise KeyboardInterrupt
        return slow(run)

    monkeypatch.setattr(Run, "train_one_epoch", train_one_epoch)
    for _ in range(100):
        try:
            assert race(halted, budget) == 0
            break
        except KeyboardInterrupt:
            pass
    assert decisions(halted) == decisions(whole)
    assert spent(halted) == spent(whole)
    assert_same_rows(rows, "halted", "whole")


@pytest.mark.slow
def test_a_race_killed_again_and_again_or_of_two_workers_decides_as_one_undisturbed(
    tmp_path, rows, monkeypatch
):
    """With time enough, so that only the images decide."""
    one, killed, two = (tmp_path / name for name in ("one", "killed", "two"))
    monkeypatch.setattr(rules, "MOST_SEEDS", 1)
    grid = ["--opt", "sgd", "adam", "--lr", "1e-2", "--epochs", "2"]
    assert race(one, "1h", grid=grid) == 0
    flags = [*TINY, *grid, "--budget", "1h", "--results-dir"]
    code = f"from common.judge import race; race.MOST_SEEDS = 1; import train; train.main({flags}"
    log = killed / "log.jsonl"
    for lines in (1, 2, 4, 1e9):
        process = start("-c", f"{code} + ['{killed}'])")
        while process.poll() is None:
            if log.exists() and log.read_bytes().count(b"\n") >= lines:
                process.kill()
            time.sleep(0.002)
        process.communicate()
    assert process.returncode == 0
    assert decisions(killed) == decisions(one)
    assert_same_rows(rows, "killed", "one")
    assert {row["status"] for row in read_log(killed)[0]} == {"ok"}
    process = start("train.py", *flags, two, "--jobs", "2", "--shard", "a")
    log = two / "log.a.jsonl"
    wait_for(lambda: log.exists() and log.read_bytes().count(b"\n") > 1, process)
    os.killpg(process.pid, signal.SIGINT)
    finish(process, 130)
    assert race(two, "1h", "--jobs", "2", "--shard", "a", grid=grid) == 0
    assert decisions(two, "race.a.json") == decisions(one)
    log.rename(two / "log.jsonl")
    assert_same_rows(rows, "two", "one")


def test_what_fails_leaves_the_race(tmp_path, rows, clock, capsys):
    grid = ["--lr", "1e30", "1e-2", "--amp", "false", "--epochs", "2"]
    assert race(tmp_path / "results", "60s", grid=grid) == 1
    assert "(failed)" in capsys.readouterr().out
    statuses = [row["status"] for row in rows("train")]
    assert (statuses.count("failed"), "ok" in statuses) == (1, True)


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ("10", "--budget: '10' is no time such as 90s, 10m or 2h"),
        ("m", "--budget: 'm' is no time"),
        ("9m --best", "--budget: a race cannot be had with --best; leave one"),
        ("9m --list-commands", "cannot be had with --list-commands"),
        ("9m --no-resume", "cannot be had with --no-resume"),
        ("9m --pause-after 1", "cannot be had with --pause-after"),
        ("9m --metric balanced", "a race goes by accuracy; leave out --metric balanced"),
        ("9m --pause-after 0", "--pause-after: 0 must be at least 1"),
    ],
)
def test_what_no_race_can_be(flags, error, tmp_path):
    with pytest.raises(UsageError, match=error):
        race(tmp_path, *flags.split())


def test_what_is_in_the_way_is_said(tmp_path, clock, rows):
    """Configurations that were tested already, and a file that is no race's."""
    grid = ["--opt", "sgd", "--lr", "1e-2", "--epochs", "3"]
    assert train.main([*TINY, *grid, "--results-dir", str(tmp_path)]) == 0
    with pytest.raises(UsageError, match=r"1 of 4 configurations are in .*, tested, without"):
        race(tmp_path, "70s")
    assert race(tmp_path, "70s", "--force") == 0
    (tmp_path / "race.json").write_text("{")
    with pytest.raises(UsageError, match=r"race\.json cannot be read .*; delete it"):
        race(tmp_path, "70s")


def test_a_plan_alone_writes_nothing_and_budgets_have_units(tmp_path, clock, capsys):
    assert race(tmp_path, "200s", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "by timed steps all of them whole would take 2.0 min" in shown
    assert "digits, random split: 4 configurations, until 3.2 min" in shown
    assert "compared after epochs 1, 2, 3" in shown
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]
    assert [TrainOptions(budget=b).budget_s for b in ("90s", "1.5m", "2h")] == [90, 90, 7200]


def test_the_proof_takes_its_curves_from_the_log_and_keeps_to_the_time(capsys, monkeypatch):
    pytest.importorskip("optuna", reason="pip install optuna")
    import race as proof

    pool = proof.measure_curves(*proof.read_cpu(ROOT / "reference"), "mnist")
    assert sum(c[0].epochs == 5 and c[0].config.schedule == "constant" for c in pool) == 8
    assert all(c.accs.keys() == set(range(1, c.epochs + 1)) for seeds in pool for c in seeds)
    curves = proof.draw(pool, 0.9, np.random.default_rng(0))
    for curve in curves:
        assert curve.answers.mean(1) == pytest.approx(list(curve.accs.values()))
    whole_s = sum(c.epochs * c.epoch_s for c in curves)
    assert proof.run_race(curves, whole_s / len(curves)) is None
    for share in (0.5, 1.0):
        chosen, spent_s = proof.run_race(curves, share * whole_s)
        assert spent_s <= share * whole_s
        assert chosen.done == chosen.epochs
    monkeypatch.setattr(rows_of_log, "STUDY_DATASETS", {"mnist": "MNIST"})
    assert proof.main(["--races", "4"]) == 0
    assert capsys.readouterr().out.count("whole grid") == 2 * 2  # tables, and in JSON
