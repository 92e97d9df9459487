"""What the scripts share: flags made of dataclasses, how a script says no, and how it ends.

A setting is a field of a frozen dataclass: of its default, help text and rules, which option()
declares, flags and checks are made. Nothing heavy is imported: --help answers at once.
"""

import argparse
import difflib
import importlib
import itertools
import math
import operator
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from configparser import ConfigParser
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar

BOUNDS = {"above": (operator.gt, "greater than"), "minimum": (operator.ge, "at least")}
BOUNDS |= {"maximum": (operator.le, "at most")}
TRUTH = ConfigParser.BOOLEAN_STATES  # true, 1, yes, on; false, 0, no, off
PARTS = "parts"  # of a grid: grids that a preset is made of, whose values replace its own


class UsageError(ValueError):
    """Bad usage or bad input: one line that says what was wrong and what to do; exit status 2. Its
    __cause__, what a library said to it, is printed whole below."""

    def __init__(self, message: str) -> None:  # what would not print, or not on one line: escaped
        super().__init__(printable(message))


def printable(text: str) -> str:
    """A text on one line, and no command to a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def whole(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": \n")


def first_line(error: BaseException) -> str:
    """An error in one line, for a row of the log."""
    return whole(error).splitlines()[0][:200]


def print_more(error: BaseException) -> None:
    """An error whole, on stderr, where that is more than its first line."""
    if whole(error) != first_line(error):
        print(whole(error), file=sys.stderr)


def format_time(seconds: float) -> str:
    """In the unit that suits it: 0.45 s, 24.3 min, 2.4 h."""
    unit, length = ("h", 3600) if seconds >= 5400 else ("min", 60) if seconds >= 90 else ("s", 1)
    return f"{seconds / length:.{'2g' if seconds < 100 else '1f'}} {unit}"


def find_name(value: str, known: Iterable[str]) -> str | None:
    """The known name that value is, or whose form it has: folder:photos has that of folder:PATH."""
    if value in known:
        return value
    kind, colon, rest = value.partition(":")
    return next((n for n in known if colon and rest and n.startswith(f"{kind}:")), None)


def check_name(what: str, value: str, known: Sequence[str]) -> None:
    """Raises: UsageError, with the nearest known name, when value is not among the known."""
    if not find_name(value, known):
        near = difflib.get_close_matches(value, list(known), n=1, cutoff=0.75)  # not xpu for gpu
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
        raise UsageError(f"{what}: unknown value {value!r}; {hint}")


def need(module: str, what: str, package: str | None = None) -> Any:
    """Import what only some need; `package` is what to install, where that is named otherwise."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # a missing driver is one of the latter
        why = f"{what}: {module} is not installed, or damaged; install it with: pip install "
        cause = None if isinstance(error, ModuleNotFoundError) else error
        raise UsageError(why + (package or module.partition(".")[0])) from cause


def start_clean() -> None:
    """Have neither this process nor those that it starts follow what is somebody else's: variables
    of the environment, warnings as errors, streams that are closed, modules that lie about."""
    for name in ("MPLBACKEND", "PYTHONOPTIMIZE", "PYTHONWARNINGS"):  # a notebook's, or a shell's
        os.environ.pop(name, None)
    os.environ["PYTHONSAFEPATH"] = "1"  # else a random.py in the working directory is Python's
    sys.warnoptions.clear()  # which processes started here would get too
    warnings.filters[:] = [rule for rule in warnings.filters if rule[0] != "error"]
    for name in ("stdin", "stdout", "stderr"):  # in this order: a file takes the first free number
        if getattr(sys, name) is None:
            stream = open(os.devnull, "r" if name == "stdin" else "w")  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's has not
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal cannot show


def run_script(main: Callable[[], int]) -> None:
    """Exit as main ends: 0 done, 1 a run failed, 2 bad input, 130 or 143 stopped, 141 unread."""

    def terminate(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)  # a service manager sends it to workers and to us
        raise KeyboardInterrupt(number)

    signal.signal(signal.SIGTERM, terminate)
    start_clean()
    why = None
    try:
        status = main()
        sys.stdout.flush()
    except UsageError as error:
        status, why = 2, f"{os.path.basename(sys.argv[0])}: {error}"
        if error.__cause__:
            why += f"\n{whole(error.__cause__)}"
    except ModuleNotFoundError as error:
        status, why = 2, f"{error}; install what is missing: make setup, then .venv/bin/python ..."
    except KeyboardInterrupt as error:
        status, why = 143 if error.args else 130, "interrupted; everything finished so far is kept"
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else exiting flushes again
        status = 141
    if why:
        print(why, file=sys.stderr)
    sys.exit(status)


def option(default: Any, help: str, choices: Iterable[str] = (), **rules: Any) -> Any:
    """Declare a field that becomes a flag or, where its default is MISSING, is given without one.
    rules: minimum and maximum (inclusive), above (exclusive); check (instead of check_name); flag
    (False: a script fills it in); silent (not in the log at its default, as in rows before it);
    logged (what the log has of a value; None: nothing, since another setting says it)."""
    rules = {"check": check_name, "flag": True, "silent": False, "logged": lambda v: v} | rules
    return field(default=default, metadata={"help": help, "choices": choices} | rules)


