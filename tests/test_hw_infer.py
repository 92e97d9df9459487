"""hw_bench.py --mode infer: every engine behind the gate, and what a row holds."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

import hw_bench
from common.base import config
from common.base.cli import UsageError, as_dict, first_line
from common.base.config import ENGINE_NAMES, TrainConfig
from common.base.log import Log, run_id
from common.cost import count_costs
from common.deploy import export
from common.deploy.runtimes import ENGINES, load_engine
from common.models import build_model
from common.speed import inference as hw_infer
from common.speed import peaks as roofline
from common.train.checkpoint import save_checkpoint
from common.train.run import Run

ROOT = Path(__file__).parent.parent
INFER = ["--mode", "infer", "--preset", "smoke", "--data-dir", "data", "--seconds", "0.01"]
INFER += ["--engine", "eager", "torchscript", "onnxruntime", "onnxruntime-int8"]
FORMATS = ("torchscript", "onnx", "onnx-int8")
SMOKE = INFER[-4:]


class LocalWorker:
    """An engine's server in this process: what its own process is tested for is tested below."""

    def __init__(self, task):
        self.task = task
        self.server = self._do(hw_infer.Server, task)

    def call(self, method, *arguments):
        return self._do(getattr(self.server, method), *arguments)

    def close(self):
        pass

    def _do(self, function, *arguments):
        try:
            return function(*arguments)
        except Exception as error:
            raise RuntimeError(first_line(error)) from None


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(hw_infer, "SETTLE_S", 0)
    monkeypatch.setattr(hw_infer, "Worker", LocalWorker)
    monkeypatch.setattr(roofline, "MATRIX_SIDE", {"cpu": 64})
    monkeypatch.setattr(roofline, "CONVOLUTION", (1, 4, 4))
    monkeypatch.setattr(roofline, "COPY_BYTES", 2**16)
    monkeypatch.setattr(roofline, "SECONDS", 0)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def bench(tmp_path):
    """A function: hw_bench with some flags, writing under tmp_path/results."""
    return lambda *flags: hw_bench.main([*flags, "--results-dir", str(tmp_path / "results")])


def add_run(log, lr, val_acc, formats=FORMATS):
    """A trained and exported run. Returns: its row."""
    config = TrainConfig(dataset="digits", model="vgg5", image_size=16, device="cpu", lr=lr)
    run = Run(config, "data")
    for _ in range(3):
        run.train_one_epoch()
    name = run_id("train", as_dict(config))
    save_checkpoint(log.folder / f"{name}.pt", run.weights())
    metrics = {"checkpoint": f"{name}.pt", "val_acc": val_acc, "train_ms": 1.0}
    row = log.append("train", as_dict(config), metrics)
    for format in formats:
        done = export.export_run(log, row, format, "data")
        assert done["status"] == "ok", done["error"]
    return row


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A results folder with two exported runs, of which the second has the higher val_acc."""
    log = Log(tmp_path_factory.mktemp("exported"))
    return log.folder, [add_run(log, 0.05, 0.7), add_run(log, 0.02, 0.8)]


@pytest.fixture
def runs(exported, tmp_path):
    """The train rows of two exported runs, in a results folder of the test's own."""
    shutil.copytree(exported[0], tmp_path / "results")
    return exported[1]


def exported_file(rows, run, format):
    [found] = [
        row["metrics"]["file"]
        for row in rows("export")
        if row["metrics"]["train_run_id"] == run["run_id"] and row["config"]["format"] == format
    ]
    return found


def test_every_engine_has_a_name_on_the_command_line_and_a_file_to_read():
    assert tuple(ENGINES) == ENGINE_NAMES
    assert {e.reads for e in ENGINES.values()} == {"checkpoint", *export.SUFFIXES}


