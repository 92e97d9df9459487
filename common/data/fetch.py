"""Images as arrays: the published sets, fetched and verified, the digits, and your own.

A published file is believed for its checksum alone, on every load, wherever it comes from: the
disk, a mirror or a package. published.toml lists them all. Nothing here needs torch.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from common.base.cli import UsageError
from common.base.config import is_own
from common.base.log import write_atomically
from common.data import own

IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
CONNECT_TIMEOUT_S = 10
DOWNLOAD_TIMEOUT_S = 300  # for one file, since a mirror may also trickle
CLIENTS = {"npm": ["npm", "pack", "--silent"], "apt": ["apt-get", "download"]}
# What a file that is there but not right is met with; anything else means the source is not there.
DAMAGED = (ValueError, EOFError, KeyError, zlib.error, gzip.BadGzipFile, tarfile.TarError)
OUT_OF_REACH = (OSError, HTTPException, subprocess.TimeoutExpired)


@dataclass(frozen=True)
class Dataset:
    """Images and labels in published order: tensors, or arrays where torch is not needed.

    Shapes: images (N, C, H, W) uint8; labels (N,) int64.
    """

    name: str
    images: Any
    labels: Any
    classes: Sequence[str]
    published_test: int | None = None  # images at the end that are the test part, if there is one
    published_val: int = 0  # those before them, to validate on


@dataclass(frozen=True)
class Published:
    """A published data set, as published.toml says it."""

    folder: str
    classes: Sequence[str]
    mirrors: Sequence[str]
    files: dict[str, str]
    package: str | None = None
    idx: Sequence[str] = ()
    first_label: int = 0


_TABLE = tomllib.loads(Path(__file__).with_name("published.toml").read_text("utf-8"))
PUBLISHED = {name: Published(**entry) for name, entry in _TABLE.items()}


def read_dataset(
    name: str, data_dir: str | Path, image_size: int | None = None, fetch: bool = True
) -> Dataset:
    """A data set as arrays, fetching what is missing where that is wanted. Your own images are
    brought to image_size, unless that is None; the published ones are resized while they train.

    Raises: UsageError when no source has a file with the right bytes; it says what to place where.
    """
    if is_own(name):
        source, images = own.read_images(name, Path(data_dir), image_size)
        _, val, test = source.sizes or (None, 0, None)
        return Dataset(name, images, source.labels, source.classes, test, val)
    if name == "digits":  # the 1,797 inside scikit-learn: no file, no network
        from sklearn.datasets import load_digits  # slow, and only needed here

        pixels, labels = load_digits(return_X_y=True)  # 0 to 16
        images = (pixels * (255 / 16)).round().astype("uint8").reshape(-1, 1, 8, 8)
        return Dataset(name, images, labels.astype("int64"), tuple("0123456789"))
    spec = PUBLISHED[name]
    contents = _read_files(spec, Path(data_dir) / spec.folder / "raw", fetch)
    if spec.idx:
        with zipfile.ZipFile(io.BytesIO(contents["gzip.zip"])) as archive:
            contents = {f"{name}.gz": archive.read(f"gzip/{name}.gz") for name in spec.idx}
    plain = [gzip.decompress(c) if n.endswith(".gz") else c for n, c in contents.items()]
    arrays = [parse_idx(data) for data in plain]
    # QMNIST's extended labels hold the class in the first of eight columns.
    labels = np.concatenate([part.reshape(len(part), -1)[:, 0] for part in arrays[1::2]])
    labels = labels.astype("int64") - spec.first_label
    images = np.concatenate(arrays[::2])[:, None]
    return Dataset(name, images, labels, tuple(spec.classes), len(arrays[2]))


def parse_idx(data: bytes) -> np.ndarray:
    """Decode an IDX file. Raises: ValueError unless header, type and length agree exactly.

    Source: the format as the MNIST page describes it: two zero bytes, type, rank, big-endian sizes.
    """
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in IDX_TYPES:
        raise ValueError("not an IDX file of a known type")
    rank = data[3]
    shape = np.frombuffer(data, ">u4", rank, 4)
    return np.frombuffer(data, IDX_TYPES[data[2]], offset=4 + 4 * rank).reshape(shape)


def _read_files(spec: Published, folder: Path, fetch: bool) -> dict[str, bytes]:
    """Every stored file's verified bytes, each from the first source that has it right."""
    sources: list[tuple[str, Callable[[str], bytes]]] = [
        ("disk", lambda name: (folder / name).read_bytes()),
        ("disk", lambda name: (folder / f"{name}.gz").read_bytes()),
    ]
    if fetch:
        sources += [(mirror, functools.partial(_download, mirror)) for mirror in spec.mirrors]
    if fetch and spec.package:
        packed = functools.cache(lambda: _fetch_package(spec.package))
        sources.append((spec.package, lambda name: packed()[name]))
    contents: dict[str, bytes] = {}
    missing, problems = list(spec.files), []
    for source, read in sources:
        if source != "disk":
            _check_writable(folder)
        for name in missing:
            try:
                contents[name] = _verify(read(name), name, spec.files[name])
            except FileNotFoundError:
                continue
            except (*DAMAGED, *OUT_OF_REACH) as error:
                problems.append(f"{source}: {name}: {error}")
                if not isinstance(error, DAMAGED):
                    break  # do not wait for this source four times
            else:
                if source != "disk":
                    print(f"{folder / name}: from {source}, checksum right", file=sys.stderr)
                    _place(folder / name, contents[name])
        missing = [name for name in missing if name not in contents]
        if not missing:
            return {name: contents[name] for name in spec.files}
    raise UsageError(
        f"no source has {', '.join(missing)} with the right checksum; place them (plain or .gz) "
        f"in {folder}/. Tried: {'; '.join(problems) or 'nothing on disk'}"
    )


