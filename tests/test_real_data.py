"""The real images, where `make data` has fetched them: published facts, and learning from them."""

from pathlib import Path

import numpy as np
import pytest

import train
from common.data.batches import measure_pixels
from common.data.datasets import load_dataset, split_dataset
from common.predict import load_model

DATA = Path(__file__).parent.parent / "data"
FOLDERS = {"mnist": "MNIST", "fashion": "FashionMNIST"}


@pytest.fixture(params=FOLDERS)
def name(request):
    if not (DATA / FOLDERS[request.param] / "raw").exists():
        pytest.skip("make data has not fetched it")
    return request.param


def test_published_pixel_statistics_and_class_counts(name):
    dataset = load_dataset(name, DATA)
    mean, std = measure_pixels(dataset.images[:60_000])
    published = {"mnist": (0.1307, 0.3081), "fashion": (0.2860, 0.3530)}[name]
    assert (mean.item(), std.item()) == pytest.approx(published, abs=5e-5)
    counts = np.bincount(dataset.labels[60_000:])
    mnist = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert counts.tolist() == (mnist if name == "mnist" else [1000] * 10)


def test_the_committed_network_answers_as_it_did(name):
    """What a newcomer classifies with: other processors may tip an image whose logits are level."""
    reference = DATA.parent / "reference"
    run, facts = load_model(reference / "models" / f"{name}.onnx")
    dataset = load_dataset(name, DATA)
    assert facts["classes"] == list(dataset.classes)
    pixels = dataset.images[split_dataset(dataset, "study", 0).test].numpy() / np.float32(255)
    answers = [run(image.reshape(1, 28, 28)).argmax() for image in pixels]
    with np.load(reference / "predictions" / f"{facts['train_run_id']}.npz") as saved:
        assert (np.array(answers) != saved["pred"]).sum() <= 2


def test_a_short_training_learns(name, tmp_path, rows):
    flags = ["--dataset", name, "--limit", "3000", "--image-size", "32", "--epochs", "1"]
    train.main([*flags, "--data-dir", str(DATA), "--results-dir", str(tmp_path / "results")])
    assert rows("train")[0]["metrics"]["test_acc"] > {"mnist": 0.85, "fashion": 0.65}[name]
