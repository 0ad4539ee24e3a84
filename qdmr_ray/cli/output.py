"""What commands share: how they print lines, tables, progress and figures, and how they import."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

Endpoint = Annotated[
    str | None,
    typer.Option(help="Address of an S3-compatible store; AWS_ENDPOINT_URL by default."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting; may be repeated."),
]


@contextmanager
def quick_imports() -> Iterator[None]:
    """Without garbage collection, which imports of half a million objects set off again and again:
    PyTorch and Ray are there half a second, a sixth of the time, sooner."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def say(text: str) -> None:
    """A line on standard output, at once."""
    print(text, flush=True)


def print_table(table: Table) -> None:
    """A table on standard output."""
    # Lines of a table must not be folded where a program reads them.
    width = None if sys.stdout.isatty() else 200
    Console(width=width).print(table)


def print_figures(figures: dict[str, Any], json_file: Path | None) -> None:
    """Names and values, a line each; also as JSON into a file."""
    for name, value in figures.items():
        say(f"{name:34} {value:.5g}" if isinstance(value, float) else f"{name:34} {value}")
    if json_file:
        from qdmr_ray.storage import write_file_atomic

        write_file_atomic(json_file, json.dumps(figures, indent=1).encode() + b"\n")


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars when a person watches, a line per finished step when not."""
    console = Console(stderr=True)
    if not console.is_terminal or os.environ.get("TERM") == "dumb":
        yield _line_when_done
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def update(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(step, total=total)
            progress.update(tasks[step], completed=done, total=total)

        yield update


def in_megabytes(progress: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    """The same bar for a step that counts bytes; it is full only when the last byte is done."""

    def update(step: str, done: int, total: int) -> None:
        megabytes = -(-total // 10**6)
        progress(f"{step} (MB)", megabytes if done >= total else done // 10**6, megabytes)

    return update


def _line_when_done(step: str, done: int, total: int) -> None:
    if done == total:
        print(f"{step}: done", file=sys.stderr, flush=True)
