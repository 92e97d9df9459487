"""Fetch and verify data sets: python -m common.data mnist fashion"""

import argparse

from common.base.cli import check_name, run_script
from common.base.config import DATASETS, OWN
from common.data.fetch import read_dataset


def main() -> int:
    published = [name for name in DATASETS if name not in OWN]
    parser = argparse.ArgumentParser(description="fetch and verify data sets")
    parser.add_argument("names", nargs="+", metavar="NAME", help=", ".join(published))
    parser.add_argument("--data-dir", default="data", help="where they are kept [data]")
    args = parser.parse_args()
    for name in args.names:
        check_name("NAME", name, published)
    for name in args.names:
        dataset = read_dataset(name, args.data_dir)
        print(f"{name}: {len(dataset.labels):,} images, {len(dataset.classes)} classes, verified")
    return 0


if __name__ == "__main__":
    run_script(main)