def _verify(data: bytes, name: str, checksum: str) -> bytes:
    """The bytes as they are stored. Raises: ValueError when the checksum is wrong."""
    if len(checksum) == 32:
        if hashlib.md5(data).hexdigest() != checksum:
            raise ValueError(f"MD5 is not {checksum}; only torchvision's {name} is trusted")
        return data
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    if (digest := hashlib.sha256(data).hexdigest()) != checksum:
        raise ValueError(f"SHA-256 of the content is {digest[:12]}..., not {checksum[:12]}...")
    return data


def _check_writable(folder: Path) -> None:
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


def _download(mirror: str, name: str) -> bytes:
    url = mirror + (name if name.endswith((".gz", ".zip")) else f"{name}.gz")
    deadline = time.monotonic() + DOWNLOAD_TIMEOUT_S
    chunks = []
    with urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_S) as reply:
        while chunk := reply.read(1 << 20):
            chunks.append(chunk)
            if time.monotonic() > deadline:
                raise TimeoutError(f"not there after {DOWNLOAD_TIMEOUT_S} s")
    return b"".join(chunks)


def _fetch_package(package: str) -> dict[str, bytes]:
    """The IDX files in a package, fetched by its registry's own client and only unpacked."""
    manager, name = package.split(" ")
    with tempfile.TemporaryDirectory() as folder:
        _run([*CLIENTS[manager], name], folder)
        files = [str(file) for file in Path(folder).iterdir()]
        if len(files) != 1:
            raise ConnectionError(f"{manager} left {len(files)} files of {name}")
        unpack = ["cat", *files] if manager == "npm" else ["dpkg-deb", "--fsys-tarfile", *files]
        archive = _run(unpack, folder)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = [member for member in tar if member.isfile() and "-ubyte" in member.name]
        return {Path(m.name).name.removesuffix(".gz"): tar.extractfile(m).read() for m in members}


def _run(command: list[str], folder: str) -> bytes:
    """Raises: OSError with the last line of what the command printed."""
    if not shutil.which(command[0]):
        raise ConnectionError(f"{command[0]} is not installed")
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=DOWNLOAD_TIMEOUT_S)
    if done.returncode:
        printed = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        hint = "; try apt-get update first" if command[0] == "apt-get" else ""
        raise ConnectionError(f"{' '.join(command)}: {' '.join(printed[-1:])}{hint}")
    return done.stdout
