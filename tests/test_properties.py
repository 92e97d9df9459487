"""Readers and parsers against whatever hypothesis thinks of."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from common.base.cli import UsageError
from common.base.config import TrainConfig, TrainOptions, expand_grid, parse_command_line
from common.base.log import append_line, dumps_strict, read_rows
from common.data.datasets import IDX_TYPES, parse_idx
from common.judge.stats import wilson_interval

ROW = {
    "schema": 1, "kind": "flops", "run_id": "0123456789ab", "time_utc": "2026-01-01T00:00:00+00:00",
    "git": {"commit": None, "dirty": None}, "status": "ok", "error": None, "config": {}, "env": {},
    "metrics": {},
}  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10,
)  # fmt: skip


@given(st.lists(st.binary(max_size=60) | json_values.map(lambda v: json.dumps(v).encode())))
def test_a_log_of_anything_gives_its_rows_and_names_the_other_lines(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    path.write_bytes(b"\n".join(lines))
    append_line(path, dumps_strict(ROW))
    rows, problems = read_rows(path)
    assert rows == [ROW]  # no other line is a row
    written = path.read_bytes().split(b"\n")
    expected = [n for n, line in enumerate(written[:-2], 1) if line.strip()]
    assert [int(p.removeprefix(f"{path}:").split(":")[0]) for p in problems] == expected


@given(st.dictionaries(st.text(), json_values))
def test_a_row_of_any_values_is_one_line_of_strict_json(metrics):
    line = dumps_strict(ROW | {"metrics": metrics})
    assert "\n" not in line
    assert json.loads(line, parse_constant=lambda name: 1 / 0).keys() == ROW.keys()


@given(st.binary(max_size=200))
def test_bytes_that_are_no_idx_are_a_value_error(data):
    try:
        array = parse_idx(data)
    except ValueError:
        return
    assert len(data) == 4 + 4 * array.ndim + array.nbytes


@given(st.sampled_from(sorted(IDX_TYPES)), st.lists(st.integers(0, 5), min_size=1, max_size=4),
       st.randoms(use_true_random=False), st.integers(-3, 3))  # fmt: skip
def test_idx_round_trips_and_any_other_length_is_refused(code, shape, random, change):
    dtype = np.dtype(IDX_TYPES[code])
    content = random.randbytes(math.prod(shape) * dtype.itemsize)
    data = bytes([0, 0, code, len(shape)]) + np.array(shape, ">u4").tobytes() + content
    array = parse_idx(data)
    assert (array.shape, array.dtype, array.tobytes()) == (tuple(shape), dtype, content)
    if change:
        with pytest.raises(ValueError):  # noqa: PT011
            parse_idx(data + b"\0" * change if change > 0 else data[:change])


flags = st.sampled_from(
    [
        "--lr",
        "--epochs",
        "--opt",
        "--amp",
        "--limit",
        "--weights",
        "--seed",
        "--preset",
        "--no-resume",
    ]
)


@settings(max_examples=300)
@given(st.lists(flags | st.text(max_size=8) | st.integers().map(str) | st.floats().map(str)))
def test_any_command_line_is_configurations_or_one_line(argv):
    try:
        grid, options = parse_command_line(
            argv, "", TrainConfig, TrainOptions, {"a": {"lr": [1.0]}}
        )
        configs = expand_grid(TrainConfig, grid)
    except (UsageError, SystemExit) as error:
        stopped = error
    else:
        stopped = None
    if stopped:
        assert len(str(stopped).splitlines()) == 1
        assert isinstance(stopped, UsageError) or {"-h", "--help"} & set(argv)
        return
    assert isinstance(options, TrainOptions)
    assert all(math.isfinite(c.lr) and c.lr > 0 and c.epochs >= 1 for c in configs)


@given(st.integers(1, 10**6), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_is_statsmodels(total, share, confidence):
    correct = round(total * share)
    expected = proportion_confint(correct, total, 1 - confidence, method="wilson")
    assert np.allclose(wilson_interval(correct, total, confidence), expected, atol=1e-9)
