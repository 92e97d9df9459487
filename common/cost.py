"""What a network costs: MACs, parameters and activations, by layer, in three conventions of what
a multiply-accumulate (MAC) is. FLOPs are 2 a MAC in each.
- thop: as the package thop: convolutions and linear layers, without their biases, and THOP_RULES;
  every other layer (ReLU, max-pool, additions) counts 0.
- conv_linear: convolutions and linear layers only, as torchvision's published figures.
- torch: half of what torch.utils.flop_counter sees while the network runs.
In thop and conv_linear a layer's backward pass is its forward pass once for the gradient of its
input, unless that needs none, as in the first layer, and once for that of its weights, if they are
trained; the loss and the optimiser count 0. Convention torch counts the backward pass's operators,
the weight gradient of a grouped convolution as though it were not grouped."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

CONVENTIONS = ("thop", "conv_linear", "torch")
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LayerNorm)
NORMS += (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
ADAPTIVE_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
UPSAMPLE_MACS = {"nearest": 1, "linear": 5, "bilinear": 11, "bicubic": 259}  # others: 0, as in thop

# Layer type -> MACs of one call, from the layer and the shapes of its input x and output y.
# (Kernel elements + 1) per output element of an adaptive pool add up to x plus y elements.
THOP_RULES = {
    **dict.fromkeys(NORMS, lambda layer, x, y: x.numel() * (2 if layer.weight is None else 4)),
    **dict.fromkeys(ADAPTIVE_POOLS, lambda layer, x, y: x.numel() + y.numel()),
    **dict.fromkeys(POOLS, lambda layer, x, y: y.numel()),
    nn.PReLU: lambda layer, x, y: x.numel(),
    nn.Softmax: lambda layer, x, y: x.numel() // x[layer.dim] * (3 * x[layer.dim] - 1),
    nn.Upsample: lambda layer, x, y: y.numel() * UPSAMPLE_MACS.get(layer.mode, 0),
}


@dataclass
class LayerCost:
    """Cost of one layer, over all the times it is called. Activations are output elements of
    convolutions and linear layers (Radosavovic et al., "Designing Network Design Spaces", 2020)."""

    name: str
    kind: str
    params: int
    output_shape: tuple[int, ...] = ()  # of the last call
    macs: int = 0  # in convention torch, those of conv_linear
    train_step_macs: int = 0
    activations: int = 0
    moved: int = 0  # elements of its inputs, outputs and parameters in a forward pass


@dataclass(frozen=True)
class Costs:
    convention: str
    input_shape: tuple[int, ...]
    layers: tuple[LayerCost, ...]
    params: int  # also unused ones
    weight_bytes: int  # in fp32, without buffers such as running statistics
    activations: int
    macs: int
    flops: int
    train_step_macs: int
    train_step_flops: int


def count_costs(model: nn.Module, input_shape: Sequence[int], convention: str) -> Costs:
    """Costs of one forward pass and one training step on an input (B, C, H, W), all of B: a copy of
    the model runs on the meta device in evaluation mode. Raises: ValueError where thop and
    conv_linear cannot see matrices that are multiplied outside of the layers that they count."""
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown convention {convention!r}; choose from {', '.join(CONVENTIONS)}")
    shape, params = tuple(input_shape), sum(p.numel() for p in model.parameters())
    model, by_name = copy.deepcopy(model).to("meta").eval(), {}
    for name, layer in model.named_modules():
        if isinstance(layer, (*WEIGHTED, *THOP_RULES)):
            layer.register_forward_hook(partial(_add_call, by_name, convention, name))
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        output = model(torch.empty(shape, device="meta"))
        counts = {path: sum(ops.values()) for path, ops in counter.get_flop_counts().items()}
        flops = counter.get_total_flops()
        if output.requires_grad:  # a network that is all frozen has no backward pass
            output.sum().backward()
    layers, macs, step_macs = tuple(by_name.values()), flops // 2, counter.get_total_flops() // 2
    if convention != "torch":
        weighted = 2 * sum(layer.macs for layer in layers if layer.activations)
        if weighted != flops:
            why = f"convolution and linear layers hold {weighted} of {flops} FLOPs; count it in"
            why += f" convention torch, because of {_find_multiplying(model, counts)}"
            raise ValueError(why)
        macs = sum(layer.macs for layer in layers)
        step_macs = sum(layer.train_step_macs for layer in layers)
    activations = sum(layer.activations for layer in layers)
    totals = params, 4 * params, activations, macs, 2 * macs, step_macs, 2 * step_macs
    return Costs(convention, shape, layers, *totals)


def _add_call(
    by_name: dict[str, LayerCost], convention: str, name: str, layer: nn.Module, inputs, output
) -> None:
    x, y, weight = inputs[0].shape, output.shape, getattr(layer, "weight", None)
    macs = activations = 0
    if isinstance(layer, WEIGHTED):
        activations = y.numel()
        macs = activations * weight[0].numel()  # for an output element: of its own group alone
    elif convention == "thop" and type(layer) in THOP_RULES:  # no subclasses, as in thop
        macs = THOP_RULES[type(layer)](layer, x, y)
    gradients = inputs[0].requires_grad + (weight is not None and weight.requires_grad)
    params = sum(p.numel() for p in layer.parameters())
    cost = by_name.setdefault(name, LayerCost(name, type(layer).__name__, params))
    cost.output_shape = tuple(y)
    cost.macs += macs
    cost.train_step_macs += macs * (1 + gradients)
    cost.activations += activations
    cost.moved += x.numel() + y.numel() + params


def _find_multiplying(model: nn.Module, counts: Mapping[str, int]) -> str:
    for name, layer in model.named_modules():
        path = ".".join(filter(None, (type(model).__name__, name)))
        inside = sum(counts.get(f"{path}.{child}", 0) for child, _ in layer.named_children())
        if not isinstance(layer, WEIGHTED) and counts.get(path, 0) > inside:
            return f"{name or 'the network'} ({type(layer).__name__})"
    return ""
