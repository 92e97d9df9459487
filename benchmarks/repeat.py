"""Whether a measurement of hw_bench.py, made several times, agrees within its own interval.

All flags but --times are hw_bench.py's, which runs so often, each time from the start. A variant
agrees if every two of its intervals of the speed-up overlap. The last line is JSON. Exit status 1
where a variant does not agree, or was refused.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

from shared import print_json, print_machine, run

from common.base.cli import UsageError, run_script
from common.base.log import read_rows

LABELS = {"hw_train": ("dataset", "model", "opt", "label")}
LABELS["hw_infer"] = ("dataset", "model", "engine", "scenario", "batch_size")
SpeedUp = tuple[float, tuple[float, float]]  # and its interval


def measure(flags: list[str], log: Path) -> list[dict[str, Any]]:
    """The rows that one run of hw_bench.py adds to the log."""
    before = len(read_rows(log)[0])
    run("hw_bench.py", *flags, "--force", statuses=(0, 1))
    return read_rows(log)[0][before:]


def speedup_of(row: dict[str, Any]) -> tuple[str, bool, SpeedUp | None]:
    """A row's variant, whether it is the baseline, and its speed-up where one was measured."""
    facts, m = row["config"] | row["metrics"], row["metrics"]
    label = " ".join(str(facts[name]) for name in LABELS[row["kind"]])
    if row["kind"] == "hw_train":
        is_baseline = m["speedup"]["baseline"] == row["run_id"]
        speedup = m["speedup"].get("ratio"), m["speedup"].get("interval")
    else:
        is_baseline = m["engine"] == "eager"
        speedup = m["speedup_vs_eager"], m.get("speedup_interval")
    return label, is_baseline, speedup if row["status"] == "ok" and all(speedup) else None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--times", type=int, default=3, help="measurements [3]")
    parser.add_argument("--results-dir", default="results", help="folder of the log [results]")
    args, flags = parser.parse_known_args(argv)
    if args.times < 2:
        raise UsageError(f"--times: {args.times} measurements cannot be compared; give 2 or more")
    flags += ["--results-dir", args.results_dir]
    results: dict[str, list[SpeedUp | None]] = {}
    for _ in range(args.times):
        for row in measure(flags, Path(args.results_dir, "log.jsonl")):
            label, is_baseline, speedup = speedup_of(row)
            if not is_baseline:
                results.setdefault(label, []).append(speedup)
    if not results:
        raise UsageError("nothing was compared; ask for a second variant, or for eager too")
    print_machine()
    verdicts = set()
    for label, speedups in results.items():
        measured = [speedup for speedup in speedups if speedup]
        shown = [f"{ratio:.2f} ({low:.2f} to {high:.2f})" for ratio, (low, high) in measured]
        pairs = itertools.combinations([interval for _, interval in measured], 2)
        agree = all(a[0] <= b[1] and b[0] <= a[1] for a, b in pairs)
        verdict = "agrees" if agree else "DIFFERS"
        if refused := len(speedups) - len(measured):
            verdict = f"REFUSED {refused} of {len(speedups)} times"
        print(f"{label}: {', '.join(shown) or 'nothing'}: {verdict}")
        verdicts.add(verdict)
    print_json(results=results)
    return int(verdicts != {"agrees"})


if __name__ == "__main__":
    run_script(main)
