"""hw_bench.py: which variants are compared, how, and what a row holds."""

import itertools
import os
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import hw_bench
from common.base.cli import UsageError, parse_command_line
from common.base.config import HwTrainConfig, TrainConfig
from common.base.log import run_id
from common.cost import count_costs
from common.data.batches import Batches
from common.judge.tables import significant
from common.models import MODELS
from common.speed import samples, training
from common.train import device, loop
from common.train.notebook import PilImages, notebook_steps
from common.train.run import Run

EAGER = ["--dataset", "digits", "--model", "tiny", "--image-size", "16", "--threads", "1"]
EAGER += ["--compile", "false", "--steps", "3", "--opt", "sgd"]
FP32 = [*EAGER, "--precision", "fp32"]
DIGITS = {"dataset": "digits", "image_size": 16, "device": "cpu"}


def tiny_network(classes):
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(32, classes)),
    )


class Dropped(nn.Sequential):
    """What it answers depends on the numbers that were drawn before it."""

    def forward(self, inputs):
        return nn.functional.dropout(super().forward(inputs), 0.5, self.training)


class FailsInBf16(nn.Sequential):
    def forward(self, inputs):
        if torch.is_autocast_enabled("cpu"):
            raise torch.OutOfMemoryError("out of memory\nby a lot")
        return super().forward(inputs)


class Rounds(nn.Sequential):
    """Remembers, of training and evaluation, whether TF32 was allowed."""

    seen: ClassVar = set()

    def forward(self, inputs):
        allowed = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        self.seen.add((self.training, *allowed))
        return super().forward(inputs)


@pytest.fixture(autouse=True)
def quick(monkeypatch, small_peaks):
    monkeypatch.setattr(samples, "REFUSED", float("inf"))  # other work here is no fault
    monkeypatch.setitem(MODELS, "tiny", tiny_network)
    for name, kind in (("drops", Dropped), ("fails", FailsInBf16), ("rounds", Rounds)):
        monkeypatch.setitem(MODELS, name, lambda n, kind=kind: kind(*tiny_network(n)))


def labels(*flags):
    """The variants of the only group of these flags."""
    flags = ["--model", "resnet18", "--opt", "sgd", *flags]
    [group] = training.expand_groups(parse_command_line(flags, "", HwTrainConfig)[0], "data")
    return [config.describe() for config in group.configs]


def variant_of(**settings):
    config = HwTrainConfig(**DIGITS | {"model": "vgg5", "precision": "fp32"} | settings)
    batches = Run(training.as_training(config), "data").batches
    return training.Variant(config, training.Group([config], "data"), batches)


@pytest.fixture
def loaded(monkeypatch):
    """The indices of every batch that is loaded."""
    seen, load = [], Batches.load
    monkeypatch.setattr(Batches, "load", lambda b, i, *lap: seen.append(i) or load(b, i, *lap))
    return seen


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(device, "cpu_has_fast_bf16", lambda: True)
    monkeypatch.setattr(device, "compile_obstacle", lambda kind: None)


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setattr(device, "resolve_device", torch.device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)


def test_with_nothing_but_a_device_it_is_the_studys_question(monkeypatch, bench, four_cores):
    """Each network is a group, in which optimisers follow one another."""
    seen = []
    monkeypatch.setattr(training.Group, "check", lambda group: None)
    monkeypatch.setattr(hw_bench, "measure", lambda kind, group, *rest: seen.append(group) or 0)
    bench("--device", "cpu")
    configs = [group.configs for group in seen]
    settings = {(c.dataset, c.image_size, c.batch_size, c.lr) for group in configs for c in group}
    assert settings == {("fashion", 224, 16, 1e-3)}
    assert [[(c.model, c.opt) for c in group] for group in configs] == [
        [(model, "sgd"), (model, "adam")] * 8 for model in ("resnet18", "resnet50")
    ]


