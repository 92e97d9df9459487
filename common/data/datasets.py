"""Data sets as tensors, divided into training, validation and test, and described."""

import functools
import hashlib
import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.base.cli import UsageError
from common.base.config import DataConfig, is_own, name_in_log
from common.data.fetch import Dataset, read_dataset
from common.data.folders import some
from common.data.images import TOLD
from common.data.look import MOST_COMPARED, look
from common.data.own import SETTINGS, pin_dataset

FEW_IMAGES = 400  # fewer know an accuracy of 50 % no better than to 5 points


def load_dataset(
    name: str, data_dir: str | Path = "data", side: int | None = None, **settings: Any
) -> Dataset:
    """A data set as tensors, read once a process; `settings` are those of own.SETTINGS."""
    if not is_own(name):
        return _load_once(name, data_dir, None)
    return _load_once(name_in_log(pin_dataset(name, data_dir, **settings)), data_dir, side)


@functools.cache
def _load_once(name: str, data_dir: str | Path, side: int | None) -> Dataset:
    dataset = read_dataset(name, data_dir, side)
    images, labels = torch.from_numpy(dataset.images), torch.from_numpy(dataset.labels)
    return replace(dataset, images=images, labels=labels)


@dataclass(frozen=True, eq=False)
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


@functools.cache
def split_dataset(dataset: Dataset, split: str, seed: int, limit: int | None = None) -> Split:
    """Divide a data set: study 70/10/20 of the pool; official as it was published, with a tenth of
    training to validate on where no such part was. Your own images are stratified, and those of one
    group stay together. `limit` keeps so many training images."""
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
    if is_own(dataset.name) and split == "study":
        train, test, val = stratify(dataset, order, (7, 2, 1))
    elif is_own(dataset.name) and not n_val:
        train, val = stratify(dataset, order, (9, 1))
    if not (len(train) and len(val) and len(test)):
        counts = f"{len(train)} would train, {len(val)} validate and {len(test)} test"
        raise UsageError(f"--split {split}: of {n} images {counts}; each part needs one")
    return Split(train[:limit], val, test)


def stratify(dataset: Dataset, order: Tensor, shares: Sequence[int]) -> list[Tensor]:
    """Share images out so that each class is in each part by its share, to an image, and no group
    in two. One group after the other, the largest first, goes where its classes are missing, or
    else are least with half of it (Webster's method of apportionment, but for the first seats).

    Shapes: order (N,), shuffled -> one (n,) a share, in that order.
    """
    members: dict[Any, list[int]] = {}  # by group; without groups each image is one
    for i in order.tolist():
        members.setdefault(dataset.groups[i] if dataset.groups else i, []).append(i)
    labels, shares = np.asarray(dataset.labels), np.array(shares)
    counts, part = np.zeros((len(shares), len(dataset.classes))), np.zeros(len(labels), int)
    sizes = np.bincount(labels[order])
    for images in sorted(members.values(), key=len, reverse=True):
        y = labels[images]
        seats = np.where(counts[:, y], counts[:, y] + np.bincount(y)[y] / 2, 0)
        least = ((seats / sizes[y]).sum(1) / shares).argmin()
        np.add.at(counts[least], y, 1)
        part[images] = least
    return [order[torch.from_numpy(part)[order] == k] for k in range(len(shares))]


def load_split(config: DataConfig, data_dir: str) -> tuple[Dataset, Split]:
    settings = {name: getattr(config, name) for name in SETTINGS}
    dataset = load_dataset(config.dataset, data_dir, config.image_size, **settings)
    limit = getattr(config, "limit", None)  # an SVM's has none
    return dataset, split_dataset(dataset, config.split, config.split_seed, limit)


