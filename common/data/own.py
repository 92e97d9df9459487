"""Your own images: a folder with one folder a class, or an .npz file in MedMNIST's layout.

They are named by their content, so that changed images are other work in the log, and the same ones
elsewhere are not: folder:~/x/photos is folder:photos@3f2a9c1b2d3e there, of the SHA-256 of every
file's name and bytes, of how they are read, and of their groups.
"""

import functools
import hashlib
import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor
from PIL import __version__ as pillow

from common.base.cli import UsageError, flag_of, printable
from common.base.config import BACKGROUND, MAX_PIXELS, is_own
from common.base.log import write_atomically
from common.data import folders
from common.data.folders import PARTS, require
from common.data.images import TOLD, Unreadable, decoding, open_image, to_pixels

RULES = 2  # of reading and dividing: other rules are other work
NAME = re.compile(r"(folder|npz):(.*?)(?:@([0-9a-f]{12}))?", re.DOTALL)  # kind, path, content
SETTINGS = ("groups", "background", "max_pixels")
SHOWN_FILES = 20  # of those that cannot be used
LEAST_IMAGES = 10  # of which 70/10/20 leaves one to validate on


@dataclass(frozen=True)
class Place:
    """Where images lie, and how they are read and grouped."""

    kind: str
    path: str  # absolute
    groups: str | None = None
    background: str = BACKGROUND
    max_pixels: int = MAX_PIXELS

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}"


@dataclass(frozen=True)
class Source:
    """Images that are there and hashed, in the order of PARTS."""

    sha256: str
    classes: tuple[str, ...]
    labels: np.ndarray  # (N,) int64
    sizes: tuple[int, ...] | None  # of the parts; None where they are not divided
    # By side, None: as it is, to (N, C, H, W) uint8, and the files of what is to be told of.
    read: Callable[[int | None], tuple[np.ndarray, dict[str, list[str]]]]
    files: tuple[str, ...] = ()  # within the folder
    groups: tuple[str, ...] = ()


_places: dict[str, Place] = {}  # of what this process has pinned


@functools.cache  # hashes every byte once a process
def find_images(place: Place) -> Source:
    try:
        place.path.encode()
        source = {"folder": _find_folder, "npz": _find_npz}[place.kind](place)
        classes, n = source.classes, len(source.labels)
        for name in classes:
            require(name.isprintable(), f"{name!r} would not print; rename it")
        require(len(classes) > 1, f"only one class, {classes[0]}: it needs others")
        require(n >= LEAST_IMAGES, f"{n} images; at least {LEAST_IMAGES} are needed to divide")
        return source
    except UnicodeEncodeError:
        raise UsageError(f"--dataset {place}: the path is no UTF-8; rename it") from None
    except Unreadable as error:
        raise UsageError(f"{place}: {error}") from error.__cause__
    except OSError as error:
        what = f"{error.strerror}: {error.filename}; is the path right?"
        raise UsageError(f"{place}: {what}") from None


def pin_datasets(grid: Mapping[str, list[Any]], data_dir: str) -> list[str]:
    """The names of a grid's data sets, each once, with the content of your own images in them."""
    settings = {name: grid[name][0] for name in SETTINGS}
    for name in SETTINGS:
        one = len(grid[name]) == 1 and (any(map(is_own, grid["dataset"])) or not settings[name])
        if not one:
            raise UsageError(f"{flag_of(name)}: one value, and for --dataset folder:PATH alone")
    return list(dict.fromkeys(pin_dataset(n, data_dir, **settings) for n in grid["dataset"]))


def pin_dataset(name: str, data_dir: str | Path, **settings: Any) -> str:
    """The name with the place and the content of your own images in it; that of a published set as
    it is. `settings` are SETTINGS, unless the name has a content that is known."""
    if not NAME.fullmatch(name):
        return name
    place, source = _find_place(name, Path(data_dir), settings)
    return f"{place}@{source.sha256[:12]}"