def test_every_engine_of_the_best_run_is_checked_and_timed(bench, runs, rows, capsys):
    assert bench(*INFER) == 0
    found = rows("hw_infer")
    pairs = [(r["config"]["scenario"], r["config"]["engine"]) for r in found]
    assert pairs == [(s, e) for s in ("single", "offline") for e in SMOKE]
    run = Run(TrainConfig(**runs[1]["config"]), "data")
    for _ in range(3):
        run.train_one_epoch()
    for row in found:
        config, m = row["config"], row["metrics"]
        assert row["run_id"] == run_id("hw_infer", config)
        assert config["train_run_id"] == runs[1]["run_id"]  # the higher val_acc
        assert config["batch_size"] == m["batch_size"] == (16 if m["scenario"] == "offline" else 1)
        assert (config["threads"], m["quick"]) == (1, True)
        assert (m["dataset"], m["model"]) == ("digits", "vgg5")
        right = run.test(run.split.test)[1]
        assert m["test_acc"] == pytest.approx(right, abs=0.003 if "int8" in m["engine"] else 0)
        assert m["parity"]["images"] == 361
        assert m["flips"] == m["parity"]["flips"] <= (5 if "int8" in m["engine"] else 0)
        assert m["parity"]["mcnemar_p"] > 0.05
        latency = m["latency_ms"]
        assert latency["n"] >= 20
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
        assert 0 < m["images_per_s"] < 1e3 * m["batch_size"] * latency["n"] / latency["p50"]
        assert m["cold_start_ms"] > 0
        low, high = m["speedup_interval"]
        [eager] = [r for r in found if r["config"] == config | {"engine": "eager"}]
        assert m["baseline"] == eager["run_id"]
        images = "1 image" if m["scenario"] == "single" else "16 images"
        assert m["baseline_label"] == f"eager, {images}, 1 thread"
        assert m["rounds"]["group"] == eager["metrics"]["rounds"]["group"]
        assert low <= m["speedup_vs_eager"] <= high
        if m["engine"] == "eager":
            assert m["speedup_vs_eager"] == low == high == 1
    assert "onnxruntime" in capsys.readouterr().out
    bench(*INFER)
    assert len(rows("hw_infer")) == 8
    assert {row["config"]["launches"] for row in found} == {1}  # quick
    versions = {row["metrics"]["engine"]: row["metrics"]["versions"] for row in found}
    assert versions["eager"] == {"torch": torch.__version__}
    assert versions["onnxruntime"] == {"onnxruntime": onnxruntime.__version__}


def test_a_file_that_was_made_again_is_measured_again(bench, runs, rows, tmp_path):
    flags = [*INFER[:2], *INFER[6:8], "--threads", "1", "--queries", "10", "--accept-noise"]
    flags += ["--engine", "onnxruntime", "--scenario", "single", "--launches", "1"]
    for made_again in (False, False, True):
        if made_again:
            file = tmp_path / "results" / exported_file(rows, runs[1], "onnx")
            model = onnx.load(file)
            model.doc_string = "made again"
            onnx.save(model, file)
        assert bench(*flags) == 0
    first, second = rows("hw_infer")
    assert first["run_id"] == second["run_id"]
    assert first["metrics"]["sha256"] != second["metrics"]["sha256"]


@pytest.mark.parametrize(("accepted", "known"), [(False, False), (True, True)])
def test_a_speed_up_over_an_eager_that_is_refused_is_none(accepted, known):
    settings = config.HwInferConfig(
        train_run_id="run", engine="onnxruntime", scenario="single", batch_size=1, threads=1,
        accept_noise=accepted, launches=3,
    )  # fmt: skip
    timed = {
        "eager": hw_infer.Timings([[1.0, 5.0, 9.0]] * 3),
        "onnxruntime": hw_infer.Timings([[1.0, 1.0, 1.0], [1.0, 1.01, 1.02], [1.0, 1.0, 1.01]]),
    }
    trained = {"model": "vgg5", "image_size": 28}
    found, refused = hw_infer.rate(trained, settings, timed, 10)
    assert refused is None
    assert (found["speedup_vs_eager"] is not None) == known
    assert found["mfu"] == pytest.approx(
        count_costs(build_model("vgg5", 10), (1, 3, 28, 28), "conv_linear").flops
        * found["images_per_s"] / found["peak_flops_per_s"]
    )  # fmt: skip


