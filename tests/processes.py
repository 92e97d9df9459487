"""Processes that a test starts, watches and kills, and what runs leave that are the same work."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
TIMES = {"train_ms", "eval_ms", "images_per_s", "fit_ms", "predict_ms", "features_ms"}


def outcome(row):
    """All in a row that two identical runs may not differ in."""
    figures = {k: v for k, v in row["metrics"].items() if k not in TIMES}
    return json.dumps([row["kind"], row["run_id"], row["status"], row["config"], figures])


def arrays_of(folder):
    """The arrays of all predictions and checkpoints, by file."""
    from common.train.checkpoint import load_checkpoint

    arrays = {f.relative_to(folder): dict(np.load(f)) for f in folder.rglob("*.npz")}
    for file in folder.rglob("*.pt"):
        weights = load_checkpoint(file)["model"]
        arrays[file.relative_to(folder)] = {name: w.numpy() for name, w in weights.items()}
    return arrays


def start(*command, line='exec "$@"', cwd=ROOT, **env):
    """Python with these arguments, by a line of shell, in a process group of its own."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = ["sh", "-c", line, "sh", sys.executable, *map(str, command)]
    return subprocess.Popen(command, cwd=cwd, env=ENV | env, start_new_session=True, **streams)


def finish(process, status=0):
    """Its output and errors, once it has ended with that status."""
    try:
        out, err = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        for child in (*psutil.Process(process.pid).children(recursive=True), process):
            child.kill()
        raise AssertionError(process.communicate()) from None
    assert process.returncode == status, err[-3000:]
    return out, err


def refused(process, cause=""):
    """The one line that it says no with, exit status 2, and below it nothing but what a library
    said, which begins so."""
    out, err = finish(process, 2)
    line, _, more = err.partition("\n")
    assert more.startswith(cause) if cause else not more, err
    return out, f"{line}\n"


def wait_for(condition, process=None):
    """Until it holds, while the process runs."""
    deadline = time.monotonic() + 90
    while not condition():
        assert process is None or process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children(process):
    """The processes that it has started and that still run."""
    return [child.pid for child in psutil.Process(process.pid).children()]


def wait_until_gone(pids):
    """Until none of them runs."""
    wait_for(lambda: not any(map(psutil.pid_exists, pids)))
