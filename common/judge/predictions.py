"""Stored predictions on the test images: label, pred, classes and index by image, and logits."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from common.base.log import locate
from common.judge.rows import Row

Predictions = Mapping[str, np.ndarray]


def load_predictions(
    folder: Path, row: Row, logits: bool = False
) -> tuple[Predictions | None, str | None]:
    """A run's predictions on the test images, with the stored logits if wanted, or one line that
    says why there are none."""
    name, run = row["metrics"].get("predictions"), f"run {row['run_id']}"
    if not isinstance(name, str):
        return None, f"{run}: the row names no predictions"
    try:
        content = locate(folder, name).read_bytes()
        with np.load(io.BytesIO(content), allow_pickle=False) as saved:
            wanted = ["pred", "label", "classes", "index"]
            wanted += ["logits"] if logits and "logits" in saved else []
            arrays = {key: saved[key] for key in wanted}
        if len({len(array) for key, array in arrays.items() if key != "classes"}) > 1:
            raise ValueError("its arrays are not of one length")
        if arrays["index"].shape != arrays["label"].shape:
            raise ValueError("it does not name the image of each answer")
        used = np.stack([arrays["pred"], arrays["label"]])
        if used.size == 0 or used.min() < 0 or used.max() >= len(arrays["classes"]):
            raise ValueError("its classes are not those of its images")
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        return None, f"{run}: {name} cannot be used, {error}"
    accuracy, logged = np.mean(arrays["pred"] == arrays["label"]), row["metrics"].get("test_acc")
    if logged is None or abs(accuracy - logged) > 1e-6:
        return None, f"{run}: {name} has accuracy {accuracy:.6f}, the row {logged}"
    return arrays, None
