"""Trained networks as files that run without this project, each kept only if it predicts alike.

    python -m common.export 1a2b3c             a run of the log, again, from its checkpoint

An exported graph takes float32 pixels in [0, 1], already resized, and returns logits; normalising
and repeating grey to three channels happen inside. Class names and what else a user needs are in
the file: ONNX metadata_props, TorchScript's extra file metadata.json. Before a file gets its name
it is loaded by the engine that it is for, and answers the whole test split.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import UsageError, first_line, run_script
from common.checkpoint import load_checkpoint, load_weights
from common.config import ExportOptions, NoGrid, parse_command_line
from common.data import Batches, Dataset, cached_dataset, is_own, split_dataset
from common.engine import EVAL_BATCH_SIZE, evaluate, score
from common.models import build_model
from common.results import Log, git_state, locate, write_atomically

SUFFIXES = {"torchscript": ".ts.pt", "onnx": ".onnx"}
ENGINE_OF = {"torchscript": "torchscript", "onnx": "onnxruntime"}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "onnxruntime": ("onnxruntime",)}
# Tolerance of the gate, for fp32 against fp32. Between engines the order of additions differs and
# nothing else, which moves the logits of these networks by about 1e-5.
MAX_ABS_LOGIT = 1e-3
NEAR_TIE = 1e-4  # a class may change only where eager's best two logits are this close
INPUT = (
    "float32 pixels in [0, 1], shape (batch, {c}, {s}, {s}), resized with bilinear interpolation"
)
# On Python 3.14 torch no longer vouches for TorchScript; there the gate decides as anywhere else.
TORCHSCRIPT_WARNING = r"`torch\.jit\.\w+` is (deprecated|not supported in Python 3\.14\+)"

Engine = Callable[[Tensor], Tensor]


class ExportMismatch(RuntimeError):
    """An exported file does not predict as the network does; `parity` says by how much."""

    def __init__(self, message: str, parity: dict[str, Any] | None) -> None:
        super().__init__(message)
        self.parity = parity


class Deployable(nn.Module):
    """A trained network that takes pixels as they are.

    Shapes: (B, C, S, S) float32 in [0, 1] -> (B, classes) logits; C is 1 or 3.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(((pixels - self.mean) / self.std).expand(-1, 3, -1, -1))


def load_deployable(checkpoint: Path) -> tuple[Deployable, dict[str, Any]]:
    """The network of a training checkpoint, ready to predict, and the checkpoint's other content.

    Raises: UsageError when the file is missing, damaged, or not a training checkpoint.
    """
    content = load_checkpoint(checkpoint)
    if missing := {"model", "config", "classes", "mean", "std"} - content.keys():
        raise UsageError(f"{checkpoint} is no checkpoint of train.py: it lacks {min(missing)}")
    config = content["config"]
    size = config["image_size"]
    model = build_model(config["model"], len(content["classes"]), image_size=size)
    load_weights(model, checkpoint)
    deployable = Deployable(model, content["mean"], content["std"]).eval()
    return deployable.to(memory_format=torch.channels_last), content


def check_packages(name: str) -> None:
    """Raises: UsageError when a format or engine needs a package that is not installed."""
    missing = [p for p in PACKAGES.get(name, ()) if importlib.util.find_spec(p) is None]
    if missing:
        raise UsageError(f"{name} needs {', '.join(missing)}: pip install {' '.join(missing)}")


# --- engines: the ways to run a file --------------------------------------------------------------


def load_engine(name: str, file: Path, threads: int) -> Engine:
    """Load a file into the engine that runs it: eager takes a training checkpoint.

    Shapes: the engine maps (B, C, S, S) pixels to (B, classes) logits, on the CPU.
    `threads` is set for the engine; torch's own count, which two of them share, is the process's.
    Raises: UsageError when the engine is not installed or the checkpoint cannot be read.
    """
    check_packages(name)
    torch.set_num_threads(threads)
    if name == "onnxruntime":
        return _load_onnxruntime(file, threads)
    if name == "torchscript":
        with _torchscript_warnings_off():
            network = torch.jit.load(file, map_location="cpu")
    else:
        network = load_deployable(file)[0]
    return torch.inference_mode()(lambda pixels: network(pixels))


