"""Checkpoints: saved whole or not at all, loaded without executing anything."""

from pathlib import Path
from typing import Any

import torch

from common.base.cli import UsageError, first_line
from common.base.log import write_atomically


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Save tensors and plain values. Raises: UsageError when the disk does not take them."""
    try:
        write_atomically(path, lambda file: torch.save(content, file))
    except RuntimeError as error:  # torch's zip writer reports a full disk as this
        raise UsageError(f"cannot write {path}: {first_line(error)}") from None


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load what save_checkpoint saved. Raises: UsageError for what is no file of that kind."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        why = None if isinstance(content, dict) else "it holds no dictionary"
    except FileNotFoundError:
        why = "it is not there; train.py writes checkpoints"
    except Exception as error:  # the unpickler meets damage with whatever it stumbles over
        why = first_line(error)
    if why:
        raise UsageError(f"cannot load {path}: {why}")
    return content


def load_weights(model: torch.nn.Module, path: str | Path) -> None:
    """Load a state_dict, plain or in a checkpoint. Raises: UsageError naming what does not fit."""
    content = load_checkpoint(path)
    try:
        model.load_state_dict(content.get("model", content))
    except (RuntimeError, TypeError, AttributeError) as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise UsageError(f"{path} does not fit the network: {first[0].strip()[:200]}") from None
