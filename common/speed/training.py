"""Training speed of variants that are to be compared: whole steps, in alternating rounds."""

import copy
import itertools
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from uuid import uuid4

import torch
from torch import Tensor

from common.base.cli import UsageError, as_dict, expand_grid, print_more
from common.base.config import HwTrainConfig, TrainConfig
from common.base.log import Row
from common.data.batches import Batches
from common.data.datasets import load_split
from common.data.own import pin_datasets
from common.models import build_model
from common.speed import peaks, timing
from common.speed.samples import Side
from common.train import device
from common.train.check import check_steps
from common.train.notebook import notebook_steps
from common.train.run import Run, explain_failure

VISIT_SAMPLES = 2  # timed samples of a variant before it is the next one's turn
PHASES = ("data", "copy", "forward", "backward", "optimizer")


def expand_variants(name: str, grid: Row, alone: bool) -> list[Row]:
    """The variants of one device, in the order of comparison; `alone`: it is the only device."""
    all_threads, cpu, alone = torch.get_num_threads(), name == "cpu", alone and name == "cpu"
    amp = device.resolve_precision(True, "auto", torch.device(name))
    if cpu and "fp16" in grid["precision"]:
        raise UsageError("--precision fp16: needs an accelerator; use bf16 or fp32 on a CPU")
    if name != "cuda" and "tf32" in grid["precision"]:
        raise UsageError(f"--precision tf32: CUDA alone has it, and this is {name}; use fp32")
    default = {"threads": [1, all_threads] if alone else [all_threads if cpu else None]}
    default["precision"] = ["fp32", amp] if alone or "notebook" in grid["loop"] else [amp]
    default["compile"] = [False, True] if alone else [False]
    default |= {"cuda_graph": [False], "loop": ["ours"]}
    if alone and amp == "fp32" and grid["precision"] == [None]:
        print("bf16: not measured, this CPU has no fast bf16")
    chosen = {key: default[key] if grid[key] == [None] else grid[key] for key in default}
    if True in chosen["compile"] and (obstacle := device.compile_obstacle(name)):
        if grid["compile"] != [None]:
            raise UsageError(f"--compile: {obstacle}")
        print(f"compiled variants: not measured, {obstacle}")
        chosen["compile"] = [False]
    values = itertools.product(*map(dict.fromkeys, chosen.values()))
    variants = [{"device": name} | dict(zip(chosen, v, strict=True)) for v in values]
    # Compiled, recorded as a graph, or the notebook loop: each for itself.
    ways = {"compile": True, "cuda_graph": True, "loop": "notebook"}.items()
    variants = [v for v in variants if len(ways & v.items()) < 2]
    if not variants:
        way_out = "the notebook loop is never compiled; add --loop ours"
        raise UsageError(f"--compile or --cuda-graph true: at most one of the two, and {way_out}")
    return variants


def as_training(config: HwTrainConfig) -> TrainConfig:
    """The training whose steps a variant takes."""
    shared = {f.name: vars(config)[f.name] for f in fields(TrainConfig) if f.name in vars(config)}
    amp = config.precision not in ("fp32", "tf32")
    return TrainConfig(**shared, amp=amp, amp_dtype=config.precision if amp else "auto")


class Group:
    """Variants that are measured together, to be compared."""

    def __init__(self, configs: list[HwTrainConfig], data_dir: str) -> None:
        self.configs, self.data_dir = configs, data_dir
        self.title = f"{configs[0].dataset} {configs[0].model}"
        self.threads = torch.get_num_threads()  # of a variant that names none

    def check(self) -> None:
        """Raises: UsageError for what is known to be wrong before anything is measured."""
        first = self.configs[0]
        n_train = len(load_split(first, self.data_dir)[1].train)
        if first.batch_size > n_train:
            images = f"{first.dataset} has {n_train} training images"
            raise UsageError(f"--batch-size {first.batch_size}: {images}")
        if any(config.loop == "notebook" for config in self.configs):
            if first.full_epoch:
                raise UsageError("--full-epoch: the notebook loop is only sampled; use --loop ours")
            if other := {config.opt for config in self.configs} - {"sgd", "adam"}:
                way_out = "the notebook loop has sgd and adam; use --loop ours"
                raise UsageError(f"--opt {min(other)}: {way_out}")
        for config in self.configs:
            check_steps(as_training(config), config.precision, "--precision fp32")

    def obsolete(self, rows: list[Row]) -> str | None:
        """Why its rows of the log are not what measuring would give, or None."""
        together = len({row["metrics"]["rounds"]["group"] for row in rows}) == 1
        return None if together else "not measured in the same rounds"

    def measure(self) -> Iterator[tuple[Side, Row]]:
        """Each variant, and the metrics of its row."""
        compiled = any(config.compile for config in self.configs)
        if compiled:
            # Beyond its limit of recompilations torch would quietly run eagerly.
            torch._dynamo.config.fail_on_recompile_limit_hit = True
        devices = {config.device: as_training(config) for config in self.configs}
        for name in devices if compiled else ():  # so that no variant pays for the compiler's start
            torch.compile(torch.nn.ReLU())(torch.zeros(1, device=name))
        batches = {name: Run(config, self.data_dir).batches for name, config in devices.items()}
        variants = [Variant(config, self, batches[config.device]) for config in self.configs]
        for variant in variants:
            variant.attempt(variant.warm_up)
        for number in range(math.ceil(self.configs[0].steps / VISIT_SAMPLES)):
            for variant in timing.alternate(variants, number):
                variant.attempt(variant.sample)
        rounds, firsts = uuid4().hex, {}
        for variant in variants:
            first = firsts.setdefault(variant.config.opt, variant)
            yield variant, variant.row(first, rounds)
        if compiled:
            torch.compiler.reset()  # its cache keeps networks alive, and counts towards the limit


