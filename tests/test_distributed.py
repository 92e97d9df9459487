"""Several processes train as one does, which is the reference. Every job is started by torchrun,
with gloo, on loopback."""

import os
import shlex
import signal
import socket

import numpy as np
import pytest
import torch
from processes import children, finish, start, wait_for, wait_until_gone

import train
from common.base.cli import UsageError, as_dict
from common.base.config import TrainConfig
from common.base.log import run_id
from common.models import MODELS
from common.train.check import check_steps
from common.train.checkpoint import load_checkpoint
from common.train.distributed import World

TORCHRUN = ["-m", "torch.distributed.run"]
TWO = [*TORCHRUN, "--standalone", "--nproc-per-node", "2"]
# A network without BatchNorm, and train.py with it.
PLAIN = """
from torch import nn
from common import models
models.MODELS["plain"] = lambda classes: nn.Sequential(
    nn.Conv2d(3, 8, 3, stride=2), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 7 * 7, classes))
"""
TRAIN = """
import os, train
from common.base.cli import run_script
class Abort:  # as a thread of Gloo's sometimes does, once Python takes the process down
    __del__ = lambda self, abort=os.abort: abort()
abort = Abort()
run_script(train.main)
"""
FLAGS = shlex.split(
    "--dataset digits --image-size 16 --model plain --amp false --limit 98 --epochs 2 --lr 0.05 "
    "--batch-size 19 --translate 1 --erase 0.5 --label-smoothing 0.1 --results-dir"
)
BATCHNORM = shlex.split(
    "--dataset digits --model vgg5 --image-size 16 --opt muon --batch-size 32 --epochs 6 "
    "--amp false --threads 1"
)


def weights_of(folder, row, key="checkpoint"):
    return load_checkpoint(folder / row["metrics"][key])["model"]


def test_shares_make_up_every_batch_and_none_is_of_one_image_where_batchnorm_would_fail():
    for n in range(1, 40):
        batch = torch.arange(n)
        for size in range(2, 9):
            shares = [World(rank, size).share([batch])[0] for rank in range(size)]
            counted = [part for part, scale in shares if scale]
            assert torch.cat(counted).tolist() == batch.tolist()
            assert {scale for _, scale in shares} <= {0.0, size / n}
            assert all(len(part) > 0 for part, _ in shares)
            assert len(counted) == 1 or min(map(len, counted)) >= 2
            synced = [World(rank, size, sync_bn=True).share([batch])[0] for rank in range(size)]
            assert torch.cat([part for part, _ in synced]).tolist() == batch.tolist()
            assert {scale for _, scale in synced} == {size / n}


def test_one_process_is_in_no_row_and_several_are_another_run():
    alone, two = as_dict(TrainConfig()), as_dict(TrainConfig(world_size=2))
    assert two == alone | {"world_size": 2}
    assert "sync_bn" not in alone
    assert run_id("train", two) != run_id("train", alone)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"sync_bn": True}, "--sync-bn: one process has nothing to synchronise"),
        ({"sync_bn": True, "world_size": 2}, "--sync-bn: torch's SyncBatchNorm needs an acceler"),
        ({"batch_size": 7, "world_size": 4}, "--batch-size 7: is over all 4 processes.* 8 or more"),
        ({"compile": True, "world_size": 2}, "--compile: one process only"),
    ],
)
def test_what_several_processes_cannot_do_is_said(fields, error):
    with pytest.raises(UsageError, match=error):
        check_steps(TrainConfig(device="cpu", **fields), "fp32", "")
    check_steps(TrainConfig(device="cpu", batch_size=2, compile=True), "fp32", "")


