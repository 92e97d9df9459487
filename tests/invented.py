"""Logs whose truth is known: rows as the scripts write them, and predictions held in memory."""

import numpy as np

from common.base.cli import as_dict
from common.base.config import HwTrainConfig, SvmConfig, TrainConfig
from common.base.log import run_id
from common.judge.compare import collect

IMAGES = 14_000


def wrong_on(*blocks, images=IMAGES):
    """Which images are answered rightly: all but those of the blocks, each (start, length)."""
    right = np.ones(images, bool)
    for start, length in blocks:
        right[start : start + length] = False
    return right


def only(records, **where):
    (record,) = (record for record in records if where.items() <= record.items())
    return record


class Invented:
    """A log in memory, and what load_predictions would return of its files."""

    def __init__(self):
        self.rows, self.held = [], {}

    def add(self, kind, config, metrics, *, name=None, status="ok", error="it broke", **more):
        config = config if isinstance(config, dict) else as_dict(config)
        self.rows.append({
            "schema": 1, "kind": kind, "run_id": name or run_id(kind, config),
            "time_utc": f"2025-01-01T00:00:00.{len(self.rows):06}+00:00",
            "git": {"commit": "0" * 40, "dirty": False}, "status": status,
            "error": None if status == "ok" else error, "config": config,
            "env": {"device": "a CPU", "cpu_count": 2, "load_average": [0.1, 0.1, 0.1]},
            "metrics": metrics,
        } | more)  # fmt: skip
        return self.rows[-1]["run_id"]

    def tested(self, kind, config, right, metrics):
        """A run with predictions: class 1 throughout, or 0 where the answer is wrong. `right` tells
        which images are answered rightly, or how many, the first ones, are not."""
        right = wrong_on((0, right)) if isinstance(right, int) else right
        test_acc = float(right.mean())
        metrics = {
            "val_acc": test_acc, "test_acc": test_acc, "n_test": len(right), "n_val": 7000,
            "n_train": 49_000, "split_sha256": "a", "predictions": "held in memory",
            "shared_with": None,
        } | metrics  # fmt: skip
        name = self.add(kind, config, metrics)
        answers = {"pred": right.astype(int), "label": np.ones(len(right), int)}
        self.held[name] = answers | {"index": np.arange(len(right))}
        return name

    def train(self, right, metrics=None, **settings):
        """Of the study's protocol, on MNIST, but for these settings."""
        metrics = {"train_ms": 1000.0} | (metrics or {})
        return self.tested("train", TrainConfig(**{"device": "cpu"} | settings), right, metrics)

    def grid(self, names, wrong, metrics=None, seeds=1, **settings):
        """For each level of the named settings, a tuple where they are several, a training with so
        many wrong answers, or one for each of a list; each further seed has one more."""
        for levels, counts in wrong.items():
            levels = levels if isinstance(levels, tuple) else (levels,)
            varied = settings | dict(zip(names.split(), levels, strict=True))
            counts = counts if isinstance(counts, list) else range(counts, counts + seeds)
            for seed, count in enumerate(counts):
                self.train(count, metrics, seed=seed, **varied)
        return self

    def svm(self, right, metrics=None, **settings):
        return self.tested("svm", SvmConfig(**settings), right, metrics or {})

    def epochs(self, name, val, train, **more):
        """The epochs of a run that is there."""
        config = next(row["config"] for row in self.rows[::-1] if row["run_id"] == name)
        for number, (val_acc, train_acc) in enumerate(zip(val, train, strict=True), 1):
            metrics = {"epoch": number, "val_acc": val_acc, "train_acc": train_acc}
            metrics |= {"val_loss": 1.1 / number, "train_loss": 1 / number}
            self.add("epoch", config, metrics | more, name=name)

    def speed(self, median_ms, metrics=None, spread=0.001, n=30, group=None, **settings):
        """A row of hw_bench.py, of the study's second question. spread: the IQR over the median;
        group: of rows that took turns."""
        config, iqr_ms = HwTrainConfig(**{"precision": "bf16"} | settings), spread * median_ms
        noise = np.random.default_rng(len(self.rows)).normal(0, iqr_ms / 1.349, n)
        metrics = {
            "label": settings["device"], "test_acc": None, "speedup": None,
            "step_ms": {"median": median_ms, "n": n, "iqr": iqr_ms},
            "rounds": {"group": group, "step_ms": (median_ms + noise).tolist()},
        } | (metrics or {})  # fmt: skip
        return self.add("hw_train", config, metrics)

    def load(self, row):
        held = self.held.get(row["run_id"])
        return (held, None) if held else (None, f"run {row['run_id']}: gone")

    def evidence(self):
        return collect(self.rows, self.load)
