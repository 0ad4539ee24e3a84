"""``qdmr evaluate``, ``report``, ``compare``, ``codebook``, ``niqe-fit``: how good results are."""

from functools import partial
from pathlib import Path

import typer

from qdmr_ray.cli.options import EXIT_FAILED, OVERRIDES, App, TableFormat, argument, option
from qdmr_ray.cli.output import (
    Table,
    bar,
    bars,
    print_evaluation,
    print_table,
    quick_imports,
    say,
    tell,
    working,
)

app = App("Judge")


@app.command(example="evaluate runs/demo")
def evaluate(
    run: str = argument("RUN_OR_CHECKPOINT", "Run folder, or one trained model."),
    data: str | None = option(None, "Packed dataset; the run's by default."),
    out: str | None = option(None, "Folder for the results; the run's by default."),
    overrides: list[str] | None = OVERRIDES,
) -> None:
    """Measure and restore a test set, spread over the cluster; run again, it continues.

    --set evaluation.niqe=FILE, evaluation.workers=4 and so on replace the run's settings;
    evaluation.source_lens=URI, the same photographs through the source lens, shows the gap.
    """
    with quick_imports():
        import qdmr_ray.evaluate.evaluate  # noqa: F401
        from qdmr_ray import api
    from qdmr_ray.storage import open_location

    # `qdmr jobs fetch` finds the folder by this line, as `train`'s.
    say(f"run folder {open_location(out or run).uri}")
    with bars() as progress:
        evaluation = api.evaluate(
            run,
            data=data,
            out=out,
            overrides=overrides or (),
            progress=partial(progress, "evaluate"),
            codebook_progress=partial(progress, "codebook"),
            say=say,
        )
    print_evaluation(evaluation)
    if evaluation.failed:
        raise typer.Exit(EXIT_FAILED)


@app.command(example="report runs/demo")
def report(
    run: str = argument("RUN", "Folder of a run, an evaluation or a sweep, or s3://…"),
    out: str | None = option(None, "File; RUN/report.html by default."),
) -> None:
    """Write one self-contained page with metrics, curves, pictures, codebook and settings.

    It only shows results: the codebook's part comes from qdmr evaluate or qdmr codebook.
    """
    from qdmr_ray.report import build_report

    with working("report"):
        page = build_report(run, out)
    say(page)


@app.command(example="compare runs/a runs/b --format latex --reference a/base")
def compare(
    evaluations: list[str] = argument(
        "RUN_OR_EVALUATION...",
        "Run folders, folders that evaluate wrote to, evaluation.json files, or sweeps.",
    ),
    style: TableFormat = option("plain", "LaTeX tables are written for booktabs.", "--format"),
    metric: list[str] | None = option(
        None, "Such as psnr; may be repeated; all by default.", metavar="NAME"
    ),
    reference: str = option(
        "input", "Row that the others are tested against: RUN/STAGE or VARIANT.", metavar="NAME"
    ),
) -> None:
    """Tabulate evaluations of one test set: means, 95 % intervals and paired significance.

    Of a sweep, each variant is a row over its seeds, with their spread and its difference to the
    reference.

    Evaluations of both lenses (evaluation.source_lens) also have the metrics psnr_source,
    psnr_centre, psnr_middle and psnr_corner.
    """
    from qdmr_ray.api import compare as tabulate
    from qdmr_ray.evaluate.compare_text import comparison_text

    table = tabulate(evaluations, metrics=metric or (), reference=reference)
    print(comparison_text(table, style), end="", flush=True)


@app.command(example="codebook runs/demo")
def codebook(
    run: str = argument("RUN_OR_VQGAN", "Run folder, or a VQGAN's with --data."),
    data: str | None = option(None, "Packed dataset; the run's by default."),
    crops: int = option(64, "Crops taken from each domain.", min=1),
    out: str | None = option(None, "Folder; RUN_OR_VQGAN by default."),
) -> None:
    """Measure how source and target use a trained codebook, and draw an atlas of its codes."""
    from qdmr_ray.evaluate.codebook.compute import ATLAS_FILE, codebook_view, write_view
    from qdmr_ray.evaluate.codebook.usage import GROUP_LABELS
    from qdmr_ray.storage import open_location

    place = open_location(run)
    with bar("codebook") as progress:
        view = codebook_view(place, data=data, crops=crops, progress=progress)
    to = open_location(out) if out else place
    write_view(view, to)
    usage = view.usage
    table = Table("set", "photographs", "crops", "codes used", "perplexity")
    for name, used in (("source", usage.source), ("target", usage.target)):
        counts = str(used.photographs), str(used.crops), f"{used.used} of {usage.codes}"
        table.add_row(name, *counts, f"{used.perplexity:.1f}")
    print_table(table)
    groups = [f"{GROUP_LABELS[group]} {size}" for group, size in usage.group_sizes().items()]
    say(f"codes: {', '.join(groups)}")
    say(
        f"{usage.target_on_source_codes:.1%} of the target's choices fall on codes that the source "
        f"chooses too; divergence {usage.divergence:.3f} bits of at most 1"
    )
    say(f"atlas {to.join(ATLAS_FILE).uri}")


@app.command("niqe-fit", example="niqe-fit photos --out pristine.npz")
def niqe_fit(
    images: list[Path] = argument(None, "Clean photographs, or folders of them."),
    out: Path = option(..., "File for the pristine model, an .npz."),
) -> None:
    """Fit NIQE's pristine model, which images are measured against, to clean photographs.

    A photograph that can't be used is named and left out, and the exit code is then 1.
    """
    from qdmr_ray.data.packing.folders import list_images
    from qdmr_ray.errors import QdmrError
    from qdmr_ray.evaluate.metrics.niqe import PristineFit
    from qdmr_ray.evaluate.metrics.pristine import check_target, save_pristine
    from qdmr_ray.photographs.decode import read_image

    check_target(out)
    listed = (list_images(path) if path.is_dir() else [path] for path in images)
    # A file may be named beside its folder: each photograph counts once.
    paths = dict.fromkeys(path for some in listed for path in some)
    fit = PristineFit()
    left_out = 0
    with bar("niqe-fit") as progress:
        for done, path in enumerate(paths, start=1):
            try:
                fit.add(read_image(path))
            except QdmrError as error:
                left_out += 1
                place = "" if str(path) in str(error) else f"{path}: "
                tell(f"qdmr: {place}{error}")
            progress(done, len(paths))
    named = ", ".join(str(path) for path in images)
    counted = f"{fit.images} images and {fit.blocks} blocks"
    save_pristine(out, fit.model(f"{counted} of {named}"))
    say(f"{counted} went into {out}")
    if left_out:
        tell(f"qdmr: {left_out} of {len(paths)} photographs were left out")
        raise typer.Exit(EXIT_FAILED)
