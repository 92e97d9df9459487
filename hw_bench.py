"""Measure training speed by device, or inference speed of exported networks.

    python hw_bench.py --device cpu cuda
    python hw_bench.py --device cuda --loop notebook ours
    python hw_bench.py --mode infer

Method of --mode train: whole steps (gather and resize fresh images, forward, backward, optimiser)
of every variant, after a warm-up, in rounds that run first forwards, then backwards through the
variants, so that a machine's drift meets all of them. On a CPU a sample is one step; on an
accelerator the mean of ten, since a look at the clock after each would stall its queue. An epoch is
extrapolated from the median step, unless --full-epoch trains and tests one. Speed-ups are against
the first variant of the first device. Where the CPU is the only device, its own variants are
compared: threads, precision, and torch.compile, whose cost is in first_step_ms. Networks are
channels_last, but in the notebook loop: torchvision transforms on PIL images, a DataLoader without
workers, NCHW, loss.item() at every step.

Method of --mode infer: every engine, with the same number of threads, first answers the whole test
split, and is timed only if it answers as the eager fp32 network does. Queries are different test
images, put to the engines in such rounds too; making a query is not timed.

Writes to --results-dir: log.jsonl (kind hw_train or hw_infer).
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import UsageError, check_name, first_line, run_script
from common.config import (
    HW_INFER_PRESETS,
    HW_PRESETS,
    HwInferConfig,
    HwOptions,
    HwTrainConfig,
    as_dict,
    expand_grid,
    parse_command_line,
)
from common.results import Log, locate, run_id

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from common.data import Batches, Dataset, Split
    from common.export import Engine

MODES = {
    "train": (HwTrainConfig, HW_PRESETS, "q2"),
    "infer": (HwInferConfig, HW_INFER_PRESETS, None),
}
BUSY_LOAD = 0.5  # of the cores: other work that is felt in the timings
VISIT_SAMPLES = 2  # timed samples of a variant before it is the next one's turn
ACCELERATOR_STEPS = 10  # steps in a sample
INFER_ROUNDS = 10
INFER_WARMUP = 5  # queries
# Idle threads of one engine's pool spin on for a while and slow the next engine down: without a
# pause before its turn, eager's batch 1 took 7.9 ms after ONNX Runtime's turn instead of 4.5.
SETTLE_S = 0.1


def hw_id(config: HwTrainConfig | HwInferConfig) -> str:
    """The run_id of a measurement."""
    return run_id("hw_train" if isinstance(config, HwTrainConfig) else "hw_infer", as_dict(config))


def alternate(items: Sequence[Any], number: int) -> Sequence[Any]:
    """The items, in every second round from last to first."""
    return items[::-1] if number % 2 else items


# --- training: which variants ---------------------------------------------------------------------


def compile_obstacle() -> str | None:
    """What torch.compile lacks on this machine to build for the CPU, and how to get it, or None."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return (
            f"torch.compile needs a C++ compiler and {compiler} is not there: apt-get install g++"
        )
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "torch.compile needs Python's headers: apt-get install python3-dev"
    return None


def expand_variants(name: str, grid: dict[str, list[Any]], alone: bool) -> list[dict[str, Any]]:
    """The variants of one device, in the order of comparison; `alone`: it is the only device.

    Raises: UsageError for one that was asked for by name and cannot be had.
    """
    import torch

    from common.engine import resolve_precision

    every = torch.get_num_threads()
    amp = resolve_precision(True, "auto", torch.device(name))
    implied = {"threads": [None], "precision": [amp], "compile": [False], "loop": ["ours"]}
    if "notebook" in grid["loop"]:
        implied["precision"] = ["fp32", amp]
    if name == "cpu":
        implied["threads"] = [every]
        if "fp16" in grid["precision"]:
            raise UsageError("--precision fp16: needs an accelerator; use bf16 or fp32 on a CPU")
    if name == "cpu" and alone:
        implied |= {"threads": [1, every], "precision": ["fp32", amp], "compile": [False, True]}
        if amp == "fp32" and grid["precision"] == [None]:
            print("bf16: not measured, this CPU has no fast bf16")
    chosen = {key: grid[key] if grid[key] != [None] else implied[key] for key in implied}
    if name == "cpu" and True in chosen["compile"] and (obstacle := compile_obstacle()):
        if grid["compile"] != [None]:
            raise UsageError(f"--compile: {obstacle}")
        print(f"compiled variants: not measured, {obstacle}")
        chosen["compile"] = [False]
    values = itertools.product(*(dict.fromkeys(v) for v in chosen.values()))
    variants = [{"device": name} | dict(zip(chosen, v, strict=True)) for v in values]
    return [v for v in variants if v["loop"] == "ours" or not v["compile"]]


