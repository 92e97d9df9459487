"""What a network costs: MACs, parameters and activations, by layer, in three named conventions.

The three differ in what they call a multiply-accumulate (MAC), so a figure without its convention
means little. FLOPs are 2 a MAC in each.

- thop: as the package thop counts. Convolutions and linear layers, without their biases; 2 per
  input element of a normalisation, twice that if it is affine; input plus output elements of an
  adaptive average pool; output elements of an average pool. Softmax, PReLU and upsampling have the
  rules in THOP_RULES; every other layer (ReLU, max-pool, additions) counts 0.
- conv_linear: convolutions and linear layers only, as torchvision's published figures.
- torch: half of what torch.utils.flop_counter sees while the network runs.

Grouped convolutions count the channels of their group alone. A training step is a forward and a
backward pass. Conventions thop and conv_linear count a layer's backward pass as its forward pass
once for the gradient of its input, unless the input needs none, as in the first layer, and once for
the gradient of its weights, if it has any that are trained. The torch convention counts the
operators of the backward pass itself: equal to conv_linear, except that it counts the weight
gradient of a grouped convolution as though it were not grouped. The loss and the optimiser count 0.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

CONVENTIONS = ("thop", "conv_linear", "torch")

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LayerNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
ADAPTIVE_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
UPSAMPLE_MACS = {"nearest": 1, "linear": 5, "bilinear": 11, "bicubic": 259}  # others: 0, as in thop

# Layer types -> MACs of one call, from the layer and the shapes of its input x and output y.
# (Kernel elements + 1) per output element of an adaptive pool add up to x plus y elements.
THOP_RULES = {
    NORMS: lambda layer, x, y: x.numel() * (2 if layer.weight is None else 4),
    ADAPTIVE_POOLS: lambda layer, x, y: x.numel() + y.numel(),
    POOLS: lambda layer, x, y: y.numel(),
    (nn.PReLU,): lambda layer, x, y: x.numel(),
    (nn.Softmax,): lambda layer, x, y: x.numel() // x[layer.dim] * (3 * x[layer.dim] - 1),
    (nn.Upsample,): lambda layer, x, y: y.numel() * UPSAMPLE_MACS.get(layer.mode, 0),
}
COUNTED = WEIGHTED + tuple(kind for kinds in THOP_RULES for kind in kinds)


@dataclass(frozen=True)
class LayerCost:
    """Forward cost of one layer, over all the times it is called; output_shape is the last call's.

    activations: output elements if it is a convolution or linear layer, else 0 (Radosavovic et al.,
    "Designing Network Design Spaces", 2020), whatever the convention. moved: elements of its
    inputs, outputs and parameters.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    macs: int
    params: int
    activations: int
    moved: int


