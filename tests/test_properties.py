"""Readers and parsers against whatever hypothesis thinks of."""

import io
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from statsmodels.stats.proportion import proportion_confint

from common.base.cli import UsageError, expand_grid, parse_command_line
from common.base.config import TrainConfig, TrainOptions
from common.base.log import append_line, dumps_strict, read_rows
from common.data.images import Unreadable, decoding, open_image
from common.judge.stats import wilson_interval

ROW = {"schema": 1, "kind": "flops", "git": {}, "config": {}, "env": {}, "metrics": {}}
ROW |= {"run_id": "0123456789ab", "time_utc": "2026-01-01", "status": "ok", "error": None}
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
)
FLAGS = ["--lr", "--epochs", "--opt", "--amp", "--limit", "--seed", "--preset", "--no-resume"]
FLAGS += ["smoke"]  # a preset
words = st.sampled_from(FLAGS) | st.text(max_size=8) | (st.integers() | st.floats()).map(str)
_file = io.BytesIO()
Image.effect_noise((9, 9), 50).save(_file, "PNG")
PICTURE = _file.getvalue()


@given(st.lists(st.binary(max_size=60) | json_values.map(lambda v: json.dumps(v).encode())))
def test_a_log_of_anything_gives_its_rows_and_names_the_other_lines(lines):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "log.jsonl")
        path.write_bytes(b"\n".join(lines))
        append_line(path, dumps_strict(ROW))
        rows, problems = read_rows(path)
        written = path.read_bytes().split(b"\n")
    assert rows == [ROW]  # no other line is a row
    expected = [n for n, line in enumerate(written[:-2], 1) if line.strip()]
    assert [int(p.removeprefix(f"{path}:").split(":")[0]) for p in problems] == expected


@given(st.dictionaries(st.text(), json_values))
def test_a_row_of_any_values_is_one_line_of_strict_json(metrics):
    line = dumps_strict(ROW | {"metrics": metrics})
    assert "\n" not in line
    assert json.loads(line, parse_constant=pytest.fail).keys() == ROW.keys()


@given(st.integers(0, len(PICTURE) - 1), st.binary(max_size=9))
def test_bytes_that_are_no_image_are_unreadable_and_no_other_error(place, damage):
    data = PICTURE[:place] + damage + PICTURE[place + len(damage) :]
    with decoding():
        try:
            image, _ = open_image(data, max_pixels=10_000)
        except Unreadable:
            return
    assert image.mode in ("L", "RGB")


@settings(max_examples=300)
@given(st.lists(words))
def test_any_command_line_is_configurations_or_one_line(argv):
    stopped = None
    try:
        grid, options = parse_command_line(argv, "", TrainConfig, TrainOptions)
        configs = expand_grid(TrainConfig, grid)
    except (UsageError, SystemExit) as error:
        stopped = error
    if stopped:
        assert len(str(stopped).splitlines()) == 1
        assert isinstance(stopped, UsageError) or {"-h", "--help"} & set(argv)
    else:
        assert isinstance(options, TrainOptions)
        assert all(math.isfinite(c.lr) and c.lr > 0 and c.epochs >= 1 for c in configs)


@given(st.integers(1, 10**6), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_is_statsmodels(total, share, confidence):
    correct = round(total * share)
    expected = proportion_confint(correct, total, 1 - confidence, method="wilson")
    assert np.allclose(wilson_interval(correct, total, confidence), expected, atol=1e-9)
