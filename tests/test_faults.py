"""What machines and people do to a run, done for real: signals, full disks, small memory, odd
names. Every command here is a process of its own."""

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from processes import ROOT, arrays_of, finish, outcome, refused, start, wait_for

from common.base.config import OPTIMIZERS
from common.base.log import read_rows
from common.train.checkpoint import load_checkpoint

VGG5 = ["--model", "vgg5", "--epochs"]


def train(folder, *flags, **kwargs):
    return start("train.py", *TINY, "--results-dir", folder, *flags, **kwargs)


def kill_at(process, condition, wait_s=0.0):
    wait_for(condition, process)
    time.sleep(wait_s)
    process.kill()
    process.communicate()


def has_lines(folder, number=1):
    log = folder / "log.jsonl"
    return lambda: log.exists() and log.read_bytes().count(b"\n") >= number


def log_of(folder, kind="train"):
    rows, problems = read_rows(folder / "log.jsonl")
    assert not problems
    return [row for row in rows if row["kind"] == kind]


SAVER = """
import sys, torch
from pathlib import Path
from common.train.checkpoint import save_checkpoint
for n in range(10**6):
    save_checkpoint(Path(sys.argv[1]), {f"weight{i}": torch.full((200_000,), n) for i in range(9)})
"""


def test_a_checkpoint_killed_at_any_moment_loads_whole(tmp_path):
    file, moments, seen = tmp_path / "run.pt", random.Random(0), set()
    for _ in range(6):
        kill_at(start("-c", SAVER, file), file.exists, moments.uniform(0, 0.3))
        values = {value.unique().item() for value in load_checkpoint(file).values()}
        assert len(values) == 1
        seen |= values
    assert max(seen) > 0


INTERRUPTED = """
import sys, torch
from _thread import interrupt_main
from pathlib import Path
from threading import Timer
from common.train.checkpoint import save_checkpoint
content = {f"weight{i}": torch.zeros(5_000) for i in range(50)}
for moment_ms in range(1, 21):
    try:
        Timer(moment_ms / 1e3, interrupt_main).start()
        while True:
            save_checkpoint(Path(sys.argv[1]), content)
    except KeyboardInterrupt:
        pass
"""


def test_a_checkpoint_interrupted_at_any_moment_says_so(tmp_path):
    """And not that it cannot be written, of which the log has no row."""
    finish(start("-c", INTERRUPTED, tmp_path / "run.pt"))


TWICE = """
import os, signal
from common.base.cli import run_script

def main():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        print("its row is written")

run_script(main)
"""


def test_a_second_sigterm_does_not_cut_the_end_short():
    """As a grid sends one to a worker, and a service manager another."""
    assert finish(start("-c", TWICE), 143)[0] == "its row is written\n"


AMP = [*VGG5, "2", "--opt", *OPTIMIZERS, "--amp", "true"]
AMP += ["--translate", "1", "--erase", "0.3", "--limit", "512"]


def test_killed_inside_an_epoch_every_optimiser_ends_in_the_same_weights(tmp_path):
    """And the same command twice gives the same rows, weights and predictions. GRIDS=40 in the
    environment makes 200 kills in half an hour."""
    finish(train(tmp_path / "whole", *AMP))
    expected, moments = arrays_of(tmp_path / "whole"), random.Random(0)
    rows_of_whole = sorted(map(outcome, log_of(tmp_path / "whole")))
    assert len(expected) == 3 * len(OPTIMIZERS)  # two checkpoints, and predictions
    for grid in range(int(os.environ.get("GRIDS", 1))):
        folder = tmp_path / f"killed {grid}"
        for rows in range(1, 3 * len(OPTIMIZERS), 3):  # each has one of its first epoch; then two
            wait_s = moments.uniform(0, 0.2) if grid else 0.02  # into its second epoch; anywhere
            kill_at(train(folder, *AMP), has_lines(folder, rows), wait_s)
        finish(train(folder, *AMP))
        np.testing.assert_equal(arrays_of(folder), expected)
        assert sorted(map(outcome, log_of(folder))) == rows_of_whole


