"""hw_bench.py --mode infer: every engine behind the gate, and what a row holds."""

import itertools
import os
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import onnx
import onnxruntime
import pytest
import torch

import hw_bench
from common.base.cli import UsageError, as_dict, first_line
from common.base.config import ENGINE_NAMES, NOISY, HwInferConfig, TrainConfig
from common.base.log import Log, run_id
from common.cost import count_costs
from common.deploy import export
from common.deploy.runtimes import ENGINES, Engine, load_engine
from common.models import build_model
from common.speed import inference
from common.train import device
from common.train.checkpoint import save_checkpoint
from common.train.run import Run

ROOT = Path(__file__).parent.parent
INFER = ["--mode", "infer", "--preset", "smoke", "--data-dir", "data", "--seconds", "0.01"]
INFER += ["--engine", "eager", "torchscript", "onnxruntime", "onnxruntime-int8"]
FORMATS = ("torchscript", "onnx", "onnx-int8")
DIGITS = {"dataset": "digits", "split": "study", "split_seed": 0, "image_size": 16}
SMOKE = INFER[-4:]
SINGLE = ["--mode", "infer", "--scenario", "single", "--seconds", "0.01", "--queries", "10"]
SINGLE += ["--launches", "1", "--accept-noise", "--engine"]


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
    monkeypatch.setattr(inference, "Process", LocalProcess)


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
    assert {e.reads for e in ENGINES.values()} == {"checkpoint", *export.FORMATS}


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


def test_one_engine_of_one_run_may_be_asked_for_and_only_a_file_or_threads_that_are_new(
    bench, runs, rows, tmp_path
):
    flags = ["--train-run-id", runs[0]["run_id"], "--engine", "onnxruntime", "--scenario", "single"]
    assert bench(*INFER, *flags) == 0
    [row] = rows("hw_infer")
    assert row["config"]["train_run_id"] == runs[0]["run_id"]
    assert row["metrics"]["speedup_vs_eager"] is None  # nothing to compare with was timed
    assert row["metrics"]["baseline"] is row["metrics"]["baseline_label"] is None
    assert row["metrics"]["flips"] == 0
    for threads in (["1"], ["1"], ["1", "2"]):
        assert bench(*SINGLE, "onnxruntime", "--threads", *threads) == 0
    file = tmp_path / "results" / exported_file(rows, runs[1], "onnx")
    model = onnx.load(file)
    model.doc_string = "made again"
    onnx.save(model, file)
    assert bench(*SINGLE, "onnxruntime", "--threads", "1") == 0
    _, first, other, again = rows("hw_infer")
    assert [row["config"]["threads"] for row in (first, other, again)] == [1, 2, 1]
    assert first["run_id"] == again["run_id"] != other["run_id"]
    assert first["metrics"]["sha256"] == other["metrics"]["sha256"] != again["metrics"]["sha256"]


def queries_of(engine, rounds_ms=(), **settings):
    settings = {"scenario": "single", "batch_size": 1, "threads": 1} | settings
    config = HwInferConfig(train_run_id="run", engine=engine, **settings)
    queries = inference.Queries(config, inference.Launched(engine, Path()))
    for round_ms in rounds_ms:
        queries.latencies_ms += round_ms
        queries.medians_ms.append(statistics.median(round_ms))
    return queries


@pytest.mark.parametrize(("accepted", "known"), [(False, False), (True, True)])
def test_a_speed_up_over_an_eager_that_is_refused_is_none(accepted, known):
    noisy, quiet = [[1.0, 5.0, 9.0]] * 3, [[1.0, 1.0, 1.0], [1.0, 1.01, 1.02], [1.0, 1.0, 1.01]]
    settings = {"accept_noise": accepted, "launches": 3}
    own, eager = queries_of("onnxruntime", quiet, **settings), queries_of("eager", noisy)
    metrics, refused = inference.assess(own, eager, "rounds")
    assert refused is None
    assert (metrics["speedup_vs_eager"] is not None) == known


def test_utilisation_is_a_share_of_the_measured_peak():
    config = queries_of("onnxruntime").config
    share = inference.utilisation(config, {"model": "vgg5", "image_size": 28}, 10, 500.0)
    flops = count_costs(build_model("vgg5", 10), (1, 3, 28, 28), "conv_linear").flops
    assert share["mfu"] == pytest.approx(flops * 500.0 / share["peak_flops_per_s"])


def server_of(right=lambda index: torch.eye(10)[index - 100]):
    server = inference.Server.__new__(inference.Server)
    server.test, server.answers, server.precision = torch.arange(100, 110), torch.eye(10), "fp32"
    server.load_pixels = lambda index: index
    server.seen = []
    server.engine = lambda index: server.seen.append(tuple(index.tolist())) or right(index)
    return server


