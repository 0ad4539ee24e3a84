"""Copies of the tensors that training changes, taken between two steps."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class HostMemory:
    """Copies of a state's tensors, in memory that the next state's copies reuse. Copies from a GPU
    go to pinned memory, all at once; fresh memory would cost as much again."""

    def __init__(self) -> None:
        self._tensors: dict[tuple[Any, ...], Tensor] = {}

    def copy(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns a deep copy of ``state`` on the CPU; valid until the next call."""
        threads = torch.get_num_threads()
        # Threads would wait for each other at each of some thousand tensors: on a busy machine that
        # takes seconds, while one thread takes a tenth of a second.
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
            # Without the metadata's versions, some modules take the state for an old one.
            if hasattr(value, "_metadata"):
                copied._metadata = value._metadata  # type: ignore[attr-defined]
            return copied
        if isinstance(value, list | tuple):
            return type(value)(self._copy(item, (*place, i)) for i, item in enumerate(value))
        return value

    def _tensor(self, tensor: Tensor, place: tuple[Any, ...]) -> Tensor:
        kept = self._tensors.get(place)
        if kept is None or _layout(kept) != _layout(tensor):
            kept = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            self._tensors[place] = kept
        return kept.copy_(tensor, non_blocking=True)


def _layout(tensor: Tensor) -> Any:
    return tensor.dtype, tensor.shape, tensor.stride()
