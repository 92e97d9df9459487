"""The optimisers by name, their learning rate over a run, and Muon for hidden convolutions."""

import copy
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.9
MUON_MOMENTUM = 0.75  # by validation of --preset record on FashionMNIST
WARMUP = 0.2  # share of a triangular schedule before its peak
PROBE_SIDE = 64
SCALE_MATTERS = 1e-8  # share of <w, dL/dw>: of 17 networks at most 1e-11, or else at least 2e-6
BODY_LR = 0.1  # of --lr, for weights that were trained before, under a head that is new


def build_optimizer(
    model: nn.Module, opt: str, lr: float, weight_decay: float | None, image_size: int = PROBE_SIDE
) -> torch.optim.Optimizer:
    """An optimiser by name; weight_decay None leaves its own default. nesterov and muon decay no
    biases and BatchNorm; muon orthogonalises the steps of hidden convolutions."""
    settings = {"lr": lr} | ({} if weight_decay is None else {"weight_decay": weight_decay})
    if opt in ("adam", "adamw"):
        kind = torch.optim.Adam if opt == "adam" else torch.optim.AdamW
        return kind(model.parameters(), fused=True, **settings)
    # torch's fused SGD is the slower one on a CPU.
    sgd = {"momentum": MOMENTUM, "fused": next(model.parameters()).device.type != "cpu"} | settings
    if opt == "sgd":
        return torch.optim.SGD(model.parameters(), **sgd)
    if opt not in ("nesterov", "muon"):
        raise ValueError(f"unknown optimiser {opt!r}")
    hidden = find_hidden(model, image_size) if opt == "muon" else []
    other = [p for name, p in model.named_parameters() if name not in hidden]
    groups = [
        {"params": [p for p in other if p.ndim > 1]},
        {"params": [p for p in other if p.ndim == 1], "weight_decay": 0.0},
    ]
    if opt == "nesterov":
        return torch.optim.SGD(groups, nesterov=True, **sgd)
    weights = [model.get_parameter(name) for name in hidden]
    if norms_are_noticed(model, hidden, image_size):
        set_norms(weights)
    groups.insert(0, {"params": weights, "orthogonal": True, "weight_decay": 0.0})
    return Muon(groups, momentum=MUON_MOMENTUM, **settings)


def slow_body(optimizer: torch.optim.Optimizer, head: Sequence[Tensor]) -> None:
    """From now on all but the weights of the head learn at BODY_LR of the learning rate."""
    ids = set(map(id, head))
    for group in optimizer.param_groups[:]:
        body = [p for p in group["params"] if id(p) not in ids]
        group["params"] = [p for p in group["params"] if id(p) in ids]
        optimizer.add_param_group(group | {"params": body, "lr_share": BODY_LR})


def schedule_lr(schedule: str, lr: float, step: int, steps: int) -> float:
    """The learning rate of one step of a run, the first being 0. triangular: up in a straight line
    for WARMUP of the run, then down to zero just after its end, and never above lr."""
    if schedule == "constant":
        return lr
    if schedule != "triangular":
        raise ValueError(f"unknown schedule {schedule!r}")
    warmup = WARMUP * steps
    return lr * min((step + 1) / warmup, 1.0, (steps - step) / (steps - warmup))


class Muon(torch.optim.Optimizer):
    """Nesterov SGD, but that the steps of groups marked `orthogonal` are orthogonalised.
    Their weights are kept at norm sqrt(outputs), so that lr is relative to them; their scale must
    not matter to the network: find_hidden. (torch.optim.Muon takes only matrices.)
    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; cifar10-airbench."""

    def __init__(self, groups: list[dict[str, Any]], **settings: float) -> None:
        super().__init__(groups, {"weight_decay": 0.0, "orthogonal": False} | settings)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum"] for p in params]
            grads = [p.grad for p in params]
            if group["weight_decay"]:
                grads = torch._foreach_add(grads, params, alpha=group["weight_decay"])
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, grads)
            steps = torch._foreach_add(grads, buffers, alpha=group["momentum"])
            if group["orthogonal"]:
                set_norms(params)
                steps = orthogonalize_each(steps, together=params[0].device.type != "cpu")
            lr = group["lr"]
            if isinstance(lr, Tensor):  # of a CUDA graph, which reads it there
                torch._foreach_mul_(steps, lr)
                lr = 1.0
            torch._foreach_sub_(params, steps, alpha=lr)


