"""The one training loop and the one evaluation, shared by whatever trains or measures."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from common.base.cli import UsageError
from common.data.batches import Batches, split_batches
from common.speed.timing import now_ms
from common.train.conv import use_matmul
from common.train.distributed import ALONE, World
from common.train.optim import PROBE_SIDE, Muon, find_scale_free, set_norms_if_noticed

MOMENTUM = 0.9
MUON_MOMENTUM = 0.75  # by validation of --preset record on FashionMNIST
WARMUP = 0.2  # share of a triangular schedule before its peak
EVAL_BATCH_SIZE = 256
STATISTICS_IMAGES = 2048  # that running statistics are taken from again
# fp32 means fp32: cuDNN's convolutions would round to TF32, as matrix products by default do not.
torch.backends.cudnn.allow_tf32 = False
CHECK_EVERY = 100  # steps between looks at the losses; each look waits for the device


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; holds the step it did at and the last finite value."""

    def __init__(self, step: int, last_finite_loss: float | None) -> None:
        super().__init__(f"loss not finite at step {step}; last finite loss {last_finite_loss}")
        self.metrics = {"step": step, "last_finite_loss": last_finite_loss}


@dataclass(frozen=True)
class EpochResult:
    """What one pass over the training images gave: means over images, of the loss without label
    smoothing, as evaluation has it; wall time of the steps."""

    loss: float
    acc: float
    train_ms: float


def resolve_device(name: str) -> torch.device:
    """The device asked for; auto takes the accelerator if there is one.

    Raises: UsageError when it is not there. There is no falling back.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return found or torch.device("cpu")
    if name != "cpu" and (found is None or found.type != name):
        has = f"{found.type} and cpu" if found else "cpu only"
        raise UsageError(
            f"--device {name}: not available, torch {torch.__version__} finds {has} here; "
            f"install the torch build and driver for {name}, or ask for another device"
        )
    return torch.device(name)


def resolve_precision(amp: bool, amp_dtype: str, device: torch.device) -> str:
    """fp32, bf16 or fp16: what autocast will really use.

    A CPU without fast bf16 trains in fp32, and the caller says so; a type that was asked for by
    name and is not there is an error.
    Raises: UsageError.
    """
    if not amp:
        return "fp32"
    if device.type == "cpu":
        if amp_dtype == "fp16":
            raise UsageError("--amp-dtype fp16: needs an accelerator; use bf16 or auto on a CPU")
        return "bf16" if amp_dtype == "bf16" or cpu_has_fast_bf16() else "fp32"
    if amp_dtype != "auto":
        return amp_dtype
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "xpu" else "fp16"


def cpu_has_fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware (AVX512-BF16, AMX, or Arm's BF16)."""
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Autocast to the precision, or nothing for fp32."""
    if precision == "fp32":
        return nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype)


def compile_obstacle() -> str | None:
    """What torch.compile lacks on this machine to build for the CPU, and how to get it, or None."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return (
            f"torch.compile needs a C++ compiler and {compiler} is not there: apt-get install g++"
        )
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "torch.compile needs Python's headers: apt-get install python3-dev"
    return None


def prepare_forward(model: nn.Module, compile: bool, channels_last: bool = True) -> nn.Module:
    """The network as a training step calls it: compiled, or with convolutions by matrix products,
    which keep to channels_last. On CUDA a compiled network is replayed as a CUDA graph, for a
    small batch's kernels take longer to launch than to run."""
    if compile:
        on_cuda = next(model.parameters()).is_cuda
        mode = "reduce-overhead" if on_cuda else None
        # Code of its own for every network and size of batch, whatever was compiled before it.
        return torch.compile(model, mode=mode, dynamic=False, isolate_recompiles=True)
    if channels_last:
        use_matmul(model)
    return model


def without_kept_kernels(compiled: bool) -> AbstractContextManager[Any]:
    """Inside, torch.compile finds none of the kernels that it keeps on the disk and in memory: what
    it takes is the price of a first time. Nothing where nothing is compiled."""
    if not compiled:
        return nullcontext()
    from torch._inductor.utils import fresh_cache  # torch has no public way to do it in a process

    return fresh_cache()


