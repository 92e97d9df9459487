"""train.py: shared trajectories, resumption after kills, failures, and what a row holds."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import termios
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from processes import ENV, ROOT, outcome
from torch import nn

import train
from common import models
from common.base.cli import UsageError
from common.base.config import TrainConfig
from common.train import loop
from common.train.check import check_steps
from common.train.checkpoint import load_checkpoint
from common.train.run import Run

GRID = ["--opt", "sgd", "adam", "--epochs", "1", "2", "--pin-memory", "false", "true"]
RECIPE = shlex.split(
    "--model vgg5 --opt muon --lr 0.1 --schedule triangular --translate 2 --label-smoothing 0.1 "
    "--weight-decay 1e-3 --batch-size 16 --erase 0.5"
)


def assert_same_training(ours, our_row, theirs, their_row):
    """Of two results folders, the last weights and the best, and the predictions."""
    for key in ("checkpoint", "best_checkpoint", "predictions"):
        files = ours / our_row["metrics"][key], theirs / their_row["metrics"][key]
        one, other = (np.load(f) if key == "predictions" else load_checkpoint(f) for f in files)
        if key != "predictions":
            one, other = one["model"], other["model"]
        assert set(one) == set(other)
        assert all(np.array_equal(one[name], other[name]) for name in other)


@pytest.fixture
def stopping(monkeypatch):
    """A function: train, with these flags, until so many epochs of a run are done."""
    trained = Run.train_one_epoch

    def stop(epochs, flags, error=KeyboardInterrupt):
        def train_one_epoch(run):
            if len(run.history) == epochs:
                raise error
            return trained(run)

        with monkeypatch.context() as patch:
            patch.setattr(Run, "train_one_epoch", train_one_epoch)
            if error is not KeyboardInterrupt:
                return train.main(flags)
            with pytest.raises(KeyboardInterrupt):
                train.main(flags)

    return stop


def test_a_shared_three_epoch_row_equals_that_configuration_trained_alone(tiny, rows, tmp_path):
    assert train.main([*tiny, "--epochs", "3", "5"]) == 0
    shared, longest = sorted(rows("train"), key=lambda row: row["config"]["epochs"])
    assert shared["metrics"]["shared_with"] == longest["run_id"]
    assert longest["metrics"]["shared_with"] is None
    results, alone_dir = tmp_path / "results", tmp_path / "alone"
    assert train.main([*tiny[:-1], str(alone_dir), "--epochs", "3"]) == 0
    [alone] = rows("train", "alone")
    assert alone["metrics"]["shared_with"] is None
    assert alone["run_id"] == shared["run_id"]
    for name in ("val_acc", "val_loss", "test_acc", "test_loss", "best_epoch", "split_sha256"):
        assert alone["metrics"][name] == shared["metrics"][name], name
    assert_same_training(results, shared, alone_dir, alone)


def test_a_row_holds_what_the_run_was_and_the_screen_each_epoch(tiny, rows, tmp_path, capsys):
    train.main([*tiny, "--epochs", "2"])
    [row], epochs = rows("train"), rows("epoch")
    shown, err = capsys.readouterr()
    one, two = lines = [line for line in shown.splitlines() if line.startswith("  epoch ")]
    for number, line, epoch in zip((1, 2), lines, epochs, strict=True):
        m, words = epoch["metrics"], line.split()
        assert (epoch["run_id"], m["epoch"]) == (row["run_id"], number)
        assert (words[1], words[3]) == (f"{number}/2", f"{m['train_loss']:.3f}")
        assert words[5:9:3] == [f"{100 * m[k]:.2f}" for k in ("train_acc", "val_acc")]
        assert (words[11], len(line) <= 80) == ("img/s", True)
    assert (one[-5:], two[-5:], err) == (" left", "img/s", "")  # without a terminal no bar
    assert shown.endswith(f"python report.py --results-dir {tmp_path / 'results'}\n")
    m = row["metrics"]
    assert (m["n_train"], m["n_val"], m["n_test"]) == (48, 179, 361)
    assert m["params"] == 11_181_642  # torchvision's 11,689,512, less 990 classes' 512 + 1
    assert m["pin_memory_effect"].startswith("none")
    assert m["train_ms"] == pytest.approx(sum(e["metrics"]["train_ms"] for e in epochs))
    assert m["val_acc"] == epochs[-1]["metrics"]["val_acc"]
    saved = np.load(tmp_path / "results" / m["predictions"])
    assert (saved["pred"] == saved["label"]).mean() == pytest.approx(m["test_acc"])
    assert (saved["logits"].shape, saved["logits"].dtype) == ((361, 10), np.float16)
    assert len(set(saved["index"].tolist())) == 361
    assert not list((tmp_path / "results" / "checkpoints").glob("*.state.pt"))


def test_on_a_terminal_the_bar_goes_and_the_line_of_the_epoch_stays(tiny):
    screen, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    command, ours = [sys.executable, "train.py", *tiny, "--epochs", "1"], {"cwd": ROOT, "env": ENV}
    subprocess.run(command, stdout=terminal, stderr=terminal, check=True, **ours)
    [line] = [x for x in os.read(screen, 2**16).decode().split("\r\n") if "epoch 1/1" in x]
    *bar, erased, text = line.split("\r")
    assert any("%|" in shown for shown in bar)
    assert (erased.strip(), text[:11]) == ("", "  epoch 1/1")


def test_finished_work_is_skipped_and_stays_until_forced_work_ends(tiny, rows, tmp_path, stopping):
    """After an interrupted --force the old row still names the files: they must be those that it
    measured."""
    flags, folder = [*tiny, "--epochs", "2"], tmp_path / "results" / "checkpoints"
    train.main(flags)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert len(before) == 2
    train.main(flags)
    [first] = rows("train")
    stopping(1, [*flags, "--force"])
    assert rows("train")[-1]["status"] == "interrupted"
    train.main(flags)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    train.main([*flags, "--force"])
    assert [row["metrics"]["epoch"] for row in rows("epoch")] == [1, 2, 1, 1, 2]
    assert [row["status"] for row in rows("train")] == ["ok", "interrupted", "ok"]
    assert outcome(rows("train")[2]) == outcome(first)


def test_a_training_in_the_log_serves_another_configuration_too(tiny, rows, tmp_path):
    """Whose row is stamped with the machine and commit that measured it. Rows of another version
    stop nothing."""
    train.main([*tiny, "--epochs", "1"])
    there = {"git": {"commit": "f" * 40, "dirty": False}, "env": {"cpu": "another machine"}}
    [epoch], [row] = rows("epoch"), rows("train")
    odd = [{"model": "vgg11"}, {"new_setting": 1}, {"lr": "fast"}]
    changed = [row | {"run_id": f"odd{i}", "config": row["config"] | o} for i, o in enumerate(odd)]
    text = "".join(json.dumps(r | there) + "\n" for r in [epoch, *changed, row])
    (tmp_path / "results" / "log.jsonl").write_text(text)
    assert train.main([*tiny, "--epochs", "1", "--pin-memory"]) == 0
    *_, first, served = rows("train")
    assert served["metrics"]["shared_with"] == first["run_id"]
    assert served["metrics"]["test_acc"] == first["metrics"]["test_acc"]
    assert {k: served[k] for k in there} == there
    assert len(rows("epoch")) == 1


DASK = pytest.mark.skipif(not importlib.util.find_spec("distributed"), reason="no distributed")
UNNORMALISED = ("alexnet", "squeezenet1_0", "convnext_tiny", "vit_b_16")
MUON = ("--opt muon --image-size 64 --model {}", "--opt muon: {} has no convolution after its")


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        # At 32 px ResNet-18's last feature map is one pixel: a batch of one has no variance.
        ("--batch-size 16 1", "cannot train at --image-size 32 on 1 images"),
        ("--image-size 16 --amp-dtype bf16", r"layer4.0.conv1 would see a single pixel"),
        ("--compile true", r"--compile true: .* needs a C\+\+ compiler"),
        ("--export onnx", r"onnx: .*pip install onnxscript"),
        ("--tensorboard", "install it with: pip install tensorboard"),
        ("--device cuda", "--device cuda: not available"),
        ("--jobs 0", "--jobs: '0' is neither a number"),
        ("--jobs many", "--jobs: 'many' is neither a number"),
        ("--cluster here:1", "--cluster here:1: needs --backend dask"),
        ("--backend dask", "--backend dask: .*pip install distributed"),
        pytest.param("--backend dask --cluster x", "--cluster x: no dask worker", marks=DASK),
        ("--shard ../x", r"--shard: '\.\./x' must be of letters"),
        *([text.format(model) for text in MUON] for model in UNNORMALISED),
    ],
)
def test_what_cannot_be_trained_is_refused_before(tiny, tmp_path, monkeypatch, flags, error):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    missing = {"--export onnx": "onnxscript", "--tensorboard": "torch.utils.tensorboard"}
    missing["--backend dask"] = "distributed"
    if flags in missing:
        monkeypatch.setitem(sys.modules, missing[flags], None)
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(UsageError, match=error) as caught:
        train.main([*tiny, "--epochs", "1", *flags.split()])
    assert "\n" not in str(caught.value)
    log = tmp_path / "results" / "log.jsonl"
    assert not log.exists() or not log.read_bytes()


def test_what_fails_or_diverges_leaves_failed_rows_alone(tiny, rows, capsys, monkeypatch):
    """Of images that only fp32 can be trained on."""

    def fail(setup, order, *args, train_epoch=loop.train_epoch):
        if len(order[0]) == 8:
            raise RuntimeError("out of memory")
        return train_epoch(setup, order, *args)

    monkeypatch.setattr(loop, "train_epoch", fail)
    grid = ["--lr", "1e30", "1e-3", "--batch-size", "8", "16", "--epochs", "1"]
    assert train.main([*tiny, *grid, "--image-size", "16", "--amp", "false"]) == 1
    assert "unknown, for some steps fail" in capsys.readouterr().out
    one, diverged, other, done = rows("train")
    assert all("out of memory" in row["error"] for row in (one, other))
    assert "NonFiniteLoss" in diverged["error"]
    assert {row["status"] for row in (one, diverged, other)} == {"failed"}
    assert (done["status"], diverged["metrics"]["epoch"]) == ("ok", 1)
    assert diverged["metrics"]["step"] >= 2
    assert np.isfinite(diverged["metrics"]["last_finite_loss"])


def test_what_a_run_compiled_is_let_go_after_it(tiny, rows, monkeypatch):
    """It keeps networks alive, and counts towards a limit of all compiled code."""
    resets = []
    monkeypatch.setattr("common.train.check.compile_obstacle", lambda kind: None)
    monkeypatch.setattr(torch, "compile", lambda model, **settings: model)
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(len(rows("train"))))
    train.main([*tiny, "--epochs", "1", "--compile", "true", "--seed", "0", "1"])
    assert resets == [1, 2]


def test_a_resumed_run_draws_on_from_the_devices_generator_and_its_state_is_on_the_cpu():
    """As torch.cuda's: dropout there draws from a generator of its own."""
    run, drawn = Run(TrainConfig("digits", model="vgg5", limit=16, device="cpu"), ""), []
    run.generator = SimpleNamespace(get_rng_state=lambda: 5, set_rng_state=drawn.append)
    run.restore(run.state())
    assert drawn == [5]
    buffers = run.setup.optimizer.state[next(run.model.parameters())]
    buffers["there"] = torch.zeros(1, device="meta")
    with pytest.raises(NotImplementedError, match="meta"):  # from where nothing can be copied
        run.state()


