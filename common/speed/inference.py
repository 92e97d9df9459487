"""Inference speed of one trained network's files: every engine in a process of its own, timed only
if that process has answered the whole test split as the eager network does."""

from __future__ import annotations

import importlib
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.base.cli import first_line
from common.base.config import HwInferConfig
from common.cost import count_costs
from common.data.datasets import cached_dataset, split_dataset
from common.deploy.export import build_pixel_loader, measure_parity, predict
from common.deploy.runtimes import ENGINES, load_engine
from common.judge.stats import ratio_interval
from common.models import build_model
from common.speed.energy import open_meter
from common.speed.peaks import measure_peaks
from common.speed.timing import (
    alternate,
    judge_noise,
    peak_memory_bytes,
    percentiles_ms,
    reset_peak_memory,
    without_kept_kernels,
)
from common.train.device import now_ms, prepare_process
from common.train.loop import EVAL_BATCH_SIZE, as_tested, score

CPU = torch.device("cpu")
# What loading a file imports, of each kind that does: packages are no part of a cold start.
IMPORTED_LATE = {"checkpoint": "torchvision.models", "aotinductor": "torch._inductor.package"}
ROUNDS = 10  # of a launch, in which every engine has a turn
# Idle threads of one engine's pool spin on for a while and slow the next engine down: without a
# pause before its turn, eager's batch 1 took 7.9 ms after ONNX Runtime's turn instead of 4.5.
SETTLE_S = 0.1


# --- in the engine's process ----------------------------------------------------------------------


@dataclass
class Task:
    """What an engine's process is told."""

    engine: str
    file: Path
    threads: int
    dataset: str
    split: str
    split_seed: int
    image_size: int
    data_dir: str
    cold: bool = True  # torch.compile finds nothing that it kept from earlier