def _load_onnxruntime(file: Path, threads: int) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(["logits"], {"pixels": pixels.numpy()})[0])


@contextmanager
def _torchscript_warnings_off() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", TORCHSCRIPT_WARNING, FutureWarning)
        yield


def build_pixel_loader(dataset: Dataset, image_size: int) -> Callable[[Tensor], Tensor]:
    """A function from indices to what an exported graph takes.

    Shapes: (B,) -> (B, C, S, S) float32 in [0, 1], on the CPU.
    """
    channels = dataset.images.shape[1]
    unchanged = torch.zeros(channels), torch.ones(channels)
    batches = Batches(dataset, unchanged, image_size, torch.device("cpu"), channels_last=False)
    return lambda index: batches.load(index)[0][:, :channels].contiguous()


def predict(engine: Engine, batches: Iterable[Tensor]) -> Tensor:
    """An engine's logits for every batch. Shapes: (B, C, S, S) each -> (N, classes)."""
    return torch.cat([engine(pixels) for pixels in batches])


# --- the gate -------------------------------------------------------------------------------------


def measure_parity(
    logits: Tensor, reference: Tensor, labels: Tensor
) -> tuple[dict[str, Any], str | None]:
    """How far predictions are from eager's. Shapes: (N, classes), (N, classes), (N,).

    Returns: (images, flips, max_abs_logit and acc_delta; what is beyond tolerance, or None).
    """
    flipped = logits.argmax(1) != reference.argmax(1)
    best, second = reference.topk(2).values.unbind(1)
    wrong = int((flipped & ~(best - second <= NEAR_TIE)).sum())
    distance = (logits.double() - reference.double()).abs().max().item()
    parity = {
        "images": len(labels),
        "flips": int(flipped.sum()),
        "max_abs_logit": distance,
        "acc_delta": score(logits, labels)[1] - score(reference, labels)[1],
    }
    fault = None
    if wrong or not distance <= MAX_ABS_LOGIT:  # so that NaN is a fault
        fault = (
            f"{wrong} of {len(labels)} classes differ beyond a near tie, logits by up to "
            f"{distance:.3g} (tolerance {MAX_ABS_LOGIT:g})"
        )
    return parity, fault


# --- writing --------------------------------------------------------------------------------------


def _write_torchscript(network: Deployable, file: Path, metadata: dict[str, Any]) -> None:
    with torch.no_grad(), _torchscript_warnings_off():
        # check_trace would compare a handful of outputs; the gate compares thousands.
        traced = torch.jit.trace(network, _example(metadata), check_trace=False)
        frozen = torch.jit.freeze(traced)
        torch.jit.save(frozen, file, _extra_files={"metadata.json": json.dumps(metadata)})


def _write_onnx(network: Deployable, file: Path, metadata: dict[str, Any]) -> None:
    import onnx

    program = torch.onnx.export(
        network, (_example(metadata),), dynamo=True, external_data=False, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["pixels"], output_names=["logits"],
    )  # fmt: skip
    for key, value in metadata.items():
        program.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    program.save(file, external_data=False)
    onnx.checker.check_model(file, full_check=True)


def _example(metadata: dict[str, Any]) -> Tensor:
    # Of two images: a dimension of 1 would be taken for a constant.
    side = metadata["image_size"]
    return torch.zeros(2, metadata["channels"], side, side)


WRITERS = {"torchscript": _write_torchscript, "onnx": _write_onnx}


def export_model(
    network: Deployable, format: str, target: Path, metadata: dict[str, Any], *,
    batches: Iterable[Tensor], reference: Tensor, labels: Tensor,
) -> dict[str, Any]:  # fmt: skip
    """Write `network` as one file, if what is in the file predicts as the reference does.

    metadata: goes into the file; image_size and channels give the input's shape.
    Shapes: batches (B, C, S, S) of pixels, together the N images of reference (N, classes), eager's
    fp32 logits, and labels (N,).
    Returns: size_bytes, sha256, parity.
    Raises: ExportMismatch, and then the file that had the name before stays; UsageError.
    """
    check_packages(format)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / f"draft{SUFFIXES[format]}"
        WRITERS[format](network, draft, metadata)
        engine = load_engine(ENGINE_OF[format], draft, torch.get_num_threads())
        parity, fault = measure_parity(predict(engine, batches), reference, labels)
        if fault:
            raise ExportMismatch(f"{target.name} refused: {fault}", parity)
        content = draft.read_bytes()
    write_atomically(target, content)
    digest = hashlib.sha256(content).hexdigest()
    return {"size_bytes": len(content), "sha256": digest, "parity": parity}


