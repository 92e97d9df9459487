"""The architecture: rooms import downwards only, scripts never each other, judging never torch."""

import ast

import pytest
from processes import ROOT, finish, start

# From the top down, commands first; those between two strokes do not know each other.
FLOORS = "export predict race / report / judge / speed / deploy / train / models cost / data / base"
FLOOR = {room: n for n, rooms in enumerate(FLOORS.split("/")) for room in rooms.split()}
SCRIPTS = {file.stem: file for file in sorted(ROOT.glob("*.py"))}
FILES = sorted((ROOT / "common").rglob("*.py"))


def imports_of(file):
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(file):
    """The room that a file of common/ is in; none of a script."""
    return file.relative_to(ROOT).with_suffix("").parts[1:2]


@pytest.mark.parametrize("file", [*SCRIPTS.values(), *FILES], ids=str)
def test_a_room_imports_none_above_it_and_nothing_a_script(file):
    for name in imports_of(file):
        first, *room = name.split(".")[:2]
        assert first not in SCRIPTS, name
        if first == "common" and room_of(file) not in ((), tuple(room)):
            assert FLOOR[room[0]] > FLOOR[room_of(file)[0]], name


def test_every_room_has_its_floor_and_says_what_it_is_for():
    assert {room for file in FILES for room in room_of(file)} - {"__init__"} == set(FLOOR)
    for init in (ROOT / "common").rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(init.read_text()))


def test_judging_and_reporting_never_import_torch():
    rooms = [f for f in FILES if room_of(f)[0] in ("judge", "report")]
    names = (".".join(file.relative_to(ROOT).with_suffix("").parts) for file in rooms)
    finish(start("-c", f"import sys, {', '.join(names)}; assert 'torch' not in sys.modules"))
