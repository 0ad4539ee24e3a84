"""``qdmr codebook``: what source and target photographs choose from a trained codebook."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from qdmr_ray.cli.output import bars, print_table, say

EPILOG = "Example:  qdmr codebook runs/demo"


def codebook(
    run: Annotated[
        str, typer.Argument(metavar="RUN_OR_VQGAN", help="Run folder, or a VQGAN's with --data.")
    ],
    data: Annotated[str | None, typer.Option(help="Packed dataset; the run's by default.")] = None,
    crops: Annotated[int, typer.Option(min=1, help="Squares cut from each domain.")] = 64,
    out: Annotated[str | None, typer.Option(help="Folder; RUN_OR_VQGAN by default.")] = None,
) -> None:
    """How source and target use a trained codebook: figures, and every code in a picture."""
    from qdmr_ray.evaluate.codebook.compute import ATLAS_FILE, codebook_view, write_view
    from qdmr_ray.evaluate.codebook.usage import GROUP_LABELS
    from qdmr_ray.storage import open_location

    place = open_location(run)
    with bars() as progress:
        view = codebook_view(
            place,
            data=data,
            crops=crops,
            progress=lambda done, total: progress("codebook", done, total),
        )
    to = open_location(out) if out else place
    write_view(view, to)
    usage = view.usage
    table = Table("set", "photographs", "crops", "codes used", "perplexity")
    for name, used in (("source", usage.source), ("target", usage.target)):
        table.add_row(
            name,
            str(used.photographs),
            str(used.crops),
            f"{used.used} of {usage.codes}",
            f"{used.perplexity:.1f}",
        )
    print_table(table)
    groups = [f"{GROUP_LABELS[group]} {size}" for group, size in usage.group_sizes().items()]
    say(f"codes: {', '.join(groups)}")
    say(
        f"{usage.target_on_source_codes:.1%} of the target's choices fall on codes that the source "
        f"chooses too; divergence {usage.divergence:.3f} bits of at most 1"
    )
    say(f"atlas {to.join(ATLAS_FILE).uri}")
