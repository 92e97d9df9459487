"""A grid in several workers leaves the log of one: whatever is killed, and however it is begun."""

import importlib.util
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import report
import svm
import train
from common.base.cli import UsageError, as_dict, expand_grid, parse_command_line, to_flags
from common.base.config import SvmConfig, TrainConfig, TrainOptions
from common.base.log import Log
from common.train import workers as jobs
from common.train.watch import read_plan
from common.train.workers import Job

ROOT = Path(__file__).parent.parent
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
TINY = ["--dataset", "digits", "--limit", "48", "--image-size", "16", "--model", "vgg5"]
SHARE = max(1, len(os.sched_getaffinity(0)) // 2)  # threads of each of two workers
TIMES = {"train_ms", "eval_ms", "images_per_s", "fit_ms", "predict_ms", "features_ms"}


def outcomes(rows, *kinds):
    """The finished rows, without what two runs may differ in."""
    return sorted(
        json.dumps([row["kind"], row["run_id"], row["config"],
                    {k: v for k, v in row["metrics"].items() if k not in TIMES}])
        for kind in kinds for row in rows(*kind) if row["status"] == "ok"
    )  # fmt: skip


def start(*command):
    return subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, env=ENV, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def finish(process):
    """Its output and errors, once it has ended."""
    try:
        return process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(process.communicate()) from None


def wait_for(condition, process):
    deadline = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def descendants(pid):
    """The processes under this one."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [p for child in map(int, found) for p in (child, *descendants(child))]


def workers_of(pid):
    """loky's processes under this one, but for the one that only cleans up after them."""
    found = []
    for child in descendants(pid):
        with suppress(FileNotFoundError):  # it has ended meanwhile
            if "popen_loky" in Path(f"/proc/{child}/cmdline").read_text():
                found.append(child)
    return found


def alive(pids):
    return [p for p in pids if Path(f"/proc/{p}").exists()]


def lines(folder):
    log = folder / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


# --- commands -------------------------------------------------------------------------------------


def test_flags_of_a_configuration_give_it_back():
    config = TrainConfig(
        "digits", lr=1 / 3, amp=False, flip=True, epochs=1, weight_decay=5e-4, device="cpu", seed=7
    )
    grid, options = parse_command_line(to_flags([config], True), "", TrainConfig, TrainOptions)
    assert expand_grid(TrainConfig, grid) == [config]
    machine = SvmConfig(max_iter=-1, C=0.1)
    grid, _ = parse_command_line(to_flags([machine], True), "", SvmConfig)
    assert expand_grid(SvmConfig, grid) == [machine]
    options = TrainOptions(results_dir="it's", force=True, resume=False, export=("onnx",))
    _, same = parse_command_line(to_flags([options], False), "", TrainConfig, TrainOptions)
    assert same == options


GRID = ["--opt", "sgd", "adam", "--epochs", "1", "2", "--pin-memory", "false", "true"]


def test_listed_commands_run_alone_leave_the_grids_log(tmp_path, rows, capsys):
    """In a folder whose name a shell would take apart."""
    folder = "it's a $HOME; really"
    flags = [*TINY, *GRID, "--threads", "1"]
    assert train.main([*flags, "--results-dir", str(tmp_path / "grid")]) == 0
    capsys.readouterr()
    listing = [*flags, "--results-dir", str(tmp_path / folder), "--list-commands", "--jobs", "2"]
    assert train.main(listing) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 2
    assert subprocess.run(commands[1], shell=True, env=ENV, check=False).returncode == 0
    train.main(listing)
    assert capsys.readouterr().out.splitlines()[-1:] == commands[:1]
    _, script, *rest = shlex.split(commands[0])
    assert script == str(ROOT / "train.py")
    assert train.main(rest) == 0
    train.main(listing)
    assert "train.py" not in capsys.readouterr().out
    both = [("train", "epoch")] * 2
    ours, theirs = (
        outcomes(rows, *((kind, place) for kind in kinds))
        for kinds, place in zip(both, (folder, "grid"), strict=True)
    )
    assert ours == theirs
    assert len(ours) == 8 + 4


def test_svm_lists_commands_too(tmp_path, capsys):
    flags = ["--dataset", "digits", "--samples", "100", "--kernel", "poly", "rbf", "--threads", "1"]
    svm.main([*flags, "--results-dir", str(tmp_path), "--list-commands"])
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(c[1]).name for c in commands] == ["svm.py"] * 2
    assert all(svm.main(c[2:]) == 0 for c in commands)
    svm.main([*flags, "--results-dir", str(tmp_path), "--list-commands"])
    assert "svm.py" not in capsys.readouterr().out