class Server:
    """One engine with the test split before it.

    cold_start_ms is from an engine's file to its first answer, without importing its packages.
    """

    def __init__(self, task: Task) -> None:
        self.kept = prepare_process(task.threads)
        dataset = cached_dataset(task.dataset, task.data_dir, task.image_size)
        self.test = split_dataset(dataset, task.split, task.split_seed).test
        self.load_pixels = build_pixel_loader(dataset, task.image_size)
        self.precision = ENGINES[task.engine].precision
        packages = ENGINES[task.engine].packages or ("torch",)
        self.versions = {p: importlib.import_module(p).__version__ for p in packages}
        if late := IMPORTED_LATE.get(ENGINES[task.engine].reads):
            importlib.import_module(late)
        first = self.load_pixels(self.test[:1])
        with without_kept_kernels(task.cold and task.engine == "compile"):
            start_ms = now_ms(CPU)
            self.engine = load_engine(task.engine, task.file, task.threads)
            self.engine(first)
            self.cold_start_ms = now_ms(CPU) - start_ms

    def answer(self) -> tuple[float, dict[str, str], Any, bool]:
        """Its cold start, its packages' versions, its logits of the test split, and whether its
        process keeps freed memory.

        Shapes: logits (N, classes).
        """
        batches = map(self.load_pixels, self.test.split(EVAL_BATCH_SIZE))
        self.answers = predict(self.engine, batches)
        return self.cold_start_ms, self.versions, self.answers.numpy(), self.kept

    def time(
        self, batch_size: int, first: int, queries: int, seconds: float
    ) -> tuple[list[float], int | None]:
        """Put queries of test images that differ, from number `first` on, until there were so many
        and they took so long; making a query is not timed.

        Returns: milliseconds of each; the process's peak memory in bytes.
        Raises: RuntimeError where a query of this size is answered otherwise than the test split
        was: engines compile or choose kernels by the size of a batch.
        """
        reset_peak_memory(CPU)
        latencies_ms: list[float] = []
        total_ms = 0.0
        rows, pixels = self._query(first - 1, batch_size)
        expected = self.answers[rows]
        answers = self.engine(pixels)  # which also wakes its threads
        fault = measure_parity(answers, expected, expected.argmax(1), self.precision)[1]
        if fault:
            raise RuntimeError(f"in batches of {batch_size} it answers otherwise: {fault}")
        while len(latencies_ms) < queries or total_ms < 1e3 * seconds:
            _, pixels = self._query(first + len(latencies_ms), batch_size)
            start_ms = now_ms(CPU)
            self.engine(pixels)
            latencies_ms.append(now_ms(CPU) - start_ms)
            total_ms += latencies_ms[-1]
        return latencies_ms, peak_memory_bytes(CPU)

    def _query(self, number: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Which of the test images a query has, and their pixels."""
        rows = torch.arange(number * batch_size, (number + 1) * batch_size) % len(self.test)
        threads = torch.get_num_threads()
        # More would stay awake for a while, in the way of an engine's own.
        torch.set_num_threads(1)
        pixels = self.load_pixels(self.test[rows])
        torch.set_num_threads(threads)
        return rows, pixels


def serve(pipe: Connection, task: Task) -> None:
    """Body of an engine's process: load it, then do what comes through the pipe until it closes."""
    try:
        server = Server(task)
        pipe.send((None, None))
        while True:
            method, arguments = pipe.recv()
            pipe.send((getattr(server, method)(*arguments), None))
    except EOFError:
        return
    except Exception as error:  # a damaged file costs its engine's rows, and no other's
        pipe.send((None, first_line(error)))


# --- in the measuring process ---------------------------------------------------------------------


class Worker:
    """An engine's process, seen from outside. Raises: RuntimeError with what went wrong in it."""

    def __init__(self, task: Task) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, inner = spawn.Pipe()
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(task.threads)  # pools are made when a library loads
        try:
            self.process = spawn.Process(target=serve, args=(inner, task), daemon=True)
            self.process.start()
        finally:
            del os.environ["OMP_NUM_THREADS"]
            if before is not None:
                os.environ["OMP_NUM_THREADS"] = before
        inner.close()
        self._receive()

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method of its Server returns."""
        with suppress(ConnectionError):  # the answer will say so
            self.pipe.send((method, arguments))
        return self._receive()

    def _receive(self) -> Any:
        try:
            value, error = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            status = self.process.exitcode
            raise RuntimeError(f"the engine's process ended with status {status}") from None
        if error:
            raise RuntimeError(error)
        return value

    def close(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.kill()


@dataclass
class Side:
    """An engine while it is measured: its answers, its timings, and its error, if any."""

    worker: Worker | None = None
    cold_start_ms: float | None = None
    versions: dict[str, str] | None = None
    kept: bool | None = None
    test_acc: float | None = None
    parity: dict[str, Any] | None = None
    error: str | None = None


@dataclass
class Timings:
    """An engine's latencies in one scenario, by round, and what else was read meanwhile."""

    rounds_ms: list[list[float]] = field(default_factory=list)
    peak_bytes: int | None = None
    joules: float | None = None
    error: str | None = None

    @property
    def latencies_ms(self) -> list[float]:
        """Of all rounds."""
        return [value for part in self.rounds_ms for value in part]

    @property
    def medians_ms(self) -> list[float]:
        """Of each round."""
        return [statistics.median(part) for part in self.rounds_ms]


def open_engines(
    tasks: Sequence[Task], labels: Tensor, before: Mapping[str, Side] | None = None
) -> dict[str, Side]:
    """Start every engine and compare its answers to eager's, which must be the first. What failed
    in the launch `before` stays failed, and the cold start is the first launch's: for later ones
    the file, and what compiling it leaves on the disk, may be warm.

    Shapes: labels (N,) of the test split.
    """
    sides: dict[str, Side] = {}
    reference = None
    for task in tasks:
        if before and before[task.engine].error:
            sides[task.engine] = before[task.engine]
            continue
        side = sides[task.engine] = Side()
        try:
            side.worker = Worker(replace(task, cold=not before))
            side.cold_start_ms, side.versions, answers, side.kept = side.worker.call("answer")
            if before:
                side.cold_start_ms = before[task.engine].cold_start_ms
        except RuntimeError as error:
            side.error = str(error)
            continue
        logits = torch.from_numpy(answers)
        side.test_acc = score(logits, labels)[1]
        reference = logits if task.engine == "eager" else reference
        if reference is None:
            side.error = "cannot be checked: eager failed"
            continue
        precision = ENGINES[task.engine].precision
        side.parity, side.error = measure_parity(logits, reference, labels, precision)
    return sides


def time_engines(
    sides: dict[str, Side], timed: dict[str, Timings], batch_size: int, queries: int, seconds: float
) -> None:
    """Put the same queries to every engine without an error, in alternating rounds, and add what
    they took to `timed`."""
    for name, side in sides.items():
        if not side.error:
            timed.setdefault(name, Timings())
    meter = open_meter(CPU)
    share = math.ceil(queries / ROUNDS)
    for number in range(ROUNDS):
        for name in alternate(list(timed), number):
            found = timed[name]
            if found.error or sides[name].error:
                continue
            time.sleep(SETTLE_S)
            before = meter() if meter else None
            try:
                part, found.peak_bytes = sides[name].worker.call(
                    "time", batch_size, sum(map(len, found.rounds_ms)), share, seconds / ROUNDS
                )
            except RuntimeError as error:  # out of memory at this batch size
                found.error = str(error)
                continue
            found.rounds_ms.append(part)
            after = meter() if meter else None
            if None not in (before, after):
                found.joules = (found.joules or 0.0) + after - before


def rate(
    trained: dict[str, Any], config: HwInferConfig, timed: dict[str, Timings], classes: int
) -> tuple[dict[str, Any], str | None]:
    """What an engine's latencies in one scenario come to, and why they are refused, or None.

    The speed-up is eager's median latency over the engine's, round by round.
    """
    own = timed[config.engine]
    latencies_ms = own.latencies_ms
    noise, refused = judge_noise(latencies_ms, config.accept_noise)
    images = config.batch_size * len(latencies_ms)
    metered = images + config.batch_size * len(own.rounds_ms)  # with the query before each turn
    found = {
        "latency_ms": percentiles_ms(latencies_ms), "noise": noise,
        "images_per_s": images / sum(latencies_ms) * 1e3, "peak_memory_bytes": own.peak_bytes,
        "energy_per_image_j": own.joules / metered if own.joules else None,
        "speedup_vs_eager": None, "speedup_interval": None, "mfu": None,
        "peak_flops_per_s": None,
    }  # fmt: skip
    eager = timed.get("eager")
    known = eager and eager.rounds_ms and not eager.error
    if known and not judge_noise(eager.latencies_ms, config.accept_noise)[1]:
        found["speedup_vs_eager"], found["speedup_interval"] = ratio_interval(
            eager.medians_ms, own.medians_ms, launches=config.effort()[0]
        )
    precision = ENGINES[config.engine].precision
    prepare_process(config.threads)
    peaks = measure_peaks("cpu", precision, config.threads)
    side = trained["image_size"]
    model = as_tested(build_model(trained["model"], classes, image_size=side), trained)
    with suppress(ValueError):  # matrices multiplied outside of layers: no count by layer
        costs = count_costs(model, (1, 3, side, side), "conv_linear")
        found["peak_flops_per_s"] = peaks.flops_per_s
        found["mfu"] = costs.flops * found["images_per_s"] / peaks.flops_per_s
    return found, refused


def close_engines(sides: dict[str, Side]) -> None:
    """End every engine's process."""
    for side in sides.values():
        if side.worker:
            side.worker.close()
