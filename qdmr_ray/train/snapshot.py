"""Copies of what training changes, taken between two steps: tensors and random states."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


class HostMemory:
    """Copies of a state's tensors in memory that is used again for the next one.

    From a GPU they go to pinned memory, all at once; fresh memory would cost as much again.
    """

    def __init__(self) -> None:
        self._tensors: dict[tuple[Any, ...], Tensor] = {}

    def copy(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """A deep copy of ``state`` on the CPU; valid until the next call."""
        threads = torch.get_num_threads()
        # Threads would wait for each other at each of some thousand tensors: on a busy machine
        # that takes seconds, and one thread a tenth of a second.
        torch.set_num_threads(1)
        try:
            copied: Mapping[str, Any] = self._copy(state, ())
        finally:
            torch.set_num_threads(threads)
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()
        return copied

    def _copy(self, value: Any, place: tuple[Any, ...]) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value.detach(), place)
        if isinstance(value, Mapping):
            copied = type(value)(  # type: ignore[call-arg]
                (key, self._copy(item, (*place, key))) for key, item in value.items()
            )
            # Versions of the modules, without which some would take the state for an old one.
            if hasattr(value, "_metadata"):
                copied._metadata = value._metadata  # type: ignore[attr-defined]
            return copied
        if isinstance(value, list | tuple):
            return type(value)(self._copy(item, (*place, i)) for i, item in enumerate(value))
        return value

    def _tensor(self, tensor: Tensor, place: tuple[Any, ...]) -> Tensor:
        kept = self._tensors.get(place)
        if kept is None or kept.dtype != tensor.dtype or not _laid_out_alike(kept, tensor):
            kept = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            self._tensors[place] = kept
        return kept.copy_(tensor, non_blocking=True)


def _laid_out_alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.stride() == other.stride()


def random_state(device: torch.device) -> dict[str, Any]:
    """States of this process's random generators: PyTorch's on CPU and ``device``, NumPy's and
    Python's; tensors and plain values only."""
    legacy: Any = np.random.get_state()  # noqa: NPY002
    numpy_name, numpy_key, *numpy_rest = legacy
    version, python_key, python_next = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [str(numpy_name), torch.tensor(numpy_key.astype(np.int64)), *numpy_rest],
        "python": [version, torch.tensor(python_key), python_next],
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Puts this process's random generators back to where :func:`random_state` found them."""
    torch.set_rng_state(state["torch"])
    name, numpy_key, *numpy_rest = state["numpy"]
    np.random.set_state((name, numpy_key.numpy().astype(np.uint32), *numpy_rest))  # noqa: NPY002
    version, python_key, python_next = state["python"]
    random.setstate((version, tuple(python_key.tolist()), python_next))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