# --- workers --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_workers_one_of_them_killed_leave_the_log_of_one(tmp_path, rows):
    """Of a grid that has trajectories which cannot be trained."""
    flags = [*TINY, *GRID, "--epochs", "1", "3", "--lr", "1e-3", "1e30", "--amp", "false"]
    grid = start("train.py", *flags, "--jobs", "2", "--results-dir", tmp_path / "two")
    wait_for(lambda: lines(tmp_path / "two") >= 1, grid)
    os.kill(workers_of(grid.pid)[0], signal.SIGKILL)
    alone = [*flags, "--results-dir", str(tmp_path / "one"), "--threads", str(SHARE)]
    assert train.main(alone) == 1
    out, err = finish(grid)
    assert grid.returncode == 1, err
    assert err == ""
    assert "a worker died (TerminatedWorkerError)" in out
    assert "NonFiniteLoss" in out
    assert outcomes(rows, ("train", "two"), ("epoch", "two")) == outcomes(
        rows, ("train", "one"), ("epoch", "one")
    )
    failed = [
        {row["run_id"] for row in rows("train", place) if row["status"] == "failed"}
        for place in ("one", "two")
    ]
    assert failed[0] == failed[1] != set()
    assert {row["env"]["threads"] for row in rows("train", "two")} == {SHARE}
    _, planned, workers = read_plan(tmp_path / "two")  # the grid's, not that of a part of it
    assert (planned, workers) == (read_plan(tmp_path / "one")[1], 2)


DEADLY = """
import os, signal, train
from common.base.cli import run_script
from common.train.run import Run
step = Run.train_one_epoch
def train_one_epoch(run):
    if run.config.opt == "adam":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(run)
Run.train_one_epoch = train_one_epoch
main = train.main
"""


def test_what_another_process_finished_meanwhile_is_done(tmp_path, rows):
    """Between the plan and the work the other one's row came: a worker then has nothing to do."""
    log = Log(tmp_path / "results")
    config = TrainConfig("digits")
    work = jobs._Work("train", [Job((config,), config, "one")], log, force=False)
    log.append("train", as_dict(config), {})
    assert work.left([0]) == []
    late = jobs._Work("train", [Job((config,), config, "one")], log, force=False)
    assert late.left([0]) == []
    late.write_off(0, "never tried")
    assert [row["status"] for row in rows("train")] == ["ok"]
    assert jobs._Work("train", late.jobs, log, force=True).left([0]) == [0]


