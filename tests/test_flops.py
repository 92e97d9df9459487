"""flops.py: the printed tables, one row a convention in the log, skipping, and failures."""

import json

import pytest

import flops
from common.base.cli import UsageError
from common.cost import CONVENTIONS


@pytest.fixture
def where(tmp_path):
    return ["--results-dir", str(tmp_path / "results")]


def table_of(text):  # {(model, image size, convention): GMACs} of the totals printed
    lines = [line.split() for line in text.splitlines()]
    return {(c[0], c[1], c[3]): c[4] for c in lines if len(c) == 10 and c[3] in CONVENTIONS}


def test_the_studys_command(where, capsys):
    argv = ["--model", "resnet18", "resnet50", "--image-size", "224", *where]
    assert flops.main(argv) == 0
    printed = capsys.readouterr().out
    works = [(model, "224", c) for model in ("resnet18", "resnet50") for c in CONVENTIONS]
    figures = ["1.8235", "1.8136", "1.8136", "4.1317", "4.0872", "4.0872"]
    assert table_of(printed) == dict(zip(works, figures, strict=True))
    assert "layer4.1.conv2" not in printed
    assert printed.endswith(f"python report.py --results-dir {where[-1]}\n")


def test_one_row_a_convention_and_again_only_what_is_forced_or_was_said_otherwise(
    where, rows, capsys, tmp_path
):
    argv = ["--image-size", "32", "--classes", "7", *where]
    assert flops.main(argv) == 0
    written, printed = rows("flops"), capsys.readouterr().out
    settings = {"model": "resnet18", "image_size": 32, "classes": 7}
    assert [row["config"] for row in written] == [settings | {"convention": c} for c in CONVENTIONS]
    assert len({row["run_id"] for row in written}) == 3
    params = 11_689_512 - 993 * 513  # torchvision's, less 993 classes
    thop, conv_linear, torch = (row["metrics"] for row in written)
    for m in (thop, conv_linear, torch):
        assert (m["input_shape"], m["flops"]) == ([1, 3, 32, 32], 2 * m["macs"])
        assert (m["params"], m["weight_bytes"]) == (params, 4 * params)
    assert thop["macs"] > conv_linear["macs"] == torch["macs"]
    # The first convolution, 64x16x16 outputs of 3x7x7, needs no gradient of its input.
    first = 64 * 16 * 16 * 3 * 7 * 7
    assert torch["train_step_flops"] == 3 * torch["flops"] - 2 * first
    # A single configuration is shown by layer.
    shown = {cells[0]: cells[1:] for line in printed.splitlines() if (cells := line.split())}
    conv = f"{first:,}"
    assert shown["conv1"] == ["Conv2d", "1x64x16x16", conv, conv, conv, "9,408", "16,384"]
    assert shown["bn1"] == ["BatchNorm2d", "1x64x16x16", "65,536", "0", "0", "128", "0"]
    assert flops.main(argv) == 0
    assert (capsys.readouterr().out, rows("flops")) == (printed, written)
    wrong = written[1] | {"metrics": conv_linear | {"macs": conv_linear["macs"] + 1}}
    lines = "".join(json.dumps(row) + "\n" for row in (written[0], wrong, written[2]))
    (tmp_path / "results/log.jsonl").write_text(lines)
    flops.main(argv)
    assert [row["metrics"] for row in rows("flops")[3:]] == [conv_linear]
    flops.main([*argv, "--force"])
    assert len(rows("flops")) == 7


def test_a_failed_count_is_logged_and_the_rest_finish(where, rows, capsys):
    assert flops.main(["--image-size", str(10**9), "32", *where]) == 1
    captured = capsys.readouterr()
    assert "resnet18 at 1000000000, thop: failed, RuntimeError: " in captured.err
    assert set(table_of(captured.out)) == {("resnet18", "32", name) for name in CONVENTIONS}
    written = rows("flops")
    assert [row["status"] for row in written] == ["failed"] * 3 + ["ok"] * 3
    assert flops.main(["--image-size", str(10**9), *where]) == 1
    assert capsys.readouterr().out == ""  # no table of nothing


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--model resnet1", "--model: unknown value 'resnet1'; did you mean 'resnet18'?"),
        ("--image-size 0", "--image-size: 0 must be at least 1"),
        ("--preset stud", "--preset: unknown value 'stud'; did you mean 'study'?"),
    ],
)
def test_bad_usage_before_any_work(argv, message, where, tmp_path):
    with pytest.raises(UsageError) as error:
        flops.main([*argv.split(), *where])
    assert str(error.value) == message
    assert not (tmp_path / "results").exists()
