"""The board through which a stage's rank 0 and the driver of its training tell each other things.

Rank 0 posts its position and pins lines; the driver reads them, and may ask for a stop.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qdmr_ray.patience import WATCH


class Position(NamedTuple):
    """How far a stage has come, with the values that the progress bar shows."""

    iteration: int
    shown: dict[str, float]


@ray.remote(num_cpus=0)
class Board:
    """The newest position, what has not been fetched yet, and the driver's wish."""

    def __init__(self) -> None:
        self._position: Position | None = None
        self._warnings: list[str] = []
        self._lines: list[tuple[str, int, dict[str, float]]] = []
        self._controller: Any | None = None
        self._stopping = False
        self._left = False

    def warn(self, text: str) -> None:
        """Adds a line that the driver shows once."""
        self._warnings.append(text)

    def warnings(self) -> list[str]:
        """Hands over the warnings since the last call."""
        taken, self._warnings = self._warnings, []
        return taken

    def log(self, stage: str, iteration: int, metrics: dict[str, float]) -> None:
        """Adds a line of the log, for a caller that watches it."""
        self._lines.append((stage, iteration, metrics))

    def lines(self) -> list[tuple[str, int, dict[str, float]]]:
        """Hands over the lines of the log since the last call."""
        taken, self._lines = self._lines, []
        return taken

    def introduce(self, controller: Any) -> None:
        """Takes the actor that controls the training."""
        self._controller = controller

    def controller(self) -> Any | None:
        """The actor that controls the training, None before it has begun."""
        return self._controller

    def post(self, position: Position) -> bool:
        """Replaces the position; returns whether training is to stop."""
        self._position = position
        # After a notice training goes on elsewhere.
        self._left = False
        return self._stopping

    def position(self) -> Position | None:
        """The newest position, None before the first one."""
        return self._position

    def stop(self) -> None:
        """Lets rank 0 save a checkpoint and stop."""
        self._stopping = True

    def leave(self) -> None:
        """Notes that training has ended, or stopped at a checkpoint."""
        self._left = True

    def left(self) -> bool:
        """Whether training has ended or stopped, and hasn't gone on since."""
        return self._left


def new_board() -> Any:
    """Starts a board on the driver's node, as a lost node must not take it along."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


class Reporter:
    """Tells a board what happens in a worker, without waiting for an answer.

    Without a board, as on other ranks than 0, it tells nobody.
    """

    def __init__(self, board: Any | None) -> None:
        self._board = board
        self._last = 0.0
        self._shown: dict[str, float] = {}
        self._answer: Any | None = None
        self._stopping = False

    def post(self, iteration: int, shown: dict[str, float] | None = None) -> None:
        """Posts the position: always with new values to show, otherwise once in a while."""
        now = time.monotonic()
        if self._board is None or (shown is None and now - self._last < WATCH.seconds):
            return
        self._last = now
        self._shown = self._shown if shown is None else shown
        self._hear()
        self._answer = self._board.post.remote(Position(iteration, self._shown))

    def _hear(self) -> None:
        """Takes the board's answer to the last post, which it has given by now."""
        if self._answer is None or not ray.wait([self._answer], timeout=0)[0]:
            return
        with suppress(ray.exceptions.RayError):
            self._stopping = self._stopping or ray.get(self._answer)

    def asked_to_stop(self) -> bool:
        """Whether the driver wants training to stop at a checkpoint; known a second later."""
        return self._stopping

    def leave(self) -> None:
        """Tells the driver that training has ended or stopped."""
        if self._board is not None:
            self._board.leave.remote()

    def warn(self, text: str) -> None:
        """Lets the driver show a line."""
        if self._board is not None:
            self._board.warn.remote(text)
