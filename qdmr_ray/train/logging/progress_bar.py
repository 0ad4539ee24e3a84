"""A stage's progress in the driver: a bar on a terminal, plain lines elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from qdmr_ray.errors import printable
from qdmr_ray.patience import PROGRESS_LINE
from qdmr_ray.train.logging.board import News

_COLUMNS = (
    TextColumn("{task.description}", markup=False),
    BarColumn(),
    TextColumn("{task.completed:.0f}/{task.total:.0f}"),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
    TextColumn("{task.fields[shown]}", markup=False),
)


class ProgressBar:
    """Shows the board's news of a stage on standard error; call ``show`` every now and then."""

    def __init__(self, stage: str, iterations: int) -> None:
        self._stage, self._iterations = stage, iterations
        self._console = Console(stderr=True, markup=False, emoji=False)
        self._bar = Progress(*_COLUMNS, console=self._console)
        self._task = self._bar.add_task(stage, total=iterations, shown="starting workers")
        if self._console.is_terminal:
            self._bar.start()
        self._newest = News()
        self._told: int | None = None
        self._began = self._told_at = time.monotonic()

    def show(self, news: News) -> None:
        """Shows warnings, and the position: on the bar, or as a line once in a while."""
        for line in news.warnings:
            self._say(f"qdmr: warning: {line}")
        if news.iteration is None:
            return
        self._newest = news
        if self._console.is_terminal:
            self._bar.update(self._task, completed=news.iteration, shown=_text(news))
        elif time.monotonic() - self._told_at >= PROGRESS_LINE.seconds:
            self._tell()

    def close(self) -> None:
        """Leaves the last position on the screen."""
        if self._console.is_terminal:
            self._bar.stop()
        else:
            self._tell()

    def _tell(self) -> None:
        news = self._newest
        if news.iteration != self._told:
            self._told, self._told_at = news.iteration, time.monotonic()
            elapsed = self._told_at - self._began
            position = f"{self._stage} {news.iteration}/{self._iterations}"
            self._say(f"{position}  {elapsed:.0f} s  {_text(news)}")

    def _say(self, line: str) -> None:
        self._console.print(printable(line), soft_wrap=True, highlight=False)


def _text(news: News) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in news.shown.items())
