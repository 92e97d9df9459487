"""One training run in memory: images, network, optimiser and history, saved and restored whole."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from common.base.cli import UsageError, as_dict, first_line
from common.base.config import TrainConfig
from common.data.batches import Batches, draw_views, epoch_order, measure_pixels, split_batches
from common.data.datasets import Dataset, cached_dataset, split_dataset
from common.deploy.network import as_tested
from common.models import build_model, build_on_meta
from common.train import loop as engine
from common.train.checkpoint import load_weights
from common.train.distributed import ALONE, World, check_world


class Run:
    """A trajectory of weights: one training configuration, some epochs of which are done."""

    def __init__(self, config: TrainConfig, data_dir: str, world: World = ALONE) -> None:
        """Raises: UsageError for data, split, device, precision or weights that are not there."""
        self.config, self.world = config, replace(world, sync_bn=config.sync_bn)
        self.device = torch.device(config.device)
        self.precision = engine.resolve_precision(config.amp, config.amp_dtype, self.device)
        self.dataset = cached_dataset(config.dataset, data_dir, config.image_size)
        self.split = split_dataset(self.dataset, config.split, config.split_seed, config.limit)
        self.statistics = measure_pixels(self.dataset.images[self.split.train])
        self.batches = Batches(
            self.dataset, self.statistics, config.image_size, self.device,
            data_on=config.data_on, pin_memory=config.pin_memory,
            channels_last=config.channels_last,
        )  # fmt: skip
        torch.manual_seed(config.seed)
        self.model = new_model(config, self.dataset)
        self.model.to(self.device, memory_format=self.batches.memory_format)
        self.optimizer = engine.build_optimizer(
            self.model, config.opt, config.lr, config.weight_decay, config.image_size
        )
        if config.sync_bn:  # the same parameters
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        forward = engine.prepare_forward(self.model, config.compile, config.channels_last)
        self.forward = world.wrap(forward)
        self.tested = as_tested(self.model, as_dict(config))
        self.scaler = engine.build_scaler(self.device, self.precision)
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}  # the weights of highest validation accuracy so far

    def order(self, epoch: int) -> list[Tensor]:
        """The batches of one epoch, as indices into the data set, or as views where they move."""
        config = self.config
        order = self.split.train[epoch_order(len(self.split.train), config.seed, epoch)]
        if config.translate or config.mirrored or config.erase:
            order = draw_views(
                order, config.translate, config.mirrored, config.seed, epoch, config.erase,
                tuple(self.dataset.images.shape[-2:]),
            )  # fmt: skip
        return split_batches(order.to(self.batches.home), config.batch_size)

    def lrs(self, epoch: int, steps: int) -> list[float]:
        """The learning rate of each of an epoch's steps."""
        total = steps * self.config.epochs
        return [
            engine.schedule_lr(self.config.schedule, self.config.lr, step, total)
            for step in range(steps * (epoch - 1), steps * epoch)
        ]

    def train_steps(self, epoch: int) -> engine.EpochResult:
        """The steps of one epoch.

        Raises: engine.NonFiniteLoss, which names the epoch.
        """
        order = self.order(epoch)
        label = f"{self.config.describe()} [{epoch}/{self.config.epochs}]"
        self.world.seed(self.config.seed, epoch)
        try:
            result = engine.train_epoch(
                self.forward, self.optimizer, self.scaler, self.batches, order, self.precision,
                label=None if self.world.rank else label, lrs=self.lrs(epoch, len(order)),
                label_smoothing=self.config.label_smoothing, world=self.world,
            )  # fmt: skip
        except engine.NonFiniteLoss as error:
            error.metrics["epoch"] = epoch
            raise
        return result

    def train_one_epoch(self) -> dict[str, Any]:
        """Train and validate the next epoch; return its metrics, which join the history."""
        epoch = len(self.history) + 1
        trained = self.train_steps(epoch)
        steps = epoch * len(split_batches(self.split.train, self.config.batch_size))
        refreshed = engine.refresh_statistics(
            self.model, self.batches, self.split.train, steps
        )  # fmt: skip
        self.world.average_buffers(self.model)
        val_loss, val_acc, _ = self.test(self.split.val)
        metrics = {
            "epoch": epoch, "train_loss": trained.loss, "train_acc": trained.acc,
            "val_loss": val_loss, "val_acc": val_acc, "lr": self.optimizer.param_groups[0]["lr"],
            "train_ms": trained.train_ms, "bn_statistics": refreshed,
        }  # fmt: skip
        self.history.append(metrics)
        if best_epoch(self.history) is metrics:
            self.best = copy.deepcopy(self.weights())
        return metrics

    def test(self, index: Tensor) -> tuple[float, float, Tensor]:
        """Loss, accuracy and logits on the images of `index`. Shapes: (N,) -> (N, classes)."""
        logits = self.world.evaluate(
            lambda part: engine.evaluate(self.tested, self.batches, part), index,
            engine.EVAL_BATCH_SIZE,
        )  # fmt: skip
        return *engine.score(logits, self.dataset.labels[index]), logits

    def seen(self) -> Tensor:
        """Training images to test on, as many as there are to validate on: how well the network
        knows what it was shown. Shapes: (N,)."""
        return self.split.train[: len(self.split.val)]

    def weights(self) -> dict[str, Any]:
        """A checkpoint's content: the weights, and what is needed to use them."""
        mean, std = self.statistics
        return {
            "model": self.model.state_dict(), "config": as_dict(self.config),
            "classes": list(self.dataset.classes), "mean": mean.tolist(), "std": std.tolist(),
            "epoch": len(self.history),
        }  # fmt: skip

    def state(self) -> dict[str, Any]:
        """What a resumed run continues from, bit for bit."""
        return self.weights() | {
            "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(),
            "history": self.history, "best": self.best, "rng": torch.get_rng_state(),
            "device_rng": self._device_generator().get_rng_state(), "arithmetic": arithmetic(),
        }  # fmt: skip

    def _device_generator(self) -> Any:
        """The module with the generator that the device draws from, such as torch.cuda."""
        return torch if self.device.type == "cpu" else torch.get_device_module(self.device)

    def restore(self, state: dict[str, Any]) -> None:
        """Become the run that `state` was taken from."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.history, self.best = state["history"], state["best"]
        if state["arithmetic"] != arithmetic():
            print(
                f"  continues in {arithmetic()} a run begun in {state['arithmetic']}: "
                "the same to rounding, not to the bit"
            )
        torch.set_rng_state(state["rng"])
        self._device_generator().set_rng_state(state["device_rng"])


def best_epoch(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The epoch of highest validation accuracy, the first of equals."""
    return max(history, key=lambda metrics: metrics["val_acc"])