def expand_groups(grid: dict[str, list[Any]]) -> list[list[HwTrainConfig]]:
    """What is to be measured: a group for each network and optimiser, of variants to compare."""
    from common.data import pin_dataset
    from common.engine import resolve_device

    grid["dataset"] = list(dict.fromkeys(map(pin_dataset, grid["dataset"])))
    devices = list(dict.fromkeys(resolve_device(name).type for name in grid["device"]))
    variants = [
        variant for name in devices for variant in expand_variants(name, grid, devices == ["cpu"])
    ]
    shared = grid | {key: [None] for key in variants[0]}
    return [[replace(base, **v) for v in variants] for base in expand_grid(HwTrainConfig, shared)]


def label_of(config: HwTrainConfig) -> str:
    """A variant in a few words."""
    mode = "compiled" if config.compile else "eager" if config.loop == "ours" else "notebook loop"
    parts = [config.device, config.precision, mode]
    if config.threads:
        parts.insert(1, f"{config.threads} thread{'s' if config.threads > 1 else ''}")
    return ", ".join(parts)


def load_images(config: HwTrainConfig, data_dir: str) -> tuple[Dataset, Split]:
    """The data set and its division."""
    from common.data import cached_dataset, split_dataset

    dataset = cached_dataset(config.dataset, data_dir, config.image_size)
    return dataset, split_dataset(dataset, config.split, config.split_seed)


def check_group(group: list[HwTrainConfig], data_dir: str) -> None:
    """Say what is wrong with a group before anything is measured. Raises: UsageError."""
    from common.run import check_network, find_one_pixel_convolution

    config = group[0]
    n_train = len(load_images(config, data_dir)[1].train)
    if config.batch_size > n_train:
        raise UsageError(
            f"--batch-size {config.batch_size}: {config.dataset} has {n_train} training images"
        )
    if config.full_epoch and any(c.loop == "notebook" for c in group):
        raise UsageError("--full-epoch: the notebook loop is only sampled; use --loop ours")
    if config.opt not in ("sgd", "adam") and any(c.loop == "notebook" for c in group):
        raise UsageError(f"--opt {config.opt}: the notebook loop has sgd and adam; use --loop ours")
    check_network(config.model, config.image_size, config.opt)
    if any(c.device == "cpu" and c.precision == "bf16" for c in group):
        name = find_one_pixel_convolution(config.model, config.image_size)
        if name:
            raise UsageError(
                f"--image-size {config.image_size}: {name} would see a single pixel, where oneDNN "
                "leaves part of its bf16 weight gradient unset; use larger images or "
                "--precision fp32"
            )


# --- training: the measurement --------------------------------------------------------------------


