"""Flags, presets and grids, and how a script ends."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from processes import ROOT

from common.base.cli import (
    UsageError,
    as_dict,
    expand_grid,
    parse_command_line,
    print_next,
    run_script,
)
from common.base.config import TRAIN_PRESETS, Options, TrainConfig, TrainOptions
from common.train.grid import canonical, group_trajectories


def parse(text):
    grid, options = parse_command_line(text.split(), "", TrainConfig, TrainOptions, TRAIN_PRESETS)
    return expand_grid(TrainConfig, grid), options


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
    configs, _ = parse("--preset demo --opt adamw --limit 5 5 --flip")
    settings = {(c.opt, c.limit, c.image_size, c.batch_size, c.flip) for c in configs}
    assert settings == {("adamw", 5, 32, 16, True)}  # a bare flag means true
    assert len(configs) == 2


def test_a_preset_may_be_made_of_parts_whose_values_a_flag_replaces_in_all():
    configs, _ = parse("--preset photos --dataset digits")
    kinds = [(c.model, c.weights, c.freeze, c.epochs, c.opt) for c in configs]
    nets = ("resnet18", "mobilenet_v3_large")
    frozen, tuned = ([(n, "imagenet", f, e, "adamw") for n in nets] for f, e in ((1, 50), (0, 15)))
    assert kinds == [*frozen, *tuned, ("vgg5", None, False, 60, "adamw")]
    configs, _ = parse("--preset photos --dataset digits --epochs 2 --model resnet50")
    assert [(c.model, c.epochs, c.freeze) for c in configs if c.weights] == [
        ("resnet50", 2, True),
        ("resnet50", 2, False),
    ]


def test_a_presets_values_may_depend_on_the_data_set():
    configs, _ = parse("--preset record --seed 0")
    of = [(c.dataset, c.epochs, c.translate) for c in configs]
    assert of == [("mnist", 2, 1), ("fashion", 3, 0)]
    explicit, _ = parse("--preset record --seed 0 --epochs 1 4")
    of = [(c.dataset, c.epochs) for c in explicit]
    assert of == [("mnist", 1), ("mnist", 4), ("fashion", 1), ("fashion", 4)]
    with pytest.raises(UsageError, match=r"--dataset digits: .* give --translate and --epochs too"):
        parse("--preset record --dataset digits")


def test_a_trajectory_trains_its_longest_configuration():
    configs, _ = parse("--epochs 5 3 --pin-memory true false --device cpu")
    [trajectory] = group_trajectories(configs)
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
    assert end.value.code == status
    error = capsys.readouterr().err
    assert printed in error
    assert error.count("\n") <= 1


@pytest.mark.parametrize("active", [True, False])
def test_the_next_command_is_said_unless_make_goes_on(active, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", os.path.abspath(".venv/bin/python"))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    if active:
        monkeypatch.setenv("VIRTUAL_ENV", os.path.abspath(".venv"))
    print_next("a.py", "b c")
    python = "python" if active else ".venv/bin/python"
    assert capsys.readouterr().out == f"next: {python} a.py 'b c'\n"
    monkeypatch.setenv("BAKEOFF_NEXT", "no")
    print_next("a.py")
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
    demo = lines("-n", "demo")
    assert sum("next: " in line for line in demo) == 1
    assert "next: " in demo[-2]
    assert "report.py" in demo[-3]
