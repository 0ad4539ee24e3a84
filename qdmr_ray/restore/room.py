"""The memory that correcting a photograph may take: for the maps between the layers, for a strip.

    corrected = as_room_allows(room_on(device, memory), lambda room: run(room))

On a CPU, strips stay small, for the cache. On a GPU each strip is a launch of every kernel of a
step, and what doesn't fit beside the maps has to travel to the host and back: maps and strips take
what is free, and where that turns out to be too much, half of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

T = TypeVar("T")

DEFAULT_MEMORY = 2 * 2**30
# A strip's largest tensor on a CPU. A step has a handful of them; strips then share few rows.
STRIP_BYTES = 96 * 2**20
# On a CPU a strip of this size stays in the cache from layer to layer, and the next strip reuses
# its memory instead of taking it from the system page by page: 15 % of the time.
CACHED_BYTES = 8 * 2**20
# Strips on a GPU. From the largest on, the rows that neighbours share are below 1 % and launches a
# thousandth of the time; tensors stay below the 2**31 numbers that kernels count in 32 bits, also
# where a step's largest has four times as many positions as its result.
LARGEST_STRIP, SMALLEST_STRIP = 2**30, 2**24
# The tensors of a strip's size that a step holds at once: its input, the activated input, the
# result, a widened copy, a convolution's workspace, and what the allocator can't use.
TENSORS = 8
# The share of a GPU's free memory that is taken: its libraries take more while they run.
SHARE = 0.8


@dataclass(frozen=True, kw_only=True)
class Room:
    """Bytes of all ``maps`` in memory together, of a ``strip``'s largest tensor, and of a cache
    which that should fit, if any."""

    maps: int
    strip: int
    cache: int | None = None

    def rows(self, row_bytes: int, *, multiple: int, fewest: int) -> int:
        """Returns the rows of a strip, a multiple of ``multiple``, for tensors with ``row_bytes``
        in a row: as many as the cache holds, but ``fewest`` where the strip's room allows."""
        rows = self.strip // row_bytes
        if self.cache is not None:
            rows = min(rows, max(fewest, self.cache // row_bytes))
        return max(multiple, rows // multiple * multiple)


def room_on(device: torch.device, memory: int | None) -> Room:
    """Returns the room on ``device``, where maps may take ``memory`` bytes; None stands for
    ``DEFAULT_MEMORY`` on a CPU and for what is free on a GPU."""
    if device.type == "cpu":
        maps = DEFAULT_MEMORY if memory is None else memory
        return Room(maps=maps, strip=STRIP_BYTES, cache=CACHED_BYTES)
    free, _ = torch.cuda.mem_get_info(device)
    # What PyTorch has taken from the GPU and doesn't use.
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return share_out(free, memory)


def share_out(free: int, memory: int | None) -> Room:
    """Returns the room on a GPU with ``free`` bytes: half of it at most is for strips, unless
    ``memory`` leaves them more, and the rest, or ``memory``, for maps."""
    free = int(free * SHARE)
    strips = free // 2 if memory is None else max(free // 4, free - memory)
    strip = max(SMALLEST_STRIP, min(LARGEST_STRIP, strips // TENSORS))
    return Room(maps=max(0, free - TENSORS * strip) if memory is None else memory, strip=strip)


def as_room_allows(room: Room, run: Callable[[Room], T]) -> T:
    """Returns ``run(room)``; where the GPU's memory is too little for that, begins again with half
    the room, and so on. Raises torch.OutOfMemoryError where strips can't become smaller."""
    while True:
        try:
            return run(room)
        except torch.OutOfMemoryError:
            if room.strip <= SMALLEST_STRIP:
                raise
        # Here and not above: the error holds the tensors of the step that failed.
        room = replace(room, maps=room.maps // 2, strip=room.strip // 2)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
