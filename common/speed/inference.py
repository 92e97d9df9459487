"""Inference speed of one trained network's files: every engine in a process of its own, timed only
if that process has answered the whole test split as the eager network does."""

from __future__ import annotations

import importlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from common.base.cli import UsageError, as_dict, expand_grid
from common.base.config import HwInferConfig
from common.base.log import Log, locate, run_id
from common.data.datasets import cached_dataset, split_dataset
from common.deploy.export import build_pixel_loader, measure_parity, predict
from common.deploy.runtimes import ENGINES, check_packages, load_engine
from common.models import build_model
from common.speed import peaks, samples, timing
from common.speed.process import Process
from common.train import device, loop

Row = dict[str, Any]  # of the log, or a part of it
CPU = torch.device("cpu")
FACTS = ("versions", "freed_memory_kept", "cold_start_ms", "test_acc", "parity")
ROUNDS = 10  # of a launch, in which every engine has a turn
# Idle threads of one engine's pool spin on for a while and slow the next engine down: without a
# pause before its turn, eager's batch 1 took 7.9 ms after ONNX Runtime's turn instead of 4.5.
SETTLE_S = 0.1


def find_files(wanted: list[str | None], log: Log, pick_best: Callable) -> list[tuple[Row, Row]]:
    """The train rows to measure, each with the file of every engine, relative to the results.

    `pick_best` chooses among rows where none are wanted by name.
    Raises: UsageError when there is no export of what was asked for.
    """
    trained, exports = log.finished("train"), log.finished("export")
    files: dict[str, dict[str, str]] = {}
    for m in (row["metrics"] for row in exports.values()):
        run, file = m.get("train_run_id"), m.get("file")
        if run in trained and file and locate(log.folder, file).exists():
            checkpoint = trained[run]["metrics"].get("checkpoint")
            files.setdefault(run, {"checkpoint": checkpoint})[m["format"]] = file
    how = "python train.py ... --export torchscript onnx"
    if not files:
        gone = f"the files of its {len(exports)} exports are not there"
        raise UsageError(
            f"{log.path}: {gone if exports else 'no exported networks'}; make best exports each "
            f"data set's, and {how} a run of your own"
        )
    if wanted == [None]:
        wanted = [g.first()["run_id"] for g in pick_best([trained[name] for name in files])]
    chosen = []
    for name in wanted:
        if name not in files:
            what = "is not exported" if name in trained else f"is no finished run in {log.path}"
            among = f"choose from {', '.join(files)}, or export it with {how}"
            raise UsageError(f"--train-run-id: {name} {what}; {among}")
        own = files[name]
        if not own["checkpoint"] or not locate(log.folder, own["checkpoint"]).exists():
            what = own["checkpoint"] and log.folder / own["checkpoint"]
            what = what or f"the checkpoint of run {name}"
            raise UsageError(f"{what} is missing: eager inference needs it")
        engines = {key: own[e.reads] for key, e in ENGINES.items() if e.reads in own}
        chosen.append((trained[name], engines))
    return chosen


def expand_queries(grid: Row, run: str, files: dict[str, str]) -> list[HwInferConfig]:
    """What is to be measured of one run: each engine in each scenario.

    Raises: UsageError for an engine that was asked for by name and has no file or package.
    """
    by_name = grid["engine"] != [None]
    engines = []
    for name in grid["engine"] if by_name else ENGINES:
        try:
            if name not in files:
                again = f"python -m common.export {run} --format {ENGINES[name].reads}"
                raise UsageError(f"{run} has no export for {name}: {again}")
            check_packages(name, ENGINES[name].packages)
            if name == "compile" and (obstacle := device.compile_obstacle()):
                raise UsageError(obstacle)
            engines.append(name)
        except UsageError as error:
            if by_name:
                raise
            print(f"{name}: not measured, {error}")
    scenarios = ["single", "offline"] if grid["scenario"] == [None] else grid["scenario"]
    chosen = {"train_run_id": [run], "scenario": scenarios, "engine": engines}
    configs = [
        replace(
            config,
            threads=config.threads or torch.get_num_threads(),
            batch_size=1 if config.scenario == "single" else config.batch_size,
            launches=1 if config.quick else config.launches,
        )
        for config in expand_grid(HwInferConfig, grid | chosen)
    ]
    return sorted(dict.fromkeys(configs), key=lambda config: scenarios.index(config.scenario))


