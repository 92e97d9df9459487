"""Flags, presets and grids, and how a script ends."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from processes import ROOT

from common.base.cli import UsageError, as_dict, expand_grid, parse_command_line, run_script
from common.base.config import Options, TrainConfig, TrainOptions
from common.train.grid import canonical, group_trajectories


def parse(text):
    grid, options = parse_command_line(text.split(), "", TrainConfig, TrainOptions)
    return expand_grid(TrainConfig, grid), options


def settings(text, *names):
    """Some settings of each configuration that these flags give."""
    return [tuple(getattr(config, name) for name in names) for config in parse(text)[0]]


def test_defaults_are_the_studys_protocol():
    [config], options = parse("--dataset fashion --opt adam")
    assert (config.model, config.lr, config.epochs, config.batch_size) == ("resnet18", 1e-3, 5, 16)
    assert (config.image_size, config.split, config.amp, config.seed) == (64, "study", True, 0)
    assert (config.limit, config.weights) == (None, None)
    assert (options.resume, options.force) == (True, False)
    assert not set(as_dict(Options())) & set(as_dict(config))


def test_q1a_is_64_configurations_in_16_trajectories_on_a_cpu_and_32_on_an_accelerator():
    configs, _ = parse("--preset q1a")
    flags = "--dataset mnist fashion --model resnet18 resnet50 --opt sgd adam --lr 1e-3 1e-4"
    assert configs == parse(f"{flags} --epochs 3 5 --pin-memory false true --data-on host")[0]
    assert len(configs) == len(set(configs)) == 64
    for device, trajectories in (("cpu", 16), ("cuda", 32)):
        there = [replace(config, device=device) for config in configs]
        assert len(group_trajectories(there)) == trajectories


def test_explicit_flag_beats_preset_beats_default_and_a_value_given_twice_counts_once():
    flags = "--preset demo --opt adamw --limit 5 5 --flip"  # a bare flag means true
    found = settings(flags, "opt", "limit", "image_size", "batch_size", "flip")
    assert found == [("adamw", 5, 32, 16, True)] * 2


def test_a_preset_may_be_made_of_parts_whose_values_a_flag_replaces_in_all():
    flags, names = (
        "--preset photos --dataset digits --seed 0",
        ("model", "weights", "freeze", "epochs"),
    )
    nets = ("resnet18", "mobilenet_v3_large")
    frozen, tuned = ([(n, "imagenet", f, e) for n in nets] for f, e in ((1, 50), (0, 15)))
    assert settings(flags, *names) == [*frozen, *tuned, ("vgg5", None, False, 60)]
    replaced = settings(f"{flags} --epochs 2 --model resnet50", *names)
    part = "resnet50", "imagenet"
    assert replaced == [(*part, True, 2), (*part, False, 2), ("resnet50", None, False, 2)]


def test_a_presets_values_may_depend_on_the_data_set():
    found = settings("--preset record --seed 0", "dataset", "epochs", "translate")
    assert found == [("mnist", 2, 1), ("fashion", 3, 0)]
    found = settings("--preset record --seed 0 --epochs 1 4", "dataset", "epochs")
    assert found == [("mnist", 1), ("mnist", 4), ("fashion", 1), ("fashion", 4)]
    with pytest.raises(UsageError, match=r"--dataset digits: .* give --translate and --epochs too"):
        parse("--preset record --dataset digits")


def test_a_trajectory_trains_its_longest_configuration():
    [trajectory] = group_trajectories(parse("--epochs 5 3 --pin-memory true false --device cpu")[0])
    assert trajectory.trained.epochs == 5
    assert [config.epochs for config in trajectory.configs] == [3, 3, 5, 5]


@pytest.mark.parametrize(
    "flags",
    [
        *("--seed 0 1", "--lr 0.001 0.1", "--opt sgd adam", "--batch-size 16 8"),
        *("--image-size 64 32", "--split-seed 0 7", "--schedule constant triangular"),
        *("--label-smoothing 0 0.1", "--translate 0 7", "--erase 0 0.5"),
        "--schedule triangular --epochs 3 5",  # no part of a longer run, as constant ones are
    ],
)
def test_whatever_changes_arithmetic_is_a_trajectory_of_its_own(flags):
    assert len(group_trajectories(parse(f"--device cpu {flags}")[0])) == 2


def test_flips_change_nothing_where_a_mirrored_image_would_be_of_no_class():
    flipped = TrainConfig(dataset="mnist", flip=True, tta=True)
    assert canonical(flipped) == TrainConfig(dataset="mnist")
    for dataset in ("fashion", "folder:photos"):
        mirrored = replace(flipped, dataset=dataset)
        assert canonical(mirrored) == mirrored


@pytest.mark.parametrize("script", ["train", "svm", "flops", "hw_bench", "report", "common.export"])
def test_help_imports_nothing_heavy(script):
    heavy = {"torch", "sklearn", "scipy", "matplotlib", "numpy", "PIL"}
    code = (
        f"import sys, {script}\n"
        f"try: {script}.main(['--help'])\n"
        "except SystemExit: pass\n"
        f"assert not {heavy} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--results-dir" in done.stdout


@pytest.mark.parametrize(
    ("raised", "status", "printed"),
    [
        (None, 0, ""),
        (UsageError("--lr: 0 is no rate"), 2, "script.py: --lr: 0 is no rate"),
        (ModuleNotFoundError("No module named 'torch'"), 2, "make setup"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_how_a_script_ends(raised, status, printed, monkeypatch, capsys):
    def main():
        if raised:
            raise raised
        return 0

    monkeypatch.setattr(sys, "argv", ["some/script.py"])
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # as it sets it itself
    with pytest.raises(SystemExit) as end:
        run_script(main)
    error = capsys.readouterr().err
    assert (end.value.code, printed in error, error.count("\n") <= 1) == (status, True, True)


@pytest.mark.parametrize("active", [True, False])
def test_the_next_command_is_said_unless_make_goes_on(active, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", os.path.abspath(".venv/bin/python"))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    if active:
        monkeypatch.setenv("VIRTUAL_ENV", os.path.abspath(".venv"))
    Options().print_next("a.py", "b c")
    python = "python" if active else ".venv/bin/python"
    assert capsys.readouterr().out == f"next: {python} a.py 'b c'\n"
    monkeypatch.setenv("BAKEOFF_NEXT", "no")
    Options().print_next("a.py")
    assert capsys.readouterr().out == ""


def test_make_alone_says_first_what_to_type_and_a_chain_once_at_its_end_what_next():
    def lines(*flags):
        make = ["make", "--no-print-directory", *flags]
        own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        done = subprocess.run(make, cwd=ROOT, env=own, capture_output=True, text=True)
        return done.stdout.splitlines()

    new, smoke, page, empty, first, *_ = lines()
    assert new.startswith("New here? Type: make demo ")
    assert (" or: make smoke " in smoke, "results/demo/report/report.html" in page) == (True,) * 2
    assert (empty, first.split()[0]) == ("", "help")
    *_, report, last, _ = demo = lines("-n", "demo")
    assert ("report.py" in report, "next: " in last) == (True, True)
    assert sum("next: " in line for line in demo) == 1