def test_a_run_that_continues_on_another_card_says_so(tiny, rows, capsys, stopping, monkeypatch):
    flags = [*tiny, "--epochs", "2"]
    stopping(1, flags)
    capsys.readouterr()
    monkeypatch.setattr("common.train.run.place_of", lambda device: "another card")
    assert train.main(flags) == 0
    [line] = re.findall("  continues in another card .*", capsys.readouterr().out)
    first, second = rows("train")[1]["metrics"]["places"]
    assert line.endswith(f"a run begun in {first}: the same to rounding, not to the bit")
    assert (f"torch {torch.__version__}, " in first, second) == (True, "another card")
    assert "places" not in rows("train")[0]["metrics"]


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"device": "cpu"}, "needs CUDA; leave it out on cpu"),
        ({"compile": True}, "--compile makes graphs too"),
        ({"world_size": 2}, "one process only"),
        ({"opt": "muon"}, "Muon waits for the device at every step in fp16"),
    ],
)
def test_what_no_cuda_graph_can_be_made_of_is_refused(config, error):
    with pytest.raises(UsageError, match=f"--cuda-graph: {error}"):
        check_steps(TrainConfig(**{"device": "cuda", "cuda_graph": True} | config), "fp16", "")


def test_dry_run_says_the_plan_and_writes_nothing(tiny, tmp_path, capsys):
    flags = ["--epochs", "1", "2", "--pin-memory", "false", "true", "--dry-run"]
    assert train.main([*tiny, *flags]) == 0
    shown = capsys.readouterr().out
    assert "configurations: 4, in the log: 0; trajectories: 1, to train: 1" in shown
    assert re.search(r"estimated time of training and validation: [\d.]+ s", shown)
    assert shown.endswith(f"python train.py {shlex.join([*tiny, *flags[:-1]])}\n")
    assert (tmp_path / "results" / "log.jsonl").read_text() == ""


