"""The results log: one strict-JSON object a line, appended whole, read with every fault named.

A row: schema, kind, run_id, time_utc, git {commit, dirty}, status, error, config, env, metrics.
run_id is a hash of kind and config, so that the same work has the same name and is done once.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import glob
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from common.base.cli import UsageError

SCHEMA = 1
KINDS = ("epoch", "train", "svm", "flops", "hw_train", "export", "hw_infer")
TIMINGS = ("hw_train", "hw_infer")  # of a machine: on another one they are other work
LEFTOVER_S = 60  # a file's writer writes without such a pause
STATUSES = ("ok", "failed", "interrupted")
ROW_KEYS = {
    "schema", "kind", "run_id", "time_utc", "git", "status", "error", "config", "env", "metrics",
}  # fmt: skip


def run_id(kind: str, config: dict[str, Any]) -> str:
    """Name of a piece of work: 12 hex digits of the SHA-256 of its kind and configuration."""
    text = json.dumps({"kind": kind, "config": config}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Log:
    """Appends rows to results_dir/log.jsonl, stamped with the commit and the machine.

    A shard is a log of its own, log.SHARD.jsonl: who writes it reads no other, whoever has none
    reads them all.
    """

    def __init__(self, results_dir: str | Path, shard: str | None = None) -> None:
        """Raises: UsageError when the folder cannot be written, before any work is done."""
        self.folder, self.shard = Path(results_dir), shard
        self.path = self.folder / (f"log.{shard}.jsonl" if shard else "log.jsonl")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab"):
                pass
        except OSError as error:
            raise UsageError(f"--results-dir: cannot write {self.path}: {error.strerror}") from None

    def read(self, kind: str) -> list[dict[str, Any]]:
        """The rows of one kind, oldest first."""
        rows = read_rows(self.path)[0] if self.shard else read_log(self.folder)[0]
        return [row for row in rows if row["kind"] == kind]

    def finished(self, kind: str) -> dict[str, dict[str, Any]]:
        """The last successful row of each run_id; of timings, of those made on this machine and
        device."""
        rows = [row for row in self.read(kind) if row["status"] == "ok"]
        if kind in TIMINGS:
            names = {row["config"].get("device") for row in rows}
            here = {name: _machine_here(name) for name in names}
            rows = [r for r in rows if timed_on(r["env"]) == here[r["config"].get("device")]]
        return {row["run_id"]: row for row in rows}

    def append(
        self, kind: str, config: dict[str, Any], metrics: dict[str, Any], *,
        status: str = "ok", error: str | None = None, name: str | None = None,
        device: str | None = None, measured_by: dict[str, Any] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Write one row and return it. `name` overrides the run_id; env describes `device`.

        `measured_by` is the row that the metrics were measured for, when this one shares them: its
        commit and machine are theirs.
        """
        stamp = measured_by or {"git": git_state(), "env": describe_machine(device)}
        row = {
            "schema": SCHEMA,
            "kind": kind,
            "run_id": name or run_id(kind, config),
            "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "git": stamp["git"],
            "status": status,
            "error": error.splitlines()[0] if error else None,
            "config": config,
            "env": stamp["env"],
            "metrics": metrics,
        }
        append_line(self.path, dumps_strict(row))
        return row


