"""hw_bench.py --mode infer: every engine behind the gate, and what a row holds."""

import itertools
import multiprocessing
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
from processes import finish, start

from common.base.cli import UsageError, as_dict, first_line
from common.base.config import ENGINE_NAMES, EXPORT_FORMATS, NOISY, HwInferConfig, TrainConfig
from common.base.log import Log, run_id
from common.cost import count_costs
from common.deploy import export
from common.deploy.runtimes import ENGINES, Engine, load_engine
from common.models import build_model
from common.speed import inference, timing
from common.speed.samples import Side
from common.train import device
from common.train.checkpoint import save_checkpoint
from common.train.run import Run

FORMATS = ("torchscript", "onnx", "onnx-int8")
SMOKE = ["eager", "torchscript", "onnxruntime", "onnxruntime-int8"]
INFER = ["--mode", "infer", "--preset", "smoke", "--seconds", "0.01", "--engine", *SMOKE]
SINGLE = ["--mode", "infer", "--scenario", "single", "--seconds", "0.01", "--queries", "10"]
SINGLE += ["--launches", "1", "--threads", "1", "--engine"]
CONFIG = TrainConfig(dataset="digits", model="vgg5", image_size=16, device="cpu")


class LocalProcess:
    """An engine's server in this process: what its own process is tested for is tested below."""

    freed_memory_kept = True

    def __init__(self, make, *arguments, threads):
        self.server = self.call(make, *arguments)

    def call(self, method, *arguments):
        try:
            return (method if callable(method) else getattr(self.server, method))(*arguments)
        except Exception as error:
            raise RuntimeError(first_line(error)) from None

    def close(self):
        pass


@pytest.fixture(autouse=True)
def quick(monkeypatch, small_peaks):
    monkeypatch.setattr(inference, "SETTLE_S", 0)
    monkeypatch.setattr(timing, "Process", LocalProcess)


def add_run(log, lr, val_acc):
    """Train and export a run. Returns: its row."""
    config = replace(CONFIG, lr=lr)
    run = Run(config, "data")
    for _ in range(3):
        run.train_one_epoch()
    name = run_id("train", as_dict(config))
    save_checkpoint(log.folder / f"{name}.pt", run.weights())
    metrics = {"checkpoint": f"{name}.pt", "val_acc": val_acc, "train_ms": 1.0}
    row = log.append("train", as_dict(config), metrics | {"test_acc": run.test(run.split.test)[1]})
    for format in FORMATS:
        done = export.export_run(log, row, format, "data")
        assert done["status"] == "ok", done["error"]
    return row


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A results folder, and the train rows of two exported runs: one that has learnt nothing, and
    one of more val_acc."""
    log = Log(tmp_path_factory.mktemp("exported"))
    return log.folder, [add_run(log, 1e-9, 0.1), add_run(log, 0.02, 0.8)]


@pytest.fixture
def runs(exported, tmp_path):
    """These rows, in a results folder of the test's own."""
    shutil.copytree(exported[0], tmp_path / "results")
    return exported[1]


def file_of(run, format):
    return f"exports/{run['run_id']}{export.FORMATS[format].suffix}"


def test_every_engine_has_a_name_on_the_command_line_and_a_file_to_read():
    assert tuple(ENGINES) == ENGINE_NAMES
    assert tuple(export.FORMATS) == EXPORT_FORMATS
    assert {e.reads for e in ENGINES.values()} == {"checkpoint", *export.FORMATS}


