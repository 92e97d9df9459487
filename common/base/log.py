"""The results log: one strict-JSON object a line, appended whole, read with every fault named.

A row: schema, kind, run_id, time_utc, git {commit, dirty}, status, error, config, env, metrics.
run_id is a hash of kind and config, so that the same work has the same name and is done once.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import portalocker

from common.base.cli import UsageError, first_line, print_more
from common.base.machine import describe_machine, git_state, timed_here, timed_on

SCHEMA = 1
KINDS = ("epoch", "train", "svm", "flops", "hw_train", "export", "hw_infer", "race")
TIMINGS = ("hw_train", "hw_infer")  # of a machine: on another one they are other work
STATUSES = ("ok", "failed", "interrupted")
# What a row's parts, settings and metrics must be, and the word for it.
PARTS = dict.fromkeys(("run_id", "time_utc"), (str, "string"))
PARTS |= dict.fromkeys(("git", "config", "env", "metrics"), (dict, "object"))
SETTING = (str | int | float | None, "setting")
METRICS = {"epoch": (int, "integer"), "shared_with": (str | None, "run_id")}
METRICS |= dict.fromkeys(("val_acc", "test_acc"), (int | float | None, "fraction"))
PREDICTIONS = {"pred": "int16", "label": "int16", "index": "int64", "classes": "str"}
PREDICTIONS |= {"logits": "float16", "files": "str"}
Row = dict[str, Any]
Content = bytes | Callable[[BinaryIO], Any]  # or a function that writes it to a file


def run_id(kind: str, config: Mapping[str, Any]) -> str:
    """Name of a piece of work: 12 hex digits of the SHA-256 of its kind and configuration."""
    text = json.dumps({"kind": kind, "config": config}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Log:
    """Rows of log.jsonl, stamped with commit and machine. A shard is a log of its own,
    log.SHARD.jsonl: who writes it reads no other, whoever has none reads them all."""

    def __init__(self, results_dir: str | Path, shard: str | None = None) -> None:
        self.folder, self.shard = Path(results_dir), shard
        self.path = self.folder / (f"log.{shard}.jsonl" if shard else "log.jsonl")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            open(self.path, "ab").close()
        except OSError as error:
            raise UsageError(f"--results-dir: cannot write {self.path}: {error.strerror}") from None

    def read(self, kind: str) -> list[Row]:
        """The rows of one kind, oldest first."""
        rows, _ = read_rows(self.path) if self.shard else read_log(self.folder)
        return [row for row in rows if row["kind"] == kind]

    def finished(self, kind: str) -> dict[str, Row]:
        """The last successful row of each run_id; of timings, of this machine and its devices."""
        rows = [row for row in self.read(kind) if row["status"] == "ok"]
        if kind in TIMINGS:
            here = cache(timed_here)  # describing a machine takes longer than reading a row
            rows = [r for r in rows if timed_on(r["env"]) == here(r["config"].get("device"))]
        return {row["run_id"]: row for row in rows}

    def append(self, kind: str, config: Row, metrics: Row, **parts: Any) -> Row:
        """Write one row and return it, a failed one where it has an error; env describes the device
        that the configuration names. `parts` are those that are not as usual: error, git, ..."""
        row = {"schema": SCHEMA, "kind": kind, "run_id": run_id(kind, config)}
        row |= {"time_utc": datetime.now(UTC).isoformat(timespec="seconds"), "git": git_state()}
        row |= {"status": "failed" if parts.get("error") else "ok", "error": None, "config": config}
        row |= {"env": describe_machine(config.get("device")), "metrics": metrics}
        if unknown := parts.keys() - row.keys():  # else a misspelt one would be a part of its own
            raise TypeError(f"a row has no {', '.join(unknown)}")
        row |= parts
        row["error"] = row["error"].splitlines()[0] if row["error"] else None
        append_line(self.path, dumps_strict(row))
        return row

    @contextmanager
    def failed_rows(
        self, kind: str, configs: Iterable[Row], explain: Callable[..., str] | None = None
    ) -> Iterator[list[Row]]:
        """Work on configurations: what it fails of, but UsageError, is a failed row of each, which
        is added to the list that is yielded, and not the end of the others."""
        rows: list[Row] = []
        try:
            yield rows
        except (UsageError, BrokenPipeError):  # the latter: nobody reads what is printed
            raise
        except Exception as error:
            print_more(error)
            metrics = getattr(error, "metrics", {})
            for config in configs:
                why = explain(error, config) if explain else first_line(error)
                rows.append(self.append(kind, config, metrics, error=why))
            if not rows:
                raise


def dumps_strict(row: Row) -> str:
    """Strict JSON on one line: NaN and infinities become null, since JSON has neither."""
    strict = json.loads(json.dumps(row), parse_constant=lambda name: None)
    return json.dumps(strict, ensure_ascii=False, allow_nan=False)


def append_line(path: Path, line: str) -> None:
    """Append durably: locked, one write, then fsync; on a line of its own after one cut off."""
    lock = path.with_name(f".{path.name}.lock")  # on Windows nobody can read what is locked
    try:
        with open(lock, "ab") as locked, open(path, "ab+", buffering=0) as file:
            portalocker.lock(locked, portalocker.LOCK_EX)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            torn = file.read(1) not in (b"", b"\n")
            data = b"\n" * torn + line.encode() + b"\n"
            if file.write(data) != len(data):
                file.truncate(size)
                raise OSError(errno.ENOSPC, "no space left; free some and run again")
            os.fsync(file)
    except (OSError, portalocker.LockException) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot write {path}: {why}") from None


def write_atomically(target: Path, content: Content) -> None:
    """Write a file whole or not at all: what was there before stays."""
    write_together({target: content})


def write_together(files: Mapping[Path, Content]) -> None:
    """Write files of which none is touched before there was room for all."""
    parts = {target: target.with_name(f".{target.name}.{os.getpid()}.part") for target in files}
    try:
        for target, content in files.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(parts[target], "wb") as file:
                content(file) if callable(content) else file.write(content)
                file.flush()
                os.fsync(file)
        for target, part in parts.items():
            os.replace(part, target)
        for folder in {target.parent for target in files} if os.name != "nt" else ():
            fd = os.open(folder, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        for part in parts.values():
            with suppress(OSError):  # not there, or in what is no folder
                part.unlink()


def locate(folder: Path, name: str) -> Path:
    """The file that a row names. Raises: UsageError when it is outside the results folder."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UsageError(f"{name} is outside the results folder; a row of {folder} names it")
    return path


