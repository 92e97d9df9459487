"""Your own images: a folder with one folder a class, or an .npz file in MedMNIST's layout.

They are named by their content: folder:photos becomes folder:photos@3f2a9c1b2d3e, after the SHA-256
of every file's name and bytes, so that changed images are other work in the log. Decoded once, to
one size, they are kept as uint8 under the data folder, by content, size and Pillow's version.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from PIL import __version__ as pillow

from common.base.cli import UsageError, first_line
from common.base.log import write_atomically
from common.data.images import Unreadable, decoding, open_image, to_pixels

PARTS = ("train", "val", "test")
# What folders of these parts are called, in any case.
SPELLINGS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
PIN = re.compile(r"@([0-9a-f]{12})$")
SHOWN_FILES = 20  # of those that cannot be used
LEAST_IMAGES = 10  # of which 70/10/20 leaves one to validate on


@dataclass(frozen=True)
class Source:
    """Images that were found and hashed, in the order training, validation, test.

    sizes: how many there are of each of these parts, None where they are not divided. read: a
    function of the side in pixels, None for that of the images, to (N, C, H, W) uint8.
    Shapes: labels (N,) int64.
    """

    sha256: str
    classes: tuple[str, ...]
    labels: np.ndarray
    sizes: tuple[int, int, int] | None
    read: Callable[[int | None], np.ndarray]


def split_name(name: str) -> tuple[str, str, str | None]:
    """Kind, path and pinned content of a name: folder:photos@3f2a9c1b2d3e, or without the last."""
    kind, _, path = name.partition(":")
    pin = PIN.search(path)
    return kind, path[: pin.start()] if pin else path, pin[1] if pin else None


@functools.cache  # hashes every byte once a process
def find_images(kind: str, path: str) -> Source:
    """Find and hash what a name of ours means.

    Raises: UsageError when that is no set of images of two classes or more.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UsageError(f"--dataset {kind}:{path}: the path is no UTF-8; rename it") from None
    try:
        place = Path(path).expanduser()
    except RuntimeError as error:  # ~ of nobody
        raise UsageError(f"--dataset {kind}:{path}: {first_line(error)}") from None
    source = {"folder": _find_folder, "npz": _find_npz}[kind](place)
    if len(source.classes) < 2:
        raise UsageError(
            f"{kind}:{path}: only one class, {source.classes[0]}: nothing to tell apart"
        )
    if len(source.labels) < LEAST_IMAGES:
        raise UsageError(
            f"{kind}:{path}: {len(source.labels)} images; at least {LEAST_IMAGES} are needed to "
            "train, validate and test"
        )
    return source


def pin_name(name: str) -> str:
    """The name with its content in it. Raises: UsageError when that is not what was pinned."""
    kind, path, pin = split_name(name)
    path = os.path.normpath(path)
    found = find_images(kind, path).sha256[:12]
    if pin not in (None, found):
        raise UsageError(
            f"{kind}:{path}: its images have changed: they were @{pin} and are @{found}; bring "
            "them back, or train on what is there now"
        )
    return f"{kind}:{path}@{found}"


def read_images(name: str, data_dir: Path, side: int | None) -> tuple[Source, np.ndarray]:
    """The source that a name means and its images, from the cache if they were read before.

    Shapes: (N, C, H, W) uint8, H and W being `side` unless that is None.
    """
    kind, path, _ = split_name(pin_name(name))
    source = find_images(kind, path)
    file = data_dir / "own" / f"{source.sha256[:32]}-{side or 'as-it-is'}-pillow{pillow}.npz"
    try:
        with open(file, "rb") as handle, np.load(handle, allow_pickle=False) as held:
            images = held["images"]
        if images.dtype == np.uint8 and images.ndim == 4 and len(images) == len(source.labels):
            return source, images
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # none yet, or a damaged one: read again
    images = source.read(side)
    write_atomically(file, lambda handle: np.savez(handle, images=images))
    return source, images


# --- one folder a class ---------------------------------------------------------------------------


def _find_folder(folder: Path) -> Source:
    parts, classes = _find_classes(folder)
    files, labels, sizes = [], [], []
    empty = []
    for part in parts:
        before = len(files)
        for label, name in enumerate(classes):
            found = sorted(_iter_files(part / name, ()), key=os.fsencode)
            files += found
            labels += [label] * len(found)
            if not found and (part / name).is_dir():
                empty.append(str((part / name).relative_to(folder)))
        sizes.append(len(files) - before)
    if empty:
        raise UsageError(f"folder:{folder}: no files in {', '.join(empty)}; fill or remove them")
    digests = _hash_files(folder, files)
    names = [os.fsencode(file.relative_to(folder).as_posix()) for file in files]
    digest = hashlib.sha256()
    for name, content in sorted(zip(names, digests, strict=True)):
        digest.update(name + b"\0" + content)
    return Source(
        digest.hexdigest(), classes, np.array(labels, np.int64),
        tuple(sizes) if len(parts) == len(PARTS) else None,
        lambda side: _read_files(folder, files, digests, side),
    )  # fmt: skip


