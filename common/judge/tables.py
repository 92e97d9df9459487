"""A table as data: what it says. How it is shown follows from the names of its columns, in
common/report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from common.judge.rows import Row


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
    section: str, key: str, title: str, columns: str, records: Iterable[Row], *notes: str,
    missing: bool = False,
) -> Table:  # fmt: skip
    """A table of the named columns, from records that may lack some of them or hold more.

    Notes that say how to read what was measured are left out when nothing was.
    """
    names = tuple(columns.split())
    kept = tuple({name: record.get(name) for name in names} for record in records)
    return Table(
        section, key, title, names, kept, () if missing else tuple(filter(None, notes)), missing
    )


def significant(value: float) -> str:
    """Three significant digits or more, without an exponent."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 4
    return f"{value:,.{digits}f}"
