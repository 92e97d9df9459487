"""Data sets as tensors, divided into training, validation and test, and described."""

import functools
import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.base.cli import UsageError
from common.base.config import DataConfig, is_own
from common.data.fetch import Dataset, read_dataset

FEW_IMAGES = 400  # fewer know an accuracy of 50 % no better than to 5 points


def load_dataset(name: str, data_dir: str | Path = "data", side: int | None = None) -> Dataset:
    """A data set as tensors, read once a process."""
    return _load_once(name, data_dir, side if is_own(name) else None)


@functools.cache
def _load_once(name: str, data_dir: str | Path, side: int | None) -> Dataset:
    dataset = read_dataset(name, data_dir, side)
    images, labels = torch.from_numpy(dataset.images), torch.from_numpy(dataset.labels)
    return replace(dataset, images=images, labels=labels)


@dataclass(frozen=True)
class Split:
    """Disjoint index lists into a data set. Shapes: each (n,) int64."""

    train: Tensor
    val: Tensor
    test: Tensor

    def sha256(self) -> str:
        """One hash of the three lists, in order, as little-endian int64 after their lengths."""
        digest = hashlib.sha256()
        for part in (self.train, self.val, self.test):
            digest.update(len(part).to_bytes(8, "little") + part.numpy().astype("<i8").tobytes())
        return digest.hexdigest()


def split_dataset(dataset: Dataset, split: str, seed: int, limit: int | None = None) -> Split:
    """Divide a data set: study 70/10/20 of the pool; official as it was published, with a tenth of
    training to validate on where no such part was. `limit` keeps so many training images."""
    n, n_val, n_test = len(dataset.labels), dataset.published_val, dataset.published_test
    if split == "official" and n_test is None:
        raise UsageError(f"--split official: {dataset.name} has no published test part")
    n_shuffled = n - n_val - n_test if split == "official" else n
    # RandomState's stream is frozen by numpy's compatibility policy, Generator's is not.
    order = torch.from_numpy(np.random.RandomState(seed).permutation(n_shuffled))
    if split == "study":
        train, val, test = order.tensor_split([n * 7 // 10, n * 7 // 10 + n // 10])
    else:
        test = torch.arange(n - n_test, n)
        val, train = order.tensor_split([0 if n_val else n_shuffled // 10])
        if n_val:
            val = torch.arange(n_shuffled, n - n_test)
    if not (len(train) and len(val) and len(test)):
        counts = f"{len(train)} would train, {len(val)} validate and {len(test)} test"
        raise UsageError(f"--split {split}: of {n} images {counts}; each part needs one")
    return Split(train[:limit], val, test)


def load_split(config: DataConfig, data_dir: str) -> tuple[Dataset, Split]:
    dataset = load_dataset(config.dataset, data_dir, config.image_size)
    limit = getattr(config, "limit", None)  # an SVM's has none
    return dataset, split_dataset(dataset, config.split, config.split_seed, limit)


def describe_split(dataset: Dataset, split: Split) -> dict[str, Any]:
    """What an accuracy is read with: the images of each class in each part, the test accuracy of
    always answering training's most frequent class, and the test images that are, pixel for pixel,
    among those trained or validated on."""
    images, n = dataset.images.numpy(), len(dataset.classes)
    counts, content = {}, {}
    for name, part in vars(split).items():
        counts[name] = dataset.labels[part].bincount(minlength=n).tolist()
        content[name] = [hashlib.sha256(images[i].tobytes()).digest() for i in part.tolist()]
    seen = {*content["train"], *content["val"]}
    return {
        "class_counts": counts,
        "majority_acc": counts["test"][int(np.argmax(counts["train"]))] / len(split.test),
        "test_duplicates": sum(digest in seen for digest in content["test"]),
    }


def explain_images(configs: Iterable[DataConfig], data_dir: str) -> None:
    """Print what is to be read before training on your own images; nothing of a published set."""
    keys = ("dataset", "image_size", "split", "split_seed", "limit")
    own = {tuple(getattr(c, k, None) for k in keys): c for c in configs if is_own(c.dataset)}
    for text in dict.fromkeys(_explain(config, data_dir) for config in own.values()):
        print(text)


def _explain(config: DataConfig, data_dir: str) -> str:
    dataset, split = load_split(config, data_dir)
    facts, (channels, height, width) = describe_split(dataset, split), dataset.images.shape[1:]
    counts, n_test = facts["class_counts"], len(split.test)
    by_share = sorted(zip(counts["train"], dataset.classes, strict=True), key=lambda c: -c[0])
    shares = [f"{label} {n / len(split.train):.1%}" for n, label in by_share]
    if len(shares) > 12:
        shares[6:-5] = ["..."]
    lines = [
        f"{config.dataset}: {len(split.train):,} training, {len(split.val):,} validation and "
        f"{n_test:,} test images, {width}x{height}, {'colour' if channels == 3 else 'grey'}\n"
        f"  {len(by_share)} classes, by share of training: {', '.join(shares)}; always answering "
        f"{by_share[0][1]} is right for {facts['majority_acc']:.1%} of the test images"
    ]
    if dataset.published_test is not None and config.split == "study":
        why = "its own division is not used, images of its test part will be trained on"
        lines.append(f"{why}; --split official uses it")
    for part, n in (("validation", len(split.val)), ("test", n_test)):
        if n < FEW_IMAGES:
            points = f"{98 / math.sqrt(n):.0f} points at worst (95 %)"
            why = f"{n} {part} images know an accuracy to within {points}"
            lines.append(f"{why}: what is closer is luck")
    for part, key in (("training", "train"), ("test", "test")):
        pairs = zip(dataset.classes, counts[key], strict=True)
        if lacking := [label for label, n in pairs if n == 0]:
            lines.append(f"no {part} image of {', '.join(lacking)}")
    if n := facts["test_duplicates"]:
        same = f"{n:,} of {n_test:,} test images are, pixel for pixel, among those trained"
        lines.append(f"{same} or validated on: what was learned by heart passes for skill")
    return "\n  warning: ".join(lines)
