"""Kill a grid at random moments, many times, until it has ended as an undisturbed one.

    python tests/soak.py --kills 200

Not part of the test suite: it takes about a quarter of an hour. Each process of a grid of short
runs is killed at a random moment of its life; the next one continues, and after the last a new grid
begins. Every log must hold the undisturbed one's rows, each once, and every file the same arrays.
"""

import argparse
import itertools
import random
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(ROOT := Path(__file__).resolve().parent.parent))

from common.base.log import read_rows
from common.train.checkpoint import load_checkpoint

GRID = shlex.split(
    "train.py --dataset digits --limit 256 --image-size 16 --model vgg5 --epochs 3 --threads 1 "
    "--opt sgd nesterov muon adam adamw --schedule triangular --translate 1 --erase 0.3"
)
STARTUP_S = 1.5  # of which nothing can be lost: kills come later
LIFE_S = 4.0  # and not after this


def run(folder: Path, moments: random.Random | None = None) -> int:
    """Bring a grid to its end, killing each process that lives too long. Returns: the kills."""
    command = [sys.executable, *GRID, "--results-dir", str(folder)]
    for kills in itertools.count():
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        try:
            life_s = STARTUP_S + moments.random() * LIFE_S if moments else None
            assert process.wait(life_s) == 0
            return kills
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def outcome(folder: Path) -> tuple[list[tuple], dict[str, dict[str, np.ndarray]]]:
    """What a grid left: its rows without times, and the arrays of its files."""
    rows, problems = read_rows(folder / "log.jsonl")
    print(*problems, sep="\n", end="\n" * bool(problems))
    names = ("epoch", "val_loss", "test_acc")
    kept = [(r["kind"], r["run_id"], *(r["metrics"].get(n, 0) for n in names)) for r in rows]
    arrays = {file.name: dict(np.load(file)) for file in folder.glob("predictions/*.npz")}
    for file in folder.glob("checkpoints/*.pt"):
        weights = load_checkpoint(file)["model"]
        arrays[file.name] = {name: tensor.numpy() for name, tensor in weights.items()}
    return sorted(kept), arrays


def main() -> None:
    """Print the kills made, and the grids that ended as the undisturbed one, until one does not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    moments, kills, grids = random.Random(args.seed), 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        run(Path(scratch, "undisturbed"))
        expected = outcome(Path(scratch, "undisturbed"))
        while kills < args.kills:
            kills += run(Path(scratch, f"grid{grids}"), moments)
            np.testing.assert_equal(outcome(Path(scratch, f"grid{grids}")), expected)
            grids += 1
            print(f"{kills} kills; {grids} grids as undisturbed, {time.ctime()}", flush=True)


if __name__ == "__main__":
    main()
