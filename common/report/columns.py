"""How tables are shown: all of a column follows from its name, by rules and columns.toml."""

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.judge.rows import spell
from common.judge.tables import Table, significant

ENTRIES = tomllib.loads(Path(__file__).with_name("columns.toml").read_text("utf-8"))


def seconds(ms: float) -> str:
    return significant(ms / 1e3)


# The words in which names end that are shown in this way, the ends of intervals (_low) aside.
FORMATS: dict[str, Callable[[Any], str]] = {
    "macs_difference": lambda value: f"{value / 1e9:+.4f}",
    "macs flops": lambda value: f"{value / 1e9:.4f}",
    "bytes params activations": lambda value: f"{value / 1e6:.2f}",
    "train_ms fit_ms predict_ms epoch_ms": seconds,
    "ms per_s loss j": significant,
    "acc acc_sd image_sd mean accuracy recall precision share confidence ece mfu roofline bin": (
        lambda value: f"{100 * value:.2f}"
    ),
    "claim_parts.low claim_parts.high published effect": lambda value: f"{value:+.2f}",
    "difference delta optimism image low high": lambda value: f"{100 * value:+.2f}",
    "speedup": lambda value: f"{value:.2f}x",
    "support": lambda value: f"{value:,.0f}",
    "index": str,
    "p p_holm": lambda p: f"{p:.3f}" if p >= 0.001 else f"{p:.0e}" if p >= 1e-9 else "< 1e-9",
}
FORMAT_OF = {end: form for ends, form in FORMATS.items() for end in ends.split()}


@dataclass(frozen=True)
class Column:
    """A column that holds anything; `number` where every value in it is one."""

    name: str
    heading: str
    number: bool
    width_mm: int | None
    format: Callable[[Any], str]

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
        return self.format(value)


def shown(table: Table) -> tuple[list[Column], list[list[str]]]:
    """The columns of a table that hold anything, and its rows as text."""
    columns = []
    for name in table.columns:
        values = [record[name] for record in table.records if record[name] is not None]
        number = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        if values:
            width_mm, form = ENTRIES["widths"].get(name), format_of(name, table.name)
            columns.append(Column(name, heading_of(name), number, width_mm, form))
    return columns, [[c.show(record[c.name]) for c in columns] for record in table.records]


def heading_of(name: str) -> str:
    if name in ENTRIES["headings"]:
        return ENTRIES["headings"][name]
    if name.endswith(("low", "high")):
        return "95 % from" if name.endswith("low") else "95 % to"
    words = " ".join(ENTRIES["words"].get(word, word) for word in name.split("_"))
    if format_of(name) is seconds:
        words = f"{words.removesuffix('ms')}s"
    return words[0].upper() + words[1:]


def format_of(name: str, table: str = "") -> Callable[[Any], str]:
    """How a number in a column is shown: by the longest end of its name that has a format."""
    words = re.sub("_(low|high)$", "", name).split("_")
    for end in (f"{table}.{name}", *("_".join(words[i:]) for i in range(len(words)))):
        if end in FORMAT_OF:
            return FORMAT_OF[end]
    return lambda value: f"{value:,}" if isinstance(value, int) else f"{value:,g}"
