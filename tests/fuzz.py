"""Coverage-guided fuzzing of the readers of files that others may have written.

    pip install atheris
    python tests/fuzz.py idx -max_total_time=120
    python tests/fuzz.py log -max_total_time=120

Not part of the test suite. It ends at the first input that a reader meets with anything but its
own kind of refusal; what libFuzzer's other flags do: -help=1.
"""

import sys
import tempfile
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

with atheris.instrument_imports(include=["common"]):
    from common.base.log import ROW_KEYS, append_line, dumps_strict, read_rows
    from common.data.fetch import parse_idx


def fuzz_idx(data: bytes) -> None:
    """An array of exactly these bytes, or a ValueError."""
    try:
        array = parse_idx(data)
    except ValueError:
        return
    assert len(data) == 4 + 4 * array.ndim + array.nbytes


def fuzz_log(data: bytes) -> None:
    """Rows that can be written again, and a line about each other one; appending loses none."""
    FILE.write_bytes(data)
    rows, problems = read_rows(FILE)
    lines = [line for line in data.split(b"\n") if line.strip()]
    assert len(rows) + len(problems) == len(lines)
    assert all(row.keys() >= ROW_KEYS for row in rows)
    append_line(FILE, dumps_strict({"kind": "none"}))
    again, problems_again = read_rows(FILE)
    assert [dumps_strict(row) for row in again] == [dumps_strict(row) for row in rows]
    assert len(problems_again) == len(problems) + 1


if __name__ == "__main__":
    target = {"idx": fuzz_idx, "log": fuzz_log}[sys.argv.pop(1)]
    with tempfile.TemporaryDirectory() as scratch:
        FILE = Path(scratch, "log.jsonl")
        atheris.Setup(sys.argv, target)
        atheris.Fuzz()
