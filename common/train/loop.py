"""The one training loop and the one evaluation, shared by whatever trains or measures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from common.base.config import may_mirror
from common.data.batches import Batches, split_batches
from common.train.device import autocast, now_ms, out_of_memory, tf32, threads
from common.train.distributed import ALONE, World

EVAL_BATCH_SIZE = 256
STATISTICS_IMAGES = 2048  # that running statistics are taken from again
CHECK_EVERY = 100  # steps between looks at the losses; each look waits for the device


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; holds the step it did at and the last finite value."""

    def __init__(self, step: int, last: float | None) -> None:
        super().__init__(f"loss not finite at step {step}; last finite loss {last}")
        self.metrics = {"step": step, "last_finite_loss": last}


@dataclass
class Setup:
    """What a step trains with; `model` is the network as it is called, perhaps compiled."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    precision: str = "fp32"
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None  # mean one over the training images
    world: World = ALONE
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        self.step = StepGraph() if self.cuda_graph else train_step
        kind = next(self.model.parameters()).device.type
        # At work only where gradients could underflow.
        self.scaler = torch.amp.GradScaler(kind, enabled=self.precision == "fp16")


class Compiled(nn.Module):
    """A network compiled for batches of the first one's size. Others, the last of every epoch, it
    takes eagerly: compiling takes longer than they ever do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # On CUDA as a graph, for a small batch's kernels take longer to launch than to run.
        mode = "reduce-overhead" if next(model.parameters()).is_cuda else None
        self.model, self.images = model, None
        # Code of its own for every network, whatever was compiled before it.
        alone = {"isolate_recompiles": True} if torch.__version__ >= (2, 14) else {}
        self.compiled = torch.compile(model, mode=mode, dynamic=False, **alone)

    def forward(self, inputs: Tensor) -> Tensor:
        self.images = self.images or len(inputs)
        if len(inputs) != self.images:
            return self.model(inputs)
        if inputs.is_cuda:  # what the last step's graph returned is done with
            torch.compiler.cudagraph_mark_step_begin()
        return self.compiled(inputs)