def expand_groups(grid: Row, data_dir: str) -> list[Group]:
    """A group for each network, in which each variant's optimisers follow one another."""
    grid["dataset"] = pin_datasets(grid, data_dir)
    devices = list(dict.fromkeys(device.resolve_device(name).type for name in grid["device"]))
    variants = [v for name in devices for v in expand_variants(name, grid, len(devices) == 1)]
    shared = grid | {key: [None] for key in variants[0]} | {"opt": grid["opt"][:1]}
    return [
        Group([replace(base, opt=opt, **v) for v in variants for opt in grid["opt"]], data_dir)
        for base in expand_grid(HwTrainConfig, shared)
    ]


class Variant(Side):
    """One variant while it is measured; those of one device share their `batches`."""

    def __init__(self, config: HwTrainConfig, group: Group, batches: Batches) -> None:
        super().__init__(config)
        self.group, self.batches, self.device = group, batches, batches.device
        self.threads, self.phases_ms = config.threads or group.threads, []

    def attempt(self, work: Callable[[], None]) -> None:
        """Do a part of the measurement, prepared for the variant, unless a part before failed."""
        if self.error:
            return
        self.freed_memory_kept = device.prepare_process(self.threads)
        try:
            with device.tf32(self.config.precision == "tf32"):
                work()
        except Exception as error:  # out of memory, or no kernel for it: the others go on
            print_more(error)
            self.error = explain_failure(error, as_dict(self.config))
            self.run = self.step = None

    def build(self) -> None:
        run = Run(as_training(self.config), self.group.data_dir)
        run.batches = run.setup.batches = self.batches
        self.n_train, self.n_classes = len(run.split.train), len(run.dataset.classes)
        if self.config.loop == "notebook":
            steps = notebook_steps(run, self.config.precision)
            self.step = lambda: next(steps)
            return
        # The same batches for every variant, epoch after epoch, without the last that is not full.
        orders, size = map(run.order, itertools.count(1)), self.config.batch_size
        full = (index[:size] for order in orders for index in order if len(index) >= size)

        def step(lap: Callable[[str], None] = lambda phase: None) -> Tensor:
            return run.setup.step(run.setup, *run.batches.load(next(full), lap), None, lap)[0]

        self.run, self.step = run, step

    def warm_up(self) -> None:
        """The untimed steps, the first of which is timed apart: it may compile."""
        before = timing.tensor_bytes(self.device)
        self.build()
        with timing.without_kept_kernels(self.config.compile):
            start_ms = device.now_ms(self.device)
            self.step()
            self.first_step_ms = device.now_ms(self.device) - start_ms
        for _ in range(self.config.warmup - 1):
            self.step()
        self.own_bytes = timing.tensor_bytes(self.device) - before

    def sample(self) -> None:
        """The next timed samples, and a step more whose phases are timed."""
        here, visit = self.device, []
        period_ms = 100 if here.type == "cuda" else 0  # of NVML's counter; RAPL's is a millisecond
        steps = 1 if here.type == "cpu" else 10
        if here.type != "cpu":
            # Some steps first, for clocks that fell while others had their turn, and so that the
            # first period of the meter is wholly its own. A CPU's first step after another
            # variant's took as long as its later ones (within 2 % on 2 cores).
            self.step()
            self.take_steps(period_ms)
        timing.reset_peak_memory(here)
        waiting = timing.tensor_bytes(here) - self.own_bytes  # tensors of the other variants
        opened_ms = device.now_ms(here)  # so that the meter starts with nothing queued
        meter = timing.open_meter(here)
        for _ in range(min(VISIT_SAMPLES, self.config.steps - len(self.samples_ms))):
            start_ms = device.now_ms(here)
            for _ in range(steps):
                loss = self.step()
            visit.append((device.now_ms(here) - start_ms) / steps)
        metered = steps * len(visit) + self.take_steps(opened_ms + period_ms - device.now_ms(here))
        self.add(visit, meter(), self.config.batch_size * metered)
        # A CPU's is the whole process's, in which freed memory of other variants stays.
        alone = len(self.group.configs) == 1
        if (here.type != "cpu" or alone) and (peak := timing.peak_memory_bytes(here)):
            self.peak_bytes = max(self.peak_bytes, peak - waiting)
        if self.config.loop == "ours":
            laps = timing.Laps(here)
            self.step(laps)
            self.phases_ms.append(laps.ms)
        if not loss.isfinite():
            raise ArithmeticError(f"loss {loss.item()} after {len(self.samples_ms)} samples")

    def take_steps(self, least_ms: float) -> int:
        """Steps that take at least so long, none where that is no time. Returns: how many."""
        steps, end_ms = 0, device.now_ms(self.device) + least_ms
        while device.now_ms(self.device) < end_ms:
            self.step()
            steps += 1
        return steps

    def train_whole_epoch(self) -> None:
        """Train an untrained network for one epoch, as train.py does, and test it. Before, it meets
        and forgets both sizes of batches that an epoch has, for compilers and libraries to choose
        their work."""
        self.build()
        run, order = self.run, self.run.order(1)
        untrained = copy.deepcopy(run.state())
        for index in (order[0], order[-1]) * 2:  # torch.compile makes a graph at the second
            run.setup.step(run.setup, *run.batches.load(index))
        run.restore(untrained)
        trained = run.train_steps(1)
        self.whole_epoch = {
            "images_per_s": self.n_train / trained["train_ms"] * 1e3,
            "epoch_ms": trained["train_ms"],
            "extrapolated": False,
            "bn_statistics": trained["bn_statistics"],
            "test_acc": run.test(run.split.test)[1],
        }

    def row(self, first: "Variant", rounds: str) -> Row:
        """The metrics of its row: how fast it trains, where the time goes, what the device's own
        peaks would allow; `first` is the optimiser's first variant, to compare it with."""
        torch.set_num_threads(self.threads)  # which the row's env names
        if self.config.full_epoch:
            self.attempt(self.train_whole_epoch)
        self.judge()
        config, laps = self.config, self.phases_ms
        metrics = {"label": config.describe(), "speedup": self.over(first, "hw_train")}
        if self.error:  # a refused speed is none
            return metrics
        median_ms = self.summary["median"]
        epoch_ms = median_ms * math.ceil(self.n_train / config.batch_size)
        phases = {p: statistics.median(lap[p] for lap in laps) for p in laps[0]} if laps else {}
        metrics |= {
            "images_per_s": config.batch_size / median_ms * 1e3,
            "step_ms": self.summary,
            "phase_ms": dict.fromkeys(PHASES) | phases if laps else None,
            "first_step_ms": self.first_step_ms,
            "compile_ms": self.first_step_ms - median_ms if config.compile else None,
            "epoch_ms": epoch_ms,
            "extrapolated": True,
            "test_acc": None,
            "freed_memory_kept": self.freed_memory_kept,
        }
        if config.full_epoch:
            metrics |= self.whole_epoch | {"extrapolation": epoch_ms / self.whole_epoch["epoch_ms"]}
        return metrics | self.of_peaks(median_ms) | self.measured(rounds, "step")

    def of_peaks(self, median_ms: float) -> Row:
        """The shares of the device's own peak, and of what its peaks allow layer by layer."""
        config, size = self.config, self.config.image_size
        peak = peaks.measure_peaks(config.device, config.precision, self.threads)
        model = build_model(config.model, self.n_classes, image_size=size)
        costs = peaks.count_layers(model, config.batch_size, size)
        if costs is None:
            return {"mfu": None, "roofline": None}
        bound_ms = peaks.train_bound_ms(costs, peak, config.precision)
        roofline = {f"peak_{name}": value for name, value in vars(peak).items()}
        roofline |= {"bound_ms": bound_ms, "fraction": bound_ms / median_ms}
        mfu = costs.train_step_flops / median_ms * 1e3 / peak.flops_per_s
        return {"mfu": mfu, "roofline": roofline}
