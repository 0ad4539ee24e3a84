"""The common parts of commands' lines: the app that registers them, options, choices. Every
command, and every group, takes ``-v``, which shows the traceback of an error. A ``-v`` behind
``--``, or in a submitted command, belongs to that command."""

import os
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, Literal, TypeVar

import typer

from qdmr_ray.errors import VERBOSE_VARIABLE

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

# Closed choices, written out because --help must not import PyTorch to find them; a test compares
# them with the values that the code accepts.
TrainingDtype = Literal["float32", "tf32", "bfloat16"]
RestoringDtype = Literal["float32", "bfloat16"]
VerifyingDtype = Literal["float64", "float32"]
Preset = Literal["full", "demo"]
Domain = Literal["source", "target", "test"]
TargetSet = Literal["Real-Sim", "Real-Snap"]
WeightsKind = Literal["vqgan", "qdmr_base", "qdmr_uda"]
ExportForm = Literal["safetensors", "onnx", "pt2", "authors"]
TableFormat = Literal["plain", "markdown", "latex"]

Function = TypeVar("Function", bound=Callable[..., Any])


def option(default: Any, help: str, *names: str, **more: Any) -> Any:
    """Returns an option with its default, ``...`` if it must be given, and typer's ``more``."""
    return typer.Option(default, *names, help=help, **more)


def flag(name: str, help: str) -> Any:
    """Returns an option without a value, off by default."""
    return typer.Option(False, name, help=help)


def argument(metavar: str | None, help: str, **more: Any) -> Any:
    """Returns an argument, which must be given unless ``more`` holds a ``default``."""
    return typer.Argument(metavar=metavar, help=help, **more)


VERBOSE = option(
    False, "Show an error's traceback, and Ray's log.", "--verbose", "-v", show_default=False
)
ENDPOINT = option(
    None, "Address of an S3-compatible store; AWS_ENDPOINT_URL by default.", metavar="URL"
)
OVERRIDES = option(None, "Replace a setting; may be repeated.", "--set", metavar="KEY=VALUE")
JSON_FILE = option(None, "Also write the result to a file, as JSON.", "--json", metavar="F")


class App(typer.Typer):
    """Commands that take ``-v`` and end their help with an example. ``panel`` is the part of
    ``qdmr --help`` that lists them; with a ``name``, it lists this app as a group of commands."""

    def __init__(self, panel: str, name: str | None = None, help: str = "", example: str = ""):
        self.panel, self._panel_of_commands = panel, None if name else panel
        if name is None:
            super().__init__()
        else:
            alone: dict[str, Any] = {
                "no_args_is_help": True,
                "callback": _with_verbose(lambda: None),
            }
            super().__init__(name=name, help=help, epilog=f"Example:  qdmr {example}", **alone)

    def command(  # type: ignore[override]
        self, name: str | None = None, *, example: str, **more: Any
    ) -> Callable[[Function], Function]:
        """Registers a function as a command; its help ends with ``qdmr`` and the ``example``."""
        more |= {"epilog": f"Example:  qdmr {example}", "rich_help_panel": self._panel_of_commands}
        register = super().command(name, **more)

        def decorate(function: Function) -> Function:
            register(_with_verbose(function))
            return function

        return decorate


def show_tracebacks() -> bool:
    """Returns whether ``-v`` was given."""
    return bool(os.environ.get(VERBOSE_VARIABLE))


def _with_verbose(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with an option ``-v`` in its signature, which is where typer looks."""

    @wraps(function)
    def called(*args: Any, verbose: bool = False, **kwargs: Any) -> Any:
        if verbose:
            os.environ[VERBOSE_VARIABLE] = "1"
        return function(*args, **kwargs)

    own = signature(function, eval_str=True).parameters
    added = Parameter("verbose", Parameter.KEYWORD_ONLY, default=VERBOSE, annotation=bool)
    vars(called)["__signature__"] = Signature([*own.values(), added])
    called.__annotations__ = {"verbose": bool, **{n: p.annotation for n, p in own.items()}}
    return called
