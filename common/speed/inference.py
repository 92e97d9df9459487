"""Inference speed of one trained network's files: every engine in a process of its own, timed only
if that process has answered the whole test split as the eager network does."""

import hashlib
import importlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from common.base.cli import UsageError, expand_grid
from common.base.config import HwInferConfig
from common.base.log import Log, Row, locate
from common.data.datasets import load_dataset, split_dataset
from common.deploy.export import build_pixel_loader, measure_parity, predict
from common.deploy.runtimes import ENGINES, check_packages, load_engine
from common.models import build_model
from common.speed import peaks, timing
from common.speed.samples import Side
from common.train import device, loop

CPU = torch.device("cpu")
# Null in the row of an engine that failed before.
UNKNOWN = ("versions", "freed_memory_kept", "cold_start_ms", "test_acc", "parity", "flips")
UNKNOWN += ("latency_ms", "images_per_s", "speedup_vs_eager")
ROUNDS = 10  # of a launch, in which every engine has a turn
# Idle threads of one engine's pool spin on for a while and slow the next engine down: without a
# pause before its turn, eager's batch 1 took 7.9 ms after ONNX Runtime's turn instead of 4.5.
SETTLE_S = 0.1


def find_files(wanted: list[str | None], log: Log, pick_best: Callable) -> list[tuple[Row, Row]]:
    """The train rows to measure, each with its files by what engines read, relative to the results;
    `pick_best` chooses among those that have files where none is wanted by name."""
    trained, exports = log.finished("train"), log.finished("export")
    files: dict[str, Row] = {}
    for m in (row["metrics"] for row in exports.values()):
        run, file = m.get("train_run_id"), m.get("file")
        if run in trained and file and locate(log.folder, file).exists():
            checkpoint = trained[run]["metrics"]["checkpoint"]
            files.setdefault(run, {"checkpoint": checkpoint})[m["format"]] = file
    how = "python train.py ... --export torchscript onnx"
    if not files:
        gone = f"the files of its {len(exports)} exports are not there"
        why, best = gone if exports else "no exported networks", "make best exports each data set's"
        raise UsageError(f"{log.path}: {why}; {best}, and {how} a run of your own")
    if wanted == [None]:
        wanted = [g.first()["run_id"] for g in pick_best([trained[name] for name in files])]
    for name in wanted:
        if name not in files:
            what = "is not exported" if name in trained else f"is no finished run in {log.path}"
            among = f"choose from {', '.join(files)}, or export it with {how}"
            raise UsageError(f"--train-run-id: {name} {what}; {among}")
        if not (checkpoint := locate(log.folder, files[name]["checkpoint"])).exists():
            raise UsageError(f"{checkpoint} is missing: eager inference needs it")
    return [(trained[name], files[name]) for name in wanted]


def expand_queries(grid: Row, run: str, files: Row) -> list[HwInferConfig]:
    """Each engine in each scenario; one that cannot run is a fault only where asked for by name."""
    by_name, engines = grid["engine"] != [None], []
    for name in grid["engine"] if by_name else ENGINES:
        try:
            if ENGINES[name].reads not in files:
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
    chosen["threads"] = [threads or torch.get_num_threads() for threads in grid["threads"]]
    configs = []
    for config in expand_grid(HwInferConfig, grid | chosen):
        config = replace(config, launches=1) if config.quick else config
        configs.append(replace(config, batch_size=1) if config.scenario == "single" else config)
    return sorted(dict.fromkeys(configs), key=lambda config: scenarios.index(config.scenario))