@functools.cache
def describe_split(dataset: Dataset, split: Split) -> dict[str, Any]:
    """What an accuracy is read with: the images of each class in each part, the test accuracy of
    always answering training's most frequent class, and the test images that are, pixel for pixel,
    among those trained or validated on; of your own images also what is told of how many."""
    images, n = dataset.images.numpy(), len(dataset.classes)
    counts, content = {}, {}
    for name, part in vars(split).items():
        counts[name] = dataset.labels[part].bincount(minlength=n).tolist()
        content[name] = [hashlib.sha256(images[i].tobytes()).digest() for i in part.tolist()]
    seen = {*content["train"], *content["val"]}
    facts = {
        "class_counts": counts,
        "majority_acc": counts["test"][int(np.argmax(counts["train"]))] / len(split.test),
        "test_duplicates": sum(digest in seen for digest in content["test"]),
    }
    if is_own(dataset.name):
        facts["distinct_images"] = len({*seen, *content["test"]})
        facts["told"] = {key: len(names) for key, names in look(dataset, split.test).items()}
        if dataset.groups:
            parts = [{dataset.groups[i] for i in part.tolist()} for part in vars(split).values()]
            facts["groups"] = len(set().union(*parts))
            facts["test_groups_seen"] = len(parts[2] & (parts[0] | parts[1]))
    return facts


def explain_images(configs: Iterable[DataConfig], data_dir: str) -> None:
    """Print what is to be read before training on your own images; nothing of a published set."""
    keys = ("dataset", "image_size", "split", "split_seed", "limit")
    own = {tuple(getattr(c, k, None) for k in keys): c for c in configs if is_own(c.dataset)}
    for text in dict.fromkeys(_explain(config, data_dir) for config in own.values()):
        print(text)


def _explain(config: DataConfig, data_dir: str) -> str:
    dataset, split = load_split(config, data_dir)
    facts, (channels, height, width) = describe_split(dataset, split), dataset.images.shape[1:]
    counts = facts["class_counts"]["train"]
    by_share = sorted(zip(counts, dataset.classes, strict=True), key=lambda c: -c[0])
    shares = [f"{label} {n / len(split.train):.1%}" for n, label in by_share]
    if len(shares) > 12:
        shares[6:-5] = ["..."]
    text = (
        f"{dataset.name}: {len(split.train):,} training, {len(split.val):,} validation and "
        f"{len(split.test):,} test images, {width}x{height}, "
        f"{'colour' if channels == 3 else 'grey'}\n"
        f"  {len(by_share)} classes, by share of training: {', '.join(shares)}; always answering "
        f"{by_share[0][1]} is right for {facts['majority_acc']:.1%} of the test images"
    )
    if dataset.groups:
        seen = f"{facts['test_groups_seen']} of them with images to test and others to train on"
        text += f"\n  {facts['groups']:,} groups by --groups, {seen}"
    return "\n  warning: ".join([text, *_iter_warnings(dataset, split, config.split)])


def _iter_warnings(dataset: Dataset, split: Split, name: str) -> Iterator[str]:
    facts, n_test = describe_split(dataset, split), len(split.test)
    if dataset.published_test is not None and name == "study":
        why = "its own division is not used, images of its test part will be trained on"
        yield f"{why}; --split official uses it"
    for part, n in (("validation", len(split.val)), ("test", n_test)):
        if n < FEW_IMAGES:
            points = f"{98 / math.sqrt(n):.0f} points at worst (95 %)"
            yield f"{n} {part} images know an accuracy to within {points}: what is closer is luck"
    for part, key in (("training", "train"), ("validation", "val"), ("test", "test")):
        pairs = zip(dataset.classes, facts["class_counts"][key], strict=True)
        if lacking := [label for label, n in pairs if n == 0]:
            yield f"no {part} image of {', '.join(lacking)}"
    if n := facts["test_duplicates"]:
        same = f"{n:,} of {n_test:,} test images are, pixel for pixel, among those trained"
        yield f"{same} or validated on: what was learned by heart passes for skill"
    for key, names in look(dataset, split.test).items():
        if names:
            text = TOLD[key].replace("--background", f"--background {dataset.background}")
            yield f"{len(names):,} of {len(dataset.labels):,} images {text}: {some(names)}"
    if len(dataset.labels) > MOST_COMPARED:
        yield f"over {MOST_COMPARED:,} images are not looked through for near duplicates"
    plain: dict[str, list[str]] = {}
    for label in dataset.classes:
        key = unicodedata.normalize("NFKC", label).casefold().strip()
        plain.setdefault(key, []).append(ascii(label))
    for labels in plain.values():
        if len(labels) > 1:
            yield f"{' and '.join(labels)} look alike: is each a class of its own?"