@pytest.mark.slow
def test_what_always_kills_its_worker_is_failed_and_takes_no_other_with_it(tmp_path, rows):
    (tmp_path / "deadly.py").write_text(DEADLY)
    flags = [*TINY, "--opt", "adam", "sgd", "adamw", "--epochs", "1", "2"]
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import train\n"
        "from common.base.cli import run_script\nfrom common.train import workers as jobs\n"
        "share = jobs.share_out\n"
        "train.share_out = lambda script, *rest: share('deadly', *rest)\n"
        "run_script(train.main)"
    )
    folder = tmp_path / "results"
    grid = start("-c", code, tmp_path, *flags, "--jobs", "2", "--results-dir", folder)
    out, err = finish(grid)
    assert grid.returncode == 1, err
    found = {(row["config"]["opt"], row["config"]["epochs"]): row for row in rows("train")}
    assert {key: row["status"] for key, row in found.items()} == {
        (opt, epochs): "failed" if opt == "adam" else "ok"
        for opt in ("adam", "sgd", "adamw") for epochs in (1, 2)
    }  # fmt: skip
    assert "tried 3 times: its worker died" in found["adam", 1]["error"]
    assert found["adam", 1]["error"] in out


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_workers(tmp_path, rows, number, status):
    folder = tmp_path / "results"
    flags = [*TINY, "--opt", "sgd", "adam", "--epochs", "2000", "--results-dir", folder]
    grid = start("train.py", *flags, "--jobs", "2")
    wait_for(lambda: lines(folder) >= 2, grid)
    below = descendants(grid.pid)
    assert len(workers_of(grid.pid)) == 2
    if number == signal.SIGINT:
        os.killpg(grid.pid, number)  # as a terminal does
    else:
        grid.send_signal(number)
    _, err = finish(grid)
    assert (grid.returncode, err) == (status, "interrupted; everything finished so far is kept\n")
    assert [row["status"] for row in rows("train")] == ["interrupted"] * 2
    deadline = time.monotonic() + 5
    while alive(below) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(below) == []


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_grid(tmp_path):
    folder = tmp_path / "results"
    flags = [*TINY, "--opt", "sgd", "adam", "--epochs", "2000", "--results-dir", folder]
    grid = start("train.py", *flags, "--jobs", "2")
    wait_for(lambda: lines(folder) >= 2, grid)
    workers = workers_of(grid.pid)
    grid.kill()
    grid.communicate()
    deadline = time.monotonic() + 10
    while alive(workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(workers) == []


@pytest.mark.slow
def test_svm_grids_are_shared_out_too(tmp_path, rows):
    flags = ["--dataset", "digits", "--samples", "200", "--kernel", "poly", "rbf", "linear"]
    two = start("svm.py", *flags, "--jobs", "2", "--results-dir", tmp_path / "two")
    alone = [*flags, "--threads", str(SHARE), "--results-dir", str(tmp_path / "one")]
    assert svm.main(alone) == 0
    out, err = finish(two)
    assert two.returncode == 0, err
    assert out.count("in the log") == 3
    assert outcomes(rows, ("svm", "two")) == outcomes(rows, ("svm", "one"))


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("distributed"), reason="pip install distributed")
def test_a_dask_cluster_of_two_workers_one_of_them_killed(tmp_path, rows):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    host, port = address.split(":")
    scheduler = start("-m", "distributed.cli.dask_scheduler", "--host", host, "--port", port,
                      "--no-dashboard")  # fmt: skip
    workers = [
        start("-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny",
              "--no-dashboard", "--local-directory", tmp_path / f"worker{n}")
        for n in range(2)
    ]  # fmt: skip
    flags = [*TINY, "--opt", "sgd", "adam", "adamw", "--epochs", "3", "--limit", "600"]
    try:
        grid = start("train.py", *flags, "--backend", "dask", "--cluster", address, "--jobs", "2",
                     "--results-dir", tmp_path / "two")  # fmt: skip
        wait_for(lambda: lines(tmp_path / "two") >= 1, grid)
        workers[0].kill()
        assert train.main([*flags, "--results-dir", str(tmp_path / "one"), "--threads", "1"]) == 0
        _, err = finish(grid)
        assert grid.returncode == 0, err
    finally:
        for process in (*workers, scheduler):
            process.terminate()
            process.communicate()
    assert read_plan(tmp_path / "two")[1:] == (read_plan(tmp_path / "one")[1], 2)
    assert outcomes(rows, ("train", "two"), ("epoch", "two")) == outcomes(
        rows, ("train", "one"), ("epoch", "one")
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--jobs", "0"], "--jobs: '0' is neither a number"),
        (["--jobs", "many"], "--jobs: 'many' is neither a number"),
        (["--cluster", "here:1"], "--cluster here:1: needs --backend dask or ray"),
        (["--backend", "ray"], "--backend ray: .*pip install ray"),
    ],
)
def test_bad_ways_to_share_out_are_refused(tmp_path, flags, said):
    if "ray" in flags and importlib.util.find_spec("ray"):
        pytest.skip("ray is installed")
    with pytest.raises(UsageError, match=said):
        train.main([*TINY, "--epochs", "1", "--results-dir", str(tmp_path), *flags])


def test_commands_with_a_shard_each_are_one_grid_to_the_report(tmp_path, rows, capsys):
    flags = [*TINY, "--epochs", "1", "--threads", "1", "--results-dir", str(tmp_path / "results")]
    for shard, opt in enumerate(["sgd", "adam"]):
        assert train.main([*flags, "--opt", opt, "--shard", str(shard)]) == 0
    assert not (tmp_path / "results" / "plan.json").exists()  # none of them is the grid
    capsys.readouterr()
    assert train.main([*flags, "--opt", "sgd", "adam", "--list-commands"]) == 0
    assert capsys.readouterr().out == ""
    assert report.main(["--results-dir", str(tmp_path / "results")]) == 0
    [counts] = [
        line for line in (tmp_path / "results" / "report" / "csv" / "log.csv").read_text().split()
        if line.startswith("train")
    ]  # fmt: skip
    assert counts.startswith("train,2,")
    with pytest.raises(UsageError, match=r"--shard: '\.\./x' must be of letters"):
        train.main([*flags, "--shard", "../x"])
