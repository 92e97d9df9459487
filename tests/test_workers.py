"""A grid in several workers leaves the log of one: whatever is killed, and however it is begun."""

import importlib.util
import os
import re
import shlex
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from joblib import cpu_count
from processes import ENV, ROOT, children, finish, outcome, start, wait_for, wait_until_gone

import report
import svm
import train
from common.base.cli import UsageError, as_dict, expand_grid, parse_command_line, to_flags
from common.base.config import SvmConfig, TrainConfig, TrainOptions
from common.base.log import Log
from common.train import workers
from common.train.grid import read_plan

TINY = ["--dataset", "digits", "--limit", "48", "--image-size", "16", "--model", "vgg5"]
GRID = ["--opt", "sgd", "adam", "--epochs", "1", "2", "--pin-memory", "false", "true"]
ENDLESS = [*TINY, "--opt", "sgd", "adam", "--epochs", "2000", "--jobs", "2", "--results-dir"]
SHARE = max(1, cpu_count() // 2)  # threads of each of two workers
DASK = pytest.mark.skipif(not importlib.util.find_spec("distributed"), reason="no distributed")


def outcomes(rows, folder, *kinds):
    """The finished rows, without what two runs may differ in."""
    done = [row for kind in kinds for row in rows(kind, folder) if row["status"] == "ok"]
    return sorted(map(outcome, done))


def assert_same_log(rows, folder):
    """A grid of two workers leaves the log and the plan of one."""
    assert outcomes(rows, "two", "train", "epoch") == outcomes(rows, "one", "train", "epoch")
    one, two = (read_plan(folder / name) for name in ("one", "two"))
    assert two.trajectories == one.trajectories  # the grid's, not those of a part of it
    assert two.workers == 2


def training(folder):
    """How many runs have a row of an epoch."""
    rows = Log(folder).read("epoch") if (folder / "log.jsonl").exists() else []
    return len({row["run_id"] for row in rows})


def test_flags_of_settings_give_them_back():
    factors = {"lr": 1 / 3, "amp": False, "flip": True, "epochs": 1, "weight_decay": 5e-4}
    for config in (TrainConfig("digits", device="cpu", seed=7, **factors), SvmConfig(C=0.1)):
        grid, _ = parse_command_line(to_flags([config], True), "", type(config))
        assert expand_grid(type(config), grid) == [config]
    options = TrainOptions(results_dir="it's", force=True, resume=False, export=("onnx",))
    _, same = parse_command_line(to_flags([options], False), "", options_class=TrainOptions)
    assert same == options


def test_listed_commands_run_alone_leave_the_grids_log(tmp_path, rows, capsys):
    """In a folder whose name a shell would take apart."""
    folder, flags = "it's a $HOME; really", [*TINY, *GRID, "--threads", "1", "--results-dir"]

    def listed():
        capsys.readouterr()
        train.main([*flags, str(tmp_path / folder), "--list-commands", "--jobs", "2"])
        return [line for line in capsys.readouterr().out.splitlines() if "train.py" in line]

    assert train.main([*flags, str(tmp_path / "grid")]) == 0
    first, second = listed()
    assert subprocess.run(second, shell=True, env=ENV, check=False).returncode == 0
    assert listed() == [first]
    _, script, *rest = shlex.split(first)
    assert script == str(ROOT / "train.py")
    assert train.main(rest) == 0
    assert listed() == []
    ours = outcomes(rows, folder, "train", "epoch")
    assert ours == outcomes(rows, "grid", "train", "epoch")
    assert len(ours) == 8 + 4


def test_svm_lists_commands_too(tmp_path, capsys):
    flags = ["--dataset", "digits", "--samples", "100", "--kernel", "poly", "rbf", "--threads", "1"]
    flags += ["--results-dir", str(tmp_path), "--list-commands"]
    svm.main(flags)
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(c[1]).name for c in commands] == ["svm.py"] * 2
    assert all(svm.main(c[2:]) == 0 for c in commands)
    svm.main(flags)
    assert "svm.py" not in capsys.readouterr().out