def test_every_engine_of_the_best_run_is_checked_and_timed(bench, runs, rows, capsys):
    for _ in range(2):  # the second time all is in the log
        assert bench(*INFER) == 0
    written, best = rows("hw_infer"), runs[1]  # the higher val_acc
    pairs = [(r["config"]["scenario"], r["config"]["engine"]) for r in written]
    assert pairs == [(s, e) for s in ("single", "offline") for e in SMOKE]
    flops = count_costs(build_model("vgg5", 10), (1, 3, 16, 16), "conv_linear").flops
    for row in written:
        config, m = row["config"], row["metrics"]
        single, quantised = m["scenario"] == "single", "int8" in m["engine"]
        assert row["run_id"] == run_id("hw_infer", config)
        assert config["train_run_id"] == best["run_id"]
        assert config["batch_size"] == m["batch_size"] == (1 if single else 16)
        assert (config["threads"], config["launches"], m["quick"]) == (1, 1, True)
        assert (m["dataset"], m["model"], m["parity"]["images"]) == ("digits", "vgg5", 361)
        tolerated = 0.003 if quantised else 0
        assert m["test_acc"] == pytest.approx(best["metrics"]["test_acc"], abs=tolerated)
        assert m["flips"] == m["parity"]["flips"] <= (5 if quantised else 0)
        assert m["parity"]["mcnemar_p"] > 0.05
        latency = m["latency_ms"]
        assert latency["n"] >= 20
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
        assert 0 < m["images_per_s"] < 1e3 * m["batch_size"] * latency["n"] / latency["p50"]
        assert m["mfu"] == pytest.approx(flops * m["images_per_s"] / m["peak_flops_per_s"])
        assert m["cold_start_ms"] > 0
        [eager] = [r for r in written if r["config"] == config | {"engine": "eager"}]
        assert m["baseline"] == eager["run_id"]
        assert m["baseline_label"] == f"eager, {'1 image' if single else '16 images'}, 1 thread"
        assert m["rounds"]["group"] == eager["metrics"]["rounds"]["group"]
        low, high = m["speedup_interval"]
        assert low <= m["speedup_vs_eager"] <= high
        if m["engine"] == "eager":
            assert m["speedup_vs_eager"] == low == high == 1
    assert "onnxruntime" in capsys.readouterr().out
    versions = {row["metrics"]["engine"]: row["metrics"]["versions"] for row in written}
    assert versions["eager"] == {"torch": torch.__version__}
    assert versions["onnxruntime"] == {"onnxruntime": onnxruntime.__version__}


def test_one_engine_of_one_run_may_be_asked_for_and_only_a_file_or_threads_that_are_new(
    bench, runs, rows, tmp_path
):
    flags = [*SINGLE, "onnxruntime", "--accept-noise", "--train-run-id", runs[0]["run_id"]]
    for threads in (["1"], ["1"], ["1", "2"]):
        assert bench(*flags, "--threads", *threads) == 0
    with open(tmp_path / "results" / file_of(runs[0], "onnx"), "ab") as file:
        file.write(b"\x32\x01a")  # a field of text: the same network
    assert bench(*flags) == 0
    first, other, again = rows("hw_infer")
    m = first["metrics"]
    assert first["config"]["train_run_id"] == runs[0]["run_id"]
    # nothing to compare with was timed
    assert m["speedup_vs_eager"] is m["baseline"] is m["baseline_label"] is None
    assert m["flips"] == 0
    assert [row["config"]["threads"] for row in (first, other, again)] == [1, 2, 1]
    assert first["run_id"] == again["run_id"] != other["run_id"]
    assert m["sha256"] == other["metrics"]["sha256"] != again["metrics"]["sha256"]


def right(index):
    return torch.eye(10)[index - 100]


def server_of(precision="fp32"):
    server = inference.Server.__new__(inference.Server)
    server.test, server.answers, server.precision = torch.arange(100, 110), torch.eye(10), precision
    server.load_pixels, server.seen = lambda index: index, []
    server.engine = lambda index: server.seen.append(tuple(index.tolist())) or right(index)
    return server


