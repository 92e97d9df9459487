"""Whether a measurement of hw_bench.py, made several times, agrees within its own interval.

    python benchmarks/repeat.py --data-dir data --image-size 64 --compile false
    python benchmarks/repeat.py --times 5 --mode infer --results-dir results --scenario single

All flags but --times are hw_bench.py's, which runs so often, each time from the start. A variant
agrees if every two of its intervals of the speed-up overlap; each has 95 % of its own run's drift
in it and nothing of the days between two runs. The last line is JSON. Exit status 1 where a
variant does not agree, or was refused.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.base.cli import UsageError, run_script
from common.base.log import read_rows
from common.base.machine import describe_machine, git_state

SpeedUp = tuple[float, tuple[float, float]]  # and its interval


def measure(flags: list[str], log: Path) -> list[dict[str, Any]]:
    """Run hw_bench.py once. Returns: the rows that it added to the log."""
    before = len(read_rows(log)[0])
    command = [sys.executable, str(ROOT / "hw_bench.py"), *flags, "--force"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise UsageError(f"hw_bench.py ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return read_rows(log)[0][before:]


def speedup_of(row: dict[str, Any]) -> tuple[str, bool, SpeedUp | None]:
    """What a row measured, whether that is the baseline, and its speed-up: None where it or the
    baseline was refused, or there is no interval."""
    m, config = row["metrics"], row["config"]
    if row["kind"] == "hw_train":
        label = f"{config['dataset']} {config['model']} {config['opt']}, {m['label']}"
        is_baseline = m["speedup"]["baseline"] == row["run_id"]
        ratio, interval = m["speedup"].get("ratio"), m["speedup"].get("interval")
    else:
        label = f"{m['dataset']} {m['model']}, {m['engine']}, {m['scenario']} {m['batch_size']}"
        is_baseline = m["engine"] == "eager"
        ratio, interval = m["speedup_vs_eager"], m.get("speedup_interval")
    known = row["status"] == "ok" and ratio and interval
    return label, is_baseline, (ratio, interval) if known else None


def main(argv: list[str] | None = None) -> int:
    """Measure so often, and print a line for each variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--times", type=int, default=3, help="measurements [3]")
    parser.add_argument("--results-dir", default="results", help="folder of the log [results]")
    args, flags = parser.parse_known_args(argv)
    if args.times < 2:
        raise UsageError(f"--times: {args.times} measurements cannot be compared; give 2 or more")
    flags += ["--results-dir", args.results_dir]
    runs = [measure(flags, Path(args.results_dir, "log.jsonl")) for _ in range(args.times)]
    results: dict[str, list[SpeedUp | None]] = {}
    for label, is_baseline, speedup in map(speedup_of, itertools.chain.from_iterable(runs)):
        if not is_baseline:
            results.setdefault(label, []).append(speedup)
    if not results:
        raise UsageError("nothing was compared; ask for a second variant, or for eager too")
    env, failures = describe_machine(), 0
    print(f"{env['cpu']}, load {env['load_average'][0]:.1f}")
    for label, values in results.items():
        measured = [value for value in values if value]
        pairs = itertools.combinations([interval for _, interval in measured], 2)
        agree = all(a[0] <= b[1] and b[0] <= a[1] for a, b in pairs)
        verdict = "agrees" if agree else "DIFFERS"
        if refused := len(values) - len(measured):
            verdict = f"REFUSED {refused} of {len(values)} times"
        failures += verdict != "agrees"
        shown = ", ".join(f"{r:.2f} ({low:.2f} to {high:.2f})" for r, (low, high) in measured)
        print(f"{label}: {shown or 'nothing'}: {verdict}")
    print(json.dumps({"git": git_state(), "env": env, "results": results}))
    return 1 if failures else 0


if __name__ == "__main__":
    run_script(main)