def test_a_grid_killed_after_every_line_ends_with_the_same_rows(tiny, rows, tmp_path):
    """SIGKILL as soon as the log has grown by a line, again and again until it is complete."""
    killed, flags = tmp_path / "killed", [*tiny, "--model", "vgg5", *GRID]
    train.main(flags)
    log, command = killed / "log.jsonl", [sys.executable, "train.py", *flags]
    command += ["--results-dir", str(killed)]
    kills, status = 0, None
    while status != 0:
        lines = log.read_bytes().count(b"\n") if log.exists() else 0
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            if log.exists() and log.read_bytes().count(b"\n") > lines:
                process.kill()
                process.wait()
                kills += 1
            time.sleep(0.002)
        status = process.returncode
    assert kills >= 3
    for kind, count in (("train", 8), ("epoch", 4)):
        expected = {outcome(row) for row in rows(kind)}
        assert {outcome(row) for row in rows(kind, "killed")} == expected
        assert len(rows(kind, "killed")) == len(expected) == count
    theirs = {row["run_id"]: row for row in rows("train", "killed")}
    for row in rows("train"):
        assert_same_training(tmp_path / "results", row, killed, theirs[row["run_id"]])
    assert not list(killed.rglob("*.state.pt"))


def test_a_recipe_that_is_interrupted_ends_in_the_same_weights(tiny, rows, tmp_path, stopping):
    """And in TensorBoard with every epoch once."""
    whole = [*tiny, *RECIPE, "--epochs", "3"]
    assert train.main(whole) == 0
    apart = [*whole, "--results-dir", str(tmp_path / "apart")]
    apart += ["--tensorboard"] if importlib.util.find_spec("tensorboard") else []
    stopping(1, apart)
    stopping(2, apart)
    assert train.main(apart) == 0
    [one], [other] = rows("train"), [r for r in rows("train", "apart") if r["status"] == "ok"]
    assert outcome(one) == outcome(other)
    assert_same_training(tmp_path / "results", one, tmp_path / "apart", other)
    epochs = [row["metrics"] for row in rows("epoch")]
    lrs = [m["lr"] for m in epochs]
    assert lrs == pytest.approx([0.1 * 7 / 7.2, 0.1 * 4 / 7.2, 0.1 / 7.2])
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "apart" / "tensorboard" / one["run_id"])).Reload()
    for name in ("val_acc", "train_loss"):
        points = np.array([(e.step, e.value) for e in events.Scalars(name)])
        assert points == pytest.approx(np.array([(m["epoch"], m[name]) for m in epochs]), rel=1e-6)


