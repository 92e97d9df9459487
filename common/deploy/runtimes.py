"""The ways to run a trained network on a CPU: as PyTorch has it, and in the engines of exports.
Each maps pixels (B, C, S, S), float32 in [0, 1], C 1 or 3, to logits (B, classes). eager in fp32 is
what the others are compared with."""

import copy
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from common.base.cli import UsageError, need
from common.models import build_model
from common.train.checkpoint import load_checkpoint, load_weights
from common.train.loop import MirrorMean, as_tested

Values = Sequence[float] | Tensor  # one a channel
Run = Callable[[Tensor], Tensor]


class Deployable(nn.Module):
    """A trained network with the normalisation of its images in front; std None: its first
    convolution, of the images' channels, divides by it already."""

    def __init__(self, model: nn.Module, mean: Values, std: Values | None = None) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.as_tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", None if std is None else torch.as_tensor(std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        # The mean is never folded: a bias could not stand in for it where the convolution pads.
        pixels = pixels - self.mean
        if self.std is not None:
            pixels = (pixels / self.std).expand(-1, 3, -1, -1)
        return self.model(pixels)


def load_deployable(file: Path) -> tuple[Deployable, dict[str, Any]]:
    """The network of a training checkpoint, ready to predict, and the checkpoint's content."""
    content = load_checkpoint(file)
    if missing := {"model", "config", "classes", "mean", "std"} - content.keys():
        raise UsageError(f"{file} is no checkpoint of train.py: it lacks {min(missing)}")
    config, classes = content["config"], len(content["classes"])
    model = build_model(config["model"], classes, image_size=config["image_size"])
    load_weights(model, content, file)
    network = Deployable(as_tested(model, config), content["mean"], content["std"]).eval()
    return network.to(memory_format=torch.channels_last), content


def fold(network: Deployable) -> nn.Module:
    """The same function with fewer operations: each BatchNorm in the convolution before it, pixels'
    scale and the repetition of grey in the first. What torch.fx cannot trace, or begins otherwise,
    comes back with less folded or as it was."""
    mean, std = network.mean, network.std
    if isinstance(network.model, MirrorMean):
        return MirrorMean(fold(Deployable(network.model.model, mean, std).eval())).eval()
    try:
        model = fuse(copy.deepcopy(network.model).eval())
    except Exception:  # a forward pass that depends on values: torch.fx raises what it likes
        return network
    image = next(node for node in model.graph.nodes if node.op == "placeholder")
    first = next(iter(image.users))
    layer = model.get_submodule(first.target) if first.op == "call_module" else None
    plain = isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
    if not plain or len(image.users) > 1:
        return Deployable(model, mean, std).eval()
    weight = layer.weight.detach().double() / std.double()
    if std.numel() == 1:  # grey: the same in all three channels
        weight = weight.sum(1, keepdim=True)
    layer.weight, layer.in_channels = nn.Parameter(weight.float(), False), weight.shape[1]
    return Deployable(model, mean).eval().to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Engine:
    reads: str  # an export's format, or checkpoint
    load: Callable[[Path, int], Run]  # of a file, for so many threads
    precision: str = "fp32"  # of its convolutions and linear layers
    packages: tuple[str, ...] = ()


def _load_eager_bf16(file: Path, threads: int) -> Run:
    network = load_deployable(file)[0].bfloat16()  # autocast would cast weights for every query
    return lambda pixels: network(pixels.bfloat16()).float()


def _load_compiled(file: Path, threads: int) -> Run:
    import torch._dynamo

    # A graph for every batch size, of 64 at most, beyond which torch would quietly run eagerly.
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(load_deployable(file)[0], dynamic=False, options={"freezing": True})


def _load_torchscript(file: Path, threads: int) -> Run:
    # From Python 3.14 on torch no longer vouches for TorchScript; the gate decides.
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        return torch.jit.load(file, map_location="cpu")


def _load_onnxruntime(file: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(["logits"], {"pixels": pixels.numpy()})[0])


def _load_openvino(file: Path, threads: int) -> Run:
    import openvino

    # Left to itself it would multiply in bf16 where the CPU can, and bind its threads to cores.
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    settings |= {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
    request = openvino.Core().compile_model(file, "CPU", settings).create_infer_request()
    # Nothing is kept of either beyond a call; copies of both would take 5 % of batch 1.
    shared = {"share_inputs": True, "share_outputs": True}
    return lambda pixels: torch.from_numpy(request.infer([pixels.numpy()], **shared)[0].copy())


ENGINES = {
    "eager": Engine("checkpoint", lambda file, _: load_deployable(file)[0]),
    "eager-bf16": Engine("checkpoint", _load_eager_bf16, "bf16"),
    "compile": Engine("checkpoint", _load_compiled),
    "torchscript": Engine("torchscript", _load_torchscript),
    "aotinductor": Engine("aotinductor", lambda f, _: torch._inductor.aoti_load_package(str(f))),
    "onnxruntime": Engine("onnx", _load_onnxruntime, packages=("onnxruntime",)),
    "onnxruntime-int8": Engine("onnx-int8", _load_onnxruntime, "int8", ("onnxruntime",)),
    "openvino": Engine("onnx", _load_openvino, packages=("openvino",)),
    "openvino-int8": Engine("onnx-int8", _load_openvino, "int8", ("openvino",)),
}


def load_engine(name: str, file: Path, threads: int) -> Run:
    """Load a file into the engine that runs it. torch's count of threads is the process's."""
    check_packages(name, ENGINES[name].packages)
    torch.set_num_threads(threads)
    run = ENGINES[name].load(file, threads)
    return torch.inference_mode()(lambda pixels: run(pixels))


def check_packages(name: str, packages: Sequence[str]) -> None:
    """Raises: UsageError, with how to install what a format or engine lacks."""
    for package in packages:
        if importlib.util.find_spec(package) is None:  # they are not imported yet: some take long
            need(package, name)
