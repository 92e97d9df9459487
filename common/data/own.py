"""Your own images: a folder with one folder a class, or an .npz file in MedMNIST's layout.
What could be meant in two ways is refused by name: nothing is guessed, nothing left out in silence.
They are named by their content, so that changed images are other work in the log, and the same ones
elsewhere are not: folder:~/x/photos is folder:photos@3f2a9c1b2d3e there, of the SHA-256 of every
file's name and bytes, of how they are read, and of their groups."""

import csv
import functools
import hashlib
import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor
from PIL import __version__ as pillow

from common.base.cli import UsageError, flag_of, printable
from common.base.config import BACKGROUND, MAX_PIXELS, is_own, name_in_log
from common.base.log import write_atomically
from common.data.images import WORDS, Dataset, Unreadable, decoding, open_image, require, to_pixels

RULES = 2  # of reading and dividing: other rules are other work
NAME = re.compile(r"(folder|npz):(.*?)(?:@([0-9a-f]{12}))?", re.DOTALL)  # kind, path, content
SETTINGS = ("groups", "background", "max_pixels")
SHOWN_FILES = 20  # of those that cannot be used
LEAST_IMAGES = 10  # of which 70/10/20 leaves one to validate on
PARTS = {"train": "training", "val": "validation", "test": "test"}
SPELLINGS = dict.fromkeys(("valid", "validation", "dev"), "val")
SPELLINGS |= {"training": "train", "testing": "test"}
LITTER = ("__MACOSX", "Thumbs.db", "desktop.ini")  # of file managers, ignored as hidden files are
Pixels = tuple[np.ndarray, dict[str, list[str]]]  # (N, C, H, W) uint8; Dataset.told
# The name with place and content, all but the pixels, and how to read these, squeezed to a side.
Source = tuple[str, Dataset, Callable[[int | None], Pixels]]


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


_places: dict[str, Place] = {}  # of what this process has pinned, by content


def some(names: Sequence[str]) -> str:
    return ", ".join([*names[:3], *["..."][: len(names) > 3]])


def pin_datasets(grid: Mapping[str, list[Any]], data_dir: str) -> list[str]:
    """The names of a grid's data sets, each once, with the content of your own images in them."""
    settings = {name: grid[name][0] for name in SETTINGS}
    for name, value in settings.items():
        if len(grid[name]) > 1 or (value and not any(map(is_own, grid["dataset"]))):
            raise UsageError(f"{flag_of(name)}: one value, and for --dataset folder:PATH alone")
    return list(dict.fromkeys(pin_dataset(n, data_dir, **settings) for n in grid["dataset"]))


def pin_dataset(name: str, data_dir: str | Path, **settings: Any) -> str:
    """The name with the place and the content of your own images in it; that of a published set as
    it is. `settings` are SETTINGS, unless the name has a content that is known."""
    return _find(name, Path(data_dir), settings)[0] if is_own(name) else name


def read_own(name: str, data_dir: Path, side: int | None) -> Dataset:
    """Your own images, squeezed to a square unless `side` is None. They are decoded once: the data
    folder keeps them."""
    pinned, dataset, read = _find(name, data_dir, {})
    place, _, content = pinned.rpartition("@")
    file = data_dir / "own" / f"{content}-{side or 'as-it-is'}-pillow{pillow}.npz"
    # None yet, or a damaged one, by the checksums in it: read again.
    again = suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
    with again, open(file, "rb") as handle, np.load(handle, allow_pickle=False) as stored:
        return replace(dataset, images=stored["images"], told=json.loads(str(stored["told"])))
    try:
        images, told = read(side)
    except Unreadable as error:
        raise UsageError(f"{place}: {error}") from None
    with suppress(UsageError):  # said of the name's file
        write_atomically(file, lambda f: np.savez(f, images=images, told=json.dumps(told)))
    return replace(dataset, images=images, told=told)