class Server:
    """One engine, in its process, with the test split before it.

    cold_start_ms is from an engine's file to its first answer, without importing its packages;
    `cold`: torch.compile finds nothing that it kept from earlier.
    """

    def __init__(
        self, name: str, file: Path, threads: int, trained: Row, data_dir: str, cold: bool
    ) -> None:
        dataset = cached_dataset(trained["dataset"], data_dir, trained["image_size"])
        self.test = split_dataset(dataset, trained["split"], trained["split_seed"]).test
        self.load_pixels = build_pixel_loader(dataset, trained["image_size"])
        self.precision = ENGINES[name].precision
        packages = ENGINES[name].packages or ("torch",)
        self.versions = {p: importlib.import_module(p).__version__ for p in packages}
        if name == "aotinductor":  # its loader imports this, which is no part of a cold start
            importlib.import_module("torch._inductor.package")
        first = self.load_pixels(self.test[:1])
        with timing.without_kept_kernels(cold and name == "compile"):
            start_ms = device.now_ms(CPU)
            self.engine = load_engine(name, file, threads)
            self.engine(first)
            self.cold_start_ms = device.now_ms(CPU) - start_ms

    def answer(self) -> tuple[dict[str, Any], Any]:
        """What its rows say of it, and its logits of the test split. Shapes: (N, classes)."""
        self.answers = predict(self.engine, self.load_pixels, self.test)
        facts = {"cold_start_ms": self.cold_start_ms, "versions": self.versions}
        return facts, self.answers.numpy()

    def time(
        self, batch_size: int, first: int, queries: int, seconds: float
    ) -> tuple[list[float], int | None]:
        """Put queries of test images that differ, from number `first` on, until there were so many
        and they took so long; making a query is not timed.

        Returns: milliseconds of each; the process's peak memory in bytes.
        Raises: RuntimeError where a query of this size is answered otherwise than the test split
        was: engines compile or choose kernels by the size of a batch.
        """
        timing.reset_peak_memory(CPU)
        threads, latencies_ms, total_ms = torch.get_num_threads(), [], 0.0

        def make_query(number: int) -> tuple[Tensor, Tensor]:
            rows = torch.arange(number * batch_size, (number + 1) * batch_size) % len(self.test)
            # More threads would stay awake for a while, in the way of an engine's own.
            torch.set_num_threads(1)
            pixels = self.load_pixels(self.test[rows])
            torch.set_num_threads(threads)
            return rows, pixels

        rows, pixels = make_query(first - 1)
        expected = self.answers[rows]
        answers = self.engine(pixels)  # which also wakes its threads
        fault = measure_parity(answers, expected, expected.argmax(1), self.precision)[1]
        if fault:
            raise RuntimeError(f"in batches of {batch_size} it answers otherwise: {fault}")
        while len(latencies_ms) < queries or total_ms < 1e3 * seconds:
            _, pixels = make_query(first + len(latencies_ms))
            start_ms = device.now_ms(CPU)
            self.engine(pixels)
            latencies_ms.append(device.now_ms(CPU) - start_ms)
            total_ms += latencies_ms[-1]
        return latencies_ms, timing.peak_memory_bytes(CPU)


@dataclass
class Launched:
    """An engine over all launches: what its rows say of it, and its error, if any."""

    name: str
    file: Path
    process: Process | None = None
    facts: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(FACTS))
    error: str | None = None


@dataclass
class Queries:
    """An engine in one scenario: its latencies, each round's median, and what else was read."""

    config: HwInferConfig
    engine: Launched
    latencies_ms: list[float] = field(default_factory=list)
    medians_ms: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    joules: float = 0.0
    error: str | None = None


def measure_run(
    trained: Row, files: dict[str, Path], configs: list[HwInferConfig], data_dir: str
) -> Iterator[tuple[HwInferConfig, Row, str | None]]:
    """Check and time the engines of one run with one number of threads.

    Returns: the configuration, metrics and error of each row.
    """
    dataset = cached_dataset(trained["dataset"], data_dir, trained["image_size"])
    labels = dataset.labels[split_dataset(dataset, trained["split"], trained["split_seed"]).test]
    names = dict.fromkeys(["eager", *(config.engine for config in configs)])
    engines = {name: Launched(name, files[name]) for name in names}
    scenarios: dict[HwInferConfig, list[Queries]] = {}
    for config in configs:
        scenario = scenarios.setdefault(replace(config, engine=None), [])
        scenario.append(Queries(config, engines[config.engine]))
    launches, queries, seconds = configs[0].effort()
    for launch in range(launches):
        print(f"  launch {launch + 1} of {launches}", flush=True)
        try:
            args = configs[0].threads, trained, data_dir, launch == 0
            launch_engines(list(engines.values()), labels, *args)
            for scenario in scenarios.values():
                take_turns(scenario, queries, seconds)
        finally:
            for engine in engines.values():
                if engine.process:
                    engine.process.close()
    rounds = uuid4().hex
    for scenario in scenarios.values():
        eager = next((q for q in scenario if q.engine.name == "eager"), None)
        for own in scenario:
            metrics, error = assess(own, eager, rounds)
            if not error:
                speed = metrics["images_per_s"]
                metrics |= utilisation(own.config, trained, len(dataset.classes), speed)
            yield own.config, metrics, error


