"""Measure training speed by device, or inference speed of exported networks.

    python hw_bench.py --device cpu cuda
    python hw_bench.py --device cuda --loop notebook ours
    python hw_bench.py --mode infer

Method of --mode train: whole steps (gather and resize fresh images, forward, backward, optimiser)
of every variant and optimiser of a network, after a warm-up, in rounds that run first forwards,
then backwards through them, so that a machine's drift meets all of them. On a CPU a sample is one
step; on an accelerator the mean of ten, since a look at the clock after each would stall its queue.
Where a step's time goes (data, copy to the device, forward, backward, optimiser) is measured in
steps of their own, one a round, with a wait after every phase. An epoch is extrapolated from the
median step, unless --full-epoch trains and tests one. Speed-ups are against the optimiser's first
variant on the first device, with Student's interval over the rounds. Where the CPU is the only
device, its own variants are compared: threads, precision, and torch.compile, whose cost without
kernels kept from earlier is in first_step_ms. The device's peaks, of a matrix product or a
convolution, and of a copy, are measured; each row says what share of them a step reached. Networks
are channels_last, but in the notebook loop: torchvision transforms on PIL images, a DataLoader
without workers, NCHW, torch's default optimiser, loss.item() at every step. All share one process,
which keeps freed memory.

Method of --mode infer: every engine has a process of its own, all of them prepared alike: threads
(none bound to a core), freed memory kept, no gradients, a query made with one thread. It first
answers the whole test split, and is timed only if it answers as the eager fp32 network does
(in bf16 and int8: without losing 0.2 points of accuracy). Queries are different test images, put to
the engines in such rounds too, modelled on MLPerf's single stream (batch 1) and offline (images/s
by batch size) but much shorter: 100 queries and 10 s at least. Making a query is not timed, nor is
loading (cold_start_ms, of the first launch). All of it is done in --launches sets of fresh
processes; the interval of a speed-up is over them.

In both a timing whose IQR is over a tenth of its median is flagged, and over a quarter refused.

Writes to --results-dir: log.jsonl (kind hw_train or hw_infer).
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from common.base.cli import (
    UsageError,
    as_dict,
    check_name,
    expand_grid,
    parse_command_line,
    run_script,
)
from common.base.config import (
    HW_INFER_PRESETS,
    HW_PRESETS,
    NOISY,
    HwInferConfig,
    HwOptions,
    HwTrainConfig,
)
from common.base.log import Log, locate, run_id

if TYPE_CHECKING:
    from common.data.datasets import Dataset, Split
    from common.speed.inference import Side as EngineSide
    from common.speed.inference import Timings
    from common.speed.training import Side

MODES = {
    "train": (HwTrainConfig, HW_PRESETS, "q2"),
    "infer": (HwInferConfig, HW_INFER_PRESETS, "bench"),
}
BUSY_LOAD = 0.5  # of the cores: other work that is felt in the timings


def hw_id(config: HwTrainConfig | HwInferConfig) -> str:
    """The run_id of a measurement."""
    return run_id("hw_train" if isinstance(config, HwTrainConfig) else "hw_infer", as_dict(config))


# --- training: which variants ---------------------------------------------------------------------


def expand_variants(name: str, grid: dict[str, list[Any]], alone: bool) -> list[dict[str, Any]]:
    """The variants of one device, in the order of comparison; `alone`: it is the only device.

    Raises: UsageError for one that was asked for by name and cannot be had.
    """
    import torch

    from common.train.device import compile_obstacle, resolve_precision

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
    found = [v for v in variants if v["loop"] == "ours" or not v["compile"]]
    if not found:
        raise UsageError("--compile true: the notebook loop is never compiled; add --loop ours")
    return found


def expand_groups(grid: dict[str, list[Any]]) -> list[list[HwTrainConfig]]:
    """What is to be measured: a group for each network, of variants to compare, in which each
    variant's optimisers follow one another."""
    from common.data.datasets import pin_dataset
    from common.train.device import resolve_device

    grid["dataset"] = list(dict.fromkeys(map(pin_dataset, grid["dataset"])))
    devices = list(dict.fromkeys(resolve_device(name).type for name in grid["device"]))
    variants = [
        variant for name in devices for variant in expand_variants(name, grid, devices == ["cpu"])
    ]
    opts = list(dict.fromkeys(grid["opt"]))
    shared = grid | {key: [None] for key in variants[0]} | {"opt": opts[:1]}
    return [
        [replace(base, opt=opt, **variant) for variant in variants for opt in opts]
        for base in expand_grid(HwTrainConfig, shared)
    ]


def load_images(config: HwTrainConfig, data_dir: str) -> tuple[Dataset, Split]:
    """The data set and its division."""
    from common.data.datasets import cached_dataset, split_dataset

    dataset = cached_dataset(config.dataset, data_dir, config.image_size)
    return dataset, split_dataset(dataset, config.split, config.split_seed)