def test_only_the_count_of_threads_that_is_missing_is_measured(bench, runs, rows):
    flags = [*INFER[:2], *INFER[6:8], "--queries", "10", "--accept-noise", "--launches", "1"]
    flags += ["--engine", "onnxruntime", "--scenario", "single"]
    assert bench(*flags, "--threads", "1") == 0
    assert bench(*flags, "--threads", "1", "2") == 0
    assert [row["config"]["threads"] for row in rows("hw_infer")] == [1, 2]


def server_of(threads=1):
    server = hw_infer.Server.__new__(hw_infer.Server)
    server.test = torch.arange(100, 110)
    server.seen = []
    server.precision = "fp32"
    server.answers = torch.eye(10)
    server.load_pixels = lambda index: index
    server.engine = lambda index: (
        server.seen.append(tuple(index.tolist())) or torch.eye(10)[index - 100]
    )
    return server


@pytest.mark.parametrize("batch_size", [1, 4, 25])
def test_queries_are_put_in_turn_to_images_that_differ(batch_size):
    server = server_of()
    latencies_ms, peak = server.time(batch_size, 0, 6, 0)
    timed = server.seen[1:]  # the first wakes the threads
    assert len(latencies_ms) == len(timed) == 6
    flat = [image for query in timed for image in query]
    assert flat == [100 + i % 10 for i in range(6 * batch_size)]
    server.time(batch_size, 6, 1, 0)
    assert server.seen[-1][0] == 100 + 6 * batch_size % 10  # it goes on where it was
    assert peak > 10e6


@pytest.mark.parametrize(("precision", "tolerated"), [("fp32", 1e-4), ("int8", 0.1)])
def test_a_batch_size_that_is_answered_otherwise_than_the_test_split_is_not_timed(
    precision, tolerated
):
    """Engines compile, or choose kernels, by the size of a batch."""
    server = server_of()
    server.precision, right = precision, server.engine
    server.engine = lambda index: right(index) + tolerated * torch.eye(10)[0]
    assert len(server.time(4, 0, 3, 0)[0]) == 3
    server.engine = lambda index: right(index) if len(index) == 1 else right(index).roll(1, 1)
    assert len(server.time(1, 0, 3, 0)[0]) == 3
    with pytest.raises(RuntimeError, match="in batches of 4 it answers otherwise"):
        server.time(4, 0, 3, 0)


def test_torch_compile_is_never_quietly_eager(tmp_path):
    """One graph for each size of a batch, and an error where torch would give up."""
    run = Run(TrainConfig(dataset="digits", model="vgg5", image_size=16, device="cpu"), "data")
    save_checkpoint(tmp_path / "run.pt", run.weights())
    config = torch._dynamo.config
    torch._dynamo.reset()
    with config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False):  # and back, after it
        engine = load_engine("compile", tmp_path / "run.pt", 1)
        assert config.recompile_limit > 16
        engine(torch.zeros(1, 1, 16, 16))
        with config.patch(recompile_limit=1), pytest.raises(Exception, match="limit"):
            engine(torch.zeros(2, 1, 16, 16))


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_runs_without_gradients_and_with_its_threads(name, monkeypatch, tmp_path):
    seen = ENGINES[name].__class__("checkpoint", lambda file, threads: lambda pixels: (
        torch.is_inference_mode_enabled(), torch.get_num_threads(), threads
    ))  # fmt: skip
    monkeypatch.setitem(ENGINES, name, seen)
    assert load_engine(name, tmp_path, 2)(torch.zeros(1)) == (True, 2, 2)


@pytest.mark.parametrize("name", ["eager", "onnxruntime", "openvino"])
def test_no_engine_pins_its_threads_where_the_others_do_not(name, exported):
    if not Path("/proc/self/task").exists():
        pytest.skip("this kernel does not say where a thread may run")
    pytest.importorskip(name if ENGINES[name].packages else "torch")
    folder, runs = exported
    reads = ENGINES[name].reads
    file = (
        f"{runs[0]['run_id']}.pt" if reads == "checkpoint" else f"exports/{runs[0]['run_id']}.onnx"
    )
    engine = load_engine(name, folder / file, 2)
    engine(torch.rand(16, 1, 16, 16))
    lines = [file.read_text().splitlines() for file in Path("/proc/self/task").glob("*/status")]
    assert len({next(ln for ln in part if ln.startswith("Cpus_allowed:")) for part in lines}) == 1


