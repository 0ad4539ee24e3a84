"""``qdmr niqe-fit``: NIQE's pristine model from one's own clean photographs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qdmr_ray.cli.output import bars, say


def niqe_fit(
    images: Annotated[list[Path], typer.Argument(help="Clean photographs, or folders of them.")],
    out: Annotated[Path, typer.Option(help="The pristine model, an .npz.")],
) -> None:
    """Fit NIQE's pristine model to clean photographs: what evaluation measures others against.

    A photograph that can't be used is named and left out, and the exit code is then 1.
    """
    from qdmr_ray.data.packing.folders import list_images
    from qdmr_ray.errors import QdmrError
    from qdmr_ray.evaluate.metrics.niqe import PristineFit, save_pristine
    from qdmr_ray.evaluate.metrics.pristine import check_target
    from qdmr_ray.photographs.decode import read_image

    check_target(out)
    listed = (list_images(path) if path.is_dir() else [path] for path in images)
    # Each photograph once: a file may be named beside its folder.
    paths = dict.fromkeys(path for some in listed for path in some)
    fit = PristineFit()
    left_out = 0
    with bars() as progress:
        for done, path in enumerate(paths, start=1):
            try:
                fit.add(read_image(path))
            except QdmrError as error:
                left_out += 1
                text = str(error)
                reason = text if str(path) in text else f"{path}: {text}"
                print(f"qdmr: {reason}", file=sys.stderr, flush=True)
            progress("niqe-fit", done, len(paths))
    named = ", ".join(str(path) for path in images)
    counted = f"{fit.images} images and {fit.blocks} blocks"
    save_pristine(out, fit.model(f"{counted} of {named}"))
    say(f"{counted} went into {out}")
    if left_out:
        print(f"qdmr: {left_out} of {len(paths)} photographs were left out", file=sys.stderr)
        raise typer.Exit(1)
