"""A folder of class folders: which files are of which class, part and group, or what to type.

What could be meant in two ways is refused by name: nothing is guessed, nothing left out in silence.
"""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from common.data.images import Unreadable

PARTS = ("train", "val", "test")
SPELLINGS = dict.fromkeys(("valid", "validation", "dev"), "val")
SPELLINGS |= {"training": "train", "testing": "test"}
LITTER = ("__MACOSX", "Thumbs.db", "desktop.ini")  # of file managers, ignored as hidden files are


def require(condition: object, why: str) -> None:
    if not condition:
        raise Unreadable(why)


def some(names: Sequence[str]) -> str:
    """The first names of many."""
    return ", ".join([*names[:3], *["..."][: len(names) > 3]])


def find_classes(root: Path) -> tuple[dict[str, Path], tuple[str, ...]]:
    """The folders that class folders are in, by their part if there is one, in the order of PARTS,
    and the names of all classes. Raises: Unreadable, which says what to type."""
    names = _folders_in(root)
    by_name = {name: SPELLINGS.get(name.lower(), name.lower()) for name in names}
    divided = [name for name in names if by_name[name] in PARTS]
    if not divided or divided != names:
        _check_no_other_level(root, names, divided)
        return {"": root}, tuple(names)
    parts = {part: root / name for part in PARTS for name in names if by_name[name] == part}
    needed = "a division needs train/ and test/, with val/ or without, each once"
    if parts.keys() == {"train", "val"}:
        needed += f": rename {parts['val'].name}/ to test/, if it is what you would test on"
    whole = len(parts) == len(names) and {"train", "test"} <= parts.keys()
    require(whole, f"it has {' and '.join(f'{name}/' for name in names)}; {needed}")
    classes = {part: _folders_in(folder) for part, folder in parts.items()}
    for part, folder in parts.items():
        way_out = f"use folder:{parts['train']}, and common.predict for {folder.name}/"
        way_out = "sort them into one folder a class" if part == "train" else way_out
        why = f"{folder.name}/ has no class folders: what its images show is not known"
        require(classes[part], f"{why}; {way_out}")
        untrained = sorted(set(classes[part]) - set(classes["train"]))
        require(not untrained, f"{parts['train'].name}/ has no class {', '.join(untrained)}")
    return parts, tuple(classes["train"])


def _check_no_other_level(root: Path, names: list[str], divided: list[str]) -> None:
    """Whether folders are classes, and not what class folders are in."""
    require(names, "no folders in it; it needs one for each class")
    lists = [_list(root / name) for name in names]
    below = dict(zip(names, (folders for folders, _ in lists), strict=True))
    others = some([f"{name}/" for name in names if name not in divided])
    beside = f"beside {some(divided)} it has {others}: a second copy? Move it elsewhere"
    require(not any(below[name] for name in divided), beside)
    first, way_out = below[names[0]], f"use folder:{root / names[0]}"
    require(len(names) > 1 or not first, f"its one folder, {names[0]}/, holds others; {way_out}")
    versions = len(first) > 1 and all(inner == first and not files for inner, files in lists)
    why = f"{some(names)} hold folders of the same names ({some(first)}); if these are the classes"
    moved = f"if {some(names)} are, move the files of their folders up into them"
    require(not versions, f"{why}, {way_out}; {moved}")


def _list(folder: Path) -> tuple[list[str], list[str]]:
    """The names of its folders and of its files, in order, without hidden ones."""
    entries = [e for e in os.scandir(folder) if e.name[0] != "." and e.name not in LITTER]
    return tuple(sorted(e.name for e in entries if e.is_dir() == kind) for kind in (True, False))


def _folders_in(folder: Path) -> list[str]:
    """The names of its folders. Raises: Unreadable where images lie beside them."""
    folders, files = _list(folder)
    known = Image.registered_extensions()
    images = [name for name in files if os.path.splitext(name)[1].lower() in known]
    where = f"{len(images)} images lie in {folder.name}/ beside its folders ({some(images)})"
    require(not (images and folders), f"{where}; move them into one, or elsewhere")
    return folders


def iter_files(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files in a folder and in those below it, but for hidden ones."""
    here = folder.resolve()
    require(here not in above, f"{folder} is a link to a folder that it is in; remove it")
    folders, files = _list(folder) if folder.is_dir() else ((), ())
    yield from (folder / name for name in files)
    for name in folders:
        yield from iter_files(folder / name, (*above, here))


def find_groups(rule: str, files: Sequence[str]) -> tuple[str, ...]:
    """The group of each file, by a CSV file with the columns file and group, or by what a pattern
    captures in its name. Raises: Unreadable."""
    if rule.lower().endswith(".csv"):
        with open(Path(rule).expanduser(), encoding="utf-8-sig", errors="replace") as lines:
            rows = list(csv.DictReader(lines))
        columns = list(rows[0]) if rows else []
        found = f"needs the columns file and group, and has {', '.join(map(str, columns))}"
        require({"file", "group"} <= set(columns), f"--groups {rule}: {found}")
        groups = {row["file"]: row["group"] for row in rows}
        twice = [row["file"] for row in rows if groups[row["file"]] != row["group"]]
        require(not twice, f"--groups {rule}: {some(twice)} in several groups")
    else:
        try:
            pattern = re.compile(rule)
        except re.error as error:
            raise Unreadable(f"--groups {rule}: no .csv file and no pattern: {error}") from None
        one = "a pattern needs one pair of brackets, around what names a group: 'patient(\\d+)'"
        require(pattern.groups == 1, f"--groups {rule}: {one}")
        groups = {name: match[1] for name in files if (match := pattern.search(name))}
    lacking = [name for name in files if not groups.get(name)]
    why = f"no group for {len(lacking)} of {len(files)} files, named as here: {some(lacking)}"
    require(not lacking, f"--groups {rule}: {why}")
    return tuple(groups[name] for name in files)
