"""The work of a grid shared out: a pool of threads, each of which runs the command that
--list-commands prints, as a process here or on a worker of a cluster. A command writes its own
rows, and the log says what is done. One that ends before its work does is run again, and continues
from its checkpoint; it takes no other with it."""

import itertools
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import portalocker
import psutil
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
WORTH_S = 60  # of a job, from which a process of its own pays
JOB_BYTES = 2 << 30  # that a job may take: ResNet-50 at 64x64 has 1.4 GB
PARENT = "bakeoff_parent"  # of python -X: the process that a worker ends with; 0: who starts it
# Options that say which work there is and how it is shared out, and are no part of a piece of it.
OUTER = ("jobs", "backend", "cluster", "list_commands", "dry_run", "best", "budget")
PIPES = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
PIPES |= {"encoding": "utf-8", "errors": "backslashreplace"}
Job = tuple[str, Sequence[Any]]  # a label, and configurations that one command works off


def set_up(values: dict[str, list[Any]], options: TrainOptions) -> World:
    """Prepare this process, look for what it needs, and fill in what the machine decides: the
    devices, and how many processes train together. Raises: UsageError."""
    device.prepare_process(options.threads or torch.get_num_threads())
    compiled = True in values["compile"]  # whose kernels have their number of threads in them
    if not (options.threads or compiled or "OMP_NUM_THREADS" in os.environ):
        device.threads.adapt()
    if options.deterministic:
        # Source: https://docs.pytorch.org/docs/stable/notes/randomness.html
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    if not options.list_commands or "auto" in values["device"]:
        kinds = [device.resolve_device(name).type for name in values["device"]]
        values["device"] = list(dict.fromkeys(kinds))
    if in_worker() and values["device"] != ["cpu"]:
        claim_accelerator()
    world = join_world(values["device"])
    values["world_size"] = [world.size]
    shared = options.jobs not in ("1", "auto") or options.backend != "loky" or options.list_commands
    if world.size > 1 and (shared or options.budget):
        names = "--jobs, --backend, --list-commands, --budget"
        raise UsageError(f"{names}: one process only; leave torchrun out")
    if options.tensorboard:
        need("torch.utils.tensorboard", "--tensorboard", "tensorboard")
    return world


