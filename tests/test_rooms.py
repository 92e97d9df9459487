"""The architecture: rooms import downwards only, scripts never each other, judging never torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the top down; those of one line do not know each other.
FLOORS = (("report",), ("judge",), ("speed",), ("deploy",), ("train",), ("models", "cost"),
          ("data",), ("base",))  # fmt: skip
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
SCRIPTS = sorted(file.stem for file in ROOT.glob("*.py"))
COMMANDS = {"predict", "export"}  # of a few lines: python -m common.predict


def imports_of(file):
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(file):
    """The room that a file of common/ is in."""
    return file.relative_to(ROOT / "common").with_suffix("").parts[0]


@pytest.mark.parametrize("file", sorted((ROOT / "common").rglob("*.py")), ids=str)
def test_a_room_imports_none_above_it(file):
    room = room_of(file)
    if room in COMMANDS | {"__init__"}:
        return
    for name in imports_of(file):
        first, _, rest = name.partition(".")
        assert first not in SCRIPTS, name
        if first == "common":
            other = rest.partition(".")[0]
            assert other == room or FLOOR[other] > FLOOR[room], f"{room} imports {name}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_imports_no_other(script):
    names = {name.partition(".")[0] for name in imports_of(ROOT / f"{script}.py")}
    assert not names & set(SCRIPTS)


def test_every_room_has_its_floor_and_says_what_it_is_for():
    rooms = {room_of(file) for file in (ROOT / "common").rglob("*.py")} - {"__init__"} - COMMANDS
    assert rooms == set(FLOOR)
    for init in (ROOT / "common").rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(init.read_text()))


def test_judging_and_reporting_never_import_torch():
    code = (
        "import importlib, pkgutil, sys, common.judge, common.report\n"
        "for room in (common.judge, common.report):\n"
        "    for module in pkgutil.iter_modules(room.__path__, room.__name__ + '.'):\n"
        "        importlib.import_module(module.name)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
