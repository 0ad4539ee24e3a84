"""Notice that a worker is about to be taken away: a spot instance reclaimed, a node drained. It
comes as SIGTERM to a worker process, or through Ray, which is told that a node is drained (``ray
drain-node``, the autoscaler). All ranks then stop at the same iteration, and Ray restarts them
on other nodes without counting a failure. A resize (``scaling.min_workers``) comes the same way,
and so does Ctrl-C in the command, which ends training."""

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayActorError
from ray.train.torch import TorchConfig

from qdmr_ray.patience import ASK_RAY
from qdmr_ray.train.ranks import Ranks

# Ranks compare their notices only every so many iterations, as each time they wait for the slowest
# one. A notice leaves 30 s (Google) to 2 min (Amazon).
AGREE_ITERATIONS = 8

_terminated = threading.Event()


class Preempted(RayActorError):  # noqa: N818
    """Training stopped at a checkpoint because a worker is about to be taken away. Ray counts an
    actor's error that says ``preempted`` against its own, unlimited budget."""

    def __init__(self, message: str) -> None:
        super().__init__(error_msg=message, preempted=True)


class Stopped(Preempted):
    """Training stopped at a checkpoint because the board asked for it, and no machine goes."""


class WatchedTorchConfig(TorchConfig):
    """PyTorch's process group, on workers that take SIGTERM as a notice."""

    @property
    def backend_cls(self) -> Any:
        """The backend with which Ray Train sets up the workers."""
        return _WatchedBackend


class _WatchedBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        super().on_start(worker_group, backend_config)
        worker_group.execute(watch_for_sigterm)


def watch_for_sigterm() -> None:
    """Takes the first SIGTERM as a notice. Python demands a call in the main thread, and runs the
    handler there: in a worker every two seconds, when Ray Train asks for the status."""
    previous = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: Any) -> None:
        again = _terminated.is_set()
        _terminated.set()
        if again and callable(previous):
            previous(number, frame)

    signal.signal(signal.SIGTERM, note)


class Notice:
    """Tells all ``ranks`` in the same iteration that one of them has to go: because Ray says so
    where all of them ask it (``is_leaving``), or this rank was ``asked_to_stop``."""

    def __init__(
        self, ranks: Ranks, is_leaving: Callable[[], bool], asked_to_stop: Callable[[], bool]
    ) -> None:
        self._ranks, self._is_leaving = ranks, is_leaving
        self._asked_to_stop = asked_to_stop
        self._asked = time.monotonic()
        # Ray is not asked in each iteration, as all ranks wait for its answer.
        self._ask_after = ASK_RAY.seconds
        self._hurry = False

    def given(self, iteration: int) -> bool:
        """Returns whether to stop after ``iteration``; every rank calls it once per iteration."""
        if self._ranks.world_size > 1 and iteration % AGREE_ITERATIONS:
            return False
        # Rank 0's clock alone decides when Ray is asked, unless a rank is in a hurry.
        due = self._ranks.rank == 0 and time.monotonic() - self._asked >= self._ask_after
        terminated = _terminated.is_set() or self._asked_to_stop()
        terminated, ask = self._ranks.any_of(terminated, self._hurry or due)
        if ask and not terminated:
            self._asked = time.monotonic()
            return self._is_leaving()
        return terminated

    def hurry(self) -> None:
        """From now on, Ray is asked at every occasion."""
        self._hurry = True
