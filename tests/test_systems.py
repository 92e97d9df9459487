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
from processes import ROOT, finish, outcome, start

from common.base.cli import Validated, option, parse_command_line
from common.base.log import Log
from common.base.machine import git_state

FLAGS = [*TINY, "--image-size", "16", "--model", "vgg5", "--epochs", "1", "--threads", "1"]
EXPORT = ["--export", "onnx", "torchscript"]
# In every process: what is POSIX's alone is gone. portalocker and psutil know ways for each system.
HIDDEN = """
import os, sys
import portalocker, psutil
for name in ("getuid", "getloadavg", "sched_getaffinity", "sysconf", "pread", "fork", "killpg"):
    delattr(os, name)
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
"""


C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"}


def trained(folder):
    return [outcome(row) for row in Log(folder).read("train")]


def exports(folder):
    """The files' content, without model cards, which name the commit."""
    return {file.name: file.read_bytes() for file in (folder / "exports").glob("*[!d]")}


def train_copy(folder, **env):
    """Train and export in a copy of the project. Returns: the folder of the results."""
    shutil.copytree(ROOT / "common", folder / "common")
    shutil.copy(ROOT / "train.py", folder)
    finish(start("train.py", *FLAGS, *EXPORT, cwd=folder, PYTHONPATH="", **env))
    return folder / "results"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return train_copy(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.slow
def test_posix_alone_foreign_modules_and_a_notebooks_backend_are_nothing_to_us(
    tmp_path, undisturbed
):
    """Nor to a grid's workers, and the processes in which engines are timed: modules of another
    project lie in the working directory, and where Python looks for some."""
    here = tmp_path / "here"
    for folder in (here, tmp_path):
        (folder / "common").mkdir(parents=True)
        (folder / "common" / "__init__.py").write_text("raise RuntimeError('theirs')")
    for name in ("random", "torch"):
        (here / f"{name}.py").write_text("raise RuntimeError('theirs')")
    (tmp_path / "sitecustomize.py").write_text(HIDDEN)
    env = {"PYTHONPATH": str(tmp_path), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    speed = "--mode infer --quick --seconds 0.01 --scenario single --threads 1 --accept-noise"
    for script, *flags in (
        ["train.py", *FLAGS, "--opt", "sgd", "adam", "--jobs", "2", *EXPORT[:2]],
        ["hw_bench.py", *speed.split(), "--engine", "onnxruntime"],
        ["svm.py", "--dataset", "digits", "--samples", "100", "--threads", "1"],
        ["flops.py"],
        ["report.py", "--no-pdf"],
    ):
        out, err = finish(start(ROOT / script, *flags, cwd=here, **env))
        assert "Traceback" not in out + err
    assert len(trained(here / "results")) == 2
    assert set(trained(undisturbed)) < set(trained(here / "results"))
    assert (here / "results" / "report" / "report.html").exists()


@pytest.mark.parametrize(
    ("closed", "env"),
    [
        ("", {"PYTHONSAFEPATH": "1", "PYTHONWARNINGS": "error", "COLUMNS": "0", "TERM": "dumb"}),
        ("", {"PYTHONOPTIMIZE": "2", **C}),
        ("2>&-", C),
        ("<&- >&- 2>&-", {}),
    ],
    ids=str,
)
def test_the_environment_and_closed_streams_change_no_training(tmp_path, undisturbed, closed, env):
    flags = [*FLAGS, "--results-dir", tmp_path]
    _, err = finish(start("train.py", *flags, line=f'exec "$@" {closed}', PYTHONPATH="", **env))
    assert (trained(tmp_path), err) == (trained(undisturbed), "")
    assert b"epoch 1/1" not in (tmp_path / "log.jsonl").read_bytes()  # in the place of a stream


def test_another_checkout_exports_the_same_bytes_and_no_commit_or_folder_of_others(
    tmp_path, undisturbed
):
    """In somebody else's repository, one of whose hooks runs it; no folder of the libraries either
    is in the files."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["commit", "-qm", "theirs", "--allow-empty"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    hook = {"GIT_DIR": tmp_path / ".git", "GIT_WORK_TREE": tmp_path}
    hook["GIT_INDEX_FILE"] = tmp_path / ".git" / "index"
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()
    out, _ = finish(start("-c", "from common.base.machine import *; print(git_state())", **hook))
    assert (out, git_state()["commit"]) == (f"{git_state()}\n", head)
    results = train_copy(tmp_path / "copy", **hook)
    [row] = Log(results).read("train")
    assert row["git"] == {"commit": None, "dirty": None}
    files = exports(results)
    assert len(files) == 2
    assert files == exports(undisturbed)
    folders = [str(folder).encode() for folder in (tmp_path, undisturbed, sys.prefix, ROOT)]
    assert not any(folder in content for content in files.values() for folder in folders)


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
