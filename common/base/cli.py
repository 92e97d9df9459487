"""What the scripts share; see each module's first line. Here: how a script says no, and ends."""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any


class UsageError(ValueError):
    """Bad usage or bad input: one line that says what was wrong and what to do; exit status 2."""

    def __init__(self, message: str) -> None:
        """What would not print on one line, or at all, is shown escaped."""
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))


def first_line(error: BaseException) -> str:
    """An error in one line: its type, and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0][:200]}" if said else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host ran out of memory; torch has a type for the former alone."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(
        error
    )


def find_name(value: str, known: Iterable[str]) -> str | None:
    """The known name that value is, or whose form it has: folder:photos has that of folder:PATH."""
    if value in known:
        return value
    kind, colon, rest = value.partition(":")
    return next((n for n in known if colon and rest and n.startswith(f"{kind}:")), None)


def check_name(what: str, value: str, known: Sequence[str]) -> None:
    """Raises: UsageError, with the nearest known name, when value is not among the known."""
    if find_name(value, known):
        return
    near = difflib.get_close_matches(value, list(known), n=1, cutoff=0.75)  # not xpu for gpu
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
    raise UsageError(f"{what}: unknown value {value!r}; {hint}")


def need(module: str, what: str, package: str | None = None) -> Any:
    """Import what only some need. Raises: UsageError that says what needs it and how to install it;
    package: its name where it is another than the module's."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # a missing driver is one of the latter
        package = package or module.partition(".")[0]
        raise UsageError(
            f"{what}: {first_line(error)}; install it with: pip install {package}"
        ) from None


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends the work as Ctrl-C does, with another exit status."""


def _terminate(number: int, frame: Any) -> None:
    raise Terminated


def run_script(main: Callable[[], int]) -> None:
    """Run a script's main and exit: 0 done, 1 a run failed, 2 bad input, 130 interrupted (143 by
    SIGTERM), 141 when whoever reads the output has gone."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal cannot show
    try:
        status = main()
        sys.stdout.flush()
        sys.exit(status)
    except UsageError as error:
        print(f"{sys.argv[0].rsplit('/', 1)[-1]}: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        print(f"{error}; install what is missing: make setup, then .venv/bin/python ...",
              file=sys.stderr)  # fmt: skip
        sys.exit(2)
    except KeyboardInterrupt as error:
        print("interrupted; everything finished so far is kept", file=sys.stderr)
        sys.exit(143 if isinstance(error, Terminated) else 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else exiting flushes again
        sys.exit(141)
