"""The ``qdmr`` command, assembled from the groups of commands in this folder. A command's function
parses, calls and prints. It imports what it calls when it runs, so that ``--help`` and a misspelt
word are answered at once."""

import os
import sys
from typing import NoReturn

import typer

from qdmr_ray.cli import (
    bench,
    cluster,
    config,
    data,
    judge,
    restore,
    runs,
    stages,
    sweep,
    train,
    verify,
)
from qdmr_ray.cli.options import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, VERBOSE, option
from qdmr_ray.cli.output import tell, tell_error
from qdmr_ray.errors import VERBOSE_VARIABLE, QdmrError, SettingsError

app = typer.Typer(
    name="qdmr",
    help="Sharpen the photographs of a real, simple lens: simulate, train, evaluate, restore.",
    epilog="Start with:  qdmr demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
# The help shows the groups in this order.
for group in (
    *(data.app, train.app, sweep.app, runs.app, config.app, stages.app, judge.app, restore.app),
    *(cluster.app, cluster.jobs_app, bench.app, verify.app),
):
    app.add_typer(group, rich_help_panel=group.panel)


def _print_version(wanted: bool) -> None:
    if wanted:
        from qdmr_ray.version import version_line

        print(version_line())
        raise typer.Exit


@app.callback()
def _options(
    verbose: bool = VERBOSE,
    version: bool = option(
        False,
        "Print the version, the commit, and whether the code was changed.",
        "--version",
        callback=_print_version,
        is_eager=True,
    ),
) -> None:
    if verbose:
        os.environ[VERBOSE_VARIABLE] = "1"
    if os.environ.get("QDMR_SECRETS"):
        from qdmr_ray.jobs.client import check_secrets

        check_secrets()


def main() -> None:
    """Runs a command; a failure becomes one line and an exit code."""
    try:
        code = typer.main.get_command(app).main(prog_name="qdmr", standalone_mode=False)
    except typer.TyperException as error:
        # Without a message, typer has shown the help of a group that was called without a command.
        if text := " ".join(error.format_message().split()):
            context = getattr(error, "ctx", None)
            words = context.command_path if context else "qdmr"
            # typer passes pydantic's own opening words on.
            text = text.removesuffix(".").replace(": Value error, ", ": ")
            tell(f"{words}: {text}; {words} --help shows the usage")
        sys.exit(error.exit_code)
    except QdmrError as error:
        _fail(str(error), EXIT_USAGE if isinstance(error, SettingsError) else EXIT_FAILED)
    except Exception as error:
        text = " ".join(str(error).split()) or "no message"
        _fail(f"{type(error).__name__}: {text} (-v shows where)", EXIT_FAILED)
    # typer turns a KeyboardInterrupt into this code; a command that has reported its interruption
    # itself raises a SystemExit, which passes through.
    if code == EXIT_INTERRUPTED:
        tell("qdmr: interrupted; run the same command again to go on")
    sys.exit(code)


def _fail(message: str, code: int) -> NoReturn:
    tell_error(message, sys.exception())
    sys.exit(code)


if __name__ == "__main__":
    main()