def export_run(log: Log, row: dict[str, Any], format: str, data_dir: str) -> dict[str, Any]:
    """Export the network of one train row of the log and append the `export` row.

    Returns: the new row; its status is failed where the file was refused or could not be made.
    Raises: UsageError when the checkpoint, the data or a package is not there.
    """
    check_packages(format)
    config = row["config"] | {"format": format}
    file = f"exports/{row['run_id']}{SUFFIXES[format]}"
    metrics = {"format": format, "train_run_id": row["run_id"], "file": None, "parity": None}
    network, content = load_deployable(locate(log.folder, row["metrics"]["checkpoint"]))
    dataset = cached_dataset(row["config"]["dataset"], data_dir, row["config"]["image_size"])
    try:
        done = _export_checkpoint(network, content, dataset, row, format, log.folder / file)
    except UsageError:
        raise
    except Exception as error:  # exporters fail in many ways; none of them ends a grid
        metrics["parity"] = getattr(error, "parity", None)
        return log.append("export", config, metrics, status="failed", error=first_line(error))
    return log.append("export", config, metrics | done | {"file": file})


def _export_checkpoint(
    network: Deployable, content: dict[str, Any], dataset: Dataset, row: dict[str, Any],
    format: str, target: Path,
) -> dict[str, Any]:  # fmt: skip
    config = row["config"]
    size, channels = config["image_size"], dataset.images.shape[1]
    test = split_dataset(dataset, config["split"], config["split_seed"]).test
    labels = dataset.labels[test]
    # The reference comes the way that training took, with nothing of the exported graph in it.
    statistics = torch.tensor(content["mean"]), torch.tensor(content["std"])
    batches = Batches(dataset, statistics, size, torch.device("cpu"))
    reference = evaluate(network.model, batches, test)
    metadata = {
        "input": INPUT.format(c=channels, s=size), "output": "logits, one for each class",
        "classes": list(content["classes"]), "dataset": config["dataset"],
        "model": config["model"], "image_size": size, "channels": channels,
        "resized_as": "uint8" if is_own(config["dataset"]) else "float32",
        "mean": list(content["mean"]), "std": list(content["std"]),
        "test_acc": score(reference, labels)[1], "train_run_id": row["run_id"],
        "git_commit": git_state()["commit"],
    }  # fmt: skip
    load_pixels = build_pixel_loader(dataset, size)
    return export_model(
        network, format, target, metadata,
        batches=map(load_pixels, test.split(EVAL_BATCH_SIZE)), reference=reference, labels=labels,
    )  # fmt: skip


def find_run(name: str, log: Log) -> dict[str, Any]:
    """The finished train row whose run_id starts so. Raises: UsageError unless there is one."""
    rows = log.finished("train")
    found = [run for run in rows if run.startswith(name)]
    if len(found) != 1:
        among = found or list(rows)
        listed = ", ".join(among[:10]) + (", ..." if len(among) > 10 else "") or "none"
        raise UsageError(
            f"RUN {name}: {len(found) or 'no'} finished trainings of {log.path} start so; "
            f"choose from {listed}"
        )
    return rows[found[0]]


def main(argv: Sequence[str] | None = None) -> int:
    """Export finished runs again, each from its checkpoint."""
    _, options = parse_command_line(argv, __doc__, NoGrid, ExportOptions)
    if not (Path(options.results_dir) / "log.jsonl").is_file():
        raise UsageError(
            f"--results-dir: {options.results_dir} has no log.jsonl; train.py writes it"
        )
    log = Log(options.results_dir)
    rows = [find_run(name, log) for name in options.runs]
    failures = 0
    for row in rows:
        for format in options.format:
            done = export_run(log, row, format, options.data_dir)
            failures += done["status"] != "ok"
            file = done["metrics"]["file"]
            print(f"{row['run_id']} {format}: {log.folder / file if file else done['error']}")
    return int(failures > 0)


if __name__ == "__main__":
    run_script(main)
