"""Several processes train as one does: torch's autograd and the single process are the reference.

Every job is started by torchrun, with gloo, on loopback."""

import os
import shlex
import signal
import socket

import numpy as np
import pytest
import torch
from processes import children, finish, start, wait_for, wait_until_gone
from torch.nn.functional import cross_entropy

import train
from common.base.cli import UsageError, as_dict
from common.base.config import TrainConfig
from common.base.log import run_id
from common.models import MODELS
from common.train.checkpoint import load_checkpoint
from common.train.distributed import World
from common.train.run import Run, check_steps

TORCHRUN = ["-m", "torch.distributed.run"]
TWO = [*TORCHRUN, "--standalone", "--nproc-per-node", "2"]
# A network without BatchNorm, and what each test does with it.
PLAIN = """
import sys, torch
from torch import nn
from common.base.cli import run_script
from common import models
models.MODELS["plain"] = lambda classes: nn.Sequential(
    nn.Conv2d(3, 8, 3, stride=2), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 7 * 7, classes))
"""
TRAIN = """
import common.train.workers, train
common.train.workers.join_world = lambda devices: world  # a process joins once
del sys.argv[1]
class Abort:  # as a thread of Gloo's sometimes does, once Python takes the process down
    __del__ = lambda self, abort=os.abort: abort()
abort = Abort()
run_script(train.main)
"""
GRADIENTS = """
import os
from common.base.config import TrainConfig
from common.train.distributed import join_world
from common.train.loop import train_epoch
from common.train.run import Run, check_steps
world = join_world(["cpu"])
config = TrainConfig("digits", model="plain", image_size=16, device="cpu", amp=False)
for n in (19, 5, 3, 2, 1):
    run = Run(config, "data", world)
    batch = run.order(1)[0].new_tensor(range(n))
    train_epoch(run.setup, [batch])
    grads = {name: p.grad for name, p in run.model.named_parameters()}
    torch.save(grads, os.path.join(sys.argv[1], f"{world.rank}-{n}.pt"))
"""
FLAGS = shlex.split(
    "--dataset digits --image-size 16 --model plain --amp false --limit 99 --epochs 2 --lr 0.05 "
    "--translate 1 --erase 0.5 --label-smoothing 0.1 --results-dir"
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
            parts = [World(rank, size).share([batch]) for rank in range(size)]
            counted = [part for [part], [scale] in parts if scale]
            assert torch.cat(counted).tolist() == batch.tolist()
            assert {scale for _, [scale] in parts} <= {0.0, size / n}
            assert all(len(part) > 0 for [part], _ in parts)
            assert len(counted) == 1 or min(map(len, counted)) >= 2
            synced = [World(rank, size, sync_bn=True).share([batch]) for rank in range(size)]
            assert torch.cat([part for [part], _ in synced]).tolist() == batch.tolist()
            assert {scale for _, [scale] in synced} == {size / n}


def test_one_process_is_in_no_row_and_several_are_another_run():
    alone, two = as_dict(TrainConfig()), as_dict(TrainConfig(world_size=2))
    assert not {"world_size", "sync_bn"} & alone.keys()
    assert two["world_size"] == 2
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
    """7 steps an epoch, the last of 3 images, which one process has; shifted, erased views.

    And the gradients of single batches, in both processes, are those of torch's autograd.
    """
    monkeypatch.setitem(MODELS, "plain", None)  # which PLAIN fills in
    exec(PLAIN, {})
    script = tmp_path / "script.py"
    script.write_text(PLAIN + GRADIENTS + TRAIN)
    two = start(*TWO, script, tmp_path, *FLAGS, tmp_path / "two")
    assert train.main([*FLAGS, str(tmp_path / "one")]) == 0
    out, _ = finish(two)
    assert out.count("val acc") == out.count("  epoch 1/") == 1  # the first process alone prints
    check_gradients(tmp_path)
    [one], [two] = rows("train", "one"), rows("train", "two")
    assert two["config"] == one["config"] | {"world_size": 2}
    for key in ("checkpoint", "best_checkpoint"):
        ours = weights_of(tmp_path / "two", two, key)
        theirs = weights_of(tmp_path / "one", one, key)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
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


def check_gradients(folder):
    config = TrainConfig("digits", model="plain", image_size=16, device="cpu", amp=False)
    run = Run(config, "data")
    for n in (19, 5, 3, 2, 1):
        run.model.zero_grad()
        inputs, labels = run.batches.load(torch.arange(n))
        cross_entropy(run.model(inputs), labels).backward()
        expected = {name: p.grad for name, p in run.model.named_parameters()}
        for rank in (0, 1):
            grads = torch.load(folder / f"{rank}-{n}.pt")
            torch.testing.assert_close(grads, expected, rtol=1e-5, atol=1e-7)


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