def _find_classes(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """The folders that hold class folders, one or one a part, and the names of all classes."""
    names = _folders_in(folder)
    parts = [folder]
    part_of = {name: SPELLINGS.get(name.lower(), name.lower()) for name in names}
    found = set(part_of.values())
    if names and found <= set(PARTS):
        if len(found) < len(names) or not {"train", "test"} <= found:
            raise UsageError(
                f"folder:{folder}: it has {' and '.join(names)}; a division needs train/ and "
                "test/, with val/ or without, each once"
            )
        place = {part: name for name, part in part_of.items()}
        parts = [folder / place.get(part, part) for part in PARTS]
        names = sorted({name for part in parts if part.is_dir() for name in _folders_in(part)})
        untrained = set(names) - set(_folders_in(parts[0]))
        if untrained:
            raise UsageError(f"folder:{folder}: {parts[0].name}/ has no class {min(untrained)}")
    if not names:
        raise UsageError(f"folder:{folder}: no folders in it; it needs one for each class")
    for name in names:
        if not name.isprintable():
            raise UsageError(f"folder:{folder}: {name!r} would not print; rename it")
    return parts, tuple(names)


def _folders_in(folder: Path) -> list[str]:
    try:
        return sorted(e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != ".")
    except OSError as error:
        raise UsageError(f"folder:{folder}: {error.strerror}; is the path right?") from None


def _iter_files(folder: Path, above: Sequence[tuple[int, int]]) -> Iterator[Path]:
    """All files below a folder but hidden ones, through links."""
    if not folder.is_dir():
        return
    here = (folder.stat().st_dev, folder.stat().st_ino)
    if here in above:
        raise UsageError(f"{folder} is a link to a folder that it is in; remove it")
    try:
        with os.scandir(folder) as found:
            entries = [(e, e.is_dir()) for e in found if not e.name.startswith(".")]
    except OSError as error:  # not readable, or a link to itself
        raise UsageError(f"{error.filename}: {error.strerror}; mend or remove it") from None
    for entry, is_folder in entries:
        if is_folder:
            yield from _iter_files(Path(entry.path), (*above, here))
        else:
            yield Path(entry.path)


def _hash_files(folder: Path, files: Sequence[Path]) -> list[bytes]:
    """SHA-256 of every file, of nothing for one that cannot be opened, which reading will name."""

    def digest(file: Path) -> bytes:
        if not file.is_file():
            return b""
        try:
            with open(file, "rb") as handle:
                return hashlib.file_digest(handle, "sha256").digest()
        except OSError:
            return b""

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(digest, files))


def _read_files(
    folder: Path, files: Sequence[Path], digests: Sequence[bytes], side: int | None
) -> np.ndarray:
    """Decode all files. Raises: UsageError that names every one that cannot be used."""

    def read(file: Path, digest: bytes) -> np.ndarray | str:
        if file.exists() and not file.is_file():
            return "no regular file"  # a pipe would be waited for
        try:
            data = file.read_bytes()
            if hashlib.sha256(data).digest() != digest:
                return "changed while it was read"
            image = open_image(data)
        except OSError as error:
            return error.strerror or str(error)
        except Unreadable as error:
            return str(error)
        return to_pixels(image, len(image.getbands()), side)

    with decoding(), ThreadPoolExecutor(os.cpu_count()) as pool:
        images = list(pool.map(read, files, digests))
    if bad := [(f, why) for f, why in zip(files, images, strict=True) if isinstance(why, str)]:
        listed = "; ".join(f"{file.relative_to(folder)}: {why}" for file, why in bad[:SHOWN_FILES])
        if len(bad) > SHOWN_FILES:
            listed += f"; and {len(bad) - SHOWN_FILES} more"
        raise UsageError(
            f"folder:{folder}: {len(bad)} of {len(files)} files cannot be used; repair or remove "
            f"them: {listed}"
        )
    if len(shapes := {image.shape[1:] for image in images}) > 1:
        (low, *_, high) = sorted(shapes)
        raise UsageError(
            f"folder:{folder}: images of {len(shapes)} sizes, {low[1]}x{low[0]} to "
            f"{high[1]}x{high[0]}: give --image-size"
        )
    channels = max(len(image) for image in images)  # one in colour makes all so
    stacked = np.empty((len(images), channels, *images[0].shape[1:]), np.uint8)
    for row, image in zip(stacked, images, strict=True):
        row[:] = image
    return stacked