@pytest.mark.parametrize(
    ("flags", "variants"),
    [
        ("cpu", "cpu, {1 thread|4 threads}, {fp32|bf16}, {eager|compiled}"),
        ("cpu --threads 2 --compile false", "cpu, 2 threads, {fp32|bf16}, eager"),
        (
            "cpu --threads 4 --loop notebook ours",
            "cpu, 4 threads, {fp32|bf16}, {notebook loop|eager|compiled}",
        ),
        ("cuda --loop notebook ours", "cuda, {fp32|bf16}, {notebook loop|eager}"),
        ("cuda --precision fp32 fp16 tf32", "cuda, {fp32|fp16|tf32}, eager"),
        (
            "cuda --compile false true --cuda-graph false true",
            "cuda, bf16, {eager|CUDA graph|compiled}",
        ),
    ],
)
def test_a_device_is_compared_with_itself(flags, variants, four_cores, cuda):
    parts = [part.strip("{}").split("|") for part in variants.split(", ")]
    expected = [", ".join(chosen) for chosen in itertools.product(*parts)]
    assert labels("--device", *flags.split()) == expected
    both = ["cpu, 4 threads, bf16, eager", "cuda, bf16, eager"]
    assert labels("--device", "cpu", "cuda") == both  # where neither is alone


def test_what_the_machine_lacks_is_said_and_refused_if_asked_for(four_cores, monkeypatch, capsys):
    monkeypatch.setattr(device, "cpu_has_fast_bf16", lambda: False)
    monkeypatch.setattr(device, "compile_obstacle", lambda kind: "no compiler: apt-get install g++")
    threads = [f"cpu, {n}, fp32, eager" for n in ("1 thread", "4 threads")]
    assert labels("--device", "cpu") == threads
    said = capsys.readouterr().out
    assert "bf16: not measured" in said
    assert "compiled variants: not measured, no compiler: apt-get install g++" in said
    with pytest.raises(UsageError, match="--compile: no compiler"):
        labels("--device", "cpu", "--compile", "false", "true")


@pytest.mark.parametrize(("kind", "tool"), [("cpu", "g++"), ("cuda", "gcc")])
def test_what_the_compiler_of_a_device_lacks_is_found_out(kind, tool, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(device.sysconfig, "get_path", lambda name: str(tmp_path))
    for triton, capability, lacks in (
        (None, (7, 0), "on cuda, which is not there: pip install triton"),
        ("triton", (6, 1), "compute capability 7.0"),
        ("triton", (7, 0), f"{tool} is not there: apt-get install {tool}"),
    ):
        monkeypatch.setattr(device, "find_spec", lambda name, triton=triton: triton)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda known=capability: known)
        assert kind == "cpu" or lacks in device.compile_obstacle(kind)
    assert lacks in device.compile_obstacle(kind)
    for name in (tool, "clang++"):
        (tmp_path / name).touch(mode=0o755)
    assert "python3-dev" in device.compile_obstacle(kind)
    (tmp_path / "Python.h").touch()
    assert device.compile_obstacle(kind) is None


def test_tf32_is_for_the_steps_of_its_variant_alone():
    variant = variant_of(model="rounds", precision="tf32", warmup=1)
    for work in (variant.warm_up, variant.train_whole_epoch):
        variant.attempt(work)
    assert variant.error is None
    assert Rounds.seen == {(True, True, True), (False, False, False)}
    assert not torch.backends.cudnn.allow_tf32


