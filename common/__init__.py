"""What the scripts share; see each module's first line. Here: how a script says no, and ends."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence


class UsageError(ValueError):
    """Bad usage or bad input: one line that says what was wrong and what to do; exit status 2."""


def first_line(error: BaseException) -> str:
    """An error in one line: its type, and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0][:200]}" if said else type(error).__name__


def check_name(what: str, value: str, known: Sequence[str]) -> None:
    """Raises: UsageError, with the nearest known name, when value is not among the known."""
    if value in known:
        return
    near = difflib.get_close_matches(value, list(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
    raise UsageError(f"{what}: unknown value {value!r}; {hint}")


def run_script(main: Callable[[], int]) -> None:
    """Run a script's main and exit: 0 done, 1 a run failed, 2 bad input, 130 interrupted."""
    try:
        sys.exit(main())
    except UsageError as error:
        print(f"{sys.argv[0].rsplit('/', 1)[-1]}: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        print(f"{error}; install what is missing: make setup, then .venv/bin/python ...",
              file=sys.stderr)  # fmt: skip
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; everything finished so far is kept", file=sys.stderr)
        sys.exit(130)