def check_group(group: list[HwTrainConfig], data_dir: str) -> None:
    """Say what is wrong with a group before anything is measured. Raises: UsageError."""
    from common.train.run import check_bf16, check_network

    config = group[0]
    n_train = len(load_images(config, data_dir)[1].train)
    if config.batch_size > n_train:
        raise UsageError(
            f"--batch-size {config.batch_size}: {config.dataset} has {n_train} training images"
        )
    if config.full_epoch and any(c.loop == "notebook" for c in group):
        raise UsageError("--full-epoch: the notebook loop is only sampled; use --loop ours")
    for opt in dict.fromkeys(c.opt for c in group):
        if opt not in ("sgd", "adam") and any(c.loop == "notebook" for c in group):
            raise UsageError(f"--opt {opt}: the notebook loop has sgd and adam; use --loop ours")
        check_network(config.model, config.image_size, opt, min(2, config.batch_size))
    if any(c.device == "cpu" and c.precision == "bf16" for c in group):
        check_bf16(config.model, config.image_size, "--precision fp32")


# --- training: the rows --------------------------------------------------------------------------


def append_group(sides: list[Side], log: Log) -> int:
    """Write a row for each variant, with its speed-up against the first of its optimiser, and the
    times of its rounds, by which other rows of the group are compared; first train its whole epoch,
    where that is asked for. Returns: failures."""
    import torch

    from common.speed.training import compare

    firsts = {side.config.opt: side for side in reversed(sides)}
    group = uuid4().hex
    for side in sides:
        if side.config.full_epoch:
            side.attempt(side.train_whole_epoch)
        first = firsts[side.config.opt]
        found = {} if side.error else side.metrics()
        rounds = {"rounds": {"group": group, "step_ms": side.visits_ms}}
        metrics = {} if side.error else found | rounds  # a refused speed is none
        label = side.config.describe()
        baseline = {"baseline": hw_id(first.config), "baseline_label": first.config.describe()}
        metrics |= {"label": label, "speedup": compare(side, first) | baseline}
        torch.set_num_threads(side.threads)  # so that the row's env names them
        log.append(
            "hw_train", as_dict(side.config), metrics, error=side.error,
            status="failed" if side.error else "ok", device=side.config.device,
        )  # fmt: skip
        print(f"  {side.config.opt}, {label}: {side.error or 'measured'}", flush=True)
    return sum(side.error is not None for side in sides)


def bench_train(grid: dict[str, list[Any]], options: HwOptions, log: Log) -> int:
    """Measure every group that the log lacks a row of, or has of different rounds; print a table.

    Returns: failures.
    """
    import torch

    from common.judge.rows import get
    from common.speed.training import measure_group

    threads = torch.get_num_threads()
    groups = expand_groups(grid)
    compiled = any(config.compile for group in groups for config in group)
    if compiled:  # beyond its limit of recompilations torch would quietly run eagerly
        torch._dynamo.config.fail_on_recompile_limit_hit = True
    for group in groups:
        check_group(group, options.data_dir)
    warn_if_busy()
    if compiled:  # so that no variant pays the compiler's start
        torch.compile(torch.nn.ReLU())(torch.zeros(1))
    failures = 0
    for number, group in enumerate(groups, 1):
        config = group[0]
        print(f"[{number}/{len(groups)}] {config.dataset} {config.model}", flush=True)
        done = log.finished("hw_train")
        rows = [done.get(hw_id(c)) for c in group]
        if not options.force and all(rows):
            rounds = {get(row, "metrics", "rounds", "group") for row in rows}
            if len(rows) == 1 or len(rounds - {None}) == len(rounds) == 1:
                print("  in the log")
                continue
            print("  in the log, but not measured in the same rounds")
        sides = measure_group(group, *load_images(config, options.data_dir), threads)
        failures += append_group(sides, log)
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
            phases = m["phase_ms"] or {}
            lines.append([
                config.dataset, config.model, config.opt, config.batch_size, m["label"],
                f"{m['step_ms']['median']:.1f} ({m['step_ms']['iqr']:.1f})"
                f"{'?' * (m['noise'] > NOISY)}",
                " ".join("-" if v is None else f"{v:.0f}" for v in phases.values()),
                f"{m['first_step_ms']:.0f}", f"{m['images_per_s']:.1f}",
                f"{'~' * m['extrapolated']}{m['epoch_ms'] / 1e3:.1f}",
                with_interval(ratio, m["speedup"]["interval"]),
                "" if m["mfu"] is None else f"{m['mfu']:.0%}, {m['roofline']['fraction']:.0%}",
                f"{acc:.4f}" if acc is not None else "",
            ])  # fmt: skip
    head = ["data set", "model", "opt", "batch", "variant", "step ms (IQR)",
            "data copy fwd bwd opt", "first step ms", "images/s", "epoch s", "speed-up (95 %)",
            "of peak, roofline", "test acc"]  # fmt: skip
    print(tabulate(lines, head, disable_numparse=True))
    print(
        "~ extrapolated from the median step; speed-ups are against an optimiser's first variant; "
        "? noisy, IQR over 10 % of the median"
    )