def make_deterministic() -> None:
    """Use no algorithm that adds in an order of chance; an operation that has no other raises.

    Source: https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def build_optimizer(
    model: nn.Module, opt: str, lr: float, weight_decay: float | None, image_size: int = PROBE_SIDE
) -> torch.optim.Optimizer:
    """An optimiser by name; weight_decay None leaves its own default.

    sgd, adam and adamw treat every parameter alike. nesterov and muon spare biases and BatchNorm
    from weight decay; muon orthogonalises the steps of those convolutions but the first whose scale
    the network normalises away, and may set their scale.
    """
    extra: dict[str, Any] = {} if weight_decay is None else {"weight_decay": weight_decay}
    if opt in ("sgd", "nesterov"):  # torch's fused SGD is the slower one on a CPU
        extra["fused"] = next(model.parameters()).device.type != "cpu"
    if opt == "sgd":
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=MOMENTUM, **extra)
    if opt in ("nesterov", "muon"):
        vectors = [p for p in model.parameters() if p.ndim == 1]
        matrices = [p for p in model.parameters() if p.ndim > 1]
        if opt == "nesterov":
            groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
            return torch.optim.SGD(groups, lr=lr, momentum=MOMENTUM, nesterov=True, **extra)
        names = find_hidden(model, image_size)
        set_norms_if_noticed(model, names, image_size)
        hidden = [model.get_parameter(name) for name in names]
        ends = [p for p in matrices if all(p is not h for h in hidden)]
        groups = [
            {"params": hidden, "weight_decay": 0.0, "orthogonal": True},
            {"params": ends}, {"params": vectors, "weight_decay": 0.0},
        ]  # fmt: skip
        return Muon(groups, lr, MUON_MOMENTUM, **extra)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[opt]
    return kind(model.parameters(), lr=lr, fused=True, **extra)


def find_hidden(model: nn.Module, image_size: int) -> list[str]:
    """The weights, by name, whose steps Muon orthogonalises."""
    first = next((name for name, p in model.named_parameters() if p.ndim == 4), None)
    return [name for name in find_scale_free(model, image_size) if name != first]


def schedule_lr(schedule: str, lr: float, step: int, steps: int) -> float:
    """The learning rate of one step of a run, the first being 0.

    triangular: up in a straight line for WARMUP of the run, then down to zero just after its end.
    Where the corner lies between two steps, the lines would pass lr at one of them.
    """
    if schedule == "constant":
        return lr
    warmup = WARMUP * steps
    return lr * min((step + 1) / warmup, 1.0, (steps - step) / (steps - warmup))


def build_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """A gradient scaler, at work only where gradients could underflow: in fp16."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
    inputs: Tensor, labels: Tensor, precision: str, label_smoothing: float = 0.0,
    scale: float | None = None, lap: Callable[[str], None] = lambda phase: None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One step on the mean loss, or on the summed loss times `scale`; `lap` is called with the name
    of each phase at its end.

    Shapes: inputs (B, 3, S, S), labels (B,) -> loss (), logits (B, classes).
    Returns: the loss without smoothing, as evaluation has it; not finite where either is not.
    """
    if inputs.is_cuda:  # what the last step's graph returned is done with
        torch.compiler.cudagraph_mark_step_begin()  # on a CPU it would import inductor, for 0.7 s
    with autocast(inputs.device, precision):
        logits = model(inputs)
    logits = logits.float()
    loss = _scaled_loss(logits, labels, label_smoothing, scale)
    lap("forward")
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    lap("backward")
    scaler.step(optimizer)
    scaler.update()
    lap("optimizer")
    loss, logits = loss.detach(), logits.detach()
    if label_smoothing:
        loss = _scaled_loss(logits, labels, 0.0, scale) + 0 * loss  # 0 times infinity is NaN
    return loss, logits


def _scaled_loss(
    logits: Tensor, labels: Tensor, label_smoothing: float, scale: float | None
) -> Tensor:
    """The mean over images, or the sum times `scale`."""
    if scale is None:
        return cross_entropy(logits, labels, label_smoothing=label_smoothing)
    total = cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="sum")
    return total * scale


def train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
    batches: Batches, order: Sequence[Tensor], precision: str, label: str | None = None, *,
    lrs: Sequence[float] | None = None, label_smoothing: float = 0.0, world: World = ALONE,
) -> EpochResult:  # fmt: skip
    """Train on every batch of indices or views in `order`, once, at the learning rate of each
    step, or at the optimiser's own; each process of `world` on its share of every batch.

    With a label a progress bar is shown on a terminal.
    Raises: NonFiniteLoss, on a CPU at most CHECK_EVERY steps late, else at the end of the epoch.
    """
    model.train()
    device = batches.device
    losses = torch.zeros(len(order), device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    seen = 0
    shares, scales = world.share(order)
    progress = tqdm(shares, desc=label, disable=None if label else True, leave=False)
    start_ms = now_ms(device)
    for step, index in enumerate(progress, 1):
        if lrs:
            for group in optimizer.param_groups:
                group["lr"] = lrs[step - 1]
        inputs, labels = batches.load(index)
        scale = scales[step - 1]
        loss, logits = train_step(
            model, optimizer, scaler, inputs, labels, precision, label_smoothing, scale
        )
        losses[step - 1] = loss
        if scale != 0:
            correct += (logits.argmax(1) == labels).sum()
            seen += len(index)
        # On an accelerator a look would stall the queue: without a bar it waits for the end.
        # Processes look together: a bar, which only one of them has, must not make one look.
        stalls = device.type != "cpu" and (progress.disable or world.size > 1)
        if step % CHECK_EVERY == 0 and not stalls:
            _check_finite(world.mean(losses[:step]))
            progress.set_postfix_str(
                f"loss {losses[step - CHECK_EVERY : step].mean():.3f}, acc {correct / seen:.4f}, "
                f"{seen / (now_ms(device) - start_ms) * 1e3:.0f} images/s", refresh=False,
            )  # fmt: skip
    train_ms = now_ms(device) - start_ms
    losses = world.mean(losses)
    _check_finite(losses)
    sizes = torch.tensor([len(index) for index in order], dtype=torch.float64)
    total = int(sizes.sum())
    mean_loss = (losses.cpu().double() @ sizes).item() / total
    return EpochResult(mean_loss, world.sum(correct).item() / total, train_ms)


def _check_finite(losses: Tensor) -> None:
    finite = losses.isfinite()
    if not finite.all():
        step = int((~finite).nonzero()[0])
        raise NonFiniteLoss(step + 1, losses[step - 1].item() if step else None)


def refresh_statistics(model: nn.Module, batches: Batches, train: Tensor, steps: int) -> int | None:
    """Where a normalisation's running statistics lag behind its weights after so many steps of
    training, take them again, as means over batches of the first images of `train`.

    A running average looks back over 1 / momentum steps. It lags where that is over a hundredth of
    all: at momentum 0.01 and 400 steps a network that has learnt answers at chance. torch's own
    momentum of 0.1 is left alone. Nothing else is in training mode, and nothing is drawn.
    Shapes: train (N,).
    Returns: how many images that took, None where the running statistics stay.
    Source: torch.optim.swa_utils.update_bn.
    """
    lagging = {layer: layer.momentum for layer in model.modules() if _lags(layer, steps)}
    if not lagging:
        return None
    model.eval()
    for layer in lagging:
        layer.reset_running_stats()
        layer.train()
    images = 0
    with torch.no_grad():
        for part in split_batches(train[:STATISTICS_IMAGES].to(batches.home), EVAL_BATCH_SIZE):
            images += len(part)
            for layer in lagging:  # InstanceNorm has no cumulative average of its own
                layer.momentum = len(part) / images
            model(batches.load(part)[0])
    for layer, momentum in lagging.items():
        layer.momentum = momentum
    return images


def _lags(layer: nn.Module, steps: int) -> bool:
    # The common base of BatchNorm, SyncBatchNorm and InstanceNorm; torch has no public one.
    if not isinstance(layer, nn.modules.batchnorm._NormBase) or layer.running_mean is None:
        return False
    momentum = layer.momentum
    return momentum is None or (momentum < 0.1 and momentum * steps < 100)


def evaluate(model: nn.Module, batches: Batches, index: Tensor) -> Tensor:
    """Logits of the images of `index`, in fp32 whatever the training precision was: a row's
    accuracy is that of the weights, comparable between devices and with exports.

    Shapes: index (N,) -> (N, classes) float32, on the CPU.
    """
    model.eval()
    with torch.inference_mode():
        parts = index.to(batches.home).split(EVAL_BATCH_SIZE)
        return torch.cat([model(batches.load(part)[0]) for part in parts]).cpu()


def score(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy. Shapes: (N, classes), (N,)."""
    acc = (logits.argmax(1) == labels).double().mean().item()
    return cross_entropy(logits.double(), labels).item(), acc