@pytest.mark.slow
def test_two_workers_one_of_them_killed_leave_the_log_of_one(tmp_path, rows):
    """Of a grid that has trajectories which cannot be trained."""
    flags = [*TINY, *GRID, "--epochs", "1", "20", "--lr", "1e-3", "1e30", "--amp", "false"]
    grid = start("train.py", *flags, "--jobs", "2", "--results-dir", tmp_path / "two")
    wait_for(lambda: training(tmp_path / "two"), grid)
    # One that trains: at a learning rate of 1e30 all rows may be there.
    os.kill(next(n for n in children(grid) if "--lr" not in psutil.Process(n).cmdline()), 9)
    alone = [*flags, "--results-dir", str(tmp_path / "one"), "--threads", str(SHARE)]
    assert train.main(alone) == 1
    out, err = finish(grid, 1)
    said = ("leads on digits, ", "its worker died (SIGKILL); what it left is begun again")
    assert (err, all(text in out for text in (*said, "NonFiniteLoss"))) == ("", True)
    assert re.search(r"^\[\d\]  epoch 20/20  loss ", out, re.MULTILINE)
    assert_same_log(rows, tmp_path)
    ends = [{(r["run_id"], r["status"]) for r in rows("train", name)} for name in ("one", "two")]
    assert ends[0] == ends[1]
    assert {row["env"]["threads"] for row in rows("train", "two")} == {SHARE}


def test_what_another_process_finished_is_done_and_bad_input_ends_all(tmp_path, rows, monkeypatch):
    """Its row came between the plan and the work: a command then has nothing to do. But where work
    is done again the old row does not count."""
    log, config = Log(tmp_path / "results"), TrainConfig("digits", device="cpu")
    monkeypatch.setattr(workers.Processes, "run", lambda *_: (0, ""))
    log.append("train", as_dict(config), {})
    jobs = [("one", [config])]
    assert workers.share_out("train", jobs, log, TrainOptions(), 1, print) == 0
    assert workers.share_out("train", jobs, log, TrainOptions(force=True), 1, print) == 1
    assert [row["status"] for row in rows("train")] == ["ok", "failed"]
    assert rows("train")[1]["error"] == "tried 3 times: it left no row"
    bad = "a warning\ntrain.py: cannot write results: no space left\nOSError: a\nb\n"  # a worker's
    monkeypatch.setattr(workers.Processes, "run", lambda *_: (2, bad))
    with pytest.raises(UsageError, match=r"^cannot write results: no space left$") as end:
        workers.share_out("train", jobs, log, TrainOptions(), 1, print)
    assert str(end.value.__cause__) == "OSError: a\nb"  # what a library said


def test_jobs_that_last_share_the_cores_and_the_memory(monkeypatch):
    monkeypatch.setattr(workers, "cpu_count", lambda: 8)
    monkeypatch.setattr(workers.psutil, "virtual_memory", lambda: SimpleNamespace(available=11e9))
    for n, job_s, options, count in (
        (16, 59.0, {}, 1),
        (16, 61.0, {}, 5),
        (3, 61.0, {}, 3),
        (0, 61.0, {}, 1),
        (16, 0.0, {"jobs": "7"}, 7),
        (16, 0.0, {"backend": "dask"}, 5),
    ):
        assert workers.count_workers(TrainOptions(**options), "cpu", n, job_s) == count


