"""The loop's measurements between two log lines: means, seconds by phase, broken records."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed
from torch import Tensor

# The exchange between the workers counts broken records in this column.
_BROKEN = "broken_records"


class Meter:
    """Means and durations since they were last taken; tensors stay on their device until then."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._broken = 0
        self._seconds: dict[str, float] = defaultdict(float)
        self._timed = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the block's duration under ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - start

    def add(self, values: dict[str, Tensor], broken: int = 0) -> None:
        """Adds one iteration: its scalars, and the broken records that its batch passed over."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1
        self._timed += 1
        self._broken += broken

    def take(self) -> dict[str, float]:
        """Returns the means over the iterations and all workers, and this worker's seconds per
        iteration by phase; then starts anew. A collective call."""
        # The count is a mean like the others, so that one exchange is enough.
        self._sums[_BROKEN] = torch.tensor(float(self._broken * self._count), device=self._device)
        values = torch.stack([value.double() for value in self._sums.values()]) / self._count
        workers = 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            workers = torch.distributed.get_world_size()
            torch.distributed.all_reduce(values)
            values /= workers
        means = dict(zip(self._sums, values.tolist(), strict=True))
        broken = round(means.pop(_BROKEN) * workers)
        self._sums, self._count, self._broken = {}, 0, 0
        return means | self.take_times() | {_BROKEN: broken}

    def take_times(self) -> dict[str, float]:
        """Returns this worker's seconds per iteration by phase and ``data_wait``'s share;
        restarts."""
        total, iterations = sum(self._seconds.values()), max(1, self._timed)
        per_iteration = {f"time/{k}": v / iterations for k, v in self._seconds.items()}
        waited = self._seconds["data_wait"] / total if total else 0.0
        self._seconds.clear()
        self._timed = 0
        return per_iteration | {"data_wait_fraction": waited}