def _find(name: str, data_dir: Path, settings: Mapping[str, Any]) -> Source:
    """What a name means; its place, and how it is read, are kept for who has the content alone."""
    kind, path, pin = NAME.fullmatch(name).groups()
    given = {key: value for key, value in settings.items() if value is not None}
    if given.get("groups", "").lower().endswith(".csv"):
        given["groups"] = os.path.abspath(os.path.expanduser(given["groups"]))
    place = Place(kind, os.path.abspath(os.path.expanduser(path)), **given)
    if pin and not (given and os.path.exists(place.path)):
        with suppress(OSError, ValueError, TypeError):  # not kept, or not by us
            kept = data_dir / "own" / f"{pin}.json"
            known = _places.get(pin) or Place(**json.loads(kept.read_text("utf-8")))
            place = known if os.path.exists(known.path) else place
    source = find_images(place)
    content = source[0].rpartition("@")[-1]
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
    return source


@functools.cache  # hashes every byte once a process
def find_images(place: Place) -> Source:
    try:
        require(place.path.encode(errors="replace").decode() == place.path, "utf8")
        pinned, dataset, read = {"folder": _find_folder, "npz": _find_npz}[place.kind](place)
        classes, n = dataset.classes, len(dataset.labels)
        for name in classes:
            require(name.isprintable(), "unprintable", name=name)
        require(len(classes) > 1, "one_class", name=classes[0])
        require(n >= LEAST_IMAGES, "few_images", n=n, least=LEAST_IMAGES)
    except Unreadable as error:
        raise UsageError(f"{place}: {error}") from error.__cause__
    except OSError as error:
        why = f"{place}: {error.strerror}: {error.filename}; is the path right?"
        raise UsageError(why) from None
    return pinned, replace(dataset, name=name_in_log(pinned), background=place.background), read


def _find_folder(place: Place) -> Source:
    root = Path(place.path)
    parts, classes = find_classes(root)
    below = [part / name for part, name in product(parts.values(), classes)]
    listed = {folder: sorted(iter_files(folder), key=os.fsencode) for folder in below}
    empty = [str(f.relative_to(root)) for f, files in listed.items() if not files and f.is_dir()]
    require(not empty, "no_files", folders=", ".join(empty))
    files = list(chain(*listed.values()))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = dict(zip(files, pool.map(_hash_file, files), strict=True))
    raw = [os.fsencode(file.relative_to(root)) for file in files]
    names = tuple(printable(name.decode(errors="replace")) for name in raw)
    groups = find_groups(place.groups, names) if place.groups else ()
    content = hashlib.sha256(repr((RULES, ImageColor.getrgb(place.background))).encode())
    of_group = (group.encode() for group in groups or [""] * len(files))
    for name, digest, group in sorted(zip(raw, digests.values(), of_group, strict=True)):
        content.update(name + b"\0" + digest + group)
    counts = np.reshape([len(files) for files in listed.values()], (len(parts), -1))
    labels = np.tile(np.arange(len(classes)), len(parts)).repeat(counts.ravel())
    sizes = dict(zip(parts, counts.sum(1).tolist(), strict=True))
    dataset = Dataset("", None, labels, classes, sizes, names, groups)
    read = functools.partial(_read_files, place, digests, names)
    return f"{place}@{content.hexdigest()[:12]}", dataset, read


def _hash_file(file: Path) -> bytes:
    with suppress(OSError):  # reading will name one that cannot be opened
        if file.is_file():  # a pipe would be waited for
            return hashlib.sha256(file.read_bytes()).digest()
    return b""


def _read_files(
    place: Place, digests: dict[Path, bytes], names: tuple[str, ...], side: int | None
) -> Pixels:
    def read(file: Path) -> tuple[np.ndarray | str, set[str]]:
        try:
            require(file.is_file() or not file.exists(), "irregular")
            data = file.read_bytes()
            require(hashlib.sha256(data).digest() == digests[file], "changed")
            image, told = open_image(data, place.background, place.max_pixels)
        except (OSError, Unreadable) as error:
            return getattr(error, "strerror", None) or str(error), set()
        return to_pixels(image, len(image.getbands()), side), told

    with decoding(), ThreadPoolExecutor(os.cpu_count()) as pool:
        images, notes = zip(*pool.map(read, digests), strict=True)
    bad = [f"{n}: {why}" for n, why in zip(names, images, strict=True) if isinstance(why, str)]
    shown = bad[:SHOWN_FILES] + [f"and {len(bad) - SHOWN_FILES} more"] * (len(bad) > SHOWN_FILES)
    require(not bad, "bad_files", bad=len(bad), n=len(digests), files="; ".join(shown))
    sizes = sorted({image.shape[1:] for image in images})
    span = " to ".join(f"{width}x{height}" for height, width in (sizes[0], sizes[-1]))
    require(len(sizes) == 1, "sizes", n=len(sizes), span=span)
    pairs = list(zip(names, notes, strict=True))
    told = {key: [name for name, keys in pairs if key in keys] for key in set().union(*notes)}
    return np.stack(np.broadcast_arrays(*images)), told  # one in colour makes all so


