"""The output of commands: lines, tables, measurements, evaluations, progress bars."""

from __future__ import annotations

import gc
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from qdmr_ray.cli.options import show_tracebacks
from qdmr_ray.errors import printable, without_passwords

if TYPE_CHECKING:
    from qdmr_ray.evaluate.results import Evaluation


# Colours and movements of the cursor: Ray colours its workers' lines, on a terminal or not.
_TERMINAL_CODE = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")


@contextmanager
def quick_imports() -> Iterator[None]:
    """Switches off garbage collection, which an import of half a million objects triggers
    repeatedly; PyTorch and Ray are then imported half a second, a sixth of the time, sooner."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def say(*lines: str) -> None:
    """Prints lines on standard output, without buffering. What a terminal would obey in a name, a
    line break too, is printed as an escape, here as by every function of this module."""
    for line in lines:
        print(printable(line), flush=True)


def tell(*lines: str) -> None:
    """Prints lines on standard error, without a password that stands in an address."""
    for line in lines:
        print(printable(without_passwords(line)), file=sys.stderr, flush=True)


def tell_error(text: str, error: BaseException | None) -> None:
    """Prints an error's message on standard error, behind the traceback of ``error`` if ``-v`` was
    given; without the colours that Ray puts into both."""
    told = f"qdmr: {text}"
    if show_tracebacks() and error is not None:
        told = "".join(traceback.format_exception(error)) + told
    tell(*_TERMINAL_CODE.sub("", told).split("\n"))


def show_log(text: str) -> None:
    """Prints a part of a job's log on standard output, without its colours: whoever may write
    there must not move the cursor of whoever reads. A progress bar's states get a line each."""
    text = _TERMINAL_CODE.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    print("\n".join(map(_log_line, text.split("\n"))), end="", flush=True)


def _log_line(line: str) -> str:
    return "\t".join(map(printable, line.split("\t")))


class Table(RichTable):
    """A table of texts as they are: none is taken for rich's markup."""

    def __init__(self, *headings: str) -> None:
        super().__init__(*map(printable, headings))

    def add_row(self, *cells: str, **options: Any) -> None:  # type: ignore[override]
        """Adds a row of texts."""
        super().add_row(*map(printable, cells), **options)


def date(seconds: float | None) -> str:
    """Returns a time, in seconds since 1970, as a table shows it; nothing for no time."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M") if seconds else ""


def print_table(table: Table) -> None:
    """Prints a table on standard output, its rows unfolded where a program reads them."""
    width = None if sys.stdout.isatty() else 200
    Console(width=width, markup=False, emoji=False).print(table)


def print_results(results: dict[str, Any], json_file: Path | None) -> None:
    """Prints names and values, a line each, and writes them as JSON into ``json_file``."""
    for name, value in results.items():
        say(f"{name:34} {value:.5g}" if isinstance(value, float) else f"{name:34} {value}")
    write_json(results, json_file)


def write_json(content: Any, json_file: Path | None) -> None:
    """Writes ``content`` into ``json_file``, if one is wanted."""
    if json_file:
        from qdmr_ray.storage import write_file_atomic

        write_file_atomic(json_file, json.dumps(content, indent=1).encode() + b"\n")


class Progressing(Protocol):
    """Takes the progress of a step; see :func:`bars`."""

    def __call__(self, step: str, done: int, total: int, note: str = "") -> None: ...


@contextmanager
def bars() -> Iterator[Progressing]:
    """Yields a function that takes a step's name, the work done, the work in all and a note. It
    draws a progress bar for each step when a person watches, with its newest note; else it prints
    each note, and a line per finished step."""
    console = watched_console()
    if console is None:
        yield _line_when_done
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    note_column = TextColumn("{task.fields[note]}", markup=False)
    with Progress(
        *columns, TimeRemainingColumn(), note_column, console=console, transient=True
    ) as progress:
        tasks: dict[str, Any] = {}

        def update(step: str, done: int, total: int, note: str = "") -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(printable(step), total=total, note="")
            told: dict[str, Any] = {"note": printable(note)} if note else {}
            progress.update(tasks[step], completed=done, total=total, **told)

        yield update


@contextmanager
def bar(step: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function that takes the work done and the work in all; draws as :func:`bars`."""
    with bars() as progress:
        yield partial(progress, step)


@contextmanager
def working(step: str) -> Iterator[None]:
    """Shows a moving sign beside the name of a step of unknown length, when a person watches."""
    console = watched_console()
    with console.status(printable(step)) if console else nullcontext():
        yield


def watched_console() -> Console | None:
    """Returns standard error, if it is a terminal on which progress can be drawn."""
    console = Console(stderr=True, markup=False, emoji=False)
    return console if console.is_terminal and os.environ.get("TERM") != "dumb" else None


def in_megabytes(progress: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    """Turns a step's progress in bytes into megabytes; the last byte fills the bar."""

    def update(step: str, done: int, total: int) -> None:
        megabytes = -(-total // 10**6)
        progress(f"{step} (MB)", megabytes if done >= total else done // 10**6, megabytes)

    return update


def _line_when_done(step: str, done: int, total: int, note: str = "") -> None:
    if note:
        tell(note)
    elif done == total:
        tell(f"{step}: done")


def print_evaluation(evaluation: Evaluation) -> None:
    """Prints a row of means for the input and each stage, then notes that a reader must know."""
    from qdmr_ray.evaluate.gap.sentences import gap_sentences
    from qdmr_ray.evaluate.metrics.registry import PRIMARY, metric_info

    primary = metric_info(PRIMARY)
    headings = (metric_info(name).label for name in evaluation.input)
    table = Table("", *headings, f"{primary.label} gain")
    before = evaluation.input.get(PRIMARY)
    for name, values in evaluation.means.items():
        after = values.get(PRIMARY)
        gain = f"{after - before:+.{primary.digits}f} {primary.unit}" if after and before else ""
        cells = ["-" if value is None else f"{value:.4g}" for value in values.values()]
        table.add_row(name, *cells, gain if name in evaluation.stages else "")
    print_table(table)
    say(f"means over {evaluation.images} test images")
    for note in [*evaluation_notes(evaluation), *gap_sentences(evaluation)]:
        say(note)
    for failure in evaluation.failed:
        tell(f"qdmr: {failure.name}: {failure.reason}")


def evaluation_notes(evaluation: Evaluation) -> list[str]:
    """Returns a line per metric that some photographs don't count for, and per file that a metric
    compares with: without these, nobody can say whether two tables are comparable."""
    from qdmr_ray.evaluate.metrics.registry import METRICS, metric_info

    notes = []
    for metric in dict.fromkeys(row.metric for row in evaluation.left_out):
        rows = [row for row in evaluation.left_out if row.metric == metric]
        label, count = metric_info(metric).label, evaluation.images - len(rows)
        more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
        notes.append(f"{label}: over {count} of them; {rows[0].name}: {rows[0].reason}{more}")
    files = ((m.info.label, evaluation.reference(m.info.name)) for m in METRICS.values())
    return notes + [f"{label} with {file}" for label, file in files if file]
