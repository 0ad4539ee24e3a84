"""The common parts of commands' lines: the app that registers them, options, choices. Every
command, and every group, takes ``-v``, which shows the traceback of an error. A ``-v`` behind
``--``, or in a submitted command, belongs to that command."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from qdmr_ray.errors import VERBOSE_VARIABLE

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

# Panels of the help, in the order in which main.py assembles them.
DATA, TRAIN, JUDGE, RESTORE = "Data", "Train", "Judge", "Restore"
CLUSTER, DEVELOPERS = "Cluster", "Developers"

Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Show an error's traceback, and Ray's log.", show_default=False
    ),
]
Endpoint = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Address of an S3-compatible store; AWS_ENDPOINT_URL by default."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting; may be repeated."),
]
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="F", help="Also write the result to a file, as JSON."),
]
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


class App(typer.Typer):
    """Commands that take ``-v`` and end their help with an example. With a ``name`` the app is a
    group of commands; without one, its commands become those of ``qdmr`` itself. ``panel`` is the
    part of ``qdmr --help`` that lists the group, or the commands."""

    def __init__(self, name: str | None = None, *, panel: str, **options: Any) -> None:
        if name is not None:
            options |= {"no_args_is_help": True, "callback": _with_verbose(lambda: None)}
        super().__init__(name=name, **options)
        self.panel = panel
        self._panel_of_commands = None if name else panel

    def command(  # type: ignore[override]
        self, name: str | None = None, *, example: str, **options: Any
    ) -> Callable[[Function], Function]:
        """Registers a function as a command; its help ends with ``qdmr`` and the ``example``."""
        register = super().command(
            name,
            epilog=f"Example:  qdmr {example}",
            rich_help_panel=self._panel_of_commands,
            **options,
        )

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
    added = Parameter("verbose", Parameter.KEYWORD_ONLY, default=False, annotation=Verbose)
    vars(called)["__signature__"] = Signature([*own.values(), added])
    called.__annotations__ = {"verbose": Verbose, **{n: p.annotation for n, p in own.items()}}
    return called
