"""What the tests share: a small training that learns nothing but takes every path."""

import importlib
import json
import os
import re
import signal
import sys

import pytest

# The work here is tiny: a second thread would only wait, and much longer on a busy machine.
os.environ["OMP_NUM_THREADS"] = "1"

TINY = ["--dataset", "digits", "--limit", "48", "--image-size", "32"]

# A shell that starts the tests in the background has them ignore Ctrl-C, and all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu and not importlib.import_module("torch").accelerator.is_available():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="no accelerator here"))


@pytest.fixture(autouse=True)
def process_as_before():
    """What a test does to torch's threads ends with it, and nothing changes what the processes
    inherit that a later test starts: other threads give other bits."""
    before = dict(os.environ)
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    left = {k: v for k, v in os.environ.items() if before.get(k) != v}
    left = {
        k: v for k, v in left.items() if not re.match("PYTEST_|_?TORCHINDUCTOR_|TRITON_|KMP_", k)
    }
    assert not left, f"left in the environment: {left}"


@pytest.fixture
def tiny(tmp_path):
    """Flags of a training that takes about a second, writing under tmp_path/results."""
    return [*TINY, "--results-dir", str(tmp_path / "results")]


@pytest.fixture
def bench(tmp_path):
    """A function: hw_bench with some flags, writing under tmp_path/results."""
    import hw_bench

    return lambda *flags: hw_bench.main([*flags, "--results-dir", str(tmp_path / "results")])


@pytest.fixture
def rows(tmp_path):
    """A function: the log's rows of one kind."""

    def read(kind, folder="results"):
        lines = (tmp_path / folder / "log.jsonl").read_text().splitlines()
        return [row for row in map(json.loads, lines) if row["kind"] == kind]

    return read


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The report of a log that has everything."""
    from tests.test_report import LogBuilder, add_digits, fill

    folder = tmp_path_factory.mktemp("whole") / "results"
    return fill(add_digits(LogBuilder(folder))).report()


@pytest.fixture
def small_peaks(monkeypatch):
    """A device's peaks are of work that takes no time."""
    from common.speed import peaks

    small = {"MATRIX_SIDE": {"cpu": 64}, "CONVOLUTION": (2, 16, 6), "COPY_BYTES": 2**16}
    for name, value in (small | {"SECONDS": 0}).items():
        monkeypatch.setattr(peaks, name, value)
    peaks.measure_peaks.cache_clear()
    yield
    peaks.measure_peaks.cache_clear()
