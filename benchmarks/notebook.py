"""The training loop that people write against train.py's, interleaved in one process.

    python benchmarks/notebook.py
    python benchmarks/notebook.py --model resnet50 --opt adam --blocks 8

The notebook loop: torchvision transforms on PIL images, a DataLoader, fp32 in NCHW, and loss.item()
at every step; once more with bf16 autocast around its forward pass. Ours: the batches, network,
optimiser and loop of train.py, as common/run.py builds them. Both train the same network from the
same weights on the same images, end to end, from the data set in memory or on disk to the updated
weights. Blocks of steps alternate (A B C, C B A, ...) so that a machine's drift meets all sides; a
side's speed is the median over its blocks, and a ratio is the median of the ratios block by block.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torchvision  # noqa: E402
from torch.utils.data import ConcatDataset, DataLoader, Subset  # noqa: E402
from torchvision import transforms  # noqa: E402

from common import run_script  # noqa: E402
from common.config import TrainConfig  # noqa: E402
from common.data import DATASETS  # noqa: E402
from common.engine import MOMENTUM, train_step  # noqa: E402
from common.models import build_model  # noqa: E402
from common.results import describe_machine, git_state  # noqa: E402
from common.run import Run  # noqa: E402

WARMUP_STEPS = 5


def notebook_loader(run: Run, data_dir: str) -> DataLoader:
    """The study's preprocessing as torchvision's tutorials write it, on the training split."""
    (mean,), (std,) = (statistic.tolist() for statistic in run.statistics)
    size = run.config.image_size
    prepare = transforms.Compose([
        transforms.Resize((size, size)), transforms.Grayscale(3), transforms.ToTensor(),
        transforms.Normalize([mean] * 3, [std] * 3),
    ])  # fmt: skip
    kind = getattr(torchvision.datasets, DATASETS[run.config.dataset].torchvision)
    parts = [kind(data_dir, train=train, transform=prepare) for train in (True, False)]
    images = Subset(ConcatDataset(parts), run.split.train.tolist())
    return DataLoader(images, batch_size=run.config.batch_size, shuffle=True)


def notebook_steps(run: Run, data_dir: str, autocast: bool) -> Iterator[None]:
    """One training step of the notebook loop at each turn."""
    config = run.config
    model = build_model(config.model, len(run.dataset.classes), config.seed).train()
    optimizer = (
        torch.optim.SGD(model.parameters(), lr=config.lr, momentum=MOMENTUM)
        if config.opt == "sgd"
        else torch.optim.Adam(model.parameters(), lr=config.lr)
    )
    criterion = torch.nn.CrossEntropyLoss()
    loader = notebook_loader(run, data_dir)
    running_loss = 0.0
    while True:
        for inputs, labels in loader:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = criterion(model(inputs), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            yield


def our_steps(run: Run) -> Iterator[None]:
    """One training step of train.py's loop at each turn."""
    run.model.train()
    for epoch in count(1):
        for index in run.order(epoch):
            inputs, labels = run.batches.load(index)
            train_step(run.forward, run.optimizer, run.scaler, inputs, labels, run.precision)
            yield


def measure(
    sides: dict[str, Iterator[None]], blocks: int, steps: int, batch_size: int
) -> dict[str, list[float]]:
    """Images a second of each block of each side."""
    for side in sides.values():
        for _ in range(WARMUP_STEPS):
            next(side)
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for block in range(blocks):
        for name in list(sides)[:: -1 if block % 2 else 1]:
            next(sides[name])  # back into the caches, untimed
            start = time.perf_counter()
            for _ in range(steps):
                next(sides[name])
            speeds[name].append(steps * batch_size / (time.perf_counter() - start))
    return speeds


def main(argv: list[str] | None = None) -> int:
    """Measure every combination asked for, and print the ratios."""
    parser = argparse.ArgumentParser(description="the notebook loop against train.py's")
    add: Callable = parser.add_argument
    add("--dataset", default="fashion", choices=("mnist", "fashion"), help="[fashion]")
    add("--model", nargs="+", default=["resnet18", "resnet50"], help="[resnet18 resnet50]")
    add("--opt", nargs="+", default=["sgd", "adam"], choices=("sgd", "adam"), help="[sgd adam]")
    add("--blocks", type=int, default=6, help="timed blocks of each side [6]")
    add("--steps", type=int, default=10, help="steps a block [10]")
    add("--data-dir", default="data", help="folder of the data sets [data]")
    args = parser.parse_args(argv)
    print(f"{describe_machine()['cpu']}, {torch.get_num_threads()} threads, torch "
          f"{torch.__version__}, load {describe_machine()['load_average'][0]:.1f}")  # fmt: skip
    found = []
    for model in args.model:
        for opt in args.opt:
            run = Run(
                TrainConfig(dataset=args.dataset, model=model, opt=opt, device="cpu"), args.data_dir
            )
            sides = {
                "notebook fp32": notebook_steps(run, args.data_dir, autocast=False),
                "notebook bf16": notebook_steps(run, args.data_dir, autocast=True),
                f"ours {run.precision}": our_steps(run),
            }
            speeds = measure(sides, args.blocks, args.steps, run.config.batch_size)
            ours = speeds[f"ours {run.precision}"]
            for name, own in speeds.items():
                ratio = statistics.median(a / b for a, b in zip(ours, own, strict=True))
                low, high = min(own), max(own)
                print(f"{model} {opt:4} {name:14} {statistics.median(own):6.1f} images/s "
                      f"({low:.1f} to {high:.1f})  ours / this {ratio:.2f}")  # fmt: skip
                found.append({"model": model, "opt": opt, "side": name, "images_per_s": own,
                              "ours_over_this": ratio})  # fmt: skip
    print(json.dumps({"git": git_state(), "env": describe_machine(), "results": found}))
    return 0


if __name__ == "__main__":
    run_script(main)