@pytest.mark.parametrize("batch_size", [1, 4, 25])
def test_queries_are_put_in_turn_to_images_that_differ(batch_size, monkeypatch):
    """A query is made without the threads that an engine may find awake."""
    torch.set_num_threads(2)
    server, loading, answering = server_of(), set(), set()
    load, answer = server.load_pixels, server.engine
    server.load_pixels = lambda i: loading.add(torch.get_num_threads()) or load(i)
    server.engine = lambda i: answering.add(torch.get_num_threads()) or answer(i)
    latencies_ms, peak = server.time(batch_size, 0, 6, 0)
    timed = server.seen[1:]  # the first wakes the threads
    assert (loading, answering, len(latencies_ms), len(timed)) == ({1}, {2}, 6, 6)
    assert sum(timed, ()) == tuple(100 + i % 10 for i in range(6 * batch_size))
    server.time(batch_size, 6, 1, 0)
    assert server.seen[-1][0] == 100 + 6 * batch_size % 10  # it goes on where it was
    assert peak > 10e6
    clock = itertools.count(step=1.0)  # each query takes a millisecond
    monkeypatch.setattr(device, "now_ms", lambda device: next(clock))
    for queries, expected in ((3, 10), (30, 30)):  # enough queries, and enough seconds
        assert len(server.time(batch_size, 0, queries, 0.010)[0]) == expected


@pytest.mark.parametrize(("precision", "tolerated"), [("fp32", 1e-4), ("int8", 0.1)])
def test_a_batch_size_that_is_answered_otherwise_is_not_timed(precision, tolerated):
    """Engines compile, or choose kernels, by the size of a batch."""
    server = server_of(precision)
    server.engine = lambda index: right(index) + tolerated * torch.eye(10)[0]
    assert len(server.time(4, 0, 3, 0)[0]) == 3
    server.engine = lambda index: right(index) if len(index) == 1 else right(index).roll(1, 1)
    assert len(server.time(1, 0, 3, 0)[0]) == 3
    with pytest.raises(RuntimeError, match="in batches of 4 it answers otherwise"):
        server.time(4, 0, 3, 0)


def test_torch_compile_is_never_quietly_eager(exported):
    """One graph for each size of a batch, and an error where torch would give up."""
    (folder, [run, _]), config = exported, torch._dynamo.config
    torch._dynamo.reset()
    with config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False):  # and back, after it
        engine = load_engine("compile", folder / run["metrics"]["checkpoint"], 1)
        assert config.recompile_limit > 16
        engine(torch.zeros(1, 1, 16, 16))
        with config.patch(recompile_limit=1), pytest.raises(Exception, match="limit"):
            engine(torch.zeros(2, 1, 16, 16))


def test_an_engine_runs_without_gradients_and_with_its_threads(monkeypatch, tmp_path):
    def load(file, threads):
        return lambda pixels: (torch.is_inference_mode_enabled(), torch.get_num_threads(), threads)

    monkeypatch.setitem(ENGINES, "any", Engine("checkpoint", load))
    assert load_engine("any", tmp_path, 2)(torch.zeros(1)) == (True, 2, 2)


@pytest.mark.parametrize("name", ["eager", "onnxruntime", "openvino"])
def test_no_engine_pins_its_threads_where_the_others_do_not(name, exported):
    if not Path("/proc/self/task").exists():
        pytest.skip("this kernel does not say where a thread may run")
    pytest.importorskip(name if ENGINES[name].packages else "torch")
    folder, [run, _] = exported
    file = run["metrics"]["checkpoint"] if name == "eager" else file_of(run, "onnx")
    engine = load_engine(name, folder / file, 2)
    engine(torch.rand(16, 1, 16, 16))
    lines = [file.read_text().splitlines() for file in Path("/proc/self/task").glob("*/status")]
    assert len({next(ln for ln in part if ln.startswith("Cpus_allowed:")) for part in lines}) == 1