def find_classes(root: Path) -> tuple[dict[str, Path], tuple[str, ...]]:
    """The folders that class folders are in, by their part if there is one, in the order of PARTS,
    and the names of all classes. Raises: Unreadable, which says what to type."""
    names = _folders_in(root)
    by_name = {name: SPELLINGS.get(name.lower(), name.lower()) for name in names}
    divided = [name for name in names if by_name[name] in PARTS]
    if not divided or divided != names:
        _check_no_other_level(root, names, divided)
        return {"": root}, tuple(names)
    parts = {part: root / name for part in PARTS for name in names if by_name[name] == part}
    facts = {"names": " and ".join(f"{name}/" for name in names), "parts": parts}
    require(parts.keys() != {"train", "val"}, "no_test", **facts)
    whole = len(parts) == len(names) and {"train", "test"} <= parts.keys()
    require(whole, "division", **facts)
    classes = _folders_in(parts["train"])
    require(classes, "unsorted", **facts)
    for folder in parts.values():
        tested = _folders_in(folder)
        require(tested, "unlabelled", folder=folder, **facts)
        more = ", ".join(sorted(set(tested) - set(classes)))
        require(not more, "untrained", classes=more, **facts)
    return parts, tuple(classes)


def _check_no_other_level(root: Path, names: list[str], divided: list[str]) -> None:
    """Whether folders are classes, and not what class folders are in."""
    require(names, "no_folders")
    below = {name: _list(root / name) for name in names}  # folders, files
    others = some([f"{name}/" for name in names if name not in divided])
    copies = any(below[name][0] for name in divided)
    require(not copies, "second_copy", parts=some(divided), others=others)
    first, inner = below[names[0]][0], root / names[0]
    require(len(names) > 1 or not first, "outer_folder", name=names[0], inner=inner)
    same = len(first) > 1 and all(lists == (first, []) for lists in below.values())
    require(not same, "versions", names=some(names), first=some(first), inner=inner)


def _list(folder: Path) -> tuple[list[str], list[str]]:
    """The names of its folders and of its files, in order, without hidden ones."""
    entries = [e for e in os.scandir(folder) if e.name[0] != "." and e.name not in LITTER]
    return tuple(sorted(e.name for e in entries if e.is_dir() == kind) for kind in (True, False))


def _folders_in(folder: Path) -> list[str]:
    """The names of its folders. Raises: Unreadable where images lie beside them."""
    folders, files = _list(folder)
    known = Image.registered_extensions()
    images = [name for name in files if os.path.splitext(name)[1].lower() in known]
    beside = images and folders
    require(not beside, "beside", folder=folder.name, images=some(images), n=len(images))
    return folders


