"""Data sets as tensors, divided into training, validation and test, and described.

A data set is one uint8 tensor (N, C, H, W) in published order, training images first; what it is
read from is in fetch.py, your own images in own.py.
"""

from __future__ import annotations

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


def load_dataset(
    name: str, data_dir: str | Path = "data", image_size: int | None = None
) -> Dataset:
    """A data set as tensors. Raises: UsageError, as fetch.read_dataset does."""
    dataset = read_dataset(name, data_dir, image_size)
    images, labels = torch.from_numpy(dataset.images), torch.from_numpy(dataset.labels)
    return replace(dataset, images=images, labels=labels)


def cached_dataset(name: str, data_dir: str | Path, image_size: int | None = None) -> Dataset:
    """load_dataset, once a process."""
    return _load_once(name, data_dir, image_size if is_own(name) else None)


_load_once = functools.cache(load_dataset)


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
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part.numpy().astype("<i8").tobytes())
        return digest.hexdigest()


def split_dataset(dataset: Dataset, split: str, seed: int, limit: int | None = None) -> Split:
    """Divide a data set: study 70/10/20 of the pool; official as it was published, with a tenth of
    training to validate on where no such part was. `limit` keeps so many training images.

    Raises: UsageError for `official` where no test part was published, and for an empty part.
    """
    # RandomState's stream is frozen by numpy's compatibility policy, Generator's is not.
    random = np.random.RandomState(seed)
    n = len(dataset.labels)
    if split == "official":
        if dataset.published_test is None:
            raise UsageError(f"--split official: {dataset.name} has no published test part")
        n_test, n_val = dataset.published_test, dataset.published_val
        n_train = n - n_test - n_val
        order = torch.from_numpy(random.permutation(n_train))
        val, train = order.split([n_train // 10, n_train - n_train // 10])
        if n_val:
            train, val = order, torch.arange(n_train, n_train + n_val)
        test = torch.arange(n - n_test, n)
    else:
        order = torch.from_numpy(random.permutation(n))
        train, val, test = order.split([n * 7 // 10, n // 10, n - n * 7 // 10 - n // 10])
    if not (len(train) and len(val) and len(test)):
        raise UsageError(
            f"--split {split}: of {n} images {len(train)} would train, {len(val)} validate and "
            f"{len(test)} test; each part needs one"
        )
    return Split(train[:limit], val, test)


def load_split(config: DataConfig, data_dir: str) -> tuple[Dataset, Split]:
    """A configuration's images, and which of them it trains on and is tested on."""
    dataset = cached_dataset(config.dataset, data_dir, config.image_size)
    limit = getattr(config, "limit", None)  # an SVM's has none
    return dataset, split_dataset(dataset, config.split, config.split_seed, limit)


def describe_split(dataset: Dataset, split: Split) -> dict[str, Any]:
    """What an accuracy on a split has to be read with, as a row of the log has it: the images of
    each class in each part, the test accuracy of always answering training's most frequent class,
    and the test images that are, pixel for pixel, among those trained or validated on."""
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
    chosen = [tuple(getattr(c, k, None) for k in keys) for c in configs if is_own(c.dataset)]
    for text in dict.fromkeys(_explain(data_dir, *key) for key in dict.fromkeys(chosen)):
        print(text)


def _explain(
    data_dir: str, name: str, image_size: int | None, split: str, seed: int, limit: int | None
) -> str:
    dataset = cached_dataset(name, data_dir, image_size)
    parts = split_dataset(dataset, split, seed, limit)
    facts = describe_split(dataset, parts)
    counts = facts["class_counts"]
    channels, height, width = dataset.images.shape[1:]
    n_train, n_val, n_test = (len(part) for part in vars(parts).values())
    by_share = sorted(zip(counts["train"], dataset.classes, strict=True), key=lambda c: -c[0])
    shares = [f"{label} {n / n_train:.1%}" for n, label in by_share]
    if len(shares) > 12:
        shares[6:-5] = ["..."]
    lines = [
        f"{name}: {n_train:,} training, {n_val:,} validation and {n_test:,} test images, "
        f"{width}x{height}, {'colour' if channels == 3 else 'grey'}",
        f"  {len(by_share)} classes, by share of training: {', '.join(shares)}; always answering "
        f"{by_share[0][1]} is right for {facts['majority_acc']:.1%} of the test images",
    ]
    if dataset.published_test is not None and split == "study":
        lines.append(
            "  warning: its own division is not used, images of its test part will be trained on; "
            "--split official uses it"
        )
    lines += [
        f"  warning: {n} {part} images know an accuracy to within {98 / math.sqrt(n):.0f} points "
        "at worst (95 %): what is closer is luck"
        for part, n in (("validation", n_val), ("test", n_test))
        if n < FEW_IMAGES
    ]
    for part, key in (("training", "train"), ("test", "test")):
        pairs = zip(dataset.classes, counts[key], strict=True)
        if lacking := [label for label, n in pairs if n == 0]:
            lines.append(f"  warning: no {part} image of {', '.join(lacking)}")
    if n := facts["test_duplicates"]:
        lines.append(
            f"  warning: {n:,} of {n_test:,} test images are, pixel for pixel, among those trained "
            "or validated on: what was learned by heart passes for skill"
        )
    return "\n".join(lines)
