"""A whole training step as one CUDA graph: the few hundred kernels of a step on a small batch take
longer to launch one by one than to run. Written after PyTorch's notes, never run on a card yet.
Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

WARMUP_STEPS = 3  # before recording, in which libraries choose their kernels
Work = Callable[[], tuple[Tensor, Tensor]]


class StepGraph:
    """A step of a loop.Setup on batches of one shape, recorded at the first of them. What a replay
    reads stays where it is: inputs, labels, and each learning rate, which becomes a tensor."""

    def __init__(self, step: Callable, setup: Any, *batch: Tensor) -> None:
        self.inputs, self.labels = (part.clone() for part in batch)
        for group in setup.optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=self.inputs.device)
            if "capturable" in group:  # Adam's count of steps is on the device then
                group["capturable"] = True
        self.replay = record(lambda: step(setup, self.inputs, self.labels), unchanged(setup))

    def __call__(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Take the step. Returns: what it returned when recorded, overwritten by the next step."""
        self.inputs.copy_(inputs)
        self.labels.copy_(labels)
        return self.replay()


def record(work: Work, warming_up: AbstractContextManager) -> Work:
    """Record what `work` launches as a graph. Returns: a function that launches it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with warming_up, torch.cuda.stream(stream):
        for _ in range(WARMUP_STEPS):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = work()

    def replay() -> tuple[Tensor, Tensor]:
        graph.replay()
        return outputs

    return replay


@contextmanager
def unchanged(setup: Any) -> Iterator[None]:
    """What steps inside change is as before in the end, in the same memory, random numbers too."""
    weights = [*setup.model.parameters(), *setup.model.buffers()]
    tensors = {id(tensor): tensor.detach().clone() for tensor in weights}
    states = setup.optimizer.state
    tensors |= {id(value): value.clone() for state in states.values() for value in state.values()}
    scale = setup.scaler.state_dict()
    with torch.random.fork_rng([tensor.device for tensor in weights[:1] if tensor.is_cuda]):
        yield
    setup.scaler.load_state_dict(scale)
    weights += [value for state in states.values() for value in state.values()]
    with torch.no_grad():
        for tensor in weights:
            # An optimiser that had taken no step begins at zero.
            tensor.copy_(tensors.get(id(tensor), torch.zeros_like(tensor)))
