"""Training speed of variants that are to be compared: whole steps, in alternating rounds."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from common.base.cli import first_line
from common.base.config import HwTrainConfig
from common.cost import count_costs
from common.data.batches import Batches, epoch_order, measure_pixels, split_batches
from common.data.datasets import Dataset, Split
from common.judge.stats import ratio_interval
from common.models import build_model
from common.speed.energy import open_meter
from common.speed.peaks import bound_ms, measure_peaks
from common.speed.timing import (
    Laps,
    alternate,
    held_bytes,
    judge_noise,
    peak_memory_bytes,
    reset_peak_memory,
    summarize_ms,
    without_kept_kernels,
)
from common.train.device import now_ms, prepare_process
from common.train.loop import (
    Setup,
    evaluate,
    prepare_forward,
    refresh_statistics,
    score,
    train_epoch,
    train_step,
)
from common.train.notebook import notebook_steps
from common.train.optim import build_optimizer

VISIT_SAMPLES = 2  # timed samples of a variant before it is the next one's turn
ACCELERATOR_STEPS = 10  # steps in a sample
PHASES = ("data", "copy", "forward", "backward", "optimizer")


def endless_batches(train: Tensor, config: HwTrainConfig, home: torch.device) -> Iterator[Tensor]:
    """Full batches of training images, epoch after epoch, the same for every variant: indices, on
    the device `home`."""
    for epoch in itertools.count(1):
        order = train[epoch_order(len(train), config.seed, epoch)].to(home)
        yield from order.split(config.batch_size)[: len(order) // config.batch_size]


class Side:
    """One variant while it is measured: its network, its timings, and its error, if any."""

    def __init__(
        self, config: HwTrainConfig, dataset: Dataset, split: Split,
        statistics: tuple[Tensor, Tensor], batches: Batches, threads: int, alone: bool,
    ) -> None:  # fmt: skip
        self.config, self.dataset, self.split, self.batches = config, dataset, split, batches
        self.statistics = statistics
        self.threads = config.threads or threads
        self.alone = alone
        self.pending = endless_batches(split.train, config, batches.home)
        self.first_step_ms: float | None = None
        self.samples_ms: list[float] = []
        self.visits_ms: list[float] = []
        self.phases_ms: list[dict[str, float]] = []
        self.peak_bytes: int | None = None
        self.joules: float | None = None
        self.steps_metered = 0
        self.epoch_ms: float | None = None
        self.test_acc: float | None = None
        self.error: str | None = None

    def attempt(self, work: Callable[[], None]) -> None:
        """Do a part of the measurement in a process prepared for the variant, unless a part before
        failed."""
        if self.error:
            return
        self.kept = prepare_process(self.threads)
        try:
            work()
        except Exception as error:  # out of memory, or no kernel for it: the others go on
            self.error = first_line(error)
            self.model = self.forward = self.setup = self.notebook = None

    def build(self) -> None:
        """The untrained network and its optimiser."""
        config, device = self.config, self.batches.device
        if config.loop == "notebook":
            self.notebook = notebook_steps(
                config, self.dataset, self.split.train, self.statistics, device, config.precision
            )
            return
        classes = len(self.dataset.classes)
        self.model = build_model(config.model, classes, config.seed, image_size=config.image_size)
        self.model.to(device, memory_format=self.batches.memory_format)
        self.forward = prepare_forward(self.model, config.compile)
        self.prepare_setup()

    def prepare_setup(self) -> None:
        """A new optimiser, and what a step needs beside."""
        config = self.config
        optimizer = build_optimizer(self.model, config.opt, config.lr, None, config.image_size)
        self.setup = Setup(self.forward, optimizer, self.batches, config.precision)

    def step(self, lap: Callable[[str], None] = lambda phase: None) -> Tensor:
        """One whole step on the next images; returns the loss."""
        if self.config.loop == "notebook":
            return next(self.notebook)
        inputs, labels = self.batches.load(next(self.pending), lap)
        return train_step(self.setup, inputs, labels, lap=lap)[0]

    def warm_up(self) -> None:
        """The untimed steps, the first of which is timed apart: it may compile."""
        before = held_bytes(self.batches.device)
        self.build()
        with without_kept_kernels(self.config.compile):
            start_ms = now_ms(self.batches.device)
            self.step()
            self.first_step_ms = now_ms(self.batches.device) - start_ms
        for _ in range(self.config.warmup - 1):
            self.step()
        self.own_bytes = held_bytes(self.batches.device) - before

    def sample(self) -> None:
        """The next timed samples, and a step more whose phases are timed."""
        device = self.batches.device
        steps = 1
        if device.type != "cpu":
            # One step first, for clocks that fell while others had their turn. A CPU's first step
            # after another variant's took as long as its later ones (within 2 % on 2 cores).
            steps = ACCELERATOR_STEPS
            self.step()
        reset_peak_memory(device)
        others = held_bytes(device) - self.own_bytes  # of the variants that wait for their turn
        now_ms(device)  # so that the meter starts with nothing queued
        meter = open_meter(device)
        visit = []
        for _ in range(min(VISIT_SAMPLES, self.config.steps - len(self.samples_ms))):
            start_ms = now_ms(device)
            for _ in range(steps):
                loss = self.step()
            visit.append((now_ms(device) - start_ms) / steps)
        if meter and (used := meter()) is not None:
            self.joules = (self.joules or 0.0) + used
            self.steps_metered += steps * len(visit)
        # A CPU's is the whole process's, in which freed memory of other variants stays.
        if (device.type != "cpu" or self.alone) and (peak := peak_memory_bytes(device)):
            self.peak_bytes = max(self.peak_bytes or 0, peak - others)
        self.samples_ms += visit
        self.visits_ms.append(sum(visit) / len(visit))
        if self.config.loop == "ours":
            laps = Laps(device)
            self.step(laps)
            self.phases_ms.append(laps.ms)
        if not loss.isfinite():
            raise ArithmeticError(f"loss {loss.item()} after {len(self.samples_ms)} samples")

    def train_whole_epoch(self) -> None:
        """Train an untrained network for one epoch, and test it."""
        self.build()
        train, test = self.split.train, self.split.test
        order = train[epoch_order(len(train), self.config.seed, 1)].to(self.batches.home)
        order = split_batches(order, self.config.batch_size)
        self.rehearse(order)
        torch.manual_seed(self.config.seed)  # of dropout: train.py's runs begin so
        trained = train_epoch(self.setup, order, label=self.config.describe())
        self.epoch_ms = trained["train_ms"]
        self.bn_statistics = refresh_statistics(self.model, self.batches, train, len(order))
        logits = evaluate(self.model, self.batches, test)
        self.test_acc = score(logits, self.dataset.labels[test])[1]

    def rehearse(self, order: Sequence[Tensor]) -> None:
        """Meet both sizes of batches that an epoch has, for which a compiler compiles and libraries
        choose their work, and leave the network untrained."""
        untrained = copy.deepcopy(self.model.state_dict())
        for index in (order[0], order[-1]) * 2:  # a CUDA graph is recorded at its second turn
            inputs, labels = self.batches.load(index)
            train_step(self.setup, inputs, labels)
        self.model.load_state_dict(untrained)
        self.prepare_setup()

    def metrics(self) -> dict[str, Any]:
        """What was measured, but for the comparison."""
        config, n_train = self.config, len(self.split.train)
        step_ms = summarize_ms(self.samples_ms)
        noise, refused = judge_noise(self.samples_ms, config.accept_noise)
        if refused:
            self.error = refused
        measured = {
            "images_per_s": config.batch_size / step_ms["median"] * 1e3, "step_ms": step_ms,
            "noise": noise, "phase_ms": self._phases(), "first_step_ms": self.first_step_ms,
            "compile_ms": self.first_step_ms - step_ms["median"] if config.compile else None,
            "peak_memory_bytes": self.peak_bytes,
            "energy_per_image_j": self.joules / self.steps_metered / config.batch_size
            if self.joules else None,
            "epoch_ms": step_ms["median"] * math.ceil(n_train / config.batch_size),
            "extrapolated": True, "test_acc": None, "freed_memory_kept": self.kept,
        }  # fmt: skip
        measured |= self._roofline(step_ms["median"])
        if config.full_epoch:
            measured |= {
                "images_per_s": n_train / self.epoch_ms * 1e3, "epoch_ms": self.epoch_ms,
                "extrapolated": False, "test_acc": self.test_acc,
                "bn_statistics": self.bn_statistics,
                "extrapolation": measured["epoch_ms"] / self.epoch_ms,
            }  # fmt: skip
        return measured

    def _phases(self) -> dict[str, float | None] | None:
        """Median milliseconds of each phase, None for one that a step does not have."""
        if not self.phases_ms:
            return None
        return {
            phase: summarize_ms([ms[phase] for ms in self.phases_ms])["median"]
            if phase in self.phases_ms[0] else None
            for phase in PHASES
        }  # fmt: skip

    def _roofline(self, step_ms: float) -> dict[str, Any]:
        """The device's measured peaks, and the shares of them that a step reaches."""
        config = self.config
        torch.set_num_threads(self.threads)
        peaks = measure_peaks(config.device, config.precision, self.threads)
        model = build_model(
            config.model, len(self.dataset.classes), image_size=config.image_size
        )  # fmt: skip
        try:
            shape = (config.batch_size, 3, config.image_size, config.image_size)
            costs = count_costs(model, shape, "conv_linear")
        except ValueError:  # matrices multiplied outside of layers: no count by layer
            return {"mfu": None, "roofline": None}
        least_ms = bound_ms(costs, peaks, config.precision, training=True)
        return {
            "mfu": costs.train_step_flops / step_ms * 1e3 / peaks.flops_per_s,
            "roofline": {
                "peak_flops_per_s": peaks.flops_per_s, "peak_bytes_per_s": peaks.bytes_per_s,
                "bound_ms": least_ms, "fraction": least_ms / step_ms,
            },
        }  # fmt: skip


