"""``qdmr import-weights`` and ``qdmr export``: networks from and for programs other than this."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

IMPORT_EPILOG = "Example:  qdmr import-weights net_g.pth --kind vqgan --out models/vqgan"
EXPORT_EPILOG = "Example:  qdmr export runs/demo/uda/final --to onnx --out qdmr.onnx"


def import_weights(
    file: Annotated[Path, typer.Argument(metavar="FILE.pth", help="The authors' checkpoint.")],
    kind: Annotated[str, typer.Option(help="vqgan, qdmr_base or qdmr_uda.")],
    out: Annotated[str, typer.Option(help="New folder for the model: a folder or s3://…")],
) -> None:
    """The authors' checkpoint to a model that evaluate, restore, export and training take."""
    from qdmr_ray.models.authors import import_authors
    from qdmr_ray.storage import open_location

    for note in import_authors(file, kind, open_location(out)):
        _say(f"{file}: {note}")
    _say(f"{kind} of {file} into {out}")


def export(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A trained model.")],
    to: Annotated[str, typer.Option(help="safetensors, onnx, pt2 or authors (their .pth).")],
    out: Annotated[str, typer.Option(metavar="F", help="The file: a path or s3://…")],
) -> None:
    """The generator alone as one file, compared with the network before it is written.

    The images it takes are RGB in [0, 1], (batch, 3, height, width); height and width are
    multiples of the file's "multiple" (64 in the paper's network), twice that at least.
    """
    from qdmr_ray.models.export import export_model
    from qdmr_ray.storage import open_location

    checks = export_model(checkpoint, to, open_location(out), _say)
    for check in checks:
        batch, _, height, width = check.shape
        _say(f"{batch} x 3 x {height} x {width}: largest difference {check.difference:.1e}")
    _say(f"{to} of {checkpoint} into {out}")


def _say(text: str) -> None:
    print(text, flush=True)
