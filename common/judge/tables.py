"""A table as data: what it says. How it looks follows from its columns' names, in common/report."""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.judge.rows import Row, get

BRIEF = 12  # rows of a section's table
WORDS = tomllib.loads(Path(__file__).with_name("tables.toml").read_text("utf-8"))


@dataclass(frozen=True)
class Table:
    """Units: records hold raw values, as CSV files do: fractions, milliseconds, bytes."""

    name: str  # its entry in tables.toml
    section: str
    key: str  # its file's name; of one name there may be several tables
    title: str
    columns: tuple[str, ...]
    records: tuple[Row, ...]
    notes: tuple[str, ...]
    missing: bool  # nothing of it was measured

    @property
    def brief(self) -> "Table | None":
        """The few columns and rows of it that answer its section's question, if it is the one."""
        words, all_rows = WORDS[self.name], len(self.records)
        if "short" not in words:
            return None
        notes = [words["short_notes"]] if "short_notes" in words and all_rows else []
        notes += [f"The first {BRIEF} of {all_rows} rows."] if all_rows > BRIEF else []
        notes, columns = (" ".join(notes),) if notes else (), tuple(words["short"].split())
        return replace(self, columns=columns, records=self.records[:BRIEF], notes=notes)


def make_table(
    name: str, records: Iterable[Row], *notes: str, key="", title="", missing=False, **values: Any
) -> Table:
    """The table of this name in tables.toml; values fill the braces of its notes, more follow."""
    words, records, columns = WORDS[name], list(records), tuple(paths_of(name))
    extra = words.get("extra", "").split()
    columns += tuple(c for c in extra if any(r.get(c) is not None for r in records))
    records = tuple({column: record.get(column) for column in columns} for record in records)
    text = words.get("notes", "") if records or "empty" not in words else words["empty"]
    own = [" ".join(part.split()).format(**WORDS | values) for part in text.split("\n\n")]
    notes = () if missing else tuple(filter(None, (*own, *notes)))
    title = title or words["title"]
    return Table(name, words["section"], key or name, title, columns, records, notes, missing)


def paths_of(name: str) -> dict[str, list[str]]:
    """The columns of a table, each with its path in a row of the log."""
    items = [item.rpartition("=") for item in WORDS[name]["columns"].split()]
    return {column or path.split(".")[-1]: path.split(".") for column, _, path in items}


def fields(row: Row, name: str) -> Row:
    """What a row of the log holds of a table's columns."""
    return {column: get(row, *path) for column, path in paths_of(name).items()}


def significant(value: float) -> str:
    """Three significant digits or more, without an exponent."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 4
    return f"{value:,.{digits}f}"
