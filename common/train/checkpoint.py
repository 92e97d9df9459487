"""Checkpoints: saved whole or not at all, loaded without executing anything."""

import warnings
from pathlib import Path
from typing import Any

import torch

from common.base.cli import UsageError
from common.base.log import write_atomically


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Save tensors and plain values. Raises: UsageError when the disk does not take them."""
    try:
        write_atomically(path, lambda file: torch.save(content, file))
    except RuntimeError as error:  # torch's zip writer reports a full disk as this
        raise UsageError(f"cannot write {path}: free some space and run again") from error


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load what save_checkpoint saved. Raises: UsageError for what is no file of that kind."""
    hint = "give one that train.py wrote, or torch.save(model.state_dict(), FILE)"
    try:
        with warnings.catch_warnings(action="ignore"):  # of what the error then says
            content = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(content, dict):
            return content
        why, cause = "it holds no dictionary of tensors", None
    except OSError as error:
        why, cause = error.strerror or str(error), None
    except Exception as error:  # the unpickler meets damage with whatever it stumbles over
        why, cause = "it is damaged, or holds more than tensors and plain values", error
    raise UsageError(f"cannot load {path}: {why}; {hint}") from cause


def load_weights(model: torch.nn.Module, path: str | Path) -> None:
    """Load a state_dict, plain or in a checkpoint. Raises: UsageError where it does not fit."""
    content = load_checkpoint(path)
    try:
        model.load_state_dict(content.get("model", content))
    except (RuntimeError, TypeError, AttributeError) as error:
        hint = "give weights of the same --model, for as many classes"
        raise UsageError(f"{path} does not fit the network: {hint}") from error