@dataclass(frozen=True)
class Costs:
    """Costs of a network at an input shape. `params` has all its parameters, also unused ones."""

    convention: str
    input_shape: tuple[int, ...]
    layers: tuple[LayerCost, ...]
    macs: int
    train_step_macs: int
    params: int

    @property
    def flops(self) -> int:
        """Two for each MAC of a forward pass."""
        return 2 * self.macs

    @property
    def train_step_flops(self) -> int:
        """Two for each MAC of a forward and a backward pass."""
        return 2 * self.train_step_macs

    @property
    def activations(self) -> int:
        """Output elements of all convolution and linear layers."""
        return sum(layer.activations for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        """Parameters stored in fp32; buffers, such as running statistics, are not among them."""
        return 4 * self.params


@dataclass(frozen=True)
class _Call:
    """One call of a layer: shapes in and out, FLOPs of its operators, gradients it has to take."""

    name: str
    layer: nn.Module
    x: torch.Size
    y: torch.Size
    flops: int
    gradients: int


@dataclass(frozen=True)
class _Trace:
    calls: tuple[_Call, ...]
    forward_flops: int
    step_flops: int
    elsewhere: str  # the first module that multiplies outside convolutions and linear layers


def count_costs(model: nn.Module, input_shape: Sequence[int], convention: str) -> Costs:
    """Count the costs of one forward pass and one training step, without computing either.

    A copy of the model runs on the meta device in evaluation mode; the model is left as it is.

    Shapes: input_shape (B, C, H, W), or what else the model takes; every count is for all of B.
    Raises: ValueError on an unknown convention, and in thop and conv_linear when the network
        multiplies matrices outside its convolutions and linear layers, which they cannot see.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown convention {convention!r}; choose from {', '.join(CONVENTIONS)}")
    trace = _trace(copy.deepcopy(model).to("meta").eval(), input_shape)
    if convention == "torch":
        macs = [call.flops // 2 for call in trace.calls]
        total, step = trace.forward_flops // 2, trace.step_flops // 2
    else:
        _check_layers_do_all(trace)
        rule = _thop_macs if convention == "thop" else _conv_linear_macs
        macs = [rule(call) for call in trace.calls]
        total = sum(macs)
        step = sum(n * (1 + call.gradients) for n, call in zip(macs, trace.calls, strict=True))
    return Costs(
        convention=convention,
        input_shape=tuple(input_shape),
        layers=_by_layer(trace.calls, macs),
        macs=total,
        train_step_macs=step,
        params=sum(p.numel() for p in model.parameters()),
    )


def _trace(model: nn.Module, input_shape: Sequence[int]) -> _Trace:
    calls: list[_Call] = []
    before: dict[nn.Module, int] = {}
    counter = FlopCounterMode(display=False)

    def enter(layer: nn.Module, inputs: tuple) -> None:
        before[layer] = counter.get_total_flops()

    def leave(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        x, weight = inputs[0], getattr(layer, "weight", None)
        trained = weight is not None and weight.requires_grad
        flops = counter.get_total_flops() - before[layer]
        gradients = int(x.requires_grad) + int(trained)
        calls.append(_Call(names[layer], layer, x.shape, output.shape, flops, gradients))

    names = {layer: name for name, layer in model.named_modules() if isinstance(layer, COUNTED)}
    for layer in names:
        layer.register_forward_pre_hook(enter)
        layer.register_forward_hook(leave)
    with torch.enable_grad(), counter:
        output = model(torch.empty(tuple(input_shape), device="meta"))
        forward_flops = counter.get_total_flops()
        elsewhere = _find_multiplying(model, counter)
        if output.requires_grad:  # a network that is all frozen has no backward pass
            output.sum().backward()
    return _Trace(tuple(calls), forward_flops, counter.get_total_flops(), elsewhere)


def _find_multiplying(model: nn.Module, counter: FlopCounterMode) -> str:
    counts = {path: sum(ops.values()) for path, ops in counter.get_flop_counts().items()}
    for name, layer in model.named_modules():
        path = ".".join(filter(None, (type(model).__name__, name)))
        inside = sum(counts.get(f"{path}.{child}", 0) for child, _ in layer.named_children())
        if not isinstance(layer, WEIGHTED) and counts.get(path, 0) > inside:
            return f"{name or 'the network'} ({type(layer).__name__})"
    return ""


def _check_layers_do_all(trace: _Trace) -> None:
    in_layers = 2 * sum(_conv_linear_macs(call) for call in trace.calls)
    if in_layers != trace.forward_flops:
        raise ValueError(
            f"convolution and linear layers hold {in_layers} of {trace.forward_flops} FLOPs;"
            f" count it in convention torch, because of {trace.elsewhere}"
        )


def _conv_linear_macs(call: _Call) -> int:
    if not isinstance(call.layer, WEIGHTED):
        return 0
    # weight[0] is what one output element is multiplied with: only its own group's channels.
    return call.y.numel() * call.layer.weight[0].numel()


def _thop_macs(call: _Call) -> int:
    for kinds, rule in THOP_RULES.items():
        if type(call.layer) in kinds:  # no subclasses, as in thop
            return rule(call.layer, call.x, call.y)
    return _conv_linear_macs(call)


def _by_layer(calls: Sequence[_Call], macs: Sequence[int]) -> tuple[LayerCost, ...]:
    layers: dict[str, LayerCost] = {}
    for call, call_macs in zip(calls, macs, strict=True):
        earlier = layers.get(call.name)
        activations = call.y.numel() if isinstance(call.layer, WEIGHTED) else 0
        params = sum(p.numel() for p in call.layer.parameters())
        moved = call.x.numel() + call.y.numel() + params
        layers[call.name] = LayerCost(
            name=call.name,
            kind=type(call.layer).__name__,
            output_shape=tuple(call.y),
            macs=call_macs + (earlier.macs if earlier else 0),
            params=params,
            activations=activations + (earlier.activations if earlier else 0),
            moved=moved + (earlier.moved if earlier else 0),
        )
    return tuple(layers.values())
