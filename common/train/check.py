"""What is asked before a training: whether it can be had, and how long it takes."""

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor, nn

from common.base.cli import UsageError
from common.base.config import PUBLISHED, TrainConfig
from common.data import datasets
from common.models import build_model, build_on_meta, find_published
from common.train import loop
from common.train.checkpoint import new_model
from common.train.device import compile_obstacle, now_ms, resolve_precision
from common.train.optim import BODY_LR, find_hidden
from common.train.run import FEATURES, Run

TIMED_S = 2.0  # of steps of a kind, from which an estimate is made


def check_configs(configs: Sequence[TrainConfig], data_dir: str) -> None:
    """Say what is to be known of images and weights. Raises: UsageError."""
    for config in configs:
        precision = resolve_precision(config.amp, config.amp_dtype, torch.device(config.device))
        if config.compile and (obstacle := compile_obstacle(config.device)):
            raise UsageError(f"--compile true: {obstacle}")
        check_steps(config, precision, "--amp false")
        datasets.load_split(config, data_dir)
        if config.amp and precision == "fp32":
            why = "for this CPU has no fast bf16; --amp changes nothing"
            print(f"{config.describe()}: fp32, {why}")
    for text in dict.fromkeys(explain_weights(c, data_dir) for c in configs if c.weights):
        print(text)
    datasets.explain_images(configs, data_dir)


def explain_weights(config: TrainConfig, data_dir: str) -> str:
    """What is to be known of --weights. Raises: UsageError."""
    classes = len(datasets.load_split(config, data_dir)[0].classes)
    _, _, new = new_model(config, classes)
    texts = [f"{config.model} starts from {config.weights}"]
    if config.weights == PUBLISHED:
        known = find_published(config.model)
        texts = [f"{config.model} starts from {known.name} and normalises images as for that"]
        if config.image_size != known.image_size:
            texts.append(f"--image-size {config.image_size} wins over their {known.image_size}")
        if known.interpolation != "bilinear":
            texts.append(f"images are resized by bilinear, not {known.interpolation} interpolation")
    texts += [f"the last layer is new, for {classes} classes"] if new else []
    if config.freeze:
        texts.append("the last layer alone is trained")
    elif new:
        texts.append(f"the rest learns at {BODY_LR:g} of --lr")
    return "; ".join(texts)


def check_steps(config: TrainConfig, precision: str, fp32_flag: str) -> None:
    """Raises: UsageError for what processes, a CUDA graph or the network cannot do; `fp32_flag` is
    what to give where it is bf16 that they cannot."""
    kind, size, images = config.device, config.world_size, config.batch_size
    sync_bn, graph, several, cpu = config.sync_bn, config.cuda_graph, size > 1, kind == "cpu"
    alone = "one process only; leave it out under torchrun"
    least = f"is over all {size} processes, each of which needs two; use {2 * size} or more"
    waits = "Muon waits for the device at every step in fp16; use --amp-dtype bf16"
    refused = {
        "--sync-bn: one process has nothing to synchronise; leave it out": sync_bn and not several,
        "--sync-bn: torch's SyncBatchNorm needs an accelerator; leave it out": sync_bn and cpu,
        f"--batch-size {images}: {least}": several and images < 2 * size,
        f"--compile: {alone}": config.compile and several,
        f"--cuda-graph: needs CUDA; leave it out on {kind}": graph and kind != "cuda",
        "--cuda-graph: --compile makes graphs too; leave one out": graph and config.compile,
        f"--cuda-graph: {alone}": graph and several,
        f"--cuda-graph: {waits}": graph and (config.opt, precision) == ("muon", "fp16"),
    }
    for why in (why for why, applies in refused.items() if applies):
        raise UsageError(why)
    fp32_flag = fp32_flag if cpu and precision == "bf16" else ""
    check_network(config.model, config.image_size, config.opt, min(2, images), fp32_flag)


@cache
def check_network(model: str, size: int, opt: str, images: int = 2, fp32_flag: str = "") -> None:
    """Raises: UsageError when the network cannot be trained so on batches of so many images of that
    size: BatchNorm needs two values of a channel. In bf16 on a CPU, where `fp32_flag` is given, a
    strided convolution may not be wider than its input of one pixel: oneDNN (torch 2.14) returns
    uninitialised memory as the weight gradient of the taps that only ever meet padding."""
    unset = []  # convolutions of whose gradient a part would be

    def look(name: str, conv: nn.Conv2d, inputs: tuple[Tensor]) -> None:
        if min(inputs[0].shape[-2:]) == 1 and max(conv.kernel_size) > 1 and max(conv.stride) > 1:
            unset.append(name)

    try:
        network = build_on_meta(model, 10, size).train()
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_pre_hook(partial(look, name))
        network(torch.empty(images, 3, size, size, device="meta"))
    except Exception as error:  # each network fails in its own way
        why = f"cannot train at --image-size {size} on {images} images"
        way_out = "try another size (most take 64 and 224) or larger batches"
        raise UsageError(f"--model {model} {why}: {way_out}") from error
    if opt == "muon" and not find_hidden(build_model(model, 10, image_size=size), size):
        why = "no convolution after its first whose scale a normalisation takes away"
        raise UsageError(f"--opt muon: {model} has {why}, which muon is for; use adamw")
    if unset and fp32_flag:
        why = "a single pixel, where oneDNN leaves part of its bf16 weight gradient unset"
        way_out = f"use larger images or {fp32_flag}"
        raise UsageError(f"--image-size {size}: {unset[0]} would see {why}; {way_out}")


def estimate_ms(configs: Iterable[TrainConfig], data_dir: str) -> dict[TrainConfig, np.ndarray]:
    """Time of an epoch's steps, of its validation and of the test, from a few of each kind."""
    timed, epoch_ms = {}, {}
    for config in configs:
        # At a negligible learning rate, so that one that diverges does so in its own run.
        sample = replace(config, seed=0, split_seed=0, lr=1e-9, epochs=1, limit=None)
        kind = replace(sample, dataset="mnist")
        if kind not in timed:
            # What fails here will fail, and be logged, in its run.
            timed[kind] = np.full((2, 2), math.nan)
            with suppress(Exception):
                FEATURES.clear()  # so that the first is without what another kind has asked
                run, begun, times = Run(sample, data_dir), time.monotonic(), []
                seen = run.split.val[: loop.EVAL_BATCH_SIZE]
                # The least of some: the first steps, and those beside other work, take longer.
                while len(times) < 2 or (len(times) < 10 and time.monotonic() - begun < TIMED_S):
                    order = run.order(1 if config.freeze else len(times) + 1)[:3]
                    step_ms = loop.train_epoch(run.setup, order)["train_ms"] / len(order)
                    start_ms = now_ms(run.device)
                    run.test(seen)
                    times.append((step_ms, (now_ms(run.device) - start_ms) / len(seen)))
                timed[kind] = np.min(times, axis=0), times[0]
        _, split = datasets.load_split(config, data_dir)
        least, first = timed[kind]  # a frozen body is asked for each image once, not in each epoch
        first = first if config.freeze else least
        step_ms, image_ms = least + (first - least) / config.epochs
        steps, n_val = len(split.train) / config.batch_size, len(split.val)
        test_ms = first[1] * len(split.test) + least[1] * n_val  # of training images, as many
        epoch_ms[config] = np.array([step_ms * steps, image_ms * n_val, test_ms])
    return epoch_ms