@torch.no_grad()
def set_norms(weights: list[Tensor]) -> None:
    """Scale each weight to the norm that Muon keeps it at."""
    scales = torch._foreach_norm(weights)
    torch._foreach_reciprocal_(scales)
    torch._foreach_mul_(scales, [len(weight) ** 0.5 for weight in weights])
    torch._foreach_mul_(weights, scales)


def orthogonalize_each(weights: list[Tensor], together: bool) -> list[Tensor]:
    """Each weight, as a matrix with a row for each output, orthogonalised. Those of one shape are
    so `together` in fewer launches; on a CPU that changes the last bits, and is no faster."""
    if not together:
        return [orthogonalize(weight.flatten(1)).view_as(weight) for weight in weights]
    done = {}
    for shape in dict.fromkeys(weight.shape for weight in weights):
        alike = [i for i, weight in enumerate(weights) if weight.shape == shape]
        matrices = torch.stack([weights[i] for i in alike]).flatten(2)
        done |= zip(alike, orthogonalize(matrices).view(-1, *shape), strict=True)
    return [done[i] for i in range(len(weights))]


def orthogonalize(matrices: Tensor) -> Tensor:
    """Matrices, their singular values brought near one by three Newton-Schulz iterations in bf16.
    Shapes: (rows, columns) or (N, rows, columns), kept."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    if tall := x.shape[-2] > x.shape[-1]:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(3):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


def find_hidden(model: nn.Module, image_size: int) -> list[str]:
    """The weights, by name, whose steps Muon orthogonalises: those of all convolutions but the
    first whose scale the network normalises away.
    By Euler's theorem the derivative of any output by such a scale, <w, dL/dw>, is zero. It is
    taken of a copy in double precision without epsilons, dropout or weights of zero: what is
    found depends on the architecture alone. Where a gradient is all zero, nothing is proved."""
    probe, generator = _copy_in_double(model), torch.Generator().manual_seed(0)
    for layer in probe.modules():
        if isinstance(getattr(layer, "eps", None), float):
            layer.eps = 1e-12
    for p in probe.parameters():
        if p.ndim == 4:
            bound = (3 / p[0].numel()) ** 0.5  # of a variance of one over its inputs
            p.data.uniform_(-bound, bound, generator=generator)
        elif p.ndim != 2:  # biases, which must not be zero either, and scales
            p.data.uniform_(0.5, 1.5, generator=generator)
    weights = {name: p for name, p in probe.named_parameters() if p.ndim == 4}
    logits = _answer(probe, image_size)
    direction = torch.randn(logits.shape, generator=generator, dtype=logits.dtype)
    grads = torch.autograd.grad(logits, list(weights.values()), direction, materialize_grads=True)
    shares = {n: p.detach() * g for (n, p), g in zip(weights.items(), grads, strict=True)}
    free = [n for n, s in shares.items() if s.sum().abs() < SCALE_MATTERS * s.abs().sum()]
    return [name for name in free if name != next(iter(weights))]


@torch.no_grad()
def norms_are_noticed(model: nn.Module, names: list[str], image_size: int) -> bool:
    """Whether weights at the norms that they will be kept at change what the network answers: where
    a normalisation's epsilon counts, the first step would, whatever its learning rate."""
    probe = _copy_in_double(model)
    before = _answer(probe, image_size)
    set_norms([probe.get_parameter(name) for name in names])
    return (_answer(probe, image_size) - before).norm() > 5e-4 * before.norm()


def _copy_in_double(model: nn.Module) -> nn.Module:
    # In evaluation mode, but normalisations take their statistics from what they are given.
    probe = copy.deepcopy(model).cpu().double().eval()
    for layer in probe.modules():
        layer.training = getattr(layer, "running_mean", None) is not None
    return probe


def _answer(probe: nn.Module, image_size: int) -> Tensor:
    """Logits of noise: of small images, or where the network takes no such, of its own size."""

    def answer(side: int) -> Tensor:
        noise = torch.Generator().manual_seed(0)
        # Of two images, each value would be normalised to -1 or 1 whatever it was.
        return probe(torch.randn(3, 3, side, side, generator=noise, dtype=torch.float64))

    with suppress(Exception):  # each network refuses in its own way
        return answer(PROBE_SIDE)
    return answer(image_size)
