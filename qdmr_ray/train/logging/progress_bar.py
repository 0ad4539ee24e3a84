"""How far training is: workers tell a board, the driver reads it and shows a bar or plain lines."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

POLL_SECONDS = 0.5
# Where no person watches, a line this often keeps a log readable and shows that it is alive.
LINE_SECONDS = 10.0


@ray.remote(num_cpus=0)
class ProgressBoard:
    """Holds the newest word from rank 0."""

    def __init__(self) -> None:
        self._news: dict[str, Any] | None = None
        self._warnings: list[str] = []
        self._controller: Any | None = None
        self._lines: list[tuple[str, int, dict[str, float]]] = []
        self._stopping = False
        self._left = False

    def warn(self, text: str) -> None:
        """Adds a line that the driver shows once."""
        self._warnings.append(text)

    def warnings(self) -> list[str]:
        """The lines that were not taken yet; they are then gone."""
        taken, self._warnings = self._warnings, []
        return taken

    def log(self, stage: str, iteration: int, figures: dict[str, float]) -> None:
        """Adds a line of the log, for who watches it."""
        self._lines.append((stage, iteration, figures))

    def lines(self) -> list[tuple[str, int, dict[str, float]]]:
        """The lines of the log that were not taken yet; they are then gone."""
        taken, self._lines = self._lines, []
        return taken

    def introduce(self, controller: Any) -> None:
        """Takes the actor that controls the training."""
        self._controller = controller

    def controller(self) -> Any | None:
        """That actor, once it has begun."""
        return self._controller

    def post(self, news: dict[str, Any]) -> bool:
        """Replaces the news: ``iteration``, and ``figures`` to show. Says whether to stop."""
        self._news = news
        # After a notice training goes on elsewhere.
        self._left = False
        return self._stopping

    def read(self) -> dict[str, Any] | None:
        """The newest news, if there is any."""
        return self._news

    def stop(self) -> None:
        """Lets whoever posts save a checkpoint and stop."""
        self._stopping = True

    def leave(self) -> None:
        """Says that training has ended, or stopped at a checkpoint."""
        self._left = True

    def left(self) -> bool:
        """Whether it has, and hasn't gone on since."""
        return self._left


def new_board() -> Any:
    """A board on the driver's node: a lost node must not take it along."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ProgressBoard.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


class Reporter:
    """Posts to a board at most twice a second, without waiting; in a worker."""

    def __init__(self, board: Any | None) -> None:
        self._board = board
        self._last = 0.0
        self._figures: dict[str, float] = {}
        self._answer: Any | None = None
        self._stopping = False

    def post(self, iteration: int, figures: dict[str, float] | None = None) -> None:
        """Tells the driver how far training is; new ``figures`` are always sent."""
        now = time.monotonic()
        if self._board is None or (figures is None and now - self._last < POLL_SECONDS):
            return
        self._last = now
        self._figures = self._figures if figures is None else figures
        self._hear()
        self._answer = self._board.post.remote({"iteration": iteration, "figures": self._figures})

    def _hear(self) -> None:
        """What the board said to the last post, which it has answered by now."""
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


@contextmanager
def shown_progress(stage: str, iterations: int, board: Any) -> Iterator[None]:
    """Shows the board's news while the block runs."""
    console = Console(stderr=True)
    done = threading.Event()
    show = _show_bar if console.is_terminal else _show_lines
    thread = threading.Thread(
        target=show, args=(stage, iterations, board, done, console), daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5)
        for line in _warnings(board):
            console.print(f"qdmr: warning: {line}", soft_wrap=True, markup=False)


def _read(board: Any) -> dict[str, Any] | None:
    try:
        news: dict[str, Any] | None = ray.get(board.read.remote(), timeout=POLL_SECONDS * 4)
    except ray.exceptions.RayError:
        return None  # a slow or lost board must not disturb training
    return news


def _warnings(board: Any) -> list[str]:
    try:
        lines: list[str] = ray.get(board.warnings.remote(), timeout=POLL_SECONDS * 4)
    except ray.exceptions.RayError:
        return []
    return lines


def _text(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _show_bar(
    stage: str, iterations: int, board: Any, done: threading.Event, console: Console
) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(stage, total=iterations, figures="starting workers")
        while not done.wait(POLL_SECONDS):
            for line in _warnings(board):
                console.print(f"qdmr: warning: {line}", soft_wrap=True, markup=False)
            news = _read(board)
            if news:
                figures = _text(news["figures"])
                progress.update(task, completed=news["iteration"], figures=figures)
        if news := _read(board):
            progress.update(task, completed=news["iteration"], figures=_text(news["figures"]))


def _show_lines(
    stage: str, iterations: int, board: Any, done: threading.Event, console: Console
) -> None:
    start = time.monotonic()
    shown: int | None = None
    while True:
        ended = done.wait(LINE_SECONDS)
        for line in _warnings(board):
            print(f"qdmr: warning: {line}", file=sys.stderr, flush=True)
        news = _read(board)
        if news and news["iteration"] != shown:
            shown = news["iteration"]
            elapsed = time.monotonic() - start
            print(
                f"{stage} {shown}/{iterations}  {elapsed:.0f} s  {_text(news['figures'])}",
                file=sys.stderr,
                flush=True,
            )
        if ended:
            return
