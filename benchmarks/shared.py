"""What the benchmarks share: the way to the project, and what is printed."""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # they are run from anywhere

from common.base.log import dumps_strict
from common.base.machine import describe_machine, git_state


def with_range(values: Sequence[float], digits: int = 1) -> str:
    """The median of several measurements, and their range."""
    median, low, high = (f"{f(values):.{digits}f}" for f in (statistics.median, min, max))
    return f"{median} ({low} to {high})"


def print_table(records: Sequence[dict[str, Any]], **how: Any) -> None:
    print(tabulate(records, "keys", tablefmt="pipe", **how), flush=True)


def print_json(**results: Any) -> None:
    """The last line: what was measured, at which commit, on which machine."""
    print(dumps_strict({"git": git_state(), "env": describe_machine()} | results))