def iter_files(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files in a folder and in those below it, but for hidden ones."""
    here = folder.resolve()
    require(here not in above, "circle", folder=folder)
    folders, files = _list(folder) if folder.is_dir() else ((), ())
    yield from (folder / name for name in files)
    for name in folders:
        yield from iter_files(folder / name, (*above, here))


def find_groups(rule: str, files: Sequence[str]) -> tuple[str, ...]:
    """The group of each file, by a CSV file with the columns file and group, or by what a pattern
    captures in its name. Raises: Unreadable."""
    if rule.lower().endswith(".csv"):
        with open(rule, encoding="utf-8-sig", errors="replace") as lines:
            rows = list(csv.DictReader(lines))
        columns = [str(name) for name in rows[0]] if rows else []
        whole = {"file", "group"} <= set(columns)
        require(whole, "group_columns", rule=rule, columns=", ".join(columns))
        groups = {row["file"]: row["group"] for row in rows}
        twice = [row["file"] for row in rows if groups[row["file"]] != row["group"]]
        require(not twice, "two_groups", rule=rule, files=some(twice))
    else:
        try:
            pattern = re.compile(rule)
        except re.error as error:
            require(False, "no_pattern", rule=rule, error=error)
        require(pattern.groups == 1, "brackets", rule=rule)
        groups = {name: match[1] for name in files if (match := pattern.search(name))}
    lacking = [name for name in files if not groups.get(name)]
    counts = f"{len(lacking)} of {len(files)}"
    require(not lacking, "no_group", rule=rule, counts=counts, names=some(lacking))
    return tuple(groups[name] for name in files)


def _find_npz(place: Place) -> Source:
    require(not place.groups, "npz_groups")
    content = Path(place.path).read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            arrays = dict(stored)
    except Exception as error:  # damage is met with whatever numpy stumbles over
        raise Unreadable(WORDS["refused"]["no_npz"]) from error
    parts = [part for part in PARTS if f"{part}_images" in arrays]
    require(not parts or {"train", "test"} <= set(parts), "npz_division", parts=", ".join(parts))
    pairs = [(f"{part}_images", f"{part}_labels") for part in parts] or [("X", "y")]
    missing, has = ", ".join(n for n in chain(*pairs) if n not in arrays), ", ".join(arrays)
    require(not missing, "npz_lacks", names=missing, has=has or "nothing")
    images, labels = zip(*(_check_part(arrays, *pair) for pair in pairs), strict=True)
    require(len({array.shape[1:] for array in images}) == 1, "shapes")
    classes, codes = np.unique(np.concatenate(labels), return_inverse=True)
    sizes = {part: len(array) for part, array in zip(parts, images, strict=False)}
    digest = hashlib.sha256(repr(RULES).encode() + content).hexdigest()[:12]
    dataset = Dataset("", None, codes.astype(np.int64), tuple(map(str, classes)), sizes)
    pool = np.concatenate(images)
    return f"{place}@{digest}", dataset, lambda side: (resize_pixels(pool, side), {})


def _check_part(arrays: dict[str, np.ndarray], x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """Shapes: (N, H, W), (N, H, W, C) or (N, C, H, W); (N,), (N, 1), or (N, K) one-hot ->
    (N, C, H, W), (N,)."""
    images, labels = arrays[x], arrays[y]
    require(images.dtype == np.uint8, "no_uint8", x=x, dtype=images.dtype)
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[-1] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    fits = images.ndim == 4 and images.size and images.shape[1] in (1, 3)
    require(fits, "no_images", x=x, shape=images.shape)
    n, kind = len(images), labels.dtype.kind
    if labels.ndim == 2 and labels.shape[1] > 1:
        one_hot = kind in "biuf" and np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all()
        require(one_hot, "several_labels", y=y, n=labels.shape[1])
        labels = labels.argmax(1)
    require(labels.shape in ((n,), (n, 1)), "labels_shape", y=y, shape=labels.shape, n=n)
    require(labels.dtype.kind in "biuU", "labels_type", y=y, dtype=labels.dtype)
    labels = labels.astype(np.int64) if labels.dtype.kind in "iu" else labels
    return images, labels.reshape(n)  # of one type in all parts: of two, numpy makes floats


def resize_pixels(pool: np.ndarray, side: int | None) -> np.ndarray:
    """Images as reading files of them gives them. Shapes: (N, C, H, W) uint8 -> (N, C, S, S)."""
    if side is None or pool.shape[2:] == (side, side):
        return np.ascontiguousarray(pool)
    grey = pool.shape[1] == 1
    pictures = (Image.fromarray(p[0] if grey else np.moveaxis(p, 0, -1).copy()) for p in pool)
    return np.stack([to_pixels(image, pool.shape[1], side) for image in pictures])
