"""``qdmr restore`` and ``qdmr export``: using a trained network."""

import math
from pathlib import Path

import typer

from qdmr_ray.cli.options import EXIT_FAILED, App, ExportForm, RestoringDtype, argument, option
from qdmr_ray.cli.output import say
from qdmr_ray.errors import SettingsError

app = App("Restore")


@app.command(example="restore photos/*.jpg --checkpoint runs/demo/uda/final --out out")
def restore(
    # A file that can't be read is a failure of that file alone: the others are restored.
    files: list[Path] = argument(None, "Photographs, folders or patterns.", readable=False),
    checkpoint: str = option(..., "A trained base, uda or source_only model."),
    out: Path = option(..., "Folder for the corrected photographs."),
    memory: float | None = option(
        None,
        "GiB for maps between layers, 2 by default, on a GPU what is free; what exceeds them lies "
        "in scratch files.",
        min=0,
    ),
    scratch: Path | None = option(None, "Folder for those files; the system's by default."),
    dtype: RestoringDtype = option("float32", "Precision of the network."),
    device: str | None = option(None, "cpu, cuda or cuda:N; a GPU by default where there is one."),
) -> None:
    """Correct photographs of any size; bits, transparency, EXIF data and colour profile stay."""
    from qdmr_ray import api
    from qdmr_ray.cli.restore_display import shown
    from qdmr_ray.restore.restoration import RestoreSettings

    settings = RestoreSettings(memory=bytes_of(memory), scratch=scratch, dtype=dtype, device=device)
    with shown(out) as report:
        failures = api.restore(files, checkpoint, out=out, settings=settings, report=report)
    if failures:
        raise typer.Exit(EXIT_FAILED)
    say(f"corrected photographs in {out}")


@app.command(example="export runs/demo/uda/final --to onnx --out qdmr.onnx")
def export(
    checkpoint: str = argument("CHECKPOINT", "A trained model."),
    to: ExportForm = option(..., "Form of the file; authors: their .pth."),
    out: str = option(..., "The file: a path or s3://…", metavar="F"),
) -> None:
    """Write the generator alone as one file, which is compared with the network first.

    The images it takes are RGB in 0 … 1, (batch, 3, height, width); height and width are
    multiples of the file's "multiple" (64 in the paper's network), twice that at least.
    """
    from qdmr_ray.models.export import export_model
    from qdmr_ray.storage import open_location

    checks = export_model(checkpoint, to, open_location(out), say)
    for check in checks:
        batch, _, height, width = check.shape
        say(f"{batch} x 3 x {height} x {width}: largest difference {check.difference:.1e}")
    say(f"{to} of {checkpoint} into {out}")


def bytes_of(memory: float | None) -> int | None:
    """Returns ``--memory`` (GiB) in bytes; raises SettingsError if it is infinite or no number."""
    if memory is None:
        return None
    if not math.isfinite(memory):
        raise SettingsError(f"--memory {memory}: give a number of GiB, such as 2")
    return round(memory * 2**30)
