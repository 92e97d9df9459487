"""One training run in memory: images, network, optimiser and history, saved and restored whole."""

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from common.base.cli import as_dict, first_line, format_time
from common.base.config import METRICS, PUBLISHED, TrainConfig
from common.base.log import save_predictions
from common.base.machine import describe_machine
from common.data import datasets, scores
from common.data.batches import Batches, draw_views, epoch_order, measure_pixels, split_batches
from common.models import find_published
from common.train import loop
from common.train.checkpoint import new_model, save_checkpoint
from common.train.conv import use_matmul
from common.train.device import now_ms, out_of_memory, resolve_precision, threads
from common.train.distributed import ALONE, World
from common.train.grid import answers_file
from common.train.optim import build_optimizer, schedule_lr, slow_body

Metrics = dict[str, Any]
# Settings that what a frozen body answers depends on.
BODY = ("dataset", "split", "split_seed", "limit", "image_size", "model", "weights_sha256")
FEATURES: dict[Any, Any] = {}  # of the last frozen network, which other seeds have too


class Features(Batches):
    """Batches of what the frozen body of a network answers to each image, asked once."""

    def __init__(self, body: nn.Module, width: int, batches: Batches) -> None:
        vars(self).update(vars(batches))  # of the same images
        self.body, n = body.eval(), len(self.labels)
        self.values = torch.zeros(n, width, device=self.device)
        self.known = torch.zeros(n, dtype=torch.bool, device=self.home)

    def load(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: (B,) -> (B, features), labels (B,), on the device."""
        unknown = index[~self.known[index]]
        if len(unknown):
            with torch.no_grad():
                self.values[unknown.to(self.device)] = self.body(super().load(unknown)[0])
            self.known[unknown] = True
        return self.values[index.to(self.device)], self.labels[index].to(self.device)


class Run:
    """One training configuration, some epochs of which are done."""

    def __init__(self, config: TrainConfig, data_dir: str, world: World = ALONE) -> None:
        self.config, self.world = config, replace(world, sync_bn=config.sync_bn)
        self.device = torch.device(config.device)
        self.precision = resolve_precision(config.amp, config.amp_dtype, self.device)
        self.dataset, self.split = datasets.load_split(config, data_dir)
        self.statistics = measure_pixels(self.dataset.images[self.split.train])
        if config.weights == PUBLISHED:
            known, grey = find_published(config.model), len(self.statistics[0]) == 1
            known = torch.tensor([known.mean, known.std])
            self.statistics = tuple(known.mean(1, keepdim=True) if grey else known)
        placed = config.image_size, self.device, config.data_on, config.pin_memory
        self.batches = Batches(self.dataset, self.statistics, *placed, config.channels_last)
        torch.manual_seed(config.seed)
        self.model, head, new = new_model(config, len(self.dataset.classes))
        self.model.to(self.device, memory_format=self.batches.memory_format)
        self.trained = self.freeze(head[0].rpartition(".")[0]) if config.freeze else self.model
        settings = config.opt, config.lr, config.weight_decay, config.image_size
        optimizer = build_optimizer(self.trained, *settings)
        if new and not config.freeze:
            slow_body(optimizer, [self.model.get_parameter(name) for name in head])
        if config.sync_bn:  # in place: the same parameters
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        forward = self.trained
        if config.compile:
            forward = loop.Compiled(forward)
        elif config.channels_last:  # which matrix products keep to
            use_matmul(forward)
        if world.size > 1:  # BatchNorm's statistics are averaged once an epoch, not at every step
            forward = nn.parallel.DistributedDataParallel(forward, forward_sync_buffers=False)
        balanced = self.weigh_classes() if config.class_weight == "balanced" else None
        settings = self.precision, config.label_smoothing, balanced, self.world, config.cuda_graph
        self.setup = loop.Setup(forward, optimizer, self.batches, *settings)
        self.tested = loop.as_tested(self.trained, as_dict(config))
        cpu = config.device == "cpu"  # else its random numbers are a module's, such as torch.cuda
        self.generator = torch if cpu else torch.get_device_module(self.device)
        self.history: list[Metrics] = []
        self.best: dict[str, Any] = {}  # the weights that were best on validation so far
        self.places: list[str] = []  # where it has trained, in order: place_of
        self.answers: Tensor | None = None  # logits on the validation images, of the last epoch

    def freeze(self, name: str) -> nn.Module:
        """From now on batches are of what is before the last layer. Returns: that layer."""
        last = self.model.get_submodule(name)
        key = (*(getattr(self.config, setting) for setting in BODY), self.device)
        if key not in FEATURES:
            FEATURES.clear()
            body = copy.deepcopy(self.model)
            body.set_submodule(name, nn.Identity())
            FEATURES[key] = Features(body, last.in_features, self.batches)
        self.batches = FEATURES[key]
        return last

    def weigh_classes(self) -> Tensor:
        """What an image of each class weighs: n / (classes * n of the class), of those it has."""
        counts = self.dataset.labels[self.split.train].bincount(minlength=len(self.dataset.classes))
        weights = counts.sum() / (counts.count_nonzero() * counts.clamp(min=1))
        return weights.to(self.device)

    def order(self, epoch: int) -> list[Tensor]:
        """The batches of one epoch, as indices into the data set, or as views where they move."""
        config = self.config
        order = self.split.train[epoch_order(len(self.split.train), config.seed, epoch)]
        if config.translate or config.mirrored or config.erase or config.augment == "photo":
            order = draw_views(order, config, epoch, self.dataset.images.shape[-2:])
        return split_batches(self.batches.place(order), config.batch_size)

    def train_steps(self, epoch: int) -> Metrics:
        """Take the steps of one epoch, and statistics again that lag behind them. Raises:
        NonFiniteLoss, which names the epoch."""
        config, order = self.config, self.order(epoch)
        steps = range(len(order) * (epoch - 1), len(order) * epoch)
        total = len(order) * config.epochs
        lrs = [schedule_lr(config.schedule, config.lr, step, total) for step in steps]
        label = f"{config.describe()} [{epoch}/{config.epochs}]"
        if self.world.size > 1:  # each draws its own inside the network, as by dropout
            numbers = np.random.SeedSequence([config.seed, epoch, self.world.rank])
            torch.manual_seed(int(numbers.generate_state(1)[0]))
        try:
            done = loop.train_epoch(self.setup, order, lrs, None if self.world.rank else label)
        except loop.NonFiniteLoss as error:
            error.metrics["epoch"] = epoch
            raise
        train = self.split.train
        refreshed = loop.refresh_statistics(self.trained, self.batches, train, steps.stop)
        for buffer in self.model.buffers() if self.world.size > 1 else ():
            if buffer.is_floating_point():  # BatchNorm's running statistics become all images'
                buffer.copy_(self.world.mean(buffer))
        # bn_statistics: training images they are of; None: running ones
        return done | {"lr": lrs[-1], "bn_statistics": refreshed}

    def train_one_epoch(self) -> Metrics:
        """Train and validate the next epoch, and print how it went, the first process alone.
        Returns: its metrics, which join the history."""
        epoch, started = len(self.history) + 1, time.monotonic()
        metrics = {"epoch": epoch} | self.train_steps(epoch)
        start_ms = now_ms(self.device)
        val_loss, val_acc, self.answers = self.test(self.split.val)
        metrics["eval_ms"] = now_ms(self.device) - start_ms
        metrics |= {"val_loss": val_loss, "val_acc": val_acc, **self.score(self.answers, "val")}
        metrics["threads"] = threads.take_used()  # the least and the most
        self.places = list(dict.fromkeys([*self.places, place_of(self.config.device)]))
        chosen_by = f"val_{METRICS[self.config.metric]}"
        best = max((done[chosen_by] for done in self.history), default=-1)
        self.history.append(metrics)
        if metrics[chosen_by] > best:
            self.best = copy.deepcopy(self.weights())
        if not self.world.rank:
            left_s = (self.config.epochs - epoch) * (time.monotonic() - started)
            images = len(self.split.train)
            print(format_epoch(metrics, self.config, images, left_s), flush=True)
        return metrics

    def test(self, index: Tensor) -> tuple[float, float, Tensor]:
        """Loss, accuracy and logits on the images of `index`. Shapes: (N,) -> (N, classes)."""
        answer = partial(loop.evaluate, self.tested, self.batches)
        logits = self.world.evaluate(answer, index, loop.EVAL_BATCH_SIZE)
        return *loop.score(logits, self.dataset.labels[index]), logits

    def score(self, logits: Tensor, part: str) -> Metrics:
        labels = self.dataset.labels[getattr(self.split, part)]
        return scores.score_part(labels, logits.argmax(1), len(self.dataset.classes), part)

    def pause(self, folder: Path) -> None:
        """Keep the answers on the validation images, for paired tests; nothing is tested."""
        index = self.split.val
        logits = self.test(index)[2] if self.answers is None else self.answers  # it was restored
        file = answers_file(folder, self.config, len(self.history))
        labels = self.dataset.labels[index]
        save_predictions(file, pred=logits.argmax(1), label=labels, index=index)

    def finish(self, folder: Path | None, name: str) -> Metrics:
        """Test the weights, once, and keep them and their predictions in a results folder.
        Returns: what a row of the run so far holds."""
        start_ms, index = now_ms(self.device), self.split.test
        test_loss, test_acc, logits = self.test(index)
        eval_ms = now_ms(self.device) - start_ms
        n = {f"n_{part}": len(own) for part, own in vars(self.split).items()}
        train_loss, train_acc, _ = self.test(self.split.train[: n["n_val"]])  # what it was shown
        train_ms = sum(epoch["train_ms"] for epoch in self.history)
        used = [count for epoch in self.history for count in epoch.get("threads", ())]
        files = {"predictions": f"predictions/{name}.npz", "checkpoint": f"checkpoints/{name}.pt"}
        files["best_checkpoint"] = f"checkpoints/{name}.best.pt"
        if folder:
            own = {"label": self.dataset.labels[index], "classes": self.dataset.classes}
            if self.dataset.files:
                own["files"] = [self.dataset.files[i] for i in index]
            own |= {"pred": logits.argmax(1), "logits": logits, "index": index}
            save_predictions(folder / files["predictions"], **own)
            save_checkpoint(folder / files["checkpoint"], self.weights())
            save_checkpoint(folder / files["best_checkpoint"], self.best)
        last, best = self.history[-1], self.history[self.best["epoch"] - 1]
        metrics = {k: v for k, v in last.items() if k == "bn_statistics" or k.startswith("val_")}
        metrics |= {"best_epoch": best["epoch"], "best_val_acc": best["val_acc"]}
        metrics |= {"best_by": self.config.metric, **self.score(logits, "test")}
        metrics |= {"test_acc": test_acc, "test_loss": test_loss, "eval_ms": eval_ms}
        metrics |= {"train_acc": train_acc, "train_loss": train_loss, "train_ms": train_ms}
        metrics["images_per_s"] = n["n_train"] * len(self.history) / train_ms * 1e3
        metrics["params"] = sum(p.numel() for p in self.model.parameters())
        metrics |= {"precision": self.precision, "split_sha256": self.split.sha256(), **n, **files}
        metrics["threads"] = [min(used), max(used)] if used else None
        if len(self.places) > 1:  # it was resumed elsewhere
            metrics["places"] = self.places
        return metrics | datasets.describe_split(self.dataset, self.split)

    def weights(self) -> dict[str, Any]:
        """A checkpoint's content: the weights, and what is needed to use them."""
        mean, std = self.statistics
        images = {"classes": list(self.dataset.classes), "mean": mean.tolist(), "std": std.tolist()}
        done = {"config": as_dict(self.config), "epoch": len(self.history)}
        weights = {name: value.cpu() for name, value in self.model.state_dict().items()}
        return {"model": weights, **images, **done}

    def state(self) -> dict[str, Any]:
        """What a resumed run continues from, bit for bit."""
        return self.weights() | {
            "optimizer": tree_map_only(Tensor, Tensor.cpu, self.setup.optimizer.state_dict()),
            "scaler": self.setup.scaler.state_dict(),
            "history": self.history,
            "best": self.best,
            "rng": torch.get_rng_state(),
            "device_rng": self.generator.get_rng_state(),
            "places": self.places,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become the run that `state` was taken from."""
        self.model.load_state_dict(state["model"])
        self.setup.optimizer.load_state_dict(state["optimizer"])
        self.setup.scaler.load_state_dict(state["scaler"])
        self.history, self.best = state["history"], state["best"]
        self.places = state.get("places", [])  # older states have none
        here = place_of(self.config.device)
        if self.places and self.places[-1] != here:
            begun = f"a run begun in {', then '.join(self.places)}"
            print(f"  continues in {here} {begun}: the same to rounding, not to the bit")
        torch.set_rng_state(state["rng"])
        self.generator.set_rng_state(state["device_rng"])


def format_epoch(metrics: Metrics, config: TrainConfig, images: int, left_s: float) -> str:
    """An epoch of so many training images in one line, aligned with those of the same training."""
    number = f"{metrics['epoch']:{len(str(config.epochs))}}/{config.epochs}"
    shown = ["train_acc", "val_acc", f"val_{METRICS[config.metric]}"]
    train, val, chosen_by = (f"{metrics[name]:.2%}".replace("%", " %") for name in shown)
    text = f"  epoch {number}  loss {metrics['train_loss']:.3f}  train {train:>8}  val {val:>8}"
    text += f"  {config.metric} {chosen_by:>8}" if config.metric != "accuracy" else ""
    left = f"  {format_time(left_s)} left" if left_s else ""
    return f"{text}  {images / metrics['train_ms'] * 1e3:.0f} img/s{left}"


def write_events(folder: Path, history: Sequence[Metrics]) -> None:
    """Write TensorBoard's event file of a run's epochs, which hides those of older files."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder, purge_step=0) as writer:
        for epoch in history:
            for name in epoch.keys() - {"epoch", "threads"}:
                if epoch[name] is not None:
                    writer.add_scalar(name, epoch[name], epoch["epoch"])


def explain_failure(error: Exception, config: dict[str, Any]) -> str:
    """An error in one line; where memory ran out, with what to lower."""
    if not out_of_memory(error):
        return first_line(error)
    flags = f"--batch-size {config['batch_size']}, --image-size {config['image_size']}"
    return f"out of memory at {flags}: lower one of them ({first_line(error)})"


def place_of(device: str) -> str:
    """What the order of additions depends on."""
    name = describe_machine(device)["device"]
    if device == "cpu":
        name += f", {threads}, {torch.backends.cpu.get_cpu_capability()}"
    return f"torch {torch.__version__}, {name}"
