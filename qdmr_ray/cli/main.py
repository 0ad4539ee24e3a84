"""The ``qdmr`` command, assembled from the groups of commands in this folder. A command's function
parses, calls and prints. It imports what it calls when it runs, so that ``--help`` and a misspelt
word are answered at once."""

from __future__ import annotations

import os
import sys
import traceback

import typer
from typer import Option

from qdmr_ray.cli import bench, cluster, config, data, judge, restore, sweep, train, verify
from qdmr_ray.cli.options import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, Verbose, show_tracebacks
from qdmr_ray.errors import VERBOSE_VARIABLE, QdmrError, SettingsError

HELP = "Sharpen the photographs of a real, simple lens: simulate, train, evaluate, restore."

app = typer.Typer(
    name="qdmr",
    help=HELP,
    epilog="Start with:  qdmr demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
# The help shows the groups in this order.
for group in (
    *(data.app, train.app, sweep.app, config.app, train.stages_app, judge.app, restore.app),
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
    verbose: Verbose = False,
    version: bool = Option(
        False,
        "--version",
        help="Print the version, the commit, and whether the code was changed.",
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
            print(f"{words}: {text}; {words} --help shows the usage", file=sys.stderr)
        sys.exit(error.exit_code)
    except QdmrError as error:
        _tell(str(error))
        sys.exit(EXIT_USAGE if isinstance(error, SettingsError) else EXIT_FAILED)
    except Exception as error:
        text = " ".join(str(error).split()) or "no message"
        _tell(f"{type(error).__name__}: {text} (-v shows where)")
        sys.exit(EXIT_FAILED)
    # typer turns a KeyboardInterrupt into this code; a command that has reported its interruption
    # itself raises a SystemExit, which passes through.
    if code == EXIT_INTERRUPTED:
        print("qdmr: interrupted; run the same command again to go on", file=sys.stderr)
    sys.exit(code)


def _tell(message: str) -> None:
    """Prints an error, behind its traceback if ``-v`` was given."""
    if show_tracebacks():
        traceback.print_exc()
    print(f"qdmr: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
