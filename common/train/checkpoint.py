"""Checkpoints: saved whole or not at all, loaded without executing anything; and networks that
start from them."""

import io
import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.base.cli import UsageError
from common.base.config import PUBLISHED, TrainConfig
from common.base.log import write_atomically
from common.models import build_model, build_on_meta, load_published

# Where people keep a state_dict in a file, and what DataParallel, torch.compile and Lightning put
# before each name.
WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.", "model.")


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Save tensors and plain values. Raises: UsageError when the disk does not take them."""
    # First to memory: what interrupts torch's zip writer while it writes a file, as Ctrl-C does or
    # a full disk, it raises as a RuntimeError of its own.
    whole = io.BytesIO()
    torch.save(content, whole)
    write_atomically(path, whole.getbuffer())


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load what save_checkpoint saved. Raises: UsageError for what is no file of that kind."""
    why, cause = "it holds no dictionary of tensors", None
    try:
        with warnings.catch_warnings(action="ignore"):  # of what the error then says
            content = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(content, dict):
            return content
    except OSError as error:
        why = error.strerror or str(error)
    except Exception as error:  # the unpickler meets damage with whatever it stumbles over
        why, cause = "it is damaged, or holds more than tensors and plain values", error
        if Path(path).read_bytes().startswith(b"version https://git-lfs"):
            why, cause = "it is a pointer of Git LFS; git lfs pull brings the file itself", None
        elif isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower():
            why = "it holds Python objects, perhaps a pickled network, and loading them runs code"
    hint = "give one that train.py wrote, or torch.save(model.state_dict(), FILE)"
    raise UsageError(f"cannot load {path}: {why}; {hint}") from cause


def load_weights(
    model: nn.Module, content: Any, path: str | Path, head: Sequence[str] = ()
) -> bool:
    """Load a state_dict as people keep it: plain or in a checkpoint, its names with prefixes. The
    weights named in `head` stay as they are where those of the file at `path` are of other classes.
    Returns: whether they do. Raises: UsageError where it does not fit."""
    own = model.state_dict()
    state = next((content[n] for n in WRAPPERS if isinstance(content.get(n), dict)), content)
    try:
        for prefix in PREFIXES * 2:  # in any order
            if state and not state.keys() & own.keys() and all(k.startswith(prefix) for k in state):
                state = {name.removeprefix(prefix): value for name, value in state.items()}
        new = any(getattr(state.get(n), "shape", None) != own[n].shape for n in head)
        model.load_state_dict(state | {name: own[name] for name in head if new})
        return new
    except (RuntimeError, TypeError, AttributeError) as error:
        hint = "give weights of the same --model and --image-size"
        raise UsageError(f"{path} does not fit the network: {hint}") from error


def new_model(config: TrainConfig, classes: int) -> tuple[nn.Module, list[str], bool]:
    """The network before its first step: drawn from the seed, or read from --weights. Returns also
    its head, the weights whose shapes depend on the classes, and whether they are drawn all the
    same, as those of --weights are of other classes. Raises: UsageError."""
    model = build_model(config.model, classes, config.seed, config.image_size)
    if not config.weights:
        return model, [], False
    own = model.state_dict()
    other = build_on_meta(config.model, classes + 1, config.image_size).state_dict()
    head = [name for name in own if own[name].shape != other[name].shape]
    if config.weights == PUBLISHED:  # without the second outputs, which only training has
        kept = own.keys() - set(head)
        content = {k: v for k, v in load_published(config.model).items() if k in kept}
    else:
        content = load_checkpoint(config.weights)
    new = load_weights(model, content, config.weights, head)
    layers = {model.get_submodule(name.rpartition(".")[0]) for name in head}
    if config.freeze and (len(layers) != 1 or not isinstance(*layers, nn.Linear)):
        why = f"{config.model} does not end in one linear layer"
        raise UsageError(f"--freeze: {why}; take another network, such as resnet18")
    return model, head, new
