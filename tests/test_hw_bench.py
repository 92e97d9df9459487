"""hw_bench.py: which variants are compared, how, and what a row holds."""

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hw_bench
from common.base.cli import UsageError, parse_command_line
from common.base.config import HwTrainConfig, TrainConfig
from common.base.log import run_id
from common.cost import count_costs
from common.models import MODELS
from common.speed import peaks as roofline
from common.speed import timing
from common.speed import training as hw_train
from common.train import device
from common.train.notebook import notebook_loader, notebook_steps
from common.train.run import Run

ROOT = Path(__file__).parent.parent
TRAIN = ["--dataset", "digits", "--model", "tiny", "--image-size", "16", "--threads", "1"]
EAGER = [*TRAIN, "--compile", "false", "--steps", "3", "--opt", "sgd"]


def tiny_network(classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(32, classes),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(roofline, "MATRIX_SIDE", {"cpu": 64})
    monkeypatch.setattr(roofline, "CONVOLUTION", (1, 4, 4))
    monkeypatch.setattr(roofline, "COPY_BYTES", 2**16)
    monkeypatch.setattr(roofline, "SECONDS", 0)
    monkeypatch.setattr(timing, "REFUSED", float("inf"))  # other work on this machine is no fault
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def models():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tiny", tiny_network)
        yield


@pytest.fixture
def bench(tmp_path):
    """A function: hw_bench with some flags, writing under tmp_path/results."""
    return lambda *flags: hw_bench.main([*flags, "--results-dir", str(tmp_path / "results")])


def expand(*flags):
    grid, _ = parse_command_line(flags, "", HwTrainConfig)
    return hw_bench.expand_groups(grid)


def test_with_nothing_but_a_device_it_is_the_studys_question(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(hw_bench, "bench_train", lambda grid, *rest: seen.append(grid) or 0)
    hw_bench.main(["--device", "cpu", "--results-dir", str(tmp_path)])
    groups = hw_bench.expand_groups(seen[0])
    settings = {(g[0].dataset, g[0].image_size, g[0].batch_size, g[0].lr) for g in groups}
    assert settings == {("fashion", 224, 16, 1e-3)}
    networks = {(c.model, c.opt) for group in groups for c in group}
    assert networks == {(m, o) for m in ("resnet18", "resnet50") for o in ("sgd", "adam")}


def labels(group):
    return [config.describe() for config in group]


# --- training: which variants ---------------------------------------------------------------------


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(device, "cpu_has_fast_bf16", lambda: True)
    monkeypatch.setattr(device, "compile_obstacle", lambda: None)


def test_a_cpu_alone_is_compared_with_itself(four_cores):
    [group] = expand("--device", "cpu")
    assert labels(group) == [
        f"cpu, {threads}, {precision}, {mode}"
        for threads in ("1 thread", "4 threads")
        for precision in ("fp32", "bf16")
        for mode in ("eager", "compiled")
    ]


def test_flags_choose_among_the_variants(four_cores):
    [group] = expand("--device", "cpu", "--threads", "2", "--compile", "false")
    assert labels(group) == ["cpu, 2 threads, fp32, eager", "cpu, 2 threads, bf16, eager"]
    groups = expand("--device", "cpu", "--model", "resnet18", "resnet50", "--opt", "sgd", "adam")
    assert [[(c.model, c.opt) for c in group] for group in groups] == [
        [(model, "sgd"), (model, "adam")] * 8 for model in ("resnet18", "resnet50")
    ]


def test_a_cpu_beside_an_accelerator_is_one_variant(four_cores, monkeypatch):
    monkeypatch.setattr(device, "resolve_device", torch.device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    [group] = expand("--device", "cpu", "cuda")
    assert labels(group) == ["cpu, 4 threads, bf16, eager", "cuda, bf16, eager"]
    [group] = expand("--device", "cuda", "--precision", "fp32", "fp16")
    assert labels(group) == ["cuda, fp32, eager", "cuda, fp16, eager"]


def test_the_notebook_loop_is_measured_in_fp32_and_amp_and_never_compiled(four_cores, monkeypatch):
    [group] = expand("--device", "cpu", "--threads", "4", "--loop", "notebook", "ours")
    assert labels(group) == [
        f"cpu, 4 threads, {precision}, {mode}"
        for precision in ("fp32", "bf16")
        for mode in ("notebook loop", "eager", "compiled")
    ]
    with pytest.raises(UsageError, match="the notebook loop is never compiled"):
        expand("--device", "cpu", "--loop", "notebook", "--compile", "true")
    monkeypatch.setattr(device, "resolve_device", torch.device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    [group] = expand("--device", "cuda", "--loop", "notebook", "ours")
    assert labels(group) == [
        "cuda, fp32, notebook loop", "cuda, fp32, eager", "cuda, bf16, notebook loop",
        "cuda, bf16, eager",
    ]  # fmt: skip


def test_what_the_machine_lacks_is_said_and_refused_if_asked_for(four_cores, monkeypatch, capsys):
    monkeypatch.setattr(device, "cpu_has_fast_bf16", lambda: False)
    monkeypatch.setattr(device, "compile_obstacle", lambda: "no compiler: apt-get install g++")
    [group] = expand("--device", "cpu")
    assert labels(group) == ["cpu, 1 thread, fp32, eager", "cpu, 4 threads, fp32, eager"]
    said = capsys.readouterr().out
    assert "bf16: not measured" in said
    assert "compiled variants: not measured, no compiler: apt-get install g++" in said
    with pytest.raises(UsageError, match="--compile: no compiler"):
        expand("--device", "cpu", "--compile", "false", "true")
    with pytest.raises(UsageError, match="--precision fp16"):
        expand("--device", "cpu", "--precision", "fp16")


def test_a_missing_compiler_is_found_out(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert "apt-get install g++" in device.compile_obstacle()
    for name in ("g++", "clang++"):
        (tmp_path / name).touch(mode=0o755)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(device.sysconfig, "get_path", lambda name: str(tmp_path))
    assert device.compile_obstacle() is None
    (tmp_path / "Python.h").unlink()
    assert "python3-dev" in device.compile_obstacle()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--batch-size", "1258"], "--batch-size 1258: digits has 1257 training images"),
        (["--model", "resnet18", "--precision", "bf16"], "would see a single pixel"),
        (["--steps", "1"], "--steps: 1 must be at least 2"),
        (["--batch-size", "1", "--model", "resnet18", "--image-size", "32"], "larger batches"),
        (["--mode", "infr"], "did you mean 'infer'"),
        (["--mode", "infer"], "no exported networks"),
    ],
)
def test_bad_input_is_refused_before_any_work(flags, said, bench, rows):
    grid = [] if "--mode" in flags else EAGER
    with pytest.raises(UsageError, match=said):
        bench(*grid, *flags)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
def test_a_missing_device_is_one_line_and_status_2(tmp_path):
    command = [sys.executable, "hw_bench.py", "--device", "cuda", "--results-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("hw_bench.py: --device cuda: not available")
    assert done.stderr.count("\n") == 1


# --- training: the measurement --------------------------------------------------------------------


def test_a_row_holds_what_was_timed(bench, rows):
    assert bench(*EAGER, "--precision", "fp32", "bf16") == 0
    first, second = rows("hw_train")
    assert (first["config"]["precision"], second["config"]["precision"]) == ("fp32", "bf16")
    for row in (first, second):
        m = row["metrics"]
        assert row["run_id"] == run_id("hw_train", row["config"])
        assert row["config"]["threads"] == row["env"]["threads"] == 1
        assert row["config"]["device"] == "cpu"
        assert m["step_ms"]["n"] == 3
        assert m["step_ms"]["median"] > 0
        assert m["images_per_s"] == pytest.approx(16e3 / m["step_ms"]["median"])
        assert m["epoch_ms"] == pytest.approx(m["step_ms"]["median"] * 79)  # 1257 images by 16
        assert (m["extrapolated"], m["test_acc"]) == (True, None)
        assert m["first_step_ms"] > 0
        assert m["noise"] == m["step_ms"]["iqr"] / m["step_ms"]["median"]
        assert m["compile_ms"] is None
        phases = m["phase_ms"]
        assert list(phases) == ["data", "copy", "forward", "backward", "optimizer"]
        assert phases.pop("copy") is None  # the images are where they are used
        assert all(ms > 0 for ms in phases.values())
        assert m["peak_memory_bytes"] is None  # a process with two variants tells none apart
        speedup = m["speedup"]
        assert speedup["baseline"] == first["run_id"]
        assert speedup["baseline_label"] == "cpu, 1 thread, fp32, eager"
        low, high = speedup["interval"]
        assert 0 < low <= speedup["ratio"] <= high
        costs = count_costs(tiny_network(10), (16, 3, 16, 16), "conv_linear")
        peak = m["roofline"]["peak_flops_per_s"]
        seconds = m["step_ms"]["median"] / 1e3
        assert m["mfu"] == pytest.approx(costs.train_step_flops / seconds / peak)
        bound_s = m["roofline"]["bound_ms"] / 1e3
        assert m["roofline"]["fraction"] == pytest.approx(bound_s / seconds)
    assert first["metrics"]["speedup"]["ratio"] == 1
    assert second["metrics"]["label"] == "cpu, 1 thread, bf16, eager"


def test_optimisers_take_turns_and_each_is_compared_with_its_own_first_variant(
    bench, rows, monkeypatch
):
    turns, sample = [], hw_train.Side.sample
    monkeypatch.setattr(
        hw_train.Side, "sample", lambda side: turns.append(side.config.opt) or sample(side)
    )
    assert bench(*EAGER, "--opt", "sgd", "adam", "--precision", "fp32", "bf16", "--steps", "6") == 0
    assert turns == [*["sgd", "adam"] * 2, *["adam", "sgd"] * 2, *["sgd", "adam"] * 2]
    found = rows("hw_train")
    sgd, adam = found[:2]
    assert [row["config"]["opt"] for row in found] == ["sgd", "adam"] * 2
    rounds = [row["metrics"]["rounds"] for row in found]
    assert len({r["group"] for r in rounds}) == 1
    assert [len(r["step_ms"]) for r in rounds] == [3] * 4  # of two steps each
    for row, first in zip(found, [sgd, adam] * 2, strict=True):
        speedup, times = row["metrics"]["speedup"], row["metrics"]["rounds"]["step_ms"]
        logs = np.log(first["metrics"]["rounds"]["step_ms"]) - np.log(times)
        assert speedup["baseline"] == first["run_id"]
        assert speedup["ratio"] == pytest.approx(np.exp(logs.mean()))


@pytest.mark.parametrize("steps", ["2", "4"])  # one round, and two
def test_what_was_measured_in_other_rounds_is_measured_again_together(steps, bench, rows, capsys):
    flags = [*EAGER, "--precision", "fp32", "--steps", steps, "--accept-noise", "--opt"]
    for opts in (["sgd"], ["adam"], ["sgd", "adam"], ["sgd", "adam"], ["adam"]):
        assert bench(*flags, *opts) == 0
    groups = [row["metrics"]["rounds"]["group"] for row in rows("hw_train")]
    assert [groups.index(g) for g in groups] == [0, 1, 2, 2]
    said = capsys.readouterr().out
    assert said.count("in the log, but not measured in the same rounds") == 1


def test_the_notebook_loop_is_a_variant_like_the_others(bench, rows):
    assert bench(*EAGER, "--precision", "fp32", "--loop", "notebook", "ours") == 0
    notebook, ours = rows("hw_train")
    assert (notebook["config"]["loop"], ours["config"]["loop"]) == ("notebook", "ours")
    assert notebook["metrics"]["label"] == "cpu, 1 thread, fp32, notebook loop"
    assert ours["metrics"]["speedup"]["baseline"] == notebook["run_id"]
    assert ours["metrics"]["speedup"]["ratio"] > 0


@pytest.mark.parametrize("flag", [["--full-epoch"], ["--opt", "muon"]], ids=str)
def test_what_the_notebook_loop_has_not_is_refused(bench, flag):
    with pytest.raises(UsageError, match=f"{flag[0]}.*use --loop ours"):
        bench(*EAGER, "--precision", "fp32", "--loop", "ours", "notebook", *flag)


def test_the_notebook_loop_sees_the_images_and_learns_as_ours_does():
    config = TrainConfig(
        dataset="digits", model="tiny", image_size=16, device="cpu", lr=0.05, amp=False
    )
    run = Run(config, "data")
    args = (config, run.dataset, run.split.train)
    inputs, labels = next(iter(notebook_loader(*args, run.statistics)))
    ours, all_labels = run.batches.load(run.split.train)
    for image, label in zip(inputs, labels, strict=True):
        # PIL rounds what it has resized to whole grey levels.
        distance = (ours - image).abs().amax((1, 2, 3))
        assert distance.min() < 1.01 / (255 * run.statistics[1].item())
        assert all_labels[distance.argmin()] == label
    torch.manual_seed(0)
    steps = notebook_steps(*args, run.statistics, torch.device("cpu"), "fp32")
    epoch = len(run.order(1))
    losses = torch.stack([next(steps) for _ in range(3 * epoch)]).view(3, epoch).mean(1)
    for number, loss in enumerate(losses, 1):
        assert loss.item() == pytest.approx(run.train_steps(number)["train_loss"], rel=0.2)


def test_variants_take_turns_from_alternating_ends(bench, monkeypatch):
    turns = []
    sample = hw_train.Side.sample

    def record(side):
        turns.append(side.config.precision)
        sample(side)

    monkeypatch.setattr(hw_train.Side, "sample", record)
    bench(*EAGER, "--precision", "fp32", "bf16", "--steps", "5")
    assert turns == ["fp32", "bf16", "bf16", "fp32", "fp32", "bf16"]


def test_steps_see_fresh_images_in_full_batches(monkeypatch):
    config = HwTrainConfig(batch_size=4)
    batches = hw_train.endless_batches(torch.arange(100, 110), config, torch.device("cpu"))
    epoch = torch.cat([next(batches), next(batches)])
    assert len(epoch.unique()) == 8
    assert set(epoch.tolist()) < set(range(100, 110))
    assert len(next(batches)) == 4


def test_what_is_in_the_log_is_not_measured_again_but_sides_stay_together(bench, rows, capsys):
    bench(*EAGER, "--precision", "fp32")
    bench(*EAGER, "--precision", "fp32")
    assert len(rows("hw_train")) == 1
    assert "in the log" in capsys.readouterr().out
    bench(*EAGER, "--precision", "fp32", "bf16")
    assert [r["config"]["precision"] for r in rows("hw_train")] == ["fp32", "fp32", "bf16"]
    bench(*EAGER, "--precision", "fp32", "--force")
    assert len(rows("hw_train")) == 4


def test_a_whole_epoch_is_what_train_does(bench, rows):
    bench(*EAGER, "--precision", "fp32", "--lr", "0.05", "--full-epoch")
    [row] = rows("hw_train")
    m = row["metrics"]
    config = TrainConfig(
        dataset="digits", model="tiny", image_size=16, device="cpu", lr=0.05, amp=False
    )
    run = Run(config, "data")
    run.train_one_epoch()
    assert m["test_acc"] == run.test(run.split.test)[1] > 0.2
    assert m["extrapolated"] is False
    assert m["images_per_s"] == pytest.approx(1257e3 / m["epoch_ms"])
    assert m["step_ms"]["n"] == 3
    assert m["peak_memory_bytes"] > 10e6
    assert m["extrapolation"] == pytest.approx(m["step_ms"]["median"] * 79 / m["epoch_ms"])


class Dropped(nn.Sequential):
    """What it answers depends on the numbers that were drawn before it."""

    def forward(self, inputs):
        return nn.functional.dropout(super().forward(inputs), 0.5, self.training)


def test_a_whole_epoch_draws_what_train_draws(bench, rows, monkeypatch):
    monkeypatch.setitem(MODELS, "drops", lambda classes: Dropped(*tiny_network(classes)))
    flags = ["--model", "drops", "--lr", "0.05", "--full-epoch", "--accept-noise"]
    bench(*EAGER, "--precision", "fp32", *flags)
    [row] = rows("hw_train")
    config = TrainConfig(
        dataset="digits", model="drops", image_size=16, device="cpu", lr=0.05, amp=False
    )
    run = Run(config, "data")
    run.train_one_epoch()
    assert row["metrics"]["test_acc"] == run.test(run.split.test)[1]


@pytest.mark.parametrize("compile", [False, True])
def test_every_variant_has_seen_both_sizes_of_batches_before_its_epoch(compile, monkeypatch):
    """Libraries choose their work by the size of a batch, as compilers do."""
    config = HwTrainConfig(dataset="digits", model="tiny", image_size=16, device="cpu", steps=2,
                           precision="fp32", compile=compile)  # fmt: skip
    dataset, split = hw_bench.load_images(config, "data")
    run = Run(TrainConfig(dataset="digits", model="vgg5", image_size=16, device="cpu"), "data")
    monkeypatch.setattr(hw_train, "prepare_forward", lambda model, compile: model)
    side = hw_train.Side(config, dataset, split, run.statistics, run.batches, 1, alone=True)
    seen, sizes, step = [], [], hw_train.train_step

    def record(setup, inputs, *args):
        sizes.append(len(inputs))
        return step(setup, inputs, *args)

    monkeypatch.setattr(hw_train, "train_step", record)
    train_epoch = hw_train.train_epoch
    monkeypatch.setattr(
        hw_train, "train_epoch", lambda *a, **k: seen.extend(sizes) or train_epoch(*a, **k)
    )
    side.train_whole_epoch()
    assert seen == [16, 1257 % 16] * 2


def test_the_first_step_of_the_notebook_loop_builds_no_network(monkeypatch):
    """first_step_ms of the other loop does not hold the building either."""
    config = TrainConfig(
        dataset="digits", model="tiny", image_size=16, device="cpu", lr=0.05, amp=False
    )
    run = Run(config, "data")
    built = []
    monkeypatch.setattr(
        "common.train.notebook.build_model", lambda *a, **k: built.append(a) or run.model
    )
    args = (config, run.dataset, run.split.train, run.statistics, run.device, "fp32")
    steps = notebook_steps(*args)
    assert len(built) == 1
    next(steps)
    assert len(built) == 1


def test_seeing_both_sizes_of_batches_trains_nothing():
    config = HwTrainConfig(dataset="digits", model="vgg5", image_size=16, device="cpu", steps=2,
                           precision="fp32", compile=True)  # fmt: skip
    dataset, split = hw_bench.load_images(config, "data")
    run = Run(TrainConfig(dataset="digits", model="vgg5", image_size=16, device="cpu"), "data")
    side = hw_train.Side(config, dataset, split, run.statistics, run.batches, 1, alone=True)
    side.config = replace(config, compile=False)  # the building of it; compiling takes a minute
    side.build()
    before = {name: value.clone() for name, value in side.model.state_dict().items()}
    sizes = []
    side.model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    side.rehearse([split.train[:16], split.train[16:32], split.train[32:41]])
    assert sizes == [16, 9] * 2
    for name, value in side.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not side.setup.optimizer.state


def test_the_price_of_compiling_is_that_of_a_first_time(monkeypatch, tmp_path):
    kept = tmp_path / "kept"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(kept))
    config = HwTrainConfig(dataset="digits", model="vgg5", image_size=16, device="cpu", steps=2,
                           precision="fp32", compile=True, warmup=2)  # fmt: skip
    dataset, split = hw_bench.load_images(config, "data")
    run = Run(TrainConfig(dataset="digits", model="vgg5", image_size=16, device="cpu"), "data")
    side = hw_train.Side(config, dataset, split, run.statistics, run.batches, 1, alone=True)
    seen = []

    def compile_nothing(model, compile):  # compiling takes a minute
        folder = "TORCHINDUCTOR_CACHE_DIR"
        model.register_forward_pre_hook(lambda *args: seen.append(Path(os.environ[folder])))
        return model

    monkeypatch.setattr(hw_train, "prepare_forward", compile_nothing)
    side.warm_up()
    first, later = seen
    assert later == kept != first
    assert not first.exists()  # any more


class FailsInBf16(nn.Sequential):
    def forward(self, inputs):
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("out of memory\nby a lot")
        return super().forward(inputs)


@pytest.mark.parametrize("order", [["fp32", "bf16"], ["bf16", "fp32"]])
def test_a_variant_that_fails_leaves_the_others(order, bench, rows, monkeypatch, capsys):
    monkeypatch.setitem(MODELS, "fails", lambda classes: FailsInBf16(*tiny_network(classes)))
    assert bench(*EAGER, "--model", "fails", "--precision", *order) == 1
    by_precision = {row["config"]["precision"]: row for row in rows("hw_train")}
    failed, good = by_precision["bf16"], by_precision["fp32"]
    assert (failed["status"], failed["error"]) == ("failed", "RuntimeError: out of memory")
    assert "step_ms" not in failed["metrics"]
    assert good["status"] == "ok"
    expected = 1.0 if order[0] == "fp32" else None
    assert good["metrics"]["speedup"]["ratio"] == expected
    assert "cpu, 1 thread, fp32, eager" in capsys.readouterr().out


def test_a_diverged_network_is_no_measurement(bench, rows):
    assert bench(*EAGER, "--precision", "fp32", "--lr", "1e30") == 1
    [row] = rows("hw_train")
    assert row["status"] == "failed"
    assert "loss nan" in row["error"]


@pytest.mark.parametrize(("load", "warns"), [(1.9, False), (2.1, True)])
def test_a_busy_machine_is_said_to_be(load, warns, monkeypatch, capsys):
    monkeypatch.setattr(hw_bench.os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(hw_bench.os, "cpu_count", lambda: 4)
    hw_bench.warn_if_busy()
    assert ("warning: load average 2.1 on 4 cores" in capsys.readouterr().out) == warns


def test_a_noisy_clock_is_refused_unless_accepted(bench, rows, monkeypatch):
    monkeypatch.setattr(timing, "REFUSED", 0.25)
    samples = itertools.cycle([10.0, 10.0, 20.0, 20.0])
    monkeypatch.setattr(hw_train, "now_ms", lambda device: 0.0)

    def sample(side):
        visit = [next(samples) for _ in range(2)]
        side.samples_ms += visit
        side.visits_ms.append(sum(visit) / 2)

    monkeypatch.setattr(hw_train.Side, "sample", sample)
    flags = [*EAGER, "--precision", "fp32", "--steps", "8"]
    assert bench(*flags) == 1
    assert bench(*flags, "--accept-noise") == 0
    refused, kept = rows("hw_train")
    assert refused["status"] == "failed"
    assert "too noisy: IQR 67% of the median 15 ms (limit 25%)" in refused["error"]
    assert "images_per_s" not in refused["metrics"]
    assert kept["metrics"]["noise"] == pytest.approx(10 / 15)


def test_help_is_of_the_mode(capsys):
    for mode, flag in (("train", "--warmup"), ("infer", "--queries")):
        with pytest.raises(SystemExit) as stop:
            hw_bench.main(["--mode", mode, "--help"])
        assert stop.value.code == 0
        assert flag in capsys.readouterr().out
