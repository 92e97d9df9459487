"""Your own images: a folder with one folder a class, or an .npz file in MedMNIST's layout.

They are named by their content, so that changed images are other work in the log: folder:photos is
folder:photos@3f2a9c1b2d3e, of the SHA-256 of every file's name and bytes.
"""

import functools
import hashlib
import io
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL import __version__ as pillow

from common.base.cli import UsageError
from common.base.log import write_atomically
from common.data.images import Unreadable, decoding, open_image, to_pixels

PARTS = ("train", "val", "test")
SPELLINGS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
NAME = re.compile(r"(folder|npz):(.*?)(?:@([0-9a-f]{12}))?", re.DOTALL)  # kind, path, content
SHOWN_FILES = 20  # of those that cannot be used
LEAST_IMAGES = 10  # of which 70/10/20 leaves one to validate on


@dataclass(frozen=True)
class Source:
    """Images that are there and hashed, in the order of PARTS."""

    sha256: str
    classes: tuple[str, ...]
    labels: np.ndarray  # (N,) int64
    sizes: tuple[int, ...] | None  # of the parts; None where they are not divided
    read: Callable[[int | None], np.ndarray]  # by side, None: as it is, to (N, C, H, W) uint8
    files: tuple[str, ...] = ()  # within the folder


def _require(condition: Any, why: str) -> None:
    if not condition:
        raise Unreadable(why)


@functools.cache  # hashes every byte once a process
def find_images(kind: str, path: str) -> Source:
    name = f"{kind}:{path}"
    try:
        path.encode()
        source = {"folder": _find_folder, "npz": _find_npz}[kind](Path(path).expanduser())
        classes, n = source.classes, len(source.labels)
        _require(len(classes) > 1, f"only one class, {classes[0]}: it needs others")
        _require(n >= LEAST_IMAGES, f"{n} images; at least {LEAST_IMAGES} are needed to divide")
        return source
    except UnicodeEncodeError:
        raise UsageError(f"--dataset {name}: the path is no UTF-8; rename it") from None
    except (Unreadable, RuntimeError) as error:  # the latter of ~nobody
        raise UsageError(f"{name}: {error}") from error.__cause__
    except OSError as error:
        what = f"{error.strerror}: {error.filename}; is the path right?"
        raise UsageError(f"{name}: {what}") from None


def pin_dataset(name: str) -> str:
    """The name with the content of your own images in it; that of a published set as it is."""
    if not (match := NAME.fullmatch(name)):
        return name
    kind, path, pin = match.groups()
    path = os.path.normpath(path)
    content = find_images(kind, path).sha256[:12]
    if pin not in (None, content):
        changed = f"{kind}:{path}: its images have changed: they were @{pin} and are @{content}"
        raise UsageError(f"{changed}; bring them back, or train on what is there now")
    return f"{kind}:{path}@{content}"


def read_images(name: str, data_dir: Path, side: int | None) -> tuple[Source, np.ndarray]:
    """The source that a name means and its images, decoded once: the data folder keeps them."""
    kind, path, _ = NAME.fullmatch(pin_dataset(name)).groups()
    source = find_images(kind, path)
    file = data_dir / "own" / f"{source.sha256[:32]}-{side or 'as-it-is'}-pillow{pillow}.npz"
    # None yet, or a damaged one: read again.
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        with open(file, "rb") as handle, np.load(handle, allow_pickle=False) as stored:
            images = stored["images"]
        if images.dtype == np.uint8 and images.ndim == 4 and len(images) == len(source.labels):
            return source, images
    try:
        images = source.read(side)
    except Unreadable as error:
        raise UsageError(f"{kind}:{path}: {error}") from None
    write_atomically(file, lambda handle: np.savez(handle, images=images))
    return source, images


def _find_folder(folder: Path) -> Source:
    parts, classes = _find_classes(folder)
    folders = [part / name for part, name in product(parts, classes)]
    groups = {path: sorted(_iter_files(path), key=os.fsencode) for path in folders}
    empty = [str(f.relative_to(folder)) for f, files in groups.items() if not files and f.is_dir()]
    _require(not empty, f"no files in {', '.join(empty)}; fill or remove them")
    files = list(chain(*groups.values()))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = dict(zip(files, pool.map(_hash_file, files), strict=True))
    content = hashlib.sha256()
    for file in sorted(files, key=os.fsencode):
        content.update(os.fsencode(file.relative_to(folder)) + b"\0" + digests[file])
    counts = np.array([len(group) for group in groups.values()]).reshape(len(parts), -1)
    labels = np.tile(np.arange(len(classes)), len(parts)).repeat(counts.ravel())
    sizes = tuple(counts.sum(1).tolist()) if len(parts) > 1 else None
    read = functools.partial(_read_files, folder, digests)
    names = tuple(os.fsencode(f.relative_to(folder)).decode(errors="replace") for f in files)
    return Source(content.hexdigest(), classes, labels, sizes, read, names)