def dumps_strict(row: dict[str, Any]) -> str:
    """Strict JSON on one line: NaN and infinities become null, since JSON has neither."""
    return json.dumps(_finite(row), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def append_line(path: Path, line: str) -> None:
    """Append one line durably: locked against other writers, one write, then fsync.

    A predecessor cut off in the middle of a line keeps its fragment to itself: the new line starts
    on a line of its own.
    Raises: UsageError when the line cannot be written.
    """
    try:
        _append_line(path, line)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None


def _append_line(path: Path, line: str) -> None:
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        size = os.fstat(fd).st_size
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        data = (b"\n" if torn else b"") + line.encode() + b"\n"
        written = os.write(fd, data)
        if written != len(data):
            os.ftruncate(fd, size)
            raise OSError(errno.ENOSPC, "no space left; free some and run again")
        os.fsync(fd)
    finally:
        os.close(fd)


Content = bytes | Callable[[BinaryIO], Any]  # or a function that writes it to a file


def write_atomically(target: Path, content: Content) -> None:
    """Write a file whole or not at all; what a killed writer of it left behind is removed.

    Raises: UsageError when it cannot be written; what was there before stays.
    """
    write_together({target: content})


def write_together(files: Mapping[Path, Content]) -> None:
    """Write files of which none is touched before there was room for all.

    Raises: UsageError, as write_atomically.
    """
    parts: dict[Path, Path] = {}
    try:
        for target, content in files.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(target)
            parts[target] = target.with_name(f".{target.name}.{os.getpid()}.part")
            with open(parts[target], "wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for target, part in parts.items():
            os.replace(part, target)
        for folder in {target.parent for target in files}:
            _sync_folder(folder)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _remove_leftovers(target: Path) -> None:
    """Remove parts of the file that no process of this machine can be writing, and none of another
    one has written to for a while."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        pid = left.name.removesuffix(".part").rpartition(".")[2]
        with suppress(FileNotFoundError):  # another process was faster
            old = time.time() - left.stat().st_mtime > LEFTOVER_S
            if old and pid.isdecimal() and not _runs(int(pid)):
                left.unlink()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # no signal: only asks
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def locate(folder: Path, name: str) -> Path:
    """The file that a row names. Raises: UsageError when it is outside the results folder."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UsageError(f"{name} is outside the results folder; a row of {folder} names it")
    return path


def save_predictions(
    path: Path, *, pred: Any, label: Any, index: Any, classes: Sequence[str], logits: Any = None
) -> None:
    """Keep a test split's predictions for paired tests, as a compressed .npz.

    Shapes: pred, label, index (N,), index into the pool; logits (N, classes) or None. Logits are
    kept as float16.
    """
    import numpy as np

    arrays = {
        "pred": np.asarray(pred, "int16"), "label": np.asarray(label, "int16"),
        "index": np.asarray(index, "int64"), "classes": np.asarray(classes, "str"),
    }  # fmt: skip
    if logits is not None:
        arrays["logits"] = np.asarray(logits, "float16")
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def read_rows(path: str | Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Read a log. Returns: (valid rows, one line for each that was skipped and why)."""
    rows, problems = [], []
    shared: dict[str, Any] = {}  # rows repeat their configuration and commit: kept once each
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_refuse_constant)
            check_row(row)
        except (ValueError, RecursionError) as error:
            problems.append(f"{path}:{number}: skipped, {error}")
        else:
            for part in ("config", "git", "env"):
                row[part] = shared.setdefault(repr(row[part]), row[part])
            rows.append(row)
    return rows, problems


def log_files(folder: Path) -> list[Path]:
    """The log of a results folder, and its shards."""
    return [folder / "log.jsonl", *sorted(folder.glob("log.*.jsonl"))]


def read_log(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Read a log and its shards as one, oldest row first, as read_rows does."""
    first, *shards = (read_rows(file) for file in log_files(folder))
    rows = [*first[0], *(row for found, _ in shards for row in found)]
    if shards:
        rows.sort(key=lambda row: row["time_utc"])
    return rows, [*first[1], *(problem for _, found in shards for problem in found)]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def check_row(row: Any) -> None:
    """Raises: ValueError naming the first thing that makes this no row of the log."""
    if not isinstance(row, dict):
        raise ValueError("not an object")
    if missing := ROW_KEYS - row.keys():
        raise ValueError(f"missing {', '.join(sorted(missing))}")
    if row["schema"] != SCHEMA:
        raise ValueError(f"schema {row['schema']!r}, this version reads {SCHEMA}")
    if row["kind"] not in KINDS:
        raise ValueError(f"unknown kind {row['kind']!r}")
    if row["status"] not in STATUSES:
        raise ValueError(f"unknown status {row['status']!r}")
    if not all(isinstance(row[key], dict) for key in ("git", "config", "env", "metrics")):
        raise ValueError("git, config, env and metrics must be objects")
    if not all(isinstance(row[key], str) for key in ("run_id", "time_utc")):
        raise ValueError("run_id and time_utc must be strings")
    for name, value in row["config"].items():
        if not isinstance(value, str | int | float | None):
            raise ValueError(f"{name} {value!r} is no setting")
    metrics = row["metrics"]
    if not isinstance(metrics.get("epoch", 0), int):
        raise ValueError(f"epoch {metrics['epoch']!r} is no integer")
    if not isinstance(metrics.get("shared_with"), str | None):
        raise ValueError(f"shared_with {metrics['shared_with']!r} is no run_id")
    for name in ("val_acc", "test_acc"):
        value = metrics.get(name)
        if value is not None and not (isinstance(value, int | float) and 0 <= value <= 1):
            raise ValueError(f"{name} {value!r} is no fraction")


@functools.cache
def git_state() -> dict[str, Any]:
    """Commit of the code that runs, and whether tracked files differ from it; nulls without git."""
    root = Path(__file__).parent.parent.parent

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", root, *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": dirty}


def describe_machine(device: str | None = None) -> dict[str, Any]:
    """The machine and library versions behind a row, with the load average at this moment."""
    env: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_facts()[0],
        "cpu_model": _cpu_facts()[1],
        "memory_bytes": _memory_bytes(),
        "cpu_count": os.cpu_count(),
        "cpu_affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cpu_quota": _first_line(Path("/sys/fs/cgroup/cpu.max")),
        "governor": _first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "load_average": list(os.getloadavg()),
    }
    for name in (
        "torch",
        "torchvision",
        "sklearn",
        "sklearnex",
        "onnxruntime",
    ):  # those that this run used
        if name in sys.modules:
            env[name] = getattr(sys.modules[name], "__version__", "unknown")
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        env["threads"] = torch.get_num_threads()
        if device not in (None, "cpu"):
            name_of = getattr(getattr(torch, device), "get_device_name", lambda: device)
            env["device"] = name_of()
    env.setdefault("device", env["cpu"])
    return env


def machine_of(env: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells the machine of a row from others."""
    return tuple(env.get(name) for name in ("cpu", "cpu_model", "cpu_count"))


def timed_on(env: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells the machine and the device of a timing from others."""
    return (*machine_of(env), env.get("device"))


def _machine_here(device: str | None) -> tuple[Any, ...] | None:
    try:
        return timed_on(describe_machine(device))
    except (AssertionError, AttributeError, RuntimeError):  # torch lacks it, or it is not there
        return None


def _first_line(file: Path) -> str | None:
    """What the kernel says there: null where it says nothing."""
    with suppress(OSError, IndexError):
        return file.read_text().splitlines()[0]
    return None


@functools.cache
def _cpu_facts() -> tuple[str, str | None]:
    """The CPU's name, and what tells it from others of that name, as far as Linux says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in (ln.partition(":") for ln in lines)}
    known = [
        f"{k.split()[-1]} {facts[k]}" for k in ("cpu family", "model", "stepping") if k in facts
    ]
    name = facts.get("model name") or platform.processor() or platform.machine()
    return name, ", ".join(known) or None


def _memory_bytes() -> int | None:
    with suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None