class Server:
    """One engine, in its process, with the test split; `cold`: torch.compile finds no old kernels.
    cold_start_ms is from the engine's file to its first answer, without importing its packages."""

    def __init__(
        self, name: str, file: Path, threads: int, trained: Row, data_dir: str, cold: bool
    ) -> None:
        dataset = load_dataset(trained["dataset"], data_dir, trained["image_size"])
        self.test = split_dataset(dataset, trained["split"], trained["split_seed"]).test
        self.load_pixels = build_pixel_loader(dataset, trained["image_size"])
        self.precision = ENGINES[name].precision
        packages = ENGINES[name].packages or ("torch",)
        self.facts = {"versions": {p: importlib.import_module(p).__version__ for p in packages}}
        if name == "aotinductor":  # its loader imports this, which is no part of a cold start
            importlib.import_module("torch._inductor.package")
        first = self.load_pixels(self.test[:1])
        with timing.without_kept_kernels(cold and name == "compile"):
            start_ms = device.now_ms(CPU)
            self.engine = load_engine(name, file, threads)
            self.engine(first)
            self.facts["cold_start_ms"] = device.now_ms(CPU) - start_ms

    def answer(self) -> tuple[Row, np.ndarray]:
        """What its rows say of it, and its logits of the test split. Shapes: (N, classes)."""
        self.answers = predict(self.engine, self.load_pixels, self.test)
        return self.facts, self.answers.numpy()

    def make_query(self, batch_size: int, number: int) -> tuple[Tensor, Tensor]:
        """The places of a query's images in the test split, and their pixels."""
        rows = torch.arange(number * batch_size, (number + 1) * batch_size) % len(self.test)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # more would stay awake for a while, in the way of an engine's own
        pixels = self.load_pixels(self.test[rows])
        torch.set_num_threads(threads)
        return rows, pixels

    def time(self, batch_size: int, first: int, queries: int, seconds: float) -> tuple:
        """Put queries of test images that differ, from number `first` on, until there were so many
        and they took so long. Returns: milliseconds of each, without making it; peak memory.
        Raises: RuntimeError where a query is answered otherwise than in the test split's batches:
        engines compile or choose kernels by the size of a batch."""
        timing.reset_peak_memory(CPU)
        rows, pixels = self.make_query(batch_size, first - 1)
        expected = self.answers[rows]
        answers = self.engine(pixels)  # which also wakes its threads
        if fault := measure_parity(answers, expected, expected.argmax(1), self.precision)[1]:
            raise RuntimeError(f"in batches of {batch_size} it answers otherwise: {fault}")
        latencies_ms, total_ms = [], 0.0
        while len(latencies_ms) < queries or total_ms < 1e3 * seconds:
            _, pixels = self.make_query(batch_size, first + len(latencies_ms))
            start_ms = device.now_ms(CPU)
            self.engine(pixels)
            latencies_ms.append(device.now_ms(CPU) - start_ms)
            total_ms += latencies_ms[-1]
        return latencies_ms, timing.peak_memory_bytes(CPU)


