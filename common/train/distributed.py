"""One training in several processes, by torchrun --nproc-per-node 2 train.py: each trains on its
share of every batch; gradients are averaged before every step, so that all hold the same weights.
The first decides what is trained and alone writes; one that fails has torchrun end the rest."""

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from common.base.cli import UsageError, first_line


@dataclass(frozen=True)
class World:
    """The processes of one training; with one process every method gives back what it is given."""

    rank: int = 0
    size: int = 1
    sync_bn: bool = False

    def from_first(self, value: Any = None) -> Any:
        """The first process's value, in every process."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def share(self, order: Sequence[Tensor]) -> list[tuple[Tensor, float | None]]:
        """This process's part of each batch, and what its summed loss is multiplied by: the average
        over the processes is then the batch's mean, whatever the parts' sizes; one alone: None."""
        if self.size == 1:
            return [(batch, None) for batch in order]
        shares = []
        for batch in order:
            # BatchNorm cannot train on a single 1x1 feature map, but for SyncBatchNorm, which
            # counts a part of no image rightly too. Whoever else gets none takes part with images
            # of another's, which count nothing.
            active = self.size if self.sync_bn else max(1, min(self.size, len(batch) // 2))
            counts = self.rank < active
            part = batch.tensor_split(active)[self.rank] if counts else batch[:2]
            shares.append((part, self.size / len(batch) if counts else 0.0))
        return shares

    def sum(self, values: Tensor) -> Tensor:
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        return self.sum(values) / self.size

    def evaluate(self, forward: Callable[[Tensor], Tensor], index: Tensor, block: int) -> Tensor:
        """Outputs for every image, each computed in one process, in blocks as by one process.
        Shapes: index (N,), forward (B,) -> (B, classes) on the CPU; to (N, classes)."""
        if self.size == 1:
            return forward(index)
        blocks = index.split(block)
        first, end = (len(blocks) * r // self.size for r in (self.rank, self.rank + 1))
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, [forward(part) for part in blocks[first:end]])
        return torch.cat([outputs for part in gathered for outputs in part])

    @contextmanager
    def ending_together(self, *known: type[Exception]) -> Iterator[None]:
        """Raises: SystemExit for any error that the other processes may not have met."""
        try:
            yield
        except Exception as error:
            if self.size == 1 or isinstance(error, known):
                raise
            sys.exit(first_line(error))

    def leave(self, status: int) -> int:
        """End well, with this exit status: every process has done its work."""
        if self.size > 1:
            dist.destroy_process_group()
            # Gloo's threads live on (torch 2.14). One that gives back a tensor while Python takes
            # the process down aborts it, so the process ends before that.
            atexit.register(os._exit, status)
        return status


ALONE = World()


def join_world(devices: Sequence[str]) -> World:
    """Meet the other processes that torchrun started, if it did. On an accelerator each takes a
    device of its own. Raises: UsageError where there are too few of them."""
    size = int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1
    if size == 1:
        return ALONE
    backend = "cpu:gloo"
    for kind in {name for name in devices if name != "cpu"}:
        here, there = int(os.environ["LOCAL_WORLD_SIZE"]), torch.accelerator.device_count()
        if here > there:
            why = f"{here} processes want a {kind} each, and this machine has {there}"
            raise UsageError(f"--nproc-per-node: {why}; start fewer, or give --device cpu")
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
        backend += f",{kind}:{dist.get_default_backend_for_device(kind)}"
    # Restarted processes meet in the store of those before (torch 2.14): each attempt has its part
    # of it, so that none reads the address of a process that is gone.
    store, rank, size = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    return World(rank, size)