def lagging_network(classes):
    """BatchNorm's running average looks back over 100 steps, as in MobileNetV3."""
    layers = [nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16, momentum=0.01), nn.ReLU()]
    layers += [nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16, momentum=0.01), nn.ReLU()]
    tail = [nn.Dropout(0.1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, classes)]
    return nn.Sequential(*layers, *tail)


def test_statistics_that_lag_are_new_ones_when_tested(rows, tmp_path, monkeypatch, stopping):
    """As checkpointed, resumed after each epoch, and after 1 of 2 epochs as after 1."""
    monkeypatch.setitem(models.MODELS, "lagging", lagging_network)
    flags = ["--dataset", "digits", "--model", "lagging", "--image-size", "16", "--opt", "adamw"]
    flags += ["--lr", "0.003", "--limit", "640", "--results-dir"]
    assert train.main([*flags, str(tmp_path / "results"), "--epochs", "1", "2"]) == 0
    assert train.main([*flags, str(tmp_path / "alone"), "--epochs", "1"]) == 0
    apart = [*flags, str(tmp_path / "apart"), "--epochs", "2"]
    assert stopping(1, apart, ZeroDivisionError) == 1
    assert train.main(apart) == 0
    [one, two], [alone] = rows("train"), rows("train", "alone")
    [resumed] = [row for row in rows("train", "apart") if row["status"] == "ok"]
    assert [row["metrics"]["epoch"] for row in rows("epoch", "apart")] == [1, 2]
    assert [row["metrics"]["bn_statistics"] for row in rows("train") + rows("epoch")] == [640] * 4
    for ours, theirs, folder in ((one, alone, "alone"), (two, resumed, "apart")):
        assert ours["metrics"]["test_loss"] == theirs["metrics"]["test_loss"]
        assert_same_training(tmp_path / "results", ours, tmp_path / folder, theirs)
    with torch.no_grad():
        model = lagging_network(10).eval()
        content = load_checkpoint(tmp_path / "results" / two["metrics"]["checkpoint"])
        model.load_state_dict(content["model"])
        run = Run(TrainConfig(**two["config"]), "data")
        inputs, labels = run.batches.load(run.split.test)
        acc = (model(inputs).argmax(1) == labels).double().mean().item()
    assert acc == pytest.approx(two["metrics"]["test_acc"])
    assert acc > 0.8


