"""The committed results: the README prints what the reference log and its predictions hold."""

import re
from pathlib import Path

import numpy as np
import pytest

from common.config import TrainConfig, as_dict
from common.measured import load_published
from common.results import read_rows, run_id
from common.stats import wilson_interval

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def row():
    rows, problems = read_rows(ROOT / "reference" / "log.jsonl")
    assert problems == []
    [train] = [row for row in rows if row["kind"] == "train"]
    return train


def test_the_reference_run_kept_to_the_studys_protocol(row):
    protocol = as_dict(TrainConfig(dataset="fashion", opt="adam", device="cpu"))
    assert row["config"].items() <= protocol.items()
    assert row["run_id"] == run_id("train", row["config"])
    assert not row["git"]["dirty"]


def test_its_accuracy_is_that_of_its_predictions(row):
    saved = np.load(ROOT / "reference" / row["metrics"]["predictions"])
    assert (saved["pred"] == saved["label"]).mean() == row["metrics"]["test_acc"]
    assert len(saved["label"]) == 14_000


def test_the_readme_prints_its_figures(row):
    [line] = re.findall(rf"\| {row['run_id']} \|.*", (ROOT / "README.md").read_text())
    acc = row["metrics"]["test_acc"]
    low, high = wilson_interval(round(acc * 14_000), 14_000)
    [published] = [
        p["test_acc"] for p in load_published() if p["part"] == "best" and p["dataset"] == "fashion"
    ]
    for said in (
        f"{acc:.2%}".replace("%", " %"),
        f"({100 * low:.2f} to {100 * high:.2f})",
        f"{100 * published:.2f} %",
        f"{100 * (acc - published):+.2f} points",
        f"{row['metrics']['train_ms'] / 1e3:.0f} s",
    ):
        assert said in line
