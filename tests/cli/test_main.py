"""Help, usage, exit codes, errors in one line, and -v, of every command."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from command_line import Command, Outcome

from qdmr_ray import __version__
from qdmr_ray.cli import main as cli
from qdmr_ray.cli import options
from qdmr_ray.version import version_line


def commands() -> dict[tuple[str, ...], Any]:
    """Every command by the words that call it."""
    found: dict[tuple[str, ...], Any] = {}

    def visit(path: tuple[str, ...], command: Any) -> None:
        inner = getattr(command, "commands", None)
        if inner is None:
            found[path] = command
        for name, child in (inner or {}).items():
            visit((*path, name), child)

    visit((), typer.main.get_command(cli.app))
    return found


COMMANDS = commands()
every_command = pytest.mark.parametrize("words", COMMANDS, ids=" ".join)


def test_the_commands_are_there() -> None:
    wanted = ["demo", "train", "evaluate", "restore", "report", "verify", "doctor"]
    assert {(name,) for name in wanted} <= COMMANDS.keys()
    assert {("data", name) for name in ("simulate", "pack", "inspect")} <= COMMANDS.keys()


@every_command
def test_help_explains_everything_and_gives_an_example(
    words: tuple[str, ...], qdmr: Command
) -> None:
    shown = qdmr(*words, "--help")

    assert shown.code == 0
    assert shown.err == ""
    text = " ".join(shown.out.split())
    example = COMMANDS[words].epilog or ""
    assert example.startswith("Example:  qdmr ")
    assert " ".join(example.split()) in text
    assert len((COMMANDS[words].help or "").strip()) > 20
    options = [p for p in COMMANDS[words].params if p.param_type_name == "option"]
    assert options
    for option in options:
        assert (option.help or "").strip(), option.name


@every_command
def test_the_example_in_the_help_can_be_typed(words: tuple[str, ...]) -> None:
    typed = shlex.split((COMMANDS[words].epilog or "").removeprefix("Example:"))
    assert tuple(typed[: len(words) + 1]) == ("qdmr", *words)
    # Parses the arguments as the command would; unknown options and missing arguments raise.
    COMMANDS[words].make_context(" ".join(words), typed[len(words) + 1 :])


@pytest.mark.parametrize("words", [(), ("data",)])
def test_groups_list_their_commands(words: tuple[str, ...], qdmr: Command) -> None:
    shown = qdmr(*words, "--help")
    assert shown.code == 0
    assert "qdmr d" in shown.out  # "Start with:  qdmr demo", "Example:  qdmr data pack …"
    for path in COMMANDS:
        if path[:-1] == words:
            assert path[-1] in shown.out


@every_command
def test_an_unknown_option_is_wrong_usage(words: tuple[str, ...], qdmr: Command) -> None:
    told = qdmr(*words, "--no-such-option")
    assert told.code == 2
    assert "--no-such-option" in told.err or "Missing" in told.err
    assert "Traceback" not in told.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("no-such-command",), "qdmr: No such command 'no-such-command'; qdmr"),
        (("data", "no-such-command"), "qdmr data: No such command 'no-such-command'; qdmr"),
        (("restore",), "qdmr restore: Missing "),
        (("train",), "qdmr train: Missing argument 'EXPERIMENT.yaml'; qdmr"),
        (("bench", "step", "--batch", "few"), "qdmr bench step: Invalid value for '--batch'"),
        (("bench", "step", "--dtype", "float16"), "'float32', 'tf32', 'bfloat16'"),
        (("verify", "golden", "--dtype", "float16"), "'float64', 'float32'"),
        (("compare", "a", "--format", "html"), "'plain', 'markdown', 'latex'"),
    ],
)
def test_wrong_usage_exits_2_with_one_line(
    words: tuple[str, ...], told: str, qdmr: Command
) -> None:
    outcome = qdmr(*words)
    assert outcome.code == 2
    assert outcome.out == ""
    (line,) = outcome.err.splitlines()
    assert told in line
    assert line.startswith("qdmr")
    assert line.endswith("--help shows the usage")


@pytest.mark.parametrize("words", [(), ("data",)])
def test_a_group_alone_shows_its_help(words: tuple[str, ...], qdmr: Command) -> None:
    shown = qdmr(*words)
    assert shown.code == 2
    assert "Usage: qdmr" in shown.out + shown.err
    assert "Traceback" not in shown.err


def test_commands_stand_in_panels_in_the_order_of_work(qdmr: Command) -> None:
    shown = qdmr("--help").out
    panels = ["Data", "Train", "Judge", "Restore", "Cluster", "Developers"]
    places = [shown.index(f"─ {panel} ─") for panel in panels]
    assert places == sorted(places)
    assert "─ Commands ─" not in shown
    judge = shown[places[2] : places[3]]
    for command in ("evaluate", "report", "compare", "codebook", "niqe-fit"):
        assert f" {command} " in judge


def test_closed_choices_are_those_of_the_code() -> None:
    from qdmr_ray.bench import restore as bench_restore
    from qdmr_ray.bench.step import PRESETS
    from qdmr_ray.data.packing.pack import PackSettings
    from qdmr_ray.data.simulation import DOMAINS
    from qdmr_ray.evaluate.compare_text import FORMATS as TABLES
    from qdmr_ray.models.authors import KINDS
    from qdmr_ray.models.export import FORMS
    from qdmr_ray.stages.compute import DTYPES
    from qdmr_ray.verify.folder import DTYPES as VERIFYING

    target_sets = PackSettings.__dataclass_fields__["target_set"].metadata["choices"]
    for written, known in (
        (options.TrainingDtype, DTYPES),
        (options.RestoringDtype, bench_restore.DTYPES),
        (options.VerifyingDtype, VERIFYING),
        (options.Preset, PRESETS),
        (options.Domain, DOMAINS),
        (options.TargetSet, target_sets),
        (options.WeightsKind, KINDS),
        (options.ExportForm, FORMS),
        (options.TableFormat, TABLES),
    ):
        assert set(get_args(written)) == set(known)


def test_the_version_is_one_line(qdmr: Command) -> None:
    shown = qdmr("--version")
    assert shown.code == 0
    assert shown.out == f"{version_line()}\n"
    assert shown.out.startswith(f"qdmr {__version__}")


def test_help_needs_neither_torch_nor_ray() -> None:
    """A process of its own: this one has imported everything."""
    code = (
        "import sys, qdmr_ray.cli.main; "
        "print([name for name in ('torch', 'ray', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_process_of_its_own_prints_the_line_and_nothing_else(tmp_path: Path) -> None:
    arguments = ["data", "pack", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "qdmr_ray.cli", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == ""
    outcome = Outcome(done.returncode, done.stdout, done.stderr)
    assert outcome.line.startswith(f"qdmr: {tmp_path / 'none'}: no such folder")


def test_verbose_shows_the_traceback_wherever_it_stands(
    tmp_path: Path, qdmr: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("data", "pack", tmp_path / "none", "--out", tmp_path / "out")
    plain = qdmr(*words)
    for typed in (("-v", *words), (*words, "--verbose"), ("data", "-v", *words[1:])):
        monkeypatch.setenv("QDMR_VERBOSE", "")
        shown = qdmr(*typed)
        assert shown.code == 1
        assert "Traceback" in shown.err
        assert "QdmrError" in shown.err
        assert shown.err.splitlines()[-1] == plain.line


@pytest.mark.parametrize(
    ("words", "submitted", "verbose"),
    [
        (("submit", "--", "python", "x.py", "-v"), ["python", "x.py", "-v"], False),
        (("submit", "python", "x.py", "-v", "--flag"), ["python", "x.py", "-v", "--flag"], False),
        (("-v", "submit", "--", "qdmr", "-v", "doctor"), ["qdmr", "-v", "doctor"], True),
        (("submit", "-v", "--", "echo", "--", "-v"), ["echo", "--", "-v"], True),
    ],
)
def test_verbose_of_a_submitted_command_is_left_to_it(
    words: tuple[str, ...],
    submitted: list[str],
    verbose: bool,
    qdmr: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    class FakeJobs:
        def __init__(self, address: str) -> None:
            pass

        def submit(self, command: list[str], *_: object, **__: object) -> str:
            seen.append(list(command))
            return "job"

    monkeypatch.setattr("qdmr_ray.jobs.client.Jobs", FakeJobs)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    assert qdmr(*words).code == 0
    assert seen == [submitted]
    assert options.show_tracebacks() is verbose


def test_an_unforeseen_error_is_one_line_too(
    realab: Path, qdmr: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr("qdmr_ray.data.packing.pack.pack", broken)
    told = qdmr("data", "pack", realab, "--out", realab.parent / "out")
    assert told.code == 1
    assert told.line == "qdmr: ZeroDivisionError: first second (-v shows where)"


def test_an_interruption_is_told_with_its_own_code(
    realab: Path, qdmr: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qdmr_ray.data.packing.pack.pack", interrupted)
    told = qdmr("data", "pack", realab, "--out", realab.parent / "out")
    assert told.code == 130
    assert "run the same command again" in told.line
