"""The architecture: rooms import downwards only, scripts never each other, judging never torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the top down, commands first; those between two strokes do not know each other.
FLOORS = "export predict race / report / judge / speed / deploy / train / models cost / data / base"
FLOOR = {room: n for n, rooms in enumerate(FLOORS.split("/")) for room in rooms.split()}
SCRIPTS = sorted(file.stem for file in ROOT.glob("*.py"))
FILES = sorted((ROOT / "common").rglob("*.py"))


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


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_room_imports_none_above_it_and_no_script(file):
    room = room_of(file)
    for name in imports_of(file):
        first, other, *_ = f"{name}.".split(".")
        assert first not in SCRIPTS, name
        if first == "common" and other != room:
            assert FLOOR[other] > FLOOR[room], f"{room} imports {name}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_imports_no_other(script):
    names = {name.partition(".")[0] for name in imports_of(ROOT / f"{script}.py")}
    assert not names & set(SCRIPTS)


def test_every_room_has_its_floor_and_says_what_it_is_for():
    assert {room_of(file) for file in FILES} - {"__init__"} == set(FLOOR)
    for init in (ROOT / "common").rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(init.read_text()))


def test_judging_and_reporting_never_import_torch():
    rooms = [f"common.{room_of(f)}.{f.stem}" for f in FILES if room_of(f) in ("judge", "report")]
    code = f"import sys, {', '.join(rooms)}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
