"""Every process that is timed is prepared like the one it is compared with, the baseline too.

Each is watched from within by a hook of the test's own: at its end it says whether glibc keeps what
is freed (a large block that is not mapped afresh), and how many threads torch has.
"""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str((ROOT := Path(__file__).parent.parent) / "benchmarks"))

import notebook
import record

import train
from common.base.config import TrainConfig

HOOK = """
import atexit, ctypes, os, sys

class Mallinfo(ctypes.Structure):
    _fields_ = [("counts", ctypes.c_size_t * 10)]  # the fourth: blocks that are mapped

def look():
    torch = sys.modules.get("torch")
    if torch:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallinfo2.restype = Mallinfo
        before = libc.mallinfo2().counts[3]
        block = torch.empty(2**26, dtype=torch.uint8)
        kept = libc.mallinfo2().counts[3] == before
        with open(os.path.join(os.environ["LOOKED"], str(os.getpid())), "w") as file:
            file.write(f"{int(kept)} {torch.get_num_threads()}")

atexit.register(look)
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="nothing is to be kept")


@pytest.fixture
def looked(tmp_path, monkeypatch):
    """A function: what the processes that have ended since then say, as (kept, threads)."""
    for name in ("hook", "looked"):
        (tmp_path / name).mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    monkeypatch.setenv("LOOKED", str(tmp_path / "looked"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'hook'}:{ROOT}")
    files = (tmp_path / "looked").iterdir
    return lambda: sorted(tuple(map(int, file.read_text().split())) for file in files())


def run(script, *flags):
    done = subprocess.run([sys.executable, script, *flags], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_hw_bench_trains_in_a_prepared_process_as_the_hook_can_tell(looked, tmp_path, rows):
    run("-c", "import torch")
    assert looked() == [(0, 1)]
    flags = "--dataset digits --model vgg5 --image-size 16 --steps 2 --compile false"
    flags += " --loop notebook ours --accept-noise --results-dir"
    run("hw_bench.py", *flags.split(), tmp_path / "results")
    assert looked() == [(0, 1), (1, 1)]
    assert {row["metrics"]["freed_memory_kept"] for row in rows("hw_train")} == {True}


def test_all_that_trains_beside_others_or_answers_is_prepared_too(looked, tiny, tmp_path, rows):
    """Processes of a grid, the one that shares the work out, each engine, and the peaks."""
    flags = [*tiny, "--model", "vgg5", "--epochs", "1", "--device", "cpu", "--seed", "0", "1"]
    run("train.py", *flags, "--jobs", "2", "--threads", "1")
    assert set(looked()) == {(1, 1)}
    assert (before := len(looked())) >= 2
    train.main([*flags[:-1], "--export", "onnx"])
    flags = "--mode infer --engine eager onnxruntime --quick --seconds 0.01 --batch-size 4"
    flags += " --threads 2 --accept-noise --results-dir"
    run("hw_bench.py", *flags.split(), tmp_path / "results")
    assert looked()[before:] == [(1, 2)] * 3
    assert {row["metrics"]["freed_memory_kept"] for row in rows("hw_infer")} == {True}


@pytest.mark.parametrize("name", ["notebook fp32", "notebook bf16", "ours", "peak", "record"])
def test_the_notebook_loop_and_a_seed_of_the_record_are_prepared_as_ours(name, looked, monkeypatch):
    config = TrainConfig(dataset="digits", model="vgg5", image_size=16, device="cpu", epochs=1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(notebook, "WARMUP_STEPS", 1)
    if name == "record":
        assert record.run_apart(config, "data")[0] > 0
    else:
        blocks = notebook.time_blocks({name: [2]}, 1, 0.0, config, "data")
        assert next(blocks)[name][0] > 0
        blocks.close()
    assert looked() == [(1, 2)]
