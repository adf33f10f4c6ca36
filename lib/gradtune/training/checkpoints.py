"""One file that holds a state whole: written at once or not at all, read without running anything in it."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from gradtune.errors import GradtuneError


def save(state: dict[str, Any], path: Path) -> None:
    """Write `state` to `path`, whole or not at all: a reader of `path` sees the file before or after, never half of it.

    Args:
        state: dicts, lists, tensors, numbers and text.
        path: the file; its folder is made where it is missing.

    Raises:
        GradtuneError: the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        raise GradtuneError(
            f"the checkpoint {path} cannot be written ({error}); free space or choose another path"
        ) from error


def load(path: Path, device: torch.device, key: str = "tuner", writer: str = "gradtune.tune") -> dict[str, Any]:
    """Read what `save` wrote.

    Args:
        path: the file.
        device: where the tensors shall be.
        key: a key that the state has to hold, which tells who wrote it.
        writer: who writes states with this key, as it reads in the message of the error.

    Returns:
        The state, with its tensors on `device`.

    Raises:
        GradtuneError: the file cannot be read, is no whole state, or lacks `key`.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError, ValueError) as error:
        reason = str(error).split("\n")[0][:120]
        raise GradtuneError(f"{path} is no whole checkpoint ({reason}); remove it to start anew") from error
    if not isinstance(state, dict) or key not in state:
        raise GradtuneError(f"{path} is no checkpoint of {writer}; choose another path, or remove the file")
    return state
