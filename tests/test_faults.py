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
from conftest import TINY
from processes import ROOT, finish, refused, start, wait_for

from common.base.config import OPTIMIZERS
from common.base.log import read_rows
from common.train.checkpoint import load_checkpoint


def train(folder, *flags, **kwargs):
    return start("train.py", *TINY, "--results-dir", folder, *flags, **kwargs)


def kill(process):
    process.kill()
    process.communicate()


def lines_of(log):
    return log.read_bytes().count(b"\n") if log.exists() else 0


def files_of(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def log_of(folder, kind):
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
    for _ in range(8):
        process = start("-c", SAVER, file)
        wait_for(file.exists, process)
        time.sleep(moments.uniform(0, 0.3))
        kill(process)
        values = {value.unique().item() for value in load_checkpoint(file).values()}
        assert len(values) == 1
        seen |= values
    assert max(seen) > 0


AMP = ["--opt", *OPTIMIZERS, "--epochs", "2", "--model", "vgg5", "--amp", "true"]
AMP += ["--translate", "1", "--erase", "0.3", "--limit", "512"]


def test_killed_inside_an_epoch_every_optimiser_ends_in_the_same_weights(tmp_path):
    """And the same command twice gives the same weights, predictions and rows."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for rows in range(1, 3 * len(OPTIMIZERS), 3):  # each has one of its first epoch; then two more
        process = train(killed, *AMP)
        wait_for(lambda n=rows: lines_of(killed / "log.jsonl") >= n, process)
        time.sleep(0.02)  # into its second epoch
        kill(process)
    for folder in (whole, killed):
        finish(train(folder, *AMP))
    files = [{f.relative_to(folder): f for f in folder.glob("*/*")} for folder in (whole, killed)]
    assert len(files[0]) == 3 * len(OPTIMIZERS)  # two checkpoints, and predictions
    assert files[0].keys() == files[1].keys()
    for name, file in files[0].items():
        load = np.load if file.suffix == ".npz" else lambda file: load_checkpoint(file)["model"]
        ours, theirs = load(file), load(files[1][name])
        assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)
    of_run = [{r["run_id"]: r["metrics"] for r in log_of(f, "train")} for f in (whole, killed)]
    losses = [{run: m["val_loss"] for run, m in metrics.items()} for metrics in of_run]
    assert losses[0] == losses[1]


GRID = ["--opt", "sgd", "adam", "--epochs", "3"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(train(folder, *GRID))
    return folder


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_grid_with_a_line_and_it_continues(tmp_path, undisturbed, number, status):
    folder = tmp_path / "stopped"
    process = train(folder, *GRID)
    wait_for(lambda: lines_of(folder / "log.jsonl") >= 1, process)
    process.send_signal(number)
    assert finish(process, status)[1] == "interrupted; everything finished so far is kept\n"
    assert [row["status"] for row in log_of(folder, "train")][-1] == "interrupted"
    finish(train(folder, *GRID))
    for file in sorted((undisturbed / "predictions").iterdir()):
        ours, theirs = np.load(folder / "predictions" / file.name), np.load(file)
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_a_reader_that_goes_away_is_no_traceback(tmp_path):
    process = start("flops.py", "--results-dir", tmp_path)
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait() == 141


def test_a_full_disk_is_one_line_and_what_was_there_stays_until_there_is_room(tmp_path):
    """A limit on the size of files, as a quota has: log, report and checkpoint meet it."""
    flags = ["--model", "vgg5", "--epochs"]
    flops, report = ([script, "--results-dir", tmp_path] for script in ("flops.py", "report.py"))
    finish(train(tmp_path, *flags, "1"))
    finish(start(*report))
    before = files_of(tmp_path)
    size = len(before[tmp_path / "log.jsonl"])
    for command, limit in ((flops, size + 100), (report, 500)):
        assert "cannot write" in refused(start(*command, limits=[("FSIZE", limit)]))[1]
        assert files_of(tmp_path) == before
    full = train(tmp_path, *flags, "2", limits=[("FSIZE", 200_000)])
    _, err = refused(full, "RuntimeError: ")  # torch's
    assert re.search(r"cannot write .*\.pt", err)
    written = {"log.jsonl", "plan.json"}  # what a run begins with
    assert all(f.read_bytes() == kept for f, kept in before.items() if f.name not in written)
    assert not list(tmp_path.rglob("*.part"))
    finish(train(tmp_path, *flags, "2"))
    assert [r["status"] for r in log_of(tmp_path, "train") if r["config"]["epochs"] == 2] == ["ok"]
    finish(start(*flops))
    assert len(log_of(tmp_path, "flops")) == 3  # a row a convention


FILLED = """
import os, sys
from pathlib import Path
import svm, train
from common.base.cli import UsageError
from common.base.log import read_rows
folder = Path(sys.argv[1])
argv = ["--dataset", "digits", "--threads", "1", "--results-dir", str(folder / "results")]
tiny = ["--limit", "48", "--image-size", "28", "--model", "vgg5", "--epochs", "1", "--seed"]
train.main([*argv, *tiny, "0"])
grows = (".jsonl", ".json")  # the log, and the plan, which is of the last grid
before = {f: f.read_bytes() for f in folder.rglob("*.*") if f.is_file() and f.suffix not in grows}
vectors = [*argv[:2], *argv[4:], "--samples", "48"]
for work in (lambda: train.main([*argv, *tiny, "1"]), lambda: svm.main(vectors)):
    for free in range(0, 2**22, 2**15):
        with open(folder / "ballast", "wb") as file:
            room = os.statvfs(folder)
            file.write(bytes(max(0, room.f_bavail * room.f_frsize - free)))
        try:
            work()
            break
        except UsageError as error:
            print("said:", error)
        assert all(f.read_bytes() == content for f, content in before.items())
rows, problems = read_rows(folder / "results" / "log.jsonl")
assert not problems, problems
done = [(row["kind"], row["config"].get("seed")) for row in rows if row["status"] == "ok"]
assert sorted(set(done) - {("epoch", 0), ("epoch", 1)}) == [("svm", 0), ("train", 0), ("train", 1)]
assert not list(folder.rglob("*.part"))
"""


def test_a_disk_with_ever_more_room_loses_nothing_until_there_is_enough(tmp_path):
    """A small tmpfs, filled but for so much."""
    alone = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o size=4m none "$0" && exec "$@"']
    if subprocess.run([*alone, tmp_path, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here (unshare -Urm)")
    command = [*alone, tmp_path, sys.executable, "-c", FILLED, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("said: ")]
    assert all("cannot write" in line for line in said)
    met = {line.split(":")[1].rpartition(".")[2] for line in said}
    assert met >= {"pt", "npz"}, met


def test_too_little_memory_fails_the_row_with_what_to_lower_and_the_grid_goes_on(tmp_path):
    flags = ["--limit", "600", "--image-size", "512", "32", "--batch-size", "600", "--epochs", "1"]
    out, _ = finish(train(tmp_path, *flags, "--threads", "1", limits=[("AS", 7 << 30)]), 1)
    failed, done = sorted(log_of(tmp_path, "train"), key=lambda row: row["status"])
    assert (failed["status"], done["status"]) == ("failed", "ok")
    assert failed["error"].startswith("out of memory at --batch-size 600, --image-size 512: lower")
    assert failed["error"] in out


ODD = 'it\'s "a" $(touch owned) `; & <b>%s&amp; \\ ü 数'


def test_any_folder_name_clock_zone_and_locale_will_do(tmp_path):
    shared_memory = Path("/dev/shm")  # another file system than that of the link
    where = shared_memory if os.access(shared_memory, os.W_OK) else tmp_path
    env = {"TZ": "Pacific/Apia", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    trained = ["train.py", *TINY, "--epochs", "1", "--export", "onnx"]
    folder = tmp_path / ODD
    with tempfile.TemporaryDirectory(dir=where) as real:
        folder.symlink_to(real)
        for command in (trained, ["flops.py"], ["report.py"]):
            out, err = finish(start(*command, "--results-dir", folder, **env))
            assert "Traceback" not in out + err
        [row] = log_of(Path(real), "train")
        assert Path(real, row["metrics"]["checkpoint"]).exists()
    assert abs(time.time() - datetime.fromisoformat(row["time_utc"]).timestamp()) < 600
    assert "owned" not in {file.name for file in [*ROOT.iterdir(), *tmp_path.rglob("*")]}


FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


@pytest.mark.skipif(not FAKETIME, reason="no libfaketime: apt-get install faketime")
def test_a_clock_set_back_between_and_ahead_of_everything_changes_no_result(tmp_path, undisturbed):
    folder = tmp_path / "set back"
    argv = ["train.py", *TINY, "--results-dir", folder, *GRID]
    process = start(*argv)
    wait_for(lambda: lines_of(folder / "log.jsonl"), process)
    kill(process)
    clock = {"LD_PRELOAD": str(FAKETIME[0]), "FAKETIME": "-400d"}
    clock["FAKETIME_DONT_FAKE_MONOTONIC"] = "1"
    for command in (argv, ["report.py", "--results-dir", folder]):
        out, err = finish(start(*command, **clock))
        assert "Traceback" not in out + err
    ours, theirs = (log_of(f, "train") for f in (folder, undisturbed))
    assert ours[-1]["time_utc"] < theirs[-1]["time_utc"]
    for name in ("val_loss", "test_acc", "predictions"):
        assert [r["metrics"][name] for r in ours] == [r["metrics"][name] for r in theirs]
    assert all(0 < r["metrics"]["train_ms"] < 600_000 for r in ours)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--lr", "nan"], "--lr: nan is not a finite number"),
        (["--lr", "0"], "--lr: 0.0 must be greater than 0"),
        (["--epochs", "0"], "--epochs: 0 must be at least 1"),
        (["--batch-size", "-16"], "--batch-size: -16 must be at least 1"),
        (["--limit", "0"], "--limit: 0 must be at least 1"),
        (["--seed", "-1"], "--seed: -1 must be at least 0"),
        (["--seed", str(2**32)], "must be at most"),
        (["--image-size", "large"], "invalid int value: 'large'"),
        (["--opt", "adm"], "did you mean 'adam'?"),
        (["--device", "gpu"], "choose from auto, cpu, cuda, mps, xpu"),
        (["--model", "resnet19"], "did you mean 'resnet18'?"),
        (["--dataset", "fasion"], "did you mean 'fashion'?"),
        (["--optt", "adam"], "unrecognized arguments: --optt"),
        (["--split", "official"], "digits has no published test part"),
        (["--amp", "false", "--amp-dtype", "bf16"], "--amp-dtype bf16: --amp is false"),
        (["--amp-dtype", "fp16", "--device", "cpu"], "use bf16 or auto on a CPU"),
        (["--threads", "0"], "--threads: 0 must be at least 1"),
        (["--pin-memory", "maybe"], "'maybe' is neither true nor false"),
        (["--preset", "q1"], "did you mean 'q1a'?"),
        (["--export", "onyx"], "did you mean 'onnx'?"),
        (["--ep", "3"], "unrecognized arguments: --ep"),
        (["stray"], "unrecognized arguments: stray"),
        # Said before anything is fetched.
        (["--dataset", "mnist", "--data-dir", "/dev/null/data"], "--data-dir: cannot write"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_value_is_one_line_and_nothing_is_written(tmp_path, flags, said):
    folder = tmp_path / "results"
    out, err = refused(train(folder, *flags))
    assert (out, said in err) == ("", True), err
    assert not (folder / "log.jsonl").exists() or not (folder / "log.jsonl").read_bytes()


def test_one_image_and_a_last_batch_of_one_and_a_value_given_twice(tmp_path):
    flags = ["--model", "vgg5", "--image-size", "16", "--epochs", "1", "1"]
    finish(train(tmp_path, *flags, "--limit", "1", "17"))
    assert [row["metrics"]["n_train"] for row in log_of(tmp_path, "train")] == [1, 17]
