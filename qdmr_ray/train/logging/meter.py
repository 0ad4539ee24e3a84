"""The loop's measurements between two log lines: means, seconds by phase, pace, broken records."""

from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from qdmr_ray.train.logging.clocks import HostClock

# The exchange between the workers counts broken records in this column.
_BROKEN = "broken_records"
_DATA_WAIT = "data_wait"


class Meter:
    """Means and durations since they were last taken; tensors stay on their device until then.

    A GPU works beside the host, so what it does is timed by marks in the order of its work, which
    are read once it has passed them: nothing waits for it. An iteration has ``samples`` samples, of
    all workers together."""

    def __init__(self, device: torch.device, clock: HostClock, samples: int) -> None:
        self._device, self._clock, self._samples = device, clock, samples
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._count = 0
        self._broken = 0
        self._seconds: dict[str, float] = defaultdict(float)
        # Name, start and end of what the device may still have to do.
        self._marked: deque[tuple[str, Any, Any]] = deque()
        self._timed = 0
        self._since = clock.seconds()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the block's duration under ``name``."""
        start = self._clock.seconds()
        try:
            yield
        finally:
            self._seconds[name] += self._clock.seconds() - start

    @contextmanager
    def device_phase(self, name: str) -> Iterator[None]:
        """Counts under ``name`` how long the device takes for what the block asks of it, beginning
        when it has done all that was asked before. If the block asks for nothing but takes longer
        than the device still has work, that is the time for which the device stands still."""
        start = self._clock.mark()
        yield
        self._marked.append((name, start, self._clock.mark()))

    def data_wait(self) -> Any:
        """Counts for how long the device stands still while the block loads a batch."""
        return self.device_phase(_DATA_WAIT)

    def catch_up(self) -> None:
        """Waits for the device; for what reads from it next, and would wait under its own name."""
        self._clock.wait()

    def add(self, names: tuple[str, ...], values: Tensor, broken: int = 0) -> None:
        """Adds one iteration: its scalars ``values`` (N,), and the broken records that its batch
        passed over."""
        self._sums[names] = self._sums[names] + values if names in self._sums else values
        self._count += 1
        self._timed += 1
        self._broken += broken
        self._read_marks()

    def take(self) -> dict[str, float]:
        """Returns the means over the iterations and all workers, this worker's seconds per
        iteration by phase, and the pace; then starts anew. A collective call, which waits for the
        device."""
        # The count is a mean like the others, so that one exchange is enough.
        self._sums[_BROKEN,] = torch.tensor([self._broken * self._count], device=self._device)
        values = torch.cat([row.double() for row in self._sums.values()]) / self._count
        workers = 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            workers = torch.distributed.get_world_size()
            torch.distributed.all_reduce(values)
            values /= workers
        means: dict[str, float] = defaultdict(float)
        for name, mean in zip(chain.from_iterable(self._sums), values.tolist(), strict=True):
            means[name] += mean
        broken = round(means.pop(_BROKEN) * workers)
        self._sums, self._count, self._broken = {}, 0, 0
        return means | self._times() | {_BROKEN: broken}

    def restart(self) -> None:
        """Forgets the durations so far, which are no measure of what follows."""
        self._clock.wait()
        self._marked.clear()
        self._seconds.clear()
        self._timed = 0
        self._since = self._clock.seconds()

    def _times(self) -> dict[str, float]:
        self._clock.wait()
        self._read_marks()
        elapsed, iterations = self._clock.seconds() - self._since, self._timed
        times = {f"time/{name}": value / iterations for name, value in self._seconds.items()}
        waited = self._seconds[_DATA_WAIT] / elapsed
        self.restart()
        return times | {
            "data_wait_fraction": waited,
            "samples_per_second": self._samples * iterations / elapsed,
        }

    def _read_marks(self) -> None:
        while self._marked and self._clock.has_passed(self._marked[0][2]):
            name, start, end = self._marked.popleft()
            self._seconds[name] += self._clock.between(start, end)