def save_predictions(path: Path, **arrays: Any) -> None:
    """Keep a test split's predictions for paired tests. Shapes: pred, label, index into the pool
    (N,); logits (N, classes) and files (N,), where there are any."""
    import numpy as np  # not at the top: the scripts import this before they parse their flags

    kept = {k: np.asarray(arrays[k], PREDICTIONS[k]) for k in PREDICTIONS if k in arrays}
    write_atomically(path, lambda file: np.savez_compressed(file, **kept))


def log_files(folder: Path) -> list[Path]:
    """The log of a results folder, and its shards."""
    return [folder / "log.jsonl", *sorted(folder.glob("log.*.jsonl"))]


def read_log(folder: Path) -> tuple[list[Row], list[str]]:
    """read_rows of a log and its shards as one, oldest row first."""
    logs = [read_rows(file) for file in log_files(folder)]
    rows = [row for log, _ in logs for row in log]
    if len(logs) > 1:
        rows.sort(key=lambda row: row["time_utc"])
    return rows, [problem for _, problems in logs for problem in problems]


def read_rows(path: str | Path) -> tuple[list[Row], list[str]]:
    """Read a log. Returns: (valid rows, one line for each that was skipped and why)."""

    def refuse_constant(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    rows, problems, shared = [], [], {}  # rows repeat configuration and commit: kept once each
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
            row = json.loads(line, parse_constant=refuse_constant)
            check_row(row)
        except (ValueError, RecursionError) as error:
            problems.append(f"{path}:{number}: skipped, {error}")
            continue
        for part in ("config", "git", "env"):
            row[part] = shared.setdefault(repr(row[part]), row[part])
        rows.append(row)
    return rows, problems


def check_row(row: Any) -> None:
    """Raises: ValueError, for what is no row of the log."""
    if not isinstance(row, dict):
        raise ValueError("not an object")
    if missing := {"schema", "kind", "status", "error", *PARTS} - row.keys():
        raise ValueError(f"missing {', '.join(sorted(missing))}")
    if row["schema"] != SCHEMA:
        raise ValueError(f"schema {row['schema']!r}, this version reads {SCHEMA}")
    for name, known in (("kind", KINDS), ("status", STATUSES)):
        if row[name] not in known:
            raise ValueError(f"unknown {name} {row[name]!r}")
    for name, (kind, word) in PARTS.items():
        if not isinstance(row[name], kind):
            raise ValueError(f"{name} is no {word}")
    metrics = row["metrics"]
    values = [(name, value, *SETTING) for name, value in row["config"].items()]
    values += [(name, metrics[name], *METRICS[name]) for name in METRICS if name in metrics]
    for name, value, kind, word in values:
        if not isinstance(value, kind) or (word == "fraction" and not 0 <= (value or 0) <= 1):
            raise ValueError(f"{name} {value!r} is no {word}")