@pytest.mark.slow
def test_without_batchnorm_two_processes_end_in_the_weights_of_one(tmp_path, rows, monkeypatch):
    """6 steps an epoch, of 10 and 9 images; the last is of 3, which one process has. The views are
    shifted and erased."""
    monkeypatch.setitem(MODELS, "plain", None)  # which PLAIN fills in
    exec(PLAIN, {})
    script = tmp_path / "script.py"
    script.write_text(PLAIN + TRAIN)
    two = start(*TWO, script, *FLAGS, tmp_path / "two")
    assert train.main([*FLAGS, str(tmp_path / "one")]) == 0
    out, _ = finish(two)
    assert out.count("val acc") == out.count("  epoch 1/") == 1  # the first process alone prints
    [one], [two] = rows("train", "one"), rows("train", "two")
    assert two["config"] == one["config"] | {"world_size": 2}
    for key in ("checkpoint", "best_checkpoint"):
        weights = [weights_of(tmp_path / name, r, key) for name, r in (("one", one), ("two", two))]
        torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)
    for a, b in zip(rows("epoch", "one"), rows("epoch", "two"), strict=True):
        for name in ("train_loss", "train_acc", "val_loss", "val_acc"):
            assert b["metrics"][name] == pytest.approx(a["metrics"][name], rel=1e-5), name
    ours = np.load(tmp_path / "two" / two["metrics"]["predictions"])
    theirs = np.load(tmp_path / "one" / one["metrics"]["predictions"])
    assert np.array_equal(ours["index"], theirs["index"])
    assert len(set(ours["index"].tolist())) == 361
    np.testing.assert_allclose(ours["logits"], theirs["logits"], rtol=2e-3, atol=2e-3)
    left = [sorted(f.suffix for f in (tmp_path / folder).rglob("*.*")) for folder in ("one", "two")]
    assert left[0] == left[1]


@pytest.mark.slow
def test_batchnorm_noise_failures_kills_restarts_and_two_machines(tmp_path, rows):
    """With BatchNorm, accuracy is that of one process within noise; a loss that is not finite fails
    its row in all processes, and the grid goes on. Then the same job, a process of it killed twice:
    torchrun's restart continues it, and ends it when it has none left. Two agents, as on two
    machines, bring it to the undisturbed job's weights."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    lrs = ["--lr", "1e30", "0.05"]
    undisturbed = start(*TWO, "train.py", *BATCHNORM, *lrs, "--results-dir", whole)
    flags = ["train.py", *BATCHNORM, "--lr", "0.05", "--results-dir", killed]
    assert train.main([*flags[1:-1], str(tmp_path / "one")]) == 0
    finish(undisturbed, 1)
    [alone] = rows("train", "one")
    failed, done = rows("train", "whole")
    assert (failed["status"], done["status"]) == ("failed", "ok")
    assert "NonFiniteLoss" in failed["error"]
    assert done["metrics"]["test_acc"] == pytest.approx(alone["metrics"]["test_acc"], abs=0.04)
    assert done["metrics"]["test_acc"] > 0.9

    restarted = start(*TWO, "--max-restarts", "1", *flags)
    log = killed / "log.jsonl"
    for kill in (1, 2):
        wait_for(lambda n=kill: log.exists() and log.read_text().count('"epoch",') >= n, restarted)
        wait_for(lambda: len(children(restarted)) == 2, restarted)
        workers = children(restarted)
        os.kill(workers[1], signal.SIGKILL)
        if kill == 1:
            wait_until_gone(workers)
    finish(restarted, 1)
    wait_until_gone(workers)
    assert "ok" not in [row["status"] for row in rows("train", "killed")]

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "test"]
    agent = [*TORCHRUN, "--nnodes", "2", "--nproc-per-node", "1", "--local-addr", "localhost"]
    for process in [start(*agent, *meet, *flags) for _ in range(2)]:
        finish(process)
    [row] = [row for row in rows("train", "killed") if row["status"] == "ok"]
    assert row["run_id"] == done["run_id"]
    assert [r["metrics"]["epoch"] for r in rows("epoch", "killed")] == [1, 2, 3, 4, 5, 6]
    theirs = weights_of(whole, done)
    assert all(torch.equal(v, theirs[name]) for name, v in weights_of(killed, row).items())


@pytest.mark.slow
def test_a_job_that_is_told_to_stop_leaves_nothing_running(tmp_path, rows):
    log = tmp_path / "results" / "log.jsonl"
    flags = [*BATCHNORM, "--epochs", "400", "--results-dir", log.parent]
    process = start(*TWO, "train.py", *flags)
    wait_for(lambda: log.exists() and rows("epoch"), process)
    workers = children(process)
    process.terminate()
    finish(process, 1)
    assert len(workers) == 2
    wait_until_gone(workers)
    assert [row["status"] for row in rows("train")] == ["interrupted"]
