"""A stage's progress in the driver: a bar where a person watches, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from qdmr_ray.patience import PROGRESS_LINE, WATCH
from qdmr_ray.train.logging.board import Position

_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    TextColumn("{task.completed:.0f}/{task.total:.0f}"),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
    TextColumn("{task.fields[shown]}"),
)
# A slow or lost board must not disturb the training.
_ANSWER_SECONDS = 2.0


@contextmanager
def progress_bar(stage: str, iterations: int, board: Any) -> Iterator[None]:
    """Shows what is on the board while the block runs."""
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
        _show_warnings(board, console)


def _asked(answer: Any) -> Any:
    """The board's answer, None where it gives none."""
    try:
        return ray.get(answer, timeout=_ANSWER_SECONDS)
    except ray.exceptions.RayError:
        return None


def _show_warnings(board: Any, console: Console) -> None:
    for line in _asked(board.warnings.remote()) or ():
        console.print(f"qdmr: warning: {line}", soft_wrap=True, markup=False, highlight=False)


def _text(shown: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items())


def _show_bar(
    stage: str, iterations: int, board: Any, done: threading.Event, console: Console
) -> None:
    with Progress(*_COLUMNS, console=console) as progress:
        task = progress.add_task(stage, total=iterations, shown="starting workers")
        ended = False
        while not ended:
            ended = done.wait(WATCH.seconds)
            _show_warnings(board, console)
            position: Position | None = _asked(board.position.remote())
            if position is not None:
                progress.update(task, completed=position.iteration, shown=_text(position.shown))


def _show_lines(
    stage: str, iterations: int, board: Any, done: threading.Event, console: Console
) -> None:
    start = time.monotonic()
    told: int | None = None
    ended = False
    while not ended:
        ended = done.wait(PROGRESS_LINE.seconds)
        _show_warnings(board, console)
        position: Position | None = _asked(board.position.remote())
        if position is not None and position.iteration != told:
            told = position.iteration
            print(
                f"{stage} {told}/{iterations}  {time.monotonic() - start:.0f} s  "
                f"{_text(position.shown)}",
                file=sys.stderr,
                flush=True,
            )