def train_epoch(
    setup: Setup, order: Sequence[Tensor], lrs: Sequence[float] = (), label: str | None = None
) -> dict[str, float]:
    """Train once on each process's share of every batch of indices or views in `order`, at the
    learning rate of each step, or at the optimiser's own; a label has a progress bar shown.
    Returns: means over images, of the loss as evaluation has it; wall time of the steps.
    Raises: NonFiniteLoss, on a CPU at most CHECK_EVERY steps late, else at the end of the epoch."""
    setup.model.train()
    world, device = setup.world, setup.batches.device
    losses = torch.zeros(len(order), device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    progress = tqdm(world.share(order), desc=label, disable=None if label else True, leave=False)
    # On an accelerator a look at the losses would stall the queue: without a bar it waits for the
    # end. Processes look together: a bar, which only one of them has, must not make one look.
    stalls = device.type != "cpu" and (progress.disable or world.size > 1)
    start_ms = now_ms(device)
    for step, (index, scale) in enumerate(progress):
        threads.look()
        for group in setup.optimizer.param_groups if lrs else ():
            lr = lrs[step] * group.get("lr_share", 1)
            if isinstance(group["lr"], Tensor):  # a CUDA graph reads it there
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        inputs, labels = setup.batches.load(index)
        losses[step], logits = setup.step(setup, inputs, labels, scale)
        if scale != 0:
            correct += (logits.argmax(1) == labels).sum()
        if (step + 1) % CHECK_EVERY == 0 and not stalls:
            check_finite(world.mean(losses[: step + 1]))
            loss = losses[step + 1 - CHECK_EVERY : step + 1].mean()
            progress.set_postfix_str(f"loss {loss:.3f}", refresh=False)
    train_ms = now_ms(device) - start_ms
    losses = world.mean(losses)
    check_finite(losses)
    sizes = torch.tensor([len(index) for index in order], dtype=torch.float64)
    images = int(sizes.sum())
    mean_loss = (losses.cpu().double() @ sizes).item() / images
    acc = world.sum(correct).item() / images
    return {"train_loss": mean_loss, "train_acc": acc, "train_ms": train_ms}


def train_step(
    setup: Setup, inputs: Tensor, labels: Tensor, scale: float | None = None, lap=lambda phase: None
) -> tuple[Tensor, Tensor]:
    """One step on the mean loss, or on the summed loss times `scale`; `lap` is called with the name
    of each phase at its end. Shapes: (B, 3, S, S), (B,) -> (), (B, classes). Returns: the loss
    without smoothing and weights, as evaluation has it, not finite where either is not; logits."""

    def loss_of(logits: Tensor, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
        if scale is None and weights is None:
            return cross_entropy(logits, labels, label_smoothing=smoothing)
        # Not over the batch's weights, as torch's mean is: rare classes shall count more.
        share = 1 / len(labels) if scale is None else scale
        how = {"reduction": "sum", "label_smoothing": smoothing}
        return cross_entropy(logits, labels, weights, **how) * share

    with autocast(inputs.device, setup.precision):
        logits = setup.model(inputs)
    logits = logits.float()
    loss = loss_of(logits, setup.class_weights, setup.label_smoothing)
    lap("forward")
    setup.optimizer.zero_grad(set_to_none=True)
    setup.scaler.scale(loss).backward()
    lap("backward")
    setup.scaler.step(setup.optimizer)
    setup.scaler.update()
    lap("optimizer")
    loss, logits = loss.detach(), logits.detach()
    if setup.label_smoothing or setup.class_weights is not None:
        loss = loss_of(logits) + 0 * loss  # 0 times infinity is NaN
    return loss, logits


def check_finite(losses: Tensor) -> None:
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = int(bad[0])
        raise NonFiniteLoss(step + 1, losses[step - 1].item() if step else None)


class StepGraph:
    """A training step as one CUDA graph, launched for all batches of the first one's shape: a small
    batch's few hundred kernels take longer to launch than to run. What it reads stays where it is:
    inputs, labels, and each learning rate, which becomes a tensor.
    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture"""

    state: Any = None  # of the optimiser whose steps it takes

    def __call__(self, setup: Setup, inputs: Tensor, labels: Tensor, *eager: Any) -> Any:
        """Take the step. Returns: what train_step does, overwritten by the next one."""
        if self.state is not setup.optimizer.state:  # the first step, or another state was loaded
            self.state = setup.optimizer.state
            self.inputs, self.labels = inputs.clone(), labels.clone()
            for group in setup.optimizer.param_groups:
                group["lr"] = torch.tensor(float(group["lr"]), device=inputs.device)
                if "capturable" in group:  # Adam's count of steps is on the device then
                    group["capturable"] = True
            self.steps = graphed(partial(train_step, setup, self.inputs, self.labels))
        if inputs.shape != self.inputs.shape:
            return train_step(setup, inputs, labels, *eager)
        self.inputs.copy_(inputs)
        self.labels.copy_(labels)
        return next(self.steps)


def graphed(work: Callable[[], Any]) -> Iterator[Any]:
    """Do the work at each turn: some times as it is, then by launching the graph recorded of it."""
    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    for _ in range(3):  # in which libraries choose their kernels
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            outputs = work()
        current.wait_stream(stream)
        yield outputs
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # which does nothing yet
        outputs = work()
    while True:
        graph.replay()
        yield outputs


def refresh_statistics(model: nn.Module, batches: Batches, train: Tensor, steps: int) -> int | None:
    """Where a normalisation's running statistics lag behind its weights after so many steps, take
    them again, as means over batches of the first images of `train`; nothing is drawn.
    A running average looks back over 1 / momentum steps. It lags where that is over a hundredth of
    all: at momentum 0.01 and 400 steps a network that has learnt answers at chance.
    Returns: how many images that took, if any. Source: torch.optim.swa_utils.update_bn."""
    # The common base of BatchNorm, SyncBatchNorm and InstanceNorm; torch has no public one.
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    momenta = {layer: layer.momentum for layer in norms if layer.running_mean is not None}
    slow = min(0.1, 100 / steps)
    lagging = {layer: m for layer, m in momenta.items() if m is None or m < slow}
    if not lagging:
        return None
    model.eval()
    index = batches.place(train[:STATISTICS_IMAGES])

    def take(size: int) -> None:
        for layer in lagging:
            layer.reset_running_stats()
            layer.train()
        images = 0
        for part in split_batches(index, size):
            images += len(part)
            for layer in lagging:  # InstanceNorm has no cumulative average of its own
                layer.momentum = len(part) / images
            model(batches.load(part)[0])

    with torch.no_grad():
        within_memory(batches, take)
    for layer, momentum in lagging.items():
        layer.momentum = momentum
    return len(index)


def within_memory(batches: Batches, work: Callable[[int], Any]) -> Any:
    """What `work` returns, given how many images to evaluate at once: EVAL_BATCH_SIZE, or where
    memory does not suffice, half as many, and so on, which then stays so for these batches."""
    while True:
        size = batches.eval_batch_size or EVAL_BATCH_SIZE
        try:
            return work(size)
        except Exception as error:
            if size == 1 or not out_of_memory(error):
                raise
        batches.eval_batch_size = size = size // 2
        print(f"  out of memory: {size} images at once are evaluated from now on", flush=True)


class MirrorMean(nn.Module):
    """A trained network that answers with the mean logits of an image and its mirror image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        # In one pass: each layer is met once, as folding wants it.
        logits = self.model(torch.cat([images, images.flip(-1)]))
        return logits.unflatten(0, (2, -1)).mean(0)


def as_tested(model: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    """The network as its configuration has it answer."""
    return MirrorMean(model) if config.get("tta") and may_mirror(config["dataset"]) else model


def evaluate(model: nn.Module, batches: Batches, index: Tensor) -> Tensor:
    """Logits of the images of `index`, in fp32 whatever the training precision was, so that they
    can be compared between devices and with exports. Shapes: (N,) -> (N, classes), on the CPU."""
    model.eval()
    index = batches.place(index)

    def answer(size: int) -> Tensor:
        logits = []
        for part in index.split(size):
            threads.look()
            logits.append(model(batches.load(part)[0]))
        return torch.cat(logits).cpu()

    with torch.inference_mode(), tf32(False):
        return within_memory(batches, answer)


def score(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy. Shapes: (N, classes), (N,)."""
    acc = (logits.argmax(1) == labels).double().mean().item()
    return cross_entropy(logits.double(), labels).item(), acc