@pytest.mark.parametrize("batch_size", [1, 4, 25])
def test_queries_are_put_in_turn_to_images_that_differ(batch_size, monkeypatch):
    """A query is made without the threads that an engine may find awake."""
    torch.set_num_threads(2)
    server, threads = server_of(), {"load": set(), "answer": set()}
    load, answer = server.load_pixels, server.engine
    server.load_pixels = lambda i: threads["load"].add(torch.get_num_threads()) or load(i)
    server.engine = lambda i: threads["answer"].add(torch.get_num_threads()) or answer(i)
    latencies_ms, peak = server.time(batch_size, 0, 6, 0)
    assert threads == {"load": {1}, "answer": {2}}
    timed = server.seen[1:]  # the first wakes the threads
    assert len(latencies_ms) == len(timed) == 6
    flat = [image for query in timed for image in query]
    assert flat == [100 + i % 10 for i in range(6 * batch_size)]
    server.time(batch_size, 6, 1, 0)
    assert server.seen[-1][0] == 100 + 6 * batch_size % 10  # it goes on where it was
    assert peak > 10e6
    clock = itertools.count(step=1.0)  # each query takes a millisecond
    monkeypatch.setattr(device, "now_ms", lambda device: next(clock))
    for queries, expected in ((3, 10), (30, 30)):  # enough queries, and enough seconds
        assert len(server.time(batch_size, 0, queries, 0.010)[0]) == expected


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
    def load(file, threads):
        return lambda pixels: (torch.is_inference_mode_enabled(), torch.get_num_threads(), threads)

    monkeypatch.setitem(ENGINES, name, Engine("checkpoint", load))
    assert load_engine(name, tmp_path, 2)(torch.zeros(1)) == (True, 2, 2)


@pytest.mark.parametrize("name", ["eager", "onnxruntime", "openvino"])
def test_no_engine_pins_its_threads_where_the_others_do_not(name, exported):
    if not Path("/proc/self/task").exists():
        pytest.skip("this kernel does not say where a thread may run")
    pytest.importorskip(name if ENGINES[name].packages else "torch")
    folder, runs = exported
    run = runs[0]["run_id"]
    file = f"{run}.pt" if name == "eager" else f"exports/{run}.onnx"
    engine = load_engine(name, folder / file, 2)
    engine(torch.rand(16, 1, 16, 16))
    lines = [file.read_text().splitlines() for file in Path("/proc/self/task").glob("*/status")]
    assert len({next(ln for ln in part if ln.startswith("Cpus_allowed:")) for part in lines}) == 1


