"""What the loop counts between two lines of its log: means of figures, seconds by phase."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed
from torch import Tensor


@dataclass
class Averages:
    """Means of figures since they were last taken; tensors stay on their device until then."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0

    def add(self, figures: dict[str, Tensor]) -> None:
        """Adds one iteration's scalars."""
        for name, value in figures.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1

    def take(self) -> dict[str, float]:
        """Means over the iterations and over all workers (a collective call), then starts anew."""
        values = torch.stack([value.double() for value in self.sums.values()]) / self.count
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(values)
            values /= torch.distributed.get_world_size()
        means = dict(zip(self.sums, values.tolist(), strict=True))
        self.sums, self.count = {}, 0
        return means


class Clock:
    """Seconds spent per phase, and iterations, since they were last taken."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._iterations = 0

    def tick(self) -> None:
        """Counts an iteration."""
        self._iterations += 1

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the block's duration under ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """Seconds per iteration by phase and the share of data_wait, then starts anew."""
        total, iterations = sum(self._seconds.values()), max(1, self._iterations)
        per_iteration = {f"time/{k}": v / iterations for k, v in self._seconds.items()}
        waited = self._seconds["data_wait"] / total if total else 0.0
        self._seconds.clear()
        self._iterations = 0
        return per_iteration | {"data_wait_fraction": waited}