def _find_place(name: str, data_dir: Path, settings: Mapping[str, Any]) -> tuple[Place, Source]:
    kind, path, pin = NAME.fullmatch(name).groups()
    given = {key: value for key, value in settings.items() if value is not None}
    if given.get("groups", "").lower().endswith(".csv"):
        given["groups"] = os.path.abspath(os.path.expanduser(given["groups"]))
    try:
        place = Place(kind, os.path.abspath(Path(path).expanduser()), **given)
    except RuntimeError as error:  # of ~nobody
        raise UsageError(f"{name}: {error}") from None
    if pin and not (given and os.path.exists(place.path)):
        with suppress(OSError, ValueError, TypeError):  # not kept, or not by us
            kept = data_dir / "own" / f"{pin}.json"
            known = _places.get(pin) or Place(**json.loads(kept.read_text("utf-8")))
            place = known if os.path.exists(known.path) else place
    source = find_images(place)
    content = source.sha256[:12]
    if pin not in (None, content):
        changed = f"{place}: its images or how they are read have changed: they were @{pin}"
        raise UsageError(f"{changed} and are @{content}; bring them back, or train on these")
    if content not in _places:
        _places[content] = place
        try:
            text = json.dumps(vars(place), indent=1)
            write_atomically(data_dir / "own" / f"{content}.json", text.encode())
        except UsageError as error:
            print(f"{error}; each command decodes your images again", file=sys.stderr)
    return place, source


def read_images(
    name: str, data_dir: Path, side: int | None
) -> tuple[Place, Source, np.ndarray, dict[str, list[str]]]:
    """What a name means, its images, and the files that something is told of; decoded once: the
    data folder keeps them."""
    place, source = _find_place(name, data_dir, {})
    file = data_dir / "own" / f"{source.sha256[:32]}-{side or 'as-it-is'}-pillow{pillow}.npz"
    # None yet, or a damaged one: read again.
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        with open(file, "rb") as handle, np.load(handle, allow_pickle=False) as stored:
            images, told = stored["images"], json.loads(str(stored["told"]))
        if images.dtype == np.uint8 and images.ndim == 4 and len(images) == len(source.labels):
            return place, source, images, told
    try:
        images, told = source.read(side)
    except Unreadable as error:
        raise UsageError(f"{place}: {error}") from None
    with suppress(UsageError):  # said of the name's file
        write_atomically(file, lambda f: np.savez(f, images=images, told=json.dumps(told)))
    return place, source, images, told


def _find_folder(place: Place) -> Source:
    root = Path(place.path)
    parts, classes = folders.find_classes(root)
    below = [part / name for part, name in product(parts.values(), classes)]
    groups = {path: sorted(folders.iter_files(path), key=os.fsencode) for path in below}
    empty = [str(f.relative_to(root)) for f, files in groups.items() if not files and f.is_dir()]
    require(not empty, f"no files in {', '.join(empty)}; fill or remove them")
    files = list(chain(*groups.values()))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = dict(zip(files, pool.map(_hash_file, files), strict=True))
    raw = [os.fsencode(file.relative_to(root)) for file in files]
    names = tuple(printable(name.decode(errors="replace")) for name in raw)
    grouped = folders.find_groups(place.groups, names) if place.groups else ()
    content = hashlib.sha256(repr((RULES, ImageColor.getrgb(place.background))).encode())
    of_group = (group.encode() for group in grouped or [""] * len(files))
    for name, digest, group in sorted(zip(raw, digests.values(), of_group, strict=True)):
        content.update(name + b"\0" + digest + group)
    counts = np.array([len(group) for group in groups.values()]).reshape(len(parts), -1)
    labels = np.tile(np.arange(len(classes)), len(parts)).repeat(counts.ravel())
    by_part = dict(zip(parts, counts.sum(1).tolist(), strict=True))
    sizes = tuple(by_part.get(part, 0) for part in PARTS) if len(parts) > 1 else None
    read = functools.partial(_read_files, place, digests, names)
    return Source(content.hexdigest(), classes, labels, sizes, read, names, grouped)


def _hash_file(file: Path) -> bytes:
    with suppress(OSError):  # reading will name one that cannot be opened
        if file.is_file():  # a pipe would be waited for
            return hashlib.sha256(file.read_bytes()).digest()
    return b""


def _read_files(
    place: Place, digests: dict[Path, bytes], names: tuple[str, ...], side: int | None
) -> tuple[np.ndarray, dict[str, list[str]]]:
    def read(file: Path) -> tuple[np.ndarray | str, set[str]]:
        try:
            require(file.is_file() or not file.exists(), "no regular file")
            data = file.read_bytes()
            require(hashlib.sha256(data).digest() == digests[file], "changed while it was read")
            image, told = open_image(data, place.background, place.max_pixels)
        except (OSError, Unreadable) as error:
            return getattr(error, "strerror", None) or str(error), set()
        return to_pixels(image, len(image.getbands()), side), told

    with decoding(), ThreadPoolExecutor(os.cpu_count()) as pool:
        images, notes = zip(*pool.map(read, digests), strict=True)
    pairs = zip(names, images, strict=True)
    bad = [f"{name}: {why}" for name, why in pairs if isinstance(why, str)]
    more = [f"and {len(bad) - SHOWN_FILES} more"] if len(bad) > SHOWN_FILES else []
    hint = f"{len(bad)} of {len(digests)} files cannot be used; repair or remove them"
    require(not bad, f"{hint}: {'; '.join(bad[:SHOWN_FILES] + more)}")
    sizes = sorted({image.shape[1:] for image in images})
    span = " to ".join(f"{width}x{height}" for height, width in (sizes[0], sizes[-1]))
    require(len(sizes) == 1, f"images of {len(sizes)} sizes, {span}: give --image-size")
    pairs = list(zip(names, notes, strict=True))
    told = {key: [name for name, keys in pairs if key in keys] for key in TOLD}
    return np.stack(np.broadcast_arrays(*images)), told  # one in colour makes all so