def test_a_query_is_made_without_the_threads_that_an_engine_may_find_awake():
    server = server_of()
    torch.set_num_threads(2)
    threads = {"load": set(), "answer": set()}
    load, answer = server.load_pixels, server.engine
    server.load_pixels = lambda i: threads["load"].add(torch.get_num_threads()) or load(i)
    server.engine = lambda i: threads["answer"].add(torch.get_num_threads()) or answer(i)
    server.time(4, 0, 3, 0)
    assert threads == {"load": {1}, "answer": {2}}


def test_a_cold_start_imports_nothing(tmp_path):
    """In a process of its own, for here other tests have imported it."""
    run = Run(TrainConfig(dataset="digits", model="resnet18", image_size=32, device="cpu"), "data")
    save_checkpoint(tmp_path / "run.pt", run.weights())
    code = """if True:
        import sys
        from pathlib import Path
        from common.speed import inference as hw_infer
        def watched(engine, *args):
            before.update(sys.modules)
            return load(engine, *args) if engine == "eager" else lambda pixels: None
        load, before = hw_infer.load_engine, {}
        hw_infer.load_engine = watched
        task = hw_infer.Task("eager", Path(sys.argv[1]), 1, "digits", "study", 0, 32, "data")
        hw_infer.Server(task)
        late = sys.modules.keys() - before.keys()
        assert len(late) < 10, late  # a few modules of a package that was there
        hw_infer.Server(hw_infer.replace(task, engine="aotinductor"))
        assert "torch._inductor.package" in before
        hw_infer.Server(hw_infer.replace(task, engine="compile"))
        assert "torch._dynamo" in before
    """
    command = [sys.executable, "-c", code, tmp_path / "run.pt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_turn_lasts_until_there_were_enough_queries_and_seconds(monkeypatch):
    clock = itertools.count(step=1.0)  # each query takes a millisecond
    monkeypatch.setattr(hw_infer, "now_ms", lambda device: next(clock))
    assert len(server_of().time(1, 0, 3, 0.010)[0]) == 10
    assert len(server_of().time(1, 0, 30, 0.010)[0]) == 30


class Recorded:
    def __init__(self, name, turns):
        self.name, self.turns = name, turns

    def call(self, method, batch_size, first, queries, seconds):
        self.turns.append((self.name, first))
        return [1.0, 1.0], 7


def test_engines_take_turns_from_alternating_ends_and_a_refused_one_has_none():
    turns = []
    sides = {n: hw_infer.Side(worker=Recorded(n, turns)) for n in "abc"}
    sides["c"].error = "refused"
    timed = {}
    hw_infer.time_engines(sides, timed, 1, 20, 1.0)
    assert "".join(name for name, _ in turns) == "abba" * (hw_infer.ROUNDS // 2)
    assert [first for name, first in turns if name == "a"] == list(range(0, 20, 2))
    assert {name: len(found.latencies_ms) for name, found in timed.items()} == {"a": 20, "b": 20}


def test_every_launch_is_answered_by_fresh_engines_and_adds_to_the_timings(
    bench, runs, rows, monkeypatch
):
    opened = []

    def open_engines(tasks, labels, before):
        sides = original(tasks, labels, before)
        opened.append({name: side.worker for name, side in sides.items()})
        return sides

    original = hw_infer.open_engines
    monkeypatch.setattr(hw_infer, "open_engines", open_engines)
    flags = ["--engine", "eager", "onnxruntime", "--scenario", "single", "--launches", "2"]
    flags += ["--threads", "1", "--queries", "40", "--seconds", "0.01", "--accept-noise"]
    assert bench("--mode", "infer", *flags) == 0
    first, second = opened
    assert first.keys() == second.keys() == {"eager", "onnxruntime"}
    assert not {id(w) for w in first.values()} & {id(w) for w in second.values()}
    for row in rows("hw_infer"):
        assert row["config"]["launches"] == 2
        assert row["metrics"]["latency_ms"]["n"] >= 40


def test_an_engine_that_answers_otherwise_in_one_launch_is_not_started_in_the_next(
    bench, runs, rows, monkeypatch
):
    measured = iter([None, "classes differ", None])  # eager and another; then eager alone
    parity = {"flips": 0}

    def measure_parity(logits, *args):
        return parity, next(measured) if len(logits) == 361 else None  # else: of a single query

    monkeypatch.setattr(hw_infer, "measure_parity", measure_parity)
    flags = ["--engine", "eager", "onnxruntime", "--scenario", "single", "--launches", "2"]
    flags += ["--threads", "1", "--queries", "20", "--seconds", "0.01", "--accept-noise"]
    assert bench("--mode", "infer", *flags) == 1
    eager, other = rows("hw_infer")
    assert (eager["status"], other["status"]) == ("ok", "failed")
    assert other["error"] == "classes differ"
    assert other["metrics"]["latency_ms"] is other["metrics"]["speedup_vs_eager"] is None


def test_one_engine_of_one_run_may_be_asked_for(bench, runs, rows):
    flags = ["--train-run-id", runs[0]["run_id"], "--engine", "onnxruntime", "--scenario", "single"]
    assert bench(*INFER, *flags) == 0
    [row] = rows("hw_infer")
    assert row["config"]["train_run_id"] == runs[0]["run_id"]
    assert row["metrics"]["speedup_vs_eager"] is None  # nothing to compare with was timed
    assert row["metrics"]["baseline"] is row["metrics"]["baseline_label"] is None
    assert row["metrics"]["flips"] == 0


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_answers_otherwise_gets_no_speed(format, bench, runs, rows, tmp_path):
    file = tmp_path / "results" / exported_file(rows, runs[1], format)
    untrained = add_run(Log(tmp_path / "other"), 1e-9, 0.1, formats=[format])
    [other] = (tmp_path / "other" / "exports").iterdir()
    assert untrained["run_id"] in other.name
    shutil.copy(other, file)
    assert bench(*INFER, "--scenario", "single") == 1
    found = {row["config"]["engine"]: row for row in rows("hw_infer")}
    row = found.pop(export.ENGINE_OF[format])
    assert row["status"] == "failed"
    assert ("accuracy falls by" if "int8" in format else "classes differ") in row["error"]
    m = row["metrics"]
    assert m["flips"] > 0
    assert m["latency_ms"] is m["images_per_s"] is m["speedup_vs_eager"] is None
    assert {r["status"] for r in found.values()} == {"ok"}


def test_a_damaged_file_costs_its_own_rows(bench, runs, rows, tmp_path):
    file = tmp_path / "results" / exported_file(rows, runs[1], "onnx")
    file.write_bytes(file.read_bytes()[:1000])
    assert bench(*INFER) == 1
    failed = {r["config"]["engine"] for r in rows("hw_infer") if r["status"] == "failed"}
    assert failed == {"onnxruntime"}


def test_a_noisy_clock_is_flagged_then_refused_unless_accepted(bench, runs, rows, monkeypatch):
    """Latencies of 10 ms, and every other one slower by so much."""
    calls = itertools.count()

    def use_clock(slower_ms):
        steps = itertools.cycle([0.0, 10.0, 0.0, 10.0 + slower_ms])
        clock = itertools.accumulate(steps)
        monkeypatch.setattr(hw_infer, "now_ms", lambda device: next(clock))
        more_queries = next(calls)  # another configuration each time
        flags = ["--engine", "eager", "--scenario", "single", "--queries", str(50 + more_queries)]
        return lambda *more: bench(*INFER[:2], "--threads", "1", "--seconds", "0.01", *flags, *more)

    assert use_clock(0.5)() == 0
    assert use_clock(2)() == 0
    noisy = use_clock(10)
    assert noisy() == 1
    assert noisy("--accept-noise") == 0
    quiet, flagged, refused, kept = rows("hw_infer")
    assert quiet["metrics"]["noise"] < config.NOISY < flagged["metrics"]["noise"]
    assert refused["error"].startswith("too noisy: IQR 67%")
    assert refused["metrics"]["latency_ms"] is None
    assert not {"mfu", "speedup_interval", "energy_per_image_j"} & refused["metrics"].keys()
    assert kept["metrics"]["noise"] == pytest.approx(10 / 15)


def test_what_is_not_exported_is_named(bench, runs, rows, tmp_path, capsys):
    (tmp_path / "results" / exported_file(rows, runs[1], "onnx")).unlink()
    hint = f"no export for onnxruntime: python -m common.export {runs[1]['run_id']} --format onnx"
    flags = ["--train-run-id", runs[1]["run_id"], "--engine", "onnxruntime"]
    with pytest.raises(UsageError, match=hint):
        bench(*INFER, *flags)
    with pytest.raises(UsageError, match="nosuchrun is no finished run"):
        bench(*INFER, "--train-run-id", "nosuchrun")
    every = ["--quick", "--seconds", "0.1", "--scenario", "single", "--threads", "1"]
    assert bench(*INFER[:2], *every, "--accept-noise") == 0
    out = capsys.readouterr().out
    assert f"onnxruntime: not measured, {runs[1]['run_id']} has {hint}" in out
    assert "aotinductor: not measured" in out
    (tmp_path / "results" / runs[1]["metrics"]["checkpoint"]).unlink()
    with pytest.raises(UsageError, match="eager inference needs it"):
        bench(*INFER)


@pytest.mark.parametrize(
    ("engine", "cold"), [("compile", True), ("compile", False), ("eager", True)]
)
def test_torch_compile_starts_cold_without_kernels_of_an_earlier_start(
    engine, cold, monkeypatch, tmp_path
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    seen = []
    monkeypatch.setattr(
        hw_infer, "load_engine",
        lambda *args: lambda pixels: seen.append(os.environ["TORCHINDUCTOR_CACHE_DIR"]),
    )  # fmt: skip
    hw_infer.Server(hw_infer.Task(engine, tmp_path, 1, "digits", "study", 0, 16, "data", cold))
    assert (seen == [str(tmp_path)]) == (engine == "eager" or not cold)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)


def test_an_absent_package_is_named_with_its_command(bench, runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match=r"openvino: .*pip install openvino"):
        bench(*INFER, "--engine", "openvino")


# --- a process of its own -------------------------------------------------------------------------


def test_an_engine_in_a_process_of_its_own_answers_and_is_timed_and_ends(tmp_path, monkeypatch):
    monkeypatch.undo()
    log = Log(tmp_path / "results")
    row = add_run(log, 0.02, 0.5, formats=["onnx"])
    file = log.folder / "exports" / f"{row['run_id']}.onnx"
    digits = ("digits", "study", 0, 16, "data")
    tasks = [
        hw_infer.Task("eager", log.folder / row["metrics"]["checkpoint"], 1, *digits),
        hw_infer.Task("onnxruntime", file, 1, *digits),
        hw_infer.Task("torchscript", file, 1, *digits),  # which it is not
    ]
    run = Run(TrainConfig(**row["config"]), "data")
    sides = hw_infer.open_engines(tasks, run.dataset.labels[run.split.test])
    try:
        assert sides["eager"].error is sides["onnxruntime"].error is None
        assert sides["torchscript"].error.startswith("RuntimeError")
        assert len({side.worker.process.pid for side in sides.values() if side.worker}) == 2
        assert os.getpid() not in {s.worker.process.pid for s in sides.values() if s.worker}
        os.kill(sides["onnxruntime"].worker.process.pid, signal.SIGKILL)
        timed = {}
        hw_infer.time_engines(sides, timed, 4, 10, 0.01)
    finally:
        hw_infer.close_engines(sides)
    assert len(timed["eager"].latencies_ms) >= 10
    assert timed["onnxruntime"].error == "the engine's process ended with status -9"
    assert not sides["eager"].worker.process.is_alive()