def test_energy_is_of_whole_periods_of_its_counter(monkeypatch):
    """Of an accelerator, whose steps take 4 ms, at a watt: and the first period is not counted."""
    variant, now_ms, opened_ms = variant_of(steps=2), 0.0, []
    variant.build()

    def step(lap=None):
        nonlocal now_ms
        now_ms += 4.0
        return torch.zeros(())

    def open_meter(kind):
        opened_ms.append(now_ms)
        return lambda: (now_ms - opened_ms[0]) / 1e3

    for name in ("reset_peak_memory", "peak_memory_bytes", "tensor_bytes"):
        monkeypatch.setattr(training.timing, name, lambda kind: 0)
    for room in (device, training.timing):
        monkeypatch.setattr(room, "now_ms", lambda kind: now_ms)
    monkeypatch.setattr(training.timing, "open_meter", open_meter)
    variant.step, variant.device, variant.own_bytes = step, torch.device("cuda"), 0
    variant.sample()
    assert opened_ms[0] >= 100
    assert variant.joules >= 0.100
    assert variant.joules / variant.images_metered == pytest.approx(0.004 / 16)
    assert variant.samples_ms == [4.0, 4.0]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--batch-size 1258", "--batch-size 1258: digits has 1257 training images"),
        ("--model resnet18 --precision bf16", "would see a single pixel"),
        ("--precision fp16 --device cpu", "--precision fp16"),
        ("--precision tf32 --device cpu", "--precision tf32: CUDA alone has it, and this is cpu"),
        ("--cuda-graph true --device cpu", "--cuda-graph: needs CUDA; leave it out on cpu"),
        ("--steps 1", "--steps: 1 must be at least 2"),
        ("--batch-size 1 --model resnet18 --image-size 32", "larger batches"),
        ("--loop notebook --compile true", "the notebook loop is never compiled"),
        ("--loop ours notebook --full-epoch", "--full-epoch.*use --loop ours"),
        ("--loop ours notebook --opt muon", "--opt muon.*use --loop ours"),
        ("--mode infr", "did you mean 'infer'"),
        ("--mode infer", "no exported networks"),
        ("--device cuda", "--device cuda: not available"),
    ],
)
def test_bad_input_is_refused_before_any_work(flags, said, bench, monkeypatch):
    if "not available" in said and torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    monkeypatch.setattr(device, "compile_obstacle", lambda kind: None)
    with pytest.raises(UsageError, match=said):
        bench(*([] if "--mode " in flags else EAGER), *flags.split())


def test_variants_take_turns_and_each_is_compared_with_the_first_of_its_optimiser(
    bench, rows, monkeypatch
):
    turns, sample = [], training.Variant.sample
    monkeypatch.setattr(
        training.Variant, "sample", lambda v: turns.append(v.config.opt) or sample(v)
    )
    assert bench(*EAGER, "--opt", "sgd", "adam", "--precision", "fp32", "bf16", "--steps", "5") == 0
    assert turns == [*["sgd", "adam"] * 2, *["adam", "sgd"] * 2, *["sgd", "adam"] * 2]
    written = rows("hw_train")
    variants = [(row["config"]["precision"], row["config"]["opt"]) for row in written]
    assert variants == list(itertools.product(("fp32", "bf16"), ("sgd", "adam")))
    assert len({row["metrics"]["rounds"]["group"] for row in written}) == 1
    costs = count_costs(tiny_network(10), (16, 3, 16, 16), "conv_linear")
    for row, first in zip(written, written[:2] * 2, strict=True):
        m, config = row["metrics"], row["config"]
        assert row["run_id"] == run_id("hw_train", config)
        assert (config["device"], config["threads"], row["env"]["threads"]) == ("cpu", 1, 1)
        assert m["label"] == f"cpu, 1 thread, {config['precision']}, eager"
        step_ms, times, median_ms = m["step_ms"], m["rounds"]["step_ms"], m["step_ms"]["median"]
        assert (step_ms["n"], median_ms > 0, len(times)) == (5, True, 3)  # two in a round
        assert m["images_per_s"] == pytest.approx(16e3 / median_ms)
        assert m["epoch_ms"] == pytest.approx(median_ms * 79)  # 1257 images by 16
        assert (m["extrapolated"], m["test_acc"], m["compile_ms"]) == (True, None, None)
        assert m["first_step_ms"] > 0
        assert m["noise"] == step_ms["iqr"] / median_ms
        phases = m["phase_ms"]
        assert list(phases) == ["data", "copy", "forward", "backward", "optimizer"]
        assert phases.pop("copy") is None  # the images are where they are used
        assert all(ms > 0 for ms in phases.values())
        assert m["peak_memory_bytes"] is None  # a process with two variants tells none apart
        speedup, logs = m["speedup"], np.log(first["metrics"]["rounds"]["step_ms"]) - np.log(times)
        assert speedup["baseline"] == first["run_id"]
        assert speedup["baseline_label"] == "cpu, 1 thread, fp32, eager"
        assert speedup["ratio"] == pytest.approx(np.exp(logs.mean()))
        low, high = speedup["interval"]
        assert 0 < low <= speedup["ratio"] <= high
        bound_ms, peak = m["roofline"]["bound_ms"], m["roofline"]["peak_flops_per_s"]
        assert m["mfu"] == pytest.approx(costs.train_step_flops / median_ms * 1e3 / peak)
        assert m["roofline"]["fraction"] == pytest.approx(bound_ms / median_ms)