def with_interval(ratio: float | None, interval: list[float] | None) -> str:
    """A ratio and its interval."""
    if ratio is None:
        return ""
    return f"{ratio:.2f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")


# --- inference ------------------------------------------------------------------------------------


def find_files(grid: dict[str, list[Any]], log: Log) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """The train rows to measure, each with the file of every engine, relative to the results.

    Raises: UsageError when there is no export of what was asked for.
    """
    from common.deploy.runtimes import ENGINES
    from common.judge.rows import pick_best

    trained = log.finished("train")
    files: dict[str, dict[str, str]] = {}
    for row in log.finished("export").values():
        m = row["metrics"]
        run, file = m.get("train_run_id"), m.get("file")
        if run in trained and file and locate(log.folder, file).exists():
            files.setdefault(run, {})[m["format"]] = file
    if not files:
        gone = len(log.finished("export"))
        what = f"the files of its {gone} exports are not there" if gone else "no exported networks"
        raise UsageError(
            f"{log.path}: {what}; make best exports each data set's, and "
            "python train.py ... --export torchscript onnx a run of your own"
        )
    wanted = grid["train_run_id"]
    if wanted == [None]:
        wanted = [g.first()["run_id"] for g in pick_best([trained[name] for name in files])]
    for name in wanted:
        if name not in files:
            what = "is not exported" if name in trained else f"is no finished run in {log.path}"
            raise UsageError(
                f"--train-run-id: {name} {what}; choose from {', '.join(files)}, or export it with "
                "python train.py ... --export torchscript onnx"
            )
    runs = []
    for name in wanted:
        checkpoint = trained[name]["metrics"].get("checkpoint")
        if not checkpoint or not locate(log.folder, checkpoint).exists():
            what = log.folder / checkpoint if checkpoint else f"the checkpoint of run {name}"
            raise UsageError(f"{what} is missing: eager inference needs it")
        held = {"checkpoint": checkpoint} | files[name]
        by_engine = {k: held[engine.reads] for k, engine in ENGINES.items() if engine.reads in held}
        runs.append((trained[name], by_engine))
    return runs


def expand_queries(
    grid: dict[str, list[Any]], run: dict[str, Any], files: dict[str, str], threads: int
) -> list[HwInferConfig]:
    """What is to be measured of one run: each engine in each scenario.

    Raises: UsageError for an engine that was asked for by name and has no file or package.
    """
    from common.deploy.runtimes import ENGINES, check_packages
    from common.train.device import compile_obstacle

    asked = None if grid["engine"] == [None] else grid["engine"]
    engines = []
    for name in asked or ENGINES:
        try:
            if name not in files:
                raise UsageError(
                    f"{run['run_id']} has no export for {name}: python -m common.export "
                    f"{run['run_id']} --format {ENGINES[name].reads}"
                )
            check_packages(name, ENGINES[name].packages)
            if name == "compile" and (obstacle := compile_obstacle()):
                raise UsageError(obstacle)
        except UsageError as error:
            if asked:
                raise
            print(f"{name}: not measured, {error}")
        else:
            engines.append(name)
    scenarios = ["single", "offline"] if grid["scenario"] == [None] else grid["scenario"]
    chosen = {"train_run_id": [run["run_id"]], "scenario": scenarios, "engine": engines}
    configs = [
        replace(
            c,
            threads=c.threads or threads,
            batch_size=1 if c.scenario == "single" else c.batch_size,
            launches=1 if c.quick else c.launches,
        )
        for c in expand_grid(HwInferConfig, grid | chosen)
    ]
    return sorted(dict.fromkeys(configs), key=lambda config: scenarios.index(config.scenario))


