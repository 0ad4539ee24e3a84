"""The board is an actor that connects a stage's rank 0 with the driver of its training. Rank 0
posts its position and adds lines; the driver fetches them. The driver may ask for a stop, and so
may Ray Train's controller. The board also paces the stage's feed, which spares a process."""

from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qdmr_ray.data.streaming.feed import Pacing


@dataclass
class News:
    """The board's content for the driver: the newest position, and what is new since the last call.
    ``iteration`` is None before the first one; ``shown`` are the metrics for the progress bar;
    ``lines`` are those of the log: stage, iteration and metrics."""

    iteration: int | None = None
    shown: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    lines: list[tuple[str, int, dict[str, float]]] = field(default_factory=list)


@ray.remote(num_cpus=0)
class Board(Pacing):
    """Holds news for the driver, and the wishes of the driver and of Ray Train's controller that
    the workers stop."""

    def __init__(self) -> None:
        super().__init__()
        self._news = News()
        self._controller: Any | None = None
        self._stopping = self._resizing = False
        self._left = False

    def post(self, iteration: int, shown: dict[str, float]) -> bool:
        """Replaces the position; returns whether the workers are to stop."""
        self._news.iteration, self._news.shown = iteration, shown
        # After a notice, training goes on elsewhere.
        self._left = False
        return self._stopping or self._resizing

    def warn(self, text: str) -> None:
        """Adds a line that the driver shows."""
        self._news.warnings.append(text)

    def log(self, stage: str, iteration: int, metrics: dict[str, float]) -> None:
        """Adds a line of the log, for a driver that watches it."""
        self._news.lines.append((stage, iteration, metrics))

    def news(self) -> News:
        """Returns what has come since the last call, with the newest position."""
        news = self._news
        self._news = News(news.iteration, news.shown)
        return news

    def introduce(self, controller: Any) -> None:
        """Takes the actor that controls the training."""
        self._controller = controller

    def controller(self) -> Any | None:
        """Returns the actor that controls the training, None before it has begun."""
        return self._controller

    def stop(self) -> None:
        """Lets rank 0 save a checkpoint and stop."""
        self._stopping = True

    def resize(self) -> None:
        """Lets rank 0 save a checkpoint and stop, for another number of workers to go on."""
        self._resizing = True

    def resized(self) -> None:
        """Takes :meth:`resize` back; other workers are about to start."""
        self._resizing = False

    def leave(self) -> None:
        """Notes that training has ended, or stopped at a checkpoint."""
        self._left = True

    def left(self) -> bool:
        """Returns whether training has ended or stopped, and hasn't gone on since."""
        return self._left


def new_board() -> Any:
    """Starts a board on the driver's node, as a lost node must not take it along."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