GRID = ["--opt", "sgd", "adam", "--epochs", "3"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(train(folder, *GRID))
    return folder


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_grid_with_a_line_and_it_continues(tmp_path, undisturbed, number, status):
    process = train(tmp_path, *GRID)
    wait_for(has_lines(tmp_path), process)
    process.send_signal(number)
    assert finish(process, status)[1] == "interrupted; everything finished so far is kept\n"
    assert log_of(tmp_path)[-1]["status"] == "interrupted"
    finish(train(tmp_path, *GRID))
    np.testing.assert_equal(arrays_of(tmp_path), arrays_of(undisturbed))


def test_a_reader_that_goes_away_is_no_traceback(tmp_path):
    process = start("flops.py", "--results-dir", tmp_path)
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait() == 141


FILLED = """
import os, resource, sys
from pathlib import Path
import flops, report, svm, train
from common.base.cli import UsageError
from common.base.log import read_rows
folder, limited = Path(sys.argv[1]), sys.argv[2] == "a quota"
results = ["--results-dir", str(folder / "results")]
digits = [*results, "--dataset", "digits", "--threads", "1"]
tiny = [*digits, "--limit", "48", "--image-size", "28", "--model", "vgg5", "--epochs", "1"]
report_flags = [*results, "--no-pdf", "--data-dir", str(folder)]
train.main(tiny)
report.main(report_flags)
grows = (".jsonl", ".json")  # the log, and the plan, which is of the last grid
before = {f: f.read_bytes() for f in folder.rglob("*.*") if f.is_file() and f.suffix not in grows}
for script, flags, step in (
    (train, [*tiny, "--seed", "1"], 2**15),
    (svm, [*digits, "--samples", "48"], 2**15),
    (flops, [*results, "--model", "vgg5"], 2**15),
    (report, report_flags, 2**22),
):
    log = folder / "results" / "log.jsonl"
    part = [log.stat().st_size + 100] if limited else []  # of a row
    for free in (*part, *range(0, 2**24, step)):
        if limited:
            resource.setrlimit(resource.RLIMIT_FSIZE, (free, resource.RLIM_INFINITY))
        else:
            with open(folder / "ballast", "wb") as file:
                room = os.statvfs(folder)
                file.write(bytes(max(0, room.f_bavail * room.f_frsize - free)))
        try:
            script.main(flags)
            break
        except UsageError as error:
            print("said by", script.__name__, error)
        assert all(f.read_bytes() == content for f, content in before.items())
    else:
        raise AssertionError(f"{script.__name__} is never done")
rows, problems = read_rows(log)
assert not problems, problems
done = {(row["kind"], row["config"].get("seed")) for row in rows if row["status"] == "ok"}
assert done >= {("train", 0), ("train", 1), ("svm", 0), ("flops", None)}
assert [row["kind"] for row in rows].count("flops") == 3  # one a convention
assert not list(folder.rglob("*.part"))
"""


@pytest.mark.parametrize("why", ["a full disk", "a quota"])
def test_with_ever_more_room_nothing_is_lost_until_there_is_enough(tmp_path, why):
    """On a small tmpfs, filled but for so much, and under a limit on the size of files."""
    alone = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o size=16m none "$0" && exec "$@"']
    alone = [] if why == "a quota" else [*alone, tmp_path]
    if alone and subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here (unshare -Urm)")
    command = [*alone, sys.executable, "-c", FILLED, tmp_path, why]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.findall(r"^said by (.*)", done.stdout, re.M)
    assert all("cannot write" in line for line in said)
    assert {line.split()[0] for line in said} == {"train", "svm", "flops", "report"}
    assert {line.split(":")[0].rpartition(".")[2] for line in said} >= {"pt", "npz"}


@pytest.mark.skipif(torch.__version__ < (2, 14), reason="older torch writes while it is imported")
def test_a_file_that_may_not_grow_is_one_line(tmp_path):
    """Nor is git found, which would leave a lock behind in this checkout."""
    line = 'PATH=; ulimit -f {}; exec "$@"'
    flops = start("flops.py", "--results-dir", tmp_path, line=line.format(1))
    assert "cannot write" in refused(flops)[1]
    full = train(tmp_path, *VGG5, "1", line=line.format(200))
    assert re.search(r"cannot write .*\.pt: File too large", refused(full)[1])


def test_too_little_memory_fails_the_row_with_what_to_lower_and_the_grid_goes_on(tmp_path):
    flags = ["--limit", "600", "--image-size", "512", "32", "--batch-size", "600", "--epochs", "1"]
    nine_gb = f'ulimit -v {9 << 20}; exec "$@"'
    out, _ = finish(train(tmp_path, *flags, "--threads", "1", line=nine_gb), 1)
    failed, done = sorted(log_of(tmp_path), key=lambda row: row["status"])
    assert (failed["status"], done["status"]) == ("failed", "ok")
    assert failed["error"].startswith("out of memory at --batch-size 600, --image-size 512: lower")
    assert failed["error"] in out


ODD = 'it\'s "a" $(touch owned) `; & <b>%s&amp; \\ ü 数'


def test_any_folder_name_clock_zone_and_locale_will_do(tmp_path):
    shared_memory = Path("/dev/shm")  # another file system than that of the link
    where = shared_memory if os.access(shared_memory, os.W_OK) else tmp_path
    env = {"TZ": "Pacific/Apia", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    trained = ["train.py", *TINY, *VGG5, "1", "--export", "onnx"]
    folder = tmp_path / ODD
    with tempfile.TemporaryDirectory(dir=where) as real:
        folder.symlink_to(real)
        for command in (trained, ["flops.py"], ["report.py"]):
            out, err = finish(start(*command, "--results-dir", folder, **env))
            assert "Traceback" not in out + err
        [row] = log_of(Path(real))
        assert Path(real, row["metrics"]["checkpoint"]).exists()
    assert abs(time.time() - datetime.fromisoformat(row["time_utc"]).timestamp()) < 600
    assert "owned" not in {file.name for file in [*ROOT.iterdir(), *tmp_path.rglob("*")]}


FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


@pytest.mark.skipif(not FAKETIME, reason="no libfaketime: apt-get install faketime")
def test_a_clock_set_back_between_and_ahead_of_everything_changes_no_result(tmp_path, undisturbed):
    kill_at(train(tmp_path, *GRID), has_lines(tmp_path))
    clock = {"LD_PRELOAD": str(FAKETIME[0]), "FAKETIME": "-400d"}
    clock["FAKETIME_DONT_FAKE_MONOTONIC"] = "1"
    for command in (["train.py", *TINY, *GRID], ["report.py", "--no-pdf"]):
        out, err = finish(start(*command, "--results-dir", tmp_path, **clock))
        assert "Traceback" not in out + err
    ours, theirs = log_of(tmp_path), log_of(undisturbed)
    assert ours[-1]["time_utc"] < theirs[-1]["time_utc"]
    for name in ("val_loss", "test_acc", "predictions"):
        assert [r["metrics"][name] for r in ours] == [r["metrics"][name] for r in theirs]
    assert all(0 < r["metrics"]["train_ms"] < 600_000 for r in ours)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--lr nan", "--lr: nan is not a finite number"),
        ("--lr 0", "--lr: 0.0 must be greater than 0"),
        ("--epochs 0", "--epochs: 0 must be at least 1"),
        ("--batch-size -16", "--batch-size: -16 must be at least 1"),
        ("--limit 0", "--limit: 0 must be at least 1"),
        ("--seed -1", "--seed: -1 must be at least 0"),
        ("--seed 4294967296", "must be at most"),
        ("--image-size large", "invalid int value: 'large'"),
        ("--opt adm", "did you mean 'adam'?"),
        ("--device gpu", "choose from auto, cpu, cuda, mps, xpu"),
        ("--model resnet19", "did you mean 'resnet18'?"),
        ("--dataset fasion", "did you mean 'fashion'?"),
        ("--optt adam", "unrecognized arguments: --optt"),
        ("--split official", "digits has no published test part"),
        ("--amp false --amp-dtype bf16", "--amp-dtype bf16: --amp is false"),
        ("--amp-dtype fp16 --device cpu", "use bf16 or auto on a CPU"),
        ("--threads 0", "--threads: 0 must be at least 1"),
        ("--pin-memory maybe", "'maybe' is neither true nor false"),
        ("--preset q1", "did you mean 'q1a'?"),
        ("--export onyx", "did you mean 'onnx'?"),
        ("--ep 3", "unrecognized arguments: --ep"),
        ("stray", "unrecognized arguments: stray"),
        # Said before anything is fetched.
        ("--dataset mnist --data-dir /dev/null/data", "--data-dir: cannot write"),
    ],
)
def test_a_bad_value_is_one_line_and_nothing_is_written(tmp_path, flags, said):
    out, err = refused(train(tmp_path, *flags.split()))
    assert (out, said in err) == ("", True), err
    log = tmp_path / "log.jsonl"
    assert not log.exists() or not log.read_bytes()


def test_one_image_and_a_last_batch_of_one_and_a_value_given_twice(tmp_path):
    finish(train(tmp_path, *VGG5, "1", "1", "--limit", "1", "17"))
    assert [row["metrics"]["n_train"] for row in log_of(tmp_path)] == [1, 17]
