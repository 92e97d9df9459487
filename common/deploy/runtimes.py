"""The ways to run a trained network on a CPU, each with as many threads as it is told.

An engine maps pixels (B, C, S, S), float32 in [0, 1], to logits (B, classes). It runs one kind of
file: a training checkpoint, or an export. eager in fp32 is what the others are compared with.
Optional packages are named with the command that installs them.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.base.cli import need
from common.deploy.network import load_deployable

# On Python 3.14 torch no longer vouches for TorchScript; there the gate decides as anywhere else.
TORCHSCRIPT_WARNING = r"`torch\.jit\.\w+` is (deprecated|not supported in Python 3\.14\+)"

COMPILED_SIZES = 64  # batch sizes that torch.compile is measured in, at most
Run = Callable[[Tensor], Tensor]


@contextmanager
def torchscript_warnings_off() -> Iterator[None]:
    """TorchScript's own warnings, said once in the documentation, not at every call."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", TORCHSCRIPT_WARNING, FutureWarning)
        yield


@dataclass(frozen=True)
class Engine:
    """What an engine runs and needs. `reads` is an export's format, or checkpoint; `precision` that
    of its convolutions and linear layers."""

    reads: str
    load: Callable[[Path, int], Run]  # of a file, for so many threads
    precision: str = "fp32"
    packages: tuple[str, ...] = ()


def _load_eager_bf16(file: Path, threads: int) -> Run:
    network = load_deployable(file)[0].bfloat16()  # autocast would cast weights for every query
    return lambda pixels: network(pixels.bfloat16()).float()


def _load_compiled(file: Path, threads: int) -> Run:
    # A graph for every batch size, which beyond a limit torch would quietly run eagerly.
    import torch._dynamo

    torch._dynamo.config.recompile_limit = COMPILED_SIZES
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(load_deployable(file)[0], dynamic=False, options={"freezing": True})


def _load_torchscript(file: Path, threads: int) -> Run:
    with torchscript_warnings_off():
        return torch.jit.load(file, map_location="cpu")


def _load_onnxruntime(file: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(["logits"], {"pixels": pixels.numpy()})[0])


def _load_openvino(file: Path, threads: int) -> Run:
    import openvino

    # Left to itself it would multiply an fp32 model in bf16 where the CPU can, and bind its threads
    # to cores, which no other engine does.
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    settings |= {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
    request = openvino.Core().compile_model(file, "CPU", settings).create_infer_request()

    def run(pixels: Tensor) -> Tensor:
        # Nothing is kept of either beyond this call; copies of both would take 5 % of batch 1.
        logits = request.infer([pixels.numpy()], share_inputs=True, share_outputs=True)[0]
        return torch.from_numpy(logits.copy())

    return run


ENGINES = {
    "eager": Engine("checkpoint", lambda file, _: load_deployable(file)[0]),
    "eager-bf16": Engine("checkpoint", _load_eager_bf16, "bf16"),
    "compile": Engine("checkpoint", _load_compiled),
    "torchscript": Engine("torchscript", _load_torchscript),
    "aotinductor": Engine(
        "aotinductor", lambda file, _: torch._inductor.aoti_load_package(str(file))
    ),
    "onnxruntime": Engine("onnx", _load_onnxruntime, packages=("onnxruntime",)),
    "onnxruntime-int8": Engine("onnx-int8", _load_onnxruntime, "int8", ("onnxruntime",)),
    "openvino": Engine("onnx", _load_openvino, packages=("openvino",)),
    "openvino-int8": Engine("onnx-int8", _load_openvino, "int8", ("openvino",)),
}


def load_engine(name: str, file: Path, threads: int) -> Run:
    """Load a file into the engine that runs it, without what gradients would need.

    `threads` is set for the engine; torch's own count, which several share, is the process's.
    Raises: UsageError when the engine is not installed or the checkpoint cannot be read.
    """
    check_packages(name, ENGINES[name].packages)
    torch.set_num_threads(threads)
    run = ENGINES[name].load(file, threads)
    return torch.inference_mode()(lambda pixels: run(pixels))


def check_packages(name: str, packages: tuple[str, ...]) -> None:
    """Raises: UsageError when what a format or engine needs is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:  # they are not imported yet: some take long
            need(package, name)
