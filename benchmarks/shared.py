"""What the benchmarks share: the way to the project, its scripts as commands, what is printed."""

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # they are run from anywhere

from common.base.cli import UsageError
from common.base.log import dumps_strict
from common.base.machine import describe_machine, git_state


def run(script: str, *flags: object, statuses: Sequence[int] = (0,)) -> float:
    """Run a script of the project. Returns: seconds. Raises: UsageError for another exit status."""
    command = [sys.executable, str(ROOT / script), *map(str, flags)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in statuses:
        raise UsageError(f"{script} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return time.perf_counter() - start


def with_range(values: Sequence[float], digits: int = 1) -> str:
    """The median of several measurements, and their range."""
    median, low, high = (f"{f(values):.{digits}f}" for f in (statistics.median, min, max))
    return f"{median} ({low} to {high})"


def print_machine(*facts: str) -> None:
    env = describe_machine()
    torch = [f"{env['threads']} threads", f"torch {env['torch']}"] if "torch" in env else []
    print(", ".join([env["cpu"], *torch, f"load {env['load_average'][0]:.1f}", *facts]), flush=True)


def print_table(records: Sequence[dict[str, Any]], **how: Any) -> None:
    print(tabulate(records, "keys", tablefmt="pipe", **how), flush=True)


def print_json(**results: Any) -> None:
    """The last line: what was measured, at which commit, on which machine."""
    print(dumps_strict({"git": git_state(), "env": describe_machine()} | results))
