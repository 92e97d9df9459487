"""The work of a grid shared out: a pool of threads, each of which runs the command that
--list-commands prints, as a process here or on a worker of a cluster.

A command writes its own rows, and the log says what is done. One that ends before its work does is
run again, and continues from its checkpoint; it takes no other with it.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from joblib import cpu_count

from common.base.cli import UsageError, as_dict, first_line, need, to_flags
from common.base.config import GridOptions, TrainOptions
from common.base.log import Log, run_id
from common.train import device
from common.train.distributed import World, join_world

ROOT = Path(__file__).resolve().parents[2]
TRIES = 3  # of a command that ends before its work does
WAIT_S = 30  # for a cluster and its first worker
PARENT = "BAKEOFF_PARENT"  # in a worker's environment: the process that started it
# Options that say which work there is and how it is shared out, and are no part of a piece of it.
OUTER = ("jobs", "backend", "cluster", "list_commands", "dry_run", "best")
SILENT = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "text": True}


@dataclass(frozen=True)
class Job:
    """Configurations that one command of a script works off."""

    script: str  # and the kind of their rows
    configs: Sequence[Any]
    label: str

    def command(self, options: GridOptions, without: Sequence[str] = OUTER) -> list[str]:
        """The command with which the script does this and nothing else."""
        inner = {f.name: f.default for f in fields(options) if f.name in without}
        flags = to_flags([replace(options, **inner)], several=False)
        flags = [*to_flags(self.configs, several=True), *flags]
        return [sys.executable, str(ROOT / f"{self.script}.py"), *flags]


def set_up(values: dict[str, list[Any]], options: TrainOptions) -> World:
    """Prepare this process, look for what it needs, and fill in what the machine decides: the
    devices, and how many processes train together. Raises: UsageError."""
    device.prepare_process(options.threads or torch.get_num_threads())
    if options.deterministic:
        device.make_deterministic()
    if not options.list_commands or "auto" in values["device"]:
        kinds = [device.resolve_device(name).type for name in values["device"]]
        values["device"] = list(dict.fromkeys(kinds))
    if in_worker() and values["device"] != ["cpu"]:
        claim_accelerator()
    world = join_world(values["device"])
    values["world_size"] = [world.size]
    shared = options.jobs != "1" or options.backend != "loky" or options.list_commands
    if world.size > 1 and shared:
        raise UsageError("--jobs, --backend, --list-commands: one process only; leave torchrun out")
    if options.tensorboard:
        need("torch.utils.tensorboard", "--tensorboard", "tensorboard")
    return world


def count_workers(options: GridOptions, device: str = "cpu") -> int:
    """How many jobs are under way at once; auto is one an accelerator, or one a core: on a CPU that
    beats fewer with more threads in steps alone (benchmarks/RECORDS.md)."""
    if options.jobs != "auto":
        return int(options.jobs)
    return cpu_count() if device == "cpu" else torch.accelerator.device_count()


def print_commands(jobs: Sequence[Job], options: GridOptions) -> None:
    """One shell command a job."""
    for job in jobs:
        print(shlex.join(job.command(options)))


def share_out(jobs: Sequence[Job], log: Log, options: GridOptions, workers: int) -> int:
    """Have every job done, and failed rows written for what cannot be. Returns: failed jobs."""
    local = options.backend == "loky"
    share = max(1, cpu_count() // workers) if local else 1  # a cluster's machines are not known
    options = replace(
        options,
        threads=options.threads or share,
        results_dir=os.path.abspath(options.results_dir),  # the same wherever it runs
        data_dir=os.path.abspath(options.data_dir),
    )
    machines = Processes() if local else Cluster(options.cluster, workers)
    grid = _Grid(log, options, machines, len(log.read(jobs[0].script)) if jobs else 0)
    failures = 0
    with ThreadPoolExecutor(workers) as pool:
        labels = [f"[{number}/{len(jobs)}] {job.label}" for number, job in enumerate(jobs, 1)]
        futures = [pool.submit(grid.work_off, *work) for work in zip(jobs, labels, strict=True)]
        try:
            for future in as_completed(futures):
                failures += future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            machines.stop()
    return failures


@dataclass(frozen=True)
class _Grid:
    """What the jobs of a grid have in common."""

    log: Log
    options: GridOptions
    machines: Processes | Cluster
    rows_before: int  # in the log

    def work_off(self, job: Job, label: str) -> bool:
        """Run a job's command until all its rows are there. Returns: whether one is failed."""
        print(label, flush=True)
        command = job.command(self.options, (*OUTER, "export"))  # exports come when all are done
        for _ in range(TRIES):
            status, errors = self.machines.run(command)
            if self.machines.stopped:
                return False
            *_, last = errors.strip().splitlines() or ["it left no row"]
            if status == 2:
                raise UsageError(last.removeprefix(f"{job.script}.py: "))
            sys.stderr.write(errors)  # whole, and no progress bars in between
            rows = self.rows_of(job)
            if all(rows):
                break
            why = f"its worker died ({signal.Signals(-status).name})" if status < 0 else last
            print(f"  {label}: {why}; what it left is begun again", flush=True)
        for config, row in zip(job.configs, rows, strict=True):
            if not row:
                device, error = getattr(config, "device", None), f"tried {TRIES} times: {why}"
                self.log.append(
                    job.script, as_dict(config), {}, status="failed", error=error, device=device
                )
        failed = [row["error"] for row in self.rows_of(job) if row["status"] != "ok"]
        if failed:
            print(f"  failed: {job.label}: {failed[0]}", flush=True)
        return bool(failed)

    def rows_of(self, job: Job) -> list[dict[str, Any] | None]:
        """The row of each configuration, if it has one: written since this began or, where work is
        not to be done again, of whatever is finished, for another process may have done it."""
        ended = {} if self.options.force else self.log.finished(job.script)
        since = self.log.read(job.script)[self.rows_before :]
        ended |= {row["run_id"]: row for row in since if row["status"] != "interrupted"}
        return [ended.get(run_id(job.script, as_dict(config))) for config in job.configs]


