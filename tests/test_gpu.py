"""What only an accelerator can show, in half an hour: python -m pytest -m gpu

Rows stay in results/gpu, of FashionMNIST where data/ has it, else of the digits, which need no
network: reference/README.md says what a row needs to join the committed ones."""

import os
import subprocess
import sys

import pytest
import torch
from processes import ROOT, finish, outcome, start, wait_for

from common.base.config import TrainConfig
from common.base.log import Log
from common.train.device import compile_obstacle
from common.train.run import Run

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]  # of any torch
HERE = getattr(torch.accelerator.current_accelerator(check_available=True), "type", "cuda")
DATASET = "fashion" if (ROOT / "data" / "FashionMNIST").exists() else "digits"
LOG = Log(ROOT / "results" / "gpu")
SMALL = ["--dataset", "digits", "--model", "vgg5", "--image-size", "32", "--device", HERE]
Q2 = ["--preset", "q2", "--dataset", DATASET, "--accept-noise"]
CUDA = pytest.mark.skipif(HERE != "cuda", reason="CUDA alone has it")
STAGED = {"data_on": "host", "pin_memory": True, "translate": 2, "erase": 0.5}
GRAPH = pytest.param({"cuda_graph": True}, marks=CUDA)


def run_of(device=HERE, **settings):
    fixed = {"dataset": "digits", "model": "vgg5", "image_size": 32, "amp": False, "device": device}
    return Run(TrainConfig(**fixed | settings), "data")


def run(script, kind, *flags):
    """The rows of one kind that a script writes to the log, all of which must be sound."""
    before = len(LOG.read(kind))
    folders = ["--results-dir", LOG.folder, "--data-dir", "data", "--force"]
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, script, *map(str, [*flags, *folders])]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = LOG.read(kind)[before:]
    assert {row["status"] for row in rows} == {"ok"}
    return rows


@pytest.mark.parametrize(("opt", "tolerance"), [("sgd", 0.01), ("adam", 0.01), ("muon", 0.05)])
def test_it_trains_and_answers_as_a_cpu_does(opt, tolerance):
    ours, theirs = (run_of(device, opt=opt) for device in (HERE, "cpu"))
    losses = [run.train_steps(1)["train_loss"] for run in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    ours.model.load_state_dict(theirs.model.state_dict())
    logits = [run.test(run.split.test)[2] for run in (ours, theirs)]
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)  # which TF32 would not reach


@CUDA
@pytest.mark.parametrize("settings", [{}, STAGED, {"amp": True}, GRAPH])
@pytest.mark.parametrize("opt", ["sgd", "adam", "muon"])
def test_a_step_waits_for_nothing(opt, settings):
    run = run_of(opt=opt, **settings)
    order = run.order(1)
    try:
        for step, index in enumerate(order[:8]):
            torch.cuda.set_sync_debug_mode("error" if step >= 4 else "default")
            run.setup.step(run.setup, *run.batches.load(index))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("settings", [{"compile": True}, GRAPH])
@pytest.mark.parametrize("opt", ["sgd", "adam", "muon"])
def test_a_faster_step_learns_what_the_eager_one_does(opt, settings):
    if "compile" in settings and (obstacle := compile_obstacle(HERE)):
        pytest.skip(obstacle)
    ours, eager = (run_of(opt=opt, **each) for each in (settings, {}))
    for epoch in (1, 2):
        losses = [run.train_steps(epoch)["train_loss"] for run in (ours, eager)]
        assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_killed_run_continues_to_the_same_bits_from_what_was_saved_on_the_cpu(tmp_path):
    flags = ["train.py", *SMALL, "--epochs", "3", "--deterministic", "--results-dir"]
    finish(start(*flags, tmp_path / "whole"))
    killed, log = start(*flags, tmp_path / "killed"), Log(tmp_path / "killed")
    wait_for(lambda: log.read("epoch"), killed)
    killed.kill()
    killed.communicate()
    finish(start(*flags, log.folder))
    [one], [other] = (Log(tmp_path / name).read("train") for name in ("whole", "killed"))
    assert outcome(one) == outcome(other)
    saved = torch.load(log.folder / other["metrics"]["checkpoint"], weights_only=True)
    assert {tensor.device.type for tensor in saved["model"].values()} == {"cpu"}


def test_two_jobs_train_at_once():
    rows = run("train.py", "train", *SMALL, "--opt", "sgd", "adam", "--epochs", "1", "--jobs", "2")
    assert [row["config"]["opt"] for row in rows].count("adam") == len(rows) - 1 == 1


def test_the_loop_of_tutorials_and_faster_steps_are_timed_beside_ours():
    run("hw_bench.py", "hw_train", *Q2, "--device", HERE, "--loop", "notebook", "ours")
    ways = ["--compile", "false"] + ["true"] * (compile_obstacle(HERE) is None)
    ways += ["--cuda-graph", "false", "true"] * (HERE == "cuda")
    run("hw_bench.py", "hw_train", *Q2, "--device", HERE, *ways)


def test_the_studys_second_question_is_answered_with_a_whole_epoch_each():
    run("hw_bench.py", "hw_train", *Q2, "--device", "cpu", HERE)
    flags = ["--model", "resnet18", "--opt", "sgd", "--full-epoch", "--device", "cpu", HERE]
    cpu, ours = (row["metrics"] for row in run("hw_bench.py", "hw_train", *Q2, *flags))
    assert ours["test_acc"] == pytest.approx(cpu["test_acc"], abs=0.03)
    assert not cpu["extrapolated"] | ours["extrapolated"]


def test_what_it_trained_is_exported_and_answers_in_every_engine():
    exports = run("train.py", "export", *SMALL, "--export", "torchscript", "onnx")
    names = {row["metrics"]["train_run_id"] for row in exports}
    flags = ["--train-run-id", *names, "--engine", "eager", "onnxruntime", "--quick"]
    run("hw_bench.py", "hw_infer", "--mode", "infer", *flags, "--accept-noise")
