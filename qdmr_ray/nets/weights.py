"""Reading weight files that come from outside: never more than tensors is unpickled."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdmr_ray.errors import QdmrError


def load_weight_file(path: Path, remedy: str) -> dict[str, Tensor]:
    """The state dict in ``path``, on the CPU; ``remedy`` ends each error message.

    Raises:
        QdmrError: the file can't be read, or holds something else.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    # torch.load has no error of its own: a truncated file raises any of several types.
    except Exception as error:
        raise QdmrError(
            f"{path} cannot be read as PyTorch weights ({_reason(error)}): {remedy}"
        ) from error
    if not isinstance(state, dict):
        raise QdmrError(
            f"{path} holds a {type(state).__name__}, not a state dict of weights: {remedy}"
        )
    return state


def _reason(error: Exception) -> str:
    """In one line; PyTorch's own for a refused pickle tells how to run what is in it."""
    if isinstance(error, pickle.UnpicklingError):
        return "it holds something other than tensors, which could run code and is not loaded"
    return first_line(error)


def first_line(error: Exception) -> str:
    """An error in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(":")