# --- an .npz file ---------------------------------------------------------------------------------


def _find_npz(file: Path) -> Source:
    try:
        content = file.read_bytes()
        if not zipfile.is_zipfile(io.BytesIO(content)):
            raise UsageError(f"npz:{file}: no .npz file; numpy.savez writes one")
        with np.load(io.BytesIO(content), allow_pickle=False) as held:
            arrays = dict(held)
    except OSError as error:
        raise UsageError(f"npz:{file}: {error.strerror or error}; is the path right?") from None
    except UsageError:
        raise
    except (ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"npz:{file}: no .npz file of plain arrays: {why}") from None
    parts = [p for p in PARTS if f"{p}_images" in arrays]
    pairs = [(f"{part}_images", f"{part}_labels") for part in parts] or [("X", "y")]
    if parts and not {"train", "test"} <= set(parts):
        raise UsageError(f"npz:{file}: it has {parts[0]}_images; train_ and test_ are needed")
    if missing := [name for pair in pairs for name in pair if name not in arrays]:
        raise UsageError(
            f"npz:{file}: it lacks {missing[0]}; it needs train_images, train_labels, test_images "
            f"and test_labels, or X and y, and has {', '.join(arrays) or 'nothing'}"
        )
    images = [_check_images(f"npz:{file}: {x}", arrays[x]) for x, _ in pairs]
    labels = [_check_labels(f"npz:{file}: {y}", arrays[y], len(arrays[x])) for x, y in pairs]
    if len({array.shape[1:] for array in images}) > 1:
        raise UsageError(f"npz:{file}: its parts have images of different shapes")
    classes, codes = np.unique(np.concatenate(labels), return_inverse=True)
    sizes = {part: len(array) for part, array in zip(parts, images, strict=False)}
    pool = np.concatenate(images)
    return Source(
        hashlib.sha256(content).hexdigest(), tuple(str(c) for c in classes),
        codes.astype(np.int64), tuple(sizes.get(p, 0) for p in PARTS) if parts else None,
        lambda side: resize_pixels(pool, side),
    )  # fmt: skip


def _check_images(what: str, images: np.ndarray) -> np.ndarray:
    """Shapes: (N, H, W), (N, H, W, C) or (N, C, H, W) -> (N, C, H, W), C 1 or 3."""
    if images.dtype.name != "uint8":
        raise UsageError(
            f"{what} is {images.dtype}; save it as uint8, from 0 to 255 (pixels in [0, 1]: "
            "(255 * X).round().astype('uint8'), without NaN)"
        )
    if images.ndim == 3 and images.size:
        return images[:, None]
    if images.ndim == 4 and images.size and images.shape[-1] in (1, 3):
        return images.transpose(0, 3, 1, 2)
    if images.ndim == 4 and images.size and images.shape[1] in (1, 3):
        return images
    raise UsageError(f"{what} has shape {images.shape}, not (N, H, W) or (N, H, W, 3)")


def _check_labels(what: str, labels: np.ndarray, n: int) -> np.ndarray:
    """Shapes: (n,) or (n, 1) -> (n,)."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise UsageError(
            f"{what} has {labels.shape[1]} labels an image; one is needed (of one-hot labels: "
            "y.argmax(1)), several at once cannot be learned here"
        )
    if labels.shape not in ((n,), (n, 1)):
        raise UsageError(f"{what} has shape {labels.shape} for {n} images")
    if labels.dtype.kind not in "biuU":
        raise UsageError(f"{what} is {labels.dtype}; whole numbers or text are needed")
    return labels.reshape(n)


def resize_pixels(pool: np.ndarray, side: int | None) -> np.ndarray:
    """Images as reading files of them gives them, brought to squares of `side`.

    Shapes: (N, C, H, W) uint8 -> (N, C, S, S).
    """
    if side is None or pool.shape[2:] == (side, side):
        return np.ascontiguousarray(pool)
    grey = pool.shape[1] == 1
    pictures = (Image.fromarray(p[0] if grey else np.moveaxis(p, 0, -1).copy()) for p in pool)
    return np.stack([to_pixels(image, pool.shape[1], side) for image in pictures])
