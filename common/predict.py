"""Classify image files with a network that train.py or common.export left as an ONNX file.

    python -m common.predict results/exports/1a2b3c4d5e6f.onnx cat.jpg dog.png
    python -m common.predict results/exports/1a2b3c4d5e6f.onnx photos/*.jpg --json
    python -m common.predict results/exports/1a2b3c4d5e6f.onnx photos --csv answers.csv

Of a folder all files are answered, in a CSV file; where its folders have names of classes, what was
taken for what is printed too. Images are prepared as they were for training, of which the ONNX file
tells, without torch. Nothing is inverted: a network trained on MNIST, white strokes on black, reads
ink on paper only after you have inverted it.

Exit status: 0 all classified; 1 some files were no images; 2 the model cannot be used."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from common.base import cli
from common.base.cli import UsageError, Validated, option, printable
from common.base.config import BACKGROUND, MAX_PIXELS
from common.base.log import write_atomically
from common.data.images import TOLD, Unreadable, decoding, open_image, to_inputs
from common.data.own import iter_files

NEEDED = {"classes": list, "image_size": int, "channels": int, "resized_as": str}
AGAIN = "python -m common.export RUN writes"
Network = Callable[[np.ndarray], np.ndarray]  # (C, S, S) float32 in [0, 1] to (classes,) logits


class PredictOptions(Validated):
    """What to classify, and with what."""

    model: str = option(MISSING, "ONNX file that this project exported")
    images: tuple[str, ...] = option(MISSING, "image files, or folders of them")
    csv: str | None = option(None, "CSV file for the answers [of a folder: predictions.csv]")
    max_pixels: int = option(MAX_PIXELS, "of an image; larger ones are refused", minimum=1)
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
    facts["classes"] = [printable(str(name)) for name in facts["classes"]]
    return lambda pixels: session.run(["logits"], {"pixels": pixels[None]})[0][0], facts


def find_files(names: Sequence[str], classes: Sequence[str]) -> dict[str, str | None]:
    """The files that are named, or are in a folder that is, and for each the class that the nearest
    folder around it has the name of, up to the one given."""
    files: dict[str, str | None] = {}
    for name in names:
        root = Path(name)
        for file in sorted(iter_files(root)) if root.is_dir() else (root,):
            around = [root.resolve().name, *file.relative_to(root).parts[:-1]]
            known = [folder for folder in around if folder in classes and root.is_dir()]
            files[str(file)] = known[-1] if known else None
    if not files:
        raise UsageError(f"{', '.join(names)}: no files in it")
    return files


def classify(network: Network, facts: dict[str, Any], file: str, max_pixels: int) -> dict[str, Any]:
    """The likeliest class of an image, and the probability of each. Raises: Unreadable."""
    with decoding():
        image, told = open_image(Path(file), facts.get("background", BACKGROUND), max_pixels)
        pixels = to_inputs(image, facts["channels"], facts["image_size"], facts["resized_as"])
    logits = network(pixels)
    powers = np.exp(logits.astype(np.float64) - logits.max())
    shares = zip(facts["classes"], (powers / powers.sum()).tolist(), strict=True)
    ranked = dict(sorted(shares, key=lambda item: -item[1]))
    name, probability = next(iter(ranked.items()))
    answer = {"file": file, "class": name, "probability": probability, "probabilities": ranked}
    return answer | {"told": sorted(told)}


def print_confusion(answers: Sequence[dict[str, Any]]) -> None:
    """What the images were taken for whose folders say what they are."""
    from common.judge.stats import wilson_interval  # slow, and only needed here

    known = Counter((a["truth"], a["class"]) for a in answers if a["truth"])
    if not known:
        return
    total, right = known.total(), sum(n for (truth, name), n in known.items() if truth == name)
    low, high = wilson_interval(right, total)
    share = f"{right / total:.1%} (95 % interval {low:.1%} to {high:.1%})"
    print(f"{right:,} of {total:,} in folders of their class are right, {share};")
    print("of images that were trained on, this says nothing")
    classes = sorted(set().union(*known))
    if len(classes) <= 20:  # else too wide; the CSV file has them all
        table = [[truth, *(known[truth, name] for name in classes)] for truth in classes]
        print(tabulate(table, ["is, taken for", *classes]))


def main(argv: Sequence[str] | None = None) -> int:
    _, options = cli.parse_command_line(argv, __doc__, options_class=PredictOptions)
    network, facts = load_model(Path(options.model))
    try:
        files = find_files(options.images, facts["classes"])
    except (OSError, Unreadable) as error:  # of a folder
        raise UsageError(str(error)) from None
    answers = []
    for file, truth in files.items():
        try:
            answers.append(classify(network, facts, file, options.max_pixels) | {"truth": truth})
        except Unreadable as error:
            print(printable(f"{file}: {error}"), file=sys.stderr)
    for key, n in Counter(key for a in answers for key in a["told"]).items():
        text = TOLD[key].replace("--background", facts.get("background", BACKGROUND))
        print(f"{n} of {len(answers)} images {text}", file=sys.stderr)
    several = any(map(os.path.isdir, options.images)) and not options.json
    if options.csv or several:
        file, text = options.csv or "predictions.csv", io.StringIO()
        columns = ["file", "class", "probability", *["truth"] * any(a["truth"] for a in answers)]
        writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(answers)
        write_atomically(Path(file), text.getvalue().encode(errors="surrogateescape"))
        print(f"{len(answers):,} answers: {file}")
    if options.json:
        print(json.dumps(answers, indent=1, ensure_ascii=False))
    elif several:
        print_confusion(answers)
    elif answers:
        lines = [(printable(a["file"]), a["class"], f"{a['probability']:.1%}") for a in answers]
        print(tabulate(lines, ["file", "class", "probability"], disable_numparse=True))
    return int(len(answers) < len(files))


if __name__ == "__main__":
    cli.run_script(main)