def test_what_was_measured_in_other_rounds_is_measured_again_together(bench, rows, capsys):
    flags = [*FP32, "--steps", "4", "--accept-noise", "--opt"]
    for opts in (["sgd"], ["adam"], ["sgd", "adam"], ["sgd", "adam"], ["adam"]):
        assert bench(*flags, *opts) == 0
    groups = [row["metrics"]["rounds"]["group"] for row in rows("hw_train")]
    assert [groups.index(g) for g in groups] == [0, 1, 2, 2]
    out = capsys.readouterr().out
    assert out.count("in the log, but not measured in the same rounds") == 1
    assert out.count("in the log\n") == 2
    assert bench(*flags, "adam", "--force") == 0
    assert len(rows("hw_train")) == 5


def test_the_notebook_loop_is_a_variant_like_the_others_and_all_is_printed(bench, rows, capsys):
    assert bench(*FP32, "--loop", "notebook", "ours") == 0
    notebook, ours = rows("hw_train")
    assert notebook["metrics"]["label"] == "cpu, 1 thread, fp32, notebook loop"
    assert notebook["metrics"]["phase_ms"] is None
    speedup = ours["metrics"]["speedup"]
    assert speedup["baseline"] == notebook["run_id"]
    lines = capsys.readouterr().out.splitlines()
    [line] = [line for line in lines if "eager" in line and f"{speedup['ratio']:.2f}x" in line]
    assert significant(ours["metrics"]["images_per_s"]) in line.split()


def test_the_notebook_loop_sees_the_images_and_learns_as_ours_does(monkeypatch):
    config = TrainConfig(**DIGITS, model="tiny", lr=0.05, amp=False)
    run = Run(config, "data")
    items = [PilImages(run)[i] for i in range(16)]
    ours, all_labels = run.batches.load(run.split.train)
    for image, label in items:
        # PIL rounds what it has resized to whole grey levels.
        distance = (ours - image).abs().amax((1, 2, 3))
        assert distance.min() < 1.01 / (255 * run.statistics[1].item())
        assert all_labels[distance.argmin()] == label
    torch.manual_seed(0)
    steps = notebook_steps(run, "fp32")
    # first_step_ms holds no building of the network, in either loop
    monkeypatch.setattr("common.train.notebook.build_model", None)
    epoch = len(run.order(1))
    losses = torch.stack([next(steps) for _ in range(3 * epoch)]).view(3, epoch).mean(1)
    for number, loss in enumerate(losses, 1):
        assert loss.item() == pytest.approx(run.train_steps(number)["train_loss"], rel=0.2)


@pytest.mark.parametrize("batch_size", [100, 157])  # 1257 are 8 times 157, and one more
def test_steps_see_fresh_images_in_full_batches(batch_size, loaded):
    variant, full = variant_of(batch_size=batch_size), 1257 // batch_size
    variant.build()
    for _ in range(2 * full):
        variant.step()
    epochs = torch.cat(loaded[:full]), torch.cat(loaded[full:])
    for epoch in epochs:
        assert len(epoch.unique()) == full * batch_size
        assert set(epoch.tolist()) < set(variant.run.split.train.tolist())
    assert not torch.equal(*epochs)


