"""One training with all cores against as many trainings of one thread, in trainings an hour.

All flags but --per-job and --pairs are train.py's, run with --jobs 1 and all threads, and with a
job of one thread a core, in turns; a block's time has start and evaluation in it, `steps alone` is
what the epochs' steps would give. The ratio is the median over pairs of blocks. Last comes JSON.
"""

import argparse
import itertools
import statistics
import tempfile
from pathlib import Path

from joblib import cpu_count
from shared import print_json, print_machine, print_table, run, with_range

from common.base.cli import UsageError, run_script
from common.base.log import read_rows
from common.speed.timing import alternate


def run_block(flags: list[str], jobs: int, threads: int) -> tuple[float, list[float]]:
    """Train the grid. Returns: its seconds, and those of each epoch's steps."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [*flags, "--results-dir", folder, "--jobs", jobs, "--threads", threads]
        seconds = run("train.py", *flags)
        rows = read_rows(Path(folder, "log.jsonl"))[0]
    return seconds, [r["metrics"]["train_ms"] / 1e3 for r in rows if r["kind"] == "epoch"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--per-job", type=int, default=2, help="trainings a core and block [2]")
    parser.add_argument("--pairs", type=int, default=2, help="blocks of each side [2: A B B A]")
    args, given = parser.parse_known_args(argv)
    if min(args.per_job, args.pairs) < 1:
        raise UsageError(f"--per-job {args.per_job}, --pairs {args.pairs}: give 1 or more of each")
    cores = cpu_count()
    if cores < 2:
        raise UsageError("one core: there is nothing to compare")
    n, flags = cores * args.per_job, ["--dataset", "fashion", "--limit", "10000", *given]
    print_machine(f"{cores} cores", f"{n} trajectories a block: {' '.join(flags)}")
    flags += ["--epochs", 1, "--device", "cpu", "--seed", *range(n)]
    blocks = {(1, cores): [], (cores, 1): []}  # by jobs and threads
    for pair in range(args.pairs):
        for side in alternate(list(blocks), pair):
            blocks[side].append(run_block(flags, *side))
    lines, results = [], []
    for (jobs, threads), block in blocks.items():
        block_s, epoch_s = zip(*block, strict=True)
        speeds = [n / seconds * 3600 for seconds in block_s]
        steps_alone = jobs / statistics.median(itertools.chain(*epoch_s)) * 3600
        line = {"jobs x threads": f"{jobs} x {threads}", "trajectories an hour": with_range(speeds)}
        share = f"{statistics.median(speeds) / steps_alone:.2f}"
        lines.append(line | {"steps alone": f"{steps_alone:.1f}", "share": share})
        side = {"jobs": jobs, "threads": threads, "steps_alone_per_h": steps_alone}
        results.append(side | {"block_s": block_s, "epoch_s": epoch_s})
    print_table(lines, disable_numparse=True)
    ratios = [first[0] / second[0] for first, second in zip(*blocks.values(), strict=True)]
    more = f"{with_range(ratios, 2)} times as many as one of {cores} threads"
    print(f"{cores} jobs of one thread do {more}")
    print_json(ratios=ratios, results=results)
    return 0


if __name__ == "__main__":
    run_script(main)