@dataclass(frozen=True)
class Validated:
    """A frozen dataclass, as is every subclass, which checks its fields against their rules. Of its
    presets, {field: [value, ...]} by name, --preset takes one."""

    presets: ClassVar[dict[str, Any]] = {}
    default_preset: ClassVar[str | None] = None

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True)(cls)

    def __post_init__(self) -> None:
        for f in fields(self):
            flag, rules, value = flag_of(f.name), f.metadata, getattr(self, f.name)
            for item in value if isinstance(value, tuple) else (value,):
                if item is None:
                    continue
                if rules["choices"]:
                    rules["check"](flag, item, tuple(rules["choices"]))
                if isinstance(item, float) and not math.isfinite(item):
                    raise UsageError(f"{flag}: {item} is not a finite number")
                for bound, (holds, words) in BOUNDS.items():
                    if bound in rules and not holds(item, rules[bound]):
                        raise UsageError(f"{flag}: {item} must be {words} {rules[bound]}")


def as_dict(config: Any) -> dict[str, Any]:
    """All fields of a configuration, as the log holds them."""
    kept = {}
    for f in fields(config):
        value, logged = getattr(config, f.name), f.metadata["logged"]
        if logged and not (f.metadata["silent"] and value == f.default):
            kept[f.name] = logged(value)
    return kept


def flag_of(name: str) -> str:
    """The flag of a field: pin_memory -> --pin-memory."""
    return "--" + name.replace("_", "-")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:  # argparse would print the whole usage first
        raise UsageError(f"{message}; see {self.prog} --help")


def _truth(text: str) -> bool:
    if text.lower() not in TRUTH:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return TRUTH[text.lower()]


# No shell expands the ~ of --out=~/x; the one in folder:~/photos, which names a run, stays.
TYPES = {"bool": _truth, "int": int, "float": float, "str": os.path.expanduser}


def _texts(value: Any) -> list[str]:
    """A value, or each of several, as a command line has it."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [str(v).lower() if isinstance(v, bool) else str(v) for v in values]


def _add_flags(parser: argparse.ArgumentParser, cls: type, several: bool) -> None:
    group = parser.add_argument_group(cls.__doc__.splitlines()[0].rstrip("."))
    for f in (f for f in fields(cls) if f.metadata["flag"]):
        text, choices = f.metadata["help"].replace("%", "%%"), ", ".join(f.metadata["choices"])
        text += f" ({choices})" if choices else ""
        if f.default not in (None, (), MISSING):
            text += f" [{' '.join(_texts(f.default))}]"
        kind = TYPES[re.match(r"(tuple\[)?(\w+)", f.type)[2]]  # "int | None", "tuple[str, ...]"
        how: dict[str, Any] = {"type": kind, "metavar": f.name.upper()}
        if several or f.type.startswith("tuple"):
            how["nargs"] = "*" if kind is _truth else "+"  # a bare --pin-memory means true
        elif kind is _truth:
            how = {"action": argparse.BooleanOptionalAction}
        group.add_argument(f.name if f.default is MISSING else flag_of(f.name), help=text, **how)


def parse_command_line(
    argv: Sequence[str] | None,
    description: str,
    config_class: type = Validated,
    options_class: type = Validated,
) -> tuple[dict[str, list[Any]], Any]:
    """Returns: ({field: [value, ...]} of config_class, of a flag, else a preset, else the default;
    options). Every value is checked, before anything heavy is imported."""
    form = argparse.RawDescriptionHelpFormatter
    how = {"formatter_class": form, "argument_default": argparse.SUPPRESS, "allow_abbrev": False}
    parser = _Parser(description=description, **how)
    presets, preset = config_class.presets, config_class.default_preset
    if presets:
        text = f"a named set of flag values ({', '.join(presets)})"
        text += f", which replace the defaults below [{preset}]" if preset else ""
        parser.add_argument("--preset", help=text)
    _add_flags(parser, config_class, several=True)
    _add_flags(parser, options_class, several=False)
    given = vars(parser.parse_args(argv))
    grid = {f.name: [f.default] for f in fields(config_class)}
    if (preset := given.pop("preset", preset)) is not None:
        check_name("--preset", preset, tuple(presets))
        grid |= presets[preset]
    options = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items() if n not in grid}
    # A bare flag means true, and a value that is given twice counts once.
    grid |= {n: list(dict.fromkeys(v or [True])) for n, v in given.items() if n in grid}
    if PARTS in grid:
        grid[PARTS] = [{n: v for n, v in part.items() if n not in given} for part in grid[PARTS]]
    options = options_class(**options)
    expand_grid(config_class, grid)
    return grid, options


def expand_grid(config_class: type, grid: Mapping[str, Any]) -> list[Any]:
    """The product of the values, or defaults, in the order of the fields, of each of a preset's
    parts; of each data set its own where a preset's values depend on it. Raises: UsageError where
    it has none for a data set."""
    configs: list[Any] = []
    for part in grid.get(PARTS, [{}]):
        values = {f.name: {**grid, **part}.get(f.name, [f.default]) for f in fields(config_class)}
        for dataset in values.get("dataset", [None]):
            own = {n: v.get(dataset) if isinstance(v, dict) else v for n, v in values.items()}
            if missing := [flag_of(name) for name, known in own.items() if known is None]:
                why = "the preset has values for its own data sets alone"
                raise UsageError(f"--dataset {dataset}: {why}; give {' and '.join(missing)} too")
            own |= {"dataset": [dataset]} if "dataset" in own else {}
            configs += itertools.starmap(config_class, itertools.product(*own.values()))
    return list(dict.fromkeys(configs))


def to_flags(settings: Sequence[Any], several: bool) -> list[str]:
    """The flags that give these configurations as a grid, or, not several, these options."""
    flags = []
    for f in fields(settings[0]):
        values = list(dict.fromkeys(getattr(item, f.name) for item in settings))
        if values == [f.default] or not f.metadata["flag"]:
            continue
        if isinstance(values[0], bool) and not several:
            flags.append(flag_of(f.name if values[0] else f"no_{f.name}"))
        else:
            flags += [flag_of(f.name), *_texts(values if several else values[0])]
    return flags