@pytest.mark.parametrize("model", ["tiny", "drops"])
def test_a_whole_epoch_does_and_draws_what_train_does(model, bench, rows, loaded, monkeypatch):
    """Batches of both sizes came before, by which libraries choose their work; none is learnt."""
    before, train_steps = [], Run.train_steps

    def watched(run, epoch):
        before.append([len(index) for index in loaded[-4:]])
        return train_steps(run, epoch)

    monkeypatch.setattr(Run, "train_steps", watched)
    bench(*FP32, "--model", model, "--lr", "0.05", "--full-epoch", "--accept-noise")
    [row] = rows("hw_train")
    m, run = row["metrics"], Run(TrainConfig(**DIGITS, model=model, lr=0.05, amp=False), "data")
    assert before == [[16, 1257 % 16] * 2]
    run.train_one_epoch()
    assert m["test_acc"] == run.test(run.split.test)[1]
    assert m["test_acc"] > 0.2 or model == "drops"
    assert m["extrapolated"] is False
    assert m["images_per_s"] == pytest.approx(1257e3 / m["epoch_ms"])
    assert m["step_ms"]["n"] == 3
    assert m["peak_memory_bytes"] > 10e6
    assert m["extrapolation"] == pytest.approx(m["step_ms"]["median"] * 79 / m["epoch_ms"])


def test_the_price_of_compiling_is_that_of_a_first_time(monkeypatch, tmp_path):
    name, kept, seen = "TORCHINDUCTOR_CACHE_DIR", tmp_path / "kept", []
    monkeypatch.setenv(name, str(kept))

    def compile_nothing(model, *args):  # compiling takes a minute
        model.register_forward_pre_hook(lambda *args: seen.append(Path(os.environ[name])))
        return model

    monkeypatch.setattr(loop, "Compiled", compile_nothing)
    variant_of(compile=True, warmup=2).warm_up()
    first, later = seen
    assert later == kept != first
    assert not first.exists()  # any more


@pytest.mark.parametrize("order", [["fp32", "bf16"], ["bf16", "fp32"]])
def test_a_variant_that_fails_leaves_the_others(order, bench, rows, capsys):
    assert bench(*EAGER, "--model", "fails", "--precision", *order) == 1
    by_precision = {row["config"]["precision"]: row for row in rows("hw_train")}
    failed, good = by_precision["bf16"], by_precision["fp32"]
    advice = "out of memory at --batch-size 16, --image-size 16: lower one of them"
    assert (failed["status"], failed["error"][: len(advice)]) == ("failed", advice)
    assert "step_ms" not in failed["metrics"]
    assert good["status"] == "ok"
    assert good["metrics"]["speedup"]["ratio"] == (1.0 if order[0] == "fp32" else None)
    assert "cpu, 1 thread, fp32, eager" in capsys.readouterr().out


def test_a_variant_that_diverges_fails(bench, rows):
    assert bench(*FP32, "--lr", "1e30") == 1
    [row] = rows("hw_train")
    assert row["status"] == "failed"
    assert "loss nan" in row["error"]


@pytest.mark.parametrize(("load", "warns"), [(1.9, False), (2.1, True)])
def test_a_busy_machine_is_said_to_be(load, warns, bench, monkeypatch, capsys):
    monkeypatch.setattr(hw_bench.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(hw_bench.psutil, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(hw_bench, "measure", lambda *args: 0)
    bench(*FP32)
    assert ("warning: load average 2.1 on 4 cores" in capsys.readouterr().out) == warns


def test_a_noisy_clock_is_refused_unless_accepted(bench, rows, monkeypatch):
    monkeypatch.setattr(samples, "REFUSED", 0.25)
    visits = itertools.cycle([[10.0, 10.0], [20.0, 20.0]])
    monkeypatch.setattr(training.Variant, "sample", lambda v: v.add(next(visits), None, 0))
    flags = [*FP32, "--steps", "8"]
    assert bench(*flags) == 1
    assert bench(*flags, "--accept-noise") == 0
    refused, kept = rows("hw_train")
    assert refused["status"] == "failed"
    assert "too noisy: IQR 67% of the median 15 ms (limit 25%)" in refused["error"]
    assert "images_per_s" not in refused["metrics"]
    assert kept["metrics"]["noise"] == pytest.approx(10 / 15)


@pytest.mark.parametrize(("mode", "flag"), [("train", "--warmup"), ("infer", "--queries")])
def test_help_is_of_the_mode(mode, flag, capsys):
    with pytest.raises(SystemExit) as stop:
        hw_bench.main(["--mode", mode, "--help"])
    assert stop.value.code == 0
    assert flag in capsys.readouterr().out
