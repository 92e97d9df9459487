"""Fetch and verify data sets: python -m common.data mnist fashion"""

from __future__ import annotations

from common.base.cli import MISSING, Validated, option, parse_command_line, run_script
from common.base.config import DATASETS, OWN
from common.data.fetch import read_dataset


class FetchOptions(Validated):
    """What to fetch, and where to."""

    names: tuple[str, ...] = option(MISSING, "data sets", [n for n in DATASETS if n not in OWN])
    data_dir: str = option("data", "where they are kept")


def main() -> int:
    _, options = parse_command_line(None, __doc__, options_class=FetchOptions)
    for name in options.names:
        dataset = read_dataset(name, options.data_dir)
        print(f"{name}: {len(dataset.labels):,} images, {len(dataset.classes)} classes, verified")
    return 0


if __name__ == "__main__":
    run_script(main)