def compare(side: Side, first: Side) -> dict[str, Any]:
    """How many times as fast as the first variant, with the interval of its interleaved blocks."""
    if side.error or first.error:
        return {"ratio": None, "interval": None}
    ratio, interval = ratio_interval(first.visits_ms, side.visits_ms)
    return {"ratio": ratio, "interval": interval}


def measure_group(
    group: list[HwTrainConfig], dataset: Dataset, split: Split, threads: int
) -> list[Side]:
    """Measure variants that are to be compared, in alternating rounds.

    `threads`: those of a variant that names none.
    """
    config = group[0]
    statistics = measure_pixels(dataset.images[split.train])
    batches = {
        name: Batches(
            dataset,
            statistics,
            group[0].image_size,
            torch.device(name),
            data_on=group[0].data_on,
            pin_memory=group[0].pin_memory,
        )
        for name in dict.fromkeys(variant.device for variant in group)
    }  # fmt: skip
    sides = [
        Side(
            variant, dataset, split, statistics, batches[variant.device], threads,
            alone=len(group) == 1,
        )
        for variant in group
    ]  # fmt: skip
    for side in sides:
        side.attempt(side.warm_up)
    for number in range(math.ceil(config.steps / VISIT_SAMPLES)):
        for side in alternate(sides, number):
            side.attempt(side.sample)
    return sides
