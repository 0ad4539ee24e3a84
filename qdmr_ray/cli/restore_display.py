"""The display of ``qdmr restore``, imported only when that runs, as it imports PyTorch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from qdmr_ray.cli.options import EXIT_INTERRUPTED
from qdmr_ray.cli.output import tell, tell_error, watched_console
from qdmr_ray.errors import printable
from qdmr_ray.restore.files import Report
from qdmr_ray.restore.inputs import Failure


class Interrupted(SystemExit):
    """The user has interrupted the command, and has already been told which files are done."""


class Lines(Report):
    """Prints a line on standard error for each file that is finished."""

    def __init__(self) -> None:
        self.done = self.number = self.total = 0
        # The number of each photograph whose end is still to come.
        self._numbers: dict[Path, int] = {}

    def begun(self, path: Path, number: int, total: int) -> None:
        self._numbers[path] = number
        self.number, self.total = number, total

    def restored(self, path: Path, result: Path, lost: Sequence[str]) -> None:
        self.done += 1
        for line in lost:
            tell(f"qdmr: {line}")
        self.finished(path, result, self._numbers.pop(path))

    def finished(self, path: Path, result: Path, number: int) -> None:
        """Prints that a photograph is restored."""
        tell(f"restored {path} as {result} ({number} of {self.total})")

    def so_far(self, out: Path) -> str:
        """Returns a text on the restored files, and on what the same command would do again."""
        if not self.done:
            return "nothing is restored yet"
        return (
            f"{self.done} of {self.total} photographs are restored, in {out}; the same command "
            "does them all again, so name those that are left"
        )

    def failed(self, failure: Failure) -> None:
        tell_error(failure.reason, failure.error)


class Bar(Lines):
    """Draws one bar over all photographs, with the name of the current one."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress
        self._task = progress.add_task("restore", total=None)

    def begun(self, path: Path, number: int, total: int) -> None:
        super().begun(path, number, total)
        text = f"restore {printable(path.name)} ({number} of {total})"
        # The bar is drawn at once: the arithmetic may leave the drawing thread no time for a while.
        self._progress.update(
            self._task, description=text, total=total, completed=number - 1, refresh=True
        )

    def advanced(self, share: float) -> None:
        self._progress.update(self._task, completed=self.number - 1 + share)

    def finished(self, path: Path, result: Path, number: int) -> None:
        # The bar shows the arithmetic, which may be far into the next photographs by now.
        if number == self.number:
            self.advanced(1)

    def failed(self, failure: Failure) -> None:
        super().failed(failure)
        # A folder without photographs has no number.
        if self._numbers.pop(failure.path, None) == self.number:
            self.advanced(1)


@contextmanager
def shown(out: Path) -> Iterator[Lines]:
    """Yields a bar when a person watches, else lines; tells which files are done if interrupted."""
    console = watched_console()
    report = Lines()
    try:
        if console is None:
            yield report
            return
        # A file's name may contain brackets of rich's markup.
        columns = (TextColumn("{task.description}", markup=False), BarColumn())
        times = (TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, *times, console=console, transient=True) as progress:
            report = Bar(progress)
            yield report
    except KeyboardInterrupt:
        tell(f"qdmr: interrupted; {report.so_far(out)}")
        raise Interrupted(EXIT_INTERRUPTED) from None
