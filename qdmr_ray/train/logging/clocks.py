"""The clocks of a training device: the host's, and marks in the order of the device's own work."""

import time
from typing import Any

import torch


class HostClock:
    """The clock of a CPU, whose work is done when the call returns that asks for it."""

    def seconds(self) -> float:
        """Returns the host's time, in seconds since some moment."""
        return time.perf_counter()

    def mark(self) -> Any:
        """Returns a mark that the device passes when it has done all that was asked of it so
        far."""
        return time.perf_counter()

    def has_passed(self, mark: Any) -> bool:
        """Returns whether the device has passed a mark."""
        return True

    def between(self, start: Any, end: Any) -> float:
        """Returns the seconds between two marks, both passed."""
        return float(end - start)

    def wait(self) -> None:
        """Returns when the device has done all that was asked of it so far."""


class GpuClock(HostClock):
    """The clock of a GPU, which works beside the host; its marks are CUDA's events."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def has_passed(self, mark: torch.cuda.Event) -> bool:
        return mark.query()

    def between(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return start.elapsed_time(end) / 1000

    def wait(self) -> None:
        torch.cuda.current_stream(self._device).synchronize()


def clock_of(device: torch.device) -> HostClock:
    """Returns the clock of a training device."""
    return GpuClock(device) if device.type == "cuda" else HostClock()