def test_a_cold_start_imports_nothing(exported):
    """In a process of its own, for here other tests have imported it."""
    code = """if True:
        import sys
        from pathlib import Path
        from common.speed import inference
        def watched(engine, *args):
            before.update(sys.modules)
            return load(engine, *args) if engine == "eager" else lambda pixels: None
        load, before = inference.load_engine, {}
        inference.load_engine = watched
        trained = {"dataset": "digits", "split": "study", "split_seed": 0, "image_size": 16}
        args = Path(sys.argv[1]), 1, trained, "data", True
        inference.Server("eager", *args)
        late = sys.modules.keys() - before.keys()
        assert len(late) < 10, late  # a few modules of a package that was there
        inference.Server("aotinductor", *args)
        assert "torch._inductor.package" in before
        inference.Server("compile", *args)
        assert "torch._dynamo" in before
    """
    folder, [run, _] = exported
    finish(start("-c", code, folder / run["metrics"]["checkpoint"]))


def test_every_launch_has_fresh_engines_that_take_turns_but_none_that_answered_otherwise(
    bench, runs, rows, monkeypatch
):
    turns, engines = [], {}
    faults = iter([None, None, None, "classes differ", None])  # of eager and another; eager alone

    class Watched(LocalProcess):
        def call(self, method, *arguments):
            if method == "time":
                engine = engines.setdefault(id(self), (len(engines), self))[0]  # kept, so that
                turns.append((engine, arguments[1]))  # no other one has its id
            return super().call(method, *arguments)

    def measure_parity(logits, *args):
        return {"flips": 0}, next(faults) if len(logits) == 361 else None  # else: of one query

    monkeypatch.setattr(timing, "Process", Watched)
    monkeypatch.setattr(inference, "measure_parity", measure_parity)
    three = ["--launches", "3", "--queries", "60", "--accept-noise", "--seconds", "1e-9"]
    assert bench(*SINGLE, "eager", "onnxruntime", *three) == 1
    both, alone = [0, 1, 1, 0] * (inference.ROUNDS // 2), inference.ROUNDS
    assert [engine for engine, _ in turns] == [*both, *[2] * alone, *[3] * alone]
    assert [first for engine, first in turns if engine == 0] == list(range(0, 20, 2))
    eager, other = rows("hw_infer")
    assert (eager["status"], other["status"]) == ("ok", "failed")
    assert len(eager["metrics"]["rounds"]["query_ms"]) == 30
    assert eager["metrics"]["latency_ms"]["n"] == 60
    assert other["error"] == "classes differ"
    assert other["metrics"]["latency_ms"] is other["metrics"]["speedup_vs_eager"] is None


@pytest.mark.parametrize("format", [*FORMATS, "damaged"])
def test_a_file_that_answers_otherwise_or_not_at_all_costs_its_own_rows(
    format, bench, runs, rows, tmp_path
):
    damaged, format = format == "damaged", format.replace("damaged", "onnx")
    other, file = (tmp_path / "results" / file_of(run, format) for run in runs)
    file.write_bytes(file.read_bytes()[:1000] if damaged else other.read_bytes())
    assert bench(*INFER, "--scenario", "single") == 1
    by_engine = {row["config"]["engine"]: row for row in rows("hw_infer")}
    row = by_engine.pop(export.FORMATS[format].engine)
    assert {r["status"] for r in by_engine.values()} == {"ok"}
    assert row["status"] == "failed"
    m = row["metrics"]
    assert m["latency_ms"] is m["images_per_s"] is m["speedup_vs_eager"] is None
    if not damaged:
        assert ("accuracy falls by" if "int8" in format else "classes differ") in row["error"]
        assert m["flips"] > 0


def test_a_noisy_clock_is_flagged_then_refused_unless_accepted(bench, runs, rows, monkeypatch):
    """Latencies of 10 ms, and every other one slower by so much."""
    for number, (slower_ms, status, *more) in enumerate(
        [(0.5, 0), (2, 0), (10, 1), (10, 0, "--accept-noise")]
    ):
        clock = itertools.accumulate(itertools.cycle([0.0, 10.0, 0.0, 10.0 + slower_ms]))
        monkeypatch.setattr(device, "now_ms", lambda device, clock=clock: next(clock))
        queries = ["--queries", str(50 + number)]  # another configuration each time
        assert bench(*SINGLE, "eager", *queries, *more) == status
    quiet, flagged, refused, kept = rows("hw_infer")
    assert quiet["metrics"]["noise"] < NOISY < flagged["metrics"]["noise"]
    assert refused["error"].startswith("too noisy: IQR 67%")
    assert refused["metrics"]["latency_ms"] is None
    assert not {"mfu", "speedup_interval", "energy_per_image_j"} & refused["metrics"].keys()
    assert kept["metrics"]["noise"] == pytest.approx(10 / 15)
    latency_ms = {"p50": 15, "p90": 20, "p99": 20, "n": 60}
    assert kept["metrics"]["latency_ms"] == pytest.approx(latency_ms)


def test_what_is_not_exported_or_installed_is_named(bench, runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(device, "compile_obstacle", lambda: "no compiler")  # which takes long
    with pytest.raises(UsageError, match=r"openvino: .*pip install openvino"):
        bench(*INFER, "--engine", "openvino")
    run = runs[1]["run_id"]
    (tmp_path / "results" / file_of(runs[1], "onnx")).unlink()
    hint = f"no export for onnxruntime: python -m common.export {run} --format onnx"
    with pytest.raises(UsageError, match=hint):
        bench(*INFER, "--train-run-id", run, "--engine", "onnxruntime")
    with pytest.raises(UsageError, match="nosuchrun is no finished run"):
        bench(*INFER, "--train-run-id", "nosuchrun")
    assert bench(*SINGLE[:-1], "--accept-noise") == 0
    out = capsys.readouterr().out
    assert f"onnxruntime: not measured, {run} has {hint}" in out
    assert "aotinductor: not measured" in out
    assert "compile: not measured, no compiler" in out
    (tmp_path / "results" / runs[1]["metrics"]["checkpoint"]).unlink()
    with pytest.raises(UsageError, match="eager inference needs it"):
        bench(*INFER)


def test_torch_compile_starts_cold_without_kernels_of_an_earlier_start(monkeypatch, tmp_path):
    folder, seen = "TORCHINDUCTOR_CACHE_DIR", []
    monkeypatch.setenv(folder, str(tmp_path))
    monkeypatch.setattr(
        inference, "load_engine", lambda *args: lambda pixels: seen.append(os.environ[folder])
    )
    for engine, cold in (("compile", False), ("eager", True), ("compile", True)):
        inference.Server(engine, tmp_path, 1, as_dict(CONFIG), "data", cold)
        assert os.environ[folder] == str(tmp_path)
    assert [kept == str(tmp_path) for kept in seen] == [True, True, False]


def test_an_engine_in_a_process_of_its_own_answers_and_is_timed_and_ends(exported, monkeypatch):
    monkeypatch.undo()
    folder, [_, run] = exported
    files = {"checkpoint": run["metrics"]["checkpoint"], "torchscript": file_of(run, "torchscript")}
    same = {"train_run_id": "run", "scenario": "single", "batch_size": 4, "threads": 1}
    configs = [HwInferConfig(engine=name, **same) for name in ("eager", "torchscript")]
    group, sides = inference.Group(run, folder, files, configs, "data"), list(map(Side, configs))
    data = Run(TrainConfig(**run["config"]), "data")
    group.launch(data.dataset.labels[data.split.test], True)
    eager, other = (process.process for process in group.processes.values())
    try:
        assert group.errors == {}
        assert len({eager.pid, other.pid, os.getpid()}) == 3
        os.kill(other.pid, signal.SIGKILL)
        group.take_turns(sides, 10, 0.01)
    finally:
        for process in group.processes.values():
            process.close()
    assert len(sides[0].samples_ms) >= 10
    assert sides[1].error == "the engine's process ended with status -9"
    assert not any(process.is_alive() for process in (eager, other))


def test_what_fails_in_an_engines_process_is_said_in_a_line():
    ours, theirs = multiprocessing.Pipe()
    timing.serve(theirs, 1, int, ("many\nlines",))
    assert ours.recv()[1] == "ValueError: invalid literal for int() with base 10: 'many\\nlines'"
