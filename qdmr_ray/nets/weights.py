"""Reads weight files from outside; unpickles tensors and nothing else."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdmr_ray.errors import QdmrError

# The first bytes of torch.save's files: since PyTorch 1.6, and before.
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


def load_weight_file(path: Path, remedy: str) -> dict[str, Tensor]:
    """Returns the state dict in ``path``, on the CPU; raises QdmrError, whose message ends with
    ``remedy``, where the file can't be read or holds something else."""
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    # torch.load has no error of its own: a truncated file raises any of several types.
    except Exception as error:
        raise QdmrError(
            f"{path} cannot be read as PyTorch weights ({_reason(path, error)}): {remedy}"
        ) from error
    if not isinstance(state, dict):
        raise QdmrError(
            f"{path} holds a {type(state).__name__}, not a state dict of weights: {remedy}"
        )
    return state


def _reason(path: Path, error: Exception) -> str:
    """Returns the cause in one line. PyTorch's own message would tell how to run the content of a
    refused pickle, and would call a text file such a pickle, or a number."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_ZIP))
    except OSError:
        return first_line(error)
    if not start:
        return "it is empty"
    if start != _ZIP and not start.startswith(_PICKLE):
        return "it is no file that torch.save wrote"
    if isinstance(error, pickle.UnpicklingError):
        return "it holds something other than tensors, which could run code and is not loaded"
    return first_line(error)


def first_line(error: Exception) -> str:
    """Returns an error's message in one line, without a colon at its end."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(":")
