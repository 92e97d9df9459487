"""Classify image files with a network that train.py or common.export left as an ONNX file.

    python -m common.predict results/exports/1a2b3c4d5e6f.onnx cat.jpg dog.png
    python -m common.predict results/exports/1a2b3c4d5e6f.onnx photos/*.jpg --json

The file itself says what it was trained on: classes, image side, channels and how images are
resized, which is done here as it was for training. It needs numpy, Pillow, onnxruntime and
tabulate, and no torch. Nothing is inverted: a network trained on MNIST, white strokes on black,
reads a photograph of ink on paper only after you have inverted it.

Exit status: 0 all classified; 1 some files were no images, the others are classified; 2 the model
cannot be used.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.base.cli import UsageError, first_line, parse_command_line
from common.base.config import PredictOptions

if TYPE_CHECKING:
    import numpy as np

NEEDED = {"classes": list, "image_size": int, "channels": int, "resized_as": str}


def load_model(path: Path) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]:
    """An exported network and what its file says about it.

    Shapes: the network maps (C, S, S) float32 in [0, 1] to (classes,) logits.
    Raises: UsageError when the file is no model, or not one that this project exported.
    """
    import onnxruntime

    if not path.is_file():
        raise UsageError(f"{path}: no such file; python -m common.export RUN writes one")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the error is raised, and need not be printed too
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has a type for every way to fail
        raise UsageError(f"{path} is no ONNX model: {first_line(error)}") from None
    facts = _read_metadata(path, session.get_modelmeta().custom_metadata_map)

    def run(pixels: np.ndarray) -> np.ndarray:
        return session.run(["logits"], {"pixels": pixels[None]})[0][0]

    return run, facts


def _read_metadata(path: Path, stored: dict[str, str]) -> dict[str, Any]:
    facts: dict[str, Any] = dict(stored)
    for name, kind in NEEDED.items():
        try:
            facts[name] = stored[name] if kind is str else json.loads(stored[name])
        except (KeyError, ValueError):
            facts[name] = None
        if not isinstance(facts[name], kind):
            raise UsageError(
                f"{path} does not say its {name}: it is no export of this project, or of a version "
                "before common.predict; python -m common.export RUN writes a new one"
            )
    if facts["channels"] not in (1, 3) or facts["resized_as"] not in ("uint8", "float32"):
        raise UsageError(f"{path}: its preprocessing is not known to this version")
    return facts


def classify(run: Callable[[np.ndarray], np.ndarray], facts: dict[str, Any], file: str) -> Any:
    """Probability of every class, the likeliest first. Raises: common.data.images.Unreadable."""
    import numpy as np

    from common.data.images import open_image, to_inputs

    image = open_image(Path(file))
    logits = run(to_inputs(image, facts["channels"], facts["image_size"], facts["resized_as"]))
    powers = np.exp(logits.astype(np.float64) - logits.max())
    shares = dict(zip(facts["classes"], (powers / powers.sum()).tolist(), strict=True))
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def format_table(found: Sequence[dict[str, Any]]) -> str:
    """A file a line."""
    from tabulate import tabulate

    lines = [[f["file"], f["class"], f"{f['probability']:.1%}"] for f in found]
    return tabulate(lines, ["file", "class", "probability"], disable_numparse=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Classify every file, and name those that are no images."""
    _, options = parse_command_line(argv, __doc__, options_class=PredictOptions)
    from common.data.images import Unreadable, decoding

    run, facts = load_model(Path(options.model))
    found, failures = [], 0
    for file in options.images:
        try:
            with decoding():
                shares = classify(run, facts, file)
        except Unreadable as error:
            failures += 1
            print(f"{file}: {error}", file=sys.stderr)
            continue
        name, probability = next(iter(shares.items()))
        found.append(
            {"file": file, "class": name, "probability": probability, "probabilities": shares}
        )
    if options.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    elif found:
        print(format_table(found))
    return int(failures > 0)