def test_a_cold_start_imports_nothing(tmp_path):
    """In a process of its own, for here other tests have imported it."""
    run = Run(TrainConfig(dataset="digits", model="resnet18", image_size=32, device="cpu"), "data")
    save_checkpoint(tmp_path / "run.pt", run.weights())
    code = """if True:
        import sys
        from pathlib import Path
        from common.speed import inference
        def watched(engine, *args):
            before.update(sys.modules)
            return load(engine, *args) if engine == "eager" else lambda pixels: None
        load, before = inference.load_engine, {}
        inference.load_engine = watched
        trained = {"dataset": "digits", "split": "study", "split_seed": 0, "image_size": 32}
        args = Path(sys.argv[1]), 1, trained, "data", True
        inference.Server("eager", *args)
        late = sys.modules.keys() - before.keys()
        assert len(late) < 10, late  # a few modules of a package that was there
        inference.Server("aotinductor", *args)
        assert "torch._inductor.package" in before
        inference.Server("compile", *args)
        assert "torch._dynamo" in before
    """
    command = [sys.executable, "-c", code, tmp_path / "run.pt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_engines_take_turns_from_alternating_ends_and_a_refused_one_has_none():
    turns = []
    scenario = [queries_of(name) for name in ("eager", "onnxruntime", "openvino")]
    for own in scenario:

        def call(method, batch_size, first, queries, seconds, name=own.engine.name):
            turns.append((name[0], first))
            return [1.0, 1.0], 7

        own.engine.process = SimpleNamespace(call=call)
    scenario[2].engine.error = "refused"
    inference.take_turns(scenario, 20, 1.0)
    assert "".join(name for name, _ in turns) == "eooe" * (inference.ROUNDS // 2)
    assert [first for name, first in turns if name == "e"] == list(range(0, 20, 2))
    assert [len(own.latencies_ms) for own in scenario] == [20, 20, 0]


def test_every_launch_has_fresh_engines_but_none_that_answered_otherwise_and_adds_to_the_timings(
    bench, runs, rows, monkeypatch
):
    launched, launch = [], inference.launch_engines
    faults = iter([None, None, None, "classes differ", None])  # of eager and another; eager alone

    def launch_engines(engines, *args):
        launch(engines, *args)
        launched.append({engine.name: engine.process for engine in engines if not engine.error})

    def measure_parity(logits, *args):
        return {"flips": 0}, next(faults) if len(logits) == 361 else None  # else: of one query

    monkeypatch.setattr(inference, "launch_engines", launch_engines)
    monkeypatch.setattr(inference, "measure_parity", measure_parity)
    three = ["--threads", "1", "--launches", "3", "--queries", "60"]
    assert bench(*SINGLE, "eager", "onnxruntime", *three) == 1
    assert [list(engines) for engines in launched] == [
        ["eager", "onnxruntime"],
        ["eager"],
        ["eager"],
    ]
    assert len({id(engines["eager"]) for engines in launched}) == 3
    eager, other = rows("hw_infer")
    assert (eager["status"], other["status"]) == ("ok", "failed")
    assert (eager["config"]["launches"], len(eager["metrics"]["rounds"]["query_ms"])) == (3, 30)
    assert eager["metrics"]["latency_ms"]["n"] >= 60
    assert other["error"] == "classes differ"
    assert other["metrics"]["latency_ms"] is other["metrics"]["speedup_vs_eager"] is None


@pytest.mark.parametrize("format", [*FORMATS, "damaged"])
def test_a_file_that_answers_otherwise_or_not_at_all_costs_its_own_rows(
    format, bench, runs, rows, tmp_path
):
    damaged = format == "damaged"
    format = "onnx" if damaged else format
    file = tmp_path / "results" / exported_file(rows, runs[1], format)
    if damaged:
        file.write_bytes(file.read_bytes()[:1000])
    else:
        untrained = add_run(Log(tmp_path / "other"), 1e-9, 0.1, formats=[format])
        [other] = (tmp_path / "other" / "exports").iterdir()
        assert untrained["run_id"] in other.name
        shutil.copy(other, file)
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
    calls = itertools.count()

    def use_clock(slower_ms):
        steps = itertools.cycle([0.0, 10.0, 0.0, 10.0 + slower_ms])
        clock = itertools.accumulate(steps)
        monkeypatch.setattr(device, "now_ms", lambda device: next(clock))
        queries = ["--queries", str(50 + next(calls))]  # another configuration each time
        accept = SINGLE.index("--accept-noise")
        flags = [*SINGLE[:accept], "--threads", "1", "--engine", "eager", *queries]
        return lambda *more: bench(*flags, *more)

    assert use_clock(0.5)() == 0
    assert use_clock(2)() == 0
    noisy = use_clock(10)
    assert noisy() == 1
    assert noisy("--accept-noise") == 0
    quiet, flagged, refused, kept = rows("hw_infer")
    assert quiet["metrics"]["noise"] < NOISY < flagged["metrics"]["noise"]
    assert refused["error"].startswith("too noisy: IQR 67%")
    assert refused["metrics"]["latency_ms"] is None
    assert not {"mfu", "speedup_interval", "energy_per_image_j"} & refused["metrics"].keys()
    assert kept["metrics"]["noise"] == pytest.approx(10 / 15)


def test_what_is_not_exported_or_installed_is_named(
    bench, runs, rows, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match=r"openvino: .*pip install openvino"):
        bench(*INFER, "--engine", "openvino")
    (tmp_path / "results" / exported_file(rows, runs[1], "onnx")).unlink()
    hint = f"no export for onnxruntime: python -m common.export {runs[1]['run_id']} --format onnx"
    flags = ["--train-run-id", runs[1]["run_id"], "--engine", "onnxruntime"]
    with pytest.raises(UsageError, match=hint):
        bench(*INFER, *flags)
    with pytest.raises(UsageError, match="nosuchrun is no finished run"):
        bench(*INFER, "--train-run-id", "nosuchrun")
    assert bench(*SINGLE[:-1], "--threads", "1") == 0
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

    def answer(pixels):
        seen.append(os.environ["TORCHINDUCTOR_CACHE_DIR"])

    monkeypatch.setattr(inference, "load_engine", lambda *args: answer)
    inference.Server(engine, tmp_path, 1, DIGITS, "data", cold)
    assert (seen == [str(tmp_path)]) == (engine == "eager" or not cold)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)


def test_an_engine_in_a_process_of_its_own_answers_and_is_timed_and_ends(tmp_path, monkeypatch):
    monkeypatch.undo()
    log = Log(tmp_path / "results")
    row = add_run(log, 0.02, 0.5, formats=["onnx"])
    file = log.folder / "exports" / f"{row['run_id']}.onnx"
    eager = inference.Launched("eager", log.folder / row["metrics"]["checkpoint"])
    onnxruntime = inference.Launched("onnxruntime", file)
    torchscript = inference.Launched("torchscript", file)  # which it is not
    engines = [eager, onnxruntime, torchscript]
    run = Run(TrainConfig(**row["config"]), "data")
    labels = run.dataset.labels[run.split.test]
    inference.launch_engines(engines, labels, 1, row["config"], "data", True)
    try:
        assert eager.error is onnxruntime.error is torchscript.process is None
        assert torchscript.error.startswith("RuntimeError")
        pids = {engine.process.process.pid for engine in (eager, onnxruntime)}
        assert len(pids | {os.getpid()}) == 3
        os.kill(onnxruntime.process.process.pid, signal.SIGKILL)
        scenario = [queries_of("eager", batch_size=4), queries_of("onnxruntime", batch_size=4)]
        scenario[0].engine, scenario[1].engine = eager, onnxruntime
        inference.take_turns(scenario, 10, 0.01)
    finally:
        for engine in (eager, onnxruntime):
            engine.process.close()
    assert len(scenario[0].latencies_ms) >= 10
    assert scenario[1].error == "the engine's process ended with status -9"
    assert not eager.process.process.is_alive()
