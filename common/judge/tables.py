"""A table as data: what it says. How it is shown follows from the names of its columns, in
common/report."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.judge.rows import Row

WORDS = tomllib.loads(Path(__file__).with_name("tables.toml").read_text())


@dataclass(frozen=True)
class Table:
    """A table of the report's section; `missing` where nothing of it was measured.

    Units: records hold raw values, as CSV files do: fractions, milliseconds, bytes.
    """

    section: str
    key: str
    title: str
    columns: tuple[str, ...]
    records: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    missing: bool = False


def make_table(
    section: str,
    key: str,
    title: str,
    columns: str,
    records: Iterable[Row],
    *notes: str,
    missing: bool = False,
) -> Table:
    """A table of the named columns, from records that may lack some of them or hold more.

    Notes that say how to read what was measured are left out when nothing was.
    """
    names = tuple(columns.split())
    kept = tuple({name: record.get(name) for name in names} for record in records)
    return Table(
        section, key, title, names, kept, () if missing else tuple(filter(None, notes)), missing
    )


def judged_table(
    key: str, records: Iterable[Row], *notes: str, missing: bool = False, **values: object
) -> Table:
    """A table whose words are in tables.toml, where values fill the braces; more notes follow."""
    words, records = WORDS[key], list(records)
    text = words.get("notes", "") if records or "empty" not in words else words["empty"]
    own = [" ".join(paragraph.split()).format(**values) for paragraph in text.split("\n\n")]
    names = words["section"], key, words["title"], words["columns"]
    return make_table(*names, records, *own, *notes, missing=missing)


def significant(value: float) -> str:
    """Three significant digits or more, without an exponent."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 4
    return f"{value:,.{digits}f}"
