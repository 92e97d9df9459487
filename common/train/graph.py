"""A whole training step as one CUDA graph: the few hundred kernels of a step on a small batch take
longer to launch one by one than to run. Written after PyTorch's notes, never run on a card yet.
Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

WARMUP_STEPS = 3  # before recording, in which libraries choose their kernels
Work = Callable[[], tuple[Tensor, Tensor]]


class StepGraph:
    """A training step on batches of one shape, recorded at the first of them. What a replay reads
    stays where it is: inputs, labels, and each group's learning rate, which becomes a tensor."""

    def __init__(
        self,
        step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        batch: tuple[Tensor, Tensor],
    ) -> None:
        self.inputs, self.labels = (part.clone() for part in batch)
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=self.inputs.device)
            if "capturable" in group:  # Adam's count of steps is on the device then
                group["capturable"] = True
        kept = unchanged(model, optimizer, scaler)
        self.replay = record(lambda: step(self.inputs, self.labels), kept)

    def takes(self, inputs: Tensor) -> bool:
        return inputs.shape == self.inputs.shape

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
def unchanged(
    model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> Iterator[None]:
    """What steps inside change is as before in the end, in the same memory, random numbers too."""
    weights = [*model.parameters(), *model.buffers()]
    before = [tensor.detach().clone() for tensor in weights]
    held = {
        p: {name: value.clone() for name, value in state.items() if isinstance(value, Tensor)}
        for p, state in optimizer.state.items()
    }
    scale, cuda = scaler.state_dict(), [t.device for t in weights[:1] if t.is_cuda]
    with torch.random.fork_rng(cuda):
        yield
    scaler.load_state_dict(scale)
    with torch.no_grad():
        for tensor, value in zip(weights, before, strict=True):
            tensor.copy_(value)
        for p, state in optimizer.state.items():
            for name, value in state.items():
                if p in held:
                    value.copy_(held[p][name])
                elif value is not None:  # an optimiser that has taken no step begins at zero
                    value.zero_()
