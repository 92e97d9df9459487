"""Classify image files with a network that train.py or common.export left as an ONNX file.

    python -m common.predict results/exports/1a2b3c4d5e6f.onnx cat.jpg dog.png
    python -m common.predict results/exports/1a2b3c4d5e6f.onnx photos/*.jpg --json

The file itself says what it was trained on: classes, image side, channels and how images are
resized, which is done here as it was for training, without torch. Nothing is inverted: a network
trained on MNIST, white strokes on black, reads ink on paper only after you have inverted it.

Exit status: 0 all classified; 1 some files were no images; 2 the model cannot be used.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from common.base import cli
from common.base.cli import UsageError, Validated, option
from common.data.images import Unreadable, decoding, open_image, to_inputs

NEEDED = {"classes": list, "image_size": int, "channels": int, "resized_as": str}
AGAIN = "python -m common.export RUN writes"
Network = Callable[[np.ndarray], np.ndarray]  # (C, S, S) float32 in [0, 1] to (classes,) logits


class PredictOptions(Validated):
    """What to classify, and with what."""

    model: str = option(MISSING, "ONNX file that this project exported")
    images: tuple[str, ...] = option(MISSING, "image files")
    json: bool = option(False, "print JSON, with the probability of every class")


def load_model(path: Path) -> tuple[Network, dict[str, Any]]:
    """An exported network and what its file says about it."""
    import onnxruntime

    if not path.is_file():
        raise UsageError(f"{path}: no such file; {AGAIN} one")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the error is raised, and need not be printed too
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has a type for every way to fail
        why = f"{path} is no ONNX model, or damaged; {AGAIN} a new one"
        raise UsageError(why) from error
    facts: dict[str, Any] = dict(session.get_modelmeta().custom_metadata_map)
    for name, kind in NEEDED.items():
        with suppress(KeyError, ValueError):
            facts[name] = facts[name] if kind is str else json.loads(facts[name])
        if not isinstance(facts.get(name), kind):
            why = "it is no export of this project, or of a version before common.predict"
            raise UsageError(f"{path} does not say its {name}: {why}; {AGAIN} a new one")
    if facts["channels"] not in (1, 3) or facts["resized_as"] not in ("uint8", "float32"):
        raise UsageError(f"{path}: its preprocessing is not known to this version")
    return lambda pixels: session.run(["logits"], {"pixels": pixels[None]})[0][0], facts


def classify(network: Network, facts: dict[str, Any], file: str) -> dict[str, Any]:
    """The likeliest class of an image, and the probability of each. Raises: Unreadable."""
    with decoding():
        image = open_image(Path(file))
        pixels = to_inputs(image, facts["channels"], facts["image_size"], facts["resized_as"])
    logits = network(pixels)
    powers = np.exp(logits.astype(np.float64) - logits.max())
    shares = zip(facts["classes"], (powers / powers.sum()).tolist(), strict=True)
    ranked = dict(sorted(shares, key=lambda item: -item[1]))
    name, probability = next(iter(ranked.items()))
    return {"file": file, "class": name, "probability": probability, "probabilities": ranked}


def main(argv: Sequence[str] | None = None) -> int:
    _, options = cli.parse_command_line(argv, __doc__, options_class=PredictOptions)
    network, facts = load_model(Path(options.model))
    answers = []
    for file in options.images:
        try:
            answers.append(classify(network, facts, file))
        except Unreadable as error:
            print(f"{file}: {error}", file=sys.stderr)
    if options.json:
        print(json.dumps(answers, indent=1, ensure_ascii=False))
    elif answers:
        lines = [(a["file"], a["class"], f"{a['probability']:.1%}") for a in answers]
        print(tabulate(lines, ["file", "class", "probability"], disable_numparse=True))
    return int(len(answers) < len(options.images))


if __name__ == "__main__":
    cli.run_script(main)