def _as_worker(command: Sequence[str]) -> list[str]:
    """The command, told of the process that starts it."""
    return ["sh", "-c", f'{PARENT}=$PPID exec "$@"', "sh", *command]


class Processes:
    """Commands as processes of this machine."""

    def __init__(self) -> None:
        self.stopped, self.lock = False, threading.Lock()
        self.running: set[subprocess.Popen] = set()

    def run(self, command: Sequence[str]) -> tuple[int, str]:
        """Run a command to its end. Returns: its exit status, and what it wrote to stderr."""
        with self.lock:
            if self.stopped:
                return 0, ""
            # In a session of its own: a terminal's Ctrl-C is for this process alone.
            process = subprocess.Popen(
                _as_worker(command), **SILENT, stderr=subprocess.PIPE, start_new_session=True
            )
            self.running.add(process)
        errors = process.communicate()[1]
        self.running.discard(process)
        return process.returncode, errors

    def stop(self) -> None:
        """End what runs, as SIGTERM ends it, and run nothing more."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                process.terminate()


class Cluster:
    """Commands on the workers of a dask cluster, one started here where no address is given."""

    def __init__(self, address: str | None, workers: int) -> None:
        """Raises: UsageError when the cluster is not there."""
        self.stopped = False
        here = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
        try:
            dask = need("distributed", "--backend dask")
            self.client = dask.Client(address, timeout=WAIT_S, **({} if address else here))
            self.client.wait_for_workers(1, timeout=WAIT_S)
        except UsageError:
            raise
        except (OSError, ValueError) as error:  # ValueError: an address without a port
            raise UsageError(
                f"--cluster {address}: no dask worker answers within {WAIT_S} s "
                f"({first_line(error)})"
            ) from None

    def run(self, command: Sequence[str]) -> tuple[int, str]:
        """As Processes.run: dask begins a command again elsewhere when its worker dies."""
        try:
            submit = self.client.submit
            done = submit(
                subprocess.run, _as_worker(command), **SILENT, stderr=subprocess.PIPE, pure=False
            ).result()
        except Exception as error:  # too many workers died, or the client was closed
            return 1, first_line(error)
        return done.returncode, done.stderr

    def stop(self) -> None:
        """Leave the cluster, where what runs is done to its end; one started here ends."""
        self.stopped = True
        self.client.close()


@cache
def in_worker() -> bool:
    """Whether this process does a job of another one's grid; it then ends with that process."""
    parent = int(os.environ.pop(PARENT, 0))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    if parent:
        threading.Thread(target=watch, daemon=True).start()
    return bool(parent)


def claim_accelerator() -> None:
    """Use an accelerator that no other worker of this machine and user does, while there are."""
    folder = Path(tempfile.gettempdir(), f"bakeoff-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    for number in itertools.count():
        claim = os.open(folder / f"slot{number}", os.O_RDWR | os.O_CREAT, 0o600)
        with suppress(BlockingIOError):
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends
            torch.accelerator.set_device_index(number % torch.accelerator.device_count())
            return
        os.close(claim)
