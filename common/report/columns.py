"""How tables are shown: all of a column follows from its name, by rules and columns.toml."""

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from common.judge.rows import spell
from common.judge.tables import Table, significant

ENTRIES = tomllib.loads(Path(__file__).with_name("columns.toml").read_text("utf-8"))
# Of the words in which names end, the ends of intervals (_low) aside: factor and format.
FORMATS = {end: tuple(f) for ends, *f in ENTRIES["formats"] for end in ends.split()}


@dataclass(frozen=True)
class Column:
    """A column that holds anything; `number` where every value in it is one."""

    name: str
    heading: str
    number: bool
    width_mm: int | None
    table: str

    @property
    def lines(self) -> list[str]:
        """Its heading over two lines, as even as the words allow."""
        spaces = [i for i, c in enumerate(self.heading) if c == " "]
        i = min(spaces, key=lambda i: max(i, len(self.heading) - i), default=None)
        return [self.heading] if i is None else [self.heading[:i], self.heading[i + 1 :]]

    def show(self, value: Any) -> str:
        """The text of a value; a dash for one that is null."""
        if value is None or value == "":
            return "-"
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, str):
            return value[:12] if self.name == "sha256" else spell(self.name, value)
        factor, form = format_of(self.name, self.table)
        if form == "p":
            return f"{value:.3f}" if value >= 0.001 else "< 0.001"
        if form == "significant":
            return significant(factor * value)
        return (form or ("{:,}" if isinstance(value, int) else "{:,g}")).format(factor * value)


def shown(table: Table) -> tuple[list[Column], list[list[str]]]:
    """The columns of a table that hold anything, and its rows as text."""
    columns = []
    for name in table.columns:
        values = [record[name] for record in table.records if record[name] is not None]
        number = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        if values:
            look = heading_of(name, table.name), number, ENTRIES["widths"].get(name)
            columns.append(Column(name, *look, table.name))
    return columns, [[c.show(record[c.name]) for c in columns] for record in table.records]


def heading_of(name: str, table: str) -> str:
    known, end = ENTRIES["headings"], name.rpartition("_")[2]
    if heading := known.get(f"{table}.{name}") or known.get(name) or ENTRIES["ends"].get(end):
        return heading
    words = " ".join(ENTRIES["words"].get(word, word) for word in name.split("_"))
    if words.endswith(" ms") and format_of(name)[0] == 1e-3:
        words = f"{words.removesuffix('ms')}s"
    return words[0].upper() + words[1:]


@cache
def format_of(name: str, table: str = "") -> tuple[float, str]:
    """How a number in a column is shown: by the longest end of its name that has a format."""
    words = re.sub("_(low|high)$", "", name).split("_")
    ends = (f"{table}.{name}", *("_".join(words[i:]) for i in range(len(words))))
    return next((FORMATS[end] for end in ends if end in FORMATS), (1, ""))
