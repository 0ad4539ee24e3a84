"""Names that would move a terminal's cursor, forge a line of their own or be taken for rich's
markup are printed as what they are, by every way to a terminal."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from qdmr_ray.cli import cluster, output
from qdmr_ray.cli.config import show
from qdmr_ray.cli.output import Table, bars, print_table, say, show_log, tell, tell_error
from qdmr_ray.errors import QdmrError, SettingsError, printable
from qdmr_ray.jobs.client import Job
from qdmr_ray.train.logging.board import News
from qdmr_ray.train.logging.progress_bar import ProgressBar

MARKUP = {
    "a closing tag": "[/x]",
    "an opening tag": "[bold]a",
    "a link": "[link=http://x]a[/link]",
    "an emoji's name": ":smile:",
    "a tag without end": "[red",
    "an escaped tag": "\\[b]",
}
CONTROL = {
    "clears the screen": "\x1b[2J",
    "sets the title": "\x1b]0;title\x07",
    "goes to the line's start": "a\rb",
    "goes one back": "a\x08b",
    "colours in eight bits": "\x9b31m",
    "turns the direction": "\u202ea",
    "ends the line": "a\nqdmr: all is well",
    "ends the line as Unicode": "\u2028",
    "no UTF-8": "\ud800",
    "nothing": "\0",
}
NAMES = {**MARKUP, **CONTROL}
every_name = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
every_control = pytest.mark.parametrize("name", CONTROL.values(), ids=CONTROL.keys())


@every_name
def test_a_table_shows_a_name_as_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("job", name)
    table.add_row(name, "next")
    print_table(table)
    out = capsys.readouterr().out
    assert out.count(printable(name)) == 2
    assert all(line.isprintable() for line in out.split("\n"))


PRINTERS: dict[str, Callable[[str], None]] = {
    "say": say,
    "tell": tell,
    "an error": lambda text: tell_error(str(QdmrError(text)), None),
    "an error with its traceback": lambda text: tell_error("", QdmrError(text)),
    "a progress line": lambda text: output._line_when_done(text, 1, 1),
    "a warning of a training": lambda text: ProgressBar("uda", 1).show(News(warnings=[text])),
}


@pytest.mark.parametrize("printer", PRINTERS.values(), ids=PRINTERS.keys())
@every_name
def test_a_line_shows_a_name_as_it_is(
    name: str,
    printer: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QDMR_VERBOSE", "1")
    printer(f"file {name}: broken")
    printed = capsys.readouterr()
    (line,) = [line for line in (printed.out + printed.err).split("\n") if "broken" in line]
    assert line.isprintable()
    assert f"file {printable(name)}: broken" in line


@every_name
def test_a_bar_shows_a_name_as_it_is(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(stderr=True, force_terminal=True, width=200, markup=False, emoji=False)
    monkeypatch.setattr(output, "watched_console", lambda: console)
    with bars() as progress:
        progress(f"file {name}", 1, 2)
    assert f"file {printable(name)}" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [QdmrError, SettingsError])
@every_control
def test_an_error_is_one_printable_line_wherever_it_is_read(
    name: str, kind: type[QdmrError]
) -> None:
    error = pickle.loads(pickle.dumps(kind(f"{name}: cannot be read")))
    assert str(error) == f"{printable(name)}: cannot be read"
    assert str(error).isprintable()


def test_an_error_has_more_lines_only_where_it_is_given_more() -> None:
    error = pickle.loads(pickle.dumps(QdmrError("keys: 2 missing", "  a\nb", "  c")))
    assert str(error) == "keys: 2 missing\n  a\\nb\n  c"


def test_an_error_of_ray_is_printed_without_its_colours(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDMR_VERBOSE", "1")
    error = ValueError("\x1b[36mray::work()\x1b[39m failed")
    tell_error(str(error), error)
    assert capsys.readouterr().err == ("ValueError: ray::work() failed\nqdmr: ray::work() failed\n")


LOGS = {
    "the screen cleared": ("a\x1b[2Jb\n", "ab\n"),
    "colours": ("\x1b[36m(worker)\x1b[0m 1\n", "(worker) 1\n"),
    "a title": ("\x1b]0;x\x07\n", "\\x1b]0;x\\x07\n"),
    "a code within a code": ("\x1b\x1b[0m[2J\n", "\\x1b[2J\n"),
    "a clipboard": ("\x1b]52;c;cm0=\x1b\\\n", "\\x1b]52;c;cm0=\\x1b\\\n"),
    "a bar that draws over itself": ("10 %\r20 %\r\n", "10 %\n20 %\n"),
    "lines of Windows": ("a\r\nb\r\n", "a\nb\n"),
    "columns": ("a\tb\n", "a\tb\n"),
    "a piece without its end": ("a\nb", "a\nb"),
    "no UTF-8": ("\udcff\n", "\\udcff\n"),
}


@pytest.mark.parametrize(("log", "shown"), LOGS.values(), ids=LOGS.keys())
def test_a_jobs_log_moves_nobodys_cursor(
    log: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show_log(log)
    assert capsys.readouterr().out == shown


@every_name
def test_a_strangers_job_is_listed_and_its_log_shown(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(name, "RUNNING", f"qdmr {name}", name, began=0.0, ended=1.0, message=name)
    known = SimpleNamespace(list=lambda: [job, job], logs=lambda _: f"told {name}\n")
    monkeypatch.setattr(cluster, "_jobs", lambda address: known)
    cluster.list_jobs(None)
    assert capsys.readouterr().out.count(printable(f"qdmr {name}")) == 2
    cluster.logs("another", follow=False, address=None)
    shown = capsys.readouterr().out
    assert shown.startswith("told ")
    assert all(line.isprintable() for line in shown.split("\n"))


@settings(deadline=None)
@given(st.text())
def test_any_text_becomes_one_line(text: str) -> None:
    line = printable(text)
    assert line.isprintable()
    assert printable(line) == line


@pytest.mark.parametrize("text", ["a b", "é ü", "名前", "\U0001f600", "C:\\new", "[0, 1]"])
def test_an_ordinary_text_stays(text: str) -> None:
    assert printable(text) == text


@every_name
def test_settings_that_are_shown_are_read_as_they_were(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # No YAML file can hold a lone surrogate.
    path = f"data {name}".encode(errors="replace").decode()
    file = tmp_path / "experiment.yaml"
    file.write_text(json.dumps({"data": {"path": path}}))
    show(file, [])
    shown = capsys.readouterr().out
    assert all(line.isprintable() for line in shown.split("\n"))
    assert yaml.safe_load(shown)["data"]["path"] == path
