"""Muon: momentum SGD whose steps are orthogonalised, for the convolutions of hidden layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ_STEPS = 3
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Nesterov SGD, but that the steps of groups marked `orthogonal` are orthogonalised.

    An orthogonal group's weights are kept at norm sqrt(outputs), so that lr is relative to them.
    Their scale must not matter to the network, as that of a convolution before BatchNorm does
    not. (torch.optim.Muon takes only matrices, and would need a second optimiser beside it.)
    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; cifar10-airbench.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, momentum: float,
        weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "orthogonal": False
        }  # fmt: skip
        super().__init__(list(groups), defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step of every group. A closure is not taken: there is no loss to give back."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p, step in zip(params, self._nesterov(params, group), strict=True):
                if group["orthogonal"]:
                    p.mul_(len(p) ** 0.5 / p.norm())
                    step = orthogonalize(step.reshape(len(p), -1)).view_as(p)
                p.sub_(step, alpha=group["lr"])

    def _nesterov(self, params: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        if not params:
            return []
        for p in params:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum"] for p in params]
        grads = [p.grad for p in params]
        if group["weight_decay"]:
            grads = torch._foreach_add(grads, params, alpha=group["weight_decay"])
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, grads)
        return list(torch._foreach_add(grads, buffers, alpha=group["momentum"]))


def orthogonalize(matrix: Tensor) -> Tensor:
    """The matrix with its singular values brought near one, by Newton-Schulz iterations in bf16.

    Shapes: (m, n) -> (m, n).
    """
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    if tall := len(x) > x.shape[1]:
        x = x.mT
    x = x / (x.norm() + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)