def _find_classes(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """The folders that hold class folders, and the names of all classes."""
    parts, names = [folder], _folders_in(folder)
    by_part = {SPELLINGS.get(name.lower(), name.lower()): name for name in names}
    if names and by_part.keys() <= set(PARTS):
        whole = len(by_part) == len(names) and {"train", "test"} <= by_part.keys()
        needed = "a division needs train/ and test/, with val/ or without, each once"
        _require(whole, f"it has {' and '.join(names)}; {needed}")
        parts = [folder / by_part.get(part, part) for part in PARTS]
        names = sorted({name for part in parts if part.is_dir() for name in _folders_in(part)})
        untrained = sorted(set(names) - set(_folders_in(parts[0])))
        _require(not untrained, f"{parts[0].name}/ has no class {', '.join(untrained)}")
    _require(names, "no folders in it; it needs one for each class")
    for name in names:
        _require(name.isprintable(), f"{name!r} would not print; rename it")
    return parts, tuple(names)


def _folders_in(folder: Path) -> list[str]:
    entries = list(os.scandir(folder))
    return sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")


def _iter_files(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    here = folder.resolve()
    _require(here not in above, f"{folder} is a link to a folder that it is in; remove it")
    for entry in list(os.scandir(folder)) if folder.is_dir() else ():
        if entry.name[0] != "." and entry.is_dir():
            yield from _iter_files(Path(entry), (*above, here))
        elif entry.name[0] != ".":
            yield Path(entry)


def _hash_file(file: Path) -> bytes:
    with suppress(OSError):  # reading will name one that cannot be opened
        if file.is_file():  # a pipe would be waited for
            return hashlib.sha256(file.read_bytes()).digest()
    return b""


def _read_files(folder: Path, digests: dict[Path, bytes], side: int | None) -> np.ndarray:
    def read(file: Path) -> np.ndarray | str:
        try:
            _require(file.is_file() or not file.exists(), "no regular file")
            data = file.read_bytes()
            _require(hashlib.sha256(data).digest() == digests[file], "changed while it was read")
            image = open_image(data)
        except (OSError, Unreadable) as error:
            return getattr(error, "strerror", None) or str(error)
        return to_pixels(image, len(image.getbands()), side)

    with decoding(), ThreadPoolExecutor(os.cpu_count()) as pool:
        images = list(pool.map(read, digests))
    pairs = zip(digests, images, strict=True)
    bad = [f"{file.relative_to(folder)}: {why}" for file, why in pairs if isinstance(why, str)]
    more = [f"and {len(bad) - SHOWN_FILES} more"] if len(bad) > SHOWN_FILES else []
    hint = f"{len(bad)} of {len(digests)} files cannot be used; repair or remove them"
    _require(not bad, f"{hint}: {'; '.join(bad[:SHOWN_FILES] + more)}")
    sizes = sorted({image.shape[1:] for image in images})
    span = " to ".join(f"{width}x{height}" for height, width in (sizes[0], sizes[-1]))
    _require(len(sizes) == 1, f"images of {len(sizes)} sizes, {span}: give --image-size")
    return np.stack(np.broadcast_arrays(*images))  # one in colour makes all so


def _find_npz(file: Path) -> Source:
    content = file.read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            arrays = dict(stored)
    except Exception as error:  # damage is met with whatever numpy stumbles over
        raise Unreadable("no .npz file of plain arrays; numpy.savez writes one") from error
    parts = [part for part in PARTS if f"{part}_images" in arrays]
    divided = not parts or {"train", "test"} <= set(parts)
    _require(divided, f"it has {', '.join(parts)}_images; train_ and test_ are needed")
    pairs = [(f"{part}_images", f"{part}_labels") for part in parts] or [("X", "y")]
    missing = ", ".join(name for name in chain(*pairs) if name not in arrays)
    needed = "it needs train_images, train_labels, test_images and test_labels, or X and y"
    _require(not missing, f"it lacks {missing}; {needed}, and has {', '.join(arrays) or 'nothing'}")
    images, labels = zip(*(_check_part(arrays, *pair) for pair in pairs), strict=True)
    same = len({array.shape[1:] for array in images}) == 1
    _require(same, "its parts have images of different shapes")
    classes, codes = np.unique(np.concatenate(labels), return_inverse=True)
    sizes = tuple(len(arrays.get(f"{part}_images", ())) for part in PARTS) if parts else None
    read = functools.partial(resize_pixels, np.concatenate(images))
    digest, codes = hashlib.sha256(content).hexdigest(), codes.astype(np.int64)
    return Source(digest, tuple(map(str, classes)), codes, sizes, read)


def _check_part(arrays: dict[str, np.ndarray], x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """Shapes: (N, H, W), (N, H, W, C) or (N, C, H, W), (N,) or (N, 1) -> (N, C, H, W), (N,)."""
    images, labels = arrays[x], arrays[y]
    hint = "from 0 to 255 (pixels in [0, 1]: (255 * X).round().astype('uint8'), without NaN)"
    _require(images.dtype == np.uint8, f"{x} is {images.dtype}; save it as uint8, {hint}")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[-1] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    fits = images.ndim == 4 and images.size and images.shape[1] in (1, 3)
    _require(fits, f"{x} has shape {images.shape}, not (N, H, W) or (N, H, W, 3)")
    n = len(images)
    hint = "one is needed (of one-hot labels: y.argmax(1)), several at once cannot be learned here"
    several = labels.ndim == 2 and labels.shape[1] != 1
    _require(not several, f"{y} has {labels.size // n} labels an image; {hint}")
    _require(labels.shape in ((n,), (n, 1)), f"{y} has shape {labels.shape} for {n} images")
    numbers_or_text = labels.dtype.kind in "biuU"
    _require(numbers_or_text, f"{y} is {labels.dtype}; whole numbers or text are needed")
    return images, labels.reshape(n)


def resize_pixels(pool: np.ndarray, side: int | None) -> np.ndarray:
    """Images as reading files of them gives them. Shapes: (N, C, H, W) uint8 -> (N, C, S, S)."""
    if side is None or pool.shape[2:] == (side, side):
        return np.ascontiguousarray(pool)
    grey = pool.shape[1] == 1
    pictures = (Image.fromarray(p[0] if grey else np.moveaxis(p, 0, -1).copy()) for p in pool)
    return np.stack([to_pixels(image, pool.shape[1], side) for image in pictures])