def count_workers(options: GridOptions, device: str, jobs: int, job_s: float) -> int:
    """How many of so many jobs are under way at once, of which one takes so many seconds. auto: one
    an accelerator; on a CPU one a core, which does more an hour than one of all threads
    (benchmarks/RECORDS.md), where they last and memory has room."""
    if options.jobs != "auto":
        return int(options.jobs)
    if device != "cpu":
        most = torch.accelerator.device_count()
    elif not job_s >= WORTH_S and options.backend == "loky":  # NaN where no step could be timed
        most = 1
    else:
        most = min(cpu_count(), int(psutil.virtual_memory().available) // JOB_BYTES)
    return max(1, min(jobs, most))


def command_of(script: str, configs: Sequence[Any], options: GridOptions) -> list[str]:
    """The command with which a script works off these configurations and nothing else."""
    inner = {f.name: f.default for f in fields(options) if f.name in OUTER}
    flags = to_flags(configs, several=True)
    flags += to_flags([replace(options, **inner)], several=False)
    return [sys.executable, str(ROOT / f"{script}.py"), *flags]


def print_commands(script: str, jobs: Sequence[Job], options: GridOptions) -> None:
    """One shell command a job."""
    for _, configs in jobs:
        print(shlex.join(command_of(script, configs, options)))


def share_out(
    script: str, jobs: Sequence[Job], log: Log, options: GridOptions, workers: int, after, here=None
) -> int:
    """Have a script do every job, and failed rows written for what cannot be done, whose kind is
    the script's name; `after` is told a configuration of each that is done. A single worker may be
    this process, by `here`. Returns: failed jobs."""
    local = options.backend == "loky"
    if here and local and workers == 1:
        return here()
    share = max(1, cpu_count() // workers) if local else 1  # a cluster's machines are not known
    own = {name: os.path.abspath(vars(options)[name]) for name in ("results_dir", "data_dir")}
    if isinstance(options, TrainOptions):
        own["export"] = ()  # comes when all are done
    options = replace(options, threads=options.threads or share, **own)
    what = script, log, options
    machines = Processes(*what) if local else Cluster(*what, workers)
    work, failures = {}, 0
    with ThreadPoolExecutor(workers) as pool:
        try:
            for number, (name, configs) in enumerate(jobs, 1):
                label = f"[{number}/{len(jobs)}] {name}"
                work[pool.submit(machines.work_off, number, label, configs)] = name, configs
            for done in as_completed(work):
                name, configs = work[done]
                if error := done.result():
                    failures += 1
                    print(f"  failed: {name}: {error}", flush=True)
                else:
                    after(configs[0])
            return failures
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            machines.stop()


class Processes:
    """A script's commands as processes of this machine, each until its work is done or given up."""

    def __init__(self, script: str, log: Log, options: GridOptions) -> None:
        self.script, self.log, self.options = script, log, options
        self.rows_before, self.stopped = len(log.read(script)), False
        self.begun: list[subprocess.Popen] = []

    def work_off(self, number: int, label: str, configs: Sequence[Any]) -> str | None:
        """Run a job's command until all its rows are there. Returns: why one of them is failed."""
        command = command_of(self.script, configs, self.options)
        runs = {run_id(self.script, as_dict(config)): as_dict(config) for config in configs}
        print(label, flush=True)
        for _ in range(TRIES):
            status, errors = self.run(command, number)
            if self.stopped:
                return None
            if status == 2:
                line, _, more = errors.partition(f"{self.script}.py: ")[2].strip().partition("\n")
                raise UsageError(line) from (ChildProcessError(more) if more else None)
            sys.stderr.write(errors)  # whole, and no progress bars in between
            if status == 0 and getattr(self.options, "pause_after", None):  # which leaves no row
                return None
            # What is not to be done again may be finished by another process.
            ended = {} if self.options.force else dict.fromkeys(self.log.finished(self.script))
            new = self.log.read(self.script)[self.rows_before :]
            ended |= {r["run_id"]: r["error"] for r in new if r["status"] != "interrupted"}
            if runs.keys() <= ended.keys():
                return next((ended[run] for run in runs if ended[run]), None)
            *_, why = errors.strip().splitlines() or ["it left no row"]
            why = f"its worker died ({signal.Signals(-status).name})" if status < 0 else why
            print(f"  {label}: {why}; what it left is begun again", flush=True)
        why = f"tried {TRIES} times: {why}"
        for config in (config for run, config in runs.items() if run not in ended):
            self.log.append(self.script, config, {}, error=why)
        return why

    def run(self, command: Sequence[str], number: int) -> tuple[int, str]:
        """Run a command to its end; its epochs are printed behind its number. Returns: its exit
        status, and what it wrote to stderr."""
        # In a session, on Windows a group, of its own: a terminal's Ctrl-C is for this one alone.
        group = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
        own = PIPES | {"start_new_session": True, "creationflags": group}
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
            own |= {"stdout": subprocess.PIPE, "stderr": errors}
            process = subprocess.Popen(as_worker(command, os.getpid()), **own)
            self.begun.append(process)
            if self.stopped:  # meanwhile
                process.terminate()
            with process.stdout:  # where nobody reads what is printed, it is not waited for
                for line in process.stdout:
                    if line.startswith("  epoch"):
                        print(f"[{number}]{line}", end="", flush=True)
            status = process.wait()
            errors.seek(0)
            return status, errors.read()

    def stop(self) -> None:
        """End what runs, as SIGTERM ends it, and run nothing more."""
        self.stopped = True
        for process in self.begun:
            process.terminate()


class Cluster(Processes):
    """The same on the workers of a dask cluster, one started here where no address is given."""

    def __init__(self, script: str, log: Log, options: GridOptions, workers: int) -> None:
        """Raises: UsageError when the cluster is not there."""
        super().__init__(script, log, options)
        dask, address = need("distributed", "--backend dask"), options.cluster
        here = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
        try:
            self.client = dask.Client(address, timeout=WAIT_S, **({} if address else here))
            self.client.wait_for_workers(1, timeout=WAIT_S)
        except (OSError, ValueError) as error:  # ValueError: an address without a port
            why = f"no dask worker answers within {WAIT_S} s; start some, or leave --cluster out"
            raise UsageError(f"--cluster {address}: {why}") from error

    def run(self, command: Sequence[str], number: int) -> tuple[int, str]:
        """As Processes.run, without the epochs: dask begins a command again elsewhere when its
        worker dies."""
        try:
            done = self.client.submit(subprocess.run, as_worker(command), pure=False, **PIPES)
            done = done.result()
        except Exception as error:  # too many workers died, or the client was closed
            return 1, first_line(error)
        return done.returncode, done.stderr

    def stop(self) -> None:
        """Leave the cluster, where what runs is done to its end; one started here ends."""
        self.stopped = True
        self.client.close()


def as_worker(command: Sequence[str], parent: int = 0) -> list[str]:
    """The command of a process that ends with the process `parent`, or with who starts it."""
    return [command[0], "-X", f"{PARENT}={parent}", *command[1:]]


@cache
def in_worker() -> bool:
    """Whether this process does a job of another one's grid; it then ends with that process."""
    parent = sys._xoptions.get(PARENT)

    def watch() -> None:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(int(parent) or os.getppid()).wait()
        os._exit(1)

    if parent:
        threading.Thread(target=watch, daemon=True).start()
    return bool(parent)


def claim_accelerator() -> None:
    """Use an accelerator that no other worker of this machine and user does, while there are."""
    user = psutil.Process().username().replace("\\", "-")  # on Windows after a domain
    folder = Path(tempfile.gettempdir(), f"bakeoff-{user}")
    folder.mkdir(mode=0o700, exist_ok=True)
    for number in itertools.count():
        claim = os.open(folder / f"slot{number}", os.O_RDWR | os.O_CREAT, 0o600)
        with suppress(portalocker.LockException):  # until this process ends
            portalocker.lock(claim, portalocker.LOCK_EX | portalocker.LOCK_NB)
            torch.accelerator.set_device_index(number % torch.accelerator.device_count())
            return
        os.close(claim)
