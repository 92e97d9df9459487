"""Data sets as tensors, divided into training, validation and test, and what is to be told of your
own before they are trained on."""

import functools
import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.base.cli import UsageError
from common.base.config import DataConfig, is_own, name_in_log
from common.data.fetch import read_dataset
from common.data.images import TOLD, Dataset
from common.data.own import PARTS, SETTINGS, pin_dataset, some

HASH_BITS = 6  # in which the hashes of two copies of an image may differ,
CONTRAST = 0.05  # and the share of it by which they may: unlike images, too, may have one hash
MOST_COMPARED = 30_000  # each with each other, in seconds
ROWS = 64  # compared with all others at once, for memory


def load_dataset(
    name: str, data_dir: str | Path = "data", side: int | None = None, **settings: Any
) -> Dataset:
    """A data set as tensors, read once a process; `settings` are those of pin_dataset."""
    pinned = name_in_log(pin_dataset(name, data_dir, **settings))
    return _load_once(pinned, data_dir, side if is_own(name) else None)


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
    n, published = len(dataset.labels), dataset.published
    n_val, n_test = published.get("val", 0), published.get("test", 0)
    if split == "official" and not n_test:
        raise UsageError(f"--split official: {dataset.name} has no published test part")
    n_shuffled = n if split == "study" else n - n_val - n_test
    # RandomState's stream is frozen by numpy's compatibility policy, Generator's is not.
    order = torch.from_numpy(np.random.RandomState(seed).permutation(n_shuffled))
    _, val, test = torch.arange(n).tensor_split([n_shuffled, n - n_test])
    if split == "study" and is_own(dataset.name):
        train, test, val = stratify(dataset, order, (7, 2, 1))
    elif split == "study":
        train, val, test = order.tensor_split([n * 7 // 10, n * 7 // 10 + n // 10])
    elif n_val:
        train = order
    elif is_own(dataset.name):
        train, val = stratify(dataset, order, (9, 1))
    else:
        val, train = order.tensor_split([n_shuffled // 10])
    if not (len(train) and len(val) and len(test)):
        counts = f"{len(train)} would train, {len(val)} validate and {len(test)} test"
        raise UsageError(f"--split {split}: of {n} images {counts}; each part needs one")
    return Split(train[:limit], val, test)


def stratify(dataset: Dataset, order: Tensor, shares: Sequence[int]) -> list[Tensor]:
    """Share images out so that each class is in each part by its share, to an image, and no group
    in two. One group after the other, the largest first, goes where its classes are missing, or
    else are least with half of it (Webster's method of apportionment, but for the first seats).
    Shapes: order (N,), shuffled -> one (n,) a share, in that order."""
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
def find_twins(dataset: Dataset) -> np.ndarray:
    """The first image that each is the same as, pixel for pixel. Shapes: (N,)."""
    known: dict[bytes, int] = {}
    digests = (hashlib.sha256(image.tobytes()).digest() for image in dataset.images.numpy())
    return np.array([known.setdefault(digest, i) for i, digest in enumerate(digests)])


@functools.cache
def describe_split(dataset: Dataset, split: Split) -> dict[str, Any]:
    """What an accuracy is read with: the images of each class in each part, the test accuracy of
    always answering training's most frequent class, and the test images that are, pixel for pixel,
    among those trained or validated on; of your own images also what is told of how many."""
    twins, n, parts = find_twins(dataset), len(dataset.classes), vars(split)
    counts = {k: dataset.labels[part].bincount(minlength=n).tolist() for k, part in parts.items()}
    seen, tested = twins[torch.cat([split.train, split.val])], twins[split.test]
    facts = {
        "class_counts": counts,
        "majority_acc": counts["test"][int(np.argmax(counts["train"]))] / len(tested),
        "test_duplicates": int(np.isin(tested, seen).sum()),
    }
    if is_own(dataset.name):
        facts["distinct_images"] = len({*seen, *tested})
        facts["told"] = {key: len(names) for key, names in look(dataset, split.test).items()}
        if dataset.groups:
            train, val, test = ({dataset.groups[i] for i in part} for part in parts.values())
            facts["groups"] = len(train | val | test)
            facts["test_groups_seen"] = len(test & (train | val))
    return facts


@functools.cache
def look(dataset: Dataset, test: Tensor) -> dict[str, Sequence[str]]:
    """Names of your own images, or of two that are alike, that something is to be told of, by key
    of TOLD. Shapes: test (n,), the index of the test part."""
    images, labels, twins = dataset.images.numpy(), dataset.labels.numpy(), find_twins(dataset)
    index = np.arange(len(images))
    name = dataset.files or [f"#{i}" for i in index]
    tested, constant = np.isin(index, test), (images == images[:, :, :1, :1]).all((1, 2, 3))
    pairs: dict[str, dict[int, int]] = {"near_label_conflicts": {}, "near_test_duplicates": {}}
    pairs["label_conflicts"] = {i: j for i, j in enumerate(twins) if labels[i] != labels[j]}
    others = {twins[i]: i for i in index[~tested]}
    pairs["test_duplicates"] = {i: others[twins[i]] for i in index[tested] if twins[i] in others}
    alike = (i for i, j in enumerate(twins) if i != j and labels[i] == labels[j])
    pairs["copies"] = {i: twins[i] for i in alike if tested[i] == tested[twins[i]]}
    for i, j in _find_near(images, np.flatnonzero((twins == index) & ~constant)):
        if labels[i] != labels[j]:
            pairs["near_label_conflicts"].setdefault(j, i)
        if tested[i] != tested[j]:
            pairs["near_test_duplicates"].setdefault(*((i, j) if tested[i] else (j, i)))
    told = {"constant": [name[i] for i in np.flatnonzero(constant)]}
    told |= {k: [f"{name[i]} = {name[j]}" for i, j in of.items()] for k, of in pairs.items()}
    return dict.fromkeys(TOLD, ()) | dataset.told | told  # in the order of TOLD


def _find_near(images: np.ndarray, index: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs of images, the earlier first, that are one in two files: saved again, or resized.
    Source: difference hash (dHash), 64 bits: which of two neighbours in 8x9 pixels is brighter."""
    if not 1 < len(index) <= MOST_COMPARED:
        return
    grey = (Image.fromarray(images[i].mean(0).round().astype(np.uint8)) for i in index)
    small = np.stack([np.float32(image.resize((9, 8), Image.Resampling.BOX)) for image in grey])
    brighter = small[:, :, :-1] > small[:, :, 1:]
    hashes = np.packbits(brighter.reshape(-1, 64), axis=1).view(np.uint64)[:, 0]
    for start in range(0, len(index), ROWS):
        bits = np.bitwise_count(hashes[start : start + ROWS, None] ^ hashes[start:])
        i, j = start + np.stack(np.nonzero(np.triu(bits <= HASH_BITS, 1)))
        apart = np.abs(small[i] - small[j]).mean((1, 2))
        close = apart <= CONTRAST * small[i].std((1, 2))
        yield from zip(index[i[close]].tolist(), index[j[close]].tolist(), strict=True)


def explain_images(configs: Iterable[DataConfig], data_dir: str) -> None:
    """Print what is to be read before training on your own images; nothing of a published set."""
    for text in dict.fromkeys(_explain(c, data_dir) for c in configs if is_own(c.dataset)):
        print(text, end="")


def _explain(config: DataConfig, data_dir: str) -> str:
    dataset, split = load_split(config, data_dir)
    facts, classes = describe_split(dataset, split), dataset.classes
    parts, alike = [], defaultdict(list)
    for key, name in PARTS.items():
        counts = facts["class_counts"][key]
        lacking = [label for label, n in zip(classes, counts, strict=True) if n == 0]
        parts.append({"name": name, "n": sum(counts), "lacking": lacking})
    pairs = zip(facts["class_counts"]["train"], classes, strict=True)
    ranked = sorted(pairs, key=lambda pair: -pair[0])
    shares = [f"{label} {n / len(split.train):.1%}" for n, label in ranked]
    if len(shares) > 12:
        shares[6:-5] = ["..."]
    for label in classes:
        alike[unicodedata.normalize("NFKC", label).casefold().strip()].append(ascii(label))
    looked = [(TOLD[key], names) for key, names in look(dataset, split.test).items()]
    facts = facts | {"dataset": dataset, "split": config.split, "parts": parts, "shares": shares}
    facts |= {"largest": ranked[0][1], "looked": looked, "alike": alike.values(), "some": some}
    facts["few"] = 400  # images: fewer know an accuracy of 50 % no better than to 5 points
    facts["most_compared"] = MOST_COMPARED
    return render(Path(__file__).with_name("split.txt.j2"), facts)


def render(template: Path, facts: Mapping[str, Any], **filters: Callable[[Any], str]) -> str:
    engine = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    engine.filters |= filters
    return engine.from_string(template.read_text("utf-8")).render(facts)
