"""``qdmr compare``: one table over several evaluations."""

from __future__ import annotations

from typing import Annotated

import typer

EPILOG = "Example:  qdmr compare runs/a runs/b --format latex --reference a/base"


def compare(
    evaluations: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_OR_EVALUATION...",
            help="Run folders, folders that evaluate wrote to, or evaluation.json files.",
        ),
    ],
    style: Annotated[
        str, typer.Option("--format", help="plain, markdown or latex (with booktabs).")
    ] = "plain",
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Such as psnr; may be repeated; all by default."),
    ] = None,
    reference: Annotated[
        str, typer.Option(metavar="NAME", help="Row that the others are tested against: RUN/STAGE.")
    ] = "input",
) -> None:
    """Means, 95 % intervals and paired significance of several evaluations of one test set."""
    from qdmr_ray.errors import SettingsError
    from qdmr_ray.evaluate.compare import compare as tabulate
    from qdmr_ray.evaluate.compare import named_apart, read_evaluation
    from qdmr_ray.evaluate.compare_text import FORMATS, comparison_text
    from qdmr_ray.storage import open_location

    if style not in FORMATS:
        raise SettingsError(f"--format {style}: choose from {', '.join(FORMATS)}")
    stored = named_apart([read_evaluation(open_location(uri)) for uri in evaluations])
    table = tabulate(stored, metrics=metric or (), reference=reference)
    print(comparison_text(table, style), end="", flush=True)
