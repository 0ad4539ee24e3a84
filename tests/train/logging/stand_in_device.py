"""A device that works beside the host, as a GPU does, on a clock of its own that takes no time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

# Methods that wait for the device, since they need a tensor's values.
READS = {Tensor.cpu, Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__float__}


class _Queued(Tensor):
    """A tensor of the device ``queue``, whose values are there when its work is done."""

    queue: ClassVar[Queue]

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function in READS:
            cls.queue.wait()
        return super().__torch_function__(function, types, args, kwargs)


class Queue:
    """The host's time ``now``, in seconds, and the time at which the device has done all that was
    queued on it. It is also the clock that a meter reads."""

    def __init__(self) -> None:
        self.now = 0.0
        self.done = 0.0
        # Results of operations on them are of the same type.
        self._results: Any = type("Queued", (_Queued,), {"queue": self})

    def launch(self, host: float, device: float) -> None:
        """Keeps the host for ``host`` seconds, and queues ``device`` seconds of work."""
        self.now += host
        self.done = max(self.done, self.now) + device

    def seconds(self) -> float:
        return self.now

    def mark(self) -> float:
        return max(self.now, self.done)

    def has_passed(self, mark: float) -> bool:
        return mark <= self.now

    def between(self, start: float, end: float) -> float:
        # As with CUDA's events, of which those that have not passed have no time.
        assert self.has_passed(start)
        assert self.has_passed(end)
        return end - start

    def wait(self) -> None:
        self.now = max(self.now, self.done)

    def scalar(self, value: float) -> Tensor:
        """A result of the work queued so far; reading it waits for the device."""
        return torch.tensor(value).as_subclass(self._results)