def measure_run(
    run: dict[str, Any], files: dict[str, str], hashes: dict[str, str],
    configs: list[HwInferConfig], log: Log, data_dir: str,
) -> int:  # fmt: skip
    """Check and time the engines of one run with one number of threads. Returns: failures."""
    from common.data.datasets import cached_dataset, split_dataset
    from common.speed.inference import Task, close_engines, open_engines, time_engines

    trained, threads = run["config"], configs[0].threads
    images = [trained[key] for key in ("dataset", "split", "split_seed", "image_size")]
    dataset = cached_dataset(trained["dataset"], data_dir, trained["image_size"])
    classes = len(dataset.classes)
    labels = dataset.labels[split_dataset(dataset, *images[1:3]).test]
    names = list(dict.fromkeys(config.engine for config in configs))
    tasks = [
        Task(name, log.folder / files[name], threads, *images, data_dir)
        for name in dict.fromkeys(["eager", *names])
    ]
    scenarios = list(dict.fromkeys(replace(config, engine=None) for config in configs))
    group = uuid4().hex
    timed: dict[HwInferConfig, dict[str, Timings]] = {scenario: {} for scenario in scenarios}
    launches, *effort = scenarios[0].effort()
    sides: dict[str, EngineSide] = {}
    for launch in range(launches):
        print(f"  launch {launch + 1} of {launches}", flush=True)
        sides = open_engines(tasks, labels, sides)
        try:
            chosen = {name: sides[name] for name in names}
            for scenario in scenarios:
                time_engines(chosen, timed[scenario], scenario.batch_size, *effort)
        finally:
            close_engines(sides)
    failures = 0
    for scenario in scenarios:
        for name in names:
            row = run_row(
                run, replace(scenario, engine=name), files[name], sides[name], timed[scenario],
                classes, hashes[files[name]], group,
            )  # fmt: skip
            failures += append_engine(log, *row)
    return failures


def run_row(
    run: dict[str, Any],
    config: HwInferConfig,
    file: str,
    side: EngineSide,
    timed: dict[str, Timings],
    classes: int,
    sha256: str,
    group: str,
) -> tuple[HwInferConfig, dict[str, Any], str | None]:
    """The row of one engine in one scenario: its configuration, metrics and error. Rows with the
    same `group` were measured in the same rounds."""
    from common.speed.inference import rate

    eager = replace(config, engine="eager") if "eager" in timed else None
    metrics = {
        "dataset": run["config"]["dataset"], "model": run["config"]["model"], "file": file,
        "sha256": sha256,
        "engine": config.engine, "scenario": config.scenario, "batch_size": config.batch_size,
        "versions": side.versions, "freed_memory_kept": side.kept,
        "quick": config.quick, "latency_ms": None, "images_per_s": None, "speedup_vs_eager": None,
        "cold_start_ms": side.cold_start_ms, "test_acc": side.test_acc, "parity": side.parity,
        "flips": side.parity and side.parity["flips"],
        "baseline": eager and hw_id(eager), "baseline_label": eager and describe_queries(eager),
    }  # fmt: skip
    error = side.error or timed[config.engine].error
    if not error:
        found, error = rate(run["config"], config, timed, classes)
        rounds = {"rounds": {"group": group, "query_ms": timed[config.engine].medians_ms}}
        metrics |= {"noise": found["noise"]} if error else found | rounds  # a refused speed is none
    return config, metrics, error


def describe_queries(config: HwInferConfig) -> str:
    """An engine and its work in a few words."""
    counts = {"image": config.batch_size, "thread": config.threads}
    return ", ".join([config.engine, *(f"{n} {what}{'s' * (n > 1)}" for what, n in counts.items())])


def append_engine(
    log: Log, config: HwInferConfig, metrics: dict[str, Any], error: str | None
) -> bool:
    """Write the row of one engine in one scenario. Returns: whether it failed."""
    log.append(
        "hw_infer", as_dict(config), metrics, status="failed" if error else "ok", error=error
    )
    print(f"  {config.scenario} {config.batch_size}, {config.engine}: {error or 'measured'}")
    return error is not None


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
        hashes = {file: file_sha256(log.folder / file) for file in set(files.values())}
        done = {  # of the files as they are now
            name for name, row in log.finished("hw_infer").items()
            if row["metrics"].get("sha256") == hashes.get(row["metrics"].get("file"), "")
        }  # fmt: skip
        for count in dict.fromkeys(config.threads for config in configs):
            part = [config for config in configs if config.threads == count]
            if not options.force and all(hw_id(config) in done for config in part):
                print(f"  in the log, of {count} threads")
                continue
            failures += measure_run(run, files, hashes, part, log, options.data_dir)
    print_infer_table([config for _, _, configs in plans for config in configs], log)
    return failures


def file_sha256(file: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


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
                f"{m['images_per_s']:.0f}{'?' * (m['noise'] > NOISY)}{' quick' * m['quick']}",
                with_interval(speedup, m["speedup_interval"]), f"{m['test_acc']:.4f}", m["flips"],
                f"{m['cold_start_ms']:.0f}",
            ])  # fmt: skip
    head = ["data set", "model", "scenario", "batch", "threads", "engine", "p50 ms", "p90 ms",
            "p99 ms", "images/s", "speed-up (95 %)", "test acc", "flips", "cold ms"]  # fmt: skip
    print(tabulate(lines, head, disable_numparse=True))
    print(
        "speed-ups are against eager in the same scenario; ? noisy, IQR over 10 % of the median; "
        "quick: a fifth of the queries, in one launch"
    )


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
