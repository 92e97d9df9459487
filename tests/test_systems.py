"""What a system lacks, and what somebody else's programs leave behind, changes nothing."""

from __future__ import annotations

import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY
from processes import ENV, ROOT, finish, outcome, start

from common.base.cli import Validated, option, parse_command_line
from common.base.log import Log
from common.base.machine import git_state

FLAGS = [*TINY, "--image-size", "16", "--model", "vgg5", "--epochs", "1", "--threads", "1"]
# In every process: what is POSIX's alone is gone. portalocker and psutil know ways for each system.
HIDDEN = """
import os, sys
import portalocker, psutil
for name in ("getuid", "getloadavg", "sched_getaffinity", "sysconf", "pread", "fork", "killpg"):
    delattr(os, name)
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
"""


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The outcome of an undisturbed training."""
    folder = tmp_path_factory.mktemp("expected")
    finish(start("train.py", *FLAGS, "--results-dir", folder))
    return [outcome(row) for row in Log(folder).read("train")]


def trained(folder):
    return [outcome(row) for row in Log(folder).read("train")]


@pytest.mark.slow
def test_nothing_needs_what_posix_alone_has(tmp_path, expected):
    (tmp_path / "sitecustomize.py").write_text(HIDDEN)
    results = ["--results-dir", tmp_path / "results"]
    for command in (
        ["train.py", *FLAGS, "--opt", "sgd", "adam", "--jobs", "2"],
        ["svm.py", "--dataset", "digits", "--samples", "100", "--threads", "1"],
        ["flops.py"],
        ["report.py", "--no-pdf"],
    ):
        out, err = finish(start(*command, *results, PYTHONPATH=f"{tmp_path}:{ROOT}"))
        assert "Traceback" not in out + err
    rows = Log(tmp_path / "results").read("train")
    assert sorted(row["config"]["opt"] for row in rows) == ["adam", "sgd"]
    assert [outcome(row) for row in rows if row["config"]["opt"] == "sgd"] == expected


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONSAFEPATH": "1", "PYTHONWARNINGS": "error", "COLUMNS": "0", "TERM": "dumb"},
        {"PYTHONOPTIMIZE": "2", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"},
    ],
    ids=lambda env: " ".join(env),
)
def test_the_environment_changes_no_training(tmp_path, expected, env):
    _, err = finish(start("train.py", *FLAGS, "--results-dir", tmp_path, PYTHONPATH="", **env))
    assert (trained(tmp_path), err) == (expected, "")


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_closed_streams_cost_nothing_and_no_file_takes_their_place(tmp_path, expected, closed):
    command = [sys.executable, "train.py", *FLAGS, "--results-dir", str(tmp_path)]
    done = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *command], cwd=ROOT, env=ENV)
    assert (done.returncode, trained(tmp_path)) == (0, expected)
    assert b"epoch 1/1" not in (tmp_path / "log.jsonl").read_bytes()


@pytest.mark.slow
def test_modules_in_the_working_directory_and_in_others_are_not_imported(tmp_path, expected):
    """By the grid, its workers, and the processes in which engines and steps are timed."""
    for folder in ("here", "elsewhere"):
        (tmp_path / folder / "common").mkdir(parents=True)
        (tmp_path / folder / "common" / "__init__.py").write_text("raise RuntimeError('theirs')")
    for name in ("random", "torch"):
        (tmp_path / "here" / f"{name}.py").write_text("raise RuntimeError('theirs')")
    own = {"cwd": tmp_path / "here", "PYTHONPATH": str(tmp_path / "elsewhere")}
    grid = ["--opt", "sgd", "adam", "--jobs", "2", "--export", "torchscript"]
    speed = "--mode infer --quick --seconds 0.01 --scenario single --threads 1 --accept-noise"
    speed = [*speed.split(), "--engine", "torchscript"]
    for command in ([ROOT / "train.py", *FLAGS, *grid], [ROOT / "hw_bench.py", *speed]):
        finish(start(*command, "--results-dir", "results", **own))
    assert expected[0] in trained(tmp_path / "here" / "results")


def test_a_notebooks_backend_of_matplotlib_draws_no_figures_of_the_report(tmp_path):
    Log(tmp_path).append("svm", {"dataset": "digits", "kernel": "rbf"}, {"test_acc": 0.5})
    kernel = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    finish(start("report.py", "--no-pdf", "--results-dir", tmp_path, **kernel))
    assert (tmp_path / "report" / "report.html").exists()


def git(*command, cwd):
    done = subprocess.run(["git", *command], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_is_this_projects_or_none(tmp_path, monkeypatch):
    git("init", "-q", cwd=tmp_path)
    (tmp_path / "theirs.txt").write_text("theirs")
    git("add", ".", cwd=tmp_path)
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    git(*author, "commit", "-qm", "theirs", cwd=tmp_path)
    head = git("rev-parse", "HEAD", cwd=ROOT)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / ".git" / "index"))
    git_state.cache_clear()
    assert git_state()["commit"] == head
    shutil.copytree(ROOT / "common", tmp_path / "copy" / "common")
    code = "from common.base.machine import git_state; print(git_state())"
    out, _ = finish(start("-c", code, cwd=tmp_path / "copy", PYTHONPATH=""))
    assert out == "{'commit': None, 'dirty': None}\n"


class Paths(Validated):
    """Flags that may be paths."""

    dataset: str = option("mnist", "data set")
    out: str | None = option(None, "folder")
    files: tuple[str, ...] = option((), "files")


def test_a_tilde_is_the_home_folder_wherever_a_path_may_stand():
    home = str(Path.home())
    flags = ["--out=~/x", "--files", "~/a b.png", "a~b", "--dataset", "folder:~/photos"]
    _, options = parse_command_line(flags, "", options_class=Paths)
    assert options == Paths("folder:~/photos", f"{home}/x", (f"{home}/a b.png", "a~b"))


def test_two_checkouts_export_the_same_bytes_with_no_folder_in_them(tmp_path):
    """Neither those of the project nor those of its libraries."""
    copies, packages = [tmp_path / "one", tmp_path / "another" / "place"], Path(sys.prefix)
    flags = [*FLAGS, "--export", "onnx", "torchscript", "--results-dir", "results"]
    for copy in copies:
        shutil.copytree(ROOT / "common", copy / "common")
        shutil.copy(ROOT / "train.py", copy)
    for process in [start("train.py", *flags, cwd=copy, PYTHONPATH="") for copy in copies]:
        finish(process)
    files = [c.glob("results/exports/*[!d]") for c in copies]  # without the .md of model cards
    one, another = ({f.name: f.read_bytes() for f in own} for own in files)
    assert len(one) == 2
    assert one == another
    folders = [str(folder).encode() for folder in (tmp_path, packages, ROOT)]
    assert not any(folder in content for content in one.values() for folder in folders)


def test_a_library_is_quoted_whole_below_a_line_of_our_own(tmp_path):
    """Of a file that only pickle could read, and of one that no engine can."""
    (tmp_path / "odd.pt").write_bytes(pickle.dumps(Path))
    (tmp_path / "odd.onnx").write_text("<html>")
    weights = ["train.py", *FLAGS, "--weights", tmp_path / "odd.pt", "--results-dir", tmp_path]
    odd = ["-m", "common.predict", tmp_path / "odd.onnx", "x.png"]
    for command, line, quoted in (
        (weights, r"train.py: cannot load \S+odd.pt: it .*; give one", "UnpicklingError"),
        (odd, r"predict.py: \S+odd.onnx is no ONNX .*writes a new one", "InvalidProtobuf"),
    ):
        _, err = finish(start(*command), 2)
        first, _, more = err.partition("\n")
        assert re.match(line, first)
        assert more.startswith(quoted)
        assert "weights_only" not in first
    assert not Log(tmp_path).read("train")