DEADLY = """
import os, signal, sys
if "adam" in sys.orig_argv and "sgd" not in sys.orig_argv:  # a command, and not the grid
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_what_always_kills_its_worker_is_failed_and_takes_no_other_with_it(tmp_path, rows):
    (tmp_path / "sitecustomize.py").write_text(DEADLY)
    flags = [*TINY, "--opt", "adam", "sgd", "adamw", "--epochs", "1", "2", "--jobs", "2"]
    flags += ["--results-dir", tmp_path / "results"]
    out, _ = finish(start("train.py", *flags, PYTHONPATH=f"{tmp_path}:{ROOT}"), 1)
    why = "tried 3 times: its worker died (SIGKILL)"
    assert why in out
    ends = [(r["config"]["opt"], r["config"]["epochs"], r["error"]) for r in rows("train")]
    assert sorted(ends, key=str) == [
        *(("adam", epochs, why) for epochs in (1, 2)),
        *((opt, epochs, None) for opt in ("adamw", "sgd") for epochs in (1, 2)),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_signal_ends_all_workers(tmp_path, rows, number, status):
    folder = tmp_path / "results"
    grid = start("train.py", *ENDLESS, folder)
    wait_for(lambda: training(folder) == 2, grid)
    below = children(grid)
    assert len(below) == 2
    if number == signal.SIGINT:
        os.killpg(grid.pid, number)  # as a terminal does
    else:
        grid.send_signal(number)
    _, err = finish(grid, status)
    wait_until_gone(below)
    if number != signal.SIGKILL:
        assert err == "interrupted; everything finished so far is kept\n"
        assert [row["status"] for row in rows("train")] == ["interrupted"] * 2


@pytest.mark.slow
def test_svm_grids_are_shared_out_too(tmp_path, rows):
    flags = ["--dataset", "digits", "--samples", "200", "--kernel", "poly", "rbf", "linear"]
    flags += ["--max-iter", "5", "--results-dir"]
    two = start("svm.py", *flags, tmp_path / "two", "--jobs", "2")
    assert svm.main([*flags, str(tmp_path / "one"), "--threads", str(SHARE)]) == 0
    out, err = finish(two)
    assert out.count("in the log") == out.count("leads on digits, ") == 3
    assert "(3 of 3 done)" in out
    assert err.count("warning: --max-iter 5 stopped the solver") == 3  # what a worker says
    assert outcomes(rows, "two", "svm") == outcomes(rows, "one", "svm")


@DASK
@pytest.mark.slow
def test_a_dask_cluster_of_two_workers_one_of_them_killed(tmp_path, rows):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host, port = free.getsockname()
    place = ["--host", host, "--port", port, "--no-dashboard"]
    scheduler = start("-m", "distributed.cli.dask_scheduler", *place)
    worker = ["-m", "distributed.cli.dask_worker", f"{host}:{port}", "--nthreads", "1"]
    worker += ["--no-nanny", "--no-dashboard", "--local-directory"]
    machines = [start(*worker, tmp_path / f"worker{n}", PYTHONPATH="") for n in range(2)]
    flags = [*TINY, "--opt", "sgd", "adam", "adamw", "--epochs", "3", "--limit", "600"]
    dask = ["--backend", "dask", "--cluster", f"{host}:{port}", "--jobs", "2", "--results-dir"]
    try:
        grid = start("train.py", *flags, *dask, tmp_path / "two")
        wait_for(lambda: training(tmp_path / "two"), grid)
        machines[0].kill()
        assert train.main([*flags, "--results-dir", str(tmp_path / "one"), "--threads", "1"]) == 0
        finish(grid)
    finally:
        for process in (*machines, scheduler):
            process.terminate()
            process.communicate()
    assert_same_log(rows, tmp_path)


@DASK
@pytest.mark.slow
def test_a_dask_cluster_that_is_started_here_ends_with_the_grid(tmp_path, rows):
    flags = [*TINY, "--opt", "sgd", "adam", "--epochs", "1", "--backend", "dask", "--jobs", "2"]
    with socket.socket() as other:
        with suppress(OSError):  # it is in use already
            other.bind(("", 8787))  # where dask's first cluster of a machine serves its pages
            other.listen()
        _, err = finish(start("train.py", *flags, "--results-dir", tmp_path / "results"))
    assert err == ""
    assert [row["status"] for row in rows("train")] == ["ok", "ok"]


def test_commands_with_a_shard_each_are_one_grid_to_the_report(tmp_path, rows, capsys):
    flags = [*TINY, "--epochs", "1", "--threads", "1", "--results-dir", str(tmp_path / "results")]
    for shard, opt in enumerate(["sgd", "adam"]):
        assert train.main([*flags, "--opt", opt, "--shard", str(shard)]) == 0
    assert not (tmp_path / "results" / "plan.json").exists()  # none of them is the grid
    capsys.readouterr()
    assert train.main([*flags, "--opt", "sgd", "adam", "--list-commands"]) == 0
    assert capsys.readouterr().out == ""
    assert report.main(["--results-dir", str(tmp_path / "results")]) == 0
    counts = (tmp_path / "results" / "report" / "csv" / "log.csv").read_text().split()
    assert [line[:8] for line in counts if line.startswith("train")] == ["train,2,"]
