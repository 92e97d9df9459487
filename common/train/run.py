"""One training run in memory: images, network, optimiser and history, saved and restored whole."""

import copy
import math
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.base.cli import UsageError, as_dict, first_line, format_time
from common.base.config import METRICS, PUBLISHED, TrainConfig
from common.base.log import save_predictions
from common.base.machine import describe_machine
from common.data import datasets, scores
from common.data.batches import Batches, draw_views, epoch_order, measure_pixels, split_batches
from common.models import build_model, build_on_meta, find_head, find_published, load_published
from common.train import loop
from common.train.checkpoint import load_checkpoint, load_weights, save_checkpoint
from common.train.device import compile_obstacle, now_ms, out_of_memory, resolve_precision
from common.train.distributed import ALONE, World
from common.train.grid import answers_file
from common.train.optim import BODY_LR, build_optimizer, find_hidden, schedule_lr, slow_body
from common.train.threads import threads

TIMED_S = 2.0  # of steps of a kind, from which an estimate is made
Metrics = dict[str, Any]
# Settings that what a frozen body answers depends on.
FEATURES: dict[Any, Any] = {}  # of the last frozen network
BODY = ("dataset", "split", "split_seed", "limit", "image_size", "model", "weights_sha256")


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
            known = map(torch.tensor, find_published(config.model)[2:4])
            grey = len(self.statistics[0]) == 1
            self.statistics = tuple(s.mean(0, keepdim=True) if grey else s for s in known)
        size, placed = config.image_size, (config.data_on, config.pin_memory, config.channels_last)
        self.batches = Batches(self.dataset, self.statistics, size, self.device, *placed)
        torch.manual_seed(config.seed)
        self.model, head = new_model(config, len(self.dataset.classes))
        self.model.to(self.device, memory_format=self.batches.memory_format)
        last = self.freeze() if config.freeze else None
        cpu = config.device == "cpu"  # else its random numbers are a module's, such as torch.cuda
        self.generator = torch if cpu else torch.get_device_module(self.device)
        decay = config.weight_decay
        optimizer = build_optimizer(last or self.model, config.opt, config.lr, decay, size)
        if head and not last:
            slow_body(optimizer, [self.model.get_parameter(name) for name in head])
        if config.sync_bn:  # the same parameters
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.trained = last or self.model
        forward = loop.prepare_forward(self.trained, config.compile, config.channels_last)
        if world.size > 1:  # BatchNorm's statistics are averaged once an epoch, not at every step
            forward = nn.parallel.DistributedDataParallel(forward, forward_sync_buffers=False)
        settings = {"precision": self.precision, "label_smoothing": config.label_smoothing}
        if config.class_weight == "balanced":
            settings["class_weights"] = self.weigh_classes()
        settings |= {"world": self.world, "cuda_graph": config.cuda_graph}
        self.setup = loop.Setup(forward, optimizer, self.batches, **settings)
        self.tested = loop.as_tested(self.trained, as_dict(config))
        self.history: list[Metrics] = []
        self.best: dict[str, Any] = {}  # the weights that were best on validation so far
        self.places: list[str] = []  # where it has trained, in order: place_of
        self.answers: Tensor | None = None  # logits on the validation images, of the last epoch

    def freeze(self) -> nn.Linear:
        """From now on batches are of what is before the last layer. Returns: that layer."""
        name = find_last(self.config.model, len(self.dataset.classes), self.config.image_size)
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
        """The steps of one epoch. Raises: NonFiniteLoss, which names the epoch."""
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
            return done | {"lr": lrs[-1]}
        except loop.NonFiniteLoss as error:
            error.metrics["epoch"] = epoch
            raise

    def train_one_epoch(self) -> Metrics:
        """Train and validate the next epoch, and print how it went, the first process alone.
        Returns: its metrics, which join the history."""
        epoch, started = len(self.history) + 1, time.monotonic()
        trained = self.train_steps(epoch)
        steps = epoch * len(split_batches(self.split.train, self.config.batch_size))
        refreshed = loop.refresh_statistics(self.trained, self.batches, self.split.train, steps)
        for buffer in self.model.buffers() if self.world.size > 1 else ():
            if buffer.is_floating_point():  # BatchNorm's running statistics become all images'
                buffer.copy_(self.world.mean(buffer))
        start_ms = now_ms(self.device)
        val_loss, val_acc, self.answers = self.test(self.split.val)
        trained["eval_ms"] = now_ms(self.device) - start_ms
        metrics = {"epoch": epoch, **trained, "val_loss": val_loss, "val_acc": val_acc}
        metrics |= self.score(self.answers, "val")
        metrics["bn_statistics"] = refreshed  # training images they are of; None: running ones
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

    def pause(self, folder: Path) -> None:
        """Keep the answers on the validation images, for paired tests; nothing is tested."""
        file = answers_file(folder, self.config, len(self.history))
        answers, index = self.answers, self.split.val
        if answers is None:  # it was restored
            answers = self.test(index)[2]
        labels = self.dataset.labels[index]
        save_predictions(file, pred=answers.argmax(1), label=labels, index=index)

    def score(self, logits: Tensor, part: str) -> Metrics:
        labels = self.dataset.labels[getattr(self.split, part)]
        return scores.score_part(labels, logits.argmax(1), len(self.dataset.classes), part)

    def finish(self, folder: Path | None, name: str) -> Metrics:
        """Test the weights, once, and keep them and their predictions in a results folder.
        Returns: what a row of the run so far holds."""
        start_ms = now_ms(self.device)
        test_loss, test_acc, logits = self.test(self.split.test)
        eval_ms = now_ms(self.device) - start_ms
        files = {"predictions": f"predictions/{name}.npz", "checkpoint": f"checkpoints/{name}.pt"}
        files["best_checkpoint"] = f"checkpoints/{name}.best.pt"
        n = {f"n_{part}": len(index) for part, index in vars(self.split).items()}
        train_loss, train_acc, _ = self.test(self.split.train[: n["n_val"]])  # what it was shown
        best = self.history[self.best["epoch"] - 1]
        train_ms = sum(metrics["train_ms"] for metrics in self.history)
        used = [n for metrics in self.history for n in metrics.get("threads", ())]
        if folder:
            predictions, last, best_so_far = (folder / file for file in files.values())
            index, classes = self.split.test, self.dataset.classes
            images = {"label": self.dataset.labels[index], "index": index, "classes": classes}
            if self.dataset.files:
                images["files"] = [self.dataset.files[i] for i in index]
            save_predictions(predictions, pred=logits.argmax(1), logits=logits, **images)
            save_checkpoint(last, self.weights())
            save_checkpoint(best_so_far, self.best)
        return {
            **{k: v for k, v in self.history[-1].items() if k == "bn_statistics" or "val_" in k},
            **{"best_epoch": best["epoch"], "best_val_acc": best["val_acc"]},
            **{"best_by": self.config.metric, **self.score(logits, "test")},
            **{"test_acc": test_acc, "test_loss": test_loss, "eval_ms": eval_ms},
            **{"train_acc": train_acc, "train_loss": train_loss, "train_ms": train_ms},
            "images_per_s": n["n_train"] * len(self.history) / train_ms * 1e3,
            "params": sum(p.numel() for p in self.model.parameters()),
            "precision": self.precision,
            "threads": [min(used), max(used)] if used else None,
            **n,
            "split_sha256": self.split.sha256(),
            **datasets.describe_split(self.dataset, self.split),
            **files,
        } | ({"places": self.places} if len(self.places) > 1 else {})  # resumed elsewhere

    def weights(self) -> dict[str, Any]:
        """A checkpoint's content: the weights, and what is needed to use them."""
        mean, std = self.statistics
        images = {"classes": list(self.dataset.classes), "mean": mean.tolist(), "std": std.tolist()}
        done = {"config": as_dict(self.config), "epoch": len(self.history)}
        return {"model": to_cpu(self.model.state_dict()), **images, **done}

    def state(self) -> dict[str, Any]:
        """What a resumed run continues from, bit for bit."""
        return self.weights() | {
            "optimizer": to_cpu(self.setup.optimizer.state_dict()),
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
        self.setup.graph = None  # which knows the old optimiser's memory
        self.places = state.get("places", [state.get("arithmetic")])  # as it was called before
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


def to_cpu(values: Any) -> Any:
    """The same values, of whatever dictionaries and lists, with every tensor on the CPU."""
    if isinstance(values, dict):
        return {name: to_cpu(value) for name, value in values.items()}
    if isinstance(values, list):
        return [to_cpu(value) for value in values]
    return values.cpu() if isinstance(values, Tensor) else values


def new_model(config: TrainConfig, classes: int) -> tuple[nn.Module, list[str]]:
    """The network before its first step: drawn from the seed, or read from --weights. Returns also
    which weights are drawn all the same, for they are those of other classes."""
    model = build_model(config.model, classes, config.seed, image_size=config.image_size)
    if not config.weights:
        return model, []
    head = find_head(config.model, classes, config.image_size)
    if config.weights == PUBLISHED:  # without the second outputs, which only training has
        kept = model.state_dict().keys() - set(head)
        content = {k: v for k, v in load_published(config.model).items() if k in kept}
    else:
        content = load_checkpoint(config.weights)
    return model, head if load_weights(model, content, config.weights, head) else []


def find_last(model: str, classes: int, image_size: int) -> str:
    """The name of the one linear layer whose shape depends on the classes. Raises: UsageError."""
    layers = {name.rpartition(".")[0] for name in find_head(model, classes, image_size)}
    network = build_on_meta(model, classes, image_size)
    if len(layers) > 1 or not isinstance(network.get_submodule(min(layers)), nn.Linear):
        why = f"{model} does not end in one linear layer"
        raise UsageError(f"--freeze: {why}; take another network, such as resnet18")
    return min(layers)


def explain_weights(config: TrainConfig, classes: int) -> str:
    """What is to be known of --weights before training. Raises: UsageError."""
    _, new = new_model(config, classes)
    texts, side = [f"{config.model} starts from {config.weights}"], config.image_size
    if config.weights == PUBLISHED:
        name, size, *_, interpolation = find_published(config.model)[:5]
        texts = [f"{config.model} starts from {name} and normalises images as for that"]
        if side != size:
            texts.append(f"--image-size {side} wins over their {size}")
        if interpolation != "bilinear":
            texts.append(f"images are resized by bilinear, not {interpolation} interpolation")
    texts += [f"the last layer is new, for {classes} classes"] if new else []
    if config.freeze:
        find_last(config.model, classes, side)
        texts.append("the last layer alone is trained")
    elif new:
        texts.append(f"the rest learns at {BODY_LR:g} of --lr")
    return "; ".join(texts)


def check_configs(configs: Sequence[TrainConfig], data_dir: str) -> None:
    """Say what is to be known of images and weights, before training. Raises: UsageError."""
    starts: dict[str, None] = {}
    for config in configs:
        precision = resolve_precision(config.amp, config.amp_dtype, torch.device(config.device))
        if config.compile and (obstacle := compile_obstacle(config.device)):
            raise UsageError(f"--compile true: {obstacle}")
        check_steps(config, precision, bf16_way_out="--amp false")
        dataset, _ = datasets.load_split(config, data_dir)
        if config.weights:
            starts[explain_weights(config, len(dataset.classes))] = None
        if config.amp and precision == "fp32":
            why = "for this CPU has no fast bf16; --amp changes nothing"
            print(f"{config.describe()}: fp32, {why}")
    print(*starts, sep="\n", end="\n" * bool(starts))
    datasets.explain_images(configs, data_dir)


def check_steps(config: TrainConfig, precision: str, bf16_way_out: str) -> None:
    """Say what processes, a CUDA graph or the network cannot do; `bf16_way_out` is the flag that
    leaves bf16. Raises: UsageError."""
    kind, size, images = config.device, config.world_size, config.batch_size
    sync_bn, graph = config.sync_bn, config.cuda_graph
    refused = (
        (sync_bn and size == 1, "--sync-bn: one process has nothing to synchronise; start several "
         "with torchrun, or leave it out"),
        (sync_bn and kind == "cpu", "--sync-bn: torch's SyncBatchNorm needs an accelerator; leave "
         "it out on a CPU, where BatchNorm takes its statistics from each process's share"),
        (size > 1 and images < 2 * size, f"--batch-size {images}: is over all {size} processes, "
         f"and each needs two images a step; use {2 * size} or more, or fewer processes"),
        (config.compile and size > 1, "--compile: one process only; leave it out under torchrun"),
        (graph and kind != "cuda", f"--cuda-graph: needs CUDA; leave it out on {kind}"),
        (graph and config.compile, "--cuda-graph: --compile makes graphs too; leave one out"),
        (graph and size > 1, "--cuda-graph: one process only; leave it out under torchrun"),
        (graph and (config.opt, precision) == ("muon", "fp16"), "--cuda-graph: Muon waits for the "
         "device at every step in fp16; use --amp-dtype bf16"),
    )  # fmt: skip
    for broken, why in refused:
        if broken:
            raise UsageError(why)
    way_out = bf16_way_out if (kind, precision) == ("cpu", "bf16") else None
    check_network(config.model, config.image_size, config.opt, min(2, images), way_out)


@cache
def check_network(
    model: str, image_size: int, opt: str, images: int = 2, bf16_way_out: str | None = None
) -> None:
    """Raises: UsageError when the network cannot be trained so on batches of so many images of that
    size: BatchNorm needs two values of a channel. In bf16 on a CPU, which `bf16_way_out` avoids, a
    strided convolution may not be wider than its input of one pixel: oneDNN (torch 2.14) returns
    uninitialised memory as the weight gradient of the taps that only ever meet padding."""
    unset = []  # convolutions of whose gradient a part would be

    def look(name: str, conv: nn.Conv2d, inputs: tuple[Tensor]) -> None:
        if min(inputs[0].shape[-2:]) == 1 and max(conv.kernel_size) > 1 and max(conv.stride) > 1:
            unset.append(name)

    try:
        network = build_on_meta(model, 10, image_size).train()
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_pre_hook(partial(look, name))
        network(torch.empty(images, 3, image_size, image_size, device="meta"))
    except Exception as error:  # each network fails in its own way
        raise UsageError(
            f"--model {model} cannot train at --image-size {image_size} on {images} images: "
            "try another size (most take 64 and 224) or larger batches"
        ) from error
    if opt == "muon" and not find_hidden(build_model(model, 10, image_size=image_size), image_size):
        raise UsageError(
            f"--opt muon: {model} has no convolution after its first whose scale a normalisation "
            "takes away, which muon is for; use adamw"
        )
    if unset and bf16_way_out:
        raise UsageError(
            f"--image-size {image_size}: {unset[0]} would see a single pixel, where oneDNN "
            f"leaves part of its bf16 weight gradient unset; use larger images or {bf16_way_out}"
        )


def estimate_ms(configs: Iterable[TrainConfig], data_dir: str) -> dict[TrainConfig, np.ndarray]:
    """Time of an epoch's steps, of its validation and of the test, from a few of each kind."""
    timed, epoch_ms = {}, {}
    for config in configs:
        # At a negligible learning rate, so that one that diverges does so in its own run.
        sample = replace(config, seed=0, split_seed=0, lr=1e-9, epochs=1, limit=None)
        kind = replace(sample, dataset="mnist")
        if kind not in timed:
            timed[kind] = math.nan, math.nan  # what fails here will fail, and be logged, in its run
            with suppress(Exception):
                run, begun, times = Run(sample, data_dir), time.monotonic(), []
                seen = run.split.val[: loop.EVAL_BATCH_SIZE]
                # The least of some: the first steps, and those beside other work, take longer.
                while len(times) < 2 or (len(times) < 10 and time.monotonic() - begun < TIMED_S):
                    order = run.order(len(times) + 1)[:3]
                    step_ms = loop.train_epoch(run.setup, order)["train_ms"] / len(order)
                    start_ms = now_ms(run.device)
                    run.test(seen)
                    times.append((step_ms, (now_ms(run.device) - start_ms) / len(seen)))
                timed[kind] = np.min(times, axis=0)
        _, split = datasets.load_split(config, data_dir)
        step_ms, image_ms = timed[kind]
        steps, seen = len(split.train) / config.batch_size, len(split.val) + len(split.test)
        epoch_ms[config] = np.array([step_ms * steps, image_ms * len(split.val), image_ms * seen])
    return epoch_ms