def test_the_record_preset_trains_and_exports(tiny, rows):
    """On digits, briefly: what it reaches on real data is benchmarks/record.py's to say."""
    args = [*tiny, "--preset", "record", "--dataset", "digits", "--seed", "0", "--limit", "512"]
    args += ["--epochs", "2", "--translate", "0"]
    assert train.main([*args, "--image-size", "28", "--export", "onnx"]) == 0
    [row], [export] = rows("train"), rows("export")
    assert row["config"]["opt"] == "muon"
    assert row["metrics"]["params"] == 62_026
    assert export["status"] == "ok"


def test_no_resume_starts_afresh(tiny, rows, stopping):
    stopping(1, [*tiny, "--epochs", "2"])
    assert train.main([*tiny, "--epochs", "2", "--no-resume"]) == 0
    assert [row["status"] for row in rows("train")] == ["interrupted", "ok"]
    assert [row["metrics"]["epoch"] for row in rows("epoch")] == [1, 1, 2]
    assert len({outcome(row) for row in rows("epoch")}) == 2


def test_weights_are_loaded_and_must_fit(tiny, rows, tmp_path):
    train.main([*tiny, "--epochs", "1"])
    file = str(tmp_path / "results" / rows("train")[0]["metrics"]["checkpoint"])
    train.main([*tiny, "--epochs", "1", "--weights", file])
    assert rows("train")[1]["metrics"]["val_loss"] != rows("train")[0]["metrics"]["val_loss"]
    content = load_checkpoint(file)
    content["model"]["fc.bias"] += 1
    torch.save(content, file)
    train.main([*tiny, "--epochs", "1", "--weights", file])
    assert len({row["run_id"] for row in rows("train")}) == 3  # another content is another run
    with pytest.raises(UsageError, match="does not fit the network"):
        train.main([*tiny, "--model", "resnet34", "--weights", file])
    with pytest.raises(UsageError, match="cannot load"):
        train.main([*tiny, "--weights", str(tmp_path / "nowhere.pt")])


def test_best_takes_the_configuration_of_highest_validation_accuracy(tiny, rows, capsys):
    none = "none of the 1 configurations asked for is finished on digits"
    with pytest.raises(UsageError, match=none):
        train.main([*tiny, "--best"])
    grid = ["--lr", "1e-3", "1e-7", "--epochs", "1"]
    train.main([*tiny, *grid])
    best = max(rows("train"), key=lambda row: row["metrics"]["val_acc"])
    accs = [100 * row["metrics"]["val_acc"] for row in rows("train")]
    first, last = re.findall("  leads on .*", capsys.readouterr().out)
    assert first.startswith(f"  leads on digits, {accs[0]:.2f} % on validation: ResNet-18, SGD, ")
    assert f" {best['config']['lr']:g} (2 of 2 done)" in last
    assert f" {max(accs):.2f} % on validation" in last
    assert train.main([*tiny, *grid, "--best"]) == 0
    shown = capsys.readouterr().out
    assert best["run_id"] in shown
    assert shown.count("digits resnet18") == 1
    assert train.main([*tiny, *grid, "--best", "--force"]) == 0  # forces exports alone
    assert len(rows("train")) == 2
