"""Images as arrays: the published sets, fetched and verified, the digits, and your own.
A published file is believed for its checksum alone, on every load, wherever it comes from: the
disk, a mirror or a package. published.toml lists them all. Nothing here needs torch."""

import functools
import gzip
import hashlib
import io
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
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from common.base.cli import UsageError
from common.base.config import is_own
from common.base.log import write_atomically
from common.data.images import Dataset
from common.data.own import read_own

PUBLISHED = tomllib.loads(Path(__file__).with_name("published.toml").read_text("utf-8"))
DOWNLOAD_TIMEOUT_S = 300  # for one file, since a mirror may also trickle
# What fetches a package, and what prints it as a tar archive.
CLIENTS = {"npm": (["npm", "pack", "--silent"], ["cat"])}
CLIENTS["apt"] = ["apt-get", "download"], ["dpkg-deb", "--fsys-tarfile"]
# What a file that is not right, or a source that is not there, is met with.
FAULTS = (ValueError, EOFError, KeyError, zlib.error, tarfile.TarError)
FAULTS += (OSError, HTTPException, subprocess.TimeoutExpired)


def read_dataset(
    name: str, data_dir: str | Path, side: int | None = None, fetch: bool = True
) -> Dataset:
    """A data set as arrays. Your own images are brought to a square of `side`, if any; the
    published ones are resized while they train."""
    if is_own(name):
        return read_own(name, Path(data_dir), side)
    if name == "digits":
        from sklearn.datasets import load_digits  # slow, and only needed here

        pixels, labels = load_digits(return_X_y=True)  # 0 to 16
        images = (pixels * (255 / 16)).round().astype("uint8").reshape(-1, 1, 8, 8)
        return Dataset(name, images, labels.astype("int64"), tuple("0123456789"))
    spec = PUBLISHED[name]
    files = _read_files(spec, Path(data_dir) / spec["folder"] / "raw", fetch)
    if "idx" in spec:
        with zipfile.ZipFile(io.BytesIO(files[0])) as archive:
            files = [archive.read(f"gzip/{idx}.gz") for idx in spec["idx"]]
    train_images, train_labels, test_images, test_labels = map(_parse_idx, map(_gunzip, files))
    # QMNIST's extended labels hold the class in the first of eight columns.
    labels = np.concatenate([y.reshape(len(y), -1)[:, 0] for y in (train_labels, test_labels)])
    labels = labels.astype("int64") - spec.get("first_label", 0)
    images = np.concatenate([train_images, test_images])[:, None]
    return Dataset(name, images, labels, tuple(spec["classes"]), {"test": len(test_images)})


def _parse_idx(data: bytes) -> np.ndarray:
    """Decode a verified IDX file: two zero bytes, type (8: uint8, 12: int32), rank, sizes."""
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4)
    dtype = {8: ">u1", 12: ">i4"}[data[2]]
    return np.frombuffer(data, dtype, offset=4 + shape.nbytes).reshape(shape)


def _gunzip(data: bytes) -> bytes:
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def _read_files(spec: dict[str, Any], folder: Path, fetch: bool) -> list[bytes]:
    """Every stored file's verified bytes, each from the first source that has it right."""
    files, contents, problems = spec["files"], {}, []

    def take(name: str, source: str, read: Callable[[], bytes]) -> bool:
        try:
            contents[name] = _verify(read(), files[name])
        except FAULTS as error:
            if source != "disk" or not isinstance(error, FileNotFoundError):
                problems.append(f"{source}: {name}: {error}")
        return name in contents

    for name in files:
        places = (folder / name, folder / f"{name}.gz")
        any(take(name, "disk", place.read_bytes) for place in places)
    sources = [(url, functools.partial(_download, url)) for url in spec["mirrors"]]
    if "package" in spec:
        packed = functools.cache(_fetch_package)
        sources.append((spec["package"], lambda name: packed(*spec["package"].split())[name]))
    if fetch and len(contents) < len(files):
        try:  # before a download that could not be kept
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise UsageError(f"--data-dir: cannot write {folder}: {error.strerror}") from None
    for source, read in sources if fetch else ():
        for name in [name for name in files if name not in contents]:
            if not take(name, source, functools.partial(read, name)):
                break  # do not wait for this source four times
            print(f"{folder / name}: from {source}, checksum right", file=sys.stderr)
            _place(folder / name, contents[name])
    if missing := [name for name in files if name not in contents]:
        why = f"no source has {', '.join(missing)} with the right checksum"
        hint = f"place them (plain or .gz) in {folder}/"
        raise UsageError(f"{why}; {hint}. Tried: {'; '.join(problems) or 'nothing on disk'}")
    return [contents[name] for name in files]


def _verify(data: bytes, checksum: str) -> bytes:
    """The bytes as they are stored: as torchvision has an MD5 of them, or unpacked."""
    kind = "MD5" if len(checksum) == 32 else "SHA-256"
    data = data if kind == "MD5" else _gunzip(data)
    if (digest := hashlib.new(kind.replace("-", ""), data).hexdigest()) != checksum:
        raise ValueError(f"{kind} of the content is {digest[:12]}..., not {checksum[:12]}...")
    return data


def _place(target: Path, data: bytes) -> None:
    """Place a fetched file whole or not at all; a different one of that name is kept aside."""
    with suppress(FileNotFoundError):
        if target.read_bytes() == data:  # another process was faster
            return
        target.replace(target.with_name(target.name + ".rejected"))
    write_atomically(target, data)


def _download(mirror: str, name: str) -> bytes:
    url = mirror + (name if name.endswith((".gz", ".zip")) else f"{name}.gz")
    deadline, data = time.monotonic() + DOWNLOAD_TIMEOUT_S, bytearray()
    with urllib.request.urlopen(url, timeout=10) as reply:
        while chunk := reply.read(1 << 20):
            data += chunk
            if time.monotonic() > deadline:
                raise TimeoutError(f"not there after {DOWNLOAD_TIMEOUT_S} s")
    return bytes(data)


def _fetch_package(manager: str, name: str) -> dict[str, bytes]:
    """The IDX files in a package, fetched by its registry's own client and only unpacked."""
    client, unpack = CLIENTS[manager]
    with tempfile.TemporaryDirectory() as folder:
        _run([*client, name], folder)
        files = [str(file) for file in Path(folder).iterdir()]
        if len(files) != 1:
            raise ConnectionError(f"{manager} left {len(files)} files of {name}")
        archive = _run([*unpack, *files], folder)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = [member for member in tar if member.isfile() and "-ubyte" in member.name]
        return {Path(m.name).name.removesuffix(".gz"): tar.extractfile(m).read() for m in members}


def _run(command: list[str], folder: str) -> bytes:
    if not shutil.which(command[0]):
        raise ConnectionError(f"{command[0]} is not installed")
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=DOWNLOAD_TIMEOUT_S)
    if done.returncode:
        printed = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        hint = "; try apt-get update first" if command[0] == "apt-get" else ""
        raise ConnectionError(f"{' '.join(command)}: {' '.join(printed[-1:])}{hint}")
    return done.stdout