def launch_engines(
    engines: list[Launched], labels: Tensor, threads: int, trained: Row, data_dir: str, first: bool
) -> None:
    """Start a fresh process of every engine and compare its answers to eager's, which must be the
    first. What has failed stays so, and the cold start is the first launch's: for later ones the
    file, and what compiling it leaves on the disk, may be warm.

    Shapes: labels (N,) of the test split.
    """
    reference = None
    for engine in engines:
        if engine.error:
            continue
        try:
            args = engine.name, engine.file, threads, trained, data_dir, first
            engine.process = Process(Server, *args, threads=threads)
            facts, answers = engine.process.call("answer")
        except RuntimeError as error:
            engine.error = str(error)
            continue
        if not first:
            facts["cold_start_ms"] = engine.facts["cold_start_ms"]
        logits = torch.from_numpy(answers)
        facts["freed_memory_kept"] = engine.process.freed_memory_kept
        facts["test_acc"] = loop.score(logits, labels)[1]
        engine.facts |= facts
        reference = logits if engine.name == "eager" else reference
        if reference is None:
            engine.error = "cannot be checked: eager failed"
            continue
        precision = ENGINES[engine.name].precision
        parity = measure_parity(logits, reference, labels, precision)
        engine.facts["parity"], engine.error = parity


def take_turns(scenario: list[Queries], queries: int, seconds: float) -> None:
    """Put the same queries to every engine without an error, in alternating rounds."""
    meter = timing.open_meter(CPU)
    share = math.ceil(queries / ROUNDS), seconds / ROUNDS
    for number in range(ROUNDS):
        for own in timing.alternate(scenario, number):
            if own.engine.error or own.error:
                continue
            time.sleep(SETTLE_S)
            before, turn = meter(), (own.config.batch_size, len(own.latencies_ms), *share)
            try:
                latencies_ms, own.peak_bytes = own.engine.process.call("time", *turn)
            except RuntimeError as error:  # out of memory at this batch size
                own.error = str(error)
                continue
            own.latencies_ms += latencies_ms
            own.medians_ms.append(statistics.median(latencies_ms))
            if None not in (before, after := meter()):
                own.joules += after - before


def assess(own: Queries, eager: Queries | None, rounds: str) -> tuple[Row, str | None]:
    """What an engine's latencies in one scenario come to, and why they are refused, or None. Rows
    of the same `rounds` were measured in turn.

    The speed-up is eager's median latency over the engine's, round by round.
    """
    config, parity = own.config, own.engine.facts["parity"]
    metrics = {k: getattr(config, k) for k in ("engine", "scenario", "batch_size", "quick")}
    metrics |= own.engine.facts
    metrics |= dict.fromkeys(("latency_ms", "images_per_s", "speedup_vs_eager"))
    metrics["flips"] = parity and parity["flips"]
    metrics["baseline"] = eager and run_id("hw_infer", as_dict(eager.config))
    metrics["baseline_label"] = eager and eager.config.describe()
    if error := own.engine.error or own.error:
        return metrics, error
    metrics["noise"], refused = samples.judge_noise(own.latencies_ms, config.accept_noise)
    if refused:  # a refused speed is none
        return metrics, refused
    ratio = interval = None
    known = eager and eager.medians_ms and not eager.error
    if known and not samples.judge_noise(eager.latencies_ms, config.accept_noise)[1]:
        launches = config.effort()[0]
        ratio, interval = samples.ratio_interval(eager.medians_ms, own.medians_ms, launches)
    images = config.batch_size * len(own.latencies_ms)
    metered = images + config.batch_size * len(own.medians_ms)  # with the query before each turn
    return metrics | {
        "latency_ms": samples.percentiles_ms(own.latencies_ms),
        "images_per_s": images / sum(own.latencies_ms) * 1e3,
        "peak_memory_bytes": own.peak_bytes,
        "energy_per_image_j": own.joules / metered if own.joules else None,
        "speedup_vs_eager": ratio,
        "speedup_interval": interval,
        "rounds": {"group": rounds, "query_ms": own.medians_ms},
    }, None


def utilisation(config: HwInferConfig, trained: Row, classes: int, images_per_s: float) -> Row:
    """The machine's measured peak, and the share of it that an engine reaches."""
    device.prepare_process(config.threads)
    peak = peaks.measure_peaks("cpu", ENGINES[config.engine].precision, config.threads).flops_per_s
    model = build_model(trained["model"], classes, image_size=trained["image_size"])
    costs = peaks.count_layers(loop.as_tested(model, trained), 1, trained["image_size"])
    if costs is None:
        return {"mfu": None, "peak_flops_per_s": None}
    return {"mfu": costs.flops * images_per_s / peak, "peak_flops_per_s": peak}