class Group:
    """The engines of one trained network that are measured together."""

    def __init__(
        self, run: Row, folder: Path, files: Row, configs: list[HwInferConfig], data_dir: str
    ) -> None:
        self.trained, self.configs, self.data_dir = run["config"], configs, data_dir
        self.folder, self.threads = folder, configs[0].threads
        names = {k: self.trained[k] for k in ("dataset", "model")}
        self.title = f"{' '.join(names.values())}, run {run['run_id']}, threads {self.threads}"
        # By the engine's name; eager is the first, for the others are compared with it.
        self.facts, self.errors, self.processes = {}, {}, {}
        for name in dict.fromkeys(["eager", *(config.engine for config in configs)]):
            file = files[ENGINES[name].reads]
            digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
            self.facts[name] = names | {"file": file, "sha256": digest} | dict.fromkeys(UNKNOWN)

    def obsolete(self, rows: list[Row]) -> str | None:
        """Why its rows of the log are not what measuring would give, or None."""
        now = [self.facts[config.engine]["sha256"] for config in self.configs]
        return None if now == [row["metrics"]["sha256"] for row in rows] else "of other files"

    def measure(self) -> Iterator[tuple[Side, Row]]:
        """Each engine in each scenario, and the metrics of its row."""
        trained, scenarios, rounds = self.trained, {}, uuid4().hex
        dataset = load_dataset(trained["dataset"], self.data_dir, trained["image_size"])
        test = split_dataset(dataset, trained["split"], trained["split_seed"]).test
        for config in self.configs:
            scenarios.setdefault(replace(config, engine=None), []).append(Side(config))
        launches, *effort = self.configs[0].effort()
        for launch in range(launches):
            print(f"  launch {launch + 1} of {launches}", flush=True)
            try:
                self.launch(dataset.labels[test], launch == 0)
                for sides in scenarios.values():
                    self.take_turns(sides, *effort)
            finally:
                for process in self.processes.values():
                    process.close()
        for sides in scenarios.values():
            for own in sides:
                own.judge()
            eager = next((own for own in sides if own.config.engine == "eager"), None)
            for own in sides:
                yield own, self.row(own, eager, rounds, len(dataset.classes))

    def launch(self, labels: Tensor, first: bool) -> None:
        """Start a fresh process of every engine and compare its answers to eager's. The cold start
        is the first launch's: later the file, and what compiling it left on the disk, may be warm.
        Shapes: labels (N,) of the test split."""
        reference = None
        for name, facts in self.facts.items():
            if name in self.errors:
                continue
            try:
                args = name, self.folder / facts["file"], self.threads, self.trained, self.data_dir
                process = timing.Process(Server, *args, first, threads=self.threads)
                self.processes[name] = process
                known, answers = process.call("answer")
                if not first:
                    del known["cold_start_ms"]
                logits = torch.from_numpy(answers)
                facts |= known | {"freed_memory_kept": process.freed_memory_kept}
                facts["test_acc"] = loop.score(logits, labels)[1]
                reference = logits if name == "eager" else reference
                if reference is None:
                    raise RuntimeError("cannot be checked: eager failed")
                precision = ENGINES[name].precision
                facts["parity"], fault = measure_parity(logits, reference, labels, precision)
                facts["flips"] = facts["parity"]["flips"]
                if fault:
                    raise RuntimeError(fault)
            except RuntimeError as error:
                self.errors[name] = str(error)

    def take_turns(self, sides: list[Side], queries: int, seconds: float) -> None:
        """Put the same queries to every engine without an error, in alternating rounds."""
        share = math.ceil(queries / ROUNDS), seconds / ROUNDS
        for own in (own for n in range(ROUNDS) for own in timing.alternate(sides, n)):
            engine, size = own.config.engine, own.config.batch_size
            own.error = own.error or self.errors.get(engine)
            if own.error:
                continue
            time.sleep(SETTLE_S)
            meter, turn = timing.open_meter(CPU), (size, len(own.samples_ms), *share)
            try:
                latencies_ms, own.peak_bytes = self.processes[engine].call("time", *turn)
                images = size * (len(latencies_ms) + 1)  # of one query before them, too
                own.add(latencies_ms, meter(), images)
            except RuntimeError as error:  # out of memory at this batch size
                own.error = str(error)

    def row(self, own: Side, eager: Side | None, rounds: str, classes: int) -> Row:
        """The metrics of an engine in one scenario; its speed-up is by the rounds' medians."""
        config, n = own.config, len(own.samples_ms)
        metrics = {k: getattr(config, k) for k in ("engine", "scenario", "batch_size", "quick")}
        over = own.over(eager, "hw_infer", config.effort()[0])
        metrics |= self.facts[config.engine]
        metrics |= {name: over[name] for name in ("baseline", "baseline_label")}
        metrics |= {} if own.noise is None else {"noise": own.noise}
        if own.error:  # a refused speed is none
            return metrics
        metrics |= own.measured(rounds, "query")
        metrics |= {"speedup_vs_eager": over["ratio"], "speedup_interval": over["interval"]}
        p50, p90, p99 = np.percentile(own.samples_ms, [50, 90, 99]).tolist()
        metrics["latency_ms"] = {"p50": p50, "p90": p90, "p99": p99, "n": n}
        metrics["images_per_s"] = config.batch_size * n / sum(own.samples_ms) * 1e3
        device.prepare_process(config.threads)
        precision, size = ENGINES[config.engine].precision, self.trained["image_size"]
        peak = peaks.measure_peaks("cpu", precision, config.threads).flops_per_s
        model = build_model(self.trained["model"], classes, image_size=size)
        costs = peaks.count_layers(loop.as_tested(model, self.trained), 1, size)
        metrics["mfu"] = costs and costs.flops * metrics["images_per_s"] / peak
        metrics["peak_flops_per_s"] = costs and peak
        return metrics


def expand_groups(grid: Row, data_dir: str, log: Log, pick_best: Callable) -> list[Group]:
    """What is to be measured: of each run, with each number of threads, all engines together."""
    groups = []
    for run, files in find_files(grid["train_run_id"], log, pick_best):
        alike: dict[Any, list[HwInferConfig]] = {}
        for config in expand_queries(grid, run["run_id"], files):
            alike.setdefault((config.threads, config.effort()), []).append(config)
        groups += [Group(run, log.folder, files, configs, data_dir) for configs in alike.values()]
    return groups
