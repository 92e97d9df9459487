"""A grid that is watched: its plan, its progress, its end."""

import os
import signal

import pytest
from processes import finish, start

from common.base.cli import UsageError, as_dict, expand_grid
from common.base.config import TrainConfig
from common.base.log import Log
from common.train import grid as grids

STARTED, BEFORE = "2025-01-01T00:00:00+00:00", "2024-12-31T23:00:00+00:00"


def grid(workers=1, **values):
    trajectories = grids.group_trajectories(expand_grid(TrainConfig, {"device": ["cpu"]} | values))
    return grids.Plan(STARTED, trajectories, workers)


def row(kind, config, at="2025-01-01T00:05:00+00:00", status="ok", **metrics):
    name = {"kind": kind, "run_id": grids.train_id(config), "time_utc": at, "status": status}
    return name | {"config": as_dict(config), "metrics": metrics}


def test_progress_counts_configurations_epochs_and_time():
    plan = grid(opt=["sgd", "adam"], epochs=[3, 5])
    first, second = plan.trajectories
    name, none = "mnist resnet18 sgd 0.001", grids.progress(plan, [])
    assert none.startswith(f"0 of 4 configurations finished; {name}: 0 of 5 epochs; 2 trainings")
    rows = [row("epoch", first.trained, epoch=e, train_ms=60_000) for e in (1, 2, 3)]
    rows.append(row("train", first.configs[0]))
    shown = grids.progress(plan, rows)
    assert shown.startswith(f"1 of 4 configurations finished; {name}: 3 of 5")
    # Two epochs of a minute; adam's have not been timed.
    assert "about 2.0 min left and 1 trainings not timed yet; last row 00:05:00 UTC" in shown
    rows.append(row("train", first.trained))
    rows += [row("train", c, status="failed") for c in second.configs]
    assert grids.progress(plan, rows) == "2 of 4 configurations finished, 2 failed; done"


def test_what_is_trained_side_by_side_shares_the_time_and_older_rows_are_timings_alone():
    plan = grid(workers=2, opt=["sgd", "adam", "adamw"])
    first, second, third = (t.trained for t in plan.trajectories)
    rows = [row("epoch", config, epoch=1, train_ms=60_000) for config in (first, second)]
    rows += [row("epoch", third, BEFORE, epoch=5, train_ms=60_000)]
    rows += [row("train", third, BEFORE, status="failed")]
    shown = grids.progress(plan, rows)
    assert shown.startswith("0 of 3 configurations finished; ")
    assert "sgd 0.001: 1 of 5 epochs; mnist resnet18 adam 0.001: 1 of 5 epochs; about 6.5" in shown


PLANS = [None, "{}", "[", '{"started": 1, "workers": 1, "trajectories": [[{"a": 1}]]}']


@pytest.mark.parametrize("content", PLANS)
def test_without_a_plan_it_says_so(tmp_path, content):
    if content is not None:
        (tmp_path / "plan.json").write_text(content)
    with pytest.raises(UsageError, match=r"--watch: .*plan\.json is (missing|no plan)"):
        grids.read_plan(tmp_path)


def test_ctrl_c_ends_it_and_a_pipe_gets_a_line_for_each_change_until_the_grid_ends(tmp_path):
    plan = grid()
    grids.write_plan(tmp_path, plan.trajectories, 2)
    assert grids.read_plan(tmp_path)[1:] == (plan.trajectories, 2)
    process = start("report.py", "--watch", "--results-dir", tmp_path)
    assert process.stdout.readline().startswith("0 of 1 configurations finished")
    log, config = Log(tmp_path), plan.trajectories[0].trained
    log.path.write_bytes(b'{"torn')  # the next line is one of its own
    metrics = {"epoch": 1, "train_ms": 1000}
    log.append("epoch", as_dict(config), metrics, run_id=grids.train_id(config))
    assert ": 1 of 5 epochs; about 4 s left" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = finish(process, 130)
    assert (out, err.count("\n")) == ("", 1)
    assert sorted(os.listdir(tmp_path)) == [".log.jsonl.lock", "log.jsonl", "plan.json"]
    log.append("train", as_dict(config), {})
    process = start("report.py", "--watch", "--results-dir", tmp_path)
    assert finish(process) == ("1 of 1 configurations finished; done\n", "")