def _find_npz(place: Place) -> Source:
    require(not place.groups, "--groups is for folders: the images of an .npz file have no names")
    content = Path(place.path).read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            arrays = dict(stored)
    except Exception as error:  # damage is met with whatever numpy stumbles over
        raise Unreadable("no .npz file of plain arrays; numpy.savez writes one") from error
    parts = [part for part in PARTS if f"{part}_images" in arrays]
    divided = not parts or {"train", "test"} <= set(parts)
    require(divided, f"it has {', '.join(parts)}_images; train_ and test_ are needed")
    pairs = [(f"{part}_images", f"{part}_labels") for part in parts] or [("X", "y")]
    missing = ", ".join(name for name in chain(*pairs) if name not in arrays)
    needed = "it needs train_images, train_labels, test_images and test_labels, or X and y"
    require(not missing, f"it lacks {missing}; {needed}, and has {', '.join(arrays) or 'nothing'}")
    images, labels = zip(*(_check_part(arrays, *pair) for pair in pairs), strict=True)
    same = len({array.shape[1:] for array in images}) == 1
    require(same, "its parts have images of different shapes")
    classes, codes = np.unique(np.concatenate(labels), return_inverse=True)
    sizes = tuple(len(arrays.get(f"{part}_images", ())) for part in PARTS) if parts else None
    digest = hashlib.sha256(repr(RULES).encode() + content).hexdigest()
    pool, codes = np.concatenate(images), codes.astype(np.int64)

    def read(side: int | None) -> tuple[np.ndarray, dict[str, list[str]]]:
        return resize_pixels(pool, side), {}

    return Source(digest, tuple(map(str, classes)), codes, sizes, read)


def _check_part(arrays: dict[str, np.ndarray], x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """Shapes: (N, H, W), (N, H, W, C) or (N, C, H, W); (N,), (N, 1), or (N, K) one-hot ->
    (N, C, H, W), (N,)."""
    images, labels = arrays[x], arrays[y]
    hint = "from 0 to 255 (pixels in [0, 1]: (255 * X).round().astype('uint8'), without NaN)"
    require(images.dtype == np.uint8, f"{x} is {images.dtype}; save it as uint8, {hint}")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[-1] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    fits = images.ndim == 4 and images.size and images.shape[1] in (1, 3)
    require(fits, f"{x} has shape {images.shape}, not (N, H, W) or (N, H, W, 3)")
    n, kind = len(images), labels.dtype.kind
    if labels.ndim == 2 and labels.shape[1] > 1:
        one_hot = kind in "biuf" and np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all()
        several = "not one-hot: one class an image is needed, several cannot be learned here"
        require(one_hot, f"{y} has {labels.shape[1]} columns, {several}")
        labels = labels.argmax(1)
    require(labels.shape in ((n,), (n, 1)), f"{y} has shape {labels.shape} for {n} images")
    known = labels.dtype.kind in "biuU"
    require(known, f"{y} is {labels.dtype}; whole numbers or text are needed")
    labels = labels.astype(np.int64) if labels.dtype.kind in "iu" else labels
    return images, labels.reshape(n)  # of one type in all parts: of two, numpy makes floats


def resize_pixels(pool: np.ndarray, side: int | None) -> np.ndarray:
    """Images as reading files of them gives them. Shapes: (N, C, H, W) uint8 -> (N, C, S, S)."""
    if side is None or pool.shape[2:] == (side, side):
        return np.ascontiguousarray(pool)
    grey = pool.shape[1] == 1
    pictures = (Image.fromarray(p[0] if grey else np.moveaxis(p, 0, -1).copy()) for p in pool)
    return np.stack([to_pixels(image, pool.shape[1], side) for image in pictures])
