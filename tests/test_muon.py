"""Muon against singular values, torch's own Muon and torch's SGD."""

import copy

import torch
from torch import nn

from common import engine
from common.models import build_model
from common.muon import Muon, orthogonalize


def test_orthogonalizing_keeps_the_directions_and_evens_the_lengths():
    """Against the singular value decomposition, whose U V' is what the iterations approach."""
    torch.manual_seed(0)
    for shape in ((16, 40), (40, 16), (16, 16)):
        matrix = torch.randn(shape)
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        ours = orthogonalize(matrix)
        inner = torch.diagonal(u.mT @ ours @ v.mT)
        assert ours.shape == matrix.shape
        assert ours.dtype == torch.float32
        large = s > s[0] / 10
        assert inner[large].min() > 0.6
        assert inner.max() < 1.3
        rest = u.mT @ ours @ v.mT - torch.diag(inner)
        assert rest.abs().max() < 0.05


def test_iterations_are_those_of_torchs_muon():
    torch.manual_seed(0)
    matrix = nn.Parameter(torch.randn(8, 20))
    matrix.grad = torch.randn(8, 20)
    before = matrix.detach().clone()
    theirs = torch.optim.Muon(
        [matrix], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False, ns_steps=3
    )
    theirs.step()
    step = before - matrix.detach()
    # Both iterate in bf16, in another order of operations.
    assert (step - orthogonalize(matrix.grad)).norm() < 0.05 * step.norm()


def test_a_convolution_keeps_its_norm_and_moves_by_the_rate():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(16, 8, 3, 3))
    weight.grad = torch.randn_like(weight)
    scaled = weight.detach() * 4 / weight.detach().norm()
    Muon([{"params": [weight], "orthogonal": True}], lr=0.1, momentum=0.9).step()
    moved = (weight.detach() - scaled).flatten(1)
    assert 0.6 * 0.1 < torch.linalg.svdvals(moved).median() < 1.3 * 0.1


def test_all_but_the_hidden_convolutions_take_sgds_step():
    model, twin = (build_model("vgg5", 10, seed=1) for _ in range(2))
    ours = engine.build_optimizer(model, "muon", 0.1, 5e-4)
    theirs = engine.build_optimizer(twin, "nesterov", 0.1, 5e-4)
    for group in theirs.param_groups:
        group["momentum"] = engine.MUON_MOMENTUM
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        ours.step()
        theirs.step()
    same = {
        name for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True)
        if torch.allclose(a, b, atol=1e-6)
    }  # fmt: skip
    convolutions = [n for n, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    assert {n for n, _ in model.named_parameters()} - same == {
        f"{name}.weight" for name in convolutions[1:]
    }


def test_its_state_resumes():
    def steps(optimizer, model, n):
        for k in range(n):
            generator = torch.Generator().manual_seed(k)
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()

    whole = build_model("vgg5", 10)
    optimizer = engine.build_optimizer(whole, "muon", 0.1, None)
    steps(optimizer, whole, 2)
    resumed = build_model("vgg5", 10)
    resumed.load_state_dict(whole.state_dict())
    again = engine.build_optimizer(resumed, "muon", 0.1, None)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # else they share buffers
    steps(optimizer, whole, 2)
    steps(again, resumed, 2)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
