"""``qdmr niqe-fit``: NIQE's pristine model from one's own clean photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def niqe_fit(
    images: Annotated[list[Path], typer.Argument(help="Clean photographs, or folders of them.")],
    out: Annotated[Path, typer.Option(help="The pristine model, an .npz.")],
) -> None:
    """Fit NIQE's pristine model to clean photographs: what evaluation measures others against."""
    from qdmr_ray.data.folders import list_images
    from qdmr_ray.data.images import read_image
    from qdmr_ray.errors import QdmrError
    from qdmr_ray.evaluate.niqe import PristineFit, save_pristine
    from qdmr_ray.evaluate.pristine import check_target

    check_target(out)
    listed = (list_images(path) if path.is_dir() else [path] for path in images)
    # Each photograph once: a file may be named beside its folder.
    paths = dict.fromkeys(path for some in listed for path in some)
    fit = PristineFit()
    for path in paths:
        image = read_image(path)
        try:
            fit.add(image)
        except QdmrError as error:
            raise QdmrError(f"{path}: {error}") from error
    named = ", ".join(str(path) for path in images)
    counted = f"{fit.images} images and {fit.blocks} blocks"
    save_pristine(out, fit.model(f"{counted} of {named}"))
    print(f"{counted} went into {out}", flush=True)