def arithmetic() -> str:
    """What the order of additions depends on, on a CPU: results are bit-identical where this is
    the same and the kind of CPU is."""
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {instructions}"


def new_model(config: TrainConfig, dataset: Dataset) -> nn.Module:
    """The network before its first step: drawn from the seed, or read from --weights."""
    model = build_model(
        config.model, len(dataset.classes), config.seed, image_size=config.image_size
    )
    if config.weights:
        load_weights(model, config.weights)
    return model


def check_config(config: TrainConfig, data_dir: str) -> str:
    """Say what is wrong with a configuration before any training starts.

    Returns: the precision that it will train in.
    Raises: UsageError.
    """
    check_world(config)
    device = torch.device(config.device)
    precision = engine.resolve_precision(config.amp, config.amp_dtype, device)
    obstacle = engine.compile_obstacle() if config.compile and device.type == "cpu" else None
    if obstacle:
        raise UsageError(f"--compile true: {obstacle}")
    dataset = cached_dataset(config.dataset, data_dir, config.image_size)
    split_dataset(dataset, config.split, config.split_seed)
    check_network(config.model, config.image_size, config.opt, min(2, config.batch_size))
    if device.type == "cpu" and precision == "bf16":
        name = find_one_pixel_convolution(config.model, config.image_size)
        if name:
            raise UsageError(
                f"--image-size {config.image_size}: {name} would see a single pixel, where oneDNN "
                "leaves part of its bf16 weight gradient unset; use larger images or --amp false"
            )
    if config.weights:
        new_model(config, dataset)
    return precision


@cache
def check_network(model: str, image_size: int, opt: str, images: int = 2) -> None:
    """Raises: UsageError when the network cannot be trained so on batches of so many images of that
    size: BatchNorm needs two values of a channel."""
    try:
        network = build_on_meta(model, 10, image_size).train()
        network(torch.empty(images, 3, image_size, image_size, device="meta"))
    except Exception as error:  # each network fails in its own way
        raise UsageError(
            f"--model {model} cannot train at --image-size {image_size} on {images} images: "
            f"{first_line(error)}; try another size (most take 64 and 224) or larger batches"
        ) from None
    if opt == "muon" and not engine.find_hidden(
        build_model(model, 10, image_size=image_size), image_size
    ):
        raise UsageError(
            f"--opt muon: {model} has no convolution after its first whose scale a normalisation "
            "takes away, which muon is for; use adamw"
        )


@cache
def find_one_pixel_convolution(model: str, image_size: int) -> str | None:
    """The first strided convolution that is wider than its input of one pixel, if there is one.

    In bf16 on a CPU oneDNN (torch 2.14) returns uninitialised memory as the weight gradient of the
    taps that only ever meet padding.
    """
    found = []

    def look(name: str, conv: nn.Conv2d, inputs: tuple[Tensor]) -> None:
        if min(inputs[0].shape[-2:]) == 1 and max(conv.kernel_size) > 1 and max(conv.stride) > 1:
            found.append(name)

    network = build_on_meta(model, 10, image_size).eval()
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_pre_hook(lambda conv, x, name=name: look(name, conv, x))
    network(torch.empty(1, 3, image_size, image_size, device="meta"))
    return found[0] if found else None


def estimate_ms(configs: Iterable[TrainConfig], data_dir: str) -> float:
    """Time of the training steps of some configurations, from a few timed steps of each kind."""
    step_ms: dict[TrainConfig, float] = {}
    total_ms = 0.0
    for config in configs:
        # At a negligible rate, so that one that diverges does so in its own run and not here.
        sample = replace(config, seed=0, split_seed=0, lr=1e-9, epochs=1, limit=None)
        kind = replace(sample, dataset="mnist")
        if kind not in step_ms:
            step_ms[kind] = _time_steps(sample, data_dir)
        dataset = cached_dataset(config.dataset, data_dir, config.image_size)
        split = split_dataset(dataset, config.split, config.split_seed, config.limit)
        total_ms += step_ms[kind] * config.epochs * len(split.train) / config.batch_size
    return total_ms


def _time_steps(config: TrainConfig, data_dir: str, steps: int = 3) -> float:
    """Milliseconds a step, after as many untimed ones; NaN where the steps fail, for what fails
    here will fail, and be logged, in its own run."""
    try:
        run = Run(config, data_dir)
        args = (run.forward, run.optimizer, run.scaler, run.batches)
        engine.train_epoch(*args, run.order(1)[:steps], run.precision)
        timed = run.order(2)[:steps]
        return engine.train_epoch(*args, timed, run.precision).train_ms / len(timed)
    except Exception:
        return float("nan")
