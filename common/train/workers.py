"""The work of a grid shared out to several workers, here or on a cluster, through joblib.

A piece of work is a command line of the script that shares it out, run in a worker's process as it
would run alone: it writes its own rows, and the log says what is done. What a dead worker leaves
undone is given out again, and continues from its checkpoint.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import io
import itertools
import os
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from common.base.cli import UsageError, as_dict, first_line, need, to_flags
from common.base.config import GridOptions
from common.base.log import Log, run_id

ROOT = Path(__file__).resolve().parents[2]
TRIES = 3  # for a piece of work whose worker dies
WAIT_S = 30  # for a cluster and its first worker
# Options that say which work there is and how it is shared out, and are no part of a piece of it.
OUTER = ("jobs", "backend", "cluster", "list_commands", "dry_run", "best")


@dataclass(frozen=True)
class Job:
    """Configurations that one command works off; `main` is the one that is really worked on."""

    configs: tuple[Any, ...]
    main: Any
    label: str

    @property
    def device(self) -> str:
        """Where the work is done."""
        return getattr(self.main, "device", "cpu")

    def flags(self, options: GridOptions) -> list[str]:
        """The flags with which the script does this piece of work and nothing else."""
        options = replace(options, **_defaults(options, OUTER))
        return [*to_flags(self.configs, several=True), *to_flags([options], several=False)]


def count_workers(options: GridOptions, device: str = "cpu") -> int:
    """How many pieces of work are under way at once; auto is one an accelerator, or one a core:
    on a CPU that beats fewer with more threads in steps alone (benchmarks/RECORDS.md)."""
    if options.jobs != "auto":
        return int(options.jobs)
    if device != "cpu":
        import torch

        return torch.accelerator.device_count()
    from joblib import cpu_count

    return cpu_count()


def print_commands(script: str, jobs: Sequence[Job], options: GridOptions) -> None:
    """One shell command a piece of work."""
    for job in jobs:
        print(shlex.join([sys.executable, str(ROOT / f"{script}.py"), *job.flags(options)]))


class _Work:
    """Pieces of work, and what the log says of them: rows written since this began and, where work
    is not to be done again, whatever is finished, for another process may have done it."""

    def __init__(self, kind: str, jobs: Sequence[Job], log: Log, force: bool) -> None:
        self.kind, self.jobs, self.log, self.force = kind, jobs, log, force
        self.ids = [{run_id(kind, as_dict(config)) for config in job.configs} for job in jobs]
        self.seen = len(log.read(kind))
        self.tries = [0] * len(jobs)

    def ended(self) -> dict[str, dict[str, Any]]:
        rows = self.log.read(self.kind)[self.seen :]
        ended = {row["run_id"]: row for row in rows if row["status"] != "interrupted"}
        return ended if self.force else ended | self.log.finished(self.kind)

    def left(self, numbers: Sequence[int]) -> list[int]:
        ended = self.ended().keys()
        return [number for number in numbers if self.ids[number] - ended]

    def write_off(self, number: int, why: str) -> None:
        ended = self.ended()
        job = self.jobs[number]
        for settings in map(as_dict, job.configs):
            if run_id(self.kind, settings) not in ended:
                self.log.append(
                    self.kind, settings, {}, status="failed", error=why, device=job.device
                )


def share_out(
    script: str, kind: str, jobs: Sequence[Job], log: Log, options: GridOptions, workers: int
) -> int:
    """Have every piece of work done, and failed rows written for what cannot be.

    When a worker dies, joblib gives up all that is under way. What is not in the log then is given
    out again; what was under way each time but the last, alone, so that what kills its worker
    takes nothing else with it.
    Returns: how many pieces of work have failed.
    """
    work = _Work(kind, jobs, log, options.force)
    with _open_backend(options, workers):
        while left := work.left(range(len(jobs))):
            alone = [n for n in left if work.tries[n] == TRIES - 1][:1]
            _give_out(script, work, alone or left, options, workers)
    ended = work.ended()
    failures = 0
    for job, names in zip(jobs, work.ids, strict=True):
        if errors := [ended[name]["error"] for name in names if ended[name]["status"] != "ok"]:
            failures += 1
            print(f"  failed: {job.label}: {errors[0]}")
    return failures


def _give_out(
    script: str, work: _Work, numbers: Sequence[int], options: GridOptions, workers: int
) -> None:
    """Give these pieces of work to the workers, each once, and count a try of what they leave."""
    from joblib import Parallel, delayed

    inner = _options_of_workers(options, workers)
    parent = os.getpid() if options.backend == "loky" else None
    begun: list[int] = []
    errors: dict[int, str] = {}
    fault = "it left no row"

    def pieces() -> Iterator[Any]:  # joblib asks for one whenever a worker is free
        for number in numbers:
            begun.append(number)
            job = work.jobs[number]
            print(f"[{number + 1}/{len(work.jobs)}] {job.label}", flush=True)
            yield delayed(run_command)(number, script, job.flags(inner), job.device, parent)

    try:
        errors = dict(Parallel(workers, batch_size=1, pre_dispatch="n_jobs")(pieces()))
    except UsageError:
        raise
    except KeyboardInterrupt:
        for number in work.left(begun):
            job = work.jobs[number]
            work.log.append(
                work.kind, as_dict(job.main), {}, status="interrupted", device=job.device
            )
        raise
    except Exception as error:
        if not begun:
            raise
        fault = f"its worker died, {first_line(error)}"
        print(f"  a worker died ({type(error).__name__}); what it left is begun again", flush=True)
    for number in work.left(begun):
        work.tries[number] += 1
        if work.tries[number] == TRIES:
            work.write_off(number, f"tried {TRIES} times: {errors.get(number) or fault}")


def _options_of_workers(options: GridOptions, workers: int) -> GridOptions:
    """Each worker's share of the threads, and folders that mean the same wherever it runs; exports
    come when all are done. A cluster's machines are not known here: its workers have one thread."""
    from joblib import cpu_count

    share = max(1, cpu_count() // workers) if options.backend == "loky" else 1
    return replace(
        options, **_defaults(options, ("export",)), threads=options.threads or share,
        results_dir=os.path.abspath(options.results_dir),
        data_dir=os.path.abspath(options.data_dir),
    )  # fmt: skip


def _defaults(options: GridOptions, names: Sequence[str]) -> dict[str, Any]:
    return {f.name: f.default for f in fields(options) if f.name in names}


# --- in a worker ----------------------------------------------------------------------------------


_working = False


def in_worker() -> bool:
    """Whether this process is doing a piece of another one's grid."""
    return _working


def run_command(
    number: int, script: str, flags: list[str], device: str, parent: int | None
) -> tuple[int, str | None]:
    """Do one piece of work. Returns: its number, and what went wrong that the log does not say."""
    if parent is not None:
        _settle_under(parent)
    if device != "cpu":
        import torch

        torch.accelerator.set_device_index(_claim_slot() % torch.accelerator.device_count())
    said = io.StringIO()
    global _working
    _working = True
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            importlib.import_module(script).main(flags)
    except UsageError:
        raise
    except Exception as error:
        return number, first_line(error)
    finally:
        _working = False
        sys.stderr.write(said.getvalue())  # whole, and no progress bars in between
    return number, None


@cache
def _settle_under(parent: int) -> None:
    """Leave Ctrl-C to the parent process, and end when it is gone."""
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # its own would be missed as leaked when a worker is killed
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@cache
def _claim_slot() -> int:
    """The lowest number that no other living worker of this machine and user has."""
    folder = Path(tempfile.gettempdir(), f"bakeoff-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    for slot in itertools.count():
        fd = os.open(folder / f"slot{slot}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held until this process ends
        except BlockingIOError:
            os.close(fd)
        else:
            return slot
    raise AssertionError


# --- where the workers are ------------------------------------------------------------------------


@contextlib.contextmanager
def _open_backend(options: GridOptions, workers: int) -> Iterator[None]:
    """joblib's backend for the time of the grid. Raises: UsageError when a cluster is not there."""
    from joblib import parallel_config

    with contextlib.ExitStack() as stack:
        try:
            if options.backend == "dask":
                stack.enter_context(_connect_dask(options.cluster, workers))
            elif options.backend == "ray":
                ray = need("ray", "--backend ray")
                from ray.util.joblib import register_ray

                ray.init(options.cluster, **({} if options.cluster else {"num_cpus": workers}))
                register_ray()
        except UsageError:
            raise
        except (OSError, ValueError) as error:  # ValueError: an address without a port
            raise UsageError(
                f"--cluster {options.cluster}: no {options.backend} worker answers within "
                f"{WAIT_S} s ({first_line(error)})"
            ) from None
        stack.enter_context(parallel_config(options.backend))
        yield


def _connect_dask(address: str | None, workers: int) -> Any:
    Client = need("distributed", "--backend dask").Client
    alone = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    client = Client(address, timeout=WAIT_S, **({} if address else alone))
    client.wait_for_workers(1, timeout=WAIT_S)
    if max(client.nthreads().values()) > 1:
        raise UsageError(
            "--cluster: a worker of it has several threads, and a process trains one network at a "
            "time; start its workers with --nthreads 1"
        )
    return client