def endless_batches(train: Tensor, config: HwTrainConfig, home: torch.device) -> Iterator[Tensor]:
    """Full batches of training images, epoch after epoch, the same for every variant: indices, on
    the device `home`."""
    from common.data import epoch_order

    for epoch in itertools.count(1):
        order = train[epoch_order(len(train), config.seed, epoch)].to(home)
        yield from order.split(config.batch_size)[: len(order) // config.batch_size]


class Side:
    """One variant while it is measured: its network, its timings, and its error, if any."""

    def __init__(
        self, config: HwTrainConfig, dataset: Dataset, split: Split,
        statistics: tuple[Tensor, Tensor], batches: Batches, threads: int,
    ) -> None:  # fmt: skip
        self.config, self.dataset, self.split, self.batches = config, dataset, split, batches
        self.statistics = statistics
        self.threads = config.threads or threads
        self.pending = endless_batches(split.train, config, batches.home)
        self.first_step_ms: float | None = None
        self.samples_ms: list[float] = []
        self.epoch_ms: float | None = None
        self.test_acc: float | None = None
        self.error: str | None = None

    def attempt(self, work: Callable[[], None]) -> None:
        """Do a part of the measurement with the variant's threads, unless a part before failed."""
        import torch

        if self.error:
            return
        torch.set_num_threads(self.threads)
        try:
            work()
        except Exception as error:  # out of memory, or no kernel for it: the others go on
            self.error = first_line(error)
            self.model = self.forward = self.optimizer = self.notebook = None

    def build(self) -> None:
        """The untrained network and its optimiser."""

        from common.engine import build_optimizer, build_scaler, prepare_forward
        from common.models import build_model

        config, device = self.config, self.batches.device
        if config.loop == "notebook":
            from common.notebook import notebook_steps

            self.notebook = notebook_steps(
                config, self.dataset, self.split.train, self.statistics, device, config.precision
            )
            return
        classes = len(self.dataset.classes)
        self.model = build_model(config.model, classes, config.seed, image_size=config.image_size)
        self.model.to(device, memory_format=self.batches.memory_format)
        self.forward = prepare_forward(self.model, config.compile)
        self.optimizer = build_optimizer(self.model, config.opt, config.lr, None)
        self.scaler = build_scaler(device, config.precision)

    def step(self) -> Tensor:
        """One whole step on the next images; returns the loss."""
        from common.engine import train_step

        if self.config.loop == "notebook":
            return next(self.notebook)
        inputs, labels = self.batches.load(next(self.pending))
        return train_step(
            self.forward, self.optimizer, self.scaler, inputs, labels, self.config.precision
        )[0]

    def warm_up(self) -> None:
        """The untimed steps, the first of which is timed apart: it may compile."""
        from common.timing import now_ms

        self.build()
        start_ms = now_ms(self.batches.device)
        self.step()
        self.first_step_ms = now_ms(self.batches.device) - start_ms
        for _ in range(self.config.warmup - 1):
            self.step()

    def sample(self) -> None:
        """The next timed samples."""
        from common.timing import now_ms

        device = self.batches.device
        steps = 1
        if device.type != "cpu":
            # One step first, for clocks that fell while others had their turn. A CPU's first step
            # after another variant's took as long as its later ones (within 2 % on 2 cores).
            steps = ACCELERATOR_STEPS
            self.step()
        for _ in range(min(VISIT_SAMPLES, self.config.steps - len(self.samples_ms))):
            start_ms = now_ms(device)
            for _ in range(steps):
                loss = self.step()
            self.samples_ms.append((now_ms(device) - start_ms) / steps)
        if not loss.isfinite():
            raise ArithmeticError(f"loss {loss.item()} after {len(self.samples_ms)} samples")

    def train_whole_epoch(self) -> None:
        """Train an untrained network for one epoch, and test it."""
        from common.data import epoch_order, split_batches
        from common.engine import evaluate, score, train_epoch

        self.build()
        train, test = self.split.train, self.split.test
        order = train[epoch_order(len(train), self.config.seed, 1)].to(self.batches.home)
        trained = train_epoch(
            self.forward, self.optimizer, self.scaler, self.batches,
            split_batches(order, self.config.batch_size), self.config.precision,
            label=label_of(self.config),
        )  # fmt: skip
        self.epoch_ms = trained.train_ms
        logits = evaluate(self.model, self.batches, test)
        self.test_acc = score(logits, self.dataset.labels[test])[1]

    def metrics(self) -> dict[str, Any]:
        """What was measured, but for the comparison."""
        from common.timing import summarize_ms

        n_train, batch_size = len(self.split.train), self.config.batch_size
        step_ms = summarize_ms(self.samples_ms)
        measured = {
            "images_per_s": batch_size / step_ms["median"] * 1e3, "step_ms": step_ms,
            "first_step_ms": self.first_step_ms,
            "epoch_ms": step_ms["median"] * math.ceil(n_train / batch_size),
            "extrapolated": True, "test_acc": None,
        }  # fmt: skip
        if self.config.full_epoch:
            measured |= {
                "images_per_s": n_train / self.epoch_ms * 1e3, "epoch_ms": self.epoch_ms,
                "extrapolated": False, "test_acc": self.test_acc,
            }  # fmt: skip
        return measured


def measure_group(group: list[HwTrainConfig], data_dir: str, threads: int) -> list[Side]:
    """Measure variants that are to be compared, in alternating rounds.

    `threads`: those of a variant that names none.
    """
    import torch

    from common.data import Batches, measure_pixels

    dataset, split = load_images(group[0], data_dir)
    statistics = measure_pixels(dataset.images[split.train])
    batches = {
        name: Batches(dataset, statistics, group[0].image_size, torch.device(name))
        for name in dict.fromkeys(config.device for config in group)
    }
    sides = [
        Side(config, dataset, split, statistics, batches[config.device], threads)
        for config in group
    ]  # fmt: skip
    for side in sides:
        side.attempt(side.warm_up)
    for number in range(math.ceil(group[0].steps / VISIT_SAMPLES)):
        for side in alternate(sides, number):
            side.attempt(side.sample)
    if group[0].full_epoch:
        for side in sides:
            side.attempt(side.train_whole_epoch)
    return sides


def append_group(sides: list[Side], log: Log) -> int:
    """Write a row for each variant, with its speed-up against the first. Returns: failures."""
    import torch

    first = sides[0]
    baseline_ms = None if first.error else first.metrics()["epoch_ms"]
    for side in sides:
        metrics: dict[str, Any] = {
            "label": label_of(side.config), "mfu": None, "roofline": None,
            "speedup": {
                "ratio": None, "baseline": hw_id(first.config),
                "baseline_label": label_of(first.config),
            },
        }  # fmt: skip
        if not side.error:
            metrics |= side.metrics()
            if baseline_ms:
                metrics["speedup"]["ratio"] = baseline_ms / metrics["epoch_ms"]
        torch.set_num_threads(side.threads)  # so that the row's env names them
        log.append(
            "hw_train", as_dict(side.config), metrics, error=side.error,
            status="failed" if side.error else "ok", device=side.config.device,
        )  # fmt: skip
        print(f"  {label_of(side.config)}: {side.error or 'measured'}", flush=True)
    return sum(side.error is not None for side in sides)


def bench_train(grid: dict[str, list[Any]], options: HwOptions, log: Log) -> int:
    """Measure every group that the log lacks a row of; print a table. Returns: failures."""
    import torch

    from common.engine import keep_freed_memory

    keep_freed_memory()
    threads = torch.get_num_threads()
    groups = expand_groups(grid)
    compiled = any(config.compile for group in groups for config in group)
    if compiled:  # beyond its limit of recompilations torch would quietly run eagerly
        torch._dynamo.config.fail_on_recompile_limit_hit = True
    for group in groups:
        check_group(group, options.data_dir)
    warn_if_busy()
    failures = 0
    for number, group in enumerate(groups, 1):
        config = group[0]
        print(f"[{number}/{len(groups)}] {config.dataset} {config.model} {config.opt}", flush=True)
        done = log.finished("hw_train")
        if not options.force and all(hw_id(c) in done for c in group):
            print("  in the log")
            continue
        failures += append_group(measure_group(group, options.data_dir, threads), log)
        if compiled:
            torch.compiler.reset()  # its cache keeps networks alive, and counts towards the limit
    print_train_table([config for group in groups for config in group], log)
    return failures


def print_train_table(configs: list[HwTrainConfig], log: Log) -> None:
    """The measured variants, one a line."""
    from tabulate import tabulate

    done = log.finished("hw_train")
    lines = []
    for config in configs:
        if row := done.get(hw_id(config)):
            m = row["metrics"]
            ratio, acc = m["speedup"]["ratio"], m["test_acc"]
            lines.append([
                config.dataset, config.model, config.opt, m["label"],
                f"{m['step_ms']['median']:.1f} ({m['step_ms']['iqr']:.1f})",
                f"{m['first_step_ms']:.0f}", f"{m['images_per_s']:.1f}",
                f"{'~' * m['extrapolated']}{m['epoch_ms'] / 1e3:.1f}",
                f"{ratio:.2f}" if ratio else "", f"{acc:.4f}" if acc is not None else "",
            ])  # fmt: skip
    head = ["data set", "model", "opt", "variant", "step ms (IQR)", "first step ms", "images/s",
            "epoch s", "speed-up", "test acc"]  # fmt: skip
    print(tabulate(lines, head, disable_numparse=True))
    print("~ extrapolated from the median step; speed-ups are against a group's first variant")


# --- inference ------------------------------------------------------------------------------------


def find_files(grid: dict[str, list[Any]], log: Log) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """The train rows to measure, each with the file of every engine, relative to the results.

    Raises: UsageError when there is no export of what was asked for.
    """
    from common.export import ENGINE_OF
    from common.measured import pick_best

    trained = log.finished("train")
    files: dict[str, dict[str, str]] = {}
    for row in log.finished("export").values():
        m = row["metrics"]
        if m["train_run_id"] in trained and locate(log.folder, m["file"]).exists():
            files.setdefault(m["train_run_id"], {})[ENGINE_OF[m["format"]]] = m["file"]
    if not files:
        raise UsageError(
            f"no exported networks in {log.path}; make best exports each data set's, and "
            "python train.py ... --export torchscript onnx a run of your own"
        )
    wanted = grid["train_run_id"]
    if wanted == [None]:
        wanted = [g.first()["run_id"] for g in pick_best(trained[name] for name in files)]
    for name in wanted:
        if name not in files:
            what = "is not exported" if name in trained else f"is no finished run in {log.path}"
            raise UsageError(
                f"--train-run-id: {name} {what}; choose from {', '.join(files)}, or export it with "
                "python train.py ... --export torchscript onnx"
            )
    runs = []
    for name in wanted:
        checkpoint = trained[name]["metrics"]["checkpoint"]
        if not locate(log.folder, checkpoint).exists():
            raise UsageError(f"{log.folder / checkpoint} is missing: eager inference needs it")
        runs.append((trained[name], {"eager": checkpoint} | files[name]))
    return runs


def expand_queries(
    grid: dict[str, list[Any]], run: dict[str, Any], files: dict[str, str], threads: int
) -> list[HwInferConfig]:
    """What is to be measured of one run: each engine in each scenario.

    Raises: UsageError for an engine that was asked for by name and has no file or package.
    """
    from common.export import ENGINE_OF, check_packages

    engines = list(files) if grid["engine"] == [None] else grid["engine"]
    for format, engine in ENGINE_OF.items():
        if engine not in files:
            hint = (
                f"{run['run_id']} has no export for {engine}: python train.py ... --export {format}"
            )
            if engine in engines:
                raise UsageError(hint)
            print(f"not measured: {hint}")
    for engine in engines:
        check_packages(engine)
    scenarios = ["single", "offline"] if grid["scenario"] == [None] else grid["scenario"]
    chosen = {"train_run_id": [run["run_id"]], "scenario": scenarios, "engine": engines}
    configs = [
        replace(
            c,
            threads=c.threads or threads,
            batch_size=1 if c.scenario == "single" else c.batch_size,
        )
        for c in expand_grid(HwInferConfig, grid | chosen)
    ]
    return sorted(dict.fromkeys(configs), key=lambda config: scenarios.index(config.scenario))


@dataclass
class Answers:
    """An engine that has answered the whole test split."""

    engine: Engine | None = None
    test_acc: float | None = None
    flips: int | None = None
    error: str | None = None


def check_engines(
    names: Sequence[str], files: dict[str, Path], threads: int,
    load_pixels: Callable[[Tensor], Tensor], test: Tensor, labels: Tensor,
) -> dict[str, Answers]:  # fmt: skip
    """Load every engine and compare its answers to eager's, which come first in any case."""
    from common.engine import EVAL_BATCH_SIZE, score
    from common.export import load_engine, measure_parity, predict

    found: dict[str, Answers] = {}
    reference = None
    for name in dict.fromkeys(["eager", *names]):
        answers = found[name] = Answers()
        try:
            answers.engine = load_engine(name, files[name], threads)
            logits = predict(answers.engine, map(load_pixels, test.split(EVAL_BATCH_SIZE)))
        except Exception as error:  # a damaged file costs its engine's rows, and no other's
            answers.error = first_line(error)
            continue
        answers.test_acc = score(logits, labels)[1]
        reference = logits if name == "eager" else reference
        if reference is None:
            answers.error = "cannot be checked: eager failed"
            continue
        parity, answers.error = measure_parity(logits, reference, labels)
        answers.flips = parity["flips"]
    return found


def time_engines(
    found: dict[str, Answers], queries: Sequence[Tensor], load_pixels: Callable[[Tensor], Tensor]
) -> dict[str, list[float]]:
    """Put the same queries to every engine without an error, in alternating rounds.

    Shapes: a query (B,) of indices into the data set. Returns: milliseconds of each query.
    """
    for answers in found.values():
        try:
            for index in queries[:INFER_WARMUP] if not answers.error else ():
                answers.engine(load_pixels(index))
        except Exception as error:  # out of memory at this batch size
            answers.error = first_line(error)
    engines = {name: answers.engine for name, answers in found.items() if not answers.error}
    latencies_ms: dict[str, list[float]] = {name: [] for name in engines}
    size = math.ceil(len(queries) / INFER_ROUNDS)
    for number, start in enumerate(range(0, len(queries), size)):
        for name in alternate(list(engines), number):
            time.sleep(SETTLE_S)
            engines[name](load_pixels(queries[start - 1]))  # untimed: it wakes the engine's threads
            for index in queries[start : start + size]:
                pixels = load_pixels(index)
                start_s = time.perf_counter()
                engines[name](pixels)
                latencies_ms[name].append((time.perf_counter() - start_s) * 1e3)
    return latencies_ms


def measure_run(
    run: dict[str, Any], files: dict[str, str], configs: list[HwInferConfig], log: Log,
    data_dir: str,
) -> int:  # fmt: skip
    """Check and time the engines of one run with one number of threads. Returns: failures."""
    from common.data import cached_dataset, split_dataset
    from common.export import build_pixel_loader

    trained = run["config"]
    dataset = cached_dataset(trained["dataset"], data_dir, trained["image_size"])
    test = split_dataset(dataset, trained["split"], trained["split_seed"]).test
    load_pixels = build_pixel_loader(dataset, trained["image_size"])
    paths = {name: log.folder / file for name, file in files.items()}
    names = list(dict.fromkeys(config.engine for config in configs))
    found = check_engines(
        names, paths, configs[0].threads, load_pixels, test, dataset.labels[test]
    )  # fmt: skip
    failures = 0
    for scenario in dict.fromkeys(replace(config, engine=None) for config in configs):
        pool = test.repeat(math.ceil(scenario.queries * scenario.batch_size / len(test)))
        queries = pool.split(scenario.batch_size)[: scenario.queries]
        asked = {name: found[name] for name in names}
        latencies_ms = time_engines(asked, queries, load_pixels)
        for name in names:
            config = replace(scenario, engine=name)
            failures += append_engine(log, run, config, files[name], found[name], latencies_ms)
    return failures


def append_engine(
    log: Log, run: dict[str, Any], config: HwInferConfig, file: str, answers: Answers,
    latencies_ms: dict[str, list[float]],
) -> bool:  # fmt: skip
    """Write the row of one engine in one scenario. Returns: whether it failed."""
    from common.timing import percentiles_ms

    metrics = {
        "dataset": run["config"]["dataset"], "model": run["config"]["model"], "file": file,
        "engine": config.engine, "scenario": config.scenario, "batch_size": config.batch_size,
        "latency_ms": None, "images_per_s": None, "speedup_vs_eager": None,
        "test_acc": answers.test_acc, "flips": answers.flips,
    }  # fmt: skip
    if not answers.error:
        own_ms = latencies_ms[config.engine]
        metrics["latency_ms"] = percentiles_ms(own_ms)
        metrics["images_per_s"] = config.batch_size * len(own_ms) / sum(own_ms) * 1e3
        if "eager" in latencies_ms:
            eager_ms = percentiles_ms(latencies_ms["eager"])["p50"]
            metrics["speedup_vs_eager"] = eager_ms / metrics["latency_ms"]["p50"]
    status = "failed" if answers.error else "ok"
    log.append("hw_infer", as_dict(config), metrics, status=status, error=answers.error)
    print(f"  {config.scenario}, {config.engine}: {answers.error or 'measured'}", flush=True)
    return answers.error is not None


def bench_infer(grid: dict[str, list[Any]], options: HwOptions, log: Log) -> int:
    """Measure every run that the log lacks a row of; print a table. Returns: failures."""
    import torch

    threads = torch.get_num_threads()
    plans = [
        (run, files, expand_queries(grid, run, files, threads))
        for run, files in find_files(grid, log)
    ]
    warn_if_busy()
    failures = 0
    for number, (run, files, configs) in enumerate(plans, 1):
        what = f"{run['config']['dataset']} {run['config']['model']}, run {run['run_id']}"
        print(f"[{number}/{len(plans)}] {what}", flush=True)
        done = log.finished("hw_infer")
        if not options.force and all(hw_id(c) in done for c in configs):
            print("  in the log")
            continue
        for count in dict.fromkeys(config.threads for config in configs):
            part = [config for config in configs if config.threads == count]
            failures += measure_run(run, files, part, log, options.data_dir)
    print_infer_table([config for _, _, configs in plans for config in configs], log)
    return failures


def print_infer_table(configs: list[HwInferConfig], log: Log) -> None:
    """The measured engines, one a line."""
    from tabulate import tabulate

    done = log.finished("hw_infer")
    lines = []
    for config in configs:
        if row := done.get(hw_id(config)):
            m = row["metrics"]
            speedup = m["speedup_vs_eager"]
            lines.append([
                m["dataset"], m["model"], config.scenario, config.batch_size, config.threads,
                config.engine, *(f"{m['latency_ms'][p]:.2f}" for p in ("p50", "p90", "p99")),
                f"{m['images_per_s']:.0f}", f"{speedup:.2f}" if speedup else "",
                f"{m['test_acc']:.4f}", m["flips"],
            ])  # fmt: skip
    head = ["data set", "model", "scenario", "batch", "threads", "engine", "p50 ms", "p90 ms",
            "p99 ms", "images/s", "speed-up", "test acc", "flips"]  # fmt: skip
    print(tabulate(lines, head, disable_numparse=True))
    print("speed-ups are against eager in the same scenario")


# --- either ---------------------------------------------------------------------------------------


def choose_mode(argv: list[str] | None) -> str:
    """The value of --mode, which decides what the other flags are."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--mode", nargs="?", default="train")
    mode = parser.parse_known_args(argv)[0].mode or "train"
    check_name("--mode", mode, tuple(MODES))
    return mode


def warn_if_busy() -> None:
    """Say so when other work will be felt in the timings."""
    load, cores = os.getloadavg()[0], os.cpu_count()
    if load > BUSY_LOAD * cores:
        print(f"warning: load average {load:.1f} on {cores} cores before the start; timings suffer")


def main(argv: list[str] | None = None) -> int:
    """Measure what was asked for and print it."""
    mode = choose_mode(argv)
    config_class, presets, preset = MODES[mode]
    grid, options = parse_command_line(argv, __doc__, config_class, HwOptions, presets, preset)
    expand_grid(config_class, grid)  # a bad value is said before torch is even imported
    log = Log(options.results_dir)
    bench = bench_train if mode == "train" else bench_infer
    failures = bench(grid, options, log)
    print(f"log: {log.path}")
    return 1 if failures else 0


if __name__ == "__main__":
    run_script(main)
